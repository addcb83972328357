"""Peers behind two routers in a row, their own and that of a provider without public addresses.

The worse of the two decides. Peers cannot tell them from one, and need not.
"""

from __future__ import annotations

import os

import pytest

from tests.natlab.drivers import JAVASCRIPT, LANGUAGES, PYTHON
from tests.natlab.matrix import Case, open_bench
from tests.natlab.nats import FULL_CONE, PORT_RESTRICTED, PREDICTABLE, SYMMETRIC

LONG = bool(os.environ.get("HYPERLOG_LONG"))

pytestmark = [pytest.mark.natlab, pytest.mark.interop, pytest.mark.timeout(300)]

PAIRS = [(server, client) for server in LANGUAGES for client in LANGUAGES]
SITES = ("left", "right")

# Home and provider of the server, home and provider of the client.
CHAINS = [
    (PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED, PORT_RESTRICTED),
    (FULL_CONE, PORT_RESTRICTED, PORT_RESTRICTED, FULL_CONE),
]
RANDOM_CHAINS = [
    (PORT_RESTRICTED, SYMMETRIC, SYMMETRIC, PORT_RESTRICTED),
    (FULL_CONE, PREDICTABLE, SYMMETRIC, SYMMETRIC),
]


async def try_chain(chain, server, client, relay=None):
    """The outcome for a chain of four kinds of NAT."""
    server_home, server_provider, client_home, client_provider = chain
    async with open_bench(PYTHON, carriers=SITES) as bench:
        bench.lab.set_carrier_nat("left", server_provider)
        bench.lab.set_carrier_nat("right", client_provider)
        return await bench.run(Case(server_home, client_home, PYTHON, server, client, relay))


@pytest.mark.parametrize(("server", "client"), PAIRS)
@pytest.mark.parametrize("chain", CHAINS, ids="-".join)
async def test_two_routers_that_keep_ports_are_passed_like_one(chain, server, client):
    outcome = await try_chain(chain, server, client)
    assert outcome.path == "punched", outcome
    assert outcome.milliseconds < 3000


@pytest.mark.parametrize("chain", RANDOM_CHAINS if LONG else RANDOM_CHAINS[:1], ids="-".join)
async def test_one_random_router_of_two_on_both_sides_leaves_the_relay(chain):
    outcome = await try_chain(chain, PYTHON, PYTHON)
    assert (outcome.path, outcome.error[:10]) == (None, "HOLEPUNCH_")
    outcome = await try_chain(chain, PYTHON, PYTHON, relay=JAVASCRIPT)
    assert outcome.path == "relayed"
