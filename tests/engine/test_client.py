"""The library's front door: ``Client`` against the simulated gateway and odd servers."""

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import holysheep
from devtools.upstream import Upstream
from devtools.upstream import behaviours as do
from holysheep import (
    AuthError,
    BadRequest,
    BadResponse,
    ChatResult,
    Client,
    ConnectFailed,
    Delta,
    HolySheepError,
    InputError,
    QuotaExhausted,
    RateLimited,
    ServerError,
    SettingsError,
    Stream,
    TimedOut,
    UnknownModel,
)
from tests.engine.raw_servers import (
    KEY,
    Link,
    RawServer,
    answer,
    chat_body,
    chunked,
    closed_port,
    events,
    forget_proxies,
    make_certificate,
    relay,
    replies,
    stream_body,
    tls_server_context,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)
    for name in ("HOLYSHEEP_API_KEY", "HOLYSHEEP_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def client_for() -> Iterator[Callable[..., Client]]:
    """Makes clients that are closed when the test ends."""
    clients: list[Client] = []

    def make(url: str, key: str | None = KEY, **settings: Any) -> Client:
        clients.append(Client(key, base_url=url, **{"requests_per_minute": 0, **settings}))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(upstream: Upstream, client_for: Any) -> Client:
    made: Client = client_for(upstream.url)
    return made


class TestChat:
    def test_a_text_is_answered(self, upstream: Upstream, client: Client) -> None:
        result = client.chat("Hello there", model="gpt-4.1")
        assert isinstance(result, ChatResult)
        assert result.text.startswith("You said: Hello there")
        assert (result.model_used, result.finish_reason) == ("gpt-4.1", "stop")
        assert not result.cached
        assert result.tokens_used == result.usage.prompt_tokens + result.usage.completion_tokens
        assert result.cost_usd is not None
        assert result.cost_usd > 0
        assert (result.meta.attempts, result.meta.cache) == (1, "miss")
        assert str(result.meta.request_id).startswith("req_")
        sent = upstream.requests()[-1]["json"]
        assert sent["messages"] == [{"role": "user", "content": "Hello there"}]
        assert "stream" not in sent

    def test_a_conversation_travels_as_it_is(self, upstream: Upstream, client: Client) -> None:
        conversation = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": "Yes?"},
            {"role": "user", "content": "Bye", "name": "me"},
        ]
        client.chat(conversation)
        assert upstream.requests()[-1]["json"]["messages"] == conversation

    def test_parameters_and_options_are_sent(self, upstream: Upstream, client: Client) -> None:
        client.chat(
            "Hi",
            model="m",
            temperature=0.1,
            max_tokens=9,
            top_p=0.5,
            seed=4,
            stop=["x"],
            extra_body={"user": "u"},
        )
        sent = upstream.requests()[-1]["json"]
        assert {key: sent[key] for key in sent if key != "messages"} == {
            "model": "m",
            "temperature": 0.1,
            "max_tokens": 9,
            "top_p": 0.5,
            "seed": 4,
            "stop": ["x"],
            "user": "u",
        }

    def test_the_credential_s_default_model_is_asked(
        self, upstream: Upstream, client_for: Any
    ) -> None:
        client_for(upstream.url, default_model="my-model").chat("Hi")
        assert upstream.stats().calls_by_model == {"my-model": 1}

    def test_the_same_again_comes_from_the_cache(self, upstream: Upstream, client: Client) -> None:
        first, second = client.chat("Hi"), client.chat("Hi")
        assert (second.text, second.cached, second.cost_usd) == (first.text, True, Decimal(0))
        assert upstream.stats().calls == 1

    def test_a_result_is_json(self, client: Client) -> None:
        shown = client.chat("Hi").to_json()
        assert json.loads(json.dumps(shown, allow_nan=False)) == shown

    def test_structured_answers(self, client: Client) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        result = client.chat("Hi", json_schema=schema)
        assert isinstance(result.structured["a"], int)
        assert json.loads(result.text) == result.structured

    def test_tool_calls(self, upstream: Upstream, client: Client) -> None:
        upstream.script(do.ok(tool_calls=[do.tool_call("f", {"x": 1}, "id-1")]))
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        result = client.chat("Hi", tools=[tool])
        assert result.finish_reason == "tool_calls"
        assert result.tool_calls[0]["function"] == {"name": "f", "arguments": '{"x":1}'}

    def test_many_threads_share_a_client(self, upstream: Upstream, client_for: Any) -> None:
        client = client_for(upstream.url, max_concurrency=20)
        upstream.default(do.ok(latency_ms=5))
        with ThreadPoolExecutor(40) as threads:
            texts = list(threads.map(lambda n: client.chat(f"number {n}.").text, range(120)))
        assert all(f"number {n}." in text for n, text in enumerate(texts))
        stats = upstream.stats()
        assert stats.calls == 120
        assert stats.max_in_flight <= 20
        assert stats.connections <= 20

    def test_a_closed_client_still_works(self, upstream: Upstream) -> None:
        # Other tests may have left some to the collector.
        before = upstream.stats().open_connections
        with Client(KEY, base_url=upstream.url) as client:
            client.chat("one")
        upstream.wait_for(lambda stats: stats.open_connections <= before)
        client.chat("two")
        client.close()
        assert upstream.stats().connections == 2


class TestMessages:
    @pytest.mark.parametrize(
        "messages",
        [
            "",
            " \n\t",
            [],
            [{"role": "user", "content": ""}],
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " "}],
        ],
        ids=str,
    )
    def test_nothing_is_no_question(
        self, upstream: Upstream, client: Client, messages: Any
    ) -> None:
        for ask in (client.chat, client.stream):
            with pytest.raises(InputError, match="messages is empty"):
                ask(messages)
        assert upstream.stats().calls == 0

    @pytest.mark.parametrize("messages", [None, 5, {"role": "user"}], ids=str)
    def test_what_is_no_conversation_is_bad_input(self, client: Client, messages: Any) -> None:
        for ask in (client.chat, client.stream):
            with pytest.raises(InputError, match="messages"):
                ask(messages)

    @pytest.mark.parametrize(
        ("messages", "params"),
        [
            ("x" * 1_000_001, {}),
            ([{"role": "user", "content": "x" * 250_000}] * 4, {"json_schema": {"title": "y" * 9}}),
            ([{"role": "user", "content": [{"type": "text", "text": "x" * 1_000_001}]}], {}),
            ("Hi", {"stop": ["x" * 1_000_001]}),
        ],
        ids=["text", "together", "parts", "options"],
    )
    def test_more_than_a_million_characters_are_refused(
        self, upstream: Upstream, client: Client, messages: Any, params: Any
    ) -> None:
        with pytest.raises(InputError, match="at most 1,000,000"):
            client.chat(messages, **params)
        assert upstream.stats().calls == 0

    def test_a_text_just_below_is_sent(self, upstream: Upstream, client: Client) -> None:
        client.chat("x" * 999_000)
        assert upstream.stats().calls == 1

    def test_an_image_is_no_text(self, upstream: Upstream, client: Client) -> None:
        url = "data:image/png;base64," + "A" * 1_500_000
        parts = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "What?"},
        ]
        client.chat([{"role": "user", "content": parts}])
        assert upstream.requests()[-1]["json"]["messages"][0]["content"] == parts


class TestStream:
    def test_pieces_and_result(self, upstream: Upstream, client: Client) -> None:
        upstream.script(do.ok(chunks=["one ", "two ", "three"], reasoning="Why?"))
        stream = client.stream("Hi")
        assert isinstance(stream, Stream)
        with pytest.raises(RuntimeError, match="not been read to its end"):
            _ = stream.result
        pieces = list(stream)
        assert all(isinstance(piece, Delta) for piece in pieces)
        assert "".join(piece.text for piece in pieces) == stream.result.text == "one two three"
        assert "".join(piece.reasoning for piece in pieces) == stream.result.reasoning == "Why?"
        assert upstream.requests()[-1]["json"]["stream"] is True

    def test_nothing_is_sent_before_it_is_read(self, upstream: Upstream, client: Client) -> None:
        stream = client.stream("Hi")
        assert upstream.stats().calls == 0
        list(stream)
        assert upstream.stats().calls == 1

    def test_a_wrong_parameter_is_told_before_that(self, client: Client) -> None:
        with pytest.raises(InputError):
            client.stream("Hi", temperature=9)

    def test_one_that_is_closed_early_ends_its_request(
        self, upstream: Upstream, client: Client
    ) -> None:
        upstream.default(do.ok(chunks=["x"] * 50, chunk_delay_ms=20))
        with client.stream("Hi") as stream:
            assert next(iter(stream)).text
        # It is still at hand, so nobody has collected it.
        assert list(stream) == []
        upstream.wait_for(lambda stats: stats.in_flight == 0)
        with pytest.raises(RuntimeError, match="not been read to its end"):
            _ = stream.result

    def test_one_that_is_left_early_ends_its_request(
        self, upstream: Upstream, client: Client
    ) -> None:
        upstream.default(do.ok(chunks=["x"] * 50, chunk_delay_ms=20))
        for _ in range(3):
            for _ in client.stream("Hi", cache="off"):
                break
        upstream.wait_for(lambda stats: stats.aborted_by_client == 3 and stats.in_flight == 0)

    def test_a_cached_answer_is_streamed_too(self, upstream: Upstream, client: Client) -> None:
        text = client.chat("Hi").text
        stream = client.stream("Hi")
        assert "".join(piece.text for piece in stream) == text
        assert stream.result.cached
        assert upstream.stats().calls == 1

    def test_an_error_after_some_text(self, upstream: Upstream, client: Client) -> None:
        upstream.script(do.sse(error="Lost it", error_after=1))
        pieces = iter(client.stream("Hi"))
        assert next(pieces).text
        with pytest.raises(ServerError, match="Lost it"):
            list(pieces)

    @pytest.mark.parametrize("index", [1, -1, 7])
    def test_an_answer_with_another_index_is_streamed_too(
        self, client_for: Any, index: int
    ) -> None:
        raw = events(
            {"choices": [{"index": index, "delta": {"content": "hello"}}]},
            {"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]},
        )
        with RawServer(replies(chunked(raw))) as server:
            stream = client_for(server.url).stream("Hi")
            assert "".join(piece.text for piece in stream) == stream.result.text == "hello"


class TestErrors:
    @pytest.mark.parametrize(
        ("behaviour", "kind"),
        [
            (do.status(400), BadRequest),
            (do.status(401), AuthError),
            (do.quota_exhausted(), QuotaExhausted),
            (do.unknown_model(), UnknownModel),
            (do.rate_limited(0), RateLimited),
            (do.server_error(), ServerError),
            (do.malformed("not_json"), BadResponse),
            (do.reset("headers"), ConnectFailed),
        ],
    )
    def test_it_carries_what_a_caller_needs(
        self, upstream: Upstream, client: Client, behaviour: Any, kind: type[HolySheepError]
    ) -> None:
        upstream.script(behaviour)
        with pytest.raises(kind) as caught:
            client.chat("Hi", max_retries=0)
        error = caught.value
        assert str(error) == error.message
        assert error.attempts == 1
        assert KEY not in f"{error!r}{error.message}{error.detail}"

    def test_the_deadline(self, upstream: Upstream, client: Client) -> None:
        upstream.script(do.stall("headers", 5))
        with pytest.raises(TimedOut) as caught:
            client.chat("Hi", timeout_s=1)
        assert caught.value.attempts == 1

    def test_retries_and_fallback(self, upstream: Upstream, client: Client) -> None:
        upstream.default(do.unknown_model(), model="gone")
        result = client.chat("Hi", model="gone", fallback_models="gpt-4.1")
        assert (result.model_used, result.meta.fallback_from) == ("gpt-4.1", "gone")

    def test_nobody_listens(self, client_for: Any) -> None:
        with pytest.raises(ConnectFailed, match="could not be reached"):
            client_for(f"http://127.0.0.1:{closed_port()}/v1").chat("Hi", max_retries=0)

    @pytest.mark.parametrize(
        "url", ["http://a..b/v1", f"http://{'a' * 64}.test/v1", "http://127.0.0.1:99999/v1"]
    )
    def test_an_address_that_can_be_none(self, client_for: Any, url: str) -> None:
        with pytest.raises((ConnectFailed, SettingsError)):
            client_for(url).chat("Hi", max_retries=0, timeout_s=1)

    def test_a_name_that_is_unknown_is_not_blamed_on_a_certificate(
        self, client_for: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import socket

        def fail(*_: Any, **__: Any) -> Any:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", fail)
        with pytest.raises(ConnectFailed) as caught:
            client_for("http://ssl-gateway.test/v1").chat("Hi", max_retries=0)
        assert "certificate" not in caught.value.message

    @pytest.mark.parametrize(
        "proxy",
        [
            "http://proxy:port",
            "http://[::1",
            "ftp://127.0.0.1:1",
            "socks4://127.0.0.1:1",
            "http://",
            "://",
        ],
    )
    @pytest.mark.parametrize("method", ["chat", "models", "check"])
    def test_a_proxy_setting_that_cannot_be_used(
        self, client_for: Any, monkeypatch: pytest.MonkeyPatch, proxy: str, method: str
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        client = client_for("http://gateway.test/v1")
        with pytest.raises((ConnectFailed, SettingsError)):
            client.chat("Hi", max_retries=0) if method == "chat" else getattr(client, method)()

    @pytest.mark.parametrize(
        "usage",
        [
            {"prompt_tokens": 10**400, "completion_tokens": 1},
            {"prompt_tokens": 10**30, "completion_tokens": 1},
            {"prompt_tokens": 1, "completion_tokens": 1, "cost": "1e999999999"},
            {"prompt_tokens": 1, "completion_tokens": 1, "cost": "9" * 400},
            {"prompt_tokens": 1, "completion_tokens": 1, "cost": 1e308},
        ],
        ids=["1e400 tokens", "1e30 tokens", "1e999999999 USD", "400 digits USD", "1e308 USD"],
    )
    def test_usage_beyond_all_reason_poisons_nothing(self, client_for: Any, usage: Any) -> None:
        """One mad number must not use up the budget of a month, nor break the arithmetic."""
        mad, sane = answer(chat_body(usage=usage)), answer(chat_body())
        with RawServer(replies(mad, sane)) as server:
            client = client_for(
                server.url, daily_budget_usd=5, monthly_budget_usd=50, tokens_per_minute=100_000
            )
            first = client.chat("one", model="gpt-4.1", max_retries=0)
            assert math.isfinite(first.to_json()["cost_usd"] or 0.0)
            assert client.chat("two", model="gpt-4.1", max_retries=0).text == "hello"

    @pytest.mark.parametrize(
        "raw",
        [
            b'{"choices": ' + b"[" * 100_000,
            b'{"choices": [{"message": {"content": "x", "tool_calls": 5}}]}',
            b'{"error": {"code": "' + b"4" * 5000 + b'"}}',
            b'{"error": {"message": "x"}, "resetAt": 1' + b"0" * 400 + b"}",
        ],
        ids=["deep", "tool calls", "code", "reset"],
    )
    @pytest.mark.parametrize("status", [200, 429, 500])
    def test_mad_bodies_raise_nothing_foreign(
        self, client_for: Any, raw: bytes, status: int
    ) -> None:
        with RawServer(replies(answer(raw, status))) as server:
            try:
                client_for(server.url).chat("Hi", max_retries=0, timeout_s=2)
            except HolySheepError as error:
                assert len(error.message) < 1000  # noqa: PT017 - an answer is fine as well

    def test_halves_of_characters_do_not_reach_the_caller(self, client_for: Any) -> None:
        raw = chat_body().replace(b"hello", b"a\\ud83d")
        with RawServer(replies(answer(raw))) as server:
            client_for(server.url).chat("Hi").text.encode()


class TestInput:
    @pytest.mark.parametrize(
        ("messages", "params"),
        [
            ([], {}),
            ([{"role": "king", "content": "x"}], {}),
            ([{"content": "x"}], {}),
            (["x"], {}),
            ([None], {}),
            ([{"role": "user", "content": 5}], {}),
            ([{"role": "user", "content": ["x"]}], {}),
            ("Hi", {"temperature": 3}),
            ("Hi", {"temperature": "hot"}),
            ("Hi", {"temperature": float("nan")}),
            ("Hi", {"max_tokens": 0}),
            ("Hi", {"max_tokens": 10**400}),
            ("Hi", {"max_tokens": 10**5000}),
            ("Hi", {"timeout_s": 0}),
            ("Hi", {"timeout_s": float("inf")}),
            ("Hi", {"max_retries": -1}),
            ("Hi", {"nonsense": 1}),
            ("Hi", {"on_error": "continue"}),
            ("Hi", {"response_format": "json_schema"}),
            ("Hi", {"json_schema": "{"}),
            ("Hi", {"tools": 5}),
            ("Hi", {"stop": ["a"] * 5}),
            ("Hi", {"extra_body": {"messages": []}}),
            ("Hi", {"extra_body": {"x": object()}}),
            ("Hi", {"cache": "maybe"}),
            ("Hi", {"fallback_models": 5}),
        ],
        ids=lambda value: repr(value)[:40] if not isinstance(value, dict) else str(list(value)),
    )
    def test_what_is_wrong_is_told_before_anything_is_sent(
        self, upstream: Upstream, client: Client, messages: Any, params: dict[str, Any]
    ) -> None:
        with pytest.raises(InputError) as caught:
            client.chat(messages, **params)
        assert len(caught.value.message.splitlines()) == 1
        assert len(caught.value.message) < 600
        assert upstream.stats().calls == 0

    @pytest.mark.parametrize(
        "content",
        [
            [{"type": "text", "text": object()}],
            [{"type": "text", "text": b"bytes"}],
            [{"type": "text", "text": float("nan")}],
            [{"type": "text", "text": {1, 2}}],
            [{("a", "b"): "x"}],
        ],
        ids=["object", "bytes", "NaN", "set", "key"],
    )
    def test_content_that_is_no_json(
        self, upstream: Upstream, client: Client, content: Any
    ) -> None:
        with pytest.raises(InputError):
            client.chat([{"role": "user", "content": content}])
        assert upstream.stats().calls == 0

    def test_content_that_contains_itself(self, client: Client) -> None:
        part: dict[str, Any] = {"type": "text"}
        part["text"] = part
        with pytest.raises(InputError):
            client.chat([{"role": "user", "content": [part]}])

    def test_half_a_character_in_a_prompt_is_told_or_replaced(
        self, upstream: Upstream, client: Client
    ) -> None:
        """A command line hands bytes that are no UTF-8 on like this."""
        try:
            client.chat("a\udcff\ud83d")
        except InputError:
            assert upstream.stats().calls == 0
        else:
            assert upstream.stats().calls == 1

    @pytest.mark.parametrize("messages", [None, 5])
    def test_no_messages_at_all(self, client: Client, messages: Any) -> None:
        with pytest.raises((InputError, TypeError)):
            client.chat(messages)

    def test_an_unknown_setting(self) -> None:
        with pytest.raises(TypeError, match="unknown settings: colour"):
            Client(KEY, colour="red")


class TestSettings:
    def test_key_and_url_from_the_environment(
        self, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOLYSHEEP_API_KEY", f"  {KEY}\n")
        monkeypatch.setenv("HOLYSHEEP_BASE_URL", f"{upstream.url}/")
        with Client() as client:
            client.chat("Hi")
        sent = upstream.requests()[-1]
        assert sent["headers"]["authorization"] == f"Bearer {KEY}"
        assert sent["path"] == "/v1/chat/completions"

    def test_arguments_win_over_the_environment(
        self, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOLYSHEEP_API_KEY", "test-key-of-the-environment")
        monkeypatch.setenv("HOLYSHEEP_BASE_URL", "http://127.0.0.1:1/v1")
        with Client(KEY, base_url=upstream.url) as client:
            client.chat("Hi")
        assert upstream.requests()[-1]["headers"]["authorization"] == f"Bearer {KEY}"

    @pytest.mark.parametrize(
        ("key", "words"),
        [
            (None, "Set HOLYSHEEP_API_KEY in the environment, or pass api_key"),
            ("", "api_key is empty"),
            ("   ", "api_key is empty"),
            ("test-key", "too short"),
            ("test key with spaces in it", "white space"),
            ("test-key-\u00e9\u00e9\u00e9\u00e9-0123456789", "characters that no key has"),
            ("test-key-\n-0123456789abcdef", "white space"),
            ("test-key-\x00-0123456789abcdef", "characters that no key has"),
        ],
    )
    def test_a_key_that_can_be_none(self, key: str | None, words: str) -> None:
        with pytest.raises(SettingsError, match=words) as caught:
            Client(key)
        assert "test" not in caught.value.message

    def test_an_empty_key_is_not_taken_from_the_environment(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOLYSHEEP_API_KEY", KEY)
        with pytest.raises(SettingsError):
            Client("")

    @pytest.mark.parametrize(
        "url",
        [
            "ftp://host/v1",
            "host/v1",
            "http://",
            "http://user:word@host/v1",
            "http://host/v1?x=1",
            "http://host/v1#x",
            "http://[::1/v1",
            "http://host:port/v1",
            "http://host\x00/v1",
        ],
    )
    def test_a_base_url_that_can_be_none(self, url: str) -> None:
        with pytest.raises(SettingsError, match="base_url"):
            Client(KEY, base_url=url)

    @pytest.mark.parametrize("ending", ["", "/", "//", "/chat/completions", "/chat/completions/"])
    def test_endings_of_the_base_url_do_not_matter(
        self, upstream: Upstream, client_for: Any, ending: str
    ) -> None:
        client_for(upstream.url + ending).chat("Hi")
        assert upstream.requests()[-1]["path"] == "/v1/chat/completions"

    def test_an_ipv6_gateway(self, client_for: Any) -> None:
        with RawServer(replies(answer(chat_body())), host="::1") as server:
            assert client_for(server.url).chat("Hi").text == "hello"
            assert server.requests[0].headers["host"] == f"[::1]:{server.port}"

    def test_a_name_of_the_loopback(self, upstream: Upstream, client_for: Any) -> None:
        client_for(upstream.url.replace("127.0.0.1", "localhost")).chat("Hi")


class TestModelsAndCheck:
    def test_models(self, upstream: Upstream, client: Client) -> None:
        upstream.script(do.model_list("b", "a", "c/d"), model="@models")
        assert client.models() == ["a", "b", "c/d"]

    def test_check(self, upstream: Upstream, client: Client) -> None:
        assert client.check() is None
        assert upstream.stats().models_calls == 1
        assert upstream.stats().calls == 0

    def test_check_of_a_wrong_key(self, upstream: Upstream, client_for: Any) -> None:
        with pytest.raises(AuthError, match="refused the API key"):
            client_for(upstream.url, "test-key-wrong-0123456789").check()


class TestTls:
    @pytest.fixture(scope="class")
    @staticmethod
    def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
        return make_certificate(tmp_path_factory.mktemp("tls"))

    def test_a_certificate_that_nobody_vouches_for_is_refused(
        self, certificate: tuple[Path, Path], client_for: Any
    ) -> None:
        context = tls_server_context(*certificate)
        with RawServer(replies(answer(chat_body())), tls=context) as server:
            client = client_for(server.url)
            for ask in (lambda: client.chat("Hi", max_retries=0), client.models, client.check):
                with pytest.raises(ConnectFailed, match="TLS certificate could not be verified"):
                    ask()
            assert server.requests == []

    def test_https_to_a_server_without_it(self, client_for: Any) -> None:
        def serve(link: Link) -> None:
            link.sock.recv(1000)
            link.send(answer(b"", 400))

        with RawServer(serve) as server, pytest.raises(ConnectFailed):
            client_for(server.url.replace("http:", "https:")).chat("Hi", max_retries=0)

    @pytest.mark.parametrize("way", ["direct", "http proxy", "socks proxy"])
    def test_one_that_the_machine_trusts_is_accepted(
        self, certificate: tuple[Path, Path], way: str
    ) -> None:
        """In a process of its own: certificates are read once a process."""
        script = (
            "import holysheep\n"
            "with holysheep.Client() as client:\n"
            "    print(client.chat('Hi').text)\n"
            "    stream = client.stream('Ho')\n"
            "    print(''.join(piece.text for piece in stream))\n"
        )
        good = replies(answer(chat_body()), chunked(stream_body()))
        port = 0

        def proxy(link: Link) -> None:
            if way == "http proxy":
                assert link.read_head().startswith(b"CONNECT 127.0.0.1:%d HTTP/1.1" % port)
                link.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                assert link.sock.recv(100) == b"\x05\x01\x00"
                link.send(b"\x05\x00")
                assert link.sock.recv(100)[:4] == b"\x05\x01\x00\x01"
                link.send(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
            relay(link, port)

        with (
            RawServer(good, tls=tls_server_context(*certificate)) as server,
            RawServer(proxy) as between,
        ):
            port = server.port
            environment = {
                **os.environ,
                "SSL_CERT_FILE": str(certificate[0]),
                "HOLYSHEEP_API_KEY": KEY,
                "HOLYSHEEP_BASE_URL": server.url,
            }
            if way != "direct":
                scheme = "http" if way == "http proxy" else "socks5"
                environment["HTTPS_PROXY"] = f"{scheme}://127.0.0.1:{between.port}"
            ended = subprocess.run(
                [sys.executable, "-W", "error", "-c", script],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=20,
            )
            assert (ended.stdout, ended.stderr) == ("hello\nhello\n", "")
            assert server.connections == 1
            assert between.connections == (way != "direct")


def test_a_client_that_is_shared_and_broken_does_not_mix_up_answers(client_for: Any) -> None:
    """Servers that send more than they announced must not shift answers by one."""
    stray = answer(chat_body("of nobody"))

    def serve(link: Link) -> None:
        first = True
        while (request := link.read_request()) is not None:
            link.send(answer(chat_body(f"re: {request.text}")) + (stray if first else b""))
            first = False

    with RawServer(serve) as server:
        client = client_for(server.url)
        got = [client.chat(f"question {n}").text for n in range(5)]
        assert got == [f"re: question {n}" for n in range(5)]


def test_threads_that_start_together_open_one_connection_each(client_for: Any) -> None:
    together = threading.Barrier(8)

    def serve(link: Link) -> None:
        while (request := link.read_request()) is not None:
            together.wait(5)
            link.send(answer(chat_body(request.text)))

    with RawServer(serve) as server, ThreadPoolExecutor(8) as threads:
        client = client_for(server.url)
        for turn in range(3):
            texts = [f"{turn} {n}" for n in range(8)]
            assert list(threads.map(lambda text: client.chat(text).text, texts)) == texts
        assert server.connections == 8


def test_the_public_names_are_what_the_package_says() -> None:
    assert sorted(holysheep.__all__) == holysheep.__all__
    assert all(hasattr(holysheep, name) for name in holysheep.__all__)
