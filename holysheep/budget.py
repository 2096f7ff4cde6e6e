"""Spend limits that hold under concurrency: reserve the worst case, settle with the truth.

Before a call its worst case (no tokenizer makes more tokens of a prompt than it has bytes, and the
longest answer it allows, at the dearest of its models) is held; afterwards it is replaced by what
the call cost. Calls that run at the same time see each other's holds, so together they do not pass
a limit. Days and months are UTC. The spend is that of this process.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from holysheep import config
from holysheep.errors import BudgetExceeded
from holysheep.ports import Clock
from holysheep.pricing import PriceBook
from holysheep.tokens import max_completion_tokens, most_prompt_tokens
from holysheep.types import Call, Completed, Completion, Event, Handler, Usage


class Budget:
    """The daily and monthly limit of one credential in USD; ``None`` = no limit."""

    def __init__(self, daily: Decimal | None, monthly: Decimal | None, *, clock: Clock) -> None:
        self._clock = clock
        self._lock = clock.lock()
        self._limits = {"daily": daily, "monthly": monthly}
        self._spent: dict[str, Decimal] = {}
        self._held = Decimal(0)

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit to heed."""
        return any(limit is not None for limit in self._limits.values())

    @property
    def is_idle(self) -> bool:
        """Whether forgetting this budget would lose nothing."""
        with self._lock:
            current = {self._period(name)[0] for name in self._limits}
            return not self._held and not current & set(self._spent)

    def resize(self, daily: Decimal | None, monthly: Decimal | None) -> None:
        """Change the limits; what was spent stays spent."""
        with self._lock:
            self._limits = {"daily": daily, "monthly": monthly}

    def hold(self, worst_usd: Decimal) -> None:
        """Set ``worst_usd`` aside. Raises ``BudgetExceeded`` if a limit has no room for it."""
        with self._lock:
            for name, limit in self._limits.items():
                if limit is None:
                    continue
                key, resets_at = self._period(name)
                spent = self._spent.get(key, Decimal(0))
                if spent + self._held + worst_usd > limit:
                    error = BudgetExceeded(
                        f"The {name} budget of {limit} USD has no room for this call: spent"
                        f" {_usd(spent)}, held for calls under way {_usd(self._held)}, needed at"
                        f" most {_usd(worst_usd)}. It resets at {resets_at:%Y-%m-%d %H:%M} UTC."
                        " Raise the budget in the credential, or lower max_tokens."
                    )
                    error.may_pass = spent + worst_usd <= limit
                    raise error
            self._held += worst_usd

    def settle(self, held_usd: Decimal, spent_usd: Decimal) -> None:
        """Replace what ``hold`` has set aside by what was spent."""
        with self._lock:
            self._held -= held_usd
            if not spent_usd:
                return
            keys = [self._period(name)[0] for name in self._limits]
            self._spent = {key: self._spent.get(key, Decimal(0)) + spent_usd for key in keys}

    def _period(self, name: str) -> tuple[str, datetime]:
        """The current period's key, and when the next one begins."""
        now = datetime.fromtimestamp(self._clock.wall(), UTC)
        today = now.replace(hour=0, minute=0, second=0, microsecond=0)
        if name == "daily":
            return f"{now:%Y-%m-%d}", today + timedelta(days=1)
        return f"{now:%Y-%m}", (today.replace(day=1) + timedelta(days=32)).replace(day=1)


class BudgetLayer:
    """Holds a call's worst case before it goes on, and settles it afterwards."""

    def __init__(self, budget: Budget, prices: PriceBook) -> None:
        self._budget = budget
        self._prices = prices

    def __call__(self, call: Call, proceed: Handler) -> Iterator[Event]:
        """Pass the call on with its worst case held."""
        if not self._budget.is_limited:
            yield from proceed(call)
            return
        worst = self._worst_case(call)
        self._budget.hold(worst)
        spent = Decimal(0)
        try:
            for event in proceed(call):
                # An answer that breaks off was worked for; nobody says for how much.
                spent = (
                    self._cost(event.completion, worst) if isinstance(event, Completed) else worst
                )
                yield event
        finally:
            self._budget.settle(worst, spent)

    def _cost(self, completion: Completion, worst: Decimal) -> Decimal:
        cost = self._prices.cost(completion).usd
        return worst if cost is None else cost

    def _worst_case(self, call: Call) -> Decimal:
        prompt = most_prompt_tokens(call.request)
        answer = max_completion_tokens(call.request) or config.MAX_MAX_TOKENS
        # The prompt may count as fresh, or as written to the provider's cache.
        usages = (
            Usage(prompt_tokens=prompt, completion_tokens=answer),
            Usage(prompt_tokens=prompt, cache_write_tokens=prompt, completion_tokens=answer),
            Usage(prompt_tokens=prompt, cached_tokens=prompt, completion_tokens=answer),
        )
        worst = Decimal(0)
        for model in (call.request.model, *call.policy.fallback_models):
            price, _ = self._prices.find(model)
            if price is None:
                raise BudgetExceeded(
                    f"The model {model!r} has no price, so a budget cannot be held for it. Add it"
                    " to price_overrides in the credential."
                )
            worst = max(worst, *(price.cost(usage) for usage in usages))
        return worst


def _usd(amount: Decimal) -> str:
    return f"{amount:.6f} USD"
