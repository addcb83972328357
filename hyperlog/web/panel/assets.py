"""Scripts and styles, each under a name that changes with its content, so that it can be kept.

They are read once, and compressed once; there are few of them and they are small.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from hyperlog.web.problems import Problem

__all__ = ["Assets"]

TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FOR_EVER: Final = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class _Asset:
    content: bytes
    compressed: bytes
    media_type: str
    path: str


class Assets:
    """The files of the folder `static`. Modules import each other by their plain names, which the
    page's import map leads to the present ones."""

    def __init__(self) -> None:
        self._assets: dict[str, _Asset] = {}
        for file in sorted(resources.files(__package__).joinpath("static").iterdir(), key=str):
            stem, dot, ending = file.name.rpartition(".")
            media_type = TYPES.get(dot + ending)
            if media_type is None:
                continue
            content = file.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:12]
            self._assets[file.name] = _Asset(
                content,
                gzip.compress(content, mtime=0),
                media_type,
                f"/assets/{stem}.{digest}.{ending}",
            )
        self._by_path = {asset.path: asset for asset in self._assets.values()}

    def path(self, name: str) -> str:
        """Where a file of this name is served; KeyError if there is none."""
        return self._assets[name].path

    def modules(self) -> dict[str, str]:
        """The import map of all scripts: `hyperlog/<name>` to where it is served."""
        return {
            f"hyperlog/{name}": asset.path
            for name, asset in self._assets.items()
            if name.endswith(".js")
        }

    async def serve(self, request: Request) -> Response:
        """Answer a request for an asset."""
        asset = self._by_path.get(request.url.path)
        if asset is None:
            raise Problem(404, "there is no such file: reload the page")
        headers = {"Cache-Control": FOR_EVER, "Vary": "Accept-Encoding"}
        content = asset.content
        if "gzip" in request.headers.get("accept-encoding", ""):
            content = asset.compressed
            headers["Content-Encoding"] = "gzip"
        return Response(content, headers=headers, media_type=asset.media_type)
