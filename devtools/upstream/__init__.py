"""A simulated OpenAI-compatible server on the loopback interface, for demo, tests and benchmarks.

::

    from devtools.upstream import Upstream, behaviours as do

    with Upstream(latency_ms=50) as upstream:
        upstream.script(do.rate_limited(1), do.reset("headers"), do.ok("third time lucky"))
        ...                                   # calls to upstream.url
        assert upstream.stats().answered == {429: 1, 200: 1}

or ``python -m devtools.upstream --port 8080`` for any OpenAI client, with any key of 20 characters.
Keys that contain ``wrong`` are answered with 401, those that contain ``forbidden`` with 403.

``behaviours``   what the server can be told to do      ``control``  Upstream, for the other side
``answers``, ``schema``, ``streams``  what it says       ``plans``    behaviours as steps
``app``, ``state``, ``connections``, ``timers``, ``server``  how it is served

Importing this package needs the standard library only; the server is a process of its own.
"""

from devtools.upstream import behaviours
from devtools.upstream.control import Stats, Upstream, UpstreamError

__all__ = ["Stats", "Upstream", "UpstreamError", "behaviours"]
