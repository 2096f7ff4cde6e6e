"""The claims about many callers once more, in a process that gevent has patched.

Patching is for good and for the whole process, therefore a process of its own.
"""

import subprocess
import sys
from pathlib import Path

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
