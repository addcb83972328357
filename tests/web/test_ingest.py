"""Records that come by requests of their own, to a real server on a port."""

from __future__ import annotations

import gzip
import json
import time

import pytest
import trio

from hyperlog.limits import ServerLimits
from hyperlog.records import instance_source
from hyperlog.sinks.folder import FilePolicy
from hyperlog.web.body import MAX_BODY, MAX_MEMBERS
from hyperlog.web.delivery import MAX_INSTANCES
from tests.web.site import LOGS, site

MESSAGE = b'{"message":"x"}'


async def test_a_record_is_in_its_instances_log_file_when_the_answer_comes(tmp_path):
    async with site(tmp_path) as here, here.client(here.token()) as client:
        answer = await client.post(
            LOGS, json={"message": "disk full", "level": "error", "instance": "a2b5"}
        )
        assert answer.status_code == 200
        assert answer.json() == {"accepted": 1, "refused": 0, "errors": []}
        [line] = here.lines()
        assert {name: line[name] for name in ("app", "instance", "level", "message")} == {
            "app": "cerco",
            "instance": "a2b5",
            "level": "ERROR",
            "message": "disk full",
        }
        path = here.folder / f"{instance_source('cerco', 'a2b5').hex()}.log"
        assert path.exists()


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", ""])
async def test_an_array_and_lines_are_taken_alike(tmp_path, kind):
    async with site(tmp_path) as here, here.client(here.token()) as client:
        headers = {"Content-Type": kind} if kind else {}
        for body in (b'[{"message":"0"},{"message":"1"}]', b'{"message":"2"}\n{"message":"3"}\n'):
            answer = await client.post(LOGS, content=body, headers=headers)
            assert answer.json()["accepted"] == 2
        assert [line["message"] for line in here.lines()] == ["0", "1", "2", "3"]


async def test_good_records_are_taken_and_the_bad_ones_named(tmp_path):
    body = (
        b'{"message":"a"}\n{"message":5}\nnonsense\n{"message":"d","level":"LOUD"}\n{"message":"e"}'
    )
    async with site(tmp_path) as here, here.client(here.token()) as client:
        answer = await client.post(LOGS, content=body)
        assert answer.status_code == 207
        told = answer.json()
        assert (told["accepted"], told["refused"]) == (2, 3)
        assert [(one["index"], one.get("field")) for one in told["errors"]] == [
            (1, "message"),
            (2, None),
            (3, "level"),
        ]
        assert [line["message"] for line in here.lines()] == ["a", "e"]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, "body"),
        (b"[]", 400, "body"),
        (b"{", 400, None),
        (b"null", 400, None),
        (b"\xff\xfe", 400, None),
        (b'["x"]', 400, None),
        (b'{"message":5}', 400, "message"),
        (b'{"message":"x","level":"LOUD"}', 400, "level"),
        (b'{"message":"x","instance":"../../etc/passwd\\u0000"}', 400, "instance"),
        (b'{"message":"x","traceNumber":1}', 400, "traceSessionId"),
        (b'{"message":' + b"[" * 10_000, 400, None),
        (b'{"message":{"a":' + b'{"a":' * 200 + b"1" + b"}" * 202, 400, None),
        (b"{}\n" * 10_001, 400, "body"),
        (b'{"message":"' + b"x" * MAX_BODY + b'"}', 413, "body"),
    ],
)
async def test_what_cannot_be_taken_is_explained_and_leaves_nothing(tmp_path, body, status, field):
    async with site(tmp_path) as here, here.client(here.token()) as client:
        before = here.listing()
        answer = await client.post(LOGS, content=body)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["status"] == status
        assert problem["detail"]
        assert problem.get("field") == field
        assert problem["requestId"] == answer.headers["x-request-id"]
        assert here.listing() == before


async def test_a_record_above_the_limit_names_it(tmp_path):
    limits = ServerLimits(max_record=1000)
    async with site(tmp_path, limits=limits) as here, here.client(here.token()) as client:
        answer = await client.post(LOGS, json=[{"message": "x" * 2000}, {"message": "y"}])
        assert answer.status_code == 207
        [error] = answer.json()["errors"]
        assert error["index"] == 0
        assert "1000" in error["reason"]


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"Content-Type": "application/x-protobuf"}, "Content-Type"),
        ({"Content-Encoding": "br"}, "Content-Encoding"),
        ({"Content-Encoding": "gzip, gzip"}, "Content-Encoding"),
    ],
)
async def test_another_type_or_encoding_is_refused(tmp_path, headers, field):
    async with site(tmp_path) as here, here.client(here.token()) as client:
        answer = await client.post(LOGS, content=MESSAGE, headers=headers)
        assert answer.status_code == 415
        assert answer.json()["field"] == field


# -- gzip


async def test_gzip_is_taken_also_in_several_members(tmp_path):
    body = gzip.compress(b'{"message":"a"}\n') + gzip.compress(b'{"message":"b"}\n')
    async with site(tmp_path) as here, here.client(here.token()) as client:
        answer = await client.post(LOGS, content=body, headers={"Content-Encoding": "gzip"})
        assert answer.json()["accepted"] == 2


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (gzip.compress(b'{"message":"' + b"x" * (40 * MAX_BODY) + b'"}'), 413),
        (gzip.compress(b"x" * (MAX_BODY // 2)) * 3, 413),
        (gzip.compress(MESSAGE)[:-9], 400),
        (b"not gzip", 400),
        (gzip.compress(MESSAGE) + b"rest", 400),
        (gzip.compress(b"") * (MAX_MEMBERS + 1), 400),
    ],
    ids=["bomb", "bombs", "torn", "none", "rest", "members"],
)
async def test_bad_gzip_is_refused_and_leaves_nothing(tmp_path, body, status):
    async with site(tmp_path) as here, here.client(here.token()) as client:
        before = here.listing()
        answer = await client.post(LOGS, content=body, headers={"Content-Encoding": "gzip"})
        assert answer.status_code == status
        assert here.listing() == before
        assert here.shared.room.left == 64 * 1024 * 1024


# -- who it is from


async def test_the_instance_is_what_the_record_says_or_the_header_or_the_address(tmp_path):
    async with site(tmp_path) as here, here.client(here.token()) as client:
        await client.post(LOGS, json={"message": "0"})
        await client.post(LOGS, json={"message": "1"}, headers={"X-Hyperlog-Instance": "h"})
        named = [{"message": "2", "instance": "r"}, {"message": "3"}]
        await client.post(LOGS, json=named, headers={"X-Hyperlog-Instance": "h"})
        assert {line["message"]: line["instance"] for line in here.lines()} == {
            "0": "127.0.0.1",
            "1": "h",
            "2": "r",
            "3": "h",
        }


async def test_a_token_for_one_instance_tells_which(tmp_path):
    async with site(tmp_path) as here, here.client(here.token(instances="desk-1")) as client:
        assert (await client.post(LOGS, json={"message": "x"})).status_code == 200
        assert [line["instance"] for line in here.lines()] == ["desk-1"]


@pytest.mark.parametrize("name", ["", "x" * 65, "a\tb", "\xff\xfe"])
async def test_an_unfit_instance_in_the_header_is_refused(tmp_path, name):
    async with site(tmp_path) as here, here.client(here.token()) as client:
        headers = {"X-Hyperlog-Instance": name.encode("latin-1")}
        answer = await client.post(LOGS, content=MESSAGE, headers=headers)
        assert (answer.status_code, answer.json()["field"]) == (400, "X-Hyperlog-Instance")
        assert here.listing() == []


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", ".", "a/b", "C:\\x", "%2e%2e%2f", "~root"]
)
async def test_names_like_paths_stay_in_the_folder(tmp_path, name):
    async with site(tmp_path) as here, here.client(here.token(name)) as client:
        answer = await client.post(LOGS, json={"message": "x", "instance": name})
        assert answer.status_code == 200
        assert [path for path, _ in here.listing()] == [f"{instance_source(name, name).hex()}.log"]
        assert {path.name for path in tmp_path.iterdir()} == {"logs"}


async def test_a_request_has_a_bounded_number_of_instances(tmp_path):
    records = [{"message": "x", "instance": f"i{n}"} for n in range(MAX_INSTANCES + 1)]
    async with site(tmp_path) as here, here.client(here.token()) as client:
        answer = await client.post(LOGS, json=records)
        assert (answer.status_code, answer.json()["limit"]) == (400, MAX_INSTANCES)
        assert here.listing() == []


async def test_the_body_of_lion_handler_is_taken_at_both_paths(tmp_path):
    body = {
        "app_name": "cerco",
        "instance_name": "a2b5",
        "data": {"content": {"free": 0}, "message_level": "CRITICAL"},
        "timestamp": "2021-11-06 10:00:00",
    }
    async with site(tmp_path) as here, here.client(here.token()) as client:
        for path in (LOGS, "/"):
            assert (await client.post(path, json=body)).status_code == 200
        assert [(line["instance"], line["level"], line["message"]) for line in here.lines()] == [
            ("a2b5", "CRITICAL", {"free": 0})
        ] * 2
        other = await client.post("/", json={**body, "app_name": "midas"})
        assert (other.status_code, other.json()["code"]) == (403, "TOKEN_MISMATCH")


# -- exactly once


async def test_numbered_records_are_written_once_however_often_they_come(tmp_path):
    records = [
        {"message": f"{n}", "traceSessionId": "42", "traceNumber": n, "instance": "a"}
        for n in range(3)
    ]
    async with site(tmp_path) as here, here.client(here.token()) as client:
        for _ in range(3):
            answer = await client.post(LOGS, json=records)
            assert answer.json()["accepted"] == 3
        assert [line["message"] for line in here.lines()] == ["0", "1", "2"]
        assert here.server.statistics().repeats == 6


async def test_a_full_quota_is_told(tmp_path):
    files = FilePolicy(quota=1)
    async with site(tmp_path, files=files) as here, here.client(here.token()) as client:
        await client.post(LOGS, content=MESSAGE)
        answer = await client.post(LOGS, content=MESSAGE)
        assert answer.status_code == 507
        assert answer.json()["code"] == "LOG_QUOTA_REACHED"
        assert str(tmp_path) not in answer.text
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_token_that_brings_too_much_is_told_when_to_come_again(tmp_path):
    async with site(tmp_path) as here:
        token, claims = here.server.tokens.issue("cerco", now=time.time())
        limiter, limits = here.shared.limiter, here.server.config.limits
        limiter.spend(claims.jti.encode(), int(20 * limits.records_per_key), 0, time.monotonic())
        async with here.client(token) as client, here.client(here.token()) as other:
            answer = await client.post(LOGS, content=MESSAGE)
            assert (answer.status_code, answer.json()["code"]) == (429, "LIMIT")
            assert 10 <= int(answer.headers["retry-after"]) <= 20
            assert here.listing() == []
            assert (await other.post(LOGS, content=MESSAGE)).status_code == 200


async def test_an_instance_that_brings_too_much_is_told_when_to_come_again(tmp_path):
    async with site(tmp_path) as here, here.client(here.token()) as client:
        limiter, limits = here.server._gate._limiter, here.server.config.limits
        source = instance_source("cerco", "fast")
        limiter.spend(source, int(20 * limits.records_per_key), 0, time.monotonic())
        for instance, status in (("slow", 200), ("fast", 429)):
            record = {"message": "x", "instance": instance}
            answer = await client.post(LOGS, json=record)
            assert answer.status_code == status
        assert (answer.json()["code"], answer.json()["accepted"]) == ("LIMIT", 0)
        assert 10 <= int(answer.headers["retry-after"]) <= 20
        both = [{"message": "y", "instance": instance} for instance in ("slow", "fast")]
        answer = await client.post(LOGS, json=both)
        assert (answer.status_code, answer.json()["accepted"]) == (429, 1)


async def test_many_requests_at_a_time_lose_nothing(tmp_path):
    async with site(tmp_path) as here, here.client(here.token()) as client:

        async def post(n):
            records = [{"message": f"{n}-{m}"} for m in range(20)]
            assert (await client.post(LOGS, json=records)).json()["accepted"] == 20

        async with trio.open_nursery() as nursery:
            for n in range(40):
                nursery.start_soon(post, n)
        messages = [line["message"] for line in here.lines()]
        assert len(messages) == len(set(messages)) == 800


# -- OpenTelemetry


def otlp(*records, service="cerco"):
    attributes = [{"key": "service.name", "value": {"stringValue": service}}]
    return {
        "resource": {"attributes": attributes},
        "scopeLogs": [{"logRecords": list(records)}],
    }


async def test_opentelemetry_logs_and_spans_are_taken(tmp_path):
    async with site(tmp_path) as here, here.client(here.token()) as client:
        body = {
            "resourceLogs": [otlp({"body": {"stringValue": "disk full"}, "severityNumber": 17})]
        }
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        zipped = gzip.compress(json.dumps(body).encode())
        answer = await client.post("/v1/logs", content=zipped, headers=headers)
        assert (answer.status_code, answer.json()) == (200, {})
        spans = {"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "GET /"}]}]}]}
        answer = await client.post("/v1/traces", json=spans)
        assert (answer.status_code, answer.json()) == (200, {})
        assert [(line["level"], line["message"]) for line in here.lines()] == [
            ("ERROR", "disk full"),
            ("INFO", "GET /"),
        ]


async def test_what_opentelemetry_sent_in_vain_is_counted(tmp_path):
    async with site(tmp_path) as here, here.client(here.token()) as client:
        body = {"resourceLogs": [otlp({}, {"timeUnixNano": "x"}), otlp({}, {}, service="midas")]}
        answer = await client.post("/v1/logs", json=body)
        assert answer.status_code == 200
        assert answer.json()["partialSuccess"]["rejectedLogRecords"] == "3"
        nothing = await client.post("/v1/logs", json={"resourceLogs": [otlp({}, service="midas")]})
        assert (nothing.status_code, nothing.json()["code"]) == (403, "TOKEN_MISMATCH")


async def test_opentelemetry_as_protobuf_is_told_what_to_do(tmp_path):
    async with site(tmp_path) as here, here.client(here.token()) as client:
        headers = {"Content-Type": "application/x-protobuf"}
        answer = await client.post("/v1/logs", content=b"\x0a\x00", headers=headers)
        assert answer.status_code == 415
        assert "http/json" in answer.json()["detail"]
