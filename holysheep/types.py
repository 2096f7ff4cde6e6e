"""The values that travel through the engine.

A call goes down the stack of layers as a ``Call``; what comes back up is an iterator of events:
any number of ``Delta`` and then exactly one ``Completed``. A failure is an exception in place of
the next event. The texts of the deltas, joined, are the text of the completion.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from hashlib import sha256
from typing import Any, Literal, Protocol

from pydantic import ConfigDict, with_config

from holysheep.jsontext import whole_characters

JsonObject = dict[str, Any]
"""A decoded JSON object. ``Any`` ends where parsing ends."""

# What is stored is read back by these: no other names, and no other types.
_as_stored = with_config(ConfigDict(extra="forbid", strict=True))
_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))

CacheMode = Literal["use", "refresh", "bypass"]
CacheState = Literal["hit", "miss", "coalesced", "stale", "refresh", "bypass"]


class ChatRequest:
    """The body of one chat completion, without the keys that only say how it is delivered.

    ``body`` is an OpenAI chat completion request: ``model``, ``messages`` and parameters, never
    ``stream`` or ``stream_options``. It is not to be changed after it was handed over.
    """

    __slots__ = ("_canonical", "_digest", "body")

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.body = body
        self._canonical: bytes | None = None
        self._digest: bytes | None = None

    @property
    def model(self) -> str:
        """The model id that is asked for."""
        return str(self.body["model"])

    def canonical(self) -> bytes:
        """The body as UTF-8 JSON with sorted keys: what is sent, and what the cache key hashes."""
        if self._canonical is None:
            self._canonical = whole_characters(_CANONICAL.encode(self.body)).encode()
        return self._canonical

    def digest(self) -> bytes:
        """SHA-256 of the canonical body, 32 bytes."""
        if self._digest is None:
            self._digest = sha256(self.canonical()).digest()
        return self._digest

    def with_model(self, model: str) -> "ChatRequest":
        """The same request to another model."""
        return ChatRequest({**self.body, "model": model})

    def with_messages(self, messages: Sequence[JsonObject]) -> "ChatRequest":
        """The same request with another conversation."""
        return ChatRequest({**self.body, "messages": list(messages)})


@dataclass(frozen=True, slots=True)
class Policy:
    """How a call is to be made, apart from what is asked.

    ``cache``            ``use`` reads and writes, ``refresh`` only writes, ``bypass`` neither.
    ``cache_ttl_s``      how long the answer may be served.
    ``cache_partition``  part of the cache key: an app or user within the credential, or ``""``.
    ``serve_stale``      an expired answer instead of an error while upstream is down.
    ``fallback_models``  tried in order where the model fails.
    ``max_retries``      per model, after the first attempt.
    ``answer_schema``    JSON Schema the answer must satisfy; ``{}`` = any JSON; ``None`` = text.
    """

    cache: CacheMode = "use"
    cache_ttl_s: float = 300.0
    cache_partition: str = ""
    serve_stale: bool = False
    fallback_models: tuple[str, ...] = ()
    max_retries: int = 3
    answer_schema: JsonObject | None = None

    @property
    def planned(self) -> CacheState:
        """The cache state of a call that makes an upstream call of its own."""
        return "miss" if self.cache == "use" else self.cache


@dataclass(slots=True)
class Trace:
    """What happened to one call; the layers write, the caller reads when it has ended.

    Spans are seconds. ``ttft_s`` runs from the start of the call to the first piece of the
    answer, ``queue_s`` sums the waits for limits, ``upstream_s`` the time on the wire. ``wasted``
    is an answer that upstream has made for this call and its caller has not got: it costs as well.
    ``unsettled`` counts the requests that upstream worked on and that nobody knows the cost of.
    ``backend`` says whose state it was made with from beginning to end.
    """

    started_s: float
    cache: CacheState = "miss"
    attempts: int = 0
    ttft_s: float | None = None
    queue_s: float = 0.0
    upstream_s: float = 0.0
    request_id: str | None = None
    fallback_from: str | None = None
    breaker_epoch: int = 0
    wasted: "Completion | None" = None
    unsettled: int = 0
    backend: Literal["local", "redis"] = "local"


class Purse(Protocol):
    """What a call spends from, where it has a limit."""

    def hold(self, worst_usd: Decimal, until_s: float, /) -> None:
        """Set the most that a call may cost aside. Raises ``BudgetExceeded``.

        ``until_s`` is when the call must have ended (monotonic).
        """
        ...

    def settle(self, held_usd: Decimal, spent_usd: Decimal, /) -> None:
        """Replace what was set aside by what the call has cost."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way down.

    ``deadline_s`` is a point on the monotonic clock that ends everything: waiting, retries,
    fallback and reading. ``active_s`` are the seconds it may take apart from waiting its turn at
    the credential's own limits; ``None`` = the deadline alone counts. ``share_s`` is how much of
    that time may pass until the first byte of an answer, so that some is left for another model;
    ``None`` = all. ``stream`` says whether somebody watches the answer arrive,
    ``shows_reasoning`` whether its reasoning too. ``purse`` is what it spends from, ``None`` where
    there is no limit. ``queue_s`` is how long it waits for its turn at one of the credential's own
    limits, ``None`` = as long as it has time.
    """

    request: ChatRequest
    policy: Policy
    deadline_s: float
    trace: Trace
    stream: bool = False
    shows_reasoning: bool = True
    active_s: float | None = None
    share_s: float | None = None
    purse: Purse | None = None
    queue_s: float | None = None

    def turn_by_s(self, now_s: float) -> float:
        """When it must have its turn at a limit, if it begins to wait now (monotonic)."""
        if self.queue_s is None:
            return self.deadline_s
        return min(self.deadline_s, now_s + self.queue_s)

    @property
    def ends_s(self) -> float:
        """When the call must have ended (monotonic); a wait for its turn may move that back."""
        return self._end_of(self.active_s)

    @property
    def answer_by_s(self) -> float:
        """When the first byte of its answer must have come (monotonic), likewise."""
        return min(self.ends_s, self._end_of(self.share_s))

    def _end_of(self, span_s: float | None) -> float:
        if span_s is None:
            return self.deadline_s
        return min(self.deadline_s, self.trace.started_s + span_s + self.trace.queue_s)

    def asking(self, request: ChatRequest) -> "Call":
        """The same call with another request."""
        return replace(self, request=request)


@_as_stored
@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one answer, as reported, or estimated where ``estimated`` says so.

    ``cached_tokens`` and ``cache_write_tokens`` are part of ``prompt_tokens``,
    ``reasoning_tokens`` part of ``completion_tokens``. ``provider_cost_usd`` is what the gateway
    says that the call cost, ``None`` where it does not say.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    provider_cost_usd: Decimal | None = None
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        costs = (self.provider_cost_usd, other.provider_cost_usd)
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            # One unknown part makes the sum unknown: a partial cost would look like a whole one.
            provider_cost_usd=None if None in costs else sum(filter(None, costs), Decimal(0)),
            estimated=self.estimated or other.estimated,
        )


@_as_stored
@dataclass(frozen=True, slots=True)
class Choice:
    """One of the ``n`` answers. ``tool_calls`` and ``logprobs`` have OpenAI's form."""

    index: int = 0
    text: str = ""
    reasoning: str = ""
    finish_reason: str = "stop"
    tool_calls: tuple[JsonObject, ...] = ()
    logprobs: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A complete, successful answer.

    ``asked_model`` is the id that was sent, ``model`` the id that upstream says it served.
    ``earlier`` are the usages of answers before it that could not be used; they cost as well.
    ``fallback_from`` is the first model asked, where that was another one; ``left_out`` names the
    parameters that were not sent because the model refuses them.
    """

    asked_model: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    request_id: str | None = None
    earlier: tuple[Usage, ...] = ()
    fallback_from: str | None = None
    left_out: tuple[str, ...] = ()

    @property
    def total_usage(self) -> Usage:
        """What it took to get this answer."""
        return sum(self.earlier, self.usage)

    @property
    def first(self) -> Choice:
        """The answer that a caller who asked for one answer means."""
        return self.choices[0]


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer as it arrives.

    ``text``       what follows the text before; may be empty
    ``reasoning``  the same of the model's reasoning
    ``index``      which of the ``n`` answers, from 0; a ``Stream`` has the pieces of the first one
    ``is_last``    that nothing more of this answer is to come, where it is known: a reader that
                   collects pieces need not wait for another one
    """

    text: str = ""
    reasoning: str = ""
    index: int = 0
    is_last: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Completed:
    """The last event of a successful call."""

    completion: Completion


Event = Delta | Completed
Handler = Callable[[Call], Iterator[Event]]
"""What every layer offers upward and finds below."""
Layer = Callable[[Call, Handler], Iterator[Event]]
"""A layer is called with the call and with what lies below it."""
