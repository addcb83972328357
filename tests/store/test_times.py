from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.errors import QueryError
from hyperlog.records import iso_time
from hyperlog.store.times import iso_ms, ms_iso, parse_time

NOW = 1_795_218_069_954  # 2026-11-20T23:41:09.954Z
YEARS = st.integers(-62_135_596_800_000, 253_402_300_799_999)


@given(st.integers(0, 253_402_300_799_999))
def test_times_of_lines_are_read_back(ms):
    assert iso_ms(iso_time(ms / 1000)) == ms


@given(YEARS)
def test_times_are_written_and_read_back(ms):
    assert iso_ms(ms_iso(ms)) == ms


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2026-11-20T23:41:09.954Z", NOW),
        ("2026-11-20T23:41:09.954123456Z", NOW),
        ("2026-11-21T01:41:09,954+02:00", NOW),
        ("2026-11-20 18:41:09.954-0500", NOW),
        ("2026-11-20T23:41:09.954", NOW),
        ("2026-11-20T23:41", NOW - 9_954),
        ("2026-11-20", NOW - 9_954 - (23 * 60 + 41) * 60_000),
        ("0001-01-01T00:00:00+23:59", -62_135_596_800_000 - (23 * 60 + 59) * 60_000),
    ],
)
def test_iso_texts_are_understood(text, ms):
    assert iso_ms(text) == ms


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "2026", "2026-11", "20261120", "2026-W47", "2026-11-20T", "2026-02-30"),
        *("2026-11-20T24:41:09.954Z", "2026-11-20T23:41:09.x54Z", "2026-11-20T23:41:09. 54Z"),
        *("2026-11-20T23:41:09.٣٤٥Z", "٢٠٢٦-11-20", "2026-11-20\n", "x" * 24),
    ],
)
def test_other_texts_are_no_times(text):
    iso_ms("2026-11-20T23:41:09.954Z")  # what is remembered of it must not help
    assert iso_ms(text) is None


@given(st.text(max_size=40))
def test_any_text_is_a_time_or_none(text):
    ms = iso_ms(text)
    assert ms is None or isinstance(ms, int)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("now", NOW),
        ("15m", NOW - 900_000),
        ("now-1d", NOW - 86_400_000),
        ("now + 5s", NOW + 5000),
        (" 250ms ", NOW - 250),
        ("2w", NOW - 14 * 86_400_000),
        ("2026-11-20T23:41:09.954Z", NOW),
        ("1795218069954", NOW),
        ("15", 15),
        ("-5", -5),
    ],
)
def test_what_people_ask_for_is_understood(text, ms):
    assert parse_time(text, NOW) == ms


@pytest.mark.parametrize("text", ["", "yesterday", "5x", "now-", "-5m", "1e3", "99999999999d"])
def test_what_is_no_time_is_refused_with_what_is_expected(text):
    with pytest.raises(QueryError, match=r"expected an ISO time .* or an age"):
        parse_time(text, NOW)


def test_times_beyond_the_calendar_are_written_as_numbers():
    assert ms_iso(10**18) == str(10**18)
