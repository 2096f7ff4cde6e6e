"""Identical requests that are made at the same time share one upstream call.

The caller that begins a flight leads it: the request goes out with its deadline. Whichever member
needs the next event while nobody is fetching it pulls it from upstream: the leader, or one with no
less time. All others are handed each event as it arrives, beginning with those from before they
joined. So a slow reader holds nobody up, and one that leaves early takes nothing away.

Nobody hangs on a leader that fails. A failure of upstream is everybody's. A failure that was the
leader's own (its deadline, its turn at a limit) makes the others start anew, unless they have
already passed a part of the answer on.
"""

from collections.abc import Callable, Hashable, Iterator

from holysheep.errors import (
    ConnectFailed,
    DeadlineExceeded,
    HolySheepError,
    SharedAnswerLate,
)
from holysheep.ports import Clock
from holysheep.streams import hang_up
from holysheep.tally import CACHED_STATES
from holysheep.types import Call, Completed, Completion, Event, Handler, Trace


class Flight:
    """One upstream answer and the callers that share it. ``trace`` is the leader's."""

    def __init__(
        self, source: Iterator[Event], deadline_s: float, trace: Trace, clock: Clock
    ) -> None:
        self.trace = trace
        self._source = source
        self._deadline_s = deadline_s
        self._clock = clock
        self._changed = clock.condition()
        self._events: list[Event] = []
        self._failure: HolySheepError | None = None
        self._lost = False
        self._ended = False
        self._pulling = False
        self._led = True
        self._heir: object = None
        self._completion: Completion | None = None
        self._is_taken = False
        self._members: list[object] = []

    @property
    def is_over(self) -> bool:
        """Whether no more events will come."""
        return self._ended or self._lost or self._failure is not None

    def is_heir(self, member: object) -> bool:
        """Whether a member has got the end of the answer from upstream after the leader had left.

        The call is then this member's: somebody has to answer for what it cost.
        """
        return self._heir is member

    @property
    def is_joinable(self) -> bool:
        """Whether a newcomer gets the answer here: not after a failure."""
        return self._failure is None and not self._lost

    def enter(self, member: object) -> None:
        """Add a caller; the first one pulls."""
        with self._changed:
            self._members.append(member)

    def leave(self, member: object, *, leads: bool) -> bool:
        """Remove a caller; whether it was the last one."""
        with self._changed:
            self._members.remove(member)
            if leads:
                self._led = False
                if not self._is_taken and self.trace.cache not in CACHED_STATES:
                    # The others have it from this one, and think that it knows what it cost.
                    self.trace.wasted = self._completion
            if self._members:
                self._changed.notify_all()
            return not self._members

    def close(self) -> None:
        """Hang up on upstream, if it is still answering."""
        hang_up(self._source)

    def events(self, member: object, deadline_s: float, *, leads: bool) -> Iterator[Event]:
        """All events for one member, from the first on.

        Raises the flight's failure, ``SharedAnswerLate`` at the member's own deadline, or
        ``_StartAnew`` where the member should try for itself.
        """
        position = 0
        while self._await_event(position, member, deadline_s, leads=leads):
            event = self._events[position]
            if leads and isinstance(event, Completed):
                self._is_taken = True
            yield event
            position += 1

    def _await_event(
        self, position: int, member: object, deadline_s: float, *, leads: bool
    ) -> bool:
        """Wait for, or pull, event number ``position``; False when the answer has ended."""
        if self._may_pull(position, deadline_s, leads=leads):
            self._pull(member)
        if position < len(self._events):
            return True
        if self._failure is None and not self._lost:
            return False
        if leads and self._failure is not None:
            raise self._failure
        raise self._failure_for(position, deadline_s)

    def _may_pull(self, position: int, deadline_s: float, *, leads: bool) -> bool:
        """Wait while another member is pulling; whether it is now this one's turn to pull.

        Pulling ends at the leader's deadline, so one with less time leaves it to the others while
        the leader is there.
        """
        has_time = leads or deadline_s >= self._deadline_s
        with self._changed:
            while position == len(self._events) and not self.is_over:
                left = deadline_s - self._clock.monotonic()
                if left <= 0 and leads and not position and not self._pulling:
                    raise DeadlineExceeded("The deadline passed before the request was sent.")
                if left <= 0:
                    raise SharedAnswerLate(
                        "The deadline passed while an identical call was being answered."
                        " Raise timeout_s."
                    )
                if not self._pulling and (has_time or not self._led):
                    self._pulling = True
                    return True
                self._changed.wait(left)
            return False

    def _pull(self, member: object) -> None:
        """Take the next event from upstream."""
        try:
            event = next(self._source, None)
            if event is None:
                self._ended = True
            elif isinstance(event, Completed):
                with self._changed:
                    self._events.append(event)
                    self._completion = event.completion
                    if not self._led:
                        self._heir = member
            else:
                self._events.append(event)
        except HolySheepError as error:
            self._failure = error
        except BaseException:
            # A bug, or this caller being killed in mid-pull: the upstream answer is gone.
            self._lost = True
            raise
        finally:
            with self._changed:
                self._pulling = False
                self._changed.notify_all()

    def _failure_for(self, position: int, deadline_s: float) -> Exception:
        """What the failure of the flight means for a member that does not lead it."""
        error = self._failure
        ran_out = self._deadline_s <= self._clock.monotonic() < deadline_s
        if error is None or ran_out or error.is_callers_own:
            if position == 0:
                return _StartAnew()
            error = ConnectFailed(
                "The identical call that this one shared its answer with ended early. Try again."
            )
        return error.copy()


class _StartAnew(Exception):
    """The flight ended for reasons that do not concern this member."""


class Flights:
    """The flights of one credential that are under way."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = clock.lock()
        self._flights: dict[Hashable, Flight] = {}

    def board(
        self, key: Hashable, member: object, start: Callable[[], Iterator[Event]], call: Call
    ) -> tuple[Flight, bool]:
        """Join the flight of ``key`` or begin it for ``call``; also whether it was begun."""
        with self._lock:
            flight = self._flights.get(key)
            begins = flight is None or not flight.is_joinable
            if flight is None or begins:
                flight = self._flights[key] = Flight(start(), call.ends_s, call.trace, self._clock)
            flight.enter(member)
            return flight, begins

    def disembark(self, key: Hashable, member: object, flight: Flight, *, leads: bool) -> None:
        """Leave. A flight that is over, or that nobody is on any more, can not be joined again."""
        with self._lock:
            last = flight.leave(member, leads=leads)
            if (last or flight.is_over) and self._flights.get(key) is flight:
                del self._flights[key]
        if last:
            flight.close()

    def __len__(self) -> int:
        return len(self._flights)


class SingleFlightLayer:
    """Shares one answer among identical concurrent calls of this process.

    A call that bypasses the cache is never shared.
    """

    def __init__(self, flights: Flights, identity_of: Callable[[Call], Hashable]) -> None:
        self._flights = flights
        self._identity_of = identity_of

    def __call__(self, call: Call, proceed: Handler) -> Iterator[Event]:
        """Join the flight of an identical call, or begin one."""
        if call.policy.cache == "bypass":
            yield from proceed(call)
            return
        key = self._identity_of(call)
        planned = call.trace.cache
        again = True
        while again:
            again = False
            member = object()
            flight, leads = self._flights.board(key, member, lambda: proceed(call), call)
            call.trace.cache = planned if leads else "coalesced"
            try:
                for event in flight.events(member, call.deadline_s, leads=leads):
                    if flight.trace.cache == "hit":
                        # It was there for everybody.
                        call.trace.cache = "hit"
                    yield event
                if flight.is_heir(member):
                    # As the leader would be counted: it may have come from the cache after all.
                    call.trace.cache = flight.trace.cache
            except _StartAnew:
                again = True
            finally:
                self._flights.disembark(key, member, flight, leads=leads)
