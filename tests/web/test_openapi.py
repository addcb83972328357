"""The description is served, and holds for what a real server answers to whatever is asked."""

from __future__ import annotations

import os
from functools import partial

import pytest
import schemathesis
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from hyperlog.web.app import ENDPOINTS
from tests.web.site import site

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = 200 if os.environ.get("HYPERLOG_LONG") else 15


async def test_the_description_tells_of_every_endpoint(tmp_path):
    async with site(tmp_path) as here, here.client() as client:
        answer = await client.get("/api/v1/openapi.json")
        assert answer.status_code == 200
        document = answer.json()
    told = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    assert told == {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}
    names = [
        operation["operationId"]
        for methods in document["paths"].values()
        for operation in methods.values()
    ]
    assert len(names) == len(set(names))
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


def ask(operation, headers):
    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=st.one_of(*(operation.as_strategy(mode) for mode in GenerationMode)))
    def ask_once(case):
        answer = case.call(headers=headers, timeout=20)
        case.validate_response(answer, checks=CHECKS)

    ask_once()


def check(document, url, tokens):
    """Ask every endpoint for all kinds of things, good and bad, and compare with what it says."""
    schema = schemathesis.openapi.from_dict(document)
    schema.config.base_url = url
    asked = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path == "/api/v1/tail":
            continue  # its answer has no end
        scope = operation.definition.raw.get("x-token-scope", "read")
        ask(operation, {"Authorization": f"Bearer {tokens[scope]}"})
        asked.add(operation.path)
    return asked


@pytest.mark.slow
# The server runs in this process and rolls dice of its own while hypothesis draws its data.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
async def test_answers_are_as_described_whatever_is_asked(tmp_path):
    async with site(tmp_path, store="sqlite") as here, here.client() as client:
        document = (await client.get("/api/v1/openapi.json")).json()
        tokens = {"ingest": here.token(), "read": here.reader("*")}
        with trio.fail_after(110):
            asked = await trio.to_thread.run_sync(partial(check, document, here.url, tokens))
        assert len(asked) >= 12
