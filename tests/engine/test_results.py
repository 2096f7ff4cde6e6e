"""Result files: their spelling, their parts, and the way back into a batch."""

import csv
import io
import json
import tempfile
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holysheep.results import (
    FIELDS,
    ResultFile,
    RowResult,
    is_result_row,
    json_line,
    pieces_of,
    result_from,
)
from holysheep.rows import Row, rows_of_file

Format = Literal["jsonl", "csv"]
FORMATS: tuple[Format, ...] = ("jsonl", "csv")
each_format = pytest.mark.parametrize("form", FORMATS)

OK = RowResult(
    0,
    "ok",
    query="Where is Ulm?",
    response="On the Danube.",
    model="gpt-4.1",
    latency_ms=1234.567,
    tokens_used=15,
    cost_usd=Decimal("0.000015"),
)
AWKWARD = [
    'a "quoted" word, with a comma; and a semicolon',
    "two\nlines",
    "two\r\nlines",
    "old Mac\rline",
    "\ttab at the start",
    " spaces around ",
    "null",
    "",
    "{{ item }}",
    "天空 🐑 e\u0301",
    "separators \u2028 \u2029 \x85 \x0b \x0c \x1c \x1e",
    "\ufeffmark first",
    '\\n \\" \\u0041',
    "'=1+1",
]


def file_of(folder: Path, form: Format, results: list[RowResult], **how: Any) -> list[Path]:
    file = ResultFile(folder, form, **how)
    for result in results:
        file.write(result)
    file.close()
    return file.paths


def rows_of(path: Path) -> list[Row]:
    return list(rows_of_file(path.read_bytes(), path.name))


def numbered(count: int, size: int = 20) -> list[RowResult]:
    return [
        RowResult(number, "ok", query=f"q{number}", response=f"{number} " + "x" * size)
        for number in range(count)
    ]


# --- spelling -----------------------------------------------------------------------------------


def test_a_row_has_the_keys_of_the_contract_in_their_order() -> None:
    keys = list(OK.to_json())
    assert keys == [
        *("index", "status", "query", "response", "error", "error_type"),
        *("model", "latency_ms", "tokens_used", "cost_usd", "cached"),
    ]
    assert keys == list(FIELDS)


def test_json_lines_have_one_object_a_line_with_numbers_and_booleans(tmp_path: Path) -> None:
    failed = RowResult(1, "error", "q", error="no", error_type="server_error", cost_usd=None)
    (path,) = file_of(tmp_path, "jsonl", [OK, failed])
    content = path.read_bytes()
    assert content.endswith(b"}\n")
    assert content.count(b"\n") == 2
    assert [json.loads(line) for line in content.splitlines()] == [
        {
            "index": 0,
            "status": "ok",
            "query": "Where is Ulm?",
            "response": "On the Danube.",
            "error": "",
            "error_type": "",
            "model": "gpt-4.1",
            "latency_ms": 1234.567,
            "tokens_used": 15,
            "cost_usd": 0.000015,
            "cached": False,
        },
        {
            "index": 1,
            "status": "error",
            "query": "q",
            "response": "",
            "error": "no",
            "error_type": "server_error",
            "model": "",
            "latency_ms": 0.0,
            "tokens_used": 0,
            "cost_usd": None,
            "cached": False,
        },
    ]


def test_csv_is_what_a_spreadsheet_opens(tmp_path: Path) -> None:
    cached = RowResult(1, "ok", 'a "b", c', "two\nlines", cost_usd=Decimal(0), cached=True)
    unpriced = RowResult(2, "ok", "q", "r", cost_usd=None)
    (path,) = file_of(tmp_path, "csv", [OK, cached, unpriced])
    content = path.read_bytes()
    assert content.startswith(b"\xef\xbb\xbfindex,status,query,"), "UTF-8 with its mark"
    table = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    assert table[0] == list(FIELDS)
    figures = ["1234.567", "15", "0.000015", "false"]
    assert table[1][:4] == ["0", "ok", "Where is Ulm?", "On the Danube."]
    assert table[1][7:] == figures, "no scientific notation"
    assert table[2][2:4] == ['a "b", c', "two\nlines"]
    assert table[2][9:] == ["0", "true"]
    assert table[3][9] == "", "an unknown cost is not 0"
    assert content.endswith(b"\r\n")


@each_format
def test_any_script_can_be_read_in_the_file_itself(tmp_path: Path, form: Format) -> None:
    (path,) = file_of(tmp_path, form, [RowResult(0, "ok", "天空 🐑", "é")])
    assert "天空 🐑" in path.read_text(encoding="utf-8")


def test_a_tiny_cost_is_written_out_in_csv(tmp_path: Path) -> None:
    (path,) = file_of(tmp_path, "csv", [RowResult(0, "ok", cost_usd=Decimal("1E-7"))])
    assert path.read_bytes().endswith(b",0.0000001,false\r\n")


@each_format
def test_half_of_a_character_does_no_harm(tmp_path: Path, form: Format) -> None:
    (path,) = file_of(tmp_path, form, [RowResult(0, "ok", "q", "cut \ud83d off")])
    assert rows_of(path)[0].earlier is not None
    assert " off" in path.read_text(encoding="utf-8")


@each_format
def test_a_file_of_one_part_has_a_plain_name(tmp_path: Path, form: Format) -> None:
    (path,) = file_of(tmp_path, form, numbered(3))
    assert path == tmp_path / f"results.{form}"
    assert list(tmp_path.iterdir()) == [path]


@each_format
def test_without_a_row_there_is_no_file(tmp_path: Path, form: Format) -> None:
    assert file_of(tmp_path, form, []) == []
    assert list(tmp_path.iterdir()) == []


# --- parts --------------------------------------------------------------------------------------


@each_format
@pytest.mark.parametrize("max_bytes", [300, 500, 1000, 4096])
def test_no_part_is_larger_than_allowed_and_no_row_is_lost(
    tmp_path: Path, form: Format, max_bytes: int
) -> None:
    results = numbered(100)
    paths = file_of(tmp_path, form, results, max_bytes=max_bytes)
    assert len(paths) > 1
    assert max(path.stat().st_size for path in paths) <= max_bytes
    assert [path.name for path in paths] == [
        f"results-{number}.{form}" for number in range(1, len(paths) + 1)
    ]
    found = [row.earlier.response for path in paths for row in rows_of(path) if row.earlier]
    assert found == [result.response for result in results]
    for path, following in pairwise(paths):
        free = max_bytes - path.stat().st_size
        lines = following.read_bytes().splitlines(keepends=True)
        assert len(lines[0 if form == "jsonl" else 1]) > free, "a part ends where the next is long"


@each_format
def test_a_row_that_just_fits_is_not_moved(tmp_path: Path, form: Format) -> None:
    results = numbered(2)
    (whole,) = file_of(tmp_path, form, results)
    size = whole.stat().st_size
    assert len(file_of(tmp_path, form, results, name="fits", max_bytes=size)) == 1
    assert len(file_of(tmp_path, form, results, name="no", max_bytes=size - 1)) == 2


@each_format
def test_bytes_are_counted_and_not_characters(tmp_path: Path, form: Format) -> None:
    results = [RowResult(number, "ok", response="🐑" * 50) for number in range(10)]
    paths = file_of(tmp_path, form, results, max_bytes=1000)
    assert max(path.stat().st_size for path in paths) <= 1000


@each_format
def test_every_part_can_be_read_by_itself(tmp_path: Path, form: Format) -> None:
    paths = file_of(tmp_path, form, numbered(50), max_bytes=900)
    for path in paths:
        rows = rows_of(path)
        assert rows
        assert all(row.earlier is not None for row in rows)
        if form == "csv":
            assert path.read_bytes().startswith(b"\xef\xbb\xbfindex,")


@each_format
def test_a_row_that_is_larger_than_a_part_has_one_of_its_own(tmp_path: Path, form: Format) -> None:
    results = [*numbered(2), RowResult(2, "ok", response="y" * 5000), *numbered(2)]
    paths = file_of(tmp_path, form, results, max_bytes=1000)
    assert [len(rows_of(path)) for path in paths] == [2, 1, 2]


@each_format
def test_pieces_are_the_content_in_order(tmp_path: Path, form: Format) -> None:
    (path,) = file_of(tmp_path, form, numbered(50))
    pieces = list(pieces_of(path, 97))
    assert b"".join(pieces) == path.read_bytes()
    assert {len(piece) for piece in pieces[:-1]} == {97}
    assert 0 < len(pieces[-1]) <= 97


# --- the way back -------------------------------------------------------------------------------


@each_format
@pytest.mark.parametrize("text", AWKWARD, ids=range(len(AWKWARD)))
@pytest.mark.parametrize("field", ["query", "response", "error"])
def test_any_text_comes_back_as_it_was(tmp_path: Path, form: Format, text: str, field: str) -> None:
    result = RowResult(0, "ok", **{field: text})
    (path,) = file_of(tmp_path, form, [result, OK])
    first, second = rows_of(path)
    assert first.earlier == result
    assert second.earlier is not None
    assert second.earlier.response == OK.response


# NUL is not written by any model and not taken from any file.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
RESULTS = st.builds(
    RowResult,
    index=st.just(0),
    status=st.sampled_from(["ok", "error", "skipped"]),
    query=TEXTS,
    response=TEXTS,
    error=TEXTS,
    error_type=st.sampled_from(["", "server_error", "timeout"]),
    model=TEXTS,
    latency_ms=st.integers(0, 10**9).map(lambda number: number / 1000),
    tokens_used=st.integers(0, 10**9),
    cost_usd=st.none() | st.integers(0, 10**12).map(lambda number: Decimal(number) / 10**9),
    cached=st.booleans(),
)


@each_format
@settings(deadline=None, max_examples=150)
@given(results=st.lists(RESULTS, min_size=1, max_size=8), max_bytes=st.integers(100, 2000))
def test_a_result_file_is_read_back_as_it_was_written(
    form: Format, results: list[RowResult], max_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = file_of(Path(folder), form, results, max_bytes=max_bytes)
        found = [row.earlier for path in paths for row in rows_of(path)]
    assert len(found) == len(results)
    for earlier, result in zip(found, results, strict=True):
        assert earlier is not None
        assert {**earlier.to_json(), "index": 0} == result.to_json()


def test_a_line_of_json_is_that_of_the_file(tmp_path: Path) -> None:
    (path,) = file_of(tmp_path, "jsonl", [OK])
    assert path.read_bytes() == json_line(OK)


def test_figures_that_a_spreadsheet_has_spoilt_count_as_0_and_the_answer_stays() -> None:
    columns = {**OK.to_json(), "latency_ms": "1,234.5", "tokens_used": "15 tokens", "cost_usd": "-"}
    found = result_from({**columns, "cached": "TRUE"}, 7)
    assert (found.index, found.response, found.cached) == (7, "On the Danube.", True)
    assert (found.latency_ms, found.tokens_used, found.cost_usd) == (0, 0, None)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-5", "1e400", "x" * 1000, None, [], {}])
def test_no_figure_of_a_file_is_beyond_reason(value: Any) -> None:
    columns = {**OK.to_json(), "latency_ms": value, "tokens_used": value, "cost_usd": value}
    found = result_from(columns, 0)
    assert (found.latency_ms, found.tokens_used, found.cost_usd) == (0, 0, None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"status": "skipped"}, True),
        ({"status": "open"}, False),
        ({"status": None}, False),
        ({"status": ["ok"]}, False),
        ({"extra": "column"}, True),
    ],
    ids=["own", "skipped", "another_status", "null", "a_list", "more_columns"],
)
def test_a_users_own_table_is_not_taken_for_a_result_file(
    changes: dict[str, Any], expected: bool
) -> None:
    assert is_result_row({**OK.to_json(), **changes}) is expected


@pytest.mark.parametrize("missing", ["index", "status", "query", "response", "error_type"])
def test_a_table_without_one_of_its_columns_is_no_result_file(missing: str) -> None:
    columns = OK.to_json()
    del columns[missing]
    assert is_result_row(columns) is False


def test_a_nul_in_an_answer_does_not_spoil_the_file(tmp_path: Path) -> None:
    result = RowResult(0, "ok", "q", response="a\0b", cost_usd=None)
    (path,) = file_of(tmp_path, "csv", [result])
    (row,) = rows_of(path)
    assert row.earlier is not None
    assert row.earlier.response == "a\ufffdb"
    (path,) = file_of(tmp_path, "jsonl", [result])
    assert rows_of(path)[0].earlier == result
