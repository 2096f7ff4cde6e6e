"""HolySheep: calls to LLMs through an OpenAI-compatible gateway, the way production needs them.

Pooled connections, retries that obey the server, a circuit breaker, fair rate limits, a cache that
never leaks between keys, one upstream call for identical concurrent ones, and exact cost. The Dify
plugin is a thin layer over this package, which knows nothing of Dify::

    from holysheep import Client, HolySheepError

    with Client() as client:  # with the key in the environment, as HOLYSHEEP_API_KEY
        try:
            result = client.chat("Why is the sky blue?", model="deepseek-v3.2", timeout_s=30)
            print(result.text, result.cost_usd, result.usage.total_tokens)
        except HolySheepError as error:
            print(error.error_type, error.message)

        stream = client.stream("Why is the sea blue?")
        for delta in stream:
            print(delta.text, end="", flush=True)
        print(stream.result.cost_usd)

        results = client.batch([{"city": "Ulm"}, {"city": "Linz"}], "Where is {{ city }}?")
        for row in results:
            print(row.index, row.status, row.response or row.error)
        print(results.totals.cost_usd)

        for model in client.usage("today").rows["model"]:
            print(model.key, model.requests, model.total_tokens, model.cost_usd)

``Client`` is where everything begins, and its methods say what they take; ``holysheep.errors``
draws the tree of errors and says which may be tried again. ``python -m holysheep --help`` is the
command line.

*Units* are in the names: ``_s`` seconds, ``_ms`` milliseconds, ``_rpm`` per minute, ``_usd`` US
dollars, a ``Decimal`` in Python and a number in JSON. Days and months are UTC. What is not known or
did not happen is ``None``, never 0.

*Cost* is exact, or ``None``, never guessed. What ``price_overrides`` say counts, else the cost that
the gateway reports in its answer, else the provider's list price as of 2026-11-01, in
``prices.yaml`` of this package, where each has its source. A gateway may sell at other prices.

*Tokens* are those that the gateway reports. Before a call, and where it reports none, they are
estimated: about four Latin characters a token, or one Chinese character.

*Log*: the loggers below ``holysheep`` warn of a Redis that cannot be used. Nothing is sent anywhere
but to the base URL and that Redis.
"""

from holysheep import config
from holysheep.bucket import TokenBucket
from holysheep.client import BatchResults, Client, Stream
from holysheep.errors import (
    AuthError,
    BadRequest,
    BadResponse,
    BudgetExceeded,
    CircuitOpen,
    ConnectFailed,
    DeadlineExceeded,
    HolySheepError,
    InputError,
    InvalidOutput,
    LimitBeyondDeadline,
    LimiterTimeout,
    QuotaExhausted,
    RateLimited,
    Redirected,
    RefusedLocally,
    ServerError,
    SettingsError,
    SharedAnswerLate,
    TimedOut,
    TransientConflict,
    UnknownModel,
    UpstreamError,
)
from holysheep.result import ChatResult, Meta, UsageReport
from holysheep.results import RowResult
from holysheep.types import Delta
from holysheep.usage import Usage, UsageRow

__version__ = config.VERSION

__all__ = [
    "AuthError",
    "BadRequest",
    "BadResponse",
    "BatchResults",
    "BudgetExceeded",
    "ChatResult",
    "CircuitOpen",
    "Client",
    "ConnectFailed",
    "DeadlineExceeded",
    "Delta",
    "HolySheepError",
    "InputError",
    "InvalidOutput",
    "LimitBeyondDeadline",
    "LimiterTimeout",
    "Meta",
    "QuotaExhausted",
    "RateLimited",
    "Redirected",
    "RefusedLocally",
    "RowResult",
    "ServerError",
    "SettingsError",
    "SharedAnswerLate",
    "Stream",
    "TimedOut",
    "TokenBucket",
    "TransientConflict",
    "UnknownModel",
    "UpstreamError",
    "Usage",
    "UsageReport",
    "UsageRow",
    "__version__",
]
