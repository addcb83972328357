"""The start page: how to send the first record, and Explore as soon as there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hyperlog.senders import OWN_APPLICATION
from hyperlog.store.answers import Store
from hyperlog.store.language import to_text
from hyperlog.store.query import Compare, Not, Query
from hyperlog.users import Login
from hyperlog.web.panel.explore import answering
from hyperlog.web.panel.routes import Panel, PanelRoute

__all__ = ["add_start"]

NOT_OUR_OWN: Final = Not(Compare("bucket", "=", OWN_APPLICATION))
"""What was done in the panel makes records too."""


def add_start(panel: Panel, store: Store, public_key: bytes, bootstrap: Sequence[str]) -> None:
    """Add the row of this page to the panel; `bootstrap` are the nodes that clients need to be
    told of, none on the public network."""

    async def page(request: Request, login: Login) -> Response:
        with answering():
            found = await store.search(Query(NOT_OUR_OWN), limit=1)
        if found.records:
            return RedirectResponse("/explore", 303)
        return panel.renderer.page(
            request,
            "start.html",
            login=login,
            public_key=public_key.hex(),
            bootstrap=list(bootstrap),
            own=to_text(NOT_OUR_OWN),
            origin=f"{request.url.scheme}://{request.headers['host']}",
        )

    panel.table.append(PanelRoute("GET", "/", "viewer", page))
