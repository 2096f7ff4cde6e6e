"""Budgets: what is held, what is settled, and that parallel calls cannot spend past a limit."""

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holysheep.budget import Budget, BudgetLayer, Limits
from holysheep.errors import BudgetExceeded, ConnectFailed, HolySheepError, ServerError
from holysheep.ledger import Ledger
from holysheep.ports import Clock, spawn_thread
from holysheep.pricing import Price, PriceBook
from holysheep.tokens import most_prompt_tokens
from holysheep.types import ChatRequest, Event, Purse, Usage
from tests.fakes import (
    BROKEN_OFF,
    FakeClock,
    Killed,
    OneLayer,
    ScriptedHandler,
    StandingClock,
    VirtualTime,
    a_call,
    a_purse,
    a_request,
    abandon,
    answered,
    in_threads,
    kinds,
)

DAY_S = 86_400.0
TODAY = date(2026, 1, 1)  # where the clocks begin
PER_TOKEN = Decimal(1) / 1000
"""What a token of the test model costs, in or out."""
PRICES = PriceBook({"gpt-4.1": Price(input=Decimal(1000), output=Decimal(1000))})


def usd(amount: float | str) -> Decimal:
    return Decimal(str(amount))


def claim(budget: Budget, limits: Limits, wanted_usd: Decimal, each_usd: Decimal) -> None:
    """Claim as much as a ledger would, and have all of it granted."""
    budget.granted(budget.to_claim(limits, wanted_usd, each_usd))


def a_ledger(clock: Clock | None = None) -> Ledger:
    return Ledger(clock or FakeClock(), spawn_thread)


def spendable(purse: Purse, step: Decimal = Decimal("0.01")) -> Decimal:
    """What could be held now."""
    total = Decimal(0)
    try:
        while True:
            purse.hold(step)
            total += step
    except BudgetExceeded:
        purse.settle(total, Decimal(0))
        return total


# --- the budget ---------------------------------------------------------------------------------


def test_a_budget_can_be_spent_to_the_last_cent_and_no_further() -> None:
    purse = a_purse(a_ledger(), usd("1.00"))
    purse.hold(usd("1.00"))
    with pytest.raises(BudgetExceeded):
        purse.hold(usd("0.01"))


def test_what_was_held_and_not_spent_can_be_spent() -> None:
    purse = a_purse(a_ledger(), usd(1))
    purse.hold(usd(1))
    purse.settle(usd(1), usd("0.25"))
    assert spendable(purse) == usd("0.75")


def test_the_refusal_says_how_much_there_is_and_when_there_is_more() -> None:
    purse = a_purse(a_ledger(), usd(1))
    purse.hold(usd("0.9"))
    purse.settle(usd("0.9"), usd("0.6"))
    purse.hold(usd("0.3"))
    with pytest.raises(BudgetExceeded) as raised:
        purse.hold(usd("0.2"))
    for told in ("daily", "1 USD", "0.600000", "0.300000", "0.200000", "2026-01-02 00:00 UTC"):
        assert told in raised.value.message


def test_both_limits_must_have_room() -> None:
    purse = a_purse(a_ledger(), usd(10), usd(1))
    with pytest.raises(BudgetExceeded, match=r"monthly.*2026-02-01"):
        purse.hold(usd(2))


def test_a_refused_call_holds_nothing() -> None:
    purse = a_purse(a_ledger(), usd(10), usd(1))
    for _ in range(100):
        with pytest.raises(BudgetExceeded):
            purse.hold(usd(2))
    assert spendable(purse) == usd(1)


def test_a_new_day_begins_with_an_empty_day_and_the_spend_of_the_month() -> None:
    clock = FakeClock()
    purse = a_purse(a_ledger(clock), usd(1), usd("1.50"))
    purse.hold(usd(1))
    purse.settle(usd(1), usd(1))
    clock.sleep(DAY_S - 1)
    assert spendable(purse) == 0
    clock.sleep(1)
    assert spendable(purse) == usd("0.50")


def test_a_new_month_begins_with_nothing_spent() -> None:
    clock = FakeClock()
    purse = a_purse(a_ledger(clock), None, usd(1))
    purse.hold(usd(1))
    purse.settle(usd(1), usd(1))
    clock.sleep(30 * DAY_S)
    assert spendable(purse) == 0
    clock.sleep(DAY_S)
    assert spendable(purse) == usd(1)


def test_a_call_that_ends_after_midnight_counts_for_the_day_on_which_it_ended() -> None:
    clock = FakeClock()
    purse = a_purse(a_ledger(clock), usd(1))
    clock.sleep(DAY_S - 10)
    purse.hold(usd(1))
    clock.sleep(20)
    purse.settle(usd(1), usd("0.4"))
    assert spendable(purse) == usd("0.6")


@pytest.mark.parametrize(("limit", "left"), [("2", "1.25"), ("0.8", "0.05"), ("0.6", "0")])
def test_a_changed_limit_keeps_what_was_spent_and_held(limit: str, left: str) -> None:
    ledger = a_ledger()
    before = a_purse(ledger, usd(1))
    before.hold(usd("0.5"))
    before.settle(usd("0.5"), usd("0.5"))
    before.hold(usd("0.25"))
    assert spendable(a_purse(ledger, usd(limit))) == usd(left)


def test_a_limit_that_is_taken_away_keeps_nobody_from_settling() -> None:
    ledger = a_ledger()
    before = a_purse(ledger, usd(1))
    before.hold(usd(1))
    a_purse(ledger).hold(usd(10))
    before.settle(usd(1), usd("0.25"))
    a_purse(ledger).settle(usd(10), Decimal(0))
    assert spendable(a_purse(ledger, usd(1))) == usd("0.75")


def test_a_budget_without_limits_holds_anything() -> None:
    assert not Limits()
    a_purse(a_ledger()).hold(usd(10**12))


@pytest.mark.parametrize("limits", [Limits(daily=usd(1)), Limits(monthly=usd(1))])
def test_one_limit_is_enough_to_be_one(limits: Limits) -> None:
    assert limits


def test_credentials_do_not_spend_from_each_others_budgets() -> None:
    invocation = a_ledger().invocation("test")
    one, other = (invocation.purse(name, Limits(daily=usd(1))) for name in ("one", "other"))
    one.hold(usd(1))
    assert (spendable(one), spendable(other)) == (0, usd(1))


def test_all_nodes_of_a_workspace_spend_from_one_budget() -> None:
    ledger = a_ledger()
    one, other = (
        ledger.invocation(node).purse("credential", Limits(daily=usd(1))) for node in ("llm", "b")
    )
    one.hold(usd("0.75"))
    assert spendable(other) == usd("0.25")


def test_a_budget_is_idle_while_there_is_nothing_to_lose() -> None:
    ledger = a_ledger()
    purse = a_purse(ledger, usd(1))
    assert ledger.is_idle
    purse.hold(usd("0.5"))
    assert not ledger.is_idle
    purse.settle(usd("0.5"), Decimal(0))
    assert ledger.is_idle
    purse.settle(Decimal(0), usd("0.5"))
    assert not ledger.is_idle


def test_a_budget_is_idle_again_when_all_it_knows_of_is_over() -> None:
    clock = FakeClock()
    ledger = a_ledger(clock)
    purse = a_purse(ledger, usd(1), usd(10))
    purse.hold(usd(1))
    purse.settle(usd(1), usd(1))
    clock.sleep(30 * DAY_S)
    assert not ledger.is_idle
    clock.sleep(DAY_S)
    assert ledger.is_idle


@given(
    limit=st.decimals(1, 100, places=4),
    calls=st.lists(
        st.tuples(st.decimals(0, 10, places=4), st.floats(0, 1)), min_size=1, max_size=30
    ),
)
def test_no_history_of_honest_holds_spends_past_the_limit(
    limit: Decimal, calls: list[tuple[Decimal, float]]
) -> None:
    purse = a_purse(a_ledger(), limit)
    spent = Decimal(0)
    held: list[tuple[Decimal, Decimal]] = []
    for worst, share in calls:
        try:
            purse.hold(worst)
        except BudgetExceeded:
            if held:
                amount, cost = held.pop()
                purse.settle(amount, cost)
                spent += cost
        else:
            held.append((worst, (worst * usd(share)).quantize(usd("0.0001"))))
        assert spent + sum(amount for amount, _ in held) <= limit


def test_a_hundred_threads_hold_exactly_what_there_is() -> None:
    purse = a_purse(a_ledger(StandingClock()), usd(1))
    outcomes = in_threads(100, lambda _: purse.hold(usd("0.02")))
    assert kinds(outcomes) == {"NoneType": 50, "BudgetExceeded": 50}


# --- what processes share -----------------------------------------------------------------------


def room_of(budget: Budget, limits: Limits) -> list[Decimal | None]:
    """What is left of the day and of the month."""
    return [period.room for period in budget.periods(limits)]


def test_what_was_not_claimed_covers_nothing() -> None:
    assert not Budget(FakeClock()).covers(usd("0.01"))


def test_a_claim_covers_the_calls_that_wait_for_it_and_a_small_part_of_the_rest() -> None:
    budget = Budget(FakeClock())
    claim(budget, Limits(daily=usd(1)), usd("0.4"), usd("0.1"))
    assert budget.covers(usd("0.4"))
    assert not budget.covers(usd("0.4") + usd("0.6") / 20 + usd("0.01"))


def test_a_claim_where_there_is_plenty_covers_ten_calls_ahead() -> None:
    budget = Budget(FakeClock())
    claim(budget, Limits(daily=usd(1000)), usd("0.1"), usd("0.1"))
    assert budget.covers(usd("1.1"))
    assert not budget.covers(usd("1.11"))


def test_what_is_held_of_a_claim_covers_nothing_else() -> None:
    limits = Limits(daily=usd(1))
    budget = Budget(FakeClock())
    claim(budget, limits, usd(1), usd(1))
    budget.hold(limits, usd("0.75"))
    assert not budget.covers(usd("0.26"))
    budget.settle(usd("0.75"), usd("0.5"))
    assert budget.covers(usd("0.5"))
    assert not budget.covers(usd("0.51"))


def test_a_claim_is_for_the_day_on_which_it_was_made() -> None:
    clock = FakeClock()
    budget = Budget(clock)
    claim(budget, Limits(daily=usd(1)), usd(1), usd(1))
    clock.sleep(DAY_S)
    assert not budget.covers(usd("0.01"))


def test_what_others_have_claimed_cannot_be_spent() -> None:
    limits = Limits(daily=usd(1), monthly=usd(2))
    budget = Budget(FakeClock())
    budget.learn(limits, (usd("0.75"), usd("0.75")))
    assert room_of(budget, limits) == [usd("0.25"), usd("1.25")]
    with pytest.raises(BudgetExceeded):
        budget.hold(limits, usd("0.26"))


def test_a_claim_gives_way_to_what_others_have_claimed_but_not_what_is_in_use() -> None:
    limits = Limits(daily=usd(1))
    budget = Budget(FakeClock())
    claim(budget, limits, usd(1), usd("0.1"))
    budget.hold(limits, usd("0.25"))
    budget.learn(limits, (usd("0.5"), usd("0.5")))
    assert budget.most(TODAY) == usd("0.5")
    budget.learn(limits, (usd("0.9"), usd("0.9")))
    assert budget.most(TODAY) == usd("0.25")


@given(
    order=st.permutations([0, 0, 0, 1, 1, 1]),
    worst=st.tuples(*[st.decimals("0.0001", 1, places=4)] * 2),
)
def test_of_two_that_claim_at_the_same_time_both_are_covered_only_if_there_is_enough(
    order: list[int], worst: tuple[Decimal, Decimal]
) -> None:
    limits = Limits(daily=usd(1))
    budgets = [Budget(FakeClock()), Budget(FakeClock())]
    stored = [Decimal(0), Decimal(0)]

    def claims(number: int) -> Iterator[None]:
        budget = budgets[number]
        claim(budget, limits, worst[number], worst[number])
        yield
        stored[number] = budget.most(TODAY)
        yield
        budget.learn(limits, (Decimal(0), stored[1 - number]))
        yield

    steps = [claims(0), claims(1)]
    for number in order:
        next(steps[number])
    covered = [
        amount for budget, amount in zip(budgets, worst, strict=True) if budget.covers(amount)
    ]
    assert sum(covered) <= 1


def test_what_is_released_is_what_is_not_in_use() -> None:
    limits = Limits(daily=usd(1))
    budget = Budget(FakeClock())
    claim(budget, limits, usd(1), usd(1))
    budget.settle(Decimal(0), usd("0.25"))
    budget.release()
    assert budget.most(TODAY) == usd("0.25")
    assert not budget.covers(usd("0.01"))


def test_what_was_claimed_stays_so_while_calls_are_under_way() -> None:
    limits = Limits(daily=usd(1))
    budget = Budget(FakeClock())
    claim(budget, limits, usd(1), usd(1))
    budget.hold(limits, usd("0.25"))
    budget.release()
    assert budget.most(TODAY) == usd(1)


def test_earlier_days_of_the_month_are_those_of_all_processes_and_count_once() -> None:
    limits = Limits(monthly=usd(1))
    clock = FakeClock()
    budget = Budget(clock)
    budget.settle(Decimal(0), usd("0.25"))
    first_day = TODAY
    clock.sleep(DAY_S)
    budget.release()
    assert room_of(budget, limits) == [None, usd("0.75")]
    budget.learn(limits, (usd(0), usd(0)), {first_day: usd("0.5")})
    assert room_of(budget, limits) == [None, usd("0.5")]


def test_the_last_month_is_no_part_of_this_one() -> None:
    limits = Limits(monthly=usd(1))
    clock = FakeClock()
    budget = Budget(clock)
    budget.learn(limits, (usd("0.5"), usd("0.5")), {TODAY: usd("0.25")})
    clock.sleep(31 * DAY_S)
    assert room_of(budget, limits) == [None, usd(1)]


# --- the warning --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (Limits(daily=usd(1)), "80 % of the daily budget of 1 USD"),
        (Limits(monthly=usd(1)), "80 % of the monthly budget of 1 USD"),
        (Limits(daily=usd(10), monthly=usd("0.9")), "89 % of the monthly budget of 0.9 USD"),
    ],
)
def test_from_four_fifths_on_it_is_told_how_much_is_spent(limits: Limits, told: str) -> None:
    ledger = a_ledger()
    purse = ledger.invocation("test").purse("credential", limits)
    purse.settle(Decimal(0), usd("0.8"))
    warning = ledger.warning("credential", limits)
    assert warning.startswith(told)
    assert "resets at 2026-" in warning


@pytest.mark.parametrize("limits", [Limits(daily=usd(1), monthly=usd(1)), Limits()])
def test_below_four_fifths_nothing_is_told_whatever_is_held(limits: Limits) -> None:
    ledger = a_ledger()
    purse = ledger.invocation("test").purse("credential", limits)
    purse.settle(Decimal(0), usd("0.799999"))
    purse.hold(usd("0.2"))
    assert ledger.warning("credential", limits) == ""


# --- the layer ----------------------------------------------------------------------------------


class Spending:
    """A budget layer with the test prices on a timeline; spends are in tokens."""

    def __init__(self, limit_tokens: int, *behaviours: Any, seed: int | None = None) -> None:
        self.time = VirtualTime(seed)
        self.purse = a_purse(a_ledger(self.time), limit_tokens * PER_TOKEN)
        self.layer = BudgetLayer(PRICES)
        self.below = ScriptedHandler(self.time, *behaviours)

    def events(self, request: ChatRequest | None = None) -> Iterator[Event]:
        return self.layer(a_call(self.time, request, purse=self.purse), self.below)

    def ask(self, request: ChatRequest | None = None) -> list[Event]:
        return list(self.events(request))

    @property
    def left_tokens(self) -> int:
        return int(spendable(self.purse, PER_TOKEN) / PER_TOKEN)


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


def a_budgeted_layer(prices: PriceBook, limit: Decimal) -> tuple[OneLayer, Purse]:
    """The layer alone, and what calls to it may spend from."""
    layer = OneLayer(lambda _: BudgetLayer(prices))
    return layer, a_purse(a_ledger(layer.clock), limit)


def test_the_worst_case_is_that_of_the_dearest_model_of_the_call() -> None:
    prices = PriceBook(
        {
            "gpt-4.1": Price(input=Decimal(1), output=Decimal(1)),
            "dear": Price(input=Decimal(1000), output=Decimal(1000)),
        }
    )
    budgeted, purse = a_budgeted_layer(prices, usd("0.05"))
    budgeted.ask(purse=purse)
    with pytest.raises(BudgetExceeded):
        budgeted.ask(purse=purse, fallback_models=("dear",))


def test_the_worst_case_counts_prompt_tokens_at_the_dearest_of_their_prices() -> None:
    price = Price(input=Decimal(1000), cache_write=Decimal(4000), output=Decimal(0))
    prices = PriceBook({"gpt-4.1": price})
    limit = PROMPT * PER_TOKEN * 2
    budgeted, purse = a_budgeted_layer(prices, limit)
    with pytest.raises(BudgetExceeded):
        budgeted.ask(purse=purse)


def test_a_model_without_a_price_is_refused_where_there_is_a_budget() -> None:
    budgeted, purse = a_budgeted_layer(PriceBook(), usd(1))
    with pytest.raises(BudgetExceeded, match=r"'nobody-knows'.*price_overrides"):
        budgeted.ask(a_request().with_model("nobody-knows"), purse=purse)


def test_without_a_budget_a_model_needs_no_price() -> None:
    unlimited = OneLayer(lambda _: BudgetLayer(PriceBook()))
    assert unlimited.ask(a_request().with_model("nobody"))


def test_a_failure_before_any_answer_costs_nothing() -> None:
    spending = Spending(1000, ServerError("down"))
    with pytest.raises(ServerError):
        spending.ask()
    assert spending.left_tokens == 1000


@pytest.mark.parametrize("how", ["breaks off", "is abandoned"])
def test_an_answer_that_is_not_complete_counts_as_the_worst_case(how: str) -> None:
    spending = Spending(1000, BROKEN_OFF if how == "breaks off" else answered("a b"))
    events = spending.events()
    if how == "is abandoned":
        abandon(events)
    else:
        next(events)
        with pytest.raises(ConnectFailed):
            next(events)
    assert spending.left_tokens == 1000 - PROMPT - 100


def test_a_reader_that_leaves_after_the_last_event_has_used_what_is_reported() -> None:
    spending = Spending(1000, answered("a", usage=Usage(prompt_tokens=5)))
    events = spending.events()
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
    other = answered("a", model="other", usage=Usage(prompt_tokens=1), asked_model="other")
    spending = Spending(1000, other)
    spending.ask()
    assert spending.left_tokens == 1000 - PROMPT - 100


def test_a_refusal_is_an_error_of_the_tree_that_does_not_fall_back() -> None:
    assert issubclass(BudgetExceeded, HolySheepError)
    assert not BudgetExceeded.falls_back
