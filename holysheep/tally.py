"""What requests came to, summed up by what tells them apart. Sums are exact.

Money is kept in whole 10⁻¹² USD: a request's cost is rounded to that once, when it is counted, and
from then on every sum is the sum of its parts, however they are grouped.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple, Self

OTHER = "(other)"
"""The name of what is too small to be kept apart."""

LATENCY_BOUNDS_MS = (10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000)
"""Upper bounds of the latency classes, included; one more class is above them all."""

CACHED_STATES = ("hit", "stale", "coalesced")
"""The states of the cache in which a request made no upstream call of its own."""

_STEP = Decimal("0.000000000001")
_MOST_USD = Decimal(10) ** 12
"""With twelve places, what a Decimal adds up without rounding."""


class Dimensions(NamedTuple):
    """What tells requests apart.

    ``credential`` is the fingerprint of key and base URL, ``app`` the Dify app, ``node`` what made
    the request (``llm``, ``batch``, ...), ``asked`` and ``served`` the model ids, ``status`` ``ok``
    or the error's type, ``cache`` the cache state.
    """

    credential: str = ""
    app: str = ""
    node: str = ""
    asked: str = ""
    served: str = ""
    status: str = "ok"
    cache: str = "miss"


@dataclass(slots=True)
class Figures:
    """What requests came to. Tokens are those of upstream calls, spans microseconds.

    ``unpriced`` counts those that upstream answered at a cost that nobody knows. ``classes`` has
    the number of requests in each latency class, by its index in ``LATENCY_BOUNDS_MS``.
    """

    requests: int = 0
    upstream_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    unpriced: int = 0
    latency_us: int = 0
    cost_usd: Decimal = Decimal(0)
    saved_usd: Decimal = Decimal(0)
    classes: dict[int, int] = field(default_factory=dict)

    def __iadd__(self, other: "Figures") -> Self:
        self.requests += other.requests
        self.upstream_calls += other.upstream_calls
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.cached_tokens += other.cached_tokens
        self.cache_write_tokens += other.cache_write_tokens
        self.reasoning_tokens += other.reasoning_tokens
        self.unpriced += other.unpriced
        self.latency_us += other.latency_us
        self.cost_usd += other.cost_usd
        self.saved_usd += other.saved_usd
        for number, count in other.classes.items():
            self.classes[number] = self.classes.get(number, 0) + count
        return self

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


_COUNTS = (
    "requests",
    "upstream_calls",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "unpriced",
    "latency_us",
)


def exact_usd(amount: Decimal | None) -> Decimal:
    """An amount as it is counted: not below 10⁻¹² USD, and nothing where it is not known."""
    if amount is None:
        return Decimal(0)
    return min(amount, _MOST_USD).quantize(_STEP)


def latency_class(milliseconds: float) -> int:
    """The index of the class that a latency belongs to."""
    for number, bound in enumerate(LATENCY_BOUNDS_MS):
        if milliseconds <= bound:
            return number
    return len(LATENCY_BOUNDS_MS)


class Tally:
    """Figures by dimensions. Not safe for concurrent use by itself."""

    def __init__(self, rows: Iterable[tuple[Dimensions, Figures]] = ()) -> None:
        self._rows: dict[Dimensions, Figures] = {}
        for dimensions, figures in rows:
            self.add(dimensions, figures)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[Dimensions, Figures]]:
        return iter(self._rows.items())

    def add(self, dimensions: Dimensions, figures: Figures) -> None:
        """Count ``figures`` in."""
        known = self._rows.get(dimensions)
        if known is None:
            known = self._rows[dimensions] = Figures()
        known += figures

    def __iadd__(self, other: "Tally") -> Self:
        for dimensions, figures in other:
            self.add(dimensions, figures)
        return self

    def grouped(self, key: Callable[[Dimensions], str]) -> dict[str, Figures]:
        """The figures by one name for each row."""
        groups: dict[str, Figures] = {}
        for dimensions, figures in self:
            name = key(dimensions)
            if name not in groups:
                groups[name] = Figures()
            groups[name] += figures
        return groups

    def total(self) -> Figures:
        """The figures of all rows."""
        total = Figures()
        for _, figures in self:
            total += figures
        return total

    def bounded(self, most: int) -> "Tally":
        """The same figures in about ``most`` rows: the smallest are put together.

        What is put together keeps its credential, node, success and cache state, so that no total
        changes.
        """
        if len(self) <= most:
            return self
        ordered = sorted(
            self,
            key=lambda row: (row[1].cost_usd + row[1].saved_usd, row[1].requests, row[0]),
            reverse=True,
        )
        kept = Tally(ordered[:most])
        for dimensions, figures in ordered[most:]:
            status = "ok" if dimensions.status == "ok" else OTHER
            kept.add(
                dimensions._replace(app=OTHER, asked=OTHER, served=OTHER, status=status), figures
            )
        return kept

    def to_json(self) -> list[list[Any]]:
        """As JSON: a list for each row, its dimensions, its figures, money as text."""
        return [
            [
                *dimensions,
                *(getattr(figures, name) for name in _COUNTS),
                str(figures.cost_usd),
                str(figures.saved_usd),
                sorted(figures.classes.items()),
            ]
            for dimensions, figures in self
        ]

    @classmethod
    def from_json(cls, rows: Any) -> "Tally":
        """What ``to_json`` has made. Raises ``ValueError`` for anything else."""
        if not isinstance(rows, list):
            raise ValueError("a tally must be a list")
        return cls(_row(row) for row in rows)


_WIDTH = len(Dimensions._fields)


def _row(row: Any) -> tuple[Dimensions, Figures]:
    try:
        names, counts = row[:_WIDTH], row[_WIDTH : _WIDTH + len(_COUNTS)]
        cost, saved, classes = row[_WIDTH + len(_COUNTS) :]
        if not all(type(name) is str for name in names):
            raise ValueError("a name is no text")
        figures = Figures(
            **dict(zip(_COUNTS, map(_count, counts), strict=True)),
            cost_usd=stored_usd(cost),
            saved_usd=stored_usd(saved),
            classes={_count(number): _count(count) for number, count in classes},
        )
        return Dimensions(*names), figures
    except (TypeError, IndexError, ValueError) as error:
        raise ValueError(f"a row of a tally is damaged ({error})") from None


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a count is no whole number")
    return value


def stored_usd(value: Any) -> Decimal:
    """An amount that was stored as text. Raises ``ValueError``."""
    try:
        amount = Decimal(value if isinstance(value, str) else "")
    except InvalidOperation:
        raise ValueError("an amount is no number") from None
    if not amount.is_finite() or not 0 <= amount <= 10**15:
        raise ValueError("an amount is out of range")
    return amount
