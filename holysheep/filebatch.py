"""A batch from file to file, which can be interrupted and taken up again.

Results are written as they come, in the order of the rows. An interrupted run marks what it has not
asked as ``skipped``; one that was killed leaves the rows up to then. Taking up a file asks for what
is missing: rows that failed or were skipped, rows behind its end, and rows whose prompt is another
one now.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from holysheep.errors import InputError
from holysheep.results import FileFormat, ResultFile, RowResult
from holysheep.rows import Row, Rows, rows_of_file
from holysheep.template import Template


def read_rows(path: Path) -> Rows:
    """The rows of an input file, however large. Raises ``InputError``."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    return rows_of_file(content, path.name, max_bytes=None)


class FileBatch:
    """The result file of a batch at ``path``, whose ending says its format.

    With ``resumes`` an existing file is taken up, else it must not exist. Raises ``InputError``.
    """

    def __init__(self, path: Path, *, resumes: bool) -> None:
        suffix = path.suffix.removeprefix(".").lower()
        if suffix not in get_args(FileFormat):
            raise InputError(f"The name of the output must end in .jsonl or .csv, got {path.name}.")
        self._path = path
        self._earlier: dict[int, RowResult] = {}
        if path.exists():
            if not resumes:
                raise InputError(
                    f"{path} exists. Choose another name, or take it up with --resume."
                )
            self._earlier = {row.index: row for row in _answered_in(path)}
        # Beside the old file until the new one is complete, or a kill would lose what was there.
        self._is_beside = bool(self._earlier)
        name = f"{path.stem}.resumed" if self._is_beside else path.stem
        self._file = ResultFile(path.parent, _format(suffix), name=name, max_bytes=None)

    def rows(self, rows: Rows, template: Template) -> Iterator[Row]:
        """The rows, with what an earlier run has answered."""
        for row in rows:
            earlier = self._earlier.get(row.index)
            if row.earlier is None and earlier is not None and _asks_same(row, earlier, template):
                yield Row(row.index, earlier.query, earlier=earlier)
            else:
                yield row

    def write(self, result: RowResult) -> None:
        """Append a row, so that it is there whatever happens next."""
        self._file.write(result)
        self._file.flush()

    def close(self) -> None:
        """End the file; it takes the place of the one that was taken up."""
        self._file.close()
        if self._is_beside:
            for path in self._file.paths:
                path.replace(self._path)


def _format(suffix: str) -> FileFormat:
    return "csv" if suffix == "csv" else "jsonl"


def _answered_in(path: Path) -> Iterator[RowResult]:
    """The answered rows of a result file; the last line of a killed run may be incomplete."""
    content = path.read_bytes()
    if path.suffix.lower() == ".jsonl":
        content = content[: content.rfind(b"\n") + 1]
    if not content.strip():
        return
    for row in rows_of_file(content, path.name, max_bytes=None):
        if row.earlier is None:
            raise InputError(f"{path} is no result file of a batch.")
        if row.earlier.status == "ok":
            yield row.earlier


def _asks_same(row: Row, earlier: RowResult, template: Template) -> bool:
    try:
        return template.render({"item": row.item, **row.columns}) == earlier.query
    except InputError:
        return False
