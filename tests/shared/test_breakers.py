"""Breakers in Redis: all processes see a model fail, and one call of all finds out that it is back.

What the breaker of one process promises holds for several together.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holysheep import config
from holysheep.breaker import BreakerLayer, BreakerRecheck, CircuitBreaker, OwnBreakers
from holysheep.engine import stack
from holysheep.errors import CircuitOpen, ConnectFailed
from holysheep.shared.breakers import SharedBreakers
from tests.fakes import (
    START_S,
    Killed,
    ScriptedHandler,
    VirtualTime,
    a_call,
    answered,
    kinds,
    text_of,
)
from tests.shared.simulated import SimulatedRedis

if TYPE_CHECKING:
    from collections.abc import Callable

    from holysheep.breaker import Breaker, Verdict
    from tests.fakes import Task

LATENCY_S = 0.001
URL, MODEL = "https://one/v1", "a"


class Shared:
    """The breakers of some processes that use one base URL and model."""

    def __init__(
        self, count: int = 4, *, seed: int | None = None, latency_s: float = LATENCY_S, **how: Any
    ) -> None:
        self.time = VirtualTime(seed, **how)
        self.redis = SimulatedRedis(self.time, latency_s=latency_s, jitter=seed)
        self.all = [
            SharedBreakers(self.redis.process().link, OwnBreakers(self.time), self.time)
            for _ in range(count)
        ]

    def of(self, number: int, model: str = MODEL) -> Breaker:
        """The breaker as a process sees it; they take turns."""
        return self.all[number % len(self.all)].get(URL, model)

    def report(self, number: int, verdict: Verdict) -> None:
        """A call that ends so at once."""
        breaker = self.of(number)
        breaker.report(breaker.admit(), verdict)

    def fail(self, times: int = config.BREAKER_FAILURES, *, pause_s: float = 0.0) -> None:
        """As many calls that fail, in all processes in turn."""
        for number in range(times):
            self.report(number, "failure")
            self.time.sleep(pause_s)

    def states(self) -> list[str | None]:
        return [each.states(URL).get(MODEL) for each in self.all]

    def do(self, *steps: Callable[[], Any], timeout_s: float = 0.0) -> list[Any]:
        """What one caller finds by these steps."""
        self.redis.spawn(lambda: [step() for step in steps])
        (found, *_) = self.redis.run()
        if isinstance(found, BaseException):
            raise found
        return list(found)

    def is_let_through(self, number: int) -> bool:
        """Whether a call would go on, whatever becomes of it."""
        try:
            self.report(number, "none")
        except CircuitOpen:
            return False
        return True


# --- opening ------------------------------------------------------------------------------------


def test_five_failures_in_a_row_in_all_processes_open_it_for_all() -> None:
    shared = Shared()

    def caller() -> list[Any]:
        shared.fail(4)
        before = [shared.is_let_through(number) for number in range(4)]
        shared.report(2, "failure")
        shared.time.sleep(0.1)
        return [before, shared.states(), [shared.is_let_through(number) for number in range(4)]]

    (found,) = shared.do(caller)
    assert found == [[True] * 4, ["open"] * 4, [False] * 4]


@pytest.mark.parametrize("teller", range(4))
def test_a_success_anywhere_starts_the_count_anew(teller: int) -> None:
    shared = Shared()

    def caller() -> list[str | None]:
        shared.fail(4, pause_s=0.1)
        shared.report(teller, "success")
        shared.time.sleep(0.1)
        shared.fail(4, pause_s=0.1)
        return shared.states()

    assert shared.do(caller) == [["closed"] * 4]


def test_a_call_without_a_verdict_changes_no_count() -> None:
    shared = Shared()

    def caller() -> list[str | None]:
        shared.fail(4)
        shared.report(1, "none")
        shared.report(2, "failure")
        shared.time.sleep(0.1)
        return shared.states()

    assert shared.do(caller) == [["open"] * 4]


def test_an_open_breaker_refuses_in_all_processes_and_says_for_how_long() -> None:
    shared = Shared()

    def caller() -> list[float]:
        shared.fail()
        shared.time.sleep(12.0)
        left = []
        for number in range(4):
            with pytest.raises(CircuitOpen, match="in 18 s") as raised:
                shared.of(number).admit()
            left.append(raised.value.retry_after_s)
        return left

    (left,) = shared.do(caller)
    assert left == pytest.approx([18.0] * 4, abs=0.1)


def test_other_models_and_base_urls_are_not_touched() -> None:
    shared = Shared(2)

    def caller() -> list[Any]:
        shared.fail()
        other_url = shared.all[1].get("https://two/v1", MODEL)
        return [shared.of(1, "b").admit() > 0, other_url.admit() > 0]

    assert shared.do(caller) == [[True, True]]


def test_a_process_that_comes_later_knows_of_what_happened() -> None:
    shared = Shared(1)

    def caller() -> bool:
        shared.fail()
        link = shared.redis.process().link
        shared.all.append(SharedBreakers(link, OwnBreakers(shared.time), shared.time))
        return shared.is_let_through(1)

    assert shared.do(caller) == [False]


# --- the probe ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, *range(5)])
def test_of_all_that_arrive_at_once_in_all_processes_exactly_one_probes(seed: int | None) -> None:
    shared = Shared(seed=seed, per_line=0.0 if seed is None else 0.05)
    below = ScriptedHandler(shared.time, answered("a b", pause_s=1.0))
    shared.redis.spawn(shared.fail)
    for number in range(48):
        layer = BreakerLayer(lambda _, number=number: shared.of(number))
        shared.redis.spawn(
            lambda layer=layer: text_of(layer(a_call(shared.time), below)), after_s=31
        )
    assert kinds(shared.redis.run()[1:]) == {"str": 1, "CircuitOpen": 47}
    assert len(below.calls) == 1
    assert shared.states().count("closed") == 4


def test_a_refused_caller_is_told_that_a_first_call_is_trying_it() -> None:
    shared = Shared(2)

    def caller() -> str:
        shared.fail()
        shared.time.sleep(31.0)
        shared.of(0).admit()
        with pytest.raises(CircuitOpen) as raised:
            shared.of(1).admit()
        shared.of(0).report(shared.of(0)._view.epoch, "none")  # type: ignore[attr-defined]
        return raised.value.message

    assert "a first call is trying it now" in shared.do(caller)[0]


@pytest.mark.parametrize(
    ("verdict", "states"),
    [("success", ["closed"] * 4), ("failure", ["open"] * 4), ("none", ["half_open"] * 4)],
)
def test_what_becomes_of_the_probe_all_processes_hear_of(
    verdict: Verdict, states: list[str]
) -> None:
    shared = Shared()

    def caller() -> list[Any]:
        shared.fail()
        shared.time.sleep(31.0)
        shared.report(1, verdict)
        shared.time.sleep(0.1)
        return [shared.states(), shared.is_let_through(3)]

    assert shared.do(caller) == [[states, verdict != "failure"]]


def test_a_probe_that_fails_opens_it_for_another_thirty_seconds() -> None:
    shared = Shared(2)

    def caller() -> float | None:
        shared.fail()
        shared.time.sleep(100.0)
        shared.report(0, "failure")
        with pytest.raises(CircuitOpen) as raised:
            shared.of(1).admit()
        return raised.value.retry_after_s

    assert shared.do(caller) == [pytest.approx(30.0, abs=0.1)]


def test_it_closes_when_the_answer_to_the_probe_begins() -> None:
    shared = Shared(2)
    below = ScriptedHandler(shared.time, answered("a long story", pause_s=5.0))

    def probe() -> str:
        shared.time.sleep(31.0)
        layer = BreakerLayer(lambda _: shared.of(0))
        return text_of(layer(a_call(shared.time), below))

    shared.redis.spawn(shared.fail)
    shared.redis.spawn(probe)
    shared.redis.spawn(shared.is_let_through, 1, after_s=35.0)
    shared.redis.spawn(shared.is_let_through, 1, after_s=36.5)
    assert shared.redis.run() == [None, "a long story", False, True]


def test_a_probe_that_takes_long_stays_the_only_one() -> None:
    shared = Shared()
    below = ScriptedHandler(shared.time, [40.0, *answered("a")])

    def probe(number: int) -> str:
        layer = BreakerLayer(lambda _: shared.of(number))
        return text_of(layer(a_call(shared.time), below))

    shared.redis.spawn(shared.fail)
    shared.redis.spawn(probe, 0, after_s=31.0)
    for after_s in range(32, 70):
        shared.redis.spawn(shared.is_let_through, after_s, after_s=float(after_s))
    outcomes = shared.redis.run()
    assert outcomes[1] == "a"
    assert not any(outcomes[2:])
    assert shared.states() == ["closed"] * 4


def test_a_probe_whose_process_has_died_frees_its_place_when_its_lease_ends() -> None:
    shared = Shared(2)
    below = ScriptedHandler(shared.time, [1000.0, *answered("a")])

    def probe() -> str:
        layer = BreakerLayer(lambda _: shared.of(0))
        return text_of(layer(a_call(shared.time, timeout_s=1e6), below))

    shared.redis.spawn(shared.fail)
    doomed = shared.redis.spawn(probe, after_s=31.0)
    # It was renewed at 35 s for the last time.
    shared.redis.spawn(shared.redis.processes[0].die, doomed, after_s=35.5)
    for after_s in (35.6, 36.9, 37.5):
        shared.redis.spawn(shared.is_let_through, 1, after_s=after_s)
    shared.redis.spawn(shared.is_let_through, 1, after_s=35.0 + config.LEASE_S + 0.1)
    _, killed, _, *let_through = shared.redis.run()
    assert isinstance(killed, Killed)
    assert let_through == [False, False, False, True]


def test_a_probe_that_is_interrupted_frees_its_place_at_once() -> None:
    shared = Shared(2)
    below = ScriptedHandler(shared.time, [10.0, *answered("a")])

    def probe() -> str:
        layer = BreakerLayer(lambda _: shared.of(0))
        return text_of(layer(a_call(shared.time), below))

    shared.redis.spawn(shared.fail)
    victim = shared.redis.spawn(probe, after_s=31.0)
    shared.redis.kill(victim, after_s=33.0)
    shared.redis.spawn(shared.is_let_through, 1, after_s=33.1)
    assert shared.redis.run()[-1] is True


# --- late reports -------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", ["success", "failure", "none"])
@pytest.mark.parametrize("teller", [0, 1])
def test_a_report_from_before_it_opened_changes_nothing(teller: int, verdict: Verdict) -> None:
    shared = Shared(2)

    def caller() -> list[Any]:
        early = shared.of(teller).admit()
        shared.fail()
        shared.time.sleep(29.0)
        shared.of(teller).report(early, verdict)
        shared.time.sleep(0.5)
        found: list[Any] = [shared.states()]
        shared.time.sleep(1.0)
        probe = shared.of(0).admit()
        shared.of(teller).report(early, verdict)
        found.append(shared.is_let_through(1))
        shared.of(0).report(probe, "success")
        shared.time.sleep(0.1)
        return [*found, shared.states()]

    assert shared.do(caller) == [[["open"] * 2, False, ["closed"] * 2]]


def test_fifty_calls_that_fail_one_after_the_other_open_it_once() -> None:
    shared = Shared()

    def caller() -> float | None:
        epochs = [(number, shared.of(number).admit()) for number in range(50)]
        for number, epoch in epochs:
            shared.time.sleep(0.5)
            shared.of(number).report(epoch, "failure")
        with pytest.raises(CircuitOpen) as raised:
            shared.of(0).admit()
        return raised.value.retry_after_s

    (left_s,) = shared.do(caller)
    assert left_s == pytest.approx(2.5 + 30 - 25, abs=0.2)


def test_a_report_from_before_redis_was_emptied_is_not_counted() -> None:
    shared = Shared(2)

    def caller() -> list[str | None]:
        epochs = [shared.of(number).admit() for number in range(20)]
        shared.redis.data.flushall()
        shared.time.sleep(0.1)
        for number, epoch in enumerate(epochs):
            shared.of(number).report(epoch, "failure")
        return shared.states()

    # All but those who still go by what they knew before.
    assert shared.do(caller) == [["closed"] * 2]


@pytest.mark.parametrize("verdicts", [["failure"] * 4, ["success"], ["failure"] * 5])
def test_a_call_that_waited_while_it_opened_elsewhere_is_not_sent(verdicts: list[Verdict]) -> None:
    shared = Shared(2)
    below = ScriptedHandler(shared.time, answered("a"))

    def wait(call: Any, proceed: Any) -> Any:
        shared.time.sleep(5.0)
        yield from proceed(call)

    def waiting() -> str:
        layers = [
            BreakerLayer(lambda _: shared.of(0)),
            wait,
            BreakerRecheck(lambda _: shared.of(0)),
        ]
        return text_of(stack(layers, below)(a_call(shared.time)))

    def fail() -> None:
        for verdict in verdicts:
            shared.report(1, verdict)

    shared.redis.spawn(waiting)
    shared.redis.spawn(fail, after_s=1.0)
    outcome, _ = shared.redis.run()
    assert isinstance(outcome, CircuitOpen) is (len(verdicts) == 5)
    assert len(below.calls) == int(len(verdicts) != 5)


# --- what it costs ------------------------------------------------------------------------------


def test_a_closed_breaker_costs_no_round_trips() -> None:
    shared = Shared()

    def caller() -> dict[str, int]:
        for number in range(4):
            shared.report(number, "success")
        shared.time.sleep(0.1)
        for number in range(4):
            shared.report(number, "success")
        shared.redis.ran.clear()
        for number in range(400):
            shared.report(number, "success")
            shared.time.sleep(1.0)
        return dict(shared.redis.ran)

    assert shared.do(caller) == [{}]


def test_an_open_breaker_costs_no_round_trips_but_one_when_its_time_is_over() -> None:
    shared = Shared()

    def caller() -> list[Any]:
        shared.fail()
        shared.time.sleep(0.1)
        shared.redis.ran.clear()
        for number in range(100):
            assert not shared.is_let_through(number)
        refused = dict(shared.redis.ran)
        shared.time.sleep(30.0)
        assert shared.is_let_through(0)
        return [refused, dict(shared.redis.ran)]

    assert shared.do(caller) == [[{}, {"admit": 1, "report": 1}]]


def test_without_news_it_is_asked_again_after_a_moment() -> None:
    shared = Shared(2)
    deaf = shared.redis.processes[1].server
    deaf.hear = lambda *_: shared.time.sleep(1e3) if shared.redis.has_callers else None  # type: ignore[method-assign]

    def caller() -> list[Any]:
        link = shared.redis.processes[1].link
        assert shared.is_let_through(1)
        shared.redis.ran.clear()
        for _ in range(100):
            shared.report(1, "success")
            shared.time.sleep(0.1)
        asked = shared.redis.ran["admit"]
        shared.time.sleep(config.BREAKER_KNOWN_S)
        for _ in range(5):
            shared.report(0, "failure")
        soon = shared.is_let_through(1)
        shared.redis.processes[1].link.close()
        return [link.hearing, asked, soon]

    hearing, asked, soon = shared.do(caller)[0]
    assert hearing == 0
    assert 10 / config.BREAKER_KNOWN_S * 0.7 <= asked <= 10 / config.BREAKER_KNOWN_S + 1
    assert soon is False


# --- away ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("refuses", [True, False], ids=["refuses", "silent"])
def test_while_redis_is_away_the_processes_own_breaker_counts(refuses: bool) -> None:
    shared = Shared(2)

    def caller() -> list[Any]:
        shared.report(0, "success")
        shared.report(1, "success")
        shared.time.sleep(0.1)
        shared.redis.go_away(refuses=refuses)
        for link in (process.link for process in shared.redis.processes):
            with pytest.raises(Exception, match="nobody answers"):
                link.run("check", ["holysheep:1:any"])
        for _ in range(5):
            shared.report(0, "failure")
        return [shared.states(), shared.is_let_through(0), shared.is_let_through(1)]

    assert shared.do(caller) == [[["open", "closed"], False, True]]


def test_calls_that_began_with_redis_and_end_without_it_do_no_harm() -> None:
    shared = Shared(2)

    def caller() -> list[Any]:
        epochs = [shared.of(0).admit() for _ in range(10)]
        shared.redis.go_away(refuses=True)
        for epoch in epochs:
            shared.of(0).recheck(epoch)
            shared.of(0).answering(epoch)
            shared.of(0).report(epoch, "failure")
        own = [shared.of(0).admit() for _ in range(10)]
        shared.redis.come_back()
        shared.time.sleep(5.0)
        for epoch in own:
            shared.of(0).answering(epoch)
            shared.of(0).report(epoch, "failure")
        shared.time.sleep(0.1)
        return [shared.is_let_through(0), shared.is_let_through(1)]

    assert shared.do(caller) == [[True, True]]


def test_an_open_breaker_is_still_open_when_redis_is_back() -> None:
    shared = Shared(2)

    def caller() -> list[bool]:
        shared.fail()
        shared.time.sleep(0.1)
        shared.redis.go_away(refuses=True)
        with pytest.raises(Exception, match="nobody answers"):
            shared.redis.processes[0].link.run("check", ["holysheep:1:any"])
        shared.time.sleep(2.0)
        shared.redis.come_back()
        shared.time.sleep(5.0)
        return [shared.is_let_through(0), shared.is_let_through(1)]

    assert shared.do(caller) == [[False, False]]


def test_a_probe_that_redis_went_away_from_does_not_hold_its_place_for_ever() -> None:
    shared = Shared(2)
    below = ScriptedHandler(shared.time, [10.0, ConnectFailed("broke")])

    def probe() -> str:
        layer = BreakerLayer(lambda _: shared.of(0))
        return text_of(layer(a_call(shared.time), below))

    shared.redis.spawn(shared.fail)
    shared.redis.spawn(probe, after_s=31.0)
    shared.redis.spawn(shared.redis.go_away, refuses=True, after_s=31.5)
    shared.redis.spawn(shared.redis.come_back, after_s=34.0)
    shared.redis.spawn(shared.is_let_through, 1, after_s=38.5)
    assert shared.redis.run()[-1] is True


# --- all together -------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["success", "failure", "failure", "failure", "none"]),
            st.sampled_from([0.0, 1.0, 20.0]),
        ),
        max_size=40,
    )
)
def test_one_after_the_other_three_processes_do_what_one_breaker_would(
    steps: list[tuple[int, Verdict, float]],
) -> None:
    shared = Shared(3)

    def admitted(breaker: Breaker) -> int | None:
        try:
            return breaker.admit()
        except CircuitOpen:
            return None

    def caller() -> None:
        model = CircuitBreaker(clock=shared.time)
        for number, verdict, pause_s in steps:
            breaker = shared.of(number)
            expected, epoch = admitted(model), admitted(breaker)
            assert (epoch is None) is (expected is None)
            if epoch is not None and expected is not None:
                model.report(expected, verdict)
                breaker.report(epoch, verdict)
            # Half a second more, so that what is half open is so for both.
            shared.time.sleep(pause_s + 0.5)

    shared.do(caller)


@pytest.mark.parametrize("seed", range(4))
def test_no_interleaving_of_failures_deaths_and_going_away_leaves_it_shut(seed: int) -> None:
    dice = random.Random(seed)
    shared = Shared(seed=seed, per_line=0.03)
    below = ScriptedHandler(
        shared.time,
        lambda _: [
            dice.random() * 3,
            *(answered("a") if dice.random() < 0.4 else [ConnectFailed("")]),
        ],
    )

    def caller(number: int) -> str:
        layer = BreakerLayer(lambda _: shared.of(number))
        return text_of(layer(a_call(shared.time), below))

    def last() -> str:
        for _ in range(100):
            try:
                return caller_that_succeeds()
            except CircuitOpen:
                shared.time.sleep(1.0)
        raise AssertionError("it stays shut")

    def caller_that_succeeds() -> str:
        layer = BreakerLayer(lambda _: shared.of(1))
        return text_of(layer(a_call(shared.time), ScriptedHandler(shared.time)))

    callers: list[Task] = [
        shared.redis.spawn(caller, number, after_s=0.1 + dice.random() * 100)
        for number in range(150)
    ]
    for victim in dice.sample(callers, 20):
        shared.redis.kill(victim, after_s=dice.random() * 100)
    shared.redis.spawn(shared.redis.processes[0].die, *callers[0::4], after_s=50.0)
    shared.redis.spawn(shared.redis.go_away, refuses=seed % 2 == 0, after_s=30.0)
    shared.redis.spawn(shared.redis.come_back, after_s=40.0)
    shared.redis.spawn(last, after_s=110.0)
    outcomes = shared.redis.run()
    assert outcomes[-1] == "Hi there"
    assert set(kinds(outcomes[:150])) <= {"str", "CircuitOpen", "ConnectFailed", "Killed"}
    assert shared.time.monotonic() < START_S + 250
