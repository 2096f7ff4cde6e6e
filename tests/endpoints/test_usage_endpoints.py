"""usage.json, metrics and health: figures that are those of the ledger, and who may see them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from devtools.upstream import behaviours as do
from tests.endpoints.support import (
    COST_USD,
    HEALTH,
    METRICS,
    MODELS,
    PRICED,
    USAGE,
    USAGE_JSON,
    Endpoint,
    fresh_token,
    message,
)
from tests.host.daemon import PluginProcess
from tests.host.endpoints import EndpointServer
from tests.nodes.support import NO_RETRIES, Llm, fresh_key, fresh_model
from tests.redis.servers import RedisServer, needs_redis_server

if TYPE_CHECKING:
    from prometheus_client import Metric

    from devtools.upstream import Upstream

PERIODS = ("today", "yesterday", "last_7_days", "last_30_days", "this_month")
GROUPS = ("day", "model", "app", "node")


@pytest.fixture
def counted(endpoint: Endpoint) -> Endpoint:
    """An endpoint in a workspace of its own, whose calls cost something."""
    endpoint.upstream.default(do.ok("Yes.", usage=USAGE))
    return endpoint.like(tenant_id=f"tenant-{endpoint.endpoint_id}", default_model=PRICED)


def usage(endpoint: Endpoint, period: str = "today") -> dict[str, Any]:
    answer = endpoint.get(f"{USAGE_JSON}?period={period}")
    assert answer.status == 200, answer.text
    assert answer.headers["Content-Type"].startswith("application/json")
    assert "no-store" in answer.headers["Cache-Control"]
    document: dict[str, Any] = answer.json()
    check_document(document, period)
    return document


def check_document(document: dict[str, Any], period: str) -> None:
    wanted = {"period", "from", "to", "totals", "budget", *(f"by_{group}" for group in GROUPS)}
    assert wanted <= set(document)
    assert document["period"] == period
    assert document["from"] <= document["to"]
    for group in GROUPS:
        for name in ("requests", "cached_requests", "failed_requests", "total_tokens"):
            rows = document[f"by_{group}"]
            assert sum(row[name] for row in rows) == document["totals"][name], (group, name)
        assert sum(row["cost_usd"] or 0 for row in rows) == pytest.approx(
            document["totals"]["cost_usd"]
        )


def families(endpoint: Endpoint) -> dict[str, Metric]:
    answer = endpoint.get(METRICS)
    assert answer.status == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert "version=" in answer.headers["Content-Type"]
    found = list(text_string_to_metric_families(answer.text))
    assert len({family.name for family in found}) == len(found)
    for family in found:
        assert family.name.startswith("holysheep_"), family.name
        assert family.documentation, family.name
        assert family.type in {"counter", "gauge", "histogram"}, family.name
        seen = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples]
        assert len(set(seen)) == len(seen), "a sample twice"
    return {family.name: family for family in found}


def counters(endpoint: Endpoint) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families(endpoint).values()
        if family.type == "counter"
        for sample in family.samples
    }


def total(endpoint: Endpoint, name: str, **labels: str) -> float:
    """The sum of a counter's samples that have these labels."""
    return sum(
        value
        for (sample, has), value in counters(endpoint).items()
        if sample == f"holysheep_{name}_total" and labels.items() <= dict(has).items()
    )


def samples(endpoint: Endpoint, name: str) -> dict[str, float]:
    """The samples of a gauge by the value of its one label."""
    family = families(endpoint)[f"holysheep_{name}"]
    return {next(iter(sample.labels.values())): sample.value for sample in family.samples}


# --- usage.json ---------------------------------------------------------------------------------


def test_usage_counts_what_the_gateway_has_answered(counted: Endpoint) -> None:
    for text in ("a", "a", "b"):
        counted.ok(message(text))
    counted.upstream.default(do.status(400))
    assert counted.chat(message("c")).status == 400
    totals = usage(counted)["totals"]
    assert totals["requests"] == 4
    assert totals["cached_requests"] == 1
    assert totals["failed_requests"] == 1
    assert totals["total_tokens"] == 2 * USAGE["total_tokens"]
    assert totals["cost_usd"] == pytest.approx(2 * COST_USD)
    assert totals["saved_usd"] == pytest.approx(COST_USD)


def test_usage_of_a_stream_is_counted_with_its_tokens_and_cost(counted: Endpoint) -> None:
    counted.ok(message("a") | {"stream": True})
    totals = usage(counted)["totals"]
    assert (totals["requests"], totals["total_tokens"]) == (1, USAGE["total_tokens"])
    assert totals["cost_usd"] == pytest.approx(COST_USD)


def test_usage_is_of_the_workspace_nodes_and_gateway_together(counted: Endpoint) -> None:
    counted.ok(message("by the gateway"))
    node = Llm(counted.plugin, counted.upstream)
    node.plugin.call(
        "holysheep_llm",
        {"query": "by a node", "model": PRICED, **NO_RETRIES},
        node.credentials,
        tenant_id=counted.tenant_id,
        # An app belongs to one workspace, and others have used the usual one.
        app_id=f"app-of-{counted.tenant_id}",
    )
    document = usage(counted)
    assert document["totals"]["requests"] == 2
    assert {row["requests"] for row in document["by_node"]} == {1}
    assert len(document["by_node"]) == 2
    assert usage(counted.like(tenant_id="tenant-other-1"))["totals"]["requests"] == 0


def test_usage_is_answered_without_a_key(counted: Endpoint) -> None:
    counted.ok()
    keyless = counted.like(api_key=None)
    assert usage(keyless)["totals"]["requests"] == 1
    assert families(keyless)


@pytest.mark.parametrize("period", PERIODS)
def test_every_period_of_the_node_is_there(counted: Endpoint, period: str) -> None:
    counted.ok()
    document = usage(counted, period)
    assert document["totals"]["requests"] == (period != "yesterday")
    today = datetime.now(UTC).date()
    assert document["to"][:10] in {
        today.isoformat(),
        (today + timedelta(1)).isoformat(),
        (today - timedelta(1)).isoformat(),
    }


def test_period_is_not_required(counted: Endpoint) -> None:
    answer = counted.get(USAGE_JSON)
    assert answer.status == 200
    assert answer.json()["period"] in PERIODS


@pytest.mark.parametrize(
    "period", ["", "tomorrow", "TODAY", "today%00", "../today", "%F0%9F", "[]"]
)
def test_unknown_period_is_refused_with_the_known_ones(counted: Endpoint, period: str) -> None:
    answer = counted.get(f"{USAGE_JSON}?period={period}")
    assert answer.status == 400
    assert "period" in answer.text
    assert "last_7_days" in answer.text


def test_budget_is_the_one_of_the_endpoint(counted: Endpoint) -> None:
    rich = counted.like(daily_budget_usd="5", monthly_budget_usd="100")
    rich.ok(message(max_tokens=200))
    budget = usage(rich)["budget"]
    assert budget["daily_limit_usd"] == 5
    assert budget["monthly_limit_usd"] == 100
    assert budget["daily_spent_usd"] == pytest.approx(COST_USD)
    assert budget["monthly_spent_usd"] == pytest.approx(COST_USD)


def test_usage_outlives_the_process(counted: Endpoint) -> None:
    counted.ok()
    counted.plugin.restart()
    assert usage(counted)["totals"]["requests"] == 1


def test_usage_equals_what_the_node_reports(counted: Endpoint) -> None:
    for text in ("a", "a", "b"):
        counted.ok(message(text))
    credentials = {k: v for k, v in counted.settings.items() if k != "access_token"}
    result = counted.plugin.call(
        "holysheep_usage",
        {"period": "today", "group_by": "model"},
        credentials,
        tenant_id=counted.tenant_id,
        app_id=f"app-of-{counted.tenant_id}",
    )
    assert result.error is None
    assert result.variables["rows"] == usage(counted)["by_model"]


# --- metrics ------------------------------------------------------------------------------------


def test_metrics_before_any_call_are_well_formed(counted: Endpoint) -> None:
    assert families(counted)


def test_metrics_equal_the_ledger(counted: Endpoint) -> None:
    for text in ("a", "a", "b"):
        counted.ok(message(text))
    counted.upstream.default(do.status(400))
    counted.chat(message("c"))
    totals = usage(counted)["totals"]
    assert total(counted, "requests") == totals["requests"] == 4
    assert total(counted, "cost_usd") == pytest.approx(totals["cost_usd"])
    assert total(counted, "tokens") == totals["total_tokens"]


HOSTILE = [
    'a"b',
    "a\nb",
    "a\\",
    'x"} 1\nholysheep_evil_total{a="',
    "a\r\nb",
    "{}=,",
    "\u2028",
    "日本語",
    "\x00\x1b[31m",
    "x" * 5000,
    " ",
    "# HELP",
    "NaN",
]


@pytest.mark.parametrize("model", HOSTILE, ids=lambda model: ascii(model)[:20])
def test_hostile_model_name_is_one_label(counted: Endpoint, model: str) -> None:
    counted.upstream.default(do.ok("Yes.", usage=USAGE, model=model))
    counted.ok(message("fine"))
    before = total(counted, "requests")
    status = counted.chat(message(model=model)).status
    assert "holysheep_evil" not in {name for name, _ in counters(counted)}
    assert total(counted, "requests") - before == (status == 200)
    document = usage(counted)
    assert document["totals"]["requests"] == 1 + (status == 200)


def test_many_models_at_once_are_all_counted_and_make_no_endless_metrics(
    counted: Endpoint,
) -> None:
    """They are the first requests of their workspace, and none of them knows its name yet."""
    wide = counted.like(max_concurrency="100")
    calls = [wide.start_chat(message("x", model=f"model-number-{n}")) for n in range(1500)]
    assert {wide.checked(call.result()).status for call in calls} == {200}
    assert total(wide, "requests") == 1500
    assert len(counters(wide)) < 20_000
    assert usage(wide)["totals"]["requests"] == 1500


def test_counters_do_not_go_back_when_another_process_answers(
    upstream: Upstream, plugin: PluginProcess
) -> None:
    upstream.default(do.ok("Yes.", usage=USAGE))
    settings = {
        "access_token": fresh_token(),
        "api_key": fresh_key(),
        "default_model": PRICED,
    }
    with PluginProcess() as other:
        other.storage = plugin.storage
        other.storage._replies = other._replies
        one = Endpoint(plugin, upstream, EndpointServer(plugin), **settings)
        two = one.like()
        two.plugin = other
        seen: dict[Any, float] = {}
        expected = 0
        for number in range(6):
            asked = one if number % 2 else two
            asked.ok(message(f"{number}"))
            expected += 1
            for answering in (one, two):
                now = counters(answering)
                for key, value in seen.items():
                    assert now.get(key, 0) >= value, key
                seen = now
        plugin.restart()
        now = counters(one)
        assert all(now.get(key, 0) >= value for key, value in seen.items())
        assert total(one, "requests") == expected


def test_counters_are_left_out_while_the_storage_cannot_be_read(counted: Endpoint) -> None:
    """Prometheus takes a gap as a gap, and a smaller counter as a restart."""
    counted.ok()
    assert total(counted, "requests") == 1
    for op in ("get", "exist"):
        counted.plugin.storage.fail_next(10, op=op)
    found = families(counted)
    assert found["holysheep_storage_up"].samples[0].value == 0
    assert found["holysheep_requests"].samples == []
    until_s = time.perf_counter() + 10
    while found["holysheep_storage_up"].samples[0].value == 0:
        assert time.perf_counter() < until_s
        found = families(counted)
        assert [sample.value for sample in found["holysheep_requests"].samples] in ([], [1])
    assert total(counted, "requests") == 1


def test_breaker_is_shown_of_models_that_the_workspace_has_asked_for(counted: Endpoint) -> None:
    """Breakers belong to a gateway, whoever asks it."""
    others = counted.like(tenant_id=f"{counted.tenant_id}-2", api_key=fresh_key())
    secret = f"ft-secret-project-{fresh_model()}"
    open_breaker(others, secret)
    assert samples(others, "breaker_open")[secret] == 1
    counted.upstream.default(None)
    own = fresh_model()
    counted.ok(message(model=own))
    shown = samples(counted, "breaker_open")
    assert shown[own] == 0
    assert secret not in shown
    assert secret not in counted.get(HEALTH).text


def test_metrics_show_no_secret_and_no_question(counted: Endpoint) -> None:
    counted.ok(message("a very private question", user="private-user"))
    text = counted.get(METRICS).text
    assert "private" not in text


# --- health -------------------------------------------------------------------------------------


def test_health_tells_the_public_one_word(endpoint: Endpoint) -> None:
    answer = endpoint.ask("GET", HEALTH)
    assert answer.status == 200
    assert answer.body == b'{"status":"ok"}' or answer.json() == {"status": "ok"}


def test_health_costs_upstream_nothing_without_a_token(endpoint: Endpoint) -> None:
    for _ in range(5):
        endpoint.ask("GET", HEALTH)
    assert len(endpoint.upstream.requests()) <= 1


def test_health_tells_the_owner_more_but_no_secret(endpoint: Endpoint) -> None:
    endpoint.ok()
    health = endpoint.get(HEALTH).json()
    assert health["status"] == "ok"
    assert health["version"]
    assert {"upstream", "breakers", "redis"} <= set(health)


def open_breaker(endpoint: Endpoint, model: str | None = None) -> None:
    endpoint.upstream.default(do.outage())
    calls = [endpoint.start_chat(message(f"{number}", model=model)) for number in range(8)]
    for call in calls:
        endpoint.checked(call.result())


def test_health_is_down_while_the_breaker_is_open(endpoint: Endpoint) -> None:
    open_breaker(endpoint)
    public = endpoint.ask("GET", HEALTH)
    assert public.status == 503
    assert public.json() == {"status": "down"}
    owner = endpoint.get(HEALTH)
    assert owner.status == 503
    assert owner.json()["status"] == "down"
    assert owner.json()["breakers"][endpoint.model] == "open"


def test_health_is_about_the_endpoint_s_own_model(endpoint: Endpoint) -> None:
    open_breaker(endpoint)
    other = endpoint.like(default_model=fresh_model())
    assert other.ask("GET", HEALTH).status == 200


def test_health_without_a_key_is_one_of_the_two_words(endpoint: Endpoint) -> None:
    answer = endpoint.like(api_key=None).ask("GET", HEALTH)
    assert (answer.status, answer.json()) in [(200, {"status": "ok"}), (503, {"status": "down"})]


def test_health_says_nothing_of_a_redis_where_there_is_none(endpoint: Endpoint) -> None:
    assert endpoint.get(HEALTH).json()["redis"] is None
    keyless = endpoint.like(api_key=None, redis_url="redis://127.0.0.1:1")
    assert keyless.get(HEALTH).json()["redis"] is None


def redis_state(endpoint: Endpoint) -> str:
    """What health says of the Redis, which never makes it say that the endpoint is down."""
    answer = endpoint.get(HEALTH)
    assert (answer.status, answer.json()["status"]) == (200, "ok")
    public = endpoint.ask("GET", HEALTH)
    assert (public.status, public.json()) == (200, {"status": "ok"})
    state: str = answer.json()["redis"]
    return state


@needs_redis_server
def test_health_says_whether_the_redis_is_away(endpoint: Endpoint) -> None:
    with RedisServer(password="word-of-the-redis") as server:
        shared = endpoint.like(redis_url=server.url)
        shared.ok(message("a"))
        assert server.calls()["evalsha"] > 0
        assert redis_state(shared) == "ok"
        server.stop()
        shared.ok(message("b"))
        assert redis_state(shared) == "away"
        assert redis_state(shared.like(default_model=fresh_model())) == "away"
        server.start()
        until_s = time.perf_counter() + 10
        while redis_state(shared) != "ok":
            assert time.perf_counter() < until_s
        health = shared.get(HEALTH).text
        assert "word-of-the-redis" not in health
        assert str(server.port) not in health
    seen = repr((shared.plugin.stderr, shared.plugin.logs, shared.plugin.late))
    assert "word-of-the-redis" not in seen


def test_health_is_down_where_the_redis_url_is_none(endpoint: Endpoint) -> None:
    wrong = endpoint.like(redis_url="http://:word-of-the-redis@127.0.0.1")
    assert wrong.ask("GET", HEALTH).status == 503
    answer = wrong.chat()
    assert answer.status == 503
    assert "redis_url must begin with" in answer.json()["error"]["message"]
    assert "word-of-the-redis" not in answer.text


def test_health_with_a_wrong_token_tells_no_more_than_without(endpoint: Endpoint) -> None:
    answer = endpoint.ask("GET", HEALTH, headers={"Authorization": f"Bearer {fresh_token()}"})
    assert answer.status in {200, 401}
    assert set(answer.json()) in [{"status"}, {"error"}]


def test_upstream_that_refuses_the_key_is_told_to_the_owner(endpoint: Endpoint) -> None:
    endpoint.upstream.default(do.status(401), model="@models")
    endpoint.upstream.default(do.status(401))
    endpoint.chat()
    assert endpoint.get(HEALTH).json()["status"] in {"ok", "down"}
    assert endpoint.get(MODELS).status == 502
