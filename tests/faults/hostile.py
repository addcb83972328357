"""Hostile clients: what they say, and when; attacker.py runs one of them as a process.

An attack talks to a server for the seconds it is given and tells what it did. It uses the package's
own DHT node and secret streams, for only who speaks the protocol correctly so far gets to the next
layer; what comes then is as wrong as can be. Attacks below the messages are in packets.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import trio

from hyperlog.dht import DHT, Connection, DHTError, KeyPair, open_dht

PATIENCE = 10.0  # s for a connection, and for an answer
AT_ONCE = 64 * 1024  # bytes handed to the connection in one go
MESSAGE = 8 * 1024 * 1024  # bytes; what the first servers took
FRAME = 16 * 1024 * 1024 - 18  # bytes; what a frame of the secret stream can hold

Figures = dict[str, Any]


@dataclass(slots=True)
class Target:
    """Whom to attack, and how long."""

    key: bytes
    address: tuple[str, int]
    seconds: float
    seed: int
    options: dict[str, Any] = field(default_factory=dict)

    def pair(self, number: int) -> KeyPair:
        """The attacker's identity of that number; the same in the test that looks at its file."""
        return KeyPair.from_seed(random.Random(f"{self.seed} {number}").randbytes(32))


Attack = Callable[[Target], Awaitable[Figures]]
ATTACKS: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    ATTACKS[function.__name__] = function
    return function


# -- a client that behaves so far -----------------------------------------------------------------


@asynccontextmanager
async def node(target: Target, host: str = "127.0.0.1") -> AsyncIterator[DHT]:
    async with open_dht(bootstrap=[target.address], host=host) as dht:
        yield dht


async def connected(dht: DHT, target: Target, number: int = 0) -> Connection:
    """An open connection of the identity of that number, before its greeting is read."""
    with trio.fail_after(PATIENCE):
        return await dht.connect(
            target.key, key_pair=target.pair(number), relay_addresses=[target.address]
        )


async def greeted(dht: DHT, target: Target, number: int = 0) -> Connection:
    connection = await connected(dht, target, number)
    with trio.fail_after(PATIENCE):
        await connection.receive()
    return connection


async def speaking(
    dht: DHT, target: Target, number: int = 0, sessions: dict[str, int] | None = None
) -> Connection:
    """A connection of version 2, welcomed."""
    connection = await greeted(dht, target, number)
    await connection.send(hello({"1": -1} if sessions is None else sessions))
    with trio.fail_after(PATIENCE):
        await connection.receive()
    return connection


async def pour(connection: Connection, messages: Iterable[bytes], seconds: float) -> int:
    """Send as fast as the server takes, for at most `seconds`; how many went out."""
    sent = 0
    waiting: list[bytes] = []
    size = 0
    with trio.move_on_after(seconds):
        try:
            for message in messages:
                waiting.append(message)
                size += len(message)
                if size >= AT_ONCE:
                    await connection.send_many(waiting)
                    sent += len(waiting)
                    waiting, size = [], 0
            await connection.send_many(waiting)
            sent += len(waiting)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # cut off: that is the server's right
    return sent


async def drained(connection: Connection, seconds: float) -> bool:
    """Wait until the server has taken everything or ends it; whether it ended it."""
    with trio.move_on_after(seconds):
        try:
            await connection.wait_acknowledged()
            return False
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return True
    return False


async def swallow(connection: Connection) -> None:
    """Read what the server says."""
    try:
        while True:
            await connection.receive_many()
    except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
        pass


def record(number: Any, session: Any = "1", **fields: Any) -> bytes:
    return json.dumps(
        {
            "traceTimestamp": "2026-01-01T00:00:00.000Z",
            "traceSessionId": session,
            "traceNumber": number,
            "id": None,
            "props": None,
            "object": {"id": 1, "className": "Hostile", "props": None},
            "caller": {"filename": "h.py", "functionName": "h"},
            **fields,
        },
        separators=(",", ":"),
    ).encode()


def small_record(number: int, session: str = "1") -> bytes:
    """The smallest that counts as one."""
    return b'{"traceSessionId":"%b","traceNumber":%d,"note":""}' % (session.encode(), number)


def hello(sessions: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"hello": {"version": 2, "sessions": sessions, **fields}}).encode()


def batch(session: str, first: Any, lines: Sequence[bytes], claimed: Any = None) -> bytes:
    head = {"session": session, "from": first, "count": len(lines) if claimed is None else claimed}
    return b"\n".join([json.dumps({"batch": head}).encode(), *lines])


# -- what stands in a message ---------------------------------------------------------------------

FORGED = {
    "time": "1999-12-31T23:59:59.999Z",
    "userId": "root___00000000",
    "note": "New session from somebody else",
    "key": "00" * 32,
    "cut": True,
    "__proto__": {"polluted": 1},
    "hyperlog": {"version": 99},
    "sessions": {"1": 2**53 - 1},
}


@attack
async def forged_fields(target: Target) -> Figures:
    """Fields that are the server's to set, notes and gaps of others, fields given twice."""
    gap = {"session": "2", "from": 0, "to": 10**6, "count": 10**6, "reason": "spool-full"}
    messages = [
        record(0, **FORGED),
        record(1, time="\u001b[2J", userId=["x"], gap=gap, note="x"),
        record(2, gap={**gap, "session": "1", "to": 2, "count": -5}, note="x"),
        record(3, gap={**gap, "session": "1", "from": 9, "to": 3}, note="x"),
        record(4, note="Log continues", sessions={"1": 2**53 - 1}),
        record(5, clientTime="mine", time="yours"),
        record(6)[:-1] + b',"traceNumber":7,"time":1,"time":2,"userId":"a","userId":"b"}',
        record(8, props={"username": "admin___ffffffff", "alias": "\n"}),
    ]
    async with node(target) as dht:
        connection = await greeted(dht, target)
        await pour(connection, messages, target.seconds)
        await drained(connection, target.seconds)
        await connection.aclose()
        connection = await speaking(dht, target, sessions={"9": -1})
        lines = [message.replace(b'"1"', b'"9"') for message in messages]
        await pour(connection, [batch("9", 0, lines)], target.seconds)
        await drained(connection, target.seconds)
        await connection.aclose()
    return {"messages": len(messages) * 2}


def unprintable() -> list[str]:
    """Everything that a terminal or a viewer of logs may obey instead of showing it."""
    codes = [*range(0x00, 0x20), *range(0x7F, 0xA0), 0xAD, 0x61C, 0x180E]
    codes += [*range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0xFEFF]
    codes += [*range(0xFFF9, 0xFFFC), *range(0xE0001, 0xE0080)]
    sequences = ["\x1b[2J\x1b[H", "\x1b]0;title\x07", "\x9b31m", "\x1bP+q\x1b\\", "\r\nforged\n"]
    return [chr(code) for code in codes] + sequences


@attack
async def escape_sequences(target: Target) -> Figures:
    """Control characters and text directions wherever text can stand, escaped and raw."""
    messages: list[bytes] = []
    for text in unprintable():
        for raw in (False, True):
            props = {f"k{text}": text, "username": f"u{text}", "deep": [[{text: text}]]}
            fields = {"id": text, "props": props, f"x{text}y": text, "clientTime": text}
            session = f"1{text}"
            message = record(0, session, **fields)
            if raw and ord(text[0]) >= 0x20:
                message = json.dumps(json.loads(message), ensure_ascii=False).encode()
            messages.append(message)
    async with node(target) as dht:
        connection = await greeted(dht, target)
        sent = await pour(connection, messages, target.seconds)
        cut_off = await drained(connection, target.seconds)
        await connection.aclose()
        connection = await speaking(dht, target, 1, {"\x1b[2J": -1, "\u202e": 5, "\x00\n": 7})
        sent += await pour(connection, [batch("\u202e", 6, [record(6, "\u202e")])], target.seconds)
        await drained(connection, target.seconds)
        await connection.aclose()
    return {"messages": sent, "cut_off": cut_off}


def broken_texts() -> list[bytes]:
    deep = 100_000
    good = record(0)
    return [
        b"\xff" * 100,
        good.replace(b"Hostile", b"\xc3("),
        good.replace(b"Hostile", b"\xed\xa0\x80"),  # a surrogate in UTF-8
        good.replace(b"Hostile", b"\xf8\x88\x80\x80\x80"),
        good.replace(b"Hostile", b"\\ud800"),
        good.replace(b"Hostile", b"\\udc00\\ud800"),
        good.replace(b"Hostile", b"\\u12"),
        good.replace(b"Hostile", b"\x00"),
        good.replace(b"Hostile", b"\\u0000"),
        b"\x00" * 1000,
        b"\xef\xbb\xbf" + good,
        good.decode().encode("utf-16"),
        good[:-1],
        good + b"x",
        good + good,
        b"[" * deep,
        b"{" * deep,
        b'{"a":' * deep,
        b"[" * deep + b"]" * deep,
        good.replace(b'"props":null', b'"props":' + b"[" * deep + b"]" * deep),
        good.replace(b'"props":null', b'"props":' + b'{"a":' * deep + b"1" + b"}" * deep),
        good.replace(b'"props":null', b'"props":1e999'),
        good.replace(b'"props":null', b'"props":' + b"9" * 100_000),
        good.replace(b'"props":null', b'"props":-' + b"9" * 5000 + b"e" + b"9" * 5000),
        good.replace(b'"props":null', b'"props":NaN'),
        good.replace(b'"props":null', b'"props":Infinity'),
        good.replace(b'"traceNumber":0', b'"traceNumber":1e3'),
        good.replace(b'"traceNumber":0', b'"traceNumber":-0'),
        good.replace(b'"traceNumber":0', b'"traceNumber":' + b"1" * 400),
        b"null",
        b"true",
        b"0",
        b'""',
        b"[]",
        b"{}",
        b"\n",
        b" " * 100_000,
        b'{"batch":',
        b'{"hello":null}',
        b'{"hello":[]}',
    ]


@attack
async def broken_texts_in_records(target: Target) -> Figures:
    """No JSON, nearly JSON, numbers beyond all bounds, 100,000 levels: first, and in between."""
    rng = random.Random(target.seed)
    sent = 0
    async with node(target) as dht:
        texts = broken_texts()
        with trio.move_on_after(target.seconds):
            for text in texts:  # as the message that decides which rule is spoken
                connection = await greeted(dht, target)
                sent += await pour(connection, [text], target.seconds)
                await drained(connection, 1.0)
                connection.abort()
        for _ in range(3):
            rng.shuffle(texts)
            connection = await greeted(dht, target)
            sent += await pour(connection, texts, target.seconds)
            await drained(connection, 1.0)
            connection.abort()
            connection = await speaking(dht, target)
            lines = [text.replace(b"\n", b" ") or b" " for text in texts]
            sent += await pour(connection, [batch("1", 10**6, lines), *texts], target.seconds)
            await drained(connection, 1.0)
            connection.abort()
    return {"messages": sent}


def bombs(size: int) -> dict[str, bytes]:
    """Messages of about `size` bytes that are small to make and may be dear to look at."""

    def props(value: bytes) -> bytes:
        return record(0).replace(b'"props":null', b'"props":' + value, 1)

    def times(text: bytes) -> bytes:
        return text * (size // len(text))

    return {
        "brackets": b"[" * size,
        "pairs": props(b"[" + times(b"[],")[:-1] + b"]"),
        "numbers": props(b"[" + times(b"1,")[:-1] + b"]"),
        "strings": props(b"[" + times(b'"",')[:-1] + b"]"),
        "members": props(b"{" + times(b'"":0,')[:-1] + b"}"),
        "names": record(0)[:-1] + times(b',"a":0') + b"}",
        "forged names": record(0, time=1)[:-1] + times(b',"a":0') + b"}",
        "escapes": props(b'"' + times(b"\\\\") + b'"'),
        "open escapes": props(b'"' + times(b"\\\\")),
        "surrogates": props(b'"' + times(b"\\ud800") + b'"'),
        "controls": props(b'"' + times("\u202e".encode()) + b'"'),
        "nul": props(b'"' + times(b"\\u0000") + b'"'),
        "spaces": b" " * size + record(0),
        "digits": props(b"1" * size),
        "name": props(b'{"username":"' + b"x" * size + b'"}'),
        "text": props(b'"' + b"x" * size + b'"'),
        "newlines": batch("1", 0, [b""], 1) + b"\n" * size,
        "lines": batch("1", 0, times(b"{}\n").split(b"\n")),
        "quotes": b'"' * size,
        "session": record(0, "x" * size),
    }


@attack
async def json_bombs(target: Target) -> Figures:
    """Messages that cost the reader far more than the writer, by both rules, ten times each."""
    sent, size = 0, target.options.get("size", MESSAGE - 4096)
    only = target.options.get("only")
    async with node(target) as dht:
        for name, bomb in bombs(size).items():
            if only is not None and name != only:
                continue
            for rule in (greeted, speaking):
                connection = await rule(dht, target)
                message = bomb
                if rule is speaking and not bomb.startswith(b'{"batch"'):
                    message = batch("1", 0, [bomb])
                with trio.move_on_after(target.seconds):
                    sent += await pour(connection, [message] * 10, target.seconds)
                    await drained(connection, target.seconds)
                connection.abort()
    return {"messages": sent, "megabytes": sent * size // 2**20}


@attack
async def big_messages(target: Target) -> Figures:
    """Records of 8 MiB, frames of 16 MiB, from many connections at once."""
    sent = 0
    text = random.Random(target.seed).randbytes(FRAME // 2).hex()

    async def send(dht: DHT, number: int, size: int) -> None:
        nonlocal sent
        connection = await greeted(dht, target, number)
        empty = len(record(0, props=""))
        messages = (record(n, props=text[: size - empty - 8]) for n in count())
        sent += await pour(connection, messages, target.seconds)
        connection.abort()

    async with node(target) as dht, trio.open_nursery() as nursery:
        for number in range(target.options.get("connections", 8)):
            nursery.start_soon(send, dht, number, (MESSAGE, FRAME)[number % 2])
    return {"messages": sent}


@attack
async def big_messages_and_silence(target: Target) -> Figures:
    """A good record, then one of 16 MiB, from each of many connections, which then stay open."""
    taken = 0
    message = record(0, props=random.Random(target.seed).randbytes(FRAME // 2 - 200).hex())
    all_sent = trio.Event()
    one_by_one = trio.Lock()
    connections = target.options.get("connections", 14)

    async def send(dht: DHT, number: int) -> None:
        nonlocal taken
        connection = await greeted(dht, target, number)
        await connection.send(record(0))  # a stranger would be ended for it
        await connection.wait_acknowledged()
        async with one_by_one:  # so that no more than one is incomplete at a time
            await connection.send(message)
            await drained(connection, target.seconds)
        taken += 1
        if taken == connections:
            await trio.sleep(0.1)  # for whoever measures
            all_sent.set()
        await all_sent.wait()
        connection.abort()

    async with node(target) as dht, trio.open_nursery() as nursery:
        for number in range(connections):
            nursery.start_soon(send, dht, number)
    return {"megabytes": taken * len(message) // 2**20}


@attack
async def batches_of_small_records(target: Target) -> Figures:
    """As many records in one message as it can hold: the next connection waits meanwhile."""
    size = len(small_record(100_000)) + 1
    lines = target.options.get("size", MESSAGE) // size - 10
    sent = 0
    async with node(target) as dht:
        connection = await speaking(dht, target)
        with trio.move_on_after(target.seconds):
            for first in count(0, lines):
                records = [small_record(first + n) for n in range(lines)]
                sent += await pour(connection, [batch("1", first, records)], target.seconds)
                if await drained(connection, PATIENCE):
                    break
        connection.abort()
    return {"batches": sent, "records": sent * lines}


# -- what is said when ----------------------------------------------------------------------------


@attack
async def numbers_astray(target: Target) -> Figures:
    """Sessions whose numbers go back, jump, repeat, and are none."""
    rng = random.Random(target.seed)
    numbers: list[Any] = [0, 1, 0, -1, 2**53 - 1, 5, 2**53, 2**64, 10**400, 1.5, "7", None, True]
    sent = 0
    async with node(target) as dht:
        connection = await greeted(dht, target)
        messages = [record(n, s) for s in ("1", "2") for n in numbers]
        messages += [record(rng.randrange(1000), rng.choice("12345")) for _ in range(5000)]
        messages += [record(0, s) for s in ("", "x" * 129, 5, None, [], {})]
        sent += await pour(connection, messages, target.seconds)
        await drained(connection, target.seconds)
        connection.abort()
        connection = await speaking(dht, target, 1)
        messages = [batch("1", n, [record(n)]) for n in (0, 2**53 - 1, 0, 5)]
        messages += [batch("1", n, [record(0)]) for n in (-1, 2**53, 2**70, "x", None, 0.5)]
        sent += await pour(connection, messages, target.seconds)
        await drained(connection, target.seconds)
        connection.abort()
    return {"messages": sent}


@attack
async def sessions_by_the_thousand(target: Target) -> Figures:
    """Each record of a session of its own: by both rules, and claimed in resume messages."""
    sent = 0
    sessions = count()

    def batches() -> Iterable[bytes]:
        for session in sessions:
            yield batch(str(session), 0, [small_record(0, str(session))])

    def resumes() -> Iterable[bytes]:
        while True:
            claimed = {f"{next(sessions):0120}": 2**40 for _ in range(64)}
            yield json.dumps({"resume": {"sessions": claimed}}).encode()

    async with node(target) as dht:
        connection = await greeted(dht, target)
        sent += await pour(connection, (small_record(0, str(s)) for s in sessions), target.seconds)
        connection.abort()
        for messages in (batches(), resumes()):
            async with trio.open_nursery() as nursery:
                connection = await speaking(dht, target, 1)
                nursery.start_soon(swallow, connection)
                sent += await pour(connection, messages, target.seconds)
                connection.abort()
    return {"messages": sent}


@attack
async def hellos_astray(target: Target) -> Figures:
    """A hello with 10,000 sessions, with huge fields, of other versions, twice, or none at all."""
    many = {str(session): -1 for session in range(10_000)}
    welcomed = hello({"1": -1})
    openings = [
        [hello(many)],
        [hello({"1": 2**53 - 1, "2": 2**53})],
        [hello({"1": -2})],
        [hello({"": 0, "x" * 129: 0})],
        [hello({"1": -1}, application="x" * 60_000, token="y" * 60_000)],
        [hello({"1": -1}, application={"a": 1}, instance=["b"], token=3)],
        [hello({"1": -1}, version=0)],
        [hello({"1": -1}, version=2**63)],
        [hello({"1": -1}, unknown={"deep": [[[]]] * 1000}), batch("1", 0, [record(0)])],
        [welcomed, welcomed],
        [welcomed, b'{"resume":{"sessions":{"1":-1}},"batch":{"session":"1","from":0,"count":1}}'],
        [welcomed, json.dumps({"resume": {"sessions": many}}).encode()],
        [welcomed, b'{"ack":{"sessions":{"1":5}}}'] * 50,
        [welcomed, b'{"welcome":{"sessions":{"1":5}}}', b'{"refused":{"code":"LIMIT"}}'],
        [batch("1", 0, [record(0)])],
        [b'{"resume":{"sessions":{"1":-1}}}'],
        [record(0), welcomed, batch("1", 1, [record(1)])],
    ]
    async with node(target) as dht:
        for opening in openings:
            connection = await greeted(dht, target)
            await pour(connection, opening, 1.0)
            await drained(connection, 1.0)
            connection.abort()
    return {"openings": len(openings)}


@attack
async def lying_batches(target: Target) -> Figures:
    """Batches whose head says another count, number or session than their lines."""
    records = [record(n) for n in range(20)]
    strange = [
        batch("1", 0, records, 19),
        batch("1", 0, records, 2**62),
        batch("1", 0, records, 0),
        batch("1", 0, records, -1),
        batch("1", 10, records),
        batch("2", 0, records),
        batch("1", 0, [record(n, "3") for n in range(20)]),
        batch("1", 0, [record(2**53 - 1 - n) for n in range(20)]),
        batch("1", 0, [record(5, note="x", gap={"session": "1", "from": 0, "to": 5, "count": 1})]),
        batch("1", 0, [b""] * 90),
        batch("1", 0, [batch("1", 0, [])]),
        batch("1", 0, records).replace(b"\n", b"\r\n"),
        batch("1", 0, records) + b"\n",
        batch("1" * 129, 0, records),
        b'{"batch":{"session":"1","from":0,"count":1}}',
        b'{"batch":null}\n{}',
    ]
    async with node(target) as dht:
        for number, message in enumerate(strange):
            connection = await speaking(dht, target, number)
            await pour(connection, [message, batch("1", 20, [record(20)])], 1.0)
            await drained(connection, 1.0)
            connection.abort()
    return {"batches": len(strange)}


@attack
async def never_reads(target: Target) -> Figures:
    """Ask for long answers as fast as possible and read none of them."""
    sent = 0
    sessions = {f"{number:0128}": -1 for number in range(64)}
    resume = json.dumps({"resume": {"sessions": sessions}}).encode()

    async def ask(dht: DHT, number: int, messages: Iterable[bytes]) -> None:
        nonlocal sent
        connection = await speaking(dht, target, number, sessions)
        sent += await pour(connection, messages, target.seconds)
        connection.abort()

    def acknowledged() -> Iterable[bytes]:
        for number in count():
            for session in sessions:
                yield batch(session, number, [small_record(number, session)])

    async with node(target) as dht, trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(ask, dht, number, (resume for _ in count()))
            nursery.start_soon(ask, dht, number + 4, acknowledged())
    return {"messages": sent}


@attack
async def acknowledgement_flood(target: Target) -> Figures:
    """One record a message, each of which the server owes an answer; acknowledge those, too."""
    sent = 0

    async def send(dht: DHT, number: int) -> None:
        nonlocal sent
        async with trio.open_nursery() as nursery:
            connection = await speaking(dht, target, number)
            nursery.start_soon(swallow, connection)
            messages = (batch("1", n, [small_record(n)]) for n in count())
            sent += await pour(connection, messages, target.seconds)
            connection.abort()

    async with node(target) as dht, trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(send, dht, number)
    return {"messages": sent}


@attack
async def fills_the_disk(target: Target) -> Figures:
    """Good records as fast as the server takes them, from a few keys."""
    sent = 0
    text = "x" * 4000

    async def send(dht: DHT, number: int) -> None:
        nonlocal sent
        async with trio.open_nursery() as nursery:
            connection = await speaking(dht, target, number)
            nursery.start_soon(swallow, connection)
            batches = (
                batch("1", n, [record(n + i, props=text) for i in range(50)]) for n in count(0, 50)
            )
            sent += 50 * await pour(connection, batches, target.seconds)
            connection.abort()

    async with node(target) as dht, trio.open_nursery() as nursery:
        for number in range(target.options.get("keys", 4)):
            nursery.start_soon(send, dht, number)
    return {"records": sent}


@attack
async def fresh_keys(target: Target) -> Figures:
    """Come with a new key each time, send a little, leave."""
    wanted = target.options.get("keys", 10_000)
    numbers = iter(range(wanted))
    done = refused = 0

    async def visit(dht: DHT) -> None:
        nonlocal done, refused
        for number in numbers:
            try:
                connection = await greeted(dht, target, number)
                await connection.send_many([record(0), record(1)])
                await connection.wait_acknowledged()
                connection.abort()
                done += 1
            except (DHTError, trio.TooSlowError, trio.BrokenResourceError, trio.EndOfChannel):
                refused += 1

    with trio.move_on_after(target.seconds):
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(_with_node, target, f"127.0.1.{number + 1}", visit, 4)
    return {"keys": done, "refused": refused}


async def _with_node(
    target: Target, host: str, visit: Callable[[DHT], Awaitable[None]], tasks: int
) -> None:
    async with node(target, host) as dht, trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(visit, dht)
