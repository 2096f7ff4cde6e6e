"""Real redis-server processes for tests: one server, three of a cluster, two with a sentinel.

A simulation of Redis would agree with what its author believes about Redis; these are the thing
itself, and can be killed, frozen, filled up and demoted. All listen on 127.0.0.1 only and keep
nothing: a server that is started again is empty.

Ports come from below the range that the system gives to outgoing connections. So nobody gets the
port of a server that is down, and who connects to it is refused and never meets itself.
"""

from __future__ import annotations

import atexit
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

__all__ = [
    "RedisCluster3",
    "RedisServer",
    "RedisServerError",
    "SentinelServer",
    "Sentinels",
    "needs_redis_server",
    "redis_server_missing",
]

_OLDEST = 7
"""The oldest version with all that is used here: ranges of slots, time-out of the shutdown."""

_START_TIMEOUT_S = 5.0
_CLUSTER_TIMEOUT_S = 15.0
_FAIL_OVER_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 2.0
_CLIENT_TIMEOUT_S = 1.0
_POLL_S = 0.005

_PORTS = range(10_000, 22_000)
_BUS_OFFSET = 10_000
"""A cluster's nodes talk to each other on their port plus this."""

_NOBODYS_PORT = 1
_SLOTS = 16_384
_LOG_KEPT_BYTES = 2_000

_KEEPER = "keeper-of-the-tests"
"""The user of this module: it may do everything, whatever a test's users may do."""

_KEEPER_PASSWORD = "kept-apart-from-the-users-of-tests"


@cache
def redis_server_missing() -> str:
    """Why there is no Redis for these tests and how to get it; empty if there is one."""
    path = shutil.which("redis-server")
    found = "there is none"
    if path is not None:
        try:
            answer = subprocess.run(
                [path, "--version"], check=False, capture_output=True, text=True, timeout=5
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            found = f"{path} does not run ({error})"
        else:
            version = re.search(r"\bv=(\d+)", answer.stdout)
            if version is not None and int(version[1]) >= _OLDEST:
                return ""
            found = f"{path} is {answer.stdout.strip() or 'of an unknown version'}"
    return (
        f"needs redis-server {_OLDEST} or newer on PATH, and {found}; Debian 12 and "
        "Ubuntu 24.04 have it: apt-get update && apt-get install -y redis-server"
    )


needs_redis_server = pytest.mark.skipif(bool(redis_server_missing()), reason=redis_server_missing())
"""For tests that start a server: without one they are skipped, and say what is missing."""


class RedisServerError(Exception):
    """A server did not start, or did not become what it should; with the end of its log."""


class _Server:
    """A redis-server process of whatever kind, from its temporary folder to its end."""

    _arguments: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.port = 0
        self._folder = Path()
        self._child: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self._clients: list[redis.Redis] = []
        self._keeper = redis.Redis()
        self._asked: Counter[str] = Counter()

    # --- life cycle ---

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="holysheep-redis-"))
        atexit.register(self.close)
        try:
            self._prepare()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process, close the clients, remove the folder. Does nothing the second time."""
        atexit.unregister(self.close)
        for client in (self._keeper, *self._clients):
            client.close()
        self._clients.clear()
        self.kill()
        if self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Start the process and return when it is of use; the second time on the same port.

        RedisServerError if that takes more than 5 s.
        """
        if self.running:
            raise RedisServerError(f"port {self.port} is served already")
        end_s = time.monotonic() + _START_TIMEOUT_S
        while True:
            child = self._launch(self.port or _free_port())
            self._wait(partial(self._answers_or_ended, child), end_s)
            if child.poll() is None:
                break
            taken = "Failed listening on port" in self._log()
            if not taken or time.monotonic() > end_s:
                raise RedisServerError(self._describe(f"ended with status {child.returncode}"))
        self._settle(end_s)

    def stop(self) -> None:
        """End the process as an administrator does, with SIGTERM, even if it is frozen."""
        if self._child is None:
            return
        self.thaw()
        self._child.terminate()
        try:
            self._child.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._child = None

    def kill(self) -> None:
        """End the process as a power cut does. SIGKILL reaches a frozen one as well."""
        if self._child is None:
            return
        self._child.kill()
        self._child.wait()
        self._child = None
        self._frozen = False

    def freeze(self) -> None:
        """Let the process answer nothing from now on; the kernel still accepts connections."""
        if self._frozen:
            return
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)  # a signal is only on its way when `kill` returns
        self._frozen = True

    def thaw(self) -> None:
        """Go on where `freeze` has stopped, with what has been sent since."""
        if self._frozen and self._child is not None:
            self._child.send_signal(signal.SIGCONT)
            self._frozen = False

    @property
    def running(self) -> bool:
        """Whether there is a process, frozen or not."""
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        """The process id."""
        if self._child is None or self._child.poll() is not None:
            raise RedisServerError(f"nothing runs on port {self.port}")
        return self._child.pid

    # --- use ---

    def client(self) -> redis.Redis:
        """A new client that may do everything, waits 1 s at most and tries nothing twice.

        It lives through restarts and is closed with the server.
        """
        client = self._connect(self.port)
        self._clients.append(client)
        return client

    def ask(self, command: str, *arguments: str | int) -> Any:
        """What the server says to a command, by a connection that `calls` does not count.

        Two words of a command are one argument (``"CONFIG SET"``).
        """
        self._asked[command.lower().replace(" ", "|")] += 1
        return self._keeper.execute_command(command, *arguments)  # type: ignore[no-untyped-call]

    # --- for the kinds of servers ---

    def _prepare(self) -> None:
        """Put into the folder what is there before the first start."""

    def _config(self, port: int) -> list[str]:
        """The lines of the configuration."""
        return [
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {self._folder}",
            f"logfile {self._folder / 'log'}",
            "loglevel warning",
            f"user {_KEEPER} on >{_KEEPER_PASSWORD} ~* &* +@all",
        ]

    def _settle(self, end_s: float) -> None:
        """Bring the process that has just begun to answer to where it is of use."""

    def _tls(self) -> dict[str, Any]:
        """The arguments of a client that concern TLS."""
        return {}

    # --- inside ---

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        # Written once: a sentinel notes in it what it knows, and in its servers' whom they follow.
        config = self._folder / "redis.conf"
        if not self.port:
            config.write_text("\n".join([*self._config(port), ""]))
        # The data of a replica's last synchronization would be loaded.
        (self._folder / "dump.rdb").unlink(missing_ok=True)
        self._keeper.close()
        self._keeper = self._connect(port)
        self._asked.clear()
        log = self._folder / "log"
        log.unlink(missing_ok=True)
        # In this process's group: what ends the tests from the terminal ends the server too.
        with log.open("ab") as output:  # complaints about the configuration go to stderr
            self._child = subprocess.Popen(
                ["redis-server", str(config), *self._arguments],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        return self._child

    def _connect(self, port: int) -> redis.Redis:
        return redis.Redis(
            "127.0.0.1",
            port,
            username=_KEEPER,
            password=_KEEPER_PASSWORD,
            socket_timeout=_CLIENT_TIMEOUT_S,
            socket_connect_timeout=_CLIENT_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            **self._tls(),
        )

    def _answers_or_ended(self, child: subprocess.Popen[bytes]) -> bool:
        if child.poll() is not None:
            return True
        try:
            self.ask("PING")
            info = self.ask("INFO", "server")
        except RedisError:
            return False
        if info["process_id"] != child.pid:  # somebody else's server, on the port that is taken
            return False
        self.port = info["tcp_port"]  # for good
        return True

    def _wait(self, ready: Callable[[], bool], end_s: float) -> None:
        while True:
            with suppress(redis.ConnectionError, redis.TimeoutError):  # a sentinel throws out too
                if ready():
                    return
            if time.monotonic() > end_s:
                raise RedisServerError(self._describe("is not ready in time"))
            time.sleep(_POLL_S)

    def _log(self) -> str:
        try:
            return (self._folder / "log").read_bytes()[-_LOG_KEPT_BYTES:].decode(errors="replace")
        except FileNotFoundError:
            return ""

    def _describe(self, trouble: str) -> str:
        return f"redis-server {trouble}; the end of its log:\n{self._log() or '(empty)'}"


class RedisServer(_Server):
    """A Redis of a test's own, empty at every start.

    ``password`` is the default user's; ``users`` are lines of an ACL, such as ``user alice on >pw
    ~holysheep:* &holysheep:* +@all``. With ``tls`` there is no plain port; with ``cluster`` it is
    a cluster of this one node, which takes 2 s to say so. A ``replica_of`` another server (without
    TLS) is ready when it is in step with it.

    ::

        with RedisServer() as server:
            server.client().set("key", b"text")
            server.freeze()
    """

    def __init__(
        self,
        *,
        password: str | None = None,
        users: Sequence[str] = (),
        maxmemory: int = 0,
        maxmemory_policy: str = "noeviction",
        tls: bool = False,
        cluster: bool = False,
        replica_of: RedisServer | None = None,
    ) -> None:
        super().__init__()
        self._password = password
        self._users = tuple(users)
        self._maxmemory = maxmemory
        self._maxmemory_policy = maxmemory_policy
        self._with_tls = tls
        self._cluster = cluster
        self._replica_of = replica_of

    @property
    def url(self) -> str:
        """What a program would be given: for the first of ``users``, else the default user."""
        return self.url_of(_credentials(self._users[0])[0] if self._users else "default")

    def url_of(self, user: str) -> str:
        """The URL for one of the users, with the first password that its line has."""
        passwords = {"default": self._password} | dict(map(_credentials, self._users))
        password = passwords[user]
        name = "" if user == "default" else quote(user, safe="")
        login = "" if password is None else f"{name}:{quote(password, safe='')}@"
        query = f"?ssl_ca_certs={quote(str(self.ca_file))}" if self._with_tls else ""
        scheme = "rediss" if self._with_tls else "redis"
        return f"{scheme}://{login}127.0.0.1:{self.port}/0{query}"

    @property
    def ca_file(self) -> Path:
        """The certificate that clients of a server with TLS have to trust."""
        return self._folder / "ca.pem"

    # --- what can happen to a server ---

    def flush(self) -> None:
        """Remove all keys."""
        self.ask("FLUSHALL")

    def fill(self) -> None:
        """Let writes fail for want of memory; reads work."""
        self.ask("CONFIG SET", "maxmemory-policy", "noeviction", "maxmemory", 1)

    def unfill(self) -> None:
        """Give it the memory back that it was started with."""
        policy, size = self._maxmemory_policy, self._maxmemory
        self.ask("CONFIG SET", "maxmemory-policy", policy, "maxmemory", size)

    def become_replica_of_nobody_reachable(self) -> None:
        """Let writes fail with READONLY; reads are served from what there is."""
        self.ask("REPLICAOF", "127.0.0.1", _NOBODYS_PORT)

    def become_master(self) -> None:
        """Be a server of its own (again), with the data that it has."""
        self.ask("REPLICAOF", "NO", "ONE")

    def kill_clients(self) -> None:
        """Close all connections, of subscribers too; whoever wants to may connect again."""
        self.ask("CLIENT KILL", "TYPE", "normal")
        self.ask("CLIENT KILL", "TYPE", "pubsub")

    # --- what it was asked ---

    def calls(self) -> dict[str, int]:
        """How often each command ran since the start or `reset_calls`, by its name in lower case.

        A subcommand is a name such as ``client|setinfo``. A command in a script counts; what this
        object asks for does not. A failed command counts, a rejected one (unknown, no permission,
        no memory, read-only) does not.
        """
        asked = self._asked.copy()  # this question is counted after its answer
        counts = {
            name.removeprefix("cmdstat_"): figures["calls"]
            for name, figures in self.ask("INFO", "commandstats").items()
        }
        return {name: left for name, count in counts.items() if (left := count - asked[name]) > 0}

    def reset_calls(self) -> None:
        """Count from zero."""
        self.ask("CONFIG RESETSTAT")
        self._asked = Counter({"config|resetstat": 1})  # counted after it has set all to zero

    # --- inside ---

    def _prepare(self) -> None:
        if self._with_tls:
            _make_certificates(self._folder)

    def _config(self, port: int) -> list[str]:
        lines = [
            *super()._config(0 if self._with_tls else port),
            'save ""',
            "appendonly no",
            "hz 100",  # SIGTERM is looked at that often
            "shutdown-timeout 0",  # do not wait for replicas, which may be frozen
            "repl-diskless-sync-delay 0",
            "replica-read-only yes",
            f"maxmemory {self._maxmemory}",
            f"maxmemory-policy {self._maxmemory_policy}",
            *self._users,
        ]
        if self._password is not None:
            lines.append(f"requirepass {_quoted(self._password)}")
        if self._with_tls:
            lines += [
                f"tls-port {port}",
                f"tls-cert-file {self._folder / 'server.pem'}",
                f"tls-key-file {self._folder / 'server.key'}",
                f"tls-ca-cert-file {self.ca_file}",
                "tls-auth-clients no",
                "tls-cluster yes",
            ]
        if self._cluster:
            lines += [
                "cluster-enabled yes",
                "cluster-announce-ip 127.0.0.1",  # a node that has met nobody does not know it
                "cluster-node-timeout 5000",
            ]
        if self._replica_of is not None:
            lines += [
                f"replicaof 127.0.0.1 {self._replica_of.port}",
                f"masteruser {_KEEPER}",
                f"masterauth {_KEEPER_PASSWORD}",
            ]
        return lines

    def _settle(self, end_s: float) -> None:
        master = self._replica_of
        if master is not None and master.running and self._role() == "slave":
            self._wait(partial(self._follows, master), end_s)
        if self._cluster:
            self._join_cluster(end_s)
        self.reset_calls()

    def _join_cluster(self, end_s: float) -> None:
        if self.ask("CLUSTER INFO")["cluster_slots_assigned"] == "0":  # else it remembers them
            self.ask("CLUSTER ADDSLOTSRANGE", 0, _SLOTS - 1)
        self._wait(self._is_whole_cluster, end_s)

    def _is_whole_cluster(self, nodes: int = 1) -> bool:
        info = self.ask("CLUSTER INFO")
        state = (info["cluster_state"], info["cluster_known_nodes"], info["cluster_slots_ok"])
        return state == ("ok", str(nodes), str(_SLOTS))

    def _role(self) -> str:
        return str(self.ask("INFO", "replication")["role"])

    def _follows(self, master: RedisServer) -> bool:
        info = self.ask("INFO", "replication")
        link = (info.get("master_port"), info.get("master_link_status"))
        return link == (master.port, "up")

    def _tls(self) -> dict[str, Any]:
        return {"ssl": True, "ssl_ca_certs": str(self.ca_file)} if self._with_tls else {}


class _ClusterNode(RedisServer):
    """A node that has a part of the slots; whoever has the other nodes brings them together."""

    def __init__(self, number: int, of: int) -> None:
        super().__init__(cluster=True)
        self._number = number
        self._first, self._last = _SLOTS * number // of, _SLOTS * (number + 1) // of - 1

    def _join_cluster(self, end_s: float) -> None:
        if self.ask("CLUSTER INFO")["cluster_slots_assigned"] == "0":
            self.ask("CLUSTER SET-CONFIG-EPOCH", self._number + 1)
            self.ask("CLUSTER ADDSLOTSRANGE", self._first, self._last)


class _Together:
    """Servers that belong together; a context manager."""

    def __init__(self, *servers: _Server) -> None:
        self._servers = servers
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            for server in self._servers:
                opening.enter_context(server)
            self._join()
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _join(self) -> None:
        """Return when each knows the others."""
        raise NotImplementedError


class RedisCluster3(_Together):
    """A cluster of three masters without replicas; ``nodes`` have the slots in rising order."""

    def __init__(self) -> None:
        self.nodes: tuple[RedisServer, ...] = tuple(_ClusterNode(n, 3) for n in range(3))
        super().__init__(*self.nodes)

    def _join(self) -> None:
        for node in self.nodes:
            for other in self.nodes:
                if node is not other:
                    node.ask("CLUSTER MEET", "127.0.0.1", other.port)
        self.wait_until_whole()

    @property
    def url(self) -> str:
        """Where to ask for the others; the scheme is this project's own."""
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    def wait_until_whole(self) -> None:
        """Return when all nodes say that all is well, after a restart too; 15 s at most."""
        end_s = time.monotonic() + _CLUSTER_TIMEOUT_S
        for node in self.nodes:
            node._wait(partial(node._is_whole_cluster, len(self.nodes)), end_s)
            node.reset_calls()


class SentinelServer(_Server):
    """A sentinel that decides on its own who is the master of ``mymaster``."""

    _arguments = ("--sentinel",)

    def __init__(self, master: RedisServer, *, password: str = "") -> None:
        super().__init__()
        self._master = master
        self._password = password or None

    def master_port(self) -> int:
        """The port that it sends clients to."""
        return int(self.ask("SENTINEL GET-MASTER-ADDR-BY-NAME", "mymaster")[1])

    def _config(self, port: int) -> list[str]:
        return [
            *super()._config(port),
            f"sentinel monitor mymaster 127.0.0.1 {self._master.port} 1",
            "sentinel down-after-milliseconds mymaster 500",
            "sentinel failover-timeout mymaster 1000",
            *([f"requirepass {_quoted(self._password)}"] if self._password else []),
        ]

    def _settle(self, end_s: float) -> None:
        # As it is, it connects again after 1 s only: a server whose connections were closed would
        # count as down, and be replaced. Four of the last are its patience with two masters.
        self.ask("SENTINEL DEBUG", *("PING-PERIOD", 100, "INFO-PERIOD", 200, "PUBLISH-PERIOD", 100))

    def _knows_a_replica(self) -> bool:
        replicas = self.ask("SENTINEL SLAVES", "mymaster")
        return any(replica["flags"] == "slave" for replica in replicas)

    def _has_settled_for(self, master: RedisServer) -> bool:
        state = self.ask("SENTINEL MASTER", "mymaster")
        return (state["port"], state["flags"]) == (master.port, "master")


class Sentinels(_Together):
    """A master, its replica and a sentinel; ``master`` and ``replica`` change places by a failover.

    The sentinel finds after half a second that the master is down and has replaced it 1 s later. A
    former master that comes back becomes a replica half a second after that. ``password`` is the
    sentinel's own.
    """

    def __init__(self, *, password: str = "") -> None:
        self.master = RedisServer()
        self.replica = RedisServer(replica_of=self.master)
        self.sentinel = SentinelServer(self.master, password=password)
        super().__init__(self.master, self.replica, self.sentinel)

    def _join(self) -> None:
        end_s = time.monotonic() + _START_TIMEOUT_S
        self.sentinel._wait(self.sentinel._knows_a_replica, end_s)

    @property
    def url(self) -> str:
        """Where to ask for the master; the scheme is this project's own."""
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/mymaster/0"

    def fail_over(self) -> None:
        """Make the replica the master and, unless it is down, the master its replica; 10 s at most.

        If the sentinel has replaced a dead master already, nothing more happens.
        """
        old, new = self.master, self.replica
        end_s = time.monotonic() + _FAIL_OVER_TIMEOUT_S
        self.sentinel._wait(self._has_begun, end_s)
        self.sentinel._wait(lambda: self.sentinel._has_settled_for(new), end_s)
        new._wait(lambda: new._role() == "master", end_s)
        if old.running and not old._frozen:
            old._wait(lambda: old._follows(new), end_s)
        self.master, self.replica = new, old

    def _has_begun(self) -> bool:
        if self.sentinel.master_port() == self.replica.port:
            return True
        try:
            self.sentinel.ask("SENTINEL FAILOVER", "mymaster")
        except ResponseError as error:
            # NOGOODSLAVE: it has not heard enough of the replica yet.
            return str(error).startswith("INPROG")
        return True


def _free_port() -> int:
    """A port that is free, and its cluster bus with it; another process may be faster."""
    while True:
        port = _PORTS.start + secrets.randbelow(len(_PORTS))
        try:
            for number in (port, port + _BUS_OFFSET):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port


def _credentials(line: str) -> tuple[str, str | None]:
    """The name in a line of an ACL, and its first password."""
    _, name, *rules = shlex.split(line)
    return name, next((rule[1:] for rule in rules if rule.startswith(">")), None)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _make_certificates(folder: Path) -> None:
    """An authority of its own (ca.pem), and by it a certificate for the loopback address."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise RedisServerError("TLS needs the openssl command to make a certificate")
    (folder / "extensions").write_text(
        "basicConstraints=CA:FALSE\n"
        "keyUsage=digitalSignature\n"
        "extendedKeyUsage=serverAuth,clientAuth\n"
        "authorityKeyIdentifier=keyid\n"
        "subjectAltName=IP:127.0.0.1,DNS:localhost\n"
    )
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout")
    authority = (
        *("req", "-x509", "-days", "2", "-subj", "/CN=authority of a test"),
        *("-addext", "keyUsage=critical,keyCertSign", *key, "ca.key", "-out", "ca.pem"),
    )
    request = ("req", "-new", "-subj", "/CN=localhost", *key, "server.key", "-out", "server.csr")
    certificate = (
        *("x509", "-req", "-days", "2", "-in", "server.csr", "-extfile", "extensions"),
        *("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "server.pem"),
    )
    for arguments in (authority, request, certificate):
        subprocess.run(
            [openssl, *arguments], cwd=folder, check=True, capture_output=True, timeout=10
        )
