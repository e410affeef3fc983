"""Check the configuration and the bound functions without calling any function."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from opero.binding.client_fit import client_refusal
from opero.binding.fit import check_fit, check_mode
from opero.config.code_layer import place_of
from opero.config.declaration import Declaration
from opero.config.document import CLIENT_LIBRARIES, CLIENTS
from opero.config.function_entries import FunctionEntries
from opero.config.report import Report
from opero.config.shadowed import shadowed_variables
from opero.config.sources import DEFAULT
from opero.errors import ConfigError, nearest
from opero.registry.roster import declaration_of

if TYPE_CHECKING:
    from opero.binding.binding import Binding
    from opero.config.configuration import Configuration
    from opero.config.sources import ConfigLayer, Leaf
    from opero.policies.policy import Policy

STORE_FIELDS = ("serializer", "cache_dir", "url", "arguments", "backend")
"""The fields of a cache policy that may keep its store from being opened."""


def check(configuration: Configuration, bindings: Sequence[Binding], *, complete: bool = True) -> None:
    """Check profiles and bound functions: what the first call would refuse is reported here.

    Args:
        configuration: what to check, and to check the functions against.
        bindings: the functions.
        complete: whether these are all functions. If not, an entry of `functions:` may match one that is missing.

    Raises:
        ConfigError: everything that is wrong.
    """
    report = configuration.report()
    for source, text in configuration.ignored:
        report.add(source, text)
    for name, policy in configuration.policies.items():
        _check_available(policy, partial(configuration.leaves, name), name, report)
    check_client_imports(configuration, report)
    for binding in bindings:
        _check_binding(binding, configuration, report)
    if complete:
        names = [declaration_of(each).name for each in bindings]
        names += [CLIENTS.format(each) if each in CLIENT_LIBRARIES else each for each in configuration.imports]
        _report_unmatched(configuration.functions, names, report)
    report.raise_if_any()


def check_client_imports(configuration: Configuration, report: Report) -> None:
    """Report profiles that `imports:` puts under the clients of a library, and that do not fit them."""
    for library, profile in configuration.imports.items():
        if library not in CLIENT_LIBRARIES:
            continue
        name = CLIENTS.format(library)
        declaration = Declaration(name, profile.value, by="imports")
        effective = configuration.effective(declaration, report)
        without = f'name a profile without it, or add {{}}: false to "{name}" in functions'
        reason = effective and client_refusal(effective.policy, without)
        if reason:
            report.add(profile.source, f"imports: {library} uses the profile {profile.value!r}: {reason}")


def shadowed(configuration: Configuration, bindings: Sequence[Binding]) -> list[str]:
    """Return a message for each variable that has no effect on a function, as code sets the same option."""
    found: list[str] = []
    for declaration in map(declaration_of, bindings):
        effective = configuration.effective(declaration, Report())
        if effective is not None:
            found += shadowed_variables(declaration, effective, configuration)
    return found


def unmappable(configuration: Configuration, bindings: Sequence[Binding]) -> list[str]:
    """Return a message for each function that can be called under its profile, and whose mode cannot map it."""
    found: list[str] = []
    for binding, declaration in ((each, declaration_of(each)) for each in bindings):
        effective = None if declaration.mapped else configuration.effective(declaration, Report())
        parallel = None if effective is None else effective.policy.active("parallel")
        if effective is None or parallel is None or binding.target.is_stream:
            continue
        try:
            check_mode(parallel.mode, declaration.name, is_async=binding.target.is_async)
        except ConfigError as error:
            source = effective.leaves()["parallel.mode"].source
            found.append(f"{source}: {error}; until then it can be called, and not mapped")
    return found


def _check_binding(binding: Binding, configuration: Configuration, report: Report) -> None:
    declaration = declaration_of(binding)
    effective = configuration.effective(declaration, report)
    if effective is None:
        return
    is_available = _check_available(effective.policy, effective.leaves, declaration.name, report)
    try:
        check_fit(binding.target, effective.policy)
        canary = effective.policy.active("canary")
        while canary is not None:
            other = configuration.effective(declaration, report, instead=canary.policy)
            if other is None:
                return
            check_fit(binding.target, other.policy)
            canary = other.policy.active("canary")
        if declaration.mapped and is_available:
            _check_mapped(binding, effective.policy)
    except ConfigError as error:
        report.add(place_of(declaration), str(error))


def _check_mapped(binding: Binding, policy: Policy) -> None:
    from opero.parallel.engine.mapper import Mapper

    Mapper(binding).mode_for(policy)


def _check_available(policy: Policy, leaves: Callable[[], Mapping[str, Leaf]], name: str, report: Report) -> bool:
    """Report a cache store or a mode that is not available here, where the file or variable asks for it.

    Args:
        policy: the whole policy.
        leaves: gives the source of each of its values.
        name: what to call the policy where code alone asks for it.
        report: receives what is wrong.
    """
    is_available = True
    for kind, fields, check_kind in CHECKS:
        if policy.active(kind) is None:
            continue
        try:
            check_kind(policy, kind)
        except ConfigError as error:
            text = str(error)
            leaf = _leaf_of(kind, fields, text, leaves())
            report.add(leaf.source, f"{leaf.section}.{text}" if leaf.section else name + text.removeprefix(kind))
            is_available = False
    return is_available


def _check_store(policy: Policy, name: str) -> None:
    cache = policy.cache
    if cache is not None and not (cache.is_in_memory and cache.serializer is None):
        from opero.cache.open_shared import check_shared

        check_shared(cache, name)


def _check_cluster(policy: Policy, name: str) -> None:
    if policy.parallel is not None and policy.parallel.mode in ("dask", "ray"):
        from opero.parallel.engine.mapper import check_cluster

        check_cluster(policy, name)


def _check_shared(policy: Policy, name: str) -> None:
    limit = policy.active(name)
    if limit is not None and limit.share == "redis":
        from opero.executors.state.redis_store import store_of

        store_of(limit, name)


CHECKS: tuple[tuple[str, tuple[str, ...], Callable[[Policy, str], None]], ...] = (
    ("cache", STORE_FIELDS, _check_store),
    ("parallel", ("mode",), _check_cluster),
    *((kind, ("url", "share"), _check_shared) for kind in ("rate_limit", "circuit_breaker", "bulkhead", "retry")),
)
"""Kind of policy → the fields that may ask for what is not available, and what checks it."""


def _leaf_of(kind: str, fields: Sequence[str], text: str, leaves: Mapping[str, Leaf]) -> Leaf:
    """The leaf to blame: of the fields that the text mentions, the first that is set; else the last field."""
    set_ones = [field for field in fields if leaves[f"{kind}.{field}"].source != DEFAULT]
    mentioned = [field for field in set_ones if re.search(rf"\b{field}\b", text, re.IGNORECASE)]
    return leaves[f"{kind}.{(*mentioned, *set_ones[-1:], *fields[-1:])[0]}"]


def check_entries(layer: ConfigLayer, bindings: Sequence[Binding]) -> None:
    """Check that each entry of a layer's `functions:` matches a bound function.

    Raises:
        ConfigError: the entries that do not.
    """
    report = Report()
    _report_unmatched(FunctionEntries([layer]), [declaration_of(each).name for each in bindings], report)
    report.raise_if_any()


def news(before: Configuration, after: Configuration, bindings: Sequence[Binding]) -> list[str]:
    """Return what should be checked and did not before: warnings, variables without effect on a function that has been
    called, and entries that match no function yet, as their modules may be imported later."""
    known = before.functions.sections
    added = FunctionEntries(after.layers)
    added.sections = {name: sections for name, sections in added.sections.items() if name not in known}
    report = after.report()
    _report_unmatched(added, [declaration_of(each).name for each in bindings], report)
    called = [each for each in bindings if not each.is_late]
    warnings = {*before.warnings, *shadowed(before, called)}
    return [*(each for each in (*after.warnings, *shadowed(after, called)) if each not in warnings), *report.lines]


def _report_unmatched(entries: FunctionEntries, names: Sequence[str], report: Report) -> None:
    for entry in entries.unmatched(names):
        hint = nearest(entry, names) or "; no function is bound"
        report.add(entries.sections[entry][0].source, f"functions.{entry} matches no bound function{hint}")
