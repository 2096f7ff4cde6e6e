"""The documents agree with the declarations, with the engine and with each other."""

import ast
import contextlib
import io
import re
import shlex
import tomllib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import click
import pytest
from prometheus_client.parser import text_string_to_metric_families

import holysheep
from devtools.upstream import Upstream
from holysheep import cli, cli_support, config, errors, gateway, metrics, params, settings
from holysheep.budget import Period
from holysheep.faults import error_for
from holysheep.options import BatchOptions, ChainOptions, Options
from holysheep.ports import SystemClock
from holysheep.registry import Registry
from holysheep.shared.address import parse_redis_url
from holysheep.shared.check import OLDEST, RULES
from holysheep.tally import Dimensions, Figures, Tally
from tests.host.daemon import PluginProcess
from tests.package.declared import (
    CREDENTIALS,
    ENDPOINTS,
    EXAMPLE_FILES,
    GROUP,
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

TRANSLATIONS = ("readme/README_zh_Hans.md", "readme/README_ja_JP.md", "readme/README_pt_BR.md")
ENGLISH = sorted(
    [
        *("README.md", "PRIVACY.md", "CHANGELOG.md", "CONTRIBUTING.md"),
        *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
    ]
)
DOCUMENTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in (*ENGLISH, *TRANSLATIONS)}
README, PRIVACY, CHANGELOG = (
    DOCUMENTS[name] for name in ("README.md", "PRIVACY.md", "CHANGELOG.md")
)
NODES_PAGE, ERRORS_PAGE, DEPLOYMENT = (
    DOCUMENTS[f"docs/{name}.md"] for name in ("nodes", "errors", "deployment")
)
ENDPOINTS_PAGE, LIBRARY, ARCHITECTURE = (
    DOCUMENTS[f"docs/{name}.md"] for name in ("endpoints", "library", "architecture")
)

every_document = pytest.mark.parametrize("name", DOCUMENTS)
every_translation = pytest.mark.parametrize("name", TRANSLATIONS)


# --- reading Markdown ---

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def table(text: str, first_header: str | None) -> list[list[str]]:
    """The cells of the table whose first column has this head, without the head.

    ``None`` stands for a node without such a table, since it has nothing to put there.
    """
    if first_header is None:
        return []
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_header} |"))
    return [cells(line) for line in table_lines(lines[start + 2 :])]


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every table, with its head."""
    lines = prose(text).splitlines()
    starts = [i - 1 for i, line in enumerate(lines) if re.fullmatch(r"\|(-+\|)+", line)]
    return [[cells(line) for line in (lines[i], *table_lines(lines[i + 2 :]))] for i in starts]


def table_lines(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith("|"):
            return
        yield line


def cells(line: str) -> list[str]:
    """The cells of a line. A bar in code is written with a backslash."""
    inner = re.split(r"(?<!\\)\|", line.strip()[1:-1])
    return [cell.strip().replace("\\|", "|") for cell in inner]


def prose(text: str) -> str:
    """A document without its blocks of code."""
    return FENCE.sub("", text)


def codes(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def names(rows: list[list[str]]) -> list[str]:
    return [name for row in rows for name in codes(row[0])]


def anchors(text: str) -> list[str]:
    """What GitHub makes of the headings."""
    found = []
    for _, heading in HEADING.findall(prose(text)):
        plain = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        earlier = sum(re.fullmatch(rf"{re.escape(plain)}(-\d+)?", one) is not None for one in found)
        found.append(f"{plain}-{earlier}" if earlier else plain)
    return found


# --- Every document -----------------------------------------------------------------------------


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    newest = re.search(r"^## \[([^\]]+)\]", CHANGELOG, re.MULTILINE)
    assert newest is not None
    versions = {MANIFEST["version"], project["project"]["version"], newest.group(1)}
    assert versions == {config.VERSION}


@pytest.mark.parametrize("name", ENGLISH)
def test_documents_are_in_english(name: str) -> None:
    text = DOCUMENTS[name]
    if name == "docs/adding_a_node.md":
        text = prose(text)  # a declaration has four languages
    assert not HAN.search(text)
    assert not KANA.search(text)


@every_document
def test_links_lead_to_files_and_headings(name: str) -> None:
    for link in LINK.findall(prose(DOCUMENTS[name])):
        target, _, anchor = link.partition("#")
        if urlsplit(link).scheme:
            assert link.startswith("https://"), link
            continue
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.is_file(), link
        assert path.resolve().is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), link


@every_document
def test_documents_name_files_that_exist(name: str) -> None:
    folders = "examples|docs|tests|holysheep|nodes|endpoints|provider|host|devtools|readme"
    for path in re.findall(rf"`((?:{folders})/[\w./]*)`", DOCUMENTS[name]):
        if name == "docs/adding_a_node.md" and path in NEW_FILES:
            continue
        assert (ROOT / path).exists(), path


@every_document
def test_documents_name_targets_that_make_knows(name: str) -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    text = DOCUMENTS[name]
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
    assert named <= known


def test_contributing_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    rows = table(DOCUMENTS["CONTRIBUTING.md"], "Command")
    assert {name.split()[1] for name in names(rows)} == targets


ENVIRONMENT = re.compile(r"\bHOLYSHEEP_[A-Z_]+\b")


@every_document
def test_environment_variables_of_ours_are_read_somewhere(name: str) -> None:
    sources = [*(ROOT / "holysheep").glob("*.py"), *(ROOT / "devtools").rglob("*.py")]
    read = {word for path in sources for word in ENVIRONMENT.findall(path.read_text("utf-8"))}
    assert set(ENVIRONMENT.findall(DOCUMENTS[name])) <= read


@every_document
def test_commands_of_the_command_line_can_be_read(name: str) -> None:
    for line in re.findall(r"^python -m holysheep (.+)$", DOCUMENTS[name], re.MULTILINE):
        command, *arguments = shlex.split(line.partition(" < ")[0])
        known = cli.main.commands[command]
        parser = known.make_parser(click.Context(known, info_name=command))
        _, left, _ = parser.parse_args(args=arguments)
        assert left == [], line


# --- README -------------------------------------------------------------------------------------


def test_readme_is_one_page() -> None:
    in_tables = sum(len(" ".join(row).split()) for each in tables(README) for row in each)
    words = len(prose(README).split())
    assert words - in_tables < 850
    assert words < 1300


def test_readme_begins_with_two_commands() -> None:
    (first, *_) = FENCE.findall(README)
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == [
        "make demo",
        "make test",
    ]


def test_readme_has_every_example() -> None:
    linked = {link for link in LINK.findall(README) if link.startswith("examples/")}
    assert linked == set(EXAMPLE_FILES)


def test_changelog_has_every_example() -> None:
    for path in EXAMPLE_FILES:
        assert f"`{Path(path).stem}`" in CHANGELOG, path


def test_readme_has_a_row_for_every_node() -> None:
    labels = {node["identity"]["label"]["en_US"] for node in NODES.values()}
    rows = table(README, "Node")
    assert {f"HolySheep {row[0][1 : row[0].index(']')]}" for row in rows} == labels
    for what, *_ in rows:
        (link,) = LINK.findall(what)
        assert link.startswith("docs/nodes.md#holysheep-"), link


def test_readme_states_the_defaults_of_the_credential() -> None:
    (paragraph,) = (p for p in README.split("\n\n") if p.startswith("Only `api_key`"))
    assert {name for name, field in CREDENTIALS.items() if field["required"]} == {"api_key"}
    assert {code for code in codes(paragraph) if "/" not in code} <= set(CREDENTIALS)
    for name in ("base_url", "requests_per_minute", "max_concurrency"):
        assert f"`{name}` ({CREDENTIALS[name]['default']})" in paragraph.replace("`)", ")").replace(
            "(`", "("
        ), name
    assert CREDENTIALS["tokens_per_minute"]["default"] == "0"
    assert "`tokens_per_minute` (no limit)" in paragraph


def test_readme_states_limits_of_the_engine() -> None:
    assert f"up to {config.MAX_BATCH_ROWS:,}" in README
    assert f"at most {config.MAX_DEADLINE_S} s" in README
    assert f"Wait {config.BREAKER_OPEN_S:g} s" in README


# --- Translations -------------------------------------------------------------------------------


def structure(text: str) -> dict[str, list[object]]:
    """What a translation has in common with what it translates."""
    return {
        "headings": [len(marks) for marks, _ in HEADING.findall(prose(text))],
        "items": re.findall(r"^(-|\d+\.) ", prose(text), re.MULTILINE),
        "tables": [[[codes(cell) for cell in row] for row in each] for each in tables(text)],
        "links": [link.removeprefix("../") for link in LINK.findall(prose(text))],
        "code": [
            (language, [line.split("#")[0].rstrip() for line in code.splitlines()])
            for language, code in FENCE.findall(text)
        ],
        "paragraphs": [sorted(codes(part)) for part in prose(text).split("\n\n")],
        "numbers": [re.findall(r"\d+", part) for part in prose(text).split("\n\n")],
    }


@every_translation
def test_translation_has_the_structure_of_the_readme(name: str) -> None:
    translated, original = structure(DOCUMENTS[name]), structure(README)
    # Each names the other languages, and the original instead of itself.
    own = f"readme/{Path(name).name}"
    expected = ["README.md" if link == own else link for link in original["links"]]
    found = [
        f"readme/{link}" if re.fullmatch(r"README_\w+\.md", str(link)) else link
        for link in translated["links"]
    ]
    assert sorted(map(str, found)) == sorted(map(str, expected))
    for part in ("headings", "items", "tables", "code", "paragraphs"):
        assert translated[part] == original[part], part
    numbers = [[sorted(each) for each in both["numbers"]] for both in (translated, original)]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize(
    ("name", "script", "other"),
    [
        ("readme/README_zh_Hans.md", HAN, KANA),
        ("readme/README_ja_JP.md", KANA, None),
        ("readme/README_pt_BR.md", re.compile("[áâãçéêíóõú]"), HAN),
    ],
)
def test_translation_is_in_its_language(
    name: str, script: re.Pattern[str], other: re.Pattern[str] | None
) -> None:
    for paragraph in prose(DOCUMENTS[name]).split("\n\n"):
        words = re.sub(r"`[^`]*`|\([^)]*\)|[#*|·-]", " ", paragraph).split()
        if len(words) > 12:
            assert script.search(paragraph), paragraph
        assert other is None or not other.search(paragraph), paragraph


# --- docs/nodes.md ------------------------------------------------------------------------------


def test_credentials_are_those_of_the_declaration() -> None:
    rows = table(NODES_PAGE, "Credential field")
    assert names(rows) == list(CREDENTIALS)
    for names_cell, default, *_ in rows:
        for name in codes(names_cell):
            assert codes(default) == [d for d in [CREDENTIALS[name].get("default")] if d], name


TABLES = {
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


def test_all_nodes_are_described() -> None:
    assert set(TABLES) == set(NODES)


@every_node
def test_inputs_are_those_of_the_declaration(path: str) -> None:
    rows = table(NODES_PAGE, TABLES[path][0])
    declared = parameters(NODES[path], "llm")
    assert names(rows) == list(declared)
    for name, (_, type_, _) in zip(declared, rows, strict=True):
        required = ", required" if declared[name]["required"] else ""
        assert type_ == declared[name]["type"] + required, name


@every_node
def test_settings_are_those_of_the_declaration(path: str) -> None:
    rows = table(NODES_PAGE, TABLES[path][1])
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


def test_options_are_those_of_the_engine() -> None:
    rows = table(NODES_PAGE, "Key of `options`")
    assert names(rows) == list(Options.model_fields)
    for names_cell, default, _ in rows:
        for name in codes(names_cell):
            value = Options.model_fields[name].default
            shown = ("none", "not sent") if value is None else (str(value).lower(),)
            assert default.strip("`") in shown, name


@pytest.mark.parametrize(
    ("header", "model"), [("Batch setting", BatchOptions), ("Chain setting", ChainOptions)]
)
def test_further_options_are_those_of_the_engine(header: str, model: type[Options]) -> None:
    (row,) = (row for row in table(NODES_PAGE, header) if row[0] == "`options`")
    further = {name: field.default for name, field in model.model_fields.items()}
    further = {name: further[name] for name in further if name not in Options.model_fields}
    assert set(further) <= set(codes(row[3]))
    for name, default in further.items():
        assert re.search(rf"`{name}` \(`?{default}\b", row[3]), name


@every_node
def test_outputs_are_those_of_the_declaration(path: str) -> None:
    rows = table(NODES_PAGE, TABLES[path][2])
    declared = NODES[path]["output_schema"]["properties"]
    assert names(rows) == list(declared)
    for names_cell, type_, meaning in rows:
        for name in codes(names_cell):
            schema = declared[name]
            assert type_ == type_of(schema), name
            if "properties" in schema:
                assert codes(meaning) == list(schema["properties"]), name


# --- docs/errors.md -----------------------------------------------------------------------------


def error_types(kind: type[errors.HolySheepError]) -> Iterator[str]:
    yield kind.error_type
    for child in kind.__subclasses__():
        yield from error_types(child)


# "error" itself is the root's, which is never raised.
ERROR_TYPES = set(error_types(errors.HolySheepError)) - {"error"}


def test_every_kind_of_error_is_explained() -> None:
    explained = [codes(row[-1])[0] for row in table(ERRORS_PAGE, "What happened")]
    assert len(explained) == len(set(explained))
    assert set(explained) == ERROR_TYPES


def sentences() -> list[str]:
    """Every text in the code of the plugin, with an ellipsis for what is put into it."""
    found = []
    for folder in ("holysheep", "nodes", "endpoints", "provider"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (
                        str(part.value) if isinstance(part, ast.Constant) else "…"
                        for part in node.values
                    )
                    found.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def refusals() -> list[str]:
    """The sentences about a key, which are put together from parts."""
    answers = {status: error_for(status, {}, b"", model="", wall_s=0) for status in (401, 403)}
    return [error.message.replace(str(status), "…") for status, error in answers.items()]


SENTENCES = [*sentences(), *refusals()]


def is_said(shown: str) -> bool:
    """Whether the plugin has a sentence with these words in this order."""
    parts = re.sub(r"\bHTTP 4\d\d\b", "HTTP …", shown).split("…")
    wanted = re.compile(".*?".join(re.escape(part) for part in parts))
    return any(wanted.search(sentence) for sentence in SENTENCES)


SHOWN = [
    *(
        (name, row)
        for name in ("README.md", "docs/errors.md")
        for row in table(DOCUMENTS[name], "What you see | `error_type`")
    ),
    *(("docs/errors.md", row) for row in table(ERRORS_PAGE, "What you see | What to do")),
]


@pytest.mark.parametrize(("name", "row"), SHOWN, ids=[row[0][:60] for _, row in SHOWN])
def test_sentences_in_the_documents_are_said_by_the_plugin(name: str, row: list[str]) -> None:
    del name
    shown = codes(row[0])
    assert shown
    for sentence in shown:
        assert is_said(sentence), sentence


@pytest.mark.parametrize("name", ["README.md", "docs/errors.md"])
def test_kinds_in_the_tables_of_sentences_exist(name: str) -> None:
    rows = table(DOCUMENTS[name], "What you see | `error_type`")
    kinds = {codes(row[1])[0] for row in rows}
    assert kinds <= ERROR_TYPES
    if name == "docs/errors.md":
        assert kinds == ERROR_TYPES - {"settings"}


def test_codes_of_refusals_are_those_of_the_gateway() -> None:
    rows = table(ERRORS_PAGE, "Status")
    told: dict[str | None, set[int]] = {}
    for statuses, shown, _ in rows:
        for code in [*codes(shown), *([None] if "none" in shown else [])]:
            told.setdefault(code, set()).update(map(int, re.findall(r"\d+", statuses)))
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kinds = [kind for kind in kinds if issubclass(kind, errors.HolySheepError)]
    abstract = {errors.HolySheepError, errors.UpstreamError, errors.RefusedLocally}
    answered = [gateway.api_error(kind("Why.")) for kind in kinds if kind not in abstract]
    for answer in answered:
        if answer.code != errors.InvalidOutput.error_type:  # the gateway checks no schema
            assert answer.status in told[answer.code], answer.code
    ours = {answer.code for answer in answered} - {errors.InvalidOutput.error_type}
    assert set(told) == ours | {"invalid_api_key"}


# --- docs/endpoints.md --------------------------------------------------------------------------


def test_routes_are_those_that_are_declared() -> None:
    declared = {
        f"{each['method']} {each['path']}" for each in ENDPOINTS.values() if not each.get("hidden")
    }
    shown = {
        code.partition("?")[0] for row in table(ENDPOINTS_PAGE, "Route") for code in codes(row[0])
    }
    assert shown == declared
    routes = {route.split()[1] for route in declared}
    for route in re.findall(r"/e/HOOK_ID(/[\w./]+)", ENDPOINTS_PAGE + DEPLOYMENT):
        assert route in routes | {"/v1"}, route


def test_documents_state_the_limits_of_endpoints() -> None:
    assert f"at least {config.MIN_TOKEN_LENGTH} characters" in ENDPOINTS_PAGE
    assert config.MIN_TOKEN_LENGTH >= 16
    assert f"may take {config.GATEWAY_TIMEOUT_S} s in all" in ENDPOINTS_PAGE
    assert f"waits {config.GATEWAY_QUEUE_S} s for its turn" in ENDPOINTS_PAGE
    assert config.MAX_GATEWAY_BODY_BYTES == 10_000_000
    assert "at most 10 MB" in ENDPOINTS_PAGE
    assert config.WRONG_TOKEN_PAUSE_S == 0.5
    assert f"at most {config.MAX_WRONG_TOKENS} at a time" in ENDPOINTS_PAGE
    assert f"no turn within {config.GATEWAY_QUEUE_S} s" in ERRORS_PAGE
    assert f"No answer within {config.GATEWAY_TIMEOUT_S} s" in ERRORS_PAGE
    assert [field["name"] for field in GROUP["settings"]] == ["access_token", *CREDENTIALS]


# --- docs/deployment.md -------------------------------------------------------------------------


class Series(NamedTuple):
    """A metric as Prometheus stores it."""

    name: str
    labels: frozenset[str]


def exposed() -> set[Series]:
    """Every series that ``/metrics`` can have."""
    today = Tally()
    today.add(
        Dimensions("c", "a", "llm", config.DEFAULT_MODEL, config.DEFAULT_MODEL),
        Figures(requests=1, classes={0: 1}),
    )
    clock = SystemClock()
    period = Period("daily", Decimal(1), Decimal(0), Decimal(0), None)  # type: ignore[arg-type]
    engine = Registry(clock=clock).engine(settings.parse_settings({"api_key": "k" * 20}))
    engine._state.backend.breakers.get(engine.settings.base_url, config.DEFAULT_MODEL)
    text = metrics.exposition(today, engine, [period], is_stored=True).decode()
    return {
        Series(sample.name, frozenset(sample.labels))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


EXPOSED = exposed()


def test_metrics_are_those_that_are_exposed() -> None:
    rows = table(DEPLOYMENT, "Metric")
    told = {
        Series(name, frozenset(codes(labels)))
        for metric, labels, _ in rows
        for name in codes(metric)
    }
    # Of a histogram the family is shown; its buckets have the bound as a label.
    families = {
        Series(re.sub(r"_(bucket|sum|count)$", "", series.name), series.labels - {"le"})
        for series in EXPOSED
    }
    assert told == families


def test_expressions_ask_for_what_is_exposed() -> None:
    expressions = [
        code for code in codes(prose(DEPLOYMENT)) if re.search(r"holysheep_\w+[)\[{ ]", code)
    ]
    assert len(expressions) > 8
    known = {series.name: series.labels for series in EXPOSED}
    for expression in expressions:
        plain = expression.replace("\\|", "|")
        for name, labels in re.findall(r"\b(holysheep_\w+)(?:\{([^}]*)\})?", plain):
            assert name in known, name
            assert set(re.findall(r"(\w+)[=!]~?\"", labels)) <= known[name], expression
        for label in re.findall(r"by \(([\w, ]+)\)", plain):
            wanted = set(label.split(", "))
            assert any(wanted <= known[name] for name in re.findall(r"\bholysheep_\w+", plain))
        statuses = re.findall(r'status[=!]~?"([^"]+)"', plain)
        assert {word for one in statuses for word in one.split("|")} <= {
            *("ok", "cancelled"),
            *ERROR_TYPES,
        }


def test_documents_state_the_numbers_of_the_ledger() -> None:
    assert config.LEDGER_MONTHS == 13
    assert "thirteen months" in DEPLOYMENT
    assert "thirteen months" in PRIVACY
    assert config.LEDGER_WRITE_S == 1
    assert "about once a second" in DEPLOYMENT
    assert f"from {config.BUDGET_WARNING:.0%} of a budget on".replace("%", " %") in NODES_PAGE
    assert f"From {config.BUDGET_WARNING:.0%} of a budget on".replace("%", " %") in DEPLOYMENT


def test_deployment_shows_urls_of_a_redis_that_are_understood() -> None:
    rows = table(DEPLOYMENT, "A `redis_url`")
    shown = [parse_redis_url(codes(url)[0]) for url, _ in rows]
    assert [address.kind for address in shown] == ["single", "single", "cluster", "sentinel"]
    explained = [code for _, meaning in rows for code in codes(meaning)]
    for url in explained:
        if "@" in url:
            assert parse_redis_url(url).options["password"] == "PASSWORD"
    (query,) = (code for code in explained if code.startswith("?"))
    assert parse_redis_url(f"{codes(rows[1][0])[0]}{query}").options["ssl"] is True
    with pytest.raises(errors.SettingsError) as refused:
        parse_redis_url("rediss+sentinel://host/master?unknown=1")
    known = refused.value.message.partition("Known are ")[2].rstrip(".").split(", ")
    assert len(known) == 9
    named = " ".join(explained)
    assert [name for name in known if name not in named] == []


def test_documents_state_what_a_redis_needs_and_how_long_it_keeps_things() -> None:
    assert f"+@all -@dangerous {RULES.partition('@dangerous ')[2]}" in DEPLOYMENT
    assert f">PASSWORD {RULES}`" in DEPLOYMENT
    assert f"must be {OLDEST[0]}.{OLDEST[1]} or newer" in DEPLOYMENT
    assert f"at most {config.REDIS_TIMEOUT_S} s for each of its answers" in DEPLOYMENT
    assert config.REDIS_STALE_S == 3600
    assert "an answer one hour after its `cache_ttl_s`" in DEPLOYMENT
    assert "and one hour more" in PRIVACY
    assert config.REDIS_PAUSE_MAX_S == 2
    assert "every two seconds at the latest" in DEPLOYMENT
    assert config.REDIS_MAX_VALUE_BYTES == 2**20
    assert "more than 1 MiB" in DEPLOYMENT
    assert f"a failure {config.LANDED_S:g} seconds" in PRIVACY
    assert f"{config.REDIS_SPEND_S / 86_400:g} days for budgets" in PRIVACY
    assert config.REDIS_LEDGER_S == 14 * 31 * 86_400
    assert "fourteen months" in PRIVACY


def test_deployment_states_the_limits_of_the_engine() -> None:
    assert f"at most {config.CACHE_MAX_BYTES // 2**20} MiB" in DEPLOYMENT
    assert f"({config.DEFAULT_MAX_CONCURRENCY}, at most {config.MAX_MAX_CONCURRENCY})" in DEPLOYMENT
    assert f"The default of {config.DEFAULT_REQUESTS_PER_MINUTE} is" in DEPLOYMENT
    longest = (parameters(LLM, "form")["timeout_s"]["max"], config.MAX_DEADLINE_S)
    assert "at {} or {} s at the latest".format(*longest) in DEPLOYMENT
    assert config.BATCH_AHEAD_BYTES == 16 * 2**20
    assert "at most 16 MB of them" in DEPLOYMENT
    assert MANIFEST["resource"]["memory"] == 256 * 2**20
    assert "asks for 256 MB" in DEPLOYMENT


def test_log_lines_that_operators_look_for_are_written() -> None:
    (paragraph,) = (
        p for p in DEPLOYMENT.split("\n\n") if p.startswith("The process sends warnings")
    )
    for line in codes(paragraph):
        assert any(sentence.startswith(line) for sentence in SENTENCES), line


# --- PRIVACY.md ---------------------------------------------------------------------------------


def test_privacy_states_the_numbers_of_the_engine() -> None:
    assert f"at most {config.CACHE_MAX_BYTES // 2**20} MiB" in PRIVACY
    assert f"{config.CACHE_TTL_S} seconds" in PRIVACY
    assert f"at most {config.CACHE_MAX_TTL_S // 3600} hours" in PRIVACY
    assert config.DEFAULT_BASE_URL in PRIVACY
    remembered = params._remembered_call.cache_info().maxsize
    assert f"the last {remembered} calls" in PRIVACY
    assert f"at most {params._MAX_REMEMBERED_CHARS:,} characters together" in PRIVACY
    # Importing the module would patch this process.
    adapter = (ROOT / "nodes/_adapter.py").read_text(encoding="utf-8")
    shortest = re.search(r"^_SHORT_CHARS = (\d+)$", adapter, re.MULTILINE)
    assert shortest is not None
    assert f"outputs of at most {shortest.group(1)} characters" in PRIVACY


# --- docs/library.md ----------------------------------------------------------------------------


def python_blocks(text: str) -> list[str]:
    return [code for language, code in FENCE.findall(text) if language == "python"]


def test_python_in_the_documents_runs(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLYSHEEP_BASE_URL", upstream.url)
    printed = io.StringIO()
    for number, source in enumerate(python_blocks(LIBRARY)):
        code = compile(
            source.replace(config.DEFAULT_BASE_URL, upstream.url), f"block {number}", "exec"
        )
        with contextlib.redirect_stdout(printed):
            exec(code, {})  # noqa: S102 - our own document
    assert "invalid_input temperature must be" in printed.getvalue()
    assert upstream.stats().calls == 6


def test_names_in_the_documents_are_those_of_the_library() -> None:
    imported = re.findall(r"from holysheep import (.+)", "".join(python_blocks(LIBRARY)))
    assert {name for line in imported for name in line.split(", ")} <= set(holysheep.__all__)
    for call in re.findall(r"`client\.(\w+)\(", LIBRARY):
        assert hasattr(holysheep.Client, call), call


def test_exit_codes_are_those_of_the_command_line() -> None:
    told = {int(code) for code, _ in table(LIBRARY, "Exit code")}
    known = {code for _, code in cli_support.EXIT_CODES}
    assert told == {0, 1, *known, 5, 6, 7}


def test_library_names_every_variable_of_the_environment() -> None:
    sources = (ROOT / "holysheep").glob("*.py")
    read = {word for path in sources for word in ENVIRONMENT.findall(path.read_text("utf-8"))}
    assert {*names(table(LIBRARY, "Variable"))} == read


# --- docs/architecture.md -----------------------------------------------------------------------

PICTURE = ROOT / "docs/architecture.svg"


def layers() -> list[str]:
    """The layers as ``engine.py`` puts them together."""
    tree = ast.parse((ROOT / "holysheep/engine.py").read_text(encoding="utf-8"))
    (stacked,) = (
        node.args[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "stack"
    )
    assert isinstance(stacked, ast.List)
    return [ast.unparse(layer.func) for layer in stacked.elts if isinstance(layer, ast.Call)]


def test_layers_are_described_in_their_order() -> None:
    assert names(table(ARCHITECTURE, "Layer")) == layers()


def test_picture_shows_the_layers_in_their_order() -> None:
    root = ET.parse(PICTURE).getroot()  # noqa: S314 - our own file
    shown = [element.text for element in root.iter() if element.get("class") == "name"]
    wanted = [layer.removesuffix("Layer") for layer in layers()]
    assert wanted[-2:] == ["PauseRecheck", "BreakerRecheck"]
    wanted = ["Answer", *wanted[:-2], "Rechecks", "ChatTransport"]
    start = shown.index("Answer")
    assert shown[start : start + len(wanted)] == wanted


def test_picture_is_a_drawing_that_loads_nothing() -> None:
    text = PICTURE.read_text(encoding="utf-8")
    root = ET.fromstring(text)  # noqa: S314 - our own file
    assert "viewBox" in root.attrib
    elements = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert not elements & {"script", "image", "use", "a", "foreignObject", "animate", "set"}
    for element in root.iter():
        for name, value in element.attrib.items():
            assert "href" not in name.lower(), value
            assert not name.lower().startswith("on"), name
    assert "@import" not in text
    outside = [url for url in re.findall(r"url\(([^)]*)\)", text) if not url.startswith("#")]
    assert outside == []
    assert re.findall(r"[a-z]+://[^\"]*", text) == ["http://www.w3.org/2000/svg"]


# --- docs/adding_a_node.md ----------------------------------------------------------------------

ADDING = DOCUMENTS["docs/adding_a_node.md"]
NEW_FILES = {
    "nodes/holysheep_models.yaml",
    "nodes/holysheep_models.py",
    "tests/nodes/test_models.py",
    "examples/list_models.yml",
}
"""What its example makes, and the project has not."""


def shown_files() -> dict[str, str]:
    """What the document shows of files, by the name that stands last before it."""
    blocks = re.findall(
        r"`([\w./]+)`[^`]*:\n\n```\w+\n(.*?)^```$", ADDING, re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == len(FENCE.findall(ADDING))
    return dict(blocks)


def with_the_node(folder: Path, shown: dict[str, str]) -> None:
    """The plugin in ``folder``, with what the document adds to it."""
    for name in ("main.py", "manifest.yaml", "host", "endpoints", "group", "_assets"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("holysheep", "nodes", "provider"):
        (folder / name).mkdir()
        for path in (ROOT / name).iterdir():
            (folder / name / path.name).symlink_to(path)
    engine = folder / "holysheep/params.py"
    listed = folder / "provider/holysheep.yaml"
    for path, changed in (
        (engine, f"{engine.read_text('utf-8')}\n\n{shown['holysheep/params.py']}"),
        (listed, listed.read_text("utf-8").replace("tools:\n", f"tools:\n{shown[PROVIDER_FILE]}")),
    ):
        path.unlink()
        path.write_text(changed, encoding="utf-8")
    for name in NEW_FILES & set(shown):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(shown[name], encoding="utf-8")


PROVIDER_FILE = "provider/holysheep.yaml"


def test_node_of_the_example_works_and_passes_its_tests(tmp_path: Path, upstream: Upstream) -> None:
    shown = shown_files()
    with_the_node(tmp_path, shown)
    namespace: dict[str, Any] = {"__name__": "test_models"}
    exec(compile(shown["tests/nodes/test_models.py"], "test_models.py", "exec"), namespace)  # noqa: S102 - our own document
    tests = {name: test for name, test in namespace.items() if name.startswith("test_")}
    assert len(tests) == 3
    with PluginProcess(tmp_path) as process:
        for test in tests.values():
            upstream.reset()
            test(namespace["ModelsNode"](process, upstream))
            process.check()


def test_names_of_tests_in_the_documents_exist() -> None:
    known = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for text in (ADDING, DOCUMENTS["CONTRIBUTING.md"]):
        for name in codes(prose(text)):
            if re.fullmatch(r"test_\w+", name):
                assert f"def {name}(" in known, name
