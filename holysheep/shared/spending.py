"""What all processes spend from the budget of one credential, in Redis.

Each process says what it has spent today, as a sum and in a place of its own: saying it again, or
late, after Redis was away or was emptied, changes nothing. What it may spend beyond that it claims,
and is granted no more than the limits leave, in the same step.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from holysheep import config
from holysheep.shared.link import Link
from holysheep.shared.scripts import root_of


@dataclass(frozen=True, slots=True)
class Claim:
    """What was granted: the most that the process may have spent today when its calls have ended.

    ``spent`` and ``claimed`` are those of all others. ``record`` names what they are kept in: when
    it changes, all was lost.
    """

    granted: Decimal
    spent: Decimal
    claimed: Decimal
    record: str


class SharedSpending:
    """The spending of one credential. Every method raises ``Away``. Amounts are USD."""

    def __init__(self, link: Link, fingerprint: str) -> None:
        self._link = link
        self._root = f"{root_of(fingerprint)}:spend"

    @property
    def is_up(self) -> bool:
        """Whether others can be told and asked."""
        return self._link.is_up

    @property
    def is_over(self) -> bool:
        """Whether nobody can be told any more."""
        return self._link.is_closed

    def claim(
        self,
        day: date,
        process: str,
        *,
        spent: Decimal,
        in_use: Decimal,
        needed: Decimal,
        wanted: Decimal,
        limits: tuple[Decimal | None, Decimal | None] = (None, None),
    ) -> Claim:
        """Say what was spent, and claim ``wanted`` in all, or else as much as the limits leave.

        Less than ``needed`` is of no use: then only what is ``in_use`` is kept.
        """
        amounts = (spent, in_use, needed, wanted, *limits)
        granted, others, claimed, record = self._link.run(
            "spend",
            [self._key(day)],
            [
                process,
                *("" if amount is None else f"{amount:.12f}" for amount in amounts),
                config.REDIS_SPEND_S,
            ],
        )
        return Claim(_usd(granted), _usd(others), _usd(claimed), record.decode())

    def tell(self, day: date, known: Iterable[tuple[str, Decimal, Decimal]]) -> None:
        """Say what other processes have spent and claimed, where they have not said so."""
        said = [(process, f"{spent:.12f} {most:.12f}") for process, spent, most in known]
        args = [part for pair in said for part in pair]
        self._link.run("tell_spend", [self._key(day)], [config.REDIS_SPEND_S, *args])

    def spent(self, day: date) -> Decimal:
        """The most that all processes have spent on a day."""
        return _usd(self._link.run("spent", [self._key(day)]))

    def _key(self, day: date) -> str:
        return f"{self._root}:{day.isoformat()}"


def _usd(amount: bytes) -> Decimal:
    return Decimal(amount.decode()).quantize(Decimal("0.000000000001"))
