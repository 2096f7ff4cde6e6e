"""Servers that speak raw bytes, for what the simulated gateway does not do, and calls to them."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from holysheep.pool import PooledTransport
from holysheep.ports import SystemClock
from holysheep.quirks import Quirks
from holysheep.settings import Settings
from holysheep.transport import ChatTransport
from holysheep.types import Call, ChatRequest, Completed, Completion, Delta, Policy, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    import pytest

    from holysheep.ports import Clock

__all__ = [
    "KEY",
    "Asker",
    "Link",
    "RawServer",
    "Request",
    "answer",
    "chat_body",
    "chunk",
    "chunked",
    "closed_port",
    "events",
    "forget_proxies",
    "full_backlog",
    "make_certificate",
    "relay",
    "replies",
    "slow_reader",
    "stream_body",
    "tls_server_context",
    "trickling_tls",
]

KEY = "test-key-0123456789abcdef"
PATIENCE_S = 10.0
"""How long a server of a test waits for its client before it gives up."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came: its first line, headers with names in lower case, and body."""

    line: str
    headers: dict[str, str]
    body: bytes
    link: int

    @property
    def text(self) -> str:
        """The text of the last message."""
        text: str = json.loads(self.body)["messages"][-1]["content"]
        return text


class Link:
    """One accepted connection. ``number`` counts them from 0."""

    def __init__(self, sock: socket.socket, number: int, seen: list[Request]) -> None:
        self.sock = sock
        self.number = number
        self._seen = seen
        self._received = b""

    def read_head(self) -> bytes:
        """The head of the next request; empty when the client has left."""
        while b"\r\n\r\n" not in self._received:
            piece = self.sock.recv(65536)
            if not piece:
                return b""
            self._received += piece
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        return head

    def read_request(self) -> Request | None:
        """The next request; ``None`` when the client has left."""
        head = self.read_head()
        if not head:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): text.strip() for name, _, text in (x.partition(":") for x in lines)
        }
        length = int(headers.get("content-length", 0))
        while len(self._received) < length:
            piece = self.sock.recv(65536)
            if not piece:
                return None
            self._received += piece
        body, self._received = self._received[:length], self._received[length:]
        request = Request(first, headers, body, self.number)
        self._seen.append(request)
        return request

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def trickle(self, data: bytes, interval_s: float) -> None:
        """Send single bytes, ``interval_s`` apart, until the client leaves."""
        for byte in data:
            self.sock.sendall(bytes((byte,)))
            time.sleep(interval_s)

    def wait_for_end(self) -> None:
        """Wait until the client closes the connection."""
        with contextlib.suppress(OSError):
            while self.sock.recv(65536):
                pass

    def reset(self) -> None:
        """End the connection with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class RawServer:
    """Hands each connection to ``serve`` in a thread of its own, and closes it afterwards.

    ``requests`` are the requests that were read with ``Link.read_request``; ``connections`` counts
    accepted connections. An error of ``serve`` that is no ``OSError`` fails the test at the end.
    """

    def __init__(
        self,
        serve: Callable[[Link], None],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        self._serve = serve
        self._tls = tls
        self.host = host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._listener.bind((host, port))
        self._listener.listen(128)
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.requests: list[Request] = []
        self._links: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._errors: queue.Queue[BaseException] = queue.Queue()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    @property
    def url(self) -> str:
        """The base URL."""
        return f"{self.origin}/v1"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(PATIENCE_S)
        for sock in self._links:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)
        for sock in self._links:
            sock.close()
        if kind is None and not self._errors.empty():
            raise self._errors.get()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            number, self.connections = self.connections, self.connections + 1
            thread = threading.Thread(target=self._handle, args=(sock, number), daemon=True)
            self._links.append(sock)
            self._threads.append(thread)
            thread.start()

    def _handle(self, sock: socket.socket, number: int) -> None:
        sock.settimeout(PATIENCE_S)
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
                self._links.append(sock)
            self._serve(Link(sock, number, self.requests))
        except OSError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the test ends
            self._errors.put(error)
        finally:
            sock.close()


def replies(*answers: bytes | Callable[[Link], object]) -> Callable[[Link], None]:
    """Answers one request after the other, whatever their connection; the last answer repeats.

    An answer that is a function gets the connection and has read the request already.
    """
    left = deque(answers)
    lock = threading.Lock()

    def serve(link: Link) -> None:
        while link.read_request() is not None:
            with lock:
                given = left.popleft() if len(left) > 1 else left[0]
            if isinstance(given, bytes):
                link.send(given)
            else:
                given(link)

    return serve


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for the loopback addresses, and its key."""
    openssl = shutil.which("openssl")
    assert openssl, "these tests need the openssl command to make a certificate"
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def tls_server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a server needs to speak TLS with that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def trickling_tls(
    context: ssl.SSLContext,
    data: bytes,
    *,
    part: Literal["handshake", "answer"],
    interval_s: float,
    patience_s: float,
) -> Callable[[Link], None]:
    """TLS of which the handshake, or the answer ``data``, goes out in single bytes.

    What trickles are bytes of TLS records and not of the answer, as on a bad line: none of them
    is readable before its record is complete.
    """

    def serve(link: Link) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        end_s = time.monotonic() + patience_s

        def flush(*, slowly: bool) -> None:
            ready = outgoing.read()
            if not slowly:
                link.send(ready)
                return
            for byte in ready:
                if time.monotonic() > end_s:
                    raise ConnectionAbortedError
                link.send(bytes((byte,)))
                time.sleep(interval_s)

        def carry_out(step: Callable[[], object]) -> None:
            while True:
                try:
                    step()
                except ssl.SSLWantReadError:
                    flush(slowly=part == "handshake")
                    received = link.sock.recv(65536)
                    if not received:
                        raise ConnectionAbortedError from None
                    incoming.write(received)
                else:
                    return

        carry_out(tls.do_handshake)
        flush(slowly=False)
        carry_out(lambda: tls.read(65536))
        tls.write(data)
        flush(slowly=part == "answer")

    return serve


def slow_reader(*, bytes_per_s: float, patience_s: float) -> Callable[[Link], None]:
    """Takes a request so slowly that sending it never ends, yet never quite stops taking it."""

    def serve(link: Link) -> None:
        end_s = time.monotonic() + patience_s
        while time.monotonic() < end_s and link.sock.recv(int(bytes_per_s / 50)):
            time.sleep(0.02)

    return serve


def relay(link: Link, port: int) -> None:
    """Pass bytes on between a client and a port of this machine, as a proxy does."""

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while received := source.recv(65536):
                target.sendall(received)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as server:
        back = threading.Thread(target=pump, args=(server, link.sock), daemon=True)
        back.start()
        pump(link.sock, server)
        back.join(PATIENCE_S)


def full_backlog(host: str, port: int = 0) -> tuple[socket.socket, list[socket.socket]]:
    """A listener that accepts nobody and has no room left to wait in, and those who wait."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(0)
    waiting = []
    for _ in range(4):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
        waiting.append(sock)
    time.sleep(0.01)
    return listener, waiting


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def forget_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the proxies of this machine out of the environment."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def answer(
    body: bytes, status: int = 200, headers: Mapping[str, str] | None = None, *, length: int = -1
) -> bytes:
    """An HTTP answer with a content-length, by default the right one."""
    given = {"content-type": "application/json", **(headers or {})}
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in given.items())]
    lines.append(f"content-length: {len(body) if length < 0 else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(*pieces: bytes, headers: Mapping[str, str] | None = None, end: bool = True) -> bytes:
    """An HTTP answer in chunks, an event stream unless ``headers`` say otherwise."""
    given = {"content-type": "text/event-stream", **(headers or {})}
    lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in given.items())]
    head = "\r\n".join([*lines, "transfer-encoding: chunked", "", ""]).encode("latin-1")
    return head + b"".join(map(chunk, pieces)) + (b"0\r\n\r\n" if end else b"")


def chunk(piece: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(piece), piece)


def chat_body(text: str = "hello", **fields: Any) -> bytes:
    """A chat completion as JSON."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return json.dumps({"model": "m-1", "choices": [choice], "usage": usage, **fields}).encode()


def events(*parts: Any) -> bytes:
    """Server-sent events; a part that is no text is sent as JSON."""
    return b"".join(
        b"data: %s\n\n" % (part if isinstance(part, str) else json.dumps(part)).encode()
        for part in parts
    )


def stream_body(text: str = "hello") -> bytes:
    """A chat completion as an event stream, complete."""
    return events(
        {"model": "m-1", "choices": [{"index": 0, "delta": {"content": text}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
        "[DONE]",
    )


class Asker:
    """The transport alone, for one base URL: no retry, no limits, and any deadline."""

    def __init__(self, url: str, *, clock: Clock | None = None, **pool: Any) -> None:
        self.clock = clock or SystemClock()
        self.pool = PooledTransport(url, clock=self.clock, **pool)
        settings = Settings(KEY, base_url=url)
        self.transport = ChatTransport(settings, self.pool, Quirks(self.clock), self.clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()

    def events(
        self,
        text: str = "Hello",
        *,
        stream: bool = False,
        timeout_s: float = 5.0,
        trace: Trace | None = None,
        **body: Any,
    ) -> Iterator[Delta | Completed]:
        """Send a request and read its answer, event by event."""
        now_s = self.clock.monotonic()
        messages = [{"role": "user", "content": text}]
        request = ChatRequest({"model": "m-1", "messages": messages, **body})
        trace = trace or Trace(now_s)
        return self.transport(Call(request, Policy(), now_s + timeout_s, trace, stream))

    def ask(self, text: str = "Hello", **options: Any) -> Completion:
        """The whole answer; the joined deltas must be its texts."""
        texts: dict[int, str] = {}
        reasonings: dict[int, str] = {}
        completion: Completion | None = None
        for event in self.events(text, **options):
            assert completion is None, "an event after the last one"
            if isinstance(event, Completed):
                completion = event.completion
            else:
                texts[event.index] = texts.get(event.index, "") + event.text
                reasonings[event.index] = reasonings.get(event.index, "") + event.reasoning
        assert completion is not None
        for choice in completion.choices:
            assert choice.text == texts.get(choice.index, "")
            assert choice.reasoning == reasonings.get(choice.index, "")
        return completion
