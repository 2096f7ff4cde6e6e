"""What the endpoints share: who may come in, and what every answer looks like."""

import hashlib
import hmac
import logging
from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dify_plugin import Endpoint
from dify_plugin.core.runtime import Session
from werkzeug import Request, Response

from holysheep import config
from holysheep.dashboard import POLICY
from holysheep.engine import Engine
from holysheep.errors import HolySheepError, SettingsError
from holysheep.gateway import ApiError, api_error, encoded
from holysheep.registry import shared_registry
from holysheep.settings import Settings, parse_settings
from host import process

_log = logging.getLogger(__name__)

JSON = "application/json"
_SERVERS = "server_error"
_SECURITY = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_MAX_HEADER_CHARS = 16_384
_PIECE_BYTES = 512 * 1024
"""Half of what a message to the host may be: bodies travel as hexadecimal digits."""
_WHOLE_BYTES = 2 * 1024 * 1024
"""What the host takes in one message, with some room."""
_SHORTEST_STREAM_S = 0.02


@dataclass(frozen=True, slots=True)
class Head:
    """How an answer begins. ``streams`` says that its body goes out as it comes."""

    content_type: str = JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    streams: bool = False


Answer = Generator[Head | bytes, None, None]
"""A ``Head``, then the body in pieces."""


class Visitor:
    """A request to an endpoint: what it carries, and what the endpoint is set up with."""

    def __init__(self, request: Request, session: Session, settings: Mapping[str, Any]) -> None:
        self.request = request
        self.session = session
        self._settings = settings

    @property
    def headers(self) -> dict[str, str]:
        """The request's headers with lower-case names."""
        return {name.lower(): value for name, value in self.request.headers.items()}

    @property
    def settings(self) -> Settings | None:
        """The credential that the endpoint is set up with; ``None`` = it has no key.

        Raises ``ApiError`` for one that cannot be used.
        """
        if not str(self._settings.get("api_key") or "").strip():
            return None
        try:
            return parse_settings(self._settings)
        except SettingsError as error:
            raise _not_set_up(f"The endpoint is not set up: {error.message}") from None

    @property
    def engine(self) -> Engine | None:
        """The engine of that credential."""
        settings = self.settings
        return None if settings is None else shared_registry().engine(settings)

    def has_token(self) -> bool:
        """Whether the request carries the endpoint's token."""
        scheme, _, given = self.request.headers.get("authorization", "").partition(" ")
        token = str(self._settings.get("access_token") or "").strip()
        if len(token) < config.MIN_TOKEN_LENGTH:
            raise _not_set_up(
                "The endpoint is not set up: its access token must have at least"
                f" {config.MIN_TOKEN_LENGTH} characters."
            )
        # Digests have one length, so that comparing them tells nothing about the token's.
        is_equal = hmac.compare_digest(_digest(given.strip()), _digest(token))
        return scheme.lower() == "bearer" and is_equal

    def admit(self) -> None:
        """Return if the request may come in. Raises ``ApiError``."""
        if sum(len(name) + len(value) for name, value in self.request.headers.items()) > (
            _MAX_HEADER_CHARS
        ):
            raise ApiError(431, "The headers are too large.")
        if not self.has_token():
            _gate.refuse()


def needed_engine(visitor: Visitor) -> Engine:
    """The engine of the endpoint. Raises ``ApiError`` where it has no key."""
    engine = visitor.engine
    if engine is None:
        raise _not_set_up("The gateway is not set up: the endpoint has no API key.")
    return engine


def _not_set_up(message: str) -> ApiError:
    return ApiError(503, message, kind=_SERVERS, code="not_configured")


class _Gate:
    """Holds up those who guess tokens, a bounded number of them at a time."""

    def __init__(self) -> None:
        self._waiting = 0

    def refuse(self) -> None:
        """Raise ``ApiError``, after a while."""
        if self._waiting >= config.MAX_WRONG_TOKENS:
            raise ApiError(
                429,
                "There are too many requests with a wrong access token.",
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after_s=1,
            )
        self._waiting += 1
        try:
            process.clock().sleep(config.WRONG_TOKEN_PAUSE_S)
        finally:
            self._waiting -= 1
        raise ApiError(
            401,
            "The access token is missing or wrong. Send it as Authorization: Bearer TOKEN.",
            code="invalid_api_key",
        )


_gate = _Gate()


class Site(Endpoint):
    """An endpoint. Says in ``answer`` what is answered to a request that carries the token."""

    is_public: ClassVar[bool] = False
    """Whether anybody is answered."""

    @abstractmethod
    def answer(self, visitor: Visitor) -> Answer:
        """The answer. What is raised before its head becomes an error of its own."""

    def _invoke(
        self, r: Request, values: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> Response:
        del values
        visitor = Visitor(r, self.session, settings)
        try:
            if not self.is_public:
                visitor.admit()
            parts = self.answer(visitor)
            head = next(parts)
            if not isinstance(head, Head):
                raise TypeError("an answer must begin with its head")
            body = _streamed(parts) if head.streams else _whole(parts)
        except ApiError as error:
            return _refusal(error)
        except HolySheepError as error:
            return _refusal(api_error(error))
        except Exception:  # noqa: BLE001 - the host would tell anybody what it says
            _log.exception("an endpoint failed")
            return _refusal(ApiError(500, "The plugin failed; its log says why.", kind=_SERVERS))
        headers = {**_SECURITY, "content-type": head.content_type, **head.headers}
        return Response(body, status=head.status, headers=headers)


def _whole(parts: Answer) -> bytes | Generator[bytes, None, None]:
    content = b"".join(part for part in parts if isinstance(part, bytes))
    return content if len(content) <= _WHOLE_BYTES else _streamed(_only(content))


def _pieces(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), _PIECE_BYTES):
        yield content[start : start + _PIECE_BYTES]


def _streamed(parts: Answer) -> Generator[bytes, None, None]:
    clock, began_s = process.clock(), None
    try:
        for part in parts:
            if isinstance(part, bytes):
                for piece in _pieces(part):
                    yield piece
                    began_s = began_s or clock.monotonic()
    except Exception:  # noqa: BLE001 - the same
        # What is sent is sent; the client sees an answer that ends early.
        _log.exception("an endpoint failed in the middle of its answer")
    if began_s is not None:
        # The host begins to pass a stream on at its first piece. If it is over by then, the host
        # takes it for given up and drops the rest.
        clock.sleep(max(0.0, began_s + _SHORTEST_STREAM_S - clock.monotonic()))


def _refusal(error: ApiError) -> Response:
    headers = {**_SECURITY, "content-type": JSON, **error.headers}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(encoded(error.to_json()), status=error.status, headers=headers)


def _only(content: bytes) -> Answer:
    yield content


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
