"""One pooled client for all calls of the process.

In a module of its own: the SDK loads tool files apart from the normal import.
"""

import httpx

CLIENT = httpx.Client(
    timeout=30.0,
    limits=httpx.Limits(max_connections=200, max_keepalive_connections=200),
    trust_env=False,
)
