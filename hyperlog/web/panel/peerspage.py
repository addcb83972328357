"""Peers: who is connected to whom, and which class calls what, over time."""

from __future__ import annotations

from typing import Final

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hyperlog.store.answers import Store
from hyperlog.store.query import And, Compare, Expression, Or, Query
from hyperlog.store.records import StoredRecord
from hyperlog.users import Login
from hyperlog.web.panel.explore import answering, now_ms
from hyperlog.web.panel.peergraph import EVENT_IDS, call_graph, peer_events
from hyperlog.web.panel.routes import Panel, PanelRoute
from hyperlog.web.panel.view import RANGES, View

__all__ = ["add_peers"]

PAGE: Final = 250  # records asked for at a time
MAX_RECORDS: Final = 20_000
MAX_SIZE: Final = 64 * 1024 * 1024  # bytes of their lines, and those of one page
STEPS: Final = 100  # positions of the slider over calls
MAX_BUCKETS: Final = 200


def add_peers(panel: Panel, store: Store) -> None:
    """Add the rows of this page to the panel."""

    async def page(request: Request, login: Login) -> Response:
        view = View.of(request.query_params)
        with answering():
            view.query(now_ms())
            buckets = await store.top(Query(), "bucket", limit=MAX_BUCKETS)
        shown = request.query_params.get("show", "peers")
        return panel.renderer.page(
            request,
            "peers.html",
            login=login,
            view=view,
            ranges=RANGES,
            shown="calls" if shown == "calls" else "peers",
            bucket=request.query_params.get("bucket", ""),
            buckets=[str(name) for name, _ in buckets.values],
        )

    async def newest(request: Request, where: Expression) -> tuple[list[StoredRecord], bool]:
        """The newest records, in the order of their arrival, and whether there are more."""
        query = View.of(request.query_params).query(now_ms())
        bucket = request.query_params.get("bucket")
        terms: list[Expression] = [where]
        if bucket:
            terms.append(Compare("bucket", "=", bucket))
        if query.where is not None:
            terms.append(query.where)
        whole = Query(terms[0] if len(terms) == 1 else And(tuple(terms)), query.since, query.until)
        found: list[StoredRecord] = []
        cursor: str | None = None
        size = 0
        while len(found) < MAX_RECORDS and size < MAX_SIZE:
            part = await store.search(whole, limit=PAGE, cursor=cursor)
            found += part.records
            size += sum(len(record.body) for record in part.records)
            cursor = part.cursor
            if cursor is None:
                break
        return found[::-1], cursor is not None

    async def peers(request: Request, login: Login) -> Response:
        with answering():
            ids = Or(tuple(Compare(".id", "=", id) for id in EVENT_IDS))
            records, more = await newest(request, ids)
            events = await trio.to_thread.run_sync(peer_events, records)
        return JSONResponse({"events": events, "more": more, "now": now_ms()})

    async def calls(request: Request, login: Login) -> Response:
        with answering():
            records, more = await newest(request, Compare("kind", "=", "trace"))
            graph = await trio.to_thread.run_sync(call_graph, records, STEPS)
        return JSONResponse({**graph, "more": more, "records": len(records)})

    panel.table += [
        PanelRoute("GET", "/peers", "viewer", page),
        PanelRoute("GET", "/peers/peers", "viewer", peers, "data"),
        PanelRoute("GET", "/peers/calls", "viewer", calls, "data"),
    ]
