"""A real browser on a real server: what the tests of the control panel use."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from hyperlog.registry import Registry
from hyperlog.tokens import TokenAuthority
from hyperlog.users import Users, hash_password

ROOT = Path(__file__).parents[3]
AXE = ROOT / "tests" / "interop" / "node_modules" / "axe-core" / "axe.min.js"
SCREENSHOTS = Path(os.environ.get("HYPERLOG_SCREENSHOTS", ROOT / ".venv" / "screenshots"))
PASSWORD = "correct horse battery"
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
SIZES = {"desk": (1280, 860), "phone": (390, 844)}


def browser_command() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


def why_no_browser() -> str | None:
    """The reason why no browser can be driven here, None if one can."""
    if browser_command() is None:
        return "no chromium is installed (bin/test installs it on Debian)"
    return None


class PanelServer:
    """`hyperlog serve` as a process of its own, with its panel, in `folder`."""

    def __init__(self, folder: Path, *options: str, users: bool = True):
        self.folder = folder
        self.logs = folder / "logs"
        self.data = folder / "data"
        if users:
            registry = Registry(self.data)
            stored = hash_password(PASSWORD)
            Users(registry).add("ada", "admin", stored, time.time())
            Users(registry).add("bob", "viewer", stored, time.time())
            registry.close()
        words = ["serve", "--local", "--json", "--host", "127.0.0.1"]
        places = {"--folder": self.logs, "--data": self.data, "--keys": folder / "keys.dat"}
        words += [str(word) for place in places.items() for word in place]
        self._words = [*words, *options]
        self.cookies: dict[str, list] = {}
        """of those who have logged in, by their name"""
        self._start("127.0.0.1:0")

    def _start(self, http: str):
        with open(self.folder / "stderr", "wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hyperlog", *self._words, "--http", http],
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=ROOT,
            )
        started = json.loads(self._first_line(60))
        self.url = started["http"]
        self.public_key = started["publicKey"]
        self.bootstrap = f"{started['host']}:{started['port']}"

    def restart(self):
        """The same at the same place."""
        self.close()
        self._start(self.url.removeprefix("http://"))

    def _first_line(self, timeout):
        lines = queue.SimpleQueue()
        threading.Thread(
            target=lambda: lines.put(self.process.stdout.readline()), daemon=True
        ).start()
        line = lines.get(timeout=timeout)
        assert line, self.said(timeout=0)
        return line

    def said(self, pattern: str = "", timeout: float = 30) -> str:
        """What the server has told the operator: the first match, as soon as there is one."""
        deadline = time.monotonic() + timeout
        while True:
            text = (self.folder / "stderr").read_text()
            found = re.search(pattern, text)
            if found or time.monotonic() > deadline:
                assert found, text
                return found[0]
            time.sleep(0.02)

    def token(self, application="cerco", *, scopes=("ingest",), **options) -> str:
        authority = TokenAuthority(self.data)
        try:
            return authority.issue(application, now=time.time(), scopes=scopes, **options)[0]
        finally:
            authority.close()

    def close(self):
        self.process.terminate()
        self.process.wait(20)
        self.process.stdout.close()


class Browser:
    """A running browser; `page` opens a page in a profile of its own."""

    def __init__(self, playwright):
        self._browser = playwright.chromium.launch(
            executable_path=browser_command(), args=["--no-sandbox"]
        )

    @contextmanager
    def page(self, server, *, user="ada", size="desk", scheme="light", anew=False, **options):
        """A page, logged in, `anew` or as before; at its end, no error of its scripts and no report
        of its policy may have come."""
        width, height = SIZES[size]
        context = self._browser.new_context(
            base_url=server.url,
            color_scheme=scheme,
            viewport={"width": width, "height": height},
            timezone_id="Europe/Berlin",
            locale="en-GB",
            **options,
        )
        try:
            page = context.new_page()
            page.set_default_timeout(30_000)
            page.problems = []
            page.on("pageerror", lambda error: page.problems.append(str(error)))
            page.on("console", lambda message: _keep(page.problems, message))
            # Nothing is asked of any other host.
            page.on("request", lambda request: _check_host(page.problems, server, request.url))
            if user in server.cookies and not anew:
                context.add_cookies(server.cookies[user])
            elif user is not None:
                log_in(page, user)
                if not anew:
                    server.cookies[user] = context.cookies()
            yield page
            assert page.problems == []
        finally:
            context.close()

    def close(self):
        self._browser.close()


def _keep(problems, message):
    if message.type == "error" and "the server responded with a status of" not in message.text:
        problems.append(message.text)


def _check_host(problems, server, url):
    if not url.startswith((server.url, "data:", "blob:")):
        problems.append(f"asks {url}")


def log_in(page: Page, user: str = "ada", path: str = "/help/query") -> None:
    page.goto(f"/login?next={path}")
    page.get_by_label("Name").fill(user)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"**{path}")


def wait_filled(page: Page) -> None:
    """Wait until a page has all that its script asks for."""
    page.locator("[data-histogram]:empty").first.wait_for(state="detached")
    page.get_by_text("…", exact=True).first.wait_for(state="detached")


def violations(page: Page) -> list[str]:
    """What axe finds against WCAG 2.2 AA, one line each."""
    page.evaluate(AXE.read_text())
    found = page.evaluate(
        "(tags) => axe.run(document, {runOnly: {type: 'tag', values: tags}})", TAGS
    )
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


def screenshot(page: Page, name: str) -> None:
    """Keep a picture as an artefact of the test run."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


@contextmanager
def open_browser():
    with sync_playwright() as playwright:
        browser = Browser(playwright)
        try:
            yield browser
        finally:
            browser.close()
