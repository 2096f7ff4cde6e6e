"""One row of the table: what was measured, against what, and what it must reach."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """``ratio`` is the median over rounds of ours divided by theirs within the same round.

    ``must`` says what it has to reach in words, ``reached`` whether it does.
    """

    name: str
    ours: str
    theirs: str
    ratio: float
    must: str
    reached: bool
    spread: tuple[float, float] = (0.0, 0.0)


def compared(
    name: str,
    rounds: Sequence[Mapping[str, float]],
    *,
    ours: str,
    theirs: str,
    unit: str,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Figure:
    """A figure from rounds that hold a value for ``ours`` and for ``theirs`` each."""
    ratios = sorted(found[ours] / found[theirs] for found in rounds)
    ratio = statistics.median(ratios)
    if at_most is not None:
        must, reached = f"≤ {at_most:g} ×", ratio <= at_most
    elif at_least is not None:
        must, reached = f"≥ {at_least:g} ×", ratio >= at_least
    else:
        must, reached = "", True
    return Figure(
        name,
        _shown(rounds, ours, unit),
        _shown(rounds, theirs, unit),
        ratio,
        must,
        reached,
        (ratios[0], ratios[-1]),
    )


def in_rounds(
    measures: Mapping[str, Callable[[], float]], *, rounds: int, warm_up: int = 1
) -> list[dict[str, float]]:
    """Measure all in turn, again and again; the order turns round, so that drift hits all alike."""
    found: list[dict[str, float]] = []
    for number in range(warm_up + rounds):
        names = list(measures) if number % 2 else list(reversed(measures))
        values = {name: measures[name]() for name in names}
        if number >= warm_up:
            found.append(values)
    return found


def _shown(rounds: Sequence[Mapping[str, float]], name: str, unit: str) -> str:
    value = statistics.median(found[name] for found in rounds)
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
