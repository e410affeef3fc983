"""Names → policies, and everything that is bound to them: what they share, and what changes when they do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, Unpack, overload

from opero.binding.binding import Binding
from opero.bound import bind
from opero.config.code_layer import place_of
from opero.config.configuration import Configuration, Effective
from opero.config.declaration import Declaration, name_in_config, where
from opero.errors import ConfigError, PolicyNotFoundError, nearest
from opero.policies.policy import Policy, options_to_fields, whole_policies
from opero.registry.import_bindings import ImportBindings
from opero.registry.profile_state import SharedExecutors
from opero.registry.reload import Changes, InForce, change, in_force
from opero.registry.roster import BoundFunction, Roster, declaration_of
from opero.runtime.forking import RenewedLock
from opero.runtime.functions import short_name

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from opero.config.sources import Layer, Leaf
    from opero.policies.bound_types import AsyncMapped, Bound, Mapped, OnlyAny
    from opero.policies.options import Options
    from opero.registry.watch import Watch
    from opero.runtime.clock import Clock

__all__ = ["Registry"]


P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Registry(Mapping[str, Policy]):
    """Named policies, and the functions that are bound to them: `registry["api"]` is the effective `Policy`.

    All functions bound to one name share its circuit breaker, rate limit and bulkhead, unless the profile says
    `scope: function`, or a function's own options or `functions:` entry change that policy for itself.

    Args:
        policies: name → policy. `Registry.load` reads them from files and the environment.
        enabled: False binds every function plainly: only a fallback result still answers.
    """

    def __init__(self, policies: Mapping[str, Policy] | None = None, *, enabled: bool = True) -> None:
        self._read: Callable[[], Configuration] | None = None
        self._begin(Configuration.of(policies or {}, enabled=enabled))

    def _begin(self, configuration: Configuration) -> None:
        self._base = configuration
        self._in_force = InForce(configuration, SharedExecutors(configuration.policies))
        self._overrides: list[Layer] = []
        self._roster = Roster()
        self._waiting: Roster | None = None  # while this is the default registry: functions that have not asked it yet
        self._imports = ImportBindings()
        self._changing = RenewedLock()  # taken by whoever changes the configuration, and by no call

    @classmethod
    def load(
        cls,
        directory: str | Path | None = None,
        environment: str | None = None,
        environ: Mapping[str, str] | None = None,
        *,
        env_file: str | Path | None = None,
        secrets_dir: str | Path | None = None,
    ) -> Registry:
        """The profiles of an environment: `base.yaml`, `<environment>.yaml` over it, environment variables over both.

        Args:
            directory: where the files are. Default: `OPERO_CONFIG`, else `[tool.opero]` in pyproject.toml, else
                ./policies.
            environment: its name. Default: `OPERO_ENV`, else `ENVIRONMENT`, else "development".
            environ: the environment variables. Default: the process's own.
            env_file: a file of further variables. Default: `OPERO_ENV_FILE`, else ./.env where there is one.
            secrets_dir: a directory whose files are variables. Default: `OPERO_SECRETS_DIR`, else /run/secrets.

        Raises:
            ConfigError: something is wrong with a file or variable; all that is, each with its place.
        """
        from opero.config import load
        from opero.observe.logs import logger
        from opero.runtime.environment_files import working_directory

        base = working_directory()

        def read(directory: str | Path | None) -> Configuration:
            return load(directory, environment, environ, env_file=env_file, secrets_dir=secrets_dir, base=base)

        configuration = read(directory)
        for warning in configuration.warnings:
            logger.warning("%s", warning)
        registry = cls()
        registry._begin(configuration)
        # Read anew from the same place, wherever the working directory is by then.
        registry._read = partial(read, configuration.directory or directory)
        return registry

    @property
    def configuration(self) -> Configuration:
        """What is in force, with the source of every value."""
        return self._in_force.configuration

    def watched_paths(self) -> list[Path]:
        """The files and directories in which a change may mean another configuration."""
        return list(self.configuration.watched)

    # Names → policies

    def __getitem__(self, name: str) -> Policy:
        try:
            return self.configuration.policies[name]
        except KeyError:
            raise PolicyNotFoundError(self._missing(name), name=name) from None

    def _missing(self, name: str) -> str:
        configuration = self.configuration
        if self._read is not None and configuration.directory is None:
            return (
                f"no profile {name!r}, as no policy files were found: there is no ./policies here; set OPERO_CONFIG, "
                "or config of [tool.opero] in pyproject.toml, to their directory"
            )
        known = ", ".join(sorted(configuration.policies)) or "none"
        where = f" of environment {configuration.environment!r} in {configuration.directory}" if self._read else ""
        hint = nearest(name, configuration.policies).partition("; known")[0]
        return f"no profile {name!r} among the profiles{where} ({known}){hint}"

    def __iter__(self) -> Iterator[str]:
        return iter(self.configuration.policies)

    def __len__(self) -> int:
        return len(self.configuration.policies)

    def __repr__(self) -> str:
        return f"Registry({', '.join(sorted(self.configuration.policies))})"

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
    ) -> Bound[P, R]: ...
    def bind(
        self, func: Any, name: str, *, clock: Clock | None = None, mapped: bool = False, **options: Unpack[Options]
    ) -> Any:
        """Bind a function to a profile, now: a callable with the same signature.

        What `functions:` says of a function of that name lies over the options; a reload changes it, too.

        Args:
            func: a function, method, class method or static method.
            name: the profile's name.
            clock: where time and chance come from. Default: the system's.
            mapped: make it a function of many items, as `@opmap` does.
            **options: flat options, laid over the profile.

        Raises:
            PolicyNotFoundError: no profile of that name.
            ConfigError: that is no name, or the policy does not fit the function.
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
                f"a function is bound to a profile's name, and this is of type {type(profile).__name__}; a policy of "
                "its own is applied: Policy(...).apply(function)"
            )
        fields = options_to_fields(options)
        Policy.check_fields(fields)
        whole = whole_policies(options)
        made: list[Binding] = []

        def make(function: Any, _: Policy | None) -> Binding:
            bound_as = name or name_in_config(function)
            declaration = Declaration(bound_as, profile, {}, fields, by, place, True, whole, mapped)
            made.append(self._binding(function, None, declaration, clock))
            try:
                made[0].resolved()
            except BaseException:
                self._roster.discard(made[0])  # whoever holds the error holds it, and it is not bound
                raise
            return made[0]

        return bind(None, func, clock=clock, mapped=mapped, make=make)

    def bind_import(self, target: str, name: str, *, clock: Clock | None = None, **options: Unpack[Options]) -> Any:
        """Bind a function where it is: `registry.bind_import("requests:get", "api")` puts the bound one in its place.

        So calls of third-party code that nobody decorated obey a profile. Who has taken the name already (`from
        requests import get`) keeps the function as it was: bind before that is imported.

        Args:
            target: "module:function" or "module:Class.method".
            name: the profile's name.
            clock, **options: as `bind`.

        Returns:
            The bound function. `unbind_import(target)` puts the original back.

        Raises:
            ConfigError: there is nothing of that name, it is bound already, or it cannot be replaced.
            PolicyNotFoundError: no profile of that name.
        """
        place = where(1)
        return self._imports.bind(
            target,
            lambda func: self._bind_now(
                func, name, clock, dict(options), mapped=False, by="Registry.bind_import", place=place, name=target
            ),
        )

    def unbind_import(self, target: str) -> None:
        """Put back what `bind_import` has replaced.

        Raises:
            ConfigError: it was not bound by this registry, or somebody has replaced it since.
        """
        self._imports.unbind(target)

    def bindings(self) -> tuple[BoundFunction, ...]:
        """The functions that this registry looks after, by name: decorated ones, though never called yet, too."""
        return tuple(
            sorted((self._bound_function(binding) for binding in self._bindings()), key=lambda bound: bound.name)
        )

    def _become_default(self, waiting: Roster) -> None:
        """Look after the functions that name no registry, which ask this one from now on."""
        self._waiting = waiting

    def _release_default(self) -> list[Binding]:
        """Give up the functions that name no registry: this is no longer the default one."""
        released = [each for each in self._bindings() if not declaration_of(each).names_registry]
        self._waiting = None
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
            resolve=self._resolve,
            declaration=declaration,
            provider=self._provider(declaration),
            clock=clock,
        )
        self._roster.add(binding)
        return binding

    def _provider(self, declaration: Declaration) -> Any:
        def provide(kind: str, policy: Any, make: Callable[..., Any]) -> Any:
            profile, _ = self._start_of(declaration)
            return self._in_force.shared.of(profile)(kind, policy, make)

        return provide

    def _start_of(self, declaration: Declaration) -> tuple[str | None, tuple[str, ...]]:
        """The profile that a function starts from, and the entries that hold for it."""
        return self.configuration.start_of(declaration.name, declaration.profile)

    def _resolve(self, binding: Binding) -> None:
        """Put in force what this registry says of a function, when that is first needed. It takes no lock that a
        change of the configuration holds: should one come in between, the function is asked after again."""
        put_in_force = binding.settle
        while True:
            now = self._in_force
            effective = self._effective(declaration_of(binding), now.configuration)
            provider = None if effective.profile is None else now.shared.of(effective.profile)
            pipeline = binding.prepare(in_force(effective, now.configuration), provider)
            self._roster.add(binding)
            put_in_force(pipeline)
            if self._in_force is now and not now.shared.is_over:
                return
            put_in_force = binding.enforce

    def _effective(self, declaration: Declaration, configuration: Configuration) -> Effective:
        """
        Raises:
            PolicyNotFoundError: there is no such profile.
            ConfigError: what code and the configuration say does not go together.
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
        """Where every value of a profile, or of a bound function, comes from: path ("retry.retries") → its leaf.

        A leaf has the value, its source (file:line:column, variable, decorator's place, or default), and the leaf that
        it shadows. "extends", or "policy" of a function, tells which profile it starts from.

        Args:
            target: a profile's name, a function's ("module:qualname"), or a bound function itself.

        Raises:
            PolicyNotFoundError: there is no such profile.
            ConfigError: no function of that name is bound here, or this function is not.
        """
        if isinstance(target, str) and (":" not in target or target in self):
            self[target]
            return self.configuration.sources[target]
        if isinstance(target, str):
            found = [each for each in self._bindings() if declaration_of(each).name == target]
            if not found:
                names = [declaration_of(each).name for each in self._bindings()]
                raise ConfigError(f"no function {target!r} is bound here{nearest(target, names)}")
            return self._effective(declaration_of(found[-1]), self.configuration).leaves()
        binding = getattr(target, "binding", None)
        if not isinstance(binding, Binding):
            name = short_name(target) if callable(target) else type(target).__name__
            raise ConfigError(
                f'explain takes a profile\'s name, "module:qualname" or a bound function, and {name} is none: bind it, '
                "and pass what bind() gives"
            )
        if binding.declaration is None:
            raise ConfigError(f"{binding.name} was bound by Policy.apply, which asks no registry")
        if not any(each is binding for each in self._bindings()):
            raise ConfigError(f"{binding.name} is not bound by this registry; ask the one that it is bound by")
        return self._effective(binding.declaration, self.configuration).leaves()

    def check(self) -> None:
        """Check the profiles and every bound function, without calling any: what this accepts, the first call accepts.

        Raises:
            ConfigError: everything that is wrong: profiles that do not exist, `functions:` entries that match no
                function, policies that do not fit their function, cache backends and modes that are not available.
        """
        from opero.registry.checks import check

        check(self.configuration, self._bindings())

    # Changes

    def reload(self) -> Changes:
        """Read files and variables again. Everything is validated first, and then holds at once.

        Calls under way finish on what they began with; later ones use the new policies. What a breaker, rate limit,
        bulkhead or cache has counted or keeps goes on where its policy did not change, and by the guide's rules where
        it did. `.stats` go on.

        Returns:
            The profiles and functions whose policies have changed.

        Raises:
            ConfigError: something is wrong; nothing has changed.
        """
        read = self._read
        if read is None:
            raise ConfigError("this registry was made of policies in code, so there is nothing to read again")
        from opero.observe.logs import logger
        from opero.registry.checks import news

        with self._changing:
            before = self._base
            changes = self._change(read(), self._overrides)
            after = self._base
        for each in news(before, after, self._bindings()):
            logger.warning("%s", each)
        return changes

    @contextmanager
    def override(
        self, profiles: Mapping[str, Any] | None = None, /, *, functions: Mapping[str, Any] | None = None, **named: Any
    ) -> Iterator[Registry]:
        """For tests: within this, profiles say something else: `with registry.override(api={"retry": {"retries": 0}}):`

        It lies over files and variables, and over the overrides around it, for every thread. Bound functions follow.

        Args:
            profiles: name → policies, in all the forms of a file, or as models; for names that are no Python names.
            functions: the same for entries of `functions:`.
            **named: as `profiles`.

        Raises:
            PolicyNotFoundError: there is no such profile.
            ConfigError: something in it is wrong, or holds for no bound function; nothing has changed.
        """
        from opero.registry.checks import check_entries
        from opero.registry.overrides import layer_of

        layer = layer_of({**(profiles or {}), **named}, functions or {}, self.configuration, where(2))
        check_entries(layer, self._bindings())
        with self._changing:
            self._change(self._base, [*self._overrides, layer])
        try:
            yield self
        finally:
            with self._changing:
                self._change(self._base, [each for each in self._overrides if each is not layer], anyhow=True)

    def _change(self, base: Configuration, overrides: list[Layer], *, anyhow: bool = False) -> Changes:
        """Put another configuration in force, if all of it is right, or `anyhow`. Whoever calls this holds
        `_changing`."""
        configuration = base
        report = base.report()
        for layer in overrides:
            configuration = configuration.over(layer, report)
        report.raise_if_any()

        def commit(draft: InForce) -> None:
            self._base, self._overrides, self._in_force = base, overrides, draft

        return change(self._bindings, self._in_force, configuration, commit, anyhow=anyhow)

    def watch(self, *, files: bool = True, sighup: bool = False) -> Watch:
        """Reload whenever a file changes, or the process receives SIGHUP. An invalid file changes nothing.

        Args:
            files: watch the policies directory, the `.env` file and the secrets directory.
            sighup: reload on SIGHUP; only possible in the main thread.

        Returns:
            The running watch; `watch.stop()` or a `with` block ends it.

        Raises:
            ConfigError: there is nothing to watch, or SIGHUP cannot be used here.
        """
        if not files and not sighup:
            raise ConfigError("watch(files=False) watches nothing; use sighup=True, or leave files=True")
        if self._read is None and not files:
            raise ConfigError("this registry was made from policies in code, so there is nothing to reload")
        if files and not self.watched_paths():
            raise ConfigError("this registry was not loaded from files, so there is nothing to watch")
        from opero.registry.watch import Watch

        def paths() -> list[Path]:
            # Files as well as their directories: a file may be a link into a directory that is not watched.
            return list(dict.fromkeys([*self.watched_paths(), *self.configuration.files]))

        return Watch(self.reload, paths if files else None, sighup=sighup)
