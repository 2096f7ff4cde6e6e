"""The floor: parameters in, prebuilt messages out."""

from collections.abc import Generator
from typing import Any

import shapes
from dify_plugin import Tool
from dify_plugin.entities.tool import ToolInvokeMessage


class NoopTool(Tool):
    """Emits the messages that ``shape`` describes."""

    def _invoke(self, tool_parameters: dict[str, Any]) -> Generator[ToolInvokeMessage, None, None]:
        yield from shapes.messages(tool_parameters.get("shape"))
        if stores := tool_parameters.get("stores"):
            self.session.storage.set("stored", stores.encode())
