"""Token counts where nobody has counted: before a call, and where upstream reports none.

An estimate, not a tokenizer: real vocabularies are megabytes that would have to be fetched at run
time. Latin text runs at about four characters a token, scripts whose characters take three bytes
in UTF-8 at about one. Estimates are always marked as such.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from holysheep.types import ChatRequest

TOKENS_PER_MESSAGE = 4
TOKENS_PER_IMAGE = 765
"""What a 1024 x 1024 image costs with the widespread 512-pixel tiling."""


def estimate_tokens(text: str) -> int:
    """Estimated tokens of ``text``; 0 for empty text."""
    if not text:
        return 0
    if text.isascii():
        return 1 + len(text) // 4
    extra_bytes = len(text.encode(errors="replace")) - len(text)
    return 1 + int(len(text) / 4 + extra_bytes * 0.4)


def estimate_prompt_tokens(request: ChatRequest) -> int:
    """Estimated prompt tokens of a request: messages, images, tool definitions."""
    total = 0
    for message in request.body.get("messages", ()):
        total += TOKENS_PER_MESSAGE + _content_tokens(message.get("content"))
        if message.get("tool_calls"):
            total += estimate_tokens(str(message["tool_calls"]))
    if request.body.get("tools"):
        total += estimate_tokens(str(request.body["tools"]))
    return total


def most_prompt_tokens(request: ChatRequest) -> int:
    """An upper bound of the prompt tokens: no tokenizer makes more of a text than it has bytes."""
    # Tools, a schema for the answer, and whatever else may become a part of the prompt.
    rest = (value for name, value in request.body.items() if name != "messages")
    total = sum(
        len(str(value).encode(errors="replace")) for value in rest if isinstance(value, dict | list)
    )
    for message in request.body.get("messages", ()):
        total += 4 * TOKENS_PER_MESSAGE + _content_bytes(message.get("content"))
        total += len(str(message.get("tool_calls") or "").encode(errors="replace"))
    return total


def max_completion_tokens(request: ChatRequest) -> int:
    """The most tokens that the request lets the model answer; 0 where it sets no limit."""
    names = ("max_completion_tokens", "max_tokens")
    limit = max(_positive(request.body.get(name)) for name in names)
    return limit * max(1, _positive(request.body.get("n")))


def estimate_call_tokens(request: ChatRequest) -> int:
    """What to reserve of a token limit before a call: the prompt and the longest answer."""
    return estimate_prompt_tokens(request) + max_completion_tokens(request)


def _content_tokens(content: str | Sequence[Mapping[str, Any]] | None) -> int:
    if content is None:
        return 0
    if not isinstance(content, list):
        return estimate_tokens(str(content))
    return sum(
        TOKENS_PER_IMAGE
        if part.get("type") == "image_url"
        else estimate_tokens(str(part.get("text", "")))
        for part in content
    )


def _content_bytes(content: Any) -> int:
    if not isinstance(content, list):
        return len(str(content or "").encode(errors="replace"))
    return sum(
        4 * TOKENS_PER_IMAGE
        if part.get("type") == "image_url"
        else len(str(part).encode(errors="replace"))
        for part in content
    )


def _positive(value: Any) -> int:
    """A number that came through ``extra_body`` unchecked; 0 where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
