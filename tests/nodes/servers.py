"""Servers of a test's own, for what the simulated gateway does not do: files, TLS, odd answers."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

__all__ = [
    "Exchange",
    "LoopbackServer",
    "closed_port",
    "event_stream",
    "json_answer",
    "mute_server",
]


class Exchange(http.server.BaseHTTPRequestHandler):
    """One request to a `LoopbackServer`, answered by the route that its path names."""

    protocol_version = "HTTP/1.1"
    server: LoopbackServer
    body: bytes = b""

    def answer(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a complete answer."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def begin(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        """Send a head; the body follows by ``send`` and ends with the connection."""
        self.close_connection = True
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("connection", "close")
        self.end_headers()

    def send(self, body: bytes) -> None:
        """Send a part of a body."""
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Say nothing."""

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = self.path.partition("?")[0]
        self.server.seen.append((self.command, self.path))
        self.server.headers.append(dict(self.headers.items()))
        route = self.server.routes.get(path) or self.server.routes.get("*")
        if route is None:
            self.answer(404, b"not here", {"content-type": "text/plain"})
        else:
            route(self)

    do_GET = _serve  # noqa: N815 - the base's naming
    do_POST = _serve  # noqa: N815


class LoopbackServer(http.server.ThreadingHTTPServer):
    """Answers each path by a function; ``*`` stands for all others. ``seen`` are the requests."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self,
        routes: Mapping[str, Callable[[Exchange], object]],
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.routes = dict(routes)
        self.seen: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self._scheme = "https" if tls else "http"
        if tls is not None:
            # Shaking hands is left to the thread of the connection.
            self.socket = tls.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return f"{self._scheme}://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves early is part of many a test."""


@contextlib.contextmanager
def mute_server(*, full: bool = False) -> Iterator[str]:
    """Host and port of a server that takes connections and says nothing; ``full``: takes none."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0 if full else 64)
        address = listener.getsockname()
        for _ in range(3 if full else 0):  # fill the queue; the kernel ignores who comes next
            caller = sockets.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(address)
        yield f"{address[0]}:{address[1]}"


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def json_answer(data: Any, status: int = 200) -> Callable[[Exchange], None]:
    """A route that answers with JSON."""
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return lambda exchange: exchange.answer(status, body, {"content-type": "application/json"})


def event_stream(parts: Iterable[bytes]) -> Callable[[Exchange], None]:
    """A route that answers with these server-sent events, as they are."""

    def route(exchange: Exchange) -> None:
        exchange.begin(200, {"content-type": "text/event-stream"})
        for part in parts:
            exchange.send(part)

    return route
