"""An engine with all its mechanisms over a scripted gateway, on a timeline."""

import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from holysheep.backend import Backend, own_backend
from holysheep.breaker import OwnBreakers
from holysheep.cache import MemoryCache
from holysheep.engine import Answer, CredentialState, Engine
from holysheep.ledger import Invocation, Ledger
from holysheep.result import ChatResult
from holysheep.settings import Settings, parse_settings
from holysheep.tally import Tally
from holysheep.types import Policy
from tests.fakes import KEY, START_S, ScriptedGateway, VirtualTime, a_request

Respond = Callable[[dict[str, Any], int], Any]


class World:
    """An engine with its credential's state over a scripted gateway."""

    def __init__(self, respond: Respond | None = None, *, seed: int | None = None, **fields: Any):
        self.time = VirtualTime(seed)
        self.gateway = ScriptedGateway(self.time, respond)
        self.cache = MemoryCache(self.time)
        self.breakers = OwnBreakers(self.time)
        self._rng = random.Random(seed).random
        self.engine = self.credential(**fields)

    def credential(self, key: str = KEY, **fields: Any) -> Engine:
        """An engine for another credential of the same process and gateway."""
        settings = _settings(key, fields)
        self.state = CredentialState(
            settings,
            backend=self.backend(settings),
            clock=self.time,
        )
        self.state.pool = self.gateway  # type: ignore[assignment]
        return Engine(settings, self.state, clock=self.time, rng=self._rng)

    def backend(self, settings: Settings) -> Backend:
        """Where the credential's state is kept."""
        shelf = self.cache.shelf(settings.fingerprint)
        return own_backend(settings, shelf, self.breakers, self.time)

    def changed(self, **fields: Any) -> Engine:
        """The engine of the credential when its settings have been changed to these."""
        settings = _settings(self.engine.settings.api_key, fields)
        self.state.resize(settings)
        return Engine(settings, self.state, clock=self.time, rng=self._rng)

    def answer(
        self,
        text: str = "Hello",
        *,
        engine: Engine | None = None,
        timeout_s: float = 60.0,
        stream: bool = False,
        started_s: float | None = None,
        invocation: Invocation | None = None,
        **policy: Any,
    ) -> Answer:
        """An answer that is still to be read."""
        return (engine or self.engine).ask(
            a_request(text),
            Policy(**policy),
            timeout_s=timeout_s,
            stream=stream,
            started_s=started_s,
            invocation=invocation,
        )

    def ask(self, text: str = "Hello", **options: Any) -> ChatResult:
        """Ask and wait."""
        return self.answer(text, **options).wait()

    def crowd(self, count: int, **options: Any) -> list[Any]:
        """``count`` different questions at once."""
        for number in range(count):
            self.time.spawn(self.ask, f"question {number}", **options)
        outcomes = self.time.run()
        assert self.gateway.in_use == 0
        assert self.state.slots.held == 0
        assert len(self.state.flights) == 0
        return outcomes

    def counted(self, ledger: Ledger | None = None) -> Tally:
        """What a ledger has counted today; without one, that of the calls of no workspace."""
        today = datetime.fromtimestamp(self.time.wall(), UTC).date()
        return (ledger or self.state.ledger).past([today]).days[today]

    def sent_within(self, from_s: float, to_s: float) -> int:
        """Requests that left in that span of the timeline, its end excluded."""
        return sum(from_s <= at_s - START_S < to_s for at_s in self.gateway.sent_s)


def _settings(key: str, fields: dict[str, Any]) -> Settings:
    return parse_settings({"api_key": key, "requests_per_minute": "0", **fields})


def failing(status: int, latency_s: float = 0.5, **headers: str) -> Respond:
    def respond(_: dict[str, Any], __: int) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return latency_s, status, named, {"error": {"message": "no"}}

    return respond
