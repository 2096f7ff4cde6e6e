"""The bottom of the stack: one request over the wire, its answer as events.

Streams where somebody watches and asks for plain JSON where nobody does; reads either form
whichever was asked for. Everything that can go wrong on the way becomes an error of the tree.
"""

import json
import ssl
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any, cast

import httpx

from holysheep import config
from holysheep.errors import (
    BadRequest,
    BadResponse,
    ConnectFailed,
    DeadlineExceeded,
    HolySheepError,
    TimedOut,
    UnknownModel,
    UpstreamError,
)
from holysheep.faults import REQUEST_ID_HEADERS, error_for, looks_like_page, shown_id, with_id
from holysheep.inflate import ACCEPTED, inflated
from holysheep.network import Limit, limits
from holysheep.pool import PooledTransport
from holysheep.ports import Clock
from holysheep.quirks import Quirks, Trial
from holysheep.redact import redact
from holysheep.settings import Settings
from holysheep.tokens import estimate_prompt_tokens, estimate_tokens
from holysheep.types import Call, Completed, Completion, Delta, Event, Usage
from holysheep.wire import BLANK_START, Assembler, encode, looks_like_events, server_sent_events
from holysheep.wording import span

_START_BYTES = 6
"""In so many bytes the form of a body shows."""
USER_AGENT = f"holysheep-for-dify/{config.VERSION}"


class ChatTransport:
    """Sends chat completions of one credential."""

    def __init__(
        self, settings: Settings, pool: PooledTransport, quirks: Quirks, clock: Clock
    ) -> None:
        self._pool = pool
        self._quirks = quirks
        self._clock = clock
        self._secrets = (settings.api_key,)
        self._base_url = settings.base_url
        self._url = httpx.URL(f"{settings.base_url}/chat/completions")
        self._headers = request_headers(settings)

    def __call__(self, call: Call) -> Iterator[Event]:
        """Send the request and read its answer."""
        began = self._clock.monotonic()
        if began >= call.ends_s:
            raise DeadlineExceeded("The deadline passed before the request was sent.")
        unsettled = call.trace.unsettled
        try:
            response, left_out = self._open(call)
            # From here on upstream works, and whoever breaks off does not hear for how much.
            call.trace.unsettled += 1
            try:
                completion = yield from self._answer(response, call)
            finally:
                response.close()
            call.trace.unsettled -= 1
        except httpx.TransportError as error:
            if isinstance(error, httpx.ReadTimeout) and call.trace.unsettled == unsettled:
                call.trace.unsettled += 1
            failure = self._broken(error, call, self._clock.monotonic() - began)
            failure.request_id = call.trace.request_id
            failure.message = with_id(failure.message, call.trace.request_id)
            raise failure from error
        except zlib.error as error:
            raise _not_inflatable() from error
        finally:
            call.trace.upstream_s += self._clock.monotonic() - began
        yield Completed(replace(completion, left_out=left_out))

    def _open(self, call: Call) -> tuple[httpx.Response, tuple[str, ...]]:
        """Send the request until it is accepted; also what was left out for that."""
        trial = Trial(self._quirks, call.request, stream=call.stream)
        first: BadRequest | None = None
        while True:
            response = self._send(call, trial.left_out)
            if response.status_code == 200:
                trial.accepted()
                return response, trial.left_out
            try:
                error = self._failure(response, call)
            finally:
                response.close()
            if not isinstance(error, BadRequest) or isinstance(error, UnknownModel):
                raise error
            # What is wrong with the request as the author made it, not as it was changed here.
            first = first or error
            if not trial.refused(error):
                raise first

    def _send(self, call: Call, left_out: tuple[str, ...]) -> httpx.Response:
        call.trace.attempts += 1
        call.trace.request_id = None
        return self._pool.handle_request(
            httpx.Request(
                "POST",
                self._url,
                headers=self._headers,
                content=encode(call.request, stream=call.stream, left_out=left_out),
                extensions={"timeout": self._limits_of(call)},
            )
        )

    def get(self, path: str, deadline_s: float) -> tuple[int, httpx.Headers, bytes]:
        """GET ``path`` below the base URL: status, headers and body, whatever the status.

        Raises ``ConnectFailed`` or ``TimedOut``.
        """
        return self._exchange("GET", path, b"", deadline_s)

    def post(
        self, path: str, body: Mapping[str, Any], deadline_s: float
    ) -> tuple[int, httpx.Headers, bytes]:
        """POST a JSON body to ``path`` below the base URL; returns and raises like ``get``."""
        return self._exchange("POST", path, json.dumps(body).encode(), deadline_s)

    def _exchange(
        self, method: str, path: str, content: bytes, deadline_s: float
    ) -> tuple[int, httpx.Headers, bytes]:
        request = httpx.Request(
            method,
            f"{self._base_url}{path}",
            headers=self._headers,
            content=content or None,
            extensions={"timeout": self._limits(deadline_s)},
        )
        try:
            response = self._pool.handle_request(request)
            try:
                body = b"".join(_bounded(_content(response), config.MAX_RESPONSE_BYTES))
            finally:
                response.close()
        except httpx.TransportError as error:
            past_deadline = self._clock.monotonic() >= deadline_s
            raise connection_error(error, past_deadline=past_deadline) from error
        except zlib.error as error:
            raise _not_inflatable() from error
        return response.status_code, response.headers, body

    def _broken(self, error: httpx.TransportError, call: Call, waited_s: float) -> HolySheepError:
        """The error of the tree for a connection that failed after ``waited_s`` seconds."""
        now = self._clock.monotonic()
        failure = connection_error(error, past_deadline=now >= call.ends_s)
        share_is_over = call.answer_by_s <= now < call.ends_s
        if isinstance(failure, TimedOut) and share_is_over:
            failure = TimedOut(
                f"The model did not begin to answer within {span(waited_s)}, its share of the time"
                " where other models can be asked. Raise timeout_s.",
                detail=failure.detail,
            )
        if isinstance(failure, TimedOut):
            failure.waited_s = waited_s
        return failure

    def _limits_of(self, call: Call) -> dict[str, float]:
        """The time limits of a chat request until its first byte."""
        read_s = config.STREAM_SILENCE_S if call.stream else config.READ_TIMEOUT_S
        return limits(
            self._clock,
            call.answer_by_s,
            connect_s=config.CONNECT_TIMEOUT_S,
            read_s=read_s,
            write_s=config.WRITE_TIMEOUT_S,
        )

    def _limits(self, deadline_s: float) -> dict[str, float]:
        return limits(
            self._clock,
            deadline_s,
            connect_s=config.CONNECT_TIMEOUT_S,
            read_s=config.READ_TIMEOUT_S,
            write_s=config.WRITE_TIMEOUT_S,
        )

    def _answer(self, response: httpx.Response, call: Call) -> Generator[Delta, None, Completion]:
        """The pieces of an answer as they arrive; returns the whole."""
        headers = response.headers
        request_id = next((headers[name] for name in REQUEST_ID_HEADERS if name in headers), None)
        if request_id is not None:
            request_id = shown_id(request_id, *self._secrets)
        call.trace.request_id = request_id
        assembler = Assembler(
            call.request.model,
            request_id=request_id,
            wall_s=self._clock.wall(),
            secrets=self._secrets,
            answers=_answers_asked(call),
        )
        pieces = _bounded(_content(response), config.MAX_RESPONSE_BYTES)
        start = b""
        for piece in pieces:
            # It answers: from here on it has all the time that there is.
            read_limit(response).deadline_s = call.ends_s
            # A body may come in single bytes, or begin with any amount of nothing; its form shows
            # in the first few bytes that are something.
            start = (start + piece).lstrip(BLANK_START)
            if len(start) >= _START_BYTES:
                break
        if looks_like_events(start):
            # A chain, since closing a generator that yields from the pieces would close them too.
            yield from self._read_events(chain([start], pieces), assembler, read_limit(response))
            self._drain(response, pieces)
        else:
            body = start + b"".join(pieces)
            if looks_like_page(body, headers.get("content-type", "")):
                raise BadResponse(
                    with_id(
                        "The gateway answered with a web page instead of an API response."
                        " Check the base URL.",
                        request_id,
                    ),
                    request_id=request_id,
                )
            yield from assembler.feed_body(body)
        yield from assembler.flush()
        completion = assembler.finish()
        if not assembler.has_usage:
            completion = replace(completion, usage=_estimated_usage(call, completion))
        return completion

    def _read_events(
        self, pieces: Iterator[bytes], assembler: Assembler, limit: Limit
    ) -> Iterator[Delta]:
        """The pieces of an answer that comes as events, until it has ended or the body has."""
        ends_s = limit.deadline_s
        rest_is_bounded = False
        try:
            for event in server_sent_events(pieces):
                for delta in assembler.feed_event(event):
                    # Some give a finish reason and go on with the text.
                    rest_is_bounded = False
                    yield delta
                if assembler.has_ended:
                    return
                if assembler.is_complete and not rest_is_bounded:
                    rest_is_bounded = True
                    limit.deadline_s = min(ends_s, self._clock.monotonic() + config.MAX_REST_S)
        except (httpx.TransportError, zlib.error, UpstreamError):
            # Behind a complete answer only the connection is lost, and perhaps the usage.
            if not assembler.is_complete:
                raise

    def _failure(self, response: httpx.Response, call: Call) -> UpstreamError:
        body = bytearray()
        # The status says what happened, also where the body behind it breaks off or never ends.
        with suppress(httpx.TransportError, zlib.error):
            for piece in _bounded(_content(response), config.MAX_ERROR_BODY_BYTES, cut=True):
                body += piece
        return error_for(
            response.status_code,
            response.headers,
            bytes(body),
            model=call.request.model,
            wall_s=self._clock.wall(),
            secrets=self._secrets,
        )

    def _drain(self, response: httpx.Response, pieces: Iterator[bytes]) -> None:
        """Read what follows the end of the answer, so that the connection can be used again."""
        limit = read_limit(response)
        limit.deadline_s = min(limit.deadline_s, self._clock.monotonic() + config.MAX_DRAIN_S)
        left = config.MAX_DRAIN_BYTES
        # The answer is complete: whatever happens now, only the connection is lost.
        with suppress(httpx.TransportError, zlib.error, BadResponse):
            for piece in pieces:
                left -= len(piece)
                if left < 0:
                    return


def read_limit(response: httpx.Response) -> Limit:
    """The time limit of the reads of a response; its deadline may be moved."""
    limit: Limit = response.request.extensions["timeout"]["read"]
    return limit


def request_headers(settings: Settings) -> list[tuple[str, str]]:
    """The headers of every request of a credential."""
    headers = [
        ("accept", "application/json, text/event-stream"),
        ("accept-encoding", ACCEPTED),
        ("content-type", "application/json"),
        ("user-agent", USER_AGENT),
    ]
    if settings.auth_header in ("bearer", "both"):
        headers.append(("authorization", f"Bearer {settings.api_key}"))
    if settings.auth_header in ("x-api-key", "both"):
        headers.append(("x-api-key", settings.api_key))
    return headers


def connection_error(error: httpx.TransportError, *, past_deadline: bool) -> HolySheepError:
    """The error of the tree for a failure of the connection."""
    detail = redact(str(error))
    if past_deadline:
        return TimedOut(
            "No complete answer before the deadline. Raise timeout_s, lower max_tokens, or ask a"
            " faster model.",
            detail=detail,
        )
    if isinstance(error, httpx.ConnectTimeout):
        return TimedOut(
            f"The gateway could not be reached within {config.CONNECT_TIMEOUT_S:g} s."
            " Check the base URL and the network.",
            detail=detail,
        )
    if isinstance(error, httpx.PoolTimeout):
        return TimedOut("No connection became free in time. Lower the load.", detail=detail)
    if isinstance(error, httpx.TimeoutException):
        return TimedOut("The gateway stopped answering. Try again later.", detail=detail)
    if isinstance(error, httpx.ConnectError):
        if _is_about_tls(error):
            return ConnectFailed(
                "The gateway's TLS certificate could not be verified, so nothing was sent."
                " Check the base URL, or the certificates of this machine (SSL_CERT_FILE).",
                detail=detail,
            )
        return ConnectFailed(
            "The gateway could not be reached. Check the base URL and the network.", detail=detail
        )
    if isinstance(error, httpx.ProxyError):
        return ConnectFailed(
            "The proxy on the way to the gateway refused. Check the proxy settings.", detail=detail
        )
    return ConnectFailed(
        "The connection to the gateway broke before the answer was complete. Try again.",
        detail=detail,
    )


def _is_about_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _answers_asked(call: Call) -> int | None:
    number = call.request.body.get("n") or 1
    return number if isinstance(number, int) else None


def _estimated_usage(call: Call, completion: Completion) -> Usage:
    answer = sum(
        estimate_tokens(choice.text)
        + estimate_tokens(choice.reasoning)
        + estimate_tokens(str(choice.tool_calls or ""))
        for choice in completion.choices
    )
    return replace(
        completion.usage,
        prompt_tokens=estimate_prompt_tokens(call.request),
        completion_tokens=answer,
        estimated=True,
    )


def _bounded(pieces: Iterator[bytes], limit: int, *, cut: bool = False) -> Iterator[bytes]:
    """The pieces, up to ``limit`` bytes; beyond it cut off, or refused."""
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > limit:
            if cut:
                return
            raise BadResponse(
                f"The gateway's answer is larger than {limit // (1024 * 1024)} MiB. Lower"
                " max_tokens, or check the base URL."
            )
        yield piece


def _content(response: httpx.Response) -> Iterator[bytes]:
    # The stream itself: httpx would inflate a whole piece at once, however much that becomes.
    pieces = iter(cast("httpx.SyncByteStream", response.stream))
    return inflated(pieces, response.headers.get("content-encoding", ""))


def _not_inflatable() -> BadResponse:
    return BadResponse("The gateway's answer could not be decompressed. Try again.")
