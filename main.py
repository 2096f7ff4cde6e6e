"""The plugin process: Dify's daemon runs ``python -m main`` in this folder."""

import gc
import io
import sys

# The SDK comes first: it replaces blocking calls with cooperative ones at import, and whatever was
# imported before it would keep the blocking ones.
from dify_plugin import DifyPluginEnv, Plugin
from dify_plugin.config.config import InstallMethod
from dify_plugin.core.runtime import Session

from holysheep.registry import shared_registry


class WholeLines(io.TextIOBase):
    """Standard output that passes on whole lines only.

    Each message is a line to the daemon. The SDK writes and flushes it in two parts, the line and
    its end; joined they are one system call, and the daemon wakes once.
    """

    def __init__(self, stream: io.TextIOBase) -> None:
        self._stream = stream
        self._parts: list[str] = []

    def write(self, text: str) -> int:
        """Keep ``text`` until its line is complete."""
        self._parts.append(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what is complete."""
        if self._parts and self._parts[-1].endswith("\n"):
            text, self._parts = "".join(self._parts), []
            self._stream.write(text)
            self._stream.flush()

    def fileno(self) -> int:
        """The descriptor of standard output."""
        return self._stream.fileno()


config = DifyPluginEnv()
if config.INSTALL_METHOD is InstallMethod.Local:
    sys.stdout = WholeLines(sys.stdout)  # type: ignore[arg-type]
plugin = Plugin(config)

if __name__ == "__main__":
    # The SDK imports a dozen modules when it builds its first session; done here, the first call
    # is as quick as the next.
    Session.empty_session()
    shared_registry()
    # What start-up has built lives as long as the process; the collector need not look at it again.
    gc.collect()
    gc.freeze()
    plugin.run()
