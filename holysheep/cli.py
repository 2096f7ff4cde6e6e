"""The command line: ``python -m holysheep chat "Hello" --model deepseek-v3.2 --stream``.

The answer goes to standard output and nothing else does; errors go to standard error as one line,
``error: <error_type>: <message>``. Exit codes: 0 answered, 1 bug or interrupted, 2 wrong usage or
input, 3 the key was refused, 4 a rate limit, quota or budget, 5 upstream is down or unreadable,
6 it did not accept the request.
"""

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from holysheep import config
from holysheep.client import API_KEY_VARIABLE, BASE_URL_VARIABLE, Client
from holysheep.errors import (
    AuthError,
    BudgetExceeded,
    HolySheepError,
    InputError,
    LimiterTimeout,
    QuotaExhausted,
    RateLimited,
    SettingsError,
    UpstreamError,
)

EXIT_CODES: tuple[tuple[type[HolySheepError] | tuple[type[HolySheepError], ...], int], ...] = (
    ((InputError, SettingsError), 2),
    (AuthError, 3),
    ((RateLimited, QuotaExhausted, LimiterTimeout, BudgetExceeded), 4),
)
"""Checked in this order; what is none of them and no outage exits with 6."""


def exit_code(error: HolySheepError) -> int:
    """The exit code for an error."""
    for kinds, code in EXIT_CODES:
        if isinstance(error, kinds):
            return code
    return 6 if isinstance(error, UpstreamError) and not error.retryable else 5


def _reports_errors[**P](command: Callable[P, None]) -> Callable[P, None]:
    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except UnicodeDecodeError:
            click.echo("error: invalid_input: The input is not UTF-8 text.", err=True)
            sys.exit(2)
        except HolySheepError as error:
            click.echo(f"error: {error.error_type}: {error}", err=True)
            sys.exit(exit_code(error))

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=None, version=config.VERSION, prog_name="holysheep")
def main() -> None:
    """Call LLMs through an OpenAI-compatible gateway."""


def _connection(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every command which calls the gateway takes."""
    base_url = click.option(
        "--base-url",
        envvar=BASE_URL_VARIABLE,
        default=config.DEFAULT_BASE_URL,
        show_default=True,
        show_envvar=True,
        help="OpenAI-compatible base URL.",
    )
    api_key = click.option(
        "--api-key",
        envvar=API_KEY_VARIABLE,
        show_envvar=True,
        help="Key of the gateway; better given in the environment.",
    )
    with_both: Callable[..., None] = base_url(api_key(command))
    return with_both


@main.command()
@click.argument("prompt")
@_connection
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
@_reports_errors
def chat(
    prompt: str,
    base_url: str,
    api_key: str | None,
    system: str | None,
    json_schema: Any,
    stream: bool,
    as_json: bool,
    **params: Any,
) -> None:
    """Ask PROMPT ("-" reads it from standard input) and print the answer."""
    if prompt == "-":
        prompt = sys.stdin.read()
    messages = [{"role": "user", "content": prompt}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    given = {name: value for name, value in params.items() if value not in (None, ())}
    if json_schema is not None:
        given["json_schema"] = json_schema.read() or "-"
    with Client(api_key, base_url=base_url) as client:
        if stream and not as_json:
            for delta in client.stream(messages, **given):
                click.echo(delta.text, nl=False)
                sys.stdout.flush()
            click.echo()
            return
        result = client.chat(messages, **given)
    click.echo(json.dumps(result.to_json(), ensure_ascii=False) if as_json else result.text)


@main.command()
@_connection
@_reports_errors
def models(base_url: str, api_key: str | None) -> None:
    """List the models that the gateway offers to the key, one a line."""
    with Client(api_key, base_url=base_url) as client:
        for model in client.models():
            click.echo(model)
