"""Whether what is bound and what is configured go together, without calling anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opero.binding.fit import check_fit
from opero.config.code_layer import place_of
from opero.config.function_entries import FunctionEntries
from opero.config.report import Report
from opero.errors import ConfigError, nearest
from opero.registry.reload import declared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opero.binding.binding import Binding
    from opero.config.configuration import Configuration
    from opero.config.sources import ConfigLayer

__all__ = ["check_bindings", "check_entries", "news"]


def check_bindings(configuration: Configuration, bindings: Sequence[Binding], *, complete: bool = True) -> None:
    """Check bound functions, and that each entry of `functions:` holds for one.

    Args:
        configuration: what they are checked against.
        bindings: the functions.
        complete: whether these are all. If not, an entry may hold for one that is not there.

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
    if complete:
        _report_unmatched(configuration.functions, names, report)
    report.raise_if_any()


def check_entries(layer: ConfigLayer, bindings: Sequence[Binding]) -> None:
    """Check that each entry that a layer has for functions holds for one of these.

    Raises:
        ConfigError: all that do not.
    """
    report = Report()
    _report_unmatched(FunctionEntries([layer]), [declared(each).name for each in bindings], report)
    report.raise_if_any()


def news(before: Configuration, after: Configuration, bindings: Sequence[Binding]) -> list[str]:
    """What is not wrong, but should be looked at, and was not so before: warnings, and new entries that hold for no
    function yet; their modules may be imported later."""
    known = before.functions.sections
    added = FunctionEntries(after.layers)
    added.sections = {name: sections for name, sections in added.sections.items() if name not in known}
    report = after.report()
    _report_unmatched(added, [declared(each).name for each in bindings], report)
    return [*(each for each in after.warnings if each not in before.warnings), *report.lines]


def _report_unmatched(entries: FunctionEntries, names: Sequence[str], report: Report) -> None:
    for entry in entries.unmatched(names):
        hint = nearest(entry, names) or "; no function is bound"
        report.add(entries.sections[entry][0].source, f"functions.{entry} holds for no bound function{hint}")
