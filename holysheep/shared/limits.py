"""The limits of one credential in Redis: the same buckets and gates for all processes.

*Buckets.* Who asks is given a place now, or the time of one, so that all processes together serve
first come, first served, and nobody asks twice. What calls give back moves all who wait forward.

*Gates.* Callers whom a pause holds back wait in the line of their model in this process; the first
of each line asks again when the gates may have opened. A place whose time came during a pause is
given back: a crowd must not keep its turns for later, and then come all at once.

The process's own limiter is kept in step, for when Redis is away.
"""

import math
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

from holysheep import config
from holysheep.limiter import Place, RateLimiter, beyond_deadline, held_to_the_end, no_room
from holysheep.ports import Clock, Signal
from holysheep.shared.link import Away, Link
from holysheep.shared.scripts import root_of

_Line = deque["_Caller"]
_SHARED = ""
"""The gate of all models, among the pauses."""


class SharedLimiter:
    """The limits of one credential. ``own`` is the process's limiter. A rate of 0 = no limit."""

    def __init__(self, link: Link, fingerprint: str, own: RateLimiter, clock: Clock) -> None:
        self._link = link
        self._own = own
        self._clock = clock
        self._root = root_of(fingerprint)
        self._topic = f"limits:{fingerprint}"
        self._lock = clock.lock()
        # What was given back of requests and tokens, since ever, as far as this process knows.
        self._given = (0.0, 0.0)
        self._tickets: _Line = deque()
        self._lines: defaultdict[tuple[str, bool], _Line] = defaultdict(deque)
        self._pauses: dict[str, float] = {}
        self._rates = own.rates
        link.hear(self._topic.encode(), self._heard)

    @property
    def limits_tokens(self) -> bool:
        """Whether a token estimate is needed at all."""
        return self._own.limits_tokens

    @property
    def is_idle(self) -> bool:
        """Whether forgetting this limiter would lose nothing."""
        with self._lock:
            nobody_waits = not self._tickets and not any(self._lines.values())
        return nobody_waits and self._own.is_idle

    def resize(self, requests_per_minute: float, tokens_per_minute: float) -> None:
        """Change the limits; callers that have the time of a place keep it."""
        self._own.resize(requests_per_minute, tokens_per_minute)
        self._rates = self._own.rates

    def forget(self) -> None:
        """Hear no more news."""
        self._link.ignore(self._topic.encode(), self._heard)

    def reserve(
        self, model: str, tokens: float, *, deadline_s: float, is_fallback: bool = False
    ) -> Place:
        """Take one request and ``tokens``, waiting for the turn until ``deadline_s`` at most.

        Raises ``LimiterTimeout`` if the credential's own limits leave no room in time, and
        ``LimitBeyondDeadline`` if upstream has asked to wait longer; nothing is taken then.
        """
        signal = Signal(self._clock.condition())
        caller = _Caller(model, tokens, deadline_s, is_fallback, signal)
        try:
            line = self._lines.get((model, is_fallback))
            held_s = 0.0
            if not line:
                place = self._ask(caller)
                if isinstance(place, _SharedPlace):
                    return place
                held_s = place
            return self._after_the_others(caller, held_s)
        except Away:
            return self._own.reserve(model, tokens, deadline_s=deadline_s, is_fallback=is_fallback)

    def is_paused(self, model: str, *, is_fallback: bool = False) -> bool:
        """Whether upstream has asked the calls to ``model`` to wait, at this moment."""
        if not self._link.is_up:
            return self._own.is_paused(model, is_fallback=is_fallback)
        return self._pause_left(model, is_fallback=is_fallback) > 0

    # --- waiting ---

    def _after_the_others(self, caller: "_Caller", held_s: float) -> "_SharedPlace":
        """Wait in line and take a place when it is this caller's turn. Raises ``Away``."""
        losses = self._link.losses
        with self._in_line(caller) as line:
            while True:
                now = self._clock.monotonic()
                paused_s = self._pause_left(caller.model, is_fallback=caller.is_fallback)
                if now + paused_s > caller.deadline_s:
                    raise beyond_deadline(paused_s)
                if now >= caller.deadline_s:
                    raise held_to_the_end()
                is_first = line[0] is caller
                if is_first and held_s <= 0:
                    place = self._ask(caller)
                    if isinstance(place, _SharedPlace):
                        return place
                    held_s = place
                patience_s = caller.deadline_s - now
                caller.signal.wait(min(held_s, patience_s) if is_first else patience_s)
                held_s = 0.0
                if self._link.losses != losses:
                    raise Away

    @contextmanager
    def _in_line(self, caller: "_Caller") -> Iterator[_Line]:
        key = (caller.model, caller.is_fallback)
        with self._lock:
            line = self._lines[key]
            line.append(caller)
        try:
            yield line
        finally:
            with self._lock:
                line.remove(caller)
                if line:
                    line[0].signal.give()
                else:
                    del self._lines[key]

    def _ask(self, caller: "_Caller") -> "_SharedPlace | float":
        """A place, once it is time for it, or how long the gates are closed. Raises ``Away``.

        Raises ``LimiterTimeout`` and ``LimitBeyondDeadline``.
        """
        found = self._run(caller, has_place=False)
        if isinstance(found, _Ticket):
            self._wait_for(caller, found)
            found = self._run(caller, has_place=True)
        if isinstance(found, _Ticket):
            raise TypeError("a place was given twice")
        return found

    def _run(self, caller: "_Caller", *, has_place: bool) -> "_SharedPlace | _Ticket | float":
        requests, tokens = self._rates
        kind, *rest = self._link.run(
            "reserve",
            self._keys(caller.model),
            [
                requests,
                tokens,
                caller.tokens,
                int(caller.is_fallback),
                max(0.0, caller.deadline_s - self._clock.monotonic()),
                int(has_place),
            ],
        )
        match kind:
            case b"go":
                at, *passed = rest
                return _SharedPlace(self, caller, at, passed)
            case b"wait":
                for_requests, for_tokens, *given = map(float, rest)
                with self._lock:
                    self._given = (given[0], given[1])
                return _Ticket(self._clock.monotonic(), (for_requests, for_tokens), self._given)
            case b"held":
                return float(rest[0])
            case b"paused":
                raise beyond_deadline(float(rest[0]))
            case _:
                raise no_room(requests, tokens, float(rest[0]))

    def _wait_for(self, caller: "_Caller", ticket: "_Ticket") -> None:
        """Wait until it is time. Raises ``LimiterTimeout`` and ``Away``."""
        losses = self._link.losses
        with self._lock:
            self._tickets.append(caller)
        is_due = False
        try:
            while True:
                now = self._clock.monotonic()
                left_s = ticket.due_s(self._given, self._rates) - now
                if left_s <= 0:
                    is_due = True
                    return
                # Later than planned: a call before it has used more than it had said.
                if now >= caller.deadline_s:
                    raise no_room(*self._rates, left_s)
                caller.signal.wait(min(left_s, caller.deadline_s - now))
                if self._link.losses != losses:
                    raise Away
        finally:
            with self._lock:
                self._tickets.remove(caller)
                if self._tickets:
                    self._tickets[0].signal.give()
            if not is_due:
                self._settle(1, caller.tokens, is_through=False)

    def _pause_left(self, model: str, *, is_fallback: bool) -> float:
        names = [_name(model)] if is_fallback else [_name(model), _SHARED]
        ends_s = max(self._pauses.get(name, -math.inf) for name in names)
        return ends_s - self._clock.monotonic()

    # --- what becomes of places ---

    def leave(self, place: "_SharedPlace", *, accepted: bool) -> None:
        """A call has passed the gates, or has ended without telling."""
        self._link.later(
            "leave",
            self._keys(place.caller.model)[1:],
            lambda: [*place.passed, place.at, int(accepted), self._topic],
        )

    def give_back(self, requests: float, tokens: float) -> None:
        """Give back what a call had taken that is through; negative = it takes more."""
        self._settle(requests, tokens, is_through=True)

    def _settle(self, requests: float, tokens: float, *, is_through: bool) -> None:
        self._link.later(
            "settle",
            self._keys("")[:1],
            lambda: [*self._rates, requests, tokens, int(is_through), self._topic],
        )

    def pause(self, model: str, seconds: float | None, at: bytes) -> None:
        """Upstream has answered 429 to a call that was let through ``at``."""
        # A limit that resets in an hour is one model's quota; only short ones are the key's.
        shared = "" if seconds is None else min(seconds, config.SHARED_PAUSE_MAX_S)
        own = "" if seconds is None else seconds
        try:
            paused = self._link.run(
                "pause", self._keys(model)[1:], [shared, own, at, self._topic, _name(model)]
            )
        except Away:
            return
        self._remember(float(paused[0]), _name(model), float(paused[1]))

    def _remember(self, shared_s: float, name: str, seconds: float) -> None:
        now = self._clock.monotonic()
        with self._lock:
            self._pauses = {key: end for key, end in self._pauses.items() if end > now}
            for key, left_s in ((_SHARED, shared_s), (name, seconds)):
                self._pauses[key] = now + left_s
            # Those who would wait in vain are told at once.
            for line in self._lines.values():
                for caller in line:
                    caller.signal.give()

    def _heard(self, payload: bytes) -> None:
        match payload.decode().split(" "):
            case ["given", requests, tokens]:
                with self._lock:
                    self._given = (float(requests), float(tokens))
                    if self._tickets:
                        self._tickets[0].signal.give()
            case ["paused", shared_s, name, seconds]:
                self._remember(float(shared_s), name, float(seconds))
            case ["opened"]:
                self._poke_first()
            case _:
                with self._lock:
                    for caller in self._tickets:
                        caller.signal.give()
                self._poke_first()

    def _poke_first(self) -> None:
        with self._lock:
            for line in self._lines.values():
                if line:
                    line[0].signal.give()

    def _keys(self, model: str) -> list[str]:
        gate = f"{self._root}:gate"
        return [f"{self._root}:limits", gate, f"{gate}:{_name(model)}"]

    def take_own(self, caller: "_Caller") -> Place:
        """The same place in the process's own limiter."""
        return self._own.take(caller.model, caller.tokens)


class _SharedPlace:
    """A place that was taken in Redis; ``own`` is the same one in the process's limiter."""

    def __init__(
        self, limiter: SharedLimiter, caller: "_Caller", at: bytes, passed: list[bytes]
    ) -> None:
        self.caller = caller
        self.at = at
        self.passed = passed
        self._limiter = limiter
        self._own = limiter.take_own(caller)
        self._has_left = passed == [b"", b""]

    def accepted(self) -> None:
        self._leave(accepted=True)

    def refused(self, seconds: float | None) -> None:
        self._has_left = True
        self._own.refused(seconds)
        self._limiter.pause(self.caller.model, seconds, self.at)

    def end(self, tokens_used: float | None) -> None:
        self._leave(accepted=False)
        if tokens_used is not None and self._limiter.limits_tokens:
            self._limiter.give_back(0, self.caller.tokens - tokens_used)
        self._own.end(tokens_used)

    def cancel(self) -> None:
        self._leave(accepted=False)
        self._limiter.give_back(1, self.caller.tokens)
        self._own.cancel()

    def _leave(self, *, accepted: bool) -> None:
        if not self._has_left:
            self._has_left = True
            self._limiter.leave(self, accepted=accepted)


class _Ticket:
    """The time of a place that was taken ahead. Seconds and sums are of requests and of tokens."""

    __slots__ = ("_asked_s", "_given", "_waits_s")

    def __init__(
        self, asked_s: float, waits_s: tuple[float, float], given: tuple[float, float]
    ) -> None:
        self._asked_s = asked_s
        self._waits_s = waits_s
        self._given = given

    def due_s(self, given: tuple[float, float], rates: tuple[float, float]) -> float:
        """When it is time (monotonic), after ``given`` was given back in all."""
        due_s = self._asked_s
        for number in (0, 1):
            if rates[number] > 0:
                earlier_s = (given[number] - self._given[number]) * 60 / rates[number]
                due_s = max(due_s, self._asked_s + self._waits_s[number] - earlier_s)
        return due_s


@dataclass(frozen=True, slots=True, eq=False)
class _Caller:
    """Who wants a place. His signal, while he waits, says to look again."""

    model: str
    tokens: float
    deadline_s: float
    is_fallback: bool
    signal: Signal


def _name(model: str) -> str:
    """A model in keys and in news: ids may hold anything, and are nobody else's business."""
    return sha256(model.encode()).hexdigest()[:16]
