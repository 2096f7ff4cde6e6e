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

from holysheep.errors import BadRequest, HolySheepError, InvalidOutput
from holysheep.jsontext import parse_json, with_whole_characters
from holysheep.params import schemas
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

_LANGUAGE = re.compile(r"\A[\w-]*\s")
"""What stands behind the opening of a code fence."""


def parse_answer(text: str) -> Any:
    """The JSON value of an answer, a code fence round it allowed.

    Raises ``ValueError`` with what is wrong.
    """
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and len(text) > 5:
        text = _LANGUAGE.sub("", text[3:-3], count=1)
    try:
        return with_whole_characters(parse_json(text))
    except ValueError as error:
        raise ValueError(f"the answer is not JSON ({error})") from None


def check_answer(text: str, schema: JsonObject) -> None:
    """Raise ``ValueError`` with what is wrong with an answer and where; ``{}`` takes any JSON."""
    value = parse_answer(text)
    if not schema:
        return
    problem = schemas().problem_of(value, schema)
    if problem:
        raise ValueError(f"the answer breaks the schema: {problem}")


class StructuredLayer:
    """Makes sure that the answer is what ``Policy.answer_schema`` describes."""

    def __call__(self, call: Call, proceed: Handler) -> Iterator[Event]:
        """Pass the call on and hold its answer back until it is checked."""
        schema = call.policy.answer_schema
        if schema is None:
            yield from proceed(call)
            return
        completion, call = self._ask(call, proceed, schema)
        problem = _problem(completion, schema)
        if problem and completion.first.finish_reason != "length":
            again = call.asking(_correction(call.request, completion.first.text, problem))
            try:
                second = _completion_of(proceed(again))
            except HolySheepError as failure:
                # What it failed for decides what becomes of the call; why it was asked at all is
                # what its author can change.
                failure.message = (
                    f"{_no_json(completion, problem)} It was asked for once more, which failed:"
                    f" {failure.message}"
                )
                failure.unusable = completion
                raise
            completion = replace(second, earlier=(completion.usage,))
            problem = _problem(completion, schema)
        if problem:
            error = _invalid(problem, completion)
            error.unusable = completion
            raise error
        choice = completion.first
        if choice.text or choice.reasoning:
            yield Delta(choice.text, choice.reasoning, is_last=True)
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


def _problem(completion: Completion, schema: JsonObject) -> str:
    """What is wrong with an answer, or nothing. One that calls a tool is no answer yet."""
    if completion.first.tool_calls:
        return ""
    try:
        check_answer(completion.first.text, schema)
    except ValueError as error:
        return str(error)
    return ""


def _correction(request: ChatRequest, answer: str, problem: str) -> ChatRequest:
    """The request again, with the answer that cannot be used and why."""
    advice = f"This cannot be used: {problem}. Answer again, with the corrected JSON only."
    return request.with_messages(
        [
            *request.body["messages"],
            {"role": "assistant", "content": answer},
            {"role": "user", "content": advice},
        ]
    )


def _completion_of(events: Iterator[Event]) -> Completion:
    *_, last = events
    if not isinstance(last, Completed):
        raise TypeError("a call ended without Completed")
    return last.completion


def _invalid(problem: str, completion: Completion) -> InvalidOutput:
    advice = (
        "It was cut off by max_tokens; raise it."
        if completion.first.finish_reason == "length"
        else "Simplify the schema, or use a stronger model."
    )
    return InvalidOutput(
        f"{_no_json(completion, problem)} {advice}", request_id=completion.request_id
    )


def _no_json(completion: Completion, problem: str) -> str:
    return f"No usable JSON from {completion.model}: {problem}."


def _is_about_response_format(error: BadRequest) -> bool:
    told = f"{error.param} {error.message}".lower()
    return "response_format" in told or "json_schema" in told


def _without_json_schema(request: ChatRequest, schema: JsonObject) -> ChatRequest | None:
    """The request with the schema as an instruction; ``None`` if it asks for none."""
    asked = request.body.get("response_format")
    if not isinstance(asked, dict) or asked.get("type") != "json_schema":
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
