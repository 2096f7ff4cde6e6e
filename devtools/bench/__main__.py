"""``make bench``: the table of what a call costs on this machine, and what it must reach.

``ARGS="--only hit,cpu"`` measures some of it, ``--rounds N`` more or less of it.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version

from devtools.bench import batches, calls
from devtools.bench.figures import Figure
from devtools.bench.gateway import gateway
from devtools.bench.shared import shared

MEASUREMENTS: Mapping[str, Callable[[int], list[Figure]]] = {
    "hit": calls.hit,
    "miss": calls.miss,
    "cpu": calls.cpu,
    "throughput": calls.throughput,
    "ttft": calls.ttft,
    "gateway": gateway,
    "shared": shared,
    "cold": calls.cold,
    "memory": calls.memory,
    "batch": batches.batch,
    "batch_memory": batches.batch_memory,
    "article": batches.article,
}


def main() -> None:
    """Measure and print the table. Always exits with 0: figures are for people to judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help=f"some of {','.join(MEASUREMENTS)}")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else list(MEASUREMENTS)
    began = time.perf_counter()
    print(_machine())
    figures: list[Figure] = []
    for name in chosen:
        print(f"measuring {name} ...", file=sys.stderr)
        figures += MEASUREMENTS[name](arguments.rounds)
    _print_table(figures)
    print(f"\n{arguments.rounds} rounds, {time.perf_counter() - began:.0f} s.")


def _machine() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("dify-plugin", "httpx", "gevent"))
    return f"Python {platform.python_version()}, {os.cpu_count()} cores, {libraries}"


def _print_table(figures: list[Figure]) -> None:
    header = ("figure", "ours", "against", "ratio", "spread", "must reach", "")
    rows = [
        (
            figure.name,
            figure.ours,
            figure.theirs,
            f"{figure.ratio:.2f}",
            f"{figure.spread[0]:.2f}-{figure.spread[1]:.2f}" if any(figure.spread) else "",
            figure.must,
            ("yes" if figure.reached else "NO") if figure.must else "",
        )
        for figure in figures
    ]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    print()
    for row in [header, *rows]:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


if __name__ == "__main__":
    main()
