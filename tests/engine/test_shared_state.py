"""Breakers, answers and spending that several processes share, and the link to their Redis."""

import json
import string
from collections import Counter
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holysheep import config, errors
from holysheep.breaker import OwnBreakers
from holysheep.budget import Limits
from holysheep.cache import CacheLayer, MemoryCache, StaleCover, identity_of, key_of
from holysheep.engine import stack
from holysheep.errors import (
    BudgetExceeded,
    CircuitOpen,
    HolySheepError,
    LimiterTimeout,
    ServerError,
    SharedAnswerLate,
)
from holysheep.ledger import Ledger
from holysheep.ports import utc_day
from holysheep.shared.address import parse_redis_url
from holysheep.shared.answers import SharedAnswers
from holysheep.shared.breakers import SharedBreakers
from holysheep.shared.codec import decoded, encoded_answer, encoded_failure
from holysheep.shared.link import Away
from holysheep.shared.spending import SharedSpending
from holysheep.singleflight import Flights, SingleFlightLayer
from holysheep.types import Choice, Completion, Usage
from tests.engine.simulated_redis import ROUND_TRIP_S, TIME_LIMIT_S, Processes
from tests.fakes import (
    KEY,
    START_S,
    ScriptedHandler,
    a_call,
    a_completion,
    a_request,
    answered,
    kinds,
    text_of,
)

# --- breakers ---


class Models(Processes):
    """The breaker of one model in each process."""

    def __init__(self, count: int = 4, *, seed: int | None = None) -> None:
        super().__init__(count, seed=seed)
        self.breakers = [
            SharedBreakers(link, OwnBreakers(self.time), self.time).get("url", "m")
            for link in self.links
        ]

    def fail(self, number: int) -> None:
        breaker = self.breakers[number % len(self.breakers)]
        breaker.report(breaker.admit(), "failure")

    def open(self) -> None:
        for number in range(config.BREAKER_FAILURES):
            self.fail(number)

    def is_open(self, number: int) -> bool:
        try:
            breaker = self.breakers[number]
            breaker.report(breaker.admit(), "none")
        except CircuitOpen:
            return True
        return False


def test_failures_in_a_row_in_any_processes_open_the_breaker_for_all() -> None:
    models = Models()

    def story() -> list[bool]:
        for number in range(config.BREAKER_FAILURES - 1):
            models.fail(number)
        before = any(models.is_open(number) for number in range(4))
        models.fail(0)
        return [before, *(models.is_open(number) for number in range(4))]

    models.spawn(story)
    assert models.run() == [[False, True, True, True, True]]


def test_a_success_anywhere_breaks_the_row() -> None:
    models = Models()

    def story() -> bool:
        for number in range(config.BREAKER_FAILURES - 1):
            models.fail(number)
        breaker = models.breakers[3]
        breaker.report(breaker.admit(), "success")
        models.fail(0)
        return models.is_open(1)

    models.spawn(story)
    assert models.run() == [False]


@pytest.mark.parametrize("seed", [None, 3, 4, 5])
def test_of_all_callers_of_all_processes_one_probes(seed: int | None) -> None:
    models = Models(seed=seed)
    models.spawn(models.open)
    probes: list[int] = []

    def caller(number: int) -> None:
        breaker = models.breakers[number % 4]
        epoch = breaker.admit()
        probes.append(number)
        models.time.sleep(5)
        breaker.answering(epoch)
        breaker.report(epoch, "success")

    for number in range(40):
        models.spawn(caller, number, after_s=config.BREAKER_OPEN_S + 1)
    later = [models.spawn(models.is_open, number, after_s=60) for number in range(4)]
    assert kinds(models.run())["CircuitOpen"] == 39
    assert len(probes) == 1
    assert [task.outcome for task in later] == [False] * 4


def test_a_probe_whose_process_has_died_is_replaced_when_its_lease_ends() -> None:
    models = Models()
    models.spawn(models.open)

    def dies() -> None:
        models.breakers[0].admit()
        # As if it were gone: nobody moves its lease on.
        models.links[0].drop_lease(models.breakers[0]._keys[1])  # type: ignore[attr-defined]

    models.spawn(dies, after_s=31)
    early = models.spawn(models.is_open, 1, after_s=31 + config.LEASE_S - 0.5)
    late = models.spawn(models.is_open, 2, after_s=31 + config.LEASE_S + 0.5)
    models.run()
    assert (early.outcome, late.outcome) == (True, False)


def test_a_probe_that_takes_long_stays_the_only_one() -> None:
    models = Models()
    models.spawn(models.open)

    def slow() -> None:
        epoch = models.breakers[0].admit()
        models.time.sleep(20)
        models.breakers[0].report(epoch, "success")

    models.spawn(slow, after_s=31)
    others = [models.spawn(models.is_open, 1, after_s=32 + number) for number in range(18)]
    models.run()
    assert all(task.outcome for task in others)


def test_a_breaker_that_is_well_costs_no_round_trip() -> None:
    models = Models(1)

    def story() -> None:
        models.is_open(0)
        models.time.sleep(1)
        models.is_open(0)
        before = models.redis.runs.copy()
        for _ in range(100):
            breaker = models.breakers[0]
            breaker.report(breaker.admit(), "success")
        assert models.redis.runs == before

    models.spawn(story)
    assert models.run() == [None]


def test_while_redis_is_away_the_processes_own_breaker_counts() -> None:
    models = Models(2)

    def story() -> list[bool]:
        models.redis.is_away = True
        for _ in range(config.BREAKER_FAILURES + 1):
            models.fail(0)
        return [models.is_open(0), models.is_open(1)]

    models.spawn(story)
    assert kinds(models.run()) == {"CircuitOpen": 1}


# --- answers ---


class Answers(Processes):
    """The cache of one credential in each process, over one scripted upstream."""

    def __init__(self, *behaviours: Any, count: int = 4, seed: int | None = None) -> None:
        super().__init__(count, seed=seed)
        self.below = ScriptedHandler(self.time, *behaviours)
        self.shared = [
            SharedAnswers(link, "fp", KEY, MemoryCache(self.time).shelf("fp"), self.time)
            for link in self.links
        ]
        self.handlers = [
            stack(
                [
                    StaleCover(answers),
                    SingleFlightLayer(Flights(self.time), identity_of),
                    CacheLayer(answers, self.time),
                ],
                self.below,
            )
            for answers in self.shared
        ]

    def ask(self, number: int, text: str = "Hello", **how: Any) -> tuple[str, str]:
        call = a_call(self.time, a_request(text), **how)
        answer = text_of(self.handlers[number % len(self.handlers)](call))
        return answer, call.trace.cache


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_identical_calls_of_all_processes_make_one_upstream_call(seed: int | None) -> None:
    answers = Answers(answered("one two", pause_s=2.0), seed=seed)
    for number in range(40):
        answers.spawn(answers.ask, number, after_s=number / 100)
    outcomes = answers.run()
    assert Counter(outcomes) == {("one two", "miss"): 1, ("one two", "coalesced"): 39}
    assert len(answers.below.calls) == 1


def test_an_answer_is_there_for_all_processes() -> None:
    answers = Answers(answered("one"), answered("two"))

    def story() -> list[tuple[str, str]]:
        first = answers.ask(0)
        answers.time.sleep(1)
        return [first, *(answers.ask(number) for number in range(4)), answers.ask(1, "other")]

    answers.spawn(story)
    assert answers.run() == [[("one", "miss"), *[("one", "hit")] * 4, ("two", "miss")]]


def test_what_has_just_landed_is_a_hit_before_redis_has_it() -> None:
    answers = Answers(answered("one"), answered("two"))

    def story() -> list[tuple[str, str]]:
        return [answers.ask(0), answers.ask(0), answers.ask(0, cache="refresh"), answers.ask(0)]

    answers.spawn(story)
    assert answers.run() == [[("one", "miss"), ("one", "hit"), ("two", "refresh"), ("two", "hit")]]


def test_a_failure_of_upstream_is_that_of_all_who_follow() -> None:
    answers = Answers([2.0, ServerError("down", status=503)])
    for number in range(8):
        answers.spawn(answers.ask, number, after_s=number / 100)
    outcomes = answers.run()
    assert kinds(outcomes) == {"ServerError": 8}
    assert {error.status for error in outcomes} == {503}
    assert len(answers.below.calls) == 1


def test_a_failure_that_is_the_leaders_own_lets_another_one_try() -> None:
    answers = Answers([2.0, LimiterTimeout("no room")], answered("one"))
    for number in range(4):
        answers.spawn(answers.ask, number, after_s=number / 100)
    outcomes = answers.run()
    assert kinds(outcomes) == {"LimiterTimeout": 1, "tuple": 3}
    assert len(answers.below.calls) == 2


def test_a_leader_that_has_died_is_replaced_when_its_lease_ends() -> None:
    answers = Answers([1000.0], answered("one"))
    leader = answers.spawn(answers.ask, 0)

    def dies() -> None:
        answers.links[0].close()

    answers.spawn(dies, after_s=1)
    follower = answers.spawn(answers.ask, 1, after_s=0.5)
    ended = answers.spawn(lambda: follower.ended_s, after_s=20)
    answers.spawn(lambda: answers.time.throw(leader, KeyboardInterrupt()), after_s=25)
    answers.run()
    assert follower.outcome == ("one", "miss")
    assert ended.outcome - START_S <= 1 + 2 * config.LEASE_S


def test_a_leader_that_takes_long_stays_the_only_one() -> None:
    answers = Answers([30.0, *answered("one")])
    for number in range(4):
        answers.spawn(answers.ask, number)
    assert Counter(answers.run()) == {("one", "miss"): 1, ("one", "coalesced"): 3}


def test_one_with_less_time_than_the_leader_is_told_at_its_deadline() -> None:
    answers = Answers([30.0, *answered("one")])
    answers.spawn(answers.ask, 0)

    def hurried() -> float:
        with pytest.raises(SharedAnswerLate):
            answers.ask(1, timeout_s=5.0)
        return answers.time.monotonic() - START_S

    told = answers.spawn(hurried, after_s=1)
    answers.run()
    assert told.outcome == pytest.approx(6, abs=0.1)


def test_an_expired_answer_covers_an_outage_in_another_process() -> None:
    answers = Answers(answered("old"), ServerError("down"))

    def story() -> tuple[str, str]:
        answers.ask(0, cache_ttl_s=1)
        answers.time.sleep(10)
        return answers.ask(1, cache_ttl_s=1, serve_stale=True)

    answers.spawn(story)
    assert answers.run() == [("old", "stale")]


@pytest.mark.parametrize("value", [b"", b"{", b"x" * 99, b'{"version":1}', b'{"version":9}'])
def test_a_damaged_answer_is_as_good_as_none(value: bytes) -> None:
    answers = Answers(answered("one"), answered("two"))

    def story() -> tuple[str, str]:
        answers.ask(0)
        answers.time.sleep(1)
        call = a_call(answers.time)
        answers.redis.data.hset(f"holysheep:1:{{fp}}:answer:{key_of(call).hex()}", "value", value)
        return answers.ask(1)

    answers.spawn(story)
    assert answers.run() == [("two", "miss")]


def test_who_follows_goes_on_alone_when_redis_goes_away() -> None:
    answers = Answers([10.0, *answered("one")], [10.0, *answered("two")])

    def lose() -> None:
        answers.redis.is_away = True

    answers.spawn(answers.ask, 0)
    follower = answers.spawn(answers.ask, 1, after_s=1)
    answers.spawn(lose, after_s=2)
    answers.spawn(answers.ask, 2, "other", after_s=3)
    other = answers.spawn(answers.ask, 1, "another", after_s=3)
    answers.run()
    assert follower.outcome == ("two", "miss")
    assert other.outcome == ("two", "miss")


def test_keys_hold_neither_the_question_nor_the_key() -> None:
    answers = Answers(answered("one"))
    answers.spawn(answers.ask, 0, "a secret question")
    answers.run()
    kept = b" ".join(answers.redis.data.keys("holysheep:*"))
    assert kept
    for word in (b"secret", b"question", KEY.encode(), b"gpt"):
        assert word not in kept


# --- as bytes ---

_TEXT = st.text(st.characters(exclude_categories=[]), max_size=30)
_JSON = st.dictionaries(st.text(string.ascii_letters, max_size=5), st.integers(), max_size=3)
_USAGES = st.builds(
    Usage,
    prompt_tokens=st.integers(0, 10**9),
    completion_tokens=st.integers(0, 10**9),
    cached_tokens=st.integers(0, 10**9),
    provider_cost_usd=st.none() | st.decimals(0, 1000, places=12),
    estimated=st.booleans(),
)
_CHOICES = st.builds(
    Choice,
    index=st.integers(0, 9),
    text=st.text(max_size=2000),
    reasoning=st.text(max_size=30),
    tool_calls=st.lists(_JSON, max_size=2).map(tuple),
    logprobs=st.none() | _JSON,
)
_COMPLETIONS = st.builds(
    Completion,
    asked_model=st.text(max_size=9),
    model=st.text(max_size=9),
    choices=st.lists(_CHOICES, min_size=1, max_size=3).map(tuple),
    usage=_USAGES,
    request_id=st.none() | st.text(max_size=9),
    earlier=st.lists(_USAGES, max_size=2).map(tuple),
    fallback_from=st.none() | st.text(max_size=9),
    left_out=st.lists(st.text(max_size=5), max_size=2).map(tuple),
)


@given(_COMPLETIONS)
def test_every_answer_comes_back_as_it_was(completion: Completion) -> None:
    assert decoded(encoded_answer(completion)) == completion


@given(st.binary(max_size=200) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_a_value_error_and_nothing_worse(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decoded(value)


def test_a_long_answer_is_compressed() -> None:
    assert len(encoded_answer(a_completion("sheep " * 1000))) < 1000


def test_every_failure_of_upstream_comes_back_without_the_key() -> None:
    kinds_of_errors = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, HolySheepError) and not kind.is_callers_own
    ]
    for kind in kinds_of_errors:
        error = kind(f"no {KEY}")
        error.status = 418
        value = encoded_failure(error, KEY)
        assert KEY.encode() not in value
        found = decoded(value)
        assert type(found) is kind
        assert isinstance(found, HolySheepError)
        assert (found.message, found.status) == ("no [redacted]", 418)
    assert encoded_failure(LimiterTimeout("mine"), KEY) == b""


# --- spending ---

WORST = Decimal("0.01")


class Spending(Processes):
    """A ledger in each process, none of which stores anything; calls of one price."""

    def __init__(self, limits: Limits, count: int = 4, *, seed: int | None = None) -> None:
        super().__init__(count, seed=seed)
        self.limits = limits
        self.ledgers = [Ledger(self.time, self.time.spawn) for _ in self.links]
        self.shared = [SharedSpending(link, "fp") for link in self.links]
        self.spent = Decimal(0)

    def call(self, number: int, cost: Decimal = WORST, *, lasts_s: float = 1.0) -> bool:
        """One call; whether there was room for it."""
        index = number % len(self.ledgers)
        purse = self.ledgers[index].invocation("test").purse("fp", self.limits, self.shared[index])
        try:
            purse.hold(WORST, self.time.monotonic() + 60)
        except BudgetExceeded:
            return False
        self.time.sleep(lasts_s)
        self.spent += cost
        purse.settle(WORST, cost)
        return True

    def told(self) -> Decimal:
        """What Redis has heard to be spent today."""
        day = utc_day(self.time).isoformat()
        said = self.redis.data.hgetall(f"holysheep:1:{{fp}}:spend:{day}")
        amounts = [value.split()[0] for name, value in said.items() if name != b"id"]
        return sum((Decimal(amount.decode()) for amount in amounts), Decimal(0))

    def callers(self, count: int, calls: int, cost: Decimal = WORST) -> None:
        def caller(number: int) -> None:
            for _ in range(calls):
                self.call(number, cost)

        for number in range(count):
            self.spawn(caller, number)


@pytest.mark.parametrize("limits", [Limits(daily=Decimal(1)), Limits(monthly=Decimal(1))])
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_processes_together_spend_no_more_than_the_budget_and_nearly_all(
    limits: Limits, seed: int | None
) -> None:
    spending = Spending(limits, seed=seed)
    spending.callers(20, 20)
    assert kinds(spending.run()) == {"NoneType": 20}
    assert Decimal("0.9") <= spending.spent <= 1


def test_calls_that_turn_out_cheaper_leave_room_for_others() -> None:
    spending = Spending(Limits(daily=Decimal(1)))
    spending.callers(20, 200, WORST / 10)
    spending.run()
    assert Decimal("0.9") <= spending.spent <= 1


def test_what_was_spent_while_redis_was_away_is_told_once() -> None:
    spending = Spending(Limits(daily=Decimal(1)))

    def story() -> Decimal:
        for number in range(8):
            spending.call(number)
        spending.redis.is_away = True
        for number in range(8):
            spending.call(number)
        spending.redis.is_away = False
        spending.time.sleep(6)
        for number in range(4):
            spending.call(number)
        spending.time.sleep(3)
        return spending.told()

    spending.spawn(story)
    assert spending.run() == [20 * WORST]


def test_after_all_was_lost_those_who_live_say_again_what_they_have_spent() -> None:
    spending = Spending(Limits(daily=Decimal(1)))

    def story() -> Decimal:
        for number in range(8):
            spending.call(number)
        spending.redis.data.flushall()
        for number in range(4):
            spending.call(number)
        spending.time.sleep(3)
        return spending.told()

    spending.spawn(story)
    assert spending.run() == [12 * WORST]


def test_a_monthly_budget_knows_what_others_spent_on_earlier_days() -> None:
    spending = Spending(Limits(monthly=Decimal("0.05")))

    def story() -> list[bool]:
        first = [spending.call(number) for number in range(4)]
        spending.time.sleep(86_400)
        # Of another process, which was not there yesterday.
        spending.ledgers[0] = Ledger(spending.time, spending.time.spawn)
        return [*first, spending.call(0), spending.call(0)]

    spending.spawn(story)
    assert spending.run() == [[True, True, True, True, True, False]]
    assert utc_day(spending.time) > date(2026, 1, 1)


# --- the link ---


def test_the_first_failure_shuts_the_link_and_nobody_waits_longer_than_one_time_limit() -> None:
    processes = Processes(1)
    link = processes.links[0]
    processes.redis.is_away = True

    def caller() -> float:
        with pytest.raises(Away):
            link.run("check", ["k"])
        return processes.time.monotonic() - START_S

    for number in range(100):
        processes.spawn(caller, after_s=number / 1000)
    assert max(processes.run()) <= TIME_LIMIT_S + ROUND_TRIP_S + 0.1
    assert link.losses == 1


def test_jobs_run_behind_the_caller_in_their_order_and_each_ends_once() -> None:
    processes = Processes(1)
    link = processes.links[0]
    ended: list[int] = []

    def story() -> float:
        for number in range(100):
            link.later(
                "keyvalue", ["k"], lambda n=number: ["SET", n], lambda n=number: ended.append(n)
            )
        took_s = processes.time.monotonic() - START_S
        processes.time.sleep(5)
        processes.redis.is_away = True
        for number in range(100, 110):
            link.later("keyvalue", ["k"], lambda: ["SET", 0], lambda n=number: ended.append(n))
        processes.time.sleep(1)
        return took_s

    processes.spawn(story)
    assert processes.run() == [0.0]
    assert ended == list(range(110))
    assert processes.redis.data.get("k") == b"99"


def test_it_is_tried_again_less_and_less_often_and_then_used_again() -> None:
    processes = Processes(1)
    link = processes.links[0]

    def story() -> tuple[bool, float]:
        processes.redis.is_away = True
        with pytest.raises(Away):
            link.run("check", ["k"])
        processes.time.sleep(60)
        assert not link.is_up
        assert "no answer" in link.problem
        processes.redis.is_away = False
        came_back_s = processes.time.monotonic()
        while not link.is_up:
            processes.time.sleep(0.1)
        return link.problem == "", processes.time.monotonic() - came_back_s

    processes.spawn(story)
    [(is_well, took_s)] = processes.run()
    assert is_well
    assert took_s <= config.REDIS_PAUSE_MAX_S + 0.5


@pytest.mark.parametrize(
    "url",
    [
        "http://host",
        "redis://",
        "redis://host:99999",
        "redis://host/x",
        "redis://a,b/0",
        "redis+cluster://host/1",
        "redis+sentinel://host",
        "redis+magic://host",
        "redis://host?socket_timeout=9",
        "redis://host?ssl_cert_reqs=none",
    ],
)
def test_a_url_that_is_none_is_refused_without_its_password(url: str) -> None:
    url = url.replace("://", "://user:hunter22@", 1)
    with pytest.raises(errors.SettingsError, match="redis_url") as caught:
        parse_redis_url(url)
    assert "hunter22" not in str(caught.value)
