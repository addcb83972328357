from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.errors import ConfigError
from hyperlog.quantities import parse_count, parse_duration, parse_learning, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("4096", 4096),
        ("64K", 65536),
        ("64k", 65536),
        ("64KiB", 65536),
        ("1.5G", 3 * 2**29),
        ("100MB", 100 * 2**20),
        ("2T", 2**41),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1.5h", 5400), ("7d", 604800), ("10m", 600), ("1w", 604800)]
)
def test_times(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "1X", "K", "1 K", "٣", "1e3", "0.0001", "1.K"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="like 64K"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "10", "0s", "-1s", "1M", "s", "1 h", "1hs"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ConfigError, match="like 90s"):
        parse_duration(text)


def test_keys_are_learned_by_number_or_time():
    assert parse_learning("5") == (None, 5)
    assert parse_learning("10m") == (600.0, None)
    for text in ("", "0", "five"):
        with pytest.raises(ConfigError):
            parse_learning(text)


@given(st.text(max_size=12) | st.from_regex(r"[0-9.]{1,20}[KMGTsmhdwiB]{0,3}", fullmatch=True))
def test_any_text_is_above_zero_or_refused(text):
    for parse in (parse_size, parse_duration, parse_count):
        try:
            assert parse(text) > 0
        except ConfigError:
            pass
