"""A real browser for the tests of the page."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.web.browser import Visit
from tests.web.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium as the system has it.

    For one module only: as long as Playwright runs, its thread has a running event loop, which
    tests of other modules may not expect.
    """
    import os

    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.fail(
            "The tests of the dashboard need Chromium on PATH; Debian and Ubuntu have it: "
            "apt-get update && apt-get install -y chromium",
            pytrace=False,
        )
    # Chromium refuses its sandbox to root, whom containers often work as.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def site() -> Iterator[Site]:
    """A server that has the page, and data as the test says."""
    with Site() as site:
        yield site


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Visit]:
    """A visit of the page, in a window of 1280x900, that must end without trouble."""
    with Visit(browser, site) as visit:
        yield visit
        visit.check()
