"""The ASGI application: chat completions and the model list here, the control API by Starlette."""

import json
import time
import traceback
from asyncio import get_running_loop
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from devtools.upstream.answers import Call
from devtools.upstream.connections import Connection, Connections
from devtools.upstream.plans import (
    CloseIdle,
    Data,
    Drop,
    Head,
    Pause,
    Raw,
    Reply,
    Step,
    error_steps,
    is_drop_on_reuse,
    steps_for,
)
from devtools.upstream.state import MODELS, Record, State

__all__ = ["UpstreamApp"]

MAX_BODY_BYTES = 64 * 1024 * 1024
_MIN_KEY_CHARS = 20
_CONTROL = "/_control/"
_CHAT = "/v1/chat/completions"
_MODEL_LIST = "/v1/models"


class _ClientLeft(Exception):
    """The client closed the connection before its request was complete."""


@dataclass(slots=True)
class _Exchange:
    """One request on its way to an answer. ``due_s`` is where the schedule of pauses stands."""

    connection: Connection
    send: Send
    number: int
    due_s: float


class UpstreamApp:
    """Answers requests as ``state`` says, on connections known to ``connections``."""

    def __init__(self, state: State, connections: Connections) -> None:
        self._state = state
        self._connections = connections
        self._number = 0
        self._control = _control_api(state, connections)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request, as ASGI has it."""
        path: str = scope["path"]
        if path.startswith(_CONTROL):
            await self._control(scope, receive, send)
            return
        arrival_s = time.monotonic()
        connection = self._connections.use(scope["client"])
        self._number += 1
        exchange = _Exchange(connection, send, self._number, arrival_s)
        is_chat = path == _CHAT and scope["method"] == "POST"
        if is_chat:
            self._state.enter()
        try:
            try:
                body = await _read_body(receive)
            except _ClientLeft:
                self._state.aborted_by_client += 1
                return
            steps = self._steps(scope, exchange, body, is_chat=is_chat)
            await self._run(steps, exchange)
        except Exception:
            self._state.errors.append(traceback.format_exc())
            raise
        finally:
            if is_chat:
                self._state.leave()

    def _steps(
        self, scope: Scope, exchange: _Exchange, body: bytes, *, is_chat: bool
    ) -> Iterable[Step]:
        request = _json_object(body)
        model = str(request.get("model", "")) if request else ""
        self._record(scope, exchange, body, model, is_json=request is not None)
        if is_chat:
            self._state.count_call(model, exchange.due_s * 1000.0)
        elif scope["path"] != _MODEL_LIST or scope["method"] != "GET":
            return _unknown_route(scope)
        else:
            self._state.models_calls += 1

        refusal = _key_refused(_key_of(scope["headers"]))
        if refusal is not None:
            return refusal
        if not is_chat:
            return self._scripted(MODELS, None, exchange)
        if len(body) > MAX_BODY_BYTES:
            return error_steps(413, f"The request body exceeds {MAX_BODY_BYTES} bytes")
        if request is None or not _has_messages(request):
            return error_steps(400, "The body must be a JSON object with a list of messages")
        return self._scripted(model, request, exchange)

    def _scripted(
        self, name: str, request: dict[str, Any] | None, exchange: _Exchange
    ) -> Iterable[Step]:
        behaviour, script = self._state.next_behaviour(name)
        reused = exchange.connection.requests > 1
        if script is not None and not reused and is_drop_on_reuse(behaviour):
            self._state.put_back(script, behaviour)
        call = None
        if request is not None:
            call = Call(request, exchange.number, int(time.time()))
        latency_s = self._state.latency_s(name)
        return steps_for(behaviour, call, latency_s=latency_s, reused=reused)

    def _record(
        self, scope: Scope, exchange: _Exchange, body: bytes, model: str, *, is_json: bool
    ) -> None:
        query: bytes = scope["query_string"]
        path: str = scope["path"]
        self._state.record(
            Record(
                method=scope["method"],
                path=f"{path}?{query.decode('latin-1')}" if query else path,
                headers=scope["headers"],
                body=body,
                is_json=is_json,
                model=model,
                arrival_ms=exchange.due_s * 1000.0,
                client_port=scope["client"][1],
            )
        )

    async def _run(self, steps: Iterable[Step], exchange: _Exchange) -> None:
        """Carry out the steps until they end, or the connection does."""
        connection, state = exchange.connection, self._state
        status = 0
        complete = False
        for step in steps:
            if connection.lost:
                break
            match step:
                case Reply():
                    await _reply(step, exchange)
                    if not connection.lost:
                        state.answered[step.status] += 1
                        complete = True
                case Data(body, last):
                    message = {"type": "http.response.body", "body": body, "more_body": not last}
                    await exchange.send(message)
                    if last and not connection.lost:
                        state.answered[status] += 1
                        complete = True
                case Head():
                    status = step.status
                    await exchange.send(_start(step.status, step.headers, step.length, exchange))
                case Pause(seconds):
                    exchange.due_s += seconds
                    await connection.wait_until(exchange.due_s)
                case Raw(body):
                    connection.write(body)
                case CloseIdle(after_s):
                    _close_idle(connection, after_s)
                    return
                case Drop(how):
                    state.dropped_by_server += 1
                    await _drop(connection, how)
                    return
        if not complete:
            state.aborted_by_client += 1


def _close_idle(connection: Connection, after_s: float) -> None:
    if after_s <= 0:
        connection.close()
    else:
        get_running_loop().call_later(after_s, connection.close_if_idle, connection.requests)


async def _drop(connection: Connection, how: str) -> None:
    if how == "rst":
        connection.reset()
    else:
        connection.close()
    await connection.gone()


async def _reply(reply: Reply, exchange: _Exchange) -> None:
    connection = exchange.connection
    connection.cork()
    await exchange.send(_start(reply.status, reply.headers, len(reply.body), exchange))
    await exchange.send({"type": "http.response.body", "body": reply.body, "more_body": False})
    connection.uncork()


def _start(
    status: int, headers: list[tuple[bytes, bytes]], length: int | None, exchange: _Exchange
) -> dict[str, Any]:
    lines = [*headers, (b"x-request-id", b"req_%08d" % exchange.number)]
    if length is not None:
        lines.append((b"content-length", b"%d" % length))
    return {"type": "http.response.start", "status": status, "headers": lines}


async def _read_body(receive: Receive) -> bytes:
    """The whole body; of one that is too large only the first part, but read to its end."""
    message = await receive()
    body: bytes = message.get("body", b"")
    parts = [body]
    size = len(body)
    while message["type"] == "http.request" and message.get("more_body"):
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size <= MAX_BODY_BYTES + 1:
            parts.append(part)
    if message["type"] == "http.disconnect":
        raise _ClientLeft
    return body if len(parts) == 1 else b"".join(parts)


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _has_messages(request: dict[str, Any]) -> bool:
    messages = request.get("messages")
    return isinstance(messages, list) and all(isinstance(message, dict) for message in messages)


def _key_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    key = b""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].decode("latin-1")
        if name == b"x-api-key":
            key = value
    return key.decode("latin-1")


def _key_refused(key: str) -> list[Step] | None:
    """401 or 403 with the key in the message, as a careless gateway does; None if it is good."""
    if len(key) < _MIN_KEY_CHARS or "wrong" in key:
        message = f"Incorrect API key provided: {key}" if key else "You did not provide an API key"
        return error_steps(
            401, message, error_type="invalid_request_error", error_code="invalid_api_key"
        )
    if "forbidden" in key:
        return error_steps(403, f"The API key {key} is not allowed to use this service.")
    return None


def _unknown_route(scope: Scope) -> list[Step]:
    known = scope["path"] in (_CHAT, _MODEL_LIST)
    message = f"Unknown request URL: {scope['method']} {scope['path']}"
    return error_steps(405 if known else 404, message, error_type="invalid_request_error")


def _control_api(state: State, connections: Connections) -> Starlette:
    async def script(request: Request) -> Response:
        body = await _control_body(request)
        queued = state.add_script(str(body.get("model", "*")), body.get("behaviours") or ())
        return JSONResponse({"queued": queued})

    async def default(request: Request) -> Response:
        body = await _control_body(request)
        state.set_default(str(body.get("model", "*")), body.get("behaviour"))
        return JSONResponse({})

    async def stats(_: Request) -> Response:
        counts = {"connections": connections.used, "open_connections": connections.open}
        return JSONResponse(state.counts() | counts)

    async def requests(request: Request) -> Response:
        last = int(request.query_params.get("last", "1000"))
        return Response(state.requests_json(last), media_type="application/json")

    async def arrivals(request: Request) -> Response:
        return JSONResponse(state.arrivals_ms(request.query_params.get("model")))

    async def reset(_: Request) -> Response:
        state.reset()
        connections.used = 0
        return JSONResponse({})

    async def refused(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status_code=400)

    return Starlette(
        routes=[
            Route(f"{_CONTROL}script", script, methods=["POST"]),
            Route(f"{_CONTROL}default", default, methods=["POST"]),
            Route(f"{_CONTROL}stats", stats),
            Route(f"{_CONTROL}requests", requests),
            Route(f"{_CONTROL}arrivals", arrivals),
            Route(f"{_CONTROL}reset", reset, methods=["POST"]),
        ],
        exception_handlers={ValueError: refused},
    )


async def _control_body(request: Request) -> dict[str, Any]:
    body = await request.json()
    if isinstance(body, dict):
        return body
    raise ValueError("the body must be a JSON object")
