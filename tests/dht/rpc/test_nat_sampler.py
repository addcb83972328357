import json
import os
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.rpc.nat_sampler import MAX_SAMPLES, NatSampler

ROOT = Path(__file__).parents[3]
NODE_MODULES = Path(os.environ.get("HYPERLOG_NODE_MODULES", ROOT / "tests/interop/node_modules"))
JAVASCRIPT = """
const NatSampler = require(process.argv[1] + '/nat-sampler')
const sampler = new NatSampler()
const steps = JSON.parse(process.argv[2])
console.log(JSON.stringify(steps.map(([host, port]) => {
  const hits = sampler.add(host, port)
  return [hits, sampler.host, sampler.port]
})))
"""
VECTORS = Path(__file__).parents[2] / "vectors" / "dht"
STEPS = json.loads((VECTORS / "routing-nat.json").read_text())["natSampler"]


def test_every_step_matches_the_javascript_sampler():
    sampler = NatSampler()
    for step in STEPS:
        host, port = step["add"].split(":")
        sampler.add(host, int(port))
        assert (sampler.host, sampler.port) == (step["host"], step["port"])
        assert (sampler.size, sampler.threshold) == (step["size"], step["threshold"])


@pytest.mark.interop
@pytest.mark.skipif(not NODE_MODULES.exists(), reason="the JavaScript packages are not installed")
@pytest.mark.parametrize("seed", range(3))
def test_long_runs_match_the_javascript_sampler_while_samples_drop_out(seed):
    rng = random.Random(seed)
    steps = [("1.1.1.1", 10)] * 5
    for _ in range(400):
        steps.append(rng.choice([steps[-1], ("1.1.1.1", 10), ("2.2.2.2", rng.randrange(10, 13))]))
    command = ["node", "-e", JAVASCRIPT, str(NODE_MODULES.resolve()), json.dumps(steps)]
    expected = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    sampler = NatSampler()
    ours = [[sampler.add(host, port), sampler.host, sampler.port] for host, port in steps]
    assert ours == expected


def test_a_fresh_sampler_knows_nothing():
    sampler = NatSampler()
    assert (sampler.host, sampler.port, sampler.size) == (None, 0, 0)


def test_one_liar_among_five_is_outvoted():
    sampler = NatSampler()
    for host in ["1.1.1.1"] * 3 + ["6.6.6.6"] + ["1.1.1.1"]:
        sampler.add(host, 10)
    assert (sampler.host, sampler.port) == ("1.1.1.1", 10)


def test_ports_that_change_with_every_peer_mean_port_zero():
    sampler = NatSampler()
    for port in range(1000, 1020):
        sampler.add("1.1.1.1", port)
    assert (sampler.host, sampler.port) == ("1.1.1.1", 0)


def test_a_new_address_takes_over_within_sixteen_samples():
    sampler = NatSampler()
    for _ in range(30):
        sampler.add("1.1.1.1", 10)
    for _ in range(MAX_SAMPLES):
        sampler.add("2.2.2.2", 20)
    assert (sampler.host, sampler.port) == ("2.2.2.2", 20)


@given(st.integers(0, 2**32))
def test_the_hits_reported_never_exceed_the_samples_kept(seed):
    rng = random.Random(seed)
    sampler = NatSampler()
    for _ in range(60):
        hits = sampler.add(rng.choice("abc"), rng.randrange(3))
        assert 1 <= hits <= MAX_SAMPLES + 1
        assert sampler.size <= MAX_SAMPLES
