"""The HolySheep Cost node: what a load would cost, before anything is sent."""

from typing import Any

from dify_plugin import Tool

from holysheep.estimate import Estimate, estimate
from holysheep.params import CostParams
from holysheep.pricing import PriceBook
from holysheep.reading import parsed, set_values
from holysheep.report import cost_report
from holysheep.settings import parse_settings
from nodes import _adapter


class HolySheepCostNode(Tool):
    """A load in, its cost with each model out. Makes no call."""

    def _invoke(self, tool_parameters: dict[str, Any]) -> _adapter.Messages:
        with _adapter.host_errors(self):
            settings = parse_settings(self.runtime.credentials)
            params = parsed(CostParams, set_values(tool_parameters))
            found = estimate(params, PriceBook(settings.price_overrides))
            yield from _adapter.text(self, cost_report(found))
            yield from self._outputs(found)

    def _outputs(self, found: Estimate) -> _adapter.Messages:
        cheapest = found.cheapest
        yield from _adapter.string(self, "cheapest_model", cheapest.model if cheapest else "")
        yield from _adapter.figure(self, "cost_usd", cheapest.total_usd if cheapest else None)
        yield _adapter.variable(self, "rows", [row.to_json() for row in found.rows])
        yield _adapter.variable(self, "unpriced", list(found.unpriced))
