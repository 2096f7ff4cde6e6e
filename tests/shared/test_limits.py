"""Limits in Redis: what the limiter of one process promises, for several processes together."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holysheep import config
from holysheep.errors import HolySheepError, LimitBeyondDeadline, LimiterTimeout
from holysheep.limiter import RateLimiter
from holysheep.shared.limits import SharedLimiter, _Caller, _Turn
from tests.fakes import START_S, Killed, VirtualTime, kinds
from tests.shared.simulated import SimulatedRedis

if TYPE_CHECKING:
    from holysheep.limiter import Place
    from tests.fakes import Task

LATENCY_S = 0.001
FOR_EVER_S = 1e6

over_processes = pytest.mark.parametrize("count", [1, 4])


class Shared:
    """The limiters of some processes with one credential. Without latency, times are exact."""

    def __init__(
        self,
        requests: float = 0,
        tokens: float = 0,
        *,
        count: int = 4,
        seed: int | None = None,
        latency_s: float = 0.0,
        **how: Any,
    ) -> None:
        self.time = VirtualTime(seed, **how)
        self.redis = SimulatedRedis(self.time, latency_s=latency_s, jitter=seed)
        self.rates = (requests, tokens)
        self.limiters: list[SharedLimiter] = []
        self.admitted: list[float] = []
        for _ in range(count):
            self.join()

    def join(self) -> SharedLimiter:
        """One more process."""
        own = RateLimiter(*self.rates, clock=self.time)
        self.limiters.append(SharedLimiter(self.redis.process().link, "f", own, self.time))
        return self.limiters[-1]

    def take(
        self, number: int = 0, tokens: float = 0.0, patience_s: float = FOR_EVER_S, **how: Any
    ) -> Place:
        """Take a place in a process; they take turns."""
        limiter = self.limiters[number % len(self.limiters)]
        options = {"model": "a", "deadline_s": self.time.monotonic() + patience_s, **how}
        return limiter.reserve(tokens=tokens, **options)

    def reserve(self, number: int = 0, **how: Any) -> str:
        """Take a place as a caller does that is answered at once; what came of it, and when."""
        try:
            self.take(number, **how).end(None)
        except HolySheepError as error:
            return type(error).__name__
        return f"{self.now_s:.1f}"

    def pass_through(self, number: int) -> None:
        """Take a place as a caller does that is answered, and note when it was got."""
        place = self.take(number)
        self.admitted.append(self.now_s)
        place.accepted()
        place.end(None)

    def drain(self, places: int, **how: Any) -> None:
        """Take places that there are."""
        for number in range(places):
            self.take(number, patience_s=0.0, **how)

    def pause(self, seconds: float | None, model: str = "a") -> None:
        """A call is answered 429."""
        self.take(model=model, is_fallback=True).refused(seconds)

    def spawn(self, number: int, after_s: float = 0.0, **how: Any) -> Task:
        return self.redis.spawn(self.reserve, number, after_s=after_s, **how)

    def run(self) -> list[Any]:
        return self.redis.run()

    @property
    def now_s(self) -> float:
        return self.time.monotonic() - START_S


def most_above(admitted_s: list[float], rate: float) -> float:
    """By how much any span of time had more than a burst and the rate."""
    admitted_s = sorted(admitted_s)
    return max(
        (
            count - (rate + (end_s - begin_s) * rate / 60)
            for first, begin_s in enumerate(admitted_s)
            for count, end_s in enumerate(admitted_s[first:], 1)
        ),
        default=0.0,
    )


# --- the line -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "seed"), [(1, None), (4, None), (4, 1)])
def test_ten_minutes_of_fifty_callers_keep_to_the_rate_and_are_fair(
    count: int, seed: int | None
) -> None:
    shared = Shared(60, count=count, seed=seed, latency_s=LATENCY_S)
    lasts_s = 600.0
    admitted: list[tuple[float, int]] = []

    def caller(number: int) -> None:
        while shared.now_s < lasts_s:
            shared.take(number).end(None)
            admitted.append((shared.now_s, number))

    for number in range(50):
        shared.redis.spawn(caller, number)
    assert shared.run() == [None] * 50
    assert abs(len(admitted) - (60 + lasts_s + 49)) <= 1
    assert most_above([at_s for at_s, _ in admitted], 60) < 0.1
    after_the_burst = Counter(number for _, number in admitted[60:])
    assert max(after_the_burst.values()) - min(after_the_burst.values()) <= 2


@over_processes
def test_callers_are_served_first_come_first_served(count: int) -> None:
    shared = Shared(1, count=count, latency_s=LATENCY_S)
    order: list[int] = []

    def caller(number: int) -> None:
        shared.take(number).end(None)
        order.append(number)

    for number in range(50):
        shared.redis.spawn(caller, number, after_s=1 + number * 2 * LATENCY_S)
    shared.run()
    assert order == list(range(50))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    callers=st.lists(st.tuples(st.floats(0.1, 60), st.integers(0, 90)), min_size=1, max_size=12),
)
def test_no_caller_overtakes_another_whatever_the_sizes(
    seed: int, callers: list[tuple[float, int]]
) -> None:
    shared = Shared(6, 60, seed=seed, latency_s=LATENCY_S)

    def caller(number: int, tokens: int) -> tuple[float, float]:
        arrived_s = shared.now_s
        shared.take(number, tokens).end(None)
        return arrived_s, shared.now_s

    for number, (arrives_s, tokens) in enumerate(callers):
        shared.redis.spawn(caller, number, tokens, after_s=arrives_s)
    passed = sorted(shared.run())
    for first, (arrived_s, admitted_s) in enumerate(passed):
        for later_s, then_s in passed[first:]:
            is_at_once = later_s - arrived_s <= 2 * LATENCY_S
            assert is_at_once or admitted_s <= then_s + 3 * LATENCY_S


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    callers=st.lists(
        st.tuples(st.floats(0, 40), st.integers(0, 3), st.floats(0.5, 60), st.integers(0, 12)),
        min_size=1,
        max_size=20,
    ),
)
def test_no_minute_admits_more_than_burst_and_rate_whoever_gives_up(
    seed: int, callers: list[tuple[float, int, float, int]]
) -> None:
    shared = Shared(4, 20, seed=seed, latency_s=LATENCY_S)
    admitted: list[tuple[float, int]] = []

    def caller(number: int, patience_s: float, tokens: int) -> None:
        deadline_s = shared.now_s + patience_s
        try:
            shared.take(number, tokens, patience_s).end(None)
        except LimiterTimeout:
            return
        assert shared.now_s <= deadline_s + 2 * LATENCY_S
        admitted.append((shared.now_s, tokens))

    for arrives_s, number, patience_s, tokens in callers:
        shared.redis.spawn(caller, number, patience_s, tokens, after_s=arrives_s)
    assert shared.run() == [None] * len(callers)
    assert most_above([at_s for at_s, _ in admitted], 4) < 0.01
    assert most_above([at_s for at_s, tokens in admitted for _ in range(tokens)], 20) < 0.01


@over_processes
def test_a_hopeless_caller_is_refused_at_once_and_told_when_there_is_room(count: int) -> None:
    shared = Shared(60, count=count)
    shared.drain(60)
    with pytest.raises(LimiterTimeout, match=r"60 requests per minute.*1 s") as raised:
        shared.take(1, patience_s=0.9)
    assert shared.now_s == 0
    assert raised.value.retry_after_s == pytest.approx(1.0)


def test_a_refused_caller_has_taken_nothing() -> None:
    shared = Shared(60, 100)
    shared.take(0, 90.0)
    for number in range(50):
        with pytest.raises(LimiterTimeout):
            shared.take(number, 50.0, patience_s=1.0)
    shared.take(1, 10.0, patience_s=0.0)


@over_processes
def test_those_in_the_line_count_when_a_newcomer_is_refused(count: int) -> None:
    shared = Shared(60, count=count)
    shared.drain(60)
    for number in range(10):
        shared.spawn(number)
    late = shared.spawn(1, patience_s=5.0, after_s=0.5)
    assert shared.run()[-1] == "LimiterTimeout"
    assert late.ended_s == START_S + 0.5


def test_who_waits_asks_redis_twice_and_no_more() -> None:
    shared = Shared(60)
    shared.drain(60)
    shared.redis.ran.clear()
    for number in range(40):
        shared.spawn(number)
    shared.run()
    assert shared.redis.ran["reserve"] == 80
    # And his process says every three seconds that it is alive.
    assert shared.redis.ran["alive"] <= 4 * (40 / config.LINE_ALIVE_S + 1)
    assert shared.redis.ran.keys() == {"reserve", "alive"}


@over_processes
def test_no_limits_admit_everybody_at_once(count: int) -> None:
    shared = Shared(count=count)
    for number in range(200):
        shared.take(number, 1e9, patience_s=0.0)
    assert shared.now_s == 0


def test_what_one_process_has_taken_another_that_comes_later_knows() -> None:
    shared = Shared(5, count=1)
    shared.drain(5)
    shared.join()
    with pytest.raises(LimiterTimeout):
        shared.take(1, patience_s=1.0)


def test_credentials_do_not_share_their_limits() -> None:
    shared = Shared(1, count=1)
    shared.drain(1)
    own = RateLimiter(1, 0, clock=shared.time)
    other = SharedLimiter(shared.redis.process().link, "other", own, shared.time)
    other.reserve("a", 0, deadline_s=shared.time.monotonic())


def test_news_of_a_line_that_is_gone_do_not_concern_those_of_the_next() -> None:
    shared = Shared(0, 600, count=2)

    def use_more_than_said() -> None:
        place = shared.take(0, 600.0)
        shared.time.sleep(2.0)
        place.end(3600)

    shared.redis.spawn(use_more_than_said)
    shared.spawn(1, tokens=100.0, after_s=0.5, patience_s=400.0)
    shared.redis.spawn(shared.take, 0, 600.0, after_s=1500.0)
    shared.spawn(1, tokens=60.0, after_s=1501.0)
    assert shared.run()[-1] == "1506.0"


def test_those_of_a_process_that_join_at_the_same_time_move_up_all_of_them() -> None:
    ended_s = []
    for seed in range(5):
        shared = Shared(0, 600, count=1, seed=seed, latency_s=0.02)
        shared.drain(1, tokens=600.0)
        victim = shared.spawn(0, tokens=100.0, after_s=1.0)
        line = [shared.spawn(0, tokens=100.0, after_s=1.5) for _ in range(4)]
        shared.redis.kill(victim, after_s=5.0)
        shared.run()
        ended_s.append(sorted(round(float(task.outcome)) for task in line))
    assert ended_s == [[10, 20, 30, 40]] * 5


def test_more_dead_callers_than_the_bucket_has_places_do_not_stop_the_living() -> None:
    shared = Shared(5, count=2)
    shared.drain(5)
    doomed = [shared.spawn(0, patience_s=540.0) for _ in range(10)]
    shared.redis.spawn(shared.redis.processes[0].die, *doomed, after_s=0.5)
    living = [shared.spawn(1, after_s=1.0 + 12 * number) for number in range(20)]
    shared.run()
    # The dead were before them for two minutes.
    assert all(task.ended_s is not None for task in living)
    assert max(task.ended_s or 0.0 for task in living) < START_S + 400


def test_a_crowd_larger_than_the_connections_gets_no_more_than_the_bucket() -> None:
    shared = Shared(10, count=2, latency_s=0.1)
    crowd = [shared.spawn(number, patience_s=1.0, after_s=0.1) for number in range(300)]
    shared.run()
    assert sum(task.outcome != "LimiterTimeout" for task in crowd) <= 10


# --- tokens -------------------------------------------------------------------------------------


def test_tokens_are_reserved_by_estimate_and_settled_by_usage() -> None:
    shared = Shared(0, 1000)
    shared.redis.spawn(lambda: shared.take(0, 900.0).end(100))
    shared.spawn(1, tokens=900.0, patience_s=0.5, after_s=0.1)
    assert shared.run()[1] == "0.1"


def test_usage_above_the_estimate_is_a_debt_for_those_who_follow_in_all_processes() -> None:
    shared = Shared(0, 600)
    shared.redis.spawn(lambda: shared.take(0, 100.0).end(900))
    shared.spawn(1, tokens=100.0, after_s=1.0)
    assert shared.run()[1] == "40.0"


def test_an_estimate_without_usage_stands() -> None:
    shared = Shared(0, 600)
    shared.redis.spawn(lambda: shared.take(0, 600.0).end(None))
    shared.spawn(1, tokens=10.0, patience_s=0.5, after_s=0.1)
    assert shared.run()[1] == "LimiterTimeout"


@over_processes
def test_what_a_call_gives_back_moves_those_who_wait_forward(count: int) -> None:
    shared = Shared(0, 600, count=count)
    place = shared.take(0, 600.0)
    # It would be their turn at 30, 40 and 50 s; what 500 tokens take to come back is 50 s.
    for number, tokens in enumerate((300.0, 100.0, 100.0), 1):
        shared.spawn(number, tokens=tokens)
    shared.redis.spawn(place.end, 100, after_s=2.0)
    assert shared.run()[:3] == ["2.0"] * 3


@over_processes
def test_what_a_call_uses_beyond_its_estimate_moves_those_who_wait_back(count: int) -> None:
    shared = Shared(0, 600, count=count)
    place = shared.take(0, 600.0)
    shared.spawn(1, tokens=300.0)
    shared.spawn(2, tokens=100.0)
    shared.redis.spawn(place.end, 700, after_s=2.0)
    assert shared.run()[:2] == ["40.0", "50.0"]


@over_processes
def test_who_is_moved_back_behind_his_deadline_hears_of_it_then(count: int) -> None:
    shared = Shared(0, 600, count=count)
    place = shared.take(0, 600.0)
    waiting = shared.spawn(1, tokens=300.0, patience_s=35.0)
    shared.redis.spawn(place.end, 1200, after_s=2.0)
    assert shared.run()[0] == "LimiterTimeout"
    assert waiting.ended_s == pytest.approx(START_S + 35)
    # His place is given back: 600 tokens of debt, and 350 that have come back since.
    with pytest.raises(LimiterTimeout) as raised:
        shared.take(2, 1.0, patience_s=0.0)
    assert raised.value.retry_after_s == pytest.approx((1200 - 600 + 1) / 10 - shared.now_s)


def test_a_use_beyond_all_reason_costs_nobody_redis() -> None:
    shared = Shared(0, 1000, count=2)
    shared.redis.spawn(lambda: shared.take(0, 10.0).end(10**19))
    shared.spawn(1, tokens=10.0, patience_s=1.0, after_s=1.0)
    assert shared.run()[-1] == "LimiterTimeout"
    assert not any(process.link.losses for process in shared.redis.processes)


def test_what_is_given_back_moves_one_forward_who_has_asked_too_early() -> None:
    shared = Shared(0, 600, count=3, latency_s=LATENCY_S)
    wrong, idle = shared.take(0, 0.0), shared.take(0, 600.0)
    first = shared.spawn(1, tokens=100.0, after_s=0.1)
    second = shared.spawn(2, tokens=100.0, after_s=0.2)
    # He asks at 10 s; that 600 tokens more were used he hears just afterwards.
    shared.redis.spawn(wrong.end, 600, after_s=9.9995)
    shared.redis.spawn(idle.cancel, after_s=11.0)
    shared.run()
    assert first.outcome == "11.0"
    assert second.outcome == "20.0"


def test_a_call_larger_than_the_token_limit_is_served_in_its_turn() -> None:
    shared = Shared(0, 600)
    shared.take(0, 300.0)
    shared.spawn(1, tokens=6000.0)
    shared.spawn(2, tokens=60.0, after_s=1.0)
    assert shared.run() == ["30.0", "576.0"]


def test_what_is_cancelled_was_not_taken() -> None:
    shared = Shared(1, 600)
    place = shared.take(0, 600.0)
    shared.redis.spawn(place.cancel)
    shared.spawn(1, tokens=600.0, patience_s=0.5, after_s=0.1)
    assert shared.run()[1] == "0.1"


# --- changed limits -----------------------------------------------------------------------------


def test_changed_limits_count_for_those_who_ask_then() -> None:
    shared = Shared(60)
    shared.drain(60)
    for limiter in shared.limiters:
        limiter.resize(120, 0)
    # 120 places, of which 60 are taken.
    shared.drain(60)
    with pytest.raises(LimiterTimeout) as raised:
        shared.take(1, patience_s=0.4)
    assert raised.value.retry_after_s == pytest.approx(0.5)


@over_processes
@pytest.mark.parametrize(
    ("new_rate", "turns"), [(30, ["61.5", "63.5", "65.5"]), (120, ["0.5", "0.5", "0.5"])]
)
def test_those_who_wait_are_served_by_the_new_limits(
    count: int, new_rate: int, turns: list[str]
) -> None:
    shared = Shared(60, count=count)
    shared.drain(60)
    for number in range(3):
        shared.spawn(number)

    def change() -> None:
        for limiter in shared.limiters:
            limiter.resize(new_rate, 0)

    shared.redis.spawn(change, after_s=0.5)
    assert shared.run()[:3] == turns


def test_changed_limits_let_nobody_overtake_the_first_in_line() -> None:
    shared = Shared(0, 600, count=2)
    shared.drain(1, tokens=600.0)
    shared.spawn(0, tokens=500.0)
    shared.spawn(1, tokens=100.0, after_s=0.1)
    # When there are 400.
    shared.redis.spawn(shared.limiters[1].resize, 0, 600, after_s=40.0)
    assert shared.run()[:2] == ["50.0", "60.0"]


@pytest.mark.xfail(
    reason="each script changes the limits to those of its process: who has less waits for ever"
)
def test_a_process_that_does_not_know_of_changed_limits_yet_gets_its_share() -> None:
    shared = Shared(60, count=2, latency_s=LATENCY_S)
    shared.limiters[1].resize(120, 0)
    served: Counter[int] = Counter()

    def caller(number: int) -> None:
        while shared.now_s < 240:
            shared.take(number).end(None)
            served[number % 2] += shared.now_s > 120

    for number in range(20):
        shared.redis.spawn(caller, number)
    shared.run()
    assert served[0] > 0.3 * served.total()


def test_a_limit_that_is_lifted_for_a_while_remembers_what_was_taken() -> None:
    shared = Shared(5, count=2)
    for _ in range(5):
        shared.take(0)
        shared.limiters[1].resize(0, 0)
        shared.take(1)
        shared.limiters[1].resize(5, 0)
    with pytest.raises(LimiterTimeout):
        shared.take(1, patience_s=0.0)


# --- interrupted --------------------------------------------------------------------------------


@over_processes
def test_a_killed_caller_does_not_block_those_behind_it(count: int) -> None:
    shared = Shared(60, count=count)
    shared.drain(60)
    victim = shared.spawn(0)
    shared.spawn(1)
    shared.redis.kill(victim, after_s=0.5)
    outcome, other, _ = shared.run()
    assert isinstance(outcome, Killed)
    assert other == "1.0"
    with pytest.raises(LimiterTimeout) as raised:
        shared.take(2, patience_s=0.0)
    assert raised.value.retry_after_s == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(5))
def test_callers_killed_at_any_time_leave_neither_waiters_nor_debts(seed: int) -> None:
    shared = Shared(60, seed=seed, latency_s=LATENCY_S)
    dice = random.Random(seed)
    callers = [shared.spawn(number, after_s=0.1 + number * 0.1) for number in range(80)]
    for victim in dice.sample(callers, 30):
        shared.redis.kill(victim, after_s=dice.choice([0.5, 5.0, 8.0, 10.0, 12.0]))
    shared.run()
    shared.time.sleep(61.0)
    assert all(limiter.is_idle for limiter in shared.limiters)
    shared.redis.latency_s = 0.0
    outcomes = [shared.reserve(number, patience_s=0.0) for number in range(61)]
    assert outcomes.count("LimiterTimeout") == 1


def test_those_who_come_after_killed_callers_do_not_pass_at_twice_the_rate() -> None:
    shared = Shared(4)
    shared.drain(4)
    admitted: list[float] = []

    def caller(number: int) -> None:
        shared.take(number).end(None)
        admitted.append(shared.now_s)

    callers = [shared.redis.spawn(caller, number) for number in range(10)]
    for victim in callers[:5]:
        shared.redis.kill(victim, after_s=1.0)
    for number in range(5):
        shared.redis.spawn(caller, number, after_s=2.0)
    shared.run()
    assert len(admitted) == 10
    assert most_above(admitted, 4) < 0.1


def test_callers_that_hang_up_do_not_cost_the_others_their_rate() -> None:
    shared = Shared(60, latency_s=LATENCY_S)
    admitted: list[float] = []

    def caller(number: int, until_s: float) -> None:
        while True:
            shared.take(number).end(None)
            admitted.append(shared.now_s)
            if shared.now_s >= until_s:
                return

    for number in range(30):
        shared.redis.spawn(caller, number, 600.0)
    # Half of what there is is asked for by those who hang up after five seconds, in a line of 30.
    for number in range(300):
        at_s = 5.0 + 2 * number
        victim = shared.redis.spawn(caller, number, 0.0, after_s=at_s)
        shared.redis.kill(victim, after_s=at_s + 5.0)
    shared.run()
    assert sum(at_s < 600 for at_s in admitted) > 0.95 * (60 + 600)


def test_places_of_a_dead_process_are_given_to_others_as_soon_as_it_is_missed() -> None:
    shared = Shared(60, count=2)
    shared.drain(60)
    doomed = [shared.spawn(0, patience_s=20.0) for _ in range(15)]
    shared.redis.spawn(shared.redis.processes[0].die, *doomed, after_s=0.5)
    # Fifteen are before it, of whom none is alive. When that is found out, what they had is there.
    behind = [shared.spawn(1, after_s=1.0) for _ in range(30)]
    shared.spawn(1, after_s=40.0)
    shared.run()
    assert [task.outcome for task in behind] == [
        *("16.0", "17.0", "18.0", "19.0"),
        *["20.0"] * 16,
        *(f"{second}.0" for second in range(21, 31)),
    ]


@over_processes
def test_a_line_that_redis_has_forgotten_costs_nobody_his_place_for_good(count: int) -> None:
    shared = Shared(60, count=count, latency_s=LATENCY_S)
    shared.drain(60)
    for number in range(20):
        shared.redis.spawn(shared.pass_through, number)
    shared.redis.spawn(lambda: shared.redis.data.delete(*shared.redis.keys("*:line")), after_s=5.5)
    shared.redis.spawn(shared.pass_through, 1, after_s=6.0)
    shared.run()
    assert len(shared.admitted) == 21
    assert max(shared.admitted) < 30
    gaps = [later_s - at_s for at_s, later_s in itertools.pairwise(sorted(shared.admitted))]
    assert min(gaps) > 0.98


@over_processes
def test_news_that_nobody_hears_let_callers_come_late_but_never_too_early(count: int) -> None:
    shared = Shared(60, count=count)
    shared.drain(60)
    line = [shared.spawn(number) for number in range(10)]
    for victim in line[3:6]:
        shared.redis.kill(victim, after_s=0.5)
    for process in shared.redis.processes:
        process.server.is_deaf = True
    shared.run()
    assert [task.outcome for task in line[:3]] == ["1.0", "2.0", "3.0"]
    # They come at the times that they had been told, later than they could.
    assert [task.outcome for task in line[6:]] == ["7.0", "8.0", "9.0", "10.0"]


def test_what_was_missed_is_made_up_for_when_news_are_heard_again() -> None:
    shared = Shared(0, 600, count=2, latency_s=LATENCY_S)
    place = shared.take(0, 600.0)
    shared.spawn(1, tokens=500.0)
    server, link = shared.redis.processes[1].server, shared.redis.processes[1].link

    def hear(is_heard: bool) -> None:
        server.is_deaf = not is_heard
        if is_heard:
            link._told(b"")

    shared.redis.spawn(hear, False, after_s=1.0)
    shared.redis.spawn(place.end, 0, after_s=2.0)
    shared.redis.spawn(hear, True, after_s=3.0)
    assert shared.run()[0] == "3.0"


def test_who_asks_when_he_was_given_up_already_is_counted_once() -> None:
    shared = Shared(60, count=2)
    shared.drain(60)
    late = _Caller("late", "a", 0.0, shared.time.monotonic() + 5.0, is_fallback=False)
    # As a process does that was stopped for a while.
    turn = shared.limiters[0]._run(late, None)
    for number in range(70):
        other = _Caller(f"{number}", "a", 0.0, shared.time.monotonic() + 500, is_fallback=False)
        shared.limiters[1]._run(other, None)
    shared.time.sleep(20.0)
    assert isinstance(turn, _Turn)
    late.deadline_s += 500
    shared.limiters[0]._run(late, turn)
    line = shared.redis.data.hgetall(f"{shared.limiters[0]._root}:limits:line")
    assert float(line[b"requests"]) == sum(name.startswith(b"@") for name in line)


# --- the pause ----------------------------------------------------------------------------------


@over_processes
def test_a_pause_holds_every_process_back_for_exactly_as_long_as_the_server_says(
    count: int,
) -> None:
    shared = Shared(count=count)
    shared.pause(12.5)
    for number in range(4):
        shared.spawn(number, model="ab"[number % 2])
    assert shared.run() == ["12.5"] * 4


def test_a_pause_that_is_in_the_way_of_waiting_callers_holds_them_back_too() -> None:
    shared = Shared(6)
    shared.drain(6)
    for number in range(3):
        shared.spawn(number)
    shared.redis.spawn(shared.limiters[3].pause, "a", 30.0, b"0", after_s=1.0)
    # Their turns would have come at 10, 20 and 30 s.
    assert shared.run()[:3] == ["31.0"] * 3


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    shared = Shared()
    first, second = shared.take(0), shared.take(1)
    first.refused(30.0)
    second.refused(1.0)
    shared.spawn(2)
    assert shared.run() == ["30.0"]


@over_processes
def test_a_caller_who_cannot_wait_out_a_pause_is_told_at_once_when_it_ends(count: int) -> None:
    shared = Shared(count=count)
    shared.pause(120.0)
    with pytest.raises(LimitBeyondDeadline, match="resets in 120 s") as raised:
        shared.take(1, patience_s=60.0)
    assert shared.now_s == 0
    assert raised.value.retry_after_s == pytest.approx(120.0)
    assert raised.value.status == 429


@over_processes
def test_a_pause_tells_those_who_wait_for_another_one_at_once_that_they_wait_in_vain(
    count: int,
) -> None:
    shared = Shared(count=count)
    shared.pause(20.0)
    waiting = [shared.spawn(number, patience_s=40.0) for number in range(8)]
    shared.redis.spawn(shared.limiters[-1].pause, "a", 300.0, b"0", after_s=1.0)
    assert shared.run()[:8] == ["LimitBeyondDeadline"] * 8
    assert [task.ended_s for task in waiting] == [START_S + 1] * 8


@over_processes
def test_a_pause_tells_those_in_the_line_at_once_that_they_wait_in_vain(count: int) -> None:
    shared = Shared(6, count=count)
    shared.drain(6)
    waiting = [shared.spawn(number, patience_s=58.0) for number in range(5)]
    shared.redis.spawn(shared.limiters[-1].pause, "a", 300.0, b"0", after_s=1.0)
    assert shared.run()[:5] == ["LimitBeyondDeadline"] * 5
    assert [task.ended_s for task in waiting] == [START_S + 1] * 5


def test_who_is_held_back_at_his_turn_does_not_wait_past_his_deadline() -> None:
    shared = Shared(120, count=2, latency_s=LATENCY_S)
    shared.drain(120)
    # It passes the gate at 0.5 s, and nobody else may for a second.
    shared.redis.spawn(shared.take, 1, model="b", after_s=0.001)
    shared.redis.spawn(shared.limiters[1].pause, "a", 0.05, b"0", after_s=0.01)
    held = shared.spawn(0, patience_s=1.08, after_s=0.02)
    deadline_s = shared.time.monotonic() + 0.02 + 1.08
    shared.run()
    assert held.outcome == "LimiterTimeout"
    assert held.ended_s == pytest.approx(deadline_s, abs=3 * LATENCY_S)


def test_a_process_whose_callers_a_pause_has_held_back_has_its_share_afterwards() -> None:
    shared = Shared(60, count=2, latency_s=LATENCY_S)
    shared.drain(60)
    shared.pause(5.0)
    served: Counter[int] = Counter()

    def caller(number: int) -> None:
        while shared.now_s < 300:
            place = shared.take(number)
            served[number] += shared.now_s > 60
            place.accepted()
            place.end(None)

    for _ in range(20):
        shared.redis.spawn(caller, 0)
        shared.redis.spawn(caller, 1, after_s=30.0)
    shared.run()
    assert served[0] > 0.3 * served.total()


def waves_after_a_pause(count: int, answer_s: float, **how: Any) -> Counter[float]:
    """When fifty calls that wait for the end of a pause pass; each is answered after a while."""
    shared = Shared(count=count, **how)
    shared.pause(5.0)
    began: Counter[float] = Counter()

    def caller(number: int) -> None:
        place = shared.take(number)
        began[round(shared.now_s, 1)] += 1
        shared.time.sleep(answer_s)
        place.accepted()
        place.end(None)

    for number in range(50):
        shared.redis.spawn(caller, number)
    assert shared.run() == [None] * 50
    assert began.total() == 50
    return began


@over_processes
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_after_a_pause_calls_of_all_processes_go_step_by_step(count: int, seed: int | None) -> None:
    waves = waves_after_a_pause(count, answer_s=0.5, seed=seed, latency_s=LATENCY_S)
    assert list(waves) == [5.0, 5.5, 6.0, 6.5]
    assert waves[5.0] == 1
    assert waves[5.5] == 2
    assert waves[6.0] < waves[6.5]


@over_processes
def test_a_call_that_is_not_refused_for_a_second_counts_as_accepted(count: int) -> None:
    # A model that thinks for ten seconds before its first byte must not hold up fifty callers.
    waves = waves_after_a_pause(count, answer_s=10.0)
    assert list(waves) == [5.0, 6.0, 7.0, 8.0]
    assert waves[5.0] == 1
    assert waves[6.0] == 2


@over_processes
def test_a_call_that_ends_without_an_answer_leaves_its_turn_to_the_next(count: int) -> None:
    shared = Shared(count=count)
    shared.pause(5.0)
    began: list[float] = []

    def caller(number: int) -> None:
        place = shared.take(number)
        began.append(round(shared.now_s, 1))
        shared.time.sleep(0.5)
        place.end(None)

    for number in range(4):
        shared.redis.spawn(caller, number)
    assert shared.run() == [None] * 4
    assert began == [5.0, 5.5, 6.0, 6.5]


@over_processes
def test_after_a_pause_a_crowd_gets_no_more_than_the_bucket(count: int) -> None:
    shared = Shared(60, count=count, latency_s=LATENCY_S)
    shared.drain(60)
    shared.pause(300.0)
    for number in range(150):
        shared.redis.spawn(shared.pass_through, number, after_s=number * 0.1)
    assert shared.run() == [None] * 150
    assert min(shared.admitted) >= 300
    assert most_above(shared.admitted, 60) < 0.1


@over_processes
@pytest.mark.parametrize("pause_s", [20.0, 100.0])
def test_after_a_pause_in_the_middle_of_a_long_line_the_rate_is_kept_to(
    count: int, pause_s: float
) -> None:
    shared = Shared(4, count=count, latency_s=LATENCY_S)
    shared.drain(4)
    # Their turns would come until 180 s.
    for number in range(12):
        shared.redis.spawn(shared.pass_through, number)
    shared.redis.spawn(shared.limiters[0].pause, "a", pause_s, b"0", after_s=1.0)
    shared.run()
    assert len(shared.admitted) == 12
    assert most_above(shared.admitted, 4) < 0.1


@pytest.mark.parametrize(
    ("rate", "callers", "late_s", "killed_s", "pause_s", "paused_at_s"),
    [(2, 6, 50.0, None, 100.0, 1.0), (3, 10, None, 60.0, 100.0, 25.0)],
    ids=["one comes", "one leaves"],
)
def test_who_comes_or_leaves_during_a_pause_does_not_raise_the_rate_after_it(
    rate: float,
    callers: int,
    late_s: float | None,
    killed_s: float | None,
    pause_s: float,
    paused_at_s: float,
) -> None:
    shared = Shared(rate, count=1)
    admitted: list[float] = []

    def caller() -> None:
        place = shared.take()
        admitted.append(shared.now_s)
        place.accepted()
        place.end(None)

    line = [shared.redis.spawn(caller) for _ in range(callers)]
    if killed_s is not None:
        shared.redis.kill(line[2], after_s=killed_s)
    if late_s is not None:
        shared.redis.spawn(caller, after_s=late_s)
    shared.redis.spawn(shared.limiters[0].pause, "a", pause_s, b"0", after_s=paused_at_s)
    shared.run()
    assert most_above(admitted, rate) < 0.1


def test_a_caller_whose_turn_after_a_pause_does_not_come_hears_of_the_gateways_limit() -> None:
    shared = Shared(60)
    shared.pause(5.0)
    shared.redis.spawn(shared.take, 0)
    shared.redis.spawn(shared.take, 1, patience_s=5.5)
    first, second = shared.run()
    assert not isinstance(first, Exception)
    assert isinstance(second, LimiterTimeout)
    assert "gateway" in second.message
    assert "60 requests per minute" not in second.message


def test_pauses_without_a_time_grow_with_each_in_a_row_up_to_half_a_minute() -> None:
    shared = Shared()
    began: list[float] = []

    def caller() -> None:
        for number in range(8):
            place = shared.take(number)
            began.append(shared.now_s)
            place.refused(None)
            place.end(0)

    shared.redis.spawn(caller)
    shared.run()
    waits = [round(after - before, 3) for before, after in itertools.pairwise(began)]
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_calls_that_fail_together_in_all_processes_are_one_strike() -> None:
    shared = Shared()
    crowd = [shared.take(number) for number in range(50)]
    shared.time.sleep(1.0)
    for place in crowd:
        place.refused(None)
        place.end(0)
    shared.spawn(1)
    assert shared.run() == ["2.0"]


def test_a_fallback_to_another_model_heeds_the_pause_of_its_own_model_alone() -> None:
    shared = Shared()
    shared.pause(30.0, "a")
    shared.pause(7.0, "b")
    shared.spawn(1, model="b", is_fallback=True)
    shared.spawn(2, model="c", is_fallback=True)
    shared.spawn(3, model="c")
    assert shared.run() == ["7.0", "0.0", "30.0"]


def test_a_long_pause_of_one_model_holds_the_others_back_for_a_minute() -> None:
    shared = Shared()
    shared.pause(3600.0, "a")
    hopeless = shared.spawn(1, model="a", patience_s=600.0)
    shared.spawn(2, model="b")
    shared.spawn(3, model="a")
    assert shared.run() == ["LimitBeyondDeadline", "60.0", "3600.0"]
    assert hopeless.ended_s == START_S


def test_answers_of_a_fallback_model_do_not_open_the_gate_of_the_paused_one() -> None:
    shared = Shared()
    shared.pause(10.0)

    def fall_back(number: int) -> None:
        place = shared.take(number, model="b", is_fallback=True)
        place.accepted()
        place.end(0)

    for number in range(10):
        shared.redis.spawn(fall_back, number)
    for number in range(50):
        shared.redis.spawn(shared.take, number, patience_s=10.9)
    assert kinds(shared.run()[10:]) == {"_SharedPlace": 1, "LimiterTimeout": 49}


@over_processes
def test_a_crowd_that_a_pause_holds_back_is_not_ahead_of_a_fallback(count: int) -> None:
    shared = Shared(60, count=count)
    shared.pause(30.0)
    for number in range(100):
        shared.spawn(number)
    shared.spawn(1, patience_s=5.0, model="b", is_fallback=True, after_s=1.0)
    assert shared.run()[-1] == "1.0"


def test_a_process_knows_of_a_pause_as_soon_as_another_has_heard_of_it() -> None:
    shared = Shared(count=2, latency_s=LATENCY_S)

    def ask() -> tuple[bool, bool, bool]:
        shared.take(1).end(None)
        shared.time.sleep(1.0)
        limiter = shared.limiters[1]
        return (
            limiter.is_paused("a"),
            limiter.is_paused("b"),
            limiter.is_paused("b", is_fallback=True),
        )

    shared.redis.spawn(ask)
    shared.redis.spawn(lambda: shared.take(0).refused(5.0), after_s=0.5)
    assert shared.run()[0] == (True, True, False)


def test_nothing_is_left_in_redis_some_time_after_a_pause() -> None:
    shared = Shared(60, 1000)
    shared.pause(5.0)
    for number in range(10):
        shared.spawn(number, tokens=10.0)
    shared.run()
    assert shared.redis.keys()
    shared.time.sleep(1000.0)
    assert shared.redis.keys() == []


# --- away ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("refuses", [True, False], ids=["refuses", "silent"])
def test_when_redis_goes_away_those_who_wait_go_on_with_their_processes_own_limiters(
    refuses: bool,
) -> None:
    shared = Shared(6, count=2, latency_s=LATENCY_S)
    shared.drain(6)
    # In Redis it would be their turns at 10, 20, ... 60 s. Each process notices when it next says
    # that it is alive, and then goes by what it has taken itself: half of what there was.
    for number in range(6):
        shared.spawn(number)
    shared.redis.spawn(shared.redis.go_away, refuses=refuses, after_s=1.0)
    expected = "3.0" if refuses else "3.3"
    assert shared.run()[:6] == [expected] * 6


def test_while_redis_is_away_each_process_keeps_to_the_rate_by_itself() -> None:
    shared = Shared(6, count=2, latency_s=LATENCY_S)
    admitted: list[list[float]] = [[], []]

    def caller(number: int) -> None:
        while shared.now_s < 200:
            shared.take(number).end(None)
            admitted[number % 2].append(shared.now_s)

    for number in range(8):
        shared.redis.spawn(caller, number)
    shared.redis.spawn(shared.redis.go_away, after_s=15.0)
    shared.redis.spawn(shared.redis.come_back, after_s=75.0)
    assert shared.run() == [None] * 10
    for each in admitted:
        assert most_above([at_s for at_s in each if at_s < 75], 6) < 0.1
    together = sorted(admitted[0] + admitted[1])
    assert most_above([at_s for at_s in together if at_s < 15], 6) < 0.1
    # What was taken without Redis it does not know; from then on all are in its line.
    assert most_above([at_s for at_s in together if at_s > 75 + 5], 6) < 0.1
    assert len([at_s for at_s in together if 100 < at_s <= 200]) == pytest.approx(10, abs=1)
    assert all(limiter._link.is_up for limiter in shared.limiters)


def test_those_who_went_on_without_redis_are_in_nobodys_way_when_it_is_back() -> None:
    shared = Shared(60, count=2, latency_s=LATENCY_S)
    shared.drain(60)
    for _ in range(80):
        shared.spawn(0, patience_s=500.0)
    shared.redis.spawn(shared.redis.go_away, after_s=19.5)
    shared.redis.spawn(shared.redis.come_back, after_s=20.9)
    served: list[float] = []

    def caller() -> None:
        while shared.now_s < 300:
            shared.take(1).end(None)
            served.append(shared.now_s)

    for _ in range(5):
        shared.redis.spawn(caller, after_s=25.0)
    shared.run()
    assert sum(150 < at_s <= 300 for at_s in served) > 0.95 * 150


def test_while_redis_is_away_a_pause_holds_the_process_back_that_knows_of_it() -> None:
    shared = Shared(count=2)
    shared.redis.go_away(refuses=True)

    def refused() -> None:
        shared.take(0).refused(20.0)

    shared.redis.spawn(refused)
    shared.spawn(0, after_s=1.0)
    shared.spawn(1, after_s=1.0)
    shared.redis.spawn(shared.redis.come_back, after_s=30.0)
    assert shared.run()[1:3] == ["20.0", "1.0"]


def test_a_pause_from_before_redis_went_away_is_still_kept_to() -> None:
    shared = Shared(count=1)
    shared.pause(20.0)
    shared.redis.spawn(shared.redis.go_away, refuses=True, after_s=1.0)
    shared.spawn(0, after_s=2.0)
    shared.redis.spawn(shared.redis.come_back, after_s=30.0)
    assert shared.run()[1] == "20.0"


@pytest.mark.parametrize("seed", range(4))
def test_no_interleaving_of_pauses_failures_and_kills_hangs_anybody(seed: int) -> None:
    dice = random.Random(seed)
    shared = Shared(120, 3000, seed=seed, latency_s=0.02, per_line=0.02)

    def caller(number: int) -> str:
        try:
            place = shared.take(
                number,
                dice.randrange(100),
                dice.choice([5.0, 30.0, 120.0]),
                model=dice.choice("ab"),
            )
        except HolySheepError as error:
            return type(error).__name__
        shared.time.sleep(dice.random() * 2)
        match dice.randrange(8):
            case 0:
                place.refused(dice.choice([None, 1.0, 10.0]))
                place.end(None)
            case 1:
                place.cancel()
            case _:
                place.accepted()
                place.end(dice.randrange(150))
        return "done"

    callers = [
        shared.redis.spawn(caller, number, after_s=0.1 + dice.random() * 20) for number in range(80)
    ]
    for victim in dice.sample(callers, 10):
        shared.redis.kill(victim, after_s=dice.random() * 30)
    shared.redis.spawn(shared.redis.go_away, refuses=seed % 2 == 0, after_s=8.0)
    shared.redis.spawn(shared.redis.come_back, after_s=12.0)
    outcomes = shared.run()[: len(callers)]
    assert all(isinstance(outcome, str | Killed) for outcome in outcomes)
    assert outcomes.count("done") > 40
    assert not any(limiter._turns or limiter._lines for limiter in shared.limiters)
