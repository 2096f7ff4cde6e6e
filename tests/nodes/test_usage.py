"""The usage node: figures that are those of the calls, of whom, kept where, and what is missing."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from devtools.upstream import behaviours as do
from holysheep.usage import GROUPS, Usage, UsageRow
from tests.nodes.batch_support import BatchNode
from tests.nodes.support import (
    BAD_REQUEST,
    NO_RETRIES,
    NUMBER,
    REFUSED_KEY,
    USAGE,
    Kind,
    Llm,
    Node,
    check_messages,
    fresh_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from devtools.upstream import Upstream
    from tests.host.daemon import PluginProcess, Result

FIGURES: dict[str, Kind] = {
    "total_requests": int,
    "total_tokens": int,
    "cached_requests": int,
    "failed_requests": int,
    "total_cost_usd": NUMBER,
    "saved_usd": NUMBER,
    "cache_hit_rate": NUMBER,
    "unpriced_requests": int,
}
PRICED = "gpt-4.1"
COST_USD = 0.0036
"""Of a call of ``PRICED`` with the usage that these tests script."""


class UsageNode(Node):
    tool = "holysheep_usage"

    def check(self, result: Result) -> None:
        values: dict[str, Kind] = {**FIGURES, "rows": list, "budget": dict}
        check_messages(result, strings=set(), values=values, shown=set(FIGURES), documents=1)
        figures = result.variables
        (document,) = result.json
        usage = Usage.from_json(document)
        totals = document["totals"]
        assert figures["total_requests"] == totals["requests"]
        assert figures["total_tokens"] == totals["total_tokens"]
        assert figures["total_cost_usd"] == totals["cost_usd"]
        for name in ("cached_requests", "failed_requests", "saved_usd", "unpriced_requests"):
            assert figures[name] == totals[name], name
        assert figures["cache_hit_rate"] == float(usage.cache_hit_rate) <= 1
        assert float(result.streamed["cache_hit_rate"]) == figures["cache_hit_rate"]
        assert figures["rows"] in [document[f"by_{group}"] for group in GROUPS]
        assert figures["budget"] == document["budget"]
        assert ("```echarts" in result.text) == bool(figures["rows"])
        if figures["rows"]:
            _, *_, total = (line for line in result.text.splitlines() if line.startswith("|"))
            assert total.split(" | ")[1] == f"{figures['total_requests']:,}"

    def rows(self, group: str, **parameters: Any) -> dict[str, dict[str, Any]]:
        """The rows by a group, by their keys."""
        return {row["key"]: row for row in self.run(group_by=group, **parameters).variables["rows"]}

    def counts(self, group: str, **parameters: Any) -> dict[str, int]:
        return {key: row["requests"] for key, row in self.rows(group, **parameters).items()}


class ChainNode(Node):
    tool = "holysheep_chain"

    def check(self, result: Result) -> None:
        assert result.error is None


@pytest.fixture
def node(plugin: PluginProcess, upstream: Upstream) -> UsageNode:
    upstream.default(do.ok("Yes.", usage=USAGE))
    return UsageNode(plugin, upstream)


def beside[Other: Node](node: Node, kind: type[Other], **credentials: Any) -> Other:
    """Another node with the same credential."""
    return kind(node.plugin, node.upstream, **{**node.credentials, **credentials})


@pytest.fixture
def llm(node: UsageNode) -> Llm:
    return beside(node, Llm)


@pytest.fixture
def restarted(node: UsageNode) -> UsageNode:
    """The node in a process that has counted nothing yet, and knows of no storage."""
    node.plugin.restart()
    return node


# --- every output on every path -----------------------------------------------------------------


def nothing(node: UsageNode, llm: Llm) -> Result:
    return node.run()


def calls(node: UsageNode, llm: Llm) -> Result:
    for query in ("a", "a", "b"):
        llm.ok(query, custom_model=PRICED)
    return node.run()


def unpriced(node: UsageNode, llm: Llm) -> Result:
    llm.ok()
    return node.run()


def failures_only(node: UsageNode, llm: Llm) -> Result:
    node.upstream.script(do.status(400))
    llm.failure()
    return node.run()


def missing(node: UsageNode, llm: Llm) -> Result:
    llm.ok()
    node.plugin.storage.fail_next(1000)
    return node.run(period="last_7_days")


PATHS: dict[str, tuple[Callable[[UsageNode, Llm], Result], int, int, int, int]] = {
    "nothing": (nothing, 0, 0, 0, 0),
    "calls": (calls, 3, 1, 0, 0),
    "unpriced": (unpriced, 1, 0, 0, 1),
    "failures_only": (failures_only, 1, 0, 1, 0),
    "missing": (missing, 1, 0, 0, 1),
}


@pytest.mark.parametrize(
    ("path", "requests", "cached", "failed", "no_price"), PATHS.values(), ids=PATHS
)
def test_every_output_comes_once_in_its_type_and_order(
    node: UsageNode,
    llm: Llm,
    path: Callable[[UsageNode, Llm], Result],
    requests: int,
    cached: int,
    failed: int,
    no_price: int,
) -> None:
    values = path(node, llm).variables
    assert values["total_requests"] == requests
    assert values["cached_requests"] == cached
    assert values["failed_requests"] == failed
    assert values["unpriced_requests"] == no_price


@pytest.mark.parametrize(
    "period", ["today", "yesterday", "last_7_days", "last_30_days", "this_month"]
)
@pytest.mark.parametrize("group", GROUPS)
def test_every_period_and_group_is_reported(
    node: UsageNode, llm: Llm, period: str, group: str
) -> None:
    llm.ok()
    result = node.run(period=period, group_by=group)
    assert result.json[0]["period"] == period
    assert result.variables["rows"] == result.json[0][f"by_{group}"]
    assert result.variables["total_requests"] == (period != "yesterday")
    assert (f"| {group.capitalize()} |" in result.text) == (period != "yesterday")


def test_text_is_a_table_a_chart_and_sentences(node: UsageNode, llm: Llm) -> None:
    for query in ("a", "a", "b"):
        llm.ok(query, custom_model=PRICED)
    result = node.like(daily_budget_usd="2").run()
    today = datetime.now(UTC).date()
    head, table, chart, notes = result.text.split("\n\n")
    assert head == f"**Usage by model on {today} (UTC)**"
    assert table.splitlines()[2].startswith(
        f"| {PRICED} | 3 | 1 | 0 | 2,400 | 0.0072 USD | 0.0036 USD | "
    )
    block = re.fullmatch(r"```echarts\n(.*)\n```", chart)
    assert block is not None
    assert json.loads(block[1])["series"][0]["data"] == [0.0072]
    assert notes.splitlines() == [
        "Cache hit rate: 33.33 % (1 of 3 requests), which saved 0.0036 USD.",
        "Of the daily budget of 2 USD, 0.0072 USD is spent.",
    ]


# --- figures ------------------------------------------------------------------------------------


def test_figures_are_those_that_the_calls_reported(node: UsageNode, llm: Llm) -> None:
    answered = [llm.ok(query, custom_model=PRICED).variables for query in ("a", "b", "a")]
    node.upstream.script(do.status(400))
    llm.failure("c", custom_model=PRICED)
    batch = beside(node, BatchNode).run(["a", "d", "d", "e"], custom_model=PRICED).values
    chain = beside(node, ChainNode).run(
        query="f", steps=[{"name": "one"}, {"name": "two", "prompt": "Go on."}], model=PRICED
    )
    values = node.run(group_by="node").variables
    rows = {row["key"]: row for row in values["rows"]}
    of_llm, of_batch, of_chain = rows["llm"], rows["batch"], rows["chain"]

    assert of_llm["requests"] == 4
    assert of_llm["failed_requests"] == 1
    assert of_llm["cached_requests"] == sum(call["cached"] for call in answered) == 1
    assert of_llm["cost_usd"] == pytest.approx(sum(call["cost_usd"] for call in answered))
    assert of_llm["saved_usd"] == pytest.approx(answered[2]["usage"]["saved_usd"])
    assert of_llm["total_tokens"] == 2400
    assert of_llm["avg_latency_ms"] > 0

    assert of_batch["requests"] == batch["total"]
    assert of_batch["cached_requests"] == batch["cached_count"] == 2
    assert of_batch["cost_usd"] == pytest.approx(batch["cost_usd"])

    assert of_chain["requests"] == 2
    assert of_chain["cost_usd"] == pytest.approx(chain.variables["cost_usd"])
    assert of_chain["total_tokens"] == chain.variables["tokens_used"]

    assert set(rows) == {"llm", "batch", "chain"}
    assert values["total_cost_usd"] == pytest.approx((2 + 2 + 2) * COST_USD)


def test_many_calls_at_once_are_all_counted(node: UsageNode, llm: Llm) -> None:
    results = llm.many([{"query": f"q{n % 30}", "custom_model": PRICED} for n in range(60)])
    cached = sum(result.variables["cached"] for result in results)
    values = node.run().variables
    assert values["total_requests"] == 60
    assert values["cached_requests"] == cached == 30
    assert values["total_cost_usd"] == pytest.approx(30 * COST_USD)
    assert values["cache_hit_rate"] == 0.5


def test_the_model_is_the_one_that_was_served(node: UsageNode, llm: Llm) -> None:
    model, other = fresh_model(), fresh_model()
    node.upstream.default(do.unknown_model(), model=model)
    node.upstream.default(do.ok("Yes.", usage=USAGE), model=other)
    llm.ok(custom_model=model, fallback_models=other)
    assert node.counts("model") == {other: 1}


def test_failures_are_told_by_their_kind(node: UsageNode, llm: Llm) -> None:
    node.upstream.script(do.status(400), do.server_error())
    llm.failure("a", options={}, **NO_RETRIES)
    llm.continued("b", **NO_RETRIES)
    llm.ok("c")
    assert node.counts("status") == {"ok": 1, "bad_request": 1, "server_error": 1}


def test_the_node_calls_nobody_and_is_not_counted(node: UsageNode) -> None:
    for _ in range(3):
        assert node.run().variables["total_requests"] == 0
    assert node.calls == 0
    assert node.upstream.requests() == []


def test_a_call_that_is_under_way_is_counted_when_it_has_ended(node: UsageNode, llm: Llm) -> None:
    node.upstream.script(do.ok("Yes.", latency_ms=300))
    call = llm.start()
    node.upstream.wait_for(lambda stats: stats.in_flight == 1)
    assert node.run().variables["total_requests"] == 0
    llm.finish(call)
    assert node.run().variables["total_requests"] == 1


# --- whose it is --------------------------------------------------------------------------------


def test_one_credential_sees_nothing_of_another(node: UsageNode, llm: Llm) -> None:
    other = UsageNode(node.plugin, node.upstream)
    llm.ok(custom_model=PRICED)
    for query in ("a", "b"):
        beside(other, Llm).ok(query, custom_model=PRICED)
    assert node.run().variables["total_requests"] == 1
    assert other.run().variables["total_requests"] == 2
    assert other.run().variables["budget"]["daily_spent_usd"] == pytest.approx(2 * COST_USD)


def test_the_same_key_at_another_gateway_is_another_credential(node: UsageNode, llm: Llm) -> None:
    llm.ok()
    elsewhere = node.upstream.url.replace("127.0.0.1", "localhost")
    assert node.like(base_url=elsewhere).run().variables["total_requests"] == 0


def test_apps_are_told_apart_and_reported_together(restarted: UsageNode, llm: Llm) -> None:
    node = restarted
    llm.ok("a", app_id="app-1")
    llm.ok("b", app_id="app-2")
    llm.ok("c", app_id="app-2")
    assert node.counts("app", app_id="app-1") == {"app-1": 1, "app-2": 2}
    assert node.counts("app", app_id="app-2") == {"app-1": 1, "app-2": 2}


def test_a_run_of_no_app_is_counted_too(node: UsageNode, llm: Llm) -> None:
    llm.ok(app_id=None)
    assert node.counts("app", app_id=None) == {"(none)": 1}


def test_workspaces_that_use_one_credential_are_apart(node: UsageNode, llm: Llm) -> None:
    for tenant, count in (("tenant-one", 1), ("tenant-two", 2)):
        for number in range(count):
            call = node.plugin.start(
                llm.tool,
                {"query": f"{tenant} {number}"},
                node.credentials,
                app_id=f"app of {tenant}",
                tenant_id=tenant,
            )
            assert call.result().error is None
    for tenant, count in (("tenant-one", 1), ("tenant-two", 2)):
        options = {"app_id": f"app of {tenant}", "tenant_id": tenant}
        result = node.plugin.call(node.tool, {}, node.credentials, **options)
        assert result.variables["total_requests"] == count


HOSTILE = "a|b`<img src=x>`\n```\n| x |"


def test_a_name_of_others_breaks_nothing(node: UsageNode, llm: Llm) -> None:
    llm.ok(app_id=HOSTILE)
    result = node.run(group_by="app", app_id=HOSTILE)
    assert [row["key"] for row in result.variables["rows"]] == [HOSTILE]
    lines = [line for line in result.text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert all(line.count("|") == 9 for line in lines)
    assert result.text.count("```") == 2


# --- budget -------------------------------------------------------------------------------------


def test_a_budget_is_shown_with_what_is_spent_of_it(node: UsageNode, llm: Llm) -> None:
    limits = {"daily_budget_usd": "5", "monthly_budget_usd": "100"}
    limited = beside(node, Llm, **limits)
    for query in ("a", "b", "b"):
        limited.ok(query, custom_model=PRICED)
    result = node.like(**limits).run()
    assert result.variables["budget"] == {
        "daily_limit_usd": 5,
        "daily_spent_usd": pytest.approx(2 * COST_USD),
        "monthly_limit_usd": 100,
        "monthly_spent_usd": pytest.approx(2 * COST_USD),
    }
    assert "Of the daily budget of 5 USD, 0.0072 USD is spent." in result.text
    assert "Of the monthly budget of 100 USD, 0.0072 USD is spent." in result.text


def test_without_a_budget_what_is_spent_is_known_all_the_same(node: UsageNode, llm: Llm) -> None:
    llm.ok(custom_model=PRICED)
    result = node.run()
    assert result.variables["budget"] == {
        "daily_limit_usd": None,
        "daily_spent_usd": COST_USD,
        "monthly_limit_usd": None,
        "monthly_spent_usd": COST_USD,
    }
    assert "budget" not in result.text


def test_a_call_that_the_budget_had_no_room_for_is_told(node: UsageNode) -> None:
    limited = beside(node, Llm, daily_budget_usd="0.00001")
    result = limited.continued(custom_model=PRICED)
    assert result.variables["error_type"] == "budget_exceeded"
    assert node.calls == 0
    assert node.counts("status") == {"budget_exceeded": 1}


# --- where it is kept ---------------------------------------------------------------------------


def test_a_restarted_process_still_knows(restarted: UsageNode, llm: Llm) -> None:
    node, limits = restarted, {"daily_budget_usd": "5", "monthly_budget_usd": "100"}
    for query in ("a", "a", "b"):
        beside(node, Llm, **limits).ok(query, custom_model=PRICED)
    before = node.like(**limits).run(period="this_month")
    node.plugin.restart()
    after = node.like(**limits).run(period="this_month")
    assert after.variables == before.variables
    assert after.text == before.text
    beside(node, Llm, **limits).ok("c", custom_model=PRICED)
    values = node.like(**limits).run().variables
    assert values["total_requests"] == 4
    assert values["budget"]["daily_spent_usd"] >= 3 * COST_USD * 0.999


def test_a_damaged_value_in_the_storage_is_said(restarted: UsageNode, llm: Llm) -> None:
    node = restarted
    llm.ok()
    today = datetime.now(UTC).date().isoformat()
    space = node.plugin.storage.data["tenant-1"]
    (document,) = [key for key in space if today in key and not key.endswith("/index")]
    node.plugin.restart()
    space[document] = b"\x00damaged"
    result = node.run()
    assert result.variables["total_requests"] == 0
    assert f"A stored record of {today} is damaged" in result.text
    assert result.json[0]["missing"]


def test_a_storage_that_fails_is_said_and_fails_nothing(node: UsageNode, llm: Llm) -> None:
    llm.ok()
    node.plugin.storage.fail_next(1000, message="the storage is down")
    result = node.run(period="last_30_days")
    assert result.variables["total_requests"] == 1, "what this process has counted itself"
    assert "The storage did not answer (the storage is down)" in result.text


def test_a_storage_that_is_not_there_is_said(restarted: UsageNode, llm: Llm) -> None:
    node = restarted
    node.plugin.storage.enabled = False
    try:
        llm.ok()
        result = node.run()
    finally:
        node.plugin.storage.enabled = True
    assert result.variables["total_requests"] == 1
    assert "permission denied" in result.text


def test_slow_storage_takes_time_and_nothing_else(node: UsageNode, llm: Llm) -> None:
    llm.ok()
    node.plugin.storage.latency_s = 0.02
    assert node.run(period="last_30_days").variables["total_requests"] == 1


# --- the export ---------------------------------------------------------------------------------


def test_the_export_has_every_group_and_no_secret(node: UsageNode, llm: Llm) -> None:
    llm.ok(custom_model=PRICED)
    (document,) = node.run(group_by="status").json
    usage = Usage.from_json(document)
    assert {group: [row.key for row in rows] for group, rows in usage.rows.items()} == {
        "day": [datetime.now(UTC).date().isoformat()],
        "model": [PRICED],
        "app": ["app-1"],
        "node": ["llm"],
        "status": ["ok"],
    }
    assert isinstance(usage.totals, UsageRow)
    assert node.key not in json.dumps(document)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("unset", ["", None, "  "])
def test_what_is_left_empty_is_not_set(node: UsageNode, llm: Llm, unset: str | None) -> None:
    llm.ok()
    result = node.run(period=unset, group_by=unset)
    assert result.json[0]["period"] == "today"
    assert result.variables["rows"] == result.json[0]["by_model"]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "period": ({"period": "last_8_days"}, "period must be one of today, yesterday, last_7_days"),
    "period_number": ({"period": 7}, "period must be one of"),
    "period_list": ({"period": ["today"]}, "period must be one of"),
    "group": ({"group_by": "user"}, "group_by must be one of model, day, app, node, status"),
}


@pytest.mark.parametrize(("parameters", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_a_sentence(
    node: UsageNode, parameters: dict[str, Any], words: str
) -> None:
    error = node.failure(**parameters)
    assert error.type == BAD_REQUEST
    assert words in error.message


def test_a_credential_that_cannot_be_used_is_refused(node: UsageNode) -> None:
    error = node.like(daily_budget_usd="much").failure()
    assert error.type == REFUSED_KEY
    assert "daily_budget_usd" in error.message
