"""A circuit breaker that processes share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opero.executors.circuit_breaker import CircuitBreakerExecutor

if TYPE_CHECKING:
    from opero.executors.shared.state_file import StateFile

__all__ = ["share_circuit_breaker"]


class _Loading:
    """A breaker's lock that brings its state from the file, and back.

    Beside the state the file holds the number of the period while the circuit is closed, else -1, and a flag that says
    whether there is a failure to forget: so calls that find nothing to do need no lock.
    """

    FIELDS = (
        "_state",
        "_period",
        "_since",
        "_consecutive",
        "_probes_begun",
        "_probes_passed",
        "_last_error",
        "_window",
    )

    def __init__(self, breaker: Any, file: StateFile) -> None:
        self._file = file
        self._fields = breaker.__dict__

    def __enter__(self) -> None:
        self._file.__enter__()
        try:
            self._fields.update(self._file.read())
        except BaseException:
            self._file.__exit__(None, None, None)
            raise

    def __exit__(self, *exception: Any) -> None:
        try:
            self.write()
        finally:
            self._file.__exit__(*exception)

    def write(self) -> None:
        fields = self._fields
        self._file.write({name: fields[name] for name in self.FIELDS})
        self._file.number = fields["_period"] if fields["_state"] == "closed" else -1
        self._file.flag = bool(fields["_consecutive"])


class SharedCircuitBreaker(CircuitBreakerExecutor):
    """Looks at the file whenever it is asked. To who holds no lock it is closed, or something that he must look up."""

    _lock: _Loading  # type: ignore[assignment]

    @property
    def _state(self) -> Any:
        file = self._lock._file
        return self.__dict__["_state"] if file.is_mine else "closed" if file.number >= 0 else "shared"

    @_state.setter
    def _state(self, state: Any) -> None:
        self.__dict__["_state"] = state

    @property
    def _period(self) -> int:
        file = self._lock._file
        return self.__dict__["_period"] if file.is_mine else int(file.number)

    @_period.setter
    def _period(self, period: int) -> None:
        self.__dict__["_period"] = period

    @property
    def _alert(self) -> bool:
        return self.by_rate or self._lock._file.number < 0 or self._lock._file.flag

    @_alert.setter
    def _alert(self, alert: bool) -> None:
        pass

    def _enter(self, state: Any, now: float | None = None) -> None:
        if self._lock._file.is_mine:
            super()._enter(state, now)
        else:  # somebody has waited for the lock that this breaker had before
            with self._lock:
                super()._enter(state, now)


def share_circuit_breaker(breaker: Any, file: StateFile, *, first: bool) -> None:
    with breaker._lock:
        loading = _Loading(breaker, file)
        if first:
            with file:
                loading.write()
        breaker._lock = loading
        breaker.__class__ = SharedCircuitBreaker
