"""Upstream's failures as errors: the right class, one clean line, bounded, nothing secret in it."""

import json
import time
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holysheep import config
from holysheep.errors import (
    AuthError,
    BadRequest,
    BadResponse,
    HolySheepError,
    QuotaExhausted,
    RateLimited,
    Redirected,
    ServerError,
    TransientConflict,
    UnknownModel,
    UpstreamError,
)
from holysheep.faults import error_for, error_in_body, looks_like_page, retry_after
from holysheep.redact import redact
from holysheep.wording import shortened

BODIES = Path(__file__).parent / "bodies"
KEY = "test-key-0123456789abcdef"
NOON = datetime(2026, 11, 5, 12, 0, tzinfo=UTC).timestamp()


def error_of(
    status: int,
    body: Any = b"",
    headers: dict[str, str] | None = None,
    *,
    secrets: tuple[str, ...] = (KEY,),
    model: str = "gpt-9",
) -> UpstreamError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return error_for(
        status, httpx.Headers(headers or {}), raw, model=model, wall_s=NOON, secrets=secrets
    )


def field(name: str, status: int, headers: dict[str, str] | None = None) -> UpstreamError:
    """The error for a body as it was met in the field."""
    return error_of(status, (BODIES / name).read_bytes(), headers)


class TestStatus:
    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (400, BadRequest),
            (401, AuthError),
            (402, QuotaExhausted),
            (403, AuthError),
            (404, UnknownModel),
            (405, BadRequest),
            (408, TransientConflict),
            (409, TransientConflict),
            (410, BadRequest),
            (413, BadRequest),
            (415, BadRequest),
            (418, BadRequest),
            (422, BadRequest),
            (425, TransientConflict),
            (429, RateLimited),
            (451, BadRequest),
            (500, ServerError),
            (501, ServerError),
            (502, ServerError),
            (503, ServerError),
            (504, ServerError),
            (520, ServerError),
            (529, ServerError),
            (599, ServerError),
            (999, ServerError),
            (300, Redirected),
            (301, Redirected),
            (302, Redirected),
            (303, Redirected),
            (307, Redirected),
            (308, Redirected),
            (304, BadResponse),
        ],
    )
    def test_status_decides_the_class(self, status: int, kind: type[UpstreamError]) -> None:
        error = error_of(status, {"error": {"message": "It says so."}}, {"x-request-id": "req-7"})
        assert type(error) is kind
        assert error.status == status
        assert error.request_id == "req-7"
        assert f"HTTP {status}" in error.message
        assert error.message.endswith("(request id req-7)")

    @pytest.mark.parametrize("status", [201, 202, 203, 204, 206, 101])
    def test_a_success_that_is_not_200_is_not_called_a_redirect(self, status: int) -> None:
        error = error_of(status)
        assert isinstance(error, BadResponse)
        assert "redirect" not in error.message

    @pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
    def test_a_redirect_is_no_outage_and_no_reason_to_ask_again(self, status: int) -> None:
        error = error_of(status, b"", {"location": "/v2"})
        assert isinstance(error, BadResponse)
        assert error.error_type == "bad_response"
        assert (error.retryable, error.falls_back, error.is_outage) == (False, False, False)

    @pytest.mark.parametrize("name", ["x-request-id", "request-id", "x-requestid", "cf-ray"])
    def test_request_ids_by_their_names(self, name: str) -> None:
        assert error_of(500, b"", {name.upper(): "abc"}).request_id == "abc"

    def test_without_an_id_the_message_does_not_mention_one(self) -> None:
        assert "request id" not in error_of(500).message

    @pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422, 429, 500, 301])
    def test_every_message_says_what_to_do_or_what_upstream_said(self, status: int) -> None:
        error = error_of(status, {"error": {"message": "Because of that"}})
        told = error.message
        advice = ("Check", "Top it up", "Try again", "Because of that.")
        assert any(words in told for words in advice)


class TestField:
    """Bodies as gateways send them, one file each under ``bodies``."""

    def test_openai_rate_limit(self) -> None:
        error = field("error_openai_rate_limit.json", 429, {"retry-after": "1"})
        assert isinstance(error, RateLimited)
        assert error.retry_after_s == 1
        assert "It asks to wait 1 s. It says: Rate limit reached for gpt-4.1" in error.message

    def test_openai_no_quota_comes_as_429_and_is_no_rate_limit(self) -> None:
        assert isinstance(field("error_openai_no_quota.json", 429), QuotaExhausted)

    def test_openai_unknown_model(self) -> None:
        error = field("error_openai_unknown_model.json", 404)
        assert isinstance(error, UnknownModel)
        assert "does not know the model 'gpt-9' (HTTP 404)" in error.message
        assert "models list" in error.message

    def test_openai_context_length(self) -> None:
        error = field("error_openai_context_length.json", 400)
        assert type(error) is BadRequest
        assert error.param == "messages"
        assert "maximum context length is 128000 tokens" in error.message

    def test_relay_concurrency(self) -> None:
        error = field("error_relay_concurrency.json", 429, {"retry-after": "1"})
        assert isinstance(error, RateLimited)
        assert error.message == (
            "The gateway's rate limit is reached (HTTP 429). It asks to wait 1 s. It says:"
            " Concurrency limit exceeded: Too many concurrent requests for this key: 5 of 5."
        )

    def test_relay_window_says_when_it_resets(self) -> None:
        error = field("error_relay_window.json", 429)
        assert isinstance(error, RateLimited)
        assert error.retry_after_s == 1800

    def test_relay_daily_cost(self) -> None:
        error = field("error_relay_daily_cost.json", 402)
        assert isinstance(error, QuotaExhausted)
        assert "Daily cost limit exceeded: The daily limit of $10 is reached." in error.message

    def test_anthropic_overloaded(self) -> None:
        error = field("error_anthropic_overloaded.json", 529)
        assert isinstance(error, ServerError)
        assert error.message == (
            "The gateway failed (HTTP 529). It says: Overloaded. Try again later."
        )

    def test_fastapi_detail(self) -> None:
        assert "It says: Method Not Allowed." in field("error_fastapi_detail.json", 405).message

    def test_fastapi_validation_shows_no_raw_structure(self) -> None:
        error = field("error_fastapi_validation.json", 422)
        assert error.message == "The gateway did not accept the request (HTTP 422)."

    def test_a_page_is_not_shown(self) -> None:
        error = field("error_nginx_502.html", 502, {"content-type": "text/html"})
        assert isinstance(error, ServerError)
        assert "web page" in error.message
        assert "nginx" not in error.message

    def test_a_page_for_404_is_no_unknown_model(self) -> None:
        error = error_of(404, b"<html>Not Found</html>")
        assert type(error) is BadRequest
        assert "base URL" in error.message

    @pytest.mark.parametrize(
        "body",
        [
            b"Traceback (most recent call last):\n  File x\nKeyError: 5",
            b'{"message": "cut',
            b'data: {"error": {"message": "x"}}\n\n',
            b"\x1f\x8b\x08\x00\x00\xff\xfe\x00binary",
            b"<?xml version='1.0'?><Error/>",
        ],
        ids=["traceback", "cut JSON", "event", "binary", "XML"],
    )
    def test_other_text_is_not_shown(self, body: bytes) -> None:
        assert error_of(503, body).message == "The gateway failed (HTTP 503). Try again later."


class TestUnknownModel:
    @pytest.mark.parametrize(
        "body",
        [
            {"error": {"code": "model_not_found", "message": "no"}},
            {"error": {"code": "unknown_model"}},
            {"error": {"message": "The model `x` does not exist"}},
            {"error": "Unsupported model", "message": "x"},
            {"detail": "Model not found: x"},
        ],
    )
    @pytest.mark.parametrize("status", [400, 422])
    def test_refusals_that_are_about_the_model(self, body: Any, status: int) -> None:
        assert isinstance(error_of(status, body), UnknownModel)

    @pytest.mark.parametrize(
        "message",
        ["This model's maximum context length is 5", "temperature is not allowed", "not found"],
    )
    def test_other_refusals(self, message: str) -> None:
        assert type(error_of(400, {"error": {"message": message}})) is BadRequest

    def test_a_parameter_that_a_model_does_not_take_is_no_unknown_model(self) -> None:
        told = "Unsupported parameter: 'temperature' is not supported with this model."
        body = {"error": {"message": told, "param": "temperature", "code": "unsupported_parameter"}}
        assert type(error_of(400, body)) is BadRequest

    def test_a_long_or_odd_model_id_keeps_the_message_short(self) -> None:
        error = error_of(404, model="x\n" * 5000)
        assert len(error.message) < 300
        assert len(error.message.splitlines()) == 1


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({}, None),
            ({"retry-after": "7"}, 7),
            ({"retry-after": "0.25"}, 0.25),
            ({"retry-after": "0"}, 0),
            ({"retry-after": "-5"}, 0),
            ({"retry-after": " 7 "}, 7),
            ({"retry-after": formatdate(NOON + 90, usegmt=True)}, 90),
            ({"retry-after": formatdate(NOON - 90, usegmt=True)}, 0),
            ({"retry-after": "Thu, 05 Nov 2026 13:01:30 +0100"}, 90),
            ({"retry-after": "Thu, 05 Nov 2026 12:01:30"}, 90),
            ({"retry-after": "Thursday, 05-Nov-26 12:01:30 GMT"}, 90),
            ({"retry-after-ms": "1500"}, 1.5),
            ({"retry-after-ms": "-1"}, 0),
            ({"retry-after-ms": "1500", "retry-after": "60"}, 1.5),
            ({"retry-after-ms": "soon", "retry-after": "60"}, 60),
            ({"retry-after": "soon"}, None),
            ({"retry-after": ""}, None),
            ({"retry-after": "nan"}, None),
            ({"retry-after": "inf"}, None),
            ({"retry-after": "1e400"}, None),
            ({"retry-after": "Thu, 99 Nov 2026 12:01:30 GMT"}, None),
        ],
    )
    def test_header(self, headers: dict[str, str], seconds: float | None) -> None:
        assert retry_after(httpx.Headers(headers), NOON) == seconds

    @pytest.mark.parametrize(
        "value",
        [
            f"Wed, {'9' * 20} Oct 2099 07:28:00 GMT",
            f"Wed, 21 Oct {'9' * 20} 07:28:00 GMT",
            f"Wed, 21 Oct 2099 {'9' * 20}:28:00 GMT",
            f"Wed, 21 Oct 2099 07:28:00 +{'9' * 20}",
            "Wed, 21 Oct 2099 07:28:00 +9999",
            f"Wed, {'9' * 5000} Oct 2099 07:28:00 GMT",
            "9" * 5000,
        ],
        ids=["day", "year", "hour", "zone", "small zone", "digits", "number"],
    )
    def test_a_header_that_is_no_time_is_ignored(self, value: str) -> None:
        error = error_of(429, b"", {"retry-after": value})
        assert error.retry_after_s is None or error.retry_after_s >= 0

    @settings(max_examples=300)
    @given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
    def test_any_header_text_raises_nothing(self, value: str) -> None:
        seconds = retry_after({"retry-after": value, "retry-after-ms": value[::-1]}, NOON)
        assert seconds is None or seconds >= 0

    @pytest.mark.parametrize(
        ("fields", "seconds"),
        [
            ({"resetAt": "2026-11-05T12:01:00Z"}, 60),
            ({"resetAt": "2026-11-05T12:01:00.500+00:00"}, 60.5),
            ({"resetAt": "2026-11-05T12:01:00"}, 60),
            ({"reset_at": "2026-11-05T12:01:00Z"}, 60),
            ({"resetAt": NOON + 60}, 60),
            ({"resetAt": (NOON + 60) * 1000}, 60),
            ({"resetAt": str(int(NOON) + 60)}, 60),
            ({"resetAt": "2020-01-01T00:00:00Z"}, 0),
            ({"remainingMinutes": 2}, 120),
            ({"resetAt": "nonsense", "remainingMinutes": 2}, 120),
            ({"resetAt": None, "remainingMinutes": 2}, 120),
            ({"resetAt": True}, None),
            ({"resetAt": []}, None),
            ({"remainingMinutes": -3}, 0),
        ],
    )
    def test_body(self, fields: dict[str, Any], seconds: float | None) -> None:
        at_top = error_of(429, {"error": "Rate limit exceeded", **fields})
        inside = error_of(429, {"error": {"message": "Rate limit exceeded", **fields}})
        assert at_top.retry_after_s == seconds
        assert inside.retry_after_s == seconds

    def test_a_header_wins_over_the_body(self) -> None:
        error = error_of(429, {"resetAt": NOON + 60}, {"retry-after": "5"})
        assert error.retry_after_s == 5

    @pytest.mark.parametrize("status", [429, 500, 503, 529, 409])
    def test_each_retryable_status_carries_it(self, status: int) -> None:
        assert error_of(status, b"", {"retry-after": "5"}).retry_after_s == 5

    @pytest.mark.parametrize(
        "reset", [10**400, -(10**400), 1e308], ids=["1e400", "-1e400", "1e308"]
    )
    def test_a_reset_beyond_all_numbers_raises_nothing(self, reset: float) -> None:
        for name in ("resetAt", "remainingMinutes"):
            error = error_of(429, {"error": {"message": "no"}, name: reset})
            assert isinstance(error, RateLimited)


class TestInsideSuccess:
    """The table itself is tested where it is used, in ``test_wire``."""

    @pytest.mark.parametrize("code", ["4" * 5000, "٤٢٩", "429.0", "0429", " 429", "1e3"])
    def test_odd_codes_raise_nothing(self, code: str) -> None:
        error = error_in_body({"code": code}, model="m", wall_s=NOON)
        assert isinstance(error, UpstreamError)


class TestMessage:
    DIRTY = "two\nlines\r\n and\ttabs \x1b[31mred\x1b[0m \x00 \x07 \u202eback \u2028 \x85 end"

    @pytest.mark.parametrize("status", [400, 402, 404, 409, 429, 500])
    def test_one_line(self, status: int) -> None:
        error = error_of(status, {"error": {"message": self.DIRTY}}, {"x-request-id": "a"})
        assert len(error.message.splitlines()) == 1

    @pytest.mark.parametrize("status", [400, 402, 404, 409, 429, 500])
    def test_no_control_characters(self, status: int) -> None:
        error = error_of(status, {"error": {"message": self.DIRTY}}, model="a\x1bb\u202e")
        assert error.message.isprintable()

    @pytest.mark.parametrize("status", [400, 402, 404, 409, 429, 500])
    def test_bounded(self, status: int) -> None:
        error = error_of(
            status, {"error": {"message": "x" * 60_000}}, {"x-request-id": "y" * 60_000}
        )
        assert len(error.message) < 1000
        assert len(error.detail) <= 200

    def test_a_long_wait_is_told_in_few_digits(self) -> None:
        assert len(error_of(429, b"", {"retry-after": "1e300"}).message) < 200

    def test_a_json_body_without_a_message_is_not_shown(self) -> None:
        for body in ({"error": {"foo": "bar"}}, {"foo": "bar"}, ["foo"], "foo", 5, None):
            assert "foo" not in error_of(500, body).message

    def test_a_json_body_that_was_cut_is_not_shown(self) -> None:
        whole = json.dumps({"foo": "x" * 100_000}).encode()
        assert "foo" not in error_of(500, whole[: config.MAX_ERROR_BODY_BYTES]).message

    def test_a_message_that_is_no_text_is_not_shown(self) -> None:
        for message in ({"foo": 1}, ["foo"], 5, True):
            assert "It says" not in error_of(500, {"error": {"message": message}}).message

    def test_what_a_refused_key_s_answer_says_is_shown_nowhere(self) -> None:
        told = "Incorrect API key provided: test-key-********cdef."
        for status in (401, 403):
            error = error_of(status, {"error": {"message": told}})
            assert "cdef" not in f"{error.message}{error.detail}{error.args}"

    def test_hostile_text_costs_no_time(self) -> None:
        began_s = time.process_time()
        for hostile in ("http://", "https://a@", "bearer ", "sk-", "x-api-key: ", "http://a:b@"):
            error_of(500, {"error": {"message": hostile * (16_000 // len(hostile))}})
        assert time.process_time() - began_s < 0.25

    @pytest.mark.parametrize(
        "body",
        [b'{"a":' + b"[" * 60_000, b"[" * 60_000, b'{"a":' * 10_000],
        ids=["list in object", "list", "objects"],
    )
    def test_a_deeply_nested_body_raises_nothing(self, body: bytes) -> None:
        error = error_of(503, body)
        assert isinstance(error, ServerError)
        assert "[[[[" not in error.message

    @settings(max_examples=200, deadline=None)
    @given(
        st.integers(300, 599),
        st.binary(max_size=200)
        | st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["error", "message", "code", "type", "detail", "resetAt"]),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
        st.dictionaries(
            st.sampled_from(["retry-after", "retry-after-ms", "content-type", "x-request-id"]),
            st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20),
        ),
    )
    def test_any_answer_becomes_one_bounded_line(
        self, status: int, body: bytes, headers: dict[str, str]
    ) -> None:
        error = error_of(status, body, headers)
        assert isinstance(error, HolySheepError)
        assert len(error.message.splitlines()) == 1
        assert len(error.message) < 1000


class TestSecrets:
    """What comes from outside is shown without the key, wherever it stands."""

    PLACES = (
        "Bad key {key}",
        "{key}",
        "'{key}'",
        '{{"authorization": "Bearer {key}"}}',
        "Authorization: Bearer {key} is wrong",
        "https://user:{key}@host/v1?x=1",
        "https://host/v1?api_key={key}",
        "xx{key}yy",
        "{key}{key}",
        "x" * 195 + "{key}",
        "\u202e{key}",
    )

    @pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 429, 500, 301])
    @pytest.mark.parametrize("place", PLACES)
    def test_message_text_and_id(self, place: str, status: int) -> None:
        told = place.format(key=KEY)
        headers = {"x-request-id": KEY, "content-type": "text/plain"}
        bodies = ({"error": {"message": told}}, {"error": told, "message": told}, told.encode())
        for body in bodies:
            error = error_of(status, body, headers, model=KEY)
            shown = f"{error} {error.message} {error.detail} {error.args} {error!r}"
            assert KEY not in shown

    def test_the_request_id_attribute(self) -> None:
        error = error_of(500, b"", {"x-request-id": f"id-{KEY}"})
        assert KEY not in str(error.request_id)

    def test_the_param_attribute(self) -> None:
        error = error_of(400, {"error": {"message": "no", "param": f"x {KEY}"}})
        assert isinstance(error, BadRequest)
        assert KEY not in str(error.param)

    @settings(max_examples=300)
    @given(
        st.text("abcXYZ019_-", min_size=20, max_size=40),
        st.text(max_size=30),
        st.text(max_size=30),
    )
    def test_a_known_secret_never_passes(self, secret: str, before: str, after: str) -> None:
        assert secret not in redact(f"{before}{secret}{after}", secret)
        assert secret not in redact(f"{before}\n{secret}\t{after}{secret}", "other", secret)

    @pytest.mark.parametrize(
        "shape",
        [
            "sk-" + "a1" * 8,
            "cr_0123456789abcdef",
            "AIzaSyA0123456789abcdefgh",
            "xai-0123456789",
            "gsk_0123456789",
            "sk-proj-****************abcd",
        ],
    )
    def test_key_shaped_words_of_others_are_removed(self, shape: str) -> None:
        assert redact(f"Your key {shape} is wrong") == "Your key [redacted] is wrong"

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("Bearer abcdef", "Bearer [redacted]"),
            ("x-api-key: abcdef", "x-api-key: [redacted]"),
            ("see https://host/v1?token=abc#frag now", "see https://host/v1 now"),
            ("see https://user:word@host/v1 now", "see https://host/v1 now"),
            ("http://user@host", "http://host"),
            ("a plain sentence.", "a plain sentence."),
            ("risk-averse task-force", "risk-averse task-force"),
        ],
    )
    def test_bearer_words_and_urls(self, text: str, shown: str) -> None:
        assert redact(text) == shown

    def test_short_secrets_do_not_eat_the_text(self) -> None:
        assert redact("a cat", "a", "") == "a cat"


class TestShortened:
    def test_cuts_and_says_so(self) -> None:
        assert shortened("x" * 300) == "x" * 199 + "…"
        assert shortened("ab   cdef", 5) == "ab…"
        assert shortened("abc", 3) == "abc"


class TestPages:
    @pytest.mark.parametrize(
        ("body", "content_type"),
        [
            (b"<!DOCTYPE html><p>", ""),
            (b"  \n<html>", ""),
            (b"<HTML>", "application/json"),
            (b"anything", "text/html; charset=utf-8"),
            (b"", "TEXT/HTML"),
        ],
    )
    def test_pages(self, body: bytes, content_type: str) -> None:
        assert looks_like_page(body, content_type)

    @pytest.mark.parametrize("body", [b"{}", b"", b"< html>", b'"<html>"'])
    def test_others(self, body: bytes) -> None:
        assert not looks_like_page(body, "application/json")
