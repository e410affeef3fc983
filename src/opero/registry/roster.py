"""The functions that a registry looks after, as it describes them."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Any

from opero.dataclass import dataclass

if TYPE_CHECKING:
    from opero.binding.binding import Binding
    from opero.config.declaration import Declaration
    from opero.config.sources import Source
    from opero.policies.policy import Policy


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


def declaration_of(binding: Binding) -> Declaration:
    """Return the declaration of a binding that a registry looks after."""
    assert binding.declaration is not None, "a registry only looks after declared functions"
    return binding.declaration
