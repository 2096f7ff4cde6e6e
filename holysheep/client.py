"""The engine as a library: ``Client`` for scripts and services outside Dify."""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, Unpack

from pydantic import BaseModel

from holysheep import config
from holysheep.arguments import (
    BatchArguments,
    BenchmarkArguments,
    ChainArguments,
    ChatArguments,
    SettingsArguments,
)
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
    UsagePeriod,
    parse_messages,
)
from holysheep.ports import SystemClock, spawn_thread
from holysheep.reading import chosen, parsed, shown
from holysheep.registry import Registry
from holysheep.result import ChatResult
from holysheep.results import RowResult
from holysheep.rows import Row, Rows, rows_of_items
from holysheep.settings import FIELDS, parse_settings
from holysheep.streams import hang_up
from holysheep.template import Template
from holysheep.types import Delta, JsonObject
from holysheep.usage import Usage, read_usage

API_KEY_VARIABLE = "HOLYSHEEP_API_KEY"
BASE_URL_VARIABLE = "HOLYSHEEP_BASE_URL"
REDIS_URL_VARIABLE = "HOLYSHEEP_REDIS_URL"


class Stream:
    """A streamed answer: iterate it once for ``Delta`` pieces, then read ``result``.

    Their texts, joined, are ``result.text``. Nothing is sent before the first piece is asked for.
    Iterating raises what ``Client.chat`` does; a failure behind the first piece is not tried again.
    Who stops early ends the request upstream with ``close``, or by leaving a ``with`` block; it is
    counted as ``cancelled``, at a cost that nobody knows. For one thread.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._pieces = iter(answer)

    def __iter__(self) -> Iterator[Delta]:
        return self._pieces

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the request, if its answer has not been read to the end."""
        hang_up(self._pieces)

    @property
    def result(self) -> ChatResult:
        """Text, usage, cost and the rest, as from ``Client.chat``.

        Raises ``RuntimeError`` before the answer has been read to its end, and where it failed.
        """
        return self._answer.result


class BatchResults(Iterator[RowResult]):
    """The results of a batch, one for each row and in the order of the rows.

    Iterating raises ``InputError`` for a row that cannot be read, and what the iterator of rows
    raises, both behind the results of the rows before; a row that cannot be answered is no
    exception but a result with ``status`` ``error``. Leaving early (``close``, or letting go of it)
    ends the batch. For one thread.

    ``batch`` is the run itself: ``stop(reason)`` makes all further rows ``skipped``, also from
    another thread or a signal handler; ``raise_if_nothing_was_answered()`` raises the first row's
    failure where no row has an answer; ``progress()``, ``in_flight`` (rows at once), ``elapsed_s``
    (seconds), ``throughput_rpm`` (rows answered per minute).
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
        """The sums over the rows that were iterated so far.

        ``total``, ``succeeded``, ``failed``, ``skipped``, ``cached`` (without an upstream call of
        their own) and ``taken_over`` (from an earlier run) are numbers of rows; ``upstream_calls``
        requests, retries included; ``tokens_used`` prompt and completion. ``cost_usd`` is ``None``
        where the cost of one row is unknown. ``status`` is ``ok`` if every row was answered,
        ``partial`` if some were, ``error`` if none was. ``error_types`` counts the kinds of the
        failed rows; ``first_failure`` is the error of the first one, or ``None``.
        ``latencies.summary()`` has ``avg_ms``, ``min_ms``, ``max_ms``, ``p50_ms``, ``p95_ms`` and
        ``p99_ms`` of the upstream calls: nearest-rank percentiles of all values.
        """
        return self.batch.totals

    def close(self) -> None:
        """End the batch: no more rows are begun, and iterating ends."""
        self._results.close()


class Client:
    """One key of an OpenAI-compatible gateway, with its connections, cache, limits and counts.

    ``api_key``              at least 20 characters; default: ``HOLYSHEEP_API_KEY`` in the
                             environment
    ``base_url``             http or https; default: ``HOLYSHEEP_BASE_URL`` in the environment, else
                             ``https://api.holysheep.ai/v1``
    ``auth_header``          how the key is sent: ``bearer`` (default), ``x-api-key`` or ``both``
    ``default_model``        asked where a call names none; default ``deepseek-v3.2``
    ``requests_per_minute``  0 = no limit; default 60
    ``tokens_per_minute``    prompt and longest answer are taken, estimated, and settled afterwards;
                             0 = no limit; default 0
    ``max_concurrency``      requests in flight, 1 to 1,000; default 20
    ``daily_budget_usd``     per UTC day; a call that might pass it, or has no known price, is
                             refused; default: no limit
    ``monthly_budget_usd``   the same per UTC month
    ``price_overrides``      YAML or JSON text, such as ``{my-model: {input: 0.5, output: 1.5}}``,
                             in USD per million tokens, before all other prices; its keys are the
                             fields of ``holysheep.pricing.Price``
    ``redis_url``            such as ``redis://host:6379/0``, ``rediss://`` for TLS; default: none

    Numbers may be texts; ``None`` and an empty text mean the default.

    Clients share nothing, unless they have the same key, base URL and ``redis_url``, in one process
    or in several: then cache, limits, breakers, budgets, the answers to calls that are identical at
    the same time, and what ``usage`` tells. Where Redis is away each goes on for itself, and the
    log says so. Without one, budgets and ``usage`` begin at 0 with each client, and its cache has
    1,000 answers and 64 MiB at most.

    Make one for the whole program: it may be used by several threads at a time. Its methods block.
    With asyncio, call them in threads: ``await asyncio.to_thread(client.chat, "Hello")``; to cancel
    that does not end the call. After a fork make a new one.

    ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY`` and ``SSL_CERT_FILE`` are heeded.

    Raises ``SettingsError`` for a setting that cannot be used, ``TypeError`` for an unknown one.
    Makes no call: ``check`` does.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        **settings: Unpack[SettingsArguments],
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
        """Close the idle connections, and store in Redis what was counted last.

        Leaving a ``with`` block does the same. Calls under way go on, and a later one opens new
        connections; cache, limits and counts stay.
        """
        self._registry.close()

    def chat(
        self, messages: str | Sequence[Mapping[str, Any]], **params: Unpack[ChatArguments]
    ) -> ChatResult:
        """Ask, and wait for the whole answer.

        ``messages`` is a text, or a conversation in OpenAI's form, sent as it is: objects with a
        ``role`` (``system``, ``developer``, ``user``, ``assistant`` or ``tool``) and a ``content``,
        a text or a list of parts such as ``{"type": "text", "text": "What is this?"}`` and
        ``{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}``. What was said
        before comes first; calls of tools go back as ``{"role": "assistant", "content": None,
        "tool_calls": result.tool_calls}`` and one ``{"role": "tool", "tool_call_id": ...,
        "content": ...}`` for each. All texts of a call together: 1,000,000 characters at most.

        ``model``              an id of ``models()``; default: the client's ``default_model``
        ``temperature``        0 to 2; default 0.7
        ``max_tokens``         longest answer, 1 to 1,000,000; default 2048
        ``response_format``    ``text`` (default), ``json_object``, or ``json_schema``, which a
                               ``json_schema`` implies
        ``json_schema``        JSON Schema, an object or a JSON text; an answer that breaks it is
                               asked for once more, then an ``InvalidOutput``
        ``tools``              definitions in OpenAI's form, a list or a JSON text
        ``cache``              ``use`` (default), ``refresh`` (ask, then store) or ``bypass``
                               (neither read nor store)
        ``fallback_models``    ids, a list or separated by commas: asked in turn after an error that
                               ``falls_back``
        ``timeout_s``          seconds for all of it, the wait for a turn, retries and fallback
                               included, 1 to 540; default 60
        ``max_retries``        after an error that is ``retryable``, per model, 0 to 10; default 3
        ``top_p``              0 to 1; default 0.95
        ``stop``               at most 4 sequences: a list, or a text with one a line
        ``seed``               a whole number of 64 bits
        ``presence_penalty``   -2 to 2
        ``frequency_penalty``  -2 to 2
        ``reasoning_effort``   ``minimal``, ``low``, ``medium`` or ``high``
        ``cache_ttl_s``        seconds that an answer from the cache may be old, 1 to 86,400;
                               default 300
        ``cache_scope``        ``credential`` (default): whoever has the key; ``app`` and ``user``
                               are for Dify, which knows them
        ``serve_stale``        ``True``: an expired answer rather than an error while upstream is
                               down; default ``False``
        ``extra_body``         an object that is merged into the request and wins over what stands
                               above; not ``messages``, ``stream``, ``stream_options``, ``api_key``

        What has no default is not sent. What a model refuses is left out: see ``Meta.left_out``.

        Raises ``InputError`` before anything is sent, ``UpstreamError`` where the gateway failed
        or refused, ``RefusedLocally`` where a limit, the breaker, a budget or the time kept the
        call back; see ``holysheep.errors``.
        """
        return self._ask(messages, params, stream=False).wait()

    def stream(
        self, messages: str | Sequence[Mapping[str, Any]], **params: Unpack[ChatArguments]
    ) -> Stream:
        """Ask, and get the answer as it arrives; takes what ``chat`` does.

        An answer from the cache, and one that must be JSON, is a single piece. ``timeout_s`` counts
        from here, not from the first piece. Raises ``InputError`` here, and all else while the
        ``Stream`` is iterated.
        """
        return Stream(self._ask(messages, params, stream=True))

    def batch(
        self,
        rows: Iterable[Any],
        prompt_template: str = "{{ item }}",
        *,
        deadline_s: float | None = None,
        **params: Unpack[BatchArguments],
    ) -> BatchResults:
        """Ask once for each row, many at a time; returns their results, to be iterated.

        ``rows`` is a list or an iterator of texts or of objects, or what ``holysheep.rows`` has
        read. A list is checked as a whole, and has 100,000 rows at most; an iterator is read in
        other threads, as far ahead as needed, 10,000 rows at most. ``prompt_template`` is Jinja2,
        sandboxed: ``{{ item }}`` is the row, and the keys of an object are names as well.

        ``deadline_s``     seconds from here, any number above 0; default ``None`` = as long as it
                           takes
        ``system_prompt``  instructions for every row
        ``concurrency``    rows in flight, 1 to 100, never more than the client's
                           ``max_concurrency``; default 10
        ``row_timeout_s``  seconds that the gateway may take for a row, waiting for a turn not
                           counted, 1 to 540; default 60
        ``on_row_error``   ``continue`` (default) or ``stop``: begin no more rows

        The other parameters are those of ``chat``, but ``tools`` and ``timeout_s``. Equal rows are
        asked once, unless ``cache`` is ``bypass``. Nothing is sent before the results are iterated.

        Rows wait for limits, a 429, an open breaker, and budget that calls under way hold; a spent
        budget fails each. A refused key or account ends the batch, as ``deadline_s`` and
        ``on_row_error`` do. What comes after its end is ``skipped``, a result for each row: with an
        endless iterator leave at the first one.

        An earlier run is taken up by its results: if ``content`` has them as lines of
        ``json.dumps(result.to_json())``, ``rows_of_file(content, "results.jsonl")`` of
        ``holysheep.rows`` are rows of which those without an answer are asked, by the prompt that
        they had. An iterator may yield ``Row(index, item, columns, earlier)`` from there, with the
        ``RowResult`` of a row that was answered, else ``None``, as ``earlier``.

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

    def chain(
        self, query: str, steps: Sequence[Mapping[str, Any]], **params: Unpack[ChainArguments]
    ) -> Chain:
        """Ask step after step, each building on those before; returns when all have ended.

        ``steps`` are 1 to 50 objects with these keys, all of which may be absent:

        ``name``         at most 60 characters, each once; default: ``step_0`` and so on
        ``prompt``       Jinja2 over ``query``, ``previous`` (the last good answer) and
                         ``steps.NAME``; required but in the first step and with ``previous``
        ``system``       default: the ``system_prompt``
        ``context``      what is sent before the prompt: ``accumulate`` (default), the conversation
                         so far; ``previous``, the last good answer; ``none``
        ``on_error``     as ``on_step_error``, for this step
        ``model``, ``temperature``, ``max_tokens``  default: those of the chain

        ``system_prompt``  instructions for steps without their own
        ``timeout_s``      seconds for all steps together, 1 to 580; default 300
        ``on_step_error``  ``continue`` (default), without that answer, or ``stop``

        The other parameters are those of ``chat``, but ``response_format``, ``json_schema`` and
        ``tools``.

        The ``Chain`` has ``results``, for each step its ``name`` and ``result`` (a ``ChatResult``),
        ``error`` or ``skipped`` (a sentence); ``final``, the last good answer as a text;
        ``status``, ``ok`` or ``partial``; ``tokens_used``; ``cost_usd``, ``None`` where that of one
        step is unknown; ``elapsed_s``.

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

    def benchmark(self, **params: Unpack[BenchmarkArguments]) -> Benchmark:
        """Measure how fast a model answers: the same question, never cached and never retried.

        Every iteration costs a request, and waits for the client's limits: make the client with
        ``requests_per_minute=0`` to measure without them.

        ``prompt``       default: a question that asks for three sentences
        ``model``        default: the client's ``default_model``
        ``iterations``   1 to 500; default 20
        ``concurrency``  calls at a time, 1 to 100, never more than the client's
                         ``max_concurrency``; default 1
        ``max_tokens``   longest answer, 1 to 1,000,000; default 128
        ``deadline_s``   seconds from here, 1 to 580; default 300

        ``run()`` makes the calls; iterating does too, and tells how many have ended. Then
        ``latencies.summary()`` (request sent to last byte) and ``first_tokens.summary()`` have
        ``avg_ms``, ``min_ms``, ``max_ms``, ``p50_ms``, ``p95_ms`` and ``p99_ms``, nearest-rank
        percentiles of all values; ``throughput_rpm`` is answers per minute; ``succeeded``,
        ``failed`` and ``not_made`` (at the deadline) are calls; ``errors`` counts the kinds of
        failures, of which ``first_failure`` is the first or ``None``; ``cost_usd`` is ``None``
        where the model has no known price.

        Raises ``InputError``. No failure of a call is raised, but by
        ``raise_if_nothing_was_answered()``.
        """
        parameters = self._parsed(BenchmarkParams, None, params)
        return Benchmark(self._engine, parameters, clock=self._clock, spawn=spawn_thread)

    def usage(self, period: UsagePeriod = "today") -> Usage:
        """Requests, tokens, cost and savings of this client since it was made.

        With ``redis_url`` of all programs that use this key, base URL and Redis; not of Dify, which
        counts for itself. ``period`` is ``today``, ``yesterday``,
        ``last_7_days``, ``last_30_days`` (both with today) or ``this_month``, in UTC days. Raises
        ``InputError`` for any other. Makes no call.
        """
        parameters = self._parsed(UsageParams, None, {"period": period})
        return read_usage(
            self._engine.local.ledger,
            parameters.period,
            self._clock,
            credential=self._settings,
        )

    def models(self) -> list[str]:
        """The ids of the models that the gateway offers to this key, sorted.

        Takes 20 s at most; costs nothing. Raises ``AuthError``, ``SettingsError`` (there is no such
        API), or another ``UpstreamError``.
        """
        return list_models(self._engine, clock=self._clock)

    def check(self) -> None:
        """Return if key and base URL work, and the Redis where there is one.

        Asks for the list of models, which costs nothing; a gateway without one for an answer of one
        token. The gateway has 20 s for that, and passes where it is busy (429, 5xx). Raises
        ``AuthError``, ``SettingsError`` (no such API, or an unusable Redis), or another
        ``UpstreamError``.
        """
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
            given_messages = list(messages) if isinstance(messages, Iterable) else messages
            conversation = parse_messages(given_messages, "messages")
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
