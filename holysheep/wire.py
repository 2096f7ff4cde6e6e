"""The chat completion wire format: what is sent, and everything that comes back in its name.

Read are OpenAI's JSON bodies and chunk streams, the events and bodies of the Responses API that
some gateways answer with, and the spellings in use for reasoning (``reasoning_content``,
``reasoning``, a leading ``<think>`` block) and for usage. An answer counts as complete when a
finish reason was seen, a ``[DONE]``, or a Responses event that says so.

Sources: platform.openai.com/docs/api-reference/chat and /responses-streaming, read 2026-11.
"""

import json
from collections.abc import Iterable, Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

import httpx
from httpx_sse import EventSource, ServerSentEvent

from holysheep.errors import BadResponse, ConnectFailed
from holysheep.faults import error_in_body, shown_id, with_id
from holysheep.jsontext import (
    ends_in_half,
    parse_json,
    whole_characters,
    with_whole_characters,
)
from holysheep.quirks import RENAMED
from holysheep.types import ChatRequest, Choice, Completion, Delta, JsonObject, Usage

_OUTER_KEYS = ("message", "detail", "resetAt", "code")
"""What is read of an error beside its ``error`` value."""
# One a second for as long as a call may take. A line that long, or one in which JSON begins, may be
# a spoilt piece of the answer.
_MAX_SIGNS_OF_LIFE = 600
_MAX_SIGN_CHARS = 200

# Beyond these a count or cost is no report but a fault.
_MAX_TOKENS = 10**9
_MAX_COST_USD = 10**6


def encode(request: ChatRequest, *, stream: bool, left_out: tuple[str, ...] = ()) -> bytes:
    """The body to send, as UTF-8 JSON, without the parameters that the model refuses."""
    body = request.canonical()
    if left_out:
        kept = {name: value for name, value in request.body.items() if name not in left_out}
        for name in left_out:
            if name in RENAMED and name in request.body:
                # An author who knows the other name has said what he wants.
                kept.setdefault(RENAMED[name], request.body[name])
        body = ChatRequest(kept).canonical()
    if not stream:
        return body
    if "stream_options" in left_out:
        return body[:-1] + b',"stream":true}'
    return body[:-1] + b',"stream":true,"stream_options":{"include_usage":true}}'


def server_sent_events(pieces: Iterable[bytes]) -> Iterator[ServerSentEvent]:
    """The server-sent events with any data, in a body that comes in pieces."""
    body = _Pieces(pieces)
    source = httpx.Response(
        200, headers={"content-type": "text/event-stream; charset=utf-8"}, stream=body
    )
    for event in EventSource(source).iter_sse():
        data = event.data.strip()
        # The last event counts without an end of its own too, unless it was cut off.
        if data and not (body.has_ended and not _is_whole(data)):
            yield event


class _Pieces(httpx.SyncByteStream):
    """A body without a byte order mark, and with an end to its last event."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self.has_ended = False

    def __iter__(self) -> Iterator[bytes]:
        first = True
        for piece in self._pieces:
            yield piece.removeprefix(b"\xef\xbb\xbf") if first else piece
            first = False
        self.has_ended = True
        yield b"\n\n"


def _is_whole(data: str) -> bool:
    try:
        return data == "[DONE]" or isinstance(parse_json(data), dict)
    except ValueError:
        return False


BLANK_START = b"\xef\xbb\xbf \t\r\n"
"""What may stand before the first byte that tells what a body is: a byte order mark, blanks."""


_EVENT_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")


def looks_like_events(start: bytes) -> bool:
    """Whether a body is an event stream, by its first six bytes or more."""
    return start.lstrip(BLANK_START).startswith(_EVENT_FIELDS)


def _is_sign_of_life(data: str) -> bool:
    """Whether an event's data only keeps the connection open: ``ping``, ``OPENROUTER PROCESSING``.

    It should be a comment, and some gateways send it as data.
    """
    if "{" in data or len(data) > _MAX_SIGN_CHARS:
        return False
    try:
        parse_json(data)
    except ValueError:
        return True
    return False


def _is_error(part: JsonObject) -> bool:
    """Whether an event that does not call itself an error is one by its form."""
    if part.get("object") == "error":
        return True
    if part.keys() & {"choices", "object", "type"}:
        return False
    return bool(part.get("detail")) or ("code" in part and isinstance(part.get("message"), str))


class Assembler:
    """Turns the parts of one answer into deltas, and in the end into the completion.

    Raises the upstream's own error where a part carries one, ``BadResponse`` where a part is no
    chat completion, ``ConnectFailed`` where the answer has no end.
    """

    def __init__(
        self,
        asked_model: str,
        *,
        request_id: str | None,
        wall_s: float,
        secrets: tuple[str, ...] = (),
        answers: int | None = None,
    ) -> None:
        """``answers`` is how many choices were asked for, ``None`` where that is not known."""
        self._answers = answers
        self._only: int | None = None
        self._asked_model = asked_model
        self._request_id = request_id
        self._wall_s = wall_s
        self._secrets = secrets
        self._model = ""
        self._choices: dict[int, _ChoiceParts] = {}
        self._usage: Usage | None = None
        self._signs_of_life = 0
        self.has_ended = False
        """Whether a mark was seen behind which nothing of the answer follows."""

    @property
    def is_complete(self) -> bool:
        """Whether all text is there: what may follow is the usage and the end mark."""
        return self.has_ended or (
            self._has_all_reasons and len(self._choices) >= (self._answers or 1)
        )

    def feed_event(self, event: ServerSentEvent) -> Iterator[Delta]:
        """Take an event: ``[DONE]``, an error, a sign of life, or what ``feed`` takes."""
        data = event.data.strip()
        calls_itself_error = event.event == "error"
        if data == "[DONE]":
            self.has_ended = True
        elif _is_sign_of_life(data):
            if calls_itself_error:
                # Text of whatever origin, which is not shown.
                raise self._error({}, {})
            self._signs_of_life += 1
            if self._signs_of_life > _MAX_SIGNS_OF_LIFE:
                raise self._bad("is not valid JSON")
        else:
            part = self._parsed(data)
            if calls_itself_error or _is_error(part):
                raise self._error(part.get("error") or part, part)
            yield from self.feed(part)

    def feed_body(self, body: bytes) -> Iterator[Delta]:
        """Take a whole JSON body."""
        yield from self.feed(self._parsed(body))
        if not self._choices:
            raise self._bad("has no choices")
        self.has_ended = True

    def feed(self, part: JsonObject) -> Iterator[Delta]:
        """Take a chunk, a body, or an event of the Responses API."""
        if part.get("error"):
            raise self._error(part["error"], part)
        kind = part.get("type")
        if isinstance(kind, str) and (kind.startswith("response.") or kind == "error"):
            yield from self._feed_response_event(kind, part)
            return
        if part.get("object") == "response":
            yield from self._feed_response(part)
            return
        self._note(part)
        choices = part.get("choices")
        if choices is None:
            return
        if not isinstance(choices, list):
            raise self._bad("has choices that are no list")
        for position, choice in enumerate(choices):
            if not isinstance(choice, dict):
                raise self._bad("has a choice that is no object")
            index = choice.get("index")
            if not isinstance(index, int):
                index = position
            if self._answers == 1:
                # Who asks for one answer gets the first, whatever number it is given.
                if self._only is None:
                    self._only = index
                if index != self._only:
                    continue
                index = 0
            parts = self._parts(index)
            delta = parts.feed(choice)
            if delta is not None:
                yield delta

    def finish(self) -> Completion:
        """The completion; call it when the body has ended."""
        # What was taken for a sign of life may have been an error in place of the text.
        is_doubtful = self._signs_of_life > 0 and not self._has_all_reasons
        if is_doubtful and (self.has_ended or not self._choices):
            raise self._bad("is not valid JSON")
        if not self.has_ended and not self._has_all_reasons:
            raise ConnectFailed(
                with_id(
                    "The answer broke off before its end. Try again; if it happens again, the"
                    " gateway or a proxy on the way cuts long answers.",
                    self._request_id,
                ),
                request_id=self._request_id,
            )
        if not self._choices:
            raise self._bad("has no choices")
        return Completion(
            asked_model=self._asked_model,
            model=self._model or self._asked_model,
            choices=tuple(self._choices[index].build(index) for index in sorted(self._choices)),
            usage=self._reported_usage(),
            request_id=self._request_id,
        )

    @property
    def has_usage(self) -> bool:
        """Whether upstream has reported usable token counts; no tokens for an answer are none."""
        return self._usage is not None and (
            self._usage.total_tokens > 0 or all(part.is_empty for part in self._choices.values())
        )

    @property
    def _has_all_reasons(self) -> bool:
        """Whether every choice that has begun has its finish reason."""
        choices = self._choices.values()
        return bool(choices) and all(parts.finish_reason is not None for parts in choices)

    def _reported_usage(self) -> Usage:
        if self._usage is None:
            return Usage(estimated=True)
        if self.has_usage:
            return self._usage
        # A cost beside token counts that are none is a report all the same.
        return Usage(provider_cost_usd=self._usage.provider_cost_usd or None, estimated=True)

    def flush(self) -> Iterator[Delta]:
        """What was held back in case it began a tag."""
        for index, parts in self._choices.items():
            text, reasoning = parts.flush()
            if text or reasoning:
                yield Delta(text=text, reasoning=reasoning, index=index)

    def _parts(self, index: int) -> "_ChoiceParts":
        parts = self._choices.get(index)
        if parts is None:
            parts = self._choices[index] = _ChoiceParts(index)
        return parts

    def _note(self, part: JsonObject) -> None:
        if isinstance(part.get("model"), str) and part["model"]:
            self._model = shown_id(whole_characters(part["model"]), *self._secrets)
        usage = parse_usage(part.get("usage"))
        if usage is not None and (usage.total_tokens or self._usage is None):
            self._usage = usage

    def _feed_response_event(self, kind: str, part: JsonObject) -> Iterator[Delta]:
        parts = self._parts(0)
        if kind == "response.output_text.delta":
            yield from _some(parts.add_text(_text_of(part.get("delta"))))
        elif kind in (
            "response.reasoning_summary_text.delta",
            "response.reasoning_text.delta",
        ):
            yield from _some(parts.add_reasoning(_text_of(part.get("delta"))))
        elif kind == "response.output_item.done":
            parts.add_response_item(part.get("item"), with_text=False)
        elif kind in ("response.completed", "response.incomplete"):
            response = part.get("response")
            if isinstance(response, dict):
                self._note(response)
            parts.finish_reason = _response_finish(kind, response, has_tools=parts.has_tools)
            self.has_ended = True
        elif kind in ("response.failed", "error"):
            response = part.get("response")
            inner = response.get("error") if isinstance(response, dict) else None
            raise self._error(inner or part, part)

    def _feed_response(self, response: JsonObject) -> Iterator[Delta]:
        self._note(response)
        parts = self._parts(0)
        for item in _list_of(response.get("output")):
            yield from _some(parts.add_response_item(item, with_text=True))
        kind = f"response.{response.get('status') or 'completed'}"
        if kind not in ("response.completed", "response.incomplete"):
            raise self._bad("did not complete")
        parts.finish_reason = _response_finish(kind, response, has_tools=parts.has_tools)
        self.has_ended = True

    def _parsed(self, data: str | bytes) -> JsonObject:
        try:
            parsed = parse_json(data)
        except ValueError:
            raise self._bad("is not valid JSON") from None
        if not isinstance(parsed, dict):
            raise self._bad("is no JSON object")
        return parsed

    def _error(self, error: Any, outer: JsonObject) -> Exception:
        return error_in_body(
            error,
            model=self._asked_model,
            wall_s=self._wall_s,
            request_id=self._request_id,
            secrets=self._secrets,
            outer={key: outer[key] for key in _OUTER_KEYS if key in outer},
        )

    def _bad(self, what: str) -> BadResponse:
        told = f"The gateway's answer {what}. Check that the base URL is an OpenAI-compatible API."
        return BadResponse(
            with_id(told, self._request_id),
            request_id=self._request_id,
        )


class _ChoiceParts:
    """One choice while it arrives."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._texts: list[str] = []
        self._reasonings: list[str] = []
        self._tools: dict[int, JsonObject] = {}
        self._logprobs: list[Any] = []
        self._think = _ThinkSplitter()
        self._half = ""
        self.finish_reason: str | None = None

    @property
    def has_tools(self) -> bool:
        return bool(self._tools)

    @property
    def is_empty(self) -> bool:
        return not (self._texts or self._reasonings or self._tools)

    def feed(self, choice: JsonObject) -> Delta | None:
        message = choice.get("delta") or choice.get("message") or {}
        if not isinstance(message, dict):
            message = {}
        reasoning = _text_of(message.get("reasoning_content") or message.get("reasoning"))
        text = _text_of(message.get("content")) or _text_of(message.get("refusal"))
        if not text and isinstance(choice.get("text"), str):
            text = choice["text"]
        for position, call in enumerate(_list_of(message.get("tool_calls"))):
            if isinstance(call, dict):
                self._add_tool_call(call, position)
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, dict):
            self._logprobs.extend(_list_of(logprobs.get("content")))
        if isinstance(choice.get("finish_reason"), str) and choice["finish_reason"]:
            self.finish_reason = shown_id(whole_characters(choice["finish_reason"]))
        thought = ""
        if text:
            text, thought = self._think.feed(self._whole(text))
        return self._delta(text, whole_characters(reasoning) + thought)

    def add_text(self, text: str) -> Delta | None:
        text, thought = self._think.feed(self._whole(text))
        return self._delta(text, thought)

    def add_reasoning(self, text: str) -> Delta | None:
        return self._delta("", whole_characters(text))

    def add_response_item(self, item: Any, *, with_text: bool) -> Delta | None:
        """Take an output item of the Responses API; its text only where it came in no deltas."""
        if not isinstance(item, dict):
            return None
        if item.get("type") == "function_call":
            self._tools[len(self._tools)] = {
                "id": str(item.get("call_id") or item.get("id") or ""),
                "type": "function",
                "function": {
                    "name": str(item.get("name") or ""),
                    "arguments": str(item.get("arguments") or ""),
                },
            }
        elif with_text and item.get("type") == "message":
            return self.add_text(_text_of(item.get("content")))
        elif with_text and item.get("type") == "reasoning":
            return self.add_reasoning(_text_of(item.get("summary") or item.get("content")))
        return None

    def flush(self) -> tuple[str, str]:
        text, reasoning = self._think.flush()
        if self._half:
            text, self._half = text + whole_characters(self._half), ""
        self._delta(text, reasoning)
        return text, reasoning

    def _whole(self, text: str) -> str:
        """``text`` without a half of a character at its end, which waits for the other half."""
        text, self._half = self._half + text, ""
        if ends_in_half(text):
            text, self._half = text[:-1], text[-1]
        return whole_characters(text)

    def build(self, index: int) -> Choice:
        finish = self.finish_reason or ("tool_calls" if self._tools else "stop")
        return Choice(
            index=index,
            text="".join(self._texts),
            reasoning="".join(self._reasonings),
            finish_reason=finish,
            tool_calls=tuple(
                with_whole_characters(self._tools[key]) for key in sorted(self._tools)
            ),
            logprobs={"content": self._logprobs} if self._logprobs else None,
        )

    def _delta(self, text: str, reasoning: str) -> Delta | None:
        if not text and not reasoning:
            return None
        if text:
            self._texts.append(text)
        if reasoning:
            self._reasonings.append(reasoning)
        return Delta(text=text, reasoning=reasoning, index=self._index)

    def _add_tool_call(self, call: JsonObject, position: int) -> None:
        """Merge a fragment: by its index, by a new id, else onto the last call."""
        index = call.get("index")
        if not isinstance(index, int):
            known = [key for key, tool in self._tools.items() if tool["id"] == call.get("id")]
            if known:
                index = known[0]
            elif call.get("id") or not self._tools:
                index = len(self._tools)
            else:
                index = max(position, *self._tools)
        tool = self._tools.setdefault(
            index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        if call.get("id"):
            tool["id"] = str(call["id"])
        function = call.get("function")
        if isinstance(function, dict):
            if function.get("name"):
                tool["function"]["name"] = str(function["name"])
            arguments = function.get("arguments")
            if isinstance(arguments, dict):
                arguments = json.dumps(arguments, ensure_ascii=False)
            tool["function"]["arguments"] += str(arguments or "")


class _ThinkSplitter:
    """Takes a ``<think>`` block at the very start of an answer out of its text."""

    _OPEN = "<think>"
    _CLOSE = "</think>"

    def __init__(self) -> None:
        self._state = "start"
        self._held = ""
        self._thought = False

    def feed(self, piece: str) -> tuple[str, str]:
        """The text and the reasoning in ``piece``, as far as they are certain."""
        if self._state == "text":
            return piece, ""
        self._held += piece
        if self._state == "start":
            begun = self._held.lstrip()
            if begun.startswith(self._OPEN):
                self._held = begun[len(self._OPEN) :]
                self._state = "thinking"
            elif self._OPEN.startswith(begun):
                return "", ""
            else:
                return self._as_text()
        if self._state == "thinking":
            thought, closed, rest = self._held.partition(self._CLOSE)
            if not self._thought:
                thought = thought.lstrip()
            if not closed:
                # White space at the end may be the last, which does not count.
                certain = len(thought[: len(thought) - _overlap(thought, self._CLOSE)].rstrip())
                thought, self._held = thought[:certain], thought[certain:]
                self._thought = self._thought or bool(thought)
                return "", thought
            self._held, self._state = rest, "after"
            text, _ = self.feed("")
            return text, thought.rstrip()
        self._held = self._held.lstrip("\n")
        return self._as_text() if self._held else ("", "")

    def flush(self) -> tuple[str, str]:
        """What is left when the answer has ended."""
        held, self._held = self._held, ""
        if self._state == "thinking":
            return "", held.rstrip()
        self._state = "text"
        return held, ""

    def _as_text(self) -> tuple[str, str]:
        held, self._held = self._held, ""
        self._state = "text"
        return held, ""


def parse_usage(raw: Any) -> Usage | None:
    """Token counts from a ``usage`` object in any of its spellings; ``None`` if it has none.

    Counts that are no whole numbers of at least 0 make the object unusable. Anthropic's
    ``input_tokens`` do not include what was read from or written to the cache; ``prompt_tokens``,
    and ``input_tokens`` with details, do.
    """
    if not isinstance(raw, dict):
        return None
    prompt_tokens = _count(_first(raw, "prompt_tokens", "input_tokens"))
    completion_tokens = _count(_first(raw, "completion_tokens", "output_tokens"))
    if prompt_tokens is None or completion_tokens is None:
        return None
    prompt_details = _first(raw, "prompt_tokens_details", "input_tokens_details") or {}
    completion_details = _first(raw, "completion_tokens_details", "output_tokens_details") or {}
    read = _count(raw.get("cache_read_input_tokens")) or 0
    created = _count(raw.get("cache_creation_input_tokens")) or 0
    if raw.get("prompt_tokens") is None and not prompt_details:
        prompt_tokens += read + created
    cached = (
        _detail(prompt_details, "cached_tokens")
        or _count(raw.get("prompt_cache_hit_tokens"))
        or read
    )
    written = _detail(prompt_details, "cache_write_tokens") or created
    cached = min(cached, prompt_tokens)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cached_tokens=cached,
        cache_write_tokens=min(written, prompt_tokens - cached),
        reasoning_tokens=min(_detail(completion_details, "reasoning_tokens"), completion_tokens),
        provider_cost_usd=_cost(_first(raw, "cost", "cost_usd", "total_cost")),
    )


def _first(raw: JsonObject, *names: str) -> Any:
    return next((raw[name] for name in names if raw.get(name) is not None), None)


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= _MAX_TOKENS and value == int(value) else None


def _detail(details: Any, name: str) -> int:
    return (_count(details.get(name)) or 0) if isinstance(details, dict) else 0


def _cost(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        cost = Decimal(str(value)[:64])
    except (InvalidOperation, ValueError):
        return None
    return cost if cost.is_finite() and 0 <= cost <= _MAX_COST_USD else None


def _text_of(content: Any) -> str:
    """Text from a string, or from a list of parts that carry a ``text``."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(
        part if isinstance(part, str) else str(part.get("text") or "")
        for part in content
        if isinstance(part, str | dict)
    )


def _list_of(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _some(delta: Delta | None) -> Iterator[Delta]:
    if delta is not None:
        yield delta


def _response_finish(kind: str, response: Any, *, has_tools: bool) -> str:
    if kind == "response.incomplete":
        details = response.get("incomplete_details") if isinstance(response, dict) else None
        reason = details.get("reason") if isinstance(details, dict) else None
        return "content_filter" if reason == "content_filter" else "length"
    return "tool_calls" if has_tools else "stop"


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``tag``."""
    return next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)
