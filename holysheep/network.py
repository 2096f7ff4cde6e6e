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
from queue import Empty, Queue
from typing import Any, Self

import httpcore

from holysheep.ports import Clock

_SEND_BYTES = 64 * 1024
"""Written data is held back up to here, until the answer is read."""


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
        if timeout is None:
            timeout = 60.0
        limit = Limit(timeout, deadline_s=self._clock.monotonic() + _capped(timeout, self._clock))
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in self._resolve(host, port, limit):
            left = limit.deadline_s - self._clock.monotonic()
            if left <= 0:
                raise httpcore.ConnectTimeout("timed out")
            try:
                stream = self._inner.connect_tcp(address, port, left, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _Stream(stream, self._clock, self._is_readable)
        raise failure

    def _resolve(self, host: str, port: int, limit: Limit) -> list[str]:
        """The addresses of ``host``, in the order in which to try them.

        Name resolution knows no time-out of its own, so it runs in a thread that is left behind
        when the limit passes.
        """
        if _is_address(host):
            return [host]
        answers: Queue[list[str] | OSError] = Queue()

        def look_up() -> None:
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except OSError as error:
                answers.put(error)
            else:
                answers.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))

        threading.Thread(target=look_up, daemon=True).start()
        try:
            answer = answers.get(timeout=max(0.0, limit.deadline_s - self._clock.monotonic()))
        except Empty:
            raise httpcore.ConnectTimeout("name resolution timed out") from None
        if isinstance(answer, OSError):
            raise httpcore.ConnectError(f"the name {host} could not be resolved") from answer
        return answer


class _Stream(httpcore.NetworkStream):
    """A connected socket whose reads and writes respect a ``Limit``."""

    def __init__(
        self,
        inner: httpcore.NetworkStream,
        clock: Clock,
        is_readable: Callable[[socket.socket], bool],
    ) -> None:
        self._inner = inner
        self._clock = clock
        self._is_readable = is_readable
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._unsent:
            self._flush(timeout)
        left = _capped(timeout, self._clock)
        if left <= 0:
            raise httpcore.ReadTimeout("timed out")
        return self._inner.read(max_bytes, left)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # httpcore writes head and body one after the other; together they are one system call and
        # one packet, and the server wakes once. Whoever writes a request then reads its answer.
        self._unsent.append(buffer)
        self._unsent_bytes += len(buffer)
        if self._unsent_bytes >= _SEND_BYTES:
            self._flush(timeout)

    def _flush(self, timeout: float | None) -> None:
        left = _capped(timeout, self._clock)
        if left <= 0:
            raise httpcore.WriteTimeout("timed out")
        unsent, self._unsent, self._unsent_bytes = b"".join(self._unsent), [], 0
        self._inner.write(unsent, left)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = _capped(timeout, self._clock)
        if left <= 0:
            self.close()
            raise httpcore.ConnectTimeout("timed out")
        secured = self._inner.start_tls(ssl_context, server_hostname, left)
        return _Stream(secured, self._clock, self._is_readable)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self._is_readable(self._inner.get_extra_info("socket"))
        return self._inner.get_extra_info(info)


def _capped(timeout: float | None, clock: Clock) -> float:
    """What is left for one operation, in seconds; not positive when the deadline has passed."""
    if isinstance(timeout, Limit):
        return min(float(timeout), timeout.deadline_s - clock.monotonic())
    return 60.0 if timeout is None else timeout


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
