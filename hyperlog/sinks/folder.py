"""The files of a log folder: which there are, what they take up, and which of them have to go.

    <64 hex digits>.log        a key's live file, what tailers read
    <64 hex digits>.log.<n>    rotated files, the highest number is the newest

Everything else in the folder is left alone and not counted. The table of files is kept in memory
and read again by `rescan`, so that files that others move or remove are noticed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

from hyperlog.errors import ConfigError, LogQuotaReached

__all__ = ["FilePolicy", "LogFolder", "log_files"]

KEY_SIZE: Final = 32  # bytes
_NAME = re.compile(r"([0-9a-f]{64})\.log(?:\.([1-9][0-9]{0,8}))?")


@dataclass(frozen=True, slots=True)
class FilePolicy:
    """When files are rotated and removed, and how much there may be. Sizes in bytes, ages in s."""

    rotate_size: int | None = 100 * 1024 * 1024
    """a live file that would grow beyond is rotated first"""
    rotate_age: float | None = None
    """a live file whose first line is older is rotated before the next line"""
    keep_bytes: int | None = None
    """rotated files are removed while all files together take up more"""
    keep_age: float | None = None
    """rotated files that were last written longer ago are removed, and idle live files too"""
    quota: int | None = 64 * 1024**3
    """nothing is written while all files together take up more"""
    key_quota: int | None = 4 * 1024**3
    """nothing is written for a key while its files take up more"""
    max_keys: int | None = 10_000
    """no new key is taken while there are files of so many"""

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and not value > 0:
                raise ConfigError(f"{limit.name} is {value}: a limit is above 0")
        if self.quota is not None and self.keep_bytes is not None and self.keep_bytes > self.quota:
            raise ConfigError(
                f"{self.keep_bytes} bytes cannot be kept within a quota of {self.quota}"
            )


@dataclass(slots=True)
class _Rotated:
    size: int
    modified: float


@dataclass(slots=True)
class _KeyFiles:
    live: int = 0
    modified: float = 0.0
    """of the live file, as far as known"""
    rotated: dict[int, _Rotated] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.live + sum(file.size for file in list(self.rotated.values()))


class LogFolder:
    """The table of a folder's files. One thread changes it; others may ask what there is, and
    `check_quota`."""

    def __init__(self, path: Path, policy: FilePolicy) -> None:
        self.path = path
        self.policy = policy
        self.removed = 0
        """files removed by retention"""
        self._keys: dict[bytes, _KeyFiles] = {}
        self._size = 0

    # -- what there is

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return self._size

    @property
    def files(self) -> int:
        return sum(len(files.rotated) + 1 for files in list(self._keys.values()))

    @property
    def keys(self) -> int:
        return len(self._keys)

    def size_of(self, key: bytes) -> int:
        """Bytes of a key's files."""
        files = self._keys.get(key)
        return 0 if files is None else files.size

    def live_path(self, key: bytes) -> Path:
        """The live file of a key."""
        if len(key) != KEY_SIZE:
            raise ValueError(f"a key has {KEY_SIZE} bytes, got {len(key)}")
        return self.path / f"{key.hex()}.log"

    def rotated_path(self, key: bytes, number: int) -> Path:
        return self.path / f"{key.hex()}.log.{number}"

    def rotated_paths(self, key: bytes) -> list[Path]:
        """The rotated files of a key, the newest first; also a `.1`, and those with the next
        numbers, that somebody else has made since the folder was read.

        Raises:
            OSError: they cannot be looked at.
        """
        files = self._keys.get(key)
        numbers = {1} if files is None else {1, *list(files.rotated)}
        number = max(numbers) + 1
        while os.path.lexists(self.rotated_path(key, number)):
            numbers.add(number)
            number += 1
        found = []
        for number in numbers:
            path = self.rotated_path(key, number)
            try:
                # Not what the table knows: somebody may have renamed them in turn.
                found.append((path.lstat().st_mtime_ns, number, path))
            except FileNotFoundError:
                pass
        return [path for _, _, path in sorted(found, reverse=True)]

    def rescan(self) -> None:
        """Read the folder; one that is not there counts as empty.

        Raises:
            OSError: it cannot be read.
        """
        keys: dict[bytes, _KeyFiles] = {}
        size = 0
        for key, number, status in log_files(self.path):
            files = keys.setdefault(key, _KeyFiles())
            size += status.st_size
            if number is None:
                files.live, files.modified = status.st_size, status.st_mtime
            else:
                files.rotated[number] = _Rotated(status.st_size, status.st_mtime)
        self._keys, self._size = keys, size

    # -- what happens to files

    def opened(self, key: bytes, size: int, now: float) -> None:
        """The live file of a key is there and has `size` bytes."""
        files = self._keys.setdefault(key, _KeyFiles())
        self._size += size - files.live
        files.live, files.modified = size, now

    def grown(self, key: bytes, count: int, now: float) -> None:
        """`count` bytes were appended to the live file of a key."""
        files = self._keys.setdefault(key, _KeyFiles())
        files.live += count
        files.modified = now
        self._size += count

    def next_number(self, key: bytes) -> int:
        """The number that the live file gets when it is rotated."""
        files = self._keys.get(key)
        number = max(files.rotated, default=0) + 1 if files is not None else 1
        while os.path.lexists(self.rotated_path(key, number)):
            number += 1
        return number

    def rotated(self, key: bytes, number: int, now: float) -> None:
        """The live file of a key was renamed."""
        files = self._keys.setdefault(key, _KeyFiles())
        files.rotated[number] = _Rotated(files.live, now)
        files.live = 0

    # -- limits

    def check_quota(self, key: bytes) -> None:
        """Make sure that lines of a key may be written, from what the table knows.

        Raises:
            LogQuotaReached: they may not, until retention or somebody makes room.
        """
        policy = self.policy
        if policy.quota is not None and self._size >= policy.quota:
            raise LogQuotaReached(
                f"the log folder {self.path} holds {self._size} bytes, its quota: move files away, "
                "or raise --quota, or set --keep-bytes below it"
            )
        files = self._keys.get(key)
        if files is None:
            if policy.max_keys is not None and len(self._keys) >= policy.max_keys:
                raise LogQuotaReached(
                    f"the log folder {self.path} holds files of {len(self._keys)} keys, the limit: "
                    "move files away, or raise --max-keys, or let in known keys only (--allow)"
                )
        elif policy.key_quota is not None and files.size >= policy.key_quota:
            raise LogQuotaReached(
                f"the files of {key.hex()[:8]} in {self.path} hold {files.size} bytes, the quota "
                "of a key: move some away, or raise --key-quota"
            )

    # -- retention

    def remove_old(self, now: float) -> None:
        """Remove rotated files that are too old or too many; `now` is in seconds since 1970.

        For their bytes, the oldest goes first among the keys that hold more than an even share, so
        that a noisy key pushes out its own files and not those of quiet ones. Live files stay, but
        for those that are idle for longer than keep_age.

        Raises:
            OSError: a file cannot be removed.
        """
        policy = self.policy
        if policy.keep_age is not None:
            self._remove_aged(now - policy.keep_age)
        if policy.keep_bytes is not None and self._size > policy.keep_bytes:
            self._remove_surplus(policy.keep_bytes)

    def _remove_aged(self, before: float) -> None:
        for key, files in list(self._keys.items()):
            for number, file in list(files.rotated.items()):
                if file.modified < before:
                    self._remove(key, number)
            if files.live and files.modified < before:
                status = self.live_path(key).lstat()
                if status.st_mtime < before:
                    self._unlink(self.live_path(key))
                    self._size -= files.live
                    files.live = 0
            if not files.rotated and files.modified < before:
                del self._keys[key]

    def _remove_surplus(self, keep: int) -> None:
        share = keep // max(len(self._keys), 1)
        oldest_first = sorted(
            (file.modified, number, key)
            for key, files in self._keys.items()
            for number, file in files.rotated.items()
        )
        for least in (share, 0):
            for _, number, key in oldest_first:
                if self._size <= keep:
                    return
                files = self._keys[key]
                if number in files.rotated and files.size > least:
                    self._remove(key, number)

    def _remove(self, key: bytes, number: int) -> None:
        self._unlink(self.rotated_path(key, number))
        self._size -= self._keys[key].rotated.pop(number).size

    def _unlink(self, path: Path) -> None:
        try:
            path.unlink()
            self.removed += 1
        except FileNotFoundError:
            pass  # somebody was faster


def log_files(folder: Path) -> Iterator[tuple[bytes, int | None, os.stat_result]]:
    """Source, number if it is a rotated file, and status of all log files; none without a folder.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            match = _NAME.fullmatch(entry.name)
            if match is None:
                continue
            try:
                if entry.is_file(follow_symlinks=False):
                    number = int(match[2]) if match[2] else None
                    yield bytes.fromhex(match[1]), number, entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                pass  # moved away meanwhile
