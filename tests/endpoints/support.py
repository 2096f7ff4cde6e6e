"""An endpoint as a client meets it: how tests ask it, and what must hold for every answer."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any, Self

from tests.nodes.support import KEY_MARK, chat_bodies, fresh_key, fresh_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from devtools.upstream import Upstream
    from tests.host.daemon import HttpCall, HttpResult, PluginProcess
    from tests.host.endpoints import EndpointServer, Hook

__all__ = [
    "CHAT",
    "COST_USD",
    "HEALTH",
    "METRICS",
    "MODELS",
    "PRICED",
    "TOKEN_MARK",
    "USAGE",
    "USAGE_JSON",
    "Endpoint",
    "check_answer",
    "check_error",
    "events",
    "fresh_token",
    "message",
    "text_of",
]

CHAT = "/v1/chat/completions"
MODELS = "/v1/models"
USAGE_JSON = "/usage.json"
METRICS = "/metrics"
HEALTH = "/health"

PRICED = "gpt-4.1"
USAGE = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}
COST_USD = 0.0036
"""Of a call of ``PRICED`` with this usage."""

TOKEN_MARK = "test-token-"
"""What every token in these tests begins with, so that a leak of any of them is found."""

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
INSIDE = ("Traceback", 'File "', ".py", "holysheep/", "endpoints/", "werkzeug", "pydantic")
"""What an answer shows if it lets something of the inside out."""


def fresh_token() -> str:
    """A token that no other test has."""
    return f"{TOKEN_MARK}{uuid.uuid4().hex}"


def message(text: str = "Why is the sky blue?", **more: Any) -> dict[str, Any]:
    """The body of a chat request with one message."""
    return {"messages": [{"role": "user", "content": text}], **more}


def events(body: bytes) -> list[Any]:
    """The data of each event of a stream, parsed but for ``[DONE]``, which has to be the last."""
    text = body.decode()
    assert text.endswith("\n\n"), "the last event is not complete"
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        if not lines:
            continue
        (line,) = lines
        assert line.startswith("data: ")
        found.append(line.removeprefix("data: "))
    assert found.count("[DONE]") <= 1
    assert "[DONE]" not in found[:-1]
    return [data if data == "[DONE]" else json.loads(data) for data in found]


def text_of(answer: HttpResult) -> str:
    """The text of an answer's first choice, whole or streamed."""
    if answer.headers["Content-Type"].startswith("application/json"):
        text: str = answer.json()["choices"][0]["message"]["content"]
        return text
    *chunks, done = events(answer.body)
    assert done == "[DONE]"
    return "".join(
        choice["delta"].get("content") or ""
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == 0
    )


def check_answer(answer: HttpResult, *secrets: str) -> HttpResult:
    """Fail unless this is an answer that may be shown to anybody who asks."""
    assert answer.error is None
    assert not answer.hasty, "the host may cut it short"
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers.get(name) == value, name
    policy = answer.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    for name in ("Server", "X-Powered-By", "Set-Cookie", "Access-Control-Allow-Origin"):
        assert name not in answer.headers
    seen = answer.body.decode("utf-8", "replace") + repr(answer.headers)
    for part in secrets:
        assert part not in seen, "a secret in an answer"
    if answer.status >= 400:
        assert not any(part in seen for part in INSIDE), seen[:500]
    return answer


def check_error(answer: HttpResult, status: int, **fields: Any) -> dict[str, Any]:
    """Fail unless this is an error as the OpenAI API words it; returns what is in it."""
    assert answer.status == status, answer.body[:500]
    assert answer.headers["Content-Type"].startswith("application/json")
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["type"], str)
    assert error["type"]
    for name in ("param", "code"):
        assert error[name] is None or isinstance(error[name], str), name
    said = error["message"]
    assert said.strip() == said
    assert 0 < len(said) < 1000
    assert "\n" not in said
    for name, value in fields.items():
        assert error[name] == value, (name, error)
    return error


class Endpoint:
    """One endpoint with a token, a credential and a model of its own; all its answers are checked.

    ``settings`` are given over the usual ones; None takes a setting away. Requests go straight to
    the plugin; `url` is where the HTTP server in front of it serves the same endpoint.
    """

    def __init__(
        self,
        plugin: PluginProcess,
        upstream: Upstream,
        server: EndpointServer,
        *,
        tenant_id: str = "tenant-1",
        **settings: Any,
    ) -> None:
        self.plugin = plugin
        self.upstream = upstream
        self.server = server
        self.tenant_id = tenant_id
        given: dict[str, Any] = {
            "access_token": fresh_token(),
            "api_key": fresh_key(),
            "base_url": upstream.url,
            "default_model": fresh_model(),
            "requests_per_minute": "0",
            **settings,
        }
        self.settings = {name: value for name, value in given.items() if value is not None}
        # What the plugin knows a workspace by, until its storage has told its name.
        self.endpoint_id = f"endpoint-{uuid.uuid4().hex}"
        self._hook: Hook | None = None

    def like(self, *, tenant_id: str | None = None, **settings: Any) -> Self:
        """An endpoint with the same settings but for these."""
        return type(self)(
            self.plugin,
            self.upstream,
            self.server,
            tenant_id=tenant_id or self.tenant_id,
            **{**self.settings, **settings},
        )

    @property
    def hook(self) -> Hook:
        """This endpoint behind the HTTP server."""
        if self._hook is None:
            self._hook = self.server.add(
                self.settings, tenant_id=self.tenant_id, endpoint_id=self.endpoint_id
            )
        return self._hook

    @property
    def url(self) -> str:
        """Its base URL, without a slash at the end."""
        return self.hook.url

    @property
    def token(self) -> str:
        return str(self.settings["access_token"])

    @property
    def key(self) -> str:
        return str(self.settings["api_key"])

    @property
    def model(self) -> str:
        return str(self.settings["default_model"])

    @property
    def bearer(self) -> dict[str, str]:
        """The header that opens it."""
        return {"Authorization": f"Bearer {self.token}"}

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
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> HttpCall:
        """Begin any request; its answer is not checked."""
        return self.plugin.start_request(
            method,
            path,
            headers=headers,
            body=body,
            settings=self.settings,
            tenant_id=self.tenant_id,
            endpoint_id=self.endpoint_id,
        )

    def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> HttpResult:
        """Any request, without a token unless ``headers`` hold it."""
        return self.checked(self.start(method, path, headers=headers, body=body).result())

    def get(self, path: str, **headers: str) -> HttpResult:
        """A GET with the token. Underscores in the names of headers become dashes."""
        return self.ask("GET", path, headers={**self.bearer, **_dashed(headers)})

    def start_chat(self, body: Any = None, **headers: str) -> HttpCall:
        """Begin a chat request with the token; ``body`` is JSON, or bytes as they are."""
        sent = body if isinstance(body, bytes) else json.dumps(body or message()).encode()
        head = {**self.bearer, "Content-Type": "application/json"}
        head |= {name.title(): value for name, value in _dashed(headers).items()}
        return self.start("POST", CHAT, headers=head, body=sent)

    def chat(self, body: Any = None, **headers: str) -> HttpResult:
        """A chat request and its whole answer."""
        return self.checked(self.start_chat(body, **headers).result())

    def ok(self, body: Any = None, **headers: str) -> HttpResult:
        """A chat request that must succeed."""
        answer = self.chat(body, **headers)
        assert answer.status == 200, answer.body[:500]
        assert answer.headers["X-Request-Id"]
        assert answer.headers["X-Holysheep-Cache"]
        return answer

    def refusal(self, body: Any, status: int = 400, **headers: str) -> dict[str, Any]:
        """The error of a request that is refused before anything is sent."""
        before = self.calls
        error = check_error(self.chat(body, **headers), status)
        assert self.calls == before
        return error

    def checked(self, answer: HttpResult) -> HttpResult:
        """Fail unless the answer may be shown to anybody who asks."""
        return check_answer(answer, KEY_MARK, TOKEN_MARK)


def _dashed(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
