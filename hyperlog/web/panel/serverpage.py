"""Server: how it is, what it keeps, what its limits have met, and who may come."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol

import segno
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hyperlog.config import ServerConfig, parse_public_key
from hyperlog.errors import ConfigError
from hyperlog.gate import GateStatistics
from hyperlog.quantities import parse_learning
from hyperlog.store.answers import BucketUse, Store, StoreStatistics
from hyperlog.store.policy import BucketPolicy
from hyperlog.users import Login
from hyperlog.web.panel.access import Audit
from hyperlog.web.panel.explore import answering
from hyperlog.web.panel.routes import Panel, PanelRoute
from hyperlog.web.problems import Problem

__all__ = ["AllowList", "add_server"]

MAX_BUCKETS = 100
MAX_KEYS = 1000


class AllowList(Protocol):
    """The keys that may come; `hyperlog.access.Access` keeps them in a file."""

    @property
    def keys(self) -> int | None: ...
    @property
    def learning(self) -> bool: ...
    def listed(self) -> list[bytes]: ...
    def add(self, key: bytes) -> None: ...
    def remove(self, key: bytes) -> None: ...
    def learn(self, seconds: float | None, count: int | None, now: float) -> None: ...
    def lock(self) -> None: ...


class Statistics(Protocol):
    """What of a server's statistics is shown."""

    announced_to: int
    bootstrap_failing: bool
    gate: GateStatistics
    files: Any


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the server's health."""

    name: str
    good: bool
    text: str


def add_server(
    panel: Panel,
    *,
    config: ServerConfig,
    public_key: bytes,
    statistics: Callable[[], Any],
    store: Store,
    allow_list: AllowList,
    audit: Audit,
) -> None:
    """Add the rows of this page to the panel."""
    qr = segno.make(public_key.hex(), error="m", micro=False).svg_inline(
        scale=4, border=1, omitsize=True
    )
    version = _version()

    def state() -> dict[str, Any]:
        now = statistics()
        return {
            "checks": checks_of(now, store.statistics(), alone=not config.bootstrap),
            "counts": _counts(now),
            "limits": _limits(now.gate, config),
            "files": now.files,
            "store": store.statistics(),
            "config": config,
            "access": now.gate,
        }

    async def page(request: Request, login: Login) -> Response:
        with answering():
            buckets = await store.buckets()
        return panel.renderer.page(
            request,
            "server.html",
            login=login,
            version=version,
            public_key=public_key.hex(),
            qr=qr,
            buckets=[(use, kept_of(use, store.statistics(), config)) for use in buckets],
            shown_buckets=MAX_BUCKETS,
            keys=allow_list.listed()[:MAX_KEYS],
            **state(),
        )

    async def part(request: Request, login: Login) -> Response:
        return panel.renderer.fragment("server_state.html", **state())

    def act(what: str, action: Callable[[dict[str, str]], dict[str, object]]) -> Any:  # noqa: ANN401
        async def endpoint(request: Request, login: Login) -> Response:
            form = await panel.form(request)
            try:
                done = action(form)
            except ConfigError as error:
                raise Problem(400, str(error)) from None
            audit(what, {**done, "by": login.user.name})
            return RedirectResponse("/server", 303)

        return endpoint

    def add(form: dict[str, str]) -> dict[str, object]:
        key = parse_public_key(form.get("key", ""))
        allow_list.add(key)
        return {"key": key.hex()}

    def remove(form: dict[str, str]) -> dict[str, object]:
        key = parse_public_key(form.get("key", ""))
        allow_list.remove(key)
        return {"key": key.hex()}

    def learn(form: dict[str, str]) -> dict[str, object]:
        seconds, count = parse_learning(form.get("for", ""))
        allow_list.learn(seconds, count, time.monotonic())
        return {"for": form.get("for", "")}

    def lock(form: dict[str, str]) -> dict[str, object]:
        allow_list.lock()
        return {}

    panel.table += [
        PanelRoute("GET", "/server", "viewer", page),
        PanelRoute("GET", "/server/state", "viewer", part, "data"),
        PanelRoute("POST", "/server/allow", "admin", act("key allowed", add)),
        PanelRoute("POST", "/server/disallow", "admin", act("key no longer allowed", remove)),
        PanelRoute("POST", "/server/learn", "admin", act("learning began", learn)),
        PanelRoute("POST", "/server/lock", "admin", act("learning ended", lock)),
    ]


def checks_of(now: Statistics, store: StoreStatistics, *, alone: bool) -> list[Check]:
    """The server's health, line by line; `alone` is one with a private network of its own."""
    files = now.files
    network = f"announced to {now.announced_to} DHT nodes"
    if alone:
        network = "private, clients come by this server's own address"
    elif now.bootstrap_failing:
        network = "no bootstrap node answers: check the network, UDP has to pass"
    written = "lines are written" if files.keys_with_room else "the disk is slower than the senders"
    if files.failures:
        written += f"; {files.failures:,} failed attempts, {files.quota_failures:,} for a quota"
    indexed = f"{store.records:,} records"
    if store.behind:
        indexed += f", {store.behind / 1e6:,.1f} MB of log files behind"
    if store.last_error:
        indexed += f"; {store.last_error}"
    return [
        Check("Network", alone or (now.announced_to > 0 and not now.bootstrap_failing), network),
        Check("Log files", files.keys_with_room, written),
        Check(f"Store ({store.kind})", store.last_error is None, indexed),
    ]


def kept_of(use: BucketUse, store: StoreStatistics, config: ServerConfig) -> BucketPolicy:
    """For how long, and how much, the store that answers keeps of a bucket."""
    if store.kind == "mongo":
        return BucketPolicy(keep_age=config.mongo_ttl)
    return config.retention.of(use.bucket)


def _counts(now: Any) -> list[tuple[str, int]]:  # noqa: ANN401 - ServerStatistics
    return [
        ("connections now", now.connections),
        ("connections since the start", now.accepted),
        ("requests", now.requests),
        ("records", now.records),
        ("repeats passed over", now.repeats),
        ("bad messages", now.bad_messages),
        ("refused for want of room", now.refused),
        *((f"refused: {code}", count) for code, count in sorted(now.refusals.items())),
    ]


def _limits(gate: GateStatistics, config: ServerConfig) -> list[tuple[str, str, float]]:
    """Name, its setting, and how often it was reached."""
    found = []
    for field in fields(gate.limits):
        setting = getattr(config.limits, field.name, None)
        shown = "–" if setting is None else f"{setting:,}"
        found.append((field.name.replace("_", " "), shown, getattr(gate.limits, field.name)))
    return found


def _version() -> str:
    try:
        return importlib.metadata.version("hyperlog-p2p")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
