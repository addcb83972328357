"""Every page, in light, dark and on a phone: no violation of WCAG 2.2 AA, no error, a picture."""

from __future__ import annotations

import pytest

from tests.web.panel.browser import screenshot, violations, wait_filled
from tests.web.panel.records import HOSTILE, post, wait_stored

pytestmark = pytest.mark.browser

PAGES = {
    "explore": "/explore?since=all",
    "explore-query": "/explore?since=all&q=level%3E%3Dwarning+-nothing&columns=attributes.user",
    "explore-mistake": "/explore?q=(level%3Aerror",
    "explore-nothing": "/explore?q=nowhere",
    "live": "/live",
    "applications": "/applications",
    "peers": "/peers?since=all",
    "calls": "/peers?show=calls&since=all",
    "tokens": "/tokens",
    "server": "/server",
    "account": "/account",
    "help": "/help/query",
    "missing": "/record/nothing",
}
LOOKS = [("light", "desk"), ("dark", "desk"), ("light", "phone")]


@pytest.fixture(scope="module")
def filled(server):
    """The server with some records of all kinds in its store."""
    token, reader = server.token(), server.token("*", scopes=("read",))
    levels = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    records = [
        {
            "level": levels[number % 5],
            "message": f"request {number} took {number * 7 % 100} ms",
            "attributes": {"user": f"user-{number % 3}", "ms": number},
        }
        for number in range(150)
    ]
    records += [{"level": "ERROR", "message": text} for text in HOSTILE]
    post(server, token, records)
    wait_stored(server, reader, len(records), "kind:log bucket:cerco")
    return server


@pytest.mark.parametrize(("scheme", "size"), LOOKS)
def test_pages_are_accessible_and_keep_their_place(browser, filled, scheme, size):
    look = "phone" if size == "phone" else scheme
    with browser.page(filled, size=size, scheme=scheme) as page:
        found = {}
        for name, address in PAGES.items():
            page.goto(address)
            if name == "live":
                page.get_by_text("records/s").wait_for()
            else:
                wait_filled(page)
            screenshot(page, f"{name}-{look}")
            found[name] = violations(page)
            # The page does not scroll sideways; wide tables do so in a box of their own.
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                found[name].append("too wide")
            assert page.title() != "pwned"
        assert {name: faults for name, faults in found.items() if faults} == {}


@pytest.mark.parametrize("name", ["login", "setup"])
def test_pages_before_the_login_are_accessible(browser, filled, name):
    with browser.page(filled, user=None) as page:
        page.goto(f"/{name}")
        screenshot(page, name)
        assert violations(page) == []


def test_the_first_view_is_small_and_does_not_shift(browser, filled):
    with browser.page(filled) as page:
        sizes = []
        page.on(
            "response", lambda answer: sizes.append(int(answer.headers.get("content-length", 0)))
        )
        page.add_init_script(
            """window.shift = 0; new PerformanceObserver((list) => { for (const entry of
            list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value; })
            .observe({type: 'layout-shift', buffered: true})"""
        )
        page.goto("/explore?since=all")
        page.wait_for_load_state("networkidle")
        assert sum(sizes) <= 100 * 1024, sizes
        assert page.evaluate("window.shift") < 0.05


def test_of_very_many_peers_those_with_most_connections_are_drawn(browser, filled):
    caller = {"filename": "x", "functionName": "open"}
    records = [
        {
            "id": "stream-open",
            "object": {"id": 1, "className": "Swarm"},
            "caller": {**caller, "props": {"stream": {"publicKey": own, "remotePublicKey": to}}},
        }
        for own, to in [(f"own\n{n % 3}", f"remote {n}") for n in range(900)]
    ]
    post(filled, filled.token("crowd"), records)
    wait_stored(filled, filled.token("*", scopes=("read",)), 900, "bucket:crowd")
    with browser.page(filled) as page:
        page.goto("/peers?since=all&bucket=crowd")
        page.get_by_text("601 peers not drawn").wait_for()
        assert page.locator(".graph .node").count() == 300
        assert page.locator(".graph .edge").count() == 299
