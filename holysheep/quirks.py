"""Parameters that a model does not take, learned from its refusals.

Nodes send a temperature, a ``top_p`` and a token limit with every request, because these have
defaults. Some models refuse one of them (reasoning models take no temperature, and their token
limit has another name; others take either temperature or ``top_p``), and some gateways do not know
``stream_options``. Such a refusal costs nothing: the request is sent again without that parameter.
What only an author who wants it sends is never left out.

A refusal is one call's experience and what is remembered changes everybody's, so learning is by
proof: only what an accepted request went without is remembered, and not for long. What is said of
a parameter's value ("at most 8192") is no refusal of the parameter; it is the author's to mend.
"""

import re
from collections.abc import Iterable

from cachetools import TTLCache

from holysheep import config
from holysheep.errors import BadRequest, UnknownModel
from holysheep.ports import Clock
from holysheep.types import ChatRequest

RENAMED = {"max_tokens": "max_completion_tokens"}
"""Parameters that models know by another name."""

# Where a refusal names several, the first of them goes: "temperature and top_p cannot both be
# specified" is about top_p, of which nobody has heard before.
_OMITTABLE = ("stream_options", "top_p", "temperature", "max_tokens")
_MAX_MODELS = 1000

# That a parameter is not taken, whatever its value. The only value that may be given is no value
# to choose: it is how OpenAI and others say that the parameter does not exist for a model.
_NOT_TAKEN = re.compile(
    r"only the default"
    r"|only (?:\w+ ?= ?)?1(?:\.0)? is (?:allowed|supported)"
    r"|unsupported parameters?\b(?! value)"
    r"|(?:unknown|unrecognized|unexpected)(?: \w+)? (?:argument|parameter|field|name|propert|key)"
    r"|extra inputs"
)
_REFUSAL = re.compile(
    _NOT_TAKEN.pattern + r"|unsupported|not supported|n[o']t support|cannot both|can't both"
    r"|not both|only one of|not allowed|not permitted|unknown|unrecognized|unexpected|deprecated"
)
# That a value is out of bounds.
_ABOUT_VALUE = re.compile(
    rf"\b(?:value|{'|'.join(_OMITTABLE)})\b\W{{0,3}}"
    r"(?:(?:value|of|is|was|set to|(?:does not|doesn't) support)\W{1,3})*-?\d"
    r"|(?:unsupported|invalid|unexpected) value|out of (?:range|bounds)|\boutside\b"
    r"|must be|should be|has to be|\bat (?:most|least)\b|\bbetween\b|\bup to\b|\brange\b"
    r"|\b(?:m(?:ax|in)imum|exceed\w*)\b|(?:less|greater|more|fewer|higher|lower|larger) than"
    r"|\btoo (?:large|small|high|low|big|long|many)|[<>≤≥]|\d to -?\d"
)
# What stands behind this is taken, and named as help: "unknown field topk, expected one of ...".
_HELP = re.compile(
    r"(?<!not )(?<!n't )\b(?:known|allowed|expected|valid|supported|accepted|permitted|available)\b"
    r"(?: \w+){0,2}?(?::| (?:are|include|one of|is one of)\b)"
    r"|\b(?:use|try)\b(?! only)"
)
_SENTENCE_END = re.compile(r"[.!?;]\s+")


class Quirks:
    """What each model of one gateway refuses. Safe for concurrent use."""

    def __init__(self, clock: Clock) -> None:
        self._lock = clock.lock()
        self._refused: TTLCache[str, tuple[str, ...]] = TTLCache(
            _MAX_MODELS, config.QUIRK_TTL_S, timer=clock.monotonic
        )

    def refused_by(self, model: str) -> tuple[str, ...]:
        """The parameters that ``model`` is known to refuse, in the order of learning."""
        with self._lock:
            return self._refused.get(model, ())

    def remember(self, model: str, names: Iterable[str]) -> None:
        """Note that ``model`` has accepted a request without ``names``, and only without them."""
        with self._lock:
            known = self._refused.get(model, ())
            new = tuple(name for name in names if name not in known)
            if new:
                self._refused[model] = known + new


class Trial:
    """One request on its way to being accepted.

    ``left_out`` names the parameters that are not sent, or under another name, of those that the
    request has.
    """

    def __init__(self, quirks: Quirks, request: ChatRequest, *, stream: bool) -> None:
        self._quirks = quirks
        self._model = request.model
        sent = {name for name in _OMITTABLE if name in request.body}
        self._omittable = sent | {"stream_options"} if stream else sent
        known = quirks.refused_by(request.model)
        self.left_out = tuple(name for name in known if name in self._omittable)
        self._proven: list[str] = []

    def refused(self, error: BadRequest) -> bool:
        """Leave out one more parameter that ``error`` refuses; ``False`` if there is none."""
        named = refused_parameters(error)
        # What is named although it was not sent was left out for nothing.
        self._proven = [name for name in self._proven if name not in named]
        more = next((name for name in named if name in self._omittable - {*self.left_out}), None)
        if more is None:
            return False
        self.left_out += (more,)
        self._proven.append(more)
        return True

    def accepted(self) -> None:
        """Remember what had to be left out."""
        if self._proven:
            self._quirks.remember(self._model, self._proven)


def refused_parameters(error: BadRequest) -> tuple[str, ...]:
    """The parameters of those that can be left out that are, by ``error``, not taken at all.

    Where the gateway names a ``param``, only that one counts; its text names others as help.
    """
    told = error.detail.lower()
    if isinstance(error, UnknownModel) or not _REFUSAL.search(told):
        return ()
    if _ABOUT_VALUE.search(told) and not _NOT_TAKEN.search(told):
        return ()
    named = error.param.lower() if error.param else " ".join(_refusals_in(told))
    return tuple(name for name in _OMITTABLE if re.search(rf"\b{name}\b", named))


def _refusals_in(told: str) -> list[str]:
    """The sentences that refuse something, up to where they begin to help."""
    sentences = [_HELP.split(sentence, 1)[0] for sentence in _SENTENCE_END.split(told)]
    return [sentence for sentence in sentences if _REFUSAL.search(sentence)]
