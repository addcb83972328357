"""Service: brings the records of one request to the logs of their instances.

Each record is taken or refused by itself. It is answered which are refused and why, when the others
are durable.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from starlette.requests import HTTPConnection, Request

from hyperlog.control import name_fault
from hyperlog.errors import LogQuotaReached, RateExceeded, SinkError, TokenError
from hyperlog.gate import pace_requests
from hyperlog.records import instance_source
from hyperlog.senders import Sender
from hyperlog.tokens import TokenClaims
from hyperlog.web.auth import token_problem
from hyperlog.web.logformat import BadField, Entry
from hyperlog.web.problems import Problem
from hyperlog.web.state import service_of, shared_of

__all__ = ["INSTANCE_HEADER", "MAX_ERRORS", "Delivery", "Parsed", "host_of", "peer_of"]

INSTANCE_HEADER: Final = "X-Hyperlog-Instance"
MAX_INSTANCES: Final = 64  # of one request
MAX_ERRORS: Final = 1000  # refused records that an answer tells of
MISMATCH: Final = "TOKEN_MISMATCH"

Parsed: TypeAlias = Entry | BadField
"""A record that can be taken as far as its form goes, or why it cannot."""


class Delivery:
    """The records of one request, on their way."""

    def __init__(self, request: Request, claims: TokenClaims) -> None:
        self.accepted = 0
        self.errors: list[tuple[int, BadField]] = []
        """refused records by their index"""
        self._request = request
        self._claims = claims
        self._default = _default_instance(request, claims)
        self._instances: dict[str, list[tuple[int, bytes]]] = {}

    async def run(self, entries: Iterable[Parsed]) -> None:
        """Return when all that can be taken is durable.

        Raises:
            Problem: there are too many instances, or no room.
        """
        for index, entry in enumerate(entries):
            refusal = entry if isinstance(entry, BadField) else self._sort(index, entry)
            if refusal is not None:
                self.errors.append((index, refusal))
        if len(self._instances) > MAX_INSTANCES:
            raise Problem(
                400,
                f"a request has records of at most {MAX_INSTANCES} instances",
                field="instance",
                limit=MAX_INSTANCES,
            )
        try:
            await self._pace()
            # One after the other: what was written when another cannot be is told, not guessed.
            for instance, records in self._instances.items():
                await self._take(instance, records)
        except RateExceeded as error:
            raise self._unavailable(error, 429, error.retry_after) from error
        except LogQuotaReached as error:
            raise self._unavailable(error, 507) from error
        except SinkError as error:
            raise self._unavailable(error, 503) from error
        self.errors.sort(key=lambda error: error[0])

    async def _pace(self) -> None:
        """Wait if the token's senders together bring more than one may; what they bring to each
        instance is counted by the intake."""
        messages = [message for records in self._instances.values() for _, message in records]
        limiter, token = shared_of(self._request).limiter, self._claims.jti.encode()
        size = sum(map(len, messages))
        await pace_requests(limiter, token, len(messages), size, time.monotonic())

    def _sort(self, index: int, entry: Entry) -> BadField | None:
        """Put a record to the others of its instance; or why the token does not allow it."""
        if entry.application not in (None, self._claims.application):
            return BadField("application", "the token is for another application")
        instance = entry.instance or self._default
        if not self._claims.allows_instance(instance):
            return BadField("instance", "the token is for other instances")
        self._instances.setdefault(instance, []).append((index, entry.message))
        return None

    async def _take(self, instance: str, records: list[tuple[int, bytes]]) -> None:
        application = self._claims.application
        sender = Sender(
            instance_source(application, instance),
            None,
            application,
            instance,
            "http",
            peer_of(self._request),
            self._claims,
        )
        intake = service_of(self._request).intake
        reasons = await intake.take(sender, [message for _, message in records])
        for (index, _), reason in zip(records, reasons, strict=True):
            if reason is None:
                self.accepted += 1
            else:
                self.errors.append((index, BadField(None, reason)))

    def _unavailable(self, error: SinkError, status: int, retry_after: float = 5.0) -> Problem:
        if isinstance(error, RateExceeded):
            reason = "more is sent than is allowed"
        else:
            reason = "the server cannot write now"
        return Problem(
            status,
            f"{reason}; records with traceSessionId and traceNumber can be sent again without "
            "being doubled",
            code=error.code,
            retry_after=retry_after,
            accepted=self.accepted,
        )

    def answer(self) -> dict[str, Any]:
        errors = []
        for index, error in self.errors[:MAX_ERRORS]:
            told: dict[str, Any] = {"index": index, "reason": str(error)}
            if error.field is not None:
                told["field"] = error.field
            errors.append(told)
        return {"accepted": self.accepted, "refused": len(self.errors), "errors": errors}

    def problem(self) -> Problem:
        """The answer if nothing was taken."""
        answer = self.answer()
        first = self.errors[0][1]
        if all(str(error).startswith("the token is for") for _, error in self.errors):
            problem = token_problem(TokenError(MISMATCH, str(first)))
            problem.members.update(answer)
            return problem
        count = len(self.errors)
        detail = str(first) if count == 1 else f"none of {count} records can be taken: {first}"
        answer.pop("field", None)
        return Problem(400, detail, field=first.field, code="BAD_RECORD", **answer)


def _default_instance(request: Request, claims: TokenClaims) -> str:
    """The instance of records that tell none."""
    given = request.headers.get(INSTANCE_HEADER)
    if given is None:
        pattern = claims.instances
        return pattern if "*" not in pattern and "?" not in pattern else host_of(request)
    try:
        name = given.encode("latin-1").decode()
    except UnicodeDecodeError:
        name = ""
    fault = name_fault(INSTANCE_HEADER, name)
    if fault is not None:
        raise Problem(400, fault, field=INSTANCE_HEADER, limit=64)
    return name


def host_of(request: HTTPConnection) -> str:
    return "unknown" if request.client is None else request.client.host


def peer_of(request: HTTPConnection) -> str:
    return "unknown" if request.client is None else f"{request.client.host}:{request.client.port}"
