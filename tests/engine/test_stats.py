"""Percentiles and rates, held against their definitions."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holysheep.stats import Latencies, LatencySummary, per_minute, percentile

# As the engine measures them: not negative, to the microsecond.
SPANS_MS = st.integers(0, 10**9).map(lambda microseconds: microseconds / 1000)


def nearest_rank(values: list[float], percent: int) -> float:
    """The smallest value that at least ``percent`` percent of all values do not exceed."""
    for candidate in sorted(values):
        not_above = sum(value <= candidate for value in values)
        if Fraction(not_above, len(values)) >= Fraction(percent, 100):
            return candidate
    raise AssertionError("the largest value is above no other")


def summary_of(values: list[float]) -> LatencySummary:
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    assert len(latencies) == len(values)
    return latencies.summary()


@settings(deadline=None)
@given(st.lists(SPANS_MS, min_size=1, max_size=120), st.integers(1, 100))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(
    values: list[float], percent: int
) -> None:
    assert percentile(sorted(values), percent) == nearest_rank(values, percent)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 20, 99, 100, 101, 500])
@pytest.mark.parametrize("percent", [1, 50, 95, 99, 100])
def test_no_count_of_values_is_off_by_one(count: int, percent: int) -> None:
    values = [float(number) for number in range(1, count + 1)]
    assert percentile(values, percent) == nearest_rank(values, percent)


@pytest.mark.parametrize(
    ("percent", "expected"), [(5, 15), (30, 20), (40, 20), (50, 35), (95, 50), (100, 50)]
)
def test_textbook_example_of_the_nearest_rank(percent: int, expected: float) -> None:
    assert percentile([15, 20, 35, 40, 50], percent) == expected


@pytest.mark.parametrize("percent", [0, -1, 100.5, float("nan")])
def test_a_percentage_out_of_range_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="percentage"):
        percentile([1.0], percent)


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="needs values"):
        percentile([], 50)


@settings(deadline=None)
@given(st.lists(SPANS_MS, min_size=1, max_size=120))
def test_a_summary_is_that_of_all_values_in_any_order(values: list[float]) -> None:
    found = summary_of(values)
    assert found == summary_of(values[::-1])
    assert (found.min_ms, found.max_ms) == (min(values), max(values))
    assert found.p50_ms == nearest_rank(values, 50)
    assert found.p95_ms == nearest_rank(values, 95)
    assert found.p99_ms == nearest_rank(values, 99)
    average = sum(map(Fraction, values)) / len(values)
    assert abs(Fraction(found.avg_ms) - average) <= Fraction(6, 10_000)
    ordered = [found.min_ms, found.p50_ms, found.p95_ms, found.p99_ms, found.max_ms]
    assert ordered == sorted(ordered)
    assert {found.p50_ms, found.p95_ms, found.p99_ms} <= set(values), "each was measured"


def test_a_summary_has_the_percentiles_that_it_names() -> None:
    found = summary_of([float(number) for number in range(1, 101)])
    assert (found.p50_ms, found.p95_ms, found.p99_ms) == (50, 95, 99)
    assert (found.avg_ms, found.min_ms, found.max_ms) == (50.5, 1, 100)


def test_of_a_single_value_all_figures_are_that_one() -> None:
    assert set(summary_of([12.5]).to_json().values()) == {12.5}


def test_of_no_value_all_figures_are_0() -> None:
    assert summary_of([]).to_json() == {
        "avg_ms": 0,
        "min_ms": 0,
        "max_ms": 0,
        "p50_ms": 0,
        "p95_ms": 0,
        "p99_ms": 0,
    }


def test_a_summary_can_be_asked_for_while_it_grows() -> None:
    latencies = Latencies()
    latencies.add(3.0)
    assert latencies.summary().max_ms == 3.0
    latencies.add(1.0)
    latencies.add(7.0)
    found = latencies.summary()
    assert (found.min_ms, found.p50_ms, found.max_ms) == (1.0, 3.0, 7.0)


@pytest.mark.parametrize(
    ("count", "seconds", "expected"),
    [(1, 60, 1), (847, 60, 847), (20, 10, 120), (1, 7, 8.6), (0, 5, 0), (5, 0, 0), (5, -1, 0)],
)
def test_a_rate_is_per_minute_and_0_where_no_time_has_passed(
    count: int, seconds: float, expected: float
) -> None:
    assert per_minute(count, seconds) == expected
