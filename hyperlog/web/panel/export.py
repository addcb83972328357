"""The records of a view as a file, streamed: NDJSON as they stand in the log, or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Final

import trio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from hyperlog.store.answers import Page, Store
from hyperlog.store.evaluate import Reading, field_values
from hyperlog.store.levels import LEVEL_NAMES
from hyperlog.store.query import Query
from hyperlog.store.records import StoredRecord
from hyperlog.store.times import ms_iso
from hyperlog.store.words import scalar_text
from hyperlog.users import Login
from hyperlog.web.panel.explore import answering, now_ms
from hyperlog.web.panel.routes import Panel, PanelRoute
from hyperlog.web.panel.view import View
from hyperlog.web.problems import Problem

__all__ = ["add_export", "safe_cell"]

BATCH: Final = 1000  # records asked for at a time
FIXED: Final = ("time", "level", "bucket", "instance", "kind", "message")
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")


def add_export(panel: Panel, store: Store) -> None:
    """Add the row of this page to the panel."""

    async def export(request: Request, login: Login) -> Response:
        view = View.of(request.query_params)
        kind = request.query_params.get("format", "ndjson")
        if kind not in ("ndjson", "csv"):
            raise Problem(400, "the format is ndjson or csv", field="format")
        with answering():
            # What arrives while it is being sent has no place in it.
            query = view.query(now_ms())
            first = await store.search(query, limit=BATCH)
        if kind == "csv":
            head = _csv_lines([[*FIXED, *view.columns]])
            parts = _pages(store, query, first, lambda records: _csv(records, view.columns), head)
            media_type = "text/csv; charset=utf-8"
        else:
            parts = _pages(store, query, first, _ndjson, b"")
            media_type = "application/x-ndjson"
        headers = {"Content-Disposition": f'attachment; filename="hyperlog.{kind}"'}
        return StreamingResponse(parts, headers=headers, media_type=media_type)

    panel.table.append(PanelRoute("GET", "/export", "viewer", export))


async def _pages(
    store: Store,
    query: Query,
    page: Page,
    text: Callable[[Iterable[StoredRecord]], bytes],
    head: bytes,
) -> AsyncIterator[bytes]:
    # In threads: a page may have megabytes to decode.
    yield head + await trio.to_thread.run_sync(text, page.records)
    while page.cursor is not None:
        page = await store.search(query, limit=BATCH, cursor=page.cursor)
        yield await trio.to_thread.run_sync(text, page.records)


def _ndjson(records: Iterable[StoredRecord]) -> bytes:
    return b"".join(record.body + b"\n" for record in records)


def _csv(records: Iterable[StoredRecord], columns: Sequence[str]) -> bytes:
    return _csv_lines(_csv_row(Reading(record), columns) for record in records)


def _csv_row(reading: Reading, columns: Sequence[str]) -> list[str]:
    record = reading.record
    return [
        ms_iso(record.time),
        LEVEL_NAMES.get(record.level, str(record.level)),
        record.bucket,
        record.instance,
        record.kind,
        record.message,
        *(", ".join(map(scalar_text, field_values(reading, column))) for column in columns),
    ]


def _csv_lines(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(map(safe_cell, row) for row in rows)
    return text.getvalue().encode("utf-8", "replace")


def safe_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula.

    Spec: OWASP, CSV injection.
    """
    return f"'{text}" if text.startswith(FORMULA) else text
