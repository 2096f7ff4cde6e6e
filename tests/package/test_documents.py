"""The documents agree with the declarations and with the engine."""

import re
import tomllib
from collections.abc import Iterator

import pytest

from holysheep import config, errors
from holysheep.options import Options
from holysheep.shared.address import parse_redis_url
from holysheep.shared.check import OLDEST, RULES
from tests.package.declared import (
    CREDENTIALS,
    HAN,
    KANA,
    LLM,
    MANIFEST,
    NODES,
    ROOT,
    every_node,
    parameters,
    type_of,
)

# --- Documents ----------------------------------------------------------------------------------

README = (ROOT / "README.md").read_text(encoding="utf-8")
PRIVACY = (ROOT / "PRIVACY.md").read_text(encoding="utf-8")


def table(first_header: str | None) -> list[list[str]]:
    """The cells of the README table whose first column has this head, without the head.

    ``None`` stands for a node without such a table, since it has nothing to put there.
    """
    if first_header is None:
        return []
    lines = README.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_header} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def names(rows: list[list[str]]) -> list[str]:
    return [name for row in rows for name in codes(row[0])]


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    assert newest is not None
    versions = {MANIFEST["version"], project["project"]["version"], newest.group(1)}
    assert versions == {config.VERSION}


@pytest.mark.parametrize("name", ["README.md", "PRIVACY.md", "CHANGELOG.md"])
def test_documents_are_in_english(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not HAN.search(text)
    assert not KANA.search(text)


def test_readme_credentials_are_those_of_the_declaration() -> None:
    rows = table("Credential field")
    assert names(rows) == list(CREDENTIALS)
    for names_cell, default, *_ in rows:
        for name in codes(names_cell):
            assert codes(default) == [d for d in [CREDENTIALS[name].get("default")] if d], name


README_NODES = {
    "nodes/holysheep_llm.yaml": ("Input", "Setting", "Output"),
    "nodes/holysheep_batch.yaml": ("Batch input", "Batch setting", "Batch output"),
    "nodes/holysheep_chain.yaml": ("Chain input", "Chain setting", "Chain output"),
    "nodes/holysheep_cost.yaml": ("Cost input", "Cost setting", "Cost output"),
    "nodes/holysheep_usage.yaml": (None, "Usage setting", "Usage output"),
    "nodes/holysheep_benchmark.yaml": (
        "Benchmark input",
        "Benchmark setting",
        "Benchmark output",
    ),
}


def test_readme_has_all_nodes() -> None:
    assert set(README_NODES) == set(NODES)


@every_node
def test_readme_inputs_are_those_of_the_declaration(path: str) -> None:
    rows = table(README_NODES[path][0])
    declared = parameters(NODES[path], "llm")
    assert names(rows) == list(declared)
    for name, (_, type_, _) in zip(declared, rows, strict=True):
        required = ", required" if declared[name]["required"] else ""
        assert type_ == declared[name]["type"] + required, name


@every_node
def test_readme_settings_are_those_of_the_declaration(path: str) -> None:
    rows = table(README_NODES[path][1])
    declared = parameters(NODES[path], "form")
    assert [name for row in rows for name in codes(row[0])] == list(declared)
    for names_cell, type_, default, allowed in rows:
        if allowed.startswith("As in HolySheep LLM"):
            for name in codes(names_cell):
                theirs = parameters(LLM, "form")[name]
                assert declared[name].get("default") == theirs.get("default"), name
            continue
        (name,) = codes(names_cell)
        parameter = declared[name]
        assert type_ == parameter["type"], name
        assert codes(default) == ([str(parameter["default"])] if "default" in parameter else [])
        if parameter["type"] == "number":
            assert allowed.startswith(f"{parameter['min']}–{parameter['max']}"), name
        if parameter["type"] == "select" and name != "model":
            values = [option["value"] for option in parameter["options"]]
            assert list(dict.fromkeys(codes(allowed)))[: len(values)] == values, name


def test_readme_options_are_those_of_the_engine() -> None:
    rows = table("Key of `options`")
    assert names(rows) == list(Options.model_fields)
    for names_cell, default, _ in rows:
        for name in codes(names_cell):
            value = Options.model_fields[name].default
            shown = ("none", "not sent") if value is None else (str(value).lower(),)
            assert default.strip("`") in shown, name


@every_node
def test_readme_outputs_are_those_of_the_declaration(path: str) -> None:
    rows = table(README_NODES[path][2])
    declared = NODES[path]["output_schema"]["properties"]
    assert names(rows) == list(declared)
    for names_cell, type_, meaning in rows:
        for name in codes(names_cell):
            schema = declared[name]
            assert type_ == type_of(schema), name
            if "properties" in schema:
                assert codes(meaning) == list(schema["properties"]), name


def error_types(kind: type[errors.HolySheepError]) -> Iterator[str]:
    yield kind.error_type
    for child in kind.__subclasses__():
        yield from error_types(child)


def test_readme_explains_every_kind_of_error() -> None:
    explained = [codes(row[-1])[0] for row in table("What happened")]
    assert len(explained) == len(set(explained))
    # "error" itself is the root's, which is never raised.
    assert set(explained) == set(error_types(errors.HolySheepError)) - {"error"}


def test_documents_name_files_that_exist() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", README + PRIVACY):
        assert link.startswith("https://") or (ROOT / link).is_file(), link
    for name in re.findall(r"`(examples/[^`]+)`", README):
        assert (ROOT / name).is_file(), name


def test_documents_state_the_numbers_of_the_ledger() -> None:
    assert config.LEDGER_MONTHS == 13
    assert "thirteen months" in README
    assert "thirteen months" in PRIVACY
    assert config.LEDGER_WRITE_S == 1
    assert "about once a second" in README
    assert f"from {config.BUDGET_WARNING:.0%} of a budget on".replace("%", " %") in README


def test_readme_shows_urls_of_a_redis_that_are_understood() -> None:
    rows = table("A `redis_url`")
    shown = [parse_redis_url(codes(url)[0]) for url, _ in rows]
    assert [address.kind for address in shown] == ["single", "single", "cluster", "sentinel"]
    explained = [code for _, meaning in rows for code in codes(meaning)]
    for url in explained:
        if "@" in url:
            assert parse_redis_url(url).options["password"] == "PASSWORD"
    (query,) = (code for code in explained if code.startswith("?"))
    assert parse_redis_url(f"{codes(rows[1][0])[0]}{query}").options["ssl"] is True
    with pytest.raises(errors.SettingsError) as refused:
        parse_redis_url("rediss://host?unknown=1")
    known = refused.value.message.partition("Known are ")[2].rstrip(".").split(", ")
    assert len(known) == 6
    named = " ".join(explained)
    assert [name for name in known if name not in named] == []


def test_documents_state_what_a_redis_needs_and_how_long_it_keeps_things() -> None:
    assert f"+@all -@dangerous {RULES.partition('@dangerous ')[2]}" in README
    assert f">PASSWORD {RULES}`" in README
    assert f"must be {OLDEST[0]}.{OLDEST[1]} or newer" in README
    assert f"at most {config.REDIS_TIMEOUT_S} s for each of its answers" in README
    assert config.REDIS_STALE_S == 3600
    assert "an answer one hour after its `cache_ttl_s`" in README
    assert "and one hour more" in PRIVACY
    assert config.REDIS_PAUSE_MAX_S == 2
    assert "every two seconds at the latest" in README
    assert config.REDIS_MAX_VALUE_BYTES == 2**20
    assert "more than 1 MiB" in README
    assert f"a failure {config.LANDED_S:g} seconds" in PRIVACY
    assert f"{config.REDIS_SPEND_S / 86_400:g} days for budgets" in PRIVACY
    assert config.REDIS_LEDGER_S == 14 * 31 * 86_400
    assert "fourteen months" in PRIVACY


def test_privacy_states_the_numbers_of_the_engine() -> None:
    assert f"at most {config.CACHE_MAX_BYTES // 2**20} MiB" in PRIVACY
    assert f"{config.CACHE_TTL_S} seconds" in PRIVACY
    assert f"at most {config.CACHE_MAX_TTL_S // 3600} hours" in PRIVACY
    assert config.DEFAULT_BASE_URL in PRIVACY
