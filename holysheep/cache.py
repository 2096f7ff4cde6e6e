"""Answers that were given before, within one credential.

*Key.* SHA-256 over the canonical body that is sent, so every parameter that changes the answer
changes the key; hashed with the partition (an app or a user) and the schema, where there are. The
credential's fingerprint is no part of the key but selects the shelf: there is no way to reach an
entry of another credential.

*Stored* are complete, successful answers only. An answer that a fallback model gave is stored for
that model, never for the one that failed.

*Bounded* by bytes over the whole process and by entries per credential; the least recently used go
first. An expired entry stays until then, for callers that want a stale answer rather than an error.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Literal, Protocol

from cachetools import LRUCache

from holysheep import config
from holysheep.errors import HolySheepError
from holysheep.ports import Clock
from holysheep.types import Call, Choice, Completed, Completion, Delta, Event, Handler


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored answer. ``stored_s`` is a point on the cache's monotonic clock."""

    completion: Completion
    stored_s: float
    ttl_s: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a call wants of the cache.

    ``key`` names the answer, ``identity`` the call: identical ones share an answer that is under
    way. ``reads`` says whether an answer that is there will do, if it is no older than ``ttl_s``.
    ``until_s`` is when the caller must have it (monotonic).
    """

    key: bytes
    identity: bytes
    ttl_s: float
    reads: bool
    until_s: float


@dataclass(frozen=True, slots=True)
class Found:
    """An answer that was there, or that somebody else was getting."""

    completion: Completion
    state: Literal["hit", "coalesced"]


class Lead(Protocol):
    """The right to get an answer that is not there, and the duty to say what became of it."""

    def land(self, key: bytes | None, completion: Completion, ttl_s: float) -> None:
        """Here is the answer; to be kept under ``key`` for ``ttl_s``, unless that is ``None``."""
        ...

    def fail(self, error: HolySheepError) -> None:
        """There is none, for nobody who has asked the same."""
        ...

    def end(self) -> None:
        """The call is over. Called once, at last; alone, it leaves the answer to others to get."""
        ...


class AnswerCache(Protocol):
    """Where answers of one credential are kept."""

    def get(self, key: bytes) -> Completion | None:
        """The answer of ``key``, expired or not."""
        ...

    def lead(self, wanted: Wanted) -> Found | Lead:
        """A fresh answer, or the lead to get it. May wait where another process has the lead.

        Raises what its call has failed with, and ``SharedAnswerLate`` at the caller's deadline.
        """
        ...


class _Lru[K, V](LRUCache[K, V]):
    """An LRU cache that tells what it drops."""

    def __init__(
        self,
        maxsize: float,
        on_evict: Callable[[K], None],
        getsizeof: Callable[[V], float] | None = None,
    ) -> None:
        super().__init__(maxsize, getsizeof)
        self._on_evict = on_evict

    def popitem(self) -> tuple[K, V]:
        key, value = super().popitem()
        self._on_evict(key)
        return key, value


class MemoryCache:
    """The answers of all credentials of one process. Safe for concurrent use."""

    def __init__(
        self,
        clock: Clock,
        *,
        max_bytes: int = config.CACHE_MAX_BYTES,
        max_entries: int = config.CACHE_MAX_ENTRIES,
    ) -> None:
        self._clock = clock
        self._max_entries = max_entries
        self._lock = clock.lock()
        self._shelves: dict[str, _Lru[bytes, None]] = {}
        self._entries: _Lru[tuple[str, bytes], Entry] = _Lru(
            max_bytes, self._drop_from_shelf, lambda entry: entry.size_bytes
        )

    @property
    def size_bytes(self) -> int:
        """Estimated memory of all entries."""
        return int(self._entries.currsize)

    def __len__(self) -> int:
        return len(self._entries)

    def shelf(self, owner: str) -> "Shelf":
        """The view of one credential, which cannot reach any other's entries."""
        return Shelf(self, owner, self._clock)

    def forget(self, owner: str) -> None:
        """Drop all entries of one credential."""
        with self._lock:
            for key in self._shelves.pop(owner, ()):
                self._entries.pop((owner, key), None)

    def get(self, owner: str, key: bytes) -> Entry | None:
        """The entry of ``key`` on the shelf of ``owner``, expired or not."""
        with self._lock:
            entry = self._entries.get((owner, key))
            if entry is not None:
                # Both orders of use are refreshed: the credential's and the process's.
                self._shelves[owner][key]
            return entry

    def put(self, owner: str, key: bytes, completion: Completion, ttl_s: float) -> None:
        """Keep an answer on the shelf of ``owner``, if it fits at all."""
        entry = Entry(completion, self._clock.monotonic(), ttl_s, _size_bytes(completion))
        if entry.size_bytes > self._entries.maxsize:
            return
        with self._lock:
            self._entries[owner, key] = entry
            shelf = self._shelves.get(owner)
            if shelf is None:
                shelf = self._shelves[owner] = _Lru(
                    self._max_entries, lambda evicted: self._drop_entry(owner, evicted)
                )
            shelf[key] = None

    def _drop_from_shelf(self, owner_and_key: tuple[str, bytes]) -> None:
        owner, key = owner_and_key
        shelf = self._shelves.get(owner)
        if shelf is not None:
            shelf.pop(key, None)
            if not shelf:
                del self._shelves[owner]

    def _drop_entry(self, owner: str, key: bytes) -> None:
        self._entries.pop((owner, key), None)


class Shelf:
    """The answers of one credential in its process's memory."""

    def __init__(self, cache: MemoryCache, owner: str, clock: Clock) -> None:
        self._cache = cache
        self._owner = owner
        self._clock = clock

    def get(self, key: bytes) -> Completion | None:
        """The answer of ``key``, expired or not."""
        entry = self._cache.get(self._owner, key)
        return None if entry is None else entry.completion

    def put(self, key: bytes, completion: Completion, ttl_s: float) -> None:
        """Keep an answer, if it fits at all."""
        self._cache.put(self._owner, key, completion, ttl_s)

    def lead(self, wanted: Wanted) -> Found | Lead:
        """A fresh answer, or the lead.

        Callers of one process share what is under way in ``singleflight``, so each may have it.
        """
        entry = self._cache.get(self._owner, wanted.key) if wanted.reads else None
        if entry is not None:
            # Not older than its writer allowed, nor than this reader wants.
            age_s = self._clock.monotonic() - entry.stored_s
            if age_s < min(entry.ttl_s, wanted.ttl_s):
                return Found(entry.completion, "hit")
        return _ShelfLead(self)


@dataclass(frozen=True, slots=True)
class _ShelfLead:
    shelf: Shelf

    def land(self, key: bytes | None, completion: Completion, ttl_s: float) -> None:
        if key is not None:
            self.shelf.put(key, completion, ttl_s)

    def fail(self, error: HolySheepError) -> None:
        pass

    def end(self) -> None:
        pass


def key_of(call: Call) -> bytes:
    """The cache key of a call within its credential, 32 bytes."""
    policy = call.policy
    digest = call.request.digest()
    if not policy.cache_partition and policy.answer_schema is None:
        return digest
    # An answer that was checked against one schema is none for another, even if both were sent
    # with the same body.
    schema = json.dumps(policy.answer_schema, sort_keys=True)
    return sha256(f"{policy.cache_partition}\0{schema}\0".encode() + digest).digest()


def identity_of(call: Call) -> bytes:
    """What identical calls have in common within their credential, 32 bytes.

    Beyond what is asked: the cache mode and how old an answer may be, and the fallbacks and
    retries, since these decide what becomes of a failure.
    """
    policy = call.policy
    how = (policy.cache, policy.cache_ttl_s, policy.fallback_models, policy.max_retries)
    return sha256(f"{how}\0".encode() + key_of(call)).digest()


class StaleCover:
    """Gives an expired answer rather than an error while upstream is down, where asked to."""

    def __init__(self, answers: AnswerCache) -> None:
        self._answers = answers

    def __call__(self, call: Call, proceed: Handler) -> Iterator[Event]:
        """Pass the call on, and cover its failure before anything of the answer was passed."""
        policy = call.policy
        if policy.cache != "use" or not policy.serve_stale:
            yield from proceed(call)
            return
        passed = False
        try:
            for event in proceed(call):
                passed = True
                yield event
        except HolySheepError as error:
            stale = None if passed or not error.is_outage else self._answers.get(key_of(call))
            if stale is None:
                raise
            call.trace.cache = "stale"
            call.trace.wasted = error.unusable
            yield from _replay(_own(stale))


class CacheLayer:
    """Answers from the cache where it can, and stores the answers that it passes on."""

    def __init__(self, answers: AnswerCache, clock: Clock) -> None:
        self._answers = answers
        self._clock = clock

    def __call__(self, call: Call, proceed: Handler) -> Iterator[Event]:
        """Answer from the cache, or pass the call on and keep its answer."""
        policy = call.policy
        if policy.cache == "bypass":
            yield from proceed(call)
            return
        found = self._answers.lead(
            Wanted(
                key=key_of(call),
                identity=identity_of(call),
                ttl_s=policy.cache_ttl_s,
                reads=policy.cache == "use",
                until_s=call.deadline_s,
            )
        )
        if isinstance(found, Found):
            call.trace.cache = found.state
            yield from _replay(_own(found.completion) if found.state == "hit" else found.completion)
            return
        try:
            for event in proceed(call):
                if isinstance(event, Completed):
                    self._land(found, call, event.completion)
                yield event
        except HolySheepError as error:
            if self._clock.monotonic() < call.ends_s and not error.is_callers_own:
                found.fail(error)
            raise
        finally:
            found.end()

    def _land(self, lead: Lead, call: Call, completion: Completion) -> None:
        key = None
        if is_storable(completion):
            if completion.asked_model != call.request.model:
                call = call.asking(call.request.with_model(completion.asked_model))
            key = key_of(call)
        lead.land(key, completion, call.policy.cache_ttl_s)


def is_storable(completion: Completion) -> bool:
    """Whether an answer is one to give again: it says something, and nothing was filtered out."""
    return all(
        (choice.text or choice.tool_calls) and choice.finish_reason != "content_filter"
        for choice in completion.choices
    )


def _own(completion: Completion) -> Completion:
    """A kept answer: who asks that model itself gets it from no fallback."""
    if completion.fallback_from is None:
        return completion
    return replace(completion, fallback_from=None)


def _replay(completion: Completion) -> Iterator[Event]:
    for choice in completion.choices:
        if choice.text or choice.reasoning:
            yield Delta(choice.text, choice.reasoning, choice.index, is_last=True)
    yield Completed(completion)


# What the objects of an entry and its places in the tables take, measured with tracemalloc.
_ENTRY_OVERHEAD_BYTES = 1500


def _size_bytes(completion: Completion) -> int:
    return _ENTRY_OVERHEAD_BYTES + sum(_choice_bytes(choice) for choice in completion.choices)


def _choice_bytes(choice: Choice) -> int:
    extras = str(choice.tool_calls or "") + str(choice.logprobs or "")
    # Parsed JSON takes several times its text.
    return sys.getsizeof(choice.text) + sys.getsizeof(choice.reasoning) + 4 * len(extras)
