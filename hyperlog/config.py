"""Settings of a server and a client, checked once, before anything runs."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict

import trio

from hyperlog.access import AccessPolicy
from hyperlog.addresses import (
    Address,
    parse_address,
    parse_bind,
    parse_bootstrap,
    parse_host_name,
    parse_mongo,
    parse_peer,
    parse_public_key,
    parse_relays,
)
from hyperlog.clientfolders import (
    application_name,
    client_keys_path,
    spool_name,
    web_spool_name,
)
from hyperlog.dht import BOOTSTRAP_NODES, KeyPair
from hyperlog.diskspool import DEFAULT_MAX_SPOOL_BYTES, LEAST_MAX_SPOOL_BYTES
from hyperlog.errors import ConfigError, KeyFileError
from hyperlog.keyfile import load_or_create_keys
from hyperlog.limits import ServerLimits
from hyperlog.sinks.folder import FilePolicy
from hyperlog.store.policy import StorePolicy
from hyperlog.webaddress import WebAddress, is_web_address, parse_web_address

if TYPE_CHECKING:
    import ssl

__all__ = [
    "Address",
    "ClientConfig",
    "ClientOptions",
    "ServerConfig",
    "ServerOptions",
    "parse_address",
    "parse_bind",
    "parse_bootstrap",
    "parse_host_name",
    "parse_mongo",
    "parse_peer",
    "parse_public_key",
    "parse_relays",
]

logger = logging.getLogger("hyperlog.config")

Props: TypeAlias = Mapping[str, Any]
Channel: TypeAlias = trio.abc.Channel[bytes]

DEFAULT_FOLDER: Final = Path("logs")
DEFAULT_KEYS: Final = Path("keys.dat")
DEFAULT_HOST: Final = "0.0.0.0"
DEFAULT_HTTP: Final = "127.0.0.1:8787"  # of `hyperlog serve`
DATA_FOLDER: Final = ".hyperlog"  # in the log folder, unless another place is told
DEFAULT_MAX_LINE: Final = 64 * 1024  # bytes; above that many tailers cut or drop lines
MAX_MONGO_TTL: Final = 2**31 - 1  # s; MongoDB takes no more, and so would hold no record
MIN_MAX_LINE: Final = 4096  # bytes; what identifies a record has to fit
MAX_TOKEN: Final = 8192  # characters, as many as a hello may have
MAX_NAME: Final = 64  # characters of an application's or an instance's name

# Here, since `import hyperlog` alone should not cost the import of logging.
logging.getLogger("hyperlog").addHandler(logging.NullHandler())


class ServerOptions(TypedDict, total=False):
    """What a server takes beside its place in the network; all of it optional."""

    durability: Literal["write", "fsync"]
    """what an acknowledged record survives: with "write", the default, the server's process; with
    "fsync" its machine"""
    max_line: int
    """bytes; longer lines are cut"""
    files: FilePolicy
    """rotation, retention and quotas of the log files"""
    limits: ServerLimits
    access: AccessPolicy
    """who may come; by default anybody"""
    require_token: bool
    """refuse whoever has no application token, JavaScript peers among them"""
    data: str | os.PathLike[str] | None
    """folder of all that is the server's own beside the log files: the embedded store, issued
    tokens. By default `.hyperlog` in the folder of the log files"""
    relay_through: str | bytes | Iterable[str | bytes] | None
    """public key of a relay that clients without a direct way come through, or several, of which
    each connection takes one by chance"""
    http: str | None
    """`HOST:PORT` to serve HTTP and WebSockets at, port 0 for any; None, the default, for neither.
    Needs the extra `server`"""
    http_elsewhere: bool
    """serve HTTP at any free port if the one named is taken, and say so"""
    http_hosts: Iterable[str]
    """names that HTTP requests may give in their Host header, beside the address that is bound and
    localhost"""
    store: Literal["sqlite", "mongo"] | None
    """what answers queries; None, the default, for nothing: then there is no embedded store"""
    mongo: str | None
    """address of a MongoDB server that mirrors all records; needs the extra `mongo`"""
    mongo_ttl: float | None
    """s for which MongoDB keeps a record; None for ever"""
    retention: StorePolicy
    """what the embedded store keeps; by default everything"""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What a server needs to know; made by `ServerConfig.checked`."""

    folder: Path
    keys: Path | KeyPair
    bootstrap: tuple[Address, ...]
    """empty: the node is a network of its own"""
    host: str
    """IPv4 address to bind"""
    port: int | None
    """UDP port; None for any"""
    durability: Literal["write", "fsync"]
    max_line: int
    files: FilePolicy
    limits: ServerLimits
    access: AccessPolicy
    require_token: bool
    data: Path
    """made when something is to be put there"""
    relay_through: tuple[bytes, ...]
    http: Address | None
    http_elsewhere: bool
    http_hosts: tuple[str, ...]
    store: Literal["sqlite", "mongo"] | None
    mongo: str | None = field(repr=False)  # it may have a password in it
    mongo_ttl: float | None
    retention: StorePolicy

    @property
    def node_cache(self) -> Path | None:
        """Where the nodes of the DHT are kept for the next start; None for an own network."""
        return self.data / _node_cache_name(self.bootstrap) if self.bootstrap else None

    @classmethod
    def checked(
        cls,
        *,
        folder: str | os.PathLike[str] = DEFAULT_FOLDER,
        keys: str | os.PathLike[str] | KeyPair = DEFAULT_KEYS,
        bootstrap: Iterable[str | Address] | None = None,
        host: str = DEFAULT_HOST,
        port: int | None = None,
        local: bool = False,
        durability: Literal["write", "fsync"] = "write",
        max_line: int = DEFAULT_MAX_LINE,
        files: FilePolicy | None = None,
        limits: ServerLimits | None = None,
        access: AccessPolicy | None = None,
        require_token: bool = False,
        data: str | os.PathLike[str] | None = None,
        relay_through: str | bytes | Iterable[str | bytes] | None = None,
        http: str | None = None,
        http_elsewhere: bool = False,
        http_hosts: Iterable[str] = (),
        store: Literal["sqlite", "mongo"] | None = None,
        mongo: str | None = None,
        mongo_ttl: float | None = None,
        retention: StorePolicy | None = None,
    ) -> ServerConfig:
        """Check the settings; None stands for the default.

        Raises:
            ConfigError: one of them cannot be used, or two exclude each other.
        """
        if local and bootstrap:
            raise ConfigError("a local network has no bootstrap nodes: leave out one of the two")
        if port is not None and not 0 <= port < 65536:
            raise ConfigError(f"{port} is no UDP port, ports go from 1 to 65535")
        try:
            IPv4Address(host)
        except ValueError:
            raise ConfigError(
                f"{host!r} is no IPv4 address to bind; leave it out for all of them"
            ) from None
        if durability not in ("write", "fsync"):
            raise ConfigError(f"durability is 'write' or 'fsync', not {durability!r}")
        if max_line < MIN_MAX_LINE:
            raise ConfigError(f"a line needs room for {MIN_MAX_LINE} bytes, not {max_line}")
        if store not in ("sqlite", "mongo", None):
            raise ConfigError(f"store is 'sqlite', 'mongo' or None, not {store!r}")
        if store == "mongo" and mongo is None:
            raise ConfigError("MongoDB can only answer queries if its address is told (mongo)")
        if mongo_ttl is not None and (mongo is None or not mongo_ttl >= 1):
            raise ConfigError("mongo_ttl is at least a second, and needs the address of a MongoDB")
        if mongo_ttl is not None and not mongo_ttl <= MAX_MONGO_TTL:
            raise ConfigError("mongo_ttl is at most 68 years; without it records stay for good")
        hosts = (http_hosts,) if isinstance(http_hosts, str) else http_hosts
        nodes: tuple[Address, ...] = ()
        if not local:
            nodes = tuple(BOOTSTRAP_NODES) if bootstrap is None else parse_bootstrap(bootstrap)
        return cls(
            folder=Path(folder),
            keys=keys if isinstance(keys, KeyPair) else Path(keys),
            bootstrap=nodes,
            host=host,
            port=port or None,
            durability=durability,
            max_line=max_line,
            files=FilePolicy() if files is None else files,
            limits=ServerLimits() if limits is None else limits,
            access=AccessPolicy() if access is None else access,
            require_token=require_token,
            data=Path(folder) / DATA_FOLDER if data is None else Path(data),
            relay_through=() if relay_through is None else parse_relays(relay_through),
            http=None if http is None else parse_bind(http),
            http_elsewhere=http_elsewhere,
            http_hosts=tuple(map(parse_host_name, hosts)),
            store=store,
            mongo=None if mongo is None else parse_mongo(mongo),
            mongo_ttl=mongo_ttl,
            retention=StorePolicy() if retention is None else retention,
        )


class ClientOptions(TypedDict, total=False):
    """What `Client.start` and `Client.run` take beside the server's key; all of it optional."""

    bootstrap: Iterable[str | Address] | None
    """nodes to join the DHT through, `"host:port"` each; default: the public HyperDHT"""
    relay_through: str | bytes | Iterable[str | bytes] | None
    """public key of a relay to go through where there is no direct way to the server, or several,
    of which each connection takes one by chance; what the server names goes before it"""
    key_pair: KeyPair | None
    """the client's identity; goes before `keys`"""
    keys: str | os.PathLike[str] | None
    """file of the client's key pair, made if missing; None makes a fresh pair. By default there is
    one pair for each application, in the user's data directory"""
    spool: str | os.PathLike[str] | None
    """folder where records wait until the server has acknowledged them; None keeps them in memory
    only. By default it is in the user's data directory, unless the key pair is fresh: the spool of
    a key that nobody has any more is of no use"""
    max_spool_bytes: int
    """limit of the spool on disk, over all processes that share it; the oldest records give way.
    Default: 256 MiB"""
    application: str | None
    """what the server is told that this is; 1 to 64 printable characters. By default the name of
    the program's script or main module"""
    instance: str | None
    """which one of the application's instances this is, as for `application`. By default the first
    8 hex digits of the client's public key"""
    token: str | None
    """application token, for servers that ask for one; they say which application and key it goes
    with. By default the environment variable HYPERLOG_TOKEN"""
    ca_file: str | os.PathLike[str] | None
    """certificates, in PEM form, that a server with an https address may prove itself by, in the
    place of those that the system trusts"""
    allow_plain: bool
    """allow an http address of another machine: whoever is on the way can read token and records"""
    create_socket: Callable[[], Awaitable[Channel]] | None
    """gives a connection, in the place of the server's key; awaited under trio, after each loss
    again"""
    can_socket_reconnect: Callable[[], bool] | None
    """asked after each loss and each failed attempt; False ends the client"""
    ignore_class_names: Iterable[str]
    """traces of these classes, and of objects whose parent is of one, are left out"""
    get_initial_props: Callable[[], Props | Awaitable[Props | None] | None] | None
    """gives props that go along with every trace; a plain function, or an async one for trio.
    Called once; traces made before it has returned wait for it"""
    on_open: Callable[[], object] | None
    """called when the server has greeted"""
    on_close: Callable[[], object] | None
    """called when the connection is lost for good"""
    on_reconnect: Callable[[], object] | None
    """called when there is no connection and another attempt will be made"""
    on_connection_error: Callable[[Exception], object] | None
    """called with the reason of each loss and each failed attempt"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """What a client needs to know; made by `ClientConfig.checked`. See ClientOptions."""

    server_key: bytes | None
    """of a server that is reached over the DHT"""
    server_nodes: tuple[Address, ...]
    """nodes that reach it, told with its key; empty to have them found"""
    web: WebAddress | None
    """of one that is reached over HTTP; None for both with `create_socket`"""
    tls: ssl.SSLContext | None
    """for `web`, if it is secure"""
    ca_file: str | None
    """absolute"""
    bootstrap: tuple[Address, ...]
    relay_through: tuple[bytes, ...]
    key_pair: KeyPair
    spool: Path | None
    """folder of this client and server alone; None for memory only"""
    max_spool_bytes: int
    application: str | None
    """None to have the token tell"""
    instance: str
    token: str | None = field(repr=False)
    create_socket: Callable[[], Awaitable[Channel]] | None
    can_socket_reconnect: Callable[[], bool] | None
    ignore_class_names: frozenset[str]
    get_initial_props: Callable[[], Props | Awaitable[Props | None] | None] | None
    on_open: Callable[[], object] | None
    on_close: Callable[[], object] | None
    on_reconnect: Callable[[], object] | None
    on_connection_error: Callable[[Exception], object] | None

    @property
    def node_cache(self) -> Path | None:
        """Where the nodes of the DHT are kept for the next start: beside the spool, if that is on
        disk."""
        if self.spool is None or self.server_key is None:
            return None
        return self.spool.with_name(_node_cache_name(self.bootstrap))

    @classmethod
    def checked(cls, server: str | bytes | None, options: ClientOptions) -> ClientConfig:
        """Check the options; read or make the key file.

        `server` is a public key in any form of `parse_peer`, or an address that begins with
        `https://` or `wss://` (`http://` and `ws://` on this machine).

        Raises:
            ConfigError: a malformed key, address, name or token, or too small a spool; both or none
                of `server` and `create_socket`; a package is missing that an address needs.
            KeyFileError: the key file that was named cannot be used.
            TypeError: an unknown option, or a callback that cannot be called.
        """
        unknown = set(options) - set(ClientOptions.__annotations__)
        if unknown:
            raise TypeError(f"a client has no option {min(unknown)!r}")
        for name in _CALLBACKS:
            callback = options.get(name)
            if callback is not None and not callable(callback):
                raise TypeError(f"{name} is a function, not {type(callback).__name__}")
        create_socket = options.get("create_socket")
        if (server is None) == (create_socket is None):
            raise ConfigError("a client needs the server's key or address, or else create_socket")
        token = _token(options.get("token", os.environ.get("HYPERLOG_TOKEN") or None))
        web, tls, public_key = None, None, None
        server_nodes: tuple[Address, ...] = ()
        if is_web_address(server):
            web, tls = _web(str(server), options)
        elif server is not None:
            public_key, server_nodes = parse_peer(server)
        bootstrap = options.get("bootstrap")
        relay_through = options.get("relay_through")
        given = options.get("key_pair")
        key_pair, is_kept = (given, True) if given is not None else _client_keys(options)
        # A token says which application it is for: the script's name would only contradict it.
        application = _name(options, "application") or (
            application_name() if token is None else None
        )
        instance = _name(options, "instance")
        is_known = is_kept if web is None else is_kept or instance is not None
        instance = instance or key_pair.public_key.hex()[:8]
        if web is not None:
            spool_folder = web_spool_name(str(web), web.host, application, instance)
        elif public_key is not None:
            spool_folder = spool_name(public_key, key_pair.public_key)
        else:
            spool_folder = None
        ca_file = options.get("ca_file")
        ignored = options.get("ignore_class_names", ())
        max_spool_bytes = options.get("max_spool_bytes", DEFAULT_MAX_SPOOL_BYTES)
        if max_spool_bytes < LEAST_MAX_SPOOL_BYTES:
            raise ConfigError(
                f"a spool of {max_spool_bytes} bytes is too small, it needs at least "
                f"{LEAST_MAX_SPOOL_BYTES}; spool=None keeps records in memory only"
            )
        return cls(
            server_key=public_key,
            server_nodes=server_nodes,
            web=web,
            tls=tls,
            ca_file=None if ca_file is None else os.path.abspath(ca_file),
            bootstrap=tuple(BOOTSTRAP_NODES) if bootstrap is None else parse_bootstrap(bootstrap),
            relay_through=() if relay_through is None else parse_relays(relay_through),
            key_pair=key_pair,
            spool=_client_spool(options, is_known, spool_folder),
            max_spool_bytes=max_spool_bytes,
            application=application,
            instance=instance,
            token=token,
            create_socket=create_socket,
            can_socket_reconnect=options.get("can_socket_reconnect"),
            ignore_class_names=frozenset([ignored] if isinstance(ignored, str) else ignored),
            get_initial_props=options.get("get_initial_props"),
            on_open=options.get("on_open"),
            on_close=options.get("on_close"),
            on_reconnect=options.get("on_reconnect"),
            on_connection_error=options.get("on_connection_error"),
        )


def _node_cache_name(bootstrap: tuple[Address, ...]) -> str:
    """A file for each network: nodes of one must not lead into another."""
    if bootstrap == tuple(BOOTSTRAP_NODES):
        return "nodes.json"
    told = "\0".join(f"{host}:{port}" for host, port in sorted(bootstrap)).encode()
    digest = hashlib.blake2b(told, digest_size=8, person=b"hyperlog nodes").hexdigest()
    return f"nodes-{digest}.json"


_CALLBACKS = (
    "create_socket",
    "can_socket_reconnect",
    "get_initial_props",
    "on_open",
    "on_close",
    "on_reconnect",
    "on_connection_error",
)


def _name(options: ClientOptions, option: Literal["application", "instance"]) -> str | None:
    name = options.get(option)
    if name is None:
        return None
    if not isinstance(name, str):
        raise ConfigError(f"{option} is text, not {type(name).__name__}")
    if not 0 < len(name) <= MAX_NAME or not name.isprintable() or name.isspace():
        raise ConfigError(f"{option} has 1 to {MAX_NAME} printable characters, got {name[:100]!r}")
    return name


def _token(token: str | None) -> str | None:
    # It is a secret: an error must not repeat it.
    if token is not None and (
        not isinstance(token, str)
        or not 0 < len(token) <= MAX_TOKEN
        or not (token.isascii() and token.isprintable())
    ):
        raise ConfigError(f"token is text of 1 to {MAX_TOKEN} printable ASCII characters")
    return token


def _web(address: str, options: ClientOptions) -> tuple[WebAddress, ssl.SSLContext | None]:
    web = parse_web_address(address, allow_plain=bool(options.get("allow_plain", False)))
    if find_spec("wsproto") is None:
        raise ConfigError(
            f"{web} is reached by WebSocket, which needs a package more: "
            "pip install 'hyperlog-p2p[web]'"
        )
    ca_file = options.get("ca_file")
    if not web.is_secure:
        if ca_file is not None:
            raise ConfigError(f"{web} has no certificate: leave out ca_file, or use https://")
        return web, None
    import ssl  # 8 ms that few need

    try:
        return web, ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as err:  # SSLError is an OSError
        raise ConfigError(f"the certificates of ca_file cannot be used: {err}") from err


def _client_keys(options: ClientOptions) -> tuple[KeyPair, bool]:
    """The client's key pair, and whether it is kept for the next run."""
    if options.get("create_socket") is not None and "keys" not in options:
        return KeyPair.generate(), False  # whoever makes the connection has its own identity
    if "keys" in options:
        path = options["keys"]
        return (KeyPair.generate(), False) if path is None else (load_or_create_keys(path), True)
    try:
        path = client_keys_path()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return load_or_create_keys(path), True
    except (KeyFileError, OSError, RuntimeError) as err:  # RuntimeError: no home directory
        # Nobody asked for the file, so an application must not fail for want of it.
        logger.warning("no key pair is kept for this application, it gets a fresh one: %s", err)
        return KeyPair.generate(), False


def _client_spool(options: ClientOptions, is_known: bool, name: str | None) -> Path | None:
    """The folder `name`, if the server will know this client again; without a name there is no
    folder by default."""
    folder = options.get("spool")
    if folder is None:
        if "spool" in options or not is_known or name is None:
            return None
        try:
            folder = client_keys_path().with_name("spool")
        except RuntimeError:  # no home directory
            return None
    elif not is_known and name is not None:
        raise ConfigError("a spool is of no use with a fresh key pair: leave out one of the two")
    try:  # the program may go elsewhere, and its children start there
        folder = Path(folder).absolute()
    except OSError as err:
        raise ConfigError(
            f"there is no working directory for the spool {folder}: name it by its whole path"
        ) from err
    return folder if name is None else folder / name
