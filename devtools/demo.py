"""The plugin at work, in a minute: the real SDK process against a simulated gateway.

``make demo`` starts the plugin as Dify's daemon does, invokes the node on real prompts and shows
what happens. With ``HOLYSHEEP_API_KEY`` set it calls the real gateway (``HOLYSHEEP_BASE_URL``, or
HolySheep AI); the scenes that need a gateway to fail on command are then left out.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from devtools.upstream.behaviours import ok, outage, rate_limited, reset, server_error, status
from devtools.upstream.control import Upstream
from tests.host.daemon import PluginProcess, Result

SUPPORT_MAIL = (
    "Summarise this mail in one sentence, then say what the customer wants: 'Hi, I ordered two"
    " lamps on Monday (order 88-1204). One arrived with a cracked shade. I do not need the money"
    " back, just send me another shade before Friday if you can. Thanks, M.'"
)
SUMMARY = (
    "The customer received one of two lamps from order 88-1204 with a cracked shade. "
    "They want a replacement shade, if possible before Friday, and no money back."
)
INVOICE = "Extract the fields: Invoice 2026-117 from Miller GmbH, due 30 November, 1,284.50 EUR."
INVOICE_SCHEMA = (
    '{"type": "object", "required": ["number", "company", "total"], "properties":'
    ' {"number": {"type": "string"}, "company": {"type": "string"}, "total": {"type": "number"}}}'
)
INVOICE_JSON = '{"number": "2026-117", "company": "Miller GmbH", "total": 1284.5}'

BOLD, DIM, RESET = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


class DemoError(Exception):
    """The plugin did not do what the scene says."""


@dataclass(slots=True)
class Stage:
    """What every scene works with. ``gateway`` is ``None`` where the real one is called."""

    plugin: PluginProcess
    credentials: dict[str, str]
    gateway: Upstream | None
    spent_usd: float = 0.0
    saved_usd: float = 0.0

    def ask(self, query: str, **parameters: Any) -> Result:
        """One call of the node, whole."""
        return self.took(
            self.plugin.call(
                "holysheep_llm", {"query": query, **parameters}, self.credentials, timeout_s=120
            )
        )

    def took(self, result: Result) -> Result:
        """Add a finished call to the sums."""
        if result.error is not None:
            raise DemoError(result.error.message)
        self.spent_usd += result.variables["cost_usd"] or 0.0
        self.saved_usd += result.variables.get("usage", {}).get("saved_usd") or 0.0
        return result

    def calls(self) -> int:
        """Requests that the simulated gateway has received."""
        return self.gateway.stats().calls if self.gateway else 0


def main() -> None:
    """Play all scenes. Exits with 1 and one line if one does not come out."""
    real_key = os.environ.get("HOLYSHEEP_API_KEY", "").strip()
    try:
        if real_key:
            credentials = {"api_key": real_key}
            if os.environ.get("HOLYSHEEP_BASE_URL"):
                credentials["base_url"] = os.environ["HOLYSHEEP_BASE_URL"]
            _play(credentials, None)
        else:
            with Upstream() as gateway:
                _play({"api_key": "demo-key-without-value", "base_url": gateway.url}, gateway)
    except DemoError as error:
        sys.exit(f"The demo stopped: {error}")


def _play(credentials: dict[str, str], gateway: Upstream | None) -> None:
    began = time.perf_counter()
    where = "a simulated gateway on this machine" if gateway else "the real gateway, with your key"
    with PluginProcess() as plugin:
        print(
            f"{BOLD}HolySheep for Dify{RESET} in the SDK process that Dify starts, calling {where}."
        )
        print(f"{DIM}Plugin registered after {plugin.cold_start_ms:,.0f} ms.{RESET}")
        stage = Stage(plugin, {**credentials, "requests_per_minute": "0"}, gateway)
        _scene("The credential is checked when it is saved", _credential, stage)
        _scene("An answer streams as it arrives", _streaming, stage)
        _scene("The same question again: from the cache", _cached, stage)
        _scene("Twenty identical questions at once: one call", _coalesced, stage)
        _scene("JSON, checked against a schema", _structured, stage)
        if gateway is not None:
            _scene("The gateway says 429, wait 1 s: done", partial(_rate_limited, gateway), stage)
            _scene("The model is down: the fallback answers", partial(_outage, gateway), stage)
            _scene("A batch of 400 rows, in bad weather", partial(_batch, gateway), stage)
            _scene("A chain whose second step fails", partial(_chain, gateway), stage)
        else:
            print(f"\n{DIM}Left out: what needs a gateway that fails on command.{RESET}")
        uncached_usd = stage.spent_usd + stage.saved_usd
        print(f"\n{BOLD}All of it cost {stage.spent_usd:.6f} USD")
        print(f"and would have cost {uncached_usd:.6f} USD without the cache.{RESET}")
        print(f"{DIM}{time.perf_counter() - began:.1f} s in all.{RESET}")


def _scene(title: str, play: Callable[[Stage], None], stage: Stage) -> None:
    print(f"\n{BOLD}{title}{RESET}")
    play(stage)


def _credential(stage: Stage) -> None:
    error = stage.plugin.validate(stage.credentials)
    if error is not None:
        raise DemoError(error.message)
    _say("accepted")
    wrong = stage.plugin.validate({**stage.credentials, "api_key": "a-wrong-key-0000000000"})
    if wrong is None:
        raise DemoError("a wrong key was accepted")
    _say(f"a wrong key: {wrong.message}")


def _streaming(stage: Stage) -> None:
    if stage.gateway:
        words = [f"{word} " for word in SUMMARY.split()]
        stage.gateway.script(ok(chunks=words, chunk_delay_ms=30))
    call = stage.plugin.start(
        "holysheep_llm", {"query": SUPPORT_MAIL, "max_tokens": 300}, stage.credentials
    )
    pieces = 0
    print("  ", end="")
    for arrival in call:
        if arrival.data["type"] == "text":
            pieces += 1
            print(arrival.data["message"]["text"], end="", flush=True)
    print()
    result = stage.took(call.result(120))
    _figures(result)
    _say(f"{pieces} pieces, the first after {result.variables['meta']['ttft_ms']:.1f} ms")


def _cached(stage: Stage) -> None:
    before = stage.calls()
    result = stage.ask(SUPPORT_MAIL, max_tokens=300)
    if not result.variables["cached"]:
        raise DemoError("the repeated question was not answered from the cache")
    _figures(result)
    if stage.gateway:
        _say(f"calls at the gateway: {stage.calls() - before}")


def _coalesced(stage: Stage) -> None:
    if stage.gateway:
        stage.gateway.script(
            ok(text="Sheep see well to the sides: about 300 degrees.", latency_ms=200)
        )
    before = stage.calls()
    began = time.perf_counter()
    call = {
        "tool": "holysheep_llm",
        "parameters": {"query": "How wide is a sheep's field of view?", "max_tokens": 60},
        "credentials": stage.credentials,
    }
    results = [
        stage.took(result) for result in stage.plugin.invoke_many([call] * 20, timeout_s=120)
    ]
    states = [result.variables["meta"]["cache"] for result in results]
    took_ms = (time.perf_counter() - began) * 1000
    _say(f"20 answers in {took_ms:,.0f} ms: {_count(states)}")
    if stage.gateway:
        calls = stage.calls() - before
        _say(f"calls at the gateway: {calls}")
        if calls != 1:
            raise DemoError("identical calls were not shared")


def _structured(stage: Stage) -> None:
    if stage.gateway:
        stage.gateway.script(ok(text="The total is 1284.5 EUR."), ok(text=INVOICE_JSON))
    result = stage.ask(INVOICE, json_schema=INVOICE_SCHEMA)
    _say(f"{result.variables['structured']}")
    attempts = result.variables["meta"]["attempts"]
    _say(
        f"asked {attempts} times: the first answer was no JSON" if attempts > 1 else "valid at once"
    )


def _rate_limited(gateway: Upstream, stage: Stage) -> None:
    gateway.script(rate_limited(retry_after=1))
    result = stage.ask("What do sheep eat?")
    _figures(result)
    _say(f"requests sent: {result.variables['meta']['attempts']}, waited as the gateway asked")


def _outage(gateway: Upstream, stage: Stage) -> None:
    gateway.default(outage(), model="gpt-4.1")
    asked = {"model": "gpt-4.1", "fallback_models": "claude-sonnet-4.5", "max_retries": 1}
    for number in range(1, 5):
        result = stage.ask(f"Question {number} during an outage", **asked)
        meta = result.variables["meta"]
        _say(
            f"question {number}: answered by {result.variables['model_used']} in"
            f" {result.variables['latency_ms']:.0f} ms, requests sent: {meta['attempts']}"
        )
    calls = gateway.stats().calls_by_model.get("gpt-4.1", 0)
    _say(f"gpt-4.1 was called {calls} times, then its circuit breaker opened")


def _batch(gateway: Upstream, stage: Stage) -> None:
    gateway.reset()
    gateway.default(ok(latency_ms=60))
    gateway.script(*[ok(latency_ms=60)] * 90, *[rate_limited(retry_after=1)] * 3)
    gateway.script(*[ok(latency_ms=60)] * 60, *[server_error()] * 2, *[reset("body")] * 2)
    # Fewer than the five failures in a row that would open the breaker for half a minute.
    rows = [{"city": f"town {number % 300}"} for number in range(400)]
    call = stage.plugin.start(
        "holysheep_batch",
        {"queries": rows, "prompt_template": "What is {{ city }} known for?", "concurrency": 20},
        stage.credentials,
    )
    for arrival in call:
        message = arrival.data["message"]
        if message.get("variable_name") == "progress":
            print(f"  {message['variable_value']}", end="", flush=True)
    result = stage.took(call.result(120))
    for line in result.text.splitlines():
        _say(line)
    answers = result.variables["results"]
    if [row["index"] for row in answers] != list(range(400)) or result.variables["failed"]:
        raise DemoError("a row of the batch was lost")


def _chain(gateway: Upstream, stage: Stage) -> None:
    gateway.reset()
    gateway.script(ok(text="Wool keeps warm, breathes and lasts."))
    gateway.script(status(400), ok(text="Wool: warm, airy, durable."))
    steps = [
        {"name": "draft"},
        {"name": "critique", "prompt": "Say in one sentence what is weak about this."},
        {"name": "final", "prompt": "Rewrite the text in five words."},
    ]
    result = stage.took(
        stage.plugin.call(
            "holysheep_chain",
            {"query": "Praise wool in one sentence.", "steps": steps},
            stage.credentials,
        )
    )
    for number, step in enumerate(result.variables["results"].values()):
        _say(f"step {number}, {step['name']}: {step.get('output') or step['error_type']}")
    _say(f"answer: {result.text} (status: {result.variables['status']})")


def _figures(result: Result) -> None:
    shown = result.streamed
    _say(
        f"{result.variables['model_used']}: {shown['tokens_used']} tokens,"
        f" {shown['cost_usd']} USD, {shown['latency_ms']} ms, cached: {shown['cached']}"
    )


def _count(words: list[str]) -> str:
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def _say(text: str) -> None:
    print(f"{DIM}  {text}{RESET}")


if __name__ == "__main__":
    main()
