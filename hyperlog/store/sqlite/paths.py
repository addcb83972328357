"""Takes one path's value out of many lines at a time, and decodes nothing else of them.

A struct for each name of the path tells msgspec what to skip; so a million lines take a second.
What paths can mean beside nested members (arrays on the way, names with dots in them) is left to
`evaluate`, line by line.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw

from hyperlog.store.evaluate import MAX_INTEGER, MIN_INTEGER

__all__ = ["MISSING", "OTHER", "PathReader", "path_reader"]

MAX_PARTS: Final = 8
MISSING: Final = UNSET
"""of lines that do not have the path"""


class _Other:
    """The type of OTHER."""


OTHER: Final = _Other()
"""of lines whose values only `evaluate` can tell"""


class PathReader:
    """Reads the values of one path; made by `path_reader`."""

    def __init__(self, parts: list[str]) -> None:
        """ValueError for names that msgspec has no struct for."""
        self._structs: list[type[msgspec.Struct]] = []
        self._joined: list[list[bytes]] = []
        value: Any = Any
        for position in reversed(range(len(parts))):
            joined = [".".join(parts[position:end]) for end in range(position + 2, len(parts) + 1)]
            fields = [("member", value, UNSET)]
            fields += [(f"joined{number}", Raw, UNSET) for number in range(len(joined))]
            renamed = {"member": parts[position]}
            renamed |= {f"joined{number}": name for number, name in enumerate(joined)}
            struct = msgspec.defstruct("Member", fields, rename=renamed, gc=False)
            self._structs.insert(0, struct)
            self._joined.insert(0, [name.encode() for name in joined])
            value = struct | list[Any] | str | int | float | bool | None
        self._decode = msgspec.json.Decoder(self._structs[0]).decode_lines

    def values(self, lines: bytes) -> list[Any]:
        """For each line a JSON scalar, MISSING or OTHER.

        Raises:
            msgspec.MsgspecError: a line is not decodable so.
            UnicodeDecodeError: alike.
        """
        nodes: list[Any] = self._decode(lines)
        escaped = b"\\" in lines
        for struct, joined in zip(self._structs, self._joined, strict=True):
            values = [
                node.member  # type: ignore[attr-defined]
                if type(node) is struct
                else OTHER
                if type(node) is list or node is OTHER
                else MISSING
                for node in nodes
            ]
            for number, name in enumerate(joined):
                if escaped or name in lines:
                    member = f"joined{number}"
                    for position, node in enumerate(nodes):
                        if type(node) is struct and getattr(node, member) is not UNSET:
                            values[position] = OTHER
            nodes = values
        kinds = set(map(type, nodes))
        if list in kinds or dict in kinds:
            nodes = [OTHER if type(node) in (list, dict) else node for node in nodes]
        if int in kinds:  # beyond 64 bits they count as the nearest double
            integers = [node for node in nodes if type(node) is int]
            if min(integers) < MIN_INTEGER or max(integers) > MAX_INTEGER:
                huge = {node for node in integers if not MIN_INTEGER <= node <= MAX_INTEGER}
                nodes = [OTHER if type(node) is int and node in huge else node for node in nodes]
        return nodes


@lru_cache(maxsize=64)
def path_reader(path: str) -> PathReader | None:
    """A reader of a field's path; None for paths that are `evaluate`'s alone."""
    parts = path.removeprefix(".").split(".")
    if len(parts) > MAX_PARTS or not all(parts):
        return None
    try:
        return PathReader(parts)
    except ValueError:  # control characters, quotes
        return None
