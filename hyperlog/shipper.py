"""Service: carries one client's records to its server, for as long as it takes.

Theory of operation. Two tasks share a session. The collector numbers what the application has
traced, makes JSON of it and puts it into the spool, whether there is a connection or not: the spool
is what survives the process, and what bounds memory and disk. The other task connects, sends what
the server does not have, and starts over when the connection is lost.

A lone trace is sent at once. A burst comes from a loop that needs the interpreter for itself, and
would share it with us: what it traces is left alone for a moment, then put into the spool in large
batches, which has to happen within 100 ms, and is sent after that.

"Delivered" means that the server has acknowledged the records. A server of the JavaScript rule
acknowledges nothing; then it means that the peer's transport has acknowledged the bytes. What such
a server loses in spite of it (it is killed before it writes) the session keeps, and sends again
after the next greeting.

While a server that acknowledges is connected, the sessions that other processes of the application
left in the spool are taken over and sent as well.

Source: hypertrace-logger client.js; docs/protocol/trace-protocol.md sections 1 and 3, session.md.
"""

from __future__ import annotations

import codecs
import inspect
import logging
import math
import random
import secrets
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import trio

from hyperlog.config import Channel, ClientConfig, Props
from hyperlog.conversation import ClientConversation, Identity, Pace
from hyperlog.dht import Connection, DHTError, open_dht
from hyperlog.diskspool import SpooledSession, SpoolFolder
from hyperlog.doorbell import Doorbell
from hyperlog.errors import BadGreeting, PeerProtocolError, ServerRefused
from hyperlog.flushrequests import FlushRequests, Resolve
from hyperlog.logs import plain_values
from hyperlog.route import Route
from hyperlog.session import ClientSession, KeptSession, PendingTrace
from hyperlog.tracequeue import TraceQueue

if TYPE_CHECKING:
    from hyperlog.logs import LogEntry
    from hyperlog.trace import Trace
    from hyperlog.websocket import WebRoute, WebSocketChannel

__all__ = ["DEFAULT_MAX_BUFFER_BYTES", "Shipper"]

logger = logging.getLogger("hyperlog.client")

DEFAULT_MAX_BUFFER_BYTES: Final = 64 * 1024 * 1024
BATCH: Final = 256  # traces encoded before other tasks get their turn, about 1 ms; more is a burst
BURST_BATCH: Final = 1024  # the same in a burst: each turn of the loop costs it a switch interval
BURST_REST: Final = 0.03  # s that a burst is left alone
BURST_CROWD: Final = 20_480  # traces that are put into a spool on disk within 100 ms
BURST_HOLD: Final = 0.2  # s from the beginning of a burst until it is sent, unless it ends before
SEND_BATCH: Final = 256 * 1024  # bytes given to the connection at a time
GREETING_TIMEOUT: Final = 10.0  # s from an open connection to the server's first message
INITIAL_PROPS_TIMEOUT: Final = 30.0  # s that connecting waits for them
CLOSE_TIMEOUT: Final = 0.5  # s for the peer to confirm the end of a connection
LIVENESS_INTERVAL: Final = 2.0  # s of silence until the peer is probed
LIVENESS_TIMEOUT: Final = 5.0  # s of silence until it counts as gone
FIRST_RETRY: Final = 0.5  # s, at most
MAX_RETRY: Final = 15.0  # s, at most
REFUSED_RETRY: Final = 60.0  # s, at least, after a refusal that somebody has to do something about
MAX_LEFT_BEHIND: Final = 16  # sessions of dead processes that are sent at a time
LOOK_INTERVAL: Final = 30.0  # s between two looks for such sessions
LIVED: Final = 5.0  # s that a connection lasts to count as a success

Link: TypeAlias = "Connection | WebSocketChannel | _Link"


class Shipper:
    """One run of a client. `put_trace`, `request_flush` and `add_props` are for any thread."""

    def __init__(
        self,
        config: ClientConfig,
        *,
        max_buffer_bytes: int,
        start: Callable[[], object],
        end: Callable[[], object] = lambda: None,
    ) -> None:
        """`start` is called, in the caller's thread, by the first trace before `run` runs; `end` is
        called at the end of `run`: what is put after it goes nowhere."""
        self.connected = False
        """whether the server has greeted and the connection lives"""
        self.last_connection_error: Exception | None = None
        self.connections = 0
        """greetings received"""
        self.over = False
        """whether `run` has ended: nothing will be delivered any more"""
        self.bell = Doorbell(start)
        self.props: Props = {}
        """what goes along with every trace"""
        self._config = config
        self._end = end
        # What would be imported late is imported here, not in the loop's thread: a fork in the
        # middle of an import leaves the child with half a module. The codec is for host names.
        codecs.lookup("idna")
        self._web_route: type[WebRoute] | None = None
        if config.web is not None:
            from hyperlog.websocket import WebRoute  # its package is not in every installation

            self._web_route = WebRoute
        self._ignored = config.ignore_class_names
        # Over HTTP the token has come with the request.
        token = config.token if config.web is None else None
        self._identity = Identity(config.application, config.instance, token)
        # Half is for traces: a program that cannot connect must still take new ones in, and loops
        # that trace are faster when there is room for what they bring within 100 ms.
        queue_bytes = max_buffer_bytes // 2
        crowd = None if config.spool is None else BURST_CROWD
        self._queue: TraceQueue[PendingTrace] = TraceQueue(queue_bytes, crowd)
        message_bytes = max_buffer_bytes - queue_bytes
        self._folder: SpoolFolder | None = None
        # As long as JavaScript's Math.random().toString().slice(2); only digits are safe to assume.
        session_id = str(secrets.randbelow(10**18))
        if config.spool is None:
            self._spool = SpooledSession(session_id, max_memory_bytes=message_bytes)
        else:
            self._folder = SpoolFolder(
                config.spool, max_bytes=config.max_spool_bytes, max_memory_bytes=message_bytes
            )
            self._spool = self._folder.create(session_id)
        self._encoding_in: int | None = None
        """thread that encodes at this moment"""
        self.session = ClientSession(self._spool, self._queue)
        self._adopted: dict[str, SpooledSession] = {}
        self._room_for_more = trio.lowlevel.ParkingLot()
        self._pace = Pace()
        self._props_lock = threading.Lock()
        self._rng = random.Random()
        self._flushes = FlushRequests(self.session, self._queue)
        self._sendable = trio.lowlevel.ParkingLot()
        self._written = trio.lowlevel.ParkingLot()
        self._failures = 0
        self._sent_through = -1
        """last number that is queued in the present connection"""
        self._initial_props: Awaitable[Props | None] | None = None

    # -- in any thread ----------------------------------------------------------------------------

    def put_trace(self, trace: Trace) -> None:
        """Take a trace; what the tracers call. Never waits."""
        ignored = self._ignored
        if ignored:
            parent = trace.parent_object
            if trace.source.class_name in ignored or (
                parent is not None and parent.class_name in ignored
            ):
                return
        if self._encoding_in == threading.get_ident():
            trace.object_props = plain_values(trace.object_props)
            trace.caller_props = plain_values(trace.caller_props)
        self.session.trace(trace, time.time())
        self._wake()

    def put_log(self, entry: LogEntry, now: float) -> None:
        """Take a log message of `now`, in seconds since 1970. Never waits."""
        if self._encoding_in == threading.get_ident():
            entry.make_plain()
        self.session.log(entry, now)
        self._wake()

    def _wake(self) -> None:
        if self.bell.waiting:
            self.bell.ring()
        elif self._queue.crowded:
            # A thread that traces in a tight loop starves the one that ships: every system call of
            # that one costs it a switch interval. Hand it the interpreter before records get lost,
            # or come late to the disk.
            time.sleep(0)

    def request_flush(self, resolve: Resolve) -> None:
        """Have `resolve` called when everything put so far is delivered, or can never be."""
        self._flushes.add(resolve)
        if self.over:
            self._flushes.resolve_all()
        elif self.bell.waiting:
            self.bell.ring()

    def add_props(self, props: Props) -> None:
        """Merge into the props of all later traces."""
        with self._props_lock:
            self.props = {**self.props, **props}
            self.session.add_props(props)

    @property
    def buffered_bytes(self) -> int:
        """Memory that records use, as estimated."""
        adopted = sum(spool.memory_bytes for spool in list(self._adopted.values()))
        return self._queue.size + self._spool.memory_bytes + adopted

    def load_initial_props(self) -> None:
        """Call `get_initial_props`; what it awaits is left for the loop."""
        function = self._config.get_initial_props
        if function is None:
            return
        try:
            props = function()
            if inspect.isawaitable(props):
                self._initial_props = props
            elif props:
                self.add_props(props)
        except Exception:  # the application's function
            logger.exception("get_initial_props failed; the records go without its props")

    # -- the loop ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ship until cancelled, or until `can_socket_reconnect` says no."""
        self.bell.attach()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._collect)
                await self._await_initial_props()
                await self._stay_connected()
                nursery.cancel_scope.cancel()
        finally:
            self.finish()

    def finish(self) -> None:
        """End what `run` has left, or, in any thread, what never ran."""
        if self.over:
            return
        self._end()  # before the rest is taken out, which threads that trace could make endless
        self.over = True
        self.bell.detach()
        self._flushes.resolve_all()
        self._close_spool()

    @trio.lowlevel.enable_ki_protection
    def _close_spool(self) -> None:
        """Leave what is not delivered to the next process, what was traced just now included."""
        if self._folder is not None:
            while self._drain(BATCH):
                pass
            self.session.release_confirmed()
        self._spool.close()
        for spool in self._adopted.values():
            spool.close()

    async def _await_initial_props(self) -> None:
        awaitable, self._initial_props = self._initial_props, None
        if awaitable is None:
            return
        with trio.move_on_after(INITIAL_PROPS_TIMEOUT) as scope:
            try:
                props = await awaitable
                if props:
                    self.add_props(props)
            except Exception:  # the application's function
                logger.exception("get_initial_props failed; the records go without its props")
        if scope.cancelled_caught:
            logger.warning("get_initial_props took over %g s: cancelled", INITIAL_PROPS_TIMEOUT)

    # -- collecting -------------------------------------------------------------------------------

    def _has_work(self) -> bool:
        return bool(self._queue.pending or self._flushes.has_new)

    @trio.lowlevel.enable_ki_protection  # what is taken out of the queue has to reach the spool
    def _drain(self, limit: int) -> int:
        # What an object logs while its own text is made must not have its text made in turn.
        self._encoding_in = threading.get_ident()
        try:
            return self.session.drain(time.time(), limit)
        finally:
            self._encoding_in = None

    async def _collect(self) -> None:
        limit, sent_at = BATCH, 0.0
        told = 0  # numbers below it are known to who sends
        flushes = self._flushes
        while True:
            flushes.begin_round()
            drained = self._drain(limit)
            ended = drained < limit
            # Not what this round has numbered: the one that ends a burst may find nothing.
            if self._spool.next_number > told and (ended or trio.current_time() >= sent_at):
                told = self._spool.next_number
                self._sendable.unpark_all()
            flushes.end_round(drained, emptied=ended)
            if ended:
                limit, sent_at = BATCH, 0.0
                if self._spool.fault is not None:
                    self._spool.put(())  # tries the disk again, now and then
                await self.bell.wait(self._has_work)
            elif limit == BATCH:
                limit, sent_at = BURST_BATCH, trio.current_time() + BURST_HOLD
                await trio.sleep(0 if flushes.is_urgent else BURST_REST)
            else:
                await trio.lowlevel.checkpoint()

    # -- connecting -------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        config = self._config
        if config.create_socket is not None:
            await self._reconnect_for_ever(Route(config.create_socket))
            return
        if config.web is not None:
            assert self._web_route is not None
            route = self._web_route(config.web, token=config.token, tls=config.tls)
            await self._reconnect_for_ever(route)
            return
        assert config.server_key is not None
        server_key = config.server_key
        while True:
            try:
                async with open_dht(
                    bootstrap=config.bootstrap,
                    key_pair=config.key_pair,
                    cache=config.node_cache,
                ) as dht:
                    connect = partial(
                        dht.connect,
                        server_key,
                        relay_addresses=config.server_nodes,
                        relay_through=config.relay_through,
                    )
                    way = Route(connect, dht, server_key)
                    await self._reconnect_for_ever(way)
                    return
            except Exception as err:  # no socket to be had, or the node failed: make another one
                if not await self._wait_to_retry(err):
                    return

    async def _reconnect_for_ever(self, route: Route | WebRoute) -> None:
        try:
            while True:
                error: Exception | None = None
                try:
                    error = await self._use(await route.connect(), route)
                except Exception as err:  # create_socket is the application's: anything may come
                    error = err
                if not route.has_spare and not await self._wait_to_retry(error, route):
                    return
        finally:
            await route.aclose()

    async def _wait_to_retry(
        self, error: Exception | None, route: Route | WebRoute | None = None
    ) -> bool:
        """Report what happened, wait; False when there is to be no other attempt."""
        if error is not None:
            self.last_connection_error = error
            logger.info("no connection: %s", error)
            self._call(self._config.on_connection_error, error)
        if not self._may_reconnect():
            self._call(self._config.on_close)
            return False
        self._call(self._config.on_reconnect)
        if isinstance(error, ServerRefused) and error.refusal != "LIMIT":
            await trio.sleep(REFUSED_RETRY * self._rng.uniform(1.0, 1.5))
            return True
        limit = min(FIRST_RETRY * 2.0 ** min(self._failures, 16), MAX_RETRY)
        self._failures += 1
        limit *= self._rng.uniform(0.5, 1.0)
        if route is None:
            await trio.sleep(limit)
        else:
            await route.wait_for_sign(limit, error)
        return True

    def _may_reconnect(self) -> bool:
        ask = self._config.can_socket_reconnect
        if ask is None:
            return True
        try:
            return bool(ask())
        except Exception:  # the application's function
            logger.exception("can_socket_reconnect failed; taken as yes")
            return True

    def _call(self, callback: Callable[..., object] | None, *arguments: object) -> None:
        if callback is None:
            return
        try:
            callback(*arguments)
        except Exception:  # the application's function
            logger.exception("a callback of the application failed")

    # -- one connection ---------------------------------------------------------------------------

    async def _use(self, channel: Channel, route: Route | WebRoute) -> Exception | None:
        """Ship over one connection; why it ended, None when the server ended it in order."""
        link: Link
        if isinstance(channel, Connection):
            link = channel
        elif self._config.web is not None:
            link = cast("WebSocketChannel", channel)
        else:
            link = _Link(channel)
        # Of a connection that is given up because there is a spare one, this is not told.
        error: Exception | None = ConnectionError("the server gives no sign of life any more")
        opened_at = trio.current_time()
        conversation = ClientConversation(
            self.session,
            map(KeptSession, self._adopted.values()),
            identity=self._identity,
            pace=self._pace,
        )
        self._sent_through = -1
        try:
            with trio.fail_after(GREETING_TIMEOUT):
                while not conversation.greeted:
                    conversation.receive_message(await link.receive())
                    if conversation.has_answers:
                        await link.send_many(self._messages(conversation))
            if self._config.web is not None and not conversation.acknowledges:
                return BadGreeting("what answers acknowledges nothing: is it a hyperlog server?")
            self._flushes.resolve_delivered()
            if isinstance(link, Connection):
                link.set_liveness(LIVENESS_INTERVAL, LIVENESS_TIMEOUT)
            self.connected = True
            self.connections += 1
            self._call(self._config.on_open)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, link, conversation)
                if conversation.acknowledges and not isinstance(link, _Link):
                    nursery.start_soon(self._watch_silence, link, route, nursery.cancel_scope)
                if conversation.acknowledges:
                    nursery.start_soon(self._look_for_left_behind, conversation)
                else:
                    nursery.start_soon(self._watch_delivery, cast("Connection | _Link", link))
                error = await self._listen(link, conversation)
                nursery.cancel_scope.cancel()
            return None if route.has_spare else error
        except trio.EndOfChannel:
            return None
        except trio.TooSlowError:
            return ConnectionError(
                f"no greeting within {GREETING_TIMEOUT:g} s: is it a log server?"
            )
        except (PeerProtocolError, ServerRefused) as err:
            return err
        except (trio.BrokenResourceError, trio.ClosedResourceError) as err:
            return _reason(err)
        finally:
            self.connected = False
            if trio.current_time() - opened_at >= LIVED:
                self._failures = 0
            if route.has_spare and isinstance(link, Connection):
                link.abort()
            with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await link.aclose()

    async def _listen(self, link: Link, conversation: ClientConversation) -> Exception | None:
        try:
            while True:
                conversation.receive_message(await link.receive())
                self._flushes.resolve_delivered()
                for kept in conversation.take_delivered():
                    self._adopted.pop(kept.session_id).close()
                    self._room_for_more.unpark_all()
                self._sendable.unpark_all()  # there may be an answer, or more sessions to send
        except trio.EndOfChannel:
            return None
        except (PeerProtocolError, ServerRefused) as err:
            return err
        except (trio.BrokenResourceError, trio.ClosedResourceError) as err:
            return _reason(err)

    async def _watch_silence(
        self,
        link: Connection | WebSocketChannel,
        route: Route | WebRoute,
        scope: trio.CancelScope,
    ) -> None:
        await route.watch(link)  # type: ignore[arg-type]
        scope.cancel()

    def _messages(self, conversation: ClientConversation) -> list[bytes]:
        return conversation.messages_to_send(SEND_BATCH, time.time(), trio.current_time())

    async def _send(self, link: Link, conversation: ClientConversation) -> None:
        try:
            while True:
                messages = self._messages(conversation)
                if messages:
                    await link.send_many(messages)
                    self._sent_through = self.session.last_sent_number
                    self._written.unpark_all()
                    continue
                at = conversation.next_send_at(trio.current_time())
                with trio.CancelScope(deadline=math.inf if at is None else at):
                    await self._sendable.park()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the listening task gets the reason

    async def _look_for_left_behind(self, conversation: ClientConversation) -> None:
        """Take over what dead processes left in the spool, a few sessions at a time."""
        folder = self._folder
        if folder is None:
            return
        while True:
            for session_id in folder.orphans():
                if len(self._adopted) >= MAX_LEFT_BEHIND:
                    break
                await trio.lowlevel.checkpoint()
                spool = None if session_id in self._adopted else folder.adopt(session_id)
                if spool is not None:
                    self._adopted[session_id] = spool
                    conversation.add_left_behind(KeptSession(spool))
            self._sendable.unpark_all()
            with trio.move_on_after(LOOK_INTERVAL):
                await self._room_for_more.park()

    async def _watch_delivery(self, link: Connection | _Link) -> None:
        """By the JavaScript rule: ask the transport."""
        try:
            while True:
                number = self._sent_through
                if self.session.first_unconfirmed > number:
                    await self._written.park()
                    continue
                await link.wait_acknowledged()
                self.session.transport_confirmed(number)
                self._flushes.resolve_delivered()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the listening task gets the reason


class _Link:
    """Any `trio.abc.Channel[bytes]` with the further methods of a Connection that are used here."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.receive = channel.receive
        self.aclose = channel.aclose

    async def send_many(self, messages: list[bytes]) -> None:
        for message in messages:
            await self._channel.send(message)

    async def wait_acknowledged(self) -> None:
        """What was sent counts as delivered: the channel cannot tell."""
        await trio.lowlevel.checkpoint()


def _reason(error: Exception) -> Exception:
    """The DHT's own error, which has a code, where there is one below trio's."""
    return error.__cause__ if isinstance(error.__cause__, DHTError) else error
