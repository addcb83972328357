"""HyperDHT for Python: encrypted connections addressed by public key, peer to peer.

    async with open_dht() as dht:
        listener = await dht.listen()
        connection = await listener.accept()

    async with open_dht() as dht:
        connection = await dht.connect(public_key)
        await connection.send(b"one message")

Wire-compatible with the JavaScript package hyperdht. Imports nothing from the rest of hyperlog.
"""

from hyperlog.dht.commandcounts import CommandStatistics
from hyperlog.dht.commands.messages import NoisePayload, Peer
from hyperlog.dht.compact import Address
from hyperlog.dht.connect import ConnectStatistics
from hyperlog.dht.connection import Connection, ConnectionStatistics, Opening
from hyperlog.dht.constants import BOOTSTRAP_NODES
from hyperlog.dht.diagnosis import (
    Announcement,
    Diagnosis,
    NameLookup,
    NATJudgement,
    NodeProbe,
    PeerAnswer,
    PeerProbe,
    addresses_of,
    firewall_kind,
    look_up,
    probe_node,
)
from hyperlog.dht.errors import (
    BadHandshakeReply,
    ConnectError,
    DHTError,
    DoubleRandomizedNATs,
    DuplicateConnection,
    HandshakeFailed,
    HolepunchFailed,
    KeyPairInUse,
    ListenError,
    LocalProtocolError,
    NodeDestroyed,
    PeerConnectionFailed,
    PeerNotFound,
    ProtocolError,
    RelayAborted,
    RelayError,
    RelayRefused,
    RelayUnreachable,
    RemoteAborted,
    RemoteProtocolError,
    RequestDestroyed,
    RequestError,
    RequestSuspended,
    RequestTimeout,
    SeqReused,
    SeqTooLow,
    ServerError,
    ServerIncompatible,
    StreamError,
    StreamReset,
    StreamTimeout,
    Suspended,
    TooFewNodes,
)
from hyperlog.dht.holepunch.punches import PunchCounts, PunchStatistics
from hyperlog.dht.hyperdht import DHT, DHTStatistics
from hyperlog.dht.keys import KeyPair
from hyperlog.dht.listener import Firewall, Listener, ListenerStatistics
from hyperlog.dht.memory import MemoryStatistics
from hyperlog.dht.opening import open_dht
from hyperlog.dht.paths import RelayChoice
from hyperlog.dht.pool import ConnectionPool
from hyperlog.dht.publickey import decode_public_key, encode_address, encode_z32
from hyperlog.dht.relayserver import RelayLimits, RelayServer, RelayStatistics
from hyperlog.dht.simnat import SimNat
from hyperlog.dht.simulation import SimClock, SimHost, SimLink, SimNetwork
from hyperlog.dht.storage import ImmutableValue, MutableValue, StoredImmutable, StoredMutable
from hyperlog.dht.streams import UDXStream
from hyperlog.dht.testing import SimTestnet, Testnet, sim_testnet, testnet

__all__ = [
    "BOOTSTRAP_NODES",
    "DHT",
    "Address",
    "Announcement",
    "BadHandshakeReply",
    "CommandStatistics",
    "ConnectError",
    "ConnectStatistics",
    "Connection",
    "ConnectionPool",
    "ConnectionStatistics",
    "DHTError",
    "DHTStatistics",
    "Diagnosis",
    "DoubleRandomizedNATs",
    "DuplicateConnection",
    "Firewall",
    "HandshakeFailed",
    "HolepunchFailed",
    "ImmutableValue",
    "KeyPair",
    "KeyPairInUse",
    "ListenError",
    "Listener",
    "ListenerStatistics",
    "LocalProtocolError",
    "MemoryStatistics",
    "MutableValue",
    "NATJudgement",
    "NameLookup",
    "NodeDestroyed",
    "NodeProbe",
    "NoisePayload",
    "Opening",
    "Peer",
    "PeerAnswer",
    "PeerConnectionFailed",
    "PeerNotFound",
    "PeerProbe",
    "ProtocolError",
    "PunchCounts",
    "PunchStatistics",
    "RelayAborted",
    "RelayChoice",
    "RelayError",
    "RelayLimits",
    "RelayRefused",
    "RelayServer",
    "RelayStatistics",
    "RelayUnreachable",
    "RemoteAborted",
    "RemoteProtocolError",
    "RequestDestroyed",
    "RequestError",
    "RequestSuspended",
    "RequestTimeout",
    "SeqReused",
    "SeqTooLow",
    "ServerError",
    "ServerIncompatible",
    "SimClock",
    "SimHost",
    "SimLink",
    "SimNat",
    "SimNetwork",
    "SimTestnet",
    "StoredImmutable",
    "StoredMutable",
    "StreamError",
    "StreamReset",
    "StreamTimeout",
    "Suspended",
    "Testnet",
    "TooFewNodes",
    "UDXStream",
    "addresses_of",
    "decode_public_key",
    "encode_address",
    "encode_z32",
    "firewall_kind",
    "look_up",
    "open_dht",
    "probe_node",
    "sim_testnet",
    "testnet",
]
