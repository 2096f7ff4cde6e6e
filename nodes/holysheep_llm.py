"""The HolySheep LLM node: one chat completion."""

from typing import Any

from dify_plugin import Tool

from holysheep.engine import Answer
from holysheep.errors import HolySheepError
from holysheep.ledger import Invocation
from holysheep.params import ChatParams, parse_call
from holysheep.result import ChatResult
from host import process
from nodes import _adapter


class HolySheepLLMNode(Tool):
    """Parameters in, one call of the engine, messages out."""

    def _invoke(self, tool_parameters: dict[str, Any]) -> _adapter.Messages:
        started_s = process.clock().monotonic()
        with _adapter.host_errors(self), process.invocation(self.session, "llm") as invocation:
            params, answer = self._ask(tool_parameters, started_s, invocation)
            try:
                yield from self._text(params, answer)
                result, error = answer.result, None
            except HolySheepError as failure:
                if params.on_error == "fail":
                    raise
                result, error = answer.failure(), failure
            yield from self._outputs(result, error)

    def _ask(
        self, raw: dict[str, Any], started_s: float, invocation: Invocation
    ) -> tuple[ChatParams, Answer]:
        engine = _adapter.engine_of(self)
        files = raw.pop("files", None)
        params, conversation, request = parse_call(raw, default_model=engine.settings.default_model)
        if files:
            images = _adapter.images_of(files, deadline_s=started_s + params.timeout_s)
            request = params.request(conversation.messages(images))
        answer = engine.ask(
            request,
            params.policy(app_id=self.session.app_id, user_id=self.runtime.user_id),
            timeout_s=params.timeout_s,
            stream=params.answer_schema is None,
            shows_reasoning=False,
            started_s=started_s,
            invocation=invocation,
        )
        return params, answer

    def _text(self, params: ChatParams, answer: Answer) -> _adapter.Messages:
        """The answer as it arrives; one that is checked first, when it has passed."""
        if params.answer_schema is None:
            for piece in _adapter.paced(answer):
                yield self.create_text_message(piece)
            _adapter.check_fits("tool calls", answer.result.tool_calls)
        else:
            result = answer.wait()
            _adapter.check_fits("JSON", result.structured)
            yield from _adapter.text(self, result.text)

    def _outputs(self, result: ChatResult, error: HolySheepError | None) -> _adapter.Messages:
        """Every declared output, on every path: Dify cuts an Answer off at one that is missing."""
        for name, value in (
            ("result", result.text),
            ("reasoning", result.reasoning),
            ("model_used", result.model_used),
            ("finish_reason", result.finish_reason),
            ("status", "error" if error else "ok"),
            ("error", error.message if error else ""),
            ("error_type", error.error_type if error else ""),
        ):
            yield from _adapter.string(self, name, value)
        yield from _adapter.figure(self, "cached", result.cached)
        yield from _adapter.figure(self, "latency_ms", result.latency_ms)
        yield from _adapter.figure(self, "tokens_used", result.tokens_used)
        yield from _adapter.figure(self, "cost_usd", result.cost_usd)
        yield _adapter.variable(self, "structured", _as_object(result.structured))
        yield _adapter.variable(self, "tool_calls", result.tool_calls)
        yield _adapter.variable(self, "usage", result.usage.to_json())
        yield _adapter.variable(self, "meta", result.meta.to_json())


def _as_object(structured: Any) -> dict[str, Any]:
    """The parsed answer as the object that the output is declared to be."""
    match structured:
        case None:
            return {}
        case dict():
            return structured
        case list():
            return {"items": structured}
        case _:
            return {"value": structured}
