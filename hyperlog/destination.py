"""Where the records of a spool go, kept beside it for who delivers them later.

A spool's folder has the server in its name if that is a public key, and a digest otherwise. What
else a server is told about the sender of the records lies in a small file beside the folder. It
contains no token.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

__all__ = ["Destination"]

logger = logging.getLogger("hyperlog.client")

MAX_FILE: Final = 4096  # bytes


@dataclass(frozen=True, slots=True)
class Destination:
    """What a spool's records are sent with, the token left out."""

    server: str
    """public key in hex, or address"""
    application: str | None
    instance: str
    allow_plain: bool = False
    ca_file: str | None = None

    @staticmethod
    def path(spool: Path) -> Path:
        """The file beside the folder `spool`."""
        return spool.with_name(f"{spool.name}.json")

    def write(self, spool: Path) -> None:
        """Keep it beside a folder; without it only the application itself can deliver the
        records, so that a failure is no reason to stop."""
        path = self.path(spool)
        try:
            data = msgspec.json.encode(self)
            if path.exists() and path.read_bytes() == data:
                return
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A name of its own, since several processes may do this at a time.
            new = path.with_name(f"{path.name}.{os.getpid()}")
            new.unlink(missing_ok=True)
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
            os.replace(new, path)
        except (OSError, UnicodeEncodeError) as err:  # ca_file may have a name that is no text
            logger.info("where the spool's records go cannot be kept beside it: %s", err)

    @classmethod
    def read(cls, spool: Path) -> Destination | None:
        """What is kept beside a folder; None if there is nothing that can be read."""
        try:
            with open(cls.path(spool), "rb") as file:
                data = file.read(MAX_FILE + 1)
            return msgspec.json.decode(data, type=cls)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
