"""Redis goes away in the middle of load, in every way that it can, and comes back."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from devtools.upstream import behaviours as do
from tests.redis.processes import (
    COST,
    USAGE,
    Crowd,
    Outcome,
    Worker,
    check_redis,
    is_followed,
    spent_of,
    until,
    workers_of,
)
from tests.redis.servers import RedisServer, Sentinels, needs_redis_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devtools.upstream import Upstream

pytestmark = needs_redis_server

BACK_S = 5.0
LONGER_S = 1.2
"""How much longer than usual a call may take, with some time for a machine that is busy."""


@pytest.fixture(scope="module")
def server(shared_server: RedisServer) -> RedisServer:
    return shared_server


@pytest.fixture(scope="module")
def workers() -> Iterator[list[Worker]]:
    with workers_of() as workers:
        yield workers


@dataclass(frozen=True)
class Trouble:
    """What happens to a server, and what ends it. ``loses`` says that it cannot be used then."""

    name: str
    begin: Callable[[RedisServer], None]
    end: Callable[[RedisServer], object] = repr
    loses: bool = True
    lasts_s: float = 0.0


TROUBLES = [
    Trouble("stopped", RedisServer.stop, RedisServer.start),
    Trouble("killed", RedisServer.kill, RedisServer.start),
    Trouble("frozen", RedisServer.freeze, RedisServer.thaw, lasts_s=3.0),
    Trouble("filled", RedisServer.fill, RedisServer.unfill),
    Trouble("flushed", RedisServer.flush, loses=False),
    Trouble("replica", RedisServer.become_replica_of_nobody_reachable, RedisServer.become_master),
    Trouble("clients killed", RedisServer.kill_clients, loses=False),
]


class Load:
    """Workers that call without a pause; every second call is one that all of them make."""

    def __init__(self, crowd: Crowd) -> None:
        self.calls = [
            worker.call(
                "client",
                [f"{number} {{n}}", "all {n}"],
                threads=3,
                pause_s=0.01,
                max_tokens=200,
            )
            for number, worker in enumerate(crowd.workers)
        ]

    def wait_for_more(self, count: int, *, timeout_s: float = 10.0) -> None:
        """Until each has made so many calls more."""
        wanted = [len(each.so_far()) + count for each in self.calls]
        until(
            lambda: all(
                len(each.so_far()) >= number
                for each, number in zip(self.calls, wanted, strict=True)
            ),
            timeout_s=timeout_s,
            what=f"{count} more calls of each",
        )

    def wait_for_backend(self, name: str, *, timeout_s: float) -> None:
        until(
            lambda: all(each.so_far()[-1].backend == name for each in self.calls),
            timeout_s=timeout_s,
            what=f"all use {name}",
        )

    def stop(self) -> list[list[Outcome]]:
        for each in self.calls:
            each.stop()
        return [each.outcomes() for each in self.calls]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
def test_no_call_notices(
    trouble: Trouble, workers: list[Worker], server: RedisServer, upstream: Upstream
) -> None:
    upstream.default(do.ok(usage=USAGE, latency_ms=20))
    crowd = Crowd(workers, upstream, server.url)
    crowd.open(requests_per_minute=10**6, tokens_per_minute=10**9, daily_budget_usd="1000")
    load = Load(crowd)
    load.wait_for_more(50)
    begun_s = time.monotonic()
    trouble.begin(server)
    try:
        if trouble.loses:
            load.wait_for_backend("local", timeout_s=2)
            load.wait_for_more(20)
        until(
            lambda: time.monotonic() >= begun_s + trouble.lasts_s,
            timeout_s=trouble.lasts_s + 1,
            what="it has lasted",
        )
    finally:
        ended_s = time.monotonic()
        trouble.end(server)
    load.wait_for_backend("redis", timeout_s=BACK_S)
    load.wait_for_more(50)
    outcomes = load.stop()
    check_outcomes(outcomes, begun_s)
    for each in outcomes:
        assert {outcome.backend for outcome in each[-10:]} == {"redis"}
        if trouble.loses:
            first_s = next(o.ended_s for o in each if o.backend == "local")
            during = [o for o in each if first_s < o.begun_s and o.ended_s < ended_s]
            assert {outcome.backend for outcome in during} == {"local"}
    spent = upstream.stats().calls * COST
    assert sum(outcome.cost for each in outcomes for outcome in each) == spent
    until(
        lambda: spent_of(server, crowd.fingerprint)[0] == spent,
        timeout_s=BACK_S,
        what=f"{spent} USD are counted, once",
    )


def check_outcomes(outcomes: list[list[Outcome]], begun_s: float) -> None:
    """Nothing has failed, and nothing took much longer than before the trouble."""
    every = [outcome for each in outcomes for outcome in each]
    failed = [outcome for outcome in every if outcome.error]
    assert not failed, f"{len(failed)} of {len(every)}: {failed[:3]}"
    usual_s = max(outcome.took_s for outcome in every if outcome.ended_s < begun_s)
    slowest = max(every, key=lambda outcome: outcome.took_s)
    assert slowest.took_s < usual_s + LONGER_S, slowest


@pytest.mark.parametrize("lose", [RedisServer.flush, RedisServer.kill_clients])
def test_those_who_follow_do_not_wait_for_a_lead_that_was_lost(
    lose: Callable[[RedisServer], None],
    workers: list[Worker],
    server: RedisServer,
    upstream: Upstream,
) -> None:
    crowd = Crowd(workers, upstream, server.url).open()
    check_redis(crowd.call_apart(count=1))
    upstream.default(do.ok(latency_ms=500))
    calls = [worker.call("client", "Who leads?", count=1) for worker in workers]
    until(lambda: is_followed(server), timeout_s=2, what="somebody follows")
    lose(server)
    outcomes = [outcome for each in calls for outcome in each.outcomes()]
    assert not [outcome for outcome in outcomes if outcome.error]
    assert max(outcome.took_s for outcome in outcomes) < 0.5 + LONGER_S


def test_a_failover_of_sentinels(workers: list[Worker], upstream: Upstream) -> None:
    upstream.default(do.ok(usage=USAGE, latency_ms=20))
    with Sentinels() as sentinels:
        crowd = Crowd(workers, upstream, sentinels.url)
        crowd.open(requests_per_minute=10**6, daily_budget_usd="1000")
        load = Load(crowd)
        load.wait_for_more(50)
        begun_s = time.monotonic()
        sentinels.fail_over()
        load.wait_for_backend("redis", timeout_s=BACK_S)
        load.wait_for_more(50)
        outcomes = load.stop()
        check_outcomes(outcomes, begun_s)
        assert all(each[-1].backend == "redis" for each in outcomes)
        spent = upstream.stats().calls * COST
        until(
            lambda: spent_of(sentinels.master, crowd.fingerprint)[0] == spent,
            timeout_s=BACK_S,
            what=f"{spent} USD are counted, once",
        )
