"""The engine as a library: ``Client`` for scripts and services outside Dify."""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel

from holysheep import config
from holysheep.batch import Batch, Totals, check_rows
from holysheep.benchmark import Benchmark
from holysheep.chain import Chain
from holysheep.credentials import check_credentials, list_models
from holysheep.engine import Answer, Engine
from holysheep.errors import InputError, SettingsError
from holysheep.options import BatchOptions, ChainOptions, Options
from holysheep.params import (
    BatchParams,
    BenchmarkParams,
    ChainParams,
    ChatParams,
    UsageParams,
    parse_messages,
)
from holysheep.ports import SystemClock, spawn_thread
from holysheep.reading import chosen, parsed, shown
from holysheep.registry import Registry
from holysheep.result import ChatResult
from holysheep.results import RowResult
from holysheep.rows import Row, Rows, rows_of_items
from holysheep.settings import FIELDS, parse_settings
from holysheep.template import Template
from holysheep.types import Delta, JsonObject
from holysheep.usage import Usage, read_usage

API_KEY_VARIABLE = "HOLYSHEEP_API_KEY"
BASE_URL_VARIABLE = "HOLYSHEEP_BASE_URL"
REDIS_URL_VARIABLE = "HOLYSHEEP_REDIS_URL"


class Stream:
    """A streamed answer: iterate it for ``Delta`` pieces, then read ``result``."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._pieces = iter(answer)

    def __iter__(self) -> Iterator[Delta]:
        return self._pieces

    @property
    def result(self) -> ChatResult:
        """The outcome. Raises ``RuntimeError`` before the answer has been read to its end."""
        return self._answer.result


class BatchResults(Iterator[RowResult]):
    """The results of a batch in the order of its rows; ``totals`` has the sums so far.

    Leaving early (``close``, or letting go of it) ends the batch.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._results = batch.results()

    def __next__(self) -> RowResult:
        for found in self._results:
            if isinstance(found, RowResult):
                return found
        raise StopIteration

    @property
    def totals(self) -> Totals:
        """What the rows so far come to."""
        return self.batch.totals

    def close(self) -> None:
        """End the batch: no more rows are begun."""
        self._results.close()


class Client:
    """One credential of an OpenAI-compatible gateway. Safe for use by several threads.

    ``api_key`` defaults to the environment's ``HOLYSHEEP_API_KEY``, ``base_url`` to
    ``HOLYSHEEP_BASE_URL`` or HolySheep AI. The other settings are those of the credential in Dify
    and take numbers or texts: ``auth_header``, ``default_model``, ``requests_per_minute``,
    ``tokens_per_minute``, ``max_concurrency``, ``daily_budget_usd``, ``monthly_budget_usd``,
    ``price_overrides``, ``redis_url``. With the last, clients of one key in several processes share
    their cache, limits, breakers, budgets and what ``usage`` tells.

    Raises ``SettingsError`` for a setting that cannot be used.
    """

    def __init__(
        self, api_key: str | None = None, *, base_url: str | None = None, **settings: Any
    ) -> None:
        unknown = sorted(set(settings) - set(FIELDS))
        if unknown:
            raise TypeError(f"unknown settings: {', '.join(unknown)}")
        if api_key is None:
            api_key = os.environ.get(API_KEY_VARIABLE)
            if not (api_key or "").strip():
                raise SettingsError(
                    f"There is no API key. Set {API_KEY_VARIABLE} in the environment, or pass"
                    " api_key."
                )
        self._settings = parse_settings(
            {
                **settings,
                "api_key": api_key,
                "base_url": base_url or os.environ.get(BASE_URL_VARIABLE),
            }
        )
        self._clock = SystemClock()
        self._registry = Registry(clock=self._clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections; a later call opens new ones."""
        self._registry.close()

    def chat(self, messages: str | Sequence[Mapping[str, Any]], **params: Any) -> ChatResult:
        """Ask and wait for the whole answer.

        ``messages`` is a text, or a conversation in OpenAI's form. ``params`` are those of the
        node: ``model``, ``temperature``, ``max_tokens``, ``response_format``, ``json_schema``,
        ``tools``, ``cache``, ``fallback_models``, ``timeout_s``, ``max_retries``, and the keys of
        ``options``. All texts together have at most 1,000,000 characters.

        Raises ``InputError`` before anything is sent, else the errors of ``holysheep.errors``.
        """
        return self._ask(messages, params, stream=False).wait()

    def stream(self, messages: str | Sequence[Mapping[str, Any]], **params: Any) -> Stream:
        """Ask and get the answer as it arrives; takes and raises what ``chat`` does."""
        return Stream(self._ask(messages, params, stream=True))

    def batch(
        self,
        rows: Iterable[Any],
        prompt_template: str = "{{ item }}",
        *,
        deadline_s: float | None = None,
        **params: Any,
    ) -> BatchResults:
        """Ask once for each row; yields a ``RowResult`` for each, in order, as they come.

        ``rows`` are texts, objects whose keys the template uses, or what ``holysheep.rows`` has
        read. A list is checked as a whole before the first call; an iterator is read as far as
        needed, so it may be endless. ``params`` are those of the batch node but its files:
        ``concurrency``, ``on_row_error``, ``row_timeout_s``, ``system_prompt``, ``json_schema``,
        those of a single call, and the keys of ``options``. ``deadline_s`` (seconds, any number
        above 0) ends it; ``None`` = it takes as long as it takes. A row that fails is a result with
        ``status`` ``error``.

        Raises ``InputError`` before anything is sent.
        """
        given = {"prompt_template": prompt_template, **params}
        parameters = self._parsed(BatchParams, BatchOptions, given)
        source = _rows(rows)
        total = None
        if isinstance(source, Rows):
            total = check_rows(source, Template(parameters.prompt_template), self._clock)
        return BatchResults(
            Batch(
                self._engine,
                parameters,
                source,
                clock=self._clock,
                spawn=spawn_thread,
                total=total,
                lasts_s=_span_s(deadline_s),
            )
        )

    def chain(self, query: str, steps: Sequence[Mapping[str, Any]], **params: Any) -> Chain:
        """Ask step after step; returns the chain when it has ended.

        ``steps`` and ``params`` are those of the chain node. A step that fails is in ``results``.
        Raises ``InputError`` before anything is sent, and the failure of the first step where no
        step was answered.
        """
        if isinstance(steps, list | tuple):
            steps = [dict(step) if isinstance(step, Mapping) else step for step in steps]
        given = {"query": query, "steps": steps, **params}
        parameters = self._parsed(ChainParams, ChainOptions, given)
        chain = Chain(self._engine, parameters, clock=self._clock)
        for _ in chain:
            pass
        chain.raise_if_nothing_was_answered()
        return chain

    def benchmark(self, **params: Any) -> Benchmark:
        """Ask the same again and again; returns the benchmark, to be iterated or ``run``.

        ``params`` are those of the benchmark node: ``prompt``, ``model``, ``iterations``,
        ``concurrency``, ``max_tokens``, ``deadline_s``. Raises ``InputError``.
        """
        parameters = self._parsed(BenchmarkParams, None, params)
        return Benchmark(self._engine, parameters, clock=self._clock, spawn=spawn_thread)

    def usage(self, period: str = "today") -> Usage:
        """What the calls of this client came to since it was made; with ``redis_url``, of all.

        ``period`` is ``today``, ``yesterday``, ``last_7_days``, ``last_30_days`` or ``this_month``,
        in UTC days. Raises ``InputError`` for any other.
        """
        parameters = self._parsed(UsageParams, None, {"period": period})
        return read_usage(
            self._engine.local.ledger,
            parameters.period,
            self._clock,
            credential=self._settings,
        )

    def models(self) -> list[str]:
        """The ids of the models that the gateway offers to this key."""
        return list_models(self._engine, clock=self._clock)

    def check(self) -> None:
        """Return if key and base URL work, else raise what is wrong with them."""
        check_credentials(self._engine, clock=self._clock)

    def _ask(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        given: Mapping[str, Any],
        *,
        stream: bool,
    ) -> Answer:
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        try:
            conversation = parse_messages(list(messages), "messages")
        except ValueError as error:
            raise InputError(str(error)) from None
        if not conversation or _is_blank(conversation[-1]):
            raise InputError("messages is empty: give the model something to answer.")
        texts = [_texts(message) for message in conversation]
        params = self._parsed(ChatParams, Options, given, counted=texts)
        return self._engine.ask(
            params.request(conversation),
            params.policy(),
            timeout_s=params.timeout_s,
            stream=stream,
        )

    @property
    def _engine(self) -> Engine:
        return self._registry.engine(self._settings)

    def _parsed[Model: BaseModel](
        self,
        kind: type[Model],
        options: type[Options] | None,
        given: Mapping[str, Any],
        *,
        counted: Any = None,
    ) -> Model:
        """``given`` as parameters; keys of ``options`` stand beside the others.

        ``counted`` is what else belongs to the texts whose size is limited.
        """
        known = set(kind.model_fields) - _OF_NODES_ONLY
        optional = set(options.model_fields if options else ()) - _OF_NODES_ONLY
        unknown = sorted(set(given) - known - optional)
        if unknown:
            raise InputError(f"Unknown parameters: {', '.join(unknown)}.")
        values = {name: value for name, value in given.items() if name in known}
        if options:
            values["options"] = {n: value for n, value in given.items() if n in optional - known}
        values = chosen({**values, _COUNTED: counted}, default_model=self._settings.default_model)
        values.pop(_COUNTED, None)
        return parsed(kind, values)


_COUNTED = "counted"
_OF_NODES_ONLY = {"options", "on_error", "output_format", "max_inline_results"}
"""Parameters that say how a node hands over what it has."""


def _rows(rows: Iterable[Any]) -> Iterable[Row]:
    """What a caller gave as rows. Raises ``InputError``."""
    if isinstance(rows, Rows):
        return rows
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        raise InputError(
            'rows must be a list or an iterator of texts or of objects, such as ["one", "two"].'
        )
    if isinstance(rows, list | tuple):
        items = list(rows)
        return Rows(lambda: _rows_of(items))
    return _rows_of(rows)


def _rows_of(items: Iterable[Any]) -> Iterator[Row]:
    """The rows of texts, objects or ``Row``s. Raises ``InputError`` if there are none."""
    ahead = iter(items)
    try:
        first = next(ahead)
    except StopIteration:
        raise InputError("rows is empty: give the model something to answer.") from None
    whole = itertools.chain([first], ahead)
    return _only_rows(whole) if isinstance(first, Row) else rows_of_items(whole)


def _only_rows(items: Iterable[Any]) -> Iterator[Row]:
    for number, item in enumerate(items, 1):
        if not isinstance(item, Row):
            raise InputError(f"rows: item {number} is no Row, but the first is: all must be alike.")
        yield item


def _span_s(deadline_s: float | None) -> float:
    """How long a batch may take. Raises ``InputError``."""
    if deadline_s is None:
        return config.A_YEAR_S
    if (
        isinstance(deadline_s, bool)
        or not isinstance(deadline_s, int | float)
        or not deadline_s > 0
    ):
        raise InputError(f"deadline_s must be a number above 0, got {shown(deadline_s)}.")
    return min(deadline_s, config.A_YEAR_S)


def _is_blank(message: JsonObject) -> bool:
    """Whether this is a question that asks nothing."""
    content = message.get("content")
    return message["role"] == "user" and isinstance(content, str) and not content.strip()


def _texts(message: JsonObject) -> JsonObject:
    """A message without its images and the like, whose size is no matter of characters."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [part for part in content if part.get("type") == "text"]}
