"""Equal rows of a batch: who asks, who waits, and what the others get."""

import random
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holysheep.results import RowResult
from holysheep.twins import Twins, twin_of
from tests.fakes import FakeClock, StandingClock, in_threads

ANSWER = RowResult(
    3, "ok", "q", "the answer", model="m", latency_ms=12.0, tokens_used=15, cost_usd=Decimal("0.1")
)
FAILURE = RowResult(3, "error", "q", error="no", error_type="bad_request", cost_usd=Decimal("0.2"))


@pytest.fixture
def twins() -> Iterator[Twins[str]]:
    twins: Twins[str] = Twins(FakeClock())
    yield twins
    twins.close()


def test_the_first_of_equal_rows_asks_and_the_others_wait(twins: Twins[str]) -> None:
    assert [twins.claim("k", name) for name in "abc"] == ["ask", "wait", "wait"]


def test_rows_that_differ_each_ask(twins: Twins[str]) -> None:
    assert [twins.claim(key, "a") for key in (1, "1", b"1", (1,))] == ["ask"] * 4


def test_those_who_waited_are_named_in_order_and_once(twins: Twins[str]) -> None:
    for name in "abc":
        twins.claim("k", name)
    assert twins.settle("k", ANSWER, is_final=False) == ["b", "c"]
    twins.claim("other", "d")
    assert twins.settle("other", ANSWER, is_final=False) == []


def test_after_an_answer_every_other_row_gets_it(twins: Twins[str]) -> None:
    twins.claim("k", "a")
    twins.settle("k", ANSWER, is_final=False)
    for _ in range(3):
        found = twins.claim("k", "b")
        assert isinstance(found, RowResult)
        assert (found.status, found.response) == ("ok", "the answer")
        assert (found.model, found.tokens_used) == ("m", 15)


def test_a_failure_for_good_is_that_of_every_other_row(twins: Twins[str]) -> None:
    twins.claim("k", "a")
    twins.claim("k", "b")
    assert twins.settle("k", FAILURE, is_final=True) == ["b"]
    assert twins.claim("k", "b") == FAILURE


def test_after_a_failure_by_chance_exactly_one_other_asks(twins: Twins[str]) -> None:
    for name in "abc":
        twins.claim("k", name)
    waiting = twins.settle("k", FAILURE, is_final=False)
    assert [twins.claim("k", name) for name in waiting] == ["ask", "wait"]
    assert twins.settle("k", ANSWER, is_final=False) == ["c"]
    assert isinstance(twins.claim("k", "c"), RowResult)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)


@settings(deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS, st.integers(0, 10**9)), max_size=20))
def test_each_answer_comes_back_as_it_was_in_any_order(answers: list[tuple[str, str, int]]) -> None:
    twins: Twins[int] = Twins(FakeClock())
    for number, (response, model, tokens) in enumerate(answers):
        twins.claim(number, number)
        result = RowResult(number, "ok", response=response, model=model, tokens_used=tokens)
        twins.settle(number, result, is_final=False)
    for number, expected in reversed(list(enumerate(answers))):
        found = twins.claim(number, number)
        assert isinstance(found, RowResult)
        assert (found.response, found.model, found.tokens_used) == expected
    twins.close()


def test_half_of_a_character_does_no_harm(twins: Twins[str]) -> None:
    twins.claim("k", "a")
    twins.settle("k", RowResult(0, "ok", response="cut \ud83d off"), is_final=False)
    found = twins.claim("k", "b")
    assert isinstance(found, RowResult)
    assert found.response.encode().startswith(b"cut ")
    assert found.response.endswith(" off")


def test_many_large_answers_are_not_kept_in_memory(twins: Twins[str]) -> None:
    tracemalloc.start()
    try:
        for number in range(64):
            twins.claim(number, "a")
            result = RowResult(number, "ok", response=f"{number:02d}" * 100_000)
            twins.settle(number, result, is_final=False)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 4_000_000, "13 MB of answers"
    for number in (63, 0, 31):
        found = twins.claim(number, "b")
        assert isinstance(found, RowResult)
        assert found.response == f"{number:02d}" * 100_000


def test_of_many_threads_exactly_one_asks() -> None:
    for _ in range(30):
        twins: Twins[int] = Twins(StandingClock())
        outcomes = in_threads(8, lambda number, t=twins: t.claim("k", number))
        assert Counter(outcomes) == {"ask": 1, "wait": 7}
        asked = outcomes.index("ask")
        waiting = twins.settle("k", ANSWER, is_final=False)
        assert sorted([*waiting, asked]) == list(range(8)), "none is forgotten"
        twins.close()


def test_threads_that_write_and_read_at_once_mix_no_answers() -> None:
    """Large answers, so that the file leaves memory in between."""
    twins: Twins[tuple[int, int]] = Twins(StandingClock())
    keys = range(40)
    asked: Counter[int] = Counter()
    lock = threading.Lock()

    def response(key: int) -> str:
        return f"<{key}>" * (200 + 400 * key)

    def work(number: int) -> int:
        order = list(keys) * 3
        random.Random(number).shuffle(order)
        later: list[Any] = []
        seen = 0
        for key in order:
            found = twins.claim(key, (number, key))
            if found == "ask":
                with lock:
                    asked[key] += 1
                twins.settle(key, RowResult(0, "ok", response=response(key)), is_final=False)
            elif found == "wait":
                later.append(key)
            else:
                assert found.response == response(key)
                seen += 1
        return seen + len(later)

    outcomes = in_threads(8, work)
    assert asked == dict.fromkeys(keys, 1)
    assert sum(outcomes) == 8 * 3 * len(keys) - len(keys)
    for key in keys:
        found = twins.claim(key, (0, key))
        assert isinstance(found, RowResult)
        assert found.response == response(key)
    twins.close()


def test_a_twin_has_made_no_call_of_its_own() -> None:
    twin = twin_of(ANSWER, index=9, query="another spelling")
    assert (twin.index, twin.query, twin.response) == (9, "another spelling", "the answer")
    assert (twin.cached, twin.cost_usd, twin.latency_ms) == (True, 0, 0)
    assert (twin.model, twin.tokens_used) == ("m", 15)
    assert ANSWER.index == 3


def test_the_twin_of_a_failure_is_a_failure_without_cost() -> None:
    twin = twin_of(FAILURE, index=9, query="q")
    assert (twin.status, twin.error, twin.error_type) == ("error", "no", "bad_request")
    assert (twin.cached, twin.cost_usd) == (False, 0)
