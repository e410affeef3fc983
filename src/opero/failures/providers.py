"""Errors of gRPC and of cloud providers, by their own codes where those say more than the HTTP status."""

from __future__ import annotations

from typing import Any

from opero.failures.kinds import Kind
from opero.failures.reading import lookup, read, text, whole
from opero.failures.waits import seconds_in

Verdict = tuple[Kind, str]

_T, _P, _D, _Q, _U = Kind.TRANSIENT, Kind.PERMANENT, Kind.DENIED, Kind.THROTTLED, Kind.UNKNOWN


def _kinds(**names: str) -> dict[str, Kind]:
    return {name: Kind(kind) for kind, listed in names.items() for name in listed.split()}


GRPC = _kinds(
    transient="UNAVAILABLE DEADLINE_EXCEEDED ABORTED INTERNAL",
    throttled="RESOURCE_EXHAUSTED",
    denied="UNAUTHENTICATED PERMISSION_DENIED",
    permanent="INVALID_ARGUMENT NOT_FOUND ALREADY_EXISTS FAILED_PRECONDITION OUT_OF_RANGE UNIMPLEMENTED DATA_LOSS",
    unknown="UNKNOWN CANCELLED",  # proxies report streams that they have reset as cancelled
)

AWS = _kinds(
    # The throttling and transient codes of botocore.retries.standard, most of which are HTTP 400.
    throttled="Throttling ThrottlingException ThrottledException RequestThrottledException TooManyRequestsException "
    "ProvisionedThroughputExceededException TransactionInProgressException RequestLimitExceeded "
    "BandwidthLimitExceeded LimitExceededException RequestThrottled SlowDown PriorRequestNotComplete "
    "EC2ThrottledException",
    transient="RequestTimeout RequestTimeoutException InternalError InternalFailure InternalServerError "
    "InternalServerException InternalServiceError ServiceUnavailable ServiceUnavailableException "
    "TransactionConflictException",
    denied="AccessDenied AccessDeniedException AuthFailure ExpiredToken ExpiredTokenException IncompleteSignature "
    "InvalidAccessKeyId InvalidClientTokenId InvalidSignatureException InvalidToken MissingAuthenticationToken "
    "NotAuthorized OptInRequired SignatureDoesNotMatch UnauthorizedOperation UnrecognizedClientException",
)

MODELS = _kinds(
    # The codes and types in the errors of OpenAI, Anthropic and those who follow them.
    throttled="rate_limit_exceeded rate_limit_error overloaded_error",
    transient="server_error api_error timeout_error internal_server_error",
    denied="insufficient_quota billing_hard_limit_reached billing_error authentication_error permission_error "
    "invalid_api_key account_deactivated",
    permanent="invalid_request_error not_found_error request_too_large model_not_found context_length_exceeded",
)

GOOGLE = _kinds(
    throttled="rateLimitExceeded userRateLimitExceeded RATE_LIMIT_EXCEEDED",
    denied="quotaExceeded dailyLimitExceeded API_KEY_INVALID ACCESS_TOKEN_EXPIRED BILLING_DISABLED",
    transient="backendError internalError",
)


def of_grpc(error: Any) -> tuple[Kind, str, float | None] | None:
    """Return what the status code of a gRPC error says, and the wait that its trailing metadata ask for."""
    code = read(error, "code")
    code = code() if callable(code) else read(error, "status")  # grpclib has an attribute
    name = text(read(code, "name"))
    if name not in GRPC:
        return None
    wait = None
    metadata = read(error, "trailing_metadata")
    for key, value in (metadata() if callable(metadata) else None) or ():
        if key == "grpc-retry-pushback-ms":
            milliseconds = seconds_in(value)
            wait = None if milliseconds is None else milliseconds / 1000
        elif key == "retry-after":
            wait = seconds_in(value)
    return GRPC[name], f"gRPC {name}", wait


def of_botocore(error: BaseException) -> Verdict | None:
    code = text(lookup(read(error, "response"), "Error", "Code"))
    return (AWS[code], f"AWS {code}") if code in AWS else None


def of_model_provider(error: BaseException) -> Verdict | None:
    body = read(error, "body")
    inner = lookup(body, "error")
    details = inner if isinstance(inner, dict) else body
    if "credit balance is too low" in text(lookup(details, "message")):
        return _D, "the credit is used up"  # Anthropic answers 400, and only the message says why
    status = whole(read(error, "status_code"))
    codes = {text(lookup(details, name)) for name in ("code", "type")}
    codes |= {text(read(error, name)) for name in ("code", "type")}
    # A stream reports errors after its status, 200. Otherwise the status says more than most codes.
    kinds = (_D, _Q) if status is not None and status >= 400 else (_D, _Q, _P, _T)
    for kind in kinds:
        for code in sorted(codes & MODELS.keys()):
            if MODELS[code] is kind:
                return kind, code
    return (_D, "HTTP 402") if status == 402 else None


def of_google(error: Any) -> tuple[Kind, str, float | None] | None:
    """Return what the reason of an error of Google's clients says: googleapiclient, google.api_core, google.genai."""
    details = read(error, "error_details") or read(error, "details") or read(error, "errors") or ()
    if isinstance(details, dict):
        details = lookup(details, "error", "details") or ()
    wait = None
    reasons = [read(error, "reason")]
    for each in details if isinstance(details, list | tuple) else ():
        reasons.append(lookup(each, "reason"))
        wait = wait or seconds_in(lookup(each, "retryDelay"))
    for reason in map(text, reasons):
        if reason in GOOGLE:
            return GOOGLE[reason], f"Google {reason}", wait
    return (_Q, "Google RetryInfo", wait) if wait is not None and read(error, "code") == 429 else None


def exhausted(error: BaseException) -> bool:
    """Return whether the response of an exception, as far as it has been read, says that a quota is used up."""
    content = read(read(error, "response"), "_content")  # of requests and httpx; reading more could block
    return isinstance(content, bytes) and b"insufficient_quota" in content[:4096]
