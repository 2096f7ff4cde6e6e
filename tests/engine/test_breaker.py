"""The circuit breaker: when it opens, whom it lets try, and what it does not count."""

import time as real_time
from collections.abc import Iterator

import pytest

from holysheep.breaker import BreakerLayer, BreakerRecheck, CircuitBreaker, OwnBreakers, Verdict
from holysheep.engine import stack
from holysheep.errors import (
    AuthError,
    BadRequest,
    BadResponse,
    CircuitOpen,
    ConnectFailed,
    HolySheepError,
    LimitBeyondDeadline,
    LimiterTimeout,
    QuotaExhausted,
    RateLimited,
    ServerError,
    TimedOut,
    TransientConflict,
    UnknownModel,
)
from holysheep.types import Call, Event, Handler, Layer
from tests.fakes import (
    BROKEN_OFF,
    START_S,
    FakeClock,
    Killed,
    ScriptedHandler,
    StandingClock,
    VirtualTime,
    a_call,
    abandon,
    answered,
    class_name,
    in_threads,
    kinds,
)


def timed_out(waited_s: float) -> TimedOut:
    error = TimedOut("")
    error.waited_s = waited_s
    return error


OUTAGES = [ServerError(""), ConnectFailed(""), timed_out(10.0), BadResponse("")]
SIGNS_OF_LIFE = [
    AuthError(""),
    BadRequest(""),
    UnknownModel(""),
    RateLimited(""),
    QuotaExhausted(""),
    TransientConflict(""),
]


def open_breaker(clock: FakeClock | VirtualTime) -> CircuitBreaker:
    breaker = CircuitBreaker(clock=clock)
    for _ in range(5):
        breaker.report(breaker.admit(), "failure")
    return breaker


def half_open_breaker(clock: FakeClock | VirtualTime) -> CircuitBreaker:
    breaker = open_breaker(clock)
    clock.sleep(30.0)
    return breaker


def test_the_fifth_failure_in_a_row_opens_the_breaker() -> None:
    breaker = CircuitBreaker(clock=FakeClock())
    for _ in range(4):
        breaker.report(breaker.admit(), "failure")
    assert breaker.state == "closed"
    breaker.report(breaker.admit(), "failure")
    assert breaker.state == "open"


def test_a_success_in_between_starts_the_count_anew() -> None:
    breaker = CircuitBreaker(clock=FakeClock())
    for verdict in ["failure"] * 4 + ["success"] + ["failure"] * 4:
        breaker.report(breaker.admit(), verdict)  # type: ignore[arg-type]
    assert breaker.state == "closed"


def test_a_call_without_a_verdict_changes_no_count() -> None:
    breaker = CircuitBreaker(clock=FakeClock())
    for verdict in ["failure"] * 4 + ["none"] + ["failure"]:
        breaker.report(breaker.admit(), verdict)  # type: ignore[arg-type]
    assert breaker.state == "open"


def test_an_open_breaker_refuses_and_says_for_how_long() -> None:
    clock = FakeClock()
    breaker = open_breaker(clock)
    clock.sleep(12.0)
    with pytest.raises(CircuitOpen, match="in 18 s") as raised:
        breaker.admit()
    assert raised.value.retry_after_s == 18.0


def test_an_open_breaker_refuses_within_five_milliseconds() -> None:
    clock = FakeClock()
    breaker = open_breaker(clock)
    layer = BreakerLayer(lambda _: breaker)
    below = ScriptedHandler(clock)
    spans = []
    for _ in range(200):
        began_s = real_time.perf_counter()
        with pytest.raises(CircuitOpen):
            list(layer(a_call(clock), below))
        spans.append(real_time.perf_counter() - began_s)
    assert sorted(spans)[150] < 0.005
    assert not below.calls


@pytest.mark.parametrize(("after_s", "state"), [(29.999, "open"), (30.0, "half_open")])
def test_an_open_breaker_is_half_open_after_exactly_thirty_seconds(
    after_s: float, state: str
) -> None:
    clock = FakeClock()
    breaker = open_breaker(clock)
    clock.sleep(after_s)
    assert breaker.state == state


def test_half_open_admits_exactly_one_probe() -> None:
    clock = FakeClock()
    breaker = half_open_breaker(clock)
    breaker.admit()
    for _ in range(10):
        with pytest.raises(CircuitOpen, match="a first call is trying it now"):
            breaker.admit()


@pytest.mark.parametrize("seed", range(5))
def test_half_open_admits_exactly_one_probe_of_fifty_that_arrive_at_once(seed: int) -> None:
    time = VirtualTime(seed, per_line=0.2)
    breaker = half_open_breaker(time)
    layer = BreakerLayer(lambda _: breaker)
    below = ScriptedHandler(time, answered("a b", pause_s=1.0))
    for _ in range(50):
        time.spawn(lambda: list(layer(a_call(time), below)))
    assert kinds(time.run()) == {"list": 1, "CircuitOpen": 49}
    assert breaker.state == "closed"


def test_half_open_admits_exactly_one_probe_of_a_hundred_threads() -> None:
    clock = StandingClock()
    breaker = half_open_breaker(clock)
    assert kinds(in_threads(100, lambda _: breaker.admit())) == {"int": 1, "CircuitOpen": 99}


def test_a_probe_that_succeeds_closes_the_breaker() -> None:
    clock = FakeClock()
    breaker = half_open_breaker(clock)
    breaker.report(breaker.admit(), "success")
    assert breaker.state == "closed"


def test_a_probe_that_fails_opens_the_breaker_for_another_thirty_seconds() -> None:
    clock = FakeClock()
    breaker = open_breaker(clock)
    clock.sleep(100.0)
    breaker.report(breaker.admit(), "failure")
    with pytest.raises(CircuitOpen) as raised:
        breaker.admit()
    assert raised.value.retry_after_s == 30.0


def test_a_closed_breaker_that_was_open_needs_five_failures_again() -> None:
    clock = FakeClock()
    breaker = half_open_breaker(clock)
    breaker.report(breaker.admit(), "success")
    for _ in range(4):
        breaker.report(breaker.admit(), "failure")
    assert breaker.state == "closed"


def test_a_probe_without_a_verdict_leaves_its_place_to_the_next() -> None:
    clock = FakeClock()
    breaker = half_open_breaker(clock)
    breaker.report(breaker.admit(), "none")
    assert breaker.state == "half_open"
    breaker.report(breaker.admit(), "success")
    assert breaker.state == "closed"


@pytest.mark.parametrize("verdict", ["success", "failure", "none"])
def test_a_report_from_before_the_breaker_opened_changes_nothing(verdict: Verdict) -> None:
    clock = FakeClock()
    breaker = CircuitBreaker(clock=clock)
    early = breaker.admit()
    for _ in range(5):
        breaker.report(breaker.admit(), "failure")
    clock.sleep(29.0)
    breaker.report(early, verdict)
    assert breaker.state == "open"
    clock.sleep(1.0)
    probe = breaker.admit()
    breaker.report(early, verdict)
    with pytest.raises(CircuitOpen):
        breaker.admit()
    breaker.report(probe, "success")


def test_fifty_calls_that_fail_one_after_the_other_open_it_once() -> None:
    clock = FakeClock()
    breaker = CircuitBreaker(clock=clock)
    for epoch in [breaker.admit() for _ in range(50)]:
        clock.sleep(0.5)
        breaker.report(epoch, "failure")
    with pytest.raises(CircuitOpen) as raised:
        breaker.admit()
    opened_s = START_S + 2.5
    assert raised.value.retry_after_s == opened_s + 30 - clock.monotonic()


# --- the layer ----------------------------------------------------------------------------------


def fail(breaker: CircuitBreaker, clock: FakeClock, error: Exception, times: int = 1) -> None:
    layer = BreakerLayer(lambda _: breaker)
    for _ in range(times):
        with pytest.raises(type(error)):
            list(layer(a_call(clock), ScriptedHandler(clock, error)))


@pytest.mark.parametrize("error", OUTAGES, ids=class_name)
def test_outages_open_the_breaker(error: HolySheepError) -> None:
    clock = FakeClock()
    breaker = CircuitBreaker(clock=clock)
    fail(breaker, clock, error, times=5)
    assert breaker.state == "open"


def test_a_time_out_after_less_than_ten_seconds_says_nothing_about_a_model() -> None:
    # One workflow's short deadline, or its wait for a slot, must not shut a model for the others.
    clock = FakeClock()
    breaker = CircuitBreaker(clock=clock)
    fail(breaker, clock, timed_out(9.9), times=50)
    assert breaker.state == "closed"


@pytest.mark.parametrize("error", SIGNS_OF_LIFE, ids=class_name)
def test_an_answer_that_refuses_the_request_is_no_failure(error: HolySheepError) -> None:
    clock = FakeClock()
    breaker = CircuitBreaker(clock=clock)
    fail(breaker, clock, error, times=50)
    assert breaker.state == "closed"


@pytest.mark.parametrize("error", SIGNS_OF_LIFE, ids=class_name)
def test_an_answer_that_refuses_the_probe_closes_the_breaker(error: HolySheepError) -> None:
    clock = FakeClock()
    breaker = half_open_breaker(clock)
    fail(breaker, clock, error)
    assert breaker.state == "closed"


@pytest.mark.parametrize(
    "error",
    [LimiterTimeout(""), LimitBeyondDeadline("it resets too late", status=429)],
    ids=class_name,
)
def test_a_probe_that_a_local_limit_refused_says_nothing_about_upstream(
    error: HolySheepError,
) -> None:
    clock = FakeClock()
    breaker = half_open_breaker(clock)
    fail(breaker, clock, error)
    assert breaker.state == "half_open"
    breaker.admit()


def test_a_call_that_waited_in_vain_for_a_limit_does_not_clear_the_count_of_failures() -> None:
    clock = FakeClock()
    breaker = CircuitBreaker(clock=clock)
    fail(breaker, clock, ServerError(""), times=4)
    fail(breaker, clock, LimitBeyondDeadline("it resets too late", status=429))
    fail(breaker, clock, ServerError(""))
    assert breaker.state == "open"


def test_a_stream_that_breaks_off_is_a_failure() -> None:
    clock = FakeClock()
    breaker = CircuitBreaker(clock=clock)
    layer = BreakerLayer(lambda _: breaker)
    for _ in range(5):
        with pytest.raises(ConnectFailed):
            list(layer(a_call(clock), ScriptedHandler(clock, BROKEN_OFF)))
    assert breaker.state == "open"


def test_a_probe_that_is_abandoned_before_any_answer_frees_its_place() -> None:
    time = VirtualTime()
    breaker = half_open_breaker(time)
    layer = BreakerLayer(lambda _: breaker)
    below = ScriptedHandler(time, answered("a", pause_s=10.0))

    def caller() -> list[Event]:
        return list(layer(a_call(time), below))

    probe = time.spawn(caller)
    time.spawn(time.throw, probe, Killed(), after_s=2.0)
    time.spawn(caller, after_s=3.0)
    killed, _, events = time.run()
    assert isinstance(killed, Killed)
    assert isinstance(events, list)
    assert breaker.state == "closed"


def test_a_probe_that_is_abandoned_while_it_is_answered_closes_the_breaker() -> None:
    clock = FakeClock()
    breaker = half_open_breaker(clock)
    layer = BreakerLayer(lambda _: breaker)
    events = layer(a_call(clock), ScriptedHandler(clock, answered("a b c")))
    abandon(events)
    assert breaker.state == "closed"


def test_a_probe_closes_the_breaker_when_its_answer_begins() -> None:
    clock = FakeClock()
    breaker = half_open_breaker(clock)
    layer = BreakerLayer(lambda _: breaker)
    stream = layer(a_call(clock), ScriptedHandler(clock, answered("a long story")))
    next(stream)
    assert breaker.state == "closed"
    list(layer(a_call(clock), ScriptedHandler(clock)))


def test_a_model_that_breaks_off_every_answer_is_shut() -> None:
    clock = FakeClock()
    breaker = CircuitBreaker(clock=clock)
    layer = BreakerLayer(lambda _: breaker)
    for _ in range(5):
        with pytest.raises(ConnectFailed):
            list(layer(a_call(clock), ScriptedHandler(clock, BROKEN_OFF)))
    assert breaker.state == "open"


def test_an_error_of_our_own_making_frees_the_probes_place() -> None:
    clock = FakeClock()
    breaker = half_open_breaker(clock)
    fail(breaker, clock, ZeroDivisionError())
    breaker.admit()


# --- the second look ----------------------------------------------------------------------------


def waiting_while(breaker: CircuitBreaker, *verdicts: Verdict) -> Layer:
    """A layer in which a call waits while others end so."""

    def wait(call: Call, proceed: Handler) -> Iterator[Event]:
        for verdict in verdicts:
            breaker.report(breaker.admit(), verdict)
        yield from proceed(call)

    return wait


def test_a_call_that_waited_while_the_breaker_opened_is_not_sent() -> None:
    clock = FakeClock()
    breaker = CircuitBreaker(clock=clock)
    waiting = waiting_while(breaker, *["failure"] * 5)
    below = ScriptedHandler(clock)
    layers = [BreakerLayer(lambda _: breaker), waiting, BreakerRecheck(lambda _: breaker)]
    with pytest.raises(CircuitOpen):
        list(stack(layers, below)(a_call(clock)))
    assert not below.calls
    assert breaker.state == "open"


@pytest.mark.parametrize("verdicts", [[], ["failure"] * 4, ["success"]], ids=str)
def test_a_call_that_waited_while_the_breaker_stayed_closed_is_sent(
    verdicts: list[Verdict],
) -> None:
    clock = FakeClock()
    breaker = CircuitBreaker(clock=clock)
    waiting = waiting_while(breaker, *verdicts)
    below = ScriptedHandler(clock)
    layers = [BreakerLayer(lambda _: breaker), waiting, BreakerRecheck(lambda _: breaker)]
    assert list(stack(layers, below)(a_call(clock)))


def test_the_probe_passes_the_second_look() -> None:
    clock = FakeClock()
    breaker = half_open_breaker(clock)
    layers = [BreakerLayer(lambda _: breaker), BreakerRecheck(lambda _: breaker)]
    assert list(stack(layers, ScriptedHandler(clock))(a_call(clock)))
    assert breaker.state == "closed"


# --- many breakers ------------------------------------------------------------------------------


def test_each_base_url_and_model_has_one_breaker() -> None:
    breakers = OwnBreakers(FakeClock())
    first = breakers.get("https://one/v1", "a")
    assert breakers.get("https://one/v1", "a") is first
    assert breakers.get("https://one/v1", "b") is not first
    assert breakers.get("https://two/v1", "a") is not first


def test_the_longest_unused_breaker_is_forgotten() -> None:
    breakers = OwnBreakers(FakeClock(), limit=2)
    first = breakers.get("u", "a")
    second = breakers.get("u", "b")
    assert breakers.get("u", "a") is first
    breakers.get("u", "c")
    assert breakers.get("u", "a") is first
    assert breakers.get("u", "b") is not second


def test_threads_that_ask_for_a_new_breaker_get_the_same_one() -> None:
    breakers = OwnBreakers(StandingClock())
    assert len({id(breaker) for breaker in in_threads(50, lambda _: breakers.get("u", "a"))}) == 1
