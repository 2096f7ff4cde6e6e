"""Breakers in Redis: all processes see a model fail, and one of them finds out that it is back.

A breaker that is closed and has seen no failure is asked for nothing: news would have told that it
has changed. Where no news can be heard, what is known of it holds for a moment only.
"""

import uuid
from dataclasses import dataclass
from hashlib import sha256

from cachetools import LRUCache

from holysheep import config
from holysheep.breaker import Breaker, OwnBreakers, State, Verdict, circuit_open
from holysheep.ports import Clock
from holysheep.shared.link import Away, Link
from holysheep.shared.scripts import root_of

_STATES: dict[bytes, State] = {b"closed": "closed", b"open": "open", b"half_open": "half_open"}


class _OwnEpoch(int):
    """An epoch of the process's own breaker, from while Redis was away."""


@dataclass(frozen=True, slots=True)
class _View:
    """What this process knows of a breaker. ``tried_s`` is when an open one is tried again.

    ``hearing`` is the subscription under which it was learnt; ``learnt_s`` when (monotonic).
    """

    state: State
    epoch: int
    failures: int
    tried_s: float
    hearing: int
    learnt_s: float


class SharedBreaker:
    """The breaker of one base URL and model. ``own`` stands in while Redis is away."""

    def __init__(
        self,
        link: Link,
        tag: str,
        own: Breaker,
        *,
        clock: Clock,
        failures: int = config.BREAKER_FAILURES,
        open_s: float = config.BREAKER_OPEN_S,
    ) -> None:
        self._link = link
        self._own = own
        self._clock = clock
        self._threshold = failures
        self._open_s = open_s
        root = root_of(tag)
        self._keys = [f"{root}:breaker", f"{root}:probe"]
        self._view: _View | None = None
        # The token of the probe that this process has made, by its epoch.
        self._probes: dict[int, str] = {}
        self._topic = f"breaker:{tag}"
        link.hear(self._topic.encode(), self._heard)

    @property
    def state(self) -> State | None:
        """The state as far as this process knows; an open one whose time is over is half open."""
        view = self._view
        if view is None:
            return None
        is_over = view.state == "open" and view.tried_s <= self._clock.monotonic()
        return "half_open" if is_over else view.state

    def admit(self) -> int:
        """Let a call through, and return the epoch to report with.

        Raises ``CircuitOpen`` with the seconds that are left.
        """
        view = self._view
        if view is not None and self._is_current(view):
            if view.state == "closed":
                return view.epoch
            left_s = view.tried_s - self._clock.monotonic()
            if view.state == "open" and left_s > 0:
                raise circuit_open(self._threshold, left_s)
        token = uuid.uuid4().hex
        try:
            verdict, *found = self._link.run(
                "admit", self._keys, [self._open_s, token, config.LEASE_S, self._topic]
            )
        except Away:
            return _OwnEpoch(self._own.admit())
        view = self._learn(found)
        if verdict == b"no":
            raise circuit_open(self._threshold, max(0.0, view.tried_s - view.learnt_s))
        if verdict == b"probe":
            self._probes[view.epoch] = token
            self._link.keep_lease(self._keys[1], token)
        return view.epoch

    def recheck(self, epoch: int) -> None:
        """Raise ``CircuitOpen`` if the breaker has opened since a call was admitted."""
        if isinstance(epoch, _OwnEpoch):
            self._own.recheck(epoch)
            return
        view = self._view
        if view is None or view.epoch == epoch or view.state == "closed":
            return
        raise circuit_open(self._threshold, max(0.0, view.tried_s - self._clock.monotonic()))

    def answering(self, epoch: int) -> None:
        """Tell that an answer begins to arrive: all that a probe has to find out."""
        if isinstance(epoch, _OwnEpoch):
            self._own.answering(epoch)
        elif epoch in self._probes:
            self._report(epoch, "answering")

    def report(self, epoch: int, verdict: Verdict) -> None:
        """Tell how a call that was admitted in ``epoch`` has ended."""
        if isinstance(epoch, _OwnEpoch):
            self._own.report(epoch, verdict)
            return
        view = self._view
        is_probe = epoch in self._probes
        changes = verdict == "failure" or (
            verdict == "success" and (view is None or view.failures > 0)
        )
        if is_probe or changes:
            self._report(epoch, verdict)
        if is_probe:
            self._link.drop_lease(self._keys[1])
            self._probes.pop(epoch, None)

    def _learn(self, found: list[bytes]) -> _View:
        """Take in what Redis or the news say: state, epoch, failures, seconds until it is tried."""
        state, epoch, failures, left_s = found
        now = self._clock.monotonic()
        self._view = view = _View(
            _STATES[state],
            int(float(epoch)),
            int(float(failures)),
            now + float(left_s),
            self._link.hearing,
            now,
        )
        return view

    def forget(self) -> None:
        """Hear no more news."""
        self._link.ignore(self._topic.encode(), self._heard)

    def _heard(self, payload: bytes) -> None:
        if payload:
            self._learn(payload.split(b" "))

    def _is_current(self, view: _View) -> bool:
        hearing = self._link.hearing
        if not self._link.is_up or view.hearing != hearing:
            return False
        return hearing > 0 or self._clock.monotonic() < view.learnt_s + config.BREAKER_KNOWN_S

    def _report(self, epoch: int, what: str) -> None:
        token = self._probes.get(epoch, "")
        try:
            found = self._link.run(
                "report",
                self._keys,
                [self._open_s, token, epoch, what, self._threshold, self._topic],
            )
        except Away:
            # It begins anew when Redis is back; until then the process's own counts.
            return
        self._learn(found)


class _Kept(LRUCache[tuple[str, str], SharedBreaker]):
    """The breakers that were used last; those that go hear no more."""

    def popitem(self) -> tuple[tuple[str, str], SharedBreaker]:
        key, breaker = super().popitem()
        breaker.forget()
        return key, breaker


class SharedBreakers:
    """The breakers of one Redis, by base URL and model, made on demand; bounded like ``own``."""

    def __init__(
        self, link: Link, own: OwnBreakers, clock: Clock, limit: int = config.MAX_BREAKERS
    ) -> None:
        self._link = link
        self._own = own
        self._clock = clock
        self._lock = clock.lock()
        self._breakers: _Kept = _Kept(limit)

    def get(self, base_url: str, model: str) -> Breaker:
        """The one breaker of that base URL and model."""
        key = (base_url, model)
        with self._lock:
            breaker = self._breakers.get(key)
            if breaker is None:
                own = self._own.get(base_url, model)
                breaker = SharedBreaker(self._link, _tag(base_url, model), own, clock=self._clock)
                self._breakers[key] = breaker
            return breaker

    def states(self, base_url: str) -> dict[str, State]:
        """The state of each model's breaker at a base URL, as far as it is known."""
        with self._lock:
            known = list(self._breakers.items())
        if not self._link.is_up:
            return self._own.states(base_url)
        states = {model: breaker.state for (url, model), breaker in known if url == base_url}
        return {model: state for model, state in states.items() if state is not None}


def _tag(base_url: str, model: str) -> str:
    return sha256(f"{base_url}\0{model}".encode()).hexdigest()[:32]
