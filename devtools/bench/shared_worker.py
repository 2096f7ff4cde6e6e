"""A process that measures what state in Redis adds to a call, one line a command.

Run as ``python -m devtools.bench.shared_worker GATEWAY_URL REDIS_URL``, patched with gevent like a
plugin. A command is ``{"count": 200}``, the answer the medians in microseconds of an uncached call
and of a cache hit, with the state in the process and in Redis, and of one round trip to Redis.
"""

import gevent.monkey

gevent.monkey.patch_all(sys=True)

import itertools  # noqa: E402
import json  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402

import redis  # noqa: E402

from holysheep.client import Client  # noqa: E402

KEY = "bench-key-without-value"


def main() -> None:
    """Answer commands until standard input ends."""
    gateway, redis_url = sys.argv[1:]
    server = redis.Redis.from_url(redis_url)
    numbers = itertools.count()
    # All layers take part: limits that never hold anybody back, and a budget.
    limits = {"requests_per_minute": 10**9, "tokens_per_minute": 10**9, "daily_budget_usd": 10**6}
    own = Client(KEY, base_url=gateway, **limits)
    shared = Client(KEY, base_url=gateway, redis_url=redis_url, **limits)

    def miss(client: Client) -> Callable[[], object]:
        return lambda: client.chat(f"Question {next(numbers)}: what do sheep eat?", max_tokens=200)

    def hit(client: Client) -> Callable[[], object]:
        return lambda: client.chat("What do sheep eat?", max_tokens=200)

    # What runs behind a miss in Redis does so while the gateway lets the next one wait.
    laps: dict[str, Callable[[], object]] = {
        "shared miss": miss(shared),
        "own miss": miss(own),
        "own hit": hit(own),
        "shared hit": hit(shared),
        "round trip": server.ping,
    }
    for lap in laps.values():
        lap()
    for line in sys.stdin:
        count = json.loads(line)["count"]
        spans: dict[str, list[float]] = {name: [] for name in laps}
        for _ in range(count):
            # One of each in turn, so that what slows the machine down slows all of them.
            for name, lap in laps.items():
                spans[name].append(_seconds(lap))
        found = {name: statistics.median(taken) * 1e6 for name, taken in spans.items()}
        print(json.dumps(found), flush=True)


def _seconds(lap: Callable[[], object]) -> float:
    began = time.perf_counter()
    lap()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
