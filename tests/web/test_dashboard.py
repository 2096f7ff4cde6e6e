"""The page in a real browser, against a server that sends scripted data with the strict policy."""

from __future__ import annotations

import itertools
import os
import threading
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Browser, expect

from holysheep import dashboard
from tests.web.browser import Visit
from tests.web.documents import (
    BUDGET,
    HOSTILE_NAMES,
    TODAY,
    Batch,
    busy_workspace,
    document,
)
from tests.web.site import TOKEN, Answer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from holysheep.params import UsagePeriod
    from tests.web.site import Site

BUSY = busy_workspace()
AUDIT = (Path(__file__).parent / "audit.js").read_text(encoding="utf-8")
ASSETS = Path(__file__).parents[2] / "_assets"


def has(site: Site, batches: Iterable[Batch], **options: Any) -> None:
    """Let the server have these requests."""
    batches = list(batches)
    site.answer = lambda period: Answer(document(period, batches, **options))  # type: ignore[arg-type]


@pytest.fixture
def busy(site: Site, visit: Visit) -> Visit:
    """The page with the figures of seven days of a busy workspace."""
    has(site, BUSY)
    return visit.enter()


def week() -> Any:
    return document("last_7_days", BUSY)


# --- figures as the page writes them -------------------------------------------------------------


def count(number: int) -> str:
    return f"{number:,}"


def usd(amount: float) -> str:
    if 0 < amount < 0.000001:
        return "<$0.000001"
    most = 2 if amount >= 1 else 4 if amount >= 0.01 else 6
    return f"${rounded(amount, most, 2)}"


def percent(part: float, whole: float) -> str:
    return f"{rounded(100 * part / whole if whole else 0, 1)}%"


def span(ms: float) -> str:
    if ms < 10:
        return f"{rounded(ms, 1)} ms"
    return f"{rounded(ms / 1000, 2)} s" if ms >= 999.5 else f"{rounded(ms, 0)} ms"


def rounded(number: float, most: int, least: int = 0) -> str:
    """With so many digits after the point, zeros at the end left out."""
    text = f"{Decimal(number).quantize(Decimal(1).scaleb(-most), ROUND_HALF_UP):,f}"
    if "." not in text:
        return text
    whole, _, digits = text.partition(".")
    digits = digits.rstrip("0").ljust(least, "0")
    return f"{whole}.{digits}" if digits else whole


FORMATS = {"count": count, "usd": usd, "ms": span}


def cells(row: dict[str, Any], name: str | None = None) -> list[str]:
    """What a table has for a row of the JSON."""
    key, *others = dashboard.COLUMNS
    return [name or row[key.key], *(FORMATS[other.kind](row[other.key]) for other in others)]


# --- in and out ----------------------------------------------------------------------------------


def test_the_token_is_asked_for_once_and_kept_for_the_tab(site: Site, visit: Visit) -> None:
    has(site, BUSY)
    visit.open()
    expect(visit.page.get_by_label("Access token")).to_be_focused()
    expect(visit.page.locator("#dashboard")).to_be_hidden()
    assert site.periods == []
    visit.type_token()
    expect(visit.page.locator("#figures")).to_be_visible()
    expect(visit.page.get_by_label("Access token")).to_be_hidden()
    visit.page.reload()
    expect(visit.page.locator("#figures")).to_be_visible()
    expect(visit.page.get_by_label("Access token")).to_be_hidden()
    assert visit.page.evaluate("Object.values(sessionStorage)") == [TOKEN]
    assert visit.page.evaluate("localStorage.length") == 0


def test_the_token_travels_in_one_header_of_one_kind_of_request(site: Site, busy: Visit) -> None:
    busy.choose("30 days").page.reload()
    busy.settle()
    for path, headers in site.seen:
        told = [name.lower() for name, value in headers.items() if TOKEN in value]
        assert told == (["authorization"] if "/usage.json?" in path else []), path
        assert TOKEN.split()[0] not in path
        assert "Referer" not in headers


def test_spaces_around_a_pasted_token_do_not_matter(site: Site, visit: Visit) -> None:
    has(site, BUSY)
    visit.open().type_token(f"  {TOKEN}\t")
    expect(visit.page.locator("#figures")).to_be_visible()


@pytest.mark.parametrize("token", ["wrong", "Пароль", "wörter"])
def test_a_wrong_token_is_told_and_asked_for_again(site: Site, visit: Visit, token: str) -> None:
    has(site, BUSY)
    visit.bears_failed_requests = True
    visit.open().type_token(token)
    field = visit.page.get_by_label("Access token")
    expect(visit.page.get_by_role("alert")).to_have_text("This is not the access token.")
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(visit.page.locator("#dashboard")).to_be_hidden()
    assert visit.page.evaluate("sessionStorage.length") == 0
    visit.type_token()
    expect(visit.page.locator("#figures")).to_be_visible()
    expect(visit.page.locator("#token-message")).to_have_text("")


def test_a_blank_token_is_not_sent(site: Site, visit: Visit) -> None:
    visit.open().type_token("   ")
    expect(visit.page.get_by_role("alert")).to_have_text("Enter the access token.")
    assert site.periods == []


def test_a_token_that_is_changed_meanwhile_ends_the_session(site: Site, busy: Visit) -> None:
    busy.bears_failed_requests = True
    site.token = "another token"
    busy.page.get_by_role("button", name="Refresh").click()
    expect(busy.page.get_by_role("alert")).to_have_text(
        "The access token is not accepted any more."
    )
    assert TOKEN not in busy.page.evaluate("Object.values(sessionStorage)")


def test_signing_out_forgets_the_token_and_every_figure(site: Site, busy: Visit) -> None:
    busy.page.get_by_role("button", name="Sign out").click()
    expect(busy.page.get_by_label("Access token")).to_be_focused()
    expect(busy.page.get_by_role("status")).to_have_text("Signed out")
    assert TOKEN not in busy.page.evaluate("Object.values({...sessionStorage, ...localStorage})")
    assert busy.page.get_by_label("Access token").input_value() == ""
    whole = busy.page.evaluate("document.documentElement.outerHTML")
    assert "$" not in whole
    assert "gpt-4.1" not in whole
    asked = len(site.periods)
    busy.page.reload()
    expect(busy.page.get_by_label("Access token")).to_be_visible()
    assert len(site.periods) == asked


def test_signing_out_while_the_server_is_asked_leaves_the_form(site: Site, busy: Visit) -> None:
    gate = threading.Event()
    site.answer = lambda _: Answer(week(), gate=gate)
    with busy.page.expect_request("**/usage.json*"):
        busy.page.get_by_role("button", name="Refresh").click()
    busy.page.get_by_role("button", name="Sign out").click()
    gate.set()
    busy.page.wait_for_timeout(200)
    expect(busy.page.get_by_label("Access token")).to_be_visible()
    expect(busy.page.locator("#dashboard")).to_be_hidden()
    expect(busy.page.locator("main")).not_to_contain_text("$")


def test_another_tab_asks_for_the_token_again(site: Site, busy: Visit) -> None:
    other = busy.context.new_page()
    other.goto(site.url)
    expect(other.get_by_label("Access token")).to_be_visible()


def test_a_browser_that_keeps_nothing_can_still_show_the_usage(site: Site, visit: Visit) -> None:
    has(site, BUSY)
    visit.context.add_init_script(
        """for (const name of ["sessionStorage", "localStorage"]) {
             Object.defineProperty(window, name, {get() { throw new DOMException("no"); }});
           }"""
    )
    visit.enter().choose("30 days")
    visit.page.get_by_role("button", name="Dark").click()
    expect(visit.page.get_by_role("button", name="Dark")).to_have_attribute("aria-pressed", "true")
    visit.page.get_by_role("button", name="Sign out").click()
    expect(visit.page.get_by_label("Access token")).to_be_visible()


def test_without_scripts_the_page_says_what_it_needs(browser: Browser, site: Site) -> None:
    with Visit(browser, site, java_script_enabled=False) as visit:
        visit.open()
        expect(visit.page.get_by_text("This page needs its script")).to_be_visible()
        expect(visit.page.get_by_label("Access token")).to_be_hidden()


# --- figures -------------------------------------------------------------------------------------


def test_the_cards_have_the_figures_of_the_json(busy: Visit) -> None:
    totals = week()["totals"]
    requests, cost, saved = totals["requests"], totals["cost_usd"], totals["saved_usd"]
    assert busy.card("Spend") == (usd(cost), f"{usd(cost / requests)} per request")
    assert busy.card("Requests")[0] == count(requests)
    assert busy.card("Requests")[1].endswith(f" · avg {span(totals['avg_latency_ms'])}")
    assert busy.card("Cache hit rate") == (
        percent(totals["cached_requests"], requests),
        f"{count(totals['cached_requests'])} from the cache",
    )
    assert busy.card("Saved") == (usd(saved), f"{usd(cost + saved)} without cache")
    figure, note = busy.card("Failures")
    assert figure == count(totals["failed_requests"])
    assert note.startswith(f"{percent(totals['failed_requests'], requests)} of requests, most: ")
    assert busy.card("Spend today") == ("$1.84", "36.8% of $5.00")
    assert busy.card("Spend this month") == ("$50.12", "83.5% of $60.00")


def test_the_table_has_the_figures_of_the_json(busy: Visit) -> None:
    found = week()
    for group in ("Model", "App", "Node", "Status", "Day"):
        busy.choose(group)
        assert busy.table() == [
            *(cells(row) for row in found[f"by_{group.lower()}"]),
            cells(found["totals"], "Total"),
        ]
        expect(busy.page.locator("table:visible caption")).to_have_text(
            f"Usage by {group.lower()}, Nov 19 – 25, 2025"
        )


def test_the_table_has_the_latency_of_the_json(busy: Visit) -> None:
    busy.choose("Latency")
    classes = week()["latency"]
    whole = sum(each["requests"] for each in classes)
    below = list(itertools.accumulate(each["requests"] for each in classes))
    names = [f"up to {span(each['up_to_ms'])}" for each in classes[:-1]]
    assert busy.table() == [
        *(
            [name, count(each["requests"]), percent(each["requests"], whole), percent(sum_, whole)]
            for name, each, sum_ in zip([*names, "over 60 s"], classes, below, strict=True)
        ),
        ["Total", count(whole), "100%", "100%"],
    ]


def test_the_columns_of_the_days_are_as_high_as_their_spend(busy: Visit) -> None:
    days = week()["by_day"]
    heights = busy.page.locator("#days .fill").evaluate_all(
        "bars => bars.map(bar => Number(bar.getAttribute('height')))"
    )
    most = max(range(len(days)), key=lambda index: days[index]["cost_usd"])
    assert len(heights) == 7
    for day, height in zip(days, heights, strict=True):
        expected = heights[most] * day["cost_usd"] / days[most]["cost_usd"]
        assert height == pytest.approx(expected, abs=0.5)


def test_a_day_without_requests_has_its_place(site: Site, visit: Visit) -> None:
    cost = Decimal("0.5")
    days = [replace(BUSY[0], day=TODAY.replace(day=day), cost_usd=cost) for day in (20, 25)]
    has(site, days)
    visit.enter()
    heights = visit.page.locator("#days .fill").evaluate_all(
        "bars => bars.map(bar => Number(bar.getAttribute('height')) > 0)"
    )
    assert heights == [False, True, False, False, False, False, True]


def test_lists_are_as_long_as_their_spend_and_put_the_rest_together(
    site: Site, visit: Visit
) -> None:
    has(site, [Batch(TODAY, f"model-{n}", cost_usd=Decimal(n)) for n in range(1, 12)])
    visit.enter()
    names = visit.page.locator("#models .name").all_text_contents()
    values = visit.page.locator("#models .value").all_text_contents()
    widths = visit.page.locator("#models .fill").evaluate_all(
        "bars => bars.map(bar => Number(bar.getAttribute('width')))"
    )
    assert names == [*(f"model-{n}" for n in range(11, 4, -1)), "4 more"]
    figures = [*range(11, 4, -1), 10]
    assert values == [f"{usd(n)} · {percent(n, 66)}" for n in figures]
    for n, width in zip(figures, widths, strict=True):
        assert width == pytest.approx(widths[0] * n / 11, abs=0.5)


def test_where_nothing_has_a_price_the_charts_show_requests(site: Site, visit: Visit) -> None:
    has(site, [Batch(TODAY, "odd", requests=3, unpriced=3), Batch(TODAY, "even", unpriced=1)])
    visit.enter()
    for title in ("Requests per day", "Requests per model", "Requests per app"):
        expect(visit.page.get_by_role("heading", name=title)).to_be_visible()
    assert visit.page.locator("#models .value").all_text_contents() == ["3 · 75%", "1 · 25%"]


def test_charts_tell_in_words_what_they_show(busy: Visit) -> None:
    days = busy.page.get_by_role("img", name="Bar chart of the spend per day")
    expect(days).to_have_attribute(
        "aria-label",
        "Bar chart of the spend per day: 7 days, at most "
        "$2.99 on Mon, Nov 24. All figures are in the table below, under “Day”.",
    )
    expect(
        busy.page.get_by_role("img", name="Histogram of the latency of all requests: Half")
    ).to_be_visible()
    assert busy.page.locator("[role=img]:visible").count() == 4


def test_the_pointer_reads_a_bar(busy: Visit) -> None:
    readout = busy.page.locator("#days .readout")
    expect(readout).to_have_text("7 days, at most $2.99 on Mon, Nov 24")
    busy.page.locator("#days .hit").first.hover()
    first = week()["by_day"][0]
    expect(readout).to_have_text(
        f"Wed, Nov 19: {usd(first['cost_usd'])}, {count(first['requests'])} requests"
    )
    busy.page.mouse.move(2, 2)
    expect(readout).to_have_text("7 days, at most $2.99 on Mon, Nov 24")


AMOUNTS = {
    "0": "$0.00",
    "0.00000012": "<$0.000001",
    "0.000001": "$0.000001",
    "0.0012345": "$0.001235",
    "0.0123456": "$0.0123",
    "0.123456": "$0.1235",
    "0.5": "$0.50",
    "1": "$1.00",
    "1234.567": "$1,234.57",
    "123456789.01": "$123,456,789.01",
}


def test_small_amounts_have_more_digits(site: Site, visit: Visit) -> None:
    has(site, [Batch(TODAY, amount, cost_usd=Decimal(amount)) for amount in AMOUNTS])
    visit.enter()
    assert dict(zip(visit.column("Model"), visit.column("Spend"), strict=True)) == AMOUNTS
    assert visit.card("Spend")[0] == "$123,458,025.21"


def test_budgets_say_how_much_of_them_is_spent(site: Site, visit: Visit) -> None:
    budget = replace(BUDGET, daily_spent_usd=Decimal("5.5"), monthly_limit_usd=None)
    has(site, BUSY, budget=budget)
    visit.enter()
    assert visit.card("Spend today") == ("$5.50", "110% of $5.00: limit reached")
    assert visit.card("Spend this month") == ("$50.12", "no limit")
    meter = visit.page.get_by_role("meter")
    expect(meter).to_have_count(1)
    expect(meter).to_have_attribute("aria-valuenow", "100")
    expect(meter).to_have_attribute("aria-valuetext", "110% of $5.00")


def test_a_limit_of_nothing_is_reached(site: Site, visit: Visit) -> None:
    budget = replace(BUDGET, daily_limit_usd=Decimal(0), daily_spent_usd=Decimal(0))
    has(site, BUSY, budget=budget)
    visit.enter()
    assert visit.card("Spend today") == ("$0.00", "100% of $0.00: limit reached")


def test_without_a_budget_its_cards_are_not_there(site: Site, visit: Visit) -> None:
    has(site, BUSY, budget=None)
    visit.enter()
    expect(visit.page.get_by_text("Spend today")).to_be_hidden()
    expect(visit.page.get_by_role("heading", name="Budget")).to_be_hidden()


def test_what_is_missing_is_told(site: Site, visit: Visit) -> None:
    sentences = ["The day 2025-11-20 cannot be read.", "<b>Some</b> of it is lost."]
    has(site, BUSY, missing=sentences)
    visit.enter()
    notes = visit.page.get_by_role("list", name="What is not in the figures")
    expect(notes.get_by_role("listitem")).to_have_text(sentences)


def test_requests_without_a_price_are_told(site: Site, visit: Visit) -> None:
    has(site, [Batch(TODAY, requests=5, unpriced=2), Batch(TODAY, "x", cost_usd=Decimal(1))])
    visit.enter()
    expect(visit.page.locator("#notes li")).to_have_text(
        "2 of 6 requests went to models whose price is not known, and count as $0.00. "
        "Price overrides in the settings can change that."
    )


def test_nothing_missing_is_not_told(busy: Visit) -> None:
    expect(busy.page.locator("#notes")).to_be_hidden()


# --- periods and order ---------------------------------------------------------------------------


@pytest.mark.parametrize(("period", "label"), dashboard.PERIODS.items())
def test_each_period_is_read_and_shown(
    site: Site, busy: Visit, period: UsagePeriod, label: str
) -> None:
    busy.choose(label)
    found = document(period, BUSY)
    assert site.periods[-1] == period
    assert busy.card("Requests")[0] == count(found["totals"]["requests"])
    expect(busy.page.get_by_role("heading", name=label, exact=True)).to_be_visible()
    busy.choose("Day")
    assert busy.table()[:-1] == [cells(row) for row in found["by_day"]]
    busy.page.reload()
    expect(busy.page.get_by_role("radio", name=label, exact=True)).to_be_checked()
    expect(busy.page.locator("#figures")).to_be_visible()
    assert site.periods[-1] == period


def test_the_answer_for_a_period_that_is_left_is_not_shown(site: Site, busy: Visit) -> None:
    gate = threading.Event()
    late = Answer(document("last_30_days", BUSY), gate=gate)
    early = Answer(document("yesterday", BUSY))
    site.answer = lambda period: late if period == "last_30_days" else early
    busy.page.get_by_role("radio", name="30 days").check()
    busy.choose("Yesterday")
    gate.set()
    busy.page.wait_for_timeout(200)
    assert busy.card("Requests")[0] == count(early.body["totals"]["requests"])
    expect(busy.page.locator("#span")).to_have_text("Nov 24, 2025")


def test_the_arrow_keys_change_the_period(site: Site, busy: Visit) -> None:
    busy.page.get_by_role("radio", name="7 days").focus()
    busy.page.keyboard.press("ArrowRight")
    expect(busy.page.get_by_role("radio", name="30 days")).to_be_checked()
    busy.settle()
    assert site.periods[-1] == "last_30_days"


def test_every_column_sorts_both_ways(busy: Visit) -> None:
    heads = busy.page.locator("table:visible thead th")
    expect(heads.nth(7)).to_have_attribute("aria-sort", "descending")  # the order of the server
    for number, column in enumerate(dashboard.COLUMNS):
        directions = ["ascending", "descending"]
        if column.kind != "name":
            directions.reverse()
        for direction in directions:
            heads.nth(number).get_by_role("button", name=column.label, exact=True).click()
            expect(heads.nth(number)).to_have_attribute("aria-sort", direction)
            expect(busy.page.locator("th[aria-sort$=scending]:visible")).to_have_count(1)
            expect(busy.page.get_by_role("status")).to_have_text(
                f"Sorted by {column.label}, {direction}"
            )
            is_down = direction == "descending"
            rows = sorted(week()["by_model"], key=lambda row: row[column.key], reverse=is_down)
            assert busy.table()[:-1] == [cells(row) for row in rows]


def test_names_with_numbers_sort_by_the_numbers(site: Site, visit: Visit) -> None:
    has(site, [Batch(TODAY, name) for name in ("m-10", "m-9", "M-1")])
    visit.enter()
    visit.page.get_by_role("button", name="Model", exact=True).click()
    assert visit.column("Model") == ["M-1", "m-9", "m-10"]


def test_classes_of_the_latency_sort_by_their_bounds(busy: Visit) -> None:
    busy.choose("Latency")
    ascending = busy.column("Latency")
    busy.page.get_by_role("button", name="Latency", exact=True).click()
    assert busy.column("Latency") == ascending[::-1]
    busy.page.get_by_role("button", name="Requests", exact=True).last.click()
    counts = [int(text.replace(",", "")) for text in busy.column("Requests")]
    assert counts == sorted(counts, reverse=True)


def test_the_order_of_each_group_is_kept_when_the_figures_are_read_again(busy: Visit) -> None:
    busy.page.get_by_role("button", name="Requests", exact=True).click()
    by_requests = busy.column("Model")
    busy.choose("Day")
    assert busy.column("Day") == [row["key"] for row in week()["by_day"]]
    busy.choose("Model")
    busy.page.get_by_role("button", name="Refresh").click()
    busy.settle()
    assert busy.column("Model") == by_requests


# --- states --------------------------------------------------------------------------------------


def test_an_empty_period_says_so(site: Site, visit: Visit) -> None:
    has(site, [])
    visit.enter()
    expect(visit.page.locator("#empty")).to_have_text("No requests from Nov 19 – 25, 2025.")
    expect(visit.page.locator("#details")).to_be_hidden()
    assert visit.card("Requests") == ("0", "0 tokens")
    assert visit.card("Cache hit rate")[0] == "0%"
    assert visit.card("Spend") == ("$0.00", "")
    visit.choose("Today")
    expect(visit.page.locator("#empty")).to_have_text("No requests on Nov 25, 2025.")
    has(site, BUSY)
    visit.choose("7 days")
    expect(visit.page.locator("#empty")).to_be_hidden()
    expect(visit.page.locator("#days svg")).to_be_visible()


def test_while_the_server_is_asked_the_page_says_so(site: Site, visit: Visit) -> None:
    gate = threading.Event()
    site.answer = lambda _: Answer(week(), gate=gate)
    visit.open().type_token()
    expect(visit.page.locator("#dashboard")).to_have_attribute("aria-busy", "true")
    visit.page.reload()
    expect(visit.page.locator("#loading")).to_be_visible()
    expect(visit.page.get_by_role("status")).to_have_text("Reading the usage")
    gate.set()
    visit.settle()
    expect(visit.page.locator("#loading")).to_be_hidden()
    expect(visit.page.get_by_role("status")).to_contain_text("Usage of Nov 19 – 25, 2025: ")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer({}, 500), "The server answered with status 500."),
        (
            Answer({"error": {"message": "The <b>storage</b> is away."}}, 503),
            "The server answered with status 503: The <b>storage</b> is away.",
        ),
        (Answer({"error": "no"}, 404), "The server answered with status 404: no"),
        (Answer(status=502, text="<html>Bad gateway"), "The server answered with status 502."),
        (Answer({"error": {"message": "x" * 5000}}, 500), "x" * 300),
        (Answer(text="<!doctype html>"), "The server answered with something that is no usage."),
        (Answer([]), "The server answered with something that is no usage."),
        (Answer({"totals": {}}), "The server answered with something that is no usage."),
    ],
)
def test_an_error_is_told_and_another_attempt_offered(
    site: Site, visit: Visit, answer: Answer, told: str
) -> None:
    visit.bears_failed_requests = True
    site.answer = lambda _: answer
    visit.open().type_token()
    expect(visit.fault).to_be_visible()
    expect(visit.fault.locator("p")).to_contain_text(told)
    expect(visit.page.locator("#figures")).to_be_hidden()
    has(site, BUSY)
    visit.page.get_by_role("button", name="Try again").click()
    expect(visit.page.locator("#figures")).to_be_visible()
    expect(visit.fault).to_be_hidden()


def test_after_an_error_the_figures_of_before_stay(site: Site, busy: Visit) -> None:
    busy.bears_failed_requests = True
    site.answer = lambda _: Answer({}, 500)
    busy.page.get_by_role("button", name="Refresh").click()
    expect(busy.fault).to_contain_text("The figures are those of before.")
    assert busy.card("Requests")[0] == count(week()["totals"]["requests"])


def test_after_an_error_no_figures_stand_below_another_period(site: Site, busy: Visit) -> None:
    busy.bears_failed_requests = True
    site.answer = lambda _: Answer({}, 500)
    busy.choose("30 days")
    expect(busy.fault.locator("p")).to_have_text("The server answered with status 500.")
    expect(busy.page.locator("#figures")).to_be_hidden()
    expect(busy.page.locator("#span")).to_have_text("")


def test_offline_is_told_and_ends_by_itself(busy: Visit) -> None:
    busy.bears_failed_requests = True
    busy.context.set_offline(True)
    busy.page.get_by_role("button", name="Refresh").click()
    expect(busy.fault).to_contain_text("This device is offline.")
    busy.context.set_offline(False)
    expect(busy.fault).to_be_hidden()


def test_a_server_that_is_gone_is_told(site: Site, visit: Visit) -> None:
    visit.bears_failed_requests = True
    has(site, BUSY)
    visit.enter()
    visit.page.route("**/usage.json*", lambda route: route.abort("connectionrefused"))
    visit.page.get_by_role("button", name="Refresh").click()
    expect(visit.fault).to_contain_text("The server cannot be reached.")


def test_a_server_that_does_not_answer_is_told(site: Site, visit: Visit) -> None:
    gate = threading.Event()
    site.answer = lambda _: Answer(week(), gate=gate)
    visit.page.clock.install()
    visit.open().type_token()
    expect(visit.page.locator("#dashboard")).to_have_attribute("aria-busy", "true")
    visit.page.clock.fast_forward(30_000)
    expect(visit.fault).to_contain_text("The server has not answered within 30 seconds.")
    gate.set()


# --- reading again -------------------------------------------------------------------------------


def turn(visit: Visit, state: str) -> None:
    """Let the tab be ``hidden`` or ``visible``."""
    visit.page.evaluate(
        """state => {
             Object.defineProperty(document, "visibilityState", {value: state, configurable: true});
             document.dispatchEvent(new Event("visibilitychange"));
           }""",
        state,
    )


def test_the_figures_are_read_again_every_minute(site: Site, visit: Visit) -> None:
    has(site, BUSY[:50])
    visit.page.clock.install()
    visit.enter()
    visit.page.evaluate("document.getElementById('announcer').textContent = 'as it was'")
    has(site, BUSY)
    visit.page.clock.fast_forward(59_000)
    assert len(site.periods) == 1
    visit.page.clock.fast_forward(1_500)
    expect(visit.page.locator("#requests .figure")).to_have_text(
        count(week()["totals"]["requests"])
    )
    assert len(site.periods) == 2
    # Nobody has asked for it: a screen reader is not interrupted.
    expect(visit.page.get_by_role("status")).to_have_text("as it was")
    visit.page.clock.fast_forward(61_000)
    visit.settle()
    expect(visit.page.locator("#updated")).to_contain_text("Updated ")
    assert len(site.periods) == 3


def test_a_hidden_tab_does_not_ask_and_asks_at_once_when_it_is_late(
    site: Site, visit: Visit
) -> None:
    has(site, BUSY)
    visit.page.clock.install()
    visit.enter()
    turn(visit, "hidden")
    visit.page.clock.fast_forward(600_000)
    assert len(site.periods) == 1
    with visit.page.expect_request("**/usage.json*"):
        turn(visit, "visible")
        visit.page.clock.fast_forward(10)
    visit.settle()
    turn(visit, "hidden")
    turn(visit, "visible")
    visit.page.clock.fast_forward(1000)
    assert len(site.periods) == 2


def test_after_signing_out_nothing_is_read_again(site: Site, visit: Visit) -> None:
    has(site, BUSY)
    visit.page.clock.install()
    visit.enter()
    visit.page.get_by_role("button", name="Sign out").click()
    visit.page.clock.fast_forward(600_000)
    assert len(site.periods) == 1


# --- names that others have chosen ---------------------------------------------------------------


@pytest.fixture
def hostile(site: Site, visit: Visit) -> Visit:
    has(
        site,
        [
            Batch(TODAY, name, name, name, name, requests=2, cost_usd=Decimal(1))
            for name in HOSTILE_NAMES
        ],
        missing=HOSTILE_NAMES,
    )
    return visit.enter()


def test_hostile_names_are_text(hostile: Visit) -> None:
    wanted = {clean(name) for name in HOSTILE_NAMES if name.strip()}
    for group in ("Model", "App", "Node", "Status"):
        hostile.choose(group)
        shown = hostile.column(group)
        assert {clean(name) for name in shown if name != "(blank)"} == wanted
        assert shown.count("(blank)") == 2
    hostile.page.locator("#models .hit").first.hover()
    hostile.page.locator("#apps .hit").last.hover()
    expect(hostile.page.locator("img, main script, main style, main a")).to_have_count(0)
    assert hostile.page.evaluate("window.broken") is None


def clean(name: str) -> str:
    """Half a pair of surrogates does not survive the way out of the browser."""
    return name.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def test_long_names_keep_both_ends_and_do_not_reach_the_figures(hostile: Visit) -> None:
    names = hostile.page.locator("#models .name")
    assert names.filter(has_text="…").count() > 0
    overlaps = hostile.page.locator("#models g").evaluate_all(
        """rows => rows.filter(row => {
             const [name, value] = row.querySelectorAll("text");
             return name.getBBox().x + name.getBBox().width > value.getBBox().x;
           }).length"""
    )
    assert overlaps == 0


# --- light, dark, small --------------------------------------------------------------------------


def ground(visit: Visit) -> str:
    return str(visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))


LIGHT, DARK = "rgb(244, 246, 244)", "rgb(17, 23, 26)"


def test_the_system_decides_and_the_switch_overrules_it(site: Site, busy: Visit) -> None:
    switch = busy.page.get_by_role("button", name="Dark")
    expect(switch).to_have_attribute("aria-pressed", "false")
    assert ground(busy) == LIGHT
    busy.page.emulate_media(color_scheme="dark")
    expect(switch).to_have_attribute("aria-pressed", "true")
    assert ground(busy) == DARK
    switch.click()
    expect(switch).to_have_attribute("aria-pressed", "false")
    assert ground(busy) == LIGHT
    busy.page.reload()
    expect(switch).to_have_attribute("aria-pressed", "false")
    assert ground(busy) == LIGHT
    assert busy.page.evaluate("({...localStorage})") == {"holysheep.theme": "light"}
    switch.click()
    assert ground(busy) == DARK
    assert busy.page.evaluate("localStorage.length") == 0


WIDTHS = (320, 360, 768, 1280)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_window_has_to_be_scrolled_sideways(browser: Browser, site: Site, width: int) -> None:
    with Visit(browser, site, viewport={"width": width, "height": 740}) as visit:
        visit.bears_failed_requests = True
        visit.open()
        fits(visit)
        batches = [Batch(TODAY, n, n, n, cost_usd=Decimal("1234567.891")) for n in HOSTILE_NAMES]
        rich = replace(BUDGET, daily_spent_usd=Decimal(10) ** 9)
        has(site, [*BUSY, *batches], missing=HOSTILE_NAMES, budget=rich)
        visit.type_token()
        for label in (*dashboard.GROUPS.values(), *dashboard.PERIODS.values()):
            visit.choose(label)
            fits(visit)
        has(site, [])
        visit.choose("Today")
        fits(visit)
        site.answer = lambda _: Answer({"error": {"message": "x" * 5000}}, 500)
        visit.choose("30 days")
        expect(visit.fault).to_be_visible()
        fits(visit)
        visit.check()


def fits(visit: Visit) -> None:
    page, window = visit.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert page <= window
    outside = visit.page.locator("main *:visible:not(#scroller *, svg *, input)").evaluate_all(
        """all => all.filter(each => each.getBoundingClientRect().right > innerWidth + 0.5)
                     .map(each => each.outerHTML.slice(0, 90))"""
    )
    assert outside == []


def test_charts_follow_the_width_of_the_window(busy: Visit) -> None:
    chart = busy.page.locator("#days svg")
    expect(chart).to_have_attribute("width", "1182")
    busy.page.set_viewport_size({"width": 360, "height": 740})
    expect(chart).to_have_attribute("width", "302")


# --- readers without a mouse or without eyes -----------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_stands_in_the_way_of_a_reader(browser: Browser, site: Site, scheme: str) -> None:
    with Visit(browser, site, color_scheme=scheme, reduced_motion="reduce") as visit:
        visit.bears_failed_requests = True
        visit.open()
        assert visit.page.evaluate(AUDIT) == []
        visit.type_token("wrong")
        expect(visit.page.locator("#token-message")).not_to_be_empty()
        assert visit.page.evaluate(AUDIT) == []
        spent = replace(BUDGET, daily_spent_usd=Decimal(6))
        has(site, [*BUSY, Batch(TODAY, unpriced=1)], budget=spent)
        visit.type_token()
        expect(visit.page.locator("#figures")).to_be_visible()
        for label in dashboard.GROUPS.values():
            visit.choose(label)
            assert visit.page.evaluate(AUDIT) == []
        has(site, [])
        visit.choose("Yesterday")
        assert visit.page.evaluate(AUDIT) == []
        site.answer = lambda _: Answer({}, 500)
        visit.choose("Today")
        expect(visit.fault).to_be_visible()
        assert visit.page.evaluate(AUDIT) == []


def test_the_audit_finds_what_it_looks_for(busy: Visit) -> None:
    busy.page.evaluate(
        """() => {
             document.querySelector("#refresh").replaceChildren();
             document.querySelector("#days svg").removeAttribute("role");
             document.querySelector("#days h2").outerHTML = "<h4>x</h4>";
             document.querySelector("#span").style.color = "#999";
             document.querySelector("#updated").id = "span";
           }"""
    )
    problems = "\n".join(busy.page.evaluate(AUDIT))
    for part in ("has no name: <button", "neither an image", "h4 follows h2", "contrast 2.", "two"):
        assert part in problems


def test_every_control_can_be_reached_by_key_and_shows_its_focus(busy: Visit) -> None:
    busy.page.reload()  # the focus has been put into the figures
    expect(busy.page.locator("#days svg")).to_be_visible()
    reached = []
    for _ in range(40):
        busy.page.keyboard.press("Tab")
        found = busy.page.evaluate(
            """() => {
                 const element = document.activeElement;
                 const shown = element.matches("input[type=radio]")
                   ? element.nextElementSibling : element;
                 const style = getComputedStyle(shown);
                 return {
                   name: element.value || element.id || element.textContent.trim(),
                   isBody: element === document.body,
                   outline: `${style.outlineStyle} ${style.outlineWidth}`,
                 };
               }"""
        )
        if found["isBody"]:
            break
        assert found["outline"] == "solid 2px", found
        reached.append(found["name"])
    heads = [column.label for column in dashboard.COLUMNS]
    assert reached == [
        *("Skip to the figures", "theme", "sign-out", "last_7_days", "refresh", "model"),
        *("scroller", *heads),
    ]


def test_the_focus_is_not_lost_when_the_form_goes(busy: Visit) -> None:
    expect(busy.page.locator("main")).to_be_focused()


# --- pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_are_small(browser: Browser, site: Site, scheme: str, tmp_path: Path) -> None:
    """They are written to the assets where HOLYSHEEP_PICTURES asks for it, and else nowhere."""
    days = {
        row["key"]: Decimal(str(row["cost_usd"])) for row in document("this_month", BUSY)["by_day"]
    }
    spent = replace(
        BUDGET,
        daily_spent_usd=days[TODAY.isoformat()],
        monthly_spent_usd=sum(days.values(), Decimal(0)),
    )
    has(site, BUSY, budget=spent)
    folder = ASSETS if os.environ.get("HOLYSHEEP_PICTURES") else tmp_path
    with Visit(browser, site, color_scheme=scheme) as visit:
        visit.page.clock.set_fixed_time("2025-11-25T14:32:05")
        visit.enter()
        visit.page.mouse.move(2, 2)
        path = folder / f"dashboard-{scheme}.png"
        visit.page.screenshot(path=path, animations="disabled")
        visit.check()
    assert path.stat().st_size < 200_000
