"""The limits of one credential, shared by several processes."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holysheep.errors import HolySheepError, LimitBeyondDeadline, LimiterTimeout
from holysheep.limiter import RateLimiter
from holysheep.shared.limits import SharedLimiter
from tests.engine.simulated_redis import ROUND_TRIP_S, Processes
from tests.fakes import START_S, Killed, kinds

PATIENT_S = 1e6


class Limits(Processes):
    """A limiter in each process. ``admitted`` has the moments at which calls were let through."""

    def __init__(
        self, requests: float, tokens: float = 0, count: int = 4, *, seed: int | None = None
    ) -> None:
        super().__init__(count, seed=seed)
        self.limiters = [
            SharedLimiter(link, "fp", RateLimiter(requests, tokens, clock=self.time), self.time)
            for link in self.links
        ]
        self.admitted: list[tuple[float, int]] = []

    @property
    def now(self) -> float:
        return self.time.monotonic() - START_S

    def call(
        self,
        number: int,
        tokens: float = 0,
        *,
        patience_s: float = PATIENT_S,
        lasts_s: float = 0.0,
        used: float | None = None,
        model: str = "a",
        is_fallback: bool = False,
    ) -> float:
        """One call; when it was let through."""
        place = self.limiters[number % len(self.limiters)].reserve(
            model,
            tokens,
            deadline_s=self.time.monotonic() + patience_s,
            is_fallback=is_fallback,
        )
        at_s = self.now
        self.admitted.append((at_s, number))
        self.time.sleep(lasts_s)
        place.accepted()
        place.end(used)
        return at_s


def most_in_any(moments: list[float], seconds: float) -> int:
    """The most moments in any span of so many seconds."""
    ordered = sorted(moments)
    first, most = 0, 0
    for last, moment in enumerate(ordered):
        while ordered[first] <= moment - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_ten_minutes_of_callers_in_four_processes_keep_to_the_rate_and_are_fair(
    seed: int | None,
) -> None:
    limits = Limits(60, seed=seed)

    def caller(number: int) -> None:
        while limits.now < 600:
            limits.call(number)

    for number in range(20):
        limits.spawn(caller, number)
    assert kinds(limits.run()) == {"NoneType": 20}
    moments = [at_s for at_s, _ in limits.admitted]
    assert len([moment for moment in moments if moment < 600]) >= 0.99 * (60 + 600)
    for seconds in (1, 10, 60, 300):
        assert most_in_any(moments, seconds) <= 60 + seconds + 1
    after_the_burst = Counter(number for at_s, number in limits.admitted if at_s > 5)
    assert max(after_the_burst.values()) - min(after_the_burst.values()) <= 2


def test_callers_of_all_processes_are_served_first_come_first_served() -> None:
    limits = Limits(1)
    for number in range(40):
        limits.spawn(limits.call, number, after_s=1 + number)
    limits.run()
    assert [number for _, number in limits.admitted] == list(range(40))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    calls=st.lists(
        st.tuples(st.floats(0.1, 60), st.floats(0, 90), st.floats(0, 90)), min_size=1, max_size=14
    ),
)
def test_whatever_is_asked_and_used_the_rates_hold(
    seed: int, calls: list[tuple[float, float, float]]
) -> None:
    limits = Limits(6, 60, seed=seed)
    used: list[tuple[float, float]] = []

    def caller(number: int, estimate: float, really: float) -> None:
        at_s = limits.call(number, estimate, used=really)
        used.append((at_s, really))

    for number, (after_s, estimate, really) in enumerate(calls):
        limits.spawn(caller, number, estimate, really, after_s=after_s)
    assert kinds(limits.run()) == {"NoneType": len(calls)}
    moments = [at_s for at_s, _ in used]
    for seconds in (1, 10, 60):
        assert most_in_any(moments, seconds) <= 6 + seconds / 10 + 1


def test_one_whose_turn_comes_too_late_is_refused_at_once_and_takes_nothing() -> None:
    limits = Limits(60)

    def story() -> list[float]:
        for number in range(60):
            limits.call(number)
        began = limits.now
        with pytest.raises(LimiterTimeout, match="60 requests per minute"):
            limits.call(1, patience_s=0.5)
        assert limits.now - began <= 2 * ROUND_TRIP_S
        return [limits.call(2) - began]

    limits.spawn(story)
    assert limits.run() == [[pytest.approx(1.0, abs=0.3)]]


def test_what_a_call_gives_back_moves_all_who_wait_forward() -> None:
    limits = Limits(0, 100)
    limits.spawn(lambda: limits.call(0, 100, lasts_s=5, used=10))
    first = limits.spawn(lambda: limits.call(1, 50), after_s=1)
    second = limits.spawn(lambda: limits.call(2, 50), after_s=2)
    limits.run()
    # 90 come back after 5 s, of which the first may go, and the second with what is gained soon.
    assert first.outcome == pytest.approx(5, abs=0.1)
    assert second.outcome == pytest.approx(6, abs=0.2)


def test_what_a_call_used_beyond_its_estimate_moves_all_who_wait_back() -> None:
    limits = Limits(0, 60)
    limits.spawn(lambda: limits.call(0, 60, lasts_s=5, used=90))
    waiting = limits.spawn(lambda: limits.call(1, 30), after_s=1)
    limits.run()
    assert waiting.outcome == pytest.approx(60, abs=0.2)


def test_a_call_that_was_not_sent_gives_its_place_back() -> None:
    limits = Limits(1)

    def story() -> float:
        deadline_s = limits.time.monotonic() + PATIENT_S
        limits.limiters[0].reserve("a", 0, deadline_s=deadline_s).cancel()
        limits.time.sleep(0.1)
        return limits.call(1)

    limits.spawn(story)
    assert limits.run() == [pytest.approx(0.1, abs=0.05)]


def refused(limits: Limits, number: int, seconds: float | None, model: str = "a") -> None:
    """A call that upstream answers with 429."""
    limiter = limits.limiters[number % len(limits.limiters)]
    place = limiter.reserve(model, 0, deadline_s=limits.time.monotonic() + PATIENT_S)
    place.refused(seconds)
    place.end(0)


@pytest.mark.parametrize("model", ["a", "b"])
def test_a_pause_holds_all_processes_back_for_as_long_as_the_server_says(model: str) -> None:
    limits = Limits(0)
    limits.spawn(refused, limits, 0, 12.5)
    for number in range(4):
        limits.spawn(lambda number=number: limits.call(number, model=model), after_s=1)
    limits.run()
    moments = sorted(at_s for at_s, _ in limits.admitted)
    assert 12.5 <= moments[0] <= 12.6
    assert moments[-1] <= 13


def test_after_a_pause_calls_are_let_through_step_by_step() -> None:
    limits = Limits(0)
    limits.spawn(refused, limits, 0, 10)
    for number in range(40):
        limits.spawn(lambda number=number: limits.call(number, lasts_s=0.5), after_s=1)
    limits.run()
    moments = sorted(at_s for at_s, _ in limits.admitted)
    steps = Counter(round((moment - moments[0]) / 0.5) for moment in moments)
    assert [steps[step] for step in range(3)] == [1, 2, 8]


def test_after_a_pause_no_more_go_at_once_than_the_bucket_holds() -> None:
    limits = Limits(10)
    for number in range(10):
        limits.spawn(limits.call, number)
    limits.spawn(refused, limits, 0, 55, after_s=1)
    for number in range(60):
        limits.spawn(limits.call, number, after_s=2 + number / 100)
    limits.run()
    late = [at_s for at_s, _ in limits.admitted if at_s > 50]
    for seconds in (1, 6, 30):
        assert most_in_any(late, seconds) <= 10 + seconds / 6 + 1


def test_a_long_pause_is_one_models_and_a_fallback_heeds_its_own_alone() -> None:
    limits = Limits(0)
    limits.spawn(refused, limits, 0, 1000)
    other = limits.spawn(lambda: limits.call(1, model="b"), after_s=1)
    fallback = limits.spawn(lambda: limits.call(2, model="b", is_fallback=True), after_s=1)

    def hopeless() -> float:
        with pytest.raises(LimitBeyondDeadline):
            limits.call(3, patience_s=500)
        return limits.now

    told = limits.spawn(hopeless, after_s=1)
    limits.run()
    assert fallback.outcome == pytest.approx(1, abs=0.1)
    assert other.outcome == pytest.approx(60, abs=0.1)
    assert told.outcome == pytest.approx(1, abs=0.1)


def test_those_who_would_wait_in_vain_for_a_pause_are_told_at_once() -> None:
    limits = Limits(0)
    limits.spawn(refused, limits, 0, 30)

    def impatient(number: int) -> float:
        with pytest.raises(LimitBeyondDeadline):
            limits.call(number, patience_s=50)
        return limits.now

    waiting = [limits.spawn(impatient, number, after_s=1) for number in range(8)]
    late = limits.limiters[0]
    limits.spawn(late.pause, "a", 300.0, b"1e12", after_s=10)
    limits.run()
    assert [task.outcome for task in waiting] == [pytest.approx(10, abs=0.2)] * 8


def test_a_caller_that_is_stopped_while_waiting_leaves_nothing_behind() -> None:
    limits = Limits(2)
    for number in range(2):
        limits.spawn(limits.call, number)
    stopped = limits.spawn(limits.call, 1, after_s=1)
    limits.spawn(lambda: limits.time.throw(stopped, Killed()), after_s=2)
    next_one = limits.spawn(limits.call, 2, after_s=3)
    limits.run()
    assert isinstance(stopped.outcome, Killed)
    assert next_one.outcome == pytest.approx(30, abs=0.2)
    assert all(not limiter._tickets and not limiter._lines for limiter in limits.limiters)


def test_while_redis_is_away_each_process_has_the_limits_for_itself() -> None:
    limits = Limits(60, count=2)

    def lose() -> None:
        limits.redis.is_away = True

    for number in range(60):
        limits.spawn(limits.call, number)
    waiting = [limits.spawn(limits.call, number, after_s=0.5) for number in range(4)]
    limits.spawn(lose, after_s=0.6)
    limits.spawn(limits.call, 0, after_s=0.7)
    limits.spawn(limits.call, 1, after_s=0.7)
    assert kinds(limits.run()) == {"float": 66, "NoneType": 1}
    assert max(task.outcome for task in waiting) <= 5


def test_when_redis_is_back_the_limits_are_shared_again() -> None:
    limits = Limits(60, count=2)

    def story() -> None:
        limits.call(0)
        limits.redis.is_away = True
        for number in range(2):
            limits.call(number)
        limits.redis.is_away = False
        limits.time.sleep(5)
        before = limits.redis.runs["reserve"]
        for number in range(4):
            limits.call(number)
        assert limits.redis.runs["reserve"] == before + 4

    limits.spawn(story)
    assert limits.run() == [None]


def test_errors_of_all_kinds_have_their_words() -> None:
    limits = Limits(1)

    def story() -> str:
        limits.call(0)
        try:
            limits.call(1, patience_s=10)
        except HolySheepError as error:
            return error.message
        return ""

    limits.spawn(story)
    assert limits.run()[0].startswith("The limit of 1 requests per minute of this credential")
