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

from tests.nodes.support import (
    BAD_REQUEST,
    CONNECTION,
    RATE_LIMIT,
    REFUSED_KEY,
    UNAVAILABLE,
    chat_bodies,
    check_sentence,
    fresh_key,
    fresh_model,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from devtools.upstream import Upstream
    from tests.host.daemon import HostFile, Invocation, PluginError, PluginProcess, Result
    from tests.nodes.servers import Exchange, LoopbackServer

__all__ = ["FIELDS", "BatchNode", "Outcome", "Shelf", "as_csv", "texts"]

TOOL = "holysheep_batch"
PATIENCE_S = 15.0
MAX_MESSAGE_BYTES = 1_000_000

_INTEGERS = (
    *("total", "succeeded", "failed", "skipped", "cached_count", "upstream_calls"),
    "tokens_used",
)
_NUMBERS = ("cost_usd", "elapsed_ms", "throughput_rpm")
_VALUES = {*_INTEGERS, *_NUMBERS, "results", "latency", "truncated"}
"""What other nodes get as a value of its type."""
_STREAMED = {"progress", "status", *_INTEGERS, *_NUMBERS}
"""What an Answer shows: the strings, and each figure once as a text before its value."""
_LATENCY = ("avg_ms", "min_ms", "max_ms", "p50_ms", "p95_ms", "p99_ms")
FIELDS = {
    "index": int,
    "status": str,
    "query": str,
    "response": str,
    "error": str,
    "error_type": str,
    "model": str,
    "latency_ms": (int, float),
    "tokens_used": int,
    "cost_usd": (int, float, type(None)),
    "cached": bool,
}
"""The keys of a row, and what each may be."""
_MIME_TYPES = {"jsonl": "application/jsonl", "csv": "text/csv"}
_HOST_ERRORS = {REFUSED_KEY, BAD_REQUEST, RATE_LIMIT, CONNECTION, UNAVAILABLE}

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


class BatchNode:
    """The node with a credential and a model of its own, and nothing that limits it."""

    def __init__(self, plugin: PluginProcess, upstream: Upstream, **credentials: Any) -> None:
        self.plugin = plugin
        self.upstream = upstream
        self.key: str = credentials.get("api_key") or fresh_key()
        self.credentials: dict[str, Any] = {
            "api_key": self.key,
            "base_url": upstream.url,
            "default_model": fresh_model(),
            "requests_per_minute": "0",
            "max_concurrency": "100",
            **credentials,
        }

    def like(self, **credentials: Any) -> BatchNode:
        """The same credential with other settings."""
        return BatchNode(self.plugin, self.upstream, **{**self.credentials, **credentials})

    @property
    def calls(self) -> int:
        """Chat requests that have reached upstream."""
        return self.upstream.stats().calls

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """What the last 1,000 of these requests held."""
        return chat_bodies(self.upstream)

    @property
    def prompts(self) -> list[str]:
        """The user messages of these requests."""
        return [body["messages"][-1]["content"] for body in self.bodies]

    def start(
        self,
        queries: Any = None,
        *,
        app_id: str | None = "app-1",
        user_id: str = "user-1",
        **parameters: Any,
    ) -> Invocation:
        """Begin a batch and return at once. ``options`` may be a mapping."""
        if isinstance(parameters.get("options"), dict):
            parameters["options"] = json.dumps(parameters["options"])
        if queries is not None:
            parameters["queries"] = queries
        return self.plugin.start(TOOL, parameters, self.credentials, app_id=app_id, user_id=user_id)

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
        result = invocation.result(PATIENCE_S)
        values, rows = _check_complete(result)
        self.check_secret(result)
        if not resumed:
            _check_totals(values, rows)
        return Outcome(result, values, rows)

    def failure(self, queries: Any = None, **parameters: Any) -> PluginError:
        """The error of a batch that has to fail the node."""
        result = self.start(queries, **parameters).result(PATIENCE_S)
        assert result.error is not None, f"succeeded with {result.text[:200]!r}"
        self.check_error(result.error)
        self.check_secret(result)
        return result.error

    def refusal(self, queries: Any = None, **parameters: Any) -> str:
        """The sentence with which bad input is refused before anything is sent."""
        error = self.failure(queries, **parameters)
        assert error.type == BAD_REQUEST
        assert self.calls == 0
        return error.message

    def check_error(self, error: PluginError) -> None:
        """Fail unless this is an error that Dify shows as one clean sentence."""
        assert error.type in _HOST_ERRORS, error
        check_sentence(error.message)
        assert self.key not in repr(error) + repr(error.args)

    def check_secret(self, result: Result) -> None:
        assert self.key not in repr([arrival.data for arrival in result.messages[:1000]])
        assert not any(self.key.encode() in file.content for file in result.files)


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


def _check_complete(result: Result) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Fail unless every declared output came, once, in its form and order."""
    assert result.error is None, result.error
    assert result.json == []
    values = result.variables
    assert set(values) == _VALUES | _STREAMED
    _check_messages(result)
    _check_types(values)
    assert "\n" in result.text, "a summary for people has lines"
    assert not result.text.lstrip().startswith(("{", "[")), "text is for people"

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
    return values, rows


def _check_messages(result: Result) -> None:
    """Fail unless each message is of a kind and size that the host takes, in a good order."""
    settled: list[str] = []
    streamed: list[str] = []
    for _, data in result.messages:
        message = data["message"]
        match data["type"]:
            case "text":
                assert message["text"], "an empty text message"
            case "variable" if message["stream"]:
                assert message["variable_name"] not in settled, "streamed after its value"
                streamed.append(message["variable_name"])
            case "variable":
                settled.append(message["variable_name"])
            case "blob_chunk":
                assert len(message["blob"]) <= 8192 * 4 // 3 + 4
                continue
            case other:
                raise AssertionError(f"a message of the type {other}")
        size = len(json.dumps(data, ensure_ascii=False).encode(errors="replace"))
        assert size <= MAX_MESSAGE_BYTES, f"a message of {size} bytes"
    assert sorted(settled) == sorted(_VALUES), "each value once, strings streamed"
    assert set(streamed) == _STREAMED
    for name in _STREAMED - {"progress"}:
        assert streamed.count(name) == 1, name
    # The last line tells the end, however soon it comes after the one before.
    assert streamed.count("progress") <= 2 * result.elapsed_ms / 1000 + 1


def _check_types(values: dict[str, Any]) -> None:
    for name in _INTEGERS:
        assert type(values[name]) is int, name
        assert values[name] >= 0, name
    for name in _NUMBERS:
        assert name == "cost_usd" or values[name] is not None
        assert type(values[name]) in (int, float, type(None)), name
        assert (values[name] or 0) >= 0, name
    assert type(values["truncated"]) is bool
    assert type(values["results"]) is list
    latency = values["latency"]
    assert set(latency) == set(_LATENCY)
    assert all(type(latency[name]) in (int, float) for name in _LATENCY), latency
    ranks = [latency[name] for name in ("min_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms")]
    assert ranks == sorted(ranks)
    assert latency["min_ms"] <= latency["avg_ms"] <= latency["max_ms"]


def _check_row(row: dict[str, Any]) -> None:
    assert list(row) == list(FIELDS)
    for name, kind in FIELDS.items():
        assert isinstance(row[name], kind), f"{name}: {row[name]!r}"
        assert name == "cached" or not isinstance(row[name], bool), name
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
