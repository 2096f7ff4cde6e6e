"""Send a request again where that can help, and never once a part of the answer was passed on.

The wait before attempt *n* + 1 is what the server asked for, exactly; where it asked for nothing,
full jitter: uniform in [0, min(8 s, 0.5 s * 2**(n-1))]. A wait that would pass the deadline is not
begun: the call fails at once, and a rate limit then says when it resets. Where another model could
be asked, a wait that the server did not ask for leaves that one its share of the time.
"""

from collections.abc import Iterator

from tenacity import RetryCallState, Retrying, retry_if_exception

from holysheep import config
from holysheep.errors import HolySheepError, LimitBeyondDeadline, RateLimited
from holysheep.faults import saying, with_id
from holysheep.ports import Clock, Rng
from holysheep.streams import unseen
from holysheep.types import Call, Event, Handler
from holysheep.wording import span


class RetryLayer:
    """Retries each model of a call up to ``Policy.max_retries`` times."""

    def __init__(self, clock: Clock, rng: Rng) -> None:
        self._clock = clock
        self._rng = rng
        # One for all calls: it keeps its state per thread and hands the call's arguments on.
        self._retrying = Retrying(
            retry=retry_if_exception(_is_retryable),
            wait=self._wait,
            stop=self._stop,
            sleep=clock.sleep,
            reraise=True,
        )

    def __call__(self, call: Call, proceed: Handler) -> Iterator[Event]:
        """Pass the call on until it is answered or trying again is of no use."""
        try:
            events = self._retrying(_begin, call, proceed)
        except RateLimited as error:
            wait_s = error.retry_after_s
            if wait_s is not None and self._clock.monotonic() + wait_s >= call.ends_s:
                raise _beyond_deadline(error, wait_s) from error
            raise
        yield from events

    def _stop(self, state: RetryCallState) -> bool:
        call: Call = state.args[0]
        # Where another model could be asked, it has its share of the time.
        ends_s = call.answer_by_s if _named_wait(state) is None else call.ends_s
        return state.attempt_number > call.policy.max_retries or (
            self._clock.monotonic() + state.upcoming_sleep >= ends_s
        )

    def _wait(self, state: RetryCallState) -> float:
        named_s = _named_wait(state)
        if named_s is not None:
            return named_s
        ceiling = config.BACKOFF_BASE_S * 2.0 ** (state.attempt_number - 1)
        return self._rng() * min(config.BACKOFF_MAX_S, ceiling)


def _begin(call: Call, proceed: Handler) -> Iterator[Event]:
    return unseen(call, proceed(call))


def _named_wait(state: RetryCallState) -> float | None:
    """The seconds that the server asked to wait, if it did."""
    error = state.outcome.exception() if state.outcome else None
    return error.retry_after_s if isinstance(error, HolySheepError) else None


def _is_retryable(error: BaseException) -> bool:
    return isinstance(error, HolySheepError) and error.retryable


def _beyond_deadline(error: RateLimited, wait_s: float) -> LimitBeyondDeadline:
    # Not the message with more behind it: it tells the wait already, and ends with the id.
    told = (
        f"The gateway's rate limit is reached (HTTP 429).{saying(error.detail)} It resets"
        f" in {span(wait_s)}, after the deadline of this call. Try again then, or raise timeout_s."
    )
    return LimitBeyondDeadline(
        with_id(told, error.request_id),
        status=error.status,
        retry_after_s=wait_s,
        request_id=error.request_id,
        detail=error.detail,
    )
