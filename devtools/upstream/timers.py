"""Alarms that are accurate to a fraction of a millisecond.

The timers of an event loop count whole milliseconds: a pause of 5 ms takes 4 to 6. On Linux one
timerfd (timerfd_create(2)), armed for the earliest alarm, wakes the loop as a readable file does.
Elsewhere the loop's own timers have to do.
"""

import asyncio
import contextlib
import ctypes
import heapq
import os
from itertools import count
from time import monotonic

__all__ = ["Alarms"]

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1
_FLAGS = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
_SHORTEST_TIMER_S = 0.001


class _TimerSpec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Alarms:
    """Resolves futures of one event loop at points of ``time.monotonic()``."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._tie_break = count()
        self._armed_s = float("inf")
        self._libc = ctypes.CDLL(None)
        self._descriptor = -1

    def set(self, due_s: float, waiter: asyncio.Future[None]) -> None:
        """Resolve ``waiter`` at ``due_s``, never earlier, unless it is done by then."""
        if self._loop is None:
            self._loop = self._start(asyncio.get_running_loop())
        heapq.heappush(self._waiting, (due_s, next(self._tie_break), waiter))
        if due_s < self._armed_s:
            self._arm(due_s)

    def _start(self, loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
        if hasattr(self._libc, "timerfd_create"):
            self._descriptor = self._libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
        if self._descriptor >= 0:
            loop.add_reader(self._descriptor, self._ring)
        return loop

    def _ring(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(BlockingIOError):
                os.read(self._descriptor, 8)
        now_s = monotonic()
        waiting = self._waiting
        while waiting and (waiting[0][0] <= now_s or waiting[0][2].done()):
            waiter = heapq.heappop(waiting)[2]
            if not waiter.done():
                waiter.set_result(None)
        self._armed_s = float("inf")
        if waiting:
            self._arm(waiting[0][0])

    def _arm(self, due_s: float) -> None:
        self._armed_s = due_s
        if self._descriptor < 0 and self._loop is not None:
            self._loop.call_later(max(due_s - monotonic(), _SHORTEST_TIMER_S), self._ring)
            return
        whole_s = int(due_s)
        # Rounded up: an alarm must not ring before its time. Zero would disarm the timer.
        rest_ns = min(int((due_s - whole_s) * 1e9) + 1, 999_999_999)
        spec = _TimerSpec(0, 0, whole_s, rest_ns)
        self._libc.timerfd_settime(self._descriptor, _ABSOLUTE, ctypes.byref(spec), None)
