"""Usages to be shown: documents such as ``usage.json`` has, whose figures agree with each other."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace
from datetime import date, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from holysheep.tally import LATENCY_BOUNDS_MS, latency_class
from holysheep.usage import GROUPS, BudgetStatus, LatencyClass, Usage, UsageRow, span_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from holysheep.params import UsageGroup, UsagePeriod

TODAY = date(2025, 11, 25)

BUDGET = BudgetStatus(
    daily_limit_usd=Decimal(5),
    daily_spent_usd=Decimal("1.842317"),
    monthly_limit_usd=Decimal(60),
    monthly_spent_usd=Decimal("50.118204"),
)

HOSTILE_NAMES = [
    "<img src=x onerror=\"window.broken='img'\">",
    "<script>window.broken='script'</script>",
    "</bdi></th></tr></table><style>body{display:none}</style>",
    "javascript:window.broken='link'",
    "{{7*7}}${7*7}%s",
    "\u202eoleh\u202c right to left",
    "\u202e\u05e9\u05dc\u05d5\u05dd",
    "line\nbreak\tand\x00null",
    "\ud800 half a pair",
    "no-break-" + "x" * 900,
    "wide " * 180,
    "__proto__",
    "constructor",
    "",
    "  ",
    "🐑" * 60,
]
"""What somebody may call a model or an app."""


@dataclass(frozen=True)
class Batch:
    """Requests that have everything in common."""

    day: date
    model: str = "gpt-4.1"
    app: str = "(none)"
    node: str = "llm"
    status: str = "ok"
    requests: int = 1
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    saved_usd: Decimal = Decimal(0)
    unpriced: int = 0
    latency_ms: float = 800.0

    def row(self) -> UsageRow:
        return UsageRow(
            key="",
            requests=self.requests,
            cached_requests=self.cached,
            failed_requests=0 if self.status == "ok" else self.requests,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.prompt_tokens + self.completion_tokens,
            cost_usd=self.cost_usd,
            saved_usd=self.saved_usd,
            unpriced_requests=self.unpriced,
            avg_latency_ms=self.latency_ms,
        )


def document(
    period: UsagePeriod,
    batches: Iterable[Batch],
    *,
    budget: BudgetStatus | None = BUDGET,
    missing: Iterable[str] = (),
) -> Any:
    """The document about those of the batches that are of the period."""
    first, last = span_of(period, TODAY)
    within = [batch for batch in batches if first <= batch.day <= last]
    rows = {group: tuple(_rows(group, within)) for group in GROUPS}
    total = _sum("total", [batch.row() for batch in within])
    usage = Usage(period, first, last, total, rows, _latency(within), budget, tuple(missing))
    return usage.to_json()


def _rows(group: UsageGroup, batches: list[Batch]) -> list[UsageRow]:
    by_key: dict[str, list[UsageRow]] = {}
    for batch in batches:
        by_key.setdefault(str(getattr(batch, group)), []).append(batch.row())
    rows = [_sum(key, rows) for key, rows in by_key.items()]
    if group == "day":
        return sorted(rows, key=lambda row: row.key)
    return sorted(rows, key=lambda row: (-row.cost_usd, -row.requests, row.key))


def _sum(key: str, rows: list[UsageRow]) -> UsageRow:
    names = [field.name for field in fields(UsageRow)][1:-1]
    sums: dict[str, Any] = {name: sum(getattr(row, name) for row in rows) for name in names}
    for name in ("cost_usd", "saved_usd"):
        sums[name] = Decimal(sums[name])
    spans = sum(row.avg_latency_ms * row.requests for row in rows)
    average = spans / sums["requests"] if sums["requests"] else 0.0
    return UsageRow(key=key, avg_latency_ms=round(average, 3), **sums)


def _latency(batches: list[Batch]) -> tuple[LatencyClass, ...]:
    counts = [0] * (len(LATENCY_BOUNDS_MS) + 1)
    for batch in batches:
        counts[latency_class(batch.latency_ms)] += batch.requests
    return tuple(map(LatencyClass, (*LATENCY_BOUNDS_MS, None), counts))


# --- a workspace of some size --------------------------------------------------------------------

_MODELS = {  # share of the requests, USD for one
    "claude-sonnet-4.5": (0.16, 0.0121),
    "gpt-4.1": (0.22, 0.0042),
    "deepseek-v3.2": (0.27, 0.00061),
    "gemini-2.5-flash": (0.2, 0.00048),
    "gpt-4.1-mini": (0.11, 0.00083),
    "qwen3-235b-a22b-instruct-2507": (0.04, 0.00052),
}
_APPS = {
    "7d0f4b8e-52c1-4c55-9b0e-3f6a1d2c9e70": "llm",
    "c4a9e1d3-8f27-4b60-a1d5-90be27f3c618": "llm",
    "1b63f7a2-0e94-4d8c-b7f2-5c8d4e6a0f39": "batch",
    "e82c5d90-6a1b-47f3-8c0d-b1f94a7e2d56": "chain",
    "(none)": "gateway",
}
_LATENCIES = (7, 18, 140, 380, 640, 910, 1700, 3900, 8200, 21_000)
_FAILURES = ("rate_limited", "timeout", "server_error")


def busy_workspace() -> list[Batch]:
    """A month of an ordinary workspace; always the same."""
    dice = random.Random(11)
    batches: list[Batch] = []
    for back in range(31):
        day = TODAY - timedelta(days=back)
        weight = 0.35 if day.weekday() >= 5 else 1.0
        if back == 0:
            weight = 0.6  # the day is not over
        for model, (share, price) in _MODELS.items():
            for app, node in _APPS.items():
                count = int(460 * share * weight * dice.uniform(0.25, 0.75))
                batches.extend(_batches(dice, Batch(day, model, app, node), count, price))
    return batches


def _batches(dice: random.Random, like: Batch, count: int, price: float) -> list[Batch]:
    found = []
    hits = int(count * dice.uniform(0.1, 0.45))
    failures = int(dice.random() < 0.25)
    misses = count - hits - failures
    for requests in (misses // 2, misses - misses // 2):
        cost = Decimal(str(round(requests * price * dice.uniform(0.6, 1.4), 9)))
        prompt, completion = requests * dice.randint(300, 900), requests * dice.randint(80, 260)
        latency = dice.choices(_LATENCIES, (0, 0, 2, 9, 18, 24, 26, 14, 6, 1))[0]
        found.append(
            replace(
                like,
                requests=requests,
                cost_usd=cost,
                prompt_tokens=prompt,
                completion_tokens=completion,
                latency_ms=latency,
            )
        )
    saved = Decimal(str(round(hits * price, 9)))
    span = dice.choice((7, 18))
    found.append(replace(like, requests=hits, cached=hits, saved_usd=saved, latency_ms=span))
    if failures:
        found.append(replace(like, requests=1, status=dice.choice(_FAILURES), latency_ms=8200))
    return [batch for batch in found if batch.requests > 0]
