"""The start of the package, tried with plugins of a few lines instead of a clean environment."""

import os
import sys
from pathlib import Path

import pytest

from devtools.preflight.opened import Entry, Package, Tree
from devtools.preflight.repackaging import repackaging_error
from devtools.preflight.start import StartError, seconds_to_answer, unpack

SERVER = """
import http.server, os, pathlib, sys
pathlib.Path("pid").write_text(str(os.getpid()))
ENVIRONMENT = {
    *("PATH", "HOME", "LANG", "INSTALL_METHOD", "SERVERLESS_HOST", "SERVERLESS_PORT"),
    "LC_CTYPE",  # Python's own, where the system has no C.UTF-8
}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        is_clean = set(os.environ) <= ENVIRONMENT
        self.send_error(STATUS if is_clean else 500)
    def log_message(self, *arguments):
        pass
assert os.environ["INSTALL_METHOD"] == "serverless"
address = os.environ["SERVERLESS_HOST"], int(os.environ["SERVERLESS_PORT"])
server = http.server.HTTPServer(address, Handler)
print("* Serving Flask app 'x'", flush=True)
server.serve_forever()
"""
WAITS = "import time; time.sleep(60)"
PYTHON = Path(sys.executable)


def plugin(folder: Path, main: str) -> Path:
    (folder / "main.py").write_text(main, encoding="utf-8")
    return folder


def package(**files: str) -> Package:
    entries = tuple(Entry(name, text.encode()) for name, text in files.items())
    return Package(entries, 0, Tree(frozenset(), ()))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("status", ["200", "404"])
def test_plugin_that_answers_has_started(tmp_path: Path, status: str) -> None:
    plugin(tmp_path, SERVER.replace("STATUS", status))
    assert 0 < seconds_to_answer(PYTHON, tmp_path, limit_s=20) <= 20
    assert not is_alive(int((tmp_path / "pid").read_text(encoding="utf-8")))


def test_nothing_of_this_process_reaches_the_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("HOLYSHEEP_API_KEY", "key")
    plugin(tmp_path, SERVER.replace("STATUS", "404"))
    assert seconds_to_answer(PYTHON, tmp_path, limit_s=20) > 0


@pytest.mark.parametrize(
    ("main", "said"),
    [
        ("import sys; sys.exit('no such module')", "ended with code 1: no such module"),
        ("pass", "ended with code 0: it printed nothing"),
        (
            f"print('Hello', flush=True); {WAITS}",
            "has not said 'Serving Flask app' after 0.5 s: Hello",
        ),
        (f"print('Serving Flask app', flush=True); {WAITS}", "does not answer after 0.5 s"),
        (SERVER.replace("STATUS", "500"), "does not answer after 0.5 s"),
    ],
    ids=["error", "end", "silence", "no server", "wrong status"],
)
def test_plugin_that_does_not_start_says_why(tmp_path: Path, main: str, said: str) -> None:
    with pytest.raises(StartError) as refused:
        seconds_to_answer(PYTHON, plugin(tmp_path, main), limit_s=0.5)
    assert said in str(refused.value)


def test_process_of_a_plugin_that_does_not_start_is_gone(tmp_path: Path) -> None:
    stubborn = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_DFL); {WAITS}"
    main = f"import os, pathlib; pathlib.Path('pid').write_text(str(os.getpid())); {stubborn}"
    with pytest.raises(StartError):
        seconds_to_answer(PYTHON, plugin(tmp_path, main), limit_s=0.5)
    assert not is_alive(int((tmp_path / "pid").read_text(encoding="utf-8")))


def test_only_one_of_the_two_files_is_unpacked(tmp_path: Path) -> None:
    files = {"main.py": "x", "nodes/a.py": "y", "requirements.txt": "", "pyproject.toml": ""}
    unpack(package(**files), tmp_path, leave_out={"pyproject.toml"})
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert names == {"main.py", "nodes/a.py", "requirements.txt"}
    assert (tmp_path / "nodes" / "a.py").read_text(encoding="utf-8") == "y"


def test_nothing_is_unpacked_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="does not lie inside"):
        unpack(package(**{"../x": "y"}), tmp_path / "plugin", leave_out=set())
    assert not (tmp_path / "x").exists()


def command_line(folder: Path, does: str) -> str:
    """A program that stands for Dify's command line."""
    path = folder / "dify"
    path.write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_packager_gets_the_unpacked_package(tmp_path: Path) -> None:
    cli = command_line(tmp_path, 'test "$1 $2 $4" = "plugin package -o" && cp "$3/main.py" "$5"')
    assert repackaging_error(package(**{"main.py": "x"}), cli) == ""


@pytest.mark.parametrize("does", ["echo 'no icon' >&2; exit 1", "echo 'no icon'"])
def test_packager_that_refuses_is_reported(tmp_path: Path, does: str) -> None:
    error = repackaging_error(package(**{"main.py": "x"}), command_line(tmp_path, does))
    assert error == "dify plugin package refuses the unpacked package: no icon"
