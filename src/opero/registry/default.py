"""The default registry, loaded at first need, and the functions that will ask it when they are first called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opero.binding.binding import Binding
from opero.bound import bind
from opero.config.declaration import Declaration, name_in_config
from opero.registry.roster import Roster
from opero.runtime.forking import RenewedLock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opero.policies.policy import Policy
    from opero.registry.registry import Registry
    from opero.runtime.clock import Clock

__all__ = ["bind_declared", "get_default_registry", "set_default_registry"]

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

            _default = Registry.load()
            _default._become_default(_unclaimed)
            _ask_again(_unclaimed.bindings())  # functions called before there was a configuration
        return _default


def set_default_registry(registry: Registry | None) -> None:
    """Use this registry for every function that names none; None: load a new one at the next need.

    Functions that were called before ask it at their next call. Calls under way finish on the policy they began with.
    """
    global _default  # the one default registry
    with _default_lock:
        before, _default = _default, registry
        released = _unclaimed.bindings() if before is None else before._release_default()
        for binding in released:
            _unclaimed.add(binding)
        if registry is not None:
            registry._become_default(_unclaimed)
        _ask_again(released)


def _ask_again(bindings: list[Binding]) -> None:
    for binding in bindings:
        if not binding.is_late:
            binding.forget()


def _resolve_by_default(binding: Binding) -> None:
    """Ask the default registry. A function without a profile asks it only if there is a configuration at all."""
    if binding.declaration is not None and binding.declaration.profile is None and _default is None:
        from opero.config.location import is_configured

        if not is_configured():
            assert binding.own_policy is not None
            binding.settle(binding.known_pipeline or binding.prepare(binding.own_policy))
            return
    get_default_registry()._resolve(binding)
    _unclaimed.discard(binding)


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

        def provide(kind: str, policy: Any, make: Callable[..., Any]) -> Any:
            return get_default_registry()._provider(declaration)(kind, policy, make)

        binding = Binding(
            function,
            policy,
            resolve=_resolve_by_default,
            declaration=declaration,
            provider=provide if profile is not None else None,
            clock=clock,
        )
        _unclaimed.add(binding)
        return binding

    return bind(policy, func, clock=clock, mapped=mapped, make=make)
