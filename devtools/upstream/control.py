"""``Upstream``: starts the simulated server as a process of its own and talks to its control API.

Standard library only, and no connection is kept: it works the same in a plain process, in threads
and in a process that gevent has patched.
"""

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from devtools.upstream.behaviours import Behaviour

__all__ = ["Stats", "Upstream", "UpstreamError"]

_ROOT = Path(__file__).resolve().parents[2]
_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 5.0
_CONTROL_TIMEOUT_S = 10.0
_POLL_S = 0.002


class UpstreamError(RuntimeError):
    """The server did not start, is gone, or refused a control request."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What the server has seen since its start or the last ``reset``.

    ``calls``              chat requests received, refused ones included.
    ``calls_by_model``     the same by model.
    ``models_calls``       requests for the model list.
    ``in_flight``          chat requests whose answer is not complete yet; ``max_in_flight``.
    ``connections``        TCP connections that carried a request, those of the control API apart.
    ``open_connections``   those of them that are open.
    ``answered``           complete answers by status code, all routes.
    ``aborted_by_client``  requests whose client left before the answer was complete.
    ``dropped_by_server``  answers that ended with the connection, as scripted.
    ``scripted``           behaviours that still wait in a script.
    ``errors``             tracebacks of faults in the server itself: always empty, one hopes.
    ``cpu_s``              CPU seconds of the server process since its start.
    """

    calls: int
    calls_by_model: Mapping[str, int]
    models_calls: int
    in_flight: int
    max_in_flight: int
    connections: int
    open_connections: int
    answered: Mapping[int, int]
    aborted_by_client: int
    dropped_by_server: int
    scripted: int
    errors: tuple[str, ...]
    cpu_s: float


class Upstream:
    """A running server; leaving the ``with`` block or ``close`` ends it.

    ``url``   base URL, ends in ``/v1``.
    ``port``  0 takes a free one; the port of a closed Upstream can be taken again at once.
    ``pid``   of the server process.

    ``latency_ms`` is the time from a request to the first byte of its answer, ``model_latency_ms``
    the same for single models; a scripted ``latency_ms`` wins over both. The server is up when the
    constructor returns, and ends by itself when this process does.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        latency_ms: float = 0.0,
        model_latency_ms: Mapping[str, float] | None = None,
    ) -> None:
        command = [sys.executable, "-m", "devtools.upstream", f"--host={host}", f"--port={port}"]
        command.append(f"--latency-ms={latency_ms:g}")
        for model, ms in (model_latency_ms or {}).items():
            command += ["--model-latency", f"{model}={ms:g}"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": _python_path()},
        )
        try:
            ready = self._read_ready_line()
        except BaseException:
            self.close()
            raise
        self._host = host
        self.url: str = ready["url"]
        self.port: int = ready["port"]
        self.pid: int = ready["pid"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def script(self, *behaviours: Behaviour, model: str = "*") -> None:
        """Queue behaviours; each is used by one chat request, first in, first out.

        ``model``: only for requests of that model, which look here before they look under ``*``;
        ``@models`` is the model list. ValueError if the server does not know one of them.
        """
        self._post("script", {"model": model, "behaviours": behaviours})

    def default(self, behaviour: Behaviour | None, model: str = "*") -> None:
        """What happens when the script is used up; None restores the plain answer."""
        self._post("default", {"model": model, "behaviour": behaviour})

    def stats(self) -> Stats:
        """The counters as they are now."""
        counts = self._request("GET", "stats")
        counts["answered"] = {int(code): count for code, count in counts["answered"].items()}
        counts["errors"] = tuple(counts["errors"])
        return Stats(**counts)

    def wait_for(self, condition: Callable[[Stats], bool], *, timeout_s: float = 5.0) -> Stats:
        """Ask for the counters until they satisfy ``condition``; UpstreamError at the time-out."""
        end_s = time.monotonic() + timeout_s
        while not condition(stats := self.stats()):
            if time.monotonic() > end_s:
                raise UpstreamError(f"still not so after {timeout_s:g} s: {stats}")
            time.sleep(_POLL_S)
        return stats

    def requests(self, last: int = 1000) -> list[dict[str, Any]]:
        """The last requests (at most 1,000), oldest first.

        Each is {method, path, headers (names in lower case), json (None if the body is no JSON
        object), model, arrival_ms (monotonic clock), client_port}.
        """
        requests: list[dict[str, Any]] = self._request("GET", f"requests?last={last}")
        return requests

    def arrivals(self, model: str | None = None) -> list[float]:
        """When the last chat requests came (at most 100,000), in monotonic ms, oldest first."""
        query = "" if model is None else f"?model={quote(model, safe='')}"
        arrivals: list[float] = self._request("GET", f"arrivals{query}")
        return arrivals

    def reset(self) -> None:
        """Forget scripts, defaults, recorded requests and counts; answers in flight go on."""
        self._post("reset", {})

    def close(self) -> None:
        """End the server; its connections break. Does nothing the second time."""
        process = self._process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _read_ready_line(self) -> dict[str, Any]:
        stdout = self._process.stdout
        watchdog = threading.Timer(_START_TIMEOUT_S, self._process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            line = stdout.readline() if stdout is not None else b""
        finally:
            watchdog.cancel()
        if not line:
            raise UpstreamError(f"the server ended with status {self._process.wait()}")
        ready: dict[str, Any] = json.loads(line)
        return ready

    def _post(self, name: str, body: Mapping[str, Any]) -> Any:
        return self._request("POST", name, json.dumps(body).encode())

    def _request(self, method: str, name: str, body: bytes | None = None) -> Any:
        connection = http.client.HTTPConnection(self._host, self.port, timeout=_CONTROL_TIMEOUT_S)
        try:
            connection.request(method, f"/_control/{name}", body, {"connection": "close"})
            response = connection.getresponse()
            answer = json.loads(response.read())
        except OSError as error:
            raise UpstreamError(f"the server on port {self.port} does not answer") from error
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(answer.get("error", "refused"))
        return answer


def _python_path() -> str:
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(_ROOT), inherited] if inherited else [str(_ROOT)])
