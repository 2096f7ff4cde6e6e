"""Whether a Redis can be used: a sentence of its own for each reason why not, and no secret in any.

Old versions and servers that are none are simulated; all else is a real redis-server.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote

import pytest

from holysheep.errors import SettingsError
from holysheep.shared import check
from holysheep.shared.check import RULES, check_redis
from holysheep.shared.server import RedisServer as ServerOfCheck
from tests.engine.raw_servers import Link, RawServer, closed_port
from tests.redis.servers import RedisCluster3, RedisServer, Sentinels, needs_redis_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from holysheep.shared.address import Address


ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "p@ss/word:%41"
"""With all that has a meaning in URLs."""


def refusal(url: str, *secrets: str) -> str:
    """The sentence with which a Redis is refused, in less than two seconds."""
    began_s = time.monotonic()
    with pytest.raises(SettingsError) as raised:
        check_redis(url)
    assert time.monotonic() - began_s < 2
    error = raised.value
    assert error.__cause__ is None
    assert error.__suppress_context__ or not error.__context__, "that may hold the password"
    assert "\n" not in error.message
    assert error.message == error.message.strip()
    for secret in (url, url.partition("://")[2], *secrets):
        assert secret not in error.message + error.detail
    return error.message


def as_cluster(url: str) -> str:
    return url.replace("://", "+cluster://").removesuffix("/0")


# --- fine ---


@needs_redis_server
def test_a_redis_that_will_do(server: RedisServer) -> None:
    check_redis(server.url)
    check_redis(server.url)


@needs_redis_server
def test_a_check_leaves_nothing_behind(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But a key that ends within a second. Its client is kept here, so nobody cleans up for it."""
    made = []

    def remembered(address: Address) -> ServerOfCheck:
        made.append(ServerOfCheck(address))
        return made[-1]

    monkeypatch.setattr(check, "RedisServer", remembered)
    client = server.client()
    before = client.info("clients")["connected_clients"]
    check_redis(server.url)
    assert len(made) == 1
    assert set(client.keys("*")) <= {b"holysheep:1:check"}
    assert client.pttl("holysheep:1:check") in (-2, *range(1001))
    assert client.pubsub_channels() == []
    until_s = time.monotonic() + 2  # a server notices the end of a connection when it looks
    while client.info("clients")["connected_clients"] > before:
        assert time.monotonic() < until_s


@needs_redis_server
def test_a_check_is_no_trouble_to_a_redis_that_has_the_script(server: RedisServer) -> None:
    check_redis(server.url)
    server.reset_calls()
    check_redis(server.url)
    asked = server.calls()
    assert (asked["evalsha"], asked["info"], asked["subscribe"]) == (1, 1, 1)
    assert "eval" not in asked


@needs_redis_server
@pytest.mark.parametrize("policy", ["volatile-lru", "volatile-ttl", "allkeys-lru"])
def test_a_memory_limit_with_a_policy_that_makes_room_is_fine(policy: str) -> None:
    with RedisServer(maxmemory=64 * 2**20, maxmemory_policy=policy) as server:
        check_redis(server.url)


@needs_redis_server
def test_a_password_and_its_escapes() -> None:
    with RedisServer(password=PASSWORD) as server:
        check_redis(server.url)


@needs_redis_server
def test_tls_whose_authority_is_named() -> None:
    with RedisServer(tls=True) as server:
        check_redis(server.url)


@needs_redis_server
def test_a_cluster_that_is_named_as_one() -> None:
    with RedisCluster3() as cluster:
        check_redis(cluster.url)
        check_redis(f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster.nodes[2].port}")


@needs_redis_server
def test_a_master_that_a_sentinel_knows() -> None:
    with Sentinels() as sentinels:
        check_redis(sentinels.url)


@needs_redis_server
def test_a_master_that_a_sentinel_knows_who_wants_a_login_of_its_own() -> None:
    with Sentinels(password=PASSWORD) as sentinels:
        check_redis(f"{sentinels.url}?sentinel_password={quote(PASSWORD, safe='')}")
        for query in ("", "?sentinel_password=wrong-password"):
            message = refusal(f"{sentinels.url}{query}", "wrong-password", PASSWORD)
            assert "sentinel_password" in message


# --- the way to it ---


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+cluster"])
def test_a_port_where_nobody_listens(scheme: str) -> None:
    message = refusal(f"{scheme}://127.0.0.1:{closed_port()}")
    assert message.startswith("Redis could not be reached. Check host and port in redis_url")


@pytest.mark.parametrize(
    "host", ["redis.invalid", "a..b", "a" * 80, "*", "\u00df.invalid"], ids=lambda host: host[:14]
)
def test_a_host_that_does_not_exist(host: str) -> None:
    message = refusal(f"redis://{host}/0", host)
    assert message.startswith("Redis could not be reached. ")


def test_a_password_in_place_of_the_host_is_not_repeated() -> None:
    assert "reached" in refusal("redis://the-password-alone", "the-password-alone")


@needs_redis_server
def test_a_redis_that_is_frozen(server: RedisServer) -> None:
    sentinel = f"redis+sentinel://127.0.0.1:{server.port}/mymaster"
    server.freeze()
    try:
        for url in (server.url, as_cluster(server.url), server.url.replace("redis", "rediss")):
            assert refusal(url).startswith("Redis did not answer within 0.25 s. ")
        assert refusal(sentinel).startswith("No sentinel could say where the master is. ")
    finally:
        server.thaw()


@needs_redis_server
def test_a_cluster_one_node_of_which_is_frozen() -> None:
    """The one that has the key, of another than the one that is asked first."""
    with RedisCluster3() as cluster:
        before = [node.calls().get("set", 0) for node in cluster.nodes]
        check_redis(cluster.url)
        after = [node.calls().get("set", 0) for node in cluster.nodes]
        (holder,) = (
            n for n, was, is_ in zip(cluster.nodes, before, after, strict=True) if is_ > was
        )
        other = next(node for node in cluster.nodes if node is not holder)
        holder.freeze()
        message = refusal(f"redis+cluster://127.0.0.1:{other.port}")
        assert message.startswith("Redis did not answer within 0.25 s. ")
        holder.thaw()


def reset(link: Link) -> None:
    link.sock.recv(1000)
    link.reset()


def leave(link: Link) -> None:
    link.sock.recv(1000)


def web(link: Link) -> None:
    link.sock.recv(1000)
    link.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize("serve", [reset, leave, web])
def test_something_that_is_no_redis(serve: Callable[[Link], None]) -> None:
    with RawServer(serve) as server:
        message = refusal(f"redis://127.0.0.1:{server.port}")
    assert "does not speak like Redis, or wants TLS" in message
    assert "rediss://" in message


def test_something_that_never_answers() -> None:
    with RawServer(Link.wait_for_end) as server:
        assert "did not answer within" in refusal(f"redis://127.0.0.1:{server.port}")


# --- login and TLS ---


@needs_redis_server
def test_a_login_that_is_wrong_or_missing() -> None:
    with RedisServer(password=PASSWORD) as server:
        address = f"127.0.0.1:{server.port}"
        for scheme in ("redis", "redis+cluster"):
            for login in (":wrong-password", "wrong-user:wrong-password"):
                message = refusal(f"{scheme}://{login}@{address}", "wrong-password", "wrong-user")
                assert message.startswith("Redis refused the login. Check user and password in")
            missing = refusal(f"{scheme}://{address}")
            assert missing.startswith("Redis wants a login. Put user and password before the host")


@needs_redis_server
def test_tls_that_cannot_be_trusted() -> None:
    with RedisServer(tls=True) as server:
        message = refusal(server.url.partition("?")[0])
        assert message.startswith("The TLS certificate of Redis could not be verified")
        assert "ssl_ca_certs" in message
        plain = refusal(f"redis://127.0.0.1:{server.port}")
        assert "wants TLS" in plain
        assert "rediss://" in plain
        check_redis(f"rediss://127.0.0.1:{server.port}?ssl_cert_reqs=none&ssl_check_hostname=false")


@needs_redis_server
def test_tls_to_a_server_that_speaks_none(server: RedisServer) -> None:
    assert "whether TLS (rediss://) is right there" in refusal(f"rediss://127.0.0.1:{server.port}")


def test_tls_to_a_server_that_answers_otherwise() -> None:
    with RawServer(web) as server:
        message = refusal(f"rediss://127.0.0.1:{server.port}")
    assert message.startswith("A TLS connection to Redis could not be made. ")


@needs_redis_server
def test_files_for_tls_that_are_of_no_use(server: RedisServer, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    url = f"rediss://127.0.0.1:{server.port}?ssl_ca_certs="
    missing = refusal(f"{url}{tmp_path}/missing.pem", "missing.pem")
    assert missing == "A file that redis_url names for TLS cannot be read."
    assert "the files that redis_url names" in refusal(f"{url}{broken}", "broken.pem")


# --- what it is ---

HELLO = b"%1\r\n$5\r\nproto\r\n:3"
UNKNOWN = b"-ERR unknown command"


def redis_of(info: bytes, script: bytes, hello: bytes = HELLO) -> Callable[[Link], None]:
    """A Redis that says this to INFO, to a script and to HELLO, and OK to anything else."""
    answers = {b"INFO": info, b"EVALSHA": script, b"HELLO": hello}

    def serve(link: Link) -> None:
        with link.sock.makefile("rb") as lines:
            while head := lines.readline():
                asked = [
                    lines.read(int(lines.readline()[1:]) + 2)[:-2] for _ in range(int(head[1:]))
                ]
                link.send(
                    answers.get(asked[0], b"+OK").replace(b"ARGS", b" ".join(asked)) + b"\r\n"
                )

    return serve


def _argument(lines: BinaryIO) -> bytes:
    size = int(lines.readline()[1:])
    return lines.read(size + 2)[:size]


def tells(version: str) -> bytes:
    """What it says to INFO."""
    text = f"# Server\r\nredis_version:{version}\r\nredis_mode:standalone\r\n".encode()
    return b"$%d\r\n%b" % (len(text), text)


@pytest.mark.parametrize("version", ["2.8.24", "4.0.14", "6.0.16", "6.1.9"])
def test_a_version_that_is_too_old(version: str) -> None:
    with RawServer(redis_of(tells(version), UNKNOWN)) as server:
        message = refusal(f"redis://127.0.0.1:{server.port}")
    assert message == (
        f"Redis is version {version}, which is too old. At least version 6.2 is needed."
    )


@pytest.mark.parametrize("version", ["6.2.0", "6.2.14", "7.0.15", "8.4.0", "255.255.255", "x", ""])
def test_a_version_that_is_no_reason_to_refuse(version: str) -> None:
    with RawServer(redis_of(tells(version), UNKNOWN)) as server:
        assert "too old" not in refusal(f"redis://127.0.0.1:{server.port}")


def test_a_redis_that_tells_nothing_of_itself_is_judged_by_what_it_does() -> None:
    with RawServer(redis_of(UNKNOWN, UNKNOWN)) as server:
        assert refusal(f"redis://127.0.0.1:{server.port}") == (
            "Redis cannot be used: unknown command."
        )


def test_a_redis_of_before_version_6_repeats_the_password_and_the_sentence_does_not() -> None:
    hello = b"-ERR unknown command `HELLO`, with args beginning with: ARGS"
    with RawServer(redis_of(UNKNOWN, UNKNOWN, hello)) as server:
        message = refusal(f"redis://:the-password@127.0.0.1:{server.port}", "the-password")
    assert message.startswith("Redis is older than version 6, which is too old. ")


@pytest.mark.parametrize("filler", [b"", b"x" * 120], ids=["whole", "cut off"])
def test_an_answer_that_repeats_the_password_is_not_shown(filler: bytes) -> None:
    with RawServer(redis_of(UNKNOWN, UNKNOWN, b"-ERR " + filler + b" not ARGS")) as server:
        message = refusal(f"redis://:the-password@127.0.0.1:{server.port}", "the-pass")
    assert message == "Redis refused what it was asked. Check redis_url."


@needs_redis_server
def test_another_refusal_is_told_in_the_words_of_redis(server: RedisServer) -> None:
    message = refusal(f"redis://127.0.0.1:{server.port}/9999")
    assert message == "Redis cannot be used: DB index is out of range."


@needs_redis_server
def test_a_cluster_that_is_not_named_as_one() -> None:
    with RedisCluster3() as cluster:
        for node in cluster.nodes:
            message = refusal(node.url)
            assert message.startswith("redis_url leads to a cluster. Begin it with redis+cluster:")


@needs_redis_server
def test_a_cluster_is_noticed_without_info_where_the_key_is_elsewhere() -> None:
    with RedisCluster3() as cluster:
        for node in cluster.nodes:
            node.ask("ACL SETUSER", "default", "-info")
        told = {_told(node.url) for node in cluster.nodes}
    assert told == {None, "redis_url leads to a cluster. "}


def _told(url: str) -> str | None:
    try:
        check_redis(url)
    except SettingsError as error:
        return error.message.partition("Begin")[0]
    return None


@needs_redis_server
def test_a_single_redis_that_is_named_a_cluster(server: RedisServer) -> None:
    message = refusal(as_cluster(server.url))
    assert message.startswith("redis_url says that Redis is a cluster, and it is none. ")


@needs_redis_server
def test_sentinels_that_are_not_named_as_such_and_others_that_are_none() -> None:
    with Sentinels() as sentinels:
        plain = refusal(f"redis://127.0.0.1:{sentinels.sentinel.port}")
        assert plain.startswith("redis_url leads to a sentinel. Write redis+sentinel://")
        for url in (
            sentinels.url.replace("mymaster", "another"),
            f"redis+sentinel://127.0.0.1:{sentinels.master.port}/mymaster",
            f"redis+sentinel://127.0.0.1:{closed_port()}/mymaster",
        ):
            message = refusal(url)
            assert message.startswith("No sentinel could say where the master is. ")
            assert "the name of the service" in message


# --- what it lets one do ---


@needs_redis_server
def test_a_replica_that_can_only_be_read(server: RedisServer) -> None:
    server.become_replica_of_nobody_reachable()
    try:
        assert refusal(server.url).startswith("Redis is a replica that can only be read. ")
    finally:
        server.become_master()


@needs_redis_server
def test_a_redis_without_memory(server: RedisServer) -> None:
    server.fill()
    try:
        message = refusal(server.url)
    finally:
        server.unfill()
    assert message.startswith("Redis is out of memory and refuses to write. ")
    assert "volatile-lru" in message


@needs_redis_server
def test_a_memory_limit_that_ends_in_refusals() -> None:
    with RedisServer(maxmemory=64 * 2**20) as server:
        message = refusal(server.url)
        assert "the maxmemory-policy noeviction" in message
        assert "Set maxmemory-policy to volatile-lru." in message
        server.ask("CONFIG SET", "maxmemory-policy", "volatile-lru")
        check_redis(server.url)


@needs_redis_server
@pytest.mark.parametrize(
    "rules",
    [
        "~other:* &holysheep:* +@all",
        "%R~holysheep:* &holysheep:* +@all",
        "~holysheep:* resetchannels &other:* +@all",
        "~holysheep:* &holysheep:* +@all -evalsha",
        "~holysheep:* &holysheep:* +@all -eval",
        "~holysheep:* &holysheep:* +@all -subscribe",
        "~holysheep:* &holysheep:* +@all -publish",
        "~holysheep:* &holysheep:* +@all -set",
        "~holysheep:* &holysheep:* +@all -client",
        "~holysheep:* &holysheep:* +evalsha +eval +subscribe +publish",
    ],
)
def test_a_user_who_may_not_do_what_is_needed(rules: str) -> None:
    with RedisServer(users=[f"user alice on >secret-word {rules}"]) as server:
        message = refusal(server.url, "alice", "secret-word")
    assert message.startswith("The user in redis_url lacks a permission. ")
    for needed in ("EVALSHA", "EVAL,", "SUBSCRIBE", "PUBLISH", "keys holysheep:*", "channel"):
        assert needed in message
    assert message.endswith(RULES)


@needs_redis_server
def test_a_user_of_a_cluster_who_may_not_ask_for_it() -> None:
    rules = "~holysheep:* &holysheep:* +@all -cluster"
    with RedisServer(users=[f"user alice on >pw {rules}"], cluster=True) as server:
        assert refusal(as_cluster(server.url)).startswith(
            "The user in redis_url lacks a permission"
        )


@needs_redis_server
@pytest.mark.parametrize("rules", [RULES, RULES.replace("+info", "")])
def test_the_rules_that_are_told_will_do(rules: str) -> None:
    users = [f"user alice on >pw {rules}", "user default off"]
    with RedisServer(users=users) as server:
        check_redis(server.url)
    with RedisServer(users=users, cluster=True) as cluster:
        check_redis(as_cluster(cluster.url))


@needs_redis_server
def test_what_info_would_have_told_is_not_asked_where_it_is_forbidden() -> None:
    users = ["user alice on >pw ~* &* +@all -info"]
    with RedisServer(users=users, maxmemory=64 * 2**20) as server:
        check_redis(server.url)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("-NOPERM The user executing the script can't run this command", "lacks a permission"),
        ("-READONLY You can't write against a read only replica.", "can only be read"),
        ("-OOM command not allowed when used memory > 'maxmemory'.", "out of memory"),
    ],
    ids=["NOPERM", "READONLY", "OOM"],
)
def test_what_a_script_has_failed_with_is_understood_as_version_6_2_says_it(
    answer: str, words: str
) -> None:
    script = f"-ERR Error running script (call to f_0): @user_script:1: {answer}".encode()
    with RawServer(redis_of(tells("6.2.14"), script)) as server:
        assert words in refusal(f"redis://127.0.0.1:{server.port}")


def test_redis_py_is_imported_by_nobody_who_has_no_redis_url() -> None:
    program = (
        "import sys, holysheep\n"
        "from holysheep.registry import Registry\n"
        "from holysheep.settings import parse_settings\n"
        "import holysheep.credentials, holysheep.cli\n"
        "registry = Registry()\n"
        "key = {'api_key': 'test-key-0123456789abcdef'}\n"
        "registry.engine(parse_settings(key))\n"
        "print('redis' in sys.modules)\n"
        "registry.engine(parse_settings(key | {'redis_url': 'redis://127.0.0.1:1'}))\n"
        "print('redis' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["False", "True"]
