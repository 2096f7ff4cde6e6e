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
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from decimal import Decimal
from functools import partial
from typing import Self

from holysheep import archive, config
from holysheep.archive import Archive, DayDoc
from holysheep.budget import Budget, Limits, Period
from holysheep.ports import Clock, Spawn, give_way, utc_day
from holysheep.relay import Relay
from holysheep.shared.link import Away
from holysheep.shared.spending import SharedSpending
from holysheep.store import NotOpen, Store, StoreError
from holysheep.tally import Dimensions, Figures, Tally
from holysheep.types import Purse

_log = logging.getLogger(__name__)
_ENTER_TIMES = 20
_ENTER_PAUSE_S = 0.01
_AT_A_TIME = 8
_KEPT_DAYS = timedelta(days=4)
"""So long a process remembers what it has counted: until the day is folded, and longer."""


@dataclass(slots=True)
class _Book:
    """What this process has counted on one day. ``version`` grows with each change.

    ``unwritten`` is the part of it that the storage does not have. ``began_s`` is when it was first
    entered in the day's index, ``entered_s`` when it was last seen there.
    """

    tally: Tally = field(default_factory=Tally)
    unwritten: Tally = field(default_factory=Tally)
    version: int = 0
    written: int = 0
    began_s: float | None = None
    entered_s: float = float("-inf")

    @property
    def is_dirty(self) -> bool:
        return self.version != self.written

    def add(self, dimensions: Dimensions, figures: Figures) -> None:
        self.tally.add(dimensions, figures)
        self.unwritten.add(dimensions, figures)
        if len(self.tally) > 2 * config.LEDGER_PROCESS_ROWS:
            self.tally = self.tally.bounded(config.LEDGER_PROCESS_ROWS)
            self.unwritten = self.unwritten.bounded(config.LEDGER_PROCESS_ROWS)
        self.version += 1

    def must_enter(self, now_s: float) -> bool:
        """Whether to look for it in the index: often while others may be entering too."""
        if self.began_s is None:
            return True
        is_new = now_s < self.began_s + config.LEDGER_ENTER_S
        pause_s = config.LEDGER_WRITE_S if is_new else config.LEDGER_ENTER_S
        return now_s >= self.entered_s + pause_s


@dataclass(slots=True)
class _Account:
    """A credential's budget, what its calls are waiting for, and the claims that were made."""

    budget: Budget
    wanted_usd: Decimal = Decimal(0)
    asked_usd: Decimal | None = None
    claims: int = 0
    is_claiming: bool = False
    has_failed: bool = False
    spending: SharedSpending | None = None
    record: str = ""
    told: tuple[date, Decimal, Decimal] | None = None
    is_telling: bool = False
    learned_s: float = float("-inf")
    month_read_s: float = float("-inf")
    month_read_on: date | None = None

    @property
    def is_new(self) -> bool:
        return self.learned_s == float("-inf")


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
        self._relay = Relay(self._changed, self._open, clock)
        self._has_turn = False
        self._is_keeping = False
        self._folded_on: date | None = None
        self._written_s = float("-inf")
        self._write_took_s = 0.0
        self._failures = 0
        self._paused_until_s = float("-inf")
        self._problem = ""
        self._damage = ""

    @property
    def is_idle(self) -> bool:
        """Whether forgetting this ledger would lose nothing."""
        with self._changed:
            budgets = [account.budget for account in self._accounts.values()]
            if self._is_stored:
                is_idle = not self._is_dirty and not any(budget.is_held for budget in budgets)
            else:
                is_idle = all(budget.is_idle for budget in budgets)
            return is_idle and not self._open and not self._has_turn

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
            self._changed.notify_all()
            is_due = self._folded_on != today and not self._is_paused
            if is_due:
                self._folded_on = today
        if is_due:
            self._spawn(self._fold)

    def end(self, store: Store, *, has_failed: bool = False) -> None:
        """An invocation is about to end: if it is the last one, write what is not written.

        Of one that ``has_failed`` the host hears afterwards; it does not wait for a slow storage.
        """
        with self._changed:
            self._open.remove(store)
            is_last = not self._open
            hurries = has_failed and self._write_took_s > config.LEDGER_HURRY_S
            if not is_last:
                self._keep()
        if is_last and not hurries:
            self._write(store)
        self._relay.wait_until_unused(store, config.STORE_TIMEOUT_S)

    # --- counting ---

    def add(self, dimensions: Dimensions, figures: Figures, *, lasts: bool = False) -> None:
        """Count a request that has ended just now."""
        with self._changed:
            self._book().add(dimensions, figures)
            if lasts:
                self._keep()

    def settle(self, credential: str, held_usd: Decimal, spent_usd: Decimal) -> None:
        """Replace what was held by what was spent."""
        with self._changed:
            account = self._account(credential)
            account.budget.settle(held_usd, spent_usd)
            self._book().version += 1
            self._tell_soon(account)

    def hold(
        self,
        credential: str,
        limits: Limits,
        worst_usd: Decimal,
        *,
        alone: bool,
        spending: SharedSpending | None = None,
        until_s: float = float("inf"),
    ) -> None:
        """Set ``worst_usd`` aside. Raises ``BudgetExceeded`` if a limit has no room for it.

        ``alone`` says that nothing is stored; ``spending`` is what processes share all the same.
        ``until_s`` (monotonic) is when the call must have ended: it waits half of its time at most
        for the storage to say what others have spent, and then goes by what is known.
        """
        with self._changed:
            account = self._account(credential)
            account.spending = spending
            is_alone = alone and (spending is None or not spending.is_up)
            if is_alone or self._may_hold(account, limits, worst_usd):
                account.budget.hold(limits, worst_usd)
                return
            account.wanted_usd += worst_usd
            patience_s = self._patience_s(account, until_s)
            until_s = self._clock.monotonic() + patience_s
        try:
            while not self._is_held(account, credential, limits, worst_usd, until_s):
                pass
        finally:
            with self._changed:
                account.wanted_usd -= worst_usd

    def _patience_s(self, account: _Account, until_s: float) -> float:
        """How long a call may wait for a claim: longer where nothing is known yet."""
        longest_s = config.LEDGER_FIRST_CLAIM_S if account.is_new else config.LEDGER_CLAIM_S
        return min(longest_s, max(0.0, (until_s - self._clock.monotonic()) / 2))

    def _is_held(
        self,
        account: _Account,
        credential: str,
        limits: Limits,
        worst_usd: Decimal,
        until_s: float,
    ) -> bool:
        """Hold after a claim of this process has ended; False = it was for others.

        Raises ``BudgetExceeded``.
        """
        with self._changed:
            if self._may_hold(account, limits, worst_usd):
                account.budget.hold(limits, worst_usd)
                return True
            if self._clock.monotonic() < account.learned_s + config.LEDGER_WRITE_S:
                # What others have claimed is known: no need to ask again for each call.
                account.budget.check(limits, worst_usd)
            begins = not account.is_claiming
            account.is_claiming = True
            number = account.claims
        if begins:
            self._spawn(partial(self._claim, account, credential, limits, worst_usd))
        with self._changed:
            while account.claims == number:
                left_s = until_s - self._clock.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            is_over = account.claims != number and self._clock.monotonic() < until_s
            if not is_over or account.has_failed or self._may_hold(account, limits, worst_usd):
                account.budget.hold(limits, worst_usd)
                return True
            account.budget.check(limits, worst_usd)
            if begins:
                # Others have claimed more than is known, and may soon need it no more.
                self._changed.wait(config.LEDGER_AGAIN_S)
            return False

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
            return f"{told} {self._damage}".strip()

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
            give_way(self._clock)
        return Past(found, tuple(missing))

    def refresh(self, credential: str, limits: Limits) -> str:
        """Read what others have spent from a budget; a sentence if that cannot be read."""
        if not self._is_stored:
            return ""
        try:
            with self._turn():
                self._learn(credential, limits, with_month=True)
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
                if self._is_paused:
                    return
                self._release()
                self._move_late_books()
                dirty = [day for day, book in self._books.items() if book.is_dirty]
            try:
                with self._watched():
                    for day in dirty:
                        self._write_day(store, day)
            except StoreError:
                pass

    def _release(self) -> None:
        """Give back what is claimed and not needed; the caller holds the lock."""
        for account in self._accounts.values():
            if account.wanted_usd:
                continue
            budget = account.budget
            before = {day: budget.most(day) for day in self._books}
            budget.release()
            for day, most in before.items():
                if budget.most(day) != most:
                    self._books[day].version += 1

    def _move_late_books(self) -> None:
        """What could not be written of a day that is folded by now is counted as today's."""
        frozen = [day for day in self._books if day <= self._today() - archive.FROZEN_AFTER]
        for day in frozen:
            if self._books[day].is_dirty:
                for dimensions, figures in self._books.pop(day).unwritten:
                    self._book().add(dimensions, figures)

    def _write_day(self, store: Store, day: date, *, checks: bool = False) -> None:
        """Write a day; with ``checks`` see to it that it can be read."""
        began_s = self._clock.monotonic()
        with self._changed:
            book = self._books[day]
            version = book.version
            doc = self._doc(day, book)
            taken, book.unwritten = book.unwritten, Tally()
            is_new = book.began_s is None
            must_enter = book.must_enter(began_s)
            self._written_s = began_s
        try:
            archive.write_day(store, day, self._process, doc, checks=checks)
            if is_new:
                archive.begin(store, day)
            if must_enter:
                self._enter(store, day)
        except StoreError:
            with self._changed:
                taken += book.unwritten
                book.unwritten = taken
            raise
        with self._changed:
            now_s = self._clock.monotonic()
            self._write_took_s = now_s - began_s
            book.written = version
            if must_enter:
                book.entered_s = now_s
                book.began_s = now_s if book.began_s is None else book.began_s
            self._forget_old_days()

    def _enter(self, store: Store, day: date) -> None:
        """Make sure that the day's index names this process.

        Of those that enter at the same moment the last to write undoes the others. After twice the
        time that reading and writing take, most of those that had read before have written too; a
        slower one is found out at one of the next writes, or claims.
        """
        for _ in range(_ENTER_TIMES):
            began_s = self._clock.monotonic()
            if not archive.enter(store, day, self._process):
                return
            took_s = self._clock.monotonic() - began_s
            self._clock.sleep(2 * took_s + _ENTER_PAUSE_S)

    def _doc(self, day: date, book: _Book) -> DayDoc:
        """A day as it is to be stored; the caller holds the lock."""
        doc = DayDoc(Tally(book.tally).bounded(config.LEDGER_PROCESS_ROWS))
        for name, account in self._accounts.items():
            if spent := account.budget.spent(day):
                doc.spent[name] = spent
            asked = account.asked_usd if day == self._today() else None
            if most := asked or account.budget.most(day):
                doc.claimed[name] = most
        return doc

    def _may_hold(self, account: _Account, limits: Limits, worst_usd: Decimal) -> bool:
        """Whether a call need not claim anything first; the caller holds the lock."""
        if self._is_paused and (account.spending is None or not account.spending.is_up):
            return True
        knows_month = limits.monthly is None or account.month_read_on == self._today()
        return knows_month and account.budget.covers(worst_usd)

    def _claim(
        self, account: _Account, credential: str, limits: Limits, worst_usd: Decimal
    ) -> None:
        """Claim what calls are waiting for, and read what others have claimed."""
        has_failed = True
        try:
            if account.spending is not None:
                with suppress(Away):
                    self._claim_shared(account, account.spending, credential, limits, worst_usd)
                    has_failed = False
                    return
            with self._turn():
                with self._changed:
                    self._release()
                    account.asked_usd = account.budget.to_claim(
                        limits, account.wanted_usd, worst_usd
                    )
                    self._book().version += 1
                    today = self._today()
                with suppress(StoreError), self._watched():
                    self._write_day(self._relay, today, checks=True)
                    self._learn(credential, limits, with_month=limits.monthly is not None)
                    has_failed = False
        finally:
            account.asked_usd = None
            self._end_claim(account, has_failed=has_failed)

    def _end_claim(self, account: _Account, *, has_failed: bool) -> None:
        """Tell those who wait for it that a claim has ended."""
        with self._changed:
            account.is_claiming = False
            account.has_failed = has_failed
            account.claims += 1
            self._changed.notify_all()

    def _claim_shared(
        self,
        account: _Account,
        spending: SharedSpending,
        credential: str,
        limits: Limits,
        worst_usd: Decimal,
    ) -> None:
        """Claim what calls are waiting for from what all processes share. Raises ``Away``."""
        today = self._today()
        budget = account.budget
        earlier: dict[date, Decimal] | None = None
        with self._changed:
            reads_month = limits.monthly is not None and self._must_read_month(account, today)
        if reads_month:
            earlier = self._spent_earlier_by_all(spending, credential, today)
        with self._changed:
            if earlier is not None:
                budget.learn_month(earlier)
                account.month_read_s = self._clock.monotonic()
                account.month_read_on = today
            # What was granted before stays granted, and calls may hold it in the meantime.
            granted = max(budget.in_use, budget.most(today))
            needed = budget.in_use + worst_usd
            wanted = budget.to_claim(limits, account.wanted_usd, worst_usd)
            spent, of_today = budget.spent(today), budget.of_today(limits)
        for _ in range(2):
            claim = spending.claim(
                today,
                self._process,
                spent=spent,
                in_use=granted,
                needed=needed,
                wanted=wanted,
                limits=of_today,
            )
            if claim.record == account.record:
                break
            # A new day, or Redis has lost all: what the workspace's storage knows is said again.
            spending.tell(today, self._known_of_others(credential, today))
            account.record = claim.record
        with self._changed:
            account.learned_s = self._clock.monotonic()
            budget.granted(claim.granted)
            budget.learn(limits, (claim.spent, claim.claimed))
            account.told = (today, spent, claim.granted)
            self._book().version += 1
            self._tell_soon(account)

    def _known_of_others(self, credential: str, today: date) -> list[tuple[str, Decimal, Decimal]]:
        """What the storage knows of a budget, by process; nothing where it does not answer."""
        if not self._is_stored:
            return []
        try:
            found = archive.read_claims(self._relay, today, self._process, credential, self._each)
        except StoreError:
            return []
        return [(name, spent, most) for name, (spent, most) in found.items()]

    def _spent_earlier_by_all(
        self, spending: SharedSpending, credential: str, today: date
    ) -> dict[date, Decimal]:
        """What was spent on the days of this month before today, whoever knows more of it."""
        days = [today.replace(day=number) for number in range(1, today.day)]
        stored: dict[date, Decimal] = {}
        if self._is_stored:
            with suppress(StoreError):
                stored, _ = self._spent_earlier(credential, today)
        return {day: max(spending.spent(day), stored.get(day, Decimal(0))) for day in days}

    def _tell_soon(self, account: _Account) -> None:
        """Have others hear what is spent and not claimed any more; the caller holds the lock."""
        if account.spending is not None and not account.is_telling:
            account.is_telling = True
            self._spawn(partial(self._tell_regularly, account))

    def _tell_regularly(self, account: _Account) -> None:
        """Say it about once a second, until there is nothing new to say."""
        while True:
            self._clock.sleep(config.LEDGER_WRITE_S)
            with self._changed:
                today, budget = self._today(), account.budget
                if not account.wanted_usd:
                    self._release()
                now = (today, budget.spent(today), budget.most(today))
                spending = account.spending
                is_all = account.told == now and not budget.is_held
                if spending is None or spending.is_over or is_all:
                    account.is_telling = False
                    return
                if account.told == now or account.is_claiming or not spending.is_up:
                    # Kept until Redis is there again: it is a sum, so it may be said at any time.
                    continue
                # Not beside a claim: what arrives later would undo what is granted.
                account.is_claiming = True
            _, spent, most = now
            try:
                with suppress(Away):
                    spending.claim(
                        today, self._process, spent=spent, in_use=most, needed=most, wanted=most
                    )
                    account.told = now
            finally:
                self._end_claim(account, has_failed=False)

    def _must_read_month(self, account: _Account, today: date) -> bool:
        """Whether what was spent on the month's earlier days is to be read again.

        What others spent yesterday was today's until now. The caller holds the lock.
        """
        is_old = self._clock.monotonic() >= account.month_read_s + config.LEDGER_MONTH_S
        is_early = self._clock.wall() % 86_400 < config.LEDGER_CLOCKS_S
        return is_old or is_early or account.month_read_on != today

    def _learn(self, credential: str, limits: Limits, *, with_month: bool) -> None:
        """Read what others have claimed of a budget, and the month's earlier days once in a while.

        ``with_month`` says that those matter. The caller has the turn.
        """
        with self._changed:
            account = self._account(credential)
            today = self._today()
            reads_month = with_month and self._must_read_month(account, today)
        others, is_found = archive.read_budgets(self._relay, today, self._process, self._each)
        if not is_found and today in self._books:
            # Somebody who was slow has undone it, and does not see what is claimed here.
            self._enter(self._relay, today)
            others, _ = archive.read_budgets(self._relay, today, self._process, self._each)
        earlier, damaged = None, others.damaged
        if reads_month:
            earlier, damaged_earlier = self._spent_earlier(credential, today)
            damaged += damaged_earlier
        with self._changed:
            account.learned_s = self._clock.monotonic()
            if reads_month:
                account.month_read_s = account.learned_s
                account.month_read_on = today
            self._tell_damage(damaged)
            if account.asked_usd is not None:
                account.budget.granted(account.asked_usd)
            claimed = account.budget.most(today)
            spent = others.spent.get(credential, Decimal(0))
            most = others.claimed.get(credential, Decimal(0))
            account.budget.learn(limits, (spent, most), earlier)
            if account.budget.most(today) != claimed:
                self._book().version += 1

    def _spent_earlier(self, credential: str, today: date) -> tuple[dict[date, Decimal], int]:
        """What all processes have spent on the days of this month before today.

        Also how many stored values could not be read.
        """
        stored = Archive(self._relay, today)
        earlier: dict[date, Decimal] = {}
        damaged = 0
        for day in (today.replace(day=number) for number in range(1, today.day)):
            with self._changed:
                is_known = day in self._books
                own = self._account(credential).budget.most(day) if is_known else Decimal(0)
            doc = stored.day(day, without=self._process if is_known else "")
            amount = doc.claimed.get(credential, Decimal(0))
            earlier[day] = amount if stored.is_folded(day) else amount + own
            damaged += doc.damaged
        return earlier, damaged

    def _tell_damage(self, damaged: int) -> None:
        """Say so, once, when a part of what others have spent cannot be read."""
        told = "What others have spent cannot be read in part: a stored value is damaged."
        if damaged and not self._damage:
            _log.warning("the budget is not complete: %s", told)
        self._damage = told if damaged else ""

    def _each[Item, Found](
        self, work: Callable[[Item], Found], items: Iterable[Item]
    ) -> list[Found]:
        """Do the same with many items, several at a time: each waits for the storage."""
        waiting = deque(enumerate(items))
        found: dict[int, Found] = {}
        failures: list[StoreError] = []
        working = min(len(waiting), _AT_A_TIME)
        ended = 0

        def take_some() -> None:
            nonlocal ended
            try:
                while not failures:
                    with self._changed:
                        if not waiting:
                            break
                        number, item = waiting.popleft()
                    found[number] = work(item)
            except StoreError as error:
                failures.append(error)
            finally:
                with self._changed:
                    ended += 1
                    self._changed.notify_all()

        for _ in range(working - 1):
            self._spawn(take_some)
        if working:
            take_some()
        with self._changed:
            while ended < working:
                self._changed.wait()
        if failures:
            raise failures[0]
        return [found[number] for number in sorted(found)]

    def _fold(self) -> None:
        """Fold days that are over into their months; goes on with the next call if one ends."""
        patient = replace(self._relay, patience_s=config.LEDGER_FOLD_PATIENCE_S)
        try:
            with self._watched():
                archive.fold(patient, self._today())
        except StoreError:
            with self._changed:
                self._folded_on = None
        except Exception:
            _log.exception("past days of the usage could not be put together")
            raise

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
        return utc_day(self._clock)

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

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._store is not None:
            self.ledger.end(self._store, has_failed=kind is not None)

    def add(self, dimensions: Dimensions, figures: Figures) -> None:
        """Count a request that has ended just now; its node and app are those of this."""
        dimensions = dimensions._replace(node=self._node, app=self._app)
        self.ledger.add(dimensions, figures, lasts=self._lasts)

    def purse(
        self, credential: str, limits: Limits, spending: SharedSpending | None = None
    ) -> Purse:
        """What a call of this invocation spends from; ``spending`` is what all processes share."""
        return _Purse(self.ledger, credential, limits, spending, alone=self._store is None)


@dataclass(frozen=True, slots=True)
class _Purse:
    ledger: Ledger
    credential: str
    limits: Limits
    spending: SharedSpending | None
    alone: bool

    def hold(self, worst_usd: Decimal, until_s: float = float("inf")) -> None:
        self.ledger.hold(
            self.credential,
            self.limits,
            worst_usd,
            alone=self.alone,
            spending=self.spending,
            until_s=until_s,
        )

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
