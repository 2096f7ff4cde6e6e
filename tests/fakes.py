"""What the engine's tests put in place of time, of the layers below, and of the gateway.

``FakeClock`` is for one thread. ``VirtualTime`` runs many: exactly one at a time, on a timeline
that jumps to the next wake-up, so that an hour of 50 callers takes milliseconds and is the same
every time; a seed decides who goes next. ``ScriptedHandler`` stands for the layers below one that
is tested, ``ScriptedGateway`` for the connection pool below a whole engine. ``OneLayer`` puts a
layer, a clock and a handler together.
"""

from __future__ import annotations

import json
import math
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx

import holysheep
from holysheep.budget import Limits
from holysheep.errors import ConnectFailed
from holysheep.types import (
    Call,
    ChatRequest,
    Choice,
    Completed,
    Completion,
    Delta,
    Event,
    Layer,
    Policy,
    Trace,
    Usage,
)

if TYPE_CHECKING:
    from decimal import Decimal
    from types import FrameType, TracebackType

    from holysheep.ledger import Ledger
    from holysheep.ports import Clock
    from holysheep.types import Purse

KEY = "test-key-" + "a" * 20
START_S = 1_000.0
WALL_S = 1_767_225_600.0
"""2026-01-01 00:00 UTC."""

Timeline = float | Event | BaseException
"""A wait in seconds, an event to pass on, or an error to raise."""
Behaviour = BaseException | Iterable[Timeline] | Callable[[Call], Iterable[Timeline]]

BROKEN_OFF: Sequence[Timeline] = (Delta("a"), ConnectFailed("broke"))
"""A streamed answer whose connection breaks after the first word."""


class FakeClock:
    """A clock for one thread: waiting advances it. A wait that nobody can end is an error."""

    def __init__(self) -> None:
        self.now_s = START_S
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def wall(self) -> float:
        return WALL_S + self.now_s - START_S

    def sleep(self, seconds: float) -> None:
        self.slept.append(_checked(seconds))
        self.now_s += seconds

    def lock(self) -> _SoloLock:
        return _SoloLock(self)

    def condition(self) -> _SoloLock:
        return _SoloLock(self, reentrant=True)


class StandingClock(FakeClock):
    """A time that stands still, for real threads: its locks are real."""

    def lock(self) -> Any:
        return threading.Lock()

    def condition(self) -> Any:
        return threading.Condition()


class _SoloLock:
    """Lock and condition of a ``FakeClock``; taking it twice would hang a real one."""

    def __init__(self, clock: FakeClock, *, reentrant: bool = False) -> None:
        self._clock = clock
        self._reentrant = reentrant
        self._depth = 0

    def __enter__(self) -> Self:
        if self._depth and not self._reentrant:
            raise DeadlockError("a lock was taken twice")
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1

    def wait(self, timeout: float | None = None) -> bool:
        if not self._depth:
            raise RuntimeError("wait without the lock")
        if timeout is None:
            raise DeadlockError("nobody could ever end this wait")
        self._clock.now_s += _wait_span(timeout)
        return False

    def notify_all(self) -> None:
        if not self._depth:
            raise RuntimeError("notify without the lock")


class DeadlockError(BaseException):
    """Nobody can ever run again. No ``Exception``, so that nothing mistakes it for a failure."""


class Killed(BaseException):
    """What a test throws at a caller, as gevent throws ``GreenletExit``."""


class Task:
    """A caller on a ``VirtualTime``; ``outcome`` is its result or its error."""

    def __init__(self, work: Callable[[], Any], wake_s: float | None) -> None:
        self.outcome: Any = None
        self.ended_s: float | None = None
        self.work = work
        self.wake_s = wake_s
        self.is_ready = False
        self.takes_lock = False
        self.thrown: BaseException | None = None
        self.baton = threading.Semaphore(0)
        self.thread = threading.Thread(target=lambda: None)


class VirtualTime:
    """A ``Clock`` for many callers, each a real thread, of which exactly one runs at a time.

    Without ``seed`` callers run in the order in which they became ready, until they wait. With
    one, a random ready caller goes next, also at every lock; with ``per_line`` also after any
    line of the engine, with that probability, as the threads of an operating system may.
    """

    def __init__(
        self, seed: int | None = None, *, per_line: float = 0.0, max_steps: int = 500_000
    ) -> None:
        self.now_s = START_S
        self._random = None if seed is None else random.Random(seed)
        self._per_line = per_line
        self._steps_left = max_steps
        self._tasks: list[Task] = []
        self._ready: list[Task] = []
        self._running: Task | None = None
        self._all_ended = threading.Semaphore(0)
        self._stuck = ""

    def monotonic(self) -> float:
        return self.now_s

    def wall(self) -> float:
        return WALL_S + self.now_s - START_S

    def sleep(self, seconds: float) -> None:
        self.suspend(_checked(seconds))

    def lock(self) -> VirtualLock:
        return VirtualLock(self)

    def condition(self) -> VirtualCondition:
        return VirtualCondition(self)

    def spawn(
        self, work: Callable[..., Any], *args: Any, after_s: float = 0.0, **options: Any
    ) -> Task:
        """Have ``work`` run by a thread of its own, from ``after_s`` seconds on."""
        task = Task(lambda: work(*args, **options), self.now_s + after_s if after_s else None)
        task.thread = threading.Thread(target=self._live, args=(task,), daemon=True)
        self._tasks.append(task)
        if not after_s:
            self._make_ready(task)
        task.thread.start()
        return task

    def run(self) -> list[Any]:
        """Let all run to their ends; results and errors in the order of ``spawn``.

        Raises ``DeadlockError`` if there was a moment when nobody could ever run again.
        """
        first = self._next()
        if first is not None:
            self._running = first
            first.baton.release()
            self._all_ended.acquire()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.thread.join()
        if self._stuck:
            raise DeadlockError(self._stuck)
        return [task.outcome for task in tasks]

    def throw(self, task: Task, error: BaseException) -> None:
        """Have ``error`` raised where ``task`` waits, or waits next.

        Never where it takes a lock: nobody keeps one while others run under gevent, and threads
        of an operating system cannot be interrupted there.
        """
        task.thrown = error
        if task is not self._running and not task.takes_lock:
            self._make_ready(task)

    def suspend(self, seconds: float | None, *, may_throw: bool = True) -> None:
        """Let others run until woken, or for ``seconds``."""
        task = self.caller()
        if task is None:
            if seconds is None:
                raise DeadlockError("nobody could ever end this wait")
            self.now_s += seconds
            return
        if not self._is_thrown_at(task, may_throw):
            if seconds is not None:
                later = math.nextafter(self.now_s, math.inf) if seconds > 0 else self.now_s
                task.wake_s = max(later, self.now_s + seconds)
            task.takes_lock = not may_throw
            self._hand_over(task)
            task.takes_lock = False
        if self._is_thrown_at(task, may_throw):
            error, task.thrown = task.thrown, None
            assert error is not None
            raise error

    def wake(self, tasks: list[Task]) -> None:
        """End the waits of ``tasks``."""
        for task in tasks:
            self._make_ready(task)

    def switch(self) -> None:
        """A point at which another may come first."""
        if self._random is not None and self._ready and self._random.random() < 0.5:
            self._step_aside()

    def caller(self) -> Task | None:
        """Who is running; None = the test itself, outside ``run``."""
        running = self._running
        if running is not None and threading.current_thread() is not running.thread:
            raise RuntimeError("a thread that this timeline did not start uses it")
        return running

    @staticmethod
    def _is_thrown_at(task: Task, may_throw: bool) -> bool:
        return isinstance(task.thrown, DeadlockError) or (may_throw and task.thrown is not None)

    def _live(self, task: Task) -> None:
        task.baton.acquire()
        try:
            if task.thrown is not None:
                raise task.thrown
            if self._per_line:
                sys.settrace(self._trace)
            task.outcome = task.work()
        except BaseException as error:  # noqa: BLE001 - it is the outcome
            task.outcome = error
        finally:
            sys.settrace(None)
            task.ended_s = self.now_s
            self._running = self._next()
            (self._running.baton if self._running else self._all_ended).release()

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(_ENGINE):
            return None
        assert self._random is not None
        if event == "line" and self._ready and self._random.random() < self._per_line:
            self._step_aside()
        return self._trace

    def _step_aside(self) -> None:
        task = self.caller()
        if task is not None:
            self._make_ready(task)
            self._hand_over(task)

    def _hand_over(self, task: Task) -> None:
        following = self._next()
        if following is not task:
            assert following is not None
            self._running = following
            following.baton.release()
            task.baton.acquire()

    def _make_ready(self, task: Task) -> None:
        task.wake_s = None
        if not task.is_ready and task.ended_s is None:
            task.is_ready = True
            self._ready.append(task)

    def _next(self) -> Task | None:
        """Take the next to run off the list; None when all have ended."""
        self._steps_left -= 1
        if not self._ready and not self._jump():
            return None
        if self._steps_left == 0:
            self._give_up("callers were still busy after the last step")
        index = 0 if self._random is None else self._random.randrange(len(self._ready))
        task = self._ready.pop(index)
        task.is_ready = False
        return task

    def _jump(self) -> bool:
        """Go to the next wake-up; whether there is anybody left."""
        living = [task for task in self._tasks if task.ended_s is None]
        wakes = [task.wake_s for task in living if task.wake_s is not None]
        if wakes:
            self.now_s = max(self.now_s, min(wakes))
            for task in living:
                if task.wake_s is not None and task.wake_s <= self.now_s:
                    self._make_ready(task)
        elif living:
            self._give_up(f"{len(living)} callers wait, and nobody is left to wake them")
        return bool(living)

    def _give_up(self, why: str) -> None:
        self._stuck = why
        for task in self._tasks:
            if task.ended_s is None:
                task.thrown = DeadlockError(why)
                self._make_ready(task)


_ENGINE = str(Path(holysheep.__file__).parent)


class VirtualLock:
    """A plain lock on a ``VirtualTime``: taken twice by one caller, it hangs."""

    _reentrant = False

    def __init__(self, time: VirtualTime) -> None:
        self._time = time
        self._owner: object = None
        self._depth = 0
        self._blocked: list[Task] = []

    def __enter__(self) -> Self:
        self._time.switch()
        self._take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if not self._depth:
            self._free()
            self._time.switch()

    def _take(self, depth: int = 1) -> None:
        caller = self._time.caller() or self._time
        while self._depth and not (self._reentrant and self._owner is caller):
            if isinstance(caller, Task) and caller not in self._blocked:
                self._blocked.append(caller)
            self._time.suspend(None, may_throw=False)
        self._owner = caller
        self._depth += depth

    def _free(self) -> None:
        self._depth = 0
        self._owner = None
        blocked, self._blocked = self._blocked, []
        self._time.wake(blocked)


class VirtualCondition(VirtualLock):
    """A condition on a ``VirtualTime``, reentrant like ``threading.Condition``."""

    _reentrant = True

    def __init__(self, time: VirtualTime) -> None:
        super().__init__(time)
        self._waiting: list[Task] = []

    def wait(self, timeout: float | None = None) -> bool:
        caller = self._time.caller()
        if not self._depth or self._owner is not (caller or self._time):
            raise RuntimeError("wait without the lock")
        span = None if timeout is None else _wait_span(timeout)
        depth = self._depth
        self._free()
        if caller is not None:
            self._waiting.append(caller)
        try:
            self._time.suspend(span)
        finally:
            notified = caller is not None and caller not in self._waiting
            if caller in self._waiting:
                self._waiting.remove(caller)
            self._take(depth)
        return notified

    def notify_all(self) -> None:
        if not self._depth:
            raise RuntimeError("notify without the lock")
        waiting, self._waiting = self._waiting, []
        self._time.wake(waiting)


def _checked(seconds: float) -> float:
    """What ``time.sleep`` would take."""
    if math.isnan(seconds) or seconds < 0:
        raise ValueError(f"sleep({seconds})")
    return seconds


def _wait_span(timeout: float) -> float:
    """What ``threading.Condition.wait`` makes of a time-out."""
    if timeout > threading.TIMEOUT_MAX:
        raise OverflowError(f"wait({timeout})")
    return timeout if timeout > 0 else 0.0


class ScriptedHandler:
    """Stands for the layers below: one behaviour a call, the last of them for all that follow.

    ``calls``, ``started_s`` and ``outcomes`` record what happened, in order of arrival;
    an outcome is ``"answered"``, ``"abandoned"`` or the error that was raised.
    """

    def __init__(self, clock: Clock, *behaviours: Behaviour) -> None:
        self._clock = clock
        self._behaviours = behaviours or (answered(),)
        self._lock = clock.lock()
        self.calls: list[Call] = []
        self.started_s: list[float] = []
        self.outcomes: list[Any] = []
        self.in_flight = 0
        self.max_in_flight = 0

    def __call__(self, call: Call) -> Iterator[Event]:
        with self._lock:
            number = len(self.calls)
            self.calls.append(call)
            self.started_s.append(self._clock.monotonic())
            self.outcomes.append("abandoned")
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
        call.trace.attempts += 1
        try:
            yield from self._events(call, self._behaviours[min(number, len(self._behaviours) - 1)])
            self.outcomes[number] = "answered"
        except GeneratorExit:
            raise
        except BaseException as error:
            self.outcomes[number] = error
            raise
        finally:
            with self._lock:
                self.in_flight -= 1

    def _events(self, call: Call, behaviour: Behaviour) -> Iterator[Event]:
        if isinstance(behaviour, BaseException):
            raise copy(behaviour)
        for step in behaviour(call) if callable(behaviour) else behaviour:
            if isinstance(step, BaseException):
                raise copy(step)
            if isinstance(step, Delta | Completed):
                yield step
            else:
                self._clock.sleep(step)

    @property
    def models(self) -> list[str]:
        """The models that were asked, in order."""
        return [call.request.model for call in self.calls]


class OneLayer:
    """The layer that is tested, alone over a scripted handler, with a clock for one thread.

    ``calls`` are those that were made to the layer; ``below.calls`` are what it made of them.
    """

    def __init__(self, build: Callable[[FakeClock], Layer], *behaviours: Behaviour) -> None:
        self.clock = FakeClock()
        self.layer = build(self.clock)
        self.below = ScriptedHandler(self.clock, *behaviours)
        self.calls: list[Call] = []

    def events(self, request: ChatRequest | None = None, **how: Any) -> Iterator[Event]:
        """The answer as it arrives; ``how`` are the options of ``a_call``."""
        call = a_call(self.clock, request, **how)
        self.calls.append(call)
        return self.layer(call, self.below)

    def ask(self, request: ChatRequest | None = None, **how: Any) -> str:
        """Read the answer to its end."""
        return text_of(self.events(request, **how))


class ScriptedGateway:
    """Stands for the connection pool of a credential: HTTP requests in, responses out.

    ``respond(request_body, number)`` returns ``(latency_s, status, headers, body)`` or an
    exception to raise. A body is a JSON value, or a list of waits, texts and exceptions that are
    sent one after the other. ``sent_s`` are the moments at which requests left, ``statuses`` what
    they were answered with; ``in_use`` are those whose response is not closed.
    """

    def __init__(
        self,
        clock: Clock,
        respond: Callable[[dict[str, Any], int], tuple[float, int, dict[str, str], Any] | Exception]
        | None = None,
    ) -> None:
        self._clock = clock
        self._respond = respond or (lambda body, _: good_answer(body))
        self.in_use = 0
        self.max_in_use = 0
        self.bodies: list[dict[str, Any]] = []
        self.sent_s: list[float] = []
        self.statuses: list[int | None] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        number = len(self.bodies)
        self.bodies.append(body)
        self.sent_s.append(self._clock.monotonic())
        self.statuses.append(None)
        self.in_use += 1
        self.max_in_use = max(self.max_in_use, self.in_use)
        try:
            response = self._respond(body, number)
            if isinstance(response, Exception):
                raise response
            latency_s, status, headers, content = response
            self.wait(latency_s, request)
        except BaseException:
            self.in_use -= 1
            raise
        self.statuses[number] = status
        return httpx.Response(
            status,
            headers={"content-type": "application/json", **headers},
            stream=_Body(
                self, request, content if isinstance(content, list) else [json.dumps(content)]
            ),
            request=request,
        )

    def wait(self, seconds: float, request: httpx.Request) -> None:
        """Let time pass as on the wire: no longer than until the deadline of the request."""
        left = request.extensions["timeout"]["read"].deadline_s - self._clock.monotonic()
        self._clock.sleep(max(0.0, min(seconds, left)))
        if seconds > left:
            raise httpx.ReadTimeout("the deadline passed", request=request)

    def resize(self, **_: int) -> None:
        """Nothing to resize."""

    def close(self) -> None:
        """Nothing to close."""


class _Body(httpx.SyncByteStream):
    """A response body that holds its connection until it is closed."""

    def __init__(
        self, gateway: ScriptedGateway, request: httpx.Request, parts: list[float | str | Exception]
    ) -> None:
        self._gateway = gateway
        self._request = request
        self._parts = parts
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            if isinstance(part, Exception):
                raise part
            if isinstance(part, str):
                yield part.encode()
            else:
                self._gateway.wait(part, self._request)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._gateway.in_use -= 1


def good_answer(
    body: dict[str, Any], text: str = "Hi", latency_s: float = 1.0, **usage: int
) -> tuple[float, int, dict[str, str], Any]:
    """A gateway's complete answer to ``body``."""
    counts = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, **usage}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    content = {"id": "x", "model": body["model"], "choices": [choice], "usage": counts}
    return latency_s, 200, {"x-request-id": "req-1"}, content


def streamed_answer(
    body: dict[str, Any], *words: str, pause_s: float = 1.0
) -> tuple[float, int, dict[str, str], Any]:
    """A gateway's streamed answer to ``body``: a word after each pause."""
    parts: list[float | str | Exception] = []
    for word in (*words, None):
        choice = {"index": 0, "delta": {"content": word or ""}, "finish_reason": None}
        if word is None:
            choice["finish_reason"] = "stop"
        parts += [pause_s, _event({"model": body["model"], "choices": [choice]})]
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    parts += [_event({"choices": [], "usage": usage}), "data: [DONE]\n\n"]
    return 0.0, 200, {"content-type": "text/event-stream"}, parts


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def a_request(text: str = "Hello", **fields: Any) -> ChatRequest:
    """A request to ``gpt-4.1`` with a limit of 100 tokens."""
    messages = [{"role": "user", "content": text}]
    return ChatRequest({"model": "gpt-4.1", "messages": messages, "max_tokens": 100, **fields})


def a_call(
    clock: Clock,
    request: ChatRequest | None = None,
    *,
    timeout_s: float = 60.0,
    stream: bool = True,
    shows_reasoning: bool = True,
    purse: Purse | None = None,
    **policy: Any,
) -> Call:
    """A call that begins now."""
    now = clock.monotonic()
    how = Policy(**policy)
    return Call(
        request or a_request(),
        how,
        now + timeout_s,
        Trace(started_s=now, cache=how.planned),
        stream=stream,
        shows_reasoning=shows_reasoning,
        purse=purse,
    )


def a_purse(ledger: Ledger, daily: Decimal | None = None, monthly: Decimal | None = None) -> Purse:
    """What the calls of a credential spend from, in the memory of a ledger's process alone."""
    return ledger.invocation("test").purse("credential", Limits(daily, monthly))


def a_completion(text: str = "Hi there", *, model: str = "gpt-4.1", **fields: Any) -> Completion:
    """A complete answer of 15 tokens."""
    fields = {"asked_model": model, "usage": Usage(prompt_tokens=10, completion_tokens=5), **fields}
    return Completion(model=model, choices=(Choice(text=text),), **fields)


def answered(text: str = "Hi there", *, pause_s: float = 0.0, **fields: Any) -> list[Timeline]:
    """A streamed answer: a wait, each word after the same wait, and the completion."""
    words = [piece for piece in text.split(" ") if piece]
    pieces = [Delta(text=word if not i else f" {word}") for i, word in enumerate(words)]
    steps: list[Timeline] = []
    for event in (*pieces, Completed(a_completion(text, **fields))):
        steps += [pause_s, event] if pause_s else [event]
    return steps


def text_of(events: Iterable[Event]) -> str:
    """What a reader of all the events sees."""
    return "".join(event.text for event in events if isinstance(event, Delta))


def abandon(events: Iterator[Any], *, after: int = 1) -> None:
    """Read so many events and leave, as a caller does that is stopped in between.

    A test keeps ``events`` until its end: what it checks may not rely on their being collected.
    """
    for _ in range(after):
        next(events)
    events.close()  # type: ignore[attr-defined]


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """``work(0)`` to ``work(count - 1)``, all at once in real threads; results and errors."""
    outcomes: list[Any] = [None] * count
    start = threading.Barrier(count)

    def one(number: int) -> None:
        start.wait()
        try:
            outcomes[number] = work(number)
        except Exception as error:  # noqa: BLE001 - it is the outcome
            outcomes[number] = error

    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a caller hangs"
    return outcomes


def class_name(value: object) -> str:
    """The id of a test whose parameter is an error or a clock."""
    return type(value).__name__


def kinds(outcomes: Sequence[Any]) -> dict[str, int]:
    """How often each class of outcome occurs."""
    counts: dict[str, int] = {}
    for outcome in outcomes:
        name = type(outcome).__name__
        counts[name] = counts.get(name, 0) + 1
    return counts
