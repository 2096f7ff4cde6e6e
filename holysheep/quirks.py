"""Parameters that a model does not take, learned from its refusals.

Nodes send a temperature, a ``top_p`` and a token limit with every request, because these have
defaults. Some models refuse one of them (reasoning models take no temperature, and their token
limit has another name; others take either temperature or ``top_p``), and some gateways do not know
``stream_options``. Such a refusal costs nothing: the request is sent again without that parameter,
and the model is remembered. What only an author who wants it sends is never left out.
"""

import re

from cachetools import LRUCache

from holysheep.errors import BadRequest, UnknownModel
from holysheep.ports import Clock
from holysheep.types import ChatRequest

RENAMED = {"max_tokens": "max_completion_tokens"}
"""Parameters that models know by another name."""

# Where a refusal names several, the first of them goes: "temperature and top_p cannot both be
# specified" is about top_p, of which nobody has heard before.
_OMITTABLE = ("stream_options", "top_p", "temperature", "max_tokens")
_REFUSAL = re.compile(
    r"unsupported|not supported|n[o']t support|cannot both|can't both|not both|only one of"
    r"|not allowed|not permitted|only the default|unknown|unrecognized|unexpected|deprecated"
)
_MAX_MODELS = 1000


class Quirks:
    """What each model of one gateway refuses. Safe for concurrent use."""

    def __init__(self, clock: Clock) -> None:
        self._lock = clock.lock()
        self._refused: LRUCache[str, tuple[str, ...]] = LRUCache(_MAX_MODELS)

    def refused_by(self, model: str) -> tuple[str, ...]:
        """The parameters that ``model`` is known to refuse, in the order of learning."""
        with self._lock:
            return self._refused.get(model, ())

    def learn(self, request: ChatRequest, error: BadRequest, left_out: tuple[str, ...]) -> bool:
        """Whether ``error`` is about a parameter that can be left out and was not yet."""
        told = f"{error.param or ''} {error.detail}".lower()
        if isinstance(error, UnknownModel) or not _REFUSAL.search(told):
            return False
        for name in _OMITTABLE:
            is_sent = name == "stream_options" or name in request.body
            if is_sent and name not in left_out and re.search(rf"\b{name}\b", told):
                with self._lock:
                    known = self._refused.get(request.model, ())
                    if name not in known:
                        self._refused[request.model] = (*known, name)
                return True
        return False
