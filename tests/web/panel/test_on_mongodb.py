"""The panel when MongoDB answers: the same pages, the same records."""

from __future__ import annotations

import pytest

from tests.web.panel.browser import PanelServer
from tests.web.panel.records import post, wait_stored

pytestmark = [pytest.mark.browser, pytest.mark.mongod]


def test_explore_peers_and_export_are_the_same_on_mongodb(browser, mongod, tmp_path):
    uri = mongod.uri("panel_test")
    server = PanelServer(tmp_path, "--store", "mongo", "--mongo", uri)
    try:
        records = [
            {"level": ("INFO", "ERROR")[n % 2], "message": f"step {n}", "attributes": {"n": n}}
            for n in range(150)
        ]
        post(server, server.token(), records)
        wait_stored(server, server.token("*", scopes=("read",)), 150, "bucket:cerco kind:log")
        with browser.page(server) as page:
            page.goto("/explore?since=all&q=bucket%3Acerco+level%3Aerror+step")
            rows = page.locator("table.records > tbody > tr.record")
            assert rows.count() == 75
            page.get_by_text("75 records", exact=True).wait_for()
            page.get_by_title("Only instance desk-1").wait_for()
            rows.first.click()
            page.locator(".opened .tree").wait_for()
            page.goto("/explore?since=all&q=attributes.n%3E%3D140+attributes.n%3C145")
            assert rows.count() == 5
            with page.expect_download() as download:
                page.get_by_role("link", name="NDJSON").click()
            with open(download.value.path(), encoding="utf-8") as file:
                assert len(file.readlines()) == 5
            page.goto("/server")
            page.get_by_text("Store (mongo)").wait_for()
    finally:
        server.close()
