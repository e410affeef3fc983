"""The registry: policies by name, and the functions bound to them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, Unpack, overload

from opero.binding.binding import Binding
from opero.binding.roster import Roster
from opero.bound import bind
from opero.config.code_layer import place_of
from opero.config.declaration import NO_FIELDS, Declaration, name_in_config, where
from opero.config.shadowed import shadowed_variables
from opero.errors import ConfigError, PolicyNotFoundError, nearest
from opero.policies.policy import Policy, names_of, options_to_fields, whole_policies
from opero.registry.profiles import Profiles
from opero.registry.reload import check_bound, in_force, trial_of
from opero.registry.roster import BoundFunction, declaration_of
from opero.runtime.functions import short_name
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.binding.making import ExecutorProvider
    from opero.config.configuration import Configuration, Effective
    from opero.config.sources import Leaf
    from opero.policies.bound_types import AsyncMapped, Mapped
    from opero.policies.decorated_types import Decorated
    from opero.policies.map_types import OnlyAny
    from opero.policies.options import Options
    from opero.registry.import_bindings import ImportBindings
    from opero.runtime.clock import Clock

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Registry(Profiles):
    """Named policies, and the functions bound to them: `registry["api"]` is the effective `Policy`.

    All functions bound to one name share its circuit breaker, rate limit and bulkhead, unless the profile sets
    `scope: function`, or the options or the `functions:` entry of a function change that policy.

    Args:
        policies: name → policy. `Registry.load` reads them from files and the environment.
        enabled: whether policies take effect. If False, functions are called directly, and only a fallback result
            still answers.
    """

    def __init__(self, policies: Mapping[str, Policy] | None = None, *, enabled: bool = True) -> None:
        super().__init__(policies, enabled=enabled)
        self._roster = Roster()
        self._waiting: Roster | None = None  # while this is the default registry: functions that have not asked it yet
        self._imports: ImportBindings | None = None
        self._told: set[str] = set()

    # Binding

    @overload
    def bind(
        self,
        func: Callable[Concatenate[T, P], OnlyAny],
        name: str,
        *,
        clock: Clock | None = None,
        mapped: Literal[True],
        **options: Unpack[Options],
    ) -> Mapped[T, P, Any]: ...
    @overload
    def bind(  # type: ignore[overload-overlap]  # the first match is the intended one
        self,
        func: Callable[Concatenate[list[T], P], Coroutine[Any, Any, list[R]]],
        name: str,
        *,
        clock: Clock | None = None,
        mapped: Literal[True],
        **options: Unpack[Options],
    ) -> AsyncMapped[T, P, R]: ...
    @overload
    def bind(  # type: ignore[overload-overlap]
        self,
        func: Callable[Concatenate[T, P], Coroutine[Any, Any, R]],
        name: str,
        *,
        clock: Clock | None = None,
        mapped: Literal[True],
        **options: Unpack[Options],
    ) -> AsyncMapped[T, P, R]: ...
    @overload
    def bind(
        self,
        func: Callable[Concatenate[list[T], P], list[R]],
        name: str,
        *,
        clock: Clock | None = None,
        mapped: Literal[True],
        **options: Unpack[Options],
    ) -> Mapped[T, P, R]: ...
    @overload
    def bind(
        self,
        func: Callable[Concatenate[T, P], R],
        name: str,
        *,
        clock: Clock | None = None,
        mapped: Literal[True],
        **options: Unpack[Options],
    ) -> Mapped[T, P, R]: ...
    @overload
    def bind(
        self,
        func: Callable[P, R],
        name: str,
        *,
        clock: Clock | None = None,
        mapped: Literal[False] = False,
        **options: Unpack[Options],
    ) -> Decorated[P, R]: ...
    def bind(
        self, func: Any, name: str, *, clock: Clock | None = None, mapped: bool = False, **options: Unpack[Options]
    ) -> Any:
        """Bind a function to a profile now, and return a callable with the same signature.

        `functions:` entries that match the function lie over the options. Reloads apply to it.

        Args:
            func: a function, method, class method or static method.
            name: the name of the profile.
            clock: the source of time and randomness. Default: the system's.
            mapped: whether to make it a function of many items, as `@opmap` does.
            **options: flat options, which lie over the profile.

        Raises:
            PolicyNotFoundError: there is no such profile.
            ConfigError: the name is not a string, or the policy does not fit the function.
        """
        return self._bind_now(func, name, clock, dict(options), mapped=mapped, by="Registry.bind", place=where(1))

    def _bind_now(
        self,
        func: Any,
        profile: str,
        clock: Clock | None,
        options: Mapping[str, Any],
        *,
        mapped: bool,
        by: str,
        place: tuple[str, int],
        name: str | None = None,
    ) -> Any:
        if not isinstance(profile, str):
            raise ConfigError(
                f"bind() expects the name of a profile, not a value of type {type(profile).__name__}; to use a policy "
                "object, call Policy(...).apply(function)"
            )
        fields = NO_FIELDS
        if options:
            fields = options_to_fields(options)
            Policy.check_fields(fields, names_of(options))
        whole = whole_policies(options)
        made: list[Binding] = []

        def make(function: Any, _: Policy | None) -> Binding:
            bound_as = name or name_in_config(function)
            declaration = Declaration(bound_as, profile, NO_FIELDS, fields, by, place, True, whole, mapped)
            made.append(self._binding(function, None, declaration, clock))
            try:
                now = self._in_force
                check_bound(made[0], self._effective(declaration, now.configuration), now, mapped=mapped)
            except BaseException:
                self._roster.discard(made[0])  # the error's traceback keeps it alive, but it is not bound
                raise
            return made[0]

        return bind(None, func, clock=clock, mapped=mapped, make=make)

    def bind_import(self, target: str, name: str, *, clock: Clock | None = None, **options: Unpack[Options]) -> Any:
        """Replace a function of a module by a bound one: `registry.bind_import("requests:get", "api")`.

        So a profile applies to third-party code that cannot be decorated. Modules that have already imported the name
        (`from requests import get`) keep the original: call this before they are imported.

        Args:
            target: "module:function" or "module:Class.method".
            name: the name of the profile.
            clock: as for `bind`.
            **options: as for `bind`.

        Returns:
            The bound function. `unbind_import(target)` restores the original.

        Raises:
            ConfigError: the target does not exist, is already bound, or cannot be replaced.
            PolicyNotFoundError: there is no such profile.
        """
        place = where(1)
        from opero.registry.import_bindings import ImportBindings  # few programs bind imports

        if self._imports is None:
            self._imports = ImportBindings()
        return self._imports.bind(
            target,
            lambda func: self._bind_now(
                func, name, clock, dict(options), mapped=False, by="Registry.bind_import", place=place, name=target
            ),
        )

    def unbind_import(self, target: str) -> None:
        """Restore what `bind_import` has replaced.

        Raises:
            ConfigError: this registry did not bind it, or it has been replaced since.
        """
        from opero.registry.import_bindings import ImportBindings

        (self._imports or ImportBindings()).unbind(target)

    def bindings(self) -> tuple[BoundFunction, ...]:
        """Return the functions that this registry looks after, sorted by name, including those not called yet."""
        return tuple(
            sorted((self._bound_function(binding) for binding in self._bindings()), key=lambda bound: bound.name)
        )

    def _become_default(self, waiting: Roster) -> None:
        """Look after the functions that name no registry, which ask this one from now on."""
        self._waiting = waiting
        self._alerts.start(self.configuration.alerts)

    def _release_default(self) -> list[Binding]:
        """Give up the functions that name no registry: this is no longer the default one."""
        released = [each for each in self._bindings() if not declaration_of(each).names_registry]
        self._waiting = None
        self._alerts.stop()
        for binding in released:
            self._roster.discard(binding)
        return released

    def _bound_function(self, binding: Binding) -> BoundFunction:
        declaration = declaration_of(binding)
        profile, entries = self._start_of(declaration)
        return BoundFunction(declaration.name, profile, entries, place_of(declaration), binding.callable)

    def _bindings(self) -> list[Binding]:
        waiting = self._waiting
        return [*self._roster.bindings(), *(waiting.bindings() if waiting is not None else ())]

    def _binding(self, function: Any, policy: Policy | None, declaration: Declaration, clock: Clock | None) -> Binding:
        binding = Binding(
            function,
            policy,
            owner=self,
            declaration=declaration,
            clock=clock,
        )
        self._roster.add(binding)
        return binding

    def _provider(self, declaration: Declaration) -> ExecutorProvider:
        def provide(policy: Any, clock: Clock, make: Callable[..., Any]) -> Any:
            profile, _ = self._start_of(declaration)
            return self._in_force.shared.of(profile)(policy, clock, make)

        return provide

    def _start_of(self, declaration: Declaration) -> tuple[str | None, tuple[str, ...]]:
        """Return the profile that a function starts from, and the entries that match it."""
        return self.configuration.start_of(declaration.name, declaration.profile)

    def _resolve(self, binding: Binding) -> None:
        """Resolve a function's policy and put it in force, when that is first needed.

        This takes no lock that a change of the configuration holds. If the configuration changes meanwhile, the
        function is resolved again.
        """
        put_in_force, declaration = binding.settle, declaration_of(binding)
        while True:
            now = self._in_force
            effective = self._effective(declaration, now.configuration)
            provider = None if effective.profile is None else now.shared.of(effective.profile)
            policy, trial = in_force(effective, now.configuration), trial_of(declaration, effective, now)
            pipeline = binding.prepare(policy, provider, effective.profile or "", trial)
            self._roster.add(binding)
            binding.stats.registry = self
            put_in_force(pipeline)
            if self._in_force is now and not now.shared.is_replaced:
                break
            put_in_force = binding.enforce
        for each in shadowed_variables(declaration, effective, now.configuration):
            if each not in self._told:
                self._told.add(each)
                log("configuration_warning", "%s", each, function=declaration.name)

    def _effective(self, declaration: Declaration, configuration: Configuration) -> Effective:
        """Return the effective policy of a function, with its sources.

        Raises:
            PolicyNotFoundError: there is no such profile.
            ConfigError: code and configuration contradict each other.
        """
        profile, _ = configuration.start_of(declaration.name, declaration.profile)
        if profile == declaration.profile and profile is not None and profile not in configuration.policies:
            raise PolicyNotFoundError(self._missing(profile), name=profile)
        report = configuration.report()
        effective = configuration.effective(declaration, report)
        report.raise_if_any()
        assert effective is not None
        return effective

    # Where values come from

    def explain(self, target: Any) -> Mapping[str, Leaf]:
        """Return where each value of a profile or bound function comes from: path ("retry.retries") → leaf.

        A leaf has the value, its source (file:line:column, variable, place of a decorator, or default), and the leaf
        that it shadows. The path "extends", or "policy" for a function, tells which profile it starts from.

        Args:
            target: the name of a profile, the name of a function ("module:qualname"), or a bound function.

        Raises:
            PolicyNotFoundError: there is no such profile.
            ConfigError: the function is not bound by this registry.
        """
        if isinstance(target, str) and (":" not in target or target in self):
            self[target]
            return self.configuration.leaves(target)
        if isinstance(target, str):
            found = [each for each in self._bindings() if declaration_of(each).name == target]
            if not found:
                names = [declaration_of(each).name for each in self._bindings()]
                raise ConfigError(f"no function {target!r} is bound by this registry{nearest(target, names)}")
            return self._effective(declaration_of(found[-1]), self.configuration).leaves()
        binding = getattr(target, "binding", None)
        if not isinstance(binding, Binding):
            name = short_name(target) if callable(target) else type(target).__name__
            raise ConfigError(
                f'explain() expects the name of a profile, "module:qualname" or a bound function, and {name} is not '
                "bound; pass the function that bind() returns"
            )
        if binding.declaration is None:
            raise ConfigError(f"{binding.name} was bound by Policy.apply, and so by no registry")
        if not any(each is binding for each in self._bindings()):
            raise ConfigError(f"{binding.name} is bound by another registry; call explain() of that one")
        return self._effective(binding.declaration, self.configuration).leaves()

    @property
    def is_default(self) -> bool:
        """Whether functions that name no registry ask this one."""
        return self._waiting is not None

    def check(self) -> None:
        """Check the profiles and every bound function, without calling any: what this accepts, the first call accepts.

        Raises:
            ConfigError: everything that is wrong: profiles that do not exist, `functions:` entries that match no
                function, policies that do not fit their function, cache backends and modes that are not available.
        """
        from opero.registry.checks import check

        check(self.configuration, self._bindings())
