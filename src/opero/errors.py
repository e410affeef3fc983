"""Every error that opero raises of its own.

    OperoError
    ├── AllFailedError          every retry and fallback failed      (also an ExceptionGroup)
    ├── CallTimeoutError        a timeout ended the attempt or call  (also a TimeoutError)
    ├── ResultRejectedError     `retry_if_result` refused a result
    ├── RejectedError           the function was not called at all
    │   ├── CircuitOpenError        the circuit breaker is open
    │   ├── RateLimitExceededError  no permit within `max_wait`
    │   └── BulkheadFullError       no free place within `max_wait`
    ├── WorkerDiedError         a worker process died of an item
    ├── MapError                items of a parallel map failed       (also an ExceptionGroup)
    │   └── MemoryLimitError        it could not stay under `max_memory`
    └── ConfigError             a policy, file or variable is wrong  (also a ValueError)
        ├── MissingExtraError       an extra is not installed        (also an ImportError)
        ├── PolicyNotFoundError     no profile of that name          (also a KeyError)
        └── UnknownOptionError      no option of that name           (also a TypeError)

All of them pickle, so they cross process boundaries whole.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from opero.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = [
    "AllFailedError",
    "BulkheadFullError",
    "CallTimeoutError",
    "CircuitOpenError",
    "ConfigError",
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
    "error_at",
    "nearest",
    "text_of",
]


def nearest(name: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """Say which known name was probably meant: `"; did you mean 'retries'?"`, or what there is to choose from."""
    names = sorted({str(candidate) for candidate in known})
    folded = {candidate.lower(): candidate for candidate in names}
    swapped = [candidate for candidate in folded if sorted(candidate) == sorted(name.lower())]
    close = swapped or difflib.get_close_matches(name.lower(), folded, n=1, cutoff=likeness)
    if close:
        return f"; did you mean {folded[close[0]]!r}?"
    if not names:
        return ""
    if not name.startswith("_"):  # what is private is no choice for one who did not ask for it
        names = [candidate for candidate in names if not candidate.startswith("_")] or names
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"; known: {shown}"


def text_of(error: BaseException) -> str:
    """What an exception says, even where its own `__str__` fails."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # its own
        return f"<{type(error).__name__} that cannot say what it is>"


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    if not isinstance(error, BaseExceptionGroup):  # whose __new__ does both
        error.args = args
        error.__cause__ = next(reversed(state.get("errors", ())), None)
    return error


def _leaves(error: BaseException) -> set[int]:
    """The identities of the exceptions in a group, however deep; or of the one exception."""
    if isinstance(error, BaseExceptionGroup):
        return set().union(*map(_leaves, error.exceptions))
    return {id(error)}


class OperoError(Exception):
    """The base of every error that opero raises of its own."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class AllFailedError(OperoError, ExceptionGroup[Exception]):
    """Every attempt of a call failed: its retries and fallbacks are exhausted.

    Attributes:
        errors: every attempt's exception, in the order tried. The last one is also the `__cause__`.

    It is an `ExceptionGroup`, so a traceback shows every attempt and `except*` works.
    """

    def __new__(cls, message: str, errors: Sequence[Exception]) -> Self:
        error = super().__new__(cls, message, errors)
        error.__cause__ = errors[-1]
        return error

    @property
    def errors(self) -> tuple[Exception, ...]:
        return self.exceptions

    def derive(self, errors: Sequence[Exception], /) -> AllFailedError:  # type: ignore[override]
        return AllFailedError(self.message, errors)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), (self.message, list(self.exceptions)), dict(self.__dict__))


class CallTimeoutError(OperoError, TimeoutError):
    """A timeout ended an attempt (`scope="attempt"`) or the whole call (`scope="total"`).

    Attributes:
        scope: `"attempt"` or `"total"`: which field of the `TimeoutPolicy` it was.
        seconds: that field's value.
        errors: the exceptions of the attempts before it, in the order tried; the last is the `__cause__`.
    """

    def __init__(
        self,
        message: str,
        *,
        scope: str = "attempt",
        seconds: float = 0.0,
        waiting_for: str | None = None,
        errors: Sequence[Exception] = (),
    ) -> None:
        super().__init__(message)
        self.scope = scope
        self.seconds = seconds
        self.waiting_for = waiting_for
        self.errors = tuple(errors)
        if self.errors:
            self.__cause__ = self.errors[-1]


class ResultRejectedError(OperoError):
    """`retry_if_result` asked for another attempt. It stands in `.errors` for the result that it refused.

    Attributes:
        result: what the function returned.
    """

    def __init__(self, message: str, *, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class RejectedError(OperoError):
    """The call was turned away before the function was called.

    Attributes:
        retry_in: seconds until another call has a chance, or None where that cannot be known.
    """

    def __init__(self, message: str, *, retry_in: float | None = None) -> None:
        super().__init__(message)
        self.retry_in = retry_in


class CircuitOpenError(RejectedError):
    """The circuit breaker is open: the service has failed too often, and is left alone for a while."""


class RateLimitExceededError(RejectedError):
    """The next permit is further away than the rate limit's `max_wait`."""


class BulkheadFullError(RejectedError):
    """As many calls as `max_concurrent` allows are running, and none ended within `max_wait`."""


class Failure(NamedTuple):
    """An item that failed.

    Attributes:
        index: its number in the source.
        item: the item itself.
        exception: what it failed with.
    """

    index: int  # type: ignore[assignment]  # a tuple's method of that name is of no use here
    item: Any
    exception: Exception


class MapError(OperoError, ExceptionGroup[Exception]):
    """Items of a parallel map failed, or it ended before all were done. Nothing is lost: it carries what succeeded too.

    Attributes:
        results: index → result, of the items that succeeded. Those that a stream has handed out are not among them.
        failures: a `Failure` (index, item, exception) for each item that failed. The first exception is also the
            `__cause__`.
        reason: what ended the map before all was done, where that was no failed item: such as a `CallTimeoutError`
            for its deadline. It is among the group's exceptions. Else None.
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
        # A group cannot be empty; a map that was interrupted has perhaps no failed item.
        exceptions = [*(each.exception for each in failures), *([reason] if reason is not None else ())]
        error = super().__new__(cls, message, exceptions or [OperoError(message)])
        error.results = results
        error.failures = tuple(failures)
        error.reason = reason
        error._retry = retry
        error.__cause__ = failures[0].exception if failures else reason
        return error

    def __init__(
        self,
        message: str,
        results: dict[int, Any],
        failures: Sequence[Failure],
        reason: Exception | None = None,
        **_: Any,
    ) -> None:
        # ExceptionGroup takes two arguments; ours keeps the rest too.
        super().__init__(message, self.exceptions)

    def retry_failed(self) -> Any:
        """Run the items that failed, and those that were not begun, once more.

        Returns:
            All results as the map would have returned them, those of `results` included; of an async function's map
            something to await.

        Raises:
            MapError: items failed again; it carries all that is done by now.
            OperoError: this error has come from another process, where the function is no more at hand.
        """
        if self._retry is None:
            raise OperoError(
                "retry_failed: the map that this error tells of was run elsewhere (the error has been pickled or "
                "split); map the items of its failures again instead"
            )
        return self._retry()

    def derive(self, errors: Sequence[Exception], /) -> MapError:  # type: ignore[override]
        kept = []
        for failure in self.failures:
            for error in errors:
                # The error itself, or a part of a group that was an item's failure.
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
    """A map could not go on within its `max_memory`, or an item of it could not. Nothing is lost, as with `MapError`.

    What an item failed with that alone needs too much is a `MemoryError`, as is the `reason` of a map that ended.
    """


class WorkerDiedError(OperoError):
    """A map's worker process was killed, or ended itself, while it ran this item (or this batch).

    Attributes:
        times: how many processes died of it; `worker_retries` says how many may.
    """

    def __init__(self, message: str, *, times: int = 1) -> None:
        super().__init__(message)
        self.times = times


class ConfigError(OperoError, ValueError):
    """A policy, a policy file or an environment variable is wrong. The message says what, where, and the cure.

    Attributes:
        problems: each thing that is wrong, with its place; the message shows them all, as a compiler would.
    """

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (Problem("", message),)

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> ConfigError:
        """The error that tells all of these."""
        if len(problems) == 1:
            return cls(str(problems[0]), problems)
        return cls("\n\n".join([f"the configuration has {len(problems)} problems:", *map(str, problems)]), problems)


def error_at(place: str, text: str) -> ConfigError:
    """The error that tells one problem, of which there is no line to show."""
    return ConfigError.of([Problem(place, text)])


class MissingExtraError(ConfigError, ImportError):
    """A policy asks for what an extra brings, and that is not installed. The message says which to install."""


class UnknownOptionError(ConfigError, TypeError):
    """`@opero` or `@opmap` was given an option that does not exist."""


class PolicyNotFoundError(ConfigError, KeyError):
    """The registry holds no profile of that name.

    Attributes:
        name: the name that was asked for.
    """

    def __init__(self, message: str, problems: Sequence[Problem] = (), *, name: str = "") -> None:
        super().__init__(message, problems)
        self.name = name

    __str__ = Exception.__str__  # KeyError shows its argument's repr, which would quote a sentence
