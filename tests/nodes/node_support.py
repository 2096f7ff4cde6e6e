"""Any node of the plugin as a workflow meets it, with a credential and a model of its own.

What its outputs are is said by the test, apart from the node's own declaration.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.nodes.support import (
    BAD_REQUEST,
    CONNECTION,
    RATE_LIMIT,
    REFUSED_KEY,
    UNAVAILABLE,
    chat_bodies,
    check_sentence,
    fresh_key,
    fresh_model,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from devtools.upstream import Upstream
    from tests.host.daemon import Invocation, PluginError, PluginProcess, Result

__all__ = ["Kind", "Node", "check_messages"]

PATIENCE_S = 10.0

Kind = type | tuple[type, ...]
"""What the value of an output may be."""


class Node:
    """One of the nodes, and what holds for all of them."""

    tool = ""

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

    def like(self, **credentials: Any) -> Node:
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
        """What these requests held."""
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

    def run(self, **parameters: Any) -> Result:
        """The outputs of a call that must not fail; all of them are checked."""
        return self.finish(self.start(**parameters))

    def finish(self, invocation: Invocation) -> Result:
        """The outputs of a call under way that must not fail."""
        result = invocation.result(PATIENCE_S)
        assert result.error is None, result.error
        self.check(result)
        self.check_secret(result)
        return result

    def check(self, result: Result) -> None:
        """Fail unless all outputs came as they should."""
        raise NotImplementedError

    def failure(self, **parameters: Any) -> PluginError:
        """The error of a call that has to fail the node."""
        result = self.start(**parameters).result(PATIENCE_S)
        assert result.error is not None, f"succeeded with {result.text[:200]!r}"
        error = result.error
        assert error.type in {REFUSED_KEY, BAD_REQUEST, RATE_LIMIT, CONNECTION, UNAVAILABLE}, error
        check_sentence(error.message)
        assert self.key not in repr(error) + repr(error.args)
        self.check_secret(result)
        return error

    def refusal(self, **parameters: Any) -> str:
        """The sentence with which bad input is refused before anything is sent."""
        error = self.failure(**parameters)
        assert error.type == BAD_REQUEST
        assert self.calls == 0
        return error.message

    def check_secret(self, result: Result) -> None:
        """Fail if the key has left the plugin."""
        assert self.key not in repr([arrival.data for arrival in result.messages])


def check_messages(
    result: Result,
    *,
    strings: set[str],
    values: Mapping[str, Kind],
    shown: set[str],
    nullable: frozenset[str] = frozenset({"cost_usd"}),
) -> None:
    """Fail unless every output came once, as its type, the text before all variables.

    ``strings`` are streamed, ``values`` settled. ``shown`` are those of the values that have to be
    streamed as a text before, so that an Answer shows them; others may be.
    """
    assert result.json == []
    assert result.files == []
    kinds = [data["type"] for _, data in result.messages]
    texts = kinds.count("text")
    assert kinds == ["text"] * texts + ["variable"] * (len(kinds) - texts)
    assert all(data["message"]["text"] for _, data in result.messages[:texts])
    sent = [data["message"] for _, data in result.messages[texts:]]
    settled = [message["variable_name"] for message in sent if not message["stream"]]
    streamed = [message["variable_name"] for message in sent if message["stream"]]
    assert sorted(settled) == sorted(values), "each value once, strings streamed"
    assert strings | shown <= set(streamed) <= strings | set(values)
    for name in set(streamed) - strings:
        text, value = (message for message in sent if message["variable_name"] == name)
        assert (text["stream"], value["stream"]) == (True, False), name
        _check_shown(text["variable_value"], value["variable_value"])
    for name, kind in values.items():
        value = result.variables[name]
        if value is None:
            assert name in nullable, name
            continue
        assert isinstance(value, kind), f"{name}: {value!r}"
        assert not isinstance(value, bool), name
        assert isinstance(value, dict) or value >= 0, name
    assert all(isinstance(result.variables[name], str) for name in strings)


def _check_shown(text: str, value: Any) -> None:
    """Fail unless a person reads the figure that other nodes get."""
    assert text
    if value is None:
        assert not any(character.isdigit() for character in text)
        return
    assert "e" not in text.lower(), "no scientific notation for people"
    assert abs(float(text) - value) <= (0 if isinstance(value, int) else max(0.51, value * 1e-6))
