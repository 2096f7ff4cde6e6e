"""The pool: which connection is used, how many there are, and that none is lost."""

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from holysheep import config
from holysheep.network import limits
from holysheep.pool import PooledTransport
from holysheep.ports import SystemClock
from tests.engine.raw_servers import (
    Asker,
    Link,
    RawServer,
    answer,
    chat_body,
    chunked,
    closed_port,
    forget_proxies,
    make_certificate,
    replies,
    stream_body,
    tls_server_context,
)

CLOCK = SystemClock()
HELLO = answer(b"hello")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)


@pytest.fixture
def pool_for() -> Iterator[Callable[..., PooledTransport]]:
    """Makes pools that are closed when the test ends."""
    pools: list[PooledTransport] = []

    def make(url: str, **bounds: int) -> PooledTransport:
        pools.append(PooledTransport(url, clock=CLOCK, **bounds))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def begin(
    pool: PooledTransport, url: str, *, content: bytes = b"{}", timeout_s: float = 5.0
) -> httpx.Response:
    """Send a request; its response must be closed."""
    given = limits(CLOCK, CLOCK.monotonic() + timeout_s, connect_s=5, read_s=5, write_s=5)
    request = httpx.Request("POST", url, content=content, extensions={"timeout": given})
    return pool.handle_request(request)


def fetch(pool: PooledTransport, url: str, **options: Any) -> bytes:
    """The body of the whole answer to a request."""
    response = begin(pool, url, **options)
    try:
        return response.read()
    finally:
        response.close()


def tell_link(link: Link) -> None:
    """Answers each request with the number of its connection."""
    while link.read_request() is not None:
        link.send(answer(b"%d" % link.number))


class TestReuse:
    def test_one_connection_serves_many_requests(self, pool_for: Any) -> None:
        with RawServer(tell_link) as server:
            pool = pool_for(server.url)
            assert [fetch(pool, server.url) for _ in range(5)] == [b"0"] * 5
            assert server.connections == 1

    def test_the_most_recently_used_one_goes_first(self, pool_for: Any) -> None:
        with RawServer(tell_link) as server:
            pool = pool_for(server.url)
            first, second, third = (begin(pool, server.url) for _ in range(3))
            for response in (second, third, first):
                response.read()
            assert fetch(pool, server.url) == b"0"
            assert fetch(pool, server.url) == b"0"
            held = begin(pool, server.url)
            assert fetch(pool, server.url) == b"2"
            held.close()

    def test_connection_close_is_obeyed(self, pool_for: Any) -> None:
        closing = answer(b"x", headers={"connection": "close"})
        with RawServer(lambda link: (link.read_request(), link.send(closing))) as server:
            pool = pool_for(server.url)
            assert [fetch(pool, server.url) for _ in range(3)] == [b"x"] * 3
            assert server.connections == 3

    def test_http_1_0_is_not_kept(self, pool_for: Any) -> None:
        old = b"HTTP/1.0 200 OK\r\n\r\nold"
        with RawServer(lambda link: (link.read_request(), link.send(old))) as server:
            pool = pool_for(server.url)
            assert [fetch(pool, server.url) for _ in range(2)] == [b"old"] * 2
            assert server.connections == 2

    def test_an_idle_one_is_dropped_after_its_time(
        self, pool_for: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(config, "KEEPALIVE_S", 0.02)
        with RawServer(tell_link) as server:
            pool = pool_for(server.url)
            assert fetch(pool, server.url) == b"0"
            assert fetch(pool, server.url) == b"0"
            time.sleep(0.03)
            assert fetch(pool, server.url) == b"1"

    def test_one_at_the_bottom_is_closed_when_nobody_has_needed_it(
        self, pool_for: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(config, "KEEPALIVE_S", 0.05)
        ended = threading.Event()

        def serve(link: Link) -> None:
            tell_link(link)
            if link.number == 0:
                ended.set()

        with RawServer(serve) as server:
            pool = pool_for(server.url)
            responses = [begin(pool, server.url) for _ in range(2)]
            for response in responses:
                response.read()
            time.sleep(0.06)
            assert fetch(pool, server.url) == b"2"
            assert fetch(pool, server.url) == b"2"
            assert ended.wait(2)


class TestStale:
    """Kept-alive connections that end at awkward moments."""

    @pytest.mark.parametrize(
        "end",
        [
            pytest.param(lambda _: None, id="FIN"),
            pytest.param(Link.reset, id="RST"),
            pytest.param(lambda link: link.send(answer(b"", 408)), id="408 and FIN"),
            pytest.param(lambda link: link.send(b"unasked"), id="bytes and FIN"),
        ],
    )
    def test_one_that_ended_while_idle_is_replaced(
        self, pool_for: Any, end: Callable[[Link], Any]
    ) -> None:
        closed = threading.Event()

        def serve(link: Link) -> None:
            link.read_request()
            link.send(answer(b"%d" % link.number))
            if link.number == 0:
                time.sleep(0.01)
                end(link)
                link.sock.close()
                closed.set()
            else:
                link.wait_for_end()

        with RawServer(serve) as server:
            pool = pool_for(server.url)
            assert fetch(pool, server.url) == b"0"
            assert closed.wait(5)
            assert fetch(pool, server.url) == b"1"
            assert len(server.requests) == 2

    @pytest.mark.parametrize("end", [lambda _: None, Link.reset], ids=["FIN", "RST"])
    def test_one_that_ends_instead_of_answering_is_replaced(
        self, pool_for: Any, end: Callable[[Link], Any]
    ) -> None:
        def serve(link: Link) -> None:
            link.read_request()
            link.send(answer(b"%d" % link.number))
            if link.number == 0:
                link.read_request()
                end(link)
            else:
                link.wait_for_end()

        with RawServer(serve) as server:
            pool = pool_for(server.url)
            assert [fetch(pool, server.url) for _ in range(2)] == [b"0", b"1"]
            assert [request.link for request in server.requests] == [0, 0, 1]

    def test_a_large_request_is_sent_again_whole(self, pool_for: Any) -> None:
        content = b"x" * 2_000_000

        def serve(link: Link) -> None:
            link.read_request()
            link.send(HELLO)
            if link.number == 0:
                link.read_head()
            else:
                link.wait_for_end()

        with RawServer(serve) as server:
            pool = pool_for(server.url)
            for _ in range(2):
                assert fetch(pool, server.url, content=content) == b"hello"
            assert [len(request.body) for request in server.requests] == [2_000_000] * 2

    @pytest.mark.parametrize("end", [lambda _: None, Link.reset], ids=["FIN", "RST"])
    def test_a_new_one_that_ends_is_not_tried_again(
        self, pool_for: Any, end: Callable[[Link], Any]
    ) -> None:
        with RawServer(lambda link: (link.read_request(), end(link))) as server:
            pool = pool_for(server.url)
            with pytest.raises(httpx.TransportError):
                fetch(pool, server.url)
            assert server.connections == 1

    @pytest.mark.parametrize(
        "beginning",
        [b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n", b"nonsense\r\n\r\n"],
    )
    def test_one_that_breaks_inside_its_answer_is_not_tried_again(
        self, pool_for: Any, beginning: bytes
    ) -> None:
        """The server has seen that request: sending it again would have it done twice."""

        def serve(link: Link) -> None:
            link.read_request()
            link.send(HELLO)
            link.read_request()
            link.send(beginning)

        with RawServer(serve) as server:
            pool = pool_for(server.url)
            fetch(pool, server.url)
            with pytest.raises(httpx.TransportError):
                fetch(pool, server.url)
            assert len(server.requests) == 2

    def test_one_that_does_not_answer_in_time_is_not_tried_again(self, pool_for: Any) -> None:
        with RawServer(replies(HELLO, Link.wait_for_end)) as server:
            pool = pool_for(server.url)
            fetch(pool, server.url)
            with pytest.raises(httpx.ReadTimeout):
                fetch(pool, server.url, timeout_s=0.1)
            assert len(server.requests) == 2

    @pytest.mark.parametrize(
        "extra",
        [answer(b"of nobody"), answer(b"error", 500), answer(b"a") + answer(b"b")],
        ids=["an answer", "an error", "two answers"],
    )
    def test_an_answer_too_many_is_not_taken_for_the_next_one(
        self, pool_for: Any, extra: bytes
    ) -> None:
        """Servers do this: an error behind a finished stream, a wrong content-length."""
        with RawServer(self.sends_too_much(extra)) as server:
            pool = pool_for(server.url)
            asked = [b'{"n": %d}' % number for number in range(5)]
            assert [fetch(pool, server.url, content=content) for content in asked] == asked

    @pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\n", b"\r\n", b"x"])
    def test_stray_bytes_cost_one_request_at_most(self, pool_for: Any, extra: bytes) -> None:
        with RawServer(self.sends_too_much(extra)) as server:
            pool = pool_for(server.url)
            assert fetch(pool, server.url, content=b"0") == b"0"
            with contextlib.suppress(httpx.TransportError):
                assert fetch(pool, server.url, content=b"1") == b"1"
            assert pool.in_use == 0
            for content in (b"2", b"3"):
                assert fetch(pool, server.url, content=content) == content

    @staticmethod
    def sends_too_much(extra: bytes) -> Callable[[Link], None]:
        def serve(link: Link) -> None:
            first = link.number == 0
            while (request := link.read_request()) is not None:
                link.send(answer(request.body) + (extra if first else b""))
                first = False

        return serve


class TestBounds:
    def test_no_more_than_max_connections_are_in_use(self, pool_for: Any) -> None:
        with RawServer(tell_link) as server:
            pool = pool_for(server.url, max_connections=2)
            held = [begin(pool, server.url) for _ in range(2)]
            assert pool.in_use == 2
            with pytest.raises(httpx.PoolTimeout):
                fetch(pool, server.url, timeout_s=0.05)
            assert pool.in_use == 2
            held[0].close()
            assert fetch(pool, server.url) in (b"1", b"2")
            held[1].close()
            assert pool.in_use == 0

    def test_no_more_than_max_idle_are_kept(self, pool_for: Any) -> None:
        ended = threading.Semaphore(0)

        def serve(link: Link) -> None:
            tell_link(link)
            ended.release()

        with RawServer(serve) as server:
            pool = pool_for(server.url, max_idle=2)
            responses = [begin(pool, server.url) for _ in range(5)]
            for response in responses:
                response.read()
            for _ in range(3):
                assert ended.acquire(timeout=5)
            again = [begin(pool, server.url) for _ in range(3)]
            assert server.connections == 6
            for response in again:
                response.close()

    def test_a_waiting_request_gets_the_slot_that_becomes_free(self, pool_for: Any) -> None:
        with RawServer(tell_link) as server, ThreadPoolExecutor(1) as threads:
            pool = pool_for(server.url, max_connections=1)
            held = begin(pool, server.url)
            waiting = threads.submit(fetch, pool, server.url)
            time.sleep(0.02)
            assert not waiting.done()
            held.read()
            assert waiting.result(5) == b"0"

    def test_resize_takes_effect_for_those_who_wait(self, pool_for: Any) -> None:
        with RawServer(tell_link) as server, ThreadPoolExecutor(1) as threads:
            pool = pool_for(server.url, max_connections=1)
            held = begin(pool, server.url)
            waiting = threads.submit(fetch, pool, server.url)
            pool.resize(max_connections=2, max_idle=2)
            assert waiting.result(5) == b"1"
            held.close()

    def test_a_lowered_bound_leaves_those_in_use_alone(self, pool_for: Any) -> None:
        with RawServer(tell_link) as server:
            pool = pool_for(server.url, max_connections=3)
            held = [begin(pool, server.url) for _ in range(3)]
            pool.resize(max_connections=1, max_idle=1)
            assert [response.read() for response in held] == [b"0", b"1", b"2"]
            first = begin(pool, server.url)
            with pytest.raises(httpx.PoolTimeout):
                fetch(pool, server.url, timeout_s=0.05)
            first.close()
            assert pool.in_use == 0

    def test_close_ends_the_idle_ones_and_new_ones_can_be_opened(self, pool_for: Any) -> None:
        ended = threading.Event()

        def serve(link: Link) -> None:
            tell_link(link)
            ended.set()

        with RawServer(serve) as server:
            pool = pool_for(server.url)
            fetch(pool, server.url)
            pool.close()
            assert ended.wait(5)
            assert fetch(pool, server.url) == b"1"


class TestNoSlotIsLost:
    """After any failure the pool is as it was, and goes on working."""

    @pytest.mark.parametrize(
        "break_it",
        [
            pytest.param(lambda _: None, id="FIN"),
            pytest.param(Link.reset, id="RST"),
            pytest.param(lambda link: link.send(b"HTTP/1.1"), id="half a status line"),
            pytest.param(lambda link: link.send(b"nonsense\r\n\r\n"), id="no HTTP"),
            pytest.param(lambda link: link.send(b"HTTP/1.1 2x0 OK\r\n\r\n"), id="no status"),
            pytest.param(lambda link: link.send(answer(b"x", length=9)), id="short body"),
            pytest.param(lambda link: link.send(chunked(b"x", end=False)), id="no last chunk"),
            pytest.param(
                lambda link: link.send(chunked(end=False) + b"zz\r\n"), id="bad chunk size"
            ),
            pytest.param(
                lambda link: link.send(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000), id="long header"
            ),
            pytest.param(
                lambda link: link.send(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 50_000),
                id="many headers",
            ),
            pytest.param(lambda link: link.send(b"HTTP/1.1 200 OK\r\n: x\r\n\r\n"), id="no name"),
            pytest.param(
                lambda link: link.send(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"),
                id="negative length",
            ),
            pytest.param(
                lambda link: link.send(
                    b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n"
                ),
                id="two lengths",
            ),
            pytest.param(Link.wait_for_end, id="silence"),
            pytest.param(
                lambda link: (link.send(chunked(b"x", end=False)), link.wait_for_end()),
                id="silence in the body",
            ),
            pytest.param(
                lambda link: (link.send(b"HTTP/1.1 100 Continue\r\n\r\n"), link.wait_for_end()),
                id="100 and silence",
            ),
        ],
    )
    def test_failure(self, pool_for: Any, break_it: Callable[[Link], Any]) -> None:
        def serve(link: Link) -> None:
            while (request := link.read_request()) is not None:
                if request.body == b"break":
                    break_it(link)
                    return
                link.send(HELLO)

        with RawServer(serve) as server:
            pool = pool_for(server.url, max_connections=1)
            for _ in range(2):
                with pytest.raises(httpx.TransportError):
                    fetch(pool, server.url, content=b"break", timeout_s=0.1)
                assert pool.in_use == 0
            assert fetch(pool, server.url) == b"hello"

    def test_refused(self, pool_for: Any) -> None:
        url = f"http://127.0.0.1:{closed_port()}/v1"
        pool = pool_for(url, max_connections=1)
        for _ in range(3):
            with pytest.raises(httpx.ConnectError):
                fetch(pool, url)
        assert pool.in_use == 0

    def test_a_failed_connection_leaves_those_in_use_alone(
        self, pool_for: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever is cleaned up after a failure must not be what another request is using."""
        addresses = ["127.0.0.1"]

        def getaddrinfo(host: Any, port: Any, *_: Any, **__: Any) -> Any:
            if not addresses and host == "gateway.test":
                raise socket.gaierror(socket.EAI_NONAME, "unknown")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        rest = threading.Event()

        def serve(link: Link) -> None:
            link.read_request()
            link.send(chunked(b"first", end=False))
            rest.wait(5)
            link.send(b"4\r\nlast\r\n0\r\n\r\n")
            link.wait_for_end()

        with RawServer(serve) as server:
            url = f"http://gateway.test:{server.port}/v1"
            pool = pool_for(url)
            held = begin(pool, url)
            addresses.clear()
            with pytest.raises(httpx.ConnectError):
                fetch(pool, url)
            rest.set()
            assert held.read() == b"firstlast"
            assert pool.in_use == 0

    def test_another_origin(self, pool_for: Any) -> None:
        with RawServer(replies(HELLO)) as server:
            pool = pool_for(server.url)
            with pytest.raises(RuntimeError):
                fetch(pool, "http://127.0.0.1:1/v1")
            assert pool.in_use == 0

    def test_a_body_that_is_not_read_to_its_end(self, pool_for: Any) -> None:
        with RawServer(replies(answer(b"x" * 1_000_000))) as server:
            pool = pool_for(server.url, max_connections=1)
            for _ in range(3):
                response = begin(pool, server.url)
                next(response.iter_raw())
                assert pool.in_use == 1
                response.close()
                assert pool.in_use == 0
            assert server.connections == 3

    def test_a_body_that_is_not_read_at_all(self, pool_for: Any) -> None:
        with RawServer(replies(HELLO)) as server:
            pool = pool_for(server.url, max_connections=1)
            for _ in range(3):
                begin(pool, server.url).close()
            assert pool.in_use == 0

    def test_closing_twice_gives_back_once(self, pool_for: Any) -> None:
        with RawServer(replies(HELLO)) as server:
            pool = pool_for(server.url)
            response = begin(pool, server.url)
            response.read()
            response.close()
            response.stream.close()  # type: ignore[union-attr]
            assert pool.in_use == 0

    def test_an_answer_whose_reader_leaves(self) -> None:
        endless = replies(chunked(stream_body(), end=False))
        with RawServer(endless) as server, Asker(server.url, max_connections=1) as asker:
            for _ in range(3):
                events = asker.events(stream=True)
                next(events)
                assert asker.pool.in_use == 1
                events.close()  # type: ignore[attr-defined]
                assert asker.pool.in_use == 0

    def test_an_answer_that_is_dropped_without_a_word(self) -> None:
        endless = replies(chunked(stream_body(), end=False))
        with RawServer(endless) as server, Asker(server.url, max_connections=1) as asker:
            for _ in range(3):
                for _ in asker.events(stream=True):
                    break
                assert asker.pool.in_use == 0

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
    def test_an_interruption_while_sending(self, pool_for: Any, error: type[BaseException]) -> None:
        def content() -> Iterator[bytes]:
            yield b"x"
            raise error

        with RawServer(replies(HELLO)) as server:
            pool = pool_for(server.url)
            request = httpx.Request("POST", server.url, content=content())
            with pytest.raises(error):
                pool.handle_request(request)
            assert pool.in_use == 0


class TestManyThreads:
    THREADS = 50

    def run(self, pool: PooledTransport, server: RawServer, *, rounds: int) -> list[bytes]:
        start = threading.Barrier(self.THREADS)

        def work(number: int) -> list[bytes]:
            start.wait(10)
            return [
                fetch(pool, server.url, content=b'"%d/%d"' % (number, turn), timeout_s=20)
                for turn in range(rounds)
            ]

        with ThreadPoolExecutor(self.THREADS) as threads:
            results = threads.map(work, range(self.THREADS))
            return [body for bodies in results for body in bodies]

    def test_each_gets_its_own_answer_and_each_connection_is_used(self, pool_for: Any) -> None:
        """All first requests are held until every one is there: 50 connections, never more."""
        all_there = threading.Barrier(self.THREADS)

        def serve(link: Link) -> None:
            first = True
            while (request := link.read_request()) is not None:
                if first:
                    all_there.wait(10)
                    first = False
                link.send(answer(request.body))

        with RawServer(serve) as server:
            pool = pool_for(server.url, max_idle=self.THREADS)
            got = self.run(pool, server, rounds=4)
            assert sorted(got) == sorted(
                b'"%d/%d"' % (number, turn) for number in range(self.THREADS) for turn in range(4)
            )
            assert server.connections == self.THREADS
            assert pool.in_use == 0

    def test_the_bound_holds(self, pool_for: Any) -> None:
        lock = threading.Lock()
        active = most = 0

        def serve(link: Link) -> None:
            nonlocal active, most
            while (request := link.read_request()) is not None:
                with lock:
                    active += 1
                    most = max(most, active)
                time.sleep(0.001)
                with lock:
                    active -= 1
                link.send(answer(request.body))

        with RawServer(serve) as server:
            pool = pool_for(server.url, max_connections=7, max_idle=7)
            assert len(set(self.run(pool, server, rounds=3))) == self.THREADS * 3
            assert 1 < most <= 7
            assert server.connections <= 7
            assert pool.in_use == 0

    def test_failures_among_them_lose_nothing(self, pool_for: Any) -> None:
        def serve(link: Link) -> None:
            while (request := link.read_request()) is not None:
                if json.loads(request.body).endswith("1"):
                    return
                link.send(answer(request.body))

        with RawServer(serve) as server:
            pool = pool_for(server.url, max_connections=5, max_idle=5)

            def work(number: int) -> int:
                failed = 0
                for turn in range(3):
                    content = b'"%d/%d"' % (number, turn)
                    try:
                        assert fetch(pool, server.url, content=content) == content
                    except httpx.TransportError:
                        failed += 1
                return failed

            with ThreadPoolExecutor(self.THREADS) as threads:
                assert list(threads.map(work, range(self.THREADS))) == [1] * self.THREADS
            assert pool.in_use == 0


class TestProxies:
    """From the environment, as other programs take them."""

    TARGET = "http://gateway.test/v1"

    def test_plain_http_goes_to_the_proxy_with_the_whole_address(
        self, pool_for: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with RawServer(replies(HELLO)) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.origin)
            pool = pool_for(self.TARGET)
            assert [fetch(pool, self.TARGET) for _ in range(2)] == [b"hello"] * 2
            assert proxy.requests[0].line == "POST http://gateway.test/v1 HTTP/1.1"
            assert proxy.requests[0].headers["host"] == "gateway.test"
            assert proxy.connections == 1

    @pytest.mark.parametrize("name", ["http_proxy", "ALL_PROXY", "all_proxy"])
    def test_the_other_names(
        self, pool_for: Any, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        with RawServer(replies(HELLO)) as proxy:
            monkeypatch.setenv(name, f"127.0.0.1:{proxy.port}")
            assert fetch(pool_for(self.TARGET), self.TARGET) == b"hello"

    @pytest.mark.parametrize("bypass", ["gateway.test", ".test", "*", "127.0.0.1,gateway.test"])
    def test_no_proxy(self, pool_for: Any, monkeypatch: pytest.MonkeyPatch, bypass: str) -> None:
        with RawServer(replies(HELLO)) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.origin)
            monkeypatch.setenv("NO_PROXY", bypass)
            with pytest.raises(httpx.ConnectError):
                fetch(pool_for("http://gateway.test:1/v1"), "http://gateway.test:1/v1")
            assert proxy.connections == 0

    def test_the_proxy_s_password_goes_to_the_proxy(
        self, pool_for: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with RawServer(replies(HELLO)) as proxy:
            monkeypatch.setenv("HTTP_PROXY", f"http://me:p%40ss@127.0.0.1:{proxy.port}")
            fetch(pool_for(self.TARGET), self.TARGET)
            expected = base64.b64encode(b"me:p@ss").decode()
            assert proxy.requests[0].headers["proxy-authorization"] == f"Basic {expected}"

    def test_https_goes_through_a_tunnel(
        self, pool_for: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
    ) -> None:
        """The proxy sees a name and then TLS, which nobody here can verify: nothing is sent."""
        server_side = tls_server_context(*make_certificate(tmp_path))
        heads: list[bytes] = []

        def serve(link: Link) -> None:
            heads.append(link.read_head())
            link.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with server_side.wrap_socket(link.sock, server_side=True) as tls:
                heads.append(tls.recv(1000))

        with RawServer(serve) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://me:word@127.0.0.1:{proxy.port}")
            pool = pool_for("https://gateway.test/v1")
            with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
                fetch(pool, "https://gateway.test/v1")
            assert pool.in_use == 0
        assert len(heads) == 1
        assert heads[0].startswith(b"CONNECT gateway.test:443 HTTP/1.1\r\n")
        assert b"Proxy-Authorization: Basic bWU6d29yZA==" in heads[0]

    @pytest.mark.parametrize("status", [403, 407, 502])
    def test_a_proxy_that_refuses(
        self, pool_for: Any, monkeypatch: pytest.MonkeyPatch, status: int
    ) -> None:
        with RawServer(lambda link: (link.read_head(), link.send(answer(b"", status)))) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.origin)
            pool = pool_for("https://gateway.test/v1")
            with pytest.raises(httpx.ProxyError):
                fetch(pool, "https://gateway.test/v1")
            assert pool.in_use == 0

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_a_silent_proxy_is_cut_off(
        self, pool_for: Any, monkeypatch: pytest.MonkeyPatch, scheme: str
    ) -> None:
        url = f"{scheme}://gateway.test/v1"
        with RawServer(Link.wait_for_end) as proxy:
            monkeypatch.setenv("ALL_PROXY", proxy.origin)
            pool = pool_for(url)
            began_s = time.monotonic()
            with pytest.raises(httpx.TimeoutException):
                fetch(pool, url, timeout_s=0.15)
            assert 0.15 <= time.monotonic() - began_s < 0.5
            assert pool.in_use == 0

    @staticmethod
    def socks(link: Link) -> None:
        """Grants what is asked for and is the server itself."""
        assert link.sock.recv(100) == b"\x05\x01\x00"
        link.send(b"\x05\x00")
        assert link.sock.recv(100) == b"\x05\x01\x00\x03\x0cgateway.test\x00\x50"
        link.send(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        tell_link(link)

    @pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
    def test_socks(self, pool_for: Any, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
        with RawServer(self.socks) as proxy:
            monkeypatch.setenv("ALL_PROXY", f"{scheme}://127.0.0.1:{proxy.port}")
            pool = pool_for(self.TARGET)
            assert [fetch(pool, self.TARGET) for _ in range(3)] == [b"0"] * 3

    def test_a_silent_socks_proxy_is_cut_off(
        self, pool_for: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def serve(link: Link) -> None:
            link.sock.settimeout(1.0)
            while link.sock.recv(100):
                pass

        with RawServer(serve) as proxy:
            monkeypatch.setenv("ALL_PROXY", f"socks5://127.0.0.1:{proxy.port}")
            pool = pool_for(self.TARGET)
            began_s = time.monotonic()
            with pytest.raises(httpx.TransportError):
                fetch(pool, self.TARGET, timeout_s=0.15)
            assert time.monotonic() - began_s < 0.5

    @pytest.mark.parametrize(
        "said",
        [b"", b"\x05", b"\x05\xff", b"\x04\x00", b"HTTP/1.1 400 Bad Request\r\n\r\n"],
        ids=["nothing", "half", "no method", "version 4", "HTTP"],
    )
    def test_a_socks_proxy_that_refuses(
        self, pool_for: Any, monkeypatch: pytest.MonkeyPatch, said: bytes
    ) -> None:
        with RawServer(lambda link: (link.sock.recv(100), link.send(said))) as proxy:
            monkeypatch.setenv("ALL_PROXY", f"socks5://127.0.0.1:{proxy.port}")
            pool = pool_for(self.TARGET)
            with pytest.raises(httpx.TransportError):
                fetch(pool, self.TARGET, timeout_s=1.0)
            assert pool.in_use == 0


def test_the_body_of_a_completion_is_what_the_server_sent(pool_for: Any) -> None:
    with RawServer(replies(answer(chat_body()))) as server:
        assert fetch(pool_for(server.url), server.url) == chat_body()
