"""Sockets: what a deadline ends, where a connection goes, and how a dead one is recognised."""

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpcore
import pytest

from holysheep.network import DeadlineBackend, Limit, limits
from holysheep.ports import SystemClock
from tests.engine.raw_servers import (
    Link,
    RawServer,
    answer,
    chat_body,
    chunked,
    closed_port,
    forget_proxies,
    full_backlog,
    make_certificate,
    replies,
    slow_reader,
    stream_body,
    tls_server_context,
    trickling_tls,
)

ROOT = Path(__file__).parents[2]
CLOCK = SystemClock()
SLACK_S = 0.4
"""How late a cut may come on a busy machine. That none comes early is asserted exactly."""


class SetClock(SystemClock):
    """A clock that a test sets."""

    def __init__(self, now_s: float) -> None:
        super().__init__()
        self.now_s = now_s
        self.monotonic = lambda: self.now_s


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)


def within(seconds: float, *, of: float = 30.0) -> Limit:
    """A limit of ``of`` seconds in a call that ends in ``seconds``."""
    return Limit(of, deadline_s=CLOCK.monotonic() + seconds)


class Opener:
    """Opens connections that are closed when the test ends, however it ends."""

    def __init__(self) -> None:
        self.opened: list[httpcore.NetworkStream] = []

    def __call__(
        self, server: RawServer, limit: float | None = None, *, host: str = ""
    ) -> httpcore.NetworkStream:
        backend = DeadlineBackend(CLOCK)
        stream = backend.connect_tcp(host or server.host, server.port, limit or within(5))
        self.opened.append(stream)
        return stream

    def tls(
        self, server: RawServer, trusting: ssl.SSLContext, limit: Limit | None = None
    ) -> httpcore.NetworkStream:
        stream = self(server).start_tls(trusting, "localhost", limit or within(5))
        self.opened.append(stream)
        return stream


@pytest.fixture
def connect() -> Iterator[Opener]:
    opener = Opener()
    yield opener
    for stream in opener.opened:
        stream.close()


class Stopwatch:
    """Asserts how long a block takes."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        self._began_s = time.monotonic()

    def __exit__(self, *_: object) -> None:
        elapsed_s = time.monotonic() - self._began_s
        assert self.seconds <= elapsed_s < self.seconds + SLACK_S


@pytest.fixture
def answers_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what a host name resolves to."""
    real = socket.getaddrinfo

    def install(name: str, look_up: Callable[[], list[str]]) -> None:
        def getaddrinfo(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
            if host != name:
                return real(host, port, *rest, **options)
            return [
                (socket.AF_INET6 if ":" in address else socket.AF_INET, 1, 6, "", (address, port))
                for address in look_up()
            ]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return install


class TestLimit:
    def test_is_the_number_that_httpcore_hands_on(self) -> None:
        limit = Limit(3.5, deadline_s=9.0)
        assert isinstance(limit, float)
        assert (limit, limit.deadline_s) == (3.5, 9.0)

    def test_limits_of_a_request(self) -> None:
        given = limits(SetClock(100.0), 104.0, connect_s=10, read_s=600, write_s=30)
        assert given == {"connect": 10, "read": 600, "write": 30, "pool": 4.0}
        deadlines = [given[name].deadline_s for name in ("connect", "read", "write")]  # type: ignore[attr-defined]
        assert deadlines == [104.0] * 3

    def test_no_time_left_is_zero_and_never_negative(self) -> None:
        assert limits(SetClock(100.0), 99.0, connect_s=1, read_s=1, write_s=1)["pool"] == 0.0


class TestConnect:
    @pytest.mark.parametrize(
        ("bound", "asked"),
        [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("127.0.0.1", "localhost")],
    )
    def test_to_addresses_and_names(self, connect: Opener, bound: str, asked: str) -> None:
        with RawServer(replies(answer(b"{}")), host=bound) as server:
            stream = connect(server, host=asked)
            stream.write(b"GET / HTTP/1.1\r\n\r\n")
            assert stream.read(1000, within(5)).startswith(b"HTTP/1.1 200")

    def test_a_refused_connection(self) -> None:
        with pytest.raises(httpcore.ConnectError):
            DeadlineBackend(CLOCK).connect_tcp("127.0.0.1", closed_port(), within(5))

    def test_the_next_address_is_tried_where_one_refuses(
        self, answers_of: Any, connect: Opener
    ) -> None:
        answers_of("several.test", lambda: ["127.0.0.2", "::1", "127.0.0.1"])
        with RawServer(replies(answer(b"{}"))) as server:
            stream = connect(server, host="several.test")
            assert stream.get_extra_info("server_addr") == ("127.0.0.1", server.port)

    def test_an_address_that_never_answers_leaves_time_for_the_next(
        self, answers_of: Any, connect: Opener
    ) -> None:
        answers_of("several.test", lambda: ["127.0.0.2", "127.0.0.1"])
        with RawServer(replies(answer(b"{}"))) as server:
            listener, waiting = full_backlog("127.0.0.2", server.port)
            try:
                stream = connect(server, within(0.6), host="several.test")
                assert stream.get_extra_info("server_addr") == ("127.0.0.1", server.port)
            finally:
                for sock in (listener, *waiting):
                    sock.close()

    def test_all_refuse(self, answers_of: Any) -> None:
        answers_of("several.test", lambda: ["127.0.0.2", "127.0.0.1"])
        with pytest.raises(httpcore.ConnectError):
            DeadlineBackend(CLOCK).connect_tcp("several.test", closed_port(), within(5))

    @pytest.mark.parametrize(("limit_s", "deadline_s"), [(0.2, 30.0), (30.0, 0.2)])
    def test_a_server_that_never_accepts(self, limit_s: float, deadline_s: float) -> None:
        listener, waiting = full_backlog("127.0.0.1")
        port = listener.getsockname()[1]
        try:
            with pytest.raises(httpcore.ConnectTimeout), Stopwatch(0.2):
                DeadlineBackend(CLOCK).connect_tcp(
                    "127.0.0.1", port, within(deadline_s, of=limit_s)
                )
        finally:
            for sock in (listener, *waiting):
                sock.close()

    def test_a_passed_deadline_does_not_even_try(self, connect: Opener) -> None:
        with RawServer(replies(answer(b"{}"))) as server:
            with pytest.raises(httpcore.ConnectTimeout):
                connect(server, within(-1))
            assert server.connections == 0


class TestNames:
    def test_resolution_that_hangs_is_cut_off(self, answers_of: Any) -> None:
        may_end, has_ended = threading.Event(), threading.Event()

        def hang() -> list[str]:
            may_end.wait(10)
            has_ended.set()
            return ["127.0.0.1"]

        answers_of("slow.test", hang)
        with pytest.raises(httpcore.ConnectTimeout, match="name resolution"), Stopwatch(0.2):
            DeadlineBackend(CLOCK).connect_tcp("slow.test", 80, within(0.2))
        may_end.set()
        assert has_ended.wait(5)

    def test_an_unknown_name(self, answers_of: Any) -> None:
        def fail() -> list[str]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        answers_of("unknown.test", fail)
        with pytest.raises(httpcore.ConnectError, match=r"unknown\.test could not be resolved"):
            DeadlineBackend(CLOCK).connect_tcp("unknown.test", 80, within(5))

    def test_a_name_without_addresses(self, answers_of: Any) -> None:
        answers_of("empty.test", list)
        with pytest.raises(httpcore.ConnectError, match="no address"):
            DeadlineBackend(CLOCK).connect_tcp("empty.test", 80, within(5))

    @pytest.mark.parametrize("host", ["a..test", "a" * 64 + ".test"])
    def test_what_can_be_no_name_is_refused_at_once(self, host: str) -> None:
        with pytest.raises(httpcore.ConnectError), Stopwatch(0):
            DeadlineBackend(CLOCK).connect_tcp(host, 80, within(2))


class TestReadAndWrite:
    def test_head_and_body_leave_as_one(self, connect: Opener) -> None:
        seen: list[bytes] = []

        def serve(link: Link) -> None:
            seen.append(link.sock.recv(65536))
            link.send(b"ok")

        with RawServer(serve) as server:
            stream = connect(server)
            stream.write(b"head", within(5))
            stream.write(b"body", within(5))
            assert stream.read(10, within(5)) == b"ok"
        assert seen == [b"headbody"]

    def test_much_data_leaves_before_the_answer_is_read(self, connect: Opener) -> None:
        arrived = threading.Event()

        def serve(link: Link) -> None:
            link.sock.recv(1)
            arrived.set()
            link.wait_for_end()

        with RawServer(serve) as server:
            stream = connect(server)
            stream.write(b"x" * 65536, within(5))
            assert arrived.wait(5)

    def test_a_large_request_arrives_whole(self, connect: Opener) -> None:
        whole = os.urandom(3_000_000)

        def count(link: Link) -> None:
            data = bytearray()
            while len(data) < len(whole):
                data += link.sock.recv(65536)
            link.send(b"same" if bytes(data) == whole else b"different")

        with RawServer(count) as server:
            stream = connect(server)
            for at in range(0, len(whole), 50_000):
                stream.write(whole[at : at + 50_000], within(5))
            assert stream.read(100, within(5)) == b"same"

    @pytest.mark.parametrize(("limit_s", "deadline_s"), [(0.1, 30.0), (30.0, 0.1)])
    def test_a_silent_server(self, limit_s: float, deadline_s: float, connect: Opener) -> None:
        with RawServer(Link.wait_for_end) as server:
            stream = connect(server)
            with pytest.raises(httpcore.ReadTimeout), Stopwatch(0.1):
                stream.read(10, within(deadline_s, of=limit_s))

    def test_a_plain_number_is_a_limit_without_deadline(self, connect: Opener) -> None:
        with RawServer(Link.wait_for_end) as server:
            stream = connect(server)
            with pytest.raises(httpcore.ReadTimeout), Stopwatch(0.1):
                stream.read(10, 0.1)

    def test_trickling_bytes_do_not_move_the_deadline(self, connect: Opener) -> None:
        with RawServer(lambda link: link.trickle(b"x" * 1000, 0.01)) as server:
            stream = connect(server)
            limit = within(0.2)
            with pytest.raises(httpcore.ReadTimeout), Stopwatch(0.2):
                all(iter(lambda: stream.read(10, limit), b""))

    def test_a_passed_deadline_touches_nothing(self, connect: Opener) -> None:
        with RawServer(lambda link: (link.send(b"early"), link.wait_for_end())) as server:
            stream = connect(server)
            with pytest.raises(httpcore.ReadTimeout):
                stream.read(10, within(-1))
            stream.write(b"x" * 10, within(-1))
            with pytest.raises(httpcore.WriteTimeout):
                stream.write(b"x" * 70_000, within(-1))

    def test_a_server_that_reads_slowly_is_cut_off_at_the_deadline(self, connect: Opener) -> None:
        slow = slow_reader(bytes_per_s=6_000_000, patience_s=2.0)
        with RawServer(slow) as server:
            stream = connect(server)
            with pytest.raises(httpcore.WriteTimeout), Stopwatch(0.4):
                stream.write(b"x" * 30_000_000, within(0.4))

    def test_a_server_that_reads_nothing_is_cut_off_at_the_write_limit(
        self, connect: Opener
    ) -> None:
        with RawServer(lambda _: time.sleep(0.5)) as server:
            stream = connect(server)
            with pytest.raises(httpcore.WriteTimeout), Stopwatch(0.2):
                stream.write(b"x" * 30_000_000, within(30, of=0.2))


class TestLiveness:
    def test_a_quiet_connection_is_not_readable(self, connect: Opener) -> None:
        with RawServer(Link.wait_for_end) as server:
            stream = connect(server)
            assert not stream.get_extra_info("is_readable")

    @pytest.mark.parametrize(
        "end",
        [lambda _: None, Link.reset, lambda link: (link.send(b"x"), link.wait_for_end())],
        ids=["FIN", "RST", "bytes"],
    )
    def test_one_that_ended_or_was_written_to_is_readable(
        self, end: Callable[[Link], Any], connect: Opener
    ) -> None:
        is_open = threading.Event()
        with RawServer(lambda link: (is_open.wait(5), end(link))) as server:
            stream = connect(server)
            is_open.set()
            end_s = time.monotonic() + 5
            while not stream.get_extra_info("is_readable"):
                assert time.monotonic() < end_s

    def test_a_closed_one_counts_as_readable(self, connect: Opener) -> None:
        with RawServer(Link.wait_for_end) as server:
            stream = connect(server)
            stream.close()
            assert stream.get_extra_info("is_readable")

    def test_other_questions_are_httpcore_s(self, connect: Opener) -> None:
        with RawServer(Link.wait_for_end) as server:
            stream = connect(server)
            assert stream.get_extra_info("server_addr") == ("127.0.0.1", server.port)
            assert stream.get_extra_info("nonsense") is None


class TestTls:
    @pytest.fixture
    @staticmethod
    def trusting(certificate: tuple[Path, Path]) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=certificate[0])

    @pytest.fixture
    @staticmethod
    def server_side(certificate: tuple[Path, Path]) -> ssl.SSLContext:
        return tls_server_context(*certificate)

    def test_answers_come_through(
        self, trusting: ssl.SSLContext, server_side: ssl.SSLContext, connect: Opener
    ) -> None:
        with RawServer(replies(answer(b"{}")), tls=server_side) as server:
            stream = connect.tls(server, trusting)
            stream.write(b"GET / HTTP/1.1\r\n\r\n", within(5))
            assert stream.read(1000, within(5)).startswith(b"HTTP/1.1 200")
            assert not stream.get_extra_info("is_readable")

    @pytest.mark.parametrize("name", ["localhost", "other.test"])
    def test_an_untrusted_certificate_and_a_wrong_name_are_refused(
        self,
        name: str,
        trusting: ssl.SSLContext,
        server_side: ssl.SSLContext,
        connect: Opener,
    ) -> None:
        context = trusting if name == "other.test" else ssl.create_default_context()
        with RawServer(replies(answer(b"{}")), tls=server_side) as server:
            with pytest.raises(httpcore.ConnectError, match=r"(?i)certificate"):
                connect(server).start_tls(context, name, within(5))
            assert server.requests == []

    def test_what_was_received_and_not_read_counts_as_readable(
        self, trusting: ssl.SSLContext, server_side: ssl.SSLContext, connect: Opener
    ) -> None:
        """A second answer in a record of its own, in the same segment as the first."""

        def serve(link: Link) -> None:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = server_side.wrap_bio(incoming, outgoing, server_side=True)
            while True:
                try:
                    if tls.read(100):
                        break
                except ssl.SSLWantReadError:
                    link.send(outgoing.read())
                    incoming.write(link.sock.recv(65536))
            tls.write(b"first")
            tls.write(b"second")
            link.send(outgoing.read())
            link.wait_for_end()

        with RawServer(serve) as server:
            stream = connect.tls(server, trusting)
            stream.write(b"hello", within(5))
            assert stream.read(5, within(5)) == b"first"
            assert stream.get_extra_info("is_readable")
            assert stream.read(100, within(5)) == b"second"
            assert not stream.get_extra_info("is_readable")

    def test_an_end_without_notice_is_an_end(
        self, trusting: ssl.SSLContext, server_side: ssl.SSLContext, connect: Opener
    ) -> None:
        def serve(link: Link) -> None:
            link.sock.recv(10)
            link.send(b"all")
            os.close(link.sock.detach())

        with RawServer(serve, tls=server_side) as server:
            stream = connect.tls(server, trusting)
            stream.write(b"hello", within(5))
            assert stream.read(100, within(5)) == b"all"
            assert stream.read(100, within(5)) == b""

    def test_large_data_in_both_directions(
        self, trusting: ssl.SSLContext, server_side: ssl.SSLContext, connect: Opener
    ) -> None:
        whole = os.urandom(1_000_000)

        def serve(link: Link) -> None:
            data = b""
            while len(data) < len(whole):
                data += link.sock.recv(65536)
            link.send(data)

        with RawServer(serve, tls=server_side) as server:
            stream = connect.tls(server, trusting)
            stream.write(whole, within(5))
            received = b""
            while len(received) < len(whole):
                received += stream.read(65536, within(5))
            assert received == whole

    def test_a_silent_handshake_is_cut_off(self, trusting: ssl.SSLContext, connect: Opener) -> None:
        with RawServer(Link.wait_for_end) as server:
            stream = connect(server)
            with pytest.raises(httpcore.ConnectTimeout), Stopwatch(0.2):
                stream.start_tls(trusting, "localhost", within(0.2))

    def test_a_passed_deadline_begins_no_handshake(
        self, trusting: ssl.SSLContext, connect: Opener
    ) -> None:
        with RawServer(Link.wait_for_end) as server:
            stream = connect(server)
            with pytest.raises(httpcore.ConnectTimeout):
                stream.start_tls(trusting, "localhost", within(-1))

    def test_a_trickling_handshake_is_cut_off(
        self, trusting: ssl.SSLContext, server_side: ssl.SSLContext, connect: Opener
    ) -> None:
        serve = trickling_tls(server_side, b"", part="handshake", interval_s=0.005, patience_s=2.0)
        with RawServer(serve) as server:
            stream = connect(server)
            with pytest.raises(httpcore.ConnectTimeout), Stopwatch(0.3):
                stream.start_tls(trusting, "localhost", within(0.3))

    def test_a_trickling_record_is_cut_off(
        self, trusting: ssl.SSLContext, server_side: ssl.SSLContext, connect: Opener
    ) -> None:
        serve = trickling_tls(
            server_side, b"x" * 10_000, part="answer", interval_s=0.005, patience_s=2.0
        )
        with RawServer(serve) as server:
            stream = connect.tls(server, trusting)
            stream.write(b"hello", within(5))
            with pytest.raises(httpcore.ReadTimeout), Stopwatch(0.3):
                stream.read(100, within(0.3))


@pytest.fixture(scope="module")
def gevent_report(certificate: tuple[Path, Path], upstream_process: Any) -> Iterator[Any]:
    """What a process saw that gevent has patched, as the SDK does with the plugin's."""
    from devtools.upstream import behaviours as do

    upstream_process.reset()
    upstream_process.default(do.ok(latency_ms=30))
    context = tls_server_context(*certificate)
    whole = chunked(stream_body("x" * 2000))
    tls = {"interval_s": 0.005, "patience_s": 1.5}
    number = iter(range(100))

    def one_answer(link: Link) -> None:
        link.read_request()
        link.send(answer(chat_body(f"connection {next(number)}")))

    with (
        RawServer(Link.wait_for_end) as silent,
        RawServer(lambda link: link.trickle(whole, 0.005)) as trickle,
        RawServer(one_answer) as stale,
        RawServer(trickling_tls(context, whole, part="handshake", **tls)) as handshake,  # type: ignore[arg-type]
        RawServer(trickling_tls(context, whole, part="answer", **tls)) as record,  # type: ignore[arg-type]
        RawServer(slow_reader(bytes_per_s=20_000_000, patience_s=1.5)) as reader,
    ):
        urls = {
            "crowd": upstream_process.url,
            "silent": silent.url,
            "trickle": trickle.url,
            "stale": stale.url,
            "tls_handshake": handshake.url.replace("http:", "https:"),
            "tls_answer": record.url.replace("http:", "https:"),
            "slow_reader": reader.url,
        }
        ended = subprocess.run(
            [sys.executable, "-m", "tests.engine.network_under_gevent", json.dumps(urls)],
            cwd=ROOT,
            env={**os.environ, "SSL_CERT_FILE": str(certificate[0]), "NO_PROXY": "*"},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        yield {**json.loads(ended.stdout), "upstream": upstream_process.stats()}


class TestUnderGevent:
    def test_a_crowd_of_greenlets_forms_no_convoy(self, gevent_report: Any) -> None:
        crowd = gevent_report["crowd"]
        asked = {f"greenlet {number} turn {turn}." for number in range(100) for turn in range(3)}
        got = {text.removeprefix("You said: ").partition(" [")[0] for text in crowd["texts"]}
        assert got == asked
        assert crowd["in_use"] == 0
        assert gevent_report["upstream"].connections <= 100
        # 300 calls of 30 ms, 100 at a time, take 0.1 s of waiting and some CPU; in a convoy, 7 s.
        assert crowd["elapsed_s"] < 3.0

    def test_asking_a_connection_if_it_is_alive_lets_nobody_else_run(
        self, gevent_report: Any
    ) -> None:
        assert gevent_report["probe"]["during"] == 0
        assert gevent_report["probe"]["afterwards"] > 0
        assert not gevent_report["probe"]["readable"]

    def test_a_stale_connection_is_replaced(self, gevent_report: Any) -> None:
        texts = [f"connection {number}" for number in range(3)]
        assert gevent_report["stale"] == {"texts": texts, "in_use": 0}

    @pytest.mark.parametrize(
        "server", ["silent", "trickle", "tls_handshake", "tls_answer", "slow_reader"]
    )
    def test_the_deadline_holds_to_within_50_ms(self, gevent_report: Any, server: str) -> None:
        report = gevent_report[server]
        assert report["kind"] == "TimedOut"
        assert report["in_use"] == 0
        assert all(elapsed_s >= 0.2 for elapsed_s in report["elapsed_s"])
        assert min(report["elapsed_s"]) < 0.25
