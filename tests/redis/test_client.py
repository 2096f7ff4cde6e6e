"""The client of a Redis, with a real server."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from devtools.upstream import behaviours as do
from holysheep.shared.address import parse_redis_url
from holysheep.shared.scripts import Script
from holysheep.shared.server import RedisServer as Client
from tests.fakes import KEY
from tests.redis.servers import needs_redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devtools.upstream import Upstream
    from tests.redis.servers import RedisServer

pytestmark = needs_redis_server


@pytest.fixture
def client(server: RedisServer) -> Iterator[Client]:
    client = Client(parse_redis_url(server.url))
    yield client
    client.close()


def appends(name: str) -> Script:
    """A script that adds a name to a list. Its text is one that the server has not seen."""
    text = f"return redis.call('RPUSH', KEYS[1], '{name}')"
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def test_scripts_of_a_batch_run_in_its_order_whichever_redis_knows(
    server: RedisServer, client: Client
) -> None:
    first, second = appends("first"), appends("second")
    client.run(second, ["list"], [])
    client.run_all([(script, ["list"], ()) for script in (first, second, first)])
    assert server.client().lrange("list", 1, -1) == [b"first", b"second", b"first"]


def test_a_batch_goes_on_after_redis_has_forgotten_its_scripts(
    server: RedisServer, client: Client
) -> None:
    scripts = [appends("first"), appends("second")]
    for _ in range(2):
        client.run_all([(script, ["list"], ()) for script in scripts])
        server.client().script_flush()
    assert server.client().llen("list") == 4


def test_commands_share_what_is_known_by_a_redis_and_leave_it_there_when_they_end(
    server: RedisServer, upstream: Upstream
) -> None:
    upstream.default(do.ok("On the hill."))
    environment = {
        **os.environ,
        "HOLYSHEEP_API_KEY": KEY,
        "HOLYSHEEP_BASE_URL": upstream.url,
        "HOLYSHEEP_REDIS_URL": server.url,
    }
    command = [sys.executable, "-m", "holysheep", "chat", "Where is the sheep?", "--json"]
    results = [
        json.loads(
            subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
        )
        for _ in range(2)
    ]
    assert [result["cached"] for result in results] == [False, True]
    assert [result["meta"]["backend"] for result in results] == ["redis", "redis"]
    assert len(upstream.requests()) == 1
