r"""An HTTP request on its way to an endpoint, and the plugin's messages on their way back.

The way there has two stations, each a function from request to request: nginx as Dify's
``docker/nginx`` sets it up, and the daemon, which writes the request down byte by byte::

    client --> behind_nginx() --> daemon_copy() --> hex --> the SDK's parser --> endpoint

Text of requests is held as latin-1, so that every byte survives. What a plugin may not expect of
the daemon's copy, all of it seen in Go's ``Request.Write``:

- A POST or PUT without a body arrives as ``Transfer-Encoding: chunked``, and the SDK takes the
  empty chunk itself, ``0\r\n\r\n``, for the body.
- The path is decoded once and encoded anew: ``%2F`` is a slash for the plugin.
- The query is sorted by key; ``?flag`` becomes ``?flag=``; pairs with a ``;`` are gone.
- A body beyond 10 MB is cut without a word.

And what it may not expect on the way back:

- **A stream that is over at once may end after its first chunk.** `InvokeEndpoint` closes the
  response if the session has ended by the time it has seen the first chunk; what came in between
  is lost, and the client is told nothing. With the daemon's own code and two cores, streams of two
  or three chunks without a pause lost the rest in 27 to 43 of 100 requests, of a hundred chunks in
  one or two; with a pause of 10 ms before the end in none. The host delivers such a stream and
  calls it hasty (`HttpResult.hasty`). A response that is no generator has one chunk and is safe.

Sources: langgenius/dify-plugin-daemon ``internal/service/endpoint.go``,
``internal/core/io_tunnel/endpoint_service.go`` and ``internal/types/exception``, Go 1.26
``net/http``, Dify's ``docker/nginx``, all read in Aug 2026.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote_from_bytes, quote_plus, unquote_to_bytes

from tests.host.outputs import Arrival, HostFault, PluginError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "BODYLESS_STATUSES",
    "HASTY_MS",
    "JSON_TYPE",
    "MAX_BODY_BYTES",
    "Answer",
    "Chunk",
    "HttpResult",
    "RawRequest",
    "behind_nginx",
    "canonical",
    "check_chunk",
    "daemon_copy",
    "daemon_error",
    "hook_path",
    "to_json",
]

MAX_BODY_BYTES = 10 * 1024 * 1024
"""The daemon hands over this much of a request's body and drops the rest."""

HASTY_MS = 10.0
"""A stream that ends within this time after its first chunk is in danger of losing the rest."""

BODYLESS_STATUSES = frozenset({100, 101, 102, 103, 204, 304})

JSON_TYPE = "application/json; charset=utf-8"

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NGINX_NAME = re.compile(r"[0-9A-Za-z-]+")
"""nginx drops headers of any other name without a word, those with an underscore too."""

_NGINX_REPLACES = frozenset(
    {
        "connection",
        "content-length",
        "dify-hook-url",
        "expect",
        "host",
        "keep-alive",
        "te",
        "transfer-encoding",
        "upgrade",
        "x-forwarded-for",
        "x-forwarded-port",
        "x-forwarded-proto",
    }
)

_DAEMON_DELETES = (
    "X-Forwarded-For",
    "X-Real-Ip",
    "X-Forwarded",
    "X-Original-Forwarded-For",
    "X-Original-Url",
    "X-Original-Host",
)
"""X-Forwarded-Proto and X-Forwarded-Port are not among them: nginx's reach the plugin."""

_GO_WRITES_ITSELF = ("Content-Length", "Trailer", "Transfer-Encoding", "User-Agent")

_GO_PATH_SAFE = "/$&+,:;=@"

_LACKS_BODY = frozenset({"GET", "HEAD", "DELETE", "OPTIONS", "PROPFIND", "SEARCH"})

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")

_GO_ESCAPES = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


@dataclass(frozen=True, slots=True)
class RawRequest:
    """A request as it is on the wire; ``target`` is path and query, still encoded."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)

    def header(self, name: str) -> str:
        """The first value of a header, ``""`` without one."""
        for key, value in self.headers:
            if key.lower() == name.lower():
                return value
        return ""


class Chunk(NamedTuple):
    """One part of a body; ``at_s`` is `time.perf_counter` when its message was read."""

    at_s: float
    data: bytes


@dataclass(frozen=True, slots=True)
class HttpResult:
    """What a client would have after the request.

    ``headers`` are the plugin's, in the daemon's spelling and with one value a name; ``chunks``
    are the parts of ``body`` with the times of their arrival. ``error`` is an error that the SDK
    let through, which is beyond what it turns into 404 and 500 itself: the daemon answers with
    status 500 then, or, after the first chunk, writes the error into the body.
    ``elapsed_ms`` runs from the request being written to the end being read, ``first_ms`` to the
    first chunk (None without any).
    """

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)
    chunks: list[Chunk] = field(repr=False)
    error: PluginError | None
    elapsed_ms: float
    first_ms: float | None

    @property
    def hasty(self) -> bool:
        """Whether the real daemon may lose all chunks after the first; see the module."""
        return (
            len(self.chunks) > 1
            and self.first_ms is not None
            and self.elapsed_ms - self.first_ms < HASTY_MS
        )

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode()

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


# --- the way there ---


def canonical(name: str) -> str:
    """A header's name as Go spells it: ``x-request-id`` -> ``X-Request-Id``."""
    if _TOKEN.fullmatch(name) is None:
        return name
    return "-".join(part[:1].upper() + part[1:].lower() for part in name.split("-"))


def behind_nginx(request: RawRequest, *, port: int = 80) -> RawRequest:
    """The request as nginx passes it to the daemon.

    ``Host`` and ``Dify-Hook-Url`` lose the port: both come from nginx's ``$host``. Where Dify is
    not at port 80 or 443, links built from them lead nowhere.
    """
    host = re.sub(r":\d*$", "", request.header("Host")).lower()
    added = {
        "Host": host,
        "Dify-Hook-Url": f"http://{host}{request.target}",
        "X-Forwarded-For": "127.0.0.1",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Port": str(port),
        "Connection": "close",
    }
    kept = [
        (name, value)
        for name, value in request.headers
        if name.lower() not in _NGINX_REPLACES and _NGINX_NAME.fullmatch(name)
    ]
    return RawRequest(request.method, request.target, (*added.items(), *kept), request.body)


def hook_path(target: str) -> tuple[str, bytes] | None:
    """Hook id and decoded path of a target ``/e/<hook id>/<path>``; None if it is no such target.

    The path is empty where the target ends after the hook id. Raises ValueError for a target that
    is no URL.
    """
    encoded = target.partition("?")[0].encode("latin-1")
    if _BAD_ESCAPE.search(encoded) or not encoded.startswith(b"/"):
        raise ValueError(f"no URL: {target}")
    match = re.fullmatch(rb"/e/([^/]+)(/.*)?", unquote_to_bytes(encoded), re.DOTALL)
    return None if match is None else (match[1].decode("latin-1"), match[2] or b"")


def daemon_copy(request: RawRequest, hook_id: str, path: bytes) -> bytes:
    """The request as the daemon writes it down for the plugin (``copyRequest``)."""
    headers: dict[str, list[str]] = {}
    for name, value in request.headers:
        headers.setdefault(canonical(name), []).append(value.strip(" \t"))
    host = headers.pop("Host", [""])[0]
    host = headers.get("X-Original-Host", [""])[0] or host
    for name in _DAEMON_DELETES:
        headers.pop(name, None)
    headers["Dify-Hook-Id"] = [hook_id]
    if not headers.get("Dify-Hook-Url", [""])[0]:
        scheme = "https" if headers.get("X-Forwarded-Proto", [""])[0] == "https" else "http"
        url = f"{scheme}://{host}/e/{hook_id}{path.decode('latin-1')}"
        headers["Dify-Hook-Url"] = [re.sub(r"[\r\n]", " ", url)]
    agent = headers.get("User-Agent", ["Go-http-client/1.1"])[0]
    for name in _GO_WRITES_ITSELF:
        headers.pop(name, None)

    body = request.body[:MAX_BODY_BYTES]
    lines = [f"{request.method} {_go_target(request.target, path)} HTTP/1.1", f"Host: {host}"]
    if agent:
        lines.append(f"User-Agent: {agent}")
    if body:
        lines.append(f"Content-Length: {len(body)}")
    elif request.method not in _LACKS_BODY:
        lines.append("Transfer-Encoding: chunked")
        body = b"0\r\n\r\n"
    lines += [f"{name}: {value}" for name in sorted(headers) for value in headers[name]]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _go_target(target: str, path: bytes) -> str:
    _, mark, query = target.partition("?")
    pairs: list[tuple[bytes, bytes]] = []
    for part in query.encode("latin-1").split(b"&"):
        if part and b";" not in part and not _BAD_ESCAPE.search(part):
            key, _, value = part.replace(b"+", b" ").partition(b"=")
            pairs.append((unquote_to_bytes(key), unquote_to_bytes(value)))
    pairs.sort(key=lambda pair: pair[0])
    encoded = "&".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in pairs)
    # A bare "?" survives; one whose pairs have all been dropped does not.
    tail = f"?{encoded}" if encoded or (mark and not query) else ""
    return quote_from_bytes(path, safe=_GO_PATH_SAFE) + tail


# --- the way back ---


def check_chunk(data: dict[str, Any]) -> None:
    """Raise KeyError or TypeError for a message that the daemon does not know."""
    status, headers, result = (data.get(key) for key in ("status", "headers", "result"))
    if status is not None and not (type(status) is int and 0 <= status < 1 << 16):
        raise TypeError(f"status {status!r}")
    if headers is not None and not all(isinstance(part, str) for part in _flat(headers.items())):
        raise TypeError("headers that are no text")
    if not isinstance(result, str | None):
        raise TypeError(f"result {result!r}")


def _flat(pairs: Iterable[tuple[Any, Any]]) -> Iterable[Any]:
    return (part for pair in pairs for part in pair)


class Answer:
    """Folds the messages of an endpoint into status, headers and chunks as the daemon does.

    The daemon waits for the first message with a ``result`` before it answers at all: a stream's
    status and headers reach the client with its first chunk and not before.
    """

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.begun = False

    def take(self, arrival: Arrival) -> Chunk | None:
        """Take in one message; returns the chunk in it, if there is one."""
        data, result = arrival.data, arrival.data.get("result")
        if not self.begun:
            if data.get("status") is not None:
                self.status = data["status"]
            for name, value in (data.get("headers") or {}).items():
                if _TOKEN.fullmatch(name):
                    self.headers.setdefault(canonical(name), value)
            if result is None:
                return None
        elif result is None:
            raise HostFault("a message without a result after the first one: the daemon panics")
        self.begun = True
        try:
            return Chunk(arrival.at_s, bytes.fromhex(result))
        except ValueError as error:
            raise HostFault(f"a result that is not in hexadecimal digits: {error}") from None

    def finish(self, error: PluginError | None, at_s: float) -> Chunk | None:
        """The end of the call: the chunk that an error adds to the body, None without an error."""
        if error is None:
            return None
        told = {"args": error.args, "error_type": error.type, "message": error.message}
        if self.begun:
            return Chunk(at_s, to_json(told))
        self.begun = True
        self.status, self.headers = 500, {"Content-Type": JSON_TYPE}
        body = daemon_error(-500, "PluginDaemonInternalServerError", to_json(told).decode())
        return Chunk(at_s, body)


def daemon_error(code: int, kind: str, message: str) -> bytes:
    """The JSON body of the daemon's own errors."""
    told = to_json({"message": message, "error_type": kind, "args": None}).decode()
    return to_json({"code": code, "message": told, "data": None})


def to_json(value: Any) -> bytes:
    """JSON as Go writes it; the order of keys is the caller's."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return re.sub(r"[<>&\u2028\u2029]", lambda m: _GO_ESCAPES[m[0]], text).encode()
