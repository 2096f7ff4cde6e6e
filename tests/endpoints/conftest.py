"""Fixtures of the tests that talk to the plugin's endpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.endpoints.support import TOKEN_MARK, Endpoint
from tests.host.endpoints import EndpointServer
from tests.nodes.support import KEY_MARK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devtools.upstream import Upstream
    from tests.host.daemon import PluginProcess


@pytest.fixture(scope="session")
def server(plugin: PluginProcess) -> Iterator[EndpointServer]:
    """The HTTP server in front of the plugin, one for all tests."""
    with EndpointServer(plugin) as running:
        yield running


@pytest.fixture
def endpoint(plugin: PluginProcess, upstream: Upstream, server: EndpointServer) -> Endpoint:
    """An endpoint whose token, credential and model no other test has."""
    return Endpoint(plugin, upstream, server)


@pytest.fixture(autouse=True)
def _nothing_got_out(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test after which a secret is where it must not be, or a call still runs."""
    process: PluginProcess | None = None
    if "plugin" in request.fixturenames:
        process = request.getfixturevalue("plugin")
    yield
    if process is None:
        return
    try:
        seen = repr((process.stderr, process.logs, process.late, process.storage.data))
        assert KEY_MARK not in seen, "a key has left the process"
        assert TOKEN_MARK not in seen, "a token has left the process"
    finally:
        if process.open_calls:
            process.restart()
