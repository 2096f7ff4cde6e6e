"""The cache: keys, bounds, shelves, and what is given again to whom."""

import contextlib
import random
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holysheep.cache import CacheLayer, MemoryCache, StaleCover, is_storable, key_of
from holysheep.engine import stack
from holysheep.errors import (
    CircuitOpen,
    ConnectFailed,
    HolySheepError,
    RateLimited,
    ServerError,
    TimedOut,
)
from holysheep.types import Call, Choice, Completed, Completion, Delta, Event, Usage
from tests.fakes import (
    BROKEN_OFF,
    START_S,
    Behaviour,
    FakeClock,
    ScriptedHandler,
    StandingClock,
    VirtualTime,
    a_call,
    a_completion,
    a_request,
    abandon,
    answered,
    class_name,
    in_threads,
    text_of,
)

RICH = Completion(
    asked_model="gpt-4.1",
    model="gpt-4.1-2025",
    choices=(
        Choice(
            text='{"a": 1}',
            reasoning="because",
            finish_reason="tool_calls",
            tool_calls=({"id": "c1", "type": "function", "function": {"name": "f"}},),
            logprobs={"content": []},
        ),
    ),
    usage=Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=2, reasoning_tokens=3),
    request_id="req-1",
)


def a_key(number: int) -> bytes:
    return number.to_bytes(32)


class Cached:
    """Lookup and fill over a scripted handler, as the engine stacks them."""

    def __init__(self, *behaviours: Any) -> None:
        self.clock = FakeClock()
        self.cache = MemoryCache(self.clock)
        self.below = ScriptedHandler(self.clock, *behaviours)

    def call(self, request: Any = None, **policy: Any) -> Call:
        return a_call(self.clock, request, **policy)

    def events(self, call: Call, *, owner: str = "me") -> list[Event]:
        shelf = self.cache.shelf(owner)
        layers = [StaleCover(shelf), CacheLayer(shelf, self.clock)]
        return list(stack(layers, self.below)(call))

    def ask(self, *, owner: str = "me", request: Any = None, **policy: Any) -> str:
        return text_of(self.events(self.call(request, **policy), owner=owner))


# --- keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"model": "gpt-4.1-mini"},
        {"temperature": 0.1},
        {"max_tokens": 101},
        {"top_p": 0.9},
        {"stop": ["x"]},
        {"seed": 1},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"reasoning_effort": "low"},
        {"anything_at_all": None},
        {"messages": [{"role": "user", "content": "Hello "}]},
        {"messages": [{"role": "system", "content": "Hello"}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_parameter_that_changes_the_answer_changes_the_key(change: dict[str, Any]) -> None:
    clock = FakeClock()
    assert key_of(a_call(clock, a_request(**change))) != key_of(a_call(clock))


def test_the_way_of_delivery_is_no_part_of_the_key() -> None:
    clock = FakeClock()
    keys = {
        key_of(a_call(clock, stream=stream, timeout_s=timeout_s, max_retries=retries))
        for stream in (True, False)
        for timeout_s in (1.0, 60.0)
        for retries in (0, 3)
    }
    assert len(keys) == 1


@given(one=st.text(max_size=8), other=st.text(max_size=8))
def test_partitions_have_the_same_key_only_if_they_are_the_same(one: str, other: str) -> None:
    clock = FakeClock()
    keys = {key_of(a_call(clock, cache_partition=name)) for name in (one, other)}
    assert len(keys) == len({one, other})


def test_an_answer_that_was_checked_against_another_schema_is_not_given_again() -> None:
    cached = Cached(answered("one"), answered("two"))
    first = cached.ask(answer_schema={"type": "object"})
    second = cached.ask(answer_schema={"type": "object", "required": ["x"]})
    assert (first, second) == ("one", "two")


# --- the store ----------------------------------------------------------------------------------


def test_what_was_put_is_got_on_the_same_shelf_only() -> None:
    cache = MemoryCache(FakeClock())
    cache.put("me", b"k", a_completion("mine"), 300)
    assert cache.shelf("me").get(b"k") == a_completion("mine")
    assert cache.shelf("you").get(b"k") is None


def test_equal_keys_of_different_owners_do_not_touch_each_other() -> None:
    cache = MemoryCache(FakeClock())
    cache.put("a", b"k", a_completion("of a"), 300)
    cache.put("b", b"k", a_completion("of b"), 300)
    cache.forget("a")
    entry = cache.get("b", b"k")
    assert entry is not None
    assert entry.completion.first.text == "of b"
    assert cache.get("a", b"k") is None


def test_a_credential_keeps_a_thousand_answers_and_drops_the_longest_unused() -> None:
    cache = MemoryCache(FakeClock())
    for number in range(1000):
        cache.put("me", a_key(number), a_completion(), 300)
    cache.get("me", a_key(0))
    cache.put("me", a_key(1000), a_completion(), 300)
    assert len(cache) == 1000
    assert cache.get("me", a_key(0)) is not None
    assert cache.get("me", a_key(1)) is None


def test_one_credential_cannot_push_out_the_answers_of_another_by_their_number() -> None:
    cache = MemoryCache(FakeClock())
    cache.put("quiet", b"k", a_completion(), 300)
    for number in range(3000):
        cache.put("busy", a_key(number), a_completion(), 300)
    assert cache.get("quiet", b"k") is not None
    assert len(cache) == 1001


def test_the_bytes_of_all_credentials_together_are_bounded() -> None:
    cache = MemoryCache(FakeClock(), max_bytes=100_000)
    for number in range(200):
        cache.put(f"owner {number % 7}", a_key(number), a_completion("x" * 3000), 300)
        assert cache.size_bytes <= 100_000
    assert len(cache) >= 15


def test_an_answer_larger_than_the_cache_is_not_kept_and_drops_nothing() -> None:
    cache = MemoryCache(FakeClock(), max_bytes=10_000)
    cache.put("me", b"small", a_completion(), 300)
    cache.put("me", b"large", a_completion("x" * 20_000), 300)
    assert cache.get("me", b"small") is not None
    assert cache.get("me", b"large") is None


def test_a_replaced_answer_is_counted_once() -> None:
    cache = MemoryCache(FakeClock(), max_bytes=50_000)
    for length in (10, 20_000, 30_000, 20_000, 10):
        cache.put("me", b"k", a_completion("x" * length), 300)
        entry = cache.get("me", b"k")
        assert entry is not None
        assert cache.size_bytes == entry.size_bytes
    assert len(cache) == 1


def test_forgetting_an_owner_frees_its_bytes() -> None:
    cache = MemoryCache(FakeClock())
    for number in range(10):
        cache.put("me", a_key(number), a_completion(), 300)
    cache.forget("me")
    cache.forget("nobody")
    assert (len(cache), cache.size_bytes) == (0, 0)


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["put", "get", "forget"]),
            st.sampled_from("abc"),
            st.integers(0, 8),
            st.integers(0, 6000),
        ),
        max_size=60,
    )
)
def test_no_history_breaks_the_bounds_or_the_books(
    steps: list[tuple[str, str, int, int]],
) -> None:
    cache = MemoryCache(FakeClock(), max_bytes=20_000, max_entries=4)
    for what, owner, number, length in steps:
        if what == "put":
            cache.put(owner, a_key(number), a_completion("x" * length), 300)
        elif what == "get":
            cache.get(owner, a_key(number))
        else:
            cache.forget(owner)
        found = {
            (name, key): entry
            for name in "abc"
            for key in range(9)
            if (entry := cache.get(name, a_key(key)))
        }
        assert len(found) == len(cache)
        assert sum(entry.size_bytes for entry in found.values()) == cache.size_bytes <= 20_000
        assert all(sum(name == owner for name, _ in found) <= 4 for owner in "abc")


def test_threads_that_put_and_get_at_once_leave_the_books_in_order() -> None:
    cache = MemoryCache(StandingClock(), max_bytes=100_000, max_entries=10)

    def worker(number: int) -> None:
        dice = random.Random(number)
        for _ in range(200):
            owner, key = dice.choice("abc"), a_key(dice.randrange(20))
            cache.get(owner, key)
            cache.put(owner, key, a_completion("x" * dice.randrange(5000)), 300)
            if dice.random() < 0.02:
                cache.forget(owner)

    assert in_threads(8, worker) == [None] * 8
    entries = [cache.get(owner, a_key(key)) for owner in "abc" for key in range(20)]
    assert sum(entry.size_bytes for entry in entries if entry) == cache.size_bytes <= 100_000
    assert len(cache) == sum(entry is not None for entry in entries) <= 30


@pytest.mark.parametrize(
    "text",
    ["x" * 50_000, "é" * 50_000, "😀" * 50_000, ""],
    ids=["ascii", "latin", "emoji", "empty"],
)
def test_the_size_of_an_entry_is_what_it_takes_in_memory(text: str) -> None:
    cache = MemoryCache(FakeClock())
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(10):
            own_text = (text + " ")[:-1]
            cache.put("me", a_key(number), a_completion(own_text), 300)
            del own_text
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken <= 1.5 * cache.size_bytes


# --- what is given again ------------------------------------------------------------------------


def test_a_second_identical_call_is_answered_without_upstream() -> None:
    cached = Cached()
    first, second = cached.call(), cached.call()
    cached.events(first)
    assert text_of(cached.events(second)) == "Hi there"
    assert len(cached.below.calls) == 1
    assert (first.trace.cache, second.trace.cache) == ("miss", "hit")


def test_a_hit_replays_text_reasoning_tool_calls_and_usage() -> None:
    cached = Cached([Completed(RICH)])
    cached.ask()
    *deltas, last = cached.events(cached.call())
    assert deltas == [Delta('{"a": 1}', "because", 0, is_last=True)]
    assert last == Completed(RICH)


def test_every_choice_of_an_answer_is_replayed() -> None:
    choices = tuple(Choice(index=index, text=f"answer {index}") for index in range(3))
    cached = Cached([Completed(Completion("gpt-4.1", "gpt-4.1", choices, Usage()))])
    cached.ask()
    texts = [event.text for event in cached.events(cached.call()) if isinstance(event, Delta)]
    assert texts == ["answer 0", "answer 1", "answer 2"]


@pytest.mark.parametrize(("age_s", "calls"), [(299.9, 1), (300.0, 2), (300.1, 2)])
def test_an_answer_is_given_again_until_its_time_to_live_is_over(age_s: float, calls: int) -> None:
    cached = Cached()
    cached.ask(cache_ttl_s=300)
    cached.clock.sleep(age_s)
    cached.ask(cache_ttl_s=300)
    assert len(cached.below.calls) == calls


def test_each_entry_lives_as_long_as_its_writer_said() -> None:
    cached = Cached()
    cached.ask(request=a_request("short"), cache_ttl_s=10)
    cached.ask(request=a_request("long"), cache_ttl_s=1000)
    cached.clock.sleep(500)
    cached.ask(request=a_request("short"), cache_ttl_s=1000)
    cached.ask(request=a_request("long"), cache_ttl_s=1000)
    assert len(cached.below.calls) == 3


def test_a_reader_is_given_nothing_older_than_it_wants() -> None:
    cached = Cached()
    cached.ask(cache_ttl_s=1000)
    cached.clock.sleep(20)
    cached.ask(cache_ttl_s=10)
    assert len(cached.below.calls) == 2


def test_refresh_calls_and_then_stores() -> None:
    cached = Cached(answered("old"), answered("new"))
    cached.ask()
    refreshing = cached.call(cache="refresh")
    assert text_of(cached.events(refreshing)) == "new"
    assert refreshing.trace.cache == "refresh"
    assert cached.ask() == "new"


def test_bypass_neither_reads_nor_writes() -> None:
    cached = Cached(answered("old"), answered("other"))
    cached.ask()
    bypassing = cached.call(cache="bypass")
    assert text_of(cached.events(bypassing)) == "other"
    assert bypassing.trace.cache == "bypass"
    assert cached.ask() == "old"


def test_nothing_is_shared_between_credentials() -> None:
    cached = Cached(answered("of a"), answered("of b"))
    assert cached.ask(owner="a") == "of a"
    assert cached.ask(owner="b") == "of b"


def test_nothing_is_shared_between_partitions() -> None:
    cached = Cached(answered("one"), answered("two"), answered("three"))
    assert cached.ask(cache_partition="user:1") == "one"
    assert cached.ask(cache_partition="user:2") == "two"
    assert cached.ask() == "three"
    assert cached.ask(cache_partition="user:1") == "one"


@pytest.mark.parametrize(
    "behaviour",
    [
        ServerError("down"),
        BROKEN_OFF,
        [Completed(Completion("gpt-4.1", "gpt-4.1", (Choice(text=""),), Usage()))],
        [
            Completed(
                Completion(
                    "gpt-4.1",
                    "gpt-4.1",
                    (Choice(text="no", finish_reason="content_filter"),),
                    Usage(),
                )
            )
        ],
    ],
    ids=["error", "broken stream", "empty answer", "filtered answer"],
)
def test_only_complete_successful_answers_are_kept(behaviour: Any) -> None:
    cached = Cached(behaviour, answered("good"))
    with contextlib.suppress(HolySheepError):
        cached.ask()
    assert cached.ask() == "good"


def test_an_answer_that_is_abandoned_is_not_kept() -> None:
    clock = FakeClock()
    cache = MemoryCache(clock)
    fill = CacheLayer(cache.shelf("me"), clock)
    events = fill(a_call(clock), ScriptedHandler(clock, answered("a b c")))
    abandon(events)
    assert len(cache) == 0


def test_an_answer_with_tool_calls_alone_is_kept() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    choice = Choice(tool_calls=(call,), finish_reason="tool_calls")
    assert is_storable(Completion("gpt-4.1", "gpt-4.1", (choice,), Usage()))


def test_the_answer_of_a_fallback_model_is_kept_for_that_model_alone() -> None:
    cached = Cached(answered("from b", model="b"), answered("from gpt"))
    assert cached.ask() == "from b"
    assert cached.ask() == "from gpt"
    assert cached.ask(request=a_request().with_model("b")) == "from b"
    assert len(cached.below.calls) == 2


def test_an_answer_that_came_in_the_meantime_is_found_by_the_second_look() -> None:
    clock = FakeClock()
    cache = MemoryCache(clock)
    call = a_call(clock)
    cache.put("me", key_of(call), a_completion("just stored"), 300)
    below = ScriptedHandler(clock)
    assert text_of(CacheLayer(cache.shelf("me"), clock)(call, below)) == "just stored"
    assert not below.calls
    assert call.trace.cache == "hit"


# --- stale answers ------------------------------------------------------------------------------


def stale(behaviour: Behaviour) -> Cached:
    """A cache whose one answer has expired, over a handler that behaves so from now on."""
    cached = Cached(answered("old"), behaviour)
    cached.ask(cache_ttl_s=10)
    cached.clock.sleep(1000)
    return cached


@pytest.mark.parametrize(
    "error",
    [ServerError(""), ConnectFailed(""), TimedOut(""), CircuitOpen("")],
    ids=class_name,
)
def test_an_expired_answer_covers_an_outage_where_the_caller_wants_it(
    error: HolySheepError,
) -> None:
    cached = stale(error)
    call = cached.call(serve_stale=True)
    assert text_of(cached.events(call)) == "old"
    assert call.trace.cache == "stale"


def test_without_being_asked_for_no_stale_answer_is_given() -> None:
    with pytest.raises(ServerError):
        stale(ServerError("")).ask()


def test_a_stale_answer_does_not_hide_a_failure_that_is_no_outage() -> None:
    with pytest.raises(RateLimited):
        stale(RateLimited("")).ask(serve_stale=True)


def test_a_stale_answer_does_not_follow_the_beginning_of_another() -> None:
    cached = stale(BROKEN_OFF)
    with pytest.raises(ConnectFailed):
        cached.ask(serve_stale=True)


def test_a_fresh_answer_is_preferred_to_a_stale_one() -> None:
    cached = stale(answered("new"))
    assert cached.ask(serve_stale=True) == "new"


def test_a_caller_who_wants_younger_answers_still_gets_an_older_one_in_an_outage() -> None:
    cached = Cached(answered("old"), ServerError("down"))
    cached.ask(cache_ttl_s=1000)
    cached.clock.sleep(50)
    assert cached.ask(cache_ttl_s=10, serve_stale=True) == "old"


def test_no_stale_answer_crosses_a_partition() -> None:
    cached = Cached(answered("of user 1"), ServerError("down"))
    cached.ask(cache_partition="user:1", cache_ttl_s=1)
    cached.clock.sleep(10)
    with pytest.raises(ServerError):
        cached.ask(cache_partition="user:2", serve_stale=True)


def test_an_answer_is_stored_with_the_time_when_it_was_complete() -> None:
    time = VirtualTime()
    cache = MemoryCache(time)
    call = a_call(time)
    handler = ScriptedHandler(time, answered("a b", pause_s=5.0))
    list(CacheLayer(cache.shelf("me"), time)(call, handler))
    entry = cache.get("me", key_of(call))
    assert entry is not None
    assert entry.stored_s == START_S + 15
