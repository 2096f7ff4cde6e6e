"""A visit of the page with a browser, and what every visit has to respect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlsplit

from playwright.sync_api import expect

from tests.web.site import PREFIX, TOKEN

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page

    from tests.web.site import Site

_WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`);
});
"""


class Visit:
    """A tab of a browser at the page. ``options`` are those of a Playwright context."""

    def __init__(self, browser: Browser, site: Site, **options: Any) -> None:
        self.site = site
        self.troubles: list[str] = []
        self.urls: list[str] = []
        self.bears_failed_requests = False
        options = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"} | options
        self.context = browser.new_context(**options)
        self.context.add_init_script(_WATCH)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self.urls.append(request.url))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def _hear(self, message: ConsoleMessage) -> None:
        is_failure = message.text.startswith("Failed to load resource")
        if message.type in {"error", "warning"} and not (is_failure and self.bears_failed_requests):
            self.troubles.append(message.text)

    def check(self) -> None:
        """No errors, no violation of the policy, nothing from elsewhere, no token in a URL."""
        assert self.troubles == []
        assert self.page.evaluate("window.violations") == []
        host = urlsplit(self.site.url).netloc
        for url in (*self.urls, self.page.url):
            parts = urlsplit(url)
            assert parts.scheme == "data" or (
                parts.netloc == host and parts.path.startswith(PREFIX)
            ), url
            for token in (self.site.token, quote(self.site.token), self.site.token.split()[0]):
                assert token not in url

    # --- what somebody does ---

    def open(self) -> Self:
        self.page.goto(self.site.url)
        return self

    def type_token(self, token: str = TOKEN) -> Self:
        self.page.get_by_label("Access token").fill(token)
        self.page.get_by_role("button", name="Show the usage").click()
        return self

    def enter(self) -> Self:
        """Open the page and sign in; the figures are there then."""
        self.open().type_token()
        expect(self.page.locator("#figures")).to_be_visible()
        return self

    def choose(self, label: str) -> Self:
        """A period or a group of the table."""
        self.page.get_by_role("radio", name=label, exact=True).check()
        self.settle()
        return self

    def settle(self) -> Self:
        expect(self.page.locator("#dashboard")).to_have_attribute("aria-busy", "false")
        return self

    # --- what there is to see ---

    def card(self, label: str) -> tuple[str, str]:
        """The figure of a card, and the note below it."""
        card = self.page.locator(".card", has=self.page.get_by_text(label, exact=True))
        return spaced(card.locator(".figure")), spaced(card.locator(".note"))

    def table(self) -> list[list[str]]:
        """The rows of the table that is shown, without its head; the last one is the total."""
        rows: list[list[str]] = self.page.locator("table:visible").evaluate(
            """table => [...table.tBodies[0].rows, ...table.tFoot.rows].map(
                 row => [...row.cells].map(cell => cell.textContent))"""
        )
        return [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in rows]

    def column(self, head: str) -> list[str]:
        """The cells below a head, without the total."""
        heads = [spaced(cell) for cell in self.page.locator("table:visible thead th").all()]
        number = heads.index(head)
        return [row[number] for row in self.table()[:-1]]

    @property
    def fault(self) -> Locator:
        return self.page.locator("#fault")


def spaced(locator: Locator) -> str:
    return (locator.text_content() or "").replace("\N{NO-BREAK SPACE}", " ").strip()
