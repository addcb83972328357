"""Explore: search, histogram, facets, a record and what came around it.

The page comes with its first records. Histogram and facets are asked for by its script, since they
may take longer; so are further records when somebody scrolls.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from hyperlog.errors import QueryError, StoreError
from hyperlog.store.answers import Store, Top
from hyperlog.store.evaluate import Reading, field_values, plain
from hyperlog.store.levels import LEVEL_NAMES
from hyperlog.store.query import Compare, Query
from hyperlog.store.records import StoredRecord
from hyperlog.store.words import scalar_text
from hyperlog.users import Login
from hyperlog.web.panel.routes import Panel, PanelRoute
from hyperlog.web.panel.summaries import Summaries
from hyperlog.web.panel.view import DEFAULT_SINCE, RANGES, View, term_of
from hyperlog.web.problems import Problem

__all__ = ["Row", "add_explore", "rows_of"]

PAGE: Final = 100  # records
AROUND: Final = 25  # records before, and as many after
BINS: Final = 120  # of a histogram, about
STEPS: Final = tuple(
    step * 1000
    for step in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600)
) + tuple(days * 86_400_000 for days in (1, 2, 7, 14, 30, 90, 365))
FACETS: Final = ("level", "bucket", "instance", "kind")
FACET_VALUES: Final = 12
ANSWER_TIME: Final = 20.0  # s that a store may take for one answer
MAX_CELL: Final = 300  # characters of a pinned field

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Row:
    """A record as a line of a table."""

    record: StoredRecord
    cells: list[str]
    """of the pinned columns"""


def rows_of(records: Iterable[StoredRecord], columns: Sequence[str]) -> list[Row]:
    rows = []
    for record in records:
        reading = Reading(record)  # decoded once for all columns, on the event loop
        rows.append(Row(record, [_cell(reading, column) for column in columns]))
    return rows


def _cell(reading: Reading, column: str) -> str:
    values = [scalar_text(value) for value in field_values(reading, column)[:8]]
    return ", ".join(values)[:MAX_CELL]


class Explore:
    """The endpoints."""

    def __init__(self, panel: Panel, store: Store) -> None:
        self._panel = panel
        self._store = store
        self._summaries = Summaries()

    # -- the page and its parts

    async def page(self, request: Request, login: Login) -> Response:
        view = View.of(request.query_params)
        rows: list[Row] = []
        cursor: str | None = None
        error: QueryError | None = None
        fault: str | None = None
        try:
            with trio.fail_after(ANSWER_TIME):
                page = await self._store.search(view.query(now_ms()), limit=PAGE)
            rows, cursor = rows_of(page.records, view.columns), page.cursor
        except QueryError as err:
            error = err
        except (StoreError, trio.TooSlowError) as err:
            fault = _fault(err)
        return self._panel.renderer.page(
            request,
            "explore.html",
            login=login,
            status=400 if error else 503 if fault else 200,
            view=view,
            rows=rows,
            cursor=cursor,
            error=error,
            fault=fault,
            ranges=RANGES,
            widest=view.since == "all" and not view.until,
            everything=replace(view, since="all", until=""),
            searches=self._panel.searches.list(login.user.name),
            default_since=DEFAULT_SINCE,
        )

    async def rows(self, request: Request, login: Login) -> Response:
        """More rows, after a cursor."""
        view = View.of(request.query_params)
        with answering():
            page = await self._store.search(
                view.query(now_ms()), limit=PAGE, cursor=request.query_params.get("cursor") or None
            )
        return self._panel.renderer.fragment(
            "rows.html", rows=rows_of(page.records, view.columns), cursor=page.cursor, view=view
        )

    async def histogram(self, request: Request, login: Login) -> Response:
        """`{since, until, step, bins: [[start, {level: count}], …], total}`; times in ms."""
        view = View.of(request.query_params)
        return JSONResponse(await self._summary("histogram", view, partial(self._bins, view)))

    async def _bins(self, view: View) -> dict[str, object]:
        now = now_ms()
        query = view.query(now)
        until = now if query.until is None else query.until
        since = query.since
        if since is None:
            since, until = await self._extent(query, until)
        step = step_for(until - since)
        bins = await self._store.histogram(replace(query, since=since, until=until), step=step)
        return {
            "since": since,
            "until": until,
            "step": step,
            "bins": [[one.start, one.counts] for one in bins],
            "total": sum(sum(one.counts.values()) for one in bins),
        }

    async def _extent(self, query: Query, until: int) -> tuple[int, int]:
        """From the oldest record to just after the newest."""
        oldest = await self._store.search(query, limit=1, order="oldest")
        newest = await self._store.search(query, limit=1)
        if not oldest.records or not newest.records:
            return until - 86_400_000, until
        return oldest.records[0].time, min(until, newest.records[0].time + 1)

    async def facet(self, request: Request, login: Login) -> Response:
        """The most frequent values of one field, as a list of links."""
        view = View.of(request.query_params)
        field = request.query_params.get("field", "")

        async def ask() -> Top:
            return await self._store.top(view.query(now_ms()), field, limit=FACET_VALUES)

        top = await self._summary(f"facet {field}", view, ask)
        return self._panel.renderer.fragment(
            "facet.html",
            field=field,
            top=top,
            values=_facet_values(field, top),
            view=view,
            fixed=field in FACETS,
        )

    async def _summary(self, name: str, view: View, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """What `ask` answers about a view, now or not long ago.

        Raises:
            Problem: the store cannot be asked this, or cannot answer now.
        """

        async def ask_or_fail() -> Answer | Problem:
            try:
                with answering():
                    return await ask()
            except Problem as problem:  # whoever asks the same is told the same
                return problem

        question = name, view.q, view.since, view.until
        answer = await self._summaries.answer(question, ask_or_fail)
        if isinstance(answer, Problem):
            raise answer
        return answer

    async def refine(self, request: Request, login: Login) -> Response:
        """Go to the same view narrowed by a value: `field`, `value`, `kind`, `exclude`."""
        parameters = request.query_params
        view = View.of(parameters)
        try:
            term = term_of(
                parameters.get("field", ""),
                parameters.get("value", ""),
                parameters.get("kind", "string"),
            )
            view = view.with_term(term, exclude=bool(parameters.get("exclude")))
        except QueryError:
            pass  # a page that says what is wrong with the words is still the best answer
        page = "/live" if parameters.get("page") == "live" else "/explore"
        return RedirectResponse(view.address(page), 303)

    # -- one record

    async def record(self, request: Request, login: Login) -> Response:
        """The page of one record, with what came around it."""
        record = await self._record(request)
        with answering():
            around = await self._around(record)
        return self._panel.renderer.page(
            request,
            "record.html",
            login=login,
            record=record,
            rows=rows_of(around, ()),
            view=View(since="all"),
            cursor=None,
        )

    async def body(self, request: Request, login: Login) -> Response:
        """The JSON of one record, as it stands in the log."""
        record = await self._record(request)
        return Response(record.body, media_type="application/json")

    async def around(self, request: Request, login: Login) -> Response:
        """What came around a record, from the same instance."""
        record = await self._record(request)
        view = View.of(request.query_params)
        with answering():
            rows = rows_of(await self._around(record), view.columns)
        return self._panel.renderer.fragment(
            "around.html", rows=rows, cursor=None, view=view, record=record
        )

    async def _record(self, request: Request) -> StoredRecord:
        with answering():
            record = await self._store.get(request.path_params["id"])
        if record is None:
            raise Problem(404, "there is no such record here; it may be older than what is kept")
        return record

    async def _around(self, record: StoredRecord) -> list[StoredRecord]:
        same = Compare("source", "=", record.source)
        before = await self._store.search(Query(same, until=record.time + 1), limit=AROUND)
        after = await self._store.search(
            Query(same, since=record.time), limit=AROUND, order="oldest"
        )
        in_order = [*reversed(before.records), *after.records]
        # Those of the very same time are in both.
        return list({one.id: one for one in in_order}.values())

    # -- saved searches

    async def save(self, request: Request, login: Login) -> Response:
        form = await self._panel.form(request)
        view = View.of(form)
        self._panel.searches.save(login.user.name, form.get("name", ""), view.address())
        return RedirectResponse(view.address(), 303)

    async def forget(self, request: Request, login: Login) -> Response:
        form = await self._panel.form(request)
        self._panel.searches.remove(login.user.name, form.get("name", ""))
        return RedirectResponse(View.of(form).address(), 303)


def add_explore(panel: Panel, store: Store) -> None:
    """Add the rows of this page to the panel."""
    explore = Explore(panel, store)
    panel.table += [
        PanelRoute("GET", "/explore", "viewer", explore.page),
        PanelRoute("GET", "/explore/rows", "viewer", explore.rows, "data"),
        PanelRoute("GET", "/explore/histogram", "viewer", explore.histogram, "data"),
        PanelRoute("GET", "/explore/facet", "viewer", explore.facet, "data"),
        PanelRoute("GET", "/explore/refine", "viewer", explore.refine),
        PanelRoute("POST", "/searches", "viewer", explore.save),
        PanelRoute("POST", "/searches/remove", "viewer", explore.forget),
        # A client chooses its session's id, which is a part of the record's: it may have slashes.
        PanelRoute("GET", "/record/{id:path}/body", "viewer", explore.body, "data"),
        PanelRoute("GET", "/record/{id:path}/around", "viewer", explore.around, "data"),
        PanelRoute("GET", "/record/{id:path}", "viewer", explore.record),
    ]


def now_ms() -> int:
    return int(time.time() * 1000)


def step_for(length: int) -> int:
    """The width of a histogram's bins in ms, for a range of `length` ms."""
    return next((step for step in STEPS if length / step <= BINS), STEPS[-1])


@contextmanager
def answering() -> Iterator[None]:
    """Gives a store its time, and turns its errors into answers.

    Raises:
        Problem: the store cannot be asked this, or cannot answer now.
    """
    try:
        with trio.fail_after(ANSWER_TIME):
            yield
    except QueryError as error:
        raise Problem(400, str(error), position=error.position) from None
    except (StoreError, trio.TooSlowError) as error:
        raise Problem(503, _fault(error), retry_after=5) from None


def _fault(error: Exception) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"the store took more than {ANSWER_TIME:.0f} s: ask for a shorter time"
    return f"the store does not answer: {error}"


def _facet_values(field: str, top: Top) -> list[dict[str, object]]:
    """Value, text, type in JSON, count and share of each."""
    found = []
    for value, count in top.values:
        text = scalar_text(value)
        kind = "string"
        if value is None:
            kind = "null"
        elif isinstance(value, bool):
            kind = "boolean"
        elif isinstance(value, int | float):
            kind = "number"
            text = scalar_text(plain(value))
        label = LEVEL_NAMES.get(value, text) if field == "level" else text  # type: ignore[arg-type]
        share = round(100 * count / top.records) if top.records else 0
        found.append({"text": text, "label": label, "kind": kind, "count": count, "share": share})
    return found
