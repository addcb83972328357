"""Where a client's key pair and spools are, and how they are named.

One folder for each application in the user's data directory: `keys.dat`, and below `spool` a folder
for each server.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Final

__all__ = [
    "application_name",
    "client_data_path",
    "client_keys_path",
    "parse_spool_name",
    "spool_name",
    "web_spool_name",
]

MAX_APPLICATION_NAME: Final = 64  # characters
MAX_HOST: Final = 64  # characters of a host in a folder's name

_SPOOL_NAME = re.compile(r"([0-9a-f]{64})-([0-9a-f]{16})")


def application_name() -> str:
    """The name of the running program, fit for a folder: from its script or main module."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    name = ""
    if spec is not None and spec.name:  # python -m package: the script is called __main__.py
        name = spec.name.removesuffix(".__main__")
    elif sys.argv and sys.argv[0] not in ("", "-c", "-"):
        name = Path(sys.argv[0]).stem
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:MAX_APPLICATION_NAME]
    return name or "python"


def client_keys_path(application: str | None = None) -> Path:
    """Where the key pair of an application is kept, in the user's data directory.

    Raises:
        RuntimeError: there is no home directory.
    """
    return client_data_path() / (application or application_name()) / "keys.dat"


def client_data_path() -> Path:
    """The folder of all applications' key pairs and spools.

    Raises:
        RuntimeError: there is no home directory.
    """
    if sys.platform == "win32":
        folder = os.environ.get("APPDATA")
        data = Path(folder) if folder else Path.home() / "AppData" / "Roaming"
    elif sys.platform == "darwin":
        data = Path.home() / "Library" / "Application Support"
    else:
        # The specification of base directories says to ignore a relative path.
        folder = os.environ.get("XDG_DATA_HOME", "")
        data = Path(folder) if os.path.isabs(folder) else Path.home() / ".local" / "share"
    return data / "hyperlog"


def spool_name(server_key: bytes, client_key: bytes) -> str:
    """The folder of one client's records for one server, among an application's spools.

    A server knows sessions by the key that they come with. The server's key is told in full, so
    that the records can be delivered by who knows nothing but the folder.
    """
    return f"{server_key.hex()}-{client_key.hex()[:16]}"


def parse_spool_name(name: str) -> tuple[bytes, str] | None:
    """The server's key and the first 16 hex digits of the client's; None for another name."""
    match = _SPOOL_NAME.fullmatch(name)
    return None if match is None else (bytes.fromhex(match[1]), match[2])


def web_spool_name(address: str, host: str, application: str | None, instance: str) -> str:
    """The folder of one instance's records for one server that is reached over HTTP.

    A server knows the sessions of a sender without a key by its application and instance.
    """
    told = "\0".join((address, application or "", instance)).encode()
    digest = hashlib.blake2b(told, digest_size=16, person=b"hyperlog spool").hexdigest()
    return f"web-{re.sub(r'[^a-z0-9.-]', '_', host)[:MAX_HOST]}-{digest}"
