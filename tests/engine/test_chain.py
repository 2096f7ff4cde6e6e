"""Chains over a scripted gateway, on a timeline: what each step sends, failures, one deadline."""

import json
import random
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import httpx
import pytest

from holysheep.chain import Chain
from holysheep.errors import (
    AuthError,
    BadRequest,
    DeadlineExceeded,
    HolySheepError,
    InputError,
    RateLimited,
    ServerError,
    TimedOut,
)
from holysheep.params import ChainParams
from holysheep.reading import chosen, parsed
from tests.engine.world import Respond, World, failing
from tests.fakes import START_S, good_answer, streamed_answer

PRICES = "gpt-4.1: {input: 1, output: 1}"  # an answer of 15 tokens costs 15 millionths
QUERY = "Why is the sky blue?"


class Run:
    """A chain that has been read to its end; its pieces, and when they came."""

    def __init__(self, world: World, steps: Any, query: str = QUERY, **params: Any) -> None:
        self.world = world
        before = len(world.gateway.bodies)
        given = {"query": query, "steps": steps, "model": "gpt-4.1", **params}
        values = chosen(given, default_model="unused")
        self.chain = Chain(world.engine, parsed(ChainParams, values), clock=world.time)
        self.pieces: list[str] = []
        self.arrived_s: list[float] = []
        for delta in self.chain:
            self.pieces.append(delta.text)
            self.arrived_s.append(world.time.monotonic() - START_S)
        self.bodies = world.gateway.bodies[before:]
        assert world.gateway.in_use == 0

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def said(self) -> list[list[tuple[str, str]]]:
        """Role and content of the messages of each request."""
        return [[(m["role"], m["content"]) for m in body["messages"]] for body in self.bodies]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [step.to_json() for step in self.chain.results]

    @property
    def error_types(self) -> list[str]:
        """The kind of failure of each step, nothing for one that was answered."""
        return [row.get("error_type", "") for row in self.rows]


def user(text: str) -> tuple[str, str]:
    return ("user", text)


def model(text: str) -> tuple[str, str]:
    return ("assistant", text)


def numbered(latency_s: float = 1.0) -> Respond:
    """A gateway whose answers are "answer 1", "answer 2", by the order of the requests."""
    return lambda body, number: good_answer(body, f"answer {number + 1}", latency_s=latency_s)


def but(bad: Respond, *numbers: int, good: Respond | None = None) -> Respond:
    """A gateway on which the requests of these numbers (from 1) go wrong."""

    def respond(body: dict[str, Any], number: int) -> Any:
        return (bad if number + 1 in numbers else good or numbered())(body, number)

    return respond


def refused(steps: Any, **params: Any) -> str:
    """The sentence with which a chain is refused; nothing was sent."""
    world = World()
    with pytest.raises(InputError) as caught:
        Run(world, steps, **params)
    assert world.gateway.bodies == []
    return caught.value.message


# --- what a step sends --------------------------------------------------------------------------


def test_first_step_without_a_prompt_sends_the_query() -> None:
    assert Run(World(numbered()), [{"name": "a"}]).said == [[user(QUERY)]]


@pytest.mark.parametrize("context", ["accumulate", "previous", "none"])
def test_first_step_sends_the_query_followed_by_its_prompt(context: str) -> None:
    run = Run(World(numbered()), [{"prompt": "Be brief.", "context": context}])
    ((said,),) = run.said
    assert said[0] == "user"
    assert said[1].split() == f"{QUERY} Be brief.".split()
    assert said[1].startswith(QUERY)
    assert said[1] != f"{QUERY} Be brief.", "the prompt begins a line of its own"


@pytest.mark.parametrize("context", ["accumulate", "previous", "none"])
def test_first_step_that_places_the_query_sends_it_once(context: str) -> None:
    run = Run(World(numbered()), [{"prompt": "Answer: {{ query }}!", "context": context}])
    assert run.said == [[user(f"Answer: {QUERY}!")]]


def test_accumulate_is_the_default_and_sends_the_conversation_so_far() -> None:
    run = Run(World(numbered()), [{}, {"prompt": "Shorter."}, {"prompt": "In French."}])
    assert run.said[1] == [user(QUERY), model("answer 1"), user("Shorter.")]
    assert run.said[2] == [
        *(user(QUERY), model("answer 1")),
        *(user("Shorter."), model("answer 2")),
        user("In French."),
    ]


def test_previous_sends_the_last_answer_followed_by_the_prompt_and_nothing_else() -> None:
    steps = [{}, {"prompt": "Two."}, {"prompt": "Three.", "context": "previous"}]
    ((said),) = [Run(World(numbered()), steps).said[2]]
    ((role, content),) = said
    assert role == "user"
    assert content.startswith("answer 2")
    assert content.endswith("Three.")
    assert content.split() == ["answer", "2", "Three."]


def test_previous_that_places_the_answer_itself_sends_it_once() -> None:
    steps = [{}, {"prompt": "Translate <{{ previous }}>.", "context": "previous"}]
    assert Run(World(numbered()), steps).said[1] == [user("Translate <answer 1>.")]


def test_previous_needs_no_prompt_of_its_own() -> None:
    steps = [{}, {"context": "previous", "system": "Translate into French."}]
    run = Run(World(numbered()), steps)
    assert run.said[1] == [("system", "Translate into French."), user("answer 1")]


def test_none_sends_its_prompt_alone() -> None:
    steps = [{}, {"prompt": "A joke, please.", "context": "none"}]
    assert Run(World(numbered()), steps).said[1] == [user("A joke, please.")]


def test_a_step_without_context_is_part_of_the_conversation_behind_it() -> None:
    steps = [{}, {"prompt": "A joke.", "context": "none"}, {"prompt": "Compare."}]
    assert Run(World(numbered()), steps).said[2] == [
        *(user(QUERY), model("answer 1")),
        *(user("A joke."), model("answer 2")),
        user("Compare."),
    ]


def test_prompts_may_use_query_previous_and_earlier_steps_by_name() -> None:
    steps = [
        {"name": "draft"},
        {"name": "second", "prompt": "x"},
        {
            "context": "none",
            "prompt": "{{ query }} | {{ previous }} | {{ steps.draft }} | {{ steps['second'] }}",
        },
    ]
    assert Run(World(numbered()), steps).said[2] == [
        user(f"{QUERY} | answer 2 | answer 1 | answer 2")
    ]


def test_a_step_without_a_name_is_called_by_its_place() -> None:
    steps = [{}, {"prompt": "x", "name": " "}, {"prompt": "{{ steps.step_0 }}{{ steps.step_1 }}"}]
    run = Run(World(numbered()), steps)
    assert run.said[2][-1] == user("answer 1answer 2")
    assert [row["name"] for row in run.rows] == ["step_0", "step_1", "step_2"]


def test_what_a_model_says_is_never_read_as_a_template() -> None:
    evil = "{{ query }} {% for x in steps %} {{ ''.__class__ }}"
    world = World(lambda body, _: good_answer(body, evil))
    run = Run(world, [{}, {"prompt": "{{ previous }}", "context": "previous"}, {"prompt": "go"}])
    assert run.said[1] == [user(evil)]
    assert run.said[2][1] == model(evil)
    assert run.chain.status == "ok"


def test_a_query_with_braces_is_sent_as_it_is() -> None:
    query = "What does {{ x }} {% if %} mean?"
    run = Run(World(numbered()), [{}, {"prompt": "{{ query }}"}], query)
    assert run.said[0] == [user(query)]
    assert run.said[1][-1] == user(query)


@pytest.mark.parametrize("seed", range(30))
def test_what_is_sent_follows_from_the_steps_and_from_which_of_them_failed(seed: int) -> None:
    """The contract's sentences once more, for any order of contexts and failures."""
    chance = random.Random(seed)
    steps: list[dict[str, Any]] = []
    for number in range(chance.randint(1, 7)):
        context = chance.choice(["accumulate", "previous", "none"])
        word = chance.choice(["", " {{ previous }}", " {{ query }}"])
        steps.append({"prompt": f"p{number}{word}", "context": context})
    bad = {number for number in range(len(steps)) if chance.random() < 0.35}

    turns: list[tuple[str, str]] = []
    expected = []
    for number, step in enumerate(steps):
        previous = turns[-1][1] if turns else ""
        text = step["prompt"].replace("{{ previous }}", previous).replace("{{ query }}", QUERY)
        places = [word for word in ("previous", "query") if f"{{{{ {word} }}}}" in step["prompt"]]
        wanted = []
        if turns and step["context"] == "previous" and "previous" not in places:
            wanted = [previous]
        if not turns and (number == 0 or step["context"] != "none") and "query" not in places:
            wanted = [QUERY]
        message = "\n\n".join([*wanted, text])
        said = []
        if step["context"] == "accumulate":
            for asked, answered in turns:
                said += [user(asked), model(answered)]
        expected.append([*said, user(message)])
        if number not in bad:
            turns.append((message, f"answer {number + 1}"))

    world = World(but(failing(400), *(number + 1 for number in bad)))
    run = Run(world, steps)
    assert run.said == expected
    assert [bool(kind) for kind in run.error_types] == [n in bad for n in range(len(steps))]
    assert run.chain.final == (turns[-1][1] if turns else "")


# --- how a step is asked ------------------------------------------------------------------------


def test_a_steps_own_settings_win_and_hold_for_that_step_alone() -> None:
    steps = [
        {},
        {
            "prompt": "x",
            "model": "claude-haiku-4-5",
            "temperature": 0,
            "max_tokens": 7,
            "system": "You are a critic.",
        },
        {"prompt": "y"},
    ]
    run = Run(World(numbered()), steps, system_prompt="Be kind.", temperature=1.5, max_tokens=99)
    shown = [(b["model"], b["temperature"], b["max_tokens"]) for b in run.bodies]
    usual = ("gpt-4.1", 1.5, 99)
    assert shown == [usual, ("claude-haiku-4-5", 0, 7), usual]
    systems = [said[0] for said in run.said]
    assert systems == [
        ("system", "Be kind."),
        ("system", "You are a critic."),
        ("system", "Be kind."),
    ]
    assert [row["model"] for row in run.rows] == ["gpt-4.1", "claude-haiku-4-5", "gpt-4.1"]


def test_what_is_left_out_has_the_nodes_defaults() -> None:
    body = Run(World(numbered()), [{}]).bodies[0]
    assert (body["temperature"], body["max_tokens"], body["top_p"]) == (0.7, 2048, 0.95)


@pytest.mark.parametrize(
    "steps",
    [
        '[{"name": "a"}, {"name": "b", "prompt": "{{ steps.a }}!", "temperature": 0.5}]',
        '- name: a\n- name: b\n  prompt: "{{ steps.a }}!"\n  temperature: 0.5\n',
        ['[{"name": "a"}, {"name": "b", "prompt": "{{ steps.a }}!", "temperature": "0.5"}]'],
        ["[{'name': 'a'}, {'name': 'b', 'prompt': '{{ steps.a }}!', 'temperature': 0.5}]"],
        [{"name": "a"}, {"name": "b", "prompt": "{{ steps.a }}!", "temperature": "0.5"}],
    ],
    ids=["json", "yaml", "host_json", "host_repr", "list"],
)
def test_steps_are_understood_in_each_form_that_the_host_may_hand_over(steps: Any) -> None:
    run = Run(World(numbered()), steps)
    assert run.said[1][-1] == user("answer 1!")
    assert run.bodies[1]["temperature"] == 0.5


def test_a_chain_that_was_run_before_costs_nothing() -> None:
    world = World(numbered(), price_overrides=PRICES)
    steps = [{}, {"prompt": "Shorter."}]
    first = Run(world, steps)
    again = Run(world, steps)
    assert again.bodies == []
    assert [row["cached"] for row in first.rows + again.rows] == [False, False, True, True]
    assert [row["cost_usd"] for row in again.rows] == [0, 0]
    assert (first.chain.cost_usd, again.chain.cost_usd) == (Decimal("0.00003"), 0)
    assert again.chain.tokens_used == first.chain.tokens_used == 30
    assert again.text == first.text == again.chain.final == "answer 2"


def test_a_changed_step_is_asked_anew_and_those_before_it_are_not() -> None:
    world = World(numbered())
    Run(world, [{}, {"prompt": "Shorter."}])
    again = Run(world, [{}, {"prompt": "Longer."}])
    assert [row["cached"] for row in again.rows] == [True, False]
    assert again.said == [[user(QUERY), model("answer 1"), user("Longer.")]]


@pytest.mark.parametrize(("mode", "kept"), [("bypass", 0), ("refresh", 2)])
def test_who_does_not_read_the_cache_has_every_step_asked(mode: str, kept: int) -> None:
    world = World(numbered())
    steps = [{}, {"prompt": "Shorter.", "context": "none"}]
    for _ in range(2):
        assert len(Run(world, steps, cache=mode).bodies) == 2
    assert len(world.cache) == kept


def test_a_step_whose_model_fails_is_answered_by_the_fallback_and_the_next_asks_its_own() -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        if body["model"] == "first" and len(body["messages"]) == 3:
            return failing(404)(body, number)
        return numbered()(body, number)

    steps = [{}, {"prompt": "x"}, {"prompt": "y"}]
    run = Run(World(respond), steps, model="first", fallback_models="second")
    assert [body["model"] for body in run.bodies] == ["first", "first", "second", "first"]
    assert [row["model"] for row in run.rows] == ["first", "second", "first"]
    assert run.chain.status == "ok"
    assert run.said[-1][3] == model("answer 3"), "the fallback's answer is in the conversation"


@pytest.mark.parametrize(("options", "attempts"), [("max_retries: 2", 3), ("max_retries: 0", 1)])
def test_a_step_is_retried_as_often_as_the_options_say(options: str, attempts: int) -> None:
    run = Run(World(failing(500)), [{}, {"prompt": "x"}], options=options)
    assert len(run.bodies) == 2 * attempts or len(run.bodies) == 5  # the breaker opens at five
    assert [body["messages"] for body in run.bodies[:attempts]] == [run.bodies[0]["messages"]] * (
        attempts
    )
    assert run.said[attempts] != run.said[0], "then the next step is asked"


def test_a_step_that_recovers_is_no_failure() -> None:
    run = Run(World(but(failing(503), 1, 2)), [{}, {"prompt": "x"}])
    assert len(run.bodies) == 4
    assert run.chain.status == "ok"


# --- failed steps -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ("accumulate", f"{QUERY}\n\nTwo."),
        ("previous", f"{QUERY}\n\nTwo."),
        ("none", "Two."),
    ],
)
def test_after_a_failed_first_step_the_next_begins_with_the_query(
    context: str, expected: str
) -> None:
    run = Run(
        World(but(failing(400), 1)), [{"prompt": "One."}, {"prompt": "Two.", "context": context}]
    )
    assert run.said[1] == [user(expected)]
    assert run.error_types == ["bad_request", ""]
    assert (run.chain.status, run.chain.final, run.text) == ("partial", "answer 2", "answer 2")


def test_a_failed_step_in_the_middle_leaves_nothing_behind() -> None:
    steps = [
        {"name": "a"},
        {"name": "b", "prompt": "Two."},
        {"prompt": "<{{ steps.b }}> <{{ previous }}>"},
    ]
    run = Run(World(but(failing(400), 2)), steps)
    assert run.said[2] == [user(QUERY), model("answer 1"), user("<> <answer 1>")]
    assert run.rows[1].keys() == {"name", "error", "error_type"}
    assert run.rows[1]["name"] == "b"
    assert "HTTP 400" in run.rows[1]["error"]
    assert (len(run.chain.answered), len(run.chain.failed)) == (2, 1)


def test_after_a_failed_last_step_the_last_good_answer_is_told() -> None:
    run = Run(World(but(failing(400), 2)), [{}, {"prompt": "Two."}])
    assert run.text == ""
    assert run.chain.rest_of_text(run.text) == run.chain.final == "answer 1"
    assert run.chain.status == "partial"


def test_nothing_is_added_to_the_text_of_an_answered_last_step() -> None:
    run = Run(World(but(failing(400), 1)), [{}, {"prompt": "Two."}])
    assert run.text == "answer 2"
    assert run.chain.rest_of_text(run.text) == ""


@pytest.mark.parametrize(
    ("on_step_error", "on_error", "stops"),
    [
        ("continue", None, False),
        ("stop", None, True),
        ("continue", "stop", True),
        ("stop", "continue", False),
    ],
)
def test_a_steps_own_word_on_failure_wins_over_the_chains(
    on_step_error: str, on_error: str | None, stops: bool
) -> None:
    failed = {"name": "b", "prompt": "Two."} | ({"on_error": on_error} if on_error else {})
    steps = [{}, failed, {"prompt": "Three."}, {"prompt": "Four."}]
    run = Run(World(but(failing(400), 2)), steps, on_step_error=on_step_error)
    assert len(run.bodies) == (2 if stops else 4)
    assert run.error_types == ["", "bad_request", *(["skipped"] * 2 if stops else ["", ""])]
    assert run.chain.status == "partial"
    assert len(run.chain.failed) == 1, "a step that was not asked has not failed"
    if stops:
        assert "'b'" in run.rows[3]["error"]
        assert run.chain.rest_of_text(run.text) == run.chain.final == "answer 1"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadRequest), (401, AuthError), (429, RateLimited), (500, ServerError)],
)
def test_no_answer_at_all_is_the_first_steps_failure_told_as_the_chains(
    status: int, kind: type[HolySheepError]
) -> None:
    run = Run(
        World(but(failing(status), 1, good=failing(422))),
        [{"name": "draft"}, {"prompt": "x"}],
        options="max_retries: 0",
    )
    assert run.chain.status == "error"
    with pytest.raises(kind, match=r"No step was answered \(2 of 2 failed\)\. Step 'draft': "):
        run.chain.raise_if_nothing_was_answered()


def test_a_chain_that_stops_at_its_first_step_has_no_answer() -> None:
    run = Run(World(failing(400)), [{}, {"prompt": "x"}], on_step_error="stop")
    assert len(run.bodies) == 1
    with pytest.raises(BadRequest, match=r"1 of 2 failed"):
        run.chain.raise_if_nothing_was_answered()


def test_a_chain_with_an_answer_raises_nothing() -> None:
    Run(World(but(failing(400), 1)), [{}, {"prompt": "x"}]).chain.raise_if_nothing_was_answered()


def test_a_prompt_that_comes_out_empty_fails_its_step_alone() -> None:
    steps = [{}, {"prompt": "{{ query if false }}", "context": "none"}, {"prompt": "go"}]
    run = Run(World(numbered()), steps)
    assert run.error_types == ["", "invalid_input", ""]
    assert len(run.bodies) == 2


# --- one deadline -------------------------------------------------------------------------------


def test_one_deadline_ends_all_steps() -> None:
    run = Run(
        World(numbered(4.0)), [{}, {"prompt": "x"}, {"prompt": "y"}, {"prompt": "z"}], timeout_s=10
    )
    assert run.error_types == ["", "", "timeout", "timeout"]
    assert len(run.bodies) == 3, "nothing is sent after the deadline"
    assert run.world.time.monotonic() == pytest.approx(START_S + 10, abs=0.01)
    assert run.chain.elapsed_s == pytest.approx(10, abs=0.01)


def test_the_deadline_counts_from_the_call_of_the_node() -> None:
    world = World(numbered(4.0))
    params = parsed(
        ChainParams, {"query": "q", "steps": [{}, {"prompt": "x"}], "model": "m", "timeout_s": 10}
    )
    chain = Chain(world.engine, params, clock=world.time, started_s=START_S - 5)
    assert [delta.text for delta in chain] == []
    assert chain.elapsed_s == pytest.approx(10, abs=0.01)
    assert [step.result is None for step in chain.results] == [False, True]


def test_the_deadline_covers_retries_too() -> None:
    run = Run(World(failing(503, retry_after="4")), [{}, {"prompt": "x"}], timeout_s=10)
    assert run.world.time.monotonic() <= START_S + 10
    with pytest.raises(ServerError):
        run.chain.raise_if_nothing_was_answered()


def test_a_first_step_that_takes_all_the_time_is_told_as_such() -> None:
    run = Run(World(numbered(99.0)), [{}, {"prompt": "x"}], timeout_s=10)
    with pytest.raises((TimedOut, DeadlineExceeded), match="deadline"):
        run.chain.raise_if_nothing_was_answered()


# --- the last step streams ----------------------------------------------------------------------


def word_by_word(*broken: int, after: int = 2) -> Respond:
    """A gateway that streams three words where asked to; these requests break off."""

    def respond(body: dict[str, Any], number: int) -> Any:
        if not body.get("stream"):
            return numbered()(body, number)
        latency_s, status, headers, parts = streamed_answer(body, "one ", "two ", "three")
        if number + 1 in broken:
            parts = [*parts[: 2 * after], httpx.ReadError("reset")]
        return latency_s, status, headers, parts

    return respond


def test_only_the_last_step_is_streamed() -> None:
    run = Run(World(word_by_word()), [{}, {"prompt": "x"}, {"prompt": "y"}])
    assert [bool(body.get("stream")) for body in run.bodies] == [False, False, True]
    assert run.text == run.chain.final == "one two three"


def test_pieces_of_the_last_step_come_as_they_arrive() -> None:
    run = Run(World(word_by_word()), [{}, {"prompt": "x"}])
    assert run.pieces[:3] == ["one ", "two ", "three"]
    assert run.arrived_s[:3] == [2.0, 3.0, 4.0]


def test_a_last_step_that_breaks_off_is_told_with_the_last_complete_answer() -> None:
    run = Run(World(word_by_word(2)), [{}, {"prompt": "x"}])
    assert run.text == "one two "
    assert run.error_types == ["", "connection_failed"]
    assert len(run.bodies) == 2, "what was seen cannot be tried again"
    rest = run.chain.rest_of_text(run.text)
    assert rest.endswith("\n\nanswer 1")
    assert run.rows[1]["error"] in rest
    assert (run.chain.status, run.chain.final) == ("partial", "answer 1")


def test_a_last_step_that_breaks_before_its_first_word_is_tried_again() -> None:
    run = Run(World(word_by_word(2, after=0)), [{}, {"prompt": "x"}])
    assert len(run.bodies) == 3
    assert (run.text, run.chain.status) == ("one two three", "ok")


def test_an_earlier_step_that_breaks_off_is_tried_again_as_nobody_saw_it() -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        latency_s, status, headers, parts = streamed_answer(body, "one ", "two ", "three")
        return (
            latency_s,
            status,
            headers,
            (parts if number else [*parts[:4], httpx.ReadError("reset")]),
        )

    run = Run(World(respond), [{}, {"prompt": "x"}])
    assert len(run.bodies) == 3
    assert run.said[2][1] == model("one two three")
    assert run.chain.status == "ok"


def test_a_single_step_that_breaks_off_is_a_failure_of_the_chain() -> None:
    run = Run(World(word_by_word(1)), [{}])
    assert run.text == "one two "
    with pytest.raises(HolySheepError, match="No step was answered"):
        run.chain.raise_if_nothing_was_answered()


def test_a_last_step_that_is_cut_off_by_the_deadline_keeps_what_came() -> None:
    run = Run(World(word_by_word()), [{}, {"prompt": "x"}], timeout_s=3.5)
    assert run.text == "one two "
    assert run.error_types == ["", "timeout"]
    assert run.chain.rest_of_text(run.text).endswith("answer 1")


def test_who_leaves_in_the_middle_of_the_last_step_frees_its_connection() -> None:
    world = World(word_by_word())
    params = parsed(ChainParams, {"query": "q", "steps": [{}, {"prompt": "x"}], "model": "m"})
    pieces = iter(Chain(world.engine, params, clock=world.time))
    next(pieces)
    assert world.gateway.in_use == 1
    pieces.close()  # type: ignore[attr-defined]
    assert (world.gateway.in_use, world.state.slots.held) == (0, 0)


# --- figures ------------------------------------------------------------------------------------


def test_figures_are_the_sums_of_the_answered_steps() -> None:
    run = Run(
        World(but(failing(400), 2), price_overrides=PRICES),
        [{"name": "a"}, {"prompt": "x"}, {"name": "c", "prompt": "y"}],
    )
    assert run.chain.tokens_used == 30
    assert run.chain.cost_usd == Decimal("0.00003")
    assert run.rows[0] == {
        "name": "a",
        "output": "answer 1",
        "latency_ms": 1000.0,
        "model": "gpt-4.1",
        "tokens_used": 15,
        "cost_usd": 0.000015,
        "cached": False,
    }
    assert run.rows[2]["latency_ms"] == 1000.0, "each has its own"
    assert json.loads(json.dumps(run.rows)) == run.rows
    assert run.chain.elapsed_s == 2.5


def test_the_cost_is_unknown_where_one_step_has_no_price() -> None:
    steps = [{}, {"prompt": "x", "model": "model-without-a-price"}]
    run = Run(World(numbered(), price_overrides=PRICES), steps)
    assert run.chain.cost_usd is None
    assert [row["cost_usd"] for row in run.rows] == [0.000015, None]


# --- bad input ----------------------------------------------------------------------------------

BAD_STEPS: dict[str, tuple[Any, str]] = {
    "no_list": ({"name": "a"}, "steps must be a list of steps"),
    "a_word": ("draft, critique", "steps must be a list of steps"),
    "a_number": (7, "steps must be a list of steps"),
    "empty_list": ([], "got 0"),
    "empty_json": ("[]", "got 0"),
    "list_of_words": (["draft", "critique"], "steps must be a list of steps"),
    "mixed": ([{"name": "a"}, "b"], "steps must be a list of steps"),
    "broken_text": ("- name: a\n  prompt: [", "steps is neither valid YAML nor JSON (line"),
    "too_many": ([{"prompt": "x"}] * 51, "got 51"),
    "unknown_key": ([{}, {"prompt": "x", "promt": "y"}], "steps 1 has no key 'promt'"),
    "known_keys_told": ([{"contxt": "none"}], "name, prompt, system, model, temperature"),
    "temperature": ([{"temperature": 2.5}], "steps 0: temperature must be a number from 0 to 2"),
    "temperature_told": ([{"temperature": 2.5}], "2.5"),
    "temperature_word": ([{"temperature": "hot"}], "temperature must be a number from 0 to 2"),
    "max_tokens_zero": ([{"max_tokens": 0}], "max_tokens must be a whole number from 1 to"),
    "max_tokens_half": ([{"max_tokens": 1.5}], "max_tokens must be a whole number from 1 to"),
    "max_tokens_true": ([{"max_tokens": True}], "max_tokens must be a whole number from 1 to"),
    "context": ([{"context": "all"}], "context must be one of accumulate, previous, none"),
    "on_error": ([{"on_error": "ignore"}], "on_error must be one of continue, stop"),
    "name_no_text": ([{"name": ["a"]}], "steps 0: name must be a text"),
    "long_name": ([{"name": "n" * 61}], "steps 0: name"),
    "duplicate": ([{"name": "a"}, {"name": "a", "prompt": "x"}], "'a' is given twice"),
    "duplicate_by_spaces": ([{"name": "a"}, {"name": " a ", "prompt": "x"}], "given twice"),
    "duplicate_by_place": ([{"name": "step_1"}, {"prompt": "x"}], "'step_1' is given twice"),
    "no_prompt": ([{}, {"name": "b"}], "steps 1: a step with context accumulate needs a prompt"),
    "no_prompt_none": ([{}, {"prompt": " ", "context": "none"}], "context none needs a prompt"),
    "syntax": ([{}, {"prompt": "a\n{{ previous"}], "steps 1: prompt is no usable template in line"),
    "unknown_tag": ([{"prompt": "{% include 'x' %}"}], "steps 0: prompt is no usable template"),
    "unknown_filter": ([{"prompt": "{{ query | shell }}"}], "shell"),
    "attribute": ([{"prompt": "{{ query.__class__ }}"}], "__class__"),
    "unknown_name": ([{"prompt": "{{ topic }}"}], "steps 0: prompt uses topic; there are query"),
    "unknown_step": (
        [{"name": "a"}, {"prompt": "{{ steps.b }}"}],
        "uses steps.b, which is no earlier step. Earlier steps: a.",
    ),
    "own_name": ([{"name": "a", "prompt": "{{ steps.a }}"}], "Earlier steps: none."),
    "later_step": (
        [{"name": "a", "prompt": "{{ steps.b }}"}, {"name": "b", "prompt": "x"}],
        "steps 0: prompt uses steps.b, which is no earlier step",
    ),
    "later_by_key": (
        [{"name": "a", "prompt": "{{ steps['b'] }}"}, {"name": "b", "prompt": "x"}],
        "uses steps.b, which is no earlier step",
    ),
}


@pytest.mark.parametrize(("steps", "words"), BAD_STEPS.values(), ids=BAD_STEPS)
def test_steps_that_cannot_be_asked_are_refused_before_anything_is_sent(
    steps: Any, words: str
) -> None:
    message = refused(steps)
    assert words in message
    assert "\n" not in message
    assert "steps" in message


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"query": " \n"}, "query"),
        ({"timeout_s": 0.5}, "timeout_s must be a number from 1 to 580, got 0.5"),
        ({"timeout_s": 581}, "timeout_s must be a number from 1 to 580, got 581"),
        ({"temperature": -1}, "temperature must be a number from 0 to 2, got -1"),
        ({"max_tokens": 1_000_001}, "max_tokens must be a whole number from 1 to"),
        ({"on_step_error": "fail"}, "on_step_error must be one of continue, stop, got 'fail'"),
        ({"cache": "yes"}, "cache must be one of use, refresh, bypass"),
        ({"options": "max_retries: 11"}, "max_retries must be a whole number from 0 to 10"),
        ({"options": "retries: 1"}, "max_retries"),
        ({"options": "response_format: json_object"}, "options has no key 'response_format'"),
        ({"query": "x" * 1_000_000, "system_prompt": "y"}, "at most 1,000,000 are allowed"),
        ({"steps": [{"prompt": "x" * 999_995}]}, "at most 1,000,000 are allowed"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_out_of_range_are_refused_with_their_name_value_and_range(
    params: dict[str, Any], words: str
) -> None:
    assert words in refused(**{"steps": [{}], **params})


# --- interleavings ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_chains_side_by_side_do_not_mix(seed: int) -> None:
    chance = random.Random(seed)

    def respond(body: dict[str, Any], number: int) -> Any:
        if chance.random() < 0.2:
            return failing(500, chance.uniform(0, 2))(body, number)
        text = f"re: {body['messages'][-1]['content']}"
        return good_answer(body, text, latency_s=chance.uniform(0, 2))

    world = World(respond, seed=seed, max_concurrency="3", requests_per_minute="120")

    def chain_of(number: int) -> Callable[[], Chain]:
        steps = [{}, {"prompt": f"b{number}"}, {"prompt": "{{ previous }}", "context": "previous"}]
        params = parsed(ChainParams, {"query": f"q{number}", "steps": steps, "model": "gpt-4.1"})
        chain = Chain(world.engine, params, clock=world.time)

        def run() -> Chain:
            for _ in chain:
                pass
            return chain

        return run

    for number in range(8):
        world.time.spawn(chain_of(number))
    for number, chain in enumerate(world.time.run()):
        assert len(chain.results) == 3
        for result in chain.answered:
            assert set(result.text) & set("0123456789") <= {str(number)}
    assert world.gateway.max_in_use <= 3
    assert world.gateway.in_use == world.state.slots.held == 0


# --- what is left empty -------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [None, "", "  "], ids=repr)
@pytest.mark.parametrize(
    "field",
    ["prompt", "system", "model", "temperature", "max_tokens", "context", "name", "on_error"],
)
def test_a_field_that_is_left_empty_is_not_set(field: str, empty: str | None) -> None:
    plain, left_empty = Run(World(), [{}]), Run(World(), [{field: empty}])
    assert left_empty.bodies == plain.bodies
    assert left_empty.rows == plain.rows


def test_the_model_of_a_step_has_no_space_round_it() -> None:
    assert Run(World(), [{"model": " gpt-x "}]).bodies[0]["model"] == "gpt-x"


@pytest.mark.parametrize("prompt", ["one\ntwo", 'It\'s "x"\n', "back\\slash"])
def test_a_constant_list_arrives_as_python_spells_it(prompt: str) -> None:
    steps = [{"prompt": prompt}]
    assert Run(World(), [repr(steps)]).bodies == Run(World(), steps).bodies


def test_steps_as_json_may_be_long() -> None:
    steps = [{"prompt": "x" * 100_000}]
    assert Run(World(), json.dumps(steps)).bodies == Run(World(), steps).bodies


@pytest.mark.parametrize("text", ["[" * 20_000, "{" * 20_000, "[" * 5_000])
def test_steps_that_are_nested_without_end_are_refused_at_once(text: str) -> None:
    began_s = time.perf_counter()
    with pytest.raises(InputError, match="nested too deeply"):
        Run(World(), text)
    assert time.perf_counter() - began_s < 0.2


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ({"prompt": float("nan")}, "steps 0: prompt must be a text, got nan."),
        ({"model": "m" * 300}, "steps 0: model must be a model id of at most 200 printable"),
    ],
)
def test_a_refusal_names_the_step(step: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as raised:
        Run(World(), [step])
    assert raised.value.message.startswith(sentence)
