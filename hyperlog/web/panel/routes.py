"""The panel's pages and what their scripts ask for: one table, with who may use each."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, TypeAlias
from urllib.parse import parse_qsl

import trio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from hyperlog.errors import ConfigError, HyperlogError, KeyFileError
from hyperlog.users import Login, Role
from hyperlog.web.leaving import while_there
from hyperlog.web.panel.access import (
    Access,
    check_origin,
    clear_cookie,
    is_loopback,
    local_path,
    set_cookie,
    to_login,
)
from hyperlog.web.panel.assets import Assets
from hyperlog.web.panel.rendering import Renderer
from hyperlog.web.panel.searches import Searches
from hyperlog.web.problems import Problem

__all__ = ["Panel", "PanelRoute"]

logger = logging.getLogger("hyperlog.web.panel")

MAX_FORM: Final = 64 * 1024  # bytes
MAX_FORMS: Final = 32  # of strangers, read at a time: a part of all requests that are answered
FORM_TIMEOUT: Final = 10.0  # s for a form as a whole

Endpoint: TypeAlias = Callable[[Request, Login], Awaitable[Response]]
PublicEndpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class PanelRoute:
    """One row of the table."""

    method: Literal["GET", "POST"]
    path: str
    role: Role
    endpoint: Endpoint
    kind: Literal["page", "data"] = "page"
    """who is not logged in is sent from a page to the login page, and refused data"""


@contextmanager
def using_registry() -> Iterator[None]:
    """Tell that users, logins and tokens cannot be read or written now; the log says why.

    Raises:
        Problem: instead of KeyFileError.
    """
    try:
        yield
    except KeyFileError as error:
        logger.error("a request of the panel failed: %s", error)
        raise Problem(
            503,
            "The server cannot use its registry of users and tokens now: another process holds it, "
            "or the disk is full. Try again; the server's own log tells more.",
            retry_after=1,
        ) from None


class Panel:
    """The control panel of one server."""

    def __init__(self, access: Access, searches: Searches) -> None:
        self.access = access
        self.searches = searches
        self.assets = Assets()
        self.renderer = Renderer(self.assets)
        self.table: list[PanelRoute] = []
        """what needs a login; parts of the panel add their rows"""
        self._forms = 0
        """of strangers, that are being read"""

    def routes(self) -> list[BaseRoute]:
        """All routes, for the application that serves them."""
        public: list[tuple[str, str, PublicEndpoint]] = [
            ("GET", "/login", self._login_page),
            ("POST", "/login", self._log_in),
            ("POST", "/logout", self._log_out),
            ("GET", "/setup", self._setup_page),
            ("POST", "/setup", self._set_up),
        ]
        return [
            *(
                Route(path, self._safely(endpoint), methods=[method])
                for method, path, endpoint in public
            ),
            Route("/assets/{name}", self.assets.serve, methods=["GET"]),
            *(
                Route(row.path, self._guarded(row), methods=[row.method], name=row.path)
                for row in self.table
            ),
        ]

    # -- around each request

    def _guarded(self, row: PanelRoute) -> PublicEndpoint:
        async def answer(request: Request) -> Response:
            try:
                with using_registry():
                    login = self.access.require(request, row.role)
            except Problem as problem:
                if row.kind == "page" and row.method == "GET":
                    if problem.status == 401:
                        return to_login(request)
                    if problem.status == 503:
                        return self.problem_page(request, problem, None)
                    login_now = self.access.login_of(request)
                    return self.problem_page(request, problem, login_now)
                raise
            if row.kind == "data":
                return await self._answer(row, request, login)
            try:
                return await self._answer(row, request, login)
            except Problem as problem:
                return self.problem_page(request, problem, login)

        return answer

    @staticmethod
    async def _answer(row: PanelRoute, request: Request, login: Login) -> Response:
        with using_registry():
            if row.method == "GET":
                return await while_there(request, partial(row.endpoint, request, login))
            return await row.endpoint(request, login)

    def _safely(self, endpoint: PublicEndpoint) -> PublicEndpoint:
        async def answer(request: Request) -> Response:
            try:
                check_origin(request)
                with using_registry():
                    return await endpoint(request)
            except Problem as problem:
                return self.problem_page(request, problem, None)

        return answer

    def problem_page(self, request: Request, problem: Problem, login: Login | None) -> Response:
        """A page that says what is wrong and what to do."""
        response = self.renderer.page(
            request, "problem.html", login=login, status=problem.status, problem=problem
        )
        response.headers.update(problem.headers)
        return response

    async def form(self, request: Request) -> dict[str, str]:
        """See `form_of`."""
        return await form_of(request)

    async def _form_of_stranger(self, request: Request) -> dict[str, str]:
        """The same for who is not logged in."""
        if self._forms >= MAX_FORMS:
            raise Problem(503, "too many forms at a time: try again", retry_after=FORM_TIMEOUT)
        self._forms += 1
        try:
            return await form_of(request)
        finally:
            self._forms -= 1

    # -- login, logout, set-up

    async def _login_page(self, request: Request) -> Response:
        target = local_path(request.query_params.get("next", "/"))
        if self.access.login_of(request) is not None:
            return RedirectResponse(target, 303)
        return self._login_form(request, target)

    def _login_form(
        self, request: Request, target: str, *, error: str | None = None, name: str = ""
    ) -> Response:
        return self.renderer.page(
            request,
            "login.html",
            status=200 if error is None else 401,
            target=target,
            error=error,
            name=name,
            needs_setup=self.access.needs_setup,
            unencrypted=not is_loopback(request) and request.url.scheme != "https",
        )

    async def _log_in(self, request: Request) -> Response:
        form = await self._form_of_stranger(request)
        name, target = form.get("name", ""), local_path(form.get("next", "/"))
        id = await self.access.log_in(request, name, form.get("password", ""))
        if id is None:
            error = "Name or password is wrong."
            return self._login_form(request, target, error=error, name=name[:64])
        self._close_old(request)
        response = RedirectResponse(target, 303)
        set_cookie(request, response, id)
        return response

    def _close_old(self, request: Request) -> None:
        """An id from before a login is never used after it."""
        self.access.log_out(request)

    async def _log_out(self, request: Request) -> Response:
        self.access.log_out(request)
        response = RedirectResponse("/login", 303)
        clear_cookie(request, response)
        return response

    async def _setup_page(self, request: Request) -> Response:
        if not self.access.needs_setup:
            return RedirectResponse("/login", 303)
        return self.renderer.page(request, "setup.html", error=None, name="")

    async def _set_up(self, request: Request) -> Response:
        form = await self._form_of_stranger(request)
        name = form.get("name", "")
        try:
            if form.get("password") != form.get("again"):
                raise ConfigError("the two passwords differ")
            id = await self.access.set_up(
                request, form.get("secret", ""), name, form.get("password", "")
            )
        except HyperlogError as error:
            return self.renderer.page(
                request, "setup.html", status=400, error=str(error), name=name[:64]
            )
        response = RedirectResponse("/", 303)
        set_cookie(request, response, id)
        return response


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form of ours, the first of each name.

    Raises:
        Problem: it is none, too large, or came too slowly.
    """
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind != "application/x-www-form-urlencoded":
        raise Problem(415, "a form is sent as application/x-www-form-urlencoded")
    body = bytearray()
    try:
        with trio.fail_after(FORM_TIMEOUT):
            async with aclosing(request.stream()) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > MAX_FORM:
                        raise Problem(413, f"a form has at most {MAX_FORM} bytes", limit=MAX_FORM)
    except trio.TooSlowError:
        raise Problem(408, f"a form has to arrive within {FORM_TIMEOUT:.0f} s") from None
    except ClientDisconnect:
        raise Problem(400, "the form ends too early") from None
    fields: dict[str, str] = {}
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=200)
    except ValueError:
        raise Problem(400, "the form cannot be read") from None
    for name, value in pairs:
        fields.setdefault(name, value)
    return fields
