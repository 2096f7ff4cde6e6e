"""Upstream's failures, in whatever form they come, as errors of the tree.

Gateways answer with ``{"error": {"message", "type", "param", "code"}}``, with
``{"error": "text", "message": "text"}`` (relays), with plain text or with a web page; some send an
error inside a successful stream. What is shown of it is the status, the redacted and shortened
``message``, what to do, and the request id.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from holysheep.errors import (
    AuthError,
    BadRequest,
    BadResponse,
    QuotaExhausted,
    RateLimited,
    Redirected,
    ServerError,
    TransientConflict,
    UnknownModel,
    UpstreamError,
)
from holysheep.jsontext import parse_json, whole_characters
from holysheep.redact import redact
from holysheep.wording import shortened, span

_MAX_READ_CHARS = 2000
REQUEST_ID_HEADERS = ("x-request-id", "request-id", "x-requestid", "cf-ray")

# The status that a code or type of an error object stands for, where there is no status line.
_STATUS_OF_CODE = {
    "invalid_api_key": 401,
    "authentication_error": 401,
    "unauthorized": 401,
    "permission_error": 403,
    "permission_denied": 403,
    "insufficient_quota": 402,
    "insufficient_balance": 402,
    "billing_error": 402,
    "model_not_found": 404,
    "not_found_error": 404,
    "invalid_request_error": 400,
    "invalid_request": 400,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "request_too_large": 413,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "too_many_requests": 429,
    "tokens": 429,
    "requests": 429,
    "timeout": 504,
    "overloaded_error": 529,
    "overloaded": 529,
    "server_error": 500,
    "api_error": 500,
    "internal_error": 500,
    "internal_server_error": 500,
    "service_unavailable": 503,
}


# Not "max_tokens is not supported with this model": there the model is known.
_NO_MODEL = re.compile(
    r"\b(?:unknown|invalid|unsupported|no such) model\b"
    r"|\bmodel:?\s+(?:\S+\s+)?(?:was |is )?(?:not found|not supported|not available|unknown"
    r"|does not exist|doesn't exist|not exist)"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What a failed answer says of itself; empty where it says nothing."""

    message: str = ""
    code: str = ""
    kind: str = ""
    param: str | None = None
    reset_after_s: float | None = None


def error_for(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    model: str,
    wall_s: float,
    secrets: tuple[str, ...] = (),
) -> UpstreamError:
    """The error that an HTTP answer with a failure status stands for.

    ``headers`` is case-insensitive or lower-case. ``wall_s`` is now, in seconds since 1970.
    """
    fault, is_page = _read(body, headers.get("content-type", ""), wall_s)
    wait_s = retry_after(headers, wall_s)
    if wait_s is None:
        wait_s = fault.reset_after_s
    request_id = next((headers[name] for name in REQUEST_ID_HEADERS if name in headers), None)
    return _build(status, fault, wait_s, request_id, model, secrets, is_page=is_page)


def error_in_body(
    error: Any,
    *,
    model: str,
    wall_s: float,
    request_id: str | None = None,
    secrets: tuple[str, ...] = (),
    outer: Mapping[str, Any] | None = None,
) -> UpstreamError:
    """The error that an ``error`` value inside a successful answer stands for."""
    fault = _fault({"error": error, **(outer or {})}, wall_s)
    status = _status_of(fault, error)
    return _build(status, fault, fault.reset_after_s, request_id, model, secrets, is_page=False)


def retry_after(headers: Mapping[str, str], wall_s: float) -> float | None:
    """Seconds to wait by ``retry-after-ms`` or ``Retry-After`` (seconds or a date), or ``None``."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    value = headers.get("retry-after")
    if value is None:
        return None
    seconds = _number(value)
    if seconds is not None:
        return max(0.0, seconds)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - wall_s)


def shown_id(request_id: str, *secrets: str) -> str:
    """A request id as it may be shown: what stands in a header is upstream's choice."""
    return shortened(redact(request_id[:_MAX_READ_CHARS], *secrets), 100)


def with_id(message: str, request_id: str | None) -> str:
    """``message``, and the request id for support where there is one."""
    return f"{message} (request id {request_id})" if request_id else message


def saying(detail: str) -> str:
    """An error's ``detail`` as a sentence to put behind others; empty where there is none."""
    if not detail:
        return ""
    return f" It says: {detail}" + ("" if detail.endswith((".", "!", "?", "…")) else ".")


def looks_like_page(body: bytes, content_type: str) -> bool:
    """Whether a body is a web page rather than an API's answer."""
    start = body[:256].lstrip().lower()
    return "text/html" in content_type.lower() or start.startswith((b"<!doctype", b"<html"))


def _read(body: bytes, content_type: str, wall_s: float) -> tuple[Fault, bool]:
    if looks_like_page(body, content_type):
        return Fault(), True
    try:
        data = parse_json(body)
    except ValueError:
        # Text of whatever origin: a proxy's page, a traceback, a body that repeats the request.
        return Fault(), False
    return (_fault(data, wall_s) if isinstance(data, dict) else Fault()), False


def _fault(data: Mapping[str, Any], wall_s: float) -> Fault:
    error = data.get("error")
    inner: Mapping[str, Any] = error if isinstance(error, dict) else {}
    message = (
        inner.get("message") or inner.get("detail") or data.get("message") or data.get("detail")
    )
    if isinstance(error, str):
        message = f"{error}: {message}" if message and message != error else error
    return Fault(
        message=message if isinstance(message, str) else "",
        code=str(inner.get("code") or data.get("code") or ""),
        kind=str(inner.get("type") or data.get("type") or ""),
        param=inner["param"] if isinstance(inner.get("param"), str) else None,
        reset_after_s=_reset_after({**inner, **data}, wall_s),
    )


def _reset_after(data: Mapping[str, Any], wall_s: float) -> float | None:
    """Seconds until ``resetAt`` (ISO 8601, or seconds or milliseconds since 1970)."""
    value = data.get("resetAt", data.get("reset_at"))
    moment = _number(value)
    if moment is not None:
        # 1e11 seconds are the year 5138; a larger number counts milliseconds.
        return max(0.0, (moment / 1000 if moment > 1e11 else moment) - wall_s)
    if isinstance(value, str):
        try:
            parsed = datetime.fromisoformat(value)
        except ValueError:
            parsed = None
        if parsed is not None:
            return max(
                0.0, (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp() - wall_s
            )
    minutes = _number(data.get("remainingMinutes"))
    return None if minutes is None else max(0.0, minutes * 60)


def _status_of(fault: Fault, error: Any) -> int:
    for word in (fault.code, str(error.get("status", "")) if isinstance(error, dict) else ""):
        if len(word) == 3 and word.isdecimal() and 400 <= int(word) <= 599:
            return int(word)
    for word in (fault.code.lower(), fault.kind.lower()):
        if word in _STATUS_OF_CODE:
            return _STATUS_OF_CODE[word]
    return 500


def _build(
    status: int,
    fault: Fault,
    wait_s: float | None,
    request_id: str | None,
    model: str,
    secrets: tuple[str, ...],
    *,
    is_page: bool,
) -> UpstreamError:
    # Cut first: upstream's text may be long, and redaction looks at every character.
    told = shortened(redact(whole_characters(fault.message[:_MAX_READ_CHARS]), *secrets))
    said = saying(told)
    if request_id:
        request_id = shown_id(request_id, *secrets)
    param = fault.param and shortened(redact(fault.param[:_MAX_READ_CHARS], *secrets), 80)
    ended = with_id("", request_id)
    known: dict[str, Any] = {"status": status, "request_id": request_id, "detail": told}

    if status in (401, 403):
        # What upstream says here may repeat the key in a form that no pattern knows.
        known["detail"] = ""
        doing = "refused the API key" if status == 401 else "does not allow this API key to do that"
        return AuthError(
            f"The gateway {doing} (HTTP {status}). Check the key and base URL in the"
            f" credential.{ended}",
            **known,
        )
    if is_page:
        said = " It answered with a web page; check the base URL."
    if status == 402 or (status == 429 and _STATUS_OF_CODE.get(fault.code.lower()) == 402):
        return QuotaExhausted(
            f"The gateway says that the account's balance or quota is used up (HTTP {status})."
            f"{said} Top it up, or use another key.{ended}",
            **known,
        )
    if status == 429:
        when = "" if wait_s is None else f" It asks to wait {span(wait_s)}."
        return RateLimited(
            f"The gateway's rate limit is reached (HTTP 429).{when}{said}{ended}",
            retry_after_s=wait_s,
            **known,
        )
    if status >= 500 or status in (408, 409, 425):
        kind = ServerError if status >= 500 else TransientConflict
        return kind(
            f"The gateway failed (HTTP {status}).{said} Try again later.{ended}",
            retry_after_s=wait_s,
            **known,
        )
    if status < 300 or status == 304:
        return BadResponse(
            f"The gateway answered with HTTP {status} instead of an answer. Check the base"
            f" URL.{ended}",
            **known,
        )
    if status < 400:
        return Redirected(
            f"The gateway answered with a redirect (HTTP {status}), which is not followed."
            f" Check the base URL.{ended}",
            **known,
        )
    if _is_unknown_model(status, fault, is_page=is_page):
        return UnknownModel(
            f"The gateway does not know the model {shortened(redact(model, *secrets), 80)!r}"
            f" (HTTP {status}).{said} Check its id with the models list.{ended}",
            param=param,
            **known,
        )
    return BadRequest(
        f"The gateway did not accept the request (HTTP {status}).{said}{ended}",
        param=param,
        **known,
    )


def _is_unknown_model(status: int, fault: Fault, *, is_page: bool) -> bool:
    """404, or a 400 or 422 that says that the model is the reason."""
    if status == 404:
        return not is_page
    if status not in (400, 422):
        return False
    if fault.code.lower() in ("model_not_found", "unknown_model", "invalid_model"):
        return True
    return fault.param in (None, "model") and bool(_NO_MODEL.search(fault.message.lower()))


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
