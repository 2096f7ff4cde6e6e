"""Parameters: defaults, spellings, ranges, and one sentence for what is refused."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holysheep import config
from holysheep.cache import key_of
from holysheep.errors import InputError
from holysheep.options import Options
from holysheep.params import ChatParams, Conversation, parse_call, parse_messages
from holysheep.reading import chosen, parsed
from holysheep.types import ChatRequest
from tests.fakes import FakeClock, a_call

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]


def parse(**raw: Any) -> ChatParams:
    return parsed(ChatParams, chosen(raw, default_model="deepseek-v3.2"))


def body(**raw: Any) -> dict[str, Any]:
    """What would be sent, read back from the wire's bytes as strict JSON."""
    request = parse(**raw).request([{"role": "user", "content": "Hello"}])

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} was sent")

    return dict(json.loads(request.canonical(), parse_constant=refuse))


def refusal(**raw: Any) -> str:
    """The one sentence for a parameter that is refused before anything is sent."""
    with pytest.raises(InputError) as raised:
        parse_call({"query": "Hello", **raw}, default_model="deepseek-v3.2")
    message = raised.value.message
    assert "\n" not in message
    assert len(message) < 500
    return message


# --- defaults -----------------------------------------------------------------------------------


def test_nothing_given_means_the_documented_defaults() -> None:
    params = parse()
    assert params.model == "deepseek-v3.2"
    assert (params.temperature, params.max_tokens, params.options.top_p) == (0.7, 2048, 0.95)
    assert (params.timeout_s, params.max_retries) == (60, 3)
    assert (params.cache, params.response_format, params.on_error) == ("use", "text", "fail")
    assert (params.fallback_models, params.json_schema, params.tools) == ((), None, None)
    assert (params.options.cache_ttl_s, params.options.cache_scope) == (300, "credential")
    assert params.options.serve_stale is False


def test_only_what_is_set_is_sent() -> None:
    assert body() == {
        "model": "deepseek-v3.2",
        "messages": [{"role": "user", "content": "Hello"}],
        "temperature": 0.7,
        "max_tokens": 2048,
        "top_p": 0.95,
    }


@pytest.mark.parametrize("empty", ["", "  ", "\n", None])
def test_an_empty_parameter_is_one_that_is_not_set(empty: str | None) -> None:
    names = set(ChatParams.model_fields) | {"custom_model"}
    assert parse(**dict.fromkeys(names, empty)) == parse()


# --- numbers ------------------------------------------------------------------------------------

RANGES = [
    ("temperature", 0, 2),
    ("max_tokens", 1, 1_000_000),
    ("timeout_s", 1, 540),
    ("max_retries", 0, 10),
]
OPTION_RANGES = [
    ("top_p", 0, 1),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("cache_ttl_s", 1, 86_400),
]
NO_NUMBERS = [
    "abc",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "0,5",
    "0x10",
    "٣",
    "３",
    "1 0",
    "--1",
    True,
    False,
    "true",
    [1],
    {"a": 1},
    float("nan"),
    float("inf"),
    10**400,
    "9" * 5000,
    "1e999",
]


@pytest.mark.parametrize(("name", "low", "high"), RANGES)
def test_the_ends_of_a_range_belong_to_it(name: str, low: float, high: float) -> None:
    for value in (low, high, str(low), f" {high} ", float(low), f"{high}.0"):
        assert getattr(parse(**{name: value}), name) == float(value)


@pytest.mark.parametrize(("name", "low", "high"), RANGES)
def test_a_number_out_of_range_is_refused_with_the_range(
    name: str, low: float, high: float
) -> None:
    for value in (low - 1, high + 1, str(high + 1)):
        message = refusal(**{name: value})
        assert message.startswith(f"{name} must be a")
        assert f"from {low} to " in message
        assert f"got {value!r}" in message


@pytest.mark.parametrize(("name", "low", "high"), OPTION_RANGES)
def test_an_option_out_of_range_is_refused_with_the_range(
    name: str, low: float, high: float
) -> None:
    for value in (low - 1, high + 1):
        message = refusal(options=f"{name}: {value}")
        assert message.startswith(f"options: {name} must be a number from {low} to ")


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("name", [name for name, _, _ in RANGES])
def test_what_is_no_number_is_refused_by_name(name: str, value: Any) -> None:
    assert refusal(**{name: value}).startswith(f"{name} must be a")


@pytest.mark.parametrize("value", [".nan", ".inf", "true", "abc", "[1]", "{a: 1}"])
@pytest.mark.parametrize("name", [name for name, _, _ in OPTION_RANGES])
def test_an_option_that_is_no_number_is_refused_by_name(name: str, value: str) -> None:
    assert refusal(options=f"{name}: {value}").startswith(f"options: {name} must be a number")


@pytest.mark.parametrize("name", ["max_tokens", "max_retries"])
@pytest.mark.parametrize("value", [1.5, "2.5", "1e-3"])
def test_half_of_something_whole_is_refused(name: str, value: Any) -> None:
    assert refusal(**{name: value}).startswith(f"{name} must be a whole number")


@pytest.mark.parametrize("value", ["1.5", "abc", "1.0e+400", ".nan", "true", "[1]"])
def test_a_seed_that_is_no_whole_number_is_refused_as_such(value: str) -> None:
    assert refusal(options=f"seed: {value}").startswith("options: seed must be a whole number")


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ("use", "use"),
        ("USE ", "use"),
        ("refresh", "refresh"),
        ("bypass", "bypass"),
        ("on", "use"),
        ("off", "bypass"),
        (True, "use"),
        (False, "bypass"),
        ("true", "use"),
        ("false", "bypass"),
    ],
)
def test_the_cache_mode_has_several_spellings(given: Any, mode: str) -> None:
    assert parse(cache=given).cache == mode


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("cache", "maybe", "use, refresh, bypass"),
        ("cache", ["use"], "use, refresh, bypass"),
        ("cache", 1, "use, refresh, bypass"),
        ("response_format", "xml", "text, json_object, json_schema"),
        ("on_error", "ignore", "fail, continue"),
    ],
)
def test_another_word_is_refused_with_the_words_there_are(
    name: str, value: Any, words: str
) -> None:
    assert refusal(**{name: value}).startswith(f"{name} must be one of {words}, got")


def test_the_custom_model_wins_over_the_model_and_that_over_the_default() -> None:
    assert parse(model="a", custom_model=" b ").model == "b"
    assert parse(model="a", custom_model="").model == "a"
    assert parse().model == "deepseek-v3.2"


@pytest.mark.parametrize(
    "value",
    [["a"], {"a": 1}, True, "a\nb", "x" * 201, "\ud800", "\x00"],
    ids=lambda value: repr(value)[:20],
)
@pytest.mark.parametrize("name", ["model", "custom_model"])
def test_what_cannot_be_a_model_id_is_refused(name: str, value: Any) -> None:
    assert "model" in refusal(**{name: value})


@pytest.mark.parametrize(
    ("given", "models"),
    [("a", ("a",)), (" a , b ,", ("a", "b")), (["a", " b "], ("a", "b")), (",,", ()), ([], ())],
)
def test_fallback_models_are_a_list_or_separated_by_commas(
    given: Any, models: tuple[str, ...]
) -> None:
    assert parse(fallback_models=given).fallback_models == models


@pytest.mark.parametrize(
    "value",
    [5, True, {"a": 1}, [1], [["a"]], "a\nb", "x" * 201, "\x00"],
    ids=lambda value: repr(value)[:20],
)
def test_what_cannot_be_fallback_models_is_refused(value: Any) -> None:
    assert refusal(fallback_models=value).startswith("fallback_models")


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "top_p: 0.5\nseed: 7\nstop: x",
        '{"top_p": 0.5, "seed": 7, "stop": "x"}',
        "{top_p: 0.5, seed: 7, stop: [x]}",
        '{\n\t"top_p": 0.5,\n\t"seed": 7,\n\t"stop": ["x"]\n}',
        '{"top_p":5e-1,"seed":7,"stop":["\\u0078"]}',
        {"top_p": "0.5", "seed": "7", "stop": "x"},
    ],
    ids=["YAML", "JSON", "flow", "JSON with tabs", "JSON escapes", "mapping"],
)
def test_options_are_yaml_or_json_or_a_mapping(text: Any) -> None:
    options = parse(options=text).options
    assert (options.top_p, options.seed, options.stop) == (0.5, 7, ["x"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"extra_body": {"x": "\\ud83d\\ude00"}}', "😀"),
        ('{"extra_body": {"x": 1e3}}', 1000.0),
        ('{"extra_body": {"x": "a\\/b"}}', "a/b"),
        ('{"extra_body": {"x": "2024-01-01"}}', "2024-01-01"),
        ('{"extra_body": {"x": {"50256": -100}}}', {"50256": -100}),
        ("extra_body: {x: 'yes'}", "yes"),
    ],
)
def test_json_in_options_means_what_it_means_in_json(text: str, value: Any) -> None:
    assert body(options=text)["x"] == value


@pytest.mark.parametrize("text", ["{}", "# nothing", "---"])
def test_empty_options_are_none(text: str) -> None:
    assert parse(options=text).options == Options()


@pytest.mark.parametrize("text", ["nope: 1", "1: 2", "on: 2", "~: 1", '{"Top_P": 1}', "nope:"])
def test_an_unknown_key_is_refused_with_the_keys_there_are(text: str) -> None:
    message = refusal(options=text)
    assert message.startswith("options has no key ")
    for name in Options.model_fields:
        assert name in message


@pytest.mark.parametrize(
    "text",
    [
        "just words",
        "- a",
        "5",
        "{",
        "top_p: 1: 2",
        "\x00",
        "a: 1\n---\nb: 2",
        "? [a]\n: b",
        "extra_body: {? [a] : b}",
        "top_p: &x 0.5\nseed: *x",
        "extra_body: &x {a: *x}",
        "top_p: !!python/object/apply:os.system [x]",
        "extra_body: {a: !!python/name:os.system }",
        "extra_body: " + "[" * 1500,
        "{" * 300,
        "a" * 100_001,
        ["top_p"],
        5,
        True,
    ],
    ids=lambda text: repr(text)[:30],
)
def test_options_that_are_no_mapping_are_refused(text: Any) -> None:
    assert refusal(options=text).startswith(("options ", "The inputs are nested"))


@pytest.mark.parametrize(
    "text",
    [
        "seed: " + "9" * 5000,
        "seed: 0x" + "f" * 5000,
        "extra_body: {x: 0x" + "f" * 5000 + "}",
        '{"extra_body": {"x": ' + "9" * 5000 + "}}",
        "extra_body: {x: 2024-13-45}",
        "extra_body: {x: 2024-02-30}",
        "extra_body: {x: !!timestamp abc}",
        "extra_body: {x: !!int abc}",
        "extra_body: {x: !!float abc}",
        "extra_body: {x: !!bool 5}",
    ],
    ids=lambda text: text[:32],
)
def test_what_yaml_itself_stumbles_over_is_refused_in_our_words(text: str) -> None:
    message = refusal(options=text)
    assert message.startswith(("options", "extra_body"))
    assert "sys." not in message


def test_a_few_lines_cannot_stand_for_gigabytes() -> None:
    lines = ["extra_body:", "  a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert refusal(options="\n".join(lines)).startswith("options ")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("x", ["x"]),
        ("a\nb\n", ["a", "b"]),
        (["a", "b"], ["a", "b"]),
        ([], None),
        (["\n"], ["\n"]),
    ],
)
def test_stop_is_a_text_one_sequence_a_line_or_a_list(given: Any, expected: Any) -> None:
    assert parse(options={"stop": given}).options.stop == expected


@pytest.mark.parametrize("stop", ["\n", "\n\n", " ", "\t", "\r\n"], ids=repr)
def test_a_stop_of_white_space_is_refused_as_a_text_and_taken_in_a_list(stop: str) -> None:
    told = refusal(options={"stop": stop})
    assert told == (
        'stop is white space only; give such a sequence in a list, such as stop: ["\\n"].'
    )
    assert refusal(options=json.dumps({"stop": stop})) == told
    assert parse(options={"stop": [stop]}).options.stop == [stop]


def test_an_empty_stop_is_not_set() -> None:
    assert parse(options={"stop": ""}).options.stop is None


@pytest.mark.parametrize(
    "text",
    [
        "stop: 5",
        "stop: 0",
        "stop: no",
        "stop: false",
        "stop: [no]",
        "stop: [1]",
        "stop: ['']",
        "stop: {a: 1}",
        "stop: {}",
        "stop: [a, b, c, d, e]",
        "stop: [[a]]",
    ],
)
def test_a_stop_that_is_no_text_is_refused_and_not_forgotten(text: str) -> None:
    assert "stop" in refusal(options=text)


@pytest.mark.parametrize(
    "text",
    [
        "extra_body: 5",
        "extra_body: [a]",
        "extra_body: words",
        "extra_body: {messages: []}",
        "extra_body: {stream: true}",
        "extra_body: {stream_options: {}}",
        "extra_body: {api_key: x}",
        "extra_body: {1: x}",
        "extra_body: {a: 2024-01-01}",
        "extra_body: {a: 2024-01-01T00:00:00Z}",
        "extra_body: {a: !!binary aGVsbG8=}",
        "extra_body: {a: !!set {x}}",
        "extra_body: {a: .nan}",
        "extra_body: {a: [.inf]}",
        "extra_body: {a: {1: x, b: y}}",
        "extra_body: {a: {~: x, b: y}}",
    ],
)
def test_an_extra_body_that_cannot_be_sent_is_refused(text: str) -> None:
    assert "extra_body" in refusal(options=text)


def test_an_extra_body_is_merged_and_wins() -> None:
    sent = body(temperature=1, options="extra_body: {temperature: 0.2, top_k: 5}")
    assert (sent["temperature"], sent["top_k"]) == (0.2, 5)


@pytest.mark.parametrize("value", ["maybe", 2, [True], "null"])
def test_a_switch_is_on_or_off(value: Any) -> None:
    assert refusal(options={"serve_stale": value}).startswith(
        "options: serve_stale must be true or false"
    )


@pytest.mark.parametrize(
    ("scope", "partition"),
    [("credential", ""), ("app", "app:app-1"), ("user", "user:user-1")],
)
def test_the_cache_scope_becomes_the_partition(scope: str, partition: str) -> None:
    params = parse(options={"cache_scope": scope})
    assert params.policy(app_id="app-1", user_id="user-1").cache_partition == partition


def test_everything_that_is_policy_reaches_the_policy() -> None:
    policy = parse(
        cache="refresh",
        fallback_models="a,b",
        max_retries=1,
        json_schema=SCHEMA,
        options={"cache_ttl_s": 10, "serve_stale": True},
    ).policy()
    assert (policy.cache, policy.fallback_models, policy.max_retries) == ("refresh", ("a", "b"), 1)
    assert (policy.cache_ttl_s, policy.serve_stale, policy.answer_schema) == (10, True, SCHEMA)


# --- schema and tools ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        SCHEMA,
        json.dumps(SCHEMA),
        {"schema": SCHEMA},
        {"name": "n", "strict": True, "schema": SCHEMA},
    ],
    ids=["mapping", "text", "wrapped", "named"],
)
def test_a_schema_may_come_wrapped_as_in_response_format(given: Any) -> None:
    params = parse(json_schema=given)
    assert params.answer_schema == SCHEMA
    sent = body(json_schema=given)["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["schema"] == SCHEMA


@pytest.mark.parametrize(
    "value",
    [
        "{",
        "null",
        "[]",
        '"x"',
        "5",
        '{"type": "objekt"}',
        '{"const": NaN}',
        '{"maximum": Infinity}',
        "[" * 100_000,
        '{"items":' * 2000 + "{}" + "}" * 2000,
        {"const": float("nan")},
        {1: 2},
        {"schema": SCHEMA, "nmae": "x"},
        [SCHEMA],
        5,
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_schema_that_cannot_be_used_is_refused(value: Any) -> None:
    message = refusal(json_schema=value)
    assert "json_schema" in message or "nested too deeply" in message


def test_a_number_of_thousands_of_digits_in_any_input_is_no_crash() -> None:
    huge = 10**5000
    for raw in (
        {"json_schema": {"maximum": huge}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"const": huge}}}]},
        {"history": [{"role": "user", "content": "a", "n": huge}]},
        {"query": huge},
        {"system_prompt": huge},
        {"custom_model": huge},
        {"cache": huge},
        {"options": {"extra_body": {"x": huge}}},
        {"options": {"seed": huge}},
    ):
        with contextlib.suppress(InputError):
            parse_call({"query": "q", **raw}, default_model="m").request.canonical()


@pytest.mark.parametrize("given", [TOOLS, json.dumps(TOOLS)], ids=["list", "text"])
def test_tools_are_sent_as_they_are(given: Any) -> None:
    assert body(tools=given)["tools"] == TOOLS


@pytest.mark.parametrize("empty", ["[]", [], ""])
def test_an_empty_list_of_tools_is_no_tools(empty: Any) -> None:
    assert "tools" not in body(tools=empty)


@pytest.mark.parametrize(
    "value",
    [
        "{}",
        "no JSON",
        "[" * 100_000,
        [{"type": "function"}],
        '[{"type": "function", "function": {"name": "f", "parameters": {"const": NaN}}}]',
        5,
    ],
    ids=lambda value: repr(value)[:30],
)
def test_tools_that_cannot_be_used_are_refused(value: Any) -> None:
    assert "tools" in refusal(tools=value)


def test_a_json_schema_format_needs_a_schema() -> None:
    assert "json_schema" in refusal(response_format="json_schema")


def test_an_object_format_takes_any_json() -> None:
    params = parse(response_format="json_object")
    assert params.answer_schema == {}
    assert body(response_format="json_object")["response_format"] == {"type": "json_object"}


def test_schemas_that_differ_have_different_keys_whatever_else_is_sent() -> None:
    clock = FakeClock()
    options = {"extra_body": {"response_format": {"type": "json_object"}}}
    keys = set()
    for schema in (SCHEMA, {"type": "object"}):
        params = parse(json_schema=schema, options=options)
        request = params.request([{"role": "user", "content": "Hello"}])
        keys.add(key_of(a_call(clock, request, answer_schema=params.answer_schema)))
    assert len(keys) == 2


# --- conversation -------------------------------------------------------------------------------


def messages(**raw: Any) -> list[dict[str, Any]]:
    return parsed(Conversation, chosen(raw, default_model="m")).messages()


def test_the_history_stands_between_system_prompt_and_query() -> None:
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert messages(query="c", system_prompt="s", history=history) == [
        {"role": "system", "content": "s"},
        *history,
        {"role": "user", "content": "c"},
    ]


@pytest.mark.parametrize(
    ("query", "content"),
    [(" keep my spaces ", " keep my spaces "), (5, "5"), (["a"], '["a"]'), ({"é": 1}, '{"é": 1}')],
)
def test_a_query_of_another_type_is_sent_as_its_json(query: Any, content: str) -> None:
    assert messages(query=query) == [{"role": "user", "content": content}]


@pytest.mark.parametrize("query", ["", "  \n", None])
def test_a_query_of_white_space_is_refused(query: Any) -> None:
    assert "query is empty" in refusal(query=query)


@pytest.mark.parametrize(
    "history",
    [
        "[]",
        [],
        '[{"role": "user", "content": "a"}]',
        ['[{"role": "user", "content": "a"}]'],
        [{"role": "assistant", "tool_calls": [{}]}, {"role": "tool", "content": ""}],
        [{"role": "developer", "content": [{"type": "text", "text": "a"}]}],
    ],
    ids=str,
)
def test_a_history_in_openais_form_is_accepted(history: Any) -> None:
    assert messages(query="q", history=history)[-1] == {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    "history",
    [
        "words",
        5,
        {"role": "user", "content": "a"},
        ["a", "b"],
        [{"role": "robot", "content": "a"}],
        [{"role": "user"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": ["a"]}],
        [{"role": ["user"], "content": "a"}],
        [{"content": "a"}],
        [None],
        [{"role": "assistant", "content": 5, "tool_calls": [{}]}],
        '[{"role": "user", "content": [{"type": "text", "text": NaN}]}]',
        "[" * 100_000,
    ],
    ids=lambda history: repr(history)[:40],
)
def test_a_history_of_another_form_is_refused(history: Any) -> None:
    assert "history" in refusal(history=history)


def test_half_a_character_in_a_query_does_not_break_the_call() -> None:
    call = parse_call({"query": "a \ud83d b"}, default_model="m")
    assert json.loads(call.request.canonical())


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [100, 400, 600, 900, 5000])
@pytest.mark.parametrize("name", ["history", "query", "tools", "options", "json_schema", "model"])
def test_deep_nesting_in_any_input_is_refused_or_sent_but_never_a_crash(
    name: str, depth: int
) -> None:
    try:
        call = parse_call({"query": "q", name: nested(depth)}, default_model="m")
    except InputError:
        return
    assert call.request.canonical()


def test_inputs_that_are_too_large_together_are_refused_with_the_size() -> None:
    half = "x" * (config.MAX_INPUT_CHARS // 2)
    parse_call({"query": half, "system_prompt": half}, default_model="m")
    assert "1,000,001" in refusal(query=half, system_prompt=half + "x")


# --- messages of library callers ----------------------------------------------------------------


def test_messages_are_copied_and_not_changed() -> None:
    given = [{"role": "user", "content": "a", "name": "n"}]
    read = parse_messages(given, "messages")
    assert read == given
    assert read[0] is not given[0]


# --- the same call twice ------------------------------------------------------------------------


def test_the_same_texts_make_the_same_request() -> None:
    raw = {"query": "q", "temperature": "0.5", "options": "seed: 1"}
    one, two = (parse_call(dict(raw), default_model="m") for _ in range(2))
    assert one.request.digest() == two.request.digest()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"max_retries": 1}, {"max_retries": "2"}),
        ({"cache": True}, {"cache": False}),
        ({"temperature": 1}, {"temperature": 1.5}),
        ({"query": "a"}, {"query": "b"}),
    ],
    ids=str,
)
def test_calls_that_differ_are_not_taken_for_each_other(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    first, second = (parse_call({"query": "q", **raw}, default_model="m") for raw in (one, other))
    assert (first.params, first.request.body) != (second.params, second.request.body)


def test_true_is_not_taken_for_a_remembered_one() -> None:
    parse_call({"query": "q", "max_retries": 1}, default_model="m")
    assert refusal(max_retries=True).startswith("max_retries must be")


def test_another_default_model_is_not_taken_for_the_remembered_one() -> None:
    models = [parse_call({"query": "q"}, default_model=name).params.model for name in ("a", "b")]
    assert models == ["a", "b"]


# --- anything at all ----------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = [*ChatParams.model_fields, "custom_model", "query", "system_prompt", "history"]


@given(name=st.sampled_from(NAMES), value=anything)
def test_no_value_of_any_parameter_does_anything_but_work_or_be_refused_in_one_line(
    name: str, value: Any
) -> None:
    try:
        call = parse_call({"query": "q", name: value}, default_model="m")
    except InputError as error:
        told = error.message
    else:
        told = ""
        assert isinstance(call.request, ChatRequest)
        assert len(call.request.digest()) == 32
    assert "\n" not in told


@given(text=st.text(st.sampled_from("top_pse:{}[],- \n\t\"'&*!|>?%@#0.5~<"), max_size=30))
def test_no_text_in_options_does_anything_but_work_or_be_refused(text: str) -> None:
    try:
        call = parse_call({"query": "q", "options": text}, default_model="m")
    except InputError as error:
        told = error.message
    else:
        told = ""
        assert call.request.canonical()
    assert "\n" not in told


@given(body=st.dictionaries(st.text(max_size=5), anything, max_size=3))
def test_no_extra_body_breaks_the_request(body: dict[str, Any]) -> None:
    try:
        call = parse_call({"query": "q", "options": {"extra_body": body}}, default_model="m")
    except InputError as error:
        told = error.message
    else:
        told = ""
        json.loads(call.request.canonical())
    assert "\n" not in told
