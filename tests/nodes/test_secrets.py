"""The key of a credential is in nothing that the host, a workflow or a log ever sees."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from devtools.upstream import behaviours as do
from tests.nodes.servers import Exchange, LoopbackServer
from tests.nodes.support import KEY_MARK, Llm, check_sentence, fresh_key

if TYPE_CHECKING:
    from devtools.upstream import Upstream
    from tests.host.daemon import PluginError, PluginProcess, Result

PIECE_CHARS = 12
"""So many characters of a key in a row are taken for a leak of it."""


def unusual_key() -> str:
    """A key that no pattern knows, full of what means something to some parser."""
    return fresh_key() + "_Zq9.*+?[(|)]{}^$\\/%41%%s&amp;<b>'`;--#~@!=:,"


@pytest.fixture
def secret(plugin: PluginProcess, upstream: Upstream) -> Llm:
    """The node with an unusual key, at most one attempt a call."""
    return Llm(plugin, upstream, api_key=unusual_key())


def pieces_of(key: str) -> set[str]:
    core = key.removeprefix(KEY_MARK)
    return {core[at : at + PIECE_CHARS] for at in range(len(core) - PIECE_CHARS + 1)}


def check_hidden(llm: Llm, *seen: object) -> None:
    """Fail if a part of the key is in what the host has seen of a call, or of the process."""
    process = llm.plugin
    everything = [*seen, process.stderr, [*process.logs], [*process.late], process.storage.data]
    for part in everything:
        shown = part if isinstance(part, str) else repr(part)
        for text in (shown, shown.replace("\\\\", "\\"), shown.replace("\\/", "/")):
            leaked = [piece for piece in pieces_of(llm.key) if piece in text]
            assert leaked == [], text[:500]


def everything_of(result: Result) -> list[object]:
    error = result.error
    seen: list[object] = [[arrival.data for arrival in result.messages]]
    if error is not None:
        seen += [error.type, error.message, error.args]
    return seen


def check_calls(llm: Llm, **parameters: Any) -> None:
    """Make the call failing and continuing, and look through both."""
    for on_error in ("fail", "continue"):
        result = llm.start(max_retries=0, on_error=on_error, **parameters).result()
        check_hidden(llm, *everything_of(result))
        if result.error is not None:
            llm.check_error(result.error)


def test_key_reaches_the_gateway_as_it_is(secret: Llm) -> None:
    """Else the other tests here would prove nothing."""
    secret.ok()
    headers = secret.upstream.requests()[-1]["headers"]
    assert headers["authorization"] == f"Bearer {secret.key}"


@pytest.mark.parametrize("cache", ["use", "bypass"])
def test_key_is_in_no_output_of_a_success(secret: Llm, cache: str) -> None:
    for _ in range(2):
        check_hidden(secret, *everything_of(secret.start(cache=cache).result()))


def test_key_is_in_no_output_of_a_failure_without_an_answer(secret: Llm) -> None:
    secret.upstream.default(do.status(500, body_style="empty"))
    check_calls(secret)


STYLES: tuple[do.BodyStyle, ...] = ("openai", "string", "anthropic", "text", "html")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("code", [400, 401, 402, 403, 404, 409, 422, 429, 500, 503])
def test_key_in_an_error_message_of_upstream_is_hidden(
    secret: Llm, code: int, style: do.BodyStyle
) -> None:
    told = f"Your key {secret.key} is not good; key={secret.key}, Bearer {secret.key}."
    headers = {"retry-after-ms": "1"}
    secret.upstream.default(do.status(code, message=told, body_style=style, headers=headers))
    check_calls(secret)


@pytest.mark.parametrize("before", [0, 100, 150, 170, 180, 190, 195, 199, 200, 250, 290, 295, 500])
def test_key_is_hidden_wherever_a_long_message_is_cut(secret: Llm, before: int) -> None:
    secret.upstream.default(do.status(400, message="x" * before + secret.key + "y" * 1000))
    check_calls(secret)


@pytest.mark.parametrize("name", ["x-request-id", "request-id", "cf-ray", "retry-after", "server"])
@pytest.mark.parametrize("code", [200, 400, 500])
def test_key_in_a_header_of_upstream_is_hidden(secret: Llm, name: str, code: int) -> None:
    completion = {"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]}

    def echo(exchange: Exchange) -> None:
        headers = {"content-type": "application/json", name: secret.key}
        exchange.answer(code, json.dumps(completion).encode(), headers)

    with LoopbackServer({"*": echo}) as server:
        check_calls(secret.like(base_url=f"{server.url}/v1"))


@pytest.mark.parametrize("field", ["error_type", "error_code", "param"])
def test_key_in_a_field_of_an_error_is_hidden(secret: Llm, field: str) -> None:
    secret.upstream.default(do.status(400, **{field: secret.key}))  # type: ignore[arg-type]
    check_calls(secret)


@pytest.mark.parametrize(
    "behaviour",
    [
        lambda key: do.status(200, message=f"bad key {key}", error_type="server_error"),
        lambda key: do.sse(error={"message": f"bad key {key}", "type": "api_error"}),
        lambda key: do.sse(error=f"bad key {key}"),
        lambda key: do.sse(error={"message": key, "type": "x"}, error_after=2, text="a b c d"),
        lambda key: do.redirect(f"/v1/elsewhere?key={key}"),
        lambda key: do.ok("no JSON, but a key", model=key),
    ],
    ids=["body", "stream", "stream_text", "mid_stream", "redirect", "model"],
)
def test_key_in_an_answer_of_upstream_is_hidden(secret: Llm, behaviour: Any) -> None:
    secret.upstream.default(behaviour(secret.key))
    check_calls(secret)


def test_key_that_a_malformed_answer_repeats_is_hidden(secret: Llm) -> None:
    bodies = (
        secret.key.encode(),
        b'{"error": {"message": "' + secret.key.encode(),
        b'{"choices": "' + json.dumps(secret.key).encode()[1:-1] + b'"}',
        json.dumps({"error": {"message": {"key": secret.key}}}).encode(),
        json.dumps({"detail": [secret.key]}).encode(),
    )
    for code in (200, 400, 500):
        for body in bodies:

            def echo(exchange: Exchange, code: int = code, body: bytes = body) -> None:
                exchange.answer(code, body, {"content-type": "application/json"})

            with LoopbackServer({"*": echo}) as server:
                check_calls(secret.like(base_url=f"{server.url}/v1"))


def test_key_that_a_broken_body_repeats_in_escapes_is_hidden(secret: Llm) -> None:
    """A relay that cuts a JSON body: it is shown as text, with its escapes."""
    quoted = json.dumps({"error": f"bad key {secret.key}"})[:-2]
    for escaped in (quoted, quoted.replace("/", "\\/")):
        secret.upstream.default(do.status(400, message=escaped, body_style="text"))
        check_calls(secret)


def test_key_that_an_unusable_structured_answer_repeats_is_hidden(secret: Llm) -> None:
    schema = '{"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"]}'
    for text in (secret.key, json.dumps({"a": secret.key}), json.dumps({secret.key: 1})):
        secret.upstream.default(do.ok(text))
        check_calls(secret, json_schema=schema)


@pytest.mark.parametrize(
    "field",
    [
        *("temperature", "max_tokens", "timeout_s", "max_retries", "cache", "on_error"),
        *("response_format", "history", "json_schema", "tools", "options"),
    ],
)
def test_key_that_was_pasted_into_the_wrong_input_is_not_repeated(secret: Llm, field: str) -> None:
    result = secret.start(**{field: secret.key}).result()
    assert result.error is not None
    check_hidden(secret, *everything_of(result))


@pytest.mark.parametrize("key", ["top_p", "reasoning_effort", "cache_scope", "extra_body"])
def test_key_that_was_pasted_into_the_wrong_option_is_not_repeated(secret: Llm, key: str) -> None:
    check_hidden(secret, *everything_of(secret.start(options={key: secret.key}).result()))
    check_hidden(secret, *everything_of(secret.start(options={secret.key: 1}).result()))


def test_key_that_was_pasted_as_a_model_is_not_repeated(secret: Llm) -> None:
    secret.upstream.default(do.unknown_model())
    result = secret.start(custom_model=secret.key, fallback_models=secret.key + "2").result()
    assert result.error is not None
    check_hidden(secret, *everything_of(result))


def test_key_is_hidden_while_the_gateway_is_out_of_reach(secret: Llm) -> None:
    for url in ("http://127.0.0.1:1/v1", "https://127.0.0.1:1/v1", "http://gateway.invalid/v1"):
        check_calls(secret.like(base_url=url))


@pytest.mark.parametrize(
    "behaviour",
    [do.reset(), do.reset("headers"), do.malformed("not_json"), do.malformed("truncated_json")],
    ids=["reset", "headers", "not_json", "truncated"],
)
def test_key_is_hidden_when_the_gateway_breaks(secret: Llm, behaviour: do.Behaviour) -> None:
    secret.upstream.default(behaviour)
    check_calls(secret)


def test_key_is_not_in_storage(secret: Llm) -> None:
    secret.ok()
    secret.ok(cache="refresh")
    check_hidden(secret, secret.plugin.storage.data, [*secret.plugin.storage.calls])


# --- the check of a credential ---


def check_validation(llm: Llm, **fields: Any) -> PluginError | None:
    error = llm.plugin.validate({**llm.credentials, **fields})
    if error is not None:
        check_sentence(error.message)
        check_hidden(llm, error.type, error.message, error.args)
    return error


@pytest.mark.parametrize("code", [400, 401, 403, 404, 429, 500])
@pytest.mark.parametrize("style", STYLES)
def test_key_in_the_answer_to_a_check_is_hidden(
    secret: Llm, code: int, style: do.BodyStyle
) -> None:
    told = f"Incorrect API key provided: {secret.key}"
    secret.upstream.default(do.status(code, message=told, body_style=style), model="@models")
    secret.upstream.default(do.status(code, message=told, body_style=style))
    check_validation(secret)


def test_wrong_key_is_hidden_in_a_check(plugin: PluginProcess, upstream: Upstream) -> None:
    for word in ("wrong", "forbidden"):
        llm = Llm(plugin, upstream, api_key=f"{unusual_key()}{word}")
        assert check_validation(llm) is not None


@pytest.mark.parametrize("tail", [" tail", "\ttail", "\x00", "é", "\nx-evil: 1"], ids=repr)
def test_unusable_key_is_not_repeated(secret: Llm, tail: str) -> None:
    assert check_validation(secret, api_key=secret.key + tail) is not None
    result = secret.like(api_key=secret.key + tail).start().result()
    assert result.error is not None
    check_hidden(secret, *everything_of(result))


@pytest.mark.parametrize(
    "field",
    [
        *("base_url", "auth_header", "requests_per_minute", "tokens_per_minute"),
        *("max_concurrency", "daily_budget_usd", "monthly_budget_usd", "price_overrides"),
    ],
)
def test_key_that_was_pasted_into_the_wrong_field_is_not_repeated(secret: Llm, field: str) -> None:
    check_validation(secret, **{field: secret.key})


def test_key_in_the_base_url_is_not_repeated(secret: Llm) -> None:
    for url in (f"https://{secret.key}@127.0.0.1:1/v1", f"http://127.0.0.1:1/v1?key={secret.key}"):
        assert check_validation(secret, base_url=url) is not None
