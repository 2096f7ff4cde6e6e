"""The key-value storage that the host offers to a plugin, and the thread that answers.

Behaviour and wording follow the daemon's ``persistence`` and ``backwards_invocation`` packages.
"""

from __future__ import annotations

import heapq
import posixpath
import threading
import time
from collections import Counter, deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["Replies", "Storage", "StorageCall"]

MAX_KEY_CHARS = 256
"""The longest storage key."""


class StorageCall(NamedTuple):
    """One storage request: operation (get, set, del, exist), key, bytes written (0 if none)."""

    op: str
    key: str
    size_bytes: int


class Storage:
    """The key-value storage that the host offers to a plugin, one space per tenant.

    Answers carry the real daemon's wording. ``quota_bytes`` (None = no limit) and ``enabled``
    come from the manifest when the process starts. As in the daemon, a write beyond the quota is
    answered with an error but stored all the same. ``latency_s`` delays every answer, not the
    operation itself; `held` keeps all answers back.
    """

    def __init__(self) -> None:
        self.enabled = True
        self.quota_bytes: int | None = None
        self.latency_s = 0.0
        self.data: dict[str, dict[str, bytes]] = {}
        self.counts: Counter[str] = Counter()
        self.calls: deque[StorageCall] = deque(maxlen=10_000)
        self._faults: list[tuple[str | None, str]] = []
        self._used: Counter[str] = Counter()
        self._replies: Replies | None = None

    def fail_next(
        self, times: int = 1, *, op: str | None = None, message: str = "storage is down"
    ) -> None:
        """Answer the next ``times`` requests (of this ``op`` only, if given) with an error."""
        self._faults.extend([(op, message)] * times)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep every answer back until the block ends: holds a call at its storage request."""
        replies = self._replies
        if replies is None:
            raise RuntimeError("the plugin process is not running")
        replies.hold(held=True)
        try:
            yield
        finally:
            replies.hold(held=False)

    def clear(self) -> None:
        """Forget all data, counts, injected failures and latency; the quota stays."""
        self.latency_s = 0.0
        self.data.clear()
        self.counts.clear()
        self.calls.clear()
        self._faults.clear()
        self._used.clear()

    def _answer(self, tenant_id: str, request: Mapping[str, Any]) -> dict[str, Any] | str:
        """Carry out one request; returns the answer's data, or the text of an error."""
        op, key = str(request.get("opt")), str(request.get("key"))
        self.counts[op] += 1
        self.calls.append(StorageCall(op, key, len(request.get("value", "")) // 2))
        for index, (failing_op, message) in enumerate(self._faults):
            if failing_op in {None, op}:
                del self._faults[index]
                return message
        if not self.enabled:
            return "permission denied, you need to enable storage access in plugin manifest"
        space = self.data.setdefault(tenant_id, {})
        clean = posixpath.normpath(key)
        bad_key = ".." in clean or "//" in clean or "\\" in clean
        match op:
            case "get":
                if bad_key or key not in space:
                    return (
                        "load data failed, please check if the key is correct "
                        "or you have not set it"
                    )
                return {"data": space[key].hex()}
            case "set":
                return self._set(tenant_id, key, str(request.get("value")), bad_key=bad_key)
            case "del":
                if bad_key or key not in space:
                    return "delete data failed: no such key"
                self._used[tenant_id] -= len(space.pop(key))
                return {"data": "ok", "deleted_num": 1}
            case "exist":
                if bad_key:
                    return "exist data failed: invalid key: path traversal attempt detected"
                found = int(key in space)
                return {"data": bool(found), "exist_num": found}
            case _:
                return f"unknown storage operation {op!r}"

    def _set(self, tenant_id: str, key: str, value: str, *, bad_key: bool) -> dict[str, Any] | str:
        try:
            content = bytes.fromhex(value)
        except ValueError as error:
            return f"decode data failed: {error}"
        if bad_key:
            return "save data failed: invalid key: path traversal attempt detected"
        if len(key) > MAX_KEY_CHARS:
            return "save data failed: key length must be less than 256 characters"
        space = self.data[tenant_id]
        growth = len(content) - len(space.get(key, b""))
        space[key] = content
        if self.quota_bytes is not None and self._used[tenant_id] + growth > self.quota_bytes:
            return "save data failed: allocated size is greater than max storage size"
        self._used[tenant_id] += growth
        return {"data": "ok"}


class Replies:
    """Writes storage answers at their due time, from a thread of its own.

    Not from the reading thread: a plugin that is busy writing does not read, and a reader that
    waits for room in stdin would then wait for ever.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._due: list[tuple[float, int, bytes]] = []
        self._count = 0
        self._held = False
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="host-replies", daemon=True)
        self._thread.start()

    def submit(self, line: bytes, delay_s: float) -> None:
        with self._changed:
            self._count += 1
            heapq.heappush(self._due, (time.perf_counter() + delay_s, self._count, line))
            self._changed.notify()

    def hold(self, *, held: bool) -> None:
        with self._changed:
            self._held = held
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while True:
                    if self._closed:
                        return
                    if self._held or not self._due:
                        self._changed.wait()
                        continue
                    wait_s = self._due[0][0] - time.perf_counter()
                    if wait_s <= 0:
                        break
                    self._changed.wait(wait_s)
                line = heapq.heappop(self._due)[2]
            self._write(line)
