"""Joins a fast stream into fewer, larger pieces without delaying a slow one.

Each message to the host costs it time, so a hundred tokens a second must not be a hundred
messages. The first piece goes at once; what arrives within the next 50 ms is sent together, also
when nothing more arrives. A thread reads ahead, since an iterator cannot be waited on for a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from holysheep import config
from holysheep.ports import Clock, Spawn
from holysheep.streams import hang_up
from holysheep.types import Delta

_TOLERANCE_S = 1e-4


@dataclass(slots=True)
class _Shared[Piece: (str, bytes)]:
    """What the reading thread has found and the consumer has not taken."""

    pieces: list[Piece] = field(default_factory=list)
    ended: bool = False
    error: BaseException | None = None
    abandoned: bool = False


def paced_text(
    deltas: Iterator[Delta],
    *,
    clock: Clock,
    spawn: Spawn,
    interval_s: float = config.STREAM_PIECE_S,
) -> Iterator[str]:
    """The texts of ``deltas`` in pieces at least ``interval_s`` apart; none of them empty.

    Raises what ``deltas`` raises, after the text that came before it.
    """
    size = config.MAX_PIECE_CHARS
    for piece in _paced(_texts(deltas), "", clock, spawn, interval_s):
        for start in range(0, len(piece), size):
            yield piece[start : start + size]


def paced_bytes(
    pieces: Iterator[bytes],
    *,
    clock: Clock,
    spawn: Spawn,
    interval_s: float = config.STREAM_PIECE_S,
) -> Iterator[bytes]:
    """The same for pieces of a body, none of which is divided."""
    return _paced(_never_last(pieces), b"", clock, spawn, interval_s)


def _texts(deltas: Iterator[Delta]) -> Iterator[tuple[str, bool]]:
    try:
        for delta in deltas:
            if delta.text:
                yield delta.text, delta.is_last
    finally:
        hang_up(deltas)


def _never_last(pieces: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    try:
        for piece in pieces:
            yield piece, False
    finally:
        hang_up(pieces)


def _paced[Piece: (str, bytes)](
    pieces: Iterator[tuple[Piece, bool]],
    empty: Piece,
    clock: Clock,
    spawn: Spawn,
    interval_s: float,
) -> Iterator[Piece]:
    """Pieces joined; each comes with whether it is the last, where that is known."""
    for piece, is_last in pieces:
        yield piece
        if not is_last:
            break
    else:
        return
    shared: _Shared[Piece] = _Shared()
    changed = clock.condition()

    def read_ahead() -> None:
        error: BaseException | None = None
        try:
            for piece, _ in pieces:
                if shared.abandoned:
                    break
                with changed:
                    shared.pieces.append(piece)
                    if len(shared.pieces) == 1:
                        changed.notify_all()
        except BaseException as raised:  # noqa: BLE001 - raised again where the caller is
            error = raised
        finally:
            hang_up(pieces)
            with changed:
                shared.ended = True
                shared.error = error
                changed.notify_all()

    spawn(read_ahead)
    sent_s = clock.monotonic()
    try:
        while True:
            with changed:
                while not shared.ended:
                    left = sent_s + interval_s - clock.monotonic()
                    if shared.pieces and left <= _TOLERANCE_S:
                        break
                    changed.wait(left if shared.pieces else None)
                found, shared.pieces = shared.pieces, []
                ended = shared.ended
            if found:
                yield empty.join(found)
                sent_s = clock.monotonic()
            if ended:
                if shared.error is not None:
                    raise shared.error
                return
    finally:
        shared.abandoned = True
