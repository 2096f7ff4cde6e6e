"""The declarations fit the engine, the host and the editor, in four languages.

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
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args, get_type_hints
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
    DECLARATIONS,
    ENDPOINT_FILES,
    ENDPOINTS,
    GROUP,
    GROUP_FILES,
    HAN,
    KANA,
    LANGUAGES,
    LLM,
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
    WIDEST_FIELD,
    WIDEST_LABEL,
    WIDEST_LINES,
    WIDEST_SENTENCE,
    WIDEST_TIP,
    WIDEST_TITLE,
    columns,
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


# What Dify draws icons on: its panels and cards, light and dark.
SURFACES = {"icon": ("#ffffff", "#f2f4f7"), "icon_dark": ("#1d1d20", "#222225")}
SHAPES = {"svg", "g", "rect", "circle", "ellipse", "path"}


def luminance(colour: str) -> float:
    """The relative luminance of ``#rrggbb``, as WCAG 2 has it."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """From 1 to 21; 3 is the least for what one has to make out."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_manifest_and_provider_show_the_same_icons() -> None:
    for key in SURFACES:
        assert MANIFEST[key] == PROVIDER["identity"][key]
    assert MANIFEST["icon"] != MANIFEST["icon_dark"]


@pytest.mark.parametrize("key", SURFACES)
def test_icons_are_drawings_that_load_nothing(key: str) -> None:
    file = ROOT / "_assets" / MANIFEST[key]
    assert file.stat().st_size < 2048
    root = ET.parse(file).getroot()  # noqa: S314 - our own file
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert {element.tag.rpartition("}")[2] for element in root.iter()} <= SHAPES
    for element in root.iter():
        for name, value in element.attrib.items():
            assert "}" not in name, name  # no xlink:href
            assert name not in ("href", "style", "class", "filter"), name
            assert "url(" not in value, name


@pytest.mark.parametrize("key", SURFACES)
def test_icons_are_drawn_for_16_pixels_and_stand_out_on_every_surface(key: str) -> None:
    root = ET.parse(ROOT / "_assets" / MANIFEST[key]).getroot()  # noqa: S314 - our own file
    assert root.attrib["viewBox"] == "0 0 16 16"
    plate, *drawn = [element.attrib["fill"] for element in root.iter() if "fill" in element.attrib]
    assert len(set(drawn)) > 1
    for surface in SURFACES[key]:
        assert contrast(plate, surface) >= 3, surface
    for colour in drawn:
        assert contrast(plate, colour) >= 3, colour
    # Edges of what is straight lie on whole pixels.
    for rect in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert all(rect.attrib.get(name, "0").isdigit() for name in ("x", "y", "width", "height"))


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


# What a language has no use for, where a slip of the input method or a wrong copy would show.
TRADITIONAL = re.compile(
    "[請輸應錯誤總額類變說時間問題網絡費鍵從開關處錄設創調測試壓縮這們個過對還樣憑據認證選擇項顯運執務標識節"
    "鏈儲長預價檢値図気応発対処検実験択価画稼働込]"
)
SIMPLIFIED = re.compile(
    "[请输应错误总额类变说时间问题网络费键从开关处录设创调测试压缩这们个过对还样凭据认证选择项显运执务标识节"
    "链储长预价检图气发实验]"
)
CJK = f"(?:{HAN.pattern}|{KANA.pattern})"
WIDE_PUNCTUATION = re.compile("[\u3000-\u303f\uff01-\uff5e]")
NARROW_PUNCTUATION = re.compile(f"{CJK}[,;:!?.]|{CJK} ?[()]|[()] ?{CJK}")
RUN_TOGETHER = re.compile(f"{CJK}[A-Za-z0-9]|[A-Za-z0-9]{CJK}")
SENTENCES = {"description", "human", "human_description"}
ENDS = {"en_US": ".", "zh_Hans": "。", "pt_BR": ".", "ja_JP": "。"}


@every_declaration
def test_texts_have_no_slips_of_spelling(path: str) -> None:
    for place, _, text in words(read_yaml(path)):
        for language, value in text.items():
            assert value == " ".join(value.split()), (place, language)
            assert "..." not in value, (place, language)
        for language in ("en_US", "pt_BR"):
            assert not WIDE_PUNCTUATION.search(text[language]), (place, language)
        for language in ("zh_Hans", "ja_JP"):
            assert not NARROW_PUNCTUATION.search(text[language]), (place, language)
            assert not RUN_TOGETHER.search(text[language]), (place, language)
        assert not TRADITIONAL.search(text["zh_Hans"]), place
        assert not SIMPLIFIED.search(text["ja_JP"]), place
        assert "～" not in text["ja_JP"], place  # one of the two wave dashes, the other one


@every_declaration
def test_descriptions_are_sentences_and_labels_are_not(path: str) -> None:
    for place, key, text in words(read_yaml(path)):
        for language, value in text.items():
            assert value.endswith(ENDS[language]) is (key in SENTENCES), (place, language)


# What has to have one name everywhere, since a reader looks for it under that name in Dify.
TERMS = {
    "en_US": {"key": ("API key", ["api key", "API-key", "apikey"])},
    "zh_Hans": {
        "credential": ("凭据", ["凭证"]),
        "key": ("API Key", ["密钥", "API key"]),
        "token": ("Token", ["令牌数", "标记", " token"]),
        "answer": ("回答", ["答复", "回复"]),
    },
    "pt_BR": {
        "node": ("nó", ["nodo"]),
        "request": ("requisição", ["solicitaç"]),
        "file": ("arquivo", ["ficheiro"]),
        "user": ("usuário", ["utilizador"]),
    },
    "ja_JP": {
        "credential": ("認証情報", ["資格情報", "クレデンシャル"]),
        "key": ("API キー", ["APIキー", "鍵"]),
        "default": ("デフォルト", ["既定", "規定値"]),
        "retry": ("再試行", ["リトライ"]),
    },
}


@pytest.mark.parametrize("language", TERMS)
def test_a_thing_has_one_name(language: str) -> None:
    for path in DECLARATIONS:
        for place, _, text in words(read_yaml(path)):
            for term, others in TERMS[language].values():
                for other in others:
                    assert other not in text[language], (path, place, f"say {term}")


@every_declaration
def test_labels_fit_on_one_line(path: str) -> None:
    widest = WIDEST_LABEL if path in NODE_FILES else WIDEST_FIELD
    for place, key, text in words(read_yaml(path)):
        if key == "label":
            for language, value in text.items():
                assert columns(value) <= widest, (place, language)


@every_node
def test_titles_fit_on_the_card_of_a_node(path: str) -> None:
    for language, title in NODES[path]["identity"]["label"].items():
        assert title.startswith("HolySheep "), language
        assert columns(title) <= WIDEST_TITLE, language


@every_node
def test_lists_of_tools_show_what_a_node_does(path: str) -> None:
    for language, text in NODES[path]["description"]["human"].items():
        first = re.split(r"(?<=[.。])", text)[0]
        assert columns(first) <= WIDEST_SENTENCE, language
        assert columns(text) <= WIDEST_TIP, language


# What is longer than others because it stands in for a page of the manual: keys and an example.
MANUALS = {"options", "steps"}


@every_node
def test_descriptions_fit_below_their_labels(path: str) -> None:
    for parameter in NODES[path]["parameters"]:
        # Those of texts stand below the label, all others behind a question mark.
        widest = WIDEST_LINES if parameter["type"] == "string" else WIDEST_TIP
        for language, text in parameter["human_description"].items():
            if parameter["name"] not in MANUALS:
                assert columns(text) <= widest, (parameter["name"], language)
            assert columns(text) <= 2 * WIDEST_TIP, (parameter["name"], language)


def test_descriptions_of_the_plugin_fit_on_its_card() -> None:
    for language in LANGUAGES:
        assert columns(PROVIDER["identity"]["description"][language]) <= WIDEST_SENTENCE
        assert columns(MANIFEST["description"][language]) <= WIDEST_TIP


@every_node
def test_what_a_text_calls_by_its_label_has_this_label(path: str) -> None:
    """In Chinese and Japanese such a name stands in quotation marks, so that it can be found."""
    for language, quoted in (("zh_Hans", "“([^”]+)”"), ("ja_JP", "「([^」]+)」")):
        labels = {
            text[language] for _, key, text in words(NODES[path]["parameters"]) if key == "label"
        }
        for place, key, text in words(NODES[path]["parameters"]):
            if key != "label":
                assert set(re.findall(quoted, text[language])) <= labels, (place, language)


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


# What people change most comes first: who answers, how much of it, in which form, what the cache
# may do, who answers instead, how long it may take, what happens when it fails; the rare last.
# How many at once goes with what it is most about: the iterations, or the length of the answers.
SETTING_ORDER = [
    *("period", "group_by", "model", "models", "custom_model"),
    *("iterations", "concurrency", "temperature", "max_tokens", "concurrency"),
    *("prompt_tokens", "completion_tokens", "cached_tokens", "requests", "cache_hit_rate"),
    *("response_format", "cache", "fallback_models"),
    *("timeout_s", "row_timeout_s", "deadline_s", "max_retries"),
    *("on_error", "on_row_error", "on_step_error", "output_format", "options"),
]
# What is asked, then what it is asked about or with; what only some know how to write last.
INPUT_ORDER = [
    *("query", "prompt", "input_text", "queries", "file", "steps", "system_prompt"),
    *("prompt_template", "history", "files", "json_schema", "tools"),
]


def is_in_order(names: Iterable[str], order: Iterable[str]) -> bool:
    rest = iter(order)
    return all(name in rest for name in names)


@every_node
def test_common_fields_come_first(path: str) -> None:
    inputs = parameters(NODES[path], "llm")
    assert is_in_order(parameters(NODES[path], "form"), SETTING_ORDER)
    assert is_in_order(inputs, INPUT_ORDER)
    required = [parameter["required"] for parameter in inputs.values()]
    assert required == sorted(required, reverse=True)


PARAMETER_KEYS = {"name", "type", "required", "form", "label", "human_description"}
MORE_KEYS = {
    "llm": {"llm_description", "default"},
    "number": {"default", "min", "max"},
    "select": {"default", "options"},
    "string": set(),
}


@every_node
def test_parameters_have_the_keys_that_every_supported_host_knows(path: str) -> None:
    for parameter in NODES[path]["parameters"]:
        llm = parameter["form"] == "llm"
        more = set(parameter) - PARAMETER_KEYS
        assert set(parameter) >= PARAMETER_KEYS, parameter["name"]
        assert more <= MORE_KEYS["llm" if llm else parameter["type"]], parameter["name"]
        for option in parameter.get("options", []):
            assert set(option) == {"value", "label"}, parameter["name"]


@pytest.mark.parametrize("path", [*PROVIDER_FILES, *GROUP_FILES])
def test_options_of_credentials_are_named(path: str) -> None:
    data = read_yaml(path)
    fields = data["settings"] if path in GROUP_FILES else CREDENTIALS.values()
    for field in fields:
        values = [option["value"] for option in field.get("options", [])]
        assert (field["type"] == "select") is bool(values)
        assert not values or field["default"] in values
        assert len(values) == len(set(values))
        assert all(set(option) == {"value", "label"} for option in field.get("options", []))


@pytest.mark.parametrize("path", ENDPOINT_FILES)
def test_endpoints_have_no_texts_to_translate(path: str) -> None:
    assert set(ENDPOINTS[path]) <= {"path", "method", "hidden", "extra"}


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
def test_every_option_is_named_in_the_editor(tool: str) -> None:
    model = READERS[tool].fields["options"].annotation
    assert model is not None
    assert issubclass(model, Options)
    own = [name for name in model.model_fields if name not in Options.model_fields]
    described = parameters(TOOLS[tool], "form")["options"]["human_description"]
    for language, text in described.items():
        example, _, keys = text.partition("3600")
        assert "cache_ttl_s: " in example, language
        # A node's own stand first; those that every node has follow in the same order everywhere.
        found = re.findall(r"[a-z]+(?:_[a-z]+)*", keys.rpartition(":")[2].rpartition("：")[2])
        assert sorted(found[: len(own)]) == sorted(own), language
        assert found[len(own) :] == list(Options.model_fields), language


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
        assert declared["type"] in ("string", "number", "integer", "boolean", "object", "array")
        if declared["type"] == "array":
            assert declared["items"]["type"] in ("string", "number", "object"), place


# What a name ends with says the unit, which the description has to say in words.
UNITS = {"_ms": "millisecond", "_usd": "USD", "_rpm": "per minute"}
LONGEST_OUTPUT_TEXT = 180  # three lines in the list of output variables


@every_node
def test_outputs_are_described(path: str) -> None:
    """Dify knows one language here, so it is English."""
    for place, name, declared in properties(NODES[path]["output_schema"]):
        text = declared["description"]
        assert isinstance(text, str), place
        assert 0 < len(text) <= LONGEST_OUTPUT_TEXT, place
        assert text == " ".join(text.split()), place
        assert text.endswith("."), place
        assert not HAN.search(text), place
        assert set(declared) <= {"type", "description", "properties", "items"}, place
        for suffix, unit in UNITS.items():
            if name.endswith(suffix):
                told = unit in text or unit.capitalize() in text
                assert told or name == "compare_usd", place


@pytest.mark.parametrize(
    ("tool", "output", "kind"),
    [
        ("holysheep_llm", "usage", UsageReport),
        ("holysheep_llm", "meta", Meta),
        ("holysheep_cost", "rows", ModelEstimate),
        ("holysheep_usage", "budget", BudgetStatus),
    ],
)
def test_outputs_say_when_they_are_null(tool: str, output: str, kind: type) -> None:
    schema = TOOLS[tool]["output_schema"]["properties"][output]
    hints = get_type_hints(kind)
    for name, declared in schema.get("items", schema)["properties"].items():
        nullable = type(None) in get_args(hints.get(name, str))
        said = "null" in (schema["description"] + declared["description"]).lower()
        assert said or not nullable, name


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
