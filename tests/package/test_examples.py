"""The examples are apps that Dify imports, and fit the declarations of the nodes they use."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import jinja2
import jsonschema
import pytest

from holysheep import config, errors
from holysheep.chain import Chain
from holysheep.estimate import estimate
from holysheep.params import (
    ChainParams,
    CostParams,
)
from holysheep.pricing import PriceBook, parse_overrides
from holysheep.reading import chosen, parsed
from holysheep.template import Template
from holysheep.types import Usage
from tests.fakes import FakeClock
from tests.package.declared import (
    EXAMPLE_FILES,
    MANIFEST,
    PROVIDER,
    READERS,
    RESERVED_OUTPUTS,
    ROOT,
    TOOLS,
    WIDEST_TITLE,
    every_example,
    graph_nodes,
    parameters,
    read_yaml,
)
from tests.package.play import TEMPLATE

# --- Examples -----------------------------------------------------------------------------------
# What the editor stores for an input of each type.
INPUT_KINDS = {
    "string": {"mixed"},
    "array": {"constant", "variable"},
    "file": {"variable"},
    "files": {"variable"},
}
# What the oldest supported Dify writes itself; it asks back before it imports a newer one.
DSL_VERSION = "0.5.0"
# What Dify's own nodes have as outputs, as far as the examples use them.
OUTPUTS = {"template-transform": {"output"}, "llm": {"text", "usage", "reasoning_content"}}
GATEWAY_EXAMPLE = "examples/gateway_llm.yml"
SYSTEM_VARIABLES = {"query", "files", "conversation_id", "user_id", "app_id"}
END_TYPES = {"advanced-chat": "answer", "workflow": "end"}


def tool_nodes(example: dict[str, Any]) -> list[dict[str, Any]]:
    return [data for data in graph_nodes(example).values() if data["type"] == "tool"]


def notes(example: dict[str, Any]) -> list[str]:
    """The text of each note on the canvas, which the editor keeps as a tree in JSON."""
    nodes = example["workflow"]["graph"]["nodes"]
    trees = [
        json.loads(node["data"]["text"])["root"] for node in nodes if node["type"] == "custom-note"
    ]
    return [
        "\n".join("".join(part["text"] for part in line["children"]) for line in tree["children"])
        for tree in trees
    ]


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
                if value:  # it is empty where what it belongs to is switched off
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
    if data["type"] in OUTPUTS:
        return name in OUTPUTS[data["type"]] and not rest
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
    assert example["version"] == DSL_VERSION
    # A dependency names one version of a plugin and the hash of its package.
    assert example["dependencies"] == []
    assert {"conversation_variables", "environment_variables", "features", "graph"} <= set(
        example["workflow"]
    )
    types = [data["type"] for data in graph_nodes(example).values()]
    assert types.count("start") == 1
    assert END_TYPES[example["app"]["mode"]] in types
    ids = [node["id"] for node in example["workflow"]["graph"]["nodes"]]
    assert len(ids) == len(set(ids))


def test_examples_are_told_apart_in_a_list_of_apps() -> None:
    apps = [read_yaml(path)["app"] for path in EXAMPLE_FILES]
    for key in ("name", "description"):
        assert len({app[key] for app in apps}) == len(EXAMPLE_FILES)
    for app in apps:
        assert app["name"].startswith("HolySheep ")
        assert len(app["name"]) <= 40
        assert len(app["description"]) <= 120
        assert app["description"].endswith(".")


@every_example
def test_example_says_on_its_canvas_what_to_do_first(path: str) -> None:
    """Comments of the file are gone once it is imported."""
    (note,) = notes(read_yaml(path))
    first, *others = note.splitlines()
    assert first.endswith(".")
    setting_up = [line for line in others if line.startswith("Before the first run:")]
    assert setting_up
    place = "Endpoints" if path == GATEWAY_EXAMPLE else "credential"
    assert place in note
    assert f"Plugins, {PROVIDER['identity']['label']['en_US']}" in note


@every_example
def test_example_has_its_nodes_apart_on_the_canvas(path: str) -> None:
    boxes = [
        (node["position"]["x"], node["position"]["y"], node["width"], node["height"])
        for node in read_yaml(path)["workflow"]["graph"]["nodes"]
    ]
    for index, (x, y, width, height) in enumerate(boxes):
        for other_x, other_y, other_width, other_height in boxes[index + 1 :]:
            beside = x + width <= other_x or other_x + other_width <= x
            above = y + height <= other_y or other_y + other_height <= y
            assert beside or above, (x, y, other_x, other_y)


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
        assert data["tool_label"] == TOOLS[data["tool_name"]]["identity"]["label"]["en_US"]
        assert len(data["title"]) <= WIDEST_TITLE


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


def test_gateway_example_asks_by_a_model_of_the_provider_in_its_note() -> None:
    example = read_yaml(GATEWAY_EXAMPLE)
    (llm,) = [data for data in graph_nodes(example).values() if data["type"] == "llm"]
    provider = "langgenius/openai_api_compatible/openai_api_compatible"
    assert (llm["model"]["provider"], llm["model"]["mode"]) == (provider, "chat")
    (note,) = notes(example)
    for words in (llm["model"]["name"], "OpenAI-API-compatible", "/v1", "access token", "API key"):
        assert words in note
    assert {"context", "prompt_template", "vision"} <= set(llm)
    assert len({prompt["id"] for prompt in llm["prompt_template"]}) == 2


def test_vision_asks_a_model_that_sees_and_lets_people_upload_pictures() -> None:
    example = read_yaml("examples/vision.yml")
    (llm,) = tool_nodes(example)
    assert "deepseek" not in llm["tool_configurations"]["model"]["value"]
    upload = example["workflow"]["features"]["file_upload"]
    assert upload["enabled"] is True
    assert upload["allowed_file_types"] == ["image"]
    assert upload["number_limits"] <= config.MAX_IMAGES


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
