"""Budgets in Redis: all processes together spend no more than the limit, and nearly all of it.

Whatever happens to Redis in between, what was spent is counted exactly once.
"""

from __future__ import annotations

import random
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holysheep import config
from holysheep.budget import Limits
from holysheep.errors import BudgetExceeded
from holysheep.ledger import Ledger
from holysheep.shared.spending import Claim, SharedSpending
from tests.engine.disk import Disk
from tests.fakes import START_S, Killed, VirtualTime
from tests.shared.simulated import SimulatedRedis

if TYPE_CHECKING:
    from holysheep.types import Purse
    from tests.fakes import Task

LATENCY_S = 0.001
CREDENTIAL = "f"
DAY_S = 86_400.0


def today(time: VirtualTime) -> date:
    return datetime.fromtimestamp(time.wall(), UTC).date()


class Spender:
    """A process that spends from the budget of a credential, with nothing stored but in Redis."""

    def __init__(self, redis: SimulatedRedis, limits: Limits) -> None:
        self.process = redis.process()
        self.time = redis.time
        self.limits = limits
        name = f"p{len(redis.processes)}"
        self.ledger = Ledger(redis.time, self.process.spawn, process=name)
        self.spending = SharedSpending(self.process.link, CREDENTIAL)
        self.purse: Purse = self.ledger.invocation("test").purse(CREDENTIAL, limits, self.spending)

    @property
    def spent_today(self) -> Decimal:
        """What was spent by all, as this process knows it."""
        return self.ledger.periods(CREDENTIAL, self.limits)[0].spent


class Shared:
    """Some processes with one budget. ``spent`` is what upstream was really asked for, by day."""

    def __init__(
        self,
        daily: str | None = None,
        monthly: str | None = None,
        *,
        count: int = 4,
        seed: int | None = None,
        latency_s: float = LATENCY_S,
        **how: Any,
    ) -> None:
        self.time = VirtualTime(seed, **how)
        self.redis = SimulatedRedis(self.time, latency_s=latency_s, jitter=seed)
        self.limits = Limits(
            None if daily is None else Decimal(daily), None if monthly is None else Decimal(monthly)
        )
        self.all = [self.join() for _ in range(count)]
        self.spent: dict[date, Decimal] = {}

    def join(self) -> Spender:
        """One more process."""
        return Spender(self.redis, self.limits)

    def call(
        self,
        number: int,
        *,
        worst: str = "0.010",
        cost: str = "0.007",
        lasts_s: float = 0.3,
        timeout_s: float = 60.0,
    ) -> bool:
        """One call in a process, they take turns; whether it was let through."""
        purse = self.all[number % len(self.all)].purse
        try:
            purse.hold(Decimal(worst), self.time.monotonic() + timeout_s)
        except BudgetExceeded:
            return False
        self.time.sleep(lasts_s / 2)
        day = today(self.time)
        self.spent[day] = self.spent.get(day, Decimal(0)) + Decimal(cost)
        self.time.sleep(lasts_s / 2)
        purse.settle(Decimal(worst), Decimal(cost))
        return True

    def spawn(self, number: int, after_s: float = 0.0, **how: Any) -> Task:
        return self.redis.spawn(self.call, number, after_s=after_s, **how)

    def run(self) -> list[Any]:
        """What callers returned; the first error is raised."""
        outcomes = self.redis.run()
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return outcomes

    def ask(self, number: int = 0) -> Decimal:
        """What Redis says that was spent today at most."""
        spender = self.all[number]
        self.redis.spawn(spender.spending.spent, today(self.time))
        return self.run()[0]

    @property
    def total(self) -> Decimal:
        return sum(self.spent.values(), Decimal(0))


# --- the limit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 4])
def test_processes_together_never_pass_a_budget_and_use_nearly_all_of_it(
    seed: int, count: int
) -> None:
    shared = Shared("0.5", count=count, seed=seed)
    for number in range(150):
        shared.spawn(number, after_s=0.02 * number)
    assert False in shared.run()
    assert Decimal("0.46") <= shared.total <= Decimal("0.5")


@pytest.mark.parametrize("latency_s", [LATENCY_S, 0.1])
@pytest.mark.parametrize("seed", range(4))
def test_calls_of_all_processes_at_the_same_moment_do_not_pass_it_either(
    seed: int, latency_s: float
) -> None:
    shared = Shared("0.5", seed=seed, latency_s=latency_s)
    for number in range(200):
        shared.spawn(number, lasts_s=5.0)
    outcomes = shared.run()
    assert outcomes.count(True) <= 50
    assert outcomes.count(True) >= 45
    assert shared.total <= Decimal("0.5")


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    calls=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.floats(0, 4),
            st.integers(1, 30),
            st.floats(0, 1),
            st.sampled_from([0.0, 0.5, 3.0]),
        ),
        max_size=40,
    ),
)
def test_no_history_passes_a_budget(
    seed: int, calls: list[tuple[int, float, int, float, float]]
) -> None:
    shared = Shared("0.1", "0.15", count=3, seed=seed)
    for number, after_s, worst, part, lasts_s in calls:
        cost = f"{worst * part / 1000:.6f}"
        shared.spawn(number, after_s=after_s, worst=f"{worst / 1000}", cost=cost, lasts_s=lasts_s)
    shared.run()
    assert shared.total <= Decimal("0.1")
    assert shared.ask() >= shared.total


def test_the_last_of_a_budget_is_granted_at_once_if_it_fits_exactly() -> None:
    shared = Shared("0.206", count=2)
    shared.spawn(0, worst="0.140", cost="0.140")
    last = shared.spawn(1, worst="0.066", cost="0.066", timeout_s=1.0, after_s=5.0)
    assert shared.run() == [True, True]
    assert last.ended_s == pytest.approx(START_S + 5.3, abs=0.1)
    assert shared.redis.ran["spend"] < 10


def test_the_last_of_a_budget_is_given_to_one_alone() -> None:
    shared = Shared("0.206", count=3)
    shared.spawn(0, worst="0.140", cost="0.140")
    for number in (1, 2):
        shared.spawn(number, worst="0.066", cost="0.066", timeout_s=1.0, after_s=5.0)
    assert sorted(shared.run()) == [False, True, True]
    assert shared.total == Decimal("0.206")


def test_what_calls_turn_out_not_to_cost_others_can_spend() -> None:
    shared = Shared("0.02", count=2)
    shared.spawn(0, worst="0.020", cost="0.001", lasts_s=2.0)
    shared.spawn(1, worst="0.015", cost="0.001", after_s=1.0)
    shared.spawn(1, worst="0.015", cost="0.001", after_s=10.0)
    assert shared.run() == [True, False, True]


def test_what_a_process_has_claimed_and_does_not_need_it_gives_back() -> None:
    shared = Shared("1", count=2)
    shared.spawn(0, worst="0.1", cost="0.01")
    shared.redis.spawn(lambda: None, after_s=10.0)
    shared.run()
    assert shared.ask() == Decimal("0.01")
    shared.spawn(1, worst="0.99", cost="0.99")
    assert shared.run() == [True]


def test_a_process_that_comes_later_knows_what_was_spent() -> None:
    shared = Shared("0.1", count=1)
    for number in range(10):
        shared.all.append(shared.join())
        shared.spawn(number + 1, worst="0.020", cost="0.019")
        shared.run()
    assert shared.total == Decimal("0.095")


def test_credentials_have_budgets_of_their_own() -> None:
    shared = Shared("0.02", count=2)
    other = shared.all[1]
    other.spending = SharedSpending(other.process.link, "other")
    other.purse = other.ledger.invocation("test").purse("other", shared.limits, other.spending)
    for number in range(4):
        shared.spawn(number, worst="0.020", cost="0.020", after_s=float(number))
    assert shared.run() == [True, True, False, False]


def test_without_a_limit_nothing_is_refused() -> None:
    shared = Shared()
    for number in range(40):
        shared.spawn(number, worst="10", cost="10")
    assert shared.run() == [True] * 40


def test_few_calls_ask_redis() -> None:
    shared = Shared("1000")
    for number in range(400):
        shared.spawn(number, after_s=number * 0.01)
    shared.run()
    assert shared.redis.ran.total() < 100


def test_refused_calls_do_not_ask_each_time() -> None:
    shared = Shared("0.01")
    for number in range(300):
        shared.spawn(number, worst="0.02", after_s=number * 0.01)
    assert True not in shared.run()
    assert shared.redis.ran.total() < 40


# --- killed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_processes_that_die_do_not_pass_a_budget(seed: int) -> None:
    shared = Shared("0.5", count=0, seed=seed)
    dice = random.Random(seed)
    for _ in range(5):
        shared.all = [shared.join(), shared.join()]
        tasks = [shared.spawn(number, after_s=number * 0.05 + 0.001) for number in range(40)]
        at_s = dice.uniform(0.1, 2.0)
        for number, spender in enumerate(shared.all):
            shared.redis.spawn(spender.process.die, *tasks[number::2], after_s=at_s)
        outcomes = shared.redis.run()
        assert all(
            outcome in {True, False, None} or isinstance(outcome, Killed) for outcome in outcomes
        )
    assert shared.total <= Decimal("0.5")


def test_a_process_that_died_blocks_no_more_than_its_calls_and_a_part_ahead() -> None:
    shared = Shared("1", count=2)
    doomed = shared.spawn(0, lasts_s=100.0)
    shared.redis.spawn(shared.all[0].process.die, doomed, after_s=10.0)
    for number in range(200):
        shared.spawn(1, after_s=20.0 + number, lasts_s=0.0)
    shared.redis.run()
    assert Decimal("0.9") <= shared.total <= 1


def test_a_call_that_is_interrupted_while_it_waits_holds_nothing() -> None:
    shared = Shared("0.02", latency_s=0.2, count=1)
    victim = shared.spawn(0, worst="0.02")
    shared.redis.kill(victim, after_s=0.1)
    shared.spawn(0, worst="0.02", after_s=5.0)
    assert shared.redis.run()[-1] is True


# --- away ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("refuses", [True, False], ids=["refuses", "silent"])
@pytest.mark.parametrize("seed", range(3))
def test_what_was_spent_while_redis_was_away_is_counted_once_when_it_is_back(
    seed: int, refuses: bool
) -> None:
    shared = Shared("100", seed=seed)
    for number in range(200):
        shared.spawn(number, after_s=number * 0.1)
    shared.redis.spawn(shared.redis.go_away, refuses=refuses, after_s=5.03)
    shared.redis.spawn(shared.redis.come_back, after_s=12.0)
    # Until all have told.
    shared.redis.spawn(lambda: None, after_s=40.0)
    shared.run()
    assert shared.total == Decimal("1.4")
    assert shared.ask() == shared.total


@pytest.mark.parametrize("seed", range(3))
def test_while_redis_is_away_no_process_passes_the_budget_by_itself(seed: int) -> None:
    shared = Shared("0.1", count=2, seed=seed)
    shared.redis.go_away(refuses=True)
    for number in range(60):
        shared.spawn(number, after_s=0.1 * number)
    shared.run()
    assert Decimal("0.18") <= shared.total <= Decimal("0.2")


def test_when_redis_is_back_what_was_spent_meanwhile_is_missing_from_the_budget() -> None:
    shared = Shared("0.1", count=2)
    shared.spawn(0)
    shared.redis.spawn(shared.redis.go_away, refuses=True, after_s=5.0)
    for number in range(10):
        shared.spawn(0, after_s=6.0 + number)
    shared.redis.spawn(shared.redis.come_back, after_s=20.0)
    for number in range(20):
        shared.spawn(1, after_s=30.0 + number)
    shared.run()
    assert Decimal("0.09") <= shared.total <= Decimal("0.1")


@pytest.mark.parametrize("seed", range(3))
def test_when_redis_is_emptied_what_was_spent_is_said_again_and_counted_once(seed: int) -> None:
    shared = Shared("100", seed=seed)
    for number in range(200):
        shared.spawn(number, after_s=number * 0.1)
    for after_s in (5.03, 11.0):
        shared.redis.spawn(shared.redis.data.flushall, after_s=after_s)
    for number in range(4):
        shared.spawn(number, after_s=30.0)
    shared.redis.spawn(lambda: None, after_s=40.0)
    shared.run()
    assert shared.total == Decimal("1.428")
    assert shared.ask() == shared.total


@pytest.mark.parametrize("seed", range(3))
def test_a_budget_holds_though_redis_is_emptied_in_between(seed: int) -> None:
    shared = Shared("0.5", seed=seed)
    for number in range(150):
        shared.spawn(number, after_s=0.1 * number)
    shared.redis.spawn(shared.redis.data.flushall, after_s=2.0)
    shared.run()
    # Until each process has said again what it has spent, the others claim what is not there.
    assert shared.total <= Decimal("0.5") + 4 * Decimal("0.1")


def test_an_answer_that_is_lost_does_not_count_twice() -> None:
    shared = Shared("100", count=2, latency_s=0.1)
    for number in range(20):
        shared.spawn(number, after_s=0.5 * number)
    # The script has run, and nobody hears so.
    shared.redis.spawn(shared.redis.go_away, after_s=3.57)
    shared.redis.spawn(shared.redis.come_back, after_s=4.5)
    shared.redis.spawn(lambda: None, after_s=40.0)
    shared.run()
    assert shared.ask() == shared.total == Decimal("0.14")


def test_what_the_storage_knows_of_those_who_are_gone_is_said_again_when_redis_is_emptied() -> None:
    shared = Shared("0.1", count=2)
    disk = Disk(shared.time)

    def spend(number: int, amount: str) -> bool:
        spender = shared.all[number]
        store = disk.open()
        try:
            with spender.ledger.invocation("test", store=store) as opened:
                purse = opened.purse(CREDENTIAL, shared.limits, spender.spending)
                try:
                    purse.hold(Decimal(amount), shared.time.monotonic() + 60)
                except BudgetExceeded:
                    return False
                purse.settle(Decimal(amount), Decimal(amount))
                return True
        finally:
            store.close()

    shared.redis.spawn(spend, 0, "0.08")
    shared.redis.spawn(shared.all[0].process.die, after_s=10.0)
    shared.redis.spawn(shared.redis.data.flushall, after_s=11.0)
    shared.redis.spawn(spend, 1, "0.05", after_s=12.0)
    shared.redis.spawn(spend, 1, "0.01", after_s=13.0)
    assert shared.run()[0::3] == [True, False]
    assert shared.ask(1) == Decimal("0.09")


# --- days and months ----------------------------------------------------------------------------


def test_a_month_counts_the_days_before_by_whomever() -> None:
    shared = Shared(None, "0.10", count=0)
    for _ in range(31):
        shared.all = [shared.join()]
        shared.spawn(0)
        shared.run()
        shared.time.now_s += DAY_S
    assert Decimal("0.091") <= shared.total <= Decimal("0.10")
    assert today(shared.time) == date(2026, 2, 1)
    shared.spawn(0)
    assert shared.run() == [True]


def test_processes_that_run_over_midnight_begin_a_new_day_and_go_on_with_the_month() -> None:
    shared = Shared("0.05", "0.12", count=2)
    by_day = []
    for _ in range(5):
        for number in range(16):
            shared.spawn(number, after_s=float(number))
        shared.run()
        by_day.append(shared.spent.get(today(shared.time), Decimal(0)))
        shared.time.now_s += DAY_S
    assert by_day[0] == by_day[1] == Decimal("0.042")
    assert Decimal("0.11") < shared.total <= Decimal("0.12")


@pytest.mark.parametrize("seed", range(3))
def test_calls_around_midnight_pass_neither_day_nor_month(seed: int) -> None:
    shared = Shared("0.3005", "0.5005", seed=seed)
    shared.time.sleep(DAY_S - 5)
    for number in range(200):
        shared.spawn(number, after_s=number * 0.05)
    shared.run()
    assert len(shared.spent) == 2
    # What begins on one day and ends on the other is the other's.
    assert max(shared.spent.values()) <= Decimal("0.3005") + 8 * Decimal("0.007")
    assert Decimal("0.46") <= shared.total <= Decimal("0.5005")


def test_after_midnight_the_month_counts_what_others_spent_just_before_it() -> None:
    shared = Shared(None, "1", count=2)
    shared.time.sleep(DAY_S - 120)
    shared.spawn(1, worst="0.9", cost="0.9")
    shared.spawn(0, worst="0.05", cost="0.05", after_s=60.0)
    shared.spawn(0, worst="0.5", cost="0.5", after_s=180.0)
    assert shared.run() == [True, True, False]


def test_what_was_spent_is_forgotten_some_time_after_its_month() -> None:
    shared = Shared("1", count=1)
    shared.spawn(0)
    shared.run()
    shared.time.sleep(31 * DAY_S)
    assert shared.redis.keys("*spend*")
    shared.time.sleep(config.REDIS_SPEND_S)
    assert shared.redis.keys() == []


# --- what it asks for ---------------------------------------------------------------------------


def claim(spender: Spender, process: str, **amounts: str | None) -> list[Decimal]:
    """What a claim is granted, and what others have spent and claimed."""
    limits = (amounts.pop("daily", None), amounts.pop("monthly", None))
    usual = {"spent": "0", "in_use": "0", "needed": "0.1", "wanted": "0.5", **amounts}
    found = spender.spending.claim(
        today(spender.time),
        process,
        **{name: Decimal(str(amount)) for name, amount in usual.items()},
        limits=tuple(None if limit is None else Decimal(limit) for limit in limits),  # type: ignore[arg-type]
    )
    return [found.granted, found.spent, found.claimed]


def test_claims_are_granted_as_far_as_the_limits_leave_room() -> None:
    shared = Shared(count=1)
    (one,) = shared.all
    assert claim(one, "a", daily="1") == [Decimal("0.5"), 0, 0]
    assert claim(one, "b", daily="1", spent="0.1", in_use="0.1") == [
        Decimal("0.5"),
        0,
        Decimal("0.5"),
    ]
    # Nothing is left, and what is in use stays.
    assert claim(one, "c", daily="1", in_use="0.02") == [
        Decimal("0.02"),
        Decimal("0.1"),
        Decimal("1.0"),
    ]
    assert claim(one, "d", daily="5", monthly="1.2") == [
        Decimal("0.18"),
        Decimal("0.1"),
        Decimal("1.02"),
    ]
    assert claim(one, "a") == [Decimal("0.5"), Decimal("0.1"), Decimal("0.7")]


@given(
    amounts=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 400_000), st.integers(1, 900_000)),
        min_size=1,
        max_size=20,
    )
)
@settings(max_examples=30, deadline=None)
def test_the_claims_of_all_are_never_more_than_the_limit(
    amounts: list[tuple[str, int, int]],
) -> None:
    shared = Shared(count=1)
    (one,) = shared.all
    granted: dict[str, Decimal] = {}
    for process, needed, more in amounts:
        in_use = granted.get(process, Decimal(0))
        found, _, others = claim(
            one,
            process,
            daily="1",
            in_use=str(in_use),
            needed=str(in_use + Decimal(needed) / 10**6),
            wanted=str(in_use + Decimal(needed + more) / 10**6),
        )
        assert others == sum(
            (most for name, most in granted.items() if name != process), Decimal(0)
        )
        granted[process] = found
        assert sum(granted.values()) <= 1
    assert one.spending.spent(today(shared.time)) == sum(granted.values())


def test_what_is_told_of_others_counts_only_where_they_have_not_said_so() -> None:
    shared = Shared(count=1)
    (one,) = shared.all
    claim(one, "a", spent="0.2", in_use="0.2", wanted="0.2", needed="0.2")
    known = [("a", Decimal("0.1"), Decimal("0.9")), ("b", Decimal("0.3"), Decimal("0.4"))]
    one.spending.tell(today(shared.time), known)
    assert one.spending.spent(today(shared.time)) == Decimal("0.6")


class GrantsNothing:
    """Spending of which nothing is granted, although nobody has spent or claimed anything."""

    is_up = True
    is_over = False

    def __init__(self) -> None:
        self.claims = 0

    def claim(self, day: date, process: str, **amounts: Any) -> Claim:
        self.claims += 1
        return Claim(Decimal(0), Decimal(0), Decimal(0), "record")

    def tell(self, day: date, known: Any) -> None:
        pass

    def spent(self, day: date) -> Decimal:
        return Decimal(0)


def test_a_call_that_is_granted_nothing_does_not_ask_without_a_pause() -> None:
    time = VirtualTime()
    spending = GrantsNothing()
    ledger = Ledger(time, time.spawn, process="p")
    limits = Limits(Decimal(1), None)
    purse = ledger.invocation("test").purse(CREDENTIAL, limits, spending)

    def call() -> int:
        purse.hold(Decimal("0.01"), time.monotonic() + 60)
        claims = spending.claims
        purse.settle(Decimal("0.01"), Decimal(0))
        return claims

    # Then it goes by what is known, and that is that there is room.
    waiting = time.spawn(call)
    time.run()
    asked = config.LEDGER_FIRST_CLAIM_S / config.LEDGER_AGAIN_S
    assert waiting.outcome == pytest.approx(asked, rel=0.02)
