"""The HolySheep Benchmark node: how fast a model answers this credential."""

from typing import Any

from dify_plugin import Tool

from holysheep.benchmark import Benchmark
from holysheep.params import BenchmarkParams
from holysheep.reading import chosen, parsed
from holysheep.report import benchmark_report
from host import process
from nodes import _adapter


class HolySheepBenchmarkNode(Tool):
    """A prompt and a number of iterations in, one benchmark of the engine, its figures out."""

    def _invoke(self, tool_parameters: dict[str, Any]) -> _adapter.Messages:
        started_s = process.clock().monotonic()
        with (
            _adapter.host_errors(self),
            process.invocation(self.session, "benchmark", lasts=True) as invocation,
        ):
            engine = _adapter.engine_of(self)
            given = chosen(tool_parameters, default_model=engine.settings.default_model)
            benchmark = Benchmark(
                engine,
                parsed(BenchmarkParams, given),
                clock=process.clock(),
                spawn=process.spawn,
                started_s=started_s,
                invocation=invocation,
            )
            benchmark.run()
            benchmark.raise_if_nothing_was_answered()
            yield from _adapter.text(self, benchmark_report(benchmark))
            yield from self._outputs(benchmark)

    def _outputs(self, benchmark: Benchmark) -> _adapter.Messages:
        latency = benchmark.latencies.summary()
        for name, value in (
            ("avg_latency_ms", latency.avg_ms),
            ("min_latency_ms", latency.min_ms),
            ("max_latency_ms", latency.max_ms),
            ("p50_latency_ms", latency.p50_ms),
            ("p95_latency_ms", latency.p95_ms),
            ("p99_latency_ms", latency.p99_ms),
            ("avg_ttft_ms", benchmark.first_tokens.summary().avg_ms),
            ("throughput_rpm", benchmark.throughput_rpm),
            ("succeeded", benchmark.succeeded),
            ("failed", benchmark.failed),
            ("tokens_used", benchmark.tokens_used),
            ("cost_usd", benchmark.cost_usd),
        ):
            yield from _adapter.figure(self, name, value)
