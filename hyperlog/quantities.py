"""Sizes and times as people write them: 64K, 100M, 10G; 90s, 12h, 7d."""

from __future__ import annotations

import re
from typing import Final

from hyperlog.errors import ConfigError

__all__ = ["parse_count", "parse_duration", "parse_learning", "parse_size"]

SIZE_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
TIME_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
MAX_DIGITS: Final = 15

_SIZE = re.compile(rf"([0-9]{{1,{MAX_DIGITS}}}(?:\.[0-9]{{1,3}})?)([KMGT]?)(?:i?B)?", re.IGNORECASE)
_TIME = re.compile(rf"([0-9]{{1,{MAX_DIGITS}}}(?:\.[0-9]{{1,3}})?)([smhdw])")
_COUNT = re.compile(rf"[0-9]{{1,{MAX_DIGITS}}}")


def parse_size(text: str) -> int:
    """The bytes of `4096`, `64K`, `100M`, `1.5G` …; K is 1024.

    Raises:
        ConfigError: it is something else, or nothing.
    """
    match = _SIZE.fullmatch(text)
    size = 0 if match is None else int(float(match[1]) * SIZE_UNITS[match[2].upper()])
    if not size:
        raise ConfigError(f"{text!r} is no size; write it like 64K, 100M or 10G")
    return size


def parse_duration(text: str) -> float:
    """The seconds of `90s`, `10m`, `12h`, `7d`, `4w`.

    Raises:
        ConfigError: it is something else, or no time at all.
    """
    match = _TIME.fullmatch(text)
    seconds = 0.0 if match is None else float(match[1]) * TIME_UNITS[match[2]]
    if not seconds:
        raise ConfigError(f"{text!r} is no time; write it like 90s, 12h or 7d")
    return seconds


def parse_count(text: str) -> int:
    """A whole number above 0.

    Raises:
        ConfigError: it is something else.
    """
    count = int(text) if _COUNT.fullmatch(text) else 0
    if not count:
        raise ConfigError(f"{text!r} is no number above 0")
    return count


def parse_learning(text: str) -> tuple[float | None, int | None]:
    """(seconds, None) of `10m`, (None, keys) of `5`.

    Raises:
        ConfigError: it is something else.
    """
    if _COUNT.fullmatch(text):
        return None, parse_count(text)
    try:
        return parse_duration(text), None
    except ConfigError:
        raise ConfigError(
            f"{text!r} is neither a number of keys like 5 nor a time like 10m"
        ) from None
