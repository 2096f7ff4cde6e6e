"""Messages from a description, built once per description.

A shape is a JSON list; each item is one message::

    ["text", "hello"]               ["json", {"a": 1}]
    ["stream", "result", "hello"]   ["variable", "cost_usd", 0.1]
    ["file", "rows.csv", "text/csv", "a,b"]

The SDK leaves messages as they are when it sends them, so one object can be sent in any number of
calls. Files are the exception (it replaces their content by an id) and are built for each call.
"""

import functools
import json
from collections.abc import Iterator
from typing import Any

from dify_plugin.entities.tool import ToolInvokeMessage

Kind = ToolInvokeMessage.MessageType


def messages(shape: str | None) -> Iterator[ToolInvokeMessage]:
    """Yield the messages of ``shape``; nothing for None or empty text."""
    for part in _prebuilt(shape or "[]"):
        yield _file(*part) if isinstance(part, tuple) else part


@functools.cache
def _prebuilt(shape: str) -> tuple[ToolInvokeMessage | tuple[Any, ...], ...]:
    return tuple(_build(*item) for item in json.loads(shape))


def _build(kind: str, *values: Any) -> ToolInvokeMessage | tuple[Any, ...]:
    match kind:
        case "text":
            return ToolInvokeMessage(
                type=Kind.TEXT, message=ToolInvokeMessage.TextMessage(text=values[0])
            )
        case "json":
            return ToolInvokeMessage(
                type=Kind.JSON, message=ToolInvokeMessage.JsonMessage(json_object=values[0])
            )
        case "stream" | "variable":
            name, value = values
            return ToolInvokeMessage(
                type=Kind.VARIABLE,
                message=ToolInvokeMessage.VariableMessage(
                    variable_name=name, variable_value=value, stream=kind == "stream"
                ),
            )
        case "file":
            return values
        case _:
            raise ValueError(f"no message is called {kind!r}")


def _file(name: str, mime_type: str, content: str) -> ToolInvokeMessage:
    return ToolInvokeMessage(
        type=Kind.BLOB,
        message=ToolInvokeMessage.BlobMessage(blob=content.encode()),
        meta={"mime_type": mime_type, "filename": name},
    )
