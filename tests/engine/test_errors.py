"""The tree of errors: what each kind means for retries, fallback and breaker."""

import inspect

import pytest

import holysheep
from holysheep import errors
from holysheep.errors import (
    BadRequest,
    HolySheepError,
    RateLimited,
    RefusedLocally,
    ServerError,
    UpstreamError,
)

TREE = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, HolySheepError)
]
LEAVES = [kind for kind in TREE if kind not in (HolySheepError, UpstreamError, RefusedLocally)]


def name_of(kind: type) -> str:
    return kind.__name__


@pytest.mark.parametrize("kind", TREE, ids=name_of)
def test_every_kind_says_when_it_occurs(kind: type[HolySheepError]) -> None:
    assert kind.__doc__


@pytest.mark.parametrize("kind", TREE, ids=name_of)
def test_every_kind_is_exported(kind: type[HolySheepError]) -> None:
    assert getattr(holysheep, kind.__name__) is kind


@pytest.mark.parametrize("kind", LEAVES, ids=name_of)
def test_every_kind_has_a_stable_name(kind: type[HolySheepError]) -> None:
    assert kind.error_type != HolySheepError.error_type
    assert kind.error_type.replace("_", "").isalpha()


@pytest.mark.parametrize("kind", TREE, ids=name_of)
def test_only_upstream_failures_are_tried_again(kind: type[HolySheepError]) -> None:
    assert not kind.retryable or issubclass(kind, UpstreamError)


@pytest.mark.parametrize("kind", TREE, ids=name_of)
def test_the_text_of_an_error_is_its_message(kind: type[HolySheepError]) -> None:
    error = kind("What happened.")
    assert str(error) == error.message == "What happened."


def test_a_changed_message_shows_in_the_text() -> None:
    error = ServerError("one")
    error.message = "two"
    assert str(error) == "two"


@pytest.mark.parametrize("kind", LEAVES, ids=name_of)
def test_a_copy_is_equal_in_all_but_its_traceback(kind: type[HolySheepError]) -> None:
    error = kind("What happened.", status=418, request_id="req-1", detail="more")
    error.attempts = 3
    with pytest.raises(kind) as raised:
        raise error
    twin = raised.value.copy()
    assert type(twin) is kind
    assert vars(twin) == vars(error)
    assert twin is not error
    assert twin.__traceback__ is None
    assert twin.__cause__ is error


def test_a_copy_keeps_what_a_subclass_adds() -> None:
    assert BadRequest("no", param="tools").copy().param == "tools"
    assert RateLimited("no", retry_after_s=4.0).copy().retry_after_s == 4.0
