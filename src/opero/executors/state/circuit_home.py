"""Homes of the circuit of a circuit breaker: their interface, and the one in this process."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from opero.executors.state.circuit import NOT_PASSING, Change, Circuit, apply_policy, change_of, enter, new_circuit
from opero.executors.state.home import Home, Moved
from opero.runtime.forking import renew_in_child

if TYPE_CHECKING:
    from opero.policies.circuit_breaker import CircuitBreakerPolicy

R = TypeVar("R")
Args = TypeVarTuple("Args")


class CircuitHome(Home):
    """Keeps a circuit. Its values are the `Circuit`.

    While `passing` is not negative a call may pass and belongs to the period of that number. While `needs_results` is
    false a success has nothing to change. A call reads both without a lock.
    """

    if TYPE_CHECKING:  # a class attribute would make the access to an instance's own slower

        @property
        def passing(self) -> int: ...

        @property
        def needs_results(self) -> bool: ...

    @abstractmethod
    def change(self, decide: Callable[[Circuit, *Args], R], *args: *Args) -> tuple[R, Change | None]:
        """Run a decision on the circuit: what it returned, and a change of state to be logged."""

    def look(self, decide: Callable[[Circuit, *Args], R], *args: *Args) -> R:
        """What a decision that changes nothing returns on the circuit as it was known last, without waiting for it."""
        return self.change(decide, *args)[0]

    def add(self, values: Circuit) -> None:
        """The circuit that was there before is the one that counts."""


class LocalCircuit(CircuitHome):
    """Keeps the circuit in this process."""

    passing: int
    needs_results: bool

    def __init__(self, policy: CircuitBreakerPolicy, now: float) -> None:
        super().__init__()
        self.lock = threading.RLock()
        self.receive(new_circuit(policy, now))
        renew_in_child(self, "lock")

    def after_fork(self) -> None:
        """Let probes through again: those that are under way are the parent's."""
        if self.circuit.state == "half_open":
            enter(self.circuit, "half_open", self.circuit.since)

    def change(self, decide: Callable[[Circuit, *Args], R], *args: *Args) -> tuple[R, Change | None]:
        with self.lock:
            if self.location.home is not self:
                raise Moved
            circuit = self.circuit
            before, period = circuit.state, circuit.period
            try:
                result = decide(circuit, *args)
            except BaseException:  # such as Ctrl-C: the next call asks under the lock
                self.passing, self.needs_results = NOT_PASSING, True
                raise
            if circuit.period != period or not circuit.by_rate:  # else `passing` and `needs_results` are as before
                self.receive(circuit)
            return result, change_of(circuit, before)

    def apply(self, policy: CircuitBreakerPolicy) -> None:
        with self.lock:
            apply_policy(self.circuit, policy)
            self.receive(self.circuit)

    def values(self) -> Circuit:
        return self.circuit

    def receive(self, values: Circuit) -> None:
        self.passing, self.needs_results = NOT_PASSING, True  # if this is interrupted, the next call makes up for it
        self.circuit = values
        passing, needs_results = values.passing, values.needs_results
        self.passing, self.needs_results = passing, needs_results

    def vacate(self) -> None:
        self.passing, self.needs_results = NOT_PASSING, True
