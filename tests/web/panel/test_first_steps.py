"""From the set-up link to the first record, in a browser."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.web.panel.browser import PASSWORD, PanelServer

pytestmark = pytest.mark.browser


@pytest.fixture
def fresh(tmp_path):
    server = PanelServer(tmp_path, users=False)
    yield server
    server.close()


def test_from_the_set_up_link_to_the_first_record(browser, fresh):
    link = fresh.said(r"http://\S+/setup#\S+")
    with browser.page(fresh, user=None) as page:
        page.goto(link)
        page.get_by_label("Name").fill("eve")
        page.get_by_label("Password", exact=True).fill(PASSWORD)
        page.get_by_label("Once more").fill(PASSWORD)
        page.get_by_role("button", name="Set up").click()
        page.get_by_role("heading", name="Send the first record").wait_for()
        assert fresh.public_key in page.inner_text("main")
        snippet = page.inner_text("#python")
        program = snippet + "\nassert client.stop(10)"
        subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
        page.wait_for_url("**/explore*")
        page.get_by_text("hello from Python").wait_for()
