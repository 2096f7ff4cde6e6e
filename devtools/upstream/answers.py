"""What the simulated model says: a deterministic answer to a chat request, and its JSON body.

The text repeats the beginning of the last user message and ends in a hash of the whole request but
for ``stream`` and ``stream_options``: equal requests get equal answers, streamed or not, and
different requests different ones. A token is four bytes of UTF-8, an image is 85 tokens; half of a
prompt of 1,024 tokens or more counts as read from the provider's cache.
"""

import hashlib
import json
import marshal
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from devtools.upstream.schema import example_of

__all__ = [
    "Answer",
    "Call",
    "answer_to",
    "completion_body",
    "encode",
    "is_plain",
    "logprobs_of",
    "plain_body",
    "prompt_filter_results",
    "tokens",
]

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

_QUOTED_CHARS = 200
_TOKENS_PER_IMAGE = 85
_TOKENS_PER_MESSAGE = 4
_REASONING_TOKENS = {"minimal": 8, "low": 32, "medium": 64, "high": 128}
_MAX_CHOICES = 128
_LONG_CHUNK_CHARS = 1000
_CACHED_FROM_TOKENS = 1024
_NOT_ABOUT_THE_ANSWER = frozenset({"kind", "latency_ms"})
_OUT_OF_THE_ORDINARY = frozenset({"n", "tools", "response_format", "logprobs", "reasoning_effort"})
_WORDS = re.compile(r"\S+\s*|\s+")
_FILLER = "lorem ipsum dolor sit amet consectetur adipiscing elit "
_PROMPT_FILTER = [
    {
        "prompt_index": 0,
        "content_filter_results": {
            "hate": {"filtered": False, "severity": "safe"},
            "violence": {"filtered": False, "severity": "safe"},
        },
    }
]


@dataclass(frozen=True, slots=True)
class Call:
    """One request to be answered. ``request`` is its JSON body; ``number`` counts requests."""

    request: dict[str, Any]
    number: int
    created_s: int

    @property
    def stream(self) -> bool:
        """Whether an event stream was asked for."""
        return self.request.get("stream") is True

    @property
    def include_usage(self) -> bool:
        """Whether the stream is to end in a usage chunk."""
        options = self.request.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said, independent of the form in which it is sent.

    ``texts``   one for each choice; None where there are only tool calls or a refusal.
    ``pieces``  the deltas of a stream where they were given, else None: then word by word.
    ``usage``   a mapping, ``missing`` or ``null``.
    """

    model: str
    texts: list[str | None]
    finish_reason: str
    usage: Mapping[str, Any] | Literal["missing", "null"]
    pieces: list[str] | None = None
    reasoning: str | None = None
    reasoning_style: str = "reasoning_content"
    tool_calls: list[dict[str, Any]] | None = None
    refusal: str | None = None
    logprobs: bool = False
    content_parts: bool = False
    prompt_filter: bool = False

    def text_pieces(self, choice: int = 0) -> list[str]:
        """The deltas of one choice, in which a ``think`` block stands before the text."""
        text = self.texts[choice]
        if text is None:
            return []
        pieces = self.pieces if self.pieces is not None else _WORDS.findall(text)
        if self.reasoning and self.reasoning_style == "think":
            return [*_WORDS.findall(f"<think>\n{self.reasoning}\n</think>\n\n"), *pieces]
        return pieces

    def reasoning_pieces(self) -> list[str]:
        """The deltas of the reasoning where it has a field of its own."""
        if not self.reasoning or self.reasoning_style == "think":
            return []
        return _WORDS.findall(self.reasoning)


def tokens(text: str) -> int:
    """The number of tokens that this server counts in ``text``."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)


def answer_to(request: dict[str, Any], options: Mapping[str, Any]) -> Answer:
    """The answer to ``request``, with the ``AnswerOptions`` in ``options`` laid over it."""
    digest = _digest(request)
    prompt = _Prompt.of(request)
    own = _own_answer(request, prompt, digest)
    return own if is_plain(options) else _overlaid(own, options, prompt, digest)


def is_plain(options: Mapping[str, Any]) -> bool:
    """Whether a behaviour says nothing about what is answered."""
    return options.keys() <= _NOT_ABOUT_THE_ANSWER


def completion_body(answer: Answer, call: Call) -> bytes:
    """``answer`` as the JSON body of a chat completion."""
    body: dict[str, Any] = {
        "id": f"chatcmpl-{call.number:08d}",
        "object": "chat.completion",
        "created": call.created_s,
        "model": answer.model,
        "choices": [_choice(answer, index) for index in range(len(answer.texts))],
    }
    if answer.usage != "missing":
        body["usage"] = None if answer.usage == "null" else answer.usage
    if answer.prompt_filter:
        body["prompt_filter_results"] = _PROMPT_FILTER
    return encode(body).encode("utf-8", "replace")


def plain_body(call: Call) -> bytes | None:
    """``completion_body`` of the own answer to an ordinary request, at a third of the cost.

    None if there is anything to the request that has to be looked at more closely.
    """
    request = call.request
    if call.stream or not _OUT_OF_THE_ORDINARY.isdisjoint(request):
        return None
    prompt = _Prompt()
    for message in request["messages"]:
        content = message.get("content")
        if not isinstance(content, str):
            return None
        prompt.tokens += _TOKENS_PER_MESSAGE + tokens(content)
        if message.get("role") == "user":
            prompt.last_user_text = content
    text = f"{_quote(prompt)} [{_digest(request)}]"
    said = tokens(text)
    room = request.get("max_completion_tokens") or request.get("max_tokens") or said
    if prompt.tokens >= _CACHED_FROM_TOKENS or not isinstance(room, int) or room < said:
        return None
    model = encode(request.get("model") or "unknown")
    counts = (prompt.tokens, said, prompt.tokens + said)
    body = _PREPARED % (call.number, call.created_s, model, encode(text), *counts)
    return body.encode("utf-8", "replace")


def prompt_filter_results() -> list[dict[str, Any]]:
    """Azure's verdict on the prompt: nothing was filtered."""
    return _PROMPT_FILTER


def logprobs_of(pieces: list[str]) -> dict[str, Any]:
    """The ``logprobs`` of some pieces of text, each counted as one token."""
    return {
        "content": [
            {
                "token": piece,
                "logprob": -0.25,
                "bytes": list(piece.encode("utf-8", "replace")),
                "top_logprobs": [],
            }
            for piece in pieces
        ],
        "refusal": None,
    }


def _choice(answer: Answer, index: int) -> dict[str, Any]:
    text = answer.texts[index]
    content: Any = text
    if text is not None and answer.reasoning and answer.reasoning_style == "think":
        content = f"<think>\n{answer.reasoning}\n</think>\n\n{text}"
    if answer.content_parts and text is not None:
        content = [{"type": "text", "text": content}]
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": answer.refusal}
    if answer.reasoning and answer.reasoning_style != "think":
        message[answer.reasoning_style] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = answer.tool_calls
    logprobs = logprobs_of(answer.text_pieces(index)) if answer.logprobs else None
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": answer.finish_reason,
    }


def _digest(request: dict[str, Any]) -> str:
    core = sorted(part for part in request.items() if part[0] not in ("stream", "stream_options"))
    # Format 2 of marshal depends on the values alone, and takes a fifth of the time of json.
    return hashlib.blake2b(marshal.dumps(core, 2), digest_size=4).hexdigest()


@dataclass(slots=True)
class _Prompt:
    """What the messages hold. ``image_bytes`` counts data URLs; other images count as nothing."""

    last_user_text: str = ""
    tokens: int = 3
    images: int = 0
    image_bytes: int = 0

    @classmethod
    def of(cls, request: dict[str, Any]) -> "_Prompt":
        prompt = cls()
        for message in request["messages"]:
            content = message.get("content")
            text = content if isinstance(content, str) else prompt._read_parts(content)
            prompt.tokens += _TOKENS_PER_MESSAGE + tokens(text)
            if message.get("role") == "user":
                prompt.last_user_text = text
        prompt.tokens += prompt.images * _TOKENS_PER_IMAGE
        if request.get("tools"):
            prompt.tokens += tokens(encode(request["tools"]))
        return prompt

    def _read_parts(self, parts: Any) -> str:
        texts = []
        for part in parts if isinstance(parts, list) else ():
            if not isinstance(part, dict):
                continue
            if part.get("type") == "text":
                texts.append(str(part.get("text", "")))
            elif part.get("type") == "image_url":
                self.images += 1
                self.image_bytes += _data_url_bytes(part.get("image_url"))
        return " ".join(texts)


def _data_url_bytes(image: Any) -> int:
    url = image.get("url", "") if isinstance(image, dict) else image
    if not isinstance(url, str) or not url.startswith("data:"):
        return 0
    encoded = url.partition(",")[2].rstrip("=")
    return len(encoded) * 3 // 4


def _own_answer(request: dict[str, Any], prompt: _Prompt, digest: str) -> Answer:
    """What the request alone leads to."""
    tool_calls = _own_tool_calls(request, prompt, digest) if "tools" in request else None
    texts: list[str | None] = [None]
    finish_reason = "tool_calls"
    reasoning_tokens = 0
    if tool_calls is None:
        room = request.get("max_completion_tokens") or request.get("max_tokens")
        room = room if isinstance(room, int) and room > 0 else None
        if "reasoning_effort" in request:
            reasoning_tokens = _REASONING_TOKENS.get(str(request["reasoning_effort"]), 0)
            if room is not None:
                reasoning_tokens = min(reasoning_tokens, room // 2)
                room = max(1, room - reasoning_tokens)
        texts, was_cut = _own_texts(request, prompt, digest, room)
        finish_reason = "length" if was_cut else "stop"
    return Answer(
        model=request.get("model") or "unknown",
        texts=texts,
        finish_reason=finish_reason,
        usage=_usage(prompt, texts, tool_calls, reasoning_tokens),
        tool_calls=tool_calls,
        logprobs=bool(request.get("logprobs")),
    )


def _overlaid(own: Answer, options: Mapping[str, Any], prompt: _Prompt, digest: str) -> Answer:
    """``own`` with the options: a given text or tool calls take the place of what was there."""
    texts, tool_calls, finish_reason = own.texts, own.tool_calls, own.finish_reason
    given_text = _given_text(options)
    given_calls = _given_tool_calls(options, digest)
    if given_text is not None or given_calls is not None or options.get("refusal") is not None:
        texts, tool_calls = [given_text], given_calls
        finish_reason = "stop" if given_calls is None else "tool_calls"
    reasoning = options.get("reasoning")
    usage = options.get("usage")
    if usage is None:
        reasoning_tokens = tokens(reasoning) if reasoning else 0
        usage = _usage(prompt, texts, tool_calls, reasoning_tokens)
        usage = own.usage if texts is own.texts and not reasoning else usage
    return replace(
        own,
        model=options.get("model") or own.model,
        texts=texts,
        finish_reason=options.get("finish_reason") or finish_reason,
        usage=usage,
        pieces=_given_pieces(options, given_text),
        reasoning=reasoning,
        reasoning_style=options.get("reasoning_style") or own.reasoning_style,
        tool_calls=tool_calls,
        refusal=options.get("refusal"),
        logprobs=bool(options.get("logprobs", own.logprobs)),
        content_parts=bool(options.get("content_parts")),
        prompt_filter=bool(options.get("prompt_filter")),
    )


def _usage(
    prompt: _Prompt,
    texts: list[str | None],
    tool_calls: list[dict[str, Any]] | None,
    reasoning_tokens: int,
) -> dict[str, Any]:
    """Usage as OpenAI reports it: reasoning within the completion, cached tokens by the 128."""
    completion_tokens = reasoning_tokens
    for text in texts:
        if text:
            completion_tokens += tokens(text)
    for call in tool_calls or ():
        completion_tokens += tokens(encode(call["function"]))
    cached_tokens = 0
    if prompt.tokens >= _CACHED_FROM_TOKENS:
        cached_tokens = prompt.tokens // 2 // 128 * 128
    return {
        "prompt_tokens": prompt.tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt.tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def _prepared() -> str:
    """The body of an ordinary answer, with places for what differs from one to the next."""
    usage = _usage(_Prompt(tokens=0), [], None, 0) | {
        "prompt_tokens": "@number",
        "completion_tokens": "@number",
        "total_tokens": "@number",
    }
    answer = Answer(model="@text", texts=["@text"], finish_reason="stop", usage=usage)
    body = completion_body(answer, Call({}, number=0, created_s=0)).decode()
    body = body.replace("-00000000", "-%08d").replace('"created":0', '"created":%d')
    return body.replace('"@text"', "%s").replace('"@number"', "%d")


_PREPARED = _prepared()


def _own_texts(
    request: dict[str, Any], prompt: _Prompt, digest: str, room: int | None
) -> tuple[list[str | None], bool]:
    """The texts of all choices, and whether ``room`` (tokens) cut the first of them."""
    wanted = request.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_schema":
        declared = wanted.get("json_schema") if isinstance(wanted, dict) else None
        schema = declared.get("schema", {}) if isinstance(declared, dict) else {}
        text = encode(example_of(schema, digest))
    elif kind == "json_object":
        text = encode({"answer": _quote(prompt), "id": digest})
    else:
        images = f"You sent {prompt.images} images, {prompt.image_bytes} bytes in all. "
        text = f"{_quote(prompt)} {images if prompt.images else ''}[{digest}]"
    count = request.get("n")
    count = min(count, _MAX_CHOICES) if isinstance(count, int) and count > 1 else 1
    texts = [text, *(f"{text} ({index})" for index in range(1, count))]
    if kind is not None and kind != "text":
        texts = [text] * count
    if room is None or tokens(text) <= room:
        return [*texts], False
    return [_cut(each, room) for each in texts], True


def _quote(prompt: _Prompt) -> str:
    text = prompt.last_user_text
    return f"You said: {text if len(text) <= _QUOTED_CHARS else text[:_QUOTED_CHARS] + '...'}"


def _cut(text: str, room: int) -> str:
    return text.encode("utf-8", "replace")[: room * 4].decode("utf-8", "ignore")


def _given_text(options: Mapping[str, Any]) -> str | None:
    if options.get("text") is not None:
        return str(options["text"])
    if options.get("chunks") is not None:
        return "".join(options["chunks"])
    size = options.get("size_bytes")
    if size is not None:
        return (_FILLER * (int(size) // len(_FILLER) + 1))[: int(size)]
    return None


def _given_pieces(options: Mapping[str, Any], text: str | None) -> list[str] | None:
    if options.get("chunks") is not None:
        return list(options["chunks"])
    size = options.get("chunk_chars")
    if size is None and options.get("size_bytes") is not None:
        size = _LONG_CHUNK_CHARS
    if size is None or text is None:
        return None
    return [text[at : at + size] for at in range(0, len(text), size)]


def _given_tool_calls(options: Mapping[str, Any], digest: str) -> list[dict[str, Any]] | None:
    given = options.get("tool_calls")
    if not given:
        return None
    return [_tool_call(call, f"{digest}{index}") for index, call in enumerate(given)]


def _own_tool_calls(
    request: dict[str, Any], prompt: _Prompt, digest: str
) -> list[dict[str, Any]] | None:
    """A call of one offered function, where tool_choice or the words "use a tool" ask for it."""
    choice = request.get("tool_choice")
    forced = isinstance(choice, dict) or choice == "required"
    if choice == "none" or not (forced or "use a tool" in prompt.last_user_text):
        return None
    wanted = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    function = next((f for f in _functions(request) if wanted in (None, f.get("name"))), None)
    if function is None:
        return None
    arguments = example_of(function.get("parameters") or {"type": "object"}, digest)
    return [_tool_call({"name": function.get("name", ""), "arguments": arguments}, digest)]


def _functions(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for tool in request.get("tools") or ():
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
            yield tool["function"]


def _tool_call(call: Mapping[str, Any], digest: str) -> dict[str, Any]:
    arguments = call.get("arguments", {})
    return {
        "id": call.get("id") or f"call_{digest}",
        "type": "function",
        "function": {
            "name": call["name"],
            "arguments": arguments if isinstance(arguments, str) else encode(arguments),
        },
    }
