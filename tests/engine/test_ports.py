"""The process's own clocks and dice."""

import subprocess
import sys
from pathlib import Path

import pytest

from holysheep.ports import SystemClock, system_rng
from tests.fakes import FakeClock, StandingClock, VirtualTime, class_name


def test_the_monotonic_clock_never_goes_back() -> None:
    clock = SystemClock()
    readings = [clock.monotonic() for _ in range(1000)]
    assert readings == sorted(readings)


def test_sleeping_for_nothing_returns() -> None:
    SystemClock().sleep(0.0)


def test_the_dice_lie_in_the_unit_interval_and_differ() -> None:
    rng = system_rng()
    throws = [rng() for _ in range(100)]
    assert all(0 <= throw < 1 for throw in throws)
    assert len(set(throws)) == 100


@pytest.mark.parametrize(
    "clock",
    [SystemClock(), FakeClock(), StandingClock(), VirtualTime()],
    ids=class_name,
)
def test_every_clock_offers_the_same(clock: SystemClock) -> None:
    changed = clock.condition()
    with clock.lock(), changed, changed:
        assert not changed.wait(0.0)
        changed.notify_all()
    assert clock.wall() > 1e9


def test_a_clock_built_after_patching_uses_what_it_was_patched_with() -> None:
    program = (
        "import holysheep.ports as ports\n"
        "from gevent import monkey\n"
        "monkey.patch_all()\n"
        "import gevent\n"
        "clock = ports.SystemClock()\n"
        "done = []\n"
        "def sleeper():\n"
        "    clock.sleep(0.01)\n"
        "    done.append(1)\n"
        "with gevent.Timeout(5):\n"
        "    gevent.joinall([gevent.spawn(sleeper) for _ in range(100)])\n"
        "assert len(done) == 100\n"
        "changed = clock.condition()\n"
        "with changed:\n"
        "    assert not changed.wait(0.001)\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30, cwd=root)
