"""Service: the way that one stream's packets go, from the first that works to the best.

Theory of operation. Several ways are tried at once; a relay is only one of them.

    none ──the relay has paired us──▶ relayed ──a direct way works──▶ changing ──▶ direct
    none ──a direct way works────────────────────────────────────────────────────▶ direct

A direct way works when a probe has come through it, or a packet of this very stream. Of several
the first is taken, and nothing changes any more after that. While the stream changes over, the
connection to the relay stays: what was in flight may come through it, and the peer makes its own
change when the first packet reaches it directly. When all of the old path is acknowledged and the
peer sends directly, too, the relay is told that we are done.

Source: hyperdht lib/connect.js and lib/server.js `onsocket`, lib/relay-connection.js;
docs/protocol/hyperdht.md sections 9 and 12.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from hyperlog.dht.compact import Address
from hyperlog.dht.errors import RelayAborted
from hyperlog.dht.interfaces import is_private
from hyperlog.dht.publickey import decode_public_key
from hyperlog.dht.sockets import CLIENT, SERVER, SERVER6
from hyperlog.dht.streams import UDXStream

if TYPE_CHECKING:
    from hyperlog.dht.relaying import RelayedPath

__all__ = [
    "DIRECT",
    "LAN",
    "PUNCHED",
    "RELAYED",
    "RELAY_TIMEOUT",
    "RelayChoice",
    "StreamPaths",
    "choose_relay",
]

DIRECT: Final = "direct"
LAN: Final = "lan"
PUNCHED: Final = "punched"
RELAYED: Final = "relayed"

RELAY_TIMEOUT: Final = 15.0  # s for a relay to pair us with the peer, hyperdht lib/connect.js

PublicKey: TypeAlias = bytes | str
RelayChoice: TypeAlias = (
    PublicKey | Sequence[PublicKey] | Callable[[], PublicKey | Sequence[PublicKey] | None] | None
)
"""The public key of a relay, several to choose one of by chance, or what gives either or None."""


def choose_relay(choice: RelayChoice, random_bytes: Callable[[int], bytes]) -> bytes | None:
    """The public key of the relay for one connection; None for none.

    Raises:
        LocalProtocolError: that is no public key.
    """
    if callable(choice):
        choice = choice()
    if isinstance(choice, Sequence) and not isinstance(choice, bytes | str):
        if not choice:
            return None
        choice = choice[int.from_bytes(random_bytes(4), "little") % len(choice)]
    return None if choice is None else decode_public_key(choice)[0]


class StreamPaths:
    """Takes the ways that are found for a stream; `close` it with the attempt or the stream."""

    def __init__(self, stream: UDXStream) -> None:
        self.stream = stream
        self.path: str | None = None
        """how packets go now: direct, lan, punched or relayed; None before the first way"""
        self.direct = False
        """whether packets go to the peer itself: nothing better is to be found"""
        self.on_path: Callable[[str], None] = lambda path: None
        """Called with each new path: once, or with relayed and then with another one."""
        self._remote_id: int | None = None
        self._through_node = False
        self._early: tuple[int, Address] | None = None
        self._relay: RelayedPath | None = None
        stream.on_packet = self._on_packet

    def expect(self, remote_id: int, *, through_node: bool) -> None:
        """The handshake has told the id of the peer's stream.

        `through_node`: whether the handshake came through another node. What has a private address
        then is on our network. A packet that was faster than the handshake's answer makes the path
        at once.
        """
        self._remote_id = remote_id
        self._through_node = through_node
        if self._early is not None:
            self.take(*self._early)

    def _on_packet(self, socket: int, address: Address) -> None:
        if self._remote_id is None:
            # A server that knows our address starts at once and may overtake its own reply.
            self._early = self._early or (socket, address)
        elif self._relay is None or (socket, address) != (self._relay.socket, self._relay.address):
            if not self.direct:
                self.take(socket, address)
            elif not self.stream.remote_is_changing:
                self.stream.on_packet = None
                self._close_relay()

    def take(self, socket: int, address: Address, path: str | None = None) -> None:
        """A direct way works; no effect when another one was first, or the stream is over."""
        if self.direct or self.stream.finished:
            return
        assert self._remote_id is not None
        self.direct = True
        if self._relay is None:
            self.stream.on_packet = None
            self.stream.connect(socket, self._remote_id, address)
        else:
            self.stream.on_remote_changed = self._tell_peer
            self.stream.change_remote(socket, self._remote_id, address)
        self._set_path(path or self._name(socket, address))

    def take_relayed(self, relay: RelayedPath) -> None:
        """The relay has paired us; it is not needed any more when a direct way was faster."""
        if self.direct or self.stream.finished:
            relay.close()
            return
        self._relay = relay
        relay.on_closed = self._on_relay_closed
        self.stream.connect(relay.socket, relay.remote_id, relay.address)
        self._set_path(RELAYED)

    def _on_relay_closed(self) -> None:
        if not self.direct and not self.stream.finished:
            # Nothing comes through it any more, which silence alone would tell much later.
            self.stream.destroy(RelayAborted("the relay was lost, or has ended the path"))

    def _tell_peer(self) -> None:
        # The peer keeps its relay until it has heard from us directly, and we may be silent.
        try:
            self.stream.send_message(b"")
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass  # it is being closed, which the peer hears of anyway

    def _name(self, socket: int, address: Address) -> str:
        if socket == SERVER6:
            return LAN
        if socket not in (SERVER, CLIENT):
            return PUNCHED
        return LAN if self._through_node and is_private(address[0]) else DIRECT

    def _set_path(self, path: str) -> None:
        self.path = path
        self.on_path(path)

    def _close_relay(self) -> None:
        if self._relay is not None:
            self._relay.close()

    def close(self) -> None:
        """Look for no more ways, and end the relay's connection; safe to repeat."""
        self.direct = True
        self.stream.on_packet = None
        self._close_relay()
