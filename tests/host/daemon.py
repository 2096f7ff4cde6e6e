"""A test host: plays Dify's plugin daemon for one plugin process.

The daemon starts ``python -m main`` in the plugin's folder with ``INSTALL_METHOD=local`` and
talks to it in JSON lines over stdin and stdout. `PluginProcess` does the same, so a test or a
benchmark sees exactly what a workflow would see, without Dify, Docker or a network.

A request to an endpoint goes the same way as a tool call, with the client's request in hexadecimal
digits as its argument (`PluginProcess.request`; `tests.host.rawhttp` writes it the way the daemon
does, `tests.host.endpoints` is the HTTP server in front of it).

One call on the wire (one JSON object a line; lines are followed by an empty one)::

    host    {"session_id", "event": "request", "data": {"type": "tool", "action": ..., ...}}
    plugin  {"session_id", "event": "session", "data": {"type": "stream", "data": MESSAGE}}   0..n
    plugin  {"session_id", "event": "session", "data": {"type": "invoke", "data": STORAGE}}   0..n
    host    {"session_id", "event": "backwards_response", "data": {...}}             2 per storage
    plugin  {"session_id", "event": "session", "data": {"type": "error", "data": {...}}}      0..1
    plugin  {"session_id", "event": "session", "data": {"type": "end", "data": {}}}

A session is closed by its first ``end`` or ``error``; what comes later for it gets no answer, as
with the real daemon. Everything else that the real host would choke on raises `HostFault`, which
fails the test: a stdout line that is no JSON, a line of 5 MB or more, a message of an unknown
form, a process that dies.

Sources: langgenius/dify-plugin-daemon (``internal/core/local_runtime``, ``io_tunnel``,
``persistence``), dify-plugin 0.10.2 and Dify's ``tool_node.py``, all read in Aug 2026.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self
from urllib.parse import quote

from tests.host.outputs import Arrival, HostFault, HostFile, PluginError, check_message, collect
from tests.host.rawhttp import (
    BODYLESS_STATUSES,
    Answer,
    Chunk,
    HttpResult,
    RawRequest,
    behind_nginx,
    check_chunk,
    daemon_copy,
    hook_path,
)
from tests.host.storage import Replies, Storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

__all__ = [
    "NOOP_PLUGIN",
    "PROJECT_ROOT",
    "Arrival",
    "Chunk",
    "HostFault",
    "HostFile",
    "HttpCall",
    "HttpResult",
    "Invocation",
    "PluginError",
    "PluginProcess",
    "Result",
    "Storage",
]

PROJECT_ROOT = Path(__file__).resolve().parents[2]
NOOP_PLUGIN = Path(__file__).resolve().parent / "noop_plugin"
"""A plugin whose tools and endpoints do next to nothing."""

MAX_LINE_BYTES = 5 * 1024 * 1024
"""The daemon's line scanner gives up here, newline included, and the plugin is killed."""

START_TIMEOUT_S = 60.0
"""Patience for the registration line and the first heartbeat (the daemon has 120 s)."""

CALL_TIMEOUT_S = 30.0
"""Patience for one call; the real host has 600 s, a test has a minute for everything."""

HOOK_ID = "abcdefghijklmnop"
"""The hook of requests that name none; the real ones are 16 random letters as well."""

STDERR_KEPT_BYTES = 64 * 1024

_STDERR = 1  # position among the reading threads

_PLUGIN_ERROR_KEYS = ("error_type", "message", "args")


@dataclass(frozen=True, slots=True)
class Result:
    """What a tool node would have after the call.

    ``variables`` holds the final values as a downstream node gets them; ``streamed`` what was
    sent as a stream, by variable name, which is what an Answer node shows. ``json`` is the list
    of JSON messages (the real host puts ``[{"data": []}]`` where it is empty). After an error
    all of these hold what arrived before it; the real node then has no outputs at all.
    ``elapsed_ms`` runs from the request being written to the end being read, ``first_ms`` to the
    first message (None without any).
    """

    text: str
    variables: dict[str, Any]
    streamed: dict[str, str]
    json: list[Any]
    files: list[HostFile]
    error: PluginError | None
    messages: list[Arrival] = field(repr=False)
    elapsed_ms: float
    first_ms: float | None


class Invocation:
    """A call under way: iterate over it for messages as they come, or ask for its `result`.

    For one consumer at a time. Iterating again starts from the first message.
    """

    def __init__(
        self,
        process: PluginProcess,
        envelope: dict[str, Any],
        tenant_id: str,
        *,
        check: Callable[[dict[str, Any]], None] | None,
        on_done: Callable[[], object] | None,
        on_message: Callable[[], object] | None,
    ) -> None:
        self.session_id: str = envelope["session_id"]
        self.tenant_id = tenant_id
        self.messages: list[Arrival] = []
        self.started_s = 0.0
        self.ended_s: float | None = None
        self.error: PluginError | None = None
        self._process = process
        self._envelope = envelope
        self._check = check
        self._fault: str | None = None
        self._on_done = on_done
        self._on_message = on_message
        # Two ways to wait, so that the reading thread pays for a wake-up per message only when
        # somebody iterates: `_ended` is locked until the call ends, `_wake` has an item per
        # message once `_watched` is set.
        self._ended = threading.Lock()
        self._ended.acquire()
        self._watched = False
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()

    @property
    def done(self) -> bool:
        """Whether the call has ended, in whatever way."""
        return self.ended_s is not None

    def __iter__(self) -> Iterator[Arrival]:
        """Yield each message as it arrives, until the call ends.

        Raises HostFault if the plugin breaks the rules, or is silent for longer than
        ``CALL_TIMEOUT_S``. An error of the plugin's own ends the iteration; see ``error``.
        """
        self._watched = True
        index = 0
        while True:
            ended = self.done  # read first: whatever arrived before the end is in `messages` then
            while index < len(self.messages):
                yield self.messages[index]
                index += 1
            if ended:
                self._raise_fault()
                return
            try:
                self._wake.get(timeout=CALL_TIMEOUT_S)
            except queue.Empty:
                raise HostFault(self._silence(CALL_TIMEOUT_S)) from None

    def wait(self, timeout_s: float = CALL_TIMEOUT_S) -> Self:
        """Wait for the end; raises HostFault on a fault or after ``timeout_s``."""
        if not self._ended.acquire(timeout=timeout_s):
            raise HostFault(self._silence(timeout_s))
        self._ended.release()
        self._raise_fault()
        return self

    def result(self, timeout_s: float = CALL_TIMEOUT_S) -> Result:
        """Wait for the end and collect the outputs the way the real host does.

        Raises HostFault where that host would fail the node: a stream after a value of the same
        variable, a reserved variable name, files that are too large or out of order.
        """
        self.wait(timeout_s)
        ended_s = self.ended_s if self.ended_s is not None else self.started_s
        collected = collect(self.messages)
        return Result(
            text=collected.text,
            variables=collected.variables,
            streamed=collected.streamed,
            json=collected.json,
            files=collected.files,
            error=self.error,
            messages=self.messages,
            elapsed_ms=(ended_s - self.started_s) * 1e3,
            first_ms=(self.messages[0].at_s - self.started_s) * 1e3 if self.messages else None,
        )

    def abandon(self) -> None:
        """Stop listening, as the host does on a stop, a time-out or a lost client.

        The plugin is not told: its thread goes on, and its storage requests get no answer.
        """
        self._process._forget(self)
        self._finish(time.perf_counter())

    # --- called by the reading thread ---

    def _arrive(self, now_s: float, data: dict[str, Any]) -> None:
        self.messages.append(Arrival(now_s, data))
        if self._watched:
            self._wake.put(None)
        if self._on_message is not None:
            self._on_message()

    def _finish(
        self, now_s: float, error: PluginError | None = None, fault: str | None = None
    ) -> None:
        if self.done:
            return
        self.error = error
        self._fault = fault
        self.ended_s = now_s
        self._ended.release()
        self._wake.put(None)
        if self._on_done is not None:
            self._on_done()

    # --- helpers ---

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._process._report(self._fault)

    def _silence(self, timeout_s: float) -> str:
        return self._process._describe(
            f"the call did not end within {timeout_s:g} s ({len(self.messages)} messages so far)"
        )


class HttpCall:
    """A request under way: iterate over its chunks as they come, or ask for its `result`.

    What comes is what the daemon would send to the client, its own additions after an error
    included. ``invocation`` is the session below. For one consumer at a time.
    """

    def __init__(self, invocation: Invocation, method: str) -> None:
        self.invocation = invocation
        self._method = method

    @property
    def done(self) -> bool:
        """Whether the call has ended, in whatever way."""
        return self.invocation.done

    def head(self) -> tuple[int, dict[str, str]]:
        """Wait for status and headers; as for a client, they come with the first chunk."""
        answer = Answer()
        next(self._chunks(answer), None)
        return answer.status, answer.headers

    def __iter__(self) -> Iterator[Chunk]:
        """Yield each chunk as it arrives; raises as `Invocation` does when it is iterated."""
        return self._chunks(Answer())

    def result(self, timeout_s: float = CALL_TIMEOUT_S) -> HttpResult:
        """Wait for the end and return the whole response; raises HostFault as `Invocation.wait`."""
        invocation = self.invocation.wait(timeout_s)
        ended_s = invocation.ended_s if invocation.ended_s is not None else invocation.started_s
        answer = Answer()
        chunks = list(self._chunks(answer))
        if self._method == "HEAD" or answer.status in BODYLESS_STATUSES:
            chunks = []
        return HttpResult(
            status=answer.status,
            headers=answer.headers,
            body=b"".join(chunk.data for chunk in chunks),
            chunks=chunks,
            error=invocation.error,
            elapsed_ms=(ended_s - invocation.started_s) * 1e3,
            first_ms=(chunks[0].at_s - invocation.started_s) * 1e3 if chunks else None,
        )

    def abandon(self) -> None:
        """Stop listening, as the daemon does when the client goes away; the plugin is not told."""
        self.invocation.abandon()

    def _chunks(self, answer: Answer) -> Iterator[Chunk]:
        for arrival in self.invocation:
            if (chunk := answer.take(arrival)) is not None:
                yield chunk
        ended_s = self.invocation.ended_s or 0.0
        if (chunk := answer.finish(self.invocation.error, ended_s)) is not None:
            yield chunk


class PluginProcess:
    """A plugin running as a child process, with this object as its host.

    ``folder`` is the plugin's root (default: this project), ``env`` adds to or overrides the
    environment, ``provider`` is the provider's identity name that calls go to by default. The
    plugin gets this process's environment without proxy settings, so that a call to a loopback
    upstream does not leave the machine.

    ::

        with PluginProcess() as plugin:
            result = plugin.call("holysheep_llm", {"query": "hi"}, {"api_key": "..."})
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        env: Mapping[str, str] | None = None,
        provider: str = "holysheep",
        python: str = sys.executable,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self.folder = Path(folder) if folder is not None else PROJECT_ROOT
        self.storage = Storage()
        self.registration: dict[str, Any] = {}
        self.logs: deque[dict[str, Any]] = deque(maxlen=1000)
        self.late: deque[dict[str, Any]] = deque(maxlen=1000)
        self.cold_start_ms = 0.0
        self.ready_ms = 0.0
        self._env = dict(env or {})
        self._provider = provider
        self._python = python
        self._start_timeout_s = start_timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._threads: list[threading.Thread] = []
        self._replies: Replies | None = None
        self._open: dict[str, Invocation] = {}
        self._write_lock = threading.Lock()
        self._stderr = bytearray()
        self._fault: str | None = None
        self._fault_reported = False
        self._ending = False
        self._registered = threading.Event()
        self._beating = threading.Event()

    # --- life cycle ---

    def __enter__(self) -> Self:
        self._launch()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()
        if exc_type is None:
            self.check()

    def restart(self) -> None:
        """End the process and start a new one; storage keeps its data, as the host's does."""
        self._stop()
        self._launch()

    def close(self) -> None:
        """End the process by its pid; raises a fault that no call has raised yet.

        Closing stdin would not end it: at its end the SDK reads in a loop for ever.
        """
        self._stop()
        self.check()

    def kill(self) -> None:
        """Kill the process without warning; open calls then raise, `check` does not."""
        self._ending = True
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._join()

    def check(self) -> None:
        """Raise the fault that the plugin has caused and that no call has raised yet, if any."""
        if self._fault is not None and not self._fault_reported:
            raise self._report(self._fault)

    @property
    def alive(self) -> bool:
        """Whether the process runs and has broken no rule."""
        return self._child is not None and self._child.poll() is None and self._fault is None

    @property
    def open_calls(self) -> int:
        """How many calls have been sent and have not ended."""
        return len(self._open)

    # --- calls ---

    def start(
        self,
        tool: str,
        parameters: Mapping[str, Any] | None = None,
        credentials: Mapping[str, Any] | None = None,
        *,
        provider: str | None = None,
        user_id: str = "user-1",
        app_id: str | None = "app-1",
        conversation_id: str | None = None,
        tenant_id: str = "tenant-1",
        on_done: Callable[[], object] | None = None,
    ) -> Invocation:
        """Send a tool call and return at once; the call runs in the plugin.

        ``on_done`` is called by the reading thread when the call has ended.
        """
        return self.send(
            {
                "user_id": user_id,
                "type": "tool",
                "action": "invoke_tool",
                "provider": provider or self._provider,
                "tool": tool,
                "credentials": dict(credentials or {}),
                "credential_type": "api-key",
                "tool_parameters": dict(parameters or {}),
            },
            app_id=app_id,
            conversation_id=conversation_id,
            tenant_id=tenant_id,
            check=check_message,
            on_done=on_done,
        )

    invoke = start
    """The same call under the host's name for it: iterate over it, or ask for its result."""

    def call(
        self,
        tool: str,
        parameters: Mapping[str, Any] | None = None,
        credentials: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        **options: Any,
    ) -> Result:
        """Send a tool call, wait for its end, return its outputs. ``options`` as in `start`."""
        return self.start(tool, parameters, credentials, **options).result(timeout_s)

    def invoke_many(
        self,
        calls: Iterable[Mapping[str, Any]],
        *,
        concurrency: int | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> list[Result]:
        """Run many tool calls at once and return their results in the order given.

        Each of ``calls`` holds the arguments of `start` by name. At most ``concurrency`` are open
        at a time (None = all). ``timeout_s`` limits the wait for each single end.
        """
        slots = threading.Semaphore(concurrency) if concurrency is not None else None
        started: list[Invocation] = []
        for arguments in calls:
            if slots is not None and not slots.acquire(timeout=timeout_s):
                raise HostFault(self._describe(f"no call ended within {timeout_s:g} s"))
            started.append(self.start(**arguments, on_done=slots.release if slots else None))
        return [invocation.result(timeout_s) for invocation in started]

    def request(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        **options: Any,
    ) -> HttpResult:
        """Send a request to an endpoint and return the whole response.

        ``options`` as in `start_request`.
        """
        return self.start_request(method, path, **options).result(timeout_s)

    def start_request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        settings: Mapping[str, Any] | None = None,
        tenant_id: str = "tenant-1",
        endpoint_id: str = "endpoint-1",
        hook_id: str = HOOK_ID,
        on_done: Callable[[], object] | None = None,
    ) -> HttpCall:
        """Send a request to an endpoint and return at once; the endpoint runs in the plugin.

        ``path`` is the declared path with a query if there is one, ``headers`` are the client's
        (``Host`` is ``localhost`` unless it is among them). The plugin gets them as they come
        through nginx and the daemon. Without an HTTP server: for that, see
        `tests.host.endpoints`.
        """
        pairs = list(headers.items() if hasattr(headers, "items") else headers)
        if "host" not in {name.lower() for name, _ in pairs}:
            pairs.insert(0, ("Host", "localhost"))
        request = behind_nginx(
            RawRequest(
                method,
                f"/e/{hook_id}" + quote(path, safe="!#$%&'()*+,/:;=?@[]~"),
                tuple((name, value.encode().decode("latin-1")) for name, value in pairs),
                body,
            )
        )
        found = hook_path(request.target)
        if found is None or not found[1]:
            raise ValueError(f"no path of an endpoint: {path!r}")
        return self.send_http(
            method,
            daemon_copy(request, *found),
            settings=settings,
            tenant_id=tenant_id,
            endpoint_id=endpoint_id,
            on_done=on_done,
        )

    def send_http(
        self,
        method: str,
        raw: bytes,
        *,
        settings: Mapping[str, Any] | None,
        tenant_id: str,
        endpoint_id: str,
        on_done: Callable[[], object] | None = None,
        on_message: Callable[[], object] | None = None,
    ) -> HttpCall:
        """Send a request to an endpoint that has been written down already; see `start_request`.

        ``on_message`` is called by the reading thread after each message.
        """
        invocation = self.send(
            {
                "user_id": "",
                "type": "endpoint",
                "action": "invoke_endpoint",
                "raw_http_request": raw.hex(),
                "settings": dict(settings or {}),
            },
            app_id=None,
            endpoint_id=endpoint_id,
            tenant_id=tenant_id,
            check=check_chunk,
            on_done=on_done,
            on_message=on_message,
        )
        return HttpCall(invocation, method)

    def validate(
        self,
        credentials: Mapping[str, Any],
        *,
        provider: str | None = None,
        user_id: str = "user-1",
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> PluginError | None:
        """Check credentials as the host does when they are saved: None, or the error."""
        invocation = self.send(
            {
                "user_id": user_id,
                "type": "tool",
                "action": "validate_tool_credentials",
                "provider": provider or self._provider,
                "credentials": dict(credentials),
            },
            app_id=None,
        ).wait(timeout_s)
        if invocation.error is None and [a.data for a in invocation.messages] != [{"result": True}]:
            raise HostFault(f"validation answered neither yes nor no: {invocation.messages}")
        return invocation.error

    def send(
        self,
        data: Mapping[str, Any],
        *,
        app_id: str | None = "app-1",
        conversation_id: str | None = None,
        endpoint_id: str | None = None,
        tenant_id: str = "tenant-1",
        check: Callable[[dict[str, Any]], None] | None = None,
        on_done: Callable[[], object] | None = None,
        on_message: Callable[[], object] | None = None,
    ) -> Invocation:
        """Send any request that a daemon can send, for actions without a method of their own.

        ``data`` is the request's body with ``type`` and ``action``. ``check`` is called with each
        message as it arrives and raises KeyError or TypeError for what is no message of this kind
        of call. The callbacks are called by the reading thread.
        """
        if self._fault is not None:
            raise self._report(self._fault)
        if self._child is None or self._ending:
            raise HostFault("the plugin process is not running")
        envelope = {
            "session_id": uuid.uuid4().hex,
            "conversation_id": conversation_id,
            "message_id": None,
            "app_id": app_id,
            "endpoint_id": endpoint_id,
            "context": None,
        }
        line = json.dumps({**envelope, "event": "request", "data": data}).encode() + b"\n"
        invocation = Invocation(
            self, envelope, tenant_id, check=check, on_done=on_done, on_message=on_message
        )
        self._open[invocation.session_id] = invocation
        invocation.started_s = time.perf_counter()
        self._write(line)
        return invocation

    # --- measuring ---

    @property
    def pid(self) -> int:
        """The plugin's process id."""
        if self._child is None:
            raise HostFault("the plugin process is not running")
        return self._child.pid

    @property
    def logged(self) -> str:
        """What it has sent to the host's log, a message after the other."""
        return "\n".join(str(entry["message"]) for entry in self.logs)

    @property
    def stderr(self) -> str:
        """The last 64 KB of what the plugin wrote to stderr."""
        return self._stderr.decode(errors="replace")

    def cpu_s(self) -> float:
        """CPU time of the process so far, all threads, user and system, in seconds."""
        try:
            # Linux: the clock id of another process, as clock_getcpuclockid(3) builds it.
            return time.clock_gettime((~self.pid << 3) | 2)
        except OSError:
            return _ps_seconds(_ps(self.pid, "time"))

    def rss_bytes(self) -> int:
        """Resident memory of the process in bytes."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except OSError:
            return int(_ps(self.pid, "rss")) * 1024
        return pages * os.sysconf("SC_PAGE_SIZE")

    # --- inside ---

    def _launch(self) -> None:
        env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        env |= {"INSTALL_METHOD": "local", **self._env}
        self._fault = None
        self._fault_reported = False
        self._ending = False
        self._registered.clear()
        self._beating.clear()
        self._open.clear()
        self._stderr.clear()
        started_s = time.perf_counter()
        child = subprocess.Popen(
            [self._python, "-m", "main"],
            cwd=self.folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self._child = child
        self._replies = Replies(self._write)
        self.storage._replies = self._replies
        self._threads = [
            threading.Thread(target=target, args=(pipe,), name=f"host-{name}", daemon=True)
            for name, target, pipe in (
                ("stdout", self._read_stdout, child.stdout),
                ("stderr", self._read_stderr, child.stderr),
            )
        ]
        for thread in reversed(self._threads):  # at its end the stdout thread waits for the other
            thread.start()
        for event, what in (
            (self._registered, "registration line"),
            (self._beating, "first heartbeat"),
        ):
            arrived = event.wait(self._start_timeout_s)
            if self._fault is not None or not arrived:
                fault = self._fault or self._describe(f"no {what} in {self._start_timeout_s:g} s")
                self._stop()
                raise HostFault(fault)
            if what == "registration line":
                self.cold_start_ms = (time.perf_counter() - started_s) * 1e3
        self.ready_ms = (time.perf_counter() - started_s) * 1e3

    def _stop(self) -> None:
        self._ending = True
        child = self._child
        if child is None:
            return
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(timeout=2)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._join()
        self._child = None

    def _join(self) -> None:
        """Wait for the threads and close the pipes; the process must have ended."""
        if self._replies is not None:
            self._replies.close()
            self._replies = None
        for thread in self._threads:
            thread.join()
        self._threads = []
        if self._child is not None:
            for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()

    def _write(self, line: bytes) -> None:
        child = self._child
        if child is None or child.stdin is None:
            return
        rest = memoryview(line)
        try:
            with self._write_lock:
                while rest:
                    rest = rest[os.write(child.stdin.fileno(), rest) :]
        except (OSError, ValueError):
            pass  # the process is gone; the reading thread says so to all open calls

    def _read_stderr(self, pipe: IO[bytes]) -> None:
        while chunk := os.read(pipe.fileno(), 65536):
            self._stderr += chunk
            del self._stderr[:-STDERR_KEPT_BYTES]

    def _read_stdout(self, pipe: IO[bytes]) -> None:
        descriptor = pipe.fileno()
        rest = b""
        while chunk := os.read(descriptor, 1 << 18):
            now_s = time.perf_counter()
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                if line:
                    self._on_line(now_s, line)
            if len(rest) >= MAX_LINE_BYTES:
                self._on_long_line(len(rest))
        self._on_stdout_end()

    def _on_stdout_end(self) -> None:
        code = self._child.wait() if self._child is not None else None
        if not self._ending:
            self._threads[_STDERR].join(timeout=1)  # its last words belong into the fault
            self._break(f"the plugin process ended by itself with exit code {code}")
            return
        for invocation in list(self._open.values()):
            invocation._finish(time.perf_counter(), fault="the plugin process was ended")
        self._open.clear()

    def _on_long_line(self, size_bytes: int) -> None:
        self._break(f"a stdout line of {size_bytes} bytes or more; {MAX_LINE_BYTES} is the limit")
        if self._child is not None:
            self._child.kill()  # as the daemon does

    def _on_line(self, now_s: float, line: bytes) -> None:
        if len(line) >= MAX_LINE_BYTES:
            self._on_long_line(len(line))
            return
        try:
            event = json.loads(line.decode())
        except ValueError:
            self._break(f"a stdout line that is no JSON: {_cut(line)}")
            return
        try:
            kind = event.get("event")
            if kind == "session":
                self._on_session(now_s, event["session_id"], event["data"])
            elif kind == "heartbeat":
                self._beating.set()
            elif kind == "log":
                self.logs.append(event["data"])
            elif kind is None and event["type"] == "plugin" and not self._registered.is_set():
                self._on_registration(event)
            else:
                # Besides unknown events: {"event": "error"}, the SDK's complaint about a line of
                # ours, or about an argument that it could not even put into a request.
                self._break(f"a line of an unknown form: {_cut(line)}")
        except (AttributeError, KeyError, TypeError) as error:
            self._break(f"a line of an unknown form ({error!r}): {_cut(line)}")

    def _on_registration(self, manifest: dict[str, Any]) -> None:
        self.registration = manifest
        permission = (manifest["resource"].get("permission") or {}).get("storage") or {}
        self.storage.enabled = bool(permission.get("enabled"))
        self.storage.quota_bytes = permission.get("size")
        self._registered.set()

    def _on_session(self, now_s: float, session_id: str, message: dict[str, Any]) -> None:
        kind, data = message["type"], message["data"]
        invocation = self._open.get(session_id)
        if invocation is None:
            if kind != "end":  # after an error the SDK sends an end as well
                self.late.append(message)
        elif kind == "stream":
            if invocation._check is not None:
                invocation._check(data)
            invocation._arrive(now_s, data)
        elif kind == "invoke":
            self._on_backwards_request(invocation, data)
        elif kind in {"end", "error"}:
            error = (
                PluginError(*(data[key] for key in _PLUGIN_ERROR_KEYS)) if kind == "error" else None
            )
            del self._open[session_id]
            invocation._finish(now_s, error)
        else:
            raise KeyError(kind)

    def _on_backwards_request(self, invocation: Invocation, data: dict[str, Any]) -> None:
        request_id, kind = data["backwards_request_id"], data["type"]
        if kind == "storage":
            answer = self.storage._answer(invocation.tenant_id, data["request"])
            delay_s = self.storage.latency_s
        else:
            answer = f"permission denied, you need to enable {kind} access in plugin manifest"
            delay_s = 0.0
        head = {"backwards_request_id": request_id}
        reply: dict[str, Any] = (
            {**head, "event": "error", "message": answer, "data": None}
            if isinstance(answer, str)
            else {**head, "event": "response", "message": "struct", "data": answer}
        )
        end = {**head, "event": "end", "message": "", "data": None}
        lines = b"".join(
            json.dumps(
                {**invocation._envelope, "event": "backwards_response", "data": part}
            ).encode()
            + b"\n"
            for part in (reply, end)
        )
        if self._replies is not None:
            self._replies.submit(lines, delay_s)

    def _forget(self, invocation: Invocation) -> None:
        self._open.pop(invocation.session_id, None)

    def _break(self, what: str) -> None:
        """Note a fault and end all open calls with it; the first fault stays."""
        if self._fault is None:
            self._fault = self._describe(what)
        now_s = time.perf_counter()
        for invocation in list(self._open.values()):
            invocation._finish(now_s, fault=self._fault)
        self._open.clear()
        self._registered.set()
        self._beating.set()

    def _report(self, fault: str) -> HostFault:
        self._fault_reported = True
        return HostFault(fault)

    def _describe(self, what: str) -> str:
        stderr = self.stderr.strip()
        return f"{what}\n--- stderr of the plugin ---\n{stderr[-4000:]}" if stderr else what


def _cut(line: bytes) -> str:
    shown = line[:300].decode(errors="replace")
    return f"{shown}... ({len(line)} bytes)" if len(line) > len(shown) else shown


def _ps(pid: int, column: str) -> str:
    """One column of ps(1) for a process, for systems without /proc."""
    done = subprocess.run(
        ["ps", "-o", f"{column}=", "-p", str(pid)], capture_output=True, check=True, text=True
    )
    return done.stdout.strip()


def _ps_seconds(clock: str) -> float:
    """``[[days-]hours:]minutes:seconds`` as seconds."""
    days, _, rest = clock.rpartition("-")
    seconds = 0.0
    for part in rest.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds + 86400 * int(days or 0)
