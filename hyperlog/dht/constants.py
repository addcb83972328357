"""Numbers that two or more layers share; a number of one module stands at the top of that module.

Sources: hyperdht lib/constants.js and dht-rpc lib/commands.js; docs/protocol/hyperdht.md.
"""

from __future__ import annotations

from typing import Final

# Commands of a HyperDHT node (dht-rpc user space).
PEER_HANDSHAKE: Final = 0
PEER_HOLEPUNCH: Final = 1
FIND_PEER: Final = 2
LOOKUP: Final = 3
ANNOUNCE: Final = 4
UNANNOUNCE: Final = 5
MUTABLE_PUT: Final = 6
MUTABLE_GET: Final = 7
IMMUTABLE_PUT: Final = 8
IMMUTABLE_GET: Final = 9
PLUGIN: Final = 10

# Firewall kinds (the `firewall` fields).
FIREWALL_UNKNOWN: Final = 0
FIREWALL_OPEN: Final = 1
FIREWALL_CONSISTENT: Final = 2
FIREWALL_RANDOM: Final = 3

# The `error` fields of Noise and hole punch payloads.
ERROR_NONE: Final = 0
ERROR_ABORTED: Final = 1
ERROR_VERSION_MISMATCH: Final = 2
ERROR_TRY_LATER: Final = 3

# The `error` fields of replies to MUTABLE_PUT.
SEQ_REUSED: Final = 16
SEQ_TOO_LOW: Final = 17

# Modes of the handshake and hole punch messages.
FROM_CLIENT: Final = 0
FROM_SERVER: Final = 1
FROM_RELAY: Final = 2
FROM_SECOND_RELAY: Final = 3
REPLY: Final = 4

K: Final = 20
"""Nodes in a k-bucket, in a reply's closer_nodes, and in a query's result (dht-rpc)."""

KEEP_ALIVE: Final = 5.0
"""Seconds without a write after which a connection sends an empty message (hyperdht index.js)."""

BOOTSTRAP_NODES: Final = (
    ("node1.hyperdht.org", 49737),
    ("node2.hyperdht.org", 49737),
    ("node3.hyperdht.org", 49737),
)
BOOTSTRAP_SUGGESTED_HOSTS: Final = {
    "node1.hyperdht.org": "88.99.3.86",
    "node2.hyperdht.org": "142.93.90.113",
    "node3.hyperdht.org": "138.68.147.8",
}
"""Addresses that hyperdht tries before it asks DNS (hyperdht lib/constants.js)."""
