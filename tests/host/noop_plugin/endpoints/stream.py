"""A response in parts."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from dify_plugin import Endpoint
from werkzeug import Request, Response


class StreamEndpoint(Endpoint):
    """Sends ``n`` chunks of ``size`` bytes, with ``pause_s`` seconds before each but the first.

    With ``gate`` it asks the storage for something before each but the first: whoever holds the
    storage's answers back holds the stream.
    """

    def _invoke(
        self, r: Request, values: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> Response:
        number = r.args.get("n", 3, int)
        size = r.args.get("size", 0, int)
        pause_s = r.args.get("pause_s", 0.0, float)
        gate = r.args.get("gate")

        def chunks() -> Iterator[bytes]:
            for index in range(number):
                if index:
                    time.sleep(pause_s)
                    if gate:
                        self.session.storage.exist(gate)
                yield f"{index};".encode().ljust(size, b".")

        headers = {"x-chunks": str(number)}
        return Response(chunks(), 207, headers, content_type=r.args.get("type", "text/plain"))
