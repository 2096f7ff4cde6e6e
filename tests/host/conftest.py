"""Fixtures of the tests that hold the test host to Dify's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.host.daemon import NOOP_PLUGIN, PluginProcess

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def noop_process() -> Iterator[PluginProcess]:
    with PluginProcess(NOOP_PLUGIN, provider="noop") as process:
        yield process


@pytest.fixture
def noop(noop_process: PluginProcess) -> Iterator[PluginProcess]:
    """A running noop plugin with empty storage; a test that breaks it pays for the restart."""
    if not noop_process.alive:
        noop_process.restart()
    noop_process.storage.clear()
    noop_process.late.clear()
    yield noop_process
    noop_process.check()
