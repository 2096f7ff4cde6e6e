"""The values: what makes two requests the same, and how usage adds up."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holysheep.types import ChatRequest, Trace, Usage
from tests.fakes import FakeClock, a_call, a_completion, a_request

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text('abcé\n"', max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
bodies = st.dictionaries(st.sampled_from(["model", "messages", "n", "stop", "x"]), json_values)


def exactly(value: Any) -> Any:
    """``value`` in a form in which 1, 1.0 and True differ, as they do in JSON."""
    if isinstance(value, dict):
        return {key: exactly(item) for key, item in value.items()}
    if isinstance(value, list):
        return [exactly(item) for item in value]
    return (type(value).__name__, repr(value))


def shuffled(value: Any) -> Any:
    """``value`` with the keys of its objects in the opposite order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=50)
@given(body=bodies)
def test_the_canonical_body_is_the_body(body: dict[str, Any]) -> None:
    assert exactly(json.loads(ChatRequest(body).canonical())) == exactly(body)


@settings(max_examples=50)
@given(body=bodies)
def test_the_order_of_keys_changes_nothing(body: dict[str, Any]) -> None:
    assert ChatRequest(shuffled(body)).digest() == ChatRequest(body).digest()


@settings(max_examples=50)
@given(one=bodies, other=bodies)
def test_two_requests_have_the_same_digest_if_and_only_if_they_say_the_same(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    same = exactly(one) == exactly(other)
    assert (ChatRequest(one).digest() == ChatRequest(other).digest()) == same


@pytest.mark.parametrize("text", ["\ud83d", "a \udc00 b"], ids=["high half", "low half"])
def test_half_a_character_in_a_request_can_still_be_sent(text: str) -> None:
    request = a_request(text)
    json.loads(request.canonical())
    assert len(request.digest()) == 32


def test_the_halves_of_a_character_are_sent_as_one() -> None:
    sent = json.loads(a_request("\ud83d\ude00").canonical())
    assert sent["messages"][0]["content"] == "😀"


@settings(max_examples=50)
@given(body=bodies, name=st.sampled_from(["model", "messages", "new"]), value=json_values)
def test_any_change_of_any_parameter_changes_the_digest(
    body: dict[str, Any], name: str, value: Any
) -> None:
    changed = {**body, name: value}
    same = exactly(changed) == exactly(body)
    assert (ChatRequest(changed).digest() == ChatRequest(body).digest()) == same


def test_another_model_is_another_request_with_the_same_rest() -> None:
    request = a_request(temperature=0.5)
    other = request.with_model("b")
    assert other.model == "b"
    assert other.digest() != request.digest()
    assert other.with_model(request.model).digest() == request.digest()


def test_another_conversation_leaves_the_request_alone() -> None:
    request = a_request("one")
    other = request.with_messages([{"role": "user", "content": "two"}])
    assert request.body["messages"][0]["content"] == "one"
    assert other.body["max_tokens"] == request.body["max_tokens"]


def test_a_call_that_asks_something_else_keeps_deadline_policy_and_trace() -> None:
    call = a_call(FakeClock(), max_retries=7)
    other = call.asking(a_request("else"))
    assert (other.deadline_s, other.policy, other.trace) == (
        call.deadline_s,
        call.policy,
        call.trace,
    )
    assert other.request is not call.request


counts = st.integers(0, 10**9)
usages = st.builds(
    Usage,
    prompt_tokens=counts,
    completion_tokens=counts,
    cached_tokens=counts,
    cache_write_tokens=counts,
    reasoning_tokens=counts,
    provider_cost_usd=st.none() | st.decimals(0, 1000, places=9),
    estimated=st.booleans(),
)


@given(one=usages, other=usages)
def test_usage_adds_up_in_any_order(one: Usage, other: Usage) -> None:
    assert one + other == other + one
    assert (one + other).total_tokens == one.total_tokens + other.total_tokens


def test_a_sum_with_an_unknown_cost_has_no_cost() -> None:
    known = Usage(provider_cost_usd=Decimal("0.1"))
    assert (known + Usage()).provider_cost_usd is None
    assert (known + known).provider_cost_usd == Decimal("0.2")


def test_a_sum_with_a_cost_of_nothing_is_still_known() -> None:
    free = Usage(provider_cost_usd=Decimal(0))
    assert (free + free).provider_cost_usd == 0


def test_one_estimated_part_makes_the_sum_an_estimate() -> None:
    assert (Usage() + Usage(estimated=True)).estimated


def test_the_first_choice_is_the_answer() -> None:
    assert a_completion("yes").first.text == "yes"


def test_a_new_trace_has_seen_nothing() -> None:
    trace = Trace(started_s=1.0)
    assert (trace.attempts, trace.ttft_s, trace.queue_s, trace.fallback_from) == (
        0,
        None,
        0.0,
        None,
    )
