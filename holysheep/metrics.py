"""The usage of today and the state of an engine as Prometheus metrics.

Counters are those of the UTC day and begin anew at midnight, which Prometheus takes as it takes a
restart. They are read from the storage, so that they never go back, whichever process is asked.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from holysheep.budget import Period
from holysheep.config import VERSION
from holysheep.engine import Engine
from holysheep.tally import LATENCY_BOUNDS_MS, Figures, Tally

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_TOKENS = {
    "prompt": "prompt_tokens",
    "completion": "completion_tokens",
    "cached": "cached_tokens",
    "reasoning": "reasoning_tokens",
}


def exposition(
    today: Tally, engine: Engine | None, periods: Iterable[Period], *, is_stored: bool
) -> bytes:
    """The text that a scrape gets. ``today`` is what the storage has of the current day."""
    registry = CollectorRegistry(auto_describe=False)
    metrics = [
        *_counters(today),
        _durations(today),
        *_budgets(periods),
        *_process(today, engine, is_stored=is_stored),
    ]
    registry.register(_Fixed(metrics))
    return generate_latest(registry)


class _Fixed:
    """A collector of what is known already."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _counters(today: Tally) -> list[Metric]:
    requests = CounterMetricFamily(
        "holysheep_requests",
        "Requests of the UTC day.",
        labels=["model", "node", "status", "cache"],
    )
    calls = CounterMetricFamily(
        "holysheep_upstream_calls", "Requests to the gateway, retries too.", labels=["model"]
    )
    tokens = CounterMetricFamily(
        "holysheep_tokens", "Tokens of upstream calls.", labels=["model", "kind"]
    )
    cost = CounterMetricFamily("holysheep_cost_usd", "Cost of upstream calls.", labels=["model"])
    saved = CounterMetricFamily("holysheep_saved_usd", "Saved by the cache.", labels=["model"])
    unpriced = CounterMetricFamily(
        "holysheep_unpriced_requests", "Answers whose model has no price.", labels=["model"]
    )
    merged: dict[tuple[str, ...], int] = {}
    for row, figures in today:
        key = (row.served, row.node, row.status, row.cache)
        merged[key] = merged.get(key, 0) + figures.requests
    for labels, count in sorted(merged.items()):
        requests.add_metric(labels, count)
    for model, figures in sorted(today.grouped(lambda row: row.served).items()):
        calls.add_metric([model], figures.upstream_calls)
        cost.add_metric([model], float(figures.cost_usd))
        saved.add_metric([model], float(figures.saved_usd))
        unpriced.add_metric([model], figures.unpriced)
        for kind, name in _TOKENS.items():
            tokens.add_metric([model, kind], getattr(figures, name))
    return [requests, calls, tokens, cost, saved, unpriced]


def _durations(today: Tally) -> Metric:
    durations = HistogramMetricFamily(
        "holysheep_request_duration_seconds",
        "From the start of a request to its end.",
        labels=["node"],
    )
    for node, figures in sorted(today.grouped(lambda row: row.node).items()):
        durations.add_metric([node], _buckets(figures), figures.latency_us / 1e6)
    return durations


def _buckets(figures: Figures) -> list[tuple[str, float]]:
    """Upper bounds in seconds, each with the requests that did not take longer."""
    bounds = [str(bound / 1000) for bound in LATENCY_BOUNDS_MS] + ["+Inf"]
    total = 0
    buckets: list[tuple[str, float]] = []
    for number, bound in enumerate(bounds):
        total += figures.classes.get(number, 0)
        buckets.append((bound, total))
    return buckets


def _budgets(periods: Iterable[Period]) -> list[Metric]:
    limit = GaugeMetricFamily("holysheep_budget_limit_usd", "Spend limit.", labels=["period"])
    spent = GaugeMetricFamily(
        "holysheep_budget_spent_usd", "Spent of the limit, by all processes.", labels=["period"]
    )
    for period in periods:
        if period.limit is not None:
            limit.add_metric([period.name], float(period.limit))
            spent.add_metric([period.name], float(period.spent))
    return [limit, spent]


def _process(today: Tally, engine: Engine | None, *, is_stored: bool) -> list[Metric]:
    info = GaugeMetricFamily("holysheep_info", "The plugin's version.", labels=["version"])
    info.add_metric([VERSION], 1)
    stored = GaugeMetricFamily(
        "holysheep_storage_up", "1 if the usage can be stored and read.", value=is_stored
    )
    if engine is None:
        return [info, stored]
    in_flight = GaugeMetricFamily(
        "holysheep_calls_in_flight", "Requests of this process under way.", value=engine.in_flight
    )
    breaker = GaugeMetricFamily(
        "holysheep_breaker_open", "1 if the breaker of a model is not closed.", labels=["model"]
    )
    # Whoever asks the same gateway shares the breakers. What others ask for is theirs to tell.
    own = {model for row, _ in today for model in (row.asked, row.served)}
    own.add(engine.settings.default_model)
    for model, state in sorted(engine.breakers.items()):
        if model in own:
            breaker.add_metric([model], state != "closed")
    return [info, stored, in_flight, breaker]
