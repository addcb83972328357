"""Errors of hyperlog.

    HyperlogError
    ├── ConfigError                 a setting that cannot be used            CONFIG_ERROR
    ├── KeyFileError                keys.dat is missing, broken or unsafe    KEY_FILE_ERROR
    ├── PeerProtocolError           bytes from a peer that break the rules   PEER_PROTOCOL_ERROR
    │   ├── BadGreeting             the server's first message               BAD_GREETING
    │   ├── BadAnswer               a later one                              BAD_ANSWER
    │   └── BadRecord               a client's message                       BAD_RECORD
    ├── ServerRefused               the server turned this client away       SERVER_REFUSED
    ├── SessionError
    │   └── SessionRewound          a failed write took back what this       SESSION_REWOUND
    │                               connection had handed over
    ├── SinkError                   records cannot be stored                 SINK_ERROR
    │   ├── LogQuotaReached         until there is room again                LOG_QUOTA_REACHED
    │   └── RateExceeded            until the sender has waited              LIMIT
    ├── StoreError
    │   ├── StoreUnavailable        the store cannot answer now              STORE_UNAVAILABLE
    │   └── QueryError              what was asked has no answer             QUERY_ERROR
    └── TokenError                  an application token that is no use      TOKEN_ERROR

Errors of the network below are hyperlog.dht's own tree. `code` names the kind for programs and
logs; the message says what to do next.
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

__all__ = [
    "BadAnswer",
    "BadGreeting",
    "BadRecord",
    "ConfigError",
    "HyperlogError",
    "KeyFileError",
    "LogQuotaReached",
    "PeerProtocolError",
    "QueryError",
    "RateExceeded",
    "ServerRefused",
    "SessionError",
    "SessionRewound",
    "SinkError",
    "StoreError",
    "StoreUnavailable",
    "TokenError",
]


class HyperlogError(Exception):
    """Root of everything that hyperlog raises on purpose."""

    code: ClassVar[str] = "HYPERLOG_ERROR"


class ConfigError(HyperlogError):
    code = "CONFIG_ERROR"


class KeyFileError(HyperlogError):
    code = "KEY_FILE_ERROR"


class PeerProtocolError(HyperlogError):
    """The only error that parsing a message of the other end can raise."""

    code = "PEER_PROTOCOL_ERROR"


class BadGreeting(PeerProtocolError):
    code = "BAD_GREETING"


class BadAnswer(PeerProtocolError):
    code = "BAD_ANSWER"


class BadRecord(PeerProtocolError):
    code = "BAD_RECORD"


class ServerRefused(HyperlogError):
    """`refusal` is the server's code for the reason, of docs/protocol/session.md section 2."""

    code = "SERVER_REFUSED"

    def __init__(self, refusal: str, reason: str) -> None:
        super().__init__(f"the server refused this client: {reason} ({refusal})")
        self.refusal = refusal


class SessionError(HyperlogError):
    code = "SESSION_ERROR"


class SessionRewound(SessionError):
    """Close this connection: the client will greet again and repeat what was not written."""

    code = "SESSION_REWOUND"


class SinkError(HyperlogError):
    """Lines were not stored, or only some of them; `lines_written` leading ones were."""

    code = "SINK_ERROR"

    def __init__(self, message: str, lines_written: int = 0) -> None:
        super().__init__(message)
        self.lines_written = lines_written


class LogQuotaReached(SinkError):
    code = "LOG_QUOTA_REACHED"


class RateExceeded(SinkError):
    """Nothing was taken; in `retry_after` seconds it may be."""

    code = "LIMIT"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoreError(HyperlogError):
    code = "STORE_ERROR"


class StoreUnavailable(StoreError):
    code = "STORE_UNAVAILABLE"


class QueryError(StoreError):
    """`position` counts characters of the text of the query, from 0; None if it was none."""

    code = "QUERY_ERROR"

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


TokenRefusal: TypeAlias = Literal[
    "TOKEN_INVALID", "TOKEN_EXPIRED", "TOKEN_REVOKED", "TOKEN_MISMATCH", "TOKEN_REQUIRED"
]


class TokenError(HyperlogError):
    """`refusal` is the code for the reason, of docs/protocol/session.md section 2; the message is
    fit for whoever sent the token."""

    code = "TOKEN_ERROR"

    def __init__(self, refusal: TokenRefusal, reason: str) -> None:
        super().__init__(reason)
        self.refusal: TokenRefusal = refusal
