"""What a failure means for another attempt: the kind of an exception or returned response, by its shape.

    from opero.failures import failure_of

    try:
        get_user("ada")
    except Exception as error:
        failure = failure_of(error)
        print(failure.kind, failure.reason, failure.retry_in)      # throttled HTTP 429 2.0

    kind         HTTP                         others
    transient    408, 425, 5xx                connections, timeouts, deadlocks, locked databases, lost primaries
    throttled    429, 503 with Retry-After    ThrottlingException, overloaded_error, gRPC RESOURCE_EXHAUSTED
    denied       401, 403, 407                expired tokens, insufficient_quota, SQLSTATE class 28
    permanent    other 4xx, 501, 505          TypeError, KeyError, FileNotFoundError, certificates, wrong SQL
    control                                   cancellation, exits, Celery's Retry, werkzeug's HTTPException
    unknown      below 400                    everything else, such as ValueError

No client library is imported. The standard library is all that it imports, and that when something
is classified: policies only need the names of the kinds.
"""

from typing import TYPE_CHECKING, Any

from opero.failures.kinds import GRAVITY, ORDINARY, Failure, Kind, gravest

if TYPE_CHECKING:
    from opero.failures.classify import failure_of, kind_of
    from opero.failures.statuses import failed_status, is_response, response_failure, retry_after, status_of

__all__ = [
    "GRAVITY",
    "ORDINARY",
    "Failure",
    "Kind",
    "failed_status",
    "failure_of",
    "gravest",
    "is_response",
    "kind_of",
    "response_failure",
    "retry_after",
    "status_of",
]


def __getattr__(name: str) -> Any:
    if name in ("failure_of", "kind_of"):
        from opero.failures import classify

        return getattr(classify, name)
    if name in __all__:
        from opero.failures import statuses

        return getattr(statuses, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
