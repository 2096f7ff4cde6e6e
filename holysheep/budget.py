"""Spend limits that hold under concurrency: reserve the worst case, settle with the truth.

Before a call its worst case (no tokenizer makes more tokens of a text than it has bytes, and the
longest answer it allows, or a long one where it sets no limit, at the dearest of its models) is
held; afterwards it is replaced by what the call cost. Calls that run at the same time see each
other's holds, so together they do not pass a limit. Days and months are UTC.

Several processes may spend from one budget. Each *claims* what it may spend: it stores the amount
first and then reads what the others have claimed, so of two that claim at the same time at least
one sees the other. A call is covered by what its process has claimed, or waits for a claim.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from holysheep import config
from holysheep.errors import BudgetExceeded
from holysheep.ports import Clock, utc_day
from holysheep.pricing import PriceBook
from holysheep.settings import Settings
from holysheep.tally import exact_usd
from holysheep.tokens import max_completion_tokens, most_prompt_tokens
from holysheep.types import Call, Completed, Completion, Event, Handler, Purse, Usage

_CLAIM_CALLS = 10
_CLAIM_PART = 20
"""A claim covers so many calls, but no more than one part in so many of what is left."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a credential may spend per UTC day and month, in USD; ``None`` = no limit."""

    daily: Decimal | None = None
    monthly: Decimal | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """Those of a credential."""
        return cls(settings.daily_budget_usd, settings.monthly_budget_usd)

    def __bool__(self) -> bool:
        return self.daily is not None or self.monthly is not None


@dataclass(frozen=True, slots=True)
class Period:
    """The current day or month of a budget.

    ``spent`` is by all processes, ``held`` what is set aside for calls under way, likewise.
    """

    name: str
    limit: Decimal | None
    spent: Decimal
    held: Decimal
    resets_at: datetime

    @property
    def room(self) -> Decimal | None:
        """What may still be spent; ``None`` = anything."""
        return None if self.limit is None else self.limit - self.spent - self.held


class Budget:
    """What one credential of a workspace has spent, as this process knows it.

    Not safe for concurrent use by itself, and makes no round trip: see ``ledger``.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held = Decimal(0)
        # By day: what this process has spent, and the most that it may have spent when all its
        # calls have ended.
        self._spent: dict[date, Decimal] = {}
        self._claimed: dict[date, Decimal] = {}
        # What others have spent and claimed today, and what was spent on the month's earlier days.
        self._others: dict[date, tuple[Decimal, Decimal]] = {}
        self._earlier: dict[date, Decimal] = {}

    @property
    def is_held(self) -> bool:
        """Whether anything is set aside."""
        return self._held > 0

    @property
    def is_idle(self) -> bool:
        """Whether forgetting this budget would lose nothing, where it is nowhere else."""
        today = utc_day(self._clock)
        recent = (day for day in self._spent if (day.year, day.month) == (today.year, today.month))
        return not self._held and not any(recent)

    @property
    def in_use(self) -> Decimal:
        """What this process has spent today or set aside."""
        return self.spent(utc_day(self._clock)) + self._held

    def spent(self, day: date) -> Decimal:
        """What this process has spent on a day."""
        return self._spent.get(day, Decimal(0))

    def most(self, day: date) -> Decimal:
        """The most that this process may have spent on a day when all its calls have ended."""
        return max(self.spent(day), self._claimed.get(day, Decimal(0)))

    def periods(self, limits: Limits) -> tuple[Period, Period]:
        """The current day and month."""
        now = datetime.fromtimestamp(self._clock.wall(), UTC)
        today = now.date()
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        next_month = (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
        others, claimed = self._others.get(today, (Decimal(0), Decimal(0)))
        held = self._held + max(claimed - others, Decimal(0))
        daily = others + self.spent(today)
        first = today.replace(day=1)
        earlier = self._spent | self._earlier
        monthly = daily + sum(
            (amount for day, amount in earlier.items() if first <= day < today), Decimal(0)
        )
        return (
            Period("daily", limits.daily, daily, held, midnight + timedelta(days=1)),
            Period("monthly", limits.monthly, monthly, held, next_month),
        )

    def covers(self, worst_usd: Decimal) -> bool:
        """Whether what this process has claimed is enough for one more such call."""
        claimed = self._claimed.get(utc_day(self._clock))
        return claimed is not None and self.in_use + worst_usd <= claimed

    def check(self, limits: Limits, worst_usd: Decimal) -> None:
        """Raise ``BudgetExceeded`` if a limit has no room for ``worst_usd``."""
        for period in self.periods(limits):
            if period.room is not None and worst_usd > period.room:
                error = BudgetExceeded(
                    f"The {period.name} budget of {period.limit} USD has no room for this call:"
                    f" spent {_usd(period.spent)}, held for calls under way {_usd(period.held)},"
                    f" needed at most {_usd(worst_usd)}. It resets at"
                    f" {period.resets_at:%Y-%m-%d %H:%M} UTC. Raise the budget in the credential,"
                    " or lower max_tokens."
                )
                error.may_pass = worst_usd <= period.room + period.held
                raise error

    def hold(self, limits: Limits, worst_usd: Decimal) -> None:
        """Set ``worst_usd`` aside. Raises ``BudgetExceeded`` if a limit has no room for it."""
        self.check(limits, worst_usd)
        self._held += worst_usd

    def settle(self, held_usd: Decimal, spent_usd: Decimal) -> None:
        """Replace what ``hold`` has set aside by what was spent."""
        self._held -= held_usd
        if spent_usd:
            today = utc_day(self._clock)
            self._spent[today] = self.spent(today) + exact_usd(spent_usd)

    def to_claim(self, limits: Limits, wanted_usd: Decimal, each_usd: Decimal) -> Decimal:
        """What to claim in all: ``wanted_usd`` beyond what is in use, and more for calls to come.

        ``each_usd`` is what one call needs. To be stored, and then ``granted``, before anything is
        spent of it. What was granted before stays so: calls may hold it in the meantime.
        """
        room = self._room(limits)
        ahead = min(each_usd * _CLAIM_CALLS, max(room - wanted_usd, Decimal(0)) / _CLAIM_PART)
        more = max(each_usd, min(wanted_usd + exact_usd(ahead), room))
        return max(self.most(utc_day(self._clock)), self.in_use + more)

    def granted(self, most_usd: Decimal) -> None:
        """A claim was granted, or a part of it: what this process may have spent today at most."""
        self._claimed[utc_day(self._clock)] = most_usd

    def of_today(self, limits: Limits) -> tuple[Decimal | None, Decimal | None]:
        """What the daily limit, and the monthly one after the days before, leave for today."""
        daily, monthly = self.periods(limits)
        if monthly.limit is None:
            return daily.limit, None
        return daily.limit, monthly.limit - (monthly.spent - daily.spent)

    def learn(
        self,
        limits: Limits,
        others: tuple[Decimal, Decimal],
        earlier: dict[date, Decimal] | None = None,
    ) -> None:
        """Take in what others have spent and claimed today, and what was spent on earlier days.

        A claim that the limits have no room for then is given back.
        """
        today = utc_day(self._clock)
        self._others = {today: others}
        if earlier is not None:
            self.learn_month(earlier)
        beyond = self.most(today) - self.in_use - self._room(limits)
        if beyond > 0:
            self._claimed[today] = self.most(today) - beyond

    def learn_month(self, earlier: dict[date, Decimal]) -> None:
        """Take in what was spent on the month's earlier days."""
        self._earlier = earlier

    def release(self) -> None:
        """Give back what is claimed and not in use; forget what no period needs any more."""
        today = utc_day(self._clock)
        if not self._held:
            self._claimed = {today: self.in_use} if today in self._claimed else {}
        elif today in self._claimed:
            # What is under way since yesterday will be spent today.
            self._claimed = {today: self._claimed[today]}
        first = today.replace(day=1)
        self._spent = {day: amount for day, amount in self._spent.items() if day >= first}

    def warning(self, limits: Limits) -> str:
        """A sentence when most of a budget is spent, else nothing."""
        for period in self.periods(limits):
            if period.limit is not None and period.spent >= period.limit * _WARNING:
                part = period.spent * 100 / period.limit
                return (
                    f"{part:.0f} % of the {period.name} budget of {period.limit} USD is spent"
                    f" ({_usd(period.spent)}). It resets at {period.resets_at:%Y-%m-%d %H:%M} UTC."
                )
        return ""

    def _room(self, limits: Limits) -> Decimal:
        """What may be spent beyond what is in use; a lot where there is no limit."""
        rooms = [period.room for period in self.periods(limits) if period.room is not None]
        return max(Decimal(0), min(rooms, default=Decimal(10) ** 12))


_WARNING = Decimal(str(config.BUDGET_WARNING))


class BudgetLayer:
    """Holds a call's worst case before it goes on, and settles it afterwards."""

    def __init__(self, prices: PriceBook) -> None:
        self._prices = prices

    def __call__(self, call: Call, proceed: Handler) -> Iterator[Event]:
        """Pass the call on with its worst case held."""
        purse: Purse | None = call.purse
        if purse is None:
            yield from proceed(call)
            return
        worst = self._worst_case(call)
        purse.hold(worst, call.ends_s)
        unsettled = call.trace.unsettled
        spent = Decimal(0)
        breaks_off = False
        try:
            for event in proceed(call):
                if isinstance(event, Completed):
                    breaks_off = False
                    spent = self._cost(event.completion, worst)
                else:
                    breaks_off = True
                yield event
        finally:
            # What was worked for counts, and nobody says for how much.
            unknown = max(call.trace.unsettled - unsettled, int(breaks_off))
            purse.settle(worst, spent + unknown * worst)

    def _cost(self, completion: Completion, worst: Decimal) -> Decimal:
        cost = self._prices.cost(completion).usd
        return worst if cost is None else cost

    def _worst_case(self, call: Call) -> Decimal:
        prompt = most_prompt_tokens(call.request)
        answer = max_completion_tokens(call.request) or config.UNLIMITED_ANSWER_TOKENS
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
