"""The limiter as a layer: what it settles, and what a 429 means for all that wait."""

import random
from collections import Counter

import pytest

from holysheep.concurrency import ConcurrencyLayer
from holysheep.engine import stack
from holysheep.errors import (
    CircuitOpen,
    LimitBeyondDeadline,
    LimiterTimeout,
    RateLimited,
    ServerError,
)
from holysheep.fair import FairSemaphore
from holysheep.limiter import RateLimiter
from holysheep.ratelimit import PauseRecheck, RateLimitLayer
from holysheep.retry import RetryLayer
from holysheep.types import Call, Event, Usage
from tests.fakes import (
    START_S,
    FakeClock,
    Killed,
    ScriptedHandler,
    Timeline,
    VirtualTime,
    a_call,
    a_request,
    answered,
    kinds,
)

HOUR_S = 3600.0


def layer_of(time: VirtualTime | FakeClock, rpm: float = 0, tpm: float = 0) -> RateLimitLayer:
    return RateLimitLayer(RateLimiter(rpm, tpm, clock=time), time)


def free_tokens(limiter: RateLimiter, clock: FakeClock, most: int) -> float:
    """How many tokens could be had now, by how long a larger call would have to wait."""
    began_s = clock.monotonic()
    limiter.reserve("a", most, deadline_s=began_s + 1e6)
    return most - (clock.monotonic() - began_s) * most / 60


def a_limiter_with(clock: FakeClock) -> tuple[RateLimiter, RateLimitLayer]:
    limiter = RateLimiter(0, 10_000, clock=clock)
    return limiter, RateLimitLayer(limiter, clock)


def test_the_layer_settles_with_what_upstream_reports() -> None:
    clock = FakeClock()
    limiter, layer = a_limiter_with(clock)
    usage = Usage(prompt_tokens=300, completion_tokens=700)
    request = a_request(max_tokens=9000)
    list(layer(a_call(clock, request), ScriptedHandler(clock, answered(usage=usage))))
    assert free_tokens(limiter, clock, 10_000) == pytest.approx(9000)


def test_a_429_gives_the_tokens_back() -> None:
    clock = FakeClock()
    limiter, layer = a_limiter_with(clock)
    with pytest.raises(RateLimited):
        list(layer(a_call(clock), ScriptedHandler(clock, RateLimited("", retry_after_s=0.0))))
    limiter.reserve("a", 10_000, deadline_s=clock.monotonic())


def test_a_refusal_further_down_gives_the_tokens_back() -> None:
    clock = FakeClock()
    limiter, layer = a_limiter_with(clock)
    with pytest.raises(LimiterTimeout):
        list(layer(a_call(clock), ScriptedHandler(clock, LimiterTimeout("no slot"))))
    limiter.reserve("a", 10_000, deadline_s=clock.monotonic())


def test_a_call_that_was_never_sent_takes_no_place_from_the_others() -> None:
    clock = FakeClock()
    layer = layer_of(clock, rpm=1)
    below = ScriptedHandler(clock, LimiterTimeout("no slot"), CircuitOpen("open"), answered("ok"))
    for error in (LimiterTimeout, CircuitOpen):
        with pytest.raises(error):
            list(layer(a_call(clock), below))
    list(layer(a_call(clock, timeout_s=1.0), below))
    assert clock.monotonic() == START_S


@pytest.mark.parametrize("seed", range(3))
def test_a_call_that_got_its_slot_during_a_pause_goes_back_to_the_queue(seed: int) -> None:
    time = VirtualTime(seed)
    limiter = RateLimiter(0, 0, clock=time)
    slots = FairSemaphore(1, time)
    layers = [
        RateLimitLayer(limiter, time),
        ConcurrencyLayer(slots, time),
        PauseRecheck(limiter),
    ]
    below = ScriptedHandler(time)
    slots.acquire(START_S)
    for _ in range(10):
        time.spawn(lambda: list(stack(layers, below)(a_call(time))))
    time.spawn(limiter.pause, "gpt-4.1", 20.0, after_s=1.0)
    time.spawn(slots.release, after_s=2.0)
    assert kinds(time.run()) == {"list": 10, "NoneType": 2}
    assert min(below.started_s) == START_S + 21
    assert slots.held == 0


def test_an_abandoned_answer_keeps_its_estimate() -> None:
    clock = FakeClock()
    limiter, layer = a_limiter_with(clock)
    request = a_request(max_tokens=4000)
    events = layer(a_call(clock, request), ScriptedHandler(clock, answered("a b c")))
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert free_tokens(limiter, clock, 10_000) == pytest.approx(6000, abs=20)


def test_a_failure_without_usage_keeps_its_estimate_once() -> None:
    clock = FakeClock()
    limiter, layer = a_limiter_with(clock)
    with pytest.raises(ServerError):
        list(
            layer(
                a_call(clock, a_request(max_tokens=4000)), ScriptedHandler(clock, ServerError(""))
            )
        )
    assert free_tokens(limiter, clock, 10_000) == pytest.approx(6000, abs=20)


def test_a_429_after_the_first_event_pauses_the_credential_too() -> None:
    clock = FakeClock()
    limiter, layer = a_limiter_with(clock)
    late = [*answered("a b")[:1], RateLimited("full", status=429, retry_after_s=9.0)]
    with pytest.raises(RateLimited):
        list(layer(a_call(clock), ScriptedHandler(clock, late)))
    limiter.reserve("m", 0, deadline_s=START_S + 60)
    assert clock.monotonic() == START_S + 9


def test_the_time_in_the_queue_is_recorded() -> None:
    clock = FakeClock()
    layer = layer_of(clock, rpm=1)
    below = ScriptedHandler(clock)
    list(layer(a_call(clock), below))
    call = a_call(clock, timeout_s=120)
    list(layer(call, below))
    assert call.trace.queue_s == pytest.approx(60)


def storm(
    seed: int, *, quota: int, window_s: float, names_time: bool, timeout_s: float = 540.0
) -> tuple[list[object], list[float]]:
    """Fifty callers at once against a server that answers ``quota`` calls a window.

    Returns what came of each caller, and when each 429 was answered.
    """
    time = VirtualTime(seed)
    answers: Counter[int] = Counter()
    refused_s: list[float] = []

    def server(call: Call) -> list[Timeline]:
        time.sleep(0.2)
        now_s = time.monotonic() - START_S
        window = int(now_s // window_s)
        answers[window] += 1
        if answers[window] <= quota:
            return answered("Hi", pause_s=0.3)
        refused_s.append(now_s)
        left_s = (window + 1) * window_s - now_s
        return [RateLimited("full", status=429, retry_after_s=left_s if names_time else None)]

    handler = ScriptedHandler(time, server)
    layers = [RetryLayer(time, random.Random(seed).random), layer_of(time)]
    answer = stack(layers, handler)

    def caller() -> list[Event]:
        return list(answer(a_call(time, timeout_s=timeout_s, max_retries=10)))

    for _ in range(50):
        time.spawn(caller)
    return time.run(), refused_s


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("names_time", [True, False], ids=["Retry-After", "no Retry-After"])
def test_a_429_storm_of_fifty_callers_makes_few_more_429s(seed: int, names_time: bool) -> None:
    outcomes, refused_s = storm(seed, quota=10, window_s=10.0, names_time=names_time)
    assert kinds(outcomes) == {"list": 50}
    unavoidable = 40  # were on their way when the first 429 came
    assert len(refused_s) <= unavoidable + 10


def test_a_call_that_tries_again_is_behind_those_that_wait() -> None:
    # Else the one that is refused first is refused until its retries are used up.
    time = VirtualTime()
    layer = layer_of(time, rpm=60)
    served: list[str] = []

    def caller(name: str, call: Call) -> None:
        list(layer(call, ScriptedHandler(time)))
        served.append(name)

    for number in range(60):
        list(layer(a_call(time, a_request(str(number))), ScriptedHandler(time)))
    again = a_call(time)
    time.sleep(0.1)
    for number in range(3):
        time.spawn(caller, f"later-{number}", a_call(time))
    time.spawn(caller, "again", again, after_s=0.5)
    time.run()
    assert served == ["later-0", "later-1", "later-2", "again"]


def test_while_the_server_refuses_everything_one_call_a_pause_tries() -> None:
    outcomes, refused_s = storm(1, quota=0, window_s=20.0, names_time=True, timeout_s=530)
    assert kinds(outcomes) == {"LimitBeyondDeadline": 50}
    after_the_first = Counter(refused_s[50:])
    assert set(after_the_first.values()) == {1}


@pytest.mark.parametrize("seed", range(4))
def test_no_interleaving_of_pauses_limits_and_kills_leaves_anybody_waiting(seed: int) -> None:
    time = VirtualTime(seed, per_line=0.05)
    limiter = RateLimiter(30, 3000, clock=time)
    dice = random.Random(seed)

    def caller(model: str, tokens: int, patience_s: float, held_s: float) -> str:
        deadline_s = time.monotonic() + patience_s
        try:
            reservation = limiter.reserve(
                model, tokens, deadline_s=deadline_s, is_fallback=model == "b"
            )
        except (LimiterTimeout, LimitBeyondDeadline):
            assert time.monotonic() <= deadline_s + 1e-6
            return "refused"
        try:
            time.sleep(held_s)
            reservation.accepted()
        finally:
            reservation.end(dice.choice([None, 0, tokens]))
        return "served"

    callers = [
        time.spawn(
            caller,
            dice.choice("aab"),
            dice.choice([0, 50, 500]),
            dice.choice([5.0, 40.0, 300.0]),
            dice.choice([0.0, 0.5, 20.0]),
            after_s=dice.random() * 20,
        )
        for _ in range(60)
    ]
    for at_s in (3.0, 10.0, 15.0):
        time.spawn(limiter.pause, dice.choice("ab"), dice.choice([None, 4.0]), after_s=at_s)
    time.spawn(limiter.resize, 120, 0, after_s=12.0)
    for victim in dice.sample(callers, 10):
        time.spawn(time.throw, victim, Killed(), after_s=dice.random() * 30)
    outcomes = time.run()[: len(callers)]
    assert kinds(outcomes).keys() <= {"str", "Killed"}
    assert "served" in outcomes
    time.sleep(HOUR_S)
    # Raises unless there is a place at once.
    limiter.reserve("a", 0.0, deadline_s=time.monotonic())
