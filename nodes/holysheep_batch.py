"""The HolySheep Batch node: many rows through one call."""

import json
import tempfile
from pathlib import Path
from typing import Any

from dify_plugin import Tool

from holysheep import config
from holysheep.batch import Batch, Progress, check_rows
from holysheep.errors import InputError
from holysheep.params import BatchParams
from holysheep.reading import chosen, is_unset, parsed
from holysheep.report import batch_report
from holysheep.results import ResultFile, RowResult
from holysheep.rows import Rows, joined, rows_of_file, rows_of_queries
from holysheep.template import Template
from host import process
from nodes import _adapter

MIME_TYPES = {"jsonl": "application/jsonl", "csv": "text/csv"}


class HolySheepBatchNode(Tool):
    """Rows in, one batch of the engine, a file and totals out."""

    def _invoke(self, tool_parameters: dict[str, Any]) -> _adapter.Messages:
        started_s = process.clock().monotonic()
        with (
            _adapter.host_errors(self),
            process.invocation(self.session, "batch", lasts=True) as invocation,
            tempfile.TemporaryDirectory(prefix="holysheep-") as folder,
        ):
            engine = _adapter.engine_of(self)
            raw = dict(tool_parameters)
            file = raw.pop("file", None)
            given = chosen(raw, default_model=engine.settings.default_model)
            params = parsed(BatchParams, given)
            template = Template(params.prompt_template)
            rows = _rows(given.get("queries"), file, started_s + params.deadline_s)
            batch = Batch(
                engine,
                params,
                rows,
                clock=process.clock(),
                spawn=process.spawn,
                total=check_rows(rows, template, process.clock()),
                app_id=self.session.app_id,
                user_id=self.runtime.user_id,
                started_s=started_s,
                invocation=invocation,
            )
            inline = _Inline(params.options.max_inline_results)
            written = _file_for(params, Path(folder))
            for found in batch.results(progress_s=config.PROGRESS_S):
                if isinstance(found, Progress):
                    yield from _adapter.string(self, "progress", f"{found}\n")
                    continue
                inline.add(found)
                if written is not None:
                    written.write(found)
            yield from _adapter.string(self, "progress", f"{batch.progress()}\n")
            batch.raise_if_nothing_was_answered()
            parts = []
            if written is not None:
                written.close()
                parts = written.paths
            yield from _adapter.text(self, batch_report(batch, [path.name for path in parts]))
            for path in parts:
                yield from _adapter.file(path, MIME_TYPES[params.output_format])
            yield from self._outputs(batch, inline)

    def _outputs(self, batch: Batch, inline: "_Inline") -> _adapter.Messages:
        totals = batch.totals
        yield from _adapter.string(self, "status", totals.status)
        for name, value in (
            ("total", totals.total),
            ("succeeded", totals.succeeded),
            ("failed", totals.failed),
            ("skipped", totals.skipped),
            ("cached_count", totals.cached),
            ("upstream_calls", totals.upstream_calls),
            ("tokens_used", totals.tokens_used),
            ("cost_usd", totals.cost_usd),
            ("elapsed_ms", round(batch.elapsed_s * 1000, 3)),
            ("throughput_rpm", batch.throughput_rpm),
        ):
            yield from _adapter.figure(self, name, value)
        yield _adapter.variable(self, "results", inline.results)
        yield _adapter.variable(self, "truncated", inline.is_cut)
        yield _adapter.variable(self, "latency", totals.latencies.summary().to_json())


class _Inline:
    """The first results, as many as are wanted and as fit into one message."""

    def __init__(self, most: int) -> None:
        self.results: list[dict[str, Any]] = []
        self.is_cut = False
        self._most = most
        self._bytes_left = config.MAX_INLINE_BYTES

    def add(self, result: RowResult) -> None:
        if not self.is_cut and len(self.results) < self._most:
            row = result.to_json()
            self._bytes_left -= len(json.dumps(row)) + 2
            if self._bytes_left >= 0:
                self.results.append(row)
                return
        self.is_cut = True


def _rows(queries: Any, file: Any, deadline_s: float) -> Rows:
    parts = []
    if not is_unset(queries) and queries != []:
        parts.append(rows_of_queries(queries))
    if not is_unset(file) and file != []:
        filename, content = _adapter.file_of(file, "file", deadline_s=deadline_s)
        parts.append(rows_of_file(content, filename, give_way=process.give_way))
    if not parts:
        raise InputError("There are no rows: give the node queries, or a file, or both.")
    return joined(*parts) if len(parts) > 1 else parts[0]


def _file_for(params: BatchParams, folder: Path) -> ResultFile | None:
    if params.output_format == "none":
        return None
    return ResultFile(folder, params.output_format)
