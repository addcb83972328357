from __future__ import annotations

import pytest

from tests.web.site import LOGS, site, until


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("logs.example.org:443", 200), ("attacker.example", 421), ("", 421)],
)
async def test_a_request_for_another_host_is_not_answered(tmp_path, host, status):
    async with site(tmp_path, http_hosts=["logs.example.org"]) as here, here.client() as client:
        answer = await client.get("/healthz", headers={"Host": host})
        assert answer.status_code == status


async def test_two_hosts_are_not_answered(tmp_path):
    async with site(tmp_path) as here, await here.stream() as stream:
        await stream.send_all(
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"
        )
        assert (await stream.receive_some()).startswith((b"HTTP/1.1 400", b"HTTP/1.1 421"))


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", LOGS, "/metrics?x=1"])
async def test_every_answer_has_an_id_and_keeps_browsers_from_mischief(tmp_path, path):
    async with site(tmp_path) as here, here.client() as client:
        for _ in range(2):
            answer = await client.get(path, headers={"Origin": "https://attacker.example"})
            assert len(answer.headers["x-request-id"]) == 16
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["cache-control"] == "no-store"
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert "server" not in answer.headers


async def test_a_proxys_id_is_kept_if_it_is_one(tmp_path):
    async with site(tmp_path) as here, here.client() as client:
        answer = await client.get("/healthz", headers={"X-Request-Id": "edge-7.a_b"})
        assert answer.headers["x-request-id"] == "edge-7.a_b"
        answer = await client.get("/healthz", headers={"X-Request-Id": "a b<script>"})
        assert len(answer.headers["x-request-id"]) == 16


async def test_the_id_is_in_the_log(tmp_path, caplog):
    caplog.set_level("DEBUG", "hyperlog.web")
    async with site(tmp_path) as here, here.client() as client:
        answer = await client.get("/healthz")
        entry = f"[{answer.headers['x-request-id']}] GET '/healthz' 200"
        await until(lambda: entry in caplog.text)


async def test_a_preflight_from_another_origin_gets_no_permission(tmp_path):
    async with site(tmp_path) as here, here.client() as client:
        headers = {"Origin": "https://attacker.example", "Access-Control-Request-Method": "POST"}
        answer = await client.options(LOGS, headers=headers)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "path", ["/api/v1/logs/", "//api/v1/logs", "/api/v1/../v1/logs", "/api/v1/logs%00", "/%ff"]
)
async def test_another_path_is_another_path(tmp_path, path):
    async with site(tmp_path) as here, await here.stream() as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 404")


async def test_an_address_has_a_limit(tmp_path):
    async with site(tmp_path) as here, here.client() as client:
        answer = await client.get("/healthz?x=" + "x" * 9000)
        assert (answer.status_code, answer.json()["limit"]) == (414, 8192)


async def test_health_is_told_to_everybody(tmp_path):
    async with site(tmp_path, store="sqlite") as here, here.client() as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        async with here.client(here.token()) as sender:
            await sender.post(LOGS, json={"message": "x"})
        await until(lambda: here.server.store.statistics().records)
        assert (await client.get("/readyz")).json() == {"ready": True, "files": "ok", "store": "ok"}
        assert (await client.head("/healthz")).status_code == 200
