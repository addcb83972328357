"""Live, as somebody watches it."""

from __future__ import annotations

import re
import threading
import time

import pytest

from tests.web.panel.browser import PanelServer
from tests.web.panel.records import post

pytestmark = pytest.mark.browser


def rows(page):
    return page.locator("table.records > tbody > tr.record")


@pytest.fixture
def live(browser, server):
    with browser.page(server) as page:
        page.goto("/live?q=kind%3Alog+-bucket%3A%22hyperlog+server%22")
        page.get_by_text("live", exact=True).wait_for()
        yield page


def say(server, *messages, level="INFO", application="cerco"):
    post(server, server.token(application), [{"level": level, "message": m} for m in messages])


def test_records_come_in_above_as_they_are_written(live, server):
    say(server, "one")
    live.get_by_text("one", exact=True).wait_for()
    say(server, "two", "three")
    live.get_by_text("three", exact=True).wait_for()
    shown = [text.strip() for text in rows(live).locator(".rest").all_inner_texts()]
    assert shown[:2] == ["three", "two"]
    rows(live).first.click()
    live.locator(".opened .tree").wait_for()


def test_only_what_matches_is_shown(browser, server):
    with browser.page(server) as page:
        page.goto("/live?q=level%3E%3Dwarning+bucket%3Amidas")
        page.get_by_text("live", exact=True).wait_for()
        say(server, "not of midas", level="ERROR")
        say(server, "not so bad", application="midas")
        say(server, "bad enough", level="ERROR", application="midas")
        page.get_by_text("bad enough").wait_for()
        assert rows(page).count() == 1


def test_a_pause_holds_back_and_lets_go(live, server):
    live.keyboard.press(".")
    live.get_by_text("paused", exact=False).first.wait_for()
    say(server, "while paused")
    live.get_by_text(re.compile(r"paused, [1-9]\d* waiting")).wait_for()
    assert live.get_by_text("while paused").count() == 0
    live.get_by_role("button", name="Go on").click()
    live.get_by_text("while paused").wait_for()


def test_scrolling_down_pauses_and_coming_back_goes_on(live, server):
    say(server, *[f"filler {number}" for number in range(80)])
    live.get_by_text("filler 79").wait_for()
    live.mouse.wheel(0, 600)
    live.get_by_text("paused", exact=False).first.wait_for()
    live.mouse.wheel(0, -2000)
    live.get_by_text("live", exact=True).wait_for()


def test_two_thousand_records_a_second_do_not_freeze_the_page(live, server):
    """The page goes on to answer, says how many there are, and counts what it could not show."""
    token, stop, sent = server.token("cerco"), threading.Event(), []

    def flood():
        while not stop.is_set():
            began_at = time.monotonic()
            post(server, token, [{"level": "INFO", "message": f"flood {n}"} for n in range(500)])
            sent.append(500)
            stop.wait(max(0, 0.25 - (time.monotonic() - began_at)))

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        live.get_by_text("flood 499").first.wait_for()
        answers = []
        for _ in range(20):
            began_at = time.monotonic()
            # Two frames: what the page needs to answer a key.
            live.evaluate("() => new Promise(r => requestAnimationFrame(() => setTimeout(r)))")
            answers.append(time.monotonic() - began_at)
            live.wait_for_timeout(200)
        rate = live.inner_text("[data-rate]")
        hidden = live.inner_text("[data-hidden]")
    finally:
        stop.set()
        thread.join()
    print(f"{sum(sent)} records, answers in up to {max(answers) * 1000:.0f} ms, {rate}, {hidden}")
    assert sorted(answers)[len(answers) // 2] < 0.3
    assert float(re.sub(r"[^\d.]", "", rate.split()[0])) > 500
    assert int(re.sub(r"\D", "", hidden)) > 1000
    assert rows(live).count() <= 500


def test_whoever_is_logged_out_is_told(browser, server):
    with browser.page(server, user="bob", anew=True) as page:
        page.goto("/live")
        page.get_by_text("live", exact=True).wait_for()
        other = page.context.new_page()
        other.goto("/help/query")
        other.get_by_role("button", name="Log out").click()
        other.wait_for_url("**/login")
        page.get_by_role("link", name="log in again").wait_for()


def test_the_page_tells_how_long_it_was_away_and_where_the_records_are(browser, tmp_path):
    server = PanelServer(tmp_path)
    try:
        with browser.page(server) as page:
            page.goto("/live?q=bucket%3Acerco")
            page.get_by_text("live", exact=True).wait_for()
            say(server, "before")
            page.get_by_text("before", exact=True).wait_for()
            server.restart()
            page.get_by_text("Not connected for").wait_for()
            say(server, "after")
            page.get_by_text("after", exact=True).wait_for()
            page.locator(".missed").get_by_role("link", name="Explore").click()
            page.wait_for_url("**/explore?*")
            assert "q=bucket%3Acerco" in page.url
            assert re.search(r"since=\d{13}&until=\d{13}", page.url)
            page.problems[:] = [one for one in page.problems if "net::ERR_" not in one]
    finally:
        server.close()
