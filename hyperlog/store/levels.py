"""Levels by number and by name, and those of others."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

__all__ = ["LEVELS", "LEVEL_NAMES", "level_of", "level_of_name"]

LEVELS: Final = {"TRACE": 5, "DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
"""numbers as in the logging module; traces of tracers are TRACE, notes INFO, gaps WARNING"""
LEVEL_NAMES: Final = {number: name for name, number in LEVELS.items()}

_NUMBERS: Final = sorted(LEVEL_NAMES)
_ALIASES: Final = {
    "VERBOSE": "TRACE",
    "INFORMATION": "INFO",
    "NOTICE": "INFO",
    "WARN": "WARNING",
    "ERR": "ERROR",
    "SEVERE": "ERROR",
    "EXCEPTION": "ERROR",
    "CRIT": "CRITICAL",
    "FATAL": "CRITICAL",
    "ALERT": "CRITICAL",
    "EMERGENCY": "CRITICAL",
    "PANIC": "CRITICAL",
}
_BY_NAME: Final = LEVELS | {alias: LEVELS[name] for alias, name in _ALIASES.items()}
MAX_NAME: Final = 16  # characters, more than the longest has


def level_of_name(name: str) -> int | None:
    """The level of a name in any case, also of those that other systems use (WARN, FATAL)."""
    if len(name) > MAX_NAME:
        return None
    return _BY_NAME.get(name) or _BY_NAME.get(name.strip().upper())


def level_of(told: object) -> int:
    """The level that a record tells, by name or as a number of the logging module, which counts as
    the next level below it; INFO if it tells nothing that is known."""
    if isinstance(told, str):
        return level_of_name(told) or LEVELS["INFO"]
    if isinstance(told, int | float) and not isinstance(told, bool):
        return _NUMBERS[max(bisect_right(_NUMBERS, told) - 1, 0)]
    return LEVELS["INFO"]
