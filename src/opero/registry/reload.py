"""Replace one configuration by another at once: everything is built and validated before anything changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from opero.binding.canary import Trial
from opero.binding.disabled import is_on, plain
from opero.binding.fit import check_fit
from opero.config.code_layer import place_of
from opero.config.report import Report
from opero.dataclass import dataclass
from opero.errors import ConfigError
from opero.events import ConfigurationReloaded
from opero.observe.subscriptions import emit
from opero.registry.roster import declaration_of
from opero.runtime.forking import undivided
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.binding.binding import Binding
    from opero.binding.invocation import Pipeline
    from opero.config.configuration import Configuration, Effective
    from opero.config.declaration import Declaration
    from opero.policies.policy import Policy
    from opero.registry.profile_state import SharedExecutors


@dataclass(frozen=True)
class Changes:
    """What a new configuration has changed; false if nothing has changed.

    Attributes:
        profiles: profiles whose policies differ, that are new, or that were removed.
        functions: bound functions whose policies differ.
        alerts: alerts that differ, that are new, or that were removed.
    """

    profiles: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    alerts: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.profiles or self.functions or self.alerts)


@dataclass(frozen=True, slots=True)
class InForce:
    """The configuration in force, and the executors that its functions share. Both change in one assignment."""

    configuration: Configuration
    shared: SharedExecutors


def in_force(effective: Effective, configuration: Configuration) -> Policy:
    """Return a function's policy, or what is left of it while opero is switched off."""
    on = configuration.enabled and effective.enabled and (effective.profile is not None or is_on())
    return effective.policy if on else plain(effective.policy)


def trial_of(
    declaration: Declaration, effective: Effective, now: InForce, seen: tuple[str | None, ...] = ()
) -> Trial | None:
    """Return what a share of a function's calls runs on; None if it has no canary.

    Args:
        declaration: what code states about the function.
        effective: its policy.
        now: what is in force, or will be.
        seen: the profiles whose canary this is.

    Raises:
        ConfigError: the policy that the function has under the other profile is invalid.
    """
    configuration = now.configuration
    canary = in_force(effective, configuration).active("canary")
    if canary is None or canary.policy in seen:
        return None
    report = configuration.report()
    other = configuration.effective(declaration, report, instead=canary.policy)
    report.raise_if_any()
    assert other is not None
    further = trial_of(declaration, other, now, (*seen, effective.profile))
    return Trial(canary, other.policy, configuration.policies[canary.policy], further, now.shared.of(canary.policy))


def check_fits(binding: Binding, policy: Policy, trial: Trial | None) -> None:
    """Check that the policies of a function and of its canary fit it, without building a pipeline.

    Raises:
        ConfigError: one does not.
    """
    check_fit(binding.target, policy)
    if trial is not None:
        check_fits(binding, trial.policy, trial.further)


def check_bound(binding: Binding, effective: Effective, now: InForce, *, mapped: bool) -> None:
    """Check that a function can be bound. Its pipeline is built when it is first called, unless that checks more.

    Args:
        binding: the function.
        effective: its policy.
        now: what is in force.
        mapped: whether it is a function of many items.

    Raises:
        ConfigError: the policy does not fit the function.
    """
    policy = in_force(effective, now.configuration)
    if mapped or policy.active("cache") is not None:  # its mode or store may not be available
        binding.resolved()
    else:
        check_fits(binding, policy, trial_of(declaration_of(binding), effective, now))


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
            _log_unfit(binding, own)
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
    functions = [
        declaration_of(binding).name
        for binding in known
        if id(binding) in prepared
        or (binding.is_late and _differs(declaration_of(binding), before.configuration, after))
    ]
    old = before.configuration
    names = {**old.policies, **after.policies}
    changed = [name for name in names if _of_profile(name, old) != _of_profile(name, after)]
    alerts = [name for name in {**old.alerts, **after.alerts} if old.alerts.get(name) != after.alerts.get(name)]
    found = Changes(tuple(sorted(changed)), tuple(sorted(functions)), tuple(sorted(alerts)))
    if found and ConfigurationReloaded.handlers:
        from opero.config.differences import changes

        values = changes(old, after)
        emit(ConfigurationReloaded, changes=values, profiles=found.profiles, functions=found.functions)
    return found


def _of_profile(name: str, configuration: Configuration) -> object:
    policy = configuration.policies.get(name)
    return None if policy is None else (policy, configuration.is_enabled(name))


def _prepare(binding: Binding, before: Configuration, after: InForce, report: Report) -> Pipeline | None:
    """Build the pipeline that a binding will have; None if it does not change, or none has been needed yet."""
    declaration, configuration = declaration_of(binding), after.configuration
    if binding.is_late and (_fits(binding, configuration) or not _fits(binding, before)):
        return None  # if it did not fit before either, its first call will raise the error
    effective = configuration.effective(declaration, report)
    if effective is None:
        return None
    policy, profile = in_force(effective, configuration), effective.profile
    try:
        trial = trial_of(declaration, effective, after)
        if binding.is_late:
            check_fits(binding, policy, trial)
            return None
        is_same = binding.stats.policy == (profile or "") and (
            profile is None or before.policies.get(profile) == configuration.policies[profile]
        )
        held = binding.pipeline.canary
        if is_same and policy == binding.pipeline.policy and trial == (None if held is None else held.trial):
            return None
        return binding.prepare(policy, after.shared.of(profile), profile or "", trial)
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


def _differs(declaration: Declaration, before: Configuration, after: Configuration) -> bool:
    """Return whether a function that has not been called yet will have another policy than it would have had."""
    old, new = (each.effective(declaration, Report()) for each in (before, after))
    return new is not None and (old is None or (old.policy, old.enabled) != (new.policy, new.enabled))


def _catch_up(binding: Binding, before: Configuration, after: InForce) -> None:
    """Update a function that was first called during the change, and may have been resolved by the old one."""
    report = after.configuration.report()
    pipeline = _prepare(binding, before, after, report)
    if pipeline is not None:
        binding.enforce(pipeline)
    elif report.lines and not binding.is_late:
        binding.forget()
        _log_unfit(binding, report)


def _log_unfit(binding: Binding, report: Report) -> None:
    name, text = declaration_of(binding).name, "%s: the new policy does not fit: %s"
    log("policy_unfit", text, name, "; ".join(report.lines), function=name)
