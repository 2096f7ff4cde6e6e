"""The HolySheep Chain node: steps that build on each other."""

from typing import Any

from dify_plugin import Tool

from holysheep.chain import Chain
from holysheep.params import ChainParams
from holysheep.reading import chosen, parsed
from host import process
from nodes import _adapter


class HolySheepChainNode(Tool):
    """A query and steps in, one chain of the engine, the last answer and all results out."""

    def _invoke(self, tool_parameters: dict[str, Any]) -> _adapter.Messages:
        started_s = process.clock().monotonic()
        with (
            _adapter.host_errors(self),
            process.invocation(self.session, "chain", lasts=True) as invocation,
        ):
            engine = _adapter.engine_of(self)
            given = chosen(tool_parameters, default_model=engine.settings.default_model)
            chain = Chain(
                engine,
                parsed(ChainParams, given),
                clock=process.clock(),
                app_id=self.session.app_id,
                user_id=self.runtime.user_id,
                started_s=started_s,
                invocation=invocation,
            )
            shown = ""
            for piece in _adapter.paced(chain):
                shown += piece
                yield self.create_text_message(piece)
            chain.raise_if_nothing_was_answered()
            yield from _adapter.text(self, chain.rest_of_text(shown))
            yield from self._outputs(chain)

    def _outputs(self, chain: Chain) -> _adapter.Messages:
        results = {f"step_{n}": step.to_json() for n, step in enumerate(chain.results)}
        _adapter.check_fits("results", results)
        yield from _adapter.string(self, "final", chain.final)
        yield from _adapter.string(self, "status", chain.status)
        for name, value in (
            ("steps_ok", len(chain.answered)),
            ("steps_failed", len(chain.failed)),
            ("tokens_used", chain.tokens_used),
            ("cost_usd", chain.cost_usd),
            ("latency_ms", round(chain.elapsed_s * 1000, 3)),
        ):
            yield from _adapter.figure(self, name, value)
        yield _adapter.variable(self, "results", results)
