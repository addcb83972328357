"""Log lines as servers write them: the same ones for the same seed, for tests and benchmarks.

`realistic_lines` is what an installation of three applications and some peers without one sends:
traces and logs of about 418 bytes, with the odd note and gap. `hostile_lines` is what else a log
file can hold.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from hyperlog.records import instance_source, iso_time

__all__ = ["BEGIN", "PopulationLine", "hostile_lines", "realistic_lines"]

BEGIN = 1_795_000_000_000  # ms since 1970 of the first line, in November 2026
SERVER = hashlib.sha256(b"a server").hexdigest()

PopulationLine = tuple[bytes, bytes]
"""source and line"""

WORDS = (
    *("connection", "request", "user", "session", "payment", "order", "cache", "disk", "worker"),
    *("queue", "timeout", "retry", "handshake", "stream", "packet", "index", "shard", "backup"),
    *("invoice", "token", "upload", "download", "region", "cluster", "replica", "leader", "socket"),
    *("election", "snapshot", "checksum", "thumbnail", "message", "buffer", "thread", "pool"),
    *("config", "deploy", "metric"),
)
USERS = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy")
CLASSES = (
    ("UserService", ("create_user", "find_user", "remove_user")),
    ("PaymentGateway", ("charge", "refund", "settle")),
    ("Connection", ("open", "close", "send", "receive")),
    ("StreamTable", ("on_packet", "on_timeout")),
    ("SessionCache", ("get", "put", "evict")),
)
LEVELS = ("DEBUG", "INFO", "INFO", "INFO", "INFO", "WARNING", "ERROR", "CRITICAL")
APPLICATIONS = ("cerco", "midas", "papi", None)


@dataclass(slots=True)
class _Sender:
    source: bytes
    application: str | None
    instance: str | None
    user: str
    session: str
    number: int = 0


def _senders(rng: random.Random) -> list[_Sender]:
    senders = []
    for position in range(24):
        application = APPLICATIONS[position % len(APPLICATIONS)]
        instance = None if application is None else f"{application[:2]}{position:02d}"
        if application == "papi":
            source = instance_source(application, str(instance))  # by HTTP
        else:
            source = hashlib.sha256(b"peer %d" % position).digest()
        user = USERS[position % len(USERS)]
        senders.append(_Sender(source, application, instance, user, str(rng.getrandbits(62))))
    return senders


def realistic_lines(count: int, seed: int = 1, *, step: float = 40.0) -> Iterator[PopulationLine]:
    """`count` lines in the order of their arrival, `step` ms from one to the next on average.

    Several lines may have the same time. The word `common` is in every tenth line on average,
    `rare` in one of 20,000.
    """
    rng = random.Random(seed)
    senders = _senders(rng)
    now = float(BEGIN)
    for position in range(count):
        if rng.random() < 0.8:
            now += rng.expovariate(0.8 / step)
        sender = senders[int(len(senders) * rng.random() ** 2)]  # some send much more than others
        time = iso_time(int(now) / 1000)
        chance = rng.random()
        if chance < 0.001:
            yield sender.source, _note(rng, sender, time)
            continue
        if chance < 0.002:
            yield sender.source, _gap(rng, sender, time)
            continue
        made = iso_time((int(now) - rng.randrange(400)) / 1000)
        kind = _trace if chance < 0.7 else _log
        line = kind(rng, sender, time, made, position)
        sender.number += 1
        if rng.random() < 0.0002:  # its process starts again
            sender.session, sender.number = str(rng.getrandbits(62)), 0
        yield sender.source, line


def _encoded(line: dict[str, object]) -> bytes:
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode()


def _begin(sender: _Sender, time: str) -> dict[str, object]:
    line: dict[str, object] = {"time": time, "userId": f"{sender.user}___{sender.source[:4].hex()}"}
    return line | _tags(sender)


def _tags(sender: _Sender) -> dict[str, object]:
    if sender.application is None:
        return {}
    return {"app": sender.application, "instance": sender.instance}


def _numbers(sender: _Sender, made: str) -> dict[str, object]:
    return {
        "traceTimestamp": made,
        "traceSessionId": sender.session,
        "traceNumber": sender.number,
    }


def _trace(rng: random.Random, sender: _Sender, time: str, made: str, position: int) -> bytes:
    name, functions = rng.choice(CLASSES)
    function = rng.choice(functions)
    return _encoded(
        _begin(sender, time)
        | _numbers(sender, made)
        | {
            "id": rng.choice((None, None, "stream-open", "stream-close", "listen")),
            "props": {"username": sender.user, "version": f"1.{position % 7}.0"},
            "object": {"id": rng.randrange(1, 40), "className": name, "props": None},
            "caller": {
                "filename": f"/srv/app/{name.lower()}.py",
                "functionName": function,
                "props": {"ms": rng.randrange(0, 5000) / 8, "tag": _phrase(rng, 2)},
                "line": rng.randrange(1, 400),
                "column": 8,
            },
        }
    )


def _log(rng: random.Random, sender: _Sender, time: str, made: str, position: int) -> bytes:
    text = _phrase(rng, rng.randrange(3, 9))
    message: object = text
    if rng.random() < 0.2:
        message = {"event": text, "user": {"id": rng.randrange(100), "name": rng.choice(USERS)}}
    line = (
        _begin(sender, time)
        | _numbers(sender, made)
        | {
            "level": rng.choice(LEVELS),
            "logger": f"app.{rng.choice(WORDS)}",
            "message": message,
            "attributes": {
                "http.status": rng.choice((200, 200, 200, 201, 301, 404, 404, 500)),
                "ok": rng.random() < 0.9,
                "request": f"{rng.getrandbits(64):016x}",
                "tags": rng.sample(WORDS, rng.randrange(3)),
            },
        }
    )
    if rng.random() < 0.05:
        line["exception"] = {
            "type": "ConnectionError",
            "message": _phrase(rng, 3),
            "stack": f"Traceback:\n  {_phrase(rng, 4)}\n",
        }
    return _encoded(line)


def _phrase(rng: random.Random, count: int) -> str:
    words = rng.choices(WORDS, k=count)
    if rng.random() < 0.1:
        words[0] = "common"
    if rng.random() < 0.00005:
        words[-1] = "rare"
    return " ".join(words)


def _note(rng: random.Random, sender: _Sender, time: str) -> bytes:
    note = f"Connected from 10.0.{rng.randrange(256)}.{rng.randrange(256)}"
    return _encoded({"time": time} | _tags(sender) | {"note": note})


def _gap(rng: random.Random, sender: _Sender, time: str) -> bytes:
    first = sender.number
    sender.number += rng.randrange(1, 50)
    last = sender.number - 1
    gap = {
        "session": sender.session,
        "from": first,
        "to": last,
        "count": last - first + 1,
        "reason": "buffer-full",
    }
    note = f"Lost {last - first + 1} messages before sending! from={first} to={last}"
    return _encoded({"time": time} | _tags(sender) | {"note": note, "gap": gap})


# -- what else a file can hold

_DEEP = '{"a":' * 100 + "[" * 20 + "7" + "]" * 20 + "}" * 100
_BODIES = (
    r'"message":"half a pair \ud83d here","props":{"s":"\udc00"}',
    r'"message":"a nul \u0000 inside","props":{"nul":"x\u0000y","\u0000":1}',
    '"message":"beyond 64 bits","props":{"n":18446744073709551616,"m":-9223372036854775809}',
    '"message":"a limit","props":{"n":9223372036854775807,"m":-9223372036854775808}',
    '"message":"beyond doubles","props":{"n":1e400,"m":-1e400,"k":' + "9" * 400 + "}",
    f'"message":"beyond conversion","props":{{"n":{"9" * 5000},"m":"here"}}',
    '"message":"small","props":{"n":5e-324,"m":-0.0,"k":1e-7,"l":1.0,"o":100000000000000000000.0}',
    '"message":"exact","props":{"n":9007199254740993,"m":9007199254740992.0,"k":0.1}',
    f'"message":"deep","props":{_DEEP}',
    '"message":"doubled","props":{"n":1,"n":"two"},"level":"INFO","level":"ERROR"',
    f'"message":"{"long word " * 6500}"',
    f'"message":"{"x" * 60000}"',
    f'"message":"many","props":{{{",".join(f""" "m{i}":{i}""" for i in range(3000))}}}',
    f'"message":"wide","props":{{"items":[{",".join(str(i) for i in range(3000))}]}}',
    '"message":"dots","props":{"a.b":{"c":1},"a":{"b.c":2,"b":{"c":3}},".":4,"..":5,"a.":{"":6}}',
    '"message":"dollars","props":{"$set":{"$x":1},"$":2,"a$b":3,"$where":"while(1);"}',
    '"message":"empty names","props":{"":{"":[{"":1}]}}',
    '"message":"arrays","props":{"n":[1,[2,[3]],{"n":4}],"items":[{"n":5},[{"n":6}],{"0":7}]}',
    '"message":"empty","props":{},"attributes":{"list":[],"null":null,"text":""}',
    '"message":"mixed","props":{"n":"404"},"attributes":{"n":404,"t":"true","u":"null","f":"1.5"}',
    '"message":"typed","props":{"n":true},"attributes":{"n":[false,0,1,"1",null,1.0]}',
    '"message":"Straße ΣΊΣΥΦΟΣ ﬁne ①②③ İstanbul","props":{"n":"Å Å ﷺ"}',
    '"message":"東京都の天気 สวัสดีชาวโลก हिन्दी 한국어 🙂 naïve cafe\u0301"',
    '"message":"words: create_user createUser 10.0.0.1 /var/log/app.log a-b-c x·y"',
    r'"message":"moves \u202e and \u2028 lines\nof\ttext \u001b[31m"',
    '"message":"\'; drop table records; -- % _ * ( ) \\" \\\\"',
    '"message":{"event":"object","user":{"id":7},"list":[{"id":8},{"id":9}]}',
    '"message":[1,"two",{"three":3}]',
    '"message":null',
    '"message":17,"level":35',
    '"message":"levels","level":"warn"',
    '"message":"levels","level":"Fatal"',
    '"message":"levels","level":{"no":"level"}',
    '"message":"shadows","id":"an id","time":"2026-11-18T11:33:00.000Z","session":1,"key":2,'
    '"server":3,"source":4,"bucket":5,"kind":6,"number":7,"instance":"8","client_time":9',
    '"id":7,"object":{"id":1,"className":5},"caller":{"functionName":null}',
    '"id":"","object":{},"caller":{}',
    '"traceTimestamp":{"x":"inner words"},"traceNumber":[7,{"x":"inner number"}]',
    '"level":"INFO"',
    "",
)


def hostile_lines(seed: int = 1, *, repeats: int = 3) -> Iterator[PopulationLine]:
    """Every strange line some times, under strange names; and lines that are no records."""
    rng = random.Random(seed)
    names = (
        ("cerco", "a2b5"),
        ("../../etc/passwd", "..\\x"),
        ("$cmd", "system.users"),
        ("a.b", "é" * 64),
        ("Cerco", "%00"),
        ("東京", " "),
        ("x" * 64, "A"),
        ("x" * 65, "too long"),
        ("", ""),
    )
    number = 0
    for turn in range(repeats):
        for body in _BODIES:
            application, instance = names[number % len(names)]
            source = (
                instance_source(application, instance)
                if turn == 0
                else hashlib.sha256(b"hostile %d" % (number % 5)).digest()
            )
            time = iso_time((BEGIN + number // 3 * rng.choice((0, 1, 90_000))) / 1000)
            session = ("1", "a session", "-", "x" * 128, "9" * 18)[number % 5]
            head = {"time": time, "userId": "mallory___00000000"}
            if turn < 2:
                head |= {"app": application, "instance": instance}
            head |= {
                "traceTimestamp": ("yesterday", time, "2026-02-30T00:00:00Z")[number % 3],
                "traceSessionId": session,
                "traceNumber": (number, 2**53 - 1 - number)[number % 2],
            }
            text = json.dumps(head, ensure_ascii=False)[:-1]
            number += 1
            yield source, (f"{text},{body}}}" if body else f"{text}}}").encode()
    source = hashlib.sha256(b"hostile").digest()
    torn = b'{"time":"2026-11-18T11:06:40.000Z","userId":"x","message":"torn'
    yield source, b'{"time":"2026-11-18T11:06:40.000Z","note":"Log continues","sessions":{"8":1}}'
    for line in (b"", b"[]", b"null", b"\xff\xfe", torn, b'{"time":"soon","note":"x"}', b"{}"):
        yield source, line
    yield source, b'{"time":"2026-11-18T11:06:40.001Z","note":"not \xff UTF-8"}'
