"""The connection pool: an httpx transport for one origin that is quick under gevent.

httpx's own pool asks every idle connection twice whether it is alive, for each request and with
its lock held; under gevent each question is a round of the event loop, and at 20 requests in flight
callers queue for that lock. Here the most recently used idle connection is taken off a stack and
only that one is asked. Connections, TLS, proxies and HTTP itself remain httpcore's.

A request on a kept-alive connection that turns out to be dead before any byte of a response is
sent again at once on a new connection: the server had closed it, and has not seen the request.
"""

import ssl
from collections.abc import Iterator
from functools import cache
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx
from socksio import SOCKSError

from holysheep import config
from holysheep.errors import SettingsError
from holysheep.fair import FairSemaphore
from holysheep.network import DeadlineBackend, DeadlineStream, Unanswered
from holysheep.ports import Clock

_ERRORS: dict[type[Exception], type[httpx.TransportError]] = {
    httpcore.ConnectTimeout: httpx.ConnectTimeout,
    httpcore.ReadTimeout: httpx.ReadTimeout,
    httpcore.WriteTimeout: httpx.WriteTimeout,
    httpcore.PoolTimeout: httpx.PoolTimeout,
    httpcore.ConnectError: httpx.ConnectError,
    httpcore.ReadError: httpx.ReadError,
    httpcore.WriteError: httpx.WriteError,
    httpcore.ProxyError: httpx.ProxyError,
    httpcore.UnsupportedProtocol: httpx.UnsupportedProtocol,
    httpcore.LocalProtocolError: httpx.LocalProtocolError,
    httpcore.RemoteProtocolError: httpx.RemoteProtocolError,
    httpcore.TimeoutException: httpx.TimeoutException,
    httpcore.NetworkError: httpx.NetworkError,
    httpcore.ProtocolError: httpx.ProtocolError,
}


class PooledTransport(httpx.BaseTransport):
    """Sends requests to one origin over kept-alive connections.

    ``max_connections`` bounds those in use, ``max_idle`` those kept. Raises httpx's exceptions.
    Proxies come from the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY).
    """

    def __init__(
        self,
        base_url: str,
        *,
        clock: Clock,
        max_connections: int = config.MAX_CONNECTIONS,
        max_idle: int = config.MIN_KEPT_ALIVE,
    ) -> None:
        self._origin = _origin(httpx.URL(base_url))
        self._clock = clock
        self._backend = DeadlineBackend(clock)
        self._factory = _connection_factory(httpx.URL(base_url), self._backend)
        self._slots = FairSemaphore(max_connections, clock)
        self._max_idle = max_idle
        self._idle: list[httpcore.ConnectionInterface] = []

    @property
    def in_use(self) -> int:
        """Connections that are sending or receiving."""
        return self._slots.held

    def resize(self, *, max_connections: int, max_idle: int) -> None:
        """Change the bounds; connections in use are left alone."""
        self._slots.resize(max_connections)
        self._max_idle = max_idle

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to the origin. The response must be closed."""
        limits = request.extensions.get("timeout", {})
        if not self._slots.acquire(self._clock.monotonic() + limits.get("pool", 60.0)):
            raise httpx.PoolTimeout("no connection became free in time", request=request)
        connection: httpcore.ConnectionInterface | None = None
        try:
            connection, response = self._send(_to_core(request))
        except BaseException as error:
            self._slots.release()
            raise _translated(error, request) from error
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_ResponseStream(self, connection, response, request),
            extensions=response.extensions,
            request=request,
        )

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _send(
        self, request: httpcore.Request
    ) -> tuple[httpcore.ConnectionInterface, httpcore.Response]:
        connection = self._pop_idle()
        if connection is not None:
            try:
                response = connection.handle_request(request)
            except (Unanswered, httpcore.ConnectionNotAvailable):
                connection.close()
            except BaseException:
                connection.close()
                raise
            else:
                if _answers_this_request(response):
                    return connection, response
                connection.close()
        connection = self._factory.create_connection(self._origin)
        self._backend.forget_opened()
        try:
            return connection, connection.handle_request(request)
        except BaseException:
            connection.close()
            self._backend.abandon()
            raise

    def _pop_idle(self) -> httpcore.ConnectionInterface | None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_available() and not connection.has_expired():
                return connection
            connection.close()

    def give_back(self, connection: httpcore.ConnectionInterface) -> None:
        """Keep a connection whose response has ended, if it can be used again."""
        if connection.is_idle() and len(self._idle) < self._max_idle:
            self._idle.append(connection)
            self.close_expired()
        else:
            connection.close()
        self._slots.release()

    def close_expired(self) -> None:
        """Close the connections at the bottom of the stack that nobody has needed for long."""
        while self._idle:
            try:
                # Taken first, so that no other caller uses it while it is looked at.
                oldest = self._idle.pop(0)
            except IndexError:
                return
            if not oldest.has_expired():
                self._idle.insert(0, oldest)
                return
            oldest.close()


class _ResponseStream(httpx.SyncByteStream):
    """A response body that gives its connection back when it is closed."""

    def __init__(
        self,
        pool: PooledTransport,
        connection: httpcore.ConnectionInterface,
        response: httpcore.Response,
        request: httpx.Request,
    ) -> None:
        self._pool = pool
        self._connection = connection
        self._response = response
        self._request = request
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._response.iter_stream()
        except Exception as error:
            raise _translated(error, self._request) from error

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._response.close()
        finally:
            self._pool.give_back(self._connection)


def _answers_this_request(response: httpcore.Response) -> bool:
    """Whether a response came after the request that it is taken for.

    A server that sends more than one answer leaves the rest behind; on a kept-alive connection
    that would be read as the answer to the next request, before that was even sent.
    """
    stream = response.extensions.get("network_stream")
    return not (isinstance(stream, DeadlineStream) and stream.is_unanswered)


def _to_core(request: httpx.Request) -> httpcore.Request:
    url = request.url
    return httpcore.Request(
        method=request.method,
        url=httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        ),
        headers=request.headers.raw,
        content=request.stream,
        extensions=request.extensions,
    )


def _translated(error: BaseException, request: httpx.Request) -> BaseException:
    for kind, counterpart in _ERRORS.items():
        if isinstance(error, kind):
            return counterpart(str(error), request=request)
    if isinstance(error, SOCKSError):
        return httpx.ProxyError(str(error), request=request)
    return error


def _origin(url: httpx.URL) -> httpcore.Origin:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=b"/").origin


def _connection_factory(
    url: httpx.URL, backend: httpcore.NetworkBackend
) -> httpcore.ConnectionPool:
    """httpcore's maker of connections, direct or through the proxy for ``url``.

    Only its ``create_connection`` is used; it never holds a connection itself.
    """
    proxy = _proxy_for(url)
    context = _ssl_context() if url.scheme == "https" else None
    if proxy is None:
        return httpcore.ConnectionPool(
            ssl_context=context,
            keepalive_expiry=config.KEEPALIVE_S,
            network_backend=backend,
        )
    try:
        address = httpx.URL(proxy)
    except httpx.InvalidURL:
        address = httpx.URL("")
    if address.scheme not in ("http", "https", "socks5", "socks5h") or not address.host:
        raise SettingsError(
            "The proxy that the environment names (HTTP_PROXY, HTTPS_PROXY or ALL_PROXY) is no"
            " usable address, such as http://host:3128 or socks5://host:1080."
        )
    auth = (address.username.encode(), address.password.encode()) if address.username else None
    if address.scheme.startswith("socks"):
        return httpcore.SOCKSProxy(
            proxy_url=_bare(address),
            proxy_auth=auth,
            ssl_context=context,
            keepalive_expiry=config.KEEPALIVE_S,
            network_backend=backend,
        )
    return httpcore.HTTPProxy(
        proxy_url=_bare(address),
        proxy_auth=auth,
        ssl_context=context,
        keepalive_expiry=config.KEEPALIVE_S,
        network_backend=backend,
    )


def _proxy_for(url: httpx.URL) -> str | None:
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _bare(url: httpx.URL) -> str:
    return str(url.copy_with(userinfo=b""))


@cache
def _ssl_context() -> ssl.SSLContext:
    """One context for the process: reading the certificates takes longer than a handshake."""
    return httpx.create_ssl_context()
