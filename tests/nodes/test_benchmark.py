"""The benchmark node: its figures, what it never does, and what it says about failed calls."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from devtools.upstream import behaviours as do
from tests.nodes.support import (
    BAD_REQUEST,
    CONNECTION,
    FAILURES,
    NUMBER,
    TOOL,
    USAGE,
    Kind,
    Node,
    check_messages,
    fresh_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from devtools.upstream import Upstream
    from tests.host.daemon import PluginProcess, Result

LATENCIES = (
    *("avg_latency_ms", "min_latency_ms", "max_latency_ms"),
    *("p50_latency_ms", "p95_latency_ms", "p99_latency_ms"),
)
VALUES: dict[str, Kind] = {
    **dict.fromkeys(LATENCIES, NUMBER),
    "avg_ttft_ms": NUMBER,
    "throughput_rpm": NUMBER,
    "succeeded": int,
    "failed": int,
    "tokens_used": int,
    "cost_usd": NUMBER,
}


class BenchmarkNode(Node):
    tool = "holysheep_benchmark"

    def check(self, result: Result) -> None:
        check_messages(result, strings=set(), values=VALUES, shown=set(VALUES))
        values = result.variables
        ranks = [values[f"{rank}_latency_ms"] for rank in ("min", "p50", "p95", "p99", "max")]
        assert ranks == sorted(ranks)
        assert values["min_latency_ms"] <= values["avg_latency_ms"] <= values["max_latency_ms"]
        assert 0 < values["avg_ttft_ms"] <= values["avg_latency_ms"] + 5
        assert values["succeeded"] > 0, "with no answer the node fails"
        least_rpm = values["succeeded"] / result.elapsed_ms * 60_000
        assert values["throughput_rpm"] >= round(least_rpm, 1)
        table = self.table(result)
        assert int(table["Answered"].partition(" ")[0].replace(",", "")) == values["succeeded"]
        assert float(table["P95"].removesuffix(" ms").replace(",", "")) == pytest.approx(
            values["p95_latency_ms"], abs=0.051
        )

    def table(self, result: Result) -> dict[str, str]:
        """The Markdown table at the head of the text."""
        head, _, notes = result.text.partition("\n\n")
        lines = head.splitlines()
        assert re.fullmatch(r"\|(-+\|)+", lines[1])
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        assert {len(row) for row in rows} == {2}
        assert "nearest-rank" in notes
        return {name: value for name, value in [rows[0], *rows[2:]]}  # noqa: C416 - checks pairs


@pytest.fixture
def node(plugin: PluginProcess, upstream: Upstream) -> BenchmarkNode:
    return BenchmarkNode(plugin, upstream)


# --- every output on every path -----------------------------------------------------------------


def all_answered(node: BenchmarkNode) -> Result:
    return node.run(iterations=6)


def one_call(node: BenchmarkNode) -> Result:
    return node.run(iterations=1)


def many_at_a_time(node: BenchmarkNode) -> Result:
    return node.run(iterations=60, concurrency=20)


def some_failed(node: BenchmarkNode) -> Result:
    node.upstream.script(do.ok("Yes."), do.status(400), do.server_error())
    return node.run(iterations=5)


def priced(node: BenchmarkNode) -> Result:
    return node.run(iterations=3, custom_model="gpt-4.1")


def no_stream(node: BenchmarkNode) -> Result:
    node.upstream.default(do.json_for_stream(text="Yes."))
    return node.run(iterations=3)


PATHS: dict[str, tuple[Callable[[BenchmarkNode], Result], int, int]] = {
    "all_answered": (all_answered, 6, 0),
    "one_call": (one_call, 1, 0),
    "many_at_a_time": (many_at_a_time, 60, 0),
    "some_failed": (some_failed, 3, 2),
    "priced": (priced, 3, 0),
    "no_stream": (no_stream, 3, 0),
}


@pytest.mark.parametrize(("path", "succeeded", "failed"), PATHS.values(), ids=PATHS)
def test_every_output_comes_once_in_its_type_and_order(
    node: BenchmarkNode,
    path: Callable[[BenchmarkNode], Result],
    succeeded: int,
    failed: int,
) -> None:
    values = path(node).variables
    assert (values["succeeded"], values["failed"]) == (succeeded, failed)
    assert node.calls == succeeded + failed


def test_text_is_a_table_of_all_figures(node: BenchmarkNode) -> None:
    result = node.run(iterations=4, concurrency=2, custom_model="gpt-4.1")
    table = node.table(result)
    assert table["gpt-4.1"] == "2 at a time"
    assert set(table) >= {
        *("Answered", "Latency, average", "Minimum", "Maximum", "P50", "P95", "P99"),
        *("Throughput", "Tokens", "Cost"),
    }
    assert table["Answered"] == "4 of 4"
    assert table["Cost"] == f"{result.streamed['cost_usd']} USD"
    assert table["Tokens"].replace(",", "") == str(result.variables["tokens_used"])


# --- figures ------------------------------------------------------------------------------------


def test_latency_is_that_of_the_gateway(node: BenchmarkNode) -> None:
    node.upstream.default(do.ok("Yes.", latency_ms=50))
    values = node.run(iterations=4).variables
    assert 50 <= values["min_latency_ms"] <= values["p50_latency_ms"] < 150


def test_percentiles_are_nearest_rank(node: BenchmarkNode) -> None:
    node.upstream.script(*(do.ok("Yes.", latency_ms=1) for _ in range(19)))
    node.upstream.script(do.ok("Yes.", latency_ms=300))
    values = node.run(iterations=20).variables
    assert values["p95_latency_ms"] < 300, "the 19th of 20"
    assert values["p99_latency_ms"] == values["max_latency_ms"] >= 300
    assert values["avg_latency_ms"] >= 15


def test_the_first_token_is_timed_apart(node: BenchmarkNode) -> None:
    node.upstream.default(do.ok(chunks=["one ", "two ", "three"], latency_ms=20, chunk_delay_ms=40))
    values = node.run(iterations=3).variables
    assert 20 <= values["avg_ttft_ms"] < values["avg_latency_ms"] - 40
    assert values["avg_latency_ms"] >= 100


def test_throughput_grows_with_what_runs_at_a_time(node: BenchmarkNode) -> None:
    node.upstream.default(do.ok("Yes.", latency_ms=40))
    alone = node.run(iterations=5).variables["throughput_rpm"]
    together = node.run(iterations=20, concurrency=10).variables["throughput_rpm"]
    assert alone <= 1500
    assert together > 3 * alone


def test_tokens_and_cost_are_the_sums_of_all_answers(node: BenchmarkNode) -> None:
    node.upstream.default(do.ok("Yes.", usage=USAGE))
    node.upstream.script(do.ok("Yes.", usage=USAGE), do.status(400))
    result = node.run(iterations=5, custom_model="gpt-4.1")
    assert result.variables["tokens_used"] == 4800
    assert result.variables["cost_usd"] == pytest.approx(0.0144)
    assert result.streamed["cost_usd"] == "0.0144"


def test_the_cost_of_a_model_without_a_price_is_unknown(node: BenchmarkNode) -> None:
    result = node.run(iterations=2)
    assert result.variables["cost_usd"] is None
    assert result.streamed["cost_usd"] == "unknown"
    assert "unknown" in node.table(result)["Cost"]


# --- what is sent -------------------------------------------------------------------------------


def test_without_parameters_20_calls_of_128_tokens_are_made_one_by_one(
    node: BenchmarkNode,
) -> None:
    values = node.run().variables
    assert (values["succeeded"], node.calls, node.upstream.stats().max_in_flight) == (20, 20, 1)
    body = node.bodies[0]
    assert (body["model"], body["max_tokens"]) == (node.model, 128)
    assert body["messages"][0]["content"].strip()
    assert node.bodies == [body] * 20


def test_parameters_reach_the_gateway(node: BenchmarkNode) -> None:
    node.run(prompt="Count to 3.", iterations="2", concurrency="2", max_tokens="9", model="gpt-4.1")
    for body in node.bodies:
        assert (body["model"], body["max_tokens"]) == ("gpt-4.1", 9)
        assert body["messages"] == [{"role": "user", "content": "Count to 3."}]


@pytest.mark.parametrize("unset", ["", None])
def test_what_is_left_empty_is_not_set(node: BenchmarkNode, unset: str | None) -> None:
    names = ("prompt", "model", "custom_model", "concurrency", "max_tokens", "deadline_s")
    node.run(iterations=1, **dict.fromkeys(names, unset))
    (body,) = node.bodies
    assert (body["model"], body["max_tokens"]) == (node.model, 128)


def test_custom_model_wins_over_model(node: BenchmarkNode) -> None:
    own = fresh_model()
    node.run(iterations=1, model="gpt-4.1", custom_model=own)
    assert node.bodies[0]["model"] == own


def test_nothing_comes_from_the_cache_or_gets_there(node: BenchmarkNode) -> None:
    node.run(prompt="Same.", iterations=3, concurrency=3)
    body = dict(node.bodies[0])
    llm = {"query": "Same.", "max_tokens": 128, "custom_model": node.model}
    for expected in ("miss", "hit"):
        result = node.plugin.call(TOOL, llm, node.credentials)
        assert result.variables["meta"]["cache"] == expected
    assert node.bodies[3] == body, "the node asks what the benchmark asked"
    node.run(prompt="Same.", iterations=2)
    assert node.calls == 6


@pytest.mark.parametrize(("concurrency", "expected"), [(4, 4), (100, 7)])
def test_no_more_calls_are_in_flight_than_asked_for_and_allowed(
    node: BenchmarkNode, concurrency: int, expected: int
) -> None:
    node.upstream.default(do.ok("Yes.", latency_ms=30))
    result = node.like(max_concurrency="7").run(iterations=21, concurrency=concurrency)
    assert node.upstream.stats().max_in_flight == expected
    assert f"{expected} at a time" in result.text


def test_waiting_for_slots_that_others_hold_is_no_latency(node: BenchmarkNode) -> None:
    limited = node.like(max_concurrency="1")
    node.upstream.script(do.ok("Yes.", latency_ms=300))
    other = limited.plugin.start(TOOL, {"query": "First."}, limited.credentials)
    node.upstream.wait_for(lambda stats: stats.in_flight == 1)
    values = limited.run(iterations=2).variables
    assert values["max_latency_ms"] < 200
    assert values["avg_ttft_ms"] < 200
    assert other.result().error is None


# --- faults in the middle -----------------------------------------------------------------------

FAULTS: dict[str, tuple[do.Behaviour, str]] = {
    "500": (do.server_error(), "server_error 1"),
    "429": (do.rate_limited(retry_after_ms=1), "rate_limited 1"),
    "400": (do.status(400), "bad_request 1"),
    "402": (do.quota_exhausted(), "quota_exhausted 1"),
    "cut_off": (do.reset("chunks", chunks=2, text="one two three four"), "connection_failed 1"),
    "no_text": (do.reset("headers"), "connection_failed 1"),
    "no_json": (do.malformed("not_json"), "bad_response 1"),
}


@pytest.mark.parametrize(("fault", "told"), FAULTS.values(), ids=FAULTS)
def test_a_fault_in_the_middle_is_counted_and_not_tried_again(
    node: BenchmarkNode, fault: do.Behaviour, told: str
) -> None:
    node.upstream.script(do.ok("Yes."), do.ok("Yes."), fault)
    result = node.run(iterations=6)
    assert (result.variables["succeeded"], result.variables["failed"]) == (5, 1)
    assert node.calls == 6
    assert node.table(result)["Answered"] == "5 of 6"
    assert told in result.text


def test_a_stall_ends_at_the_deadline_and_is_not_counted(node: BenchmarkNode) -> None:
    node.upstream.script(*(do.ok("Yes.") for _ in range(5)))
    node.upstream.default(do.stall("after_chunks", 30, text="one two three"))
    result = node.run(iterations=100, concurrency=2, deadline_s=1)
    assert (result.variables["succeeded"], result.variables["failed"]) == (5, 0)
    assert result.variables["max_latency_ms"] < 900
    assert 950 <= result.elapsed_ms <= 1800
    assert "95 were not finished" in result.text
    assert node.calls == 7


def test_a_model_that_is_down_is_told_by_kind(node: BenchmarkNode) -> None:
    node.upstream.script(do.ok("Yes."))
    node.upstream.default(do.outage())
    result = node.run(iterations=12)
    assert (result.variables["succeeded"], result.variables["failed"]) == (1, 11)
    assert "server_error 5" in result.text
    assert "circuit_open 6" in result.text
    assert node.calls == 6


# --- no call is answered ------------------------------------------------------------------------

CLASSES = {**FAILURES, "429_too_late": (do.rate_limited(3600), BAD_REQUEST)}


@pytest.mark.parametrize(("fault", "kind"), CLASSES.values(), ids=CLASSES)
def test_the_node_fails_as_the_first_call_did(
    node: BenchmarkNode, fault: do.Behaviour, kind: str
) -> None:
    node.upstream.default(fault)
    error = node.failure(iterations=3)
    assert error.type == kind
    assert "No call was answered" in error.message


def test_a_benchmark_out_of_time_fails_as_a_connection_does(node: BenchmarkNode) -> None:
    node.upstream.default(do.stall("headers", 30))
    error = node.failure(iterations=5, concurrency=2, deadline_s=1)
    assert error.type == CONNECTION
    assert "deadline_s" in error.message
    assert node.calls == 2


def test_a_key_that_the_gateway_repeats_is_not_told(node: BenchmarkNode) -> None:
    node.upstream.script(do.ok("Yes."), do.status(400, message=f"Key {node.key} is odd"))
    assert "bad_request 1" in node.run(iterations=3).text


# --- bad input ----------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "iterations_0": ({"iterations": 0}, "iterations must be a whole number from 1 to 500, got 0"),
    "iterations_501": ({"iterations": 501}, "iterations must be a whole number from 1 to 500"),
    "iterations_half": ({"iterations": 2.5}, "whole number from 1 to 500, got 2.5"),
    "iterations_word": ({"iterations": "ten"}, "whole number from 1 to 500, got 'ten'"),
    "iterations_true": ({"iterations": True}, "iterations must be a whole number"),
    "iterations_list": ({"iterations": [3]}, "iterations must be a whole number"),
    "concurrency_0": ({"concurrency": 0}, "concurrency must be a whole number from 1 to 100"),
    "concurrency_101": ({"concurrency": 101}, "whole number from 1 to 100, got 101"),
    "max_tokens_0": ({"max_tokens": 0}, "max_tokens must be a whole number from 1 to 1 000 000"),
    "deadline_0": ({"deadline_s": 0}, "deadline_s must be a number from 1 to 580, got 0"),
    "deadline_581": ({"deadline_s": 581}, "deadline_s must be a number from 1 to 580, got 581"),
    "model": ({"custom_model": "a\nb"}, "model"),
    "model_number": ({"custom_model": 7}, "model"),
    "long_prompt": ({"prompt": "x" * 5_000_000}, "1,000,000"),
}


@pytest.mark.parametrize(("parameters", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_a_sentence_before_anything_is_sent(
    node: BenchmarkNode, parameters: dict[str, Any], words: str
) -> None:
    assert words in node.refusal(**parameters)


# --- several at once ----------------------------------------------------------------------------


def test_benchmarks_and_other_calls_run_side_by_side(node: BenchmarkNode) -> None:
    node.upstream.default(do.ok("Yes.", latency_ms=20))
    own = node.like(default_model=fresh_model())
    calls = [node.start(iterations=10, concurrency=3), own.start(iterations=10, concurrency=3)]
    llm = node.plugin.call(TOOL, {"query": "In between."}, node.credentials)
    assert llm.error is None
    for benchmark, call in zip((node, own), calls, strict=True):
        values = benchmark.finish(call).variables
        assert (values["succeeded"], values["failed"]) == (10, 0)
    assert node.upstream.stats().calls_by_model == {node.model: 11, own.model: 10}
