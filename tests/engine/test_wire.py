"""What is read from an answer, in every spelling met in the field; and from what is none."""

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from holysheep.errors import (
    AuthError,
    BadRequest,
    BadResponse,
    ConnectFailed,
    HolySheepError,
    QuotaExhausted,
    RateLimited,
    ServerError,
    UnknownModel,
)
from holysheep.types import ChatRequest, Completion, Usage
from holysheep.wire import Assembler, encode, looks_like_events, parse_usage, server_sent_events
from tests.engine.raw_servers import events, stream_body

BODIES = Path(__file__).parent / "bodies"
NOW_S = 1_760_000_000.0


def body(name: str) -> bytes:
    return (BODIES / name).read_bytes()


def read_stream(*pieces: bytes, answers: int | None = 1) -> Completion:
    """The completion in an event stream; the deltas, joined, must be its texts."""
    return read(lambda assembler: feed_stream(assembler, pieces), answers=answers)


def feed_stream(assembler: Assembler, pieces: Iterable[bytes]) -> Iterator[Any]:
    for event in server_sent_events(iter(pieces)):
        yield from assembler.feed_event(event)
        if assembler.has_ended:
            return


def read_body(whole: bytes, *, answers: int | None = 1) -> Completion:
    return read(lambda assembler: assembler.feed_body(whole), answers=answers)


def read(feed: Callable[[Assembler], Iterator[Any]], *, answers: int | None) -> Completion:
    assembler = Assembler("asked", request_id="req-1", wall_s=NOW_S, answers=answers)
    texts: dict[int, str] = {}
    reasonings: dict[int, str] = {}
    for deltas in (feed(assembler), assembler.flush()):
        for delta in deltas:
            assert delta.text or delta.reasoning
            texts[delta.index] = texts.get(delta.index, "") + delta.text
            reasonings[delta.index] = reasonings.get(delta.index, "") + delta.reasoning
    completion = assembler.finish()
    for choice in completion.choices:
        assert choice.text == texts.get(choice.index, "")
        assert choice.reasoning == reasonings.get(choice.index, "")
    return completion


def delta_of(content: str | None, finish: str | None = None, index: Any = 0) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


class TestEncode:
    REQUEST = ChatRequest({"model": "m", "max_tokens": 5, "messages": [], "temperature": 0.5})

    def test_a_plain_request_says_nothing_of_streams(self) -> None:
        assert json.loads(encode(self.REQUEST, stream=False)) == self.REQUEST.body

    def test_a_stream_is_asked_for_with_usage(self) -> None:
        assert json.loads(encode(self.REQUEST, stream=True)) == {
            **self.REQUEST.body,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def test_what_the_model_refuses_is_left_out_or_renamed(self) -> None:
        left_out = ("temperature", "max_tokens", "stream_options")
        assert json.loads(encode(self.REQUEST, stream=True, left_out=left_out)) == {
            "model": "m",
            "max_completion_tokens": 5,
            "messages": [],
            "stream": True,
        }

    def test_a_limit_that_the_author_gave_by_its_other_name_is_kept(self) -> None:
        request = ChatRequest({**self.REQUEST.body, "max_completion_tokens": 7})
        sent = json.loads(encode(request, stream=False, left_out=("max_tokens",)))
        assert sent["max_completion_tokens"] == 7

    def test_unusual_characters_travel_as_utf_8(self) -> None:
        request = ChatRequest({"model": "m", "messages": [{"content": "\u2028 é 中 🐑 \x00"}]})
        assert "\u2028 é 中 🐑 \\u0000".encode() in encode(request, stream=False)


class TestAnswersInTheField:
    """Bodies as gateways send them, one file each under ``bodies``."""

    @pytest.mark.parametrize(
        "name",
        [
            *("chat_openai.json", "chat_deepseek.json", "chat_openrouter.json", "chat_parts.json"),
            *("chat_think.json", "responses.json"),
        ],
    )
    def test_body_gives_the_text(self, name: str) -> None:
        choice = read_body(body(name)).first
        assert (choice.text, choice.finish_reason) == ("Hello there.", "stop")

    @pytest.mark.parametrize(
        "name",
        [
            *("chat_openai.sse", "chat_usage_last.sse", "chat_deepseek.sse", "chat_openrouter.sse"),
            *("chat_azure.sse", "chat_think.sse", "responses.sse"),
        ],
    )
    def test_stream_gives_the_text(self, name: str) -> None:
        choice = read_stream(body(name)).first
        assert (choice.text, choice.finish_reason) == ("Hello there.", "stop")

    @pytest.mark.parametrize(
        "name",
        [
            *("chat_deepseek.json", "chat_openrouter.json", "chat_think.json", "responses.json"),
            *("chat_deepseek.sse", "chat_openrouter.sse", "chat_think.sse", "responses.sse"),
        ],
    )
    def test_reasoning_is_kept_apart(self, name: str) -> None:
        whole = read_body(body(name)) if name.endswith(".json") else read_stream(body(name))
        assert whole.first.reasoning.strip("\n") == "They greet me."

    @pytest.mark.parametrize(
        ("name", "usage"),
        [
            ("chat_openai.json", Usage(19, 4)),
            ("chat_openai.sse", Usage(19, 4)),
            ("chat_usage_last.sse", Usage(19, 4)),
            ("chat_azure.sse", Usage(19, 4)),
            ("chat_deepseek.json", Usage(20, 12, cached_tokens=16, reasoning_tokens=8)),
            ("chat_deepseek.sse", Usage(20, 12, cached_tokens=16, reasoning_tokens=8)),
            ("responses.json", Usage(20, 12, cached_tokens=4, reasoning_tokens=8)),
            ("responses.sse", Usage(20, 12, cached_tokens=4, reasoning_tokens=8)),
        ],
    )
    def test_usage_is_read(self, name: str, usage: Usage) -> None:
        whole = read_body(body(name)) if name.endswith(".json") else read_stream(body(name))
        assert whole.usage == usage

    def test_the_gateway_s_own_cost_is_exact(self) -> None:
        assert str(read_body(body("chat_openrouter.json")).usage.provider_cost_usd) == "0.00024"

    @pytest.mark.parametrize("name", ["chat_tools.json", "chat_tools.sse", "responses_tools.sse"])
    def test_tool_calls_come_whole(self, name: str) -> None:
        whole = read_body(body(name)) if name.endswith(".json") else read_stream(body(name))
        assert whole.first.finish_reason == "tool_calls"
        assert whole.first.tool_calls[0] == {
            "id": "call_1",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
        }

    def test_an_incomplete_response_was_cut_by_the_limit(self) -> None:
        choice = read_stream(body("responses_incomplete.sse")).first
        assert (choice.text, choice.finish_reason) == ("Hello", "length")

    def test_the_model_that_served_is_told(self) -> None:
        completion = read_stream(body("chat_azure.sse"))
        assert (completion.asked_model, completion.model) == ("asked", "gpt-4.1-2025-04-14")
        assert read_stream(events(delta_of("x", "stop"))).model == "asked"


class TestEventSpelling:
    WHOLE = read_stream(stream_body("Grüße, 世界 🐑"))

    @pytest.mark.parametrize(
        "respelt",
        [
            pytest.param(lambda raw: raw.replace(b"\n", b"\r\n"), id="CRLF"),
            pytest.param(lambda raw: raw.replace(b"\n", b"\r"), id="CR"),
            pytest.param(lambda raw: raw.replace(b"data: ", b"data:"), id="no space"),
            pytest.param(lambda raw: raw.replace(b"data: ", b": ping\n\ndata: "), id="comments"),
            pytest.param(lambda raw: raw.replace(b"data: ", b"id: 7\ndata: "), id="ids"),
            pytest.param(lambda raw: raw.replace(b"data: ", b"event: x\ndata: "), id="names"),
            pytest.param(lambda raw: raw.replace(b', "', b',\ndata:"'), id="several data lines"),
            pytest.param(lambda raw: b"\xef\xbb\xbf" + raw, id="byte order mark"),
            pytest.param(lambda raw: b"\n\n" + raw, id="empty lines first"),
            pytest.param(lambda raw: b"retry: 3000\n\n" + raw, id="retry first"),
            pytest.param(lambda raw: raw.rstrip(b"\n"), id="unfinished last line"),
            pytest.param(lambda raw: raw.replace(b"data: [DONE]\n\n", b""), id="no DONE"),
            pytest.param(
                lambda raw: raw.replace(b"data: [DONE]\n\n", b"").rstrip(b"\n"),
                id="no DONE, unfinished last line",
            ),
            pytest.param(
                lambda raw: (
                    raw.replace(b"data: [DONE]\n\n", b"")
                    .replace(b', "', b',\ndata:"')
                    .rstrip(b"\n")
                ),
                id="several data lines, the last unfinished",
            ),
            pytest.param(
                lambda raw: (
                    raw.replace(b"data: [DONE]\n\n", b"").replace(b"\n", b"\r").rstrip(b"\r")
                ),
                id="CR, unfinished last line",
            ),
            pytest.param(
                lambda raw: (
                    raw.replace(b"data: [DONE]\n\n", b"")
                    .replace(b"\n", b"\r\n")
                    .removesuffix(b"\r\n\r\n")
                ),
                id="CRLF, unfinished last line",
            ),
            pytest.param(lambda raw: raw + b"data: not even JSON\n\n", id="text behind DONE"),
        ],
    )
    def test_same_answer(self, respelt: Callable[[bytes], bytes]) -> None:
        raw = respelt(stream_body("Grüße, 世界 🐑"))
        assert looks_like_events(raw)
        assert read_stream(raw) == self.WHOLE

    @pytest.mark.parametrize("first", [b"data: x", b"event: x", b"id: 1", b": hi", b"retry: 3000"])
    def test_each_field_may_come_first(self, first: bytes) -> None:
        assert looks_like_events(first)

    @pytest.mark.parametrize("first", [b'{"a": 1}', b"[1]", b"<html>", b"dat", b"", b'"data: x"'])
    def test_other_bodies_are_no_events(self, first: bytes) -> None:
        assert not looks_like_events(first)

    def test_separators_of_unicode_end_no_line(self) -> None:
        text = "a\u2028b\u2029c\x85d\x0be\x0cf"
        part = json.dumps(delta_of(text, "stop"), ensure_ascii=False)
        assert read_stream(events(part)).first.text == text

    @settings(max_examples=60)
    @given(
        st.lists(st.integers(0, 500), max_size=12),
        st.sampled_from(["chat_think.sse", "chat_tools.sse", "responses.sse", "chat_azure.sse"]),
        st.sampled_from([b"\n", b"\r\n", b"\r"]),
    )
    def test_cutting_the_bytes_anywhere_changes_nothing(
        self, cuts: list[int], name: str, line_end: bytes
    ) -> None:
        raw = body(name).replace(b"\n", line_end).replace(b"Hello", "Hällo 🐑".encode())
        places = [0, *sorted(cut * len(raw) // 500 for cut in cuts), len(raw)]
        pieces = [raw[start:end] for start, end in pairwise(places)]
        assert read_stream(*filter(None, pieces)) == read_stream(raw)

    def test_single_bytes_are_read_alike(self) -> None:
        raw = stream_body("Grüße, 世界 🐑")
        assert read_stream(*(raw[at : at + 1] for at in range(len(raw)))) == self.WHOLE


class TestEndOfAnswer:
    def test_a_stream_without_an_end_is_an_error(self) -> None:
        with pytest.raises(ConnectFailed, match="broke off") as caught:
            read_stream(events(delta_of("Hel")))
        assert caught.value.request_id == "req-1"

    def test_an_empty_finish_reason_is_no_end(self) -> None:
        part = delta_of("Hel", "")
        with pytest.raises(ConnectFailed, match="broke off"):
            read_stream(events(part))

    def test_an_empty_finish_reason_on_every_chunk_but_the_last_is_read_right(self) -> None:
        choice = read_stream(events(delta_of("Hel", ""), delta_of("lo", "length"))).first
        assert (choice.text, choice.finish_reason) == ("Hello", "length")

    def test_one_of_two_answers_that_breaks_off_is_an_error(self) -> None:
        raw = events(delta_of("Hel", index=0), delta_of("Bye", "stop", index=1))
        with pytest.raises(ConnectFailed, match="broke off"):
            read_stream(raw, answers=2)

    @pytest.mark.parametrize(
        ("parts", "is_complete"),
        [
            ([delta_of("a")], False),
            ([delta_of("a", "stop")], False),
            ([delta_of("a", "stop"), delta_of("b", index=1)], False),
            ([delta_of("a", "stop"), delta_of("b", "length", index=1)], True),
            ([delta_of("a"), "[DONE]"], True),
            ([{"type": "response.completed"}], True),
        ],
        ids=["none", "one", "one and a half", "both", "DONE", "Responses API"],
    )
    def test_an_answer_is_complete_when_all_that_were_asked_for_have_finished(
        self, parts: list[Any], *, is_complete: bool
    ) -> None:
        assembler = Assembler("asked", request_id=None, wall_s=NOW_S, answers=2)
        list(feed_stream(assembler, [events(*parts)]))
        assert assembler.is_complete is is_complete

    def test_a_second_answer_that_begins_late_and_breaks_off_is_an_error(self) -> None:
        raw = events(delta_of("a", "stop"), delta_of("b", index=1))
        with pytest.raises(ConnectFailed, match="broke off"):
            read_stream(raw, answers=2)

    def test_done_is_an_end_without_any_finish_reason(self) -> None:
        choice = read_stream(events(delta_of("Hello"), "[DONE]")).first
        assert (choice.text, choice.finish_reason) == ("Hello", "stop")

    def test_a_finish_reason_is_an_end_without_done(self) -> None:
        assert read_stream(events(delta_of("Hello", "length"))).first.finish_reason == "length"

    @pytest.mark.parametrize("ending", ["response.completed", "response.incomplete"])
    def test_a_last_event_of_the_responses_api_is_an_end(self, ending: str) -> None:
        raw = events({"type": "response.output_text.delta", "delta": "x"}, {"type": ending})
        assert read_stream(raw).first.text == "x"

    def test_a_responses_stream_without_its_last_event_is_an_error(self) -> None:
        raw = events({"type": "response.output_text.delta", "delta": "x"})
        with pytest.raises(ConnectFailed, match="broke off"):
            read_stream(raw)

    @pytest.mark.parametrize("status", ["failed", "cancelled", "in_progress", "queued"])
    def test_a_response_that_did_not_complete_is_no_answer(self, status: str) -> None:
        whole = {**json.loads(body("responses.json")), "status": status, "output": []}
        with pytest.raises(HolySheepError):
            read_body(json.dumps(whole).encode())

    def test_a_stream_of_nothing_is_unreadable(self) -> None:
        with pytest.raises(BadResponse, match="no choices"):
            read_stream(events("[DONE]"))

    def test_an_answer_of_no_text_is_an_answer(self) -> None:
        assert read_stream(events(delta_of(None, "stop"))).first.text == ""


class TestSeveralAnswers:
    def test_each_is_put_together_by_itself(self) -> None:
        raw = events(
            delta_of("a", index=1),
            delta_of("b", index=0),
            delta_of("c", "stop", index=1),
            delta_of("d", "length", index=0),
        )
        first, second = read_stream(raw, answers=2).choices
        assert (first.index, first.text, first.finish_reason) == (0, "bd", "length")
        assert (second.index, second.text, second.finish_reason) == (1, "ac", "stop")

    def test_without_an_index_the_position_counts(self) -> None:
        choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in "ab"]
        whole = read_body(json.dumps({"choices": choices}).encode(), answers=2)
        assert [choice.text for choice in whole.choices] == ["a", "b"]

    @pytest.mark.parametrize("index", [1, -1, 7, None])
    def test_the_only_one_that_was_asked_for_may_have_any_number(self, index: Any) -> None:
        choice = read_stream(events(delta_of("a", "stop", index=index))).first
        assert (choice.text, choice.index) == ("a", 0)

    def test_where_one_was_asked_for_a_second_is_not_mixed_in(self) -> None:
        raw = events(
            delta_of("one ", index=0),
            delta_of("uno ", index=1),
            delta_of("two", "stop", index=0),
            delta_of("due", "stop", index=1),
        )
        assert read_stream(raw).first.text == "one two"
        choices = [{"index": n, "message": {"content": text}} for n, text in enumerate("ab")]
        assert read_body(json.dumps({"choices": choices}).encode()).first.text == "a"


class TestThink:
    @pytest.mark.parametrize(
        ("raw", "text", "reasoning"),
        [
            ("<think>a</think>b", "b", "a"),
            ("<think>a</think>\n\n\nb\n", "b\n", "a"),
            ("\n <think>a</think>b", "b", "a"),
            ("<think></think>b", "b", ""),
            ("<think>never closed", "", "never closed"),
            ("<think>a</thin", "", "a</thin"),
            ("b <think>a</think>", "b <think>a</think>", ""),
            ("<thinker>b", "<thinker>b", ""),
            ("<thi", "<thi", ""),
            ("   ", "   ", ""),
            ("<think>a</think>b<think>c</think>", "b<think>c</think>", "a"),
            ("<think>a<think>b</think>c", "c", "a<think>b"),
            ("<think>a</think>", "", "a"),
            ("<think>a</think>\n\n", "", "a"),
            ("<think>\n\n a\n b \n</think>c", "c", "a\n b"),
            ("<think> \n </think>c", "c", ""),
            ("", "", ""),
        ],
    )
    def test_only_a_block_at_the_start_is_reasoning(
        self, raw: str, text: str, reasoning: str
    ) -> None:
        choice = read_stream(events(delta_of(raw, "stop"))).first
        assert (choice.text, choice.reasoning) == (text, reasoning)

    @settings(max_examples=300)
    @given(
        st.lists(
            st.sampled_from(
                ["<think>", "</think>", "<", "</", "think>", "\n", " ", "a", "<thi", "nk>", "é"]
            ),
            max_size=10,
        ),
        st.data(),
    )
    def test_cutting_the_text_anywhere_changes_nothing(
        self, parts: list[str], data: st.DataObject
    ) -> None:
        raw = "".join(parts)
        places = st.lists(st.integers(0, len(raw)), max_size=8)
        cuts = [0, *sorted(data.draw(places)), len(raw)]
        pieces = [raw[start:end] for start, end in pairwise(cuts)]
        whole = read_stream(events(delta_of(raw, "stop")))
        cut = read_stream(events(*map(delta_of, pieces), delta_of(None, "stop")))
        assert cut.first == whole.first
        text, reasoning = raw, ""
        if raw.lstrip().startswith("<think>"):
            block = raw.lstrip().removeprefix("<think>")
            reasoning, _, rest = block.partition("</think>")
            reasoning, text = reasoning.strip(), rest.lstrip("\n")
        assert (whole.first.text, whole.first.reasoning) == (text, reasoning)

    def test_a_field_of_its_own_and_a_block_are_both_kept(self) -> None:
        delta = {"content": "<think>b</think>c", "reasoning_content": "a"}
        choice = read_stream(events({"choices": [{"delta": delta}]}, "[DONE]")).first
        assert (choice.reasoning, choice.text) == ("ab", "c")


class TestToolCalls:
    @staticmethod
    def read(*fragments: dict[str, Any]) -> list[tuple[str, str, str]]:
        parts = [{"choices": [{"delta": {"tool_calls": [call]}}]} for call in fragments]
        calls = read_stream(events(*parts, "[DONE]")).first.tool_calls
        return [
            (call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls
        ]

    def test_fragments_are_joined_by_their_index(self) -> None:
        assert self.read(
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x":'}},
            {"index": 1, "id": "b", "function": {"name": "g", "arguments": "{"}},
            {"index": 0, "function": {"arguments": "1}"}},
            {"index": 1, "function": {"arguments": "}"}},
        ) == [("a", "f", '{"x":1}'), ("b", "g", "{}")]

    def test_without_an_index_a_new_id_begins_a_call(self) -> None:
        assert self.read(
            {"id": "a", "function": {"name": "f", "arguments": "{"}},
            {"function": {"arguments": "}"}},
            {"id": "b", "function": {"name": "f", "arguments": "{"}},
            {"id": "b", "function": {"arguments": "}"}},
        ) == [("a", "f", "{}"), ("b", "f", "{}")]

    def test_arguments_as_an_object_become_json(self) -> None:
        call = {"id": "a", "function": {"name": "f", "arguments": {"x": "é"}}}
        assert self.read(call) == [("a", "f", '{"x": "é"}')]

    def test_an_id_that_is_repeated_is_not_doubled(self) -> None:
        assert self.read(
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}},
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}},
        ) == [("a", "f", "{}")]


class TestErrorsInside200:
    @pytest.mark.parametrize(
        ("error", "kind", "status"),
        [
            ({"code": 429, "message": "slow down"}, RateLimited, 429),
            ({"code": "429", "message": "slow down"}, RateLimited, 429),
            ({"code": "rate_limit_exceeded"}, RateLimited, 429),
            ({"type": "rate_limit_error"}, RateLimited, 429),
            ({"code": None, "type": "overloaded_error"}, ServerError, 529),
            ({"code": "invalid_api_key"}, AuthError, 401),
            ({"type": "authentication_error"}, AuthError, 401),
            ({"code": "insufficient_quota", "type": "invalid_request_error"}, QuotaExhausted, 402),
            ({"code": "context_length_exceeded"}, BadRequest, 400),
            ({"code": "model_not_found"}, UnknownModel, 404),
            ({"status": 503, "message": "busy"}, ServerError, 503),
            ({"message": "no code at all"}, ServerError, 500),
            ({"code": 200, "message": "odd"}, ServerError, 500),
            ("plain text", ServerError, 500),
            (["odd"], ServerError, 500),
            (1, ServerError, 500),
        ],
    )
    def test_code_or_type_stands_for_a_status(
        self, error: Any, kind: type[HolySheepError], status: int
    ) -> None:
        for read_it in (read_body, lambda raw: read_stream(b"data: " + raw + b"\n\n")):
            with pytest.raises(kind) as caught:
                read_it(json.dumps({"error": error}).encode())
            assert caught.value.status == status
            assert caught.value.request_id == "req-1"
            assert "request id req-1" in caught.value.message

    def test_an_error_after_text_is_an_error(self) -> None:
        raw = events(delta_of("Hel"), {"error": {"message": "Lost the model"}})
        with pytest.raises(ServerError, match="Lost the model"):
            read_stream(raw)

    def test_an_error_as_text_with_a_message_beside_it_tells_both(self) -> None:
        raw = events({"error": "Concurrency limit exceeded", "message": "5 of 5."})
        with pytest.raises(ServerError, match=r"Concurrency limit exceeded: 5 of 5\."):
            read_stream(raw)

    def test_a_failed_response_is_an_error(self) -> None:
        failed = {"error": {"code": "server_error", "message": "The model failed."}}
        raw = events({"type": "response.failed", "response": failed})
        with pytest.raises(ServerError, match=r"The model failed\."):
            read_stream(raw)

    def test_an_error_event_of_the_responses_api_is_an_error(self) -> None:
        raw = events({"type": "error", "code": "rate_limit_exceeded", "message": "Slow down."})
        with pytest.raises(RateLimited, match=r"Slow down\."):
            read_stream(raw)

    def test_the_time_of_a_reset_is_read(self) -> None:
        error = {"code": "rate_limit_exceeded", "message": "no"}
        raw = json.dumps({"error": error, "resetAt": NOW_S + 90}).encode()
        with pytest.raises(RateLimited) as caught:
            read_body(raw)
        assert caught.value.retry_after_s == 90

    def test_null_is_no_error(self) -> None:
        assert read_body(body("responses.json")).first.text == "Hello there."

    def test_the_key_is_not_repeated(self) -> None:
        assembler = Assembler("m", request_id="r", wall_s=NOW_S, secrets=("test-key-secret",))
        raw = json.dumps({"error": {"message": "bad test-key-secret in header"}}).encode()
        with pytest.raises(ServerError) as caught:
            list(assembler.feed_body(raw))
        assert "test-key-secret" not in f"{caught.value} {caught.value.detail}"


class TestErrorEvents:
    """Errors in a stream that have no ``error`` in them."""

    @pytest.mark.parametrize(
        ("raw", "kind", "status", "words"),
        [
            (
                b'event: error\ndata: {"message":"overloaded","code":529}\n\n',
                *(ServerError, 529, "It says: overloaded."),
            ),
            (
                b'event: error\ndata: {"type":"rate_limit_error","message":"Slow."}\n\n',
                *(RateLimited, 429, "It says: Slow."),
            ),
            (
                b'event: error\ndata: {"error":{"code":"invalid_request_error"}}\n\n',
                *(BadRequest, 400, "did not accept"),
            ),
            (
                b'data: {"type":"error","error":{"type":"overloaded_error","message":"Busy"}}\n\n',
                *(ServerError, 529, "It says: Busy."),
            ),
            (
                b'data: {"type":"error","detail":"No wool","status":503}\n\n',
                *(ServerError, 503, "It says: No wool."),
            ),
            (b'data: {"detail":"No wool"}\n\n', ServerError, 500, "It says: No wool."),
            (
                b'data: {"message":"No wool","code":"rate_limit_exceeded"}\n\n',
                *(RateLimited, 429, "It says: No wool."),
            ),
            (
                b'data: {"object":"error","message":"No wool","code":400}\n\n',
                *(BadRequest, 400, "It says: No wool."),
            ),
        ],
    )
    @pytest.mark.parametrize("before", [b"", events(delta_of("Hel"))], ids=["first", "after text"])
    def test_is_the_upstream_s_error(
        self, before: bytes, raw: bytes, kind: type[HolySheepError], status: int, words: str
    ) -> None:
        with pytest.raises(kind) as caught:
            read_stream(before + raw)
        assert caught.value.status == status
        assert caught.value.request_id == "req-1"
        assert words in caught.value.message

    def test_text_of_whatever_origin_is_not_shown(self) -> None:
        with pytest.raises(ServerError) as caught:
            read_stream(b"event: error\ndata: Traceback of a pool worker\n\n")
        assert "Traceback" not in f"{caught.value} {caught.value.detail}"

    @pytest.mark.parametrize(
        "part",
        [
            {"type": "ping"},
            {"usage": None, "code": 0},
            {"status": "processing", "message": "wait"},
            {"detail": None},
            {**delta_of(""), "message": "fine", "code": 0, "detail": "none"},
        ],
        ids=lambda part: json.dumps(part)[:30],
    )
    def test_other_parts_are_no_errors(self, part: dict[str, Any]) -> None:
        raw = events(part, delta_of("Hello", "stop"), "[DONE]")
        assert read_stream(raw).first.text == "Hello"


class TestSignsOfLife:
    """Some gateways keep a connection open with data where a comment should be."""

    LINES = (
        b"ping",
        b": keepalive",
        b": OPENROUTER PROCESSING",
        b"OPENROUTER PROCESSING",
        b"[PING]",
    )

    @pytest.mark.parametrize("line", LINES, ids=bytes.decode)
    def test_they_are_ignored(self, line: bytes) -> None:
        raw = stream_body("Hello").replace(b"data: ", b"data: %s\n\ndata: " % line)
        assert read_stream(raw) == read_stream(stream_body("Hello"))

    @pytest.mark.parametrize("line", LINES, ids=bytes.decode)
    @pytest.mark.parametrize("ending", [b"", events("[DONE]")], ids=["cut", "DONE"])
    def test_an_answer_of_nothing_else_is_unreadable(self, line: bytes, ending: bytes) -> None:
        with pytest.raises(BadResponse, match="not valid JSON"):
            read_stream(b"data: %s\n\n" % line * 3 + ending)

    def test_done_alone_does_not_end_an_answer_in_which_a_line_may_be_lost(self) -> None:
        raw = events(delta_of("Hel"), "upstream connect error or disconnect before headers")
        with pytest.raises(BadResponse, match="not valid JSON"):
            read_stream(raw + events("[DONE]"))

    def test_a_stream_of_them_without_end_is_given_up(self) -> None:
        with pytest.raises(BadResponse, match="not valid JSON"):
            read_stream(events(*["ping"] * 1000, delta_of("Hello", "stop")))

    @pytest.mark.parametrize(
        "spoilt", ['{"choices":[{"del', 'nt":"lo"}}]}{', "x" * 500, "5", "null"]
    )
    def test_what_may_be_a_piece_of_the_answer_is_none(self, spoilt: str) -> None:
        with pytest.raises(BadResponse):
            read_stream(events(delta_of("Hel"), spoilt, delta_of(".", "stop")))


class TestUnreadable:
    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"nothing",
            b"{",
            b"[]",
            b"null",
            b"5",
            b'"text"',
            b"{}",
            b'{"choices": []}',
            b'{"choices": null}',
            b'{"choices": {}}',
            b'{"choices": "no"}',
            b'{"choices": [null]}',
            b'{"choices": [[]]}',
            b'{"choices": [{"finish_reason": "stop"}], "x": NaN}',
            b'{"choices": [{"finish_reason": "stop"}], "x": Infinity}',
            b'{"choices": [{"message": {"content": "\xff"}}]}',
            b'{"error": {}}',
            b'{"object": "error", "message": "no", "code": 40301}',
        ],
    )
    def test_body(self, raw: bytes) -> None:
        with pytest.raises(BadResponse) as caught:
            read_body(raw)
        assert caught.value.request_id == "req-1"
        assert raw.decode("latin-1") not in caught.value.message or len(raw) < 6

    def test_event(self) -> None:
        with pytest.raises(BadResponse, match="not valid JSON"):
            read_stream(b"data: nothing\n\n")

    @pytest.mark.parametrize(
        "raw",
        [
            b'{"choices": ' + b"[" * 100_000,
            b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"x": ' * 100_000,
        ],
        ids=["cut", "whole", "objects"],
    )
    def test_a_deeply_nested_body(self, raw: bytes) -> None:
        with pytest.raises(BadResponse):
            read_body(raw)

    @pytest.mark.parametrize(
        "part",
        [
            {"choices": [{"message": {"tool_calls": 5}}]},
            {"choices": [{"message": {"tool_calls": True}}]},
            {"choices": [{"message": {}, "logprobs": {"content": 5}}]},
            {"object": "response", "output": 5},
            {"error": {"code": "4" * 5000}},
            {"error": {"status": "4" * 5000}},
            {"error": {"message": "no"}, "resetAt": 10**400},
            {"error": {"message": "no", "remainingMinutes": 10**400}},
        ],
        ids=lambda part: json.dumps(part)[:60],
    )
    def test_values_of_another_type_raise_nothing_foreign(self, part: dict[str, Any]) -> None:
        outcome_of(part)


ODD_VALUES = [
    *(None, True, False, 0, -1, 5, 1.5, 1e308, "", "x", "400", "\ud800", "<think>", "failed"),
    *([], [1], ["a"], [None], [[]], {}, {"a": 1}, [{}], {"text": 5}, [{"text": {}}]),
]
JSON_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 1e308, 10**18])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(["\ud800", "4" * 5000, "1e999999999", "<think>", "stop", "failed", "error"])
)
JSON_VALUES = st.recursive(
    JSON_LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["text", "content", "id", "index", "function", "arguments", "error"])
            | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
FULL_CHUNK = {
    "id": "x",
    "object": "chat.completion.chunk",
    "model": "m",
    "choices": [
        {
            "index": 0,
            "delta": {
                "role": "assistant",
                "content": [{"type": "text", "text": "hi"}],
                "reasoning_content": "r",
                "reasoning": "q",
                "refusal": "no",
                "tool_calls": [
                    {
                        "index": 0,
                        "id": "a",
                        "type": "function",
                        "function": {"name": "f", "arguments": "{}"},
                    }
                ],
            },
            "logprobs": {"content": [{"token": "a"}]},
            "finish_reason": "stop",
            "text": "t",
        }
    ],
    "usage": {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 1},
        "cost": "0.1",
        "prompt_cache_hit_tokens": 1,
        "cache_read_input_tokens": 1,
        "cache_creation_input_tokens": 1,
    },
}
FULL_RESPONSE = json.loads(body("responses.json"))
FULL_ERROR = {
    "error": {"message": "m", "type": "t", "param": "p", "code": "c", "status": 400, "resetAt": 1},
    "message": "mm",
    "detail": "d",
    "code": "c",
    "type": "t",
    "resetAt": "2099-01-01T00:00:00Z",
    "remainingMinutes": 3,
}
TEMPLATES: list[dict[str, Any]] = [
    FULL_CHUNK,
    FULL_ERROR,
    FULL_RESPONSE,
    {"type": "response.output_text.delta", "delta": "x"},
    {"type": "response.reasoning_text.delta", "delta": "x"},
    {"type": "response.output_item.done", "item": {"type": "function_call", "arguments": "{}"}},
    {"type": "response.completed", "response": FULL_RESPONSE},
    {"type": "response.incomplete", "response": FULL_RESPONSE},
    {"type": "response.failed", "response": FULL_ERROR},
    {"type": "error", "code": "c", "message": "m"},
]


def places_in(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    if isinstance(value, dict):
        for key in value:
            yield from places_in(value[key], (*place, key))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from places_in(value[index], (*place, index))


def with_value(whole: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    changed = copy.deepcopy(whole)
    inner = changed
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return changed


def outcome_of(*parts: Any) -> None:
    """Read the parts as body and as stream: an answer or an error of the tree, no third."""
    for part in parts:
        raw = json.dumps(part).encode()
        for read_it in (read_body, lambda raw: read_stream(b"data: " + raw + b"\n\n")):
            check_outcome(read_it, raw)
    check_outcome(read_stream, events(*map(json.dumps, parts), "[DONE]"))


def check_outcome(read_it: Callable[[bytes], Completion], raw: bytes) -> None:
    try:
        completion = read_it(raw)
    except HolySheepError as error:
        message = error.message
    else:
        message = "answered"
        assert all(isinstance(choice.finish_reason, str) for choice in completion.choices)
        assert completion.usage.prompt_tokens >= 0
        assert completion.usage.completion_tokens >= 0
    assert len(message) < 1000
    assert len(message.splitlines()) == 1


class TestAnyJson:
    """Whatever JSON a server sends, the caller gets an answer or an error of the tree."""

    @pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: repr(value)[:20])
    def test_an_odd_value_in_each_place(self, value: Any) -> None:
        for template in TEMPLATES:
            for place in places_in(template):
                outcome_of(with_value(template, place, value))

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_any_value_in_any_place(self, data: st.DataObject) -> None:
        template = data.draw(st.sampled_from(TEMPLATES))
        place = data.draw(st.sampled_from(list(places_in(template))))
        outcome_of(with_value(template, place, data.draw(JSON_VALUES)))

    @settings(max_examples=100, deadline=None)
    @given(st.lists(JSON_VALUES, max_size=3))
    @example([{}])
    def test_any_values_at_all(self, parts: list[Any]) -> None:
        outcome_of(*parts)

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.sampled_from(TEMPLATES), min_size=2, max_size=5))
    def test_any_order_of_good_parts(self, parts: list[Any]) -> None:
        outcome_of(*parts)

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.binary(max_size=40), max_size=4))
    def test_any_bytes_as_a_stream(self, pieces: list[bytes]) -> None:
        with pytest.raises(HolySheepError):
            read_stream(*pieces)


class TestSurrogates:
    """JavaScript counts in UTF-16: a server that cuts there sends a character in two halves."""

    def test_two_halves_of_a_character_are_joined(self) -> None:
        raw = b"".join(
            b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % half
            for half in (b"a\\ud83d", b"\\udc11b")
        )
        assert read_stream(raw, b"data: [DONE]\n\n").first.text == "a🐑b"

    def test_a_lone_half_does_not_reach_the_caller(self) -> None:
        raw = b'{"choices":[{"message":{"content":"a\\ud83d"},"finish_reason":"stop"}]}'
        text = read_body(raw).first.text
        assert text.encode("utf-8", "replace") == text.encode("utf-8", "surrogatepass")

    def test_nor_by_way_of_other_fields(self) -> None:
        raw = (
            b'{"model":"m\\ud83d","choices":[{"finish_reason":"\\udc00","message":{"content":"a",'
            b'"reasoning":"\\ud800b","tool_calls":[{"id":"\\ud800","function":{"name":"\\udc00",'
            b'"arguments":"\\ud800"}}]}}]}'
        )
        completion = read_body(raw)
        choice = completion.first
        shown = [completion.model, choice.finish_reason, choice.reasoning, choice.tool_calls]
        json.dumps(shown, ensure_ascii=False).encode()


class TestUsage:
    @pytest.mark.parametrize(
        ("raw", "usage"),
        [
            ({"prompt_tokens": 1, "completion_tokens": 2}, Usage(1, 2)),
            ({"prompt_tokens": 1.0, "completion_tokens": 2.0}, Usage(1, 2)),
            ({"input_tokens": 1, "output_tokens": 2}, Usage(1, 2)),
            ({"prompt_tokens": 0, "completion_tokens": 0}, Usage(0, 0)),
            (
                {"prompt_tokens": 9, "completion_tokens": 2, "prompt_cache_hit_tokens": 4},
                Usage(9, 2, cached_tokens=4),
            ),
            (
                {
                    "input_tokens": 10,
                    "output_tokens": 5,
                    "cache_read_input_tokens": 1000,
                    "cache_creation_input_tokens": 200,
                },
                Usage(1210, 5, cached_tokens=1000, cache_write_tokens=200),
            ),
            (
                {
                    "input_tokens": 10,
                    "output_tokens": 5,
                    "cache_read_input_tokens": None,
                    "cache_creation_input_tokens": -1,
                },
                Usage(10, 5),
            ),
            (
                {
                    "prompt_tokens": 1210,
                    "completion_tokens": 5,
                    "cache_read_input_tokens": 1000,
                    "cache_creation_input_tokens": 200,
                },
                Usage(1210, 5, cached_tokens=1000, cache_write_tokens=200),
            ),
            (
                {
                    "input_tokens": 1210,
                    "output_tokens": 5,
                    "input_tokens_details": {"cached_tokens": 1000},
                    "cache_read_input_tokens": 1000,
                },
                Usage(1210, 5, cached_tokens=1000),
            ),
            (
                {
                    "input_tokens": 9,
                    "output_tokens": 2,
                    "cache_read_input_tokens": 3,
                    "cache_creation_input_tokens": 5,
                },
                Usage(17, 2, cached_tokens=3, cache_write_tokens=5),
            ),
            (
                {
                    "prompt_tokens": 2,
                    "completion_tokens": 2,
                    "prompt_tokens_details": {"cached_tokens": 50},
                    "completion_tokens_details": {"reasoning_tokens": 50},
                },
                Usage(2, 2, cached_tokens=2, reasoning_tokens=2),
            ),
            (
                {"prompt_tokens": 2, "completion_tokens": 2, "prompt_tokens_details": "odd"},
                Usage(2, 2),
            ),
        ],
    )
    def test_spellings(self, raw: dict[str, Any], usage: Usage) -> None:
        assert parse_usage(raw) == usage

    @pytest.mark.parametrize(
        "raw",
        [
            None,
            [],
            "usage",
            {},
            {"total_tokens": 5},
            {"prompt_tokens": 1},
            {"prompt_tokens": -1, "completion_tokens": 2},
            {"prompt_tokens": "1", "completion_tokens": "2"},
            {"prompt_tokens": 1.5, "completion_tokens": 2},
            {"prompt_tokens": True, "completion_tokens": 2},
            {"prompt_tokens": None, "completion_tokens": 2},
            {"prompt_tokens": 1e400, "completion_tokens": 2},
        ],
    )
    def test_what_cannot_be_counts_is_unusable(self, raw: Any) -> None:
        assert parse_usage(raw) is None

    @pytest.mark.parametrize("count", [10**400, 10**30, 1e300], ids=["1e400", "1e30", "1e300"])
    def test_counts_beyond_all_reason_are_unusable(self, count: float) -> None:
        assert parse_usage({"prompt_tokens": count, "completion_tokens": 2}) is None

    @pytest.mark.parametrize(
        "cost",
        [-1, "x", True, None, [], "NaN", "Infinity", "-0.5", "1e999999999", "9" * 5000],
        ids=lambda cost: repr(cost)[:20],
    )
    def test_a_cost_that_is_none_is_ignored(self, cost: Any) -> None:
        usage = parse_usage({"prompt_tokens": 1, "completion_tokens": 2, "cost": cost})
        assert usage == Usage(1, 2)

    def test_the_last_usable_usage_counts(self) -> None:
        raw = events(
            {**delta_of("x"), "usage": {"prompt_tokens": 1, "completion_tokens": 1}},
            {**delta_of("y", "stop"), "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
            {"choices": [], "usage": None},
            {"choices": [], "usage": {"prompt_tokens": "?"}},
        )
        assert read_stream(raw).usage == Usage(1, 2)

    ZEROS: ClassVar = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}

    @pytest.mark.parametrize(
        "delta",
        [
            {"content": "x"},
            {"reasoning": "x"},
            {"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
        ],
        ids=lambda delta: next(iter(delta)),
    )
    def test_zeros_beside_an_answer_are_no_report(self, delta: dict[str, Any]) -> None:
        part = {"choices": [{"delta": delta, "finish_reason": "stop"}], "usage": self.ZEROS}
        assert read_stream(events(part)).usage == Usage(estimated=True)

    def test_zeros_for_no_answer_are_one(self) -> None:
        raw = events({**delta_of(None, "stop"), "usage": self.ZEROS})
        assert read_stream(raw).usage == Usage(0, 0)

    @pytest.mark.parametrize("order", [1, -1], ids=["before", "after"])
    def test_zeros_take_nothing_from_a_good_report(self, order: int) -> None:
        good = {"prompt_tokens": 3, "completion_tokens": 2}
        reports = [{"choices": [], "usage": usage} for usage in (self.ZEROS, good)][::order]
        assert read_stream(events(delta_of("x", "stop"), *reports)).usage == Usage(3, 2)

    @pytest.mark.parametrize(("cost", "known"), [(0.5, Decimal("0.5")), (0, None)])
    def test_a_cost_beside_zeros_is_reported_all_the_same(
        self, cost: float, known: Decimal | None
    ) -> None:
        raw = events({**delta_of("x", "stop"), "usage": {**self.ZEROS, "cost": cost}})
        usage = read_stream(raw).usage
        assert (usage.estimated, usage.provider_cost_usd) == (True, known)

    def test_without_any_it_is_marked_as_estimated(self) -> None:
        assert read_stream(events(delta_of("x", "stop"))).usage.estimated
