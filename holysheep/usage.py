"""What the requests of a period came to: in all, and by model, day, app, node and status.

Days are UTC. Sums are exact: they are added up as ``Decimal`` and become JSON numbers at the end.
``Usage.to_json`` is the document that a workflow can save; ``Usage.from_json`` reads it back.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, Self, get_args

from holysheep.budget import Limits
from holysheep.errors import InputError
from holysheep.ledger import Ledger
from holysheep.params import UsageGroup, UsagePeriod
from holysheep.ports import Clock, utc_day
from holysheep.reading import shown
from holysheep.result import usd_number
from holysheep.settings import Settings
from holysheep.tally import CACHED_STATES, LATENCY_BOUNDS_MS, OTHER, Dimensions, Figures
from holysheep.types import JsonObject

GROUPS: tuple[UsageGroup, ...] = ("day", "model", "app", "node", "status")
NONE = "(none)"
"""The name of an app where there is none: the library has no apps."""

_MOST_ROWS = 300
"""Of a group. The rest is put together, so that a report stays below what a host takes."""
_BOUNDS_MS = (*LATENCY_BOUNDS_MS, None)
_MOST = 10**15
_LONGEST_TEXT = 1000


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What some requests came to. A request is a call of the client's, retries included.

    ``key``                what they have in common, such as the model; ``total`` of all
    ``requests``           all of them
    ``cached_requests``    answered without an upstream call of their own
    ``failed_requests``    without a whole answer, whoever ended them
    ``prompt_tokens``      of upstream calls: those of cached answers are not counted again
    ``completion_tokens``  likewise
    ``total_tokens``       both together
    ``cost_usd``           what is known of it, each request exact to 10⁻¹² USD
    ``saved_usd``          what the cached requests would have cost
    ``unpriced_requests``  whose cost is not known, and in ``cost_usd`` counted as nothing
    ``avg_latency_ms``     over all requests, from the start of a call to its end
    """

    key: str
    requests: int
    cached_requests: int
    failed_requests: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost_usd: Decimal
    saved_usd: Decimal
    unpriced_requests: int
    avg_latency_ms: float

    def to_json(self) -> JsonObject:
        """As a JSON object with the same keys; money as numbers."""
        return _as_json(self)


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """What is spent of a credential's budgets, today and this month (UTC).

    ``daily_limit_usd``, ``monthly_limit_usd``  ``None`` = no limit
    ``daily_spent_usd``, ``monthly_spent_usd``  what is known of it, calls under way apart
    """

    daily_limit_usd: Decimal | None
    daily_spent_usd: Decimal
    monthly_limit_usd: Decimal | None
    monthly_spent_usd: Decimal

    def to_json(self) -> JsonObject:
        """As a JSON object with the same keys; money as numbers."""
        return _as_json(self)


@dataclass(frozen=True, slots=True)
class LatencyClass:
    """The requests that took up to ``up_to_ms``, and longer than those of the class before.

    ``None`` is for those above all classes.
    """

    up_to_ms: int | None
    requests: int

    def to_json(self) -> JsonObject:
        """As a JSON object with the same keys."""
        return _as_json(self)


@dataclass(frozen=True, slots=True)
class Usage:
    """The usage of a period.

    ``period``     ``today``, ``yesterday``, ``last_7_days``, ``last_30_days`` or ``this_month``
    ``first_day``  a UTC day
    ``last_day``   likewise, included
    ``totals``     a ``UsageRow`` of all requests
    ``rows``       by ``day``, ``model`` (the one that was served), ``app``, ``node`` and ``status``
                   (``ok``, an ``error_type`` or ``cancelled``), each a tuple of at most 300
                   ``UsageRow``: days ascend, of the others what cost most comes first, and the
                   smallest are one, ``(other)``. Calls of the library have the app ``(none)`` and
                   the node ``library``
    ``latency``    a tuple of all latency classes, also of those without requests: ``requests`` took
                   at most ``up_to_ms``, ``None`` = longer than those of all other classes
    ``budget``     with ``daily_limit_usd``, ``daily_spent_usd``, ``monthly_limit_usd`` and
                   ``monthly_spent_usd``, when it was read (a limit is ``None`` if there is none);
                   ``None`` where the usage is not that of one credential
    ``missing``    sentences that say what is not in it; mostly empty
    """

    period: UsagePeriod
    first_day: date
    last_day: date
    totals: UsageRow
    rows: Mapping[UsageGroup, tuple[UsageRow, ...]]
    latency: tuple[LatencyClass, ...]
    budget: BudgetStatus | None = None
    missing: tuple[str, ...] = ()

    @property
    def cache_hit_rate(self) -> Decimal:
        """``cached_requests`` as a part of ``requests``, 0 to 1, to four places; 0 without any."""
        if not self.totals.requests:
            return Decimal(0)
        return round(Decimal(self.totals.cached_requests) / self.totals.requests, 4)

    @property
    def days(self) -> tuple[date, ...]:
        """Every day of the period, in order, also those without requests."""
        return _days(self.first_day, self.last_day)

    def to_json(self) -> JsonObject:
        """As a JSON object; money as numbers.

        Keys: ``period``, ``from`` and ``to`` (ISO days), ``totals``, ``by_day``, ``by_model``,
        ``by_app``, ``by_node``, ``by_status``, ``latency``, ``budget``, ``missing``.
        """
        return {
            "period": self.period,
            "from": self.first_day.isoformat(),
            "to": self.last_day.isoformat(),
            "totals": self.totals.to_json(),
            **{f"by_{group}": [row.to_json() for row in self.rows[group]] for group in GROUPS},
            "latency": [each.to_json() for each in self.latency],
            "budget": None if self.budget is None else self.budget.to_json(),
            "missing": list(self.missing),
        }

    @classmethod
    def from_json(cls, value: Any) -> "Usage":
        """What ``to_json`` has made. Raises ``InputError`` for anything else."""
        try:
            return _usage(value)
        except ValueError as error:
            raise InputError(f"This is no export of the usage node: {error}.") from None


def read_usage(
    ledger: Ledger,
    period: UsagePeriod,
    clock: Clock,
    *,
    credential: Settings | None = None,
    budget_of: Settings | None = None,
    give_way: Callable[[], object] = lambda: None,
) -> Usage:
    """The usage of one credential, or with ``None`` of all that the ledger's workspace has.

    ``budget_of`` is whose budget is told then. Where the ledger has a storage, an invocation must
    be open. ``give_way`` is called again and again, so that much to add up does not keep others
    waiting.
    """
    first, last = span_of(period, utc_day(clock))
    budget, unread = None, ""
    spender = credential or budget_of
    if spender is not None:
        limits = Limits.of(spender)
        unread = ledger.refresh(spender.fingerprint, limits)
        budget = _budget(ledger, spender.fingerprint, limits)
    past = ledger.past(_days(first, last))
    sums = _Sums(None if credential is None else credential.fingerprint)
    for day, tally in past.days.items():
        give_way()
        for dimensions, figures in tally:
            sums.add(day, dimensions, figures)
    return sums.usage(period, first, last, budget, past.missing or ((unread,) if unread else ()))


def span_of(period: UsagePeriod, today: date) -> tuple[date, date]:
    """The first and the last day of a period."""
    match period:
        case "today":
            return today, today
        case "yesterday":
            return today - timedelta(days=1), today - timedelta(days=1)
        case "last_7_days":
            return today - timedelta(days=6), today
        case "last_30_days":
            return today - timedelta(days=29), today
        case "this_month":
            return today.replace(day=1), today


def _days(first: date, last: date) -> tuple[date, ...]:
    return tuple(first + timedelta(days=number) for number in range((last - first).days + 1))


def _budget(ledger: Ledger, credential: str, limits: Limits) -> BudgetStatus:
    daily, monthly = ledger.periods(credential, limits)
    return BudgetStatus(daily.limit, daily.spent, monthly.limit, monthly.spent)


# --- adding up ---


@dataclass(slots=True)
class _Sum:
    """The figures of one row, as they are added up, and what became of its requests."""

    figures: Figures = field(default_factory=Figures)
    cached: int = 0
    failed: int = 0

    def add(self, dimensions: Dimensions, figures: Figures) -> None:
        self.figures += figures
        if dimensions.status != "ok":
            # Also where it waited in vain for the call of another: that answered nothing.
            self.failed += figures.requests
        elif dimensions.cache in CACHED_STATES:
            self.cached += figures.requests

    def __iadd__(self, other: "_Sum") -> Self:
        self.figures += other.figures
        self.cached += other.cached
        self.failed += other.failed
        return self

    def row(self, key: str) -> UsageRow:
        figures = self.figures
        average_us = figures.latency_us / figures.requests if figures.requests else 0.0
        return UsageRow(
            key=key,
            requests=figures.requests,
            cached_requests=self.cached,
            failed_requests=self.failed,
            prompt_tokens=figures.prompt_tokens,
            completion_tokens=figures.completion_tokens,
            total_tokens=figures.total_tokens,
            cost_usd=figures.cost_usd,
            saved_usd=figures.saved_usd,
            unpriced_requests=figures.unpriced,
            avg_latency_ms=round(average_us / 1000, 3),
        )


class _Sums:
    """The sums of a usage, of one credential or of all."""

    def __init__(self, credential: str | None) -> None:
        self._credential = credential
        self._total = _Sum()
        self._groups: dict[UsageGroup, dict[str, _Sum]] = {
            group: defaultdict(_Sum) for group in GROUPS
        }

    def add(self, day: date, dimensions: Dimensions, figures: Figures) -> None:
        if self._credential not in (None, dimensions.credential):
            return
        self._total.add(dimensions, figures)
        keys: dict[UsageGroup, str] = {
            "day": day.isoformat(),
            "model": dimensions.served,
            "app": dimensions.app,
            "node": dimensions.node,
            "status": dimensions.status,
        }
        for group, key in keys.items():
            self._groups[group][key or NONE].add(dimensions, figures)

    def usage(
        self,
        period: UsagePeriod,
        first: date,
        last: date,
        budget: BudgetStatus | None,
        missing: tuple[str, ...],
    ) -> Usage:
        rows = {group: _sorted(sums, group) for group, sums in self._groups.items()}
        classes = self._total.figures.classes
        latency = tuple(
            LatencyClass(bound, classes.get(number, 0)) for number, bound in enumerate(_BOUNDS_MS)
        )
        total = self._total.row("total")
        return Usage(period, first, last, total, rows, latency, budget, missing)


def _sorted(sums: dict[str, _Sum], group: UsageGroup) -> tuple[UsageRow, ...]:
    if group == "day":
        return tuple(sum_.row(day) for day, sum_ in sorted(sums.items()))
    rows = _dearest_first(sum_.row(key) for key, sum_ in sums.items())
    if len(rows) > _MOST_ROWS:
        kept = [row for row in rows if row.key != OTHER][: _MOST_ROWS - 1]
        other = _Sum()
        for key in sums.keys() - {row.key for row in kept}:
            other += sums[key]
        rows = _dearest_first([*kept, other.row(OTHER)])
    return tuple(rows)


def _dearest_first(rows: Iterable[UsageRow]) -> list[UsageRow]:
    return sorted(rows, key=lambda row: (-row.cost_usd, -row.requests, row.key))


# --- as JSON, and back ---


def _as_json(record: UsageRow | BudgetStatus | LatencyClass) -> JsonObject:
    found = {field.name: getattr(record, field.name) for field in fields(record)}
    return {
        name: usd_number(value) if isinstance(value, Decimal) else value
        for name, value in found.items()
    }


_LISTS = [f"by_{group}" for group in GROUPS]
_KEYS = ["period", "from", "to", "totals", *_LISTS, "latency", "budget", "missing"]


def _usage(value: Any) -> Usage:
    _check_keys("it", value, _KEYS)
    period = value["period"]
    if period not in get_args(UsagePeriod):
        raise ValueError(f"its period is {shown(period)}")
    first, last = _day("from", value["from"]), _day("to", value["to"])
    if (first, last) not in _spans(period, last):
        raise ValueError(f"{period} does not go from {first} to {last}")
    totals = _record(UsageRow, "totals", value["totals"])
    rows = {group: _rows(f"by_{group}", value[f"by_{group}"], totals) for group in GROUPS}
    days = {day.isoformat() for day in _days(first, last)}
    for row in rows["day"]:
        if row.key not in days:
            raise ValueError(f"by_day has {shown(row.key)}, which is no day of it")
    latency = _latency(value["latency"])
    budget = value["budget"]
    status = None if budget is None else _record(BudgetStatus, "budget", budget)
    missing = _list("missing", value["missing"])
    for sentence in missing:
        _text("missing", sentence)
    return Usage(period, first, last, totals, rows, latency, status, tuple(missing))


def _spans(period: UsagePeriod, last: date) -> list[tuple[date, date]]:
    """The spans of a period that end on a day, which may be today's or yesterday's."""
    try:
        return [span_of(period, last), span_of(period, last + timedelta(days=1))]
    except OverflowError:
        return []


def _rows(name: str, value: Any, totals: UsageRow) -> tuple[UsageRow, ...]:
    rows = tuple(
        _record(UsageRow, f"{name} {number}", row) for number, row in enumerate(_list(name, value))
    )
    if sum(row.requests for row in rows) != totals.requests:
        raise ValueError(f"the requests of {name} are not {totals.requests} together")
    return rows


def _latency(value: Any) -> tuple[LatencyClass, ...]:
    classes = tuple(
        _record(LatencyClass, f"latency {number}", each)
        for number, each in enumerate(_list("latency", value))
    )
    if tuple(each.up_to_ms for each in classes) != _BOUNDS_MS:
        raise ValueError("latency has other classes than those that are counted")
    return classes


def _record[Record: UsageRow | BudgetStatus | LatencyClass](
    kind: type[Record], name: str, value: Any
) -> Record:
    names = [field.name for field in fields(kind)]
    _check_keys(name, value, names)
    return kind(
        **{
            field.name: _READERS[field.type](f"{name} has {field.name}", value[field.name])
            for field in fields(kind)
        }
    )


def _check_keys(name: str, value: Any, keys: Iterable[str]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object")
    for key in keys:
        if key not in value:
            raise ValueError(f"{name} has no {key}")
    for key in value.keys() - set(keys):
        raise ValueError(f"{name} has a key {shown(key)}")


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise ValueError(f"{name} {shown(value)}, no text of at most {_LONGEST_TEXT} characters")
    return value


def _day(name: str, value: Any) -> date:
    try:
        day = date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"its {name} is {shown(value)}, no day such as 2026-01-31") from None
    return day


def _count(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MOST:
        raise ValueError(f"{name} {shown(value)}, no number of things")
    return value


def _bound(name: str, value: Any) -> int | None:
    return None if value is None else _count(name, value)


def _span_ms(name: str, value: Any) -> float:
    return float(_number(name, value))


def _usd(name: str, value: Any) -> Decimal:
    return Decimal(str(_number(name, value)))


def _limit(name: str, value: Any) -> Decimal | None:
    return None if value is None else _usd(name, value)


def _number(name: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= _MOST:
        raise ValueError(f"{name} {shown(value)}, no number from 0 on")
    return float(value)


_READERS: dict[Any, Callable[[str, Any], Any]] = {
    str: _text,
    int: _count,
    int | None: _bound,
    float: _span_ms,
    Decimal: _usd,
    Decimal | None: _limit,
}
"""How a field is read, by its type."""
