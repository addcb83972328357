"""A TCP proxy of this machine: cuts its connections, falls silent, speaks TLS to clients."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

CHUNK = 64 * 1024  # bytes


class TCPProxy:
    def __init__(self, target: tuple[str, int], tls: ssl.SSLContext | None = None) -> None:
        self.target = target
        self.address = ("127.0.0.1", 0)
        self.accepted = 0
        self._tls = tls
        self._flowing = trio.Event()
        self._flowing.set()
        self._streams: set[trio.SocketStream] = set()
        self._scopes: set[trio.CancelScope] = set()

    @property
    def url(self) -> str:
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{self.address[0]}:{self.address[1]}"

    def cut(self) -> None:
        """Reset all connections."""
        for stream in list(self._streams):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()
        for scope in list(self._scopes):
            scope.cancel()

    def freeze(self) -> None:
        """Take nothing and give nothing any more, as a machine does that lost its network."""
        self._flowing = trio.Event()

    def thaw(self) -> None:
        self._flowing.set()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = listeners[0].socket.getsockname()
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(trio.serve_listeners, self._serve, listeners))
            task_status.started()

    async def _serve(self, client: trio.SocketStream) -> None:
        self.accepted += 1
        scope = trio.CancelScope()
        own = {client}
        self._scopes.add(scope)
        self._streams |= own
        try:
            with scope:
                await self._flowing.wait()
                server = await trio.open_tcp_stream(*self.target)
                own.add(server)
                self._streams |= own
                near: trio.abc.Stream = client
                if self._tls is not None:
                    near = trio.SSLStream(
                        client, self._tls, server_side=True, https_compatible=True
                    )
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, near, server, nursery.cancel_scope)
                    nursery.start_soon(self._pump, server, near, nursery.cancel_scope)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._scopes.discard(scope)
            self._streams -= own
            with trio.CancelScope(shield=True):
                for stream in own:
                    await trio.aclose_forcefully(stream)

    async def _pump(
        self, source: trio.abc.Stream, sink: trio.abc.Stream, scope: trio.CancelScope
    ) -> None:
        while True:
            await self._flowing.wait()
            data = await source.receive_some(CHUNK)
            await self._flowing.wait()
            if not data:
                scope.cancel()
                return
            await sink.send_all(data)


@asynccontextmanager
async def tcp_proxy(
    target: tuple[str, int], tls: ssl.SSLContext | None = None
) -> AsyncIterator[TCPProxy]:
    """A proxy in front of `target`, while the block runs."""
    proxy = TCPProxy(target, tls)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        yield proxy
        nursery.cancel_scope.cancel()
