"""A storage that is slow, failing, full or silent: calls go on, and what is wrong is told."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from devtools.upstream import behaviours as do
from tests.host.daemon import PluginProcess, Storage
from tests.nodes.support import USAGE, Llm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devtools.upstream import Upstream


@pytest.fixture(scope="module")
def own_plugin() -> Iterator[PluginProcess]:
    """A process whose storage may be left alone for a while after these tests."""
    with PluginProcess() as process:
        yield process


@pytest.fixture
def llm(own_plugin: PluginProcess, upstream: Upstream) -> Iterator[Llm]:
    upstream.default(do.ok(usage=USAGE))
    own_plugin.storage.clear()
    own_plugin.restart()
    yield Llm(own_plugin, upstream, default_model="gpt-4.1")
    own_plugin.storage.clear()


def counted(llm: Llm) -> dict[str, Any]:
    """What the usage node of a process that was started anew tells."""
    llm.plugin.restart()
    result = llm.plugin.call("holysheep_usage", {"period": "today"}, llm.credentials)
    assert result.error is None
    return result.variables | {"text": result.text}


def test_a_call_is_counted_before_it_ends(llm: Llm) -> None:
    llm.run(query="Hello")
    llm.run(query="Hello")
    found = counted(llm)
    assert (found["total_requests"], found["cached_requests"]) == (2, 1)
    assert found["total_cost_usd"] == found["saved_usd"] == 0.0036


def test_a_slow_storage_holds_up_the_end_of_the_last_call_and_no_outputs(llm: Llm) -> None:
    llm.run(query="warm")
    llm.plugin.storage.latency_s = 0.2
    first = llm.start(query="one")
    result = llm.finish(first)
    last_output_s = max(message.at_s for message in result.messages)
    assert last_output_s - first.started_s < 0.2
    began_s = time.perf_counter()
    for invocation in [llm.start(query=f"{number}") for number in range(40)]:
        llm.finish(invocation)
    # One after the other would take 8 s.
    assert time.perf_counter() - began_s < 3.0
    llm.plugin.storage.latency_s = 0.0
    assert counted(llm)["total_requests"] == 42


def test_a_failing_storage_fails_no_call_and_loses_nothing(llm: Llm) -> None:
    llm.plugin.storage.fail_next(1000, message="the disk is gone")
    for number in range(5):
        llm.run(query=f"{number}")
    told = llm.plugin.logged.count("usage cannot be stored, it is kept and tried again: the disk")
    assert told == 1, "it is said once, not at each call"
    report = llm.plugin.call("holysheep_usage", {"period": "today"}, llm.credentials)
    assert report.variables["total_requests"] == 5
    assert "the disk is gone" in report.text
    llm.plugin.storage._faults.clear()
    calls = 5
    ends_s = time.perf_counter() + 10
    # It is tried again a second after the first failure.
    while not is_stored(llm.plugin.storage):
        assert time.perf_counter() < ends_s, "it was not tried again"
        llm.run(query="again", cache="bypass")
        calls += 1
    assert counted(llm)["total_requests"] == calls


def is_stored(storage: Storage) -> bool:
    return any(key.endswith("/index") for key in storage.data.get("tenant-1", {}))


def test_a_full_storage_fails_no_call_and_says_so(llm: Llm) -> None:
    llm.run(query="fits")
    llm.plugin.storage.quota_bytes = 1
    for number in range(3):
        llm.run(query=f"{number}")
    assert "max storage size" in llm.plugin.logged
    llm.plugin.storage.quota_bytes = None
    assert counted(llm)["total_requests"] >= 1


def test_a_storage_that_never_answers_holds_a_call_for_some_seconds_once(llm: Llm) -> None:
    llm.run(query="warm")
    with llm.plugin.storage.held():
        first = llm.start(query="one")
        result = first.result(20)
        assert result.error is None
        assert result.text
        assert result.elapsed_ms < 8000
        quick = llm.start(query="two").result(20)
        assert quick.elapsed_ms < 1000, "the storage is left alone meanwhile"


def test_a_budget_is_told_to_count_the_process_alone_while_the_storage_fails(llm: Llm) -> None:
    limited = llm.like(daily_budget_usd="1")
    limited.plugin.storage.fail_next(1000, message="the disk is gone")
    meta = limited.run(query="one").variables["meta"]
    assert "the disk is gone" in meta["budget_warning"]
    assert "alone" in meta["budget_warning"]


def test_a_new_process_does_not_wait_long_for_a_storage_that_never_answers(llm: Llm) -> None:
    with llm.plugin.storage.held():
        result = llm.start(query="one").result(20)
    assert result.error is None
    assert result.first_ms is not None
    assert result.first_ms < 4000
