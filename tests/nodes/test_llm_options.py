"""The ``options`` text of the LLM node, key by key."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from devtools.upstream import behaviours as do
from tests.nodes.support import UNAVAILABLE, Llm

if TYPE_CHECKING:
    from tests.host.daemon import Result

KEYS = (
    *("top_p", "stop", "seed", "presence_penalty", "frequency_penalty", "reasoning_effort"),
    *("cache_ttl_s", "cache_scope", "serve_stale", "extra_body"),
)


def cache_state(result: Result) -> str:
    state: str = result.variables["meta"]["cache"]
    return state


# --- the text ---


@pytest.mark.parametrize(
    "options",
    [
        "top_p: 0.5\nseed: 7",
        "{top_p: 0.5, seed: 7}",
        '{"top_p": 0.5, "seed": 7}',
        "# rarely needed\ntop_p: 0.5  # half\n\nseed: 7\n",
        "---\ntop_p: 0.5\nseed: 7\n",
        "top_p: '0.5'\nseed: \"7\"",
        "\ufefftop_p: 0.5\r\nseed: 7\r\n",
        "top_p: 0.5\nseed: 7\nstop: ''\npresence_penalty:\n",
        {"top_p": 0.5, "seed": 7},
    ],
    ids=[
        "yaml",
        "flow",
        "json",
        "comments",
        "document",
        "texts",
        "byte_order_mark",
        "empty_values",
        "mapping",
    ],
)
def test_options_are_read_as_yaml_or_json(llm: Llm, options: Any) -> None:
    llm.ok()
    plain, body = llm.bodies[0], llm.body(options=options)
    assert {key: body[key] for key in body if body[key] != plain.get(key)} == {
        "top_p": 0.5,
        "seed": 7,
    }


@pytest.mark.parametrize("options", ["", " \n", None, "{}", "# nothing", "---", "null"], ids=repr)
def test_empty_options_are_none(llm: Llm, options: str | None) -> None:
    llm.ok()
    assert cache_state(llm.ok(options=options)) == "hit"


@pytest.mark.parametrize("on_error", ["fail", "continue"])
def test_unknown_key_is_refused_with_the_valid_ones(llm: Llm, on_error: str) -> None:
    message = llm.refusal(options="tpo_p: 0.5", on_error=on_error)
    assert "tpo_p" in message
    assert all(key in message for key in KEYS)


@pytest.mark.parametrize(
    "value", ["", "''", "null", "~"], ids=["nothing", "empty", "null", "tilde"]
)
def test_unknown_key_is_refused_without_a_value_too(llm: Llm, value: str) -> None:
    assert "tpo_p" in llm.refusal(options=f"tpo_p: {value}")


@pytest.mark.parametrize("key", ["temperature", "model", "max_tokens", "timeout_s", "TOP_P", "5"])
def test_setting_of_the_node_is_no_option(llm: Llm, key: str) -> None:
    message = llm.refusal(options=f"{key}: 1")
    assert key in message
    assert "top_p" in message


@pytest.mark.parametrize(
    "options",
    [
        "just words",
        "- a\n- list",
        "[1, 2]",
        "5",
        "true",
        "top_p: [",
        "{top_p: 0.5",
        "top_p: 0.5\n  seed: 7",
        "\ttop_p: 0.5",
        "top_p: !!python/object/apply:os.getcwd []",
        "a: &a [x]\nb: [*a, *a]",
        "top_p: 0.5\n---\nseed: 7",
        "? [1, 2]\n: x",
        "[" * 100_000,
        "top_p: \x00",
    ],
    ids=[
        "words",
        "list",
        "json_list",
        "number",
        "boolean",
        "broken",
        "open_brace",
        "indentation",
        "tab",
        "python_tag",
        "aliases",
        "two_documents",
        "list_as_key",
        "deep_nesting",
        "nul",
    ],
)
def test_options_that_are_no_mapping_are_refused(llm: Llm, options: str) -> None:
    assert "options" in llm.refusal(options=options)


# --- values that go upstream ---


@pytest.mark.parametrize(
    ("key", "given", "sent"),
    [
        ("top_p", 0, 0),
        ("top_p", 1, 1),
        ("top_p", "0.25", 0.25),
        ("stop", "END", ["END"]),
        ("stop", ["END"], ["END"]),
        ("stop", "one\ntwo", ["one", "two"]),
        ("stop", "one\r\ntwo\n", ["one", "two"]),
        ("stop", ["a", "b", "c", "d"], ["a", "b", "c", "d"]),
        ("stop", ["\n", "two\nlines"], ["\n", "two\nlines"]),
        ("seed", 0, 0),
        ("seed", -7, -7),
        ("seed", "42", 42),
        ("seed", 2**53, 2**53),
        ("presence_penalty", -2, -2),
        ("presence_penalty", "1.5", 1.5),
        ("presence_penalty", 0, 0),
        ("frequency_penalty", 2, 2),
        ("frequency_penalty", "-0.5", -0.5),
        ("reasoning_effort", "minimal", "minimal"),
        ("reasoning_effort", "low", "low"),
        ("reasoning_effort", "medium", "medium"),
        ("reasoning_effort", "high", "high"),
    ],
)
def test_option_arrives_upstream(llm: Llm, key: str, given: Any, sent: Any) -> None:
    arrived = llm.body(options={key: given})[key]
    if key == "stop" and isinstance(arrived, str):
        arrived = [arrived]
    assert arrived == sent
    assert not isinstance(arrived, bool)


@pytest.mark.parametrize("value", ["", None], ids=["empty", "null"])
@pytest.mark.parametrize("key", KEYS)
def test_option_without_a_value_is_not_set(llm: Llm, key: str, value: str | None) -> None:
    llm.ok()
    assert cache_state(llm.ok(options={key: value})) == "hit"


@pytest.mark.parametrize(
    ("key", "given", "allowed"),
    [
        ("top_p", -0.1, ("0", "1")),
        ("top_p", 1.1, ("0", "1")),
        ("top_p", "most", ("0", "1")),
        ("top_p", True, ("0", "1")),
        ("stop", ["a", "b", "c", "d", "e"], ("4",)),
        ("stop", "a\nb\nc\nd\ne", ("4",)),
        ("stop", [1], ()),
        ("stop", {"a": "b"}, ()),
        ("stop", 5, ()),
        ("stop", [""], ()),
        ("seed", 1.5, ("whole",)),
        ("seed", "dice", ("whole",)),
        ("seed", True, ("whole",)),
        ("presence_penalty", -2.1, ("-2", "2")),
        ("presence_penalty", 2.1, ("-2", "2")),
        ("presence_penalty", "x", ("-2", "2")),
        ("frequency_penalty", -3, ("-2", "2")),
        ("frequency_penalty", 3, ("-2", "2")),
        ("reasoning_effort", "extreme", ("minimal", "low", "medium", "high")),
        ("reasoning_effort", 5, ("minimal", "low", "medium", "high")),
        ("cache_ttl_s", 0, ("1", "86 400")),
        ("cache_ttl_s", 86_401, ("1", "86 400")),
        ("cache_ttl_s", "long", ("1", "86 400")),
        ("cache_ttl_s", -1, ("1", "86 400")),
        ("cache_scope", "planet", ("credential", "app", "user")),
        ("cache_scope", True, ("credential", "app", "user")),
        ("serve_stale", "perhaps", ("true", "false")),
        ("serve_stale", 5, ("true", "false")),
        ("extra_body", "text", ("mapping",)),
        ("extra_body", [1], ("mapping",)),
        ("extra_body", 5, ("mapping",)),
    ],
)
def test_option_out_of_range_is_refused(
    llm: Llm, key: str, given: Any, allowed: tuple[str, ...]
) -> None:
    message = llm.refusal(options={key: given})
    assert key in message
    if isinstance(given, int | float | str) and "\n" not in str(given):
        assert str(given).lower() in message.lower()
    allowance = message.replace("−", "-").replace(",", " ").replace(" may ", " must ")
    allowance = allowance.partition(" must ")[2]
    assert [word for word in allowed if word not in allowance] == []


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("key", ["top_p", "seed", "presence_penalty", "cache_ttl_s"])
def test_option_that_is_not_finite_is_refused(llm: Llm, key: str, value: str) -> None:
    assert key in llm.refusal(options=f"{key}: {value}")


# --- cache_scope ---


@pytest.mark.parametrize(
    ("scope", "other_app", "other_user"),
    [("credential", "hit", "hit"), ("app", "miss", "hit"), ("user", "hit", "miss")],
)
def test_cache_scope_says_who_may_have_an_answer(
    llm: Llm, scope: str, other_app: str, other_user: str
) -> None:
    options = {"cache_scope": scope}
    assert cache_state(llm.ok(options=options)) == "miss"
    assert cache_state(llm.ok(options=options)) == "hit"
    assert cache_state(llm.ok(options=options, app_id="app-2")) == other_app
    assert cache_state(llm.ok(options=options, user_id="user-2")) == other_user


@pytest.mark.parametrize("scope", ["app", "user"])
def test_simultaneous_calls_of_different_scopes_do_not_share_an_answer(
    llm: Llm, scope: str
) -> None:
    llm.upstream.default(do.ok(latency_ms=30))
    who = "app_id" if scope == "app" else "user_id"
    results = llm.many(
        [{"options": {"cache_scope": scope}, who: f"{who}-{number}"} for number in range(4)]
    )
    assert [cache_state(result) for result in results] == ["miss"] * 4
    assert llm.calls == 4


def test_answers_of_a_narrow_scope_are_not_given_to_a_wider_one(llm: Llm) -> None:
    llm.ok(options={"cache_scope": "user"})
    assert cache_state(llm.ok(options={"cache_scope": "app"})) == "miss"
    assert cache_state(llm.ok()) == "miss"


# --- cache_ttl_s and serve_stale ---


@pytest.mark.parametrize("ttl", [1, "1", 86_400], ids=repr)
def test_limits_of_the_time_to_live_are_accepted(llm: Llm, ttl: Any) -> None:
    llm.ok(options={"cache_ttl_s": ttl})
    assert cache_state(llm.ok(options={"cache_ttl_s": ttl})) == "hit"


def test_expired_answer_is_asked_for_again_or_served_where_upstream_is_down(llm: Llm) -> None:
    """One second of upstream's time lets three answers expire."""
    renewed, stale, strict, denied, broken = (Llm(llm.plugin, llm.upstream) for _ in range(5))
    short = {"cache_ttl_s": 1}
    covered = {"cache_ttl_s": 1, "serve_stale": True}
    renewed.ok(options=short)
    strict.ok(options=short)
    stale.ok(options=covered, tools='[{"type": "function", "function": {"name": "f"}}]')
    denied.ok(options=covered)
    broken.ok(options=covered)
    llm.upstream.script(do.ok("that took its time", latency_ms=1050))
    llm.ok("let a second pass")

    assert cache_state(renewed.ok(options=short)) == "miss"
    assert cache_state(renewed.ok(options=short)) == "hit"

    llm.upstream.default(do.outage())
    error = strict.failure(options=short, max_retries=0)
    assert error.type == UNAVAILABLE

    tools = '[{"type": "function", "function": {"name": "f"}}]'
    before = llm.calls
    result = stale.ok(options=covered, tools=tools, max_retries=0)
    assert cache_state(result) == "stale"
    assert llm.calls == before + 1, "upstream was asked first"
    assert result.variables["cached"] is True
    assert result.variables["cost_usd"] == 0
    assert result.variables["meta"]["attempts"] in (0, 1)

    for number in range(5):
        broken.failure(f"opens the breaker {number}", max_retries=0)
    before = llm.calls
    assert cache_state(broken.ok(options=covered)) == "stale"
    assert llm.calls == before

    llm.upstream.default(do.status(401))
    denied.failure(options=covered, max_retries=0)


def test_nothing_stored_cannot_be_served_stale(llm: Llm) -> None:
    llm.upstream.default(do.outage())
    assert llm.failure(options={"serve_stale": True}, max_retries=0).type == UNAVAILABLE


# --- extra_body ---


@pytest.mark.parametrize(
    "extra",
    [
        {"enable_thinking": False},
        {"metadata": {"team": "wool", "tags": ["a", None, 1.5]}},
        {"n": 1, "user": "someone"},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"名": "值"},
    ],
    ids=["flag", "nested", "several", "vendor", "unicode"],
)
def test_extra_body_is_merged_into_the_request(llm: Llm, extra: dict[str, Any]) -> None:
    llm.ok()
    assert llm.body(options={"extra_body": extra}) == llm.bodies[0] | extra


def test_extra_body_may_be_given_in_yaml(llm: Llm) -> None:
    body = llm.body(options="extra_body:\n  thinking:\n    type: enabled\n")
    assert body["thinking"] == {"type": "enabled"}


@pytest.mark.parametrize("key", ["messages", "stream"])
@pytest.mark.parametrize("value", [True, [], None], ids=["true", "list", "null"])
def test_extra_body_cannot_override_what_the_node_needs(llm: Llm, key: str, value: Any) -> None:
    message = llm.refusal(options={"extra_body": {key: value}})
    assert "extra_body" in message
    assert key in message


@pytest.mark.parametrize("name", ["api_key", "authorization", "Authorization", "x-api-key"])
def test_extra_body_cannot_override_the_key(llm: Llm, name: str) -> None:
    result = llm.start(options={"extra_body": {name: "something else"}}).result()
    if result.error is not None:
        llm.check_error(result.error)
        assert name in result.error.message
        return
    (request,) = llm.upstream.requests()
    assert request["headers"]["authorization"] == f"Bearer {llm.key}"


def test_extra_body_that_names_a_model_is_refused_or_counts_everywhere(llm: Llm) -> None:
    """Whatever is sent must be what is priced, cached and told."""
    options = {"extra_body": {"model": "gpt-4.1"}}
    result = llm.start(options=options, custom_model="deepseek-v3.2").result()
    if result.error is not None:
        llm.check_error(result.error)
        assert "model" in result.error.message
        return
    values = llm.check_ok(result)
    usage = values["usage"]
    assert values["model_used"] == llm.bodies[-1]["model"] == "gpt-4.1"
    price = usage["prompt_tokens"] * 2 + usage["completion_tokens"] * 8
    assert values["cost_usd"] == pytest.approx(price / 1e6)


@pytest.mark.parametrize("value", [{1: "a"}, {"a": {2: "b"}}], ids=["key", "inner_key"])
def test_extra_body_with_keys_that_are_no_texts_is_refused_or_sent_as_texts(
    llm: Llm, value: dict[Any, Any]
) -> None:
    options = "extra_body: " + json.dumps(value).replace('"1"', "1").replace('"2"', "2")
    result = llm.start(options=options).result()
    if result.error is None:
        llm.check_ok(result)
    else:
        llm.check_error(result.error)


@pytest.mark.parametrize("value", ["2026-11-01", "!!binary aGk=", "!!set {a, b}"])
def test_extra_body_with_yaml_types_that_json_has_not_is_refused_or_sent_as_text(
    llm: Llm, value: str
) -> None:
    result = llm.start(options=f"extra_body:\n  when: {value}").result()
    if result.error is None:
        llm.check_ok(result)
    else:
        llm.check_error(result.error)
