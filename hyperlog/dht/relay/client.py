"""The asking side of blind-relay: one connection to a relay, and the pairings asked for on it.

    pair() ──Pair──▶ Paired
    pair() ──Unpair──▶ Refused
    Paired ──Unpair──▶ Unpaired
    any ──channel rejected or closed──▶ RelayGone

Only relays of hyperlog send an Unpair; others refuse and end in silence.

Wire: docs/protocol/hyperdht.md section 12; blind-relay index.js `BlindRelayClient`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from hyperlog.dht.errors import LocalProtocolError
from hyperlog.dht.relay.messages import PAIR, PROTOCOL, UNPAIR, Pair, Unpair
from hyperlog.dht.relay.protomux import (
    ChannelClosed,
    ChannelMessage,
    ChannelOffered,
    Protomux,
)

__all__ = ["Event", "Paired", "Refused", "RelayClientCore", "RelayGone", "Unpaired"]

MAX_PAIRS: Final = 1024  # waiting for their other half, or paired


@dataclass(slots=True)
class Paired:
    """The relay has both halves: send to its stream from now on."""

    token: bytes = field(repr=False)
    remote_id: int
    """UDX stream id of the relay"""


@dataclass(slots=True)
class Refused:
    """The relay is not going to pair these."""

    token: bytes = field(repr=False)


@dataclass(slots=True)
class Unpaired:
    """The relay has ended this path."""

    token: bytes = field(repr=False)


@dataclass(slots=True)
class RelayGone:
    """The last event: the peer relays no more, or never did."""

    rejected: bool
    """it is no relay"""


Event = Paired | Refused | Unpaired | RelayGone


class RelayClientCore:
    """Feed it the messages of a connection to a relay, and send there what it gives back."""

    def __init__(self, public_key: bytes) -> None:
        """`public_key` is the one that our side of the connection shows."""
        self._mux = Protomux()
        self._channel = self._mux.open(PROTOCOL, public_key)
        self._requests: dict[bytes, bool] = {}
        self._paired: set[bytes] = set()
        self._events: deque[Event] = deque()

    def pair(self, token: bytes, *, is_initiator: bool, stream_id: int) -> None:
        """Ask for a path to whoever shows the same token in the other role.

        Raises:
            LocalProtocolError: already asked, the relay is gone, or the token has not 32 bytes.
        """
        if token in self._requests or token in self._paired:
            raise LocalProtocolError("a pairing for this token was asked for already")
        if len(self._requests) + len(self._paired) >= MAX_PAIRS:
            raise LocalProtocolError(f"more than {MAX_PAIRS} pairings at a time")
        self._mux.send(self._channel, PAIR, Pair(is_initiator, token, stream_id).encode())
        self._requests[token] = is_initiator

    def unpair(self, token: bytes) -> None:
        """Take a request back, or end the path; no effect when the relay is gone."""
        self._requests.pop(token, None)
        self._paired.discard(token)
        if not self._channel.closed:
            self._mux.send(self._channel, UNPAIR, Unpair(token).encode())

    def close(self) -> None:
        """End all of our paths and leave the connection to other protocols."""
        self._mux.close(self._channel)
        self._requests.clear()
        self._paired.clear()

    def messages_to_send(self) -> list[bytes]:
        """What is to be sent on the connection, in order, each a message of its own."""
        return self._mux.messages_to_send()

    def next_event(self) -> Event | None:
        """Remove and return the oldest event, None when there is none."""
        return self._events.popleft() if self._events else None

    def receive_untrusted(self, message: bytes) -> None:
        """Take one message of the connection.

        Raises:
            RemoteProtocolError: no relay sends it; the connection should be ended.
        """
        self._mux.receive_untrusted(message)
        event = self._mux.next_event()
        while event is not None:
            if isinstance(event, ChannelOffered):
                self._mux.reject(event.protocol, event.id)
            elif isinstance(event, ChannelClosed):
                self._requests.clear()
                self._paired.clear()
                self._events.append(RelayGone(event.rejected))
            elif isinstance(event, ChannelMessage) and not self._channel.closed:
                self._on_message(event)
            event = self._mux.next_event()

    def _on_message(self, message: ChannelMessage) -> None:
        if message.type == PAIR:
            pair = Pair.decode_untrusted(message.body)
            # Compat: blind-relay ignores an answer in the other role or to nothing, too.
            if self._requests.get(pair.token) is pair.is_initiator:
                del self._requests[pair.token]
                self._paired.add(pair.token)
                self._events.append(Paired(pair.token, pair.id))
        elif message.type == UNPAIR:
            token = Unpair.decode_untrusted(message.body).token
            if self._requests.pop(token, None) is not None:
                self._events.append(Refused(token))
            elif token in self._paired:
                self._paired.discard(token)
                self._events.append(Unpaired(token))
