"""The page that shows the usage in a browser: what a server has to send, without a server.

The page holds no data. It asks for the access token, keeps it for the browser tab alone and reads
``usage.json`` with it. All its addresses are relative, since a host serves it under a prefix that
only the host knows: the page as ``dashboard``, the rest as ``dashboard/style.css``,
``dashboard/script.js`` and ``usage.json?period=…``. It works under the strictest policy: with
``POLICY`` nothing is loaded, run or sent anywhere but to the server itself.
"""

from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

from jinja2 import Environment, StrictUndefined

from holysheep.config import VERSION
from holysheep.params import UsageGroup, UsagePeriod

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy that the page is written for."""

PERIODS: dict[UsagePeriod, str] = {
    "today": "Today",
    "yesterday": "Yesterday",
    "last_7_days": "7 days",
    "last_30_days": "30 days",
    "this_month": "This month",
}
DEFAULT_PERIOD: UsagePeriod = "last_7_days"

GROUPS: dict[UsageGroup | Literal["latency"], str] = {
    "model": "Model",
    "app": "App",
    "node": "Node",
    "status": "Status",
    "day": "Day",
    "latency": "Latency",
}
"""What the table can be about. The latency is the only one with columns of its own."""


class Column(NamedTuple):
    """A column of a table: a key of the rows, its head, and how the script formats it."""

    key: str
    label: str
    kind: Literal["name", "count", "usd", "ms", "share"]


COLUMNS = (
    Column("key", "Model", "name"),
    Column("requests", "Requests", "count"),
    Column("cached_requests", "Cached", "count"),
    Column("failed_requests", "Failed", "count"),
    Column("prompt_tokens", "Prompt tokens", "count"),
    Column("completion_tokens", "Completion tokens", "count"),
    Column("total_tokens", "Tokens", "count"),
    Column("cost_usd", "Spend", "usd"),
    Column("saved_usd", "Saved", "usd"),
    Column("unpriced_requests", "Unpriced", "count"),
    Column("avg_latency_ms", "Average latency", "ms"),
)

LATENCY_COLUMNS = (
    Column("key", "Latency", "name"),
    Column("requests", "Requests", "count"),
    Column("share", "Share", "share"),
    Column("cumulative_share", "This or faster", "share"),
)


@cache
def page() -> str:
    """The page, as HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(_read("dashboard.html.j2").decode())
    return template.render(
        version=VERSION,
        periods=PERIODS,
        default_period=DEFAULT_PERIOD,
        groups=GROUPS,
        columns=COLUMNS,
        latency_columns=LATENCY_COLUMNS,
    )


@cache
def stylesheet() -> bytes:
    """Its style sheet, as UTF-8."""
    return _read("style.css")


@cache
def script() -> bytes:
    """Its script, an ES module in UTF-8."""
    return _read("script.js")


def _read(name: str) -> bytes:
    return files("holysheep").joinpath("web", name).read_bytes()
