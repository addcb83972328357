"""Values: data that a persistent node keeps for others, under the hash of its owner or of itself.

A mutable value belongs to a key pair, whose signature covers it and its sequence number; a value
with a higher number takes the place of the one before, and none with a lower number ever does. An
immutable value is stored under its own hash. Both need the token that this node gave to the sender.
A request that is not as it should be gets no answer.

A value has to fit into the datagram that answers a get. Beside the number of entries the bytes of
each table are bounded: values are what a stranger can make us keep most of.

Wire: docs/protocol/hyperdht.md sections 2 to 5; hyperdht lib/persistent.js.
"""

from __future__ import annotations

from typing import Final

from hyperlog.dht.commands.ageing import AgeingCache
from hyperlog.dht.commands.messages import MutableGet, MutablePut, verify_mutable
from hyperlog.dht.commands.router import CommandRequest, Reply
from hyperlog.dht.compact import Reader
from hyperlog.dht.constants import SEQ_REUSED, SEQ_TOO_LOW
from hyperlog.dht.errors import RemoteProtocolError, Truncated
from hyperlog.dht.keys import generic_hash

__all__ = ["MAX_STORED_SIZE", "Values"]

MAX_STORED_SIZE: Final = 1274
"""Bytes of one entry: what an Ethernet frame (1472) leaves beside a reply's other fields (198)."""
MAX_ENTRIES: Final = 32768  # of each table, half of hyperdht index.js `defaultMaxSize`
MAX_BYTES: Final = 16 * 1024 * 1024  # of each table, keys included
MAX_AGE: Final = 48 * 3600.0  # s, hyperdht index.js `defaultCacheOpts`


class Values:
    """The values of one persistent node."""

    def __init__(
        self,
        *,
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
        max_age: float = MAX_AGE,
    ) -> None:
        # The number of each, and the reply to a get, that is an encoded MutableGet.
        self._mutable: AgeingCache[bytes, tuple[int, bytes]] = AgeingCache(
            max_entries, max_age, max_bytes=max_bytes, size_of=_size_of_mutable
        )
        self._immutable: AgeingCache[bytes, bytes] = AgeingCache(
            max_entries, max_age, max_bytes=max_bytes, size_of=_size_of
        )

    @property
    def bytes_kept(self) -> int:
        """Bytes of all values and their targets."""
        return self._mutable.size + self._immutable.size

    def __len__(self) -> int:
        return len(self._mutable) + len(self._immutable)

    def get_mutable_untrusted(self, target: bytes, value: bytes | None, now: float) -> bytes | None:
        """What MUTABLE_GET is answered: an encoded MutableGet, or None.

        `value` is that of the request, the lowest sequence number that counts.

        Raises:
            Truncated: there is no whole number in it; such a request gets no answer.
        """
        if not value:
            raise Truncated("no sequence number")
        seq = value[0]
        if seq > 0xFC:  # not one of the short ones that nearly everybody sends
            seq = Reader(value).uint()
        stored = self._mutable.get(target, now)
        return stored[1] if stored is not None and stored[0] >= seq else None

    def put_mutable_untrusted(self, request: CommandRequest, now: float) -> Reply | None:
        """The answer to MUTABLE_PUT; one with an error tells that the number is spent.

        Compat: like hyperdht 6.34.0 lib/persistent.js an empty value is refused, as its decoder
        cannot tell it from none.
        """
        target = request.target
        if target is None or request.token is None or request.value is None:
            return None
        try:
            put = MutablePut.decode_untrusted(request.value)
        except RemoteProtocolError:
            return None
        if not put.value or generic_hash(put.public_key) != target:
            return None
        entry = MutableGet(put.seq, put.value, put.signature)
        encoded = entry.encode()
        if len(encoded) > MAX_STORED_SIZE:
            return None
        if not verify_mutable(put.signature, put.seq, put.value, put.public_key):
            return None
        stored = self._mutable.get(target, now)
        if stored is not None:
            latest = MutableGet.decode_untrusted(stored[1])
            if put.seq == latest.seq and put.value != latest.value:
                return Reply(None, closer_nodes=True, error=SEQ_REUSED)
            if put.seq < latest.seq:
                return Reply(None, closer_nodes=True, error=SEQ_TOO_LOW)
        self._mutable.set(target, (put.seq, encoded), now)
        return Reply(None, closer_nodes=True, token=True)

    def get_immutable(self, target: bytes, now: float) -> bytes | None:
        """The value that has this hash, or None."""
        return self._immutable.get(target, now)

    def put_immutable_untrusted(self, request: CommandRequest, now: float) -> Reply | None:
        """The answer to IMMUTABLE_PUT."""
        target, value = request.target, request.value
        if target is None or request.token is None or value is None:
            return None
        if len(value) > MAX_STORED_SIZE or generic_hash(value) != target:
            return None
        self._immutable.set(target, value, now)
        return Reply(None, closer_nodes=True, token=True)


def _size_of_mutable(target: bytes, entry: tuple[int, bytes]) -> int:
    return len(target) + len(entry[1])


def _size_of(target: bytes, value: bytes) -> int:
    return len(target) + len(value)
