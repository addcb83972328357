"""hyperlog.webaddress: addresses are scheme, host and port, and plain only where that is safe."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.errors import ConfigError
from hyperlog.webaddress import WebAddress, is_web_address, parse_web_address


@pytest.mark.parametrize(
    ("text", "address", "canonical"),
    [
        ("https://Logs.Example.org", ("logs.example.org", 443, True), "https://logs.example.org"),
        ("wss://logs.example.org/", ("logs.example.org", 443, True), "https://logs.example.org"),
        (" https://10.0.0.7:8443 ", ("10.0.0.7", 8443, True), "https://10.0.0.7:8443"),
        ("http://localhost:8787", ("localhost", 8787, False), "http://localhost:8787"),
        ("ws://127.0.0.9", ("127.0.0.9", 80, False), "http://127.0.0.9"),
        ("ws://[::1]:8787", ("::1", 8787, False), "http://[::1]:8787"),
        ("https://[2001:DB8::0:1]", ("2001:db8::1", 443, True), "https://[2001:db8::1]"),
        ("https://bücher.example", ("xn--bcher-kva.example", 443, True), None),
    ],
)
def test_scheme_host_and_port_make_an_address(text, address, canonical):
    parsed = parse_web_address(text)
    assert parsed == WebAddress(*address)
    assert canonical in (None, str(parsed))
    assert parse_web_address(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ftp://logs.example.org", "begins with https://"),
        ("https://", "names a host"),
        ("https://a b", "names a host"),
        ("https://-x", "names a host"),
        ("https://x:0", "no port 0"),
        ("https://x:70000", "no address"),
        ("https://x:y", "no address"),
        ("https://[::1", "no address"),
        ("https://[fe80::1%25eth0]", "IPv6"),
        ("https://kim:secret@x", "no user and password"),
        ("https://x/logs", "ends after the port"),
        ("https://x?token=secret", "ends after the port"),
        ("https://x#y", "ends after the port"),
        ("http://logs.example.org", "another machine"),
        ("ws://10.0.0.7:8787", "another machine"),
        ("http://localhost.example.org", "another machine"),
    ],
)
def test_what_cannot_be_used_is_refused_without_repeating_secrets(text, reason):
    with pytest.raises(ConfigError, match=reason) as refused:
        parse_web_address(text)
    assert "secret" not in str(refused.value)


def test_another_machine_without_tls_has_to_be_asked_for():
    address = parse_web_address("http://10.0.0.7:8787", allow_plain=True)
    assert not address.is_local
    assert not address.is_secure


@given(st.text() | st.text().map("https://{}".format))
def test_any_text_is_an_address_or_refused(text):
    try:
        address = parse_web_address(text)
    except ConfigError:
        return
    assert parse_web_address(str(address)) == address


def test_a_key_is_no_address():
    assert not is_web_address("5a" * 32)
    assert not is_web_address(b"http://x")
    assert not is_web_address(None)
    assert is_web_address("http://x")
