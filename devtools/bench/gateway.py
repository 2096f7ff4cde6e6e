"""What the gateway endpoint costs, against a bare endpoint of the SDK that echoes its request."""

import json
import statistics
from collections.abc import Callable
from contextlib import ExitStack

from devtools.bench.calls import KEY
from devtools.bench.figures import Figure, compared
from devtools.upstream.behaviours import ok
from devtools.upstream.control import Upstream
from tests.host.daemon import NOOP_PLUGIN, HttpResult, PluginProcess

TOKEN = "bench-access-token"  # noqa: S105 - it opens nothing
COUNT = 60


def gateway(rounds: int) -> list[Figure]:
    """A cache hit and an uncached call, and the first piece of a stream, one call at a time."""
    numbers = iter(range(10**9))
    with ExitStack() as stack:
        upstream = stack.enter_context(Upstream())
        plugin = stack.enter_context(PluginProcess())
        noop = stack.enter_context(PluginProcess(NOOP_PLUGIN, provider="noop"))
        settings = {
            "access_token": TOKEN,
            "api_key": KEY,
            "base_url": upstream.url,
            "requests_per_minute": "0",
        }
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}

        def body(text: str, *, stream: bool = False) -> dict[str, object]:
            messages = [{"role": "user", "content": text}]
            return {"model": "gpt-4.1", "messages": messages, "stream": stream}

        def ask(text: str, *, stream: bool = False) -> HttpResult:
            result = plugin.request(
                "POST",
                "/v1/chat/completions",
                headers=headers,
                body=json.dumps(body(text, stream=stream)).encode(),
                settings=settings,
            )
            if result.status != 200:
                raise RuntimeError(result.body.decode())
            return result

        def echo() -> HttpResult:
            sent = json.dumps(body("What do sheep eat?")).encode()
            return noop.request("POST", "/echo", headers=headers, body=sent)

        def question() -> str:
            return f"Question {next(numbers)}: what do sheep eat?"

        ask("What do sheep eat?")
        found = []
        for _ in range(rounds):
            upstream.default(None)
            round_ = {
                "hit": _p50(lambda: ask("What do sheep eat?").elapsed_ms),
                "echo": _p50(lambda: echo().elapsed_ms),
                "miss": _p50(lambda: ask(question()).elapsed_ms),
            }
            upstream.default(ok(chunks=["word "] * 20, chunk_delay_ms=2))
            round_["ttft"] = _p50(lambda: ask(question(), stream=True).first_ms or 0.0)
            found.append(round_)
    return [
        compared("gateway, cache hit, p50", found, ours="hit", theirs="echo", unit="ms"),
        compared("gateway, uncached, upstream 0 ms", found, ours="miss", theirs="echo", unit="ms"),
        compared("gateway, first piece of a stream", found, ours="ttft", theirs="echo", unit="ms"),
    ]


def _p50(call: Callable[[], float]) -> float:
    return statistics.median(call() for _ in range(COUNT))
