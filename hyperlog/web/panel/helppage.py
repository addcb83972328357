"""How to search, by examples that can be followed."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from hyperlog.store.query import FIELDS
from hyperlog.users import Login
from hyperlog.web.panel.routes import Panel, PanelRoute

__all__ = ["EXAMPLES", "add_help"]

EXAMPLES: Final = (
    ("timeout", "with the word timeout in any of their values"),
    ("connection refused", "with both words, wherever they are"),
    ('"connection refused"', "with these words next to each other"),
    ("conn*", "with a word that begins so"),
    ("level>=warning", "that are warnings or worse"),
    ("bucket:cerco instance:desk-7", "of one instance of an application"),
    ("object.className:Stream", "whose JSON has this value at this path"),
    ("attributes.status>=500", "with a number of at least 500 there"),
    ("exception.type:*", "that have this field, whatever it is"),
    ("kind:gap", "that tell of records that were lost"),
    ("timeout -retry", "with the first word and without the second"),
    ("(timeout OR refused) level:error", "with one of the words, among the errors"),
)


def add_help(panel: Panel) -> None:
    """Add the row of this page to the panel."""

    async def show(request: Request, login: Login) -> Response:
        return panel.renderer.page(
            request, "help_query.html", login=login, examples=EXAMPLES, fields=FIELDS
        )

    panel.table.append(PanelRoute("GET", "/help/query", "viewer", show))
