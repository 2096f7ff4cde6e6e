"""Whether a credential works: the answers that say so, and the sentence for each that does not."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from devtools.upstream import Upstream
from devtools.upstream import behaviours as do
from holysheep.client import Client
from holysheep.credentials import check_credentials, list_models
from holysheep.engine import Engine
from holysheep.errors import (
    AuthError,
    BadResponse,
    ConnectFailed,
    HolySheepError,
    QuotaExhausted,
    RateLimited,
    ServerError,
    SettingsError,
    TimedOut,
    UpstreamError,
)
from holysheep.ports import SystemClock
from holysheep.registry import Registry
from holysheep.settings import Settings
from tests.engine.raw_servers import (
    KEY,
    Link,
    RawServer,
    answer,
    chat_body,
    closed_port,
    forget_proxies,
    replies,
)
from tests.redis.servers import RedisServer, needs_redis_server

CLOCK = SystemClock()
PAGE = {"content-type": "text/html"}


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)


@pytest.fixture
def engine_for() -> Iterator[Callable[..., Engine]]:
    """Makes engines whose connections are closed when the test ends."""
    registry = Registry(clock=CLOCK)

    def make(url: str, key: str = KEY, **settings: Any) -> Engine:
        return registry.engine(Settings(key, base_url=url, **settings))

    yield make
    registry.close()


def models_of(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return answer(raw, status, headers)


def routes(models: bytes, chat: bytes) -> Callable[[Link], None]:
    """A gateway with these answers for the model list and for a chat."""

    def serve(link: Link) -> None:
        while (request := link.read_request()) is not None:
            link.send(models if request.line.startswith("GET /v1/models ") else chat)

    return serve


class TestModels:
    def test_ids_are_sorted(self, upstream: Upstream, engine_for: Any) -> None:
        upstream.script(do.model_list("b", "a", "B"), model="@models")
        assert list_models(engine_for(upstream.url), clock=CLOCK) == ["B", "a", "b"]

    @pytest.mark.parametrize(
        ("body", "ids"),
        [
            ({"data": []}, []),
            ({"data": [{"id": "a", "extra": 1}, {"no": "id"}, "odd", None, 5]}, ["a"]),
            ({"object": "list", "data": [{"id": "a"}], "x": [[]]}, ["a"]),
        ],
    )
    def test_what_is_no_model_is_left_out(self, engine_for: Any, body: Any, ids: Any) -> None:
        with RawServer(replies(models_of(body))) as server:
            assert list_models(engine_for(server.url), clock=CLOCK) == ids

    @pytest.mark.parametrize(
        ("raw", "kind", "words"),
        [
            (models_of({}, 401), AuthError, "HTTP 401"),
            (models_of({}, 403), AuthError, "HTTP 403"),
            (models_of({"error": {"message": "Empty."}}, 402), QuotaExhausted, "Empty."),
            (models_of({}, 404), SettingsError, "no OpenAI-compatible API"),
            (models_of({}, 405), SettingsError, "no OpenAI-compatible API"),
            (models_of({}, 429), RateLimited, "HTTP 429"),
            (models_of({}, 500), ServerError, "HTTP 500"),
            (models_of(b"busy", 503), ServerError, "HTTP 503"),
            (models_of(b"", 301, {"location": "/x"}), BadResponse, "redirect"),
            (models_of(b"<html>", 200, PAGE), SettingsError, "usually ends in /v1"),
            (models_of(b"<html>", 404, PAGE), SettingsError, "usually ends in /v1"),
            (models_of([]), SettingsError, "no OpenAI-compatible API"),
            (models_of(b""), SettingsError, "no OpenAI-compatible API"),
            (models_of(b"text"), SettingsError, "no OpenAI-compatible API"),
            (models_of({"data": {}}), SettingsError, "no OpenAI-compatible API"),
            (models_of({"models": []}), SettingsError, "no OpenAI-compatible API"),
            (models_of(b'{"data":' + b"[" * 100_000), HolySheepError, ""),
            (models_of(b"x", 200, {"content-encoding": "gzip"}), HolySheepError, ""),
        ],
    )
    def test_failures(
        self, engine_for: Any, raw: bytes, kind: type[HolySheepError], words: str
    ) -> None:
        with RawServer(replies(raw)) as server, pytest.raises(kind) as caught:
            list_models(engine_for(server.url), clock=CLOCK)
        assert words in caught.value.message
        assert len(caught.value.message.splitlines()) == 1
        assert KEY not in caught.value.message


class TestCheck:
    def test_a_model_list_is_enough(self, upstream: Upstream, engine_for: Any) -> None:
        check_credentials(engine_for(upstream.url), clock=CLOCK)
        stats = upstream.stats()
        assert (stats.models_calls, stats.calls) == (1, 0)

    @pytest.mark.parametrize("auth_header", ["bearer", "x-api-key", "both"])
    def test_in_the_header_that_was_chosen(
        self, upstream: Upstream, engine_for: Any, auth_header: str
    ) -> None:
        check_credentials(engine_for(upstream.url, auth_header=auth_header), clock=CLOCK)

    @pytest.mark.parametrize("key", ["test-key-wrong-0123456789", "test-key-forbidden-0123456789"])
    def test_a_refused_key(self, upstream: Upstream, engine_for: Any, key: str) -> None:
        with pytest.raises(AuthError, match="Check api_key, base_url and auth_header") as caught:
            check_credentials(engine_for(upstream.url, key), clock=CLOCK)
        assert key not in f"{caught.value.message}{caught.value.detail}"

    @pytest.mark.parametrize(
        "raw",
        [
            models_of({"error": "busy"}, 429),
            models_of(b"busy", 429),
            models_of({"error": {"message": "x"}}, 500),
            models_of({"type": "error"}, 529),
            models_of(b"upstream connect error", 503, {"content-type": "text/plain"}),
            models_of(b"", 504),
        ],
        ids=["429", "429 text", "500", "529", "503 text", "504 empty"],
    )
    def test_a_gateway_that_is_busy_is_no_reason_to_refuse_a_key(
        self, engine_for: Any, raw: bytes
    ) -> None:
        with RawServer(replies(raw)) as server:
            check_credentials(engine_for(server.url), clock=CLOCK)

    @pytest.mark.parametrize(
        ("raw", "kind", "words"),
        [
            (models_of(b"<html>", 502, PAGE), ServerError, "error page at the moment (HTTP 502)"),
            (models_of(b"<!DOCTYPE html>", 503), ServerError, "Check base_url, or try again"),
            (models_of(b"<html>", 429, PAGE), RateLimited, "error page at the moment (HTTP 429)"),
            (models_of(b"<html>", 403, PAGE), SettingsError, "usually ends in /v1"),
            (models_of(b"<html>", 400, PAGE), SettingsError, "usually ends in /v1"),
            (models_of({}, 402), QuotaExhausted, "HTTP 402"),
            (models_of({}, 400), UpstreamError, "HTTP 400"),
            (models_of(b"", 301, {"location": "/x"}), BadResponse, "redirect"),
            (models_of(b"<html>", 200, PAGE), SettingsError, "usually ends in /v1"),
            (models_of([]), SettingsError, "no OpenAI-compatible API"),
            (models_of(b""), SettingsError, "no OpenAI-compatible API"),
            (models_of(b'{"data":' + b"[" * 100_000), HolySheepError, ""),
            (models_of(b"x", 200, {"content-encoding": "gzip"}), HolySheepError, ""),
        ],
    )
    def test_failures(
        self, engine_for: Any, raw: bytes, kind: type[HolySheepError], words: str
    ) -> None:
        with RawServer(replies(raw)) as server, pytest.raises(kind) as caught:
            check_credentials(engine_for(server.url), clock=CLOCK)
        assert words in caught.value.message
        assert len(caught.value.message.splitlines()) == 1

    def test_an_address_where_nobody_listens(self, engine_for: Any) -> None:
        url = f"http://127.0.0.1:{closed_port()}/v1"
        with pytest.raises(ConnectFailed) as caught:
            check_credentials(engine_for(url), clock=CLOCK)
        assert caught.value.message.startswith(f"{url} could not be reached. Check base_url")

    def test_a_silent_server_is_cut_off(self, engine_for: Any) -> None:
        with RawServer(Link.wait_for_end) as server:
            began_s = time.monotonic()
            with pytest.raises(TimedOut):
                check_credentials(engine_for(server.url), clock=CLOCK, timeout_s=0.2)
            assert 0.2 <= time.monotonic() - began_s < 0.6


class TestWithoutModelList:
    """Some gateways have no such route; then the shortest chat tells."""

    @pytest.mark.parametrize("status", [404, 405, 501])
    @pytest.mark.parametrize(
        "chat",
        [
            answer(chat_body()),
            models_of({"error": {"message": "Unknown model"}}, 404),
            models_of({"error": {"message": "No"}}, 400),
            models_of({"error": "busy"}, 429),
            models_of({"error": "no balance"}, 402),
            models_of({"error": "down"}, 503),
            models_of(b"busy", 503, {"content-type": "text/plain"}),
            models_of({"error": {"code": "model_not_found"}}, 404),
            models_of({"error": {"message": "model: my-model", "type": "not_found_error"}}, 404),
        ],
        ids=[
            *("answer", "unknown model", "400", "429", "402", "503", "503 text"),
            *("model code", "model id"),
        ],
    )
    def test_any_answer_of_an_api_will_do(self, engine_for: Any, status: int, chat: bytes) -> None:
        with RawServer(routes(models_of({}, status), chat)) as server:
            check_credentials(engine_for(server.url, default_model="my-model"), clock=CLOCK)
            probe = json.loads(server.requests[-1].body)
            assert probe["model"] == "my-model"
            assert probe["max_tokens"] == 1
            assert server.connections == 1

    @pytest.mark.parametrize(
        ("chat", "kind"),
        [
            (models_of({}, 401), AuthError),
            (models_of({}, 403), AuthError),
            (models_of(b"<html>", 200, PAGE), SettingsError),
            (models_of(b"", 404), SettingsError),
            (models_of({"detail": "Not Found"}, 404), SettingsError),
            (models_of({"error": "model route"}, 404), SettingsError),
            (models_of({"error": {"message": "See /models for the routes"}}, 404), SettingsError),
            (models_of(b"<html>", 502, PAGE), ServerError),
            (models_of(b"<html>", 401, PAGE), SettingsError),
            (models_of(b"not implemented", 501), SettingsError),
            (models_of({"detail": "Method Not Allowed"}, 405), SettingsError),
            (models_of('{"error": "x"}'.encode("utf-16"), 404), SettingsError),
            (models_of(b"text"), SettingsError),
        ],
    )
    def test_others_will_not(
        self, engine_for: Any, chat: bytes, kind: type[HolySheepError]
    ) -> None:
        with RawServer(routes(models_of({}, 404), chat)) as server, pytest.raises(kind):
            check_credentials(engine_for(server.url), clock=CLOCK)


class TestRedis:
    """A Redis that cannot be used is told before the gateway is asked anything."""

    def test_one_that_nobody_runs(self, upstream: Upstream, engine_for: Any) -> None:
        engine = engine_for(upstream.url, redis_url=f"redis://127.0.0.1:{closed_port()}")
        with pytest.raises(SettingsError, match="Redis could not be reached"):
            check_credentials(engine, clock=CLOCK)
        assert upstream.requests() == []

    def test_a_listing_of_models_does_without(self, upstream: Upstream, engine_for: Any) -> None:
        engine = engine_for(upstream.url, redis_url=f"redis://127.0.0.1:{closed_port()}")
        assert list_models(engine, clock=CLOCK)

    @needs_redis_server
    def test_one_that_works_stops_and_freezes(self, upstream: Upstream, engine_for: Any) -> None:
        with RedisServer(password="secret-word") as server:
            engine = engine_for(upstream.url, redis_url=server.url)
            client = Client(KEY, base_url=upstream.url, redis_url=server.url)
            check_credentials(engine, clock=CLOCK)
            client.check()
            assert upstream.stats().models_calls == 2
            server.freeze()
            began_s = time.monotonic()
            for check in (client.check, lambda: check_credentials(engine, clock=CLOCK)):
                with pytest.raises(SettingsError, match="Redis did not answer within"):
                    check()
            assert time.monotonic() - began_s < 2
            server.kill()
            with pytest.raises(SettingsError, match="Redis could not be reached"):
                client.check()
            assert upstream.stats().models_calls == 2
            server.start()
            client.check()
            client.close()

    @needs_redis_server
    def test_a_key_that_is_refused_is_told_all_the_same(
        self, upstream: Upstream, engine_for: Any
    ) -> None:
        with RedisServer() as server:
            engine = engine_for(upstream.url, "test-key-wrong-0123456789", redis_url=server.url)
            with pytest.raises(AuthError):
                check_credentials(engine, clock=CLOCK)
