"""What a workflow author gets when the gateway fails, for every way in which it can."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import pytest

from devtools.upstream import behaviours as do
from tests.nodes.servers import (
    Exchange,
    LoopbackServer,
    closed_port,
    event_stream,
    json_answer,
    mute_server,
)
from tests.nodes.support import (
    BAD_REQUEST,
    CONNECTION,
    RATE_LIMIT,
    REFUSED_KEY,
    UNAVAILABLE,
    Llm,
    fresh_key,
    fresh_model,
)

HOST_ERRORS = {
    "auth": REFUSED_KEY,
    "bad_request": BAD_REQUEST,
    "quota_exhausted": BAD_REQUEST,
    "rate_limited": RATE_LIMIT,
    "server_error": UNAVAILABLE,
    "bad_response": UNAVAILABLE,
    "connection_failed": CONNECTION,
    "timeout": CONNECTION,
}
"""What a failure of the gateway is for a workflow (``error_type``), and for the host (class)."""

FORMS: dict[str, dict[str, str]] = {"stream": {}, "json": {"response_format": "json_object"}}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


class Fault(NamedTuple):
    behaviour: do.Behaviour
    kinds: tuple[str, ...]
    words: tuple[str, ...] = ()


def expect(llm: Llm, fault: Fault, form: dict[str, str]) -> None:
    """The fault, met once by a node that fails and once by one that continues."""
    llm.upstream.default(fault.behaviour, model=llm.model)
    error = llm.failure(max_retries=0, **form)
    assert llm.calls == 1
    values = llm.like(api_key=fresh_key()).continued(max_retries=0, **form).variables
    assert llm.calls == 2
    assert values["error_type"] in fault.kinds
    assert values["meta"]["attempts"] == 1
    assert error.type in {HOST_ERRORS[kind] for kind in fault.kinds}
    assert HOST_ERRORS[values["error_type"]] == error.type
    for message in (error.message, values["error"]):
        assert [word for word in fault.words if word not in message] == []
        assert "<" not in message, "markup of an upstream body"
        assert '{"' not in message, "an upstream body"
    Llm(llm.plugin, llm.upstream).ok("the process lives on")


# --- status codes ---

KIND_OF_STATUS = {
    **dict.fromkeys((400, 404, 405, 406, 413, 415, 422), "bad_request"),
    **dict.fromkeys((401, 403), "auth"),
    402: "quota_exhausted",
    429: "rate_limited",
    **dict.fromkeys((408, 409, 425), "server_error"),
    **dict.fromkeys((500, 501, 502, 503, 504, 520, 524, 529), "server_error"),
}
RETRIED = {"rate_limited", "server_error", "connection_failed", "timeout", "bad_response"}
STYLES: tuple[do.BodyStyle, ...] = ("openai", "string", "anthropic", "text", "html", "empty")


@each_form
@pytest.mark.parametrize("code", KIND_OF_STATUS)
def test_status_is_told_with_its_number_and_request_id(
    llm: Llm, code: int, form: dict[str, str]
) -> None:
    fault = Fault(do.status(code), (KIND_OF_STATUS[code],), (str(code), "req_"))
    expect(llm, fault, form)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("code", [400, 401, 402, 404, 429, 500, 503])
def test_status_means_the_same_with_every_style_of_body(
    llm: Llm, code: int, style: do.BodyStyle
) -> None:
    behaviour = do.status(code, body_style=style, message="The shepherd is out")
    words = (str(code), "req_")
    if code not in (401, 403) and style not in ("html", "empty", "text"):
        words = (*words, "The shepherd is out")
    expect(llm, Fault(behaviour, (KIND_OF_STATUS[code],), words), {})


@pytest.mark.parametrize(
    ("code", "advice"),
    [(401, "key"), (403, "key"), (402, "balance"), (404, "model"), (400, "accept")],
)
def test_message_says_what_to_look_at(llm: Llm, code: int, advice: str) -> None:
    llm.upstream.script(do.status(code))
    assert advice in llm.failure(max_retries=0).message


def test_unknown_model_is_named(llm: Llm) -> None:
    llm.upstream.script(do.unknown_model())
    assert llm.model in llm.failure().message


@pytest.mark.parametrize(
    "message",
    ["two\nlines\r\nand\ttabs", "x" * 200_000, "\x00\x1b[31mred\x1b[0m", "", "  ", "天" * 5000],
    ids=["lines", "long", "controls", "empty", "space", "wide"],
)
def test_odd_words_of_upstream_become_one_short_line(llm: Llm, message: str) -> None:
    llm.upstream.script(do.status(400, message=message))
    told = llm.failure().message
    assert len(told) < 600
    assert told.isprintable()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b'"text"',
        b'{"error": null}',
        b'{"error": []}',
        b'{"error": 5}',
        b'{"error": {"message": {"nested": "object"}}}',
        b'{"error": {"message": null, "code": {}, "type": []}}',
        b'{"message": ["a", "list"]}',
        b'{"detail": [{"loc": ["body"], "msg": "field required"}]}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda body: body[:28].decode(errors="replace"),
)
@pytest.mark.parametrize("code", [400, 500])
def test_error_body_of_any_shape_is_survived(llm: Llm, code: int, body: bytes) -> None:
    with LoopbackServer({"*": json_answer(body, code)}) as server:
        error = llm.like(base_url=f"{server.url}/v1").failure(max_retries=0)
    assert str(code) in error.message
    assert error.type == (BAD_REQUEST if code == 400 else UNAVAILABLE)


@pytest.mark.parametrize("code", [204, 206, 304, 418, 451, 599])
def test_status_that_nobody_expects_fails_in_one_sentence(llm: Llm, code: int) -> None:
    llm.upstream.default(do.status(code, body_style="empty"))
    message = llm.failure(max_retries=0).message
    assert str(code) in message
    assert "redirect" not in message, "it names no other address"


@pytest.mark.parametrize("status", [200, 400])
def test_request_id_of_any_length_leaves_the_message_short(llm: Llm, status: int) -> None:
    def answer(exchange: Exchange) -> None:
        headers = {"content-type": "application/json", "x-request-id": "r" * 5000}
        exchange.answer(status, b"{}", headers)

    with LoopbackServer({"*": answer}) as server:
        message = llm.like(base_url=f"{server.url}/v1").failure(max_retries=0).message
    assert len(message) < 600


# --- redirects ---


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirect_is_not_followed(llm: Llm, code: int) -> None:
    with LoopbackServer({}) as elsewhere:
        llm.upstream.default(do.redirect(f"{elsewhere.url}/v1/chat/completions", code))
        error = llm.failure(fallback_models=fresh_model())
        assert elsewhere.seen == [], "the key must not go to another host"
    assert llm.calls == 1, "it says the same until the base URL is changed"
    assert str(code) in error.message
    assert "base URL" in error.message
    assert error.type == UNAVAILABLE


# --- errors inside a success ---


@pytest.mark.parametrize(
    ("code", "kind", "error_type"),
    [
        ("invalid_api_key", None, "auth"),
        (None, "authentication_error", "auth"),
        (None, "permission_error", "auth"),
        ("insufficient_quota", "insufficient_quota", "quota_exhausted"),
        ("model_not_found", "invalid_request_error", "bad_request"),
        ("context_length_exceeded", "invalid_request_error", "bad_request"),
        (None, "invalid_request_error", "bad_request"),
        ("rate_limit_exceeded", "rate_limit_error", "rate_limited"),
        (None, "rate_limit_error", "rate_limited"),
        (None, "overloaded_error", "server_error"),
        (None, "server_error", "server_error"),
        (None, "api_error", "server_error"),
        ("never heard of it", "never heard of it", "server_error"),
        ("429", None, "rate_limited"),
        ("401", None, "auth"),
        ("503", None, "server_error"),
        (400, None, "bad_request"),
        (402, None, "quota_exhausted"),
    ],
)
@pytest.mark.parametrize("inside", ["body", "stream", "body_for_json"])
def test_error_inside_a_success_counts_as_the_status_it_stands_for(
    llm: Llm, code: Any, kind: str | None, error_type: str, inside: str
) -> None:
    if inside == "stream":
        told = {"message": "No wool today", "code": code, "type": kind}
        behaviour = do.sse(error=told, error_after=0)
    else:
        behaviour = do.status(
            200, message="No wool today", error_type=kind or "none", error_code=code
        )
    words = () if error_type == "auth" else ("No wool today",)
    expect(
        llm, Fault(behaviour, (error_type,), words), FORMS["json" if "for" in inside else "stream"]
    )


@pytest.mark.parametrize(
    ("told", "error_type"),
    [
        ({"message": "No wool today", "code": 529}, "server_error"),
        ({"message": "No wool today", "type": "rate_limit_error"}, "rate_limited"),
        ({"type": "error", "message": "No wool today", "code": 400}, "bad_request"),
        ({"detail": "No wool today"}, "server_error"),
    ],
    ids=["code", "type", "type_error", "detail"],
)
def test_error_event_is_told_whatever_its_form(
    llm: Llm, told: dict[str, Any], error_type: str
) -> None:
    behaviour = do.sse(error=told, error_key=False, event_names=True)
    expect(llm, Fault(behaviour, (error_type,), ("No wool today",)), FORMS["stream"])


@pytest.mark.parametrize("retry", [0, 3])
def test_error_in_the_middle_of_a_stream_is_not_asked_again(llm: Llm, retry: int) -> None:
    told = {"message": "No wool today", "type": "server_error", "code": None}
    llm.upstream.default(do.sse(error=told, error_after=2, text="one two three"))
    result = llm.start(max_retries=retry).result()
    assert result.error is not None
    llm.check_error(result.error)
    assert result.error.type == UNAVAILABLE
    assert result.text == "one two "
    assert result.variables == {}
    assert llm.calls == 1


def test_error_of_a_responses_stream_is_an_error(llm: Llm) -> None:
    llm.upstream.default(do.responses(ending="failed", text=""))
    assert llm.failure(max_retries=0).type == UNAVAILABLE


# --- rate limits ---


@pytest.mark.parametrize(
    "behaviour",
    [
        do.rate_limited(3600),
        do.rate_limited("3600.5"),
        do.rate_limited(http_date_in_s=3600),
        do.rate_limited(retry_after_ms=3_600_000),
        do.rate_limited(reset_in_s=3600),
    ],
    ids=["seconds", "text", "date", "milliseconds", "reset_at"],
)
def test_rate_limit_that_resets_beyond_the_deadline_fails_at_once(
    llm: Llm, behaviour: do.Behaviour
) -> None:
    llm.upstream.default(behaviour)
    result = llm.start().result()
    assert result.error is not None
    assert result.error.type == BAD_REQUEST
    assert "429" in result.error.message
    assert result.error.message.count(" min)") == 1, "the wait is told once"
    assert "(request id " in result.error.message.partition("deadline of this call")[2]
    assert "e+" not in result.error.message, "no scientific notation for people"
    assert result.elapsed_ms < 500
    assert llm.calls == 1
    other = Llm(llm.plugin, llm.upstream)
    assert other.continued().variables["error_type"] == "quota_exhausted"


def test_rate_limit_that_resets_beyond_the_deadline_stays_what_it_is(llm: Llm) -> None:
    """Whether upstream is asked again, or known to say the same, is all one to a workflow."""
    llm.upstream.default(do.rate_limited(3600), model=llm.model)
    assert llm.continued("first").variables["error_type"] == "quota_exhausted"
    assert llm.continued("second").variables["error_type"] == "quota_exhausted"
    assert llm.failure("third").type == BAD_REQUEST
    for number in range(2):
        second = fresh_model()
        values = llm.ok(f"fallback {number}", fallback_models=second).variables
        assert values["model_used"] == second


@pytest.mark.parametrize(
    ("behaviour", "least_ms"),
    [
        (do.rate_limited(0.12), 120),
        (do.rate_limited("0.12"), 120),
        (do.rate_limited(retry_after_ms=120), 120),
        (do.rate_limited(60, retry_after_ms=120), 120),
        (do.rate_limited(reset_in_s=0.12), 100),
        (do.rate_limited(http_date_in_s=0), 0),
        (do.rate_limited(0), 0),
        (do.rate_limited("-5"), 0),
    ],
    ids=["seconds", "text", "milliseconds", "both", "reset_at", "date", "zero", "negative"],
)
def test_rate_limit_is_waited_out_as_long_as_upstream_asks(
    llm: Llm, behaviour: do.Behaviour, least_ms: float
) -> None:
    llm.upstream.script(behaviour)
    result = llm.ok()
    assert result.variables["meta"]["attempts"] == 2
    assert least_ms <= result.elapsed_ms < least_ms + 1200
    arrivals = llm.upstream.arrivals()
    assert arrivals[1] - arrivals[0] >= least_ms * 0.95


@pytest.mark.parametrize("hint", ["soon", "", "1h", "nan", "Mon, 99 Foo 2026"], ids=repr)
def test_rate_limit_with_an_unreadable_time_is_waited_out_all_the_same(llm: Llm, hint: str) -> None:
    llm.upstream.script(do.rate_limited(hint))
    result = llm.start(timeout_s=1).result()
    if result.error is None:
        assert result.variables["meta"]["attempts"] == 2
    else:
        llm.check_error(result.error)


# --- connections ---

BREAKS: dict[str, do.Behaviour] = {
    f"{how}_{after}": do.reset(after, how=how, text="one two three four", chunks=1)
    for how in ("rst", "fin")
    for after in ("accept", "headers", "chunks")
}


@each_form
@pytest.mark.parametrize("behaviour", BREAKS.values(), ids=BREAKS)
def test_connection_that_breaks_is_told_as_such(
    llm: Llm, behaviour: do.Behaviour, form: dict[str, str]
) -> None:
    expect(llm, Fault(behaviour, ("connection_failed",)), form)


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_stream_that_breaks_after_text_is_not_asked_again(llm: Llm, how: Any) -> None:
    llm.upstream.default(do.reset("chunks", how=how, text="one two three four", chunks=2))
    result = llm.start(max_retries=3, fallback_models="another").result()
    assert result.error is not None
    assert result.error.type == CONNECTION
    assert result.text == "one two "
    assert llm.calls == 1


def test_nobody_listening(llm: Llm) -> None:
    other = llm.like(base_url=f"http://127.0.0.1:{closed_port()}/v1")
    assert other.failure(max_retries=0).type == CONNECTION
    values = other.continued(max_retries=0).variables
    assert values["error_type"] == "connection_failed"
    assert "base URL" in values["error"]


def test_host_that_does_not_exist(llm: Llm) -> None:
    other = llm.like(base_url="http://gateway.invalid/v1")
    error = other.failure(max_retries=0)
    assert error.type == CONNECTION


@pytest.mark.parametrize(
    "words",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x00\x01\x02\x03",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad",
    ],
    ids=["ssh", "binary", "no_status", "half_a_head"],
)
def test_server_that_speaks_no_http(llm: Llm, words: bytes) -> None:
    def speak(exchange: Exchange) -> None:
        exchange.send(words)
        exchange.close_connection = True

    with LoopbackServer({"*": speak}) as server:
        error = llm.like(base_url=f"{server.url}/v1").failure(max_retries=0)
    assert error.type == CONNECTION


@pytest.mark.parametrize("after_ms", [0, 2], ids=["at_once", "soon_after"])
def test_idle_connection_that_the_server_closed_is_replaced_silently(
    llm: Llm, after_ms: float
) -> None:
    others = llm.upstream.stats().open_connections
    llm.upstream.script(do.close_keepalive(after_ms))
    llm.ok("one")
    llm.upstream.wait_for(lambda stats: stats.open_connections <= others)
    assert llm.ok("two", max_retries=0).variables["meta"]["attempts"] == 1
    assert llm.calls == 2


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_connection_that_is_dropped_on_reuse_is_tried_again(llm: Llm, how: Any) -> None:
    llm.ok("one")
    llm.upstream.script(do.drop_on_reuse(how))
    assert llm.ok("two").variables["meta"]["attempts"] <= 2


def test_connection_is_used_again_after_success_and_failure(llm: Llm) -> None:
    limited = do.rate_limited(retry_after_ms=1)
    llm.upstream.script(do.ok(), do.status(400), do.json_for_stream(), limited, do.server_error())
    for number in range(6):
        llm.start(f"call {number}", max_retries=0).wait()
    assert llm.upstream.stats().connections == 1


# --- malformed answers ---

MALFORMED: dict[str, tuple[str, ...]] = {
    "truncated_json": ("bad_response", "connection_failed"),
    "not_json": ("bad_response",),
    "html": ("bad_response",),
    "no_choices": ("bad_response",),
    "empty_choices": ("bad_response",),
    "json_array": ("bad_response",),
    "empty_body": ("bad_response", "connection_failed"),
}


@each_form
@pytest.mark.parametrize(("kind", "kinds"), MALFORMED.items(), ids=MALFORMED)
def test_malformed_answer_is_told_as_such(
    llm: Llm, kind: do.MalformedKind, kinds: tuple[str, ...], form: dict[str, str]
) -> None:
    expect(llm, Fault(do.malformed(kind), kinds), form)


def test_body_that_is_shorter_than_announced_is_no_answer(llm: Llm) -> None:
    expect(llm, Fault(do.malformed("short_body"), ("connection_failed",)), FORMS["json"])


def test_stream_that_has_come_to_its_end_is_an_answer_however_the_connection_ends(llm: Llm) -> None:
    llm.upstream.script(do.malformed("short_body"))
    assert llm.ok(max_retries=0).text.startswith("You said")


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_stream_that_breaks_off_behind_its_finish_reason_is_an_answer(llm: Llm, how: Any) -> None:
    llm.upstream.script(do.reset("finish", how=how, text="one two"))
    values = llm.ok(max_retries=0).variables
    assert (values["result"], values["finish_reason"]) == ("one two", "stop")
    assert values["usage"]["estimated"] is True
    assert values["tokens_used"] > 0


def test_usage_of_zeros_is_estimated(llm: Llm) -> None:
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    llm.upstream.script(do.ok("one two", usage=zeros))
    values = llm.ok().variables
    assert values["usage"]["estimated"] is True
    assert values["tokens_used"] > 0


def test_web_page_is_named(llm: Llm) -> None:
    llm.upstream.script(do.malformed("html"))
    message = llm.failure(max_retries=0).message
    assert "web page" in message
    assert "base URL" in message


@pytest.mark.parametrize("kind", ["invalid_utf8", "nan"])
def test_answer_that_is_nearly_right_is_read_or_refused(llm: Llm, kind: do.MalformedKind) -> None:
    llm.upstream.default(do.malformed(kind))
    result = llm.start(max_retries=0).result()
    if result.error is None:
        llm.check_ok(result)
        assert "You said" in result.text
    else:
        llm.check_error(result.error)
        assert result.error.type == UNAVAILABLE


@each_form
def test_compressed_answer_is_decoded(llm: Llm, form: dict[str, str]) -> None:
    llm.upstream.script(do.malformed("gzip"))
    assert llm.ok(**form).text


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_wrongly_compressed_answer_fails_in_one_sentence(llm: Llm, encoding: str) -> None:
    def lie(exchange: Exchange) -> None:
        headers = {"content-type": "application/json", "content-encoding": encoding}
        exchange.answer(200, b"this is not compressed at all", headers)

    with LoopbackServer({"*": lie}) as server:
        error = llm.like(base_url=f"{server.url}/v1").failure(max_retries=0)
    assert error.type == UNAVAILABLE


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"choices":' * 50_000,
        b"5",
        b"null",
        b'"text"',
        b'{"choices": "none"}',
        b'{"choices": [5]}',
        b'{"choices": [null]}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": "text"}]}',
        b'{"choices": [{"message": {"content": 5}}]}',
        b'{"choices": [{"message": {"content": {"a": 1}}}]}',
        b'{"choices": [{"message": {"content": "x", "tool_calls": {"a": 1}}}]}',
        b'{"choices": [{"message": {"content": "x", "tool_calls": [{"function": 5}]}}]}',
        b'{"choices": [{"index": "0", "message": {"content": "x"}, "finish_reason": 5}]}',
        b'{"choices": [{"message": {"content": "x"}}], "usage": "many"}',
        b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": [1]}}',
        b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 1e400}}',
        b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 1e40}}',
        b'{"choices": [{"message": {"content": "x"}}], "model": {"a": 1}}',
        b'{"choices": [{"message": {"content": "x"}, "logprobs": {"content": 5}}]}',
        b'{"choices": [{"message": {"content": ["a", {"text": 5}, null]}}]}',
        b'{"object": "response", "output": "none"}',
        b'{"object": "response", "output": 5, "usage": {"input_tokens": null}}',
        b'{"type": "response.output_text.delta", "delta": {"a": 1}}',
        b'{"type": "response.completed", "response": []}',
        b'{"error": {"message": ["a"], "code": 1.5, "type": {}}}',
        b'{"error": true}',
        b'{"error": "text", "message": {"a": 1}, "resetAt": [1]}',
        b'{"error": {"message": "m", "resetAt": "9999999-01-01", "remainingMinutes": "x"}}',
        b'{"error": {"message": "m"}, "resetAt": 1e308}',
    ],
    ids=lambda body: (
        body[:90].decode() if len(body) < 200 else f"{len(body)} x {body[:11].decode()}"
    ),
)
@pytest.mark.parametrize("form", ["body", "stream"])
def test_answer_of_any_shape_is_read_or_refused_in_one_sentence(
    llm: Llm, body: bytes, form: str
) -> None:
    route = (
        json_answer(body)
        if form == "body"
        else event_stream([b"data: " + body + b"\n\n", b"data: [DONE]\n\n"])
    )
    with LoopbackServer({"*": route}) as server:
        result = llm.like(base_url=f"{server.url}/v1").start(max_retries=0).result()
    if result.error is None:
        llm.check_ok(result)
    else:
        llm.check_error(result.error)


def test_answer_that_never_ends_is_given_up(llm: Llm) -> None:
    def flood(exchange: Exchange) -> None:
        exchange.begin(200, {"content-type": "application/json"})
        piece = b'{"choices": ["' + b" " * 1024 * 1024
        while True:
            exchange.send(piece)

    with LoopbackServer({"*": flood}) as server:
        error = llm.like(base_url=f"{server.url}/v1").failure(max_retries=0)
    assert error.type in (UNAVAILABLE, CONNECTION)


# --- streams in all spellings ---

SPELLINGS: dict[str, dict[str, Any]] = {
    "crlf": {"line_end": "\r\n"},
    "cr": {"line_end": "\r"},
    "no_space": {"space": False},
    "byte_order_mark": {"bom": True},
    "comments": {"comments": True},
    "signs_of_life_as_data": {"keep_alive": ": OPENROUTER PROCESSING"},
    "data_lines": {"data_lines": True},
    "event_names": {"event_names": True},
    "no_done": {"done": False},
    "no_finish_reason": {"finish": False},
    "no_final_newline": {"final_newline": False},
    "no_final_newline_no_done": {"final_newline": False, "done": False},
    "byte_by_byte": {"split_bytes": 1},
    "three_bytes": {"split_bytes": 3},
    "crlf_split": {"line_end": "\r\n", "split_bytes": 1},
    "bom_split": {"bom": True, "split_bytes": 1},
    "usage_last": {"usage_in": "last"},
    "usage_every": {"usage_in": "every"},
    "usage_null": {"usage_in": "null"},
    "usage_missing": {"usage_in": "missing"},
    "text_as_parts": {"content_parts": True},
    "azure_filter": {"prompt_filter": True},
    "logprobs": {"logprobs": True},
    "responses": {"dialect": "responses"},
    "responses_incomplete": {"dialect": "responses", "ending": "incomplete"},
    "plain_text_type": {"content_type": "text/plain"},
    "json_type": {"content_type": "application/json"},
    "no_type": {"content_type": "application/octet-stream"},
}
ODD_TEXT = "Grüße \U0001f411 \u2028 \u2029 \u0085 data: [DONE] \r\n\n: no comment \\n"


@pytest.mark.parametrize("wire", SPELLINGS.values(), ids=SPELLINGS)
def test_stream_is_read_in_every_spelling(llm: Llm, wire: dict[str, Any]) -> None:
    llm.upstream.default(do.sse(text=ODD_TEXT, **wire))
    result = llm.ok(max_retries=0)
    assert result.text == ODD_TEXT
    assert llm.calls == 1
    Llm(llm.plugin, llm.upstream).ok("and the connection is in order")


def test_large_event_is_read(llm: Llm) -> None:
    llm.upstream.script(do.sse(event_bytes=1_500_000))
    assert len(llm.ok().text) == 1_500_000


@pytest.mark.parametrize(
    "wire", [{"cut": True}, {"cut": True, "dialect": "responses"}], ids=["chat", "responses"]
)
def test_stream_without_an_end_is_an_error_and_no_short_answer(
    llm: Llm, wire: dict[str, Any]
) -> None:
    llm.upstream.default(do.sse(text="half an answer", **wire))
    result = llm.start().result()
    assert result.error is not None
    llm.check_error(result.error)
    assert result.error.type == CONNECTION
    assert llm.calls == 1


@pytest.mark.parametrize("text", ["", "one two three"], ids=["empty", "text"])
def test_json_for_a_stream_is_read(llm: Llm, text: str) -> None:
    llm.upstream.script(do.json_for_stream(text=text))
    assert llm.ok().text == text


@pytest.mark.parametrize(
    "stream",
    [None, do.sse(usage_in="missing"), do.sse(done=False), do.responses()],
    ids=["plain", "no_usage", "no_done", "responses"],
)
def test_stream_for_json_is_read(llm: Llm, stream: do.Behaviour | None) -> None:
    stream = do.sse(usage_in="last") if stream is None else stream
    llm.upstream.script(do.sse_for_json(stream | {"text": '{"a": 1}'}))
    assert llm.ok(response_format="json_object").variables["structured"] == {"a": 1}


def test_answer_with_several_choices_gives_the_first(llm: Llm) -> None:
    values = llm.ok(options={"extra_body": {"n": 3}}).variables
    assert values["result"].startswith("You said")
    assert "(1)" not in values["result"]


# --- time ---

HANGING: dict[str, do.Behaviour] = {
    "before_headers": do.stall("headers", 30),
    "before_body": do.stall("first_chunk", 30),
    "after_text": do.stall("after_chunks", 30, text="one two three four"),
    "trickled_headers": do.trickle(0.05, what="headers"),
    "trickled_body": do.trickle(0.05, what="body"),
    "trickled_fast": do.trickle(0.002, what="body"),
}


def test_whatever_hangs_is_cut_at_the_deadline(llm: Llm) -> None:
    """All at once, so that it takes the one second only once; both forms, failing or not."""
    calls = []
    for form_name, form in FORMS.items():
        for name, behaviour in HANGING.items():
            for on_error in ("fail", "continue"):
                own = Llm(llm.plugin, llm.upstream)
                llm.upstream.default(behaviour, model=own.model)
                call = own.start(timeout_s=1, on_error=on_error, max_retries=3, **form)
                calls.append((f"{form_name} {name} {on_error}", own, call))
    upstream_calls = len(calls)
    stack = contextlib.ExitStack()
    mute, full = stack.enter_context(mute_server()), stack.enter_context(mute_server(full=True))
    addresses = {"answer": f"http://{mute}", "tls": f"https://{mute}", "connect": f"http://{full}"}
    for name, address in addresses.items():
        for on_error in ("fail", "continue"):
            own = Llm(llm.plugin, llm.upstream, base_url=f"{address}/v1")
            call = own.start(timeout_s=1, on_error=on_error)
            calls.append((f"{name} {on_error}", own, call))
    seen, wanted, late = {}, {}, {}
    for name, own, call in calls:
        result = call.result()
        if name.endswith("fail"):
            assert result.error is not None, name
            own.check_error(result.error)
            seen[name], wanted[name] = result.error.type, CONNECTION
            assert "timeout_s" in result.error.message, name
        else:
            assert result.error is None, name
            seen[name], wanted[name] = result.variables["error_type"], "timeout"
            assert result.variables["meta"]["attempts"] == 1
        late[name] = result.elapsed_ms
    stack.close()
    assert seen == wanted
    assert {name: ms for name, ms in late.items() if not 950 <= ms <= 1500} == {}
    assert llm.calls == upstream_calls
    stats = llm.upstream.wait_for(lambda stats: stats.in_flight == 0)
    assert stats.aborted_by_client >= upstream_calls
    llm.ok("the process lives on")


# --- trying again ---


def test_passing_faults_are_tried_again_and_others_are_not(llm: Llm) -> None:
    """All at once; the first wait of each is up to half a second."""
    faults: dict[str, tuple[do.Behaviour, bool]] = {
        **{
            f"status {code}": (do.status(code), kind in RETRIED)
            for code, kind in KIND_OF_STATUS.items()
            if code != 429
        },
        **{
            f"break {name}": (behaviour, not name.endswith("chunks"))
            for name, behaviour in BREAKS.items()
        },
        "error in stream": (do.sse(error={"message": "m", "type": "server_error"}), True),
        "error in body": (do.status(200, error_type="overloaded_error"), True),
        "bad request in body": (do.status(200, error_type="invalid_request_error"), False),
        "malformed": (do.malformed("not_json"), True),
        "page": (do.malformed("html"), True),
    }
    calls = {}
    for name, (behaviour, _) in faults.items():
        own = Llm(llm.plugin, llm.upstream)
        llm.upstream.script(behaviour, model=own.model)
        calls[name] = (own, own.start(max_retries=1))
    answered = {}
    for name, (own, call) in calls.items():
        result = call.result()
        answered[name] = result.error is None
        if result.error is None:
            values = own.check_ok(result)
            assert values["meta"]["attempts"] == 2, name
        else:
            own.check_error(result.error)
    assert answered == {name: retried for name, (_, retried) in faults.items()}
    counts = llm.upstream.stats().calls_by_model
    assert {name: counts[own.model] for name, (own, _) in calls.items()} == {
        name: 1 + retried for name, (_, retried) in faults.items()
    }
