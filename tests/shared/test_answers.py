"""Answers in Redis: one upstream call for identical calls of all processes, and nobody hangs.

Whoever dies, fails or goes away.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from holysheep import config
from holysheep.cache import CacheLayer, MemoryCache, StaleCover, identity_of, key_of
from holysheep.engine import stack
from holysheep.errors import (
    BudgetExceeded,
    CircuitOpen,
    ConnectFailed,
    HolySheepError,
    LimiterTimeout,
    RateLimited,
    ServerError,
    SharedAnswerLate,
)
from holysheep.shared.answers import SharedAnswers
from holysheep.singleflight import Flights, SingleFlightLayer
from holysheep.types import Call, Choice, Completed, Completion, Delta, Usage
from tests.fakes import (
    BROKEN_OFF,
    KEY,
    START_S,
    Killed,
    ScriptedHandler,
    VirtualTime,
    a_call,
    a_completion,
    a_request,
    answered,
    class_name,
    kinds,
    text_of,
)
from tests.shared.simulated import SimulatedRedis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from holysheep.types import ChatRequest, Event, Handler
    from tests.fakes import Task
    from tests.shared.simulated import Process

TEXT = "one two three four"
LATENCY_S = 0.001
EVERYBODYS = [
    ServerError("down", status=503, request_id="req-9"),
    RateLimited("full", status=429, retry_after_s=3.0),
    ConnectFailed("broke"),
    CircuitOpen("open", retry_after_s=7.0),
]
LEADERS_OWN = [LimiterTimeout("no room"), BudgetExceeded("no budget")]


class Stack:
    """The layers of one process before upstream; ``calls`` are those that were made to them."""

    def __init__(self, process: Process, time: VirtualTime, below: Handler, owner: str) -> None:
        self.process = process
        self.time = time
        shelf = MemoryCache(time).shelf(owner)
        self.answers = SharedAnswers(process.link, owner, KEY, shelf, time)
        self.flights = Flights(time)
        layers = [
            StaleCover(self.answers),
            SingleFlightLayer(self.flights, identity_of),
            CacheLayer(self.answers, time),
        ]
        self.handler = stack(layers, below)
        self.calls: list[Call] = []

    def events(self, request: ChatRequest | None = None, **how: Any) -> Iterator[Event]:
        call = a_call(self.time, request, **how)
        self.calls.append(call)
        return self.handler(call)

    def ask(self, request: ChatRequest | None = None, **how: Any) -> str:
        """Read the answer to its end."""
        return text_of(self.events(request, **how))

    def state_of(self, **how: Any) -> str:
        """Read the answer to its end; what the call counts as."""
        events = self.events(**how)
        call = self.calls[-1]
        for _ in events:
            pass
        return call.trace.cache


class Shared:
    """Some processes with one credential over one scripted upstream."""

    def __init__(
        self,
        *behaviours: Any,
        count: int = 4,
        seed: int | None = None,
        latency_s: float = LATENCY_S,
        **how: Any,
    ) -> None:
        self.time = VirtualTime(seed, **how)
        self.redis = SimulatedRedis(self.time, latency_s=latency_s, jitter=seed)
        self.below = ScriptedHandler(self.time, *(behaviours or (answered(TEXT, pause_s=1.0),)))
        self.sources: list[Iterator[Event]] = []
        self.stacks = [self.join() for _ in range(count)]

    def join(self, owner: str = "me") -> Stack:
        """One more process."""
        return Stack(self.redis.process(), self.time, self._below, owner)

    def _below(self, call: Call) -> Iterator[Event]:
        # Held here: nothing may rely on its being collected.
        self.sources.append(self.below(call))
        return self.sources[-1]

    def spawn(self, number: int, *args: Any, after_s: float = 0.0, **how: Any) -> Task:
        """Ask in a process; they take turns."""
        ask = self.stacks[number % len(self.stacks)].ask
        return self.redis.spawn(ask, *args, after_s=after_s, **how)

    def run(self) -> list[Any]:
        """Run all callers; afterwards nothing may be under way any more."""
        outcomes = self.redis.run()
        assert self.below.in_flight == 0
        for each in self.stacks:
            assert len(each.flights) == 0
            assert not each.answers._landings
            assert not each.answers._kept
            assert not each.process.link._leases
        return outcomes

    def one_after_the_other(self, *asks: tuple[int, dict[str, Any]]) -> list[Any]:
        """Ask in these processes, each some time after the one before."""
        for place, (number, how) in enumerate(asks):
            self.spawn(number, after_s=place * 10.0, **how)
        return self.run()

    @property
    def states(self) -> list[str]:
        return [call.trace.cache for each in self.stacks for call in each.calls]


# --- one call for all ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, *range(4)])
def test_fifty_identical_calls_of_four_processes_make_one_upstream_call(seed: int | None) -> None:
    shared = Shared(seed=seed, per_line=0.0 if seed is None else 0.02)
    for number in range(50):
        shared.spawn(number)
    assert shared.run() == [TEXT] * 50
    assert len(shared.below.calls) == 1
    assert Counter(shared.states) == {"miss": 1, "coalesced": 49}


def test_followers_in_other_processes_have_the_answer_as_soon_as_it_has_landed() -> None:
    shared = Shared()
    tasks = [shared.spawn(number) for number in range(4)]
    shared.run()
    for task in tasks:
        assert task.ended_s is not None
        assert task.ended_s - START_S < 5 + 5 * LATENCY_S


def test_those_who_follow_ask_redis_when_the_lease_would_end_and_no_more_often() -> None:
    shared = Shared([20.0, *answered(TEXT)])
    for number in range(4):
        shared.spawn(number)
    shared.run()
    # It lasts three seconds and is renewed each second.
    assert 18 <= shared.redis.ran["renew"] <= 20
    assert shared.redis.ran["lead"] <= 4 + 3 * (20 / 2 + 1)


def test_an_answer_of_one_process_is_a_hit_in_all_others() -> None:
    shared = Shared()
    outcomes = shared.one_after_the_other((0, {}), (1, {}), (2, {}), (0, {}))
    assert outcomes == [TEXT] * 4
    assert len(shared.below.calls) == 1
    assert Counter(shared.states) == {"miss": 1, "hit": 3}


def test_all_get_the_same_completion_with_all_that_belongs_to_it() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    choice = Choice(
        text="{}",
        reasoning="because",
        finish_reason="tool_calls",
        tool_calls=(call,),
        logprobs={"content": []},
    )
    usage = Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=2, reasoning_tokens=3)
    rich = Completion("gpt-4.1", "gpt-4.1-2025", (choice,), usage, request_id="req-1")
    shared = Shared([1.0, Completed(rich)])
    for number in range(4):
        shared.redis.spawn(lambda each=shared.stacks[number]: list(each.events())[-1])
    shared.redis.spawn(lambda: list(shared.stacks[2].events())[-1], after_s=10.0)
    assert shared.run() == [Completed(rich)] * 5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"request": a_request("a")}, {"request": a_request("b")}),
        ({"request": a_request(seed=1)}, {"request": a_request(seed=2)}),
        ({"cache": "use"}, {"cache": "refresh"}),
        ({"fallback_models": ()}, {"fallback_models": ("b",)}),
        ({"cache_partition": "user:a"}, {"cache_partition": "user:b"}),
        ({"answer_schema": {"type": "object"}}, {"answer_schema": {"type": "array"}}),
        ({"cache": "bypass"}, {"cache": "bypass"}),
    ],
    ids=["text", "parameter", "mode", "fallback", "partition", "schema", "bypass"],
)
def test_calls_that_differ_are_not_shared(one: dict[str, Any], other: dict[str, Any]) -> None:
    shared = Shared()
    shared.spawn(0, **one)
    shared.spawn(1, **other)
    shared.run()
    assert len(shared.below.calls) == 2


def test_nothing_is_shared_between_credentials() -> None:
    shared = Shared(answered("of one", pause_s=1.0), answered("of the other", pause_s=1.0), count=1)
    other = shared.join("you")
    shared.spawn(0)
    shared.redis.spawn(other.ask, after_s=0.5)
    shared.redis.spawn(other.ask, after_s=10.0)
    assert shared.run() == ["of one", "of the other", "of the other"]


def test_nothing_is_shared_between_partitions() -> None:
    shared = Shared(answered("one"), answered("two"), answered("three"))
    outcomes = shared.one_after_the_other(
        (0, {"cache_partition": "user:1"}),
        (1, {"cache_partition": "user:2"}),
        (2, {}),
        (3, {"cache_partition": "user:1"}),
    )
    assert outcomes == ["one", "two", "three", "one"]


@pytest.mark.parametrize(("age_s", "calls"), [(299.0, 1), (301.0, 2)])
def test_an_answer_is_given_again_until_its_time_to_live_is_over(age_s: float, calls: int) -> None:
    shared = Shared(answered("a"))
    shared.spawn(0, cache_ttl_s=300)
    shared.spawn(1, cache_ttl_s=300, after_s=age_s)
    shared.run()
    assert len(shared.below.calls) == calls


def test_a_reader_is_given_nothing_older_than_it_wants() -> None:
    shared = Shared(answered("a"))
    shared.spawn(0, cache_ttl_s=1000)
    shared.spawn(1, cache_ttl_s=10, after_s=20.0)
    shared.run()
    assert len(shared.below.calls) == 2


def test_refresh_calls_and_then_stores() -> None:
    shared = Shared(answered("old"), answered("new"))
    outcomes = shared.one_after_the_other((0, {}), (1, {"cache": "refresh"}), (2, {}), (0, {}))
    assert outcomes == ["old", "new", "new", "new"]


def test_a_refresh_is_not_given_the_answer_of_a_flight_that_was_over() -> None:
    shared = Shared(answered("old"), answered("new"), latency_s=0.1)

    def twice() -> list[str]:
        return [shared.stacks[0].ask(cache="refresh") for _ in range(2)]

    shared.redis.spawn(twice)
    assert shared.run() == [["old", "new"]]


@pytest.mark.parametrize("latency_s", [LATENCY_S, 0.1])
def test_what_has_just_landed_is_a_hit_in_its_process_before_redis_has_it(latency_s: float) -> None:
    shared = Shared(answered("a"), latency_s=latency_s)

    def again_and_again() -> list[str]:
        return [shared.stacks[0].state_of() for _ in range(5)]

    shared.redis.spawn(again_and_again)
    assert shared.run() == [["miss", "hit", "hit", "hit", "hit"]]
    assert len(shared.below.calls) == 1


def test_what_has_just_landed_is_a_hit_for_a_call_that_would_go_about_it_otherwise_too() -> None:
    shared = Shared(answered("a"), latency_s=0.2)

    def again_otherwise() -> list[str]:
        return [shared.stacks[0].state_of(max_retries=number) for number in range(3)]

    shared.redis.spawn(again_otherwise)
    assert shared.run() == [["miss", "hit", "hit"]]


@pytest.mark.parametrize(
    "behaviour",
    [
        ServerError("down"),
        BROKEN_OFF,
        [Completed(Completion("gpt-4.1", "gpt-4.1", (Choice(text=""),), Usage()))],
        [
            Completed(
                Completion(
                    "gpt-4.1", "gpt-4.1", (Choice("no", finish_reason="content_filter"),), Usage()
                )
            )
        ],
    ],
    ids=["error", "broken stream", "empty answer", "filtered answer"],
)
def test_only_complete_successful_answers_are_kept(behaviour: Any) -> None:
    shared = Shared(behaviour, answered("good"))
    assert shared.one_after_the_other((0, {}), (1, {}), (2, {}))[1:] == ["good", "good"]


def test_an_answer_that_is_not_kept_is_still_that_of_those_who_follow() -> None:
    filtered = Choice(text="no", finish_reason="content_filter")
    completion = Completion("gpt-4.1", "gpt-4.1", (filtered,), Usage())
    shared = Shared([1.0, Delta("no"), Completed(completion)], answered("good"))
    for number in range(3):
        shared.spawn(number)
    shared.spawn(3, after_s=5.0)
    assert shared.run() == ["no", "no", "no", "good"]


def test_the_answer_of_a_fallback_model_is_kept_for_that_model_alone() -> None:
    fallback = answered("from b", pause_s=1.0, model="b", fallback_from="gpt-4.1")
    shared = Shared(fallback, answered("from gpt"))
    shared.spawn(0)
    shared.spawn(1)
    shared.spawn(2, after_s=5.0)
    shared.spawn(3, request=a_request().with_model("b"), after_s=10.0)
    assert shared.run() == ["from b", "from b", "from gpt", "from b"]


def test_an_answer_that_is_too_large_for_redis_is_kept_by_its_process_for_when_it_is_away() -> None:
    dice = random.Random(0)
    large = "".join(chr(dice.randrange(0x4E00, 0x9FFF)) for _ in range(900_000))
    shared = Shared([Delta(large), Completed(a_completion(large))], count=2)
    shared.spawn(0)
    shared.spawn(1, after_s=5.0)
    shared.redis.spawn(shared.redis.go_away, refuses=True, after_s=10.0)
    shared.spawn(0, after_s=11.0)
    assert [len(text or "") for text in shared.run()] == [900_000, 900_000, 0, 900_000]
    assert len(shared.below.calls) == 2
    assert shared.redis.keys("*answer*") == []


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", EVERYBODYS, ids=class_name)
def test_a_failure_of_upstream_is_that_of_all_who_follow(error: HolySheepError) -> None:
    shared = Shared([1.0, error])
    for number in range(8):
        shared.spawn(number)
    for outcome in shared.run():
        assert type(outcome) is type(error)
        assert (outcome.message, outcome.status, outcome.retry_after_s, outcome.request_id) == (
            error.message,
            error.status,
            error.retry_after_s,
            error.request_id,
        )
    assert len(shared.below.calls) == 1


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("error", LEADERS_OWN, ids=class_name)
def test_a_failure_of_the_leader_alone_makes_the_next_one_start_anew(
    error: HolySheepError, seed: int | None
) -> None:
    shared = Shared([1.0, error], answered(TEXT, pause_s=1.0), seed=seed)
    shared.spawn(0)
    followers = [shared.spawn(1 + number % 3, after_s=0.5) for number in range(9)]
    leader, *texts = shared.run()
    assert type(leader) is type(error)
    assert texts == [TEXT] * 9
    assert len(shared.below.calls) == 2
    for task in followers:
        assert task.ended_s == pytest.approx(START_S + 6, abs=0.02)


def test_a_failure_is_not_that_of_those_who_come_later() -> None:
    shared = Shared([1.0, ServerError("down")], answered("good"))
    outcomes = shared.one_after_the_other((0, {}), (1, {}))
    assert isinstance(outcomes[0], ServerError)
    assert outcomes[1] == "good"


def test_a_failure_that_others_hear_of_does_not_hold_the_key() -> None:
    shared = Shared([1.0, ServerError(f"refused {KEY} for it")])
    shared.spawn(0)
    shared.spawn(1)
    _, follower = shared.run()
    assert "refused [redacted] for it" in follower.message
    stored = b"".join(shared.redis.data.get(key) or b"" for key in shared.redis.keys("*landed*"))
    assert stored
    assert KEY[:12].encode() not in stored


def test_a_bug_below_hangs_nobody() -> None:
    shared = Shared([1.0, ZeroDivisionError("bug")], answered(TEXT))
    shared.spawn(0)
    for number in range(1, 4):
        shared.spawn(number, after_s=0.5)
    outcomes = shared.run()
    assert isinstance(outcomes[0], ZeroDivisionError)
    assert outcomes[1:] == [TEXT] * 3


# --- leaving and dying --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("at_s", [0.5, 1.5])
def test_a_leader_that_is_interrupted_leaves_the_lead_to_the_next_at_once(
    at_s: float, seed: int
) -> None:
    shared = Shared(seed=seed)
    leader = shared.spawn(0)
    followers = [shared.spawn(number, after_s=0.1) for number in range(1, 4)]
    shared.redis.kill(leader, after_s=at_s)
    killed, *texts, _ = shared.run()
    assert isinstance(killed, Killed)
    assert texts == [TEXT] * 3
    assert len(shared.below.calls) == 2
    for task in followers:
        assert task.ended_s == pytest.approx(START_S + at_s + 5, abs=0.03)


def test_a_leader_whose_process_has_died_is_replaced_when_its_lease_ends() -> None:
    shared = Shared([10.0, *answered(TEXT)], answered(TEXT))
    leader = shared.spawn(0)
    followers = [shared.spawn(number, after_s=0.1) for number in range(1, 4)]
    shared.redis.spawn(shared.stacks[0].process.die, leader, after_s=5.5)
    killed, *texts, _ = shared.redis.run()
    assert isinstance(killed, Killed)
    assert texts == [TEXT] * 3
    assert len(shared.below.calls) == 2
    for task in followers:
        assert task.ended_s is not None
        # It was renewed at 5 s for the last time.
        assert task.ended_s - START_S == pytest.approx(5 + config.LEASE_S, abs=0.1)


def test_a_leader_that_takes_long_keeps_the_lead() -> None:
    shared = Shared([50.0, *answered(TEXT)])
    for number in range(4):
        shared.spawn(number)
    assert shared.run() == [TEXT] * 4
    assert len(shared.below.calls) == 1


def test_a_leader_that_was_cut_off_and_replaced_does_not_end_the_flight_of_the_next() -> None:
    shared = Shared([10.0, *answered("first")], [10.0, *answered("second")])
    lost = shared.stacks[0].process.server
    shared.spawn(0)
    shared.spawn(1, after_s=0.5)
    shared.spawn(2, after_s=9.0)

    def cut_off(is_cut: bool) -> None:
        lost.is_cut = is_cut

    shared.redis.spawn(cut_off, True, after_s=1.5)
    shared.redis.spawn(cut_off, False, after_s=8.0)
    first, second, third, *_ = shared.run()
    assert first == "first"
    assert second in {"first", "second"}
    assert third in {"first", "second"}
    assert len(shared.below.calls) == 2


def test_a_follower_waits_no_longer_than_its_own_deadline() -> None:
    shared = Shared([30.0, *answered(TEXT)])
    shared.spawn(0)
    follower = shared.spawn(1, timeout_s=10.0)
    outcomes = shared.run()
    assert outcomes[0] == TEXT
    assert isinstance(outcomes[1], SharedAnswerLate)
    assert "another process" in outcomes[1].message
    assert follower.ended_s == pytest.approx(START_S + 10, abs=0.01)


def test_the_deadline_of_the_leader_is_not_that_of_a_more_patient_follower() -> None:
    late = ServerError("cut at the deadline")
    shared = Shared([5.0, late], answered(TEXT, pause_s=1.0))
    shared.spawn(0, timeout_s=5.0)
    shared.spawn(1, timeout_s=60.0, after_s=1.0)
    leader, follower = shared.run()
    assert isinstance(leader, ServerError)
    assert follower == TEXT


# --- damage, and age ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"", b"{", b'{"version":2}', b"\x78\x01\xff", b"[1]", b"{}"])
def test_a_damaged_answer_is_as_good_as_none(value: bytes) -> None:
    shared = Shared(answered("first"), answered("second"), answered("third"))

    def damage() -> None:
        for key in shared.redis.keys("*answer*"):
            shared.redis.data.hset(key, "value", value)

    shared.spawn(0)
    shared.redis.spawn(damage, after_s=5.0)
    shared.spawn(1, after_s=10.0)
    shared.spawn(2, after_s=15.0)
    first, _, second, third = shared.run()
    assert (first, second, third) == ("first", "second", "second")


def test_a_damaged_landing_is_as_good_as_none() -> None:
    shared = Shared(answered("first", pause_s=2.0), answered("second"), latency_s=0.2)
    shared.stacks[0].answers._encoded = lambda _: b"{nothing"  # type: ignore[method-assign]
    shared.spawn(0)
    shared.spawn(1, after_s=0.5)
    assert shared.run() == ["first", "second"]


@pytest.mark.parametrize("error", [ServerError(""), ConnectFailed("")], ids=class_name)
def test_an_expired_answer_covers_an_outage_in_another_process(error: HolySheepError) -> None:
    shared = Shared(answered("old"), error)
    shared.spawn(0, cache_ttl_s=10)
    shared.spawn(1, cache_ttl_s=10, serve_stale=True, after_s=1000.0)
    assert shared.run() == ["old", "old"]
    assert shared.states == ["miss", "stale"]


def test_those_who_follow_a_failed_call_are_covered_too() -> None:
    shared = Shared(answered("old"), [1.0, ServerError("")])
    shared.spawn(0, cache_ttl_s=10)
    for number in range(4):
        shared.spawn(number, cache_ttl_s=10, serve_stale=True, after_s=1000.0)
    assert shared.run() == ["old"] * 5
    assert len(shared.below.calls) == 2


def test_an_answer_is_kept_for_an_hour_after_it_has_expired_and_no_longer() -> None:
    shared = Shared(answered("old"))
    shared.spawn(0, cache_ttl_s=10)
    shared.run()
    shared.time.sleep(config.REDIS_STALE_S)
    assert len(shared.redis.keys()) == 1
    shared.time.sleep(20.0)
    assert shared.redis.keys() == []


# --- away ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("refuses", [True, False], ids=["refuses", "silent"])
def test_who_follows_goes_on_alone_when_redis_goes_away(refuses: bool) -> None:
    shared = Shared([20.0, *answered(TEXT)])
    leader = shared.spawn(0)
    followers = [shared.spawn(number) for number in range(1, 4)]
    shared.redis.spawn(shared.redis.go_away, refuses=refuses, after_s=1.0)
    assert shared.run()[:4] == [TEXT] * 4
    assert len(shared.below.calls) == 4
    assert leader.ended_s == pytest.approx(START_S + 20)
    for task in followers:
        assert task.ended_s is not None
        # They notice at the end of the lease.
        assert task.ended_s - START_S <= 20 + config.LEASE_S + 1


def test_while_redis_is_away_each_process_has_a_cache_of_its_own() -> None:
    shared = Shared(answered("a"), count=2)
    shared.redis.go_away(refuses=True)
    for number, after_s in ((0, 0.1), (0, 1.0), (1, 2.0), (1, 3.0)):
        shared.spawn(number, after_s=after_s)
    assert shared.run() == ["a"] * 4
    assert len(shared.below.calls) == 2


def test_what_a_process_has_landed_in_redis_it_has_itself_when_that_is_away() -> None:
    shared = Shared(answered("a"), count=2)
    shared.spawn(0)
    shared.redis.spawn(shared.redis.go_away, refuses=True, after_s=5.0)
    shared.spawn(0, after_s=6.0)
    shared.run()
    assert len(shared.below.calls) == 1


def test_what_a_leader_lands_while_redis_is_away_is_there_for_all_when_it_is_back() -> None:
    shared = Shared([3.0, *answered("a")], count=2)
    shared.spawn(0)
    shared.redis.spawn(shared.redis.go_away, refuses=True, after_s=1.0)
    shared.redis.spawn(shared.redis.come_back, after_s=8.0)
    shared.spawn(1, after_s=20.0)
    assert shared.run()[-1] == "a"
    assert len(shared.below.calls) == 1


@pytest.mark.parametrize("seed", range(8))
def test_no_interleaving_of_failing_dying_and_going_away_hangs_anybody(seed: int) -> None:
    dice = random.Random(seed)
    behaviours = [
        dice.choice(
            [
                answered(TEXT, pause_s=0.5),
                [1.0, ServerError("down")],
                [1.0, LimiterTimeout("no room")],
                [0.5, ZeroDivisionError("bug")],
                [8.0, *answered(TEXT)],
            ]
        )
        for _ in range(8)
    ]
    shared = Shared(*behaviours, answered(TEXT, pause_s=0.5), seed=seed, per_line=0.05)
    callers = [
        shared.spawn(number, a_request(dice.choice("ab")), cache_ttl_s=2, after_s=dice.random() * 9)
        for number in range(30)
    ]
    for victim in dice.sample(callers, 5):
        shared.redis.kill(victim, after_s=dice.random() * 12)
    dead = callers[0::4]
    shared.redis.spawn(shared.stacks[0].process.die, *dead, after_s=4.0)
    if seed % 2:
        shared.redis.spawn(shared.redis.go_away, refuses=seed % 4 == 1, after_s=5.0)
        shared.redis.spawn(shared.redis.come_back, after_s=7.0)
    outcomes = shared.redis.run()[: len(callers)]
    for outcome in outcomes:
        assert isinstance(outcome, str | HolySheepError | ZeroDivisionError | Killed)
        assert not isinstance(outcome, str) or outcome == TEXT
    assert kinds(outcomes)["str"] > 5
    for each in shared.stacks[1:]:
        assert len(each.flights) == 0
        assert not each.answers._landings


def test_keys_and_news_say_nothing_of_what_was_asked() -> None:
    shared = Shared(answered("a"))
    shared.spawn(0, a_request("my question"))
    shared.run()
    names = " ".join(shared.redis.keys())
    assert key_of(a_call(shared.time, a_request("my question"))).hex() in names
    assert "question" not in names
    assert KEY not in names
