"""Sockets for the connection pool: a deadline over everything, and cheap liveness probes.

Two things are done differently from httpcore's own backend, with its public interface only.

*Deadline.* A time-out that httpcore hands down may be a ``Limit``: the seconds one operation may
take, and the point at which the whole call ends. Each connect, handshake, read and write uses the
smaller of both, so a server that trickles a byte every half second is cut at the deadline.

*Liveness.* Before an idle connection is used again it is asked whether it is readable, which means
that the server has closed it. Under gevent the patched ``poll`` goes round the event loop for
that; here the original system call is used, which returns at once in either world.
"""

import select
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from queue import Empty, Queue
from typing import Any, Self

import httpcore

from holysheep.ports import Clock

_SEND_BYTES = 64 * 1024
"""Written data is held back up to here, until the answer is read."""
_DEFAULT_TIMEOUT_S = 60.0
"""Where nobody names a time-out."""


class Limit(float):
    """A time-out in seconds that also knows the deadline of the whole call.

    A float, because that is what httpcore passes on unchanged to the backend.
    """

    __slots__ = ("deadline_s",)
    deadline_s: float

    def __new__(cls, seconds: float, *, deadline_s: float) -> Self:
        """A limit of ``seconds`` within a call that ends at ``deadline_s`` (monotonic)."""
        limit = super().__new__(cls, seconds)
        limit.deadline_s = deadline_s
        return limit


def limits(
    clock: Clock, deadline_s: float, *, connect_s: float, read_s: float, write_s: float
) -> dict[str, float]:
    """The ``timeout`` extension of a request that must have ended at ``deadline_s``.

    The wait for a pooled connection counts from now, the others from when they begin.
    """
    remaining = max(0.0, deadline_s - clock.monotonic())
    return {
        "connect": Limit(connect_s, deadline_s=deadline_s),
        "read": Limit(read_s, deadline_s=deadline_s),
        "write": Limit(write_s, deadline_s=deadline_s),
        "pool": remaining,
    }


class DeadlineBackend(httpcore.NetworkBackend):
    """Opens TCP connections whose operations respect a ``Limit``."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._inner = httpcore.SyncBackend()
        self._is_readable = _readability_probe()
        self._opened = threading.local()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of ``host`` that answers, all within ``timeout``.

        Raises ``httpcore.ConnectTimeout`` or ``httpcore.ConnectError``.
        """
        limit = _limit(timeout, self._clock)
        ends_s = min(self._clock.monotonic() + limit, limit.deadline_s)
        addresses = self._resolve(host, port, ends_s)
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for tried, address in enumerate(addresses):
            left = ends_s - self._clock.monotonic()
            if left <= 0:
                raise httpcore.ConnectTimeout("timed out")
            # One that never answers must leave time for those behind it.
            share = left / (len(addresses) - tried)
            try:
                stream = self._inner.connect_tcp(
                    address, port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                opened = DeadlineStream(stream, limit, self._clock, self._is_readable)
                self._opened.last = opened
                return opened
        raise failure

    def forget_opened(self) -> None:
        """What this thread has opened until now is not to be abandoned any more."""
        self._opened.last = None

    def abandon(self) -> None:
        """Close what this thread has opened since.

        httpcore forgets a stream without closing it when a SOCKS proxy refuses.
        """
        stream: DeadlineStream | None = getattr(self._opened, "last", None)
        if stream is not None:
            stream.close()

    def _resolve(self, host: str, port: int, ends_s: float) -> list[str]:
        """The addresses of ``host``, in the order in which to try them.

        Name resolution knows no time-out of its own, so it runs in a thread that is left behind
        when the time is over.
        """
        if _is_address(host):
            return [host]
        answers: Queue[list[str] | Exception] = Queue()

        def look_up() -> None:
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                answers.put(error)
            else:
                answers.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))

        threading.Thread(target=look_up, daemon=True).start()
        try:
            answer = answers.get(timeout=max(0.0, ends_s - self._clock.monotonic()))
        except Empty:
            raise httpcore.ConnectTimeout("name resolution timed out") from None
        if isinstance(answer, Exception):
            raise httpcore.ConnectError(f"the name {host} could not be resolved") from answer
        return answer


class DeadlineStream(httpcore.NetworkStream):
    """A connected socket whose reads and writes respect a ``Limit``.

    Where httpcore names no time-out, as in the exchange with a SOCKS proxy, it is the one that the
    connection was made with.
    """

    def __init__(
        self,
        inner: httpcore.NetworkStream,
        limit: Limit,
        clock: Clock,
        is_readable: Callable[[socket.socket], bool],
    ) -> None:
        self._inner = inner
        self._limit = limit
        self._clock = clock
        self._is_readable = is_readable
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self.is_unanswered = True
        """Whether nothing has been received since something was last written."""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Send what is unsent, then receive. Raises ``Unanswered`` at an end before any byte."""
        try:
            if self._unsent:
                self._flush(timeout)
            received = self._inner.read(max_bytes, self._left(timeout, httpcore.ReadTimeout))
        except (httpcore.ReadError, httpcore.WriteError) as error:
            if self.is_unanswered:
                raise Unanswered(str(error)) from error
            raise
        if received:
            self.is_unanswered = False
        elif self.is_unanswered:
            raise Unanswered("Server disconnected without sending a response.")
        return received

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send, at the latest when the answer is read.

        httpcore writes head and body one after the other; together they are one system call and
        one packet, and the server wakes once.
        """
        self.is_unanswered = True
        self._unsent.append(buffer)
        self._unsent_bytes += len(buffer)
        if self._unsent_bytes >= _SEND_BYTES:
            self._flush(timeout)

    def close(self) -> None:
        """Close the connection."""
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """Negotiate TLS. Raises ``httpcore.ConnectTimeout`` or ``httpcore.ConnectError``."""
        left = self._left(timeout, httpcore.ConnectTimeout)
        return DeadlineStream(
            _TlsStream(self, ssl_context, server_hostname, left),
            self._limit,
            self._clock,
            self._is_readable,
        )

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks of a stream, and whether it is readable without going round gevent."""
        if info == "is_readable" and not isinstance(self._inner, _TlsStream):
            return self._is_readable(self._inner.get_extra_info("socket"))
        return self._inner.get_extra_info(info)

    def _flush(self, timeout: float | None) -> None:
        unsent, self._unsent, self._unsent_bytes = b"".join(self._unsent), [], 0
        view = memoryview(unsent)
        # In parts, because the time-out below is for each part of what the socket accepts.
        for start in range(0, len(view), _SEND_BYTES):
            left = self._left(timeout, httpcore.WriteTimeout)
            self._inner.write(bytes(view[start : start + _SEND_BYTES]), left)

    def _left(self, timeout: float | None, error: type[Exception]) -> Limit:
        """What one operation may take now. Raises ``error`` if that is nothing."""
        limit = self._limit if timeout is None else _limit(timeout, self._clock)
        now = self._clock.monotonic()
        left = min(float(limit), limit.deadline_s - now)
        if left <= 0:
            raise error("timed out")
        # All that the operation consists of below, such as the reads of a TLS record, ends then.
        return Limit(left, deadline_s=now + left)


class Unanswered(httpcore.ReadError):
    """The connection ended before any byte of an answer."""


class _TlsStream(httpcore.NetworkStream):
    """TLS over another stream, each read and write of which respects the deadline.

    The socket's own TLS loops until a record is complete; under gevent each turn may take the full
    time-out, so a server that trickles a record would never be cut off.
    """

    _RECORD_BYTES = 16 * 1024 + 2048
    """The largest TLS record, RFC 8446 section 5.2."""

    def __init__(
        self,
        inner: DeadlineStream,
        context: ssl.SSLContext,
        server_hostname: str | None,
        timeout: float | None,
    ) -> None:
        self._inner = inner
        self._received = ssl.MemoryBIO()
        self._to_send = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._received, self._to_send, server_hostname=server_hostname
        )
        try:
            self._perform(self._object.do_handshake, timeout)
        except (httpcore.ReadTimeout, httpcore.WriteTimeout) as error:
            self.close()
            raise httpcore.ConnectTimeout(str(error)) from error
        except (httpcore.ReadError, httpcore.WriteError, OSError) as error:
            self.close()
            raise httpcore.ConnectError(str(error)) from error
        except BaseException:
            self.close()
            raise

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return self._perform(partial(self._object.read, max_bytes), timeout)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        view = memoryview(buffer)
        try:
            while view:
                view = view[self._perform(partial(self._object.write, view), timeout) :]
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        self._inner.close()

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable" and (self._received.pending or self._object.pending()):
            return True
        return self._object if info == "ssl_object" else self._inner.get_extra_info(info)

    def _perform[Result](self, step: Callable[[], Result], timeout: float | None) -> Result:
        """Do a step of the protocol, with as much sending and receiving as it needs."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self._send(timeout)
                try:
                    received = self._inner.read(self._RECORD_BYTES, timeout)
                except Unanswered:
                    received = b""
                if received:
                    self._received.write(received)
                else:
                    self._received.write_eof()
            else:
                self._send(timeout)
                return result

    def _send(self, timeout: float | None) -> None:
        ready = self._to_send.read()
        if ready:
            self._inner.write(ready, timeout)
            self._inner._flush(timeout)


def _limit(timeout: float | None, clock: Clock) -> Limit:
    if isinstance(timeout, Limit):
        return timeout
    seconds = _DEFAULT_TIMEOUT_S if timeout is None else timeout
    return Limit(seconds, deadline_s=clock.monotonic() + seconds)


def _readability_probe() -> Callable[[socket.socket], bool]:
    """A function that tells without waiting whether a socket is readable.

    The engine does not depend on gevent; it only must not be slowed down by it.
    """
    poll = getattr(select, "poll", None)
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("select"):
        poll = monkey.get_original("select", "poll")
    if poll is None:
        return lambda sock: bool(select.select([sock], [], [], 0)[0])

    def is_readable(sock: socket.socket) -> bool:
        descriptor = sock.fileno()
        if descriptor < 0:
            return True
        poller = poll()
        poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(0))

    return is_readable


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return True
    return False
