"""The same question again and again: how fast a model answers a credential, as it is now.

Every time is a call of its own: nothing comes from the cache, nothing is tried a second time, and
none is left out as a warm-up. Latencies are those of the gateway: from the request being sent to
the last byte of its answer, without the time that a call waited for the credential's own limits
(``waited_s`` tells how long those made the benchmark).
"""

from collections import Counter
from collections.abc import Iterator
from decimal import Decimal

from holysheep import config
from holysheep.engine import Engine
from holysheep.errors import (
    DeadlineExceeded,
    HolySheepError,
    LimitBeyondDeadline,
    LimiterTimeout,
)
from holysheep.ledger import Invocation
from holysheep.params import BenchmarkParams
from holysheep.ports import Clock, Spawn
from holysheep.pricing import total_cost
from holysheep.result import ChatResult
from holysheep.stats import Latencies, per_minute


class Benchmark:
    """One run. Iterate it for the number of calls that have ended, as it grows.

    It ends at ``deadline_s``; what is not finished then is not counted. ``cost_usd`` is ``None``
    where the model has no known price.
    """

    def __init__(
        self,
        engine: Engine,
        params: BenchmarkParams,
        *,
        clock: Clock,
        spawn: Spawn,
        started_s: float | None = None,
        invocation: Invocation | None = None,
    ) -> None:
        self.latencies = Latencies()
        self.first_tokens = Latencies()
        self.errors: Counter[str] = Counter()
        self.first_failure: HolySheepError | None = None
        self.tokens_used = 0
        self.cost_usd: Decimal | None = Decimal(0)
        self.waited_s = 0.0
        self.model_used = params.model
        self.elapsed_s = 0.0
        self._engine = engine
        self._params = params
        self._chat = params.chat()
        self._clock = clock
        self._spawn = spawn
        self._invocation = invocation or engine.local
        self._started_s = clock.monotonic() if started_s is None else started_s
        self._ends_s = self._started_s + params.deadline_s
        self._changed = clock.condition()
        self._left = params.iterations
        self._working = 0
        self._is_over = False
        self._bug: BaseException | None = None

    @property
    def in_flight(self) -> int:
        """Calls at a time: never more than the credential allows."""
        return min(
            self._params.concurrency,
            self._params.iterations,
            self._engine.settings.max_concurrency,
        )

    @property
    def succeeded(self) -> int:
        """Calls that were answered."""
        return len(self.latencies)

    @property
    def failed(self) -> int:
        """Calls that were not."""
        return self.errors.total()

    @property
    def throughput_rpm(self) -> float:
        """Answers per minute."""
        return per_minute(self.succeeded, self.elapsed_s)

    @property
    def not_made(self) -> int:
        """Calls that were not finished at the deadline, or not begun."""
        return self._params.iterations - self.succeeded - self.failed

    def raise_if_nothing_was_answered(self) -> None:
        """Raise the first failure, told as that of the benchmark, if there is no answer."""
        if self.succeeded:
            return
        if self.first_failure is None:
            raise DeadlineExceeded("No call was answered before the deadline. Raise deadline_s.")
        first = self.first_failure
        raise first.copy(f"No call was answered ({self.failed:,} failed). {first.message}")

    def run(self) -> None:
        """Run it to its end."""
        for _ in self:
            pass

    def __iter__(self) -> Iterator[int]:
        self._working = self.in_flight
        for _ in range(self.in_flight):
            self._spawn(self._work)
        done = 0
        try:
            while True:
                with self._changed:
                    ends_s = self._ends_s + config.DEADLINE_GRACE_S
                    while self.succeeded + self.failed == done and self._working:
                        left_s = ends_s - self._clock.monotonic()
                        if left_s <= 0:
                            break
                        self._changed.wait(left_s)
                    if self._bug is not None:
                        raise self._bug
                    if self.succeeded + self.failed == done:
                        return
                    done = self.succeeded + self.failed
                yield done
        finally:
            with self._changed:
                self._is_over = True
                self.elapsed_s = self._clock.monotonic() - self._started_s

    def _work(self) -> None:
        try:
            while self._takes_one():
                self._call()
        except BaseException as error:  # noqa: BLE001 - raised again where the benchmark is read
            self._bug = error
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def _takes_one(self) -> bool:
        with self._changed:
            if self._is_over or not self._left or self._clock.monotonic() >= self._ends_s:
                return False
            self._left -= 1
            return True

    def _call(self) -> None:
        messages = [{"role": "user", "content": self._params.prompt}]
        answer = self._engine.ask(
            self._chat.request(messages),
            self._chat.policy(),
            timeout_s=self._ends_s - self._clock.monotonic(),
            stream=True,
            invocation=self._invocation,
        )
        try:
            result = answer.wait()
        except HolySheepError as error:
            self._count(None, error)
        else:
            self._count(result, None)

    def _count(self, result: ChatResult | None, error: HolySheepError | None) -> None:
        with self._changed:
            if self._is_over or (error is not None and self._is_too_late(error)):
                return
            if result is not None:
                self._add(result)
            elif error is not None:
                self.errors[error.error_type] += 1
                self.first_failure = self.first_failure or error
            self._changed.notify_all()

    def _is_too_late(self, error: HolySheepError) -> bool:
        """Whether the deadline is the reason: such a call is not finished, rather than failed."""
        never_sent = isinstance(error, LimiterTimeout | LimitBeyondDeadline) and not error.attempts
        return never_sent or self._clock.monotonic() >= self._ends_s

    def _add(self, result: ChatResult) -> None:
        meta = result.meta
        self.latencies.add(meta.upstream_ms)
        if meta.ttft_ms is not None:
            # Counted from the start of the call: what came before the request is no latency.
            self.first_tokens.add(max(0.0, min(meta.ttft_ms - meta.queue_ms, meta.upstream_ms)))
        self.waited_s += meta.queue_ms / 1000
        self.tokens_used += result.tokens_used
        self.model_used = result.model_used
        self.cost_usd = total_cost((self.cost_usd, result.cost_usd))
