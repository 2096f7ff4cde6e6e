"""The package as data: declarations, examples and documents agree with each other and the engine.

The host checks next to nothing of this; what is wrong here fails an installation, hides a field in
the editor, or sends a reader to a name that does not exist. Nothing here runs a node.

The SDK patches the process when it is imported, so the one test that needs it uses a process of
its own.
"""

import dataclasses
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import jinja2
import jsonschema
import pytest
import yaml
from pathspec import GitIgnoreSpec
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from holysheep import config, errors
from holysheep.chain import Chain, StepResult
from holysheep.estimate import ModelEstimate, estimate
from holysheep.options import Options
from holysheep.params import (
    BatchParams,
    BenchmarkParams,
    ChainParams,
    ChatParams,
    Conversation,
    CostParams,
    Step,
    UsageParams,
)
from holysheep.pricing import PriceBook, parse_overrides
from holysheep.reading import chosen, parsed
from holysheep.result import ChatResult, Meta, UsageReport, empty_result
from holysheep.results import FIELDS
from holysheep.settings import Settings, parse_settings
from holysheep.shared.address import parse_redis_url
from holysheep.shared.check import OLDEST, RULES
from holysheep.stats import LatencySummary
from holysheep.template import Template
from holysheep.types import Trace, Usage
from holysheep.usage import BudgetStatus, UsageRow
from tests.fakes import FakeClock

ROOT = Path(__file__).resolve().parents[2]

LANGUAGES = {"en_US", "zh_Hans", "pt_BR", "ja_JP"}
TEXT_KEYS = {"label", "description", "human", "human_description", "placeholder", "help"}
LONGEST_LABEL = 30  # the editor wraps a longer one onto the description below it
LONGEST_TEXT = 1023  # the daemon refuses longer ones
NAME = re.compile(r"[a-z][a-z0-9_]{0,29}")  # longer, or with a dash: no template can refer to it
RESERVED_OUTPUTS = {"text", "files", "json"}
# Types that every supported host version handles, in the place where it handles them.
PARAMETER_TYPES = {
    "llm": {"string", "number", "boolean", "array", "object", "file", "files"},
    "form": {"string", "number", "boolean", "select"},
}
# The host's own list; another tag breaks the tools page of a workspace.
TAGS = {
    *("search", "image", "videos", "weather", "finance", "design", "travel", "social", "news"),
    *("medical", "productivity", "education", "business", "entertainment", "utilities", "rag"),
    "other",
}
HAN = re.compile("[\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
KANA = re.compile("[\u3040-\u30ff]")
# What the marketplace's scan for financial activity looks for, and where it looks.
FLAGGED = re.compile(
    r"\b(charge[ds]?|payments?|transactions?|refund(s|ed)?|deposits?|checkout|withdraw(s|als?)?"
    r"|payouts?|trading)\b",
    re.IGNORECASE,
)
FLAGGED_SUFFIXES = {".md", ".yaml", ".yml", ".json", ".toml", ".py", ".js"}
KEY_LIKE = re.compile(r"\bsk-[A-Za-z0-9_-]{20,}")


def read_yaml(path: str | Path) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return data


def relative(paths: Iterator[Path]) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


MANIFEST = read_yaml("manifest.yaml")
PROVIDER_FILES = relative(ROOT.glob("provider/*.yaml"))
NODE_FILES = relative(ROOT.glob("nodes/*.yaml"))
EXAMPLE_FILES = relative(ROOT.glob("examples/*.yml"))
GROUP_FILES = relative(ROOT.glob("group/*.yaml"))
ENDPOINT_FILES = relative(ROOT.glob("endpoints/*.yaml"))
DECLARATIONS = ["manifest.yaml", *PROVIDER_FILES, *NODE_FILES, *GROUP_FILES]
PROVIDER = read_yaml(MANIFEST["plugins"]["tools"][0])
CREDENTIALS: dict[str, dict[str, Any]] = PROVIDER["credentials_for_provider"]
GROUP = read_yaml(MANIFEST["plugins"]["endpoints"][0])
ENDPOINTS = {path: read_yaml(path) for path in ENDPOINT_FILES}
NODES = {path: read_yaml(path) for path in NODE_FILES}
TOOLS = {node["identity"]["name"]: node for node in NODES.values()}
LLM = NODES["nodes/holysheep_llm.yaml"]


@dataclasses.dataclass(frozen=True)
class Reader:
    """How the engine reads the parameters of a node."""

    models: tuple[type[BaseModel], ...]
    # What the node handles before the engine reads the rest: files are fetched, rows are kept
    # apart, and custom_model is a way to name the model.
    handled_before: set[str]
    # What cannot be left out, with the least that is accepted.
    least: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def fields(self) -> dict[str, FieldInfo]:
        return {name: field for m in self.models for name, field in m.model_fields.items()}

    def read(self, values: Mapping[str, Any]) -> dict[str, Any]:
        given = {"model": config.DEFAULT_MODEL, **values}
        read = [parsed(model, given) for model in self.models]
        return {name: getattr(one, name) for one in read for name in type(one).model_fields}


READERS = {
    "holysheep_llm": Reader(
        (Conversation, ChatParams), {"files", "custom_model"}, {"query": "Hello"}
    ),
    "holysheep_batch": Reader((BatchParams,), {"queries", "file", "custom_model"}),
    "holysheep_chain": Reader((ChainParams,), {"custom_model"}, {"query": "Hi", "steps": [{}]}),
    "holysheep_cost": Reader((CostParams,), set()),
    "holysheep_usage": Reader((UsageParams,), set()),
    "holysheep_benchmark": Reader((BenchmarkParams,), {"custom_model"}),
}

# Where a node's parameter is not the same as in the first node that has one of this name, because
# it means something else there or has other limits.
DIFFERENCES = {
    ("holysheep_batch", "options"): {"human_description"},
    ("holysheep_chain", "options"): {"human_description"},
    ("holysheep_chain", "query"): {"human_description", "llm_description"},
    ("holysheep_chain", "timeout_s"): {"default", "max"},
    ("holysheep_benchmark", "concurrency"): {"default"},
    ("holysheep_benchmark", "max_tokens"): {"default"},
    ("holysheep_benchmark", "deadline_s"): {"default", "human_description"},
}

# The outputs of each node beside text, files and json. Saved workflows refer to them: add, but
# rename nothing and change no type.
OUTPUTS = {
    "holysheep_llm": {
        "result": "string",
        "reasoning": "string",
        "model_used": "string",
        "finish_reason": "string",
        "status": "string",
        "error": "string",
        "error_type": "string",
        "cached": "boolean",
        "latency_ms": "number",
        "tokens_used": "integer",
        "cost_usd": "number",
        "structured": "object",
        "tool_calls": "array[object]",
        "usage": "object",
        "meta": "object",
    },
    "holysheep_batch": {
        "results": "array[object]",
        "total": "integer",
        "succeeded": "integer",
        "failed": "integer",
        "skipped": "integer",
        "cached_count": "integer",
        "upstream_calls": "integer",
        "tokens_used": "integer",
        "cost_usd": "number",
        "elapsed_ms": "number",
        "throughput_rpm": "number",
        "latency": "object",
        "truncated": "boolean",
        "status": "string",
        "progress": "string",
    },
    "holysheep_chain": {
        "final": "string",
        "results": "object",
        "steps_ok": "integer",
        "steps_failed": "integer",
        "tokens_used": "integer",
        "cost_usd": "number",
        "latency_ms": "number",
        "status": "string",
    },
    "holysheep_cost": {
        "rows": "array[object]",
        "cheapest_model": "string",
        "cost_usd": "number",
        "unpriced": "array[string]",
    },
    "holysheep_usage": {
        "rows": "array[object]",
        "total_requests": "integer",
        "total_tokens": "integer",
        "cached_requests": "integer",
        "failed_requests": "integer",
        "total_cost_usd": "number",
        "saved_usd": "number",
        "cache_hit_rate": "number",
        "unpriced_requests": "integer",
        "budget": "object",
    },
    "holysheep_benchmark": {
        "avg_latency_ms": "number",
        "min_latency_ms": "number",
        "max_latency_ms": "number",
        "p50_latency_ms": "number",
        "p95_latency_ms": "number",
        "p99_latency_ms": "number",
        "avg_ttft_ms": "number",
        "throughput_rpm": "number",
        "succeeded": "integer",
        "failed": "integer",
        "tokens_used": "integer",
        "cost_usd": "number",
    },
}


def has_choices(node: dict[str, Any]) -> bool:
    return any(parameter["type"] == "select" for parameter in node["parameters"])


every_declaration = pytest.mark.parametrize("path", DECLARATIONS)
every_node = pytest.mark.parametrize("path", NODE_FILES)
every_tool = pytest.mark.parametrize("tool", TOOLS)
every_example = pytest.mark.parametrize("path", EXAMPLE_FILES)
with_choices = pytest.mark.parametrize(
    "path", [*PROVIDER_FILES, *(path for path in NODE_FILES if has_choices(NODES[path]))]
)


# --- Declarations -------------------------------------------------------------------------------


def test_declarations_load_in_the_sdk() -> None:
    script = """
import json
from dify_plugin.core.entities.plugin.setup import PluginConfiguration
from dify_plugin.core.utils.yaml_loader import load_yaml_file
from dify_plugin.entities.endpoint import EndpointProviderConfiguration
from dify_plugin.entities.tool import ToolProviderConfiguration

manifest = PluginConfiguration(**load_yaml_file("manifest.yaml"))
providers = [ToolProviderConfiguration(**load_yaml_file(p)) for p in manifest.plugins.tools]
tools = {t.identity.name: [p.name for p in t.parameters] for c in providers for t in c.tools}
groups = [EndpointProviderConfiguration(**load_yaml_file(p)) for p in manifest.plugins.endpoints]
routes = [[e.method, e.path] for group in groups for e in group.endpoints]
print(json.dumps({"tools": tools, "routes": routes}))
"""
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    loaded = json.loads(run.stdout.splitlines()[-1])
    parameters = {name: [p["name"] for p in tool["parameters"]] for name, tool in TOOLS.items()}
    assert loaded["tools"] == parameters
    assert sorted(map(tuple, loaded["routes"])) == sorted(ROUTES)


def test_manifest_and_provider_list_exactly_the_files_that_are_there() -> None:
    assert sorted(MANIFEST["plugins"]["tools"]) == PROVIDER_FILES
    assert sorted(PROVIDER["tools"]) == NODE_FILES


@pytest.mark.parametrize("path", [*PROVIDER_FILES, *NODE_FILES])
def test_file_name_identity_and_source_are_the_same_name(path: str) -> None:
    declaration = read_yaml(path)
    assert declaration["identity"]["name"] == Path(path).stem
    assert declaration["identity"]["author"] == MANIFEST["author"]
    source = declaration["extra"]["python"]["source"]
    assert source == Path(path).with_suffix(".py").as_posix()
    assert (ROOT / source).is_file()


def test_ids_fit_every_part_of_the_host() -> None:
    for name in (MANIFEST["author"], MANIFEST["name"], PROVIDER["identity"]["name"]):
        assert re.fullmatch(r"[a-z0-9_-]{1,64}", name)
    assert not re.search("langgenius|dify", MANIFEST["author"])


def test_manifest_is_complete() -> None:
    assert "verified" not in MANIFEST
    assert (ROOT / MANIFEST["privacy"]).read_text(encoding="utf-8").strip()
    assert MANIFEST["created_at"] < datetime.now(UTC)
    assert set(MANIFEST["tags"]) <= TAGS
    assert set(PROVIDER["identity"]["tags"]) <= TAGS
    runner = MANIFEST["meta"]["runner"]
    assert isinstance(runner["version"], str)
    assert (ROOT / f"{runner['entrypoint']}.py").is_file()


def test_network_domains_name_the_default_host() -> None:
    assert MANIFEST["network"]["domains"] == [urlsplit(config.DEFAULT_BASE_URL).hostname]


@pytest.mark.parametrize("owner", [MANIFEST, PROVIDER["identity"]], ids=["manifest", "provider"])
@pytest.mark.parametrize("key", ["icon", "icon_dark"])
def test_icons_are_drawings_that_load_nothing(owner: dict[str, Any], key: str) -> None:
    root = ET.parse(ROOT / "_assets" / owner[key]).getroot()  # noqa: S314 - our own file
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "viewBox" in root.attrib
    elements = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert elements <= {"svg", "g", "rect", "circle", "ellipse", "path"}


# --- Languages ----------------------------------------------------------------------------------


def words(data: Any, place: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every text for people: where it is, its key, and what stands there."""
    if isinstance(data, list):
        for index, item in enumerate(data):
            yield from words(item, f"{place}[{index}]")
    elif isinstance(data, dict):
        for key, value in data.items():
            # A tool's description holds two: human, and llm, which has one language.
            if key in TEXT_KEYS and "human" not in value:
                yield f"{place}.{key}", key, value
            elif key != "output_schema":  # its descriptions have one language
                yield from words(value, f"{place}.{key}")


@every_declaration
def test_every_text_has_four_languages(path: str) -> None:
    found = list(words(read_yaml(path)))
    assert found
    for place, _, text in found:
        assert isinstance(text, dict), place
        assert set(text) == LANGUAGES, place
        for language, value in text.items():
            assert isinstance(value, str), (place, language)
            assert 0 < len(value.strip()) <= LONGEST_TEXT, (place, language)


@every_declaration
def test_texts_are_in_the_language_they_are_given_for(path: str) -> None:
    for place, key, text in words(read_yaml(path)):
        for language in ("en_US", "pt_BR"):
            assert not HAN.search(text[language]), (place, language)
            assert not KANA.search(text[language]), (place, language)
        if key == "label":  # names of products and models are the same everywhere
            continue
        assert HAN.search(text["zh_Hans"]), place
        assert not KANA.search(text["zh_Hans"]), place
        assert KANA.search(text["ja_JP"]), place
        assert text["pt_BR"] != text["en_US"], place


@every_declaration
def test_labels_fit_on_one_line(path: str) -> None:
    for place, key, text in words(read_yaml(path)):
        if key == "label":
            for language, value in text.items():
                assert len(value) <= LONGEST_LABEL, (place, language)
                assert "\n" not in value, (place, language)


# --- Parameters and credentials -----------------------------------------------------------------


def parameters(node: dict[str, Any], form: str) -> dict[str, dict[str, Any]]:
    return {p["name"]: p for p in node["parameters"] if p["form"] == form}


@every_node
def test_parameter_names_are_usable_and_unique(path: str) -> None:
    names = [parameter["name"] for parameter in NODES[path]["parameters"]]
    assert len(names) == len(set(names))
    for name in names:
        assert isinstance(name, str), name
        assert NAME.fullmatch(name), name


@every_node
def test_inputs_come_before_settings(path: str) -> None:
    forms = [parameter["form"] for parameter in NODES[path]["parameters"]]
    assert forms == sorted(forms, key=["llm", "form"].index)


@every_node
def test_parameters_have_types_that_the_host_handles(path: str) -> None:
    for parameter in NODES[path]["parameters"]:
        assert parameter["type"] in PARAMETER_TYPES[parameter["form"]], parameter["name"]
        assert isinstance(parameter["required"], bool), parameter["name"]


@every_node
def test_inputs_tell_an_agent_when_to_leave_them_alone(path: str) -> None:
    for name, parameter in parameters(NODES[path], "llm").items():
        assert parameter["llm_description"].strip(), name
        if not parameter["required"]:
            assert "leave it out" in parameter["llm_description"].lower(), name
    for name, parameter in parameters(NODES[path], "form").items():
        assert "llm_description" not in parameter, name


@every_node
def test_defaults_and_ranges_are_consistent(path: str) -> None:
    for parameter in NODES[path]["parameters"]:
        name, default = parameter["name"], parameter.get("default")
        match parameter["type"]:
            case "number":
                assert isinstance(default, int | float), name
                assert parameter["min"] <= default <= parameter["max"], name
            case "select":
                values = [option["value"] for option in parameter["options"]]
                assert default in values, name
                assert len(values) == len(set(values)), name
            case type_:
                assert default is None or (type_ == "string" and default), name
                assert not {"min", "max", "options"} & set(parameter), name


def option_values(node: yaml.Node) -> Iterator[yaml.Node]:
    """The ``value`` of each select option in a file, as written."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from option_values(item)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "options" and isinstance(value, yaml.SequenceNode):
                for option in value.value:
                    yield from (v for k, v in option.value if k.value == "value")
            else:
                yield from option_values(value)


@with_choices
def test_option_values_are_quoted_texts(path: str) -> None:
    document = yaml.compose((ROOT / path).read_text(encoding="utf-8"))
    assert document is not None
    values = list(option_values(document))
    assert values
    for value in values:
        assert isinstance(value, yaml.ScalarNode)
        assert value.style in ("'", '"'), value.value


@every_tool
def test_parameters_are_those_of_the_engine(tool: str) -> None:
    declared = {parameter["name"] for parameter in TOOLS[tool]["parameters"]}
    assert declared == {*READERS[tool].fields, *READERS[tool].handled_before}


@every_tool
def test_required_parameters_are_those_that_the_engine_cannot_do_without(tool: str) -> None:
    reader = READERS[tool]
    required = {p["name"] for p in TOOLS[tool]["parameters"] if p["required"]}
    assert required == set(reader.least)
    reader.read(reader.least)
    for name in required:
        with pytest.raises(errors.InputError, match=name):
            reader.read({other: value for other, value in reader.least.items() if other != name})


@every_tool
def test_parameter_defaults_are_those_of_the_engine(tool: str) -> None:
    reader = READERS[tool]
    defaults = {p["name"]: p["default"] for p in TOOLS[tool]["parameters"] if "default" in p}
    untouched = reader.read(reader.least)
    assert reader.read({**reader.least, **defaults}) == untouched
    assert defaults.get("model") == (config.DEFAULT_MODEL if "model" in untouched else None)
    unset = {name for name, value in untouched.items() if value in (None, "", (), [], Options())}
    described_instead = {"options"}  # each key has a default of its own
    assert set(defaults) == set(untouched) - unset - described_instead - set(reader.least)


@pytest.mark.parametrize(
    ("tool", "name"),
    [(tool, p["name"]) for tool, node in TOOLS.items() for p in node["parameters"] if "min" in p],
)
def test_ranges_are_those_of_the_engine(tool: str, name: str) -> None:
    reader, parameter = READERS[tool], parameters(TOOLS[tool], "form")[name]
    for allowed in (parameter["min"], parameter["max"]):
        assert reader.read({**reader.least, name: allowed})[name] == allowed
    for refused in (parameter["min"] - 1, parameter["max"] + 1):
        with pytest.raises(errors.InputError, match=name):
            reader.read({**reader.least, name: refused})


@every_tool
def test_choices_are_those_of_the_engine(tool: str) -> None:
    for name, parameter in parameters(TOOLS[tool], "form").items():
        if parameter["type"] == "select" and name != "model":  # the engine takes any model id
            values = [option["value"] for option in parameter["options"]]
            assert values == list(get_args(READERS[tool].fields[name].annotation)), name


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if "options" in READERS[tool].fields])
def test_options_named_in_the_editor_exist(tool: str) -> None:
    described = parameters(TOOLS[tool], "form")["options"]["human_description"]
    named = {
        language: re.findall(r"[a-z]+(?:_[a-z]+)*", text.split("JSON", 1)[1].split("etc")[0])
        for language, text in described.items()
    }
    assert all(found == named["en_US"] for found in named.values())
    model = READERS[tool].fields["options"].annotation
    assert model is not None
    assert issubclass(model, Options)
    assert set(named["en_US"]) <= set(model.model_fields)
    # Those that every node has follow in the same words everywhere; a node's own stand first.
    of_its_own = set(model.model_fields) - set(Options.model_fields)
    assert set(named["en_US"][: len(of_its_own)]) == of_its_own
    common = parameters(LLM, "form")["options"]["human_description"]["en_US"]
    assert common.split(": ")[1] in described["en_US"]


def test_keys_of_a_step_are_named_in_the_editor() -> None:
    steps = parameters(TOOLS["holysheep_chain"], "llm")["steps"]
    for language, text in steps["human_description"].items():
        words = re.findall(r"[a-z]+(?:_[a-z]+)*", text)
        for name, field in Step.model_fields.items():
            assert name in words, (language, name)
            assert set(get_args(field.annotation)) & {"none", "stop"} <= set(words), language


def test_a_parameter_is_the_same_in_every_node_that_has_it() -> None:
    first: dict[str, dict[str, Any]] = {}
    found = {}
    for path in PROVIDER["tools"]:
        for parameter in NODES[path]["parameters"]:
            model = first.setdefault(parameter["name"], parameter)
            keys = {*model, *parameter}
            differing = {key for key in keys if model.get(key) != parameter.get(key)}
            if differing:
                found[Path(path).stem, parameter["name"]] = differing
    assert found == DIFFERENCES


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_benchmark_says_that_each_iteration_costs(language: str) -> None:
    cost = {"en_US": "cost", "zh_Hans": "费用", "pt_BR": "custo", "ja_JP": "費用"}[language]
    node = TOOLS["holysheep_benchmark"]
    assert cost in node["description"]["human"][language]
    assert cost in parameters(node, "form")["iterations"]["human_description"][language]
    assert "cost" in node["description"]["llm"]


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_cost_says_that_tokens_are_estimated_and_that_it_makes_no_call(language: str) -> None:
    estimated, no_call = {
        "en_US": ("estimated", "makes no call"),
        "zh_Hans": ("估算值", "不会发起任何调用"),
        "pt_BR": ("estimados", "não faz nenhuma chamada"),
        "ja_JP": ("推定値", "呼び出しを行いません"),
    }[language]
    node = TOOLS["holysheep_cost"]
    human = node["description"]["human"][language]
    assert estimated in human
    assert no_call in human
    assert estimated in parameters(node, "llm")["input_text"]["human_description"][language]


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_usage_says_that_days_are_utc_and_that_it_makes_no_call(language: str) -> None:
    no_call = {
        "en_US": "makes no call",
        "zh_Hans": "不会发起任何调用",
        "pt_BR": "não faz nenhuma chamada",
        "ja_JP": "呼び出しを行いません",
    }[language]
    node = TOOLS["holysheep_usage"]
    assert no_call in node["description"]["human"][language]
    assert "UTC" in parameters(node, "form")["period"]["human_description"][language]


def test_credentials_are_the_settings_of_the_engine() -> None:
    assert list(CREDENTIALS) == [field.name for field in dataclasses.fields(Settings) if field.init]


def test_credential_defaults_are_those_of_the_engine() -> None:
    declared = {name: field.get("default") for name, field in CREDENTIALS.items()}
    assert all(value is None or isinstance(value, str) for value in declared.values())
    key = {"api_key": "k" * config.MIN_KEY_LENGTH}
    assert parse_settings(declared | key) == parse_settings(key)
    for name in ("base_url", "default_model", "requests_per_minute", "max_concurrency"):
        assert declared[name], name


def test_credentials_can_be_filled_in() -> None:
    for name, field in CREDENTIALS.items():
        assert NAME.fullmatch(name), name
        assert field["type"] in ("secret-input", "text-input", "select"), name
        assert field["required"] is (name == "api_key"), name
        assert {"label", "placeholder"} <= set(field), name
        # Dify shows a help text only as the words of a link.
        assert ("help" in field) == ("url" in field), name
    assert CREDENTIALS["api_key"]["url"].startswith("https://")


def test_what_may_hold_a_secret_is_hidden() -> None:
    hidden = {name for name, field in CREDENTIALS.items() if field["type"] == "secret-input"}
    assert hidden == {"api_key", "redis_url"}


def test_the_redis_url_in_the_placeholder_is_one() -> None:
    for language, text in CREDENTIALS["redis_url"]["placeholder"].items():
        urls = re.findall(r"rediss?[+a-z]*://[\w.:/]+", text, re.ASCII)
        assert urls, language
        for url in urls:
            assert parse_redis_url(url).options == {"db": 0}, language


# --- Endpoints ----------------------------------------------------------------------------------

# What clients have been set up with: rename nothing.
ROUTES = {
    ("GET", "/dashboard"): False,
    ("GET", "/dashboard/style.css"): True,
    ("GET", "/dashboard/script.js"): True,
    ("GET", "/usage.json"): False,
    ("GET", "/metrics"): False,
    ("GET", "/health"): False,
    ("POST", "/v1/chat/completions"): False,
    ("GET", "/v1/models"): False,
}
"""Method and path of each, and whether the list in Dify leaves it out."""


def test_manifest_and_group_list_exactly_the_files_that_are_there() -> None:
    assert MANIFEST["plugins"]["endpoints"] == GROUP_FILES
    assert sorted(GROUP["endpoints"]) == ENDPOINT_FILES
    assert MANIFEST["resource"]["permission"]["endpoint"]["enabled"] is True


def test_routes_are_those_of_the_contract() -> None:
    declared = {
        (each["method"], each["path"]): each.get("hidden", False) for each in ENDPOINTS.values()
    }
    assert len(ENDPOINTS) == len(ROUTES)
    assert declared == ROUTES


@pytest.mark.parametrize("path", ENDPOINT_FILES)
def test_source_of_an_endpoint_is_beside_its_declaration(path: str) -> None:
    source = ENDPOINTS[path]["extra"]["python"]["source"]
    assert source == Path(path).with_suffix(".py").as_posix()
    assert (ROOT / source).is_file()


def test_endpoint_is_set_up_with_a_token_and_the_fields_of_a_credential() -> None:
    token, *fields = GROUP["settings"]
    assert token["name"] == "access_token"
    assert token["type"] == "secret-input"
    assert token["required"] is True
    assert "default" not in token
    for language in LANGUAGES:
        assert str(config.MIN_TOKEN_LENGTH) in token["placeholder"][language], language
    # Without a key there is usage to be seen all the same.
    optional = {name: {**field, "required": False} for name, field in CREDENTIALS.items()}
    assert [field.pop("name") for field in fields] == list(CREDENTIALS)
    assert dict(zip(CREDENTIALS, fields, strict=True)) == optional


# --- Outputs ------------------------------------------------------------------------------------


def properties(schema: dict[str, Any], place: str = "") -> Iterator[tuple[str, str, Any]]:
    for name, declared in schema.get("properties", {}).items():
        yield f"{place}{name}", name, declared
        yield from properties(declared, f"{place}{name}.")
        yield from properties(declared.get("items", {}), f"{place}{name}[].")


def type_of(declared: dict[str, Any]) -> str:
    type_: str = declared["type"]
    return f"{type_}[{declared['items']['type']}]" if type_ == "array" else type_


@every_node
def test_outputs_can_be_referred_to(path: str) -> None:
    schema = NODES[path]["output_schema"]
    jsonschema.Draft7Validator.check_schema(schema)
    assert not RESERVED_OUTPUTS & set(schema["properties"])
    for place, name, declared in properties(schema):
        assert isinstance(name, str), place
        assert NAME.fullmatch(name), place
        assert declared["description"].strip(), place
        assert declared["type"] in ("string", "number", "integer", "boolean", "object", "array")
        if declared["type"] == "array":
            assert declared["items"]["type"] in ("string", "number", "object"), place


@every_tool
def test_outputs_are_those_that_workflows_rely_on(tool: str) -> None:
    declared = TOOLS[tool]["output_schema"]["properties"]
    assert {name: type_of(schema) for name, schema in declared.items()} == OUTPUTS[tool]


def test_outputs_of_a_batch_have_the_keys_of_the_engine() -> None:
    outputs = TOOLS["holysheep_batch"]["output_schema"]["properties"]
    assert tuple(outputs["results"]["items"]["properties"]) == FIELDS
    assert list(outputs["latency"]["properties"]) == list(LatencySummary().to_json())


def test_outputs_of_a_chain_have_the_keys_of_the_engine() -> None:
    steps = TOOLS["holysheep_chain"]["output_schema"]["properties"]["results"]["properties"]
    assert list(steps) == [f"step_{number}" for number in range(len(steps))]
    answered = StepResult("draft", result=empty_result(Trace(started_s=0), 0)).to_json()
    failed = StepResult("draft", error=errors.InputError("Too long.")).to_json()
    for step in steps.values():
        assert list(step["properties"]) == list(answered | failed)


def test_rows_of_an_estimate_have_the_keys_of_the_engine() -> None:
    row = ModelEstimate("m", Decimal(1), Decimal(0), Decimal(1), Decimal(4), "override").to_json()
    declared = TOOLS["holysheep_cost"]["output_schema"]["properties"]["rows"]["items"]
    assert list(declared["properties"]) == list(row)


def test_outputs_of_the_usage_have_the_keys_of_the_engine() -> None:
    outputs = TOOLS["holysheep_usage"]["output_schema"]["properties"]
    kinds = {str: "string", int: "integer", float: "number", Decimal: "number"}
    for declared, kind in ((outputs["rows"]["items"], UsageRow), (outputs["budget"], BudgetStatus)):
        fields = dataclasses.fields(kind)
        assert list(declared["properties"]) == [field.name for field in fields]
        for field in fields:
            type_ = kinds.get(field.type, "number")
            assert declared["properties"][field.name]["type"] == type_, field.name


def test_outputs_are_those_of_the_engine() -> None:
    outputs = LLM["output_schema"]["properties"]
    for name, kind in (("usage", UsageReport), ("meta", Meta)):
        assert list(outputs[name]["properties"]) == [f.name for f in dataclasses.fields(kind)]
    about_failure = {"result", "status", "error", "error_type"}
    of_success = {field.name for field in dataclasses.fields(ChatResult)} - RESERVED_OUTPUTS
    assert set(outputs) == of_success | about_failure


# --- Examples -----------------------------------------------------------------------------------

TEMPLATE = re.compile(r"\{\{#([^#]*)#\}\}")
# What the editor stores for an input of each type.
INPUT_KINDS = {
    "string": {"mixed"},
    "array": {"constant", "variable"},
    "file": {"variable"},
    "files": {"variable"},
}
SYSTEM_VARIABLES = {"query", "files", "conversation_id", "user_id", "app_id"}
END_TYPES = {"advanced-chat": "answer", "workflow": "end"}


def graph_nodes(example: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {node["id"]: node["data"] for node in example["workflow"]["graph"]["nodes"]}


def tool_nodes(example: dict[str, Any]) -> list[dict[str, Any]]:
    found = [data for data in graph_nodes(example).values() if data["type"] == "tool"]
    assert found
    return found


def references(data: Any) -> Iterator[list[str]]:
    """Every variable that a node's data refers to, as a path of names."""
    if isinstance(data, str):
        yield from (match.split(".") for match in TEMPLATE.findall(data))
    elif isinstance(data, list):
        for item in data:
            yield from references(item)
    elif isinstance(data, dict):
        if data.get("type") == "variable":
            yield data["value"]
        for key, value in data.items():
            if key in ("value_selector", "variable_selector"):
                yield value
            else:
                yield from references(value)


def is_declared(reference: list[str], nodes: dict[str, dict[str, Any]], mode: str) -> bool:
    owner, name, *rest = reference
    if owner == "sys":
        return mode == "advanced-chat" and name in SYSTEM_VARIABLES
    if owner not in nodes:
        return False
    data = nodes[owner]
    if data["type"] == "start":
        return any(variable["variable"] == name for variable in data["variables"])
    if data["type"] == "template-transform":
        return [name, *rest] == ["output"]
    if name in RESERVED_OUTPUTS:
        return not rest
    schema = TOOLS[data["tool_name"]]["output_schema"]
    for part in (name, *rest):
        schema = schema.get("properties", {}).get(part)
        if schema is None:
            return False
    return True


def test_there_is_an_example_of_every_node() -> None:
    shown = {data["tool_name"] for path in EXAMPLE_FILES for data in tool_nodes(read_yaml(path))}
    assert shown == set(TOOLS)


@every_example
def test_example_is_an_app_that_dify_imports(path: str) -> None:
    example = read_yaml(path)
    assert example["kind"] == "app"
    assert isinstance(example["version"], str)
    assert example["dependencies"] == []
    assert {"conversation_variables", "environment_variables", "features", "graph"} <= set(
        example["workflow"]
    )
    types = [data["type"] for data in graph_nodes(example).values()]
    assert types.count("start") == 1
    assert END_TYPES[example["app"]["mode"]] in types


@every_example
def test_example_edges_join_its_nodes(path: str) -> None:
    example = read_yaml(path)
    nodes = graph_nodes(example)
    edges = example["workflow"]["graph"]["edges"]
    for edge in edges:
        assert edge["data"]["sourceType"] == nodes[edge["source"]]["type"]
        assert edge["data"]["targetType"] == nodes[edge["target"]]["type"]
    joined = {edge["source"] for edge in edges} | {edge["target"] for edge in edges}
    assert joined == set(nodes)
    for name, data in nodes.items():
        handles = sorted(edge["sourceHandle"] for edge in edges if edge["source"] == name)
        if data["type"] == "if-else":
            assert handles == sorted([*(case["case_id"] for case in data["cases"]), "false"])
        else:
            assert set(handles) <= {"source"}


@every_example
def test_example_calls_a_declared_tool(path: str) -> None:
    provider_id = f"{MANIFEST['author']}/{MANIFEST['name']}/{PROVIDER['identity']['name']}"
    for data in tool_nodes(read_yaml(path)):
        assert data["provider_id"] == data["provider_name"] == provider_id
        assert data["provider_type"] == "builtin"
        assert data["tool_node_version"] == "2"
        assert data["tool_name"] in TOOLS


@every_example
def test_example_fills_in_every_setting(path: str) -> None:
    """Dify adds no defaults to an imported node, so a missing one would look empty in the panel."""
    for data in tool_nodes(read_yaml(path)):
        declared = parameters(TOOLS[data["tool_name"]], "form")
        assert list(data["tool_configurations"]) == list(declared)
        for name, given in data["tool_configurations"].items():
            parameter, value = declared[name], given["value"]
            assert given["type"] == ("mixed" if parameter["type"] == "string" else "constant"), name
            match parameter["type"]:
                case "select":
                    assert value in [option["value"] for option in parameter["options"]], name
                case "number":
                    assert parameter["min"] <= value <= parameter["max"], name
                case "string":
                    assert isinstance(value, str), name


@every_example
def test_example_inputs_are_declared(path: str) -> None:
    for data in tool_nodes(read_yaml(path)):
        declared = parameters(TOOLS[data["tool_name"]], "llm")
        given = data["tool_parameters"]
        assert set(given) <= set(declared)
        assert {name for name, parameter in declared.items() if parameter["required"]} <= set(given)
        for name, argument in given.items():
            assert argument["type"] in INPUT_KINDS[declared[name]["type"]], name
            if argument["type"] != "variable":  # the host makes a text of whatever stands there
                assert isinstance(argument["value"], str), name
            if name == "json_schema":
                jsonschema.Draft202012Validator.check_schema(json.loads(argument["value"]))


@every_example
def test_example_is_accepted_by_the_engine(path: str) -> None:
    for data in tool_nodes(read_yaml(path)):
        reader = READERS[data["tool_name"]]
        arguments = data["tool_configurations"] | data["tool_parameters"]
        values = {name: argument["value"] for name, argument in arguments.items()}
        own = {n: v for n, v in values.items() if n not in reader.handled_before - {"custom_model"}}
        read = reader.read(chosen(own, default_model="the credential's"))
        for name, value in own.items():
            if value and isinstance(read.get(name), str):
                assert read[name] == value, name


@every_example
def test_example_templates_are_accepted_by_the_engine(path: str) -> None:
    nothing: Any = object()  # what is wrong with a chain shows before anything is asked
    for data in tool_nodes(read_yaml(path)):
        inputs = {name: argument["value"] for name, argument in data["tool_parameters"].items()}
        if data["tool_name"] == "holysheep_batch":
            Template(inputs["prompt_template"])
        if data["tool_name"] == "holysheep_chain":
            params = parsed(ChainParams, inputs | {"model": config.DEFAULT_MODEL})
            Chain(nothing, params, clock=FakeClock(), invocation=nothing)


@every_example
def test_example_refers_to_variables_that_exist(path: str) -> None:
    example = read_yaml(path)
    nodes = graph_nodes(example)
    found = [reference for data in nodes.values() for reference in references(data)]
    assert found
    for reference in found:
        assert is_declared(reference, nodes, example["app"]["mode"]), reference


def test_cost_guard_estimates_the_call_that_it_guards() -> None:
    cost, llm = tool_nodes(read_yaml("examples/cost_guard.yml"))
    estimated, asked = cost["tool_configurations"], llm["tool_configurations"]
    assert estimated["models"]["value"] == asked["model"]["value"]
    assert estimated["completion_tokens"]["value"] == asked["max_tokens"]["value"]
    assert cost["tool_parameters"]["input_text"] == llm["tool_parameters"]["query"]


def test_cost_guard_lets_some_texts_through_and_refuses_others() -> None:
    nodes = graph_nodes(read_yaml("examples/cost_guard.yml"))
    unpriced, expensive = nodes["ifelse1"]["cases"]
    assert [each["variable_selector"] for each in unpriced["conditions"]] == [["cost1", "unpriced"]]
    limit = Decimal(expensive["conditions"][-1]["value"])
    assert f"{limit} USD" in nodes["refusal1"]["template"]
    settings = nodes["cost1"]["tool_configurations"].items()
    load = {name: given["value"] for name, given in settings}
    costs = []
    for length in (100, nodes["start1"]["variables"][0]["max_length"]):
        params = parsed(CostParams, load | {"input_text": "x" * length})
        cheapest = estimate(params, PriceBook()).cheapest
        assert cheapest is not None
        costs.append(cheapest.total_usd)
    assert costs[0] < limit < costs[1]


@pytest.mark.parametrize(
    ("outputs", "refusal"),
    [
        ({"unpriced": ["mine"], "cost_usd": None}, "Not asked: mine has no known price."),
        ({"unpriced": [], "cost_usd": 0.002}, "Not asked: the answer may cost about 0.002 USD,"),
    ],
    ids=["unpriced", "too expensive"],
)
def test_cost_guard_says_why_it_refuses(outputs: dict[str, Any], refusal: str) -> None:
    node = graph_nodes(read_yaml("examples/cost_guard.yml"))["refusal1"]
    assert {variable["variable"] for variable in node["variables"]} == set(outputs)
    text = jinja2.Template(node["template"]).render(outputs)
    assert text.startswith(refusal)
    assert "\n" not in text


def rendered(node: dict[str, Any], **values: str) -> str:
    assert {variable["variable"] for variable in node["variables"]} == set(values)
    return jinja2.Template(node["template"]).render(values)


def test_budget_stop_ends_where_the_budget_has_no_room() -> None:
    nodes = graph_nodes(read_yaml("examples/budget_stop.yml"))
    assert nodes["llm1"]["tool_configurations"]["on_error"]["value"] == "continue"
    stopped, failed = nodes["ifelse1"]["cases"]
    assert [(c["variable_selector"], c["value"]) for c in stopped["conditions"]] == [
        (["llm1", "error_type"], errors.BudgetExceeded.error_type)
    ]
    assert [(c["variable_selector"], c["value"]) for c in failed["conditions"]] == [
        (["llm1", "status"], "error")
    ]
    edges = read_yaml("examples/budget_stop.yml")["workflow"]["graph"]["edges"]
    targets = {e["sourceHandle"]: e["target"] for e in edges if e["source"] == "ifelse1"}
    assert targets == {"true": "stopped1", failed["case_id"]: "failed1", "false": "end3"}


@pytest.mark.parametrize(
    ("name", "begin"),
    [("stopped1", "Stopped before anything was sent: "), ("failed1", "No answer: ")],
)
def test_budget_stop_says_why_it_ends(name: str, begin: str) -> None:
    node = graph_nodes(read_yaml("examples/budget_stop.yml"))[name]
    assert rendered(node, error="The budget has no room.") == f"{begin}The budget has no room."


def test_usage_report_puts_both_reports_on_lines_of_their_own() -> None:
    """A table or a chart that begins in the middle of a line is not drawn."""
    node = graph_nodes(read_yaml("examples/usage_report.yml"))["report1"]
    lines = rendered(node, yesterday="| one |", month="| two |").splitlines()
    assert "| one |" in lines
    assert "| two |" in lines


# --- Prices of the article ----------------------------------------------------------------------

ARTICLE_PRICES = (ROOT / "examples/article_prices.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("model", "saving_percent"),
    [
        ("gpt-4.1", "86.7"),
        ("claude-sonnet-4.5", "66.7"),
        ("gemini-2.5-flash", "75.0"),
        ("deepseek-v3.2", "85.0"),
    ],
)
@pytest.mark.parametrize("usage", [Usage(1200, 300), Usage(1, 0), Usage(0, 1), Usage(900, 10, 800)])
def test_savings_of_the_article_come_out_of_its_prices(
    model: str, saving_percent: str, usage: Usage
) -> None:
    price, source = PriceBook(parse_overrides(ARTICLE_PRICES)).find(model)
    assert price is not None
    assert source == "override"
    compared = price.compared(usage)
    assert compared is not None
    saving = (compared - price.cost(usage)) / compared * 100
    assert round(saving, 1) == Decimal(saving_percent)
    assert saving_percent in ARTICLE_PRICES


def test_prices_of_the_article_are_called_claims() -> None:
    comment = " ".join(ARTICLE_PRICES.partition("{")[0].replace("#", " ").split())
    assert "They are the article's claims, not list prices" in comment


def test_prices_of_the_article_fit_into_the_field_of_the_credential() -> None:
    """The field is a single line: what is pasted there loses its line ends."""
    start = ARTICLE_PRICES.index("{")
    pasted = ARTICLE_PRICES[start:].replace("\n", "")
    assert parse_overrides(pasted) == parse_overrides(ARTICLE_PRICES)


# --- Shipped files ------------------------------------------------------------------------------

IGNORED = (ROOT / ".difyignore").read_text(encoding="utf-8").splitlines()
IGNORE = GitIgnoreSpec.from_lines(IGNORED)


def shipped_files() -> list[Path]:
    return sorted(ROOT / name for name in IGNORE.match_tree_files(ROOT, negate=True))


def test_difyignore_has_only_patterns_that_the_packager_understands() -> None:
    for pattern in IGNORED:
        assert re.fullmatch(r"[\w.*-]+/?", pattern), pattern


def test_package_holds_only_what_the_plugin_needs() -> None:
    tops = {path.relative_to(ROOT).parts[0] for path in shipped_files()}
    folders = {top for top in tops if (ROOT / top).is_dir()}
    assert folders == {"_assets", "endpoints", "group", "holysheep", "host", "nodes", "provider"}
    files = tops - folders
    assert {"manifest.yaml", "README.md", "PRIVACY.md", "LICENSE"} <= files
    assert not {".env", "Makefile", "uv.lock"} & files


@pytest.mark.parametrize(
    "name",
    [
        ".git/config",
        ".venv/bin/python",
        "venv/bin/python",
        "tests/package/test_yaml.py",
        "devtools/x.py",
        "examples/x.yml",
        "docs/x.md",
        ".ci/x.yml",
        ".github/x.yml",
        "nodes/__pycache__/x.pyc",
        ".mypy_cache/x",
        ".ruff_cache/x",
        ".pytest_cache/x",
        "dist/x.difypkg",
        "x.difypkg",
        "Makefile",
        ".env",
    ],
)
def test_package_leaves_out(name: str) -> None:
    assert IGNORE.match_file(name)


def test_package_may_hold_the_example_environment() -> None:
    assert not IGNORE.match_file(".env.example")


def test_shipped_files_have_no_word_that_the_marketplace_flags() -> None:
    for path in shipped_files():
        if path.suffix in FLAGGED_SUFFIXES:
            match = FLAGGED.search(path.read_text(encoding="utf-8"))
            assert match is None, (path.name, match)


def test_shipped_files_have_nothing_that_looks_like_a_key() -> None:
    for path in shipped_files():
        assert KEY_LIKE.search(path.read_text(encoding="utf-8", errors="replace")) is None, path


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
