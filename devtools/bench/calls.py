"""What single calls cost: time, CPU, memory and start, against the least that is possible."""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devtools.bench.figures import Figure, compared, in_rounds
from devtools.bench.workers import Worker, workers
from devtools.upstream.behaviours import ok
from devtools.upstream.control import Upstream
from tests.host.daemon import NOOP_PLUGIN, PluginProcess, Result

KEY = "bench-key-without-value"
STORED = "x" * 200
"""As much as the ledger writes for a call that nothing overlaps."""


def hit(rounds: int) -> list[Figure]:
    """A cache hit through the SDK process, against a no-op that sends and stores the same."""
    with _plugin_and_noop() as (gateway, plugin, noop):
        credentials = _credentials(gateway)
        asked = {"query": "What do sheep eat?"}
        plugin.call("holysheep_llm", asked, credentials)
        shape = _shape_of(plugin.call("holysheep_llm", asked, credentials))
        found = [
            _p50s(
                {
                    "hit": lambda: plugin.call("holysheep_llm", asked, credentials),
                    "no-op": lambda: noop.call("noop", {"shape": shape, "stores": STORED}),
                    "no-op that stores nothing": lambda: noop.call("noop", {"shape": shape}),
                }
            )
            for _ in range(rounds)
        ]
    return [
        compared(
            "cache hit through the SDK, p50",
            found,
            ours="hit",
            theirs="no-op",
            unit="ms",
            at_most=1.25,
        ),
        compared(
            "the same, the no-op storing nothing",
            found,
            ours="hit",
            theirs="no-op that stores nothing",
            unit="ms",
        ),
    ]


def miss(rounds: int) -> list[Figure]:
    """An uncached call through the SDK, against a bare httpx call that stores as much."""
    with _plugin_and_noop() as (gateway, plugin, noop):
        credentials = _credentials(gateway)
        gateway.default(ok(text="Grass, mostly, and hay in winter."))
        numbers = iter(range(10**9))

        def ours() -> Result:
            query = f"Question {next(numbers)}: what do sheep eat?"
            return plugin.call("holysheep_llm", {"query": query}, credentials)

        def theirs() -> Result:
            body = {
                "model": "deepseek-v3.2",
                "messages": [{"role": "user", "content": f"Question {next(numbers)}"}],
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            return noop.call(
                "bare_http",
                {
                    "url": f"{gateway.url}/chat/completions",
                    "api_key": KEY,
                    "body": json.dumps(body),
                    "stream": True,
                    "shape": shape,
                    "stores": STORED,
                },
            )

        shape = _shape_of(
            plugin.call("holysheep_llm", {"query": "What do sheep eat?"}, credentials)
        )
        found = [_p50s({"node": ours, "bare": theirs}) for _ in range(rounds)]
    return [
        compared(
            "uncached call through the SDK, streamed, p50",
            found,
            ours="node",
            theirs="bare",
            unit="ms",
            at_most=1.25,
        )
    ]


def cpu(rounds: int) -> list[Figure]:
    """CPU of an uncached call with 20 in flight, against a stock client, both under gevent."""
    with Upstream() as gateway, workers(gateway.url) as clients:
        found = in_rounds(
            {
                name: lambda worker=worker: worker.do(do="calls", count=400, in_flight=20)["cpu_ms"]
                for name, worker in clients.items()
            },
            rounds=rounds,
        )
    return [
        compared(
            "CPU per uncached call, 20 in flight",
            found,
            ours="engine",
            theirs="httpx",
            unit="ms",
            at_most=0.6,
        )
    ]


def throughput(rounds: int) -> list[Figure]:
    """Calls per second with the upstream answering in 50 ms.

    A stock client keeps 20 connections, or as many as the engine; it is measured with both.
    """
    clients = ("engine", "httpx", "httpx-100-kept")
    with Upstream(latency_ms=50) as gateway, workers(gateway.url, clients) as running:

        def calls_s(in_flight: int) -> dict[str, Callable[[], float]]:
            # Long enough that the last, emptying moments do not count.
            command = {"do": "calls", "count": in_flight * 60, "in_flight": in_flight}
            return {
                name: lambda worker=worker: worker.do(**command)["calls_s"]
                for name, worker in running.items()
            }

        crowd = in_rounds(calls_s(100), rounds=max(3, rounds // 3))
        steady = in_rounds({**calls_s(20), "ceiling": lambda: 400.0}, rounds=rounds)
    return [
        compared(
            "100 in flight, upstream 50 ms",
            crowd,
            ours="engine",
            theirs="httpx",
            unit="calls/s",
            at_least=5,
        ),
        compared(
            "the same, the stock client keeping 100 connections",
            crowd,
            ours="engine",
            theirs="httpx-100-kept",
            unit="calls/s",
            at_least=5,
        ),
        compared(
            "20 in flight, upstream 50 ms, share of the ceiling",
            steady,
            ours="engine",
            theirs="ceiling",
            unit="calls/s",
            at_least=0.95,
        ),
        compared(
            "the same, a stock client's share",
            steady,
            ours="httpx",
            theirs="ceiling",
            unit="calls/s",
        ),
    ]


def ttft(rounds: int) -> list[Figure]:
    """Time to the first token of a stream, against a bare client."""
    with Upstream() as gateway, workers(gateway.url) as clients:
        gateway.default(ok(chunks=["word "] * 20, chunk_delay_ms=2))
        found = in_rounds(
            {
                name: lambda worker=worker: worker.do(do="ttft", count=50)["ttft_ms"]
                for name, worker in clients.items()
            },
            rounds=rounds,
        )
    added = statistics.median(values["engine"] - values["httpx"] for values in found)
    figure = compared("time to first token", found, ours="engine", theirs="httpx", unit="ms")
    return [
        Figure(
            f"time to first token, added: {added:+.2f} ms",
            figure.ours,
            figure.theirs,
            figure.ratio,
            "≤ 2 ms added",
            added <= 2.0,
            figure.spread,
        )
    ]


def cold(rounds: int) -> list[Figure]:
    """From start to registered, against a bare plugin."""

    def started(folder: Path | None) -> float:
        with PluginProcess(folder) as plugin:
            return plugin.cold_start_ms

    found = in_rounds(
        {"plugin": lambda: started(None), "bare plugin": lambda: started(NOOP_PLUGIN)},
        rounds=rounds,
    )
    return [
        compared(
            "cold start until registered",
            found,
            ours="plugin",
            theirs="bare plugin",
            unit="ms",
            at_most=1.25,
        )
    ]


def memory(rounds: int) -> list[Figure]:
    """Memory over 10,000 distinct calls with answers of 10 KB."""
    del rounds
    with Upstream() as gateway:
        gateway.default(ok(size_bytes=10_000))
        worker = Worker("engine", gateway.url)
        try:
            start = worker.do(do="memory", count=20)["rss_mb"]
            steps = [worker.do(do="memory", count=1000) for _ in range(10)]
        finally:
            worker.close()
    print(f"\nMemory of the process: {start:.1f} MB before, then after each 1,000 calls, MB:")
    print("  process " + "  ".join(f"{step['rss_mb']:6.1f}" for step in steps))
    print("  cache   " + "  ".join(f"{step['cache_mb']:6.1f}" for step in steps))
    filled, end = steps[1]["rss_mb"], steps[-1]["rss_mb"]
    return [
        Figure(
            "memory after 10,000 calls, against after 2,000",
            f"{end:.1f} MB",
            f"{filled:.1f} MB",
            end / filled,
            "≤ 1.1 ×",
            end / filled <= 1.1,
        )
    ]


@contextmanager
def _plugin_and_noop() -> Iterator[tuple[Upstream, PluginProcess, PluginProcess]]:
    """A gateway, this plugin, and one whose tools do nothing but send messages."""
    noop = PluginProcess(NOOP_PLUGIN, provider="noop")
    with Upstream() as gateway, PluginProcess() as plugin, noop:
        yield gateway, plugin, noop


def _credentials(gateway: Upstream) -> dict[str, str]:
    return {"api_key": KEY, "base_url": gateway.url, "requests_per_minute": "0"}


def _p50s(calls: Mapping[str, Callable[[], Result]], count: int = 100) -> dict[str, float]:
    """Median milliseconds of each, called in turn so that what disturbs one disturbs all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(count + 10):
        for name, call in calls.items():
            result = call()
            if result.error is not None:
                raise RuntimeError(result.error.message)
            if number >= 10:
                times[name].append(result.elapsed_ms)
    return {name: statistics.median(values) for name, values in times.items()}


def _shape_of(result: Result) -> str:
    """The messages of a result, as the no-op plugin takes them."""
    shape: list[list[Any]] = []
    for arrival in result.messages:
        message = arrival.data["message"]
        if arrival.data["type"] == "text":
            shape.append(["text", message["text"]])
        else:
            kind = "stream" if message["stream"] else "variable"
            shape.append([kind, message["variable_name"], message["variable_value"]])
    return json.dumps(shape)
