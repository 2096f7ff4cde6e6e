"""Several plugin processes on one storage, killed in mid-work: what is counted, and the budget."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from devtools.upstream import behaviours as do
from tests.host.daemon import HostFault, PluginProcess
from tests.nodes.support import fresh_key

if TYPE_CHECKING:
    from devtools.upstream import Upstream

CALLS_EACH = 2000
IN_FLIGHT = 20
USAGE = {"prompt_tokens": 50, "completion_tokens": 200, "total_tokens": 250}
COST = Decimal("0.0017")
"""What this usage costs at the prices of gpt-4.1."""


class Caller:
    """Keeps calls in flight in one process, which may be killed and started anew meanwhile."""

    def __init__(self, plugin: PluginProcess, name: str, credentials: dict[str, Any]) -> None:
        self.plugin = plugin
        self.answered = 0
        self.refused = 0
        self.lost = 0
        self.ended_s: list[float] = []
        self._name = name
        self._credentials = credentials
        self._left = CALLS_EACH
        self._lock = threading.Lock()
        self._runs = threading.Event()
        self._runs.set()
        self._threads = [threading.Thread(target=self._work) for _ in range(IN_FLIGHT)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def kill_and_restart(self) -> int:
        """Returns how many calls the process may not have written: its last second, and open."""
        self._runs.clear()
        died_s = time.perf_counter()
        self.plugin.kill()
        with self._lock:
            unwritten = sum(ended_s > died_s - 1.3 for ended_s in self.ended_s)
        self.plugin.restart()
        self._runs.set()
        return unwritten + IN_FLIGHT

    def _work(self) -> None:
        while True:
            self._runs.wait(60)
            with self._lock:
                if not self._left:
                    return
                self._left -= 1
                number = self._left
            parameters = {
                "query": f"{self._name} {number}",
                "model": "gpt-4.1",
                "max_tokens": 200,
                "on_error": "continue",
            }
            try:
                result = self.plugin.call("holysheep_llm", parameters, self._credentials)
            except (HostFault, OSError):
                with self._lock:
                    self.lost += 1
                continue
            with self._lock:
                self.ended_s.append(time.perf_counter())
                self.answered += result.variables["status"] == "ok"
                self.refused += result.variables["error_type"] == "budget_exceeded"


def test_killed_processes_count_all_but_their_last_second_and_never_pass_the_budget(
    upstream: Upstream,
) -> None:
    upstream.default(do.ok(usage=USAGE, latency_ms=20))
    budget = Decimal("6.00")
    credentials = {
        "api_key": fresh_key(),
        "base_url": upstream.url,
        "requests_per_minute": "0",
        "max_concurrency": "100",
        "daily_budget_usd": str(budget),
    }
    with ExitStack() as stack:
        plugins = [PluginProcess(), PluginProcess()]
        plugins[1].storage = plugins[0].storage
        callers = [
            Caller(stack.enter_context(plugin), f"caller {number}", credentials)
            for number, plugin in enumerate(plugins)
        ]
        for caller in callers:
            caller.start()
        unwritten = 0
        for calls, victim in ((600, 0), (1400, 1), (2200, 0)):
            upstream.wait_for(lambda stats, calls=calls: stats.calls >= calls, timeout_s=60)
            unwritten += callers[victim].kill_and_restart()
        for caller in callers:
            caller.join()
        spent = upstream.stats().calls * COST
        fresh = PluginProcess()
        fresh.storage = plugins[0].storage
        stack.enter_context(fresh)
        report = fresh.call("holysheep_usage", {"period": "today"}, credentials).variables
    assert sum(caller.answered + caller.refused + caller.lost for caller in callers) == (
        2 * CALLS_EACH
    )
    assert spent <= budget, "the budget was passed"
    assert spent >= budget * Decimal("0.9"), "the budget was not used"
    counted = Decimal(str(report["total_cost_usd"]))
    assert counted <= spent, "something was counted twice"
    assert spent - counted <= unwritten * COST, "more than the last seconds is missing"
