"""Retries: what is sent again, after how long, and what never is."""

import itertools
import random
from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holysheep.errors import (
    AuthError,
    BadRequest,
    BadResponse,
    BudgetExceeded,
    CircuitOpen,
    ConnectFailed,
    DeadlineExceeded,
    HolySheepError,
    InvalidOutput,
    LimitBeyondDeadline,
    LimiterTimeout,
    QuotaExhausted,
    RateLimited,
    Redirected,
    ServerError,
    TimedOut,
    UnknownModel,
)
from holysheep.faults import error_for
from holysheep.retry import RetryLayer
from holysheep.types import Delta
from tests.fakes import (
    START_S,
    FakeClock,
    Killed,
    OneLayer,
    ScriptedHandler,
    VirtualTime,
    a_call,
    abandon,
    answered,
    class_name,
    in_threads,
)

RETRIED = [408, 409, 425, 429, 500, 502, 503, 504, 529]
NEVER_RETRIED = [400, 401, 402, 403, 404, 413, 415, 422, 451]
OTHERS_NEVER_RETRIED = [
    InvalidOutput(""),
    BudgetExceeded(""),
    CircuitOpen("", retry_after_s=1.0),
    LimiterTimeout("", retry_after_s=1.0),
    LimitBeyondDeadline("", retry_after_s=1.0),
    DeadlineExceeded(""),
]


def status_error(status: int, **headers: str) -> HolySheepError:
    return error_for(status, headers, b"{}", model="gpt-4.1", wall_s=0.0)


def retry_layer(clock: FakeClock, dice: Sequence[float] = ()) -> RetryLayer:
    """A layer whose dice fall as given, then always on 1 (excluded by a hair)."""
    throws = itertools.chain(dice, itertools.repeat(1.0))
    return RetryLayer(clock, lambda: next(throws))


@pytest.mark.parametrize("status", RETRIED)
def test_a_status_that_may_pass_is_tried_again(status: int) -> None:
    retry = OneLayer(retry_layer, status_error(status), answered("ok"))
    assert retry.ask() == "ok"
    assert len(retry.below.calls) == 2


@pytest.mark.parametrize(
    "error", [ConnectFailed(""), TimedOut(""), BadResponse("")], ids=class_name
)
def test_a_failure_of_the_connection_is_tried_again(error: HolySheepError) -> None:
    retry = OneLayer(retry_layer, error, answered("ok"))
    assert retry.ask() == "ok"


@pytest.mark.parametrize("status", NEVER_RETRIED)
def test_a_refused_request_is_never_sent_again(status: int) -> None:
    error = status_error(status, **{"retry-after": "1"})
    retry = OneLayer(retry_layer, error)
    with pytest.raises(type(error)):
        retry.ask(max_retries=10)
    assert len(retry.below.calls) == 1
    assert retry.clock.slept == []


@pytest.mark.parametrize("error", OTHERS_NEVER_RETRIED, ids=class_name)
def test_what_the_engine_refused_itself_is_not_tried_again(error: HolySheepError) -> None:
    retry = OneLayer(retry_layer, error)
    with pytest.raises(type(error)):
        retry.ask()
    assert len(retry.below.calls) == 1


def test_an_error_outside_the_tree_passes_through_untouched() -> None:
    retry = OneLayer(retry_layer, ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError, match="bug"):
        retry.ask()
    assert len(retry.below.calls) == 1


@pytest.mark.parametrize(
    "first", [Delta("a"), Delta(reasoning="hm"), Delta("")], ids=["text", "reasoning", "empty"]
)
def test_nothing_is_sent_again_once_a_part_was_passed_on(first: Delta) -> None:
    retry = OneLayer(retry_layer, [first, ConnectFailed("broke")], answered("again"))
    events = retry.events()
    assert next(events) == first
    with pytest.raises(ConnectFailed):
        next(events)
    assert len(retry.below.calls) == 1


@pytest.mark.parametrize("retries", [0, 1, 3, 10])
def test_a_model_is_tried_once_and_then_as_often_as_the_policy_says(retries: int) -> None:
    retry = OneLayer(retry_layer, ServerError("down"))
    with pytest.raises(ServerError):
        retry.ask(timeout_s=540, max_retries=retries)
    assert len(retry.below.calls) == 1 + retries


def test_the_backoff_doubles_up_to_its_ceiling() -> None:
    retry = OneLayer(retry_layer, ServerError("down"))
    with pytest.raises(ServerError):
        retry.ask(timeout_s=540, max_retries=7)
    assert retry.clock.slept == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_the_jitter_is_full() -> None:
    retry = OneLayer(partial(retry_layer, dice=(0.0, 0.25, 0.999)), ServerError("down"))
    with pytest.raises(ServerError):
        retry.ask()
    assert retry.clock.slept == [0.0, 0.25, pytest.approx(1.998)]


@given(seed=st.integers(0, 10_000))
def test_every_wait_lies_between_nothing_and_its_ceiling(seed: int) -> None:
    dice = random.Random(seed).random
    retry = OneLayer(lambda clock: RetryLayer(clock, dice), ServerError("down"))
    with pytest.raises(ServerError):
        retry.ask(timeout_s=540, max_retries=10)
    for attempt, wait_s in enumerate(retry.clock.slept):
        assert 0 <= wait_s <= min(8.0, 0.5 * 2**attempt)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("wait_s", [0.0, 0.123, 7.0, 31.5])
def test_the_time_that_the_server_names_is_waited_exactly(status: int, wait_s: float) -> None:
    error = status_error(status, **{"retry-after": str(wait_s)})
    retry = OneLayer(retry_layer, error, answered("ok"))
    assert retry.ask() == "ok"
    assert retry.clock.slept == [wait_s]


def test_a_rate_limit_that_resets_too_late_fails_at_once_and_says_when() -> None:
    error = RateLimited("Limit reached.", status=429, retry_after_s=90.0, request_id="req-7")
    retry = OneLayer(retry_layer, error)
    with pytest.raises(LimitBeyondDeadline, match="resets in 90 s") as raised:
        retry.ask(timeout_s=60)
    assert retry.clock.monotonic() == START_S
    assert isinstance(raised.value, QuotaExhausted)
    assert (raised.value.status, raised.value.retry_after_s) == (429, 90.0)
    assert raised.value.request_id == "req-7"


def test_a_rate_limit_that_resets_too_late_is_told_once_and_ends_with_its_id() -> None:
    error = error_for(
        *(429, {"retry-after": "100", "x-request-id": "req-7"}),
        b'{"error": {"message": "Slow down"}}',
        model="gpt-4.1",
        wall_s=0.0,
    )
    retry = OneLayer(retry_layer, error)
    with pytest.raises(LimitBeyondDeadline) as raised:
        retry.ask(timeout_s=60)
    assert raised.value.message == (
        "The gateway's rate limit is reached (HTTP 429). It says: Slow down. It resets in 100 s,"
        " after the deadline of this call. Try again then, or raise timeout_s. (request id req-7)"
    )


def test_a_redirect_is_final() -> None:
    retry = OneLayer(retry_layer, status_error(307))
    with pytest.raises(Redirected):
        retry.ask()
    assert len(retry.below.calls) == 1


def test_a_wait_that_would_end_exactly_at_the_deadline_is_not_begun() -> None:
    retry = OneLayer(retry_layer, ServerError("down", retry_after_s=60.0))
    with pytest.raises(ServerError):
        retry.ask(timeout_s=60)
    assert retry.clock.slept == []


def test_a_wait_that_ends_just_before_the_deadline_is_begun() -> None:
    retry = OneLayer(retry_layer, ServerError("down", retry_after_s=59.9), answered("ok"))
    assert retry.ask(timeout_s=60) == "ok"


def test_a_backoff_that_would_pass_the_deadline_fails_at_once() -> None:
    retry = OneLayer(retry_layer, [0.8, ServerError("down")])
    with pytest.raises(ServerError):
        retry.ask(timeout_s=2.0)
    assert retry.clock.monotonic() == START_S + 0.8 + 0.5 + 0.8


def test_a_limit_that_outlasts_the_retries_stays_a_rate_limit() -> None:
    retry = OneLayer(retry_layer, RateLimited("full", status=429, retry_after_s=1.0))
    with pytest.raises(RateLimited):
        retry.ask(max_retries=2)
    assert retry.clock.slept == [1.0, 1.0]


def test_the_last_of_several_errors_is_the_one_that_is_raised() -> None:
    retry = OneLayer(retry_layer, ServerError("first"), TimedOut("second"), BadRequest("third"))
    with pytest.raises(BadRequest, match="third"):
        retry.ask()


def test_calls_in_different_threads_do_not_count_each_others_attempts() -> None:
    clock = FakeClock()
    layer = RetryLayer(clock, lambda: 0.0)

    def caller(number: int) -> int:
        handler = ScriptedHandler(clock, *[ServerError("down")] * (number % 4), answered("ok"))
        list(layer(a_call(clock, timeout_s=1e6), handler))
        return len(handler.calls)

    assert in_threads(40, caller) == [1 + number % 4 for number in range(40)]


def test_a_caller_that_is_killed_while_it_waits_makes_no_further_attempt() -> None:
    time = VirtualTime()
    layer = RetryLayer(time, lambda: 1.0)
    handler = ScriptedHandler(time, ServerError("down", retry_after_s=10.0))
    victim = time.spawn(lambda: list(layer(a_call(time), handler)))
    time.spawn(time.throw, victim, Killed(), after_s=5.0)
    assert isinstance(time.run()[0], Killed)
    assert len(handler.calls) == 1


def test_an_answer_that_is_abandoned_closes_the_stream_below() -> None:
    retry = OneLayer(retry_layer, answered("a b c"))
    events = retry.events()
    abandon(events)
    assert retry.below.outcomes == ["abandoned"]
    assert retry.below.in_flight == 0


@pytest.mark.parametrize(
    "error", [AuthError(""), UnknownModel(""), QuotaExhausted("")], ids=class_name
)
def test_errors_of_the_account_are_final(error: HolySheepError) -> None:
    retry = OneLayer(retry_layer, error)
    with pytest.raises(type(error)):
        retry.ask()
    assert len(retry.below.calls) == 1
