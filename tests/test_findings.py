from __future__ import annotations

import pytest

from hyperlog.findings import counted, milliseconds, path_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (0.00042, "0.4 ms"),
        (0.0312, "31 ms"),
        (0.9996, "1000 ms"),
        (1.25, "1.2 s"),
        (14.0, "14.0 s"),
    ],
)
def test_durations_have_the_digits_that_count(seconds, text):
    assert milliseconds(seconds) == text


def test_one_of_a_kind_is_no_plural():
    assert (counted(1, "node"), counted(2, "node"), counted(0, "node")) == (
        "1 node",
        "2 nodes",
        "0 nodes",
    )


def test_a_path_that_is_not_known_is_told_by_its_name():
    assert path_text("punched", ("192.0.2.1", 5)) == "through a punched hole, at 192.0.2.1:5"
    assert path_text("teleported", None) == "teleported"
