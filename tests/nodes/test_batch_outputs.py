"""Outputs of the batch node: rows, totals, files and what a person sees of them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from devtools.upstream import behaviours as do
from tests.nodes.batch_support import FIELDS, BatchNode, texts
from tests.nodes.support import (
    BAD_REQUEST,
    NO_RETRIES,
    REFUSED_KEY,
    UNAVAILABLE,
    USAGE,
    fresh_model,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.host.daemon import Invocation


def progress_of(invocation: Invocation) -> list[tuple[float, str]]:
    """The lines of progress, each with its seconds after the start of the batch."""
    return [
        (arrival.at_s - invocation.started_s, arrival.data["message"]["variable_value"])
        for arrival in invocation.messages
        if arrival.data["message"].get("variable_name") == "progress"
    ]


# --- rows ---


def test_every_row_has_its_own_answer_in_the_order_of_the_input(batch: BatchNode) -> None:
    queries = texts(40)
    batch.upstream.script(*(do.ok(latency_ms=latency) for latency in (90, 5, 60, 0, 30) * 8))
    outcome = batch.ok(queries, concurrency=10)
    assert outcome.queries == queries
    for query, response in zip(queries, outcome.responses, strict=True):
        assert f"You said: {query} [" in response
    assert {row["model"] for row in outcome.rows} == {batch.credentials["default_model"]}
    assert batch.calls == 40


def test_row_has_the_keys_of_the_contract_and_results_and_file_say_the_same(
    batch: BatchNode,
) -> None:
    batch.upstream.default(do.ok("Yes.", usage=USAGE, latency_ms=40))
    (row,) = batch.ok(["Is it?"], custom_model="gpt-4.1").values["results"]
    assert list(row) == list(FIELDS)
    assert 40 <= row.pop("latency_ms") <= 500
    assert row == {
        "index": 0,
        "status": "ok",
        "query": "Is it?",
        "response": "Yes.",
        "error": "",
        "error_type": "",
        "model": "gpt-4.1",
        "tokens_used": 1200,
        "cost_usd": pytest.approx(0.0036),
        "cached": False,
    }


def test_failed_row_says_why_and_takes_no_other_with_it(batch: BatchNode) -> None:
    batch.upstream.script(do.ok(), do.status(400, message="The prompt is not welcome."), do.ok())
    outcome = batch.run(texts(3), concurrency=1)
    assert outcome.statuses == ["ok", "error", "ok"]
    assert outcome.error_types == ["", "bad_request", ""]
    assert "400" in outcome.rows[1]["error"]
    assert outcome.values["status"] == "partial"
    assert outcome.counts == (2, 1, 0)


# --- totals ---


def test_cost_and_tokens_are_sums_and_a_cached_row_costs_nothing(batch: BatchNode) -> None:
    batch.upstream.default(do.ok(usage=USAGE))
    first = batch.ok(texts(4), custom_model="gpt-4.1").values
    assert first["cost_usd"] == pytest.approx(4 * 0.0036)
    assert first["tokens_used"] == 4800
    assert first["cached_count"] == 0
    second = batch.ok(texts(5), custom_model="gpt-4.1").values
    assert second["cost_usd"] == pytest.approx(0.0036)
    assert (second["cached_count"], second["upstream_calls"]) == (4, 1)
    assert batch.calls == 5


def test_cost_is_null_when_the_model_has_no_price(batch: BatchNode) -> None:
    outcome = batch.ok(texts(2))
    assert outcome.values["cost_usd"] is None
    assert [row["cost_usd"] for row in outcome.rows] == [None, None]
    again = batch.ok(texts(2))
    assert again.values["cost_usd"] == 0
    assert [row["cost_usd"] for row in again.rows] == [0, 0]


def test_upstream_calls_count_the_retries(batch: BatchNode) -> None:
    batch.upstream.script(*[do.rate_limited(retry_after_ms=1)] * 3)
    assert batch.ok(texts(5), concurrency=1).values["upstream_calls"] == 8
    assert batch.calls == 8


def test_latency_is_that_of_upstream_calls_only(batch: BatchNode) -> None:
    batch.upstream.script(*(do.ok(latency_ms=latency) for latency in (30, 60, 90, 120)))
    latency = batch.ok([*texts(4), *texts(4)], concurrency=1).values["latency"]
    assert 30 <= latency["min_ms"] < 60 <= latency["p50_ms"] < 90
    assert 120 <= latency["p95_ms"] == latency["p99_ms"] == latency["max_ms"] < 200
    assert 75 <= latency["avg_ms"] < 105


def test_throughput_and_elapsed_time_are_those_of_the_batch(batch: BatchNode) -> None:
    batch.upstream.default(do.ok(latency_ms=50))
    outcome = batch.ok(texts(10), concurrency=2)
    assert 250 <= outcome.values["elapsed_ms"] <= outcome.result.elapsed_ms
    assert 600 <= outcome.values["throughput_rpm"] <= 2400


def test_batch_without_an_upstream_call_has_no_latency(batch: BatchNode) -> None:
    batch.ok(texts(3))
    values = batch.ok(texts(3)).values
    assert (values["upstream_calls"], values["cached_count"]) == (0, 3)
    assert set(values["latency"].values()) == {0}


# --- what people see ---


def test_progress_streams_while_it_runs_at_most_twice_a_second(batch: BatchNode) -> None:
    batch.upstream.script(do.status(400, latency_ms=150))
    batch.upstream.default(do.ok(usage=USAGE, latency_ms=150))
    queries = [*texts(11), *texts(3)[1:]]
    invocation = batch.start(queries, concurrency=1, custom_model="gpt-4.1")
    outcome = batch.finish(invocation)
    lines = progress_of(invocation)
    times = [at_s for at_s, _ in lines]
    assert 3 <= len(lines) <= 5
    assert times[0] < 1
    gaps = [later - earlier for earlier, later in itertools.pairwise(times[:-1])]
    assert all(gap > 0.4 for gap in gaps), gaps
    during, (_, end) = lines[:-1], lines[-1]
    for at_s, line in during:
        assert line.endswith("\n")
        assert "of 13" in line
        assert "1 failed" in line
        assert "left" in line
        done = int(line.split()[0])
        assert at_s / 0.15 - 3 <= done <= at_s / 0.15, "it tells how far it is now"
    assert end.startswith("13 of 13")
    assert "2 cached" in end
    assert "0.036 USD" in end
    assert outcome.result.streamed["progress"] == "".join(line for _, line in lines)


def test_summary_tells_what_came_of_the_rows_and_how_to_go_on(batch: BatchNode) -> None:
    batch.upstream.script(do.status(400), do.malformed("not_json"))
    batch.upstream.default(do.ok(usage=USAGE))
    outcome = batch.run(
        [*texts(5), *texts(3)[2:]],
        concurrency=1,
        custom_model="gpt-4.1",
        options=NO_RETRIES,
    )
    text = outcome.result.text
    for told in ("4 of 6", "2 failed", "bad_request 1", "bad_response 1", "0.0108 USD"):
        assert told in text, text
    assert "results.jsonl" in text
    assert "400" in text, "the first failure"


def test_everything_that_a_person_sees_comes_before_the_values(batch: BatchNode) -> None:
    """An Answer shows what is streamed, in its order; the summary must not wait for the rest."""
    messages = [arrival.data for arrival in batch.ok(texts(2)).result.messages]
    kinds = [
        "value" if data["type"] == "variable" and not data["message"]["stream"] else data["type"]
        for data in messages
    ]
    assert kinds.index("text") < kinds.index("value")


# --- files ---


@pytest.mark.parametrize("output_format", ["jsonl", "csv"])
def test_result_file_holds_every_row_with_whatever_is_in_it(
    batch: BatchNode, output_format: str
) -> None:
    odd = "a,b;\t\"c\"\n\r\n d\r e 'f' =1+1 \u2028\u00a0 漢字 😀 \x0b\x1f"
    batch.upstream.script(do.ok(odd), do.status(400), do.ok("x"))
    queries = [f"1 {odd}", "2 é", "3"]
    outcome = batch.run(queries, concurrency=1, output_format=output_format)
    (file,) = outcome.files
    assert file.name == f"results.{output_format}"
    assert outcome.queries == queries
    assert outcome.responses == [odd.strip(), "", "x"] or outcome.responses == [odd, "", "x"]
    assert outcome.statuses == ["ok", "error", "ok"]


def test_csv_opens_in_a_spreadsheet(batch: BatchNode) -> None:
    (file,) = batch.ok(["ä"], output_format="csv").files
    assert file.content.startswith(b"\xef\xbb\xbf")
    header, _, _ = file.content.decode("utf-8-sig").partition("\r\n")
    assert header.split(",") == list(FIELDS)


def test_no_file_is_sent_when_none_is_wanted(batch: BatchNode) -> None:
    outcome = batch.ok(texts(3), output_format="none")
    assert outcome.files == []
    assert len(outcome.values["results"]) == 3
    assert "results." not in outcome.result.text


def test_file_of_many_megabytes_comes_in_parts_that_can_be_handed_in_again(
    batch: BatchNode,
) -> None:
    """A file above 30 MB fails the node in Dify, and above 20 MB this node takes none itself."""
    batch.upstream.default(do.ok(size_bytes=500_000))
    outcome = batch.ok(texts(45), concurrency=8, options={"max_inline_results": 0})
    assert len(outcome.files) == 2
    assert all(len(file.content) <= 20 * 1024 * 1024 for file in outcome.files)
    assert {len(response) for response in outcome.responses} == {500_000}
    assert outcome.queries == texts(45)


# --- results that are too many ---


@pytest.mark.parametrize(
    ("most", "held"), [(0, 0), (2, 2), (5, 5), (10_000, 5), ("3", 3), (None, 5)]
)
def test_results_are_cut_at_max_inline_results(batch: BatchNode, most: Any, held: int) -> None:
    outcome = batch.ok(texts(5), options={"max_inline_results": most})
    assert len(outcome.values["results"]) == held
    assert outcome.values["truncated"] is (held < 5)
    assert len(outcome.rows) == 5


def test_results_are_cut_at_a_thousand_by_default(batch: BatchNode) -> None:
    values = batch.ok(["same"] * 1002, output_format="none").values
    assert (len(values["results"]), values["truncated"], values["total"]) == (1000, True, 1002)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("a" * 10_000, id="ascii"),
        pytest.param("漢" * 4_000, id="three_bytes"),
        pytest.param("😀" * 2_500, id="four_bytes"),
        pytest.param("\x01" * 5_000, id="escaped"),
        pytest.param('"' * 8_000, id="quotes"),
    ],
)
def test_results_are_cut_at_a_megabyte(batch: BatchNode, answer: str) -> None:
    batch.upstream.default(do.ok(answer))
    outcome = batch.ok(texts(120), concurrency=8)
    assert 20 <= len(outcome.values["results"]) < 120
    assert outcome.values["truncated"] is True
    assert outcome.responses == [answer] * 120


def test_answer_that_no_message_can_hold_is_in_the_file(batch: BatchNode) -> None:
    batch.upstream.script(do.ok("short"), do.ok(size_bytes=1_200_000), do.ok("short too"))
    outcome = batch.ok(texts(3), concurrency=1)
    assert [row["index"] for row in outcome.values["results"]] == [0]
    assert outcome.values["truncated"] is True
    assert [len(response) for response in outcome.responses] == [5, 1_200_000, 9]


# --- a batch without any answer ---


@pytest.mark.parametrize(
    ("behaviour", "error_type", "told"),
    [
        pytest.param(do.status(400), BAD_REQUEST, "400", id="bad_request"),
        pytest.param(do.status(401), REFUSED_KEY, "401", id="wrong_key"),
        pytest.param(do.quota_exhausted(), BAD_REQUEST, "402", id="no_money"),
        pytest.param(do.server_error(500), UNAVAILABLE, "500", id="server_error"),
        pytest.param(do.malformed("not_json"), UNAVAILABLE, "", id="no_answer"),
    ],
)
def test_no_row_answered_fails_the_node_with_a_summary(
    batch: BatchNode, behaviour: do.Behaviour, error_type: str, told: str
) -> None:
    batch.upstream.default(behaviour)
    error = batch.failure(texts(4), concurrency=1, options=NO_RETRIES)
    assert error.type == error_type
    assert "4" in error.message or "skipped" in error.message
    assert "No row was answered" in error.message
    assert told in error.message


def test_gateway_that_refuses_the_key_is_not_asked_for_every_row(batch: BatchNode) -> None:
    batch.upstream.default(do.status(401))
    batch.failure(texts(200), concurrency=2)
    assert batch.calls <= 4


# --- settings that every row shares ---


def bodies_of(batch: BatchNode, queries: Sequence[str], **parameters: Any) -> list[dict[str, Any]]:
    batch.ok(queries, **parameters)
    return batch.bodies


def test_request_of_a_row_holds_the_defaults_and_nothing_else(batch: BatchNode) -> None:
    (body,) = bodies_of(batch, ["Why?"])
    for optional in ("stream", "stream_options"):
        body.pop(optional, None)
    assert body == {
        "model": batch.credentials["default_model"],
        "messages": [{"role": "user", "content": "Why?"}],
        "temperature": 0.7,
        "max_tokens": 2048,
        "top_p": 0.95,
    }


def test_settings_reach_every_row(batch: BatchNode) -> None:
    bodies = bodies_of(
        batch,
        texts(3),
        custom_model="other",
        model="gpt-4.1",
        system_prompt="Be brief.",
        temperature="0",
        max_tokens="77",
        options="top_p: 0.5\nstop: END\nseed: 7\nextra_body: {user: someone}",
    )
    assert len(bodies) == 3
    for body in bodies:
        assert body["model"] == "other"
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        assert (body["temperature"], body["max_tokens"], body["top_p"]) == (0, 77, 0.5)
        assert (body["stop"], body["seed"], body["user"]) == (["END"], 7, "someone")


@pytest.mark.parametrize("value", ["", "  ", None], ids=["empty", "space", "null"])
def test_settings_that_are_not_set_have_their_defaults(batch: BatchNode, value: Any) -> None:
    batch.ok(["Why?"])
    names = (
        *("system_prompt", "prompt_template", "json_schema", "model", "custom_model"),
        *("temperature", "max_tokens", "concurrency", "cache", "fallback_models"),
        *("row_timeout_s", "deadline_s", "on_row_error", "output_format", "options"),
    )
    outcome = batch.ok(["Why?"], **dict.fromkeys(names, value))
    assert outcome.files[0].name == "results.jsonl"
    assert batch.calls == 1, "the second batch asks the same and is answered from the cache"


def test_fallback_model_answers_the_rows_that_the_first_does_not(batch: BatchNode) -> None:
    second = fresh_model()
    batch.upstream.script(do.ok(), do.unknown_model(), model=batch.credentials["default_model"])
    outcome = batch.ok(texts(3), concurrency=1, fallback_models=second)
    first = batch.credentials["default_model"]
    assert [row["model"] for row in outcome.rows] == [first, second, first]


def test_json_schema_is_sent_and_checked_for_every_row(batch: BatchNode) -> None:
    batch.upstream.script(do.ok('{"n": 1}'), do.ok('{"n": "one"}'), do.ok('{"n": "two"}'))
    batch.upstream.default(do.ok('```json\n{"n": 2}\n```'))
    schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    outcome = batch.run(texts(3), concurrency=1, json_schema=schema)
    assert outcome.statuses == ["ok", "error", "ok"]
    assert outcome.error_types[1] == "invalid_output"
    assert "n" in outcome.rows[1]["error"]
    assert batch.calls == 4, "what breaks the schema is asked for once more"
    assert outcome.values["upstream_calls"] == 4
    assert outcome.rows[1]["tokens_used"] > outcome.rows[0]["tokens_used"], "both answers cost"
    assert {body["response_format"]["type"] for body in batch.bodies} == {"json_schema"}


def test_response_format_is_an_option(batch: BatchNode) -> None:
    batch.upstream.script(do.ok('{"a": 1}'), do.ok("no JSON"), do.ok("none either"))
    outcome = batch.run(texts(2), concurrency=1, options={"response_format": "json_object"})
    assert outcome.error_types == ["", "invalid_output"]
    assert batch.bodies[0]["response_format"] == {"type": "json_object"}
