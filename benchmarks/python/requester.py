"""Asks one node as fast as it answers: the load of benchmarks/node.py, the same for both languages.

Options: host and port of the node, window (requests under way), sources (sockets, each on a host of
its own, as the clients of a node are), seconds, warm_up (seconds before).
Commands: {"ask": NAME}. Events: ready once there is something to find on the node, then `answered`
for each command: count, seconds, all (count and those of the warm-up), wrong (answers that are not
what they should be), lost (requests without an answer), bytes (of all answers).
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable

from benchmarks.python.driver import commands, options, send
from hyperlog.dht.commands.messages import (
    Announce,
    LookupReply,
    MutableGet,
    MutablePut,
    Peer,
    sign_announce,
    sign_mutable,
)
from hyperlog.dht.constants import ANNOUNCE, FIND_PEER, LOOKUP, MUTABLE_GET, MUTABLE_PUT
from hyperlog.dht.keys import KeyPair, generic_hash
from hyperlog.dht.rpc.messages import (
    FIND_NODE,
    PING,
    Request,
    Response,
    decode_untrusted,
    node_id,
)

NODE = (options["host"], options["port"])
ID = node_id(NODE)
PEERS = [KeyPair.from_seed(generic_hash(b"peer %d" % number)) for number in range(64)]
TOPIC = generic_hash(b"topic")
TOPIC_PEERS = 8
VALUE = bytes(range(256)) * 2
TIMEOUT = 0.5  # s without any answer, after which the requests under way count as lost

KEYS = {generic_hash(pair.public_key): pair.public_key for pair in PEERS}
TARGETS = list(KEYS)
RANDOM_TARGETS = [generic_hash(b"target %d" % number) for number in range(20_000)]
Check = Callable[[Response, bytes], bool]


def _is_peer(answer: Response, target: bytes) -> bool:
    assert answer.value is not None
    return Peer.decode_untrusted(answer.value).public_key == KEYS[target]


def _is_topic(answer: Response, target: bytes) -> bool:
    assert answer.value is not None
    return len(LookupReply.decode_untrusted(answer.value).peers) == TOPIC_PEERS


def _is_value(answer: Response, target: bytes) -> bool:
    assert answer.value is not None
    return MutableGet.decode_untrusted(answer.value).value == VALUE


def _has_nodes(answer: Response, target: bytes) -> bool:
    return len(answer.closer_nodes) == 20


# Name: command, internal, targets, value, what an answer has to be like.
ASK: dict[str, tuple[int, bool, list[bytes | None], bytes | None, Check]] = {
    "PING": (PING, True, [None], None, lambda answer, target: True),
    "FIND_NODE": (FIND_NODE, True, [*RANDOM_TARGETS], None, _has_nodes),
    "FIND_PEER": (FIND_PEER, False, [*TARGETS], None, _is_peer),
    "LOOKUP": (LOOKUP, False, [TOPIC], None, _is_topic),
    "MUTABLE_GET": (MUTABLE_GET, False, [*TARGETS], b"\0", _is_value),
}


def _open(number: int) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind((f"127.0.{1 + number // 250}.{1 + number % 250}", 0))
    opened.connect(NODE)
    return opened


def _call(sock: socket.socket, request: Request) -> Response:
    sock.settimeout(5.0)
    sock.send(request.encode())
    answer = decode_untrusted(sock.recv(2048))
    assert isinstance(answer, Response)
    if answer.error:
        raise SystemExit(f"the node answers with error {answer.error}")
    return answer


def _fill(sock: socket.socket) -> None:
    """Announce the peers, some under the topic too, and store a value of each."""
    token = _call(sock, Request(1, NODE, FIND_PEER, target=TOPIC)).token
    assert token is not None
    for number, (target, pair) in enumerate(zip(TARGETS, PEERS, strict=True)):
        for place in [target, TOPIC] if number < TOPIC_PEERS else [target]:
            message = Announce(peer=Peer(pair.public_key))
            sign_announce(
                message,
                command=ANNOUNCE,
                target=place,
                token=token,
                node_id=ID,
                secret_key=pair.secret_key,
            )
            _call(sock, Request(2, NODE, ANNOUNCE, False, None, token, place, message.encode()))
        signature = sign_mutable(1, VALUE, pair.secret_key)
        put = MutablePut(pair.public_key, 1, VALUE, signature).encode()
        _call(sock, Request(3, NODE, MUTABLE_PUT, False, None, token, target, put))


class Load:
    """Requests of one kind, as many under way as the window allows."""

    def __init__(self, sockets: list[socket.socket], name: str) -> None:
        command, internal, self.targets, value, self.check = ASK[name]
        self.datagrams = [
            Request(index, NODE, command, internal, None, None, target, value).encode()
            for index, target in enumerate(self.targets)
        ]
        self.sockets = sockets
        self.sample: list[bytes] = []

    def run(self, seconds: float) -> tuple[int, int, int, float]:
        """Answers, their bytes, requests lost, and the seconds that it took."""
        by_number = {sock.fileno(): sock for sock in self.sockets}
        poll = select.epoll()
        for number in by_number:
            poll.register(number, select.EPOLLIN)
        datagrams, count = self.datagrams, len(self.datagrams)
        answers = size = lost = 0
        sent = 0
        each = options["window"] // len(self.sockets)

        def refill() -> int:
            nonlocal sent
            for sock in self.sockets:
                for _ in range(each):
                    sock.send(datagrams[sent % count])
                    sent += 1
            return each * len(self.sockets)

        begin = time.monotonic()
        end = begin + seconds
        refill()
        while time.monotonic() < end:
            ready = poll.poll(TIMEOUT)
            if not ready:
                lost += refill()
            for number, _ in ready:
                sock = by_number[number]
                while True:
                    try:
                        answer = sock.recv(2048)
                    except BlockingIOError:
                        break
                    sock.send(datagrams[sent % count])
                    sent += 1
                    answers += 1
                    size += len(answer)
                    if answers % 1000 == 1:
                        self.sample.append(answer)
        elapsed = time.monotonic() - begin
        poll.close()
        time.sleep(0.1)  # for the answers under way
        for sock in self.sockets:
            try:
                while True:
                    sock.recv(2048)
            except BlockingIOError:
                pass
        return answers, size, lost, elapsed

    def wrong(self) -> int:
        """How many of the answers looked at are not right."""
        count = 0
        for data in self.sample:
            answer = decode_untrusted(data)
            target = self.targets[answer.tid]
            good = isinstance(answer, Response) and not answer.error and answer.id == ID
            count += not (good and self.check(answer, target or b""))
        return count


def main() -> None:
    sockets = [_open(number) for number in range(options["sources"])]
    _fill(sockets[0])
    for sock in sockets:
        sock.setblocking(False)
    send("ready")
    for command in commands():
        load = Load(sockets, command["ask"])
        before = load.run(options["warm_up"])[0]
        load.sample.clear()
        answers, size, lost, seconds = load.run(options["seconds"])
        send(
            "answered",
            count=answers,
            all=before + answers,
            bytes=size,
            lost=lost,
            seconds=seconds,
            wrong=load.wrong() if load.sample else 1,
        )


if __name__ == "__main__":
    main()
