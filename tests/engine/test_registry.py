"""One state per credential, bounded in number, and never one that is in use forgotten."""

import json
from decimal import Decimal
from typing import Any

import pytest

from devtools.upstream import Upstream
from devtools.upstream import behaviours as do
from holysheep.backend import own_backend
from holysheep.breaker import OwnBreakers
from holysheep.cache import MemoryCache, identity_of, key_of
from holysheep.engine import CredentialState
from holysheep.errors import BudgetExceeded
from holysheep.ports import SystemClock, spawn_thread
from holysheep.registry import Registry, shared_registry
from holysheep.settings import Settings, parse_settings
from holysheep.singleflight import SingleFlightLayer
from holysheep.types import Policy
from tests.fakes import (
    KEY,
    FakeClock,
    ScriptedGateway,
    ScriptedHandler,
    StandingClock,
    a_call,
    a_completion,
    a_purse,
    a_request,
    answered,
    in_threads,
)


def credential(number: int = 0, **fields: Any) -> Settings:
    return parse_settings({"api_key": f"{KEY}{number:05}", **fields})


def test_a_credential_has_one_engine() -> None:
    registry = Registry(clock=FakeClock())
    engine = registry.engine(credential())
    assert registry.engine(credential()) is engine
    assert registry.engine(credential(1)) is not engine
    assert len(registry) == 2


def test_a_hundred_threads_get_the_same_engine() -> None:
    registry = Registry(clock=StandingClock())
    assert (
        len({id(engine) for engine in in_threads(100, lambda _: registry.engine(credential()))})
        == 1
    )
    assert len(registry) == 1


def test_changed_limits_are_taken_on_at_once() -> None:
    registry = Registry(clock=FakeClock())
    registry.engine(credential())
    engine = registry.engine(credential(requests_per_minute="5"))
    assert engine.settings.requests_per_minute == 5
    assert len(registry) == 1


def test_a_changed_budget_counts_what_was_spent_before() -> None:
    registry = Registry(clock=FakeClock())
    before = registry.engine(credential(daily_budget_usd="1"))
    before.local.purse(before.settings.fingerprint, before.limits).settle(
        Decimal(0), Decimal("0.5")
    )
    after = registry.engine(credential(daily_budget_usd="0.75"))
    purse = after.local.purse(after.settings.fingerprint, after.limits)
    with pytest.raises(BudgetExceeded, match=r"of 0\.75 USD.*spent 0\.5"):
        purse.hold(Decimal("0.26"))
    purse.hold(Decimal("0.25"))


def test_the_longest_unused_credential_is_forgotten_and_its_answers_with_it() -> None:
    clock = FakeClock()
    registry = Registry(clock=clock, max_credentials=2)
    first = registry.engine(credential(0))
    second = registry.engine(credential(1))
    for number in (0, 1):
        registry.cache.put(credential(number).fingerprint, b"k", a_completion(), 300)
    assert registry.engine(credential(0)) is first
    registry.engine(credential(2))
    assert len(registry) == 2
    assert len(registry.cache) == 1
    assert registry.engine(credential(0)) is first
    assert registry.engine(credential(1)) is not second


def test_a_thousand_credentials_are_kept() -> None:
    registry = Registry(clock=FakeClock())
    engines = [registry.engine(credential(number)) for number in range(1000)]
    assert all(registry.engine(credential(number)) is engines[number] for number in range(1000))


def test_cached_answers_of_one_credential_are_not_those_of_another() -> None:
    clock = FakeClock()
    registry = Registry(clock=clock)
    key = key_of(a_call(clock))
    registry.cache.put(credential(0).fingerprint, key, a_completion("of 0"), 300)
    policy, request = Policy(), a_request()
    own = registry.engine(credential(0)).ask(request, policy, timeout_s=60).wait()
    assert (own.text, own.cached) == ("of 0", True)
    assert registry.cache.shelf(credential(1).fingerprint).get(key) is None


def test_closing_leaves_the_registry_usable() -> None:
    registry = Registry(clock=FakeClock())
    engine = registry.engine(credential())
    registry.close()
    assert registry.engine(credential()) is engine


def test_the_process_has_one_registry() -> None:
    assert shared_registry() is shared_registry()


# --- in use -------------------------------------------------------------------------------------


def test_a_credential_with_a_call_under_way_is_never_forgotten(upstream: Upstream) -> None:
    registry = Registry(clock=SystemClock(), max_credentials=1)
    upstream.default(do.sse(text="one two three"))
    mine = credential(0, base_url=upstream.url, requests_per_minute="0")
    engine = registry.engine(mine)
    answer = engine.ask(a_request(), Policy(cache="bypass"), timeout_s=20, stream=True)
    pieces = iter(answer)
    next(pieces)
    registry.engine(credential(1))
    assert registry.engine(mine) is engine
    list(pieces)
    registry.close()


def test_a_registry_that_had_to_grow_shrinks_again(upstream: Upstream) -> None:
    registry = Registry(clock=SystemClock(), max_credentials=1)
    upstream.default(do.sse(text="one two three"))
    busy = registry.engine(credential(0, base_url=upstream.url, requests_per_minute="0"))
    # What it spends is for the ledger of a workspace to remember, not for the credential's state.
    invocation = registry.ledgers.of("workspace", spawn_thread).invocation("llm")
    answer = busy.ask(a_request(), Policy(), timeout_s=20, stream=True, invocation=invocation)
    pieces = iter(answer)
    next(pieces)
    registry.engine(credential(1))
    assert len(registry) == 2
    list(pieces)
    registry.engine(credential(2))
    registry.close()
    assert len(registry) == 1


@pytest.fixture
def state() -> CredentialState:
    clock = FakeClock()
    settings = credential(daily_budget_usd="1", tokens_per_minute="1000")
    state = CredentialState(
        settings,
        backend=own_backend(
            settings,
            MemoryCache(clock).shelf(settings.fingerprint),
            OwnBreakers(clock),
            clock,
        ),
        clock=clock,
    )
    assert state.is_idle
    return state


def test_a_state_with_a_slot_in_use_is_not_idle(state: CredentialState) -> None:
    state.slots.acquire(1e9)
    assert not state.is_idle
    state.slots.release()
    assert state.is_idle


def test_a_state_with_a_place_taken_from_its_limits_is_not_idle(state: CredentialState) -> None:
    state.backend.limiter.reserve("m", 10, deadline_s=1e9).end(10)
    assert not state.is_idle


def test_a_state_with_spend_to_remember_is_not_idle(state: CredentialState) -> None:
    purse = a_purse(state.ledger, Decimal(1))
    purse.hold(Decimal("0.5"))
    assert not state.is_idle
    purse.settle(Decimal("0.5"), Decimal(0))
    assert state.is_idle
    purse.settle(Decimal(0), Decimal("0.1"))
    assert not state.is_idle


def test_a_state_with_a_connection_in_use_is_not_idle(state: CredentialState) -> None:
    state.pool = ScriptedGateway(FakeClock())  # type: ignore[assignment]
    state.pool.in_use = 1  # type: ignore[misc]
    assert not state.is_idle


def test_a_state_with_a_flight_under_way_is_not_idle(state: CredentialState) -> None:
    clock = FakeClock()
    layer = SingleFlightLayer(state.flights, identity_of)
    events = layer(a_call(clock), ScriptedHandler(clock, answered("a b")))
    next(events)
    assert not state.is_idle
    events.close()  # type: ignore[attr-defined]
    assert state.is_idle


def test_nothing_of_a_credential_shows_in_what_is_printed_of_its_engine() -> None:
    registry = Registry(clock=FakeClock())
    engine = registry.engine(credential())
    shown = repr(engine) + repr(engine.settings) + repr(engine.transport) + repr(registry)
    assert KEY not in shown
    assert KEY not in json.dumps(shown)
