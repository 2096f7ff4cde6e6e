"""Fixtures that every folder of tests shares.

The whole suite is one process, and that process never imports the SDK: importing it patches
sockets, threads and time of everything that runs afterwards. Tests of the plugin talk to it as
Dify does, through a process of its own (`tests.host.daemon`).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devtools.upstream.control import Upstream
    from tests.host.daemon import PluginProcess


class _NoSdkHere:
    """A finder that refuses the SDK with a reason, instead of patching the process quietly."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        del path, target
        if name == "dify_plugin":
            raise RuntimeError(
                "dify_plugin must not be imported by the test process: it patches sockets, "
                "threads and time for all tests. Use the `plugin` fixture, or a subprocess."
            )


if "gevent" not in sys.modules:  # a run under gevent on purpose has chosen otherwise
    sys.meta_path.insert(0, _NoSdkHere)  # type: ignore[arg-type]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what belongs together where several processes run the tests (`--dist loadgroup`).

    The tests of nodes and of endpoints measure time and have processes of their own: never two of
    one kind at once.
    """
    for item in items:
        folder, file = item.path.parent.name, item.path.name
        # These have processes of their own and look at what is counted, not at how long it takes.
        counts = file.startswith(("test_ledger_", "test_usage"))
        group = folder if folder in {"nodes", "endpoints"} and not counts else f"{folder}/{file}"
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def upstream_process() -> Iterator[Upstream]:
    """The scripted gateway, one process for all tests; tests take `upstream` instead."""
    from devtools.upstream.control import Upstream

    with Upstream() as process:
        yield process


@pytest.fixture
def upstream(upstream_process: Upstream) -> Upstream:
    """The scripted gateway without any script and with its counters at zero."""
    upstream_process.reset()
    return upstream_process


@pytest.fixture(scope="session")
def plugin() -> Iterator[PluginProcess]:
    """This plugin as a process with the test host around it, one for all tests.

    Storage is emptied after each test; what the plugin keeps in memory is not, so tests that
    must not meet use different credentials.
    """
    from tests.host.daemon import PluginProcess

    with PluginProcess() as process:
        yield process


@pytest.fixture(autouse=True)
def _plugin_is_well(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that made the plugin break a rule of the host, and spare the next ones."""
    uses_plugin = "plugin" in request.fixturenames
    process: PluginProcess | None = request.getfixturevalue("plugin") if uses_plugin else None
    yield
    if process is None:
        return
    try:
        process.check()
    finally:
        process.storage.clear()
        if not process.alive:
            process.restart()
