"""keys.dat: the key pair of a server or a client in a file.

One JSON object with the fields of the JavaScript server's file, `publicKey` (64 hex digits) and
`secretKey` (128), so that either server can use the other's.

Source: hypertrace-logger start-server.js; docs/protocol/trace-protocol.md section 2.
"""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

from hyperlog.dht import DHTError, KeyPair
from hyperlog.errors import KeyFileError

__all__ = ["create_keys", "load_keys", "load_or_create_keys", "permission_warning"]

MAX_SIZE = 64 * 1024  # bytes; the file has about 230
MODE = 0o600


def load_keys(path: str | os.PathLike[str], *, private: bool = False) -> KeyPair:
    """The key pair in the file at `path`.

    With `private` it is refused if others than its owner can read or write it. The JavaScript
    server makes such files; `chmod 600` makes them usable, for that server too.

    Raises:
        KeyFileError: there is none, or it cannot be read or used; the text names the file and what
            to do, and nothing of the secret.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SIZE + 1)
            fault = _open_to_others(os.fstat(file.fileno()), path) if private else None
    except FileNotFoundError:
        raise KeyFileError(
            f"{path} does not exist: create it with `hyperlog keygen` or give another path"
        ) from None
    except OSError as error:
        raise KeyFileError(
            f"cannot read the key file {path}: {error.strerror}; check its owner and permissions"
        ) from error
    restore = "restore it from a backup, or move it away to get a new identity"
    if len(data) > MAX_SIZE:
        raise KeyFileError(f"{path} is too large for a key file; {restore}")
    try:
        key_pair = KeyPair.from_json(data)
    except DHTError as error:
        raise KeyFileError(f"the key file {path} cannot be used: {error}; {restore}") from None
    if fault is not None:
        raise KeyFileError(fault)
    return key_pair


def create_keys(path: str | os.PathLike[str], key_pair: KeyPair | None = None) -> KeyPair:
    """Write `key_pair`, or a new random one, to a new file that only its owner can read.

    The file appears complete or not at all.

    Raises:
        KeyFileError: the file exists already, which is never overwritten, or cannot be made.
    """
    key_pair = KeyPair.generate() if key_pair is None else key_pair
    try:
        _write_new(Path(path), key_pair.to_json().encode())
    except FileExistsError:
        raise KeyFileError(f"{path} exists already: move it away to make a new identity") from None
    except OSError as error:
        raise KeyFileError(
            f"cannot make the key file {path}: {error.strerror}; "
            "check that its folder exists and is writable"
        ) from error
    return key_pair


def load_or_create_keys(path: str | os.PathLike[str], *, private: bool = False) -> KeyPair:
    """The key pair in the file at `path`, which is made if there is none; `private` is as for
    `load_keys`.

    Several processes that start together get the same pair.

    Raises:
        KeyFileError: as `load_keys` and `create_keys`.
    """
    if not os.path.lexists(path):
        try:
            return create_keys(path)
        except KeyFileError:
            if not os.path.lexists(path):
                raise
            # Another process was faster.
    return load_keys(path, private=private)


def permission_warning(path: str | os.PathLike[str]) -> str | None:
    """What to tell the operator if others can read the file, else None."""
    try:
        return _open_to_others(os.stat(path), path)
    except OSError:
        return None


def _open_to_others(status: os.stat_result, path: str | os.PathLike[str]) -> str | None:
    mode = stat.S_IMODE(status.st_mode)
    if os.name != "posix" or not mode & 0o077:  # mode bits tell nothing elsewhere
        return None
    name = shlex.quote(os.fspath(path))
    return f"{path} holds a secret key and is open to others (mode {mode:04o}): chmod 600 {name}"


def _write_new(path: Path, data: bytes) -> None:
    temporary = path.parent / f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags | getattr(os, "O_NOFOLLOW", 0), MODE)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _rename_new(temporary, path)
    finally:
        try:
            os.unlink(temporary)
        except FileNotFoundError:
            pass  # renamed


def _rename_new(temporary: Path, path: Path) -> None:
    """Give the file its name; raises FileExistsError if that is taken."""
    if os.name == "nt":
        os.rename(temporary, path)  # never replaces there
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links: claim the name, then put the contents in its place.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE))
        os.replace(temporary, path)
