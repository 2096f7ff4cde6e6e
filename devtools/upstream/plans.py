"""Turns a behaviour and a request into steps: pauses, heads, bytes and ends of connections.

Everything is computed before the first pause, so that a scripted latency contains no work. The
modifiers of an answer (stall, reset, trickle) edit its list of steps.
"""

import gzip
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from typing import Any, Literal

from devtools.upstream.answers import (
    Call,
    answer_to,
    completion_body,
    encode,
    is_plain,
    plain_body,
)
from devtools.upstream.behaviours import MAX_PAUSE_S, Behaviour
from devtools.upstream.streams import DEFAULT_WIRE, stream_pieces

__all__ = [
    "CloseIdle",
    "Data",
    "Drop",
    "Head",
    "Pause",
    "Raw",
    "Reply",
    "Step",
    "error_steps",
    "is_drop_on_reuse",
    "steps_for",
]

DEFAULT_MODELS = (
    "gpt-4.1",
    "claude-sonnet-4.5",
    "gemini-2.5-flash",
    "deepseek-v3.2",
    "gpt-5.4",
    "claude-sonnet-4-6",
    "claude-haiku-4-5",
)

_JSON = "application/json"
_SSE = "text/event-stream; charset=utf-8"
_SETTLE_S = 0.005
"""Between the last bytes and a RST, so that the bytes are out before the connection dies."""
_SHORT_BY_BYTES = 64
_FILLER_HEADER_BYTES = 60_000
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_HTML = (
    "<!DOCTYPE html>\n<html><head><title>{code}</title></head>"
    "<body><h1>{code}</h1><p>{message}</p></body></html>\n"
)


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait, measured from the due time of the step before and not from its end."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer with its length, sent in one piece."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """Status line and headers; ``length`` None means a chunked body."""

    status: int
    headers: list[tuple[bytes, bytes]]
    length: int | None


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of the body. ``countable`` chunks are those that ``chunks=N`` refers to."""

    body: bytes
    last: bool = False
    countable: bool = True


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes that go to the socket as they are, outside of any HTTP framing."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Drop:
    """The connection ends here."""

    how: Literal["rst", "fin"]


@dataclass(frozen=True, slots=True)
class CloseIdle:
    """The connection ends ``after_s`` after the answer unless it is in use again."""

    after_s: float


type Step = Pause | Reply | Head | Data | Raw | Drop | CloseIdle


def is_drop_on_reuse(behaviour: Behaviour) -> bool:
    """Whether this behaviour looks at the connection's past and stays in the script."""
    return "drop_on_reuse" in (behaviour.get("after") or {})


def steps_for(
    behaviour: Behaviour, call: Call | None, *, latency_s: float, reused: bool
) -> Iterable[Step]:
    """The steps of ``behaviour`` for a chat request, or for the model list if ``call`` is None.

    ``latency_s`` is the server's own latency, for a behaviour without one; ``reused`` tells whether
    the connection has carried a request before.
    """
    after = behaviour.get("after") or {}
    if reused and "drop_on_reuse" in after:
        return [Drop(after["drop_on_reuse"])]
    if behaviour.get("latency_ms") is not None:
        latency_s = min(behaviour["latency_ms"] / 1000.0, MAX_PAUSE_S)
    if "trickle" in behaviour:
        return _trickled(behaviour, call, latency_s)
    steps: list[Step] = [Pause(latency_s)] if latency_s > 0 else []
    match behaviour["kind"]:
        case "status":
            steps += _status_steps(behaviour)
        case "malformed":
            steps += _malformed_steps(behaviour["malformed"], call)
        case "models":
            steps += _json_steps(_models_body(behaviour["ids"]), {})
        case _:
            steps += _answer_steps(behaviour, call)
    if "stall" in behaviour:
        steps = _stalled(_unfolded(steps), behaviour["stall"])
    if "reset" in behaviour:
        steps = _broken_off(_unfolded(steps), behaviour["reset"])
    if "close_idle_s" in after:
        steps.append(CloseIdle(after["close_idle_s"]))
    return steps


def error_steps(
    code: int, message: str, *, error_type: str | None = None, error_code: str | None = None
) -> list[Step]:
    """An OpenAI error body, for requests that the server itself refuses."""
    error = {
        "message": message,
        "type": error_type or _ERROR_TYPES.get(code, "server_error"),
        "param": None,
        "code": error_code,
    }
    return _body_steps(code, encode({"error": error}).encode("utf-8", "replace"), _JSON, {})


def _body_steps(
    code: int, body: bytes, content_type: str, headers: Mapping[str, str]
) -> list[Step]:
    return [Reply(code, _head_lines(content_type, headers), body)]


def _head_lines(content_type: str, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    lines = [(b"content-type", content_type.encode("latin-1"))] if content_type else []
    lines += [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    return lines


def _json_steps(body: bytes, behaviour: Mapping[str, Any]) -> list[Step]:
    content_type = behaviour.get("content_type") or _JSON
    return _body_steps(200, body, content_type, behaviour.get("headers") or {})


def _models_body(ids: Iterable[str]) -> bytes:
    models = [
        {"id": name, "object": "model", "created": 1_760_000_000, "owned_by": "upstream"}
        for name in ids
    ]
    return encode({"object": "list", "data": models}).encode("utf-8", "replace")


def _answer_steps(behaviour: Behaviour, call: Call | None) -> list[Step]:
    if call is None:
        return _json_steps(_models_body(DEFAULT_MODELS), behaviour)
    if is_plain(behaviour):
        body = plain_body(call)
        if body is not None:
            return _json_steps(body, {})
    answer = answer_to(call.request, behaviour)
    as_stream = behaviour.get("as", "sse" if call.stream else "json") == "sse"
    if not as_stream:
        return _json_steps(completion_body(answer, call), behaviour)

    wire = behaviour.get("wire") or DEFAULT_WIRE
    content_type = behaviour.get("content_type") or _SSE
    headers = {"cache-control": "no-cache", **(behaviour.get("headers") or {})}
    delay_s = (behaviour.get("chunk_delay_ms") or 0.0) / 1000.0
    steps: list[Step] = [Head(200, _head_lines(content_type, headers), None)]
    texts_before = 0
    for piece in stream_pieces(answer, call, wire):
        if piece.is_text and delay_s > 0 and texts_before > 0:
            steps.append(Pause(delay_s))
        texts_before += piece.is_text
        steps.append(Data(piece.body, countable=piece.is_text))
    last = steps[-1]
    if isinstance(last, Data):
        steps[-1] = replace(last, last=True)
    else:
        steps.append(Data(b"", last=True))
    return steps


def _status_steps(behaviour: Behaviour) -> list[Step]:
    code: int = behaviour["code"]
    headers = dict(behaviour.get("headers") or {})
    fields = dict(behaviour.get("fields") or {})
    if behaviour.get("http_date_in_s") is not None:
        at_s = math.ceil(time.time() + behaviour["http_date_in_s"])
        headers["retry-after"] = formatdate(at_s, usegmt=True)
    if behaviour.get("reset_in_s") is not None:
        wait_s = float(behaviour["reset_in_s"])
        reset_at = datetime.now(UTC) + timedelta(seconds=wait_s)
        fields["resetAt"] = reset_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields["remainingMinutes"] = math.ceil(wait_s / 60.0)
    content_type, body = _error_body(behaviour, fields)
    return _body_steps(code, body, content_type, headers)


def _error_body(behaviour: Behaviour, fields: dict[str, Any]) -> tuple[str, bytes]:
    code = behaviour["code"]
    message = behaviour.get("message") or f"The server answered with status {code}"
    kind = behaviour.get("error_type") or _ERROR_TYPES.get(code, "server_error")
    body: dict[str, Any]
    match behaviour.get("body_style", "openai"):
        case "empty":
            return "", b""
        case "text":
            return "text/plain; charset=utf-8", message.encode()
        case "html":
            return "text/html; charset=utf-8", _HTML.format(code=code, message=message).encode()
        case "string":
            body = {"error": message, "message": message, **fields}
        case "anthropic":
            body = {"type": "error", "error": {"type": kind, "message": message}, **fields}
        case _:
            error = {
                "message": message,
                "type": kind,
                "param": behaviour.get("param"),
                "code": behaviour.get("error_code"),
            }
            body = {"error": error, **fields}
    return _JSON, encode(body).encode("utf-8", "replace")


def _malformed_steps(kind: str, call: Call | None) -> list[Step]:
    page = _HTML.format(code=200, message="Welcome").encode()
    if kind == "html":
        return _body_steps(200, page, "text/html; charset=utf-8", {})
    stream = call is not None and call.stream
    content_type = _SSE if stream else _JSON
    whole = _whole_body(call)
    if kind == "empty_body":
        return _body_steps(200, b"", content_type, {})
    if kind == "gzip":
        return _body_steps(200, gzip.compress(whole), content_type, {"content-encoding": "gzip"})
    if kind == "short_body":
        head = Head(200, _head_lines(content_type, {}), len(whole) + _SHORT_BY_BYTES)
        return [head, Data(whole), Pause(_SETTLE_S), Drop("fin")]
    body = _spoilt(kind, stream=stream, is_list=call is None)
    if stream:
        ending = b"" if kind == "truncated_json" else b"\n\ndata: [DONE]\n\n"
        body = b"data: " + body + ending
    return _body_steps(200, body, content_type, {})


def _whole_body(call: Call | None) -> bytes:
    return _body_of(_answer_steps({"kind": "answer"}, call))


def _body_of(steps: list[Step]) -> bytes:
    return b"".join(step.body for step in steps if isinstance(step, Data | Reply))


def _spoilt(kind: str, *, stream: bool, is_list: bool) -> bytes:
    """The JSON of a body, or of the only event of a stream, after something happened to it."""
    said = {"role": "assistant", "content": "You said"}
    choice = {"index": 0, "delta" if stream else "message": said, "finish_reason": "stop"}
    body: dict[str, Any] = {"id": "chatcmpl-0", "model": "unknown", "choices": [choice]}
    if is_list:
        body = {"object": "list", "data": [{"id": "gpt-4.1", "object": "model"}]}
    items = "data" if is_list else "choices"
    match kind:
        case "truncated_json":
            text = encode(body)
            return text[: len(text) * 2 // 3].encode()
        case "not_json":
            return b"upstream connect error or disconnect before headers"
        case "no_choices":
            return encode({key: part for key, part in body.items() if key != items}).encode()
        case "empty_choices":
            return encode(body | {items: []}).encode()
        case "json_array":
            return encode([body]).encode()
        case "invalid_utf8":
            return encode(body).encode().replace(b'":"', b'":"\xff\xfe', 1)
        case "nan":
            return encode(body | {"usage": {"prompt_tokens": math.nan}}).encode()
        case _:
            raise ValueError(f"unknown kind of malformed answer: {kind}")


def _place_of_chunk(steps: list[Step], chunks: int) -> int:
    """Index just behind the ``chunks``-th countable chunk, or behind the last one there is."""
    place = 0
    for index, step in enumerate(steps):
        if isinstance(step, Data) and step.countable:
            place = index + 1
            chunks -= 1
            if chunks == 0:
                break
    return place


def _place_of_finish(steps: list[Step]) -> int:
    """Index just behind the last chunk with a finish reason, or behind the head without one."""
    return next(
        (
            index + 1
            for index, step in reversed(list(enumerate(steps)))
            if isinstance(step, Data) and b'"finish_reason":"' in step.body
        ),
        _place_of_head(steps) + 1,
    )


def _unfolded(steps: list[Step]) -> list[Step]:
    """The same steps with a complete answer taken apart: its head and two halves of its body."""
    unfolded: list[Step] = []
    for step in steps:
        if isinstance(step, Reply):
            half = len(step.body) // 2
            unfolded.append(Head(step.status, step.headers, len(step.body)))
            unfolded.append(Data(step.body[:half]))
            unfolded.append(Data(step.body[half:], last=True))
        else:
            unfolded.append(step)
    return unfolded


def _place_of_head(steps: list[Step]) -> int:
    return next(index for index, step in enumerate(steps) if isinstance(step, Head))


def _stalled(steps: list[Step], stall: Mapping[str, Any]) -> list[Step]:
    pause = Pause(min(float(stall["seconds"]), MAX_PAUSE_S))
    match stall["before"]:
        case "headers":
            place = _place_of_head(steps)
        case "first_chunk":
            place = _place_of_head(steps) + 1
        case "after_finish":
            place = _place_of_finish(steps)
        case _:
            place = _place_of_chunk(steps, int(stall["chunks"]))
    return [*steps[:place], pause, *steps[place:]]


def _broken_off(steps: list[Step], reset: Mapping[str, Any]) -> list[Step]:
    drop = Drop(reset["how"])
    match reset["after"]:
        case "accept":
            return [*steps[: _place_of_head(steps)], drop]
        case "headers":
            place = _place_of_head(steps) + 1
        case "finish":
            place = _place_of_finish(steps)
        case _:
            place = _place_of_chunk(steps, int(reset["chunks"]))
    kept = [replace(step, last=False) if isinstance(step, Data) else step for step in steps[:place]]
    return [*kept, Pause(_SETTLE_S), drop]


def _trickled(behaviour: Behaviour, call: Call | None, latency_s: float) -> Iterator[Step]:
    """One byte at a time; the text is lengthened so that the answer outlasts ``MAX_PAUSE_S``."""
    interval_s = float(behaviour["trickle"]["interval_s"])
    count = math.ceil(MAX_PAUSE_S / interval_s)
    answer = {key: part for key, part in behaviour.items() if key != "trickle"}
    if answer.get("text") is None and answer.get("chunks") is None:
        answer["size_bytes"] = max(count, int(answer.get("size_bytes") or 0))
    steps = _unfolded(_answer_steps(answer, call))
    head = next(step for step in steps if isinstance(step, Head))
    if latency_s > 0:
        yield Pause(latency_s)
    if behaviour["trickle"]["what"] == "headers":
        for byte in _raw_head(head)[:count]:
            yield Pause(interval_s)
            yield Raw(bytes((byte,)))
    else:
        yield head
        for byte in _body_of(steps)[:count]:
            yield Pause(interval_s)
            yield Data(bytes((byte,)))
    yield Drop("fin")


def _raw_head(head: Head) -> bytes:
    lines = [b"HTTP/1.1 %d OK" % head.status, b"x-filler: " + b"a" * _FILLER_HEADER_BYTES]
    lines += [name + b": " + value for name, value in head.headers]
    return b"\r\n".join([*lines, b"", b""])
