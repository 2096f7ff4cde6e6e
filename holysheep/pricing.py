"""What an answer cost: exact, or unknown, never guessed.

``cost = (uncached * input + cached * cached_input + written * cache_write
+ completion * output) / 1,000,000`` in decimal arithmetic, nothing rounded. The price comes, in
this order, from the credential's ``price_overrides``, from what the gateway reports in the answer,
from ``prices.yaml``. A model with none of them costs ``None``: unknown is not free.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, lru_cache
from importlib.resources import files
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from holysheep.errors import SettingsError
from holysheep.jsontext import MAX_DEPTH, bracket_depth, without_tabs
from holysheep.types import Completion, Usage

PriceSource = Literal["override", "provider", "table", "none"]

_MAX_PRICE = Decimal(1_000_000)
_MAX_OVERRIDES_CHARS = 50_000
_MILLION = Decimal(1_000_000)
_DATE_SUFFIX = re.compile(r"[-@](\d{4}-\d{2}-\d{2}|\d{8})$")
_CLAUDE_VERSION = re.compile(r"(?<=\d)\.(?=\d)")


class Tier(BaseModel):
    """Prices of a request with more than ``prompt_tokens`` prompt tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prompt_tokens: int = Field(gt=0)
    input: Decimal = Field(ge=0, le=_MAX_PRICE)
    cached_input: Decimal | None = Field(default=None, ge=0, le=_MAX_PRICE)
    cache_write: Decimal | None = Field(default=None, ge=0, le=_MAX_PRICE)
    output: Decimal = Field(ge=0, le=_MAX_PRICE)


class ComparePrice(BaseModel):
    """A price to compare with, for input and output separately."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    input: Decimal = Field(ge=0, le=_MAX_PRICE)
    output: Decimal = Field(ge=0, le=_MAX_PRICE)


class Price(BaseModel):
    """Prices of one model in USD per million tokens.

    ``compare_at`` is what the user compares with: one price for all tokens, or input and output.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    input: Decimal = Field(ge=0, le=_MAX_PRICE)
    cached_input: Decimal | None = Field(default=None, ge=0, le=_MAX_PRICE)
    cache_write: Decimal | None = Field(default=None, ge=0, le=_MAX_PRICE)
    output: Decimal = Field(ge=0, le=_MAX_PRICE)
    above: Tier | None = None
    compare_at: Annotated[Decimal, Field(ge=0, le=_MAX_PRICE)] | ComparePrice | None = None
    source: str = ""
    date: str = ""

    def cost(self, usage: Usage) -> Decimal:
        """USD for these token counts, exact."""
        return self.parts(usage).total_usd

    def parts(self, usage: Usage) -> "Parts":
        """The same by kind of token."""
        rates: Price | Tier = self
        if self.above is not None and usage.prompt_tokens > self.above.prompt_tokens:
            rates = self.above
        cached_input = rates.input if rates.cached_input is None else rates.cached_input
        cache_write = rates.input if rates.cache_write is None else rates.cache_write
        fresh = max(0, usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens)
        return Parts(
            input_usd=(fresh * rates.input + usage.cache_write_tokens * cache_write) / _MILLION,
            cached_usd=usage.cached_tokens * cached_input / _MILLION,
            output_usd=usage.completion_tokens * rates.output / _MILLION,
        )

    def compared(self, usage: Usage) -> Decimal | None:
        """USD for the same tokens at ``compare_at``; ``None`` where there is no such price."""
        match self.compare_at:
            case None:
                return None
            case ComparePrice(input=for_input, output=for_output):
                pass
            case flat:
                for_input = for_output = flat
        return (usage.prompt_tokens * for_input + usage.completion_tokens * for_output) / _MILLION


@dataclass(frozen=True, slots=True)
class Parts:
    """A cost in USD by kind of token. What is written to a provider's cache is input."""

    input_usd: Decimal
    cached_usd: Decimal
    output_usd: Decimal

    @property
    def total_usd(self) -> Decimal:
        """All of it."""
        return self.input_usd + self.cached_usd + self.output_usd


@dataclass(frozen=True, slots=True)
class Cost:
    """What an answer cost in USD, ``None`` where nobody knows, and who says so."""

    usd: Decimal | None
    source: PriceSource


class PriceBook:
    """The table, and one credential's overrides before it."""

    def __init__(self, overrides: Mapping[str, Price] | None = None) -> None:
        self._overrides = {canonical_id(model): price for model, price in (overrides or {}).items()}

    def find(self, *models: str) -> tuple[Price | None, PriceSource]:
        """The price of the first of ``models`` that has one; overrides come before the table."""
        ids = [canonical_id(model) for model in models]
        for prices, source in ((self._overrides, "override"), (_table(), "table")):
            for model in ids:
                if model in prices:
                    return prices[model], source  # type: ignore[return-value]
        return None, "none"

    @property
    def models(self) -> list[str]:
        """The ids that have a price."""
        return sorted({*self._overrides, *_table()})

    def cost(self, completion: Completion) -> Cost:
        """What upstream's work on this answer cost."""
        price, source = self.find(completion.model, completion.asked_model)
        total = Decimal(0)
        said: PriceSource = "provider"
        # Each answer by itself: prices may depend on how long a prompt was.
        for usage in (completion.usage, *completion.earlier):
            if usage.provider_cost_usd is not None and source != "override":
                total += usage.provider_cost_usd
            elif price is None:
                return Cost(None, "none")
            else:
                total += price.cost(usage)
                said = source
        return Cost(total, said)


def total_cost(costs: Iterable[Decimal | None]) -> Decimal | None:
    """The sum; one unknown part makes it unknown, since a partial cost would look like a whole."""
    total = Decimal(0)
    for cost in costs:
        if cost is None:
            return None
        total += cost
    return total


@lru_cache(maxsize=1024)
def canonical_id(model: str) -> str:
    """The id under which prices are kept: see the head of ``prices.yaml``."""
    name = _DATE_SUFFIX.sub("", model.strip().lower().rpartition("/")[2])
    return _CLAUDE_VERSION.sub("-", name) if name.startswith("claude") else name


def parse_overrides(text: str) -> dict[str, Price]:
    """Read ``price_overrides``: YAML or JSON, model -> prices; empty text means none.

    Raises ``SettingsError`` with one sentence that names the model and the field.
    """
    if len(text) > _MAX_OVERRIDES_CHARS:
        raise SettingsError(f"price_overrides is longer than {_MAX_OVERRIDES_CHARS:,} characters.")
    try:
        if bracket_depth(text) > MAX_DEPTH:
            raise RecursionError
        # Prices are read as text: 0.1 as a float would not be 0.1.
        data = yaml.load(without_tabs(text), Loader=yaml.BaseLoader)  # noqa: S506 - makes nothing but text
    except (yaml.YAMLError, RecursionError):
        raise SettingsError("price_overrides is neither valid YAML nor JSON.") from None
    if data in (None, ""):
        return {}
    if not isinstance(data, dict):
        raise SettingsError(
            "price_overrides must be a mapping of model to prices, such as"
            " {my-model: {input: 0.5, output: 1.5}}."
        )
    return {str(model): _parse_price(str(model), prices) for model, prices in data.items()}


def _parse_price(model: str, prices: Any) -> Price:
    if not isinstance(prices, dict):
        raise SettingsError(
            f"price_overrides: {model} must be a mapping with input and output in USD per million"
            " tokens."
        )
    try:
        return Price.model_validate(prices)
    except ValidationError as error:
        # A misspelt key comes first: it is the reason why the right one is missing.
        first, *_ = sorted(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        field = ".".join(str(part) for part in first["loc"][:2] if not str(part).isupper())
        raise SettingsError(f"price_overrides: {model}: {field}: {first['msg'].lower()}.") from None


@cache
def _table() -> dict[str, Price]:
    text = files("holysheep").joinpath("prices.yaml").read_text(encoding="utf-8")
    models = yaml.safe_load(text)["models"]
    return {canonical_id(model): Price.model_validate(prices) for model, prices in models.items()}
