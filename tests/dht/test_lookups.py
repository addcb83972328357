import pytest

from hyperlog.dht.errors import RequestDestroyed, RequestTimeout, TooFewNodes
from hyperlog.dht.lookups import QueryReplies, commit_to_all
from hyperlog.dht.rpc.messages import Response
from hyperlog.dht.rpc.query import Query, Reply


def make_reply(port):
    return Reply(("10.0.0.1", port), Response(1, ("10.0.0.9", 9)))


def finished_query():
    query = Query(bytes(32), bytes(32), from_table=lambda count: [])
    query.next_requests()
    return query


async def collect(replies):
    return [reply async for reply in replies]


async def test_replies_come_in_their_order_and_then_the_result():
    replies = QueryReplies()
    sent = [make_reply(port) for port in (1, 2, 3)]
    for reply in sent:
        replies.put(reply)
    assert replies.result is None
    replies.finish(finished_query())
    assert await collect(replies) == sent
    assert replies.result is not None
    assert (replies.result.successes, replies.result.errors) == (0, 0)


async def test_a_closing_node_ends_the_iteration_with_an_error_after_the_last_reply():
    replies = QueryReplies()
    replies.put(make_reply(1))
    replies.destroy(RequestDestroyed("the node was closed meanwhile"))
    assert await replies.__anext__() == make_reply(1)
    with pytest.raises(RequestDestroyed):
        await replies.__anext__()


async def test_all_replies_are_committed_to_and_one_success_is_enough():
    called = []

    async def commit(reply):
        called.append(reply.address)
        if reply.address[1] != 2:
            raise RequestTimeout("silent")

    await commit_to_all(commit, [make_reply(port) for port in (1, 2, 3)])
    assert len(called) == 3


async def test_without_any_success_the_first_error_is_the_cause():
    async def commit(reply):
        raise RequestTimeout("silent")

    with pytest.raises(TooFewNodes) as info:
        await commit_to_all(commit, [make_reply(1)])
    assert isinstance(info.value.__cause__, RequestTimeout)
    with pytest.raises(TooFewNodes):
        await commit_to_all(commit, [])


async def test_a_bug_in_a_commit_is_not_taken_for_a_silent_node():
    async def commit(reply):
        raise ValueError("a bug")

    with pytest.raises(ExceptionGroup):
        await commit_to_all(commit, [make_reply(1)])
