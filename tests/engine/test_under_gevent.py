"""The claims about many callers once more, in a process that gevent has patched.

Patching is for good and for the whole process, therefore a process of its own.
"""

import subprocess
import sys
from pathlib import Path

KILLING = """
from gevent import monkey
monkey.patch_all()
import random
import gevent
from holysheep.cache import identity_of
from holysheep.concurrency import ConcurrencyLayer
from holysheep.engine import stack
from holysheep.fair import FairSemaphore
from holysheep.limiter import RateLimiter
from holysheep.ratelimit import PauseRecheck, RateLimitLayer
from holysheep.ports import SystemClock
from holysheep.singleflight import Flights, SingleFlightLayer
from tests.fakes import ScriptedHandler, a_call, a_request, answered, text_of

dice = random.Random(1)
clock = SystemClock()
slots, flights = FairSemaphore(5, clock), Flights(clock)
limiter = RateLimiter(60_000, 0, clock=clock)
below = ScriptedHandler(clock, answered("one two three", pause_s=0.002))
answer = stack(
    [
        SingleFlightLayer(flights, identity_of),
        RateLimitLayer(limiter, clock),
        ConcurrencyLayer(slots, clock),
        PauseRecheck(limiter),
    ],
    below,
)
def caller(number):
    gevent.sleep(dice.random() * 0.1)
    return text_of(answer(a_call(clock, a_request(f"question {number % 60}"))))
callers = [gevent.spawn(caller, number) for number in range(300)]
for victim in dice.sample(callers, 150):
    gevent.spawn_later(dice.random() * 0.25, victim.kill, block=False)
gevent.spawn_later(0.05, limiter.pause, "gpt-4.1", 0.02)
with gevent.Timeout(15):
    gevent.joinall(callers)
assert slots.held == 0, slots.held
assert len(flights) == 0, len(flights)
assert below.in_flight == 0, below.in_flight
texts = [one.value for one in callers if isinstance(one.value, str)]
assert len(texts) >= 100, len(texts)
assert set(texts) == {"one two three"}
"""
CLAIMS = Path(__file__).with_name("test_both_worlds.py")


def test_the_claims_about_many_callers_hold_with_greenlets_too() -> None:
    run = subprocess.run(
        [
            *(sys.executable, "-m", "gevent.monkey", "--module", "pytest"),
            *("-q", "-p", "no:cacheprovider", "--timeout-method=thread", str(CLAIMS)),
        ],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        cwd=CLAIMS.parents[2],
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed" in run.stdout


def test_greenlets_that_are_killed_leave_nothing_behind_and_hold_nobody_up() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", KILLING],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        cwd=CLAIMS.parents[2],
    )
    assert run.returncode == 0, run.stderr[-2000:]
