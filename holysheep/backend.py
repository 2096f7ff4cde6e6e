"""The state of one credential that other processes may share.

The layers know these interfaces, and not what is behind them: the process's own memory, or Redis.
"""

from dataclasses import dataclass

from holysheep.breaker import Breakers, OwnBreakers
from holysheep.cache import AnswerCache, Shelf
from holysheep.limiter import Limiter, RateLimiter
from holysheep.ports import Clock
from holysheep.settings import Settings
from holysheep.shared.answers import SharedAnswers
from holysheep.shared.breakers import SharedBreakers
from holysheep.shared.limits import SharedLimiter
from holysheep.shared.link import Link
from holysheep.shared.spending import SharedSpending
from holysheep.shared.storage import SharedStore


@dataclass(frozen=True, slots=True)
class Backend:
    """``spending``, ``storage`` and ``link`` are there where the state is in Redis."""

    answers: AnswerCache
    limiter: Limiter
    breakers: Breakers
    spending: SharedSpending | None = None
    storage: SharedStore | None = None
    link: Link | None = None

    def forget(self) -> None:
        """End it: nobody uses this credential any more."""
        if isinstance(self.limiter, SharedLimiter):
            self.limiter.forget()


def own_backend(settings: Settings, shelf: Shelf, breakers: OwnBreakers, clock: Clock) -> Backend:
    """The process's own memory."""
    return Backend(shelf, _limiter(settings, clock), breakers)


def shared_backend(
    settings: Settings, shelf: Shelf, breakers: SharedBreakers, link: Link, clock: Clock
) -> Backend:
    """Redis, and the process's own memory while that is away."""
    name = settings.fingerprint
    return Backend(
        SharedAnswers(link, name, settings.api_key, shelf, clock),
        SharedLimiter(link, name, _limiter(settings, clock), clock),
        breakers,
        SharedSpending(link, name),
        SharedStore(link, name),
        link,
    )


def _limiter(settings: Settings, clock: Clock) -> RateLimiter:
    return RateLimiter(settings.requests_per_minute, settings.tokens_per_minute, clock=clock)
