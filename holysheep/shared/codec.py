"""Answers and failures as bytes, for other processes.

JSON with a version, compressed where that is worth it. Reading believes nothing: what is damaged,
or of another version, is as good as not there.
"""

import json
from decimal import Decimal
from typing import Any

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
        fields: Any = json.loads(decompressed(value))
        if fields.pop("version") != _VERSION:
            raise ValueError("it is of another version")
        return _failure(fields) if "failure" in fields else _completion(fields)
    except (TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__})") from None


def _encoded(fields: JsonObject) -> bytes:
    text = _ENCODER.encode({"version": _VERSION, **fields})
    return compressed(whole_characters(text).encode())


def _usage(usage: Usage) -> JsonObject:
    cost = usage.provider_cost_usd
    return {**_fields(usage), "provider_cost_usd": None if cost is None else str(cost)}


def _fields(value: Choice | Usage) -> JsonObject:
    """What a value consists of. ``dataclasses.asdict`` would copy it all first."""
    return {name: getattr(value, name) for name in type(value).__slots__}


def _completion(fields: JsonObject) -> Completion:
    choices = tuple(
        Choice(**{**choice, "tool_calls": tuple(choice["tool_calls"])})
        for choice in fields.pop("choices")
    )
    if not choices or not all(isinstance(choice.text, str) for choice in choices):
        raise ValueError("it has no answer")
    return Completion(
        choices=choices,
        usage=_read_usage(fields.pop("usage")),
        earlier=tuple(_read_usage(usage) for usage in fields.pop("earlier")),
        left_out=tuple(fields.pop("left_out")),
        **fields,
    )


def _read_usage(fields: JsonObject) -> Usage:
    cost = fields.pop("provider_cost_usd")
    return Usage(**fields, provider_cost_usd=None if cost is None else Decimal(cost))


def _failure(fields: JsonObject) -> HolySheepError:
    kind = _FAILURES[fields.pop("failure")]
    error = kind(str(fields.pop("message")))
    for name in ("status", "retry_after_s", "request_id", "detail"):
        setattr(error, name, fields[name])
    return error
