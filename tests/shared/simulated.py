"""A Redis on a ``VirtualTime``, and processes that share it.

The scripts are run by fakeredis, and all that has to do with time is the timeline's: the time that
scripts go by, the expiry of keys, and the latency of a round trip. It goes away when a test says
so. A process dies as a killed one does: without a word, whatever it was doing.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import fakeredis

from holysheep import config
from holysheep.shared.link import Command, Link, ServerError
from holysheep.shared.scripts import NEWS, Script, script
from tests.fakes import Killed, VirtualTime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.fakes import Task

_TIME = "local now = tonumber(redis.call('GET', 'now'))\n"
"""What the scripts go by: it is set before each of them."""


def script_of(name: str) -> Script:
    """A script that goes by the timeline."""
    return script(name, time=_TIME)


class SimulatedRedis:
    """One Redis. ``latency_s`` is a round trip; with ``jitter`` from half to one and a half of it.

    ``ran`` counts the scripts by name. While it ``is_away``, whoever asks it is told so when his
    time limit is over, or at once where it ``refuses``.
    """

    def __init__(
        self, time: VirtualTime, *, latency_s: float = 0.001, jitter: int | None = None
    ) -> None:
        self.time = time
        self.ran: Counter[str] = Counter()
        self.processes: list[Process] = []
        self.is_away = False
        self.refuses = False
        self.latency_s = latency_s
        self._random = None if jitter is None else random.Random(jitter)
        server = fakeredis.FakeServer()
        server.dbs[0] = _on_timeline(type(server.dbs[0]), time)(server.lock)
        self.data = fakeredis.FakeStrictRedis(server=server)
        self._news = self.data.pubsub()
        self._news.subscribe(NEWS)
        self._news.get_message()
        self._known: dict[str, str] = {}
        self._callers: list[Task] = []
        self._expected = 0
        self._living: list[Task] = []
        self._doomed: list[Task] = []

    def process(self) -> Process:
        """One more process that uses it."""
        self.processes.append(Process(self, len(self.processes)))
        return self.processes[-1]

    def spawn(
        self, work: Callable[..., Any], *args: Any, after_s: float = 0.0, **options: Any
    ) -> Task:
        """Have ``work`` done by a caller. When all of them have ended, nobody hears news any more.

        Or else the timeline would never end.
        """

        def live() -> Any:
            self._living.append(task)
            try:
                if task in self._doomed:
                    raise Killed
                return work(*args, **options)
            finally:
                self._living.remove(task)
                self._expected -= 1
                if not self._expected:
                    self._let_go()

        self._expected += 1
        task = self.time.spawn(live, after_s=after_s)
        self._callers.append(task)
        return task

    def run(self) -> list[Any]:
        """Let all callers run to their ends; results and errors in the order of ``spawn``."""
        self.time.run()
        callers, self._callers = self._callers, []
        for process in self.processes:
            process.check()
        return [task.outcome for task in callers]

    def kill(self, task: Task, *, after_s: float) -> None:
        """Have a caller interrupted where it waits then, or when it begins."""
        self.spawn(self.throw, task, after_s=after_s)

    def throw(self, task: Task) -> None:
        """Interrupt a caller."""
        if task in self._living:
            self.time.throw(task, Killed())
        else:
            self._doomed.append(task)

    def go_away(self, *, refuses: bool = False) -> None:
        """Answer nobody from now on."""
        self.is_away = True
        self.refuses = refuses
        if refuses:
            self._wake_all()

    def come_back(self) -> None:
        """Answer again."""
        self.is_away = False

    @property
    def has_callers(self) -> bool:
        """Whether anybody is left for whom news would be heard."""
        return self._expected > 0

    def one_way_s(self) -> float:
        """How long the next message takes."""
        part = 0.5 if self._random is None else self._random.uniform(0.25, 0.75)
        return self.latency_s * part

    def evaluate(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a script, and send what it publishes on its way."""
        self.ran[script.name] += 1
        if script.sha not in self._known:
            self._known[script.sha] = str(self.data.script_load(script.text))
        self.data.set("now", repr(self.time.wall()))
        found = self.data.evalsha(self._known[script.sha], len(keys), *keys, *args)
        while message := self._news.get_message():
            for process in self.processes:
                process.server.post(message["data"])
        return found

    def keys(self, pattern: str = "*") -> list[str]:
        """The keys that there are."""
        found = (key.decode() for key in self.data.keys(f"holysheep:1:{pattern}"))
        return sorted(found)

    def _let_go(self) -> None:
        if self.is_away:
            for process in self.processes:
                process.link.close()
        self._wake_all()

    def _wake_all(self) -> None:
        for process in self.processes:
            process.server.wake()


def _on_timeline(database: type, time: VirtualTime) -> type:
    """The kind of database whose keys expire on the timeline."""

    class OnTimeline(database):  # type: ignore[misc]
        time_of = property(lambda _: time.wall(), lambda _, __: None)

    OnTimeline.time = OnTimeline.time_of  # type: ignore[attr-defined]
    return OnTimeline


class Process:
    """A process with its link. ``spawn`` is for what the link and others begin in it."""

    def __init__(self, redis: SimulatedRedis, number: int) -> None:
        self.server = Connection(redis, self)
        self._redis = redis
        self._tasks: list[Task] = []
        self.link = Link(
            self.server,
            clock=redis.time,
            spawn=self.spawn,
            rng=random.Random(number).random,
            script_of=script_of,
        )

    def spawn(self, work: Callable[[], None]) -> None:
        """Have ``work`` done beside the callers."""
        self._tasks.append(self._redis.time.spawn(work))

    def die(self, *callers: Task) -> None:
        """End all that it does, ``callers`` too, and reach Redis no more."""
        self.server.is_dead = True
        for task in self._tasks:
            self._redis.time.throw(task, Killed())
        for task in callers:
            self._redis.throw(task)

    def check(self) -> None:
        """Raise what went wrong beside the callers."""
        for task in self._tasks:
            if isinstance(task.outcome, BaseException) and not isinstance(task.outcome, Killed):
                raise task.outcome
        self._tasks = [task for task in self._tasks if task.ended_s is None]


class Connection:
    """A ``Server``: the way of one process to the Redis.

    ``is_cut`` is a network that fails it; while it ``is_deaf``, news are lost on their way to it.
    """

    def __init__(self, redis: SimulatedRedis, process: Process) -> None:
        self.is_dead = False
        self.is_cut = False
        self.is_deaf = False
        self.closed = 0
        self.trips = 0
        self._redis = redis
        self._process = process
        self._time = redis.time
        self._changed = redis.time.condition()
        self._inbox: deque[tuple[float, bytes]] = deque()
        self._is_subscribed = False

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return self._round_trip(lambda: self._redis.evaluate(script, keys, args))

    def run_all(self, commands: Sequence[Command]) -> None:
        def evaluate_all() -> None:
            for each in commands:
                self._redis.evaluate(*each)

        self._round_trip(evaluate_all)

    def hear(self, tell: Callable[[bytes], None], may_go_on: Callable[[], bool]) -> None:
        self._round_trip(self._subscribe)
        try:
            tell(b"")
            while may_go_on():
                if not self._redis.has_callers:
                    self._process.link.rest()
                    return
                message = self._next()
                if self._is_away:
                    raise ServerError("the subscription is lost")
                if message is not None:
                    tell(message)
        finally:
            self._is_subscribed = False

    def close(self) -> None:
        self.closed += 1
        self.wake()

    def post(self, message: bytes) -> None:
        """A message is on its way, if it is for this process."""
        if self._is_subscribed and not self._is_away and not self.is_deaf:
            with self._changed:
                self._inbox.append((self._time.monotonic() + self._redis.one_way_s(), message))
                self._changed.notify_all()

    def wake(self) -> None:
        """Have whoever hears look again whether he may go on."""
        with self._changed:
            self._changed.notify_all()

    @property
    def _is_away(self) -> bool:
        return self._redis.is_away or self.is_cut

    def _subscribe(self) -> None:
        self._inbox.clear()
        self._is_subscribed = True

    def _next(self) -> bytes | None:
        with self._changed:
            if not self._inbox:
                self._changed.wait(config.REDIS_HEAR_S)
            if not self._inbox:
                return None
            due_s, message = self._inbox.popleft()
        self._time.sleep(max(0.0, due_s - self._time.monotonic()))
        return message

    def _round_trip[Found](self, work: Callable[[], Found]) -> Found:
        self.trips += 1
        until_s = self._time.monotonic() + config.REDIS_TIMEOUT_S
        self._travel(until_s)
        found = work()
        self._travel(until_s)
        return found

    def _travel(self, until_s: float) -> None:
        """One way. Raises ``ServerError`` where nothing arrives."""
        if not self._is_away:
            self._time.sleep(self._redis.one_way_s())
        if self.is_dead:
            raise Killed
        if self._is_away:
            if not self._redis.refuses:
                self._time.sleep(max(0.0, until_s - self._time.monotonic()))
            raise ServerError("nobody answers")
