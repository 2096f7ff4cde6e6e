"""The package starts by itself, in an environment that holds what it asks for and nothing else.

The marketplace installs requirements.txt, runs ``python -m main`` with INSTALL_METHOD=serverless,
waits for the line "Serving Flask app", and wants an HTTP answer (200 or 404) within 20 seconds.
The daemon prefers pyproject.toml. So it is done twice, each time with only one of the two files
beside the unpacked plugin. The process gets a new environment and a free port on loopback, so that
nothing of this project or of this machine's settings reaches it.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from devtools.preflight.dependencies import requirement_lines
from devtools.preflight.opened import Unreadable, dig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devtools.preflight.opened import Package

__all__ = ["MAX_START_S", "Start", "StartError", "seconds_to_answer", "starts", "unpack"]

MAX_START_S = 20.0
"""The marketplace's limit, from the start of the process to the first answer."""

_MARK = b"Serving Flask app"
_INSTALL_TIMEOUT_S = 600  # what the daemon grants
_STOP_TIMEOUT_S = 5
_POLL_S = 0.02
_MAX_SAID = 2000  # characters of what a failed process printed


class StartError(Exception):
    """The plugin was not installed, or does not answer; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Start:
    """How one start went."""

    source: str
    """The file that the environment was made from."""
    install_s: float = 0.0
    start_s: float = 0.0
    error: str = ""
    """Why it did not start; empty if it did."""


def starts(package: Package, *, limit_s: float = MAX_START_S) -> list[Start]:
    """Install and start the package, once from each of its files of requirements.

    The two are installed at the same time, and started one after the other, so that neither start
    is slowed down by anything.
    """
    installers: dict[str, Callable[[Path, Package], Path]] = {
        "requirements.txt": _installed_from_requirements,
        "pyproject.toml": _installed_from_project,
    }
    with TemporaryDirectory(prefix="preflight-") as temporary, ThreadPoolExecutor(2) as pool:

        def installed(source: str) -> tuple[Path, Path, float]:
            folder = Path(temporary) / source.partition(".")[0]
            unpack(package, folder, leave_out=set(installers) - {source})
            began = time.monotonic()
            python = installers[source](folder, package)
            return folder, python, time.monotonic() - began

        done: list[Start] = []
        pending = {source: pool.submit(installed, source) for source in installers}
        for future in pending.values():
            future.exception()  # all are installed before the first is started
        for source, future in pending.items():
            try:
                folder, python, install_s = future.result()
                start_s = seconds_to_answer(python, folder, limit_s=limit_s)
                done.append(Start(source, install_s, start_s))
            except (StartError, Unreadable) as error:
                done.append(Start(source, error=f"From {source} alone: {error}"))
    return done


def unpack(package: Package, folder: Path, *, leave_out: set[str]) -> None:
    """Write the files of the package into a new folder."""
    for name, content in package.files.items():
        if name not in leave_out:
            path = (folder / name).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise StartError(f"{name} does not lie inside the package.")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def seconds_to_answer(python: Path, folder: Path, *, limit_s: float) -> float:
    """Start the plugin in ``folder`` and return the seconds until it answers over HTTP.

    Raises StartError if it ends before that, or has not answered after ``limit_s``.
    """
    port = _free_port()
    began = time.monotonic()
    with _running(python, folder, port) as process, (folder / ".stdout").open("rb") as said:
        printed = b""
        while time.monotonic() - began <= limit_s:
            ended = process.poll() is not None
            printed += said.read()
            if ended:
                raise StartError(
                    f"the plugin ended with code {process.returncode}: {_said(folder)}"
                )
            if _MARK in printed and _answers(port, timeout_s=limit_s):
                return time.monotonic() - began
            time.sleep(_POLL_S)
    what = "does not answer" if _MARK in printed else f"has not said {_MARK.decode()!r}"
    raise StartError(f"the plugin {what} after {limit_s:g} s: {_said(folder)}")


@contextmanager
def _running(python: Path, folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The plugin's process; it is gone when the block is left."""
    environment = {
        "PATH": os.defpath,
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "INSTALL_METHOD": "serverless",
        "SERVERLESS_HOST": "127.0.0.1",
        "SERVERLESS_PORT": str(port),
    }
    with (folder / ".stdout").open("wb") as out, (folder / ".stderr").open("wb") as errors:
        process = subprocess.Popen(
            [python, "-m", "main"], cwd=folder, env=environment, stdout=out, stderr=errors
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(port: int, *, timeout_s: float) -> bool:
    """Tell whether the status of an answer is one that the marketplace accepts."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status in {200, 404}
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _said(folder: Path) -> str:
    """The end of what the process printed, on one line."""
    said = b"\n".join((folder / name).read_bytes() for name in (".stdout", ".stderr"))
    return _one_line(said.decode(errors="replace")) or "it printed nothing"


def _one_line(text: str) -> str:
    return " ".join(text.split())[-_MAX_SAID:]


# --- environments ---


def _installed_from_requirements(folder: Path, package: Package) -> Path:
    """A virtual environment with what requirements.txt names; returns its Python."""
    del package
    python = _new_environment(folder)
    _install(folder, [python, *_PIP, "-r", "requirements.txt"])
    return python


def _installed_from_project(folder: Path, package: Package) -> Path:
    """The same for pyproject.toml: with uv, as the daemon does, or else with what uv would read."""
    if uv := shutil.which("uv"):
        _install(folder, [uv, "sync", "--no-dev", "--quiet", "--python", sys.executable])
        return folder / ".venv" / "bin" / "python"
    project = package.toml("pyproject.toml")
    python = _new_environment(folder)
    constraints = folder / ".constraints"
    pins = dig(project, "tool.uv.constraint-dependencies") or []
    constraints.write_text("\n".join(pins), encoding="utf-8")
    wanted = requirement_lines("\n".join(dig(project, "project.dependencies") or []))
    _install(folder, [python, *_PIP, "--constraint", constraints, *wanted])
    return python


_PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input")


def _new_environment(folder: Path) -> Path:
    _install(folder, [sys.executable, "-m", "venv", ".venv"])
    return folder / ".venv" / "bin" / "python"


def _install(folder: Path, command: list[str | Path]) -> None:
    """Run one step of an installation; raises StartError."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=outside,
            capture_output=True,
            text=True,
            timeout=_INSTALL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StartError(f"it was not installed within {_INSTALL_TIMEOUT_S} s") from error
    if done.returncode != 0:
        step = json.dumps([Path(command[0]).name, *map(str, command[1:4])])
        raise StartError(f"{step} failed: {_one_line(done.stdout + done.stderr)}")
