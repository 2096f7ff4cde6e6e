"""One credential's engine: the order of the mechanisms, and the recording round them."""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import partial

from holysheep.backend import Backend
from holysheep.breaker import BreakerLayer, BreakerRecheck, State
from holysheep.budget import BudgetLayer, Limits
from holysheep.cache import CacheLayer, StaleCover, identity_of
from holysheep.concurrency import ConcurrencyLayer
from holysheep.config import MAX_CONNECTIONS, MIN_KEPT_ALIVE
from holysheep.errors import HolySheepError
from holysheep.fair import FairSemaphore
from holysheep.fallback import FallbackLayer
from holysheep.ledger import Invocation, Ledger
from holysheep.pool import PooledTransport
from holysheep.ports import Clock, Rng, spawn_thread
from holysheep.pricing import Cost, PriceBook
from holysheep.quirks import Quirks
from holysheep.ratelimit import PauseRecheck, RateLimitLayer
from holysheep.result import ChatResult, build_result, empty_result, figures_of, upstream_figures
from holysheep.retry import RetryLayer
from holysheep.settings import Settings
from holysheep.singleflight import Flights, SingleFlightLayer
from holysheep.structured import StructuredLayer, parse_answer
from holysheep.tally import CACHED_STATES, Dimensions
from holysheep.transport import ChatTransport
from holysheep.types import (
    CacheState,
    Call,
    ChatRequest,
    Completed,
    Completion,
    Delta,
    Event,
    Handler,
    Layer,
    Policy,
    Purse,
    Trace,
)

CANCELLED = "cancelled"
"""The status of a call whose caller left before it had ended."""


class CredentialState:
    """What must outlive a call: connections, limits, and calls under way.

    ``ledger`` counts the calls that belong to no workspace; in Redis, where there is one.
    """

    def __init__(self, settings: Settings, *, backend: Backend, clock: Clock) -> None:
        self.backend = backend
        self.pool = PooledTransport(settings.base_url, clock=clock, **_connections(settings))
        self.slots = FairSemaphore(settings.max_concurrency, clock)
        self.ledger = Ledger(clock, spawn_thread)
        self._lock = clock.lock()
        self._opened: Invocation | None = None
        self.flights = Flights(clock)
        self.quirks = Quirks(clock)

    @property
    def local(self) -> Invocation:
        """Where calls are counted that belong to no workspace."""
        with self._lock:
            if self._opened is None:
                storage = self.backend.storage
                opened = self.ledger.invocation("library", store=storage, lasts=True)
                self._opened = opened.__enter__()
            return self._opened

    @property
    def is_idle(self) -> bool:
        """Whether forgetting this state would change nothing for anybody."""
        return (
            not self.flights
            and not self.slots.held
            and not self.pool.in_use
            and self.backend.limiter.is_idle
            and self.ledger.is_idle
        )

    def resize(self, settings: Settings) -> None:
        """Take on changed limits without losing what was counted."""
        self.pool.resize(**_connections(settings))
        self.backend.limiter.resize(settings.requests_per_minute, settings.tokens_per_minute)
        self.slots.resize(settings.max_concurrency)

    def close(self) -> None:
        """Close the idle connections, and store what was counted."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.__exit__(None, None, None)
        self.pool.close()

    def forget(self) -> None:
        """End it: nobody uses this credential any more."""
        self.close()
        self.backend.forget()


class Engine:
    """Answers chat requests of one credential."""

    def __init__(
        self, settings: Settings, state: CredentialState, *, clock: Clock, rng: Rng
    ) -> None:
        self.settings = settings
        self.transport = ChatTransport(settings, state.pool, state.quirks, clock)
        self.clock = clock
        self.prices = PriceBook(settings.price_overrides)
        self.limits = Limits.of(settings)
        self.link = state.backend.link
        self._state = state
        backend = state.backend
        breaker_of = partial(backend.breakers.get, settings.base_url)
        self.handler = stack(
            [
                StaleCover(backend.answers),
                SingleFlightLayer(state.flights, identity_of),
                CacheLayer(backend.answers, clock),
                StructuredLayer(),
                BudgetLayer(self.prices),
                FallbackLayer(clock),
                RetryLayer(clock, rng),
                BreakerLayer(breaker_of),
                RateLimitLayer(backend.limiter, clock),
                ConcurrencyLayer(state.slots, clock),
                PauseRecheck(backend.limiter),
                BreakerRecheck(breaker_of),
            ],
            self.transport,
        )

    def ask(
        self,
        request: ChatRequest,
        policy: Policy,
        *,
        timeout_s: float,
        stream: bool = False,
        shows_reasoning: bool = True,
        active_s: float | None = None,
        queue_s: float | None = None,
        started_s: float | None = None,
        invocation: Invocation | None = None,
    ) -> "Answer":
        """Begin a call that must have ended ``timeout_s`` seconds after ``started_s``.

        ``active_s`` is less than that where the wait for a turn at the credential's own limits is
        not to count; ``queue_s`` is how long it waits for one. ``started_s`` is a point on the
        monotonic clock, ``None`` = now. Nothing is sent before the answer is iterated. ``stream``
        says that somebody watches it arrive, and ``shows_reasoning`` that its reasoning is watched
        too: what was seen cannot be tried again. The answer is the same either way. ``invocation``
        says where the call is counted, ``None`` = ``local``.
        """
        if started_s is None:
            started_s = self.clock.monotonic()
        counted_by = invocation or self.local
        call = Call(
            request,
            policy,
            started_s + timeout_s,
            Trace(started_s=started_s, cache=policy.planned),
            stream=stream,
            shows_reasoning=shows_reasoning,
            active_s=active_s,
            queue_s=queue_s,
            purse=self._purse(counted_by) if self.limits else None,
        )
        return Answer(self, call, counted_by)

    @property
    def local(self) -> Invocation:
        """Where calls are counted that belong to no workspace."""
        return self._state.local

    def _purse(self, counted_by: Invocation) -> Purse:
        spending = self._state.backend.spending
        return counted_by.purse(self.settings.fingerprint, self.limits, spending)

    @property
    def in_flight(self) -> int:
        """Requests that are under way upstream."""
        return self._state.slots.held

    @property
    def breakers(self) -> dict[str, State]:
        """The state of the breaker of each model that was asked."""
        return self._state.backend.breakers.states(self.settings.base_url)

    def cost(self, completion: Completion) -> Decimal | None:
        """What an answer cost in USD; ``None`` where nobody knows."""
        return self.prices.cost(completion).usd


class Answer:
    """An answer as it arrives. Read it once, by iterating it or its ``events``.

    ``result`` is there when it has ended.
    """

    def __init__(self, engine: Engine, call: Call, counted_by: Invocation) -> None:
        self._engine = engine
        self._call = call
        self._counted_by = counted_by
        self._result: ChatResult | None = None

    def __iter__(self) -> Iterator[Delta]:
        """The pieces of the first choice. Raises the errors of ``holysheep.errors``."""
        for event in self.events():
            if isinstance(event, Delta) and event.index == 0:
                yield event

    def events(self) -> Iterator[Event]:
        """The pieces of all choices and the whole answer at last, in place of iterating.

        Raises the errors of ``holysheep.errors``.
        """
        engine, trace = self._engine, self._call.trace
        link = engine.link
        losses = link.losses if link is not None and link.is_up else None
        completion: Completion | None = None
        cost = Cost(Decimal(0), "none")
        status = CANCELLED
        try:
            for event in engine.handler(self._call):
                if trace.ttft_s is None:
                    trace.ttft_s = engine.clock.monotonic() - trace.started_s
                if isinstance(event, Completed):
                    completion = event.completion
                    cost = engine.prices.cost(completion)
                    status = "ok"
                else:
                    yield event
        except HolySheepError as error:
            status = error.error_type
            if trace.cache not in CACHED_STATES:
                trace.wasted = error.unusable
            error.attempts = trace.attempts
            error.conceal(engine.settings.api_key)
            raise
        finally:
            ended_s = engine.clock.monotonic()
            if link is not None and link.is_up and link.losses == losses:
                trace.backend = "redis"
            self._count(status, completion, cost, ended_s)
        if completion is None:
            raise TypeError("a call ended without Completed")
        schema = self._call.policy.answer_schema
        structured = None
        if schema is not None and not completion.first.tool_calls:
            structured = parse_answer(completion.first.text)
        warning = ""
        if engine.limits:
            warning = self._counted_by.ledger.warning(engine.settings.fingerprint, engine.limits)
        self._result = build_result(completion, structured, cost, trace, ended_s, warning)
        yield Completed(completion)

    @property
    def cache(self) -> CacheState:
        """Where the answer comes from, as soon as its first piece is there."""
        return self._call.trace.cache

    def _count(
        self, status: str, completion: Completion | None, cost: Cost, ended_s: float
    ) -> None:
        """Enter the call in the ledger, however it has ended."""
        trace = self._call.trace
        asked = trace.fallback_from or self._call.request.model
        made = completion or trace.wasted
        dimensions = Dimensions(
            credential=self._engine.settings.fingerprint,
            asked=asked,
            served=made.model if made else asked,
            status=status,
            cache=trace.cache,
        )
        figures = figures_of(completion, cost.usd, trace, ended_s)
        if trace.wasted is not None:
            figures += upstream_figures(trace.wasted, self._engine.cost(trace.wasted))
        if self._call.purse is None and figures.cost_usd:
            # A limit may be set later, and then counts what was spent before.
            self._counted_by.ledger.settle(dimensions.credential, Decimal(0), figures.cost_usd)
        self._counted_by.add(dimensions, figures)

    @property
    def result(self) -> ChatResult:
        """The outcome. Raises ``RuntimeError`` before the answer has ended."""
        if self._result is None:
            raise RuntimeError("the answer has not been read to its end")
        return self._result

    def wait(self) -> ChatResult:
        """Read the answer to its end and return the outcome."""
        for _ in self:
            pass
        return self.result

    def failure(self) -> ChatResult:
        """An empty outcome with what happened until now, for a call that has failed."""
        return empty_result(self._call.trace, self._engine.clock.monotonic())


def stack(layers: Sequence[Layer], bottom: Handler) -> Handler:
    """One handler out of layers, the first of which is called first."""
    handler = bottom
    for layer in reversed(layers):
        handler = _above(layer, handler)
    return handler


def _above(layer: Layer, below: Handler) -> Handler:
    return lambda call: layer(call, below)


def _connections(settings: Settings) -> dict[str, int]:
    return {
        "max_connections": max(MAX_CONNECTIONS, settings.max_concurrency),
        "max_idle": max(MIN_KEPT_ALIVE, settings.max_concurrency),
    }
