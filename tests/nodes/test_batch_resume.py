"""A result file that is handed in again: what is missing is asked, the rest is taken over."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from devtools.upstream import behaviours as do
from tests.nodes.batch_support import FIELDS, BatchNode, Shelf, as_csv, texts
from tests.nodes.support import NO_RETRIES, fresh_model

if TYPE_CHECKING:
    from tests.nodes.batch_support import Outcome

ODD = 'a,b;\t"c"\n\r\n d\r e =1+1 \u2028\u00a0 漢字 😀'
FORMATS = pytest.mark.parametrize("output_format", ["jsonl", "csv"])


def resumed(batch: BatchNode, shelf: Shelf, before: Outcome, **parameters: Any) -> Outcome:
    """The batch that the result file of another one leads to, answered by a gateway in order.

    With a model of its own, so that nothing it asks is in the cache.
    """
    batch.upstream.reset()
    model = fresh_model()
    after = batch.run(file=shelf.again(before), custom_model=model, **parameters)
    assert after.queries == before.queries
    for row, earlier in zip(after.rows, before.rows, strict=True):
        if earlier["status"] == "ok":
            assert row == earlier, "what was answered stays as it is"
        else:
            assert row["model"] in (model, "")
    return after


@FORMATS
def test_after_failed_rows_only_these_are_asked(
    batch: BatchNode, shelf: Shelf, output_format: str
) -> None:
    batch.upstream.script(do.ok(ODD), do.status(400), do.ok("c"), do.server_error(), do.ok("e"))
    queries = ["1", f"2 {ODD}", "3", "4", "5"]
    before = batch.run(queries, concurrency=1, options=NO_RETRIES, output_format=output_format)
    assert before.counts == (3, 2, 0)
    after = resumed(batch, shelf, before, output_format=output_format)
    assert sorted(batch.prompts) == sorted([f"2 {ODD}", "4"])
    assert after.statuses == ["ok"] * 5
    assert after.responses[3].startswith("You said: 4 [")
    assert after.values["status"] == "ok"
    assert after.values["upstream_calls"] == 2
    assert after.files[0].name == f"results.{output_format}"


@FORMATS
def test_after_a_deadline_only_what_was_skipped_is_asked(
    batch: BatchNode, shelf: Shelf, output_format: str
) -> None:
    batch.upstream.script(*[do.ok()] * 7)
    batch.upstream.default(do.stall("headers", 20))
    queries = texts(30)
    before = batch.run(queries, concurrency=3, deadline_s=1, output_format=output_format)
    assert before.counts == (7, 0, 23)
    after = resumed(batch, shelf, before, output_format=output_format)
    missing = [row["query"] for row in before.rows if row["status"] == "skipped"]
    assert sorted(batch.prompts) == missing
    assert after.statuses == ["ok"] * 30
    for query, response in zip(queries, after.responses, strict=True):
        assert f"You said: {query} [" in response


def test_prompts_of_the_earlier_run_are_asked_whatever_the_template_is_now(
    batch: BatchNode, shelf: Shelf
) -> None:
    """A row of a result file holds the prompt; a template is neither needed nor in the way."""
    batch.upstream.script(do.ok("a"), do.status(400))
    before = batch.run(
        [{"title": "{{ x }}"}, {"title": "{{ item }}"}],
        prompt_template="About {{ title }}",
        concurrency=1,
    )
    for template in ("About {{ title }}", "{{ item }}", None):
        resumed(batch, shelf, before, prompt_template=template)
        assert batch.prompts == ["About {{ item }}"]


@FORMATS
def test_file_can_be_handed_in_again_until_all_is_answered(
    batch: BatchNode, shelf: Shelf, output_format: str
) -> None:
    chance = random.Random(3)
    runs = 0
    batch.upstream.script(do.ok("kept"), *[do.status(400)] * 29)
    outcome = batch.run(texts(30), concurrency=1, output_format=output_format)
    while outcome.values["failed"]:
        missing = outcome.values["failed"]
        batch.upstream.reset()
        batch.upstream.script(
            *(do.ok() if chance.random() < 0.6 else do.status(400) for _ in range(missing))
        )
        outcome = batch.run(
            file=shelf.again(outcome),
            cache="bypass",
            output_format=output_format,
        )
        assert batch.calls == missing
        runs += 1
        assert runs < 20
    assert runs > 1
    assert outcome.queries == texts(30)
    assert outcome.responses[0] == "kept"
    for query, response in zip(outcome.queries[1:], outcome.responses[1:], strict=True):
        assert f"You said: {query} [" in response


def test_complete_file_costs_nothing(batch: BatchNode, shelf: Shelf) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}
    batch.upstream.default(do.ok(usage=usage))
    before = batch.ok(texts(4), custom_model="gpt-4.1")
    after = resumed(batch, shelf, before)
    assert batch.calls == 0
    values = after.values
    assert (values["status"], values["succeeded"], values["upstream_calls"]) == ("ok", 4, 0)
    assert (values["cost_usd"], values["tokens_used"]) == (0, 0)
    assert [row["cost_usd"] for row in after.rows] == [pytest.approx(0.0036)] * 4


def test_totals_of_a_resumed_batch_are_those_of_its_own_calls(
    batch: BatchNode, shelf: Shelf
) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}
    batch.upstream.script(do.ok(usage=usage), do.ok(usage=usage), do.status(400))
    before = batch.run(texts(3), concurrency=1, custom_model="gpt-4.1")
    assert before.values["cost_usd"] == pytest.approx(0.0072)
    batch.upstream.default(do.ok(usage=usage))
    after = batch.ok(file=shelf.again(before), custom_model="gpt-4.1")
    assert after.values["cost_usd"] == pytest.approx(0.0036)
    assert after.values["tokens_used"] == 1200
    assert after.values["upstream_calls"] == 1


def test_file_that_no_row_of_is_answered_again_keeps_what_it_had(
    batch: BatchNode, shelf: Shelf
) -> None:
    batch.upstream.script(do.ok("kept"), do.status(400), do.status(400))
    before = batch.run(texts(3), concurrency=1)
    batch.upstream.default(do.server_error())
    after = batch.run(file=shelf.again(before), options=NO_RETRIES)
    assert after.counts == (1, 2, 0)
    assert after.responses == ["kept", "", ""]
    assert after.error_types == ["", "server_error", "server_error"]


def test_format_can_change_from_run_to_run(batch: BatchNode, shelf: Shelf) -> None:
    batch.upstream.script(do.ok(ODD), do.status(400), do.ok("3"))
    before = batch.run(texts(3), concurrency=1, output_format="csv")
    between = batch.run(file=shelf.again(before), output_format="jsonl", cache="bypass")
    after = batch.run(file=shelf.again(between), output_format="csv")
    assert before.responses[0] == between.responses[0] == after.responses[0]
    assert after.statuses == ["ok"] * 3
    assert after.files[0].name == "results.csv"


def test_csv_that_a_spreadsheet_has_saved_again_is_understood(
    batch: BatchNode, shelf: Shelf
) -> None:
    """Excel in German: semicolons, its own spelling of booleans, numbers and line ends."""
    rows = [
        list(FIELDS),
        ["0", "ok", "first", "the answer", "", "", "m", "12,5", "18", "0,0001", "FALSCH"],
        ["1", "error", "second", "", "It failed.", "server_error", "", "0", "0", "0", "FALSCH"],
        ["2", "skipped", "third", "", "Too late.", "skipped", "", "0", "0", "", "FALSCH"],
    ]
    file = shelf.put(as_csv(rows, ";").encode("cp1252"), "results.csv")
    outcome = batch.ok(file=file)
    assert outcome.queries == ["first", "second", "third"]
    assert outcome.responses[0] == "the answer"
    assert sorted(batch.prompts) == ["second", "third"]


def test_rows_of_a_result_file_are_followed_by_no_others(batch: BatchNode, shelf: Shelf) -> None:
    lines = [
        json.dumps(dict.fromkeys(FIELDS, "") | {"index": 0, "status": "ok", "query": "a"}),
        json.dumps({"title": "of another file"}),
    ]
    message = batch.refusal(file=shelf.put("\n".join(lines), "mixed.jsonl"))
    assert "line 2" in message


def test_parts_of_a_large_result_are_handed_in_one_by_one(batch: BatchNode, shelf: Shelf) -> None:
    batch.upstream.script(*[do.ok(size_bytes=3_000_000)] * 7, do.status(400), do.ok("last"))
    before = batch.run(texts(9), concurrency=1, options={"max_inline_results": 0})
    assert [file.name for file in before.files] == ["results-1.jsonl", "results-2.jsonl"]
    batch.upstream.reset()
    first, second = before.files
    done = batch.ok(file=shelf.put(first.content, "results-1.jsonl"), output_format="none")
    assert batch.calls == 0
    rest = batch.ok(file=shelf.put(second.content, "results-2.jsonl"))
    assert batch.prompts == ["row 00007."]
    assert done.values["total"] + rest.values["total"] == 9
    assert [row["index"] for row in rest.rows] == list(range(rest.values["total"]))


@FORMATS
def test_answer_with_every_control_character_can_be_resumed(
    batch: BatchNode, shelf: Shelf, output_format: str
) -> None:
    answer = "".join(map(chr, range(1, 32))) + "\x7f\x85\ufffe"
    batch.upstream.script(do.ok(f"<{answer}>"), do.status(400))
    before = batch.run(texts(2), concurrency=1, output_format=output_format)
    after = resumed(batch, shelf, before, output_format=output_format)
    assert after.statuses == ["ok", "ok"]
    assert after.responses[0] == f"<{answer}>"
