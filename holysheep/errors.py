"""Every error that the engine raises on purpose.

::

    HolySheepError
    +- SettingsError        a credential or client setting is unusable
    +- InputError           a parameter or an input is unusable; nothing was sent
    +- UpstreamError        the gateway or the way to it failed
    |  +- AuthError         401, 403: the key is wrong or not allowed
    |  +- BadRequest        400, 422 and other 4xx: the request is not acceptable
    |  |  +- UnknownModel   404, or a 400 that says so
    |  +- RateLimited       429
    |  +- QuotaExhausted    402, or a 429 that says so
    |  |  +- LimitBeyondDeadline   a 429 that resets beyond the deadline
    |  +- ServerError       5xx
    |  |  +- TransientConflict     408, 409, 425
    |  +- ConnectFailed     no connection, or one that broke before the answer was complete
    |  +- TimedOut          connect, read, write or pool limit, or the deadline while on the wire
    |  +- BadResponse       an answer that is no chat completion
    |  |  +- Redirected     3xx: the base URL is another one
    |  +- InvalidOutput     an answer that is not the JSON that was asked for
    +- RefusedLocally       the engine did not send the request
       +- LimiterTimeout    the rate or concurrency limit leaves no room before the deadline
       +- CircuitOpen       the breaker of this model is open
       +- BudgetExceeded    the daily or monthly budget has no room
       +- DeadlineExceeded  the deadline passed while waiting
          +- SharedAnswerLate   ... for the answer to an identical call

The message of each is one line that is safe to show: it names what happened and what to do, never
the key and never a raw upstream body. Anything outside this tree is a bug and passes through.

*Trying again.* Where it helps at once, the engine has done so: an error that is ``retryable`` comes
after ``max_retries`` retries, or when no time was left, and one that ``falls_back`` after all
``fallback_models``. A caller may try those again later, and likewise ``RefusedLocally``,
``QuotaExhausted`` and ``InvalidOutput``: limits, breaker, budget and quota have room again in time,
and a model may answer otherwise. ``retry_after_s`` says when, where that is known. The others need
another setting or another request.
"""

import re
from copy import copy
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from holysheep.types import Completion


class HolySheepError(Exception):
    """Root of the tree.

    Of each error:

    ``message``         one line, safe to show; the text of the exception
    ``status``          HTTP status, ``None`` where no response was seen
    ``retry_after_s``   seconds after which there may be room, as the server asks, or a limit or
                        breaker of the client knows; ``None`` where nobody says
    ``request_id``      the gateway's id of the request, for support; ``None`` where it gave none
    ``attempts``        requests sent for this call until the error; 0 = nothing was sent
    ``detail``          more for the log, redacted and cut; not part of the message, may be empty
    ``unusable``        an answer that was given, and cost, although the call failed: its tokens
                        are ``unusable.total_usage``; ``None`` where there is none

    Of its class:

    ``error_type``      stable name of the kind, to branch on; classes that a caller treats alike
                        have the same
    ``retryable``       whether the same request may succeed when it is sent again
    ``falls_back``      whether another model may answer where this one did not
    ``is_outage``       whether upstream is down or unreachable: what a breaker counts and a stale
                        answer covers
    ``is_callers_own``  whether it says nothing about the same call of somebody else
    """

    error_type: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    falls_back: ClassVar[bool] = False
    is_outage: ClassVar[bool] = False
    is_callers_own: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        request_id: str | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s
        self.request_id = request_id
        self.attempts = 0
        self.detail = detail
        self.unusable: Completion | None = None

    def __str__(self) -> str:
        return self.message

    def conceal(self, secret: str) -> None:
        """Remove ``secret`` wherever it got into the texts, by whatever way."""
        if secret:
            # By its beginning, so that it is found cut off or in escapes too.
            word = re.compile(re.escape(secret[:12]) + r"\S*")
            self.message = word.sub("[redacted]", self.message)
            self.detail = word.sub("[redacted]", self.detail)
            self.args = (self.message,)

    def copy(self, message: str | None = None) -> Self:
        """An equal error without traceback, for raising the same failure in another place.

        ``message`` replaces its own, where it is told as part of something larger.
        """
        twin = copy(self)
        if message is not None:
            twin.message = message
        twin.__traceback__ = None
        twin.__cause__ = self
        return twin


class SettingsError(HolySheepError):
    """A credential or client setting is missing or unusable."""

    error_type = "settings"


class InputError(HolySheepError):
    """A parameter is out of range or malformed; no upstream call was made."""

    error_type = "invalid_input"


class UpstreamError(HolySheepError):
    """The gateway answered with an error, not at all, or with something unreadable."""


class AuthError(UpstreamError):
    """The gateway refused the key (401, 403)."""

    error_type = "auth"


class BadRequest(UpstreamError):
    """The gateway refused the request (4xx); sending it again changes nothing.

    ``param`` is the request's field that the gateway named as the reason, or ``None``.
    """

    error_type = "bad_request"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message, status=status, request_id=request_id, detail=detail)
        self.param = param


class UnknownModel(BadRequest):
    """The gateway does not know the model."""

    falls_back = True


class RateLimited(UpstreamError):
    """The gateway answered 429 to the last attempt as well."""

    error_type = "rate_limited"
    retryable = True
    falls_back = True


class QuotaExhausted(UpstreamError):
    """The account has no balance or quota left (402, or a 429 that says so)."""

    error_type = "quota_exhausted"


class LimitBeyondDeadline(QuotaExhausted):
    """A 429 that cannot be waited out before the deadline: another model may still have room."""

    falls_back = True
    is_callers_own = True


class ServerError(UpstreamError):
    """The gateway failed (5xx) or asked for the request again (408, 409, 425)."""

    error_type = "server_error"
    retryable = True
    falls_back = True
    is_outage = True


class TransientConflict(ServerError):
    """408, 409 or 425: upstream is alive and wants the request again; no outage."""

    is_outage = False


class ConnectFailed(UpstreamError):
    """The connection could not be made, or broke before the answer was complete."""

    error_type = "connection_failed"
    retryable = True
    falls_back = True
    is_outage = True


class TimedOut(UpstreamError):
    """A time limit passed while connecting, sending or waiting for the answer.

    ``waited_s`` are the seconds that upstream was given.
    """

    waited_s = 0.0
    error_type = "timeout"
    retryable = True
    falls_back = True
    is_outage = True


class BadResponse(UpstreamError):
    """A successful status with a body that is no chat completion."""

    error_type = "bad_response"
    retryable = True
    falls_back = True
    is_outage = True


class Redirected(BadResponse):
    """The gateway answered with a redirect, as it will until the base URL is changed."""

    retryable = False
    falls_back = False
    is_outage = False


class InvalidOutput(UpstreamError):
    """The answer is no JSON or breaks the schema, twice in a row; once if it was cut off.

    ``unusable`` has the tokens of both.
    """

    error_type = "invalid_output"


class RefusedLocally(HolySheepError):
    """The engine decided not to send the request, or not once more."""

    is_callers_own = True


class LimiterTimeout(RefusedLocally):
    """The credential's rate or concurrency limit leaves no room before the deadline."""

    error_type = "rate_limited"


class CircuitOpen(RefusedLocally):
    """The breaker of this base URL and model is open: five outages in a row, so 30 s of rest."""

    error_type = "circuit_open"
    falls_back = True
    is_outage = True
    is_callers_own = False


class BudgetExceeded(RefusedLocally):
    """The call's worst case does not fit into what is left of a budget.

    ``may_pass`` says that calls under way hold a part of it: there may be room when they end.
    """

    error_type = "budget_exceeded"
    may_pass = False


class DeadlineExceeded(RefusedLocally):
    """The deadline passed while the call was waiting its turn."""

    error_type = "timeout"


class SharedAnswerLate(DeadlineExceeded):
    """The deadline passed while upstream was answering an identical call."""

    is_outage = True
