"""Two machines of one network find each other by IPv6 where nothing else is left."""

from __future__ import annotations

import pytest

from tests.natlab.drivers import JAVASCRIPT, PYTHON, CommandFailed
from tests.natlab.lab import INSIDE6
from tests.natlab.matrix import DATA, EXCHANGE_TIMEOUT, open_bench
from tests.natlab.nats import PORT_RESTRICTED

pytestmark = [pytest.mark.natlab, pytest.mark.interop, pytest.mark.timeout(120)]


async def connect(bench, server_language, client_language):
    """Connect left2 to left; what the client's driver tells of it."""
    server = await bench.driver("left", server_language)
    client = await bench.driver("left2", client_language)
    await server.call("open", bootstrap=bench.bootstrap)
    key = (await server.call("listen"))["key"]
    await client.call("open", bootstrap=bench.bootstrap)
    opened = await client.call("connect", key=key, timeout=45.0)
    number = opened["connection"]
    await client.call("exchange", connection=number, size=DATA, timeout=EXCHANGE_TIMEOUT)
    return opened


async def test_machines_that_only_ipv6_leads_to_meet_by_it_in_less_than_a_hole_punch_takes():
    async with open_bench(PYTHON) as bench:
        bench.lab.set_nat("left", PORT_RESTRICTED)
        bench.lab.isolate("left", ipv4_only=True)
        bench.lab.add_ipv6("left")
        opened = await connect(bench, PYTHON, PYTHON)
        assert opened["path"] == "lan"
        assert opened["remote"][0] == INSIDE6["left"]
        assert opened["milliseconds"] < 1000


async def test_machines_that_have_both_meet_by_ipv4():
    """It needs one packet less, and is what JavaScript knows."""
    async with open_bench(PYTHON) as bench:
        bench.lab.set_nat("left", PORT_RESTRICTED)
        bench.lab.add_ipv6("left")
        opened = await connect(bench, PYTHON, PYTHON)
        assert opened["path"] == "lan"
        assert opened["remote"][0].startswith("192.168.1.")


@pytest.mark.parametrize(
    ("server", "client"), [(PYTHON, JAVASCRIPT), (JAVASCRIPT, PYTHON), (JAVASCRIPT, JAVASCRIPT)]
)
async def test_javascript_peers_are_not_led_astray_by_ipv6(server, client):
    async with open_bench(JAVASCRIPT) as bench:
        bench.lab.set_nat("left", PORT_RESTRICTED)
        bench.lab.add_ipv6("left")
        opened = await connect(bench, server, client)
        assert opened["remote"][0].startswith("192.168.1.")


async def test_without_ipv6_the_same_machines_do_not_meet():
    async with open_bench(PYTHON) as bench:
        bench.lab.set_nat("left", PORT_RESTRICTED)
        bench.lab.isolate("left", ipv4_only=True)
        with pytest.raises(CommandFailed) as info:
            await connect(bench, PYTHON, PYTHON)
        assert info.value.code.startswith("HOLEPUNCH_")
