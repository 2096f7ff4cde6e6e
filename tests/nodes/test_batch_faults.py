"""A gateway that fails in the middle of a batch: no row is lost, and none gets another's answer."""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING, Any

import pytest

from devtools.upstream import Upstream
from devtools.upstream import behaviours as do
from tests.nodes.batch_support import BatchNode, texts
from tests.nodes.support import NO_RETRIES

if TYPE_CHECKING:
    from tests.host.daemon import PluginProcess
    from tests.nodes.batch_support import Outcome


@pytest.fixture
def quick_batch(quick_plugin: PluginProcess, upstream: Upstream) -> BatchNode:
    """The node in a process whose breaker stays open for a moment only."""
    return BatchNode(quick_plugin, upstream)


def check_nothing_lost(outcome: Outcome, queries: list[str]) -> None:
    """Fail unless each row is there, once, in its place, with the answer to its own query."""
    assert outcome.values["total"] == len(queries)
    assert sum(outcome.counts) == len(queries)
    assert outcome.queries == queries
    for row in outcome.rows:
        if row["status"] == "ok":
            assert f"You said: {row['query']} [" in row["response"]


def check_all_answered(outcome: Outcome, queries: list[str]) -> None:
    check_nothing_lost(outcome, queries)
    assert outcome.counts == (len(queries), 0, 0), outcome.result.text


# --- errors that pass ---


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(do.rate_limited(retry_after_ms=50), id="429_with_time"),
        pytest.param(do.rate_limited(0), id="429_come_at_once"),
        pytest.param(do.server_error(500), id="500"),
        pytest.param(do.status(503, headers={"retry-after-ms": "20"}), id="503_with_time"),
        pytest.param(do.overloaded(), id="529"),
        pytest.param(do.reset("headers"), id="reset_after_the_headers"),
        pytest.param(do.reset("chunks"), id="reset_in_the_answer"),
        pytest.param(do.malformed("short_body"), id="body_cut_short"),
    ],
)
def test_faults_in_the_middle_are_retried_and_no_row_is_lost(
    batch: BatchNode, behaviour: do.Behaviour
) -> None:
    queries = texts(40)
    batch.upstream.script(*[do.ok()] * 15, *[behaviour] * 4)
    outcome = batch.run(queries, concurrency=8)
    check_all_answered(outcome, queries)
    assert outcome.values["upstream_calls"] == batch.calls == 44


def test_connections_that_die_when_used_again_cost_no_row(batch: BatchNode) -> None:
    queries = texts(40)
    batch.upstream.script(*[do.ok()] * 15, *[do.reset("accept")] * 3, do.drop_on_reuse())
    check_all_answered(batch.run(queries, concurrency=8), queries)


def test_burst_of_429s_with_a_time_is_waited_out(batch: BatchNode) -> None:
    queries = texts(60)
    batch.upstream.script(*[do.ok()] * 20, *[do.rate_limited(1, latency_ms=60)] * 20)
    outcome = batch.run(queries, concurrency=20, options=NO_RETRIES)
    check_all_answered(outcome, queries)
    assert 1000 <= outcome.values["elapsed_ms"] <= 4500
    assert outcome.values["upstream_calls"] == batch.calls == 80


def test_burst_of_429s_without_a_time_is_waited_out(batch: BatchNode) -> None:
    queries = texts(60)
    batch.upstream.script(*[do.ok()] * 20, *[do.rate_limited(latency_ms=60)] * 10)
    outcome = batch.run(queries, concurrency=10, options=NO_RETRIES)
    check_all_answered(outcome, queries)
    assert outcome.values["elapsed_ms"] <= 5000
    assert outcome.values["upstream_calls"] == batch.calls == 70


def test_storm_of_mixed_faults_loses_no_row(quick_batch: BatchNode) -> None:
    queries = texts(300)
    chance = random.Random(1)
    faults = [
        do.rate_limited(retry_after_ms=5),
        do.status(500, headers={"retry-after-ms": "5"}),
        do.reset("accept"),
        do.reset("chunks"),
        do.malformed("not_json"),
        do.malformed("truncated_json"),
        do.status(400),
        do.status(413),
    ]
    quick_batch.upstream.script(
        *(chance.choice(faults) if chance.random() < 0.3 else do.ok() for _ in range(330))
    )
    outcome = quick_batch.run(queries, concurrency=30)
    check_nothing_lost(outcome, queries)
    assert outcome.values["succeeded"] >= 150
    assert outcome.values["skipped"] == 0
    # Whichever of the faults a row has met when its retries were over.
    retried = {"bad_response", "connection_failed", "rate_limited", "server_error"}
    assert set(outcome.error_types) <= {"", "bad_request"} | retried
    assert outcome.values["upstream_calls"] <= quick_batch.calls


# --- errors that stay ---


@pytest.mark.parametrize(
    ("behaviour", "error_type"),
    [
        pytest.param(do.status(400), "bad_request", id="400"),
        pytest.param(do.status(413), "bad_request", id="413"),
        pytest.param(do.unknown_model(), "bad_request", id="unknown_model"),
        pytest.param(do.server_error(500), "server_error", id="500"),
        pytest.param(do.overloaded(), "server_error", id="529"),
        pytest.param(do.reset("headers"), "connection_failed", id="reset"),
        pytest.param(do.malformed("not_json"), "bad_response", id="not_json"),
        pytest.param(do.malformed("html"), "bad_response", id="html"),
        pytest.param(do.malformed("no_choices"), "bad_response", id="no_choices"),
        pytest.param(do.malformed("empty_body"), "bad_response", id="empty_body"),
        pytest.param(do.stall("headers", 20), "timeout", id="silence"),
    ],
)
def test_row_that_fails_says_of_which_kind(
    batch: BatchNode, behaviour: do.Behaviour, error_type: str
) -> None:
    queries = texts(4)
    batch.upstream.script(do.ok(), behaviour, do.ok(), do.ok())
    outcome = batch.run(queries, concurrency=1, row_timeout_s=1, options=NO_RETRIES)
    check_nothing_lost(outcome, queries)
    assert outcome.statuses == ["ok", "error", "ok", "ok"]
    assert outcome.error_types[1] == error_type
    assert error_type in outcome.result.text
    assert outcome.values["elapsed_ms"] < 1800


def test_row_that_hangs_holds_up_no_other(batch: BatchNode) -> None:
    queries = texts(50)
    batch.upstream.script(do.ok(), do.stall("headers", 20))
    outcome = batch.run(queries, concurrency=2, row_timeout_s=1, options=NO_RETRIES)
    check_nothing_lost(outcome, queries)
    assert outcome.counts == (49, 1, 0)
    assert outcome.error_types.count("timeout") == 1
    assert 1000 <= outcome.values["elapsed_ms"] < 1800


def test_row_timeout_covers_the_retries_of_a_row(batch: BatchNode) -> None:
    batch.upstream.script(do.ok())
    batch.upstream.default(do.stall("headers", 0.4) | do.reset("accept", latency_ms=400))
    outcome = batch.run(texts(2), concurrency=1, row_timeout_s=1, options={"max_retries": 10})
    assert outcome.statuses == ["ok", "error"]
    assert outcome.values["elapsed_ms"] < 1500


@pytest.mark.parametrize("behaviour", [do.status(401), do.quota_exhausted()], ids=["401", "402"])
def test_account_refused_in_the_middle_keeps_what_was_answered(
    batch: BatchNode, behaviour: do.Behaviour
) -> None:
    queries = texts(100)
    batch.upstream.script(*[do.ok()] * 20)
    batch.upstream.default(behaviour)
    outcome = batch.run(queries, concurrency=4)
    check_nothing_lost(outcome, queries)
    assert outcome.values["status"] == "partial"
    assert outcome.values["succeeded"] == 20
    assert {"auth", "quota_exhausted"} & set(outcome.error_types)
    assert batch.calls <= 30, "an account without credit is not asked for every row"


# --- stop at the first failure ---


def test_stop_begins_no_row_after_a_failed_one(batch: BatchNode) -> None:
    queries = texts(20)
    batch.upstream.script(do.ok(), do.ok(), do.status(400))
    outcome = batch.run(queries, concurrency=1, on_row_error="stop")
    check_nothing_lost(outcome, queries)
    assert outcome.statuses == ["ok", "ok", "error", *["skipped"] * 17]
    assert outcome.values["status"] == "partial"
    assert batch.calls == 3
    assert set(outcome.error_types[3:]) == {"skipped"}


def test_stop_lets_rows_in_flight_end(batch: BatchNode) -> None:
    queries = texts(50)
    batch.upstream.script(do.ok(latency_ms=150), do.status(400, latency_ms=50))
    batch.upstream.default(do.ok(latency_ms=150))
    outcome = batch.run(queries, concurrency=4, on_row_error="stop")
    check_nothing_lost(outcome, queries)
    assert outcome.counts == (3, 1, 46)
    assert batch.calls == 4


def test_stop_at_the_first_row_fails_the_node(batch: BatchNode) -> None:
    batch.upstream.script(do.status(400))
    error = batch.failure(texts(10), concurrency=1, on_row_error="stop")
    assert "1 failed" in error.message
    assert "9 skipped" in error.message
    assert batch.calls == 1


def test_row_that_was_retried_with_success_does_not_stop(batch: BatchNode) -> None:
    queries = texts(10)
    batch.upstream.script(do.ok(), do.rate_limited(retry_after_ms=1), do.reset())
    outcome = batch.run(queries, concurrency=1, on_row_error="stop")
    check_all_answered(outcome, queries)


def test_row_without_a_prompt_stops_too(batch: BatchNode) -> None:
    queries: list[dict[str, Any]] = [{"a": "1", "b": 1}, {"a": "2"}, {"a": "3", "b": 3}]
    outcome = batch.run(
        queries, prompt_template="{{ a }}{{ b }}", concurrency=1, on_row_error="stop"
    )
    assert outcome.statuses == ["ok", "error", "skipped"]


# --- outages ---


def test_outage_that_opens_the_breaker_costs_no_row(quick_batch: BatchNode) -> None:
    queries = texts(100)
    upstream = quick_batch.upstream
    upstream.script(*[do.ok(latency_ms=10)] * 20)
    upstream.default(do.outage())
    invocation = quick_batch.start(queries, concurrency=10)
    # Ten in flight at most fail together and open it; what comes later are probes.
    upstream.wait_for(lambda stats: stats.answered.get(503, 0) >= 12, timeout_s=10)
    refused = upstream.stats().answered[503]
    upstream.default(None)
    outcome = quick_batch.finish(invocation)
    check_all_answered(outcome, queries)
    assert refused < 40, "an open breaker keeps the rows from asking"
    assert outcome.values["upstream_calls"] == quick_batch.calls


def test_outage_that_does_not_end_costs_the_rows_but_not_the_answers(
    quick_batch: BatchNode,
) -> None:
    queries = texts(40)
    quick_batch.upstream.script(*[do.ok()] * 10)
    quick_batch.upstream.default(do.outage())
    outcome = quick_batch.run(queries, concurrency=5, row_timeout_s=1, deadline_s=1)
    check_nothing_lost(outcome, queries)
    assert outcome.values["succeeded"] == 10
    assert outcome.values["status"] == "partial"
    assert outcome.values["elapsed_ms"] <= 2200
    assert set(outcome.error_types) <= {"", "server_error", "circuit_open", "timeout", "skipped"}


def test_gateway_that_is_killed_and_comes_back_costs_no_row(quick_plugin: PluginProcess) -> None:
    queries = texts(200)
    with Upstream(latency_ms=10) as first:
        batch = BatchNode(quick_plugin, first)
        invocation = batch.start(queries, concurrency=8)
        first.wait_for(lambda stats: stats.calls >= 40)
        os.kill(first.pid, signal.SIGKILL)
        port = first.port
    assert not invocation.done
    with Upstream(port=port, latency_ms=10) as second:
        outcome = batch.finish(invocation)
        check_all_answered(outcome, queries)
        assert second.stats().calls >= 120


# --- equal rows among failing ones ---


def test_equal_rows_get_their_answer_after_one_of_them_failed_by_chance(
    batch: BatchNode,
) -> None:
    batch.upstream.script(do.server_error(latency_ms=30), do.ok("answer"))
    outcome = batch.run(["same"] * 6, concurrency=6, options=NO_RETRIES)
    assert outcome.counts == (5, 1, 0)
    assert outcome.responses.count("answer") == 5
    assert batch.calls == 2


def test_equal_rows_of_one_that_is_refused_are_not_asked_again(batch: BatchNode) -> None:
    batch.upstream.script(do.status(400))
    outcome = batch.run([*["same"] * 6, "other"], concurrency=1)
    assert outcome.statuses == [*["error"] * 6, "ok"]
    assert set(outcome.error_types[:6]) == {"bad_request"}
    assert batch.calls == outcome.values["upstream_calls"] == 2


def test_equal_rows_in_flight_share_a_refusal(batch: BatchNode) -> None:
    batch.upstream.default(do.status(400, latency_ms=40))
    assert "6 failed" in batch.failure(["same"] * 6, concurrency=6).message
    assert batch.calls == 1
