"""From one configuration to another, at once: everything is made and validated before anything changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from opero.config.code import place_of
from opero.config.report import Report
from opero.errors import ConfigError
from opero.logs import logger
from opero.switch import is_on, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opero.binding import Binding
    from opero.config.configuration import Configuration, Effective
    from opero.layers import Chain
    from opero.policies.policy import Policy
    from opero.registry.declarations import Declaration
    from opero.registry.sharing import SharedExecutors

__all__ = ["Changes", "change", "in_force"]


@dataclass(frozen=True)
class Changes:
    """What a change of the configuration has changed; it is false where that is nothing.

    Attributes:
        profiles: the profiles whose policies differ, that are new, or that are gone.
        functions: the bound functions whose policies differ.
    """

    profiles: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.profiles or self.functions)


def in_force(effective: Effective, configuration: Configuration) -> Policy:
    """A function's policy, or what is left of it when opero is switched off."""
    on = configuration.enabled and (effective.profile is not None or is_on())
    return effective.policy if on else plain(effective.policy)


def change(
    bindings: Callable[[], Iterable[Binding]],
    before: Configuration,
    after: Configuration,
    shared: SharedExecutors,
    commit: Callable[[], None],
) -> Changes:
    """Put a configuration in force for all bindings, or for none.

    Args:
        bindings: those that there are now; more may come while this works.
        before, after: the configurations.
        shared: the executors that functions share.
        commit: makes the new configuration the one that is asked from now on.

    Raises:
        ConfigError: a policy does not fit its function, or a function's profile is gone; nothing has changed.
    """
    report = after.report()
    draft = shared.draft()
    prepared: dict[int, tuple[Binding, Chain]] = {}
    for binding in bindings():
        chain = _prepare(binding, before, after, draft, report)
        if chain is not None:
            prepared[id(binding)] = binding, chain
    report.raise_if_any()
    shared.replaced_by(draft, after.policies)
    commit()
    functions = []
    for binding in bindings():
        if id(binding) in prepared:
            functions.append(_declared(binding).name)
            binding.enforce(prepared[id(binding)][1])
        else:
            _catch_up(binding, before, after, shared)
    names = {**before.policies, **after.policies}
    profiles = [name for name in names if before.policies.get(name) != after.policies.get(name)]
    return Changes(tuple(sorted(profiles)), tuple(sorted(functions)))


def _prepare(
    binding: Binding, before: Configuration, after: Configuration, draft: SharedExecutors, report: Report
) -> Chain | None:
    """The layers that a binding will have; None where they do not change, or it has not needed any yet."""
    declaration = _declared(binding)
    if binding.is_late and before.effective(declaration, Report()) is None:
        return None  # what is wrong was wrong before; its first call will tell
    effective = after.effective(declaration, report)
    if effective is None or binding.is_late:
        return None
    policy, profile = in_force(effective, after), effective.profile
    is_same = profile is None or before.policies.get(profile) == after.policies[profile]
    if is_same and policy == binding.chain.policy:
        return None
    try:
        return binding.prepare(policy, draft.of(profile, after.policies))
    except (ConfigError, NotImplementedError) as error:
        report.add(place_of(declaration), str(error))
        return None


def _catch_up(binding: Binding, before: Configuration, after: Configuration, shared: SharedExecutors) -> None:
    """A function that was first called while the change was being made may have begun on the old configuration."""
    report = Report()
    chain = _prepare(binding, before, after, shared, report)
    if chain is not None:
        binding.enforce(chain)
    elif report.lines:
        logger.error("%s: goes on under its old policy: %s", _declared(binding).name, "; ".join(report.lines))


def _declared(binding: Binding) -> Declaration:
    assert binding.declaration is not None, "a registry looks after what was declared"
    return binding.declaration
