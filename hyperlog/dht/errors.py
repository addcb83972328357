"""Errors of hyperlog.dht.

    DHTError
    ├── ProtocolError
    │   ├── LocalProtocolError          our caller broke the rules of a protocol core
    │   └── RemoteProtocolError         bytes from the network that no honest peer sends
    │       ├── Truncated               fewer bytes than a length or a layout promises
    │       ├── InvalidValue            a field outside its range
    │       └── BadSignature            a signature, MAC or handshake tag that does not verify
    ├── RequestError
    │   ├── RequestTimeout              no reply after all tries            REQUEST_TIMEOUT
    │   ├── RequestDestroyed            the node closed meanwhile           REQUEST_DESTROYED
    │   ├── RequestSuspended            the node is suspended               IO_SUSPENDED
    │   ├── InvalidTicket               the node refused our ticket         INVALID_TOKEN
    │   ├── UnknownCommand              the node does not serve it          UNKNOWN_COMMAND
    │   ├── SeqReused                   another value has that number       SEQ_REUSED
    │   ├── SeqTooLow                   a value has a higher number         SEQ_TOO_LOW
    │   └── TooFewNodes                 a commit reached no node            TOO_FEW_NODES
    ├── ConnectError
    │   ├── PeerNotFound                nobody announces the key            PEER_NOT_FOUND
    │   ├── PeerConnectionFailed        announced, but no handshake         PEER_CONNECTION_FAILED
    │   ├── HandshakeFailed             the peer's answer is unusable       HANDSHAKE_INVALID
    │   ├── BadHandshakeReply           the relaying node's answer is       BAD_HANDSHAKE_REPLY
    │   ├── BadHolepunchReply                                               BAD_HOLEPUNCH_REPLY
    │   ├── ServerIncompatible          payload version is not 1            SERVER_INCOMPATIBLE
    │   ├── ServerError                 the server answered with an error   SERVER_ERROR
    │   ├── HolepunchFailed             no path between the two NATs        HOLEPUNCH_ABORTED
    │   │   ├── HolepunchProbeTimeout                                       HOLEPUNCH_PROBE_TIMEOUT
    │   │   ├── HolepunchInvalid                                            HOLEPUNCH_INVALID
    │   │   ├── DoubleRandomizedNATs                               HOLEPUNCH_DOUBLE_RANDOMIZED_NATS
    │   │   ├── CannotHolepunch         the server offers no relay node     CANNOT_HOLEPUNCH
    │   │   ├── RemoteNotHolepunching                                       REMOTE_NOT_HOLEPUNCHING
    │   │   └── RemoteNotHolepunchable                                     REMOTE_NOT_HOLEPUNCHABLE
    │   ├── RemoteAborted               the server gave the attempt up      REMOTE_ABORTED
    │   ├── RelayError                  no path through the relay           RELAY_ABORTED
    │   │   ├── RelayUnreachable        no connection to the relay itself
    │   │   ├── RelayRefused            it is no relay, or its limits are reached
    │   │   └── RelayAborted            it was lost, or has ended the path
    │   ├── DuplicateConnection         the pool keeps another one          DUPLICATE_CONNECTION
    │   └── Suspended                   the node is suspended               SUSPENDED
    ├── ListenError
    │   ├── AlreadyListening                                                ALREADY_LISTENING
    │   └── KeyPairInUse                                                    KEYPAIR_ALREADY_USED
    ├── NodeDestroyed                   the node is closed                  NODE_DESTROYED
    └── StreamError
        ├── StreamReset                 the peer destroyed the stream       ECONNRESET
        └── StreamTimeout               the peer stopped acknowledging      ETIMEDOUT

`code` is the string that the JavaScript packages use for the same event (hyperdht lib/errors.js,
dht-rpc lib/errors.js, udx-native), so that both sides' logs can be read together.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AlreadyListening",
    "BadHandshakeReply",
    "BadHolepunchReply",
    "BadSignature",
    "CannotHolepunch",
    "ConnectError",
    "DHTError",
    "DoubleRandomizedNATs",
    "DuplicateConnection",
    "HandshakeFailed",
    "HolepunchFailed",
    "HolepunchInvalid",
    "HolepunchProbeTimeout",
    "InvalidTicket",
    "InvalidValue",
    "KeyPairInUse",
    "ListenError",
    "LocalProtocolError",
    "NodeDestroyed",
    "PeerConnectionFailed",
    "PeerNotFound",
    "ProtocolError",
    "RelayAborted",
    "RelayError",
    "RelayRefused",
    "RelayUnreachable",
    "RemoteAborted",
    "RemoteNotHolepunchable",
    "RemoteNotHolepunching",
    "RemoteProtocolError",
    "RequestDestroyed",
    "RequestError",
    "RequestSuspended",
    "RequestTimeout",
    "SeqReused",
    "SeqTooLow",
    "ServerError",
    "ServerIncompatible",
    "StreamError",
    "StreamReset",
    "StreamTimeout",
    "Suspended",
    "TooFewNodes",
    "Truncated",
    "UnknownCommand",
]


class DHTError(Exception):
    """Root of everything that hyperlog.dht raises on purpose."""

    code: ClassVar[str] = "DHT_ERROR"


class ProtocolError(DHTError):
    code = "PROTOCOL_ERROR"


class LocalProtocolError(ProtocolError):
    """The caller of a protocol core asked for something that its state does not allow."""

    code = "LOCAL_PROTOCOL_ERROR"


class RemoteProtocolError(ProtocolError):
    """The only error that parsing or authenticating network bytes can raise."""

    code = "REMOTE_PROTOCOL_ERROR"


class Truncated(RemoteProtocolError):
    code = "TRUNCATED"


class InvalidValue(RemoteProtocolError):
    code = "INVALID_VALUE"


class BadSignature(RemoteProtocolError):
    code = "BAD_SIGNATURE"


class RequestError(DHTError):
    code = "REQUEST_ERROR"


class RequestTimeout(RequestError):
    code = "REQUEST_TIMEOUT"


class RequestDestroyed(RequestError):
    code = "REQUEST_DESTROYED"


class RequestSuspended(RequestError):
    code = "IO_SUSPENDED"


class InvalidTicket(RequestError):
    """The answering node does not accept the round-trip token any more: ask it again first."""

    code = "INVALID_TOKEN"


class UnknownCommand(RequestError):
    code = "UNKNOWN_COMMAND"


class SeqReused(RequestError):
    """The sequence number belongs to another mutable value of the same key already."""

    code = "SEQ_REUSED"


class SeqTooLow(RequestError):
    """A mutable value with a higher sequence number is stored under the same key."""

    code = "SEQ_TOO_LOW"


class TooFewNodes(RequestError):
    code = "TOO_FEW_NODES"


class ConnectError(DHTError):
    code = "CONNECT_ERROR"


class PeerNotFound(ConnectError):
    code = "PEER_NOT_FOUND"


class PeerConnectionFailed(ConnectError):
    code = "PEER_CONNECTION_FAILED"


class HandshakeFailed(ConnectError):
    code = "HANDSHAKE_INVALID"


class BadHandshakeReply(ConnectError):
    code = "BAD_HANDSHAKE_REPLY"


class BadHolepunchReply(ConnectError):
    code = "BAD_HOLEPUNCH_REPLY"


class ServerIncompatible(ConnectError):
    code = "SERVER_INCOMPATIBLE"


class ServerError(ConnectError):
    code = "SERVER_ERROR"


class HolepunchFailed(ConnectError):
    code = "HOLEPUNCH_ABORTED"


class HolepunchProbeTimeout(HolepunchFailed):
    code = "HOLEPUNCH_PROBE_TIMEOUT"


class HolepunchInvalid(HolepunchFailed):
    code = "HOLEPUNCH_INVALID"


class DoubleRandomizedNATs(HolepunchFailed):
    code = "HOLEPUNCH_DOUBLE_RANDOMIZED_NATS"


class CannotHolepunch(HolepunchFailed):
    code = "CANNOT_HOLEPUNCH"


class RemoteNotHolepunching(HolepunchFailed):
    code = "REMOTE_NOT_HOLEPUNCHING"


class RemoteNotHolepunchable(HolepunchFailed):
    code = "REMOTE_NOT_HOLEPUNCHABLE"


class RemoteAborted(ConnectError):
    code = "REMOTE_ABORTED"


class RelayError(ConnectError):
    """The relay gave us no path to the peer."""

    code = "RELAY_ABORTED"


class RelayUnreachable(RelayError):
    """No connection to the relay: its own error is the cause."""


class RelayRefused(RelayError):
    """The peer under the relay's key relays nothing, or not for us, or not now."""


class RelayAborted(RelayError):
    """The connection to the relay ended, or the relay ended the path."""


class DuplicateConnection(ConnectError):
    """A pool has another connection to the peer, and keeps only one."""

    code = "DUPLICATE_CONNECTION"


class Suspended(ConnectError):
    """The node was suspended, or is: connect again after DHT.resume."""

    code = "SUSPENDED"


class ListenError(DHTError):
    code = "LISTEN_ERROR"


class AlreadyListening(ListenError):
    code = "ALREADY_LISTENING"


class KeyPairInUse(ListenError):
    code = "KEYPAIR_ALREADY_USED"


class NodeDestroyed(DHTError):
    code = "NODE_DESTROYED"


class StreamError(DHTError):
    code = "STREAM_ERROR"


class StreamReset(StreamError):
    code = "ECONNRESET"


class StreamTimeout(StreamError):
    code = "ETIMEDOUT"
