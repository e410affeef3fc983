"""What code says of a function: its decorator, where that stands, and its options. And lists that hold no function."""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opero.functions import names_of
from opero.registry.forking import RenewedLock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opero.binding import Binding
    from opero.config.sources import Source
    from opero.policies.policy import Policy
    from opero.registry.registry import Registry

__all__ = ["BoundFunction", "Declaration", "Roster", "name_in_config", "where"]


@dataclass(frozen=True, slots=True, eq=False)
class Declaration:
    """What code says of one function.

    Attributes:
        name: how `functions:` calls it: "module:qualname".
        profile: the profile's name, or None.
        below: what holds where there is no profile: a policy's fields.
        fields: the decorator's own options, as nested fields, which lie over either.
        by: what says so: "@opero", "@opmap", "Registry.bind".
        place: the file and line where it is said.
        registry: the registry that it names; None for the default one.
        whole: the policies among `fields` that are given whole; of others, each is there by its options alone.
        mapped: whether the bound function takes many items, as `@opmap` makes it.
    """

    name: str
    profile: str | None
    below: Mapping[str, Any] = field(default_factory=dict, repr=False)  # a secret may be among them
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False)
    by: str = "@opero"
    place: tuple[str, int] = ("", 0)
    registry: Registry | None = None
    whole: frozenset[str] = frozenset()
    mapped: bool = False


@dataclass(frozen=True)
class BoundFunction:
    """A function that a registry looks after.

    Attributes:
        name: how `functions:` calls it: "module:qualname".
        profile: the profile that it starts from, by its decorator or an entry; None for none.
        entries: the entries of `functions:` that hold for it, the least exact first.
        place: the file and line that bind it.
        function: what its users call.
    """

    name: str
    profile: str | None
    entries: tuple[str, ...]
    place: Source
    function: Any = field(repr=False)

    @property
    def policy(self) -> Policy:
        """The effective policy. One that has not been needed yet is resolved now."""
        policy: Policy = self.function.binding.policy
        return policy


def name_in_config(function: Callable[..., Any]) -> str:
    """How `functions:` calls a function: "module:qualname", also where its module runs as a program.

    A process that multiprocessing begins by spawn or forkserver has the program's module as `__mp_main__`.
    """
    module, qualname = names_of(function)
    if module in ("__main__", "__mp_main__"):
        spec = getattr(sys.modules.get(module), "__spec__", None)
        module = spec.name.removesuffix(".__main__") if spec is not None else "__main__"
    return f"{module}:{qualname}"


def where(depth: int) -> tuple[str, int]:
    """The file and line of the caller so many calls above the one who asks."""
    try:
        frame = sys._getframe(depth + 1)
    except ValueError:  # there are fewer
        return "", 0
    return frame.f_code.co_filename, frame.f_lineno


class Roster:
    """Bindings, in the order in which they came; those that nobody holds any more are gone."""

    def __init__(self) -> None:
        self._held: dict[int, weakref.ref[Binding]] = {}
        self._lock = RenewedLock()  # a weak reference may be cleared while this thread holds it

    def add(self, binding: Binding) -> None:
        key = id(binding)

        def forget(gone: weakref.ref[Binding]) -> None:
            if self._held.get(key) is gone:  # another may have come to the same address
                self._held.pop(key, None)

        with self._lock:
            self._held[key] = weakref.ref(binding, forget)

    def discard(self, binding: Binding) -> None:
        self._held.pop(id(binding), None)

    def bindings(self) -> list[Binding]:
        """Those that are there now."""
        with self._lock:
            references = list(self._held.values())
        return [binding for reference in references if (binding := reference()) is not None]
