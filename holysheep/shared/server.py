"""One Redis, by redis-py: what its URL means, running scripts, and hearing news.

This is the one module that imports redis-py, and it is imported by credentials with a ``redis_url``
alone: importing it takes longer than many a call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.connection import parse_url
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel

from holysheep import config
from holysheep.errors import SettingsError
from holysheep.shared.link import ServerError
from holysheep.shared.scripts import NEWS, Script

_PORT = 6379
_SENTINEL_PORT = 26_379
_OPTIONS = {
    "protocol",
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_keyfile",
}
"""What may stand in the query of a URL: TLS. The rest is ours to decide."""


class RedisServer:
    """A client of one Redis: a single one, a cluster, or what sentinels say is the master.

    Raises ``SettingsError`` for a URL that cannot be used; connects when it is first needed.
    """

    def __init__(self, url: str) -> None:
        self._address = _address(url)
        # A cluster client asks its nodes already when it is made.
        self._client: Any = None

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """What the script returns. Raises ``ServerError``, after one time limit at most."""
        try:
            client = self._connected()
            try:
                return client.evalsha(script.sha, len(keys), *keys, *args)
            except NoScriptError:
                return client.eval(script.text, len(keys), *keys, *args)
        except (RedisError, OSError) as error:
            raise ServerError(reason(error)) from error

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """What ``question`` finds out with the client. Raises ``ServerError``."""
        try:
            return question(self._connected())
        except (RedisError, OSError) as error:
            raise ServerError(reason(error)) from error

    def hear(self, tell: Callable[[bytes], None], may_go_on: Callable[[], bool]) -> None:
        """Call ``tell`` with ``b""`` when subscribed, then with each message; ends by raising.

        Raises ``ServerError`` when the subscription is lost; returns when it ``may_go_on`` no more.
        """
        try:
            with self._connected().pubsub() as subscription:
                subscription.subscribe(NEWS)
                is_answered = True
                while may_go_on():
                    message = subscription.get_message(timeout=config.REDIS_HEAR_S)
                    if message is None:
                        # A connection that died without a word would be deaf for ever.
                        if not is_answered:
                            raise ServerError("the subscription is silent")
                        subscription.ping()
                        is_answered = False
                        continue
                    is_answered = True
                    if message["type"] == "subscribe":
                        tell(b"")
                    elif message["type"] == "message":
                        tell(message["data"])
        except (RedisError, OSError) as error:
            raise ServerError(reason(error)) from error

    def close(self) -> None:
        """Close all connections; the next use opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            try:
                client.close()
            except (RedisError, OSError):
                # It was broken already.
                return

    def _connected(self) -> Any:
        if self._client is None:
            self._client = _client(self._address)
        return self._client


def reason(error: Exception) -> str:
    """What Redis or the network says, on one line and not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:150]


@dataclass(frozen=True, slots=True)
class _Address:
    """What a URL says. ``options`` are redis-py's."""

    kind: str
    hosts: tuple[tuple[str, int], ...]
    service: str
    options: dict[str, Any]


def _address(url: str) -> _Address:
    """Raises ``SettingsError``, in words that do not repeat the URL: there is a password in it."""
    try:
        parts = urlsplit(url)
        hosts = tuple(
            (host.hostname or "", host.port or 0)
            for host in (
                urlsplit(f"//{name}") for name in parts.netloc.rpartition("@")[2].split(",")
            )
        )
        scheme, _, kind = parts.scheme.partition("+")
        if scheme not in ("redis", "rediss") or kind not in ("", "cluster", "sentinel"):
            raise SettingsError(
                "redis_url must begin with redis://, rediss:// (TLS), redis+cluster:// or"
                " redis+sentinel://."
            )
        if not all(host for host, _ in hosts) or (len(hosts) > 1 and not kind):
            raise SettingsError("redis_url must name a host, such as redis://host:6379/0.")
        service, path = "", parts.path.strip("/")
        if kind == "sentinel":
            service, _, path = path.partition("/")
            if not service:
                raise SettingsError(
                    "redis_url must name the master's service, such as"
                    " redis+sentinel://host:26379/mymaster/0."
                )
        if (path and not path.isdigit()) or (kind == "cluster" and path.strip("0")):
            raise SettingsError(
                "redis_url has a database that cannot be: a number, and 0 in a cluster."
            )
        unknown = sorted(set(parse_qs(parts.query)) - _OPTIONS)
        if unknown:
            raise SettingsError(
                f"redis_url has options that cannot be set: {', '.join(unknown)[:60]}. Known are"
                f" {', '.join(sorted(_OPTIONS))}."
            )
        userinfo = parts.netloc.rpartition("@")[0]
        netloc = f"{userinfo}@host" if userinfo else "host"
        options = parse_url(f"{scheme}://{netloc}/{path}?{parts.query}")
    except ValueError:
        raise SettingsError("redis_url is no valid URL, such as redis://host:6379/0.") from None
    del options["host"]
    return _Address(kind, hosts, service, {**options, "ssl": scheme == "rediss"})


def _client(address: _Address) -> Any:
    """A client that gives up soon and tries nothing again: a script may have run already."""
    options = {
        **address.options,
        "socket_timeout": config.REDIS_TIMEOUT_S,
        "socket_connect_timeout": config.REDIS_TIMEOUT_S,
        "client_name": "holysheep",
    }
    is_tls = options.pop("ssl")
    options.pop("connection_class", None)
    retry = Retry(NoBackoff(), 0)
    host, port = address.hosts[0]
    match address.kind:
        case "cluster":
            nodes = [ClusterNode(name, number or _PORT) for name, number in address.hosts]
            options.pop("db", None)
            return redis.RedisCluster(startup_nodes=nodes, ssl=is_tls, **options)
        case "sentinel":
            sentinel = Sentinel(
                [(name, number or _SENTINEL_PORT) for name, number in address.hosts],
                sentinel_kwargs={
                    "socket_timeout": config.REDIS_TIMEOUT_S,
                    "socket_connect_timeout": config.REDIS_TIMEOUT_S,
                    "retry": retry,
                },
                retry=retry,
                ssl=is_tls,
                **options,
            )
            return sentinel.master_for(address.service)
        case _:
            return redis.Redis(host=host, port=port or _PORT, ssl=is_tls, retry=retry, **options)
