"""What a batch, a benchmark, an estimate or the ledger has found, in Markdown for people."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from holysheep.batch import Batch
from holysheep.benchmark import Benchmark
from holysheep.estimate import Estimate
from holysheep.params import UsageGroup
from holysheep.result import usd_number
from holysheep.stats import LatencySummary
from holysheep.usage import BudgetStatus, Usage, UsageRow
from holysheep.wording import shortened, span

_TABLE_ROWS = 50
_CHART_BARS = 20
"""More can be read in ``rows``, but not at a glance."""

WAY_ON = "Give {files} to the node as its file, one at a time, to ask for the missing rows only."


def batch_report(batch: Batch, files: Sequence[str] = (), *, way_on: str = WAY_ON) -> str:
    """A few lines: how many rows came to what, at which cost, and where they are.

    ``way_on`` says how to get the missing rows, with ``{files}`` for the names.
    """
    totals = batch.totals
    counts = [
        f"**{totals.succeeded:,} of {totals.total:,} rows answered**",
        f"{totals.failed:,} failed ({_counted(totals.error_types)})" if totals.failed else "",
        f"{totals.skipped:,} skipped" if totals.skipped else "",
    ]
    origins = [
        _number(totals.upstream_calls, "upstream call"),
        f"{totals.cached:,} rows without a call of their own" if totals.cached else "",
        f"{totals.taken_over:,} taken over from the file" if totals.taken_over else "",
    ]
    lines = [
        _listed(counts),
        _listed(origins),
        f"{totals.tokens_used:,} tokens, {_usd(totals.cost_usd)}, {span(batch.elapsed_s)},"
        f" {_rate(batch.throughput_rpm)} rows per minute",
    ]
    if len(totals.latencies):
        summary = totals.latencies.summary()
        lines.append(
            f"Latency: {_ms(summary.avg_ms)} on average, P50 {_ms(summary.p50_ms)},"
            f" P95 {_ms(summary.p95_ms)}, P99 {_ms(summary.p99_ms)}"
        )
    if totals.first_failure is not None:
        lines.append(f"First failure: {totals.first_failure.message}")
    if totals.skipped or totals.failed:
        lines.append(way_on.format(files=", ".join(files)) if files else "")
    elif files:
        lines.append(f"All rows: {', '.join(files)}")
    return "\n".join(f"- {line}" for line in lines if line)


def benchmark_report(benchmark: Benchmark) -> str:
    """A table of the figures, and what stands behind them."""
    rows = [
        ("Answered", f"{benchmark.succeeded:,} of {benchmark.succeeded + benchmark.failed:,}"),
        *_latency_rows(benchmark.latencies.summary()),
        ("First token, average", _ms(benchmark.first_tokens.summary().avg_ms)),
        ("Throughput", f"{_rate(benchmark.throughput_rpm)} per minute"),
        ("Tokens", f"{benchmark.tokens_used:,}"),
        ("Cost", _usd(benchmark.cost_usd)),
    ]
    table = [
        f"| {_cell(benchmark.model_used)} | {benchmark.in_flight} at a time |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
    ]
    notes = ["Percentiles are nearest-rank. Latency is the gateway's: request sent to last byte."]
    if benchmark.failed:
        notes.append(f"Failed: {_counted(benchmark.errors)}. {benchmark.first_failure}")
    if benchmark.not_made:
        notes.append(f"{benchmark.not_made:,} were not finished at the deadline.")
    if benchmark.waited_s > 0.5:
        notes.append(
            f"Calls waited {span(benchmark.waited_s)} in all for this credential's own limits,"
            " which bound the throughput but count for no latency."
        )
    return "\n".join(table) + "\n\n" + "\n".join(notes)


def cost_report(found: Estimate) -> str:
    """A table of what a load costs with each model, and what it is made of."""
    has_compare = any(row.compare_usd is not None for row in found.rows)
    head = ["Model", "Input", "Cached input", "Output", "Total"]
    head += ["Compared with", "Saving"] if has_compare else []
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in found.rows:
        amounts = (row.input_usd, row.cached_usd, row.output_usd, row.total_usd)
        cells = [_cell(row.model), *(_usd(amount) for amount in amounts)]
        if has_compare:
            saving = "" if row.saving_percent is None else f"{row.saving_percent:.1f} %"
            cells += ["" if row.compare_usd is None else _usd(row.compare_usd), saving]
        lines.append(f"| {' | '.join(cells)} |")
    usage = found.usage
    load = (
        f"{_number(found.requests, 'request')} with {'about ' if found.is_estimated else ''}"
        f"{_number(usage.prompt_tokens, 'prompt token')}"
        f"{f' ({usage.cached_tokens:,} of them cached)' if usage.cached_tokens else ''} and"
        f" {_number(usage.completion_tokens, 'completion token')} each"
    )
    notes = [f"{load}."]
    if found.is_estimated:
        notes.append("The prompt tokens are estimated from the text.")
    if found.cache_hit_rate:
        share = f"{(found.cache_hit_rate * 100).normalize():f} %"
        notes.append(f"{share} of the requests are answered from the cache and cost nothing.")
    if found.unpriced:
        names = ", ".join(found.unpriced)
        notes.append(f"Without a price: {names}. Add one to price_overrides in the credential.")
    return ("\n".join(lines) + "\n\n" if found.rows else "") + " ".join(notes)


def usage_report(usage: Usage, group: UsageGroup, *, draws: bool = True) -> str:
    """A table by ``group``, a chart of it, and what the figures come to.

    ``draws`` says that whoever shows it draws ECharts blocks, as Dify does.
    """
    rows = usage.rows[group]
    first, last = usage.first_day, usage.last_day
    dates = f"on {first}" if first == last else f"from {first} to {last}"
    if not rows:
        return " ".join([f"No requests {dates} (UTC).", *map(_escaped, usage.missing)])
    parts = [f"**Usage by {group} {dates} (UTC)**", _usage_table(usage, group)]
    if draws:
        parts.append(f"```echarts\n{_chart(usage, group)}\n```")
    return "\n\n".join([*parts, "\n".join(_usage_notes(usage))])


def _usage_table(usage: Usage, group: UsageGroup) -> str:
    rows = usage.rows[group]
    head = [group.capitalize(), "Requests", "Cached", "Failed", "Tokens"]
    head += ["Cost", "Saved", "Average latency"]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += [_usage_line(_cell(row.key), row) for row in rows[:_TABLE_ROWS]]
    if len(rows) > _TABLE_ROWS:
        lines.append(f"| and {len(rows) - _TABLE_ROWS} more {'|' * len(head)}")
    return "\n".join([*lines, _usage_line("**Total**", usage.totals)])


def _usage_line(name: str, row: UsageRow) -> str:
    counts = (row.requests, row.cached_requests, row.failed_requests, row.total_tokens)
    cells = [name, *(f"{count:,}" for count in counts)]
    cells += [_usd(row.cost_usd), _usd(row.saved_usd), _ms(row.avg_latency_ms)]
    return f"| {' | '.join(cells)} |"


def _usage_notes(usage: Usage) -> list[str]:
    totals = usage.totals
    share = f"{(usage.cache_hit_rate * 100).normalize():f} %"
    notes = [
        f"Cache hit rate: {share} ({totals.cached_requests:,} of"
        f" {_number(totals.requests, 'request')}), which saved {_usd(totals.saved_usd)}."
    ]
    if usage.budget is not None:
        notes += _budget_notes(usage.budget)
    if totals.unpriced_requests:
        models = [_cell(row.key) for row in usage.rows["model"] if row.unpriced_requests]
        named = ", ".join(models[:5]) + (", …" if len(models) > 5 else "")
        notes.append(
            f"The cost of {_number(totals.unpriced_requests, 'request')} is not known and not"
            f" included ({named}): add a price to price_overrides in the credential."
        )
    return notes + [_escaped(sentence) for sentence in usage.missing]


def _budget_notes(budget: BudgetStatus) -> list[str]:
    periods = (
        ("daily", budget.daily_spent_usd, budget.daily_limit_usd),
        ("monthly", budget.monthly_spent_usd, budget.monthly_limit_usd),
    )
    return [
        f"Of the {name} budget of {_usd(limit)}, {_usd(spent)} is spent."
        for name, spent, limit in periods
        if limit is not None
    ]


def _chart(usage: Usage, group: UsageGroup) -> str:
    """A bar chart as JSON for ECharts: the cost, or where nothing has cost anything the requests.

    A day without requests has a bar of 0, or the axis would not be one of time.
    """
    rows = {row.key: row for row in usage.rows[group]}
    keys = [day.isoformat() for day in usage.days] if group == "day" else list(rows)[:_CHART_BARS]
    in_usd = any(row.cost_usd for row in rows.values())

    def height(key: str) -> float | None:
        if key not in rows:
            return 0
        return usd_number(rows[key].cost_usd) if in_usd else rows[key].requests

    what = "Cost in USD" if in_usd else "Requests"
    part = f", the first {len(keys)} of {len(rows)}" if len(keys) < len(rows) else ""
    names = {"type": "category", "data": [_label(key) for key in keys]}
    values = {"type": "value"}
    # Names are long, so they stand beside their bars; days follow each other from left to right.
    axes: dict[str, Any] = (
        {"xAxis": names, "yAxis": values}
        if group == "day"
        else {"xAxis": values, "yAxis": {**names, "inverse": True}}
    )
    option = {
        "title": {"text": f"{what} by {group}{part}", "textStyle": {"fontSize": 14}},
        "tooltip": {"trigger": "axis"},
        "grid": {"containLabel": True, "left": 8, "right": 24, "bottom": 8},
        **axes,
        "series": [{"type": "bar", "name": what, "data": [height(key) for key in keys]}],
    }
    return _IN_CHART.sub(lambda found: f"\\u{ord(found[0][0]):04x}", json.dumps(option))


# What might be taken for the end of the block, for HTML or for a formula, in a JSON text.
_IN_CHART = re.compile(r"\\\\|[`<>&$]")


def _label(key: str) -> str:
    return shortened(" ".join(key.split()), 40)


def _latency_rows(summary: LatencySummary) -> list[tuple[str, str]]:
    return [
        ("Latency, average", _ms(summary.avg_ms)),
        ("Minimum", _ms(summary.min_ms)),
        ("P50", _ms(summary.p50_ms)),
        ("P95", _ms(summary.p95_ms)),
        ("P99", _ms(summary.p99_ms)),
        ("Maximum", _ms(summary.max_ms)),
    ]


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(part for part in parts if part)


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _rate(number: float) -> str:
    return f"{number:,.1f}".removesuffix(".0")


def _cell(text: str) -> str:
    """A text of others, such as a model id, in a table."""
    return _escaped(shortened(text, 100))


def _escaped(text: str) -> str:
    """A text of others on one line, without anything that Markdown would take for its own.

    Character references: there are renderers that take a backslash before a bracket for a formula.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", line)


_MARKUP = re.compile(r"[\\`*\[\]<>|$~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)")


def _usd(amount: Decimal | None) -> str:
    return "unknown cost" if amount is None else f"{amount.normalize():f} USD"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:,.1f} ms"
