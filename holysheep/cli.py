"""The command line: ``python -m holysheep chat "Hello" --model deepseek-v3.2 --stream``.

The answer goes to standard output and nothing else does; errors go to standard error as one line,
``error: <error_type>: <message>``. Exit codes: 0 answered, 1 interrupted, output that nobody takes,
or a bug, 2 wrong usage or input, 3 the key was refused, 4 a rate limit, quota or budget, 5 upstream
is down or unreadable, 6 it did not accept the request.
"""

import errno
import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from holysheep import config
from holysheep.client import API_KEY_VARIABLE, BASE_URL_VARIABLE, Client
from holysheep.errors import (
    AuthError,
    BadResponse,
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
    refused = isinstance(error, UpstreamError) and not error.retryable
    return 6 if refused and not isinstance(error, BadResponse) else 5


def _reports_errors[**P](command: Callable[P, None]) -> Callable[P, None]:
    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            if sys.stdout is None:
                # Before anything is asked for that nobody would see.
                raise _OutputLost(OSError(errno.EBADF, os.strerror(errno.EBADF)))
            command(*args, **kwargs)
        except UnicodeError:
            click.echo("error: invalid_input: The input is not UTF-8 text.", err=True)
            sys.exit(2)
        except _OutputLost as error:
            if error.reason.errno != errno.EPIPE:  # a reader that leaves has seen enough
                told = error.reason.strerror
                click.echo(f"error: output: The answer could not be written: {told}.", err=True)
            _give_up_output()
            sys.exit(1)
        except HolySheepError as error:
            click.echo(f"error: {error.error_type}: {error}", err=True)
            sys.exit(exit_code(error))

    return run


class _OutputLost(Exception):
    """Standard output is full, or closed."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _say(text: str, *, nl: bool = True) -> None:
    """Print, at once."""
    try:
        click.echo(text, nl=nl)
    except OSError as error:
        raise _OutputLost(error) from None


def _give_up_output() -> None:
    """Let what is left in the buffer go nowhere, or the interpreter complains when it ends."""
    try:
        number = sys.stdout.fileno()
    except (AttributeError, OSError):
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _client(api_key: str | None, base_url: str) -> Client:
    if not (api_key or "").strip():
        raise SettingsError(
            f"There is no API key. Set {API_KEY_VARIABLE} in the environment, or give --api-key."
        )
    return Client(api_key, base_url=base_url)


def _utf8(argument: str) -> str:
    """An argument, whose bytes must be UTF-8 whatever the locale says. Raises ``UnicodeError``."""
    return os.fsencode(argument).decode()


def _standard_input() -> str:
    """All of standard input, whatever the locale says. Raises ``UnicodeError``."""
    if sys.stdin is None:
        raise InputError("Standard input is closed, so there is no prompt to read from it.")
    return sys.stdin.buffer.read().decode("utf-8-sig")


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
    prompt = _standard_input() if prompt == "-" else _utf8(prompt)
    messages = [{"role": "user", "content": prompt}]
    if system:
        messages.insert(0, {"role": "system", "content": _utf8(system)})
    given = {name: value for name, value in params.items() if value not in (None, ())}
    if json_schema is not None:
        given["json_schema"] = json_schema.read() or "-"
    with _client(api_key, base_url) as client:
        if stream and not as_json:
            for delta in client.stream(messages, **given):
                _say(delta.text, nl=False)
            _say("")
            return
        result = client.chat(messages, **given)
    _say(json.dumps(result.to_json(), ensure_ascii=False) if as_json else result.text)


@main.command()
@_connection
@_reports_errors
def models(base_url: str, api_key: str | None) -> None:
    """List the models that the gateway offers to the key, one a line."""
    with _client(api_key, base_url) as client:
        for model in client.models():
            _say(model)
