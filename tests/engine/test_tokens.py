"""Estimates of tokens: rough, never negative, and never a reason to fail."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holysheep.tokens import (
    TOKENS_PER_IMAGE,
    estimate_call_tokens,
    estimate_prompt_tokens,
    estimate_tokens,
    max_completion_tokens,
)
from holysheep.types import ChatRequest
from tests.fakes import a_request


def test_no_text_has_no_tokens() -> None:
    assert estimate_tokens("") == 0


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("The quick brown fox jumps over the lazy dog. " * 10, 90, 130),
        ("敏捷的棕色狐狸跳过了懒狗。" * 10, 90, 180),
        ("Die Größe läßt sich schätzen. " * 10, 60, 110),
        ("😀" * 100, 100, 300),
    ],
    ids=["English", "Chinese", "German", "emoji"],
)
def test_an_estimate_is_in_the_range_of_real_vocabularies(text: str, least: int, most: int) -> None:
    assert least <= estimate_tokens(text) <= most


@given(text=st.text(st.characters()), more=st.text(st.characters(), min_size=1))
def test_more_text_never_has_fewer_tokens(text: str, more: str) -> None:
    assert 0 <= estimate_tokens(text) <= estimate_tokens(text + more)
    assert estimate_tokens(text + more) > 0


def test_half_a_character_can_be_estimated() -> None:
    assert estimate_tokens("\ud83d") >= 1


def test_every_message_counts() -> None:
    one = a_request("Hello")
    two = one.with_messages([*one.body["messages"], {"role": "assistant", "content": "Hi"}])
    assert estimate_prompt_tokens(two) > estimate_prompt_tokens(one) > 0


def test_an_image_counts_by_its_tiles_and_not_by_its_bytes() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10**6}}
    request = a_request().with_messages([{"role": "user", "content": [image, image]}])
    assert 2 * TOKENS_PER_IMAGE <= estimate_prompt_tokens(request) <= 2 * TOKENS_PER_IMAGE + 20


def test_tools_and_tool_calls_count() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 400}}]
    plain = estimate_prompt_tokens(a_request())
    assert estimate_prompt_tokens(a_request(tools=tools)) >= plain + 100
    called = {"role": "assistant", "content": None, "tool_calls": tools}
    assert estimate_prompt_tokens(a_request().with_messages([called])) >= 100


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 50}, 50),
        ({"max_completion_tokens": 70, "max_tokens": 50}, 70),
        ({"max_tokens": 50, "n": 3}, 150),
        ({"max_tokens": None}, 0),
        ({"max_tokens": 50, "n": None}, 50),
    ],
    ids=str,
)
def test_the_longest_answer_is_what_the_request_allows(
    fields: dict[str, Any], expected: int
) -> None:
    assert max_completion_tokens(a_request(**fields)) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": "many"},
        {"max_tokens": -1_000_000},
        {"max_tokens": [1]},
        {"max_tokens": {}},
        {"n": -3},
        {"n": "two"},
        {"n": 1.5},
    ],
    ids=str,
)
def test_a_limit_that_is_none_is_neither_negative_nor_a_crash(fields: dict[str, Any]) -> None:
    """Such values come through ``extra_body``; it is the gateway that refuses them."""
    assert max_completion_tokens(a_request(**fields)) >= 0


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": 5, "tool_calls": [{}]},
        {"role": "assistant", "content": {"a": 1}, "tool_calls": [{}]},
        {"role": "assistant", "content": True, "tool_calls": [{}]},
        {"role": "user", "content": [{"type": "text", "text": None}]},
        {"role": "user", "content": [{}]},
        {"role": "user", "content": []},
        {"role": "user"},
    ],
    ids=str,
)
def test_a_message_of_an_odd_form_can_be_estimated(message: dict[str, Any]) -> None:
    assert estimate_prompt_tokens(ChatRequest({"model": "m", "messages": [message]})) >= 0


def test_a_call_reserves_its_prompt_and_its_longest_answer() -> None:
    request = a_request("x" * 4000, max_tokens=500)
    assert estimate_call_tokens(request) == estimate_prompt_tokens(request) + 500
