"""Whether the plugin works."""

from typing import Literal

from endpoints import _adapter
from holysheep.breaker import State
from holysheep.config import VERSION
from holysheep.engine import Engine
from holysheep.gateway import ApiError, encoded
from host import process


class Health(_adapter.Site):
    """Up or down for anyone; more for those who have the token."""

    is_public = True

    def answer(self, visitor: _adapter.Visitor) -> _adapter.Answer:
        """One look at what is known; nothing is called."""
        if not visitor.request.headers.get("authorization"):
            is_up = _is_up(visitor)
            yield _adapter.Head(status=200 if is_up else 503)
            yield encoded({"status": "ok" if is_up else "down"})
            return
        visitor.admit()
        engine, is_up = visitor.engine, _is_up(visitor)
        with process.invocation(visitor.session, "health") as invocation:
            document = {
                "status": "ok" if is_up else "down",
                "version": VERSION,
                "upstream": None if engine is None else engine.settings.base_url,
                "breakers": {} if engine is None else _own_breaker(engine),
                "in_flight": 0 if engine is None else engine.in_flight,
                "storage": "failing" if invocation.ledger.problem else "ok",
                "redis": None if engine is None else _redis(engine),
            }
            yield _adapter.Head(status=200 if is_up else 503)
            yield encoded(document)


def _own_breaker(engine: Engine) -> dict[str, State]:
    """The breaker of the default model; the others may be those of other workspaces."""
    model = engine.settings.default_model
    return {name: state for name, state in engine.breakers.items() if name == model}


def _redis(engine: Engine) -> Literal["ok", "away"] | None:
    """What is known of its Redis; nothing is asked. Calls go on without, so it may be away."""
    if engine.link is None:
        return None
    return "ok" if engine.link.is_up else "away"


def _is_up(visitor: _adapter.Visitor) -> bool:
    """Whether the endpoint is set up well, and its gateway is not known to be down."""
    try:
        visitor.has_token()
        engine = visitor.engine
    except ApiError:
        return False
    return engine is None or engine.breakers.get(engine.settings.default_model) != "open"
