"""Benchmarks over a scripted gateway, on a timeline: what is counted, and what is no latency."""

import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from holysheep.benchmark import Benchmark
from holysheep.errors import (
    AuthError,
    DeadlineExceeded,
    HolySheepError,
    InputError,
    RateLimited,
    ServerError,
)
from holysheep.params import BenchmarkParams, ChatParams
from holysheep.reading import chosen, parsed
from holysheep.stats import LatencySummary
from tests.engine.world import Respond, World, failing
from tests.fakes import START_S, good_answer, streamed_answer

PRICES = "gpt-4.1: {input: 1, output: 1}"  # an answer of 15 tokens costs 15 millionths


class Run:
    """One benchmark on the timeline of a world, with the counts that its reader saw."""

    def __init__(self, world: World, **params: Any) -> None:
        self.world = world
        given = chosen({"model": "gpt-4.1", **params}, default_model="unused")
        self.benchmark = Benchmark(
            world.engine, parsed(BenchmarkParams, given), clock=world.time, spawn=world.time.spawn
        )
        self.counts: list[int] = []
        self.ended_s = 0.0

    def read(self, at_most: int | None = None) -> None:
        counts = iter(self.benchmark)
        for count in counts:
            self.counts.append(count)
            if at_most is not None and count >= at_most:
                assert isinstance(counts, Iterator)
                counts.close()  # type: ignore[attr-defined]
                break
        self.ended_s = self.world.time.monotonic() - START_S

    def finish(self, at_most: int | None = None) -> Benchmark:
        task = self.world.time.spawn(self.read, at_most)
        self.world.time.run()
        if isinstance(task.outcome, BaseException):
            raise task.outcome
        assert self.world.gateway.in_use == self.world.state.slots.held == 0
        return self.benchmark

    @property
    def calls(self) -> int:
        return len(self.world.gateway.bodies)

    @property
    def latency(self) -> LatencySummary:
        return self.benchmark.latencies.summary()


def answering(*latencies_s: float) -> Respond:
    """A gateway with these latencies, one call after the other, and from the start again."""
    return lambda body, number: good_answer(body, latency_s=latencies_s[number % len(latencies_s)])


def every(count: int, bad: Respond) -> Respond:
    """A gateway on which the last of each so many calls goes wrong."""

    def respond(body: dict[str, Any], number: int) -> Any:
        return (bad if (number + 1) % count == 0 else answering(1.0))(body, number)

    return respond


# --- each iteration is a call of its own --------------------------------------------------------


@pytest.mark.parametrize(("iterations", "concurrency"), [(1, 1), (7, 1), (20, 20), (50, 8), (3, 9)])
def test_every_iteration_is_one_call_and_is_counted(iterations: int, concurrency: int) -> None:
    run = Run(World(answering(1.0)), iterations=iterations, concurrency=concurrency)
    benchmark = run.finish()
    assert run.calls == benchmark.succeeded == iterations
    assert (benchmark.failed, benchmark.not_made) == (0, 0)
    assert benchmark.tokens_used == 15 * iterations


def test_without_parameters_20_calls_are_made_one_at_a_time() -> None:
    run = Run(World(answering(1.0)))
    run.finish()
    assert run.calls == 20
    assert run.world.gateway.max_in_use == 1
    assert run.world.gateway.bodies[0]["max_tokens"] == 128
    assert len({body["messages"][0]["content"] for body in run.world.gateway.bodies}) == 1


def test_what_is_sent_is_the_prompt_and_the_limit_alone() -> None:
    run = Run(World(answering(1.0)), prompt="Count.", max_tokens=5, iterations=1)
    run.finish()
    (body,) = run.world.gateway.bodies
    assert body["messages"] == [{"role": "user", "content": "Count."}]
    assert (body["model"], body["max_tokens"], body["stream"]) == ("gpt-4.1", 5, True)


def test_nothing_is_written_to_the_cache() -> None:
    run = Run(World(answering(1.0)), iterations=5)
    run.finish()
    assert len(run.world.cache) == 0


def test_nothing_is_read_from_the_cache() -> None:
    world = World(answering(1.0), price_overrides=PRICES)
    params = parsed(ChatParams, {"model": "gpt-4.1", "max_tokens": 128})
    request = params.request([{"role": "user", "content": "Count."}])
    world.engine.ask(request, params.policy(), timeout_s=60, stream=True).wait()
    assert world.engine.ask(request, params.policy(), timeout_s=60).wait().cached
    benchmark = Run(world, prompt="Count.", iterations=3).finish()
    first, *others = world.gateway.bodies
    assert others == [first] * 3, "the same request, so it was in the cache"
    assert benchmark.cost_usd == Decimal("0.000045")
    assert len(world.cache) == 1


def test_equal_calls_at_the_same_time_are_not_shared() -> None:
    run = Run(World(answering(1.0)), iterations=10, concurrency=10)
    benchmark = run.finish()
    assert run.world.gateway.max_in_use == run.calls == benchmark.succeeded == 10


@pytest.mark.parametrize("status", [429, 500, 503, 408])
def test_a_failed_call_is_not_tried_a_second_time(status: int) -> None:
    run = Run(World(every(3, failing(status))), iterations=12)
    benchmark = run.finish()
    assert run.calls == 12
    assert (benchmark.succeeded, benchmark.failed) == (8, 4)


def test_a_connection_that_breaks_is_not_tried_a_second_time() -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        return httpx.ReadError("reset") if number == 2 else good_answer(body)

    run = Run(World(respond), iterations=5)
    assert run.finish().errors == {"connection_failed": 1}
    assert run.calls == 5


def test_failures_are_counted_by_their_kind_and_are_no_latencies() -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        status = {1: 500, 4: 500, 7: 400}.get(number)
        return failing(status, 9.0)(body, number) if status else answering(2.0)(body, number)

    run = Run(World(respond), iterations=10)
    benchmark = run.finish()
    assert benchmark.errors == {"server_error": 2, "bad_request": 1}
    assert (benchmark.succeeded, benchmark.failed) == (7, 3)
    assert isinstance(benchmark.first_failure, ServerError)
    assert run.latency.max_ms == 2000
    assert benchmark.tokens_used == 7 * 15


@pytest.mark.parametrize(
    ("status", "kind"), [(401, AuthError), (429, RateLimited), (500, ServerError)]
)
def test_no_answer_at_all_is_the_first_failure_told_as_the_benchmarks(
    status: int, kind: type[HolySheepError]
) -> None:
    benchmark = Run(World(failing(status)), iterations=3).finish()
    assert benchmark.succeeded == 0
    with pytest.raises(kind, match=r"No call was answered \(3 failed\)\. "):
        benchmark.raise_if_nothing_was_answered()


def test_a_single_answer_is_enough() -> None:
    benchmark = Run(World(every(2, failing(500))), iterations=2).finish()
    benchmark.raise_if_nothing_was_answered()


# --- how many at a time -------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 2, 13])
def test_so_many_calls_as_asked_for_are_in_flight(concurrency: int) -> None:
    run = Run(World(answering(1.0)), iterations=40, concurrency=concurrency)
    run.finish()
    assert run.world.gateway.max_in_use == concurrency


@pytest.mark.parametrize("seed", range(3))
def test_never_more_calls_are_in_flight_than_the_credential_allows(seed: int) -> None:
    world = World(answering(0.3, 1.0, 2.5), seed=seed, max_concurrency="3")
    run = Run(world, iterations=60, concurrency=100)
    benchmark = run.finish()
    assert world.gateway.max_in_use == benchmark.in_flight == 3
    assert benchmark.succeeded == 60
    assert benchmark.waited_s == 0, "nobody waits for a slot that the benchmark itself holds"


# --- what is a latency and what is not ----------------------------------------------------------


def test_figures_are_those_of_the_calls() -> None:
    latencies = [float(number) for number in range(1, 101)]
    random.Random(7).shuffle(latencies)
    run = Run(World(answering(*latencies)), iterations=100, concurrency=20, deadline_s=580)
    benchmark = run.finish()
    assert run.latency == LatencySummary(
        avg_ms=50_500, min_ms=1000, max_ms=100_000, p50_ms=50_000, p95_ms=95_000, p99_ms=99_000
    )
    assert benchmark.throughput_rpm == pytest.approx(100 / benchmark.elapsed_s * 60, abs=0.05)
    assert benchmark.elapsed_s == run.ended_s


def test_throughput_is_answers_per_minute() -> None:
    benchmark = Run(World(answering(1.0)), iterations=20, concurrency=2).finish()
    assert (benchmark.elapsed_s, benchmark.throughput_rpm) == (10, 120)


def test_failed_calls_are_no_throughput() -> None:
    benchmark = Run(World(every(2, failing(400, 1.0))), iterations=20, concurrency=2).finish()
    assert (benchmark.elapsed_s, benchmark.throughput_rpm) == (10, 60)


def test_waiting_for_the_own_rate_limit_is_no_latency() -> None:
    world = World(answering(2.0), requests_per_minute="30")
    run = Run(world, iterations=60, concurrency=20)
    benchmark = run.finish()
    assert benchmark.succeeded == 60
    assert run.ended_s >= 55, "the limit held"
    assert (run.latency.min_ms, run.latency.max_ms) == (2000, 2000)
    assert benchmark.first_tokens.summary().max_ms == pytest.approx(2000, abs=1)
    assert benchmark.waited_s > 30
    assert benchmark.throughput_rpm < 70, "it bounds the throughput all the same"


def test_waiting_for_slots_that_others_hold_is_no_latency() -> None:
    world = World(lambda body, _: good_answer(body, latency_s=1.0), max_concurrency="2")
    for number in range(6):
        world.time.spawn(world.ask, f"another {number}")
    run = Run(world, iterations=4, concurrency=2)
    task = world.time.spawn(run.read)
    world.time.run()
    assert task.outcome is None
    assert run.benchmark.succeeded == 4
    assert (run.latency.min_ms, run.latency.max_ms) == (1000, 1000)
    assert run.benchmark.waited_s > 0


def test_waiting_for_a_pause_that_the_gateway_asked_for_is_no_latency() -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        return failing(429, retry_after="40")(body, number) if number == 1 else good_answer(body)

    run = Run(World(respond), iterations=4)
    benchmark = run.finish()
    assert benchmark.errors == {"rate_limited": 1}
    assert run.ended_s >= 40
    assert run.latency.max_ms == 1000


def test_the_first_token_is_timed_apart_from_the_whole_answer() -> None:
    run = Run(
        World(lambda body, _: streamed_answer(body, "a ", "b ", "c", pause_s=0.5)), iterations=6
    )
    benchmark = run.finish()
    assert benchmark.first_tokens.summary().avg_ms == 500
    assert (run.latency.min_ms, run.latency.max_ms) == (2000, 2000)


# --- the deadline -------------------------------------------------------------------------------


def test_it_stops_at_its_deadline_and_does_not_count_what_was_cut_off() -> None:
    run = Run(World(answering(10.0)), iterations=100, concurrency=4, deadline_s=35)
    benchmark = run.finish()
    assert run.ended_s == pytest.approx(35, abs=0.01)
    assert (benchmark.succeeded, benchmark.failed) == (12, 0)
    assert benchmark.not_made == 88
    assert run.latency.max_ms == 10_000
    assert benchmark.throughput_rpm == pytest.approx(12 * 60 / 35, abs=0.1)
    assert run.calls == 16, "none is begun after it"


def test_what_its_own_limit_keeps_back_until_the_deadline_is_not_failed() -> None:
    world = World(answering(0.1), requests_per_minute="60")
    benchmark = Run(world, iterations=200, concurrency=100, deadline_s=30).finish()
    assert benchmark.failed == 0
    assert benchmark.succeeded == len(world.gateway.bodies) == 200 - benchmark.not_made


def test_nothing_answered_before_the_deadline_is_told_as_such() -> None:
    benchmark = Run(World(answering(99.0)), iterations=3, concurrency=2, deadline_s=10).finish()
    with pytest.raises(DeadlineExceeded, match="deadline"):
        benchmark.raise_if_nothing_was_answered()


def test_the_deadline_counts_from_the_call_of_the_node() -> None:
    world = World(answering(10.0))
    params = parsed(BenchmarkParams, {"model": "m", "iterations": 100, "deadline_s": 35})
    benchmark = Benchmark(
        world.engine, params, clock=world.time, spawn=world.time.spawn, started_s=START_S - 20
    )
    world.time.spawn(benchmark.run)
    world.time.run()
    assert benchmark.succeeded == 1
    assert benchmark.elapsed_s == pytest.approx(35, abs=0.01)


# --- cost ---------------------------------------------------------------------------------------


def test_the_cost_is_that_of_all_answers() -> None:
    world = World(every(4, failing(400)), price_overrides=PRICES)
    assert Run(world, iterations=8).finish().cost_usd == Decimal("0.00009")


def test_the_cost_of_a_model_without_a_price_is_unknown() -> None:
    assert Run(World(answering(1.0)), iterations=2, custom_model="odd").finish().cost_usd is None


def test_a_budget_that_is_used_up_stops_the_cost() -> None:
    world = World(answering(1.0), price_overrides=PRICES, daily_budget_usd="0.0001")
    run = Run(world, iterations=30, max_tokens=10)
    benchmark = run.finish()
    assert 0 < benchmark.succeeded == run.calls < 10
    assert set(benchmark.errors) == {"budget_exceeded"}
    assert (benchmark.cost_usd or 0) <= Decimal("0.0001")


# --- reading it ---------------------------------------------------------------------------------


def test_the_reader_sees_the_count_grow_to_the_end() -> None:
    run = Run(World(every(3, failing(400))), iterations=9)
    run.finish()
    assert run.counts == list(range(1, 10))


def test_who_leaves_early_ends_it() -> None:
    run = Run(World(answering(1.0)), iterations=100, concurrency=2)
    benchmark = run.finish(at_most=4)
    assert run.ended_s == 2
    assert run.calls <= 6
    assert benchmark.succeeded == 4


def test_a_bug_in_a_call_is_raised_where_it_is_read() -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        raise ZeroDivisionError("bug")

    with pytest.raises(ZeroDivisionError, match="bug"):
        Run(World(respond), iterations=3).finish()


@pytest.mark.parametrize("seed", range(10))
def test_no_interleaving_loses_or_doubles_a_call(seed: int) -> None:
    chance = random.Random(seed)

    def respond(body: dict[str, Any], number: int) -> Any:
        latency_s = chance.uniform(0.0, 2.0)
        match chance.randrange(8):
            case 0:
                return failing(429, retry_after="1")(body, number)
            case 1:
                return failing(500, latency_s)(body, number)
            case _:
                return streamed_answer(body, "a ", "b", pause_s=latency_s / 3)

    world = World(respond, seed=seed, requests_per_minute="300", max_concurrency="7")
    run = Run(world, iterations=60, concurrency=10)
    benchmark = run.finish()
    assert benchmark.succeeded + benchmark.failed == 60
    assert benchmark.succeeded == sum(status == 200 for status in world.gateway.statuses)
    assert run.calls + benchmark.errors["circuit_open"] == 60
    assert run.latency.max_ms <= 2001
    assert sorted(set(run.counts)) == run.counts
    assert run.counts[-1] == 60


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"iterations": 0}, "iterations must be a whole number from 1 to 500, got 0"),
        ({"iterations": 501}, "iterations must be a whole number from 1 to 500, got 501"),
        ({"iterations": 1.5}, "iterations must be a whole number from 1 to 500, got 1.5"),
        ({"iterations": "many"}, "iterations must be a whole number from 1 to 500, got 'many'"),
        ({"iterations": True}, "iterations must be a whole number from 1 to 500"),
        ({"concurrency": 0}, "concurrency must be a whole number from 1 to 100, got 0"),
        ({"concurrency": 101}, "concurrency must be a whole number from 1 to 100, got 101"),
        ({"max_tokens": 0}, "max_tokens must be a whole number from 1 to 1 000 000, got 0"),
        ({"deadline_s": 0.9}, "deadline_s must be a number from 1 to 580, got 0.9"),
        ({"deadline_s": 581}, "deadline_s must be a number from 1 to 580, got 581"),
        ({"deadline_s": float("inf")}, "deadline_s must be a number from 1 to 580"),
        ({"prompt": "x" * 1_000_001}, "at most 1,000,000"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_parameters_out_of_range_are_refused_with_their_name_value_and_range(
    params: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        Run(World(), **params)
    assert words in caught.value.message


@pytest.mark.parametrize(
    "params",
    [
        {"iterations": 500, "concurrency": 100, "deadline_s": 580, "max_tokens": 1_000_000},
        {"iterations": "1", "concurrency": "1", "deadline_s": "1", "max_tokens": "1"},
        {"iterations": " 7 ", "concurrency": "", "prompt": " "},
    ],
    ids=["largest", "smallest_as_text", "unset"],
)
def test_the_ends_of_the_ranges_are_taken(params: dict[str, Any]) -> None:
    assert Run(World(), **params).benchmark.not_made == int(params["iterations"])
