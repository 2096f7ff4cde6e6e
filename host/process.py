"""The process's clock, threads and ledgers."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

from dify_plugin import DifyPluginEnv
from dify_plugin.core.runtime import Session

from holysheep import ports
from holysheep.ledger import Invocation
from holysheep.ports import Clock
from holysheep.registry import shared_registry
from host.storage import HostStore, Workspaces


def clock() -> Clock:
    """The clock of the process's engines."""
    return shared_registry().clock


def spawn(work: Callable[[], None]) -> object:
    """Run ``work`` beside the call that asks for it."""
    return _threads().submit(work)


def give_way() -> None:
    """Let others run that wait for the one thread of the process."""
    ports.give_way(clock())


@contextmanager
def invocation(session: Session, node: str, *, lasts: bool = False) -> Iterator[Invocation]:
    """Where the calls of an invocation are counted; to be left when its outputs are out.

    ``lasts`` says that it goes on after its first call.
    """
    store = HostStore(session, clock())
    # Apps and endpoints belong to one workspace. While that is not known, they stand for it.
    origin = session.app_id or session.endpoint_id or ""
    source = f"origin {origin or session.session_id}"
    workspace = _workspaces().of(origin, session) or source
    ledger = shared_registry().ledgers.of(workspace, spawn, formerly=source)
    app = session.app_id or ""
    with ledger.invocation(node, app=app, store=store, lasts=lasts) as opened:
        yield opened


@cache
def _workspaces() -> Workspaces:
    return Workspaces(clock())


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads that are kept for the next call; as many as the SDK runs calls at a time."""
    return ThreadPoolExecutor(DifyPluginEnv().MAX_WORKER, thread_name_prefix="holysheep")
