"""The description of the HTTP interface, made of its table.

Spec: OpenAPI 3.1.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any, Final

from hyperlog.web.endpoint import Answer, Endpoint

__all__ = ["describe"]

SECURITY: Final = "token"
SUMMARY: Final = """\
Brings log records to a hyperlog server and searches them. All requests but those for health need an
application token, made by `hyperlog token issue`, in a header `Authorization: Bearer`. Each answer
has a header `X-Request-Id`, which the server's log names as well."""
PROBLEM: Final[Mapping[str, Any]] = {
    "type": "object",
    "description": "What is wrong with a request (RFC 9457).",
    "required": ["type", "title", "status", "detail", "requestId"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what to do"},
        "field": {"type": "string", "description": "the field, parameter or header that is wrong"},
        "limit": {"type": "number", "description": "the number that it exceeds"},
        "code": {"type": "string", "description": "names the reason, for programs"},
        "requestId": {"type": "string"},
    },
}


def describe(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """The OpenAPI document of these endpoints."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        methods = paths.setdefault(endpoint.path, {})
        methods[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hyperlog",
            "version": importlib.metadata.version("hyperlog-p2p"),
            "description": SUMMARY,
        },
        "paths": paths,
        "components": {
            "schemas": {"Problem": PROBLEM},
            "securitySchemes": {SECURITY: {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    problem = {"$ref": "#/components/schemas/Problem"}
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "responses": {
            **{str(status): _response(answer) for status, answer in endpoint.answers.items()},
            "default": {
                "description": "The request cannot be answered; the text says why.",
                "content": {endpoint.problem_type: {"schema": problem}},
            },
        },
    }
    parameters = [
        {
            "name": parameter.name,
            "in": "query",
            "description": parameter.text,
            "required": parameter.required,
            "schema": parameter.schema,
        }
        for parameter in endpoint.parameters
    ]
    parameters += [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in endpoint.path_parameters.items()
    ]
    parameters += [
        {"name": name, "in": "header", "required": False, "description": text, "schema": schema}
        for name, (text, schema) in endpoint.headers.items()
    ]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body:
        operation["requestBody"] = {
            "required": True,
            "content": {kind: {"schema": schema} for kind, schema in endpoint.body.items()},
        }
    if endpoint.scope is not None:
        operation["security"] = [{SECURITY: []}]
        operation["x-token-scope"] = endpoint.scope
    return operation


def _response(answer: Answer) -> dict[str, Any]:
    response: dict[str, Any] = {"description": answer.text}
    if answer.schema is not None:
        response["content"] = {answer.content_type: {"schema": answer.schema}}
    return response
