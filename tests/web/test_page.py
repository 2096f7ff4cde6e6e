"""The files of the page as they are sent, without a browser."""

from __future__ import annotations

import re
from dataclasses import fields
from html.parser import HTMLParser
from typing import get_args

import pytest

from holysheep import config, dashboard
from holysheep.params import UsageGroup, UsagePeriod
from holysheep.usage import UsageRow


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(dashboard.page())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


TAGS = Tags().found
SCRIPT = dashboard.script().decode()
STYLE = dashboard.stylesheet().decode()


def values(tag: str, **attributes: str) -> list[str | None]:
    return [
        found["value"]
        for name, found in TAGS
        if name == tag and all(found.get(key) == value for key, value in attributes.items())
    ]


def test_every_address_is_relative() -> None:
    addresses = {found[name] for _, found in TAGS for name in ("href", "src") if name in found}
    assert {address for address in addresses if not (address or "").startswith("data:")} == {
        "dashboard/style.css",
        "dashboard/script.js",
        "#content",
    }


def test_nothing_is_inline() -> None:
    for tag, found in TAGS:
        assert not [name for name in found if name == "style" or name.startswith("on")], tag
        assert tag != "style"
        assert tag != "script" or "src" in found


def test_the_token_field_has_no_name_that_a_form_could_send() -> None:
    (field,) = [found for tag, found in TAGS if found.get("id") == "token"]
    assert "name" not in field
    assert field["type"] == "password"
    assert field["autocomplete"] == "off"


def test_the_periods_are_those_of_the_usage() -> None:
    assert values("input", name="period") == list(get_args(UsagePeriod))
    assert [
        found["value"] for tag, found in TAGS if "checked" in found and found["name"] == "period"
    ] == [dashboard.DEFAULT_PERIOD]


def test_the_table_is_about_every_group() -> None:
    assert sorted(map(str, values("input", name="group"))) == sorted(
        [*get_args(UsageGroup), "latency"]
    )


def test_the_table_has_every_figure_of_a_row() -> None:
    assert [column.key for column in dashboard.COLUMNS] == [
        field.name for field in fields(UsageRow)
    ]


def test_the_version_is_told() -> None:
    assert f"HolySheep AI {config.VERSION} " in dashboard.page()


@pytest.mark.parametrize(
    "word",
    [
        *("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("),
        *("createContextualFragment", "DOMParser", "setHTML", "document.cookie", "import "),
    ],
)
def test_the_script_has_no_way_to_make_markup_or_code_of_text(word: str) -> None:
    assert word not in SCRIPT


def test_nothing_names_another_host() -> None:
    for text in (SCRIPT, STYLE, dashboard.page()):
        hosts = set(re.findall(r"https?://[^\s\"'`)]+", text))
        assert hosts <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(", STYLE)


def test_the_page_is_made_once() -> None:
    assert dashboard.page() is dashboard.page()
    assert dashboard.script() is dashboard.script()
    assert dashboard.stylesheet() is dashboard.stylesheet()
