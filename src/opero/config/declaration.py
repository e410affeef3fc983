"""What code states about one function: its decorator, where that is, and its options."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

from opero.dataclass import dataclass
from opero.runtime.functions import names_of

NO_FIELDS: Mapping[str, Any] = {}
"""What a function without options states."""


@dataclass(frozen=True, slots=True, eq=False)
class Declaration:
    """What code states about one function.

    Attributes:
        name: its name in `functions:`, "module:qualname".
        profile: the name of its profile, or None.
        below: the fields of the policy that holds where there is no profile.
        fields: the decorator's own options, as nested fields, which lie over either.
        by: what states it: "@opero", "@opmap", "Registry.bind".
        place: the file and line of that statement.
        names_registry: whether it names its registry; if not, the default registry looks after it.
        whole: the kinds of policy among `fields` that are given whole. Any other kind exists through its options alone.
        mapped: whether the bound function takes many items, as `@opmap` makes it.
    """

    name: str
    profile: str | None
    below: Mapping[str, Any] = field(default_factory=lambda: NO_FIELDS, repr=False)  # may contain a secret
    fields: Mapping[str, Any] = field(default_factory=lambda: NO_FIELDS, repr=False)
    by: str = "@opero"
    place: tuple[str, int] = ("", 0)
    names_registry: bool = False
    whole: frozenset[str] = frozenset()
    mapped: bool = False


def name_in_config(function: Callable[..., Any]) -> str:
    """Return a function's name in `functions:`, "module:qualname", also if its module runs as a program.

    A process that multiprocessing starts by spawn or forkserver has the program's module as `__mp_main__`.
    """
    module, qualname = names_of(function)
    if module in ("__main__", "__mp_main__"):
        spec = getattr(sys.modules.get(module), "__spec__", None)
        module = spec.name.removesuffix(".__main__") if spec is not None else "__main__"
    return f"{module}:{qualname}"


def where(depth: int) -> tuple[str, int]:
    """Return the file and line of the call `depth` frames above the caller; ("", 0) if there are fewer frames."""
    try:
        frame = sys._getframe(depth + 1)
    except ValueError:
        return "", 0
    return frame.f_code.co_filename, frame.f_lineno
