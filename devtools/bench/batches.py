"""What batches reach: throughput, memory, and the table of the article that it all began with."""

import random
import statistics
from importlib.util import find_spec

from devtools.bench.figures import Figure, compared, in_rounds
from devtools.bench.workers import Worker, workers
from devtools.upstream.behaviours import ok
from devtools.upstream.control import Upstream


def batch(rounds: int) -> list[Figure]:
    """A batch of 1,000 rows against its ceiling, and against other SDKs where they are there."""
    clients = ("engine", "http.client", "socket")
    with Upstream(latency_ms=50) as gateway, workers(gateway.url, clients) as running:
        found = in_rounds(
            {
                "batch": lambda: running["engine"].do(do="batch", count=1000, in_flight=20)[
                    "rows_s"
                ],
                **{
                    name: lambda worker=running[name]: worker.do(
                        do="calls", count=1000, in_flight=20
                    )["calls_s"]
                    for name in clients[1:]
                },
                "ceiling": lambda: 400.0,
            },
            rounds=max(3, rounds // 3),
        )
    figures = [
        compared(
            "batch of 1,000 rows, 20 in flight, upstream 50 ms",
            found,
            ours="batch",
            theirs="ceiling",
            unit="rows/s",
            at_least=0.97,
        ),
        compared(
            "the same, bare calls of http.client",
            found,
            ours="http.client",
            theirs="ceiling",
            unit="calls/s",
        ),
        compared(
            "the same, bytes over bare sockets, nothing parsed",
            found,
            ours="socket",
            theirs="ceiling",
            unit="calls/s",
        ),
    ]
    others = {"litellm": 5.0, "openai": 1.0}
    there = [name for name in others if find_spec(name) is not None]
    if missing := sorted(set(others) - set(there)):
        print(f"Not installed, so not compared: {', '.join(missing)} (pip install them to do so).")
    if not there:
        return figures
    with Upstream() as gateway, workers(gateway.url, ("engine", *there)) as running:
        command = {"do": "calls", "count": 400, "in_flight": 20}
        found = in_rounds(
            {
                "batch": lambda: running["engine"].do(do="batch", count=1000, in_flight=20)[
                    "rows_s"
                ],
                **{
                    name: lambda worker=running[name]: worker.do(**command)["calls_s"]
                    for name in there
                },
            },
            rounds=max(3, rounds // 3),
        )
    return figures + [
        compared(
            f"batch, upstream 0 ms, against {name}'s SDK",
            found,
            ours="batch",
            theirs=name,
            unit="rows/s",
            at_least=others[name],
        )
        for name in there
    ]


def batch_memory(rounds: int) -> list[Figure]:
    """Memory over batches of 1,000, 10,000 and 50,000 rows with answers of 10 KB."""
    del rounds
    figures = []
    print("\nMemory of a process during a batch with answers of 10 KB, MB, up to ten readings:")
    with Upstream() as gateway:
        gateway.default(ok(size_bytes=10_000))
        for count in (1_000, 10_000, 50_000):
            worker = Worker("engine", gateway.url)
            try:
                worker.do(do="batch", count=100, in_flight=20)
                memory_mb = worker.do(do="batch", count=count, in_flight=50, memory=True)[
                    "memory_mb"
                ]
            finally:
                worker.close()
            shown = memory_mb[1 :: max(1, len(memory_mb) // 10)]
            print(f"  {count:>6,} rows: " + "  ".join(f"{mb:.0f}" for mb in [memory_mb[0], *shown]))
            grown_mb = max(memory_mb) - memory_mb[0]
            figures.append(
                Figure(
                    f"memory grown over {count:,} rows",
                    f"{grown_mb:.1f} MB",
                    "64 MiB",
                    grown_mb / 67.1,
                    "≤ 1 ×",
                    grown_mb <= 67.1,
                )
            )
    return figures


def article(rounds: int) -> list[Figure]:
    """The table of the article that the project began with, beside what is measured here.

    The gateway answers with the article's latencies (average 42.3, P95 68.7, P99 112.4 ms over 100
    requests), so latencies show what the engine adds. Throughput and duration have the limit that
    this profile sets, which is stated; the article's are far below it.
    """
    del rounds
    profile = latency_profile()
    with Upstream() as gateway, workers(gateway.url, ("engine",)) as running:
        engine = running["engine"]

        def prepare(count: int) -> None:
            gateway.script(
                *(ok(latency_ms=profile[n % len(profile)], text="Fine.") for n in range(count))
            )

        prepare(100)
        latency = engine.do(do="benchmark", count=100, in_flight=10)
        prepare(1000)
        throughput = engine.do(do="benchmark", count=500, in_flight=20)["throughput_rpm"]
        gateway.reset()
        prepare(50)
        fifty_s = engine.do(do="batch", count=50, in_flight=20)["elapsed_s"]
        gateway.reset()
        repeats = engine.do(do="batch", count=1000, in_flight=20, distinct=766)
    mean_s = statistics.fmean(profile) / 1000
    return [
        _beside("average latency, 100 requests", latency["avg_ms"], 42.3, "ms"),
        _beside("P95 latency, 100 requests", latency["p95_ms"], 68.7, "ms"),
        _beside("P99 latency, 100 requests", latency["p99_ms"], 112.4, "ms"),
        _beside(
            f"throughput, 20 workers (profile allows {20 * 60 / mean_s:,.0f})",
            throughput,
            847,
            "per minute",
        ),
        _beside(f"50 queries (profile allows {50 * mean_s / 20:.2f} s)", fifty_s, 3.2, "s"),
        _beside(
            "cache hits, 1,000 queries of which 766 differ",
            repeats["cached"] / 10,
            23.4,
            "%",
        ),
    ]


def latency_profile() -> list[float]:
    """A hundred latencies in milliseconds with the article's average, P95 and P99, shuffled."""
    tail = [68.7, 80.0, 90.0, 100.0, 112.4, 118.0]
    body_sum = 42.3 * 100 - sum(tail)
    # Evenly from low to high, so that they add up to the average.
    low, count = 25.0, 94
    high = 2 * body_sum / count - low
    values = [low + (high - low) * n / (count - 1) for n in range(count)] + tail
    random.Random(1).shuffle(values)
    return values


def _beside(name: str, ours: float, article_says: float, unit: str) -> Figure:
    return Figure(
        name, f"{ours:,.4g} {unit}", f"{article_says:g} {unit}", ours / article_says, "", True
    )
