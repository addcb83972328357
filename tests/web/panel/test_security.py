"""Every route for everybody: nobody, a viewer, an admin, tokens, pages of other origins."""

from __future__ import annotations

import http.server
import threading

import httpx
import pytest

from hyperlog.access import AccessPolicy
from hyperlog.config import ServerConfig
from hyperlog.connections import ConnectionManager
from hyperlog.gate import Gate
from hyperlog.limits import ServerLimits
from hyperlog.registry import Registry
from hyperlog.tail import Tail
from hyperlog.tokens import TokenAuthority
from hyperlog.users import Users
from hyperlog.web.panel.assembly import create_panel
from tests.web.panel.browser import PASSWORD, log_in
from tests.web.panel.records import post, wait_stored

PUBLIC = {("GET", "/login"), ("POST", "/login"), ("POST", "/logout"), ("GET", "/setup")}
PUBLIC |= {("POST", "/setup"), ("GET", "/assets/{name}")}
VIEWER = {
    ("GET", "/"),
    ("GET", "/explore"),
    ("GET", "/explore/rows"),
    ("GET", "/explore/histogram"),
    ("GET", "/explore/facet"),
    ("GET", "/explore/refine"),
    ("POST", "/searches"),
    ("POST", "/searches/remove"),
    ("GET", "/record/{id:path}"),
    ("GET", "/record/{id:path}/body"),
    ("GET", "/record/{id:path}/around"),
    ("GET", "/export"),
    ("GET", "/live"),
    ("GET", "/live/events"),
    ("GET", "/applications"),
    ("GET", "/applications/table"),
    ("GET", "/peers"),
    ("GET", "/peers/peers"),
    ("GET", "/peers/calls"),
    ("GET", "/server"),
    ("GET", "/server/state"),
    ("GET", "/account"),
    ("POST", "/account"),
    ("GET", "/help/query"),
}
ADMIN = {
    ("POST", "/applications/disconnect"),
    ("POST", "/applications/block"),
    ("POST", "/applications/unblock"),
    ("GET", "/tokens"),
    ("POST", "/tokens"),
    ("POST", "/tokens/revoke"),
    ("POST", "/server/allow"),
    ("POST", "/server/disallow"),
    ("POST", "/server/learn"),
    ("POST", "/server/lock"),
}
STREAM = {"Accept": "text/event-stream"}


def test_the_tables_of_this_test_name_every_route_and_its_role(tmp_path):
    registry = Registry(tmp_path)
    panel = create_panel(
        config=ServerConfig.checked(folder=tmp_path),
        public_key=b"k" * 32,
        bootstrap=[],
        registry=registry,
        gate=Gate(AccessPolicy(), ServerLimits()),
        connections=ConnectionManager(),
        tokens=TokenAuthority(tmp_path),
        store=None,  # nothing is asked of it
        tail=Tail("server"),
        statistics=lambda: None,
        audit=lambda what, fields: None,
    )
    expected = {route: "viewer" for route in VIEWER} | {route: "admin" for route in ADMIN}
    assert {(row.method, row.path): row.role for row in panel.table} == expected
    served = {(next(iter(r.methods - {"HEAD"})), r.path) for r in panel.routes()}
    assert served == PUBLIC | VIEWER | ADMIN
    registry.close()


@pytest.fixture(scope="module")
def record_id(server):
    post(server, server.token(), [{"level": "INFO", "message": "one"}])
    reader = server.token("*", scopes=("read",))
    return wait_stored(server, reader, 1, "kind:log bucket:cerco")[0]["id"]


class Visitor:
    """Asks as a browser would, with a page of the panel's own behind each request."""

    def __init__(self, server, user=None, **headers):
        self._origin = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
        self.client = httpx.Client(base_url=server.url, headers={**self._origin, **headers})
        if user is not None:
            form = {"name": user, "password": PASSWORD}
            assert self.client.post("/login", data=form).status_code == 303

    def status(self, method, path, record_id):
        path = path.replace("{id:path}", record_id)
        if path == "/live/events":
            with self.client.stream("GET", path, headers=STREAM) as answer:
                return answer.status_code
        if method == "POST":
            return self.client.post(path, data={"x": "y"}).status_code
        return self.client.get(path).status_code


@pytest.fixture
def visit(server):
    """Makes visitors of the server, and closes them."""
    visitors = []

    def make(*arguments, **options):
        visitors.append(Visitor(server, *arguments, **options))
        return visitors[-1]

    yield make
    for visitor in visitors:
        visitor.client.close()


def test_each_route_opens_for_its_roles_alone(visit, record_id):
    nobody, viewer, admin = visit(), visit("bob"), visit("ada")
    found = {}
    for method, path in sorted(VIEWER | ADMIN):
        if (method, path) == ("POST", "/account"):
            continue  # would only tell that the password is wrong
        found[method, path] = tuple(
            visitor.status(method, path, record_id) for visitor in (nobody, viewer, admin)
        )
    for (method, path), (without, as_viewer, as_admin) in found.items():
        assert without in (303, 401), (method, path)
        if (method, path) in ADMIN:
            assert as_viewer == 403, (method, path)
        else:
            assert as_viewer not in (401, 403), (method, path)
        assert as_admin not in (401, 403), (method, path)
        assert max(as_viewer, as_admin) < 500, (method, path)


def test_a_token_of_an_application_opens_nothing_of_the_panel(server, visit, record_id):
    for scopes in (("ingest",), ("read",), ("ingest", "read")):
        token = server.token("cerco", scopes=scopes)
        visitor = visit(Authorization=f"Bearer {token}")
        for method, path in sorted(VIEWER | ADMIN):
            assert visitor.status(method, path, record_id) in (303, 401), (method, path)
        cookie = visit(Cookie=f"hyperlog_login={token}")
        assert cookie.status("GET", "/explore/rows", record_id) == 401
        assert visitor.client.post(
            "/login", data={"name": "cerco", "password": token}
        ).status_code in (401, 429)


def test_the_login_of_the_panel_brings_no_records_and_reads_nothing_of_the_api(visit):
    admin = visit("ada")
    record = {"level": "INFO", "message": "from a login"}
    for path in ("/api/v1/logs", "/v1/logs", "/v1/traces"):
        assert admin.client.post(path, json=record).status_code == 401, path
    for path in ("/api/v1/records", "/api/v1/apps", "/api/v1/tail", "/api/v1/facets?field=level"):
        assert admin.client.get(path).status_code == 401, path


def test_a_foreign_name_reaches_nothing(server):
    """DNS rebinding: a page whose name leads here."""
    for host in ("evil.example", "127.0.0.1.evil.example", ""):
        answer = httpx.get(f"{server.url}/login", headers={"Host": host})
        assert answer.status_code in (400, 421), host


EVIL = b"""<!doctype html><title>evil</title>
<form id=f method=post action="%b/tokens"><input name=application value=stolen></form>
<form id=l method=post action="%b/logout"></form>
<iframe id=i src="%b/explore"></iframe>"""


@pytest.fixture
def evil(server):
    """A page of another origin, on this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            url = server.url.encode()
            self.wfile.write(EVIL.replace(b"%b", url))

        def log_message(self, *arguments):
            pass

    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=site.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{site.server_port}/"
    site.shutdown()
    thread.join()
    site.server_close()


@pytest.mark.browser
def test_a_page_of_another_origin_can_do_nothing_with_the_login(browser, server, evil):
    with browser.page(server) as page:
        other = page.context.new_page()
        other.goto(evil)
        # It can send a form here; nothing comes of it, and it is not told more than that.
        other.evaluate("document.getElementById('f').submit()")
        other.wait_for_url(f"{server.url}/tokens")
        assert "stolen" not in other.inner_text("body")
        other.goto(evil)
        other.evaluate("document.getElementById('l').submit()")
        other.wait_for_url(f"{server.url}/logout")
        page.goto("/tokens")
        assert page.get_by_role("heading", name="Tokens").count() == 1, "still logged in"
        assert "stolen" not in page.inner_text("main")
        other.goto(evil)
        frame = other.frames[-1]
        assert "Explore" not in frame.content()
        read = other.evaluate(
            f"fetch('{server.url}/explore/rows', {{credentials: 'include'}})"
            ".then(answer => answer.text(), error => 'no')"
        )
        assert read == "no"
        streamed = other.evaluate(
            f"""new Promise((done) => {{
              const s = new EventSource('{server.url}/live/events', {{withCredentials: true}});
              s.onopen = () => done('open'); s.onerror = () => done('no'); }})"""
        )
        assert streamed == "no"


@pytest.mark.browser
def test_a_login_that_was_stolen_before_the_logout_is_of_no_use_after_it(browser, server):
    with browser.page(server, anew=True) as page:
        cookies = page.context.cookies()
        [cookie] = [one for one in cookies if one["name"] == "hyperlog_login"]
        assert cookie["httpOnly"]
        assert cookie["sameSite"] == "Strict"
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url("**/login")
        page.context.add_cookies([cookie])
        page.goto("/explore")
        assert "/login" in page.url


@pytest.mark.browser
def test_who_is_removed_or_gets_a_new_password_is_out_at_once(browser, server):
    registry = Registry(server.data)
    users = Users(registry)
    try:
        users.add("eve", "admin", users.stored_password("ada"), 0)
        with browser.page(server, user="eve") as page:
            users.remove("eve")
            page.goto("/explore")
            assert "/login" in page.url
        users.add("eve", "viewer", users.stored_password("ada"), 0)
        with browser.page(server, user="eve") as page:
            users.set_password("eve", users.stored_password("ada"), 0)
            page.goto("/explore")
            assert "/login" in page.url
            log_in(page, "eve")
        users.remove("eve")
    finally:
        registry.close()
