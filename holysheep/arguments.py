"""The keyword arguments of ``Client`` as types: what an editor offers and a type checker refuses.

Meanings, defaults and ranges are told by the methods that take them; ``params``, ``options`` and
``settings`` decide. ``None`` is the default everywhere, as if the argument were left out.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Literal, TypedDict

from holysheep.options import ResponseFormat
from holysheep.settings import AuthHeader
from holysheep.types import CacheMode, JsonObject


class SettingsArguments(TypedDict, total=False):
    """The settings of a ``Client`` beside key and base URL."""

    auth_header: AuthHeader | None
    default_model: str | None
    requests_per_minute: float | str | None
    tokens_per_minute: float | str | None
    max_concurrency: int | str | None
    daily_budget_usd: Decimal | float | str | None
    monthly_budget_usd: Decimal | float | str | None
    price_overrides: str | None
    redis_url: str | None


class _ModelArguments(TypedDict, total=False):
    model: str | None
    max_tokens: int | None


class _AnswerArguments(_ModelArguments, total=False):
    temperature: float | None
    cache: CacheMode | None
    fallback_models: str | Sequence[str] | None
    max_retries: int | None
    top_p: float | None
    stop: str | list[str] | None
    seed: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    reasoning_effort: Literal["minimal", "low", "medium", "high"] | None
    cache_ttl_s: float | None
    cache_scope: Literal["credential", "app", "user"] | None
    serve_stale: bool | None
    extra_body: JsonObject | None


class ChatArguments(_AnswerArguments, total=False):
    """What ``chat`` and ``stream`` take beside the messages."""

    response_format: ResponseFormat | None
    json_schema: str | JsonObject | None
    tools: str | list[JsonObject] | None
    timeout_s: float | None


class BatchArguments(_AnswerArguments, total=False):
    """What ``batch`` takes beside its rows, its template and its deadline."""

    system_prompt: str | None
    response_format: ResponseFormat | None
    json_schema: str | JsonObject | None
    concurrency: int | None
    row_timeout_s: float | None
    on_row_error: Literal["continue", "stop"] | None


class ChainArguments(_AnswerArguments, total=False):
    """What ``chain`` takes beside its query and its steps."""

    system_prompt: str | None
    timeout_s: float | None
    on_step_error: Literal["continue", "stop"] | None


class BenchmarkArguments(_ModelArguments, total=False):
    """What ``benchmark`` takes."""

    prompt: str | None
    iterations: int | None
    concurrency: int | None
    deadline_s: float | None
