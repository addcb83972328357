"""Tokens: issue one and see it once, with what to paste where; revoke."""

from __future__ import annotations

import time
from typing import Final, cast

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hyperlog.config import parse_public_key
from hyperlog.errors import ConfigError
from hyperlog.quantities import parse_duration
from hyperlog.tokens import Scope, TokenAuthority
from hyperlog.users import Login
from hyperlog.web.panel.access import Audit
from hyperlog.web.panel.routes import Panel, PanelRoute

__all__ = ["add_tokens"]

LIFETIMES: Final = (
    ("30d", "30 days"),
    ("90d", "90 days"),
    ("365d", "a year"),
    ("never", "never"),
)
NO_FIELDS: Final = {"application": "", "instances": "*", "scope": "ingest", "expires": "365d"}


def add_tokens(panel: Panel, tokens: TokenAuthority, audit: Audit, public_key: bytes) -> None:
    """Add the rows of this page to the panel."""

    def shown(
        request: Request,
        login: Login,
        *,
        issued: dict[str, object] | None = None,
        error: str | None = None,
        fields: dict[str, str] | None = None,
    ) -> Response:
        now = time.time()
        return panel.renderer.page(
            request,
            "tokens.html",
            login=login,
            status=400 if error else 200,
            tokens=[(token, token.state(now)) for token in tokens.list()],
            issued=issued,
            error=error,
            fields={**NO_FIELDS, "key": "", **(fields or {})},
            lifetimes=LIFETIMES,
        )

    async def page(request: Request, login: Login) -> Response:
        return shown(request, login)

    async def issue(request: Request, login: Login) -> Response:
        form = await panel.form(request)
        try:
            expires = form.get("expires", "365d")
            token, claims = tokens.issue(
                form.get("application", "").strip(),
                now=time.time(),
                instances=form.get("instances", "*").strip(),
                scopes=cast("list[Scope]", form.get("scope", "ingest").split()),
                key=parse_public_key(form["key"]) if form.get("key") else None,
                lifetime=None if expires == "never" else parse_duration(expires),
            )
        except ConfigError as error:
            return shown(request, login, error=str(error), fields=form)
        audit(
            "token issued",
            {"jti": claims.jti, "application": claims.application, "by": login.user.name},
        )
        issued = {
            "token": token,
            "claims": claims,
            "origin": f"{request.url.scheme}://{request.headers['host']}",
            "public_key": public_key.hex(),
        }
        return shown(request, login, issued=issued)

    async def revoke(request: Request, login: Login) -> Response:
        form = await panel.form(request)
        jti = form.get("jti", "")
        if tokens.revoke(jti, time.time()):
            audit("token revoked", {"jti": jti, "by": login.user.name})
        return RedirectResponse("/tokens", 303)

    panel.table += [
        PanelRoute("GET", "/tokens", "admin", page),
        PanelRoute("POST", "/tokens", "admin", issue),
        PanelRoute("POST", "/tokens/revoke", "admin", revoke),
    ]
