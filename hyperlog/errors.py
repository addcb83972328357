"""Errors of hyperlog.

    HyperlogError
    ├── ConfigError                 a setting that cannot be used            CONFIG_ERROR
    ├── KeyFileError                keys.dat is missing, broken or unsafe    KEY_FILE_ERROR
    ├── PeerProtocolError           bytes from a peer that break the rules   PEER_PROTOCOL_ERROR
    │   ├── BadGreeting             the server's first message               BAD_GREETING
    │   └── BadRecord               a client's message                       BAD_RECORD
    ├── SessionError
    │   └── SessionRewound          a failed write took back what this       SESSION_REWOUND
    │                               connection had handed over
    └── SinkError                   records cannot be stored                 SINK_ERROR

Errors of the network below are hyperlog.dht's own tree. `code` names the kind for programs and
logs; the message says what to do next.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BadGreeting",
    "BadRecord",
    "ConfigError",
    "HyperlogError",
    "KeyFileError",
    "PeerProtocolError",
    "SessionError",
    "SessionRewound",
    "SinkError",
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


class BadRecord(PeerProtocolError):
    code = "BAD_RECORD"


class SessionError(HyperlogError):
    code = "SESSION_ERROR"


class SessionRewound(SessionError):
    """Close this connection: the client will greet again and repeat what was not written."""

    code = "SESSION_REWOUND"


class SinkError(HyperlogError):
    code = "SINK_ERROR"
