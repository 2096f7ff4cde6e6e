"""What the server remembers: scripts, defaults, counters, the last requests. All of it bounded."""

import json
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from devtools.upstream.behaviours import Behaviour

__all__ = [
    "MAX_ARRIVALS",
    "MAX_RECORDED",
    "MAX_SCRIPTED",
    "MODELS",
    "Record",
    "State",
]

MODELS = "@models"
"""The name under which behaviours of GET /v1/models are scripted."""
MAX_SCRIPTED = 100_000
MAX_RECORDED = 1_000
MAX_RECORDED_BYTES = 64 * 1024 * 1024
MAX_ARRIVALS = 100_000
_MAX_MODELS = 1_000
_MAX_ERRORS = 20
_KINDS = ("answer", "status", "malformed", "models")
_PLAIN: Behaviour = {"kind": "answer"}


@dataclass(frozen=True, slots=True)
class Record:
    """One request as it arrived."""

    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    is_json: bool
    model: str
    arrival_ms: float
    client_port: int

    def to_json(self) -> bytes:
        """As a JSON object; a JSON body is passed on as it came, without parsing it again."""
        headers: dict[str, str] = {}
        for name, value in self.headers:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        head = {
            "method": self.method,
            "path": self.path,
            "headers": headers,
            "model": self.model,
            "arrival_ms": self.arrival_ms,
            "client_port": self.client_port,
        }
        body = self.body if self.is_json else b"null"
        return json.dumps(head).encode()[:-1] + b', "json": ' + body + b"}"


class State:
    """Scripts and counters. ``latency_s`` and ``model_latency_s`` are the server's own latencies.

    A request takes the first of: the script of its model, the script of ``*``, the default of its
    model, the default of ``*``, a plain answer.
    """

    def __init__(self, *, latency_s: float, model_latency_s: Mapping[str, float]) -> None:
        self._latency_s = latency_s
        self._model_latency_s = dict(model_latency_s)
        self._scripts: defaultdict[str, deque[Behaviour]] = defaultdict(deque)
        self._defaults: dict[str, Behaviour] = {}
        self._records: deque[Record] = deque(maxlen=MAX_RECORDED)
        self._record_bytes = 0
        self._arrivals: deque[tuple[float, str]] = deque(maxlen=MAX_ARRIVALS)
        self.in_flight = 0
        self.errors: deque[str] = deque(maxlen=_MAX_ERRORS)
        self._reset_counters()

    def _reset_counters(self) -> None:
        self.calls = 0
        self.models_calls = 0
        self.max_in_flight = self.in_flight
        self.aborted_by_client = 0
        self.dropped_by_server = 0
        self.calls_by_model: Counter[str] = Counter()
        self.answered: Counter[int] = Counter()

    def reset(self) -> None:
        """Forget scripts, defaults, records and counts; what is in flight goes on."""
        self._scripts.clear()
        self._defaults.clear()
        self._records.clear()
        self._record_bytes = 0
        self._arrivals.clear()
        self.errors.clear()
        self._reset_counters()

    def latency_s(self, model: str) -> float:
        """The server's own latency for a model, in seconds."""
        return self._model_latency_s.get(model, self._latency_s)

    def add_script(self, model: str, behaviours: Iterable[Any]) -> int:
        """Queue behaviours; returns how many are queued for ``model``. ValueError if one is odd."""
        checked = [_checked(behaviour) for behaviour in behaviours]
        if self.scripted + len(checked) > MAX_SCRIPTED:
            raise ValueError(f"at most {MAX_SCRIPTED} behaviours can be queued")
        self._scripts[model].extend(checked)
        return len(self._scripts[model])

    def set_default(self, model: str, behaviour: Any) -> None:
        """What happens when the script is used up; None restores the plain answer."""
        if behaviour is None:
            self._defaults.pop(model, None)
        else:
            self._defaults[model] = _checked(behaviour)

    def next_behaviour(self, model: str) -> tuple[Behaviour, str | None]:
        """The behaviour for a request, and the script it was taken from (None: a default)."""
        names = (model,) if model == MODELS else (model, "*")
        for name in names:
            script = self._scripts.get(name)
            if script:
                return script.popleft(), name
        for name in names:
            if name in self._defaults:
                return self._defaults[name], None
        return _PLAIN, None

    def put_back(self, script: str, behaviour: Behaviour) -> None:
        """Return a behaviour to the head of the script it came from."""
        self._scripts[script].appendleft(behaviour)

    @property
    def scripted(self) -> int:
        """Behaviours that wait in all scripts."""
        return sum(map(len, self._scripts.values()))

    def record(self, record: Record) -> None:
        """Keep a request; the oldest go when there are too many or too large ones."""
        if len(self._records) == MAX_RECORDED:
            self._record_bytes -= len(self._records.popleft().body)
        self._records.append(record)
        self._record_bytes += len(record.body)
        while self._record_bytes > MAX_RECORDED_BYTES:
            self._record_bytes -= len(self._records.popleft().body)

    def count_call(self, model: str, arrival_ms: float) -> None:
        """Count a chat request."""
        self.calls += 1
        if model not in self.calls_by_model and len(self.calls_by_model) >= _MAX_MODELS:
            model = "(others)"
        self.calls_by_model[model] += 1
        self._arrivals.append((arrival_ms, model))

    def enter(self) -> None:
        """A chat request is being answered from now on."""
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def leave(self) -> None:
        """The answer is complete, or will never be."""
        self.in_flight -= 1

    def requests_json(self, last: int) -> bytes:
        """The last recorded requests, oldest first, as a JSON array."""
        records = list(self._records)[-last:] if last > 0 else []
        return b"[" + b",".join(record.to_json() for record in records) + b"]"

    def arrivals_ms(self, model: str | None) -> list[float]:
        """When chat requests came (monotonic ms), oldest first."""
        return [at_ms for at_ms, name in self._arrivals if model in (None, name)]

    def counts(self) -> dict[str, Any]:
        """All counters by name."""
        return {
            "calls": self.calls,
            "calls_by_model": dict(self.calls_by_model),
            "models_calls": self.models_calls,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "answered": {str(code): count for code, count in self.answered.items()},
            "aborted_by_client": self.aborted_by_client,
            "dropped_by_server": self.dropped_by_server,
            "scripted": self.scripted,
            "errors": list(self.errors),
            "cpu_s": time.process_time(),
        }


def _checked(behaviour: Any) -> Behaviour:
    if not isinstance(behaviour, dict) or behaviour.get("kind") not in _KINDS:
        raise ValueError(f"not a behaviour: {str(behaviour)[:100]}")
    return behaviour
