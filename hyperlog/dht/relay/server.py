"""The relay's side of one blind-relay connection: requests come in, answers go out.

What to do with the requests is decided in pairing.py, for all connections together.

Wire: docs/protocol/hyperdht.md section 12; blind-relay index.js `BlindRelaySession`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hyperlog.dht.relay.messages import PAIR, PROTOCOL, UNPAIR, Pair, Unpair
from hyperlog.dht.relay.protomux import (
    ChannelClosed,
    ChannelMessage,
    ChannelOffered,
    Protomux,
)

__all__ = ["Event", "PairRequested", "RelayServerCore", "SessionClosed", "UnpairRequested"]


@dataclass(slots=True)
class PairRequested:
    pair: Pair


@dataclass(slots=True)
class UnpairRequested:
    token: bytes = field(repr=False)


@dataclass(slots=True)
class SessionClosed:
    """The last event: the peer wants no more."""


Event = PairRequested | UnpairRequested | SessionClosed


class RelayServerCore:
    """Feed it the messages of an accepted connection, and send there what it gives back."""

    def __init__(self, remote_public_key: bytes) -> None:
        self._mux = Protomux()
        self._channel = self._mux.open(PROTOCOL, remote_public_key)
        self._events: deque[Event] = deque()

    @property
    def closed(self) -> bool:
        return self._channel.closed

    def paired(self, token: bytes, *, is_initiator: bool, stream_id: int) -> None:
        """Tell the peer, in its own role, which of our streams to send to."""
        if not self._channel.closed:
            self._mux.send(self._channel, PAIR, Pair(is_initiator, token, stream_id).encode())

    def refuse(self, token: bytes) -> None:
        """Tell the peer that it waits in vain.

        Compat: blind-relay never says so, and its client waits for 15 s. It takes no notice of an
        Unpair, so that only ours learns it at once.
        """
        if not self._channel.closed:
            self._mux.send(self._channel, UNPAIR, Unpair(token).encode())

    def close(self) -> None:
        """End the session, as when the relay shuts down."""
        self._mux.close(self._channel)

    def messages_to_send(self) -> list[bytes]:
        """What is to be sent on the connection, in order, each a message of its own."""
        return self._mux.messages_to_send()

    def next_event(self) -> Event | None:
        """Remove and return the oldest event, None when there is none."""
        return self._events.popleft() if self._events else None

    def receive_untrusted(self, message: bytes) -> None:
        """Take one message of the connection.

        Raises:
            RemoteProtocolError: no honest peer sends it; the connection should be ended.
        """
        self._mux.receive_untrusted(message)
        event = self._mux.next_event()
        while event is not None:
            if isinstance(event, ChannelOffered):
                self._mux.reject(event.protocol, event.id)
            elif isinstance(event, ChannelClosed):
                self._events.append(SessionClosed())
            elif isinstance(event, ChannelMessage) and not self._channel.closed:
                if event.type == PAIR:
                    self._events.append(PairRequested(Pair.decode_untrusted(event.body)))
                elif event.type == UNPAIR:
                    self._events.append(UnpairRequested(Unpair.decode_untrusted(event.body).token))
            event = self._mux.next_event()
