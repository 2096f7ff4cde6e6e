"""The state of all credentials of one process, bounded in number.

One plugin process serves all workspaces. A credential's state is found by the fingerprint of its
base URL and key; nothing of one is reachable from another. Where there are more credentials than
are kept, the least recently used one that is idle is forgotten. One that is in use never is.
"""

from collections import OrderedDict
from functools import cache

from holysheep import config
from holysheep.breaker import OwnBreakers
from holysheep.cache import MemoryCache
from holysheep.engine import CredentialState, Engine
from holysheep.ledger import Ledgers
from holysheep.ports import Clock, Rng, SystemClock, system_rng
from holysheep.settings import Settings


class Registry:
    """Engines by credential. Safe for concurrent use."""

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        rng: Rng | None = None,
        max_credentials: int = config.MAX_CREDENTIALS,
    ) -> None:
        self.clock = clock or SystemClock()
        self._rng = rng or system_rng()
        self._max_credentials = max_credentials
        self._lock = self.clock.lock()
        self._kept: OrderedDict[str, tuple[CredentialState, Engine]] = OrderedDict()
        self.cache = MemoryCache(self.clock)
        self.breakers = OwnBreakers(self.clock)
        self.ledgers = Ledgers(self.clock)

    def __len__(self) -> int:
        return len(self._kept)

    def engine(self, settings: Settings) -> Engine:
        """The engine of a credential; changed limits take effect at once."""
        fingerprint = settings.fingerprint
        with self._lock:
            kept = self._kept.get(fingerprint)
            if kept is None:
                state = CredentialState(
                    settings,
                    answers=self.cache.shelf(fingerprint),
                    breakers=self.breakers,
                    clock=self.clock,
                )
                self._make_room()
                for kept_state, _ in self._kept.values():
                    # Nobody else would close what a credential left open that is not used now.
                    kept_state.pool.close_expired()
            elif kept[1].settings == settings:
                self._kept.move_to_end(fingerprint)
                return kept[1]
            else:
                state = kept[0]
                state.resize(settings)
            engine = Engine(settings, state, clock=self.clock, rng=self._rng)
            self._kept[fingerprint] = (state, engine)
            self._kept.move_to_end(fingerprint)
            return engine

    def close(self) -> None:
        """Close the idle connections of all credentials."""
        with self._lock:
            for state, _ in self._kept.values():
                state.close()

    def _make_room(self) -> None:
        """Forget idle credentials, the longest unused first, until one more fits."""
        for fingerprint, (state, _) in list(self._kept.items()):
            if len(self._kept) < self._max_credentials:
                return
            if state.is_idle:
                del self._kept[fingerprint]
                self.cache.forget(fingerprint)
                state.close()


@cache
def shared_registry() -> Registry:
    """The registry of this process, made when it is first asked for."""
    return Registry()
