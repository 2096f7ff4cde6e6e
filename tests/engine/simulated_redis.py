"""Several processes on one Redis, on a timeline: the real scripts, and a network that takes time.

fakeredis runs the scripts, which are told the timeline's time instead of the server's. Each process
has a ``Link`` of its own; what scripts publish reaches all of them at once.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import fakeredis

from holysheep.shared.link import Job, Link, ServerError
from holysheep.shared.scripts import NEWS, script
from tests.fakes import VirtualTime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from holysheep.shared.scripts import Script
    from tests.fakes import Task

ROUND_TRIP_S = 0.002
TIME_LIMIT_S = 0.25
_TIMELINE = "local now = tonumber(redis.call('GET', 'timeline'))\n"


class SimulatedRedis:
    """The server. ``is_away`` makes it answer nothing; ``runs`` counts the scripts by name."""

    def __init__(self, time: VirtualTime) -> None:
        self.time = time
        self.is_away = False
        self.is_over = False
        self.runs: Counter[str] = Counter()
        self.data = fakeredis.FakeStrictRedis(server=fakeredis.FakeServer())
        self._news = self.data.pubsub(ignore_subscribe_messages=True)
        self._news.subscribe(NEWS)
        self.hearers: list[Callable[[bytes], None]] = []

    def evaluate(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        self.time.sleep(ROUND_TRIP_S / 2)
        if self.is_away:
            self.time.sleep(TIME_LIMIT_S)
            raise ServerError("no answer")
        self.runs[script.name] += 1
        self.data.set("timeline", repr(self.time.wall()))
        found = self.data.eval(script.text, len(keys), *keys, *args)
        # The first is nothing: the confirmation of the subscription.
        for _ in range(100):
            message = self._news.get_message()
            if message is not None:
                for hearer in list(self.hearers):
                    hearer(message["data"])
            elif self.runs.total() > 1:
                break
        self.time.sleep(ROUND_TRIP_S / 2)
        return found


class _Client:
    """What one process has of the server."""

    def __init__(self, redis: SimulatedRedis) -> None:
        self._redis = redis

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return self._redis.evaluate(script, keys, args)

    def run_all(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.run(job.script, job.keys, job.args())

    def hear(self, tell: Callable[[bytes], None], may_go_on: Callable[[], bool]) -> None:
        tell(b"")
        self._redis.hearers.append(tell)
        while may_go_on() and not self._redis.is_over:
            self._redis.time.sleep(1.0)
        self._redis.hearers.remove(tell)

    def close(self) -> None:
        """There is nothing to close."""


class Processes:
    """So many processes, each with a link, and the callers in them."""

    def __init__(self, count: int = 4, *, seed: int | None = None) -> None:
        self.time = VirtualTime(seed, max_steps=5_000_000)
        self.redis = SimulatedRedis(self.time)
        self.links = [
            Link(
                _Client(self.redis),
                clock=self.time,
                spawn=self.time.spawn,
                rng=lambda: 0.5,
                script_of=partial(script, time=_TIMELINE),
            )
            for _ in range(count)
        ]
        self._callers: list[Task] = []
        self._left = 0

    def spawn(self, work: Callable[..., Any], *args: Any, after_s: float = 0.0) -> Task:
        """Have a caller do something; when the last one has ended, the links are closed."""

        def call() -> Any:
            try:
                return work(*args)
            finally:
                self._left -= 1
                if not self._left:
                    self.redis.is_over = True
                    for link in self.links:
                        link.close()

        self._left += 1
        task = self.time.spawn(call, after_s=after_s)
        self._callers.append(task)
        return task

    def run(self) -> list[Any]:
        """Let all callers run to their ends; their results and errors."""
        self.time.run()
        callers, self._callers = self._callers, []
        return [task.outcome for task in callers]
