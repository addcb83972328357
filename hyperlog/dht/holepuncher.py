"""Service: hole punching, from either side."""

from __future__ import annotations

from hyperlog.dht.clientpunch import punch_as_client
from hyperlog.dht.serverpunch import ServerPunch

__all__ = ["ServerPunch", "punch_as_client"]
