"""What all requests of an application share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import trio
from starlette.requests import HTTPConnection

from hyperlog.limits import Limiter
from hyperlog.web.body import BodyRoom
from hyperlog.web.httpserver import HTTPServer
from hyperlog.web.linecount import LineCounter
from hyperlog.web.recordtexts import RecordTexts
from hyperlog.web.service import Service

__all__ = ["Shared", "service_of", "shared_of"]

MAX_QUESTIONS: Final = 16  # answered at a time


@dataclass(slots=True)
class Shared:
    """Of one application; it is its `state.shared`."""

    service: Service
    limiter: Limiter
    """counts by token"""
    room: BodyRoom = field(default_factory=BodyRoom)
    texts: RecordTexts = field(default_factory=RecordTexts)
    lines: LineCounter = field(default_factory=LineCounter)
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    """by endpoint and status"""
    refusals: Counter[str] = field(default_factory=Counter)
    """requests that had no good token, by code"""
    questions: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(MAX_QUESTIONS)
    )
    server: HTTPServer | None = None
    """what serves it"""


def shared_of(request: HTTPConnection) -> Shared:
    shared: Shared = request.app.state.shared
    return shared


def service_of(request: HTTPConnection) -> Service:
    return shared_of(request).service
