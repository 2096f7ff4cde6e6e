"""Endpoints at the test host, held to what the daemon and nginx do.

The raw requests and the delimiting of responses are what Go made of the same input: the daemon's
``copyRequest`` and ``InvokeEndpoint``, copied into a small program (Go 1.26, gin 1.10).
"""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import httpx
import pytest

from tests.host.daemon import HostFault, PluginProcess
from tests.host.endpoints import QUEUED_CHUNKS, EndpointServer
from tests.host.rawhttp import (
    MAX_BODY_BYTES,
    RawRequest,
    behind_nginx,
    canonical,
    daemon_copy,
    hook_path,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def server(noop: PluginProcess) -> Iterator[EndpointServer]:
    with EndpointServer(noop, {"token": "first"}) as server:
        yield server


@pytest.fixture
def client(server: EndpointServer) -> Iterator[httpx.Client]:
    """Requests to the first hook."""
    with httpx.Client(base_url=server.url, timeout=20, trust_env=False) as client:
        yield client


class Wire:
    """A client by hand: sends bytes, reads one response."""

    def __init__(self, server: EndpointServer) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        self.path = server.url.partition(str(server.port))[2]
        self.buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def get(self, path: str, method: str = "GET") -> None:
        self.send(f"{method} {self.path}{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read_until(self, mark: bytes) -> bytes:
        """Read up to and with ``mark``; what comes after it waits for the next call."""
        while mark not in self.buffer:
            part = self.socket.recv(1 << 20)
            if not part:
                raise EOFError(self.buffer)
            self.buffer += part
        found, _, self.buffer = self.buffer.partition(mark)
        return found + mark

    def read_rest(self) -> bytes:
        """Read until the server closes the connection."""
        with pytest.raises(EOFError) as caught:
            self.read_until(b"never sent")
        rest: bytes = caught.value.args[0]
        return rest


def until(reached: Callable[[], object]) -> None:
    """Wait for what another thread is about to do."""
    deadline_s = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


# --- a request without a server ---


def test_request_reaches_the_endpoint_with_everything_it_has(noop: PluginProcess) -> None:
    result = noop.request(
        "POST",
        "/echo?b=2&a=1",
        headers={"x-number": "7"},
        body=b"hello",
        settings={"token": "secret", "strict": True},
        endpoint_id="endpoint-9",
    )
    told = result.json()
    assert (result.status, result.error) == (200, None)
    assert result.headers["Content-Type"] == "application/json"
    assert (told["method"], told["path"], told["query"]) == ("POST", "/echo", "a=1&b=2")
    assert (told["body"], told["headers"]["X-Number"]) == ("hello", "7")
    assert told["settings"] == {"token": "secret", "strict": True}
    assert told["endpoint_id"] == "endpoint-9"


def test_chunks_carry_the_times_of_their_arrival(noop: PluginProcess) -> None:
    result = noop.request("GET", "/stream?n=3&pause_s=0.03")
    assert result.body == b"0;1;2;"
    times = [chunk.at_s for chunk in result.chunks]
    assert times == sorted(times)
    assert result.elapsed_ms >= 60
    assert result.first_ms is not None
    assert 0 < result.first_ms < result.elapsed_ms


def test_chunks_can_be_read_while_the_endpoint_runs(noop: PluginProcess) -> None:
    with noop.storage.held():
        call = noop.start_request("GET", "/stream?n=3&gate=k")
        assert call.head() == (207, {"X-Chunks": "3", "Content-Type": "text/plain"})
        chunks = iter(call)
        assert next(chunks).data == b"0;"
        assert not call.done
    assert [chunk.data for chunk in chunks] == [b"1;", b"2;"]
    assert call.result().body == b"0;1;2;"


def test_endpoint_and_tool_share_the_storage_of_their_tenant(noop: PluginProcess) -> None:
    assert noop.request("PUT", "/value/k", body=b"v", tenant_id="a").status == 204
    assert noop.storage.data == {"a": {"k": b"v"}}
    steps = {"steps": json.dumps([["get", "k"]])}
    assert noop.call("store", steps, tenant_id="a").json == [{"value": "v"}]
    assert noop.request("GET", "/value/k", tenant_id="a").text == "v"
    assert noop.request("GET", "/value/k", tenant_id="b").status == 500


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/misbehave/value-error", 404, "no such <row>"),
        ("/misbehave/error", 500, "Internal Server Error: the disk is full"),
        ("/nowhere", 404, "Failed to dispatch endpoint request: 404 Not Found"),
    ],
)
def test_what_the_sdk_makes_of_an_exception(
    noop: PluginProcess, path: str, status: int, text: str
) -> None:
    result = noop.request("GET", path)
    assert (result.status, result.error) == (status, None)
    assert result.text.startswith(text)


def test_wrong_method_is_not_found(noop: PluginProcess) -> None:
    assert noop.request("DELETE", "/stream").text.startswith("Failed to dispatch")


def test_error_in_a_stream_is_written_into_the_body(noop: PluginProcess) -> None:
    result = noop.request("GET", "/misbehave/stream-error")
    assert result.status == 200
    begun, _, told = result.text.partition(";")
    assert begun == "so far so good"
    assert list(json.loads(told)) == ["args", "error_type", "message"]
    assert r"the \u003cdisk\u003e is full" in told  # as Go escapes it
    assert result.error is not None
    assert result.error.type == "RuntimeError"


def test_response_of_one_line_above_the_limit_is_a_fault(noop: PluginProcess) -> None:
    with pytest.raises(HostFault, match="a stdout line of"):
        noop.request("GET", "/misbehave/long-line")
    assert not noop.alive


@pytest.mark.parametrize(("how", "chunks"), [("silent", 0), ("stream-silent", 1)])
def test_endpoint_that_does_not_end_is_a_fault(noop: PluginProcess, how: str, chunks: int) -> None:
    call = noop.start_request("GET", f"/misbehave/{how}")
    with pytest.raises(HostFault, match="did not end"):
        call.result(timeout_s=0.05)
    call.abandon()
    assert len(list(call)) == chunks
    assert noop.open_calls == 0


def test_cookies_beyond_the_last_are_lost(noop: PluginProcess) -> None:
    assert noop.request("GET", "/misbehave/cookies").headers["Set-Cookie"] == "b=2; Path=/"


def test_head_has_no_body(noop: PluginProcess) -> None:
    result = noop.request("HEAD", "/echo")
    assert (result.status, result.body) == (200, b"")
    assert int(result.headers["Content-Length"]) > 100


# --- the request as the daemon writes it ---


def copy(method: str, target: str, *headers: tuple[str, str], body: bytes = b"") -> bytes:
    request = RawRequest(method, target, (("host", "Dify.test:81"), *headers), body)
    found = hook_path(target)
    assert found is not None
    return daemon_copy(request, *found)


def lines(*parts: str, body: str = "") -> bytes:
    return ("\r\n".join([*parts, "", ""]) + body).encode("latin-1")


HOST = "Host: Dify.test:81"
AGENT = "User-Agent: Go-http-client/1.1"
HOOK = "Dify-Hook-Id: abc"


@pytest.mark.parametrize(
    ("target", "expected", "url"),
    [
        ("/e/abc/", "/", "/"),
        ("/e/abc/x?", "/x?", "/x"),
        ("/e/abc/x?;=", "/x", "/x"),
        ("/e/abc//a//b", "//a//b", "//a//b"),
        ("/e/abc/a%2Fb%20c", "/a/b%20c", "/a/b c"),
        ("/e/abc/!'()*~[]|$&+,:;=@", "/%21%27%28%29%2A~%5B%5D%7C$&+,:;=@", "/!'()*~[]|$&+,:;=@"),
        (
            "/e/abc/y?b=2&a=1&flag&&=e&bad=%zz&c;d=1&e=1+2&%41=%c3%a9&a=0",
            "/y?=e&A=%C3%A9&a=1&a=0&b=2&e=1+2&flag=",
            "/y",
        ),
    ],
)
def test_path_and_query_are_encoded_anew(target: str, expected: str, url: str) -> None:
    assert copy("GET", target) == lines(
        f"GET {expected} HTTP/1.1",
        HOST,
        AGENT,
        HOOK,
        f"Dify-Hook-Url: http://Dify.test:81/e/abc{url}",
    )


@pytest.mark.parametrize(
    ("method", "framing", "body"),
    [
        ("GET", (), ""),
        ("HEAD", (), ""),
        ("DELETE", (), ""),
        ("OPTIONS", (), ""),
        ("POST", ("Transfer-Encoding: chunked",), "0\r\n\r\n"),
        ("PUT", ("Transfer-Encoding: chunked",), "0\r\n\r\n"),
    ],
)
def test_request_without_a_body(method: str, framing: tuple[str, ...], body: str) -> None:
    url = "Dify-Hook-Url: http://Dify.test:81/e/abc/x"
    assert copy(method, "/e/abc/x", ("content-length", "0")) == lines(
        f"{method} /x HTTP/1.1", HOST, AGENT, *framing, HOOK, url, body=body
    )


def test_headers_are_spelled_sorted_and_stripped_of_traces() -> None:
    copied = copy(
        "POST",
        "/e/abc/x",
        ("content-length", "99"),
        ("content-type", "text/plain"),
        ("x-a", "1"),
        ("X-A", "2"),
        ("user-agent", "me"),
        ("x_under", "1"),
        ("X-Real-IP", "1"),
        ("X-Forwarded-For", "9"),
        ("x-forwarded", "9"),
        ("X-Forwarded-Proto", "https"),
        ("x-forwarded-host", "h"),
        ("x-original-host", "other:1"),
        ("COOKIE", "a=1"),
        ("dify-hook-id", "mine"),
        ("trailer", "X"),
        ("transfer-encoding", "chunked"),
        ("sec-ch-ua", '"x"'),
        ("X-original-url", "u"),
        ("X-Original-Forwarded-For", "f"),
        ("X-Empty", ""),
        body=b"hello",
    )
    assert copied == lines(
        "POST /x HTTP/1.1",
        "Host: other:1",
        "User-Agent: me",
        "Content-Length: 5",
        "Content-Type: text/plain",
        "Cookie: a=1",
        "Dify-Hook-Id: abc",
        "Dify-Hook-Url: https://other:1/e/abc/x",
        'Sec-Ch-Ua: "x"',
        "X-A: 1",
        "X-A: 2",
        "X-Empty: ",
        "X-Forwarded-Host: h",
        "X-Forwarded-Proto: https",
        "X_under: 1",
        body="hello",
    )


def test_hook_url_of_the_client_is_believed_by_the_daemon_and_replaced_by_nginx() -> None:
    header = ("dify-hook-url", "http://mine/")
    assert b"\r\nDify-Hook-Url: http://mine/\r\n" in copy("GET", "/e/abc/x", header)
    passed = behind_nginx(RawRequest("GET", "/e/abc/x?q=1", (("host", "Dify.test:81"), header)))
    assert passed.header("Dify-Hook-Url") == "http://dify.test/e/abc/x?q=1"
    assert passed.header("Host") == "dify.test"


@pytest.mark.parametrize(
    ("name", "spelled"),
    [("dnt", "Dnt"), ("X-REAL-IP", "X-Real-Ip"), ("x--y", "X--Y"), ("no token", "no token")],
)
def test_names_of_headers_are_spelled_as_go_does(name: str, spelled: str) -> None:
    assert canonical(name) == spelled


# --- requests through the server ---


def test_plugin_sees_what_nginx_and_the_daemon_let_through(
    server: EndpointServer, client: httpx.Client
) -> None:
    told = client.get("/echo/some/thing?q=1", headers={"X-Real-IP": "1.2.3.4", "x_y": "1"}).json()
    hook_id = server.url.rpartition("/")[2]
    assert told["values"] == {"rest": "some/thing"}
    assert told["settings"] == {"token": "first"}
    assert told["headers"] == {
        "Accept": "*/*",
        "Accept-Encoding": "gzip, deflate",
        "Connection": "close",
        "Dify-Hook-Id": hook_id,
        "Dify-Hook-Url": f"http://127.0.0.1/e/{hook_id}/echo/some/thing?q=1",
        "Host": "127.0.0.1",
        "User-Agent": client.headers["user-agent"],
        "X-Forwarded-Port": str(server.port),
        "X-Forwarded-Proto": "http",
    }


def test_without_nginx_the_port_stays_and_an_underscore_is_an_error(noop: PluginProcess) -> None:
    with EndpointServer(noop, behind_nginx=False) as server:
        told = httpx.get(server.url + "/echo?q=1", headers={"connection": "x"}).json()
        assert told["headers"]["Host"] == f"127.0.0.1:{server.port}"
        assert told["headers"]["Dify-Hook-Url"] == server.url + "/echo"
        assert told["headers"]["Connection"] == "x"
        response = httpx.get(server.url + "/echo", headers={"x_y": "1"})
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert response.json()["code"] == -500
    cause = json.loads(json.loads(response.json()["message"])["message"])
    assert (cause["error_type"], cause["message"]) == ("ValueError", "Invalid HTTP header")


def test_each_hook_has_its_settings_and_its_tenant(
    server: EndpointServer, client: httpx.Client, noop: PluginProcess
) -> None:
    other = server.add({"token": "second"}, hook_id="otherhook", tenant_id="tenant-2")
    assert other.url == f"http://127.0.0.1:{server.port}/e/otherhook"
    told = client.get(other.url + "/echo").json()
    assert (told["settings"], told["endpoint_id"]) == ({"token": "second"}, "endpoint-2")
    client.put(other.url + "/value/k", content=b"theirs")
    client.put("/value/k", content=b"ours")
    assert client.get("/value/k").text == "ours"
    assert noop.storage.data == {"tenant-1": {"k": b"ours"}, "tenant-2": {"k": b"theirs"}}


def test_unknown_and_disabled_hooks_are_not_found(
    server: EndpointServer, client: httpx.Client
) -> None:
    unknown = client.get(f"http://127.0.0.1:{server.port}/e/nobody/echo")
    other = server.add()
    other.enabled = False
    disabled = client.get(other.url + "/echo")
    assert (unknown.status_code, disabled.status_code) == (404, 404)
    assert unknown.text == (
        r'{"code":-400,"message":"{\"message\":\"endpoint not found\",'
        r'\"error_type\":\"PluginDaemonBadRequestError\",\"args\":null}","data":null}'
    )
    assert "PluginDaemonNotFoundError" in disabled.text


def test_routes_that_the_daemon_lacks(server: EndpointServer, client: httpx.Client) -> None:
    for response in (client.patch("/echo"), client.get(f"http://127.0.0.1:{server.port}/other")):
        assert response.status_code == 404
        assert response.json() == {"code": "not_found", "message": "route not found"}
    for method, status in (("GET", 301), ("POST", 307)):
        response = client.request(method, server.url + "?q=1")
        path = server.url.partition(str(server.port))[2]
        assert (response.status_code, response.headers["location"]) == (status, f"{path}/?q=1")


def test_a_plugin_that_may_not_have_endpoints_gets_no_hook(tmp_path: Path) -> None:
    with (
        fake_plugin(tmp_path, permission=False) as process,
        pytest.raises(HostFault, match="enable endpoint access"),
    ):
        EndpointServer(process)


# --- bodies ---


def test_body_is_read_to_its_end_before_the_plugin_hears_of_it(
    server: EndpointServer, client: httpx.Client, noop: PluginProcess
) -> None:
    with Wire(server) as wire:
        wire.send(f"PUT {wire.path}/value/k HTTP/1.1\r\n".encode())
        wire.send(b"Host: a\r\nContent-Length: 9\r\n\r\nfirst")
        assert client.get("/echo").status_code == 200  # nobody else waits
        assert noop.storage.counts == {}
        wire.send(b"last")
        assert wire.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 204 ")
    assert noop.storage.data == {"tenant-1": {"k": b"firstlast"}}


def test_chunked_body_arrives_whole_and_with_its_length(client: httpx.Client) -> None:
    told = client.post("/echo", content=iter([b"one ", b"two"])).json()
    assert (told["body"], told["headers"]["Content-Length"]) == ("one two", "7")
    assert "Transfer-Encoding" not in told["headers"]


def test_post_without_a_body_arrives_as_an_empty_chunk(client: httpx.Client) -> None:
    assert client.post("/echo").json()["body"] == "0\r\n\r\n"
    assert client.delete("/echo").json()["body"] == ""


@pytest.mark.parametrize("excess", [0, 1])
def test_body_is_cut_at_10_mb_without_a_word(client: httpx.Client, excess: int) -> None:
    told = client.post("/echo", content=b"x" * (MAX_BODY_BYTES + excess)).json()
    assert told["length"] == MAX_BODY_BYTES
    assert told["headers"]["Content-Length"] == str(MAX_BODY_BYTES)


def test_client_that_leaves_before_its_body_is_whole_calls_nobody(
    server: EndpointServer, client: httpx.Client, noop: PluginProcess
) -> None:
    with Wire(server) as wire:
        wire.send(
            f"PUT {wire.path}/value/k HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf".encode()
        )
    assert client.get("/echo").status_code == 200
    assert noop.storage.counts == {}


@pytest.mark.parametrize(
    "framing", ["Content-Length: many", "Content-Length: -1", "Transfer-Encoding: chunked"]
)
def test_body_of_no_length_is_refused(server: EndpointServer, framing: str) -> None:
    with Wire(server) as wire:
        wire.send(f"POST {wire.path}/echo HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\nzz\r\n".encode())
        assert wire.read_rest().startswith(b"HTTP/1.1 400 ")


# --- responses ---


def test_status_and_headers_leave_with_the_first_chunk_and_each_chunk_by_itself(
    server: EndpointServer, noop: PluginProcess
) -> None:
    with Wire(server) as wire, noop.storage.held():
        wire.get("/stream?n=3&gate=k")
        head = wire.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 207 Multi-Status\r\n")
        assert b"\r\nX-Chunks: 3\r\n" in head
        assert b"\r\nTransfer-Encoding: chunked\r\n" in head
        assert wire.read_until(b"0;\r\n") == b"2\r\n0;\r\n"
        assert noop.open_calls == 1


def test_connection_is_kept_for_the_next_request(server: EndpointServer) -> None:
    with Wire(server) as wire:
        for _ in range(2):
            wire.get("/stream?n=2")
            assert wire.read_until(b"\r\n0\r\n\r\n").endswith(
                b"\r\n\r\n2\r\n0;\r\n2\r\n1;\r\n0\r\n\r\n"
            )


def test_client_that_sends_its_next_request_early_has_not_left(server: EndpointServer) -> None:
    with Wire(server) as wire:
        wire.get("/stream?n=3&pause_s=0.01")
        wire.get("/misbehave/value-error")
        assert wire.read_until(b"0\r\n\r\n").count(b";") == 3
        assert b"404 Not Found" in wire.read_until(b"no such <row>")
    assert server.clients_left == 0


@pytest.mark.parametrize(
    ("path", "method", "body"),
    [
        ("/misbehave/nothing", "GET", b"Content-Length: 0\r\n\r\n"),
        ("/misbehave/short", "GET", b"Content-Length: 4\r\n\r\n12"),
        ("/misbehave/length", "GET", b"Content-Length: 4\r\n\r\n"),
    ],
)
def test_how_go_delimits_a_body(
    server: EndpointServer, path: str, method: str, body: bytes
) -> None:
    with Wire(server) as wire:
        wire.get(path, method)
        if path != "/misbehave/nothing":
            assert wire.read_rest().endswith(body)
        else:
            assert wire.read_until(b"\r\n\r\n").endswith(body)


@pytest.mark.parametrize(("method", "path"), [("HEAD", "/stream"), ("PUT", "/value/k")])
def test_response_without_a_body_leaves_the_connection_in_order(
    server: EndpointServer, method: str, path: str
) -> None:
    with Wire(server) as wire:
        for _ in range(2):
            wire.get(path, method)
            head = wire.read_until(b"\r\n\r\n")
            assert head.startswith((b"HTTP/1.1 207 ", b"HTTP/1.1 204 "))
            assert b"Transfer-Encoding" not in head
            assert b"Content-Length" not in head


def test_fifty_streams_run_side_by_side(server: EndpointServer, noop: PluginProcess) -> None:
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(server)) for _ in range(50)]
        with noop.storage.held():
            for wire in wires:
                wire.get("/stream?n=4&gate=k&size=100")
            for wire in wires:
                wire.read_until(b"0;")
            assert noop.open_calls == 50
        for wire in wires:
            rest = wire.read_until(b"\r\n0\r\n\r\n")
            assert [rest.count(b"%d;" % index) for index in range(4)] == [0, 1, 1, 1]
    assert noop.storage.counts == {"exist": 150}


def test_client_that_leaves_ends_the_session_and_the_plugin_gets_no_more_answers(
    server: EndpointServer, client: httpx.Client, noop: PluginProcess
) -> None:
    with noop.storage.held():
        with Wire(server) as wire:
            wire.get("/stream?n=9&gate=k")
            wire.read_until(b"0;")
        until(lambda: server.clients_left == 1)
        assert noop.open_calls == 0
    until(lambda: noop.late)  # the plugin goes on: its next chunk is for nobody
    assert client.get("/echo").status_code == 200


def test_client_can_leave_before_the_first_chunk(
    server: EndpointServer, noop: PluginProcess
) -> None:
    with Wire(server) as wire:
        wire.get("/misbehave/silent")
        until(lambda: noop.open_calls == 1)
    until(lambda: noop.open_calls == 0)
    until(lambda: server.clients_left == 1)


def test_chunks_beyond_the_queue_are_lost_to_a_client_that_does_not_read(
    server: EndpointServer, noop: PluginProcess
) -> None:
    number, size = 400, 64 * 1024
    with Wire(server) as wire:
        wire.get(f"/stream?n={number}&size={size}")
        wire.read_until(b"\r\n\r\n")
        until(lambda: noop.open_calls == 0)
        received = wire.read_until(b"\r\n0\r\n\r\n").count(b";")
    assert server.dropped_chunks == number - received > 0
    assert received > QUEUED_CHUNKS


def test_stream_that_is_over_at_once_is_called_hasty(tmp_path: Path) -> None:
    with fake_plugin(tmp_path, {"result": "61"}, {"result": "62"}) as process:
        assert process.request("GET", "/").hasty
        with EndpointServer(process) as server:
            assert httpx.get(server.url + "/").content == b"ab"
            assert server.hasty_streams == 1


@pytest.mark.parametrize("query", ["n=1", "n=2&pause_s=0.02"])
def test_stream_of_one_chunk_or_with_a_pause_is_not_hasty(
    server: EndpointServer, client: httpx.Client, noop: PluginProcess, query: str
) -> None:
    assert not noop.request("GET", f"/stream?{query}").hasty
    client.get(f"/stream?{query}")
    assert server.hasty_streams == 0


def test_response_that_takes_too_long_ends_with_an_error_in_its_body(noop: PluginProcess) -> None:
    with EndpointServer(noop, max_execution_s=0.05) as server:
        response = httpx.get(server.url + "/misbehave/stream-silent")
    assert response.status_code == 200
    assert response.text.startswith('so far so good;{"code":-500,')
    assert "killed by timeout" in response.text
    until(lambda: noop.open_calls == 0)


def test_closing_the_server_ends_what_is_open(noop: PluginProcess) -> None:
    before = threading.active_count()
    with EndpointServer(noop) as server, Wire(server) as busy, Wire(server) as idle:
        busy.get("/misbehave/stream-silent")
        busy.read_until(b"so far so good;")
        idle.get("/stream?n=1")
        idle.read_until(b"\r\n0\r\n\r\n")
        server.close()
        assert busy.read_rest() == b"\r\n"
        assert idle.read_rest() == b""
    assert noop.open_calls == 0
    assert threading.active_count() == before


def test_process_that_ends_in_a_stream_cuts_the_response_and_fails_the_test(
    noop: PluginProcess,
) -> None:
    server = EndpointServer(noop)
    with Wire(server) as wire:
        wire.get("/misbehave/stream-die")
        assert wire.read_rest().endswith(b"so far so good;\r\n")
    assert httpx.get(server.url + "/echo").status_code == 502
    with pytest.raises(HostFault, match="exit code 3"):
        server.close()


# --- messages of a wrong form ---


def fake_plugin(folder: Path, *messages: dict[str, Any], permission: bool = True) -> PluginProcess:
    """A plugin without the SDK that answers every request with the same messages, in one go."""
    registration = {
        "type": "plugin",
        "name": "fake",
        "resource": {"permission": {"endpoint": {"enabled": permission}}},
        "plugins": {"endpoints": ["group.yaml"]},
    }
    heartbeat = {"event": "heartbeat", "session_id": None, "data": {}}
    data = [{"type": "stream", "data": message} for message in messages]
    data.append({"type": "end", "data": {}})
    (folder / "main.py").write_text(
        "import json, sys\n"
        f"for line in {[registration, heartbeat]!r}:\n"
        "    print(json.dumps(line), flush=True)\n"
        "for line in sys.stdin:\n"
        "    session_id = json.loads(line)['session_id']\n"
        "    head = {'event': 'session', 'session_id': session_id}\n"
        f"    events = [head | {{'data': data}} for data in {data!r}]\n"
        "    print('\\n'.join(json.dumps(event) for event in events), flush=True)\n"
    )
    return PluginProcess(folder)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"status": "200"}], "unknown form"),
        ([{"status": 70000}], "unknown form"),
        ([{"headers": {"a": 1}}], "unknown form"),
        ([{"headers": ["a"]}], "unknown form"),
        ([{"result": 1}], "unknown form"),
        ([{"result": "abc"}], "hexadecimal"),
        ([{"result": "61"}, {"status": 200}], "the daemon panics"),
    ],
)
def test_message_of_a_wrong_form_is_a_fault(
    tmp_path: Path, messages: list[dict[str, Any]], reason: str
) -> None:
    with fake_plugin(tmp_path, *messages) as process, pytest.raises(HostFault, match=reason):
        process.request("GET", "/")


@pytest.mark.parametrize(
    ("messages", "status", "headers", "body"),
    [
        ([], 200, {}, b""),
        ([{"status": 201, "headers": {"x-a": "1"}, "result": ""}], 201, {"X-A": "1"}, b""),
        (
            [{"status": 201, "headers": {"x-a": "1"}}, {"status": 202, "headers": {"X-A": "2"}}],
            202,
            {"X-A": "1"},
            b"",
        ),
        ([{"status": 304, "headers": {"a b": "1"}, "result": "61"}], 304, {}, b""),
        ([{"result": "61"}, {"status": 500, "result": "62"}], 200, {}, b"ab"),
    ],
)
def test_messages_are_folded_as_the_daemon_folds_them(
    tmp_path: Path,
    messages: list[dict[str, Any]],
    status: int,
    headers: dict[str, str],
    body: bytes,
) -> None:
    with fake_plugin(tmp_path, *messages) as process:
        result = process.request("GET", "/")
        assert (result.status, result.headers, result.body) == (status, headers, body)
        with EndpointServer(process) as server:
            response = httpx.get(server.url + "/")
    assert (response.status_code, response.content) == (status, body)
