"""Bindings, held by weak references."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from opero.events import watched
from opero.runtime.collector import make_old
from opero.runtime.forking import RenewedLock, at_fork

if TYPE_CHECKING:
    from opero.binding.binding import Binding


MANY = 256
"""How many more bindings have to be alive before all objects are moved to the garbage collector's oldest generation.
Otherwise, it would traverse all of them again and again while a program binds its functions."""
_all: weakref.WeakSet[Roster] = weakref.WeakSet()
_all_lock = RenewedLock()


def all_bindings() -> list[Binding]:
    """Return the bindings of this process, of all registries and of none."""
    with _all_lock:
        rosters = list(_all)
    return list({id(binding): binding for roster in rosters for binding in roster.bindings()}.values())


def _time_next_call() -> None:
    """Have the next call of every function timed: there is a listener to its end."""
    for binding in all_bindings():
        for stats in binding.all_stats:
            stats.sample_at = 0


def _forget_calls() -> None:
    """In a forked child: the calls under way are the parent's."""
    for binding in all_bindings():
        for stats in binding.all_stats:
            stats.forget_calls()


watched.on_calls = _time_next_call
at_fork(in_child=_forget_calls)


class Roster:
    """Bindings in order of registration, held by weak references."""

    def __init__(self) -> None:
        with _all_lock:
            _all.add(self)
        self._held: dict[weakref.ref[Binding], None] = {}
        self._on_gone = self._forget  # one for all
        self._lock = RenewedLock()  # reentrant: a weak reference may be cleared while this thread holds the lock
        self._old = 0  # how many were alive when objects were last moved

    def add(self, binding: Binding) -> None:
        with self._lock:
            self._held[weakref.ref(binding, self._on_gone)] = None
            held = len(self._held)
            if held < self._old:
                self._old = held
            elif held >= self._old + MANY:
                self._old = held
                make_old()

    def _forget(self, gone: weakref.ref[Binding]) -> None:
        self._held.pop(gone, None)  # bindings compare by identity, and so does what is left of them

    def discard(self, binding: Binding) -> None:
        self._held.pop(weakref.ref(binding), None)

    def bindings(self) -> list[Binding]:
        """Return the bindings that are still alive."""
        with self._lock:
            references = list(self._held)
        return [binding for reference in references if (binding := reference()) is not None]


_of_no_registry = Roster()


def of_no_registry(binding: Binding) -> Binding:
    """Return a binding that no registry looks after, which `all_bindings` finds from now on."""
    _of_no_registry.add(binding)
    return binding


def bindings_of_no_registry() -> list[Binding]:
    """Return the bindings that no registry looks after, such as those of `Policy.apply`."""
    return _of_no_registry.bindings()
