"""Equal rows of a batch: one of them is asked, the others get its answer.

The engine's cache and single-flight do the same for calls in general, but forget: a batch of a
hundred thousand rows may have a row's twin anywhere. Here the answers wait in a temporary file, so
that a long batch costs disk and not memory.
"""

import json
import tempfile
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal

from holysheep.jsontext import whole_characters
from holysheep.ports import Clock
from holysheep.results import RowResult

_SPOOL_BYTES = 1024 * 1024
"""Below, the answers stay in memory: most batches need no file."""

Place = tuple[int, int]
"""Where an answer is in the file: offset and length."""


@dataclass(slots=True)
class _Asked[Member]:
    """A row that is being asked, and its twins that wait."""

    waiting: list[Member] = field(default_factory=list)


class Twins[Member]:
    """What is known of each distinct request of a batch. Safe for concurrent use."""

    def __init__(self, clock: Clock) -> None:
        self._lock = clock.lock()
        self._known: dict[Hashable, _Asked[Member] | Place | RowResult] = {}
        self._spool = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115 - see close
        self._size = 0

    def claim(self, key: Hashable, member: Member) -> RowResult | Literal["ask", "wait"]:
        """What to do for ``member``: take this result, ask, or wait until ``settle`` names it."""
        with self._lock:
            known = self._known.get(key)
            match known:
                case None:
                    self._known[key] = _Asked()
                    return "ask"
                case _Asked():
                    known.waiting.append(member)
                    return "wait"
                case RowResult():
                    return known
                case _:
                    return self._read(known)

    def settle(self, key: Hashable, result: RowResult, *, is_final: bool) -> list[Member]:
        """Tell what became of the row that was asked; returns those that waited for it.

        ``result.cost_usd`` is what the answer is worth, also where it came from the cache.
        ``is_final``: its twins would fare no better. Otherwise the next of them is to ask.
        """
        with self._lock:
            asked = self._known.pop(key)
            if result.status == "ok":
                self._known[key] = self._write(result)
            elif is_final:
                self._known[key] = result
            return asked.waiting if isinstance(asked, _Asked) else []

    def close(self) -> None:
        """Forget the answers."""
        with self._lock:
            self._spool.close()

    def _write(self, result: RowResult) -> Place:
        worth = None if result.cost_usd is None else str(result.cost_usd)
        kept = [result.response, result.model, result.tokens_used, worth]
        data = whole_characters(json.dumps(kept, ensure_ascii=False)).encode()
        self._spool.seek(self._size)
        self._spool.write(data)
        place = (self._size, len(data))
        self._size += len(data)
        return place

    def _read(self, place: Place) -> RowResult:
        offset, length = place
        self._spool.seek(offset)
        response, model, tokens_used, worth = json.loads(self._spool.read(length))
        return RowResult(
            0,
            "ok",
            response=response,
            model=model,
            tokens_used=tokens_used,
            cost_usd=None if worth is None else Decimal(worth),
        )


def twin_of(result: RowResult, *, index: int, query: str) -> RowResult:
    """The result of a row that got another's: no call of its own, so no cost and no time."""
    return replace(
        result,
        index=index,
        query=query,
        latency_ms=0.0,
        cost_usd=Decimal(0),
        cached=result.status == "ok",
    )
