"""The nodes as a workflow meets them: how tests call them, and what must hold for every outcome."""

from __future__ import annotations

import itertools
import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from devtools.upstream import behaviours as do

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from devtools.upstream import Upstream
    from tests.host.daemon import Invocation, PluginError, PluginProcess, Result

__all__ = [
    "BAD_REQUEST",
    "BREAKER_OPEN_S",
    "CONNECTION",
    "FAILURES",
    "FIGURES",
    "KEY_MARK",
    "NO_RETRIES",
    "NUMBER",
    "OUTPUTS",
    "PATIENCE_S",
    "RATE_LIMIT",
    "REFUSED_KEY",
    "TOOL",
    "UNAVAILABLE",
    "USAGE",
    "Kind",
    "Llm",
    "Node",
    "chat_bodies",
    "check_complete",
    "check_messages",
    "check_sentence",
    "check_value",
    "fresh_key",
    "fresh_model",
]

TOOL = "holysheep_llm"

REFUSED_KEY = "InvokeAuthorizationError"
BAD_REQUEST = "InvokeBadRequestError"
RATE_LIMIT = "InvokeRateLimitError"
CONNECTION = "InvokeConnectionError"
UNAVAILABLE = "InvokeServerUnavailableError"

FAILURES: dict[str, tuple[do.Behaviour, str]] = {
    "401": (do.status(401), REFUSED_KEY),
    "403": (do.status(403), REFUSED_KEY),
    "400": (do.status(400), BAD_REQUEST),
    "402": (do.quota_exhausted(), BAD_REQUEST),
    "404": (do.unknown_model(), BAD_REQUEST),
    "429": (do.rate_limited(retry_after_ms=1), RATE_LIMIT),
    "500": (do.server_error(), UNAVAILABLE),
    "no_json": (do.malformed("not_json"), UNAVAILABLE),
    "reset": (do.reset(), CONNECTION),
}
"""What a gateway may do with every call, and as what a node then fails."""

NO_RETRIES = {"max_retries": 0}
USAGE = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}
"""At the prices of gpt-4.1 this is 0.0036 USD."""

PATIENCE_S = 5.0
"""How long a test waits for the end of a call that should take a moment."""

BREAKER_OPEN_S = 0.3
"""For how long a breaker stays open in the process of the fixture ``quick_plugin``."""

KEY_MARK = "test-key-"
"""What every key in these tests begins with, so that a leak of any of them is found."""

Kind = type | tuple[type, ...]
"""What the value of an output may be."""
NUMBER: Kind = (int, float)

_DECLARATION = Path(__file__).resolve().parents[2] / "nodes" / f"{TOOL}.yaml"
OUTPUTS: dict[str, dict[str, Any]] = yaml.safe_load(_DECLARATION.read_text(encoding="utf-8"))[
    "output_schema"
]["properties"]
STRINGS = {name for name, output in OUTPUTS.items() if output["type"] == "string"}
FIGURES = {"cost_usd", "tokens_used", "latency_ms", "cached"}
CALL_FREE = {"hit", "stale", "coalesced"}
NULLABLE = {"cost_usd"}
_NULLABLE_PARTS = NULLABLE | {"saved_usd", "ttft_ms", "request_id", "fallback_from"}

_numbers = itertools.count(1)
_TYPES: dict[str, Kind] = {
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": NUMBER,
    "object": dict,
    "array": list,
}


def fresh_key() -> str:
    """A key that no other test has: nothing cached, counted or limited for it."""
    return f"{KEY_MARK}{next(_numbers)}-{uuid.uuid4().hex}"


def fresh_model() -> str:
    """A model that no other test asks: no breaker has counted anything for it."""
    return f"model-{next(_numbers)}"


def chat_bodies(upstream: Upstream) -> list[dict[str, Any]]:
    """The JSON bodies of the chat requests since the last reset, oldest first."""
    return [request["json"] for request in upstream.requests() if request["method"] == "POST"]


class Node:
    """A node with a credential and a model of its own, and what holds for every node.

    What `failure` and the like are given, `start` gets.
    """

    tool = ""
    patience_s = 10.0

    def __init__(self, plugin: PluginProcess, upstream: Upstream, **credentials: Any) -> None:
        self.plugin = plugin
        self.upstream = upstream
        self.key: str = credentials.get("api_key") or fresh_key()
        self.credentials: dict[str, Any] = {
            "api_key": self.key,
            "base_url": upstream.url,
            "default_model": fresh_model(),
            "requests_per_minute": "0",
            **credentials,
        }

    def like(self, **credentials: Any) -> Self:
        """The same node and credential with other settings."""
        return type(self)(self.plugin, self.upstream, **{**self.credentials, **credentials})

    @property
    def model(self) -> str:
        """The model that is asked when a call names none."""
        return str(self.credentials["default_model"])

    @property
    def calls(self) -> int:
        """Chat requests that have reached upstream."""
        return self.upstream.stats().calls

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """What the last 1,000 of these requests held."""
        return chat_bodies(self.upstream)

    def start(
        self, *, app_id: str | None = "app-1", user_id: str = "user-1", **parameters: Any
    ) -> Invocation:
        """Begin a call and return at once. ``options`` may be a mapping."""
        if isinstance(parameters.get("options"), dict):
            parameters["options"] = json.dumps(parameters["options"])
        return self.plugin.start(
            self.tool, parameters, self.credentials, app_id=app_id, user_id=user_id
        )

    def run(self, *given: Any, **parameters: Any) -> Result:
        """The outputs of a call that must not fail; all of them are checked."""
        return self.finish(self.start(*given, **parameters))

    def finish(self, invocation: Invocation) -> Result:
        """The outputs of a call under way that must not fail."""
        result = invocation.result(self.patience_s)
        self.check_ok(result)
        return result

    def failure(self, *given: Any, **parameters: Any) -> PluginError:
        """The error of a call that has to fail the node."""
        result = self.start(*given, **parameters).result(self.patience_s)
        assert result.error is not None, f"succeeded with {result.text[:200]!r}"
        self.check_error(result.error)
        self.check_secret(result)
        return result.error

    def refusal(self, *given: Any, **parameters: Any) -> str:
        """The sentence with which bad input is refused before anything is sent."""
        error = self.failure(*given, **parameters)
        assert error.type == BAD_REQUEST
        assert self.calls == 0
        return error.message

    def check(self, result: Result) -> None:
        """Fail unless the call ended without an error, and all outputs came as they should."""
        raise NotImplementedError

    def check_ok(self, result: Result) -> dict[str, Any]:
        """Fail unless this is a whole answer; returns its outputs."""
        self.check(result)
        self.check_secret(result)
        return result.variables

    def check_error(self, error: PluginError) -> None:
        """Fail unless this is an error that Dify shows as one clean sentence."""
        assert error.type in {REFUSED_KEY, BAD_REQUEST, RATE_LIMIT, CONNECTION, UNAVAILABLE}, error
        check_sentence(error.message)
        assert self.key not in repr(error) + repr(error.args)

    def check_secret(self, result: Result) -> None:
        """Fail if the key has left the plugin."""
        assert self.key not in repr([arrival.data for arrival in result.messages])
        assert not any(self.key.encode() in file.content for file in result.files)


class Llm(Node):
    """The LLM node, which is asked something where a test does not care what."""

    tool = TOOL
    patience_s = PATIENCE_S

    def start(self, query: Any = "Why is the sky blue?", **parameters: Any) -> Invocation:
        return super().start(query=query, **parameters)

    def ok(self, *given: Any, **parameters: Any) -> Result:
        """The outputs of a call that has to succeed; all of them are checked."""
        return self.run(*given, **parameters)

    def body(self, *given: Any, **parameters: Any) -> dict[str, Any]:
        """What a call that has to succeed sends upstream."""
        self.ok(*given, **parameters)
        return self.bodies[-1]

    def continued(self, *given: Any, **parameters: Any) -> Result:
        """The outputs of a call that fails while ``on_error`` is ``continue``."""
        result = self.start(*given, on_error="continue", **parameters).result(self.patience_s)
        values = check_complete(result)
        assert values["status"] == "error"
        check_sentence(values["error"])
        assert values["error_type"]
        for name in ("result", "reasoning", "model_used", "finish_reason"):
            assert values[name] == "", name
        assert values["structured"] == {}
        assert values["tool_calls"] == []
        assert values["tokens_used"] == 0
        assert values["cached"] is False
        assert not values["cost_usd"]
        self.check_secret(result)
        return result

    def many(self, calls: Sequence[dict[str, Any]]) -> list[Result]:
        """Calls that are all open at once; each of ``calls`` holds the arguments of `start`."""
        return [call.result(self.patience_s) for call in [self.start(**call) for call in calls]]

    def check(self, result: Result) -> None:
        values = check_complete(result)
        assert (values["status"], values["error"], values["error_type"]) == ("ok", "", "")
        assert values["result"] == result.text


def check_sentence(message: str) -> None:
    """Fail unless a message is one line for people."""
    assert message.strip() == message
    assert message
    assert "\n" not in message
    assert "\r" not in message
    assert "Traceback" not in message
    assert len(message) < 1000


def check_messages(
    result: Result,
    *,
    strings: set[str],
    values: Mapping[str, Kind],
    shown: set[str],
    files: bool = False,
    documents: int = 0,
) -> list[str]:
    """Fail unless every output came once, as its type, the text before all but ``progress``.

    ``strings`` are streamed, ``values`` settled; those that are ``shown`` are streamed as a text
    before, so that an Answer shows them. ``documents`` is how many JSON messages there are. Returns
    the name of each streamed message.
    """
    assert result.error is None, result.error
    assert len(result.json) == documents
    assert files or result.files == []
    settled: dict[str, Any] = {}
    streamed: list[str] = []
    for _, data in result.messages:
        message = data["message"]
        match data["type"]:
            case "text":
                assert message["text"], "an empty text message"
                assert {*streamed, *settled} <= {"progress"}, "text after variables"
            case "variable" if message["stream"]:
                assert message["variable_name"] not in settled, "streamed after its value"
                streamed.append(message["variable_name"])
            case "variable":
                assert message["variable_name"] not in settled, "two values"
                settled[message["variable_name"]] = message["variable_value"]
            case "blob_chunk" if result.files:
                pass
            case "json" if documents:
                pass
            case other:
                raise AssertionError(f"a message of the type {other}")
    assert set(settled) == set(values), "each value once, strings streamed"
    assert set(streamed) == strings | shown
    assert set(result.variables) == strings | set(values)
    for name in shown:
        assert streamed.count(name) == 1, name
        _check_shown(result.streamed[name], settled[name])
    for name, kind in values.items():
        check_value(name, result.variables[name], kind)
    assert all(isinstance(result.variables[name], str) for name in strings)
    return streamed


def _check_shown(text: str, value: Any) -> None:
    """Fail unless a person reads the figure that other nodes get."""
    assert text
    if value is None:
        assert not any(character.isdigit() for character in text)
    elif not isinstance(value, bool):
        assert "e" not in text.lower(), "no scientific notation for people"
        limit = 0 if isinstance(value, int) else max(0.51, value * 1e-6)
        assert abs(float(text) - value) <= limit


def check_value(name: str, value: Any, kind: Kind, nullable: set[str] = NULLABLE) -> None:
    """Fail unless a value is of its kind, and a figure not below 0."""
    if value is None:
        assert name in nullable, name
        return
    assert isinstance(value, kind), f"{name}: {value!r}"
    assert kind is bool or not isinstance(value, bool), name
    assert not isinstance(value, (int, float)) or value >= 0, name


def check_complete(result: Result) -> dict[str, Any]:
    """Fail unless every output of the LLM node came in its form and order; returns all of them."""
    values = result.variables
    check_messages(
        result,
        strings=STRINGS,
        values={name: _TYPES[OUTPUTS[name]["type"]] for name in set(OUTPUTS) - STRINGS},
        shown=FIGURES,
    )
    for name, output in OUTPUTS.items():
        _check_declared(name, values[name], output)
    usage, meta = values["usage"], values["meta"]
    assert usage["cost_usd"] == values["cost_usd"]
    assert usage["total_tokens"] == values["tokens_used"]
    assert meta["backend"] == "local"
    assert values["cached"] == (meta["cache"] in CALL_FREE)
    if values["cached"]:
        assert values["cost_usd"] == 0
    return values


def _check_declared(name: str, value: Any, output: dict[str, Any]) -> None:
    check_value(name, value, _TYPES[output["type"]], _NULLABLE_PARTS)
    if "properties" in output:
        missing = set(output["properties"]) - set(value)
        assert not missing, f"{name} lacks {missing}"
        for key, inner in output["properties"].items():
            _check_declared(key, value[key], inner)
    if output["type"] == "array":
        assert all(isinstance(item, dict) for item in value), name
