"""Login, logout, set-up and roles, through the panel's own routes."""

import sqlite3
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse

from hyperlog.registry import Registry
from hyperlog.users import IDLE_TIME, LIFETIME, hash_password
from hyperlog.web.panel.access import COOKIE, SETUP_TIME, Access, local_path
from hyperlog.web.panel.account import add_account
from hyperlog.web.panel.routes import Panel, PanelRoute
from hyperlog.web.panel.searches import Searches
from hyperlog.web.problems import Problem, problem_response

HOST = "127.0.0.1:8787"
ORIGIN = {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin"}
PASSWORD = "correct horse battery"
STORED = hash_password(PASSWORD)


class Scene:
    def __init__(self, folder):
        self.now = 1_800_000_000.0
        self.audited = []
        self.registry = Registry(folder, patience=0.2)
        self.access = Access(
            self.registry, lambda what, fields: self.audited.append((what, fields)), clock=self.time
        )
        panel = Panel(self.access, Searches(self.registry))
        add_account(panel)

        async def answer(request, login):
            return PlainTextResponse(login.user.name)

        for role in ("viewer", "admin"):
            panel.table.append(PanelRoute("GET", f"/page/{role}", role, answer))
            panel.table.append(PanelRoute("GET", f"/data/{role}", role, answer, "data"))
            panel.table.append(PanelRoute("POST", f"/data/{role}", role, answer, "data"))
        self.app = Starlette(
            routes=panel.routes(),
            exception_handlers={Problem: lambda request, problem: problem_response(problem, "id")},
        )

    def time(self):
        return self.now

    @asynccontextmanager
    async def browser(self, *, host=HOST, source="127.0.0.1"):
        transport = httpx.ASGITransport(app=self.app, client=(source, 5))
        async with httpx.AsyncClient(
            transport=transport, base_url=f"http://{host}", headers=ORIGIN
        ) as client:
            yield client

    def add(self, name, role):
        return self.access.users.add(name, role, STORED, self.now)


@pytest.fixture
def scene(tmp_path):
    scene = Scene(tmp_path)
    scene.add("ada", "admin")
    scene.add("bob", "viewer")
    yield scene
    scene.registry.close()


async def log_in(client, name="ada", password=PASSWORD, **fields):
    return await client.post("/login", data={"name": name, "password": password, **fields})


async def test_a_login_opens_pages_until_the_logout(scene):
    async with scene.browser() as client:
        answer = await client.get("/page/viewer?a=b c")
        assert answer.status_code == 303
        assert answer.headers["location"] == "/login?next=%2Fpage%2Fviewer%3Fa%3Db%2520c"
        assert (await client.get("/data/viewer")).status_code == 401
        answer = await log_in(client, next="/page/viewer")
        assert (answer.status_code, answer.headers["location"]) == (303, "/page/viewer")
        assert (await client.get("/page/viewer")).text == "ada"
        id = client.cookies[COOKIE]
        answer = await client.post("/logout")
        assert COOKIE not in client.cookies
        assert "Clear-Site-Data" in answer.headers
        client.cookies.set(COOKIE, id)
        assert (await client.get("/data/viewer")).status_code == 401, "gone at the server too"
    names = [what for what, _ in scene.audited]
    assert names == ["login", "logout"]
    assert PASSWORD not in str(scene.audited)
    assert id not in str(scene.audited)


async def test_a_registry_that_is_held_by_another_is_told_and_harms_nobody(scene, tmp_path):
    async with scene.browser() as client:
        await log_in(client)
        other = sqlite3.connect(scene.registry.path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        page = await client.get("/page/viewer")
        data = await client.get("/data/viewer")
        login = await log_in(client)
        other.close()
        for answer in (page, data, login):
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert "Try again" in answer.text
            assert str(tmp_path) not in answer.text
        assert (await client.get("/page/viewer")).text == "ada"


async def test_the_cookie_is_for_this_server_alone(scene):
    async with scene.browser() as client:
        cookie = (await log_in(client)).headers["set-cookie"].lower()
        assert {"httponly", "samesite=strict", "path=/"} <= {
            part.strip() for part in cookie.split(";")
        }
        assert "secure" not in cookie, "browsers do not send secure cookies to a plain loopback"
        assert "domain" not in cookie
    async with scene.browser(host="logs.example.org") as client:
        client.headers["Origin"] = "http://logs.example.org"
        assert "secure" in (await log_in(client)).headers["set-cookie"].lower()


async def test_a_login_gets_an_id_of_its_own_whatever_the_browser_brings(scene):
    """Session fixation: an id from before the login is of no use after it."""
    async with scene.browser() as client:
        chosen = "chosen-by-an-attacker"
        answer = await client.post(
            "/login",
            data={"name": "ada", "password": PASSWORD},
            headers={"Cookie": f"{COOKIE}={chosen}"},
        )
        assert chosen not in answer.headers["set-cookie"]
        client.cookies.clear()
        stolen = {"Cookie": f"{COOKIE}={chosen}"}
        assert (await client.get("/data/viewer", headers=stolen)).status_code == 401
    async with scene.browser() as client:
        await log_in(client)
        first = client.cookies[COOKIE]
        await log_in(client)
        assert client.cookies[COOKIE] != first
        client.cookies.clear()
        client.cookies.set(COOKIE, first)
        assert (await client.get("/data/viewer")).status_code == 401


@pytest.mark.parametrize(
    ("name", "password"),
    [("ada", "wrong password"), ("nobody", PASSWORD), ("", ""), ("ada", ""), ("ada\0", PASSWORD)],
)
async def test_a_wrong_password_and_a_wrong_name_get_the_same_answer(scene, name, password):
    async with scene.browser() as client:
        answer = await log_in(client, name, password)
        assert answer.status_code == 401
        assert "Name or password is wrong." in answer.text
        assert COOKIE not in client.cookies
        if password:
            assert password not in answer.text
    event, details = scene.audited[0]
    assert event == "login failed"
    assert details["user"] == (name if name == "ada" else "nobody's name")


async def test_guessing_is_slowed_down_for_a_source_and_for_an_account(scene):
    async with scene.browser() as client:
        for _ in range(10):
            assert (await log_in(client, "ada", "guess")).status_code == 401
        answer = await log_in(client, "ada", PASSWORD)
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 10
        assert (await log_in(client, "bob")).status_code == 429, "the source waits, not the name"
    async with scene.browser(source="10.0.0.9") as client:
        assert (await log_in(client)).status_code == 303


async def test_roles_hold(scene):
    async with scene.browser() as client:
        await log_in(client, "bob")
        assert (await client.get("/data/viewer")).status_code == 200
        assert (await client.get("/data/admin")).status_code == 403
        assert (await client.post("/data/admin")).status_code == 403
        page = await client.get("/page/admin")
        assert (page.status_code, "only admins" in page.text) == (403, True)


FOREIGN = [
    {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "http://evil.example"},
    {"Origin": f"http://{HOST}.evil.example"},
    {"Origin": "http://127.0.0.1:8788", "Sec-Fetch-Site": "same-site"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
async def test_a_page_of_another_origin_changes_nothing(scene, headers):
    async with scene.browser() as client:
        await log_in(client)
        for name in ORIGIN:
            del client.headers[name]
        for path in ("/data/viewer", "/account", "/logout", "/login"):
            answer = await client.post(path, headers=headers, data={"name": "ada"})
            assert answer.status_code == 403, path
        stream = {"Accept": "text/event-stream", **headers}
        assert (await client.get("/data/viewer", headers=stream)).status_code == 403
        assert (await client.get("/data/viewer")).status_code == 200, "still logged in"


async def test_an_origin_that_is_none_is_another_one(scene):
    async with scene.browser() as client:
        answer = await client.post("/login", headers={"Origin": "http://["}, data={"name": "ada"})
        assert answer.status_code == 403


async def test_logins_end_by_themselves(scene):
    async with scene.browser() as client:
        await log_in(client)
        scene.now += IDLE_TIME - 1
        assert (await client.get("/data/viewer")).status_code == 200
        scene.now += IDLE_TIME
        assert (await client.get("/data/viewer")).status_code == 401
        await log_in(client)
        for _ in range(int(LIFETIME / IDLE_TIME) * 2 + 1):
            scene.now += IDLE_TIME / 2
            last = await client.get("/data/viewer")
        assert last.status_code == 401


async def test_a_changed_password_ends_every_login(scene):
    new = "another horse entirely"
    async with scene.browser() as first, scene.browser() as second:
        await log_in(first)
        await log_in(second)
        wrong = {"old": "guess", "password": new, "again": new}
        assert "present password" in (await first.post("/account", data=wrong)).text
        differ = {"old": PASSWORD, "password": new, "again": "x"}
        assert "differ" in (await first.post("/account", data=differ)).text
        weak = {"old": PASSWORD, "password": "short", "again": "short"}
        assert "10 to 256" in (await first.post("/account", data=weak)).text
        right = {"old": PASSWORD, "password": new, "again": new}
        assert (await first.post("/account", data=right)).status_code == 303
        for client in (first, second):
            assert (await client.get("/data/viewer")).status_code == 401
        assert (await log_in(first)).status_code == 401
        assert (await log_in(first, password=new)).status_code == 303


@pytest.mark.parametrize(
    ("given", "local"),
    [
        ("/explore?q=a", "/explore?q=a"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example/", "/"),
        ("javascript:alert(1)", "/"),
        ("/\r\nSet-Cookie: a=b", "/"),
        ("", "/"),
    ],
)
async def test_after_the_login_one_stays_here(scene, given, local):
    assert local_path(given) == local
    async with scene.browser() as client:
        assert (await log_in(client, next=given)).headers["location"] == local


# -- set-up


@pytest.fixture
def fresh(tmp_path):
    scene = Scene(tmp_path / "fresh")
    yield scene
    scene.registry.close()


async def set_up(client, secret, **fields):
    form = {"secret": secret, "name": "eve", "password": PASSWORD, "again": PASSWORD, **fields}
    return await client.post("/setup", data=form)


async def test_the_first_admin_comes_by_the_link_and_the_link_works_once(fresh):
    secret = fresh.access.begin_setup()
    async with fresh.browser() as client:
        assert "set-up link" in (await client.get("/login")).text
        assert (await set_up(client, secret + "x")).status_code == 400
        assert "differ" in (await set_up(client, secret, again="x")).text
        assert "10 to 256" in (await set_up(client, secret, password="x", again="x")).text
        assert "letters" in (await set_up(client, secret, name="../x")).text
        assert (await set_up(client, secret)).status_code == 303
        assert (await client.get("/data/admin")).text == "eve"
        assert (await client.get("/setup")).headers["location"] == "/login"
        assert (await set_up(client, secret, name="mallory")).status_code == 400
    assert [user.name for user in fresh.access.users.list()] == ["eve"]
    assert secret not in str(fresh.audited)
    assert fresh.access.begin_setup() is None


async def test_a_set_up_link_expires(fresh):
    secret = fresh.access.begin_setup()
    fresh.now += SETUP_TIME
    async with fresh.browser() as client:
        assert "expired" in (await set_up(client, secret)).text
    assert fresh.access.needs_setup


async def test_there_is_no_default_password(fresh):
    async with fresh.browser() as client:
        for name in ("admin", "root", "hyperlog"):
            for password in ("", "admin", "password", "hyperlog"):
                assert (await log_in(client, name, password)).status_code in (401, 429)


async def test_pages_bring_a_policy_without_inline_code(scene):
    async with scene.browser() as client:
        answer = await client.get("/login")
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert " style=" not in answer.text
        assert " onclick" not in answer.text


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data; boundary=x", b"--x--", 415),
        ("application/x-www-form-urlencoded", b"x" * 70_000, 413),
        ("application/x-www-form-urlencoded", b"a=1&" * 300, 400),
        ("application/x-www-form-urlencoded", b"\xff=\xff", 400),
    ],
)
# httpx leaves its own generator behind when an application answers early.
@pytest.mark.filterwarnings("ignore:Async generator 'httpx", "ignore:Exception ignored in")
async def test_a_form_is_a_form(scene, content_type, body, status):
    async with scene.browser() as client:
        answer = await client.post("/login", content=body, headers={"Content-Type": content_type})
        assert answer.status_code == status


async def test_assets_are_kept_for_ever_and_compressed(scene):
    async with scene.browser() as client:
        page = await client.get("/login")
        path = page.text.split('rel="stylesheet" href="')[1].split('"')[0]
        answer = await client.get(path)
        assert answer.headers["content-encoding"] == "gzip"
        assert "immutable" in answer.headers["cache-control"]
        assert answer.text.startswith("/*")
        for wrong in ("/assets/panel.css", "/assets/..%2faccess.py", "/assets/x"):
            assert (await client.get(wrong)).status_code == 404
