"""Answers and failures as bytes: what comes back is what was put in, or nothing."""

from __future__ import annotations

import json
import zlib
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holysheep import errors
from holysheep.errors import HolySheepError, LimiterTimeout, RateLimited, ServerError
from holysheep.jsontext import whole_characters
from holysheep.shared.codec import decoded, encoded_answer, encoded_failure
from holysheep.types import Choice, Completion, Usage
from tests.fakes import KEY, a_completion

if TYPE_CHECKING:
    from collections.abc import Mapping

COUNTS = st.integers(0, 10**12)
COSTS = st.none() | st.decimals(0, 10**6, allow_nan=False, allow_infinity=False)
TEXTS = st.text(max_size=40)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=8), JSON, max_size=3)
USAGES = st.builds(
    Usage,
    prompt_tokens=COUNTS,
    completion_tokens=COUNTS,
    cached_tokens=COUNTS,
    cache_write_tokens=COUNTS,
    reasoning_tokens=COUNTS,
    provider_cost_usd=COSTS,
    estimated=st.booleans(),
)
CHOICES = st.builds(
    Choice,
    index=st.integers(0, 9),
    text=TEXTS,
    reasoning=TEXTS,
    finish_reason=TEXTS,
    tool_calls=st.lists(OBJECTS, max_size=2).map(tuple),
    logprobs=st.none() | OBJECTS,
)
COMPLETIONS = st.builds(
    Completion,
    asked_model=TEXTS,
    model=TEXTS,
    choices=st.lists(CHOICES, min_size=1, max_size=3).map(tuple),
    usage=USAGES,
    request_id=st.none() | TEXTS,
    earlier=st.lists(USAGES, max_size=2).map(tuple),
    fallback_from=st.none() | TEXTS,
    left_out=st.lists(TEXTS, max_size=2).map(tuple),
)
SHAREABLE = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, HolySheepError) and not kind.is_callers_own
]
CALLERS_OWN = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, HolySheepError) and kind.is_callers_own
]


def edited(value: bytes, **fields: Any) -> bytes:
    """A short stored value with other fields; ``...`` takes one away."""
    changed = {**json.loads(value), **fields}
    return json.dumps({name: value for name, value in changed.items() if value is not ...}).encode()


# --- answers ------------------------------------------------------------------------------------


@given(completion=COMPLETIONS)
def test_every_answer_comes_back_as_it_was(completion: Completion) -> None:
    assert decoded(encoded_answer(completion)) == completion


@given(length=st.integers(0, 5000), fill=st.sampled_from(["x", "é", "😀", '"', "\\", "\n"]))
def test_answers_of_any_length_come_back(length: int, fill: str) -> None:
    completion = a_completion(fill * length)
    assert decoded(encoded_answer(completion)) == completion


@pytest.mark.parametrize(
    "cost", ["0", "0.1", "1E-12", "0.10", "123456789.123456789123456789", "1E+3"]
)
def test_a_cost_comes_back_to_the_last_digit(cost: str) -> None:
    completion = a_completion(usage=Usage(provider_cost_usd=Decimal(cost)))
    found = decoded(encoded_answer(completion))
    assert isinstance(found, Completion)
    assert str(found.usage.provider_cost_usd) == cost


@pytest.mark.parametrize("text", ["\ud83d", "a\udc00b", "\ud83d\ude00", "\udfff" * 2000])
def test_halves_of_characters_are_stored_as_they_are_sent(text: str) -> None:
    found = decoded(encoded_answer(a_completion(text)))
    assert isinstance(found, Completion)
    assert found.first.text == whole_characters(text)
    found.first.text.encode()


def test_halves_of_characters_do_no_harm_anywhere_else() -> None:
    half = "\ud83d"
    choice = Choice(text="a", tool_calls=({half: half},), logprobs={"content": [half]})
    completion = Completion(half, half, (choice,), Usage(), request_id=half, left_out=(half,))
    found = decoded(encoded_answer(completion))
    assert isinstance(found, Completion)
    assert found.model == whole_characters(half)


def test_a_short_answer_can_be_read_and_a_long_one_is_compressed() -> None:
    short, long = encoded_answer(a_completion("a")), encoded_answer(a_completion("a" * 100_000))
    assert json.loads(short)["choices"][0]["text"] == "a"
    assert not long.startswith(b"{")
    assert len(long) < 2000


@pytest.mark.parametrize(("length", "is_compressed"), [(300, False), (1100, True)])
def test_what_is_longer_than_a_kilobyte_is_compressed(length: int, is_compressed: bool) -> None:
    value = encoded_answer(a_completion("x" * length))
    assert value.startswith(b"{") is not is_compressed


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHAREABLE)
def test_every_failure_that_is_not_the_callers_own_comes_back(kind: type[HolySheepError]) -> None:
    error = kind("what happened")
    error.status, error.retry_after_s, error.request_id = 503, 1.5, "req-1"
    error.detail = "more"
    found = decoded(encoded_failure(error, KEY))
    assert type(found) is kind
    for name in ("message", "args", "status", "retry_after_s", "request_id", "detail"):
        assert getattr(found, name) == getattr(error, name)
    assert (found.attempts, found.unusable) == (0, None)


@pytest.mark.parametrize("kind", CALLERS_OWN)
def test_a_failure_that_is_the_callers_own_is_not_for_others(kind: type[HolySheepError]) -> None:
    assert encoded_failure(kind("what happened"), KEY) == b""


def test_a_failure_of_a_kind_of_its_own_is_not_for_others() -> None:
    class Special(ServerError):
        pass

    class RateLimited(ServerError):  # the name of another one
        pass

    assert encoded_failure(Special("what happened"), KEY) == b""
    assert encoded_failure(RateLimited("what happened"), KEY) == b""


@pytest.mark.parametrize("shown", [KEY, KEY[:12], f"{KEY}0", f'{KEY[:12]}..."', f"Bearer {KEY}"])
def test_the_secret_is_concealed_and_the_error_itself_is_left_alone(shown: str) -> None:
    error = ServerError(f"no: {shown} !", detail=f"was {shown} !")
    value = encoded_failure(error, KEY)
    assert KEY[:12].encode() not in value
    found = decoded(value)
    assert isinstance(found, ServerError)
    assert "[redacted]" in found.message
    assert "[redacted]" in found.detail
    assert shown in error.message
    assert shown in error.detail


@given(message=TEXTS, detail=TEXTS, retry_after_s=st.none() | st.floats(0, 1e9))
def test_whatever_a_failure_says_comes_back(
    message: str, detail: str, retry_after_s: float | None
) -> None:
    error = RateLimited(message, detail=detail, retry_after_s=retry_after_s, status=429)
    found = decoded(encoded_failure(error, ""))
    assert isinstance(found, RateLimited)
    assert (found.message, found.detail) == (message, detail)
    assert found.retry_after_s == retry_after_s


def test_a_failure_that_was_read_is_one_to_raise() -> None:
    found = decoded(encoded_failure(ServerError("down", status=500), KEY))
    assert isinstance(found, ServerError)
    assert str(found) == "down"
    assert found.copy().message == "down"


# --- damage -------------------------------------------------------------------------------------


@given(value=st.binary(max_size=200) | st.text(max_size=100).map(lambda text: f"{{{text}".encode()))
def test_anything_else_is_a_value_error(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decoded(value)


@given(fields=st.dictionaries(st.sampled_from(["version", "choices", "usage", "failure"]), JSON))
def test_any_other_object_is_a_value_error(fields: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        decoded(json.dumps({"version": 1, **fields}).encode())


@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), is_long=st.booleans())
def test_one_byte_that_is_wrong_is_a_value_error_or_changes_a_value(
    at: int, byte: int, is_long: bool
) -> None:
    value = bytearray(encoded_answer(a_completion("Hi there " * (500 if is_long else 1))))
    value[at % len(value)] = byte
    try:
        found = decoded(bytes(value))
    except ValueError:
        return
    assert isinstance(found, Completion)
    assert isinstance(found.first.text, str)


@given(at=st.integers(0, 10_000), is_long=st.booleans())
def test_what_is_cut_off_is_a_value_error(at: int, is_long: bool) -> None:
    value = encoded_answer(a_completion("Hi there " * (500 if is_long else 1)))
    with pytest.raises(ValueError, match=r"."):
        decoded(value[: at % len(value)])


@pytest.mark.parametrize(
    "value",
    [
        b"{" * 100_000,
        b'{"a":' * 100_000,
        b'{"version":' + b"9" * 5000 + b"}",
        b'{"version":1,"failure":["ServerError"]}',
        b'{"version":1,"failure":"HolySheepErrors"}',
        b'{"version":1,"failure":"ServerError","message":"x"}',
    ],
    ids=["braces", "deep", "long number", "list", "unknown", "incomplete"],
)
def test_what_would_break_a_reader_is_a_value_error(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decoded(value)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_what_another_version_has_stored_is_a_value_error(version: Any) -> None:
    with pytest.raises(ValueError, match="version"):
        decoded(edited(encoded_answer(a_completion()), version=version))


@pytest.mark.parametrize(
    "name",
    ["version", "asked_model", "model", "choices", "usage", "earlier", "left_out"],
)
def test_an_answer_without_one_of_its_fields_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decoded(edited(encoded_answer(a_completion()), **{name: ...}))


@pytest.mark.parametrize(
    "fields",
    [
        {"choices": []},
        {"choices": [{"text": None, "tool_calls": []}]},
        {"choices": [{"text": "a", "tool_calls": None}]},
        {"choices": [{"text": "a", "tool_calls": [], "surprise": 1}]},
        {"usage": {"provider_cost_usd": "much"}},
        {"usage": {"provider_cost_usd": None, "surprise": 1}},
        {"earlier": 7},
        {"surprise": 1},
    ],
    ids=str,
)
def test_an_answer_with_other_fields_is_a_value_error(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        decoded(edited(encoded_answer(a_completion()), **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"usage": {"prompt_tokens": "many", "provider_cost_usd": None}},
        {"choices": [{"text": "a", "reasoning": 7, "tool_calls": []}]},
        {"choices": [{"text": "a", "tool_calls": ["f"]}]},
        {"choices": [{"text": "a", "tool_calls": [], "logprobs": "none"}]},
        {"usage": {"prompt_tokens": True, "provider_cost_usd": None}},
        {"usage": {"prompt_tokens": 1.5, "provider_cost_usd": None}},
        {"usage": {"estimated": 1, "provider_cost_usd": None}},
        {"earlier": [{"prompt_tokens": "1"}]},
        {"left_out": [7]},
        {"request_id": 7},
        {"asked_model": 7},
    ],
    ids=str,
)
def test_an_answer_with_values_of_other_types_is_a_value_error(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        decoded(edited(encoded_answer(a_completion()), **fields))


@pytest.mark.parametrize(
    "fields",
    [
        *({"status": "503"}, {"status": True}, {"retry_after_s": "soon"}, {"retry_after_s": "1"}),
        *({"message": 7}, {"detail": None}, {"request_id": 7}, {"surprise": 1}, {"status": ...}),
    ],
    ids=str,
)
def test_a_failure_with_other_values_is_a_value_error(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"damaged"):
        decoded(edited(encoded_failure(ServerError("x", status=503), KEY), **fields))


def test_a_failure_of_the_callers_own_is_not_read_either() -> None:
    value = edited(encoded_failure(ServerError("x"), KEY), failure=LimiterTimeout.__name__)
    with pytest.raises(ValueError, match="failure of another kind"):
        decoded(value)


def test_what_unpacks_to_far_too_much_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="too large"):
        decoded(zlib.compress(b" " * (80 * 1024 * 1024), 1))
