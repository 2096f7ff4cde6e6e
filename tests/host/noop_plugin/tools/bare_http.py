"""The floor of a tool that calls a gateway: one request by a pooled client, and the messages."""

import json
from collections.abc import Generator, Iterator
from typing import Any

import shapes
from bare_client import CLIENT
from dify_plugin import Tool
from dify_plugin.entities.tool import ToolInvokeMessage


class BareHttpTool(Tool):
    """Sends ``body`` to ``url`` and reads the answer to its end before ``shape`` is emitted.

    With ``stream`` the answer is read line by line; with ``relay`` as well, each delta of a chat
    completion stream becomes a text message on the way, as a streaming node has to do it.
    """

    def _invoke(self, tool_parameters: dict[str, Any]) -> Generator[ToolInvokeMessage, None, None]:
        url, body = tool_parameters["url"], tool_parameters.get("body")
        headers = {"content-type": "application/json"} if body else {}
        if key := tool_parameters.get("api_key"):
            headers["authorization"] = f"Bearer {key}"
        method = "POST" if body else "GET"
        if tool_parameters.get("stream"):
            relay = tool_parameters.get("relay")
            with CLIENT.stream(method, url, content=body, headers=headers) as response:
                response.raise_for_status()
                for line in response.iter_lines():
                    if relay:
                        yield from map(self.create_text_message, _deltas(line))
        else:
            CLIENT.request(method, url, content=body, headers=headers).raise_for_status()
        yield from shapes.messages(tool_parameters.get("shape"))
        if stores := tool_parameters.get("stores"):
            self.session.storage.set("stored", stores.encode())


def _deltas(line: str) -> Iterator[str]:
    """Yield the pieces of text in one line of a chat completion stream."""
    if line.startswith("data: {"):
        for choice in json.loads(line[6:]).get("choices") or ():
            if text := choice["delta"].get("content"):
                yield text
