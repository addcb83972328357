"""Who is asking: logins of the control panel, and what each role may do.

A request is let in by a cookie that names a login. Unsafe methods, WebSockets and event streams
also have to come from a page of ours, which the browser tells by Origin and Sec-Fetch-Site. Tokens
of applications open nothing here, and the cookie opens nothing of the API that takes records in.

Spec: OWASP ASVS 5.0 V3 (browser), V6 (authentication), V7 (sessions); docs/security.md has all.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar, TypeVarTuple
from urllib.parse import quote, urlsplit

import trio
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response

from hyperlog.errors import ConfigError
from hyperlog.registry import Registry
from hyperlog.throttle import LoginThrottle
from hyperlog.users import (
    LIFETIME,
    Login,
    Logins,
    Role,
    User,
    Users,
    check_password,
    hash_password,
    password_matches,
)
from hyperlog.web.problems import Problem

__all__ = ["COOKIE", "Access", "Audit"]

logger = logging.getLogger("hyperlog.web.panel")

COOKIE: Final = "hyperlog_login"
SETUP_TIME: Final = 3600.0  # s that a set-up link is good for
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_HASHES: Final = 2  # passwords checked at a time; each takes a core and 64 MiB
MAX_WAITING: Final = 32  # checks that wait for that
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})

A = TypeVarTuple("A")
R = TypeVar("R")

Audit = Callable[[str, dict[str, object]], None]
"""Told what was done and by whom; makes a record of it. Never of secrets."""


@dataclass(frozen=True, slots=True)
class _Setup:
    digest: bytes
    ends_at: float


class Access:
    """Logins of one server. Times are seconds since 1970."""

    def __init__(
        self,
        registry: Registry,
        audit: Audit,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.users = Users(registry)
        self._logins = Logins(registry)
        self._throttle = LoginThrottle()
        self._audit = audit
        self._clock = clock
        self._setup: _Setup | None = None
        self._hashes = trio.CapacityLimiter(MAX_HASHES)
        self._waiting = 0

    # -- the first user ---------------------------------------------------------------------------

    def begin_setup(self) -> str | None:
        """The secret of a new set-up link, good for SETUP_TIME; None if there are users."""
        if len(self.users):
            return None
        secret = secrets.token_urlsafe(32)
        self._setup = _Setup(_digest(secret), self._clock() + SETUP_TIME)
        return secret

    @property
    def needs_setup(self) -> bool:
        """Whether nobody can log in yet."""
        return not len(self.users)

    async def set_up(self, request: Request, secret: str, name: str, password: str) -> str:
        """Make the first admin, who is then logged in; the login's id.

        Raises:
            ConfigError: the secret, name or password will not do; the text says why.
        """
        source = source_of(request)
        setup = self._setup
        wait = self._throttle.refuses(source, "set-up", trio.current_time())
        if wait is not None:
            raise Problem(429, "too many attempts", retry_after=wait)
        good = setup is not None and hmac.compare_digest(setup.digest, _digest(secret))
        if not good or setup is None or self._clock() >= setup.ends_at or not self.needs_setup:
            self._throttle.failed(source, "set-up", trio.current_time())
            raise ConfigError(
                "this link is used, expired or wrong: restart the server for another one, "
                "or run `hyperlog user add NAME --role admin`"
            )
        check_password(password, name)
        stored = await self._in_thread(hash_password, password)
        if self._setup is not setup:
            raise ConfigError("this link was used at the same time by somebody else")
        user = self.users.add(name, "admin", stored, self._clock())
        self._setup = None
        self._audit("user added", {"user": name, "role": "admin", "by": "set-up", "source": source})
        return self._open(user, source)

    # -- logging in and out -----------------------------------------------------------------------

    async def log_in(self, request: Request, name: str, password: str) -> str | None:
        """The id of a new login; None if name or password is wrong.

        Raises:
            Problem: too many attempts; it tells how long to wait.
        """
        source = source_of(request)
        name = name[:64]
        wait = self._throttle.refuses(source, name, trio.current_time())
        if wait is not None:
            raise Problem(
                429,
                f"too many attempts: try again in {wait:.0f} seconds",
                retry_after=wait,
            )
        # Counted before it is known to be wrong: guesses at the same time all count.
        self._throttle.failed(source, name, trio.current_time())
        stored = self.users.stored_password(name)
        matches = await self._in_thread(password_matches, stored, password)
        user = self.users.get(name)
        # It may have been changed while it was being checked.
        if not matches or user is None or self.users.stored_password(name) != stored:
            # A name that nobody has may well be a password that went into the wrong field.
            known = name if user is not None else "nobody's name"
            self._audit("login failed", {"user": known, "source": source})
            return None
        self._throttle.succeeded(source, name)
        self._audit("login", {"user": name, "source": source})
        return self._open(user, source)

    def log_out(self, request: HTTPConnection) -> None:
        """The login that the request comes with is over."""
        id = request.cookies.get(COOKIE)
        if id:
            login = self._logins.find(id, self._clock())
            self._logins.close(id)
            if login is not None:
                self._audit("logout", {"user": login.user.name, "source": source_of(request)})

    def _open(self, user: User, source: str) -> str:
        return self._logins.open(user, source, self._clock())

    async def change_password(self, login: Login, old: str, new: str) -> None:
        """Set the password of who is logged in; all logins of that user are over.

        Raises:
            ConfigError: the old one is wrong or the new one will not do.
        """
        name = login.user.name
        now = trio.current_time()
        if self._throttle.refuses(login.source, name, now) is not None:
            raise ConfigError("too many attempts: try again in a minute")
        self._throttle.failed(login.source, name, now)
        stored = self.users.stored_password(name)
        if not await self._in_thread(password_matches, stored, old):
            raise ConfigError("the present password is another one")
        self._throttle.succeeded(login.source, name)
        check_password(new, name)
        self.users.set_password(name, await self._in_thread(hash_password, new), self._clock())
        self._audit("password changed", {"user": name, "by": name})

    async def hash_new_password(self, password: str, name: str) -> str:
        """What `Users` takes for a new password.

        Raises:
            ConfigError: it will not do.
        """
        check_password(password, name)
        return await self._in_thread(hash_password, password)

    async def _in_thread(self, function: Callable[[*A], R], *arguments: *A) -> R:
        if self._waiting >= MAX_WAITING:
            raise Problem(503, "too many logins at a time: try again", retry_after=5)
        self._waiting += 1
        try:
            return await trio.to_thread.run_sync(function, *arguments, limiter=self._hashes)
        finally:
            self._waiting -= 1

    # -- each request -----------------------------------------------------------------------------

    def login_of(self, request: HTTPConnection) -> Login | None:
        """Who is asking; None if nobody is logged in."""
        id = request.cookies.get(COOKIE)
        return self._logins.find(id, self._clock()) if id else None

    def require(self, request: HTTPConnection, role: Role) -> Login:
        """Who is asking, if that is somebody who may.

        Raises:
            Problem: nobody is logged in, or not with this role, or the request comes from a page of
                another origin.
        """
        check_origin(request)
        login = self.login_of(request)
        if login is None:
            raise Problem(401, "log in first", code="LOGIN_REQUIRED")
        if role == "admin" and login.user.role != "admin":
            raise Problem(403, "only admins may do this", code="ROLE_REQUIRED")
        return login


# -- the browser


def check_origin(request: HTTPConnection) -> None:
    """Make sure that a request that changes or streams something comes from a page of ours.

    Raises:
        Problem: it comes from elsewhere, or does not tell.
    """
    headers = request.headers
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    safe = request.scope["type"] == "http" and request.scope["method"] in SAFE_METHODS
    streamed = "text/event-stream" in headers.get("accept", "")
    if safe and not streamed:
        return
    foreign = origin is not None and _host_of(origin) != headers["host"].lower()
    if foreign or (site is not None and site != "same-origin"):
        raise Problem(403, "this request comes from another site", field="Origin")
    if origin is None and site is None:
        raise Problem(403, "the browser does not tell where this comes from", field="Origin")


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # half an IPv6 address
        return ""


def set_cookie(request: HTTPConnection, response: Response, id: str) -> None:
    """Have the browser keep the id of a login, for this server and no script."""
    response.set_cookie(
        COOKIE,
        id,
        max_age=int(LIFETIME),
        path="/",
        secure=not is_loopback(request),
        httponly=True,
        samesite="strict",
    )


def clear_cookie(request: HTTPConnection, response: Response) -> None:
    response.delete_cookie(
        COOKIE, path="/", secure=not is_loopback(request), httponly=True, samesite="strict"
    )
    response.headers["Clear-Site-Data"] = '"cache"'


def is_loopback(request: HTTPConnection) -> bool:
    """Whether the browser calls this server by a name of its own machine."""
    host = request.headers["host"]
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name.lower() in LOOPBACK


def source_of(request: HTTPConnection) -> str:
    """The address that a request comes from."""
    return request.client.host if request.client is not None else "unknown"


def to_login(request: Request) -> Response:
    """Send a browser to the login page, and back here after that."""
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"/login?next={quote(request.url.path + query, safe='')}", 303)


def local_path(path: str) -> str:
    """`path` if it leads to a page of this server, else that of the panel."""
    # A browser reads \\ as /, and //host as another server.
    fine = path.startswith("/") and path[1:2] not in ("/", "\\") and path.isprintable()
    return path if fine and not urlsplit(path).netloc else "/"


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()
