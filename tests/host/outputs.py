"""From the messages of a call to the outputs of a tool node, as Dify folds them.

Sources: Dify's ``tool_node.py`` and ``chunk_merger.py``, and what a running Dify 1.12 did.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = [
    "MAX_CHUNK_BYTES",
    "MAX_FILE_BYTES",
    "Arrival",
    "HostFault",
    "HostFile",
    "Outputs",
    "PluginError",
    "check_message",
    "collect",
]

MAX_FILE_BYTES = 30 * 1024 * 1024
"""A file above this fails the node."""

MAX_CHUNK_BYTES = 8192
"""The largest part of a file in one message."""

_RESERVED_NAMES = frozenset({"text", "json", "files"})

_MESSAGE_KEYS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "link": ("text",),
    "image": ("text",),
    "image_link": ("text",),
    "json": ("json_object",),
    "variable": ("variable_name", "variable_value", "stream"),
    "blob": ("blob",),
    "blob_chunk": ("id", "sequence", "total_length", "blob", "end"),
    "log": ("id", "label", "status", "data"),
    "retriever_resources": ("retriever_resources", "context"),
}
"""Message type -> keys that its ``message`` must have. ``file`` is missing on purpose: the host
has no use for it from a plugin."""


class HostFault(AssertionError):
    """The plugin did what the real host does not survive, or the process is gone."""


class Arrival(NamedTuple):
    """One message of a call.

    ``at_s`` is `time.perf_counter` when its bytes were read, ``data`` the message as sent:
    ``{"type": str, "message": {...}, "meta": {...} | None}``.
    """

    at_s: float
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PluginError:
    """The error that ended a call: exception class name, its text, ``{"traceback": ...}``."""

    type: str
    message: str
    args: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class HostFile:
    """A file that a call produced, put together from its chunks."""

    name: str | None
    mime_type: str | None
    content: bytes = field(repr=False)


@dataclass(slots=True)
class Outputs:
    """What the messages come to; see `tests.host.daemon.Result` for the fields."""

    text: str = ""
    variables: dict[str, Any] = field(default_factory=dict)
    streamed: dict[str, str] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    json: list[Any] = field(default_factory=list)
    files: list[HostFile] = field(default_factory=list)


def collect(messages: list[Arrival]) -> Outputs:
    """Fold messages into outputs as Dify's tool node does."""
    outputs = Outputs()
    texts: list[str] = []
    parts: dict[str, list[bytes]] = {}
    for _, data in messages:
        message = data["message"]
        match data["type"]:
            case "text":
                texts.append(message["text"])
            case "link":
                texts.append(f"Link: {message['text']}\n")
            case "json":
                if message["json_object"]:
                    outputs.json.append(message["json_object"])
            case "variable":
                _collect_variable(outputs, message)
            case "blob":
                outputs.files.append(_file(data, base64.b64decode(message["blob"])))
            case "blob_chunk":
                content = _collect_chunk(parts, message)
                if content is not None:
                    outputs.files.append(_file(data, content))
            case _:
                pass  # logs and sources have no place in a tool node's outputs
    if parts:
        raise HostFault(f"{len(parts)} file(s) without a last chunk")
    outputs.text = "".join(texts)
    return outputs


def _collect_variable(outputs: Outputs, message: dict[str, Any]) -> None:
    name, value = message["variable_name"], message["variable_value"]
    if name in _RESERVED_NAMES:
        raise HostFault(f"the variable name {name!r} is reserved: the host fails the node")
    if not message["stream"]:
        outputs.variables[name] = value
        outputs.settled.add(name)
        return
    if not isinstance(value, str):
        raise HostFault(f"the streamed variable {name!r} is no string but {value!r}")
    if name in outputs.settled:
        raise HostFault(f"the variable {name!r} was streamed after it had got a value")
    outputs.streamed[name] = outputs.variables[name] = outputs.streamed.get(name, "") + value


def _collect_chunk(parts: dict[str, list[bytes]], message: dict[str, Any]) -> bytes | None:
    """Add one chunk to its file; returns the whole file after the last one."""
    file_id = message["id"]
    received = parts.setdefault(file_id, [])
    content = base64.b64decode(message["blob"])
    if len(content) > MAX_CHUNK_BYTES:
        raise HostFault(f"a file chunk of {len(content)} bytes; the host allows {MAX_CHUNK_BYTES}")
    if message["total_length"] > MAX_FILE_BYTES:
        raise HostFault(
            f"a file of {message['total_length']} bytes; the host allows {MAX_FILE_BYTES}"
        )
    if message["sequence"] != len(received):
        raise HostFault(f"chunk {message['sequence']} of a file came as number {len(received)}")
    received.append(content)
    if not message["end"]:
        return None
    whole = b"".join(parts.pop(file_id))
    if len(whole) != message["total_length"]:
        raise HostFault(f"a file of {len(whole)} bytes was announced with another length")
    return whole


def _file(data: dict[str, Any], content: bytes) -> HostFile:
    meta = data.get("meta") or {}
    return HostFile(name=meta.get("filename"), mime_type=meta.get("mime_type"), content=content)


def check_message(data: dict[str, Any]) -> None:
    """Raise KeyError or TypeError for a message that the host does not know."""
    message = data["message"]
    for key in _MESSAGE_KEYS[data["type"]]:
        if key not in message:
            raise KeyError(key)
