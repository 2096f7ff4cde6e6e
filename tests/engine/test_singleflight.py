"""One upstream call for identical concurrent ones; and nobody hangs, whoever leaves or fails."""

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from holysheep.cache import identity_of
from holysheep.errors import (
    BudgetExceeded,
    CircuitOpen,
    ConnectFailed,
    DeadlineExceeded,
    HolySheepError,
    LimitBeyondDeadline,
    LimiterTimeout,
    RateLimited,
    ServerError,
    TimedOut,
)
from holysheep.singleflight import Flights, SingleFlightLayer
from holysheep.types import CacheState, Call, ChatRequest, Completed, Delta, Event, Handler
from tests.fakes import (
    START_S,
    Killed,
    ScriptedHandler,
    Timeline,
    VirtualTime,
    a_call,
    a_request,
    answered,
    kinds,
    text_of,
)

TEXT = "one two three four"
LEADERS_OWN = [
    LimiterTimeout("no room"),
    LimitBeyondDeadline("resets too late", status=429),
    DeadlineExceeded("too late"),
    BudgetExceeded("no budget"),
]
EVERYBODYS = [
    ServerError("down", status=503, request_id="req-9"),
    RateLimited("full", status=429, retry_after_s=3.0),
    ConnectFailed("broke"),
    CircuitOpen("open", retry_after_s=7.0),
]


def name_of(value: object) -> str:
    return type(value).__name__


class Shared:
    """A single-flight layer on a timeline, over a scripted handler."""

    def __init__(self, *behaviours: Any, seed: int | None = None, per_line: float = 0.0) -> None:
        self.time = VirtualTime(seed, per_line=per_line)
        self.flights = Flights(self.time)
        self.layer = SingleFlightLayer(self.flights, identity_of)
        self.below = ScriptedHandler(self.time, *(behaviours or (answered(TEXT, pause_s=1.0),)))
        self.calls: list[Call] = []
        self.sources: list[Iterator[Event]] = []
        """What is below, held here: nothing may rely on its being collected."""

    def _below(self, call: Call) -> Iterator[Event]:
        source = self.below(call)
        self.sources.append(source)
        return source

    def ask(
        self, request: ChatRequest | None = None, *, timeout_s: float = 60.0, **policy: Any
    ) -> str:
        """Read the answer to its end."""
        return text_of(self.events(request, timeout_s=timeout_s, **policy))

    def events(
        self,
        request: ChatRequest | None = None,
        *,
        timeout_s: float = 60.0,
        below: Handler | None = None,
        **policy: Any,
    ) -> Iterator[Event]:
        call = a_call(self.time, request, timeout_s=timeout_s, **policy)
        self.calls.append(call)
        return self.layer(call, below or self._below)

    def state_at_the_end(
        self, *, planned: CacheState = "miss", patience_s: float = 1e9, pause_s: float = 0.0
    ) -> str:
        """Read the answer to its end; what its call counts as then.

        ``planned`` is what it counts as if nobody shares it. A reader leaves when its patience is
        at an end, and reads for ``pause_s`` at each event.
        """
        events = self.events(timeout_s=1e6)
        call = self.calls[-1]
        call.trace.cache = planned
        until_s = self.time.monotonic() + patience_s
        try:
            for event in events:
                if isinstance(event, Completed):
                    continue
                self.time.sleep(pause_s)
                if self.time.monotonic() >= until_s:
                    return "left"
        finally:
            events.close()  # type: ignore[attr-defined]
        return call.trace.cache

    def leave_after(self, seconds: float) -> str:
        """Read what comes within ``seconds``, then go."""
        until_s = self.time.monotonic() + seconds
        events = self.events()
        text = ""
        for event in events:
            text += event.text if isinstance(event, Delta) else ""
            if self.time.monotonic() >= until_s:
                break
        events.close()  # type: ignore[attr-defined]
        return text

    def run(self) -> list[Any]:
        """Run all callers; afterwards nothing may be under way any more."""
        outcomes = self.time.run()
        assert len(self.flights) == 0
        assert self.below.in_flight == 0
        return outcomes


@pytest.mark.parametrize("seed", range(4))
def test_fifty_identical_calls_make_one_upstream_call(seed: int) -> None:
    shared = Shared(seed=seed, per_line=0.02)
    for _ in range(50):
        shared.time.spawn(shared.ask)
    assert shared.run() == [TEXT] * 50
    assert len(shared.below.calls) == 1


def test_followers_see_each_piece_as_it_arrives() -> None:
    shared = Shared()

    def reader() -> list[tuple[float, str]]:
        return [
            (shared.time.monotonic() - START_S, event.text)
            for event in shared.events()
            if isinstance(event, Delta)
        ]

    for _ in range(3):
        shared.time.spawn(reader)
    expected = [(1.0, "one"), (2.0, " two"), (3.0, " three"), (4.0, " four")]
    assert shared.run() == [expected] * 3


def test_a_late_follower_gets_what_came_before_it_joined_at_once() -> None:
    shared = Shared()
    shared.time.spawn(shared.ask)

    def late() -> tuple[str, float]:
        events = shared.events()
        return text_of([next(events), next(events)]), shared.time.monotonic() - START_S

    shared.time.spawn(late, after_s=2.5)
    assert shared.run()[1] == ("one two", 2.5)
    assert len(shared.below.calls) == 1


def test_a_caller_that_comes_after_the_end_starts_its_own_call() -> None:
    shared = Shared()
    shared.time.spawn(shared.ask)
    shared.time.spawn(shared.ask, after_s=10.0)
    shared.run()
    assert len(shared.below.calls) == 2


def test_all_get_the_same_completion_with_usage_and_reasoning() -> None:
    shared = Shared()
    for _ in range(3):
        shared.time.spawn(lambda: list(shared.events())[-1])
    completions = shared.run()
    assert isinstance(completions[0], Completed)
    assert completions[1] == completions[2] == completions[0]


def test_the_leader_is_a_miss_and_its_followers_are_coalesced() -> None:
    shared = Shared()
    for _ in range(3):
        shared.time.spawn(shared.ask)
    shared.run()
    assert [call.trace.cache for call in shared.calls] == ["miss", "coalesced", "coalesced"]
    assert [call.trace.attempts for call in shared.calls] == [1, 0, 0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"request": a_request("a")}, {"request": a_request("b")}),
        ({"request": a_request(seed=1)}, {"request": a_request(seed=2)}),
        ({"cache": "use"}, {"cache": "refresh"}),
        ({"fallback_models": ()}, {"fallback_models": ("b",)}),
        ({"max_retries": 0}, {"max_retries": 3}),
        ({"cache_partition": "user:a"}, {"cache_partition": "user:b"}),
        ({"answer_schema": {"type": "object"}}, {"answer_schema": {"type": "array"}}),
        ({"cache": "bypass"}, {"cache": "bypass"}),
    ],
    ids=["text", "parameter", "mode", "fallback", "retries", "partition", "schema", "bypass"],
)
def test_calls_that_differ_are_not_shared(one: dict[str, Any], other: dict[str, Any]) -> None:
    shared = Shared()
    shared.time.spawn(shared.ask, **one)
    shared.time.spawn(shared.ask, **other)
    shared.run()
    assert len(shared.below.calls) == 2


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", EVERYBODYS, ids=name_of)
def test_a_failure_of_upstream_is_everybodys(error: HolySheepError) -> None:
    shared = Shared([1.0, error])
    for _ in range(10):
        shared.time.spawn(shared.ask)
    outcomes = shared.run()
    assert len(shared.below.calls) == 1
    for outcome in outcomes:
        assert type(outcome) is type(error)
        assert (outcome.message, outcome.status, outcome.retry_after_s, outcome.request_id) == (
            error.message,
            error.status,
            error.retry_after_s,
            error.request_id,
        )


def test_each_caller_gets_an_error_object_of_its_own() -> None:
    shared = Shared([1.0, ServerError("down")])
    for _ in range(5):
        shared.time.spawn(shared.ask)
    assert len({id(outcome) for outcome in shared.run()}) == 5


def test_a_failure_in_mid_stream_reaches_all_after_what_came_before_it() -> None:
    shared = Shared([1.0, Delta("one"), 1.0, ConnectFailed("broke")])

    def reader() -> tuple[str, str]:
        text = ""
        try:
            for event in shared.events():
                text += text_of([event])
        except ConnectFailed as error:
            return text, error.message
        return text, ""

    for _ in range(5):
        shared.time.spawn(reader)
    assert shared.run() == [("one", "broke")] * 5


@pytest.mark.parametrize("seed", [None, *range(4)])
@pytest.mark.parametrize("error", LEADERS_OWN, ids=name_of)
def test_a_failure_of_the_leader_alone_makes_the_next_one_start_anew(
    error: HolySheepError, seed: int | None
) -> None:
    shared = Shared([1.0, error], answered(TEXT, pause_s=1.0), seed=seed)
    shared.time.spawn(shared.ask)
    for _ in range(9):
        shared.time.spawn(shared.ask, after_s=0.5)
    leader, *followers = shared.run()
    assert type(leader) is type(error)
    assert followers == [TEXT] * 9
    assert len(shared.below.calls) == 2


def at_deadline(call: Call) -> list[Timeline]:
    """A gateway that never answers: the wire gives up at the deadline of the call."""
    return [call.deadline_s - START_S, TimedOut("No complete answer before the deadline.")]


@pytest.mark.parametrize("seed", [None, *range(4)])
def test_the_deadline_of_the_leader_is_not_that_of_a_more_patient_follower(
    seed: int | None,
) -> None:
    shared = Shared(at_deadline, answered(TEXT, pause_s=1.0), seed=seed)
    shared.time.spawn(shared.ask, timeout_s=5.0)
    shared.time.spawn(shared.ask, timeout_s=60.0, after_s=1.0)
    leader, follower = shared.run()
    assert isinstance(leader, TimedOut)
    assert follower == TEXT


def test_a_follower_that_has_passed_a_part_on_is_told_that_the_rest_is_lost() -> None:
    shared = Shared([1.0, Delta("one"), 1.0, LimiterTimeout("no room")], answered(TEXT))
    shared.time.spawn(shared.ask)
    shared.time.spawn(shared.ask)
    leader, follower = shared.run()
    assert isinstance(leader, LimiterTimeout)
    assert isinstance(follower, ConnectFailed)
    assert "identical call" in follower.message


def test_a_bug_below_hangs_nobody_and_reaches_everybody() -> None:
    shared = Shared([1.0, ZeroDivisionError("bug")])
    for _ in range(5):
        shared.time.spawn(shared.ask)
    assert kinds(shared.run()) == {"ZeroDivisionError": 5}


# --- leaving ------------------------------------------------------------------------------------


def test_when_the_leader_leaves_in_mid_stream_the_same_answer_goes_on() -> None:
    shared = Shared()
    shared.time.spawn(shared.leave_after, 2.0)
    for _ in range(3):
        shared.time.spawn(shared.ask)
    assert shared.run() == ["one two", TEXT, TEXT, TEXT]
    assert len(shared.below.calls) == 1


def test_leaders_may_leave_one_after_the_other() -> None:
    shared = Shared()
    for seconds in (1.0, 2.0, 3.0):
        shared.time.spawn(shared.leave_after, seconds)
    shared.time.spawn(shared.ask)
    assert shared.run() == ["one", "one two", "one two three", TEXT]
    assert len(shared.below.calls) == 1


def test_when_all_leave_upstream_is_hung_up_on() -> None:
    shared = Shared()
    for _ in range(3):
        shared.time.spawn(shared.leave_after, 2.0)
    shared.run()
    assert shared.below.outcomes == ["abandoned"]
    assert shared.time.monotonic() == START_S + 2


def test_a_follower_that_leaves_disturbs_nobody() -> None:
    shared = Shared()
    shared.time.spawn(shared.ask)
    shared.time.spawn(shared.leave_after, 1.0)
    shared.time.spawn(shared.ask)
    assert shared.run() == [TEXT, "one", TEXT]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("at_s", [0.5, 1.0, 2.5])
def test_a_leader_that_is_killed_hangs_nobody(at_s: float, seed: int) -> None:
    shared = Shared(seed=seed)
    leader = shared.time.spawn(shared.ask)
    for _ in range(5):
        shared.time.spawn(shared.ask, after_s=0.1)
    shared.time.spawn(shared.time.throw, leader, Killed(), after_s=at_s)
    killed, *followers, _ = shared.run()
    assert isinstance(killed, Killed)
    for follower in followers:
        assert follower == TEXT or isinstance(follower, ConnectFailed)
    if at_s < 1:
        assert followers == [TEXT] * 5
        assert len(shared.below.calls) == 2


def test_a_follower_waits_no_longer_than_its_own_deadline() -> None:
    shared = Shared([30.0, *answered(TEXT)])
    shared.time.spawn(shared.ask)
    follower = shared.time.spawn(shared.ask, timeout_s=10.0)
    outcomes = shared.run()
    assert outcomes[0] == TEXT
    assert isinstance(outcomes[1], DeadlineExceeded)
    assert follower.ended_s == START_S + 10


def test_a_leader_that_reads_slowly_does_not_hold_up_the_others() -> None:
    shared = Shared()

    def slow_reader() -> str:
        text = ""
        for event in shared.events(timeout_s=1000.0):
            text += text_of([event])
            shared.time.sleep(100.0)
        return text

    shared.time.spawn(slow_reader)
    follower = shared.time.spawn(shared.ask, timeout_s=1000.0)
    assert shared.run() == [TEXT, TEXT]
    assert follower.ended_s == START_S + 5


def test_a_newcomer_may_join_an_answer_that_has_just_ended() -> None:
    shared = Shared(answered(TEXT))

    def slow_reader() -> str:
        text = ""
        for event in shared.events():
            shared.time.sleep(1.0)
            text += text_of([event])
        return text

    shared.time.spawn(slow_reader)
    shared.time.spawn(shared.ask, after_s=4.5)
    assert shared.run() == [TEXT, TEXT]
    assert len(shared.below.calls) == 1


# --- who counts as having called ----------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, *range(4)])
@pytest.mark.parametrize("patience_s", [1.0, 2.5, 4.0])
@pytest.mark.parametrize("planned", ["miss", "refresh"])
def test_when_the_leader_leaves_exactly_one_other_counts_as_having_called(
    planned: CacheState, patience_s: float, seed: int | None
) -> None:
    shared = Shared(seed=seed)
    shared.time.spawn(shared.state_at_the_end, planned=planned, patience_s=patience_s)
    for _ in range(9):
        shared.time.spawn(shared.state_at_the_end, planned=planned, after_s=0.5)
    assert Counter(shared.run()) == {"left": 1, planned: 1, "coalesced": 8}
    assert len(shared.below.calls) == 1


def test_of_those_that_leave_one_after_the_other_the_last_counts_as_having_called() -> None:
    shared = Shared()
    for seconds in (1.0, 2.0, 3.0):
        shared.time.spawn(shared.state_at_the_end, patience_s=seconds)
    shared.time.spawn(shared.state_at_the_end)
    assert shared.run() == ["left", "left", "left", "miss"]


def test_a_leader_that_reads_slowly_and_to_the_end_counts_as_having_called() -> None:
    shared = Shared()
    shared.time.spawn(shared.state_at_the_end, pause_s=100.0)
    for _ in range(3):
        shared.time.spawn(shared.state_at_the_end)
    assert shared.run() == ["miss", "coalesced", "coalesced", "coalesced"]


def test_when_others_leave_it_is_the_leader_that_counts_as_having_called() -> None:
    shared = Shared()
    shared.time.spawn(shared.state_at_the_end)
    for seconds in (1.0, 3.0):
        shared.time.spawn(shared.state_at_the_end, patience_s=seconds)
    assert shared.run() == ["miss", "left", "left"]


def test_one_that_joins_when_the_leader_has_left_may_be_the_one_that_counts() -> None:
    shared = Shared()
    shared.time.spawn(shared.state_at_the_end, patience_s=2.0)
    shared.time.spawn(shared.state_at_the_end, patience_s=3.0)
    shared.time.spawn(shared.state_at_the_end, after_s=2.5)
    assert shared.run() == ["left", "left", "miss"]
    assert len(shared.below.calls) == 1


@pytest.mark.parametrize("seed", range(12))
def test_in_all_interleavings_one_counts_as_having_called_for_each_answer(seed: int) -> None:
    dice = random.Random(seed)
    shared = Shared(answered(TEXT, pause_s=0.5), seed=seed, per_line=0.05)
    for _ in range(12):
        shared.time.spawn(
            shared.state_at_the_end,
            patience_s=dice.choice([0.5, 1.5, 1e9, 1e9]),
            pause_s=dice.choice([0.0, 0.0, 0.2]),
            after_s=dice.random() * 6,
        )
    states = Counter(shared.run())
    assert states["miss"] == shared.below.outcomes.count("answered") > 0
    assert states.keys() <= {"miss", "coalesced", "left"}


@pytest.mark.parametrize("seed", range(12))
def test_no_interleaving_of_joining_leaving_failing_and_killing_hangs_anybody(seed: int) -> None:
    dice = random.Random(seed)
    behaviours = [
        dice.choice(
            [
                answered(TEXT, pause_s=0.5),
                [1.0, ServerError("down")],
                [1.0, LimiterTimeout("no room")],
                [0.5, Delta("one"), 1.0, ConnectFailed("broke")],
                [0.5, ZeroDivisionError("bug")],
            ]
        )
        for _ in range(6)
    ]
    shared = Shared(*behaviours, answered(TEXT, pause_s=0.5), seed=seed, per_line=0.1)
    callers = [
        shared.time.spawn(
            dice.choice([shared.ask, lambda: shared.leave_after(1.0)]), after_s=dice.random() * 4
        )
        for _ in range(25)
    ]
    for victim in dice.sample(callers, 6):
        shared.time.spawn(shared.time.throw, victim, Killed(), after_s=dice.random() * 6)
    outcomes = shared.run()[: len(callers)]
    for outcome in outcomes:
        assert isinstance(outcome, str | HolySheepError | ZeroDivisionError | Killed)
        assert not isinstance(outcome, str) or TEXT.startswith(outcome)


def test_a_call_whose_time_is_over_before_it_begins_is_late_by_itself_alone() -> None:
    shared = Shared()
    events = shared.events(timeout_s=1.0)

    def read_late() -> str:
        shared.time.sleep(2.0)
        return text_of(events)

    task = shared.time.spawn(read_late)
    shared.time.run()
    assert type(task.outcome) is DeadlineExceeded
    assert "before the request was sent" in str(task.outcome)
    assert not shared.below.calls
