import pytest

from hyperlog.web.hosts import HostList


@pytest.mark.parametrize(
    ("bound", "names", "host", "allowed"),
    [
        ("127.0.0.1", (), "127.0.0.1:8787", True),
        ("127.0.0.1", (), "localhost", True),
        ("127.0.0.1", (), "LOCALHOST.:1", True),
        ("127.0.0.1", (), "[::1]:8787", True),
        ("127.0.0.1", (), "attacker.example", False),
        ("127.0.0.1", (), "127.0.0.1.attacker.example", False),
        ("127.0.0.1", (), "192.0.2.7", False),
        ("127.0.0.1", (), "", False),
        ("127.0.0.1", (), "localhost:8787:1", False),
        ("127.0.0.1", (), "localhost/x", False),
        ("127.0.0.1", (), "localhost, attacker.example", False),
        ("127.0.0.1", ("logs.example.org",), "Logs.Example.org:443", True),
        ("127.0.0.1", ("logs.example.org",), "xlogs.example.org", False),
        ("192.0.2.7", (), "192.0.2.7", True),
        ("0.0.0.0", (), "192.0.2.7", True),
        ("0.0.0.0", (), "[2001:db8::7]", True),
        ("0.0.0.0", (), "rebound.attacker.example", False),
        ("::", (), "192.0.2.7:80", True),
    ],
)
def test_only_our_own_names_are_answered_to(bound, names, host, allowed):
    assert HostList(bound, names).allows(host) is allowed
