"""What a workflow author or a library caller may ask for: defaults, ranges, and how they are read.

The host enforces none of it, so everything is parsed here: texts become numbers, empty texts mean
"not set", and what is out of range is refused with one sentence that names the parameter, its
value and what is allowed, before anything is sent.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import ModuleType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Self, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Le
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from holysheep import config
from holysheep.errors import InputError
from holysheep.jsontext import is_json, parse_json
from holysheep.media import Image
from holysheep.types import CacheMode, ChatRequest, JsonObject, Policy
from holysheep.wording import shortened

ResponseFormat = Literal["text", "json_object", "json_schema"]

_MAX_OPTIONS_CHARS = 20_000
_MAX_REMEMBERED_CHARS = 16_384
_ROLES = ("system", "developer", "user", "assistant", "tool")


_STOP = "stop must be a text, one sequence a line, or a list of at most 4 texts"


def _no_bool(value: Any) -> Any:
    """True and 1 are different things to a person who fills in a number."""
    if isinstance(value, bool):
        raise ValueError("_number")
    return value.strip() if isinstance(value, str) else value


Number = Annotated[float, BeforeValidator(_no_bool)]
Whole = Annotated[int, BeforeValidator(_no_bool)]


class Options(BaseModel):
    """The rarer settings, by the keys of the ``options`` text. An unknown key is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    top_p: Number = Field(default=0.95, ge=0, le=1)
    stop: list[str] | None = None
    seed: Whole | None = Field(default=None, ge=-(2**63), le=2**63)
    presence_penalty: Number | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: Number | None = Field(default=None, ge=-2, le=2)
    reasoning_effort: Literal["minimal", "low", "medium", "high"] | None = None
    cache_ttl_s: Number = Field(default=config.CACHE_TTL_S, ge=1, le=config.CACHE_MAX_TTL_S)
    cache_scope: Literal["credential", "app", "user"] = "credential"
    serve_stale: bool = False
    extra_body: JsonObject | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _sequences(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [line for line in value.splitlines() if line]
        if value is None or value in ("", []):
            return None
        if isinstance(value, list):
            if not all(isinstance(item, str) and item for item in value):
                raise ValueError(f"{_STOP}, got {_shown(value)}.")
            if len(value) > 4:
                raise ValueError(f"{_STOP}, got {len(value)} of them.")
            return value
        raise ValueError(f"{_STOP}, got {_shown(value)}.")

    @field_validator("extra_body")
    @classmethod
    def _mergeable(cls, value: JsonObject | None) -> JsonObject | None:
        forbidden = sorted({"messages", "stream", "stream_options", "api_key"} & set(value or ()))
        if forbidden:
            raise ValueError(f"extra_body must not set {', '.join(forbidden)}.")
        if not is_json(value):
            raise ValueError("extra_body must hold nothing but JSON values.")
        return value


class Conversation(BaseModel):
    """What a node sends: a system prompt, earlier messages, and a query."""

    model_config = ConfigDict(frozen=True)

    query: str = ""
    system_prompt: str = ""
    history: list[JsonObject] = Field(default_factory=list)

    @field_validator("query", "system_prompt", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> str:
        if isinstance(value, str):
            return value
        if not is_json(value):
            raise ValueError("query and system_prompt must be texts.")
        return json.dumps(value, ensure_ascii=False)

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
    """How one chat call is asked and made, apart from its messages."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    json_schema: JsonObject | None = None
    tools: list[JsonObject] | None = None

    model: str
    temperature: Number = Field(default=0.7, ge=0, le=2)
    max_tokens: Whole = Field(default=2048, ge=1, le=config.MAX_MAX_TOKENS)
    response_format: ResponseFormat = "text"
    cache: CacheMode = "use"
    fallback_models: tuple[str, ...] = ()
    timeout_s: Number = Field(default=config.DEADLINE_S, ge=1, le=540)
    max_retries: Whole = Field(default=3, ge=0, le=10)
    on_error: Literal["fail", "continue"] = "fail"
    options: Options = Field(default_factory=Options)

    @field_validator("json_schema", mode="before")
    @classmethod
    def _schema(cls, value: Any) -> JsonObject | None:
        return None if value is None else _parse_schema(value)

    @field_validator("tools", mode="before")
    @classmethod
    def _tools(cls, value: Any) -> list[JsonObject] | None:
        return None if value is None else _parse_tools(value)

    @field_validator("cache", mode="before")
    @classmethod
    def _cache_mode(cls, value: Any) -> str:
        word = str(value).strip().lower()
        return {"on": "use", "true": "use", "off": "bypass", "false": "bypass"}.get(word, word)

    @field_validator("fallback_models", mode="before")
    @classmethod
    def _models(cls, value: Any) -> tuple[str, ...]:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
            raise ValueError("fallback_models must be model ids, separated by commas.")
        return tuple(_model_id(name.strip(), "fallback_models") for name in names if name.strip())

    @field_validator("model")
    @classmethod
    def _model(cls, value: str) -> str:
        return _model_id(value, "model or custom_model")

    @field_validator("options", mode="before")
    @classmethod
    def _options(cls, value: Any) -> Any:
        return value if isinstance(value, Options) else _parse_options(value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.response_format == "json_schema" and self.json_schema is None:
            raise ValueError("response_format json_schema needs a json_schema.")
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


def _model_id(value: str, name: str) -> str:
    if len(value) > 200 or not value.isprintable():
        raise ValueError(f"{name} must be a model id of at most 200 printable characters.")
    return value


def chosen(raw: Mapping[str, Any], *, default_model: str) -> dict[str, Any]:
    """The parameters that are set, with the model that counts, checked for size.

    ``custom_model`` wins over ``model``, that over ``default_model``. Raises ``InputError``.
    """
    given = {name: value for name, value in raw.items() if not _is_unset(value)}
    try:
        total = sum(_chars(value) for value in given.values())
    except RecursionError:
        raise InputError("The inputs are nested too deeply.") from None
    if total > config.MAX_INPUT_CHARS:
        raise InputError(
            f"The inputs are too large: {total:,} characters, at most"
            f" {config.MAX_INPUT_CHARS:,} are allowed together."
        )
    model = given.pop("custom_model", given.get("model", default_model))
    given["model"] = model.strip() if isinstance(model, str) else model
    return given


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


def parsed[Model: BaseModel](model: type[Model], given: Mapping[str, Any]) -> Model:
    """``given`` as a ``model``. Raises ``InputError`` for the first thing that is wrong."""
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        raise InputError(_sentence(model, error.errors(include_url=False)[0])) from None
    except ValueError:
        # The validator itself cannot put a number of that size into words.
        raise InputError("A number in the inputs has thousands of digits.") from None
    except RecursionError:
        raise InputError("The inputs are nested too deeply.") from None


def _is_unset(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _chars(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_chars(key) + _chars(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(_chars(item) for item in value)
    return 0


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


def _parse_options(value: Any) -> Any:
    if isinstance(value, str):
        if len(value) > _MAX_OPTIONS_CHARS:
            raise ValueError(f"options is longer than {_MAX_OPTIONS_CHARS:,} characters.")
        try:
            value = _parse_yaml(value)
        except RecursionError:
            raise ValueError("options is nested too deeply.") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f" (line {mark.line + 1})" if mark else ""
            raise ValueError(f"options is neither valid YAML nor JSON{where}.") from None
        if value is None:
            return {}
    if not isinstance(value, dict):
        raise ValueError("options must be a mapping, such as top_p: 0.9")
    for name in value:
        if name not in Options.model_fields:
            raise ValueError(_unknown_option(name))
    return {name: item for name, item in value.items() if not _is_unset(item)}


def _parse_yaml(text: str) -> Any:
    """JSON as JSON, since YAML reads some of it otherwise; anything else as YAML."""
    try:
        return parse_json(text)
    except ValueError:
        pass
    try:
        return yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        # Tags and dates that cannot be built fail in their builders, each in its own way.
        raise yaml.YAMLError(str(error)) from None


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a few lines of them can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def _sentence(model: type[BaseModel], error: ErrorDetails) -> str:
    """One sentence: which parameter, which value, what is allowed."""
    if error["type"] == "value_error":
        told = str(error.get("ctx", {}).get("error", ""))
        if told != "_number":
            return told
    path = [str(part) for part in error["loc"]]
    name = path[0] if path else "input"
    fields = model.model_fields
    if name == "options" and len(path) > 1:
        name, fields = path[1], Options.model_fields
        shown_name = f"options: {name}"
    else:
        shown_name = name
    field = fields.get(name)
    allowed = _allowed(field.annotation, field.metadata) if field else error["msg"].lower()
    return f"{shown_name} must be {allowed}, got {_shown(error['input'])}."


def _allowed(annotation: Any, metadata: Sequence[Any]) -> str:
    """What a field accepts, in words."""
    kinds = list(_kinds(annotation))
    words = [kind for kind in kinds if isinstance(kind, str)]
    if words:
        return f"one of {', '.join(words)}"
    nouns = {float: "a number", int: "a whole number", bool: "true or false", dict: "a mapping"}
    noun = next((nouns[kind] for kind in kinds if kind in nouns), "a text")
    low = next((limit.ge for limit in metadata if isinstance(limit, Ge)), None)
    high = next((limit.le for limit in metadata if isinstance(limit, Le)), None)
    return noun if low is None else f"{noun} from {_plain(low)} to {_plain(high)}"


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types, and the words of a ``Literal``, that an annotation is made of."""
    origin = get_origin(annotation)
    if origin is Literal:
        yield from get_args(annotation)
    elif origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    else:
        yield origin or annotation


def _plain(limit: Any) -> str:
    return f"{limit:,}".replace(",", " ") if isinstance(limit, int) else f"{limit:g}"


def _shown(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    if isinstance(value, int | float) or not str(value).strip("+-.0123456789"):
        return shortened(text, 60)
    # A long text where a number or a word belongs may be anything, a key in the wrong field too.
    return text if len(text) <= config.MAX_SHOWN_CHARS else f"{len(text)} characters"


def _unknown_option(name: Any) -> str:
    known = ", ".join(Options.model_fields)
    shown = repr(str(name)) if len(str(name)) <= 40 else f"of {len(str(name))} characters"
    return f"options has no key {shown}. Known keys: {known}."
