"""A circuit breaker that processes share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opero.executors.state.circuit import Circuit

if TYPE_CHECKING:
    from opero.executors.circuit_breaker import CircuitBreakerExecutor
    from opero.policies.circuit_breaker import CircuitBreakerPolicy
    from opero.runtime.state_file import StateFile

__all__ = ["ROOM", "share_circuit_breaker"]

ROOM = 8192
"""Bytes for everything but a window of calls, which takes one each."""


class _Loading:
    """A circuit's lock that brings its state from the file, and back.

    Beside the state the file holds the number of the period while the circuit is closed, else -1, and a flag that says
    whether a success has something to change: so calls that find nothing to do need no lock.
    """

    FIELDS = (
        "state",
        "period",
        "since",
        "consecutive",
        "probes_begun",
        "probes_passed",
        "last_error",
        "by_rate",
        "length",
        "window",
    )

    def __init__(self, circuit: Circuit, file: StateFile) -> None:
        self.file = file
        self._fields = circuit.__dict__

    def __enter__(self) -> None:
        self.file.__enter__()
        try:
            self._fields.update(self.file.read())
        except BaseException:
            self.file.__exit__(None, None, None)
            raise

    def __exit__(self, *exception: Any) -> None:
        try:
            self.write()
        finally:
            self.file.__exit__(*exception)

    def write(self) -> None:
        fields = self._fields
        self.file.write({name: fields[name] for name in self.FIELDS})
        self.file.number = fields["period"] if fields["state"] == "closed" else -1
        self.file.flag = bool(fields["consecutive"] or fields["by_rate"])


class SharedCircuit(Circuit):
    """Looks at the file whenever it is asked: to who holds no lock it is closed, or something that he must look up."""

    lock: _Loading

    @property
    def file(self) -> StateFile:
        return self.lock.file

    @property
    def passing(self) -> int:
        return int(self.lock.file.number)

    @passing.setter
    def passing(self, passing: int) -> None:
        pass

    @property
    def alert(self) -> bool:
        return self.lock.file.number < 0 or self.lock.file.flag

    @alert.setter
    def alert(self, alert: bool) -> None:
        pass

    def suit(self, policy: CircuitBreakerPolicy) -> None:
        super().suit(policy)
        if isinstance(self.length, int):
            room = self.file.grow(ROOM + self.length) - ROOM
            if room < self.length:  # the disk is full: count over as many calls as there is room for
                self.length = room
                self.window = self.window.resized(room)


def share_circuit_breaker(breaker: CircuitBreakerExecutor, file: StateFile, *, first: bool) -> None:
    circuit = breaker.circuit
    with circuit.lock:
        loading = _Loading(circuit, file)
        if first:
            with file:
                loading.write()
        circuit.lock = loading
        circuit.__class__ = SharedCircuit
