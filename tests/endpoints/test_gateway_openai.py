"""The gateway as the official OpenAI client meets it, unchanged but for its base URL."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest

from devtools.upstream import behaviours as do
from tests.endpoints.support import COST_USD, PRICED, USAGE, fresh_token

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.endpoints.support import Endpoint

ASK: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]
TWO_CALLS = do.ok(
    tool_calls=[
        do.tool_call("weather", {"city": "Bern", "note": 'a "quoted" \\ text'}, "call_1"),
        do.tool_call("weather", {"city": "Genève"}, "call_2"),
    ]
)


@contextmanager
def client_of(endpoint: Endpoint, **options: Any) -> Iterator[openai.OpenAI]:
    given = {"api_key": endpoint.token, "max_retries": 0, "timeout": 20.0, **options}
    with openai.OpenAI(base_url=endpoint.url + "/v1", **given) as client:
        yield client


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    with client_of(endpoint) as client:
        yield client


# --- answers ------------------------------------------------------------------------------------


def test_chat(client: openai.OpenAI, endpoint: Endpoint) -> None:
    endpoint.upstream.script(do.ok("Because of Rayleigh.", usage=USAGE))
    answer = client.chat.completions.create(model=PRICED, messages=ASK)
    assert answer.object == "chat.completion"
    assert answer.id
    assert answer.model == PRICED
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "Because of Rayleigh."
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == USAGE["total_tokens"]


def test_headers_of_an_answer_are_readable(client: openai.OpenAI, endpoint: Endpoint) -> None:
    endpoint.upstream.default(do.ok(usage=USAGE))
    raw = client.chat.completions.with_raw_response.create(model=PRICED, messages=ASK)
    assert raw.headers["x-holysheep-cache"] == "miss"
    assert float(raw.headers["x-holysheep-cost-usd"]) == COST_USD
    assert raw.request_id
    again = client.chat.completions.with_raw_response.create(
        model=PRICED, messages=ASK, extra_headers={"x-holysheep-cache": "refresh"}
    )
    assert again.headers["x-holysheep-cache"] == "refresh"


def test_stream(client: openai.OpenAI, endpoint: Endpoint) -> None:
    endpoint.upstream.script(do.ok(chunks=["Because ", "of ", "Rayleigh."], chunk_delay_ms=60))
    stream = client.chat.completions.create(model="m", messages=ASK, stream=True)
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Because of Rayleigh."
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("time_of_asking", ["first", "cached"])
def test_usage_of_a_stream(client: openai.OpenAI, endpoint: Endpoint, time_of_asking: str) -> None:
    endpoint.upstream.default(do.ok("Blue.", usage=USAGE))
    asked: dict[str, Any] = {"model": PRICED, "messages": ASK}
    if time_of_asking == "cached":
        client.chat.completions.create(**asked)
    stream = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == USAGE["total_tokens"]
    assert endpoint.calls == 1


def test_stream_helper_of_the_client_puts_the_answer_together(
    client: openai.OpenAI, endpoint: Endpoint
) -> None:
    endpoint.upstream.script(TWO_CALLS)
    with client.chat.completions.stream(model="m", messages=ASK, tools=TOOLS) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_completion()
    calls = answer.choices[0].message.tool_calls or []
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Bern", "Genève"]


def test_tools(client: openai.OpenAI, endpoint: Endpoint) -> None:
    endpoint.upstream.script(TWO_CALLS)
    answer = client.chat.completions.create(
        model="m", messages=ASK, tools=TOOLS, tool_choice="required"
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    first, second = choice.message.tool_calls or []
    assert (first.id, first.type, second.id) == ("call_1", "function", "call_2")
    assert first.type == "function"
    assert json.loads(first.function.arguments) == {"city": "Bern", "note": 'a "quoted" \\ text'}
    (sent,) = endpoint.bodies
    assert sent["tools"] == TOOLS
    assert sent["tool_choice"] == "required"


@pytest.mark.parametrize(
    "spelling", [{}, {"tool_fragments": 1}, {"tool_index": False}], ids=["usual", "whole", "bare"]
)
def test_tools_streamed(
    client: openai.OpenAI, endpoint: Endpoint, spelling: dict[str, Any]
) -> None:
    answer = {k: v for k, v in TWO_CALLS.items() if k != "kind"}
    endpoint.upstream.script(do.sse(**spelling, **answer))
    stream = client.chat.completions.create(model="m", messages=ASK, tools=TOOLS, stream=True)
    calls: dict[int, dict[str, str]] = {}
    finish = ""
    for chunk in stream:
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            for part in choice.delta.tool_calls or []:
                call = calls.setdefault(part.index, {"id": "", "name": "", "arguments": ""})
                call["id"] += part.id or ""
                assert part.function is not None
                call["name"] += part.function.name or ""
                call["arguments"] += part.function.arguments or ""
    assert finish == "tool_calls"
    assert [calls[number]["id"] for number in sorted(calls)] == ["call_1", "call_2"]
    assert {call["name"] for call in calls.values()} == {"weather"}
    assert json.loads(calls[1]["arguments"]) == {"city": "Genève"}


def test_conversation_with_tool_results_arrives_upstream(
    client: openai.OpenAI, endpoint: Endpoint
) -> None:
    endpoint.upstream.script(TWO_CALLS)
    answer = client.chat.completions.create(model="m", messages=ASK, tools=TOOLS)
    said: Any = answer.choices[0].message.model_dump(exclude_none=True)
    results: list[Any] = [
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        for call in answer.choices[0].message.tool_calls or []
    ]
    client.chat.completions.create(model="m", messages=[*ASK, said, *results], tools=TOOLS)
    assert endpoint.bodies[-1]["messages"] == [*ASK, said, *results]


def test_vision(client: openai.OpenAI, endpoint: Endpoint) -> None:
    content: Any = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "high"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png?a=b"}},
    ]
    answer = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": content}]
    )
    assert "2 images" in (answer.choices[0].message.content or "")
    assert endpoint.bodies[-1]["messages"][0]["content"] == content


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_several_choices(client: openai.OpenAI, endpoint: Endpoint, stream: bool) -> None:
    asked: dict[str, Any] = {"model": "m", "messages": ASK, "n": 2}
    texts = {0: "", 1: ""}
    if stream:
        for chunk in client.chat.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    else:
        for choice in client.chat.completions.create(**asked).choices:
            texts[choice.index] = choice.message.content or ""
    assert endpoint.bodies[-1]["n"] == 2
    assert texts[1] == f"{texts[0]} (1)"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_logprobs(client: openai.OpenAI, endpoint: Endpoint, stream: bool) -> None:
    endpoint.upstream.default(do.ok(chunks=["Blue ", "sky."], logprobs=True))
    asked: dict[str, Any] = {
        "model": "m",
        "messages": ASK,
        "logprobs": True,
        "top_logprobs": 2,
    }
    tokens = []
    if stream:
        for chunk in client.chat.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                if choice.logprobs:
                    tokens += choice.logprobs.content or []
    else:
        (choice,) = client.chat.completions.create(**asked).choices
        assert choice.logprobs is not None
        tokens = choice.logprobs.content or []
    assert [token.token for token in tokens] == ["Blue ", "sky."]
    assert {token.logprob for token in tokens} == {-0.25}
    assert endpoint.bodies[-1]["top_logprobs"] == 2


def test_response_format(client: openai.OpenAI, endpoint: Endpoint) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"type": "string"}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    wanted: Any = {
        "type": "json_schema",
        "json_schema": {"name": "sky", "strict": True, "schema": schema},
    }
    answer = client.chat.completions.create(model="m", messages=ASK, response_format=wanted)
    assert set(json.loads(answer.choices[0].message.content or "")) == {"colour"}
    assert endpoint.bodies[-1]["response_format"] == wanted


def test_answer_that_is_not_the_json_asked_for_is_the_caller_s_to_judge(
    client: openai.OpenAI, endpoint: Endpoint
) -> None:
    endpoint.upstream.default(do.ok("no json at all"))
    answer = client.chat.completions.create(
        model="m", messages=ASK, response_format={"type": "json_object"}
    )
    assert answer.choices[0].message.content == "no json at all"
    assert endpoint.calls == 1


def test_unknown_parameters_are_passed_through(client: openai.OpenAI, endpoint: Endpoint) -> None:
    extra = {"top_k": 40, "thinking": {"type": "enabled", "budget_tokens": 1024}, "min_p": None}
    client.chat.completions.create(model="m", messages=ASK, extra_body=extra)
    (sent,) = endpoint.bodies
    assert {name: sent[name] for name in extra} == extra


def test_reasoning_is_readable(client: openai.OpenAI, endpoint: Endpoint) -> None:
    endpoint.upstream.default(do.ok("Blue.", reasoning="Let me see."))
    message = client.chat.completions.create(model="m", messages=ASK).choices[0].message
    assert getattr(message, "reasoning_content", None) == "Let me see."


def test_models(client: openai.OpenAI, endpoint: Endpoint) -> None:
    endpoint.upstream.script(do.model_list("one", "two"), model="@models")
    models = list(client.models.list())
    assert [model.id for model in models] == ["one", "two"]
    assert {model.object for model in models} == {"model"}


def test_async_client(endpoint: Endpoint) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=endpoint.url + "/v1", api_key=endpoint.token, max_retries=0
        ) as client:

            async def one(number: int) -> str:
                messages: list[Any] = [{"role": "user", "content": f"number {number}"}]
                if number % 2:
                    answer = await client.chat.completions.create(model="m", messages=messages)
                    return answer.choices[0].message.content or ""
                stream = await client.chat.completions.create(
                    model="m", messages=messages, stream=True
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return list(await asyncio.gather(*(one(number) for number in range(20))))

    texts = asyncio.run(ask())
    for number, text in enumerate(texts):
        assert text.startswith(f"You said: number {number} [")


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (do.status(400, param="temperature"), openai.BadRequestError),
        (do.unknown_model(), openai.NotFoundError),
        (do.unknown_model(400), openai.BadRequestError),
        (do.status(422), openai.UnprocessableEntityError),
        (do.rate_limited(retry_after=3600), openai.RateLimitError),
        (do.quota_exhausted(), openai.APIStatusError),
        (do.status(401), openai.InternalServerError),
        (do.status(403), openai.InternalServerError),
        (do.malformed("not_json"), openai.InternalServerError),
    ],
    ids=["400", "404", "404as400", "422", "429", "402", "401", "403", "not_json"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_error_is_one_of_the_client_s_classes(
    client: openai.OpenAI,
    endpoint: Endpoint,
    behaviour: do.Behaviour,
    kind: type[openai.APIStatusError],
    stream: bool,
) -> None:
    endpoint.upstream.default(behaviour)
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="m", messages=ASK, stream=stream)
    error = caught.value
    assert type(error) is kind
    assert isinstance(error.body, dict)
    assert error.body["message"]
    assert error.type


def test_parameter_and_code_of_an_error_are_readable(
    client: openai.OpenAI, endpoint: Endpoint
) -> None:
    endpoint.upstream.default(do.unknown_model())
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="m", messages=ASK)
    error = caught.value
    assert (error.param, error.code) == ("model", "model_not_found")


def test_wrong_token_is_an_authentication_error(endpoint: Endpoint) -> None:
    with (
        client_of(endpoint, api_key=fresh_token()) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_budget_is_a_status_error_with_402(endpoint: Endpoint) -> None:
    poor = endpoint.like(daily_budget_usd="0.000001")
    with client_of(poor) as client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=PRICED, messages=ASK)
    assert caught.value.status_code == 402
    assert caught.value.type == "insufficient_quota"


def test_missing_key_is_an_internal_server_error(endpoint: Endpoint) -> None:
    keyless = endpoint.like(api_key=None)
    with client_of(keyless) as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="m", messages=ASK)
    assert caught.value.status_code == 503


def test_error_in_mid_stream_is_an_api_error(client: openai.OpenAI, endpoint: Endpoint) -> None:
    endpoint.upstream.script(do.reset("chunks", chunks=3, text="one two three four five six"))
    stream = client.chat.completions.create(model="m", messages=ASK, stream=True)
    assert next(stream).choices
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert not isinstance(caught.value, openai.APIStatusError)


def test_client_comes_back_when_retry_after_says_so(endpoint: Endpoint) -> None:
    """The gateway tries four times itself; the fifth request is the client's second."""
    endpoint.upstream.script(*[do.rate_limited(retry_after_ms=1)] * 4)
    began_s = time.perf_counter()
    with client_of(endpoint, max_retries=1) as client:
        answer = client.chat.completions.create(model="m", messages=ASK)
    assert answer.choices[0].message.content
    assert endpoint.calls == 5
    assert 1.0 <= time.perf_counter() - began_s < 3.0, "Retry-After was one second"


def test_client_does_not_come_back_for_what_it_cannot_mend(endpoint: Endpoint) -> None:
    endpoint.upstream.default(do.status(400))
    with client_of(endpoint, max_retries=5) as client, pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="m", messages=ASK)
    assert endpoint.calls == 1
