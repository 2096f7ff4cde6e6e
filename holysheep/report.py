"""What a batch, a benchmark or an estimate has found, in Markdown for people."""

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

from holysheep.batch import Batch
from holysheep.benchmark import Benchmark
from holysheep.estimate import Estimate
from holysheep.stats import LatencySummary
from holysheep.wording import span

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
        notes.append(f"Without a price: {', '.join(found.unpriced)}.")
    return ("\n".join(lines) + "\n\n" if found.rows else "") + " ".join(notes)


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
    return text.replace("|", "\\|")


def _usd(amount: Decimal | None) -> str:
    return "unknown cost" if amount is None else f"{amount.normalize():f} USD"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:,.1f} ms"
