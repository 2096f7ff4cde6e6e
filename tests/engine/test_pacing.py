"""Pieces for the host: few when the stream is fast, at once when it is slow, and complete."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holysheep import config
from holysheep.errors import ConnectFailed
from holysheep.pacing import paced_text
from holysheep.types import Delta
from tests.fakes import START_S, Killed, VirtualTime, abandon

Script = list[tuple[float, Delta | Exception]]


class Source:
    """Deltas on a timeline: each after its pause."""

    def __init__(self, time: VirtualTime, script: Script) -> None:
        self._time = time
        self._script = script
        self.closed_s: float | None = None

    def __iter__(self) -> Iterator[Delta]:
        try:
            for pause_s, step in self._script:
                if pause_s:
                    self._time.sleep(pause_s)
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            self.closed_s = self._time.monotonic() - START_S


def pieces_of(
    script: Script, *, seed: int | None = None, host_s: float = 0.0, interval_s: float = 0.05
) -> tuple[list[tuple[float, str]], Any, Source]:
    """What a host that takes ``host_s`` a piece is sent, when, and how it ends."""
    time = VirtualTime(seed)
    source = Source(time, script)
    sent: list[tuple[float, str]] = []

    def consumer() -> None:
        for piece in paced_text(iter(source), clock=time, spawn=time.spawn, interval_s=interval_s):
            sent.append((round(time.monotonic() - START_S, 6), piece))
            time.sleep(host_s)

    time.spawn(consumer)
    outcome, *_ = time.run()
    return sent, outcome, source


def test_the_first_piece_goes_at_once() -> None:
    sent, _, _ = pieces_of([(1.0, Delta("a")), (10.0, Delta("b"))])
    assert sent[0] == (1.0, "a")


def test_a_slow_stream_is_not_delayed() -> None:
    sent, _, _ = pieces_of([(1.0, Delta(word)) for word in "abc"])
    assert sent == [(1.0, "a"), (2.0, "b"), (3.0, "c")]


def test_a_fast_stream_is_joined_into_pieces_at_their_distance() -> None:
    sent, _, _ = pieces_of([(0.01, Delta("x")) for _ in range(18)])
    assert [at_s for at_s, _ in sent] == [0.01, 0.06, 0.11, 0.16, 0.18]
    assert "".join(piece for _, piece in sent) == "x" * 18


def test_what_has_arrived_goes_after_the_distance_also_when_nothing_more_comes() -> None:
    script: Script = [(0.0, Delta("a")), (0.01, Delta("b")), (60.0, Delta("c"))]
    sent, _, _ = pieces_of(script)
    assert sent == [(0.0, "a"), (0.05, "b"), (60.01, "c")]


def test_the_end_of_the_stream_is_not_waited_out() -> None:
    sent, _, source = pieces_of([(0.0, Delta("a")), (0.01, Delta("b"))])
    assert sent == [(0.0, "a"), (0.01, "b")]
    assert source.closed_s == pytest.approx(0.01)


def test_a_host_that_is_slow_gets_larger_pieces() -> None:
    sent, _, _ = pieces_of([(0.01, Delta("x")) for _ in range(100)], host_s=0.5)
    assert len(sent) <= 4
    assert "".join(piece for _, piece in sent) == "x" * 100


def test_an_answer_that_is_there_as_a_whole_needs_no_thread() -> None:
    def no_thread(_: object) -> None:
        raise AssertionError("a thread was started")

    deltas = iter([Delta("all of it", is_last=True)])
    assert list(paced_text(deltas, clock=VirtualTime(), spawn=no_thread)) == ["all of it"]


@pytest.mark.parametrize("script", [[], [(1.0, Delta(""))], [(1.0, Delta(reasoning="hm"))]])
def test_a_stream_without_text_has_no_pieces(script: Script) -> None:
    sent, outcome, _ = pieces_of(script)
    assert (sent, outcome) == ([], None)


def test_pieces_fit_into_a_message_each() -> None:
    limit = config.MAX_PIECE_CHARS
    sent, _, _ = pieces_of([(0.0, Delta("x" * (2 * limit + 1))), (1.0, Delta("y" * (limit + 1)))])
    assert [len(piece) for _, piece in sent] == [limit, limit, 1, limit, 1]


def test_an_error_comes_after_the_text_that_came_before_it() -> None:
    error = ConnectFailed("broke")
    sent, outcome, _ = pieces_of([(0.0, Delta("a")), (0.01, Delta("b")), (0.01, error)])
    assert sent == [(0.0, "a"), (0.02, "b")]
    assert outcome is error


def test_an_error_before_any_text_is_raised() -> None:
    error = ConnectFailed("refused")
    assert pieces_of([(1.0, error)])[:2] == ([], error)


@settings(max_examples=50)
@given(
    script=st.lists(
        st.tuples(st.sampled_from([0.0, 0.001, 0.02, 0.05, 0.3]), st.text(max_size=3)), max_size=20
    ),
    host_s=st.sampled_from([0.0, 0.01, 0.2]),
    interval_s=st.sampled_from([0.0, 0.05, 1.0]),
    seed=st.none() | st.integers(0, 1000),
)
def test_no_pacing_loses_or_reorders_text(
    script: list[tuple[float, str]], host_s: float, interval_s: float, seed: int | None
) -> None:
    sent, outcome, source = pieces_of(
        [(pause_s, Delta(text)) for pause_s, text in script],
        host_s=host_s,
        interval_s=interval_s,
        seed=seed,
    )
    assert outcome is None
    assert "".join(piece for _, piece in sent) == "".join(text for _, text in script)
    assert all(piece for _, piece in sent)
    assert source.closed_s is not None
    times = [at_s for at_s, _ in sent[:-1]]  # the last one goes when the stream ends
    assert all(later - earlier >= interval_s - 1e-5 for earlier, later in pairwise(times))


@pytest.mark.parametrize("after_pieces", [1, 2])
def test_a_consumer_that_leaves_ends_the_reading(after_pieces: int) -> None:
    time = VirtualTime()
    source = Source(time, [(1.0, Delta("x")) for _ in range(100)])

    pieces = paced_text(iter(source), clock=time, spawn=time.spawn)
    time.spawn(abandon, pieces, after=after_pieces)
    time.run()
    assert source.closed_s is not None
    assert source.closed_s <= after_pieces + 1


def test_a_consumer_that_is_killed_ends_the_reading() -> None:
    time = VirtualTime()
    source = Source(time, [(1.0, Delta("x")) for _ in range(100)])
    victim = time.spawn(lambda: list(paced_text(iter(source), clock=time, spawn=time.spawn)))
    time.spawn(time.throw, victim, Killed(), after_s=3.5)
    assert isinstance(time.run()[0], Killed)
    assert source.closed_s == 4.0
