"""Estimates: exact sums, what a cache takes away, comparisons, and loads that are none."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holysheep.errors import InputError
from holysheep.estimate import Estimate, estimate
from holysheep.params import CostParams
from holysheep.pricing import PriceBook, parse_overrides
from holysheep.reading import parsed
from holysheep.report import cost_report
from holysheep.types import Usage

PRICES = """
cheap: {input: 0.1, cached_input: 0.01, output: 0.4}
dear: {input: 10, output: 30, compare_at: 40}
split: {input: 2, output: 4, compare_at: {input: 4, output: 8}}
"""


def estimated(prices: str = PRICES, **load: Any) -> Estimate:
    return estimate(parsed(CostParams, load), PriceBook(parse_overrides(prices)))


def test_the_cheapest_model_comes_first() -> None:
    found = estimated(models="dear, split, cheap", prompt_tokens=1000, completion_tokens=1000)
    assert [row.model for row in found.rows] == ["cheap", "split", "dear"]
    assert found.cheapest is not None
    assert found.cheapest.total_usd == Decimal("0.0005")


def test_a_load_is_so_many_times_one_request() -> None:
    row = estimated(models="dear", prompt_tokens=7, completion_tokens=3, requests=1001).rows[0]
    assert row.input_usd == Decimal("0.07007")
    assert row.output_usd == Decimal("0.09009")
    assert row.total_usd == Decimal("0.16016")


def test_cached_prompt_tokens_have_their_own_price() -> None:
    row = estimated(models="cheap", prompt_tokens=1000, cached_tokens=400).rows[0]
    assert (row.input_usd, row.cached_usd) == (Decimal("0.00006"), Decimal("0.000004"))


def test_requests_that_the_cache_answers_cost_nothing() -> None:
    load = {"models": "dear", "prompt_tokens": 1000, "requests": 100}
    row = estimated(**load, cache_hit_rate=0.25).rows[0]
    assert row.total_usd == estimated(**load).rows[0].total_usd * 3 / 4
    assert row.compare_usd == estimated(**load).rows[0].compare_usd


@pytest.mark.parametrize(
    ("model", "compare_usd", "saving"), [("dear", "0.08", 50.0), ("split", "0.012", 50.0)]
)
def test_savings_are_against_the_prices_that_the_user_set(
    model: str, compare_usd: str, saving: float
) -> None:
    row = estimated(models=model, prompt_tokens=1000, completion_tokens=1000).rows[0]
    assert row.compare_usd == Decimal(compare_usd)
    assert row.saving_percent == saving


def test_without_a_price_to_compare_with_there_is_no_saving() -> None:
    row = estimated(models="cheap", prompt_tokens=1000).rows[0]
    assert (row.compare_usd, row.saving_percent) == (None, None)


def test_every_priced_model_is_estimated_unless_some_are_named() -> None:
    found = estimated(prompt_tokens=1000)
    models = {row.model for row in found.rows}
    assert {"cheap", "dear", "split", "gpt-4.1", "deepseek-v3.2"} <= models
    assert {row.price_source for row in found.rows} == {"override", "table"}


def test_a_model_without_a_price_is_named_and_costs_nothing_at_all() -> None:
    found = estimated(models="cheap, nobody-knows", prompt_tokens=1000)
    assert (found.unpriced, [row.model for row in found.rows]) == (["nobody-knows"], ["cheap"])
    none = estimated(models="nobody-knows", prompt_tokens=1000)
    assert none.cheapest is None
    assert "Without a price: nobody-knows. Add" in cost_report(none)


def test_tokens_of_a_text_are_estimated_and_said_to_be() -> None:
    found = estimated(models="dear", input_text="word " * 400)
    assert found.is_estimated
    assert found.usage.prompt_tokens == 501
    assert "estimated" in cost_report(found)


def test_given_tokens_count_more_than_a_text() -> None:
    found = estimated(models="dear", input_text="word", prompt_tokens=1234)
    assert (found.usage.prompt_tokens, found.is_estimated) == (1234, False)
    assert "estimated" not in cost_report(found)


@pytest.mark.parametrize(
    ("load", "words"),
    [
        ({}, "give input_text, or prompt_tokens"),
        ({"prompt_tokens": 10, "cached_tokens": 11}, "at most 10, got 11"),
        ({"prompt_tokens": -1}, "prompt_tokens must be a whole number from 0 to"),
        ({"prompt_tokens": 1.5}, "prompt_tokens must be a whole number"),
        ({"prompt_tokens": 1, "requests": 0}, "requests must be a whole number from 1 to"),
        (
            {"prompt_tokens": 1, "cache_hit_rate": 1.1},
            "cache_hit_rate must be a number from 0 to 1",
        ),
        ({"prompt_tokens": 1, "models": [1]}, "models must be model ids"),
    ],
)
def test_a_load_that_is_none_is_refused(load: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        estimated(**load)


COUNTS = st.integers(0, 10**9)


@given(prompt=COUNTS, completion=COUNTS, share=st.fractions(0, 1), requests=st.integers(1, 10**9))
def test_parts_add_up_to_what_a_call_costs(
    prompt: int, completion: int, share: Any, requests: int
) -> None:
    cached = int(prompt * share)
    if not prompt and not completion:
        return
    row = estimated(
        models="cheap",
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        requests=requests,
    ).rows[0]
    price, _ = PriceBook(parse_overrides(PRICES)).find("cheap")
    assert price is not None
    assert row.total_usd == requests * price.cost(Usage(prompt, completion, cached))
