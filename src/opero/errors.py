"""The exceptions of opero.

    OperoError
    ├── AllFailedError          all retries and fallbacks failed         (also an ExceptionGroup)
    ├── CallTimeoutError        a timeout ended the attempt or call      (also a TimeoutError)
    ├── ResultRejectedError     `retry_if_result` rejected a result
    │   └── FailedResponseError     the function returned a response whose status is a failure
    ├── RejectedError           the function was not called
    │   ├── CircuitOpenError        the circuit breaker is open
    │   ├── RateLimitExceededError  no permit within `max_wait`
    │   └── BulkheadFullError       no free slot within `max_wait`
    ├── WorkerDiedError         a worker process died while it ran an item
    ├── MapError                items of a parallel map failed           (also an ExceptionGroup)
    │   └── MemoryLimitError        the map exceeded `max_memory`
    └── ConfigError             a policy, file or variable is invalid    (also a ValueError)
        ├── MissingExtraError       an extra is not installed            (also an ImportError)
        ├── PolicyNotFoundError     the profile does not exist           (also a KeyError)
        └── UnknownOptionError      the option does not exist            (also a TypeError)

All of them can be pickled without losing attributes, so they can cross process boundaries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

from opero.problems import (
    Problem,
    closest,
    describe,
    described,
    message_of,
    nearest,
    one_line,
    readable,
    shortened,
    text_of,
    visible,
    without_passwords,
)

__all__ = [
    "AllFailedError",
    "BulkheadFullError",
    "CallTimeoutError",
    "CircuitOpenError",
    "ConfigError",
    "FailedResponseError",
    "Failure",
    "MapError",
    "MemoryLimitError",
    "MissingExtraError",
    "OperoError",
    "PolicyNotFoundError",
    "Problem",
    "RateLimitExceededError",
    "RejectedError",
    "ResultRejectedError",
    "UnknownOptionError",
    "WorkerDiedError",
    "closest",
    "describe",
    "described",
    "error_at",
    "message_of",
    "nearest",
    "one_line",
    "readable",
    "shortened",
    "text_of",
    "visible",
    "without_passwords",
]

LONGEST_MESSAGE = 200_000
"""The most characters of a message, which has at most 100 problems of a configuration."""


def _prepared(message: Any) -> Any:
    """Return a message in which nothing that came from outside steers a terminal."""
    if not isinstance(message, str):
        return message
    return shortened(visible(message[: LONGEST_MESSAGE + 1], keep="\n"), LONGEST_MESSAGE)


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    if not isinstance(error, BaseExceptionGroup):  # the `__new__` of groups sets both
        error.args = args
        error.__cause__ = next(reversed(state.get("errors", ())), None)
    return error


def _leaves(error: BaseException) -> set[int]:
    """Return the ids of all exceptions in nested groups, or the id of a single exception."""
    if isinstance(error, BaseExceptionGroup):
        return set().union(*map(_leaves, error.exceptions))
    return {id(error)}


class OperoError(Exception):
    """The base class of all exceptions of opero. Their messages show control characters as escapes.

    Attributes:
        receipt: what happened to the call that it comes out of (`opero.CallReceipt`), if that was made within
            `opero.trace()`, or if `OPERO_RECEIPTS` or `opero.attach_receipts` asks for it; else None. Other exceptions
            have the attribute only then.
    """

    receipt: Any = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*(_prepared(args[0]), *args[1:]) if args else ())

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class AllFailedError(OperoError, ExceptionGroup[Exception]):
    """All attempts of a call failed, including retries and fallbacks.

    It is an `ExceptionGroup`, so a traceback shows every attempt, and `except*` works.

    Attributes:
        errors: the exceptions of the attempts, in the order tried. The last one is also the `__cause__`.
        retry_in: seconds until another call may succeed, if the last attempts asked to wait, as with Retry-After; with
            several fallback values the least. None if unknown.
        kinds: the kinds of these failures (see `opero.failures`), in the same order; empty if unknown.
    """

    retry_in: float | None
    kinds: tuple[str, ...]

    def __new__(
        cls,
        message: str,
        errors: Sequence[Exception],
        *,
        retry_in: float | None = None,
        kinds: Sequence[str] = (),
    ) -> Self:
        error = super().__new__(cls, _prepared(message), errors)
        error.__cause__ = errors[-1]
        error.retry_in = retry_in
        error.kinds = tuple(kinds)
        return error

    def __init__(self, message: str, errors: Sequence[Exception], **_: Any) -> None:
        # ExceptionGroup takes only two arguments.
        super().__init__(self.message, errors)

    @property
    def errors(self) -> tuple[Exception, ...]:
        return self.exceptions

    def __str__(self) -> str:
        return self.message  # which has the number of errors already

    def derive(self, errors: Sequence[Exception], /) -> AllFailedError:  # type: ignore[override]
        known = dict(zip(map(id, self.exceptions), self.kinds, strict=False))
        kinds = [known[id(each)] for each in errors if id(each) in known]
        # A part of a nested group is of an unknown kind.
        return AllFailedError(
            self.message, errors, retry_in=self.retry_in, kinds=kinds if len(kinds) == len(errors) else ()
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), (self.message, list(self.exceptions)), dict(self.__dict__))


class CallTimeoutError(OperoError, TimeoutError):
    """A timeout ended an attempt or the whole call.

    Attributes:
        scope: `"attempt"`, `"total"` or `"idle"`, the field of the `TimeoutPolicy` that applied; or `"deadline"`, which
            the code that made the call has set (see `opero.deadline`), or that is of a whole map.
        seconds: the timeout, in seconds; 0 if it is a deadline.
        waiting_for: what the call was waiting for, or about to do, when its time was over: `"rate_limit"`,
            `"bulkhead"`, `"fallback"`, `"retry"`, `"cache"` or `"attempt"`; None if an attempt was under way.
        errors: the exceptions of earlier attempts, in the order tried; the last is the `__cause__`.
        retry_in: seconds until another call may succeed, if the last attempt asked to wait longer than the call had
            left; else None.
    """

    def __init__(
        self,
        message: str,
        *,
        scope: str = "attempt",
        seconds: float = 0.0,
        waiting_for: str | None = None,
        errors: Sequence[Exception] = (),
        retry_in: float | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_in = retry_in
        self.scope = scope
        self.seconds = seconds
        self.waiting_for = waiting_for
        self.errors = tuple(errors)
        if self.errors:
            self.__cause__ = self.errors[-1]

    @property
    def is_unbegun(self) -> bool:
        """Whether a deadline was over before any attempt: that says nothing of the service."""
        return self.scope == "deadline" and self.waiting_for is not None and not self.errors


def is_by_deadline(error: BaseException | None) -> bool:
    """Return whether the deadline of the calling code has ended a call."""
    return isinstance(error, CallTimeoutError) and error.scope == "deadline"


class ResultRejectedError(OperoError):
    """`retry_if_result` rejected the result of an attempt. It represents that attempt in `.errors`.

    Attributes:
        result: the result of the function.
    """

    def __init__(self, message: str, *, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class FailedResponseError(ResultRejectedError):
    """The function returned a response whose status is a failure, such as 503.

    It represents that attempt in `.errors`, and reaches the functions of a policy that receive exceptions. A call whose
    last attempt it is returns the response.

    Attributes:
        result, response: the response.
        status: its HTTP status.
    """

    def __init__(self, message: str, *, result: object = None, status: int = 0) -> None:
        super().__init__(message, result=result)
        self.status = status

    @property
    def response(self) -> object:
        return self.result


class RejectedError(OperoError):
    """A policy rejected the call before the function was called.

    Attributes:
        retry_in: seconds until another call may succeed; None if unknown.
    """

    def __init__(self, message: str, *, retry_in: float | None = None) -> None:
        super().__init__(message)
        self.retry_in = retry_in


class CircuitOpenError(RejectedError):
    """The circuit breaker is open after too many failures, and rejects calls for a while."""


class RateLimitExceededError(RejectedError):
    """The wait for the next permit would exceed the rate limit's `max_wait`; or all values of a fallback argument are
    throttled for longer than `max_delay`."""


class BulkheadFullError(RejectedError):
    """All slots of the bulkhead are in use (`max_concurrent`), and none became free within `max_wait`."""


class ThrottledError(RejectedError):
    """The service accepts few of the attempts, and the throttle has rejected this one (see `ThrottlePolicy`)."""


class Failure(NamedTuple):
    """An item that failed.

    Attributes:
        index: the item's position in the input, from 0.
        item: the item.
        exception: the exception of its last attempt.
    """

    index: int  # type: ignore[assignment]  # replaces tuple.index
    item: Any
    exception: Exception


class MapError(OperoError, ExceptionGroup[Exception]):
    """Items of a parallel map failed, or the map stopped early. It contains the results of the items that succeeded.

    Attributes:
        results: index → result, for the items that succeeded, except those that a stream has yielded already.
        failures: a `Failure` (index, item, exception) for each item that failed. The group has each of these exceptions
            once, also if it failed a whole batch.
        reason: the exception that stopped the map if it was not a failed item, such as a `CallTimeoutError` for the
            deadline; it is also in the group. Otherwise None.
    """

    results: dict[int, Any]
    failures: tuple[Failure, ...]
    reason: Exception | None
    _retry: Callable[[], Any] | None = None

    def __new__(
        cls,
        message: str,
        results: dict[int, Any],
        failures: Sequence[Failure],
        reason: Exception | None = None,
        *,
        retry: Callable[[], Any] | None = None,
    ) -> Self:
        exceptions = {id(each.exception): each.exception for each in failures}  # one for all items of a failed batch
        if reason is not None:
            exceptions[id(reason)] = reason
        # A group cannot be empty, but an interrupted map may have no failed item.
        error = super().__new__(cls, _prepared(message), [*exceptions.values()] or [OperoError("no item failed")])
        error.results = results
        error.failures = tuple(failures)
        error.reason = reason
        error._retry = retry
        return error

    def __init__(
        self,
        message: str,
        results: dict[int, Any],
        failures: Sequence[Failure],
        reason: Exception | None = None,
        **_: Any,
    ) -> None:
        # ExceptionGroup takes only two arguments.
        super().__init__(self.message, self.exceptions)

    def __str__(self) -> str:
        return self.message

    def retry_failed(self) -> Any:
        """Run the items that failed or were not started again.

        Returns:
            All results, including those in `results`, as the map would have returned them; for the map of an async
            function, an awaitable.

        Raises:
            MapError: items failed again; it contains all results so far.
            OperoError: the error was pickled or split, so the function is not available.
        """
        if self._retry is None:
            raise OperoError(
                "retry_failed is not available, as the error was pickled or split: map the items of its failures again"
            )
        try:
            return self._retry()
        except MapError as error:
            error.__traceback__ = None  # so far it has frames of opero's only
            raise

    def derive(self, errors: Sequence[Exception], /) -> MapError:  # type: ignore[override]
        kept = []
        for failure in self.failures:
            for error in errors:
                # The exception itself, or a part of a group that is an item's exception.
                if error is failure.exception or (
                    isinstance(error, BaseExceptionGroup) and _leaves(error) <= _leaves(failure.exception)
                ):
                    kept.append(failure._replace(exception=error))
                    break
        reason = self.reason if any(error is self.reason for error in errors) else None
        return type(self)(self.message, self.results, kept, reason)

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if name != "_retry"}
        return _rebuild, (type(self), (self.message, self.results, self.failures, self.reason), state)


class MemoryLimitError(MapError):
    """A map, or a single item of it, exceeded `max_memory`.

    The exception of such an item is a `MemoryError`, and so is the `reason` if the whole map stopped.
    """


class WorkerDiedError(OperoError):
    """A worker process of a map died while it ran this item or batch.

    Attributes:
        times: the number of processes that died while they ran it (see `worker_retries`).
    """

    def __init__(self, message: str, *, times: int = 1) -> None:
        super().__init__(message)
        self.times = times


class ConfigError(OperoError, ValueError):
    """A policy, a policy file or an environment variable is invalid.

    Attributes:
        problems: the problems, each with its place; the message shows all of them.
    """

    _entries: tuple[str, ...] = ()
    """The entries of `functions:` in an invalid configuration."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (Problem("", str(self.args[0])),)

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> ConfigError:
        """Return an error for several problems."""
        if len(problems) == 1:
            return cls(str(problems[0]), problems)
        return cls("\n\n".join([f"the configuration has {len(problems)} problems:", *map(str, problems)]), problems)


def error_at(place: str, text: str) -> ConfigError:
    """Return an error for one problem without a source line."""
    return ConfigError.of([Problem(place, text)])


class MissingExtraError(ConfigError, ImportError):
    """A policy requires an extra that is not installed; the message says how to install it."""


class UnknownOptionError(ConfigError, TypeError):
    """An option of `@opero` or `@opmap` does not exist."""


class PolicyNotFoundError(ConfigError, KeyError):
    """The registry has no profile of that name.

    Attributes:
        name: the name of the missing profile.
    """

    def __init__(self, message: str, problems: Sequence[Problem] = (), *, name: str = "") -> None:
        super().__init__(message, problems)
        self.name = name

    __str__ = Exception.__str__  # KeyError would show the repr of the message
