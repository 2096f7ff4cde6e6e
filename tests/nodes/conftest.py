"""Fixtures of the tests that talk to the plugin as Dify does."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.host.daemon import PROJECT_ROOT, PluginProcess
from tests.nodes.batch_support import BatchNode, Shelf
from tests.nodes.servers import LoopbackServer
from tests.nodes.support import BREAKER_OPEN_S, KEY_MARK, Llm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from devtools.upstream import Upstream


_LINKED = {"main.py", "manifest.yaml", "nodes", "provider", "host", "endpoints", "group", "_assets"}
"""What a plugin with other limits shares with this one."""


@pytest.fixture
def llm(plugin: PluginProcess, upstream: Upstream) -> Llm:
    """The LLM node with a credential and a model that no other test has."""
    return Llm(plugin, upstream)


@pytest.fixture
def batch(plugin: PluginProcess, upstream: Upstream) -> BatchNode:
    """The batch node, the same way."""
    return BatchNode(plugin, upstream)


@pytest.fixture(scope="module")
def file_server() -> Iterator[LoopbackServer]:
    """A server for the files of a test file."""
    with LoopbackServer({}) as server:
        yield server


@pytest.fixture
def shelf(file_server: LoopbackServer) -> Shelf:
    """An empty shelf, from which nobody has fetched anything."""
    file_server.seen.clear()
    return Shelf(file_server)


@pytest.fixture(autouse=True)
def _plugin_is_free(request: pytest.FixtureRequest) -> Iterator[None]:
    """Spare the next tests a process that is still busy with a call of the last one."""
    names = {"plugin", "quick_plugin"} & set(request.fixturenames)
    processes: list[PluginProcess] = [request.getfixturevalue(name) for name in names]
    yield
    for process in processes:
        try:
            seen = (process.stderr, process.logs, process.late, process.storage.data)
            assert KEY_MARK not in repr(seen), "a key has left the process"
        finally:
            if process.open_calls:
                process.restart()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that nobody has signed but itself, for 127.0.0.1, with its key."""
    folder = tmp_path_factory.mktemp("tls")
    both, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", both),
        ],
        check=True,
        capture_output=True,
    )
    with both.open("a") as file:
        file.write(key.read_text())
    return both


@pytest.fixture(scope="session")
def quick_process(
    tmp_path_factory: pytest.TempPathFactory, certificate: Path
) -> Iterator[PluginProcess]:
    """The plugin with a breaker that is open for a moment only, and one more trusted gateway."""
    folder = tmp_path_factory.mktemp("quick_plugin")
    for path in PROJECT_ROOT.iterdir():
        if path.name in _LINKED:
            (folder / path.name).symlink_to(path)
    engine = folder / "holysheep"
    engine.mkdir()
    for path in (PROJECT_ROOT / "holysheep").iterdir():
        (engine / path.name).symlink_to(path)
    config = (engine / "config.py").read_text(encoding="utf-8")
    quick, changes = re.subn(
        r"^BREAKER_OPEN_S = .*$", f"BREAKER_OPEN_S = {BREAKER_OPEN_S}", config, flags=re.MULTILINE
    )
    assert changes == 1
    (engine / "config.py").unlink()
    (engine / "config.py").write_text(quick, encoding="utf-8")
    with PluginProcess(folder, env={"SSL_CERT_FILE": str(certificate)}) as process:
        yield process


@pytest.fixture
def quick_plugin(quick_process: PluginProcess) -> Iterator[PluginProcess]:
    """That process, running and with empty storage."""
    if not quick_process.alive:
        quick_process.restart()
    quick_process.storage.clear()
    yield quick_process
    quick_process.check()
