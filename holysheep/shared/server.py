"""One Redis, by redis-py: making a client, running scripts, and hearing news.

This module and ``check`` import redis-py, and are imported for credentials with a ``redis_url``
alone: importing it takes longer than many a call.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import Sentinel

from holysheep import config
from holysheep.shared.address import Address
from holysheep.shared.link import Command, ServerError
from holysheep.shared.scripts import NEWS, Script

_LIMITS = {
    "socket_timeout": config.REDIS_TIMEOUT_S,
    "socket_connect_timeout": config.REDIS_TIMEOUT_S,
}


class RedisServer:
    """A client of one Redis: a single one, a cluster, or what sentinels say is the master.

    It connects when it is first needed, and tries nothing twice: a script may have run already.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._making = threading.Lock()
        self._client: Any = None
        self._idle: list[Any] = []
        # What Redis has been given to remember since something last went wrong.
        self._known: set[str] = set()

    def run(self, script: Script, keys: Sequence[str | bytes], args: Sequence[Any]) -> Any:
        """What the script returns. Raises ``ServerError``, after one time limit at most."""

        def evaluated(client: Any) -> Any:
            try:
                if self._address.kind == "cluster":
                    return client.evalsha(script.sha, len(keys), *keys, *args)
                return self._quickly(client, "EVALSHA", script.sha, len(keys), *keys, *args)
            except NoScriptError:
                return client.eval(script.text, len(keys), *keys, *args)

        return self.ask(evaluated)

    def _quickly(self, client: Any, *command: Any) -> Any:
        """Run a command on the connection that was used last.

        redis-py's pool takes a third of the time of a command to give a connection and take it
        back, and packing what is sent another fifth. Connections that go on here stay here; they
        connect again by themselves.
        """
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = client.connection_pool.get_connection()
        try:
            if connection.is_connected and connection.can_read(0):
                # Closed by the server, or out of step.
                connection.disconnect()
        except (RedisError, OSError):
            connection.disconnect()
        try:
            connection.send_packed_command([_packed(command)])
            return connection.read_response()
        except ResponseError:
            raise
        except BaseException:
            connection.disconnect()
            raise
        finally:
            if client is self._client:
                self._idle.append(connection)
            else:
                connection.disconnect()

    def run_all(self, commands: Sequence[Command]) -> None:
        """Run scripts one after the other, in one round trip if it can be. Raises likewise."""

        def evaluated(client: Any) -> None:
            pipeline = client.pipeline(False)
            # What it may have forgotten is sent: it cannot run later than what is behind it.
            for script, keys, args in commands:
                if script.sha in self._known:
                    pipeline.evalsha(script.sha, len(keys), *keys, *args)
                else:
                    pipeline.eval(script.text, len(keys), *keys, *args)
                    self._known.add(script.sha)
            answers = pipeline.execute(raise_on_error=False)
            for (script, keys, args), found in zip(commands, answers, strict=True):
                if isinstance(found, NoScriptError):
                    self._known.clear()
                    client.eval(script.text, len(keys), *keys, *args)
                elif isinstance(found, Exception):
                    raise found

        if len(commands) > 1 and self._address.kind != "cluster":
            self.ask(evaluated)
            return
        for script, keys, args in commands:
            self.run(script, keys, args)

    def ask[Answer](self, question: Callable[[Any], Answer]) -> Answer:
        """What ``question`` finds out with redis-py's client. Raises ``ServerError``."""
        try:
            return question(self._connected())
        except Exception as error:
            self._known.clear()
            # Whatever it is: no call fails for it. redis-py has errors of its own, those of the
            # network, and others where a connection is closed while it is read.
            raise ServerError(self._reason(error)) from error

    def _reason(self, error: Exception) -> str:
        """What Redis or the network says, on one line and not too long."""
        # What stands after that names a script and a line of it.
        text = " ".join(str(error).partition(" script: ")[0].split()) or type(error).__name__
        for password in self._address.passwords:
            # A server that is too old repeats what it was told to log in with.
            text = text.replace(password, "[redacted]")
        return text[:150].rstrip(".")

    def hear(self, tell: Callable[[bytes], None], may_go_on: Callable[[], bool]) -> None:
        """Call ``tell`` with ``b""`` when subscribed, then with each message.

        Raises ``ServerError`` when the subscription is lost; returns when it ``may_go_on`` no more.
        """

        def heard(client: Any) -> None:
            with client.pubsub() as subscription:
                subscription.subscribe(NEWS)
                is_asked = False
                while may_go_on():
                    message = subscription.get_message(timeout=config.REDIS_HEAR_S)
                    if message is None and is_asked:
                        # A connection that has died without a word would be deaf for ever.
                        raise ServerError("the subscription is silent")
                    is_asked = message is None
                    if message is None:
                        subscription.ping()
                    elif message["type"] == "subscribe":
                        tell(b"")
                    elif message["type"] == "message":
                        tell(message["data"])

        self.ask(heard)

    def close(self) -> None:
        """Close the connections that are not in use; the next use opens new ones."""
        client, self._client = self._client, None
        while self._idle:
            self._idle.pop().disconnect()
        if isinstance(client, redis.RedisCluster):
            nodes = [node.redis_connection for node in client.get_nodes()]
            pools = [node.connection_pool for node in nodes if node is not None]
        else:
            pools = [] if client is None else [client.connection_pool]
        for pool in pools:
            # Those in use are closed by whoever uses them, when he sees that he is late.
            pool.disconnect(inuse_connections=False)

    def _connected(self) -> Any:
        client = self._client
        if client is not None:
            return client
        with self._making:
            # A cluster's client asks its nodes already when it is made, so it is made but once.
            if self._client is None:
                self._client = _client(self._address)
            return self._client


def _packed(command: Sequence[Any]) -> bytes:
    """A command as it is sent: an array of bulk strings."""
    parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
    return b"*%d\r\n%b" % (
        len(parts),
        b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]),
    )


def _client(address: Address) -> Any:
    options = {**address.options, **_LIMITS, "client_name": "holysheep"}
    # Twice as many as scripts run at a time: the link keeps count, not the pool.
    options["max_connections"] = 2 * config.REDIS_CONNECTIONS
    never = Retry(NoBackoff(), 0)
    match address.kind:
        case "cluster":
            nodes = [ClusterNode(host, port) for host, port in address.hosts]
            return redis.RedisCluster(startup_nodes=nodes, retry=never, **options)
        case "sentinel":
            asking = {**_LIMITS, "retry": never, **address.sentinel_options}
            sentinel = Sentinel(address.hosts, sentinel_kwargs=asking, retry=never, **options)
            return sentinel.master_for(address.service)
        case _:
            host, port = address.hosts[0]
            return redis.Redis(host=host, port=port, retry=never, **options)
