"""The layers hold: protocol folders do no IO, and imports follow the arrows below.

    cli → serving → server → web → intake → visits, deliveries → sources → keywriter → sinks
                      │       └──→ store, tail, tokens → registry
                      └→ storing → store → sinks → records
    sending, handler → client → shipper → conversation → session, control → records → trace
                                    └───→ diskspool, route, websocket
    visits → reception → resume, control     deliveries → posting → resume     keywriter → keylog
    product → hyperlog.dht (its public names only)
    dht services → dht protocols → compact, keys, constants, errors

    in store:  sqlite, mongo → follow, evaluate → query, records          neither knows the other
    in web:    panel → problems, leaving                         the rest of web knows no panel

ARROWS has a row for each module, and each row names what is imported and nothing else: who adds an
import decides here first whether it may be.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hyperlog"

IMPURE_MODULES = {
    "asyncio",
    "concurrent",
    "datetime",
    "importlib",
    "io",
    "multiprocessing",
    "nacl.utils",
    "os",
    "pathlib",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "trio",
    "uuid",
}
IMPURE_NAMES = {"__import__", "generate", "getrandom", "input", "open", "print", "randombytes"}
IMPURE_NAMES |= {"token_bytes", "urandom"}
ALLOWED_FROM_RANDOM = {"Random"}  # as a type; an instance comes in as an argument

DHT_BOTTOM = {"compact", "constants", "errors", "keys"}
SIBLINGS_ALLOWED = {"commands": {"noise"}}

EVERYWHERE = {"hyperlog.errors", "hyperlog.config"}
EVERYTHING = {"*"}
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "access": {"dht"},
    "limits": set(),
    "quantities": set(),
    "gate": {"access", "limits"},
    "serveoptions": {"access", "arguments", "limits", "quantities", "sinks", "store"},
    "keyfile": {"dht"},
    "clientfolders": set(),
    "destination": set(),
    "webaddress": set(),
    "addresses": {"dht"},
    "config": {
        "access",
        "addresses",
        "clientfolders",
        "dht",
        "diskspool",
        "keyfile",
        "limits",
        "sinks",
        "store",
        "webaddress",
    },
    "replacer": set(),
    "trace": set(),
    "worker": set(),
    "records": {"replacer", "trace"},
    "tracefields": {"trace"},
    "tracequeue": set(),
    "diskspool": set(),
    "session": {"logs", "records", "trace"},
    "flushrequests": {"session"},
    "control": {"records"},
    "conversation": {"control", "logs", "session"},
    "resume": {"records"},
    "reception": {"control", "records", "resume"},
    "keylog": {"resume", "sinks"},
    "keywriter": {"keylog", "reception", "resume", "sinks"},
    "doorbell": set(),
    "sinks": {"records", "sinks"},
    "connections": {"records"},
    "posting": {"records", "resume"},
    "senders": {"control", "limits", "records", "registry", "tokens"},
    "sources": {"keywriter", "posting", "resume", "sinks"},
    "registry": set(),
    "tokens": {"registry"},
    "arguments": set(),
    "blocklist": {"gate", "registry"},
    "users": {"registry"},
    "throttle": {"limits"},
    "accounts": {"records", "registry", "users"},
    "reindexing": {"keyfile", "store"},
    "printers": {"store"},
    "querying": {"arguments", "printers", "quantities", "store"},
    "tokening": {"arguments", "quantities", "records", "tokens"},
    "store": {"diskspool", "records", "sinks", "store"},
    "tail": {"store"},
    "visits": {
        "connections",
        "control",
        "gate",
        "keywriter",
        "reception",
        "records",
        "resume",
        "senders",
        "sources",
    },
    "deliveries": {
        "connections",
        "gate",
        "keywriter",
        "posting",
        "records",
        "resume",
        "senders",
        "sinks",
        "sources",
    },
    "intake": {
        "connections",
        "control",
        "deliveries",
        "gate",
        "reception",
        "senders",
        "sinks",
        "sources",
        "visits",
    },
    "storing": {"limits", "store"},
    "web": {
        "blocklist",
        "connections",
        "control",
        "gate",
        "intake",
        "limits",
        "quantities",
        "records",
        "registry",
        "senders",
        "sinks",
        "store",
        "tail",
        "throttle",
        "tokens",
        "users",
        "web",
    },
    "stacktext": {"replacer"},
    "logs": {"records", "replacer", "stacktext"},
    "websocket": {"webaddress"},
    "route": {"dht"},
    "shipper": {
        "conversation",
        "dht",
        "diskspool",
        "doorbell",
        "flushrequests",
        "logs",
        "route",
        "session",
        "trace",
        "tracequeue",
        "websocket",
    },
    "handler": {"client", "logs", "replacer", "stacktext"},
    "client": {
        "destination",
        "logs",
        "shipper",
        "stacktext",
        "trace",
        "tracefields",
        "worker",
    },
    "server": {
        "connections",
        "control",
        "dht",
        "gate",
        "intake",
        "keyfile",
        "reception",
        "senders",
        "sinks",
        "store",
        "storing",
        "tail",
        "tokens",
        "web",
    },
    "clientoptions": {"arguments", "dht", "webaddress"},
    "sending": {"client", "clientfolders", "flushing", "logs"},
    "flushing": {"clientfolders", "destination", "dht", "diskspool", "keyfile", "shipper"},
    "usersignal": set(),
    "serving": {"server", "usersignal"},
    "noding": {"arguments", "dht", "usersignal"},
    "relaying": {"arguments", "dht", "keyfile", "quantities", "usersignal"},
    "findings": set(),
    "judgements": {"dht", "findings"},
    "peerjudgements": {"control", "dht", "findings"},
    "peeroptions": {"arguments", "dht", "keyfile"},
    "pinging": {"addresses", "arguments", "dht", "findings", "peeroptions"},
    "doctor": {"control", "dht", "findings", "judgements", "peerjudgements", "pinging"},
    "doctorweb": {"findings", "peerjudgements", "webaddress"},
    "doctoring": {
        "addresses",
        "arguments",
        "dht",
        "doctor",
        "doctorweb",
        "findings",
        "peeroptions",
        "webaddress",
    },
    "cli": EVERYTHING,
    "__main__": {"cli"},
}
LIGHT = ("errors", "records", "replacer", "session", "trace", "tracequeue")
SANS_IO = (
    "control",
    "conversation",
    "flushrequests",
    "keylog",
    "reception",
    "records",
    "replacer",
    "resume",
    "session",
    "tracequeue",
)


@dataclass(frozen=True)
class Module:
    """One module's source and full name."""

    name: str
    source: str
    is_package: bool = False

    @property
    def place(self) -> list[str]:
        """The parts of the name below `hyperlog`."""
        return self.name.split(".")[1:]


def modules() -> list[Module]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(Module(name, path.read_text(encoding="utf-8"), is_package))
    return found


MODULES = modules()
NAMES = {module.name for module in MODULES}


def imports(module: Module, known: set[str] = NAMES) -> Iterator[str]:
    """Full names of all modules that the source imports, wherever in it the statement stands.

    `from package import name` gives `package.name` if that is a module, and `package` otherwise.
    Names of foreign packages come out as `package` and `package.name`.
    """
    package = module.name if module.is_package else module.name.rpartition(".")[0]
    tree = ast.parse(module.source)
    # What runs as a program is nobody's import: `python -m hyperlog.server` may call the cli.
    tree.body = [node for node in tree.body if not is_main_guard(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                if base.split(".")[0] != "hyperlog":
                    yield base
                    yield full
                else:
                    yield full if full in known else base


def is_main_guard(node: ast.stmt) -> bool:
    """True for `if __name__ == "__main__":` without an else."""
    return (
        isinstance(node, ast.If)
        and not node.orelse
        and ast.unparse(node.test) == "__name__ == '__main__'"
    )


def is_protocol(module: Module) -> bool:
    """True for what lies in a sub-folder of hyperlog/dht."""
    place = module.place
    return place[:1] == ["dht"] and (len(place) > 2 or (len(place) == 2 and module.is_package))


def impurities(module: Module) -> set[str]:
    """What in the source reads a clock, a random source or the outside world."""
    found = set()
    for name in imports(module):
        parts = name.split(".")
        found |= {
            name for end in range(1, len(parts) + 1) if ".".join(parts[:end]) in IMPURE_MODULES
        }
        if parts[0] == "random" and len(parts) > 1 and parts[1] not in ALLOWED_FROM_RANDOM:
            found.add(name)
    for node in ast.walk(ast.parse(module.source)):
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "random":
                if node.attr not in ALLOWED_FROM_RANDOM:
                    found.add(f"random.{node.attr}")
            elif node.attr in IMPURE_NAMES - {"open", "print", "input"}:
                found.add(node.attr)
        elif isinstance(node, ast.Name) and node.id in IMPURE_NAMES:
            found.add(node.id)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if called == "Random":
                found.add("Random()")
    return found


def forbidden_in_dht(module: Module) -> set[str]:
    """Imports of a module of hyperlog/dht that point upwards or sideways."""
    found = set()
    place = module.place
    for name in imports(module):
        target = name.split(".")
        if target[0] != "hyperlog":
            continue
        if target[1:2] != ["dht"]:
            found.add(name)
        elif is_protocol(module) and len(target) > 2:
            folder = place[1]
            allowed = DHT_BOTTOM | {folder} | SIBLINGS_ALLOWED.get(folder, set())
            if target[2] not in allowed:
                found.add(name)
        elif is_protocol(module):
            found.add(name)  # hyperlog.dht itself: its __init__ imports the services
        elif place[1:] and place[1] in DHT_BOTTOM and target[2:] and target[2] not in DHT_BOTTOM:
            found.add(name)
    return found


def forbidden_in_product(module: Module) -> set[str]:
    """Imports of a product module that its row of ARROWS does not allow."""
    noun = module.place[0]
    found = set()
    for name in imports(module):
        target = name.split(".")
        if target[0] != "hyperlog" or name in EVERYWHERE:
            continue
        if target[1:2] == ["dht"] and len(target) > 2:
            found.add(name)  # past the public names
        elif len(target) == 1 or not {target[1], "*"} & (ARROWS[noun] | {noun}):
            found.add(name)
    return found


PROTOCOLS = [module for module in MODULES if is_protocol(module)]
DHT = [module for module in MODULES if module.place[:1] == ["dht"]]
PRODUCT = [module for module in MODULES if module.place and module.place[0] != "dht"]


def outside(module: Module, folder: str, allowed: set[str]) -> set[str]:
    """What a module imports of its part of the product beyond its folder there.

    `allowed` are the names directly in that part; "" is the folder of the part itself.
    """
    part = module.place[0]
    found = set()
    for name in imports(module):
        target = name.split(".")
        if target[:2] == ["hyperlog", part] and target[2:]:
            inner = target[2] if (PACKAGE / part / target[2]).is_dir() else ""
            if inner != folder and target[2] not in allowed:
                found.add(name)
    return found


def by_name(module: Module) -> str:
    return module.name


@pytest.mark.parametrize("module", PROTOCOLS, ids=by_name)
def test_protocol_folders_do_no_io(module):
    assert not impurities(module)


@pytest.mark.parametrize("module", DHT, ids=by_name)
def test_dht_imports_neither_the_product_nor_upwards_nor_sideways(module):
    assert not forbidden_in_dht(module)


@pytest.mark.parametrize("module", PRODUCT, ids=by_name)
def test_the_product_imports_along_the_arrows(module):
    assert module.place[0] in ARROWS, "a new module: name in ARROWS what it may import"
    assert not forbidden_in_product(module)


def test_the_rows_are_the_modules_and_name_what_is_imported():
    imported: dict[str, set[str]] = {module.place[0]: set() for module in PRODUCT}
    for module in PRODUCT:
        targets = [name.split(".") for name in imports(module)]
        imported[module.place[0]] |= {
            target[1] for target in targets if target[0] == "hyperlog" and len(target) > 1
        }
    assert ARROWS.keys() == imported.keys()
    stale = {name: row - imported[name] - EVERYTHING for name, row in ARROWS.items()}
    assert not {name: row for name, row in stale.items() if row}
    assert {*LIGHT, *SANS_IO} <= ARROWS.keys()


@pytest.mark.parametrize(
    "module", [module for module in PRODUCT if module.place[0] == "store"], ids=by_name
)
def test_stores_know_what_is_asked_and_followed_but_not_each_other(module):
    folder = module.place[1] if module.place[1:] and module.place[1] in ("sqlite", "mongo") else ""
    above = {path.stem for path in PACKAGE.glob("store/*.py")} if folder else set()
    assert not outside(module, folder, above)


@pytest.mark.parametrize(
    "module", [module for module in PRODUCT if module.place[0] == "web"], ids=by_name
)
def test_the_panel_and_the_interface_for_programs_stand_side_by_side(module):
    is_panel = module.place[1:2] == ["panel"]
    below = {"leaving", "problems"} if is_panel else set()
    assert not outside(module, "panel" if is_panel else "", below)


@pytest.mark.parametrize("name", LIGHT)
def test_an_application_that_only_traces_does_not_pay_for_trio(name):
    sources = {module.name: module for module in MODULES}
    waiting, seen = [f"hyperlog.{name}"], set()
    while waiting:
        found = waiting.pop()
        if found not in seen:
            seen.add(found)
            waiting += imports(sources[found]) if found in sources else []
    assert "trio" not in {name.split(".")[0] for name in seen}


@pytest.mark.parametrize("module", PRODUCT, ids=by_name)
def test_sessions_and_records_do_no_io(module):
    if module.place[0] in SANS_IO:
        assert not {"trio", "socket", "threading", "asyncio"} & {
            name.split(".")[0] for name in imports(module)
        }


def test_there_is_something_to_check():
    assert {"udx", "noise", "rpc", "commands", "holepunch"} <= {m.place[1] for m in PROTOCOLS}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import trio", {"trio"}),
        ("def f():\n    import socket", {"socket"}),
        ("def f():\n    from time import monotonic", {"time", "time.monotonic"}),
        ("import os\nkey = os.urandom(32)", {"os", "urandom"}),
        ("from nacl.utils import random", {"nacl.utils", "nacl.utils.random"}),
        ("from nacl.bindings import randombytes\nrandombytes(3)", {"randombytes"}),
        ("import random\nx = random.random()", {"random.random"}),
        ("import random\nr = random.Random()", {"Random()"}),
        ("from random import randint", {"random.randint"}),
        ("from nacl.signing import SigningKey\nk = SigningKey.generate()", {"generate"}),
        ("print('x')", {"print"}),
        ("open('x')", {"open"}),
        ("if TYPE_CHECKING:\n    import random\ndef f(rng: random.Random): ...", set()),
        ("import struct, hashlib\nfrom hyperlog.dht.compact import Reader", set()),
        ("class S:\n    def f(self):\n        self.open(); self.print()", set()),
    ],
)
def test_impurities_are_found(source, found):
    assert impurities(Module("hyperlog.dht.udx.stream", source)) == found


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        ("hyperlog.dht.udx.stream", "from hyperlog.dht.compact import Reader", set()),
        ("hyperlog.dht.udx.stream", "from hyperlog.dht import compact", set()),
        ("hyperlog.dht.udx.stream", "from .. import compact", set()),
        ("hyperlog.dht.udx.stream", "from . import packet", set()),
        ("hyperlog.dht.udx.stream", "from hyperlog.dht import rpc", {"hyperlog.dht.rpc"}),
        ("hyperlog.dht.udx.stream", "from ..rpc import x", {"hyperlog.dht.rpc"}),
        ("hyperlog.dht.udx.stream", "def f():\n from hyperlog import dht", {"hyperlog.dht"}),
        ("hyperlog.dht.udx.stream", "import hyperlog.errors", {"hyperlog.errors"}),
        ("hyperlog.dht.commands.x", "import hyperlog.dht.noise.handshake", set()),
        ("hyperlog.dht.noise.x", "import hyperlog.dht.commands", {"hyperlog.dht.commands"}),
        ("hyperlog.dht.udx.stream", "import hyperlog.dht.node", {"hyperlog.dht.node"}),
        ("hyperlog.dht.node", "import hyperlog.dht.rpc, hyperlog.dht.sockets", set()),
        ("hyperlog.dht.node", "def f():\n from hyperlog import x", {"hyperlog"}),
        ("hyperlog.dht.keys", "import hyperlog.dht.udx.packet", {"hyperlog.dht.udx.packet"}),
    ],
)
def test_forbidden_imports_of_the_dht_are_found(name, source, found):
    assert forbidden_in_dht(Module(name, source)) == found


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        ("hyperlog.session", "from hyperlog.errors import HyperlogError", set()),
        ("hyperlog.session", "import hyperlog.client", {"hyperlog.client"}),
        ("hyperlog.session", "def f():\n import hyperlog.dht", {"hyperlog.dht"}),
        ("hyperlog.server", "from hyperlog.dht import DHT", set()),
        ("hyperlog.server", "from hyperlog.dht.udx import x", {"hyperlog.dht.udx"}),
        ("hyperlog.server", "from hyperlog.dht import compact", {"hyperlog.dht.compact"}),
        ("hyperlog.sinks.files", "import hyperlog.server", {"hyperlog.server"}),
        ("hyperlog.trace", "import hyperlog", {"hyperlog"}),
        ("hyperlog.server", "if __name__ == '__main__':\n import hyperlog.cli", set()),
        ("hyperlog.server", "if __name__ == 'x':\n import hyperlog.cli", {"hyperlog.cli"}),
    ],
)
def test_forbidden_imports_of_the_product_are_found(name, source, found):
    assert forbidden_in_product(Module(name, source)) == found


@pytest.mark.parametrize(
    ("name", "source", "folder", "allowed", "found"),
    [
        ("store.query", "import hyperlog.store.words", "", set(), set()),
        ("store.query", "from hyperlog.store import sqlite", "", set(), {"sqlite"}),
        (
            "store.sqlite.x",
            "from hyperlog.store.mongo import names",
            "sqlite",
            set(),
            {"mongo.names"},
        ),
        ("store.sqlite.x", "import hyperlog.store.words", "sqlite", {"words"}, set()),
        ("web.api", "def f():\n import hyperlog.web.panel.view", "", set(), {"panel.view"}),
        ("web.panel.x", "from hyperlog.web import api, problems", "panel", {"problems"}, {"api"}),
    ],
)
def test_imports_beyond_a_folder_of_the_product_are_found(name, source, folder, allowed, found):
    part = name.split(".")[0]
    module = Module(f"hyperlog.{name}", source)
    assert outside(module, folder, allowed) == {f"hyperlog.{part}.{one}" for one in found}
