"""Checks a credential for real: whether the key is right and an API is behind the base URL.

``GET {base_url}/models`` costs nothing and needs a valid key. Gateways without that route are
asked for the shortest possible chat completion instead; any answer in JSON but a refused key shows
that the chat route is there. A web page is no answer of an API, whatever its status: where the
gateway is down, what stands before it answers so, and who saves a credential had better know.

Where there is a ``redis_url``, that Redis is checked first: it answers sooner, and costs nothing.
"""

import httpx

from holysheep.engine import Engine
from holysheep.errors import (
    AuthError,
    ConnectFailed,
    HolySheepError,
    RateLimited,
    ServerError,
    SettingsError,
    UnknownModel,
)
from holysheep.faults import error_for, error_in_body, looks_like_page
from holysheep.jsontext import parse_json
from holysheep.ports import Clock
from holysheep.types import JsonObject
from holysheep.wording import shortened

CHECK_TIMEOUT_S = 20.0


def list_models(engine: Engine, *, clock: Clock, timeout_s: float = CHECK_TIMEOUT_S) -> list[str]:
    """The ids of the models that the gateway offers to this key, sorted.

    Raises ``AuthError``, ``SettingsError`` (no such API there), ``ConnectFailed``, ``TimedOut``,
    ``ServerError``, ``RateLimited``.
    """
    deadline_s = clock.monotonic() + timeout_s
    status, headers, body = engine.transport.get("/models", deadline_s)
    _raise_for(engine, "/models", status, headers, body, clock)
    data = parse_json(body)["data"]
    ids = (model.get("id") for model in data if isinstance(model, dict))
    # An id is one line, whatever a gateway calls its models.
    return sorted(" ".join(name.split()) for name in ids if isinstance(name, str) and name.strip())


def check_credentials(engine: Engine, *, clock: Clock, timeout_s: float = CHECK_TIMEOUT_S) -> None:
    """Return if the credential works; otherwise raise with one sentence that says why not.

    An API that is busy or failing at the moment (429, 5xx) is no reason to refuse a key.
    """
    if engine.settings.redis_url:
        # It brings redis-py, which takes its time to be imported.
        from holysheep.shared.check import check_redis  # noqa: PLC0415

        check_redis(engine.settings.redis_url)
    deadline_s = clock.monotonic() + timeout_s
    try:
        status, headers, body = engine.transport.get("/models", deadline_s)
    except ConnectFailed as error:
        raise _unreachable(engine, error) from error
    if status not in (404, 405, 501):
        _accept(engine, "/models", status, headers, body, clock)
        return
    probe = {
        "model": engine.settings.default_model,
        "messages": [{"role": "user", "content": "ping"}],
        "max_tokens": 1,
    }
    status, headers, body = engine.transport.post("/chat/completions", probe, deadline_s)
    _refuse_page(engine, status, headers, body)
    if status in (401, 403):
        _raise_for(engine, "/chat/completions", status, headers, body, clock)
    if _is_busy(status):
        return
    if not _json_object(body):
        raise _no_api(engine)
    if status in (404, 405) and not _is_about_the_model(engine, headers, body, clock):
        raise _no_api(engine)


def _is_busy(status: int) -> bool:
    return status == 429 or (status >= 500 and status != 501)


def _is_about_the_model(engine: Engine, headers: httpx.Headers, body: bytes, clock: Clock) -> bool:
    """Whether a 404 says that the model is unknown, and not the route."""
    model = engine.settings.default_model
    # As a 404 it would count whatever it says.
    error = error_for(400, headers, body, model=model, wall_s=clock.wall())
    return isinstance(error, UnknownModel) or model.encode() in body


def _accept(
    engine: Engine, path: str, status: int, headers: httpx.Headers, body: bytes, clock: Clock
) -> None:
    _refuse_page(engine, status, headers, body)
    if _is_busy(status):
        return
    _raise_for(engine, path, status, headers, body, clock)


def _raise_for(
    engine: Engine, path: str, status: int, headers: httpx.Headers, body: bytes, clock: Clock
) -> None:
    """Raise what a failed or unreadable answer of an API route means for the credential."""
    _refuse_page(engine, status, headers, body)
    if status in (401, 403):
        raise AuthError(
            f"The gateway refused the API key (HTTP {status}). Check api_key, base_url and"
            " auth_header.",
            status=status,
        )
    answer = _json_object(body)
    if status == 200 and answer.get("error"):
        error = error_in_body(answer["error"], model=path, wall_s=clock.wall(), outer=answer)
        _raise_for(engine, path, error.status or 500, httpx.Headers(), b"", clock)
    if status == 200 and (isinstance(answer.get("data"), list) or path != "/models"):
        return
    if status in (200, 404, 405):
        raise _no_api(engine)
    raise error_for(
        status,
        headers,
        body,
        model=path,
        wall_s=clock.wall(),
        secrets=(engine.settings.api_key,),
    )


def _refuse_page(engine: Engine, status: int, headers: httpx.Headers, body: bytes) -> None:
    if not looks_like_page(body, headers.get("content-type", "")):
        return
    if status != 429 and status < 500:
        raise _no_api(engine)
    kind = RateLimited if status == 429 else ServerError
    raise kind(
        f"The gateway, or something before it, answers with an error page at the moment (HTTP"
        f" {status}). Check base_url, or try again later.",
        status=status,
    )


def _no_api(engine: Engine) -> SettingsError:
    return SettingsError(
        f"There is no OpenAI-compatible API at {shortened(engine.settings.base_url)}. Check"
        " base_url; it usually ends in /v1."
    )


def _unreachable(engine: Engine, error: HolySheepError) -> HolySheepError:
    if "TLS" in error.message:
        return error
    return ConnectFailed(
        f"{shortened(engine.settings.base_url)} could not be reached. Check base_url, and whether"
        " this Dify may connect to it.",
        detail=error.detail,
    )


def _json_object(body: bytes) -> JsonObject:
    """The body as a JSON object, an empty one if it is none."""
    try:
        value = parse_json(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
