"""Makes the pictures of docs/panel.md: `python -m tests.web.panel.pictures docs/images`.

A shop has been logging for a day: some 20,000 records of four services, with an hour in which its
payments went wrong, peers that came and went, and clients that are connected now.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

from hyperlog import Client
from hyperlog.records import instance_source, iso_time
from tests.web.panel.browser import PASSWORD, PanelServer, open_browser
from tests.web.panel.records import post, wait_stored

COUNT = 20_000
DAY = 86_400  # s
SERVICES = {
    "shop": ("web-1", "web-2", "web-3"),
    "payments": ("pay-1", "pay-2"),
    "search": ("idx-1", "idx-2"),
    "mailer": ("mail-1",),
}
CALLS = (
    ("shop", "Router", "Basket", ("add", "remove", "total", "total")),
    ("shop", "Router", "Catalogue", ("find", "find", "find", "page")),
    ("shop", "Basket", "PriceList", ("price", "discount")),
    ("payments", "Checkout", "Gateway", ("charge", "charge", "refund")),
    ("payments", "Gateway", "Connection", ("open", "send", "close")),
    ("search", "Indexer", "Shard", ("put", "merge")),
)
PEOPLE = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi")
SHOWN = {
    "explore": "/explore?q=order+-level%3Adebug&columns=attributes.ms",
    "live": "/live?q=kind%3Alog+%28bucket%3Ashop+OR+bucket%3Apayments%29",
    "applications": "/applications",
    "peers": "/peers",
    "calls": "/peers?show=calls&since=1h",
    "tokens": "/tokens",
    "server": "/server",
    "help": "/help/query",
}


def entry(rng: random.Random, bad: bool) -> tuple[str, dict[str, object]]:
    """A service, and what it says."""
    ms = int(rng.lognormvariate(3.2, 0.7))
    order, user = rng.randrange(70_000, 79_999), rng.choice(PEOPLE)
    chance = rng.random()
    if bad and chance < 0.5:
        return "payments", {
            "level": rng.choice(("ERROR", "ERROR", "ERROR", "CRITICAL")),
            "logger": "payments.gateway",
            "message": f"charge of order {order} failed: connection to acquirer timed out",
            "attributes": {"order": order, "user": user, "ms": 30_000 + ms, "attempt": 3},
        }
    texts = (
        ("shop", "INFO", f"GET /items/{order % 900} 200"),
        ("shop", "INFO", f"{user} put item {order % 900} into the basket"),
        ("shop", "INFO", f"order {order} placed by {user}"),
        ("payments", "INFO", f"order {order} charged, {order % 9000 / 100:.2f} EUR"),
        ("search", "DEBUG", f"segment {order % 97} merged, {ms * 31} documents"),
        ("search", "INFO", f"query 'blue chair' found {order % 70} items"),
        ("mailer", "INFO", f"confirmation of order {order} sent to {user}@example.com"),
        ("shop", "WARNING", f"session of {user} was not found: logged out"),
        ("mailer", "WARNING", "mailbox of the receiver is full, will try again in 15 min"),
        ("payments", "ERROR", f"order {order}: card declined"),
    )
    weights = (30, 16, 9, 9, 14, 12, 8, 3, 1, 1)
    name, level, message = rng.choices(texts, weights)[0]
    attributes = {"order": order, "user": user, "ms": ms}
    return name, {
        "level": level,
        "logger": f"{name}.main",
        "message": message,
        "attributes": attributes,
    }


class Logs:
    """Log files as a server has written them."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._lines: dict[bytes, list[str]] = {}
        self._numbers: dict[bytes, int] = {}

    def add(self, at, source, tags, line):
        number = self._numbers[source] = self._numbers.get(source, -1) + 1
        begin = {"time": iso_time(at), **tags, "traceTimestamp": iso_time(at - 0.02)}
        begin |= {"traceSessionId": str(7_000_000 + source[0]), "traceNumber": number}
        self._lines.setdefault(source, []).append(json.dumps(begin | line))

    def write(self):
        self._folder.mkdir(parents=True)
        for source, lines in self._lines.items():
            path = self._folder / f"{source.hex()}.log"
            path.write_text("\n".join(lines) + "\n")


def write_logs(folder: Path, now: float) -> None:
    rng, logs = random.Random(7), Logs(folder)
    for position in range(COUNT):
        at = now - DAY + position / COUNT * DAY
        if rng.random() > 0.55 + 0.4 * math.sin(position / COUNT * 2 * math.pi - 2.2):
            continue
        bad = 0.62 < position / COUNT < 0.66
        name, line = entry(rng, bad)
        instance = rng.choice(SERVICES[name])
        tags = {"app": name, "instance": instance}
        logs.add(at, instance_source(name, instance), tags, line)
        if rng.random() < 0.3:
            name, parent, called, functions = rng.choice(CALLS)
            instance = SERVICES[name][0]
            trace = {
                "id": None,
                "object": {"id": position, "className": called, "props": None},
                "parentObject": {"id": 1, "className": parent, "props": None},
                "caller": {
                    "filename": f"/srv/{name}/main.js",
                    "functionName": rng.choice(functions),
                },
            }
            tags = {"app": name, "instance": instance}
            logs.add(at + 0.001, instance_source(name, instance), tags, trace)
    write_peers(rng, logs, now - 7200)
    logs.write()


def write_peers(rng: random.Random, logs: Logs, at: float) -> None:
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in PEOPLE}

    def event(name, id, props):
        source = hashlib.sha256(b"key of " + name.encode()).digest()
        caller = {"filename": "/app/swarm.js", "functionName": "onconnection", "props": props}
        line = {"id": id, "object": {"id": 1, "className": "Swarm", "props": None}}
        logs.add(at, source, {"userId": f"{name}___{source.hex()[:8]}"}, line | {"caller": caller})

    opened = []
    for name in PEOPLE:
        event(name, "listen", {"publicKey": keys[name]})
        at += 5
    for _ in range(60):
        at += rng.uniform(20, 120)
        if len(opened) > 11:
            pair = opened.pop(rng.randrange(len(opened)))
            id = "stream-close"
        else:
            pair, id = tuple(rng.sample(PEOPLE, 2)), "stream-open"
            if pair in opened or pair[::-1] in opened:
                continue
            opened.append(pair)
        for own, remote in (pair, pair[::-1]):
            stream = {"publicKey": keys[own], "remotePublicKey": keys[remote]}
            event(own, id, {"stream": stream})


def main(target: Path) -> None:
    now = time.time()
    with tempfile.TemporaryDirectory() as name, open_browser() as browser:
        folder = Path(name)
        write_logs(folder / "logs", now)
        server = PanelServer(folder)
        clients: dict[tuple[str, str], Client] = {}
        over = threading.Event()

        def keep_sending():
            rng = random.Random(9)
            token = {name: server.token(name) for name in SERVICES}
            while not over.is_set():
                service, line = entry(rng, False)
                instance = rng.choice(SERVICES[service])
                client = clients.get((service, instance))
                if client is None:
                    post(server, token[service], [line], instance)
                else:
                    client.info(line["message"], order=line["attributes"]["order"])
                over.wait(0.12)

        sender = threading.Thread(target=keep_sending)
        try:
            reader = server.token("*", scopes=("read",), instances="*")
            wait_stored(server, reader, 1000)
            for service, instance in (
                ("shop", "web-1"),
                ("payments", "pay-1"),
                ("search", "idx-1"),
            ):
                client = Client()
                options = {"application": service, "instance": instance}
                client.start(
                    server.public_key,
                    bootstrap=[server.bootstrap],
                    keys=None,
                    spool=None,
                    **options,
                )
                client.info(f"{instance} is up")
                assert client.flush(20)
                clients[service, instance] = client
            sender.start()
            take(browser, server, target)
        finally:
            over.set()
            sender.join()
            for client in clients.values():
                client.stop()
            server.close()


def take(browser, server, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with browser.page(server) as page:
        page.set_viewport_size({"width": 1180, "height": 720})
        for name, address in SHOWN.items():
            page.goto(address)
            if name == "live":
                page.locator("tr.record").nth(18).wait_for(state="attached")
            else:
                page.wait_for_load_state("networkidle")
            if name == "explore":
                page.locator("tr.record").nth(4).click()
                page.locator(".opened .tree").wait_for()
            if name == "server":  # where it happens to run says nothing
                page.evaluate(
                    "document.querySelectorAll('.key .hint .data').forEach((one, index) => {"
                    "one.textContent = ['/srv/hyperlog/logs', '/srv/hyperlog/data'][index] })"
                )
            page.mouse.move(0, 0)
            page.screenshot(path=target / f"{name}.png")
    with browser.page(server, user=None) as page:
        page.set_viewport_size({"width": 720, "height": 420})
        page.goto("/login")
        page.get_by_label("Name").fill("ada")
        page.get_by_label("Password").fill(PASSWORD)
        page.screenshot(path=target / "login.png")
    with browser.page(server, size="phone", scheme="dark") as page:
        page.goto("/explore?q=level%3E%3Dwarning")
        page.wait_for_load_state("networkidle")
        page.screenshot(path=target / "phone.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
