"""What arrives at an endpoint, sent back."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from dify_plugin import Endpoint
from werkzeug import Request, Response


class EchoEndpoint(Endpoint):
    """Answers with the request as JSON; of the body its length, its hash and how it begins."""

    def _invoke(
        self, r: Request, values: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> Response:
        body = r.get_data()
        told = {
            "method": r.method,
            "path": r.path,
            "query": r.query_string.decode(),
            "values": dict(values),
            "headers": dict(r.headers),
            "settings": dict(settings),
            "endpoint_id": self.session.endpoint_id,
            "body": body[:1000].decode("latin-1"),
            "length": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        return Response(json.dumps(told), content_type="application/json")
