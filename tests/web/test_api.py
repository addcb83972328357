"""Questions over HTTP, to a real server with its embedded store."""

from __future__ import annotations

import json
import time
from datetime import datetime
from urllib.parse import quote

import pytest
import trio

from hyperlog.web import api
from tests.web.site import LOGS, site, until

LEVELS = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


async def fill(here, *, count=50):
    """Records of two applications, held by the store."""
    for application in ("cerco", "midas"):
        async with here.client(here.token(application)) as client:
            records = [
                {
                    "message": f"message {n}",
                    "level": LEVELS[n % 5],
                    "instance": f"i{n % 2}",
                    "attributes": {"user": n % 3},
                }
                for n in range(count)
            ]
            assert (await client.post(LOGS, json=records)).json()["accepted"] == count
    # Who sends is answered before the store is told; each instance has a note as well.
    await until(lambda: here.server.store.statistics().records == 2 * (count + min(count, 2)))
    await until(lambda: not here.server.store.statistics().behind)


async def ask(client, path, **parameters):
    answer = await client.get(f"/api/v1/{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_records_are_found_by_words_level_instance_and_time(tmp_path):
    async with site(tmp_path, store="sqlite") as here:
        await fill(here)
        async with here.client(here.reader()) as client:
            found = await ask(client, "records", q='"message 7"')
            [record] = found["records"]
            assert found["cursor"] is None
            assert (record["bucket"], record["instance"], record["level"]) == (
                "cerco",
                "i1",
                "WARNING",
            )
            assert record["body"]["message"] == record["message"] == "message 7"
            assert datetime.fromisoformat(record["time"]).timestamp() == pytest.approx(
                time.time(), abs=60
            )
            errors = await ask(client, "records", level="error", instance="i0", q="kind:log")
            assert {one["level"] for one in errors["records"]} == {"ERROR", "CRITICAL"}
            assert {one["instance"] for one in errors["records"]} == {"i0"}
            assert (await ask(client, "records", until="1h"))["records"] == []
            assert (await ask(client, "records", since="1h", limit=1))["records"]
            assert await ask(client, f"records/{record['id']}") == record


async def test_a_record_is_found_by_its_id_whatever_its_session_is_called(tmp_path):
    odd = {"message": "odd", "traceSessionId": "../a/b?c#d %2e 100%", "traceNumber": 0}
    async with site(tmp_path, store="sqlite") as here, here.client(here.token()) as client:
        assert (await client.post(LOGS, json=odd)).status_code == 200
        await until(lambda: here.server.store.statistics().records >= 2)  # and a note
        async with here.client(here.reader()) as client:
            [record] = (await ask(client, "records", q="kind:log"))["records"]
            assert await ask(client, f"records/{quote(record['id'], safe='')}") == record


async def test_pages_follow_each_other_without_a_gap(tmp_path):
    async with site(tmp_path, store="sqlite") as here:
        await fill(here)
        async with here.client(here.reader("*")) as client:
            found, cursor = [], {}
            while cursor is not None:
                page = await ask(client, "records", q="kind:log", limit=30, **cursor)
                found += [record["id"] for record in page["records"]]
                cursor = page["cursor"] and {"cursor": page["cursor"]}
            assert len(found) == len(set(found)) == 100
            oldest = await ask(client, "records", q="kind:log", limit=1000, order="oldest")
            assert {record["id"] for record in oldest["records"]} == set(found)
            times = [record["time"] for record in oldest["records"]]
            assert times == sorted(times)


async def test_an_answer_of_large_records_ends_early_and_goes_on_with_its_cursor(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(api, "MAX_PAGE", 10_000)
    monkeypatch.setattr(api, "PART", 7)
    async with site(tmp_path, store="sqlite") as here:
        await fill(here)
        async with here.client(here.reader()) as client:
            first = await ask(client, "records", q="kind:log", limit=1000)
            assert 10_000 < sum(len(str(one["body"])) for one in first["records"]) < 20_000
            rest = await ask(client, "records", q="kind:log", limit=1000, cursor=first["cursor"])
            ids = [one["id"] for one in first["records"] + rest["records"]]
            assert len(ids) == len(set(ids))
            assert len(first["records"]) < 50


async def test_counts_by_time_and_the_most_frequent_values(tmp_path):
    async with site(tmp_path, store="sqlite") as here:
        await fill(here)
        async with here.client(here.reader()) as client:
            histogram = await ask(client, "histogram", q="kind:log", step="1d")
            assert histogram["step"] == 86400
            total = {}
            for one in histogram["bins"]:
                for level, count in one["counts"].items():
                    total[level] = total.get(level, 0) + count
            assert total == dict.fromkeys(LEVELS, 10)
            facets = await ask(client, "facets", field="attributes.user")
            assert facets == {
                "field": "attributes.user",
                "values": [{"value": n, "count": c} for n, c in ((0, 17), (1, 17), (2, 16))],
                "distinct": 3,
                "records": 50,
                "fraction": 1.0,
            }
            events = await client.get(
                "/api/v1/facets?field=attributes.user", headers={"Accept": "text/event-stream"}
            )
            assert events.headers["content-type"].startswith("text/event-stream")
            *_, last, _ = events.text.split("\n\n")
            assert last == "event: result\ndata: " + json.dumps(facets, separators=(",", ":"))


async def test_a_token_sees_its_own_application_alone(tmp_path):
    async with site(tmp_path, store="sqlite") as here:
        await fill(here)
        async with here.client(here.reader("*")) as everybody:
            every = await ask(everybody, "records", limit=1000)
            assert {record["bucket"] for record in every["records"]} == {"cerco", "midas"}
            foreign = next(one for one in every["records"] if one["bucket"] == "midas")
            only = await ask(everybody, "records", bucket="midas")
            assert {record["bucket"] for record in only["records"]} == {"midas"}
            assert set(await ask(everybody, "apps")) == {"cerco", "midas"}
        async with here.client(here.reader()) as client:
            for trick in ({}, {"q": "bucket:midas OR level:error"}, {"q": "-bucket:cerco"}):
                found = await ask(client, "records", limit=1000, **trick)
                assert {record["bucket"] for record in found["records"]} <= {"cerco"}
            values = (await ask(client, "facets", field="bucket"))["values"]
            assert [one["value"] for one in values] == ["cerco"]
            assert set(await ask(client, "apps")) == {"cerco"}
            assert (await client.get(f"/api/v1/records/{foreign['id']}")).status_code == 404
            for path in ("records", "histogram", "facets?field=level", "tail"):
                join = "&" if "?" in path else "?"
                answer = await client.get(f"/api/v1/{path}{join}bucket=midas")
                assert (answer.status_code, answer.json()["code"]) == (403, "TOKEN_MISMATCH")


@pytest.mark.parametrize("path", ["apps", "records", "records/x", "histogram", "facets", "tail"])
async def test_reading_needs_a_token_for_reading(tmp_path, path):
    async with site(tmp_path, store="sqlite") as here:
        query = "?field=level" if path == "facets" else ""
        async with here.client() as client:
            answer = await client.get(f"/api/v1/{path}{query}")
            assert (answer.status_code, answer.json()["code"]) == (401, "TOKEN_REQUIRED")
        async with here.client(here.token()) as client:
            answer = await client.get(f"/api/v1/{path}{query}")
            assert (answer.status_code, answer.json()["code"]) == (403, "TOKEN_MISMATCH")


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("records?q=level%3A%3E", "q"),
        ("records?q=(", "q"),
        ("records?level=loud", "level"),
        ("records?since=yesterdayish", "since"),
        ("records?until=", "until"),
        ("records?limit=0", "limit"),
        ("records?limit=1001", "limit"),
        ("records?limit=ten", "limit"),
        ("records?limit=%D9%A3", "limit"),
        ("records?order=sideways", "order"),
        ("records?cursor=nonsense", None),
        ("records?limit=1&limit=2", "limit"),
        ("records?colour=red", "colour"),
        ("records?instance=", "instance"),
        ("records?bucket=" + "x" * 300, "bucket"),
        ("records?q=" + "x" * 4097, "q"),
        ("histogram?step=1", "step"),
        ("histogram?step=0.5s", "step"),
        ("histogram?step=1000w", "step"),
        ("facets", "field"),
        ("facets?field=", "field"),
        ("facets?field=level&limit=5000", "limit"),
        ("apps?x=1", "x"),
        ("tail?q=)", "q"),
    ],
)
async def test_a_bad_parameter_is_named(tmp_path, path, field):
    async with site(tmp_path, store="sqlite") as here, here.client(here.reader()) as client:
        answer = await client.get(f"/api/v1/{path}")
        assert answer.status_code == 400, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        if field is not None:
            assert problem["field"] == field
        if field == "q" and "4097" not in problem["detail"] and len(path) < 100:
            assert problem["position"] >= 0


async def test_a_server_without_a_store_says_so(tmp_path):
    async with site(tmp_path) as here, here.client(here.reader()) as client:
        answer = await client.get("/api/v1/records")
        assert answer.status_code == 503
        assert "--store" in answer.json()["detail"]


async def test_the_applications_that_run_are_told_as_the_mission_wants_them(tmp_path):
    async with site(tmp_path) as here:
        async with here.client(here.token()) as client:
            await client.post(LOGS, json={"message": "x", "instance": "a2b5"})
        async with here.client(here.reader("*")) as client:
            apps = await ask(client, "apps")
    assert apps["cerco"]["running_instances"] == 1
    entry = apps["cerco"]["instances"]["a2b5"]
    assert entry["socket"].startswith("127.0.0.1:")
    assert entry["connected_at"].endswith("Z")


@pytest.mark.parametrize(
    ("method", "path"),
    [("search", "records"), ("get", "records/x"), ("histogram", "histogram"), ("top", "facets")],
)
async def test_what_nobody_waits_for_is_not_looked_for_any_more(
    tmp_path, monkeypatch, method, path
):
    events = []

    async def forever(*_arguments, **_options):
        events.append("asked")
        try:
            await trio.sleep_forever()
        finally:
            events.append("ended")

    async with site(tmp_path, store="sqlite") as here:
        monkeypatch.setattr(here.server.store, method, forever)
        query = "?field=level" if path == "facets" else ""
        async with await here.stream() as stream:
            await stream.send_all(
                f"GET /api/v1/{path}{query} HTTP/1.1\r\nHost: localhost\r\n"
                f"Authorization: Bearer {here.reader()}\r\n\r\n".encode()
            )
            await until(lambda: events == ["asked"])
        await until(lambda: events == ["asked", "ended"])
