"""All mechanisms together, over a scripted gateway, on a timeline."""

import random
from collections import Counter
from decimal import Decimal
from typing import Any

import httpx
import pytest

from holysheep.cache import CacheLayer, identity_of
from holysheep.engine import Answer, stack
from holysheep.errors import (
    AuthError,
    BadRequest,
    BudgetExceeded,
    CircuitOpen,
    ConnectFailed,
    HolySheepError,
    InvalidOutput,
    QuotaExhausted,
    RateLimited,
    ServerError,
    TimedOut,
)
from holysheep.ledger import Ledger
from holysheep.pricing import PriceBook
from holysheep.result import ChatResult
from holysheep.singleflight import SingleFlightLayer
from holysheep.structured import StructuredLayer
from holysheep.tally import Dimensions, Figures, Tally, latency_class
from holysheep.types import Choice, Completed, Completion, Delta, Policy, Usage
from tests.engine.world import World, failing
from tests.fakes import (
    START_S,
    Killed,
    ScriptedHandler,
    a_request,
    abandon,
    good_answer,
    kinds,
    streamed_answer,
)

OTHER_KEY = "test-key-" + "b" * 20
SCHEMA = {"type": "object", "required": ["a"]}


def only_b_answers(body: dict[str, Any], number: int) -> Any:
    return good_answer(body) if body["model"] == "b" else failing(500)(body, number)


# --- one call -----------------------------------------------------------------------------------


def test_a_call_is_answered_with_its_cost_and_what_happened() -> None:
    world = World()
    result = world.ask()
    assert result.text == "Hi"
    assert result.cost_usd == Decimal("0.00006")
    assert (result.latency_ms, result.meta.upstream_ms) == (1000.0, 1000.0)
    assert (result.meta.cache, result.meta.attempts, result.meta.request_id) == ("miss", 1, "req-1")


def test_a_second_identical_call_costs_nothing_and_sends_nothing() -> None:
    world = World()
    first, second = world.ask(), world.ask()
    assert (second.text, second.tokens_used) == (first.text, first.tokens_used)
    assert (second.cached, second.cost_usd, second.usage.saved_usd) == (True, 0, first.cost_usd)
    assert len(world.gateway.bodies) == 1


def test_an_answer_has_no_result_before_it_was_read() -> None:
    answer = World().answer()
    with pytest.raises(RuntimeError, match="read to its end"):
        _ = answer.result


def test_nothing_is_sent_before_the_answer_is_read() -> None:
    world = World()
    world.answer()
    assert not world.gateway.bodies


def test_the_deadline_counts_from_the_given_start() -> None:
    world = World(lambda body, _: good_answer(body, latency_s=6.0))
    world.time.sleep(55.0)
    answer = world.answer(started_s=START_S)
    with pytest.raises(TimedOut):
        answer.wait()
    assert world.time.monotonic() == START_S + 60


def test_a_failure_says_how_many_requests_were_sent() -> None:
    world = World(failing(503))
    with pytest.raises(ServerError) as raised:
        world.ask(max_retries=2)
    assert raised.value.attempts == len(world.gateway.bodies) == 3


def test_a_failed_call_still_tells_what_happened() -> None:
    world = World(failing(400))
    answer = world.answer()
    with pytest.raises(BadRequest):
        answer.wait()
    assert (answer.failure().meta.attempts, answer.failure().latency_ms) == (1, 500.0)


@pytest.mark.parametrize(("status", "kind"), [(401, AuthError), (402, QuotaExhausted)])
def test_a_refused_account_is_asked_once(status: int, kind: type[HolySheepError]) -> None:
    world = World(failing(status))
    with pytest.raises(kind):
        world.ask(fallback_models=("b",), max_retries=10)
    assert len(world.gateway.bodies) == 1


def test_a_broken_connection_is_tried_again() -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        return httpx.ReadError("reset") if number == 0 else good_answer(body)

    result = World(respond).ask()
    assert (result.text, result.meta.attempts) == ("Hi", 2)


def test_a_failing_model_is_retried_and_then_replaced() -> None:
    world = World(only_b_answers, price_overrides="b: {input: 1, output: 1}")
    result = world.ask(max_retries=2, fallback_models=("b",))
    assert [body["model"] for body in world.gateway.bodies] == ["gpt-4.1"] * 3 + ["b"]
    assert (result.model_used, result.meta.fallback_from) == ("b", "gpt-4.1")
    assert result.cost_usd == Decimal("0.000015")


def test_a_silent_model_leaves_time_for_another() -> None:
    world = World(lambda body, _: good_answer(body, latency_s=1.0 if body["model"] == "b" else 999))
    result = world.ask(timeout_s=60, fallback_models=("b",))
    assert result.model_used == "b"
    assert world.time.monotonic() == START_S + 31


def test_a_model_that_has_begun_to_answer_has_all_the_time() -> None:
    def respond(body: dict[str, Any], _: int) -> Any:
        return streamed_answer(body, "a", "b", "c", pause_s=14.0)

    world = World(respond)
    result = world.ask(timeout_s=60, stream=True, fallback_models=("b",))
    assert (result.text, result.model_used) == ("abc", "gpt-4.1")
    assert world.time.monotonic() > START_S + 30


def test_a_silent_model_opens_the_breaker_for_a_caller_with_patience() -> None:
    world = World(lambda body, _: good_answer(body, latency_s=999))
    for number in range(5):
        with pytest.raises(TimedOut):
            world.ask(f"question {number}", timeout_s=10)
    with pytest.raises(CircuitOpen):
        world.ask()


def test_waiting_for_a_slot_is_no_fault_of_the_model() -> None:
    world = World(lambda body, _: good_answer(body, latency_s=3.0), max_concurrency="5")
    outcomes = world.crowd(25, timeout_s=10)
    assert kinds(outcomes) == {"ChatResult": 15, "TimedOut": 5, "DeadlineExceeded": 5}
    assert world.ask().text == "Hi"


def test_one_429_does_not_hold_up_the_callers_of_a_slow_model() -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        if number == 0:
            return failing(429, retry_after="1")(body, number)
        return good_answer(body, latency_s=6.0)

    world = World(respond, max_concurrency="100")
    outcomes = world.crowd(31, timeout_s=20)
    assert kinds(outcomes) == {"ChatResult": 31}
    assert world.time.monotonic() < START_S + 12


def test_all_who_share_an_answer_are_told_which_model_was_asked_first() -> None:
    world = World(only_b_answers)
    for _ in range(4):
        world.time.spawn(world.ask, fallback_models=("b",))
    results = world.time.run()
    assert [result.meta.fallback_from for result in results] == ["gpt-4.1"] * 4
    assert sorted(result.meta.cache for result in results) == ["coalesced"] * 3 + ["miss"]


def test_who_asks_the_fallback_model_itself_gets_its_answer_from_no_fallback() -> None:
    world = World(only_b_answers)
    world.ask(fallback_models=("b",))
    request = a_request("Hello").with_model("b")
    hit = world.engine.ask(request, Policy(), timeout_s=60).wait()
    assert (hit.meta.cache, hit.meta.fallback_from) == ("hit", None)


def answer_with_two_choices(*deltas: Delta) -> Answer:
    """The choices are "a b" and "x y"; they arrive in these pieces."""
    world = World()
    choices = (Choice(0, "a b"), Choice(1, "x y"))
    completion = Completion("gpt-4.1", "gpt-4.1", choices, Usage())
    world.engine.handler = ScriptedHandler(world.time, [*deltas, Completed(completion)])
    return world.answer()


def test_pieces_of_the_first_answer_only_are_streamed() -> None:
    answer = answer_with_two_choices(
        Delta("a"), Delta("x", index=1), Delta(" b"), Delta(" y", index=1)
    )
    assert "".join(piece.text for piece in answer) == answer.result.text == "a b"


def test_what_is_streamed_is_the_answer_whichever_of_several_comes_first() -> None:
    answer = answer_with_two_choices(
        Delta("x", index=1), Delta("a"), Delta(" y", index=1), Delta(" b")
    )
    assert "".join(piece.text for piece in answer) == answer.result.text


# --- streams ------------------------------------------------------------------------------------


def words(body: dict[str, Any], _: int) -> Any:
    return streamed_answer(body, "one", " two", " three")


def test_a_stream_is_passed_on_as_it_arrives_and_then_complete() -> None:
    world = World(words)
    answer = world.answer(stream=True)
    seen = [(world.time.monotonic() - START_S, piece.text) for piece in answer if piece.text]
    assert seen == [(1.0, "one"), (2.0, " two"), (3.0, " three")]
    assert (answer.result.text, answer.result.tokens_used) == ("one two three", 15)
    assert answer.result.meta.ttft_ms == 1000.0


def test_followers_of_a_stream_see_it_as_it_arrives() -> None:
    world = World(words)

    def reader() -> list[tuple[float, str]]:
        answer = world.answer(stream=True)
        return [(world.time.monotonic() - START_S, piece.text) for piece in answer if piece.text]

    for _ in range(10):
        world.time.spawn(reader)
    assert world.time.run() == [[(1.0, "one"), (2.0, " two"), (3.0, " three")]] * 10
    assert len(world.gateway.bodies) == 1


def test_a_stream_that_breaks_after_its_first_piece_is_not_sent_again() -> None:
    def respond(body: dict[str, Any], _: int) -> Any:
        *start, parts = words(body, 0)
        return (*start, [*parts[:4], httpx.ReadError("reset")])

    world = World(respond)
    answer = world.answer(fallback_models=("b",), stream=True)
    pieces = iter(answer)
    next(pieces)
    with pytest.raises(ConnectFailed):
        list(pieces)
    assert len(world.gateway.bodies) == 1
    assert len(world.cache) == 0


def test_a_stream_that_breaks_before_its_first_piece_is_sent_again() -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        *start, parts = words(body, 0)
        return (*start, [1.0, httpx.ReadError("reset")] if number == 0 else parts)

    world = World(respond)
    answer = world.answer(stream=True)
    assert "".join(piece.text for piece in answer) == "one two three"
    assert len(world.gateway.bodies) == 2


def test_a_stream_ends_at_the_deadline_of_its_call() -> None:
    world = World(words)
    answer = world.answer(max_retries=0, timeout_s=2.5, stream=True)
    with pytest.raises(TimedOut):
        list(answer)
    assert world.time.monotonic() == START_S + 2.5


@pytest.mark.parametrize("pieces_read", [0, 1, 2])
def test_a_stream_that_is_abandoned_gives_everything_back(pieces_read: int) -> None:
    world = World(words, daily_budget_usd="1", tokens_per_minute="100000")
    answer = world.answer(stream=True)
    pieces = iter(answer)
    abandon(pieces, after=pieces_read)
    assert world.gateway.in_use == world.state.slots.held == len(world.state.flights) == 0
    assert len(world.cache) == 0
    assert world.ask() is not None


@pytest.mark.parametrize("seed", range(6))
def test_no_weather_leaves_anything_of_a_stream_behind(seed: int) -> None:
    dice = random.Random(seed)

    def respond(body: dict[str, Any], _: int) -> Any:
        throw = dice.random()
        if throw < 0.15:
            return failing(429, retry_after="3")(body, 0)
        if throw < 0.3:
            return failing(503)(body, 0)
        *start, parts = words(body, 0)
        cut = dice.choice([1, 3, 4, len(parts), len(parts)])
        broken = [] if cut == len(parts) else [httpx.ReadError("reset")]
        return (*start, [*parts[:cut], *broken])

    world = World(respond, seed=seed, max_concurrency="4", tokens_per_minute="50000")

    begun = []

    def reader(number: int, patience_s: float) -> str:
        begun.append(number)
        began_s = world.time.monotonic()
        answer = world.answer(f"question {number}", timeout_s=30, stream=True)
        text = ""
        pieces = iter(answer)
        for piece in pieces:
            text += piece.text
            if world.time.monotonic() - began_s > patience_s:
                break
        pieces.close()  # type: ignore[attr-defined]
        return text

    callers = [
        world.time.spawn(
            reader, dice.randrange(5), dice.choice([1.0, 3.0, 99.0]), after_s=dice.random() * 20
        )
        for _ in range(60)
    ]
    for victim in dice.sample(callers, 10):
        world.time.spawn(world.time.throw, victim, Killed(), after_s=dice.random() * 30)
    for outcome in world.time.run()[: len(callers)]:
        assert isinstance(outcome, str | HolySheepError | Killed), outcome
        assert not isinstance(outcome, str) or "one two three".startswith(outcome)
    assert world.gateway.in_use == world.state.slots.held == len(world.state.flights) == 0
    counted = world.counted().total()
    assert (counted.requests, counted.upstream_calls) == (len(begun), len(world.gateway.bodies))


# --- structured output --------------------------------------------------------------------------


def test_a_structured_answer_is_parsed_also_from_the_cache() -> None:
    world = World(lambda body, _: good_answer(body, text='```json\n{"a": [1]}\n```'))
    first, second = (world.ask(answer_schema=SCHEMA) for _ in range(2))
    assert first.structured == second.structured == {"a": [1]}
    first.structured["a"].append(2)
    assert world.ask(answer_schema=SCHEMA).structured == {"a": [1]}
    assert len(world.gateway.bodies) == 1


def test_a_wrong_structured_answer_is_neither_kept_nor_served() -> None:
    world = World(lambda body, _: good_answer(body, text="[]"))
    for _ in range(2):
        with pytest.raises(InvalidOutput):
            world.ask(answer_schema=SCHEMA)
    assert len(world.gateway.bodies) == 4
    assert len(world.cache) == 0


def test_a_corrected_answer_costs_both_attempts() -> None:
    texts = iter(["[]", '{"a": 1}'])
    world = World(lambda body, _: good_answer(body, text=next(texts)))
    result = world.ask(answer_schema=SCHEMA)
    assert result.cost_usd == 2 * Decimal("0.00006")
    assert (result.tokens_used, result.meta.attempts) == (30, 2)


def test_the_cost_of_two_attempts_is_the_sum_of_their_costs() -> None:
    world = World()
    usage = Usage(prompt_tokens=200_000)
    price_of_one = PriceBook().cost(Completion("gpt-5.4", "gpt-5.4", (Choice(),), usage)).usd
    assert price_of_one is not None

    def saying(text: str) -> list[Any]:
        return [Completed(Completion("gpt-5.4", "gpt-5.4", (Choice(text=text),), usage))]

    below = ScriptedHandler(world.time, saying("[]"), saying('{"a": 1}'))
    world.engine.handler = stack([StructuredLayer()], below)
    assert world.ask(answer_schema=SCHEMA).cost_usd == 2 * price_of_one


# --- what is counted ----------------------------------------------------------------------------

COST = Decimal("0.00006")
"""What one answer of the gateway costs: 15 tokens of gpt-4.1."""


def the_only(tally: Tally) -> tuple[Dimensions, Figures]:
    """The row of the one call that was counted."""
    ((dimensions, figures),) = tally
    assert figures.requests == sum(figures.classes.values()) == 1
    return dimensions, figures


def by_cache(tally: Tally) -> dict[str, tuple[int, int, int, Decimal, Decimal]]:
    """Requests, upstream calls, tokens, cost and savings by the state of the cache."""
    return {
        state: (
            figures.requests,
            figures.upstream_calls,
            figures.total_tokens,
            figures.cost_usd,
            figures.saved_usd,
        )
        for state, figures in tally.grouped(lambda row: row.cache).items()
    }


def test_a_call_is_counted_once_with_all_that_it_came_to() -> None:
    world = World()
    result = world.ask()
    dimensions, figures = the_only(world.counted())
    assert dimensions == Dimensions(
        credential=world.engine.settings.fingerprint,
        node="library",
        asked="gpt-4.1",
        served=result.model_used,
        status="ok",
        cache="miss",
    )
    assert figures == Figures(
        requests=1,
        upstream_calls=1,
        prompt_tokens=10,
        completion_tokens=5,
        latency_us=1_000_000,
        cost_usd=COST,
        classes={latency_class(1000): 1},
    )


def test_a_call_is_counted_in_the_ledger_of_its_invocation_and_in_no_other() -> None:
    world = World(daily_budget_usd="1")
    workspace = Ledger(world.time, world.time.spawn)
    world.ask(invocation=workspace.invocation("llm", app="app-1"))
    dimensions, figures = the_only(world.counted(workspace))
    assert (dimensions.node, dimensions.app, figures.cost_usd) == ("llm", "app-1", COST)
    assert spent(world, workspace) == COST
    assert not world.counted()
    assert spent(world) == 0


def test_an_answer_that_nobody_reads_is_not_counted() -> None:
    world = World()
    world.answer()
    assert not world.counted()


@pytest.mark.parametrize(
    ("respond", "status"),
    [
        (failing(503), "server_error"),
        (failing(429, retry_after="1"), "rate_limited"),
        (lambda *_: httpx.ReadError("reset"), "connection_failed"),
    ],
)
def test_a_call_that_fails_is_counted_once_however_often_it_was_tried(
    respond: Any, status: str
) -> None:
    world = World(respond)
    with pytest.raises(HolySheepError):
        world.ask(max_retries=2)
    dimensions, figures = the_only(world.counted())
    assert (dimensions.status, dimensions.cache) == (status, "miss")
    assert (dimensions.asked, dimensions.served) == ("gpt-4.1", "gpt-4.1")
    assert (figures.upstream_calls, figures.total_tokens, figures.cost_usd) == (3, 0, 0)


def test_a_call_that_was_never_sent_is_counted_too() -> None:
    world = World(daily_budget_usd="0.00001")
    with pytest.raises(BudgetExceeded):
        world.ask()
    dimensions, figures = the_only(world.counted())
    assert (dimensions.status, figures.upstream_calls) == ("budget_exceeded", 0)


def test_an_answer_from_the_cache_counts_as_saved_and_not_as_spent() -> None:
    world = World()
    for _ in range(3):
        world.ask()
    assert by_cache(world.counted()) == {
        "miss": (1, 1, 15, COST, 0),
        "hit": (2, 0, 0, 0, 2 * COST),
    }
    assert spent(world) == COST


@pytest.mark.parametrize("fields", [{}, {"daily_budget_usd": "1"}], ids=["no limit", "a limit"])
@pytest.mark.parametrize("seed", range(4))
def test_of_calls_that_share_an_answer_one_has_made_it(seed: int, fields: dict[str, str]) -> None:
    world = World(seed=seed, **fields)
    for _ in range(10):
        world.time.spawn(world.ask)
    world.time.run()
    assert by_cache(world.counted()) == {
        "miss": (1, 1, 15, COST, 0),
        "coalesced": (9, 0, 0, 0, 9 * COST),
    }
    assert spent(world) == COST


def test_of_calls_that_share_a_failure_each_is_counted_and_one_was_sent() -> None:
    world = World(failing(503))
    for _ in range(10):
        world.time.spawn(world.ask, max_retries=0)
    world.time.run()
    assert {row.status for row, _ in world.counted()} == {"server_error"}
    assert by_cache(world.counted()) == {"miss": (1, 1, 0, 0, 0), "coalesced": (9, 0, 0, 0, 0)}


def test_a_stale_answer_is_saved_and_what_was_tried_before_it_was_sent() -> None:
    world = World(lambda body, number: good_answer(body) if number == 0 else failing(503)(body, 0))
    world.ask(cache_ttl_s=1)
    world.time.sleep(10)
    world.ask(cache_ttl_s=1, serve_stale=True, max_retries=2)
    assert by_cache(world.counted())["stale"] == (1, 3, 0, 0, COST)


@pytest.mark.parametrize("cache", ["refresh", "bypass"])
def test_a_call_past_the_cache_is_counted_under_its_mode(cache: str) -> None:
    world = World()
    world.ask(cache=cache)
    assert by_cache(world.counted()) == {cache: (1, 1, 15, COST, 0)}


def test_a_call_that_fell_back_is_counted_once_with_both_models() -> None:
    world = World(only_b_answers, price_overrides="b: {input: 1, output: 1}")
    world.ask(max_retries=2, fallback_models=("b",))
    dimensions, figures = the_only(world.counted())
    assert (dimensions.asked, dimensions.served, dimensions.status) == ("gpt-4.1", "b", "ok")
    assert (figures.upstream_calls, figures.cost_usd) == (4, Decimal("0.000015"))


def test_an_answer_that_nobody_can_price_is_counted_as_such() -> None:
    world = World()
    world.engine.ask(a_request().with_model("nobody-knows"), Policy(), timeout_s=60).wait()
    _, figures = the_only(world.counted())
    assert (figures.unpriced, figures.cost_usd, figures.total_tokens) == (1, 0, 15)


@pytest.mark.parametrize("pieces_read", [1, 2])
def test_a_reader_that_leaves_has_cancelled_its_call(pieces_read: int) -> None:
    world = World(words)
    pieces = iter(world.answer(stream=True))
    abandon(pieces, after=pieces_read)
    dimensions, figures = the_only(world.counted())
    assert (dimensions.status, figures.upstream_calls, figures.cost_usd) == ("cancelled", 1, 0)
    assert figures.latency_us == pieces_read * 1_000_000


def test_a_caller_that_is_killed_has_cancelled_its_call() -> None:
    world = World()
    victim = world.time.spawn(world.ask)
    world.time.spawn(world.time.throw, victim, Killed(), after_s=0.5)
    world.time.run()
    dimensions, figures = the_only(world.counted())
    assert (dimensions.status, figures.upstream_calls) == ("cancelled", 1)


@pytest.mark.parametrize("fields", [{}, {"daily_budget_usd": "1"}], ids=["no limit", "a limit"])
def test_when_the_first_of_those_that_share_a_stream_leaves_another_has_made_it(
    fields: dict[str, str],
) -> None:
    world = World(words, **fields)

    def leaver() -> None:
        pieces = iter(world.answer(stream=True))
        abandon(pieces, after=1)

    world.time.spawn(leaver)
    for _ in range(3):
        world.time.spawn(world.ask, stream=True)
    world.time.run()
    statuses = world.counted().grouped(lambda row: row.status)
    assert {status: figures.requests for status, figures in statuses.items()} == {
        "cancelled": 1,
        "ok": 3,
    }
    assert by_cache(world.counted()) == {
        "miss": (2, 1, 15, COST, 0),
        "coalesced": (2, 0, 0, 0, 2 * COST),
    }
    assert spent(world) == COST


def test_a_structured_answer_that_was_asked_twice_is_one_call_that_cost_both() -> None:
    texts = iter(["[]", '{"a": 1}'])
    world = World(lambda body, _: good_answer(body, text=next(texts)))
    world.ask(answer_schema=SCHEMA)
    dimensions, figures = the_only(world.counted())
    assert (dimensions.status, figures.upstream_calls) == ("ok", 2)
    assert (figures.total_tokens, figures.cost_usd) == (30, 2 * COST)
    assert spent(world) == 2 * COST


@pytest.mark.parametrize("fields", [{}, {"daily_budget_usd": "1"}], ids=["no limit", "a limit"])
def test_structured_answers_that_cannot_be_used_are_counted_with_what_they_cost(
    fields: dict[str, str],
) -> None:
    world = World(lambda body, _: good_answer(body, text="[]"), **fields)
    with pytest.raises(InvalidOutput):
        world.ask(answer_schema=SCHEMA)
    dimensions, figures = the_only(world.counted())
    assert (dimensions.status, dimensions.served) == ("invalid_output", "gpt-4.1")
    assert (figures.upstream_calls, figures.total_tokens, figures.cost_usd) == (2, 30, 2 * COST)
    assert spent(world) == 2 * COST


def test_the_cost_of_an_answer_whose_correction_fails_is_counted() -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        return good_answer(body, text="[]") if number == 0 else failing(503)(body, 0)

    world = World(respond)
    with pytest.raises(ServerError):
        world.ask(answer_schema=SCHEMA, max_retries=0)
    dimensions, figures = the_only(world.counted())
    assert (dimensions.status, figures.upstream_calls) == ("server_error", 2)
    assert (figures.total_tokens, figures.cost_usd) == (15, COST)
    assert spent(world) == COST


def test_those_that_share_an_answer_that_cannot_be_used_count_its_cost_once() -> None:
    world = World(lambda body, _: good_answer(body, text="[]"))
    for _ in range(5):
        world.time.spawn(world.ask, answer_schema=SCHEMA)
    assert kinds(world.time.run()) == {"InvalidOutput": 5}
    assert by_cache(world.counted()) == {
        "miss": (1, 2, 30, 2 * COST, 0),
        "coalesced": (4, 0, 0, 0, 0),
    }
    assert spent(world) == 2 * COST


# --- budgets ------------------------------------------------------------------------------------


def spent(world: World, ledger: Ledger | None = None) -> Decimal:
    """What a ledger says was spent today by the credential; nothing may be held any more."""
    fingerprint = world.engine.settings.fingerprint
    today, _ = (ledger or world.state.ledger).periods(fingerprint, world.engine.limits)
    assert today.held == 0
    return today.spent


TWO_USD = "gpt-4.1: {input: 0, output: 20000}"


def two_usd_each(body: dict[str, Any], _: int) -> Any:
    """An answer that is as long, and costs as much, as the request allows."""
    return good_answer(body, completion_tokens=100)


@pytest.mark.parametrize("period", ["daily", "monthly"])
def test_a_call_is_warned_when_four_fifths_of_a_budget_are_spent_and_not_before(
    period: str,
) -> None:
    fields = {f"{period}_budget_usd": "10"}
    world = World(two_usd_each, price_overrides=TWO_USD, **fields)
    warnings = [world.ask(f"question {number}").meta.budget_warning for number in range(5)]
    assert warnings[:3] == [""] * 3
    assert warnings[3].startswith(f"80 % of the {period} budget of 10 USD is spent")
    assert warnings[4].startswith(f"100 % of the {period} budget")


def test_a_call_that_spends_nothing_is_warned_too() -> None:
    world = World(two_usd_each, price_overrides=TWO_USD, daily_budget_usd="2.2")
    world.ask()
    hit = world.ask()
    assert hit.cached
    assert hit.meta.budget_warning.startswith("91 % of the daily budget")
    assert hit.to_json()["meta"]["budget_warning"] == hit.meta.budget_warning


def test_what_calls_under_way_hold_is_nothing_to_warn_of() -> None:
    world = World(two_usd_each, price_overrides=TWO_USD, daily_budget_usd="10")
    for number in range(3):
        world.time.spawn(world.ask, f"question {number}")
    # It holds the rest of the budget while the others end.
    world.time.spawn(world.ask, "at last", after_s=0.5)
    *first, last = world.time.run()
    assert [result.meta.budget_warning for result in first] == [""] * 3
    assert last.meta.budget_warning


def test_without_a_limit_nobody_is_warned_and_a_model_needs_no_price() -> None:
    world = World(two_usd_each, price_overrides=TWO_USD)
    assert [world.ask(f"{number}").meta.budget_warning for number in range(20)] == [""] * 20
    request = a_request().with_model("nobody-knows")
    assert world.engine.ask(request, Policy(), timeout_s=60).wait().meta.budget_warning == ""


def test_a_workspace_is_warned_of_its_own_budget() -> None:
    world = World(two_usd_each, price_overrides=TWO_USD, daily_budget_usd="2")
    one, other = (Ledger(world.time, world.time.spawn).invocation("llm") for _ in range(2))
    assert world.ask("one", invocation=one).meta.budget_warning
    assert world.ask("one", invocation=other).meta.budget_warning == ""
    with pytest.raises(BudgetExceeded):
        world.ask("more", invocation=one)
    assert world.ask("more", invocation=other).meta.budget_warning


def test_what_was_spent_without_a_limit_counts_when_one_is_set() -> None:
    world = World(two_usd_each, price_overrides=TWO_USD)
    for number in (1, 2, 2, 2):
        world.ask(f"question {number}")
    limited = world.changed(price_overrides=TWO_USD, daily_budget_usd="6")
    assert world.ask("question 3", engine=limited).meta.budget_warning.startswith("100 %")
    with pytest.raises(BudgetExceeded, match=r"spent 6\.0"):
        world.ask("question 4", engine=limited)


def test_what_was_spent_under_a_limit_counts_when_it_was_away_for_a_while() -> None:
    world = World(two_usd_each, price_overrides=TWO_USD, daily_budget_usd="10")
    world.ask("question 1")
    world.ask("question 2", engine=world.changed(price_overrides=TWO_USD))
    limited = world.changed(price_overrides=TWO_USD, daily_budget_usd="5.99")
    with pytest.raises(BudgetExceeded, match=r"spent 4\.0"):
        world.ask("question 3", engine=limited)


def test_answers_that_could_not_be_used_count_when_a_limit_is_set() -> None:
    world = World(lambda body, _: good_answer(body, text="[]"))
    with pytest.raises(InvalidOutput):
        world.ask(answer_schema=SCHEMA)
    with pytest.raises(BudgetExceeded, match=r"spent 0\.000120"):
        world.ask(engine=world.changed(daily_budget_usd="0.0002"))


# --- many calls ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_fifty_identical_calls_make_one_request(seed: int) -> None:
    world = World(seed=seed)
    for _ in range(50):
        world.time.spawn(world.ask)
    results = world.time.run()
    assert {result.text for result in results} == {"Hi"}
    assert Counter(result.meta.cache for result in results) == {"miss": 1, "coalesced": 49}
    assert sum(result.cost_usd for result in results) == Decimal("0.00006")
    assert len(world.gateway.bodies) == 1


def test_identical_calls_of_two_credentials_are_not_shared() -> None:
    world = World()
    other = world.credential(OTHER_KEY)
    world.time.spawn(world.ask)
    world.time.spawn(world.ask, engine=other)
    world.time.run()
    assert len(world.gateway.bodies) == 2


def test_no_more_requests_are_in_flight_than_the_credential_allows() -> None:
    world = World(seed=1, max_concurrency="7")
    assert kinds(world.crowd(50)) == {"ChatResult": 50}
    assert world.gateway.max_in_use == 7


def test_a_quarter_of_an_hour_of_calls_keeps_to_the_rate() -> None:
    world = World(requests_per_minute="60")

    def caller(number: int) -> None:
        count = 0
        while world.time.monotonic() < START_S + 900:
            world.ask(f"{number} {count}", timeout_s=540)
            count += 1

    for number in range(10):
        world.time.spawn(caller, number)
    assert world.time.run() == [None] * 10
    sent = world.gateway.sent_s
    assert len(sent) >= 900
    for first in range(0, len(sent) - 60, 50):
        for last in range(first + 60, len(sent), 100):
            assert last - first + 1 <= 60 + (sent[last] - sent[first]) + 1e-6


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("concurrency", ["20", "50"])
def test_no_request_leaves_during_a_pause(concurrency: str, seed: int) -> None:
    def respond(body: dict[str, Any], _: int) -> Any:
        now_s = world.time.monotonic() - START_S
        if now_s < 10:
            return failing(429, latency_s=0.5, retry_after="20")(body, 0)
        return good_answer(body)

    world = World(respond, seed=seed, max_concurrency=concurrency)
    assert kinds(world.crowd(50, timeout_s=540, max_retries=10)) == {"ChatResult": 50}
    on_their_way = int(concurrency)
    raced_the_429 = 2  # had just been let through when it came
    assert world.sent_within(0.5, 20.5) <= raced_the_429
    assert world.gateway.statuses.count(429) <= on_their_way + raced_the_429


@pytest.mark.parametrize("names_time", [True, False], ids=["Retry-After", "no Retry-After"])
def test_a_429_storm_of_fifty_calls_does_not_become_one_of_a_hundred(names_time: bool) -> None:
    answered: Counter[int] = Counter()

    def respond(body: dict[str, Any], _: int) -> Any:
        now_s = world.time.monotonic() - START_S
        window = int(now_s // 10)
        answered[window] += 1
        if answered[window] <= 10:
            return good_answer(body, latency_s=0.3)
        headers = {"retry_after": f"{(window + 1) * 10 - now_s - 0.2:.3f}"} if names_time else {}
        return failing(429, latency_s=0.2, **headers)(body, 0)

    world = World(respond, seed=4, max_concurrency="50")
    assert kinds(world.crowd(50, timeout_s=540, max_retries=10)) == {"ChatResult": 50}
    assert world.gateway.statuses.count(429) <= 50


@pytest.mark.parametrize("concurrency", ["5", "20"])
def test_while_upstream_is_down_hardly_more_than_the_breaker_needs_is_sent(
    concurrency: str,
) -> None:
    world = World(failing(503), max_concurrency=concurrency)
    outcomes = world.crowd(60, max_retries=0, timeout_s=25)
    assert kinds(outcomes).keys() <= {"ServerError", "CircuitOpen"}
    on_their_way = int(concurrency)
    assert len(world.gateway.bodies) <= 5 + on_their_way


def test_calls_that_wait_for_a_limit_heed_a_breaker_that_opens_meanwhile() -> None:
    world = World(failing(503, latency_s=0.1), requests_per_minute="5")
    outcomes = world.crowd(8, max_retries=0, timeout_s=60)
    assert len(world.gateway.bodies) <= 6
    assert kinds(outcomes).get("CircuitOpen", 0) >= 2


def test_a_gateway_that_hangs_opens_the_breaker() -> None:
    world = World(lambda body, _: good_answer(body, latency_s=1000.0))
    for number in range(5):
        with pytest.raises(TimedOut):
            world.ask(f"{number}", timeout_s=60.0, max_retries=0)
    with pytest.raises(CircuitOpen):
        world.ask("one more")


def test_callers_with_a_very_short_deadline_do_not_shut_out_the_patient_ones() -> None:
    world = World(lambda body, _: good_answer(body, latency_s=3.0))
    for number in range(5):
        with pytest.raises(TimedOut):
            world.ask(f"{number}", timeout_s=1.0, max_retries=0)
    other = world.credential(OTHER_KEY)
    assert world.ask("patient", engine=other).text == "Hi"


def test_an_outage_is_probed_once_every_thirty_seconds() -> None:
    world = World(failing(503, latency_s=0.1))

    def caller(number: int) -> None:
        for count in range(130):
            with pytest.raises((ServerError, CircuitOpen)):
                world.ask(f"{number} {count}", max_retries=0)
            world.time.sleep(0.5)

    for number in range(10):
        world.time.spawn(caller, number)
    assert world.time.run() == [None] * 10
    minutes = (world.time.monotonic() - START_S) / 60
    assert len(world.gateway.bodies) - 10 <= 2 * minutes + 1


def test_an_open_breaker_lets_a_fallback_model_answer_at_once() -> None:
    world = World(only_b_answers)
    for number in range(5):
        with pytest.raises(ServerError):
            world.ask(f"{number}", max_retries=0)
    began_s = world.time.monotonic()
    result = world.ask("now", fallback_models=("b",))
    assert result.model_used == "b"
    assert world.time.monotonic() == began_s + 1.0


def test_a_stale_answer_covers_an_open_breaker_at_once() -> None:
    down = [False]

    def respond(body: dict[str, Any], _: int) -> Any:
        return failing(500)(body, 0) if down[0] else good_answer(body)

    world = World(respond)
    world.ask("mine", cache_ttl_s=1)
    down[0] = True
    for number in range(5):
        with pytest.raises(ServerError):
            world.ask(f"{number}", max_retries=0)
    world.time.sleep(10)
    began_s = world.time.monotonic()
    result = world.ask("mine", cache_ttl_s=1, serve_stale=True)
    assert (result.text, result.meta.cache, result.cost_usd) == ("Hi", "stale", 0)
    assert world.time.monotonic() == began_s


@pytest.mark.parametrize("seed", range(3))
def test_every_waiting_caller_of_a_dead_gateway_gets_its_stale_answer(seed: int) -> None:
    hanging = [False]

    def respond(body: dict[str, Any], _: int) -> Any:
        return good_answer(body, latency_s=500.0 if hanging[0] else 1.0)

    world = World(respond, seed=seed)
    world.ask("mine", cache_ttl_s=1)
    hanging[0] = True
    world.time.sleep(10)
    for _ in range(5):
        world.time.spawn(
            world.ask, "mine", timeout_s=20.0, cache_ttl_s=1, serve_stale=True, max_retries=0
        )
    assert kinds(world.time.run()) == {"ChatResult": 5}


def test_a_fallback_gets_through_while_the_first_model_is_paused() -> None:
    def respond(body: dict[str, Any], _: int) -> Any:
        if body["model"] == "b":
            return good_answer(body, latency_s=0.2)
        return failing(429, latency_s=0.2, retry_after="3600")(body, 0)

    world = World(respond, seed=2)
    outcomes = world.crowd(50, fallback_models=("b",), timeout_s=60)
    assert {outcome.model_used for outcome in outcomes} == {"b"}
    assert world.time.monotonic() - START_S < 30


@pytest.mark.parametrize("seed", range(3))
def test_fifty_parallel_calls_do_not_spend_past_a_budget(seed: int) -> None:
    world = World(
        lambda body, _: good_answer(body, prompt_tokens=10, completion_tokens=100),
        seed=seed,
        daily_budget_usd="0.01",
    )
    outcomes = world.crowd(50)
    assert kinds(outcomes).keys() == {"ChatResult", "BudgetExceeded"}
    spent = sum(outcome.cost_usd for outcome in outcomes if isinstance(outcome, ChatResult))
    assert spent <= Decimal("0.01")


def test_a_limit_that_resets_too_late_is_told_at_once() -> None:
    world = World(failing(429, latency_s=0.1, retry_after="3600"))
    with pytest.raises(QuotaExhausted, match="3600 s"):
        world.ask("one")
    began_s = world.time.monotonic()
    with pytest.raises(QuotaExhausted, match="s"):
        world.ask("two")
    assert world.time.monotonic() == began_s
    assert len(world.gateway.bodies) == 1


def test_a_paused_credential_does_not_hold_back_another() -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        return failing(429, retry_after="30")(body, 0) if number == 0 else good_answer(body)

    world = World(respond)
    other = world.credential(OTHER_KEY)
    world.time.spawn(world.ask, "one")
    second = world.time.spawn(world.ask, "two", engine=other, after_s=1.0)
    world.time.run()
    assert second.ended_s == START_S + 2


def test_retries_that_run_out_end_as_the_rate_limit_that_they_met() -> None:
    world = World(failing(429, latency_s=0.1, retry_after="1"))
    with pytest.raises(RateLimited):
        world.ask(max_retries=2)
    assert len(world.gateway.bodies) == 3


@pytest.mark.parametrize("seed", range(6))
def test_no_weather_leaves_anything_behind(seed: int) -> None:
    dice = random.Random(seed)

    def respond(body: dict[str, Any], _: int) -> Any:
        throw = dice.random()
        if throw < 0.6:
            return good_answer(body, latency_s=dice.random() * 5)
        if throw < 0.7:
            return httpx.ReadError("reset")
        if throw < 0.8:
            return failing(429, retry_after=str(dice.choice([1, 5, 100])))(body, 0)
        return failing(dice.choice([500, 503, 400, 408]))(body, 0)

    world = World(
        respond,
        seed=seed,
        max_concurrency="5",
        requests_per_minute="120",
        tokens_per_minute="20000",
        daily_budget_usd="1",
        price_overrides="b: {input: 1, output: 1}",
    )
    begun = []

    def ask(text: str, **options: Any) -> ChatResult:
        begun.append(text)
        return world.ask(text, **options)

    callers = [
        world.time.spawn(
            ask,
            f"question {dice.randrange(15)}",
            timeout_s=dice.choice([2.0, 20.0, 90.0]),
            cache=dice.choice(["use", "use", "refresh", "bypass"]),
            fallback_models=dice.choice([(), ("b",)]),
            serve_stale=dice.random() < 0.3,
            after_s=dice.random() * 30,
        )
        for _ in range(80)
    ]
    for victim in dice.sample(callers, 10):
        world.time.spawn(world.time.throw, victim, Killed(), after_s=dice.random() * 40)
    outcomes = world.time.run()[: len(callers)]
    for outcome in outcomes:
        assert isinstance(outcome, ChatResult | HolySheepError | Killed), outcome
        if isinstance(outcome, HolySheepError):
            assert "\n" not in outcome.message
    results = [outcome for outcome in outcomes if isinstance(outcome, ChatResult)]
    assert results
    assert world.gateway.in_use == world.state.slots.held == len(world.state.flights) == 0
    counted = world.counted().total()
    assert (counted.requests, counted.upstream_calls) == (len(begun), len(world.gateway.bodies))
    assert counted.cost_usd == sum(result.cost_usd or 0 for result in results)
    assert counted.saved_usd == sum(result.usage.saved_usd or 0 for result in results)
    assert spent(world) >= counted.cost_usd
    world.time.sleep(3600.0)
    assert world.state.backend.limiter.is_idle


@pytest.mark.parametrize("fields", [{}, {"daily_budget_usd": "1"}], ids=["no limit", "a limit"])
def test_a_leader_that_leaves_when_the_others_have_the_end_still_made_the_call(
    fields: dict[str, str],
) -> None:
    world = World(words, **fields)

    def slow_leader() -> None:
        pieces = iter(world.answer(stream=True))
        next(pieces)
        world.time.sleep(100)
        pieces.close()  # type: ignore[attr-defined]

    world.time.spawn(slow_leader)
    for _ in range(3):
        world.time.spawn(world.ask, stream=True)
    world.time.run()
    assert world.counted().total().cost_usd == COST
    assert spent(world) == COST


def test_an_answer_before_a_stale_one_is_counted() -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        texts = ['{"a": 1}', "[]"]
        return good_answer(body, text=texts[number]) if number < 2 else failing(503)(body, number)

    world = World(respond)
    world.ask(answer_schema=SCHEMA, cache_ttl_s=1)
    world.time.sleep(10)
    result = world.ask(answer_schema=SCHEMA, cache_ttl_s=1, serve_stale=True, max_retries=0)
    assert result.meta.cache == "stale"
    assert world.counted().total().cost_usd == 2 * COST
    assert spent(world) == 2 * COST


def test_who_inherits_an_answer_from_the_cache_has_not_called() -> None:
    world = World(words)
    world.ask(stream=True)
    # As when the first look was before the answer was there, and the second one after it.
    world.engine.handler = stack(
        [
            SingleFlightLayer(world.state.flights, identity_of),
            CacheLayer(world.state.backend.answers, world.time),
        ],
        world.engine.transport,
    )
    leader, heir = (iter(world.answer(stream=True)) for _ in range(2))
    next(leader)
    next(heir)
    leader.close()  # type: ignore[attr-defined]
    list(heir)
    assert world.counted().total().cost_usd == COST


@pytest.mark.parametrize("how", ["times out", "is unreadable"])
def test_what_upstream_worked_for_and_nobody_got_counts_as_the_worst_case(how: str) -> None:
    def respond(body: dict[str, Any], _: int) -> Any:
        if how == "times out":
            return 100.0, 200, {}, good_answer(body)[-1]
        return 0.5, 200, {}, {"choices": "none"}

    world = World(respond, daily_budget_usd="1")
    with pytest.raises(HolySheepError):
        world.ask(timeout_s=5.0, max_retries=0)
    assert spent(world) > 0
    total = world.counted().total()
    assert (total.requests, total.cost_usd, total.unpriced) == (1, 0, 1)


def test_a_request_that_was_refused_costs_nothing() -> None:
    world = World(failing(400), daily_budget_usd="1")
    with pytest.raises(HolySheepError):
        world.ask()
    assert spent(world) == 0
    assert world.counted().total().unpriced == 0
