"""The LLM node as a workflow meets it: how tests call it, and what every outcome must look like."""

from __future__ import annotations

import itertools
import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devtools.upstream import Upstream
    from tests.host.daemon import Invocation, PluginError, PluginProcess, Result

__all__ = [
    "BAD_REQUEST",
    "BREAKER_OPEN_S",
    "CONNECTION",
    "KEY_MARK",
    "OUTPUTS",
    "PATIENCE_S",
    "RATE_LIMIT",
    "REFUSED_KEY",
    "STRINGS",
    "TOOL",
    "UNAVAILABLE",
    "Llm",
    "chat_bodies",
    "check_complete",
    "check_sentence",
    "fresh_key",
    "fresh_model",
]

TOOL = "holysheep_llm"

REFUSED_KEY = "InvokeAuthorizationError"
BAD_REQUEST = "InvokeBadRequestError"
RATE_LIMIT = "InvokeRateLimitError"
CONNECTION = "InvokeConnectionError"
UNAVAILABLE = "InvokeServerUnavailableError"

PATIENCE_S = 5.0
"""How long a test waits for the end of a call that should take a moment."""

BREAKER_OPEN_S = 0.3
"""For how long a breaker stays open in the process of the fixture ``quick_plugin``."""

KEY_MARK = "test-key-"
"""What every key in these tests begins with, so that a leak of any of them is found."""

_DECLARATION = Path(__file__).resolve().parents[2] / "nodes" / f"{TOOL}.yaml"
OUTPUTS: dict[str, dict[str, Any]] = yaml.safe_load(_DECLARATION.read_text(encoding="utf-8"))[
    "output_schema"
]["properties"]
STRINGS = {name for name, output in OUTPUTS.items() if output["type"] == "string"}
FIGURES = {"cost_usd", "tokens_used", "latency_ms", "cached"}
CALL_FREE = {"hit", "stale", "coalesced"}
NULLABLE = {"cost_usd", "saved_usd", "ttft_ms", "request_id", "fallback_from"}

_numbers = itertools.count(1)
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "object": (dict,),
    "array": (list,),
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


class Llm:
    """The node with a credential of its own, whose default model is one of its own as well."""

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

    def like(self, **credentials: Any) -> Llm:
        """The same credential with other settings."""
        return Llm(self.plugin, self.upstream, **{**self.credentials, **credentials})

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
        """What these requests held."""
        return chat_bodies(self.upstream)

    def start(
        self,
        query: Any = "Why is the sky blue?",
        *,
        app_id: str | None = "app-1",
        user_id: str = "user-1",
        **parameters: Any,
    ) -> Invocation:
        """Begin a call and return at once. ``options`` may be a mapping."""
        if isinstance(parameters.get("options"), dict):
            parameters["options"] = json.dumps(parameters["options"])
        return self.plugin.start(
            TOOL, {"query": query, **parameters}, self.credentials, app_id=app_id, user_id=user_id
        )

    def ok(self, query: Any = "Why is the sky blue?", **parameters: Any) -> Result:
        """The outputs of a call that has to succeed; all of them are checked."""
        result = self.start(query, **parameters).result(PATIENCE_S)
        self.check_ok(result)
        return result

    def body(self, query: Any = "Why is the sky blue?", **parameters: Any) -> dict[str, Any]:
        """What a call that has to succeed sends upstream."""
        self.ok(query, **parameters)
        return self.bodies[-1]

    def failure(self, query: Any = "Why is the sky blue?", **parameters: Any) -> PluginError:
        """The error of a call that has to fail the node."""
        result = self.start(query, **parameters).result(PATIENCE_S)
        assert result.error is not None, f"succeeded with {result.text[:200]!r}"
        self.check_error(result.error)
        return result.error

    def refusal(self, query: Any = "Why is the sky blue?", **parameters: Any) -> str:
        """The sentence with which bad input is refused before anything is sent."""
        error = self.failure(query, **parameters)
        assert error.type == BAD_REQUEST
        assert self.calls == 0
        return error.message

    def continued(self, query: Any = "Why is the sky blue?", **parameters: Any) -> Result:
        """The outputs of a call that fails while ``on_error`` is ``continue``."""
        result = self.start(query, on_error="continue", **parameters).result(PATIENCE_S)
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
        return [call.result(PATIENCE_S) for call in [self.start(**call) for call in calls]]

    def check_ok(self, result: Result) -> dict[str, Any]:
        """Fail unless this is a whole, successful answer; returns its outputs."""
        values = check_complete(result)
        assert (values["status"], values["error"], values["error_type"]) == ("ok", "", "")
        assert values["result"] == result.text
        self.check_secret(result)
        return values

    def check_error(self, error: PluginError) -> None:
        """Fail unless this is an error that Dify shows as one clean sentence."""
        assert error.type in {REFUSED_KEY, BAD_REQUEST, RATE_LIMIT, CONNECTION, UNAVAILABLE}
        check_sentence(error.message)
        assert self.key not in repr(error) + repr(error.args)

    def check_secret(self, result: Result) -> None:
        assert self.key not in repr([arrival.data for arrival in result.messages])


def check_sentence(message: str) -> None:
    """Fail unless a message is one line for people."""
    assert message.strip() == message
    assert message
    assert "\n" not in message
    assert "\r" not in message
    assert "Traceback" not in message
    assert len(message) < 1000


def check_complete(result: Result) -> dict[str, Any]:
    """Fail unless every declared output came, once, in its form and order; returns all of them."""
    assert result.error is None, result.error
    assert result.json == []
    assert result.files == []
    settled: list[str] = []
    streamed: list[str] = []
    for _, data in result.messages:
        message = data["message"]
        match data["type"]:
            case "text":
                assert message["text"], "an empty text message"
            case "variable":
                (streamed if message["stream"] else settled).append(message["variable_name"])
            case other:
                raise AssertionError(f"a message of the type {other}")
    assert set(settled) | set(streamed) == set(OUTPUTS)
    assert sorted(settled) == sorted(set(OUTPUTS) - STRINGS), "each value once, strings streamed"
    assert set(streamed) == STRINGS | FIGURES
    for name in FIGURES:
        assert streamed.count(name) == 1, name

    values = result.variables
    for name, output in OUTPUTS.items():
        _check_type(name, values[name], output)
    usage, meta = values["usage"], values["meta"]
    assert usage["cost_usd"] == values["cost_usd"]
    assert usage["total_tokens"] == values["tokens_used"]
    assert meta["backend"] == "local"
    assert values["cached"] == (meta["cache"] in CALL_FREE)
    if values["cached"]:
        assert values["cost_usd"] == 0
    return values


def _check_type(name: str, value: Any, output: dict[str, Any]) -> None:
    if value is None:
        assert name in NULLABLE, name
        return
    assert isinstance(value, _TYPES[output["type"]]), f"{name}: {value!r}"
    if output["type"] in ("integer", "number"):
        assert not isinstance(value, bool), name
        assert value >= 0, name
    if "properties" in output:
        missing = set(output["properties"]) - set(value)
        assert not missing, f"{name} lacks {missing}"
        for key, inner in output["properties"].items():
            _check_type(key, value[key], inner)
    if output["type"] == "array":
        assert all(isinstance(item, dict) for item in value), name
