"""Replace one configuration by another at once: everything is built and validated before anything changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from opero.binding.disabled import is_on, plain
from opero.binding.fit import check_fit
from opero.config.code_layer import place_of
from opero.config.report import Report
from opero.errors import ConfigError
from opero.observe.logs import logger
from opero.registry.roster import declaration_of
from opero.runtime.forking import undivided

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opero.binding.binding import Binding
    from opero.binding.invocation import Pipeline
    from opero.config.configuration import Configuration, Effective
    from opero.policies.policy import Policy
    from opero.registry.profile_state import SharedExecutors

__all__ = ["Changes", "InForce", "change", "in_force"]


@dataclass(frozen=True)
class Changes:
    """What a new configuration has changed; false if nothing has changed.

    Attributes:
        profiles: profiles whose policies differ, that are new, or that were removed.
        functions: bound functions whose policies differ.
    """

    profiles: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.profiles or self.functions)


@dataclass(frozen=True, slots=True)
class InForce:
    """The configuration in force, and the executors that its functions share. Both change in one assignment."""

    configuration: Configuration
    shared: SharedExecutors


def in_force(effective: Effective, configuration: Configuration) -> Policy:
    """Return a function's policy, or what is left of it while opero is switched off."""
    on = configuration.enabled and (effective.profile is not None or is_on())
    return effective.policy if on else plain(effective.policy)


def change(
    bindings: Callable[[], Iterable[Binding]],
    before: InForce,
    after: Configuration,
    commit: Callable[[InForce], None],
    *,
    anyhow: bool = False,
) -> Changes:
    """Put a configuration in force for all bindings, or for none.

    Args:
        bindings: returns the bindings; more may be added while this runs.
        before: what is in force.
        after: the configuration to put in force.
        commit: publishes it, so that functions resolved from now on use it.
        anyhow: put it in force even if a policy does not fit its function; such a function is resolved again at its
            next call, which raises the error.

    Raises:
        ConfigError: a policy does not fit its function, or a function's profile was removed; nothing has changed.
    """
    report = after.report()
    draft = InForce(after, before.shared.successor(after.policies))
    prepared: dict[int, Pipeline] = {}
    unfit: set[int] = set()
    known = list(bindings())  # keeps them alive, as they are identified by their address
    for binding in known:
        own = after.report() if anyhow else report
        pipeline = _prepare(binding, before.configuration, draft, own)
        if pipeline is not None:
            prepared[id(binding)] = pipeline
        elif anyhow and own.lines and not binding.is_late:
            unfit.add(id(binding))
            logger.warning("%s: the new policy does not fit: %s", declaration_of(binding).name, "; ".join(own.lines))
    report.raise_if_any()

    def swap() -> None:
        for binding in {id(each): each for each in (*known, *bindings())}.values():
            if id(binding) in prepared:
                binding.enforce(prepared[id(binding)])
            elif id(binding) in unfit:
                binding.forget()
            else:
                _catch_up(binding, before.configuration, draft)

    with undivided:
        try:
            before.shared.migrate(draft.shared)
        finally:
            commit(draft)
    try:
        swap()
    except KeyboardInterrupt:  # a short delay is better than functions on two configurations
        swap()
        raise
    functions = [declaration_of(binding).name for binding in known if id(binding) in prepared]
    names = {**before.configuration.policies, **after.policies}
    changed = [name for name in names if before.configuration.policies.get(name) != after.policies.get(name)]
    return Changes(tuple(sorted(changed)), tuple(sorted(functions)))


def _prepare(binding: Binding, before: Configuration, after: InForce, report: Report) -> Pipeline | None:
    """Build the pipeline that a binding will have; None if it does not change, or none has been needed yet."""
    declaration, configuration = declaration_of(binding), after.configuration
    if binding.is_late and not _fits(binding, before):
        return None  # it did not fit before either; its first call will raise the error
    effective = configuration.effective(declaration, report)
    if effective is None:
        return None
    policy, profile = in_force(effective, configuration), effective.profile
    try:
        if binding.is_late:
            check_fit(binding.target, policy)
            return None
        is_same = profile is None or before.policies.get(profile) == configuration.policies[profile]
        if is_same and policy == binding.pipeline.policy:
            return None
        return binding.prepare(policy, after.shared.of(profile))
    except ConfigError as error:
        report.add(place_of(declaration), str(error))
        return None


def _fits(binding: Binding, configuration: Configuration) -> bool:
    """Return whether a policy fits a function that has not been called yet, as far as that is known."""
    effective = configuration.effective(declaration_of(binding), Report())
    if effective is None:
        return False
    try:
        check_fit(binding.target, effective.policy)
    except ConfigError:
        return False
    return True


def _catch_up(binding: Binding, before: Configuration, after: InForce) -> None:
    """Update a function that was first called during the change, and may have been resolved by the old one."""
    report = after.configuration.report()
    pipeline = _prepare(binding, before, after, report)
    if pipeline is not None:
        binding.enforce(pipeline)
    elif report.lines and not binding.is_late:
        binding.forget()
        logger.warning("%s: the new policy does not fit: %s", declaration_of(binding).name, "; ".join(report.lines))
