from __future__ import annotations

import pytest

from hyperlog.store.levels import LEVELS, level_of, level_of_name


@pytest.mark.parametrize(
    ("told", "level"),
    [
        *(("debug", 10), ("WARN", 30), ("Fatal", 50), (" error ", 40), ("notice", 20)),
        *((0, 5), (5, 5), (9, 5), (10, 10), (25, 20), (29.5, 20), (30, 30), (50, 50), (99, 50)),
        *((-1, 5), (1e300, 50), (True, 20), (None, 20), ("LOUD", 20), ("x" * 99, 20), ([40], 20)),
    ],
)
def test_levels_of_others_are_understood(told, level):
    assert level_of(told) == level


def test_names_of_levels_are_their_own():
    assert {level_of_name(name.lower()): name for name in LEVELS} == {
        number: name for name, number in LEVELS.items()
    }
    assert level_of_name("loud") is None
