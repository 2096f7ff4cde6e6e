"""The examples do what they say: played in the real plugin, against the simulated gateway."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from devtools.upstream import behaviours as do
from tests.endpoints.support import events, fresh_token
from tests.host.endpoints import EndpointServer
from tests.nodes.servers import LoopbackServer
from tests.nodes.support import chat_bodies, fresh_key
from tests.package.declared import EXAMPLE_FILES, read_yaml
from tests.package.play import Played, Player

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devtools.upstream import Upstream
    from tests.host.daemon import PluginProcess
    from tests.nodes.servers import Exchange

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
CSV = b"id,review\r\n1,I like it\r\n2,It broke\r\n3,I like it\r\n"


def played(player: Player, name: str, user_id: str = "user-1", **inputs: Any) -> Played:
    return player.play(read_yaml(f"examples/{name}.yml"), inputs, user_id=user_id)


@pytest.fixture
def credentials(upstream: Upstream) -> dict[str, Any]:
    return {"api_key": fresh_key(), "base_url": upstream.url, "requests_per_minute": "0"}


@pytest.fixture
def player(plugin: PluginProcess, credentials: dict[str, Any]) -> Player:
    return Player(plugin, credentials)


@pytest.fixture(scope="module")
def file_server() -> Iterator[LoopbackServer]:
    def serve(content: bytes) -> Any:
        def route(exchange: Exchange) -> None:
            exchange.answer(200, content, {"content-type": "application/octet-stream"})

        return route

    with LoopbackServer({"/reviews.csv": serve(CSV), "/picture.png": serve(PNG)}) as server:
        yield server


def file_of(server: LoopbackServer, name: str, kind: str, mime_type: str) -> dict[str, Any]:
    """A file as the host hands it to a plugin."""
    return {
        "dify_model_identity": "__dify__file__",
        "url": f"{server.url}/{name}",
        "filename": name,
        "mime_type": mime_type,
        "extension": f".{name.partition('.')[2]}",
        "size": 100,
        "type": kind,
    }


def last_line(answer: str) -> dict[str, str]:
    """The figures in the last line of an answer, by their names."""
    parts = answer.splitlines()[-1].split(" · ")
    return dict(part.split(": ", 1) for part in parts if ": " in part)


def test_chat_answers_and_shows_its_figures(player: Player, upstream: Upstream) -> None:
    first = played(player, "chat_streaming", query="Why is the sky blue?")
    again = played(player, "chat_streaming", query="Why is the sky blue?")
    assert first.answer.startswith("You said: Why is the sky blue?")
    figures = last_line(first.answer)
    assert float(figures["Cost"].removesuffix(" USD")) > 0
    assert int(figures["Tokens"]) > 0
    assert figures["Cached"] == "false"
    assert last_line(again.answer)["Cached"] == "true"
    assert upstream.stats().calls == 1


def test_faq_asks_once_for_all_who_ask_the_same(player: Player, upstream: Upstream) -> None:
    first = played(player, "cached_faq", query="When are you open?")
    again = played(player, "cached_faq", user_id="user-2", query="  when ARE you\n open ?!")
    other = played(player, "cached_faq", query="Can I send something back?")
    assert last_line(first.answer)["From the cache"] == "false"
    assert last_line(again.answer)["From the cache"] == "true"
    assert last_line(again.answer)["Cost"] == "0 USD"
    assert first.answer.splitlines()[0] == again.answer.splitlines()[0]
    assert last_line(other.answer)["From the cache"] == "false"
    system, question = chat_bodies(upstream)[0]["messages"]
    assert "Opening hours" in system["content"]
    assert question["content"] == "when are you open"
    assert upstream.stats().calls == 2


def test_faq_has_an_answer_ready_for_each_suggested_question(
    player: Player, upstream: Upstream
) -> None:
    features = read_yaml("examples/cached_faq.yml")["workflow"]["features"]
    for question in features["suggested_questions"]:
        assert played(player, "cached_faq", query=question).answer
    assert upstream.stats().calls == len(features["suggested_questions"]) > 1


def test_vision_sends_the_picture(
    player: Player, upstream: Upstream, file_server: LoopbackServer
) -> None:
    picture = file_of(file_server, "picture.png", "image", "image/png")
    run = played(player, "vision", query="What is this?", files=[picture])
    (body,) = chat_bodies(upstream)
    text, image = body["messages"][-1]["content"]
    assert text == {"type": "text", "text": "What is this?"}
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert last_line(run.answer)["Model"] == body["model"]


def test_vision_answers_without_a_picture(player: Player, upstream: Upstream) -> None:
    assert played(player, "vision", query="What is this?").answer.startswith(
        "You said: What is this?"
    )
    assert chat_bodies(upstream)[0]["messages"][-1]["content"] == "What is this?"


def test_extraction_hands_on_what_fits_the_schema(player: Player, upstream: Upstream) -> None:
    run = played(player, "structured_extraction", message="My lamp is broken. Ann")
    assert set(run.outputs["structured"]) == {"customer", "product", "urgency", "summary"}
    assert run.outputs["cost_usd"] > 0
    assert chat_bodies(upstream)[0]["response_format"]["type"] == "json_schema"


def test_batch_answers_every_row_of_the_file(
    player: Player, upstream: Upstream, file_server: LoopbackServer
) -> None:
    reviews = file_of(file_server, "reviews.csv", "document", "text/csv")
    run = played(player, "batch_from_csv", file=reviews)
    assert run.ran[-1] == "end2"
    assert run.outputs["status"] == "ok"
    (file,) = run.outputs["files"]
    assert len(file.content.decode().splitlines()) == 1 + 3
    asked = {body["messages"][-1]["content"] for body in chat_bodies(upstream)}
    assert asked == {"I like it", "It broke"}


def test_batch_says_that_a_row_is_missing(
    player: Player, upstream: Upstream, file_server: LoopbackServer
) -> None:
    upstream.script(do.status(400))
    run = played(
        player, "batch_from_csv", file=file_of(file_server, "reviews.csv", "document", "text/csv")
    )
    assert run.ran[-1] == "end1"
    assert run.outputs["status"] == "partial"
    assert run.outputs["failed"] + run.outputs["skipped"] > 0


def test_chain_takes_three_steps(player: Player, upstream: Upstream) -> None:
    run = played(player, "chain", query="Autumn")
    bodies = chat_bodies(upstream)
    assert [len(body["messages"]) for body in bodies] == [2, 4, 6]
    assert last_line(run.answer)["Steps that failed"] == "0"
    assert run.answer.splitlines()[0]


@pytest.mark.parametrize(
    ("text", "end", "calls"),
    [("Hello", "end2", 1), ("Hello " * 3000, "end1", 0)],
    ids=["cheap", "expensive"],
)
def test_cost_guard_asks_only_what_is_cheap(
    player: Player, upstream: Upstream, text: str, end: str, calls: int
) -> None:
    run = played(player, "cost_guard", text=text)
    assert run.ran[-1] == end
    assert upstream.stats().calls == calls
    if not calls:
        assert "Not asked" in json.dumps(run.outputs)


@pytest.mark.parametrize(
    ("budget", "behaviour", "end"),
    [("5", None, "end3"), ("0.000001", None, "end1"), ("5", do.status(400), "end2")],
    ids=["answered", "spent", "failed"],
)
def test_budget_stop_ends_as_it_says(
    plugin: PluginProcess,
    upstream: Upstream,
    credentials: dict[str, Any],
    budget: str,
    behaviour: do.Behaviour | None,
    end: str,
) -> None:
    upstream.default(behaviour)
    player = Player(plugin, credentials | {"daily_budget_usd": budget})
    run = played(player, "budget_stop", text="Hello")
    assert run.ran[-1] == end
    assert all(run.outputs.values())
    assert upstream.stats().calls == (0 if end == "end1" else 1)


def test_usage_report_counts_what_the_chat_spent(player: Player) -> None:
    played(player, "chat_streaming", query="Why is the sky blue?")
    run = played(player, "usage_report")
    assert run.outputs["report"].startswith("# HolySheep usage")
    assert run.outputs["yesterday_usd"] == 0
    assert run.outputs["month_usd"] > 0
    assert run.outputs["export"]


def test_benchmark_sends_ten_requests(player: Player, upstream: Upstream) -> None:
    run = played(player, "benchmark")
    assert upstream.stats().calls == 10
    assert run.outputs["failed"] == 0
    assert run.outputs["avg_latency_ms"] > 0


def test_own_llm_node_goes_through_the_gateway(
    plugin: PluginProcess, upstream: Upstream, credentials: dict[str, Any]
) -> None:
    """The model of the example as its note has it set up: address, /v1, and the access token."""
    token = fresh_token()
    seen: list[str] = []

    def ask(model: str, messages: list[dict[str, str]], parameters: dict[str, Any]) -> str:
        answer = httpx.post(
            f"{server.url}/v1/chat/completions",
            headers={"Authorization": f"Bearer {token}"},
            json={"model": model, "messages": messages, "stream": True, **parameters},
        )
        assert answer.status_code == 200, answer.text
        seen.append(answer.headers["x-holysheep-cache"])
        *chunks, done = events(answer.content)
        assert done == "[DONE]"
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    settings = {**credentials, "access_token": token}
    with EndpointServer(plugin, settings) as server:
        player = Player(plugin, {}, ask)
        first = played(player, "gateway_llm", query="Why is the sky blue?")
        again = played(player, "gateway_llm", query="Why is the sky blue?")
    assert first.answer == again.answer
    assert first.answer.startswith("You said: Why is the sky blue?")
    assert seen == ["miss", "hit"]
    assert upstream.stats().calls == 1


def test_every_example_is_played_here() -> None:
    names = re.findall(r'played\(\s*player, "(\w+)"', Path(__file__).read_text(encoding="utf-8"))
    assert {f"examples/{name}.yml" for name in names} == set(EXAMPLE_FILES)
