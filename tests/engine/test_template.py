"""Prompt templates: what they print, what they may use, and that none of them can do harm."""

import time
import tracemalloc
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import nodes

from holysheep.config import MAX_PROMPT_CHARS
from holysheep.errors import InputError
from holysheep.template import MAX_TEMPLATE_CHARS, Template
from holysheep.template_syntax import Checker
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
    ("{{ 3 }} {{ 1.5 }} {{ 7 // 2 }} {{ 2 * 3 - 1 }} {{ -3 % 5 }}", "3 1.5 3 5 2"),
    ("{{ row.items }}", "3"),
    ("{{ row.items() | length }} {{ row.get('x', 'no') }} {{ row['name'] }}", "6 no Ada"),
    ("{{ row.tags[0] }} {{ row.tags[-1] }} {{ row.name[1:] }} {{ row.tags[:1] }}", 'x y da ["x"]'),
    ("{{ row.name ~ ' ' ~ row.tags ~ none ~ 1 }}", 'Ada ["x", "y"]1'),
    (
        "{{ 1 < 2 and 2 <= 2 }} {{ 1 == 2 }} {{ 'd' in row.name }} {{ 'z' not in row }}",
        "true false true true",
    ),
    (
        "{{ 'x' in row.tags }} {{ 1 in row.tags }} {{ [1, [2]] == [1, [2]] }} {{ [] != {} }}",
        "true false true true",
    ),
    (
        "{% for tag in row.tags %}{{ loop.index }}{{ tag }}{{ ',' if not loop.last }}{% endfor %}",
        "1x,2y",
    ),
    ("{% for key, value in {'a': 1}.items() %}{{ key }}={{ value }}{% endfor %}", "a=1"),
    ("{% for i in range(4) if i is odd %}{{ i }}{% else %}none{% endfor %}", "13"),
    (
        "{% for a in 'ab' %}{% for b in [1] %}{{ a }}{{ loop.length }}{% endfor %}"
        "{{ loop.first }}{{ loop.revindex }} {% endfor %}",
        "a1true2 b1false1 ",
    ),
    ("{% for a, b in [[1, 2]] %}{{ b }}{{ a }}{% endfor %}{% set c, d = 3, 4 %}{{ d }}", "214"),
    ("{% if row.missing is defined %}yes{% else %}no{% endif %}", "no"),
    (
        "{{ row.missing | default('-') }} {{ other | default('+') }} {{ '' | default('!', true) }}",
        "- + !",
    ),
    ("{% set x | upper | trim %} a{{ 1 }}{% endset %}{{ x }}b", "A1b"),
    ("{% raw %}{{ x }}{% endraw %}{# not this #} \n {%- if 1 -%} \n x{% endif %}", "{{ x }}x"),
    (
        "{{ 1 is none }} {{ 1 is number }} {{ x is undefined }} {{ {} is mapping }}",
        "false true true true",
    ),
    ("{{ 'yes' if row.on }}{{ 'no' if not row.on }} {{ 1 if x is defined else 2 }}", "yes 2"),
    (
        "{{ '<&>' }} {{ {'a': '<&>'} | tojson }} {{ [1] | tojson(indent=2) }}",
        '<&> {"a": "<&>"} [\n  1\n]',
    ),
    ("{{ 'a,b'.split(',') | join('-') }} {{ 'a b c'.split(' ', 1) }}", 'a-b ["a", "b c"]'),
    (
        "{{ ['b', 'A', 'a'] | unique | sort | join }} {{ [1, 2] | sum }} {{ [3, 1] | max }}",
        "Ab 3 3",
    ),
    ("{{ ['b', 'a'] | sort(reverse=true) }} {{ [] | max is defined }}", '["b", "a"] false'),
    (
        "{{ {'b': 1}.keys() }} {{ {'b': 1}.values() }} {{ {'b': 1} | first }} {{ [1, 2] | last }}",
        '["b"] [1] b 2',
    ),
    (
        "{{ 'a b c d' | truncate(5, leeway=0) }} {{ ' x ' | trim }} {{ 'a\nb' | indent(2) }}",
        "a... x a\n  b",
    ),
    (
        "{{ ' aB '.strip().lower() }} {{ 'ab c'.title() }} {{ 'ab'.startswith('a') }}"
        "{{ 'ab'.endswith('a') }}",
        "ab Ab C truefalse",
    ),
    ("{{ 'aXa' | replace('a', 'b') }} {{ '12' | int + 1 }} {{ 2.567 | round(1) }}", "bXb 13 2.6"),
    ("{{ 'x' | int }} {{ none | int(7) }} {{ true | int }} {{ '1.5' | float }}", "0 7 1 1.5"),
    (
        "{{ 'a b' | wordcount }} {{ 'abc' | first }}{{ 'abc' | last }} {{ 'ab' | reverse }}",
        "2 ac ba",
    ),
    ("{{ 'a' + 'b' }} {{ -2 | abs }} {{ 7 / 2 }}", "ab 2 3.5"),
]


@pytest.mark.parametrize(("source", "prompt"), PRINTED, ids=[source for source, _ in PRINTED])
def test_a_template_prints(source: str, prompt: str) -> None:
    assert rendered(source) == prompt


def test_a_mapping_is_read_by_its_keys_and_called_by_its_methods() -> None:
    assert rendered("{{ m.keys }} {{ m.keys() }}", m={"keys": 1}) == '1 ["keys"]'


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
    ("{% include 'x' %}", "'include' is not allowed, only for, if, raw, set\\."),
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
    ("{{ lipsum() }}", r"function 'lipsum' is not allowed, only range\."),
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


# What a programming language needs, and a prompt does not.
LEFT_OUT = [
    ("{% filter upper %}{% endfilter %}", "tag 'filter' is not allowed, only for, if, raw, set"),
    ("{% with x = 1 %}{% endwith %}", "tag 'with' is not allowed, only"),
    ("{% set n = namespace(x=1) %}", "function 'namespace' is not allowed, only range"),
    ("{% set row.x = 1 %}", "setting a member is not allowed"),
    ("{{ 2 ** 10 }}", r"operator '\*\*' is not allowed, only \+"),
    ("{{ 1 < 2 < 3 }}", "a chain of comparisons is not allowed"),
    ("{{ row.tags[::2] }}", "a slice with a step is not allowed"),
    ("{{ '%s' | format(1) }}", "filter 'format' is not allowed, only"),
    ("{{ [1] | map('abs') }}", "filter 'map' is not allowed, only"),
    ("{{ [1] | select('odd') }}", "filter 'select' is not allowed, only"),
    ("{{ row | dictsort }}", "filter 'dictsort' is not allowed, only"),
    ("{{ row | items }}", "filter 'items' is not allowed, only"),
    ("{{ 1 is divisibleby 2 }}", "test 'divisibleby' is not allowed, only"),
    ("{% for x in [1] %}{{ loop.cycle(1, 2) }}{% endfor %}", "method 'cycle' is not allowed"),
    ("{{ ', '.join(row.tags) }}", "method 'join' is not allowed, only"),
    ("{{ rows | sort(attribute='n') }}", "arguments of 'sort' are not allowed, only reverse"),
    ("{{ rows | join(attribute='n') }}", "arguments of 'join' are not allowed, only d"),
    ("{{ rows | sum('n') }}", "arguments of 'sum' are not allowed, only none"),
    ("{{ 1.5 | round(1, 'floor') }}", "arguments of 'round' are not allowed, only precision"),
    ("{{ 'ff' | int(base=16) }}", "arguments of 'int' are not allowed, only default"),
    ("{{ 'x'.strip('x') }}", r"arguments of '\.strip\(\)' are not allowed, only none"),
    ("{{ 'x'.replace('x') }}", r"arguments of '\.replace\(\)' are not allowed, only old, new"),
    ("{{ range() }}", r"arguments of 'range\(\)' are not allowed, only start, stop, step"),
    ("{{ 1 is odd(1) }}", "arguments of 'odd' are not allowed, only none"),
]


@pytest.mark.parametrize(("source", "told"), LEFT_OUT, ids=[source for source, _ in LEFT_OUT])
def test_what_is_left_out_of_jinja_is_refused_with_what_there_is(source: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as raised:
        Template(source)
    assert raised.value.message.startswith("prompt_template is no usable template in line 1: ")


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
    ("{{ '-' * 3 }}", r"\* does not work for a text and a number"),
    ("{{ '%s' % 3 }}", "% does not work for a text and a number"),
    ("{{ [1] + [2] }}", r"\+ does not work for a list and a list"),
    ("{{ y in [] }}", "no variable 'y'"),
    ("{{ y | upper }}", "no variable 'y'"),
    ("{{ y.get('x') }}", "no variable 'y'"),
    ("{{ y | length }}", "no variable 'y'"),
    ("{{ y[1:] }}", "no variable 'y'"),
    ("{{ -y }}", "no variable 'y'"),
    ("{% if y %}{% endif %}", "no variable 'y'"),
    ("{{ [y] == [1] }}", "no variable 'y'"),
    ("{{ [1] in [1] }}", "a list cannot be looked for"),
    ("{{ none in 'none' }}", "a text is needed here, not none"),
    ("{{ 5[1:] }}", "a number has no parts"),
    ("{% for x in [1] %}{{ loop.previtem }}{% endfor %}", "loop has only first, index, index0"),
    ("{{ [1, 'a'] | sort }}", "not supported"),
    ("{{ 5 | join }}", "no items"),
    ("{{ {[]: 1} }}", "unhashable"),
    ("{% for x in [1] %}{{ loop }}{% endfor %}", "a LoopContext cannot be printed"),
    ("{{ [].get('x') }}", "a mapping is needed here, not a list"),
    ("{{ object }}", "cannot be printed"),
]


@pytest.mark.parametrize(("source", "told"), FAILED, ids=[source for source, _ in FAILED])
def test_a_rendering_that_fails_says_why(source: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as raised:
        Template(source, "my_prompt").render({"row": ROW, "object": object()})
    assert raised.value.message.startswith("my_prompt ")
    assert raised.value.message.endswith(".")


def test_what_a_template_does_is_done_by_filters_alone() -> None:
    everything = """
        {% set a, b = x.y, x['y'][1:].split(x.y, maxsplit=x[0]) %}
        {% set c | replace(x.y, x.y) %}{{ 1 + x.y - 1 * 1 / 1 // 1 % 1 ~ x.y }}{% endset %}
        {% for i in range(x.y) if x.y is odd %}{{ x.y if x.y == x.y else x.items() }}
        {% else %}{% if x.y and not x.y in [x.y, (x.y, {x.y: x.y})] %}{{ -x.y }}
        {% elif x.y %}{{ x.y }}{% endif %}{% endfor %}
    """
    tree = Checker().visit(jinja2.Environment(autoescape=True).parse(everything))
    left = {type(node).__name__ for node in tree.find_all(nodes.Node)}
    assert left == {
        *("TemplateData", "Output", "If", "For", "Assign", "AssignBlock", "CondExpr", "Name"),
        *("Const", "List", "Tuple", "Dict", "Pair", "Keyword", "Filter", "Test", "And", "Not"),
        "Neg",
    }


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
        "{{ ''['__cl' ~ 'ass__'] }}",
        "{{ {}.get('__class__').__mro__ }}",
        "{{ [''] | sort(attribute='__class__') }}",
        "{{ [''] | join(attribute='__class__') }}",
        "{{ range.__globals__ }}",
        "{{ namespace(a=1).__class__ }}",
        "{{ namespace(a=1)._Namespace__attrs }}",
        "{% for x in [1] %}{{ loop['__class__'] }}{% endfor %}",
        "{% for x in secret %}{{ x }}{% endfor %}",
        "{{ secret ~ '' }}",
        "{{ secret | int }}",
        "{{ secret | length }}",
        "{{ secret == [secret] }}",
        "{{ [secret] | tojson }}",
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


def repeated(line: str, count: int = 400) -> str:
    return "".join(line.replace("#", str(number)) for number in range(count))


NEVER_ENDING = {
    "nested loops": loop(loop("")),
    "a loop over characters": "{% for a in long %}{% for b in long %}{% endfor %}{% endfor %}",
    "a filtered loop": loop("{% for r in rows if r.n == 2 %}{% endfor %}"),
    "a large body": loop("x" * 90_000),
    "much output": loop(loop("0123456789" * 99, 99), 99),
    "much little output": loop(loop("{{ 1 == 2 }}")),
    "a large set in a loop": loop("{% set x %}" + "x" * 90_000 + "{% endset %}"),
    "a filter of a set in a loop": loop("{% set x | title %}{{ long }}{% endset %}"),
    "a filter of a long text": loop("{% set x = long | upper %}"),
    "a method of a long text": loop("{% set x = long.title() %}"),
    "a long text compared": loop("{% if long == longer %}{% endif %}"),
    "a long text searched": loop(
        "{% if '" + "a" * 624 + "b" + "a" * 624 + "' in '" + "a" * 2499 + "' %}{% endif %}"
    ),
    "a long text stripped": loop("{% set x = long.strip() %}"),
    "a long text counted": loop("{% set x = words | wordcount %}"),
    "a long text split": loop("{% set x = words.split() %}"),
    "a long text in lines": loop("{% set x = lines | indent(1) %}"),
    "a long word looked for in a list": loop("{% if long in [longer] %}{% endif %}"),
    "many slices kept": repeated("{% set x# = long[1:] %}"),
    "many lists kept": repeated("{% set x# = range(9999) %}"),
    "many pieces kept": repeated("{% set x# = words.split() %}"),
    "many pairs kept": repeated("{% set x# = pairs.items() %}"),
    "JSON": loop("{% set x = rows | tojson %}"),
    "indented JSON": loop("{% set x = rows | tojson(indent=8) %}"),
    "much little JSON": loop(loop("{% set x = [] | tojson %}")),
    "much little indented JSON": loop(loop("{% set x = [] | tojson(1) %}")),
    "a wide indent of JSON": "{{ [1] | tojson(indent=1000000000) }}",
    "a sort": loop("{% set x = range(9999) | sort %}"),
    "a sort of long texts": loop("{% set x = [long, longer, long] | sort %}"),
    "a sum": loop("{% set x = range(9999) | sum %}"),
    "a maximum": loop("{% set x = range(9999) | max %}"),
    "a list made unique": loop("{% set x = range(9999) | unique %}"),
    "a list in lists": "{% set x = [1, 1] %}" + "{% set x = [x, x] %}" * 50 + "{{ x }}",
    "a tuple in tuples": "{% set x = (1, 1) %}" + "{% set x = (x, x) %}" * 50 + "{{ {x: 1} }}",
    "lists in lists compared": "{% set x = [1] %}{% set y = [1] %}"
    + "{% set x = [x, x] %}{% set y = [y, y] %}" * 50
    + "{{ x == y }}",
    "lists in lists looked for": "{% set x = [1] %}"
    + "{% set x = [x, x] %}" * 60
    + "{{ [x] in [x] }}",
    "lists in lists sorted": "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x | sort }}",
    "lists in lists joined": "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x | join }}",
    "a deep list": "{% set x = [1] %}" + "{% set x = [x] %}" * 400 + "{{ x }}",
    "a text doubled": "{% set x = 'ab' %}" + "{% set x = x ~ x %}" * 60,
    "a text doubled by +": "{% set x = 'ab' %}" + "{% set x = x + x %}" * 60,
    "a text doubled by set": "{% set x = 'ab' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "a text doubled by join": "{% set x = 'ab' %}" + "{% set x = [x, x] | join %}" * 60,
    "a list doubled": "{% set x = [1] %}" + "{% set x = x + x %}" * 60,
    "a text multiplied": "{{ 'a' * 1000000000 }}",
    "a list multiplied": "{{ [0] * 1000000000 }}",
    "a power": "{{ 10 ** (10 ** 9) }}",
    "a growing number": "{% set x = 9 %}" + "{% set x = x * x %}" * 60,
    "a long number": "{{ digits | int }}{{ digits | float }}{{ y }}",
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "a wide format of a filter": "{{ '%1000000000d' | format(1) }}",
    "a wide format of a test": "{{ '%1000000000d' is odd }}",
    "a width from an argument": "{{ '%*d' % (1000000000, 1) }}",
    "one argument many times": "{{ ('" + "%(x)s" * 1000 + "') % {'x': long} }}",
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
    "an indent of many lines": "{{ lines | indent(100) }}",
    "a precision": "{{ 5 | round(-1000000000) }}",
    "a range": "{{ range(1000000000) }}",
    "a range of large numbers": "{{ range(" + "9" * 4000 + ") }}",
    "a long chain": "{{ 1" + " + 1" * 2000 + " }}",
    "many conversions": "{{ a | upper }}" * 5000,
}
VALUES = {
    "long": "a" * 900_000,
    "longer": "a" * 899_999 + "b",
    "words": "aa " * 300_000,
    "lines": "\n" * 400_000,
    "digits": "9" * 900_000,
    "rows": [{"n": n, "tags": ["x"] * 3} for n in range(5000)],
    "pairs": {str(n): n for n in range(5000)},
}


@pytest.mark.parametrize("source", NEVER_ENDING.values(), ids=NEVER_ENDING.keys())
def test_no_template_takes_long_or_much(source: str) -> None:
    start = time.thread_time()
    refusal(source, **VALUES)
    assert time.thread_time() - start < 3
    tracemalloc.start()  # makes it several times slower
    try:
        refusal(source, **VALUES)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024 * 1024


@pytest.mark.parametrize(
    "source",
    [
        loop("{{ loop.index }}: {{ rows[0].name | upper }}\n", 5000),
        "{% for r in rows %}- {{ r.name | truncate(9) }}: {{ r.tags | join(', ') }}\n{% endfor %}",
        "{{ rows | tojson }}{{ row.tags | unique | sort | join(', ') }}",
        "{% for r in rows if 'x' in r.tags and r.name %}{{ r | tojson(indent=2) }}{% endfor %}",
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
    and or is defined odd row name tags x namespace(a=1) range(3) loop .index .items() .name ['x']
    [1:] |upper |join |first |sort |default(1) |tojson ~ + - * / // % ** == < ( ) [ ] { } , :
    . = 'a' "b" 1 2.5 none true .get('x') .split() __class__ - \n raw endraw * ** block
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
