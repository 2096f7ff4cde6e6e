"""How values look in messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holysheep.wording import shortened, span


@given(text=st.text(max_size=300), limit=st.integers(2, 250))
def test_a_shortened_text_is_no_longer_than_its_limit(text: str, limit: int) -> None:
    assert len(shortened(text, limit)) <= limit


@given(text=st.text(max_size=50))
def test_a_text_within_the_limit_stays_as_it_is(text: str) -> None:
    assert shortened(text, 50) == text


def test_a_cut_text_says_that_it_was_cut() -> None:
    assert shortened("one two three", 9) == "one two…"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.42, "0.42 s"),
        (9.5, "9.5 s"),
        (42.4, "42 s"),
        (119, "119 s"),
        (600, "600 s (10 min)"),
        (7200, "7200 s (2.0 h)"),
        (1e12, "more than a year"),
        (float("inf"), "more than a year"),
    ],
)
def test_a_span_is_shown_in_seconds_and_what_people_count_in(seconds: float, shown: str) -> None:
    assert span(seconds) == shown


@given(seconds=st.floats(0.001, 1e9))
def test_no_span_is_shown_in_the_notation_of_scientists(seconds: float) -> None:
    assert "e" not in span(seconds).replace("more than a year", "")
