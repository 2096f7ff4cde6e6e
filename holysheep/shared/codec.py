"""Answers and failures as bytes, for other processes.

JSON with a version, compressed where that is worth it. Reading believes nothing: what is damaged,
or of another version, is as good as not there.
"""

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from holysheep import errors
from holysheep.errors import HolySheepError
from holysheep.jsontext import whole_characters
from holysheep.packing import compressed, decompressed
from holysheep.types import Choice, Completion, JsonObject, Usage

_VERSION = 1
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_FAILURES: dict[str, type[HolySheepError]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, HolySheepError) and not kind.is_callers_own
}


def encoded_answer(completion: Completion) -> bytes:
    """An answer as bytes."""
    return _encoded(
        {
            "asked_model": completion.asked_model,
            "model": completion.model,
            "choices": [_fields(choice) for choice in completion.choices],
            "usage": _usage(completion.usage),
            "earlier": [_usage(usage) for usage in completion.earlier],
            "request_id": completion.request_id,
            "fallback_from": completion.fallback_from,
            "left_out": completion.left_out,
        }
    )


def encoded_failure(error: HolySheepError, secret: str) -> bytes:
    """A failure as bytes, without ``secret``; nothing where it is not for others."""
    kind = type(error).__name__
    if _FAILURES.get(kind) is not type(error):
        return b""
    error = error.copy()
    error.conceal(secret)
    return _encoded(
        {
            "failure": kind,
            "message": error.message,
            "status": error.status,
            "retry_after_s": error.retry_after_s,
            "request_id": error.request_id,
            "detail": error.detail,
        }
    )


def decoded(value: bytes) -> Completion | HolySheepError:
    """What was encoded. Raises ``ValueError`` for anything else."""
    try:
        return _STORED.validate_json(decompressed(value)).restored()
    except ValidationError as error:
        places = {str(part) for each in error.errors(include_input=False) for part in each["loc"]}
        raise ValueError(f"it is damaged ({', '.join(sorted(places))})") from None


class _Stored(BaseModel):
    """Every name must be there, and no other; values have their types and are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[1]


class _Answer(_Stored):
    asked_model: str
    model: str
    choices: tuple[Choice, ...] = Field(min_length=1)
    usage: Usage
    earlier: tuple[Usage, ...]
    request_id: str | None
    fallback_from: str | None
    left_out: tuple[str, ...]

    def restored(self) -> Completion:
        return Completion(
            **{name: getattr(self, name) for name in _Answer.model_fields if name != "version"}
        )


class _Failure(_Stored):
    failure: str
    message: str
    status: int | None
    retry_after_s: float | None
    request_id: str | None
    detail: str

    def restored(self) -> HolySheepError:
        if self.failure not in _FAILURES:
            raise ValueError(f"it is a failure of another kind ({self.failure})")
        error = _FAILURES[self.failure](self.message)
        error.status, error.retry_after_s = self.status, self.retry_after_s
        error.request_id, error.detail = self.request_id, self.detail
        return error


_STORED: TypeAdapter[_Answer | _Failure] = TypeAdapter(_Answer | _Failure)


def _encoded(fields: JsonObject) -> bytes:
    text = _ENCODER.encode({"version": _VERSION, **fields})
    return compressed(whole_characters(text).encode())


def _usage(usage: Usage) -> JsonObject:
    cost = usage.provider_cost_usd
    return {**_fields(usage), "provider_cost_usd": None if cost is None else str(cost)}


def _fields(value: Choice | Usage) -> JsonObject:
    """What a value consists of. ``dataclasses.asdict`` would copy it all first."""
    return {name: getattr(value, name) for name in type(value).__slots__}
