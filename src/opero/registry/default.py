"""The default registry, loaded at first need, and the functions that will ask it when they are first called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from opero.binding.binding import Binding
from opero.binding.roster import Roster
from opero.bound import bind
from opero.config.declaration import Declaration, name_in_config
from opero.errors import ConfigError
from opero.runtime.forking import RenewedLock
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.binding.making import ExecutorProvider
    from opero.policies.policy import Policy
    from opero.registry.registry import Registry
    from opero.runtime.clock import Clock

_default: Registry | None = None
_default_lock = RenewedLock()  # reentrant: loading may import modules that ask for it
_unclaimed = Roster()
"""Functions that will ask the default registry when they are first called."""


def get_default_registry() -> Registry:
    """Return the registry that `@opero(policy="name")` uses: loaded at first need, or set by `set_default_registry`."""
    global _default  # noqa: PLW0603  # the one default registry
    with _default_lock:
        if _default is None:
            from opero.registry.registry import Registry

            loaded = Registry.load()
            _switch_on()
            _default = loaded
            _default._become_default(_unclaimed)
            _ask_again(_unclaimed.bindings())  # functions called before there was a configuration
        import_module("opero.integrations.serving").follow(_default)  # above this module
        return _default


def set_default_registry(registry: Registry | None) -> None:
    """Use this registry for every function that names none; None: load a new one at the next need.

    Functions that were called before ask it at their next call. Calls under way finish on the policy they began with.
    """
    global _default  # the one default registry
    if registry is not None:
        _switch_on()
    with _default_lock:
        before, _default = _default, registry
        released = _unclaimed.bindings() if before is None else before._release_default()
        for binding in released:
            _unclaimed.add(binding)
        if registry is not None:
            registry._become_default(_unclaimed)
        _ask_again(released)


def _switch_on() -> None:
    """Switch on what variables ask for, such as metrics. That is above this module, so it is loaded by name."""
    import_module("opero.integrations.switch").switch_on()


def _ask_again(bindings: list[Binding]) -> None:
    for binding in bindings:
        if not binding.is_late:
            binding.forget()


_told: set[str] = set()
"""The invalid configurations that have been reported."""


def _is_configured_for(declaration: Declaration) -> bool:
    """Return whether the default registry decides about a function without a profile.

    Raises:
        ConfigError: the configuration is invalid, and has an entry for this function.
    """
    from opero.config.function_entries import has_match
    from opero.config.location import is_configured

    if _default is None and not is_configured():
        return False
    try:
        get_default_registry()
    except ConfigError as error:
        if has_match(error._entries, declaration.name):
            raise
        said = "; ".join(f"{each.place}: {each.text}" if each.place else each.text for each in error.problems)
        if said not in _told:
            _told.add(said)
            text = "configuration: invalid, so functions that name no profile run on their own options: %s"
            log("configuration_warning", text, said, function=declaration.name)
        return _default is not None
    return True


class _Default:
    """Looks after functions that name no registry: it asks the default one, when that is first needed."""

    def _resolve(self, binding: Binding) -> None:
        """Ask the default registry. A function without a profile asks it only if there is a configuration at all, and
        does without one that is invalid, unless that has an entry for it."""
        declaration = binding.declaration
        names_none = declaration is not None and declaration.profile is None
        if declaration is not None and names_none and not _is_configured_for(declaration):
            assert binding.own_policy is not None
            binding.settle(binding.prepare(binding.own_policy))
            return
        registry = _default if names_none else None  # what it serves may be wrong, but not what it configures
        (get_default_registry() if registry is None else registry)._resolve(binding)
        _unclaimed.discard(binding)

    def _provider(self, declaration: Declaration) -> ExecutorProvider | None:
        if declaration.profile is None:
            return None

        def provide(policy: Any, clock: Clock, make: Callable[..., Any]) -> Any:
            return get_default_registry()._provider(declaration)(policy, clock, make)

        return provide


_owner = _Default()


def bind_declared(
    func: Any,
    policy: Policy | None,
    *,
    profile: str | None,
    below: Mapping[str, Any],
    fields: Mapping[str, Any],
    registry: Registry | None,
    clock: Clock | None,
    mapped: bool,
    place: tuple[str, int],
    whole: frozenset[str],
) -> Any:
    """Bind a function whose policy is resolved at its first call, so that modules may load before configuration.

    Args:
        func: the function.
        policy: the policy that its decorator states, if it names no profile; it is checked now.
        profile: the name of its profile, or None.
        below: the fields of the policy that holds where there is no profile.
        fields: the decorator's own options, as nested fields.
        registry: the registry that it names; None for the default one.
        clock: the source of time and randomness.
        mapped: whether the bound function takes many items.
        place: the file and line of the decorator.
        whole: the kinds of policy among `fields` that are given whole.
    """
    by = "@opmap" if mapped else "@opero"

    def make(function: Any, policy: Policy | None) -> Binding:
        name, names_registry = name_in_config(function), registry is not None
        declaration = Declaration(name, profile, below, fields, by, place, names_registry, whole, mapped)
        if registry is not None:
            return registry._binding(function, policy, declaration, clock)

        binding = Binding(
            function,
            policy,
            owner=_owner,
            declaration=declaration,
            clock=clock,
        )
        _unclaimed.add(binding)
        return binding

    return bind(policy, func, clock=clock, mapped=mapped, make=make)
