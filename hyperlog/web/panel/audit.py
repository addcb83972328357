"""What was done in the panel, as records of an instance of its own."""

from __future__ import annotations

import logging
from typing import Final

import msgspec
import trio

from hyperlog.errors import SinkError
from hyperlog.intake import Intake
from hyperlog.records import instance_source
from hyperlog.senders import OWN_APPLICATION, Sender

__all__ = ["AuditLog"]

logger = logging.getLogger("hyperlog.web.panel")

INSTANCE: Final = "panel"
MAX_WAITING: Final = 1000  # entries

_encode = msgspec.json.Encoder().encode


class AuditLog:
    """Takes entries at any time; `run` writes them."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._send, self._receive = trio.open_memory_channel[bytes](MAX_WAITING)
        source = instance_source(OWN_APPLICATION, INSTANCE)
        self._sender = Sender(source, None, OWN_APPLICATION, INSTANCE, "internal", "")

    def __call__(self, what: str, fields: dict[str, object]) -> None:
        logger.info("%s", what)
        level = "WARNING" if what.endswith("failed") else "INFO"
        entry = {"level": level, "logger": "hyperlog.audit", "message": what, "attributes": fields}
        try:
            self._send.send_nowait(_encode(entry))
        except trio.WouldBlock:
            logger.error("an audit entry was lost, since the log cannot be written: %s", what)

    async def run(self) -> None:
        """Write entries until cancelled."""
        async for entry in self._receive:
            try:
                refusals = await self._intake.take(self._sender, [entry])
            except SinkError as error:  # a full disk, say: the server goes on without it
                refusals = [str(error)]
            for refusal in refusals:
                if refusal is not None:
                    logger.error("an audit entry was not written: %s", refusal)
