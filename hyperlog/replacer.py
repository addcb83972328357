"""Values of the application made fit for JSON, by the rules of the JavaScript client.

The original hands props to `JSON.stringify` with a replacer: buffers become hex text, errors
`{code, message}`, dates ISO text, NaN null. Here the same, for Python's types, with two promises
that the original does not make: nothing ever raises, and what comes out is bounded.

Most props are a few strings and numbers. They are recognised by their types alone and passed
through untouched; only the rest is walked.

Source: hypertrace-logger client.js `jsonStringifyReplacer`; docs/protocol/trace-protocol.md
sections 1 and 5.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import islice
from typing import Any
from uuid import UUID

from msgspec import Raw

__all__ = ["replace_props", "replace_strictly", "safe_text"]

MAX_DEPTH = 16  # containers within containers
MAX_VALUES = 10_000  # values of one record, all containers together
MAX_TEXT = 256 * 1024  # characters of one record, all strings and hex digits together
MAX_REPR = 200  # characters of an object that is told by its repr
MAX_INT_BITS = 4096  # beyond, Python itself refuses to print decimal digits
MAX_FRAMES = 16  # frames of an error's stack, innermost first

_PLAIN = frozenset({str, int, float, bool, type(None)}).issuperset
_ONLY_STR = frozenset({str}).issuperset


def replace_props(props: Mapping[str, Any]) -> Mapping[str, Any]:
    """`props` as msgspec can encode it: the same object if it is plain, else a replaced copy.

    Plain values may still be too much for the encoder (integers beyond 64 bits, lone surrogates) or
    too long: callers encode, and on an error replace again with `replace_strictly`.
    """
    try:
        if _PLAIN(map(type, props.values())) and _ONLY_STR(map(type, props)):
            return props
    except Exception:  # a metaclass without hash, a mapping that raises
        pass
    return replace_strictly(props)


def replace_strictly(props: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `props` in which every string, number and container is checked and bounded."""
    replaced = _Walk().replace(props, 0)
    return replaced if isinstance(replaced, dict) else {"value": replaced}


def safe_text(text: str, limit: int = MAX_TEXT) -> str:
    """`text` cut to `limit` characters, with lone surrogates (not encodable) replaced."""
    if type(text) is not str:  # msgspec takes no subclasses, and they may lie about themselves
        text = str.__str__(text)
    if len(text) > limit:
        text = f"{text[:limit]}[... {len(text) - limit} more characters]"
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class _Walk:
    """One replacement: what is left of the budgets, and the containers being walked."""

    __slots__ = ("inside", "text_left", "values_left")

    def __init__(self) -> None:
        self.values_left = MAX_VALUES
        self.text_left = MAX_TEXT
        self.inside: set[int] = set()

    def replace(self, value: object, depth: int) -> Any:  # noqa: ANN401 - any JSON value
        kind = type(value)
        if kind is str:
            return self._text(value)  # type: ignore[arg-type]
        if value is None or kind is bool or kind is float:
            return value  # msgspec writes NaN and infinities as null, as JSON.stringify does
        if kind is int:
            return _integer(value)  # type: ignore[arg-type]
        try:
            return self._replace_other(value, depth)
        except KeyboardInterrupt:
            raise
        except BaseException:  # the value's own methods may raise anything
            return f"[unserialisable {_class_name(value)}]"

    def _text(self, text: str, limit: int = MAX_TEXT) -> str:
        text = safe_text(text, min(limit, max(self.text_left, 0)))
        self.text_left -= len(text)
        return text

    def _replace_other(self, value: object, depth: int) -> object:
        if isinstance(value, bytes | bytearray | memoryview):
            return self._hex(value)
        if isinstance(value, BaseException):
            return self._error(value)
        if isinstance(value, Enum):
            return self.replace(value.value, depth)
        if isinstance(value, str):
            return self._text(str.__str__(value))
        if isinstance(value, int):
            return _integer(int.__int__(value))
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, datetime):
            return _date(value)
        if isinstance(value, date | time):
            return value.isoformat()
        if isinstance(value, UUID | Decimal | timedelta):
            return self._text(str(value))
        if isinstance(value, os.PathLike):
            return self._text(os.fsdecode(value))
        if isinstance(value, Mapping):
            return self._nested(value, depth, self._mapping)
        if isinstance(value, list | tuple | set | frozenset | deque):
            return self._nested(value, depth, self._array)
        fields = getattr(type(value), "__dataclass_fields__", None)
        if isinstance(fields, dict):
            # A field left out of the repr is left out here: it is often a secret.
            shown = {name: getattr(value, name) for name, field in fields.items() if field.repr}
            return self._nested(value, depth, lambda _, depth: self._mapping(shown, depth))
        return self._text(repr(value), MAX_REPR)

    def _nested(self, value: object, depth: int, walk: Callable[[Any, int], object]) -> object:
        if id(value) in self.inside:
            return "[circular]"
        if depth >= MAX_DEPTH:
            return f"[too deep: {_class_name(value)}]"
        self.inside.add(id(value))
        try:
            return walk(value, depth + 1)
        finally:
            self.inside.discard(id(value))

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        # Taken in one step, since another thread may change the container meanwhile.
        items = list(islice(value.items(), max(self.values_left, 0)))
        self.values_left -= len(items)
        replaced = {self._key(key): self.replace(item, depth) for key, item in items}
        if len(value) > len(items):
            replaced["..."] = f"[{len(value) - len(items)} more entries]"
        return replaced

    def _array(self, value: Collection[Any], depth: int) -> list[Any]:
        items = list(islice(value, max(self.values_left, 0)))
        self.values_left -= len(items)
        replaced = [self.replace(item, depth) for item in items]
        if len(value) > len(items):
            replaced.append(f"[{len(value) - len(items)} more items]")
        return replaced

    def _key(self, key: object) -> str:
        if isinstance(key, str):
            return self._text(str.__str__(key), MAX_REPR)
        if key is None or key is True or key is False:
            return {None: "null", True: "true", False: "false"}[key]
        try:
            return self._text(str(key), MAX_REPR)
        except Exception:  # the key's own __str__ may raise anything
            return f"[unserialisable {_class_name(key)}]"

    def _hex(self, value: bytes | bytearray | memoryview) -> str:
        data = value.tobytes() if isinstance(value, memoryview) else value
        limit = max(self.text_left, 0) // 2
        text = data[:limit].hex()
        self.text_left -= len(text)
        return text if len(data) <= limit else f"{text}[... {len(data) - limit} more bytes]"

    def _error(self, error: BaseException) -> dict[str, Any]:
        """`{code, message}` as the original has it, and what it loses: `name` and `stack`."""
        replaced: dict[str, Any] = {}
        code = getattr(error, "code", None)
        if code is None:
            number = getattr(error, "errno", None)
            code = errno.errorcode.get(number, number) if isinstance(number, int) else None
        if isinstance(code, str):
            replaced["code"] = self._text(code, MAX_REPR)
        elif isinstance(code, int):
            replaced["code"] = _integer(int(code))
        try:
            message = self._text(str(error))
        except Exception:  # an error class of the application may have a broken __str__
            message = f"[unserialisable {_class_name(error)}]"
        replaced["message"] = message
        replaced["name"] = name = _class_name(error)
        frames: deque[str] = deque(maxlen=MAX_FRAMES)
        step = error.__traceback__
        while step is not None:
            code_object = step.tb_frame.f_code
            place = f"{code_object.co_filename}:{step.tb_lineno}"
            frames.appendleft(f"\n    at {code_object.co_qualname} ({place})")
            step = step.tb_next
        if frames:
            # appendleft on a full deque drops from the right: the outermost frames go.
            replaced["stack"] = self._text(f"{name}: {message[:MAX_REPR]}{''.join(frames)}")
        return replaced


def _class_name(value: object) -> str:
    return str(type.__dict__["__name__"].__get__(type(value)))


def _integer(value: int) -> int | Raw | str:
    if -(2**63) <= value < 2**64:
        return value
    if value.bit_length() <= MAX_INT_BITS:
        return Raw(str(value).encode())
    return f"[integer of {value.bit_length()} bits]"


def _date(value: datetime) -> str:
    try:
        # A naive time is local time, as everywhere in Python.
        value = value.astimezone(UTC)
    except (OverflowError, OSError, ValueError):
        return value.isoformat()  # years 1 and 9999 have no neighbours
    return value.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
