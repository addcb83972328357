from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlog.web.logformat import BadField, Entry
from hyperlog.web.otlp import parse_logs_untrusted, parse_traces_untrusted

NOW = 1_795_178_400.0
RESOURCE = {
    "attributes": [
        {"key": "service.name", "value": {"stringValue": "cerco"}},
        {"key": "service.instance.id", "value": {"stringValue": "a2b5"}},
        {"key": "host.name", "value": {"stringValue": "desk"}},
    ]
}


def logs(*records, resource=RESOURCE, scope=None):
    scoped = {"logRecords": list(records)} | ({} if scope is None else {"scope": scope})
    body = {"resourceLogs": [{"resource": resource, "scopeLogs": [scoped]}]}
    return parse_logs_untrusted(json.dumps(body).encode(), NOW)


def log(**record):
    [entry] = logs(record)
    assert isinstance(entry, Entry)
    return json.loads(entry.message)


def span(**fields):
    body = {"resourceSpans": [{"resource": RESOURCE, "scopeSpans": [{"spans": [fields]}]}]}
    [entry] = parse_traces_untrusted(json.dumps(body).encode(), NOW)
    assert isinstance(entry, Entry)
    return json.loads(entry.message)


def test_the_resource_tells_application_and_instance():
    [entry] = logs({"body": {"stringValue": "x"}})
    assert (entry.application, entry.instance) == ("cerco", "a2b5")


@pytest.mark.parametrize("name", ["unknown_service", "unknown_service:python"])
def test_an_exporter_that_does_not_know_tells_no_application(name):
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": name}}]}
    [entry] = logs({"body": {"stringValue": "x"}}, resource=resource)
    assert (entry.application, entry.instance) == (None, None)


def test_a_log_record_keeps_its_attributes_and_what_belongs_to_it():
    [entry] = logs(
        {
            "timeUnixNano": "1795168800123456789",
            "severityNumber": 17,
            "severityText": "Error",
            "body": {"stringValue": "disk full"},
            "attributes": [
                {"key": "http.status", "value": {"intValue": "507"}},
                {"key": "big", "value": {"intValue": "9223372036854775807"}},
                {"key": "ratio", "value": {"doubleValue": 0.5}},
                {"key": "ok", "value": {"boolValue": False}},
                {"key": "list", "value": {"arrayValue": {"values": [{"intValue": 1}, {}]}}},
                {
                    "key": "map",
                    "value": {"kvlistValue": {"values": [{"key": "k", "value": {"intValue": 2}}]}},
                },
                {"key": "none"},
            ],
            "traceId": "5b8efff798038103d269b633813fc60c",
            "spanId": "eee19b7ec3c1b174",
        },
        scope={"name": "db", "version": "1.2"},
    )
    assert json.loads(entry.message) == {
        "traceTimestamp": "2026-11-20T10:00:00.123Z",
        "level": "ERROR",
        "message": "disk full",
        "logger": "db",
        "attributes": {
            "http.status": 507,
            "big": "9223372036854775807",
            "ratio": 0.5,
            "ok": False,
            "list": [1, None],
            "map": {"k": 2},
            "none": None,
            "otel": {
                "traceId": "5b8efff798038103d269b633813fc60c",
                "spanId": "eee19b7ec3c1b174",
                "severity": "Error",
                "scopeVersion": "1.2",
                "resource": {
                    "service.name": "cerco",
                    "service.instance.id": "a2b5",
                    "host.name": "desk",
                },
            },
        },
    }


@pytest.mark.parametrize(
    ("record", "level"),
    [
        ({}, "INFO"),
        ({"severityNumber": 1}, "DEBUG"),
        ({"severityNumber": 8}, "DEBUG"),
        ({"severityNumber": 9}, "INFO"),
        ({"severityNumber": 16}, "WARNING"),
        ({"severityNumber": 21}, "CRITICAL"),
        ({"severityNumber": 24}, "CRITICAL"),
        ({"severityNumber": 25}, "INFO"),
        ({"severityNumber": "SEVERITY_NUMBER_WARN2"}, "WARNING"),
        ({"severityText": "fatal"}, "CRITICAL"),
    ],
)
def test_severities_become_levels(record, level):
    assert log(**record)["level"] == level


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"body": {"kvlistValue": {"values": [{"key": "a", "value": {"intValue": 1}}]}}}, {"a": 1}),
        ({"body": {"arrayValue": {"values": [{"intValue": 1}]}}}, "[1]"),
        ({"body": {"intValue": 5}}, "5"),
        ({"eventName": "started"}, "started"),
        ({}, ""),
    ],
)
def test_a_body_of_any_kind_becomes_a_message(record, message):
    assert log(**record)["message"] == message


def test_a_span_becomes_a_record_named_like_it():
    assert span(
        traceId="5b8efff798038103d269b633813fc60c",
        spanId="eee19b7ec3c1b174",
        parentSpanId="eee19b7ec3c1b173",
        name="GET /",
        kind=2,
        startTimeUnixNano="1795168800000000000",
        endTimeUnixNano="1795168800250000000",
        attributes=[{"key": "http.method", "value": {"stringValue": "GET"}}],
        events=[{"name": "retry", "timeUnixNano": "1795168800100000000"}],
        status={"code": 2, "message": "refused"},
    ) == {
        "traceTimestamp": "2026-11-20T10:00:00.000Z",
        "level": "ERROR",
        "message": "GET /",
        "attributes": {
            "http.method": "GET",
            "otel": {
                "traceId": "5b8efff798038103d269b633813fc60c",
                "spanId": "eee19b7ec3c1b174",
                "parentSpanId": "eee19b7ec3c1b173",
                "kind": "server",
                "start": "2026-11-20T10:00:00.000Z",
                "end": "2026-11-20T10:00:00.250Z",
                "milliseconds": 250.0,
                "status": "refused",
                "events": [{"name": "retry", "time": "2026-11-20T10:00:00.100Z"}],
                "resource": {
                    "service.name": "cerco",
                    "service.instance.id": "a2b5",
                    "host.name": "desk",
                },
            },
        },
    }


def test_a_record_with_an_impossible_time_is_refused_and_the_next_is_taken():
    first, second = logs({"timeUnixNano": "-5"}, {"body": {"stringValue": "x"}})
    assert isinstance(first, BadField)
    assert first.field == "timeUnixNano"
    assert isinstance(second, Entry)


def test_a_resource_with_an_unfit_name_takes_its_records_with_it():
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "a\nb"}}]}
    [refused] = logs({"body": {"stringValue": "x"}}, resource=resource)
    assert isinstance(refused, BadField)
    assert refused.field == "service.name"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'{"resourceLogs":1}',
        b'{"resourceLogs":[1]}',
        b'{"resourceLogs":[{"resource":{"attributes":[{}]}}]}',
        b'{"resourceLogs":[{"resource":{"attributes":[{"key":"a","value":'
        + b'{"arrayValue":{"values":[' * 5000,
        b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[' + b"{}," * 10_001 + b"{}]}]}]}",
        b"\xff",
    ],
)
def test_a_body_that_is_no_request_is_refused_as_a_whole(data):
    with pytest.raises(BadField):
        parse_logs_untrusted(data, NOW)


VALUE = st.recursive(
    st.fixed_dictionaries({}, optional={"stringValue": st.text(), "intValue": st.integers()})
    | st.fixed_dictionaries({"doubleValue": st.floats(allow_nan=False, allow_infinity=False)})
    | st.fixed_dictionaries({"intValue": st.text()}),
    lambda inner: st.fixed_dictionaries(
        {"arrayValue": st.fixed_dictionaries({"values": st.lists(inner, max_size=3)})}
    ),
    max_leaves=6,
)


@given(VALUE, st.text(), st.integers() | st.text() | st.none())
def test_any_value_comes_out_as_json(value, key, nanoseconds):
    try:
        [entry] = logs(
            {
                "body": value,
                "attributes": [{"key": key, "value": value}],
                "timeUnixNano": nanoseconds,
            }
        )
    except BadField:
        return
    if isinstance(entry, Entry):
        assert isinstance(json.loads(entry.message)["message"], str | dict)


@pytest.mark.parametrize("parse", [parse_logs_untrusted, parse_traces_untrusted])
def test_a_large_resource_of_many_records_is_refused_before_it_fills_the_memory(parse):
    resource = {"attributes": [{"key": "x", "value": {"stringValue": "x" * 400_000}}]}
    scoped = {"logRecords": [{}] * 200, "spans": [{}] * 200}
    part = {"resource": resource, "scopeLogs": [scoped], "scopeSpans": [scoped]}
    body = json.dumps({"resourceLogs": [part], "resourceSpans": [part]}).encode()
    with pytest.raises(BadField, match="several requests"):
        parse(body, NOW)
