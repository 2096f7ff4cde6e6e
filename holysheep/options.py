"""The rarer settings of a node: keys of one text, since every field is a row on its card."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from holysheep import config
from holysheep.jsontext import is_json
from holysheep.reading import Number, Whole, shown, without_unset
from holysheep.types import JsonObject

ResponseFormat = Literal["text", "json_object", "json_schema"]

Retries = Annotated[Whole, Field(ge=0, le=10)]

_STOP = "stop must be a text, one sequence a line, or a list of at most 4 texts"


class Options(BaseModel):
    """The rarer settings, by the keys of the ``options`` text. An unknown key is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    top_p: Number = Field(default=0.95, ge=0, le=1)
    stop: list[str] | None = None
    seed: Whole | None = Field(default=None, ge=-(2**63), le=2**63)
    presence_penalty: Number | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: Number | None = Field(default=None, ge=-2, le=2)
    reasoning_effort: Literal["minimal", "low", "medium", "high"] | None = None
    cache_ttl_s: Number = Field(default=config.CACHE_TTL_S, ge=1, le=config.CACHE_MAX_TTL_S)
    cache_scope: Literal["credential", "app", "user"] = "credential"
    serve_stale: bool = False
    extra_body: JsonObject | None = None

    @model_validator(mode="before")
    @classmethod
    def _that_are_set(cls, value: Any) -> Any:
        stop = value.get("stop") if isinstance(value, dict) else None
        if isinstance(stop, str) and stop and not stop.strip():
            # A text is one sequence a line: whether this is one, several or none is anyone's guess.
            raise ValueError(
                'stop is white space only; give such a sequence in a list, such as stop: ["\\n"].'
            )
        return without_unset(value, cls)

    @field_validator("stop", mode="before")
    @classmethod
    def _sequences(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [line for line in value.splitlines() if line]
        if value is None or value in ("", []):
            return None
        if isinstance(value, list):
            if not all(isinstance(item, str) and item for item in value):
                raise ValueError(f"{_STOP}, got {shown(value)}.")
            if len(value) > 4:
                raise ValueError(f"{_STOP}, got {len(value)} of them.")
            return value
        raise ValueError(f"{_STOP}, got {shown(value)}.")

    @field_validator("extra_body")
    @classmethod
    def _mergeable(cls, value: JsonObject | None) -> JsonObject | None:
        forbidden = sorted({"messages", "stream", "stream_options", "api_key"} & set(value or ()))
        if forbidden:
            raise ValueError(f"extra_body must not set {', '.join(forbidden)}.")
        if not is_json(value):
            raise ValueError("extra_body must hold nothing but JSON values.")
        return value


class ChainOptions(Options):
    """The keys of a chain's ``options``."""

    model_config = ConfigDict(defer_build=True)

    max_retries: Retries = 3


class BatchOptions(ChainOptions):
    """The keys of a batch's ``options``; ``max_inline_results`` is of a node alone."""

    response_format: ResponseFormat = "text"
    max_inline_results: Whole = Field(
        default=config.INLINE_RESULTS, ge=0, le=config.MAX_INLINE_RESULTS
    )
