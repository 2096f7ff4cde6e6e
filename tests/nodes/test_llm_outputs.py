"""The outputs of the LLM node: all of them on every path, in the right form, order and number."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest

from devtools.upstream import behaviours as do
from tests.host.outputs import MAX_CHUNK_BYTES
from tests.nodes.servers import Exchange, LoopbackServer, event_stream
from tests.nodes.support import FIGURES, OUTPUTS, USAGE, Llm, check_complete, fresh_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.host.daemon import Result

TOOLS = json.dumps([{"type": "function", "function": {"name": "look_up", "parameters": {}}}])


# --- every output on every path ---


def miss(llm: Llm) -> Result:
    return llm.ok()


def hit(llm: Llm) -> Result:
    llm.ok()
    return llm.ok()


def coalesced(llm: Llm) -> Result:
    llm.upstream.script(do.ok(latency_ms=40))
    results = llm.many([{}, {}])
    return next(r for r in results if r.variables["meta"]["cache"] == "coalesced")


def refresh(llm: Llm) -> Result:
    llm.ok()
    return llm.ok(cache="refresh")


def bypass(llm: Llm) -> Result:
    return llm.ok(cache="bypass")


def structured(llm: Llm) -> Result:
    return llm.ok(json_schema='{"type": "object", "properties": {"a": {"type": "string"}}}')


def structured_hit(llm: Llm) -> Result:
    structured(llm)
    return structured(llm)


def tool_call(llm: Llm) -> Result:
    return llm.ok("please use a tool", tools=TOOLS)


def empty_answer(llm: Llm) -> Result:
    llm.upstream.script(do.ok(""))
    return llm.ok()


def reasoned(llm: Llm) -> Result:
    llm.upstream.script(do.ok("Yes.", reasoning="Let me see."))
    return llm.ok()


def fallback(llm: Llm) -> Result:
    llm.upstream.default(do.server_error(), model=llm.model)
    return llm.ok(max_retries=0, fallback_models=fresh_model())


def failed(llm: Llm) -> Result:
    llm.upstream.script(do.server_error())
    return llm.continued(max_retries=0)


def broke_off(llm: Llm) -> Result:
    llm.upstream.script(do.sse(cut=True, text="half of an answer"))
    return llm.continued(max_retries=0)


PATHS: dict[str, tuple[Callable[[Llm], Result], str]] = {
    "miss": (miss, "miss"),
    "hit": (hit, "hit"),
    "coalesced": (coalesced, "coalesced"),
    "refresh": (refresh, "refresh"),
    "bypass": (bypass, "bypass"),
    "structured": (structured, "miss"),
    "structured_hit": (structured_hit, "hit"),
    "tool_call": (tool_call, "miss"),
    "empty_answer": (empty_answer, "miss"),
    "reasoned": (reasoned, "miss"),
    "fallback": (fallback, "miss"),
    "failed": (failed, "miss"),
    "broke_off": (broke_off, "miss"),
}


@pytest.mark.parametrize(("path", "cache"), PATHS.values(), ids=PATHS)
def test_every_declared_output_comes_once(
    llm: Llm, path: Callable[[Llm], Result], cache: str
) -> None:
    values = check_complete(path(llm))
    assert values["meta"]["cache"] == cache


@pytest.mark.parametrize(("path", "cache"), PATHS.values(), ids=PATHS)
def test_figures_are_shown_as_text_before_they_come_as_values(
    llm: Llm, path: Callable[[Llm], Result], cache: str
) -> None:
    sent = [data["message"] for _, data in path(llm).messages if data["type"] == "variable"]
    for name in FIGURES:
        text, value = (message for message in sent if message["variable_name"] == name)
        assert (text["stream"], value["stream"]) == (True, False)
        assert isinstance(text["variable_value"], str)
        assert text["variable_value"]
        if name == "tokens_used":
            assert text["variable_value"] == str(value["variable_value"])
        if name in ("cost_usd", "latency_ms") and value["variable_value"] is not None:
            shown = float(text["variable_value"])
            assert shown == pytest.approx(value["variable_value"], rel=1e-6, abs=1)
            assert "e" not in text["variable_value"].lower(), "no scientific notation for people"


@pytest.mark.parametrize(("path", "cache"), PATHS.values(), ids=PATHS)
def test_text_comes_before_all_variables_and_nothing_is_sent_twice(
    llm: Llm, path: Callable[[Llm], Result], cache: str
) -> None:
    kinds = [data["type"] for _, data in path(llm).messages]
    texts = kinds.count("text")
    assert kinds == ["text"] * texts + ["variable"] * (len(OUTPUTS) + len(FIGURES))
    assert texts <= 3


def test_reserved_names_are_not_declared() -> None:
    assert not {"text", "json", "files"} & set(OUTPUTS)


def test_contract_and_declaration_name_the_same_outputs() -> None:
    named = {name: output["type"] for name, output in OUTPUTS.items()}
    strings = (
        *("result", "reasoning", "model_used", "finish_reason", "status", "error", "error_type"),
    )
    assert named == {
        **dict.fromkeys(strings, "string"),
        "cached": "boolean",
        "latency_ms": "number",
        "tokens_used": "integer",
        "cost_usd": "number",
        "structured": "object",
        "tool_calls": "array",
        "usage": "object",
        "meta": "object",
    }
    assert set(OUTPUTS["usage"]["properties"]) >= {
        *("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens"),
        *("reasoning_tokens", "cost_usd", "saved_usd", "price_source", "estimated"),
    }
    assert set(OUTPUTS["meta"]["properties"]) >= {
        *("cache", "attempts", "ttft_ms", "queue_ms", "upstream_ms", "request_id"),
        *("fallback_from", "backend"),
    }


# --- single outputs ---


def test_result_is_the_text(llm: Llm) -> None:
    llm.upstream.script(do.ok("Because of \U0001f411 scattering.\n\n  *Really*."))
    result = llm.ok()
    assert result.text == "Because of \U0001f411 scattering.\n\n  *Really*."
    assert result.streamed["result"] == result.text


@pytest.mark.parametrize(
    "style", ["reasoning_content", "reasoning", "think"], ids=["deepseek", "openrouter", "tags"]
)
def test_reasoning_is_an_output_of_its_own(llm: Llm, style: do.ReasoningStyle) -> None:
    llm.upstream.script(do.ok("Yes.", reasoning="Let me see. Well.", reasoning_style=style))
    first = llm.ok()
    assert first.text.strip() == "Yes."
    assert first.variables["reasoning"].strip() == "Let me see. Well."
    again = llm.ok()
    assert again.variables["meta"]["cache"] == "hit"
    assert again.variables["reasoning"] == first.variables["reasoning"]


def test_tag_inside_a_text_is_text(llm: Llm) -> None:
    text = "Write <think> first, then </think>."
    llm.upstream.script(do.ok(text))
    assert llm.ok().text == text


@pytest.mark.parametrize("finish_reason", ["stop", "length", "content_filter", "eos"])
def test_finish_reason_is_what_upstream_says(llm: Llm, finish_reason: str) -> None:
    llm.upstream.script(do.ok("So", finish_reason=finish_reason))
    assert llm.ok().variables["finish_reason"] == finish_reason


def test_answer_cut_by_max_tokens_says_so(llm: Llm) -> None:
    assert llm.ok("word " * 50, max_tokens=2).variables["finish_reason"] == "length"


def test_model_used_is_the_one_that_upstream_names(llm: Llm) -> None:
    llm.upstream.script(do.ok("Yes.", model="gpt-4.1-2025-04-14"))
    assert llm.ok(custom_model="gpt-4.1").variables["model_used"] == "gpt-4.1-2025-04-14"


def test_latency_runs_from_invoke_to_the_last_byte(llm: Llm) -> None:
    llm.upstream.script(do.ok(chunks=["one ", "two ", "three"], latency_ms=60, chunk_delay_ms=60))
    result = llm.ok()
    values = result.variables
    assert 180 <= values["latency_ms"] <= result.elapsed_ms
    assert 60 <= values["meta"]["ttft_ms"] <= 160
    assert 180 <= values["meta"]["upstream_ms"] <= values["latency_ms"]


def test_hit_takes_no_time_upstream(llm: Llm) -> None:
    llm.upstream.script(do.ok(latency_ms=100))
    llm.ok()
    values = llm.ok().variables
    assert values["latency_ms"] < 50
    assert not values["meta"]["upstream_ms"]
    assert values["meta"]["attempts"] == 0


def test_meta_names_request_and_attempts(llm: Llm) -> None:
    llm.upstream.script(do.rate_limited(retry_after_ms=1))
    meta = llm.ok().variables["meta"]
    assert meta["attempts"] == 2
    assert meta["request_id"].startswith("req_")


def test_meta_of_a_failure_counts_the_attempts(llm: Llm) -> None:
    llm.upstream.default(do.status(400))
    assert llm.continued().variables["meta"]["attempts"] == 1


@pytest.mark.parametrize("name", ["x-request-id", "request-id", "X-Request-ID"])
def test_request_id_is_found_under_its_usual_names(llm: Llm, name: str) -> None:
    def refuse(exchange: Exchange) -> None:
        exchange.answer(400, b"{}", {"content-type": "application/json", name: "of-the-gateway"})

    with LoopbackServer({"*": refuse}) as server:
        assert "of-the-gateway" in llm.like(base_url=f"{server.url}/v1").failure().message


def test_several_tool_calls_come_in_order(llm: Llm) -> None:
    calls = [do.tool_call("look_up", {"n": n}, f"call_{n}") for n in range(3)]
    llm.upstream.script(do.ok(tool_calls=calls))
    values = llm.ok(tools=TOOLS).variables
    assert values["tool_calls"] == [
        {
            "id": f"call_{n}",
            "type": "function",
            "function": {"name": "look_up", "arguments": f'{{"n":{n}}}'},
        }
        for n in range(3)
    ]
    assert values["result"] == ""


@pytest.mark.parametrize(
    "wire",
    [
        {"tool_fragments": 1},
        {"tool_fragments": 30},
        {"tool_index": False},
        {"tool_index": False, "tool_fragments": 30},
        {"split_bytes": 7},
    ],
    ids=["whole", "fragments", "no_index", "no_index_fragments", "split"],
)
def test_tool_calls_are_put_together_from_their_fragments(llm: Llm, wire: dict[str, Any]) -> None:
    calls = [
        do.tool_call("look_up", {"text": 'Ä {["quoted"]} \U0001f411'}, "call_a"),
        do.tool_call("look_up", "{}", "call_b"),
    ]
    llm.upstream.script(do.sse(tool_calls=calls, **wire))
    values = llm.ok(tools=TOOLS).variables
    assert [call["id"] for call in values["tool_calls"]] == ["call_a", "call_b"]
    first, second = (call["function"]["arguments"] for call in values["tool_calls"])
    assert json.loads(first) == {"text": 'Ä {["quoted"]} \U0001f411'}
    assert second == "{}"


def test_text_and_tool_calls_can_come_together(llm: Llm) -> None:
    llm.upstream.script(do.ok("I look it up.", tool_calls=[do.tool_call("look_up", {}, "c")]))
    values = llm.ok(tools=TOOLS).variables
    assert values["result"] == "I look it up."
    assert len(values["tool_calls"]) == 1


def test_tool_calls_are_cached_too(llm: Llm) -> None:
    llm.upstream.script(do.ok(tool_calls=[do.tool_call("look_up", {}, "c")]))
    first = llm.ok(tools=TOOLS).variables
    again = llm.ok(tools=TOOLS).variables
    assert again["meta"]["cache"] == "hit"
    assert again["tool_calls"] == first["tool_calls"]
    assert again["finish_reason"] == "tool_calls"


def test_refusal_of_the_model_is_shown(llm: Llm) -> None:
    llm.upstream.script(do.ok(refusal="I cannot help with that."))
    assert llm.ok().text == "I cannot help with that."


# --- streaming ---


def test_first_piece_arrives_long_before_the_stream_ends(llm: Llm) -> None:
    llm.upstream.script(do.ok(chunks=["one ", "two ", "three ", "four"], chunk_delay_ms=100))
    invocation = llm.start()
    result = invocation.result()
    llm.check_ok(result)
    texts = [arrival for arrival in result.messages if arrival.data["type"] == "text"]
    assert [text.data["message"]["text"] for text in texts] == ["one ", "two ", "three ", "four"]
    ended_s = invocation.ended_s
    assert ended_s is not None
    assert ended_s - texts[0].at_s >= 0.2
    gaps = [b.at_s - a.at_s for a, b in itertools.pairwise(texts)]
    assert all(0.03 <= gap <= 0.3 for gap in gaps)


def test_fast_stream_comes_in_far_fewer_messages_than_chunks(llm: Llm) -> None:
    chunks = [f"word{n} " for n in range(200)]
    llm.upstream.script(do.ok(chunks=chunks, chunk_delay_ms=1))
    result = llm.ok()
    assert result.text == "".join(chunks)
    texts = [arrival for arrival in result.messages if arrival.data["type"] == "text"]
    assert 2 <= len(texts) <= 30


def test_stored_answer_comes_in_one_message(llm: Llm) -> None:
    llm.upstream.script(do.ok(chunks=[f"word{n} " for n in range(50)]))
    llm.ok()
    texts = [a for a in llm.ok().messages if a.data["type"] == "text"]
    assert len(texts) == 1


def test_followers_of_a_call_see_the_stream_too(llm: Llm) -> None:
    llm.upstream.script(do.ok(chunks=["one ", "two ", "three"], latency_ms=50, chunk_delay_ms=100))
    leader, follower = llm.start(), llm.start()
    for invocation in (leader, follower):
        result = invocation.result()
        llm.check_ok(result)
        assert result.text == "one two three"
        assert result.first_ms is not None
        assert result.elapsed_ms - result.first_ms >= 150
    assert llm.calls == 1


def test_call_that_joins_late_gets_the_whole_answer(llm: Llm) -> None:
    llm.upstream.script(do.ok(chunks=["one ", "two ", "three"], chunk_delay_ms=100))
    leader = llm.start()
    next(iter(leader))
    follower = llm.start().result()
    assert llm.check_ok(follower)["meta"]["cache"] == "coalesced"
    assert follower.text == "one two three"
    assert leader.result().text == "one two three"


@pytest.mark.parametrize("size_bytes", [300_000, 6_000_000], ids=["300_kB", "6_MB"])
def test_large_answer_fits_into_the_messages_of_the_host(llm: Llm, size_bytes: int) -> None:
    llm.upstream.script(do.ok(size_bytes=size_bytes))
    result = llm.ok()
    assert len(result.text) == size_bytes
    assert result.variables["result"] == result.text
    largest = max(len(json.dumps(arrival.data)) for arrival in result.messages)
    assert MAX_CHUNK_BYTES < largest < 4 * 1024 * 1024


def test_large_reasoning_fits_into_the_messages_of_the_host(llm: Llm) -> None:
    llm.upstream.script(do.ok("Yes.", reasoning="hm-" * 2_000_000))
    assert len(llm.ok().variables["reasoning"]) == 6_000_000


def test_large_tool_call_fits_or_fails_in_one_sentence(llm: Llm) -> None:
    call = do.tool_call("look_up", {"text": "a" * 6_000_000}, "c")
    llm.upstream.script(do.sse(tool_calls=[call]), do.ok("lives on"))
    result = llm.start(tools=TOOLS, max_retries=0).result()
    if result.error is not None:
        llm.check_error(result.error)
    else:
        llm.check_ok(result)
    assert llm.ok("the process lives on").text


@pytest.mark.parametrize("halves", [True, False], ids=["in_two_chunks", "in_one_chunk"])
def test_character_beyond_the_basic_plane_may_come_escaped(llm: Llm, halves: bool) -> None:
    r"""Some gateways escape what is not ASCII, and cut between the halves: \ud83d | \udc11."""
    parts = [rb"\ud83d", rb"\udc11"] if halves else [rb"\ud83d\udc11"]
    head = b'data: {"choices":[{"index":0,"delta":{"content":"'
    events = [head + part + b'"}}]}\n\n' for part in parts]
    events.append(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n')
    with LoopbackServer({"*": event_stream([*events, b"data: [DONE]\n\n"])}) as server:
        result = llm.like(base_url=f"{server.url}/v1").start(max_retries=0).result()
    llm.check_ok(result)
    assert result.text == "\U0001f411"


@pytest.mark.parametrize(
    "parameters",
    [{"response_format": "json_object"}, {"tools": TOOLS}],
    ids=["structured", "tool_call"],
)
def test_half_a_character_inside_json_does_not_break_the_host(
    llm: Llm, parameters: dict[str, Any]
) -> None:
    text = '{"a": "\\ud83d"}'
    call = do.tool_call("look_up", text, "c")
    llm.upstream.default(do.ok(text) if "tools" not in parameters else do.ok(tool_calls=[call]))
    result = llm.start(max_retries=0, **parameters).result()
    if result.error is None:
        llm.check_ok(result)
    else:
        llm.check_error(result.error)


def test_lonely_half_of_a_character_does_not_break_the_host(llm: Llm) -> None:
    body = (
        b'data: {"choices":[{"index":0,"delta":{"content":"a \\ud83d b"},'
        b'"finish_reason":"stop"}]}\n\n'
    )
    with LoopbackServer({"*": event_stream([body, b"data: [DONE]\n\n"])}) as server:
        other = llm.like(base_url=f"{server.url}/v1")
        first = other.start(max_retries=0).result()
        again = other.start(max_retries=0).result()
    for result in (first, again):
        llm.check_ok(result)
        assert result.text.startswith("a ")
        assert result.text.endswith(" b")
    llm.ok("the process lives on")


# --- tokens and cost ---


def priced(llm: Llm, model: str, usage: Any, **credentials: Any) -> dict[str, Any]:
    llm.upstream.script(do.ok("Yes.", usage=usage))
    return llm.like(**credentials).ok(custom_model=model).variables


def details(prompt: int, cached: int, completion: int, reasoning: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


@pytest.mark.parametrize(
    ("model", "usage", "cost_usd"),
    [
        # 1000 x 0.28 + 200 x 0.42 USD per million
        ("deepseek-v3.2", USAGE, 0.000364),
        # 600 x 0.28 + 400 x 0.028 + 200 x 0.42
        ("deepseek-v3.2", details(1000, 400, 200), 0.0002632),
        # 1000 x 2 + 200 x 8
        ("gpt-4.1", USAGE, 0.0036),
        # 250 x 2 + 750 x 0.5 + 200 x 8
        ("gpt-4.1", details(1000, 750, 200), 0.002475),
        # 1000 x 3 + 200 x 15
        ("claude-sonnet-4.5", USAGE, 0.006),
        ("claude-sonnet-4-5", USAGE, 0.006),
        ("claude-sonnet-4-6", USAGE, 0.006),
        # 1000 x 5 + 200 x 25
        ("claude-opus-4-6", USAGE, 0.01),
        # 1000 x 1 + 200 x 5
        ("claude-haiku-4-5", USAGE, 0.002),
        # 1000 x 0.3 + 200 x 2.5, reasoning is part of the completion
        ("gemini-2.5-flash", details(1000, 0, 200, reasoning=150), 0.0008),
        # 1000 x 2.5 + 200 x 15
        ("gpt-5.4", USAGE, 0.0055),
        # exactly 272,000 prompt tokens still have the lower price: 272000 x 2.5 + 100 x 15
        ("gpt-5.4", details(272_000, 0, 100), 0.6815),
        # above them the whole request has the other one: 272001 x 5 + 100 x 22.5
        ("gpt-5.4", details(272_001, 0, 100), 1.362255),
        # a vendor's prefix and a date do not make another model
        ("openai/gpt-4.1", USAGE, 0.0036),
        ("gpt-4.1-2025-04-14", USAGE, 0.0036),
        ("anthropic/claude-sonnet-4-5-20250929", USAGE, 0.006),
    ],
)
def test_cost_by_the_table(llm: Llm, model: str, usage: dict[str, Any], cost_usd: float) -> None:
    values = priced(llm, model, usage)
    assert values["cost_usd"] == pytest.approx(cost_usd, rel=1e-9)
    assert values["usage"]["price_source"] == "table"
    assert values["usage"]["saved_usd"] == 0
    assert values["usage"]["estimated"] is False
    assert values["tokens_used"] == usage["total_tokens"]


def test_usage_is_told_in_detail(llm: Llm) -> None:
    usage = priced(llm, "gpt-4.1", details(1000, 128, 200, reasoning=64))["usage"]
    del usage["cost_usd"], usage["saved_usd"]
    assert usage == {
        "prompt_tokens": 1000,
        "completion_tokens": 200,
        "total_tokens": 1200,
        "cached_tokens": 128,
        "reasoning_tokens": 64,
        "price_source": "table",
        "estimated": False,
    }


@pytest.mark.parametrize(
    ("overrides", "model", "usage", "cost_usd"),
    [
        ("{mine: {input: 1, output: 2}}", "mine", USAGE, 0.0014),
        ("mine:\n  input: 1\n  output: 2\n", "mine", USAGE, 0.0014),
        ('{"mine": {"input": "1", "output": "2"}}', "mine", USAGE, 0.0014),
        ("{mine: {input: 1, output: 2}}", "mine", details(1000, 400, 200), 0.0014),
        (
            "{mine: {input: 1, cached_input: 0.1, output: 2}}",
            "mine",
            details(1000, 400, 200),
            0.00104,
        ),
        ("{gpt-4.1: {input: 1, output: 2}}", "gpt-4.1", USAGE, 0.0014),
        ("{mine: {input: 0, output: 0}}", "mine", USAGE, 0),
    ],
    ids=["flow", "yaml", "json_texts", "cached_at_input_price", "cached", "over_table", "free"],
)
def test_cost_by_price_overrides(
    llm: Llm, overrides: str, model: str, usage: dict[str, Any], cost_usd: float
) -> None:
    values = priced(llm, model, usage, price_overrides=overrides)
    assert values["cost_usd"] == pytest.approx(cost_usd, rel=1e-9)
    assert values["usage"]["price_source"] == "override"


def test_override_of_cache_writes_counts_them(llm: Llm) -> None:
    usage = USAGE | {"cache_creation_input_tokens": 500}
    overrides = "{mine: {input: 1, cache_write: 4, output: 2}}"
    values = priced(llm, "mine", usage, price_overrides=overrides)
    # 500 x 1 + 500 x 4 + 200 x 2 where the writes are part of the prompt
    assert values["cost_usd"] == pytest.approx(0.0029)


def test_cost_that_the_gateway_reports_comes_before_the_table(llm: Llm) -> None:
    values = priced(llm, "gpt-4.1", USAGE | {"cost": 0.00123})
    assert values["cost_usd"] == pytest.approx(0.00123, rel=1e-9)
    assert values["usage"]["price_source"] == "provider"


def test_cost_that_the_gateway_reports_prices_an_unknown_model(llm: Llm) -> None:
    values = priced(llm, llm.model, USAGE | {"cost": 0.00123})
    assert values["cost_usd"] == pytest.approx(0.00123, rel=1e-9)
    assert values["usage"]["price_source"] == "provider"


def test_override_comes_before_the_cost_that_the_gateway_reports(llm: Llm) -> None:
    values = priced(
        llm, "mine", USAGE | {"cost": 9}, price_overrides="{mine: {input: 1, output: 2}}"
    )
    assert values["cost_usd"] == pytest.approx(0.0014)
    assert values["usage"]["price_source"] == "override"


@pytest.mark.parametrize("cost", ["free", -1, None, [], True], ids=repr)
def test_reported_cost_that_is_no_amount_is_ignored(llm: Llm, cost: Any) -> None:
    values = priced(llm, "gpt-4.1", USAGE | {"cost": cost})
    assert values["cost_usd"] == pytest.approx(0.0036)
    assert values["usage"]["price_source"] == "table"


def test_reported_cost_of_nothing_is_believed(llm: Llm) -> None:
    values = priced(llm, "gpt-4.1", USAGE | {"cost": 0})
    assert values["cost_usd"] == 0
    assert values["usage"]["price_source"] == "provider"


def test_unknown_model_has_no_price(llm: Llm) -> None:
    values = priced(llm, llm.model, USAGE)
    assert values["cost_usd"] is None
    assert values["usage"]["price_source"] == "none"
    assert values["tokens_used"] == 1200


def test_hit_costs_nothing_and_says_what_it_saved(llm: Llm) -> None:
    priced(llm, "gpt-4.1", USAGE)
    result = llm.ok(custom_model="gpt-4.1")
    values = result.variables
    assert values["cost_usd"] == 0
    assert values["usage"]["saved_usd"] == pytest.approx(0.0036)
    assert values["usage"]["price_source"] == "table"
    assert values["tokens_used"] == 1200
    assert (result.streamed["cost_usd"], result.streamed["cached"]) == ("0", "true")


def test_hit_on_an_unpriced_model_costs_nothing_too(llm: Llm) -> None:
    priced(llm, llm.model, USAGE)
    values = llm.ok().variables
    assert values["cost_usd"] == 0
    assert values["usage"]["saved_usd"] is None


def test_coalesced_call_costs_nothing_and_says_what_it_saved(llm: Llm) -> None:
    llm.upstream.script(do.ok("Yes.", usage=USAGE, latency_ms=40))
    results = llm.many([{"custom_model": "gpt-4.1"}] * 3)
    costs = sorted(result.variables["cost_usd"] for result in results)
    saved = sorted(result.variables["usage"]["saved_usd"] for result in results)
    assert costs == pytest.approx([0, 0, 0.0036])
    assert saved == pytest.approx([0, 0.0036, 0.0036])


def test_fallback_is_priced_as_the_model_that_answered(llm: Llm) -> None:
    llm.upstream.default(do.server_error(), model=llm.model)
    llm.upstream.default(do.ok("Yes.", usage=USAGE), model="gpt-4.1")
    values = llm.ok(fallback_models="gpt-4.1", max_retries=0).variables
    assert values["cost_usd"] == pytest.approx(0.0036)


@pytest.mark.parametrize("kind", ["missing", "null"])
def test_missing_usage_is_estimated(llm: Llm, kind: do.UsageKind) -> None:
    llm.upstream.script(do.wrong_usage(kind, text="word " * 100))
    values = llm.ok("word " * 200, custom_model="gpt-4.1").variables
    usage = values["usage"]
    assert usage["estimated"] is True
    assert 100 <= usage["prompt_tokens"] <= 500
    assert 50 <= usage["completion_tokens"] <= 250
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    expected = usage["prompt_tokens"] * 2e-6 + usage["completion_tokens"] * 8e-6
    assert values["cost_usd"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "prompt", "completion", "cached", "reasoning"),
    [
        ("strings", 12, 8, 0, 0),
        ("floats", 12, 8, 0, 0),
        ("input_output_names", 12, 8, 4, 2),
        ("cache_hit_names", 12, 8, 4, 0),
    ],
)
def test_unusual_usage_is_read(
    llm: Llm, kind: do.UsageKind, prompt: int, completion: int, cached: int, reasoning: int
) -> None:
    llm.upstream.script(do.wrong_usage(kind))
    usage = llm.ok().variables["usage"]
    if usage["estimated"] and kind in ("strings", "floats"):
        return  # what is no count of tokens may be left alone, if that is said
    assert usage["prompt_tokens"] == prompt
    assert usage["completion_tokens"] in (completion, completion + 1)
    assert usage["cached_tokens"] == cached
    assert usage["reasoning_tokens"] == reasoning


@pytest.mark.parametrize("kind", ["negative", "missing_fields"])
@pytest.mark.parametrize("form", [do.ok, do.json_for_stream], ids=["stream", "json"])
def test_usage_that_cannot_be_right_is_not_believed(
    llm: Llm, kind: do.UsageKind, form: Callable[..., do.Behaviour]
) -> None:
    odd = do.wrong_usage(kind)["usage"]
    llm.upstream.script(form(text="Yes, it is.", usage=odd))
    values = llm.ok(custom_model="gpt-4.1").variables
    assert values["tokens_used"] > 0
    assert values["cost_usd"] > 0


@pytest.mark.parametrize("where", ["asked", "last", "every"])
def test_usage_is_found_wherever_a_stream_has_it(llm: Llm, where: Any) -> None:
    llm.upstream.script(do.sse(usage_in=where, text="Yes, it is.", usage=USAGE))
    values = llm.ok(custom_model="gpt-4.1").variables
    assert values["tokens_used"] == 1200
    assert values["usage"]["estimated"] is False
