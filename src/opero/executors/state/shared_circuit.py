"""The circuit of a circuit breaker in a file that the processes of a machine share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from opero.executors.state.circuit import NOT_PASSING, Change, Circuit, apply_policy, change_of
from opero.executors.state.circuit_home import CircuitHome
from opero.executors.state.shared_home import FileHome

if TYPE_CHECKING:
    from opero.policies.circuit_breaker import CircuitBreakerPolicy

R = TypeVar("R")
Args = TypeVarTuple("Args")

ROOM = 8192
"""Bytes for everything but a window of calls, which takes one each."""


class SharedCircuit(FileHome, CircuitHome):
    """Keeps the circuit in a file.

    Beside it the file has a number and a flag, which are `passing` and `needs_results`: so a call that has nothing to
    change reads them without the file's lock.
    """

    @property
    def passing(self) -> int:
        return int(self.file.number) if self.location.home is self else NOT_PASSING

    @property
    def needs_results(self) -> bool:
        return self.file.flag or self.location.home is not self

    def change(self, decide: Callable[[Circuit, *Args], R], *args: *Args) -> tuple[R, Change | None]:
        with self.file:
            self.check()
            circuit = self.values()
            before = circuit.state
            result = decide(circuit, *args)
            self._write(circuit)
            return result, change_of(circuit, before)

    def apply(self, policy: CircuitBreakerPolicy) -> None:
        with self.file:
            circuit = self.values()
            apply_policy(circuit, policy)
            self.receive(circuit)

    def values(self) -> Circuit:
        circuit: Circuit = self.file.read()
        return circuit

    def receive(self, values: Circuit) -> None:
        if isinstance(values.length, int):
            room = self.file.grow(ROOM + values.length) - ROOM
            if room < values.length:  # the disk is full: count over as many calls as there is room for
                values.length = room
                values.window = values.window.resized(room)
        self._write(values)

    def _write(self, circuit: Circuit) -> None:
        self.file.write(circuit)
        self.file.number = circuit.passing
        self.file.flag = circuit.needs_results
