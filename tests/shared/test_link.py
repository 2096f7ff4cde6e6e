"""The way to a Redis: one failure shuts it for all, and nobody waits for it longer than once."""

from __future__ import annotations

import itertools
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from holysheep import config
from holysheep.shared.link import Away, Link
from tests.fakes import START_S, Task, VirtualTime
from tests.shared.simulated import Process, SimulatedRedis

LATENCY_S = 0.001


class World:
    """A Redis and one process that uses it."""

    def __init__(self, *, seed: int | None = None, latency_s: float = LATENCY_S) -> None:
        self.time = VirtualTime(seed)
        self.redis = SimulatedRedis(self.time, latency_s=latency_s, jitter=seed)
        self.process = self.redis.process()
        self.link = self.process.link
        self.done: list[Any] = []
        self.told: list[bytes] = []

    def check(self) -> str:
        """A round trip."""
        try:
            self.link.run("check", ["holysheep:1:any"])
        except Away:
            return "away"
        return "fine"

    def write(self, number: int, **how: Any) -> None:
        """A job that leaves a trace."""
        self.link.later(
            "keyvalue",
            ["holysheep:1:jobs"],
            lambda: ["RPUSH", number],
            lambda: self.done.append(number),
            **how,
        )

    @property
    def written(self) -> list[int]:
        return [int(number) for number in self.redis.data.lrange("holysheep:1:jobs", 0, -1)]

    def away_between(self, from_s: float, to_s: float, *, refuses: bool = True) -> None:
        self.redis.spawn(self.redis.go_away, refuses=refuses, after_s=from_s)
        self.redis.spawn(self.redis.come_back, after_s=to_s)

    def publish(self, process: Process, topic: str) -> None:
        """Have another process change something that news are told of."""
        process.link.run("leave", ["holysheep:1:a", "holysheep:1:b"], ["", "", 0, 0, topic])


def spans(tasks: list[Task]) -> list[float]:
    """When tasks ended."""
    assert all(task.ended_s is not None for task in tasks)
    return [round(float(task.ended_s or 0) - START_S, 3) for task in tasks]


# --- away, and back -----------------------------------------------------------------------------


def test_one_failure_shuts_it_for_all_and_nobody_waits_longer_than_one_time_limit() -> None:
    world = World()
    world.redis.go_away()
    at_once = [world.redis.spawn(world.check) for _ in range(100)]
    later = [world.redis.spawn(world.check, after_s=0.2) for _ in range(100)]
    after = [world.redis.spawn(world.check, after_s=0.3) for _ in range(10)]
    assert world.redis.run() == ["away"] * 210
    assert max(spans(at_once)) <= config.REDIS_TIMEOUT_S
    assert max(spans(later)) <= 0.2 + config.REDIS_TIMEOUT_S
    assert set(spans(after)) == {0.3}
    assert world.link.losses == 1


def test_who_has_to_wait_for_a_connection_waits_no_longer_either() -> None:
    world = World(latency_s=0.2)
    tasks = [world.redis.spawn(world.check) for _ in range(3 * config.REDIS_CONNECTIONS)]
    outcomes = world.redis.run()
    assert outcomes.count("fine") == 2 * config.REDIS_CONNECTIONS
    assert max(spans(tasks)) <= 0.2 + config.REDIS_TIMEOUT_S
    # That it is slow does not shut it.
    assert world.link.losses == 0


def test_an_answer_that_is_lost_on_its_way_is_a_failure() -> None:
    world = World(latency_s=0.1)
    world.redis.spawn(world.check)
    world.away_between(0.07, 1.0, refuses=False)
    assert world.redis.run()[0] == "away"
    assert world.redis.ran["check"] >= 1
    assert world.link.losses == 1


def test_it_is_tried_less_and_less_often_up_to_a_longest_pause() -> None:
    world = World()
    tried_s: list[float] = []
    close = world.process.server.close

    def closing() -> None:
        tried_s.append(world.time.monotonic())
        close()

    world.process.server.close = closing  # type: ignore[method-assign]
    world.redis.spawn(world.check)
    world.away_between(0.0, 60.0)
    world.redis.run()
    pauses = [after - before for before, after in itertools.pairwise([START_S, *tried_s])]
    growing = [config.REDIS_PAUSE_S * 2**number for number in range(10)]
    for pause_s, most_s in zip(pauses[:25], growing + [config.REDIS_PAUSE_MAX_S] * 15, strict=True):
        assert 0.5 * min(most_s, config.REDIS_PAUSE_MAX_S) <= pause_s
        assert pause_s <= min(most_s, config.REDIS_PAUSE_MAX_S) + 2 * LATENCY_S
    assert world.link.is_up


def test_processes_do_not_try_again_all_at_the_same_moment() -> None:
    world = World()
    links = [world.redis.process().link for _ in range(5)]
    back_s: list[list[float]] = [[] for _ in links]
    for link, times in zip(links, back_s, strict=True):
        link.hear(b"any", lambda _, times=times: times.append(world.time.monotonic()))

    def notice(link: Link) -> None:
        with pytest.raises(Away):
            link.run("check", ["holysheep:1:any"])

    for link in links:
        world.redis.spawn(notice, link)
    world.away_between(0.0, 10.0)
    world.redis.go_away(refuses=True)
    world.redis.run()
    # Away, back, and subscribed.
    assert [len(times) for times in back_s] == [3] * 5
    assert len({times[1] for times in back_s}) == 5


def test_it_is_used_again_soon_after_it_is_back() -> None:
    world = World()
    world.redis.spawn(world.check, after_s=1.0)
    world.away_between(0.5, 30.0)
    for after_s in (29.9, 32.1):
        world.redis.spawn(world.check, after_s=after_s)
    assert world.redis.run() == ["away", None, None, "away", "fine"]
    assert world.link.problem == ""


def test_the_problem_is_told_while_it_is_away() -> None:
    world = World()
    world.redis.spawn(world.check)
    world.redis.spawn(lambda: world.link.problem, after_s=1.0)
    world.redis.go_away(refuses=True)
    assert world.redis.run()[1] == "Redis cannot be used now: nobody answers."


# --- behind the calls ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_jobs_run_in_their_order_and_end_once(seed: int | None) -> None:
    world = World(seed=seed)

    def caller() -> None:
        for number in range(50):
            world.write(number)

    world.redis.spawn(caller)
    world.redis.run()
    assert world.written == world.done == list(range(50))


def test_a_caller_does_not_wait_for_his_jobs_and_many_go_in_one_round_trip() -> None:
    world = World(latency_s=0.1)

    def caller() -> None:
        for number in range(100):
            world.write(number)
        assert world.time.monotonic() == START_S

    world.redis.spawn(caller)
    assert world.redis.run() == [None]
    assert world.written == list(range(100))
    assert world.process.server.trips <= 6


@pytest.mark.parametrize("refuses", [True, False], ids=["refuses", "silent"])
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_jobs_end_once_when_redis_goes_away_too(seed: int | None, refuses: bool) -> None:
    world = World(seed=seed, latency_s=0.02)

    def caller() -> None:
        for number in range(200):
            world.write(number)
            world.time.sleep(0.005)

    world.redis.spawn(caller)
    world.away_between(0.33, 0.6, refuses=refuses)
    world.redis.run()
    assert sorted(world.done) == list(range(200))
    assert world.written == sorted(set(world.written))
    assert len(world.written) < 200


@pytest.mark.parametrize("refuses", [True, False], ids=["refuses", "silent"])
def test_jobs_that_are_kept_run_when_it_is_back_and_end_then(refuses: bool) -> None:
    world = World(latency_s=0.02)

    def caller() -> None:
        for number in range(100):
            world.write(number, is_kept=True)
            world.time.sleep(0.01)

    world.redis.spawn(caller)
    world.away_between(0.33, 3.0, refuses=refuses)
    world.redis.spawn(lambda: list(world.done), after_s=2.5)
    world.redis.spawn(world.check, after_s=6.0)
    done_meanwhile = world.redis.run()[3]
    assert len(done_meanwhile) < 40
    assert sorted(world.done) == list(range(100))
    # What was on its way may have run, and its answer been lost.
    assert sorted(set(world.written)) == list(range(100))
    assert len(world.written) <= 100 + 20


def test_jobs_of_a_link_that_is_closed_end() -> None:
    world = World()
    world.redis.go_away(refuses=True)

    def caller() -> None:
        world.check()
        for number in range(5):
            world.write(number, is_kept=number % 2 == 0)
        world.link.close()
        world.write(5)
        world.write(6, is_kept=True)

    world.redis.spawn(caller)
    world.redis.run()
    assert sorted(world.done) == list(range(7))
    assert world.written == []


def test_a_job_whose_arguments_cannot_be_made_does_not_stop_those_that_follow() -> None:
    world = World()

    def caller() -> None:
        world.link.later("keyvalue", ["a"], lambda: [1 // 0], lambda: world.done.append("bad"))
        world.time.sleep(1.0)
        world.write(1)

    world.redis.spawn(caller)
    world.redis.run()
    assert world.done == ["bad", 1]


def test_such_a_job_takes_none_of_its_round_trip_with_it() -> None:
    world = World()

    def caller() -> None:
        world.write(1)
        world.link.later("keyvalue", ["a"], lambda: [1 // 0], lambda: world.done.append("bad"))
        world.write(2)
        world.time.sleep(1.0)
        assert world.link.is_up

    world.redis.spawn(caller)
    assert world.redis.run() == [None]
    assert sorted(world.done, key=str) == [1, 2, "bad"]
    assert world.redis.ran["keyvalue"] == 2


# --- leases -------------------------------------------------------------------------------------


LEASE = "holysheep:1:lease"


def take_lease(world: World) -> None:
    world.link.run("lead", ["holysheep:1:a", LEASE, "holysheep:1:b"], [0, 0, "me", config.LEASE_S])
    world.link.keep_lease(LEASE, "me")


def lease_left_s(world: World) -> float | None:
    ends = world.redis.data.hget(LEASE, "ends")
    return None if ends is None else float(ends) - world.time.wall()


def test_a_lease_is_renewed_each_third_of_it_until_it_is_dropped() -> None:
    world = World()
    left: list[float | None] = []

    def caller() -> None:
        take_lease(world)
        for _ in range(30):
            world.time.sleep(0.5)
            left.append(lease_left_s(world))
        world.link.drop_lease(LEASE)
        world.time.sleep(5.0)
        left.append(lease_left_s(world))

    world.redis.spawn(caller)
    world.redis.run()
    *kept, at_last = left
    assert all(seconds is not None and 0.9 < seconds <= 3.0 for seconds in kept)
    assert at_last is None
    assert 14 <= world.redis.ran["renew"] <= 16


def test_a_lease_that_another_has_taken_is_not_renewed() -> None:
    world = World()

    def caller() -> float | None:
        take_lease(world)
        world.redis.data.hset(LEASE, "token", "another's")
        world.time.sleep(2.5)
        world.link.drop_lease(LEASE)
        return lease_left_s(world)

    world.redis.spawn(caller)
    (left_s,) = world.redis.run()
    assert left_s == pytest.approx(0.5, abs=0.01)


def test_leases_are_dropped_when_redis_goes_away() -> None:
    world = World()

    def caller() -> None:
        take_lease(world)
        world.time.sleep(10.0)
        world.link.drop_lease(LEASE)

    world.redis.spawn(caller)
    # It is renewed at 1 s; at 2 s that fails.
    world.away_between(1.5, 2.1)
    world.redis.run()
    assert world.redis.ran["renew"] == 1
    assert lease_left_s(world) is None


def test_leases_are_dropped_when_the_link_is_closed() -> None:
    world = World()

    def caller() -> None:
        take_lease(world)
        world.link.close()
        world.time.sleep(60.0)
        renewing = [task for task in world.process._tasks if task.ended_s is None]
        world.link.drop_lease(LEASE)
        assert not renewing

    world.redis.spawn(caller)
    assert world.redis.run() == [None]


# --- news ---------------------------------------------------------------------------------------


def test_news_of_other_processes_are_heard_by_topic() -> None:
    world = World()
    other = world.redis.process()
    world.link.hear(b"one", world.told.append)

    def caller() -> int:
        world.check()
        world.time.sleep(1.0)
        world.told.clear()
        world.publish(other, "one")
        world.publish(other, "two")
        world.time.sleep(1.0)
        world.link.ignore(b"one", world.told.append)
        world.publish(other, "one")
        world.time.sleep(1.0)
        return world.link.hearing

    world.redis.spawn(caller)
    assert world.redis.run() == [1]
    assert world.told == [b"opened"]


def test_hearers_are_told_when_news_may_have_been_missed() -> None:
    world = World()
    world.link.hear(b"one", world.told.append)
    seen: list[tuple[int, int]] = []

    def look() -> None:
        seen.append((world.link.hearing, len(world.told)))

    world.redis.spawn(world.check)
    for after_s in (0.5, 2.5, 7.0):
        world.redis.spawn(look, after_s=after_s)
    world.redis.spawn(world.check, after_s=1.5)
    world.away_between(1.0, 3.0)
    world.redis.run()
    assert set(world.told) == {b""}
    # Subscribed; shut; open, and subscribed anew.
    assert seen == [(1, 1), (0, 2), (2, 4)]


def test_without_the_subscription_scripts_still_run_and_it_is_taken_up_again() -> None:
    world = World()
    seen: list[int] = []

    def caller() -> None:
        world.check()
        for _ in range(6):
            world.time.sleep(1.0)
            seen.append(world.link.hearing)
            assert world.check() == "fine"

    def cut(is_cut: bool) -> None:
        world.process.server.is_cut = is_cut
        world.process.server.wake()

    world.redis.spawn(caller)
    world.redis.spawn(cut, True, after_s=1.2)
    world.redis.spawn(cut, False, after_s=1.201)
    world.redis.run()
    assert seen[0] == 1
    assert seen[-1] >= 1
    assert world.link.losses == 0


def test_the_check_calls_all_that_scripts_call() -> None:
    """A user who may do less is found out when a credential is saved, not in the middle of it."""
    folder = Path(str(files("holysheep.shared") / "lua"))
    called = {
        path.stem: set(re.findall(r"redis\.call\('(\w+)'", path.read_text(encoding="utf-8")))
        for path in folder.glob("*.lua")
    }
    assert called["check"] | called["prelude"] == set().union(*called.values())


# --- rest and close -----------------------------------------------------------------------------


def test_before_a_rest_the_jobs_are_run() -> None:
    world = World(latency_s=0.05)

    def caller() -> list[int]:
        for number in range(50):
            world.write(number)
        world.link.rest()
        return list(world.done)

    world.redis.spawn(caller)
    assert world.redis.run() == [list(range(50))]


def test_a_rest_does_not_wait_for_a_redis_that_is_silent() -> None:
    world = World()

    def caller() -> float:
        world.check()
        world.redis.go_away()
        world.write(1, is_kept=True)
        world.link.rest()
        return world.time.monotonic() - START_S

    world.redis.spawn(caller)
    (waited_s,) = world.redis.run()
    assert waited_s < 1.1 * config.REDIS_TIMEOUT_S


def test_after_a_rest_it_is_used_as_before() -> None:
    world = World()
    world.link.hear(b"one", world.told.append)
    other = world.redis.process()

    def caller() -> list[Any]:
        before = world.check()
        world.time.sleep(1.0)
        world.link.rest()
        world.time.sleep(10.0)
        resting = world.link.hearing
        trips = world.process.server.trips
        after = world.check()
        world.time.sleep(1.0)
        world.told.clear()
        world.publish(other, "one")
        world.time.sleep(1.0)
        return [before, resting, trips, after, world.link.hearing]

    world.redis.spawn(caller)
    assert world.redis.run() == [["fine", 0, 2, "fine", 2]]
    assert world.told == [b"opened"]
    assert world.link.losses == 0


def test_a_link_that_is_closed_says_so_and_asks_nobody() -> None:
    world = World()

    def caller() -> tuple[str, int]:
        world.check()
        world.link.close()
        trips = world.process.server.trips
        outcome = world.check()
        world.time.sleep(60.0)
        return outcome, world.process.server.trips - trips

    world.redis.spawn(caller)
    assert world.redis.run() == [("away", 0)]
    assert world.link.problem == "it was closed"


def test_a_link_that_is_closed_while_redis_is_away_is_not_opened_again() -> None:
    world = World()
    world.redis.spawn(world.check)
    world.away_between(0.0, 5.0)
    world.redis.spawn(world.link.close, after_s=3.0)
    world.redis.spawn(world.check, after_s=20.0)
    assert world.redis.run()[-1] == "away"
    assert not world.link.is_up
