"""What an endpoint can do wrong, one thing a request."""

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from dify_plugin import Endpoint
from werkzeug import Request, Response


class MisbehaveEndpoint(Endpoint):
    """Does what ``how`` says."""

    def _invoke(
        self, r: Request, values: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> Response:
        match values["how"]:
            case "value-error":
                raise ValueError("no such <row>")
            case "error":
                raise RuntimeError("the disk is full")
            case "long-line":
                return Response(b"x" * (3 * 1024 * 1024))
            case "length":
                return Response(_one(b"12345678"), headers={"content-length": "4"})
            case "short":
                return Response(_one(b"12"), headers={"content-length": "4"})
            case "nothing":
                return Response(_nothing(), 202)
            case "cookies":
                response = Response("two cookies")
                response.set_cookie("a", "1")
                response.set_cookie("b", "2")
                return response
            case "silent":
                time.sleep(3600)
        return Response(_then(values["how"]))


def _one(data: bytes) -> Iterator[bytes]:
    yield data


def _nothing() -> Iterator[bytes]:
    yield from ()


def _then(how: str) -> Iterator[bytes]:
    yield b"so far so good;"
    match how:
        case "stream-error":
            raise RuntimeError("the <disk> is full")
        case "stream-silent":
            time.sleep(3600)
        case "stream-die":
            os._exit(3)
