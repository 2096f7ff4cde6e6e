"""A credential's settings, parsed from what the host or a caller gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal

import httpx

from holysheep import config
from holysheep.errors import SettingsError
from holysheep.pricing import Price, parse_overrides
from holysheep.reading import MODEL_ID, is_model_id
from holysheep.shared.address import parse_redis_url

_MAX_NUMBER = 1_000_000_000
_MIN_NUMBER = Decimal("0.000001")
"""Less would count as nothing, which means no limit."""


AuthHeader = Literal["bearer", "x-api-key", "both"]

FIELDS = (
    "api_key",
    "base_url",
    "auth_header",
    "default_model",
    "requests_per_minute",
    "tokens_per_minute",
    "max_concurrency",
    "daily_budget_usd",
    "monthly_budget_usd",
    "price_overrides",
    "redis_url",
)
"""The fields of a credential."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One credential. Its ``repr`` never shows the key, nor the password in ``redis_url``.

    Limits of 0 mean no limit. Budgets are USD per UTC day and month, ``None`` = none.
    """

    api_key: str = field(repr=False)
    base_url: str = config.DEFAULT_BASE_URL
    auth_header: AuthHeader = "bearer"
    default_model: str = config.DEFAULT_MODEL
    requests_per_minute: float = config.DEFAULT_REQUESTS_PER_MINUTE
    tokens_per_minute: float = config.DEFAULT_TOKENS_PER_MINUTE
    max_concurrency: int = config.DEFAULT_MAX_CONCURRENCY
    daily_budget_usd: Decimal | None = None
    monthly_budget_usd: Decimal | None = None
    price_overrides: Mapping[str, Price] = field(default_factory=dict)
    redis_url: str = field(default="", repr=False)
    fingerprint: str = field(init=False)
    """What tells this credential from others: a hash of base URL and key, 32 hex digits."""

    def __post_init__(self) -> None:
        digest = sha256(f"{self.base_url}\0{self.api_key}".encode()).hexdigest()
        object.__setattr__(self, "fingerprint", digest[:32])


def parse_settings(raw: Mapping[str, Any]) -> Settings:
    """Settings from the credential's fields as the host sends them: texts, or nothing.

    Raises ``SettingsError`` with one sentence that names the field.
    """
    return _parse(tuple(_text(raw.get(name)) for name in FIELDS))


@lru_cache(maxsize=config.MAX_CREDENTIALS)
def _parse(values: tuple[str, ...]) -> Settings:
    """The host sends the same texts with every call: they are parsed once."""
    raw = dict(zip(FIELDS, values, strict=True))
    return Settings(
        api_key=_api_key(raw.get("api_key")),
        base_url=_base_url(raw.get("base_url")),
        auth_header=_auth_header(raw.get("auth_header")),
        default_model=_default_model(raw.get("default_model")),
        requests_per_minute=_number(raw, "requests_per_minute", config.DEFAULT_REQUESTS_PER_MINUTE),
        tokens_per_minute=_number(raw, "tokens_per_minute", config.DEFAULT_TOKENS_PER_MINUTE),
        max_concurrency=_concurrency(raw),
        daily_budget_usd=_budget(raw, "daily_budget_usd"),
        monthly_budget_usd=_budget(raw, "monthly_budget_usd"),
        price_overrides=parse_overrides(_text(raw.get("price_overrides"))),
        redis_url=_redis_url(raw.get("redis_url")),
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _shown(text: str) -> str:
    """A wrong value; a long one may be a key in the wrong field."""
    return repr(text) if len(text) <= config.MAX_SHOWN_CHARS else f"{len(text)} characters"


def _api_key(value: Any) -> str:
    key = _text(value)
    if key.lower().startswith("bearer "):
        key = key[len("bearer ") :].strip()
    if not key:
        raise SettingsError("api_key is empty. Paste the key from your gateway's dashboard.")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise SettingsError(
            "api_key contains white space or characters that no key has. Copy it again, whole."
        )
    if len(key) < config.MIN_KEY_LENGTH:
        raise SettingsError(
            f"api_key is too short: {len(key)} characters, a key has at least"
            f" {config.MIN_KEY_LENGTH}. Copy it again, whole."
        )
    return key


def _base_url(value: Any) -> str:
    text = _text(value) or config.DEFAULT_BASE_URL
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        raise SettingsError("base_url is no valid URL, such as https://host/v1.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise SettingsError("base_url must begin with http:// or https:// and name a host.")
    if url.port is not None and not 0 < url.port < 65_536:
        raise SettingsError("base_url has a port that does not exist.")
    labels = url.raw_host.decode().removesuffix(".").split(".")
    if not all(0 < len(label) <= 63 for label in labels):
        raise SettingsError("base_url has a host name that cannot exist.")
    if url.userinfo or "?" in text or "#" in text:
        raise SettingsError(
            "base_url must have no user name, query or fragment; the key has its own field."
        )
    return str(url).rstrip("/").removesuffix("/chat/completions")


def _auth_header(value: Any) -> AuthHeader:
    match _text(value) or "bearer":
        case "bearer":
            return "bearer"
        case "x-api-key":
            return "x-api-key"
        case "both":
            return "both"
        case other:
            raise SettingsError(
                f"auth_header must be bearer, x-api-key or both, got {_shown(other)}."
            )


def _redis_url(value: Any) -> str:
    url = _text(value)
    if url:
        parse_redis_url(url)
    return url


def _default_model(value: Any) -> str:
    model = _text(value) or config.DEFAULT_MODEL
    if not is_model_id(model):
        raise SettingsError(f"default_model must be {MODEL_ID}.")
    return model


def _decimal(
    raw: Mapping[str, Any], name: str, allowed: str = f"a number from 0 to {_MAX_NUMBER:,}"
) -> Decimal | None:
    text = _text(raw.get(name))
    if not text:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    too_small = 0 < number < _MIN_NUMBER if number.is_finite() else True
    if too_small or not 0 <= number <= _MAX_NUMBER:
        raise SettingsError(f"{name} must be {allowed}, got {_shown(text)}.")
    return number


def _number(raw: Mapping[str, Any], name: str, default: float) -> float:
    number = _decimal(raw, name)
    return default if number is None else float(number)


def _concurrency(raw: Mapping[str, Any]) -> int:
    number = _decimal(raw, "max_concurrency")
    if number is None:
        return config.DEFAULT_MAX_CONCURRENCY
    if not 1 <= number <= config.MAX_MAX_CONCURRENCY or number != int(number):
        raise SettingsError(
            f"max_concurrency must be a whole number from 1 to {config.MAX_MAX_CONCURRENCY}, got"
            f" {number}."
        )
    return int(number)


def _budget(raw: Mapping[str, Any], name: str) -> Decimal | None:
    allowed = f"a number from {_MIN_NUMBER:f} to {_MAX_NUMBER:,}; leave it empty for no budget"
    budget = _decimal(raw, name, allowed)
    if budget == 0:
        raise SettingsError(f"{name} must be {allowed}.")
    return budget
