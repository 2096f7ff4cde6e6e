"""Rows of the batch node, from lists and from files, their prompts, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.nodes.batch_support import BatchNode, Shelf, as_csv, described
from tests.nodes.servers import closed_port

MB = 1024 * 1024


def check_prompts(batch: BatchNode, expected: list[str], **given: Any) -> None:
    """Fail unless a batch asks just that, row by row, and says so."""
    outcome = batch.ok(**given)
    assert outcome.queries == expected
    assert sorted(batch.prompts) == sorted(expected)


# --- lists ---


@pytest.mark.parametrize(
    ("queries", "prompts"),
    [
        pytest.param(["one", "two"], ["one", "two"], id="texts"),
        pytest.param(["one"], ["one"], id="one_text"),
        pytest.param([1, 2.5, True], ["1", "2.5", "true"], id="numbers"),
        pytest.param('["one", "two"]', ["one", "two"], id="json_text"),
        pytest.param(['["one", "two"]'], ["one", "two"], id="json_text_in_a_list"),
        pytest.param(["['one', \"it's\"]"], ["one", "it's"], id="constant_list_of_dify"),
        pytest.param(["  one\n two "], ["  one\n two "], id="white_space_is_kept"),
        pytest.param(["{{ item }}", "{% x"], ["{{ item }}", "{% x"], id="not_a_template"),
        pytest.param(["漢字 😀", "ß"], ["漢字 😀", "ß"], id="beyond_ascii"),
    ],
)
def test_list_of_texts_is_asked_as_it_is(
    batch: BatchNode, queries: Any, prompts: list[str]
) -> None:
    check_prompts(batch, prompts, queries=queries)


@pytest.mark.parametrize(
    ("template", "prompts"),
    [
        pytest.param("{{ title }} in {{ lang }}", ["A in de", "B in fr"], id="columns"),
        pytest.param("{{ item.title }}", ["A", "B"], id="key_of_the_item"),
        pytest.param("{{ item['title'] | lower }}", ["a", "b"], id="filter"),
        pytest.param(
            "{% if lang == 'de' %}Hallo{% else %}Salut{% endif %} {{ title }}",
            ["Hallo A", "Salut B"],
            id="condition",
        ),
        pytest.param(
            "{% for tag in tags %}{{ tag }};{% endfor %}", ["x;y;", "z;"], id="loop_over_a_list"
        ),
        pytest.param("{{ more.deep }}", ["1", "2"], id="nested_key"),
        pytest.param(None, None, id="item_alone"),
    ],
)
def test_keys_of_an_object_make_the_prompt(
    batch: BatchNode, template: str | None, prompts: list[str] | None
) -> None:
    queries: list[dict[str, Any]] = [
        {"title": "A", "lang": "de", "tags": ["x", "y"], "more": {"deep": 1}},
        {"title": "B", "lang": "fr", "tags": ["z"], "more": {"deep": 2}},
    ]
    outcome = batch.ok(queries, prompt_template=template)
    if prompts is None:
        assert [json.loads(query) for query in outcome.queries] == queries
    else:
        assert outcome.queries == prompts
    assert sorted(batch.prompts) == sorted(outcome.queries)


def test_template_is_the_task_and_item_is_the_row(batch: BatchNode) -> None:
    check_prompts(
        batch,
        ["Translate: <b>Hi</b> & bye", "Translate: x"],
        queries=["<b>Hi</b> & bye", "x"],
        prompt_template="Translate: {{ item }}",
    )


def test_column_that_a_row_lacks_is_an_error_of_that_row_only(batch: BatchNode) -> None:
    queries = [{"a": 1, "b": 1}, {"a": 2}, {"a": 3, "b": 3}]
    outcome = batch.run(queries, prompt_template="{{ a }}-{{ b }}")
    assert outcome.statuses == ["ok", "error", "ok"]
    assert outcome.error_types == ["", "invalid_input", ""]
    assert "b" in outcome.rows[1]["error"]
    assert sorted(batch.prompts) == ["1-1", "3-3"]


def test_row_whose_prompt_cannot_be_made_is_an_error_of_that_row_only(batch: BatchNode) -> None:
    outcome = batch.run([{"a": 0}, {"a": 2}], prompt_template="{{ 4 / a }}")
    assert outcome.error_types == ["invalid_input", ""]
    assert batch.calls == 1


def test_blank_row_is_an_error_of_that_row_and_costs_nothing(batch: BatchNode) -> None:
    outcome = batch.run(["one", " \n", "three"])
    assert outcome.error_types == ["", "invalid_input", ""]
    assert batch.calls == 2


def test_prompt_above_a_megabyte_is_an_error_of_that_row(batch: BatchNode) -> None:
    outcome = batch.run(["x" * 400_000, "y"], prompt_template="{{ item }}{{ item }}{{ item }}")
    assert outcome.error_types == ["invalid_input", ""]
    assert batch.prompts == ["yyy"]


def test_schema_of_a_row_is_a_text_of_json(batch: BatchNode) -> None:
    batch.ok(["one"], json_schema='{"type": "object"}')
    assert batch.bodies[0]["response_format"]["json_schema"]["schema"] == {"type": "object"}


# --- files ---

PEOPLE = [["name", "city"], ["Jürgen", "Köln"], ["O'Neil, Ann", 'the "old" town'], ["Zoë", "a\nb"]]
GREETINGS = [f"{name} from {city}" for name, city in PEOPLE[1:]]
OBJECTS = [dict(zip(PEOPLE[0], row, strict=True)) for row in PEOPLE[1:]]
GREETING = "{{ name }} from {{ city }}"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"], ids=["comma", "semi", "tab", "bar"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_csv_with_any_usual_delimiter_is_read(
    batch: BatchNode, shelf: Shelf, delimiter: str, line_end: str
) -> None:
    file = shelf.put(as_csv(PEOPLE, delimiter, line_end), "people.csv")
    check_prompts(batch, GREETINGS, file=file, prompt_template=GREETING)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "cp1252", "latin-1"]
)
def test_csv_in_any_usual_encoding_is_read(batch: BatchNode, shelf: Shelf, encoding: str) -> None:
    text = as_csv(PEOPLE, ";")
    content = (
        b"\xff\xfe" + text.encode("utf-16-le")
        if encoding == "utf-16-le-bom"
        else text.encode(encoding)
    )
    file = shelf.put(content, "people.csv")
    check_prompts(batch, GREETINGS, file=file, prompt_template=GREETING)


@pytest.mark.parametrize("encoding", ["gb18030", "gbk"])
def test_chinese_csv_of_a_spreadsheet_is_read(
    batch: BatchNode, shelf: Shelf, encoding: str
) -> None:
    rows = [["标题", "内容"], ["订单已发货", "您的订单今天已经从上海仓库发出,请注意查收。"]]
    file = shelf.put(as_csv(rows).encode(encoding), "data.csv")
    check_prompts(
        batch,
        ["订单已发货: 您的订单今天已经从上海仓库发出,请注意查收。"],
        file=file,
        prompt_template="{{ 标题 }}: {{ 内容 }}",
    )


def test_csv_of_one_column_needs_no_template(batch: BatchNode, shelf: Shelf) -> None:
    file = shelf.put('question\nWhy?\n\n"How, then?"\n', "q.csv")
    check_prompts(batch, ["Why?", "How, then?"], file=file)


def test_column_with_a_space_in_its_name_is_an_item(batch: BatchNode, shelf: Shelf) -> None:
    file = shelf.put("first name,age\nAnn,3\n", "q.csv")
    check_prompts(batch, ["Ann 3"], file=file, prompt_template="{{ item['first name'] }} {{ age }}")


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        pytest.param("one\ntwo\n", ["one", "two"], id="lines"),
        pytest.param("one\r\n\r\n  \r\ntwo", ["one", "two"], id="blank_lines_are_no_rows"),
        pytest.param("\ufeffone\ntwo, three\n", ["one", "two, three"], id="byte_order_mark"),
        pytest.param('["no", "json"]\n{"a": 1}\n', ['["no", "json"]', '{"a": 1}'], id="as_it_is"),
        pytest.param("a\u2028b\x85c\x0cd\n", ["a\u2028b\x85c\x0cd"], id="other_separators"),
    ],
)
def test_text_file_has_a_row_in_each_line(
    batch: BatchNode, shelf: Shelf, content: str, prompts: list[str]
) -> None:
    check_prompts(batch, prompts, file=shelf.put(content, "rows.txt"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("people.jsonl", "\n".join(json.dumps(row) for row in OBJECTS)),
        ("people.jsonl", "\ufeff" + "\r\n\r\n".join(json.dumps(row) for row in OBJECTS) + "\r\n"),
        ("people.json", json.dumps(OBJECTS, indent=1)),
        ("people.json", "\ufeff\n" + json.dumps(OBJECTS, ensure_ascii=False)),
        ("PEOPLE.JSON", json.dumps(OBJECTS)),
        ("people.CSV", as_csv(PEOPLE)),
    ],
    ids=["jsonl", "jsonl_bom", "json", "json_bom", "upper_case_json", "upper_case_csv"],
)
def test_file_of_objects_is_read(batch: BatchNode, shelf: Shelf, name: str, content: str) -> None:
    file = shelf.put(content, name)
    check_prompts(batch, GREETINGS, file=file, prompt_template=GREETING)


@pytest.mark.parametrize(
    ("name", "content"),
    [("rows.jsonl", '"one"\n"two\\nlines"\n3\n'), ("rows.json", '["one", "two\\nlines", 3]')],
)
def test_file_of_json_texts_is_read(
    batch: BatchNode, shelf: Shelf, name: str, content: str
) -> None:
    check_prompts(batch, ["one", "two\nlines", "3"], file=shelf.put(content, name))


def test_file_and_list_together_are_one_batch(batch: BatchNode, shelf: Shelf) -> None:
    outcome = batch.ok(["one", "two"], file=shelf.put("three\nfour\n", "rows.txt"))
    assert sorted(outcome.queries) == ["four", "one", "three", "two"]
    assert batch.calls == 4


def test_file_is_accepted_as_a_list_of_one(batch: BatchNode, shelf: Shelf) -> None:
    check_prompts(batch, ["one"], file=[shelf.put("one\n", "rows.txt")])


def test_file_of_just_20_mb_is_read(batch: BatchNode, shelf: Shelf) -> None:
    line = "x" * 16_383 + "\n"
    content = line * 1280
    assert len(content) == 20 * MB
    outcome = batch.ok(file=shelf.put(content, "rows.txt"), output_format="none")
    assert outcome.values["total"] == 1280
    assert batch.calls == 1


# --- bad input: one clear sentence, nothing sent ---


@pytest.mark.parametrize(
    ("queries", "told"),
    [
        pytest.param([], ["queries", "file"], id="empty"),
        pytest.param(None, ["queries", "file"], id="nothing"),
        pytest.param("", ["queries", "file"], id="empty_text"),
        pytest.param("[]", ["queries"], id="empty_json_text"),
        pytest.param(["one", {"a": 1}], ["queries", "item 2", "object", "text"], id="mix"),
        pytest.param([{"a": 1}, "two"], ["queries", "item 2", "object", "text"], id="other_mix"),
        pytest.param(["one", None], ["queries", "item 2", "null"], id="null"),
        pytest.param(["one", ["two"]], ["queries", "item 2", "list"], id="list"),
        pytest.param({"a": 1}, ["queries", "list"], id="object"),
        pytest.param(7, ["queries", "list"], id="number"),
        pytest.param("Why is the sky blue?", ["queries", "list"], id="text"),
        pytest.param(['["one",]'], ["queries", "JSON"], id="broken_json"),
        pytest.param(["x" * 1_000_001], ["1,000,001", "1,000,000"], id="too_long"),
        pytest.param(["x"] * 100_001, ["100,000"], id="too_many"),
    ],
)
def test_list_that_is_no_list_of_rows_is_refused(
    batch: BatchNode, queries: Any, told: list[str]
) -> None:
    message = batch.refusal(queries)
    assert [part for part in told if part not in message] == [], message


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        pytest.param("a.csv", 'a,b\n1,2\n3,"4\n5,6\n', ["line 3", "quote"], id="open_quote"),
        pytest.param("a.csv", "a,b\n1,2\n3,4,5\n", ["line 3", "3 cells"], id="too_many_cells"),
        pytest.param("a.csv", 'a,b\n"1"x,2\n', ["line 2", "quote"], id="text_behind_quote"),
        pytest.param("a.csv", "a,a\n1,2\n", ["line 1", "'a'"], id="column_twice"),
        pytest.param("a.csv", "a,,c\n1,2,3\n", ["column 2"], id="column_without_name"),
        pytest.param("a.csv", "a,b\n", ["no rows"], id="header_alone"),
        pytest.param("a.csv", "", ["no rows"], id="empty_csv"),
        pytest.param("a.csv", b"a,b\n1,2\n\x00\x00,3\n", ["line 3", "NUL"], id="nul"),
        pytest.param("a.txt", " \n\n", ["no rows"], id="blank_txt"),
        pytest.param("a.txt", bytes(range(256)) * 8, ["UTF-8"], id="binary"),
        pytest.param("a.jsonl", '{"a": 1}\n{"a": \n', ["line 2", "JSON"], id="broken_jsonl"),
        pytest.param("a.jsonl", '{"a": 1}\n"b"\n', ["line 2", "text", "object"], id="mix"),
        pytest.param("a.jsonl", '{"a": NaN}\n', ["line 1", "JSON"], id="nan"),
        pytest.param("a.json", '["a", "b', ["item 2", "JSON"], id="broken_json"),
        pytest.param("a.json", '{"a": 1}', ["array"], id="no_array"),
        pytest.param("a.json", "[]", ["no rows"], id="empty_array"),
        pytest.param("a.json", '["a"] x', ["behind"], id="something_behind"),
        pytest.param("a.pdf", b"%PDF-1.7", [".csv", ".txt"], id="pdf"),
        pytest.param("a.xlsx", b"PK\x03\x04", ["CSV"], id="spreadsheet"),
        pytest.param("a.csv", b"PK\x03\x04aaaa", ["CSV"], id="spreadsheet_in_disguise"),
        pytest.param("a.png", b"\x89PNG\r\n\x1a\n", [".csv", ".txt"], id="picture"),
    ],
)
def test_file_that_cannot_be_read_is_refused_by_name(
    batch: BatchNode, shelf: Shelf, name: str, content: str | bytes, told: list[str]
) -> None:
    message = batch.refusal(file=shelf.put(content, name))
    assert [part for part in [name, *told] if part not in message] == [], message


@pytest.mark.parametrize("name", ["rows.txt", "rows.csv", "rows.jsonl", "rows.json"])
def test_file_of_30_mb_is_refused(batch: BatchNode, shelf: Shelf, name: str) -> None:
    message = batch.refusal(file=shelf.put(b'"ab"\n\n\n\n' * (30 * MB // 8), name))
    assert name in message
    assert "20 MB" in message


@pytest.mark.parametrize(
    "given",
    ["https://example.com/a.csv", 5, {"url": "x"}, [{}]],
    ids=["text", "number", "mapping", "mappings"],
)
def test_file_that_is_no_file_is_refused(batch: BatchNode, given: Any) -> None:
    assert "file" in batch.refusal(file=given)


def test_several_files_are_refused(batch: BatchNode, shelf: Shelf) -> None:
    message = batch.refusal(file=[shelf.put("a"), shelf.put("b")])
    assert "one file" in message
    assert shelf.server.seen == []


def test_file_that_cannot_be_had_is_refused_without_its_signature(batch: BatchNode) -> None:
    url = f"http://127.0.0.1:{closed_port()}/files/a?sign=do-not-show"
    message = batch.refusal(file=described(url, "lost.csv"))
    assert "lost.csv" in message
    assert "FILES_URL" in message
    assert "do-not-show" not in message


@pytest.mark.parametrize(
    ("template", "told"),
    [
        pytest.param("{{ item", ["line 1"], id="open_expression"),
        pytest.param("a\n{% for x in item %}", ["line 2", "endfor"], id="open_loop"),
        pytest.param("{{ item.__class__ }}", ["__class__"], id="class"),
        pytest.param("{{ ''.__class__.__mro__ }}", ["__"], id="mro"),
        pytest.param("{{ item | attr('__class__') }}", ["attr"], id="attr_filter"),
        pytest.param("{{ [].append(1) }}", ["append"], id="method"),
        pytest.param("{{ item.__init__.__globals__ }}", ["__"], id="globals"),
        pytest.param("{% include 'x' %}", ["include"], id="include"),
        pytest.param("{{ title }}", ["title", "item"], id="unknown_column"),
        pytest.param("{{ item | nofilter }}", ["nofilter"], id="unknown_filter"),
    ],
)
@pytest.mark.parametrize("source", ["queries", "file"])
def test_template_that_cannot_be_used_is_refused(
    batch: BatchNode, shelf: Shelf, template: str, told: list[str], source: str
) -> None:
    given: dict[str, Any] = {"queries": ["one", "two"]}
    if source == "file":
        given = {"file": shelf.put("one\ntwo\n")}
    message = batch.refusal(**given, prompt_template=template)
    assert "prompt_template" in message
    assert [part for part in told if part not in message] == [], message


def test_unknown_column_is_told_with_those_that_there_are(batch: BatchNode, shelf: Shelf) -> None:
    file = shelf.put(as_csv(PEOPLE), "people.csv")
    message = batch.refusal(file=file, prompt_template="{{ nmae }} from {{ city }}")
    assert "nmae" in message
    assert "name" in message.replace("nmae", "")
    assert "city" in message


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("concurrency", 0, ("1", "100")),
        ("concurrency", "0", ("1", "100")),
        ("concurrency", 101, ("1", "100")),
        ("concurrency", 2.5, ("1", "100")),
        ("concurrency", "many", ("1", "100")),
        ("concurrency", True, ("1", "100")),
        ("row_timeout_s", 0, ("1", "540")),
        ("row_timeout_s", 541, ("1", "540")),
        ("deadline_s", 0.9, ("1", "580")),
        ("deadline_s", 581, ("1", "580")),
        ("deadline_s", "nan", ("1", "580")),
        ("temperature", 2.1, ("0", "2")),
        ("max_tokens", 0, ("1", "1 000 000")),
        ("on_row_error", "fail", ("continue", "stop")),
        ("output_format", "xlsx", ("jsonl", "csv", "none")),
        ("cache", "never", ("use", "refresh", "bypass")),
    ],
)
def test_setting_out_of_range_is_refused_with_what_is_allowed(
    batch: BatchNode, name: str, given: Any, told: tuple[str, ...]
) -> None:
    message = batch.refusal(["one"], **{name: given})
    assert name in message
    assert str(given) in message or given is True
    assert [part for part in told if part not in message] == [], message


@pytest.mark.parametrize(
    ("options", "told"),
    [
        pytest.param("colour: red", ["colour", "max_inline_results", "top_p"], id="unknown_key"),
        pytest.param("timeout_s: 5", ["timeout_s", "max_retries"], id="key_of_another_node"),
        pytest.param("{top_p: ", ["options", "YAML"], id="broken"),
        pytest.param("- a\n- b", ["options", "mapping"], id="list"),
        pytest.param("max_retries: 11", ["max_retries", "0", "10"], id="max_retries"),
        pytest.param("response_format: xml", ["json_object"], id="response_format"),
        pytest.param("max_inline_results: 10001", ["0", "10 000"], id="too_many_inline"),
        pytest.param("max_inline_results: -1", ["0", "10 000"], id="negative_inline"),
        pytest.param("top_p: 1.5", ["top_p", "0", "1"], id="top_p"),
    ],
)
def test_bad_option_is_refused(batch: BatchNode, options: str, told: list[str]) -> None:
    message = batch.refusal(["one"], options=options)
    assert [part for part in told if part not in message] == [], message


@pytest.mark.parametrize("schema", ["{", "[]", '{"type": "nothing"}'])
def test_schema_that_is_none_is_refused(batch: BatchNode, schema: str) -> None:
    assert "json_schema" in batch.refusal(["one"], json_schema=schema)


def test_bad_parameter_is_refused_before_the_file_is_fetched(
    batch: BatchNode, shelf: Shelf
) -> None:
    batch.refusal(file=shelf.put("one\n"), concurrency=0)
    batch.refusal(file=shelf.put("one\n"), prompt_template="{{ item")
    assert shelf.server.seen == []
