"""How values from outside become the fields of a model, or one sentence that says what is wrong.

The host enforces nothing: numbers arrive as texts, what was left empty as an empty text, a mapping
as YAML or JSON. Here they are read, and a pydantic error becomes a sentence that names the
parameter, its value and what is allowed.
"""

import ast
import math
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Le
from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from holysheep import config
from holysheep.errors import InputError
from holysheep.jsontext import MAX_DEPTH, bracket_depth, parse_json
from holysheep.types import JsonObject
from holysheep.wording import shortened

# More would hold up everybody else for long: its parser is slow. JSON may be longer.
_MAX_YAML_CHARS = 20_000
_MAX_LITERAL_CHARS = 100_000
"""A list that was typed into an editor is shorter; Python's parser needs much memory."""


PLAINLY = "plainly"
"""What a validator raises that has nothing to add to what the field accepts."""


def _no_bool(value: Any) -> Any:
    """True and 1 are different things to a person who fills in a number."""
    if isinstance(value, bool):
        raise ValueError(PLAINLY)
    return value.strip() if isinstance(value, str) else value


MODEL_ID = "a model id of at most 200 printable characters"


def is_model_id(text: str) -> bool:
    """Whether a text is ``MODEL_ID``."""
    return len(text) <= 200 and text.isprintable()


Number = Annotated[float, BeforeValidator(_no_bool)]
Whole = Annotated[int, BeforeValidator(_no_bool)]


def is_unset(value: Any) -> bool:
    """Whether a parameter was left empty."""
    return value is None or (isinstance(value, str) and not value.strip())


def without_unset(value: Any, model: type[BaseModel]) -> Any:
    """A mapping without those fields of ``model`` that were left empty."""
    if not isinstance(value, dict):
        return value
    known = model.model_fields
    return {key: item for key, item in value.items() if key not in known or not is_unset(item)}


def chosen(raw: Mapping[str, Any], *, default_model: str) -> dict[str, Any]:
    """The parameters that are set, with the model that counts, checked for size.

    ``custom_model`` wins over ``model``, that over ``default_model``. Raises ``InputError``.
    """
    values = set_values(raw)
    model = values.pop("custom_model", values.get("model", default_model))
    values["model"] = model.strip() if isinstance(model, str) else model
    return values


def set_values(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that are set, checked for size. Raises ``InputError``."""
    values = {name: value for name, value in raw.items() if not is_unset(value)}
    try:
        total = sum(_chars(value) for value in values.values())
    except RecursionError:
        raise InputError("The inputs are nested too deeply.") from None
    if total > config.MAX_INPUT_CHARS:
        raise InputError(
            f"The inputs are too large: {total:,} characters, at most"
            f" {config.MAX_INPUT_CHARS:,} are allowed together."
        )
    return values


def parsed[Model: BaseModel](model: type[Model], values: Mapping[str, Any]) -> Model:
    """``values`` as a ``model``. Raises ``InputError`` for the first thing that is wrong."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(_sentence(model, error.errors(include_url=False)[0])) from None
    except ValueError:
        # The validator itself cannot put a number of that size into words.
        raise InputError("A number in the inputs has thousands of digits.") from None
    except RecursionError:
        raise InputError("The inputs are nested too deeply.") from None


def parse_mapping(value: Any, name: str) -> JsonObject:
    """A mapping, given as one or as YAML or JSON text. Raises ``ValueError`` with one sentence."""
    if isinstance(value, str):
        value = parse_yaml(value, name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a mapping, such as top_p: 0.9")
    return value


def parse_yaml(text: str, name: str) -> Any:
    """A value given as YAML or JSON text. Raises ``ValueError`` with one sentence.

    JSON is read as JSON, since YAML reads some of it otherwise.
    """
    try:
        return parse_json(text)
    except ValueError:
        pass
    if len(text) > _MAX_YAML_CHARS:
        raise ValueError(
            f"{name} is no JSON, and YAML of more than {_MAX_YAML_CHARS:,} characters."
        )
    if bracket_depth(text) > MAX_DEPTH:
        raise ValueError(f"{name} is nested too deeply.")
    try:
        return yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply.") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
        # Tags and dates that cannot be built fail in their builders, each in its own way.
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise ValueError(f"{name} is neither valid YAML nor JSON{where}.") from None


def parse_literal(text: str) -> Any:
    """A list or mapping as Python spells it, ``None`` for anything else.

    So arrives what a workflow has as a constant: seen with Dify 1.12.1.
    """
    if len(text) > _MAX_LITERAL_CHARS or bracket_depth(text) > MAX_DEPTH:
        return None
    try:
        value = ast.literal_eval(text.strip())
        # Broken JSON may be Python of another meaning: ["a" "b"] is one text there.
        return value if repr(value) == text.strip() else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


class _PlainLoader(yaml.loader.SafeLoader):
    """YAML without aliases: a few lines of them can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def shown(value: Any) -> str:
    """A wrong value, as far as it may be repeated in a message."""
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


def _chars(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_chars(key) + _chars(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(_chars(item) for item in value)
    return 0


def _sentence(model: type[BaseModel], error: ErrorDetails) -> str:
    """One sentence: which parameter, which value, what is allowed."""
    if error["type"] == "value_error":
        told = str(error.get("ctx", {}).get("error", ""))
        if told != PLAINLY:
            return told
    place, fields = "", model.model_fields
    names = list(error["loc"]) or ["input"]
    while len(names) > 1 and (inner := _model_in(fields.get(str(names[0])))):
        place += f"{names.pop(0)}"
        if isinstance(names[0], int) and len(names) > 1:
            place += f" {names.pop(0)}"
        place, fields = f"{place}: ", inner.model_fields
    name = str(names[0])
    if error["type"] in ("extra_forbidden", "invalid_key"):
        unknown = repr(name) if len(name) <= 40 else f"of {len(name)} characters"
        return f"{place.removesuffix(': ')} has no key {unknown}. Known keys: {', '.join(fields)}."
    if error["type"] == "missing":
        return f"{place}{name} is missing."
    field = fields.get(name)
    allowed = _allowed(field.annotation, field.metadata) if field else error["msg"].lower()
    if name == "model" and not place:
        name = "model or custom_model"
    return f"{place}{name} must be {allowed}, got {shown(error['input'])}."


def _model_in(field: FieldInfo | None) -> type[BaseModel] | None:
    """The model that a field, or each item of its list, is read as."""
    kinds = _kinds(field.annotation) if field else ()
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def _allowed(annotation: Any, metadata: Sequence[Any]) -> str:
    """What a field accepts, in words."""
    kinds = list(_kinds(annotation))
    words = [kind for kind in kinds if isinstance(kind, str)]
    if words:
        return f"one of {', '.join(words)}"
    if MODEL_ID in metadata or MODEL_ID in _metadata(annotation):
        return MODEL_ID
    nouns = {float: "a number", int: "a whole number", bool: "true or false", dict: "a mapping"}
    noun = next((nouns[kind] for kind in kinds if kind in nouns), "a text")
    limits = [*metadata, *_metadata(annotation)]
    low = next((limit.ge for limit in limits if isinstance(limit, Ge)), None)
    high = next((limit.le for limit in limits if isinstance(limit, Le)), None)
    return noun if low is None else f"{noun} from {_plain(low)} to {_plain(high)}"


def _metadata(annotation: Any) -> Iterator[Any]:
    """What stands beside the types that an annotation is made of, such as limits."""
    for part in get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ():
        if get_origin(part) is Annotated:
            for word in get_args(part)[1:]:
                yield from word.metadata if isinstance(word, FieldInfo) else (word,)


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types, and the words of a ``Literal``, that an annotation is made of."""
    origin = get_origin(annotation)
    if origin is Literal:
        yield from get_args(annotation)
    elif origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin in (Union, UnionType, list, tuple):
        for part in get_args(annotation):
            yield from _kinds(part)
    else:
        yield origin or annotation


def _plain(limit: Any) -> str:
    return f"{limit:,}".replace(",", " ") if isinstance(limit, int) else f"{limit:g}"
