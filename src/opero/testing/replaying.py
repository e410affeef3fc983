"""Bound functions go through recorded attempts again, without being called: `with replay("fixtures/outage.json"):`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opero.binding.roster import all_bindings
from opero.errors import ConfigError, describe, nearest
from opero.failures import failure_of
from opero.testing.attempts import binding_of
from opero.testing.faults import Later, stand_in_for, status
from opero.testing.recording import FORMAT, Attempts, Data, class_of, replaced

if TYPE_CHECKING:
    import os

    from opero.binding.binding import Binding

GRACE = 1.0
"""Seconds after which an attempt that was interrupted, and is not when it is replayed, is a mismatch."""


class ReplayError(AssertionError):
    """A replay does not fit what is called: an attempt that was not recorded, or whose result was not."""


class Replay(Attempts):
    """The attempts that are left of a recording.

    Attributes:
        mismatches: what did not fit so far.
    """

    def __init__(self, functions: dict[str, list[Data]]) -> None:
        super().__init__(functions)
        self.mismatches: list[ReplayError] = []

    @property
    def remaining(self) -> dict[str, int]:
        """Function → how many attempts of it are left."""
        return {name: len(attempts) for name, attempts in self.functions.items() if attempts}


@contextmanager
def replay(
    path: str | os.PathLike[str], *, results: Mapping[Callable[..., Any] | str, Any] | None = None
) -> Iterator[Replay]:
    """Have bound functions live through recorded attempts within a block, without being called.

        with replay("fixtures/outage.json"):
            fetch("ada")

    Attempts pass all policies, as in `faults`. They take no time, unless the recorded one was interrupted, as by a
    timeout: that one takes as long again by the clock of the function, so use `virtual_clock` with it.

    Args:
        path: what `record` has written.
        results: function, or its name "module:qualname" → what its successful attempts return where the file has no
            result.

    Raises:
        ReplayError: an attempt was made that was not recorded: of a function of which there is none, or of one of which
            there are no more; or its result is not known. It is raised by the call, and again at the end of the block
            if a policy has kept it from the caller.
        ConfigError: the file does not exist or is invalid, or an exception in it cannot be made again; or functions
            were called that are generators, or were bound within the block.
    """
    functions = _read(Path(path))
    given: Data = {}
    for each, value in (results or {}).items():
        given[each if isinstance(each, str) else binding_of(each, "replay").stats.function] = value
    attempts = Replay({name: list(each) for name, each in functions.items()})
    bound = {binding.stats.function for binding in all_bindings()}
    for name in (*functions, *given):
        if name not in bound:
            raise ConfigError(f"replay(): {name} is not bound{nearest(name, bound)}")
    for name, recorded in functions.items():
        for number, attempt in enumerate(recorded, 1):
            if "raised" in attempt:
                _made(attempt["raised"], f"{path}: {name}, attempt {number}")
    with replaced(lambda binding: stand_in_for(binding, _Replayed(binding, attempts, functions, given)), "replay"):
        try:
            yield attempts
        except BaseException as error:
            for mismatch in attempts.mismatches:
                if mismatch is not error:
                    error.add_note(str(mismatch))
            raise
    if attempts.mismatches:
        raise attempts.mismatches[0]


def _read(path: Path) -> dict[str, list[Data]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"replay(): {path}: {error.strerror or error}; record() writes it") from error
    except ValueError as error:
        raise ConfigError(f"replay(): {path} is not JSON: {error}") from error
    functions = data.get("functions") if isinstance(data, dict) and data.get("format") == FORMAT else None
    if not isinstance(functions, dict) or not all(isinstance(each, list) for each in functions.values()):
        raise ConfigError(f"replay(): {path} is not a recording of format {FORMAT}; record() writes them")
    return functions


class _Replayed:
    """The steps of one function, for `stand_in_for`."""

    def __init__(self, binding: Binding, attempts: Replay, recorded: Mapping[str, Any], given: Data) -> None:
        self.name = binding.stats.function
        self.attempts = attempts
        self.count = len(recorded.get(self.name, ()))
        self.names = sorted(recorded)
        self.given = given

    def step(self) -> Any:
        """Return what the next attempt does."""
        with self.attempts.lock:
            left = self.attempts.functions.get(self.name)
            if left is None:
                return self._mismatch(f"no attempts of {self.name} were recorded{nearest(self.name, self.names)}")
            if not left:
                times = "1 attempt" if self.count == 1 else f"{self.count} attempts"
                return self._mismatch(f"there are no more than {times} of {self.name}")
            attempt = left.pop(0)
        where = f"attempt {self.count - len(left)} of {self.name}"
        if "interrupted" in attempt:
            late = self._mismatch(
                f"{where} was interrupted after {attempt['seconds']:g} s, and this one is not", add=False
            )
            return Later(attempt["seconds"] + GRACE, late, lambda: self.attempts.mismatches.append(late))
        if "raised" in attempt:
            return _made(attempt["raised"], where)
        if "response" in attempt:
            return status(attempt["response"]["status"], retry_after=attempt["response"]["retry_in"])
        return attempt["result"] if "result" in attempt else self._given(where)

    def _given(self, where: str) -> Any:
        if self.name in self.given:
            return self.given[self.name]
        return self._mismatch(f"the result of {where} is not in it: record it with results=, or give one to replay()")

    def _mismatch(self, text: str, *, add: bool = True) -> ReplayError:
        error = ReplayError(f"replay(): {text}")
        if add:
            self.attempts.mismatches.append(error)
        return error


def _made(told: Data, where: str) -> BaseException:
    """Return an exception like the one that was recorded.

    Raises:
        ConfigError: its class does not exist any more, or it would not be of the same kind.
    """
    cls = class_of(told["type"])
    if cls is None:
        raise ConfigError(f"replay(): {where}: there is no exception {told['type']}")
    args = told.get("args", [told["text"]])
    if "exceptions" in told:
        args = [told["text"], [_made(each, where) for each in told["exceptions"]]]
    try:
        try:
            error: BaseException = cls(*args)
        except Exception:  # noqa: BLE001  # it needs others, such as a request and a response
            error = cls.__new__(cls)
            error.args = tuple(args)
    except Exception as reason:
        raise ConfigError(f"replay(): {where}: {told['type']} cannot be made again: {describe(reason)}") from reason
    with suppress(Exception):  # where its class has no room for it, the check below tells
        for name, value in told.get("attributes", {}).items():
            setattr(error, name, value)
        if "cause" in told:
            error.__cause__ = _made(told["cause"], where)
        if told["status"] is not None and failure_of(error).status != told["status"]:
            error.response = status(told["status"], retry_after=told["retry_in"])  # type: ignore[attr-defined]
        elif told["retry_in"] is not None and failure_of(error).retry_in is None:
            error.retry_after = told["retry_in"]  # type: ignore[attr-defined]
    made = failure_of(error)
    is_same = str(made.kind) == told["kind"] and made.status == told["status"]
    if not is_same or (made.retry_in is None) != (told["retry_in"] is None):
        was, now = f"{told['kind']} ({told['status']})", f"{made.kind} ({made.status})"
        raise ConfigError(f"replay(): {where}: {told['type']} was {was}, and is {now} when made again; use faults()")
    return error
