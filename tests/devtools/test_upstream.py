"""The simulated upstream, seen from the other end of the wire."""

import base64
import gzip
import json
import math
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devtools.upstream import Stats, Upstream, UpstreamError
from devtools.upstream import behaviours as do
from devtools.upstream.answers import Call, answer_to, completion_body, plain_body
from devtools.upstream.schema import example_of

KEY = "a-key-of-enough-length-0001"
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Nothing here is encrypted, and loading the usual certificates takes 50 ms a client."""
SLACK_S = 0.5
"""How late an answer may be on a busy machine; that none is early is asserted exactly."""


@pytest.fixture(autouse=True)
def _server_has_no_faults(upstream: Upstream) -> Iterator[None]:
    yield
    assert upstream.stats().errors == ()


@pytest.fixture
def client(upstream: Upstream) -> Iterator[httpx.Client]:
    with client_for(upstream) as connected:
        yield connected


def chat(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4.1", "messages": [{"role": "user", "content": text}], **fields}


def streamed(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    return chat(text, stream=True, **fields)


def ask(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("chat/completions", json=chat(**fields))


def ask_stream(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("chat/completions", json=streamed(**fields))


def text_of(response: httpx.Response) -> str:
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def events_of(response: httpx.Response) -> list[Any]:
    """The data of the events of a plainly spelt stream, parsed; [DONE] as text."""
    assert response.headers["content-type"].startswith("text/event-stream")
    data = [part.removeprefix("data: ") for part in response.text.split("\n\n") if part]
    return [part if part == "[DONE]" else json.loads(part) for part in data]


def deltas_of(events: list[Any], field: str = "content") -> list[Any]:
    deltas = [
        event["choices"][0]["delta"]
        for event in events
        if event != "[DONE]" and event.get("choices")
    ]
    return [delta[field] for delta in deltas if delta.get(field)]


def chunks_of(raw: bytes) -> list[bytes]:
    """The HTTP chunks of a whole answer as it came over the wire."""
    rest = raw.partition(b"\r\n\r\n")[2]
    chunks: list[bytes] = []
    while True:
        size_line, _, rest = rest.partition(b"\r\n")
        size = int(size_line, 16)
        if size == 0:
            return chunks
        chunks.append(rest[:size])
        rest = rest[size + 2 :]


def client_for(upstream: Upstream, headers: dict[str, str] | None = None) -> httpx.Client:
    return httpx.Client(
        base_url=upstream.url,
        headers=headers or {"authorization": f"Bearer {KEY}"},
        trust_env=False,
        verify=NO_CERTIFICATES,
    )


@dataclass
class Wire:
    """A TCP connection on which a test reads what is there, byte by byte if it likes."""

    socket: socket.socket

    def send(self, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: upstream\r\n"
            f"authorization: Bearer {KEY}\r\ncontent-length: {len(raw)}\r\n\r\n"
        )
        self.socket.sendall(head.encode() + raw)

    def read_until(self, marker: bytes) -> bytes:
        received = b""
        while marker not in received:
            part = self.socket.recv(65536)
            assert part, f"the connection ended after {received!r}"
            received += part
        return received

    def read_to_end(self) -> bytes:
        """All bytes until FIN; a RST raises ConnectionResetError."""
        received = b""
        while part := self.socket.recv(65536):
            received += part
        return received

    def read_until_broken(self) -> tuple[bytes, str]:
        """What arrives before the end of the connection, and ``rst`` or ``fin``."""
        received = b""
        try:
            while part := self.socket.recv(65536):
                received += part
        except ConnectionResetError:
            return received, "rst"
        return received, "fin"

    def is_silent_for(self, seconds: float) -> bool:
        return not select.select([self.socket], [], [], seconds)[0]


@pytest.fixture
def wire(upstream: Upstream) -> Iterator[Wire]:
    with socket.create_connection(("127.0.0.1", upstream.port), timeout=5) as connection:
        yield Wire(connection)


class TestAnswer:
    def test_equal_requests_get_equal_texts_streamed_or_not(self, client: httpx.Client) -> None:
        first, second = ask(client, text="Hi"), ask(client, text="Hi")
        stream = ask_stream(client, text="Hi")
        assert text_of(first) == text_of(second) == "".join(deltas_of(events_of(stream)))
        assert first.json()["id"] != second.json()["id"]

    @pytest.mark.parametrize("change", [{"text": "Ho"}, {"temperature": 0.1}, {"model": "other"}])
    def test_different_requests_get_different_texts(
        self, client: httpx.Client, change: dict[str, Any]
    ) -> None:
        assert text_of(ask(client)) != text_of(ask(client, **change))

    def test_text_repeats_the_last_user_message(self, client: httpx.Client) -> None:
        messages = [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": [{"type": "text", "text": "three"}]},
        ]
        assert text_of(ask(client, messages=messages)).startswith("You said: three [")

    def test_usage_follows_the_lengths(self, client: httpx.Client) -> None:
        usage = ask(client, text="x" * 8000).json()["usage"]
        assert usage["prompt_tokens"] == 3 + 4 + 2000
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["prompt_tokens_details"] == {"cached_tokens": 896}
        assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}

    def test_reasoning_effort_costs_tokens_within_the_limit(self, client: httpx.Client) -> None:
        usage = ask(client, reasoning_effort="high", max_tokens=40).json()["usage"]
        assert usage["completion_tokens_details"]["reasoning_tokens"] == 20
        assert usage["completion_tokens"] <= 40

    def test_max_tokens_cuts_the_text(self, client: httpx.Client) -> None:
        body = ask(client, max_tokens=2).json()
        assert body["choices"][0]["message"]["content"] == "You said"
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == 2

    def test_n_choices_differ(self, client: httpx.Client) -> None:
        choices = ask(client, n=3).json()["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2]
        assert len({choice["message"]["content"] for choice in choices}) == 3

    def test_images_are_counted_with_their_bytes(self, client: httpx.Client) -> None:
        url = "data:image/png;base64," + base64.b64encode(bytes(1000)).decode()
        image = {"type": "image_url", "image_url": {"url": url}}
        messages = [{"role": "user", "content": [{"type": "text", "text": "Look"}, image, image]}]
        assert "You sent 2 images, 2000 bytes in all." in text_of(ask(client, messages=messages))

    def test_json_object_is_one(self, client: httpx.Client) -> None:
        body = json.loads(text_of(ask(client, response_format={"type": "json_object"})))
        assert body["answer"] == "You said: Hello"

    def test_json_schema_is_satisfied(self, client: httpx.Client) -> None:
        schema = {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 3}},
            "required": ["city", "days"],
            "additionalProperties": False,
        }
        wanted = {"type": "json_schema", "json_schema": {"name": "trip", "schema": schema}}
        jsonschema.validate(json.loads(text_of(ask(client, response_format=wanted))), schema)

    def test_a_tool_is_called_when_the_user_asks_for_it(self, client: httpx.Client) -> None:
        function = {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        }
        tools = [{"type": "function", "function": function}]
        choice = ask(client, text="Please use a tool", tools=tools).json()["choices"][0]
        call = choice["message"]["tool_calls"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        assert call["function"]["name"] == "weather"
        assert set(json.loads(call["function"]["arguments"])) == {"city"}
        assert "tool_calls" not in ask(client, tools=tools).json()["choices"][0]["message"]

    def test_tool_choice_names_the_function(self, client: httpx.Client) -> None:
        tools = [{"type": "function", "function": {"name": name}} for name in ("one", "two")]
        choice = {"type": "function", "function": {"name": "two"}}
        message = ask(client, tools=tools, tool_choice=choice).json()["choices"][0]["message"]
        assert message["tool_calls"][0]["function"] == {"name": "two", "arguments": "{}"}

    def test_every_answer_has_its_request_id(self, client: httpx.Client) -> None:
        answers = [ask(client), ask_stream(client), client.get("models"), client.get("nowhere")]
        ids = [answer.headers["x-request-id"] for answer in answers]
        assert len(set(ids)) == 4
        assert all(each.startswith("req_") for each in ids)

    def test_stream_has_role_words_finish_usage_and_done(self, client: httpx.Client) -> None:
        events = events_of(ask_stream(client, stream_options={"include_usage": True}))
        role, *words, finish, usage, done = events
        assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert [word["choices"][0]["delta"]["content"] for word in words][:2] == ["You ", "said: "]
        assert finish["choices"][0]["finish_reason"] == "stop"
        assert usage["choices"] == []
        assert usage["usage"] == ask(client).json()["usage"]
        assert done == "[DONE]"

    def test_stream_without_include_usage_has_none(self, client: httpx.Client) -> None:
        assert not any("usage" in event for event in events_of(ask_stream(client)))


@given(
    messages=st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["system", "user", "assistant"]),
                "content": st.one_of(st.text(), st.none(), st.text().map(lambda text: text * 999)),
            }
        )
    ),
    fields=st.fixed_dictionaries(
        {},
        optional={
            "model": st.sampled_from(["gpt-4.1", 'odd "name" % ü']),
            "max_tokens": st.integers(0, 30),
            "stream": st.booleans(),
            "n": st.integers(1, 3),
        },
    ),
)
def test_the_short_way_to_an_ordinary_answer_gives_the_same(
    messages: list[dict[str, Any]], fields: dict[str, Any]
) -> None:
    call = Call({"messages": messages, **fields}, number=7, created_s=1_790_000_000)
    short = plain_body(call)
    assert short in (None, completion_body(answer_to(call.request, {"kind": "answer"}), call))


def test_an_ordinary_request_takes_the_short_way() -> None:
    request = chat(temperature=0.7, max_tokens=2048, stream=False)
    assert plain_body(Call(request, number=1, created_s=1)) is not None


SCHEMAS: dict[str, dict[str, Any]] = {
    "enum": {"enum": ["a", "b", 3]},
    "const": {"const": {"a": 1}},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "nullable": {"type": ["null", "string"]},
    "number": {"type": "number", "exclusiveMinimum": 1, "maximum": 3, "multipleOf": 0.25},
    "integer": {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 0},
    "lengths": {"type": "string", "minLength": 30, "maxLength": 31},
    "short": {"type": "string", "maxLength": 3},
    "format": {"type": "string", "format": "date-time"},
    "array": {"type": "array", "items": {"type": "string"}, "minItems": 3, "uniqueItems": True},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]},
    "any_of": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
    "all_of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {"type": "string"}}, "required": ["b"]},
        ]
    },
    "nested": {
        "type": "object",
        "properties": {
            "rows": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"kind": {"enum": ["x", "y"]}, "value": {"type": "number"}},
                    "required": ["kind", "value"],
                },
            }
        },
        "required": ["rows"],
    },
    "recursive": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["name", "next", "children"],
            }
        },
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("seed", ["00000000", "deadbeef", "7fffffff"])
def test_example_satisfies_its_schema(name: str, seed: str) -> None:
    jsonschema.validate(example_of(SCHEMAS[name], seed), SCHEMAS[name])


class TestRefusals:
    @pytest.mark.parametrize(
        ("key", "code"),
        [("short", 401), (f"{KEY}-wrong", 401), (f"{KEY}-forbidden", 403)],
    )
    def test_bad_key_is_refused_and_echoed(
        self, client: httpx.Client, upstream: Upstream, key: str, code: int
    ) -> None:
        upstream.script(do.ok("for the next one"))
        for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
            with client_for(upstream, headers) as bad:
                answer = ask(bad)
            assert answer.status_code == code
            assert key in answer.json()["error"]["message"]
        assert text_of(ask(client)) == "for the next one"

    def test_x_api_key_is_as_good_as_bearer(self, upstream: Upstream) -> None:
        with client_for(upstream, {"x-api-key": KEY}) as client:
            assert ask(client).status_code == 200

    @pytest.mark.parametrize("body", [b"{", b"[]", b'{"messages": 1}', b'{"messages": [1]}'])
    def test_a_body_that_is_no_chat_request_is_400(self, client: httpx.Client, body: bytes) -> None:
        answer = client.post("chat/completions", content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"

    def test_unknown_route_and_method(self, client: httpx.Client) -> None:
        assert client.get("nowhere").status_code == 404
        assert client.get("chat/completions").status_code == 405

    @pytest.mark.parametrize("host", ["0.0.0.0", "localhost"])  # noqa: S104 - refused, not bound
    def test_other_hosts_than_loopback_are_refused(self, host: str) -> None:
        run = subprocess.run(
            [sys.executable, "-m", "devtools.upstream", f"--host={host}"],
            capture_output=True,
            check=False,
            timeout=20,
        )
        assert run.returncode == 2
        assert run.stdout == b""


class TestScript:
    def test_behaviours_are_used_in_order_then_the_default(
        self, client: httpx.Client, upstream: Upstream
    ) -> None:
        upstream.script(do.ok("one"), do.status(500), do.ok("two"))
        upstream.default(do.ok("always"))
        answers = [ask(client) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 500, 200, 200, 200]
        assert text_of(answers[2]) == "two"
        assert text_of(answers[3]) == text_of(answers[4]) == "always"
        upstream.default(None)
        assert text_of(ask(client)).startswith("You said")

    def test_a_model_has_its_own_script_and_default(
        self, client: httpx.Client, upstream: Upstream
    ) -> None:
        upstream.script(do.ok("mine"), model="m1")
        upstream.script(do.ok("anyone's"))
        upstream.default(do.ok("m1 default"), model="m1")
        asked = ["m1", "m2", "m1"]
        texts = [text_of(ask(client, model=model)) for model in asked]
        assert texts == ["mine", "anyone's", "m1 default"]

    def test_unknown_behaviour_is_refused(self, upstream: Upstream) -> None:
        with pytest.raises(ValueError, match="not a behaviour"):
            upstream.script({"kind": "dance"})

    def test_an_outage_lasts_until_the_default_changes(
        self, client: httpx.Client, upstream: Upstream
    ) -> None:
        upstream.default(do.outage())
        assert {ask(client).status_code for _ in range(3)} == {503}
        upstream.default(None)
        assert ask(client).status_code == 200

    def test_reset_forgets_everything(self, client: httpx.Client, upstream: Upstream) -> None:
        upstream.script(do.status(500), do.status(500))
        upstream.default(do.status(500))
        ask(client)
        upstream.reset()
        assert upstream.requests() == []
        assert upstream.arrivals() == []
        assert upstream.stats().calls == upstream.stats().scripted == 0
        assert ask(client).status_code == 200

    def test_model_list_is_scripted_apart(self, client: httpx.Client, upstream: Upstream) -> None:
        assert "gpt-4.1" in [model["id"] for model in client.get("models").json()["data"]]
        upstream.script(
            do.status(404), do.malformed("html"), do.model_list("a", "b"), model="@models"
        )
        assert client.get("models").status_code == 404
        assert ask(client).status_code == 200
        assert client.get("models").text.startswith("<!DOCTYPE html>")
        assert [model["id"] for model in client.get("models").json()["data"]] == ["a", "b"]
        assert upstream.stats().models_calls == 4


class TestRecords:
    def test_a_request_is_recorded_as_it_came(
        self, client: httpx.Client, upstream: Upstream
    ) -> None:
        before_ms = time.monotonic() * 1000
        client.post("chat/completions?v=1", json=chat("Grüße"), headers={"X-Trace": "abc"})
        (request,) = upstream.requests()
        assert request["method"] == "POST"
        assert request["path"] == "/v1/chat/completions?v=1"
        assert request["headers"]["x-trace"] == "abc"
        assert request["headers"]["authorization"] == f"Bearer {KEY}"
        assert request["json"] == chat("Grüße")
        assert request["model"] == "gpt-4.1"
        assert before_ms < request["arrival_ms"] < time.monotonic() * 1000
        assert upstream.arrivals("gpt-4.1") == [request["arrival_ms"]]
        assert upstream.arrivals("other") == []

    def test_a_body_that_is_not_json_is_recorded_as_none(
        self, client: httpx.Client, upstream: Upstream
    ) -> None:
        client.post("chat/completions", content=b"{oops")
        assert upstream.requests()[0]["json"] is None

    def test_counts(self, client: httpx.Client, upstream: Upstream) -> None:
        upstream.script(do.ok(), do.status(429))
        ask(client, model="a")
        ask(client, model="b")
        ask(client, model="b")
        stats = upstream.stats()
        assert stats.calls == 3
        assert stats.calls_by_model == {"a": 1, "b": 2}
        assert stats.answered == {200: 2, 429: 1}
        assert (stats.in_flight, stats.max_in_flight) == (0, 1)
        assert (stats.connections, stats.open_connections) == (1, 1)
        assert len({request["client_port"] for request in upstream.requests()}) == 1
        client.close()
        upstream.wait_for(lambda now: now.open_connections == 0)

    def test_in_flight_and_aborted(self, upstream: Upstream) -> None:
        upstream.default(do.stall("headers", 60))
        with (
            socket.create_connection(("127.0.0.1", upstream.port)) as one,
            socket.create_connection(("127.0.0.1", upstream.port)) as two,
        ):
            Wire(one).send(chat())
            Wire(two).send(streamed())
            upstream.wait_for(lambda now: now.in_flight == 2)
        stats = upstream.wait_for(lambda now: now.in_flight == 0)
        assert stats.max_in_flight == 2
        assert stats.aborted_by_client == 2
        assert stats.answered == {}

    def test_a_client_that_leaves_in_mid_stream_is_counted(
        self, client: httpx.Client, upstream: Upstream
    ) -> None:
        upstream.script(do.stall("after_chunks", 60))
        with client.stream("POST", "chat/completions", json=streamed()) as answer:
            next(answer.iter_raw())
        stats = upstream.wait_for(lambda now: now.in_flight == 0)
        assert stats.aborted_by_client == 1

    def test_wait_for_gives_up(self, upstream: Upstream) -> None:
        with pytest.raises(UpstreamError, match="still not so"):
            upstream.wait_for(lambda now: now.calls > 0, timeout_s=0.01)


class TestOk:
    def test_given_text_chunks_and_fields(self, client: httpx.Client, upstream: Upstream) -> None:
        said = do.ok(
            chunks=["a\u2028", "ü"],
            model="gpt-4.1-2025-04-14",
            finish_reason="content_filter",
            headers={"x-extra": "1"},
            usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        )
        upstream.script(said, said)
        answer = ask(client)
        assert text_of(answer) == "a\u2028ü"
        assert answer.json()["model"] == "gpt-4.1-2025-04-14"
        assert answer.json()["choices"][0]["finish_reason"] == "content_filter"
        assert answer.json()["usage"]["total_tokens"] == 3
        assert answer.headers["x-extra"] == "1"
        stream = ask_stream(client)
        assert deltas_of(events_of(stream)) == ["a\u2028", "ü"]
        assert "\u2028" in stream.text

    @pytest.mark.parametrize("style", ["reasoning_content", "reasoning"])
    def test_reasoning_in_a_field_of_its_own(
        self, client: httpx.Client, upstream: Upstream, style: Any
    ) -> None:
        thought = do.ok("Four.", reasoning="Two and two", reasoning_style=style)
        upstream.script(thought, thought)
        body = ask(client).json()
        assert body["choices"][0]["message"][style] == "Two and two"
        assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3
        events = events_of(ask_stream(client))
        assert "".join(deltas_of(events, style)) == "Two and two"
        assert "".join(deltas_of(events)) == "Four."

    def test_reasoning_inside_think_tags(self, client: httpx.Client, upstream: Upstream) -> None:
        thought = do.ok("Four.", reasoning="Two and two", reasoning_style="think")
        upstream.script(thought, thought)
        expected = "<think>\nTwo and two\n</think>\n\nFour."
        assert text_of(ask(client)) == expected
        assert "".join(deltas_of(events_of(ask_stream(client)))) == expected

    def test_tool_calls_refusal_logprobs_parts_and_filter(
        self, client: httpx.Client, upstream: Upstream
    ) -> None:
        upstream.script(
            do.ok(tool_calls=[do.tool_call("f", {"a": 1}), do.tool_call("g", "{broken")]),
            do.ok(refusal="I will not."),
            do.ok("ab cd", logprobs=True),
            do.ok("parts", content_parts=True, prompt_filter=True),
        )
        tools, refusal, logprobs, parts = (ask(client).json() for _ in range(4))
        calls = tools["choices"][0]["message"]["tool_calls"]
        assert [call["function"]["arguments"] for call in calls] == ['{"a":1}', "{broken"]
        assert refusal["choices"][0]["message"]["refusal"] == "I will not."
        assert refusal["choices"][0]["message"]["content"] is None
        content = logprobs["choices"][0]["logprobs"]["content"]
        assert [entry["token"] for entry in content] == ["ab ", "cd"]
        assert parts["choices"][0]["message"]["content"] == [{"type": "text", "text": "parts"}]
        assert "prompt_filter_results" in parts

    def test_size_bytes_is_exact(self, client: httpx.Client, upstream: Upstream) -> None:
        upstream.script(do.ok(size_bytes=1_000_000), do.ok(size_bytes=5000))
        assert len(text_of(ask(client))) == 1_000_000
        assert [len(delta) for delta in deltas_of(events_of(ask_stream(client)))] == [1000] * 5

    def test_content_type_override(self, client: httpx.Client, upstream: Upstream) -> None:
        upstream.script(do.ok(content_type="text/plain"), do.ok(content_type="application/json"))
        assert ask(client).headers["content-type"] == "text/plain"
        assert ask_stream(client).headers["content-type"] == "application/json"

    @pytest.mark.parametrize("latency_ms", [3, 20])
    def test_latency_is_never_short(
        self, client: httpx.Client, upstream: Upstream, latency_ms: float
    ) -> None:
        ask(client)
        upstream.default(do.ok(latency_ms=latency_ms))
        spans_s = []
        for _ in range(10):
            start_s = time.perf_counter()
            ask(client)
            spans_s.append(time.perf_counter() - start_s)
        assert min(spans_s) >= latency_ms / 1000
        assert min(spans_s) < latency_ms / 1000 + 0.02

    def test_chunks_are_paced_without_drift(self, wire: Wire, upstream: Upstream) -> None:
        upstream.script(do.ok(chunks=["a", "b", "c", "d", "e"], chunk_delay_ms=10))
        start_s = time.perf_counter()
        wire.send(streamed())
        wire.read_until(b'"e"')
        assert 0.040 <= time.perf_counter() - start_s < 0.040 + SLACK_S

    def test_server_latencies_by_model(self) -> None:
        spans_s = {}
        with (
            Upstream(latency_ms=1, model_latency_ms={"slow": 30}) as own,
            client_for(own) as client,
        ):
            ask(client)
            for model in ("slow", "fast"):
                start_s = time.perf_counter()
                ask(client, model=model)
                spans_s[model] = time.perf_counter() - start_s
        assert spans_s["slow"] >= 0.030
        assert spans_s["fast"] < spans_s["slow"]

    @pytest.mark.parametrize(
        "make",
        [
            lambda: do.ok(latency_ms=-1),
            lambda: do.ok(size_bytes=10**9),
            lambda: do.stall("headers", 1000),
            lambda: do.trickle(0),
            lambda: do.status(99),
            lambda: do.sse(split_bytes=0),
        ],
    )
    def test_senseless_behaviours_are_refused_where_they_are_made(self, make: Any) -> None:
        with pytest.raises(ValueError, match="must"):
            make()


class TestStatus:
    def test_openai_error(self, client: httpx.Client, upstream: Upstream) -> None:
        upstream.script(
            do.status(
                400,
                message="Too long",
                error_type="invalid_request_error",
                error_code="context_length_exceeded",
                param="messages",
                headers={"X-Extra": "1"},
            )
        )
        answer = ask(client)
        assert answer.status_code == 400
        assert answer.headers["x-extra"] == "1"
        assert answer.json() == {
            "error": {
                "message": "Too long",
                "type": "invalid_request_error",
                "param": "messages",
                "code": "context_length_exceeded",
            }
        }

    def test_other_body_styles(self, client: httpx.Client, upstream: Upstream) -> None:
        upstream.script(
            do.status(
                429,
                message="Concurrency limit exceeded",
                body_style="string",
                fields={"concurrencyLimit": 5},
            ),
            do.status(500, message="Oops", body_style="text"),
            do.status(502, body_style="html"),
            do.status(500, body_style="empty"),
            do.overloaded(),
        )
        string, text, html, empty, overloaded = (ask(client) for _ in range(5))
        assert string.json()["error"] == "Concurrency limit exceeded"
        assert string.json()["concurrencyLimit"] == 5
        assert (text.text, text.headers["content-type"]) == ("Oops", "text/plain; charset=utf-8")
        assert html.text.startswith("<!DOCTYPE html>")
        assert empty.content == b""
        assert overloaded.status_code == 529
        assert overloaded.json()["error"]["type"] == "overloaded_error"

    def test_statuses_with_a_name(self, client: httpx.Client, upstream: Upstream) -> None:
        upstream.script(
            do.server_error(),
            do.server_error(504),
            do.quota_exhausted(),
            do.unknown_model(),
            do.redirect("https://example.com/", 308),
        )
        answers = [ask(client) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [500, 504, 402, 404, 308]
        assert answers[3].json()["error"]["code"] == "model_not_found"
        assert answers[4].headers["location"] == "https://example.com/"

    def test_rate_limit_says_when_to_come_back(
        self, client: httpx.Client, upstream: Upstream
    ) -> None:
        upstream.script(
            do.rate_limited(),
            do.rate_limited(1.5),
            do.rate_limited("soon"),
            do.rate_limited(http_date_in_s=30),
            do.rate_limited(retry_after_ms=250),
            do.rate_limited(reset_in_s=3599),
        )
        now_s = time.time()
        plain, seconds, words, date, ms, reset = (ask(client) for _ in range(6))
        assert {answer.status_code for answer in (plain, seconds, words, date, ms, reset)} == {429}
        assert "retry-after" not in plain.headers
        assert plain.json()["error"]["code"] == "rate_limit_exceeded"
        assert seconds.headers["retry-after"] == "1.5"
        assert words.headers["retry-after"] == "soon"
        at_s = parsedate_to_datetime(date.headers["retry-after"]).timestamp()
        assert now_s + 30 <= at_s < now_s + 32 + SLACK_S
        assert ms.headers["retry-after-ms"] == "250"
        body = reset.json()
        assert isinstance(body["error"], str)
        assert body["remainingMinutes"] == 60
        reset_s = datetime.fromisoformat(body["resetAt"]).timestamp()
        assert math.isclose(reset_s, now_s + 3599, abs_tol=2)
        assert "retry-after" not in reset.headers

    def test_status_waits_its_latency(self, client: httpx.Client, upstream: Upstream) -> None:
        upstream.script(do.status(500, latency_ms=20))
        start_s = time.perf_counter()
        ask(client)
        assert time.perf_counter() - start_s >= 0.020


class TestSlow:
    @pytest.mark.parametrize("before", ["headers", "first_chunk", "after_chunks"])
    @pytest.mark.parametrize("body", [chat(), streamed()], ids=["json", "stream"])
    def test_a_stalled_answer_goes_on(
        self, client: httpx.Client, upstream: Upstream, before: Any, body: dict[str, Any]
    ) -> None:
        upstream.script(do.stall(before, 0.03))
        start_s = time.perf_counter()
        answer = client.post("chat/completions", json=body)
        assert time.perf_counter() - start_s >= 0.03
        assert '"finish_reason":"stop"' in answer.text

    def test_nothing_comes_before_the_headers(self, wire: Wire, upstream: Upstream) -> None:
        upstream.script(do.stall("headers", 30))
        wire.send(chat())
        assert wire.is_silent_for(0.02)

    @pytest.mark.parametrize("body", [chat(), streamed()], ids=["json", "stream"])
    def test_only_headers_come_before_the_first_chunk(
        self, wire: Wire, upstream: Upstream, body: dict[str, Any]
    ) -> None:
        upstream.script(do.stall("first_chunk", 30))
        wire.send(body)
        assert wire.read_until(b"\r\n\r\n").endswith(b"\r\n\r\n")
        assert wire.is_silent_for(0.02)

    def test_so_many_chunks_come_before_a_stall(self, wire: Wire, upstream: Upstream) -> None:
        upstream.script(do.stall("after_chunks", 30, chunks=2, text="one two three"))
        wire.send(streamed())
        assert b"three" not in wire.read_until(b'"two "')
        assert wire.is_silent_for(0.02)

    def test_the_finish_reason_comes_before_a_stall_behind_it(
        self, wire: Wire, upstream: Upstream
    ) -> None:
        upstream.script(do.stall("after_finish", 30, text="one two"))
        wire.send(streamed())
        assert b"[DONE]" not in wire.read_until(b'"finish_reason":"stop"')
        assert wire.is_silent_for(0.02)

    def test_half_a_json_body_comes_before_a_stall(self, wire: Wire, upstream: Upstream) -> None:
        upstream.script(do.stall("after_chunks", 30))
        wire.send(chat())
        assert b'"usage"' not in wire.read_until(b"chatcmpl")
        assert wire.is_silent_for(0.02)

    @pytest.mark.parametrize("body", [chat(), streamed()], ids=["json", "stream"])
    def test_trickled_body(self, wire: Wire, upstream: Upstream, body: dict[str, Any]) -> None:
        upstream.script(do.trickle(0.004))
        wire.send(body)
        wire.read_until(b"\r\n\r\n")
        start_s = time.perf_counter()
        received = b"".join(wire.socket.recv(1) for _ in range(10))
        assert len(received) == 10
        assert time.perf_counter() - start_s >= 0.004
        wire.socket.close()
        assert upstream.wait_for(lambda now: now.in_flight == 0).aborted_by_client == 1

    def test_trickled_json_is_the_beginning_of_a_valid_answer(
        self, wire: Wire, upstream: Upstream
    ) -> None:
        upstream.script(do.trickle(0.002))
        wire.send(chat())
        assert b'{"id":"chat' in wire.read_until(b'{"id":"chat')

    def test_trickled_headers(self, wire: Wire, upstream: Upstream) -> None:
        upstream.script(do.trickle(0.002, what="headers"))
        wire.send(chat())
        assert wire.socket.recv(1) == b"H"
        received = wire.read_until(b"x-filler: aaa")
        assert received.startswith(b"TTP/1.1 200 OK\r\n")
        wire.socket.close()
        upstream.wait_for(lambda now: now.in_flight == 0)


class TestBrokenConnections:
    @pytest.mark.parametrize("how", ["rst", "fin"])
    @pytest.mark.parametrize("body", [chat(), streamed()], ids=["json", "stream"])
    def test_before_any_byte(
        self, wire: Wire, upstream: Upstream, how: Any, body: dict[str, Any]
    ) -> None:
        upstream.script(do.reset("accept", how=how))
        wire.send(body)
        assert wire.read_until_broken() == (b"", how)
        assert upstream.stats().dropped_by_server == 1

    @pytest.mark.parametrize("how", ["rst", "fin"])
    def test_after_headers(self, wire: Wire, upstream: Upstream, how: Any) -> None:
        upstream.script(do.reset("headers", how=how))
        wire.send(chat())
        received, end = wire.read_until_broken()
        assert received.startswith(b"HTTP/1.1 200 OK\r\n")
        assert received.endswith(b"\r\n\r\n")
        assert end == how

    @pytest.mark.parametrize("how", ["rst", "fin"])
    def test_after_some_chunks(self, wire: Wire, upstream: Upstream, how: Any) -> None:
        upstream.script(do.reset("chunks", chunks=2, how=how, text="one two three"))
        wire.send(streamed())
        received, end = wire.read_until_broken()
        assert b'"two "' in received
        assert b"three" not in received
        assert not received.endswith(b"0\r\n\r\n")
        assert end == how

    @pytest.mark.parametrize("how", ["rst", "fin"])
    def test_after_the_finish_reason(self, wire: Wire, upstream: Upstream, how: Any) -> None:
        upstream.script(do.reset("finish", how=how, text="one two"))
        wire.send(streamed())
        received, end = wire.read_until_broken()
        assert b'"finish_reason":"stop"' in received
        assert b"[DONE]" not in received
        assert not received.endswith(b"0\r\n\r\n")
        assert end == how

    def test_in_the_middle_of_json(self, wire: Wire, upstream: Upstream) -> None:
        upstream.script(do.reset("chunks"))
        wire.send(chat())
        received, end = wire.read_until_broken()
        assert b"chatcmpl" in received
        assert b'"usage"' not in received
        assert end == "rst"

    @pytest.mark.parametrize("after_ms", [0, 2])
    def test_idle_connection_is_closed_after_a_keep_alive_answer(
        self, wire: Wire, upstream: Upstream, after_ms: float
    ) -> None:
        upstream.script(do.close_keepalive(after_ms))
        wire.send(chat())
        received = wire.read_to_end()
        assert b"connection: close" not in received
        assert received.endswith(b"}}}")
        stats = upstream.stats()
        assert stats.answered == {200: 1}
        assert (stats.aborted_by_client, stats.dropped_by_server) == (0, 0)

    def test_a_connection_in_use_again_is_not_closed(self, wire: Wire, upstream: Upstream) -> None:
        upstream.script(do.close_keepalive(60), do.stall("headers", 0.09))
        wire.send(chat())
        wire.read_until(b"}}}")
        wire.send(chat())
        wire.read_until(b"}}}")

    @pytest.mark.parametrize("how", ["rst", "fin"])
    def test_drop_on_reuse_answers_new_connections_only(
        self, wire: Wire, client: httpx.Client, upstream: Upstream, how: Any
    ) -> None:
        upstream.script(do.drop_on_reuse(how))
        wire.send(chat())
        wire.read_until(b"}}}")
        assert ask(client).status_code == 200
        wire.send(chat())
        assert wire.read_until_broken() == (b"", how)
        assert upstream.stats().scripted == 0


class TestMalformed:
    def bodies(self, client: httpx.Client, upstream: Upstream, kind: Any) -> list[httpx.Response]:
        upstream.script(do.malformed(kind), do.malformed(kind))
        answers = [ask(client), ask_stream(client)]
        assert {answer.status_code for answer in answers} == {200}
        return answers

    @pytest.mark.parametrize("kind", ["truncated_json", "not_json"])
    def test_not_json(self, client: httpx.Client, upstream: Upstream, kind: str) -> None:
        whole, stream = self.bodies(client, upstream, kind)
        for text in (whole.text, stream.text.removeprefix("data: ").partition("\n")[0]):
            assert text
            with pytest.raises(json.JSONDecodeError):
                json.loads(text)

    def test_valid_json_of_the_wrong_shape(self, client: httpx.Client, upstream: Upstream) -> None:
        whole, stream = self.bodies(client, upstream, "no_choices")
        assert "choices" not in whole.json()
        assert "choices" not in events_of(stream)[0]
        whole, stream = self.bodies(client, upstream, "empty_choices")
        assert whole.json()["choices"] == events_of(stream)[0]["choices"] == []
        whole, stream = self.bodies(client, upstream, "json_array")
        assert isinstance(whole.json(), list)
        assert isinstance(events_of(stream)[0], list)

    def test_html_empty_invalid_utf8_and_nan(
        self, client: httpx.Client, upstream: Upstream
    ) -> None:
        for answer in self.bodies(client, upstream, "html"):
            assert answer.headers["content-type"].startswith("text/html")
        for answer in self.bodies(client, upstream, "empty_body"):
            assert answer.content == b""
        for answer in self.bodies(client, upstream, "invalid_utf8"):
            with pytest.raises(UnicodeDecodeError):
                answer.content.decode()
        for answer in self.bodies(client, upstream, "nan"):
            assert '"prompt_tokens":NaN' in answer.text

    @pytest.mark.parametrize("body", [chat(), streamed()], ids=["json", "stream"])
    def test_body_shorter_than_its_content_length(
        self, client: httpx.Client, upstream: Upstream, body: dict[str, Any]
    ) -> None:
        upstream.script(do.malformed("short_body"))
        with pytest.raises(httpx.RemoteProtocolError, match="complete message body"):
            client.post("chat/completions", json=body)

    def test_gzip_is_a_whole_answer(
        self, client: httpx.Client, wire: Wire, upstream: Upstream
    ) -> None:
        whole, stream = self.bodies(client, upstream, "gzip")
        assert text_of(whole) == "".join(deltas_of(events_of(stream)))
        upstream.script(do.malformed("gzip"))
        wire.send(chat())
        head, _, body = wire.read_until(b"\r\n\r\n").partition(b"\r\n\r\n")
        assert b"content-encoding: gzip" in head
        assert json.loads(gzip.decompress(body))["object"] == "chat.completion"


class TestEventStream:
    def raw(self, client: httpx.Client, upstream: Upstream, **options: Any) -> bytes:
        upstream.script(do.sse(**options))
        return ask_stream(client).content

    def test_line_ends(self, client: httpx.Client, upstream: Upstream) -> None:
        crlf = self.raw(client, upstream, line_end="\r\n")
        assert crlf.endswith(b"data: [DONE]\r\n\r\n")
        assert b"\n" not in crlf.replace(b"\r\n", b"")
        bare_cr = self.raw(client, upstream, line_end="\r")
        assert bare_cr.endswith(b"data: [DONE]\r\r")
        assert b"\n" not in bare_cr

    def test_comments_names_and_no_space(self, client: httpx.Client, upstream: Upstream) -> None:
        raw = self.raw(client, upstream, comments=True, event_names=True, space=False)
        assert raw.startswith(b": keep-alive\n\ndata:{")
        assert raw.endswith(b": keep-alive\n\nevent: done\ndata:[DONE]\n\n")

    def test_signs_of_life_as_data(self, client: httpx.Client, upstream: Upstream) -> None:
        raw = self.raw(client, upstream, keep_alive="ping")
        first, second, *_, last, end = raw.split(b"\n\n")
        assert (first, second[:7], last, end) == (b"data: ping", b"data: {", b"data: [DONE]", b"")
        assert raw.count(b"data: ping\n\n") == raw.count(b"data: ") / 2

    def test_several_data_lines_join_to_one_object(
        self, client: httpx.Client, upstream: Upstream
    ) -> None:
        event = self.raw(client, upstream, data_lines=True, text="Hi").split(b"\n\n")[1]
        lines = [line.removeprefix(b"data: ") for line in event.split(b"\n")]
        assert len(lines) > 5
        assert json.loads(b"\n".join(lines))["choices"][0]["delta"]["content"] == "Hi"

    def test_byte_order_mark(self, client: httpx.Client, upstream: Upstream) -> None:
        assert self.raw(client, upstream, bom=True).startswith(b"\xef\xbb\xbfdata: {")

    def test_ends_of_a_stream(self, client: httpx.Client, upstream: Upstream) -> None:
        without_done = self.raw(client, upstream, done=False)
        assert b"[DONE]" not in without_done
        assert b'"finish_reason":"stop"' in without_done
        assert self.raw(client, upstream, final_newline=False).endswith(b"data: [DONE]")
        without_finish = self.raw(client, upstream, finish=False)
        assert b'"finish_reason":"' not in without_finish
        assert b"[DONE]" in without_finish
        cut = self.raw(client, upstream, cut=True, text="Some text")
        assert b'"text"' in cut
        assert b'"finish_reason":"' not in cut
        assert b"[DONE]" not in cut

    def test_places_of_usage(self, client: httpx.Client, upstream: Upstream) -> None:
        def usages(usage_in: Any) -> list[Any]:
            upstream.script(do.sse(usage_in=usage_in, text="one two"))
            events = events_of(ask_stream(client, stream_options={"include_usage": True}))
            return [event.get("usage", "none") for event in events if event != "[DONE]"]

        *before, last = usages("asked")
        assert before == [None, None, None, None]
        assert last["total_tokens"] > 0
        assert usages("missing") == ["none"] * 4
        assert usages("null") == [None] * 4
        *before, last = usages("last")
        assert before == ["none"] * 3
        assert last["completion_tokens"] == 2
        assert [usage["completion_tokens"] for usage in usages("every")] == [0, 1, 2, 2]

    def test_split_at_any_byte(self, wire: Wire, upstream: Upstream) -> None:
        upstream.script(do.sse(split_bytes=3, text="äöü€"))
        wire.send(streamed())
        *pieces, last = chunks_of(wire.read_until(b"\r\n0\r\n\r\n"))
        assert {len(piece) for piece in pieces} == {3}
        assert "äöü€" in b"".join([*pieces, last]).decode()
        with pytest.raises(UnicodeDecodeError):
            [piece.decode() for piece in pieces]

    def test_one_huge_event(self, client: httpx.Client, upstream: Upstream) -> None:
        upstream.script(do.sse(event_bytes=1_000_000))
        events = events_of(ask_stream(client))
        assert [len(delta) for delta in deltas_of(events)] == [1_000_000]

    @pytest.mark.parametrize("error", [{"message": "Overloaded", "code": 503}, "Overloaded"])
    @pytest.mark.parametrize("after", [0, 1])
    def test_error_inside_a_200(
        self, client: httpx.Client, upstream: Upstream, error: Any, after: int
    ) -> None:
        upstream.script(do.sse(error=error, error_after=after, text="one two"))
        answer = ask_stream(client)
        events = events_of(answer)
        assert answer.status_code == 200
        assert deltas_of(events[:-2]) == ["one "][:after]
        assert events[-2]["error"] == error
        assert events[-1] == "[DONE]"

    def test_an_error_without_its_key(self, client: httpx.Client, upstream: Upstream) -> None:
        error = {"message": "Overloaded", "code": 529}
        upstream.script(do.sse(error=error, error_key=False))
        assert events_of(ask_stream(client))[-2] == error

    @pytest.mark.parametrize("tool_index", [True, False])
    def test_tool_call_fragments(
        self, client: httpx.Client, upstream: Upstream, tool_index: bool
    ) -> None:
        call = do.tool_call("weather", {"city": "Oslo"}, "call_1")
        upstream.script(do.sse(tool_calls=[call], tool_fragments=4, tool_index=tool_index))
        events = events_of(ask_stream(client))
        fragments = [delta[0] for delta in deltas_of(events, "tool_calls")]
        assert len(fragments) == 5
        assert fragments[0]["id"] == "call_1"
        joined = "".join(fragment["function"]["arguments"] for fragment in fragments)
        assert json.loads(joined) == {"city": "Oslo"}
        assert all(("index" in fragment) is tool_index for fragment in fragments)
        assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"

    def test_content_as_parts_and_first_chunk_without_choices(
        self, client: httpx.Client, upstream: Upstream
    ) -> None:
        upstream.script(do.ok("Hi", content_parts=True, prompt_filter=True))
        events = events_of(ask_stream(client))
        assert events[0]["choices"] == []
        assert "prompt_filter_results" in events[0]
        assert deltas_of(events) == [[{"type": "text", "text": "Hi"}]]

    def test_n_choices_are_interleaved(self, client: httpx.Client) -> None:
        events = events_of(ask_stream(client, n=2))
        indices = [event["choices"][0]["index"] for event in events if event != "[DONE]"]
        assert indices[:6] == [0, 1, 0, 1, 0, 1]

    def test_json_for_stream_and_stream_for_json(
        self, client: httpx.Client, upstream: Upstream
    ) -> None:
        upstream.script(do.json_for_stream(text="a"), do.sse_for_json(), do.sse_for_json())
        assert text_of(ask_stream(client)) == "a"
        for answer in (ask(client), ask_stream(client)):
            events = events_of(answer)
            assert "".join(deltas_of(events)).startswith("You said")
            assert events[-2]["usage"]["total_tokens"] > 0


class TestResponsesEvents:
    def events(self, answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
        parsed = []
        for event in answer.text.split("\n\n")[:-1]:
            name, data = event.split("\n")
            parsed.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
        return parsed

    def test_completed(self, client: httpx.Client, upstream: Upstream) -> None:
        upstream.script(
            do.responses(
                text="one two",
                reasoning="because",
                tool_calls=[do.tool_call("weather", {"city": "Oslo"})],
            )
        )
        events = self.events(ask_stream(client))
        assert [name for name, _ in events] == [
            "response.created",
            "response.reasoning_summary_text.delta",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_item.done",
            "response.output_item.done",
            "response.completed",
        ]
        assert all(name == data["type"] for name, data in events)
        call = events[5][1]["item"]
        assert (call["type"], call["name"]) == ("function_call", "weather")
        usage = events[-1][1]["response"]["usage"]
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]

    @pytest.mark.parametrize("ending", ["failed", "incomplete"])
    def test_other_endings(self, client: httpx.Client, upstream: Upstream, ending: Any) -> None:
        upstream.script(do.responses(ending=ending, text="one"))
        name, data = self.events(ask_stream(client))[-1]
        assert name == f"response.{ending}"
        assert data["response"]["status"] == ending
        assert (data["response"]["error"] is None) is (ending == "incomplete")
        assert (data["response"]["incomplete_details"] is None) is (ending == "failed")

    def test_for_a_call_without_stream(self, client: httpx.Client, upstream: Upstream) -> None:
        upstream.script(do.sse_for_json(do.responses(event_names=False)))
        assert ask(client).text.startswith('data: {"type":"response.created"')


class TestWrongUsage:
    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            ("negative", {"prompt_tokens": -12}),
            ("strings", {"prompt_tokens": "12"}),
            ("missing_fields", {"total_tokens": 20}),
            ("floats", {"completion_tokens": 8.5}),
            ("input_output_names", {"input_tokens": 12, "output_tokens": 8}),
            ("cache_hit_names", {"prompt_cache_hit_tokens": 4}),
            ("provider_cost", {"cost": 0.00123}),
        ],
    )
    def test_usage_is_sent_as_it_is(
        self, client: httpx.Client, upstream: Upstream, kind: Any, expected: dict[str, Any]
    ) -> None:
        upstream.script(do.wrong_usage(kind), do.wrong_usage(kind))
        whole = ask(client).json()["usage"]
        stream = events_of(ask_stream(client, stream_options={"include_usage": True}))
        assert whole.items() >= expected.items()
        assert stream[-2]["usage"] == whole

    def test_missing_and_null(self, client: httpx.Client, upstream: Upstream) -> None:
        upstream.script(do.wrong_usage("missing"), do.wrong_usage("null"))
        assert "usage" not in ask(client).json()
        assert ask(client).json()["usage"] is None


class TestLife:
    def test_one_line_says_where_it_listens(self) -> None:
        command = [sys.executable, "-m", "devtools.upstream", "--host=::1"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            ready = json.loads(process.stdout.readline())
            assert ready == {
                "url": f"http://[::1]:{ready['port']}/v1",
                "port": ready["port"],
                "pid": process.pid,
            }
            with socket.create_connection(("::1", ready["port"]), timeout=5) as connection:
                wire = Wire(connection)
                wire.send(chat())
                assert wire.read_until(b"}}}").startswith(b"HTTP/1.1 200 OK")
                process.stdin.close()
                assert process.stdout.read() == b""
        assert process.returncode == 0

    def test_sigterm_ends_it_in_the_middle_of_an_answer(self) -> None:
        own = Upstream()
        own.default(do.stall("headers", 60))
        with socket.create_connection(("127.0.0.1", own.port), timeout=5) as connection:
            wire = Wire(connection)
            wire.send(chat())
            own.wait_for(lambda now: now.in_flight == 1)
            os.kill(own.pid, signal.SIGTERM)
            assert wire.read_until_broken()[0] == b""
        own.close()
        with pytest.raises(UpstreamError, match="does not answer"):
            own.stats()

    def test_the_same_port_can_be_taken_again(self) -> None:
        with Upstream() as first:
            port = first.port
            with socket.create_connection(("127.0.0.1", port)):
                first.close()
        with Upstream(port=port) as second:
            assert second.port == port
            assert isinstance(second.stats(), Stats)

    def test_a_port_in_use_is_an_error(self, upstream: Upstream) -> None:
        with pytest.raises(UpstreamError, match="ended with status"):
            Upstream(port=upstream.port)

    def test_it_ends_when_its_parent_does(self) -> None:
        """The parent exits at once; standard input stays open in this process."""
        launcher = (
            "import subprocess, sys\n"
            "process = subprocess.Popen([sys.executable, '-m', 'devtools.upstream'], stdin=0)\n"
            "sys.stdin.readline()\n"
        )
        parent = subprocess.Popen(
            [sys.executable, "-c", launcher], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with parent:
            assert parent.stdout is not None
            assert parent.stdin is not None
            json.loads(parent.stdout.readline())
            parent.kill()
            assert parent.stdout.read() == b""  # the server held this pipe, too
            parent.stdin.close()

    def test_it_works_in_a_process_that_gevent_has_patched(self) -> None:
        script = (
            "from gevent import monkey; monkey.patch_all()\n"
            "from devtools.upstream import Upstream\n"
            "from devtools.upstream import behaviours as do\n"
            "import http.client, json\n"
            "with Upstream() as upstream:\n"
            "    upstream.script(do.status(418))\n"
            "    connection = http.client.HTTPConnection('127.0.0.1', upstream.port)\n"
            f"    headers = {{'authorization': 'Bearer {KEY}'}}\n"
            f"    body = json.dumps({chat()!r})\n"
            "    connection.request('POST', '/v1/chat/completions', body, headers)\n"
            "    print(connection.getresponse().status, upstream.stats().calls)\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, check=True, text=True, timeout=20
        )
        assert run.stdout == "418 1\n"
