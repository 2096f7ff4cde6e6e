"""A process that calls a gateway with one client and reports speed and CPU, one line a command.

Run as ``python -m devtools.bench.worker CLIENT URL``. It patches itself with gevent first, as the
Dify SDK does, so that the clients are seen as a plugin has them. Commands on standard input are
JSON objects, answers on standard output too::

    {"do": "calls", "count": 400, "in_flight": 20, "stream": false}  -> {"calls_s", "cpu_ms"}
    {"do": "ttft", "count": 50}                                      -> {"ttft_ms"}  (p50)
    {"do": "memory", "count": 1000}                                  -> {"rss_mb", "cache_mb"}
    {"do": "batch", "count": 1000, "in_flight": 20, "distinct": 800} -> {"rows_s", "cached", ...}
    {"do": "benchmark", "count": 100, "in_flight": 10}               -> {"avg_ms", "p95_ms", ...}

The last two are for the engine alone. A batch writes its results to a file, as the node does.
"""

import gevent.monkey

gevent.monkey.patch_all(sys=True)

import gc  # noqa: E402
import http.client  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import socket  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import httpx  # noqa: E402

from holysheep.batch import Batch, Progress  # noqa: E402
from holysheep.benchmark import Benchmark  # noqa: E402
from holysheep.params import BatchParams, BenchmarkParams  # noqa: E402
from holysheep.ports import spawn_thread  # noqa: E402
from holysheep.registry import Registry  # noqa: E402
from holysheep.results import ResultFile  # noqa: E402
from holysheep.rows import Row  # noqa: E402
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

    def batch(self, numbers: "itertools.count[int]", command: dict[str, Any]) -> dict[str, Any]:
        """A batch of ``count`` rows, of which ``distinct`` differ; memory after every 1,000."""
        count, distinct = command["count"], command.get("distinct", command["count"])
        first = next(numbers)
        for _ in range(distinct):
            next(numbers)
        rows = (Row(n, f"Question {first + n % distinct}", {}) for n in range(count))
        params = BatchParams(
            model="gpt-4.1", max_tokens=200, concurrency=command["in_flight"], deadline_s=580
        )
        memory_mb = [_rss_mb()]
        with tempfile.TemporaryDirectory() as folder:
            written = ResultFile(Path(folder), "jsonl")
            batch = Batch(
                self._engine,
                params,
                rows,
                clock=self.registry.clock,
                spawn=spawn_thread,
                total=count,
            )
            for result in batch.results():
                if not isinstance(result, Progress):
                    written.write(result)
                    if command.get("memory") and result.index % 1000 == 999:
                        memory_mb.append(_rss_mb())
            written.close()
        return {
            "rows_s": count / batch.elapsed_s,
            "elapsed_s": batch.elapsed_s,
            "ok": batch.totals.succeeded,
            "cached": batch.totals.cached,
            "memory_mb": memory_mb,
        }

    def benchmark(self, command: dict[str, Any]) -> dict[str, Any]:
        """A benchmark of ``count`` calls."""
        benchmark = Benchmark(
            self._engine,
            BenchmarkParams(
                model="gpt-4.1", iterations=command["count"], concurrency=command["in_flight"]
            ),
            clock=self.registry.clock,
            spawn=spawn_thread,
        )
        benchmark.run()
        return {
            **benchmark.latencies.summary().to_json(),
            "throughput_rpm": benchmark.throughput_rpm,
        }


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


class PlainClient:
    """The standard library's http.client on a kept connection: as little as Python can do."""

    def __init__(self, url: str) -> None:
        self._address = httpx.URL(url)
        self._local = threading.local()

    def call(self, number: int, stream: bool) -> float:
        """One bare request, not streamed."""
        del stream
        connection = getattr(self._local, "connection", None)
        if connection is None:
            address = (self._address.host, self._address.port)
            connection = self._local.connection = http.client.HTTPConnection(*address)
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        path = f"{self._address.path}/chat/completions"
        connection.request("POST", path, json.dumps(body(number)), headers)
        if not json.loads(connection.getresponse().read())["choices"][0]["message"]["content"]:
            raise ValueError("no answer")
        return 0.0


class SocketClient:
    """Bytes over a kept socket, nothing read in them: what the machine itself allows."""

    def __init__(self, url: str) -> None:
        address = httpx.URL(url)
        self._address = (address.host, address.port)
        self._head = (
            f"POST {address.path}/chat/completions HTTP/1.1\r\nhost: {address.host}\r\n"
            f"authorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
        )
        self._local = threading.local()

    def call(self, number: int, stream: bool) -> float:
        """One request, whose answer comes in one piece."""
        del stream
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = socket.create_connection(self._address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        content = json.dumps(body(number))
        connection.sendall(f"{self._head}content-length: {len(content)}\r\n\r\n{content}".encode())
        if not connection.recv(65_536).endswith(b"}"):
            raise ValueError("no answer, or not in one piece")
        return 0.0


class OpenAiClient:
    """The openai SDK, where it is installed."""

    def __init__(self, url: str) -> None:
        import openai  # noqa: PLC0415 - no dependency of the project

        self._client = openai.OpenAI(api_key=KEY, base_url=url)

    def call(self, number: int, stream: bool) -> float:
        """One request, not streamed."""
        del stream
        answer = self._client.chat.completions.create(**body(number))
        if not answer.choices[0].message.content:
            raise ValueError("no answer")
        return 0.0


class LiteLlmClient:
    """litellm's SDK, where it is installed."""

    def __init__(self, url: str) -> None:
        # Or it fetches its price table from elsewhere when it is imported.
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
        import litellm  # noqa: PLC0415 - no dependency of the project

        self._complete = litellm.completion
        self._url = url

    def call(self, number: int, stream: bool) -> float:
        """One request, not streamed."""
        del stream
        sent = {**body(number), "model": f"openai/{body(number)['model']}"}
        answer = self._complete(**sent, api_key=KEY, api_base=self._url)
        if not answer.choices[0].message.content:
            raise ValueError("no answer")
        return 0.0


Client = EngineClient | HttpxClient | PlainClient | SocketClient | OpenAiClient | LiteLlmClient
CLIENTS: dict[str, Callable[[str], Client]] = {
    "engine": EngineClient,
    "http.client": PlainClient,
    "socket": SocketClient,
    "openai": OpenAiClient,
    "litellm": LiteLlmClient,
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
        elif command["do"] == "memory":
            answer = _memory(client, numbers, command["count"])
        elif not isinstance(client, EngineClient):
            raise ValueError("only the engine can do that")
        elif command["do"] == "batch":
            answer = client.batch(numbers, command)
        else:
            answer = client.benchmark(command)
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


def _memory(client: Client, numbers: "itertools.count[int]", count: int) -> dict[str, float]:
    _calls(client.call, numbers, count, 20, stream=False)
    cache_mb = client.registry.cache.size_bytes / 1e6 if isinstance(client, EngineClient) else 0.0
    return {"rss_mb": _rss_mb(), "cache_mb": cache_mb}


def _rss_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


if __name__ == "__main__":
    main()
