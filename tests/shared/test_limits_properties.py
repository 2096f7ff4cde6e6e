"""What the shared limiter promises whatever happens: drawn loads on several processes.

What is measured against is the process's own limiter, which is simple enough to be believed, or
arithmetic on what was admitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from holysheep.errors import HolySheepError
from holysheep.limiter import RateLimiter
from tests.fakes import START_S, Killed, VirtualTime
from tests.shared.test_limits import FOR_EVER_S, LATENCY_S, Shared, most_above

if TYPE_CHECKING:
    from collections.abc import Callable

    from holysheep.limiter import Place
    from tests.fakes import Task


@dataclass(frozen=True, slots=True)
class Load:
    """A call: when it comes, what it says that it takes, and what becomes of it."""

    at_s: float
    process: int
    tokens: int
    lasts_s: float
    patience_s: float = FOR_EVER_S
    used: int | None = None
    is_cancelled: bool = False
    refused_s: float | None = None
    killed_after_s: float | None = None
    model: str = "a"
    is_fallback: bool = False

    def live(self, place: Place, sleep: Callable[[float], None]) -> None:
        """Do what a call does that has its place."""
        sleep(self.lasts_s)
        if self.is_cancelled:
            place.cancel()
            return
        if self.refused_s is not None:
            place.refused(self.refused_s)
        else:
            place.accepted()
        place.end(self.used)


def loads(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Load]]:
    """Calls that come apart: of two that come together, either may be the first."""
    one = st.builds(
        Load,
        at_s=st.integers(1, 4000).map(lambda hundredths: hundredths / 100),
        process=st.integers(0, 3),
        tokens=st.sampled_from([0, 1, 10, 50, 150]),
        lasts_s=st.integers(1, 200).map(lambda number: number * 0.0503),
        **fields,
    )
    return st.lists(one, min_size=1, max_size=16, unique_by=lambda load: load.at_s)


KILLS = st.none() | st.integers(1, 600).map(lambda number: number * 0.0507)


def admitted_by_one(rates: tuple[float, float], calls: list[Load]) -> dict[int, float]:
    """When the limiter of one process would let which calls through, all processes being one."""
    time = VirtualTime()
    limiter = RateLimiter(*rates, clock=time)
    _drain(rates, lambda tokens: limiter.reserve("a", tokens, deadline_s=FOR_EVER_S))
    admitted: dict[int, float] = {}

    def caller(number: int, load: Load) -> None:
        deadline_s = time.monotonic() + load.patience_s
        place = limiter.reserve("a", load.tokens, deadline_s=deadline_s)
        admitted[number] = time.monotonic() - START_S
        load.live(place, time.sleep)

    def kill(task: Task) -> None:
        if task.ended_s is None:
            time.throw(task, Killed())

    for number, load in enumerate(calls):
        task = time.spawn(caller, number, load, after_s=load.at_s)
        if load.killed_after_s is not None:
            time.spawn(kill, task, after_s=load.at_s + load.killed_after_s)
    time.run()
    return admitted


def admitted_by_several(
    rates: tuple[float, float], calls: list[Load], seed: int
) -> dict[int, float]:
    """The same with the limiters of four processes."""
    shared = Shared(*rates, seed=seed)
    _drain(rates, lambda tokens: shared.take(0, tokens))
    shared.redis.latency_s = LATENCY_S
    admitted: dict[int, float] = {}

    def caller(number: int, load: Load) -> None:
        place = shared.take(load.process, load.tokens, load.patience_s)
        admitted[number] = shared.now_s
        load.live(place, shared.time.sleep)

    for number, load in enumerate(calls):
        task = shared.redis.spawn(caller, number, load, after_s=load.at_s)
        if load.killed_after_s is not None:
            shared.redis.kill(task, after_s=load.at_s + load.killed_after_s)
    shared.run()
    return admitted


def _drain(rates: tuple[float, float], take: Callable[[float], object]) -> None:
    requests, tokens = rates
    take(tokens)
    for _ in range(int(requests) - 1):
        take(0)


RATES = st.sampled_from([(6.0, 0.0), (60.0, 0.0), (0.0, 60.0), (0.0, 600.0), (6.0, 600.0)])


TOLERANCE_S = 0.02


def check_same(rates: tuple[float, float], calls: list[Load], seed: int) -> None:
    expected = admitted_by_one(rates, calls)
    # Who is killed at the moment of his turn has it or not, as messages take their time.
    for number, at_s in expected.items():
        killed_after_s = calls[number].killed_after_s
        assume(killed_after_s is None or calls[number].at_s + killed_after_s > at_s + TOLERANCE_S)
    assert admitted_by_several(rates, calls, seed) == pytest.approx(expected, abs=TOLERANCE_S)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), rates=RATES, calls=loads(killed_after_s=KILLS))
def test_several_processes_admit_each_call_when_one_would_whoever_hangs_up(
    seed: int, rates: tuple[float, float], calls: list[Load]
) -> None:
    check_same(rates, calls, seed)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rates=RATES,
    calls=loads(
        killed_after_s=KILLS,
        used=st.none() | st.sampled_from([0, 5, 60, 200]),
        is_cancelled=st.sampled_from([False, False, True]),
    ),
)
@example(
    seed=0,
    rates=(6.0, 600.0),
    calls=[
        Load(1.0, 0, 150, lasts_s=6.0503, used=0),
        Load(2.0, 1, 0, lasts_s=2.0503, used=1200),
        Load(3.0, 2, 0, lasts_s=1.0503),
    ],
)
def test_several_processes_admit_each_call_when_one_would_whatever_is_given_back(
    seed: int, rates: tuple[float, float], calls: list[Load]
) -> None:
    check_same(rates, calls, seed)


FEW = st.sampled_from([(4.0, 0.0), (0.0, 60.0), (4.0, 60.0), (20.0, 200.0)])
OUTCOMES = {
    "patience_s": st.sampled_from([1.0, 10.0, 60.0, 300.0]),
    "used": st.none() | st.sampled_from([0, 5, 60, 200]),
    "is_cancelled": st.booleans(),
    "refused_s": st.none() | st.sampled_from([0.5, 5.0, 30.0]),
    "killed_after_s": KILLS,
    "model": st.sampled_from("ab"),
    "is_fallback": st.booleans(),
}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rates=FEW,
    calls=loads(**OUTCOMES),
    forgets_after_s=st.none() | st.floats(1, 60),
)
def test_whatever_becomes_of_calls_no_window_has_too_many_and_nobody_is_late_or_left(
    seed: int, rates: tuple[float, float], calls: list[Load], forgets_after_s: float | None
) -> None:
    shared = Shared(*rates, seed=seed, latency_s=LATENCY_S)
    admitted: list[float] = []

    def caller(load: Load) -> None:
        deadline_s = shared.now_s + load.patience_s
        try:
            place = shared.take(
                load.process,
                load.tokens,
                load.patience_s,
                model=load.model,
                is_fallback=load.is_fallback,
            )
        except HolySheepError:
            assert shared.now_s <= deadline_s + 4 * LATENCY_S
            return
        assert shared.now_s <= deadline_s + 4 * LATENCY_S
        if not load.is_cancelled:
            admitted.append(shared.now_s)
        load.live(place, shared.time.sleep)

    def forget_line() -> None:
        for key in shared.redis.keys("*:line"):
            shared.redis.data.delete(key)

    for load in calls:
        task = shared.redis.spawn(caller, load, after_s=load.at_s)
        if load.killed_after_s is not None:
            shared.redis.kill(task, after_s=load.at_s + load.killed_after_s)
    if forgets_after_s is not None:
        shared.redis.spawn(forget_line, after_s=forgets_after_s)
    outcomes = shared.run()
    assert all(outcome is None or isinstance(outcome, Killed) for outcome in outcomes)
    if rates[0]:
        assert most_above(admitted, rates[0]) < 0.1
    assert not any(limiter._turns or limiter._lines for limiter in shared.limiters)
