"""The pause after an upstream 429: a gate that closes, then opens step by step.

When the pause is over, one call goes first; each answer lets twice as many through, until the gate
is fully open. So a crowd of waiting calls does not run into the limit again.
"""

import math

from holysheep import config


class Gate:
    """Closed during a pause, then opening step by step.

    ``allowance`` is how many unanswered calls may be out while it opens; ``None`` = any number.
    Only calls that passed since the last pause count: a long stream from before it says nothing.
    """

    __slots__ = ("_out", "_pause", "_paused_at_s", "_strikes", "allowance", "until_s")

    FULLY_OPEN = 32

    def __init__(self) -> None:
        self.until_s = -math.inf
        self.allowance: int | None = None
        self._out = 0
        self._pause = 0
        self._paused_at_s = -math.inf
        self._strikes = 0

    def delay(self, now_s: float) -> float:
        """Seconds until a call may pass: 0 = now, infinity = when one that is out has ended."""
        if now_s < self.until_s:
            return self.until_s - now_s
        if self.allowance is not None and self._out >= self.allowance:
            return math.inf
        return 0.0

    def is_quiet(self, now_s: float) -> bool:
        """Whether nothing is left of a pause but the memory of it."""
        return now_s >= self.until_s and not self._out

    def enter(self) -> int:
        """A call passes; returns the number of the pause that it passed after."""
        self._out += 1
        return self._pause

    def leave(self, pause: int, *, answered: bool) -> None:
        """A call that passed after ``pause`` has been answered, or has failed."""
        if pause != self._pause:
            return
        self._out -= 1
        if answered and self.allowance is not None:
            self.allowance *= 2
            if self.allowance > self.FULLY_OPEN:
                self.allowance = None
                self._strikes = 0

    def pause(self, now_s: float, seconds: float | None, admitted_s: float) -> None:
        """Close for ``seconds`` or, where the server named no time, longer each time in a row."""
        if admitted_s > self._paused_at_s:
            # Calls that were out together fail together: that is one strike, not fifty.
            self._strikes += 1
            self._paused_at_s = now_s
        if seconds is None:
            seconds = min(
                config.PAUSE_MAX_S, config.PAUSE_BASE_S * 2.0 ** min(10, self._strikes - 1)
            )
        self.until_s = max(self.until_s, now_s + seconds)
        self.allowance = 1
        self._pause += 1
        self._out = 0
