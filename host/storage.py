"""The host's storage as the engine's ledger wants it, and whose storage it is."""

import copy
import uuid
from collections import OrderedDict
from collections.abc import Callable

from dify_plugin.core.runtime import Session
from dify_plugin.invocations.storage import StorageInvocation

from holysheep import config
from holysheep.ports import Clock
from holysheep.store import StoreError

_WORKSPACE_KEY = "usage/1/workspace"
_MAX_KNOWN = 10_000


class HostStore:
    """The storage of the workspace that a session belongs to; works while the session is open."""

    def __init__(
        self, session: Session, clock: Clock, timeout_s: int = config.STORE_TIMEOUT_S
    ) -> None:
        # A copy, because the time limit is the session's: a call that hangs must not hang a node.
        session = copy.copy(session)
        session.max_invocation_timeout = timeout_s
        self._clock = clock
        self._timeout_s = timeout_s
        self._storage = StorageInvocation(session)

    def read(self, key: str) -> bytes | None:
        """The value of ``key``; ``None`` = there is none."""
        began_s = self._clock.monotonic()
        try:
            return self._storage.get(key)
        except Exception as error:
            is_silent = self._clock.monotonic() - began_s >= self._timeout_s
            # The host says the same of a key that is not there and of a storage that is away.
            if is_silent or self.has(key):
                raise StoreError(_reason(error)) from error
            return None

    def has(self, key: str) -> bool:
        """Whether ``key`` has a value."""
        return _attempt(lambda: self._storage.exist(key))

    def write(self, key: str, value: bytes) -> None:
        """Set the value of ``key``."""
        _attempt(lambda: self._storage.set(key, value))

    def delete(self, key: str) -> None:
        """Remove ``key``, if it is there."""
        _attempt(lambda: self._storage.delete(key))


class Workspaces:
    """Tells workspaces apart: the host names none, but each has a storage of its own.

    The name is what the workspace's storage says, asked once for each app.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = clock.condition()
        self._is_asking = False
        self._known: OrderedDict[str, str] = OrderedDict()
        self._asks_again_s = float("-inf")

    def of(self, source: str, session: Session) -> str | None:
        """The workspace of ``source``, an app or whatever belongs to one workspace alone.

        ``None`` while the storage does not answer. For ``""`` it is asked each time.
        """
        with self._changed:
            # One at a time, so that those who ask a new workspace do not each give it a name.
            while self._is_asking and source not in self._known:
                self._changed.wait()
            name = self._known.get(source)
            if name is not None:
                self._known.move_to_end(source)
                return name
            if self._clock.monotonic() < self._asks_again_s:
                return None
            self._is_asking = True
        try:
            # Somebody waits for his call to begin.
            name = _workspace(HostStore(session, self._clock, timeout_s=1))
        except StoreError:
            self._asks_again_s = self._clock.monotonic() + config.LEDGER_PAUSE_MAX_S
        finally:
            with self._changed:
                self._is_asking = False
                if name is not None and source:
                    self._known[source] = name
                    if len(self._known) > _MAX_KNOWN:
                        self._known.popitem(last=False)
                self._changed.notify_all()
        return name


def _workspace(store: HostStore) -> str:
    stored = store.read(_WORKSPACE_KEY)
    if stored is None:
        stored = uuid.uuid4().hex.encode()
        store.write(_WORKSPACE_KEY, stored)
    return stored.hex()


def _attempt[Result](action: Callable[[], Result]) -> Result:
    try:
        return action()
    except Exception as error:
        raise StoreError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """What the host says, on one line and not too long."""
    return " ".join(str(error).split())[:200] or type(error).__name__
