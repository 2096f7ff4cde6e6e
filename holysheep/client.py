"""The engine as a library: ``Client`` for scripts and services outside Dify."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from holysheep.credentials import check_credentials, list_models
from holysheep.engine import Answer
from holysheep.errors import InputError, SettingsError
from holysheep.options import Options
from holysheep.params import ChatParams, parse_messages
from holysheep.ports import SystemClock
from holysheep.reading import chosen, parsed
from holysheep.registry import Registry
from holysheep.result import ChatResult
from holysheep.settings import FIELDS, parse_settings
from holysheep.types import ChatRequest, Delta, JsonObject

API_KEY_VARIABLE = "HOLYSHEEP_API_KEY"
BASE_URL_VARIABLE = "HOLYSHEEP_BASE_URL"


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


class Client:
    """One credential of an OpenAI-compatible gateway. Safe for use by several threads.

    ``api_key`` defaults to the environment's ``HOLYSHEEP_API_KEY``, ``base_url`` to
    ``HOLYSHEEP_BASE_URL`` or HolySheep AI. The other settings are those of the credential in Dify
    and take numbers or texts: ``auth_header``, ``default_model``, ``requests_per_minute``,
    ``tokens_per_minute``, ``max_concurrency``, ``daily_budget_usd``, ``monthly_budget_usd``,
    ``price_overrides``.

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

    def models(self) -> list[str]:
        """The ids of the models that the gateway offers to this key."""
        return list_models(self._registry.engine(self._settings), clock=self._clock)

    def check(self) -> None:
        """Return if key and base URL work, else raise what is wrong with them."""
        check_credentials(self._registry.engine(self._settings), clock=self._clock)

    def _ask(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        given: Mapping[str, Any],
        *,
        stream: bool,
    ) -> Answer:
        params, request = _parse(messages, given, self._settings.default_model)
        engine = self._registry.engine(self._settings)
        return engine.ask(request, params.policy(), timeout_s=params.timeout_s, stream=stream)


def _parse(
    messages: str | Sequence[Mapping[str, Any]], given: Mapping[str, Any], default_model: str
) -> tuple[ChatParams, ChatRequest]:
    unknown = sorted(set(given) - _PARAMS - set(Options.model_fields))
    if unknown:
        raise InputError(f"Unknown parameters: {', '.join(unknown)}.")
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    try:
        conversation = parse_messages(list(messages), "messages")
    except ValueError as error:
        raise InputError(str(error)) from None
    if not conversation or _is_blank(conversation[-1]):
        raise InputError("messages is empty: give the model something to answer.")
    options = {name: given[name] for name in given if name in Options.model_fields}
    given = {name: given[name] for name in given if name in _PARAMS}
    values = chosen(
        {**given, "options": options, "messages": [_texts(message) for message in conversation]},
        default_model=default_model,
    )
    del values["messages"]
    params = parsed(ChatParams, values)
    return params, params.request(conversation)


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


_PARAMS = set(ChatParams.model_fields) - {"options", "on_error"}
