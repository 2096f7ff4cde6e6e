"""Storage operations one after the other, each result sent as it comes."""

import json
from collections.abc import Generator
from typing import Any

from dify_plugin import Tool
from dify_plugin.entities.tool import ToolInvokeMessage


class StoreTool(Tool):
    """Runs ``steps``, a list such as ``[["set", "k", "v"], ["get", "k"], ["say", "hello"]]``.

    The operations are set, get, del, exist, and say, which asks storage for nothing. Each step
    gives one JSON message: ``{"value": ...}``, or ``{"error": text}`` if it raised.
    """

    def _invoke(self, tool_parameters: dict[str, Any]) -> Generator[ToolInvokeMessage, None, None]:
        for op, key, *value in json.loads(tool_parameters["steps"]):
            try:
                result = self._step(op, key, *value)
            except Exception as error:  # noqa: BLE001 - the SDK raises bare Exception for all
                yield self.create_json_message({"error": str(error)})
            else:
                yield self.create_json_message({"value": result})

    def _step(self, op: str, key: str, value: str = "") -> Any:
        storage = self.session.storage
        match op:
            case "set":
                return storage.set(key, value.encode())
            case "get":
                return storage.get(key).decode()
            case "del":
                return storage.delete(key)
            case "say":
                return key
            case _:
                return storage.exist(key)
