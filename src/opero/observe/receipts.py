"""Receipts: what happened to the calls within a block, or to one call that failed, with times."""

from __future__ import annotations

import sys
from contextlib import suppress
from contextvars import ContextVar
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from opero.errors import OperoError
from opero.observe.timeline import timeline
from opero.problems import one_line, shortened, text_of, without_password
from opero.runtime.clock import SYSTEM, default_clock

if TYPE_CHECKING:
    from contextvars import Token


LONGEST = 300
"""Characters of an exception's text."""
OWN = "receipt"
"""The attribute of an exception."""


class Step(NamedTuple):
    """Something that happened to a call.

    Attributes:
        event: the name of the event, such as "retry_scheduled" (see `opero.events`).
        time: when it happened, in seconds since the epoch.
        function: the function that it happened to, if that is not the one of the call; else "".
        details: the other fields of the event, as data that JSON can represent.
    """

    event: str
    time: float
    function: str
    details: dict[str, Any]


class Scope:
    """What the calls of one trace, or of one call outside of traces, share while they are recorded.

    Attributes:
        is_system: whether the clock is the system's, and so `time.perf_counter`.
        now: the clock.
        epoch: what makes its readings seconds since the epoch.
        left: how many more calls and steps are recorded.
        omitted: how many were not.
        is_open: whether anything is recorded.
        outer: where things are recorded once it is closed; None for nowhere.
    """

    __slots__ = ("epoch", "is_open", "is_system", "left", "now", "omitted", "outer")

    def __init__(self, most: int, outer: Timeline | None = None) -> None:
        clock = default_clock()
        self.is_system = clock is SYSTEM
        self.now = perf_counter if self.is_system else clock.monotonic
        self.epoch = clock.time() - self.now()
        self.left = most
        self.omitted = 0
        self.is_open = True
        self.outer = outer


class Timeline:
    """Calls and steps, in the order of their beginnings.

    Attributes:
        time: when it began, in seconds since the epoch.
        seconds: how long it took; None while it is under way.
    """

    # There is no `__init__`, so that making the receipt of a call runs no Python code; see `opero.observe.tracing`.

    time: float
    seconds: float | None = None
    _steps: list[Any] | None = None
    _scope: Scope | None = None

    @property
    def steps(self) -> list[Any]:
        """What happened, in order: `Step`s, and calls as `CallReceipt`s."""
        steps = self._steps
        if steps is None:  # most calls have none
            steps = vars(self).setdefault("_steps", [])  # atomic: another thread may add the first one, too
        return steps

    @property
    def calls(self) -> tuple[CallReceipt, ...]:
        """The calls that were made directly in it; each has those that were made in it."""
        return tuple([each for each in self._entries() if isinstance(each, CallReceipt)])

    def _entries(self) -> list[Any]:
        found: list[Any] = []
        for each in [*(self._steps or ())]:  # others may add to it
            found += each._entries() if isinstance(each, Receipt) else (each,)
        return found

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._steps or ())} steps; print() shows them>"

    def _add(self, entry: Any) -> bool:
        """Add an entry, unless there are too many."""
        scope = self._scope
        if scope is None or scope.left <= 0:
            if scope is not None:
                scope.omitted += 1
            return False
        scope.left -= 1
        self.steps.append(entry)
        return True

    def as_dict(self) -> dict[str, Any]:
        """Return everything as data that JSON can represent.

        `at` is in seconds since the beginning of this receipt, `time` in seconds since the epoch.
        """
        return self._as_dict(self.time)

    def _as_dict(self, began: float) -> dict[str, Any]:
        seconds = None if self.seconds is None else round(self.seconds, 6)
        return {"time": self.time, "at": round(self.time - began, 6), "seconds": seconds} | {
            "steps": [
                each._as_dict(began) if isinstance(each, Timeline) else _step_as_dict(each, began)
                for each in self._entries()
            ]
        }

    def as_json(self, indent: int | None = None) -> str:
        """Return everything as JSON text."""
        import json

        return json.dumps(self.as_dict(), ensure_ascii=False, indent=indent)

    def __str__(self) -> str:
        """Return the timeline: a line for each call and step, those of nested calls indented."""
        return timeline(self.as_dict())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_alone", "_scope", "_token")}


class CallReceipt(Timeline):
    """What happened to one call: its attempts, waits and decisions, and the calls of bound functions made within it.

    It has no arguments and no results. Texts of exceptions are on one line and at most 300 characters long, without the
    passwords of URLs.

    Attributes:
        function: the function, "module:qualname".
        policy: the name of its profile; "" if there is none.
        configuration: the version of the configuration that was in force, eight hexadecimal digits as in
            `Registry.stats()`; "" for a function that no registry looks after.
        outcome: "running", "succeeded", "failed", or "cancelled" for whatever ended it without being an `Exception`.
        error: the type and text of the exception, and the kind of failure; None if there was none.
    """

    function: str
    policy: str
    outcome: Literal["running", "succeeded", "failed", "cancelled"] = "running"
    error: dict[str, str] | None = None
    _configuration: Any = ""
    _alone = False
    _token: Token[Timeline | None] | None = None

    @property
    def configuration(self) -> str:
        held = self._configuration  # its version is computed when it is read
        return held if isinstance(held, str) else str(held.version)

    @property
    def attempts(self) -> tuple[Step, ...]:
        """The attempts that failed."""
        return tuple([each for each in self._entries() if isinstance(each, Step) and each.event == "attempt_failed"])

    def _as_dict(self, began: float) -> dict[str, Any]:
        known = {"event": "call", "function": self.function, "policy": self.policy}
        known |= {"configuration": self.configuration, "outcome": self.outcome}
        return known | {"error": self.error} | super()._as_dict(began)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_configuration": self.configuration}

    def _fail(self, error: BaseException, kind: str = "") -> None:
        """The call comes to this exception, which gets the receipt."""
        self.outcome = "failed" if isinstance(error, Exception) else "cancelled"
        self.error = {"type": type(error).__name__, "message": shown(text_of(error))}
        if kind:
            self.error["kind"] = kind
        if isinstance(error, Exception):
            _attach(error, self)

    def _end(self, now: float | None = None) -> None:
        """The call has ended, at a reading of `time.perf_counter`. Called where its exception passes, if any does."""
        scope = self._scope
        if scope is not None and scope.is_open:
            self.seconds = (scope.now() if now is None or not scope.is_system else now) + scope.epoch - self.time
            if self._alone:
                scope.is_open = False
        if self.outcome == "running" and (error := sys.exception()) is not None:
            self._fail(error)
        token, self._token = self._token, None  # as `_leave`
        if token is not None:
            try:
                current.reset(token)
            except ValueError:
                return

    def _enter(self) -> None:
        """What happens from now on in this context belongs to the call, until `_leave`."""
        self._token = current.set(self)

    def _leave(self) -> None:
        """What happens from now on belongs to what was there before."""
        token, self._token = self._token, None
        if token is not None:
            try:  # not `suppress`, which takes as long as half of a receipt
                current.reset(token)
            except ValueError:
                return  # an abandoned coroutine is closed in another context


class Receipt(Timeline):
    """What happened to the calls of bound functions within a block: `with opero.trace() as receipt:`.

    Attributes:
        omitted: how many calls and steps were not recorded, as there were too many.
    """

    _omitted = 0

    @property
    def omitted(self) -> int:
        return self._omitted if self._scope is None else self._scope.omitted

    def _close(self) -> None:
        """The block has ended: nothing is recorded any more."""
        scope = self._scope
        assert scope is not None
        self.seconds = scope.now() + scope.epoch - self.time
        self._omitted, scope.is_open = scope.omitted, False

    def _as_dict(self, began: float) -> dict[str, Any]:
        return super()._as_dict(began) | {"omitted": self.omitted}


def _step_as_dict(step: Step, began: float) -> dict[str, Any]:
    told = {"event": step.event, "time": step.time, "at": round(step.time - began, 6)}
    return told | ({"function": step.function} if step.function else {}) | step.details


current: ContextVar[Timeline | None] = ContextVar("current", default=None)
"""What calls and events of this context are added to."""


def place() -> Timeline | None:
    """Return what calls and events of this context are added to; None if nothing is recorded here."""
    here = current.get()
    while here is not None and (here._scope is None or not here._scope.is_open):
        here = None if here._scope is None else here._scope.outer
    return here


def shown(text: str) -> str:
    """Return a text as receipts show it: on one line, not too long, without the passwords of URLs."""
    return shortened(without_password(one_line(text)), LONGEST)


def _attach(error: Exception, receipt: CallReceipt) -> None:
    """Make the receipt an attribute of an exception, unless its class or its maker uses that name."""
    with suppress(Exception):  # its class may refuse attributes
        is_free = isinstance(vars(error).get(OWN, receipt), CallReceipt)
        if is_free and (isinstance(error, OperoError) or not hasattr(type(error), OWN)):
            error.receipt = receipt  # type: ignore[attr-defined]
