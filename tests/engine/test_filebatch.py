"""Result files of batches: written row by row, taken up again, and never lost in between."""

import csv
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from holysheep.errors import InputError
from holysheep.filebatch import FileBatch, WriteFailed, read_rows
from holysheep.results import RowResult
from holysheep.rows import Row, Rows, rows_of_queries
from holysheep.template import Template

ITEM = Template("{{ item }}")
FORMATS = pytest.mark.parametrize("suffix", ["jsonl", "csv"])
AWKWARD = 'a "quoted", text\r\nof two lines;\n\n"another" "" üß🐑\u2028\x85 end"'


def answered(index: int, query: str = "", response: str = "") -> RowResult:
    return RowResult(index, "ok", query or f"q{index}", response or f"r{index}", model="m")


def failed(index: int) -> RowResult:
    return RowResult(index, "error", f"q{index}", error="No.", error_type="bad_request")


def skipped(index: int) -> RowResult:
    return RowResult(index, "skipped", f"q{index}", error="Late.", error_type="skipped")


def fill(path: Path, *results: RowResult, resumes: bool = False) -> None:
    """A run that has come to its end."""
    with FileBatch(path, resumes=resumes) as file:
        for result in results:
            file.write(result)


def break_off(path: Path, *results: RowResult, resumes: bool = False) -> None:
    """A run that broke off: what it has written is there, nothing else was done."""
    with suppress(KeyboardInterrupt), FileBatch(path, resumes=resumes) as file:
        for result in results:
            file.write(result)
        raise KeyboardInterrupt


def contents(path: Path) -> list[tuple[str, str]]:
    """Status and response of each row in a file, read without our own reader."""
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    else:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(len(rows)))
    return [(row["status"], row["response"]) for row in rows]


def queries(count: int) -> Rows:
    return rows_of_queries([f"q{index}" for index in range(count)])


def known(path: Path, rows: Rows, template: Template = ITEM) -> dict[int, str]:
    """The answers that a run which takes up the file would not ask for again."""
    found = FileBatch(path, resumes=True).rows(rows, template)
    return {row.index: row.earlier.response for row in found if row.earlier is not None}


# --- a file of its own ----------------------------------------------------------------------------


@FORMATS
def test_each_row_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    with FileBatch(path, resumes=False) as file:
        for index in range(3):
            file.write(answered(index))
            assert contents(path) == [("ok", f"r{number}") for number in range(index + 1)]


@FORMATS
def test_a_file_that_is_there_is_not_touched_unless_it_is_taken_up(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"out.{suffix}"
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match=rf"out\.{suffix} exists.*--resume"):
        FileBatch(path, resumes=False)
    assert path.read_bytes() == b"mine"


@FORMATS
def test_what_a_killed_resumption_has_left_is_not_overwritten_either(
    tmp_path: Path, suffix: str
) -> None:
    (tmp_path / f"out.resumed.{suffix}").write_bytes(b"mine")
    with pytest.raises(InputError, match=rf"out\.resumed\.{suffix} exists"):
        FileBatch(tmp_path / f"out.{suffix}", resumes=False)


@pytest.mark.parametrize("name", ["out", "out.txt", "out.json", "out.JSONL", "out.Csv", ".jsonl"])
def test_the_name_must_say_the_format(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"must end in \.jsonl or \.csv"):
        FileBatch(tmp_path / name, resumes=False)


def test_a_file_that_cannot_be_made_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, told in (
        (tmp_path / "missing", "No such file or directory"),
        (tmp_path / "file", "Not a directory"),
        (Path("/proc/self"), "cannot be written"),
    ):
        for resumes in (False, True):
            with pytest.raises(InputError, match=told):
                FileBatch(folder / "out.jsonl", resumes=resumes)


def test_trying_it_leaves_no_file_behind(tmp_path: Path) -> None:
    FileBatch(tmp_path / "out.jsonl", resumes=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resumes", [False, True])
def test_a_folder_is_no_file(tmp_path: Path, resumes: bool) -> None:
    (tmp_path / "out.jsonl").mkdir()
    with pytest.raises(InputError, match=r"exists|is no regular file"):
        FileBatch(tmp_path / "out.jsonl", resumes=resumes)


def test_a_link_to_a_device_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").symlink_to("/dev/full")
    for resumes in (False, True):
        with pytest.raises(InputError, match=r"must end in \.jsonl or \.csv, got /dev/full"):
            FileBatch(tmp_path / "out.jsonl", resumes=resumes)
    (tmp_path / "other.resumed.jsonl").symlink_to("/dev/full")
    with pytest.raises(InputError, match="is no regular file"):
        FileBatch(tmp_path / "other.jsonl", resumes=True)


def write_until_disk_is_full(path: Path, *results: RowResult, resumes: bool = False) -> None:
    """A run whose disk has no space left for its last row."""
    written = path.with_stem(f"{path.stem}.resumed") if resumes else path
    with FileBatch(path, resumes=resumes) as file:
        for result in results[:-1]:
            file.write(result)
        full = os.open("/dev/full", os.O_WRONLY)
        (opened,) = (link for link in Path("/proc/self/fd").iterdir() if points_to(link, written))
        os.dup2(full, int(opened.name))
        os.close(full)
        file.write(results[-1])


def points_to(link: Path, path: Path) -> bool:
    # The folder's own number is in the list too, and closed by now.
    return link.is_symlink() and link.readlink() == path


@FORMATS
def test_a_disk_that_fills_up_is_told_with_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    with pytest.raises(WriteFailed) as caught:
        write_until_disk_is_full(path, answered(0), answered(1))
    assert str(caught.value) == f"{path} could not be written: No space left on device."
    assert known(path, queries(2)) == {0: "r0"}


@FORMATS
def test_a_disk_that_fills_up_while_a_file_is_taken_up_costs_nothing(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"out.{suffix}"
    fill(path, answered(0), skipped(1), answered(2))
    with pytest.raises(WriteFailed, match=r"out\.resumed"):
        write_until_disk_is_full(path, answered(0), answered(1), answered(2), resumes=True)
    assert contents(path) == [("ok", "r0"), ("skipped", ""), ("ok", "r2")]
    assert known(path, queries(3)) == {0: "r0", 1: "r1", 2: "r2"}


# --- taking up ------------------------------------------------------------------------------------


@FORMATS
def test_rows_that_were_answered_are_known_and_no_others(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    fill(path, answered(0), failed(1), skipped(2), answered(3))
    assert known(path, queries(6)) == {0: "r0", 3: "r3"}


@FORMATS
def test_all_rows_come_in_order_whether_known_or_not(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    fill(path, answered(0), failed(1), answered(2))
    rows = list(FileBatch(path, resumes=True).rows(queries(4), ITEM))
    assert [row.index for row in rows] == [0, 1, 2, 3]
    assert [row.item for row in rows] == ["q0", "q1", "q2", "q3"]


@FORMATS
def test_a_row_whose_prompt_is_another_one_now_is_not_known(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    fill(path, *(answered(index) for index in range(3)))
    assert known(path, queries(3), Template("Say {{ item }}")) == {}
    changed = rows_of_queries(["q0", "another", "q2"])
    assert known(path, changed) == {0: "r0", 2: "r2"}
    only_second = Template("{{ item ~ '!' if item == 'q1' else item }}")
    assert known(path, queries(3), only_second) == {0: "r0", 2: "r2"}


def test_a_row_whose_prompt_cannot_be_made_is_not_known(tmp_path: Path) -> None:
    fill(tmp_path / "out.jsonl", answered(0), answered(1))
    rows = rows_of_queries([{"a": "q0"}, {"b": "q1"}])
    assert known(tmp_path / "out.jsonl", rows, Template("{{ a }}")) == {0: "r0"}


def test_what_the_input_itself_knows_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    fill(path, answered(0, response="of the output"))
    fill(tmp_path / "in.jsonl", answered(0, response="of the input"))
    assert known(path, read_rows(tmp_path / "in.jsonl")) == {0: "of the input"}


@FORMATS
def test_queries_and_answers_of_any_text_are_known_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    fill(path, answered(0, AWKWARD, AWKWARD), answered(1))
    assert known(path, rows_of_queries([AWKWARD, "q1"])) == {0: AWKWARD, 1: "r1"}


@FORMATS
def test_a_file_that_was_taken_up_has_all_rows_in_the_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    fill(path, answered(0), skipped(1))
    fill(path, answered(0), answered(1), answered(2), resumes=True)
    assert contents(path) == [("ok", "r0"), ("ok", "r1"), ("ok", "r2")]
    assert list(tmp_path.iterdir()) == [path]


@FORMATS
def test_the_old_file_stays_until_the_new_one_has_all_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    fill(path, answered(0), answered(1), answered(2))
    before = path.read_bytes()
    with FileBatch(path, resumes=True) as file:
        file.write(answered(0))
        assert path.read_bytes() == before
        assert contents(tmp_path / f"out.resumed.{suffix}") == [("ok", "r0")]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), InputError("bad"), RuntimeError("bug")])
@FORMATS
def test_a_run_that_ends_with_an_error_does_not_replace_the_old_file(
    tmp_path: Path, suffix: str, error: BaseException
) -> None:
    path = tmp_path / f"out.{suffix}"
    fill(path, skipped(0), answered(1), answered(2))

    def fail() -> None:
        with FileBatch(path, resumes=True) as file:
            file.write(answered(0))
            raise error

    with pytest.raises(type(error)):
        fail()
    assert contents(path) == [("skipped", ""), ("ok", "r1"), ("ok", "r2")]
    assert known(path, queries(3)) == {0: "r0", 1: "r1", 2: "r2"}


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(target)
    fill(link, answered(0))
    fill(link, answered(0), answered(1), resumes=True)
    assert link.is_symlink()
    assert contents(target) == [("ok", "r0"), ("ok", "r1")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("out.jsonl", b'"a text"\n"another"\n'),
        ("out.jsonl", b'{"city": "Ulm"}\n'),
        ("out.csv", b"city,country\nUlm,DE\n"),
    ],
)
def test_a_file_of_something_else_is_refused_and_kept(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="is no result file of a batch"):
        FileBatch(tmp_path / name, resumes=True)
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf"])
@FORMATS
def test_a_file_without_a_row_is_taken_up_like_none(
    tmp_path: Path, suffix: str, content: bytes
) -> None:
    path = tmp_path / f"out.{suffix}"
    path.write_bytes(content)
    assert known(path, queries(2)) == {}
    fill(path, answered(0), resumes=True)
    assert contents(path) == [("ok", "r0")]


def test_taking_up_what_is_not_there_begins_it(tmp_path: Path) -> None:
    fill(tmp_path / "out.jsonl", answered(0), resumes=True)
    assert contents(tmp_path / "out.jsonl") == [("ok", "r0")]


# --- after a kill ---------------------------------------------------------------------------------


@FORMATS
def test_wherever_a_killed_run_has_cut_its_file_the_whole_rows_are_known(
    tmp_path: Path, suffix: str
) -> None:
    path, cut = tmp_path / f"out.{suffix}", tmp_path / f"cut.{suffix}"
    rows = [answered(0), answered(1, AWKWARD, AWKWARD), answered(2, "qü", AWKWARD * 2)]
    ends = []
    with FileBatch(path, resumes=False) as file:
        for row in rows:
            file.write(row)
            ends.append(path.stat().st_size)
    content = path.read_bytes()
    asked = rows_of_queries([row.query for row in rows])
    for size in range(len(content) + 1):
        cut.write_bytes(content[:size])
        whole = sum(end <= size for end in ends)
        assert known(cut, asked) == {n: rows[n].response for n in range(whole)}, size


@FORMATS
def test_what_a_killed_resumption_has_answered_is_known_too(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    fill(path, answered(0), failed(1), skipped(2), answered(3))
    break_off(path, answered(0), answered(1), resumes=True)
    assert contents(path)[3] == ("ok", "r3")
    assert known(path, queries(5)) == {0: "r0", 1: "r1", 3: "r3"}


@FORMATS
def test_run_after_run_may_be_killed_and_nothing_is_lost(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    break_off(path, answered(0))
    for reached in range(1, 6):
        break_off(path, *(answered(index) for index in range(reached)), resumes=True)
        # The next one is killed at once.
        break_off(path, resumes=True)
        assert known(path, queries(9)) == {n: f"r{n}" for n in range(reached)}
    fill(path, *(answered(index) for index in range(9)), resumes=True)
    assert list(tmp_path.iterdir()) == [path]
    assert len(contents(path)) == 9


@FORMATS
def test_both_files_of_a_killed_resumption_may_end_in_half_a_row(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"out.{suffix}"
    break_off(path, answered(0), failed(1), answered(2), answered(3))
    path.write_bytes(path.read_bytes()[:-9])
    break_off(path, answered(0), answered(1, response=AWKWARD), answered(2), resumes=True)
    beside = tmp_path / f"out.resumed.{suffix}"
    beside.write_bytes(beside.read_bytes()[:-9])
    assert known(path, queries(4)) == {0: "r0", 1: AWKWARD, 2: "r2"}


def test_the_answer_to_the_newer_prompt_counts(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    fill(path, answered(0, "old", "old answer"), answered(1))
    break_off(path, answered(0, "new", "new answer"), resumes=True)
    assert known(path, rows_of_queries(["new", "q1"])) == {0: "new answer", 1: "r1"}


def test_a_failure_of_the_newer_run_does_not_count_against_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    fill(path, answered(0), answered(1))
    break_off(path, failed(0), resumes=True)
    assert known(path, queries(2)) == {0: "r0", 1: "r1"}


def test_what_was_left_is_known_without_the_file_it_belongs_to(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    fill(path, answered(0))
    break_off(path, answered(0), answered(1), resumes=True)
    path.unlink()
    assert known(path, queries(2)) == {0: "r0", 1: "r1"}


def test_a_file_of_something_else_in_its_place_is_kept(tmp_path: Path) -> None:
    fill(tmp_path / "out.jsonl", answered(0))
    other = tmp_path / "out.resumed.jsonl"
    other.write_bytes(b'{"city": "Ulm"}\n')
    with pytest.raises(InputError, match=r"out\.resumed\.jsonl is no result file"):
        FileBatch(tmp_path / "out.jsonl", resumes=True)
    assert other.read_bytes() == b'{"city": "Ulm"}\n'


# --- the input ------------------------------------------------------------------------------------


def test_an_input_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"in\.csv cannot be read: No such file or directory"):
        read_rows(tmp_path / "in.csv")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_rows(tmp_path)


def test_an_input_may_be_larger_than_a_node_takes(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(b"x" * 1023 + b"\n" + b"y" * 21 * 1024 * 1024)
    rows = list(read_rows(path))
    assert [row.index for row in rows] == [0, 1]
    assert all(isinstance(row, Row) for row in rows)
