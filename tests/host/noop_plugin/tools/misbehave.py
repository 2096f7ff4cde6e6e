"""What a plugin must not do, one thing a call."""

import os
import sys
from collections.abc import Generator
from typing import Any

from dify_plugin import Tool
from dify_plugin.entities.tool import ToolInvokeMessage
from dify_plugin.errors.model import InvokeRateLimitError


class MisbehaveTool(Tool):
    """Sends a text, then does what ``how`` says."""

    def _invoke(self, tool_parameters: dict[str, Any]) -> Generator[ToolInvokeMessage, None, None]:
        yield self.create_text_message("so far so good")
        match tool_parameters["how"]:
            case "raise":
                raise InvokeRateLimitError("Too many requests; wait a minute.")
            case "print":
                print("debug output")  # noqa: T201 - the point of it
            case "long line":
                yield self.create_text_message("x" * (5 * 1024 * 1024))
            case "die":
                sys.stderr.write("last words\n")
                sys.stderr.flush()
                os._exit(3)
            case "unknown message":
                yield ToolInvokeMessage(type=ToolInvokeMessage.MessageType.FILE, message=None)
            case "reserved name":
                yield self.create_variable_message("text", "mine")
            case "stream after value":
                yield self.create_variable_message("cost_usd", 0.1)
                yield self.create_stream_variable_message("cost_usd", "0.1")
