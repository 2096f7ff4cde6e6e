"""The pause after an upstream 429: a gate that closes, then opens step by step.

When the pause is over, one call goes first; each that is not refused lets twice as many through,
until the gate is fully open. So a crowd of waiting calls does not run into the limit again. A
refusal comes at once, whatever a model has to think about: a call that has not been refused for a
second counts as accepted, so a slow model holds nobody up.
"""

import math

from holysheep import config


class Gate:
    """Closed during a pause, then opening step by step.

    ``allowance`` is how many calls may be out whose acceptance is unknown; ``None`` = any number.
    Only calls that passed since the last pause count: a long stream from before it says nothing.
    """

    __slots__ = (
        "_entered_s",
        "_has_accepted",
        "_paused_at_s",
        "_pauses",
        "_strikes",
        "allowance",
        "until_s",
    )

    FULLY_OPEN = 32

    def __init__(self) -> None:
        self.until_s = -math.inf
        self.allowance: int | None = None
        self._entered_s: list[float] = []
        self._pauses = 0
        self._paused_at_s = -math.inf
        self._strikes = 0
        self._has_accepted = False

    def delay(self, now_s: float) -> float:
        """Seconds until a call may pass, at the latest; 0 = now."""
        if now_s < self.until_s:
            return self.until_s - now_s
        while self._entered_s and self._entered_s[0] + config.REFUSAL_S <= now_s:
            self._entered_s.pop(0)
            self._open_further()
        if self.allowance is not None and len(self._entered_s) >= self.allowance:
            return self._entered_s[0] + config.REFUSAL_S - now_s
        return 0.0

    def is_quiet(self, now_s: float) -> bool:
        """Whether nothing is left of a pause but the memory of it."""
        return now_s >= self.until_s and not self._entered_s

    def enter(self, now_s: float) -> "Passage":
        """A call passes; hand what is returned to ``leave``."""
        if self.allowance is not None:
            self._entered_s.append(now_s)
        return self._pauses, now_s

    def leave(self, passage: "Passage", *, accepted: bool) -> None:
        """A call that passed was accepted, or has ended without telling."""
        pauses, entered_s = passage
        if pauses != self._pauses or entered_s not in self._entered_s:
            return
        self._entered_s.remove(entered_s)
        if accepted:
            self._open_further()

    def pause(self, now_s: float, seconds: float | None, admitted_s: float) -> None:
        """Close for ``seconds`` or, where the server named no time, longer each time in a row."""
        if admitted_s > self._paused_at_s:
            # Calls that were out together fail together: that is one strike, not fifty. And one
            # that comes after calls were accepted is no further one: a gateway that refuses some
            # by chance is not to be waited for ever longer.
            self._strikes = max(1, self._strikes + (-1 if self._has_accepted else 1))
            self._paused_at_s = now_s
            self._has_accepted = False
        if seconds is None:
            seconds = min(
                config.PAUSE_MAX_S, config.PAUSE_BASE_S * 2.0 ** min(10, self._strikes - 1)
            )
        self.until_s = max(self.until_s, now_s + seconds)
        self.allowance = 1
        self._pauses += 1
        self._entered_s = []

    def _open_further(self) -> None:
        if self.allowance is None:
            return
        self._has_accepted = True
        self.allowance *= 2
        if self.allowance > self.FULLY_OPEN:
            self.allowance = None
            self._entered_s = []
            self._strikes = 0


Passage = tuple[int, float]
"""After how many pauses a call passed, and when."""
