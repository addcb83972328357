import pytest

from hyperlog.access import AccessPolicy
from hyperlog.blocklist import Blocklist
from hyperlog.errors import ConfigError
from hyperlog.gate import Gate
from hyperlog.limits import ServerLimits
from hyperlog.registry import Registry

A, B = b"a" * 32, b"b" * 32


class Peer:
    authenticated = True
    remote_address = ("127.0.0.1", 5)

    def __init__(self):
        self.aborted = False

    def abort(self):
        self.aborted = True


@pytest.fixture
def registry(tmp_path):
    registry = Registry(tmp_path)
    yield registry
    registry.close()


def new_gate():
    return Gate(AccessPolicy(), ServerLimits(), lambda: 0.0)


def test_a_blocked_key_is_cut_off_and_gets_no_answer_until_it_is_let_in_again(registry):
    gate = new_gate()
    blocklist = Blocklist(registry, gate, lambda: 5.0)
    peers = [Peer(), Peer(), Peer()]
    for key, peer in zip((A, A, B), peers, strict=True):
        assert gate.enter(key, peer)
    blocklist.block(A)
    assert [peer.aborted for peer in peers] == [True, True, False]
    assert gate.refuses(A, None, ("127.0.0.1", 5))
    assert gate.enter(A, Peer()) is None
    assert not gate.refuses(B, None, ("127.0.0.1", 5))
    blocklist.unblock(A)
    assert not gate.refuses(A, None, ("127.0.0.1", 5))
    assert gate.enter(A, Peer())


def test_blocks_outlive_a_restart(registry):
    Blocklist(registry, new_gate(), lambda: 5.0).block(A)
    gate = new_gate()
    again = Blocklist(registry, gate, lambda: 6.0)
    again.block(A)
    again.block(B)
    assert again.blocked() == [B, A]
    assert gate.refuses(A, None, ("127.0.0.1", 5))


def test_a_key_that_is_disconnected_may_come_again(registry):
    gate = new_gate()
    blocklist = Blocklist(registry, gate, lambda: 5.0)
    peer = Peer()
    gate.enter(A, peer)
    assert (blocklist.disconnect(A), blocklist.disconnect(B)) == (1, 0)
    assert peer.aborted
    assert not gate.refuses(A, None, ("127.0.0.1", 5))


def test_there_is_a_limit(registry, monkeypatch):
    monkeypatch.setattr("hyperlog.blocklist.MAX_BLOCKED", 1)
    blocklist = Blocklist(registry, new_gate(), lambda: 5.0)
    blocklist.block(A)
    with pytest.raises(ConfigError, match="1 keys"):
        blocklist.block(B)
