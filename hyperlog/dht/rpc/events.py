"""What an RPCCore tells its owner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hyperlog.dht.compact import Address
from hyperlog.dht.rpc.messages import Request, Response
from hyperlog.dht.rpc.query import Query, Reply
from hyperlog.dht.rpc.tally import Tally

if TYPE_CHECKING:  # requests imports identity, which tells its changes by events
    from hyperlog.dht.rpc.requests import PendingRequest

__all__ = [
    "AddressChanged",
    "BootstrapDue",
    "Bootstrapped",
    "Event",
    "NetworkChanged",
    "PersistenceChanged",
    "QueryFinished",
    "QueryReplied",
    "RequestFinished",
    "RequestReceived",
    "RunningQuery",
]


@dataclass(slots=True, eq=False)
class RunningQuery:
    """A query that the core drives; hold it to tell the events apart."""

    state: Query
    command: int
    internal: bool
    value: bytes | None
    retries: int
    on_reply: Callable[[Address], None] | None = None
    on_end: Callable[[Query, float], None] | None = None
    """set for the core's own queries (bootstrap, refresh), which become no events"""
    pending: dict[Address, PendingRequest] = field(default_factory=dict)


@dataclass(slots=True)
class RequestReceived:
    """A user command arrived; answer by RPCCore.reply or .relay, now or later, or not at all."""

    request: Request
    """`id` is proven, and so is `token` when there is one"""
    address: Address
    socket: int
    received_at: float = 0.0
    tally: Tally = field(default_factory=Tally, repr=False, compare=False)
    """counts of the command; the answer adds to it"""


@dataclass(slots=True)
class RequestFinished:
    """The end of a request of RPCCore.request."""

    request: PendingRequest
    response: Response | None
    """None when nobody answered; `id` is proven"""
    rtt: float
    """seconds since the latest try, 0 without a response"""


@dataclass(slots=True)
class QueryReplied:
    query: RunningQuery
    reply: Reply


@dataclass(slots=True)
class QueryFinished:
    """`query.state` has the result."""

    query: RunningQuery


@dataclass(slots=True)
class BootstrapDue:
    """Resolve the bootstrap nodes' names and call RPCCore.bootstrap."""


@dataclass(slots=True)
class Bootstrapped:
    """The first attempt to find nodes is over, successful or not. Comes once."""


@dataclass(slots=True)
class PersistenceChanged:
    """The node began (or ceased) to show an id and to be part of others' tables."""

    ephemeral: bool


@dataclass(slots=True)
class NetworkChanged:
    """The network went away, came back, or got worse or better."""

    online: bool
    degraded: bool


@dataclass(slots=True)
class AddressChanged:
    """Others see us at another address now."""

    host: str | None
    port: int


Event = (
    RequestReceived
    | RequestFinished
    | QueryReplied
    | QueryFinished
    | BootstrapDue
    | Bootstrapped
    | PersistenceChanged
    | NetworkChanged
    | AddressChanged
)
