"""HolySheep: calls to LLMs through an OpenAI-compatible gateway, the way production needs them.

Pooled connections, retries that obey the server, a circuit breaker, fair rate limits, a cache that
never leaks between keys, one upstream call for identical concurrent ones, and exact cost. The Dify
plugin is a thin layer over this package, which knows nothing of Dify::

    from holysheep import Client

    client = Client(api_key="...", base_url="https://api.holysheep.ai/v1")
    print(client.chat("Hello", model="deepseek-v3.2").text)
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
