"""What a load would cost with each model, before anything is sent.

A load is so many requests with so many tokens each. Requests that a cache answers cost nothing;
prompt tokens that the provider has cached cost less. All arithmetic is decimal and exact; what is
estimated are the tokens of a text, and whoever shows them says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from holysheep.errors import InputError
from holysheep.params import CostParams
from holysheep.pricing import Price, PriceBook, PriceSource, canonical_id
from holysheep.result import usd_number
from holysheep.tokens import estimate_tokens
from holysheep.types import JsonObject, Usage


@dataclass(frozen=True, slots=True)
class ModelEstimate:
    """The cost of a load with one model in USD.

    ``compare_usd`` is what all its requests would cost at the model's ``compare_at`` price,
    without this cache; ``None`` where there is no such price.
    """

    model: str
    input_usd: Decimal
    cached_usd: Decimal
    output_usd: Decimal
    compare_usd: Decimal | None
    price_source: PriceSource

    @property
    def total_usd(self) -> Decimal:
        """All of it."""
        return self.input_usd + self.cached_usd + self.output_usd

    @property
    def saving_percent(self) -> float | None:
        """How much less than ``compare_usd`` it is, to a tenth; negative where it is more."""
        if not self.compare_usd:
            return None
        saved = (self.compare_usd - self.total_usd) * 100 / self.compare_usd
        return float(round(saved, 1))

    def to_json(self) -> JsonObject:
        """As a JSON object; money as numbers."""
        return {
            "model": self.model,
            "input_usd": usd_number(self.input_usd),
            "cached_usd": usd_number(self.cached_usd),
            "output_usd": usd_number(self.output_usd),
            "total_usd": usd_number(self.total_usd),
            "compare_usd": usd_number(self.compare_usd),
            "saving_percent": self.saving_percent,
            "price_source": self.price_source,
        }


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of a load with several models, the cheapest first.

    ``usage`` is that of one request; ``is_estimated`` says that its prompt tokens are a guess.
    """

    usage: Usage
    requests: int
    cache_hit_rate: Decimal
    is_estimated: bool
    rows: Sequence[ModelEstimate]
    unpriced: Sequence[str]

    @property
    def cheapest(self) -> ModelEstimate | None:
        """The first row; ``None`` where no model has a price."""
        return self.rows[0] if self.rows else None


def estimate(params: CostParams, prices: PriceBook) -> Estimate:
    """What the load of ``params`` costs. Raises ``InputError`` for a load that is none."""
    prompt_tokens = params.prompt_tokens or estimate_tokens(params.input_text)
    if not prompt_tokens and not params.completion_tokens:
        raise InputError("There is nothing to estimate: give input_text, or prompt_tokens.")
    if params.cached_tokens > prompt_tokens:
        raise InputError(
            f"cached_tokens is a part of the prompt: at most {prompt_tokens}, got"
            f" {params.cached_tokens}."
        )
    usage = Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=params.completion_tokens,
        cached_tokens=params.cached_tokens,
    )
    hit_rate = Decimal(str(params.cache_hit_rate))
    rows = []
    unpriced = []
    # Two spellings of one model are one row, under the first.
    asked = {canonical_id(model): model for model in reversed(params.models or prices.models)}
    for model in reversed(asked.values()):
        price, source = prices.find(model)
        if price is None:
            unpriced.append(model)
        else:
            rows.append(_row(model, price, source, usage, params.requests, hit_rate))
    return Estimate(
        usage=usage,
        requests=params.requests,
        cache_hit_rate=hit_rate,
        is_estimated=not params.prompt_tokens and bool(params.input_text),
        rows=sorted(rows, key=lambda row: (row.total_usd, row.model)),
        unpriced=unpriced,
    )


def _row(
    model: str, price: Price, source: PriceSource, usage: Usage, requests: int, hit_rate: Decimal
) -> ModelEstimate:
    parts = price.parts(usage)
    called = requests * (1 - hit_rate)
    compared = price.compared(usage)
    return ModelEstimate(
        model=model,
        input_usd=parts.input_usd * called,
        cached_usd=parts.cached_usd * called,
        output_usd=parts.output_usd * called,
        compare_usd=None if compared is None else compared * requests,
        price_source=source,
    )
