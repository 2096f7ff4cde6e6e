"""What state in Redis adds to a call, in round trips to that Redis."""

import json
import subprocess
import sys
from typing import Any

from devtools.bench.figures import Figure, compared
from devtools.upstream.behaviours import ok
from devtools.upstream.control import Upstream
from tests.host.daemon import PROJECT_ROOT
from tests.redis.servers import RedisServer, redis_server_missing

MODEL_S = 0.02
"""How long the gateway takes: short for a model, long enough for what runs behind the calls."""


def shared(rounds: int) -> list[Figure]:
    """An uncached call and a hit with state in Redis, less the same with state in the process."""
    missing = redis_server_missing()
    if missing:
        print(missing, file=sys.stderr)
        return []
    with Upstream() as gateway, RedisServer() as server:
        gateway.default(ok(text="Grass, mostly, and hay in winter.", latency_s=MODEL_S))
        found = _measured(gateway.url, server.url, rounds)
    return [
        _added("Redis added to an uncached call", "miss", found),
        _added("Redis added to a cache hit", "hit", found),
        compared(
            "cache hit through Redis, against one in the process",
            found,
            ours="shared hit",
            theirs="own hit",
            unit="us",
        ),
    ]


def _added(name: str, what: str, found: list[dict[str, Any]]) -> Figure:
    rounds = [
        {
            "added": lap[f"shared {what}"] - lap[f"own {what}"],
            "3 round trips": 3 * lap["round trip"],
        }
        for lap in found
    ]
    return compared(
        f"{name}, p50", rounds, ours="added", theirs="3 round trips", unit="us", at_most=1.0
    )


def _measured(gateway_url: str, redis_url: str, rounds: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "devtools.bench.shared_worker", gateway_url, redis_url]
    lines = "".join(f"{json.dumps({'count': 100})}\n" for _ in range(rounds))
    answered = subprocess.run(
        command, input=lines, stdout=subprocess.PIPE, text=True, cwd=PROJECT_ROOT, check=True
    )
    return [json.loads(line) for line in answered.stdout.splitlines()]
