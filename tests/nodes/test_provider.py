"""Saving a credential: what is checked, and the sentence for each thing that is wrong."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING, Any

import pytest

from devtools.upstream import behaviours as do
from tests.nodes.servers import Exchange, LoopbackServer, closed_port, json_answer
from tests.nodes.support import PATIENCE_S, REFUSED_KEY, Llm, check_sentence, fresh_key
from tests.redis.servers import RedisServer, needs_redis_server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from devtools.upstream import Upstream
    from tests.host.daemon import PluginProcess

GOOD_KEY = "test-key-abcdefghijklmnop"
COMPLETION = {
    "choices": [{"index": 0, "message": {"content": "pong"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
MODELS = {"object": "list", "data": [{"id": "gpt-4.1", "object": "model"}]}


def saved(plugin: PluginProcess, upstream: Upstream, **credentials: Any) -> None:
    """Save a credential that has to be accepted."""
    given = {"api_key": fresh_key(), "base_url": upstream.url, **credentials}
    assert plugin.validate(given, timeout_s=PATIENCE_S) is None


def refused(plugin: PluginProcess, upstream: Upstream, **credentials: Any) -> str:
    """The sentence with which a credential is refused."""
    given = {"api_key": fresh_key(), "base_url": upstream.url, **credentials}
    error = plugin.validate(given, timeout_s=PATIENCE_S)
    assert error is not None, "the credential was accepted"
    assert error.type == "CredentialsValidateFailedError"
    check_sentence(error.message)
    key = str(given["api_key"] or "")
    if len(key) > 8:
        assert key not in error.message + repr(error.args)
    return error.message


def page(status: int = 200) -> Callable[[Exchange], None]:
    html = b"<!DOCTYPE html><html><body>Welcome</body></html>"
    return lambda exchange: exchange.answer(status, html, {"content-type": "text/html"})


def plain(status: int, words: bytes = b"404 page not found") -> Callable[[Exchange], None]:
    return lambda exchange: exchange.answer(status, words, {"content-type": "text/plain"})


# --- accepted ---


def test_good_key_is_accepted_by_asking_for_the_models(
    plugin: PluginProcess, upstream: Upstream
) -> None:
    saved(plugin, upstream)
    stats = upstream.stats()
    assert (stats.models_calls, stats.calls) == (1, 0)
    (request,) = upstream.requests()
    assert (request["method"], request["path"]) == ("GET", "/v1/models")


def test_everything_that_is_optional_may_be_empty(
    plugin: PluginProcess, upstream: Upstream
) -> None:
    names = (
        *("auth_header", "default_model", "requests_per_minute", "tokens_per_minute"),
        *("max_concurrency", "daily_budget_usd", "monthly_budget_usd", "price_overrides"),
        "redis_url",
    )
    saved(plugin, upstream, **dict.fromkeys(names, ""))
    saved(plugin, upstream, **dict.fromkeys(names, None))


@pytest.mark.parametrize("compare_at", ["5", "{input: 5, output: 10}"], ids=["one", "two"])
def test_price_may_be_compared_with_another(
    plugin: PluginProcess, upstream: Upstream, compare_at: str
) -> None:
    prices = f"{{mine: {{input: 1, output: 3, compare_at: {compare_at}}}}}"
    saved(plugin, upstream, price_overrides=prices)


def test_everything_may_be_set(plugin: PluginProcess, upstream: Upstream) -> None:
    saved(
        *(plugin, upstream),
        auth_header="both",
        default_model="gpt-4.1",
        requests_per_minute="120",
        tokens_per_minute="100000.5",
        max_concurrency="50",
        daily_budget_usd="0.5",
        monthly_budget_usd="1e2",
        price_overrides="{mine: {input: 1, cached_input: 0.1, cache_write: 2, output: 3}}",
    )


@pytest.mark.parametrize("suffix", ["/", "//", " ", "/chat/completions"])
def test_base_url_may_be_pasted_untidily(
    plugin: PluginProcess, upstream: Upstream, suffix: str
) -> None:
    saved(plugin, upstream, base_url=f" {upstream.url}{suffix}")
    llm = Llm(plugin, upstream, base_url=f" {upstream.url}{suffix}")
    llm.ok()
    assert upstream.requests()[-1]["path"] == "/v1/chat/completions"


@pytest.mark.parametrize("key", ["sk-abcdefghijklmnopq", "cr_abcdefghijklmnopq", "x" * 20])
def test_key_of_any_form_is_accepted(plugin: PluginProcess, upstream: Upstream, key: str) -> None:
    saved(plugin, upstream, api_key=key)


@pytest.mark.parametrize("prefix", ["Bearer ", "bearer ", "BEARER   ", " Bearer "])
def test_pasted_bearer_is_removed(plugin: PluginProcess, upstream: Upstream, prefix: str) -> None:
    key = fresh_key()
    saved(plugin, upstream, api_key=f"{prefix}{key} ")
    assert upstream.requests()[-1]["headers"]["authorization"] == f"Bearer {key}"
    Llm(plugin, upstream, api_key=key).like(api_key=f"{prefix}{key}").ok()
    assert upstream.requests()[-1]["headers"]["authorization"] == f"Bearer {key}"


@pytest.mark.parametrize("space", [" ", "\n", "\t", "\r\n"], ids=repr)
def test_space_round_a_key_is_removed(
    plugin: PluginProcess, upstream: Upstream, space: str
) -> None:
    key = fresh_key()
    saved(plugin, upstream, api_key=f"{space}{key}{space}")
    assert upstream.requests()[-1]["headers"]["authorization"] == f"Bearer {key}"


@pytest.mark.parametrize(
    ("auth_header", "sent"),
    [
        ("bearer", {"authorization"}),
        ("x-api-key", {"x-api-key"}),
        ("both", {"authorization", "x-api-key"}),
        ("", {"authorization"}),
        (None, {"authorization"}),
    ],
)
def test_key_is_sent_in_the_chosen_headers(
    plugin: PluginProcess, upstream: Upstream, auth_header: str | None, sent: set[str]
) -> None:
    llm = Llm(plugin, upstream, auth_header=auth_header)
    saved(plugin, upstream, **llm.credentials)
    llm.ok()
    values = {"authorization": f"Bearer {llm.key}", "x-api-key": llm.key}
    for request in upstream.requests():
        headers = {name: request["headers"].get(name) for name in values}
        assert headers == {name: values[name] if name in sent else None for name in values}


@pytest.mark.parametrize("code", [429, 500, 503])
def test_gateway_that_is_busy_is_no_reason_to_refuse_a_key(
    plugin: PluginProcess, upstream: Upstream, code: int
) -> None:
    """The contract lists what is wrong with a credential; a bad moment is not."""
    upstream.default(do.status(code), model="@models")
    error = plugin.validate({"api_key": fresh_key(), "base_url": upstream.url})
    if error is not None:
        check_sentence(error.message)
        assert str(code) in error.message


def test_checking_leaves_nothing_behind(plugin: PluginProcess, upstream: Upstream) -> None:
    saved(plugin, upstream)
    assert plugin.storage.counts == {}


def test_checking_does_not_take_from_the_limits(plugin: PluginProcess, upstream: Upstream) -> None:
    llm = Llm(plugin, upstream, requests_per_minute="1")
    saved(plugin, upstream, **llm.credentials)
    saved(plugin, upstream, **llm.credentials)
    llm.ok()


# --- a gateway without a list of models ---


@pytest.mark.parametrize(
    "missing",
    [json_answer({"error": {"message": "Unknown route"}}, 404), plain(404), plain(405), plain(501)],
    ids=["json_404", "text_404", "text_405", "text_501"],
)
@pytest.mark.parametrize(
    "chat",
    [
        json_answer(COMPLETION),
        json_answer(
            {"error": {"message": "The model does not exist", "code": "model_not_found"}}, 404
        ),
        json_answer({"error": {"message": "model is not available"}}, 400),
        json_answer({"error": {"message": "slow down"}}, 429),
        json_answer({"error": "no balance", "message": "no balance"}, 402),
    ],
    ids=["answer", "unknown_model", "bad_request", "busy", "no_money"],
)
def test_gateway_without_models_is_accepted_once_its_chat_route_answers(
    plugin: PluginProcess, upstream: Upstream, missing: Any, chat: Any
) -> None:
    with LoopbackServer({"/v1/models": missing, "/v1/chat/completions": chat}) as server:
        saved(plugin, upstream, base_url=f"{server.url}/v1")
        assert server.seen == [("GET", "/v1/models"), ("POST", "/v1/chat/completions")]


@pytest.mark.parametrize("code", [401, 403])
def test_wrong_key_is_noticed_at_the_chat_route_too(
    plugin: PluginProcess, upstream: Upstream, code: int
) -> None:
    routes = {"/v1/models": plain(404), "/v1/chat/completions": json_answer({"error": "no"}, code)}
    with LoopbackServer(routes) as server:
        assert "key" in refused(plugin, upstream, base_url=f"{server.url}/v1")


# --- refused by the gateway ---


@pytest.mark.parametrize(("key", "code"), [("wrong", 401), ("forbidden", 403)])
@pytest.mark.parametrize("auth_header", ["bearer", "x-api-key", "both"])
def test_wrong_key(
    plugin: PluginProcess, upstream: Upstream, key: str, code: int, auth_header: str
) -> None:
    api_key = f"test-key-that-is-{key}-{fresh_key()}"
    message = refused(plugin, upstream, api_key=api_key, auth_header=auth_header)
    assert "key" in message
    assert str(code) in message
    assert upstream.stats().calls == 0


@pytest.mark.parametrize(
    "error",
    [
        {"message": "no", "code": "invalid_api_key"},
        {"message": "no", "type": "authentication_error"},
        {"message": "no", "code": 401},
    ],
    ids=["code", "type", "number"],
)
def test_wrong_key_inside_a_success(
    plugin: PluginProcess, upstream: Upstream, error: dict[str, Any]
) -> None:
    with LoopbackServer({"*": json_answer({"error": error})}) as server:
        assert "key" in refused(plugin, upstream, base_url=f"{server.url}/v1")


@pytest.mark.parametrize(
    "routes",
    [
        {"*": page()},
        {"*": page(404)},
        {"*": page(403 + 2)},
        {"*": plain(404)},
        {"*": json_answer({"detail": "Not Found"}, 404)},
        {"/v1/models": json_answer(b"{")},
        {"/v1/models": json_answer([1])},
        {"/v1/models": plain(200, b"it works")},
        {"/v1/models": plain(200, b"")},
        {"/v1/models": json_answer(b"[" * 100_000)},
        {"/v1/models": json_answer({"data": []}, 404), "/v1/chat/completions": page()},
    ],
    ids=[
        "page",
        "page_404",
        "page_405",
        "text_404",
        "json_404",
        "broken_json",
        "list",
        "text",
        "nothing",
        "deep_nesting",
        "page_at_chat",
    ],
)
def test_base_url_with_no_api_behind_it(
    plugin: PluginProcess, upstream: Upstream, routes: Any
) -> None:
    with LoopbackServer(routes) as server:
        message = refused(plugin, upstream, base_url=f"{server.url}/v1")
    assert "base_url" in message
    assert "could not be reached" not in message


@pytest.mark.parametrize("code", [429, 502, 503])
def test_error_page_before_a_gateway_is_no_api(
    plugin: PluginProcess, upstream: Upstream, code: int
) -> None:
    with LoopbackServer({"*": page(code)}) as server:
        message = refused(plugin, upstream, base_url=f"{server.url}/v1")
    assert f"error page at the moment (HTTP {code})" in message
    assert "base_url" in message


def test_route_that_is_missing_is_not_taken_for_a_missing_model(
    plugin: PluginProcess, upstream: Upstream
) -> None:
    with LoopbackServer({"*": json_answer({"error": "model route"}, 404)}) as server:
        assert "base_url" in refused(plugin, upstream, base_url=f"{server.url}/v1")


def test_base_url_without_its_path(plugin: PluginProcess, upstream: Upstream) -> None:
    message = refused(plugin, upstream, base_url=upstream.url.removesuffix("/v1"))
    assert "base_url" in message
    assert "/v1" in message


def test_gateway_that_nobody_runs(plugin: PluginProcess, upstream: Upstream) -> None:
    url = f"http://127.0.0.1:{closed_port()}/v1"
    message = refused(plugin, upstream, base_url=url)
    assert "reached" in message
    assert "base_url" in message


def test_host_that_does_not_exist(plugin: PluginProcess, upstream: Upstream) -> None:
    message = refused(plugin, upstream, base_url="https://gateway.invalid/v1")
    assert "reached" in message
    assert "TLS" not in message


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_connection_that_breaks_during_the_check(
    plugin: PluginProcess, upstream: Upstream, how: Any
) -> None:
    upstream.default(do.reset("accept", how=how), model="@models")
    refused(plugin, upstream)


@pytest.mark.parametrize("code", [301, 307, 308])
def test_redirect_is_not_followed_with_the_key(
    plugin: PluginProcess, upstream: Upstream, code: int
) -> None:
    with LoopbackServer({"*": json_answer(MODELS)}) as elsewhere:
        upstream.default(do.redirect(f"{elsewhere.url}/v1/models", code), model="@models")
        refused(plugin, upstream)
        assert elsewhere.seen == []


# --- TLS ---


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_certificate_that_nobody_signed(
    plugin: PluginProcess, upstream: Upstream, tls: ssl.SSLContext
) -> None:
    with LoopbackServer({"*": json_answer(MODELS)}, tls=tls) as server:
        message = refused(plugin, upstream, base_url=f"{server.url}/v1")
        assert server.seen == [], "nothing is sent to a server that is not who it says it is"
        assert "TLS" in message
        assert "certificate" in message
        llm = Llm(plugin, upstream, base_url=f"{server.url}/v1")
        assert "certificate" in llm.failure(max_retries=0).message
        assert server.seen == []


def test_certificate_that_is_trusted(
    quick_plugin: PluginProcess, upstream: Upstream, tls: ssl.SSLContext
) -> None:
    routes = {"/v1/models": json_answer(MODELS), "/v1/chat/completions": json_answer(COMPLETION)}
    with LoopbackServer(routes, tls=tls) as server:
        saved(quick_plugin, upstream, base_url=f"{server.url}/v1")
        llm = Llm(quick_plugin, upstream, base_url=f"{server.url}/v1")
        assert llm.ok().text == "pong"


def test_certificate_of_another_name(
    quick_plugin: PluginProcess, upstream: Upstream, tls: ssl.SSLContext
) -> None:
    with LoopbackServer({"*": json_answer(MODELS)}, tls=tls) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        message = refused(quick_plugin, upstream, base_url=f"{url}/v1")
        assert server.seen == []
    assert "TLS" in message


def test_https_to_a_port_without_tls(plugin: PluginProcess, upstream: Upstream) -> None:
    message = refused(plugin, upstream, base_url=upstream.url.replace("http://", "https://"))
    assert "TLS" in message


def test_http_to_a_port_with_tls(
    plugin: PluginProcess, upstream: Upstream, tls: ssl.SSLContext
) -> None:
    with LoopbackServer({"*": json_answer(MODELS)}, tls=tls) as server:
        url = server.url.replace("https://", "http://")
        refused(plugin, upstream, base_url=f"{url}/v1")


# --- a Redis ---

REDIS_PASSWORD = "word-of-the-redis/%@"


def check_password_hidden(plugin: PluginProcess, *seen: object) -> None:
    everything = [*seen, plugin.stderr, [*plugin.logs], [*plugin.late], plugin.storage.data]
    for form in (REDIS_PASSWORD, "word-of-the-redis"):
        assert form not in "".join(map(repr, everything))


@needs_redis_server
def test_redis_that_will_do_is_accepted_and_then_used(
    plugin: PluginProcess, upstream: Upstream
) -> None:
    with RedisServer(password=REDIS_PASSWORD) as server:
        llm = Llm(plugin, upstream, redis_url=f" {server.url} ")
        saved(plugin, upstream, **llm.credentials)
        assert upstream.stats().models_calls == 1
        assert server.calls()["evalsha"] == 1
        result = llm.start().result(PATIENCE_S)
        assert result.error is None
        assert result.variables["meta"]["backend"] == "redis"
        assert any(b":answer:" in key for key in keys_of(server))
        check_password_hidden(plugin, result)


def keys_of(server: RedisServer) -> list[bytes]:
    """The keys, once the answer of a call is there, which is stored behind it."""
    until_s = time.monotonic() + PATIENCE_S
    keys: list[bytes] = []
    while not any(b":answer:" in key for key in keys) and time.monotonic() < until_s:
        keys = server.client().keys("holysheep:1:*")
    return keys


@needs_redis_server
def test_redis_that_cannot_be_used_is_refused_before_the_gateway_is_asked(
    plugin: PluginProcess, upstream: Upstream
) -> None:
    with RedisServer(password=REDIS_PASSWORD) as server:
        login = server.url.rpartition("@")[0]
        refusals = {
            f"{login}@127.0.0.1:{closed_port()}": "could not be reached",
            f"redis://127.0.0.1:{server.port}": "wants a login",
            f"{login}-not@127.0.0.1:{server.port}": "refused the login",
            f"{login.replace('redis:', 'redis+cluster:')}@127.0.0.1:{server.port}": "is none",
        }
        for url, words in refusals.items():
            message = refused(plugin, upstream, redis_url=url)
            assert words in message
            check_password_hidden(plugin, message)
        server.become_replica_of_nobody_reachable()
        assert "can only be read" in refused(plugin, upstream, redis_url=server.url)
    assert upstream.requests() == []


@needs_redis_server
def test_redis_that_is_frozen_is_told_within_two_seconds(
    plugin: PluginProcess, upstream: Upstream
) -> None:
    with RedisServer(password=REDIS_PASSWORD) as server:
        saved(plugin, upstream, redis_url=server.url)
        server.freeze()
        began_s = time.monotonic()
        message = refused(plugin, upstream, redis_url=server.url)
        assert time.monotonic() - began_s < 2
        assert "did not answer within" in message
        check_password_hidden(plugin, message)


@needs_redis_server
def test_redis_over_tls_is_accepted_where_its_authority_is_named(
    plugin: PluginProcess, upstream: Upstream
) -> None:
    with RedisServer(tls=True) as server:
        saved(plugin, upstream, redis_url=server.url)
        message = refused(plugin, upstream, redis_url=server.url.partition("?")[0])
        assert "certificate of Redis could not be verified" in message


# --- refused before anything is asked ---

BAD_FIELDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "key_missing": ({"api_key": None}, ("api_key",)),
    "key_empty": ({"api_key": ""}, ("api_key",)),
    "key_space": ({"api_key": " \n"}, ("api_key",)),
    "key_bearer_only": ({"api_key": "Bearer "}, ("api_key",)),
    "key_short": ({"api_key": "x" * 19}, ("api_key", "20")),
    "key_short_after_bearer": ({"api_key": "Bearer " + "x" * 19}, ("api_key", "20")),
    "key_with_space": ({"api_key": f"{GOOD_KEY} {GOOD_KEY}"}, ("api_key", "white space")),
    "key_with_tab": ({"api_key": f"{GOOD_KEY}\t{GOOD_KEY}"}, ("api_key", "white space")),
    "key_with_line": ({"api_key": f"{GOOD_KEY}\n{GOOD_KEY}"}, ("api_key", "white space")),
    "key_with_hard_space": ({"api_key": f"{GOOD_KEY}\u00a0{GOOD_KEY}"}, ("api_key",)),
    "key_not_ascii": ({"api_key": f"{GOOD_KEY}é"}, ("api_key",)),
    "key_with_dots": ({"api_key": f"{GOOD_KEY}…{GOOD_KEY}"}, ("api_key",)),
    "key_with_nul": ({"api_key": f"{GOOD_KEY}\x00"}, ("api_key",)),
    "key_with_quotes_of_a_header": ({"api_key": f"{GOOD_KEY}\r\nx-evil: 1"}, ("api_key",)),
    "url_ftp": ({"base_url": "ftp://127.0.0.1/v1"}, ("base_url", "http")),
    "url_file": ({"base_url": "file:///etc"}, ("base_url", "http")),
    "url_no_scheme": ({"base_url": "127.0.0.1/v1"}, ("base_url", "http")),
    "url_word": ({"base_url": "gateway"}, ("base_url", "http")),
    "url_no_host": ({"base_url": "http:///v1"}, ("base_url",)),
    "url_bad_port": ({"base_url": "http://127.0.0.1:99999/v1"}, ("base_url",)),
    "url_space": ({"base_url": "http://127.0.0.1 /v1"}, ("base_url",)),
    "model_long": ({"default_model": "x" * 201}, ("default_model", "200")),
    "model_control": ({"default_model": "a\x1bb"}, ("default_model", "printable")),
    "header_word": ({"auth_header": "cookie"}, ("auth_header", "bearer", "x-api-key", "both")),
    **{
        f"{name}_{kind}": ({name: value}, (name,))
        for name in ("requests_per_minute", "tokens_per_minute", "max_concurrency")
        for kind, value in {
            "word": "many",
            "negative": "-1",
            "nan": "NaN",
            "infinite": "inf",
        }.items()
    },
    **{
        f"{name}_{kind}": ({name: value}, (name,))
        for name in ("daily_budget_usd", "monthly_budget_usd")
        for kind, value in {
            "word": "much",
            "negative": "-0.01",
            "nan": "nan",
            "infinite": "-inf",
        }.items()
    },
    "concurrency_zero": ({"max_concurrency": "0"}, ("max_concurrency", "1")),
    "concurrency_astronomic": ({"max_concurrency": "1e999999999"}, ("max_concurrency",)),
    "concurrency_half": ({"max_concurrency": "0.5"}, ("max_concurrency", "1")),
    "redis_word": ({"redis_url": "redis"}, ("redis_url", "redis://")),
    "redis_http": ({"redis_url": "http://127.0.0.1:6379"}, ("redis_url", "redis://")),
    "redis_no_host": ({"redis_url": "redis://:word-of-the-redis@"}, ("redis_url", "host")),
    "redis_port": ({"redis_url": "redis://127.0.0.1:99999"}, ("redis_url", "valid URL")),
    "redis_option": ({"redis_url": "redis://127.0.0.1?socket_timeout=9"}, ("socket_timeout",)),
    "redis_service": ({"redis_url": "redis+sentinel://127.0.0.1"}, ("redis_url", "service")),
    "prices_word": ({"price_overrides": "cheap"}, ("price_overrides",)),
    "prices_list": ({"price_overrides": "[1]"}, ("price_overrides",)),
    "prices_broken": ({"price_overrides": "{mine: {input: 1"}, ("price_overrides",)),
    "prices_number": ({"price_overrides": "{mine: 5}"}, ("price_overrides", "mine")),
    "prices_missing": ({"price_overrides": "{mine: {input: 5}}"}, ("price_overrides", "output")),
    "prices_unknown_key": (
        {"price_overrides": "{mine: {input: 5, output: 5, cache_wirte: 5}}"},
        ("price_overrides", "cache_wirte"),
    ),
    "prices_negative": (
        {"price_overrides": "{mine: {input: -1, output: 1}}"},
        ("price_overrides",),
    ),
    "prices_text": ({"price_overrides": "{mine: {input: a lot, output: 1}}"}, ("price_overrides",)),
    "prices_nan": ({"price_overrides": "{mine: {input: .nan, output: 1}}"}, ("price_overrides",)),
    "prices_deep": ({"price_overrides": "[" * 100_000}, ("price_overrides",)),
}


@pytest.mark.parametrize(("fields", "words"), BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_unusable_field_is_refused_before_anything_is_asked(
    plugin: PluginProcess, upstream: Upstream, fields: dict[str, Any], words: tuple[str, ...]
) -> None:
    message = refused(plugin, upstream, **fields)
    assert [word for word in words if word not in message] == []
    assert upstream.requests() == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        BAD_FIELDS[name]
        for name in ("key_short", "url_ftp", "max_concurrency_word", "prices_word", "redis_no_host")
    ],
    ids=["key", "url", "limit", "prices", "redis"],
)
@pytest.mark.parametrize("on_error", ["fail", "continue"])
def test_node_refuses_an_unusable_credential_too(
    plugin: PluginProcess,
    upstream: Upstream,
    fields: dict[str, Any],
    words: tuple[str, ...],
    on_error: str,
) -> None:
    """It may have been saved by an older version."""
    error = Llm(plugin, upstream).like(**fields).failure(on_error=on_error)
    assert error.type == REFUSED_KEY
    assert [word for word in words if word not in error.message] == []
    assert upstream.requests() == []


def test_empty_credentials(plugin: PluginProcess, upstream: Upstream) -> None:
    error = plugin.validate({})
    assert error is not None
    assert error.type == "CredentialsValidateFailedError"
    assert "api_key" in error.message
