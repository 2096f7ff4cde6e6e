"""The outcome of a call: what is reported, in which unit, for each way of answering."""

import json
from dataclasses import replace
from decimal import Decimal

import pytest

from holysheep.pricing import Cost
from holysheep.result import build_result, empty_result, figures_of, usd_number
from holysheep.tally import Figures, latency_class
from holysheep.types import CacheState, Choice, Completion, Trace, Usage

COST = Cost(Decimal("0.0123"), "table")
COMPLETION = Completion(
    asked_model="gpt-4.1",
    model="gpt-4.1-2025",
    choices=(
        Choice(
            text="Hi",
            reasoning="because",
            finish_reason="length",
            tool_calls=({"id": "c", "function": {"name": "f"}},),
        ),
        Choice(index=1, text="another"),
    ),
    usage=Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=4, reasoning_tokens=3),
    request_id="req-1",
    fallback_from="first",
    left_out=("top_p",),
)


def a_trace(cache: CacheState = "miss") -> Trace:
    return Trace(
        started_s=100.0,
        cache=cache,
        attempts=2,
        ttft_s=0.25,
        queue_s=1.5,
        upstream_s=2.0,
    )


def test_the_first_choice_and_the_whole_usage_are_reported() -> None:
    result = build_result(COMPLETION, {"a": [1]}, COST, a_trace(), ended_s=104.5)
    assert (result.text, result.reasoning, result.finish_reason) == ("Hi", "because", "length")
    assert result.model_used == "gpt-4.1-2025"
    assert result.tokens_used == result.usage.total_tokens == 15
    assert (result.usage.cached_tokens, result.usage.reasoning_tokens) == (4, 3)
    assert result.structured == {"a": [1]}
    assert result.tool_calls == [{"id": "c", "function": {"name": "f"}}]


def test_spans_are_milliseconds() -> None:
    result = build_result(COMPLETION, {"a": [1]}, COST, a_trace(), ended_s=104.5)
    assert result.latency_ms == 4500.0
    assert (result.meta.ttft_ms, result.meta.queue_ms, result.meta.upstream_ms) == (
        250.0,
        1500.0,
        2000.0,
    )


def test_what_happened_on_the_way_is_reported() -> None:
    meta = build_result(COMPLETION, {"a": [1]}, COST, a_trace(), ended_s=104.5).meta
    assert (meta.attempts, meta.request_id) == (2, "req-1")
    assert (meta.fallback_from, meta.left_out) == ("first", ("top_p",))


@pytest.mark.parametrize("cache", ["miss", "refresh", "bypass"])
def test_a_call_that_was_made_costs_its_price_and_saves_nothing(cache: CacheState) -> None:
    result = build_result(COMPLETION, {"a": [1]}, COST, a_trace(cache), ended_s=104.5)
    assert not result.cached
    assert result.cost_usd == result.usage.cost_usd == Decimal("0.0123")
    assert result.usage.saved_usd == 0
    assert result.meta.cache == cache


@pytest.mark.parametrize("cache", ["hit", "stale", "coalesced"])
def test_an_answer_without_a_call_of_its_own_costs_nothing_and_saves_its_price(
    cache: CacheState,
) -> None:
    result = build_result(COMPLETION, {"a": [1]}, COST, a_trace(cache), ended_s=104.5)
    assert result.cached
    assert result.cost_usd == 0
    assert result.usage.saved_usd == Decimal("0.0123")
    assert result.tokens_used == 15


def test_an_unpriced_call_has_an_unknown_cost() -> None:
    result = build_result(COMPLETION, None, Cost(None, "none"), a_trace(), ended_s=104.5)
    assert result.cost_usd is None
    assert result.usage.price_source == "none"


def test_a_hit_on_an_unpriced_model_costs_nothing_and_saves_an_unknown_sum() -> None:
    result = build_result(COMPLETION, None, Cost(None, "none"), a_trace("hit"), ended_s=104.5)
    assert result.cost_usd == 0
    assert result.usage.saved_usd is None


def test_what_a_caller_does_to_its_result_does_not_reach_the_original() -> None:
    result = build_result(COMPLETION, None, COST, a_trace(), ended_s=104.5)
    result.tool_calls[0]["function"]["name"] = "g"
    again = build_result(COMPLETION, None, COST, a_trace(), ended_s=104.5)
    assert again.tool_calls[0]["function"]["name"] == "f"


def test_a_failed_call_reports_only_what_happened_on_the_way() -> None:
    result = empty_result(a_trace(), ended_s=103.0)
    assert (result.text, result.tokens_used, result.cost_usd, result.cached) == ("", 0, None, False)
    assert (result.latency_ms, result.meta.attempts) == (3000.0, 2)


def test_a_budget_that_is_nearly_spent_is_told_with_the_result() -> None:
    result = build_result(COMPLETION, None, COST, a_trace(), 104.5, "80 % is spent.")
    assert result.to_json()["meta"]["budget_warning"] == "80 % is spent."
    assert build_result(COMPLETION, None, COST, a_trace(), 104.5).meta.budget_warning == ""
    assert empty_result(a_trace(), 104.5).meta.budget_warning == ""


# --- what a call is counted as ------------------------------------------------------------------


def counted(completion: Completion | None, cost: Decimal | None, cache: CacheState) -> Figures:
    """What a call counts as that took 4.5 s and sent two requests; its latency is checked."""
    figures = figures_of(completion, cost, a_trace(cache), ended_s=104.5)
    assert (figures.requests, figures.upstream_calls) == (1, 2)
    assert (figures.latency_us, figures.classes) == (4_500_000, {latency_class(4500): 1})
    return figures


@pytest.mark.parametrize("cache", ["miss", "refresh", "bypass"])
def test_a_call_that_was_made_counts_its_tokens_and_its_cost(cache: CacheState) -> None:
    figures = counted(COMPLETION, COST.usd, cache)
    assert (figures.prompt_tokens, figures.completion_tokens, figures.total_tokens) == (10, 5, 15)
    assert (figures.cached_tokens, figures.reasoning_tokens) == (4, 3)
    assert (figures.cost_usd, figures.saved_usd, figures.unpriced) == (COST.usd, 0, 0)


@pytest.mark.parametrize("cache", ["hit", "stale", "coalesced"])
def test_an_answer_without_a_call_of_its_own_counts_as_saved(cache: CacheState) -> None:
    figures = counted(COMPLETION, COST.usd, cache)
    assert (figures.total_tokens, figures.cached_tokens, figures.reasoning_tokens) == (0, 0, 0)
    assert (figures.cost_usd, figures.saved_usd, figures.unpriced) == (0, COST.usd, 0)


def test_answers_that_could_not_be_used_count_with_the_one_that_could() -> None:
    earlier = Usage(prompt_tokens=100, completion_tokens=50, cache_write_tokens=7)
    figures = counted(replace(COMPLETION, earlier=(earlier,)), COST.usd, "miss")
    assert (figures.prompt_tokens, figures.completion_tokens) == (110, 55)
    assert (figures.cached_tokens, figures.cache_write_tokens) == (4, 7)


def test_a_cost_that_nobody_knows_is_counted_as_unknown_where_there_was_a_call() -> None:
    assert counted(COMPLETION, None, "miss").unpriced == 1
    assert counted(COMPLETION, None, "miss").cost_usd == 0
    assert counted(COMPLETION, None, "hit").unpriced == 0


def test_a_call_without_an_answer_counts_as_a_request_that_cost_nothing() -> None:
    figures = counted(None, Decimal(0), "miss")
    assert (figures.total_tokens, figures.cost_usd, figures.saved_usd) == (0, 0, 0)
    assert figures.unpriced == 0


def test_a_cost_is_counted_in_whole_steps_and_never_as_more_than_can_be_added_up() -> None:
    assert counted(COMPLETION, Decimal("1.0000000000016"), "miss").cost_usd == Decimal(
        "1.000000000002"
    )
    assert counted(COMPLETION, Decimal("1e300"), "miss").cost_usd == Decimal(10) ** 12


def test_a_result_is_json_with_money_as_numbers() -> None:
    result = build_result(COMPLETION, {"a": [1]}, COST, a_trace(), ended_s=104.5)
    read = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert read["cost_usd"] == read["usage"]["cost_usd"] == 0.0123
    assert read["meta"]["cache"] == "miss"
    assert read.keys() >= {"text", "structured", "tool_calls", "usage", "meta"}


def test_the_result_of_a_failure_is_json_too() -> None:
    assert json.loads(json.dumps(empty_result(a_trace(), 103.0).to_json()))["cost_usd"] is None


def test_an_unknown_amount_is_null() -> None:
    assert usd_number(None) is None
    assert usd_number(Decimal("0.1")) == 0.1
