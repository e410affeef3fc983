"""Fixtures of what attempts came to: `record` writes them, and in `replay` bound functions go through them again."""

from __future__ import annotations

import functools
import importlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opero.binding.roster import all_bindings
from opero.errors import ConfigError, OperoError, text_of
from opero.failures import ORDINARY, failure_of, response_failure
from opero.failures.statuses import status_of_response
from opero.observe.receipts import shown
from opero.runtime.forking import renew_in_child
from opero.testing.attempts import binding_of
from opero.testing.faults import remove

if TYPE_CHECKING:
    import os

    from opero.binding.binding import Binding

Data = dict[str, Any]
FORMAT = 1
DEPTH = 5
"""How many causes of an exception are recorded."""


class Attempts:
    """What the attempts of each function came to, in the order in which they began.

    Attributes:
        functions: name of the function, "module:qualname" → its attempts.
    """

    def __init__(self, functions: dict[str, list[Data]]) -> None:
        self.functions = functions
        self.lock = threading.RLock()
        renew_in_child(self, "lock")

    def __reduce__(self) -> Any:
        raise ConfigError("record() and replay() do not reach other processes; use mode='thread'")


class Recording(Attempts):
    """The attempts so far."""

    def __init__(self) -> None:
        super().__init__({})
        self._running: dict[int, tuple[Data, Callable[[], float], float]] = {}

    def begin(self, function: str, now: Callable[[], float]) -> Data:
        """Begin an attempt of a function, on this clock."""
        attempt: Data = {"interrupted": True}  # unless it ends
        with self.lock:
            self.functions.setdefault(function, []).append(attempt)
            self._running[id(attempt)] = attempt, now, now()
        return attempt

    def end(self, attempt: Data | None = None) -> None:
        """End an attempt, or all that have not ended, which their callers have abandoned."""
        with self.lock:
            for each in [*self._running] if attempt is None else [id(attempt)]:
                running, now, started = self._running.pop(each, ({}, float, 0.0))
                running["seconds"] = round(now() - started, 6)


@contextmanager
def record(
    path: str | os.PathLike[str], *, results: bool | Iterable[Callable[..., Any]] = False
) -> Iterator[Recording]:
    """Call bound functions for real within a block, and write what each attempt came to.

        with record("fixtures/outage.json", results=[fetch]):
            fetch("ada")

    The file has, for each function, its attempts in the order in which they began: exceptions by type, text, kind of
    failure, HTTP status and the wait that they ask for; the statuses of responses; and how long each took. It has no
    arguments. Texts are on one line, of at most 300 characters, without the passwords of URLs. It is written when the
    block ends without an exception.

    Args:
        path: the file. Its directory is made if need be.
        results: whether results are written as well, which may be secret; for all functions, or for these. They must
            be such that JSON can represent them.

    Raises:
        ConfigError: something cannot be written, such as a result; or functions were called that are generators, or
            were bound within the block.
    """
    attempts, problems = Recording(), list[str]()
    wanted: set[str] | None = None  # all
    if not isinstance(results, bool):
        wanted = {binding_of(each, "record").stats.function for each in results}
    elif not results:
        wanted = set()

    def noting(binding: Binding) -> Callable[..., Any]:
        name = binding.stats.function
        return _noting(binding, attempts, problems, keeps=wanted is None or name in wanted)

    with replaced(noting, "record"):
        yield attempts
        attempts.end()
    if problems:
        raise ConfigError("\n".join(["record() has written nothing:", *problems]))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, "functions": attempts.functions}, ensure_ascii=False, indent=1)
    target.write_text(f"{text}\n", encoding="utf-8")


@contextmanager
def replaced(make: Callable[[Binding], Callable[..., Any]], by: str) -> Iterator[None]:
    """Replace all bound functions within a block."""
    replaced: dict[Binding, tuple[Callable[..., Any], Callable[..., Any]]] = {}
    before = {binding: binding.stats.calls for binding in all_bindings()}
    try:
        for binding in before:
            real, made = binding.function, make(binding)
            if not binding.target.is_stream:
                with suppress(ConfigError):  # what it shares with others is gone: it cannot be called any more
                    binding.replace_function(made)
                    replaced[binding] = made, real
        yield
    finally:
        for binding, (made, real) in reversed(replaced.items()):
            remove(binding, made, real, by)
    for binding in all_bindings():
        if binding not in replaced and binding.stats.calls > before.get(binding, 0):
            why = "is a generator: use faults()" if binding in before else "was bound within the block: bind it before"
            raise ConfigError(f"{by}(): the calls of {binding.stats.function} passed by, as it {why}")


def _noting(binding: Binding, attempts: Recording, problems: list[str], *, keeps: bool) -> Callable[..., Any]:
    """Return a function that calls a bound one and notes what its attempts come to."""
    real, name = binding.function, binding.stats.function

    @contextmanager
    def noted() -> Iterator[Data]:
        attempt = attempts.begin(name, binding.clock.monotonic)
        try:
            yield attempt
        except Exception as error:
            attempt |= {"raised": _told(error, name, problems)}
            raise
        finally:
            attempts.end(attempt)
            if attempt.keys() & {"raised", "response", "result", "returned"}:
                attempt.pop("interrupted", None)

    def note(attempt: Data, result: Any) -> Any:
        code = None if type(result) in ORDINARY else status_of_response(result)
        if keeps and code is None:
            attempt["result"] = result
            _check_json(result, name, problems)
        elif code is None:
            attempt["returned"] = type(result).__name__
        else:
            failure = response_failure(result, None)
            attempt["response"] = {"status": code, "retry_in": None if failure is None else failure.retry_in}
        return result

    def noting(*args: Any, **kwargs: Any) -> Any:
        with noted() as attempt:
            return note(attempt, real(*args, **kwargs))

    async def noting_async(*args: Any, **kwargs: Any) -> Any:
        with noted() as attempt:
            return note(attempt, await real(*args, **kwargs))

    return functools.wraps(real)(noting_async if binding.kind == "async" else noting)


def _check_json(value: Any, name: str, problems: list[str]) -> None:
    try:
        is_same = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError, RecursionError):
        is_same = False
    if not is_same:
        problems.append(f"{name} returned a {type(value).__name__} that JSON cannot represent; leave it out of results")


def _told(error: BaseException, name: str, problems: list[str], depth: int = DEPTH) -> Data:
    """Return an exception as data from which it can be made again."""
    cls, failure = type(error), failure_of(error)
    told: Data = {"type": f"{cls.__module__}:{cls.__qualname__}", "text": shown(text_of(error))}
    told |= {"kind": str(failure.kind), "status": failure.status, "retry_in": failure.retry_in}
    if class_of(told["type"]) is not cls:
        problems.append(f"{name} raised {cls.__qualname__}, which cannot be imported from {cls.__module__}")
    if isinstance(error, BaseExceptionGroup):
        told["exceptions"] = [_told(each, name, problems, depth) for each in error.exceptions]
    elif all(each is None or isinstance(each, bool | int | float | str) for each in error.args):
        told["args"] = [shown(each) if isinstance(each, str) else each for each in error.args]
    if isinstance(error, OperoError):
        told["attributes"] = {
            each: shown(value) if isinstance(value, str) else value
            for each, value in vars(error).items()
            if value is None or isinstance(value, int | float | str)
        }
    if error.__cause__ is not None and depth:
        told["cause"] = _told(error.__cause__, name, problems, depth - 1)
    return told


def class_of(name: str) -> Any:
    """Return the exception class of a name; None if there is none."""
    module, _, path = name.partition(":")
    try:
        found: Any = functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, type) and issubclass(found, BaseException) else None
