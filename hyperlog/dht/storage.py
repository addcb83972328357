"""Service: puts values into the DHT and gets them back.

No node is believed: a mutable value counts when the owner's key signed it together with its number,
an immutable one when it has the hash that was asked for.

Source: hyperdht index.js; docs/protocol/hyperdht.md sections 2 to 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hyperlog.dht.commands.messages import MutableGet, MutablePut, sign_mutable, verify_mutable
from hyperlog.dht.commands.values import MAX_STORED_SIZE
from hyperlog.dht.compact import Address, Writer
from hyperlog.dht.constants import (
    IMMUTABLE_GET,
    IMMUTABLE_PUT,
    MUTABLE_GET,
    MUTABLE_PUT,
    SEQ_REUSED,
    SEQ_TOO_LOW,
)
from hyperlog.dht.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    RequestError,
    SeqReused,
    SeqTooLow,
    TooFewNodes,
)
from hyperlog.dht.keys import KeyPair, generic_hash
from hyperlog.dht.lookups import QueryResult, commit_to_all
from hyperlog.dht.node import Reply, RPCNode
from hyperlog.dht.rpc.messages import INVALID_TOKEN, Response

__all__ = [
    "ImmutableValue",
    "MutableValue",
    "StoredImmutable",
    "StoredMutable",
    "immutable_get",
    "immutable_put",
    "mutable_get",
    "mutable_put",
    "request_with_token",
]

MAX_SEQ: Final = 2**53 - 1  # more is no number to a JavaScript node


@dataclass(frozen=True, slots=True)
class MutableValue:
    """A value that its owner signed."""

    public_key: bytes
    """the owner, 32 bytes"""
    seq: int
    value: bytes
    signature: bytes
    """64 bytes, verified"""
    address: Address
    """the node that gave it"""


@dataclass(frozen=True, slots=True)
class ImmutableValue:
    """A value that has the hash that was asked for."""

    value: bytes
    address: Address
    """the node that gave it"""


@dataclass(frozen=True, slots=True)
class StoredMutable:
    """What a mutable value was stored as, and where."""

    public_key: bytes
    seq: int
    signature: bytes
    addresses: tuple[Address, ...]
    """nodes that took it"""


@dataclass(frozen=True, slots=True)
class StoredImmutable:
    """What an immutable value is found by, and where it was stored."""

    target: bytes
    """its hash, 32 bytes"""
    addresses: tuple[Address, ...]
    """nodes that took it"""


async def mutable_put(node: RPCNode, key_pair: KeyPair, value: bytes, seq: int) -> StoredMutable:
    """See DHT.mutable_put."""
    if not value:
        raise LocalProtocolError("a mutable value has at least one byte: nodes take no empty ones")
    if not 0 <= seq <= MAX_SEQ:
        raise LocalProtocolError(f"sequence number {seq} is not 0 … 2**53 - 1")
    signature = sign_mutable(seq, value, key_pair.secret_key)
    _check_size(MutableGet(seq, value, signature).encode())
    put = MutablePut(key_pair.public_key, seq, value, signature)
    target = generic_hash(key_pair.public_key)

    def compare(reply: Reply) -> None:
        # What is stored under this number or a higher one tells beforehand that the put is in vain.
        # Only a signed answer does: else one node could keep everybody from storing.
        stored = _verified(reply, key_pair.public_key, seq)
        if stored is not None and stored.seq > seq:
            raise SeqTooLow(f"a value with sequence number {stored.seq} is stored already")
        if stored is not None and stored.value != value:
            raise SeqReused(f"another value with sequence number {seq} is stored already")

    result = await node.query(MUTABLE_GET, target, Writer().uint(seq).finish(), on_reply=compare)
    addresses = await _store(node, MUTABLE_PUT, target, put.encode(), result)
    return StoredMutable(key_pair.public_key, seq, signature, addresses)


async def mutable_get(
    node: RPCNode,
    public_key: bytes,
    *,
    seq: int,
    latest: bool,
    refresh: Callable[[MutableValue], bool] | None,
) -> MutableValue | None:
    """See DHT.mutable_get."""
    target = generic_hash(public_key)
    found: MutableValue | None = None
    async with node.query_replies(MUTABLE_GET, target, Writer().uint(seq).finish()) as replies:
        async for reply in replies:
            least = seq if found is None else found.seq + 1
            found = _verified(reply, public_key, least) or found
            if found is not None and not latest:
                return found
    if found is not None and refresh is not None and refresh(found):
        put = MutablePut(public_key, found.seq, found.value, found.signature).encode()
        assert replies.result is not None
        await _store(node, MUTABLE_PUT, target, put, replies.result)
    return found


async def immutable_put(node: RPCNode, value: bytes) -> StoredImmutable:
    """See DHT.immutable_put."""
    _check_size(value)
    target = generic_hash(value)
    result = await node.query(IMMUTABLE_GET, target)
    return StoredImmutable(target, await _store(node, IMMUTABLE_PUT, target, value, result))


async def immutable_get(node: RPCNode, target: bytes) -> ImmutableValue | None:
    """See DHT.immutable_get."""
    async with node.query_replies(IMMUTABLE_GET, target) as replies:
        async for reply in replies:
            if reply.value is not None and generic_hash(reply.value) == target:
                return ImmutableValue(reply.value, reply.address)
    return None


def _verified(reply: Reply, public_key: bytes, least: int) -> MutableValue | None:
    """The value in an answer to MUTABLE_GET if it is genuine, its number at least `least`."""
    if reply.value is None:
        return None
    try:
        stored = MutableGet.decode_untrusted(reply.value)
    except RemoteProtocolError:
        return None
    if stored.seq < least or not verify_mutable(
        stored.signature, stored.seq, stored.value, public_key
    ):
        return None
    return MutableValue(public_key, stored.seq, stored.value, stored.signature, reply.address)


def _check_size(stored: bytes) -> None:
    if len(stored) > MAX_STORED_SIZE:
        raise LocalProtocolError(
            f"the value is {len(stored) - MAX_STORED_SIZE} bytes longer than one datagram can carry"
        )


async def request_with_token(
    node: RPCNode,
    command: int,
    target: bytes,
    reply: Reply,
    encode: Callable[[bytes, bytes], bytes],
) -> Response:
    """Send a request that needs a token to the node that a reply came from; its response.

    `encode` is called with the token and the node's id, and gives the value. A token that ran out
    on the way is replaced once by the one that comes with the refusal: in a query among many others
    and many nodes that are gone, more time goes by than a token lives.

    Raises:
        RemoteProtocolError: the node gave no token or no id.
        RequestTimeout, RequestDestroyed: see RPCNode.request.
    """
    token, id = reply.token, reply.id
    for last in (False, True):
        if token is None or id is None:
            break
        response = await node.request(
            command, to=reply.address, target=target, value=encode(token, id), token=token
        )
        if response.error != INVALID_TOKEN or last:
            return response
        token = response.token
    raise RemoteProtocolError("the node gave no token or no id")


async def _store(
    node: RPCNode, command: int, target: bytes, value: bytes, result: QueryResult
) -> tuple[Address, ...]:
    """Send a put to the closest nodes of a query; those that took it, nearest first.

    Raises:
        SeqReused, SeqTooLow: no node took it, and some said why.
        TooFewNodes: no node took it.
    """
    taken: set[Address] = set()
    refusals: list[RequestError] = []

    async def put(reply: Reply) -> None:
        response = await request_with_token(node, command, target, reply, lambda *_: value)
        if response.error in (SEQ_REUSED, SEQ_TOO_LOW):
            kind = SeqReused if response.error == SEQ_REUSED else SeqTooLow
            refusals.append(kind("the nodes hold a value with this sequence number or a later one"))
            raise refusals[-1]
        if response.error:
            raise RemoteProtocolError(f"refused with error {response.error}")
        taken.add(reply.address)

    try:
        await commit_to_all(put, result.closest_replies)
    except TooFewNodes as err:
        if refusals:
            raise refusals[0] from err
        raise
    return tuple(address for address in result.closest_nodes if address in taken)
