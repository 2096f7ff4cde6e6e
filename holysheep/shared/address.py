"""What a ``redis_url`` means. Without redis-py, which is imported where it is used alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from holysheep.errors import SettingsError

Kind = Literal["single", "cluster", "sentinel"]

_PORTS: dict[Kind, int] = {"single": 6379, "cluster": 6379, "sentinel": 26_379}


def _is_yes(text: str) -> bool:
    return text.lower() not in ("0", "false", "no")


_TLS_OPTIONS: dict[str, Callable[[str], Any]] = {
    "ssl_ca_certs": str,
    "ssl_ca_path": str,
    "ssl_cert_reqs": str,
    "ssl_certfile": str,
    "ssl_check_hostname": _is_yes,
    "ssl_keyfile": str,
}
"""What may stand in the query of a URL for TLS, named as in redis-py."""
_SENTINEL_OPTIONS: dict[str, Callable[[str], Any]] = {
    "sentinel_password": str,
    "sentinel_ssl": _is_yes,
    "sentinel_username": str,
}
"""What may stand there of the sentinels' own login. The rest is ours to decide."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis is and how to log in. ``options`` are redis-py's; nothing shows the password.

    ``hosts`` are servers, nodes of a cluster to begin with, or sentinels that know the master of
    ``service`` and are asked with ``sentinel_options``.
    """

    kind: Kind
    hosts: tuple[tuple[str, int], ...]
    service: str
    options: dict[str, Any]
    sentinel_options: dict[str, Any]

    @property
    def passwords(self) -> list[str]:
        """What must not be shown."""
        both = (self.options, self.sentinel_options)
        return [options["password"] for options in both if "password" in options]

    def __repr__(self) -> str:
        return f"Address({self.kind}, {self.hosts})"


def parse_redis_url(url: str) -> Address:
    """Read a URL such as ``rediss://user:password@host:6379/0``.

    ``redis+cluster://`` and ``redis+sentinel://host:26379,host2/service/0`` are the other kinds,
    each with ``rediss`` for TLS. Raises ``SettingsError`` that does not repeat what may be secret.
    """
    try:
        return _parse(url)
    except ValueError:
        raise SettingsError("redis_url is no valid URL, such as redis://host:6379/0.") from None


def _parse(url: str) -> Address:
    parts = urlsplit(url)
    scheme, _, suffix = parts.scheme.partition("+")
    kind = _kind(suffix)
    if scheme not in ("redis", "rediss") or kind is None:
        raise SettingsError(
            "redis_url must begin with redis://, rediss:// (TLS), redis+cluster:// or"
            " redis+sentinel://."
        )
    userinfo, _, netloc = parts.netloc.rpartition("@")
    hosts = tuple(_host(name, _PORTS[kind]) for name in netloc.split(","))
    if not all(name for name, _ in hosts) or (len(hosts) > 1 and kind == "single"):
        raise SettingsError("redis_url must name one host, such as redis://host:6379/0.")
    service, database = "", parts.path.strip("/")
    if kind == "sentinel":
        service, _, database = database.partition("/")
        if not service:
            raise SettingsError(
                "redis_url must name the service of the master, such as"
                " redis+sentinel://host:26379/mymaster/0."
            )
    if not (database or "0").isdecimal() or (kind == "cluster" and int(database or 0)):
        raise SettingsError("redis_url has a database that is no number, or not 0 in a cluster.")
    user, _, password = userinfo.partition(":")
    options, sentinel_options = _options(parts.query, kind)
    if scheme == "rediss":
        options["ssl"] = True
    elif options or sentinel_options.get("ssl"):
        raise SettingsError("redis_url has options for TLS, so it must begin with rediss.")
    if sentinel_options.get("ssl"):
        sentinel_options = {**options, **sentinel_options}
    if user:
        options["username"] = unquote(user)
    if password:
        options["password"] = unquote(password)
    if kind != "cluster":
        options["db"] = int(database or 0)
    return Address(kind, hosts, service, options, sentinel_options)


def _kind(suffix: str) -> Kind | None:
    match suffix:
        case "":
            return "single"
        case "cluster":
            return "cluster"
        case "sentinel":
            return "sentinel"
        case _:
            return None


def _host(name: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{name}")
    return parts.hostname or "", parts.port or port


def _options(query: str, kind: Kind) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of the servers, and those of the sentinels, as redis-py names them."""
    known = _TLS_OPTIONS if kind != "sentinel" else {**_TLS_OPTIONS, **_SENTINEL_OPTIONS}
    given = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise SettingsError(
            f"redis_url has an option that cannot be set: {unknown[0][:30]}. Known are"
            f" {', '.join(known)}."
        )
    read = {name: known[name](value) for name, value in given.items()}
    return (
        {name: value for name, value in read.items() if name in _TLS_OPTIONS},
        {
            name.removeprefix("sentinel_"): value
            for name, value in read.items()
            if name in _SENTINEL_OPTIONS
        },
    )
