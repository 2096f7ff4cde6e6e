"""What a model refuses is left out, once it has said so."""

import pytest

from devtools.upstream import behaviours as do
from devtools.upstream.control import Upstream
from holysheep import BadRequest, Client
from holysheep.errors import UnknownModel
from holysheep.ports import SystemClock
from holysheep.quirks import Quirks
from holysheep.types import ChatRequest

BOTH = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
NO_LIMIT = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens'."


def client_of(upstream: Upstream) -> Client:
    return Client("test-key-" + "q" * 20, base_url=upstream.url, requests_per_minute=0)


def a_request(**body: object) -> ChatRequest:
    return ChatRequest({"model": "m-1", "messages": [], "temperature": 0.7, "top_p": 0.95, **body})


def test_a_refused_parameter_is_left_out_and_the_model_remembered(upstream: Upstream) -> None:
    upstream.script(do.status(400, message=BOTH))
    client = client_of(upstream)
    first = client.chat("one", model="claude-sonnet-4.5")
    second = client.chat("two", model="claude-sonnet-4.5")
    assert (first.meta.attempts, second.meta.attempts) == (2, 1)
    assert first.meta.left_out == second.meta.left_out == ("top_p",)
    bodies = [request["json"] for request in upstream.requests()]
    assert ["top_p" in body for body in bodies] == [True, False, False]
    assert all("temperature" in body for body in bodies)


def test_another_model_of_the_same_gateway_gets_all_parameters(upstream: Upstream) -> None:
    upstream.script(do.status(400, message=BOTH), model="a")
    client = client_of(upstream)
    client.chat("one", model="a")
    assert client.chat("one", model="b").meta.left_out == ()


def test_the_token_limit_goes_under_its_other_name(upstream: Upstream) -> None:
    upstream.script(do.status(400, message=NO_LIMIT, param="max_tokens"))
    client_of(upstream).chat("one", max_tokens=77)
    sent = upstream.requests()[-1]["json"]
    assert sent["max_completion_tokens"] == 77
    assert "max_tokens" not in sent


def test_stream_options_are_left_out_of_a_stream(upstream: Upstream) -> None:
    upstream.script(do.status(400, message="Unknown field: stream_options"))
    answer = client_of(upstream).stream("one")
    assert "".join(delta.text for delta in answer)
    assert "stream_options" not in upstream.requests()[-1]["json"]


def test_what_only_the_author_sends_is_never_left_out(upstream: Upstream) -> None:
    upstream.default(do.status(400, message="seed is not supported by this model", param="seed"))
    with pytest.raises(BadRequest):
        client_of(upstream).chat("one", seed=5)
    assert upstream.stats().calls == 1


def test_a_refusal_that_goes_on_ends(upstream: Upstream) -> None:
    upstream.default(do.status(400, message="temperature, top_p, max_tokens: not supported"))
    with pytest.raises(BadRequest):
        client_of(upstream).chat("one")
    assert upstream.stats().calls == 4


@pytest.mark.parametrize(
    "error",
    [
        BadRequest("told", detail="temperature must be at most 1"),
        BadRequest("told", detail="the prompt is not supported"),
        BadRequest("told", detail="stop_top_p_words is not supported"),
        UnknownModel("told", detail="model not supported at this temperature"),
    ],
    ids=["range", "other", "part of a word", "unknown model"],
)
def test_other_refusals_teach_nothing(error: BadRequest) -> None:
    quirks = Quirks(SystemClock())
    assert not quirks.learn(a_request(), error, ())
    assert quirks.refused_by("m-1") == ()


def test_a_parameter_that_was_not_sent_cannot_be_left_out() -> None:
    request = ChatRequest({"model": "m-1", "messages": []})
    error = BadRequest("told", detail="temperature is not supported")
    assert not Quirks(SystemClock()).learn(request, error, ())
