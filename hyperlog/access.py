"""Who may talk to a server: a file of public keys, read again whenever it changes.

    # One key a line, in hex or z-base-32; what follows a number sign is for people.
    1f8e…64 digits…    # billing, host a
    yb1n…52 letters…

A key that is not in the file gets no answer at all: from outside, the server is not there.

The file may also be filled by the server itself: while it *learns*, every key is let in, and those
that prove themselves are appended. Then it locks. A restart with the same settings does not open it
again: learning for a time only begins with an empty list, and learning a number of keys counts
those that are in the list.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hyperlog.dht import DHTError, decode_public_key, encode_z32
from hyperlog.errors import ConfigError

__all__ = ["Access", "AccessPolicy", "parse_key_list"]

logger = logging.getLogger("hyperlog.access")

CHECK_INTERVAL: Final = 1.0  # s between two looks at the file
MAX_FILE_SIZE: Final = 4 * 1024 * 1024  # bytes, some 60,000 keys
MAX_LEARNED: Final = 1000  # keys, also when learning for a time
MAX_COMPLAINTS: Final = 5  # lines told of one file
FILE_MODE: Final = 0o640


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Without a file any key may come."""

    allow: Path | None = None
    learn_seconds: float | None = None
    learn_count: int | None = None

    def __post_init__(self) -> None:
        if self.allow is None and (self.learn_seconds is not None or self.learn_count is not None):
            raise ConfigError("learning keys needs a file to keep them in: add --allow FILE")


class Access:
    """Answers, key by key, who may come. For one thread; reads a small file now and then."""

    def __init__(self, policy: AccessPolicy, now: float) -> None:
        """`now` is in seconds and only compared with other calls.

        Raises:
            ConfigError: the file cannot be read, or has lines that are no keys.
        """
        self.policy = policy
        self.revision = 0
        """changes whenever a key that was let in may not be any more"""
        self.refused = 0
        self.failed_reloads = 0
        self._keys: frozenset[bytes] = frozenset()
        self._seen: tuple[int, int, int] | None = None
        self._check_at = now + CHECK_INTERVAL
        self._learn_until: float | None = None
        self._learning = False
        self._learned = 0
        self._wanted = policy.learn_count
        """keys in the list at which the learning ends"""
        if policy.allow is not None:
            self._open(policy.allow, now)

    def _open(self, path: Path, now: float) -> None:
        policy = self.policy
        learns = policy.learn_seconds is not None or policy.learn_count is not None
        try:
            self._keys, self._seen = _read(path)
        except FileNotFoundError:
            if not learns:
                raise ConfigError(
                    f"the list of keys {path} does not exist: make it, one public key a line"
                ) from None
        except OSError as error:
            raise ConfigError(f"cannot read the list of keys {path}: {error.strerror}") from error
        if policy.learn_count is not None:
            self._learning = len(self._keys) < policy.learn_count
        elif policy.learn_seconds is not None and not self._keys:
            self._learning = True
            self._learn_until = now + policy.learn_seconds

    @property
    def keys(self) -> int | None:
        """How many keys are listed; None if any key may come."""
        return None if self.policy.allow is None else len(self._keys)

    @property
    def learning(self) -> bool:
        """Whether keys that are not listed are let in at present."""
        return self._learning

    def refuses(self, key: bytes, now: float) -> bool:
        """Whether a handshake of this key is to be passed over in silence; counts those."""
        self.check(now)
        refused = not self.allows(key)
        self.refused += refused
        return refused

    def allows(self, key: bytes) -> bool:
        """Whether the owner of a key may come, as far as the list was read."""
        return self.policy.allow is None or self._learning or key in self._keys

    def check(self, now: float) -> None:
        """Read the file if it has changed, at most once in CHECK_INTERVAL; end the learning."""
        path = self.policy.allow
        if path is None or self._check_at - CHECK_INTERVAL <= now < self._check_at:
            return
        self._check_at = now + CHECK_INTERVAL
        if self._learn_until is not None and now >= self._learn_until:
            self._lock()
        try:
            if _identity(os.stat(path)) == self._seen:
                return
            keys, self._seen = _read(path)
        except (OSError, ConfigError) as error:
            if not isinstance(error, ConfigError):
                if self._seen is None:
                    return  # told already, or not yet made by learning
                self._seen = None
            else:
                self._seen = _identity_of(path)
            self.failed_reloads += 1
            logger.error("%s; the list as it was stays in force", error)
            return
        if not keys >= self._keys:
            self.revision += 1
        self._keys = keys
        logger.info("%d keys are allowed", len(keys))

    def proved(self, key: bytes) -> None:
        """The owner of a key has proved to be one; while learning, it is put into the list.

        To be called with `Connection.authenticated` only: anybody can replay a handshake.
        """
        path = self.policy.allow
        if not self._learning or path is None or key in self._keys:
            return
        try:
            _append(path, key, "learned")
            self._seen = _identity_of(path)
        except OSError as error:
            logger.error("cannot write the list of keys %s: %s", path, error.strerror)
            return
        self._keys |= {key}
        self._learned += 1
        logger.warning("[%s] learned: this key is allowed from now on", key.hex()[:8])
        wanted = self._wanted
        if (wanted is not None and len(self._keys) >= wanted) or self._learned >= MAX_LEARNED:
            self._lock()

    # -- what an operator does while the server runs

    def listed(self) -> list[bytes]:
        """The keys of the list, in their order as numbers."""
        return sorted(self._keys)

    def add(self, key: bytes) -> None:
        """Put a key into the list, unless it is there.

        Raises:
            ConfigError: any key may come, so there is no list; or the file cannot be written.
        """
        path = self._list_path()
        if key in self._keys:
            return
        try:
            _append(path, key, "added")
            self._seen = _identity_of(path)
        except OSError as error:
            raise ConfigError(f"cannot write the list of keys {path}: {error.strerror}") from error
        self._keys |= {key}

    def remove(self, key: bytes) -> None:
        """Take a key off the list, with its line; connections of its owner are to be ended.

        Raises:
            ConfigError: any key may come, so there is no list; or the file cannot be written.
        """
        path = self._list_path()
        try:
            _remove_line(path, key)
            self._seen = _identity_of(path)
        except OSError as error:
            raise ConfigError(f"cannot write the list of keys {path}: {error.strerror}") from error
        self._keys -= {key}
        self.revision += 1

    def learn(self, seconds: float | None, count: int | None, now: float) -> None:
        """Let every key in, and list those that prove themselves, for a time or until so many more
        are listed.

        Raises:
            ConfigError: any key may come, so there is nothing to be learned.
        """
        self._list_path()
        self._learning, self._learned = True, 0
        self._learn_until = None if seconds is None else now + seconds
        self._wanted = None if count is None else len(self._keys) + count

    def lock(self) -> None:
        """End the learning, if it goes on."""
        if self._learning:
            self._lock()

    def _list_path(self) -> Path:
        if self.policy.allow is None:
            raise ConfigError("any key may come: start the server with --allow FILE for a list")
        return self.policy.allow

    def _lock(self) -> None:
        self._learning, self._learn_until = False, None
        self.revision += 1  # those who were let in and have not proved anything yet
        logger.warning("learning is over: only the %d listed keys are allowed", len(self._keys))


def parse_key_list(text: str, name: str = "the list") -> frozenset[bytes]:
    """The public keys in the text of such a file.

    Raises:
        ConfigError: some lines are no keys; tells which.
    """
    keys = set()
    wrong = []
    for number, line in enumerate(text.splitlines(), 1):
        word = line.split("#", 1)[0].strip()
        if not word:
            continue
        key = _key(word)
        if key is None:
            wrong.append(number)
        else:
            keys.add(key)
    if wrong:
        lines = ", ".join(map(str, wrong[:MAX_COMPLAINTS]))
        more = f" and {len(wrong) - MAX_COMPLAINTS} more" if len(wrong) > MAX_COMPLAINTS else ""
        raise ConfigError(
            f"{name}, line {lines}{more}: no public key (64 hex digits or 52 letters of z-base-32)"
        )
    return frozenset(keys)


def _key(word: str) -> bytes | None:
    try:
        key = decode_public_key(word)[0]
    except DHTError:
        return None
    # The last of 52 letters has bits beyond the key: one that is not as written by us is a mistake.
    return key if len(word) != len(encode_z32(key)) or word == encode_z32(key) else None


def _read(path: Path) -> tuple[frozenset[bytes], tuple[int, int, int]]:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"the list of keys {path} is no ordinary file")
        data = file.read(MAX_FILE_SIZE + 1)
    if len(data) > MAX_FILE_SIZE:
        raise ConfigError(f"the list of keys {path} is larger than {MAX_FILE_SIZE} bytes")
    return parse_key_list(data.decode("utf-8-sig", "replace"), str(path)), _identity(status)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _identity_of(path: Path) -> tuple[int, int, int] | None:
    try:
        return _identity(os.stat(path))
    except OSError:
        return None


def _append(path: Path, key: bytes, remark: str) -> None:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags, FILE_MODE)
    with open(descriptor, "r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        torn = False
        if size:
            file.seek(size - 1)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + f"{key.hex()} # {remark}\n".encode())
        os.fsync(descriptor)


def _remove_line(path: Path, key: bytes) -> None:
    """Write the file anew without the lines of a key, whole or not at all."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines = file.readlines()
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    kept = [line for line in lines if _key(line.split("#", 1)[0].strip().lstrip("\ufeff")) != key]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(temporary, flags, mode)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
