"""What the requests of a workspace came to, outliving the process.

One ``Ledger`` for each workspace and process. Requests are counted in memory, by day; what has
changed is written to the workspace's storage about once a second. A storage answers only while an
invocation of the workspace is open, so the ledger knows those that are: of invocations that overlap
one writes for all, and the last one writes before it ends. ``archive`` says where it all lies.

A storage that fails never fails a call: a process writes all it has counted on a day each time, so
what was not written is written later. Until then budgets count this process alone.
"""

import logging
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Self

from holysheep import archive, config
from holysheep.archive import Archive, DayDoc
from holysheep.budget import Budget, Limits, Period
from holysheep.ports import Clock, Condition, Spawn
from holysheep.store import NotOpen, Store, StoreError
from holysheep.tally import Dimensions, Figures, Tally
from holysheep.types import Purse

_log = logging.getLogger(__name__)
_ENTER_TIMES = 20
_ENTER_PAUSE_S = 0.01
_KEPT_DAYS = timedelta(days=4)
"""So long a process remembers what it has counted: until the day is folded, and longer."""


@dataclass(slots=True)
class _Book:
    """What this process has counted on one day. ``version`` grows with each change."""

    tally: Tally = field(default_factory=Tally)
    version: int = 0
    written: int = 0
    entered_s: float = float("-inf")

    @property
    def is_dirty(self) -> bool:
        return self.version != self.written


@dataclass(slots=True)
class _Account:
    """A credential's budget, and what its calls are waiting for."""

    budget: Budget
    wanted_usd: Decimal = Decimal(0)
    learned_s: float = float("-inf")
    month_read_s: float = float("-inf")
    month_read_on: date | None = None


@dataclass(frozen=True, slots=True)
class Past:
    """What was counted on some days, and sentences that say what is missing."""

    days: dict[date, Tally]
    missing: tuple[str, ...] = ()


class Ledger:
    """The ledger of one workspace in one process. Safe for concurrent use.

    ``process`` names it in the storage: letters and digits, its own for each ledger.
    """

    def __init__(self, clock: Clock, spawn: Spawn, *, process: str | None = None) -> None:
        self._clock = clock
        self._spawn = spawn
        self._process = process or uuid.uuid4().hex
        self._changed = clock.condition()
        self._books: dict[date, _Book] = {}
        self._accounts: dict[str, _Account] = {}
        self._is_stored = False
        self._open: list[Store] = []
        self._relay = _Relay(self._changed, self._open)
        self._has_turn = False
        self._is_keeping = False
        self._folded_on: date | None = None
        self._fold_due_s = float("-inf")
        self._written_s = float("-inf")
        self._failures = 0
        self._paused_until_s = float("-inf")
        self._problem = ""

    @property
    def is_idle(self) -> bool:
        """Whether forgetting this ledger would lose nothing."""
        with self._changed:
            return not (
                self._open
                or self._has_turn
                or (self._is_stored and self._is_dirty)
                or any(not account.budget.is_idle for account in self._accounts.values())
            )

    @property
    def problem(self) -> str:
        """What is wrong with the storage now, in a sentence, or nothing."""
        with self._changed:
            return self._problem

    def invocation(
        self, node: str, *, app: str = "", store: Store | None = None, lasts: bool = False
    ) -> "Invocation":
        """The way in for one invocation, to be used as a context manager.

        ``store`` is the workspace's storage, which answers until the end of the context, in any
        thread; without one nothing is stored. ``lasts`` says that it goes on after its first
        request.
        """
        return Invocation(self, node, app, store, lasts=lasts)

    # --- invocations ---

    def begin(self, store: Store) -> None:
        """An invocation has been opened."""
        today = self._today()
        with self._changed:
            self._is_stored = True
            self._open.append(store)
            is_due = self._folded_on != today and self._clock.monotonic() >= max(
                self._fold_due_s, self._paused_until_s
            )
            if is_due:
                self._folded_on = today
        if is_due:
            self._spawn(self._fold)

    def end(self, store: Store) -> None:
        """An invocation is about to end: if it is the last one, write what is not written."""
        with self._changed:
            self._open.remove(store)
            is_last = not self._open
            if not is_last:
                self._keep()
        if is_last:
            self._write(store)
        self._relay.wait_until_unused(store, self._clock, config.STORE_TIMEOUT_S)

    # --- counting ---

    def add(self, dimensions: Dimensions, figures: Figures, *, lasts: bool = False) -> None:
        """Count a request that has ended just now."""
        with self._changed:
            book = self._book()
            book.tally.add(dimensions, figures)
            if len(book.tally) > 2 * config.LEDGER_PROCESS_ROWS:
                book.tally = book.tally.bounded(config.LEDGER_PROCESS_ROWS)
            book.version += 1
            if lasts:
                self._keep()

    def settle(self, credential: str, held_usd: Decimal, spent_usd: Decimal) -> None:
        """Replace what was held by what was spent."""
        with self._changed:
            self._account(credential).budget.settle(held_usd, spent_usd)
            self._book().version += 1

    def hold(self, credential: str, limits: Limits, worst_usd: Decimal, *, alone: bool) -> None:
        """Set ``worst_usd`` aside. Raises ``BudgetExceeded`` if a limit has no room for it.

        ``alone`` says that no other process spends from the budget.
        """
        with self._changed:
            account = self._account(credential)
            if alone or self._is_paused or account.budget.covers(worst_usd):
                account.budget.hold(limits, worst_usd)
                return
            account.wanted_usd += worst_usd
        try:
            while not self._claimed(account, credential, limits, worst_usd):
                pass
        finally:
            with self._changed:
                account.wanted_usd -= worst_usd

    def periods(self, credential: str, limits: Limits) -> tuple[Period, Period]:
        """The current day and month of a budget, as far as this process knows."""
        with self._changed:
            return self._account(credential).budget.periods(limits)

    def warning(self, credential: str, limits: Limits) -> str:
        """A sentence when most of a budget is spent, or only a part is known, else nothing."""
        with self._changed:
            told = self._account(credential).budget.warning(limits)
            if self._problem:
                told = f"{told} {self._problem} The budget counts this process alone meanwhile."
            return told.strip()

    # --- reading ---

    def past(self, days: Iterable[date], *, only_stored: bool = False) -> Past:
        """What all processes have counted on these days, this one up to now.

        With ``only_stored`` what is in the storage: then it is the same whichever process tells it.
        """
        found: dict[date, Tally] = {}
        missing: list[str] = []
        stored: Archive | None = Archive(self._relay, self._today()) if self._is_stored else None
        for day in days:
            with self._changed:
                book = None if only_stored else self._books.get(day)
                own = Tally(book.tally) if book is not None else Tally()
            found[day] = own
            if stored is None:
                continue
            try:
                doc = stored.day(day, without=self._process if book is not None else "")
                is_folded = stored.is_folded(day)
            except StoreError as error:
                missing.append(_unread("what other processes have counted", error))
                # It may hang, and there are many days.
                stored = None
                continue
            if doc.damaged:
                missing.append(f"A stored record of {day} is damaged; what was in it is missing.")
            found[day] = Tally(doc.tally)
            if not is_folded:
                found[day] += own
            # Many rows of many days; others of the process are to run in between.
            self._clock.sleep(0.0005)
        return Past(found, tuple(missing))

    def refresh(self, credential: str, limits: Limits) -> str:
        """Read what others have spent from a budget; a sentence if that cannot be read."""
        if not self._is_stored:
            return ""
        try:
            with self._turn():
                self._learn(credential, limits)
        except StoreError as error:
            return _unread("what other processes have spent", error)
        return ""

    # --- the storage ---

    def _keep(self) -> None:
        """Have somebody write what is not written; the caller holds the lock."""
        if not self._is_keeping and self._open and self._is_dirty:
            self._is_keeping = True
            self._spawn(self._write_regularly)

    def _write_regularly(self) -> None:
        """Write about once a second, until there is nothing to write or no invocation is open."""
        while True:
            with self._changed:
                while self._open and self._is_dirty:
                    due_s = max(self._written_s + config.LEDGER_WRITE_S, self._paused_until_s)
                    left_s = due_s - self._clock.monotonic()
                    if left_s <= 0:
                        break
                    self._changed.wait(left_s)
                if not (self._open and self._is_dirty):
                    self._is_keeping = False
                    return
            self._write(self._relay)

    def _write(self, store: Store) -> None:
        """Write what has changed, unless the storage is being left alone."""
        with self._turn():
            with self._changed:
                dirty = [day for day, book in self._books.items() if book.is_dirty]
                if not dirty or self._is_paused:
                    return
            try:
                with self._watched():
                    for day in dirty:
                        self._write_day(store, day)
            except StoreError:
                pass

    def _write_day(self, store: Store, day: date) -> None:
        with self._changed:
            book = self._books[day]
            version = book.version
            doc = self._doc(day, book)
            must_enter = self._clock.monotonic() >= book.entered_s + config.LEDGER_ENTER_S
            self._written_s = self._clock.monotonic()
        archive.write_day(store, day, self._process, doc)
        if must_enter:
            self._enter(store, day)
        with self._changed:
            book.written = version
            if must_enter:
                book.entered_s = self._clock.monotonic()
            self._forget_old_days()

    def _enter(self, store: Store, day: date) -> None:
        """Make sure that the day's index names this process.

        Of those that enter at the same moment the last to write undoes the others. After twice the
        time that reading and writing take, whoever had read before this one wrote has written too.
        """
        for _ in range(_ENTER_TIMES):
            began_s = self._clock.monotonic()
            if not archive.enter(store, day, self._process):
                return
            took_s = self._clock.monotonic() - began_s
            self._clock.sleep(2 * took_s + _ENTER_PAUSE_S)

    def _doc(self, day: date, book: _Book) -> DayDoc:
        """A day as it is to be stored; the caller holds the lock."""
        spent = {}
        for credential, account in self._accounts.items():
            if not account.wanted_usd:
                account.budget.release()
            if amount := account.budget.claimed(day):
                spent[credential] = amount
        return DayDoc(Tally(book.tally).bounded(config.LEDGER_PROCESS_ROWS), spent)

    def _claimed(
        self, account: _Account, credential: str, limits: Limits, worst_usd: Decimal
    ) -> bool:
        """Hold ``worst_usd`` of what this process claims; False = others have taken it meanwhile.

        Raises ``BudgetExceeded``.
        """
        budget = account.budget
        with self._turn():
            with self._changed:
                if self._is_paused or budget.covers(worst_usd):
                    budget.hold(limits, worst_usd)
                    return True
                if self._clock.monotonic() < account.learned_s + config.LEDGER_WRITE_S:
                    # What others have claimed is known: no need to ask again for each call.
                    budget.check(limits, worst_usd)
                budget.claim(limits, account.wanted_usd, worst_usd)
                self._book()
                today = budget.today
            try:
                with self._watched():
                    self._write_day(self._relay, today)
                    self._learn(credential, limits)
            except StoreError:
                with self._changed:
                    budget.hold(limits, worst_usd)
                    return True
            with self._changed:
                if budget.covers(worst_usd):
                    budget.hold(limits, worst_usd)
                    return True
                budget.check(limits, worst_usd)
                return False

    def _learn(self, credential: str, limits: Limits) -> None:
        """Read what others have claimed of a budget, and the month's earlier days once in a while.

        The caller has the turn.
        """
        with self._changed:
            account = self._account(credential)
            today = self._today()
            is_old = self._clock.monotonic() >= account.month_read_s + config.LEDGER_MONTH_S
            # What others spent yesterday was today's until now.
            reads_month = limits.monthly is not None and (is_old or account.month_read_on != today)
        others = archive.read_spent(self._relay, today, without=self._process)
        earlier = self._spent_earlier(credential, today) if reads_month else None
        with self._changed:
            account.learned_s = self._clock.monotonic()
            if reads_month:
                account.month_read_s = account.learned_s
                account.month_read_on = today
            claimed = account.budget.claimed(today)
            account.budget.learn(limits, others.get(credential, Decimal(0)), earlier)
            if account.budget.claimed(today) != claimed:
                self._book().version += 1

    def _spent_earlier(self, credential: str, today: date) -> dict[date, Decimal]:
        """What all processes have spent on the days of this month before today."""
        stored = Archive(self._relay, today)
        earlier = {}
        for day in (today.replace(day=number) for number in range(1, today.day)):
            with self._changed:
                is_known = day in self._books
                own = self._account(credential).budget.claimed(day) if is_known else Decimal(0)
            spent = stored.day(day, without=self._process if is_known else "").spent
            amount = spent.get(credential, Decimal(0))
            earlier[day] = amount if stored.is_folded(day) else amount + own
        return earlier

    def _fold(self) -> None:
        """Fold days that are over into their months, as far as there is time for it."""
        try:
            archive.fold(self._relay, self._today())
        except StoreError as error:
            with self._changed:
                self._fold_due_s = self._clock.monotonic() + config.LEDGER_FOLD_AGAIN_S
                self._folded_on = None
            if not isinstance(error, NotOpen):
                _log.warning("past days of the usage could not be put together: %s", error)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Work with the storage, one caller at a time."""
        with self._changed:
            while self._has_turn:
                self._changed.wait()
            self._has_turn = True
        try:
            yield
        finally:
            with self._changed:
                self._has_turn = False
                self._changed.notify_all()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Leave the storage alone for a while when it fails, and say so once."""
        try:
            yield
        except NotOpen:
            raise
        except StoreError as error:
            with self._changed:
                self._failures += 1
                longest_s = config.LEDGER_PAUSE_MAX_S
                pause_s = min(longest_s, config.LEDGER_PAUSE_S * 2.0 ** min(self._failures - 1, 10))
                self._paused_until_s = self._clock.monotonic() + pause_s
                self._problem = f"Usage cannot be stored now: {error}."
            if self._failures == 1:
                _log.warning("usage cannot be stored, it is kept and tried again: %s", error)
            raise
        with self._changed:
            has_recovered = self._failures > 0
            self._failures = 0
            self._problem = ""
        if has_recovered:
            _log.warning("usage is stored again, with what was kept")

    @property
    def _is_paused(self) -> bool:
        return self._clock.monotonic() < self._paused_until_s

    @property
    def _is_dirty(self) -> bool:
        return any(book.is_dirty for book in self._books.values())

    def _today(self) -> date:
        return datetime.fromtimestamp(self._clock.wall(), UTC).date()

    def _book(self) -> _Book:
        return self._books.setdefault(self._today(), _Book())

    def _account(self, credential: str) -> _Account:
        if credential not in self._accounts:
            self._accounts[credential] = _Account(Budget(self._clock))
        return self._accounts[credential]

    def _forget_old_days(self) -> None:
        oldest = self._today() - _KEPT_DAYS
        for day in [day for day, book in self._books.items() if day < oldest and not book.is_dirty]:
            del self._books[day]


def _unread(what: str, error: StoreError) -> str:
    return f"The storage did not answer ({error}), so {what} is missing in part or as a whole."


class _Relay:
    """The storage by way of whichever invocation is open; ``NotOpen`` where none is."""

    def __init__(self, changed: Condition, opened: list[Store]) -> None:
        self._changed = changed
        self._opened = opened
        self._used: list[Store] = []

    def read(self, key: str) -> bytes | None:
        with self._any() as store:
            return store.read(key)

    def has(self, key: str) -> bool:
        with self._any() as store:
            return store.has(key)

    def write(self, key: str, value: bytes) -> None:
        with self._any() as store:
            store.write(key, value)

    def delete(self, key: str) -> None:
        with self._any() as store:
            store.delete(key)

    def wait_until_unused(self, store: Store, clock: Clock, most_s: float) -> None:
        """Return when nothing is under way on an invocation's storage, so that it may end."""
        until_s = clock.monotonic() + most_s
        with self._changed:
            while any(used is store for used in self._used):
                left_s = until_s - clock.monotonic()
                if left_s <= 0:
                    return
                self._changed.wait(left_s)

    @contextmanager
    def _any(self) -> Iterator[Store]:
        with self._changed:
            if not self._opened:
                raise NotOpen("no invocation is open")
            store = self._opened[-1]
            self._used.append(store)
        try:
            yield store
        finally:
            with self._changed:
                self._used.remove(store)
                self._changed.notify_all()


class Invocation:
    """One invocation of a node, or one user of the library: whose requests are counted where."""

    def __init__(
        self, ledger: Ledger, node: str, app: str, store: Store | None, *, lasts: bool
    ) -> None:
        self.ledger = ledger
        self._node = node
        self._app = app
        self._store = store
        self._lasts = lasts

    def __enter__(self) -> Self:
        if self._store is not None:
            self.ledger.begin(self._store)
        return self

    def __exit__(self, *_: object) -> None:
        if self._store is not None:
            self.ledger.end(self._store)

    def add(self, dimensions: Dimensions, figures: Figures) -> None:
        """Count a request that has ended just now; its node and app are those of this."""
        dimensions = dimensions._replace(node=self._node, app=self._app)
        self.ledger.add(dimensions, figures, lasts=self._lasts)

    def purse(self, credential: str, limits: Limits) -> Purse:
        """What a call of this invocation spends from."""
        return _Purse(self.ledger, credential, limits, alone=self._store is None)


@dataclass(frozen=True, slots=True)
class _Purse:
    ledger: Ledger
    credential: str
    limits: Limits
    alone: bool

    def hold(self, worst_usd: Decimal) -> None:
        self.ledger.hold(self.credential, self.limits, worst_usd, alone=self.alone)

    def settle(self, held_usd: Decimal, spent_usd: Decimal) -> None:
        self.ledger.settle(self.credential, held_usd, spent_usd)


class Ledgers:
    """The ledgers of a process by workspace, bounded in number. Safe for concurrent use."""

    def __init__(self, clock: Clock, *, most: int = config.MAX_WORKSPACES) -> None:
        self._clock = clock
        self._most = most
        self._lock = clock.lock()
        self._kept: OrderedDict[str, Ledger] = OrderedDict()

    def of(self, workspace: str, spawn: Spawn, *, formerly: str = "") -> Ledger:
        """The ledger of a workspace; the one that was idle longest may be forgotten for it.

        ``formerly`` is the name under which the workspace, or a part of it, was known while it
        could not be told from others. What was counted under that name is not lost.
        """
        with self._lock:
            former = self._kept.get(formerly) if formerly != workspace else None
            if former is not None and workspace not in self._kept:
                self._kept[workspace] = self._kept.pop(formerly)
            elif former is not None and not former.is_idle:
                # It writes what it has counted, as another process would.
                return former
            ledger = self._kept.get(workspace)
            if ledger is None:
                idle = (name for name, kept in self._kept.items() if kept.is_idle)
                if len(self._kept) >= self._most and (oldest := next(idle, None)) is not None:
                    del self._kept[oldest]
                ledger = self._kept[workspace] = Ledger(self._clock, spawn)
            self._kept.move_to_end(workspace)
            return ledger
