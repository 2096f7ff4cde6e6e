"""Latencies of many calls, summed up.

Percentiles are nearest-rank: the p-th is the smallest value that at least p percent of all values
do not exceed. So each is a value that was measured, and of a single one all are that one.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from holysheep.types import JsonObject


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Spans in milliseconds; all 0 where nothing was measured."""

    avg_ms: float = 0.0
    min_ms: float = 0.0
    max_ms: float = 0.0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0

    def to_json(self) -> JsonObject:
        """As a JSON object."""
        return {
            "avg_ms": self.avg_ms,
            "min_ms": self.min_ms,
            "max_ms": self.max_ms,
            "p50_ms": self.p50_ms,
            "p95_ms": self.p95_ms,
            "p99_ms": self.p99_ms,
        }


class Latencies:
    """Collects spans, eight bytes each."""

    def __init__(self) -> None:
        self._values = array("d")

    def __len__(self) -> int:
        return len(self._values)

    def add(self, milliseconds: float) -> None:
        """Count one more."""
        self._values.append(milliseconds)

    def summary(self) -> LatencySummary:
        """What they come to."""
        if not self._values:
            return LatencySummary()
        ordered = sorted(self._values)
        return LatencySummary(
            avg_ms=round(math.fsum(ordered) / len(ordered), 3),
            min_ms=ordered[0],
            max_ms=ordered[-1],
            p50_ms=percentile(ordered, 50),
            p95_ms=percentile(ordered, 95),
            p99_ms=percentile(ordered, 99),
        )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of values in ascending order.

    Raises ``ValueError`` where there are none, or ``percent`` is not above 0 and at most 100.
    """
    if not ordered or not 0 < percent <= 100:
        raise ValueError("a percentile needs values, and a percentage above 0 and at most 100")
    return ordered[math.ceil(percent * len(ordered) / 100) - 1]


def per_minute(count: int, seconds: float) -> float:
    """A rate per minute; 0 where no time has passed."""
    return round(count * 60 / seconds, 1) if seconds > 0 else 0.0
