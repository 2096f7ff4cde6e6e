"""The usage of a period: which days, which groups, exact sums, the export and back, the report."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from devtools.upstream import Upstream
from devtools.upstream import behaviours as do
from holysheep import BadRequest, Client, InputError
from holysheep.cli import main
from holysheep.ledger import Ledger
from holysheep.params import UsageGroup, UsagePeriod
from holysheep.report import usage_report
from holysheep.settings import Settings, parse_settings
from holysheep.tally import LATENCY_BOUNDS_MS, OTHER, Dimensions, Figures, latency_class
from holysheep.usage import GROUPS, NONE, BudgetStatus, Usage, UsageRow, read_usage, span_of
from tests.engine.disk import Disk
from tests.engine.raw_servers import forget_proxies
from tests.fakes import KEY, START_S, WALL_S, FakeClock

MINE = parse_settings({"api_key": KEY})
THEIRS = parse_settings({"api_key": f"{KEY}-of-another"})
Request = tuple[Dimensions, Figures]


def asked(
    cost: str = "0.001",
    *,
    saved: str = "0",
    prompt: int = 10,
    completion: int = 5,
    unpriced: int = 0,
    latency_ms: int = 100,
    of: Settings = MINE,
    model: str = "gpt-4.1",
    **dimensions: str,
) -> Request:
    """A request as the engine counts it."""
    names = Dimensions(credential=of.fingerprint, asked="asked-for", served=model, **dimensions)
    figures = Figures(
        requests=1,
        upstream_calls=1,
        prompt_tokens=prompt,
        completion_tokens=completion,
        unpriced=unpriced,
        latency_us=latency_ms * 1000,
        cost_usd=Decimal(cost),
        saved_usd=Decimal(saved),
        classes={latency_class(latency_ms): 1},
    )
    return names, figures


def hit(saved: str = "0.001", **options: Any) -> Request:
    return asked("0", saved=saved, prompt=0, completion=0, **{"cache": "hit", **options})


class Workspace:
    """A storage that processes have counted in, as time goes by."""

    def __init__(self, now: str = "2026-01-01T12:00") -> None:
        self.clock = FakeClock()
        self.disk = Disk(self.clock)
        self.at(now)
        self.process = self.another_process()

    def at(self, now: str) -> None:
        """Go on to a time, in UTC."""
        wall_s = datetime.fromisoformat(f"{now}+00:00").timestamp()
        self.clock.now_s = max(self.clock.now_s, START_S + wall_s - WALL_S)

    def another_process(self) -> Ledger:
        return Ledger(self.clock, lambda work: work())

    def count(
        self, *requests: Request, node: str = "llm", app: str = "app-1", process: Any = None
    ) -> None:
        """An invocation that makes these requests."""
        ledger: Ledger = process or self.process
        with ledger.invocation(node, app=app, store=self.disk.open()) as opened:
            for dimensions, figures in requests:
                opened.add(dimensions, figures)
                ledger.settle(dimensions.credential, Decimal(0), figures.cost_usd)

    def usage(
        self,
        period: UsagePeriod = "today",
        *,
        of: Settings | None = MINE,
        process: Ledger | None = None,
        give_way: Callable[[], object] = lambda: None,
    ) -> Usage:
        """What a usage node of a process that has just begun says, or of ``process``."""
        ledger = process or self.another_process()
        with ledger.invocation("usage", store=self.disk.open()):
            return read_usage(ledger, period, self.clock, credential=of, give_way=give_way)


def keys(usage: Usage, group: UsageGroup) -> list[str]:
    return [row.key for row in usage.rows[group]]


def by(usage: Usage, group: UsageGroup) -> dict[str, UsageRow]:
    return {row.key: row for row in usage.rows[group]}


# --- periods ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("period", "today", "first", "last"),
    [
        ("today", "2026-03-01", "2026-03-01", "2026-03-01"),
        ("yesterday", "2026-03-01", "2026-02-28", "2026-02-28"),
        ("yesterday", "2028-03-01", "2028-02-29", "2028-02-29"),
        ("yesterday", "2027-01-01", "2026-12-31", "2026-12-31"),
        ("last_7_days", "2026-07-31", "2026-07-25", "2026-07-31"),
        ("last_7_days", "2027-01-03", "2026-12-28", "2027-01-03"),
        ("last_30_days", "2026-03-01", "2026-01-31", "2026-03-01"),
        ("last_30_days", "2026-12-31", "2026-12-02", "2026-12-31"),
        ("this_month", "2026-12-31", "2026-12-01", "2026-12-31"),
        ("this_month", "2027-01-01", "2027-01-01", "2027-01-01"),
    ],
)
def test_a_period_is_a_span_of_days(period: UsagePeriod, today: str, first: str, last: str) -> None:
    expected = (date.fromisoformat(first), date.fromisoformat(last))
    assert span_of(period, date.fromisoformat(today)) == expected


@pytest.mark.parametrize(
    ("period", "days", "requests"),
    [
        ("today", ["2027-01-02"], 6),
        ("yesterday", ["2027-01-01"], 5),
        ("last_7_days", ["2026-12-31", "2027-01-01", "2027-01-02"], 4 + 5 + 6),
        (
            "last_30_days",
            ["2026-12-04", "2026-12-26", "2026-12-31", "2027-01-01", "2027-01-02"],
            2 + 3 + 4 + 5 + 6,
        ),
        ("this_month", ["2027-01-01", "2027-01-02"], 5 + 6),
    ],
)
def test_a_period_holds_its_days_and_no_other(
    period: UsagePeriod, days: list[str], requests: int
) -> None:
    workspace = Workspace("2026-12-03T12:00")
    for number, day in enumerate(
        ("2026-12-03", "2026-12-04", "2026-12-26", "2026-12-31", "2027-01-01", "2027-01-02"), 1
    ):
        workspace.at(f"{day}T12:00")
        workspace.count(*[asked()] * number)
    usage = workspace.usage(period)
    assert keys(usage, "day") == days
    assert usage.totals.requests == requests
    assert usage.missing == ()


def test_a_day_begins_at_midnight_utc() -> None:
    workspace = Workspace("2026-01-31T23:59:58")
    workspace.count(asked("1"))
    assert workspace.usage("today").totals.cost_usd == 1
    workspace.at("2026-02-01T00:00:01")
    workspace.count(asked("2"))
    assert workspace.usage("yesterday").totals.cost_usd == 1
    assert workspace.usage("today").totals.cost_usd == 2
    assert workspace.usage("this_month").totals.cost_usd == 2


def test_a_period_knows_all_its_days_also_those_without_requests() -> None:
    workspace = Workspace("2026-02-02T12:00")
    workspace.count(asked())
    usage = workspace.usage("last_7_days")
    assert keys(usage, "day") == ["2026-02-02"]
    assert (len(usage.days), usage.days[0]) == (7, date(2026, 1, 27))


# --- groups -------------------------------------------------------------------------------------


@pytest.fixture
def busy() -> Workspace:
    """Two days, two apps, three nodes, three models, failures, hits, another credential."""
    workspace = Workspace("2026-01-01T12:00")
    workspace.count(asked("0.5"), asked("0.25", model="small"), hit("0.5"))
    workspace.count(asked("4", of=THEIRS))
    workspace.at("2026-01-02T12:00")
    workspace.count(asked("0.125"), hit("0.125", cache="stale"), node="batch", app="app-2")
    workspace.count(
        asked("0", status="server_error", prompt=0, completion=0, latency_ms=900),
        asked("0", model="odd", unpriced=1),
        node="chain",
    )
    return workspace


def test_the_latency_has_every_class_and_every_request_of_the_credential(busy: Workspace) -> None:
    latency = busy.usage("last_7_days").latency
    assert [each.up_to_ms for each in latency] == [*LATENCY_BOUNDS_MS, None]
    assert {each.up_to_ms: each.requests for each in latency if each.requests} == {100: 6, 1000: 1}
    assert sum(each.requests for each in busy.usage("last_7_days", of=None).latency) == 8
    assert sum(each.requests for each in busy.usage("yesterday").latency) == 3


def test_requests_are_told_apart_by_each_group(busy: Workspace) -> None:
    usage = busy.usage("last_7_days")
    counts = {group: {row.key: row.requests for row in usage.rows[group]} for group in GROUPS}
    assert counts == {
        "day": {"2026-01-01": 3, "2026-01-02": 4},
        "model": {"gpt-4.1": 5, "small": 1, "odd": 1},
        "app": {"app-1": 5, "app-2": 2},
        "node": {"llm": 3, "batch": 2, "chain": 2},
        "status": {"ok": 6, "server_error": 1},
    }


def test_a_row_holds_the_figures_of_its_requests(busy: Workspace) -> None:
    assert by(busy.usage("last_7_days"), "model")["gpt-4.1"] == UsageRow(
        key="gpt-4.1",
        requests=5,
        cached_requests=2,
        failed_requests=1,
        prompt_tokens=20,
        completion_tokens=10,
        total_tokens=30,
        cost_usd=Decimal("0.625"),
        saved_usd=Decimal("0.625"),
        unpriced_requests=0,
        avg_latency_ms=260.0,
    )


def test_what_cost_most_comes_first_then_what_was_asked_most() -> None:
    workspace = Workspace()
    workspace.count(asked("1", model="a"), asked("2", model="b"))
    workspace.count(hit(model="c"), hit(model="d"), hit(model="d"), hit(model="bb"))
    assert keys(workspace.usage(), "model") == ["b", "a", "d", "bb", "c"]


def test_days_ascend_whatever_they_cost() -> None:
    workspace = Workspace("2026-01-30T12:00")
    for day, cost in (("01-30", "1"), ("01-31", "3"), ("02-01", "2")):
        workspace.at(f"2026-{day}T12:00")
        workspace.count(asked(cost))
    days = ["2026-01-30", "2026-01-31", "2026-02-01"]
    assert keys(workspace.usage("last_7_days"), "day") == days


def test_one_credential_sees_nothing_of_another(busy: Workspace) -> None:
    assert busy.usage("yesterday").totals.cost_usd == Decimal("0.75")
    assert busy.usage("yesterday", of=THEIRS).totals.cost_usd == 4
    whole = busy.usage("yesterday", of=None)
    assert whole.totals.cost_usd == Decimal("4.75")
    assert whole.budget is None, "a workspace has no budget of its own"


def test_the_hit_rate_is_the_part_that_needed_no_call() -> None:
    workspace = Workspace()
    assert workspace.usage().cache_hit_rate == 0
    workspace.count(asked(), hit(), hit(cache="coalesced"))
    assert workspace.usage().cache_hit_rate == Decimal("0.6667")


def test_who_waited_in_vain_for_the_call_of_another_has_failed_and_is_no_hit() -> None:
    workspace = Workspace()
    workspace.count(hit("0", cache="coalesced", status="server_error"))
    totals = workspace.usage().totals
    assert (totals.cached_requests, totals.failed_requests) == (0, 1)


def test_requests_of_no_app_are_named() -> None:
    workspace = Workspace()
    workspace.count(asked(), app="")
    assert keys(workspace.usage(), "app") == [NONE]


def test_a_group_of_many_names_puts_the_smallest_together_and_loses_nothing() -> None:
    workspace = Workspace()
    sizes = range(1, 1001)
    workspace.count(*[asked(str(n), model=f"model-{n}") for n in sizes])
    usage = workspace.usage()
    rows = usage.rows["model"]
    assert len(rows) == 300
    assert rows[0].key == OTHER
    assert rows[1].key == "model-1000"
    assert sum(row.cost_usd for row in rows) == usage.totals.cost_usd == sum(sizes)
    assert sum(row.requests for row in rows) == 1000


def test_what_the_ledger_has_put_together_joins_the_rest() -> None:
    workspace = Workspace()
    workspace.count(asked("0.5", model=OTHER), *[asked(model=f"m{n}") for n in range(400)])
    rows = workspace.usage().rows["model"]
    assert [row.key for row in rows].count(OTHER) == 1
    assert len(rows) == 300
    assert rows[0].cost_usd == Decimal("0.5") + Decimal("0.001") * (400 - 299)


AMOUNTS = st.decimals(0, 1000, places=12)
REQUESTS = st.builds(
    asked,
    AMOUNTS.map(str),
    saved=AMOUNTS.map(str),
    prompt=st.integers(0, 10**9),
    unpriced=st.integers(0, 1),
    of=st.sampled_from([MINE, THEIRS]),
    model=st.sampled_from(["a", "b", "c"]),
    status=st.sampled_from(["ok", "ok", "timeout"]),
    cache=st.sampled_from(["miss", "hit"]),
)


@settings(deadline=None)
@given(days=st.lists(st.lists(REQUESTS, max_size=4), min_size=1, max_size=5))
def test_every_group_adds_up_to_the_same_exact_totals(days: list[list[Request]]) -> None:
    workspace = Workspace()
    for number, requests in enumerate(days, 1):
        workspace.at(f"2026-01-{number:02}T12:00")
        workspace.count(*requests)
    mine = [
        figures
        for requests in days
        for names, figures in requests
        if names.credential == MINE.fingerprint
    ]
    usage = workspace.usage("last_7_days")
    assert usage.totals.cost_usd == sum(f.cost_usd for f in mine)
    assert usage.totals.saved_usd == sum(f.saved_usd for f in mine)
    assert usage.totals.prompt_tokens == sum(f.prompt_tokens for f in mine)
    summed = ("requests", "cached_requests", "failed_requests", "prompt_tokens", "total_tokens")
    for group in GROUPS:
        for name in (*summed, "cost_usd", "saved_usd", "unpriced_requests"):
            total = sum(getattr(row, name) for row in usage.rows[group])
            assert total == getattr(usage.totals, name), (group, name)


def test_a_million_small_amounts_are_not_rounded() -> None:
    workspace = Workspace()
    names, figures = asked("0.000000000001")
    with workspace.process.invocation("llm", store=workspace.disk.open()) as opened:
        for _ in range(1000):
            opened.add(names, figures)
    assert workspace.usage().totals.cost_usd == Decimal("0.000000001")


# --- where it comes from ------------------------------------------------------------------------


def test_all_processes_count_and_the_own_one_up_to_now() -> None:
    workspace = Workspace()
    other = workspace.another_process()
    workspace.count(asked("1"))
    workspace.count(asked("2"), process=other)
    assert workspace.usage().totals.cost_usd == 3
    names, figures = asked("4")
    other.add(names, figures)  # not written yet
    assert workspace.usage().totals.cost_usd == 3
    assert workspace.usage(process=other).totals.cost_usd == 7


def test_reading_counts_nothing_and_writes_nothing(busy: Workspace) -> None:
    busy.usage()  # whatever a new day has to put together
    before = dict(busy.disk.data)
    first, second = busy.usage("last_30_days"), busy.usage("last_30_days")
    assert first == second
    assert busy.disk.data == before


def test_others_may_run_between_the_days_that_are_added_up(busy: Workspace) -> None:
    turns: list[None] = []
    busy.usage("last_30_days", give_way=lambda: turns.append(None))
    assert len(turns) == 30


def test_a_damaged_record_is_said_and_the_rest_is_counted() -> None:
    workspace = Workspace()
    other = workspace.another_process()
    workspace.count(asked("1"))
    written = set(workspace.disk.data)
    workspace.count(asked("2"), process=other)
    (of_other,) = set(workspace.disk.data) - written
    workspace.disk.data[of_other] = b"not what was written"
    usage = workspace.usage()
    assert usage.totals.cost_usd == 1
    (sentence,) = usage.missing
    assert "2026-01-01" in sentence
    assert "damaged" in sentence
    assert sentence in usage_report(usage, "model")


def test_a_storage_that_is_away_is_said_and_the_own_part_is_counted() -> None:
    workspace = Workspace()
    workspace.count(asked("1"))
    workspace.disk.fault = lambda *_: "the storage is down"
    usage = workspace.usage("last_30_days", process=workspace.process)
    assert usage.totals.cost_usd == 1
    (sentence,) = usage.missing
    assert "the storage is down" in sentence
    nothing = workspace.usage("last_30_days")
    assert nothing.totals.requests == 0
    assert usage_report(nothing, "model").startswith("No requests from ")
    assert "the storage is down" in usage_report(nothing, "model")


# --- budget -------------------------------------------------------------------------------------


def with_limits(**limits: str) -> Settings:
    return parse_settings({"api_key": KEY, **limits})


def test_a_budget_is_what_is_spent_today_and_this_month() -> None:
    workspace = Workspace("2026-01-31T12:00")
    workspace.count(asked("8"))
    workspace.at("2026-02-01T12:00")
    workspace.count(asked("1"))
    workspace.at("2026-02-05T12:00")
    workspace.count(asked("2"), asked("64", of=THEIRS))
    limits = with_limits(daily_budget_usd="5", monthly_budget_usd="50")
    expected = BudgetStatus(Decimal(5), Decimal(2), Decimal(50), Decimal(3))
    for process in (workspace.process, workspace.another_process()):
        assert workspace.usage("yesterday", of=limits, process=process).budget == expected


@pytest.mark.parametrize("limits", [{}, {"daily_budget_usd": "5"}], ids=["none", "daily"])
def test_what_is_spent_is_known_also_without_a_limit(limits: dict[str, str]) -> None:
    workspace = Workspace("2026-02-01T12:00")
    workspace.count(asked("1"))
    workspace.at("2026-02-05T12:00")
    workspace.count(asked("2"))
    budget = workspace.usage(of=with_limits(**limits)).budget
    assert budget is not None
    assert (budget.daily_spent_usd, budget.monthly_spent_usd) == (2, 3)
    assert budget.monthly_limit_usd is None
    assert budget.to_json()["monthly_limit_usd"] is None


# --- export -------------------------------------------------------------------------------------


def exported(usage: Usage) -> Any:
    """The document as a file holds it."""
    return json.loads(json.dumps(usage.to_json(), allow_nan=False))


def test_an_export_says_what_it_is_about(busy: Workspace) -> None:
    document = exported(busy.usage("last_7_days", of=with_limits(daily_budget_usd="5")))
    assert list(document) == [
        *("period", "from", "to", "totals"),
        *("by_day", "by_model", "by_app", "by_node", "by_status"),
        *("latency", "budget", "missing"),
    ]
    assert (document["period"], document["from"], document["to"]) == (
        "last_7_days",
        "2025-12-27",
        "2026-01-02",
    )
    assert document["totals"]["cost_usd"] == 0.875
    assert document["budget"]["daily_limit_usd"] == 5
    assert document["by_app"][1]["key"] == "app-2"
    assert MINE.fingerprint not in json.dumps(document)


@pytest.mark.parametrize(
    "period", ["today", "yesterday", "last_7_days", "last_30_days", "this_month"]
)
@pytest.mark.parametrize("of", [MINE, with_limits(daily_budget_usd="0.7"), None])
def test_an_export_is_read_back(busy: Workspace, period: UsagePeriod, of: Settings | None) -> None:
    usage = busy.usage(period, of=of)
    assert Usage.from_json(exported(usage)) == usage


@settings(deadline=None)
@given(requests=st.lists(REQUESTS, max_size=5))
def test_money_survives_the_way_to_json_and_back(requests: list[Request]) -> None:
    workspace = Workspace()
    workspace.count(*requests)
    document = exported(workspace.usage(of=None))
    assert exported(Usage.from_json(document)) == document


def test_an_export_with_something_missing_is_read_back() -> None:
    workspace = Workspace()
    workspace.disk.fault = lambda *_: "away"
    usage = workspace.usage()
    assert usage.missing
    assert Usage.from_json(exported(usage)) == usage


def changed(document: Any, path: str, value: Any) -> Any:
    """``document`` with another value in one place; ``...`` takes it away."""
    *parents, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    place = document
    for step in parents:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return document


DAMAGES: dict[str, tuple[str, Any, str]] = {
    "no period": ("period", ..., "it has no period"),
    "period": ("period", "today ", "its period is 'today '"),
    "period of a list": ("period", [], "its period is []"),
    "another period": ("period", "last_7_days", "last_7_days does not go from"),
    "from": ("from", "yesterday", "its from is 'yesterday', no day"),
    "from is a number": ("from", 20260101, "its from is 20260101, no day"),
    "the first day of all": ("to", "0001-01-01", "does not go from"),
    "the last day of all": ("to", "9999-12-31", "does not go from"),
    "one key more": ("note", 1, "it has a key 'note'"),
    "totals": ("totals", None, "totals is no object"),
    "rows": ("by_model", {}, "by_model is no list"),
    "a row": ("by_model/0", [], "by_model 0 is no object"),
    "a row without its key": ("by_model/0/key", ..., "by_model 0 has no key"),
    "a count below 0": ("by_app/1/requests", -1, "by_app 1 has requests -1, no number"),
    "a count with a fraction": ("totals/total_tokens", 1.5, "total_tokens 1.5, no number"),
    "a count that is a text": ("totals/requests", "4", "totals has requests '4', no number"),
    "a count that is a truth": ("totals/requests", True, "totals has requests True, no number"),
    "a count beyond all": ("totals/requests", 10**400, "totals has requests"),
    "a cost below 0": ("totals/cost_usd", -0.1, "cost_usd -0.1, no number from 0 on"),
    "a cost that is none": ("totals/cost_usd", None, "cost_usd None, no number"),
    "a cost that is a truth": ("totals/cost_usd", False, "cost_usd False, no number"),
    "a cost beyond all": ("totals/cost_usd", 10**400, "totals has cost_usd"),
    "infinite": ("totals/avg_latency_ms", float("inf"), "avg_latency_ms inf, no number"),
    "not a number": ("totals/saved_usd", float("nan"), "saved_usd nan, no number"),
    "a name that is none": ("by_node/0/key", 7, "by_node 0 has key 7, no text"),
    "a name without end": ("by_node/0/key", "x" * 1001, "by_node 0 has key"),
    "another day": ("by_day/0/key", "2025-01-01", "no day of it"),
    "a row that is gone": ("by_status/0", ..., "the requests of by_status are not 4 together"),
    "latency": ("latency", None, "latency is no list"),
    "a latency that is none": ("latency/0/requests", 0.5, "latency 0 has requests 0.5, no number"),
    "a class that is gone": ("latency/3", ..., "latency has other classes than"),
    "another class": ("latency/3/up_to_ms", 101, "latency has other classes than"),
    "budget": ("budget", 5, "budget is no object"),
    "a limit": ("budget/daily_limit_usd", "5", "daily_limit_usd '5', no number"),
    "missing": ("missing", "nothing", "missing is no list"),
    "a sentence": ("missing", [1], "missing 1, no text"),
}


@pytest.mark.parametrize(("path", "value", "told"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_export_is_refused_in_one_sentence(
    busy: Workspace, path: str, value: Any, told: str
) -> None:
    document = exported(busy.usage("today"))
    assert document["totals"]["requests"] == 4
    with pytest.raises(InputError) as refused:
        Usage.from_json(changed(document, path, value))
    message = refused.value.message
    assert message.startswith("This is no export of the usage node: ")
    assert told in message
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize("value", [None, [], [{}, {}], "x", 1, {}])
def test_what_is_no_document_at_all_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="This is no export of the usage node: "):
        Usage.from_json(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(deadline=None)
@given(data=st.data(), value=JSON)
def test_whatever_stands_in_an_export_it_is_read_or_refused(data: Any, value: Any) -> None:
    workspace = Workspace()
    workspace.count(asked(), hit())
    document = exported(workspace.usage())
    path = data.draw(st.sampled_from(sorted(paths(document))))
    try:
        usage = Usage.from_json(changed(document, path, value))
    except InputError:
        return
    for group in GROUPS:
        usage_report(usage, group)


def paths(value: Any, before: str = "") -> Iterator[str]:
    items: Any = enumerate(value) if isinstance(value, list) else ()
    for key, inner in value.items() if isinstance(value, dict) else items:
        yield f"{before}{key}"
        yield from paths(inner, f"{before}{key}/")


# --- report -------------------------------------------------------------------------------------


def table_of(report: str) -> list[list[str]]:
    """The cells of the table, as a Markdown reader splits them; fails for one that breaks."""
    lines = [line for line in report.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") and "\\" not in line for line in lines)
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    assert {len(row) for row in rows} == {8}
    assert set(rows[1]) == {"---", "---:"}
    return [rows[0], *rows[2:]]


def chart_of(report: str) -> Any:
    """What Dify draws; fails for a block that would not be one."""
    block = re.fullmatch(r".*\n\n```echarts\n([^\n]*)\n```\n\n[^`]*", report, re.DOTALL)
    assert block is not None, report
    assert not set("`<>&$") & set(block[1])
    assert block[1].isascii()
    return json.loads(block[1])


def notes_of(report: str) -> list[str]:
    return report.rpartition("\n\n")[2].splitlines()


def test_a_report_is_a_table_with_a_total(busy: Workspace) -> None:
    report = usage_report(busy.usage("last_7_days"), "model")
    assert report.startswith("**Usage by model from 2025-12-27 to 2026-01-02 (UTC)**\n\n| Model |")
    head, *rows = table_of(report)
    assert head[1:] == [
        *("Requests", "Cached", "Failed", "Tokens", "Cost", "Saved", "Average latency")
    ]
    assert rows == [
        ["gpt-4.1", "5", "2", "1", "30", "0.625 USD", "0.625 USD", "260.0 ms"],
        ["small", "1", "0", "0", "15", "0.25 USD", "0 USD", "100.0 ms"],
        ["odd", "1", "0", "0", "15", "0 USD", "0 USD", "100.0 ms"],
        ["**Total**", "7", "2", "1", "60", "0.875 USD", "0.625 USD", "214.3 ms"],
    ]


@pytest.mark.parametrize("group", GROUPS)
def test_the_first_column_is_named_after_the_group(busy: Workspace, group: UsageGroup) -> None:
    usage = busy.usage("last_7_days")
    head, *rows = table_of(usage_report(usage, group))
    assert head[0] == group.capitalize()
    assert [row[0] for row in rows[:-1]] == keys(usage, group)


def test_large_counts_are_told_in_groups_of_three() -> None:
    workspace = Workspace()
    workspace.count(asked(prompt=1_234_567))
    assert table_of(usage_report(workspace.usage(), "model"))[1][4] == "1,234,572"


def test_a_long_table_says_how_much_more_there_is() -> None:
    workspace = Workspace()
    workspace.count(*[asked(str(60 - n), model=f"m{n:02}") for n in range(60)])
    _, *rows = table_of(usage_report(workspace.usage(), "model"))
    assert len(rows) == 50 + 2
    assert rows[49][0] == "m49"
    assert rows[50] == ["and 10 more", *[""] * 7]
    assert rows[51][:2] == ["**Total**", "60"]


def test_the_notes_say_what_the_figures_come_to(busy: Workspace) -> None:
    usage = busy.usage(
        "last_7_days", of=with_limits(daily_budget_usd="5", monthly_budget_usd="50.50")
    )
    assert notes_of(usage_report(usage, "day")) == [
        "Cache hit rate: 28.57 % (2 of 7 requests), which saved 0.625 USD.",
        "Of the daily budget of 5 USD, 0.125 USD is spent.",
        "Of the monthly budget of 50.5 USD, 0.875 USD is spent.",
        "The cost of 1 request is not known and not included (odd): add a price to"
        " price_overrides in the credential.",
    ]


def test_what_is_not_the_case_is_not_told() -> None:
    workspace = Workspace()
    workspace.count(asked())
    assert notes_of(usage_report(workspace.usage(), "model")) == [
        "Cache hit rate: 0 % (0 of 1 request), which saved 0 USD."
    ]


def test_many_models_without_a_price_are_not_all_named() -> None:
    workspace = Workspace()
    workspace.count(*[asked("0", model=f"m{n}", unpriced=1) for n in range(9)])
    note = notes_of(usage_report(workspace.usage(), "model"))[-1]
    assert "9 requests" in note
    assert "(m0, m1, m2, m3, m4, …)" in note


@pytest.mark.parametrize(
    ("period", "told"),
    [
        ("today", "No requests on 2026-01-01 (UTC)."),
        ("last_7_days", "No requests from 2025-12-26 to 2026-01-01 (UTC)."),
    ],
)
@pytest.mark.parametrize("group", GROUPS)
def test_a_period_without_requests_is_one_sentence(
    period: UsagePeriod, told: str, group: UsageGroup
) -> None:
    assert usage_report(Workspace().usage(period), group) == told


def test_the_chart_has_a_bar_for_each_key_as_high_as_its_cost(busy: Workspace) -> None:
    chart = chart_of(usage_report(busy.usage("last_7_days"), "model"))
    assert chart["yAxis"]["data"] == ["gpt-4.1", "small", "odd"]
    (series,) = chart["series"]
    assert (series["type"], series["data"]) == ("bar", [0.625, 0.25, 0.0])
    assert chart["title"]["text"] == "Cost in USD by model"


def test_the_chart_of_days_has_every_day(busy: Workspace) -> None:
    chart = chart_of(usage_report(busy.usage("last_7_days"), "day"))
    assert chart["xAxis"]["data"] == [f"2025-12-{day}" for day in range(27, 32)] + [
        "2026-01-01",
        "2026-01-02",
    ]
    assert chart["series"][0]["data"] == [0, 0, 0, 0, 0, 0.75, 0.125]


def test_where_nothing_cost_anything_the_chart_is_of_requests() -> None:
    workspace = Workspace()
    workspace.count(hit(), hit(), hit(model="b"))
    chart = chart_of(usage_report(workspace.usage(), "model"))
    assert chart["series"][0]["data"] == [2, 1]
    assert chart["title"]["text"] == "Requests by model"


def test_a_chart_of_many_says_that_it_is_a_part() -> None:
    workspace = Workspace()
    workspace.count(*[asked(str(n), model=f"m{n}") for n in range(1, 31)])
    chart = chart_of(usage_report(workspace.usage(), "model"))
    assert len(chart["series"][0]["data"]) == 20
    assert chart["title"]["text"] == "Cost in USD by model, the first 20 of 30"


def test_where_nobody_draws_there_is_no_chart(busy: Workspace) -> None:
    usage = busy.usage()
    drawn, plain = usage_report(usage, "model"), usage_report(usage, "model", draws=False)
    assert "```" not in plain
    assert table_of(plain) == table_of(drawn)
    assert notes_of(plain) == notes_of(drawn)


HOSTILE = [
    "a|b",
    "a\\|b",
    "\\",
    "```",
    "~~~\n```\n",
    "a\n| --- |\n",
    "\r\n\u2028\x00\x1b[31m",
    "<script>alert(1)</script>",
    "</think>",
    "<!--",
    "[x](javascript:alert(1))",
    "![x](https://example.org/pixel.png)",
    "**Total**",
    "_x_ *y* ~z~",
    "$x$ \\(y\\) \\[z\\]",
    "&lt;b&gt;",
    '"}]}',
    "\ud800",
    "x" * 1000,
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_of_others_break_neither_table_nor_chart(name: str) -> None:
    document = exported(busy_document())
    for group in ("model", "app"):
        document[f"by_{group}"][0]["key"] = name
        document[f"by_{group}"][0]["unpriced_requests"] = 1
    document["totals"]["unpriced_requests"] = 1
    document["missing"] = [f"Lost: {name}"[:1000]]
    usage = Usage.from_json(document)
    for group in ("model", "app"):
        report = usage_report(usage, group)
        report.encode()
        for line in report.splitlines():
            assert line.isprintable()
        rows = table_of(report)
        assert len(rows) == 1 + 1 + 1
        markup = re.sub(r"&#\d+;", "", rows[1][0] + "".join(notes_of(report)))
        assert not set("\\`*[]<>|$~&") & set(markup)
        assert "://" not in markup
        assert not re.search(r"(^|\W)_|_(\W|$)", markup.replace("price_overrides", ""))
        chart = chart_of(report)
        (shown,) = chart["yAxis"]["data"]
        assert len(shown) <= 40


def busy_document() -> Usage:
    workspace = Workspace()
    workspace.count(asked("0.5"))
    return workspace.usage()


@settings(deadline=None)
@given(name=st.text(max_size=30))
def test_whatever_a_model_is_called_its_report_has_one_row(name: str) -> None:
    document = exported(busy_document())
    document["by_model"][0]["key"] = name
    report = usage_report(Usage.from_json(document), "model")
    assert len(table_of(report)) == 3
    chart_of(report)


@pytest.mark.parametrize(
    "name",
    [
        "gpt-4.1",
        "models/gemini-2.5-flash",
        "my_own_model",
        "claude@20250929",
        "a:b",
        "名前",
        "(other)",
    ],
)
def test_an_ordinary_name_stands_there_as_it_is(name: str) -> None:
    workspace = Workspace()
    workspace.count(asked(model=name))
    report = usage_report(workspace.usage(), "model")
    assert table_of(report)[1][0] == name
    assert chart_of(report)["yAxis"]["data"] == [name]


# --- command line -------------------------------------------------------------------------------


class TestCommand:
    @pytest.fixture
    def file(self, busy: Workspace, tmp_path: Path) -> Path:
        path = tmp_path / "export.json"
        usage = busy.usage("last_7_days", of=with_limits(daily_budget_usd="5"))
        path.write_text(json.dumps(usage.to_json()), encoding="utf-8")
        return path

    def run(self, *arguments: Any, stdin: Any = None) -> Any:
        """Without a key or a gateway."""
        runner = CliRunner(env={"HOLYSHEEP_API_KEY": None, "HOLYSHEEP_BASE_URL": None})
        return runner.invoke(main, ["usage", *map(str, arguments)], input=stdin)

    def test_an_export_is_shown_as_the_node_shows_it(self, file: Path, busy: Workspace) -> None:
        ran = self.run(file)
        assert (ran.exit_code, ran.stderr) == (0, "")
        usage = busy.usage("last_7_days", of=with_limits(daily_budget_usd="5"))
        assert ran.stdout == usage_report(usage, "model", draws=False) + "\n"

    @pytest.mark.parametrize("group", GROUPS)
    def test_by_another_group(self, file: Path, group: str) -> None:
        assert f"| {group.capitalize()} |" in self.run(file, "--group-by", group).stdout

    def test_rows_as_json(self, file: Path) -> None:
        rows = json.loads(self.run(file, "--group-by", "app", "--json").stdout)
        assert rows == json.loads(file.read_text(encoding="utf-8"))["by_app"]

    @pytest.mark.parametrize("spelled", [json.dumps, repr, lambda value: json.dumps(value[0])])
    @pytest.mark.parametrize("before", ["", "\ufeff"], ids=["plain", "bom"])
    def test_an_export_as_a_workflow_hands_it_on(
        self, file: Path, spelled: Callable[[Any], str], before: str
    ) -> None:
        shown = self.run(file).stdout
        document = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(before + spelled([document]), encoding="utf-8")
        assert self.run(file).stdout == shown

    def test_an_export_from_standard_input(self, file: Path) -> None:
        assert self.run("-", stdin=file.read_bytes()).stdout == self.run(file).stdout

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"", "This is no export of the usage node"),
            (b"{", "This is no export of the usage node"),
            (b"[]", "This is no export of the usage node"),
            (b"[" * 100_000, "This is no export of the usage node"),
            (b'{"period": "today"}', "it has no from"),
            (b"\xff\xfe\x00", "The input is not UTF-8 text"),
        ],
        ids=["empty", "half", "nothing", "deep", "part", "bytes"],
    )
    def test_what_is_no_export_is_an_error_of_one_line(
        self, tmp_path: Path, content: bytes, told: str
    ) -> None:
        path = tmp_path / "bad.json"
        path.write_bytes(content)
        for ran in (self.run(path), self.run("-", stdin=content)):
            assert (ran.exit_code, ran.stdout) == (2, "")
            assert len(ran.stderr.splitlines()) == 1
            assert ran.stderr.startswith("error: invalid_input: ")
            assert told in ran.stderr

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none.json", tmp_path):
            ran = self.run(path)
            assert (ran.exit_code, ran.stdout) == (2, "")
            assert ran.stderr.startswith(f"error: invalid_input: {path} cannot be read: ")

    def test_a_group_that_is_none_is_refused(self, file: Path) -> None:
        ran = self.run(file, "--group-by", "user")
        assert ran.exit_code == 2
        assert ran.stderr == (
            "error: invalid_input: group_by must be one of model, day, app, node, status,"
            " got 'user'.\n"
        )


# --- library ------------------------------------------------------------------------------------


class TestClient:
    @pytest.fixture
    def client(self, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
        forget_proxies(monkeypatch)
        settings = {"requests_per_minute": 0, "daily_budget_usd": 5}
        with Client(KEY, base_url=upstream.url, **settings) as client:
            yield client

    def test_a_client_knows_what_its_calls_came_to(
        self, upstream: Upstream, client: Client
    ) -> None:
        results = [client.chat(text, model="gpt-4.1") for text in ("a", "b", "b")]
        upstream.script(do.status(400))
        with pytest.raises(BadRequest):
            client.chat("c", model="gpt-5.4", max_retries=0)
        usage = client.usage()
        totals = usage.totals
        assert (totals.requests, totals.cached_requests, totals.failed_requests) == (4, 1, 1)
        assert totals.cost_usd == sum(result.cost_usd or 0 for result in results) > 0
        assert totals.saved_usd == results[2].usage.saved_usd
        assert totals.total_tokens == sum(r.tokens_used for r in results if not r.cached)
        assert keys(usage, "model") == ["gpt-4.1", "gpt-5.4"]
        assert keys(usage, "node") == ["library"]
        assert keys(usage, "app") == [NONE]
        assert set(keys(usage, "status")) == {"ok", "bad_request"}
        assert usage.missing == (), "there is no storage that something could be missing in"
        assert usage.budget is not None
        assert usage.budget.daily_limit_usd == 5
        assert usage.budget.daily_spent_usd == totals.cost_usd

    def test_a_client_that_has_asked_nothing_has_no_usage(self, client: Client) -> None:
        for period in ("today", "yesterday", "last_7_days", "last_30_days", "this_month"):
            usage = client.usage(period)
            assert (usage.period, usage.totals.requests, usage.missing) == (period, 0, ())

    def test_another_period_is_refused(self, client: Client) -> None:
        with pytest.raises(InputError, match=r"period must be one of today, .*, got 'forever'"):
            client.usage("forever")
