"""What the plugin logs, sent to the daemon as events of its protocol.

Of standard error the daemon keeps next to nothing.
"""

import logging

from dify_plugin.config.logger_format import DifyPluginLoggerFormatter, plugin_logger_handler


class _WithTraceback(DifyPluginLoggerFormatter):
    """The SDK's form of an event, which has no place for a traceback: it joins the message."""

    def format(self, record: logging.LogRecord) -> str:
        text = logging.Formatter().format(record)
        return super().format(logging.makeLogRecord({**vars(record), "msg": text, "args": None}))


def send_logs() -> None:
    """Send warnings and worse of the engine and the endpoints to the daemon."""
    handler = logging.StreamHandler(plugin_logger_handler.stream)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_WithTraceback())
    for name in ("holysheep", "endpoints"):
        logging.getLogger(name).addHandler(handler)
