"""hyperlog.stacktext: exceptions as the interpreter tells them; bounded, and without frames."""

from __future__ import annotations

import gc
import traceback
import weakref

import pytest

from hyperlog.stacktext import MAX_ERRORS, MAX_FRAMES, MAX_GROUP, MAX_STACK, CaughtError


def caught(error: BaseException) -> CaughtError:
    try:
        raise error
    except BaseException as err:
        return CaughtError(err)


def raise_deep(depth: int) -> None:
    if depth == 0:
        raise ValueError("deep")
    raise_deep(depth - 1)


class Custom(Exception):
    pass


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Lying(Exception):
    @property
    def __traceback__(self):
        raise RuntimeError("no traceback")


class Echo(Exception):
    """Logs itself when it is asked for its text."""

    inner = ""

    def __str__(self) -> str:
        self.inner = CaughtError(self).message
        return "echo"


def test_it_is_what_the_interpreter_prints():
    try:
        try:
            raise_deep(2)
        except ValueError as err:
            raise Custom("outer") from err
    except Custom as err:
        expected = traceback.format_exc()
        got = CaughtError(err)
    lines = [line for line in expected.rstrip("\n").split("\n") if "^" not in line]
    assert got.stack().split("\n") == lines
    assert (got.type, got.message) == (f"{__name__}.Custom", "outer")


def test_what_was_being_handled_is_told_too_unless_suppressed():
    def during(suppress: bool) -> str:
        try:
            try:
                raise KeyError("first")
            except KeyError:
                if suppress:
                    raise Custom("second") from None
                raise Custom("second")  # noqa: B904 - the context is what is tested
        except Custom as err:
            return CaughtError(err).stack()

    assert "During handling of the above exception" in during(False)
    assert "KeyError: 'first'" in during(False)
    assert "KeyError" not in during(True)


def test_notes_and_members_of_a_group_are_told():
    first = ValueError("a")
    first.add_note("look here")
    try:
        raise first
    except ValueError:
        pass
    text = caught(ExceptionGroup("several", [first, KeyError("b")])).stack()
    assert "several (2 sub-exceptions)" in text
    assert "ValueError: a\n  look here" in text
    assert "KeyError: 'b'" in text


def test_no_frame_is_kept_alive():
    class Large:
        pass

    def fail() -> weakref.ref[Large]:
        local = Large()
        refs.append(weakref.ref(local))
        raise ValueError("x")

    refs: list[weakref.ref[Large]] = []
    try:
        fail()
    except ValueError as err:
        got = CaughtError(err)
    gc.collect()
    assert refs[0]() is None
    assert "in fail" in got.stack()


def test_deep_stacks_keep_their_innermost_frames():
    try:
        raise_deep(500)
    except ValueError as err:
        text = CaughtError(err).stack()
    assert f"[{502 - MAX_FRAMES} more frames]" in text
    assert text.count("in raise_deep") == MAX_FRAMES


def test_endless_chains_and_large_groups_are_bounded():
    error: BaseException = ValueError("0")
    for n in range(1, 200):
        error, before = ValueError(str(n)), error
        error.__cause__ = before
    assert caught(error).stack().count("ValueError:") == MAX_ERRORS
    many = ExceptionGroup("many", [ValueError(str(n)) for n in range(100)])
    assert caught(many).stack().count("ValueError:") == MAX_GROUP


def test_a_cycle_of_causes_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert caught(first).stack().count("ValueError:") == MAX_ERRORS


def test_long_texts_are_cut():
    error = caught(ExceptionGroup("g", [ValueError("x" * 100_000) for _ in range(8)]))
    assert len(error.stack()) < MAX_STACK + 100
    assert len(caught(ValueError("x" * 100_000)).message) < 10_000


@pytest.mark.parametrize(
    ("error", "message"),
    [(Hostile(), "[unserialisable "), (Lying("x"), "x")],
    ids=["str", "traceback"],
)
def test_hostile_exceptions_do_not_raise(error, message):
    got = CaughtError(error)
    assert got.message.startswith(message)
    assert got.type in got.stack()


def test_an_exception_that_logs_itself_does_not_recurse():
    error = Echo()
    assert CaughtError(error).message == "echo"
    assert error.inner == "[an exception logged while its own text was made]"


def test_lone_surrogates_are_replaced():
    got = caught(ValueError("\ud800"))
    got.message.encode()
    got.stack().encode()
