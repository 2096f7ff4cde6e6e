"""The batch node as a workflow meets it: how tests call it, and what every outcome must look like.

Names and types stand here as the contract has them, apart from the node's own declaration.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import posixpath
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.nodes.support import NUMBER, Kind, Node, check_messages, check_sentence, check_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from devtools.upstream import Upstream
    from tests.host.daemon import HostFile, Invocation, PluginProcess, Result
    from tests.nodes.servers import Exchange, LoopbackServer

__all__ = ["FIELDS", "BatchNode", "Outcome", "Shelf", "as_csv", "texts"]

MAX_MESSAGE_BYTES = 1_000_000

_FIGURES: dict[str, Kind] = {
    "total": int,
    "succeeded": int,
    "failed": int,
    "skipped": int,
    "cached_count": int,
    "upstream_calls": int,
    "tokens_used": int,
    "cost_usd": NUMBER,
    "elapsed_ms": NUMBER,
    "throughput_rpm": NUMBER,
}
_LATENCY = ("avg_ms", "min_ms", "max_ms", "p50_ms", "p95_ms", "p99_ms")
FIELDS: dict[str, Kind] = {
    "index": int,
    "status": str,
    "query": str,
    "response": str,
    "error": str,
    "error_type": str,
    "model": str,
    "latency_ms": NUMBER,
    "tokens_used": int,
    "cost_usd": NUMBER,
    "cached": bool,
}
"""The keys of a row, and what each may be."""
_MIME_TYPES = {"jsonl": "application/jsonl", "csv": "text/csv"}

_numbers = itertools.count(1)


def texts(count: int, about: str = "row") -> list[str]:
    """So many prompts, none of which is the beginning of another."""
    return [f"{about} {number:05d}." for number in range(count)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch came to: its outputs, and every row as the result file has it.

    Without a file ``rows`` are those of ``results``.
    """

    result: Result
    values: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def statuses(self) -> list[str]:
        return [row["status"] for row in self.rows]

    @property
    def queries(self) -> list[str]:
        return [row["query"] for row in self.rows]

    @property
    def responses(self) -> list[str]:
        return [row["response"] for row in self.rows]

    @property
    def error_types(self) -> list[str]:
        return [row["error_type"] for row in self.rows]

    @property
    def files(self) -> list[HostFile]:
        return self.result.files

    @property
    def counts(self) -> tuple[int, int, int]:
        """Succeeded, failed, skipped."""
        return self.values["succeeded"], self.values["failed"], self.values["skipped"]


class BatchNode(Node):
    """The batch node, with nothing that limits it."""

    tool = "holysheep_batch"
    patience_s = 15.0

    def __init__(self, plugin: PluginProcess, upstream: Upstream, **credentials: Any) -> None:
        super().__init__(plugin, upstream, **{"max_concurrency": "100", **credentials})

    @property
    def prompts(self) -> list[str]:
        """The user messages of these requests."""
        return [body["messages"][-1]["content"] for body in self.bodies]

    def start(self, queries: Any = None, **parameters: Any) -> Invocation:
        if queries is not None:
            parameters["queries"] = queries
        return super().start(**parameters)

    def run(self, queries: Any = None, **parameters: Any) -> Outcome:
        """What a batch that must not fail comes to; all of it is checked."""
        return self.finish(self.start(queries, **parameters), resumed="file" in parameters)

    def ok(self, queries: Any = None, **parameters: Any) -> Outcome:
        """What a batch comes to that has to answer every row."""
        outcome = self.run(queries, **parameters)
        assert outcome.values["status"] == "ok", outcome.result.text
        return outcome

    def finish(self, invocation: Invocation, *, resumed: bool = False) -> Outcome:
        """The end of a batch that must not fail. ``resumed``: rows may be of an earlier run."""
        result = super().finish(invocation)
        rows = _check_rows(result)
        if not resumed:
            _check_totals(result.variables, rows)
        return Outcome(result, result.variables, rows)

    def check(self, result: Result) -> None:
        streamed = check_messages(
            result,
            strings={"progress", "status"},
            values={**_FIGURES, "results": list, "latency": dict, "truncated": bool},
            shown=set(_FIGURES),
            files=True,
        )
        assert streamed.count("status") == 1
        # The last line tells the end, however soon it comes after the one before.
        assert streamed.count("progress") <= 2 * result.elapsed_ms / 1000 + 1
        _check_sizes(result)
        _check_latency(result.variables["latency"])
        assert "\n" in result.text, "a summary for people has lines"
        assert not result.text.lstrip().startswith(("{", "[")), "text is for people"


class Shelf:
    """Files as Dify keeps them for a plugin: described in the parameters, fetched over HTTP."""

    def __init__(self, server: LoopbackServer) -> None:
        self.server = server
        self._contents: dict[str, bytes] = {}
        server.routes["*"] = self._serve

    def _serve(self, exchange: Exchange) -> None:
        name = posixpath.basename(exchange.path.partition("?")[0])
        exchange.answer(200, self._contents[name], {"content-type": "application/octet-stream"})

    def put(self, content: str | bytes, name: str = "rows.txt") -> dict[str, Any]:
        """The file with this content, as the host hands it to a plugin."""
        data = content.encode() if isinstance(content, str) else content
        place = str(next(_numbers))
        self._contents[place] = data
        url = f"{self.server.url}/files/{place}?timestamp=1&sign=do-not-show"
        return described(url, name, len(data))

    def again(self, outcome: Outcome) -> dict[str, Any]:
        """The result file of a batch, as a workflow hands it on."""
        (file,) = outcome.files
        return self.put(file.content, file.name or "")


def described(url: str, name: str, size: int = 100) -> dict[str, Any]:
    """A file parameter."""
    return {
        "dify_model_identity": "__dify__file__",
        "url": url,
        "filename": name,
        "mime_type": "application/octet-stream",
        "extension": posixpath.splitext(name)[1],
        "size": size,
        "type": "document",
    }


def as_csv(rows: Iterable[Sequence[str]], delimiter: str = ",", line_end: str = "\r\n") -> str:
    """Rows as a spreadsheet writes them."""
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, lineterminator=line_end).writerows(rows)
    return buffer.getvalue()


# --- what holds for every batch that does not fail ---


def _check_sizes(result: Result) -> None:
    """Fail unless the host takes each message."""
    for _, data in result.messages:
        if data["type"] == "blob_chunk":
            assert len(data["message"]["blob"]) <= 8192 * 4 // 3 + 4
        else:
            size = len(json.dumps(data, ensure_ascii=False).encode(errors="replace"))
            assert size <= MAX_MESSAGE_BYTES, f"a message of {size} bytes"


def _check_latency(latency: dict[str, Any]) -> None:
    assert set(latency) == set(_LATENCY)
    assert all(type(latency[name]) in (int, float) for name in _LATENCY), latency
    ranks = [latency[name] for name in ("min_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms")]
    assert ranks == sorted(ranks)
    assert latency["min_ms"] <= latency["avg_ms"] <= latency["max_ms"]


def _check_rows(result: Result) -> list[dict[str, Any]]:
    """Fail unless the rows are whole and what the counts say; returns them."""
    values = result.variables
    total, results = values["total"], values["results"]
    assert total == values["succeeded"] + values["failed"] + values["skipped"]
    assert values["truncated"] == (len(results) < total)
    rows = _rows_of_files(result.files) if result.files else results
    if result.files:
        assert len(rows) == total
        assert rows[: len(results)] == [_as_filed(row, result.files[0]) for row in results]
    for index, row in enumerate(rows):
        assert row["index"] == index
        _check_row(row)
    if not values["truncated"] or result.files:
        found = Counter(row["status"] for row in rows)
        assert (found["ok"], found["error"], found["skipped"]) == (
            values["succeeded"],
            values["failed"],
            values["skipped"],
        )
    assert values["status"] == ("ok" if values["succeeded"] == total else "partial")
    return rows


def _check_row(row: dict[str, Any]) -> None:
    assert list(row) == list(FIELDS)
    for name, kind in FIELDS.items():
        check_value(name, row[name], kind)
    assert row["query"]
    if row["status"] == "ok":
        assert (row["error"], row["error_type"]) == ("", "")
        assert row["model"]
        if row["cached"]:
            assert row["cost_usd"] == 0
        return
    assert row["status"] in ("error", "skipped")
    assert row["response"] == ""
    assert row["error_type"]
    assert row["cached"] is False
    check_sentence(row["error"])


def _check_totals(values: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Fail unless the totals are the sums of the rows, where all rows are at hand."""
    if len(rows) < values["total"]:
        return
    assert values["cached_count"] == sum(row["cached"] for row in rows)
    assert values["tokens_used"] == sum(row["tokens_used"] for row in rows)
    costs = [row["cost_usd"] for row in rows]
    if None in costs:
        assert values["cost_usd"] is None
    elif not values["failed"]:
        assert values["cost_usd"] == pytest.approx(sum(costs))
    assert values["upstream_calls"] >= sum(
        row["status"] == "ok" and not row["cached"] for row in rows
    )
    minutes = values["elapsed_ms"] / 60_000
    assert values["throughput_rpm"] == pytest.approx(values["succeeded"] / minutes, rel=0.05)


def _rows_of_files(files: list[HostFile]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, file in enumerate(files, 1):
        name = file.name or ""
        kind = name.rpartition(".")[2]
        assert file.mime_type == _MIME_TYPES[kind]
        assert name == (f"results-{number}.{kind}" if len(files) > 1 else f"results.{kind}")
        rows += _jsonl_rows(file.content) if kind == "jsonl" else _csv_rows(file.content)
    return rows


def _jsonl_rows(content: bytes) -> list[dict[str, Any]]:
    assert content.endswith(b"\n")
    return [json.loads(line) for line in content.decode().split("\n")[:-1]]


def _csv_rows(content: bytes) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    rows: list[dict[str, Any]] = []
    for row in reader:
        cost = row["cost_usd"]
        rows.append(
            {
                **row,
                "index": int(row["index"]),
                "latency_ms": float(row["latency_ms"]),
                "tokens_used": int(row["tokens_used"]),
                "cost_usd": float(cost) if cost else None,
                "cached": {"true": True, "false": False}[row["cached"]],
            }
        )
    return rows


def _as_filed(row: dict[str, Any], file: HostFile) -> dict[str, Any]:
    """A row of ``results`` as that file must hold it."""
    if (file.name or "").endswith(".csv"):
        return {**row, "latency_ms": float(row["latency_ms"])}
    return row
