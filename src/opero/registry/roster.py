"""The functions that a registry looks after."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opero.runtime.forking import RenewedLock

if TYPE_CHECKING:
    from opero.binding.binding import Binding
    from opero.config.declaration import Declaration
    from opero.config.sources import Source
    from opero.policies.policy import Policy

__all__ = ["BoundFunction", "Roster", "declaration_of"]


@dataclass(frozen=True)
class BoundFunction:
    """A function that a registry looks after.

    Attributes:
        name: its name in `functions:`, "module:qualname".
        profile: the profile that it starts from, named by its decorator or by an entry; None if there is none.
        entries: the entries of `functions:` that match it, the least specific first.
        place: the file and line that bind it.
        function: the bound function.
    """

    name: str
    profile: str | None
    entries: tuple[str, ...]
    place: Source
    function: Any = field(repr=False)

    @property
    def policy(self) -> Policy:
        """The effective policy; resolved now if the function has not been called yet."""
        policy: Policy = self.function.binding.policy
        return policy


class Roster:
    """Bindings in order of registration, held by weak references."""

    def __init__(self) -> None:
        self._held: dict[int, weakref.ref[Binding]] = {}
        self._lock = RenewedLock()  # reentrant: a weak reference may be cleared while this thread holds the lock

    def add(self, binding: Binding) -> None:
        key = id(binding)

        def forget(gone: weakref.ref[Binding]) -> None:
            if self._held.get(key) is gone:  # another binding may have the same address by now
                self._held.pop(key, None)

        with self._lock:
            self._held[key] = weakref.ref(binding, forget)

    def discard(self, binding: Binding) -> None:
        self._held.pop(id(binding), None)

    def bindings(self) -> list[Binding]:
        """Return the bindings that are still alive."""
        with self._lock:
            references = list(self._held.values())
        return [binding for reference in references if (binding := reference()) is not None]


def declaration_of(binding: Binding) -> Declaration:
    """Return the declaration of a binding that a registry looks after."""
    assert binding.declaration is not None, "a registry only looks after declared functions"
    return binding.declaration
