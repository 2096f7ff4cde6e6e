"""A process that calls a gateway with one client and reports speed and CPU, one line a command.

Run as ``python -m devtools.bench.worker CLIENT URL``. It patches itself with gevent first, as the
Dify SDK does, so that the clients are seen as a plugin has them. Commands on standard input are
JSON objects, answers on standard output too::

    {"do": "calls", "count": 400, "in_flight": 20, "stream": false}  -> {"calls_s", "cpu_ms"}
    {"do": "ttft", "count": 50}                                      -> {"ttft_ms"}  (p50)
    {"do": "memory", "count": 1000}                                  -> {"rss_mb", "cache_mb"}
"""

import gevent.monkey

gevent.monkey.patch_all(sys=True)

import gc  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import httpx  # noqa: E402

from holysheep.registry import Registry  # noqa: E402
from holysheep.settings import parse_settings  # noqa: E402
from holysheep.types import ChatRequest, Policy  # noqa: E402

KEY = "bench-key-without-value"
Call = Callable[[int, bool], float]
"""Makes one call, streamed or not, and returns the seconds to the first piece of the answer."""


def body(number: int) -> dict[str, Any]:
    """A request that no other number makes."""
    return {
        "model": "gpt-4.1",
        "messages": [{"role": "user", "content": f"Question {number}: what do sheep eat?"}],
        "temperature": 0.7,
        "max_tokens": 200,
        "top_p": 0.95,
    }


class EngineClient:
    """All layers of the engine, each call a cache miss."""

    def __init__(self, url: str) -> None:
        settings = parse_settings(
            {
                "api_key": KEY,
                "base_url": url,
                "requests_per_minute": "0",
                "max_concurrency": "100",
            }
        )
        self.registry = Registry()
        self._engine = self.registry.engine(settings)

    def call(self, number: int, stream: bool) -> float:
        """One call through the engine."""
        began = time.perf_counter()
        answer = self._engine.ask(ChatRequest(body(number)), Policy(), timeout_s=60, stream=stream)
        first = 0.0
        for delta in answer:
            if not first and delta.text:
                first = time.perf_counter() - began
        return first


class HttpxClient:
    """A stock pooled httpx client that parses the answer, and nothing else."""

    def __init__(self, url: str, kept: int = 20) -> None:
        self._url = f"{url}/chat/completions"
        self._client = httpx.Client(
            timeout=60, limits=httpx.Limits(max_connections=100, max_keepalive_connections=kept)
        )
        self._headers = {"authorization": f"Bearer {KEY}"}

    def call(self, number: int, stream: bool) -> float:
        """One bare request."""
        began = time.perf_counter()
        if not stream:
            response = self._client.post(self._url, headers=self._headers, json=body(number))
            if not response.json()["choices"][0]["message"]["content"]:
                raise ValueError("no answer")
            return time.perf_counter() - began
        first = 0.0
        sent = {**body(number), "stream": True, "stream_options": {"include_usage": True}}
        with self._client.stream("POST", self._url, headers=self._headers, json=sent) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    choices = json.loads(line[6:])["choices"]
                    if not first and choices and choices[0]["delta"].get("content"):
                        first = time.perf_counter() - began
        return first


CLIENTS: dict[str, Callable[[str], EngineClient | HttpxClient]] = {
    "engine": EngineClient,
    "httpx": HttpxClient,
    "httpx-100-kept": lambda url: HttpxClient(url, kept=100),
}


def main() -> None:
    """Obey commands until standard input ends."""
    client = CLIENTS[sys.argv[1]](sys.argv[2])
    numbers = itertools.count(int(time.time() * 1000))
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "calls":
            answer = _calls(
                client.call,
                numbers,
                command["count"],
                command["in_flight"],
                stream=command.get("stream", False),
            )
        elif command["do"] == "ttft":
            times = [client.call(next(numbers), True) * 1000 for _ in range(command["count"])]
            answer = {"ttft_ms": statistics.median(times)}
        else:
            answer = _memory(client, numbers, command["count"])
        print(json.dumps(answer), flush=True)


def _calls(
    call: Call, numbers: "itertools.count[int]", count: int, in_flight: int, *, stream: bool
) -> dict[str, float]:
    left = itertools.repeat(None, count)

    def work() -> None:
        for _ in left:
            call(next(numbers), stream)

    threads = [threading.Thread(target=work) for _ in range(in_flight)]
    cpu_s, began = time.process_time(), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - began
    return {
        "calls_s": count / took_s,
        "cpu_ms": (time.process_time() - cpu_s) / count * 1000,
    }


def _memory(
    client: EngineClient | HttpxClient, numbers: "itertools.count[int]", count: int
) -> dict[str, float]:
    _calls(client.call, numbers, count, 20, stream=False)
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    cache_mb = client.registry.cache.size_bytes / 1e6 if isinstance(client, EngineClient) else 0.0
    return {"rss_mb": pages * 4096 / 1e6, "cache_mb": cache_mb}


if __name__ == "__main__":
    main()
