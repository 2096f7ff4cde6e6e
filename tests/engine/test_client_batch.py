"""Batches, chains and benchmarks of the library, against the simulated gateway."""

import itertools
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from devtools.upstream import Upstream
from devtools.upstream import behaviours as do
from holysheep import (
    AuthError,
    BatchResults,
    Client,
    DeadlineExceeded,
    InputError,
    QuotaExhausted,
    RowResult,
    config,
)
from holysheep.rows import rows_of_file, rows_of_queries
from tests.engine.raw_servers import KEY, forget_proxies

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)
    for name in ("HOLYSHEEP_API_KEY", "HOLYSHEEP_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def client_for(upstream: Upstream) -> Iterator[Callable[..., Client]]:
    """Makes clients that are closed when the test ends."""
    clients: list[Client] = []

    def make(**settings: Any) -> Client:
        clients.append(Client(KEY, base_url=upstream.url, requests_per_minute=0, **settings))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(client_for: Any) -> Client:
    made: Client = client_for()
    return made


@pytest.fixture
def settled(upstream: Upstream) -> Callable[[], None]:
    """Waits until no thread is left that was not there before the test."""
    before = set(threading.enumerate())

    def wait() -> None:
        upstream.wait_for(lambda _: set(threading.enumerate()) <= before)

    return wait


class Counted:
    """An iterator that knows how far it was read."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._texts = texts
        self.read = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        text = next(self._texts)
        self.read += 1
        return text


def endless() -> Counted:
    return Counted(f"question {number}" for number in itertools.count())


def prompts(upstream: Upstream) -> list[str]:
    """What was asked, in the order of arrival."""
    return [request["json"]["messages"][-1]["content"] for request in upstream.requests()]


def answers(row: RowResult, query: str) -> bool:
    return row.query == query and row.response.startswith(f"You said: {query} [")


class TestRows:
    def test_results_come_in_the_order_of_the_rows(
        self, upstream: Upstream, client: Client
    ) -> None:
        upstream.script(*(do.ok(latency_ms=ms) for ms in (160, 80, 40, 0) * 3))
        queries = [f"question {number}" for number in range(12)]
        rows = list(client.batch(queries, concurrency=4))
        assert [row.index for row in rows] == list(range(12))
        assert all(answers(row, query) for row, query in zip(rows, queries, strict=True))
        assert upstream.stats().max_in_flight == 4

    def test_a_result_has_what_the_call_came_to(self, client: Client) -> None:
        (row,) = client.batch(["Hi"], model="gpt-4.1")
        assert isinstance(row, RowResult)
        assert (row.index, row.status, row.error, row.error_type) == (0, "ok", "", "")
        assert (row.query, row.model, row.cached) == ("Hi", "gpt-4.1", False)
        assert row.tokens_used > 0
        assert row.latency_ms > 0
        assert row.cost_usd is not None
        assert row.cost_usd > 0

    @pytest.mark.parametrize("kind", [list, tuple, iter], ids=lambda kind: kind.__name__)
    def test_objects_fill_the_template(self, upstream: Upstream, client: Client, kind: Any) -> None:
        rows = kind([{"city": "Ulm"}, {"city": "Linz"}])
        results = list(client.batch(rows, "Where is {{ city }}?", concurrency=1))
        assert [row.query for row in results] == ["Where is Ulm?", "Where is Linz?"]
        assert prompts(upstream) == ["Where is Ulm?", "Where is Linz?"]

    def test_texts_fill_item(self, upstream: Upstream, client: Client) -> None:
        list(client.batch(["Ulm"], "Where is {{ item }}?", system_prompt="Be brief."))
        assert upstream.requests()[-1]["json"]["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Where is Ulm?"},
        ]

    def test_what_the_module_rows_has_read(self, client: Client) -> None:
        whole = rows_of_file(b"city\nUlm\nLinz\nGraz\n", "cities.csv")
        expected = ["In Ulm?", "In Linz?", "In Graz?"]
        for rows in (whole, list(whole), tuple(whole), iter(whole)):
            results = list(client.batch(rows, "In {{ city }}?"))
            assert [row.query for row in results] == expected
        (last,) = client.batch(itertools.islice(whole, 2, None), "In {{ city }}?")
        assert (last.index, last.query) == (2, "In Graz?")

    def test_rows_of_an_earlier_run_are_not_asked_again(
        self, upstream: Upstream, client: Client
    ) -> None:
        line = b'{"index": 0, "status": "%s", "query": "%s", "response": "R", "error_type": ""}\n'
        content = line % (b"ok", b"one") + line % (b"skipped", b"two")
        results = client.batch(rows_of_file(content, "results.jsonl"))
        assert [(row.query, row.status) for row in results] == [("one", "ok"), ("two", "ok")]
        assert results.totals.taken_over == 1
        assert prompts(upstream) == ["two"]

    def test_a_text_that_looks_like_a_list_is_a_text(self, client: Client) -> None:
        assert [row.query for row in client.batch(['["a", "b"]'])] == ['["a", "b"]']

    def test_numbers_are_the_texts_that_json_spells_them_with(self, client: Client) -> None:
        assert [row.query for row in client.batch([1, 2.5, True])] == ["1", "2.5", "true"]

    def test_a_list_that_changes_meanwhile_is_asked_as_it_was(self, client: Client) -> None:
        rows = ["one", "two"]
        results = client.batch(rows)
        rows[:] = [None]  # type: ignore[list-item]
        assert [row.query for row in results] == ["one", "two"]

    def test_equal_rows_cost_one_call(self, upstream: Upstream, client: Client) -> None:
        results = client.batch(["same"] * 10)
        rows = list(results)
        assert len({row.response for row in rows}) == 1
        assert results.totals.cached == 9
        assert upstream.stats().calls == 1

    def test_a_structured_answer(self, client: Client) -> None:
        schema = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'
        (row,) = client.batch(["Hi"], json_schema=schema)
        assert row.response.startswith('{"a":')


class TestInput:
    @pytest.mark.parametrize(
        ("rows", "told"),
        [
            ([], "rows is empty"),
            ((), "rows is empty"),
            (iter(()), "rows is empty"),
            ("one text", "rows must be a list or an iterator"),
            (b"bytes", "rows must be a list or an iterator"),
            ({"city": "Ulm"}, "rows must be a list or an iterator"),
            (None, "rows must be a list or an iterator"),
            (7, "rows must be a list or an iterator"),
            (["one", None], "rows: item 2 is null"),
            (["one", ["two"]], "rows: item 2 is a list"),
            (["one", {"a": 1}], "rows: item 2 is an object, but the first row is a text"),
            (["one", object()], "rows: item 2 holds what is no JSON"),
            (["one", *rows_of_queries(["two"])], "rows: item 2 holds what is no JSON"),
            ([*rows_of_queries(["one"]), "two"], "rows: item 2 is no Row"),
            (["x"] * (config.MAX_BATCH_ROWS + 1), "more than 100,000 rows"),
        ],
        ids=lambda value: repr(value)[:24],
    )
    def test_rows_are_checked_before_any_call(
        self, upstream: Upstream, client: Client, rows: Any, told: str
    ) -> None:
        with pytest.raises(InputError, match=told):
            client.batch(rows)
        assert upstream.requests() == []

    def test_a_name_that_no_row_has_is_refused(self, upstream: Upstream, client: Client) -> None:
        with pytest.raises(InputError, match=r"uses town, which no row has.*item, city"):
            client.batch([{"city": "Ulm"}], "Where is {{ town }}?")
        assert upstream.requests() == []

    @pytest.mark.parametrize("template", ["{{ item", "{% nonsense %}"])
    @pytest.mark.parametrize("kind", [list, iter], ids=lambda kind: kind.__name__)
    def test_a_template_that_cannot_be_used_is_refused(
        self, upstream: Upstream, client: Client, template: str, kind: Any
    ) -> None:
        with pytest.raises(InputError, match="prompt_template is no usable template"):
            client.batch(kind(["one"]), template)
        assert upstream.requests() == []

    @pytest.mark.parametrize(
        ("params", "told"),
        [
            ({"concurency": 5}, "Unknown parameters: concurency"),
            ({"options": "seed: 4"}, "Unknown parameters: options"),
            ({"output_format": "csv"}, "Unknown parameters: output_format"),
            ({"max_inline_results": 5}, "Unknown parameters: max_inline_results"),
            ({"tools": [], "history": []}, "Unknown parameters: history, tools"),
            ({"concurrency": 0}, "concurrency must be a whole number from 1 to 100, got 0"),
            ({"concurrency": 101}, "concurrency"),
            ({"on_row_error": "ignore"}, "one of continue, stop"),
            ({"row_timeout_s": 0}, "row_timeout_s"),
            ({"temperature": 3}, "temperature"),
            ({"max_retries": 11}, "max_retries"),
            ({"response_format": "json_schema"}, "needs a json_schema"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_parameters_are_checked_before_any_call(
        self, upstream: Upstream, client: Client, params: dict[str, Any], told: str
    ) -> None:
        with pytest.raises(InputError, match=told):
            client.batch(["one"], **params)
        assert upstream.requests() == []

    def test_keys_of_options_stand_beside_the_others(
        self, upstream: Upstream, client: Client
    ) -> None:
        list(client.batch(["Hi"], seed=4, top_p=0.5, extra_body={"user": "u"}, max_tokens="7"))
        sent = upstream.requests()[-1]["json"]
        assert (sent["seed"], sent["top_p"], sent["user"], sent["max_tokens"]) == (4, 0.5, "u", 7)

    def test_nothing_is_sent_before_it_is_read(self, upstream: Upstream, client: Client) -> None:
        results = client.batch(["one"])
        assert isinstance(results, BatchResults)
        assert upstream.requests() == []
        next(results)
        assert upstream.stats().calls == 1


class TestIterators:
    def test_an_endless_one_is_not_read_far_ahead(
        self, upstream: Upstream, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(config, "BATCH_AHEAD_ROWS", 20)
        source = endless()
        with closing(client.batch(source, concurrency=4)) as results:
            taken = list(itertools.islice(results, 5))
            assert [row.index for row in taken] == [0, 1, 2, 3, 4]
            stats = upstream.wait_for(lambda stats: stats.calls >= 25 and stats.in_flight == 0)
            assert stats.calls == 25
            assert 25 <= source.read <= 25 + 4
            assert answers(next(results), "question 5")

    def test_only_its_first_row_is_read_before_it_is_asked_for(self, client: Client) -> None:
        source = endless()
        with closing(client.batch(source)) as results:
            assert source.read == 1
            assert answers(next(results), "question 0")

    def test_a_row_that_is_none_ends_it_where_it_stands(
        self, client: Client, settled: Callable[[], None]
    ) -> None:
        rows = client.batch(iter(["one", "two", None, "four"]), concurrency=1)
        with pytest.raises(InputError, match="rows: item 3 is null"):
            list(rows)
        settled()

    def test_what_it_raises_is_passed_on(self, client: Client, settled: Callable[[], None]) -> None:
        def broken() -> Iterator[str]:
            yield "one"
            raise LookupError("the source is gone")

        with pytest.raises(LookupError, match="the source is gone"):
            list(client.batch(broken()))
        settled()

    def test_there_may_be_more_rows_than_in_a_list(self, client: Client) -> None:
        source = itertools.chain(["one"], itertools.repeat("one", config.MAX_BATCH_ROWS))
        with closing(client.batch(source)) as results:
            assert answers(next(results), "one")


class TestLeaving:
    @pytest.mark.parametrize("how", ["close", "break"])
    def test_no_call_is_made_after_it(
        self, upstream: Upstream, client: Client, settled: Callable[[], None], how: str
    ) -> None:
        upstream.default(do.ok(latency_ms=20))
        source = endless()
        if how == "close":
            results = client.batch(source, concurrency=4)
            list(itertools.islice(results, 3))
            results.close()
            assert list(results) == []
        else:
            for row in client.batch(source, concurrency=4):
                if row.index == 2:
                    break
        settled()
        # Whoever could ask has gone, so these are all calls that there will ever be.
        stats = upstream.wait_for(lambda stats: stats.in_flight == 0)
        assert 3 <= stats.calls == source.read < 60

    def test_totals_are_those_of_the_rows_that_were_taken(self, client: Client) -> None:
        results = client.batch(endless())
        list(itertools.islice(results, 3))
        results.close()
        assert (results.totals.total, results.totals.succeeded) == (3, 3)

    def test_no_thread_is_left_behind_after_the_end(
        self, client: Client, settled: Callable[[], None]
    ) -> None:
        for _ in range(3):
            list(client.batch([f"question {n}" for n in range(30)], concurrency=20, cache="off"))
        settled()

    def test_the_process_ends_although_calls_are_under_way(self, upstream: Upstream) -> None:
        upstream.script(do.ok())
        upstream.default(do.stall("headers", 60))
        code = (
            "from holysheep import Client; import itertools\n"
            f"with Client({KEY!r}, base_url={upstream.url!r}) as client:\n"
            "    for row in client.batch(map(str, itertools.count()), concurrency=1):\n"
            "        print(row.status, flush=True)\n"
            "        input()\n"
            "        break\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as running:
            try:
                upstream.wait_for(lambda stats: stats.in_flight == 1 and stats.calls == 2)
                shown, told = running.communicate(b"\n", timeout=5)
            finally:
                running.kill()
        assert (running.returncode, shown, told) == (0, b"ok\n", b"")
        upstream.wait_for(lambda stats: stats.in_flight == 0)


class TestFailures:
    def test_a_failed_row_is_a_result(self, upstream: Upstream, client: Client) -> None:
        upstream.script(do.ok(), do.status(400, message="No."), do.ok())
        results = client.batch(["one", "two", "three"], concurrency=1)
        rows = list(results)
        assert [row.status for row in rows] == ["ok", "error", "ok"]
        assert rows[1].error_type == "bad_request"
        assert "HTTP 400" in rows[1].error
        assert (rows[1].query, rows[1].response) == ("two", "")
        assert results.totals.status == "partial"
        assert results.totals.error_types == {"bad_request": 1}

    def test_a_row_without_a_prompt_costs_no_call(self, upstream: Upstream, client: Client) -> None:
        rows = list(client.batch([{"a": "x"}, {"b": "y"}, {"a": " "}], "{{ a }}"))
        assert [row.status for row in rows] == ["ok", "error", "error"]
        assert rows[1].error_type == rows[2].error_type == "invalid_input"
        assert upstream.stats().calls == 1

    def test_stop_skips_what_comes_after(self, upstream: Upstream, client: Client) -> None:
        upstream.script(do.ok(), do.status(400))
        rows = list(
            client.batch(["one", "two", "three", "four"], concurrency=1, on_row_error="stop")
        )
        assert [row.status for row in rows] == ["ok", "error", "skipped", "skipped"]
        assert upstream.stats().calls == 2

    def test_a_refused_key_skips_what_comes_after(self, upstream: Upstream, client: Client) -> None:
        upstream.default(do.status(401))
        results = client.batch(["one", "two", "three"], concurrency=1)
        assert [row.status for row in results] == ["error", "skipped", "skipped"]
        assert upstream.stats().calls == 1
        with pytest.raises(AuthError, match="No row was answered"):
            results.batch.raise_if_nothing_was_answered()

    def test_totals_are_the_sums_of_the_rows(self, upstream: Upstream, client: Client) -> None:
        upstream.script(do.status(400))
        results = client.batch(["bad", "one", "two", "two", " "], model="gpt-4.1", concurrency=1)
        assert (results.totals.total, results.totals.status) == (0, "error")
        rows = list(results)
        totals = results.totals
        assert (totals.succeeded, totals.failed, totals.skipped, totals.total) == (3, 2, 0, 5)
        assert (totals.cached, totals.upstream_calls) == (1, 3)
        assert totals.tokens_used == sum(row.tokens_used for row in rows)
        assert totals.cost_usd == sum((row.cost_usd or 0 for row in rows), Decimal(0)) > 0
        assert totals.error_types == {"bad_request": 1, "invalid_input": 1}


class TestDeadline:
    def test_it_ends_the_batch(self, upstream: Upstream, client: Client) -> None:
        upstream.script(do.ok())
        upstream.default(do.stall("headers", 60))
        results = client.batch(["one", "two", "three"], concurrency=1, deadline_s=0.3)
        assert [row.status for row in results] == ["ok", "skipped", "skipped"]
        assert results.batch.elapsed_s < 2.5
        assert results.totals.status == "partial"

    @pytest.mark.parametrize(
        "deadline_s",
        [581, 100_000, 1e300, math.inf, None, 10**400],
        ids=lambda value: repr(value)[:8],
    )
    def test_it_may_be_later_than_a_node_s(self, client: Client, deadline_s: Any) -> None:
        assert [row.status for row in client.batch(["one"], deadline_s=deadline_s)] == ["ok"]

    @pytest.mark.parametrize("deadline_s", [0, -1, math.nan, -math.inf, True, "5"], ids=repr)
    def test_what_is_no_span_is_refused(self, client: Client, deadline_s: Any) -> None:
        with pytest.raises(InputError, match="deadline_s must be a number above 0, got"):
            client.batch(["one"], deadline_s=deadline_s)

    def test_of_a_single_row(self, upstream: Upstream, client: Client) -> None:
        upstream.script(do.stall("headers", 60))
        rows = list(client.batch(["one", "two"], concurrency=1, row_timeout_s=1, max_retries=0))
        assert [(row.status, row.error_type) for row in rows] == [("error", "timeout"), ("ok", "")]


class TestTogether:
    def test_two_batches_in_two_threads_share_what_the_client_may(
        self, upstream: Upstream, client_for: Any
    ) -> None:
        client = client_for(max_concurrency=5)
        upstream.default(do.ok(latency_ms=5))

        def run(name: str) -> list[RowResult]:
            return list(client.batch([f"{name} {n}" for n in range(40)], concurrency=20))

        with ThreadPoolExecutor(2) as threads:
            first, second = threads.map(run, ["a", "b"])
        assert all(answers(row, f"a {row.index}") for row in first)
        assert all(answers(row, f"b {row.index}") for row in second)
        stats = upstream.stats()
        assert (stats.calls, stats.max_in_flight) == (80, 5)

    def test_two_batches_are_read_in_turns(
        self, client: Client, settled: Callable[[], None]
    ) -> None:
        first, second = client.batch(endless()), client.batch(["x", "y", "z"])
        pairs = list(itertools.islice(zip(second, first, strict=False), 3))
        assert [(a.query, b.query) for a, b in pairs] == [
            ("x", "question 0"),
            ("y", "question 1"),
            ("z", "question 2"),
        ]
        first.close()
        assert second.totals.status == "ok"
        assert list(second) == []
        settled()

    def test_a_batch_and_a_call_share_the_cache(self, upstream: Upstream, client: Client) -> None:
        text = client.chat("one").text
        (row,) = client.batch(["one"])
        assert (row.response, row.cached, row.cost_usd) == (text, True, 0)
        assert upstream.stats().calls == 1


class TestChain:
    def test_each_step_is_answered_in_turn(self, upstream: Upstream, client: Client) -> None:
        upstream.script(do.ok("a draft"), do.ok("better"))
        chain = client.chain(
            "Write.",
            [{"name": "draft"}, {"prompt": "Improve: {{ previous }}", "context": "previous"}],
            model="gpt-4.1",
            seed=3,
        )
        assert [step.name for step in chain.results] == ["draft", "step_1"]
        assert (chain.final, chain.status) == ("better", "ok")
        assert prompts(upstream) == ["Write.", "Improve: a draft"]
        assert [request["json"]["seed"] for request in upstream.requests()] == [3, 3]
        assert chain.tokens_used > 0
        assert chain.cost_usd

    def test_a_failed_step_is_in_the_results(self, upstream: Upstream, client: Client) -> None:
        upstream.script(do.ok("a draft"), do.status(400), do.ok("the end"))
        chain = client.chain("Write.", [{}, {"prompt": "Two."}, {"prompt": "Three."}])
        assert (chain.status, chain.final) == ("partial", "the end")
        assert [step.error is None for step in chain.results] == [True, False, True]
        assert chain.failed[0].to_json()["error_type"] == "bad_request"

    def test_no_answer_at_all_is_raised(self, upstream: Upstream, client: Client) -> None:
        upstream.default(do.quota_exhausted())
        with pytest.raises(QuotaExhausted, match="No step was answered"):
            client.chain("Write.", [{}, {"prompt": "Two."}])

    @pytest.mark.parametrize(
        ("query", "steps", "params", "told"),
        [
            ("", [{}], {}, "query"),
            ("Hi", [], {}, "steps must be a list"),
            ("Hi", None, {}, "steps"),
            ("Hi", 7, {}, "steps must be a list"),
            ("Hi", ["draft"], {}, "steps must be a list"),
            ("Hi", [{}, None], {}, "steps must be a list"),
            ("Hi", [{"promt": "x"}], {}, "has no key 'promt'"),
            ("Hi", [{"prompt": "{{ nobody }}"}], {}, "nobody"),
            ("Hi", [{}], {"concurrency": 3}, "Unknown parameters: concurrency"),
            ("Hi", [{}], {"timeout_s": 581}, "timeout_s"),
        ],
        ids=lambda value: repr(value)[:20],
    )
    def test_it_is_checked_before_any_call(
        self,
        upstream: Upstream,
        client: Client,
        query: str,
        steps: Any,
        params: dict[str, Any],
        told: str,
    ) -> None:
        with pytest.raises(InputError, match=told):
            client.chain(query, steps, **params)
        assert upstream.requests() == []

    def test_the_caller_s_steps_are_left_alone(self, client: Client) -> None:
        steps = [{"name": "draft", "prompt": ""}]
        client.chain("Write.", steps)
        assert steps == [{"name": "draft", "prompt": ""}]


class TestBenchmark:
    def test_every_iteration_is_a_call(
        self, upstream: Upstream, client: Client, settled: Callable[[], None]
    ) -> None:
        upstream.default(do.ok(latency_ms=10))
        run = client.benchmark(prompt="Hi", iterations=12, concurrency=4, model="gpt-4.1")
        assert upstream.requests() == []
        run.run()
        stats = upstream.stats()
        assert (stats.calls, stats.max_in_flight) == (12, 4)
        assert set(prompts(upstream)) == {"Hi"}
        assert (run.succeeded, run.failed, run.not_made) == (12, 0, 0)
        summary = run.latencies.summary()
        assert 10 <= summary.min_ms <= summary.p50_ms <= summary.p95_ms <= summary.max_ms
        assert run.throughput_rpm == pytest.approx(12 * 60 / run.elapsed_s, rel=0.01)
        assert run.cost_usd
        settled()

    def test_it_counts_while_it_is_iterated(self, client: Client) -> None:
        counts = list(client.benchmark(iterations=5))
        assert counts == sorted(set(counts))
        assert counts[-1] == 5

    def test_leaving_it_stops_the_calls(
        self, upstream: Upstream, client: Client, settled: Callable[[], None]
    ) -> None:
        upstream.default(do.ok(latency_ms=10))
        for done in client.benchmark(iterations=500, concurrency=2):
            if done >= 2:
                break
        settled()
        assert upstream.stats().calls < 50

    def test_failures_are_counted_by_type(self, upstream: Upstream, client: Client) -> None:
        upstream.script(do.ok(), do.server_error(), do.status(400))
        run = client.benchmark(iterations=4)
        run.run()
        assert (run.succeeded, run.failed) == (2, 2)
        assert run.errors == {"server_error": 1, "bad_request": 1}

    def test_no_answer_at_all_can_be_raised(self, upstream: Upstream, client: Client) -> None:
        upstream.default(do.status(401))
        run = client.benchmark(iterations=2)
        run.run()
        with pytest.raises(AuthError, match=r"No call was answered \(2 failed\)"):
            run.raise_if_nothing_was_answered()

    def test_it_ends_at_its_deadline(self, upstream: Upstream, client: Client) -> None:
        upstream.default(do.stall("headers", 60))
        run = client.benchmark(iterations=2, deadline_s=1)
        run.run()
        assert run.not_made == 2
        with pytest.raises(DeadlineExceeded):
            run.raise_if_nothing_was_answered()

    @pytest.mark.parametrize(
        "params",
        [
            {"iterations": 0},
            {"iterations": 501},
            {"concurrency": 101},
            {"deadline_s": 581},
            {"temperature": 1},
            {"seed": 1},
        ],
        ids=str,
    )
    def test_parameters_are_checked(self, client: Client, params: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=next(iter(params))):
            client.benchmark(**params)
