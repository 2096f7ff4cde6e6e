"""Clients in processes of their own, so that each is seen as a plugin has it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.host.daemon import PROJECT_ROOT


class Worker:
    """A client in a process of its own: see ``devtools/bench/worker.py``."""

    def __init__(self, client: str, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "devtools.bench.worker", client, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT_ROOT,
        )

    def do(self, **command: Any) -> dict[str, Any]:
        """Run one command and return what it found."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the worker has no pipes")
        print(json.dumps(command), file=stdin, flush=True)
        line = stdout.readline()
        if not line:
            raise RuntimeError("the worker has ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(timeout=10)


@contextmanager
def workers(
    url: str, clients: tuple[str, ...] = ("engine", "httpx")
) -> Iterator[dict[str, Worker]]:
    """Processes with these clients, all calling ``url``."""
    started = {client: Worker(client, url) for client in clients}
    try:
        yield started
    finally:
        for worker in started.values():
            worker.close()
