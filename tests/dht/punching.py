"""Two nodes behind NATs, up to the point where a hole punch begins: neither DHT.connect nor
DHT.listen is in the way of what a test wants to see or to break."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from hyperlog.dht.announcer import Announcer
from hyperlog.dht.clientpunch import punch_as_client
from hyperlog.dht.commands.handshake import HandshakeInitiator, HandshakeResponder
from hyperlog.dht.commands.messages import (
    Handshake,
    Holepunch,
    HolepunchInfo,
    NoisePayload,
    Peer,
    UDXInfo,
)
from hyperlog.dht.commands.router import Deliver, Router, answer_handshake
from hyperlog.dht.compact import Address
from hyperlog.dht.constants import (
    FIREWALL_UNKNOWN,
    FROM_CLIENT,
    PEER_HANDSHAKE,
    PEER_HOLEPUNCH,
)
from hyperlog.dht.holepunch.payload import HolepunchPayload, SecurePayload
from hyperlog.dht.holepunch.punches import PunchRecord
from hyperlog.dht.hyperdht import DHT
from hyperlog.dht.keys import KeyPair
from hyperlog.dht.opening import open_dht
from hyperlog.dht.rpc.messages import PING, decode_untrusted
from hyperlog.dht.serverpunch import ServerPunch
from hyperlog.dht.simnat import MAX_PORT, MIN_PORT, SimNat
from hyperlog.dht.sockets import CLIENT, SERVER
from tests.dht.peers import SimDHT, sim_dht


def lose_pings(pair: PunchingPair, host: str) -> None:
    """From now on nobody tells the hole punches of a side (its outside address) what NAT it has."""
    network = pair.net.network
    side = pair.client if host == pair.client_nat.outside_host else pair.server.dht
    ordinary = {side.sockets.local_address(socket)[1] for socket in (SERVER, CLIENT)}
    transmit = network.transmit

    def transmit_others(source, data, destination, ttl) -> None:
        if source[0] == host and source[1] not in ordinary and is_ping(data):
            return
        transmit(source, data, destination, ttl)

    network.transmit = transmit_others


def is_ping(data: bytes) -> bool:
    if data[0] != 0x03:
        return False
    request = decode_untrusted(data)
    return (request.command, request.internal) == (PING, True)


class PunchServer:
    """Answers each handshake with a ServerPunch, made with `options`."""

    def __init__(self, dht: DHT, nursery: trio.Nursery) -> None:
        self.dht = dht
        self.key_pair = KeyPair.generate()
        self.announcer = Announcer(dht.node, self.key_pair)
        self.options: dict[str, Any] = {}
        self.punches: list[ServerPunch] = []
        self.answering = True
        self._nursery = nursery
        self._router = Router()
        self._router.add_local(self.announcer.target, Peer(self.key_pair.public_key).encode())
        self._inner = dht.node.on_request
        dht.node.on_request = self._on_request

    @property
    def punch(self) -> ServerPunch:
        """The latest."""
        return self.punches[-1]

    def _on_request(self, request) -> bool:
        ours = request.target == self.announcer.target
        if not ours or request.command not in (PEER_HANDSHAKE, PEER_HOLEPUNCH):
            return self._inner(request)
        action = self._router.route(request, trio.current_time())
        if isinstance(action, Deliver) and self.answering:
            if isinstance(action.message, Handshake):
                self._shake_hands(action.message, request)
            else:
                self.punches[action.message.id].receive(action.message, request)
        return True

    def _shake_hands(self, message, request) -> None:
        responder = HandshakeResponder(self.key_pair, os.urandom)
        payload = responder.receive_untrusted(message.noise)
        info = HolepunchInfo(len(self.punches), list(self.announcer.relays))
        noise = responder.send(
            NoisePayload(
                firewall=FIREWALL_UNKNOWN, holepunch=info, udx=UDXInfo(id=6), secret_stream=True
            )
        )
        punch = ServerPunch(
            self.dht,
            self._nursery,
            secret=responder.holepunch_secret,
            remote_firewall=payload.firewall,
            is_relay=self.announcer.is_relay,
            **self.options,
        )
        self.punches.append(punch)
        self.dht.perform(
            request, answer_handshake(message, noise, request.address), socket=punch.socket
        )


@dataclass
class Shaken:
    """A client's finished handshake."""

    client: DHT
    target: bytes
    secret: bytes
    payload: NoisePayload
    node_address: Address
    server_address: Address
    paths: list[tuple[int, Address]] = field(default_factory=list)
    """what `connect` was called with"""
    record: PunchRecord = field(default_factory=PunchRecord)

    async def punch(self, **options) -> None:
        """Let the client punch; `options` go to punch_as_client."""
        await punch_as_client(
            self.client,
            self.target,
            secret=self.secret,
            payload=self.payload,
            node_address=self.node_address,
            server_address=self.server_address,
            connect=lambda socket, address: self.paths.append((socket, address)),
            record=self.record,
            **options,
        )

    async def say(
        self,
        payload: HolepunchPayload,
        *,
        relay: Address | None = None,
        peer_address: Address | None = None,
    ) -> HolepunchPayload:
        """Send one payload by hand, and return the server's."""
        secure = SecurePayload(self.secret, os.urandom)
        message = Holepunch(
            FROM_CLIENT,
            self.payload.holepunch.id,
            secure.encrypt(payload),
            peer_address=peer_address or self.server_address,
        )
        response = await self.client.node.request(
            PEER_HOLEPUNCH,
            target=self.target,
            value=message.encode(),
            to=relay or self.node_address,
            socket=CLIENT,
            retries=0,
        )
        return secure.decrypt_untrusted(Holepunch.decode_untrusted(response.value).payload)


@dataclass
class PunchingPair:
    """A server and a client, each behind a NAT of its own."""

    net: SimDHT
    server: PunchServer
    server_nat: SimNat
    client: DHT
    client_nat: SimNat

    async def shake_hands(self) -> Shaken:
        """What comes before the client's hole punch."""
        server = self.server
        initiator = HandshakeInitiator(KeyPair.generate(), server.key_pair.public_key, os.urandom)
        noise = initiator.send(
            NoisePayload(firewall=FIREWALL_UNKNOWN, udx=UDXInfo(id=5), secret_stream=True)
        )
        relay = server.announcer.relays[0].relay_address
        response = await self.client.node.request(
            PEER_HANDSHAKE,
            target=server.announcer.target,
            value=Handshake(FROM_CLIENT, noise).encode(),
            to=relay,
            socket=CLIENT,
        )
        reply = Handshake.decode_untrusted(response.value)
        payload = initiator.receive_untrusted(reply.noise)
        return Shaken(
            self.client,
            server.announcer.target,
            initiator.holepunch_secret,
            payload,
            relay,
            reply.peer_address,
        )

    def sockets_open(self) -> tuple[int, int]:
        """The client's and the server's, which have two each without a hole punch."""
        return (
            self.client.statistics().sockets.sockets,
            self.server.dht.statistics().sockets.sockets,
        )


class SteadyNat(SimNat):
    """Gives the n-th destination of a socket the same port in each run.

    A punch that looks for a random port is in vain in one of 1000 attempts. Ports that follow from
    the order in which tasks run would make that one of 1000 runs of every test.
    """

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self._chosen: Counter[Address] = Counter()

    def _choose_port(self, inside: Address, now: float) -> int:
        if self.mapping != "random":
            return super()._choose_port(inside, now)
        self._chosen[inside] += 1
        rng = random.Random(f"{inside} {self._chosen[inside]}")
        while not self._is_free(port := rng.randint(MIN_PORT, MAX_PORT), now):
            pass
        return port


def steady_seeds(size: int) -> bytes:
    """Random bytes, but what seeds a generator (16 bytes) is always the same."""
    return bytes(16) if size == 16 else os.urandom(size)


@asynccontextmanager
async def open_behind_nat(
    net: SimDHT, number: int, *, nat: Callable[..., SimNat] = SteadyNat, **options
) -> AsyncIterator[tuple[SimNat, DHT]]:
    """A node behind a NAT with outside address 5.5.5.`number`; `options` as of SimNat."""
    router = nat(net.network, f"5.5.5.{number}", **options)
    host = router.host(f"192.168.{number}.2")
    async with open_dht(
        host=host.address,
        socket_factory=host,
        bootstrap=net.bootstrap,
        random_bytes=steady_seeds,
    ) as dht:
        yield router, dht


@asynccontextmanager
async def punching_pair(
    *, client: dict[str, Any] | None = None, server: dict[str, Any] | None = None, **network_options
) -> AsyncIterator[PunchingPair]:
    """`client` and `server` are options of their NATs, which are consistent by default."""
    async with (
        sim_dht(8, **network_options) as net,
        open_behind_nat(net, 1, **(server or {})) as (server_nat, server_dht),
        open_behind_nat(net, 2, **(client or {})) as (client_nat, client_dht),
        trio.open_nursery() as nursery,
    ):
        punch_server = PunchServer(server_dht, nursery)
        await nursery.start(punch_server.announcer.run)
        await client_dht.bootstrapped()
        yield PunchingPair(net, punch_server, server_nat, client_dht, client_nat)
        nursery.cancel_scope.cancel()
