"""Where the usage of a workspace lies in its storage: by day and process, then by month.

Each process writes a document of its own for each day (``DayDoc``), whole, from memory, so that no
write can lose what another process has counted. The day's index names the processes; it is the one
value that several change, and each looks whether it is still in it.

A day is *frozen* when the next one is over: then nobody writes its documents any more. Frozen days
are folded into the document of their month. Whoever folds one comes to the same result, so it does
no harm to do it twice, or to lose it and do it again; the documents of a day are deleted on a later
day, when the month was seen to contain it. Months before the last two, which thirty days may reach
into, keep their sums without the days, and after thirteen months nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, Self

from holysheep import config
from holysheep.store import Store, pack, unpack
from holysheep.tally import Tally, stored_usd
from holysheep.types import JsonObject

_ROOT = "usage/1"
_FOLDED_KEY = f"{_ROOT}/folded"
_DAY = timedelta(days=1)
_CHECKS = 3
_FOLDED_ON = "folded_on"
FROZEN_AFTER = 2 * _DAY
_OLDEST = 800 * _DAY
_FIRST_TIME = 62 * _DAY
"""How far back to look for days where nobody knows which were folded."""


@dataclass(slots=True)
class DayDoc:
    """What was counted on one day: requests, and for budgets what was spent, by credential, in USD.

    ``claimed`` is the most that may have been spent when all calls under way have ended.
    ``damaged`` counts the documents that could not be read.
    """

    tally: Tally = field(default_factory=Tally)
    spent: dict[str, Decimal] = field(default_factory=dict)
    claimed: dict[str, Decimal] = field(default_factory=dict)
    damaged: int = 0

    def __iadd__(self, other: "DayDoc") -> Self:
        self.tally += other.tally
        _add(self.spent, other.spent)
        _add(self.claimed, other.claimed)
        self.damaged += other.damaged
        return self

    def to_json(self) -> JsonObject:
        """As a JSON object."""
        return {
            "rows": self.tally.to_json(),
            "spent": {name: str(amount) for name, amount in self.spent.items()},
            "claimed": {name: str(amount) for name, amount in self.claimed.items()},
            "damaged": self.damaged,
        }

    @classmethod
    def from_json(cls, value: Any) -> "DayDoc":
        """What ``to_json`` has made. Raises ``ValueError`` for anything else."""
        match value:
            case {"rows": rows, "spent": spent, "claimed": claimed, "damaged": int(damaged)}:
                return cls(Tally.from_json(rows), _amounts(spent), _amounts(claimed), damaged)
            case _:
                raise ValueError("a day is damaged")

    @classmethod
    def readable(cls, value: Any) -> "DayDoc":
        """The same; what is damaged counts as such."""
        try:
            return cls.from_json(value)
        except ValueError:
            return cls(damaged=1)


def _add(amounts: dict[str, Decimal], more: dict[str, Decimal]) -> None:
    for name, amount in more.items():
        amounts[name] = amounts.get(name, Decimal(0)) + amount


def _amounts(value: Any) -> dict[str, Decimal]:
    if not isinstance(value, dict):
        raise ValueError("what was spent is damaged")
    return {credential: stored_usd(amount) for credential, amount in value.items()}


def write_day(store: Store, day: date, process: str, doc: DayDoc, *, checks: bool = False) -> None:
    """Store what a process has counted on a day, in place of what it had stored before.

    With ``checks`` it is read as well: a storage may go on giving an older value for minutes where
    somebody read it at the moment of the write, and does not once it was read anew.
    """
    key, packed = _doc_key(day, process), pack(doc.to_json())
    for _ in range(_CHECKS):
        store.write(key, packed)
        if not checks or store.read(key) == packed:
            return


def enter(store: Store, day: date, process: str) -> bool:
    """Make sure that the day's index names ``process``; whether it had to be entered.

    Two that enter at the same moment may undo each other, so this is to be called again.
    """
    index = _index(store, day)
    if process in index.processes:
        return False
    index.processes.append(process)
    store.write(_index_key(day), pack(asdict(index)))
    return True


type Each = Callable[[Callable[[str], bytes | None], Iterable[str]], Iterable[bytes | None]]
"""Like ``map``, but maybe several at a time."""


def read_budgets(store: Store, day: date, process: str, each: Each) -> tuple[DayDoc, bool]:
    """What the budgets of all other processes are on a day, and whether others find ``process``.

    Without their requests, which take longer to read.
    """
    index = _index(store, day)
    whole = DayDoc(damaged=index.damaged)
    for doc in _budgets(store, day, index.processes, process, each).values():
        whole += doc
    return whole, process in index.processes


def read_claims(
    store: Store, day: date, process: str, credential: str, each: Each
) -> dict[str, tuple[Decimal, Decimal]]:
    """What each other process has spent and claimed of one budget on a day."""
    docs = _budgets(store, day, _index(store, day).processes, process, each)
    return {
        name: (doc.spent.get(credential, Decimal(0)), doc.claimed.get(credential, Decimal(0)))
        for name, doc in docs.items()
        if credential in doc.spent or credential in doc.claimed
    }


def _budgets(
    store: Store, day: date, processes: Iterable[str], but: str, each: Each
) -> dict[str, DayDoc]:
    names = [name for name in processes if name != but]
    found: dict[str, DayDoc] = {}
    stored = each(store.read, [_doc_key(day, name) for name in names])
    for name, packed in zip(names, stored, strict=True):
        if packed is None:
            continue
        try:
            value = unpack(packed)
            found[name] = DayDoc(
                spent=_amounts(value.get("spent")), claimed=_amounts(value.get("claimed"))
            )
        except ValueError:
            found[name] = DayDoc(damaged=1)
    return found


def read_day(store: Store, day: date, *, without: str = "") -> DayDoc:
    """What all processes but one have counted on a day that is not folded yet."""
    index = _index(store, day)
    whole = DayDoc(damaged=index.damaged)
    for process in index.processes:
        if process != without:
            whole += _read_doc(store, _doc_key(day, process))
    return whole


@dataclass(slots=True)
class _Month:
    """A month's document: its days as they lie there, and the sum of those kept no longer."""

    days: dict[str, JsonObject] = field(default_factory=dict)
    rest: DayDoc = field(default_factory=DayDoc)

    def has(self, day: date) -> bool:
        return day.isoformat() in self.days

    def day(self, day: date) -> DayDoc:
        return DayDoc.readable(self.days[day.isoformat()])

    def was_folded_before(self, day: date, today: date) -> bool:
        return self.days[day.isoformat()].get(_FOLDED_ON) != today.isoformat()

    def fold(self, day: date, doc: DayDoc, today: date) -> None:
        self.days[day.isoformat()] = {**doc.to_json(), _FOLDED_ON: today.isoformat()}

    def put_away(self) -> None:
        """Keep the sum of the days in their place."""
        for value in self.days.values():
            self.rest += DayDoc.readable(value)
        self.days.clear()
        self.rest.tally = self.rest.tally.bounded(config.LEDGER_MONTH_ROWS)

    def to_json(self) -> JsonObject:
        return {"days": self.days, "rest": self.rest.to_json()}

    @classmethod
    def from_json(cls, value: JsonObject) -> "_Month":
        match value:
            case {"days": dict(days), "rest": rest} if all(
                isinstance(day, dict) for day in days.values()
            ):
                return cls(days, DayDoc.from_json(rest))
            case _:
                raise ValueError("a month is damaged")


class Archive:
    """Reads days, each month's document once. Not for long: it does not see what changes."""

    def __init__(self, store: Store, today: date) -> None:
        self._store = store
        self._today = today
        self._months: dict[str, _Month | None] = {}
        self._folded_through: date | None = None

    def is_folded(self, day: date) -> bool:
        """Whether a day is in its month's document, with what every process has counted."""
        month = self._month(day)
        return month is not None and month.has(day)

    def day(self, day: date, *, without: str = "") -> DayDoc:
        """What was counted on a day: all of it if folded, else all but one process's part.

        Raises ``StoreError``. What is damaged is counted in ``damaged``.
        """
        month = self._month(day)
        if month is not None and month.has(day):
            return month.day(day)
        if self._folded_through is None:
            # Where nobody knows, all days are looked for that ``fold`` would look for.
            known = _folded_through(self._store, self._today)
            self._folded_through = known or self._today - _FIRST_TIME
        if day <= self._folded_through:
            return DayDoc(damaged=1 if month is None else month.rest.damaged)
        return read_day(self._store, day, without=without)

    def _month(self, day: date) -> _Month | None:
        """The month of a day; ``None`` where it is damaged."""
        key = _month_key(day)
        if key not in self._months:
            self._months[key] = _read_month(self._store, key)
        return self._months[key]


def begin(store: Store, today: date) -> None:
    """Note for a workspace that counts for the first time that there is nothing to fold before."""
    days = (today - number * _DAY for number in range(1, 4))
    if store.has(_FOLDED_KEY) or any(store.has(_index_key(day)) for day in days):
        return
    if store.has(_month_key(today)) or store.has(_month_key(_months_before(today, 1))):
        return
    store.write(_FOLDED_KEY, (today - _DAY).isoformat().encode())


def fold(store: Store, today: date) -> None:
    """Fold frozen days into their months, delete what is not needed any more.

    Raises ``StoreError``; what was done until then stays done, and the rest is done the next time.
    """
    through = _folded_through(store, today)
    last = today - FROZEN_AFTER
    done: date | None = None
    key, month = "", _Month()
    for day in _days(through or today - _FIRST_TIME, last):
        if _month_key(day) != key:
            key = _month_key(day)
            # Damaged means lost: the month begins anew, and says so.
            month = _read_month(store, key) or _Month(rest=DayDoc(damaged=1))
        if not store.has(_index_key(day)):
            continue
        if month.has(day) and month.was_folded_before(day, today):
            _delete_day(store, day)
            continue
        done = done or day - _DAY
        if not month.has(day):
            doc = read_day(store, day)
            doc.tally = doc.tally.bounded(config.LEDGER_DAY_ROWS)
            month.fold(day, doc, today)
            store.write(key, pack(month.to_json()))
    done = done or max(last, through or last)
    if through is None or (through.year, through.month) != (today.year, today.month):
        _put_away(store, through or today - _FIRST_TIME, done, today)
    if through != done:
        store.write(_FOLDED_KEY, done.isoformat().encode())


def _put_away(store: Store, since: date, done: date, today: date) -> None:
    """Drop the days of months before the last two, and months that are too old."""
    months_since = (today.year - since.year) * 12 + today.month - since.month
    for back in range(3, config.LEDGER_MONTHS + months_since + 2):
        first = _months_before(today, back)
        key = _month_key(first)
        if back > config.LEDGER_MONTHS:
            if store.has(key):
                store.delete(key)
            continue
        if first < _months_before(since, 3) or _months_before(first, -1) > done:
            continue
        month = _read_month(store, key)
        if month is None or not month.days:
            continue
        month.put_away()
        store.write(key, pack(month.to_json()))


def _delete_day(store: Store, day: date) -> None:
    for process in _index(store, day).processes:
        key = _doc_key(day, process)
        if store.has(key):
            store.delete(key)
    store.delete(_index_key(day))


def _read_doc(store: Store, key: str) -> DayDoc:
    packed = store.read(key)
    if packed is None:
        # Entered, but not written: that comes with its next write.
        return DayDoc()
    try:
        return DayDoc.from_json(unpack(packed))
    except ValueError:
        return DayDoc(damaged=1)


def _read_month(store: Store, key: str) -> _Month | None:
    packed = store.read(key)
    if packed is None:
        return _Month()
    try:
        return _Month.from_json(unpack(packed))
    except ValueError:
        return None


@dataclass(slots=True)
class _Index:
    """The processes that have counted something on a day, and how often that list was lost."""

    processes: list[str] = field(default_factory=list)
    damaged: int = 0


def _index(store: Store, day: date) -> _Index:
    """A day's index. A damaged one is begun anew: those who still write enter themselves again."""
    packed = store.read(_index_key(day))
    if packed is None:
        return _Index()
    try:
        value = unpack(packed)
    except ValueError:
        return _Index(damaged=1)
    match value:
        case {"processes": list(processes), "damaged": int(damaged)} if all(
            map(_is_process, processes)
        ):
            return _Index(processes, damaged)
        case _:
            return _Index(damaged=1)


def _is_process(value: Any) -> bool:
    return isinstance(value, str) and value.isalnum() and len(value) <= 64


def _folded_through(store: Store, today: date) -> date | None:
    """The last day that was folded; ``None`` = nobody knows."""
    stored = store.read(_FOLDED_KEY)
    try:
        day = date.fromisoformat(stored.decode()) if stored else None
    except ValueError:
        return None
    # A day that cannot be is as good as none.
    return day if day is not None and today - _OLDEST <= day < today else None


def _days(first: date, last: date) -> Iterator[date]:
    day = first
    while day <= last:
        yield day
        day += _DAY


def _months_before(day: date, months: int) -> date:
    """The first day of the month so many months before that of ``day``."""
    number = day.year * 12 + day.month - 1 - months
    return date(number // 12, number % 12 + 1, 1)


def _index_key(day: date) -> str:
    return f"{_ROOT}/{day.isoformat()}/index"


def _doc_key(day: date, process: str) -> str:
    return f"{_ROOT}/{day.isoformat()}/{process}"


def _month_key(day: date) -> str:
    return f"{_ROOT}/{day:%Y-%m}"
