"""Joins a fast stream into fewer, larger pieces without delaying a slow one.

Each message to the host costs it time, so a hundred tokens a second must not be a hundred
messages. The first piece goes at once; what arrives within the next 50 ms is sent together, also
when nothing more arrives. A thread reads ahead, since an iterator cannot be waited on for a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from holysheep import config
from holysheep.ports import Clock, Spawn
from holysheep.types import Delta

_TOLERANCE_S = 1e-4


@dataclass(slots=True)
class _Shared:
    """What the reading thread has found and the consumer has not taken."""

    pieces: list[str] = field(default_factory=list)
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
    for delta in deltas:
        yield from _bounded(delta.text)
        if delta.text and not delta.is_last:
            break
    else:
        return
    shared = _Shared()
    changed = clock.condition()

    def read_ahead() -> None:
        error: BaseException | None = None
        try:
            for delta in deltas:
                if shared.abandoned:
                    break
                if delta.text:
                    with changed:
                        shared.pieces.append(delta.text)
                        if len(shared.pieces) == 1:
                            changed.notify_all()
        except BaseException as raised:  # noqa: BLE001 - raised again where the caller is
            error = raised
        finally:
            close = getattr(deltas, "close", None)
            if close is not None:
                close()
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
                pieces, shared.pieces = shared.pieces, []
                ended = shared.ended
            if pieces:
                yield from _bounded("".join(pieces))
                sent_s = clock.monotonic()
            if ended:
                if shared.error is not None:
                    raise shared.error
                return
    finally:
        shared.abandoned = True


def _bounded(text: str) -> Iterator[str]:
    """``text`` in parts that fit into one host message each."""
    for start in range(0, len(text), config.MAX_PIECE_CHARS):
        yield text[start : start + config.MAX_PIECE_CHARS]
