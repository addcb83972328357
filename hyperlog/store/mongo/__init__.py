"""The store in a MongoDB, for installations that have one: see docs/mongodb.md.

It needs the extra `mongo`, so what is below is imported when it is used, not before.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hyperlog.errors import ConfigError

if TYPE_CHECKING:
    from hyperlog.store.mongo.store import MongoStore

__all__ = ["open_mongo"]


def open_mongo(uri: str, folder: Path, *, server: str, ttl: float | None = None) -> MongoStore:
    """The store in the database that the URI names; see MongoStore.

    Raises:
        ConfigError: it is no URI of a MongoDB, or the driver is not installed.
    """
    try:
        import pymongo  # noqa: F401
    except ImportError:
        raise ConfigError(
            "MongoDB needs its driver: python -m pip install 'hyperlog-p2p[mongo]'"
        ) from None
    from hyperlog.store.mongo.store import MongoStore

    return MongoStore(uri, folder, server=server, ttl=ttl)
