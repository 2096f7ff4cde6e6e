"""The TCP connections of the server, by the address of the client.

An ASGI application sees requests, not connections. To end one with a RST, to write outside of the
HTTP framing or to notice at once that a client left, the protocol class registers every transport
here and the application looks it up with ``scope["client"]``.
"""

import asyncio
import os
import socket
import struct
from time import monotonic
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from devtools.upstream.timers import Alarms

__all__ = ["Connection", "Connections", "tracking_protocol"]

type Address = tuple[str, int]

_LINGER_ZERO = struct.pack("ii", 1, 0)
_GONE_TIMEOUT_S = 5.0


class _CorkedTransport:
    """A transport that can hold back what is written, to send head and body in one segment."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: list[bytes] | None = None
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, body: bytes) -> None:
        if self._held is None:
            self._transport.write(body)
        else:
            self._held.append(body)

    def close(self) -> None:
        self.uncork()
        self._transport.close()

    def cork(self) -> None:
        self._held = []

    def uncork(self) -> None:
        held, self._held = self._held, None
        if held:
            self._transport.write(b"".join(held))


class Connection:
    """One accepted connection. ``requests`` counts those to the API that it carried so far."""

    __slots__ = ("_alarms", "_transport", "_waiter", "lost", "requests")

    def __init__(self, transport: _CorkedTransport | None, alarms: Alarms) -> None:
        self.requests = 0
        self.lost = transport is None
        self._transport = transport
        self._alarms = alarms
        self._waiter: asyncio.Future[None] | None = None

    async def wait_until(self, due_s: float) -> bool:
        """Wait for ``due_s`` (monotonic), never less; False at once if the client leaves."""
        if not self.lost and due_s > monotonic():
            await self._wait(due_s)
        return not self.lost

    async def gone(self) -> None:
        """Wait until the connection is closed; after some seconds, close it the hard way."""
        if not self.lost:
            await self._wait(monotonic() + _GONE_TIMEOUT_S)
        if not self.lost and self._transport is not None:
            self._transport.abort()

    def cork(self) -> None:
        """Hold back what is written until ``uncork``."""
        if self._transport is not None:
            self._transport.cork()

    def uncork(self) -> None:
        """Send in one piece what was held back."""
        if self._transport is not None:
            self._transport.uncork()

    def write(self, body: bytes) -> None:
        """Send bytes as they are."""
        if self._transport is not None:
            self._transport.write(body)

    def close(self) -> None:
        """Send what is buffered, then FIN."""
        if self._transport is not None:
            self._transport.close()

    def close_if_idle(self, requests: int) -> None:
        """Close unless more than ``requests`` requests have come by now."""
        if self.requests == requests:
            self.close()

    def reset(self) -> None:
        """Send RST; whatever is buffered is lost."""
        if self._transport is None or self.lost:
            return
        descriptor = os.dup(self._transport.get_extra_info("socket").fileno())
        with socket.socket(fileno=descriptor) as twin:
            twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._transport.abort()

    def on_lost(self) -> None:
        """The transport is gone: wake whoever waits."""
        self.lost = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self, due_s: float) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        self._alarms.set(due_s, self._waiter)
        await self._waiter


class Connections:
    """The open connections, and counts of those that carried a request to the API.

    ``used`` is how many there were, ``open`` how many of them are open. A connection counts from
    its first request on, so that those of the control API never do.
    """

    def __init__(self) -> None:
        self.used = 0
        self.open = 0
        self._by_client: dict[Address, Connection] = {}
        self._alarms = Alarms()

    def use(self, client: Address) -> Connection:
        """The connection from ``client``, for one more request; a lost one if it is closed."""
        connection = self._by_client.get(client) or Connection(None, self._alarms)
        connection.requests += 1
        if connection.requests == 1:
            self.used += 1
            self.open += not connection.lost
        return connection

    def opened(self, client: Address, transport: _CorkedTransport) -> Connection:
        """Register a connection that was just accepted."""
        connection = self._by_client[client] = Connection(transport, self._alarms)
        return connection

    def closed(self, client: Address, connection: Connection) -> None:
        """Forget a connection and wake whoever waits on it."""
        self.open -= connection.requests > 0
        connection.on_lost()
        if self._by_client.get(client) is connection:
            del self._by_client[client]


def tracking_protocol(connections: Connections) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol (httptools, or h11 without it), reporting to ``connections``."""
    base: Any = AutoHTTPProtocol

    class TrackedProtocol(base):  # type: ignore[misc]
        def connection_made(self, transport: asyncio.Transport) -> None:
            corked = _CorkedTransport(transport)
            super().connection_made(corked)
            self.tracked = connections.opened(self.client, corked)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            connections.closed(self.client, self.tracked)

    return TrackedProtocol
