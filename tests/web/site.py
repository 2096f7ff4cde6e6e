"""A server on this machine that sends the page as the plugin's endpoints do, and scripted data."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, urlsplit

from holysheep import dashboard

if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX = "/e/qwertyuiopasdfgh"
"""A host puts endpoints below an address that they do not know."""

TOKEN = "correct horse battery staple"


@dataclass
class Answer:
    """What ``usage.json`` answers. ``gate`` holds the answer back until it is set."""

    body: Any = None
    status: int = 200
    gate: threading.Event | None = None
    text: str | None = None

    def content(self) -> bytes:
        return (json.dumps(self.body) if self.text is None else self.text).encode()


@dataclass
class Site:
    """The server, with what it has been asked for. Use it as a context manager."""

    answer: Callable[[str], Answer] = field(default=lambda _: Answer(status=404))
    token: str = TOKEN
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def __enter__(self) -> Self:
        site = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                site.seen.append((self.path, dict(self.headers)))
                self.send(*site.response(self.path, self.headers.get("Authorization")))

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://127.0.0.1:{self._server.server_port}{PREFIX}/dashboard"

    @property
    def periods(self) -> list[str]:
        """The periods that were asked for, in order."""
        paths = [urlsplit(path) for path, _ in self.seen]
        return [parse_qs(path.query)["period"][0] for path in paths if path.query]

    def response(self, path: str, authorization: str | None) -> tuple[int, str, bytes]:
        parts = urlsplit(path)
        match parts.path.removeprefix(PREFIX):
            case "/dashboard":
                return 200, "text/html; charset=utf-8", dashboard.page().encode()
            case "/dashboard/style.css":
                return 200, "text/css; charset=utf-8", dashboard.stylesheet()
            case "/dashboard/script.js":
                return 200, "text/javascript; charset=utf-8", dashboard.script()
            case "/usage.json":
                return self._usage(parse_qs(parts.query)["period"][0], authorization)
        return 404, "text/plain", b"There is nothing here."

    def _usage(self, period: str, authorization: str | None) -> tuple[int, str, bytes]:
        if authorization != f"Bearer {self.token}":
            return 401, "application/json", b'{"error": {"message": "Wrong access token."}}'
        answer = self.answer(period)
        if answer.gate is not None:
            answer.gate.wait(20)
        return answer.status, "application/json", answer.content()


class _Handler(BaseHTTPRequestHandler):
    def send(self, status: int, kind: str, content: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Security-Policy", dashboard.POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)
        except OSError:  # the page did not want it any more
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
