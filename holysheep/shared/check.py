"""Whether a Redis can be used, and the sentence for each reason why not.

It is asked when a credential is saved: a call goes on without its Redis, so later nobody would hear
of what is wrong. What is asked here is what calls do, under the same time limits.
"""

import re
import ssl
from collections.abc import Iterator
from typing import Any

from redis import exceptions
from redis.sentinel import MasterNotFoundError

from holysheep import config
from holysheep.errors import SettingsError
from holysheep.shared.address import Address, parse_redis_url
from holysheep.shared.link import ServerError
from holysheep.shared.scripts import CHECK_KEY, NEWS, script
from holysheep.shared.server import RedisServer

OLDEST = (6, 2)
"""The oldest version that will do."""

RULES = "~holysheep:* &holysheep:* +@all -@dangerous +info +client|setname +cluster|slots"
"""What a user of Redis has to be allowed, as an ACL says it. Asking for ``info`` may be left out.

Versions before 7 count all of CLIENT and CLUSTER as dangerous.
"""

# Before version 7 a script wraps what its command has failed with.
_NO_PERMISSION = re.compile(r"NOPERM|ACL failure in script|user executing the script can't")
_NO_MEMORY = re.compile(r"\bOOM\b")
_READ_ONLY = re.compile(r"\bREADONLY\b")
_OLDER_THAN_6 = re.compile(r"unknown command\W+HELLO\b")
_CLOSED = re.compile(r"closed by server")


def check_redis(url: str) -> None:
    """Return if the Redis of ``url`` can be used. Raises ``SettingsError`` that says why not.

    The sentence repeats neither the host, since a forgotten ``@`` makes a password of it, nor
    anything else of the URL.
    """
    address = parse_redis_url(url)
    server = RedisServer(address)
    try:
        facts = _facts(server)
        _check_version(facts)
        _check_kind(address, facts)
        server.run(script("check"), [CHECK_KEY], [])
        server.ask(_subscribe)
        _check_memory(facts)
    except ServerError as error:
        raise SettingsError(_sentence(error, address)) from None
    finally:
        server.close()


def _facts(server: RedisServer) -> dict[str, Any]:
    """What Redis tells of itself; nothing where it refuses to. Raises ``ServerError``."""
    try:
        return server.ask(lambda client: dict(client.info()))
    except ServerError as error:
        if _Failure(error).is_a(exceptions.ResponseError):
            # An ACL may forbid the question. If it is something worse, the script fails too.
            return {}
        raise


def _check_version(facts: dict[str, Any]) -> None:
    found = re.match(r"(\d+)\.(\d+)[\d.]*", str(facts.get("redis_version", "")))
    if found is not None and (int(found[1]), int(found[2])) < OLDEST:
        raise SettingsError(_too_old(f"version {found[0]}"))


def _check_kind(address: Address, facts: dict[str, Any]) -> None:
    if facts.get("redis_mode") == "sentinel" and address.kind != "sentinel":
        raise SettingsError(
            "redis_url leads to a sentinel. Write redis+sentinel://host:26379/mymaster/0, with the"
            " name of your service."
        )
    if facts.get("cluster_enabled") and address.kind != "cluster":
        raise SettingsError(_IS_CLUSTER)


def _check_memory(facts: dict[str, Any]) -> None:
    limit, policy = facts.get("maxmemory"), facts.get("maxmemory_policy")
    if isinstance(limit, int) and limit > 0 and policy == "noeviction":
        raise SettingsError(
            "Redis has a memory limit and the maxmemory-policy noeviction, so it would refuse"
            " everything once it is full. Set maxmemory-policy to volatile-lru."
        )


def _subscribe(client: Any) -> None:
    with client.pubsub() as subscription:
        subscription.subscribe(NEWS)
        if subscription.get_message(timeout=config.REDIS_TIMEOUT_S) is None:
            raise exceptions.TimeoutError


# --- the sentences ---

_IS_CLUSTER = (
    "redis_url leads to a cluster. Begin it with redis+cluster:// (or rediss+cluster:// for TLS),"
    " and leave out the number of a database."
)
_IS_NO_CLUSTER = (
    "redis_url says that Redis is a cluster, and it is none. Begin it with redis:// (or rediss://"
    " for TLS)."
)


def _too_old(what: str) -> str:
    needed = ".".join(map(str, OLDEST))
    return f"Redis is {what}, which is too old. At least version {needed} is needed."


class _Failure:
    """Why Redis did not do what was asked."""

    def __init__(self, error: ServerError) -> None:
        self._causes = list(_causes(error))
        self.words = " ".join(map(str, self._causes))

    def is_a(self, *kinds: type[BaseException]) -> bool:
        """Whether one of these is behind it."""
        return any(isinstance(cause, kinds) for cause in self._causes)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _sentence(error: ServerError, address: Address) -> str:
    """What is wrong, and what to do."""
    failure = _Failure(error)
    words, is_a = failure.words, failure.is_a
    if is_a(exceptions.NoPermissionError) or _NO_PERMISSION.search(words):
        return (
            "The user in redis_url lacks a permission. It needs the commands EVALSHA, EVAL,"
            " SUBSCRIBE and PUBLISH, and those that scripts call, on keys holysheep:* and channel"
            f" holysheep:*. These rules will do: {RULES}"
        )
    if is_a(exceptions.ReadOnlyError) or _READ_ONLY.search(words):
        return (
            "Redis is a replica that can only be read. Let redis_url lead to the master, or to the"
            " sentinels that know it (redis+sentinel://host:26379/mymaster/0)."
        )
    if is_a(exceptions.OutOfMemoryError) or _NO_MEMORY.search(words):
        return (
            "Redis is out of memory and refuses to write. Raise maxmemory, and set maxmemory-policy"
            " to volatile-lru."
        )
    if _OLDER_THAN_6.search(words):
        return _too_old("older than version 6")
    if "cluster support disabled" in words:
        return _IS_NO_CLUSTER
    if is_a(exceptions.MovedError, exceptions.ClusterCrossSlotError):
        return _IS_CLUSTER
    if is_a(exceptions.AuthenticationError):
        if not address.passwords:
            return (
                "Redis wants a login. Put user and password before the host in redis_url, such as"
                " redis://USER:PASSWORD@host:6379/0."
            )
        return (
            "Redis refused the login. Check user and password in redis_url, where characters such"
            " as @, / and : have to be percent-encoded."
        )
    if is_a(MasterNotFoundError) or (address.kind == "sentinel" and "SENTINEL" in words):
        return (
            "No sentinel could say where the master is. Check their hosts and ports in redis_url,"
            " the name of the service, and sentinel_password if they want one."
        )
    return _unreachable(failure) or _other(error, failure, address)


def _unreachable(failure: _Failure) -> str:
    """What is wrong with the way to Redis, or nothing."""
    is_a = failure.is_a
    if is_a(ssl.SSLCertVerificationError):
        return (
            "The TLS certificate of Redis could not be verified, so nothing was sent. Check the"
            " host, or name the file of its authority in redis_url (?ssl_ca_certs=/path/ca.pem)."
        )
    if is_a(ssl.SSLError):
        return (
            "A TLS connection to Redis could not be made. Check whether it speaks TLS at this port,"
            " and the files that redis_url names for it."
        )
    if is_a(exceptions.TimeoutError):
        return (
            f"Redis did not answer within {config.REDIS_TIMEOUT_S:g} s. Check host and port in"
            " redis_url, and whether TLS (rediss://) is right there."
        )
    if is_a(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
        return "A file that redis_url names for TLS cannot be read."
    if is_a(exceptions.InvalidResponse, ConnectionResetError) or _CLOSED.search(failure.words):
        return (
            "What answers at the host in redis_url does not speak like Redis, or wants TLS. Check"
            " host and port, and whether redis_url has to begin with rediss://."
        )
    if is_a(OSError, UnicodeError):
        return (
            "Redis could not be reached. Check host and port in redis_url, and whether this Dify"
            " may connect to it."
        )
    return ""


def _other(error: ServerError, failure: _Failure, address: Address) -> str:
    if any(password in failure.words for password in address.passwords):
        return "Redis refused what it was asked. Check redis_url."
    return f"Redis cannot be used: {error}."
