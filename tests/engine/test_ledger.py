"""The ledger: nothing is counted twice, nothing lost, and no budget passed.

Whatever the storage does, and however many processes there are; but for what a killed process had
not written yet.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holysheep import archive, config
from holysheep.budget import Limits
from holysheep.errors import BudgetExceeded
from holysheep.ledger import Invocation, Ledger, Ledgers
from holysheep.store import unpack
from holysheep.tally import Dimensions, Figures, Tally, exact_usd
from tests.engine.disk import Disk
from tests.fakes import FakeClock, Killed, Task, VirtualTime

CREDENTIAL = "c" * 32
DAY_S = 86_400.0


def today(clock: VirtualTime | FakeClock) -> date:
    return datetime.fromtimestamp(clock.wall(), UTC).date()


def request(cost: str = "0.001", **dimensions: str) -> tuple[Dimensions, Figures]:
    named = Dimensions(credential=CREDENTIAL, asked="gpt-4.1", served="gpt-4.1", **dimensions)
    return named, Figures(requests=1, upstream_calls=1, prompt_tokens=10, cost_usd=Decimal(cost))


class Process:
    """A plugin process: a ledger in memory over a disk that others use as well."""

    def __init__(self, disk: Disk, time: VirtualTime, name: str) -> None:
        self.disk = disk
        self.time = time
        self.ledger = Ledger(time, time.spawn, process=name)

    @contextmanager
    def invocation(self, node: str = "llm", **options: Any) -> Iterator[Invocation]:
        store = self.disk.open()
        try:
            with self.ledger.invocation(node, store=store, **options) as opened:
                yield opened
        finally:
            store.close()

    def call(self, *, lasts_s: float = 0.0, cost: str = "0.001", node: str = "llm") -> None:
        """One call that takes so long upstream, and is counted when it has ended."""
        with self.invocation(node) as opened:
            self.time.sleep(lasts_s)
            opened.add(*request(cost))

    def requests(self, day: date | None = None) -> int:
        """How many requests the workspace has had, as this process tells it."""
        store = self.disk.open()
        with self.ledger.invocation("usage", store=store):
            past = self.ledger.past([day or today(self.time)])
        store.close()
        assert past.missing == ()
        return past.days[day or today(self.time)].total().requests


def a_disk(seed: int | None = None, *, latency_s: float = 0.002) -> tuple[VirtualTime, Disk]:
    time = VirtualTime(seed)
    return time, Disk(time, latency_s)


def done(outcomes: list[Any]) -> list[Any]:
    """What callers returned; the first error is raised."""
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


# --- when it is written -------------------------------------------------------------------------


def test_a_lone_call_is_written_before_it_ends() -> None:
    time, disk = a_disk()
    one = Process(disk, time, "one")
    time.spawn(one.call)
    done(time.run())
    other = Process(disk, time, "other")
    time.spawn(other.requests)
    assert done(time.run())[:1] == [1]


def test_a_call_that_counts_nothing_writes_nothing() -> None:
    time, disk = a_disk()
    one = Process(disk, time, "one")

    def look() -> None:
        with one.invocation():
            pass

    time.spawn(look)
    done(time.run())
    assert disk.count("write") == 0


def test_of_overlapping_calls_one_writes_for_all_about_once_a_second() -> None:
    time, disk = a_disk()
    one = Process(disk, time, "one")
    for number in range(200):
        time.spawn(one.call, lasts_s=0.5, after_s=number * 0.05)
    done(time.run())
    writes = sum(name == "write" and key.endswith("/one") for name, key in disk.operations)
    assert 8 <= writes <= 13  # 10.5 s of calls without a gap
    assert one_restart_later(disk, time) == 200


def one_restart_later(disk: Disk, time: VirtualTime, day: date | None = None) -> int:
    process = Process(disk, time, f"later{random.randrange(10**9)}")
    time.spawn(process.requests, day)
    (found, *_) = done(time.run())
    return int(found)


def test_what_a_long_invocation_counts_is_written_within_a_second() -> None:
    time, disk = a_disk()
    one = Process(disk, time, "one")

    def batch() -> None:
        with one.invocation("batch", lasts=True) as opened:
            for _ in range(3):
                opened.add(*request())
                time.sleep(60)
                assert stored_requests(disk, today(time), "one") == one_count(one)

    time.spawn(batch)
    done(time.run())


def one_count(process: Process) -> int:
    return process.ledger._book().tally.total().requests


def stored_requests(disk: Disk, day: date, process: str) -> int:
    """What lies on the disk, without a process in between."""
    stored = unpack(disk.data[f"usage/1/{day.isoformat()}/{process}"])
    return Tally.from_json(stored["rows"]).total().requests


def test_a_call_that_ends_while_a_long_one_goes_on_is_written_within_a_second() -> None:
    time, disk = a_disk()
    one = Process(disk, time, "one")
    time.spawn(one.call, lasts_s=500)
    time.spawn(one.call, lasts_s=1)

    def look() -> int:
        return stored_requests(disk, today(time), "one")

    time.spawn(look, after_s=2.1)
    assert done(time.run())[2] == 1


def test_the_storage_is_never_used_outside_of_an_open_invocation() -> None:
    # ``DiskStore`` raises for that, which no caller survives.
    for seed in range(15):
        time, disk = a_disk(seed, latency_s=0.2)
        one = Process(disk, time, "one")
        for number in range(15):
            time.spawn(one.call, lasts_s=number % 4 * 0.3, after_s=number * 0.21)
        done(time.run())
        assert one_restart_later(disk, time) == 15


# --- several processes --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_processes_that_write_at_once_lose_nothing_and_count_nothing_twice(seed: int) -> None:
    time, disk = a_disk(seed)
    processes = [Process(disk, time, f"p{number}") for number in range(4)]
    for process in processes:
        for number in range(25):
            time.spawn(process.call, lasts_s=0.1, after_s=number * 0.13)
    done(time.run())
    assert one_restart_later(disk, time) == 100
    for process in processes:
        time.spawn(process.requests)
    assert done(time.run())[:4] == [100] * 4


@pytest.mark.parametrize("seed", range(5))
def test_processes_that_begin_at_the_same_moment_find_each_other(seed: int) -> None:
    time, disk = a_disk(seed, latency_s=0.05)
    for number in range(6):
        process = Process(disk, time, f"p{number}")
        # The second round is what puts right what the first may have undone.
        for round_s in (0.0, config.LEDGER_ENTER_S + 1):
            time.spawn(process.call, lasts_s=0.01, after_s=round_s)
    done(time.run())
    assert one_restart_later(disk, time) == 12


def test_a_killed_process_loses_at_most_its_last_second() -> None:
    time, disk = a_disk()
    one = Process(disk, time, "one")
    for number in range(100):
        time.spawn(one.call, lasts_s=0.5, after_s=number * 0.1)

    def read_as_if_it_died_now(at_s: float) -> int:
        finished = sum(number * 0.1 + 0.5 <= at_s - 1.1 for number in range(100))
        missing = finished - stored_requests(disk, today(time), "one")
        return max(0, missing)

    for tenth in range(20, 100, 3):
        time.spawn(read_as_if_it_died_now, tenth / 10, after_s=tenth / 10)
    assert done(time.run())[100:127] == [0] * 27


# --- budgets ------------------------------------------------------------------------------------


class Upstream:
    """What the gateway has really been asked for, by day."""

    def __init__(self, time: VirtualTime) -> None:
        self.time = time
        self.spent: dict[date, Decimal] = {}

    def answer(self, cost: Decimal) -> None:
        day = today(self.time)
        self.spent[day] = self.spent.get(day, Decimal(0)) + cost

    @property
    def total(self) -> Decimal:
        return sum(self.spent.values(), Decimal(0))


def spend(
    process: Process,
    upstream: Upstream,
    limits: Limits,
    *,
    worst: str = "0.010",
    cost: str = "0.007",
    lasts_s: float = 0.3,
) -> bool:
    """One call under a budget; whether it was let through."""
    with process.invocation() as opened:
        purse = opened.purse(CREDENTIAL, limits)
        try:
            purse.hold(Decimal(worst))
        except BudgetExceeded:
            return False
        process.time.sleep(lasts_s / 2)
        upstream.answer(Decimal(cost))
        process.time.sleep(lasts_s / 2)
        purse.settle(Decimal(worst), Decimal(cost))
        opened.add(*request(cost))
        return True


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 3])
def test_processes_together_never_pass_a_budget_and_use_nearly_all_of_it(
    seed: int, count: int
) -> None:
    time, disk = a_disk(seed)
    upstream = Upstream(time)
    limits = Limits(daily=Decimal("0.5"))
    for number in range(count):
        process = Process(disk, time, f"p{number}")
        for call in range(150 // count):
            after_s = call * 0.02 * count
            time.spawn(spend, process, upstream, limits, after_s=after_s)
    outcomes = done(time.run())
    assert False in outcomes
    assert upstream.total <= Decimal("0.5")
    # What is missing is the room of one call, and what another process had claimed ahead.
    assert upstream.total >= Decimal("0.44")
    last = Process(disk, time, "last")
    time.spawn(last.requests)
    assert done(time.run())[0] * Decimal("0.007") == upstream.total


def test_calls_that_come_while_a_claim_is_stored_hold_nothing_of_it() -> None:
    time, disk = a_disk(latency_s=0.1)
    limits = Limits(daily=Decimal(1))
    other, process = Process(disk, time, "other"), Process(disk, time, "one")

    def hold(process: Process, worst: str) -> bool:
        with process.invocation() as opened:
            try:
                opened.purse(CREDENTIAL, limits).hold(Decimal(worst), time.monotonic() + 60)
            except BudgetExceeded:
                return False
            time.sleep(30)
            return True

    time.spawn(hold, other, "0.95")
    for number in range(5):
        time.spawn(hold, process, "0.04", after_s=10 + number * 0.05)
    assert sorted(done(time.run())[:6]) == [False] * 4 + [True] * 2


@pytest.mark.parametrize("seed", range(5))
def test_a_restart_does_not_forget_what_was_spent(seed: int) -> None:
    time, disk = a_disk(seed)
    upstream = Upstream(time)
    limits = Limits(daily=Decimal("0.1"))
    for number in range(30):
        process = Process(disk, time, f"p{number}")
        time.spawn(spend, process, upstream, limits)
        done(time.run())
    assert upstream.total <= Decimal("0.1")
    assert upstream.total >= Decimal("0.091")


@pytest.mark.parametrize("seed", range(6))
def test_killed_processes_do_not_pass_a_budget(seed: int) -> None:
    time, disk = a_disk(seed)
    upstream = Upstream(time)
    limits = Limits(daily=Decimal("0.5"))
    chance = random.Random(seed)
    for generation in range(6):
        tasks = []
        for number in range(2):
            process = Process(disk, time, f"g{generation}p{number}")
            tasks += [
                time.spawn(spend, process, upstream, limits, after_s=call * 0.05 + 0.001)
                for call in range(40)
            ]

        def kill(tasks: list[Task] = tasks) -> None:
            for task in tasks:
                time.throw(task, Killed())

        time.spawn(kill, after_s=chance.uniform(0.1, 2.0))
        time.run()
    assert upstream.total <= Decimal("0.5")


def test_a_killed_process_blocks_no_more_than_its_calls_and_a_part_ahead() -> None:
    time, disk = a_disk()
    upstream = Upstream(time)
    limits = Limits(daily=Decimal(1))
    killed = Process(disk, time, "killed")
    task = time.spawn(spend, killed, upstream, limits, lasts_s=100.0)
    time.spawn(lambda: time.throw(task, Killed()), after_s=10.0)
    time.run()
    after = Process(disk, time, "after")
    for number in range(200):
        time.spawn(spend, after, upstream, limits, lasts_s=0, after_s=number)
    time.run()
    assert Decimal("0.9") <= upstream.total <= 1


def test_a_month_counts_the_days_before_by_whomever() -> None:
    time, disk = a_disk()
    upstream = Upstream(time)
    limits = Limits(monthly=Decimal("0.10"))
    for day in range(31):
        process = Process(disk, time, f"day{day}")
        time.spawn(spend, process, upstream, limits)
        done(time.run())
        time.now_s += DAY_S
    assert Decimal("0.091") <= upstream.total <= Decimal("0.10")
    first_of_february = Process(disk, time, "february")
    assert today(time) == date(2026, 2, 1)
    time.spawn(spend, first_of_february, upstream, limits)
    assert done(time.run())[0] is True


def test_a_process_that_runs_over_midnight_counts_its_own_days_too() -> None:
    time, disk = a_disk()
    upstream = Upstream(time)
    limits = Limits(daily=Decimal("0.05"), monthly=Decimal("0.12"))
    process = Process(disk, time, "one")
    spent = []
    for _ in range(5):
        for _ in range(10):
            time.spawn(spend, process, upstream, limits)
            done(time.run())
        spent.append(upstream.total)
        time.now_s += DAY_S
    by_day = [after - before for before, after in zip([Decimal(0), *spent], spent, strict=False)]
    assert by_day[0] == by_day[1] == Decimal("0.042")  # 6 of 7 tenths of a cent; a 7th may need 10
    assert Decimal("0.11") < spent[-1] <= Decimal("0.12")


def test_after_midnight_the_month_counts_what_others_spent_before_it() -> None:
    time, disk = a_disk()
    limits = Limits(monthly=Decimal(1))
    one, other = Process(disk, time, "one"), Process(disk, time, "other")
    time.sleep(86_400 - 120)

    def spend(process: Process, amount: str) -> None:
        with process.invocation() as opened:
            purse = opened.purse(CREDENTIAL, limits)
            purse.hold(Decimal(amount))
            time.sleep(1)
            purse.settle(Decimal(amount), Decimal(amount))

    time.spawn(spend, other, "0.9")
    time.spawn(spend, one, "0.05", after_s=60)
    time.spawn(spend, one, "0.5", after_s=180)
    assert isinstance(time.run()[2], BudgetExceeded)


def test_what_another_process_gives_back_can_be_spent() -> None:
    time, disk = a_disk()
    upstream = Upstream(time)
    limits = Limits(daily=Decimal("0.02"))
    one, other = Process(disk, time, "one"), Process(disk, time, "other")
    time.spawn(spend, one, upstream, limits, worst="0.020", cost="0.001", lasts_s=5.0)
    time.spawn(spend, other, upstream, limits, worst="0.015", cost="0.001", after_s=1.0)
    time.spawn(spend, other, upstream, limits, worst="0.015", cost="0.001", after_s=10.0)
    outcomes = done(time.run())
    assert outcomes[:3] == [True, False, True]


def test_calls_under_a_budget_need_the_storage_for_few_of_them() -> None:
    time, disk = a_disk()
    upstream = Upstream(time)
    process = Process(disk, time, "one")
    for number in range(400):
        limits = Limits(daily=Decimal(1000))
        time.spawn(spend, process, upstream, limits, after_s=number * 0.005)
    done(time.run())
    assert len(disk.operations) < 400


def test_a_refused_call_does_not_ask_the_storage_each_time() -> None:
    time, disk = a_disk()
    upstream = Upstream(time)
    limits = Limits(daily=Decimal("0.01"))
    process = Process(disk, time, "one")
    for number in range(500):
        time.spawn(spend, process, upstream, limits, after_s=1 + number * 0.002)
    done(time.run())
    assert upstream.total == Decimal("0.007")
    assert len(disk.operations) < 100


# --- a storage that does not do what it should --------------------------------------------------


@pytest.mark.parametrize("latency_s", [0.2, 3.0])
def test_a_slow_storage_delays_no_call_but_the_last_to_end(latency_s: float) -> None:
    time, disk = a_disk(latency_s=latency_s)
    one = Process(disk, time, "one")
    delays = []

    def call() -> None:
        with one.invocation() as opened:
            began_s = time.monotonic()
            time.sleep(1.0)
            opened.add(*request())
            delays.append(time.monotonic() - began_s - 1.0)

    for number in range(50):
        time.spawn(call, after_s=number * 0.3)
    done(time.run())
    assert max(delays) == 0
    assert one_restart_later(disk, time) == 50


def test_a_storage_that_fails_fails_no_call_and_nothing_is_lost_when_it_is_back() -> None:
    time, disk = a_disk()
    one = Process(disk, time, "one")
    away_until_s = time.now_s + 60

    def fault(_: str, __: str) -> str | None:
        return "away" if time.now_s < away_until_s else None

    disk.fault = fault
    for number in range(300):
        time.spawn(one.call, lasts_s=0.2, after_s=number * 0.5)
    done(time.run())
    assert one_restart_later(disk, time) == 300
    assert one.ledger.problem == ""


def test_a_storage_that_fails_is_left_alone_for_longer_and_longer() -> None:
    time, disk = a_disk()
    one = Process(disk, time, "one")
    disk.fault = lambda *_: "away"
    for number in range(600):
        time.spawn(one.call, lasts_s=0.2, after_s=number * 0.5)
    done(time.run())
    assert len(disk.operations) < 40
    assert "away" in one.ledger.problem


def test_a_call_that_cannot_be_written_ends_at_once_while_the_storage_is_left_alone() -> None:
    time, disk = a_disk(latency_s=5.0)
    one = Process(disk, time, "one")
    disk.fault = lambda *_: "timed out"
    for number in range(20):
        time.spawn(one.call, after_s=number * 1.0)
    tasks = list(time._tasks)
    done(time.run())
    quick = [task for task in tasks if task.ended_s is not None]
    assert len(quick) == 20
    assert len(disk.operations) < 15


def test_budgets_count_the_process_alone_while_the_storage_fails_and_say_so() -> None:
    time, disk = a_disk()
    upstream = Upstream(time)
    limits = Limits(daily=Decimal("0.05"))
    disk.fault = lambda *_: "away"
    one = Process(disk, time, "one")
    for number in range(20):
        time.spawn(spend, one, upstream, limits, after_s=number * 1.0)
    done(time.run())
    assert upstream.total == Decimal("0.042")
    assert "away" in one.ledger.warning(CREDENTIAL, limits)


def test_a_full_storage_keeps_what_it_has_and_takes_the_rest_when_there_is_room() -> None:
    time, disk = a_disk()
    one = Process(disk, time, "one")
    time.spawn(one.call)
    done(time.run())
    disk.fault = lambda operation, _: "no room" if operation == "write" else None
    time.spawn(one.call)
    done(time.run())
    assert one_restart_later(disk, time) == 1
    disk.fault = None
    time.now_s += config.LEDGER_PAUSE_MAX_S
    time.spawn(one.call)
    done(time.run())
    assert one_restart_later(disk, time) == 3


DAMAGE = [b"", b"\x00\xff", b"{}", b"[1]", "7".encode("utf-16"), b"x" * 100_000]


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
@pytest.mark.parametrize("what", ["index", "one"])
def test_damaged_values_stop_nothing_and_are_told(damage: bytes, what: str) -> None:
    time, disk = a_disk()
    upstream = Upstream(time)
    limits = Limits(daily=Decimal(1), monthly=Decimal(2))
    one = Process(disk, time, "one")
    time.spawn(spend, one, upstream, limits)
    done(time.run())
    disk.data[f"usage/1/{today(time)}/{what}"] = damage
    other = Process(disk, time, "other")
    time.spawn(spend, other, upstream, limits)
    assert done(time.run())[0] is True

    def look() -> tuple[int, tuple[str, ...]]:
        store = disk.open()
        with other.ledger.invocation("usage", store=store):
            past = other.ledger.past([today(time)])
        return past.days[today(time)].total().requests, past.missing

    time.spawn(look)
    requests, missing = done(time.run())[0]
    assert requests == 1
    assert len(missing) == 1
    assert str(today(time)) in missing[0]


def test_a_report_from_a_storage_that_fails_tells_what_the_process_knows() -> None:
    time, disk = a_disk()
    one = Process(disk, time, "one")
    time.spawn(one.call)
    done(time.run())
    disk.fault = lambda *_: "away"

    def look() -> None:
        with one.invocation("usage"):
            past = one.ledger.past([today(time)])
        assert past.days[today(time)].total().requests == 1
        assert "away" in past.missing[0]

    time.spawn(look)
    done(time.run())


# --- days and months ----------------------------------------------------------------------------


def a_year(disk: Disk, time: VirtualTime, days: int) -> dict[date, int]:
    """A process a day, each with some calls; how many there were."""
    made = {}
    for number in range(days):
        process = Process(disk, time, f"d{number}")
        count = 1 + number % 3
        for _ in range(count):
            time.spawn(process.call, lasts_s=1.0)
        done(time.run())
        made[today(time)] = count
        time.now_s += DAY_S
    return made


def test_days_are_folded_into_months_and_nothing_is_counted_twice() -> None:
    time, disk = a_disk()
    made = a_year(disk, time, 75)
    days = [today(time) - timedelta(days=number) for number in range(1, 31)]
    last = Process(disk, time, "last")

    def look() -> dict[date, int]:
        with last.invocation("usage"):
            past = last.ledger.past(days)
        assert past.missing == ()
        return {day: tally.total().requests for day, tally in past.days.items()}

    time.spawn(look)
    assert done(time.run())[0] == {day: made[day] for day in days}
    kept = {key for key in disk.data if key.count("/") == 3}
    assert len(kept) <= 2 * 5, "the documents of folded days are deleted"


def test_thirty_days_reach_back_over_two_ends_of_months() -> None:
    time, disk = a_disk()
    made = a_year(disk, time, 59)  # to the 28th of February
    assert today(time) == date(2026, 3, 1)
    for number in (1, 2, 3):
        time.spawn(Process(disk, time, f"march{number}").call, lasts_s=1.0)
        done(time.run())
        first = today(time) - timedelta(days=29)
        assert one_restart_later(disk, time, first) == made[first]
        time.now_s += DAY_S


def test_a_storage_that_fails_is_not_asked_again_for_each_day() -> None:
    time, disk = a_disk(latency_s=3.0)
    one = Process(disk, time, "one")
    disk.fault = lambda *_: "timed out"

    def look() -> tuple[str, ...]:
        with one.invocation("usage"):
            return one.ledger.past([today(time) - timedelta(days=n) for n in range(30)]).missing

    time.spawn(look)
    (missing, *_) = done(time.run())
    assert len(missing) == 1
    assert len(disk.operations) < 6


def test_a_process_that_lives_for_weeks_tells_the_same_as_a_new_one() -> None:
    time, disk = a_disk()
    old = Process(disk, time, "old")
    made = {}
    for number in range(20):
        for _ in range(number % 4):
            time.spawn(old.call, lasts_s=1.0)
        done(time.run())
        made[today(time)] = number % 4
        time.now_s += DAY_S
    for day, count in made.items():
        time.spawn(old.requests, day)
        assert done(time.run())[0] == count
        assert one_restart_later(disk, time, day) == count
    assert len(old.ledger._books) <= 5


def test_thirteen_months_take_less_than_two_megabytes() -> None:
    time, disk = a_disk(latency_s=0)
    chance = random.Random(7)
    apps = [f"{chance.getrandbits(128):032x}" for _ in range(40)]
    models = [f"vendor/model-{number}" for number in range(12)]

    def a_row() -> tuple[Dimensions, Figures]:
        dimensions, figures = request(
            f"{chance.random():.9f}",
            app=chance.choice(apps),
            status=chance.choice(["ok", "ok", "ok", "rate_limited", "server_error"]),
            cache=chance.choice(["miss", "hit", "coalesced"]),
        )
        model = chance.choice(models)
        figures.latency_us = chance.randrange(10**7)
        figures.prompt_tokens = chance.randrange(10**5)
        figures.completion_tokens = chance.randrange(10**4)
        figures.classes = {chance.randrange(12): 1}
        return dimensions._replace(asked=model, served=model), figures

    # A few kinds of days: what is compressed at a time is smaller than one of them.
    tallies = [Tally(a_row() for _ in range(config.LEDGER_DAY_ROWS)) for _ in range(5)]
    for number in range(430):
        doc = archive.DayDoc(tallies[number % 5], {CREDENTIAL: Decimal("1.25")})
        archive.write_day(disk.open(), today(time), "one", doc)
        archive.enter(disk.open(), today(time), "one")
        time.now_s += DAY_S
        if number % 20 == 19:
            archive.fold(disk.open(), today(time))
    archive.fold(disk.open(), today(time))
    assert disk.size_bytes < 2_000_000
    months = sorted(key for key in disk.data if key.count("/") == 2 and "-" in key)
    assert len(months) == 14  # this one and thirteen before it
    first = date.fromisoformat(f"{months[0][-7:]}-01")
    folded = (today(time) - timedelta(days=2) - first).days + 1
    assert sum(requests_of_month(disk, key) for key in months) == config.LEDGER_DAY_ROWS * folded


def requests_of_month(disk: Disk, key: str) -> int:
    """What lies in a month's document."""
    stored = unpack(disk.data[key])
    parts = [*stored["days"].values(), stored["rest"]]
    return sum(Tally.from_json(part["rows"]).total().requests for part in parts)


def test_folding_that_is_interrupted_anywhere_is_finished_later() -> None:
    for stop_after in range(1, 60, 4):
        time, disk = a_disk()
        made = a_year(disk, time, 6)
        left = stop_after

        def fault(*_: str) -> str | None:
            nonlocal left
            left -= 1
            return "away" if left < 0 else None

        for _ in range(4):
            left = stop_after
            disk.fault = fault
            time.spawn(Process(disk, time, f"x{time.now_s:.0f}").call, lasts_s=2.0, cost="0")
            done(time.run())
            time.now_s += 100
        disk.fault = None
        for day, count in made.items():
            assert one_restart_later(disk, time, day) == count


# --- what others may do at the wrong moment -----------------------------------------------------


@pytest.mark.parametrize(("latency_s", "lasts_s"), [(0.05, 1.0), (0.2, 3.0), (0.002, 0.01)])
def test_short_calls_and_a_slow_storage_hide_no_day(latency_s: float, lasts_s: float) -> None:
    time, disk = a_disk(latency_s=latency_s)
    upstream = Upstream(time)
    limits = Limits(monthly=Decimal("0.10"))
    for number in range(28):
        process = Process(disk, time, f"day{number}")
        time.spawn(spend, process, upstream, limits, lasts_s=lasts_s)
        done(time.run())
        time.now_s += DAY_S
    assert Decimal("0.08") <= upstream.total <= Decimal("0.10")


def test_a_slow_write_of_the_index_takes_nobody_out_of_a_budget() -> None:
    time, disk = a_disk(latency_s=0.01)
    upstream = Upstream(time)
    limits = Limits(daily=Decimal("0.5"))
    once = [1]

    def fault(operation: str, key: str) -> None:
        if operation == "write" and key.endswith("/index") and once:
            once.clear()
            time.sleep(0.5)

    disk.fault = fault
    for name in ("one", "other"):
        process = Process(disk, time, name)
        for number in range(100):
            after_s = 0.001 + number * 0.03
            time.spawn(spend, process, upstream, limits, lasts_s=0.2, after_s=after_s)
    done(time.run())
    assert upstream.total <= Decimal("0.5")
    assert one_restart_later(disk, time) * Decimal("0.007") == upstream.total


def test_a_call_over_midnight_leaves_no_claim_behind() -> None:
    time, disk = a_disk()
    time.now_s += DAY_S - time.wall() % DAY_S - 1
    limits = Limits(monthly=Decimal(100))
    one = Process(disk, time, "one")
    time.spawn(spend, one, Upstream(time), limits, worst="0.5", cost="0.001", lasts_s=5)
    done(time.run())
    other = Process(disk, time, "other")

    def look() -> Decimal:
        with other.invocation("usage"):
            assert other.ledger.refresh(CREDENTIAL, limits) == ""
            return other.ledger.periods(CREDENTIAL, limits)[1].spent

    time.spawn(look)
    assert done(time.run())[0] == Decimal("0.001")


def test_what_is_written_late_is_counted_on_the_day_when_it_is_written() -> None:
    time, disk = a_disk()
    one, other = Process(disk, time, "one"), Process(disk, time, "other")
    disk.fault = lambda _, key: "full" if key.endswith("/one") else None
    time.spawn(one.call)
    done(time.run())
    disk.fault = None
    for _ in range(4):
        time.now_s += DAY_S
        time.spawn(other.call, lasts_s=5.0)
        done(time.run())
    time.spawn(one.call, lasts_s=5.0)
    done(time.run())
    days = [today(time) - timedelta(days=number) for number in range(10)]
    assert sum(one_restart_later(disk, time, day) for day in days) == 6


def test_a_monthly_limit_that_is_set_later_counts_the_days_before() -> None:
    time, disk = a_disk()
    upstream = Upstream(time)
    one = Process(disk, time, "one")
    time.spawn(spend, one, upstream, Limits(daily=Decimal(10)), worst="2", cost="2")
    done(time.run())
    time.now_s += DAY_S
    # A call that is under way keeps a claim of the daily limit open.
    time.spawn(spend, one, upstream, Limits(daily=Decimal(10)), lasts_s=5.0)
    both = Limits(daily=Decimal(10), monthly=Decimal(1))
    time.spawn(spend, one, upstream, both, after_s=2.0)
    time.spawn(spend, Process(disk, time, "other"), upstream, both, after_s=3.0)
    assert done(time.run())[1:3] == [False, False]


@pytest.mark.parametrize("what", ["index", "one"])
def test_a_budget_that_cannot_be_read_in_part_says_so(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    time, disk = a_disk()
    limits = Limits(daily=Decimal(1))
    time.spawn(spend, Process(disk, time, "one"), Upstream(time), limits)
    done(time.run())
    disk.data[f"usage/1/{today(time)}/{what}"] = b"damaged"
    other = Process(disk, time, "other")
    for _ in range(3):
        time.spawn(spend, other, Upstream(time), limits)
        done(time.run())
        time.now_s += 10
    assert "damaged" in other.ledger.warning(CREDENTIAL, limits)
    assert caplog.text.count("the budget is not complete") == 1


def test_what_others_hold_is_not_told_as_spent_and_may_pass() -> None:
    time, disk = a_disk()
    upstream = Upstream(time)
    limits = Limits(daily=Decimal("0.02"))
    holding = Process(disk, time, "holding")
    time.spawn(spend, holding, upstream, limits, worst="0.02", cost="0.001", lasts_s=9.0)
    other = Process(disk, time, "other")

    def refused() -> tuple[bool, str]:
        with other.invocation() as opened, pytest.raises(BudgetExceeded) as raised:
            opened.purse(CREDENTIAL, limits).hold(Decimal("0.01"), time.monotonic() + 60)
        return raised.value.may_pass, raised.value.message

    time.spawn(refused, after_s=2.0)
    may_pass, told = done(time.run())[1]
    assert may_pass
    assert "spent 0.000000 USD, held for calls under way 0.020000 USD" in told


def test_a_call_waits_half_of_its_time_for_a_budget_at_most() -> None:
    time, disk = a_disk(latency_s=2.0)
    one = Process(disk, time, "one")

    def wait() -> float:
        with one.invocation() as opened:
            began_s = time.monotonic()
            purse = opened.purse(CREDENTIAL, Limits(daily=Decimal(1)))
            purse.hold(Decimal("0.01"), began_s + 2.0)
            purse.settle(Decimal("0.01"), Decimal("0.01"))
            return time.monotonic() - began_s

    time.spawn(wait)
    assert done(time.run())[0] == pytest.approx(1.0)


# --- bounds -------------------------------------------------------------------------------------


def test_a_ledger_keeps_a_bounded_number_of_rows_and_all_of_the_sums() -> None:
    clock = FakeClock()
    ledger = Ledger(clock, lambda _: None)
    opened = ledger.invocation("llm")
    count = 3 * config.LEDGER_PROCESS_ROWS
    for number in range(count):
        dimensions, figures = request("0.001")
        opened.add(dimensions._replace(served=f"model-{number}"), figures)
    (book,) = ledger._books.values()
    assert len(book.tally) <= 2 * config.LEDGER_PROCESS_ROWS + 1
    assert book.tally.total().requests == count
    assert book.tally.total().cost_usd == count * Decimal("0.001")


def test_ledgers_are_bounded_and_none_in_use_is_forgotten() -> None:
    time = VirtualTime()
    ledgers = Ledgers(time, most=3)
    busy = ledgers.of("busy", time.spawn)
    disk = Disk(time)
    with busy.invocation("llm", store=disk.open()):
        for number in range(10):
            ledgers.of(f"other {number}", time.spawn)
        assert ledgers.of("busy", time.spawn) is busy
    time.run()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.sampled_from(["m1", "m2", "m3"]),
            st.sampled_from(["ok", "timeout"]),
            st.sampled_from(["hit", "miss"]),
            st.decimals(0, 10**6, places=15, allow_nan=False),
            st.integers(0, 10**9),
        ),
        max_size=40,
    ),
    st.integers(0, 20),
)
def test_sums_are_exact_however_they_are_grouped(rows: list[Any], most: int) -> None:
    tally, total, tokens = Tally(), Decimal(0), 0
    for app, model, status, cache, cost, prompt_tokens in rows:
        amount = exact_usd(cost)
        total += amount
        tokens += prompt_tokens
        tally.add(
            Dimensions(CREDENTIAL, app, "llm", model, model, status, cache),
            Figures(requests=1, cost_usd=amount, prompt_tokens=prompt_tokens),
        )
    stored = Tally.from_json(tally.to_json())
    for same in (tally, stored, stored.bounded(most)):
        assert same.total().cost_usd == total
        assert same.total().prompt_tokens == tokens
        for name in Dimensions._fields:
            groups = same.grouped(lambda row, name=name: getattr(row, name))  # type: ignore[misc]
            assert sum((group.cost_usd for group in groups.values()), Decimal(0)) == total
            assert sum(group.requests for group in groups.values()) == len(rows)
