"""Processes that use the library, for tests of the state that they share.

``Worker`` starts this file as a process of its own, with OS threads or patched with gevent as the
SDK patches the plugin's, and talks to it in lines of JSON. A worker is told to open a client, and
to call: a number of times, or until it is stopped. What became of each call it reports.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and "gevent" in sys.argv:
    from gevent import monkey

    monkey.patch_all()

import itertools
import json
import os
import subprocess
import tempfile
import threading
import time
import uuid
from collections import Counter, deque
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from devtools.upstream import Upstream
    from tests.redis.servers import RedisServer

__all__ = [
    "COST",
    "MODEL",
    "USAGE",
    "Calls",
    "Crowd",
    "Outcome",
    "Worker",
    "WorkerError",
    "check_redis",
    "is_followed",
    "outcomes_of",
    "spent_of",
    "until",
    "workers_of",
]

Flavour = Literal["threads", "gevent"]

USAGE = {"prompt_tokens": 25, "completion_tokens": 200, "total_tokens": 225}
COST = Decimal("0.00165")
"""What this usage costs at the prices of gpt-4.1."""
MODEL = "gpt-4.1"
UNLIMITED = {"requests_per_minute": 0, "max_concurrency": 100}

FOUR: tuple[Flavour, ...] = ("threads", "gevent", "threads", "gevent")
"""Both kinds at once: what they keep in Redis is the same."""

_ROOT = Path(__file__).resolve().parents[2]
_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 3.0
_ANSWER_TIMEOUT_S = 30.0
_POLL_S = 0.01


class WorkerError(Exception):
    """A worker is gone, silent, or did not understand."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call. Points in time are seconds of the machine's monotonic clock.

    ``error`` is the name of the error's class, and nothing where there was an answer.
    """

    begun_s: float
    ended_s: float
    text: str = ""
    error: str = ""
    message: str = ""
    cache: str = ""
    backend: str = ""
    cost_usd: str = "0"

    @property
    def took_s(self) -> float:
        return self.ended_s - self.begun_s

    @property
    def cost(self) -> Decimal:
        return Decimal(self.cost_usd)


def until(condition: Callable[[], bool], *, timeout_s: float, what: str) -> float:
    """Wait until something holds; returns the seconds that it took. AssertionError if too many."""
    begun_s = time.monotonic()
    while not condition():
        assert time.monotonic() - begun_s < timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(_POLL_S)
    return time.monotonic() - begun_s


# --- the test's side ---


class Calls:
    """Calls that a worker has been told to make."""

    def __init__(self, worker: Worker, number: int) -> None:
        self._worker = worker
        self._number = number
        self._outcomes: list[Outcome] = []

    def outcomes(self, timeout_s: float = _ANSWER_TIMEOUT_S) -> list[Outcome]:
        """What became of all of them, when they have ended."""
        self._take(self._worker.result(self._number, timeout_s))
        return self._outcomes

    def so_far(self) -> list[Outcome]:
        """What became of those that have ended."""
        self._take(self._worker.ask({"do": "look", "of": self._number}))
        return self._outcomes

    def stop(self) -> None:
        """Begin no more calls; those that are under way go on."""
        self._worker.ask({"do": "stop", "of": self._number})

    def _take(self, found: list[dict[str, Any]]) -> None:
        self._outcomes += [Outcome(**each) for each in found]


class Worker:
    """A process that uses the library."""

    def __init__(self, flavour: Flavour) -> None:
        self.flavour = flavour
        self._answers: dict[int, Any] = {}
        self._changed = threading.Condition()
        self._numbers = itertools.count(1)
        self._is_over = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.redis.processes", flavour],
            cwd=_ROOT,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._child.pid

    def open(self, name: str, **settings: Any) -> None:
        """Make the client ``name`` anew; ``settings`` are those of ``Client``."""
        self.ask({"do": "open", "name": name, "settings": settings})

    def call(
        self,
        name: str,
        prompts: str | Sequence[str] = "{n}",
        *,
        count: int | None = None,
        threads: int = 1,
        pause_s: float = 0.0,
        **params: Any,
    ) -> Calls:
        """Begin to call with the client ``name``, ``count`` times or until stopped.

        The prompts take turns; ``{n}`` in them is the number of the call. ``params`` are those of
        ``Client.chat``. A thread pauses after each of its calls.
        """
        number = self._send(
            {
                "do": "call",
                "name": name,
                "prompts": [prompts] if isinstance(prompts, str) else list(prompts),
                "count": count,
                "threads": threads,
                "pause_s": pause_s,
                "params": params,
            }
        )
        return Calls(self, number)

    def ask(self, command: dict[str, Any], timeout_s: float = _ANSWER_TIMEOUT_S) -> Any:
        """Send a command, and return its result."""
        return self.result(self._send(command), timeout_s)

    def result(self, number: int, timeout_s: float) -> Any:
        """What a command came to."""
        with self._changed:
            self._changed.wait_for(lambda: number in self._answers or self._is_over, timeout_s)
            if number in self._answers:
                return self._answers.pop(number)
        raise WorkerError(f"a worker with {self.flavour} gave no answer: {self.complaints()}")

    def kill(self) -> None:
        """End the process as a power cut does."""
        self._child.kill()
        self._child.wait()

    def complaints(self) -> str:
        """What it has written to its standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def close(self) -> None:
        """End the process. Does nothing the second time."""
        if self._errors.closed:
            return
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.terminate()
        try:
            self._child.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._reader.join(_STOP_TIMEOUT_S)
        for pipe in (self._child.stdin, self._child.stdout):
            pipe.close()
        self._errors.close()

    def wait_until_ready(self) -> Self:
        self.result(0, _START_TIMEOUT_S)
        return self

    def _send(self, command: dict[str, Any]) -> int:
        number = next(self._numbers)
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps({"number": number, **command}).encode() + b"\n")
            self._child.stdin.flush()
        except OSError as error:
            raise WorkerError(f"a worker is gone: {self.complaints()}") from error
        return number

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            answer = json.loads(line)
            with self._changed:
                self._answers[answer["number"]] = answer["result"]
                self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


@contextmanager
def workers_of(flavours: Sequence[Flavour] = FOUR) -> Iterator[list[Worker]]:
    """Processes that are ready for work. What they have met must be no error of their own."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(flavour)) for flavour in flavours]
        yield [worker.wait_until_ready() for worker in workers]
        for worker in workers:
            assert "Traceback" not in worker.complaints(), worker.complaints()


# --- several ---


class Crowd:
    """Workers with one credential that is nobody else's."""

    def __init__(self, workers: Sequence[Worker], upstream: Upstream, url: str) -> None:
        self.workers = workers
        self.api_key = f"hs-test-{uuid.uuid4().hex}"
        self._upstream = upstream
        self._url = url
        # Not above: a worker begins with gevent, and with what it needs.
        from holysheep.settings import parse_settings

        fields = {"api_key": self.api_key, "base_url": upstream.url}
        self.fingerprint = parse_settings(fields).fingerprint

    def open(self, **settings: Any) -> Crowd:
        for worker in self.workers:
            worker.open(
                "client",
                api_key=self.api_key,
                base_url=self._upstream.url,
                redis_url=self._url,
                **{"default_model": MODEL, **UNLIMITED, **settings},
            )
        return self

    def of(self, workers: Sequence[Worker]) -> Crowd:
        """Others with the same credential."""
        other = Crowd(workers, self._upstream, self._url)
        other.api_key, other.fingerprint = self.api_key, self.fingerprint
        return other

    def call(self, prompts: str | Sequence[str], **options: Any) -> list[Outcome]:
        """All workers call at the same time; what became of all calls."""
        calls = [worker.call("client", prompts, **options) for worker in self.workers]
        return [outcome for each in calls for outcome in each.outcomes()]

    def call_apart(self, **options: Any) -> list[Outcome]:
        """The same with prompts that are asked but once."""
        run = uuid.uuid4().hex
        calls = [
            worker.call("client", f"{run} {number} {{n}}", **options)
            for number, worker in enumerate(self.workers)
        ]
        return [outcome for each in calls for outcome in each.outcomes()]


def outcomes_of(outcomes: Sequence[Outcome]) -> Counter[str]:
    return Counter(outcome.error or outcome.cache for outcome in outcomes)


def check_redis(outcomes: Sequence[Outcome]) -> None:
    """All were answered, with the help of Redis."""
    failed = [outcome for outcome in outcomes if outcome.error]
    assert not failed, failed[:3]
    assert Counter(outcome.backend for outcome in outcomes) == {"redis": len(outcomes)}


def spent_of(server: RedisServer, fingerprint: str) -> tuple[Decimal, Decimal]:
    """What all processes have spent and claimed of a credential's budget, as Redis knows it."""
    client = server.client()
    spent = claimed = Decimal(0)
    for key in client.keys(f"holysheep:1:{{{fingerprint}}}:spend:*"):
        for name, amounts in client.hgetall(key).items():
            if name != b"id":
                theirs, most = amounts.decode().split()
                spent += Decimal(theirs)
                claimed += Decimal(most)
    return spent, claimed


def is_followed(server: RedisServer) -> bool:
    """Whether anybody waits for an answer that another process is getting."""
    client = server.client()
    return any(client.hget(key, "followed") for key in client.keys("holysheep:1:*:lead:*"))


# --- the worker's side ---


class _Load:
    """Calls that are made here."""

    def __init__(self, client: Any, command: dict[str, Any]) -> None:
        self.ended: deque[Outcome] = deque()
        self.is_stopped = False
        self._client = client
        self._command = command
        count = command["count"]
        self._left = iter(itertools.count() if count is None else range(count))
        self._lock = threading.Lock()

    def run(self) -> None:
        threads = [threading.Thread(target=self._work) for _ in range(self._command["threads"])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def taken(self) -> list[dict[str, Any]]:
        """What has not been told yet."""
        told = []
        while self.ended:
            told.append(asdict(self.ended.popleft()))
        return told

    def _work(self) -> None:
        prompts = self._command["prompts"]
        while not self.is_stopped:
            with self._lock:
                number = next(self._left, None)
            if number is None:
                return
            prompt = prompts[number % len(prompts)].replace("{n}", str(number))
            self.ended.append(self._outcome(prompt))
            if self._command["pause_s"]:
                time.sleep(self._command["pause_s"])

    def _outcome(self, prompt: str) -> Outcome:
        begun_s = time.monotonic()
        try:
            result = self._client.chat(prompt, **self._command["params"])
        except Exception as error:  # noqa: BLE001
            kind, message = type(error).__name__, str(error)
            return Outcome(begun_s, time.monotonic(), error=kind, message=message)
        return Outcome(
            begun_s,
            time.monotonic(),
            text=result.text,
            cache=result.meta.cache,
            backend=result.meta.backend,
            cost_usd=str(result.cost_usd),
        )


def _work() -> None:
    """Do what the lines of standard input say, until it ends."""
    from holysheep.client import Client

    writing = threading.Lock()
    clients: dict[str, Any] = {}
    loads: dict[int, _Load] = {}

    def answer(number: int, result: Any = None) -> None:
        with writing:
            sys.stdout.write(json.dumps({"number": number, "result": result}) + "\n")
            sys.stdout.flush()

    def run(number: int, load: _Load) -> None:
        load.run()
        answer(number, load.taken())

    answer(0)
    while line := _read_line():
        command = json.loads(line)
        number = command["number"]
        match command["do"]:
            case "open":
                former = clients.pop(command["name"], None)
                if former is not None:
                    former.close()
                clients[command["name"]] = Client(**command["settings"])
                answer(number)
            case "call":
                load = loads[number] = _Load(clients[command["name"]], command)
                threading.Thread(target=run, args=(number, load), daemon=True).start()
            case "look":
                answer(number, loads[command["of"]].taken())
            case "stop":
                loads[command["of"]].is_stopped = True
                answer(number)


def _read_line() -> bytes:
    if "gevent" not in sys.argv:
        return sys.stdin.buffer.readline()
    from gevent import get_hub

    # To wait for the next command here would stop all greenlets.
    line: bytes = get_hub().threadpool.apply(sys.stdin.buffer.readline)
    return line


if __name__ == "__main__":
    _work()
