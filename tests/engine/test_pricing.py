"""Prices and cost: exact, or unknown, never guessed."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holysheep.errors import SettingsError
from holysheep.pricing import Price, PriceBook, canonical_id, parse_overrides
from holysheep.types import Completion, Usage
from tests.fakes import a_completion

counts = st.integers(0, 10**9)
prices = st.decimals(0, 1000, places=6)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """Usage in which the parts do not exceed the whole, as gateways report it."""
    cached, written, fresh = draw(counts), draw(counts), draw(counts)
    return Usage(
        prompt_tokens=cached + written + fresh,
        completion_tokens=draw(counts),
        cached_tokens=cached,
        cache_write_tokens=written,
    )


price_lists = st.builds(
    Price,
    input=prices,
    output=prices,
    cached_input=st.none() | prices,
    cache_write=st.none() | prices,
)


def test_the_cost_is_that_of_each_kind_of_token() -> None:
    price = Price(
        input=Decimal(3),
        cached_input=Decimal("0.3"),
        cache_write=Decimal("3.75"),
        output=Decimal(15),
    )
    usage = Usage(
        prompt_tokens=1000, cached_tokens=600, cache_write_tokens=100, completion_tokens=50
    )
    expected = Decimal(300) * 3 + Decimal(600) * Decimal("0.3") + Decimal(375) + 750
    assert price.cost(usage) == expected / 1_000_000


def test_a_cost_of_a_fraction_of_a_cent_is_not_rounded() -> None:
    price = Price(input=Decimal("0.075"), output=Decimal("0.3"))
    assert price.cost(Usage(prompt_tokens=1)) == Decimal("0.000000075")


def test_reasoning_tokens_are_part_of_the_completion() -> None:
    price = Price(input=Decimal(1), output=Decimal(10))
    with_reasoning = Usage(completion_tokens=100, reasoning_tokens=90)
    assert price.cost(with_reasoning) == price.cost(Usage(completion_tokens=100))


@given(price=price_lists, one=usages(), other=usages())
def test_the_cost_of_a_sum_is_the_sum_of_the_costs(price: Price, one: Usage, other: Usage) -> None:
    assert price.cost(one + other) == price.cost(one) + price.cost(other)


@given(price=price_lists, usage=usages())
def test_a_cost_is_never_negative(price: Price, usage: Usage) -> None:
    assert price.cost(usage) >= 0


def test_more_cached_tokens_than_there_are_cost_no_less_than_nothing() -> None:
    price = Price(input=Decimal(1), cached_input=Decimal("0.1"), output=Decimal(1))
    assert price.cost(Usage(prompt_tokens=10, cached_tokens=1000)) >= 0


@pytest.mark.parametrize(("prompt_tokens", "rate"), [(200_000, 1), (200_001, 2)])
def test_another_price_counts_for_the_whole_of_a_longer_request(
    prompt_tokens: int, rate: int
) -> None:
    price = Price.model_validate(
        {
            "input": "1",
            "output": "1",
            "above": {"prompt_tokens": 200_000, "input": "2", "output": "2"},
        }
    )
    usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=10)
    assert price.cost(usage) == Decimal(rate * (prompt_tokens + 10)) / 1_000_000


# --- which price --------------------------------------------------------------------------------


def completion(
    model: str = "gpt-4.1", asked_model: str = "gpt-4.1", cost: Decimal | None = None
) -> Completion:
    usage = Usage(prompt_tokens=1_000_000, provider_cost_usd=cost)
    return a_completion(model=model, asked_model=asked_model, usage=usage)


MINE = {"gpt-4.1": Price(input=Decimal("0.5"), output=Decimal(1))}


def test_an_unknown_model_has_no_cost() -> None:
    cost = PriceBook().cost(completion("nobody-knows", "nobody-knows"))
    assert (cost.usd, cost.source) == (None, "none")


def test_the_table_is_the_last_resort() -> None:
    cost = PriceBook().cost(completion())
    assert (cost.usd, cost.source) == (Decimal("2.00"), "table")


def test_what_the_provider_reports_comes_before_the_table() -> None:
    cost = PriceBook().cost(completion(cost=Decimal("1.23")))
    assert (cost.usd, cost.source) == (Decimal("1.23"), "provider")


def test_a_reported_cost_of_nothing_is_a_cost() -> None:
    assert PriceBook().cost(completion("x", "x", cost=Decimal(0))).usd == 0


def test_an_override_comes_before_everything() -> None:
    cost = PriceBook(MINE).cost(completion(cost=Decimal("1.23")))
    assert (cost.usd, cost.source) == (Decimal("0.5"), "override")


def test_an_override_for_the_asked_model_beats_the_table_for_the_served_one() -> None:
    cost = PriceBook({"alias": MINE["gpt-4.1"]}).cost(completion("gpt-4.1", "alias"))
    assert cost.source == "override"


def test_the_served_model_comes_before_the_asked_one() -> None:
    book = PriceBook({"asked": Price(input=Decimal(9), output=Decimal(9)), **MINE})
    assert book.cost(completion("gpt-4.1", "asked")).usd == Decimal("0.5")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("GPT-4.1", "gpt-4.1"),
        ("openai/gpt-4.1", "gpt-4.1"),
        ("openrouter/openai/gpt-4.1", "gpt-4.1"),
        ("gpt-4.1-2025-04-14", "gpt-4.1"),
        (" gpt-4.1 ", "gpt-4.1"),
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4.5"),
        ("anthropic/claude-3.5-haiku@20241022", "claude-3-5-haiku"),
    ],
)
def test_spellings_of_the_same_model_have_the_same_id(one: str, other: str) -> None:
    assert canonical_id(one) == canonical_id(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("gpt-4.1", "gpt-4.1-mini"), ("gpt-4.1", "gpt-4-1"), ("gpt-4", "gpt-4-32k")],
)
def test_different_models_have_different_ids(one: str, other: str) -> None:
    assert canonical_id(one) != canonical_id(other)


@given(model=st.text())
def test_any_id_can_be_looked_up(model: str) -> None:
    price, source = PriceBook(MINE).find(model)
    assert (price is None) == (source == "none")


@pytest.mark.parametrize(
    "model",
    ["deepseek-v3.2", "gpt-4.1", "claude-sonnet-4.5", "gemini-2.5-flash"],
)
def test_every_model_that_the_node_offers_first_has_a_price(model: str) -> None:
    price, source = PriceBook().find(model)
    assert source == "table"
    assert price is not None
    assert price.input > 0 < price.output


# --- overrides ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{}", "  ", "# nothing"])
def test_no_overrides_are_none(text: str) -> None:
    assert parse_overrides(text) == {}


@pytest.mark.parametrize(
    "text",
    [
        "my-model: {input: 0.1, output: 0.30}",
        "my-model:\n  input: 0.1\n  output: 0.30\n",
        '{"my-model": {"input": 0.1, "output": "0.30"}}',
        '{\n\t"my-model": {\n\t\t"input": 0.1, "output": 0.30\n\t}\n}',
    ],
    ids=["flow", "block", "JSON", "JSON with tabs"],
)
def test_overrides_are_yaml_or_json_with_exact_numbers(text: str) -> None:
    price = parse_overrides(text)["my-model"]
    assert (price.input, price.output) == (Decimal("0.1"), Decimal("0.30"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("my-model: 5", "my-model must be a mapping"),
        ("my-model: {input: 1}", "output"),
        ("my-model: {input: -1, output: 1}", "input"),
        ("my-model: {input: abc, output: 1}", "input"),
        ("my-model: {input: .nan, output: 1}", "input"),
        ("my-model: {input: NaN, output: 1}", "input"),
        ("my-model: {input: Infinity, output: 1}", "input"),
        ("my-model: {inptu: 1, output: 1}", "inptu"),
        ("my-model: {input: 1, output: 1, compare_at: -5}", "compare_at"),
        ("my-model: {input: 1, output: 1, above: {input: 1}}", "above"),
        ("- a", "mapping"),
        ("just text", "mapping"),
        ("{", "neither valid YAML nor JSON"),
        ("\x00", "neither valid YAML nor JSON"),
        ("[" * 5000, "neither valid YAML nor JSON"),
        ("a: &x {input: 1, output: 1}\n? [b]\n: *x", "neither valid YAML nor JSON"),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_an_unusable_override_is_refused_with_what_is_wrong(text: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told) as raised:
        parse_overrides(text)
    assert raised.value.message.startswith("price_overrides")
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("number", ["1e400", "1e999999", "9" * 400])
def test_a_price_beyond_all_reason_is_refused_or_can_be_reckoned_with(number: str) -> None:
    try:
        price = parse_overrides(f"my-model: {{input: {number}, output: 1}}")["my-model"]
    except SettingsError:
        return
    assert float(price.cost(Usage(prompt_tokens=10**9))) > 0


@given(text=st.text(st.sampled_from("a:{}[],- \n\"'&*!|>?%@1.e"), max_size=40))
def test_no_text_crashes_the_parser(text: str) -> None:
    result: Any
    try:
        result = parse_overrides(text)
    except SettingsError as error:
        result = error.message
    assert isinstance(result, dict) or "\n" not in result
