"""Many rows through one engine: a bounded number at a time, results in order, no row lost.

Workers, as many as rows may be in flight, each take the next row, make its prompt, ask, and put
the result down; the consumer takes the results up in the order of the rows. Results that wait for
an earlier row are bounded, in number and in bytes: beyond that no new row is begun. So a batch
takes the same memory however long it is.

*Equal rows* are asked once, unless the cache is bypassed: see ``twins``.

*Waiting is no failure.* A row that the credential's own limits, the gateway's, or budget that other
calls hold keep back goes on when there is room, as long as the batch has time; for an open breaker
it waits as long as a row may take (``row_timeout_s``, which is the gateway's time: waiting for a
turn does not count).

*Ending early.* At its deadline, after a failed row where that was asked for, or when the gateway
refuses the key or the account, a batch begins no more rows. What is not answered then is
``skipped``, and a result file of it can be handed in again.
"""

import json
from collections import Counter, deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal

from holysheep import config
from holysheep.engine import Engine
from holysheep.errors import (
    AuthError,
    BadResponse,
    BudgetExceeded,
    CircuitOpen,
    DeadlineExceeded,
    HolySheepError,
    InputError,
    LimitBeyondDeadline,
    LimiterTimeout,
    QuotaExhausted,
    RateLimited,
)
from holysheep.ledger import Invocation
from holysheep.params import BatchParams
from holysheep.ports import Clock, Spawn, give_way
from holysheep.pricing import total_cost
from holysheep.results import RowResult
from holysheep.rows import Row
from holysheep.stats import Latencies, per_minute
from holysheep.tally import Dimensions, Figures, exact_usd
from holysheep.template import Template
from holysheep.twins import Twins, twin_of
from holysheep.types import ChatRequest, JsonObject
from holysheep.wording import span

SKIPPED = "skipped"
"""The ``error_type`` of a row that was not asked."""

_INSTANT_ROW_S = 0.0002
_YIELD_EVERY = 100
"""Rows that are looked at before other calls of the process get their turn."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is. ``left_s`` is an estimate, ``None`` before there is anything to go by."""

    done: int
    total: int | None
    failed: int
    cached: int
    cost_usd: Decimal | None
    elapsed_s: float
    left_s: float | None

    def __str__(self) -> str:
        """One line for people."""
        parts = [
            f"{self.done:,} of {self.total:,} rows" if self.total else f"{self.done:,} rows",
            f"{self.failed:,} failed" if self.failed else "",
            f"{self.cached:,} cached" if self.cached else "",
            "" if self.cost_usd is None else f"{self.cost_usd.normalize():f} USD",
            f"about {span(self.left_s)} left" if self.left_s else "",
        ]
        return ", ".join(part for part in parts if part)


class Totals:
    """What the rows of a batch come to; complete when all results were taken.

    Tokens, cost, calls and latencies are those of this run: rows that were taken over from an
    earlier one (``taken_over``) have cost nothing. ``cost_usd`` is ``None`` where the cost of one
    row is unknown.
    """

    def __init__(self) -> None:
        self.succeeded = 0
        self.failed = 0
        self.skipped = 0
        self.cached = 0
        self.taken_over = 0
        self.upstream_calls = 0
        self.tokens_used = 0
        self.cost_usd: Decimal | None = Decimal(0)
        self.error_types: Counter[str] = Counter()
        self.latencies = Latencies()
        self.first_failure: HolySheepError | None = None

    @property
    def total(self) -> int:
        """All rows."""
        return self.succeeded + self.failed + self.skipped

    @property
    def status(self) -> str:
        """``ok`` if every row was answered, ``partial`` if some were, ``error`` if none was."""
        if not self.succeeded:
            return "error"
        return "ok" if self.succeeded == self.total else "partial"

    def count(self, outcome: "_Outcome") -> None:
        """Add one row."""
        result = outcome.result
        self.upstream_calls += outcome.upstream_calls
        self.taken_over += outcome.is_taken_over
        match result.status:
            case "ok":
                self.succeeded += 1
            case "error":
                self.failed += 1
                self.error_types[result.error_type] += 1
            case "skipped":
                self.skipped += 1
        if outcome.error is not None and self.first_failure is None:
            self.first_failure = outcome.error
        if outcome.is_taken_over:
            return
        self.cached += result.cached
        self.tokens_used += result.tokens_used
        self.cost_usd = total_cost((self.cost_usd, result.cost_usd))
        if result.status == "ok" and not result.cached:
            self.latencies.add(outcome.upstream_ms)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A row's result, and what of it only the totals need."""

    result: RowResult
    upstream_calls: int = 0
    upstream_ms: float = 0.0
    error: HolySheepError | None = None
    is_taken_over: bool = False
    worth_usd: Decimal | None = None

    @property
    def size_bytes(self) -> int:
        return 500 + len(self.result.response) + len(self.result.query)


@dataclass(frozen=True, slots=True)
class _Task:
    """A row that was taken, with its place in the batch."""

    position: int
    row: Row


def check_rows(
    rows: Iterable[Row],
    template: Template,
    clock: Clock,
    *,
    most: int | None = config.MAX_BATCH_ROWS,
) -> int:
    """Look at every row before the first is asked; returns how many there are.

    Raises ``InputError`` for rows that cannot be read, or where the template uses a name that no
    row has, or for more than ``most``. A name that only some rows lack is an error of those rows.
    """
    total = 0
    wanted = set(template.variables) - {"item"}
    known: dict[str, None] = {}
    is_new = False
    for row in rows:
        total += 1
        if most is not None and total > most:
            raise InputError(f"There are more than {most:,} rows. Divide them into batches.")
        is_new = is_new or row.earlier is None
        wanted.difference_update(row.columns)
        if len(known) < 100:
            known.update(dict.fromkeys(row.columns))
        if total % _YIELD_EVERY == 0:
            give_way(clock)
    if wanted and is_new:
        names = ", ".join(sorted(wanted))
        offered = ", ".join(["item", *list(known)[:20]])
        raise InputError(f"prompt_template uses {names}, which no row has. Rows have: {offered}.")
    return total


class Batch:
    """One run over ``rows``. Iterate ``results`` once; ``totals`` then has the sums.

    ``total`` is the number of rows where it is known. ``lasts_s`` replaces the parameters'
    ``deadline_s``, which is bounded by what a host allows. ``app_id`` and ``user_id`` say whose
    cached answers may be shared, where the options ask for that; ``invocation`` where its calls are
    counted. Raises ``InputError`` for a
    template that cannot be used.
    """

    def __init__(
        self,
        engine: Engine,
        params: BatchParams,
        rows: Iterable[Row],
        *,
        clock: Clock,
        spawn: Spawn,
        total: int | None = None,
        app_id: str | None = None,
        user_id: str | None = None,
        started_s: float | None = None,
        lasts_s: float | None = None,
        invocation: Invocation | None = None,
    ) -> None:
        self.totals = Totals()
        self._engine = engine
        self._params = params
        self._chat = params.chat()
        self._policy = self._chat.policy(app_id=app_id, user_id=user_id)
        self._template = Template(params.prompt_template)
        self._clock = clock
        self._spawn = spawn
        self._invocation = invocation or engine.local
        self._rows = iter(rows)
        # The one lock that is held while waiting: rows may come slowly, and one at a time.
        self._reading = clock.lock()
        self._unread: BaseException | None = None
        self._total = total
        self._started_s = clock.monotonic() if started_s is None else started_s
        self._ends_s = self._started_s + (params.deadline_s if lasts_s is None else lasts_s)
        self._left_s: float | None = None

        self._changed = clock.condition()
        self._again: deque[_Task] = deque()
        self._open: dict[int, Row] = {}
        self._ended: dict[int, _Outcome] = {}
        self._ended_bytes = 0
        self._taken = 0
        self._position = 0
        self._working = 0
        self._is_exhausted = False
        self._is_stopped = False
        self._bug: BaseException | None = None

        # Apart from the above, because those who wait for it must not wake at every result.
        self._stopping = clock.condition()
        self._stop_reason = ""

    @property
    def in_flight(self) -> int:
        """Rows that may be in flight at once: never more than the credential allows."""
        allowed = min(self._params.concurrency, self._engine.settings.max_concurrency)
        return allowed if self._total is None else max(1, min(allowed, self._total))

    @property
    def elapsed_s(self) -> float:
        """Seconds since the batch was begun, until its end."""
        until_s = self._clock.monotonic() if self._left_s is None else self._left_s
        return until_s - self._started_s

    @property
    def throughput_rpm(self) -> float:
        """Rows that were answered per minute, those taken over apart."""
        return per_minute(self.totals.succeeded - self.totals.taken_over, self.elapsed_s)

    @property
    def is_stopped(self) -> bool:
        """Whether ``stop`` was called."""
        return self._is_stopped

    def stop(self, reason: str) -> None:
        """Begin no more rows, and wait for none: what is not answered is skipped."""
        self._is_stopped = True
        self._ends_s = self._clock.monotonic() - config.DEADLINE_GRACE_S
        self._halt(reason)

    def results(
        self, *, progress_s: float | None = None
    ) -> Generator[RowResult | Progress, None, None]:
        """The rows' results in order, with ``Progress`` between them.

        Progress is told every ``progress_s`` seconds at most: when rows have ended since, and
        otherwise every tenth time. Leaving early ends the batch. Raises ``InputError`` where a row
        cannot be read.
        """
        interval_s = float("inf") if progress_s is None else progress_s
        due_s = self._clock.monotonic() + interval_s
        told = -1
        silences = 0
        self._twins: Twins[_Task] = Twins(self._clock)
        with self._changed:
            self._working = self.in_flight
        for _ in range(self.in_flight):
            self._spawn(self._work)
        try:
            while True:
                outcome = self._next_outcome(due_s)
                if outcome is not None:
                    self.totals.count(outcome)
                    yield outcome.result
                elif self._is_done():
                    if self._unread is not None:
                        raise self._unread
                    return
                if self._clock.monotonic() >= due_s:
                    due_s = self._clock.monotonic() + interval_s
                    silences += 1
                    if self.totals.total != told or silences == 10:
                        told, silences = self.totals.total, 0
                        yield self.progress()
        finally:
            self._left_s = self._clock.monotonic()
            self._halt("The batch was left.")
            self._twins.close()

    def raise_if_nothing_was_answered(self) -> None:
        """Raise the first row's failure, told as that of the batch, if there is no answer."""
        totals = self.totals
        if totals.succeeded:
            return
        counts = ", ".join(
            f"{count:,} {what}"
            for count, what in ((totals.failed, "failed"), (totals.skipped, "skipped"))
            if count
        )
        if totals.first_failure is None:
            raise DeadlineExceeded(
                f"No row was answered ({counts}): the deadline of the batch came first. Raise"
                " deadline_s."
            )
        first = totals.first_failure
        raise first.copy(f"No row was answered ({counts}). The first failure: {first.message}")

    def progress(self) -> Progress:
        """How far it is now."""
        totals, elapsed_s = self.totals, self.elapsed_s
        fresh = totals.total - totals.taken_over
        left = None if self._total is None else self._total - totals.total
        return Progress(
            done=totals.total,
            total=self._total,
            failed=totals.failed,
            cached=totals.cached,
            cost_usd=totals.cost_usd,
            elapsed_s=elapsed_s,
            left_s=None if left is None or not fresh else elapsed_s / fresh * left,
        )

    # --- the consumer's side ---

    def _is_done(self) -> bool:
        with self._changed:
            return self._is_exhausted and not self._open and not self._ended

    def _next_outcome(self, due_s: float) -> _Outcome | None:
        """The outcome of the next row; ``None`` when it is not there at ``due_s``, or never."""
        while True:
            with self._changed:
                if self._bug is not None:
                    raise self._bug
                outcome = self._ended.pop(self._position, None)
                if outcome is not None:
                    self._ended_bytes -= outcome.size_bytes
                    self._position += 1
                    self._changed.notify_all()
                    return outcome
                now = self._clock.monotonic()
                if not self._is_over():
                    if now >= due_s or (self._is_exhausted and not self._open):
                        return None
                    self._changed.wait(min(due_s, self._patience_ends_s) - now)
                    continue
            outcome = self._left_over()
            if outcome is not None or self._is_done():
                return outcome

    @property
    def _patience_ends_s(self) -> float:
        """When those who work have had time enough to notice the deadline."""
        return self._ends_s + config.DEADLINE_GRACE_S

    def _is_over(self) -> bool:
        """Whether nobody will bring the next outcome any more."""
        return not self._working or self._clock.monotonic() >= self._patience_ends_s

    def _left_over(self) -> _Outcome | None:
        """What becomes of the next row now that nobody works any more; ``None`` = there is none."""
        while True:
            with self._changed:
                row = self._open.pop(self._position, None)
                if row is not None:
                    self._position += 1
                    return _taken_over(row) or self._skipped(row)
                # A worker that was late may have brought it at the last moment.
                if self._position in self._ended or self._is_exhausted:
                    return None
            self._take_row()

    # --- the workers' side ---

    def _work(self) -> None:
        try:
            while (task := self._take()) is not None:
                outcome = self._answer(task)
                if outcome is not None:
                    self._put(task, outcome)
                is_instant = outcome is not None and not outcome.upstream_calls
                # Rows that need no waiting would keep everybody else of the process from running:
                # of those all workers together make 5,000 a second at most.
                self._clock.sleep(self.in_flight * _INSTANT_ROW_S if is_instant else 0)
        except BaseException as error:  # noqa: BLE001 - raised again where the consumer is
            with self._changed:
                self._bug = self._bug or error
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def _take(self) -> _Task | None:
        """The next row to work on; ``None`` when there is nothing more to do."""
        while True:
            with self._changed:
                if self._stop_reason or self._is_late():
                    return None
                if self._again:
                    return self._again.popleft()
                if self._is_exhausted and not self._open:
                    return None
                # What waits for its twin may come back to be asked itself.
                if self._is_exhausted or not self._has_room():
                    self._changed.wait(self._ends_s - self._clock.monotonic())
                    continue
            task = self._take_row()
            if task is not None:
                return task

    def _take_row(self) -> _Task | None:
        """Read the next row, one caller at a time; ``None`` = there is none.

        Apart from the lock of everything else: rows may come slowly, and results meanwhile.
        """
        with self._reading:
            if self._is_exhausted:
                return None
            row = None
            try:
                row = next(self._rows, None)
            except BaseException as error:  # noqa: BLE001 - raised again behind the rows before it
                self._unread = error
            with self._changed:
                if row is None:
                    self._is_exhausted = True
                    self._changed.notify_all()
                    return None
                task = _Task(self._taken, row)
                self._taken += 1
                self._open[task.position] = row
                return task

    def _has_room(self) -> bool:
        ahead = self._taken - self._position
        return ahead < config.BATCH_AHEAD_ROWS and self._ended_bytes < config.BATCH_AHEAD_BYTES

    def _is_late(self) -> bool:
        return self._clock.monotonic() >= self._ends_s

    def _put(self, task: _Task, outcome: _Outcome) -> None:
        with self._changed:
            # The consumer does not wait for ever; what comes too late was skipped.
            if self._open.pop(task.position, None) is not None:
                self._ended[task.position] = outcome
                self._ended_bytes += outcome.size_bytes
                self._changed.notify_all()

    def _answer(self, task: _Task) -> _Outcome | None:
        """What becomes of a row; ``None`` while its twin is being asked."""
        row = task.row
        taken_over = _taken_over(row)
        if taken_over is not None:
            return taken_over
        try:
            prompt = self._prompt(row)
        except InputError as error:
            return self._failed(RowResult(row.index, "error", _shown(row)), error)
        request = self._chat.request(self._messages(prompt))
        if self._policy.cache == "bypass":
            return self._ask(row, prompt, request)
        key = request.digest()
        twin = self._twins.claim(key, task)
        if twin == "wait":
            return None
        if isinstance(twin, RowResult):
            self._count_twin(twin)
            return _Outcome(twin_of(twin, index=row.index, query=prompt))
        outcome = self._ask(row, prompt, request)
        self._settle(key, outcome)
        return outcome

    def _settle(self, key: bytes, outcome: _Outcome) -> None:
        """Give the twins of a row that was asked its result, or their own turn."""
        is_final = outcome.error is not None and not _may_pass(outcome.error)
        asked = replace(outcome.result, cost_usd=outcome.worth_usd)
        twins = self._twins.settle(key, asked, is_final=is_final)
        with self._changed:
            # They find the result where it was put, or one of them asks.
            self._again.extend(twins)
            self._changed.notify_all()

    def _count_twin(self, asked: RowResult) -> None:
        """Enter a row that shared the answer of another in the ledger, as a call that did."""
        model = self._params.model
        self._invocation.add(
            Dimensions(
                credential=self._engine.settings.fingerprint,
                asked=model,
                served=asked.model or model,
                status="ok" if asked.status == "ok" else asked.error_type,
                cache="coalesced",
            ),
            Figures(requests=1, saved_usd=exact_usd(asked.cost_usd), classes={0: 1}),
        )

    def _prompt(self, row: Row) -> str:
        if row.earlier is not None:
            prompt = str(row.item)
        else:
            prompt = self._template.render({"item": row.item, **row.columns})
        if not prompt.strip():
            raise InputError("The prompt of this row is empty.")
        return prompt

    def _messages(self, prompt: str) -> list[JsonObject]:
        system = self._params.system_prompt
        first: list[JsonObject] = [{"role": "system", "content": system}] if system else []
        return [*first, {"role": "user", "content": prompt}]

    def _ask(self, row: Row, prompt: str, request: ChatRequest) -> _Outcome:
        """Ask until there is an answer, a failure, or no more time."""
        blank = RowResult(row.index, "error", prompt)
        calls = 0
        shut_since_s: float | None = None
        waited_for: HolySheepError | None = None
        while not self._stop_reason and not self._is_late():
            answer = self._engine.ask(
                request,
                self._policy,
                timeout_s=self._ends_s - self._clock.monotonic(),
                active_s=self._params.row_timeout_s,
                invocation=self._invocation,
            )
            try:
                result = answer.wait()
            except HolySheepError as error:
                calls += error.attempts
                if self._is_late():
                    break
                now = self._clock.monotonic()
                if isinstance(error, CircuitOpen):
                    shut_since_s = now if shut_since_s is None else shut_since_s
                wait_s = error.retry_after_s or config.BATCH_PATIENCE_S
                if not self._is_worth_waiting(error, now + wait_s, shut_since_s):
                    return self._failed(blank, error, calls)
                waited_for = error
                if now + wait_s >= self._ends_s or not self._waited(wait_s):
                    break
            else:
                calls += result.meta.attempts
                if len(result.text) > config.MAX_ROW_CHARS:
                    return self._failed(blank, _too_large(), calls)
                answered = replace(
                    blank,
                    status="ok",
                    response=result.text,
                    model=result.model_used,
                    latency_ms=result.latency_ms,
                    tokens_used=result.tokens_used,
                    cost_usd=result.cost_usd,
                    cached=result.cached,
                )
                worth = result.usage.saved_usd if result.cached else result.cost_usd
                return _Outcome(answered, calls, result.meta.upstream_ms, worth_usd=worth)
        why = waited_for.message if waited_for is not None and not self._stop_reason else ""
        return replace(self._skipped(row, prompt, why), upstream_calls=calls, error=waited_for)

    def _is_worth_waiting(
        self, error: HolySheepError, until_s: float, shut_since_s: float | None
    ) -> bool:
        """Whether a row is to be asked again at ``until_s``, rather than to fail."""
        match error:
            case LimiterTimeout() | LimitBeyondDeadline() | RateLimited():
                return True
            case BudgetExceeded(may_pass=may_pass):
                return may_pass
            case CircuitOpen():
                patience_s = self._params.row_timeout_s
                return shut_since_s is not None and until_s <= shut_since_s + patience_s
            case _:
                return False

    def _waited(self, seconds: float) -> bool:
        """Wait; False if the batch ends meanwhile."""
        until_s = self._clock.monotonic() + seconds
        with self._stopping:
            while not self._stop_reason:
                left_s = until_s - self._clock.monotonic()
                if left_s <= 0:
                    return True
                self._stopping.wait(left_s)
            return False

    def _failed(self, blank: RowResult, error: HolySheepError, calls: int = 0) -> _Outcome:
        """A row's failure, and what it means for the others."""
        if isinstance(error, AuthError | QuotaExhausted):
            self._halt(f"The gateway refused an earlier row: {error.message}")
        elif self._params.on_row_error == "stop":
            self._halt(f"Row {blank.index} failed, and on_row_error is stop.")
        result = replace(blank, error=error.message, error_type=error.error_type)
        if error.unusable is not None:
            result = replace(
                result,
                tokens_used=error.unusable.total_usage.total_tokens,
                cost_usd=self._engine.cost(error.unusable),
            )
        return _Outcome(result, calls, error=error)

    def _skipped(self, row: Row, prompt: str | None = None, why: str = "") -> _Outcome:
        reason = why or self._stop_reason or "The deadline of the batch came first."
        if prompt is None:
            try:
                prompt = self._prompt(row)
            except InputError:
                prompt = _shown(row)
        return _Outcome(RowResult(row.index, "skipped", prompt, error=reason, error_type=SKIPPED))

    def _halt(self, reason: str) -> None:
        with self._stopping:
            self._stop_reason = self._stop_reason or reason
            self._stopping.notify_all()
        with self._changed:
            self._changed.notify_all()


def _taken_over(row: Row) -> _Outcome | None:
    """What an earlier run has found out about a row, unless it is to be asked again."""
    earlier = row.earlier
    if earlier is None or not (
        earlier.status == "ok" or earlier.error_type == InputError.error_type
    ):
        return None
    # A row without a prompt has none now either.
    return _Outcome(replace(earlier, index=row.index), is_taken_over=True)


def _may_pass(error: HolySheepError) -> bool:
    """Whether an equal row may be answered where this one was not."""
    return error.retryable or isinstance(error, CircuitOpen | BudgetExceeded)


def _too_large() -> BadResponse:
    return BadResponse(
        f"The answer is larger than {config.MAX_ROW_CHARS:,} characters. Lower max_tokens."
    )


def _shown(row: Row) -> str:
    """A row whose prompt cannot be made, as the user gave it."""
    return row.item if isinstance(row.item, str) else json.dumps(row.item, ensure_ascii=False)
