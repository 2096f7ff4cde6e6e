"""What the declarations say, and how the engine reads it; for the tests of the package."""

import dataclasses
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from holysheep import config
from holysheep.params import (
    BatchParams,
    BenchmarkParams,
    ChainParams,
    ChatParams,
    Conversation,
    CostParams,
    UsageParams,
)
from holysheep.reading import parsed

ROOT = Path(__file__).resolve().parents[2]

LANGUAGES = {"en_US", "zh_Hans", "pt_BR", "ja_JP"}
TEXT_KEYS = {"label", "description", "human", "human_description", "placeholder", "help"}
# Widths are columns: a character of Chinese or Japanese takes two.
WIDEST_TITLE = 22  # of a node on the canvas
WIDEST_LABEL = 30  # in a node's panel, which wraps a wider one onto the description below it
WIDEST_FIELD = 36  # of a credential or an endpoint, whose form is wider
WIDEST_SENTENCE = 120  # two lines: what the list of a plugin's tools shows of a description
WIDEST_LINES = 140  # three lines of text under a label
WIDEST_TIP = 180  # a bubble behind a question mark
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


def columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


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


def has_choices(node: dict[str, Any]) -> bool:
    return any(parameter["type"] == "select" for parameter in node["parameters"])


every_declaration = pytest.mark.parametrize("path", DECLARATIONS)
every_node = pytest.mark.parametrize("path", NODE_FILES)
every_tool = pytest.mark.parametrize("tool", TOOLS)
every_example = pytest.mark.parametrize("path", EXAMPLE_FILES)
with_choices = pytest.mark.parametrize(
    "path", [*PROVIDER_FILES, *(path for path in NODE_FILES if has_choices(NODES[path]))]
)


def parameters(node: dict[str, Any], form: str) -> dict[str, dict[str, Any]]:
    return {p["name"]: p for p in node["parameters"] if p["form"] == form}


def graph_nodes(example: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes of an app that run, by their ids; notes on the canvas do not."""
    nodes = example["workflow"]["graph"]["nodes"]
    return {node["id"]: node["data"] for node in nodes if node["type"] == "custom"}


def type_of(declared: dict[str, Any]) -> str:
    type_: str = declared["type"]
    return f"{type_}[{declared['items']['type']}]" if type_ == "array" else type_
