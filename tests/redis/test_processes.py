"""What processes with one credential share in Redis: limits, answers, breakers and budgets."""

from __future__ import annotations

import itertools
import time
import uuid
import zlib
from collections import Counter
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from devtools.upstream import behaviours as do
from holysheep import config
from tests.host.daemon import PluginProcess
from tests.redis.processes import (
    COST,
    MODEL,
    USAGE,
    Crowd,
    Worker,
    check_redis,
    is_followed,
    outcomes_of,
    spent_of,
    until,
    workers_of,
)
from tests.redis.servers import RedisCluster3, RedisServer, needs_redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from devtools.upstream import Upstream

pytestmark = needs_redis_server

PERMISSIONS = (
    "+evalsha +eval +subscribe +publish +ping +client|setname"
    " +time +get +set +del +exists +hget +hset +hmget +hgetall +hkeys +hsetnx +hdel +pexpire"
)
"""All that a user needs. The second line is what scripts call."""


@pytest.fixture(scope="module")
def started_workers() -> Iterator[list[Worker]]:
    with workers_of() as workers:
        yield workers


@pytest.fixture
def crowd(started_workers: list[Worker], upstream: Upstream, server: RedisServer) -> Crowd:
    return Crowd(started_workers, upstream, server.url)


# --- limits ---


def most_above(arrivals_s: Sequence[float], rate_per_s: float) -> float:
    """How many more arrive in some window than refill in its time: what was there before, at most.

    The largest sum of a run of arrivals, each worth 1 less what refilled since the one before.
    """
    most = above = 1.0
    for earlier_s, later_s in itertools.pairwise(arrivals_s):
        above = 1 + max(0.0, above - (later_s - earlier_s) * rate_per_s)
        most = max(most, above)
    return most


def test_the_rate_of_all_processes_together_is_the_credentials(
    crowd: Crowd, upstream: Upstream
) -> None:
    rate, calls_each = 600, 165
    crowd.open(requests_per_minute=rate)
    # Connections are made and paths are warm: a call arrives soon after it has got its place.
    check_redis(crowd.call_apart(count=1, max_tokens=10))
    outcomes = crowd.call_apart(count=calls_each, threads=10, max_tokens=10)
    check_redis(outcomes)
    arrivals_s = [ms / 1000 for ms in upstream.arrivals()]
    assert len(arrivals_s) == 4 * calls_each + 4
    assert most_above(arrivals_s, rate / 60) <= rate + 1
    # The first minute's worth comes at once. While all have work, the rest is used up too.
    paced_s = arrivals_s[-1] - arrivals_s[0]
    assert (len(arrivals_s) - rate) / (paced_s * rate / 60) >= 0.95


def test_a_429_holds_all_processes_back(crowd: Crowd, upstream: Upstream) -> None:
    crowd.open()
    check_redis(crowd.call_apart(count=1))
    upstream.reset()
    upstream.default(do.ok(latency_ms=20))
    loads = [
        worker.call("client", f"{number} {{n}}", threads=3, max_tokens=10)
        for number, worker in enumerate(crowd.workers)
    ]
    upstream.wait_for(lambda stats: stats.calls >= 100)
    upstream.script(do.rate_limited(retry_after=1))
    upstream.wait_for(lambda stats: stats.answered.get(429, 0) > 0)
    refused_ms = time.monotonic() * 1000
    until(
        lambda: upstream.arrivals()[-1] > refused_ms + 1000,
        timeout_s=5,
        what="calls go on after the pause",
    )
    for load in loads:
        load.stop()
    check_redis([outcome for load in loads for outcome in load.outcomes()])
    during = [ms for ms in upstream.arrivals() if refused_ms + 150 < ms < refused_ms + 900]
    assert not during
    assert upstream.stats().answered[429] == 1


# --- answers ---


def test_identical_calls_of_all_processes_are_one(crowd: Crowd, upstream: Upstream) -> None:
    upstream.default(do.ok("The one answer.", usage=USAGE, latency_ms=300))
    crowd.open()
    outcomes = crowd.call("What do sheep eat?", count=50, threads=50)
    check_redis(outcomes)
    assert upstream.stats().calls == 1
    assert {outcome.text for outcome in outcomes} == {"The one answer."}
    paid = [outcome for outcome in outcomes if outcome.cost]
    assert [(outcome.cache, outcome.cost) for outcome in paid] == [("miss", COST)]
    assert set(outcomes_of(outcomes)) <= {"miss", "coalesced", "hit"}
    later = crowd.call("What do sheep eat?", count=5)
    assert outcomes_of(later) == {"hit": 20}
    assert upstream.stats().calls == 1


def test_a_failure_is_shared_with_those_who_follow(crowd: Crowd, upstream: Upstream) -> None:
    upstream.default(do.status(400, message="No such sheep.", latency_ms=500))
    crowd.open()
    outcomes = crowd.call("What do wolves eat?", count=20, threads=20)
    assert upstream.stats().calls == 1
    assert len({(outcome.error, outcome.message) for outcome in outcomes}) == 1
    assert "No such sheep." in outcomes[0].message


def test_a_leader_that_is_killed_is_replaced_by_one(
    crowd: Crowd, upstream: Upstream, server: RedisServer
) -> None:
    answer_s = 1.0
    crowd.open()
    check_redis(crowd.call_apart(count=1))
    upstream.default(do.ok(latency_ms=answer_s * 1000))
    with Worker("threads") as leader:
        leader.wait_until_ready()
        crowd.of([leader]).open()
        leader.call("client", "Who leads?", count=1)
        upstream.wait_for(lambda stats: stats.calls == 5)
        followers = [
            worker.call("client", "Who leads?", count=5, threads=5) for worker in crowd.workers
        ]
        until(lambda: is_followed(server), timeout_s=1, what="somebody follows")
        leader.kill()
        killed_s = time.monotonic()
        outcomes = [outcome for each in followers for outcome in each.outcomes()]
    check_redis(outcomes)
    assert upstream.stats().calls == 6, "one new call for all"
    assert outcomes_of(outcomes)["miss"] == 1
    last_s = max(outcome.ended_s for outcome in outcomes) - killed_s
    assert last_s < config.LEASE_S + answer_s + 0.5


# --- breakers ---


def test_a_breaker_opens_for_all_and_one_call_of_all_tries_it(
    crowd: Crowd, upstream: Upstream, server: RedisServer
) -> None:
    crowd.open()
    check_redis(crowd.call_apart(count=1, max_tokens=10))
    upstream.reset()
    upstream.default(do.outage())
    failures = crowd.call_apart(count=2, max_retries=0)
    assert outcomes_of(failures)["ServerError"] >= config.BREAKER_FAILURES
    until(
        lambda: set(outcomes_of(crowd.call_apart(count=1, max_retries=0))) == {"CircuitOpen"},
        timeout_s=2,
        what="all have heard that the breaker is open",
    )
    calls = upstream.stats().calls
    crowd.call_apart(count=10, threads=5, max_retries=0)
    assert upstream.stats().calls == calls, "nobody asks while it is open"

    for is_over, latency_ms in ((False, 300), (True, 700)):
        age_breakers(server)
        answer = do.ok(latency_ms=latency_ms) if is_over else do.status(503, latency_ms=latency_ms)
        upstream.default(answer)
        calls = upstream.stats().calls
        outcomes = crowd.call_apart(count=15, threads=15, max_retries=0)
        # Those who ask once the probe is answered have a closed breaker before them.
        probes = upstream.arrivals()[calls:]
        ends_ms = probes[0] + latency_ms
        assert sum(ms < ends_ms for ms in probes) == 1, "one call tries it"
        found = outcomes_of(outcomes)
        assert found["miss" if is_over else "ServerError"] >= 1
        assert found["CircuitOpen"] >= 50, "all others are refused"
    until(
        lambda: outcomes_of(crowd.call_apart(count=3, max_retries=0)) == {"miss": 12},
        timeout_s=2,
        what="all let calls through",
    )


def age_breakers(server: RedisServer) -> None:
    """Let the time of all open breakers be over, and have all processes hear of it."""
    client = server.client()
    for key in client.keys("holysheep:1:*:breaker"):
        client.hincrbyfloat(key, "opened_at", -config.BREAKER_OPEN_S - 1)
        tag = key.decode().split("{")[1].split("}")[0]
        epoch = client.hget(key, "epoch").decode()
        client.publish("holysheep:1:news", f"breaker:{tag} open {epoch} 0 0")


# --- budgets ---


def test_a_budget_is_never_passed_and_can_be_used(
    crowd: Crowd, upstream: Upstream, server: RedisServer
) -> None:
    budget = Decimal("1.00")
    upstream.default(do.ok(usage=USAGE, latency_ms=30))
    crowd.open(daily_budget_usd=str(budget))
    for _ in range(3):
        outcomes = crowd.call_apart(count=200, threads=20, max_tokens=200)
        assert set(outcomes_of(outcomes)) <= {"miss", "BudgetExceeded"}
        # What was claimed and is not needed any more is given back.
        until(
            lambda: spent_of(server, crowd.fingerprint)[0] == upstream.stats().calls * COST,
            timeout_s=5,
            what="all that was spent is told",
        )
        assert upstream.stats().calls * COST <= budget + COST
    assert outcomes_of(outcomes)["BudgetExceeded"] > 0
    assert upstream.stats().calls * COST >= budget * Decimal("0.9")


# --- kinds of Redis ---


def check_that_all_is_shared(crowd: Crowd, upstream: Upstream) -> None:
    """A bit of everything, by several processes."""
    answer = "Grass and more grass. " * 100
    upstream.default(do.ok(answer, usage=USAGE, latency_ms=100))
    crowd.open(requests_per_minute=6000, tokens_per_minute=10**6, daily_budget_usd="5")
    outcomes = crowd.call("What do sheep eat?", count=10, threads=10, max_tokens=200)
    check_redis(outcomes)
    assert upstream.stats().calls == 1
    upstream.script(do.rate_limited(retry_after_ms=100))
    check_redis(crowd.call_apart(count=10, threads=5, max_tokens=200))
    upstream.default(do.outage(), model="deepseek-v3.2")
    failed = crowd.call_apart(count=6, model="deepseek-v3.2", max_tokens=200, max_retries=0)
    assert set(outcomes_of(failed)) == {"ServerError", "CircuitOpen"}
    check_redis(crowd.call("What do sheep eat?", count=2, max_tokens=200))


def test_a_cluster_keeps_a_credential_in_one_place(
    started_workers: list[Worker], upstream: Upstream
) -> None:
    with RedisCluster3() as cluster:
        crowd = Crowd(started_workers, upstream, cluster.url)
        check_that_all_is_shared(crowd, upstream)
        keys = [
            node.client().keys(f"holysheep:1:{{{crowd.fingerprint}}}:*") for node in cluster.nodes
        ]
        assert sorted(map(bool, keys)) == [False, False, True]
        for worker in started_workers:
            assert "CROSSSLOT" not in worker.complaints()


def test_tls(started_workers: list[Worker], upstream: Upstream) -> None:
    with RedisServer(tls=True) as server:
        check_that_all_is_shared(Crowd(started_workers, upstream, server.url), upstream)


def test_a_user_that_may_do_no_more_than_is_needed(
    started_workers: list[Worker], upstream: Upstream
) -> None:
    line = f"user sheep on >a-password ~holysheep:* &holysheep:* {PERMISSIONS}"
    with RedisServer(users=[line], password="nobody-knows") as server:
        check_that_all_is_shared(Crowd(started_workers, upstream, server.url), upstream)
        refused = {entry["object"] for entry in server.ask("ACL LOG")}
        assert refused <= {"client|setinfo"}  # newer servers know it, and nobody needs it


# --- what is kept ---


def test_what_is_kept_tells_nothing_is_small_and_expires(
    crowd: Crowd, upstream: Upstream, server: RedisServer
) -> None:
    prompt, answer = "Where is the shepherd?", "On the hill, with the dog. " * 400
    upstream.default(do.ok(answer, usage=USAGE))
    crowd.open(requests_per_minute=6000, tokens_per_minute=10**6, daily_budget_usd="5")
    check_redis(crowd.call(prompt, count=2, max_tokens=200))
    upstream.script(do.rate_limited(retry_after=30))
    crowd.workers[0].call("client", "held", count=1, max_retries=0).outcomes()
    upstream.default(do.outage(), model="deepseek-v3.2")
    crowd.call_apart(count=1, model="deepseek-v3.2", max_retries=0, timeout_s=2)
    client = server.client()
    found: dict[bytes, bytes] = {}
    for key in client.keys("*"):
        assert key.startswith(b"holysheep:1:"), key
        ttl_s = client.ttl(key)
        assert ttl_s != -1, f"{key!r} is kept for ever"
        if client.type(key) == b"hash":
            found |= {key + b" " + name: value for name, value in client.hgetall(key).items()}
        elif ttl_s != -2:
            found[key] = client.get(key) or b""
    kinds = {name.split(b":")[3] for name in found if name.count(b":") >= 3}
    assert {b"answer", b"spend", b"limits"} <= {kind.split(b" ")[0] for kind in kinds}
    texts = [b"\n".join(found), *(unpacked(value) for value in found.values())]
    host = upstream.url.split("//")[1].split("/")[0]
    for secret in (crowd.api_key, upstream.url, host, prompt, "shepherd", MODEL):
        if secret == MODEL:
            texts = texts[:1]  # an answer tells who gave it
        assert not [text for text in texts if secret.encode() in text]
    large = [value for value in found.values() if len(unpacked(value)) > 1024]
    assert large
    assert all(len(value) < 1024 for value in large)


def unpacked(value: bytes) -> bytes:
    try:
        return zlib.decompress(value)
    except zlib.error:
        return value


# --- the plugin ---


@contextmanager
def plugins(count: int) -> Iterator[list[PluginProcess]]:
    with ExitStack() as stack:
        yield [stack.enter_context(PluginProcess()) for _ in range(count)]


def test_plugin_processes_share_answers_and_a_budget(
    upstream: Upstream, server: RedisServer
) -> None:
    upstream.default(do.ok("The one answer.", usage=USAGE, latency_ms=500))
    api_key = f"hs-test-{uuid.uuid4().hex}"
    budget = Decimal("0.20")
    credentials = {
        "api_key": api_key,
        "base_url": upstream.url,
        "redis_url": server.url,
        "requests_per_minute": "0",
        "max_concurrency": "100",
        "daily_budget_usd": str(budget),
    }

    def call(plugin: PluginProcess, query: str) -> Any:
        parameters = {"query": query, "model": MODEL, "max_tokens": 200, "on_error": "continue"}
        return plugin.start("holysheep_llm", parameters, credentials)

    with plugins(4) as processes:
        started = [call(plugin, "What do sheep eat?") for _ in range(50) for plugin in processes]
        found = [each.result().variables for each in started]
        assert upstream.stats().calls == 1
        assert {(each["status"], each["result"]) for each in found} == {("ok", "The one answer.")}
        assert {each["meta"]["backend"] for each in found} == {"redis"}
        paid = [each["cost_usd"] for each in found if each["cost_usd"]]
        assert paid == [float(COST)]

        upstream.default(do.ok(usage=USAGE, latency_ms=20))
        numbers = range(50)
        started = [call(plugin, f"{plugin.pid} {n}") for n in numbers for plugin in processes]
        kinds = Counter(each.result().variables["error_type"] for each in started)
        assert set(kinds) == {"", "budget_exceeded"}
        spent = upstream.stats().calls * COST
        assert budget * Decimal("0.8") <= spent <= budget
