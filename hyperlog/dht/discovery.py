"""Service: finds peers by their key or by a topic, and makes one findable under a topic.

Keeping a server findable under its own key is announcer.py.

Source: hyperdht index.js; docs/protocol/hyperdht.md sections 2, 4 and 5.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from hyperlog.dht.commands.messages import Announce, LookupReply, Peer, sign_announce
from hyperlog.dht.compact import Address
from hyperlog.dht.constants import ANNOUNCE, FIND_PEER, LOOKUP, UNANNOUNCE
from hyperlog.dht.errors import DHTError, RemoteProtocolError
from hyperlog.dht.keys import KeyPair, generic_hash
from hyperlog.dht.lookups import QueryResult, commit_to_all
from hyperlog.dht.node import Reply, RPCNode
from hyperlog.dht.storage import request_with_token

__all__ = ["announce", "find_peer", "is_announced", "lookup", "unannounce"]

MAX_PEERS: Final = 20  # in one answer; a node that sends more is not believed more


async def find_peer(node: RPCNode, public_key: bytes) -> list[Peer]:
    """See DHT.find_peer."""
    found: list[Peer] = []

    def take(reply: Reply) -> None:
        if reply.value is not None:
            try:
                peer = Peer.decode_untrusted(reply.value)
            except RemoteProtocolError:
                return
            if peer.public_key == public_key:
                found.append(peer)

    await node.query(FIND_PEER, generic_hash(public_key), on_reply=take)
    return found


async def is_announced(node: RPCNode, public_key: bytes) -> bool:
    """See DHT.is_announced."""
    target = generic_hash(public_key)
    found = False

    async def ask(address: Address, scope: trio.CancelScope) -> None:
        nonlocal found
        try:
            reply = await node.request(FIND_PEER, to=address, target=target, retries=0)
        except DHTError:
            return
        if reply.value is not None:
            found = True
            scope.cancel()

    async with trio.open_nursery() as nursery:
        for address in node.to_start_from(target, 2):
            nursery.start_soon(ask, address, nursery.cancel_scope)
    return found


async def lookup(node: RPCNode, topic: bytes) -> list[Peer]:
    """See DHT.lookup."""
    found: dict[bytes, Peer] = {}

    def take(_reply: Reply, peers: list[Peer]) -> None:
        for peer in peers:
            found.setdefault(peer.public_key, peer)

    await _lookup(node, topic, take)
    return list(found.values())


async def announce(
    node: RPCNode,
    topic: bytes,
    key_pair: KeyPair,
    *,
    relay_addresses: Sequence[Address],
    bump: int,
    clear: bool,
) -> int:
    """See DHT.announce."""
    holders: list[Reply] = []
    result = await _lookup(node, topic, _note_holders(key_pair.public_key, holders))
    if clear:
        nearest = {reply.address for reply in result.closest_replies}
        stale = [reply for reply in holders if reply.address not in nearest]
        await _settle(_signed_request(node, UNANNOUNCE, topic, key_pair), stale)
    return await _settle(
        _signed_request(node, ANNOUNCE, topic, key_pair, list(relay_addresses), bump),
        result.closest_replies,
        required=True,
    )


async def unannounce(node: RPCNode, topic: bytes, key_pair: KeyPair) -> int:
    """See DHT.unannounce."""
    holders: list[Reply] = []
    await _lookup(node, topic, _note_holders(key_pair.public_key, holders))
    send = _signed_request(node, UNANNOUNCE, topic, key_pair)
    return await _settle(send, holders, required=bool(holders))


async def _lookup(
    node: RPCNode, topic: bytes, take: Callable[[Reply, list[Peer]], None]
) -> QueryResult:
    """Query for a topic, and hand every readable answer on."""

    def on_reply(reply: Reply) -> None:
        if reply.value is not None:
            try:
                answer = LookupReply.decode_untrusted(reply.value)
            except RemoteProtocolError:
                return
            take(reply, answer.peers[:MAX_PEERS])

    return await node.query(LOOKUP, topic, on_reply=on_reply)


def _note_holders(public_key: bytes, holders: list[Reply]) -> Callable[[Reply, list[Peer]], None]:
    """Note those nodes that hold a record of the key, or more records than they can tell."""

    def take(reply: Reply, peers: list[Peer]) -> None:
        if reply.token is None or reply.id is None:
            return
        if len(peers) >= MAX_PEERS or any(peer.public_key == public_key for peer in peers):
            holders.append(reply)

    return take


def _signed_request(
    node: RPCNode,
    command: int,
    topic: bytes,
    key_pair: KeyPair,
    relay_addresses: Sequence[Address] = (),
    bump: int = 0,
) -> Callable[[Reply], Awaitable[None]]:
    """What sends an ANNOUNCE or UNANNOUNCE to the node that a reply came from."""

    def sign(token: bytes, node_id: bytes) -> bytes:
        message = Announce(peer=Peer(key_pair.public_key, list(relay_addresses)), bump=bump)
        sign_announce(
            message,
            command=command,
            target=topic,
            token=token,
            node_id=node_id,
            secret_key=key_pair.secret_key,
        )
        return message.encode()

    async def send(reply: Reply) -> None:
        if reply.token is None or reply.id is None:
            raise RemoteProtocolError("the node sent no token or no id")
        response = await request_with_token(node, command, topic, reply, sign)
        if response.error:
            raise RemoteProtocolError(f"refused with error {response.error}")

    return send


async def _settle(
    send: Callable[[Reply], Awaitable[None]], replies: Sequence[Reply], *, required: bool = False
) -> int:
    """Send to all at once; the number of those that confirmed.

    Raises:
        TooFewNodes: none did, and that is `required`.
    """
    done = 0

    async def count(reply: Reply) -> None:
        nonlocal done
        try:
            await send(reply)
        except DHTError:
            if required:
                raise
        else:
            done += 1

    if replies or required:
        await commit_to_all(count, replies)
    return done
