"""Plays an example as Dify would: its graph, its variables, its branches, with real tool nodes.

Only what the examples use is here; anything else fails. What an Answer shows of a tool node is what
was streamed: other variables show blank there, but for properties of an object.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jinja2

from tests.package.declared import TOOLS, graph_nodes, parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.host.daemon import PluginProcess

TEMPLATE = re.compile(r"\{\{#([^#]*)#\}\}")
APP_ID = "app-of-the-example"


@dataclass
class Played:
    """What a run came to: the nodes in the order of their runs, and what the app hands back."""

    ran: list[str] = field(default_factory=list)
    answer: str = ""
    outputs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Player:
    """Runs examples with one credential. ``ask`` answers the messages of an LLM node of Dify's."""

    plugin: PluginProcess
    credentials: Mapping[str, Any]
    ask: Callable[[str, list[dict[str, str]], dict[str, Any]], str] | None = None

    def play(
        self,
        example: dict[str, Any],
        inputs: Mapping[str, Any],
        *,
        user_id: str = "user-1",
    ) -> Played:
        """One run. ``inputs`` are what the user enters; in a chat ``query`` and ``files``."""
        return _Run(self, example, inputs, user_id).run()


class _Run:
    def __init__(
        self, player: Player, example: dict[str, Any], inputs: Mapping[str, Any], user_id: str
    ) -> None:
        self.player = player
        self.nodes = graph_nodes(example)
        self.edges = example["workflow"]["graph"]["edges"]
        self.inputs = inputs
        self.user_id = user_id
        self.pool: dict[str, dict[str, Any]] = {}
        if example["app"]["mode"] == "advanced-chat":
            self.pool["sys"] = {"files": [], **inputs}
        self.shown: dict[str, dict[str, str]] = {}
        self.played = Played()

    def run(self) -> Played:
        (name,) = [name for name, data in self.nodes.items() if data["type"] == "start"]
        while True:
            self.played.ran.append(name)
            data = self.nodes[name]
            handle = "source"
            match data["type"]:
                case "start":
                    self.pool[name] = self.start(data)
                case "tool":
                    self.tool(name, data)
                case "template-transform":
                    self.text(name, "output", self.transformed(data))
                case "llm":
                    self.text(name, "text", self.asked(data))
                case "if-else":
                    handle = self.branch(data)
                case "answer":
                    self.played.answer += TEMPLATE.sub(self.in_an_answer, data["answer"])
                case "end":
                    self.played.outputs = {
                        output["variable"]: self.value(output["value_selector"])
                        for output in data["outputs"]
                    }
                case other:
                    raise AssertionError(f"no node of the type {other} is played")
            following = [
                edge["target"]
                for edge in self.edges
                if (edge["source"], edge["sourceHandle"]) == (name, handle)
            ]
            if not following:
                return self.played
            (name,) = following

    def start(self, data: dict[str, Any]) -> dict[str, Any]:
        fields = {variable["variable"]: variable for variable in data["variables"]}
        if "sys" in self.pool:
            assert not fields
            return {}
        assert set(self.inputs) <= set(fields)
        assert {name for name, each in fields.items() if each["required"]} <= set(self.inputs)
        return dict(self.inputs)

    def tool(self, name: str, data: dict[str, Any]) -> None:
        declared = parameters(TOOLS[data["tool_name"]], "llm")
        arguments: dict[str, Any] = {}
        for key, argument in data["tool_parameters"].items():
            if argument["type"] == "variable":
                arguments[key] = self.value(argument["value"])
            else:
                text = self.rendered(str(argument["value"]))
                arguments[key] = json.loads(text) if declared[key]["type"] == "array" else text
        for key, argument in data["tool_configurations"].items():
            value = argument["value"]
            arguments[key] = self.rendered(value) if argument["type"] == "mixed" else value
        result = self.player.plugin.start(
            data["tool_name"],
            arguments,
            self.player.credentials,
            user_id=self.user_id,
            app_id=APP_ID,
        ).result()
        assert result.error is None, result.error
        self.pool[name] = {
            **result.variables,
            "text": result.text,
            "files": result.files,
            "json": result.json,
        }
        self.shown[name] = {**result.streamed, "text": result.text}

    def text(self, name: str, variable: str, value: str) -> None:
        self.pool[name] = self.shown[name] = {variable: value}

    def transformed(self, data: dict[str, Any]) -> str:
        values = {
            each["variable"]: self.value(each["value_selector"]) for each in data["variables"]
        }
        return jinja2.Template(data["template"], undefined=jinja2.StrictUndefined).render(values)

    def asked(self, data: dict[str, Any]) -> str:
        assert self.player.ask is not None
        messages = [
            {"role": prompt["role"], "content": self.rendered(prompt["text"])}
            for prompt in data["prompt_template"]
        ]
        model = data["model"]
        return self.player.ask(model["name"], messages, model["completion_params"])

    def branch(self, data: dict[str, Any]) -> str:
        for case in data["cases"]:
            assert case["logical_operator"] == "and"
            if all(self.holds(condition) for condition in case["conditions"]):
                return str(case["case_id"])
        return "false"

    def holds(self, condition: dict[str, Any]) -> bool:
        value = self.value(condition["variable_selector"])
        match condition["comparison_operator"]:
            case "is":
                return bool(value == condition["value"])
            case "not empty":
                return bool(value)
            case ">":
                return bool(value > float(condition["value"]))
            case other:
                raise AssertionError(f"no condition {other} is played")

    def value(self, selector: Sequence[str]) -> Any:
        owner, *path = selector
        value: Any = self.pool[owner]
        for part in path:
            value = value[part]
        return value

    def rendered(self, template: str) -> str:
        return TEMPLATE.sub(lambda match: _as_text(self.value(match[1].split("."))), template)

    def in_an_answer(self, match: re.Match[str]) -> str:
        owner, name, *rest = match[1].split(".")
        if rest:
            return _as_text(self.value([owner, name, *rest]))
        self.value([owner, name])
        return self.shown[owner].get(name, "")


def _as_text(value: Any) -> str:
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else str(value)
