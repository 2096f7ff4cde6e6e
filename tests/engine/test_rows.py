"""The input rows of a batch: lists and files of every kind, and what is refused of them."""

import csv
import io
import json
import tracemalloc
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holysheep import config
from holysheep.errors import InputError
from holysheep.results import FIELDS, FileFormat, ResultFile, RowResult, Status
from holysheep.rows import Row, joined, rows_of_file, rows_of_queries
from tests.engine.test_types import json_values

any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


def items(rows: Any) -> list[Any]:
    return [row.item for row in rows]


def read(content: bytes | str, filename: str) -> list[Row]:
    return list(rows_of_file(content.encode() if isinstance(content, str) else content, filename))


def refusal(content: bytes | str, filename: str) -> str:
    with pytest.raises(InputError) as caught:
        read(content, filename)
    message = str(caught.value)
    assert message.startswith("file: ")
    assert repr(filename) in message
    assert "\n" not in message
    return message


def csv_text(records: list[list[str]], delimiter: str = ",", end: str = "\r\n") -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator=end).writerows(records)
    return file.getvalue()


class TestQueries:
    def test_texts(self) -> None:
        assert list(rows_of_queries(["a", ""])) == [Row(0, "a"), Row(1, "")]

    def test_objects_offer_their_keys(self) -> None:
        value = {"name": "Ada", "age": 36}
        assert list(rows_of_queries([value])) == [Row(0, value, value)]

    def test_numbers_and_booleans_are_the_texts_that_json_spells(self) -> None:
        assert items(rows_of_queries([1, 2.5, True, "x"])) == ["1", "2.5", "true", "x"]

    @pytest.mark.parametrize(
        "queries",
        [
            '["a", "b"]',
            ['["a", "b"]'],
            [' [\n"a",\t"b"] '],
            ["['a', 'b']"],
            ("a", "b"),
        ],
        ids=["text", "text in a list", "with white space", "as Python spells it", "tuple"],
    )
    def test_a_list_is_found_in_what_the_host_makes_of_it(self, queries: Any) -> None:
        assert items(rows_of_queries(queries)) == ["a", "b"]

    @pytest.mark.parametrize(
        "text", ["hello", '{"a": 1}', "[INST] hello [/INST]", "[1] says so", '["a"] is a list', ""]
    )
    def test_another_single_text_is_one_row(self, text: str) -> None:
        assert items(rows_of_queries([text])) == [text]

    @pytest.mark.parametrize("queries", ["hello", "", None, {"a": 1}, 7, '{"a": 1}'], ids=repr)
    def test_what_is_no_list_is_refused(self, queries: Any) -> None:
        with pytest.raises(InputError, match=r"^queries: must be a list of texts or of objects"):
            rows_of_queries(queries)

    @pytest.mark.parametrize("queries", [[], "[]", ["[]"]], ids=repr)
    def test_an_empty_list_is_refused(self, queries: Any) -> None:
        with pytest.raises(InputError, match=r"^queries: has no rows, expected a list"):
            rows_of_queries(queries)

    @pytest.mark.parametrize(
        "text", ['["a" "b"]', '[{"a": NaN}]', "[{'a': b}]", '["a", ["b"]', "['a' 'b']"]
    )
    def test_a_broken_array_is_not_taken_for_a_text(self, text: str) -> None:
        with pytest.raises(InputError, match=r"^queries: looks like a JSON array, but is none: "):
            rows_of_queries([text])

    @pytest.mark.parametrize(
        ("item", "what"),
        [
            (None, "is null, but must be a text or an object"),
            (["x"], "is a list, but must be a text or an object"),
            ({"x": 1}, "is an object, but the first row is a text: all must be alike"),
            (float("nan"), "holds what is no JSON, or is nested too deeply"),
            (object(), "holds what is no JSON, or is nested too deeply"),
            (10**4000, "holds what is no JSON, or is nested too deeply"),
        ],
        ids=["null", "list", "object", "nan", "no value", "huge"],
    )
    def test_an_item_of_another_kind_is_refused(self, item: Any, what: str) -> None:
        with pytest.raises(InputError) as caught:
            list(rows_of_queries(["a", item]))
        assert str(caught.value) == f"queries: item 2 {what}."

    @pytest.mark.parametrize("value", [{"a": {1, 2}}, {1: "a"}, {"a": float("inf")}], ids=repr)
    def test_objects_that_are_no_json_are_refused(self, value: Any) -> None:
        with pytest.raises(InputError, match="item 1 holds what is no JSON"):
            list(rows_of_queries([value]))

    def test_halves_of_characters_are_joined(self) -> None:
        assert items(rows_of_queries(["\ud83d\ude00"])) == ["😀"]

    def test_results_of_an_earlier_batch_are_objects_like_others(self) -> None:
        result = RowResult(0, "ok", "q", "answer").to_json()
        (row,) = rows_of_queries([result])
        assert (row.item, row.earlier) == (result, None)


class TestText:
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
    def test_each_line_that_is_not_blank_is_a_row(self, end: str) -> None:
        content = end.join(["one", "", " two ", "  \t", "three\u2028four"])
        rows = read(content, "a.txt")
        assert items(rows) == ["one", " two ", "three\u2028four"]
        assert [row.index for row in rows] == [0, 1, 2]
        assert not any(row.columns for row in rows)

    def test_lines_of_json_stay_text(self) -> None:
        assert items(read('{"a": 1}\n', "a.txt")) == ['{"a": 1}']

    def test_bytes_that_are_no_text_are_refused(self) -> None:
        assert "line 2 of 'a.txt' holds a NUL character" in refusal("a\nb\0c", "a.txt")


RECORDS = {
    "utf-8": [["名前", "text"], ["Zoë", "“quoted” 😀"], ["Łódź", "да"]],
    "cp1252": [["Name", "Prüfung"], ["Müller", "Wie schön ist “München” – für 5 €?"], ["a", "b"]],
    "latin-1": [["nom", "texte"], ["José", "Ça va? Déjà vu, à bientôt"], ["Zoë", "naïve"]],
    "gb18030": [["名称", "内容"], ["北京", "请把这句话翻译成英文。"], ["上海", "今天天气怎么样?"]],
    "shift_jis": [["名前", "本文"], ["東京", "今日は天気がいいですね。"], ["大阪", "カタカナの表"]],
    "cp1251": [["вопрос", "язык"], ["Что такое искусственный интеллект?", "русский"]],
    "cp1250": [["pytanie", "język"], ["Zażółć gęślą jaźń", "polski"]],
    "big5": [["名稱", "內容"], ["臺北", "請把這句話翻譯成英文。今天天氣很好"]],
    "cp949": [["이름", "내용"], ["서울", "안녕하세요 오늘 날씨가 좋네요"]],
}
UNICODE = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]
DELIMITERS = pytest.mark.parametrize(
    "delimiter", [",", ";", "\t", "|"], ids=["comma", "semicolon", "tab", "bar"]
)


class TestEncodings:
    @DELIMITERS
    @pytest.mark.parametrize("encoding", [*RECORDS, *UNICODE[1:]])
    def test_a_csv_is_read_in_any_encoding_with_any_delimiter(
        self, encoding: str, delimiter: str
    ) -> None:
        header, *records = RECORDS.get(encoding, RECORDS["utf-8"])
        content = csv_text([header, *records], delimiter).encode(encoding)
        rows = read(content, "a.csv")
        assert items(rows) == [dict(zip(header, record, strict=True)) for record in records]
        assert all(row.columns == row.item for row in rows)

    @pytest.mark.parametrize("encoding", UNICODE)
    @pytest.mark.parametrize("filename", ["a.txt", "a.jsonl", "a.json"])
    def test_other_files_too(self, encoding: str, filename: str) -> None:
        text = {"a.txt": "é\n😀", "a.jsonl": '"é"\n"😀"', "a.json": '["é", "😀"]'}[filename]
        assert items(read(text.encode(encoding), filename)) == ["é", "😀"]

    @pytest.mark.parametrize("sign", ["£", "°C", "it’s", "café", "“a”", "5 €", "Ü"])
    def test_a_few_signs_in_plain_text_are_western(self, sign: str) -> None:
        assert items(read(f"plain\n1 {sign} 2\n".encode("cp1252"), "a.txt"))[1] == f"1 {sign} 2"

    def test_many_signs_in_plain_text_are_too(self) -> None:
        lines = [f"{number} it’s £{number} at 20 °C, a naïve résumé" for number in range(200)]
        assert items(read("\n".join(lines).encode("cp1252"), "a.txt")) == lines

    def test_what_is_not_ascii_may_come_late(self) -> None:
        lines = ["plain text"] * 20_000 + RECORDS["gb18030"][1] + RECORDS["gb18030"][2]
        assert items(read("\n".join(lines).encode("gb18030"), "a.txt")) == lines

    @pytest.mark.parametrize("encoding", ["gb18030", "shift_jis", "cp1252"])
    def test_a_long_line_may_be_cut_for_the_sample(self, encoding: str) -> None:
        record = "".join(RECORDS[encoding][1])
        value = [record] * 5000
        content = json.dumps(value, ensure_ascii=False).encode(encoding)
        assert items(read(content, "a.json")) == value

    def test_broken_utf8_is_not_taken_for_something_else(self) -> None:
        content = "zoë, ädä, öl\nplain\nÜbel".encode() + b"\xfc" + "l, größe".encode()
        assert "line 3 of 'a.txt' is not valid UTF-8" in refusal(content, "a.txt")

    @pytest.mark.parametrize(
        "content",
        [b"\xff\xfea\x00b", b"\xfe\xff\xd8\x00\x00a", b"\xef\xbb\xbfa\xff"],
        ids=["half a unit", "half a character", "after a mark"],
    )
    def test_a_mark_at_the_start_binds(self, content: bytes) -> None:
        assert "is not valid UTF" in refusal(content, "a.txt")

    @pytest.mark.parametrize("content", [b"\x81\x8d\x8f\x90\xff" * 20, bytes(range(128, 256)) * 3])
    def test_what_fits_no_encoding_is_refused(self, content: bytes) -> None:
        assert "'a.txt' is text in an unknown encoding, or no text" in refusal(content, "a.txt")

    def test_utf16_without_a_mark_is_refused(self) -> None:
        assert "NUL character" in refusal("name\nAda\n".encode("utf-16-le"), "a.csv")

    @settings(max_examples=200)
    @given(content=st.binary(max_size=200), suffix=st.sampled_from(["txt", "csv", "json", ""]))
    def test_bytes_of_any_kind_are_read_or_refused(self, content: bytes, suffix: str) -> None:
        try:
            rows = read(content, f"a.{suffix}")
        except InputError:
            return
        for row in rows:
            json.dumps(row.item, ensure_ascii=False).encode()


class TestCsv:
    def test_the_one_column_of_a_file_is_its_text(self) -> None:
        assert read("q\na\nb\n", "a.csv") == [Row(0, "a", {"q": "a"}), Row(1, "b", {"q": "b"})]

    @settings(max_examples=150, deadline=None)
    @given(
        table=st.integers(1, 4).flatmap(
            lambda width: st.lists(
                st.lists(any_text, min_size=width, max_size=width), min_size=1, max_size=5
            )
        ),
        delimiter=st.sampled_from(",;\t|"),
        end=st.sampled_from(["\n", "\r\n", "\r"]),
    )
    def test_what_the_csv_module_writes_is_read_back(
        self, table: list[list[str]], delimiter: str, end: str
    ) -> None:
        names = [f"name {number}" for number in range(len(table[0]))]
        file = io.StringIO()
        csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(
            [names, *table]
        )
        rows = read(file.getvalue(), "a.csv")
        assert [list(row.columns.values()) for row in rows] == table
        assert all(list(row.columns) == names for row in rows)

    @settings(max_examples=100, deadline=None)
    @given(table=st.lists(st.tuples(any_text, any_text), min_size=1, max_size=5))
    def test_so_is_what_it_quotes_only_where_it_must(self, table: list[tuple[str, str]]) -> None:
        text = csv_text([["a", "b"], *map(list, table)])
        assert [tuple(row.columns.values()) for row in read(text, "a.csv")] == table

    @DELIMITERS
    def test_quotes_hide_delimiters_line_breaks_and_quotes(self, delimiter: str) -> None:
        records = [["a;b,c|d\te", 'say "hi"'], ["two\r\nlines\n\rand more", ""]]
        text = csv_text([["x,;|\t", "y"], *records], delimiter)
        assert [list(row.columns.values()) for row in read(text, "a.csv")] == records

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("id;text\n1;a, b, c\n2;d, e\n", {"id": "1", "text": "a, b, c"}),
            ("id;question, if any;answer\n1;foo;bar\n", {"id": "1", "answer": "bar"}),
            ("price;name\n1,5;x\n2,5;y\n", {"price": "1,5"}),
            ("a\tb\n1;2,3\t4\n", {"a": "1;2,3"}),
            ("q\nHello, world\nyes; no, really\n", {"q": "Hello, world"}),
        ],
        ids=["prose", "header", "decimal", "tab", "one column"],
    )
    def test_the_delimiter_is_found(self, text: str, expected: dict[str, str]) -> None:
        first = read(text, "a.csv")[0]
        assert first.columns.items() >= expected.items()

    def test_one_column_without_quotes_may_hold_any_sign(self) -> None:
        texts = ["plain"] * 200 + ["Hello, world", "yes; no"]
        assert items(read("\n".join(["q", *texts]), "a.csv")) == texts

    def test_a_header_alone_is_refused(self) -> None:
        assert "has no rows, expected a header and at least one" in refusal("a,b\n", "a.csv")

    def test_a_tsv_is_divided_by_tabs_where_other_signs_fit_too(self) -> None:
        assert items(read("a,b,c\td\n1,2,3\t4\n", "a.tsv")) == [{"a,b,c": "1,2,3", "d": "4"}]

    def test_a_record_with_fewer_cells_lacks_those_columns(self) -> None:
        assert items(read("a,b\n1\n2,3\n", "a.csv")) == [{"a": "1"}, {"a": "2", "b": "3"}]

    def test_blank_lines_are_no_rows(self) -> None:
        assert items(read("\n\na,b\n\n1,2\n   \n3,4\n\n", "a.csv")) == [
            {"a": "1", "b": "2"},
            {"a": "3", "b": "4"},
        ]

    def test_a_cell_of_a_megabyte(self) -> None:
        cell = "long, " * 180_000
        assert read(f'a,b\n1,"{cell}"\n', "a.csv")[0].columns["b"] == cell

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            (
                "a,b\n1,2\n\n1,2,3\n",
                "line 4 of 'a.csv' has 3 cells, but the header only 2:"
                " a cell that contains a comma belongs in double quotes",
            ),
            ('a;b\n"x\ny";2\n1;2;3\n', "line 4 of 'a.csv' has 3 cells"),
            ('a,b\n1,2\n"open,3\n4,5\n', "line 3 of 'a.csv' opens a double quote that is never"),
            ('a,b\n"x" y,2\n', "line 2 of 'a.csv' has text behind a closing double quote"),
            ("a,b\n1,2\0\n", "line 2 of 'a.csv' holds a NUL character"),
            ("a,b,a \n1,2,3\n", "line 1 of 'a.csv' is the header, but two columns are named 'a'"),
            ("a,,b\n1,2,3\n", "line 1 of 'a.csv' is the header, but column 2 has no name"),
            (",,\n  \na,\n1,2\n", "line 3 of 'a.csv' is the header, but column 2 has no name"),
        ],
        ids=["more", "more below", "open", "behind", "nul", "twice", "nameless", "below blanks"],
    )
    def test_what_is_malformed_is_refused_with_its_line(self, text: str, what: str) -> None:
        assert what in refusal(text, "a.csv")

    def test_a_cell_without_an_end_does_not_grow_for_ever(self) -> None:
        text = 'a,b\n1,"' + "x\n" * (5 * 1024 * 1024)
        assert "line 2 of 'a.csv' begins a cell of more than" in refusal(text, "a.csv")


class TestJsonLines:
    def test_texts_numbers_and_blank_lines(self) -> None:
        assert items(read('"a"\r\n\r\n1\ntrue\n', "a.jsonl")) == ["a", "1", "true"]

    @given(values=st.lists(st.dictionaries(any_text, json_values, max_size=3), min_size=1))
    def test_objects_are_read_back(self, values: list[Any]) -> None:
        text = "\n".join(json.dumps(value) for value in values)
        assert items(read(text, "a.ndjson")) == values

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ('{"a": 1}\n\n{"a": }\n', "line 3 of 'a.jsonl' is no JSON: expecting value at column"),
            ('{"a": NaN}\n', "line 1 of 'a.jsonl' is no JSON: NaN is no JSON"),
            ('{"a": 1e999}\n', "line 1 of 'a.jsonl' holds what is no JSON"),
            ("[" * 90_000, "line 1 of 'a.jsonl' is no JSON: it is nested too deeply"),
            ('{"a":' * 200 + "1" + "}" * 200, "line 1 of 'a.jsonl' holds what is no JSON, or is"),
            ("9" * 5000, "line 1 of 'a.jsonl' is no JSON: it has a number of too many digits"),
            ('"a"\n{"a": 1}\n', "line 2 of 'a.jsonl' is an object, but the first row is a text"),
            ('{"a": 1}\n"a"\n', "line 2 of 'a.jsonl' is a text, but the first row is an object"),
            ('["a", "b"]\n', "is a list, but must be a text or an object: a file that is one"),
            ("null\n", "line 1 of 'a.jsonl' is null"),
            ("\n \n", "'a.jsonl' has no rows, expected a JSON text or object in each line"),
        ],
        ids=lambda text: text[:12],
    )
    def test_a_line_that_is_malformed_is_refused(self, text: str, what: str) -> None:
        assert what in refusal(text, "a.jsonl")


class TestJsonArrays:
    @settings(max_examples=60, deadline=None)
    @given(
        values=st.lists(st.dictionaries(any_text, json_values, max_size=3), min_size=1),
        indent=st.sampled_from([None, 0, 2]),
        piece=st.integers(1, 9),
    )
    def test_elements_are_read_back_wherever_a_piece_ends(
        self, values: list[Any], indent: int | None, piece: int
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("holysheep.rows._PIECE", piece)
            assert items(read(json.dumps(values, indent=indent), "a.json")) == values

    @pytest.mark.parametrize("piece", range(1, 12))
    def test_numbers_are_not_cut(self, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("holysheep.rows._PIECE", piece)
        text = ' [ 12.50 ,-3e-7, 100,true , "x", 1234567890123 ] \n'
        assert items(read(text, "a.json")) == [
            "12.5",
            "-3e-07",
            "100",
            "true",
            "x",
            "1234567890123",
        ]

    def test_an_element_larger_than_a_piece(self) -> None:
        value = [{"text": "x" * 300_000}, {"text": "y"}]
        assert items(read(json.dumps(value), "a.json")) == value

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ('{"rows": ["a"]}', "'a.json' must be a JSON array, such as"),
            ('"a"', "'a.json' must be a JSON array"),
            ("", "'a.json' has no rows, expected an array of texts or of objects"),
            (" [ ] ", "'a.json' has no rows"),
            ("[", "item 1 of 'a.json' is no JSON: expecting value"),
            ('["a"', "item 1 of 'a.json' is no JSON: expecting ',' or ']'"),
            ('["a" "b"]', "item 1 of 'a.json' is no JSON: expecting ',' or ']'"),
            ('["a",]', "item 2 of 'a.json' is no JSON"),
            ('["a", NaN]', "item 2 of 'a.json' is no JSON: NaN is no JSON"),
            ('["a", ["b"]]', "item 2 of 'a.json' is a list"),
            ('["a", null]', "item 2 of 'a.json' is null"),
            ('["a", {"b": 1}]', "item 2 of 'a.json' is an object, but the first row is a text"),
            ("[" * 90_000, "item 1 of 'a.json' is no JSON: it is nested too deeply"),
            ('["a"] x', "'a.json' has something behind the end of its JSON array"),
            ('["a"]' + " " * 200_000 + "x", "'a.json' has something behind the end"),
        ],
        ids=lambda text: text[:12],
    )
    def test_what_is_malformed_is_refused(self, text: str, what: str) -> None:
        assert what in refusal(text, "a.json")


class TestKinds:
    @pytest.mark.parametrize("filename", ["A.CSV", "a.b.csv", " a.csv "])
    def test_the_end_of_a_name_in_any_spelling(self, filename: str) -> None:
        assert items(read("a,b\n1,2\n", filename)) == [{"a": "1", "b": "2"}]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('["a", "b"]', ["a", "b"]),
            ('\n [{"a": 1}]', [{"a": 1}]),
            ('{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
            ("one\ntwo\n", ["one", "two"]),
            ("[INST] one\n[INST] two", ["[INST] one", "[INST] two"]),
            ("{{ one }}\n", ["{{ one }}"]),
        ],
        ids=["array", "objects", "lines", "text", "bracket", "brace"],
    )
    @pytest.mark.parametrize("filename", ["file", "Sales 1.2026", "tail."])
    def test_a_name_that_does_not_tell(self, text: str, expected: list[Any], filename: str) -> None:
        assert items(read(text, filename)) == expected

    @pytest.mark.parametrize("filename", ["a.pdf", "a.docx", "a.yaml"])
    def test_other_kinds_are_refused_with_the_known_ones(self, filename: str) -> None:
        known = "must end in one of .txt, .csv, .tsv, .jsonl, .ndjson, .json."
        assert refusal("x", filename).endswith(known)

    @pytest.mark.parametrize("filename", ["a.xlsx", "a.XLS", "a.ods", "a.csv", "a"])
    def test_spreadsheets_are_to_be_saved_as_csv(self, filename: str) -> None:
        assert "is a spreadsheet: save it as CSV" in refusal(b"PK\x03\x04\x14\0", filename)

    @pytest.mark.parametrize("filename", ["a.txt", "a.csv", "a.tsv", "a.jsonl", "a.json", "a"])
    @pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"], ids=repr)
    def test_a_file_without_rows_is_refused(self, filename: str, content: bytes) -> None:
        assert "has no rows, expected" in refusal(content, filename)

    def test_a_file_that_is_too_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(config, "MAX_FILE_BYTES", 5 * 1024 * 1024)
        assert "larger than 5 MB" in refusal(b"x" * (5 * 1024 * 1024 + 1), "a.txt")

    def test_keys_in_a_name_are_not_repeated(self) -> None:
        with pytest.raises(InputError) as caught:
            rows_of_file(b"", "sk-abcdefghijklmnop" + "x" * 100 + ".pdf")
        assert "abcdef" not in str(caught.value)


RESULTS = [
    RowResult(0, "ok", "wörld, 1; 2", 'two\n"lines"', model="m", latency_ms=12.5, tokens_used=7),
    RowResult(1, "ok", "b", "", model="m", cost_usd=None, cached=True),
    RowResult(2, "error", "c", error="boom", error_type="server_error", cost_usd=Decimal("0.25")),
    RowResult(3, "skipped", "d"),
]


class TestResultFiles:
    @pytest.mark.parametrize("file_format", get_args(FileFormat))
    def test_what_was_written_is_taken_up_again(
        self, file_format: FileFormat, tmp_path: Path
    ) -> None:
        file = ResultFile(tmp_path, file_format)
        for result in RESULTS:
            file.write(result)
        file.close()
        (path,) = file.paths
        rows = read(path.read_bytes(), path.name)
        assert rows == [Row(r.index, r.query, {}, r) for r in RESULTS]

    @settings(max_examples=60, deadline=None)
    @given(
        results=st.lists(
            st.builds(
                RowResult,
                index=st.just(0),
                status=st.sampled_from(get_args(Status)),
                query=any_text,
                response=any_text,
                error=any_text,
                cached=st.booleans(),
            ),
            min_size=1,
            max_size=4,
        ),
        delimiter=st.sampled_from(",;\t"),
    )
    def test_so_is_what_a_spreadsheet_saved_again(
        self, results: list[RowResult], delimiter: str
    ) -> None:
        records = [[str(result.to_json()[name]) for name in FIELDS] for result in results]
        rows = read(csv_text([list(FIELDS), *records], delimiter), "a.csv")
        assert [row.earlier and row.earlier.response for row in rows] == [
            result.response for result in results
        ]
        assert [row.item for row in rows] == [result.query for result in results]
        assert [row.earlier and row.earlier.cached for row in rows] == [
            result.cached for result in results
        ]
        assert [row.earlier and row.earlier.index for row in rows] == list(range(len(results)))

    def test_an_array_of_results(self) -> None:
        text = json.dumps([result.to_json() for result in RESULTS])
        assert [row.earlier for row in read(text, "a.json")] == RESULTS

    def test_results_among_other_objects_are_refused(self) -> None:
        lines = [json.dumps(RESULTS[0].to_json()), json.dumps({"a": 1})]
        told = "is an object, but the first row is a result of an earlier run"
        assert told in refusal("\n".join(lines), "a.jsonl")
        told = "is a result of an earlier run, but the first row is an object"
        assert told in refusal("\n".join(reversed(lines)), "a.jsonl")

    def test_a_users_own_columns_of_such_names_are_columns(self) -> None:
        (row,) = read("index,status,query,response,error_type\n1,open,q,r,e\n", "a.csv")
        assert row.earlier is None
        assert row.columns["status"] == "open"


class TestJoined:
    def test_indexes_are_counted_through(self) -> None:
        results = json.dumps([result.to_json() for result in RESULTS[:2]]).encode()
        rows = list(joined(rows_of_queries(["x"]), rows_of_file(results, "a.json")))
        assert [row.index for row in rows] == [0, 1, 2]
        assert [row.earlier.index for row in rows if row.earlier] == [1, 2]
        assert items(rows) == ["x", RESULTS[0].query, RESULTS[1].query]

    def test_a_part_that_is_wrong_is_refused_in_its_turn(self) -> None:
        rows = iter(joined(rows_of_queries(["x"]), rows_of_file(b"", "a.txt")))
        assert next(rows).item == "x"
        with pytest.raises(InputError, match=r"'a\.txt' has no rows"):
            next(rows)


class TestReading:
    @pytest.mark.parametrize(
        ("content", "filename"),
        [(b"a\nb\n", "a.txt"), (b"q\na\nb\n", "a.csv"), (b'["a", "b"]', "a.json")],
    )
    def test_rows_can_be_read_again_from_the_start(self, content: bytes, filename: str) -> None:
        rows = rows_of_file(content, filename)
        first = iter(rows)
        assert next(first).item == "a"
        assert items(rows) == items(rows) == ["a", "b"]
        assert next(first).item == "b"

    @pytest.mark.parametrize("filename", ["a.txt", "a.csv", "a.jsonl", "a.json", "results.jsonl"])
    def test_a_large_file_costs_little_more_than_its_bytes(self, filename: str) -> None:
        count = 50_000
        line = {
            "a.txt": "x" * 300,
            "a.csv": '1,"two, ' + "x" * 300 + '",3',
            "results.jsonl": json.dumps(RowResult(0, "ok", "q" * 150, "r").to_json()),
        }.get(filename, json.dumps({"text": "x" * 300, "n": 1}))
        if filename.endswith(".json"):
            text = "[" + ",".join([line] * count) + "]"
        else:
            text = ("a,b,c\n" if filename == "a.csv" else "") + f"{line}\n" * count
        content = text.encode()
        tracemalloc.start()
        try:
            total = 0
            for before, after in pairwise(rows_of_file(content, filename)):
                total += after.index - before.index
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert total == count - 1
        assert peak < 3 * 1024 * 1024


# --- what would keep others waiting -------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "name", "at_least"),
    [
        (b"\n" * 1_000_000 + b"one\n", "a.txt", 100),
        (b"\n" * 1_000_000 + b'"one"\n', "a.jsonl", 100),
        (b"a,b\n" + b"\n" * 1_000_000 + b"1,2\n", "a.csv", 100),
        # Blanks in an array are skipped by a regular expression, a thousand times as fast.
        (b"[" + b" " * 1_000_000 + b'"one"]', "a.json", 3),
    ],
)
def test_others_get_their_turn_while_blanks_are_skipped(
    content: bytes, name: str, at_least: int
) -> None:
    turns = 0

    def give_way() -> None:
        nonlocal turns
        turns += 1

    assert len(list(rows_of_file(content, name, give_way=give_way))) == 1
    assert turns >= at_least


def test_a_row_of_too_many_values_is_refused_at_once() -> None:
    content = b'{"w": "x", "a": [' + b"1," * 60_000 + b"1]}\n"
    with pytest.raises(InputError, match=r"line 1 of .* holds more than 50,000 values"):
        list(rows_of_file(content, "a.jsonl"))
