"""HTML from templates, under a policy that lets nothing in that is not our own.

Templates escape all that they are given. Values for scripts travel in `data-` attributes or in
`<script type="application/json">`, never in code.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse

from hyperlog.records import iso_time
from hyperlog.store.records import LEVEL_NAMES
from hyperlog.users import Login
from hyperlog.web.panel.assets import Assets

__all__ = ["PAGES", "Renderer"]

PAGES: Final = (
    ("/explore", "Explore", "e"),
    ("/live", "Live", "l"),
    ("/applications", "Applications", "a"),
    ("/peers", "Peers", "p"),
    ("/tokens", "Tokens", "t"),
    ("/server", "Server", "s"),
)
"""path, name, and the letter that goes there after `g`"""

SIZE_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
POLICY: Final = (
    "default-src 'none'; script-src 'self' {import_map}; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


class Renderer:
    """Makes pages; one for a server."""

    def __init__(self, assets: Assets) -> None:
        self._assets = assets
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader(__package__, "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals.update(asset=assets.path, pages=PAGES, level_names=LEVEL_NAMES)
        self._environment.filters.update(
            iso=iso_milliseconds,
            moment=moment,
            size=size_text,
            count=count_text,
            span=span_text,
            level=level_mark,
            segment=segment,
        )
        # An import map is code for the policy: it gets in by its hash.
        self._import_map = Markup(json.dumps({"imports": assets.modules()}).replace("<", "\\u003c"))
        self._policy = POLICY.format(import_map=_source_hash(self._import_map))

    def page(
        self,
        request: Request,
        template: str,
        *,
        login: Login | None = None,
        status: int = 200,
        **values: object,
    ) -> HTMLResponse:
        """A whole page; `login` is who looks at it."""
        text = self._environment.get_template(template).render(
            login=login,
            path=request.url.path,
            import_map=self._import_map,
            now=time.time(),
            **values,
        )
        headers = {
            "Content-Security-Policy": self._policy,
            # With no referrer at all a form of ours would come from the origin `null`.
            "Referrer-Policy": "same-origin",
        }
        return HTMLResponse(text, status, headers)

    def fragment(self, template: str, **values: object) -> HTMLResponse:
        """A part of a page, for a script that puts it there."""
        return HTMLResponse(self.text(template, **values))

    def text(self, template: str, **values: object) -> str:
        """The same as text."""
        return self._environment.get_template(template).render(**values)


def _source_hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


# -- filters


def iso_milliseconds(time_ms: int) -> str:
    """2026-11-20T23:41:09.954Z of milliseconds since 1970."""
    return iso_time(time_ms / 1000)


def segment(text: str) -> str:
    """A text as one part of an address's path, whatever is in it."""
    return quote(text, safe="")


def moment(time_ms: int | None, style: str = "time") -> Markup:
    """A `<time>` in UTC, which the page's script shows in the zone of whoever looks.

    `style` is `time` (with milliseconds), `second`, `date`, or `ago`.
    """
    if time_ms is None:
        return Markup("<span class=none>–</span>")
    text = iso_milliseconds(time_ms)
    shown = text[11:23] if style == "time" else text[:19].replace("T", " ")
    return Markup('<time datetime="{}" data-style="{}" title="{} UTC">{}</time>').format(
        text, style, text[:23].replace("T", " "), shown
    )


def size_text(count: float) -> str:
    """12.3 MB of bytes."""
    unit = 0
    while count >= 1000 and unit < len(SIZE_UNITS) - 1:
        count /= 1000
        unit += 1
    digits = 0 if unit == 0 or count >= 100 else 1
    return f"{count:.{digits}f} {SIZE_UNITS[unit]}"


def count_text(count: int) -> str:
    """1,234,567."""
    return f"{count:,}"


SPANS: Final = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def span_text(seconds: float) -> str:
    """30 days, 12 hours, 90 seconds: in the largest unit of which it is a whole number."""
    length, unit = next(
        (one for one in SPANS if seconds >= one[0] and seconds % one[0] == 0), SPANS[-1]
    )
    return f"{seconds / length:,.0f} {unit}{'' if seconds == length else 's'}"


LEVEL_MARKS: Final[Mapping[int, str]] = {5: "T", 10: "D", 20: "I", 30: "W", 40: "E", 50: "C"}


def level_mark(level: int) -> Markup:
    """A level as a letter in a shape of its own: not by colour alone."""
    name = LEVEL_NAMES.get(level, str(level))
    return Markup('<span class="level level-{}" title="{}">{}</span>').format(
        name.lower(), name, LEVEL_MARKS.get(level, "?")
    )
