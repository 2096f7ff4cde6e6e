"""Fallback to other models: when, in which order, and what the caller is told."""

import pytest

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
    ServerError,
    TimedOut,
    TransientConflict,
    UnknownModel,
)
from holysheep.fallback import FallbackLayer
from holysheep.types import Call
from tests.fakes import FakeClock, ScriptedHandler, Timeline, a_call, answered, text_of

FALL_BACK = [
    UnknownModel(""),
    RateLimited(""),
    LimitBeyondDeadline(""),
    ServerError(""),
    TransientConflict(""),
    ConnectFailed(""),
    TimedOut(""),
    BadResponse(""),
    CircuitOpen(""),
]
FAIL_WITH_ANY_MODEL = [
    AuthError(""),
    BadRequest(""),
    QuotaExhausted(""),
    InvalidOutput(""),
    BudgetExceeded(""),
    LimiterTimeout(""),
    DeadlineExceeded(""),
]


def name_of(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize("error", FALL_BACK, ids=name_of)
def test_the_next_model_is_asked_when_one_fails_for_reasons_of_its_own(
    error: HolySheepError,
) -> None:
    clock = FakeClock()
    handler = ScriptedHandler(clock, error, answered("ok"))
    call = a_call(clock, fallback_models=("b", "c"))
    assert text_of(FallbackLayer(clock)(call, handler)) == "ok"
    assert handler.models == ["gpt-4.1", "b"]
    assert call.trace.fallback_from == "gpt-4.1"


@pytest.mark.parametrize("error", FAIL_WITH_ANY_MODEL, ids=name_of)
def test_a_failure_that_every_model_would_share_ends_the_call(error: HolySheepError) -> None:
    clock = FakeClock()
    handler = ScriptedHandler(clock, error)
    call = a_call(clock, fallback_models=("b", "c"))
    with pytest.raises(type(error)):
        list(FallbackLayer(clock)(call, handler))
    assert handler.models == ["gpt-4.1"]
    assert call.trace.fallback_from is None


def test_models_are_tried_in_the_given_order_and_each_once() -> None:
    clock = FakeClock()
    handler = ScriptedHandler(clock, ServerError("down"))
    call = a_call(clock, fallback_models=("c", "gpt-4.1", "b", "c"))
    with pytest.raises(ServerError):
        list(FallbackLayer(clock)(call, handler))
    assert handler.models == ["gpt-4.1", "c", "b"]


def test_everything_but_the_model_stays_the_same() -> None:
    clock = FakeClock()
    handler = ScriptedHandler(clock, ServerError("down"), answered("ok"))
    call = a_call(clock, fallback_models=("b",))
    list(FallbackLayer(clock)(call, handler))
    second = handler.calls[1]
    assert {**second.request.body, "model": "gpt-4.1"} == call.request.body
    assert (second.deadline_s, second.policy, second.trace) == (
        call.deadline_s,
        call.policy,
        call.trace,
    )


def test_the_error_is_that_of_the_model_that_was_asked_for_and_names_the_others() -> None:
    clock = FakeClock()
    handler = ScriptedHandler(
        clock, ServerError("It failed.", status=503), RateLimited("full"), UnknownModel("who?")
    )
    with pytest.raises(ServerError) as raised:
        list(FallbackLayer(clock)(a_call(clock, fallback_models=("b", "c")), handler))
    assert raised.value.status == 503
    assert raised.value.message.startswith("It failed. ")
    assert "b (rate_limited)" in raised.value.message
    assert "c (bad_request)" in raised.value.message


def test_a_fallback_that_fails_for_all_models_ends_the_search() -> None:
    clock = FakeClock()
    handler = ScriptedHandler(clock, ServerError("down"), AuthError("key"))
    with pytest.raises(ServerError, match=r"b \(auth\)"):
        list(FallbackLayer(clock)(a_call(clock, fallback_models=("b", "c")), handler))
    assert handler.models == ["gpt-4.1", "b"]


def test_no_model_is_asked_after_the_deadline() -> None:
    clock = FakeClock()

    def slow(_: Call) -> list[Timeline]:
        return [30.0, TimedOut("slow")]

    handler = ScriptedHandler(clock, slow)
    with pytest.raises(TimedOut):
        list(FallbackLayer(clock)(a_call(clock, timeout_s=60, fallback_models=("b", "c")), handler))
    assert handler.models == ["gpt-4.1", "b"]


def test_a_model_that_has_begun_to_answer_is_not_replaced() -> None:
    clock = FakeClock()
    handler = ScriptedHandler(clock, [*answered("a b")[:1], ConnectFailed("broke")])
    events = FallbackLayer(clock)(a_call(clock, fallback_models=("b",)), handler)
    next(events)
    with pytest.raises(ConnectFailed, match=r"^broke$"):
        next(events)
    assert handler.models == ["gpt-4.1"]


def test_an_error_outside_the_tree_passes_through() -> None:
    clock = FakeClock()
    handler = ScriptedHandler(clock, ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError):
        list(FallbackLayer(clock)(a_call(clock, fallback_models=("b",)), handler))
    assert len(handler.calls) == 1


def test_an_answer_that_is_abandoned_closes_the_stream_below() -> None:
    clock = FakeClock()
    handler = ScriptedHandler(clock, ServerError("down"), answered("a b c"))
    events = FallbackLayer(clock)(a_call(clock, fallback_models=("b",)), handler)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert handler.in_flight == 0
