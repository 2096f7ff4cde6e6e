"""Many calls at once, and one gateway that cannot keep up: sharing, limits, breaker, fallback."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from devtools.upstream import behaviours as do
from tests.nodes.support import (
    BAD_REQUEST,
    BREAKER_OPEN_S,
    CONNECTION,
    RATE_LIMIT,
    TOOL,
    UNAVAILABLE,
    Llm,
    fresh_key,
    fresh_model,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from devtools.upstream import Upstream
    from tests.host.daemon import PluginProcess, Result


def states(results: Iterable[Result]) -> Counter[str]:
    return Counter(result.variables["meta"]["cache"] for result in results)


def queries(count: int) -> list[dict[str, Any]]:
    return [{"query": f"question {number}"} for number in range(count)]


# --- one upstream call for identical simultaneous requests ---


def test_twenty_identical_calls_are_one_upstream_call(llm: Llm) -> None:
    llm.upstream.default(do.ok(latency_ms=60, reasoning="Hm.", tool_calls=None))
    results = llm.many([{}] * 20)
    for result in results:
        llm.check_ok(result)
    assert llm.calls == 1
    assert states(results) == {"miss": 1, "coalesced": 19}
    assert len({result.text for result in results}) == 1
    assert {result.variables["reasoning"] for result in results} == {"Hm."}
    assert {result.variables["tokens_used"] for result in results} == {
        results[0].variables["tokens_used"]
    }
    assert [r.variables["meta"]["attempts"] for r in results if r.variables["cached"]] == [0] * 19


def test_identical_structured_calls_are_one_upstream_call_too(llm: Llm) -> None:
    llm.upstream.default(do.ok('{"a": [1]}', latency_ms=60))
    results = llm.many([{"response_format": "json_object"}] * 5)
    assert [llm.check_ok(result)["structured"] for result in results] == [{"a": [1]}] * 5
    assert llm.calls == 1


def test_identical_calls_of_two_credentials_are_not_shared(llm: Llm) -> None:
    other = Llm(llm.plugin, llm.upstream, default_model=llm.model)
    llm.upstream.default(do.ok(latency_ms=60))
    first, second = llm.start(), other.start()
    assert states([first.result(), second.result()]) == {"miss": 2}
    assert llm.calls == 2


def test_calls_that_bypass_the_cache_each_get_an_answer_of_their_own(llm: Llm) -> None:
    llm.upstream.default(do.ok(latency_ms=40))
    results = llm.many([{"cache": "bypass"}] * 4)
    assert states(results) == {"bypass": 4}
    assert llm.calls == 4


def test_refresh_does_not_join_a_call_that_reads_the_cache(llm: Llm) -> None:
    llm.upstream.script(do.ok("older", latency_ms=100), do.ok("newer", latency_ms=60))
    first = llm.start()
    llm.upstream.wait_for(lambda stats: stats.in_flight == 1)
    second = llm.start(cache="refresh")
    assert first.result().text == "older"
    assert second.result().text == "newer"


def test_different_calls_are_not_shared(llm: Llm) -> None:
    llm.upstream.default(do.ok(latency_ms=20))
    results = llm.many(queries(10))
    assert states(results) == {"miss": 10}
    assert len({result.text for result in results}) == 10


def test_failure_is_shared_as_well(llm: Llm) -> None:
    llm.upstream.default(do.status(400, latency_ms=60))
    results = llm.many([{}] * 10)
    for result in results:
        assert result.error is not None
        llm.check_error(result.error)
        assert result.error.type == BAD_REQUEST
    assert llm.calls == 1


def test_each_of_the_shared_calls_keeps_its_own_deadline(llm: Llm) -> None:
    """A leader that gives up early takes nobody with it, and an early follower does not wait."""
    llm.upstream.script(do.ok("late", latency_ms=1300), do.ok("late", latency_ms=1300))
    early_leader = llm.start("first", timeout_s=1)
    patient_follower = llm.start("first", timeout_s=30)
    patient_leader = llm.start("second", timeout_s=30)
    early_follower = llm.start("second", timeout_s=1)
    for invocation in (early_leader, early_follower):
        result = invocation.result()
        assert result.error is not None
        assert result.error.type == CONNECTION
        assert 900 <= result.elapsed_ms <= 1250
    for invocation in (patient_follower, patient_leader):
        assert llm.check_ok(invocation.result())["result"]


def test_each_of_the_shared_calls_keeps_its_own_on_error(llm: Llm) -> None:
    llm.upstream.default(do.status(400, latency_ms=40))
    failing, continuing = llm.start(), llm.start(on_error="continue")
    assert failing.result().error is not None
    assert continuing.result().variables["status"] == "error"


# --- retries ---


def test_deadline_covers_the_waits_between_attempts(llm: Llm) -> None:
    llm.upstream.default(do.status(503, headers={"retry-after": "30"}))
    result = llm.start(timeout_s=2).result()
    assert result.error is not None
    assert result.error.type == UNAVAILABLE
    assert result.elapsed_ms < 500, "a wait that would pass the deadline is not begun"
    assert llm.calls == 1


def test_time_that_a_failing_server_asks_for_is_waited(llm: Llm) -> None:
    llm.upstream.script(do.status(503, headers={"retry-after-ms": "150"}))
    llm.ok()
    first, second = llm.upstream.arrivals()
    assert 140 <= second - first <= 400


def test_cost_and_tokens_are_those_of_the_answer_that_came(llm: Llm) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}
    llm.upstream.script(do.rate_limited(retry_after_ms=1), do.ok("Yes.", usage=usage))
    values = llm.ok(custom_model="gpt-4.1").variables
    assert values["cost_usd"] == pytest.approx(0.0036)
    assert values["meta"]["attempts"] == 2


# --- fallback ---

FALLS_BACK: dict[str, do.Behaviour] = {
    "server_error": do.server_error(),
    "overloaded": do.overloaded(),
    "unknown_model_404": do.unknown_model(),
    "unknown_model_400": do.unknown_model(400),
    "limit_beyond_deadline": do.rate_limited(3600),
    "limit_without_time": do.rate_limited(retry_after_ms=1),
    "connection": do.reset(),
    "stream_without_text": do.reset("headers"),
    "not_json": do.malformed("not_json"),
    "error_in_stream": do.sse(error={"message": "m", "type": "overloaded_error"}),
}
STAYS: dict[str, do.Behaviour] = {
    "bad_request": do.status(400),
    "unprocessable": do.status(422),
    "too_large": do.status(413),
    "wrong_key": do.status(401),
    "no_money": do.quota_exhausted(),
    "not_allowed": do.status(403),
    "bad_request_in_body": do.status(200, error_type="invalid_request_error"),
    "other_parameter": do.status(
        400, message="max_tokens is not supported with this model.", param="max_tokens"
    ),
}


@pytest.mark.parametrize("behaviour", FALLS_BACK.values(), ids=FALLS_BACK)
def test_next_model_is_asked(llm: Llm, behaviour: do.Behaviour) -> None:
    llm.upstream.default(behaviour, model=llm.model)
    second = fresh_model()
    values = llm.ok(max_retries=0, fallback_models=second).variables
    assert values["model_used"] == second
    assert values["meta"]["fallback_from"] == llm.model
    assert values["meta"]["attempts"] == 2
    assert [body["model"] for body in llm.bodies] == [llm.model, second]
    first, other = llm.bodies
    assert first | {"model": second} == other


@pytest.mark.parametrize("behaviour", STAYS.values(), ids=STAYS)
def test_next_model_is_not_asked(llm: Llm, behaviour: do.Behaviour) -> None:
    llm.upstream.default(behaviour, model=llm.model)
    llm.failure(fallback_models=fresh_model())
    assert {body["model"] for body in llm.bodies} == {llm.model}


def test_next_model_is_asked_after_the_retries(llm: Llm) -> None:
    llm.upstream.default(do.rate_limited(retry_after_ms=1), model=llm.model)
    second = fresh_model()
    llm.ok(max_retries=2, fallback_models=second)
    assert [body["model"] for body in llm.bodies] == [llm.model] * 3 + [second]


def test_every_model_has_retries_of_its_own(llm: Llm) -> None:
    llm.upstream.default(do.rate_limited(retry_after_ms=1))
    second = fresh_model()
    llm.failure(max_retries=2, fallback_models=second)
    assert [body["model"] for body in llm.bodies] == [llm.model] * 3 + [second] * 3


def test_all_models_failing_is_one_error_that_names_them(llm: Llm) -> None:
    llm.upstream.default(do.server_error())
    second, third = fresh_model(), fresh_model()
    error = llm.failure(max_retries=0, fallback_models=f"{second},{third}")
    assert error.type == UNAVAILABLE
    assert second in error.message or third in error.message
    assert llm.calls == 3


def test_fallback_that_refuses_the_key_is_told(llm: Llm) -> None:
    second = fresh_model()
    llm.upstream.default(do.server_error(), model=llm.model)
    llm.upstream.default(do.status(400), model=second)
    values = llm.continued(max_retries=0, fallback_models=f"{second},{fresh_model()}").variables
    assert values["meta"]["attempts"] == 2
    assert values["meta"]["fallback_from"] == llm.model


def test_one_deadline_covers_all_models(llm: Llm) -> None:
    llm.upstream.default(do.stall("headers", 30))
    result = llm.start(timeout_s=1, fallback_models=fresh_model()).result()
    assert result.error is not None
    assert result.error.type == CONNECTION
    assert 950 <= result.elapsed_ms <= 1400


def test_structured_answers_fall_back_too(llm: Llm) -> None:
    second = fresh_model()
    llm.upstream.default(do.server_error(), model=llm.model)
    llm.upstream.default(do.ok('{"a": 1}'), model=second)
    values = llm.ok(max_retries=0, fallback_models=second, response_format="json_object").variables
    assert values["structured"] == {"a": 1}
    assert values["model_used"] == second


# --- circuit breaker ---


def fail_times(llm: Llm, times: int, behaviour: do.Behaviour) -> None:
    llm.upstream.script(*[behaviour] * times, model=llm.model)
    for number in range(times):
        llm.failure(f"failure {number}", max_retries=0)


@pytest.mark.parametrize(
    "behaviour",
    [do.server_error(), do.reset(), do.malformed("not_json"), do.outage()],
    ids=["status", "connection", "malformed", "outage"],
)
def test_five_failures_in_a_row_open_the_breaker(llm: Llm, behaviour: do.Behaviour) -> None:
    fail_times(llm, 5, behaviour)
    result = llm.start("now").result()
    assert result.error is not None
    llm.check_error(result.error)
    assert result.error.type == UNAVAILABLE
    assert result.elapsed_ms < 200, "it fails fast, without retries"
    assert llm.continued("now").variables["error_type"] == "circuit_open"
    assert llm.calls == 5


def test_open_breaker_is_about_one_model(llm: Llm) -> None:
    fail_times(llm, 5, do.server_error())
    llm.ok(custom_model=fresh_model())


def test_open_breaker_falls_back_without_asking_the_model(llm: Llm) -> None:
    fail_times(llm, 5, do.server_error())
    second = fresh_model()
    values = llm.ok("now", fallback_models=second).variables
    assert values["model_used"] == second
    assert values["meta"]["fallback_from"] == llm.model
    assert values["meta"]["attempts"] == 1
    assert llm.calls == 6


def test_open_breaker_is_covered_by_stored_answers(llm: Llm) -> None:
    llm.ok("known")
    fail_times(llm, 5, do.server_error())
    assert llm.ok("known").variables["meta"]["cache"] == "hit"


def test_success_between_failures_keeps_the_breaker_closed(llm: Llm) -> None:
    fail_times(llm, 4, do.server_error())
    llm.ok("well again")
    fail_times(llm, 4, do.server_error())
    llm.ok("well again and again")


@pytest.mark.parametrize(
    "behaviour",
    [do.status(400), do.status(401), do.quota_exhausted(), do.rate_limited(retry_after_ms=1)],
    ids=["bad_request", "wrong_key", "no_money", "rate_limit"],
)
def test_refusals_do_not_open_the_breaker(llm: Llm, behaviour: do.Behaviour) -> None:
    fail_times(llm, 6, behaviour)
    llm.ok("still asked")


def test_simultaneous_failures_open_the_breaker(llm: Llm) -> None:
    llm.upstream.default(do.server_error(latency_ms=30), model=llm.model)
    results = llm.many([{**query, "max_retries": 0} for query in queries(20)])
    assert all(result.error is not None for result in results)
    before = llm.calls
    llm.failure("now")
    assert llm.calls == before


def wait_until_half_open(llm: Llm) -> None:
    """Let a little more than ``BREAKER_OPEN_S`` pass, by an answer that takes this long."""
    llm.upstream.script(do.ok(latency_ms=BREAKER_OPEN_S * 1000 + 50), model="the-clock")
    Llm(llm.plugin, llm.upstream).ok(custom_model="the-clock")


def test_exactly_one_probe_closes_the_breaker(
    quick_plugin: PluginProcess, upstream: Upstream
) -> None:
    llm = Llm(quick_plugin, upstream)
    fail_times(llm, 5, do.server_error())
    wait_until_half_open(llm)
    upstream.reset()
    upstream.default(do.ok(latency_ms=60), model=llm.model)
    results = llm.many([{**query, "max_retries": 0} for query in queries(10)])
    good = [result for result in results if result.error is None]
    assert len(good) == upstream.stats().calls == 1
    for result in results:
        if result.error is not None:
            llm.check_error(result.error)
            assert result.error.type == UNAVAILABLE
    for result in llm.many([{"query": f"after {number}"} for number in range(5)]):
        llm.check_ok(result)


def test_failing_probe_opens_the_breaker_again(
    quick_plugin: PluginProcess, upstream: Upstream
) -> None:
    llm = Llm(quick_plugin, upstream)
    upstream.default(do.server_error(), model=llm.model)
    fail_times(llm, 5, do.server_error())
    wait_until_half_open(llm)
    before = llm.calls
    llm.failure("probe", max_retries=0)
    llm.failure("refused", max_retries=0)
    assert llm.calls == before + 1


def test_probe_that_is_refused_by_the_gateway_proves_it_alive(
    quick_plugin: PluginProcess, upstream: Upstream
) -> None:
    llm = Llm(quick_plugin, upstream)
    fail_times(llm, 5, do.server_error())
    wait_until_half_open(llm)
    upstream.script(do.status(400), model=llm.model)
    llm.failure("probe", max_retries=0)
    llm.ok("closed again")


# --- max_concurrency ---


@pytest.mark.parametrize("limit", ["1", "3"])
def test_no_more_requests_are_in_flight_than_allowed(llm: Llm, limit: str) -> None:
    limited = llm.like(max_concurrency=limit)
    llm.upstream.default(do.ok(latency_ms=20))
    for result in limited.many(queries(12)):
        limited.check_ok(result)
    stats = llm.upstream.stats()
    assert stats.max_in_flight == int(limit)
    assert stats.calls == 12


def test_twenty_requests_are_in_flight_by_default(llm: Llm) -> None:
    llm.upstream.default(do.ok(latency_ms=100))
    results = llm.many(queries(30))
    assert llm.upstream.stats().max_in_flight == 20
    waits = sorted(result.variables["meta"]["queue_ms"] for result in results)
    assert waits[0] < 50
    assert waits[-1] >= 60


def test_call_that_finds_no_place_in_time_is_refused(llm: Llm) -> None:
    limited = llm.like(max_concurrency="1")
    llm.upstream.script(do.stall("headers", 1.2))
    first = limited.start("slow")
    llm.upstream.wait_for(lambda stats: stats.in_flight == 1)
    failing, continuing = (
        limited.start("waits", timeout_s=1),
        limited.start("waits as well", timeout_s=1, on_error="continue"),
    )
    result = failing.result()
    assert result.error is not None
    limited.check_error(result.error)
    assert result.error.type == RATE_LIMIT
    assert result.elapsed_ms <= 1300
    assert continuing.result().variables["error_type"] == "rate_limited"
    limited.check_ok(first.result())
    assert llm.calls == 1


def test_two_credentials_do_not_share_their_places(llm: Llm) -> None:
    both = [Llm(llm.plugin, llm.upstream, max_concurrency="1") for _ in range(2)]
    llm.upstream.default(do.ok(latency_ms=100))
    for call in [own.start() for own in both]:
        call.wait()
    assert llm.upstream.stats().max_in_flight == 2


# --- requests_per_minute ---


def test_burst_of_the_rate_goes_out_and_the_next_is_refused_in_time(llm: Llm) -> None:
    limited = llm.like(requests_per_minute="5")
    for result in limited.many(queries(5)):
        limited.check_ok(result)
    result = limited.start("one more", timeout_s=2).result()
    assert result.error is not None
    limited.check_error(result.error)
    assert result.error.type == RATE_LIMIT
    assert result.elapsed_ms < 500, "it is known at once that the wait would be too long"
    assert limited.continued("one more", timeout_s=2).variables["error_type"] == "rate_limited"
    assert llm.calls == 5


def test_call_beyond_the_burst_of_sixty_waits_its_turn(llm: Llm) -> None:
    limited = llm.like(requests_per_minute="", max_concurrency="100")
    began_ms = time.monotonic() * 1000
    results = limited.many(queries(61))
    for result in results:
        limited.check_ok(result)
    arrivals = sorted(llm.upstream.arrivals())
    assert arrivals[59] - arrivals[0] < 600, "the burst"
    assert arrivals[60] - began_ms >= 1000, "then one a second"
    assert arrivals[60] - arrivals[0] <= 1400
    waits = sorted(result.variables["meta"]["queue_ms"] for result in results)
    assert waits[60] >= 700


def test_answers_from_memory_take_nothing_from_the_rate(llm: Llm) -> None:
    limited = llm.like(requests_per_minute="1")
    for _ in range(5):
        limited.ok()
    assert llm.calls == 1


def test_retries_count_as_requests(llm: Llm) -> None:
    limited = llm.like(requests_per_minute="3")
    llm.upstream.script(do.rate_limited(retry_after_ms=1), do.rate_limited(retry_after_ms=1))
    limited.ok()
    assert limited.failure("one more", timeout_s=2).type == RATE_LIMIT
    assert llm.calls == 3


def test_two_credentials_do_not_share_their_rate(llm: Llm) -> None:
    both = [Llm(llm.plugin, llm.upstream, requests_per_minute="1") for _ in range(2)]
    for own in both:
        own.ok()
    for own in both:
        own.failure("one more", timeout_s=1)


# --- tokens_per_minute ---


def test_tokens_of_a_minute_are_a_limit(llm: Llm) -> None:
    limited = llm.like(tokens_per_minute="1000")
    usage = {"prompt_tokens": 500, "completion_tokens": 490, "total_tokens": 990}
    llm.upstream.script(do.ok("Yes.", usage=usage))
    limited.ok("first", max_tokens=100)
    error = limited.failure("second", max_tokens=100, timeout_s=2)
    assert error.type == RATE_LIMIT
    assert llm.calls == 1


def test_tokens_that_were_not_used_are_given_back(llm: Llm) -> None:
    limited = llm.like(tokens_per_minute="1000")
    usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    llm.upstream.default(do.ok("Yes.", usage=usage))
    for number in range(5):
        limited.ok(f"question {number}", max_tokens=800, timeout_s=2)


# --- a gateway that says 429 ---


def test_fifty_calls_that_meet_a_rate_limit_all_get_their_answers(llm: Llm) -> None:
    llm.upstream.script(*[do.rate_limited(retry_after_ms=200)] * 10)
    results = llm.many(queries(50))
    for result in results:
        llm.check_ok(result)
    assert llm.calls == 60
    assert len({result.text for result in results}) == 50


def test_rate_limit_of_one_call_holds_back_the_credential(llm: Llm) -> None:
    """What others of the credential would get for asking now is known."""
    llm.upstream.script(do.rate_limited(retry_after_ms=300))
    first = llm.start("first")
    llm.upstream.wait_for(lambda stats: stats.answered.get(429) == 1)
    llm.many(queries(5))
    llm.check_ok(first.result())
    refused_at, *others = llm.upstream.arrivals()
    assert len(others) == 6
    assert min(others) - refused_at >= 250


def test_rate_limit_of_one_credential_does_not_hold_back_another(llm: Llm) -> None:
    llm.upstream.script(do.rate_limited(retry_after_ms=400))
    first = llm.start("first")
    llm.upstream.wait_for(lambda stats: stats.answered.get(429) == 1)
    assert Llm(llm.plugin, llm.upstream).ok().elapsed_ms < 250
    llm.check_ok(first.result())


# --- parameters that a model does not take ---


@pytest.mark.parametrize(
    ("told", "param"),
    [
        ("Unrecognized argument: topk. Known: model, max_tokens, temperature, top_p", "topk"),
        ("Unrecognized argument: topk. Known: model, max_tokens, temperature, top_p", None),
        ("temperature 1.8 is not supported, use 0 to 1", "temperature"),
        ("max_tokens 100000 is not allowed, at most 8192", None),
    ],
    ids=["named", "unnamed", "value", "unnamed_value"],
)
def test_bad_request_of_one_workflow_changes_nothing_for_another(
    llm: Llm, told: str, param: str | None
) -> None:
    refusal = do.status(400, message=told, param=param)
    llm.upstream.script(*[refusal] * 6)
    for number in range(6):
        llm.failure(f"question {number}", options={"extra_body": {"topk": 5}})
    assert llm.calls == 6
    assert llm.ok("of another").variables["meta"]["left_out"] == []
    assert {"temperature", "top_p", "max_tokens"} <= llm.bodies[-1].keys()


def test_parameter_that_a_model_does_not_take_is_left_out_for_all(llm: Llm) -> None:
    told = "Unsupported parameter: 'temperature' is not supported with this model."
    llm.upstream.script(do.status(400, message=told, param="temperature"))
    results = [llm.start(query).result() for query in ("one", "two")]
    assert [r.variables["meta"]["left_out"] for r in results] == [["temperature"]] * 2
    assert ["temperature" in body for body in llm.bodies] == [True, False, False]


# --- budgets ---

PRICES = "{mine: {input: 0, output: 1000000}}"  # 1 USD a token
SIX_TOKENS = {"prompt_tokens": 0, "completion_tokens": 6, "total_tokens": 6}


@pytest.mark.parametrize("budget", ["daily_budget_usd", "monthly_budget_usd"])
def test_budget_ends_spending(llm: Llm, budget: str) -> None:
    limited = llm.like(price_overrides=PRICES, default_model="mine", **{budget: "10"})
    llm.upstream.default(do.ok("Yes.", usage=SIX_TOKENS), model="mine")
    assert limited.ok("first", max_tokens=6).variables["cost_usd"] == 6
    error = limited.failure("second", max_tokens=6)
    assert error.type == BAD_REQUEST
    assert "budget" in error.message
    assert limited.continued("second", max_tokens=6).variables["error_type"] == "budget_exceeded"
    assert llm.calls == 1
    assert limited.ok("first", max_tokens=6).variables["meta"]["cache"] == "hit"


def test_budget_is_not_overdrawn_by_simultaneous_calls(llm: Llm) -> None:
    limited = llm.like(price_overrides=PRICES, default_model="mine", daily_budget_usd="20")
    llm.upstream.default(do.ok("Yes.", usage=SIX_TOKENS, latency_ms=40), model="mine")
    results = limited.many([{**query, "max_tokens": 6} for query in queries(10)])
    assert sum(result.error is None for result in results) == 3
    for result in results:
        if result.error is not None:
            limited.check_error(result.error)
            assert result.error.type == BAD_REQUEST
    assert llm.calls == 3


def test_failed_call_spends_nothing_of_the_budget(llm: Llm) -> None:
    model = fresh_model()
    prices = PRICES.replace("mine", model)
    limited = llm.like(price_overrides=prices, default_model=model, daily_budget_usd="10")
    llm.upstream.script(do.status(400), do.status(400), do.ok("Yes.", usage=SIX_TOKENS))
    for number in range(2):
        limited.failure(f"failure {number}", max_tokens=6)
    limited.ok(max_tokens=6)


def test_two_credentials_do_not_share_their_budget(llm: Llm) -> None:
    both = [
        Llm(
            *(llm.plugin, llm.upstream),
            price_overrides=PRICES,
            default_model="mine",
            daily_budget_usd="10",
        )
        for _ in range(2)
    ]
    llm.upstream.default(do.ok("Yes.", usage=SIX_TOKENS), model="mine")
    for own in both:
        own.ok(max_tokens=6)


# --- many credentials, and a host that goes away ---


def test_state_of_a_credential_in_use_outlives_a_thousand_others(llm: Llm) -> None:
    limited = llm.like(requests_per_minute="1")
    limited.ok()
    others = ({**llm.credentials, "api_key": fresh_key()} for _ in range(1001))
    # In a workspace of their own, whose usage no other test looks at.
    where = {"tenant_id": "crowded", "app_id": "crowded"}
    calls = (
        {"tool": TOOL, "parameters": {"query": "hi"}, "credentials": c, **where} for c in others
    )
    assert all(result.error is None for result in llm.plugin.invoke_many(calls, concurrency=20))
    assert limited.failure("one more", timeout_s=2).type == RATE_LIMIT


def test_call_that_hangs_does_not_hold_up_others(llm: Llm) -> None:
    llm.upstream.script(do.stall("headers", 0.6), model=llm.model)
    slow = llm.start("slow")
    llm.upstream.wait_for(lambda stats: stats.in_flight == 1)
    assert llm.ok("quick", custom_model=fresh_model()).elapsed_ms < 300
    llm.check_ok(slow.result())


def test_calls_that_nobody_waits_for_any_more_do_not_disturb_others(llm: Llm) -> None:
    llm.upstream.default(do.ok(chunks=["one ", "two ", "three"], chunk_delay_ms=40))
    for number in range(10):
        llm.start(f"abandoned {number}").abandon()
    for result in llm.many(queries(10)):
        llm.check_ok(result)
    llm.upstream.wait_for(lambda stats: stats.in_flight == 0)
    assert llm.plugin.open_calls == 0


def test_follower_outlives_an_abandoned_leader(llm: Llm) -> None:
    llm.upstream.default(do.ok(chunks=["one ", "two ", "three"], latency_ms=50, chunk_delay_ms=40))
    leader, follower = llm.start(), llm.start()
    leader.abandon()
    assert llm.check_ok(follower.result())["result"] == "one two three"
    assert llm.calls == 1
