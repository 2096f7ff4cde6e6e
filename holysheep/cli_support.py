"""What the commands share: exit codes, errors and output of a well-behaved program."""

import errno
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from holysheep import config
from holysheep.client import API_KEY_VARIABLE, BASE_URL_VARIABLE, REDIS_URL_VARIABLE, Client
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


def reports_errors[**P](command: Callable[P, None]) -> Callable[P, None]:
    """A command whose errors are one line on standard error and an exit code."""

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


def say(text: str, *, nl: bool = True) -> None:
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


def client_of(api_key: str | None, base_url: str, redis_url: str | None, **settings: Any) -> Client:
    """A client with the options that every command has. Raises ``SettingsError``."""
    if not (api_key or "").strip():
        raise SettingsError(
            f"There is no API key. Set {API_KEY_VARIABLE} in the environment, or give --api-key."
        )
    return Client(api_key, base_url=base_url, redis_url=redis_url, **settings)


def utf8(argument: str) -> str:
    """An argument, whose bytes must be UTF-8 whatever the locale says. Raises ``UnicodeError``."""
    return os.fsencode(argument).decode()


def standard_input() -> str:
    """All of standard input, whatever the locale says. Raises ``UnicodeError``."""
    if sys.stdin is None:
        raise InputError("Standard input is closed, so there is no prompt to read from it.")
    return sys.stdin.buffer.read().decode("utf-8-sig")


def connection(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every command which calls the gateway takes."""
    base_url = click.option(
        "--base-url",
        envvar=BASE_URL_VARIABLE,
        default=config.DEFAULT_BASE_URL,
        show_default=True,
        show_envvar=True,
        help="Base of an OpenAI-compatible API.",
    )
    api_key = click.option(
        "--api-key",
        envvar=API_KEY_VARIABLE,
        show_envvar=True,
        help="Key of the gateway; better given in the environment.",
    )
    redis_url = click.option(
        "--redis-url",
        envvar=REDIS_URL_VARIABLE,
        show_envvar=True,
        help="Redis to share cache, limits and usage by, with programs of the same key.",
    )
    with_all: Callable[..., None] = base_url(api_key(redis_url(command)))
    return with_all


model_option = click.option(
    "--model", "-m", default=config.DEFAULT_MODEL, show_default=True, help="Id of the model."
)


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every command takes which asks what the user says."""
    options = (
        model_option,
        click.option("--temperature", "-t", type=float, help="0 to 2; default 0.7."),
        click.option(
            "--max-tokens", type=int, help="Longest answer in tokens, 1 to 1,000,000; default 2048."
        ),
        click.option(
            "--fallback",
            "fallback_models",
            multiple=True,
            help="Model to ask where the one before fails; repeatable.",
        ),
        click.option(
            "--schema",
            "json_schema",
            type=click.File(encoding="utf-8"),
            help="File with a JSON Schema that the answer must satisfy.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command
