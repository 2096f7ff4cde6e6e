"""The HTTP server in front of a plugin's endpoints, as a browser finds it at a real Dify.

::

    with PluginProcess() as plugin, EndpointServer(plugin, {"token": "t"}) as server:
        httpx.get(server.url + "/usage")
        other = server.add({"token": "u"}, tenant_id="tenant-2")
        httpx.get(other.url + "/usage")

One thread a connection. A request is read to its end before the plugin hears of it (as nginx
does), rewritten as nginx and the daemon rewrite it (`tests.host.rawhttp`), and answered with the
plugin's chunks as they arrive. What else a client or a plugin may meet:

- Status and headers of a stream leave with its first chunk, not before.
- A client that goes away ends the session; the plugin is not told, and its storage requests get
  no more answers.
- While a client does not read, 128 chunks wait for it; **the daemon throws away what comes after
  them**, and so does this server (`EndpointServer.dropped_chunks` counts them).
- A stream that is over at once may lose all but its first chunk at a real daemon
  (`tests.host.rawhttp`). Here it loses nothing and `EndpointServer.hasty_streams` counts it.
- Methods other than GET, HEAD, POST, PUT, DELETE and OPTIONS, an unknown hook: 404.

Not modelled: Go's guess at a missing ``Content-Type``, and a plugin process that ends while it
answers (there the real client waits, here its connection is closed and the fault raised when the
server closes).

Sources: as in `tests.host.rawhttp`, and gin's routing.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import http.server
import os
import re
import secrets
import select
import socket
import socketserver
import string
import threading
import time
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Self

from tests.host.outputs import HostFault
from tests.host.rawhttp import (
    BODYLESS_STATUSES,
    HASTY_MS,
    JSON_TYPE,
    MAX_BODY_BYTES,
    Answer,
    RawRequest,
    behind_nginx,
    daemon_copy,
    daemon_error,
    hook_path,
    to_json,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from tests.host.daemon import HttpCall, PluginProcess

__all__ = ["EndpointServer", "Hook"]

MAX_EXECUTION_S = 600.0
"""How long a response may take after its first chunk; before that there is no limit."""

MAX_UPLOAD_BYTES = 100 * 1024 * 1024
"""nginx refuses a longer body; the daemon's own limit is `tests.host.rawhttp.MAX_BODY_BYTES`."""

QUEUED_CHUNKS = 128
"""What the daemon keeps for a client that does not read."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"})

_NOT_PASSED = frozenset(
    {"Connection", "Date", "Keep-Alive", "Server", "Transfer-Encoding", "Upgrade"}
)
"""Response headers that nginx or the daemon set themselves."""


@dataclass(slots=True)
class Hook:
    """One endpoint as a user sets it up: the same routes under a URL and with settings of its own.

    ``url`` is what Dify shows, without a slash at its end; a declared path follows it.
    """

    hook_id: str
    url: str
    settings: Mapping[str, Any] = field(repr=False)
    tenant_id: str
    endpoint_id: str
    enabled: bool = True


class EndpointServer:
    """Serves the endpoints of a running plugin at 127.0.0.1, at a port of its own.

    ``settings`` are those of the first hook, whose base URL is ``url``; `add` sets up more.
    ``behind_nginx=False`` gives what a client sees that talks to the daemon itself: the port stays
    in ``Host``, headers with an underscore get through, and the client may name its own
    ``Dify-Hook-Url``.

    ``clients_left`` counts the clients that went away before the end of their response,
    ``hasty_streams`` and ``dropped_chunks`` what a real client loses; a test of a download or a
    stream wants both to be 0. ``faults`` holds what would have failed a call: closing the server
    raises the first of them.
    """

    def __init__(
        self,
        process: PluginProcess,
        settings: Mapping[str, Any] | None = None,
        *,
        hook_id: str | None = None,
        tenant_id: str = "tenant-1",
        behind_nginx: bool = True,
        max_execution_s: float = MAX_EXECUTION_S,
    ) -> None:
        self.process = process
        self.behind_nginx = behind_nginx
        self.max_execution_s = max_execution_s
        self.hooks: dict[str, Hook] = {}
        self.faults: list[BaseException] = []
        self.clients_left = 0
        self.dropped_chunks = 0
        self.hasty_streams = 0
        self._lock = threading.Lock()
        self._server = _Server(self)
        self.port: int = self._server.server_address[1]
        try:
            self._first = self.add(settings, hook_id=hook_id, tenant_id=tenant_id)
        except BaseException:
            self._server.server_close()
            raise
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.02},
            name="endpoints-accept",
            daemon=True,
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()
        if exc_type is None and self.faults:
            raise self.faults[0]

    @property
    def url(self) -> str:
        """The base URL of the first hook, without a slash at its end."""
        return self._first.url

    def add(
        self,
        settings: Mapping[str, Any] | None = None,
        *,
        hook_id: str | None = None,
        tenant_id: str = "tenant-1",
        endpoint_id: str | None = None,
    ) -> Hook:
        """Set up one more endpoint. Raises HostFault where the daemon refuses to."""
        resource = self.process.registration.get("resource") or {}
        permission = (resource.get("permission") or {}).get("endpoint") or {}
        if not permission.get("enabled"):
            raise HostFault(
                "permission denied, you need to enable endpoint access in plugin manifest"
            )
        if not (self.process.registration.get("plugins") or {}).get("endpoints"):
            raise HostFault("plugin does not have an endpoint")
        if hook_id is None:
            hook_id = "".join(secrets.choice(string.ascii_lowercase) for _ in range(16))
        hook = Hook(
            hook_id=hook_id,
            url=f"http://127.0.0.1:{self.port}/e/{hook_id}",
            settings=dict(settings or {}),
            tenant_id=tenant_id,
            endpoint_id=endpoint_id or f"endpoint-{len(self.hooks) + 1}",
        )
        self.hooks[hook_id] = hook
        return hook

    def close(self) -> None:
        """End all connections and the server; raises the first of ``faults``."""
        self._stop()
        if self.faults:
            raise self.faults[0]

    def _stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.end_connections()
        self._server.server_close()

    def _count(self, *, left: int = 0, dropped: int = 0, hasty: int = 0) -> None:
        with self._lock:
            self.hasty_streams += hasty
            self.clients_left += left
            self.dropped_chunks += dropped


class _Server(socketserver.TCPServer):
    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, owner: EndpointServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.owner = owner
        self._open: dict[socket.socket, threading.Thread] = {}
        self._open_lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self._run, args=(request, client_address), name="endpoints-client", daemon=True
        )
        with self._open_lock:
            self._open[request] = thread
        thread.start()

    def _run(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # the client has closed the connection, or we have
        except Exception as error:  # noqa: BLE001 - a bug of the server must fail the test
            self.owner.faults.append(error)
        finally:
            with self._open_lock:
                del self._open[request]
            self.shutdown_request(request)

    def end_connections(self) -> None:
        with self._open_lock:
            connections = list(self._open.items())
            for connection, _ in connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for _, thread in connections:
            thread.join()


class _ClientLeftError(Exception):
    """Nobody is there any more to read the response."""


class _TimeUpError(Exception):
    """The response has taken longer than the daemon allows."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # gin has no route for an unknown method: 404 and not 501
            return self._serve
        raise AttributeError(name)

    def log_message(self, *args: object) -> None:
        del args

    # --- routing ---

    def _serve(self) -> None:
        owner = self.server.owner
        body = self._read_body()
        if body is None:
            return
        headers = tuple((name, str(value)) for name, value in self.headers.raw_items())
        request = RawRequest(self.command, self.path, headers, body)
        try:
            found = hook_path(request.target)
        except ValueError:
            self._reply(400, b"400 Bad Request", "text/plain; charset=utf-8", last=True)
            return
        if found is None or self.command not in _METHODS:
            body = to_json({"code": "not_found", "message": "route not found"})
            self._reply(404, body)
            return
        hook_id, path = found
        if not path:
            self._redirect()
            return
        hook = owner.hooks.get(hook_id)
        if hook is None or not hook.enabled:
            kind = (-400, "PluginDaemonBadRequestError")
            if hook is not None:
                kind = (-404, "PluginDaemonNotFoundError")
            self._reply(404, daemon_error(*kind, "endpoint not found"))
            return
        if owner.behind_nginx:
            request = behind_nginx(request, port=owner.port)
        raw = daemon_copy(request, hook_id, path)
        del body, request  # up to 10 MB each
        response = _Response(self, hook, raw)
        try:
            response.run()
        except HostFault as fault:
            owner.faults.append(fault)
            self.close_connection = True
            if not response.begun:
                self._reply(502, str(fault).encode(), "text/plain; charset=utf-8")

    def _redirect(self) -> None:
        """What gin does with ``/e/<hook id>``: it has a route for ``/e/<hook id>/``."""
        path, mark, query = self.path.partition("?")
        location = f"{path}/{mark}{query}"
        status = 301 if self.command == "GET" else 307
        phrase = http.client.responses[status]
        body = f'<a href="{escape(location)}">{phrase}</a>.\n\n' if self.command == "GET" else ""
        self._reply(status, body.encode(), "text/html; charset=utf-8", location=location)

    # --- reading ---

    def _read_body(self) -> bytes | None:
        """Read the body to its end; what the daemon would not pass on is not kept.

        None if there is nothing to answer any more: the client has left, or was refused.
        """
        kept, size = bytearray(), 0
        try:
            for part in self._parts():
                size += len(part)
                kept += part[: MAX_BODY_BYTES - len(kept)]
        except ValueError:
            self._reply(400, b"400 Bad Request", "text/plain; charset=utf-8", last=True)
            return None
        except EOFError:
            self.close_connection = True
            return None
        if size > MAX_UPLOAD_BYTES:
            self._reply(413, b"413 Request Entity Too Large", "text/html", last=True)
            return None
        return bytes(kept)

    def _parts(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self._line().partition(b";")[0], 16):
                yield from self._exactly(size)
                if self._line():
                    raise ValueError("a chunk longer than it says")
            while self._line():
                pass  # trailers
        else:
            size = int(self.headers.get("Content-Length", "0"))
            if size < 0:
                raise ValueError("a negative length")
            yield from self._exactly(size)

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            part = self.rfile.read1(min(size, 1 << 16))
            if not part:
                raise EOFError
            size -= len(part)
            yield part

    def _line(self) -> bytes:
        line = self.rfile.readline(1 << 16)
        if not line.endswith(b"\n"):
            raise EOFError
        return line.strip()

    # --- writing ---

    def _reply(
        self,
        status: int,
        body: bytes,
        content_type: str = JSON_TYPE,
        *,
        location: str | None = None,
        last: bool = False,
    ) -> None:
        headers = {"Content-Type": content_type}
        if location is not None:
            headers["Location"] = location
        if last:
            self.close_connection = True
        headers["Content-Length"] = str(len(body))
        self.wfile.write(self.head(status, headers) + (b"" if self.command == "HEAD" else body))

    def head(self, status: int, headers: Mapping[str, str]) -> bytes:
        """Status line and headers; those that a proxy sets itself are ours."""
        lines = [
            f"HTTP/1.1 {status} {http.client.responses.get(status, f'status code {status}')}",
            "Server: nginx",
            f"Date: {email.utils.formatdate(usegmt=True)}",
            f"Connection: {'close' if self.close_connection else 'keep-alive'}",
        ]
        lines += [
            f"{name}: {re.sub('[\r\n]', ' ', value)}"
            for name, value in headers.items()
            if name not in _NOT_PASSED and not name.startswith("X-Accel-")
        ]
        return "\r\n".join([*lines, "", ""]).encode()


class _Response:
    """One response: the chunks of a call to the socket of its client."""

    def __init__(self, handler: _Handler, hook: Hook, raw: bytes) -> None:
        self._handler = handler
        self._owner = handler.server.owner
        self._socket = handler.connection
        self._hook = hook
        self._raw = raw
        self._answer = Answer()
        self._has_body = True
        self._chunked = False
        self._length: int | None = None
        self._sent_bytes = 0
        self._deadline_s: float | None = None
        self.begun = False
        self._watching = True

    def run(self) -> None:
        with _Bell() as bell:
            call = self._owner.process.send_http(
                self._handler.command,
                self._raw,
                settings=self._hook.settings,
                tenant_id=self._hook.tenant_id,
                endpoint_id=self._hook.endpoint_id,
                on_message=bell.ring,
                on_done=bell.ring,
            )
            self._raw = b""
            try:
                self._relay(call, bell)
            except _TimeUpError:
                self._deadline_s = None
                with contextlib.suppress(_ClientLeftError):
                    self._write(
                        daemon_error(-500, "PluginDaemonInternalServerError", "killed by timeout")
                    )
                    self._end()
            except _ClientLeftError:
                call.abandon()
                self._owner._count(left=1)
                self._handler.close_connection = True
            finally:
                if not call.done:
                    call.abandon()

    def _relay(self, call: HttpCall, bell: _Bell) -> None:
        messages = call.invocation.messages
        index, chunks, first_s = 0, 0, 0.0
        while True:
            ended = call.done  # read first: whatever arrived before the end is in `messages` then
            while index < len(messages):
                chunk = self._answer.take(messages[index])
                index += 1
                if chunk is None:
                    continue
                chunks += 1
                first_s = first_s or chunk.at_s
                if self._deadline_s is not None and time.perf_counter() > self._deadline_s:
                    raise _TimeUpError
                before = len(messages)
                if self._write(chunk.data, flush=True):
                    self._drop(index, before, messages)
            if ended:
                break
            self._wait(bell)
        call.invocation.wait()  # raises a fault
        ended_s = call.invocation.ended_s or 0.0
        if chunks > 1 and ended_s - first_s < HASTY_MS / 1e3:
            self._owner._count(hasty=1)
        error = call.invocation.error
        begun = self._answer.begun
        last = self._answer.finish(error, 0.0)
        if last is not None:
            self._write(last.data, flush=begun)
        self._end()

    def _drop(self, index: int, before: int, messages: list[Any]) -> None:
        """Drop what came while the client did not read and found the daemon's queue full.

        The chunk before ``index`` has been waiting for the client; ``before`` messages had come
        when it began to. Those are not dropped, be they more than the queue holds: the daemon is
        faster than this server.
        """
        kept = max(before, index + QUEUED_CHUNKS)
        dropped = len(messages) - kept
        if dropped > 0:
            self._owner._count(dropped=dropped)
            del messages[kept : kept + dropped]

    # --- the wire ---

    def _begin(self, whole: int | None) -> bytes:
        """Decide how the body is delimited, and return the head.

        ``whole`` is the length of a body that is complete and short, so that Go can tell it.
        """
        self.begun = True
        self._deadline_s = time.perf_counter() + self._owner.max_execution_s
        status, headers = self._answer.status, dict(self._answer.headers)
        status = max(status, 200)  # below 200 Go sends an informational head, and 200 after it
        length = headers.pop("Content-Length", "")
        if "Transfer-Encoding" in headers or not re.fullmatch("[0-9]+", length):
            length = str(whole) if whole else ""
        if self._handler.command == "HEAD" or status in BODYLESS_STATUSES:
            self._has_body = False
        elif not length and whole is not None:
            length = "0"
        elif not length:
            self._chunked = self._handler.request_version != "HTTP/1.0"
            self._handler.close_connection |= not self._chunked
        if status == 304:
            headers.pop("Content-Type", None)
        elif length and status != 204:
            headers["Content-Length"] = length
            self._length = int(length)
        if self._chunked:
            return self._handler.head(status, headers).replace(
                b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
        return self._handler.head(status, headers)

    def _write(self, data: bytes, *, flush: bool = False) -> bool:
        """Send one chunk, with the head before the first; True if the client had to be waited for.

        Without ``flush`` the first chunk is the whole body.
        """
        head = b""
        if not self.begun:
            head = self._begin(None if flush or len(data) > 2048 else len(data))
        self._sent_bytes += len(data)
        if not self._has_body or (self._length is not None and self._sent_bytes > self._length):
            data = b""  # Go refuses a write that exceeds the announced length, and all after it
        if data and self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        return self._send(head + data)

    def _end(self) -> None:
        if not self.begun:
            self._send(self._begin(0))
        if self._chunked:
            self._send(b"0\r\n\r\n")
        elif self._has_body and self._length is not None and self._sent_bytes != self._length:
            self._handler.close_connection = True

    def _send(self, data: bytes) -> bool:
        waited = False
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                waited = True
                self._poll(select.POLLOUT, None)
            except OSError:
                raise _ClientLeftError from None
        return waited

    def _wait(self, bell: _Bell) -> None:
        self._poll(0, bell)
        bell.silence()

    def _poll(self, events: int, bell: _Bell | None) -> None:
        """Wait for ``events`` of the client's socket, or the bell; raises if the client left.

        Time can only be up while the bell is waited for: not in the middle of a chunk.
        """
        poll = select.poll()
        if self._watching:
            events |= select.POLLIN
        poll.register(self._socket, events)
        if bell is not None:
            poll.register(bell, select.POLLIN)
        timeout_ms = None
        if bell is not None and self._deadline_s is not None:
            timeout_ms = max(0.0, self._deadline_s - time.perf_counter()) * 1e3
        ready = dict(poll.poll(timeout_ms))
        if not ready:
            raise _TimeUpError
        seen = ready.get(self._socket.fileno(), 0)
        if seen & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
            raise _ClientLeftError
        if seen & select.POLLIN:
            self._watch()

    def _watch(self) -> None:
        try:
            more = self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            raise _ClientLeftError from None
        if not more:
            raise _ClientLeftError
        self._watching = False  # the next request is there already: its client has not left


class _Bell:
    """Wakes a thread that waits for a socket at the same time."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self._lock = threading.Lock()
        self._rung = False
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:  # late messages must not ring at a descriptor that is another's by then
            self._open = False
            os.close(self._reader)
            os.close(self._writer)

    def fileno(self) -> int:
        return self._reader

    def ring(self) -> None:
        with self._lock:
            if self._open and not self._rung:
                self._rung = True
                os.write(self._writer, b"!")

    def silence(self) -> None:
        """Hear no more of what has been rung for; the caller looks for messages after this."""
        with self._lock:
            if self._rung:
                os.read(self._reader, 1)
                self._rung = False
