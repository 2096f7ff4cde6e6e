"""The chain node: what it sends, what it puts out, and what becomes of it when steps fail."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from devtools.upstream import behaviours as do
from tests.nodes.support import (
    BAD_REQUEST,
    CONNECTION,
    FAILURES,
    NO_RETRIES,
    NUMBER,
    RATE_LIMIT,
    UNAVAILABLE,
    USAGE,
    Kind,
    Node,
    check_messages,
    check_sentence,
    check_value,
    fresh_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from devtools.upstream import Upstream
    from tests.host.daemon import PluginProcess, Result

STRINGS = {"final", "status"}
VALUES: dict[str, Kind] = {
    "results": dict,
    "steps_ok": int,
    "steps_failed": int,
    "tokens_used": int,
    "cost_usd": NUMBER,
    "latency_ms": NUMBER,
}
ANSWERED: dict[str, Kind] = {
    "name": str,
    "output": str,
    "latency_ms": NUMBER,
    "model": str,
    "tokens_used": int,
    "cost_usd": NUMBER,
    "cached": bool,
}
QUERY = "Why is the sky blue?"
TWO = [{"name": "draft"}, {"name": "short", "prompt": "Shorter, please."}]


class ChainNode(Node):
    tool = "holysheep_chain"

    def check(self, result: Result) -> None:
        shown = set(VALUES) - {"results"}
        check_messages(result, strings=STRINGS, values=VALUES, shown=shown)
        values = result.variables
        results = values["results"]
        assert list(results) == [f"step_{number}" for number in range(len(results))]
        good = [row for row in results.values() if "output" in row]
        for row in results.values():
            if row in good:
                assert set(row) == set(ANSWERED)
                for name, kind in ANSWERED.items():
                    check_value(name, row[name], kind)
                assert not row["cached"] or row["cost_usd"] == 0
            else:
                assert set(row) == {"name", "error", "error_type"}
                assert row["error_type"]
                check_sentence(row["error"])
        assert good, "with no answer the node fails"
        skipped = [row for row in results.values() if row.get("error_type") == "skipped"]
        assert values["steps_ok"] == len(good)
        assert values["steps_failed"] == len(results) - len(good) - len(skipped)
        assert values["status"] == ("ok" if len(good) == len(results) else "partial")
        assert values["final"] == good[-1]["output"]
        assert values["tokens_used"] == sum(row["tokens_used"] for row in good)
        costs = [row["cost_usd"] for row in good]
        assert values["cost_usd"] == (None if None in costs else pytest.approx(sum(costs)))
        assert values["latency_ms"] <= result.elapsed_ms
        if "output" in results[f"step_{len(results) - 1}"]:
            assert result.text == values["final"]
        else:
            assert result.text.endswith(values["final"])

    def chain(self, steps: Any = TWO, query: Any = QUERY, **parameters: Any) -> Result:
        return self.run(query=query, steps=steps, **parameters)

    def said(self) -> list[list[tuple[str, str]]]:
        """Role and content of the messages of each request."""
        return [[(m["role"], m["content"]) for m in body["messages"]] for body in self.bodies]


@pytest.fixture
def node(plugin: PluginProcess, upstream: Upstream) -> ChainNode:
    return ChainNode(plugin, upstream)


def user(text: str) -> tuple[str, str]:
    return ("user", text)


def model(text: str) -> tuple[str, str]:
    return ("assistant", text)


def each_with_a_model(*prompts: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Steps of which each asks a model of its own, so that one of them can be made to fail."""
    models = [fresh_model() for _ in prompts]
    steps = [
        {"name": f"s{number}", "prompt": prompt, "model": name}
        for number, (prompt, name) in enumerate(zip(prompts, models, strict=True))
    ]
    return models, steps


# --- every output on every path -----------------------------------------------------------------


def all_answered(node: ChainNode) -> Result:
    return node.chain()


def one_step(node: ChainNode) -> Result:
    return node.chain([{}])


def many_steps(node: ChainNode) -> Result:
    return node.chain([{"prompt": f"Step {number}.", "context": "none"} for number in range(12)])


def from_the_cache(node: ChainNode) -> Result:
    node.chain()
    return node.chain()


def first_failed(node: ChainNode) -> Result:
    node.upstream.script(do.status(400))
    return node.chain()


def last_failed(node: ChainNode) -> Result:
    node.upstream.script(do.ok("Yes."), do.status(400))
    return node.chain()


def stopped(node: ChainNode) -> Result:
    node.upstream.script(do.ok("Yes."), do.status(400))
    return node.chain([*TWO, {"prompt": "x"}], on_step_error="stop")


def broke_off(node: ChainNode) -> Result:
    node.upstream.script(do.ok("Yes."), do.reset("chunks", chunks=2, text="one two three four"))
    return node.chain()


def unpriced(node: ChainNode) -> Result:
    return node.chain([{"model": "gpt-4.1"}, {"prompt": "x"}])


PATHS: dict[str, tuple[Callable[[ChainNode], Result], str, int, int]] = {
    "all_answered": (all_answered, "ok", 2, 0),
    "one_step": (one_step, "ok", 1, 0),
    "many_steps": (many_steps, "ok", 12, 0),
    "from_the_cache": (from_the_cache, "ok", 2, 0),
    "first_failed": (first_failed, "partial", 1, 1),
    "last_failed": (last_failed, "partial", 1, 1),
    "stopped": (stopped, "partial", 1, 1),
    "broke_off": (broke_off, "partial", 1, 1),
    "unpriced": (unpriced, "ok", 2, 0),
}


@pytest.mark.parametrize(("path", "status", "good", "bad"), PATHS.values(), ids=PATHS)
def test_every_output_comes_once_in_its_type_and_order(
    node: ChainNode, path: Callable[[ChainNode], Result], status: str, good: int, bad: int
) -> None:
    values = path(node).variables
    assert (values["status"], values["steps_ok"], values["steps_failed"]) == (status, good, bad)


def test_results_tell_of_each_step(node: ChainNode) -> None:
    node.upstream.script(do.ok("Long.", usage=USAGE), do.ok("Short.", usage=USAGE))
    values = node.chain(custom_model="gpt-4.1").variables
    first, second = values["results"]["step_0"], values["results"]["step_1"]
    assert first.pop("latency_ms") > 0
    assert first == {
        "name": "draft",
        "output": "Long.",
        "model": "gpt-4.1",
        "tokens_used": 1200,
        "cost_usd": pytest.approx(0.0036),
        "cached": False,
    }
    assert (second["name"], second["output"]) == ("short", "Short.")
    assert values["tokens_used"] == 2400
    assert values["cost_usd"] == pytest.approx(0.0072)


def test_a_figure_that_nobody_knows_is_shown_as_such(node: ChainNode) -> None:
    result = unpriced(node)
    assert result.variables["cost_usd"] is None
    assert result.streamed["cost_usd"] == "unknown"
    assert result.variables["results"]["step_0"]["cost_usd"] > 0


def test_the_latency_is_that_of_the_whole_chain(node: ChainNode) -> None:
    node.upstream.default(do.ok(latency_ms=40))
    values = node.chain().variables
    latencies = [row["latency_ms"] for row in values["results"].values()]
    assert all(40 <= latency_ms <= values["latency_ms"] - 40 for latency_ms in latencies)
    assert values["latency_ms"] >= sum(latencies) - 1


def test_a_long_last_answer_comes_whole(node: ChainNode) -> None:
    text = "0123456789abcdef" * 40_000
    node.upstream.script(do.ok("Yes."), do.ok(text, chunk_chars=100_000))
    assert node.chain().variables["final"] == text


# --- the last step streams ----------------------------------------------------------------------


def test_first_piece_of_the_last_step_arrives_before_its_last_byte(node: ChainNode) -> None:
    node.upstream.script(
        do.ok("Not shown."), do.stall("after_chunks", 0.3, chunks=1, text="one two three")
    )
    invocation = node.start(query=QUERY, steps=TWO)
    first = next(iter(invocation))
    assert node.upstream.stats().in_flight == 1
    assert not invocation.done
    assert first.data["type"] == "text"
    assert first.data["message"]["text"].strip() == "one"
    assert node.finish(invocation).text == "one two three"


def test_earlier_steps_are_not_shown(node: ChainNode) -> None:
    node.upstream.script(do.ok("First."), do.ok("Second."), do.ok("Third."))
    assert node.chain([{}, {"prompt": "x"}, {"prompt": "y"}]).text == "Third."
    assert [bool(body.get("stream")) for body in node.bodies] == [False, False, True]


def test_an_answer_that_breaks_off_is_followed_by_the_last_complete_one(node: ChainNode) -> None:
    result = broke_off(node)
    assert result.text.startswith("one two")
    assert "three" not in result.text
    assert result.text.endswith("\n\nYes.")
    assert result.variables["final"] == "Yes."
    assert result.variables["results"]["step_1"]["error_type"] == "connection_failed"
    assert result.variables["results"]["step_1"]["error"] in result.text
    assert node.calls == 2, "what was seen cannot be tried again"


# --- what is sent -------------------------------------------------------------------------------


def test_each_context_sends_what_the_contract_says(node: ChainNode) -> None:
    node.upstream.script(*(do.ok(f"A{number}.") for number in range(4)))
    node.chain(
        [
            {"prompt": "Be brief."},
            {"prompt": "On."},
            {"prompt": "Last.", "context": "previous"},
            {"prompt": "Alone.", "context": "none"},
        ],
        system_prompt="Be kind.",
    )
    system = ("system", "Be kind.")
    first = f"{QUERY}\n\nBe brief."
    assert node.said() == [
        [system, user(first)],
        [system, user(first), model("A0."), user("On.")],
        [system, user("A1.\n\nLast.")],
        [system, user("Alone.")],
    ]


def test_prompts_may_use_the_query_the_last_answer_and_steps_by_name(node: ChainNode) -> None:
    node.upstream.script(do.ok("A0."), do.ok("A1."))
    node.chain(
        [*TWO, {"prompt": "{{ query }}|{{ previous }}|{{ steps.draft }}", "context": "none"}]
    )
    assert node.said()[2] == [user(f"{QUERY}|A1.|A0.")]


def test_a_steps_own_settings_reach_the_gateway(node: ChainNode) -> None:
    own = {
        "prompt": "x",
        "model": fresh_model(),
        "temperature": 0.1,
        "max_tokens": 9,
        "system": "Critic.",
    }
    node.chain([{}, own, {"prompt": "y"}], temperature=1.2, max_tokens=77)
    first, second, third = node.bodies
    assert (first["model"], first["temperature"], first["max_tokens"]) == (node.model, 1.2, 77)
    assert (second["model"], second["temperature"], second["max_tokens"]) == (own["model"], 0.1, 9)
    assert second["messages"][0] == {"role": "system", "content": "Critic."}
    assert (third["model"], third["temperature"], third["max_tokens"]) == (node.model, 1.2, 77)
    assert third["messages"][0]["role"] == "user"


FORMS: dict[str, Any] = {
    "array": TWO,
    "json": json.dumps(TWO),
    "yaml": "- name: draft\n- name: short\n  prompt: Shorter, please.\n",
    "flow_yaml": "[{name: draft}, {name: short, prompt: 'Shorter, please.'}]",
    "text_of_the_host": [json.dumps(TWO)],
    "yaml_of_the_host": ["- name: draft\n- name: short\n  prompt: Shorter, please.\n"],
    "constant_of_the_host": [repr(TWO)],
}


@pytest.mark.parametrize("steps", FORMS.values(), ids=FORMS)
def test_steps_are_taken_in_every_form(node: ChainNode, steps: Any) -> None:
    rows = node.chain(steps).variables["results"]
    assert [row["name"] for row in rows.values()] == ["draft", "short"]
    assert node.said()[1][-1] == user("Shorter, please.")


# --- settings -----------------------------------------------------------------------------------


def test_without_settings_the_defaults_hold(node: ChainNode) -> None:
    node.chain([{}])
    (body,) = node.bodies
    assert (body["model"], body["temperature"], body["max_tokens"]) == (node.model, 0.7, 2048)


@pytest.mark.parametrize("unset", ["", None])
def test_what_is_left_empty_is_not_set(node: ChainNode, unset: str | None) -> None:
    names = (
        *("system_prompt", "model", "custom_model", "temperature", "max_tokens", "cache"),
        *("fallback_models", "timeout_s", "on_step_error", "options"),
    )
    node.chain([{}], **dict.fromkeys(names, unset))
    (body,) = node.bodies
    assert (body["model"], body["temperature"], body["max_tokens"]) == (node.model, 0.7, 2048)
    assert [message["role"] for message in body["messages"]] == ["user"]


def test_custom_model_wins_over_model(node: ChainNode) -> None:
    node.chain([{}], model="gpt-4.1")
    node.chain([{}], model="gpt-4.1", custom_model="my-own")
    assert [body["model"] for body in node.bodies] == ["gpt-4.1", "my-own"]


def test_numbers_are_taken_as_text(node: ChainNode) -> None:
    node.chain([{"max_tokens": "12"}], temperature="0.3", timeout_s="20")
    assert (node.bodies[0]["temperature"], node.bodies[0]["max_tokens"]) == (0.3, 12)


def test_options_reach_every_step(node: ChainNode) -> None:
    options = "top_p: 0.5\nseed: 7\nstop: END\nreasoning_effort: low\nextra_body: {user: u1}"
    node.chain(TWO, options=options)
    for body in node.bodies:
        assert (body["top_p"], body["seed"], body["stop"]) == (0.5, 7, ["END"])
        assert (body["reasoning_effort"], body["user"]) == ("low", "u1")


def test_a_chain_is_answered_from_the_cache(node: ChainNode) -> None:
    first = node.chain(custom_model="gpt-4.1")
    again = node.chain(custom_model="gpt-4.1")
    assert node.calls == 2
    assert again.text == first.text
    assert again.variables["cost_usd"] == 0
    assert again.variables["tokens_used"] == first.variables["tokens_used"]
    assert all(row["cached"] for row in again.variables["results"].values())


@pytest.mark.parametrize(("second", "calls"), [("use", 2), ("refresh", 4), ("bypass", 4)])
def test_cache_says_whether_answers_are_read(node: ChainNode, second: str, calls: int) -> None:
    node.chain(TWO)
    node.chain(TWO, cache=second)
    assert node.calls == calls


def test_answers_are_kept_apart_where_the_scope_says_so(node: ChainNode) -> None:
    for user_id in ("a", "b", "a"):
        options = {"cache_scope": "user"}
        node.finish(node.start(query=QUERY, steps=TWO, user_id=user_id, options=options))
    assert node.calls == 4


def test_a_step_that_fails_is_answered_by_the_fallback(node: ChainNode) -> None:
    (first, bad), steps = each_with_a_model("Go.", "On.")
    spare = fresh_model()
    node.upstream.default(do.server_error(), model=bad)
    values = node.chain(steps, fallback_models=spare, options=NO_RETRIES).variables
    assert [row["model"] for row in values["results"].values()] == [first, spare]
    assert [body["model"] for body in node.bodies] == [first, bad, spare]


@pytest.mark.parametrize(("retries", "calls"), [(0, 1), (2, 3)])
def test_a_step_is_retried_as_often_as_asked_for(node: ChainNode, retries: int, calls: int) -> None:
    node.upstream.default(do.rate_limited(retry_after_ms=1))
    error = node.failure(query=QUERY, steps=[{}], options={"max_retries": retries})
    assert error.type == RATE_LIMIT
    assert node.calls == calls


# --- faults in the middle -----------------------------------------------------------------------

FAULTS: dict[str, tuple[do.Behaviour, str]] = {
    "500": (do.server_error(), "server_error"),
    "429": (do.rate_limited(retry_after_ms=1), "rate_limited"),
    "400": (do.status(400), "bad_request"),
    "402": (do.quota_exhausted(), "quota_exhausted"),
    "404": (do.unknown_model(), "bad_request"),
    "reset": (do.reset(), "connection_failed"),
    "cut_in_body": (do.reset("chunks", text="one two three"), "connection_failed"),
    "no_json": (do.malformed("not_json"), "bad_response"),
    "web_page": (do.malformed("html"), "bad_response"),
}


@pytest.mark.parametrize("context", ["accumulate", "previous", "none"])
@pytest.mark.parametrize(("fault", "kind"), FAULTS.values(), ids=FAULTS)
def test_a_fault_in_the_middle_costs_its_step_alone(
    node: ChainNode, fault: do.Behaviour, kind: str, context: str
) -> None:
    (first, bad, last), steps = each_with_a_model("Go.", "On.", "End.")
    steps[2]["context"] = context
    node.upstream.default(fault, model=bad)
    node.upstream.default(do.ok("A0."), model=first)
    node.upstream.default(do.ok("A2."), model=last)
    result = node.chain(steps, options=NO_RETRIES)
    assert result.text == "A2."
    assert result.variables["results"]["step_1"]["error_type"] == kind
    go = user(f"{QUERY}\n\nGo.")
    # One that breaks a connection in use is asked again over a new one.
    assert node.bodies[-1]["model"] == last
    assert (
        node.said()[-1]
        == {
            "accumulate": [go, model("A0."), user("End.")],
            "previous": [user("A0.\n\nEnd.")],
            "none": [user("End.")],
        }[context]
    )


def test_faults_that_pass_are_waited_out(node: ChainNode) -> None:
    node.upstream.script(
        do.ok("A0."),
        do.rate_limited(retry_after_ms=5),
        do.status(503, headers={"retry-after-ms": "5"}),
        do.ok("A1."),
    )
    assert node.chain().variables["status"] == "ok"
    assert node.calls == 4


def test_a_stall_uses_up_the_one_time_of_all_steps(node: ChainNode) -> None:
    (_, bad, last), steps = each_with_a_model("Go.", "On.", "End.")
    node.upstream.default(do.stall("headers", 30), model=bad)
    result = node.chain(steps, timeout_s=1)
    rows = list(result.variables["results"].values())
    assert [row.get("error_type") for row in rows] == [None, "timeout", "timeout"]
    assert result.text == rows[0]["output"]
    assert 950 <= result.elapsed_ms <= 1800
    assert last not in node.upstream.stats().calls_by_model, "nothing is sent after the deadline"


def test_a_stall_in_the_last_answer_keeps_what_came(node: ChainNode) -> None:
    stall = do.stall("after_chunks", 30, chunks=2, text="one two three")
    node.upstream.script(do.ok("Yes."), stall)
    result = node.chain(timeout_s=1)
    assert result.text.startswith("one two")
    assert result.text.endswith("Yes.")
    assert result.variables["results"]["step_1"]["error_type"] == "timeout"
    assert result.elapsed_ms <= 1800


@pytest.mark.parametrize(
    ("on_step_error", "own", "asked"),
    [("continue", None, 3), ("stop", None, 2), ("continue", "stop", 2), ("stop", "continue", 3)],
)
def test_a_failed_step_stops_the_chain_where_asked_to(
    node: ChainNode, on_step_error: str, own: str | None, asked: int
) -> None:
    node.upstream.script(do.ok("A0."), do.status(400))
    steps = [{}, {"name": "bad", "prompt": "x", "on_error": own or on_step_error}, {"prompt": "y"}]
    if own is None:
        del steps[1]["on_error"]
    values = node.chain(steps, on_step_error=on_step_error).variables
    assert node.calls == asked
    last = values["results"]["step_2"]
    assert ("output" in last) == (asked == 3)
    if asked == 2:
        assert last["error_type"] == "skipped"
        assert "bad" in last["error"]
        assert values["final"] == "A0."


# --- no step is answered ------------------------------------------------------------------------

CLASSES = {**FAILURES, "529": (do.overloaded(), UNAVAILABLE)}


@pytest.mark.parametrize(("fault", "kind"), CLASSES.values(), ids=CLASSES)
def test_the_node_fails_as_the_first_step_did(
    node: ChainNode, fault: do.Behaviour, kind: str
) -> None:
    (first, second), steps = each_with_a_model("Go.", "On.")
    node.upstream.default(fault, model=first)
    node.upstream.default(do.status(422 if kind != BAD_REQUEST else 500), model=second)
    error = node.failure(query=QUERY, steps=steps, options=NO_RETRIES)
    assert error.type == kind
    assert "No step was answered" in error.message
    assert "'s0'" in error.message


def test_a_limit_that_resets_too_late_is_told_without_waiting(node: ChainNode) -> None:
    node.upstream.default(do.rate_limited(3600))
    error = node.failure(query=QUERY, steps=TWO)
    assert error.type == BAD_REQUEST
    assert "3600 s" in error.message
    assert node.calls == 1


def test_a_chain_out_of_time_fails_as_a_connection_does(node: ChainNode) -> None:
    node.upstream.default(do.stall("headers", 30))
    error = node.failure(query=QUERY, steps=TWO, timeout_s=1)
    assert error.type == CONNECTION
    assert "timeout_s" in error.message


def test_a_single_step_that_breaks_off_fails_the_node(node: ChainNode) -> None:
    node.upstream.default(do.reset("chunks", chunks=2, text="one two three four"))
    assert node.failure(query=QUERY, steps=[{}]).type == CONNECTION


def test_a_key_that_the_gateway_repeats_is_not_told(node: ChainNode) -> None:
    node.upstream.default(do.status(400, message=f"Key {node.key} is odd"))
    node.failure(query=QUERY, steps=TWO)
    node.upstream.script(do.ok("Yes."))
    node.chain([*TWO, {"prompt": "x"}])


# --- bad input ----------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no_query": ({"query": None}, "query"),
    "empty_query": ({"query": ""}, "query"),
    "blank_query": ({"query": " \n\t\u3000"}, "query"),
    "no_steps": ({"steps": None}, "steps"),
    "empty_text": ({"steps": ""}, "steps"),
    "empty_list": ({"steps": []}, "got 0"),
    "text_no_list": ({"steps": ["write a draft"]}, "steps must be a list of steps"),
    "mapping": ({"steps": {"name": "a"}}, "steps must be a list of steps"),
    "list_of_lists": ({"steps": [[{"name": "a"}]]}, "steps must be a list of steps"),
    "number": ({"steps": 5}, "steps must be a list of steps"),
    "broken": ({"steps": ['[{"name": "a"']}, "neither valid YAML nor JSON"),
    "aliases": ({"steps": "- &a {name: x}\n- *a\n"}, "neither valid YAML nor JSON"),
    "python_tag": ({"steps": "- !!python/object/apply:os.system [ls]"}, "neither valid YAML"),
    "deep": ({"steps": "[" * 5000}, "steps"),
    "too_many": ({"steps": [{"prompt": "x"}] * 51}, "got 51"),
    "unknown_key": ({"steps": [{"promt": "x"}]}, "steps 0 has no key 'promt'. Known keys: name"),
    "syntax": (
        {"steps": [{"prompt": "{{ query"}]},
        "steps 0: prompt is no usable template in line",
    ),
    "attribute": ({"steps": [{"prompt": "{{ query.__class__ }}"}]}, "__class__"),
    "import": ({"steps": [{"prompt": "{% import 'os' as os %}"}]}, "no usable template"),
    "unknown_name": ({"steps": [{"prompt": "{{ item }}"}]}, "prompt uses item"),
    "unknown_step": ({"steps": [{}, {"prompt": "{{ steps.x }}"}]}, "steps.x"),
    "later_step": (
        {"steps": [{"prompt": "{{ steps.b }}"}, {"name": "b", "prompt": "x"}]},
        "no earlier step",
    ),
    "duplicate": ({"steps": [{"name": "a"}, {"name": "a", "prompt": "x"}]}, "given twice"),
    "no_prompt": ({"steps": [{}, {"name": "b"}]}, "steps 1: a step with context accumulate needs"),
    "step_temperature": ({"steps": [{"temperature": 3}]}, "steps 0: temperature must be a number"),
    "step_max_tokens": ({"steps": [{"max_tokens": 0}]}, "steps 0: max_tokens must be a whole"),
    "step_context": ({"steps": [{"context": "all"}]}, "accumulate, previous, none, got 'all'"),
    "step_on_error": ({"steps": [{"on_error": "fail"}]}, "continue, stop, got 'fail'"),
    "temperature": ({"temperature": 2.1}, "temperature must be a number from 0 to 2, got 2.1"),
    "temperature_text": ({"temperature": "warm"}, "temperature must be a number from 0 to 2"),
    "max_tokens": ({"max_tokens": -1}, "max_tokens must be a whole number from 1 to"),
    "timeout_low": ({"timeout_s": 0}, "timeout_s must be a number from 1 to 580, got 0"),
    "timeout_high": ({"timeout_s": 581}, "timeout_s must be a number from 1 to 580, got 581"),
    "cache": ({"cache": "always"}, "cache must be one of use, refresh, bypass"),
    "on_step_error": ({"on_step_error": "retry"}, "on_step_error must be one of continue, stop"),
    "model": ({"custom_model": "a\nb"}, "model"),
    "unknown_option": ({"options": "retries: 1"}, "options has no key 'retries'"),
    "option_range": ({"options": "max_retries: 11"}, "max_retries must be a whole number from 0"),
    "option_no_mapping": ({"options": "fast"}, "options must be a mapping"),
    "too_large": ({"query": "x" * 5_000_000}, "1,000,000"),
    "too_large_steps": ({"steps": [{"prompt": "x" * 1_000_001}]}, "1,000,000"),
}


@pytest.mark.parametrize(("parameters", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_a_sentence_before_anything_is_sent(
    node: ChainNode, parameters: dict[str, Any], words: str
) -> None:
    assert words in node.refusal(**{"query": QUERY, "steps": TWO, **parameters})


def test_the_process_lives_on_after_a_query_of_5_mb(node: ChainNode) -> None:
    node.refusal(query="x" * 5_000_000, steps=TWO)
    node.chain()


def test_a_template_without_end_fails_its_step_and_nothing_else(node: ChainNode) -> None:
    endless = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}"
    result = node.chain([{}, {"prompt": endless}, {"prompt": "x"}])
    assert result.variables["results"]["step_1"]["error_type"] == "invalid_input"
    assert result.elapsed_ms < 5000


# --- several at once ----------------------------------------------------------------------------


def test_chains_at_the_same_time_do_not_mix(node: ChainNode) -> None:
    node.upstream.default(do.ok(latency_ms=15))
    steps = [{}, {"prompt": "{{ previous }}", "context": "previous"}]
    calls = [node.start(query=f"<{number}>", steps=steps) for number in range(12)]
    for number, call in enumerate(calls):
        rows = node.finish(call).variables["results"]
        assert f"<{number}>" in rows["step_0"]["output"]
        assert f"<{number}>" in rows["step_1"]["output"]
    assert node.calls == 24


def test_equal_chains_at_the_same_time_cost_one_call_a_step(node: ChainNode) -> None:
    node.upstream.default(do.ok(latency_ms=40))
    results = [node.finish(call) for call in [node.start(query=QUERY, steps=TWO) for _ in range(5)]]
    assert node.calls == 2
    assert len({result.text for result in results}) == 1
