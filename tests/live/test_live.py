"""A few cheap calls to a real gateway: what no simulated one can show.

``make live`` runs these with the key in HOLYSHEEP_API_KEY, against HOLYSHEEP_BASE_URL where that is
set; HOLYSHEEP_MODEL names another model than the default. Together they cost well below a cent.
Without a key they fail: who asks for them wants to know.
"""

import os
import uuid
from collections.abc import Iterator
from decimal import Decimal

import pytest

from holysheep import AuthError, Client

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

PROMPT = "Answer with the single word: sheep."
SHORT = {"max_tokens": 200, "temperature": 0, "timeout_s": 120}
"""Few tokens, but enough for a model that reasons first."""


@pytest.fixture
def client() -> Iterator[Client]:
    if not os.environ.get("HOLYSHEEP_API_KEY", "").strip():
        pytest.fail(
            "Set HOLYSHEEP_API_KEY to the key of your gateway: these tests call it, which costs a"
            " fraction of a cent.",
            pytrace=False,
        )
    settings = {}
    if os.environ.get("HOLYSHEEP_MODEL"):
        settings["default_model"] = os.environ["HOLYSHEEP_MODEL"]
    with Client(**settings) as made:
        yield made


def test_the_credential_is_accepted(client: Client) -> None:
    client.check()


def test_models_are_listed(client: Client) -> None:
    models = client.models()
    assert models
    assert all(model == model.strip() for model in models)


def test_a_chat_is_answered_with_usage_and_cost(client: Client) -> None:
    result = client.chat(PROMPT, cache="bypass", **SHORT)
    assert "sheep" in result.text.lower()
    assert result.finish_reason == "stop"
    assert result.usage.prompt_tokens > 0
    assert result.usage.completion_tokens > 0
    assert not result.cached
    assert result.cost_usd is None or result.cost_usd >= 0


def test_a_stream_says_what_its_result_says(client: Client) -> None:
    stream = client.stream(PROMPT, cache="bypass", **SHORT)
    pieces = [piece.text for piece in stream]
    assert "".join(pieces) == stream.result.text
    assert "sheep" in stream.result.text.lower()
    assert stream.result.usage.completion_tokens > 0


def test_the_same_question_is_answered_from_the_cache(client: Client) -> None:
    question = f"{PROMPT} ({uuid.uuid4()})"
    first, second = client.chat(question, **SHORT), client.chat(question, **SHORT)
    assert (first.cached, second.cached) == (False, True)
    assert second.text == first.text
    assert second.cost_usd == Decimal(0)


@pytest.mark.usefixtures("client")
def test_a_wrong_key_is_refused() -> None:
    with Client("sk-wrong-" + "0" * 40) as stranger, pytest.raises(AuthError):
        stranger.chat(PROMPT, max_retries=0, **SHORT)
