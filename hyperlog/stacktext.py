"""Exceptions as a log message carries them: what they were, what they said, where they came from.

What is wanted of an exception is taken when it is logged: its text, and for each frame the code and
the line. The frames themselves are let go, with all the application's variables in them. The text
with its source lines is made later, by who encodes the message.

All of it is bounded, and nothing of the application is called but `str` of the exceptions.
"""

from __future__ import annotations

import linecache
import threading
from collections import deque
from itertools import islice

from hyperlog.replacer import safe_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, TracebackType

__all__ = ["CaughtError"]

MAX_ERRORS = 16  # in a chain and in groups, all together
MAX_FRAMES = 32  # of one error, innermost ones
MAX_GROUP = 8  # errors of one group
MAX_MESSAGE = 8192  # characters
MAX_NOTES = 8  # of one error
MAX_STACK = 32 * 1024  # characters

_CAUSE = "The above exception was the direct cause of the following exception:"
_CONTEXT = "During handling of the above exception, another exception occurred:"

_state = threading.local()


class CaughtError:
    """One exception, with those that it came from and those that it groups."""

    __slots__ = ("_budget", "before", "frames", "left_out", "link", "members", "message", "type")

    def __init__(
        self,
        error: BaseException,
        traceback: TracebackType | None = None,
        budget: list[int] | None = None,
    ) -> None:
        """`traceback` is where it came from, default: where it says. `budget` is for inner ones."""
        self.type = _type_name(error)
        self.message = ""
        self.frames: deque[tuple[CodeType, int]] = deque(maxlen=MAX_FRAMES)
        """code and line, outermost first"""
        self.left_out = 0
        """frames before those"""
        self.before: CaughtError | None = None
        self.link = ""
        self.members: list[CaughtError] = []
        self._budget = [MAX_ERRORS] if budget is None else budget
        self._budget[0] -= 1
        try:
            self.message = _text(error)
            self._take_frames(error.__traceback__ if traceback is None else traceback)
            self._take_others(error)
        except Exception:  # a class may replace any of these attributes by code of its own
            pass

    def _take_frames(self, traceback: TracebackType | None) -> None:
        count = 0
        while traceback is not None:
            self.frames.append((traceback.tb_frame.f_code, traceback.tb_lineno))
            traceback = traceback.tb_next
            count += 1
        self.left_out = count - len(self.frames)

    def _take_others(self, error: BaseException) -> None:
        if isinstance(error, BaseExceptionGroup):
            for member in islice(error.exceptions, MAX_GROUP):
                if self._budget[0] > 0:
                    self.members.append(CaughtError(member, budget=self._budget))
        before, self.link = error.__cause__, _CAUSE
        if before is None and not error.__suppress_context__:
            before, self.link = error.__context__, _CONTEXT
        if before is not None and before is not error and self._budget[0] > 0:
            self.before = CaughtError(before, budget=self._budget)

    def stack(self) -> str:
        """What the interpreter would print, at most MAX_STACK characters; never raises."""
        try:
            text = "\n".join(self._lines(""))
        except Exception:  # the interpreter may be shutting down: nothing to read sources with
            text = f"{self.type}: {self.message}"
        if len(text) > MAX_STACK:  # its end says most
            text = f"[{len(text) - MAX_STACK} characters left out]\n{text[-MAX_STACK:]}"
        return safe_text(text)

    def _lines(self, indent: str) -> Iterator[str]:
        if self.before is not None:
            yield from self.before._lines(indent)
            yield from ("", indent + self.link, "")
        if self.frames:
            yield f"{indent}Traceback (most recent call last):"
            if self.left_out:
                yield f"{indent}  [{self.left_out} more frames]"
            for code, line in self.frames:
                yield f'{indent}  File "{code.co_filename}", line {line}, in {code.co_name}'
                source = linecache.getline(code.co_filename, line).strip()
                if source:
                    yield f"{indent}    {source}"
        told = f"{self.type}: {self.message}" if self.message else self.type
        yield from (indent + line for line in told.split("\n"))
        for number, member in enumerate(self.members, 1):
            yield f"{indent}  -- {number} of the group:"
            yield from member._lines(indent + "  ")


def _type_name(error: BaseException) -> str:
    try:
        kind = type(error)
        module, name = kind.__module__, kind.__qualname__
        return safe_text(name if module in ("builtins", "__main__") else f"{module}.{name}", 256)
    except Exception:  # a metaclass may do anything
        return "Exception"


def _text(error: BaseException) -> str:
    # The text of an exception may itself be made with a log message about that exception.
    if getattr(_state, "inside", False):
        return "[an exception logged while its own text was made]"
    _state.inside = True
    try:
        text = str(error)
        notes = getattr(error, "__notes__", None)
        if isinstance(notes, list):
            text = "\n".join([text, *(note for note in notes[:MAX_NOTES] if type(note) is str)])
        return safe_text(text, MAX_MESSAGE)
    except Exception:
        return f"[unserialisable {_type_name(error)}]"
    finally:
        _state.inside = False
