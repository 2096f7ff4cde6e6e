"""That what an endpoint sends gets through: the host loses what comes too fast or is too long."""

from __future__ import annotations

import pytest

from devtools.upstream import behaviours as do
from tests.endpoints.support import Endpoint, message


@pytest.mark.parametrize("cache", ["miss", "hit"])
def test_a_short_stream_is_not_over_before_the_host_has_looked_at_it(
    endpoint: Endpoint, cache: str
) -> None:
    body = message("Hello", stream=True)
    if cache == "hit":
        endpoint.ok(body)
    result = endpoint.ok(body)
    assert result.headers["X-Holysheep-Cache"] == cache
    assert len(result.chunks) >= 2
    assert not result.hasty


@pytest.mark.parametrize(
    "path",
    ["/dashboard", "/dashboard/script.js", "/usage.json", "/metrics", "/health", "/v1/models"],
)
def test_what_is_known_at_once_goes_out_in_one_piece(endpoint: Endpoint, path: str) -> None:
    result = endpoint.get(path)
    assert result.status == 200
    assert len(result.chunks) == 1
    assert not result.hasty


def test_a_refusal_goes_out_in_one_piece(endpoint: Endpoint) -> None:
    result = endpoint.chat(b"{}")
    assert result.status == 400
    assert len(result.chunks) == 1


def test_an_answer_larger_than_a_message_of_the_host_arrives_whole(endpoint: Endpoint) -> None:
    text = "m" * 3_000_000
    endpoint.upstream.default(do.ok(text=text))
    result = endpoint.ok(message("Long"))
    assert result.json()["choices"][0]["message"]["content"] == text
    assert len(result.chunks) > 1
    assert not result.hasty
