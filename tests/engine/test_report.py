"""What people read about a batch and a benchmark, line by line."""

from decimal import Decimal
from typing import Any

import pytest

from holysheep.batch import Batch
from holysheep.benchmark import Benchmark
from holysheep.params import BatchParams, BenchmarkParams
from holysheep.reading import parsed
from holysheep.report import batch_report, benchmark_report
from holysheep.results import RowResult
from holysheep.rows import Row, rows_of_queries
from tests.engine.world import Respond, World, failing
from tests.fakes import good_answer, streamed_answer

PRICES = "gpt-4.1: {input: 1, output: 1}"  # an answer of 15 tokens costs 15 millionths


def slowly(body: dict[str, Any], number: int) -> Any:
    """1, 2, 3 … seconds."""
    return good_answer(body, latency_s=number + 1.0)


def but(bad: Respond, *numbers: int, good: Respond = slowly) -> Respond:
    return lambda body, number: (bad if number + 1 in numbers else good)(body, number)


def benchmark_on(world: World, **params: Any) -> Benchmark:
    benchmark = Benchmark(
        world.engine,
        parsed(BenchmarkParams, {"model": "gpt-4.1", **params}),
        clock=world.time,
        spawn=world.time.spawn,
    )
    world.time.spawn(benchmark.run)
    assert world.time.run()[0] is None
    return benchmark


def batch_on(world: World, rows: Any, **params: Any) -> Batch:
    batch = Batch(
        world.engine,
        parsed(BatchParams, {"model": "gpt-4.1", **params}),
        rows,
        clock=world.time,
        spawn=world.time.spawn,
    )
    world.time.spawn(lambda: list(batch.results()))
    outcome = world.time.run()[0]
    assert isinstance(outcome, list), outcome
    return batch


def questions(count: int) -> Any:
    return rows_of_queries([f"question {number}" for number in range(count)])


def table_of(report: str) -> dict[str, str]:
    """The rows of a Markdown table of two columns; fails for one that would not be drawn."""
    lines = report.partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(line.startswith("|") and line.endswith("|") for line in lines)
    assert {len(row) for row in cells} == {2}
    assert cells[1] == ["---", "---"]
    assert all(cell for row in cells for cell in row)
    return {name: value for name, value in [cells[0], *cells[2:]]}  # noqa: C416 - checks pairs


def notes_of(report: str) -> list[str]:
    return report.partition("\n\n")[2].splitlines()


# --- benchmark ----------------------------------------------------------------------------------


def test_a_benchmark_is_a_table_of_its_figures() -> None:
    world = World(slowly, price_overrides=PRICES)
    table = table_of(benchmark_report(benchmark_on(world, iterations=20, concurrency=4)))
    assert table.pop("gpt-4.1") == "4 at a time"
    assert table.pop("Throughput").endswith(" per minute")
    assert table == {
        "Answered": "20 of 20",
        "Latency, average": "10,500.0 ms",
        "Minimum": "1,000.0 ms",
        "P50": "10,000.0 ms",
        "P95": "19,000.0 ms",
        "P99": "20,000.0 ms",
        "Maximum": "20,000.0 ms",
        "First token, average": "10,500.0 ms",
        "Tokens": "300",
        "Cost": "0.0003 USD",
    }


def test_the_way_percentiles_are_taken_is_named() -> None:
    report = benchmark_report(benchmark_on(World(slowly), iterations=1))
    assert "nearest-rank" in report
    assert len(notes_of(report)) == 1, "nothing else is worth a note"


def test_the_first_token_is_told_beside_the_whole_answer() -> None:
    world = World(lambda body, _: streamed_answer(body, "a ", "b ", "c", pause_s=0.25))
    table = table_of(benchmark_report(benchmark_on(world, iterations=2)))
    assert (table["First token, average"], table["P50"]) == ("250.0 ms", "1,000.0 ms")


def test_throughput_is_told_per_minute() -> None:
    world = World(lambda body, _: good_answer(body, latency_s=0.5))
    table = table_of(benchmark_report(benchmark_on(world, iterations=10, concurrency=10)))
    assert table["Throughput"] == "1,200 per minute"


def test_failures_are_told_by_kind_with_the_first_of_them() -> None:
    world = World(but(failing(400), 3, 5, good=but(failing(500), 4)))
    report = benchmark_report(benchmark_on(world, iterations=10))
    assert table_of(report)["Answered"] == "7 of 10"
    (note,) = [note for note in notes_of(report) if note.startswith("Failed: ")]
    assert note.startswith("Failed: bad_request 2, server_error 1. ")
    assert "HTTP 400" in note


def test_what_the_deadline_cut_off_is_told() -> None:
    world = World(lambda body, _: good_answer(body, latency_s=10.0))
    report = benchmark_report(benchmark_on(world, iterations=100, deadline_s=35))
    assert table_of(report)["Answered"].startswith("3 of ")
    assert "97 were not finished at the deadline." in notes_of(report)


def test_a_benchmark_that_its_own_limits_held_up_says_so() -> None:
    world = World(lambda body, _: good_answer(body, latency_s=0.1), requests_per_minute="30")
    report = benchmark_report(benchmark_on(world, iterations=40))
    (note,) = [note for note in notes_of(report) if "waited" in note]
    assert "this credential's own limits" in note
    assert table_of(report)["Maximum"] == "100.0 ms"


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        ("gpt-4.1: {input: 0, output: 0}", "0 USD"),
        ("gpt-4.1: {input: 1000000, output: 1000000}", "30 USD"),
        ("gpt-4.1: {input: 0.001, output: 0}", "0.00000002 USD"),
    ],
    ids=["free", "dear", "tiny"],
)
def test_a_cost_is_written_out(prices: str, expected: str) -> None:
    world = World(slowly, price_overrides=prices)
    table = table_of(benchmark_report(benchmark_on(world, iterations=2)))
    assert table["Cost"] == expected


def test_an_unknown_cost_is_said_to_be() -> None:
    table = table_of(benchmark_report(benchmark_on(World(slowly), model="odd", iterations=2)))
    assert "unknown" in table["Cost"]
    assert table.pop("odd") == "1 at a time"


def test_a_key_in_what_the_gateway_says_is_not_told() -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        said = {"error": {"message": f"bad key {key}"}}
        return (0.1, 400, {}, said) if number == 1 else good_answer(body)

    key = "test-key-" + "z" * 30
    world = World(respond, api_key=key)
    assert key not in benchmark_report(benchmark_on(world, iterations=3))


# --- batch --------------------------------------------------------------------------------------


def test_a_batch_that_went_well_is_told_in_four_lines() -> None:
    world = World(slowly, price_overrides=PRICES)
    batch = batch_on(world, questions(20), concurrency=20)
    assert batch_report(batch, ["results.jsonl"]).splitlines() == [
        "- **20 of 20 rows answered**",
        "- 20 upstream calls",
        "- 300 tokens, 0.0003 USD, 20 s, 60 rows per minute",
        "- Latency: 10,500.0 ms on average, P50 10,000.0 ms, P95 19,000.0 ms, P99 20,000.0 ms",
        "- All rows: results.jsonl",
    ]


def test_rows_without_a_call_of_their_own_are_told() -> None:
    batch = batch_on(World(slowly), rows_of_queries(["same"] * 5), concurrency=1)
    report = batch_report(batch)
    assert "- 1 upstream call, 4 rows without a call of their own" in report
    assert "All rows" not in report, "there is no file"


def test_a_batch_of_known_rows_has_no_latency() -> None:
    world = World(slowly)
    batch_on(world, questions(3))
    assert "Latency" not in batch_report(batch_on(world, questions(3)))


def test_failed_and_skipped_rows_are_told_with_the_first_failure_and_the_way_on() -> None:
    world = World(but(failing(400), 3, 5))
    batch = batch_on(world, questions(10), concurrency=1, deadline_s=20)
    report = batch_report(batch, ["results.csv"])
    lines = report.splitlines()
    totals = batch.totals
    assert totals.skipped
    assert lines[0] == (
        f"- **{totals.succeeded} of 10 rows answered**, 2 failed (bad_request 2),"
        f" {totals.skipped} skipped"
    )
    (first,) = [line for line in lines if line.startswith("- First failure: ")]
    assert "HTTP 400" in first
    assert lines[-1].startswith("- Give results.csv to the node as its file")


def test_several_parts_are_to_be_given_one_at_a_time() -> None:
    batch = batch_on(World(but(failing(400), 2)), questions(3), concurrency=1)
    last = batch_report(batch, ["results-1.csv", "results-2.csv"]).splitlines()[-1]
    assert "results-1.csv, results-2.csv" in last
    assert "one at a time" in last


def test_without_a_file_no_way_on_is_told() -> None:
    report = batch_report(batch_on(World(but(failing(400), 2)), questions(3), concurrency=1))
    assert "Give" not in report
    assert "First failure" in report


def test_rows_that_were_taken_over_are_told_and_are_no_throughput() -> None:
    earlier = RowResult(0, "ok", "q", "a", tokens_used=99, cost_usd=Decimal(5))
    world = World(slowly, price_overrides=PRICES)
    batch = batch_on(world, [Row(0, "q", {}, earlier), Row(1, "new", {})])
    lines = batch_report(batch).splitlines()
    assert lines[0] == "- **2 of 2 rows answered**"
    assert lines[1] == "- 1 upstream call, 1 taken over from the file"
    assert lines[2] == "- 15 tokens, 0.000015 USD, 1 s, 60 rows per minute"


def test_large_counts_are_told_in_groups_of_three() -> None:
    rows = rows_of_queries(["same"] * 1234)
    assert "**1,234 of 1,234 rows answered**" in batch_report(batch_on(World(slowly), rows))
