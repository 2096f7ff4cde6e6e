"""The library as its reader finds it: docstrings, help texts and types, each held to the code."""

import ast
import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import pytest
import yaml
from annotated_types import Ge, Le
from click.testing import CliRunner
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import holysheep
from devtools.upstream import Upstream
from holysheep import Client, HolySheepError, TokenBucket, arguments, cli_support, config
from holysheep.batch import Batch
from holysheep.cli import main
from holysheep.options import BatchOptions, ChainOptions, Options
from holysheep.params import (
    BatchParams,
    BenchmarkParams,
    ChainParams,
    ChatParams,
    CostParams,
    Step,
    UsageGroup,
    UsagePeriod,
)
from holysheep.ports import SystemClock
from holysheep.rows import Row, rows_of_file
from holysheep.settings import FIELDS, Settings
from holysheep.stats import Latencies
from tests.engine.raw_servers import KEY, forget_proxies

ROOT = Path(__file__).parents[2]
OF_NODES = {"options", "on_error", "output_format", "max_inline_results"}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)
    for name in ("HOLYSHEEP_API_KEY", "HOLYSHEEP_BASE_URL", "HOLYSHEEP_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)


def exported() -> list[Any]:
    return [getattr(holysheep, name) for name in holysheep.__all__ if name != "__version__"]


def returned(kind: Any, found: dict[str, Any]) -> None:
    """The classes of ours that the public methods, properties and fields of ``kind`` lead to."""
    if kind.__qualname__ in found:
        return
    found[kind.__qualname__] = kind
    annotations = list(inspect.get_annotations(kind).values())
    for name, member in vars(kind).items():
        if name.startswith("_") and name != "__iter__":
            continue
        function = member.fget if isinstance(member, property) else member
        if inspect.isfunction(function):
            annotations.append(inspect.get_annotations(function).get("return"))
    for part in parts(annotations):
        if inspect.isclass(part) and part.__module__.startswith("holysheep."):
            returned(part, found)


def parts(annotations: list[Any]) -> Iterator[Any]:
    for annotation in annotations:
        yield annotation
        yield from parts(list(get_args(annotation)))


def reached() -> dict[str, Any]:
    found: dict[str, Any] = {}
    # The last two are attributes that no annotation leads to.
    for kind in (*exported(), Batch, Latencies):
        returned(kind, found)
    return found


REACHED = reached()
NAMED = pytest.mark.parametrize("kind", REACHED.values(), ids=REACHED.keys())


def members(kind: Any) -> Iterator[tuple[str, Any]]:
    for name, member in vars(kind).items():
        if not name.startswith("_") and not inspect.ismemberdescriptor(member):
            function = getattr(member, "__func__", member)
            if isinstance(function, property) or inspect.isfunction(function):
                yield name, function


def doc_of(described: Any) -> str:
    return str(described.__doc__)


class TestDocstrings:
    def test_what_a_user_touches_is_looked_at(self) -> None:
        touched = "Batch BatchResults Benchmark Chain ChatResult Client Delta LatencySummary Meta"
        touched += " RowResult StepResult Stream TokenBucket Totals Usage UsageReport UsageRow"
        assert set(touched.split()) <= REACHED.keys()

    @NAMED
    def test_all_that_is_public_has_one(self, kind: Any) -> None:
        assert inspect.getdoc(kind)
        assert kind.__doc__ != inspect.getdoc(kind.__mro__[1])
        assert [name for name, member in members(kind) if not (member.__doc__ or "").strip()] == []

    @pytest.mark.parametrize("kind", [k for k in exported() if dataclasses.is_dataclass(k)])
    def test_every_field_of_a_result_is_explained(self, kind: Any) -> None:
        names = {field.name for field in dataclasses.fields(kind)}
        assert names - set(re.findall(r"``(\w+)``", kind.__doc__)) == set()

    @pytest.mark.parametrize("kind", [k for k in exported() if issubclass(k, HolySheepError)])
    def test_every_attribute_of_an_error_is_explained(self, kind: type[HolySheepError]) -> None:
        tree = kind.__mro__[: kind.__mro__.index(Exception)]
        own = {*vars(kind("What happened.")), *(name for each in tree for name in vars(each))}
        methods = {name for each in tree for name, _ in members(each)}
        values = {name for name in own if not name.startswith("_")} - methods
        explained = " ".join(doc_of(each) for each in tree)
        assert values - set(re.findall(r"``(\w+)``", explained)) == set()

    def test_totals_of_a_batch_and_figures_of_a_benchmark_are_explained(self) -> None:
        for told, kind in (("totals", "Totals"), ("benchmark", "Benchmark")):
            text = (getattr(holysheep.BatchResults, told, None) or getattr(Client, told)).__doc__
            tree = ast.parse(textwrap.dedent(inspect.getsource(REACHED[kind].__init__)))
            own = {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and not node.attr.startswith("_")
            }
            # What stands in a run's own words beside them.
            own -= {"tokens_used", "waited_s", "model_used", "elapsed_s"}
            assert own - set(re.findall(r"``(\w+)[`.(]", text)) == set(), kind

    def test_errors_draw_the_whole_tree(self) -> None:
        text = importlib.import_module("holysheep.errors").__doc__ or ""
        drawn = re.findall(r"^[ |]*\+- (\w+)", text, re.MULTILINE)
        kinds = [k.__name__ for k in exported() if issubclass(k, HolySheepError)]
        assert sorted([*drawn, "HolySheepError"]) == sorted(kinds)


# --- the tables of parameters -------------------------------------------------------------------

Table = dict[str, str]


def table(docstring: str) -> Table:
    """The rows of a docstring's table, by name: ``name``, two spaces or more, and a text."""
    found: Table = {}
    names: list[str] = []
    indent = 0
    for line in inspect.cleandoc(docstring).splitlines():
        row = re.match(r"((?:``\w+``(?:, )?)+) {2,}(?=\S)", line)
        if row:
            names, indent = re.findall(r"\w+", row[1]), row.end()
            found |= dict.fromkeys(names, line[indent:])
        elif names and line.startswith(" " * indent):
            for name in names:
                found[name] += f" {line.strip()}"
        else:
            names = []
    return found


def limits_of(annotation: Any) -> Iterator[Any]:
    for part in parts([annotation]):
        if hasattr(part, "__metadata__"):
            for word in part.__metadata__:
                yield from word.metadata if isinstance(word, FieldInfo) else (word,)


def bounds(field: FieldInfo) -> tuple[float, float] | None:
    limits = [*field.metadata, *limits_of(field.annotation)]
    low = next((limit.ge for limit in limits if isinstance(limit, Ge)), None)
    high = next((limit.le for limit in limits if isinstance(limit, Le)), None)
    return None if low is None or high is None else (float(str(low)), float(str(high)))


def fields_of(params: type[BaseModel], options: type[Options] | None) -> dict[str, FieldInfo]:
    """What a method of the client takes by keyword."""
    fields = {**(options.model_fields if options else {}), **params.model_fields}
    return {name: field for name, field in fields.items() if name not in OF_NODES}


CHAT = fields_of(ChatParams, Options)
BATCH = fields_of(BatchParams, BatchOptions)
CHAIN = fields_of(ChainParams, ChainOptions)
BENCHMARK = fields_of(BenchmarkParams, None)
# The library's own deadline of a batch has no bound, and no default.
del BATCH["deadline_s"]

CHAT_TABLE = table(doc_of(Client.chat))
BATCH_TABLE = table(doc_of(Client.batch))
CHAIN_TABLE = table(doc_of(Client.chain))
CHAIN_OWN = {"system_prompt", "timeout_s", "on_step_error"}
BENCHMARK_TABLE = table(doc_of(Client.benchmark))
TABLES = [
    *[("chat", name, CHAT[name], text) for name, text in CHAT_TABLE.items()],
    *[("batch", name, BATCH[name], text) for name, text in BATCH_TABLE.items() if name in BATCH],
    *[("chain", n, CHAIN[n], CHAIN_TABLE[n]) for n in sorted(CHAIN_OWN)],
    *[("step", n, Step.model_fields[n], CHAIN_TABLE[n]) for n in ("name", "context")],
    *[("benchmark", name, BENCHMARK[name], text) for name, text in BENCHMARK_TABLE.items()],
]


def told_bounds(text: str) -> tuple[float, float] | None:
    found = re.search(r"(-?[\d,.]*\d) to ([\d,.]*\d)", text)
    return (
        None if found is None else tuple(float(n.replace(",", "")) for n in found.groups())  # type: ignore[return-value]
    )


def told_default(text: str) -> str | None:
    found = re.search(r"``(\w+)`` \(default\)|default ``?([^` ]+)``|default ([\d,.]*\d)", text)
    return None if found is None else next(group for group in found.groups() if group)


class TestParameters:
    def test_chat_explains_each(self) -> None:
        assert CHAT_TABLE.keys() == CHAT.keys()

    def test_batch_explains_those_that_chat_has_not(self) -> None:
        assert BATCH_TABLE.keys() == {*BATCH, "deadline_s"} - CHAT.keys() - {"prompt_template"}
        assert "but ``tools`` and ``timeout_s``" in doc_of(Client.batch)
        assert CHAT.keys() - BATCH.keys() == {"tools", "timeout_s"}

    def test_chain_explains_those_that_chat_has_not(self) -> None:
        assert CHAIN.keys() - CHAT.keys() - {"query", "steps"} == CHAIN_OWN - {"timeout_s"}
        assert CHAIN_TABLE.keys() == CHAIN_OWN | Step.model_fields.keys()
        without = ("response_format", "json_schema", "tools")
        assert CHAT.keys() - CHAIN.keys() == set(without)
        told = " ".join(doc_of(Client.chain).split())
        assert (
            "those of ``chat``, but {}, {} and {}.".format(*(f"``{n}``" for n in without)) in told
        )

    def test_benchmark_explains_each(self) -> None:
        assert BENCHMARK_TABLE.keys() == BENCHMARK.keys()

    @pytest.mark.parametrize(
        ("field", "text"), [row[2:] for row in TABLES], ids=[f"{m}-{n}" for m, n, *_ in TABLES]
    )
    def test_ranges_defaults_and_words_are_those_that_are_read(
        self, field: FieldInfo, text: str
    ) -> None:
        limits = bounds(field)
        if limits is not None and limits[1] < 2**62:
            assert told_bounds(text) == limits
        words = set(filter(lambda part: isinstance(part, str), parts([field.annotation])))
        assert words - set(re.findall(r"``(\w+)``", text)) == set()
        default = told_default(text)
        if isinstance(field.default, int | float) or words:
            expected = field.default
            if expected is None:
                assert default is None
            elif isinstance(expected, str | bool):
                assert default == str(expected)
            else:
                assert default is not None
                assert float(default.replace(",", "")) == expected

    def test_settings_are_explained_with_their_defaults(self) -> None:
        rows = table(doc_of(Client))
        assert tuple(rows) == FIELDS
        defaults = Settings(KEY)
        for name in ("auth_header", "default_model"):
            assert told_default(rows[name]) == getattr(defaults, name)
        for name in ("requests_per_minute", "tokens_per_minute", "max_concurrency"):
            assert float(told_default(rows[name]) or "") == getattr(defaults, name)
        assert told_bounds(rows["max_concurrency"]) == (1, config.MAX_MAX_CONCURRENCY)
        assert f"{config.MIN_KEY_LENGTH} characters" in rows["api_key"]
        assert config.DEFAULT_BASE_URL in rows["base_url"]

    def test_numbers_in_the_text_are_those_of_the_engine(self) -> None:
        text = " ".join(doc_of(Client).split())
        assert (
            f"{config.CACHE_MAX_ENTRIES:,} answers and {config.CACHE_MAX_BYTES >> 20} MiB" in text
        )
        text = " ".join(doc_of(Client.batch).split())
        assert f"has {config.MAX_BATCH_ROWS:,} rows at most" in text
        assert f"as far ahead as needed, {config.BATCH_AHEAD_ROWS:,} rows at most" in text
        assert f"{config.MAX_INPUT_CHARS:,} characters at most" in doc_of(Client.chat)
        assert f"1 to {config.MAX_CHAIN_STEPS} objects" in doc_of(Client.chain)
        period = " ".join(doc_of(Client.usage).split())
        assert set(get_args(UsagePeriod)) <= set(re.findall(r"``(\w+)``", period))
        assert set(get_args(UsageGroup)) <= set(re.findall(r"``(\w+)``", doc_of(holysheep.Usage)))


class TestTypes:
    @pytest.mark.parametrize(
        ("typed", "names"),
        [
            (arguments.ChatArguments, CHAT.keys()),
            (arguments.BatchArguments, BATCH.keys() - {"prompt_template"}),
            (arguments.ChainArguments, CHAIN.keys() - {"query", "steps"}),
            (arguments.BenchmarkArguments, BENCHMARK.keys()),
            (arguments.SettingsArguments, set(FIELDS) - {"api_key", "base_url"}),
        ],
        ids=["chat", "batch", "chain", "benchmark", "settings"],
    )
    def test_keyword_arguments_are_those_that_are_taken(self, typed: Any, names: set[str]) -> None:
        assert get_type_hints(typed).keys() == names

    @pytest.mark.parametrize(
        ("typed", "fields"),
        [
            (arguments.ChatArguments, CHAT),
            (arguments.BatchArguments, BATCH),
            (arguments.ChainArguments, CHAIN),
        ],
        ids=["chat", "batch", "chain"],
    )
    def test_words_of_keyword_arguments_are_those_that_are_taken(
        self, typed: Any, fields: dict[str, FieldInfo]
    ) -> None:
        def words(annotation: Any) -> set[str]:
            return {part for part in parts([annotation]) if isinstance(part, str)}

        hints = get_type_hints(typed)
        assert {name: words(hint) for name, hint in hints.items()} == {
            name: words(fields[name].annotation) for name in hints
        }

    def test_a_strict_type_checker_helps_a_caller(self, tmp_path: Path) -> None:
        source = tmp_path / "caller.py"
        source.write_text(TYPED, encoding="utf-8")
        # With the project's cache, which `make lint` fills too: cold it takes ten times as long.
        ran = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(source)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.stderr == ""
        errors = rf"{source.name}:(\d+): error: .*\[([\w-]+)\]$"
        found = re.findall(errors, ran.stdout, re.MULTILINE)
        lines = enumerate(TYPED.splitlines(), 1)
        expected = [(str(n), line.split("# error: ")[1]) for n, line in lines if "# error" in line]
        assert found == expected, ran.stdout


TYPED = """
from collections import Counter
from decimal import Decimal
from typing import Any, Literal, assert_type

from holysheep import BadRequest, ChatResult, Client, HolySheepError, TokenBucket
from holysheep.ports import SystemClock

given: dict[str, Any] = {"temperature": 0}
with Client("key", requests_per_minute=60, daily_budget_usd=Decimal(5)) as client:
    result = client.chat("Hello", model="m", temperature=0, stop=["x"], tools=[{"type": "x"}])
    assert_type(result, ChatResult)
    assert_type(result.cost_usd, Decimal | None)
    assert_type(result.tool_calls, list[dict[str, Any]])
    client.chat([{"role": "user", "content": [{"type": "text", "text": "Hello"}]}], **given)
    client.chat("Hello", temprature=0)  # error: call-arg
    client.chat("Hello", cache="always")  # error: arg-type
    stream = client.stream("Hello", fallback_models=["a", "b"], timeout_s=5.5)
    assert_type([delta.text for delta in stream], list[str])
    assert_type(stream.result, ChatResult)
    results = client.batch(["a"], concurrency=5, on_row_error="stop", deadline_s=60)
    for row in results:
        assert_type(row.status, Literal["ok", "error", "skipped"])
    assert_type(results.totals.error_types, Counter[str])
    client.batch(["a"], concurrency="five")  # error: arg-type
    client.batch(["a"], timeout_s=5)  # error: call-arg
    assert_type(client.chain("Hello", [{"prompt": "a"}]).results[0].error, HolySheepError | None)
    assert_type(client.benchmark(iterations=3).latencies.summary().p50_ms, float)
    usage = client.usage("today")
    assert_type(usage.rows["model"][0].cost_usd, Decimal)
    usage.rows["modle"]  # error: index
    client.usage("tomorrow")  # error: arg-type
Client("key", request_per_minute=60)  # error: call-arg
assert_type(TokenBucket(5, clock=SystemClock()).acquire(), bool)
try:
    client.check()
except BadRequest as refused:
    assert_type(refused.param, str | None)
except HolySheepError as error:
    assert_type(error.retry_after_s, float | None)
"""


# --- what is raised, and what the examples do ---------------------------------------------------


def client(upstream: Upstream, key: str = KEY, path: str = "") -> Client:
    return Client(key, base_url=upstream.url + path, requests_per_minute=0)


RAISES: dict[str, tuple[Any, Callable[[Upstream], object]]] = {
    "a setting": (Client, lambda _: Client(KEY, max_concurrency=0)),
    "an unknown setting": (Client, lambda _: Client(KEY, speed=1)),
    "no key": (Client, lambda _: Client()),
    "chat, a parameter": (Client.chat, lambda up: client(up).chat("Hi", temperature=9)),
    "chat, an unknown one": (Client.chat, lambda up: client(up).chat("Hi", n=2)),
    "chat, nothing asked": (Client.chat, lambda up: client(up).chat(" ")),
    "chat, the key": (Client.chat, lambda up: client(up, f"wrong-{KEY}").chat("Hi")),
    "chat, a budget": (
        Client.chat,
        lambda up: Client(KEY, base_url=up.url, daily_budget_usd="0.000001").chat("Hi"),
    ),
    "stream, a parameter": (Client.stream, lambda up: client(up).stream("Hi", top_p=2)),
    "stream, too early": (holysheep.Stream.result, lambda up: client(up).stream("Hi").result),
    "batch, no rows": (Client.batch, lambda up: client(up).batch([])),
    "batch, a template": (Client.batch, lambda up: client(up).batch(["a"], "{{ b }}")),
    "batch, a deadline": (Client.batch, lambda up: client(up).batch(["a"], deadline_s=0)),
    "a row": (holysheep.BatchResults, lambda up: list(client(up).batch(iter(["a", 1.5, None])))),
    "chain, no steps": (Client.chain, lambda up: client(up).chain("Hi", [])),
    "benchmark, a parameter": (Client.benchmark, lambda up: client(up).benchmark(iterations=0)),
    "usage, a period": (Client.usage, lambda up: client(up).usage("ever")),  # type: ignore[arg-type]
    "models, the key": (Client.models, lambda up: client(up, f"wrong-{KEY}").models()),
    "models, no API": (Client.models, lambda up: client(up, path="/nowhere").models()),
    "check, the key": (Client.check, lambda up: client(up, f"wrong-{KEY}").check()),
    "check, no API": (Client.check, lambda up: client(up, path="/nowhere").check()),
    "an export": (holysheep.Usage.from_json, lambda _: holysheep.Usage.from_json({})),
    "a bucket": (TokenBucket, lambda _: TokenBucket(0, clock=SystemClock())),
}


@pytest.mark.parametrize(("explained", "call"), RAISES.values(), ids=RAISES.keys())
def test_what_is_raised_is_told(
    explained: Any, call: Callable[[Upstream], object], upstream: Upstream
) -> None:
    with pytest.raises((HolySheepError, TypeError, ValueError, RuntimeError)) as raised:
        call(upstream)
    kinds = raised.type.__mro__[: raised.type.__mro__.index(Exception)]
    raising = inspect.getdoc(explained) or ""
    assert any(f"``{kind.__name__}``" in raising for kind in kinds)
    assert "Raises" in raising or "raises" in raising


def test_a_chain_without_an_answer_raises_the_failure_of_its_first_step(
    upstream: Upstream,
) -> None:
    assert "the failure of the first step" in doc_of(Client.chain)
    with pytest.raises(holysheep.AuthError), client(upstream, f"wrong-{KEY}") as refused:
        refused.chain("Hi", [{}, {"prompt": "Go on."}])


def examples() -> Iterator[tuple[str, str]]:
    """The code that stands in docstrings of modules of the library, behind two colons."""
    for module in sorted({"holysheep", *(kind.__module__ for kind in exported())}):
        text = inspect.cleandoc(importlib.import_module(module).__doc__ or "")
        for block in re.findall(r"::\n\n((?:    .*\n|\n)+)", f"{text}\n\n"):
            if "import" in block:
                yield module, textwrap.dedent(block)


EXAMPLES = list(examples())


@pytest.mark.parametrize(("module", "source"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_examples_run(
    module: str, source: str, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLYSHEEP_API_KEY", KEY)
    monkeypatch.setenv("HOLYSHEEP_BASE_URL", upstream.url)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(source, f"<example of {module}>", "exec"), {})  # noqa: S102 - our own
    if module == "holysheep":
        told = printed.getvalue().splitlines()
        assert told[0].startswith("You said: Why is the sky blue?")
        assert [line.split(" You")[0] for line in told[2:4]] == ["0 ok", "1 ok"]
        assert told[-1].split()[:2] == ["deepseek-v3.2", "4"]
        assert Decimal(told[-1].split()[-1]) > 0


def test_examples_are_found() -> None:
    assert {"holysheep", "holysheep.bucket"} <= {name for name, _ in EXAMPLES}


def test_a_result_is_taken_up_as_the_docstring_of_batch_says(upstream: Upstream) -> None:
    text = " ".join(doc_of(Client.batch).split())
    assert 'rows_of_file(content, "results.jsonl")' in text
    assert "Row(index, item, columns, earlier)" in text
    first = [holysheep.RowResult(0, "ok", "Say a", "A."), holysheep.RowResult(1, "error", "Say b")]
    content = "".join(f"{json.dumps(result.to_json())}\n" for result in first).encode()
    with client(upstream) as asking:
        again = asking.batch(rows_of_file(content, "results.jsonl"))
        assert [row.response[:15] for row in again] == ["A.", "You said: Say b"]
        assert (again.totals.taken_over, again.totals.upstream_calls) == (1, 1)
        rows = (
            Row(index, item, {}, first[0] if index == 0 else None)
            for index, item in enumerate("ab")
        )
        again = asking.batch(rows, "Say {{ item }} loudly")
        assert [row.response[:22] for row in again] == ["A.", "You said: Say b loudly"]


# --- the command line ---------------------------------------------------------------------------


def help_of(*command: str) -> str:
    ran = CliRunner().invoke(main, [*command, "--help"])
    assert ran.exit_code == 0
    return " ".join(ran.stdout.split())


class TestCommandLine:
    def test_help_lists_all_commands_in_whole_sentences(self) -> None:
        shown = CliRunner().invoke(main, ["--help"]).stdout
        listed = dict(
            re.findall(r"^  ([a-z]+) {2,}(.+)$", shown.split("Commands:")[1], re.MULTILINE)
        )
        assert listed.keys() == main.commands.keys()
        assert [text for text in listed.values() if not text.endswith(".") or "..." in text] == []

    def test_help_has_every_exit_code(self) -> None:
        told = {int(code) for code in re.findall(r" (\d)  \w", main.epilog or "")}
        assert told == {0, 1, 5, 6, 7} | {code for _, code in cli_support.EXIT_CODES}

    @pytest.mark.parametrize("name", main.commands)
    def test_every_option_is_explained(self, name: str) -> None:
        options = [p for p in main.commands[name].params if isinstance(p, click.Option)]
        assert [option.name for option in options if not option.help] == []

    @pytest.mark.parametrize(
        ("name", "fields"),
        [
            ("chat", CHAT),
            ("batch", BATCH),
            ("benchmark", BENCHMARK),
            ("cost", CostParams.model_fields),
        ],
        ids=["chat", "batch", "benchmark", "cost"],
    )
    def test_help_has_the_ranges_and_defaults_that_are_read(
        self, name: str, fields: dict[str, FieldInfo]
    ) -> None:
        looked_at = 0
        for option in main.commands[name].params:
            field = fields.get(option.name or "")
            text = getattr(option, "help", None)
            if field is None or text is None or option.name == "model":
                continue
            if "to" in text.split():
                assert told_bounds(text) == bounds(field), option.name
            if told_default(text) is not None:
                assert float(told_default(text) or "") == field.default, option.name
                looked_at += 1
        assert looked_at >= 4

    def test_list_prices_have_the_date_that_is_told(self) -> None:
        prices = yaml.safe_load((ROOT / "holysheep/prices.yaml").read_text(encoding="utf-8"))
        (date,) = {price["date"] for price in prices["models"].values()}
        assert f"as of {date}" in str(holysheep.__doc__)
        assert f"as of {date}" in help_of("cost")
