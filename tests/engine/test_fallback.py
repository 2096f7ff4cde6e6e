"""Fallback to other models: when, in which order, and what the caller is told."""

import contextlib

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
from holysheep.types import Completed, Delta
from tests.fakes import BROKEN_OFF, START_S, OneLayer, Timeline, abandon, answered, class_name

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


@pytest.mark.parametrize("error", FALL_BACK, ids=class_name)
def test_the_next_model_is_asked_when_one_fails_for_reasons_of_its_own(
    error: HolySheepError,
) -> None:
    fallback = OneLayer(FallbackLayer, error, answered("ok"))
    assert fallback.ask(fallback_models=("b", "c")) == "ok"
    assert fallback.below.models == ["gpt-4.1", "b"]
    assert fallback.calls[0].trace.fallback_from == "gpt-4.1"


@pytest.mark.parametrize("error", FAIL_WITH_ANY_MODEL, ids=class_name)
def test_a_failure_that_every_model_would_share_ends_the_call(error: HolySheepError) -> None:
    fallback = OneLayer(FallbackLayer, error)
    with pytest.raises(type(error)):
        fallback.ask(fallback_models=("b", "c"))
    assert fallback.below.models == ["gpt-4.1"]
    assert fallback.calls[0].trace.fallback_from is None


def test_models_are_tried_in_the_given_order_and_each_once() -> None:
    fallback = OneLayer(FallbackLayer, ServerError("down"))
    with pytest.raises(ServerError):
        fallback.ask(fallback_models=("c", "gpt-4.1", "b", "c"))
    assert fallback.below.models == ["gpt-4.1", "c", "b"]


def test_everything_but_the_model_stays_the_same() -> None:
    fallback = OneLayer(FallbackLayer, ServerError("down"), answered("ok"))
    fallback.ask(fallback_models=("b",))
    call, second = fallback.calls[0], fallback.below.calls[1]
    assert {**second.request.body, "model": "gpt-4.1"} == call.request.body
    assert (second.deadline_s, second.policy, second.trace) == (
        call.deadline_s,
        call.policy,
        call.trace,
    )


def test_the_error_is_that_of_the_model_that_was_asked_for_and_names_the_others() -> None:
    failed = ServerError("It failed.", status=503)
    fallback = OneLayer(FallbackLayer, failed, RateLimited("full"), UnknownModel("who?"))
    with pytest.raises(ServerError) as raised:
        fallback.ask(fallback_models=("b", "c"))
    assert raised.value.status == 503
    assert raised.value.message.startswith("It failed. ")
    assert "b (rate_limited)" in raised.value.message
    assert "c (bad_request)" in raised.value.message


def test_the_request_id_of_the_first_model_stays_at_the_end() -> None:
    first = ServerError("It failed. (request id r-1)", request_id="r-1")
    fallback = OneLayer(FallbackLayer, first, ServerError("down"))
    with pytest.raises(ServerError) as raised:
        fallback.ask(fallback_models=("b",))
    assert raised.value.message == (
        "It failed. The fallback failed too: b (server_error). (request id r-1)"
    )


def test_a_fallback_that_fails_for_all_models_ends_the_search() -> None:
    fallback = OneLayer(FallbackLayer, ServerError("down"), AuthError("key"))
    with pytest.raises(ServerError, match=r"b \(auth\)"):
        fallback.ask(fallback_models=("b", "c"))
    assert fallback.below.models == ["gpt-4.1", "b"]


def test_no_model_is_asked_after_the_deadline() -> None:
    slow: list[Timeline] = [30.0, TimedOut("slow")]
    fallback = OneLayer(FallbackLayer, slow)
    with pytest.raises(TimedOut):
        fallback.ask(timeout_s=60, fallback_models=("b", "c"))
    assert fallback.below.models == ["gpt-4.1", "b"]


def test_a_model_that_has_begun_to_answer_is_not_replaced() -> None:
    fallback = OneLayer(FallbackLayer, BROKEN_OFF)
    events = fallback.events(fallback_models=("b",))
    next(events)
    with pytest.raises(ConnectFailed, match=r"^broke$"):
        next(events)
    assert fallback.below.models == ["gpt-4.1"]


def test_each_model_has_an_equal_share_of_the_time_until_it_answers() -> None:
    fallback = OneLayer(FallbackLayer, [10.0, ServerError("down")], [25.0, ServerError("down")])
    with contextlib.suppress(ServerError):
        fallback.ask(timeout_s=60, fallback_models=("b", "c"))
    assert [call.answer_by_s - START_S for call in fallback.below.calls] == [20.0, 35.0, 60.0]


def test_a_model_without_alternatives_has_all_the_time() -> None:
    fallback = OneLayer(FallbackLayer)
    fallback.ask(timeout_s=60)
    assert fallback.below.calls[0].answer_by_s == START_S + 60


THOUGHT = Delta(reasoning="Let me see.")


@pytest.mark.parametrize(
    ("how", "models"),
    [
        ({"stream": True, "shows_reasoning": True}, ["gpt-4.1"]),
        ({"stream": True, "shows_reasoning": False}, ["gpt-4.1", "b"]),
        ({"stream": False}, ["gpt-4.1", "b"]),
    ],
    ids=["reasoning is watched", "text is watched", "nobody watches"],
)
def test_what_nobody_has_seen_does_not_bind_to_a_model(
    how: dict[str, bool], models: list[str]
) -> None:
    fallback = OneLayer(FallbackLayer, [THOUGHT, ConnectFailed("broke")], answered("It is b."))
    with contextlib.suppress(ConnectFailed):
        fallback.ask(fallback_models=("b",), **how)
    assert fallback.below.models == models


def test_the_answer_tells_which_model_was_asked_first() -> None:
    fallback = OneLayer(FallbackLayer, ServerError("down"), answered("It is b."))
    last = list(fallback.events(fallback_models=("b",)))[-1]
    assert isinstance(last, Completed)
    assert last.completion.fallback_from == "gpt-4.1"


def test_an_error_outside_the_tree_passes_through() -> None:
    fallback = OneLayer(FallbackLayer, ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError):
        fallback.ask(fallback_models=("b",))
    assert len(fallback.below.calls) == 1


def test_an_answer_that_is_abandoned_closes_the_stream_below() -> None:
    fallback = OneLayer(FallbackLayer, ServerError("down"), answered("a b c"))
    events = fallback.events(fallback_models=("b",))
    abandon(events)
    assert fallback.below.in_flight == 0
