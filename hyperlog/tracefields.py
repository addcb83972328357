"""Traces that no tracer made, from mappings with names as in Python or JavaScript."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hyperlog.trace import CallSite, Trace, TracedObject

__all__ = ["trace_of_fields"]


def trace_of_fields(fields: Mapping[str, Any]) -> Trace:
    """A trace from a mapping: `id`, `object` {class_name, id, props}, `parent_object` (the same, or
    None), `caller` {function_name, filename, line, column, props}.

    What is missing or of a wrong type is replaced. Raises what the mapping raises.
    """

    def field(mapping: object, *names: str) -> Any:  # noqa: ANN401 - the application's values
        if isinstance(mapping, Mapping):
            for name in names:
                if mapping.get(name) is not None:
                    return mapping[name]
        return None

    def text(value: object, default: str) -> str:
        return value if isinstance(value, str) else default

    def number(value: object) -> int | None:
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def props(mapping: object) -> dict[str, Any] | None:
        value = field(mapping, "props")
        return dict(value) if isinstance(value, Mapping) else None

    def traced(mapping: object) -> TracedObject:
        name = text(field(mapping, "class_name", "className"), "object")
        return TracedObject(name, number(field(mapping, "id")) or 0, props(mapping))

    source = field(fields, "object")
    parent = field(fields, "parent_object", "parentObject")
    caller = field(fields, "caller")
    id = field(fields, "id")
    return Trace(
        id if isinstance(id, str) else None,
        traced(source),
        props(source),
        None if parent is None else traced(parent),
        CallSite(
            text(field(caller, "function_name", "functionName"), ""),
            text(field(caller, "filename"), ""),
            number(field(caller, "line")),
            number(field(caller, "column")),
        ),
        props(caller),
    )
