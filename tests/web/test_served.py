"""The dashboard as the plugin serves it: what it shows is what the ledger has counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.sync_api import expect

from devtools.upstream import behaviours as do
from tests.host.daemon import PluginProcess
from tests.host.endpoints import EndpointServer
from tests.web.browser import Visit
from tests.web.site import PREFIX, TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

    from devtools.upstream import Upstream

USAGE = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}
"""At the prices of gpt-4.1 this is 0.0036 USD."""


@dataclass
class Served:
    """A running plugin's dashboard. ``origin`` is the endpoint's address."""

    origin: str
    token: str = TOKEN

    @property
    def url(self) -> str:
        return f"{self.origin}/dashboard"

    def usage(self, period: str) -> dict[str, object]:
        found = httpx.get(
            f"{self.origin}/usage.json?period={period}",
            headers={"authorization": f"Bearer {self.token}"},
        )
        return dict(found.raise_for_status().json())


@pytest.fixture(scope="module")
def served(upstream_process: Upstream) -> Iterator[Served]:
    """A dashboard of a workspace in which two apps have made some calls."""
    upstream_process.reset()
    upstream_process.default(do.ok(usage=USAGE))
    credentials = {
        "api_key": "test-key-of-the-dashboard",
        "base_url": upstream_process.url,
        "requests_per_minute": "0",
        "daily_budget_usd": "0.02",
    }
    settings = {**credentials, "access_token": TOKEN}
    with (
        PluginProcess() as plugin,
        EndpointServer(plugin, settings, hook_id=PREFIX.removeprefix("/e/")) as server,
    ):

        def ask(query: str, app: str) -> None:
            parameters = {"query": query, "model": "gpt-4.1", "max_tokens": 200}
            result = plugin.call("holysheep_llm", parameters, credentials, app_id=app)
            assert result.error is None

        ask("Hello", "app-of-sheep")
        ask("Hello", "app-of-sheep")
        ask("Good morning", "app-of-goats")
        upstream_process.script(do.status(400))
        failed = plugin.call("holysheep_llm", {"query": "Bad", "model": "gpt-4.1"}, credentials)
        assert failed.error is not None
        yield Served(server.url)


@pytest.fixture
def visit(browser: Browser, served: Served) -> Iterator[Visit]:
    with Visit(browser, served) as visit:  # type: ignore[arg-type]
        yield visit
        visit.check()


def test_figures_are_those_of_the_ledger(visit: Visit, served: Served) -> None:
    visit.enter().choose("Today")
    totals = served.usage("today")["totals"]
    assert totals == {
        **totals,  # type: ignore[dict-item]
        "requests": 4,
        "cached_requests": 1,
        "failed_requests": 1,
        "cost_usd": 0.0072,
        "saved_usd": 0.0036,
    }
    assert visit.card("Requests")[0] == "4"
    assert visit.card("Failures")[0] == "1"
    assert visit.card("Cache hit rate")[0].startswith("25")
    assert visit.card("Spend")[0] == "$0.0072"
    assert visit.card("Saved")[0] == "$0.0036"
    assert visit.card("Spend today") == ("$0.0072", "36% of $0.02")
    visit.choose("App")
    assert sorted(visit.column("App")) == ["app-1", "app-of-goats", "app-of-sheep"]


def test_a_period_without_requests_is_empty(visit: Visit) -> None:
    visit.enter().choose("Yesterday")
    expect(visit.page.get_by_text("No requests")).to_be_visible()


@pytest.mark.parametrize(
    "options",
    [{"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 740}}],
    ids=["dark", "phone"],
)
def test_it_is_the_same_in_the_dark_and_on_a_phone(
    browser: Browser, served: Served, options: dict[str, object]
) -> None:
    with Visit(browser, served, **options) as visit:  # type: ignore[arg-type]
        visit.enter().choose("Today")
        assert visit.card("Spend")[0] == "$0.0072"
        page = visit.page
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        is_dark = sum(map(int, ground.removeprefix("rgb(").rstrip(")").split(","))) < 200
        assert is_dark == (options.get("color_scheme") == "dark")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        visit.check()


def test_a_wrong_token_is_told_and_shows_nothing(visit: Visit) -> None:
    visit.bears_failed_requests = True
    visit.open().type_token("not the token at all")
    expect(visit.page.get_by_label("Access token")).to_be_visible()
    expect(visit.page.locator("#figures")).to_be_hidden()
    expect(visit.page.get_by_text("This is not the access token.")).to_be_visible()


def test_the_policy_of_the_page_is_sent_with_every_part_of_it(served: Served) -> None:
    for path in ("dashboard", "dashboard/style.css", "dashboard/script.js"):
        headers = httpx.get(f"{served.origin}/{path}").headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
