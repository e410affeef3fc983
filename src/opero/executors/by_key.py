"""One state for each value of an argument: an executor for each key of a keyed scope.

`ByKey` keeps them; the layer of a function picks the one of a call (`scoped`). The executors are those that policies
without a keyed scope have. Those that have been used lately are live; the states of others are parked in a few bytes,
or forgotten where a new one is as good, such as that of a rate limit all of whose permits are there again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from opero.executors.scope_keys import check_key, shown
from opero.executors.state.circuit import Circuit, details, enter
from opero.executors.state.home import migrating
from opero.executors.state.parked import parked, resume, unpack
from opero.executors.state.stated import sharing
from opero.observe.hooks import Emitter
from opero.runtime.forking import RenewedLock, renew_in_child

if TYPE_CHECKING:
    from opero.executors.call import Layer
    from opero.observe.hooks import Hooks
    from opero.policies.scope import KeyedScope
    from opero.runtime.clock import Clock

MOST_LIVE = 1000
"""The most executors that are live, unless more of them have calls under way."""
TRIES = 8
"""How many executors are looked at to find one without calls under way."""


class Entry:
    """The executor of a key while it is live.

    Attributes:
        executor: the executor.
        calls: how many calls are under way with it.
        is_out: whether it is live no more, so that a call that has just found it has to look again.
        layers: the layer of each function around the executor.
    """

    __slots__ = ("calls", "executor", "is_out", "layers")

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self.calls = 0
        self.is_out = False
        self.layers: dict[Any, Layer] = {}


class ByKey(Emitter):
    """The executors of a policy with a keyed scope, shared by all functions that are bound to its profile.

    Args:
        policy: the policy.
        scope: its scope, or the one that it has under a client.
        clock: the source of time and randomness.
        name: what messages begin with, before the key.
        make: makes an executor for a policy, a clock and a name.
        shared_name: the name under which the states are shared with other processes, if the policy says so.

    Attributes:
        live: key → its executor, that used last at the end.
        idle: key → its parked state.
        unusual: the same for open circuits, and for memories of values that are set aside: the last to be forgotten.
    """

    def __init__(
        self,
        policy: Any,
        scope: KeyedScope,
        clock: Clock,
        name: str,
        make: Callable[[Any, Clock, str], Any],
        shared_name: str = "",
    ) -> None:
        self.policy = policy
        self.scope = scope
        self.clock = clock
        self.name = name
        self.live: OrderedDict[Hashable, Entry] = OrderedDict()
        self.idle: OrderedDict[Hashable, Any] = OrderedDict()
        self.unusual: OrderedDict[Hashable, Any] = OrderedDict()
        self._make = make
        self._shared_name = shared_name or name
        self._origin: Mapping[str, str] = MappingProxyType({})
        self._forced = ""
        self._successor: ByKey | None = None
        self._lock = RenewedLock()
        renew_in_child(self)

    def after_fork(self) -> None:
        """Forget the calls under way: they are the parent's."""
        for key, entry in list(self.live.items()):
            self.live[key] = Entry(entry.executor)

    @property
    def by(self) -> Any:
        """What chooses the key of a call."""
        return self.scope.by

    @property
    def origin(self) -> Mapping[str, str]:
        """As of a `Holder`."""
        return self._origin

    @origin.setter
    def origin(self, origin: Mapping[str, str]) -> None:
        self._origin = origin
        for entry in list(self.live.values()):
            entry.executor.origin = origin

    def replace_hooks(self, before: Hooks | None, after: Hooks | None) -> None:
        super().replace_hooks(before, after)
        for entry in list(self.live.values()):
            entry.executor._hooks = self._hooks

    # Keys

    def find(self, key: Hashable) -> Entry:
        """Return the entry of a key, which is live from now on until others have been used.

        Raises:
            ConfigError: the value cannot be a key.
        """
        with self._lock:
            if self._successor is None:
                entry = self.live.get(key)
                return entry or self._enliven(key)
        return self._successor.find(key)

    @contextmanager
    def using(self, key: Hashable) -> Iterator[Any]:
        """Use the executor of a key, as a call does."""
        while True:
            entry = self.find(key)
            entry.calls += 1
            if not entry.is_out:
                break
            entry.calls -= 1
        try:
            yield entry.executor
        finally:
            entry.calls -= 1

    def of(self, key: Hashable) -> Any:
        """Return what has the attributes and methods of the executor of a key: `of("acme").force_open()`."""
        return _OfKey(self, key)

    def keys(self) -> list[Hashable]:
        """Return the keys that have a state, those used last at the end."""
        with self._lock:
            return [*self.unusual, *self.idle, *self.live]

    def size(self) -> int:
        """Return how many keys have a state."""
        return len(self.live) + len(self.idle) + len(self.unusual)

    def _enliven(self, key: Hashable) -> Entry:
        check_key(key, self.name, self.by)
        executor = self._new(key)
        state = self.idle.get(key) or self.unusual.get(key)
        if state is not None:
            resume(executor.own, state)
            executor.own.apply(self.policy)
        entry = self.live[key] = Entry(executor)
        self.idle.pop(key, None)
        self.unusual.pop(key, None)
        self._make_room(entry)
        return entry

    def _new(self, key: Hashable) -> Any:
        executor = self._make(self.policy, self.clock, f"{self.name}[{shown(key, self.by)}]")
        executor.origin, executor._hooks = self._origin, self._hooks
        if self._forced:
            executor.own.change(enter, self._forced, self.clock.monotonic())
        shared = sharing(executor, self._shared_name, key)
        if self._forced and shared.home is not shared.own:  # where others have a circuit of that key already
            shared.run_later(shared.change, enter, self._forced, self.clock.monotonic())
        return shared

    def _make_room(self, keep: Entry) -> None:
        most = self.scope.max_keys
        while len(self.live) > min(MOST_LIVE, most) and self._park(keep):
            pass
        while self.size() > most:
            if self.idle:
                self.idle.popitem(last=False)
            elif not self._park(keep):
                if not self.unusual:
                    break
                self.unusual.popitem(last=False)

    def _park(self, keep: Entry) -> bool:
        """Park the executor that was used least recently, and has no calls under way; whether there was one."""
        for _ in range(min(TRIES, len(self.live))):
            key, entry = next(iter(self.live.items()))
            if entry is not keep and entry.calls <= 0:
                entry.is_out = True
                if entry.calls <= 0:  # else another thread has just found it
                    home = entry.executor.home.successor
                    state = parked(home, self.clock.monotonic())
                    if state is not None:
                        (self.unusual if _is_unusual(home) else self.idle)[key] = state
                    del self.live[key]
                    return True
                entry.is_out = False
            self.live.move_to_end(key)
        return False

    # Another policy

    def migrate_from(self, old: Any) -> None:
        """Continue with the states of another policy, if it chooses them by the same."""
        if not isinstance(old, ByKey) or old.by != self.by or old is self:
            return
        with migrating, old._lock, self._lock:
            for key, entry in list(old.live.items()):
                mine = self.live.get(key)
                executor = self._new(key) if mine is None else mine.executor
                executor.migrate_from(entry.executor)
                entry.executor, entry.layers = executor, {}
                self.live[key] = entry
            for states, others in ((self.idle, old.idle), (self.unusual, old.unusual)):
                for key, state in others.items():
                    states.setdefault(key, state)
            self._forced = self._forced or old._forced
            old._successor = self
            for each in (old.live, old.idle, old.unusual):
                each.clear()

    # What operators may see and do

    def force_open(self) -> None:
        """Reject every call of every key, until `reset` or `force_closed`."""
        self._force("forced_open")

    def force_closed(self) -> None:
        """Let every call of every key through, until `reset` or `force_open`."""
        self._force("forced_closed")

    def reset(self) -> None:
        """Close the circuits of all keys, and forget what has been counted."""
        with self._lock:
            self._forced = ""
            self.idle.clear()
            self.unusual.clear()
            found = [entry.executor for entry in self.live.values()]
        for each in found:
            each.reset()

    def _force(self, state: str) -> None:
        with self._lock:
            self._forced = state
            self.idle.clear()
            self.unusual.clear()
            found = [entry.executor for entry in self.live.values()]
        for each in found:
            each.force_open() if state == "forced_open" else each.force_closed()

    def executors(self) -> list[tuple[str, Any]]:
        """Return the live executors, each with its key as messages show it."""
        with self._lock:
            return [(shown(key, self.by), entry.executor) for key, entry in self.live.items()]

    def circuits(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the circuits that are not closed, each with its key as messages show it, and `details`."""
        now = self.clock.monotonic()
        with self._lock:
            states = [(shown(key, self.by), state) for key, state in self.unusual.items() if isinstance(state, bytes)]
        found = [(key, details(unpack(state), self.policy, now)) for key, state in states]
        found += [(key, executor.details()) for key, executor in self.executors()]
        return [(key, circuit) for key, circuit in found if circuit["state"] != "closed"]

    def troubled(self) -> list[tuple[str, dict[str, Any]]]:
        """Return those of `circuits` that reject calls or have probes under way. One whose time is over would let its
        next call through, which may never be made: for example to a host that is not called again."""
        return [(key, circuit) for key, circuit in self.circuits() if not _is_over(circuit)]

    @property
    def state(self) -> str:
        """`forced_open` or `forced_closed` if all circuits are; `open` if one of `troubled` is; else `closed`."""
        return self._forced or ("open" if self.troubled() else "closed")


class _OfKey:
    """Has the attributes of the executor of a key, whatever that is at the moment."""

    def __init__(self, by_key: ByKey, key: Hashable) -> None:
        self._by_key = by_key
        self._key = key
        with by_key.using(key):
            pass  # it can be a key

    def __getattr__(self, name: str) -> Any:
        with self._by_key.using(self._key) as executor:
            found = getattr(executor, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._by_key.using(self._key) as executor:
                return getattr(executor, name)(*args, **kwargs)

        return call


def _is_over(circuit: Mapping[str, Any]) -> bool:
    return circuit["state"] == "half_open" and circuit["retry_in"] is not None


def _is_unusual(home: Any) -> bool:
    circuit = getattr(home, "circuit", None)
    if isinstance(circuit, Circuit):
        return circuit.state != "closed"
    return bool(getattr(getattr(home, "memory", None), "aside", None))
