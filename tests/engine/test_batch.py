"""Batches over a scripted gateway, on a timeline: order, windows, waiting, early ends."""

import gc
import random
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from holysheep import config
from holysheep.batch import Batch, Progress, check_rows
from holysheep.errors import AuthError, BadResponse, DeadlineExceeded, InputError, ServerError
from holysheep.params import BatchParams
from holysheep.reading import parsed
from holysheep.results import RowResult, json_line, result_from
from holysheep.rows import Row, rows_of_file, rows_of_queries
from holysheep.tally import CACHED_STATES
from holysheep.template import Template
from tests.engine.world import Respond, World, failing
from tests.fakes import START_S, FakeClock, good_answer

TODAY = date(2026, 1, 1)  # where the timeline begins
PRICES = "gpt-4.1: {input: 1, output: 1}"  # an answer of 15 tokens costs 15 millionths


class Run:
    """One batch on the timeline of a world; what its consumer got, and when."""

    def __init__(self, world: World, rows: Iterable[Any], **params: Any) -> None:
        self.world = world
        self.rows = rows if isinstance(rows, list) and rows and isinstance(rows[0], Row) else None
        source = self.rows or rows_of_queries(list(rows))
        given = {"model": "gpt-4.1", **params}
        self.batch = Batch(
            world.engine,
            parsed(BatchParams, given),
            source,
            clock=world.time,
            spawn=world.time.spawn,
            total=sum(1 for _ in source),
        )
        self.results: list[RowResult] = []
        self.arrived_s: list[float] = []
        self.progress: list[Progress] = []

    def consume(
        self,
        on_result: Callable[[RowResult], None] = lambda _: None,
        progress_s: float | None = None,
    ) -> None:
        for found in self.batch.results(progress_s=progress_s):
            if isinstance(found, Progress):
                self.progress.append(found)
            else:
                self.results.append(found)
                self.arrived_s.append(self.world.time.monotonic() - START_S)
                on_result(found)

    def finish(self, **how: Any) -> "Run":
        """Run it to its end."""
        task = self.world.time.spawn(self.consume, **how)
        self.world.time.run()
        if isinstance(task.outcome, BaseException):
            raise task.outcome
        assert self.world.gateway.in_use == 0
        return self

    @property
    def statuses(self) -> Counter[str]:
        return Counter(result.status for result in self.results)

    @property
    def calls(self) -> int:
        return len(self.world.gateway.bodies)


def query_of(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def echo(latency_s: float | Callable[[int], float] = 1.0) -> Respond:
    """A gateway that answers each query with itself."""

    def respond(body: dict[str, Any], number: int) -> Any:
        wait_s = latency_s(number) if callable(latency_s) else latency_s
        return good_answer(body, f"re: {query_of(body)}", latency_s=wait_s)

    return respond


def questions(count: int) -> list[str]:
    return [f"question {number}" for number in range(count)]


# --- order and window ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_results_come_in_the_order_of_the_rows_whatever_takes_long(seed: int) -> None:
    latency = random.Random(seed)
    world = World(echo(lambda _: latency.uniform(0.1, 9.0)), seed=seed)
    run = Run(world, questions(100), concurrency=7).finish()
    assert [result.index for result in run.results] == list(range(100))
    assert [result.response for result in run.results] == [f"re: {q}" for q in questions(100)]
    assert run.arrived_s == sorted(run.arrived_s)


def test_as_many_rows_are_in_flight_as_asked_for_and_never_more() -> None:
    run = Run(World(echo()), questions(100), concurrency=20).finish()
    assert run.world.gateway.max_in_use == 20
    assert run.world.time.monotonic() == START_S + 5


def test_never_more_rows_are_in_flight_than_the_credential_allows() -> None:
    run = Run(World(echo(), max_concurrency="3"), questions(30), concurrency=20).finish()
    assert run.world.gateway.max_in_use == 3


def test_a_slow_row_holds_up_what_is_handed_over_but_not_the_work() -> None:
    world = World(echo(lambda number: 50.0 if number == 0 else 1.0))
    run = Run(world, questions(200), concurrency=5).finish()
    assert run.arrived_s[0] == 50.0
    assert max(world.gateway.sent_s) - START_S < 51.0


@pytest.mark.parametrize(
    ("name", "bound", "expected"),
    [("BATCH_AHEAD_ROWS", 10, 10), ("BATCH_AHEAD_BYTES", 5_000, 10)],
)
def test_no_row_is_begun_too_far_ahead_of_one_that_takes_long(
    monkeypatch: pytest.MonkeyPatch, name: str, bound: int, expected: int
) -> None:
    monkeypatch.setattr(config, name, bound)
    world = World(echo(lambda number: 50.0 if number == 0 else 1.0))
    run = Run(world, questions(100), concurrency=2)
    before = 0

    def count(result: RowResult) -> None:
        nonlocal before
        before = before or run.calls

    run.finish(on_result=count)
    assert before <= expected + 1
    assert len(run.results) == 100


def test_a_consumer_that_takes_its_time_stops_the_work_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(config, "BATCH_AHEAD_ROWS", 10)
    run = Run(World(echo(0.01)), questions(100), concurrency=5)
    ahead = []

    def rest(result: RowResult) -> None:
        run.world.time.sleep(1.0)
        ahead.append(run.calls - result.index)

    run.finish(on_result=rest)
    assert max(ahead) <= 12


# --- equal rows ---------------------------------------------------------------------------------


def test_equal_rows_cost_one_call() -> None:
    rows = ["same"] * 50 + ["other"] + ["same"] * 50
    run = Run(World(echo(), price_overrides=PRICES), rows, concurrency=10).finish()
    assert run.calls == run.batch.totals.upstream_calls == 2
    assert [result.query for result in run.results] == rows
    assert {result.response for result in run.results} == {"re: same", "re: other"}
    own = [result for result in run.results if not result.cached]
    assert [result.index for result in own] == [0, 50]
    assert run.batch.totals.cached == 99
    assert run.batch.totals.cost_usd == sum(r.cost_usd or 0 for r in run.results)
    assert run.batch.totals.cost_usd == Decimal("0.00003")


@pytest.mark.parametrize("cache", ["use", "refresh"])
def test_the_ledger_counts_every_row_and_what_the_equal_ones_saved(cache: str) -> None:
    world = World(echo(), price_overrides=PRICES)
    rows = [f"question {number % 3}" for number in range(10)]
    Run(world, rows, concurrency=2, cache=cache).finish()
    # The first look finds them in the cache, or in the batch: each answer is worth the same.
    Run(world, rows, concurrency=2).finish()
    (tally,) = world.state.ledger.past([TODAY]).days.values()
    total = tally.total()
    cached = tally.grouped(lambda row: str(row.cache in CACHED_STATES))["True"]
    assert total.requests == 20
    assert total.upstream_calls == 3
    assert total.cost_usd == 3 * Decimal("0.000015")
    assert cached.requests == 17
    assert cached.saved_usd == 17 * Decimal("0.000015")


def test_equal_rows_far_apart_cost_one_call_whatever_the_cache_holds() -> None:
    world = World(echo(0.001))
    rows = ["same", *questions(config.CACHE_MAX_ENTRIES + 50), "same"]
    run = Run(world, rows, concurrency=10).finish()
    assert run.calls == len(rows) - 1
    assert (run.results[-1].response, run.results[-1].cached) == ("re: same", True)


def test_who_bypasses_the_cache_wants_an_answer_of_its_own_for_each_row() -> None:
    run = Run(World(echo()), ["a slogan"] * 5, cache="bypass").finish()
    assert run.calls == 5
    assert not any(result.cached for result in run.results)


def test_a_twin_of_a_row_that_failed_for_good_fails_alike_without_a_call() -> None:
    run = Run(World(failing(400)), ["same"] * 20, concurrency=4).finish()
    assert run.calls == 1
    assert {result.error_type for result in run.results} == {"bad_request"}


def test_a_twin_of_a_row_that_failed_by_chance_is_asked_itself() -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        return failing(500)(body, number) if number == 0 else good_answer(body)

    options = "max_retries: 0"
    run = Run(World(respond), ["same"] * 20, concurrency=4, options=options).finish()
    assert run.calls == 2
    assert run.statuses == {"error": 1, "ok": 19}


def test_rows_that_the_cache_knows_cost_nothing() -> None:
    world = World(echo(), price_overrides=PRICES)
    Run(world, questions(10)).finish()
    again = Run(world, questions(12)).finish()
    assert again.batch.totals.cached == 10
    assert again.batch.totals.upstream_calls == 2
    assert again.batch.totals.cost_usd == Decimal("0.00003")


# --- failures of single rows --------------------------------------------------------------------


def every(number: int, bad: Respond) -> Respond:
    """A gateway that fails every so many distinct queries, whatever the attempt."""

    def respond(body: dict[str, Any], attempt: int) -> Any:
        row = int(query_of(body).rpartition(" ")[2])
        return bad(body, attempt) if row % number == 0 else echo()(body, attempt)

    return respond


def test_a_failed_row_is_told_with_its_error_and_takes_no_other_with_it() -> None:
    run = Run(World(every(10, failing(400))), questions(30)).finish()
    assert [r.index for r in run.results if r.status == "error"] == [0, 10, 20]
    failed = run.results[10]
    assert failed.error_type == "bad_request"
    assert "did not accept the request (HTTP 400)" in failed.error
    assert (failed.query, failed.response, failed.tokens_used) == ("question 10", "", 0)
    assert run.batch.totals.status == "partial"
    assert run.batch.totals.error_types == {"bad_request": 3}


def test_a_row_is_retried_like_a_single_call() -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        return failing(503)(body, number) if number < 3 else good_answer(body)

    run = Run(World(respond), ["one"]).finish()
    assert run.statuses == {"ok": 1}
    assert run.batch.totals.upstream_calls == 4


def test_a_row_without_a_prompt_is_an_error_of_that_row() -> None:
    run = Run(World(echo()), ["one", "   ", "three"]).finish()
    assert [result.status for result in run.results] == ["ok", "error", "ok"]
    assert run.results[1].error_type == "invalid_input"
    assert run.calls == 2


def test_a_missing_column_is_an_error_of_that_row() -> None:
    rows = [{"city": "Ulm"}, {"town": "Linz"}]
    run = Run(World(echo()), rows, prompt_template="Where is {{ city }}?").finish()
    assert [result.status for result in run.results] == ["ok", "error"]
    assert run.results[0].query == "Where is Ulm?"
    assert run.results[1].query == '{"town": "Linz"}'
    assert "city" in run.results[1].error


def test_stop_begins_no_row_after_a_failed_one() -> None:
    world = World(every(10, failing(400)))
    run = Run(world, questions(100)[1:], concurrency=2, on_row_error="stop").finish()
    assert [r.status for r in run.results[:10]] == ["ok"] * 9 + ["error"]
    assert run.statuses["skipped"] >= 85
    assert run.calls <= 12
    assert "on_row_error is stop" in run.results[-1].error


@pytest.mark.parametrize(("status", "kind"), [(401, "auth"), (402, "quota_exhausted")])
def test_a_refused_account_ends_the_batch(status: int, kind: str) -> None:
    run = Run(World(failing(status)), questions(1000), concurrency=5).finish()
    assert run.calls <= 5
    assert set(run.statuses) == {"error", "skipped"}
    assert {r.error_type for r in run.results} == {kind, "skipped"}


def test_an_answer_too_large_for_a_row_is_an_error_of_that_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(config, "MAX_ROW_CHARS", 20)
    run = Run(World(echo()), ["short", "a query of more than twenty characters"]).finish()
    assert [result.status for result in run.results] == ["ok", "error"]
    assert isinstance(run.batch.totals.first_failure, BadResponse)


def test_no_answer_at_all_is_a_failure_of_the_batch_told_with_its_first_cause() -> None:
    run = Run(World(failing(401)), questions(3), concurrency=1).finish()
    with pytest.raises(AuthError, match=r"No row was answered \(1 failed, 2 skipped\)\. The first"):
        run.batch.raise_if_nothing_was_answered()


# --- waiting is no failure ----------------------------------------------------------------------


def test_rows_wait_for_the_credentials_own_limit_longer_than_a_row_may_take() -> None:
    world = World(echo(), requests_per_minute="60")
    run = Run(world, questions(200), concurrency=100, row_timeout_s=10, deadline_s=580).finish()
    assert run.statuses == {"ok": 200}
    assert world.time.monotonic() == pytest.approx(START_S + 141, abs=2)


def test_rows_wait_out_a_pause_that_the_gateway_asks_for() -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        if number == 20:
            return failing(429, retry_after="90")(body, number)
        return echo()(body, number)

    run = Run(World(respond), questions(60), concurrency=10, row_timeout_s=30).finish()
    assert run.statuses == {"ok": 60}


def test_a_storm_of_429s_loses_no_row() -> None:
    storm = random.Random(4)

    def respond(body: dict[str, Any], number: int) -> Any:
        is_refused = storm.random() < 0.3
        return failing(429)(body, number) if is_refused else echo()(body, number)

    run = Run(World(respond, seed=4), questions(100), concurrency=20).finish()
    assert run.statuses == {"ok": 100}


def test_rows_wait_for_the_probe_of_an_open_breaker() -> None:
    def respond(body: dict[str, Any], _: int) -> Any:
        down = 3.0 <= world.time.monotonic() - START_S < 6.0
        return failing(503, latency_s=0.1)(body, 0) if down else echo(0.5)(body, 0)

    world = World(respond)
    run = Run(world, questions(100), concurrency=10, options="max_retries: 6").finish()
    assert run.statuses == {"ok": 100}
    assert world.sent_within(7.0, 30.0) <= 10


def test_an_outage_that_outlasts_a_rows_time_is_a_failure_of_the_row() -> None:
    run = Run(
        World(failing(503)), questions(10), concurrency=10, row_timeout_s=20, deadline_s=200
    ).finish()
    assert {result.error_type for result in run.results} <= {"circuit_open", "server_error"}
    assert run.statuses == {"error": 10}
    assert run.world.time.monotonic() <= START_S + 21


def test_rows_wait_for_budget_that_other_rows_hold() -> None:
    # Each holds about 0.002 USD until it is known to have cost a hundredth of that.
    world = World(
        echo(), price_overrides="gpt-4.1: {input: 1, output: 1}", daily_budget_usd="0.005"
    )
    run = Run(world, questions(30), concurrency=10, max_tokens=2000).finish()
    assert run.statuses == {"ok": 30}


def test_a_budget_that_is_used_up_fails_the_rows_that_need_it() -> None:
    world = World(echo(), price_overrides=PRICES, daily_budget_usd="0.0001")
    run = Run(world, questions(30), concurrency=1, max_tokens=10).finish()
    assert 0 < run.statuses["ok"] < 10
    assert run.results[-1].error_type == "budget_exceeded"
    assert (run.batch.totals.cost_usd or 0) <= Decimal("0.0001")


# --- the deadline -------------------------------------------------------------------------------


def test_at_the_deadline_finished_rows_are_handed_over_and_the_others_skipped() -> None:
    run = Run(World(echo(10.0)), questions(100), concurrency=10, deadline_s=35).finish()
    assert run.statuses == {"ok": 30, "skipped": 70}
    assert run.world.time.monotonic() <= START_S + 35 + config.DEADLINE_GRACE_S
    assert [result.index for result in run.results] == list(range(100))
    assert run.results[-1].query == "question 99"
    assert run.batch.totals.status == "partial"


def test_a_batch_does_not_wait_for_what_comes_after_its_deadline() -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        if number == 5:
            return failing(429, retry_after="3600")(body, number)
        return echo()(body, number)

    run = Run(World(respond), questions(30), concurrency=1, deadline_s=500).finish()
    assert run.statuses == {"ok": 5, "skipped": 25}
    assert run.world.time.monotonic() < START_S + 10
    assert "resets in" in run.results[5].error


def test_nothing_answered_before_the_deadline_is_told_as_such() -> None:
    run = Run(World(echo(99.0)), questions(3), deadline_s=10).finish()
    with pytest.raises(DeadlineExceeded, match="3 skipped"):
        run.batch.raise_if_nothing_was_answered()


def test_who_leaves_early_ends_the_batch() -> None:
    world = World(echo())
    run = Run(world, questions(1000), concurrency=5)

    def some() -> None:
        results = run.batch.results()
        next(results)
        next(results)  # type: ignore[call-overload]
        results.close()  # type: ignore[attr-defined]

    world.time.spawn(some)
    world.time.run()
    assert run.calls <= 15


def test_a_stopped_batch_skips_the_rest_and_waits_for_nobody() -> None:
    world = World(echo(10.0))
    run = Run(world, questions(100), concurrency=5)

    def interrupt() -> None:
        run.batch.stop("Interrupted.")

    task = world.time.spawn(run.consume)
    world.time.spawn(interrupt, after_s=25.0)
    world.time.run()
    assert task.ended_s == START_S + 25
    assert run.statuses == {"ok": 10, "skipped": 90}
    assert run.results[-1].error == "Interrupted."


# --- taking up an earlier run -------------------------------------------------------------------


def test_a_result_file_is_asked_for_what_is_missing_only() -> None:
    first = Run(World(echo(10.0)), questions(20), concurrency=2, deadline_s=55).finish()
    content = b"".join(json_line(result) for result in first.results)
    missing = first.statuses["skipped"]
    assert 0 < missing < 20
    second = Run(World(echo()), list(rows_of_file(content, "results.jsonl"))).finish()
    assert second.calls == missing
    assert second.statuses == {"ok": 20}
    assert [r.response for r in second.results] == [f"re: {q}" for q in questions(20)]
    assert second.batch.totals.taken_over == 20 - missing
    assert second.batch.totals.tokens_used == 15 * missing


def test_a_failed_row_of_an_earlier_run_is_asked_again() -> None:
    first = Run(World(every(3, failing(500))), questions(9), options="max_retries: 0").finish()
    assert first.statuses == {"ok": 6, "error": 3}
    content = b"".join(json_line(result) for result in first.results)
    second = Run(World(echo()), list(rows_of_file(content, "results.jsonl"))).finish()
    assert (second.calls, second.statuses) == (3, {"ok": 9})


def test_a_row_that_had_no_prompt_then_has_none_now() -> None:
    earlier = RowResult(0, "error", '{"a": 1}', error="no b", error_type="invalid_input")
    row = Row(0, earlier.query, {}, result_from(earlier.to_json(), 0))
    run = Run(World(echo()), [row]).finish()
    assert run.results == [earlier]
    assert run.calls == 0


# --- progress -----------------------------------------------------------------------------------


def test_progress_is_told_when_rows_have_ended() -> None:
    run = Run(World(echo(7.5), price_overrides=PRICES), questions(10), concurrency=5)
    run.finish(progress_s=2.0)
    assert [progress.done for progress in run.progress] == [0, 5]
    assert run.progress[0].left_s is None
    assert str(run.progress[-1]) == "5 of 10 rows, 0.000075 USD, about 8 s left"


def test_progress_is_told_now_and_then_when_no_row_ends() -> None:
    run = Run(World(echo(50.0)), questions(2))
    run.finish(progress_s=2.0)
    assert [progress.elapsed_s for progress in run.progress] == [2.0, 22.0, 42.0]


# --- what is checked before the first call ------------------------------------------------------


def check(rows: Any, template: str = "{{ item }}", **how: int) -> int:
    return check_rows(rows_of_queries(rows), Template(template), FakeClock(), **how)


def test_all_rows_are_counted_before_the_first_is_asked() -> None:
    assert check(questions(1234)) == 1234


def test_a_name_that_no_row_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"uses town, which no row has\. Rows have: item, city"):
        check([{"city": "Ulm"}, {"city": "Linz"}], "Where is {{ town }}?")


def test_a_name_that_one_row_has_is_no_reason_to_refuse_all() -> None:
    assert check([{"city": "Ulm"}, {"town": "Linz"}], "{{ town }}") == 2


def test_more_rows_than_a_batch_may_have_are_refused() -> None:
    assert check(questions(10), most=10) == 10
    with pytest.raises(InputError, match="more than 10 rows"):
        check(questions(11), most=10)


# --- rows that come slowly, or not at all -------------------------------------------------------


def batch_over(world: World, rows: Iterable[Row], **params: Any) -> Batch:
    return Batch(
        world.engine,
        parsed(BatchParams, {"model": "gpt-4.1", **params}),
        rows,
        clock=world.time,
        spawn=world.time.spawn,
    )


def test_results_are_handed_over_while_the_next_row_is_awaited() -> None:
    world = World(echo())
    arrived_s: list[float] = []

    def slow_rows() -> Iterable[Row]:
        for number in range(3):
            yield Row(number, f"question {number}")
            world.time.sleep(10.0)

    def consume() -> None:
        results = batch_over(world, slow_rows(), concurrency=2).results()
        arrived_s.extend(world.time.monotonic() - START_S for _ in results)

    world.time.spawn(consume)
    assert world.time.run()[0] is None
    assert arrived_s == [1.0, 11.0, 21.0]


def test_what_was_answered_before_the_rows_broke_off_is_handed_over_first() -> None:
    def rows() -> Iterable[Row]:
        for number in range(5):
            yield Row(number, f"question {number}")
        raise LookupError("the rows broke off")

    world = World(echo())
    results: list[Any] = []

    def consume() -> None:
        for result in batch_over(world, rows()).results():
            results.append(result)  # noqa: PERF402 - what came before the error counts

    world.time.spawn(consume)
    assert isinstance(world.time.run()[0], LookupError)
    assert [result.status for result in results] == ["ok"] * 5


@pytest.mark.parametrize("seed", range(10))
def test_a_row_that_arrives_after_the_deadline_is_skipped_in_its_place(seed: int) -> None:
    world = World(echo(), seed=seed)

    def slow_rows() -> Iterable[Row]:
        for number in range(4):
            yield Row(number, f"question {number}")
            world.time.sleep(10.0 if number == 1 else 0.0)

    results = world.time.spawn(
        lambda: list(batch_over(world, slow_rows(), concurrency=3, deadline_s=5).results())
    )
    world.time.run()
    assert isinstance(results.outcome, list)
    assert [(r.index, r.query, r.status) for r in results.outcome] == [
        (0, "question 0", "ok"),
        (1, "question 1", "ok"),
        (2, "question 2", "skipped"),
        (3, "question 3", "skipped"),
    ]


def test_a_batch_that_is_never_read_holds_nothing(recwarn: pytest.WarningsRecorder) -> None:
    batch_over(World(echo()), [Row(0, "one")])
    gc.collect()
    assert not recwarn.list


def test_rows_that_need_no_waiting_leave_half_of_the_time_to_others() -> None:
    world = World(echo())
    Run(world, ["same"], concurrency=1).finish()
    began_s = world.time.monotonic()
    Run(world, ["same"] * 5000, concurrency=50).finish()
    assert world.time.monotonic() - began_s == pytest.approx(1.0, rel=0.1)


def test_answers_that_could_not_be_used_cost_as_well() -> None:
    world = World(echo(), price_overrides=PRICES)
    run = Run(world, ["one"], json_schema='{"type": "object"}').finish()
    failed = run.results[0]
    assert (failed.error_type, run.calls) == ("invalid_output", 2)
    assert (failed.tokens_used, failed.cost_usd) == (30, Decimal("0.00003"))
    assert run.batch.totals.cost_usd == failed.cost_usd


# --- bugs and interleavings ---------------------------------------------------------------------


def test_a_bug_in_a_worker_is_raised_where_the_results_are_read() -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        raise ZeroDivisionError("bug")

    with pytest.raises(ZeroDivisionError, match="bug"):
        Run(World(respond), questions(5)).finish()


@pytest.mark.parametrize("seed", range(12))
def test_no_interleaving_loses_or_doubles_a_row(seed: int) -> None:
    chance = random.Random(seed)

    def respond(body: dict[str, Any], number: int) -> Any:
        latency_s = chance.uniform(0.0, 3.0)
        match chance.randrange(8):
            case 0:
                return failing(429, retry_after="2")(body, number)
            case 1:
                return failing(500, latency_s)(body, number)
            case _:
                return echo(latency_s)(body, number)

    world = World(respond, seed=seed, requests_per_minute="300", max_concurrency="7")
    rows = [f"question {chance.randrange(40)}" for _ in range(80)]
    run = Run(world, rows, concurrency=10, deadline_s=chance.choice([5, 20, 300])).finish()
    assert [result.index for result in run.results] == list(range(80))
    assert [result.query for result in run.results] == rows
    for result in run.results:
        if result.status == "ok":
            assert result.response == f"re: {result.query}"
    assert run.batch.totals.total == 80
    assert run.batch.totals.upstream_calls == run.calls
    if run.statuses == {"ok": 80}:
        assert isinstance(run.batch.totals.first_failure, ServerError | None)
