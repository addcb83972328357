"""Applications: every instance that is there now, and what an admin can do about one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hyperlog.config import parse_public_key
from hyperlog.connections import ConnectionManager
from hyperlog.errors import ConfigError
from hyperlog.store.query import Compare
from hyperlog.users import Login
from hyperlog.web.panel.access import Audit
from hyperlog.web.panel.routes import Panel, PanelRoute
from hyperlog.web.panel.view import View
from hyperlog.web.problems import Problem

__all__ = ["Doorkeeper", "add_applications"]

MAX_SHOWN: Final = 1000  # instances on the page


class Doorkeeper(Protocol):
    """What can be done about a peer's key; `hyperlog.gate.Gate` does it."""

    def disconnect(self, key: bytes) -> int:
        """End the open connections of a key; how many there were."""
        ...

    def block(self, key: bytes) -> None:
        """Let a key in no more, until `unblock`; its connections end."""
        ...

    def unblock(self, key: bytes) -> None: ...

    def blocked(self) -> list[bytes]: ...


def add_applications(
    panel: Panel, connections: ConnectionManager, doorkeeper: Doorkeeper, audit: Audit
) -> None:
    """Add the rows of this page to the panel."""

    def listed() -> tuple[list[dict[str, Any]], int]:
        """Applications with their instances, as many as are shown; and how many are left out."""
        room, left_out, found = MAX_SHOWN, 0, []
        for name, application in connections.applications().items():
            instances = [
                {"name": instance, **entry, "records_at": _address(name, instance)}
                for instance, entry in application["instances"].items()
            ]
            left_out += max(0, len(instances) - room)
            found.append(
                {
                    "name": name,
                    "running": application["running_instances"],
                    "instances": instances[:room],
                    "records_at": View(since="all")
                    .with_term(Compare("bucket", "=", name))
                    .address(),
                }
            )
            room -= min(room, len(instances))
        return found, left_out

    async def page(request: Request, login: Login) -> Response:
        applications, left_out = listed()
        return panel.renderer.page(
            request,
            "applications.html",
            login=login,
            applications=applications,
            left_out=left_out,
            blocked=doorkeeper.blocked(),
        )

    async def table(request: Request, login: Login) -> Response:
        applications, left_out = listed()
        return panel.renderer.fragment(
            "applications_table.html", login=login, applications=applications, left_out=left_out
        )

    def act(what: str, action: Callable[[bytes], object]) -> Any:  # noqa: ANN401 - an endpoint
        async def endpoint(request: Request, login: Login) -> Response:
            form = await panel.form(request)
            try:
                key = parse_public_key(form.get("key", ""))
            except ConfigError as error:
                raise Problem(400, str(error), field="key") from None
            try:
                action(key)
            except ConfigError as error:
                raise Problem(400, str(error)) from None
            audit(what, {"key": key.hex(), "by": login.user.name})
            return RedirectResponse("/applications", 303)

        return endpoint

    panel.table += [
        PanelRoute("GET", "/applications", "viewer", page),
        PanelRoute("GET", "/applications/table", "viewer", table, "data"),
        PanelRoute(
            "POST",
            "/applications/disconnect",
            "admin",
            act("key disconnected", doorkeeper.disconnect),
        ),
        PanelRoute("POST", "/applications/block", "admin", act("key blocked", doorkeeper.block)),
        PanelRoute(
            "POST", "/applications/unblock", "admin", act("key unblocked", doorkeeper.unblock)
        ),
    ]


def _address(application: str, instance: str) -> str:
    """Where the records of an instance are."""
    view = View(since="all").with_term(Compare("bucket", "=", application))
    return view.with_term(Compare("instance", "=", instance)).address()
