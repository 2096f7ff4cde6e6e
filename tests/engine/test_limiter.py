"""The queue before the buckets, and the pause after an upstream 429."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holysheep.errors import (
    HolySheepError,
    LimitBeyondDeadline,
    LimiterTimeout,
)
from holysheep.limiter import RateLimiter
from tests.fakes import (
    START_S,
    FakeClock,
    Killed,
    StandingClock,
    VirtualTime,
    in_threads,
    kinds,
)

HOUR_S = 3600.0


def reserve(limiter: RateLimiter, time: VirtualTime, patience_s: float = 1e6, **how: object) -> str:
    """Take a place as a caller does that is answered at once; what came of it, and when."""
    options = {"model": "a", "tokens": 0.0, **how}
    try:
        limiter.reserve(deadline_s=time.monotonic() + patience_s, **options).end(None)  # type: ignore[arg-type]
    except HolySheepError as error:
        return type(error).__name__
    return f"{time.monotonic() - START_S:.1f}"


def test_an_hour_of_fifty_callers_keeps_to_the_rate_and_is_fair() -> None:
    time = VirtualTime()
    limiter = RateLimiter(60, 0, clock=time)
    admitted: list[tuple[float, int]] = []

    def caller(number: int) -> None:
        while time.monotonic() < START_S + HOUR_S:
            limiter.reserve("a", 0, deadline_s=START_S + 2 * HOUR_S).end(None)
            admitted.append((time.monotonic(), number))

    for number in range(50):
        time.spawn(caller, number)
    assert time.run() == [None] * 50
    assert len(admitted) == 60 + HOUR_S + 49
    after_the_burst = Counter(number for _, number in admitted[60:])
    assert max(after_the_burst.values()) - min(after_the_burst.values()) <= 1


def test_callers_are_served_first_come_first_served() -> None:
    time = VirtualTime()
    limiter = RateLimiter(1, 0, clock=time)
    order: list[int] = []

    def caller(number: int) -> None:
        limiter.reserve("a", 0, deadline_s=START_S + 1e6).end(None)
        order.append(number)

    for number in range(50):
        time.spawn(caller, number, after_s=1 + number)
    time.run()
    assert order == list(range(50))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    callers=st.lists(st.tuples(st.floats(0.1, 60), st.integers(0, 90)), min_size=1, max_size=12),
)
def test_no_caller_overtakes_another_whatever_the_sizes(
    seed: int, callers: list[tuple[float, int]]
) -> None:
    time = VirtualTime(seed)
    limiter = RateLimiter(6, 60, clock=time)

    def caller(tokens: int) -> tuple[float, float]:
        arrived_s = time.monotonic()
        reservation = limiter.reserve("a", tokens, deadline_s=START_S + 1e6)
        reservation.end(None)
        return reservation.admitted_s, arrived_s

    for arrives_s, tokens in callers:
        time.spawn(caller, tokens, after_s=arrives_s)
    arrivals = [arrived_s for _, arrived_s in sorted(time.run())]
    assert arrivals == sorted(arrivals)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    arrivals=st.lists(st.floats(0, 40), min_size=1, max_size=15),
    patience_s=st.floats(0.5, 60),
)
def test_no_minute_admits_more_than_burst_and_rate_whoever_gives_up(
    seed: int, arrivals: list[float], patience_s: float
) -> None:
    time = VirtualTime(seed)
    limiter = RateLimiter(4, 0, clock=time)
    admitted: list[float] = []

    def caller() -> None:
        deadline_s = time.monotonic() + patience_s
        try:
            limiter.reserve("a", 0, deadline_s=deadline_s).end(None)
        except LimiterTimeout:
            return
        assert time.monotonic() <= deadline_s
        admitted.append(time.monotonic())

    for arrives_s in arrivals:
        time.spawn(caller, after_s=arrives_s)
    assert time.run() == [None] * len(arrivals)
    for first, begin_s in enumerate(admitted):
        for count, end_s in enumerate(admitted[first:], 1):
            assert count <= 4 + (end_s - begin_s) * 4 / 60 + 1e-6


def test_a_hopeless_caller_is_refused_at_once_and_told_when_there_is_room() -> None:
    clock = FakeClock()
    limiter = RateLimiter(60, 0, clock=clock)
    for _ in range(60):
        limiter.reserve("a", 0, deadline_s=START_S)
    with pytest.raises(LimiterTimeout, match=r"60 requests per minute.*1 s") as raised:
        limiter.reserve("a", 0, deadline_s=START_S + 0.9)
    assert clock.monotonic() == START_S
    assert raised.value.retry_after_s == pytest.approx(1.0)


def test_a_refused_caller_has_taken_nothing() -> None:
    clock = FakeClock()
    limiter = RateLimiter(60, 100, clock=clock)
    limiter.reserve("a", 90, deadline_s=START_S)
    for _ in range(200):
        with pytest.raises(LimiterTimeout):
            limiter.reserve("a", 50, deadline_s=START_S + 1)
    limiter.reserve("a", 10, deadline_s=START_S)
    assert clock.monotonic() == START_S


def test_a_caller_whose_turn_comes_exactly_at_the_deadline_is_served() -> None:
    clock = FakeClock()
    limiter = RateLimiter(60, 0, clock=clock)
    for _ in range(60):
        limiter.reserve("a", 0, deadline_s=START_S)
    limiter.reserve("a", 0, deadline_s=START_S + 1)
    assert clock.monotonic() == START_S + 1


def test_those_in_the_queue_count_when_a_newcomer_is_refused() -> None:
    time = VirtualTime()
    limiter = RateLimiter(60, 0, clock=time)
    for _ in range(60):
        limiter.reserve("a", 0, deadline_s=START_S)
    for _ in range(10):
        time.spawn(reserve, limiter, time)
    late = time.spawn(reserve, limiter, time, 5.0, after_s=0.5)
    assert time.run()[-1] == "LimiterTimeout"
    assert late.ended_s == START_S + 0.5


def test_a_killed_caller_does_not_block_those_behind_it() -> None:
    time = VirtualTime()
    limiter = RateLimiter(60, 0, clock=time)
    for _ in range(60):
        limiter.reserve("a", 0, deadline_s=START_S)
    victim = time.spawn(reserve, limiter, time)
    time.spawn(reserve, limiter, time)
    time.spawn(time.throw, victim, Killed(), after_s=0.5)
    outcome, other, _ = time.run()
    assert isinstance(outcome, Killed)
    assert other == "1.0"


@pytest.mark.parametrize("seed", range(5))
def test_callers_killed_at_any_time_leave_neither_waiters_nor_debts(seed: int) -> None:
    time = VirtualTime(seed)
    limiter = RateLimiter(60, 0, clock=time)
    dice = random.Random(seed)
    callers = [time.spawn(reserve, limiter, time, after_s=i * 0.1) for i in range(80)]
    for victim in dice.sample(callers, 30):
        time.spawn(time.throw, victim, Killed(), after_s=dice.choice([0.5, 5.0, 8.0, 10.0, 12.0]))
    time.run()
    time.sleep(61.0)
    assert limiter.is_idle
    outcomes = [reserve(limiter, time, patience_s=0.0) for _ in range(61)]
    assert outcomes.count("LimiterTimeout") == 1


def test_tokens_are_reserved_by_estimate_and_settled_by_usage() -> None:
    clock = FakeClock()
    limiter = RateLimiter(0, 1000, clock=clock)
    limiter.reserve("a", 900, deadline_s=START_S).end(100)
    limiter.reserve("a", 900, deadline_s=START_S)
    assert clock.monotonic() == START_S


def test_usage_above_the_estimate_is_a_debt_for_those_who_follow() -> None:
    clock = FakeClock()
    limiter = RateLimiter(0, 600, clock=clock)
    limiter.reserve("a", 100, deadline_s=START_S).end(900)
    limiter.reserve("a", 100, deadline_s=START_S + 60)
    assert clock.monotonic() == pytest.approx(START_S + 40)


def test_an_estimate_without_usage_stands() -> None:
    clock = FakeClock()
    limiter = RateLimiter(0, 600, clock=clock)
    limiter.reserve("a", 600, deadline_s=START_S).end(None)
    with pytest.raises(LimiterTimeout, match="600 tokens per minute"):
        limiter.reserve("a", 10, deadline_s=START_S)


def test_a_settlement_wakes_the_one_that_waits_for_tokens() -> None:
    time = VirtualTime()
    limiter = RateLimiter(0, 600, clock=time)
    reservation = limiter.reserve("a", 600, deadline_s=START_S)
    time.spawn(reserve, limiter, time, tokens=300.0)
    time.spawn(reservation.end, 100, after_s=2.0)
    assert time.run()[0] == "2.0"


def test_a_call_larger_than_the_token_limit_is_served_in_its_turn() -> None:
    time = VirtualTime()
    limiter = RateLimiter(0, 600, clock=time)
    limiter.reserve("a", 300, deadline_s=START_S)
    time.spawn(reserve, limiter, time, tokens=6000.0)
    time.spawn(reserve, limiter, time, tokens=60.0, after_s=1.0)
    assert time.run() == ["30.0", "576.0"]


def test_no_limits_admit_everybody_at_once() -> None:
    clock = FakeClock()
    limiter = RateLimiter(0, 0, clock=clock)
    for _ in range(10_000):
        limiter.reserve("a", 1e9, deadline_s=START_S)
    assert clock.monotonic() == START_S


@pytest.mark.parametrize(
    ("new_rate", "expected"),
    [(0, ["0.5"] * 3), (120, ["0.5"] * 3), (30, ["61.5", "63.5", "65.5"])],
    ids=["lifted", "raised", "lowered"],
)
def test_changed_limits_take_effect_for_those_who_wait(new_rate: int, expected: list[str]) -> None:
    time = VirtualTime()
    limiter = RateLimiter(60, 0, clock=time)
    for _ in range(60):
        limiter.reserve("a", 0, deadline_s=START_S)
    for _ in range(3):
        time.spawn(reserve, limiter, time)
    time.spawn(limiter.resize, new_rate, 0, after_s=0.5)
    assert time.run()[:3] == expected


def test_a_limit_that_is_lifted_for_a_while_remembers_what_was_taken() -> None:
    # Two credentials with one key take turns: one has a limit, the other has none.
    clock = FakeClock()
    limiter = RateLimiter(5, 0, clock=clock)
    for _ in range(5):
        limiter.reserve("a", 0, deadline_s=START_S)
        limiter.resize(0, 0)
        limiter.reserve("a", 0, deadline_s=START_S)
        limiter.resize(5, 0)
    with pytest.raises(LimiterTimeout):
        limiter.reserve("a", 0, deadline_s=START_S)


def test_a_lowered_limit_refuses_at_once_who_can_no_longer_be_served() -> None:
    time = VirtualTime()
    limiter = RateLimiter(60, 0, clock=time)
    for _ in range(60):
        limiter.reserve("a", 0, deadline_s=START_S)
    hopeless = time.spawn(reserve, limiter, time, patience_s=10.0)
    time.spawn(limiter.resize, 6, 0, after_s=0.5)
    assert time.run()[0] == "LimiterTimeout"
    assert hopeless.ended_s == START_S + 0.5


def test_a_hundred_threads_get_exactly_the_places_that_there_are() -> None:
    limiter = RateLimiter(60, 0, clock=StandingClock())
    outcomes = in_threads(100, lambda _: limiter.reserve("a", 0, deadline_s=START_S))
    assert kinds(outcomes) == {"Reservation": 60, "LimiterTimeout": 40}


# --- the pause ----------------------------------------------------------------------------------


def test_a_pause_holds_every_caller_back_for_exactly_as_long_as_the_server_says() -> None:
    time = VirtualTime()
    limiter = RateLimiter(0, 0, clock=time)
    limiter.pause("a", 12.5)
    for model in ("a", "b"):
        time.spawn(reserve, limiter, time, model=model)
    assert time.run() == ["12.5", "12.5"]


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    clock = FakeClock()
    limiter = RateLimiter(0, 0, clock=clock)
    limiter.pause("a", 30.0)
    limiter.pause("a", 1.0)
    limiter.reserve("a", 0, deadline_s=START_S + 60)
    assert clock.monotonic() == START_S + 30


def test_a_caller_who_cannot_wait_out_a_pause_is_told_at_once_when_it_ends() -> None:
    clock = FakeClock()
    limiter = RateLimiter(0, 0, clock=clock)
    limiter.pause("a", 120.0)
    with pytest.raises(LimitBeyondDeadline, match="resets in 120 s") as raised:
        limiter.reserve("a", 0, deadline_s=START_S + 60)
    assert clock.monotonic() == START_S
    assert raised.value.retry_after_s == 120.0
    assert raised.value.status == 429


def test_a_pause_that_ends_exactly_at_the_deadline_is_waited_out() -> None:
    clock = FakeClock()
    limiter = RateLimiter(0, 0, clock=clock)
    limiter.pause("a", 60.0)
    limiter.reserve("a", 0, deadline_s=START_S + 60)
    assert clock.monotonic() == START_S + 60


def test_a_pause_tells_waiting_callers_at_once_that_they_wait_in_vain() -> None:
    time = VirtualTime()
    limiter = RateLimiter(6, 0, clock=time)
    for _ in range(6):
        limiter.reserve("a", 0, deadline_s=START_S)
    waiting = [time.spawn(reserve, limiter, time, patience_s=40.0) for _ in range(3)]
    time.spawn(limiter.pause, "a", 300.0, after_s=1.0)
    assert time.run()[:3] == ["LimitBeyondDeadline"] * 3
    assert [task.ended_s for task in waiting] == [START_S + 1] * 3


def waves_after_a_pause(answer_s: float) -> Counter[float]:
    """When fifty calls that wait for the end of a pause pass; each is answered after a while."""
    time = VirtualTime()
    limiter = RateLimiter(0, 0, clock=time)
    limiter.pause("a", 5.0)
    began: Counter[float] = Counter()

    def caller() -> None:
        reservation = limiter.reserve("a", 0, deadline_s=START_S + 600)
        began[time.monotonic() - START_S] += 1
        time.sleep(answer_s)
        reservation.accepted()
        reservation.end(None)

    for _ in range(50):
        time.spawn(caller)
    assert time.run() == [None] * 50
    assert began.total() == 50
    return began


def test_when_a_pause_ends_exactly_one_call_goes_first() -> None:
    assert waves_after_a_pause(answer_s=0.5)[5.0] == 1


def test_each_answer_after_a_pause_lets_more_calls_through_until_all_may() -> None:
    waves = waves_after_a_pause(answer_s=0.5)
    assert list(waves) == [5.0, 5.5, 6.0, 6.5]
    assert waves[5.5] == 2
    assert waves[6.0] < waves[6.5]


def test_a_call_that_is_not_refused_for_a_second_counts_as_accepted() -> None:
    # A model that thinks for ten seconds before its first byte must not hold up fifty callers.
    waves = waves_after_a_pause(answer_s=10.0)
    assert list(waves) == [5.0, 6.0, 7.0, 8.0]
    assert waves[6.0] == 2


def test_a_call_that_ends_without_an_answer_leaves_its_turn_to_the_next() -> None:
    time = VirtualTime()
    limiter = RateLimiter(0, 0, clock=time)
    limiter.pause("a", 5.0)
    began: list[float] = []

    def caller() -> None:
        reservation = limiter.reserve("a", 0, deadline_s=START_S + 600)
        began.append(time.monotonic() - START_S)
        time.sleep(1.0)
        reservation.end(None)

    for _ in range(4):
        time.spawn(caller)
    assert time.run() == [None] * 4
    assert began == [5.0, 6.0, 7.0, 8.0]


def test_a_caller_whose_turn_after_a_pause_does_not_come_hears_of_the_gateways_limit() -> None:
    clock = FakeClock()
    limiter = RateLimiter(60, 0, clock=clock)
    limiter.pause("a", 5.0)
    limiter.reserve("a", 0, deadline_s=START_S + 60)
    with pytest.raises(HolySheepError, match="gateway") as raised:
        limiter.reserve("a", 0, deadline_s=START_S + 5.9)
    assert "60 requests per minute" not in raised.value.message


def test_pauses_without_a_time_grow_with_each_in_a_row_up_to_half_a_minute() -> None:
    clock = FakeClock()
    limiter = RateLimiter(0, 0, clock=clock)
    waits = []
    for _ in range(7):
        reservation = limiter.reserve("a", 0, deadline_s=START_S + 1e6)
        limiter.pause("a", None, admitted_s=reservation.admitted_s)
        reservation.end(0)
        began_s = clock.monotonic()
        clock.sleep(0.0)
        probe = limiter.reserve("a", 0, deadline_s=START_S + 1e6)
        waits.append(clock.monotonic() - began_s)
        limiter.pause("a", 0.0, admitted_s=-math.inf)
        probe.end(0)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_calls_that_fail_together_are_one_strike() -> None:
    clock = FakeClock()
    limiter = RateLimiter(0, 0, clock=clock)
    crowd = [limiter.reserve("a", 0, deadline_s=START_S) for _ in range(50)]
    clock.sleep(1.0)
    for reservation in crowd:
        limiter.pause("a", None, admitted_s=reservation.admitted_s)
        reservation.end(0)
    limiter.reserve("a", 0, deadline_s=START_S + 60)
    assert clock.monotonic() == START_S + 2


def test_pauses_in_a_row_never_end_in_an_arithmetic_error() -> None:
    clock = FakeClock()
    limiter = RateLimiter(0, 0, clock=clock)
    for _ in range(1100):
        reservation = limiter.reserve("a", 0, deadline_s=math.inf)
        limiter.pause("a", None, admitted_s=reservation.admitted_s)
        reservation.end(0)
        clock.sleep(30.0)
    assert clock.monotonic() == START_S + 1100 * 30


def test_a_limiter_is_idle_again_when_its_pause_is_over() -> None:
    clock = FakeClock()
    limiter = RateLimiter(60, 0, clock=clock)
    reservation = limiter.reserve("a", 0, deadline_s=START_S)
    limiter.pause("a", 5.0, admitted_s=reservation.admitted_s)
    reservation.end(0)
    assert not limiter.is_idle
    clock.sleep(HOUR_S)
    assert limiter.is_idle


def test_a_fallback_to_another_model_does_not_wait_for_the_first_one() -> None:
    clock = FakeClock()
    limiter = RateLimiter(0, 0, clock=clock)
    limiter.pause("a", 30.0)
    limiter.reserve("b", 0, deadline_s=START_S, is_fallback=True)
    assert clock.monotonic() == START_S


def test_a_fallback_waits_for_a_pause_of_its_own_model() -> None:
    clock = FakeClock()
    limiter = RateLimiter(0, 0, clock=clock)
    limiter.pause("b", 7.0)
    limiter.reserve("b", 0, deadline_s=START_S + 60, is_fallback=True)
    assert clock.monotonic() == START_S + 7


def test_a_model_whose_limit_resets_too_late_is_refused_at_once_while_another_probes() -> None:
    time = VirtualTime()
    limiter = RateLimiter(0, 0, clock=time)
    limiter.pause("a", 3600.0)
    time.sleep(60.0)
    limiter.reserve("b", 0, deadline_s=time.monotonic())
    hopeless = time.spawn(reserve, limiter, time, patience_s=60.0)
    assert time.run() == ["LimitBeyondDeadline"]
    assert hopeless.ended_s == START_S + 60


def test_answers_of_a_fallback_model_do_not_open_the_gate_of_the_paused_one() -> None:
    time = VirtualTime()
    limiter = RateLimiter(0, 0, clock=time)
    limiter.pause("a", 10.0)
    for _ in range(10):
        fallback = limiter.reserve("b", 0, deadline_s=START_S, is_fallback=True)
        fallback.accepted()
        fallback.end(0)
    for _ in range(50):
        time.spawn(limiter.reserve, "a", 0, deadline_s=START_S + 10.9)
    assert kinds(time.run()) == {"Reservation": 1, "LimiterTimeout": 49}


def test_a_slow_fallback_does_not_hold_the_gate_of_the_paused_model() -> None:
    clock = FakeClock()
    limiter = RateLimiter(0, 0, clock=clock)
    limiter.pause("a", 10.0)
    limiter.reserve("b", 0, deadline_s=START_S, is_fallback=True)
    limiter.reserve("a", 0, deadline_s=START_S + 60)
    assert clock.monotonic() == START_S + 10


def test_a_crowd_that_a_pause_holds_back_is_not_ahead_of_a_fallback() -> None:
    time = VirtualTime()
    limiter = RateLimiter(60, 0, clock=time)
    limiter.pause("a", 30.0)
    for _ in range(100):
        time.spawn(reserve, limiter, time)
    time.spawn(reserve, limiter, time, 5.0, model="b", is_fallback=True, after_s=1.0)
    assert time.run()[-1] == "1.0"
