"""Records for the tests of the panel, sent over HTTP as applications send them."""

from __future__ import annotations

import json
import time

import httpx

HOSTILE = (
    "<script>document.title='pwned'</script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    "\"><svg/onload=alert(1)>'",
    "{{ 7 * 7 }} ${7*7} <%= 7 %>",
    "\u202egnp.exe\u202c \u2066right\u2069 to left",
    "tabs\tand\nnew\r\nlines \x1b[31mred\x1b[0m \x00nul \u2028 separators",
    "</textarea></title></style><iframe src=javascript:alert(1)>",
    "a" * 3000,
    "=HYPERLINK(1)",
)


def post(server, token, records, instance="desk-1"):
    """Have the server write records; returns when they are durable."""
    lines = "\n".join(json.dumps(record) for record in records)
    answer = httpx.post(
        f"{server.url}/api/v1/logs",
        content=lines,
        headers={
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/x-ndjson",
            "X-Hyperlog-Instance": instance,
        },
        timeout=30,
    )
    assert answer.status_code in (200, 207), answer.text
    return answer.json()


def wait_stored(server, read_token, count, query=""):
    """Wait until the store has so many records that match."""
    headers = {"Authorization": f"Bearer {read_token}"}
    for _ in range(1200):
        answer = httpx.get(
            f"{server.url}/api/v1/records",
            params={"limit": count, "q": query},
            headers=headers,
            timeout=30,
        )
        if len(answer.json().get("records", ())) >= count:
            return answer.json()["records"]
        time.sleep(0.025)
    raise AssertionError(f"fewer than {count} records: {answer.text[:300]}")
