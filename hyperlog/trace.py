"""Tracers: what an application calls, and the one function that receives the traces.

The port of hypertrace to Python. An object makes a tracer once and calls `trace()` where something
happens; nothing comes of it until `set_trace_function` installs a receiver:

    class Store:
        def __init__(self) -> None:
            self.tracer = create_tracer(self, props={"kind": "disk"})

        def put(self, key: str) -> None:
            self.tracer.trace("put", {"key": key})

Kept from the original: ids per class from 1, the shape of what the receiver gets, shallow copies of
props at each trace, a copy of the parent's props when the parent is set.

Different on purpose:

- A tracer made before tracing was switched on traces once it is on (the original returns a dummy).
- `trace()` never raises into the application: not for odd props, not for a receiver that raises.
  The first error of a receiver goes to `sys.unraisablehook`, all are counted (`failures()`).
- A tracer refers to its object weakly, and a child to its parent's object too: tracing keeps
  nothing alive. Only an object that allows no weak references is held, as the original does.
- The place of a call is looked up in the frame each time (cached by instruction), so one id used in
  two methods reports both.

Every function here may be called from any thread. Only the standard library is imported, and little
of it: a program that never ships a trace pays next to nothing.

Source: hypertrace index.js; docs/protocol/trace-protocol.md section 4.
"""

from __future__ import annotations

import sys
import weakref
from itertools import count, islice

TYPE_CHECKING = False  # the typing module would be the dearest import here
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import CodeType, FrameType
    from typing import Any, TypeAlias

    Props: TypeAlias = Mapping[str, Any]
    TraceFunction: TypeAlias = Callable[["Trace"], object]

__all__ = [
    "CallSite",
    "Caller",
    "Trace",
    "TracedObject",
    "Tracer",
    "clear_trace_function",
    "create_tracer",
    "failures",
    "set_trace_function",
]

MAX_SITES_PER_CLASS = 1024  # call sites remembered; only generated code can exceed it

# Read past a metaclass, which may have attributes of these names that raise.
_name_of = type.__dict__["__name__"].__get__
_qualname_of = type.__dict__["__qualname__"].__get__
_mro_of = type.__dict__["__mro__"].__get__
_address = id

_trace_function: TraceFunction | None = None
_failures: Iterator[int] = count(1)
_failure_count = 0
_classes: dict[int, _ClassState] = {}


class TracedObject:
    """Who traced: an object as the receiver of a trace sees it."""

    __slots__ = ("_ctx", "class_name", "id", "props")

    def __init__(
        self,
        class_name: str,
        id: int,
        props: dict[str, Any] | None = None,
        ctx: Callable[[], Any] | None = None,
    ) -> None:
        """`ctx` is called for the object itself; a weak reference is such a callable."""
        self.class_name = class_name
        self.id = id
        self.props = props
        self._ctx = ctx

    @property
    def ctx(self) -> Any:  # noqa: ANN401 - its type is the application's
        """The object itself, or None if it is gone."""
        return None if self._ctx is None else self._ctx()

    def __repr__(self) -> str:
        return f"TracedObject({self.class_name!r}, {self.id}, props={self.props!r})"


class CallSite:
    """Where `trace()` was called; one instance per place in the program."""

    __slots__ = ("_code", "column", "filename", "function_name", "line")

    def __init__(
        self,
        function_name: str,
        filename: str,
        line: int | None = None,
        column: int | None = None,
        code: CodeType | None = None,
    ) -> None:
        """`line` and `column` count from 1; the column is in bytes of the source line, as CPython
        keeps it, and None where the interpreter has no positions. `code` is only kept alive."""
        self.function_name = function_name
        self.filename = filename
        self.line = line
        self.column = column
        self._code = code


class Caller:
    """The calling place together with the props of one call."""

    __slots__ = ("column", "filename", "function_name", "line", "props")

    def __init__(self, site: CallSite, props: dict[str, Any] | None) -> None:
        self.function_name = site.function_name
        self.filename = site.filename
        self.line = site.line
        self.column = site.column
        self.props = props

    def __repr__(self) -> str:
        place = f"{self.filename}:{self.line}:{self.column}"
        return f"Caller({self.function_name!r}, {place!r}, props={self.props!r})"


class Trace:
    """What a trace function receives: `id`, `object`, `parent_object` and `caller`.

    The four fields of the original, in snake case: `object.class_name`, `.id`, `.props`, `.ctx`;
    `parent_object` the same or None; `caller.function_name`, `.filename`, `.line`, `.column`,
    `.props`. `object` and `caller` are made when asked for; the slots behind them are public for
    receivers that only store traces.
    """

    __slots__ = ("caller_props", "id", "object_props", "parent_object", "site", "source")

    def __init__(
        self,
        id: str | None,
        source: TracedObject,
        object_props: dict[str, Any] | None,
        parent_object: TracedObject | None,
        site: CallSite,
        caller_props: dict[str, Any] | None,
    ) -> None:
        self.id = id
        self.source = source
        """identity of the object; its `props` are not those of this trace, see `object_props`"""
        self.object_props = object_props
        self.parent_object = parent_object
        self.site = site
        self.caller_props = caller_props

    @property
    def object(self) -> TracedObject:
        source = self.source
        return TracedObject(source.class_name, source.id, self.object_props, source._ctx)

    @property
    def caller(self) -> Caller:
        return Caller(self.site, self.caller_props)

    def __repr__(self) -> str:
        return (
            f"Trace(id={self.id!r}, object={self.object!r}, "
            f"parent_object={self.parent_object!r}, caller={self.caller!r})"
        )


class _ClassState:
    """What is remembered of one traced class, for as long as the class lives."""

    __slots__ = ("ids", "prefixes", "reference", "sites")

    def __init__(self, cls: type) -> None:
        key = id(cls)
        self.ids = count(1)
        self.sites: dict[tuple[int, int], CallSite] = {}
        # A method's qualified name begins with that of the class it was written in, which may be
        # a base class: JavaScript names the class of the object there, so all of them are cut.
        self.prefixes = tuple(f"{_qualname_of(base)}." for base in _mro_of(cls))
        self.reference = weakref.ref(cls, lambda _: _classes.pop(key, None))


def _class_state(cls: type) -> _ClassState:
    # Keyed by address, since a metaclass may forbid hashing; the weak reference's callback removes
    # the entry before the address can be used again. No lock: setdefault decides races, and code
    # that runs inside (a finaliser, a signal handler) may itself make tracers.
    state = _classes.get(id(cls))
    if state is None:
        state = _classes.setdefault(id(cls), _ClassState(cls))
    return state


def _find_site(state: _ClassState, frame: FrameType, key: tuple[int, int]) -> CallSite:
    code = frame.f_code
    name = code.co_qualname
    for prefix in state.prefixes:
        if name.startswith(prefix):
            name = name[len(prefix) :]
            break
    column = None
    # Two bytes per code unit; co_positions has one entry for each.
    for _, _, start, _ in islice(code.co_positions(), key[1] // 2, key[1] // 2 + 1):
        column = None if start is None else start + 1
    site = CallSite(name, code.co_filename, frame.f_lineno, column, code)
    if len(state.sites) >= MAX_SITES_PER_CLASS:
        state.sites.clear()
    state.sites[key] = site
    return site


def _copied(props: object) -> dict[str, Any] | None:
    """A shallow copy of `props`, None for None; no mapping: one entry `value` that holds it."""
    if props is None:
        return None
    try:
        return dict(props)  # type: ignore[call-overload, no-any-return]
    except Exception:  # any type at all may be given, and its methods may do anything
        return {"value": props}


class Tracer:
    """Traces on behalf of one object; made by `create_tracer`."""

    __slots__ = ("_parent", "_source", "_state", "class_name", "object_id", "props")

    def __init__(self, ctx: object, parent: Tracer | None, props: Props | None) -> None:
        cls = type(ctx)
        self._state = _class_state(cls)
        self.class_name: str = _name_of(cls)
        self.object_id = next(self._state.ids)
        self.props = props
        """the props given, by reference: later changes show in later traces"""
        reference: Callable[[], Any]
        try:
            reference = weakref.ref(ctx)
        except TypeError:
            # Classes with __slots__ and most built-in types allow none.
            def reference() -> object:
                return ctx

        self._source = TracedObject(self.class_name, self.object_id, None, reference)
        self._parent: TracedObject | None = None
        self.set_parent(parent)

    @property
    def ctx(self) -> Any:  # noqa: ANN401 - its type is the application's
        """The traced object, or None if it is gone."""
        return self._source.ctx

    @property
    def enabled(self) -> bool:
        """Whether a trace function is installed now."""
        return _trace_function is not None

    @property
    def parent_object(self) -> TracedObject | None:
        """The parent as it was when it was set."""
        return self._parent

    def set_parent(self, parent: Tracer | None) -> None:
        """Make `parent` the parent of later traces, with a copy of its props of now; None: no
        parent. Anything that is no tracer counts as None."""
        # Not isinstance: that would ask a stranger for its __class__, which may raise.
        if parent is None or not issubclass(type(parent), Tracer):
            self._parent = None
            return
        source = parent._source
        self._parent = TracedObject(
            source.class_name, source.id, _copied(parent.props), source._ctx
        )

    def trace(self, id: str | Props | None = None, props: Props | None = None) -> None:
        """Hand a trace to the installed function; without one, return at once.

        `trace()`, `trace(id)`, `trace(props)` and `trace(id, props)` are all right: a first
        argument that is no string is the props. Never raises.
        """
        function = _trace_function
        if function is None:
            return
        try:
            name: str | None = None
            if issubclass(type(id), str):  # isinstance may run code of a stranger
                name = id or None  # type: ignore[assignment]
            elif id is not None:
                props = id  # type: ignore[assignment]
            frame = sys._getframe(1)
            code = frame.f_code
            state = self._state
            key = (_address(code), frame.f_lasti)
            site = state.sites.get(key)
            if site is None:
                site = _find_site(state, frame, key)
            own = self.props
            function(
                Trace(
                    name,
                    self._source,
                    own.copy() if type(own) is dict else _copied(own),
                    self._parent,
                    site,
                    props.copy() if type(props) is dict else _copied(props),
                )
            )
        except Exception as error:
            _report(error)

    def __repr__(self) -> str:
        return f"Tracer({self.class_name!r}, {self.object_id})"


def _report(error: Exception) -> None:
    global _failure_count
    _failure_count = number = next(_failures)
    if number > 1:
        return

    def tracing_failed(_: object) -> None:
        raise error

    # What the callback of a weak reference raises goes to sys.unraisablehook, even if that one is
    # broken; its arguments cannot be made from Python.
    def mortal() -> None: ...

    reference = weakref.ref(mortal, tracing_failed)
    del mortal
    del reference


def create_tracer(
    ctx: object, *, parent: Tracer | None = None, props: Props | None = None
) -> Tracer:
    """Make the tracer of `ctx`, usually in its `__init__`.

    `parent` is the tracer of the object that made this one, `props` go along with every trace.

    Raises:
        TypeError: `ctx` is None.
    """
    if ctx is None:
        raise TypeError("create_tracer needs the object that traces: pass self")
    return Tracer(ctx, parent, props)


def set_trace_function(function: TraceFunction) -> None:
    """Install the receiver of all traces, in the place of an earlier one.

    It is called in the thread that traces, with one `Trace`; what it raises is not passed on.

    Raises:
        TypeError: `function` cannot be called.
    """
    global _trace_function, _failures, _failure_count
    if not callable(function):
        raise TypeError("a trace function is called with one Trace; use clear_trace_function")
    _failures, _failure_count = count(1), 0
    _trace_function = function


def clear_trace_function(function: TraceFunction | None = None) -> None:
    """Switch tracing off; given `function`, only if that one is still installed."""
    global _trace_function
    if function is None or _trace_function == function:
        _trace_function = None


def failures() -> int:
    """How many traces were lost to errors since the present trace function was installed."""
    return _failure_count
