"""Requests and tokens per minute, waited for in order; and the pauses that upstream asks for.

*Buckets.* A call takes one token of the request bucket and, where tokens per minute are limited, an
estimate of its tokens, which is settled with what upstream reports.

*Queue.* Callers are served first come, first served. One whose turn cannot come before its
deadline is refused at once, with nothing taken.

*Gates.* A 429 closes the gate of the credential for as long as the server says. Beyond a minute
only the model that was limited is held back, and a fallback to another model heeds only the pauses
of that model: the limit that it escapes from is usually the first model's.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from holysheep import config
from holysheep.bucket import TokenBucket
from holysheep.errors import LimitBeyondDeadline, LimiterTimeout
from holysheep.gate import Gate, Passage
from holysheep.ports import Clock, Signal
from holysheep.wording import span


class Place(Protocol):
    """A place that was taken. ``end`` or ``cancel`` must be called once."""

    def accepted(self) -> None:
        """Upstream has begun to answer: it did not refuse this call for its limits."""
        ...

    def refused(self, seconds: float | None) -> None:
        """Upstream has answered 429, and asked to wait so long where it named a time."""
        ...

    def end(self, tokens_used: float | None) -> None:
        """Settle the estimate with ``tokens_used``; ``None`` leaves the estimate standing."""
        ...

    def cancel(self) -> None:
        """Give everything back: nothing was sent."""
        ...


class Limiter(Protocol):
    """The limits of one credential."""

    @property
    def limits_tokens(self) -> bool:
        """Whether a token estimate is needed at all."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether forgetting this limiter would lose nothing."""
        ...

    def resize(self, requests_per_minute: float, tokens_per_minute: float) -> None:
        """Change the limits."""
        ...

    def reserve(
        self, model: str, tokens: float, *, deadline_s: float, is_fallback: bool = False
    ) -> Place:
        """Take one request and ``tokens``, waiting for the turn until ``deadline_s`` at most.

        Raises ``LimiterTimeout`` if the credential's own limits leave no room in time, and
        ``LimitBeyondDeadline`` if upstream has asked to wait longer; nothing is taken then.
        """
        ...

    def is_paused(self, model: str, *, is_fallback: bool = False) -> bool:
        """Whether upstream has asked the calls to ``model`` to wait, at this moment."""
        ...


class Recalled(Exception):
    """Who has waited is to ask elsewhere; nothing is taken."""


class RateLimiter:
    """The limits of one credential in one process. A rate of 0 means no limit."""

    def __init__(
        self, requests_per_minute: float, tokens_per_minute: float, *, clock: Clock
    ) -> None:
        self._clock = clock
        self._lock = clock.lock()
        self._buckets: dict[str, TokenBucket] = {}
        self._requests = self._bucket("requests", requests_per_minute)
        self._tokens = self._bucket("tokens", tokens_per_minute)
        self._gate = Gate()
        self._model_gates: dict[str, Gate] = {}
        self._queue: deque[_Waiter] = deque()

    @property
    def limits_tokens(self) -> bool:
        """Whether a token estimate is needed at all."""
        return self._tokens is not None

    @property
    def rates(self) -> tuple[float, float]:
        """Requests and tokens per minute; 0 = no limit."""
        return (
            self._requests.rate if self._requests else 0.0,
            self._tokens.rate if self._tokens else 0.0,
        )

    @property
    def is_idle(self) -> bool:
        """Whether forgetting this limiter would lose nothing."""
        with self._lock:
            full = all(bucket.is_full for bucket in self._buckets.values())
            now = self._clock.monotonic()
            gates = (self._gate, *self._model_gates.values())
            quiet = all(gate.is_quiet(now) for gate in gates)
            return full and quiet and not self._queue

    def resize(self, requests_per_minute: float, tokens_per_minute: float) -> None:
        """Change the limits; callers that wait are served by the new ones."""
        with self._lock:
            self._requests = self._bucket("requests", requests_per_minute)
            self._tokens = self._bucket("tokens", tokens_per_minute)
            for waiter in self._queue:
                waiter.signal.give()

    def reserve(
        self,
        model: str,
        tokens: float,
        *,
        deadline_s: float,
        is_fallback: bool = False,
    ) -> "Reservation":
        """Take one request and ``tokens``, waiting for the turn until ``deadline_s`` at most.

        One that tries again is behind those that wait: it has been refused, and the first after a
        pause is the likeliest to be refused once more.
        Raises ``LimiterTimeout`` if the credential's own limits leave no room in time, and
        ``LimitBeyondDeadline`` if upstream has asked to wait longer; nothing is taken then.
        ``Recalled`` after a ``recall``.
        """
        waiter = _Waiter(model, tokens, is_fallback=is_fallback)
        with self._lock:
            if not self._queue and self._delay(waiter, self._clock.monotonic()) <= 0:
                return self._take(waiter)
            self._refuse_if_hopeless(waiter, deadline_s)
            waiter.signal = Signal(self._clock.condition())
            self._queue.append(waiter)
        try:
            while True:
                with self._lock:
                    if waiter.is_recalled:
                        raise Recalled
                    now = self._clock.monotonic()
                    delay = self._delay(waiter, now)
                    if delay <= 0:
                        return self._take(waiter)
                    soonest = delay if math.isfinite(delay) else self._pause_left(waiter, now)
                    if now >= deadline_s or now + soonest > deadline_s:
                        raise self._refusal(waiter, delay)
                waiter.signal.wait(min(delay, deadline_s - now))
        finally:
            with self._lock:
                self._queue.remove(waiter)
                self._poke_next()

    def recall(self) -> None:
        """Send all who wait away."""
        with self._lock:
            for waiter in self._queue:
                waiter.is_recalled = True
                waiter.signal.give()

    def is_paused(self, model: str, *, is_fallback: bool = False) -> bool:
        """Whether upstream has asked the calls to ``model`` to wait, at this moment."""
        with self._lock:
            waiter = _Waiter(model, 0, is_fallback=is_fallback)
            return self._pause_left(waiter, self._clock.monotonic()) > 0

    def pause(self, model: str, seconds: float | None, *, admitted_s: float = math.inf) -> None:
        """Hold all calls of the credential back, ``seconds`` long where the server named a time.

        ``admitted_s`` is when the call that was answered with 429 had been let through.
        """
        with self._lock:
            now = self._clock.monotonic()
            # A limit that resets in an hour is one model's quota; only short ones are the key's.
            shared = None if seconds is None else min(seconds, config.SHARED_PAUSE_MAX_S)
            self._gate.pause(now, shared, admitted_s)
            self._model_gates = {
                name: gate for name, gate in self._model_gates.items() if not gate.is_quiet(now)
            }
            self._model_gates.setdefault(model, Gate()).pause(now, seconds, admitted_s)
            for waiter in self._queue:
                # Those who would wait in vain are told at once.
                waiter.signal.give()

    def _bucket(self, what: str, rate: float) -> TokenBucket | None:
        """The bucket for a rate. No limit leaves it alone: what was taken from it stays taken."""
        if rate <= 0:
            return None
        bucket = self._buckets.setdefault(what, TokenBucket(rate, clock=self._clock))
        if bucket.rate != rate:
            bucket.resize(rate)
        return bucket

    def _gates_of(self, waiter: "_Waiter") -> list[Gate]:
        """The gates that a caller must pass: its model's and, unless it falls back, the shared."""
        gates = [] if waiter.is_fallback else [self._gate]
        if waiter.model in self._model_gates:
            gates.append(self._model_gates[waiter.model])
        return gates

    def _gate_delay(self, waiter: "_Waiter", now: float) -> float:
        return max((gate.delay(now) for gate in self._gates_of(waiter)), default=0.0)

    def _pause_left(self, waiter: "_Waiter", now: float) -> float:
        """Seconds of the pauses that hold ``waiter`` back; not positive where there are none."""
        return max((gate.until_s - now for gate in self._gates_of(waiter)), default=0.0)

    def _delay(self, waiter: "_Waiter", now: float) -> float:
        """Seconds until ``waiter`` may try again; infinity = when it is poked."""
        held = self._gate_delay(waiter, now)
        if held > 0:
            return held
        for other in self._queue:
            if other is waiter:
                break
            if self._gate_delay(other, now) <= 0:
                return math.inf
        return max(
            self._requests.wait_time() if self._requests else 0.0,
            self._tokens.wait_time(waiter.tokens) if self._tokens else 0.0,
        )

    def _take(self, waiter: "_Waiter", gates: Sequence[Gate] | None = None) -> "Reservation":
        """Take a place, passing the gates: all that hold ``waiter`` back, or those given."""
        if self._requests:
            self._requests.settle(-1.0)
        if self._tokens:
            self._tokens.settle(-waiter.tokens)
        now = self._clock.monotonic()
        gates = self._gates_of(waiter) if gates is None else gates
        passed = [(gate, gate.enter(now)) for gate in gates]
        return Reservation(self, waiter, now, passed)

    def _poke_next(self) -> None:
        """Wake those whose turn may have come: the first that no pause holds back."""
        now = self._clock.monotonic()
        for waiter in self._queue:
            waiter.signal.give()
            if self._gate_delay(waiter, now) <= 0:
                break

    def _refuse_if_hopeless(self, waiter: "_Waiter", deadline_s: float) -> None:
        """Raise at once where even with perfect luck the turn comes too late."""
        now = self._clock.monotonic()
        paused = self._pause_left(waiter, now)
        if now + paused > deadline_s:
            raise self._refusal(waiter, paused)
        held = self._gate_delay(waiter, now)
        # Those whom a pause holds back for longer are not ahead.
        before = [other for other in self._queue if self._gate_delay(other, now) <= held]
        ahead = 0.0
        if self._requests:
            ahead = self._requests.drain_time(len(before) + 1)
        if self._tokens:
            size = self._tokens.rate
            needed = sum(min(other.tokens, size) for other in (*before, waiter))
            ahead = max(ahead, self._tokens.drain_time(needed))
        if now + ahead > deadline_s:
            raise self._refusal(waiter, ahead)

    def _refusal(self, waiter: "_Waiter", delay: float) -> LimiterTimeout | LimitBeyondDeadline:
        now = self._clock.monotonic()
        paused = self._pause_left(waiter, now)
        if paused > 0:
            return beyond_deadline(paused)
        if self._gate_delay(waiter, now) > 0:
            return held_to_the_end()
        return no_room(*self.rates, delay)

    def take(self, model: str, tokens: float) -> "Reservation":
        """Take a place that another limiter has granted, whether there is one or not."""
        with self._lock:
            return self._take(_Waiter(model, tokens, is_fallback=False), gates=())

    def _leave_gates(
        self, passed: list[tuple[Gate, Passage]], model: str, *, answered: bool
    ) -> None:
        with self._lock:
            for gate, passage in passed:
                gate.leave(passage, accepted=answered)
            own = self._model_gates.get(model)
            if own is not None and own.allowance is None:
                del self._model_gates[model]
            if self._queue:
                self._poke_next()

    def _settle(self, tokens: float, requests: int = 0) -> None:
        with self._lock:
            if self._tokens:
                self._tokens.settle(tokens)
            if self._requests and requests:
                self._requests.settle(requests)
            if self._queue:
                self._poke_next()


def beyond_deadline(pause_s: float) -> LimitBeyondDeadline:
    """Upstream asks to wait longer than the caller can."""
    return LimitBeyondDeadline(
        f"Rate limit of the gateway: it resets in {span(pause_s)}, after the deadline of this call."
        " Try again then, or raise timeout_s.",
        status=429,
        retry_after_s=pause_s,
    )


def held_to_the_end() -> LimiterTimeout:
    """The pause is over, and the deadline came while calls were let through step by step."""
    return LimiterTimeout(
        "Rate limit of the gateway: calls are let through one after the other since it was"
        " reached, and this call's deadline is over. Try again, or raise timeout_s."
    )


def no_room(requests_per_minute: float, tokens_per_minute: float, delay_s: float) -> LimiterTimeout:
    """The credential's own limits leave no room; infinity = others are before this caller."""
    named = ((requests_per_minute, "requests"), (tokens_per_minute, "tokens"))
    rates = [f"{rate:g} {what} per minute" for rate, what in named if rate > 0]
    is_known = math.isfinite(delay_s)
    free = f"the next place is free in {span(delay_s)}" if is_known else "others wait"
    return LimiterTimeout(
        f"The limit of {' and '.join(rates)} of this credential leaves no room before the"
        f" deadline: {free}. Raise timeout_s, or the limit in the credential.",
        retry_after_s=delay_s if is_known else None,
    )


class Reservation:
    """A place in a ``RateLimiter``."""

    def __init__(
        self,
        limiter: RateLimiter,
        waiter: "_Waiter",
        admitted_s: float,
        passed: list[tuple[Gate, Passage]],
    ) -> None:
        self.admitted_s = admitted_s
        self._limiter = limiter
        self._waiter = waiter
        self._passed = passed

    def accepted(self) -> None:
        """Upstream has begun to answer: it did not refuse this call for its limits."""
        self._leave(answered=True)

    def refused(self, seconds: float | None) -> None:
        """Upstream has answered 429, and asked to wait so long where it named a time."""
        self._limiter.pause(self._waiter.model, seconds, admitted_s=self.admitted_s)

    def end(self, tokens_used: float | None) -> None:
        """Settle the estimate with ``tokens_used``; ``None`` leaves the estimate standing."""
        self._leave(answered=False)
        if tokens_used is not None:
            self._limiter._settle(self._waiter.tokens - tokens_used)

    def cancel(self) -> None:
        """Give everything back: nothing was sent."""
        self._leave(answered=False)
        self._limiter._settle(self._waiter.tokens, requests=1)

    def _leave(self, *, answered: bool) -> None:
        if self._passed:
            passed, self._passed = self._passed, []
            self._limiter._leave_gates(passed, self._waiter.model, answered=answered)


class _Waiter:
    """A caller in the queue. Its signal, once it waits, says to look whether it is its turn."""

    __slots__ = ("is_fallback", "is_recalled", "model", "signal", "tokens")

    signal: Signal

    def __init__(self, model: str, tokens: float, *, is_fallback: bool) -> None:
        self.model = model
        self.tokens = tokens
        self.is_fallback = is_fallback
        self.is_recalled = False
