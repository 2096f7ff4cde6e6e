"""JSON from outside: read strictly, bounded in depth, and with whole characters."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holysheep.jsontext import ends_in_half, parse_json, whole_characters, with_whole_characters
from tests.engine.test_types import json_values

any_text = st.text(st.characters(categories=["L", "N", "Cs", "So", "Zs"]), max_size=20)


@given(value=json_values)
def test_every_json_value_is_read_as_it_is(value: Any) -> None:
    text = json.dumps(value)
    assert parse_json(text) == parse_json(text.encode()) == value


@pytest.mark.parametrize(
    "text",
    ["", "NaN", "[Infinity]", "-Infinity", "{", "[" * 100_000, "9" * 5000, "{'a': 1}", b"\xff\xfe"],
    ids=lambda text: repr(text)[:15],
)
def test_what_is_no_json_raises_nothing_but_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - several kinds of it
        parse_json(text)


def test_a_byte_order_mark_is_ignored() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@given(text=any_text)
def test_whole_characters_can_always_be_encoded(text: str) -> None:
    assert isinstance(whole_characters(text).encode(), bytes)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_text_without_halves_stays_as_it_is(text: str) -> None:
    assert whole_characters(text) == text


@given(text=st.text(st.sampled_from("a😀é🎉")))
def test_halves_that_belong_together_are_joined(text: str) -> None:
    units = text.encode("utf-16-be")
    split = "".join(chr(int.from_bytes(units[at : at + 2])) for at in range(0, len(units), 2))
    assert whole_characters(split) == text


def test_two_halves_become_one_character() -> None:
    assert whole_characters("\ud83d\ude00") == "😀"


nested_text = st.recursive(
    any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
)


@settings(max_examples=30)
@given(value=nested_text)
def test_no_value_keeps_half_a_character_anywhere(value: Any) -> None:
    shown = json.dumps(with_whole_characters(value), ensure_ascii=False)
    assert isinstance(shown.encode(), bytes)


@pytest.mark.parametrize("depth", [50, 200, 900, 980, 5000])
def test_a_value_of_any_depth_is_taken_or_refused(depth: int) -> None:
    text = "[" * depth + "]" * depth
    try:
        value = with_whole_characters(parse_json(text))
    except ValueError:
        assert depth > 50
        return
    assert json.dumps(value) == text


@pytest.mark.parametrize(
    ("text", "half"), [("", False), ("a", False), ("a\ud83d", True), ("a\ude00", False)]
)
def test_the_first_half_of_a_character_at_the_end_is_noticed(text: str, half: bool) -> None:
    assert ends_in_half(text) is half
