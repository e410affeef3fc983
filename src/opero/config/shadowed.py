"""Variables that have no effect on a function, because code sets the same option."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import TYPE_CHECKING

from opero.config.code_layer import place_of
from opero.config.sources import DEFAULT
from opero.config.variable_names import PREFIX

if TYPE_CHECKING:
    from opero.config.configuration import Configuration, Effective
    from opero.config.declaration import Declaration
    from opero.config.sources import Leaf, Source


def shadowed_variables(declaration: Declaration, effective: Effective, configuration: Configuration) -> list[str]:
    """Return a message for each variable that has no effect on a function, as code sets the option that it sets.

    Code has precedence over a profile on purpose, but who sets a variable expects an effect.

    Args:
        declaration: what code states about the function.
        effective: its effective policy.
        configuration: what that was composed from.
    """
    is_in_code = declaration.place[1] > 0  # and not on the command line
    if not declaration.fields or effective.profile is None or not is_in_code or not _has_variables(configuration):
        return []
    found: dict[str, str] = {}
    for path, variable in _shadowed(effective.leaves(), place_of(declaration)):
        found.setdefault(variable, path)
    return [
        f"{variable} has no effect on {declaration.name}, as code takes precedence over a profile and sets {path} at "
        f"{place_of(declaration)}; remove it there, or set it in `functions:`, which takes precedence over code"
        for variable, path in found.items()
    ]


def _shadowed(leaves: Mapping[str, Leaf], own: Source) -> Iterator[tuple[str, str]]:
    """Yield what code sets, and the variable that would be effective without it."""
    for path, leaf in leaves.items():
        switch = f"{path.partition('.')[0]}.enabled"
        if _is_off(leaves.get(switch), own) and (variable := _variable_of(leaf.source)) is not None:
            yield switch, variable
            continue
        above = list(takewhile(lambda each: each.source in (own, DEFAULT), leaf.chain()))
        set_by_code = [each for each in above if each.source == own]
        below = above[-1].shadowed if set_by_code else None
        variable = None if below is None else _variable_of(below.source)
        if below is not None and variable is not None and str(below.value) != str(set_by_code[0].value):
            yield path, variable


def _is_off(switch: Leaf | None, own: Source) -> bool:
    return switch is not None and switch.source == own and switch.value is False


def _variable_of(source: Source) -> str | None:
    """Return the name of the variable that a source is, of a `.env` file or a secret as well; None for any other."""
    name = source.by or (source.name.rpartition("/")[2] if source.line is None else "")
    return name if name.upper().startswith(PREFIX) else None


def _has_variables(configuration: Configuration) -> bool:
    sections = (
        section for layer in configuration.layers for section in (layer.defaults, *layer.profiles.values()) if section
    )
    return any(_variable_of(section.source) for section in sections)
