"""An answer as server-sent events: which events there are, and how they are spelt in bytes.

Chat chunks follow OpenAI's ``chat.completion.chunk``; the dialect ``responses`` follows the events
of the Responses API. The spellings are those that https://html.spec.whatwg.org/multipage/
server-sent-events.html allows (LF, CRLF and CR, comments, several data lines, a byte order mark).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from devtools.upstream.answers import (
    Answer,
    Call,
    encode,
    logprobs_of,
    prompt_filter_results,
    tokens,
)

__all__ = ["DEFAULT_WIRE", "Piece", "stream_pieces"]

DEFAULT_WIRE: dict[str, Any] = {
    "line_end": "\n",
    "space": True,
    "done": True,
    "final_newline": True,
    "finish": True,
    "usage_in": "asked",
    "tool_fragments": 3,
    "tool_index": True,
    "dialect": "chat",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one HTTP chunk. ``is_text`` where they carry text, the others go along unpaced."""

    body: bytes
    is_text: bool


@dataclass(frozen=True, slots=True)
class _Event:
    data: str
    name: str | None = None
    is_text: bool = False


def stream_pieces(answer: Answer, call: Call, wire: Mapping[str, Any]) -> list[Piece]:
    """The whole stream, one piece for each event unless ``split_bytes`` cuts it otherwise."""
    if wire["dialect"] == "responses":
        events = _responses_events(answer, call, wire)
    else:
        events = _chat_events(answer, call, wire)
    if wire["done"] and not wire.get("cut"):
        events.append(_Event("[DONE]", name="done"))
    pieces = _spelt(events, wire)
    size = wire.get("split_bytes")
    if not size:
        return pieces
    whole = b"".join(piece.body for piece in pieces)
    return [Piece(whole[at : at + size], is_text=True) for at in range(0, len(whole), size)]


def _spelt(events: list[_Event], wire: Mapping[str, Any]) -> list[Piece]:
    end: str = wire["line_end"]
    field = "data: " if wire["space"] else "data:"
    plain = not any(map(wire.get, ("event_names", "data_lines", "comments", "keep_alive")))
    if end == "\n" and plain:
        spelt = [f"{field}{event.data}\n\n" for event in events]
    else:
        spelt = [_spelt_event(event, field, end, wire) for event in events]
    if wire.get("bom") and spelt:
        spelt[0] = "\ufeff" + spelt[0]
    if not wire["final_newline"] and spelt:
        spelt[-1] = spelt[-1].rstrip("\r\n")
    return [
        Piece(text.encode("utf-8", "replace"), event.is_text)
        for text, event in zip(spelt, events, strict=True)
    ]


def _spelt_event(event: _Event, field: str, end: str, wire: Mapping[str, Any]) -> str:
    lines = [": keep-alive", ""] if wire.get("comments") else []
    if wire.get("keep_alive"):
        lines += [field + wire["keep_alive"], ""]
    if wire.get("event_names") and event.name:
        lines.append(f"event: {event.name}")
    data = [event.data]
    if wire.get("data_lines") and event.data.startswith("{"):
        data = json.dumps(json.loads(event.data), ensure_ascii=False, indent=0).split("\n")
    lines.extend(field + line for line in data)
    return end.join([*lines, "", ""])


def _chat_events(answer: Answer, call: Call, wire: Mapping[str, Any]) -> list[_Event]:
    chunks = _ChatChunks(answer, call, wire)
    choices = range(len(answer.texts))
    events = []
    if answer.prompt_filter:
        events.append(chunks.without_choices({"prompt_filter_results": prompt_filter_results()}))
    events.extend(chunks.delta(index, {"role": "assistant", "content": ""}) for index in choices)
    text_events = [*_text_deltas(answer, chunks), *_tool_deltas(answer, chunks, wire)]
    if wire.get("error") is not None:
        kept = text_events[: wire.get("error_after") or 0]
        return [*events, *kept, _Event(_error_data(wire), name="error")]
    events.extend(text_events)
    if wire.get("cut"):
        return events
    if wire["finish"]:
        events.extend(chunks.last(index) for index in choices)
    if chunks.has_usage_chunk:
        events.append(chunks.without_choices({"usage": answer.usage}))
    return events


def _error_data(wire: Mapping[str, Any]) -> str:
    error = wire["error"]
    if not wire.get("error_key", True):
        return encode(error)
    message = {"message": error} if isinstance(error, str) else {}
    return encode({"error": error, **message})


def _text_deltas(answer: Answer, chunks: "_ChatChunks") -> Iterator[_Event]:
    for piece in answer.reasoning_pieces():
        for index in range(len(answer.texts)):
            yield chunks.delta(index, {answer.reasoning_style: piece}, text=piece)
    if answer.refusal is not None:
        yield chunks.delta(0, {"refusal": answer.refusal}, text=answer.refusal)
    by_choice = [answer.text_pieces(index) for index in range(len(answer.texts))]
    for position in range(max(map(len, by_choice))):
        for index, pieces in enumerate(by_choice):
            if position < len(pieces):
                piece = pieces[position]
                content = [{"type": "text", "text": piece}] if answer.content_parts else piece
                yield chunks.delta(index, {"content": content}, text=piece)


def _tool_deltas(
    answer: Answer, chunks: "_ChatChunks", wire: Mapping[str, Any]
) -> Iterator[_Event]:
    for position, call in enumerate(answer.tool_calls or ()):
        place = {"index": position} if wire["tool_index"] else {}
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        opening = {**place, "id": call["id"], "type": "function"}
        yield chunks.delta(
            0, {"tool_calls": [{**opening, "function": {"name": name, "arguments": ""}}]}, text=name
        )
        for part in _fragments(arguments, wire["tool_fragments"]):
            yield chunks.delta(
                0, {"tool_calls": [{**place, "function": {"arguments": part}}]}, text=part
            )


def _fragments(text: str, count: int) -> list[str]:
    size = max(1, -(-len(text) // max(1, count)))
    return [text[at : at + size] for at in range(0, len(text), size)]


class _ChatChunks:
    """Builds chunks; what all chunks of a stream share is encoded once."""

    def __init__(self, answer: Answer, call: Call, wire: Mapping[str, Any]) -> None:
        self._answer = answer
        self._usage_in = "missing" if answer.usage == "missing" else wire["usage_in"]
        if answer.usage == "null":
            self._usage_in = "null"
        self._head = (
            f'{{"id":"chatcmpl-{call.number:08d}","object":"chat.completion.chunk",'
            f'"created":{call.created_s},"model":{encode(answer.model)},"choices":['
        )
        self.has_usage_chunk = self._usage_in == "asked" and call.include_usage
        self._tail = ',"usage":null}' if self.has_usage_chunk or self._usage_in == "null" else "}"
        self._said_tokens = 0

    def delta(self, index: int, delta: dict[str, Any], *, text: str = "") -> _Event:
        logprobs = "null"
        if self._answer.logprobs and text:
            logprobs = encode(logprobs_of([text]))
        choice = (
            f'{{"index":{index},"delta":{encode(delta)},"logprobs":{logprobs},'
            '"finish_reason":null}'
        )
        tail = self._tail
        if self._usage_in == "every":
            self._said_tokens += tokens(text)
            tail = f',"usage":{encode(self._usage_so_far())}}}'
        return _Event(f"{self._head}{choice}]{tail}", is_text=bool(text))

    def last(self, index: int) -> _Event:
        reason = encode(self._answer.finish_reason)
        choice = f'{{"index":{index},"delta":{{}},"logprobs":null,"finish_reason":{reason}}}'
        tail = self._tail
        if self._usage_in in ("last", "every"):
            tail = f',"usage":{encode(self._answer.usage)}}}'
        return _Event(f"{self._head}{choice}]{tail}")

    def without_choices(self, fields: dict[str, Any]) -> _Event:
        return _Event(f"{self._head}],{encode(fields)[1:]}")

    def _usage_so_far(self) -> dict[str, Any]:
        usage = self._answer.usage if isinstance(self._answer.usage, Mapping) else {}
        prompt_tokens = usage.get("prompt_tokens", 0)
        prompt_tokens = prompt_tokens if isinstance(prompt_tokens, int) else 0
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self._said_tokens,
            "total_tokens": prompt_tokens + self._said_tokens,
        }


def _responses_events(answer: Answer, call: Call, wire: Mapping[str, Any]) -> list[_Event]:
    log = _ResponsesLog(answer, call)
    log.add("response.created", response=log.response("in_progress", []))
    for piece in answer.reasoning_pieces():
        log.add(
            "response.reasoning_summary_text.delta",
            is_text=True,
            item_id="rs_0",
            output_index=0,
            summary_index=0,
            delta=piece,
        )
    for piece in answer.text_pieces():
        log.add(
            "response.output_text.delta",
            is_text=True,
            item_id="msg_0",
            output_index=0,
            content_index=0,
            delta=piece,
        )
    if wire.get("error") is not None:
        kept = log.events[: 1 + (wire.get("error_after") or 0)]
        return [*kept, _Event(_error_data(wire), name="error")]
    items = _responses_items(answer)
    for index, item in enumerate(items):
        log.add("response.output_item.done", output_index=index, item=item)
    if wire.get("cut") or not wire["finish"]:
        return log.events
    ending = wire.get("ending") or "completed"
    log.add(f"response.{ending}", response=log.response(ending, items))
    return log.events


def _responses_items(answer: Answer) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if answer.texts[0] is not None:
        content = [{"type": "output_text", "text": answer.texts[0], "annotations": []}]
        items.append(
            {
                "type": "message",
                "id": "msg_0",
                "status": "completed",
                "role": "assistant",
                "content": content,
            }
        )
    items.extend(
        {
            "type": "function_call",
            "id": f"fc_{index}",
            "call_id": call["id"],
            "status": "completed",
            **call["function"],
        }
        for index, call in enumerate(answer.tool_calls or ())
    )
    return items


class _ResponsesLog:
    """Collects the events of one response with their sequence numbers."""

    def __init__(self, answer: Answer, call: Call) -> None:
        self.events: list[_Event] = []
        self._answer = answer
        self._call = call

    def add(self, name: str, *, is_text: bool = False, **fields: Any) -> None:
        data = {"type": name, "sequence_number": len(self.events), **fields}
        self.events.append(_Event(encode(data), name=name, is_text=is_text))

    def response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        error = {"code": "server_error", "message": "The model failed to answer."}
        return {
            "id": f"resp_{self._call.number:08d}",
            "object": "response",
            "created_at": self._call.created_s,
            "status": status,
            "model": self._answer.model,
            "output": output,
            "error": error if status == "failed" else None,
            "incomplete_details": (
                {"reason": "max_output_tokens"} if status == "incomplete" else None
            ),
            "usage": None if status in ("in_progress", "failed") else self._usage(),
        }

    def _usage(self) -> Mapping[str, Any] | None:
        usage = self._answer.usage
        if not isinstance(usage, Mapping):
            return None
        if "prompt_tokens_details" not in usage or "completion_tokens_details" not in usage:
            return usage
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": usage["completion_tokens_details"],
            "total_tokens": usage["total_tokens"],
        }
