"""Nothing secret leaves: whatever is shown has gone through here."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holysheep.redact import redact
from tests.fakes import KEY

KEY_ALPHABET = string.ascii_letters + string.digits + "-_."
keys = st.text(KEY_ALPHABET, min_size=20, max_size=60)
noise = st.text(st.sampled_from(string.printable + "é😀\u200b\x00"), max_size=60)


@given(key=keys, before=noise, after=noise)
def test_the_key_never_survives_wherever_it_stands(key: str, before: str, after: str) -> None:
    assert key not in redact(before + key + after, key)


@given(key=keys, parts=st.lists(noise, min_size=2, max_size=5))
def test_the_key_never_survives_however_often_it_stands_there(key: str, parts: list[str]) -> None:
    assert key not in redact(key.join(parts), key)


@given(
    prefix=st.sampled_from(["sk", "cr", "pk", "rk", "key", "xai", "gsk", "SK", "Cr"]),
    joint=st.sampled_from("-_"),
    rest=st.text(string.ascii_letters + string.digits, min_size=12, max_size=50),
    quote=st.sampled_from(["", '"', "'", " ", "(", ":", "="]),
)
def test_words_in_the_shape_of_a_key_are_taken_out_without_being_known(
    prefix: str, joint: str, rest: str, quote: str
) -> None:
    assert rest not in redact(f"Wrong key {quote}{prefix}{joint}{rest}{quote} was given")


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abc123def456", "abc123def456"),
        ("authorization: bearer abc123def456", "abc123def456"),
        ("x-api-key: abc123def456", "abc123def456"),
        ("x-api-key abc123def456", "abc123def456"),
        ('{"Authorization": "Bearer abc123def456"}', "abc123def456"),
        ("AIzaSyA-abcdefghijk", "AIzaSyA"),
        ("at https://user:secret@host/v1 failed", "secret"),
        ("at https://host/v1?api_key=secret123 failed", "secret123"),
        ("at https://user:secret@host/v1?token=x#y failed", "secret"),
        ("GET http://host/a#secret", "secret"),
        ("key sk-12****89 is wrong", "12****89"),
    ],
)
def test_the_private_parts_of_common_texts_are_taken_out(text: str, secret: str) -> None:
    assert secret not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "The model gpt-4.1 does not exist.",
        "Limit 60 / min. Visit https://host.example/v1/limits for more.",
        "keyboard skating crow",
        "Größe über 100 %",
        "max_tokens must be at most 4096",
    ],
)
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


@given(text=st.text())
def test_what_is_shown_is_one_line_without_control_characters(text: str) -> None:
    shown = redact(text)
    assert shown == " ".join(shown.split())
    assert shown.isprintable()


def test_a_short_secret_does_not_eat_the_text() -> None:
    assert redact("a banana", "a", "") == "a banana"


@pytest.mark.parametrize("spelling", [str.upper, str.lower, str.title], ids=lambda f: f.__name__)
def test_a_key_in_another_case_is_still_no_clue(spelling: object) -> None:
    assert callable(spelling)
    shown = redact(f"You sent {spelling(KEY)} as key", KEY)
    assert spelling(KEY) not in shown


@given(text=st.text(max_size=200))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    once = redact(text, KEY)
    assert redact(once, KEY) == once
