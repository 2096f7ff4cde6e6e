"""The OpenAI chat completions API over an engine: bodies, streams and errors, without HTTP.

What a client sends goes upstream as it is, unknown parameters too. What comes back has the form
that the official clients read: a completion, chunks that end with ``[DONE]``, or an error object.
Tool calls and log probabilities of a stream come in one piece, with its last chunk.

Source: platform.openai.com/docs/api-reference/chat, read 2026-11.
"""

import json
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from email.message import Message
from typing import Any

from holysheep import config
from holysheep.engine import Answer
from holysheep.errors import (
    AuthError,
    BadRequest,
    BudgetExceeded,
    CircuitOpen,
    DeadlineExceeded,
    HolySheepError,
    InputError,
    LimiterTimeout,
    QuotaExhausted,
    RateLimited,
    SettingsError,
    TimedOut,
    UnknownModel,
)
from holysheep.jsontext import MAX_DEPTH, is_json, parse_json, whole_characters
from holysheep.reading import MODEL_ID, is_model_id
from holysheep.result import UsageReport, usd_number
from holysheep.tally import CACHED_STATES
from holysheep.types import CacheMode, ChatRequest, Choice, Completed, Delta, JsonObject, Policy

_INVALID = "invalid_request_error"
_CACHE_MODES: dict[str, CacheMode] = {"use": "use", "refresh": "refresh", "bypass": "bypass"}


class ApiError(Exception):
    """What a client gets in place of an answer.

    ``status`` is the HTTP status, ``kind`` OpenAI's ``type``. ``retry_after_s`` is ``None`` where
    waiting does not help, or nobody knows how long.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = _INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to it."""
        if self.retry_after_s is None:
            return {}
        return {"retry-after": str(max(1, math.ceil(self.retry_after_s)))}

    def to_json(self) -> JsonObject:
        """OpenAI's error object."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """A chat completion that a client asks for, and how it is to be delivered."""

    request: ChatRequest
    policy: Policy
    stream: bool
    include_usage: bool


def read_request(body: bytes, headers: Mapping[str, str], default_model: str) -> Wanted:
    """What a client has sent. Raises ``ApiError``.

    ``headers`` have lower-case names.
    """
    _check_type(headers)
    # Dify cuts a larger body off without a word.
    if len(body) >= config.MAX_GATEWAY_BODY_BYTES:
        most = config.MAX_GATEWAY_BODY_BYTES // 1_000_000
        raise ApiError(413, f"The body is larger than {most} MB, more than Dify passes on.")
    try:
        value = parse_json(body)
    except UnicodeDecodeError:
        raise ApiError(400, "The body is not UTF-8.") from None
    except ValueError as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.")
    if not is_json(value):
        # 1e999 is JSON, but no number once it has been read.
        raise ApiError(
            400, f"The body has a number beyond all limits, or more than {MAX_DEPTH} levels."
        )
    model = value.get("model")
    if model is None or model == "":
        model = default_model
    if not isinstance(model, str) or not is_model_id(model):
        raise ApiError(400, f"model must be {MODEL_ID}.", param="model")
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a list of at least one message.", param="messages")
    if not all(isinstance(message, dict) for message in messages):
        raise ApiError(400, "Each of messages must be an object.", param="messages")
    options = _as_type(value.get("stream_options"), dict, "stream_options") or {}
    stream = bool(_as_type(value.get("stream"), bool, "stream"))
    kept = {name: part for name, part in value.items() if name not in ("stream", "stream_options")}
    return Wanted(
        ChatRequest({**kept, "model": model}),
        Policy(cache=_cache_mode(headers)),
        stream,
        include_usage=options.get("include_usage") is True,
    )


def _check_type(headers: Mapping[str, str]) -> None:
    """Return if the body is JSON that can be read as it is. Raises ``ApiError``."""
    declared = Message()
    declared["content-type"] = headers.get("content-type", "")
    if declared.get_content_type() != "application/json":
        raise ApiError(415, "The content type must be application/json.")
    if declared.get_content_charset("utf-8") not in ("utf-8", "utf8"):
        raise ApiError(415, "The charset of the body must be UTF-8.")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError(415, "The body must not be compressed.")


def _as_type[Kind](value: Any, kind: type[Kind], name: str) -> Kind | None:
    if value is not None and not isinstance(value, kind):
        raise ApiError(400, f"{name} has the wrong type.", param=name)
    return value


def _cache_mode(headers: Mapping[str, str]) -> CacheMode:
    asked = headers.get("x-holysheep-cache", "").strip().lower()
    if asked:
        if asked not in _CACHE_MODES:
            raise ApiError(400, "x-holysheep-cache must be use, refresh or bypass.")
        return _CACHE_MODES[asked]
    directives = [part.strip() for part in headers.get("cache-control", "").lower().split(",")]
    return "bypass" if "no-store" in directives else "use"


class Reply:
    """One answer on its way to a client: a whole completion, or a stream of chunks."""

    def __init__(self, wanted: Wanted, answer: Answer, *, created_s: float) -> None:
        self._wanted = wanted
        self._answer = answer
        self._events = answer.events()
        self._introduced: set[int] = set()
        self._first: Delta | Completed | None = None
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created_s = int(created_s)

    def begin(self) -> None:
        """Wait for the first piece, or for all where nothing is streamed. Raises ``ApiError``."""
        try:
            for event in self._events:
                self._first = event
                if self._wanted.stream:
                    break
        except HolySheepError as error:
            raise api_error(error) from error

    @property
    def headers(self) -> dict[str, str]:
        """What is known of the answer when it has begun."""
        headers: dict[str, str] = {"x-holysheep-cache": self._answer.cache}
        cost: Decimal | None = None
        if isinstance(self._first, Completed):
            cost = self._answer.result.cost_usd
        elif self._answer.cache in CACHED_STATES:
            cost = Decimal(0)
        if cost is not None:
            headers["x-holysheep-cost-usd"] = f"{cost:f}"
        return headers

    def completion(self) -> JsonObject:
        """The completion object. Call ``begin`` before."""
        if not isinstance(self._first, Completed):
            raise TypeError("a call ended without Completed")
        completion = self._first.completion
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self._created_s,
            "model": completion.model,
            "choices": [_choice(choice) for choice in completion.choices],
            "usage": _usage(self._answer.result.usage),
        }

    def chunks(self) -> Iterator[bytes]:
        """The server-sent events of the stream. Call ``begin`` before."""
        try:
            for event in self._all_events():
                if isinstance(event, Delta):
                    yield from self._pieces(event)
                else:
                    yield from self._ending(event)
        except HolySheepError as error:
            yield _event(api_error(error).to_json())
            return
        yield b"data: [DONE]\n\n"

    def _all_events(self) -> Iterator[Delta | Completed]:
        if self._first is not None:
            yield self._first
        if not isinstance(self._first, Completed):
            yield from self._events

    def _pieces(self, delta: Delta) -> Iterator[bytes]:
        yield from self._introduction(delta.index)
        size = config.MAX_PIECE_CHARS
        for name, text in (("reasoning_content", delta.reasoning), ("content", delta.text)):
            for start in range(0, len(text), size):
                yield self._chunk(delta.index, {name: text[start : start + size]})

    def _introduction(self, index: int) -> Iterator[bytes]:
        """Who speaks, in a choice's first chunk."""
        if index not in self._introduced:
            self._introduced.add(index)
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def _ending(self, event: Completed) -> Iterator[bytes]:
        for choice in event.completion.choices:
            yield from self._introduction(choice.index)
            if choice.tool_calls:
                calls = [{"index": number, **call} for number, call in enumerate(choice.tool_calls)]
                yield self._chunk(choice.index, {"tool_calls": calls})
            yield self._chunk(choice.index, {}, choice)
        if self._wanted.include_usage:
            yield _event(
                {**self._head(), "choices": [], "usage": _usage(self._answer.result.usage)}
            )

    def _chunk(self, index: int, delta: JsonObject, ended: Choice | None = None) -> bytes:
        choice: JsonObject = {
            "index": index,
            "delta": delta,
            "logprobs": ended.logprobs if ended else None,
            "finish_reason": ended.finish_reason if ended else None,
        }
        chunk = {**self._head(), "choices": [choice]}
        return _event({**chunk, "usage": None} if self._wanted.include_usage else chunk)

    def _head(self) -> JsonObject:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self._created_s,
            "model": self._wanted.request.model,
        }


def models_list(ids: Iterable[str]) -> JsonObject:
    """OpenAI's list of models."""
    return {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": 0, "owned_by": "gateway"} for name in ids
        ],
    }


def api_error(error: HolySheepError) -> ApiError:
    """What a client is told of a failure: statuses that are not its own fault are 5xx."""
    wait_s = error.retry_after_s
    code: str | None
    match error:
        case BudgetExceeded():
            status, kind, code = 402, "insufficient_quota", "budget_exceeded"
        case LimiterTimeout() | RateLimited():
            status, kind, code = 429, "rate_limit_error", "rate_limit_exceeded"
            wait_s = wait_s or 1.0
        case QuotaExhausted():
            status = error.status if error.status in (402, 429) else 402
            kind, code = "insufficient_quota", "insufficient_quota"
        case UnknownModel():
            status = error.status if error.status in (400, 404) else 404
            kind, code = _INVALID, "model_not_found"
        case BadRequest(status=int(given)) if given in _CLIENTS_OWN:
            status, kind, code = given, _INVALID, None
        case BadRequest() | InputError():
            status, kind, code = 400, _INVALID, None
        case CircuitOpen():
            status, kind, code = 503, "server_error", "circuit_open"
            wait_s = wait_s or 1.0
        case SettingsError():
            status, kind, code = 503, "server_error", "not_configured"
        case AuthError():
            # The key is the endpoint's, not the caller's.
            status, kind, code = 502, "server_error", "upstream_auth"
        case TimedOut() | DeadlineExceeded():
            status, kind, code = 504, "server_error", "timeout"
        case _:
            status, kind, code = 502, "server_error", error.error_type
    param = error.param if isinstance(error, BadRequest) else None
    return ApiError(status, error.message, kind=kind, param=param, code=code, retry_after_s=wait_s)


_CLIENTS_OWN = (400, 404, 413, 415, 422)
"""Statuses of upstream that say what is wrong with the client's request."""


def encoded(value: JsonObject) -> bytes:
    """A JSON body."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return whole_characters(text).encode()


def _event(value: JsonObject) -> bytes:
    return b"data: " + encoded(value) + b"\n\n"


def _choice(choice: Choice) -> JsonObject:
    message: JsonObject = {
        "role": "assistant",
        "content": choice.text or (None if choice.tool_calls else ""),
        "refusal": None,
    }
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["tool_calls"] = list(choice.tool_calls)
    return {
        "index": choice.index,
        "message": message,
        "logprobs": choice.logprobs,
        "finish_reason": choice.finish_reason,
    }


def _usage(usage: UsageReport) -> JsonObject:
    """OpenAI's usage, and the cost in USD, ``null`` where nobody knows."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "cost": usd_number(usage.cost_usd),
    }
