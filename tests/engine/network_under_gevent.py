"""What ``test_network`` runs in a process that gevent has patched, as the SDK patches the plugin's.

Takes the addresses of servers as JSON, prints what it saw as JSON.
"""

from gevent import monkey

monkey.patch_all(sys=True)

import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402

from holysheep.errors import HolySheepError  # noqa: E402
from holysheep.network import DeadlineBackend  # noqa: E402
from holysheep.ports import SystemClock  # noqa: E402
from tests.engine.raw_servers import Asker  # noqa: E402

CROWD = 100
CALLS_EACH = 3
TIMEOUT_S = 0.2


def crowd(url: str) -> dict[str, Any]:
    """100 greenlets ask at the same time, each some times."""
    texts: list[str] = []

    def work(number: int, asker: Asker) -> None:
        prompts = (f"greenlet {number} turn {turn}." for turn in range(CALLS_EACH))
        texts.extend(asker.ask(prompt, timeout_s=20).first.text for prompt in prompts)

    with Asker(url, max_connections=CROWD, max_idle=CROWD) as asker:
        began_s = time.monotonic()
        gevent.joinall([gevent.spawn(work, number, asker) for number in range(CROWD)])
        return {
            "texts": texts,
            "elapsed_s": time.monotonic() - began_s,
            "in_use": asker.pool.in_use,
        }


def cut_off(url: str, text: str = "Hello") -> dict[str, Any]:
    """How long calls take that a deadline must end, and what they raise."""
    elapsed_s = []
    kind = ""
    with Asker(url) as asker:
        # Several times: another process may have had the core meanwhile, but not each time.
        for _ in range(5):
            began_s = time.monotonic()
            try:
                asker.ask(text, timeout_s=TIMEOUT_S, stream=True)
            except HolySheepError as error:
                kind = type(error).__name__
            elapsed_s.append(time.monotonic() - began_s)
        return {"elapsed_s": elapsed_s, "kind": kind, "in_use": asker.pool.in_use}


def stale(url: str) -> dict[str, Any]:
    """Calls on connections that the server closes after each answer."""
    with Asker(url) as asker:
        texts = []
        for _ in range(3):
            texts.append(asker.ask().first.text)
            time.sleep(0.02)
        return {"texts": texts, "in_use": asker.pool.in_use}


def probe(url: str) -> dict[str, Any]:
    """Whether others get to run while connections are asked if they are alive."""
    ran = 0

    def other() -> None:
        nonlocal ran
        while True:
            ran += 1
            time.sleep(0)

    host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
    stream = DeadlineBackend(SystemClock()).connect_tcp(host, int(port), 5.0)
    greenlet = gevent.spawn(other)
    answers = [stream.get_extra_info("is_readable") for _ in range(100)]
    during = ran
    time.sleep(0.01)
    greenlet.kill()
    stream.close()
    return {"during": during, "afterwards": ran, "readable": any(answers)}


def main() -> None:
    """Run what is asked for."""
    urls = json.loads(sys.argv[1])
    results = {
        "crowd": crowd(urls["crowd"]),
        "stale": stale(urls["stale"]),
        "probe": probe(urls["silent"]),
        "silent": cut_off(urls["silent"]),
        "trickle": cut_off(urls["trickle"]),
        "tls_handshake": cut_off(urls["tls_handshake"]),
        "tls_answer": cut_off(urls["tls_answer"]),
        "slow_reader": cut_off(urls["slow_reader"], "x" * 12_000_000),
    }
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
