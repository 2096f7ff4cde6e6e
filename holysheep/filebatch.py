"""A batch from file to file, which can be interrupted and taken up again.

Results are written as they come, in the order of the rows. An interrupted run marks what it has not
asked as ``skipped``; one that was killed leaves the rows up to then. Taking up a file asks for what
is missing: rows that failed or were skipped, rows behind its end, and rows whose prompt is another
one now.

A run that takes up ``out.jsonl`` writes ``out.resumed.jsonl``, which takes its place when it has
all rows. If such a run is killed, both files stay, and the next one takes up what is in either.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Self, get_args

from holysheep.errors import InputError
from holysheep.results import FileFormat, ResultFile, RowResult
from holysheep.rows import Row, Rows, rows_of_file
from holysheep.template import Template


class WriteFailed(Exception):
    """The result file cannot be written any more: its disk is full, or gone."""


def read_rows(path: Path) -> Rows:
    """The rows of an input file, however large. Raises ``InputError``."""
    return rows_of_file(content_of(path), path.name, is_limited=False)


class FileBatch:
    """The result file of a batch at ``path``, whose ending says its format.

    With ``resumes`` an existing file is taken up, else it must not exist. Raises ``InputError``,
    also where no file can be made. Leaving its ``with`` block without an error says that all rows
    were written.
    """

    def __init__(self, path: Path, *, resumes: bool) -> None:
        self._path = path.resolve()  # or taking it up would replace a link, and not what is behind
        self._beside = self._path.with_stem(f"{self._path.stem}.resumed")
        file_format = _format(self._path)
        older = [file for file in (self._path, self._beside) if file.exists()]
        if older and not resumes:
            raise InputError(
                f"{older[0]} exists. Choose another name, or take it up with --resume."
            )
        found = _found_in(older)
        if self._beside in older:
            _replace(self._path, found, file_format)
            self._beside.unlink()
        self._earlier = {row.index: row for row in found if row.status == "ok"}
        self._is_beside = bool(older)
        written = self._beside if older else self._path
        _check_writable(written)
        self._file = ResultFile(written.parent, file_format, name=written.stem, max_bytes=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._file.close()
        except OSError as error:
            if kind is None:
                raise self._failed(error) from None
            return  # the rest of what could not be written
        if kind is None and self._is_beside and self._file.paths:
            self._beside.replace(self._path)

    def rows(self, rows: Rows, template: Template) -> Iterator[Row]:
        """The rows, with what an earlier run has answered."""
        for row in rows:
            earlier = self._earlier.get(row.index)
            if row.earlier is None and earlier is not None and _asks_same(row, earlier, template):
                yield Row(row.index, earlier.query, earlier=earlier)
            else:
                yield row

    def write(self, result: RowResult) -> None:
        """Append a row, so that it is there whatever happens next. Raises ``WriteFailed``."""
        try:
            self._file.write(result)
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> WriteFailed:
        written = self._beside if self._is_beside else self._path
        return WriteFailed(f"{written} could not be written: {error.strerror}.")


def _format(path: Path) -> FileFormat:
    for known in get_args(FileFormat):
        if path.suffix == f".{known}":
            file_format: FileFormat = known
            return file_format
    raise InputError(f"The name of the output must end in .jsonl or .csv, got {path}.")


def content_of(path: Path) -> bytes:
    """What a file holds. Raises ``InputError``."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def _check_writable(path: Path) -> None:
    """Raise ``InputError`` where a file cannot be made: better now than after the first answers."""
    try:
        path.open("xb").close()
        path.unlink()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from None


def _found_in(files: list[Path]) -> list[RowResult]:
    """The rows of result files of one batch, from the last that has an answer for them."""
    found: dict[int, RowResult] = {}
    for file in files:
        for row in _results_in(file):
            if row.status == "ok" or row.index not in found:
                found[row.index] = row
    return list(found.values())


def _results_in(path: Path) -> Iterator[RowResult]:
    if not path.is_file():
        raise InputError(f"{path} is no regular file.")
    content = _whole_lines(content_of(path), _format(path))
    if not content.strip():
        return
    for row in rows_of_file(content, path.name, is_limited=False):
        if row.earlier is None:
            raise InputError(f"{path} is no result file of a batch.")
        yield row.earlier


def _whole_lines(content: bytes, file_format: FileFormat) -> bytes:
    """A result file up to its last whole row; that of a killed run may end in half a row."""
    end = content.rfind(b"\n") + 1
    if file_format == "jsonl":
        return content[:end]
    # A line that ends within a cell has an odd number of quotes before its end.
    quotes = content.count(b'"', 0, end)
    while quotes % 2:
        cut = content.rfind(b"\n", 0, end - 1) + 1
        quotes -= content.count(b'"', cut, end)
        end = cut
    is_header_alone = end == content.find(b"\n") + 1
    return b"" if is_header_alone else content[:end]


def _replace(path: Path, rows: list[RowResult], file_format: FileFormat) -> None:
    """Put ``rows`` into the place of a result file; a kill leaves the old file or the new one."""
    merged = path.with_stem(f"{path.stem}.merged")
    try:
        file = ResultFile(path.parent, file_format, name=merged.stem, max_bytes=None)
        for row in rows:
            file.write(row)
        file.close()
        if rows:
            merged.replace(path)
    except OSError as error:
        raise InputError(f"{merged} cannot be written: {error.strerror}.") from None


def _asks_same(row: Row, earlier: RowResult, template: Template) -> bool:
    try:
        return template.render({"item": row.item, **row.columns}) == earlier.query
    except InputError:
        return False
