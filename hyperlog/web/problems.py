"""Errors as programs and people can read them: `application/problem+json`.

Spec: RFC 9457.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.responses import Response

__all__ = ["PROBLEM_TYPE", "Problem", "problem_response"]

PROBLEM_TYPE: Final = "application/problem+json"

_encode = msgspec.json.Encoder().encode


class Problem(Exception):
    """Ends a request with an answer that says what is wrong with it."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        field: str | None = None,
        limit: int | float | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
        **members: Any,  # noqa: ANN401 - JSON
    ) -> None:
        """`detail` says what to do; `field` names what is wrong, in the body, the query or the
        headers; `limit` is the number that it exceeds; `code` is for programs; `retry_after` is in
        seconds. `members` go along as they are."""
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.members: dict[str, Any] = dict(members)
        for name, value in (("field", field), ("limit", limit), ("code", code)):
            if value is not None:
                self.members[name] = value
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))


def problem_response(problem: Problem, request_id: str) -> Response:
    """The answer to the request of this id."""
    content = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        **problem.members,
        "requestId": request_id,
    }
    return Response(_encode(content), problem.status, problem.headers, PROBLEM_TYPE)
