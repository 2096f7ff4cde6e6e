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
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import jsonschema
import pytest
import yaml

from holysheep import config, errors
from holysheep.chain import StepResult
from holysheep.estimate import ModelEstimate
from holysheep.options import Options
from holysheep.params import (
    Step,
)
from holysheep.result import ChatResult, Meta, UsageReport, empty_result
from holysheep.results import FIELDS
from holysheep.settings import Settings, parse_settings
from holysheep.shared.address import parse_redis_url
from holysheep.stats import LatencySummary
from holysheep.types import Trace
from holysheep.usage import BudgetStatus, UsageRow
from tests.package.declared import (
    CREDENTIALS,
    ENDPOINT_FILES,
    ENDPOINTS,
    GROUP,
    GROUP_FILES,
    HAN,
    KANA,
    LANGUAGES,
    LLM,
    LONGEST_LABEL,
    LONGEST_TEXT,
    MANIFEST,
    NAME,
    NODE_FILES,
    NODES,
    PARAMETER_TYPES,
    PROVIDER,
    PROVIDER_FILES,
    READERS,
    RESERVED_OUTPUTS,
    ROOT,
    TAGS,
    TEXT_KEYS,
    TOOLS,
    every_declaration,
    every_node,
    every_tool,
    parameters,
    read_yaml,
    type_of,
    with_choices,
)

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
