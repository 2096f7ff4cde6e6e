"""The state of all credentials of one process, bounded in number.

One plugin process serves all workspaces. A credential's state is found by the fingerprint of its
base URL and key, and by its Redis; nothing of one is reachable from another. Where there are more
credentials than are kept, the least recently used one that is idle is forgotten. One that is in use
never is.
"""

from collections import OrderedDict
from functools import cache

from holysheep import config
from holysheep.backend import Backend, own_backend, shared_backend
from holysheep.breaker import OwnBreakers
from holysheep.cache import MemoryCache
from holysheep.engine import CredentialState, Engine
from holysheep.ledger import Ledgers
from holysheep.ports import Clock, Rng, SystemClock, spawn_thread, system_rng
from holysheep.settings import Settings
from holysheep.shared.address import parse_redis_url
from holysheep.shared.breakers import SharedBreakers
from holysheep.shared.link import Link


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
        self._kept: OrderedDict[tuple[str, str], tuple[CredentialState, Engine]] = OrderedDict()
        self._shared: dict[str, tuple[Link, SharedBreakers]] = {}
        self.cache = MemoryCache(self.clock)
        self._breakers = OwnBreakers(self.clock)
        self.ledgers = Ledgers(self.clock)

    def __len__(self) -> int:
        return len(self._kept)

    def engine(self, settings: Settings) -> Engine:
        """The engine of a credential; changed limits take effect at once."""
        name = (settings.fingerprint, settings.redis_url)
        with self._lock:
            kept = self._kept.get(name)
            if kept is None:
                self._make_room()
                backend = self._backend(settings)
                state = CredentialState(settings, backend=backend, clock=self.clock)
                for kept_state, _ in self._kept.values():
                    # Nobody else would close what a credential left open that is not used now.
                    kept_state.pool.close_expired()
            elif kept[1].settings == settings:
                self._kept.move_to_end(name)
                return kept[1]
            else:
                state = kept[0]
                state.resize(settings)
            engine = Engine(settings, state, clock=self.clock, rng=self._rng)
            self._kept[name] = (state, engine)
            self._kept.move_to_end(name)
            return engine

    def close(self) -> None:
        """Close the idle connections of all credentials."""
        with self._lock:
            for state, _ in self._kept.values():
                state.close()
            for link, _ in self._shared.values():
                link.rest()

    def _backend(self, settings: Settings) -> Backend:
        shelf = self.cache.shelf(settings.fingerprint)
        url = settings.redis_url
        if not url:
            return own_backend(settings, shelf, self._breakers, self.clock)
        if url not in self._shared:
            link = self._link_to(url)
            self._shared[url] = (link, SharedBreakers(link, self._breakers, self.clock))
        link, breakers = self._shared[url]
        return shared_backend(settings, shelf, breakers, link, self.clock)

    def _link_to(self, url: str) -> Link:
        # It takes its time to be imported, and most have no use for it.
        from holysheep.shared.server import RedisServer  # noqa: PLC0415

        server = RedisServer(parse_redis_url(url))
        return Link(server, clock=self.clock, spawn=spawn_thread, rng=self._rng)

    def _make_room(self) -> None:
        """Forget idle credentials, the longest unused first, until one more fits."""
        for name, (state, _) in list(self._kept.items()):
            if len(self._kept) < self._max_credentials:
                return
            if state.is_idle:
                fingerprint, url = name
                del self._kept[name]
                self.cache.forget(fingerprint)
                state.forget()
                if url and not any(url == other for _, other in self._kept):
                    link, _ = self._shared.pop(url)
                    link.close()


@cache
def shared_registry() -> Registry:
    """The registry of this process, made when it is first asked for."""
    return Registry()
