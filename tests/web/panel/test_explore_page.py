"""Explore, as somebody uses it."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest

from tests.web.panel.browser import PanelServer
from tests.web.panel.records import HOSTILE, post, wait_stored

pytestmark = pytest.mark.browser

COUNT = 350


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One that keeps lines long enough for all of HOSTILE and for 10,000 members."""
    server = PanelServer(tmp_path_factory.mktemp("panel"), "--max-line", "1M")
    yield server
    server.close()


@pytest.fixture(scope="module")
def filled(server):
    """Records `step 0` to `step 349` of cerco/desk-1 and some of midas/phone."""
    reader = server.token("*", scopes=("read",))
    levels = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    steps = [
        {
            "level": levels[number % 5],
            "message": f"step {number} of the long way",
            "attributes": {
                "n": number,
                "even": number % 2 == 0,
                "user": {"name": f"u{number % 7}"},
            },
        }
        for number in range(COUNT)
    ]
    for start in range(0, COUNT, 50):
        post(server, server.token("cerco"), steps[start : start + 50])
    others = [
        {"level": "INFO", "message": {"event": "called", "big": 2**70, "deep": {"a": [1, 2]}}}
    ]
    others += [{"level": "ERROR", "message": text} for text in HOSTILE]
    wide = {f"member {number}": number for number in range(10_000)}
    others.append({"level": "INFO", "message": "wide", "attributes": wide})
    others.append({"level": "INFO", "message": "long " + "x" * 40_000})
    post(server, server.token("midas"), others, instance="phone")
    wait_stored(server, reader, COUNT, "bucket:cerco kind:log")
    wait_stored(server, reader, len(others), "bucket:midas kind:log")
    return server


@pytest.fixture
def page(browser, filled):
    with browser.page(filled) as page:
        yield page


def rows(page):
    return page.locator("table.records:not(.inner) > tbody > tr.record")


def messages(page):
    return [text.strip() for text in rows(page).locator(".rest").all_inner_texts()]


def search(page, text):
    page.get_by_label("Query").fill(text)
    page.get_by_role("button", name="Search", exact=True).click()
    page.wait_for_load_state("networkidle")


def test_the_whole_state_is_in_the_address(page):
    page.goto("/explore?since=all")
    search(page, 'level>=error "long way" bucket:cerco')
    address = page.url
    found = messages(page)
    assert len(found) == 100
    assert all(re.search(r"step \d+[34589]? ", text) for text in found)
    page.goto("about:blank")
    page.goto(address)
    assert messages(page) == found
    assert page.get_by_label("Query").input_value() == 'level>=error "long way" bucket:cerco'
    assert page.locator("mark").first.inner_text() in ("long", "way")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("step -long", 0),
        ("attributes.n>=340", 10),
        ("attributes.n<3 OR attributes.n:349", 4),
        ("attributes.even:true attributes.n<10", 5),
        ("(u3 OR u4) attributes.n<14", 4),
        ("bucket:midas level:error", len(HOSTILE)),
        ("message.deep.a:2", 1),
        ("st* attributes.n:7", 1),
    ],
)
def test_what_is_asked_for_is_what_is_shown(page, text, count):
    page.goto("/explore?since=all")
    search(page, text)
    assert rows(page).count() == count
    if not count:
        assert "No record matches" in page.inner_text(".empty")


def test_a_mistake_is_told_under_the_box_with_its_place(page):
    page.goto("/explore")
    search(page, "level:error (timeout")
    alert = page.get_by_role("alert")
    assert "character" in alert.inner_text()
    assert page.get_by_label("Query").get_attribute("aria-invalid") == "true"
    assert page.get_by_label("Query").input_value() == "level:error (timeout"


def test_more_rows_come_by_scrolling_each_of_them_once(page):
    page.goto("/explore?since=all&q=bucket%3Acerco+kind%3Alog")
    assert rows(page).count() == 100
    more, count = True, 0
    while more:
        page.mouse.wheel(0, 20_000)
        rows(page).nth(count).wait_for(state="attached")
        more, count = page.evaluate(
            "[!!document.querySelector('tr.cursor'), document.querySelectorAll('tr.record').length]"
        )
    numbers = [int(re.search(r"step (\d+)", text)[1]) for text in messages(page)]
    assert numbers == list(range(COUNT - 1, -1, -1))


def test_the_histogram_shows_what_is_found_and_a_drag_looks_closer(page):
    page.goto("/explore?since=all&q=bucket%3Acerco+kind%3Alog")
    page.get_by_text(f"{COUNT} records", exact=True).wait_for()
    assert page.locator(".chart-plot rect").count() >= 5
    box = page.locator(".chart-plot svg").bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20, steps=4)
    page.mouse.up()
    page.wait_for_url(re.compile("until="))
    since, until = (int(re.search(rf"{name}=(\d+)", page.url)[1]) for name in ("since", "until"))
    assert 0 < until - since < 120_000
    assert "q=bucket" in page.url


def test_facets_include_and_exclude(page):
    page.goto("/explore?since=all")
    level = page.locator("section[data-facet]", has=page.get_by_role("heading", name="level"))
    level.get_by_role("link", name="Only level ERROR").or_(
        level.get_by_title("Only level ERROR")
    ).first.click()
    page.wait_for_load_state("networkidle")
    assert page.get_by_label("Query").input_value() == "level:error"
    page.get_by_role("link", name="Without bucket midas").click()
    page.wait_for_load_state("networkidle")
    assert page.get_by_label("Query").input_value() == "level:error -bucket:midas"
    assert rows(page).count() == COUNT // 5


def test_a_facet_of_any_field_can_be_added(page):
    page.goto("/explore?since=all&q=bucket%3Acerco")
    page.get_by_placeholder("another field").fill("attributes.user.name")
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_title("Only attributes.user.name u3").click()
    page.wait_for_load_state("networkidle")
    assert page.get_by_label("Query").input_value() == "bucket:cerco attributes.user.name:u3"
    assert rows(page).count() == COUNT // 7


def test_a_record_opens_to_a_tree_whose_values_filter_pin_and_copy(browser, filled):
    with browser.page(filled, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.goto("/explore?since=all&q=attributes.n%3A42")
        rows(page).first.click()
        value = page.locator(".tree .value", has_text="u0")
        value.click()
        page.get_by_role("menuitem", name="Copy").click()
        assert page.evaluate("navigator.clipboard.readText()") == "u0"
        page.get_by_role("button", name="Copy JSON").click()
        record = json.loads(page.evaluate("navigator.clipboard.readText()"))
        assert record["attributes"]["n"] == 42
        value.click()
        page.get_by_role("menuitem", name="Pin as a column").click()
        page.wait_for_url(re.compile("columns="))
        assert page.locator("td.cell").first.inner_text() == "u0"
        page.get_by_role("link", name="Remove the column attributes.user.name").click()
        page.wait_for_load_state("networkidle")
        rows(page).first.click()
        page.locator(".tree .value", has_text="u0").click()
        page.get_by_role("menuitem", name="Without this value").click()
        page.wait_for_load_state("networkidle")
        query = page.get_by_label("Query").input_value()
        assert query == "attributes.n:42 -attributes.user.name:u0"


def test_a_record_has_a_page_of_its_own_with_what_came_around_it(page):
    page.goto("/explore?since=all&q=attributes.n%3A42")
    rows(page).first.click()
    page.get_by_role("button", name="What came around it").click()
    current = page.locator(".inner tr.current")
    current.wait_for()
    around = page.locator(".inner tr.record .rest").all_inner_texts()
    position = next(n for n, text in enumerate(around) if text.strip().startswith("step 42 "))
    assert around[position - 1].strip().startswith("step 41 ")
    assert around[position + 1].strip().startswith("step 43 ")
    page.get_by_role("link", name="Link to this record").click()
    page.wait_for_url("**/record/*")
    assert "step 42" in page.get_by_role("heading", level=1).inner_text()
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    page.locator(".tree").wait_for()


def test_a_record_is_reached_whatever_its_client_has_called_its_session(page, filled):
    """The session's id is a part of the record's, and so of its address."""
    session = "../a/body?b#c %2e 100%"
    record = {"level": "INFO", "message": "odd one", "traceSessionId": session, "traceNumber": 0}
    post(filled, filled.token("odd"), [record])
    wait_stored(filled, filled.token("*", scopes=("read",)), 1, "bucket:odd kind:log")
    page.goto("/explore?since=all&q=odd")
    rows(page).first.click()
    page.locator(".opened .tree").wait_for()
    page.get_by_role("button", name="What came around it").click()
    page.locator(".inner tr.current").wait_for()
    rows(page).first.locator(".when a").click()
    page.get_by_role("heading", level=1, name="odd one").wait_for()
    page.locator(".tree").wait_for()


def test_keys_move_open_and_exclude(page):
    page.goto("/explore?since=all&q=bucket%3Acerco+kind%3Alog")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.textContent").strip().count("step 348") == 1
    page.keyboard.press("Enter")
    page.locator(".opened .tree").wait_for()
    page.keyboard.press("Enter")
    assert page.locator(".opened").count() == 0
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "q"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("dialog#help").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("x")
    page.wait_for_url(re.compile("-message"))
    assert not any("step 349" in text for text in messages(page))
    page.keyboard.press("g")
    page.keyboard.press("l")
    page.wait_for_url("**/live")


def test_a_search_is_kept_for_its_user_under_a_name(browser, filled):
    with browser.page(filled) as page:
        page.goto("/explore?since=7d&q=level%3Aerror")
        page.get_by_role("button", name="Searches").click()
        page.get_by_label("Name", exact=True).fill("my errors")
        page.get_by_role("button", name="Save this search").click()
        page.wait_for_load_state("networkidle")
        page.goto("/explore")
        page.get_by_role("button", name="Searches").click()
        page.get_by_role("link", name="my errors").click()
        page.wait_for_load_state("networkidle")
        assert "q=level%3Aerror" in page.url
        assert "since=7d" in page.url
    with browser.page(filled, user="bob") as page:
        page.goto("/explore")
        page.get_by_role("button", name="Searches").click()
        assert page.get_by_role("link", name="my errors").count() == 0
    with browser.page(filled) as page:
        page.goto("/explore")
        page.get_by_role("button", name="Searches").click()
        page.get_by_role("button", name="Remove my errors").click()
        page.wait_for_load_state("networkidle")
        page.get_by_role("button", name="Searches").click()
        assert "None yet" in page.inner_text("#searches")


def test_the_result_can_be_taken_along(page):
    page.goto("/explore?since=all&q=bucket%3Acerco+kind%3Alog&columns=attributes.n")
    with page.expect_download() as download:
        page.get_by_role("link", name="NDJSON").click()
    with open(download.value.path(), encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    assert [record["attributes"]["n"] for record in records] == list(range(COUNT - 1, -1, -1))
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    with open(download.value.path(), encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["attributes.n"] for row in table] == [str(n) for n in range(COUNT - 1, -1, -1)]
    page.goto("/explore?since=all&q=HYPERLINK")
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    with open(download.value.path(), encoding="utf-8", newline="") as file:
        cells = list(csv.reader(io.StringIO(file.read())))[1]
    assert "'=HYPERLINK(1)" in cells


def test_hostile_texts_are_texts(page):
    page.goto("/explore?since=all&q=bucket%3Amidas")
    rows(page).first.wait_for()
    for number in range(rows(page).count()):
        rows(page).nth(number).click()
    page.wait_for_load_state("networkidle")
    page.goto("/explore?since=all&q=bucket%3Amidas&columns=message,attributes")
    page.wait_for_load_state("networkidle")
    assert page.title() != "pwned"
    assert page.locator("main img, main iframe, main script").count() == 0
    shown = page.inner_text("main")
    assert "<script>document.title='pwned'</script>" in shown
    assert "{{ 7 * 7 }}" in shown
    assert "\u202e" not in shown, "no text turns around what stands beside it"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_an_object_of_ten_thousand_members_opens_bit_by_bit(page):
    page.goto("/explore?since=all&q=bucket%3Amidas+message%3Awide")
    rows(page).first.click()
    page.get_by_role("button", name=re.compile("attributes: ")).click()
    page.get_by_role("button", name=re.compile("more$")).first.click()
    assert 150 < page.locator(".tree li").count() < 400


def test_rows_that_cannot_be_had_are_asked_for_when_somebody_wants_them_again(page):
    asked = []

    def refuse(route):
        asked.append(route.request.url)
        route.fulfill(status=503, json={"detail": "not now"})

    page.route("**/explore/rows*", refuse)
    page.goto("/explore?since=all&q=bucket%3Acerco+kind%3Alog")
    page.locator("[data-more]").scroll_into_view_if_needed()
    again = page.get_by_role("button", name="Try again")
    again.wait_for()
    page.evaluate(
        """new Promise((done) => { let frames = 0; const step = () => {
        frames += 1; if (frames > 20) done(); else requestAnimationFrame(step); }; step(); })"""
    )
    assert len(asked) == 1
    page.unroute("**/explore/rows*")
    shown = rows(page).count()
    again.click()
    rows(page).nth(shown).wait_for()
    assert page.locator("[data-more]").inner_text() == ""


def test_containers_in_containers_open_some_hundreds_at_a_time(page, filled):
    nested = [[[[0] * 20] * 20] * 20]
    post(filled, filled.token("deep"), [{"message": "nested", "attributes": {"a": nested}}])
    wait_stored(filled, filled.token("*", scopes=("read",)), 1, "bucket:deep kind:log")
    page.goto("/explore?since=all&q=bucket%3Adeep+kind%3Alog")
    rows(page).first.click()
    page.get_by_role("button", name="attributes: 1 members").wait_for()
    assert 100 < page.locator(".tree li").count() < 1000
    page.locator(".tree .toggle[aria-expanded=false]").first.click()
    assert page.locator(".tree li").count() < 2000


def test_numbers_keep_all_their_digits(page):
    page.goto("/explore?since=all&q=called")
    rows(page).first.click()
    page.get_by_text(str(2**70)).first.wait_for()


def test_times_are_in_the_zone_of_whoever_looks_with_utc_beside_them(page):
    page.goto("/explore?since=all&q=attributes.n%3A42")
    time = page.locator("tr.record time").first
    utc = time.get_attribute("title")
    hour = int(re.search(r" (\d\d):", utc)[1])
    shown = int(re.search(r"(\d\d):\d\d:\d\d", time.inner_text())[1])
    assert utc.endswith(" UTC")
    assert (shown - hour) % 24 in (1, 2), "Berlin"
