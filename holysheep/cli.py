"""The command line: ``python -m holysheep chat "Hello" --model deepseek-v3.2 --stream``.

The answer goes to standard output and nothing else does; errors go to standard error. Exit codes
are in the help.
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
    asking,
    client_of,
    connection,
    model_option,
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

# The character before it keeps click from filling the lines.
_EXIT_CODES = """\b
Exit codes:
  0  answered
  1  interrupted, output that cannot be written, or a bug
  2  wrong usage, input or setting
  3  the key was refused
  4  a rate limit, quota or budget
  5  the gateway is down or unreadable
  6  the gateway did not accept the request
  7  some rows of a batch have no answer
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXIT_CODES)
@click.version_option(package_name=None, version=config.VERSION, prog_name="holysheep")
def main() -> None:
    """Call LLMs through an OpenAI-compatible gateway.

    The answer goes to standard output and nothing else does; errors go to standard error as one
    line, "error: ERROR_TYPE: MESSAGE". All commands but cost and usage need the gateway's key, best
    in HOLYSHEEP_API_KEY of the environment. Proxies are those of HTTPS_PROXY and the like.
    """


@main.command(short_help="Ask once and print the answer.")
@click.argument("prompt")
@connection
@asking
@click.option("--system", "-s", help="Instructions before the prompt.")
@click.option(
    "--timeout", "timeout_s", type=float, help="Seconds for all of it, 1 to 540; default 60."
)
@click.option("--retries", "max_retries", type=int, help="Per model, 0 to 10; default 3.")
@click.option("--stream", is_flag=True, help="Show the answer as it arrives.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the whole result as JSON: cost, tokens and all."
)
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
    """Ask PROMPT ("-" reads it from standard input) and print the answer.

    With --stream it is printed as it arrives; --json prints the whole result at its end.
    """
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


@main.command(short_help="Ask once for each row of a file and write all results.")
@click.argument("rows", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(path_type=Path),
    help="Result file, .jsonl or .csv; must not exist, but for --resume.",
)
@click.option(
    "--template",
    help="Prompt of a row: Jinja2, {{ item }} is the row (default), columns have their names.",
)
@click.option("--template-file", type=click.File(encoding="utf-8-sig"), help="The same, in a file.")
@connection
@asking
@click.option("--system", "-s", "system_prompt", help="Instructions before the prompt.")
@click.option("--concurrency", "-c", type=int, help="Rows in flight, 1 to 100; default 10.")
@click.option(
    "--requests-per-minute", type=float, help="What the key is granted; 0 = no limit; default 60."
)
@click.option(
    "--row-timeout",
    "row_timeout_s",
    type=float,
    help="Seconds for a row, waiting for limits apart, 1 to 540; default 60.",
)
@click.option(
    "--deadline",
    "deadline_s",
    type=float,
    help="Seconds after which rows without an answer are skipped; default: none.",
)
@click.option("--retries", "max_retries", type=int, help="Per row and model, 0 to 10; default 3.")
@click.option("--stop-on-error", is_flag=True, help="Begin no more rows after a failed one.")
@click.option("--resume", is_flag=True, help="Ask for what the output file lacks.")
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
    """Ask once for each row of the file ROWS and write all results, in the order of the rows.

    A row is a line of .txt, a record of .csv or .tsv below the header, a text or an object in a
    line of .jsonl or in the array of .json. Its result has index, status (ok, error or skipped),
    query, response, error, error_type, model, latency_ms, tokens_used, cost_usd and cached.
    Progress and a summary go to standard error.

    Ctrl-C ends it in an orderly way, and so may a failure; the same command with --resume asks for
    the rows that have no answer, or another prompt by now.
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
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    help="Id of a model; repeatable; default: all with a price.",
)
@click.option(
    "--text",
    "input_text",
    help='What a request sends ("-" = standard input); its tokens are estimated, about four Latin'
    " characters each, or one Chinese.",
)
@click.option("--prompt-tokens", type=int, help="Of a request; default: those of --text.")
@click.option("--completion-tokens", type=int, help="Of its answer; default 0.")
@click.option(
    "--cached-tokens",
    type=int,
    help="Prompt tokens that the provider has in its own cache; default 0.",
)
@click.option("--requests", type=int, help="How many; default 1.")
@click.option(
    "--hit-rate",
    "cache_hit_rate",
    type=float,
    help="Share of the requests that the answer cache serves, at no cost, 0 to 1; default 0.",
)
@click.option(
    "--prices",
    type=click.File(encoding="utf-8"),
    help="YAML file, model: {input, output}, in USD per million tokens, before all other prices.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the rows as JSON, money as numbers in USD."
)
@reports_errors
def cost(input_text: str | None, prices: Any, as_json: bool, **params: Any) -> None:
    """Estimate what a load costs with each model, in USD.

    The cheapest comes first. Makes no call and needs no key. Prices are those of --prices, else the
    providers' list prices as of 2026-11-01; a gateway may sell at others.
    """
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
@model_option
@click.option("--prompt", help="What to ask each time; default: a short question.")
@click.option("--iterations", "-n", type=int, help="How often, 1 to 500; default 20.")
@click.option("--concurrency", "-c", type=int, help="Calls at a time, 1 to 100; default 1.")
@click.option(
    "--max-tokens", type=int, help="Longest answer in tokens, 1 to 1,000,000; default 128."
)
@click.option(
    "--deadline",
    "deadline_s",
    type=float,
    help="Seconds after which to end, 1 to 580; default 300.",
)
@reports_errors
def benchmark(
    base_url: str,
    api_key: str | None,
    redis_url: str | None,
    prompt: str | None,
    **params: Any,
) -> None:
    """Measure how fast a model answers your key. Every iteration costs a request.

    None comes from a cache, and none is tried again. Latency is that of the gateway, from the
    request being sent to the last byte; percentiles are nearest-rank, so each is a measured value.
    """
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


@main.command(short_help="Show an export of the usage node.")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--group-by", help="model (default), day (UTC), app, node or status.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the rows as JSON, money as numbers in USD."
)
@reports_errors
def usage(file: Path, group_by: str | None, as_json: bool) -> None:
    """Show FILE, an export of the usage node ("-" = standard input).

    That is what the node gives as json in Dify, and Usage.to_json() in Python. Makes no call and
    needs no key.
    """
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
