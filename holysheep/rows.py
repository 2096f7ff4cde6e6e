"""The input rows of a batch: the ``queries`` of a node, a file, or both.

Rows are read anew whenever they are iterated, and a few at a time: a file of 20 MB stays 20 MB of
bytes and does not become ten times as much in objects. A caller iterates once over everything
before the first call is made; whatever is wrong with the input shows then.

Lines and items in messages count from 1, as editors and spreadsheets do; ``Row.index`` from 0.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import Any, NoReturn, TextIO

from holysheep import config
from holysheep.errors import InputError
from holysheep.jsontext import is_json, parse_json, parse_json_at, with_whole_characters
from holysheep.reading import parse_literal
from holysheep.redact import redact
from holysheep.results import RowResult, is_result_row, result_from
from holysheep.types import JsonObject
from holysheep.wording import shortened

__all__ = ["Row", "Rows", "joined", "rows_of_file", "rows_of_items", "rows_of_queries"]

_KNOWN = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")
_SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers", ".gsheet")
_SPREADSHEET_BYTES = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""How the files of Excel and others begin: a ZIP archive, and what was before it."""

_PIECE = 64 * 1024
"""Read at a time, in bytes or characters."""
_MAX_VALUES = 50_000
"""In one row: looking at more would keep others waiting."""
_MAX_CELL_CHARS = 8 * 1024 * 1024
"""An answer of a million tokens, in a result file, has about 5 MB."""
_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}
_DELIMITER_RECORDS = 50
"""So many records show what separates the cells of a file."""
_ONE_COLUMN_RECORDS = 20_000
"""So many show that nothing does; nobody else gets a turn while they are read."""

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What spreadsheets and editors write that do not write UTF-8. In this order where a text makes
# as much sense in one as in another: Latin-1 is part of cp1252, GBK and GB2312 of GB18030.
_LEGACY = [
    *("cp1252", "gb18030", "cp932", "big5", "euc_jp", "cp949"),
    *("cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256"),
]
_SAMPLE_BYTES = 32 * 1024
_SCATTERED = re.compile(
    rb"(?:[\x00-\x7f]*[\x80\x85\x91-\x97\x99\xa0-\xff](?![\x80-\xff])){1,9}[\x00-\x7f]*"
)
"""A few single signs in ASCII, such as £, ’ or é: too little to tell one encoding from another."""

_BLANK = re.compile(r"[ \t\r\n]*")
_MEANT_AS_LIST = re.compile(r"\s*\[\s*[\[{\"'].*\]\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a batch, before its prompt is made.

    ``index``    counts from 0 over the whole batch.
    ``item``     what ``{{ item }}`` stands for: the text, or the object. A record of a CSV is an
                 object of texts; where it has one column only, ``item`` is the text.
    ``columns``  the names that a template may use beside ``item``; none for plain texts.
    ``earlier``  what became of the row in an earlier run, where the input is a result file.
    """

    index: int
    item: str | JsonObject
    columns: Mapping[str, Any] = field(default_factory=dict)
    earlier: RowResult | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that are read from the start whenever they are iterated.

    Iterating raises ``InputError`` at the first row that is not as it should be, and where there
    is none at all.
    """

    _read: Callable[[], Iterator[Row]]

    def __iter__(self) -> Iterator[Row]:
        return self._read()


def rows_of_queries(queries: Any) -> Rows:
    """The rows of a list of texts or of objects.

    Numbers and booleans are the texts that JSON spells them with. A text that is a JSON array is
    taken as that array, alone or as the only item: so a host hands over what it could not read.
    Raises ``InputError`` for what is no list, or an empty one; items are checked when iterated.
    """
    items = _list_of(queries)
    source = _Source("queries", "item", expected="a list of texts or of objects")
    if not items:
        source.refuse_empty()

    def read() -> Iterator[Row]:
        return _rows(_values(enumerate(items, 1), source), source)

    return Rows(read)


def rows_of_file(
    content: bytes,
    filename: str,
    *,
    is_limited: bool = True,
    give_way: Callable[[], object] = lambda: None,
) -> Rows:
    """The rows of a file, read as what the end of its name says.

    ``.txt`` has a row in each line that is not blank; ``.csv`` and ``.tsv`` one in each record
    below the header; ``.jsonl`` and ``.ndjson`` a text or an object in each line; ``.json`` an
    array of them. A file without such an end is read as what it looks like. The rows of a result
    file, written as JSON Lines or CSV by an earlier run, have ``earlier``.

    ``give_way`` is called again and again while a file is read, so that a large one does not keep
    others waiting. Raises ``InputError`` for a file of another kind, in an unknown encoding, or,
    where it ``is_limited``, larger than what a host hands over.
    """
    shown = shortened(redact(filename), 60)
    suffix = _suffix(filename)
    if suffix and suffix not in _KNOWN + _SPREADSHEETS:
        raise InputError(
            f"file: {shown!r} is of an unknown kind, the name must end in one of"
            f" {', '.join(_KNOWN)}."
        )
    if suffix in _SPREADSHEETS or content.startswith(_SPREADSHEET_BYTES):
        raise InputError(f"file: {shown!r} is a spreadsheet: save it as CSV (UTF-8) and use that.")
    if is_limited and len(content) > config.MAX_FILE_BYTES:
        limit = config.MAX_FILE_BYTES // (1024 * 1024)
        raise InputError(f"file: {shown!r} is larger than {limit} MB.")
    file = _File(content, shown, _encoding(content, shown), give_way)
    match suffix or _suffix_by_content(file):
        case ".csv" | ".tsv":
            return _rows_of_csv(file, usual="\t" if suffix == ".tsv" else ",")
        case ".json":
            source = _Source("file", "item", shown, expected="an array of texts or of objects")
            return Rows(lambda: _rows(_values(_elements(file, source), source), source))
        case ".jsonl" | ".ndjson":
            source = _Source("file", "line", shown, expected="a JSON text or object in each line")
            return Rows(lambda: _rows(_values(_json_lines(file, source), source), source))
        case _:
            source = _Source("file", "line", shown, expected="a text in each line")
            return Rows(lambda: _rows(_text_lines(file, source), source))


def rows_of_items(items: Iterable[Any]) -> Iterator[Row]:
    """The rows of texts or objects, checked as they come; they can be read once only."""
    source = _Source("rows", "item", expected="texts or objects")
    return _rows(_values(enumerate(items, 1), source), source)


def joined(*parts: Rows) -> Rows:
    """The rows of all parts, one part after the other, with indexes counted through."""

    def read() -> Iterator[Row]:
        rows = (row for part in parts for row in part)
        for index, row in enumerate(rows):
            if row.index == index:
                yield row
            else:
                earlier = row.earlier and replace(row.earlier, index=index)
                yield replace(row, index=index, earlier=earlier)

    return Rows(read)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where rows come from, for messages: a parameter, and the file that was given for it."""

    parameter: str
    unit: str
    file: str = ""
    expected: str = ""

    def refuse(self, number: int, what: str) -> NoReturn:
        """Refuse what stands in a line, or an item."""
        place = f"{self.unit} {number} of {self.file!r}" if self.file else f"{self.unit} {number}"
        raise InputError(f"{self.parameter}: {place} {what}.")

    def refuse_empty(self) -> NoReturn:
        name = f"{self.file!r} " if self.file else ""
        raise InputError(f"{self.parameter}: {name}has no rows, expected {self.expected}.")


@dataclass(frozen=True, slots=True)
class _File:
    """A file whose encoding is known to fit all of it."""

    content: bytes = field(repr=False)
    shown: str
    encoding: str
    give_way: Callable[[], object]

    def text(self, newline: str | None = None) -> TextIO:
        return io.TextIOWrapper(io.BytesIO(self.content), self.encoding, newline=newline)

    def lines(self, source: _Source, newline: str | None = None) -> Iterator[str]:
        unread = 0
        for number, line in enumerate(self.text(newline), 1):
            unread -= 20 + len(line)
            if unread < 0:
                self.give_way()
                unread = _PIECE
            if "\0" in line:
                source.refuse(number, "holds a NUL character: the file must be text, best UTF-8")
            yield line


_Record = tuple[int, str | JsonObject, Mapping[str, Any]]
"""The line or item that a row stands in, its item, and its columns."""


def _rows(records: Iterable[_Record], source: _Source) -> Iterator[Row]:
    """Rows of one kind: all texts, all objects, or all from a result file."""
    first = ""
    for index, (number, item, columns) in enumerate(records):
        row = Row(index, item, columns)
        kind = "a text" if isinstance(item, str) else "an object"
        # Not in queries: there it may be the text of an answer that a template asks for.
        if source.file and is_result_row(columns):
            earlier = result_from(columns, index)
            row = Row(index, earlier.query, earlier=earlier)
            kind = "a result of an earlier run"
        first = first or kind
        if kind != first:
            source.refuse(number, f"is {kind}, but the first row is {first}: all must be alike")
        yield row
    if not first:
        source.refuse_empty()


def _values(values: Iterable[tuple[int, Any]], source: _Source) -> Iterator[_Record]:
    """JSON values as records; others than texts, numbers, booleans and objects are refused."""
    for number, value in values:
        if _has_more_values(value, _MAX_VALUES):
            source.refuse(number, f"holds more than {_MAX_VALUES:,} values, too many for a prompt")
        if value is None or isinstance(value, list | tuple):
            kind = "null" if value is None else "a list"
            source.refuse(number, f"is {kind}, but must be a text or an object")
        try:
            if not is_json(value):
                raise ValueError
            whole = with_whole_characters(value)
        except (ValueError, RecursionError):
            source.refuse(number, "holds what is no JSON, or is nested too deeply")
        if isinstance(whole, dict):
            yield number, whole, whole
        else:
            yield number, whole if isinstance(whole, str) else json.dumps(whole), {}


def _has_more_values(value: Any, most: int) -> bool:
    """Whether a JSON value is made of more than so many, which would take long to look at."""
    left = most
    found = [value]
    while found:
        inner = found.pop()
        if isinstance(inner, list | dict):
            left -= len(inner)
            if left < 0:
                return True
            found.extend(inner.values() if isinstance(inner, dict) else inner)
    return False


# Lists.


def _list_of(queries: Any) -> list[Any]:
    """The list that was meant. Raises ``InputError`` if there is none."""
    alone = queries[0] if isinstance(queries, list | tuple) and len(queries) == 1 else queries
    if isinstance(alone, str) and (inner := _list_in(alone)) is not None:
        return inner
    if not isinstance(queries, list | tuple):
        raise InputError(
            'queries: must be a list of texts or of objects, such as ["first", "second"].'
        )
    return list(queries)


def _list_in(text: str) -> list[Any] | None:
    """The list that a text spells. Raises ``InputError`` for one that is broken."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = parse_json(text)
    except ValueError as error:
        value = parse_literal(text)
        if value is None and _MEANT_AS_LIST.fullmatch(text):
            raise InputError(
                f"queries: looks like a JSON array, but is none: {_fault(error)}."
            ) from None
    return value if isinstance(value, list) else None


# Text and JSON Lines.


def _text_lines(file: _File, source: _Source) -> Iterator[_Record]:
    for number, line in enumerate(file.lines(source), 1):
        if line.strip():
            yield number, line.rstrip("\n"), {}


def _json_lines(file: _File, source: _Source) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file.lines(source), 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError as error:
            source.refuse(number, f"is no JSON: {_fault(error, with_line=False)}")
        if isinstance(value, list):
            source.refuse(
                number,
                "is a list, but must be a text or an object: a file that is one array"
                " must be named .json",
            )
        yield number, value


def _fault(error: ValueError, *, with_line: bool = True) -> str:
    """What the parser did not like, and where."""
    if not isinstance(error, json.JSONDecodeError):
        # Its other errors are our own, and numbers of thousands of digits.
        return str(error) if "digits" not in str(error) else "it has a number of too many digits"
    line = f"line {error.lineno}, " if with_line else ""
    return f"{error.msg[:1].lower()}{error.msg[1:]} at {line}column {error.colno}"


# JSON arrays.


def _elements(file: _File, source: _Source) -> Iterator[tuple[int, Any]]:
    """The elements of an array one by one, with their numbers."""
    text = file.text()
    window = _window_with_start(text)
    if window[:1] != "[":
        if window.strip():
            raise InputError(
                f"file: {file.shown!r} must be a JSON array, such as"
                ' ["first", "second"]: save the list alone,'
                " or name a file of one object a line .jsonl."
            )
        return
    at, number, ended, closed = 1, 1, False, False
    if window[_skip(window, 1) :].startswith("]"):
        at, closed = _skip(window, 1) + 1, True
    while not closed:
        try:
            value, at_next, closed = _element(window, at)
        except json.JSONDecodeError as error:
            # Wrong, or not all there yet: a window twice as large tells, until the file ends.
            if ended:
                source.refuse(number, f"is no JSON: {error.msg[:1].lower()}{error.msg[1:]}")
            file.give_way()
            more = text.read(max(_PIECE, len(window) - at))
            ended = not more
            window, at = window[at:] + more, 0
            continue
        except ValueError as error:
            source.refuse(number, f"is no JSON: {_fault(error)}")
        yield number, value
        at, number = at_next, number + 1
    rest = window[at:]
    while not rest.strip() and (rest := text.read(_PIECE)):
        pass
    if rest:
        raise InputError(f"file: {file.shown!r} has something behind the end of its JSON array.")


def _window_with_start(text: TextIO) -> str:
    """The first piece of a text that is not blank, without the white space before."""
    while piece := text.read(_PIECE):
        if stripped := piece.lstrip(" \t\r\n"):
            # "[" alone may be the last character of a piece.
            return stripped + text.read(_PIECE)
    return ""


def _element(window: str, at: int) -> tuple[Any, int, bool]:
    """The element at ``at``, where the next one begins, and whether it was the last."""
    value, end = parse_json_at(window, _skip(window, at))
    end = _skip(window, end)
    separator = window[end : end + 1]
    if separator not in (",", "]") or not separator:
        raise json.JSONDecodeError("Expecting ',' or ']'", window, end)
    return value, end + 1, separator == "]"


def _skip(window: str, at: int) -> int:
    blank = _BLANK.match(window, at)
    return blank.end() if blank else at


# CSV.


def _rows_of_csv(file: _File, usual: str) -> Rows:
    source = _Source("file", "line", file.shown, expected="a header and at least one record")
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL_CHARS))
    delimiter = _delimiter(file, source, usual)
    return Rows(lambda: _rows(_csv_records(file, source, delimiter), source))


def _csv_records(file: _File, source: _Source, delimiter: str) -> Iterator[_Record]:
    records = _cells(file, source, delimiter)
    number, header = next(records, (0, []))
    names = _checked(header, number, source)
    for number, cells in records:
        if len(cells) > len(names):
            source.refuse(
                number,
                f"has {len(cells)} cells, but the header only {len(names)}: a cell that contains"
                f" {_DELIMITERS[delimiter]} belongs in double quotes",
            )
        if len(names) > 1 and len(cells) == 1 and not cells[0].strip():
            continue
        record = dict(zip(names, cells, strict=False))
        yield number, cells[0] if len(names) == 1 else record, record


def _cells(file: _File, source: _Source, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The header and the records that are not empty, each with the line that it begins in."""
    reader = csv.reader(file.lines(source, newline=""), delimiter=delimiter, strict=True)
    begun = False
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            source.refuse(number, _csv_fault(error))
        begun = begun or any(cell.strip() for cell in cells)
        if begun and cells:
            yield number, cells


def _csv_fault(error: csv.Error) -> str:
    told = str(error)
    if "unexpected end" in told:
        return "opens a double quote that is never closed"
    if "limit" in told:
        return f"begins a cell of more than {_MAX_CELL_CHARS:,} characters: is a quote not closed?"
    return "has text behind a closing double quote: a quote inside a quoted cell is written twice"


def _checked(header: list[str], number: int, source: _Source) -> list[str]:
    names = [name.strip() for name in header]
    if "" in names:
        place = names.index("") + 1
        source.refuse(number, f"is the header, but column {place} has no name")
    if twice := next((a for a, b in pairwise(sorted(names)) if a == b), None):
        shown = shortened(redact(twice), 40)
        source.refuse(number, f"is the header, but two columns are named {shown!r}")
    return names


def _delimiter(file: _File, source: _Source, usual: str) -> str:
    """What separates the cells of a file, by its header and first records.

    Quotes are honoured: a delimiter is judged by what a reader with it makes of the file. Of those
    that divide the header, the one that divides the records alike; a tab where the file's name
    says so. A header of one name leaves all of them possible: there it is the first that keeps
    every record in one cell.
    """
    order = sorted(_DELIMITERS, key=lambda delimiter: delimiter != usual)
    divided = {}
    for delimiter in order:
        widths = _widths(file, source, delimiter, _DELIMITER_RECORDS)
        header, records = next(widths, 0), list(widths)
        if header > 1:
            fits = -1 not in records and max(records, default=0) <= header
            alike = records.count(header) / len(records) if records else 1.0
            divided[delimiter] = fits, delimiter == usual == "\t", alike, header
    if divided:
        return max(divided, key=lambda delimiter: divided[delimiter])
    for delimiter in order:
        if all(width == 1 for width in _widths(file, source, delimiter, _ONE_COLUMN_RECORDS)):
            return delimiter
    return usual


def _widths(file: _File, source: _Source, delimiter: str, limit: int) -> Iterator[int]:
    """How many cells each of the first records has; -1 for one that cannot be read, the last."""
    try:
        for _, cells in islice(_cells(file, source, delimiter), limit):
            yield len(cells)
    except InputError:
        yield -1


# What a file is, and how it is encoded.


def _suffix(filename: str) -> str:
    """The end of a file's name in lower case, or ``""`` where it does not look like one."""
    match = re.search(r"\.[a-z][a-z0-9]{0,9}$", filename.strip().lower())
    return match[0] if match else ""


def _suffix_by_content(file: _File) -> str:
    """The kind of a file whose name does not tell: JSON if it begins so, else lines of text."""
    start = _window_with_start(file.text())
    if start.startswith("["):
        try:
            _element(start, 1)
        except ValueError:
            return ".json" if start[1:].lstrip()[:1] == "]" else ".txt"
        return ".json"
    if start.startswith("{"):
        try:
            parse_json(start.partition("\n")[0])
        except ValueError:
            return ".txt"
        return ".jsonl"
    return ".txt"


def _encoding(content: bytes, shown: str) -> str:
    """The encoding that all of ``content`` can be read with. Raises ``InputError``."""
    encoding = next((name for bom, name in _BOMS if content.startswith(bom)), "utf-8")
    wrong_at = _undecodable_at(content, encoding)
    if wrong_at is None:
        return encoding
    if encoding == "utf-8":
        sample = _sample(content)
        if not _is_utf8_but_for_a_little(sample):
            for guess in _guesses(sample):
                if _undecodable_at(content, guess) is None:
                    return guess
            raise InputError(
                f"file: {shown!r} is text in an unknown encoding, or no text at all: save it as"
                " UTF-8."
            )
    line = content.count(b"\n", 0, wrong_at) + 1
    raise InputError(
        f"file: line {line} of {shown!r} is not valid {encoding[:6].rstrip('-').upper()}:"
        " save the file as UTF-8 again."
    )


def _undecodable_at(content: bytes, encoding: str) -> int | None:
    """Where about ``content`` is not text in ``encoding``; ``None`` if it is throughout."""
    decoder = codecs.getincrementaldecoder(encoding)()
    view = memoryview(content)
    for start in range(0, len(content) + 1, _PIECE):
        piece = view[start : start + _PIECE]
        try:
            decoder.decode(piece, final=start + _PIECE > len(content))
        except UnicodeDecodeError as error:
            return start + min(error.start, len(piece))
    return None


def _sample(content: bytes) -> bytes:
    """Lines that are not ASCII, as far as they tell something about the encoding."""
    lines = bytearray()
    for match in re.finditer(rb"[^\r\n]*[\x80-\xff][^\r\n]*", content):
        line = match[0]
        if len(line) > _SAMPLE_BYTES:
            # Second bytes of characters are never below 0x30, in none of the encodings.
            first = re.search(rb"[\x80-\xff]", line)
            start = first.start() if first else 0
            cut = line[start : start + _SAMPLE_BYTES]
            end = max(cut.rfind(sign) for sign in (b" ", b",", b'"', b"\t"))
            line = cut[: end + 1] if end > 0 else cut
        lines += line + b"\n"
        if len(lines) >= _SAMPLE_BYTES:
            break
    return bytes(lines)


def _is_utf8_but_for_a_little(sample: bytes) -> bool:
    """Whether what fails is broken UTF-8: in another encoding it would be read as gibberish."""
    text = sample.decode(errors="replace")
    broken = text.count("\ufffd")
    whole = sum(not char.isascii() for char in text) - broken
    return whole > 4 * broken


def _guesses(sample: bytes) -> list[str]:
    """Encodings that ``sample`` makes sense in, the most likely first."""
    if _SCATTERED.fullmatch(sample):
        return ["cp1252"]
    # Loaded when a file asks for it, which few do.
    import charset_normalizer  # noqa: PLC0415

    matches = charset_normalizer.from_bytes(sample, cp_isolation=_LEGACY)
    ranked = {
        name: match.chaos
        for match in reversed(list(matches))
        for name in match.could_be_from_charset
        if name in _LEGACY
    }
    return sorted(ranked, key=lambda name: (ranked[name], _LEGACY.index(name)))
