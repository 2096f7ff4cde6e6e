"""What a workflow author or a library caller may ask for: names, defaults, ranges.

``client.Client`` tells what they mean. Names that end in ``_s`` are seconds.

How these values are read, and what is said where one cannot be used, is in ``reading``. Nothing is
sent before all of them are known to be usable.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from holysheep import config
from holysheep.errors import InputError
from holysheep.jsontext import is_json, parse_json
from holysheep.media import Image
from holysheep.options import BatchOptions, ChainOptions, Options, ResponseFormat, Retries
from holysheep.reading import (
    MODEL_ID,
    PLAINLY,
    Number,
    Whole,
    chosen,
    is_model_id,
    parse_literal,
    parse_mapping,
    parse_yaml,
    parsed,
    without_unset,
)
from holysheep.types import CacheMode, ChatRequest, JsonObject, Policy

_MAX_REMEMBERED_CHARS = 16_384
_STEPS = (
    'steps must be a list of steps such as {"name": "draft", "prompt": "..."}, also as YAML or JSON'
)
_ROLES = ("system", "developer", "user", "assistant", "tool")


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not is_json(value):
        raise ValueError(PLAINLY)
    return json.dumps(value, ensure_ascii=False)


def _cache_mode(value: Any) -> str:
    word = str(value).strip().lower()
    return {"on": "use", "true": "use", "off": "bypass", "false": "bypass"}.get(word, word)


def _reads_ids(field: str) -> BeforeValidator:
    """Model ids separated by commas, or in a list."""

    def read(value: Any) -> tuple[str, ...]:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{field} must be model ids, separated by commas.")
        ids = tuple(name.strip() for name in names if name.strip())
        if not all(is_model_id(name) for name in ids):
            raise ValueError(f"{field} must be model ids, each {MODEL_ID}.")
        return ids

    return BeforeValidator(read)


def _one_id(value: str) -> str:
    if not is_model_id(value):
        raise ValueError(PLAINLY)
    return value.strip()


def _options(value: Any) -> Any:
    return value if isinstance(value, Options) else parse_mapping(value, "options")


def _schema(value: Any) -> JsonObject | None:
    return None if value is None else _parse_schema(value)


def _tools(value: Any) -> list[JsonObject] | None:
    return None if value is None else _parse_tools(value)


def _steps(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        # The host turns a text that it cannot read as a list into a list of that text.
        value = value[0]
    if isinstance(value, str):
        value = parse_literal(value) or parse_yaml(value, "steps")
    if not isinstance(value, list) or not all(isinstance(step, dict) for step in value):
        raise ValueError(f"{_STEPS}.")
    if not 0 < len(value) <= config.MAX_CHAIN_STEPS:
        raise ValueError(f"{_STEPS}, 1 to {config.MAX_CHAIN_STEPS} of them, got {len(value)}.")
    return value


# Fields that several nodes have, with the same range and spellings in each.
Text = Annotated[str, BeforeValidator(_as_text)]
ModelId = Annotated[str, AfterValidator(_one_id), MODEL_ID]
Fallbacks = Annotated[tuple[str, ...], _reads_ids("fallback_models")]
Temperature = Annotated[Number, Field(ge=0, le=2)]
MaxTokens = Annotated[Whole, Field(ge=1, le=config.MAX_MAX_TOKENS)]
Tokens = Annotated[Whole, Field(ge=0, le=config.MAX_ESTIMATED)]
Cache = Annotated[CacheMode, BeforeValidator(_cache_mode)]
Schema = Annotated[JsonObject | None, BeforeValidator(_schema)]
Tools = Annotated[list[JsonObject] | None, BeforeValidator(_tools)]
_READ_OPTIONS = BeforeValidator(_options)

UsagePeriod = Literal["today", "yesterday", "last_7_days", "last_30_days", "this_month"]
"""Spans of UTC days; those that are so many days long include today."""
UsageGroup = Literal["model", "day", "app", "node", "status"]
"""By what requests are told apart; the model is the one that was served."""


class Conversation(BaseModel):
    """What a node sends: a system prompt, earlier messages, and a query."""

    model_config = ConfigDict(frozen=True)

    query: Text = ""
    system_prompt: Text = ""
    history: list[JsonObject] = Field(default_factory=list)

    @field_validator("history", mode="before")
    @classmethod
    def _messages(cls, value: Any) -> list[JsonObject]:
        return parse_messages(value, "history")

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if not self.query.strip():
            raise ValueError("query is empty: give the node something to ask.")
        return self

    def messages(self, images: Sequence[Image] = ()) -> list[JsonObject]:
        """The conversation in OpenAI's form; ``images`` go with the query."""
        messages: list[JsonObject] = []
        if self.system_prompt:
            messages.append({"role": "system", "content": self.system_prompt})
        messages.extend(self.history)
        content: str | list[JsonObject] = self.query
        if images:
            content = [
                {"type": "text", "text": self.query},
                *({"type": "image_url", "image_url": {"url": image.url}} for image in images),
            ]
        messages.append({"role": "user", "content": content})
        return messages


class ChatParams(BaseModel):
    """How one chat call is asked and made, apart from its messages.

    ``on_error`` is of a node alone, whose failure may be a result.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    json_schema: Schema = None
    tools: Tools = None

    model: ModelId
    temperature: Temperature = 0.7
    max_tokens: MaxTokens = 2048
    response_format: ResponseFormat = "text"
    cache: Cache = "use"
    fallback_models: Fallbacks = ()
    timeout_s: Number = Field(default=config.DEADLINE_S, ge=1, le=540)
    max_retries: Retries = 3
    on_error: Literal["fail", "continue"] = "fail"
    options: Annotated[Options, _READ_OPTIONS] = Field(default_factory=Options)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_format(self.response_format, self.json_schema)
        return self

    def request(self, messages: list[JsonObject]) -> ChatRequest:
        """The request to send."""
        options = self.options
        body: JsonObject = {
            "model": self.model,
            "messages": messages,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "top_p": options.top_p,
            "stop": options.stop,
            "seed": options.seed,
            "presence_penalty": options.presence_penalty,
            "frequency_penalty": options.frequency_penalty,
            "reasoning_effort": options.reasoning_effort,
            "tools": self.tools,
            "response_format": self._response_format(),
        }
        body = {key: value for key, value in body.items() if value is not None}
        return ChatRequest({**body, **(options.extra_body or {})})

    def policy(self, *, app_id: str | None = None, user_id: str | None = None) -> Policy:
        """How the call is to be made. The ids say whose answers may be shared, where asked for."""
        options = self.options
        partition = ""
        if options.cache_scope == "app":
            partition = f"app:{app_id or ''}"
        elif options.cache_scope == "user":
            partition = f"user:{user_id or ''}"
        return Policy(
            cache=self.cache,
            cache_ttl_s=options.cache_ttl_s,
            cache_partition=partition,
            serve_stale=options.serve_stale,
            fallback_models=self.fallback_models,
            max_retries=self.max_retries,
            answer_schema=self.answer_schema,
        )

    @property
    def answer_schema(self) -> JsonObject | None:
        """What the answer is checked against before anybody sees it: ``{}`` = any JSON."""
        if self.json_schema is not None:
            return self.json_schema
        return {} if self.response_format == "json_object" else None

    def _response_format(self) -> JsonObject | None:
        if self.json_schema is not None:
            named = {"name": "answer", "schema": self.json_schema}
            return {"type": "json_schema", "json_schema": named}
        return {"type": "json_object"} if self.response_format == "json_object" else None


def _check_format(response_format: ResponseFormat, json_schema: JsonObject | None) -> None:
    if response_format == "json_schema" and json_schema is None:
        raise ValueError("response_format json_schema needs a json_schema.")


# This and the models below are built when they are first used (``defer_build``), or they would take
# a fiftieth of the time until the plugin has registered.
class BatchParams(BaseModel):
    """How the rows of a batch are asked, and when the batch ends.

    ``deadline_s`` has a bound for hosts' sake; the library has its own. ``output_format`` is of a
    node alone.
    """

    model_config = ConfigDict(defer_build=True, frozen=True, allow_inf_nan=False)

    system_prompt: Text = ""
    prompt_template: Text = "{{ item }}"
    json_schema: Schema = None

    model: ModelId
    temperature: Temperature = 0.7
    max_tokens: MaxTokens = 2048
    concurrency: Whole = Field(
        default=config.BATCH_CONCURRENCY, ge=1, le=config.MAX_BATCH_CONCURRENCY
    )
    cache: Cache = "use"
    fallback_models: Fallbacks = ()
    row_timeout_s: Number = Field(default=config.ROW_TIMEOUT_S, ge=1, le=540)
    deadline_s: Number = Field(default=config.BATCH_DEADLINE_S, ge=1, le=config.MAX_DEADLINE_S)
    on_row_error: Literal["continue", "stop"] = "continue"
    output_format: Literal["jsonl", "csv", "none"] = "jsonl"
    options: Annotated[BatchOptions, _READ_OPTIONS] = Field(default_factory=BatchOptions)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_format(self.options.response_format, self.json_schema)
        return self

    def chat(self) -> ChatParams:
        """How a single row is asked."""
        return ChatParams(
            **self.model_dump(include=_SHARED),
            json_schema=self.json_schema,
            options=self.options,
            response_format=self.options.response_format,
            max_retries=self.options.max_retries,
            timeout_s=self.row_timeout_s,
        )


class Step(BaseModel):
    """One step of a chain. What it leaves out is as the chain says."""

    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(default="", max_length=60)
    prompt: Text = ""
    system: Text = ""
    model: ModelId | None = None
    temperature: Temperature | None = None
    max_tokens: MaxTokens | None = None
    context: Literal["accumulate", "previous", "none"] = "accumulate"
    on_error: Literal["continue", "stop"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _that_are_set(cls, value: Any) -> Any:
        return without_unset(value, cls)


class ChainParams(BaseModel):
    """The steps of a chain, and how they are asked."""

    model_config = ConfigDict(defer_build=True, frozen=True, allow_inf_nan=False)

    query: Text
    steps: Annotated[list[Step], BeforeValidator(_steps)]
    system_prompt: Text = ""

    model: ModelId
    temperature: Temperature = 0.7
    max_tokens: MaxTokens = 2048
    cache: Cache = "use"
    fallback_models: Fallbacks = ()
    timeout_s: Number = Field(default=config.CHAIN_TIMEOUT_S, ge=1, le=config.MAX_DEADLINE_S)
    on_step_error: Literal["continue", "stop"] = "continue"
    options: Annotated[ChainOptions, _READ_OPTIONS] = Field(default_factory=ChainOptions)

    def chat(self, step: Step) -> ChatParams:
        """How a single step is asked."""
        own = step.model_dump(include=_SHARED, exclude_none=True)
        return ChatParams(
            **(self.model_dump(include=_SHARED) | own),
            options=self.options,
            max_retries=self.options.max_retries,
        )


class BenchmarkParams(BaseModel):
    """What a benchmark asks, how often, and how many times at once."""

    model_config = ConfigDict(defer_build=True, frozen=True, allow_inf_nan=False)

    prompt: Text = "Explain in three sentences how machine learning and deep learning differ."

    model: ModelId
    iterations: Whole = Field(
        default=config.BENCHMARK_ITERATIONS, ge=1, le=config.MAX_BENCHMARK_ITERATIONS
    )
    concurrency: Whole = Field(default=1, ge=1, le=config.MAX_BATCH_CONCURRENCY)
    max_tokens: MaxTokens = config.BENCHMARK_MAX_TOKENS
    deadline_s: Number = Field(default=config.BENCHMARK_DEADLINE_S, ge=1, le=config.MAX_DEADLINE_S)

    def chat(self) -> ChatParams:
        """How each time is asked: never from the cache, and never a second time."""
        return ChatParams(
            model=self.model, max_tokens=self.max_tokens, cache="bypass", max_retries=0
        )


class CostParams(BaseModel):
    """A load to estimate: so many requests with so many tokens each."""

    model_config = ConfigDict(defer_build=True, frozen=True, allow_inf_nan=False)

    input_text: Text = ""

    models: Annotated[tuple[str, ...], _reads_ids("models")] = ()
    prompt_tokens: Tokens = 0
    completion_tokens: Tokens = 0
    cached_tokens: Tokens = 0
    requests: Whole = Field(default=1, ge=1, le=config.MAX_ESTIMATED)
    cache_hit_rate: Number = Field(default=0, ge=0, le=1)


class UsageParams(BaseModel):
    """Which usage to report, and by what its rows are told apart."""

    model_config = ConfigDict(defer_build=True, frozen=True)

    period: UsagePeriod = "today"
    group_by: UsageGroup = "model"


_SHARED = {"model", "temperature", "max_tokens", "cache", "fallback_models"}
"""What single calls, batches and chains have in common."""


class ChatCall(NamedTuple):
    """One node call, parsed. ``request`` is the request without images."""

    params: ChatParams
    conversation: Conversation
    request: ChatRequest


def parse_call(raw: Mapping[str, Any], *, default_model: str) -> ChatCall:
    """The parameters of a node call, as the host sends them. Raises ``InputError``.

    The same texts are parsed once: that is most of what a cached answer would cost otherwise.
    """
    values = raw.values()
    if all(value is None or isinstance(value, str | int | float) for value in values) and (
        sum(len(value) for value in values if isinstance(value, str)) <= _MAX_REMEMBERED_CHARS
    ):
        # With the types, since True and 1 are equal but not the same parameter.
        items = tuple((name, type(value), value) for name, value in raw.items())
        return _remembered_call(items, default_model)
    return _parse_call(raw, default_model)


@lru_cache(maxsize=256)
def _remembered_call(items: tuple[tuple[str, type, Any], ...], default_model: str) -> ChatCall:
    return _parse_call({name: value for name, _, value in items}, default_model)


def _parse_call(raw: Mapping[str, Any], default_model: str) -> ChatCall:
    given = chosen(raw, default_model=default_model)
    params = parsed(ChatParams, given)
    conversation = parsed(Conversation, given)
    return ChatCall(params, conversation, params.request(conversation.messages()))


def parse_messages(value: Any, name: str) -> list[JsonObject]:
    """A list of messages in OpenAI's form. Raises ``ValueError`` with one sentence."""
    expected = (
        f'{name} must be a list of messages such as {{"role": "user", "content": "Hello"}}, with'
        f" the roles {', '.join(_ROLES)}."
    )
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        # The host turns a text that it cannot read as a list into a list of that text.
        value = value[0]
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            raise ValueError(expected) from None
    if not isinstance(value, list):
        raise ValueError(expected)
    for number, message in enumerate(value):
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise ValueError(f"{expected} Message {number} has no such role.")
        content = message.get("content")
        has_content = isinstance(content, str | list)
        if not has_content and (content is not None or not message.get("tool_calls")):
            raise ValueError(f"{expected} Message {number} has no content.")
        if isinstance(content, list) and not all(isinstance(part, dict) for part in content):
            raise ValueError(f"{expected} Message {number} has a part that is no object.")
    messages = [dict(message) for message in value]
    if not is_json(messages):
        raise ValueError(f"{name} must hold nothing but JSON values.")
    return messages


def schemas() -> ModuleType:
    """The module that checks JSON Schemas, loaded when the first one is given.

    Its validator takes a twentieth of the time until the plugin has registered.
    """
    from holysheep import schema  # noqa: PLC0415 - see above

    return schema


def _parse_schema(value: Any) -> JsonObject | None:
    schema = _json_object("json_schema", value)
    if isinstance(schema.get("schema"), dict) and not schema.get("type"):
        # OpenAI's wrapper, as it stands in response_format.
        unknown = sorted(set(schema) - {"name", "description", "schema", "strict"})
        if unknown:
            raise ValueError(f"json_schema has unknown keys: {', '.join(unknown)}.")
        schema = schema["schema"]
    try:
        schemas().check_schema(schema)
    except InputError as error:
        raise ValueError(error.message) from None
    return schema


def _parse_tools(value: Any) -> list[JsonObject] | None:
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise ValueError(f"tools is not valid JSON: {error}.") from None
    if value == []:
        return None
    try:
        checked: list[JsonObject] = schemas().check_tools(value)
    except InputError as error:
        raise ValueError(error.message) from None
    return checked


def _json_object(name: str, value: Any) -> JsonObject:
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise ValueError(f"{name} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object.")
    return value
