"""What became of each row of a batch, and the file that holds all of them.

A result file is JSON Lines or CSV with the keys of ``FIELDS``, one row of the batch a line, in
input order. It can be handed in again as the input of another batch, which asks for what is
missing only; so it is written in parts small enough for that.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import IO, Any, Literal, get_args

from holysheep import config
from holysheep.jsontext import whole_characters
from holysheep.result import usd_number
from holysheep.types import JsonObject

Status = Literal["ok", "error", "skipped"]
FileFormat = Literal["jsonl", "csv"]

FIELDS = (
    "index",
    "status",
    "query",
    "response",
    "error",
    "error_type",
    "model",
    "latency_ms",
    "tokens_used",
    "cost_usd",
    "cached",
)
"""The keys of a row in a result file, in the order of its columns."""


@dataclass(frozen=True, slots=True)
class RowResult:
    """What became of one row of a batch.

    ``index``        its place in the batch, from 0
    ``status``       ``ok``, ``error``, or ``skipped``: not asked, or without an answer at the end
    ``query``        the prompt that was made of it, the system prompt apart
    ``response``     the answer, also where JSON was asked for; empty where there is none
    ``error``        one sentence where there is no answer, safe to show
    ``error_type``   the ``error_type`` of the error, or ``skipped``
    ``model``        the model that answered
    ``latency_ms``   from its start to the last byte; 0 where it has no answer of its own
    ``tokens_used``  prompt and completion, also where the answer is a cached one
    ``cost_usd``     what the row cost: 0 where ``cached``, ``None`` where no price is known
    ``cached``       whether the row made no upstream call of its own
    """

    index: int
    status: Status
    query: str = ""
    response: str = ""
    error: str = ""
    error_type: str = ""
    model: str = ""
    latency_ms: float = 0.0
    tokens_used: int = 0
    cost_usd: Decimal | None = Decimal(0)
    cached: bool = False

    def to_json(self) -> JsonObject:
        """As a JSON object with the keys of ``FIELDS``; money as a number."""
        values = {name: getattr(self, name) for name in FIELDS}
        return {**values, "cost_usd": usd_number(self.cost_usd)}


def is_result_row(columns: Mapping[str, Any]) -> bool:
    """Whether an input row comes from a result file rather than from a user's own."""
    return columns.keys() >= {"index", "status", "query", "response", "error_type"} and columns[
        "status"
    ] in get_args(Status)


def result_from(columns: Mapping[str, Any], index: int) -> RowResult:
    """The row of a result file, from JSON values or from a CSV's texts.

    Figures that cannot be read any more count as 0: what matters is the answer.
    """
    return RowResult(
        index=index,
        status=columns["status"],
        query=_text(columns.get("query")),
        response=_text(columns.get("response")),
        error=_text(columns.get("error")),
        error_type=_text(columns.get("error_type")),
        model=_text(columns.get("model")),
        latency_ms=float(_number(columns.get("latency_ms")) or 0),
        tokens_used=int(_number(columns.get("tokens_used")) or 0),
        cost_usd=_number(columns.get("cost_usd")),
        cached=str(columns.get("cached")).lower() == "true",
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _number(value: Any) -> Decimal | None:
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return number if number.is_finite() and 0 <= number < 10**12 else None


class ResultFile:
    """Writes rows as they come into files below ``folder``, each within ``max_bytes``.

    ``None`` = one file, however large. A row is never divided: one that is larger than a part has
    a part of its own.
    """

    def __init__(
        self,
        folder: Path,
        file_format: FileFormat,
        *,
        name: str = "results",
        max_bytes: int | None = config.MAX_FILE_BYTES,
    ) -> None:
        self._folder = folder
        self._format = file_format
        self._name = name
        self._max_bytes = max_bytes
        self._file: IO[bytes] | None = None
        self._size = 0
        self.paths: list[Path] = []
        """The parts, in order; complete after ``close``."""

    def write(self, result: RowResult) -> None:
        """Append a row."""
        line = self._line(result)
        is_full = self._max_bytes is not None and self._size + len(line) > self._max_bytes
        if self._file is None or is_full:
            self._begin_part()
        self._append(line)

    def flush(self) -> None:
        """Hand over to the system what was written."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """End the last part. One that is the only one loses its number."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if len(self.paths) == 1:
            whole = self._folder / f"{self._name}.{self._format}"
            self.paths = [self.paths[0].rename(whole)]

    def _begin_part(self) -> None:
        if self._file is not None:
            self._file.close()
        number = "" if self._max_bytes is None else f"-{len(self.paths) + 1}"
        path = self._folder / f"{self._name}{number}.{self._format}"
        self.paths.append(path)
        self._file = path.open("wb")
        self._size = 0
        if self._format == "csv":
            # With a byte order mark: without one, spreadsheets take UTF-8 for something else.
            self._append(b"\xef\xbb\xbf" + _csv_line(FIELDS))

    def _append(self, line: bytes) -> None:
        if self._file is None:
            raise ValueError("the result file is closed")
        self._file.write(line)
        self._size += len(line)

    def _line(self, result: RowResult) -> bytes:
        if self._format == "jsonl":
            return json_line(result)
        row = result.to_json()
        row["cost_usd"] = "" if result.cost_usd is None else f"{result.cost_usd:f}"
        row["cached"] = "true" if result.cached else "false"
        return _csv_line(row[name] for name in FIELDS)


def json_line(result: RowResult) -> bytes:
    """A row as one line of JSON Lines, UTF-8."""
    text = json.dumps(result.to_json(), ensure_ascii=False)
    return whole_characters(text).encode() + b"\n"


def _csv_line(values: Iterable[Any]) -> bytes:
    buffer = io.StringIO()
    # Readers of CSV refuse a NUL, and the answer of a model may hold one.
    csv.writer(buffer).writerow([str(value).replace("\0", "\ufffd") for value in values])
    return whole_characters(buffer.getvalue()).encode()


def pieces_of(path: Path, size: int) -> Iterator[bytes]:
    """The content of a file in pieces of ``size`` bytes."""
    with path.open("rb") as file:
        while piece := file.read(size):
            yield piece
