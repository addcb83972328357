"""The page of whoever is logged in."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hyperlog.errors import ConfigError
from hyperlog.users import Login
from hyperlog.web.panel.access import clear_cookie
from hyperlog.web.panel.routes import Panel, PanelRoute

__all__ = ["add_account"]


def add_account(panel: Panel) -> None:
    """Add the rows of this page to the panel."""

    async def show(request: Request, login: Login, error: str | None = None) -> Response:
        status = 200 if error is None else 400
        return panel.renderer.page(request, "account.html", login=login, status=status, error=error)

    async def change(request: Request, login: Login) -> Response:
        form = await panel.form(request)
        try:
            if form.get("password") != form.get("again"):
                raise ConfigError("the two new passwords differ")
            old, new = form.get("old", ""), form.get("password", "")
            await panel.access.change_password(login, old, new)
        except ConfigError as error:
            return await show(request, login, str(error))
        response = RedirectResponse("/login?next=/account", 303)
        clear_cookie(request, response)
        return response

    panel.table += [
        PanelRoute("GET", "/account", "viewer", show),
        PanelRoute("POST", "/account", "viewer", change),
    ]
