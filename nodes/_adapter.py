"""What the nodes share: the engine of a credential, the host's errors, and the host's messages."""

import json
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any

from dify_plugin import DifyPluginEnv
from dify_plugin.entities.tool import ToolInvokeMessage
from dify_plugin.errors.model import (
    InvokeAuthorizationError,
    InvokeBadRequestError,
    InvokeConnectionError,
    InvokeError,
    InvokeRateLimitError,
    InvokeServerUnavailableError,
)
from dify_plugin.file.file import File
from dify_plugin.interfaces.tool import Tool

from holysheep import config
from holysheep.engine import Answer, Engine
from holysheep.errors import (
    AuthError,
    BadRequest,
    BadResponse,
    BudgetExceeded,
    CircuitOpen,
    ConnectFailed,
    DeadlineExceeded,
    HolySheepError,
    InputError,
    InvalidOutput,
    LimiterTimeout,
    QuotaExhausted,
    RateLimited,
    ServerError,
    SettingsError,
    TimedOut,
)
from holysheep.media import Image, fetch_file, image_from_bytes
from holysheep.pacing import paced_text
from holysheep.ports import Clock
from holysheep.registry import shared_registry
from holysheep.settings import parse_settings

Messages = Generator[ToolInvokeMessage, None, None]

# Dify shows the message of these five alone; any other class gets boilerplate round it.
HOST_ERRORS: dict[type[HolySheepError], type[InvokeError]] = {
    SettingsError: InvokeAuthorizationError,
    AuthError: InvokeAuthorizationError,
    InputError: InvokeBadRequestError,
    BadRequest: InvokeBadRequestError,
    QuotaExhausted: InvokeBadRequestError,
    BudgetExceeded: InvokeBadRequestError,
    InvalidOutput: InvokeBadRequestError,
    RateLimited: InvokeRateLimitError,
    LimiterTimeout: InvokeRateLimitError,
    ServerError: InvokeServerUnavailableError,
    CircuitOpen: InvokeServerUnavailableError,
    BadResponse: InvokeServerUnavailableError,
    ConnectFailed: InvokeConnectionError,
    TimedOut: InvokeConnectionError,
    DeadlineExceeded: InvokeConnectionError,
}

_SHORT_CHARS = 40

# The daemon ends the whole process at a line of 5 MB; a value and its wrapping must stay below.
MAX_VALUE_BYTES = 4_000_000


def engine_of(tool: Tool) -> Engine:
    """The engine of the credential that a tool was invoked with. Raises ``SettingsError``."""
    return shared_registry().engine(parse_settings(tool.runtime.credentials))


def clock() -> Clock:
    """The clock of the process's engines."""
    return shared_registry().clock


@contextmanager
def host_errors(tool: Tool) -> Iterator[None]:
    """Turn the engine's errors into the host's, without the credential's key."""
    try:
        yield
    except HolySheepError as error:
        error.conceal(str(tool.runtime.credentials.get("api_key") or ""))
        raise host_error(error) from error


def host_error(error: HolySheepError) -> InvokeError:
    """The host's error for one of the engine's, with the same one-line message."""
    kind = next(HOST_ERRORS[cls] for cls in type(error).__mro__ if cls in HOST_ERRORS)
    return kind(error.message)


def images_of(files: Any, *, deadline_s: float) -> list[Image]:
    """The images among a node's files. Raises ``InputError`` for anything that is none."""
    files = files if isinstance(files, list) else [files]
    if not all(isinstance(file, File) for file in files):
        raise InputError("files must be files, such as an upload of the user.")
    if len(files) > config.MAX_IMAGES:
        raise InputError(f"Too many files: {len(files)}, at most {config.MAX_IMAGES} are allowed.")
    images = []
    for file in files:
        name = file.filename or "image"
        content = fetch_file(file.url, name, clock=clock(), deadline_s=deadline_s)
        images.append(image_from_bytes(content, name))
    return images


def paced(answer: Answer) -> Iterator[str]:
    """The text of an answer as it arrives, in pieces as few as a person can bear."""
    return paced_text(iter(answer), clock=clock(), spawn=_readers().submit)


@cache
def _readers() -> ThreadPoolExecutor:
    """Threads that read ahead, kept for the next call; as many as the SDK runs calls at a time."""
    return ThreadPoolExecutor(DifyPluginEnv().MAX_WORKER, thread_name_prefix="read-ahead")


def text(tool: Tool, content: str) -> Messages:
    """``content`` as the node's ``text``, in messages that the host can take."""
    for part in _parts(content):
        yield tool.create_text_message(part)


def string(tool: Tool, name: str, value: str) -> Messages:
    """A string output. Streamed, because Dify shows other variables blank in an Answer."""
    if len(value) <= _SHORT_CHARS:
        yield _short_string(name, value)
        return
    for part in _parts(value):
        yield tool.create_stream_variable_message(name, part)


def figure(tool: Tool, name: str, value: Decimal | float | bool | None) -> Messages:
    """A number or boolean: first as text for an Answer, then as the value for other nodes."""
    yield _short_string(name, _shown(value))
    number = float(value) if isinstance(value, Decimal) else value
    # A latency is new each time; the others are much the same from call to call.
    yield variable(tool, name, number) if name == "latency_ms" else _plain_value(name, number)


def variable(tool: Tool, name: str, value: Any) -> ToolInvokeMessage:
    """An output of any type."""
    return tool.create_variable_message(name, value)


@lru_cache(maxsize=256, typed=True)
def _plain_value(name: str, value: float | bool | None) -> ToolInvokeMessage:
    """A number or boolean, kept like ``_short_string``; True and 1 are two of them."""
    return ToolInvokeMessage(
        type=ToolInvokeMessage.MessageType.VARIABLE,
        message=ToolInvokeMessage.VariableMessage(variable_name=name, variable_value=value),
    )


@lru_cache(maxsize=256)
def _short_string(name: str, value: str) -> ToolInvokeMessage:
    """A streamed output as short as a status or a model id, which most calls have in common.

    Building a message takes longer than looking one up, the SDK does not change what it sends,
    and every call sends a dozen of these.
    """
    return ToolInvokeMessage(
        type=ToolInvokeMessage.MessageType.VARIABLE,
        message=ToolInvokeMessage.VariableMessage(
            variable_name=name, variable_value=value, stream=True
        ),
    )


def check_fits(name: str, value: Any) -> None:
    """Raise ``BadResponse`` if a value is larger than one message to the host may be."""
    size = len(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    if size > MAX_VALUE_BYTES:
        raise BadResponse(
            f"The answer's {name} is larger than {MAX_VALUE_BYTES // 1_000_000} MB, more than Dify"
            " takes. Lower max_tokens."
        )


def _parts(content: str) -> list[str]:
    size = config.MAX_PIECE_CHARS
    return [content[start : start + size] for start in range(0, len(content), size)]


def _shown(value: Decimal | float | bool | None) -> str:
    """A figure as a person reads it."""
    match value:
        case None:
            return "unknown"
        case bool():
            return "true" if value else "false"
        case Decimal():
            return f"{value.normalize():f}"
        case _:
            return f"{value:.0f}"
