"""A value in the host's storage, by HTTP."""

from collections.abc import Mapping
from typing import Any

from dify_plugin import Endpoint
from werkzeug import Request, Response


class ValueEndpoint(Endpoint):
    """PUT stores the body under ``key``, GET returns it."""

    def _invoke(
        self, r: Request, values: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> Response:
        if r.method == "PUT":
            self.session.storage.set(values["key"], r.get_data())
            return Response(status=204)
        return Response(self.session.storage.get(values["key"]))
