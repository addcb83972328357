"""Who sends records, and whether they may: names, application tokens.

Tokens are needed by few servers and their packages are not in every installation, so the registry
of tokens is opened when there is a reason: it exists, tokens are required, or HTTP is served.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from hyperlog.control import Hello, Refusal, name_fault
from hyperlog.errors import BadRecord, ConfigError, KeyFileError, TokenError
from hyperlog.limits import Complaints
from hyperlog.records import DEFAULT_APPLICATION

if TYPE_CHECKING:
    from hyperlog.tokens import TokenAuthority, TokenClaims

__all__ = ["OWN_APPLICATION", "Permits", "Sender", "Transport"]

logger = logging.getLogger("hyperlog.senders")

REGISTRY_NAME: Final = "registry.sqlite"
OWN_APPLICATION: Final = "hyperlog server"
"""of the server's own records; nobody else can use the name"""

Transport: TypeAlias = Literal["hyperdht", "websocket", "http", "internal"]
"""the last for records of the server's own"""


@dataclass(slots=True)
class Sender:
    """One end of a connection, or of a request, that sends records."""

    source: bytes
    """32 bytes, the name of its log file: its key, or `records.instance_source`"""
    key: bytes | None
    """public key that it has proved"""
    application: str | None
    instance: str | None
    transport: Transport
    socket: str
    """`host:port`"""
    claims: TokenClaims | None = None
    """of a token that was verified"""

    @property
    def name(self) -> str:
        """For log entries."""
        return self.source.hex()[:8]

    @property
    def told_instance(self) -> str:
        """The instance's name, or what stands for it."""
        return self.source.hex()[:8] if self.instance is None else self.instance

    @property
    def told_application(self) -> str:
        return DEFAULT_APPLICATION if self.application is None else self.application


class Permits:
    """Decides about senders. For one thread."""

    def __init__(self, folder: Path, *, required: bool, served: bool) -> None:
        """`folder` has the registry of tokens; `served` makes one there in any case.

        Raises:
            ConfigError: tokens are needed, and PyJWT is not installed.
            KeyFileError: the registry cannot be used.
        """
        self.authority: TokenAuthority | None = None
        self.refusals: Counter[str] = Counter()
        """by code"""
        self.required = required
        self._folder = folder
        self._complaints = Complaints(logger)
        if required or served or self._has_registry():
            self._open(must=required or served)

    def close(self) -> None:
        if self.authority is not None:
            self.authority.close()

    def admit(self, sender: Sender, hello: Hello | None) -> Refusal | None:
        """Whether a sender may bring records; its names and claims are set if it may.

        `hello` is None for what speaks the JavaScript rule. The hello of a sender with a key has to
        have come over a connection that proved the key.
        """
        try:
            self._admit(sender, hello)
        except TokenError as error:
            return Refusal(error.refusal, str(error))
        except BadRecord as error:
            return Refusal("HELLO", str(error))
        return None

    def permit(self, sender: Sender) -> None:
        """The same for a sender of requests, whose token was verified.

        Raises:
            TokenError: it may not, for want of a token or because it is for others.
            BadRecord: its names cannot be used.
        """
        try:
            self._admit(sender, None)
        except TokenError as error:
            self.refused(sender, Refusal(error.refusal, str(error)))
            raise

    def check(self, sender: Sender) -> Refusal | None:
        """Whether a sender that was admitted is to go now, since its token is no longer valid."""
        if sender.claims is None or self.authority is None:
            return None
        error = self.authority.refuses(sender.claims, time.time())
        return None if error is None else Refusal(error.refusal, str(error))

    def refused(self, sender: Sender, refusal: Refusal) -> None:
        """Count a refusal and tell the operator, each kind once a minute."""
        self.refusals[refusal.code] += 1
        text = f"[{sender.name}] refused over {sender.transport}: {refusal.reason} ({refusal.code})"
        self._complaints.warn(refusal.code, text, time.monotonic())

    def reload(self) -> None:
        """Take in tokens that were issued or revoked meanwhile; to be called twice a second."""
        if self.authority is None:
            return
        try:
            self.authority.reload()
        except KeyFileError as error:
            self._complaints.warn("registry", str(error), time.monotonic())

    # -- inside

    def _admit(self, sender: Sender, hello: Hello | None) -> None:
        application, instance = sender.application, sender.instance
        token = None
        if hello is not None:
            token = hello.token
            application = application if hello.application is None else hello.application
            instance = instance if hello.instance is None else hello.instance
        for field, told in (("application", application), ("instance", instance)):
            fault = None if told is None else name_fault(field, told)
            if fault is not None:
                raise BadRecord(fault)
        claims = sender.claims
        if token is not None:
            claims = self._verify(token, sender.key)
        if claims is not None:
            if application not in (None, claims.application):
                raise TokenError("TOKEN_MISMATCH", "the token is for another application")
            application = claims.application
            instance = instance or _only_instance(claims) or sender.name
            if not claims.allows_instance(instance):
                raise TokenError("TOKEN_MISMATCH", "the token is for other instances")
        elif sender.transport != "internal" and (self.required or sender.key is None):
            # Pages of any origin can open a WebSocket: without a key there has to be a token.
            raise TokenError(
                "TOKEN_REQUIRED", "this server wants an application token: ask its operator"
            )
        if application is not None or instance is not None:
            application = application or DEFAULT_APPLICATION
            instance = instance or sender.name
        if application == OWN_APPLICATION and sender.transport != "internal":
            raise BadRecord(f"application: {OWN_APPLICATION!r} is the server itself")
        sender.application, sender.instance, sender.claims = application, instance, claims

    def _verify(self, token: str, key: bytes | None) -> TokenClaims:
        if self.authority is None and self._has_registry():
            try:
                self._open(must=True)
            except (ConfigError, KeyFileError) as error:
                self._complaints.warn("registry", str(error), time.monotonic())
        if self.authority is None:
            raise TokenError("TOKEN_INVALID", "this server has issued no tokens")
        self.reload()  # it may have been issued a moment ago
        return self.authority.verify(token, time.time(), scope="ingest", key=key)

    def _has_registry(self) -> bool:
        return (self._folder / REGISTRY_NAME).exists()

    def _open(self, *, must: bool) -> None:
        # With their packages, which not all have.
        from hyperlog.registry import SERVER_PATIENCE
        from hyperlog.tokens import TokenAuthority

        try:
            self.authority = TokenAuthority(self._folder, patience=SERVER_PATIENCE)
        except ConfigError as error:
            if must:
                raise
            logger.warning("%s. Until then whoever shows a token is refused", error)


def _only_instance(claims: TokenClaims) -> str | None:
    """The one instance that a token is for, unless it is for several."""
    return None if set("*?[") & set(claims.instances) else claims.instances
