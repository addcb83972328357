"""Hostile clients below the messages: frames, streams, handshakes, datagrams."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from itertools import count
from typing import Final

import trio

from hyperlog.dht import DHT, Connection, DHTError, KeyPair, NoisePayload, open_dht
from hyperlog.dht.commands.handshake import HandshakeInitiator
from hyperlog.dht.commands.messages import Handshake, UDXInfo
from hyperlog.dht.compact import Address
from hyperlog.dht.constants import FIND_PEER, FROM_CLIENT, FROM_RELAY, PEER_HANDSHAKE
from hyperlog.dht.keys import generic_hash
from hyperlog.dht.rpc.messages import Request
from hyperlog.dht.udp import UDPSocket
from hyperlog.dht.udx.packet import DATA, HEADER, MAGIC_AND_VERSION
from tests.faults.hostile import (
    FRAME,
    Figures,
    Target,
    attack,
    connected,
    drained,
    greeted,
    node,
    record,
)

FLOOD_BURST: Final = 50  # datagrams between two looks at the clock
BUFFER: Final = 4 * 1024 * 1024  # bytes of a socket's receive buffer
VISIT_TIMEOUT: Final = 10.0  # s for an honest newcomer to get in


# -- frames and streams ---------------------------------------------------------------------------


@attack
async def slow_frames(target: Target) -> Figures:
    """Records whose frames come byte by byte, on many connections."""
    finished = 0

    async def send(dht: DHT, number: int) -> None:
        nonlocal finished
        connection = await greeted(dht, target, number)
        silence(connection)  # a keep-alive inside of the frame would break it
        frames = connection._secret.seal_many([record(0)])
        pause = target.seconds / (len(frames) + 1)
        for position in range(len(frames)):
            connection._stream.write_soon(frames[position : position + 1])
            await trio.sleep(pause)
        await drained(connection, target.seconds)
        finished += 1
        connection.abort()

    async with node(target) as dht, trio.open_nursery() as nursery:
        for number in range(target.options.get("connections", 32)):
            nursery.start_soon(send, dht, number)
    return {"finished": finished}


@attack
async def unfinished_frames(target: Target) -> Figures:
    """The largest frames that there are, all but their last byte, and then nothing.

    With the option `proved` a good record goes before it, so that the key is proved.
    """
    sent = done = 0
    frame = bytes(random.Random(target.seed).randbytes(FRAME))
    wanted = target.options.get("connections", 12)
    connections: list[Connection] = []
    all_sent = trio.Event()

    async def send(dht: DHT, number: int) -> None:
        nonlocal sent, done
        connection = await greeted(dht, target, number)
        connections.append(connection)
        if target.options.get("proved"):
            await connection.send(record(0))
            await connection.wait_acknowledged()
        frames = connection._secret.seal_many([frame])[:-1]
        try:
            for start in range(0, len(frames), 64 * 1024):
                await connection._stream.send_all(frames[start : start + 64 * 1024])
                sent += 64 * 1024
            await connection._stream.wait_progress()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        done += 1
        if done == wanted:
            all_sent.set()

    async with node(target) as dht, trio.open_nursery() as nursery:
        for number in range(wanted):
            nursery.start_soon(send, dht, number)
        with trio.move_on_after(target.seconds):
            await all_sent.wait()
            await trio.sleep(0.3)  # for whoever measures, and for the server's answer
        ended = sum(connection.closed for connection in connections)
        nursery.cancel_scope.cancel()
    return {"megabytes": sent // 2**20, "ended": ended}


class _HoleSocket(UDPSocket):
    """Never sends the data packet of a stream that has this sequence number."""

    MISSING = 3

    def send_batch(self, datagrams: list[bytes], address: Address) -> int:  # type: ignore[override]
        kept = [data for data in datagrams if not self._is_missing(data)]
        if kept:
            super().send_batch(kept, address)
        return len(datagrams)

    def _is_missing(self, data: bytes) -> bool:
        if len(data) < HEADER.size:
            return False
        magic, flags, _, _, _, seq, _ = HEADER.unpack_from(data)
        return magic == MAGIC_AND_VERSION and bool(flags & DATA) and seq == self.MISSING


@attack
async def holes_in_streams(target: Target) -> Figures:
    """A good record, then everything but one packet: all that comes behind has to be kept."""
    sent = 0
    text = "x" * 60_000

    async def send(dht: DHT, number: int) -> None:
        nonlocal sent
        with trio.move_on_after(target.seconds):
            try:
                connection = await greeted(dht, target, number)
                await connection.send(record(0))
                await connection.wait_acknowledged()
                for n in count(1):
                    await connection.send(record(n, props=text))
                    sent += len(text)
            except (DHTError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async with (
        open_dht(bootstrap=[target.address], host="127.0.0.1", socket_factory=_HoleSocket) as dht,
        trio.open_nursery() as nursery,
    ):
        for number in range(target.options.get("connections", 24)):
            nursery.start_soon(send, dht, number)
    return {"megabytes": sent // 2**20}


# -- half-open connections ------------------------------------------------------------------------


def silence(connection: Connection) -> None:
    """Keep the connection from proving anything by its keep-alive."""
    connection._stream.get_extra_timer = None
    connection._stream.handle_extra_timer = None


@attack
async def silent_connections(target: Target) -> Figures:
    """Connections that say hello and nothing more, as many as the server lets in."""
    opened = failed = ended = 0

    async def hold(dht: DHT, number: int) -> None:
        nonlocal opened, failed, ended
        try:
            connection = await connected(dht, target, number)
            silence(connection)
            await connection.receive()
            opened += 1
            await connection.receive()
        except (DHTError, trio.TooSlowError):
            failed += 1
        except (trio.BrokenResourceError, trio.EndOfChannel):
            ended += 1

    sources = target.options.get("sources", 1)
    with trio.move_on_after(target.seconds):
        async with AsyncExitStack() as stack:
            nodes = [
                await stack.enter_async_context(node(target, f"127.0.1.{source + 1}"))
                for source in range(sources)
            ]
            async with trio.open_nursery() as nursery:
                for number in range(target.options.get("connections", 400)):
                    nursery.start_soon(hold, nodes[number % sources], number)
                    await trio.sleep(0.002)
    return {"opened": opened, "failed": failed, "ended": ended}


@attack
async def handshakes_without_hello(target: Target) -> Figures:
    """Genuine first messages, and silence then; how much the server sends for each byte."""
    sent = received = number = 0
    end = time.monotonic() + target.seconds
    with udp_socket("127.0.1.1") as sock:
        while time.monotonic() < end:
            data = handshake_request(target, genuine_message(target, target.pair(number)))
            sock.sendto(data, target.address)
            sent += len(data)
            number += 1
            received += take_all(sock)
            await trio.sleep(target.options.get("pause", 0.005))
        await trio.sleep(1.0)
        received += take_all(sock)
    return {"handshakes": number, "sent": sent, "received": received}


# -- floods ---------------------------------------------------------------------------------------


@contextmanager
def udp_socket(host: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        yield sock


@contextmanager
def udp_sockets(count: int) -> Iterator[list[socket.socket]]:
    """Sockets on as many addresses, as good as spoofed ones."""
    with ExitStack() as stack:
        hosts = [f"127.{2 + n // 250}.0.{n % 250 + 1}" for n in range(count)]
        yield [stack.enter_context(udp_socket(host)) for host in hosts]


def take_all(sock: socket.socket) -> int:
    """The bytes that have arrived."""
    size = 0
    try:
        while True:
            size += len(sock.recv(65536))
    except BlockingIOError:
        return size


def send_now(sock: socket.socket, data: bytes, address: Address) -> bool:
    try:
        sock.sendto(data, address)
    except OSError:
        return False
    return True


def genuine_message(target: Target, pair: KeyPair) -> bytes:
    """A Noise message 1 as a client of that identity would send."""
    payload = NoisePayload(
        error=0, firewall=0, udx=UDXInfo(id=random.getrandbits(32)), secret_stream=True
    )
    return HandshakeInitiator(pair, target.key, os.urandom).send(payload)


def handshake_request(
    target: Target, noise: bytes, peer_address: Address | None = None, tid: int = 0
) -> bytes:
    mode = FROM_CLIENT if peer_address is None else FROM_RELAY
    return Request(
        tid=tid,
        to=target.address,
        command=PEER_HANDSHAKE,
        target=generic_hash(target.key),
        value=Handshake(mode, noise, peer_address).encode(),
    ).encode()


def messages_for(target: Target, kind: str) -> Iterator[bytes]:
    """Distinct first messages: `genuine`, or `junk` that is only found out by multiplying."""
    rng = random.Random(target.seed)
    genuine = genuine_message(target, KeyPair.generate())
    while True:
        if kind == "genuine":
            yield genuine_message(target, KeyPair.from_seed(rng.randbytes(32)))
        else:
            yield genuine[:32] + rng.randbytes(len(genuine) - 32)


@attack
async def handshake_flood(target: Target) -> Figures:
    """Distinct first messages, thousands a second, from one address or from many."""
    options = target.options
    kind, sources = options.get("kind", "junk"), options.get("sources", 1)
    named = options.get("named", 0)  # addresses that are only named, as a relaying node would
    rate = options.get("rate", 3000)
    sent = sent_bytes = received = 0
    messages = messages_for(target, kind)
    with udp_sockets(sources) as sockets, udp_sockets(named) as named_sockets:
        begun = time.monotonic()
        while (now := time.monotonic()) < begun + target.seconds:
            while sent < (now - begun) * rate and time.monotonic() < now + 0.1:
                peer = named_sockets[sent % named].getsockname() if named else None
                data = handshake_request(target, next(messages), peer, sent & 0xFFFF)
                if send_now(sockets[sent % sources], data, target.address):
                    sent_bytes += len(data)
                sent += 1
            if not named:
                received += sum(map(take_all, sockets[:FLOOD_BURST]))
            received += sum(map(take_all, named_sockets))
            await trio.sleep(0.002)
        await trio.sleep(0.5)
        received += sum(map(take_all, [*sockets, *named_sockets]))
    seconds = time.monotonic() - begun - 0.5
    return {"rate": round(sent / seconds), "sent": sent_bytes, "received": received}


@attack
async def garbage_datagrams(target: Target) -> Figures:
    """Random bytes that look like packets of a stream, like requests, like probes, like nothing."""
    rng = random.Random(target.seed)
    request = Request(
        tid=1, to=target.address, command=FIND_PEER, target=generic_hash(target.key)
    ).encode()
    sent = 0
    end = time.monotonic() + target.seconds
    with udp_sockets(8) as sockets:
        while time.monotonic() < end:
            for _ in range(FLOOD_BURST):
                rest = rng.randbytes(rng.choice((0, 1, 18, 40, 1100)))
                data = rng.choice(
                    (
                        b"\xff\x01" + rest,
                        request,
                        request[: rng.randrange(len(request))],
                        bytes((rng.choice((0x03, 0x13)),)) + rest,
                        bytes((request[0],)) + rest,
                        rest,
                    )
                )
                sent += send_now(rng.choice(sockets), data, target.address)
            for sock in sockets:
                take_all(sock)
            await trio.sleep(target.options.get("pause", 0.01))
    return {"datagrams": sent}


# -- replays --------------------------------------------------------------------------------------


@attack
async def replays(target: Target) -> Figures:
    """Record an honest client's datagrams and send them again: meanwhile, later, from elsewhere."""
    recorded: list[bytes] = []

    class Recorder(UDPSocket):
        def send(self, data: bytes, address: Address, ttl: int = 64) -> bool:
            recorded.append(bytes(data))
            return super().send(data, address, ttl)

        def send_batch(self, datagrams: list[bytes], address: Address) -> int:  # type: ignore[override]
            recorded.extend(map(bytes, datagrams))
            return super().send_batch(datagrams, address)

    rng = random.Random(target.seed)
    replayed = 0

    async def replay(times: int, sockets: list[socket.socket]) -> None:
        nonlocal replayed
        for _ in range(times):
            datagrams = list(recorded)
            if rng.random() < 0.5:
                rng.shuffle(datagrams)
            for number, data in enumerate(datagrams):
                replayed += send_now(rng.choice(sockets), data, target.address)
                if number % FLOOD_BURST == 0:
                    await trio.lowlevel.checkpoint()
            for sock in sockets:
                take_all(sock)
            await trio.sleep(0.01)

    numbers = count()
    with udp_sockets(8) as sockets:
        async with open_dht(
            bootstrap=[target.address], host="127.0.0.1", socket_factory=Recorder
        ) as dht:
            connection = await greeted(dht, target)
            await connection.send_many([record(next(numbers)) for _ in range(10)])
            await connection.wait_acknowledged()
            await replay(10, sockets)
            await connection.send_many([record(next(numbers)) for _ in range(10)])
            intact = not await drained(connection, VISIT_TIMEOUT)
            await connection.aclose()
            end = time.monotonic() + target.seconds
            while time.monotonic() < end:
                await replay(5, sockets)
    async with node(target) as dht:
        connection = await connected(dht, target)
        greeting = await connection.receive()
        connection.abort()
    return {"replayed": replayed, "intact": intact, "greeting": greeting.decode()}


# -- honest ones ----------------------------------------------------------------------------------


@attack
async def newcomers(target: Target) -> Figures:
    """No attack: clients that come for the first time, one by one, from another machine."""
    times: list[float] = []
    failed = 0
    end = trio.current_time() + target.seconds
    async with node(target, "127.0.9.9") as dht:
        for number in count():
            if trio.current_time() >= end:
                break
            began = trio.current_time()
            try:
                with trio.fail_after(VISIT_TIMEOUT):
                    connection = await greeted(dht, target, number)
                    await connection.send(record(0))
                    await connection.wait_acknowledged()
                connection.abort()
                times.append(trio.current_time() - began)
            except (DHTError, trio.TooSlowError, trio.BrokenResourceError, trio.EndOfChannel):
                failed += 1
            await trio.sleep(0.1)
    times.sort()
    return {
        "came": len(times),
        "failed": failed,
        "median": round(times[len(times) // 2], 3) if times else None,
        "worst": round(times[-1], 3) if times else None,
    }
