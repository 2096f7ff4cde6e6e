"""The servers that tests of shared state use do what they say."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

from tests.redis import servers as redis_servers
from tests.redis.servers import (
    RedisCluster3,
    RedisServer,
    RedisServerError,
    Sentinels,
    needs_redis_server,
    redis_server_missing,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_redis_server

ROOT = Path(__file__).resolve().parents[2]


def connect(url: str, **options: Any) -> redis.Redis:
    """A client that is no friend of the server's and tries nothing twice."""
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    start_s = time.monotonic()
    yield
    assert time.monotonic() - start_s < seconds


def refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


# --- one server ---


def test_a_server_serves_and_listens_on_loopback_only(server: RedisServer) -> None:
    client = server.client()
    client.set("key", "text")
    assert client.get("key") == b"text"
    assert connect(server.url).get("key") == b"text"
    assert client.config_get("bind")["bind"] == "127.0.0.1"
    assert client is not server.client()


def test_flush_removes_all_keys(server: RedisServer) -> None:
    client = server.client()
    client.set("key", "text")
    server.flush()
    assert client.dbsize() == 0


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_restarted_server_has_its_port_and_is_empty(end: str, *, frozen: bool) -> None:
    with RedisServer(password="secret") as server:
        client, port, pid = server.client(), server.port, server.pid
        client.set("key", "text")
        if frozen:
            server.freeze()
        with within(2):
            getattr(server, end)()
        assert not server.running
        assert refused(port)
        with pytest.raises(redis.ConnectionError):
            client.ping()
        getattr(server, end)()
        server.start()
        assert (server.port, server.running) == (port, True)
        assert server.pid != pid
        assert client.get("key") is None
        with pytest.raises(RedisServerError, match="served already"):
            server.start()


def test_nothing_is_left_behind() -> None:
    with RedisServer() as server:
        folder, port, client = server.ca_file.parent, server.port, server.client()
        client.ping()
        server.freeze()
    assert not folder.exists()
    assert refused(port)
    assert not server.running
    server.close()


def test_servers_end_with_the_process_that_started_them() -> None:
    program = (
        "from tests.redis.servers import RedisServer\n"
        "server = RedisServer().__enter__()\n"
        "print(server.pid, server.ca_file.parent)\n"
        "server.freeze()\n"
        "raise SystemExit(3)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (ended.returncode, ended.stderr) == (3, "")
    pid, folder = ended.stdout.split()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    assert not Path(folder).exists()


def test_a_port_that_is_taken_is_given_up(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = iter([server.port, redis_servers._free_port()])
    monkeypatch.setattr(redis_servers, "_free_port", lambda: next(ports))
    with RedisServer() as other:
        assert other.port != server.port
        other.client().set("key", "text")
        assert server.client().dbsize() == 0
    assert server.client().ping()


def test_a_server_that_does_not_start_says_why() -> None:
    with (
        within(5),
        pytest.raises(RedisServerError, match=r"(?s)status 1.*maxmemory-policy nonsense"),
        RedisServer(maxmemory_policy="nonsense"),
    ):
        pass


def test_a_missing_server_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = redis_server_missing.__wrapped__
    assert "there is none; " in missing()
    assert "apt-get install -y redis-server" in missing()
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho Redis server v=6.0.16 sha=0\n")
    program.chmod(0o755)
    assert "is Redis server v=6.0.16" in missing()


# --- options ---


def test_a_password() -> None:
    with RedisServer(password='p@ss "w\\:/rd') as locked:
        assert connect(locked.url).ping()
        with pytest.raises(redis.AuthenticationError):
            connect(f"redis://127.0.0.1:{locked.port}").ping()
        assert locked.client().ping()


def test_users_may_do_what_their_lines_say() -> None:
    users = [
        "user alice on >p@w ~holysheep:* &holysheep:* +@all",
        "user bob on >other ~holysheep:* +get",
        "user default off",
    ]
    with RedisServer(users=users) as server:
        alice = connect(server.url)
        assert alice.acl_whoami() == "alice"
        alice.set("holysheep:key", "text")
        with pytest.raises(redis.exceptions.NoPermissionError):
            alice.set("key", "text")
        bob = connect(server.url_of("bob"))
        assert bob.get("holysheep:key") == b"text"
        with pytest.raises(redis.exceptions.NoPermissionError):
            bob.set("holysheep:key", "text")
        with pytest.raises(redis.AuthenticationError):
            connect(server.url_of("default")).ping()
        assert server.client().set("key", "text")


def test_tls_with_an_authority_of_its_own() -> None:
    with RedisServer(tls=True, password="secret") as secure:
        assert secure.url.startswith("rediss://")
        assert connect(secure.url).ping()
        assert secure.client().ping()
        trusting = ssl.create_default_context(cafile=secure.ca_file)
        trusting.verify_flags |= ssl.VERIFY_X509_STRICT
        for host in ("127.0.0.1", "localhost"):
            with (
                socket.create_connection(("127.0.0.1", secure.port)) as plain,
                trusting.wrap_socket(plain, server_hostname=host) as encrypted,
            ):
                assert encrypted.version() == "TLSv1.3"
        with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            connect(secure.url.partition("?")[0]).ping()
        with pytest.raises(redis.ConnectionError):
            connect(f"redis://127.0.0.1:{secure.port}").ping()
        secure.stop()
        secure.start()
        assert connect(secure.url).ping()


def test_memory_is_limited_as_told() -> None:
    with RedisServer(maxmemory=64 * 2**20, maxmemory_policy="allkeys-lru") as server:
        wanted = {"maxmemory": str(64 * 2**20), "maxmemory-policy": "allkeys-lru"}
        client = server.client()
        assert client.config_get(*wanted) == wanted
        server.fill()
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.set("key", "text")
        server.unfill()
        assert client.config_get(*wanted) == wanted


def test_a_replica_is_in_step_and_refuses_writes() -> None:
    with RedisServer(password="secret") as master:
        master.client().set("key", "text")
        with RedisServer(replica_of=master) as replica:
            client = replica.client()
            assert client.get("key") == b"text"
            with pytest.raises(redis.ReadOnlyError):
                client.set("key", "other")
            replica.stop()
            replica.start()
            assert client.get("key") == b"text"
            master.stop()
            replica.kill()
            replica.start()
            assert client.get("key") is None


def test_a_cluster_of_one_node() -> None:
    with RedisServer(cluster=True) as server, RedisCluster.from_url(server.url) as client:
        client.set("key", "text")
        assert client.get("key") == b"text"
        assert len(client.get_nodes()) == 1
        with pytest.raises(redis.exceptions.ClusterCrossSlotError):
            server.client().mget("key", "other")


# --- what can happen ---


def test_a_frozen_server_is_silent_until_it_thaws(server: RedisServer) -> None:
    client = server.client()
    client.set("key", "text")
    server.freeze()
    server.freeze()
    try:
        with within(1.5), pytest.raises(redis.TimeoutError):
            client.get("key")
        assert not refused(server.port)
    finally:
        server.thaw()
    server.thaw()
    assert client.get("key") == b"text"


def test_a_full_server_serves_reads_only(server: RedisServer) -> None:
    client = server.client()
    client.set("key", "text")
    server.fill()
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        client.set("key", "other")
    assert client.get("key") == b"text"
    server.unfill()
    assert client.set("key", "other")


def test_a_demoted_server_serves_reads_only(server: RedisServer) -> None:
    client = server.client()
    client.set("key", "text")
    server.become_replica_of_nobody_reachable()
    with pytest.raises(redis.ReadOnlyError):
        client.set("key", "other")
    assert client.get("key") == b"text"
    server.become_master()
    assert client.set("key", "other")


def test_killed_clients_lose_their_connections(server: RedisServer) -> None:
    client: Any = server.client()
    with client.client() as held, client.pubsub() as subscriber:
        held.ping()
        subscriber.subscribe("channel")
        assert subscriber.get_message(timeout=1)["type"] == "subscribe"
        number = held.client_id()
        server.kill_clients()
        numbers = {int(entry["id"]) for entry in server.client().client_list()}
        assert number not in numbers
        assert server.client().pubsub_numsub("channel") == [(b"channel", 0)]
    assert client.ping()


def test_calls_are_those_of_others(server: RedisServer) -> None:
    client = server.client()
    client.ping()
    server.reset_calls()
    assert server.calls() == {}
    for _ in range(3):
        client.get("key")
    client.config_get("port")
    client.eval("return redis.call('SET', KEYS[1], 'text')", 1, "key")
    server.fill()
    server.unfill()
    expected = {"get": 3, "config|get": 1, "eval": 1, "set": 1}
    assert server.calls() == expected
    assert server.calls() == expected
    server.reset_calls()
    assert server.calls() == {}


def test_nothing_has_been_called_at_the_start() -> None:
    with RedisServer() as server:
        assert server.calls() == {}


# --- several servers ---


def test_a_cluster_of_three_nodes() -> None:
    with RedisCluster3() as cluster:
        assert cluster.url == f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}"
        with RedisCluster("127.0.0.1", cluster.nodes[2].port) as client:
            assert {node.port for node in client.get_nodes()} == {n.port for n in cluster.nodes}
            for number in range(60):
                client.set(f"key-{number}", number)
        sizes = [node.client().dbsize() for node in cluster.nodes]
        assert sum(sizes) == 60
        assert all(size > 0 for size in sizes)
        with pytest.raises(redis.exceptions.MovedError, match="12182 "):  # the slot of "foo"
            cluster.nodes[0].client().get("foo")
        cluster.nodes[1].kill()
        cluster.nodes[1].start()
        with within(15):
            cluster.wait_until_whole()
        assert cluster.nodes[1].client().dbsize() == 0


def test_a_sentinel_replaces_the_master() -> None:
    with Sentinels() as servers:
        first, second = servers.master, servers.replica
        assert servers.url == f"redis+sentinel://127.0.0.1:{servers.sentinel.port}/mymaster/0"
        finder: Any = Sentinel([("127.0.0.1", servers.sentinel.port)])  # type: ignore[no-untyped-call]
        assert finder.discover_master("mymaster") == ("127.0.0.1", first.port)
        first.client().set("key", "text")

        with within(11):
            servers.fail_over()
        assert (servers.master, servers.replica) == (second, first)
        assert finder.discover_master("mymaster") == ("127.0.0.1", second.port)
        with pytest.raises(redis.ReadOnlyError):
            first.client().set("key", "other")
        second.client().set("key", "other")
        assert second.client().wait(1, 1000) == 1  # the replica has it

        second.freeze()
        with within(11):
            servers.fail_over()
        assert (servers.master, servers.replica) == (first, second)
        assert finder.discover_master("mymaster") == ("127.0.0.1", first.port)
        assert first.client().get("key") == b"other"

        second.kill()
        second.start()
        second._wait(lambda: second._follows(first), time.monotonic() + 5)

        servers.sentinel.kill()
        servers.sentinel.start()
        assert servers.sentinel.master_port() == first.port
