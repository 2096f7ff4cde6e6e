"""What a caller gets: the answer, what it used and cost, and what happened on the way."""

from copy import deepcopy
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from holysheep.pricing import Cost, PriceSource
from holysheep.tally import CACHED_STATES, Figures, exact_usd, latency_class
from holysheep.types import CacheState, Completion, JsonObject, Trace


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Tokens and cost of one call.

    ``prompt_tokens``      of the answer, also of one from the cache; with those of an answer before
                           it that was no usable JSON
    ``completion_tokens``  likewise, reasoning included
    ``total_tokens``       both together
    ``cached_tokens``      the part of the prompt that the provider had in a cache of its own
    ``reasoning_tokens``   the part of the completion that is reasoning
    ``cost_usd``           what this call cost, exact: 0 where ``cached``, ``None`` where no price
                           is known
    ``saved_usd``          what it would have cost where ``cached``, else 0; ``None`` where no price
                           is known
    ``price_source``       whose price: ``override`` (``price_overrides``), ``provider`` (what the
                           gateway said in its answer), ``table`` (the providers' list prices, in
                           ``prices.yaml`` of this package) or ``none``
    ``estimated``          whether the tokens are an estimate, because the gateway reports none
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost_usd: Decimal | None
    saved_usd: Decimal | None
    price_source: PriceSource
    estimated: bool

    def to_json(self) -> JsonObject:
        """As a JSON object with the same keys; money as numbers."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "cached_tokens": self.cached_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "cost_usd": usd_number(self.cost_usd),
            "saved_usd": usd_number(self.saved_usd),
            "price_source": self.price_source,
            "estimated": self.estimated,
        }


@dataclass(frozen=True, slots=True)
class Meta:
    """What happened on the way. Spans are milliseconds; ``None`` = did not happen.

    ``cache``           ``hit`` (the answer was stored), ``coalesced`` (it is that of an identical
                        call at the same time), ``stale`` (stored and expired, as upstream is down);
                        ``miss``, ``refresh`` or ``bypass`` (upstream was asked)
    ``attempts``        requests that this call sent, retries and fallback included
    ``ttft_ms``         from the start of the call to the first piece of the answer, or to all of it
                        where it was not streamed
    ``queue_ms``        waits for a turn at the client's limits, those between retries apart
    ``upstream_ms``     time on the wire, over all attempts
    ``request_id``      the gateway's id of the request that was answered, if it gives one
    ``fallback_from``   the model that was asked first, where another one answered
    ``left_out``        parameters that were not sent because the model refuses them
    ``budget_warning``  a sentence from 80 % of a budget on, else empty
    ``backend``         whose cache, limits and breakers: ``local``, or ``redis`` from begin to end
    """

    cache: CacheState
    attempts: int
    ttft_ms: float | None
    queue_ms: float
    upstream_ms: float
    request_id: str | None
    fallback_from: str | None
    left_out: tuple[str, ...] = ()
    budget_warning: str = ""
    backend: Literal["local", "redis"] = "local"

    def to_json(self) -> JsonObject:
        """As a JSON object with the same keys."""
        return {
            "cache": self.cache,
            "attempts": self.attempts,
            "ttft_ms": self.ttft_ms,
            "queue_ms": self.queue_ms,
            "upstream_ms": self.upstream_ms,
            "request_id": self.request_id,
            "fallback_from": self.fallback_from,
            "left_out": list(self.left_out),
            "budget_warning": self.budget_warning,
            "backend": self.backend,
        }


@dataclass(frozen=True, slots=True)
class ChatResult:
    """The whole outcome of a successful call.

    ``text``           the answer; empty where the model calls tools only
    ``reasoning``      the model's reasoning, where it is reported
    ``model_used``     the id that upstream says it served
    ``finish_reason``  ``stop``, ``length`` (cut off by ``max_tokens``), ``tool_calls``, or another
                       word of the gateway's
    ``cached``         whether this call made no upstream call of its own
    ``latency_ms``     from the start of the call to the last byte
    ``tokens_used``    ``usage.total_tokens``
    ``cost_usd``       ``usage.cost_usd``: ``None`` = no price known
    ``structured``     the parsed answer where JSON was asked for, else ``None``
    ``tool_calls``     in OpenAI's form: ``{"id": ..., "type": "function", "function": {"name": ...,
                       "arguments": "a JSON text"}}``; empty where there are none
    ``usage``          tokens and cost, a ``UsageReport``
    ``meta``           what happened on the way, a ``Meta``
    """

    text: str
    reasoning: str
    model_used: str
    finish_reason: str
    cached: bool
    latency_ms: float
    tokens_used: int
    cost_usd: Decimal | None
    structured: Any
    tool_calls: list[JsonObject]
    usage: UsageReport
    meta: Meta

    def to_json(self) -> JsonObject:
        """As a JSON object with the same keys; money as numbers."""
        return {
            "text": self.text,
            "reasoning": self.reasoning,
            "model_used": self.model_used,
            "finish_reason": self.finish_reason,
            "cached": self.cached,
            "latency_ms": self.latency_ms,
            "tokens_used": self.tokens_used,
            "cost_usd": usd_number(self.cost_usd),
            "structured": self.structured,
            "tool_calls": self.tool_calls,
            "usage": self.usage.to_json(),
            "meta": self.meta.to_json(),
        }


def build_result(
    completion: Completion,
    structured: Any,
    cost: Cost,
    trace: Trace,
    ended_s: float,
    budget_warning: str = "",
) -> ChatResult:
    """The result of a call that ended at ``ended_s`` (monotonic)."""
    choice = completion.first
    usage = completion.total_usage
    cached = trace.cache in CACHED_STATES
    own_cost = Decimal(0) if cached else cost.usd
    return ChatResult(
        text=choice.text,
        reasoning=choice.reasoning,
        model_used=completion.model,
        finish_reason=choice.finish_reason,
        cached=cached,
        latency_ms=_ms(ended_s - trace.started_s),
        tokens_used=usage.total_tokens,
        cost_usd=own_cost,
        structured=structured,
        # A copy: the original may be in the cache, and what is there is nobody's to change.
        tool_calls=deepcopy(list(choice.tool_calls)),
        usage=UsageReport(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
            cached_tokens=usage.cached_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            cost_usd=own_cost,
            saved_usd=cost.usd if cached else Decimal(0),
            price_source=cost.source,
            estimated=usage.estimated,
        ),
        meta=_meta(
            trace,
            completion.request_id,
            completion.fallback_from,
            left_out=completion.left_out,
            budget_warning=budget_warning,
        ),
    )


def empty_result(trace: Trace, ended_s: float) -> ChatResult:
    """The result of a call that failed: nothing but what happened on the way."""
    return ChatResult(
        text="",
        reasoning="",
        model_used="",
        finish_reason="",
        cached=False,
        latency_ms=_ms(ended_s - trace.started_s),
        tokens_used=0,
        cost_usd=None,
        structured=None,
        tool_calls=[],
        usage=UsageReport(
            prompt_tokens=0,
            completion_tokens=0,
            total_tokens=0,
            cached_tokens=0,
            reasoning_tokens=0,
            cost_usd=None,
            saved_usd=None,
            price_source="none",
            estimated=False,
        ),
        meta=_meta(trace, trace.request_id, trace.fallback_from),
    )


def figures_of(
    completion: Completion | None, cost_usd: Decimal | None, trace: Trace, ended_s: float
) -> Figures:
    """What a call is counted as; ``completion`` is what its caller has got."""
    latency_ms = _ms(ended_s - trace.started_s)
    figures = Figures(
        requests=1,
        upstream_calls=trace.attempts,
        latency_us=round(latency_ms * 1000),
        classes={latency_class(latency_ms): 1},
        unpriced=min(1, trace.unsettled),
    )
    if completion is not None:
        if trace.cache in CACHED_STATES:
            figures.saved_usd = exact_usd(cost_usd)
        else:
            figures += upstream_figures(completion, cost_usd)
            figures.unpriced = min(1, figures.unpriced)
    return figures


def upstream_figures(completion: Completion, cost_usd: Decimal | None) -> Figures:
    """What upstream has done for an answer."""
    usage = completion.total_usage
    return Figures(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        cost_usd=exact_usd(cost_usd),
        unpriced=int(cost_usd is None),
    )


def _meta(
    trace: Trace,
    request_id: str | None,
    fallback_from: str | None,
    *,
    left_out: tuple[str, ...] = (),
    budget_warning: str = "",
) -> Meta:
    return Meta(
        cache=trace.cache,
        attempts=trace.attempts,
        ttft_ms=None if trace.ttft_s is None else _ms(trace.ttft_s),
        queue_ms=_ms(trace.queue_s),
        upstream_ms=_ms(trace.upstream_s),
        request_id=request_id,
        fallback_from=fallback_from,
        left_out=left_out,
        budget_warning=budget_warning,
        backend=trace.backend,
    )


def usd_number(amount: Decimal | None) -> float | None:
    """An amount as a JSON number."""
    return None if amount is None else float(amount)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
