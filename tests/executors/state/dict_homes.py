"""A third kind of home: a server in this process that keeps states in a dictionary, as a database would.

It shows what a new kind of home takes: one class for each kind of state, and nothing in the executors.
"""

from __future__ import annotations

import pickle
import threading
from collections import deque
from typing import Any, TypeVar, TypeVarTuple

from opero.executors.state.budget import Budget, LocalBudget, Receipt, Terms, Values, book, migrated, refund
from opero.executors.state.circuit import Circuit, apply_policy, change_of
from opero.executors.state.circuit_home import CircuitHome
from opero.executors.state.home import Home
from opero.executors.state.pace import due_after, paused
from opero.executors.state.slots import ANYONE, QueuedCall, SlotHolder, Slots, SlotValues
from opero.executors.state.values import Memory, merge
from opero.executors.state.values_home import ValuesHome
from opero.runtime import forking

__all__ = ["DictBudget", "DictCircuit", "DictSlots", "DictValues", "Server", "home_on"]

R = TypeVar("R")
Args = TypeVarTuple("Args")


class Server:
    """Holds states by name, as bytes.

    Attributes:
        threads: those that have asked it.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.threads: set[int] = set()
        self._data: dict[str, bytes] = {}

    def get(self, name: str, default: Any = None) -> Any:
        self.threads.add(threading.get_ident())
        with self.lock:
            return self.last_known(name, default)

    def last_known(self, name: str, default: Any = None) -> Any:
        """What a client of a real server would remember, so that it need not ask."""
        return pickle.loads(self._data[name]) if name in self._data else default

    def set(self, name: str, value: Any) -> None:
        self._data[name] = pickle.dumps(value)


class DictHome(Home):
    is_shared = True

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.blocks = True
        self.server = server
        self.lock = server.lock


class DictBudget(DictHome, Budget):
    def __init__(self, server: Server, own: LocalBudget) -> None:
        super().__init__(server)
        self.monotonic = own.monotonic

    def book(self, now: float, cost: float, patience: float) -> tuple[float, Receipt]:
        with self.lock:
            self.check()
            due, terms, pace, _ = self.values()
            wait, booked = book(due, now, cost, patience, terms, pace)
            self.server.set("budget", (booked, terms, pace, None))
            return wait, (due, booked)

    def refund(self, receipt: Receipt) -> None:
        with self.lock:
            self.check()
            due, *others = self.values()
            self.server.set("budget", (refund(due, receipt), *others))

    def pause(self, now: float, seconds: float) -> bool:
        with self.lock:
            self.check()
            _, terms, pace, _ = self.values()
            if now + seconds <= pace.resume:
                return False
            pace = paused(now + seconds, now)
            self.server.set("budget", (due_after(pace.resume, *terms), terms, pace, None))
            return True

    def slow_down(self, now: float, seconds: float) -> None:
        with self.lock:
            self.check()
            due, terms, pace, _ = self.values()
            self.server.set("budget", (max(due, due_after(now + seconds, *terms)), terms, pace, None))

    def resumes(self, *, is_fresh: bool = True) -> float:
        if not is_fresh:
            known: Values = self.server.last_known("budget")
            return known[2].resume
        with self.lock:
            self.check()
            return self.values()[2].resume

    def apply(self, policy: Any) -> None:
        with self.lock:
            due, before, pace, _ = self.values()
            after = Terms.of(policy)
            self.server.set("budget", (migrated(due, self.monotonic(), before, after), after, pace, None))

    def values(self) -> Values:
        found: Values = self.server.get("budget")
        return found

    def receive(self, values: Values) -> None:
        held, (due, terms, pace, _) = self.server.get("budget"), values
        if held is None:
            self.server.set("budget", values)
            return
        if due:
            due = max(held[0], migrated(due, self.monotonic(), terms, held[1]))
        self.server.set("budget", (max(held[0], due), held[1], max(pace, held[2]), None))


class DictCircuit(DictHome, CircuitHome):
    @property
    def passing(self) -> int:
        circuit: Circuit = self.server.last_known("circuit")
        return circuit.passing if self.successor is self else -1

    @property
    def needs_results(self) -> bool:
        circuit: Circuit = self.server.last_known("circuit")
        return self.successor is not self or circuit.needs_results

    def change(self, decide: Any, *args: *Args) -> tuple[Any, str | None]:
        with self.lock:
            self.check()
            circuit = self.values()
            before = circuit.state
            result = decide(circuit, *args)
            self.receive(circuit)
            return result, change_of(circuit, before)

    def apply(self, policy: Any) -> None:
        with self.lock:
            circuit = self.values()
            apply_policy(circuit, policy)
            self.receive(circuit)

    def values(self) -> Circuit:
        found: Circuit = self.server.get("circuit")
        return found

    def receive(self, values: Circuit) -> None:
        self.server.set("circuit", values)


class DictSlots(DictHome, Slots):
    """Slots that every client polls for, in the order of tickets."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.queue: deque[QueuedCall] = deque()
        self._tickets: dict[QueuedCall, int] = {}
        self._taken = 0

    @property
    def limit(self) -> int:
        found: int = self.server.last_known("limit", 0)
        return found

    def running(self) -> int:
        with self.lock:
            self.check()
            found: int = self.server.get("taken", 0)
            return found

    def take(self, holder: SlotHolder = ANYONE) -> bool:
        with self.lock:
            return self.successor is self and not self.server.get("tickets", []) and self._try(holder)

    def take_another(self, holder: SlotHolder = ANYONE) -> None:
        with self.lock:
            self.check()
            self._add(1)
            holder.slot = forking.generation

    def leave(self, holder: SlotHolder = ANYONE) -> bool:
        with self.lock:
            if holder.slot != forking.generation:
                return True
            if self.successor is not self:
                return False
            self._add(-1)
            holder.slot = None
            return True

    def enter(self, call: QueuedCall) -> bool:
        with self.lock:
            self.check()
            self._line_up([call], first=False)
            return self._take_turn(call)

    def look(self, call: QueuedCall, waiter: Any) -> bool:
        with self.lock:
            self.check()
            if not call.granted:
                call.waiter = waiter
                call.granted = self._take_turn(call)
            return call.granted

    def withdraw(self, call: QueuedCall) -> bool:
        with self.lock:
            self.check()
            if call in self._tickets:
                self._drop(call)
            return not call.granted

    def pause(self, call: QueuedCall) -> float:
        return 0.001

    def apply(self, policy: Any) -> None:
        with self.lock:
            self.server.set("limit", policy.max_concurrent)

    def values(self) -> SlotValues:
        return SlotValues(self.limit, self._taken, tuple(self.queue))

    def receive(self, values: SlotValues) -> None:
        self.server.set("limit", self.limit or values.limit)
        self._add(values.taken)
        self._line_up(list(values.queue), first=True)
        for call in values.queue:
            call.waiter.wake()

    def vacate(self) -> None:
        self._add(-self._taken)
        for call in list(self.queue):
            self._drop(call)

    def _try(self, holder: SlotHolder) -> bool:
        if self.server.get("taken", 0) >= self.limit:
            return False
        self._add(1)
        holder.slot = forking.generation
        return True

    def _take_turn(self, call: QueuedCall) -> bool:
        if (
            call not in self._tickets
            or self.server.get("tickets")[0] != self._tickets[call]
            or not self._try(call.holder)
        ):
            return False
        self._drop(call)
        return True

    def _add(self, count: int) -> None:
        self._taken += count
        self.server.set("taken", self.server.get("taken", 0) + count)

    def _line_up(self, calls: list[QueuedCall], *, first: bool) -> None:
        number = self.server.get("last", 0)
        new = list(range(number + 1, number + 1 + len(calls)))
        self.server.set("last", number + len(calls))
        held = self.server.get("tickets", [])
        self.server.set("tickets", new + held if first else held + new)
        self._tickets.update(zip(calls, new, strict=True))
        self.queue = deque([*calls, *self.queue] if first else [*self.queue, *calls])

    def _drop(self, call: QueuedCall) -> None:
        self.queue.remove(call)
        ticket = self._tickets.pop(call)
        self.server.set("tickets", [each for each in self.server.get("tickets") if each != ticket])


class DictValues(DictHome, ValuesHome):
    @property
    def version(self) -> int:
        memory: Memory = self.server.last_known("values")
        return memory.version if self.successor is self else -1

    @property
    def key(self) -> bytes:
        memory: Memory = self.server.last_known("values")
        return memory.key

    def change(self, decide: Any, *args: *Args) -> Any:
        with self.lock:
            self.check()
            memory = self.values()
            result = decide(memory, *args)
            self.server.set("values", memory)
            return result

    def next_turn(self) -> int:
        with self.lock:
            self.check()
            turn: int = self.server.get("turn", 0)
            self.server.set("turn", turn + 1)
            return turn

    def values(self) -> Memory:
        found: Memory = self.server.get("values")
        return found

    def receive(self, values: Memory) -> None:
        held: Memory | None = self.server.get("values")
        if held is not None:
            merge(held, values)
        self.server.set("values", values if held is None else held)


def home_on(server: Server, executor: Any) -> Any:
    """The home of an executor's state on a server."""
    kind = executor.policy.kind
    if kind == "rate_limit":
        return DictBudget(server, executor.own)
    if kind == "fallback":
        return DictValues(server)
    return DictCircuit(server) if kind == "circuit_breaker" else DictSlots(server)
