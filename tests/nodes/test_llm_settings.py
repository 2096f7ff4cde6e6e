"""The settings of the LLM node: defaults, how texts are read, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from devtools.upstream import behaviours as do
from tests.nodes.support import CONNECTION, TOOL, Llm, fresh_model

if TYPE_CHECKING:
    from devtools.upstream import Upstream
    from tests.host.daemon import PluginProcess

NOT_SET = [
    pytest.param("", id="empty"),
    pytest.param("  ", id="space"),
    pytest.param(None, id="null"),
]
SETTINGS = (
    *("model", "custom_model", "temperature", "max_tokens", "response_format", "cache"),
    *("fallback_models", "timeout_s", "max_retries", "on_error", "options"),
)


@pytest.fixture
def bare(plugin: PluginProcess, upstream: Upstream) -> Llm:
    """The node with a credential that says nothing but key, address and that nothing is limited."""
    llm = Llm(plugin, upstream)
    del llm.credentials["default_model"]
    return llm


# --- defaults ---


def test_request_holds_the_defaults_and_nothing_else(bare: Llm) -> None:
    body = bare.body("Why?")
    assert body.pop("stream_options", None) in (None, {"include_usage": True})
    assert body == {
        "model": "deepseek-v3.2",
        "messages": [{"role": "user", "content": "Why?"}],
        "temperature": 0.7,
        "max_tokens": 2048,
        "top_p": 0.95,
        "stream": True,
    }


def test_request_goes_to_the_chat_route_as_json(bare: Llm) -> None:
    bare.ok()
    (request,) = bare.upstream.requests()
    assert (request["method"], request["path"]) == ("POST", "/v1/chat/completions")
    assert request["headers"]["content-type"] == "application/json"
    assert request["headers"]["authorization"] == f"Bearer {bare.key}"
    assert "x-api-key" not in request["headers"]


@pytest.mark.parametrize("value", NOT_SET)
def test_settings_that_are_not_set_have_their_defaults(bare: Llm, value: str | None) -> None:
    bare.ok()
    bare.ok("Why is the sky blue?", **dict.fromkeys(SETTINGS, value))
    assert bare.calls == 1, "the second call asks the same and is answered from the cache"


def test_parameter_that_the_node_does_not_know_is_ignored(llm: Llm) -> None:
    assert "left_over" not in llm.body(left_over="of an older version")


# --- numbers ---


@pytest.mark.parametrize(
    ("name", "given", "sent"),
    [
        ("temperature", 0, 0),
        ("temperature", "0", 0),
        ("temperature", 2, 2),
        ("temperature", "2.0", 2),
        ("temperature", 1.25, 1.25),
        ("temperature", "1.25", 1.25),
        ("temperature", " 0.5 ", 0.5),
        ("temperature", "1e-1", 0.1),
        ("max_tokens", 1, 1),
        ("max_tokens", "1", 1),
        ("max_tokens", 1_000_000, 1_000_000),
        ("max_tokens", "1000000", 1_000_000),
        ("max_tokens", 100.0, 100),
        ("max_tokens", "100.0", 100),
    ],
)
def test_number_arrives_as_a_number(llm: Llm, name: str, given: Any, sent: float) -> None:
    arrived = llm.body(**{name: given})[name]
    assert arrived == sent
    assert not isinstance(arrived, str | bool)
    if name == "max_tokens":
        assert isinstance(arrived, int)


@pytest.mark.parametrize(
    ("name", "given", "shown", "allowed"),
    [
        ("temperature", -0.1, "-0.1", ("0", "2")),
        ("temperature", 2.01, "2.01", ("0", "2")),
        ("temperature", "3", "3", ("0", "2")),
        ("temperature", "hot", "hot", ("0", "2")),
        ("temperature", "0,5", "0,5", ("0", "2")),
        ("temperature", "nan", "nan", ("0", "2")),
        ("temperature", "inf", "inf", ("0", "2")),
        ("temperature", [0.5], "0.5", ("0", "2")),
        ("temperature", {"a": 1}, "a", ("0", "2")),
        ("max_tokens", 0, "0", ("1", "1 000 000")),
        ("max_tokens", -5, "-5", ("1", "1 000 000")),
        ("max_tokens", 1_000_001, "1000001", ("1", "1 000 000")),
        ("max_tokens", 1.5, "1.5", ("1", "1 000 000")),
        ("max_tokens", "many", "many", ("1", "1 000 000")),
        ("max_tokens", "9" * 400, "999", ("1", "1 000 000")),
        ("timeout_s", 0, "0", ("1", "540")),
        ("timeout_s", 0.9, "0.9", ("1", "540")),
        ("timeout_s", 541, "541", ("1", "540")),
        ("timeout_s", "soon", "soon", ("1", "540")),
        ("timeout_s", "-1", "-1", ("1", "540")),
        ("max_retries", -1, "-1", ("0", "10")),
        ("max_retries", 11, "11", ("0", "10")),
        ("max_retries", "2.5", "2.5", ("0", "10")),
        ("max_retries", "twice", "twice", ("0", "10")),
    ],
)
def test_number_out_of_range_is_refused(
    llm: Llm, name: str, given: Any, shown: str, allowed: tuple[str, ...]
) -> None:
    message = llm.refusal(**{name: given})
    assert name in message
    assert shown in message
    rest = message.replace(",", " ")
    assert all(limit in rest for limit in allowed)


@pytest.mark.parametrize("name", ["temperature", "max_tokens", "timeout_s", "max_retries"])
@pytest.mark.parametrize("given", [True, False])
def test_truth_is_no_number(llm: Llm, name: str, given: bool) -> None:
    assert name in llm.refusal(**{name: given})


@pytest.mark.parametrize(
    "parameters", [{"temperature": 3}, {"options": "tpo_p: 1"}, {"cache": "maybe"}]
)
def test_bad_parameter_fails_the_node_although_it_should_continue(
    llm: Llm, parameters: dict[str, Any]
) -> None:
    llm.refusal(on_error="continue", **parameters)


def test_a_very_long_bad_value_is_not_repeated_in_full(llm: Llm) -> None:
    assert len(llm.refusal(temperature="hot" * 10_000)) < 300


def test_first_bad_parameter_is_told_in_one_sentence(llm: Llm) -> None:
    message = llm.refusal(temperature=3, max_tokens=0, timeout_s=0)
    assert sum(name in message for name in ("temperature", "max_tokens", "timeout_s")) == 1


# --- selects ---


@pytest.mark.parametrize(
    ("name", "given", "allowed"),
    [
        ("response_format", "xml", ("text", "json_object", "json_schema")),
        ("cache", "maybe", ("use", "refresh", "bypass")),
        ("on_error", "ignore", ("fail", "continue")),
        ("cache", 5, ("use", "refresh", "bypass")),
        ("on_error", True, ("fail", "continue")),
    ],
)
def test_word_that_is_no_choice_is_refused_with_the_choices(
    llm: Llm, name: str, given: Any, allowed: tuple[str, ...]
) -> None:
    message = llm.refusal(**{name: given})
    assert name in message
    assert str(given).lower() in message.lower()
    assert all(word in message for word in allowed)


# --- model, custom_model, default_model ---


@pytest.mark.parametrize(
    ("custom_model", "model", "default_model", "asked"),
    [
        ("mine", "gpt-4.1", "theirs", "mine"),
        ("mine", None, "theirs", "mine"),
        ("", "gpt-4.1", "theirs", "gpt-4.1"),
        (None, "gpt-4.1", "theirs", "gpt-4.1"),
        (" ", "gpt-4.1", "theirs", "gpt-4.1"),
        ("", "", "theirs", "theirs"),
        (None, None, "theirs", "theirs"),
        ("", "", "", "deepseek-v3.2"),
        (None, None, None, "deepseek-v3.2"),
        (" mine ", None, None, "mine"),
        ("vendor/Model-1:free@2026", None, None, "vendor/Model-1:free@2026"),
        ("模型", None, None, "模型"),
        (None, "not-in-the-list", None, "not-in-the-list"),
        (None, None, " theirs ", "theirs"),
    ],
)
def test_model_that_is_asked(
    bare: Llm,
    custom_model: str | None,
    model: str | None,
    default_model: str | None,
    asked: str,
) -> None:
    llm = bare.like(default_model=default_model)
    assert llm.body(custom_model=custom_model, model=model)["model"] == asked


@pytest.mark.parametrize("name", ["custom_model", "model"])
@pytest.mark.parametrize(
    "given", ["m" * 5000, "two\nlines", "a\x00b"], ids=["long", "lines", "nul"]
)
def test_model_that_can_be_no_id_is_refused(llm: Llm, name: str, given: str) -> None:
    assert name in llm.refusal(**{name: given})


# --- cache ---


def answers(*texts: str) -> list[do.Behaviour]:
    return [do.ok(text) for text in texts]


@pytest.mark.parametrize("cache", ["use", "on", "ON", "true", "True", " use ", True, "", None])
def test_cache_use_answers_a_second_time_from_memory(llm: Llm, cache: Any) -> None:
    llm.upstream.script(*answers("first", "second"))
    first, second = llm.ok(cache=cache), llm.ok(cache=cache)
    assert (first.text, second.text) == ("first", "first")
    assert first.variables["meta"]["cache"] == "miss"
    assert second.variables["meta"]["cache"] == "hit"
    assert llm.calls == 1


@pytest.mark.parametrize("cache", ["bypass", "off", "Off", "false", "False", "BYPASS", False])
def test_cache_bypass_neither_reads_nor_stores(llm: Llm, cache: Any) -> None:
    llm.upstream.script(*answers("first", "second", "third", "fourth"))
    assert llm.ok(cache=cache).text == "first"
    assert llm.ok().text == "second", "nothing was stored"
    bypassed = llm.ok(cache=cache)
    assert bypassed.text == "third", "nothing was read"
    assert bypassed.variables["meta"]["cache"] == "bypass"
    assert llm.ok().text == "second", "what was stored is still there"
    assert llm.calls == 3


def test_cache_refresh_calls_then_stores(llm: Llm) -> None:
    llm.upstream.script(*answers("first", "second"))
    assert llm.ok().text == "first"
    refreshed = llm.ok(cache="refresh")
    assert refreshed.text == "second"
    assert refreshed.variables["meta"]["cache"] == "refresh"
    assert refreshed.variables["cached"] is False
    assert llm.ok().text == "second"
    assert llm.calls == 2


def test_failed_refresh_keeps_what_was_stored(llm: Llm) -> None:
    llm.upstream.script(do.ok("first"), do.server_error())
    llm.ok()
    llm.failure(cache="refresh", max_retries=0)
    assert llm.ok().text == "first"


@pytest.mark.parametrize(
    "change",
    [
        {"query": "Another question?"},
        {"system_prompt": "Be brief."},
        {"history": [{"role": "user", "content": "Hello"}]},
        {"custom_model": "another-model"},
        {"temperature": 0.8},
        {"max_tokens": 100},
        {"options": "top_p: 0.9"},
        {"options": "stop: END"},
        {"options": "seed: 1"},
        {"options": "presence_penalty: 1"},
        {"options": "frequency_penalty: 1"},
        {"options": "reasoning_effort: low"},
        {"options": "extra_body: {a: 1}"},
        {"tools": '[{"type": "function", "function": {"name": "f"}}]'},
    ],
    ids=str,
)
def test_anything_that_changes_the_request_is_another_cache_entry(
    llm: Llm, change: dict[str, Any]
) -> None:
    llm.ok()
    assert llm.ok(**change).variables["meta"]["cache"] == "miss"


@pytest.mark.parametrize(
    "same",
    [
        {"temperature": "0.70"},
        {"max_tokens": 2048.0},
        {"timeout_s": 30},
        {"max_retries": 0},
        {"on_error": "continue"},
        {"fallback_models": "another-model"},
        {"options": "top_p: 0.95"},
        {"response_format": "text"},
        {"history": []},
        {"app_id": "another-app"},
        {"user_id": "another-user"},
    ],
    ids=str,
)
def test_what_does_not_change_the_request_is_the_same_cache_entry(
    llm: Llm, same: dict[str, Any]
) -> None:
    llm.ok()
    assert llm.ok(**same).variables["meta"]["cache"] == "hit"


@pytest.mark.parametrize(
    "behaviour",
    [do.ok(""), do.ok("Sorry", finish_reason="content_filter")],
    ids=["empty", "filtered"],
)
def test_answer_that_says_nothing_is_not_kept(llm: Llm, behaviour: do.Behaviour) -> None:
    llm.upstream.script(behaviour, do.ok("better"))
    llm.ok()
    assert llm.ok().text == "better"


def test_failed_call_is_not_kept(llm: Llm) -> None:
    llm.upstream.script(do.status(400))
    llm.failure()
    assert llm.ok().variables["meta"]["cache"] == "miss"


def test_two_credentials_never_share_answers(llm: Llm) -> None:
    other = Llm(llm.plugin, llm.upstream, default_model=llm.model)
    llm.upstream.script(*answers("for the first", "for the second"))
    assert llm.ok().text == "for the first"
    assert other.ok().text == "for the second"
    assert (llm.ok().text, other.ok().text) == ("for the first", "for the second")


# --- timeout_s ---


@pytest.mark.parametrize("timeout_s", [1, "1", 1.0, "1.0"])
def test_timeout_is_accepted_at_its_lowest(llm: Llm, timeout_s: Any) -> None:
    llm.ok(timeout_s=timeout_s)


def test_highest_timeout_and_retries_are_accepted(llm: Llm) -> None:
    llm.ok(timeout_s="540", max_retries="10")


def test_timeout_ends_a_call_that_hangs(llm: Llm) -> None:
    llm.upstream.script(do.stall("headers", 30))
    result = llm.start(timeout_s=1).result()
    assert result.error is not None
    llm.check_error(result.error)
    assert result.error.type == CONNECTION
    assert 950 <= result.elapsed_ms <= 1400


# --- max_retries ---


@pytest.mark.parametrize("max_retries", [0, 1, 3, "2", 10], ids=repr)
def test_retries_follow_the_first_attempt(llm: Llm, max_retries: Any) -> None:
    llm.upstream.default(do.rate_limited(retry_after_ms=1))
    llm.failure(max_retries=max_retries)
    assert llm.calls == int(max_retries) + 1


def test_three_retries_are_the_default(llm: Llm) -> None:
    llm.upstream.script(*[do.rate_limited(retry_after_ms=1)] * 3)
    assert llm.ok().variables["meta"]["attempts"] == 4


# --- fallback_models ---


@pytest.mark.parametrize(
    "given",
    ["{a},{b}", " {a} , {b} ", "{a},,{b},", "{m},{a},{a},{b}"],
    ids=["plain", "spaces", "gaps", "repeated"],
)
def test_fallback_models_are_tried_in_order(llm: Llm, given: str) -> None:
    names = {"m": llm.model, "a": fresh_model(), "b": fresh_model()}
    llm.upstream.default(do.server_error(), model=names["m"])
    llm.upstream.default(do.server_error(), model=names["a"])
    values = llm.ok(fallback_models=given.format(**names), max_retries=0).variables
    assert [body["model"] for body in llm.bodies] == list(names.values())
    assert values["model_used"] == names["b"]
    assert values["meta"]["fallback_from"] == names["m"]
    assert values["meta"]["attempts"] == 3


@pytest.mark.parametrize("given", ["", ",", " , ,", None], ids=["empty", "comma", "commas", "null"])
def test_no_fallback_models_is_none(llm: Llm, given: str | None) -> None:
    llm.upstream.default(do.server_error())
    llm.failure(fallback_models=given, max_retries=0)
    assert llm.calls == 1


@pytest.mark.parametrize("given", [5, [1], {"a": "b"}, True], ids=repr)
def test_fallback_models_that_are_no_names_are_refused(llm: Llm, given: Any) -> None:
    assert "fallback_models" in llm.refusal(fallback_models=given)


def test_fallback_is_not_named_when_the_first_model_answers(llm: Llm) -> None:
    meta = llm.ok(fallback_models=fresh_model()).variables["meta"]
    assert not meta["fallback_from"]
    assert llm.calls == 1


# --- on_error ---


@pytest.mark.parametrize("on_error", ["fail", "", None, "FAIL "], ids=repr)
def test_failure_fails_the_node(llm: Llm, on_error: str | None) -> None:
    llm.upstream.default(do.status(400))
    llm.failure(on_error=on_error)


def test_failure_is_an_output_where_the_node_continues(llm: Llm) -> None:
    llm.upstream.default(do.status(400))
    result = llm.continued()
    assert result.text == ""
    assert result.streamed["status"] == "error"
    assert result.streamed["cached"]
    assert result.streamed["cost_usd"]


def test_every_tool_call_needs_only_what_the_host_sends(bare: Llm) -> None:
    """Without an app or a user, as a direct call from the daemon has neither."""
    result = bare.plugin.call(TOOL, {"query": "Why?"}, bare.credentials, app_id=None, user_id="")
    bare.check_ok(result)
