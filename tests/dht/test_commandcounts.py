"""What nodes count of the requests that they get."""

from __future__ import annotations

import pytest

from hyperlog.dht import RequestTimeout
from hyperlog.dht.commandcounts import INTERNAL, UNKNOWN, USER, CommandStatistics
from hyperlog.dht.constants import FIND_PEER, IMMUTABLE_PUT, LOOKUP
from hyperlog.dht.rpc.messages import DELAYED_PING, PING
from tests.dht.peers import sim_dht


async def test_answers_refusals_and_silence_are_counted_by_command(autojump_clock):
    async with sim_dht(2) as net:
        node, client = net.nodes[0], await net.add(firewalled=True, ephemeral=True)
        await client.bootstrapped()
        ask = client.node.request
        before = node.statistics().commands
        assert set(before) == {*INTERNAL, *USER, UNKNOWN}

        async def send(command, **options):
            response = await ask(command, to=node.address, retries=0, **options)
            return response.token

        token = await send(FIND_PEER, target=bytes(32))
        await send(LOOKUP, target=bytes(32), token=token)
        await send(LOOKUP, target=bytes(32), token=bytes(32))
        await send(200)
        await send(77, internal=True)
        await send(PING, internal=True)
        for command, internal in ((IMMUTABLE_PUT, False), (DELAYED_PING, True)):
            with pytest.raises(RequestTimeout):
                await send(command, internal=internal, target=bytes(32), value=b"")

        after = node.statistics().commands

        def change(name):
            new, old = after[name], before[name]
            return CommandStatistics(
                new.received - old.received,
                new.answered - old.answered,
                new.refused - old.refused,
            )

        assert change("FIND_PEER") == CommandStatistics(1, 1, 0)
        assert change("LOOKUP") == CommandStatistics(2, 1, 1)
        assert change("UNKNOWN") == CommandStatistics(2, 0, 2)
        assert change("IMMUTABLE_PUT") == CommandStatistics(1, 0, 0)
        assert change("DELAYED_PING") == CommandStatistics(1, 0, 0)
        assert change("PING").answered == change("PING").received > 0
        assert change("ANNOUNCE") == CommandStatistics()
