"""One request over a real wire: every fault of the simulated gateway, odd HTTP, time and size."""

import gzip
import json
import struct
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from devtools.upstream import Upstream
from devtools.upstream import behaviours as do
from holysheep import config
from holysheep.engine import Answer, Engine
from holysheep.errors import (
    AuthError,
    BadRequest,
    BadResponse,
    ConnectFailed,
    DeadlineExceeded,
    HolySheepError,
    LimitBeyondDeadline,
    QuotaExhausted,
    RateLimited,
    Redirected,
    ServerError,
    TimedOut,
    TransientConflict,
    UnknownModel,
)
from holysheep.ports import SystemClock
from holysheep.quirks import Quirks
from holysheep.registry import Registry
from holysheep.settings import Settings
from holysheep.transport import ChatTransport
from holysheep.types import ChatRequest, Completed, Completion, Delta, Policy, Trace, Usage
from tests.engine.raw_servers import (
    KEY,
    Asker,
    Link,
    RawServer,
    answer,
    chat_body,
    chunk,
    chunked,
    closed_port,
    events,
    forget_proxies,
    replies,
    stream_body,
)
from tests.fakes import START_S, FakeClock, ScriptedGateway, a_call, a_request

SLACK_S = 0.4
"""How late a cut may come on a busy machine. That none comes early is asserted exactly."""
RETRIES = 2
MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)


@pytest.fixture
def asker(upstream: Upstream) -> Iterator[Asker]:
    with Asker(upstream.url) as asker:
        yield asker
        assert asker.pool.in_use == 0
    assert upstream.stats().errors == ()


class Library:
    """Whole engines for one gateway, without limits, that wait nowhere between attempts."""

    def __init__(self, url: str) -> None:
        self._registry = Registry(clock=SystemClock(), rng=lambda: 0.0)
        self._url = url

    def engine(self, key: str = KEY) -> Engine:
        return self._registry.engine(Settings(key, base_url=self._url, requests_per_minute=0))

    def call(
        self, *, stream: bool, timeout_s: float = 5.0, key: str = KEY, retries: int = RETRIES
    ) -> Answer:
        request = ChatRequest({"model": "m-1", "messages": MESSAGES})
        policy = Policy(cache="bypass", max_retries=retries)
        return self.engine(key).ask(request, policy, timeout_s=timeout_s, stream=stream)

    def error(self, *, stream: bool, **options: Any) -> HolySheepError:
        """What a caller gets; always an error."""
        with pytest.raises(HolySheepError) as caught:
            self.call(stream=stream, **options).wait()
        message = caught.value.message
        assert len(message.splitlines()) == 1
        assert message.isprintable()
        assert message.endswith((".", ")", "…"))
        assert KEY not in message
        return caught.value

    def close(self) -> None:
        self._registry.close()


@pytest.fixture
def library(upstream: Upstream) -> Iterator[Library]:
    library = Library(upstream.url)
    yield library
    library.close()
    assert upstream.stats().errors == ()


both_ways = pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])


class TestRequest:
    def test_nobody_watches_so_plain_json_is_asked_for(
        self, upstream: Upstream, asker: Asker
    ) -> None:
        asker.ask()
        assert upstream.requests()[-1]["json"] == {"model": "m-1", "messages": MESSAGES}

    def test_somebody_watches_so_a_stream_is_asked_for(
        self, upstream: Upstream, asker: Asker
    ) -> None:
        asker.ask(stream=True)
        sent = upstream.requests()[-1]["json"]
        assert sent["stream"] is True
        assert sent["stream_options"] == {"include_usage": True}

    def test_pieces_arrive_while_the_answer_is_still_being_sent(
        self, upstream: Upstream, asker: Asker
    ) -> None:
        upstream.script(do.ok(chunks=["a", "b", "c"], chunk_delay_ms=60))
        began_s = time.monotonic()
        seen = [
            (event.text, time.monotonic() - began_s)
            for event in asker.events(stream=True)
            if isinstance(event, Delta)
        ]
        assert [text for text, _ in seen] == ["a", "b", "c"]
        assert seen[0][1] < 0.06
        assert 0.06 <= seen[1][1] < seen[2][1]

    @pytest.mark.parametrize(
        ("auth_header", "headers"),
        [
            ("bearer", {"authorization": f"Bearer {KEY}"}),
            ("x-api-key", {"x-api-key": KEY}),
            ("both", {"authorization": f"Bearer {KEY}", "x-api-key": KEY}),
        ],
    )
    def test_the_key_goes_where_the_credential_says(
        self, upstream: Upstream, auth_header: Any, headers: dict[str, str]
    ) -> None:
        registry = Registry()
        engine = registry.engine(Settings(KEY, base_url=upstream.url, auth_header=auth_header))
        engine.ask(ChatRequest({"model": "m", "messages": MESSAGES}), Policy(), timeout_s=5).wait()
        registry.close()
        sent = upstream.requests()[-1]
        names = ("authorization", "x-api-key")
        assert {name: sent["headers"][name] for name in names if name in sent["headers"]} == headers
        assert KEY not in sent["path"]
        assert sent["headers"]["content-type"] == "application/json"
        assert sent["headers"]["host"] == f"127.0.0.1:{upstream.port}"

    def test_a_base_url_may_have_a_path_of_its_own(self) -> None:
        with RawServer(replies(answer(chat_body()))) as server:
            with Asker(f"{server.origin}/a/b%20c/v1") as asker:
                asker.ask()
            assert server.requests[0].line == "POST /a/b%20c/v1/chat/completions HTTP/1.1"

    def test_unusual_characters_arrive_whole(self) -> None:
        text = "\u2028 é 中 🐑 \x00 \U0001f3f3\ufe0f"
        with RawServer(replies(answer(chat_body()))) as server, Asker(server.url) as asker:
            asker.ask(text)
            assert server.requests[0].text == text

    def test_a_passed_deadline_sends_nothing(self, upstream: Upstream, asker: Asker) -> None:
        with pytest.raises(DeadlineExceeded):
            asker.ask(timeout_s=-1)
        assert upstream.stats().calls == 0


class TestGoodAnswers:
    """All spellings that are right, asked for as a stream and not."""

    TEXT = "Grüße aus \u2028 Köln 🐑!"

    @pytest.mark.parametrize(
        "behaviour",
        [
            pytest.param(do.ok(chunks=["Grüße aus ", "\u2028 Köln 🐑!"]), id="plain"),
            pytest.param(do.json_for_stream(text=TEXT), id="JSON for a stream"),
            pytest.param(do.sse_for_json(do.sse(text=TEXT, usage_in="last")), id="SSE for JSON"),
            pytest.param(
                do.sse_for_json(do.responses(text=TEXT)), id="events of the Responses API for JSON"
            ),
            pytest.param(do.sse(text=TEXT, line_end="\r\n"), id="CRLF"),
            pytest.param(do.sse(text=TEXT, line_end="\r"), id="CR"),
            pytest.param(do.sse(text=TEXT, space=False), id="no space"),
            pytest.param(do.sse(text=TEXT, bom=True), id="byte order mark"),
            pytest.param(do.sse(text=TEXT, comments=True), id="comments"),
            pytest.param(do.sse(text=TEXT, data_lines=True), id="several data lines"),
            pytest.param(do.sse(text=TEXT, event_names=True), id="event names"),
            pytest.param(do.sse(text=TEXT, keep_alive="ping"), id="pings as data"),
            pytest.param(do.sse(text=TEXT, keep_alive=": keepalive"), id="comments as data"),
            pytest.param(do.sse(text=TEXT, done=False), id="no DONE"),
            pytest.param(do.sse(text=TEXT, final_newline=False), id="no final newline"),
            pytest.param(do.sse(text=TEXT, done=False, final_newline=False), id="neither"),
            pytest.param(do.sse(text=TEXT, finish=False), id="no finish reason"),
            pytest.param(do.sse(text=TEXT, usage_in="last"), id="usage in the last chunk"),
            pytest.param(do.sse(text=TEXT, usage_in="every"), id="usage in every chunk"),
            pytest.param(do.sse(text=TEXT, usage_in="null"), id="usage is null"),
            pytest.param(do.sse(text=TEXT, usage_in="missing"), id="usage is missing"),
            pytest.param(do.sse(text=TEXT, split_bytes=1), id="single bytes"),
            pytest.param(do.sse(text=TEXT, split_bytes=7), id="seven bytes at a time"),
            pytest.param(do.sse(text=TEXT, bom=True, split_bytes=2), id="a cut byte order mark"),
            pytest.param(do.responses(text=TEXT), id="Responses API"),
            pytest.param(do.responses(text=TEXT, event_names=False), id="Responses API, no names"),
            pytest.param(do.ok(text=TEXT, content_parts=True), id="content in parts"),
            pytest.param(do.ok(text=TEXT, prompt_filter=True), id="Azure's filter chunk"),
            pytest.param(do.ok(text=TEXT, content_type="text/plain"), id="text/plain"),
            pytest.param(do.ok(text=TEXT, content_type=None, logprobs=True), id="logprobs"),
            pytest.param(do.ok(refusal=TEXT), id="refusal"),
            pytest.param(do.close_keepalive(0, text=TEXT), id="closed at once"),
        ],
    )
    @both_ways
    def test_text(self, upstream: Upstream, asker: Asker, behaviour: Any, *, stream: bool) -> None:
        upstream.script(behaviour)
        trace = Trace(0.0)
        completion = asker.ask(stream=stream, trace=trace)
        assert completion.first.text == self.TEXT
        assert completion.first.finish_reason == "stop"
        assert completion.request_id == trace.request_id
        assert str(trace.request_id).startswith("req_")
        assert trace.attempts == 1

    @pytest.mark.parametrize("style", ["reasoning_content", "reasoning", "think"])
    @both_ways
    def test_reasoning(self, upstream: Upstream, asker: Asker, style: Any, *, stream: bool) -> None:
        upstream.script(do.ok("So.", reasoning="Because it is.", reasoning_style=style))
        choice = asker.ask(stream=stream).first
        assert (choice.reasoning.strip("\n"), choice.text) == ("Because it is.", "So.")

    @pytest.mark.parametrize(
        "behaviour",
        [
            do.ok(tool_calls=[do.tool_call("f", {"x": "é"}, "id-1")]),
            do.sse(tool_calls=[do.tool_call("f", {"x": "é"}, "id-1")], tool_fragments=5),
            do.sse(tool_calls=[do.tool_call("f", {"x": "é"}, "id-1")], tool_index=False),
            do.responses(tool_calls=[do.tool_call("f", {"x": "é"}, "id-1")]),
        ],
        ids=["plain", "fragments", "no index", "Responses API"],
    )
    @both_ways
    def test_tool_calls(
        self, upstream: Upstream, asker: Asker, behaviour: Any, *, stream: bool
    ) -> None:
        upstream.script(behaviour)
        choice = asker.ask(stream=stream).first
        call = choice.tool_calls[0]
        assert (call["id"], call["function"]["name"]) == ("id-1", "f")
        assert json.loads(call["function"]["arguments"]) == {"x": "é"}
        assert choice.finish_reason == "tool_calls"

    @pytest.mark.parametrize("reason", ["length", "content_filter", "stop", "tool_calls"])
    @both_ways
    def test_finish_reason(
        self, upstream: Upstream, asker: Asker, reason: str, *, stream: bool
    ) -> None:
        upstream.script(do.ok("cut", finish_reason=reason))
        assert asker.ask(stream=stream).first.finish_reason == reason

    def test_an_incomplete_response(self, upstream: Upstream, asker: Asker) -> None:
        upstream.script(do.responses(text="cut", ending="incomplete"))
        assert asker.ask(stream=True).first.finish_reason == "length"

    def test_the_model_that_served(self, upstream: Upstream, asker: Asker) -> None:
        upstream.script(do.ok("x", model="m-1-2026"))
        completion = asker.ask()
        assert (completion.asked_model, completion.model) == ("m-1", "m-1-2026")

    @both_ways
    def test_several_answers(self, asker: Asker, *, stream: bool) -> None:
        completion = asker.ask(stream=stream, n=3)
        assert [choice.index for choice in completion.choices] == [0, 1, 2]
        assert len({choice.text for choice in completion.choices}) == 3

    @both_ways
    def test_a_compressed_answer(self, upstream: Upstream, asker: Asker, *, stream: bool) -> None:
        upstream.script(do.malformed("gzip"))
        assert asker.ask(stream=stream).first.text.startswith("You said: Hello")

    def test_a_compressed_stream_is_shown_as_it_arrives(self) -> None:
        packer = zlib.compressobj(wbits=31)
        parts = [
            packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH)
            for part in stream_body("hello").split(b"\n\n")
            for part in [part + b"\n\n"]
        ]

        def serve(link: Link) -> None:
            link.read_request()
            link.send(chunked(*parts[:1], headers={"content-encoding": "gzip"}, end=False))
            time.sleep(0.1)
            link.send(b"".join(map(chunk, [*parts[1:], packer.flush()])) + b"0\r\n\r\n")

        with RawServer(serve) as server, Asker(server.url) as asker:
            began_s = time.monotonic()
            answered = asker.events(stream=True)
            assert next(answered) == Delta("hello")
            assert time.monotonic() - began_s < 0.1
            assert isinstance(list(answered)[-1], Completed)


class TestUsage:
    @pytest.mark.parametrize(
        ("kind", "counts"),
        [
            ("input_output_names", (12, 8, 4, 2)),
            ("cache_hit_names", (12, 8, 4, 0)),
            ("provider_cost", (12, 8, 0, 0)),
        ],
    )
    @both_ways
    def test_other_spellings(
        self, upstream: Upstream, asker: Asker, kind: Any, counts: Any, *, stream: bool
    ) -> None:
        upstream.script(do.wrong_usage(kind))
        usage = asker.ask(stream=stream).usage
        assert counts == (
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            usage.reasoning_tokens,
        )
        assert not usage.estimated

    @pytest.mark.parametrize(
        "kind", ["negative", "strings", "missing_fields", "missing", "null", "floats"]
    )
    @both_ways
    def test_what_cannot_be_used_is_estimated(
        self, upstream: Upstream, asker: Asker, kind: Any, *, stream: bool
    ) -> None:
        upstream.script(do.wrong_usage(kind, text="an answer of some words"))
        usage = asker.ask(stream=stream).usage
        assert usage.estimated
        assert usage.prompt_tokens > 0
        assert usage.completion_tokens > 0


class TestFaults:
    """What a caller of the library gets for each fault: class, message, attempts."""

    AGAIN = RETRIES + 1

    @pytest.mark.parametrize(
        ("behaviour", "kind", "words", "attempts"),
        [
            (do.status(400), BadRequest, "did not accept the request (HTTP 400)", 1),
            (do.status(400, body_style="empty"), BadRequest, "(HTTP 400).", 1),
            (do.status(400, body_style="text", message="No."), BadRequest, "(HTTP 400).", 1),
            (do.status(400, body_style="string", message="No"), BadRequest, "It says: No.", 1),
            (do.status(400, body_style="anthropic", message="No"), BadRequest, "It says: No.", 1),
            (do.status(400, body_style="html"), BadRequest, "web page; check the base URL", 1),
            (do.status(401), AuthError, "refused the API key (HTTP 401). Check the key", 1),
            (do.status(403), AuthError, "does not allow this API key", 1),
            (do.status(405), BadRequest, "(HTTP 405)", 1),
            (do.status(413), BadRequest, "(HTTP 413)", 1),
            (do.status(422), BadRequest, "(HTTP 422)", 1),
            (do.unknown_model(), UnknownModel, "does not know the model 'm-1' (HTTP 404)", 1),
            (do.unknown_model(400), UnknownModel, "does not know the model 'm-1' (HTTP 400)", 1),
            (do.quota_exhausted(), QuotaExhausted, "Daily cost limit exceeded. Top it up", 1),
            (do.quota_exhausted(body_style="openai"), QuotaExhausted, "(HTTP 402)", 1),
            (do.status(408), TransientConflict, "(HTTP 408)", AGAIN),
            (do.status(409), TransientConflict, "(HTTP 409)", AGAIN),
            (do.status(425), TransientConflict, "(HTTP 425)", AGAIN),
            (do.rate_limited(0.01), RateLimited, "Rate limit reached for requests.", AGAIN),
            (do.rate_limited(retry_after_ms=10), RateLimited, "It asks to wait 0.01 s.", AGAIN),
            (do.rate_limited(reset_in_s=0.05), RateLimited, "(HTTP 429)", AGAIN),
            (do.rate_limited(0, body_style="text"), RateLimited, "(HTTP 429)", AGAIN),
            (do.rate_limited(60), LimitBeyondDeadline, "after the deadline of this call", 1),
            (do.rate_limited(http_date_in_s=60), LimitBeyondDeadline, "It resets in", 1),
            (do.rate_limited(reset_in_s=7200), LimitBeyondDeadline, "It resets in 7", 1),
            (do.server_error(), ServerError, "The gateway failed (HTTP 500).", AGAIN),
            (do.server_error(502, body_style="html"), ServerError, "a web page", AGAIN),
            (do.server_error(503, body_style="empty"), ServerError, "Try again later.", AGAIN),
            (do.server_error(504, body_style="text"), ServerError, "(HTTP 504)", AGAIN),
            (do.server_error(599, body_style="string"), ServerError, "(HTTP 599)", AGAIN),
            (do.overloaded(), ServerError, "(HTTP 529). It says: Overloaded.", AGAIN),
            (do.outage(), ServerError, "temporarily unavailable", AGAIN),
            (do.redirect("http://127.0.0.1:1/"), Redirected, "redirect (HTTP 307)", 1),
            (do.redirect("/v1/models", 301), Redirected, "which is not followed", 1),
            (do.redirect("/v1/models", 302), Redirected, "Check the base URL", 1),
            (do.malformed("truncated_json"), HolySheepError, "", AGAIN),
            (do.malformed("not_json"), BadResponse, "is not valid JSON", AGAIN),
            (do.malformed("html"), BadResponse, "web page", AGAIN),
            (do.malformed("no_choices"), BadResponse, "has no choices", AGAIN),
            (do.malformed("empty_choices"), BadResponse, "has no choices", AGAIN),
            (do.malformed("json_array"), BadResponse, "is no JSON object", AGAIN),
            (do.malformed("empty_body"), HolySheepError, "", AGAIN),
            (do.malformed("nan"), BadResponse, "is not valid JSON", AGAIN),
            (do.reset("accept"), ConnectFailed, "connection to the gateway broke", AGAIN),
            (do.reset("accept", how="fin"), ConnectFailed, "broke before", AGAIN),
            (do.reset("headers"), ConnectFailed, "broke before the answer", AGAIN),
            (do.reset("headers", how="fin"), ConnectFailed, "broke before", AGAIN),
        ],
    )
    @both_ways
    def test_before_any_text(
        self,
        upstream: Upstream,
        library: Library,
        behaviour: Any,
        kind: type[HolySheepError],
        words: str,
        attempts: int,
        *,
        stream: bool,
    ) -> None:
        upstream.default(behaviour)
        error = library.error(stream=stream)
        assert type(error) is kind or kind is HolySheepError
        assert words in error.message
        assert error.attempts == attempts
        stats = upstream.stats()
        assert stats.calls == attempts
        assert stats.models_calls == 0
        if error.status is not None:
            assert f"HTTP {error.status}" in error.message
            assert f"(request id {error.request_id})" in error.message

    @pytest.mark.parametrize(
        ("key", "kind", "status"),
        [
            ("test-key-wrong-0123456789", AuthError, 401),
            ("test-key-forbidden-012345", AuthError, 403),
        ],
    )
    @both_ways
    def test_a_key_that_is_not_welcome(
        self, library: Library, key: str, kind: type[HolySheepError], status: int, *, stream: bool
    ) -> None:
        error = library.error(stream=stream, key=key)
        assert type(error) is kind
        assert (error.status, error.attempts) == (status, 1)
        assert key not in f"{error.message}{error.detail}"

    @pytest.mark.parametrize(
        ("behaviour", "kind", "words"),
        [
            (do.reset("chunks", chunks=1), ConnectFailed, "broke before the answer was complete"),
            (do.reset("chunks", chunks=1, how="fin"), ConnectFailed, "broke before the answer"),
            (do.sse(cut=True), ConnectFailed, "The answer broke off before its end"),
            (do.sse(cut=True, dialect="responses"), ConnectFailed, "broke off before its end"),
            (do.sse(error="Lost it", error_after=2), ServerError, "It says: Lost it."),
            (
                do.sse(error={"message": "Slow.", "code": "rate_limit_exceeded"}, error_after=2),
                RateLimited,
                "It says: Slow.",
            ),
            (do.responses(ending="failed"), ServerError, "The model failed to answer."),
        ],
    )
    def test_after_some_text_nothing_is_tried_again(
        self,
        upstream: Upstream,
        library: Library,
        behaviour: Any,
        kind: type[HolySheepError],
        words: str,
    ) -> None:
        upstream.default(behaviour)
        deltas = iter(library.call(stream=True))
        assert next(deltas).text
        with pytest.raises(kind, match=words) as caught:
            list(deltas)
        assert caught.value.attempts == 1
        assert upstream.stats().calls == 1

    @pytest.mark.parametrize(
        ("error", "kind", "attempts"),
        [
            ("Concurrency limit exceeded", ServerError, AGAIN),
            ({"message": "m", "code": "rate_limit_exceeded"}, RateLimited, AGAIN),
            ({"message": "m", "code": 429}, RateLimited, AGAIN),
            ({"message": "m", "type": "overloaded_error"}, ServerError, AGAIN),
            ({"message": "m", "code": "invalid_api_key"}, AuthError, 1),
            ({"message": "m", "type": "invalid_request_error"}, BadRequest, 1),
            ({"message": "m", "code": "model_not_found"}, UnknownModel, 1),
            ({"message": "m", "code": "insufficient_quota"}, QuotaExhausted, 1),
        ],
    )
    def test_an_error_in_a_stream_before_any_text_counts_as_its_status(
        self,
        upstream: Upstream,
        library: Library,
        error: Any,
        kind: type[HolySheepError],
        attempts: int,
    ) -> None:
        if isinstance(error, dict):
            error = {**error, "resetAt": 0}
        upstream.default(do.sse(error=error, error_after=0))
        raised = library.error(stream=True)
        assert type(raised) is kind
        assert (raised.attempts, upstream.stats().calls) == (attempts, attempts)

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            ({"message": "overloaded", "code": 529}, ServerError),
            ({"type": "error", "message": "m", "code": "rate_limit_exceeded"}, RateLimited),
            ({"detail": "No wool"}, ServerError),
        ],
    )
    @pytest.mark.parametrize("named", [True, False], ids=["event: error", "data alone"])
    def test_so_does_one_that_has_no_error_in_it(
        self,
        upstream: Upstream,
        library: Library,
        error: Any,
        kind: type[HolySheepError],
        *,
        named: bool,
    ) -> None:
        upstream.default(do.sse(error=error, error_key=False, event_names=named))
        raised = library.error(stream=True, retries=0)
        assert type(raised) is kind
        assert (error.get("message") or error["detail"]) in raised.message

    def test_the_same_error_inside_a_json_body(self, library: Library, upstream: Upstream) -> None:
        body = {"error": {"message": "m", "code": "model_not_found"}}
        with RawServer(replies(answer(json.dumps(body).encode()))) as server:
            other = Library(server.url)
            assert type(other.error(stream=False)) is UnknownModel
            other.close()

    def test_a_body_that_is_shorter_than_it_says(
        self, upstream: Upstream, library: Library
    ) -> None:
        upstream.default(do.malformed("short_body"))
        error = library.error(stream=False)
        assert type(error) is ConnectFailed
        assert error.attempts == self.AGAIN

    @both_ways
    def test_bytes_that_are_no_utf_8(
        self, upstream: Upstream, library: Library, *, stream: bool
    ) -> None:
        """A body is refused; in a stream only the bytes themselves are replaced."""
        upstream.default(do.malformed("invalid_utf8"))
        if stream:
            assert library.call(stream=True).wait().text == "You said"
        else:
            assert "not valid JSON" in library.error(stream=False).message

    def test_the_third_attempt_may_succeed(self, upstream: Upstream, library: Library) -> None:
        upstream.script(do.rate_limited(0.01), do.reset("headers"), do.ok("third time lucky"))
        result = library.call(stream=False).wait()
        assert (result.text, result.meta.attempts) == ("third time lucky", 3)
        assert upstream.stats().answered == {429: 1, 200: 1}

    def test_a_busy_server_is_not_asked_before_its_time(
        self, upstream: Upstream, library: Library
    ) -> None:
        upstream.script(do.rate_limited(retry_after_ms=120))
        library.call(stream=False).wait()
        first, second = upstream.arrivals()
        assert 120 <= second - first < 120 + SLACK_S * 1000

    @both_ways
    def test_a_kept_alive_connection_that_was_closed_is_replaced(
        self, upstream: Upstream, library: Library, *, stream: bool
    ) -> None:
        upstream.default(do.close_keepalive(1.0))
        others = upstream.stats().open_connections
        for _ in range(3):
            result = library.call(stream=stream).wait()
            assert result.meta.attempts == 1
            upstream.wait_for(lambda stats: stats.open_connections <= others)
        stats = upstream.stats()
        assert (stats.calls, stats.connections) == (3, 3)

    @pytest.mark.parametrize("how", ["rst", "fin"])
    def test_one_that_is_dropped_on_reuse_is_replaced(
        self, upstream: Upstream, library: Library, how: Any
    ) -> None:
        upstream.script(do.ok("first"), do.drop_on_reuse(how))
        texts = [library.call(stream=False).wait() for _ in range(2)]
        assert texts[0].text == "first"
        assert texts[1].text.startswith("You said")
        assert [text.meta.attempts for text in texts] == [1, 1]

    @pytest.mark.parametrize(
        "behaviour",
        [
            pytest.param(do.malformed("not_json"), id="not JSON"),
            pytest.param(do.malformed("no_choices"), id="no choices"),
            pytest.param(do.malformed("html"), id="page"),
            pytest.param(do.sse(cut=True), id="cut"),
            pytest.param(do.reset("chunks"), id="reset"),
            pytest.param(do.stall("after_chunks", 5), id="stall"),
        ],
    )
    def test_an_answer_that_goes_wrong_is_told_with_its_id(
        self, upstream: Upstream, library: Library, behaviour: Any
    ) -> None:
        upstream.script(behaviour)
        error = library.error(stream=True, retries=0, timeout_s=0.3)
        assert str(error.request_id).startswith("req_")
        assert f"(request id {error.request_id})" in error.message

    def test_refused(self) -> None:
        closed = Library(f"http://127.0.0.1:{closed_port()}/v1")
        error = closed.error(stream=False)
        closed.close()
        assert type(error) is ConnectFailed
        assert "could not be reached. Check the base URL" in error.message
        assert error.attempts == self.AGAIN


class TestErrorAnswersThatBreak:
    """The status is known: it decides, whatever becomes of the body behind it."""

    @pytest.mark.parametrize(
        "raw",
        [
            pytest.param(answer(b'{"error', 429, {"retry-after": "7"}, length=500), id="cut"),
            pytest.param(
                answer(b"no gzip", 429, {"retry-after": "7", "content-encoding": "gzip"}),
                id="no gzip",
            ),
            pytest.param(answer(b"x" * 100_000, 429, {"retry-after": "7"}), id="long"),
        ],
    )
    def test_status(self, raw: bytes) -> None:
        def serve(link: Link) -> None:
            link.read_request()
            link.send(raw)

        with RawServer(serve) as server, Asker(server.url) as asker:
            with pytest.raises(RateLimited) as caught:
                asker.ask()
            assert caught.value.retry_after_s == 7

    def test_a_body_that_never_ends_does_not_hide_the_status(self) -> None:
        def serve(link: Link) -> None:
            link.read_request()
            link.send(answer(b'{"error', 401, length=500))
            link.wait_for_end()

        with RawServer(serve) as server, Asker(server.url) as asker:
            with pytest.raises(AuthError):
                asker.ask(timeout_s=0.2)
            assert asker.pool.in_use == 0

    def test_a_message_at_the_front_of_a_long_body_is_still_read(self) -> None:
        body = json.dumps({"error": {"message": "Too long."}, "more": "x" * 100_000}).encode()
        with RawServer(replies(answer(body, 400))) as server, Asker(server.url) as asker:
            with pytest.raises(BadRequest) as caught:
                asker.ask()
            assert "xxx" not in caught.value.message
            assert '"' not in caught.value.message


class TestDeadline:
    """The total time ends everything, wherever the server stops."""

    @pytest.mark.parametrize(
        "behaviour",
        [
            pytest.param(do.stall("headers", 5), id="before headers"),
            pytest.param(do.stall("first_chunk", 5), id="before the body"),
            pytest.param(do.stall("after_chunks", 5, chunks=1), id="in the body"),
            pytest.param(do.trickle(0.02), id="trickling body"),
            pytest.param(do.trickle(0.02, what="headers"), id="trickling headers"),
            pytest.param(do.trickle(0.5), id="a byte every half second"),
        ],
    )
    @both_ways
    def test_it_is_cut_off(
        self, upstream: Upstream, asker: Asker, behaviour: Any, *, stream: bool
    ) -> None:
        upstream.script(behaviour)
        trace = Trace(0.0)
        began_s = time.monotonic()
        with pytest.raises(TimedOut, match=r"before the deadline\. Raise timeout_s"):
            asker.ask(stream=stream, timeout_s=0.15, trace=trace)
        assert 0.15 <= time.monotonic() - began_s < 0.15 + SLACK_S
        assert trace.attempts == 1
        assert 0.15 <= trace.upstream_s < 0.15 + SLACK_S
        upstream.wait_for(lambda stats: stats.in_flight == 0)

    def test_attempts_share_one_deadline(self, upstream: Upstream, library: Library) -> None:
        upstream.script(do.server_error(latency_ms=60), do.stall("headers", 5))
        began_s = time.monotonic()
        error = library.error(stream=False, timeout_s=0.2)
        assert type(error) is TimedOut
        assert error.attempts == 2
        assert 0.2 <= time.monotonic() - began_s < 0.2 + SLACK_S

    def test_pieces_before_the_cut_were_shown(self, upstream: Upstream, asker: Asker) -> None:
        upstream.script(do.stall("after_chunks", 5, chunks=2, text="one two three"))
        events = asker.events(stream=True, timeout_s=0.15)
        assert [next(events), next(events)] == [Delta("one "), Delta("two ")]
        with pytest.raises(TimedOut):
            next(events)

    def test_a_flood_of_interim_answers_is_cut_off(self) -> None:
        def serve(link: Link) -> None:
            link.read_request()
            while True:
                link.send(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)

        with RawServer(serve) as server, Asker(server.url) as asker:
            began_s = time.monotonic()
            with pytest.raises(TimedOut):
                asker.ask(timeout_s=0.2)
            assert time.monotonic() - began_s < 0.2 + SLACK_S

    def test_a_flood_of_comments_is_cut_off(self) -> None:
        def serve(link: Link) -> None:
            link.read_request()
            link.send(chunked(end=False))
            while True:
                link.send(chunk(b": keep-alive\n\n"))
                time.sleep(0.005)

        with RawServer(serve) as server, Asker(server.url) as asker:
            began_s = time.monotonic()
            with pytest.raises(TimedOut):
                asker.ask(timeout_s=0.2, stream=True)
            assert time.monotonic() - began_s < 0.2 + SLACK_S

    @pytest.mark.parametrize(
        "ending",
        [
            pytest.param(events("[DONE]"), id="after DONE"),
            pytest.param(events("[DONE]") + b": bye\n\n", id="after a comment behind DONE"),
        ],
    )
    def test_a_complete_answer_does_not_wait_for_the_end_of_its_body(self, ending: bytes) -> None:
        """Some gateways end an answer but not the HTTP body around it."""
        body = stream_body().replace(events("[DONE]"), ending)

        def serve(link: Link) -> None:
            link.read_request()
            link.send(chunked(body, end=False))
            link.wait_for_end()

        with RawServer(serve) as server, Asker(server.url) as asker:
            began_s = time.monotonic()
            assert asker.ask(stream=True, timeout_s=1.5).first.text == "hello"
            assert time.monotonic() - began_s < 1.0
            assert asker.pool.in_use == 0


class TestEndOfStream:
    """Behind the finish reason the text is complete: what fails then only costs the connection."""

    TEXT = events({"model": "m-1", "choices": [{"index": 0, "delta": {"content": "hello"}}]})
    FINISH = events({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    USAGE = events({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})

    @staticmethod
    def streamed(*parts: float | bytes | Exception, **body: Any) -> tuple[Completion, float]:
        """The answer to a call of 60 s that comes in these parts, and after how many seconds."""
        clock = FakeClock()
        sent = [part.decode() if isinstance(part, bytes) else part for part in parts]
        head = (0.0, 200, {"content-type": "text/event-stream"})
        gateway: Any = ScriptedGateway(clock, lambda *_: (*head, sent))
        transport = ChatTransport(Settings(KEY), gateway, Quirks(clock), clock)
        *_, last = transport(a_call(clock, a_request(**body)))
        assert isinstance(last, Completed)
        assert gateway.in_use == 0
        return last.completion, clock.monotonic() - START_S

    @pytest.mark.parametrize(
        "end",
        [
            pytest.param(lambda _: None, id="closed without the last chunk"),
            pytest.param(Link.reset, id="reset"),
            pytest.param(Link.wait_for_end, id="silent"),
        ],
    )
    def test_the_answer_is_given(self, end: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(config, "MAX_REST_S", 0.1)

        def serve(link: Link) -> None:
            link.read_request()
            link.send(chunked(self.TEXT, self.FINISH, end=False))
            end(link)

        with RawServer(serve) as server, Asker(server.url) as asker:
            began_s = time.monotonic()
            completion = asker.ask(stream=True)
            assert time.monotonic() - began_s < 0.1 + SLACK_S
            assert (completion.first.text, completion.first.finish_reason) == ("hello", "stop")
            assert completion.usage.estimated
            assert asker.pool.in_use == 0

    @pytest.mark.parametrize(
        "rest",
        [
            pytest.param(httpx.ReadError("reset"), id="reset"),
            pytest.param(httpx.RemoteProtocolError("incomplete chunked read"), id="cut"),
            pytest.param(3600.0, id="silence"),
            pytest.param(b"data: {spoilt\n\n", id="spoilt event"),
            pytest.param(events({"error": {"message": "No usage today"}}), id="error event"),
            pytest.param(b": keep-alive\n\n" * 5 + b"data: ping\n\n", id="signs of life"),
        ],
    )
    def test_whatever_follows(self, rest: Any) -> None:
        completion, took_s = self.streamed(self.TEXT, self.FINISH, rest)
        assert completion.first.text == "hello"
        assert took_s <= config.MAX_REST_S

    def test_the_usage_may_come_a_little_later(self) -> None:
        completion, took_s = self.streamed(self.TEXT, self.FINISH, 1.5, self.USAGE, 3600.0)
        assert completion.usage == Usage(3, 2)
        assert took_s == config.MAX_REST_S

    def test_but_not_much_later(self) -> None:
        completion, took_s = self.streamed(self.TEXT, self.FINISH, 2.5, self.USAGE)
        assert completion.usage.estimated
        assert took_s == config.MAX_REST_S

    def test_pings_do_not_make_the_wait_longer(self) -> None:
        pings = [1.0, b"data: ping\n\n"] * 50
        assert self.streamed(self.TEXT, self.FINISH, *pings)[1] == config.MAX_REST_S

    def test_no_wait_passes_the_deadline(self) -> None:
        completion, took_s = self.streamed(59.0, self.TEXT, self.FINISH, 3600.0)
        assert (completion.first.text, took_s) == ("hello", 60.0)

    def test_text_behind_a_finish_reason_is_waited_for(self) -> None:
        """A gateway may give its finish reason with every piece."""
        part = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}
        completion, _ = self.streamed(*[events(part), 1.5] * 10)
        assert completion.first.text == "a" * 10

    def test_nothing_is_waited_for_behind_the_last_event_of_the_responses_api(self) -> None:
        last = events({"type": "response.completed", "response": {}})
        assert self.streamed(last, 3600.0)[1] == pytest.approx(config.MAX_DRAIN_S)

    @pytest.mark.parametrize("rest", [httpx.ReadError("reset"), 3600.0], ids=["reset", "silence"])
    def test_of_several_answers_all_must_have_finished(self, rest: Any) -> None:
        second = events({"choices": [{"index": 1, "delta": {}, "finish_reason": "length"}]})
        with pytest.raises((ConnectFailed, TimedOut)):
            self.streamed(self.TEXT, self.FINISH, rest, n=2)
        completion, _ = self.streamed(self.TEXT, self.FINISH, second, rest, n=2)
        assert [choice.finish_reason for choice in completion.choices] == ["stop", "length"]

    @pytest.mark.parametrize("rest", [httpx.ReadError("reset"), 3600.0], ids=["reset", "silence"])
    def test_before_it_a_break_is_an_error(self, rest: Any) -> None:
        with pytest.raises((ConnectFailed, TimedOut)):
            self.streamed(self.TEXT, self.USAGE, rest)

    def test_zeros_for_usage_are_estimated(self) -> None:
        zeros = events({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}})
        usage = self.streamed(self.TEXT, self.FINISH, zeros)[0].usage
        assert usage.estimated
        assert usage.prompt_tokens > 0
        assert usage.completion_tokens > 0


class TestOddHttp:
    """Legal and illegal HTTP that the simulated gateway does not speak."""

    @pytest.mark.parametrize(
        "raw",
        [
            pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + answer(chat_body()), id="100 Continue"),
            pytest.param(
                b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 3 + answer(chat_body()),
                id="103 three times",
            ),
            pytest.param(
                answer(chat_body()).replace(b"content-length", b"Content-LENGTH"), id="capitals"
            ),
            pytest.param(answer(chat_body()).replace(b"Whatever", b""), id="no reason phrase"),
            pytest.param(
                chunked(
                    chat_body()[:10], chat_body()[10:], headers={"content-type": "x/y"}, end=False
                )
                + b"0\r\nx-trailer: 1\r\n\r\n",
                id="trailers",
            ),
            pytest.param(
                chunked(headers={"content-type": "application/json"}, end=False)
                + b'%x;name="value"\r\n%s\r\n0\r\n\r\n' % (len(chat_body()), chat_body()),
                id="chunk extensions",
            ),
            pytest.param(b"HTTP/1.0 200 OK\r\n\r\n" + chat_body(), id="HTTP/1.0, no length"),
            pytest.param(
                b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + chat_body(), id="no length"
            ),
            pytest.param(
                b"HTTP/1.1 200 OK\r\nx-long: "
                + b"y" * 50_000
                + b"\r\nconnection: close\r\n\r\n"
                + chat_body(),
                id="a long header",
            ),
            pytest.param(answer(b"\xef\xbb\xbf" + chat_body()), id="byte order mark"),
            pytest.param(answer(b" \n\t" + chat_body() + b"\r\n"), id="white space round it"),
            pytest.param(
                answer(chat_body(), headers={"content-type": "text/event-stream"}), id="!"
            ),
            pytest.param(answer(b"\n\n\n" * 1000 + chat_body()), id="empty lines first"),
        ],
    )
    def test_answers(self, raw: bytes) -> None:
        def serve(link: Link) -> None:
            link.read_request()
            link.send(raw)

        with RawServer(serve) as server, Asker(server.url) as asker:
            assert asker.ask().first.text == "hello"
            assert asker.pool.in_use == 0

    @pytest.mark.parametrize(
        "raw",
        [
            pytest.param(b"HTTP/1.0 200 OK\r\n\r\n" + stream_body(), id="HTTP/1.0"),
            pytest.param(
                b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + stream_body(), id="no length"
            ),
            pytest.param(answer(stream_body()), id="length"),
            pytest.param(answer(stream_body(), headers={"content-type": "text/html"}), id="html"),
        ],
    )
    def test_streams(self, raw: bytes) -> None:
        def serve(link: Link) -> None:
            link.read_request()
            link.send(raw)

        with RawServer(serve) as server, Asker(server.url) as asker:
            assert asker.ask(stream=True).first.text == "hello"

    @pytest.mark.parametrize(
        "raw",
        [
            pytest.param(b"HTTP/1.0 200 OK\r\n\r\n" + stream_body()[:90], id="HTTP/1.0"),
            pytest.param(chunked(stream_body()[:90]), id="chunked"),
            pytest.param(chunked(stream_body()[:90], end=False), id="no last chunk"),
            pytest.param(answer(stream_body()[:90]), id="length"),
            pytest.param(answer(stream_body()[:90], length=5000), id="short"),
        ],
    )
    def test_streams_that_break_off(self, raw: bytes) -> None:
        def serve(link: Link) -> None:
            link.read_request()
            link.send(raw)

        with RawServer(serve) as server, Asker(server.url) as asker:
            with pytest.raises(ConnectFailed):
                asker.ask(stream=True)
            assert asker.pool.in_use == 0

    @pytest.mark.parametrize(
        "raw",
        [
            pytest.param(b"nonsense\r\n\r\n", id="no HTTP"),
            pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="SSH"),
            pytest.param(b"\x15\x03\x01\x00\x02\x02\x16", id="TLS alert"),
            pytest.param(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000, id="an endless header"),
            pytest.param(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000, id="endless headers"),
            pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", id="no length"),
            pytest.param(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: magic\r\n\r\n", id="unknown encoding"
            ),
            pytest.param(chunked(end=False) + b"f" * 5000 + b"\r\n", id="huge chunk size"),
            pytest.param(chunked(end=False) + b"5;" + b"x" * 200_000, id="endless extension"),
            pytest.param(b"", id="nothing"),
        ],
    )
    def test_what_is_no_http(self, raw: bytes) -> None:
        def serve(link: Link) -> None:
            link.read_request()
            link.send(raw)

        with RawServer(serve) as server, Asker(server.url) as asker:
            with pytest.raises(ConnectFailed) as caught:
                asker.ask()
            assert len(caught.value.message) < 300
            assert asker.pool.in_use == 0

    def test_a_server_that_answers_before_the_request_is_sent(self) -> None:
        """A gateway may refuse a large request from its head alone, and close."""

        def serve(link: Link) -> None:
            link.read_head()
            link.send(answer(b'{"error": {"message": "Too large."}}', 413))

        with RawServer(serve) as server, Asker(server.url) as asker:
            with pytest.raises((BadRequest, ConnectFailed)):
                asker.ask("x" * 5_000_000)
            assert asker.pool.in_use == 0

    @pytest.mark.parametrize("status", [201, 202, 203, 204, 206])
    def test_other_successes_are_no_answers(self, status: int) -> None:
        with RawServer(replies(answer(b"", status))) as server, Asker(server.url) as asker:
            with pytest.raises(BadResponse) as caught:
                asker.ask()
            assert f"HTTP {status}" in caught.value.message
            assert "redirect" not in caught.value.message

    @both_ways
    def test_a_redirect_is_not_followed(self, *, stream: bool) -> None:
        with RawServer(replies(answer(chat_body()))) as target:
            away = replies(answer(b"", 307, {"location": target.url}))
            with (
                RawServer(away) as server,
                Asker(server.url) as asker,
                pytest.raises(BadResponse, match="not followed"),
            ):
                asker.ask(stream=stream)
            assert target.connections == 0

    @both_ways
    def test_a_connection_serves_one_call_after_the_other(
        self, upstream: Upstream, asker: Asker, *, stream: bool
    ) -> None:
        upstream.script(do.ok(), do.server_error(), do.rate_limited(1), do.ok())
        for kind in (None, ServerError, RateLimited, None, None):
            if kind is None:
                asker.ask(stream=stream)
            else:
                with pytest.raises(kind):
                    asker.ask(stream=stream)
        assert upstream.stats().connections == 1

    @pytest.mark.parametrize(
        "behaviour", [do.malformed("not_json"), do.malformed("no_choices"), do.sse(cut=True)]
    )
    def test_an_unreadable_answer_costs_at_most_its_connection(
        self, upstream: Upstream, asker: Asker, behaviour: Any
    ) -> None:
        upstream.default(behaviour)
        for _ in range(3):
            with pytest.raises(HolySheepError):
                asker.ask(stream=True)
            assert asker.pool.in_use == 0
        upstream.default(None)
        asker.ask()

    def test_what_follows_done_is_read_so_that_the_connection_can_be_kept(self) -> None:
        body = stream_body() + b": padding\n\n" * 1000
        with RawServer(replies(chunked(body))) as server, Asker(server.url) as asker:
            for _ in range(3):
                asker.ask(stream=True)
            assert server.connections == 1

    def test_but_not_without_end(self) -> None:
        body = stream_body() + b": padding\n\n" * 100_000
        with RawServer(replies(chunked(body))) as server, Asker(server.url) as asker:
            for _ in range(2):
                asker.ask(stream=True)
            assert server.connections == 2


class TestSize:
    """However much a server sends, the process holds a bounded amount of it."""

    @staticmethod
    def bomb(mebibytes: int) -> bytes:
        """A gzip file that inflates to so many MiB of one letter, of about a thousandth of that."""
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        block = packer.compress(b"x" * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
        head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
        tail = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
        size = struct.pack("<II", 0, (mebibytes << 20) & 0xFFFFFFFF)
        return head + block * mebibytes + tail + size

    @both_ways
    def test_a_large_answer_is_refused(
        self, upstream: Upstream, asker: Asker, monkeypatch: pytest.MonkeyPatch, *, stream: bool
    ) -> None:
        monkeypatch.setattr(config, "MAX_RESPONSE_BYTES", 1024 * 1024)
        upstream.script(do.ok(size_bytes=2 * 1024 * 1024))
        with pytest.raises(BadResponse, match=r"larger than 1 MiB\. Lower max_tokens"):
            asker.ask(stream=stream)

    @both_ways
    def test_one_within_the_limit_is_read(
        self, upstream: Upstream, asker: Asker, *, stream: bool
    ) -> None:
        upstream.script(do.ok(size_bytes=3_000_000))
        assert len(asker.ask(stream=stream).first.text) == 3_000_000

    def test_one_huge_event_is_read(self, upstream: Upstream, asker: Asker) -> None:
        upstream.script(do.sse(event_bytes=3_000_000, split_bytes=60_000))
        assert len(asker.ask(stream=True).first.text) == 3_000_000

    def test_a_line_without_end_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(config, "MAX_RESPONSE_BYTES", 1024 * 1024)

        def serve(link: Link) -> None:
            link.read_request()
            link.send(chunked(b"data: ", end=False))
            while True:
                link.send(chunk(b"x" * 65536))

        with RawServer(serve) as server, Asker(server.url) as asker:
            with pytest.raises(BadResponse, match="larger than"):
                asker.ask(stream=True)
            assert asker.pool.in_use == 0

    def test_an_error_body_without_end_is_cut(self) -> None:
        def serve(link: Link) -> None:
            link.read_request()
            link.send(chunked(end=False).replace(b"200 OK", b"500 No"))
            while True:
                link.send(chunk(b"x" * 65536))

        with RawServer(serve) as server, Asker(server.url) as asker:
            with pytest.raises(ServerError) as caught:
                asker.ask()
            assert len(caught.value.message) < 400

    @pytest.mark.parametrize("status", [200, 500])
    @pytest.mark.parametrize("layers", [1, 2], ids=["gzip", "gzip in gzip"])
    def test_a_small_body_that_inflates_to_gigabytes_is_cut_while_inflating(
        self, layers: int, status: int
    ) -> None:
        packed = self.bomb(4096) if layers == 1 else gzip.compress(self.bomb(300))
        headers = {"content-encoding": ", ".join(["gzip"] * layers)}
        bomb = replies(answer(packed, status, headers))
        with RawServer(bomb) as server, Asker(server.url) as asker:
            tracemalloc.start()
            try:
                with pytest.raises(HolySheepError):
                    asker.ask(timeout_s=20)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert asker.pool.in_use == 0
        assert peak - len(packed) < 3 * config.MAX_RESPONSE_BYTES

    @pytest.mark.parametrize("wbits", [15, -15, 31], ids=["zlib", "raw", "gzip"])
    def test_all_that_servers_call_deflate_or_gzip_is_read(self, wbits: int) -> None:
        packer = zlib.compressobj(wbits=wbits)
        packed = packer.compress(chat_body()) + packer.flush()
        encoding = "gzip" if wbits == 31 else "deflate"
        good = answer(packed, headers={"content-encoding": encoding})
        with RawServer(replies(good)) as server, Asker(server.url) as asker:
            assert asker.ask().first.text == "hello"

    @pytest.mark.parametrize(
        ("body", "encoding"),
        [
            (gzip.compress(chat_body()[:9]) + gzip.compress(chat_body()[9:]), "gzip"),
            (gzip.compress(gzip.compress(chat_body())), "gzip, gzip"),
            (gzip.compress(chat_body()) + b"\0" * 8, "gzip"),
            (gzip.compress(chat_body()), "X-GZIP"),
            (chat_body(), "identity"),
            (chat_body(), ""),
        ],
        ids=["two members", "twice", "padding", "x-gzip", "identity", "empty"],
    )
    def test_odd_compression(self, body: bytes, encoding: str) -> None:
        good = answer(body, headers={"content-encoding": encoding})
        with RawServer(replies(good)) as server, Asker(server.url) as asker:
            assert asker.ask().first.text == "hello"

    def test_a_compressed_stream_without_its_last_bytes_is_complete_with_done(self) -> None:
        packer = zlib.compressobj(wbits=31)
        packed = packer.compress(stream_body()) + packer.flush(zlib.Z_SYNC_FLUSH)
        cut = chunked(packed, headers={"content-encoding": "gzip"})
        with RawServer(replies(cut)) as server, Asker(server.url) as asker:
            assert asker.ask(stream=True).first.text == "hello"

    @pytest.mark.parametrize("layers", [10, 5000])
    def test_compression_of_compression_without_end_is_unreadable(self, layers: int) -> None:
        headers = {"content-encoding": ", ".join(["gzip"] * layers)}
        odd = answer(chat_body(), headers=headers)
        with (
            RawServer(replies(odd)) as server,
            Asker(server.url) as asker,
            pytest.raises(BadResponse),
        ):
            asker.ask()

    @pytest.mark.parametrize(
        ("piece", "rest"),
        [
            pytest.param(b" " * 100, b"", id="spaces"),
            pytest.param(b"\n", b"", id="empty lines"),
            pytest.param(b": x\n\n", b"", id="comments"),
            pytest.param(b"data:\n\n", b"", id="empty events"),
            pytest.param(b":" * 100, b"\n\n", id="one long comment"),
            pytest.param(b": x\r\r", b"", id="comments that end in CR"),
        ],
    )
    def test_much_of_nothing_costs_little_time(self, piece: bytes, rest: bytes) -> None:
        flood = chunked(*[piece] * 20_000, rest + stream_body())
        with RawServer(replies(flood)) as server, Asker(server.url) as asker:
            began_s = time.process_time()
            assert asker.ask(stream=True, timeout_s=20).first.text == "hello"
            assert time.process_time() - began_s < 1.5

    def test_a_long_event_in_small_pieces_costs_little_time(self) -> None:
        begun = b'data: {"choices":[{"finish_reason":"stop","delta":{"content":"'
        long = chunked(begun, *[b"x" * 1000] * 10_000, b'"}}]}\n\n')
        with RawServer(replies(long)) as server, Asker(server.url) as asker:
            began_s = time.process_time()
            assert len(asker.ask(stream=True, timeout_s=20).first.text) == 10_000_000
            assert time.process_time() - began_s < 1.5

    @pytest.mark.parametrize("encoding", ["gzip", "deflate"])
    def test_what_cannot_be_inflated_is_unreadable(self, encoding: str) -> None:
        broken = answer(b"no such thing", headers={"content-encoding": encoding})
        with RawServer(replies(broken)) as server, Asker(server.url) as asker:
            with pytest.raises(BadResponse, match="decompressed"):
                asker.ask()
            assert asker.pool.in_use == 0

    @both_ways
    def test_a_compressed_answer_that_is_cut_is_no_answer(self, *, stream: bool) -> None:
        packed = gzip.compress(stream_body("x" * 999) if stream else chat_body("x" * 999))
        cut = answer(packed[: len(packed) // 2], headers={"content-encoding": "gzip"})
        with (
            RawServer(replies(cut)) as server,
            Asker(server.url) as asker,
            pytest.raises((BadResponse, ConnectFailed)),
        ):
            asker.ask(stream=stream)

    def test_an_unknown_compression_is_unreadable(self) -> None:
        odd = answer(chat_body()[::-1], headers={"content-encoding": "br"})
        with (
            RawServer(replies(odd)) as server,
            Asker(server.url) as asker,
            pytest.raises(BadResponse),
        ):
            asker.ask()


class TestPlainExchange:
    """``get`` and ``post``, which the credential check uses."""

    def test_any_status_is_an_answer(self) -> None:
        with RawServer(replies(answer(b"teapot", 418))) as server, Asker(server.url) as asker:
            deadline_s = asker.clock.monotonic() + 5
            status, headers, body = asker.transport.get("/models", deadline_s)
            assert (status, body) == (418, b"teapot")
            assert headers["content-length"] == "6"
            asker.transport.post("/x", {"a": "é"}, deadline_s)
            get, post = server.requests
            assert (get.line, get.body) == ("GET /v1/models HTTP/1.1", b"")
            assert (post.line, json.loads(post.body)) == ("POST /v1/x HTTP/1.1", {"a": "é"})
            assert get.headers["authorization"] == f"Bearer {KEY}"

    def test_a_silent_server_is_cut_off(self) -> None:
        with RawServer(Link.wait_for_end) as server, Asker(server.url) as asker:
            with pytest.raises(TimedOut):
                asker.transport.get("/models", asker.clock.monotonic() + 0.1)
            assert asker.pool.in_use == 0

    def test_a_broken_answer(self) -> None:
        with (
            RawServer(lambda _: None) as server,
            Asker(server.url) as asker,
            pytest.raises(ConnectFailed),
        ):
            asker.transport.get("/models", asker.clock.monotonic() + 5)

    def test_an_answer_that_cannot_be_inflated(self) -> None:
        broken = answer(b"no gzip", headers={"content-encoding": "gzip"})
        with RawServer(replies(broken)) as server, Asker(server.url) as asker:
            with pytest.raises(BadResponse):
                asker.transport.get("/models", asker.clock.monotonic() + 5)
            assert asker.pool.in_use == 0

    def test_a_large_answer_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(config, "MAX_RESPONSE_BYTES", 1000)
        with (
            RawServer(replies(answer(b"x" * 2000))) as server,
            Asker(server.url) as asker,
            pytest.raises(BadResponse),
        ):
            asker.transport.get("/models", asker.clock.monotonic() + 5)
