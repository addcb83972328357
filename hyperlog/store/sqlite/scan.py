"""Goes through the records that a plan finds, in the order of their ids.

Lines come out of SQLite many at a time, as one text: a row each would take and give back the
interpreter's lock for every one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import compress
from typing import Any, Final

import msgspec
from msgspec import UNSET

from hyperlog.store.evaluate import Reading, plain, value_test
from hyperlog.store.query import Compare, Has
from hyperlog.store.records import StoredRecord, decode_body, record_of
from hyperlog.store.sqlite.asking import Question
from hyperlog.store.sqlite.compiler import TRUE, Plan
from hyperlog.store.sqlite.paths import MISSING, OTHER, path_reader
from hyperlog.store.words import searched_text

__all__ = ["Candidate", "Scan", "id_of", "source_of", "windows"]

FIRST_CHUNK: Final = 200  # lines
MAX_CHUNK: Final = 2000  # lines
CHUNK_SIZE: Final = 1024 * 1024  # bytes that a chunk is to have
WINDOW: Final = 20_000  # records between whose ids the index of words is asked as a condition
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def windows(
    question: Question, plan: Plan, first: int, end: int, *, newest_first: bool
) -> Iterator[tuple[int, int]]:
    """Ranges of ids (from, up to and without), that together are `first` to `end`."""
    if not plan.windowed:
        if first < end:
            yield first, end
        return
    while first < end:
        if newest_first:
            found = question.row(
                "select id from records where id >= ? and id < ? order by id desc limit 1 offset ?",
                (first, end, WINDOW),
            )
            start = first if found is None else found[0]
            yield start, end
            end = start
        else:
            found = question.row(
                "select id from records where id >= ? and id < ? order by id limit 1 offset ?",
                (first, end, WINDOW),
            )
            stop = end if found is None else found[0]
            yield first, stop
            first = stop


def source_of(plan: Plan, first: int, end: int) -> tuple[str, list[Any]]:
    """FROM and WHERE of the candidates with ids from `first` up to and without `end`."""
    condition = plan.condition.replace(":first", str(first)).replace(":last", str(end - 1))
    if plan.match is None:
        return (
            f"from records r where r.id >= {first} and r.id < {end} and {condition}",
            plan.values,
        )
    return (
        "from words w cross join records r on r.id = w.rowid where words match ? "
        f"and w.rowid >= {first} and w.rowid < {end} and {condition}",
        [plan.match, *plan.values],
    )


def id_of(plan: Plan) -> str:
    """What candidates are to be ordered by."""
    return "r.id" if plan.match is None else "w.rowid"


class Candidate(Reading):
    """A line with what the database knows of it; made into a record only if that is asked for."""

    def __init__(
        self, id: int, level: int, body: bytes, sender: tuple[bytes, str], members: dict[str, Any]
    ) -> None:
        self.id = id
        self.level = level
        self.body = body
        self._sender = sender
        self.members = members  # those that are going to be asked for

    @cached_property
    def record(self) -> StoredRecord:  # type: ignore[override]
        record = record_of(self.body, *self._sender)
        assert record is not None, "only what is a record was taken in"
        return record

    @cached_property
    def text(self) -> str:
        return searched_text(self.record)


class Scan:
    """The candidates of a plan, chunk by chunk."""

    def __init__(self, question: Question, plan: Plan, names: frozenset[str]) -> None:
        """`names` are the members of the JSON at its top that candidates are to have."""
        self._question = question
        self._plan = plan
        self._names = sorted(names)
        self._decode = _decoder(tuple(self._names))
        self._sieve = None if plan.sieve is None else _sieve(plan.sieve)
        self._senders: dict[int, tuple[bytes, str]] = {}
        self._size = FIRST_CHUNK

    def chunks(
        self, first: int, end: int, *, newest_first: bool = True
    ) -> Iterator[list[Candidate]]:
        """All with ids from `first` up to and without `end`, in order."""
        plan = self._plan
        for start, stop in windows(self._question, plan, first, end, newest_first=newest_first):
            while start < stop:
                last, chunk = self._chunk(start, stop, newest_first)
                if last is None:
                    break
                yield chunk
                if newest_first:
                    stop = last
                else:
                    start = last + 1

    def _chunk(
        self, first: int, end: int, newest_first: bool
    ) -> tuple[int | None, list[Candidate]]:
        """The last id that was looked at, None if there was none, and what may match."""
        source, values = source_of(self._plan, first, end)
        id = id_of(self._plan)
        order = "desc" if newest_first else "asc"
        ids, origins, levels, text = self._question.row(
            "select group_concat(c.id), group_concat(c.origin), group_concat(c.level), "
            "cast(group_concat(b.body, char(10)) as blob) "
            f"from (select r.id, r.origin, r.level {source} order by {id} {order} "
            f"limit {self._size}) c cross join bodies b on b.id = c.id",
            values,
        )
        if ids is None:
            return None, []
        lines = text.split(b"\n")
        id_texts = ids.split(",")
        self._resize(len(lines), text)
        rows: Iterable[tuple[str, str, str, bytes]]
        rows = zip(id_texts, origins.split(","), levels.split(","), lines, strict=True)
        if self._sieve is not None:
            passed = self._sieve(text, len(lines))
            rows = compress(rows, passed)
            lines = list(compress(lines, passed))
            text = b"\n".join(lines)
        return int(id_texts[-1]), [
            Candidate(int(id), int(level), line, self._sender(int(origin)), members)
            for (id, origin, level, line), members in zip(
                rows, self._members(text, lines), strict=True
            )
        ]

    def texts(self, first: int, end: int) -> Iterator[tuple[int, bytes]]:
        """The lines alone, the newest first: the oldest id of a chunk, and its lines in one."""
        plan = self._plan
        for start, stop in windows(self._question, plan, first, end, newest_first=True):
            while start < stop:
                values: list[Any] = []
                if plan.match is None and plan.condition == TRUE:
                    source = f"bodies where id >= {start} and id < {stop}"
                    body, order = "select id, body", "id"
                else:
                    source, values = source_of(plan, start, stop)
                    body = "select r.id, (select body from bodies where id = r.id) as body"
                    source, order = source.removeprefix("from "), id_of(plan)
                oldest, count, text = self._question.row(
                    "select min(id), count(*), cast(group_concat(body, char(10)) as blob) "
                    f"from ({body} from {source} order by {order} desc limit {self._size})",
                    values,
                )
                if oldest is None:
                    break
                self._resize(count, text)
                yield oldest, text
                stop = oldest

    def _resize(self, count: int, text: bytes) -> None:
        self._size = min(max(CHUNK_SIZE * count // len(text), 16), MAX_CHUNK)

    def _sender(self, origin: int) -> tuple[bytes, str]:
        known = self._senders.get(origin)
        if known is None:
            source, server = self._question.row(
                "select source, server from origins where id = ?", (origin,)
            )
            known = self._senders[origin] = (bytes.fromhex(source), server)
        return known

    def _members(self, text: bytes, lines: list[bytes]) -> list[dict[str, Any]]:
        names = self._names
        if not names or not lines:
            return [{}] * len(lines)
        if self._decode is None:
            return [decode_body(line) for line in lines]
        try:
            found = self._decode(text)
        except _UNDECODABLE:
            return [decode_body(line) for line in lines]
        return [
            {
                name: value
                for name, value in zip(names, msgspec.structs.astuple(one), strict=True)
                if value is not UNSET
            }
            for one in found
        ]


def _sieve(term: Compare | Has) -> Callable[[bytes, int], Sequence[bool]] | None:
    """Tells for each of some lines whether the term may be true; None if that takes as long as
    anything else."""
    reader = path_reader(term.field)
    if reader is None:
        return None
    holds = value_test(term) if isinstance(term, Compare) else lambda value: True

    def passed(lines: bytes, count: int) -> Sequence[bool]:
        try:
            values = reader.values(lines)
        except _UNDECODABLE:
            return [True] * count
        return [
            value is OTHER
            or (
                value is not MISSING
                and holds(plain(value) if type(value) in (int, float) else value)
            )
            for value in values
        ]

    return passed


@lru_cache(maxsize=64)
def _decoder(names: tuple[str, ...]) -> Callable[[bytes], list[msgspec.Struct]] | None:
    """Decodes lines as far as these members go; the last of the same name counts.

    None for names that msgspec has no struct for.
    """
    fields = [(f"member{number}", Any, UNSET) for number in range(len(names))]
    renamed = {field[0]: name for field, name in zip(fields, names, strict=True)}
    try:
        line = msgspec.defstruct("Line", fields, rename=renamed, gc=False)
    except ValueError:  # control characters, quotes
        return None
    return msgspec.json.Decoder(line).decode_lines
