"""Forms that never end, and forms of admins that cannot be done, on a real server."""

from __future__ import annotations

from contextlib import AsyncExitStack

import trio

from hyperlog import blocklist
from hyperlog.web import guard
from hyperlog.web.panel import routes
from tests.web.panel.test_leaving import panel
from tests.web.site import site, until

HEADS = {
    path: (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\n"
    ).encode()
    for path in ("/login", "/setup")
}


async def status(stream):
    data = b""
    with trio.fail_after(10):
        while b"\r\n" not in data:
            more = await stream.receive_some()
            assert more, "there is an answer"
            data += more
    return int(data.split()[1])


async def opened(here, stack, request):
    stream = await trio.open_tcp_stream(*here.server.http_address)
    await stack.enter_async_context(stream)
    await stream.send_all(request)
    return stream


async def test_a_form_that_does_not_end_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(routes, "FORM_TIMEOUT", 0.2, raising=False)
    async with site(tmp_path, store="sqlite") as here, AsyncExitStack() as stack:
        for head in HEADS.values():
            stream = await opened(here, stack, head + b"name=a")
            assert await status(stream) == 408


async def test_forms_that_do_not_end_keep_nobody_from_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "MAX_REQUESTS", 6)
    monkeypatch.setattr(routes, "MAX_FORMS", 4, raising=False)
    async with site(tmp_path, store="sqlite") as here, AsyncExitStack() as stack:
        refused = []

        async def refuse(stream):
            refused.append(await status(stream))

        async with trio.open_nursery() as nursery:
            for head in [*HEADS.values()] * 5:
                nursery.start_soon(refuse, await opened(here, stack, head))
            await until(lambda: len(refused) == 6)
            nursery.cancel_scope.cancel()
        assert set(refused) == {503}
        get = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert await status(await opened(here, stack, get)) == 200


async def test_one_blocked_key_too_many_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(blocklist, "MAX_BLOCKED", 1)
    async with panel(tmp_path) as (_here, client):
        for key, expected in ((b"a", 303), (b"b", 400)):
            answer = await client.post("/applications/block", data={"key": (key * 32).hex()})
            assert answer.status_code == expected
