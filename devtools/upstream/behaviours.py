"""What the simulated upstream can be told to do: one helper function for each behaviour.

A behaviour is a plain dict that goes over the control API as JSON. Three kinds exist (``answer``,
``status``, ``malformed``), and a fourth, ``models``, for the model list. An ``answer`` is a valid
completion; its modifiers say how it reaches the client::

    as       json | sse     the form, whatever the request asked for
    wire     {...}          how the event stream is spelt, see sse()
    stall    {...}          a pause at one point, see stall()
    reset    {...}          the connection ends at one point, see reset()
    trickle  {...}          one byte at a time, see trickle()
    after    {...}          what becomes of the connection, see close_keepalive(), drop_on_reuse()

Spans are in milliseconds where the name ends in ``_ms`` and in seconds where it ends in ``_s``; no
pause exceeds ``MAX_PAUSE_S``. Helpers refuse what makes no sense with a ValueError, so a mistake
shows in the test that made it and not on the wire.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

__all__ = [
    "MAX_ANSWER_BYTES",
    "MAX_PAUSE_S",
    "AnswerChunks",
    "AnswerOptions",
    "AnswerStyle",
    "AnswerText",
    "Behaviour",
    "MalformedKind",
    "UsageKind",
    "close_keepalive",
    "drop_on_reuse",
    "json_for_stream",
    "malformed",
    "model_list",
    "ok",
    "outage",
    "overloaded",
    "quota_exhausted",
    "rate_limited",
    "redirect",
    "reset",
    "responses",
    "server_error",
    "sse",
    "sse_for_json",
    "stall",
    "status",
    "tool_call",
    "trickle",
    "unknown_model",
    "wrong_usage",
]

MAX_PAUSE_S = 120.0
"""Longest stall or trickle, seconds: a client that never leaves is sent away after it."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Largest answer text that a behaviour may ask for."""

type Behaviour = dict[str, Any]

BodyStyle = Literal["openai", "string", "anthropic", "text", "html", "empty"]
ReasoningStyle = Literal["reasoning_content", "reasoning", "think"]
MalformedKind = Literal[
    "truncated_json",
    "not_json",
    "html",
    "no_choices",
    "empty_choices",
    "json_array",
    "empty_body",
    "invalid_utf8",
    "nan",
    "short_body",
    "gzip",
]
UsageKind = Literal[
    "negative",
    "strings",
    "missing_fields",
    "missing",
    "null",
    "floats",
    "input_output_names",
    "cache_hit_names",
    "provider_cost",
]


class AnswerStyle(TypedDict, total=False):
    """How an answer looks apart from its text. A key that is absent follows from the request."""

    latency_ms: float | None
    """From the arrival of the request to the first byte; None: the server's own latency."""
    chunk_delay_ms: float
    """Between two text chunks of a stream, by schedule and so without drift."""
    chunk_chars: int | None
    """Deltas of so many characters of a given text, instead of words."""
    size_bytes: int | None
    """A text of exactly that many bytes."""
    usage: Mapping[str, Any] | Literal["missing", "null"] | None
    """A mapping is sent as it is."""
    model: str | None
    """The model that the answer names."""
    finish_reason: str | None
    reasoning: str | None
    reasoning_style: ReasoningStyle
    """``think``: in the text, between tags; else the name of its own field."""
    tool_calls: Sequence[Mapping[str, Any]] | None
    """Each made by tool_call()."""
    logprobs: bool
    refusal: str | None
    content_type: str | None
    content_parts: bool
    """Content as [{"type": "text", "text": ...}] instead of a string."""
    prompt_filter: bool
    """Azure's content filter fields; in a stream as a first chunk without choices."""
    headers: Mapping[str, str]


class AnswerText(AnswerStyle, total=False):
    """An answer with a given text."""

    text: str | None
    """Taken literally: max_tokens, n and response_format do not apply to it."""


class AnswerChunks(AnswerStyle, total=False):
    """An answer with given chunks."""

    chunks: Sequence[str] | None
    """The text deltas of a stream; joined they are the text."""


class AnswerOptions(AnswerText, AnswerChunks, total=False):
    """All that can be said about an answer."""


def ok(text: str | None = None, **answer: Unpack[AnswerChunks]) -> Behaviour:
    """A normal answer, see ``AnswerOptions``."""
    return _answer({"text": text, **answer})


def tool_call(name: str, arguments: Mapping[str, Any] | str, call_id: str = "") -> dict[str, Any]:
    """One entry of ``tool_calls``. ``arguments`` as text is sent as it is, valid JSON or not."""
    return {"name": name, "arguments": arguments, "id": call_id}


def status(
    code: int,
    *,
    message: str | None = None,
    error_type: str | None = None,
    error_code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
    body_style: BodyStyle = "openai",
    fields: Mapping[str, Any] | None = None,
    latency_ms: float | None = None,
) -> Behaviour:
    """An answer with this HTTP status (200-599) and an error body.

    ``body_style``: ``openai`` {"error": {message, type, param, code}}; ``string`` {"error": text,
    "message": text}, as claude-relay-service writes it; ``anthropic`` {"type": "error", "error":
    {type, message}}; ``text``; ``html``; ``empty``. ``fields`` are added to the top of a JSON body.
    ``None`` for message and error_type means the usual one of that status.
    """
    if not 200 <= code <= 599:
        raise ValueError(f"code must be 200 to 599, not {code}")
    return {
        "kind": "status",
        "code": code,
        "message": message,
        "error_type": error_type,
        "error_code": error_code,
        "param": param,
        "headers": dict(headers or {}),
        "body_style": body_style,
        "fields": dict(fields or {}),
        "latency_ms": latency_ms,
    }


def rate_limited(
    retry_after: float | str | None = None,
    *,
    http_date_in_s: float | None = None,
    retry_after_ms: float | None = None,
    reset_in_s: float | None = None,
    message: str = "Rate limit reached for requests",
    headers: Mapping[str, str] | None = None,
    body_style: BodyStyle | None = None,
    latency_ms: float | None = None,
) -> Behaviour:
    """429, saying when to come back in none, one or several of the ways in use.

    ``retry_after``     Retry-After in seconds; text is sent as it is.
    ``http_date_in_s``  Retry-After as a date, so many seconds after the answer (rounded up).
    ``retry_after_ms``  the header retry-after-ms.
    ``reset_in_s``      no header: ``resetAt`` (ISO 8601, UTC) and ``remainingMinutes`` in a body
                        whose error is a string.
    """
    sent = dict(headers or {})
    if retry_after is not None:
        sent["retry-after"] = retry_after if isinstance(retry_after, str) else f"{retry_after:g}"
    if retry_after_ms is not None:
        sent["retry-after-ms"] = f"{retry_after_ms:g}"
    behaviour = status(
        429,
        message=message,
        error_type="rate_limit_error",
        error_code="rate_limit_exceeded",
        headers=sent,
        body_style=body_style or ("openai" if reset_in_s is None else "string"),
        latency_ms=latency_ms,
    )
    return behaviour | {"http_date_in_s": http_date_in_s, "reset_in_s": reset_in_s}


def server_error(
    code: int = 500, *, body_style: BodyStyle = "openai", latency_ms: float | None = None
) -> Behaviour:
    """A 5xx."""
    return status(code, body_style=body_style, latency_ms=latency_ms)


def quota_exhausted(*, body_style: BodyStyle = "string") -> Behaviour:
    """402: the account has used up its allowance."""
    return status(
        402,
        message="Daily cost limit exceeded",
        error_type="insufficient_quota",
        error_code="insufficient_quota",
        body_style=body_style,
    )


def overloaded() -> Behaviour:
    """529 with the body that Anthropic-compatible gateways send."""
    return status(529, message="Overloaded", error_type="overloaded_error", body_style="anthropic")


def unknown_model(code: int = 404) -> Behaviour:
    """404 (or a 400) that says the model does not exist."""
    return status(
        code,
        message="The model does not exist or you do not have access to it.",
        error_type="invalid_request_error",
        error_code="model_not_found",
        param="model",
    )


def redirect(to: str, code: int = 307) -> Behaviour:
    """A redirect to ``to`` without a body."""
    return status(code, headers={"location": to}, body_style="empty")


def outage(code: int = 503) -> Behaviour:
    """For ``Upstream.default``: every request fails until the default changes."""
    return status(code, message="The service is temporarily unavailable")


def stall(
    before: Literal["headers", "first_chunk", "after_chunks", "after_finish"],
    seconds: float,
    *,
    chunks: int = 1,
    **answer: Unpack[AnswerText],
) -> Behaviour:
    """A pause of ``seconds`` at one point of an otherwise normal answer.

    ``headers``: nothing is sent before it. ``first_chunk``: between headers and body.
    ``after_chunks``: after ``chunks`` chunks of a stream, or in the middle of a JSON body.
    ``after_finish``: behind the last finish reason of a stream, so before its usage and [DONE].
    """
    _check_span("seconds", seconds)
    return _answer(answer) | {"stall": {"before": before, "seconds": seconds, "chunks": chunks}}


def trickle(
    interval_s: float = 0.5,
    *,
    what: Literal["headers", "body"] = "body",
    **answer: Unpack[AnswerOptions],
) -> Behaviour:
    """One byte of a valid answer each ``interval_s`` (at least 0.002) until the client leaves.

    The answer is long enough not to end before ``MAX_PAUSE_S``; then the connection is closed.
    """
    if not 0.002 <= interval_s <= MAX_PAUSE_S:
        raise ValueError(f"interval_s must be 0.002 to {MAX_PAUSE_S:g}, not {interval_s}")
    return _answer(answer) | {"trickle": {"interval_s": interval_s, "what": what}}


def reset(
    after: Literal["accept", "headers", "chunks", "finish"] = "accept",
    *,
    chunks: int = 1,
    how: Literal["rst", "fin"] = "rst",
    **answer: Unpack[AnswerText],
) -> Behaviour:
    """The TCP connection ends before the answer is complete.

    ``accept``: no byte of an answer. ``headers``: status line and headers only. ``chunks``: so many
    chunks of a stream, or half of a JSON body. ``finish``: a stream up to its last finish reason.
    ``how``: a real RST (SO_LINGER 0) or a clean FIN.
    """
    return _answer(answer) | {"reset": {"after": after, "chunks": chunks, "how": how}}


def close_keepalive(after_ms: float = 2.0, **answer: Unpack[AnswerOptions]) -> Behaviour:
    """A normal keep-alive answer; the idle connection is closed ``after_ms`` later.

    There is no ``Connection: close``, so the client keeps a connection that is stale. At 0 the FIN
    follows the last byte at once. A request that arrives before then keeps the connection open.
    """
    _check_span("after_ms", after_ms / 1000.0)
    return _answer(answer) | {"after": {"close_idle_s": after_ms / 1000.0}}


def drop_on_reuse(how: Literal["rst", "fin"] = "fin", **answer: Unpack[AnswerOptions]) -> Behaviour:
    """Close without an answer if this request came on a reused connection.

    On a fresh connection it answers normally and goes back to the head of the script.
    """
    return _answer(answer) | {"after": {"drop_on_reuse": how}}


def malformed(kind: MalformedKind, *, latency_ms: float | None = None) -> Behaviour:
    """Status 200 with a body that is no usable answer; in a stream as the data of an event.

    ``short_body`` ends 64 bytes before its content-length. ``gzip`` is legal and has to be decoded.
    """
    return {"kind": "malformed", "malformed": kind, "latency_ms": latency_ms}


def sse(
    *,
    line_end: Literal["\n", "\r\n", "\r"] = "\n",
    space: bool = True,
    bom: bool = False,
    comments: bool = False,
    data_lines: bool = False,
    event_names: bool | None = None,
    done: bool | None = None,
    final_newline: bool = True,
    finish: bool = True,
    cut: bool = False,
    usage_in: Literal["asked", "last", "every", "null", "missing"] = "asked",
    split_bytes: int | None = None,
    event_bytes: int | None = None,
    error: Mapping[str, Any] | str | None = None,
    error_after: int = 0,
    error_key: bool = True,
    keep_alive: str | None = None,
    tool_fragments: int = 3,
    tool_index: bool = True,
    dialect: Literal["chat", "responses"] = "chat",
    ending: Literal["completed", "failed", "incomplete"] = "completed",
    **answer: Unpack[AnswerOptions],
) -> Behaviour:
    """An event stream in one of the spellings met in the field, where the request asks for one.

    ``line_end``       of every line; a bare CR is legal too.
    ``space``          a space after ``data:``.
    ``bom``            a byte order mark before the first event.
    ``comments``       a comment line (": keep-alive") before every event.
    ``data_lines``     the JSON of an event over several ``data:`` lines.
    ``event_names``    an ``event:`` line; None: only in the dialect ``responses``.
    ``done``           the closing ``[DONE]``; None: only in the dialect ``chat``.
    ``final_newline``  False: the stream ends without the blank line after its last event.
    ``finish``         False: no finish_reason anywhere, and [DONE] all the same.
    ``cut``            the stream ends (in order, for HTTP) after the last piece of text.
    ``usage_in``       ``asked``: an own chunk if stream_options.include_usage; ``last``: in the
                       finish chunk; ``every``: in each chunk, growing; ``null``: only null;
                       ``missing``: nowhere.
    ``split_bytes``    HTTP chunks of so many bytes, wherever that cuts, also inside a character;
                       ``chunk_delay_ms`` then lies between these.
    ``event_bytes``    a text of that many bytes, all in one event.
    ``error``          an event {"error": ...} after ``error_after`` pieces of text; then the end.
    ``error_key``      False: ``error``, a mapping, is that event itself.
    ``keep_alive``     an event with this text as its data before every event.
    ``tool_fragments`` pieces of the arguments of each tool call; ``tool_index``: with their index.
    ``dialect``        ``responses``: events of the Responses API, with ``ending`` as the last one.

    U+2028 and other unusual characters go into ``text`` or ``chunks``: nothing is escaped that JSON
    does not require.
    """
    wire = {
        "line_end": line_end,
        "space": space,
        "bom": bom,
        "comments": comments,
        "data_lines": data_lines,
        "event_names": (dialect == "responses") if event_names is None else event_names,
        "done": (dialect == "chat") if done is None else done,
        "final_newline": final_newline,
        "finish": finish,
        "cut": cut,
        "usage_in": usage_in,
        "split_bytes": split_bytes,
        "error": dict(error) if isinstance(error, Mapping) else error,
        "error_after": error_after,
        "error_key": error_key,
        "keep_alive": keep_alive,
        "tool_fragments": tool_fragments,
        "tool_index": tool_index,
        "dialect": dialect,
        "ending": ending,
    }
    if line_end not in ("\n", "\r\n", "\r"):
        raise ValueError(f"line_end must be LF, CRLF or CR, not {line_end!r}")
    if split_bytes is not None and split_bytes < 1:
        raise ValueError(f"split_bytes must be at least 1, not {split_bytes}")
    if event_bytes is not None:
        answer["size_bytes"] = event_bytes
        answer["chunk_chars"] = event_bytes
    return _answer(answer) | {"wire": wire}


def responses(
    *,
    ending: Literal["completed", "failed", "incomplete"] = "completed",
    event_names: bool = True,
    **answer: Unpack[AnswerOptions],
) -> Behaviour:
    """A stream of Responses API events: ``sse`` in that dialect."""
    return sse(dialect="responses", ending=ending, event_names=event_names, **answer)


def json_for_stream(**answer: Unpack[AnswerOptions]) -> Behaviour:
    """One JSON body although a stream was asked for."""
    return _answer(answer) | {"as": "json"}


def sse_for_json(stream: Behaviour | None = None) -> Behaviour:
    """An event stream although one JSON body was asked for; ``stream`` as made by sse()."""
    return (stream or sse(usage_in="last")) | {"as": "sse"}


def wrong_usage(kind: UsageKind, **answer: Unpack[AnswerOptions]) -> Behaviour:
    """A normal answer whose ``usage`` is spelt or valued in an unusual way.

    ``provider_cost`` is a usual usage with the gateway's own ``cost`` in USD.
    """
    usage = _WRONG_USAGE[kind]
    answer["usage"] = usage
    return _answer(answer)


_WRONG_USAGE: dict[UsageKind, Mapping[str, Any] | Literal["missing", "null"]] = {
    "negative": {"prompt_tokens": -12, "completion_tokens": -8, "total_tokens": -20},
    "strings": {"prompt_tokens": "12", "completion_tokens": "8", "total_tokens": "20"},
    "missing_fields": {"total_tokens": 20},
    "missing": "missing",
    "null": "null",
    "floats": {"prompt_tokens": 12.0, "completion_tokens": 8.5, "total_tokens": 20.5},
    "input_output_names": {
        "input_tokens": 12,
        "output_tokens": 8,
        "total_tokens": 20,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens_details": {"reasoning_tokens": 2},
    },
    "cache_hit_names": {
        "prompt_tokens": 12,
        "completion_tokens": 8,
        "total_tokens": 20,
        "prompt_cache_hit_tokens": 4,
        "prompt_cache_miss_tokens": 8,
    },
    "provider_cost": {
        "prompt_tokens": 12,
        "completion_tokens": 8,
        "total_tokens": 20,
        "cost": 0.00123,
    },
}


def model_list(*ids: str, latency_ms: float | None = None) -> Behaviour:
    """For ``model="@models"``: the model list holds these ids."""
    return {"kind": "models", "ids": list(ids), "latency_ms": latency_ms}


def _answer(options: Mapping[str, Any]) -> Behaviour:
    size_bytes = options.get("size_bytes") or 0
    if not 0 <= size_bytes <= MAX_ANSWER_BYTES:
        raise ValueError(f"size_bytes must be 0 to {MAX_ANSWER_BYTES}, not {size_bytes}")
    if (options.get("chunk_chars") or 1) < 1:
        raise ValueError(f"chunk_chars must be at least 1, not {options['chunk_chars']}")
    for name in ("latency_ms", "chunk_delay_ms"):
        _check_span(name, float(options.get(name) or 0.0) / 1000.0)
    given = {name: option for name, option in options.items() if option is not None}
    return {"kind": "answer", **given}


def _check_span(name: str, seconds: float) -> None:
    if not 0.0 <= seconds <= MAX_PAUSE_S:
        raise ValueError(f"{name} must lie between 0 and {MAX_PAUSE_S:g} s, not {seconds:g} s")
