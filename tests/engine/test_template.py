"""Prompt templates: what they print, what they may use, and that none of them can do harm."""

import time
import tracemalloc
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holysheep.config import MAX_PROMPT_CHARS
from holysheep.errors import InputError
from holysheep.template import MAX_TEMPLATE_CHARS, Template
from tests.engine.test_types import json_values

ROW = {"name": "Ada", "items": 3, "tags": ["x", "y"], "price": 1.5, "none": None, "on": True}


def rendered(source: str, **values: Any) -> str:
    return Template(source).render({"row": ROW, **values})


def refusal(source: str, **values: Any) -> str:
    """What the user is told of a template that is refused, in compiling or in rendering."""
    with pytest.raises(InputError) as raised:
        rendered(source, **values)
    return raised.value.message


PRINTED = [
    ("Hello {{ row.name }}\n", "Hello Ada\n"),
    ("{{ row.tags }} {{ {'a': 'é<&>'} }}", '["x", "y"] {"a": "é<&>"}'),
    ("[{{ row.none }}] {{ row.on }} {{ false }}", "[] true false"),
    ("{{ 3 }} {{ 1.5 }} {{ 7 // 2 }} {{ 2 ** 10 }} {{ -3 % 5 }}", "3 1.5 3 1024 2"),
    ("{{ row.items }}", "3"),
    ("{{ row.items() | length }} {{ row.get('x', 'no') }} {{ row['name'] }}", "6 no Ada"),
    ("{{ row.tags[0] }} {{ row.tags[-1] }} {{ row.name[1:] }} {{ row.tags[:1] }}", 'x y da ["x"]'),
    ("{{ row.name ~ ' ' ~ row.tags ~ none ~ 1 }}", 'Ada ["x", "y"]1'),
    (
        "{{ 1 < 2 <= 2 }} {{ 1 == 2 }} {{ 'd' in row.name }} {{ 'z' not in row }}",
        "true false true true",
    ),
    (
        "{% for tag in row.tags %}{{ loop.index }}{{ tag }}{{ ',' if not loop.last }}{% endfor %}",
        "1x,2y",
    ),
    ("{% for key, value in {'a': 1}.items() %}{{ key }}={{ value }}{% endfor %}", "a=1"),
    ("{% for i in range(4) if i is odd %}{{ i }}{% else %}none{% endfor %}", "13"),
    ("{% for i in range(3) %}{{ loop.cycle('a', 'b') }}{% endfor %}", "aba"),
    ("{% if row.missing is defined %}yes{% else %}no{% endif %}", "no"),
    (
        "{{ row.missing | default('-') }} {{ other | default('+') }} {{ '' | d('!', true) }}",
        "- + !",
    ),
    (
        "{% set n = namespace(sum=0) %}"
        "{% for i in range(4) %}{% set n.sum = n.sum + i %}{% endfor %}{{ n.sum }}",
        "6",
    ),
    ("{% set x %}a{{ 1 }}{% endset %}{% filter upper %}{{ x }}b{% endfilter %}", "A1B"),
    ("{% with a = 1 %}{{ a }}{% endwith %}{% raw %}{{ x }}{% endraw %}{# not this #}", "1{{ x }}"),
    (
        "{{ '<&>' }} {{ {'a': '<&>'} | tojson }} {{ [1] | tojson(indent=2) }}",
        '<&> {"a": "<&>"} [\n  1\n]',
    ),
    ("{{ 'a,b'.split(',') | map('upper') | join('-') }} {{ ', '.join(row.tags) }}", "A-B x, y"),
    ("{{ [{'n': 2}, {'n': 1}] | sort(attribute='n') | map(attribute='n') | list }}", "[1, 2]"),
    ("{{ [{'n': 2}, {'n': 1}] | selectattr('n', 'gt', 1) | list }}", '[{"n": 2}]'),
    (
        "{{ ['b', 'A', 'a'] | unique | sort | join }} {{ [1, 2] | sum }} {{ [3, 1] | max }}",
        "Ab 3 3",
    ),
    (
        "{{ {'b': 1, 'a': 2} | dictsort }} {{ [1, 0, 2] | select | list }}",
        '[["a", 2], ["b", 1]] [1, 2]',
    ),
    (
        "{{ '%.2f' | format(1.5) }} {{ '%s of %d' % ('x', 3) }} {{ '%(name)s' % row }}",
        "1.50 x of 3 Ada",
    ),
    (
        "{{ 'a b c d' | truncate(5, leeway=0) }} {{ ' x ' | trim }} {{ 'a\nb' | indent(2) }}",
        "a... x a\n  b",
    ),
    ("{{ 'aXa' | replace('a', 'b') }} {{ '12' | int + 1 }} {{ 2.567 | round(1) }}", "bXb 13 2.6"),
    (
        "{{ 'a b' | wordcount }} {{ 'abc' | first }}{{ 'abc' | last }} {{ 'ab' | reverse }}",
        "2 ac ba",
    ),
    ("{{ '-' * 3 }} {{ [1] + [2] }} {{ 'a' + 'b' }}", "--- [1, 2] ab"),
]


@pytest.mark.parametrize(("source", "prompt"), PRINTED, ids=[source for source, _ in PRINTED])
def test_a_template_prints(source: str, prompt: str) -> None:
    assert rendered(source) == prompt


def test_any_mapping_is_read_by_its_keys() -> None:
    proxy = MappingProxyType({"keys": 1})
    assert rendered("{{ m.keys }} {{ m }}", m=proxy) == '1 {"keys": 1}'


def test_the_same_template_can_be_rendered_again() -> None:
    template = Template("{% for i in range(9000) %}{{ x }}{% endfor %}")
    assert [template.render({"x": x})[:1] for x in "abc"] == ["a", "b", "c"]


def test_variables_are_the_names_from_outside() -> None:
    template = Template(
        "{{ a }}{% for b in range(c) %}{{ b }}{{ loop.index }}{% set d = e %}{% endfor %}"
    )
    assert template.variables == {"a", "c", "e"}


def test_members_are_the_names_read_of_a_variable() -> None:
    template = Template(
        "{{ steps.first }}{{ steps['my step'].x }}{{ steps.get('third') }}{{ steps.items() }}"
        "{{ steps[0] }}{{ steps[key] }}{{ other.y }}{% set own = {} %}{{ own.z | default(1) }}"
    )
    assert template.members_of("steps") == {"first", "my step", "third"}
    assert template.members_of("own") == frozenset()
    assert template.members_of("never") == frozenset()


REFUSED = [
    ("{% if x %}\n\n{% fi %}", r"line 3.*'fi'"),
    ("\n{{ x", "line 2"),
    ("{% include 'x' %}", "'include' is not allowed, only filter, for, if, raw, set, with"),
    ("{% import 'x' as x %}", "'import' is not allowed"),
    ("{% from 'x' import x %}", "'from' is not allowed"),
    ("{% extends 'x' %}", "'extends' is not allowed"),
    ("{% block x %}{% endblock %}", "'block' is not allowed"),
    ("{% macro x() %}{% endmacro %}", "'macro' is not allowed"),
    ("{% call x() %}{% endcall %}", "'call' is not allowed"),
    ("{% autoescape true %}{% endautoescape %}", "'autoescape' is not allowed"),
    ("{% for x in [] recursive %}{% endfor %}", "recursive"),
    ("{{ 1 | attr('x') }}", "filter 'attr' is not allowed, only abs"),
    ("{{ 1 is callable }}", "test 'callable' is not allowed, only"),
    ("{{ lipsum() }}", "function 'lipsum' is not allowed, only namespace, range"),
    ("{{ row.name.format(1) }}", "method 'format' is not allowed, only"),
    ("{{ row['get']('x') }}", "function"),
    ("{{ range(*row.tags) }}", "before an argument"),
    ("{{ 1 | default(**row) }}", "before an argument"),
    ("{{ self }}", "'self'"),
    ("{{ 1e999 }}", "too large"),
    ("{{ " + "(" * 500 + "1" + ")" * 500 + " }}", "nested too deeply"),
    ("{{ 1" + " | abs" * 100 + " }}", "nested too deeply"),
    ("{% if 1 %}" * 300 + "{% endif %}" * 300, "nested too deeply"),
    ("{{ x }}" * 10_000, "more than 6000 words"),
    ("x" * (MAX_TEMPLATE_CHARS + 1), "100001 characters"),
    ("{{ " + "9" * 5000 + " }}", "no usable template"),
]


@pytest.mark.parametrize(("source", "told"), REFUSED, ids=[source[:40] for source, _ in REFUSED])
def test_what_is_not_allowed_is_refused_before_rendering(source: str, told: str) -> None:
    with pytest.raises(InputError, match=f"(?s){told}") as raised:
        Template(source, "my_prompt")
    assert raised.value.message.startswith("my_prompt ")
    assert raised.value.message.endswith(".")
    assert "\n" not in raised.value.message


FAILED = [
    ("{{ y }}", "no variable 'y'"),
    ("{{ row.y }}", "no 'y' in a mapping"),
    ("{{ row['y'] }}", "no 'y' in a mapping"),
    ("{{ row.y.z | default(1) }}", "no 'y'"),
    ("{{ row.tags[9] }}", "no 9 in a list"),
    ("{{ y ~ 'x' }}", "no variable 'y'"),
    ("{{ y + 1 }}", "no variable 'y'"),
    ("{{ [y] }}", "no variable 'y'"),
    ("{% if y == 1 %}{% endif %}", "no variable 'y'"),
    ("{% for x in y %}{% endfor %}", "no variable 'y'"),
    ("{{ 1 / 0 }}", "division by zero"),
    ("{{ 'a' + 1 }}", r"\+ does not work for a text and a number"),
    ("{{ [] | sum('x', 'y', 'z') }}", "positional argument"),
    ("{{ [1, 'a'] | sort }}", "not supported"),
    ("{{ 5 | join }}", "no items"),
    ("{{ {[]: 1} }}", "unhashable"),
    ("{{ namespace(a=1) }}", "a namespace cannot be printed"),
    ("{{ [1] | map('attr', 'x') }}", "filter 'attr' is not allowed"),
    ("{{ [1] | select('callable') }}", "test 'callable' is not allowed"),
    ("{{ [].get('x') }}", "no method 'get' of a list"),
    ("{% set row.x = 1 %}", "namespace"),
    ("{{ object }}", "cannot be printed"),
]


@pytest.mark.parametrize(("source", "told"), FAILED, ids=[source for source, _ in FAILED])
def test_a_rendering_that_fails_says_why(source: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as raised:
        Template(source, "my_prompt").render({"row": ROW, "object": object()})
    assert raised.value.message.startswith("my_prompt ")
    assert raised.value.message.endswith(".")


class Secret:
    def __init__(self) -> None:
        self.key = "hidden"

    def tell(self) -> str:
        return self.key


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__ | default('x') }}",
        "{{ ''['__class__'] }}",
        "{{ row.__init__ }}",
        "{{ [''] | map(attribute='__class__') | list }}",
        "{{ [''] | selectattr('__class__') | list }}",
        "{{ [''] | sort(attribute='__class__') }}",
        "{{ [''] | join(attribute='__class__') }}",
        "{{ range.__globals__ }}",
        "{{ namespace(a=1).__class__ }}",
        "{{ namespace(a=1)._Namespace__attrs }}",
        "{% for x in [1] %}{{ loop.__class__ }}{% endfor %}",
        "{% for x in [1] %}{{ loop._iterable }}{% endfor %}",
        "{{ secret.key }}",
        "{{ secret['key'] }}",
        "{{ secret.tell() }}",
        "{{ secret }}",
        "{{ secret | string }}",
        "{{ '%s' % secret }}",
        "{{ [secret] | map(attribute='key') | join }}",
        "{{ row.get.__self__ }}",
        "{{ (1).real }}",
        "{{ missing.__class__ }}",
    ],
)
def test_no_attribute_of_an_object_is_read(source: str) -> None:
    told = refusal(source, secret=Secret())
    assert "hidden" not in told


def loop(body: str, count: int = 9999) -> str:
    return f"{{% for i in range({count}) %}}{body}{{% endfor %}}"


NEVER_ENDING = {
    "nested loops": loop(loop("")),
    "a loop over characters": "{% for a in long %}{% for b in long %}{% endfor %}{% endfor %}",
    "a large body": loop("x" * 90_000),
    "much output": loop(loop("0123456789" * 99, 99), 99),
    "a large set in a loop": loop("{% set x %}" + "x" * 90_000 + "{% endset %}"),
    "a filter of a long text": loop("{% set x = long | upper %}"),
    "a method of a long text": loop("{% set x = long.title() %}"),
    "a long text compared": loop("{% if long == longer %}{% endif %}"),
    "a long text searched": loop("{% if ('a' * 624 ~ 'b' ~ 'a' * 624) in 'a' * 2499 %}{% endif %}"),
    "a long text stripped": loop("{% set x = long.strip('xyz' * 30 ~ 'a') %}"),
    "too many characters to strip": "{{ long.strip('a' * 1000) }}",
    "a long text split": loop("{% set x = ('a ' * 400000).split() %}"),
    "a long text in lines": loop("{% set x = ('a\n' * 400000).splitlines() %}"),
    "many slices kept": "{% set n = namespace(x=[]) %}" + loop("{% set n.x = n.x + [long[1:]] %}"),
    "JSON": loop("{% set x = rows | tojson %}"),
    "indented JSON": loop("{% set x = rows | tojson(indent=8) %}"),
    "a wide indent of JSON": "{{ [1] | tojson(indent=1000000000) }}",
    "a sort": loop("{% set x = rows | sort(attribute='n') %}"),
    "a map": loop("{% set x = range(9999) | map('string') | map('upper') %}"),
    "a selection": loop("{% set x = rows | selectattr('n', 'eq', 2) %}"),
    "a list in lists": "{% set x = [1, 1] %}" + "{% set x = [x, x] %}" * 50 + "{{ x }}",
    "a tuple in tuples": "{% set x = (1, 1) %}" + "{% set x = (x, x) %}" * 50 + "{{ {x: 1} }}",
    "lists in lists compared": "{% set x = [1] %}{% set y = [1] %}"
    + "{% set x = [x, x] %}{% set y = [y, y] %}" * 50
    + "{{ x == y }}",
    "lists in lists by a namespace": "{% set n = namespace(x=[1]) %}"
    + loop("{% set n.x = [n.x, n.x] %}", 60)
    + "{{ [n.x] in [n.x] }}",
    "a deep list": "{% set n = namespace(x=[1]) %}" + loop("{% set n.x = [n.x] %}") + "{{ n.x }}",
    "a text doubled": "{% set n = namespace(x='ab') %}" + loop("{% set n.x = n.x ~ n.x %}", 60),
    "a text doubled by +": "{% set n = namespace(x='ab') %}" + loop("{% set n.x = n.x + n.x %}"),
    "a text doubled by set": "{% set x = 'ab' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "a text doubled by join": "{% set x = 'ab' %}" + "{% set x = [x, x] | join %}" * 60,
    "a list doubled": "{% set n = namespace(x=[1]) %}" + loop("{% set n.x = n.x + n.x %}", 60),
    "a text multiplied": "{{ 'a' * 10**9 }}",
    "a list multiplied": "{{ [0] * 10**9 }}",
    "a power": "{{ 10 ** (10 ** 9) }}",
    "a negative power": "{{ 10 ** -(10 ** 9) }}",
    "a growing number": "{% set n = namespace(x=9) %}" + loop("{% set n.x = n.x * n.x %}"),
    "a long number": "{{ ('f' * 900000) | int(base=16) % 7 }}{{ y }}",
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "a wide format of a filter": "{{ '%1000000000d' | format(1) }}",
    "a precise format": "{{ '%.1000000000f' % 1 }}",
    "a width from an argument": "{{ '%*d' % (1000000000, 1) }}",
    "many formats": "{{ ('%s' * 1000) % ([long] * 1000) }}",
    "one argument many times": "{{ ('%(x)s' * 1000) % {'x': long} }}",
    "padding": "{{ 'x'.ljust(1000000000) }}",
    "zeros": "{{ 'x'.zfill(1000000000) }}",
    "tabs": "{{ '\t'.expandtabs(1000000000) }}",
    "centre": "{{ 'x' | center(1000000000) }}",
    "a format method": "{{ '{:>999999999}'.format(1) }}",
    "a replacement": "{{ long | replace('a', long) }}",
    "a replacement of nothing": "{{ long.replace('', 'aaaaaaaa') }}",
    "a join": "{{ range(9999) | join(long) }}",
    "a join of long texts": "{{ [long, long, long] | join }}",
    "an indent": "{{ long | indent(1000000000) }}",
    "an indent of many lines": "{{ ('\n' * 900000) | indent(100, blank=true) }}",
    "a precision": "{{ 5 | round(-1000000000) }}",
    "a range": "{{ range(1000000000) }}",
    "a long path": "{{ [1] | map(attribute='" + "a." * 40_000 + "a') | list }}",
    "a filter mapped over maps": "{{ [[1]] | map(" + "'map'," * 2000 + "'abs') | list }}",
    "a long chain": "{{ 1" + " + 1" * 2000 + " }}",
    "many conversions": "{{ a | upper }}" * 5000,
}


@pytest.mark.parametrize("source", NEVER_ENDING.values(), ids=NEVER_ENDING.keys())
def test_no_template_takes_long_or_much(source: str) -> None:
    values = {
        "long": "a" * 900_000,
        "longer": "a" * 899_999 + "b",
        "rows": [{"n": n, "tags": ["x"] * 3} for n in range(5000)],
    }
    tracemalloc.start()
    start = time.thread_time()
    try:
        refusal(source, **values)
        seconds = time.thread_time() - start
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds < 2  # tracemalloc makes it several times slower
    assert peak < 64 * 1024 * 1024


@pytest.mark.parametrize(
    "source",
    [
        "{{ ('%s' % ('a' * 100000)) }}",
        loop("{{ loop.index }}: {{ rows[0].name | upper }}\n", 5000),
        "{% for r in rows %}- {{ r.name | truncate(9) }}: {{ r.tags | join(', ') }}\n{% endfor %}",
        "{{ rows | tojson }}{{ rows | map(attribute='name') | unique | sort | join(', ') }}",
        "{{ long | trim | replace('a', 'b') | truncate(1000) }}",
    ],
)
def test_ordinary_work_is_within_the_steps(source: str) -> None:
    rows = [{"name": f"name {n}", "tags": ["x", "y"]} for n in range(2000)]
    assert rendered(source, rows=rows, long="a" * 900_000)


def test_a_prompt_of_the_greatest_length_is_made() -> None:
    half = "x" * (MAX_PROMPT_CHARS // 2)
    assert len(rendered("{{ half }}{{ half }}", half=half)) == MAX_PROMPT_CHARS
    assert "1000000 characters" in refusal("{{ half }}{{ half }}!", half=half)


WORDS = st.sampled_from(
    """
    {{ }} {% %} {# #} if else elif endif for in endfor set endset with endwith filter endfilter not
    and or is defined odd row name tags x ns namespace(a=1) range(3) loop .items() .name ['x'] [1:]
    | upper |join |map('upper') |sort |default(1) |tojson ~ + - * / // % ** == < ( ) [ ] { } , : .
    = 'a' "b" 1 2.5 none true .get('x') .split() __class__ - \n raw endraw * ** block
    """.split()  # noqa: SIM905 - quoted they would read worse
)


def compiles_and_renders_or_says_why(source: str, values: dict[str, Any]) -> None:
    try:
        Template(source).render(values)
    except InputError as error:
        told = error.message
    else:
        return
    assert told.startswith("prompt_template ")
    assert "\n" not in told


@settings(max_examples=200)
@given(source=st.text(max_size=80))
def test_any_text_is_rendered_or_refused(source: str) -> None:
    compiles_and_renders_or_says_why(source, {})


@settings(max_examples=300)
@given(words=st.lists(WORDS, max_size=12), value=json_values)
def test_any_words_in_a_tag_are_rendered_or_refused(words: list[str], value: Any) -> None:
    source = " ".join(words)
    for text in (source, f"{{{{ {source} }}}}", f"{{% set x = {source} %}}{{{{ x }}}}"):
        compiles_and_renders_or_says_why(text, {"row": ROW, "x": value})
