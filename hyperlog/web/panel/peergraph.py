"""What traces tell of peers and of classes: who was connected to whom, and who called what.

Peers follow from the traces that peer-to-peer programs make with the ids `listen`, `stream-open`
and `stream-close`. Nothing here asks a store.

Source: hypertrace-logger grapher.js.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from hyperlog.store.records import StoredRecord

__all__ = ["EVENT_IDS", "call_graph", "peer_events"]

EVENT_IDS: Final = ("listen", "stream-open", "stream-close")
MAX_NAME: Final = 96  # characters of a name that is shown
MAX_CLASSES: Final = 200  # the others are put together
OTHERS: Final = "other classes"


class _Stream(Struct, rename="camel", gc=False):
    public_key: Any = None
    remote_public_key: Any = None


class _Error(Struct, gc=False):
    code: Any = None


class _Props(Struct, rename="camel", gc=False):
    public_key: Any = None
    stream: _Stream | None = None
    error: _Error | None = None


class _Caller(Struct, rename="camel", gc=False):
    function_name: Any = None
    props: _Props | None = None


class _Object(Struct, rename="camel", gc=False):
    class_name: Any = None


class _Trace(Struct, rename="camel", gc=False):
    id: Any = None
    user_id: Any = None
    caller: _Caller | None = None
    object: _Object | None = None
    parent_object: _Object | None = None


class _PlainCaller(Struct, rename="camel", gc=False):
    function_name: Any = None


class _PlainTrace(Struct, rename="camel", gc=False):
    caller: _PlainCaller | None = None
    object: _Object | None = None
    parent_object: _Object | None = None


_decode_trace = msgspec.json.Decoder(_Trace).decode
_decode_plain = msgspec.json.Decoder(_PlainTrace).decode


def peer_events(records: Iterable[StoredRecord]) -> list[list[Any]]:
    """`[time, id, who, publicKey, remotePublicKey, code]` of each record that is such an event, in
    the order of the records. `who` is who told it; keys are texts, None where there is none."""
    events = []
    for record in records:
        try:
            trace = _decode_trace(record.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        props = None if trace.caller is None else trace.caller.props
        if trace.id not in EVENT_IDS or props is None:
            continue
        stream = props.stream or _Stream()
        own = _name(props.public_key if trace.id == "listen" else stream.public_key)
        remote = None if trace.id == "listen" else _name(stream.remote_public_key)
        if own is None or (remote is None and trace.id != "listen"):
            continue
        who = _name(trace.user_id) or f"{record.bucket}/{record.instance}"
        code = None if props.error is None else _name(props.error.code)
        events.append([record.time, trace.id, who, own, remote, code])
    return events


def call_graph(records: Sequence[StoredRecord], steps: int) -> dict[str, Any]:
    """The classes that traced, for a slider of `steps` positions over their time.

    `{"classes": [name, …], "steps": [{"until": ms, "calls": [[class, function, count], …],
    "edges": [[parent, class, count], …]}, …]}`; classes are numbered by their place in the list,
    and each step has what came since the one before.
    """
    traces = []
    for record in records:
        if record.kind != "trace":
            continue
        try:
            trace = _decode_plain(record.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        name = _name(trace.object.class_name) if trace.object is not None else None
        parent = _name(trace.parent_object.class_name) if trace.parent_object is not None else None
        function = _name(trace.caller.function_name) if trace.caller is not None else None
        if name is not None:
            traces.append((record.time, name, parent, function or "?"))
    traces.sort(key=lambda trace: trace[0])
    numbers = _numbers(traces)
    found: dict[str, Any] = {"classes": list(numbers), "steps": []}
    if not traces:
        return found
    others = numbers.get(OTHERS, 0)
    first, last = traces[0][0], traces[-1][0]
    length = max(1, -(-(last - first + 1) // steps))
    position = 0
    for step in range(steps):
        until = first + (step + 1) * length
        calls: Counter[tuple[int, str]] = Counter()
        edges: Counter[tuple[int, int]] = Counter()
        while position < len(traces) and traces[position][0] < until:
            _, name, parent, function = traces[position]
            number = numbers.get(name, others)
            calls[number, function] += 1
            if parent is not None:
                edges[numbers.get(parent, others), number] += 1
            position += 1
        found["steps"].append(
            {
                "until": until,
                "calls": [[*call, count] for call, count in calls.items()],
                "edges": [[*edge, count] for edge, count in edges.items()],
            }
        )
        if position == len(traces):
            break
    return found


def _numbers(traces: Iterable[tuple[int, str, str | None, str]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for _, name, parent, _ in traces:
        counts[name] += 1
        if parent is not None:
            counts[parent] += 1
    names = [name for name, _ in counts.most_common(MAX_CLASSES)]
    if len(counts) > MAX_CLASSES:
        names.append(OTHERS)
    return {name: number for number, name in enumerate(names)}


def _name(value: object) -> str | None:
    if not isinstance(value, str) or not value:
        return None
    name = value[:MAX_NAME]
    # The page puts a line feed between two names.
    return name if name.isprintable() else "".join(c if c.isprintable() else " " for c in name)
