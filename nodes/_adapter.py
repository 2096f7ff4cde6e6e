"""What the nodes share: the engine of a credential, the host's errors, and the host's messages."""

import json
import uuid
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

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
from holysheep.engine import Engine
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
from holysheep.registry import shared_registry
from holysheep.results import pieces_of
from holysheep.settings import parse_settings
from holysheep.types import Delta
from host import process

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
# The host takes a file in pieces of so many bytes.
MAX_FILE_PIECE_BYTES = 8192


def engine_of(tool: Tool) -> Engine:
    """The engine of the credential that a tool was invoked with. Raises ``SettingsError``."""
    return shared_registry().engine(parse_settings(tool.runtime.credentials))


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
    given = _files(files, "files")
    if len(given) > config.MAX_IMAGES:
        raise InputError(f"Too many files: {len(given)}, at most {config.MAX_IMAGES} are allowed.")
    images = []
    for file in given:
        name = file.filename or "image"
        content = fetch_file(file.url, name, clock=process.clock(), deadline_s=deadline_s)
        images.append(image_from_bytes(content, name))
    return images


def file_of(value: Any, name: str, *, deadline_s: float) -> tuple[str, bytes]:
    """Name and content of a node's one file. Raises ``InputError``."""
    given = _files(value, name)
    if len(given) != 1:
        raise InputError(f"{name} must be one file, got {len(given)}.")
    file = given[0]
    filename = file.filename or f"file{file.extension or ''}"
    return filename, fetch_file(file.url, filename, clock=process.clock(), deadline_s=deadline_s)


def _files(value: Any, name: str) -> list[File]:
    files = value if isinstance(value, list) else [value]
    if not all(isinstance(file, File) for file in files):
        raise InputError(f"{name} must be a file, such as an upload of the user.")
    return files


def paced(deltas: Iterable[Delta]) -> Iterator[str]:
    """The text of an answer as it arrives, in pieces as few as a person can bear."""
    return paced_text(iter(deltas), clock=process.clock(), spawn=process.spawn)


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
    if isinstance(value, float):
        # A span or a rate is new each time; the others are much the same from call to call.
        yield variable(tool, name, value)
    else:
        yield _plain_value(name, float(value) if isinstance(value, Decimal) else value)


def file(path: Path, mime_type: str) -> Messages:
    """A file output, read from disk piece by piece: the SDK's own message takes it as a whole."""
    size = path.stat().st_size
    meta = {"mime_type": mime_type, "filename": path.name}
    file_id = uuid.uuid4().hex
    number = 0
    for number, piece in enumerate(pieces_of(path, MAX_FILE_PIECE_BYTES), 1):
        yield _file_piece(file_id, number - 1, size, piece, meta)
        if number % 64 == 0:
            # Writing never waits: without this, nobody else runs until the whole file is sent.
            process.give_way()
    yield _file_piece(file_id, number, size, b"", meta, is_end=True)


def _file_piece(
    file_id: str,
    sequence: int,
    size: int,
    piece: bytes,
    meta: dict[str, Any],
    *,
    is_end: bool = False,
) -> ToolInvokeMessage:
    return ToolInvokeMessage(
        type=ToolInvokeMessage.MessageType.BLOB_CHUNK,
        message=ToolInvokeMessage.BlobChunkMessage(
            id=file_id, sequence=sequence, total_length=size, blob=piece, end=is_end
        ),
        meta=meta,
    )


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
