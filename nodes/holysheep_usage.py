"""The HolySheep Usage node: what the requests of this credential came to."""

from typing import Any

from dify_plugin import Tool

from holysheep.params import UsageParams
from holysheep.reading import parsed, set_values
from holysheep.report import usage_report
from holysheep.settings import parse_settings
from holysheep.usage import Usage, UsageRow, read_usage
from host import process
from nodes import _adapter


class HolySheepUsageNode(Tool):
    """A period in, its usage out. Makes no call, and is none that is counted."""

    def _invoke(self, tool_parameters: dict[str, Any]) -> _adapter.Messages:
        with _adapter.host_errors(self), process.invocation(self.session, "usage") as invocation:
            params = parsed(UsageParams, set_values(tool_parameters))
            usage = read_usage(
                invocation.ledger,
                params.period,
                process.clock(),
                credential=parse_settings(self.runtime.credentials),
                give_way=process.give_way,
            )
            yield from _adapter.text(self, usage_report(usage, params.group_by))
            yield from self._outputs(usage, usage.rows[params.group_by])

    def _outputs(self, usage: Usage, rows: tuple[UsageRow, ...]) -> _adapter.Messages:
        totals = usage.totals
        for name, value in (
            ("total_requests", totals.requests),
            ("total_tokens", totals.total_tokens),
            ("cached_requests", totals.cached_requests),
            ("failed_requests", totals.failed_requests),
            ("total_cost_usd", totals.cost_usd),
            ("saved_usd", totals.saved_usd),
            ("cache_hit_rate", usage.cache_hit_rate),
            ("unpriced_requests", totals.unpriced_requests),
        ):
            yield from _adapter.figure(self, name, value)
        document = usage.to_json()
        yield _adapter.variable(self, "rows", [row.to_json() for row in rows])
        yield _adapter.variable(self, "budget", document["budget"])
        yield self.create_json_message(document)
