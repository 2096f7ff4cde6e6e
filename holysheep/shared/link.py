"""The way to one Redis, which may be away at any time.

*Up.* Scripts run with a time limit. What nobody waits for (``later``) runs one after the other
behind the calls.

*Away.* The first failure of any kind (no answer in time, out of memory, a replica that refuses
writes) shuts the link for the whole process: from then on everybody hears ``Away`` at once and goes
on by himself, while one thread tries, with growing pauses, until a write succeeds again.

*News.* One subscription a process hears what others have changed, so that nobody asks again and
again. A message that is lost does no harm: each wait has an end, after which Redis itself is asked.
"""

import logging
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, Self

from holysheep import config
from holysheep.fair import FairSemaphore
from holysheep.ports import Clock, Rng, Signal, Spawn
from holysheep.shared.scripts import CHECK_KEY, Script, script

_log = logging.getLogger(__name__)
_MOST_WAITING = 10_000
_MOST_KEPT = 1000
_LINGERS_S = 1.0
_AT_A_TIME = 20


class Away(Exception):
    """Redis cannot be used now; go on without."""


class Busy(Away):
    """Redis is there, but all ways to it are in use."""


class ServerError(Exception):
    """Redis did not do what was asked. ``str`` is safe to show."""


Command = tuple[Script, Sequence[str | bytes], Sequence[Any]]
"""A script, its keys and its arguments."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A script to run. ``args`` is asked for its arguments when it runs.

    ``done`` is called when it has run, or will not. One that ``is_kept`` waits for Redis to be back
    where it goes away before.
    """

    script: Script
    keys: Sequence[str | bytes]
    args: Callable[[], Sequence[Any]]
    done: Callable[[], None] = lambda: None
    is_kept: bool = False


class Server(Protocol):
    """A client of one Redis."""

    def run(self, script: Script, keys: Sequence[str | bytes], args: Sequence[Any]) -> Any:
        """What the script returns. Raises ``ServerError``, after one time limit at most."""
        ...

    def run_all(self, commands: Sequence[Command]) -> None:
        """Run scripts one after the other, in one round trip if it can be. Raises likewise."""
        ...

    def hear(self, tell: Callable[[bytes], None], may_go_on: Callable[[], bool]) -> None:
        """Call ``tell`` with ``b""`` when subscribed, then with each message.

        Raises ``ServerError`` when the subscription is lost; returns when it ``may_go_on`` no more.
        """
        ...

    def close(self) -> None:
        """Close all connections; the next use opens new ones."""
        ...


Hearer = Callable[[bytes], None]
"""Is called with what a message says, and with nothing when messages may have been missed."""


class Link:
    """The way of one process to one Redis. Safe for concurrent use."""

    def __init__(
        self,
        server: Server,
        *,
        clock: Clock,
        spawn: Spawn,
        rng: Rng,
        script_of: Callable[[str], Script] = script,
    ) -> None:
        self._server = server
        self._clock = clock
        self._spawn = spawn
        self._rng = rng
        self._script_of = script_of
        self._changed = clock.condition()
        self._slots = FairSemaphore(config.REDIS_CONNECTIONS, clock)
        self._is_up = True
        self._is_closed = False
        self._problem = ""
        self._losses = 0
        self._jobs: deque[_Job] = deque()
        self._is_working = False
        self._under_way = 0
        self._hearing = 0
        self._subscriptions = 0
        self._has_hearer = False
        self._rests = 0
        self._hearers: defaultdict[bytes, list[Hearer]] = defaultdict(list)
        self._leases: dict[str, str] = {}
        self._is_keeping = False

    @property
    def is_up(self) -> bool:
        """Whether Redis is used at the moment."""
        return self._is_up

    @property
    def is_closed(self) -> bool:
        """Whether it was ended for good."""
        return self._is_closed

    @property
    def losses(self) -> int:
        """How often it has gone away."""
        return self._losses

    @property
    def hearing(self) -> int:
        """The number of the subscription that news come by; 0 while there is none.

        What was learnt under one number is not known any more under another.
        """
        return self._hearing

    @property
    def problem(self) -> str:
        """Why Redis is not used now, or nothing."""
        return self._problem

    def run(
        self,
        name: str,
        keys: Sequence[str | bytes],
        args: Sequence[Any] = (),
        *,
        until_s: float = 0.0,
    ) -> Any:
        """What the script ``name`` returns. Raises ``Away``.

        Where all ways to Redis are in use, it waits for one until ``until_s`` (monotonic), and for
        a time limit at least; then it is ``Busy``.
        """
        if not self._has_hearer:
            self._begin_to_hear()
        until_s = max(until_s, self._clock.monotonic() + config.REDIS_TIMEOUT_S)
        if not self._is_up:
            raise Away(self._problem)
        if not self._slots.acquire(until_s):
            raise (
                Busy("all connections to Redis are in use") if self._is_up else Away(self._problem)
            )
        try:
            if not self._is_up:
                raise Away(self._problem)
            return self._server.run(self._script_of(name), keys, args)
        except ServerError as error:
            self._lose(error)
            raise Away(str(error)) from error
        finally:
            self._slots.release()

    def later(
        self,
        name: str,
        keys: Sequence[str | bytes],
        args: Callable[[], Sequence[Any]],
        done: Callable[[], None] = lambda: None,
        *,
        is_kept: bool = False,
    ) -> None:
        """Run a script behind the caller, in the order of such calls; ``done`` is called then.

        ``args`` makes its arguments, behind the caller as well. Where Redis goes away before, it is
        not run, and ``done`` is called all the same; but one that ``is_kept`` is run, maybe once
        more, when Redis is back.
        """
        job = _Job(self._script_of(name), keys, args, done, is_kept)
        with self._changed:
            most = _MOST_WAITING if self._is_up else _MOST_KEPT
            may_wait = self._is_up or (is_kept and not self._is_closed)
            is_taken = may_wait and len(self._jobs) < most
            if is_taken:
                self._jobs.append(job)
            begins = self._begins_to_work()
            self._changed.notify_all()
        if not is_taken:
            done()
        if begins:
            self._spawn(self._work)

    def hear(self, topic: bytes, hearer: Hearer) -> None:
        """Have ``hearer`` called with all news of a topic, until it is ``ignore``d."""
        with self._changed:
            self._hearers[topic].append(hearer)

    def ignore(self, topic: bytes, hearer: Hearer) -> None:
        """End what ``hear`` has begun."""
        with self._changed:
            self._hearers[topic].remove(hearer)
            if not self._hearers[topic]:
                del self._hearers[topic]

    def watch(self, topic: bytes) -> "Watch":
        """Waits for news of a topic, as a context manager."""
        return Watch(self, topic, self._clock)

    def keep_lease(self, key: str, token: str) -> None:
        """Move the end of a lease on until it is ``drop``ped."""
        with self._changed:
            self._leases[key] = token
            begins = not self._is_keeping
            self._is_keeping = True
        if begins:
            self._spawn(self._keep)

    def drop_lease(self, key: str) -> None:
        """Let a lease end."""
        with self._changed:
            self._leases.pop(key, None)

    def rest(self) -> None:
        """Close all connections; the next use opens new ones.

        What is to be run behind the calls is run before, within one time limit.
        """
        until_s = self._clock.monotonic() + config.REDIS_TIMEOUT_S
        with self._changed:
            while self._is_up and (self._jobs or self._under_way):
                left_s = until_s - self._clock.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            self._rests += 1
            self._has_hearer = False
            self._hearing = 0
            self._changed.notify_all()
        self._server.close()

    def close(self) -> None:
        """Stop for good, and close all connections."""
        with self._changed:
            self._is_closed = True
            self._is_up = False
            self._problem = "it was closed"
            self._leases.clear()
            jobs, self._jobs = self._jobs, deque()
            self._changed.notify_all()
        for job in jobs:
            job.done()
        self._server.close()

    # --- away, and back ---

    def _lose(self, error: ServerError, begun: Sequence[_Job] = ()) -> None:
        """Go on without Redis; ``begun`` are jobs that may not have run."""
        with self._changed:
            kept: deque[_Job] = deque()
            dropped: list[_Job] = []
            for job in (*begun, *self._jobs):
                is_kept = job.is_kept and len(kept) < _MOST_KEPT and not self._is_closed
                (kept if is_kept else dropped).append(job)
            # Those that were begun may be what is wrong: they have one more try.
            for index in range(min(len(begun), len(kept))):
                kept[index] = replace(kept[index], is_kept=False)
            self._jobs = kept
            was_up, self._is_up = self._is_up, False
        for job in dropped:
            job.done()
        if not was_up:
            return
        with self._changed:
            self._losses += 1
            self._hearing = 0
            self._problem = f"Redis cannot be used now: {error}."
            self._leases.clear()
        _log.warning("going on without Redis: %s", error)
        self._tell_all()
        self._spawn(self._come_back)

    def _come_back(self) -> None:
        pause_s = config.REDIS_PAUSE_S
        while not self._is_closed:
            # Not all processes at the same moment.
            self._clock.sleep(pause_s * (1 + self._rng()) / 2)
            pause_s = min(2 * pause_s, config.REDIS_PAUSE_MAX_S)
            try:
                # What was open may lead to where the master was.
                self._server.close()
                self._server.run(self._script_of("check"), [CHECK_KEY], [])
            except ServerError as error:
                self._problem = f"Redis cannot be used now: {error}."
                continue
            with self._changed:
                if self._is_closed:
                    return
                self._is_up = True
                self._problem = ""
                begins = self._begins_to_work()
                self._changed.notify_all()
            _log.warning("Redis is used again")
            if begins:
                self._spawn(self._work)
            self._tell_all()
            return

    # --- behind the calls ---

    def _begins_to_work(self) -> bool:
        """Whether somebody must be found to do the jobs; the caller holds the lock."""
        begins = bool(self._jobs) and self._is_up and not self._is_working
        self._is_working = self._is_working or begins
        return begins

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._jobs:
                    # To begin a thread takes longer than most jobs, and one is rarely the last.
                    self._changed.wait(_LINGERS_S)
                if not self._jobs or not self._is_up:
                    self._is_working = False
                    return
                jobs = [self._jobs.popleft() for _ in range(min(len(self._jobs), _AT_A_TIME))]
                self._under_way = len(jobs)
            ready = [(job, args) for job in jobs if (args := self._args_of(job)) is not None]
            try:
                self._server.run_all([(job.script, job.keys, args) for job, args in ready])
            except ServerError as error:
                self._lose(error, [job for job, _ in ready])
            else:
                for job, _ in ready:
                    job.done()
            with self._changed:
                self._under_way = 0
                self._changed.notify_all()

    def _args_of(self, job: _Job) -> Sequence[Any] | None:
        """The arguments of a job; ``None`` where they cannot be made, which ends it."""
        try:
            return job.args()
        except Exception:  # noqa: BLE001 - whatever it is, it is this job's alone
            _log.exception("a job behind the calls cannot be run")
            job.done()
            return None

    def _keep(self) -> None:
        while True:
            with self._changed:
                before = dict(self._leases)
            self._clock.sleep(config.LEASE_S / 3)
            with self._changed:
                # Those that were taken in the meantime have time.
                due = [(key, token) for key, token in before.items() if key in self._leases]
                if not self._leases or self._is_closed:
                    self._is_keeping = False
                    return
            for key, token in due:
                self.later("renew", [key], partial(_args, token, config.LEASE_S))

    # --- news ---

    def _begin_to_hear(self) -> None:
        with self._changed:
            if self._has_hearer or self._is_closed:
                return
            self._has_hearer = True
        self._spawn(partial(self._hear, self._rests))

    def _hear(self, rests: int) -> None:
        """Hear news as long as the link is up, then wait until it is again."""
        pause_s = 0.0

        def is_over() -> bool:
            return self._is_closed or self._rests != rests

        while True:
            with self._changed:
                if pause_s:
                    self._changed.wait(pause_s)
                while not self._is_up and not is_over():
                    self._changed.wait()
                if is_over():
                    return
            subscriptions = self._subscriptions
            try:
                self._server.hear(self._told, lambda: self._is_up and not is_over())
                pause_s = 0.0
            except ServerError as error:
                # Scripts may work all the same, so it is they who say whether Redis is away.
                _log.info("no news from Redis: %s", error)
                has_heard = self._subscriptions > subscriptions
                pause_s = config.REDIS_PAUSE_S if has_heard else config.REDIS_PAUSE_MAX_S
            with self._changed:
                if is_over():
                    return
                self._hearing = 0

    def _told(self, message: bytes) -> None:
        if not message:
            with self._changed:
                self._subscriptions += 1
                self._hearing = self._subscriptions
            self._tell_all()
            return
        topic, _, payload = message.partition(b" ")
        with self._changed:
            hearers = list(self._hearers.get(topic, ()))
        for hearer in hearers:
            hearer(payload)

    def _tell_all(self) -> None:
        with self._changed:
            hearers = [hearer for hearers in self._hearers.values() for hearer in hearers]
        for hearer in hearers:
            hearer(b"")


def _args(*args: Any) -> Sequence[Any]:
    return args


class Watch:
    """Waits for news of one topic that came since it was made, or since the last wait."""

    def __init__(self, link: Link, topic: bytes, clock: Clock) -> None:
        self._link = link
        self._topic = topic
        self._signal = Signal(clock.condition())

    def __enter__(self) -> Self:
        self._link.hear(self._topic, self._tell)
        return self

    def __exit__(self, *_: object) -> None:
        self._link.ignore(self._topic, self._tell)

    def wait(self, seconds: float) -> None:
        """Wait for news, ``seconds`` at most."""
        self._signal.wait(seconds)

    def _tell(self, _: bytes) -> None:
        self._signal.give()
