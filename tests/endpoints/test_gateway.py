"""The gateway on the wire: what goes up, what comes back, cache, limits, budgets, failures."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from devtools.upstream import behaviours as do
from tests.endpoints.support import (
    CHAT,
    COST_USD,
    MODELS,
    PRICED,
    USAGE,
    check_error,
    events,
    fresh_token,
    message,
    text_of,
)
from tests.nodes.servers import LoopbackServer, closed_port, event_stream, json_answer
from tests.nodes.support import fresh_key

if TYPE_CHECKING:
    from tests.endpoints.support import Endpoint

STREAM = {"stream": True}
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}

PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
EVERYTHING: dict[str, Any] = {
    "model": "vendor/model:free@2",
    "messages": [
        {"role": "system", "content": "Be brief.", "name": "boss"},
        {"role": "developer", "content": "Be kind."},
        {
            "role": "user",
            "content": [
                {
                    "type": "text",
                    "text": "What is in this picture?",
                    "cache_control": {"type": "x"},
                },
                {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png?b=c&d=é"}},
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                {"type": "file", "file": {"file_id": "file-1"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "look", "arguments": '{"at": "the \\"sky\\""}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "blue"},
    ],
    "temperature": 0.123456789,
    "top_p": 1,
    "max_tokens": 17,
    "n": 1,
    "seed": -(2**53),
    "stop": ["\n", "END"],
    "presence_penalty": -2,
    "frequency_penalty": 2,
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "top_logprobs": 5,
    "user": "somebody",
    "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "response_format": {"type": "text"},
    "reasoning_effort": "low",
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "prediction": {"type": "content", "content": "x"},
    "x_unknown": {"deep": [1, 2.5, None, True, "\u2028 𝄞"]},
}


def headers_of_last(endpoint: Endpoint) -> dict[str, str]:
    headers: dict[str, str] = endpoint.upstream.requests()[-1]["headers"]
    return headers


# --- what goes upstream -------------------------------------------------------------------------


def test_everything_in_a_body_arrives_upstream_unchanged(endpoint: Endpoint) -> None:
    endpoint.ok(EVERYTHING)
    (sent,) = endpoint.bodies
    assert {name: sent[name] for name in EVERYTHING} == EVERYTHING
    assert set(sent) - set(EVERYTHING) <= {"stream", "stream_options"}
    assert not sent.get("stream")


def test_everything_in_a_streamed_body_arrives_upstream_unchanged(endpoint: Endpoint) -> None:
    endpoint.ok(EVERYTHING | STREAM)
    (sent,) = endpoint.bodies
    assert {name: sent[name] for name in EVERYTHING} == EVERYTHING
    assert sent["stream"] is True
    assert set(sent) - set(EVERYTHING) <= {"stream", "stream_options"}


def test_nothing_is_added_that_the_caller_did_not_ask_for(endpoint: Endpoint) -> None:
    endpoint.ok(message(model="m-1"))
    (sent,) = endpoint.bodies
    assert set(sent) <= {"model", "messages", "stream", "stream_options"}


def test_request_without_a_model_asks_the_default_one(endpoint: Endpoint) -> None:
    endpoint.ok(message())
    assert endpoint.bodies[-1]["model"] == endpoint.model


def test_no_header_of_the_caller_goes_upstream(endpoint: Endpoint) -> None:
    evil = {
        "Cookie": "session=1",
        "X-Evil": "1",
        "User-Agent": "curl/1",
        "Accept-Language": "xx",
        "OpenAI-Organization": "org-evil",
        "OpenAI-Project": "evil",
        "X-Api-Key": "evil",
        "Api-Key": "evil",
        "X-Stainless-Lang": "evil",
        "X-Request-Id": "evil",
        "Traceparent": "00-evil",
        "Forwarded": "for=evil",
        "X-HTTP-Method-Override": "DELETE",
        "Referer": "http://evil/",
        "Origin": "http://evil",
    }
    endpoint.ok(message("plain"))
    plain = headers_of_last(endpoint)
    endpoint.ok(message("evils"), **evil)
    assert headers_of_last(endpoint) == plain
    assert plain["authorization"] == f"Bearer {endpoint.key}"
    assert not {"dify-hook-id", "dify-hook-url", "cookie", "x-forwarded-proto"} & set(plain)


@pytest.mark.parametrize(
    ("auth_header", "expected"),
    [
        ("bearer", {"authorization"}),
        ("x-api-key", {"x-api-key"}),
        ("both", {"authorization", "x-api-key"}),
    ],
)
def test_key_goes_upstream_as_the_settings_say(
    endpoint: Endpoint, auth_header: str, expected: set[str]
) -> None:
    endpoint.like(auth_header=auth_header).ok()
    sent = headers_of_last(endpoint)
    assert {"authorization", "x-api-key"} & set(sent) == expected
    assert all(endpoint.key in sent[name] for name in expected)


# --- what comes back ----------------------------------------------------------------------------


def test_answer_is_the_one_of_upstream(endpoint: Endpoint) -> None:
    body = {
        "id": "chatcmpl-abc",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": "m-2026",
        "system_fingerprint": "fp_1",
        "service_tier": "default",
        "x_vendor": {"a": [1]},
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Blue.",
                    "refusal": None,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": "stop",
                "content_filter_results": {},
            }
        ],
        "usage": {
            **USAGE,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }
    with LoopbackServer({"*": json_answer(body)}) as upstream:
        answer = endpoint.like(base_url=upstream.url + "/v1").ok(message(model="m"))
    told = answer.json()
    for name in ("object", "model"):
        assert told[name] == body[name]
    assert told["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Blue.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert {name: told["usage"][name] for name in USAGE} == USAGE


def test_answer_names_its_content_and_is_not_to_be_kept(endpoint: Endpoint) -> None:
    answer = endpoint.ok()
    assert answer.headers["Content-Type"].startswith("application/json")
    assert "no-store" in answer.headers["Cache-Control"]


def test_stream_is_one_of_events_and_ends_in_done(endpoint: Endpoint) -> None:
    answer = endpoint.ok(message() | STREAM)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert "no-" in answer.headers["Cache-Control"]
    *chunks, done = events(answer.body)
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert all(chunk["choices"] for chunk in chunks), "usage that nobody asked for"
    assert not any(chunk.get("usage") for chunk in chunks)


def test_stream_says_the_same_as_the_whole_answer(endpoint: Endpoint) -> None:
    whole = endpoint.ok(message("hi"), x_holysheep_cache="bypass")
    streamed = endpoint.ok(message("hi") | STREAM, x_holysheep_cache="bypass")
    assert endpoint.calls == 2
    assert text_of(streamed) == text_of(whole)


def test_stream_tells_its_usage_once_when_asked_to(endpoint: Endpoint) -> None:
    endpoint.upstream.script(do.ok("Blue it is.", usage=USAGE))
    *chunks, last, done = events(endpoint.ok(message() | WITH_USAGE).body)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert {name: last["usage"][name] for name in USAGE} == USAGE
    assert all(not chunk.get("usage") and chunk["choices"] for chunk in chunks)


def test_stream_options_without_a_stream_are_left_to_upstream(endpoint: Endpoint) -> None:
    """OpenAI answers 400; some gateways do not mind."""
    answer = endpoint.chat(message(stream_options={"include_usage": True}))
    assert answer.status in {200, 400}


def test_stream_comes_as_it_is_written(endpoint: Endpoint) -> None:
    words = ["one ", "two ", "three ", "four"]
    endpoint.upstream.script(do.ok(chunks=words, chunk_delay_ms=200))
    answer = endpoint.ok(message() | STREAM)
    assert text_of(answer) == "".join(words)
    assert answer.first_ms is not None
    assert answer.first_ms < 400
    assert answer.elapsed_ms >= 600
    assert len(answer.chunks) >= 3


@pytest.mark.parametrize(
    "spelling",
    [
        do.sse(line_end="\r\n", chunks=["a ", "b ", "c"]),
        do.sse(line_end="\r", chunks=["a ", "b ", "c"]),
        do.sse(bom=True, space=False, comments=True, chunks=["a ", "b ", "c"]),
        do.sse(data_lines=True, chunks=["a ", "b ", "c"]),
        do.sse(done=False, chunks=["a ", "b ", "c"]),
        do.sse(final_newline=False, chunks=["a ", "b ", "c"]),
        do.sse(usage_in="every", chunks=["a ", "b ", "c"]),
        do.sse(usage_in="last", chunks=["a ", "b ", "c"]),
        do.sse(split_bytes=3, chunks=["a ", "b ", "c"]),
        do.sse(keep_alive="ping", chunks=["a ", "b ", "c"]),
        do.json_for_stream(text="a b c"),
        do.ok(chunks=["a ", "b ", "c"], prompt_filter=True),
    ],
    ids=[
        *("crlf", "cr", "bom", "data_lines", "no_done", "no_newline", "usage_every", "usage_last"),
        *("split", "keep_alive", "json", "prompt_filter"),
    ],
)
def test_stream_is_well_formed_whatever_upstream_writes(
    endpoint: Endpoint, spelling: do.Behaviour
) -> None:
    endpoint.upstream.script(spelling)
    answer = endpoint.ok(message() | STREAM)
    assert text_of(answer) == "a b c"
    *chunks, done = events(answer.body)
    assert done == "[DONE]"
    assert [c["finish_reason"] for k in chunks for c in k["choices"] if c["finish_reason"]] == [
        "stop"
    ]


def test_stream_of_upstream_is_made_one_answer_when_no_stream_was_asked_for(
    endpoint: Endpoint,
) -> None:
    endpoint.upstream.script(do.sse_for_json(do.sse(usage_in="last", chunks=["a ", "b"])))
    answer = endpoint.ok()
    assert answer.json()["object"] == "chat.completion"
    assert text_of(answer) == "a b"


@pytest.mark.parametrize(
    "text", ["\u2028\u2029\x85", "𝄞 ü 日本", '"\\\n\r\t\x00</script>', "data: x\n\n"]
)
@pytest.mark.parametrize("form", [{}, STREAM], ids=["whole", "stream"])
def test_every_character_survives(endpoint: Endpoint, text: str, form: dict[str, Any]) -> None:
    endpoint.upstream.script(do.ok(chunks=[text, text]))
    assert text_of(endpoint.ok(message() | form)) == text * 2


@pytest.mark.parametrize("style", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("form", [{}, STREAM], ids=["whole", "stream"])
def test_reasoning_comes_back_whatever_upstream_calls_it(
    endpoint: Endpoint, style: Any, form: dict[str, Any]
) -> None:
    endpoint.upstream.script(do.ok("Blue.", reasoning="Let me think.", reasoning_style=style))
    answer = endpoint.ok(message() | form)
    if not form:
        told = answer.json()["choices"][0]["message"]["reasoning_content"]
    else:
        *chunks, _ = events(answer.body)
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        told = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    assert told == "Let me think."
    assert text_of(answer) == "Blue."


@pytest.mark.parametrize("form", [{}, STREAM], ids=["whole", "stream"])
def test_refusal_comes_back(endpoint: Endpoint, form: dict[str, Any]) -> None:
    endpoint.upstream.script(do.ok(refusal="I will not."))
    body = endpoint.ok(message() | form).body.decode()
    assert "I will not." in body or ("I " in body and "will " in body)


def test_long_answer_comes_whole(endpoint: Endpoint) -> None:
    size = 6 * 1024 * 1024
    endpoint.upstream.default(do.ok(size_bytes=size))
    assert len(text_of(endpoint.ok(message("whole")))) == size
    assert len(text_of(endpoint.ok(message("parts") | STREAM))) == size


# --- cache --------------------------------------------------------------------------------------


def cache_of(endpoint: Endpoint, body: Any = None, **headers: str) -> str:
    return endpoint.ok(body, **headers).headers["X-Holysheep-Cache"]


@pytest.mark.parametrize("first", [{}, STREAM, WITH_USAGE], ids=["whole", "stream", "usage"])
@pytest.mark.parametrize("then", [{}, STREAM, WITH_USAGE], ids=["whole", "stream", "usage"])
def test_equal_request_is_answered_from_the_cache_in_the_form_it_asks_for(
    endpoint: Endpoint, first: dict[str, Any], then: dict[str, Any]
) -> None:
    endpoint.upstream.script(do.ok("Blue it is.", usage=USAGE))
    asked = endpoint.ok(message() | first)
    again = endpoint.ok(message() | then)
    assert endpoint.calls == 1
    assert asked.headers["X-Holysheep-Cache"] == "miss"
    assert again.headers["X-Holysheep-Cache"] == "hit"
    assert text_of(again) == text_of(asked) == "Blue it is."
    if then == WITH_USAGE:
        *_, last, _ = events(again.body)
        assert {name: last["usage"][name] for name in USAGE} == USAGE
    elif then == STREAM:
        *chunks, _ = events(again.body)
        assert not any(chunk.get("usage") for chunk in chunks)
    else:
        assert {name: again.json()["usage"][name] for name in USAGE} == USAGE


def test_order_of_keys_makes_no_difference_to_the_cache(endpoint: Endpoint) -> None:
    assert cache_of(endpoint, {"top_p": 1, "seed": 1, **message()}) == "miss"
    assert cache_of(endpoint, {**message(), "seed": 1, "top_p": 1}) == "hit"


@pytest.mark.parametrize(
    "other",
    [
        {"temperature": 0.5},
        {"model": "another"},
        {"seed": 2},
        {"n": 2},
        {"logprobs": True},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"x_unknown": 1},
        {"stop": ["x"]},
        {"max_tokens": 5},
        {"max_completion_tokens": 5},
        {"messages": [{"role": "user", "content": "Why is the sky blue? "}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Why"}]}]},
    ],
    ids=lambda other: next(iter(other)),
)
def test_whatever_may_change_the_answer_is_asked_anew(
    endpoint: Endpoint, other: dict[str, Any]
) -> None:
    assert cache_of(endpoint, message()) == "miss"
    assert cache_of(endpoint, message() | other) == "miss"
    assert endpoint.calls == 2


def test_cached_answer_keeps_choices_tool_calls_and_logprobs(endpoint: Endpoint) -> None:
    for body in (
        message(n=2, logprobs=True),
        message("use a tool", tools=EVERYTHING["tools"], tool_choice="required"),
    ):
        asked = endpoint.ok(body)
        again = endpoint.ok(body)
        assert again.headers["X-Holysheep-Cache"] == "hit"
        assert again.json()["choices"] == asked.json()["choices"]


def test_cache_bypass_neither_reads_nor_stores(endpoint: Endpoint) -> None:
    assert cache_of(endpoint, x_holysheep_cache="bypass") == "bypass"
    assert cache_of(endpoint) == "miss"
    assert cache_of(endpoint, x_holysheep_cache="bypass") == "bypass"
    assert endpoint.calls == 3


def test_cache_refresh_asks_and_stores(endpoint: Endpoint) -> None:
    endpoint.upstream.script(do.ok("old"), do.ok("new"))
    endpoint.ok()
    assert cache_of(endpoint, x_holysheep_cache="refresh") == "refresh"
    again = endpoint.ok()
    assert again.headers["X-Holysheep-Cache"] == "hit"
    assert text_of(again) == "new"
    assert endpoint.calls == 2


@pytest.mark.parametrize(
    "value", ["no-store", "NO-STORE", "max-age=0, no-store", "private,no-store"]
)
def test_no_store_is_never_stored(endpoint: Endpoint, value: str) -> None:
    endpoint.ok(cache_control=value)
    assert cache_of(endpoint) == "miss"


def test_header_of_the_cache_is_read_without_regard_to_case(endpoint: Endpoint) -> None:
    assert cache_of(endpoint, x_holysheep_cache=" ByPass ") == "bypass"


@pytest.mark.parametrize("value", ["yes", "bypass, refresh", "é", "0"])
def test_unknown_word_for_the_cache_is_refused(endpoint: Endpoint, value: str) -> None:
    assert "cache" in endpoint.refusal(message(), x_holysheep_cache=value)["message"]


def test_equal_requests_at_once_are_one_call(endpoint: Endpoint) -> None:
    endpoint.upstream.default(do.ok(latency_ms=300))
    calls = [endpoint.start_chat(message() | form) for form in ({}, STREAM) * 5]
    answers = [endpoint.checked(call.result()) for call in calls]
    assert {answer.status for answer in answers} == {200}
    assert len({text_of(answer) for answer in answers}) == 1
    assert endpoint.calls == 1
    said = sorted(answer.headers["X-Holysheep-Cache"] for answer in answers)
    assert said == ["coalesced"] * 9 + ["miss"]


def test_endpoints_with_different_keys_share_nothing(endpoint: Endpoint) -> None:
    other = endpoint.like(access_token=fresh_token(), api_key=fresh_key())
    assert cache_of(endpoint) == "miss"
    assert cache_of(other) == "miss"
    assert endpoint.calls == 2


# --- cost ---------------------------------------------------------------------------------------


def test_cost_of_a_call_is_in_a_header_and_nothing_is_asked_for_a_hit(endpoint: Endpoint) -> None:
    endpoint.upstream.default(do.ok(usage=USAGE))
    body = message(model=PRICED)
    assert float(endpoint.ok(body).headers["X-Holysheep-Cost-Usd"]) == COST_USD
    assert float(endpoint.ok(body).headers["X-Holysheep-Cost-Usd"]) == 0


def test_stream_from_the_cache_is_said_to_cost_nothing(endpoint: Endpoint) -> None:
    endpoint.upstream.default(do.ok(usage=USAGE))
    asked = endpoint.ok(message(model=PRICED) | STREAM)
    assert "X-Holysheep-Cost-Usd" not in asked.headers, "nobody knows when a stream begins"
    again = endpoint.ok(message(model=PRICED) | STREAM)
    assert float(again.headers["X-Holysheep-Cost-Usd"]) == 0


def test_cost_without_a_price_is_not_said_to_be_nothing(endpoint: Endpoint) -> None:
    assert "X-Holysheep-Cost-Usd" not in endpoint.ok().headers


def test_cost_is_written_without_an_exponent(endpoint: Endpoint) -> None:
    prices = json.dumps({endpoint.model: {"input": "0.00001", "output": "0.00001"}})
    endpoint.upstream.default(do.ok(usage={"prompt_tokens": 1, "completion_tokens": 1}))
    cost = endpoint.like(price_overrides=prices).ok().headers["X-Holysheep-Cost-Usd"]
    assert "e" not in cost.lower()
    assert float(cost) == pytest.approx(2e-11)


# --- errors of upstream -------------------------------------------------------------------------


@pytest.mark.parametrize("form", [{}, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("behaviour", "status"),
    [
        (do.status(400), 400),
        (do.status(400, message="no such parameter", param="foo", error_code="bad"), 400),
        (do.unknown_model(), 404),
        (do.unknown_model(400), 400),
        (do.quota_exhausted(), 402),
        (do.rate_limited(retry_after_ms=1), 429),
        (do.rate_limited(retry_after=3600), 429),
        (do.status(401), 502),
        (do.status(403), 502),
        (do.status(413), 413),
        (do.status(422), 422),
    ],
    ids=["400", "400p", "404", "404as400", "402", "429", "429long", "401", "403", "413", "422"],
)
def test_error_of_upstream_keeps_its_status(
    endpoint: Endpoint, behaviour: do.Behaviour, status: int, form: dict[str, Any]
) -> None:
    endpoint.upstream.default(behaviour)
    check_error(endpoint.chat(message() | form), status)


@pytest.mark.parametrize(
    "behaviour",
    [
        *(do.server_error(), do.overloaded(), do.reset(), do.malformed("not_json")),
        *(do.malformed("empty_choices"), do.malformed("html"), do.redirect("http://127.0.0.1:9/")),
    ],
    ids=["500", "529", "reset", "not_json", "empty", "html", "redirect"],
)
def test_failure_of_upstream_is_one_of_a_gateway(
    endpoint: Endpoint, behaviour: do.Behaviour
) -> None:
    endpoint.upstream.default(behaviour)
    answer = endpoint.chat()
    assert answer.status in {502, 503, 504}
    check_error(answer, answer.status)


def test_unreachable_upstream_is_a_bad_gateway(endpoint: Endpoint) -> None:
    gone = endpoint.like(base_url=f"http://127.0.0.1:{closed_port()}/v1")
    check_error(gone.chat(), 502)


def test_error_names_the_parameter_and_the_code_of_upstream(endpoint: Endpoint) -> None:
    endpoint.upstream.default(do.unknown_model())
    error = check_error(endpoint.chat(), 404, param="model", code="model_not_found")
    assert error["type"] == "invalid_request_error"


def test_error_after_the_first_text_ends_the_stream_with_an_error_event(endpoint: Endpoint) -> None:
    endpoint.upstream.script(do.sse(chunks=["a ", "b "], error={"message": "boom"}, error_after=2))
    answer = endpoint.chat(message() | STREAM)
    assert answer.status == 200
    *_, error = events(answer.body)
    assert set(error) == {"error"}
    assert set(error["error"]) == {"message", "type", "param", "code"}


def test_stream_that_breaks_off_ends_with_an_error_event_and_not_in_done(
    endpoint: Endpoint,
) -> None:
    endpoint.upstream.script(do.reset("chunks", chunks=2, text="one two three"))
    *chunks, error = events(endpoint.chat(message() | STREAM).body)
    assert chunks
    assert set(error) == {"error"}
    assert cache_of(endpoint, message()) == "miss", "half an answer has been stored"


def test_upstream_that_hangs_up_before_its_text_is_asked_again(endpoint: Endpoint) -> None:
    endpoint.upstream.script(do.reset())
    endpoint.ok(message() | STREAM)
    assert endpoint.calls == 2


# --- limits, budgets, breaker -------------------------------------------------------------------


def test_rate_limit_answers_429_and_when_to_come_back(endpoint: Endpoint) -> None:
    """A turn that comes within the nine minutes of a request is waited for."""
    endpoint.upstream.default(do.ok(usage={"prompt_tokens": 1, "completion_tokens": 999}))
    limited = endpoint.like(tokens_per_minute="100")
    limited.ok(message("one"))
    answer = limited.chat(message("two"))
    check_error(answer, 429, type="rate_limit_error", code="rate_limit_exceeded")
    assert 540 < int(answer.headers["Retry-After"]) < 660
    assert answer.elapsed_ms < 1000
    assert endpoint.calls == 1
    assert cache_of(limited, message("one")) == "hit"


def test_retry_after_of_upstream_is_told(endpoint: Endpoint) -> None:
    endpoint.upstream.default(do.rate_limited(retry_after=3600))
    answer = endpoint.chat()
    check_error(answer, 429)
    assert 3590 <= int(answer.headers["Retry-After"]) <= 3600


def test_budget_answers_402_before_anything_is_sent(endpoint: Endpoint) -> None:
    endpoint.upstream.default(do.ok(usage=USAGE))
    poor = endpoint.like(daily_budget_usd="0.000001")
    error = check_error(poor.chat(message(model=PRICED)), 402)
    assert error["type"] == "insufficient_quota"
    assert endpoint.calls == 0


def test_budget_is_used_up_by_what_has_been_spent(endpoint: Endpoint) -> None:
    endpoint.upstream.default(do.ok(usage=USAGE))
    poor = endpoint.like(monthly_budget_usd="0.01")
    statuses = [
        poor.chat(message(f"question {number}", model=PRICED, max_tokens=200)).status
        for number in range(8)
    ]
    assert statuses[0] == 200
    assert statuses[-1] == 402
    assert sorted(statuses) == statuses
    assert 2 <= statuses.count(200) <= 3


def test_open_breaker_answers_503_without_a_call(endpoint: Endpoint) -> None:
    endpoint.upstream.default(do.outage())
    for number in range(10):
        answer = endpoint.chat(message(f"{number}"))
        if "Retry-After" in answer.headers:
            break
    before = endpoint.calls
    answer = endpoint.chat(message("again"))
    check_error(answer, 503)
    assert 1 <= int(answer.headers["Retry-After"]) <= 30
    assert endpoint.calls == before
    endpoint.upstream.default(None)
    endpoint.ok(message(model="another"))


def test_calls_in_flight_are_never_more_than_the_settings_allow(endpoint: Endpoint) -> None:
    endpoint.upstream.default(do.ok(latency_ms=30))
    narrow = endpoint.like(max_concurrency="3")
    calls = [narrow.start_chat(message(f"{number}")) for number in range(20)]
    assert {narrow.checked(call.result()).status for call in calls} == {200}
    assert endpoint.upstream.stats().max_in_flight == 3


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [None, "", "   "])
def test_without_a_key_the_gateway_is_not_available(
    endpoint: Endpoint, missing: str | None
) -> None:
    keyless = endpoint.like(api_key=missing)
    error = check_error(keyless.chat(), 503)
    assert "API key" in error["message"]
    check_error(keyless.get(MODELS), 503)
    assert endpoint.upstream.requests() == []


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "ftp://x"},
        {"base_url": "not a url"},
        {"requests_per_minute": "many"},
        {"max_concurrency": "0"},
        {"daily_budget_usd": "-1"},
        {"price_overrides": "{{"},
        {"api_key": "short"},
        {"auth_header": "digest"},
    ],
    ids=lambda settings: "-".join(f"{k}={v}" for k, v in settings.items()),
)
def test_settings_that_cannot_be_used_are_told_to_who_has_the_token(
    endpoint: Endpoint, settings: dict[str, str]
) -> None:
    (name,) = settings
    wrong = endpoint.like(**settings)
    error = check_error(wrong.chat(), 503)
    assert name in error["message"]
    assert endpoint.calls == 0


@pytest.mark.parametrize("token", [None, "", "short", "x" * 15, " " * 20])
def test_endpoint_without_a_proper_token_answers_nobody(
    endpoint: Endpoint, token: str | None
) -> None:
    open_door = endpoint.like(access_token=token)
    for given in (token or "", "", "None", "null"):
        answer = open_door.ask("GET", MODELS, headers={"Authorization": f"Bearer {given}"})
        assert answer.status in {401, 503}
    assert endpoint.upstream.requests() == []


def test_two_endpoints_with_different_settings_do_not_meet(endpoint: Endpoint) -> None:
    endpoint.upstream.default(do.ok(usage={"prompt_tokens": 1, "completion_tokens": 999}))
    first = endpoint.like(tokens_per_minute="100")
    second = endpoint.like(access_token=fresh_token(), api_key=fresh_key())
    first.ok(message("one"))
    check_error(first.chat(message("two")), 429)
    for number in range(5):
        second.ok(message(f"{number}"))
    answer = second.ask("GET", MODELS, headers=first.bearer)
    assert answer.status == 401
    keys = {request["headers"]["authorization"] for request in endpoint.upstream.requests()}
    assert keys == {f"Bearer {first.key}", f"Bearer {second.key}"}


# --- models -------------------------------------------------------------------------------------


def test_models_are_those_of_upstream(endpoint: Endpoint) -> None:
    endpoint.upstream.script(do.model_list("b-model", "a model/é"), model="@models")
    answer = endpoint.get(MODELS)
    assert answer.status == 200
    body = answer.json()
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["a model/é", "b-model"]
    for model in body["data"]:
        assert set(model) == {"id", "object", "created", "owned_by"}
        assert model["object"] == "model"


@pytest.mark.parametrize(
    ("behaviour", "status"),
    [
        (do.status(401), 502),
        (do.status(403), 502),
        (do.status(404), 404),
        (do.status(402), 402),
        (do.rate_limited(retry_after=60), 429),
        (do.server_error(), 502),
        (do.malformed("not_json"), 404),
        (do.malformed("html"), 404),
    ],
    ids=["401", "403", "404", "402", "429", "500", "not_json", "html"],
)
def test_error_of_the_model_list_keeps_its_status(
    endpoint: Endpoint, behaviour: do.Behaviour, status: int
) -> None:
    endpoint.upstream.default(behaviour, model="@models")
    error = check_error(endpoint.get(MODELS), status)
    assert (error["code"] == "not_found") == (status == 404)


# --- many, early leavers ------------------------------------------------------------------------


def test_fifty_streams_at_once_come_whole_and_apart(endpoint: Endpoint) -> None:
    wide = endpoint.like(max_concurrency="50")
    endpoint.upstream.default(do.ok(chunk_delay_ms=100))

    def read(number: int) -> str:
        with httpx.Client(trust_env=False, timeout=30) as client:
            body = message(f"This is number {number:03d}.") | STREAM
            with client.stream("POST", wide.url + CHAT, json=body, headers=wide.bearer) as answer:
                assert answer.status_code == 200
                *chunks, done = events(answer.read())
        assert done == "[DONE]"
        return "".join(c["delta"].get("content") or "" for k in chunks for c in k["choices"])

    with ThreadPoolExecutor(50) as pool:
        texts = list(pool.map(read, range(50)))
    for number, text in enumerate(texts):
        assert text.startswith(f"You said: This is number {number:03d}.")
    assert endpoint.upstream.stats().max_in_flight > 25
    assert endpoint.server.dropped_chunks == 0


def test_client_that_leaves_holds_nothing_for_ever(endpoint: Endpoint) -> None:
    narrow = endpoint.like(max_concurrency="1", default_model=PRICED)
    endpoint.upstream.script(do.ok(chunks=["a "] * 10, chunk_delay_ms=50, usage=USAGE))
    left = endpoint.server.clients_left
    with (
        httpx.Client(trust_env=False) as client,
        client.stream(
            "POST", narrow.url + CHAT, json=message("left") | STREAM, headers=narrow.bearer
        ) as answer,
    ):
        next(answer.iter_raw())
    narrow.ok(message("next"))
    assert endpoint.server.clients_left == left + 1
    totals = narrow.get("/usage.json?period=today").json()["totals"]
    assert totals["requests"] == 2
    assert totals["cost_usd"] >= COST_USD


def test_client_that_reads_late_gets_all_of_a_long_stream(endpoint: Endpoint) -> None:
    """The host drops what waits for a client beyond 128 messages."""
    text = "0123456789" * 800_000
    endpoint.upstream.script(do.ok(text, chunk_chars=8000, chunk_delay_ms=1.5))
    small = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)]
    with (
        httpx.Client(transport=httpx.HTTPTransport(socket_options=small), timeout=30) as client,
        client.stream(
            "POST", endpoint.url + CHAT, json=message("long") | STREAM, headers=endpoint.bearer
        ) as answer,
    ):
        endpoint.upstream.wait_for(lambda stats: stats.answered.get(200) == 1)
        body = answer.read()
    *chunks, done = events(body)
    assert done == "[DONE]"
    assert "".join(c["delta"].get("content") or "" for k in chunks for c in k["choices"]) == text
    assert endpoint.server.dropped_chunks == 0


def test_day_of_the_ledger_is_the_utc_day(endpoint: Endpoint) -> None:
    endpoint.ok()
    usage = endpoint.get("/usage.json?period=today").json()
    today = datetime.now(UTC).date().isoformat()
    assert [row["key"] for row in usage["by_day"]] == [today]


def test_event_of_upstream_that_is_no_chunk_is_not_passed_on(endpoint: Endpoint) -> None:
    parts = [
        b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":'
        b'[{"index":0,"delta":{"role":"assistant","content":"hi"},"finish_reason":null}]}\n\n',
        b"event: x\ndata: \n\n",
        b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":'
        b'[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
        b"data: [DONE]\n\n",
    ]
    with LoopbackServer({"*": event_stream(parts)}) as upstream:
        answer = endpoint.like(base_url=upstream.url + "/v1").ok(message() | STREAM)
    assert text_of(answer) == "hi"
