"""Applications, peers, tokens and the server, with real clients of all kinds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest

from tests.interop.harness import node_modules
from tests.web.panel.browser import PASSWORD, PanelServer
from tests.web.panel.records import post, wait_stored

pytestmark = [pytest.mark.browser, pytest.mark.interop]

PYTHON_CLIENT = """
import sys, time
from hyperlog import Client
client = Client()
client.start(sys.argv[1], bootstrap=[sys.argv[2]], application="cerco", instance="py-1", keys=None,
             spool=None)
client.warning("hello from Python")
assert client.flush(20)
print("sent", flush=True)
sys.stdin.read()
client.stop()
"""
JAVASCRIPT_CLIENT = """
const DHT = require('hyperdht')
const { createTracer } = require('hypertrace')
const { Client } = require('hypertrace-logger')
const [key, host, port] = process.argv.slice(2)
const dht = new DHT({ bootstrap: [{ host, port: Number(port) }] })
const client = new Client()
client.start({ createSocket: () => dht.connect(Buffer.from(key, 'hex')) })
class Swarm { constructor (key, remote) {
  const tracer = createTracer(this, { props: { kind: 'test' } })
  tracer.trace('listen', { publicKey: key })
  tracer.trace('stream-open', { stream: { publicKey: key, remotePublicKey: remote } })
} }
const a = 'aa'.repeat(32); const b = 'bb'.repeat(32)
const swarms = [new Swarm(a, b), new Swarm(b, a)]
setTimeout(() => console.log('sent'), 1500)
process.stdin.on('end', () => process.exit(0)).resume()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("panel")
    (folder / "allowed").write_text("# nobody yet\n")
    options = ["--allow", str(folder / "allowed"), "--learn", "50"]
    server = PanelServer(folder, *options, "--keep-bucket", "midas=7d,2GB")
    yield server
    server.close()


@contextmanager
def running(*command, **options):
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    )
    try:
        assert process.stdout.readline() == "sent\n"
        yield process
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


@pytest.fixture(scope="module")
def clients(server, tmp_path_factory):
    """A Python client, a stock JavaScript client and a sender of requests, all there."""
    host, port = server.bootstrap.split(":")
    script = tmp_path_factory.mktemp("js") / "client.cjs"
    script.write_text(JAVASCRIPT_CLIENT)
    environment = {"NODE_PATH": str(node_modules()), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    python = [sys.executable, "-c", PYTHON_CLIENT, server.public_key, server.bootstrap]
    javascript = ["node", str(script), server.public_key, host, port]
    with running(*python), running(*javascript, env=environment):
        token = server.token("midas")
        post(server, token, [{"level": "INFO", "message": "by request"}], instance="web-1")
        reader = server.token("*", scopes=("read",))
        wait_stored(server, reader, 2, ".id:stream-open")
        wait_stored(server, reader, 1, "bucket:midas kind:log")
        yield server


def test_every_instance_is_listed_whatever_it_came_over(browser, clients):
    with browser.page(clients) as page:
        page.goto("/applications")
        text = page.inner_text("main")
        for part in ("cerco", "py-1", "hyperdht", "midas", "web-1", "http", "default"):
            assert part in text
        assert re.search(r"hyperdht, (direct|lan)", text)
        page.get_by_role("link", name="py-1").click()
        page.wait_for_load_state("networkidle")
        assert page.get_by_label("Query").input_value() == "bucket:cerco instance:py-1"
        page.get_by_text("hello from Python").wait_for()


def test_a_viewer_sees_and_cannot_act(browser, clients):
    with browser.page(clients, user="bob") as page:
        page.goto("/applications")
        assert "py-1" in page.inner_text("main")
        assert page.get_by_role("button", name="Block").count() == 0
        assert page.get_by_role("link", name="Tokens").count() == 0
        answer = page.goto("/tokens")
        assert answer.status == 403


def test_the_graph_of_peers_is_drawn_from_the_traces_of_a_stock_client(browser, clients):
    with browser.page(clients) as page:
        page.goto("/peers?since=all")
        page.locator("[data-list] tbody tr").first.wait_for()
        assert "↔" in page.inner_text("[data-list]") or "→" in page.inner_text("[data-list]")
        assert page.locator(".graph .edge").count() >= 1
        slider = page.locator("[data-slider]")
        slider.focus()
        page.keyboard.press("Home")
        assert page.locator(".graph .edge").count() == 0
        page.get_by_role("button", name="Play").click()
        page.locator(".graph .edge").first.wait_for()
        page.goto("/peers?show=calls&since=all")
        page.get_by_text("Swarm", exact=True).wait_for()


def test_a_blocked_key_is_gone_until_it_is_let_in_again(browser, clients):
    with browser.page(clients) as page:
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto("/applications")
        row = page.locator("tr", has=page.get_by_role("link", name="py-1"))
        row.get_by_role("button", name="Block").click()
        page.get_by_role("heading", name="Blocked keys").wait_for()
        page.goto("/applications")
        page.get_by_role("link", name="py-1").wait_for(state="detached")
        page.get_by_role("button", name="Let it in again").click()
        page.get_by_role("link", name="py-1").wait_for(timeout=40_000)


def test_a_token_is_shown_once_works_and_is_revoked(browser, clients):
    with browser.page(clients) as page:
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto("/tokens")
        page.get_by_label("Application").fill("papi")
        page.get_by_role("button", name="Issue").click()
        token = page.inner_text("#token")
        for name in ("logging.Handler", "JavaScript", "curl"):
            page.get_by_text(name, exact=True).click()
        snippets = page.inner_text(".issued")
        assert snippets.count(token) == 5
        command = page.locator("#snippet-curl").text_content()
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["accepted"] == 1
        page.goto("/tokens")
        assert token not in page.content()
        row = page.locator("tr", has_text="papi")
        row.get_by_role("button", name="Revoke").click()
        page.locator("tr", has_text="papi").get_by_text("revoked").wait_for()
    answer = httpx.post(
        f"{clients.url}/api/v1/logs",
        json={"level": "INFO", "message": "x"},
        headers={"Authorization": f"Bearer {token}"},
    )
    assert answer.status_code == 401
    assert answer.json()["code"] == "TOKEN_REVOKED"


def test_a_token_that_cannot_be_is_told(browser, clients):
    with browser.page(clients) as page:
        page.goto("/tokens")
        page.get_by_label("Application").fill("papi")
        page.get_by_label("Only for the key").fill("abc")
        page.get_by_role("button", name="Issue").click()
        assert "64 hex digits" in page.get_by_role("alert").inner_text()
        assert page.get_by_label("Application").input_value() == "papi"


def test_the_server_tells_how_it_is_and_who_may_come(browser, clients):
    with browser.page(clients) as page:
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto("/server")
        text = page.inner_text("main")
        assert clients.public_key in text
        assert "✓" in text
        assert page.locator(".qr svg").count() == 1
        assert "Learning" in text
        row = page.get_by_role("row", name="midas").inner_text().split("\t")
        assert row[0] == "midas"
        assert int(row[1]) >= 1
        assert re.fullmatch(r"\d+(\.\d)? k?B", row[2])
        assert row[3] == "7 days, 2.1 GB"
        page.get_by_role("button", name="Stop learning").click()
        page.get_by_text("Only the").wait_for()
        key = "cd" * 32
        page.get_by_placeholder("public key, 64 hex digits").fill(key)
        page.get_by_role("button", name="Add", exact=True).click()
        page.get_by_text(key).wait_for()
        assert key in (clients.folder / "allowed").read_text()
        line = page.locator("form", has=page.get_by_text(key))
        line.get_by_role("button", name="Remove").click()
        page.get_by_text(key).wait_for(state="detached")
        assert key not in (clients.folder / "allowed").read_text()
        page.get_by_label("Learn").fill("soon")
        page.get_by_role("button", name="Begin").click()
        assert "neither a number of keys" in page.inner_text("main")
        page.goto("/server")
        page.get_by_role("button", name="Begin").click()
        page.get_by_text("Learning:").wait_for()


def test_what_was_done_is_a_record_like_any_other(browser, clients):
    with browser.page(clients) as page:
        page.goto("/explore?since=all&q=logger%3Ahyperlog.audit")
        page.get_by_text("login", exact=True).first.wait_for()
        page.get_by_text("token issued", exact=True).first.wait_for()
        assert PASSWORD not in page.inner_text("main")
        command = [sys.executable, "-m", "hyperlog", "user", "remove", "bob"]
        subprocess.run([*command, "--data", str(clients.data)], check=True)
        wait_stored(clients, clients.token("*", scopes=("read",)), 1, '"user removed"')
        page.reload()
        page.get_by_text("user removed").first.wait_for()
