"""The limits of one credential in Redis: the same buckets and gates for all processes.

*Buckets.* Who asks is given a place, or joins the line in Redis and is told how much must come into
the buckets before his turn, so that all processes together serve first come, first served, and he
asks again only then. News tell him what moves his turn: what calls give back or use beyond what
they had said, and those before him who leave. What they foresee need not be right: it is in the
bucket when he asks, or he waits on.

*Gates.* Callers whom a pause holds back leave that line: they stand in nobody's way. They wait in
the line of their model in this process; the first of each asks again when the gates may have
opened.

The process's own limiter is kept in step, for when Redis is away.
"""

import itertools
import math
import uuid
from bisect import insort
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from holysheep import config
from holysheep.limiter import (
    Place,
    RateLimiter,
    Recalled,
    beyond_deadline,
    held_to_the_end,
    no_room,
)
from holysheep.ports import Clock, Signal
from holysheep.shared.link import Away, Busy, Link
from holysheep.shared.scripts import root_of

_Line = deque[Signal]
"""Of each who waits, what tells him to look again."""
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
        self._turns: list[_Turn] = []
        # News may be heard before the answer that they concern.
        self._moves: deque[_Move] = deque(maxlen=1000)
        self._alive_s = -math.inf
        self._name = uuid.uuid4().hex[:16]
        self._numbers = itertools.count()
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
            nobody_waits = not self._turns and not any(self._lines.values())
        return nobody_waits and self._own.is_idle

    def resize(self, requests_per_minute: float, tokens_per_minute: float) -> None:
        """Change the limits; callers that wait are served by the new ones."""
        self._own.resize(requests_per_minute, tokens_per_minute)
        now = self._clock.monotonic()
        with self._lock:
            for turn in self._turns:
                turn.advance(now, self._rates)
                turn.signal.give()
            has_changed = self._rates != self._own.rates
            self._rates = self._own.rates
        if has_changed:
            # Redis hears of it, and tells those who wait in other processes.
            self.give_back(0, 0)

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
        caller_id = f"{self._name}{next(self._numbers)}"
        caller = _Caller(caller_id, model, tokens, deadline_s, is_fallback)
        while True:
            try:
                return self._place_for(caller)
            except Busy:
                # Redis is there, and in use: his own limiter would let pass what others take.
                raise no_room(*self._rates, math.inf) from None
            except Away:
                # When Redis is back he has waited long enough behind those who do not wait there.
                with suppress(Recalled):
                    return self._own.reserve(
                        model, tokens, deadline_s=deadline_s, is_fallback=is_fallback
                    )

    def is_paused(self, model: str, *, is_fallback: bool = False) -> bool:
        """Whether upstream has asked the calls to ``model`` to wait, at this moment."""
        if not self._link.is_up:
            return self._own.is_paused(model, is_fallback=is_fallback)
        return self._pause_left(model, is_fallback=is_fallback) > 0

    # --- waiting ---

    def _place_for(self, caller: "_Caller") -> "_SharedPlace":
        """A place when it is his turn. Raises ``Away``, ``Busy`` and as ``reserve`` does."""
        try:
            is_held = (caller.model, caller.is_fallback) in self._lines
            found = self._held(caller, 0.0) if is_held else self._run(caller, None)
            while not isinstance(found, _SharedPlace):
                if isinstance(found, _Turn):
                    self._wait_for(found, caller)
                    found = self._run(caller, found)
                else:
                    found = self._held(caller, found)
        finally:
            if caller.may_be_in_line:
                self._link.later(
                    "quit",
                    self._keys("")[1:2],
                    lambda: [caller.id, self._topic],
                    # Or else his place would be lost to those who are there when Redis is back.
                    is_kept=True,
                )
        return found

    def _held(self, caller: "_Caller", held_s: float) -> "_SharedPlace | _Turn":
        """Wait behind others whom the gates hold back, then ask. Raises ``Away``."""
        losses = self._link.losses
        with self._in_line(caller) as (line, signal):
            while True:
                now = self._clock.monotonic()
                paused_s = self._pause_left(caller.model, is_fallback=caller.is_fallback)
                if now + paused_s > caller.deadline_s:
                    raise beyond_deadline(paused_s)
                if now >= caller.deadline_s:
                    raise held_to_the_end()
                is_first = line[0] is signal
                if is_first and held_s <= 0:
                    found = self._run(caller, None)
                    if not isinstance(found, float):
                        return found
                    held_s = found
                    continue
                patience_s = caller.deadline_s - now
                signal.wait(min(held_s, patience_s) if is_first else patience_s)
                held_s = 0.0
                if self._link.losses != losses:
                    raise Away

    @contextmanager
    def _in_line(self, caller: "_Caller") -> Iterator[tuple[_Line, Signal]]:
        key = (caller.model, caller.is_fallback)
        signal = Signal(self._clock.condition())
        with self._lock:
            line = self._lines[key]
            line.append(signal)
        try:
            yield line, signal
        finally:
            with self._lock:
                line.remove(signal)
                if line:
                    line[0].give()
                else:
                    del self._lines[key]

    def _run(self, caller: "_Caller", turn: "_Turn | None") -> "_SharedPlace | _Turn | float":
        requests, tokens = self._rates
        # What becomes of one whose answer is lost, nobody knows.
        caller.may_be_in_line = True
        kind, *rest = self._link.run(
            "reserve",
            self._keys(caller.model),
            [
                requests,
                tokens,
                caller.tokens,
                int(caller.is_fallback),
                max(0.0, caller.deadline_s - self._clock.monotonic()),
                self._topic,
                caller.id,
                "" if turn is None else "early" if turn.should_ask else "due",
            ],
            until_s=caller.deadline_s,
        )
        caller.may_be_in_line = kind == b"wait"
        match kind:
            case b"go":
                at, *passed = rest
                return _SharedPlace(self, caller, at, passed)
            case b"wait":
                number, heard, *missing = map(float, rest)
                signal = Signal(self._clock.condition())
                return _Turn(signal, number, heard, missing, self._clock.monotonic())
            case b"held":
                return float(rest[0])
            case b"paused":
                raise beyond_deadline(float(rest[0]))
            case _:
                raise no_room(requests, tokens, float(rest[0]))

    def _wait_for(self, turn: "_Turn", caller: "_Caller") -> None:
        """Wait until it is time. Raises ``LimiterTimeout`` and ``Away``."""
        losses = self._link.losses
        deadline_s = caller.deadline_s
        with self._lock:
            for move in self._moves:
                turn.heed(move)
            insort(self._turns, turn, key=lambda each: each.number)
        try:
            while True:
                now = self._clock.monotonic()
                left_s = turn.due_s(self._rates) - now
                if left_s <= 0 or turn.should_ask:
                    return
                paused_s = self._pause_left(caller.model, is_fallback=caller.is_fallback)
                if now + paused_s > deadline_s:
                    raise beyond_deadline(paused_s)
                # Later than planned: a call before it has used more than it had said.
                if now >= deadline_s:
                    raise no_room(*self._rates, left_s)
                is_first = self._turns[0] is turn
                if is_first and now >= self._alive_s + config.LINE_ALIVE_S:
                    self._alive_s = now
                    self._link.later(
                        "alive", self._keys("")[1:2], lambda: [self._name, self._topic]
                    )
                patience_s = min(left_s, deadline_s - now)
                turn.signal.wait(min(patience_s, config.LINE_ALIVE_S) if is_first else patience_s)
                if self._link.losses != losses:
                    raise Away
        finally:
            with self._lock:
                self._turns.remove(turn)
                if self._turns:
                    self._turns[0].signal.give()

    def _pause_left(self, model: str, *, is_fallback: bool) -> float:
        names = [_name(model)] if is_fallback else [_name(model), _SHARED]
        ends_s = max(self._pauses.get(name, -math.inf) for name in names)
        return ends_s - self._clock.monotonic()

    # --- what becomes of places ---

    def leave(self, place: "_SharedPlace", *, accepted: bool) -> None:
        """A call has passed the gates, or has ended without telling."""
        self._link.later(
            "leave",
            self._keys(place.caller.model)[2:],
            lambda: [*place.passed, place.at, int(accepted), self._topic],
        )

    def give_back(self, requests: float, tokens: float) -> None:
        """Give back what a call had taken and not used; negative = it takes more."""
        self._link.later(
            "settle",
            self._keys("")[:2],
            lambda: [*self._rates, requests, tokens, self._topic],
        )

    def pause(self, model: str, seconds: float | None, at: bytes) -> None:
        """Upstream has answered 429 to a call that was let through ``at``."""
        # A limit that resets in an hour is one model's quota; only short ones are the key's.
        shared = "" if seconds is None else min(seconds, config.SHARED_PAUSE_MAX_S)
        own = "" if seconds is None else seconds
        try:
            paused = self._link.run(
                "pause", self._keys(model)[2:], [shared, own, at, self._topic, _name(model)]
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
                for signal in line:
                    signal.give()
            for turn in self._turns:
                turn.signal.give()

    def _heard(self, payload: bytes) -> None:
        match payload.decode().split(" "):
            case ["moved", *numbers]:
                move = _Move(*map(float, numbers))
                with self._lock:
                    self._moves.append(move)
                    for turn in self._turns:
                        turn.heed(move)
                    if self._turns:
                        self._turns[0].signal.give()
            case ["paused", shared_s, name, seconds]:
                self._remember(float(shared_s), name, float(seconds))
            case ["opened"]:
                self._poke_first()
            case _:
                if self._link.is_up:
                    self._own.recall()
                with self._lock:
                    self._moves.clear()
                    for turn in self._turns:
                        turn.should_ask = True
                        turn.signal.give()
                self._poke_first()

    def _poke_first(self) -> None:
        with self._lock:
            for line in self._lines.values():
                if line:
                    line[0].give()

    def _keys(self, model: str) -> Sequence[bytes]:
        return _keys_of(self._root, model)

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
        self._has_left = not any(passed)

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


class _Turn:
    """A caller's turn in the line. ``missing`` is what must come into each bucket before it.

    ``signal`` tells him to look again.
    """

    __slots__ = (
        "_asked_s",
        "_heard",
        "_missing",
        "number",
        "should_ask",
        "signal",
    )

    def __init__(
        self, signal: Signal, number: float, heard: float, missing: Sequence[float], asked_s: float
    ) -> None:
        self.signal = signal
        self.should_ask = False
        self.number = number
        self._heard = heard
        self._missing = missing
        self._asked_s = asked_s

    def heed(self, move: "_Move") -> None:
        """Take notice of what comes nearer, unless it was known when the turn was given."""
        if move.number > self._heard and move.after < self.number:
            self._heard = move.number
            requests, tokens = self._missing
            self._missing = [requests - move.requests, tokens - move.tokens]

    def advance(self, now: float, rates: tuple[float, float]) -> None:
        """Take off what has come into the buckets until ``now``, at so much per minute."""
        seconds = now - self._asked_s
        self._missing = [
            missing - seconds * rate / 60
            for missing, rate in zip(self._missing, rates, strict=True)
        ]
        self._asked_s = now

    def due_s(self, rates: tuple[float, float]) -> float:
        """When it is time (monotonic), with so many requests and tokens per minute."""
        due_s = self._asked_s
        for missing, rate in zip(self._missing, rates, strict=True):
            if rate > 0:
                due_s = max(due_s, self._asked_s + missing * 60 / rate)
        return due_s


@dataclass(frozen=True, slots=True)
class _Move:
    """Turns after the number ``after`` are so many requests and tokens nearer."""

    number: float
    after: float
    requests: float
    tokens: float


@dataclass(slots=True, eq=False)
class _Caller:
    """Who wants a place."""

    id: str
    model: str
    tokens: float
    deadline_s: float
    is_fallback: bool
    may_be_in_line: bool = False


@lru_cache(maxsize=1000)
def _keys_of(root: str, model: str) -> tuple[bytes, ...]:
    """Of the buckets, the line, the gate of the credential and that of the model."""
    limits, gate = f"{root}:limits", f"{root}:gate"
    keys = (limits, f"{limits}:line", gate, f"{gate}:{_name(model)}")
    return tuple(key.encode() for key in keys)


@lru_cache(maxsize=1000)
def _name(model: str) -> str:
    """A model in keys and in news: ids may hold anything, and are nobody else's business."""
    return sha256(model.encode()).hexdigest()[:16]
