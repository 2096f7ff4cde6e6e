"""The test host itself: what it collects, what it offers, and what it refuses."""

from __future__ import annotations

import http.server
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.host.daemon import HostFault, HostFile, PluginProcess
from tests.host.outputs import MAX_CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def shape(*items: list[Any]) -> dict[str, str]:
    return {"shape": json.dumps(items)}


def steps(*items: list[str]) -> dict[str, str]:
    return {"steps": json.dumps(items)}


# --- outputs ---


def test_text_json_and_variables_are_collected(noop: PluginProcess) -> None:
    result = noop.call(
        "noop",
        shape(
            ["text", "one "],
            ["text", "two"],
            ["json", {"a": 1}],
            ["variable", "rows", [1, None]],
        ),
    )
    assert (result.text, result.json, result.variables) == (
        "one two",
        [{"a": 1}],
        {"rows": [1, None]},
    )
    assert result.error is None
    assert len(result.messages) == 4


def test_streamed_parts_of_a_variable_are_joined(noop: PluginProcess) -> None:
    result = noop.call("noop", shape(["stream", "result", "he"], ["stream", "result", "llo"]))
    assert result.variables == result.streamed == {"result": "hello"}


def test_value_after_stream_is_the_final_value_and_the_stream_is_kept(noop: PluginProcess) -> None:
    result = noop.call("noop", shape(["stream", "cost", "0.10"], ["variable", "cost", 0.1]))
    assert result.variables == {"cost": 0.1}
    assert result.streamed == {"cost": "0.10"}


@pytest.mark.parametrize(
    ("how", "message"),
    [("stream after value", "streamed after it had got a value"), ("reserved name", "reserved")],
)
def test_variables_that_fail_a_node_fail_the_test(
    noop: PluginProcess, how: str, message: str
) -> None:
    with pytest.raises(HostFault, match=message):
        noop.call("misbehave", {"how": how})


@pytest.mark.parametrize("size", [0, 1, MAX_CHUNK_BYTES, MAX_CHUNK_BYTES + 1])
def test_file_is_put_together_from_its_chunks(noop: PluginProcess, size: int) -> None:
    result = noop.call("noop", shape(["file", "rows.csv", "text/csv", "x" * size]))
    assert result.files == [HostFile("rows.csv", "text/csv", b"x" * size)]


def test_error_has_type_message_and_traceback_and_keeps_what_came_before(
    noop: PluginProcess,
) -> None:
    result = noop.call("misbehave", {"how": "raise"})
    assert result.error is not None
    assert result.error.type == "InvokeRateLimitError"
    assert result.error.message == "Too many requests; wait a minute."
    assert "Traceback" in result.error.args["traceback"]
    assert result.text == "so far so good"


def test_validation_gives_none_or_the_error(noop: PluginProcess) -> None:
    assert noop.validate({"api_key": "right"}) is None
    error = noop.validate({"api_key": "wrong"})
    assert error is not None
    assert (error.type, error.message) == ("CredentialsValidateFailedError", "The key was refused.")


def test_unknown_tool_and_unknown_provider_are_errors_of_the_plugin(noop: PluginProcess) -> None:
    for options in ({"tool": "nothing"}, {"tool": "noop", "provider": "nobody"}):
        error = noop.start(**options).result().error
        assert error is not None
        assert "not found" in error.message


# --- while a call runs ---


def test_messages_can_be_read_while_the_call_runs(noop: PluginProcess) -> None:
    with noop.storage.held():
        invocation = noop.start("store", steps(["say", "before"], ["exist", "k"], ["say", "after"]))
        messages = iter(invocation)
        first = next(messages)
        assert first.data["message"] == {"json_object": {"value": "before"}}
        assert not invocation.done
    assert [m.data["message"]["json_object"]["value"] for m in messages] == [False, "after"]
    assert invocation.done


def test_arrival_times_lie_within_the_call(noop: PluginProcess) -> None:
    invocation = noop.start("noop", shape(["text", "a"], ["text", "b"]))
    result = invocation.result()
    times = [m.at_s for m in result.messages]
    assert invocation.ended_s is not None
    assert invocation.started_s < times[0] <= times[1] <= invocation.ended_s
    assert result.first_ms is not None
    assert 0 < result.first_ms <= result.elapsed_ms


def test_many_calls_keep_their_order_and_their_limit(noop: PluginProcess) -> None:
    def calls() -> Iterator[dict[str, Any]]:
        for number in range(60):
            assert noop.open_calls <= 5
            yield {"tool": "noop", "parameters": shape(["text", str(number)])}

    results = noop.invoke_many(calls(), concurrency=5)
    assert [r.text for r in results] == [str(number) for number in range(60)]


def test_abandoned_call_gets_no_more_answers_and_hurts_nobody(noop: PluginProcess) -> None:
    ended = threading.Event()
    with noop.storage.held():
        invocation = noop.start("store", steps(["say", "hi"], ["exist", "k"], ["exist", "k"]))
        next(iter(invocation))
        invocation.abandon()
    noop.start("store", steps(["exist", "k"]), on_done=ended.set)
    assert ended.wait(10)
    assert len(invocation.result().messages) == 1


# --- storage ---


def test_storage_round_trip(noop: PluginProcess) -> None:
    result = noop.call(
        "store",
        steps(["set", "k", "v"], ["exist", "k"], ["get", "k"], ["del", "k"], ["exist", "k"]),
    )
    assert [m["value"] for m in result.json] == [None, True, "v", None, False]
    assert noop.storage.counts == {"set": 1, "exist": 2, "get": 1, "del": 1}


def test_missing_key_is_an_error_with_the_daemons_words(noop: PluginProcess) -> None:
    (message,) = noop.call("store", steps(["get", "nothing"])).json
    assert message["error"].startswith("load data failed")


def test_tenants_do_not_share_storage(noop: PluginProcess) -> None:
    noop.call("store", steps(["set", "k", "v"]), tenant_id="a")
    assert noop.storage.data == {"a": {"k": b"v"}}
    assert noop.call("store", steps(["exist", "k"]), tenant_id="b").json == [{"value": False}]


def test_write_beyond_the_manifests_quota_is_refused_but_stored(noop: PluginProcess) -> None:
    assert noop.storage.quota_bytes == 4096
    result = noop.call(
        "store", steps(["set", "a", "x" * 3000], ["set", "a", "y" * 4000], ["set", "b", "z" * 97])
    )
    assert [m.get("error") for m in result.json] == [
        None,
        None,
        "save data failed: allocated size is greater than max storage size",
    ]
    assert noop.storage.data["tenant-1"]["b"] == b"z" * 97


@pytest.mark.parametrize("key", ["k" * 257, "../escape"])
def test_key_that_the_daemon_refuses_is_refused(noop: PluginProcess, key: str) -> None:
    (message,) = noop.call("store", steps(["set", key, "v"])).json
    assert message["error"].startswith("save data failed")


def test_injected_failures_hit_the_operation_asked_for(noop: PluginProcess) -> None:
    noop.storage.fail_next(2, op="get", message="disk full")
    result = noop.call("store", steps(["set", "k", "v"], ["get", "k"], ["get", "k"], ["get", "k"]))
    assert [m.get("error") for m in result.json] == [None, "disk full", "disk full", None]


def test_injected_latency_delays_answers_side_by_side(noop: PluginProcess) -> None:
    noop.storage.latency_s = 0.05
    results = noop.invoke_many([{"tool": "store", "parameters": steps(["exist", "k"])}] * 20)
    assert all(r.elapsed_ms >= 50 for r in results)
    assert max(r.elapsed_ms for r in results) < 20 * 50


# --- faults ---


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("print", "no JSON: debug output"),
        ("long line", "a stdout line of"),
        ("die", r"exit code 3[\s\S]*last words"),
        ("unknown message", "unknown form"),
    ],
)
def test_broken_rule_fails_the_call_and_the_process_can_be_restarted(
    noop: PluginProcess, how: str, message: str
) -> None:
    with pytest.raises(HostFault, match=message):
        noop.call("misbehave", {"how": how})
    assert not noop.alive
    with pytest.raises(HostFault, match=message):
        noop.start("noop")
    noop.restart()
    assert noop.call("noop", shape(["text", "well again"])).text == "well again"


def test_fault_that_no_call_has_raised_is_raised_by_check(noop: PluginProcess) -> None:
    ended = threading.Event()
    noop.start("misbehave", {"how": "print"}, on_done=ended.set)
    assert ended.wait(10)
    with pytest.raises(HostFault, match="no JSON"):
        noop.check()
    noop.check()


def test_kill_ends_open_calls_and_is_no_fault(noop: PluginProcess) -> None:
    with noop.storage.held():
        invocation = noop.start("store", steps(["exist", "k"]))
        noop.kill()
    with pytest.raises(HostFault, match="was ended"):
        invocation.result()
    assert not noop.alive


def test_process_can_be_measured(noop: PluginProcess) -> None:
    before_s = noop.cpu_s()
    noop.call("noop", shape(["text", "a"]))
    assert noop.cpu_s() > before_s
    assert 10e6 < noop.rss_bytes() < 1e9
    assert 0 < noop.cold_start_ms <= noop.ready_ms


# --- the wire, with plugins of a few lines ---

REGISTRATION = {"type": "plugin", "name": "fake", "resource": {}}
HEARTBEAT = {"event": "heartbeat", "session_id": None, "data": {}}


def fake_plugin(folder: Path, *messages: dict[str, Any]) -> PluginProcess:
    """A plugin without the SDK that answers every request with the same session messages."""
    (folder / "main.py").write_text(
        "import json, sys\n"
        f"for line in {[REGISTRATION, HEARTBEAT]!r}:\n"
        "    print(json.dumps(line), flush=True)\n"
        "for line in sys.stdin:\n"
        "    session_id = json.loads(line)['session_id']\n"
        f"    for data in {list(messages)!r}:\n"
        "        event = {'event': 'session', 'session_id': session_id, 'data': data}\n"
        "        print(json.dumps(event), flush=True)\n"
    )
    return PluginProcess(folder)


def stream(kind: str, **message: Any) -> dict[str, Any]:
    return {"type": "stream", "data": {"type": kind, "message": message, "meta": None}}


def chunk(
    sequence: int, blob: str = "YWI=", *, total: int = 2, end: bool = False
) -> dict[str, Any]:
    return stream("blob_chunk", id="f", sequence=sequence, total_length=total, blob=blob, end=end)


END = {"type": "end", "data": {}}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([stream("text", txt="a")], "unknown form"),
        ([stream("shout", text="a")], "unknown form"),
        ([{"type": "stream", "data": ["text"]}], "unknown form"),
        ([{"type": "progress", "data": {}}], "unknown form"),
        ([{"type": "error", "data": {"message": "no type"}}], "unknown form"),
        ([stream("variable", variable_name="a", variable_value=1, stream=True), END], "no string"),
        ([chunk(1), END], "came as number 0"),
        ([chunk(0), END], "without a last chunk"),
        ([chunk(0, total=3), chunk(1, "", total=3, end=True), END], "another length"),
        ([chunk(0, total=31 * 1024 * 1024), END], "the host allows"),
    ],
)
def test_message_of_a_wrong_form_is_a_fault(
    tmp_path: Path, messages: list[dict[str, Any]], reason: str
) -> None:
    with fake_plugin(tmp_path, *messages) as process, pytest.raises(HostFault, match=reason):
        process.call("any")


def test_messages_after_the_end_of_a_call_are_kept_apart(tmp_path: Path) -> None:
    late = stream("text", text="too late")
    with fake_plugin(tmp_path, END, late) as process:
        assert process.call("any").messages == []
        process.call("any")  # by its end, what came late for the first call has been read
        assert process.late[0] == late


def test_process_that_prints_before_it_registers_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("print('hello')\ninput()\n")
    with pytest.raises(HostFault, match="no JSON: hello"), PluginProcess(tmp_path):
        pass


def test_process_that_ends_at_once_does_not_start_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("raise SystemExit('no such module')\n")
    with pytest.raises(HostFault, match="no such module"), PluginProcess(tmp_path):
        pass


def test_plugin_gets_no_proxy_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    (tmp_path / "main.py").write_text("import os\nraise SystemExit(sorted(os.environ))\n")
    with pytest.raises(HostFault) as caught, PluginProcess(tmp_path, env={"EXTRA": "1"}):
        pass
    assert "HTTPS_PROXY" not in str(caught.value)
    assert "'EXTRA'" in str(caught.value)
    assert "'INSTALL_METHOD'" in str(caught.value)


# --- the plain HTTP tool of the noop plugin ---


class _Gateway(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        events = [{"choices": [{"delta": {"content": word}}]} for word in ("he", "llo")]
        body = b"".join(b"data: %s\n\n" % json.dumps(e).encode() for e in events)
        self.send_response(200 if self.headers["authorization"] == "Bearer good" else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        del args


@pytest.fixture
def gateway() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Gateway) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("options", "text"),
    [({}, "done"), ({"stream": True}, "done"), ({"stream": True, "relay": True}, "hellodone")],
)
def test_bare_http_tool_calls_then_emits(
    noop: PluginProcess, gateway: str, options: dict[str, bool], text: str
) -> None:
    parameters = {"url": gateway, "body": "{}", "api_key": "good", **shape(["text", "done"])}
    assert noop.call("bare_http", parameters | options).text == text


@pytest.mark.parametrize("tool", ["noop", "bare_http"])
def test_bare_tools_write_to_the_storage_when_asked_to(
    noop: PluginProcess, gateway: str, tool: str
) -> None:
    parameters = {"url": gateway, "body": "{}", "api_key": "good"} if tool == "bare_http" else {}
    noop.call(tool, {**parameters, "stores": "kept"})
    assert noop.storage.data["tenant-1"]["stored"] == b"kept"


def test_bare_http_tool_fails_on_a_status(noop: PluginProcess, gateway: str) -> None:
    error = noop.call("bare_http", {"url": gateway, "body": "{}", "api_key": "bad"}).error
    assert error is not None
    assert error.type == "HTTPStatusError"
