"""Service: the replies and the result of a query, as RPCNode gives them to its callers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from hyperlog.dht.compact import Address
from hyperlog.dht.errors import DHTError, TooFewNodes
from hyperlog.dht.rpc.query import MAX_SEEN, Query, Reply

__all__ = ["QueryReplies", "QueryResult", "commit_to_all"]


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The end of a query."""

    closest_replies: Sequence[Reply]
    """Answers of the nodes with an id that are nearest to the target, nearest first; at most 20."""
    closest_nodes: Sequence[Address]
    """Their addresses: a good start for the next query."""
    successes: int
    errors: int


class QueryReplies:
    """The replies of a running query, one by one as they come in; see RPCNode.query_replies."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Reply](MAX_SEEN)
        self._error: DHTError | None = None
        self.result: QueryResult | None = None
        """Set when the iteration has ended."""

    def __aiter__(self) -> QueryReplies:
        return self

    async def __anext__(self) -> Reply:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            if self._error is not None:
                raise self._error from None
            raise StopAsyncIteration from None

    def put(self, reply: Reply) -> None:
        """One more reply; the node calls this."""
        self._send.send_nowait(reply)

    def finish(self, state: Query) -> None:
        """No more replies: the query has ended; the node calls this."""
        self.result = QueryResult(
            tuple(state.closest_replies),
            tuple(state.closest_nodes),
            state.successes,
            state.errors,
        )
        self._send.close()

    def destroy(self, error: DHTError) -> None:
        """No more replies: the node ends or pauses, and calls this."""
        self._error = error
        self._send.close()

    def close(self) -> None:
        """Nobody iterates any more."""
        self._receive.close()


async def commit_to_all(
    commit: Callable[[Reply], Awaitable[object]], replies: Sequence[Reply]
) -> None:
    """Call `commit` for all replies at once; a DHTError of one call leaves the others alone.

    Raises:
        TooFewNodes: not one call succeeded.
    """
    succeeded = 0
    errors: list[DHTError] = []

    async def one(reply: Reply) -> None:
        nonlocal succeeded
        try:
            await commit(reply)
        except DHTError as err:
            errors.append(err)
        else:
            succeeded += 1

    async with trio.open_nursery() as nursery:
        for reply in replies:
            nursery.start_soon(one, reply)
    if not succeeded:
        raise TooFewNodes(
            f"none of {len(replies)} nodes took it: is this node connected to the network?"
        ) from (errors[0] if errors else None)
