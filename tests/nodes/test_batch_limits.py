"""Limits of the batch node: its deadline, the credential's limits, memory, and what is shared."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from devtools.upstream import behaviours as do
from tests.host.daemon import PluginProcess
from tests.nodes.batch_support import BatchNode, Shelf, described, texts
from tests.nodes.servers import Exchange, LoopbackServer
from tests.nodes.support import CONNECTION, Llm, fresh_model

if TYPE_CHECKING:
    from devtools.upstream import Upstream
    from tests.host.daemon import Invocation
    from tests.nodes.batch_support import Outcome

MIB = 1024 * 1024
MAX_PART_HELD_UP = 0.5
"""Of the time of a batch, what another call may take at most meanwhile. Measured: 0.05 to 0.2."""


# --- equal rows, the cache, and what is shared ---


def test_equal_rows_cost_one_call(batch: BatchNode) -> None:
    batch.upstream.default(do.ok(latency_ms=20))
    outcome = batch.ok(["one", "two"] * 50, concurrency=20)
    assert batch.calls == outcome.values["upstream_calls"] == 2
    assert outcome.values["cached_count"] == 98
    for query, response in zip(outcome.queries, outcome.responses, strict=True):
        assert f"You said: {query} [" in response


def test_equal_prompts_of_different_rows_cost_one_call(batch: BatchNode) -> None:
    queries = [{"word": "one", "id": number} for number in range(20)]
    batch.ok(queries, prompt_template="{{ word }}", concurrency=20)
    assert batch.calls == 1


def test_cached_rows_are_found_by_a_single_call_and_the_other_way_round(batch: BatchNode) -> None:
    llm = Llm(batch.plugin, batch.upstream, **batch.credentials)
    llm.ok("asked before")
    outcome = batch.ok(["asked before", "new"])
    assert [row["cached"] for row in outcome.rows] == [True, False]
    assert llm.ok("new").variables["cached"] is True
    assert batch.calls == 2


def test_bypass_asks_for_every_row(batch: BatchNode) -> None:
    outcome = batch.ok(["same"] * 5, cache="bypass")
    assert batch.calls == 5
    assert outcome.values["cached_count"] == 0


def test_refresh_asks_once_and_stores(batch: BatchNode) -> None:
    batch.upstream.script(do.ok("older"), do.ok("newer"))
    batch.ok(["same"])
    outcome = batch.ok(["same"] * 3, cache="refresh")
    assert outcome.responses == ["newer"] * 3
    assert batch.ok(["same"]).responses == ["newer"]
    assert batch.calls == 2


def test_scope_keeps_the_answers_of_users_apart(batch: BatchNode) -> None:
    options = {"cache_scope": "user"}
    batch.ok(["same"], user_id="ann", options=options)
    batch.ok(["same"], user_id="bob", options=options)
    batch.ok(["same"], user_id="ann", options=options)
    assert batch.calls == 2


def test_two_batches_of_one_credential_share_their_calls(batch: BatchNode) -> None:
    batch.upstream.default(do.ok(latency_ms=60))
    queries = texts(20)
    started = [batch.start(queries, concurrency=20) for _ in range(2)]
    first, second = (batch.finish(invocation) for invocation in started)
    assert batch.calls == 20
    assert first.responses == second.responses
    assert first.values["upstream_calls"] + second.values["upstream_calls"] == 20


def test_two_batches_of_two_credentials_share_nothing(batch: BatchNode) -> None:
    other = BatchNode(
        batch.plugin, batch.upstream, default_model=batch.credentials["default_model"]
    )
    queries = texts(60)
    batch.upstream.default(do.ok(latency_ms=15))
    started = [(node, node.start(queries, concurrency=10)) for node in (batch, other)]
    outcomes = [node.finish(invocation) for node, invocation in started]
    for outcome in outcomes:
        assert outcome.queries == queries
        assert outcome.counts == (60, 0, 0)
        assert (outcome.values["upstream_calls"], outcome.values["cached_count"]) == (60, 0)
    keys = [request["headers"]["authorization"] for request in batch.upstream.requests()]
    assert keys.count(f"Bearer {batch.key}") == keys.count(f"Bearer {other.key}") == 60


def test_failing_batch_does_not_touch_that_of_another_credential(batch: BatchNode) -> None:
    other = BatchNode(batch.plugin, batch.upstream)
    model = batch.credentials["default_model"]
    batch.upstream.default(do.rate_limited(30, latency_ms=10), model=model)
    held = batch.start(texts(50), concurrency=10, deadline_s=1)
    batch.upstream.wait_for(lambda stats: stats.answered.get(429, 0) >= 1)
    outcome = other.ok(texts(50))
    assert outcome.values["elapsed_ms"] < 900
    assert held.result().error is not None


# --- how many at once, how often ---


def test_as_many_rows_are_in_flight_as_asked_for(batch: BatchNode) -> None:
    batch.upstream.default(do.ok(latency_ms=30))
    batch.ok(texts(40), concurrency=7)
    assert batch.upstream.stats().max_in_flight == 7


@pytest.mark.parametrize("concurrency", [None, "10", 10.0], ids=["default", "text", "float"])
def test_ten_rows_are_in_flight_by_default(batch: BatchNode, concurrency: Any) -> None:
    batch.upstream.default(do.ok(latency_ms=30))
    batch.ok(texts(40), concurrency=concurrency)
    assert batch.upstream.stats().max_in_flight == 10


def test_credential_has_the_last_word_on_rows_in_flight(batch: BatchNode) -> None:
    batch.upstream.default(do.ok(latency_ms=20))
    batch.like(max_concurrency="3").ok(texts(20), concurrency=100)
    assert batch.upstream.stats().max_in_flight == 3


def test_two_batches_of_one_credential_share_its_places(batch: BatchNode) -> None:
    node = batch.like(max_concurrency="4")
    node.upstream.default(do.ok(latency_ms=20))
    started = [node.start(texts(20, about), concurrency=100) for about in ("one", "two")]
    for invocation in started:
        assert node.finish(invocation).counts == (20, 0, 0)
    assert node.upstream.stats().max_in_flight == 4


def test_rows_keep_to_the_rate_of_the_credential_and_wait_as_long_as_it_takes(
    batch: BatchNode,
) -> None:
    """A burst of a minute's requests, then one each quarter of a second."""
    node = batch.like(requests_per_minute="240")
    began_ms = time.monotonic() * 1000
    outcome = node.ok(texts(245), concurrency=50, row_timeout_s=1)
    assert outcome.counts == (245, 0, 0)
    arrivals = node.upstream.arrivals()
    assert arrivals[239] - arrivals[0] < 1000, "the burst goes out at once"
    assert arrivals[244] - began_ms >= 5 * 250, "longer than row_timeout_s"
    assert outcome.values["elapsed_ms"] < 4000


def test_cached_rows_take_nothing_from_the_rate(batch: BatchNode) -> None:
    node = batch.like(requests_per_minute="5")
    node.ok(texts(5))
    outcome = node.ok([*texts(5)] * 20)
    assert outcome.values["elapsed_ms"] < 2000
    assert node.calls == 5


# --- the deadline ---


def check_cut_short(outcome: Outcome, total: int) -> None:
    assert outcome.values["status"] == "partial"
    assert outcome.values["total"] == total
    assert outcome.values["skipped"] == total - outcome.values["succeeded"]
    assert 950 <= outcome.values["elapsed_ms"] <= 2200
    for row in outcome.rows:
        if row["status"] == "skipped":
            assert row["error_type"] == "skipped"
            assert (row["tokens_used"], row["latency_ms"]) == (0, 0)
        else:
            assert f"You said: {row['query']} [" in row["response"]


def test_deadline_delivers_what_is_finished_and_skips_the_rest(batch: BatchNode) -> None:
    batch.upstream.default(do.ok(latency_ms=120))
    outcome = batch.run(texts(200), concurrency=4, deadline_s=1)
    check_cut_short(outcome, 200)
    assert 16 <= outcome.values["succeeded"] <= 36
    assert batch.calls <= 40
    assert f"{outcome.values['skipped']} skipped" in outcome.result.text


def test_deadline_ends_a_batch_whose_first_rows_hang(batch: BatchNode) -> None:
    """Answers behind rows that hang are kept for their turn, and not lost with them."""
    batch.upstream.script(*[do.stall("headers", 30)] * 2)
    outcome = batch.run(texts(30), concurrency=3, deadline_s="1")
    check_cut_short(outcome, 30)
    assert "skipped" in outcome.statuses[:2]
    assert outcome.statuses[3:] == ["ok"] * 27
    batch.upstream.wait_for(lambda stats: stats.in_flight == 0)


def test_deadline_is_kept_while_the_credential_is_held_back(batch: BatchNode) -> None:
    batch.upstream.script(*[do.ok()] * 5)
    batch.upstream.default(do.rate_limited(300))
    outcome = batch.run(texts(30), concurrency=2, deadline_s=1)
    assert outcome.values["elapsed_ms"] <= 2200
    assert outcome.counts == (5, 0, 25)


def test_nothing_answered_before_the_deadline_fails_the_node(batch: BatchNode) -> None:
    batch.upstream.default(do.stall("headers", 30))
    result = batch.start(texts(5), deadline_s=1).result()
    assert result.error is not None
    batch.check_error(result.error)
    assert result.error.type == CONNECTION
    assert "deadline_s" in result.error.message
    assert "5 skipped" in result.error.message
    assert 950 <= result.elapsed_ms <= 2200


def test_deadline_covers_the_fetching_of_the_file(batch: BatchNode) -> None:
    def hang(exchange: Exchange) -> None:
        exchange.rfile.read(1)  # until the client leaves

    with LoopbackServer({"*": hang}) as server:
        file = described(f"{server.url}/files/a", "slow.csv")
        result = batch.start(file=file, deadline_s=1).result()
    assert result.error is not None
    batch.check_error(result.error)
    assert "slow.csv" in result.error.message
    assert 950 <= result.elapsed_ms <= 2000


# --- memory, and the other calls of the process ---


def most_rss_bytes(plugin: PluginProcess, invocation: Invocation) -> int:
    """The most memory that was seen in use while a batch ran and delivered."""
    seen = [
        plugin.rss_bytes()
        for number, _ in enumerate(invocation, 1)
        if number < 50 or number % 50 == 0
    ]
    return max(*seen, plugin.rss_bytes())


def test_five_thousand_rows_of_10_kb_take_32_mib_at_most(upstream: Upstream) -> None:
    """The ratio of 10,000 rows in 64 MiB. Results that were kept would take 50 MB and more."""
    with PluginProcess() as plugin:
        batch = BatchNode(plugin, upstream)
        batch.ok(texts(50, "warm up"), concurrency=50)
        upstream.default(do.ok(size_bytes=10_000))
        before = plugin.rss_bytes()
        invocation = batch.start(texts(5_000), concurrency=50)
        grown = most_rss_bytes(plugin, invocation) - before
        outcome = batch.finish(invocation)
    assert outcome.counts == (5_000, 0, 0)
    assert outcome.values["upstream_calls"] == 5_000
    assert sum(len(file.content) for file in outcome.files) > 50_000_000
    assert outcome.queries == texts(5_000)
    assert grown <= 32 * MIB, f"grew by {grown / MIB:.1f} MiB"


def check_not_held_up(llm: Llm, invocation: Invocation) -> None:
    """Fail unless calls made one by one while a batch runs each take a small part of its time.

    A part, because a busy machine slows both down alike.
    """
    llm.ok("once before")
    taken: list[float] = []
    while not invocation.done:
        taken.append(llm.ok(f"call {len(taken)}").elapsed_ms)
    whole_ms = invocation.result().elapsed_ms
    assert max(taken) <= MAX_PART_HELD_UP * whole_ms


def test_other_calls_are_answered_while_a_batch_of_cached_rows_runs(batch: BatchNode) -> None:
    known = texts(500)
    batch.ok(known, concurrency=50)
    other = Llm(batch.plugin, batch.upstream)
    invocation = batch.start(known * 30, concurrency=10)
    check_not_held_up(other, invocation)
    outcome = batch.finish(invocation)
    assert (outcome.values["total"], outcome.values["upstream_calls"]) == (15_000, 0)


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_other_calls_are_answered_while_a_large_file_is_read(
    batch: BatchNode, shelf: Shelf, kind: str
) -> None:
    filler = "x" * 4000
    content = {
        "csv": "word,filler\n" + f"same,{filler}\n" * 4_900,
        "json": "[" + ",".join([f'{{"word": "same", "filler": "{filler}"}}'] * 4_900) + "]",
    }[kind]
    other = Llm(batch.plugin, batch.upstream)
    file = shelf.put(content, f"rows.{kind}")
    invocation = batch.start(file=file, prompt_template="{{ word }}", output_format="none")
    check_not_held_up(other, invocation)
    outcome = batch.finish(invocation)
    assert outcome.values["total"] == 4_900
    assert outcome.values["upstream_calls"] == 1


def test_batch_that_nobody_waits_for_does_not_disturb_others(batch: BatchNode) -> None:
    batch.upstream.default(do.ok(latency_ms=20))
    abandoned = batch.start(texts(100), concurrency=5, custom_model=fresh_model())
    batch.upstream.wait_for(lambda stats: stats.calls >= 10)
    abandoned.abandon()
    assert batch.ok(texts(20), concurrency=10).counts == (20, 0, 0)
    # It is not told, and asks on to its end; the next test is to be spared that.
    batch.upstream.wait_for(lambda stats: stats.calls == 120 and stats.in_flight == 0)
