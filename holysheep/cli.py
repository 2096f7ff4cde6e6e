"""The command line: ``python -m holysheep chat "Hello" --model deepseek-v3.2 --stream``.

The answer goes to standard output and nothing else does; errors go to standard error as one line,
``error: <error_type>: <message>``. Exit codes: 0 answered, 1 interrupted, output that nobody takes
or that has no room, or a bug, 2 wrong usage or input, 3 the key was refused, 4 a rate limit, quota
or budget, 5 upstream is down or unreadable, 6 it did not accept the request, 7 some rows of a batch
have no answer.
"""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from holysheep import config
from holysheep.batch import check_rows
from holysheep.cli_support import (
    client_of,
    connection,
    reports_errors,
    say,
    standard_input,
    utf8,
)
from holysheep.client import BatchResults
from holysheep.errors import InputError
from holysheep.estimate import estimate
from holysheep.filebatch import FileBatch, WriteFailed, content_of, read_rows
from holysheep.jsontext import parse_json
from holysheep.params import CostParams, UsageParams
from holysheep.ports import SystemClock
from holysheep.pricing import PriceBook, parse_overrides
from holysheep.reading import parse_literal, parsed, set_values
from holysheep.report import batch_report, benchmark_report, cost_report, usage_report
from holysheep.template import Template
from holysheep.usage import Usage


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=None, version=config.VERSION, prog_name="holysheep")
def main() -> None:
    """Call LLMs through an OpenAI-compatible gateway."""


@main.command()
@click.argument("prompt")
@connection
@click.option("--model", "-m", default=config.DEFAULT_MODEL, show_default=True)
@click.option("--system", "-s", help="System prompt.")
@click.option("--temperature", "-t", type=float, help="From 0 to 2.")
@click.option("--max-tokens", type=int, help="Longest answer.")
@click.option("--fallback", "fallback_models", multiple=True, help="Model to ask next; repeatable.")
@click.option(
    "--schema", "json_schema", type=click.File(encoding="utf-8"), help="JSON Schema file."
)
@click.option("--timeout", "timeout_s", type=float, help="Deadline in seconds.")
@click.option("--retries", "max_retries", type=int, help="Retries per model.")
@click.option("--stream", is_flag=True, help="Show the answer as it arrives.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON.")
@reports_errors
def chat(
    prompt: str,
    base_url: str,
    api_key: str | None,
    redis_url: str | None,
    system: str | None,
    json_schema: Any,
    stream: bool,
    as_json: bool,
    **params: Any,
) -> None:
    """Ask PROMPT ("-" reads it from standard input) and print the answer."""
    prompt = standard_input() if prompt == "-" else utf8(prompt)
    messages = [{"role": "user", "content": prompt}]
    if system:
        messages.insert(0, {"role": "system", "content": utf8(system)})
    given = {name: value for name, value in params.items() if value not in (None, ())}
    if json_schema is not None:
        given["json_schema"] = json_schema.read() or "-"
    with client_of(api_key, base_url, redis_url) as client:
        if stream and not as_json:
            for delta in client.stream(messages, **given):
                say(delta.text, nl=False)
            say("")
            return
        result = client.chat(messages, **given)
    say(json.dumps(result.to_json(), ensure_ascii=False) if as_json else result.text)


@main.command()
@connection
@reports_errors
def models(base_url: str, api_key: str | None, redis_url: str | None) -> None:
    """List the models that the gateway offers to the key, one a line."""
    with client_of(api_key, base_url, redis_url) as client:
        for model in client.models():
            say(model)


_WAY_ON = "The same command with --resume asks for the missing rows only."


def _template(template: str | None, file: Any) -> str:
    if template is not None and file is not None:
        raise InputError("Give --template or --template-file, not both.")
    given = utf8(template or "") if file is None else str(file.read())
    return given if given.strip() else "{{ item }}"


@main.command()
@click.argument("rows", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(path_type=Path),
    help="Result file, .jsonl or .csv.",
)
@click.option("--template", help="Prompt of a row: Jinja2, with {{ item }} or column names.")
@click.option("--template-file", type=click.File(encoding="utf-8-sig"), help="The same, in a file.")
@connection
@click.option("--model", "-m", default=config.DEFAULT_MODEL, show_default=True)
@click.option("--system", "-s", "system_prompt", help="System prompt.")
@click.option("--temperature", "-t", type=float, help="From 0 to 2.")
@click.option("--max-tokens", type=int, help="Longest answer.")
@click.option("--fallback", "fallback_models", multiple=True, help="Model to ask next; repeatable.")
@click.option(
    "--schema", "json_schema", type=click.File(encoding="utf-8"), help="JSON Schema file."
)
@click.option("--concurrency", "-c", type=int, help="Rows in flight, 1 to 100.")
@click.option("--requests-per-minute", type=float, help="Limit of the key; 0 = none.")
@click.option("--row-timeout", "row_timeout_s", type=float, help="Seconds that a row may take.")
@click.option("--deadline", "deadline_s", type=float, help="Seconds after which to end.")
@click.option("--retries", "max_retries", type=int, help="Retries per row and model.")
@click.option("--stop-on-error", is_flag=True, help="Begin no more rows after a failed one.")
@click.option("--resume", is_flag=True, help="Take up the output file: ask for what is missing.")
@reports_errors
def batch(
    rows: Path,
    output: Path,
    template: str | None,
    template_file: Any,
    base_url: str,
    api_key: str | None,
    redis_url: str | None,
    concurrency: int | None,
    requests_per_minute: float | None,
    json_schema: Any,
    stop_on_error: bool,
    resume: bool,
    **params: Any,
) -> None:
    """Ask once for each row of the file ROWS (.txt, .csv, .jsonl, .json) and write all results.

    Ctrl-C ends it in an orderly way; the same command with --resume asks for what is missing.
    """
    source = read_rows(rows)
    prompt_template = _template(template, template_file)
    compiled = Template(prompt_template)
    written = FileBatch(output, resumes=resume)
    total = check_rows(source, compiled, SystemClock(), most=None)
    given = {name: value for name, value in params.items() if value not in (None, ())}
    if json_schema is not None:
        given["json_schema"] = json_schema.read() or "-"
    if stop_on_error:
        given["on_row_error"] = "stop"
    if concurrency is not None:
        given["concurrency"] = concurrency
    settings = {
        # The default of a credential that several workflows share is too low for one batch alone.
        "max_concurrency": max(config.DEFAULT_MAX_CONCURRENCY, concurrency or 0),
        "requests_per_minute": requests_per_minute,
    }
    with client_of(api_key, base_url, redis_url, **settings) as client:
        results = client.batch(written.rows(source, compiled), prompt_template, **given)
        try:
            with (
                written,
                _interrupting(results),
                click.progressbar(results, length=total, file=sys.stderr) as bar,
            ):
                for result in bar:
                    written.write(result)
        except WriteFailed as error:
            click.echo(f"error: output: {error} {_WAY_ON}", err=True)
            sys.exit(1)
    click.echo(batch_report(results.batch, [str(output)], way_on=_WAY_ON), err=True)
    if results.batch.is_stopped:
        sys.exit(1)
    results.batch.raise_if_nothing_was_answered()
    if results.totals.status != "ok":
        sys.exit(7)


@contextmanager
def _interrupting(results: BatchResults) -> Iterator[None]:
    """Ctrl-C ends the batch, the second one the program."""

    def end(*_: Any) -> None:
        signal.signal(signal.SIGINT, before)
        results.batch.stop("Interrupted.")

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@main.command()
@click.option("--model", "-m", "models", multiple=True, help="Repeatable; else all with a price.")
@click.option("--text", "input_text", help='Text to estimate the prompt from ("-" = stdin).')
@click.option("--prompt-tokens", type=int, help="Prompt tokens of a request.")
@click.option("--completion-tokens", type=int, help="Tokens of its answer.")
@click.option("--cached-tokens", type=int, help="Prompt tokens that the provider has cached.")
@click.option("--requests", type=int, help="How many requests.")
@click.option("--hit-rate", "cache_hit_rate", type=float, help="Share answered by a cache, 0 to 1.")
@click.option(
    "--prices", type=click.File(encoding="utf-8"), help="YAML file of prices, as price_overrides."
)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@reports_errors
def cost(input_text: str | None, prices: Any, as_json: bool, **params: Any) -> None:
    """Estimate what a load costs with each model. Makes no call and needs no key."""
    given = {name: value for name, value in params.items() if value not in (None, ())}
    if input_text is not None:
        given["input_text"] = standard_input() if input_text == "-" else utf8(input_text)
    overrides = parse_overrides(prices.read()) if prices is not None else {}
    found = estimate(parsed(CostParams, set_values(given)), PriceBook(overrides))
    if as_json:
        say(json.dumps([row.to_json() for row in found.rows], ensure_ascii=False))
    else:
        say(cost_report(found))


@main.command()
@connection
@click.option("--model", "-m", default=config.DEFAULT_MODEL, show_default=True)
@click.option("--prompt", help="What to ask each time.")
@click.option("--iterations", "-n", type=int, help="How often, 1 to 500.")
@click.option("--concurrency", "-c", type=int, help="Calls at a time, 1 to 100.")
@click.option("--max-tokens", type=int, help="Longest answer.")
@click.option("--deadline", "deadline_s", type=float, help="Seconds after which to end.")
@reports_errors
def benchmark(
    base_url: str,
    api_key: str | None,
    redis_url: str | None,
    prompt: str | None,
    **params: Any,
) -> None:
    """Measure how fast a model answers your key. Every iteration costs a request."""
    given = {name: value for name, value in params.items() if value is not None}
    if prompt is not None:
        given["prompt"] = utf8(prompt)
    # The limit of an ordinary credential would be what is measured.
    limits = {"requests_per_minute": 0, "max_concurrency": 100}
    with client_of(api_key, base_url, redis_url, **limits) as client:
        run = client.benchmark(**given)
        iterations = given.get("iterations", config.BENCHMARK_ITERATIONS)
        with click.progressbar(length=iterations, file=sys.stderr) as bar:
            for done in run:
                bar.update(done - bar.pos)
        run.raise_if_nothing_was_answered()
        say(benchmark_report(run))


@main.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--group-by", help="model (default), day, app, node or status.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@reports_errors
def usage(file: Path, group_by: str | None, as_json: bool) -> None:
    """Show FILE, an export of the usage node ("-" = stdin). Makes no call and needs no key."""
    group = parsed(UsageParams, set_values({"group_by": group_by})).group_by
    text = standard_input() if str(file) == "-" else content_of(file).decode("utf-8-sig")
    found = Usage.from_json(_exported(text))
    if as_json:
        say(json.dumps([row.to_json() for row in found.rows[group]], ensure_ascii=False))
    else:
        say(usage_report(found, group, draws=False))


def _exported(text: str) -> Any:
    """The document of an export as Dify hands it on: in a list, in a text as Python spells it."""
    try:
        value = parse_json(text)
    except ValueError:
        value = parse_literal(text)
    return value[0] if isinstance(value, list) and len(value) == 1 else value
