"""The process: command line, loopback socket, uvicorn, and the ends of its life."""

import argparse
import gc
import json
import logging
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

import uvicorn

from devtools.upstream.app import UpstreamApp
from devtools.upstream.connections import Connections, tracking_protocol
from devtools.upstream.state import State

__all__ = ["main"]

LOOPBACK = ("127.0.0.1", "::1")
_BACKLOG = 2048
_KEEP_ALIVE_S = 120
_MAX_CONNECTIONS = 10_000
_PARENT_CHECK_S = 0.2
_GC_THRESHOLDS = (50_000, 20, 100)
"""Rare collections: nothing here makes cycles, and a pause would show up as latency."""


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM, the end of standard input or the end of the parent process."""
    arguments = _parser().parse_args(argv)
    logging.disable(logging.CRITICAL)
    connections = Connections()
    state = State(
        latency_s=arguments.latency_ms / 1000.0,
        model_latency_s={name: ms / 1000.0 for name, ms in arguments.model_latency},
    )
    listener = _listen(arguments.host, arguments.port)
    config = uvicorn.Config(
        UpstreamApp(state, connections),
        http=tracking_protocol(connections),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_S,
    )
    _end_with_stdin()
    _end_with_parent()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says where it listens once it does, and ends at once when told to."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Print the ready line once connections are accepted."""
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            ready = {"url": f"http://{shown}:{port}/v1", "port": port, "pid": os.getpid()}
            sys.stdout.write(json.dumps(ready) + "\n")
            sys.stdout.flush()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End at once: nobody waits for answers of a simulated server that was told to stop."""
        del frame
        os._exit(0 if sig == signal.SIGTERM else 128 + sig)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m devtools.upstream",
        description="A simulated OpenAI-compatible server on the loopback interface.",
    )
    parser.add_argument("--host", choices=LOOPBACK, default=LOOPBACK[0])
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency-ms", type=_milliseconds, default=0.0, metavar="MS")
    parser.add_argument(
        "--model-latency",
        type=_model_latency,
        nargs="+",
        action="extend",
        default=[],
        metavar="MODEL=MS",
    )
    return parser


def _milliseconds(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 120_000.0:
        raise argparse.ArgumentTypeError("must be 0 to 120000 milliseconds")
    return value


def _model_latency(text: str) -> tuple[str, float]:
    model, separator, value = text.rpartition("=")
    if not separator or not model:
        raise argparse.ArgumentTypeError("must look like gpt-4.1=20")
    return model, _milliseconds(value)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(_BACKLOG)
    return listener


def _end_with_stdin() -> None:
    """End when standard input does, unless there is none: a terminal counts, /dev/null does not."""
    try:
        descriptor = sys.stdin.fileno()
        mode = os.fstat(descriptor).st_mode
    except (AttributeError, OSError, ValueError):
        return
    if stat.S_ISCHR(mode) and not os.isatty(descriptor):
        return

    def read_to_end() -> None:
        try:
            while os.read(descriptor, 4096):
                pass
        finally:
            os._exit(0)

    threading.Thread(target=read_to_end, name="stdin", daemon=True).start()


def _end_with_parent() -> None:
    """End when the parent process does: an orphan gets another parent."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_S)
        os._exit(0)

    threading.Thread(target=watch, name="parent", daemon=True).start()
