"""Answers that must be JSON: parsed, checked against a schema, asked for once more if wrong.

An answer that breaks the schema never leaves this layer, so it is never cached and never shown.
The second request carries the first answer and what was wrong with it; both are paid for, so the
usage of both is reported. A gateway that does not know ``json_schema`` as a response format is
asked for a JSON object instead, with the schema in the instructions.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing.jsonschema import EMPTY_REGISTRY

from holysheep.errors import BadRequest, InvalidOutput
from holysheep.jsontext import parse_json, with_whole_characters
from holysheep.schema import where
from holysheep.types import (
    Call,
    ChatRequest,
    Completed,
    Completion,
    Delta,
    Event,
    Handler,
    JsonObject,
)

_FENCE = re.compile(r"^\s*```[\w-]*\s*(.*?)\s*```\s*$", re.DOTALL)


def parse_answer(text: str, schema: JsonObject) -> Any:
    """The JSON value of an answer, a code fence round it allowed.

    Raises ``ValueError`` with what is wrong and where.
    """
    fenced = _FENCE.match(text)
    try:
        value = with_whole_characters(parse_json(fenced.group(1) if fenced else text))
    except ValueError as error:
        raise ValueError(f"the answer is not JSON ({error})") from None
    if schema:
        # A registry of its own: a $ref to somewhere else must not make this process fetch it.
        validator = Draft202012Validator(schema, registry=EMPTY_REGISTRY)
        try:
            problem = best_match(validator.iter_errors(value))
        except RecursionError:
            raise ValueError("the schema refers to itself without end") from None
        if problem is not None:
            raise ValueError(f"the answer breaks the schema: {where(problem)}")
    return value


class StructuredLayer:
    """Makes sure that the answer is what ``Policy.answer_schema`` describes."""

    def __call__(self, call: Call, proceed: Handler) -> Iterator[Event]:
        """Pass the call on and hold its answer back until it is checked."""
        schema = call.policy.answer_schema
        if schema is None:
            yield from proceed(call)
            return
        completion, call = self._ask(call, proceed, schema)
        if not completion.first.tool_calls:
            completion = self._checked(completion, call, proceed, schema)
        if completion.first.text or completion.first.reasoning:
            yield Delta(text=completion.first.text, reasoning=completion.first.reasoning)
        yield Completed(completion)

    def _ask(self, call: Call, proceed: Handler, schema: JsonObject) -> tuple[Completion, Call]:
        try:
            return _completion_of(proceed(call)), call
        except BadRequest as error:
            plain = _without_json_schema(call.request, schema)
            if plain is None or not _is_about_response_format(error):
                raise
            call = call.asking(plain)
            return _completion_of(proceed(call)), call

    def _checked(
        self, completion: Completion, call: Call, proceed: Handler, schema: JsonObject
    ) -> Completion:
        try:
            return _with_structure(completion, schema)
        except ValueError as problem:
            if completion.first.finish_reason == "length":
                raise _invalid(problem, completion) from None
            correction = call.request.with_messages(
                [
                    *call.request.body["messages"],
                    {"role": "assistant", "content": completion.first.text},
                    {
                        "role": "user",
                        "content": f"This cannot be used: {problem}."
                        " Answer again, with the corrected JSON only.",
                    },
                ]
            )
        second = _completion_of(proceed(call.asking(correction)))
        second = replace(second, usage=completion.usage + second.usage)
        try:
            return _with_structure(second, schema)
        except ValueError as problem:
            raise _invalid(problem, second) from None


def _completion_of(events: Iterator[Event]) -> Completion:
    *_, last = events
    if not isinstance(last, Completed):
        raise TypeError("a call ended without Completed")
    return last.completion


def _with_structure(completion: Completion, schema: JsonObject) -> Completion:
    return replace(completion, structured=parse_answer(completion.first.text, schema))


def _invalid(problem: ValueError, completion: Completion) -> InvalidOutput:
    advice = (
        "It was cut off by max_tokens; raise it."
        if completion.first.finish_reason == "length"
        else "Simplify the schema, or use a stronger model."
    )
    return InvalidOutput(
        f"No usable JSON from {completion.model}: {problem}. {advice}",
        request_id=completion.request_id,
    )


def _is_about_response_format(error: BadRequest) -> bool:
    told = f"{error.param} {error.message}".lower()
    return "response_format" in told or "json_schema" in told


def _without_json_schema(request: ChatRequest, schema: JsonObject) -> ChatRequest | None:
    """The request with the schema as an instruction; ``None`` if it asks for none."""
    if request.body.get("response_format", {}).get("type") != "json_schema":
        return None
    instruction = {
        "role": "system",
        "content": "Answer with JSON only, valid against this JSON Schema: "
        + json.dumps(schema, ensure_ascii=False),
    }
    return ChatRequest(
        {
            **request.body,
            "response_format": {"type": "json_object"},
            "messages": [instruction, *request.body["messages"]],
        }
    )
