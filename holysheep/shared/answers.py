"""The cache and the leads of one credential in Redis.

Of identical calls in all processes one takes the *lead*, which is a lease: its holder may die at
any moment, and is not missed for longer than the lease lasts. The others follow: they wait for news
and are given what the call came to, be it an answer or a failure. A failure that was the leader's
own (its deadline, its turn at a limit) frees the lead for the next.

What a process has landed and Redis has not taken yet, it knows itself.
"""

import itertools
import logging
import uuid
from dataclasses import dataclass
from typing import Any

from holysheep import config
from holysheep.cache import Found, Lead, Shelf, Wanted
from holysheep.errors import HolySheepError, SharedAnswerLate
from holysheep.ports import Clock
from holysheep.shared.codec import decoded, encoded_answer, encoded_failure
from holysheep.shared.link import Away, Link
from holysheep.shared.scripts import root_of
from holysheep.types import Completion

_log = logging.getLogger(__name__)
_DEAF_S = 0.25
"""How often who follows asks while no news can be heard."""


@dataclass(frozen=True, slots=True)
class _Landing:
    """What was landed and is on its way to Redis; ``kept`` as ``SharedAnswers.land`` takes it."""

    kept: tuple[bytes, Completion, float] | None
    landed_s: float

    def left_s(self, now: float) -> float:
        """How long its answer may still be given to others."""
        return 0.0 if self.kept is None else self.kept[2] - (now - self.landed_s)


class SharedAnswers:
    """The answers of one credential. ``own`` is where they are kept while Redis is away."""

    def __init__(self, link: Link, fingerprint: str, secret: str, own: Shelf, clock: Clock) -> None:
        self._link = link
        self._root = root_of(fingerprint)
        self._secret = secret
        self._own = own
        self._clock = clock
        self._changed = clock.condition()
        self._name = uuid.uuid4().hex
        self._numbers = itertools.count()
        # On their way, by the identity of the call and by the key of the answer.
        self._landings: dict[bytes, _Landing] = {}
        self._kept: dict[bytes, _Landing] = {}

    def get(self, key: bytes) -> Completion | None:
        """The answer of ``key``, expired or not."""
        try:
            value = self._link.run("keyvalue", [self._entry(key)], ["HGET", "value"])
        except Away:
            return self._own.get(key)
        found = None if value is None else self._read(value)
        return found if isinstance(found, Completion) else None

    def lead(self, wanted: Wanted) -> Found | Lead:
        """A fresh answer, or the lead to get it. May wait for another process that has the lead.

        Raises what its call has failed with, and ``SharedAnswerLate`` at the caller's deadline.
        """
        landing = self._landing_of(wanted)
        if landing is not None:
            return Found(landing, "hit")
        try:
            return self._lead(wanted)
        except Away:
            return self._own.lead(wanted)

    def _lead(self, wanted: Wanted) -> Found | Lead:
        token = f"{self._name}{next(self._numbers)}"
        found = self._ask(wanted, token, token)
        if not isinstance(found, _Leader):
            return found
        leader = found
        with self._link.watch(self._topic(wanted.identity).encode()) as watch:
            while True:
                found = self._ask(wanted, token, leader.token)
                if not isinstance(found, _Leader):
                    return _coalesced(found)
                leader = found
                left_s = wanted.until_s - self._clock.monotonic()
                if left_s <= 0:
                    raise SharedAnswerLate(
                        "The deadline passed while an identical call was being answered by another"
                        " process. Raise timeout_s."
                    )
                # The end of the lease is when a leader that has died is found out.
                patience_s = leader.left_s + 0.01 if self._link.hearing else _DEAF_S
                watch.wait(min(left_s, patience_s))

    def _ask(self, wanted: Wanted, token: str, followed: str) -> "Found | Lead | _Leader":
        """A round trip. Raises the failure of the call that was followed, and ``Away``."""
        keys = [self._entry(wanted.key), self._lease(wanted.identity), self._landed(followed)]
        reads = wanted.reads
        while True:
            kind, *rest = self._link.run(
                "lead", keys, [int(reads), wanted.ttl_s, token, config.LEASE_S]
            )
            if kind == b"follow":
                return _Leader(rest[0].decode(), float(rest[1]))
            if kind == b"lead":
                return _SharedLead(self, wanted.identity, token)
            found = self._read(rest[0])
            if isinstance(found, HolySheepError):
                raise found
            if found is not None:
                return Found(found, "hit")
            # Damaged: as if it were not there.
            reads = False
            keys[2] = self._landed(token)

    def _landing_of(self, wanted: Wanted) -> Completion | None:
        """What has landed a moment ago; waits for an identical call to have landed wholly."""
        with self._changed:
            landing = self._kept.get(wanted.key) if wanted.reads else None
            if landing is not None and landing.kept is not None:
                _, completion, ttl_s = landing.kept
                if self._clock.monotonic() - landing.landed_s < min(ttl_s, wanted.ttl_s):
                    return completion
            until_s = min(wanted.until_s, self._clock.monotonic() + config.REDIS_TIMEOUT_S)
            while wanted.identity in self._landings and self._link.is_up:
                left_s = until_s - self._clock.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            return None

    def land(
        self,
        identity: bytes,
        token: str,
        outcome: Completion | HolySheepError | None,
        kept: tuple[bytes, Completion, float] | None = None,
    ) -> None:
        """End a flight: with what is for those who follow, and what is to be kept."""
        key = identity if kept is None else kept[0]
        landing = _Landing(kept, self._clock.monotonic())
        with self._changed:
            self._landings[identity] = landing
            self._kept[key] = landing
        lease = self._lease(identity)
        self._link.drop_lease(lease)

        def args() -> list[Any]:
            value = self._encoded(outcome)
            is_small = len(value) <= config.REDIS_MAX_VALUE_BYTES
            # It may have waited for Redis to be back.
            left_s = landing.left_s(self._clock.monotonic())
            return [
                token,
                value if is_small else b"",
                left_s if is_small and left_s > 0 else "",
                config.REDIS_STALE_S,
                config.LANDED_S,
                self._topic(identity),
            ]

        self._link.later(
            "land",
            [self._entry(key), lease, self._landed(token)],
            args,
            done=lambda: self._is_over(identity, key, landing),
            # Others would wait for it, and then ask for what is known.
            is_kept=True,
        )

    def begin(self, identity: bytes, token: str) -> None:
        """Keep the lead until it is landed."""
        self._link.keep_lease(self._lease(identity), token)

    def _encoded(self, outcome: Completion | HolySheepError | None) -> bytes:
        match outcome:
            case Completion():
                return encoded_answer(outcome)
            case HolySheepError():
                return encoded_failure(outcome, self._secret)
            case _:
                return b""

    def _is_over(self, identity: bytes, key: bytes, landing: _Landing) -> None:
        if landing.kept is not None:
            # For when Redis is away. It may have been away until now.
            kept_as, completion, _ = landing.kept
            self._own.put(kept_as, completion, landing.left_s(self._clock.monotonic()))
        with self._changed:
            if self._kept.get(key) is landing:
                del self._kept[key]
            if self._landings.get(identity) is landing:
                del self._landings[identity]
                self._changed.notify_all()

    def _read(self, value: bytes) -> Completion | HolySheepError | None:
        try:
            return decoded(value)
        except ValueError as error:
            _log.warning("an answer in Redis cannot be read: %s", error)
            return None

    def _entry(self, key: bytes) -> str:
        return f"{self._root}:answer:{key.hex()}"

    def _lease(self, identity: bytes) -> str:
        return f"{self._root}:lead:{identity.hex()}"

    def _landed(self, token: str) -> str:
        return f"{self._root}:landed:{token}"

    def _topic(self, identity: bytes) -> str:
        return f"landed:{identity.hex()}"


@dataclass(frozen=True, slots=True)
class _Leader:
    """Who has the lead, and for how long at least if he is gone."""

    token: str
    left_s: float


def _coalesced(found: Found | Lead) -> Found | Lead:
    return Found(found.completion, "coalesced") if isinstance(found, Found) else found


class _SharedLead:
    """The lead of this process."""

    def __init__(self, answers: SharedAnswers, identity: bytes, token: str) -> None:
        self._answers = answers
        self._identity = identity
        self._token = token
        self._has_landed = False
        answers.begin(identity, token)

    def land(self, key: bytes | None, completion: Completion, ttl_s: float) -> None:
        self._land(completion, None if key is None else (key, completion, ttl_s))

    def fail(self, error: HolySheepError) -> None:
        self._land(error)

    def end(self) -> None:
        if not self._has_landed:
            self._land(None)

    def _land(
        self,
        outcome: Completion | HolySheepError | None,
        kept: tuple[bytes, Completion, float] | None = None,
    ) -> None:
        self._has_landed = True
        self._answers.land(self._identity, self._token, outcome, kept)
