"""Whether what is bound and what is configured go together, without calling anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opero.config.code import place_of
from opero.errors import ConfigError, nearest
from opero.layers import check_fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opero.binding import Binding
    from opero.config.configuration import Configuration

__all__ = ["check_bindings"]


def check_bindings(configuration: Configuration, bindings: Sequence[Binding]) -> None:
    """Check bound functions, and that each entry of `functions:` holds for one.

    Raises:
        ConfigError: all that is wrong.
    """
    report = configuration.report()
    names: list[str] = []
    for binding in bindings:
        declaration = binding.declaration
        assert declaration is not None
        names.append(declaration.name)
        effective = configuration.effective(declaration, report)
        if effective is None:
            continue
        try:
            check_fit(binding, effective.policy)
        except (ConfigError, NotImplementedError) as error:
            report.add(place_of(declaration), str(error))
    for entry in configuration.functions.unmatched(names):
        section = configuration.functions.sections[entry][0]
        hint = nearest(entry, names) or "; no function is bound"
        report.add(section.source, f"functions.{entry} holds for no bound function{hint}")
    report.raise_if_any()
