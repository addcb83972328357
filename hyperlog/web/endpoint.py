"""What the HTTP interface is made of: endpoints with their parameters and answers.

One table of them makes the routes, checks what comes and describes it (openapi.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from hyperlog.tokens import Scope
from hyperlog.web.problems import PROBLEM_TYPE, Problem

__all__ = ["Answer", "Arguments", "Endpoint", "Handler", "Parameter", "arguments_of"]

Schema: TypeAlias = Mapping[str, Any]
Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
Arguments: TypeAlias = dict[str, Any]

MAX_VALUE: Final = 4096  # characters of a parameter


@dataclass(frozen=True, slots=True)
class Parameter:
    """One of the query's parameters."""

    name: str
    text: str
    """what it means"""
    schema: Schema
    """of its value, as JSON Schema"""
    parse: Callable[[str], Any] = str
    """the value of a text; ValueError if it is none, saying what it should be"""
    default: Any = None
    required: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes back with one status."""

    text: str
    schema: Schema | None = None
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path."""

    method: str
    path: str
    handler: Handler
    summary: str
    answers: Mapping[int, Answer]
    parameters: tuple[Parameter, ...] = ()
    body: Mapping[str, Schema] = field(default_factory=dict)
    """schemas by content type"""
    path_parameters: Mapping[str, Schema] = field(default_factory=dict)
    headers: Mapping[str, tuple[str, Schema]] = field(default_factory=dict)
    """what they mean, and their schemas"""
    problem_type: str = PROBLEM_TYPE
    scope: Scope | None = None
    """that the token needs; None for no token"""

    @property
    def name(self) -> str:
        return self.handler.__name__


def arguments_of(request: HTTPConnection, parameters: tuple[Parameter, ...]) -> Arguments:
    """The values of all parameters.

    Raises:
        Problem: one is unknown, given twice, missing, or has a value that it cannot have.
    """
    known = {parameter.name: parameter for parameter in parameters}
    values: Arguments = {}
    for name, text in request.query_params.multi_items():
        parameter = known.get(name)
        if parameter is None:
            names = ", ".join(known) or "none"
            raise Problem(400, f"unknown parameter; there are: {names}", field=name[:64])
        if name in values:
            raise Problem(400, f"{name} is given twice", field=name)
        if len(text) > MAX_VALUE:
            raise Problem(
                400, f"{name} has more than {MAX_VALUE} characters", field=name, limit=MAX_VALUE
            )
        try:
            values[name] = parameter.parse(text)
        except ValueError as error:
            raise Problem(400, f"{name} {error}", field=name) from None
    for name, parameter in known.items():
        if name not in values:
            if parameter.required:
                raise Problem(400, f"{name} is missing", field=name)
            values[name] = parameter.default
    return values
