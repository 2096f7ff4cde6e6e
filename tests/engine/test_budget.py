"""Budgets: what is held, what is settled, and that parallel calls cannot spend past a limit."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holysheep.budget import Budget, BudgetLayer
from holysheep.errors import BudgetExceeded, ConnectFailed, HolySheepError, ServerError
from holysheep.pricing import Price, PriceBook
from holysheep.tokens import most_prompt_tokens
from holysheep.types import ChatRequest, Event, Usage
from tests.fakes import (
    BROKEN_OFF,
    FakeClock,
    Killed,
    OneLayer,
    ScriptedHandler,
    StandingClock,
    VirtualTime,
    a_call,
    a_request,
    abandon,
    answered,
    in_threads,
    kinds,
)

DAY_S = 86_400.0
PER_TOKEN = Decimal(1) / 1000
"""What a token of the test model costs, in or out."""
PRICES = PriceBook({"gpt-4.1": Price(input=Decimal(1000), output=Decimal(1000))})


def usd(amount: float | str) -> Decimal:
    return Decimal(str(amount))


def spendable(budget: Budget, step: Decimal = Decimal("0.01")) -> Decimal:
    """What could be held now."""
    total = Decimal(0)
    try:
        while True:
            budget.hold(step)
            total += step
    except BudgetExceeded:
        budget.settle(total, Decimal(0))
        return total


# --- the budget ---------------------------------------------------------------------------------


def test_a_budget_can_be_spent_to_the_last_cent_and_no_further() -> None:
    budget = Budget(usd("1.00"), None, clock=FakeClock())
    budget.hold(usd("1.00"))
    with pytest.raises(BudgetExceeded):
        budget.hold(usd("0.01"))


def test_what_was_held_and_not_spent_can_be_spent() -> None:
    budget = Budget(usd(1), None, clock=FakeClock())
    budget.hold(usd(1))
    budget.settle(usd(1), usd("0.25"))
    assert spendable(budget) == usd("0.75")


def test_the_refusal_says_how_much_there_is_and_when_there_is_more() -> None:
    budget = Budget(usd(1), None, clock=FakeClock())
    budget.hold(usd("0.9"))
    budget.settle(usd("0.9"), usd("0.6"))
    budget.hold(usd("0.3"))
    with pytest.raises(BudgetExceeded) as raised:
        budget.hold(usd("0.2"))
    for told in ("daily", "1 USD", "0.600000", "0.300000", "0.200000", "2026-01-02 00:00 UTC"):
        assert told in raised.value.message


def test_both_limits_must_have_room() -> None:
    budget = Budget(usd(10), usd(1), clock=FakeClock())
    with pytest.raises(BudgetExceeded, match=r"monthly.*2026-02-01"):
        budget.hold(usd(2))


def test_a_refused_call_holds_nothing() -> None:
    budget = Budget(usd(10), usd(1), clock=FakeClock())
    for _ in range(100):
        with pytest.raises(BudgetExceeded):
            budget.hold(usd(2))
    assert spendable(budget) == usd(1)


def test_a_new_day_begins_with_an_empty_day_and_the_spend_of_the_month() -> None:
    clock = FakeClock()
    budget = Budget(usd(1), usd("1.50"), clock=clock)
    budget.hold(usd(1))
    budget.settle(usd(1), usd(1))
    clock.sleep(DAY_S - 1)
    assert spendable(budget) == 0
    clock.sleep(1)
    assert spendable(budget) == usd("0.50")


def test_a_new_month_begins_with_nothing_spent() -> None:
    clock = FakeClock()
    budget = Budget(None, usd(1), clock=clock)
    budget.hold(usd(1))
    budget.settle(usd(1), usd(1))
    clock.sleep(30 * DAY_S)
    assert spendable(budget) == 0
    clock.sleep(DAY_S)
    assert spendable(budget) == usd(1)


def test_a_call_that_ends_after_midnight_counts_for_the_day_on_which_it_ended() -> None:
    clock = FakeClock()
    budget = Budget(usd(1), None, clock=clock)
    clock.sleep(DAY_S - 10)
    budget.hold(usd(1))
    clock.sleep(20)
    budget.settle(usd(1), usd("0.4"))
    assert spendable(budget) == usd("0.6")


def test_a_changed_limit_keeps_what_was_spent_and_held() -> None:
    budget = Budget(usd(1), None, clock=FakeClock())
    budget.hold(usd("0.5"))
    budget.settle(usd("0.5"), usd("0.5"))
    budget.hold(usd("0.25"))
    budget.resize(usd(2), None)
    assert spendable(budget) == usd("1.25")


def test_a_budget_without_limits_holds_anything() -> None:
    budget = Budget(None, None, clock=FakeClock())
    assert not budget.is_limited
    budget.hold(usd(10**12))


def test_a_budget_is_idle_while_there_is_nothing_to_lose() -> None:
    budget = Budget(usd(1), None, clock=FakeClock())
    assert budget.is_idle
    budget.hold(usd("0.5"))
    assert not budget.is_idle
    budget.settle(usd("0.5"), Decimal(0))
    assert budget.is_idle
    budget.settle(Decimal(0), usd("0.5"))
    assert not budget.is_idle


def test_a_budget_is_idle_again_when_all_it_knows_of_is_over() -> None:
    clock = FakeClock()
    budget = Budget(usd(1), usd(10), clock=clock)
    budget.hold(usd(1))
    budget.settle(usd(1), usd(1))
    clock.sleep(32 * DAY_S)
    assert budget.is_idle


@given(
    limit=st.decimals(1, 100, places=4),
    calls=st.lists(
        st.tuples(st.decimals(0, 10, places=4), st.floats(0, 1)), min_size=1, max_size=30
    ),
)
def test_no_history_of_honest_holds_spends_past_the_limit(
    limit: Decimal, calls: list[tuple[Decimal, float]]
) -> None:
    budget = Budget(limit, None, clock=FakeClock())
    spent = Decimal(0)
    held: list[tuple[Decimal, Decimal]] = []
    for worst, share in calls:
        try:
            budget.hold(worst)
        except BudgetExceeded:
            if held:
                amount, cost = held.pop()
                budget.settle(amount, cost)
                spent += cost
        else:
            held.append((worst, (worst * usd(share)).quantize(usd("0.0001"))))
        assert spent + sum(amount for amount, _ in held) <= limit


def test_a_hundred_threads_hold_exactly_what_there_is() -> None:
    budget = Budget(usd(1), None, clock=StandingClock())
    outcomes = in_threads(100, lambda _: budget.hold(usd("0.02")))
    assert kinds(outcomes) == {"NoneType": 50, "BudgetExceeded": 50}


# --- the layer ----------------------------------------------------------------------------------


class Spending:
    """A budget layer with the test prices on a timeline; spends are in tokens."""

    def __init__(self, limit_tokens: int, *behaviours: Any, seed: int | None = None) -> None:
        self.time = VirtualTime(seed)
        self.budget = Budget(limit_tokens * PER_TOKEN, None, clock=self.time)
        self.layer = BudgetLayer(self.budget, PRICES)
        self.below = ScriptedHandler(self.time, *behaviours)

    def ask(self, request: ChatRequest | None = None, **policy: Any) -> list[Event]:
        return list(self.layer(a_call(self.time, request, **policy), self.below))

    @property
    def left_tokens(self) -> int:
        return int(spendable(self.budget, PER_TOKEN) / PER_TOKEN)


PROMPT = most_prompt_tokens(a_request())


def using(prompt: int, answer: int, pause_s: float = 1.0) -> list[Any]:
    usage = Usage(prompt_tokens=prompt, completion_tokens=answer)
    return answered("a b", pause_s=pause_s, usage=usage)


def test_a_call_is_settled_with_what_it_cost() -> None:
    spending = Spending(1000, using(30, 20))
    spending.ask()
    assert spending.left_tokens == 950


def test_a_call_that_does_not_fit_is_refused_before_anything_is_sent() -> None:
    spending = Spending(PROMPT + 99)
    with pytest.raises(BudgetExceeded):
        spending.ask()
    assert not spending.below.calls


def test_a_call_that_just_fits_is_made() -> None:
    spending = Spending(PROMPT + 100, using(PROMPT, 100))
    spending.ask()
    assert spending.left_tokens == 0


def test_fifty_parallel_calls_with_right_estimates_never_overshoot() -> None:
    spending = Spending(1000, using(PROMPT, 100), seed=3)
    for _ in range(50):
        spending.time.spawn(spending.ask)
    fit = 1000 // (PROMPT + 100)
    assert kinds(spending.time.run()) == {"list": fit, "BudgetExceeded": 50 - fit}
    assert spending.left_tokens == 1000 - fit * (PROMPT + 100)


@pytest.mark.parametrize("seed", range(3))
def test_fifty_parallel_calls_overshoot_by_at_most_the_estimate_error_of_one(seed: int) -> None:
    text = "0123456789 !?#+~ " * 40
    request = a_request(text, max_tokens=10)
    real_prompt = len(text) * 3 // 4  # digits and punctuation are a token each
    error = max(0, real_prompt - most_prompt_tokens(request))
    spending = Spending(3000, using(real_prompt, 10), seed=seed)
    for _ in range(50):
        spending.time.spawn(spending.ask, request)
    spent = kinds(spending.time.run()).get("list", 0) * (real_prompt + 10)
    assert spent <= 3000 + error


def test_fifty_parallel_calls_without_a_limit_of_their_answers_do_not_overshoot() -> None:
    request = a_request(max_tokens=None)
    spending = Spending(2000, using(PROMPT, 1000))
    for _ in range(50):
        spending.time.spawn(spending.ask, request)
    assert kinds(spending.time.run()).get("list", 0) <= 2


def test_the_worst_case_is_that_of_the_dearest_model_of_the_call() -> None:
    prices = PriceBook(
        {
            "gpt-4.1": Price(input=Decimal(1), output=Decimal(1)),
            "dear": Price(input=Decimal(1000), output=Decimal(1000)),
        }
    )
    budgeted = OneLayer(lambda clock: BudgetLayer(Budget(usd("0.05"), None, clock=clock), prices))
    budgeted.ask()
    with pytest.raises(BudgetExceeded):
        budgeted.ask(fallback_models=("dear",))


def test_the_worst_case_counts_prompt_tokens_at_the_dearest_of_their_prices() -> None:
    price = Price(input=Decimal(1000), cache_write=Decimal(4000), output=Decimal(0))
    prices = PriceBook({"gpt-4.1": price})
    limit = PROMPT * PER_TOKEN * 2
    budgeted = OneLayer(lambda clock: BudgetLayer(Budget(limit, None, clock=clock), prices))
    with pytest.raises(BudgetExceeded):
        budgeted.ask()


def test_a_model_without_a_price_is_refused_where_there_is_a_budget() -> None:
    budgeted = OneLayer(lambda clock: BudgetLayer(Budget(usd(1), None, clock=clock), PriceBook()))
    with pytest.raises(BudgetExceeded, match=r"'nobody-knows'.*price_overrides"):
        budgeted.ask(a_request().with_model("nobody-knows"))


def test_without_a_budget_a_model_needs_no_price() -> None:
    unlimited = OneLayer(lambda clock: BudgetLayer(Budget(None, None, clock=clock), PriceBook()))
    assert unlimited.ask(a_request().with_model("nobody"))


def test_a_failure_before_any_answer_costs_nothing() -> None:
    spending = Spending(1000, ServerError("down"))
    with pytest.raises(ServerError):
        spending.ask()
    assert spending.left_tokens == 1000


@pytest.mark.parametrize("how", ["breaks off", "is abandoned"])
def test_an_answer_that_is_not_complete_counts_as_the_worst_case(how: str) -> None:
    spending = Spending(1000, BROKEN_OFF if how == "breaks off" else answered("a b"))
    events = spending.layer(a_call(spending.time), spending.below)
    if how == "is abandoned":
        abandon(events)
    else:
        next(events)
        with pytest.raises(ConnectFailed):
            next(events)
    assert spending.left_tokens == 1000 - PROMPT - 100


def test_a_reader_that_leaves_after_the_last_event_has_used_what_is_reported() -> None:
    spending = Spending(1000, answered("a", usage=Usage(prompt_tokens=5)))
    events = spending.layer(a_call(spending.time), spending.below)
    abandon(events, after=2)
    assert spending.left_tokens == 995


@pytest.mark.parametrize("at_s", [0.5, 1.5, 2.5])
@pytest.mark.parametrize("seed", range(2))
def test_callers_that_are_killed_leave_nothing_held(at_s: float, seed: int) -> None:
    spending = Spending(2000, using(PROMPT, 100), seed=seed)
    victims = [spending.time.spawn(spending.ask) for _ in range(10)]
    for victim in victims:
        spending.time.spawn(spending.time.throw, victim, Killed(), after_s=at_s)
    spending.time.run()
    spent = 2000 - spending.left_tokens
    assert spent == (0 if at_s < 1 else 10 * (PROMPT + 100))


def test_an_answer_that_nobody_can_price_counts_as_the_worst_case() -> None:
    clock = FakeClock()
    budget = Budget(usd(1), None, clock=clock)
    layer = BudgetLayer(budget, PRICES)
    other = answered("a", model="other", usage=Usage(prompt_tokens=1), asked_model="other")
    list(layer(a_call(clock), ScriptedHandler(clock, other)))
    assert spendable(budget, PER_TOKEN) == 1 - (PROMPT + 100) * PER_TOKEN


def test_a_refusal_is_an_error_of_the_tree_that_does_not_fall_back() -> None:
    assert issubclass(BudgetExceeded, HolySheepError)
    assert not BudgetExceeded.falls_back
