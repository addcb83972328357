"""Points in time as people and programs write them, as milliseconds since 1970."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from hyperlog.errors import QueryError

__all__ = ["iso_ms", "ms_iso", "parse_time"]

MAX_SECONDS: Final = 4096  # texts of whole seconds that are remembered
UNITS: Final = {
    "ms": 1,
    "s": 1000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 7 * 86_400_000,
}
EXPECTED: Final = "an ISO time (2026-11-20T14:05Z), or an age (15m, 2h, 7d, now-1d)"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_ISO = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,]\d{1,9})?)?(Z|[+-]\d\d:?\d\d)?)?", re.ASCII
)
_AGE = re.compile(
    r"(?:now\s*(?P<sign>[+-])\s*)?(?P<count>\d{1,9})\s*(?P<unit>ms|[smhdw])", re.ASCII
)
_NUMBER = re.compile(r"-?\d{1,16}", re.ASCII)

_seconds: dict[str, int] = {}


def iso_ms(text: str) -> int | None:
    """The time that an ISO text tells, without a zone in UTC; None if it is none."""
    second, fraction = text[:19], text[20:23]
    known = _seconds.get(second)
    if known is not None and len(text) == 24 and text[19] == "." and text[23] == "Z":
        if fraction.isdecimal() and fraction.isascii():
            return known + int(fraction)
        return None
    if _ISO.fullmatch(text) is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:  # a 30th of February
        return None
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    ms = (time - _EPOCH) // _MILLISECOND
    if len(text) == 24 and text[19] == "." and text[23] == "Z":
        if len(_seconds) >= MAX_SECONDS:
            _seconds.clear()
        _seconds[second] = ms - ms % 1000
    return ms


def ms_iso(ms: int) -> str:
    """The time as 2026-11-20T23:41:09.954Z; out of the years 1 to 9999, the number itself."""
    try:
        time = _EPOCH + ms * _MILLISECOND
    except OverflowError:
        return str(ms)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str, now: int) -> int:
    """The time that somebody asks for.

    An ISO time (in UTC if it names no zone), an age (`15m` is 15 minutes before `now`; units ms, s,
    m, h, d, w), `now`, `now-1d`, `now+5m`, or milliseconds since 1970.

    Raises:
        QueryError: it is none of these.
    """
    text = text.strip()
    if text == "now":
        return now
    age = _AGE.fullmatch(text)
    if age is not None:
        distance = int(age["count"]) * UNITS[age["unit"]]
        return now + distance if age["sign"] == "+" else now - distance
    if _NUMBER.fullmatch(text) is not None:
        return int(text)
    time = iso_ms(text)
    if time is None:
        raise QueryError(f"{text[:64]!r} is no time; expected {EXPECTED}")
    return time
