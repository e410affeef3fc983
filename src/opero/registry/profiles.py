"""The profiles of a registry, and how they change: reloads, overrides, watches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from opero.config.code_layer import source_at
from opero.config.configuration import Configuration
from opero.config.declaration import where
from opero.errors import ConfigError, PolicyNotFoundError, nearest
from opero.policies.policy import Policy
from opero.registry.alerts import ConfiguredAlerts
from opero.registry.profile_state import SharedExecutors
from opero.registry.reload import Changes, InForce, change
from opero.runtime.environment_files import working_directory
from opero.runtime.forking import RenewedLock
from opero.runtime.log import log

if TYPE_CHECKING:
    from pathlib import Path

    from opero.alerts.manager import AlertManager
    from opero.binding.binding import Binding
    from opero.config.declaration import Declaration
    from opero.config.sources import ConfigLayer, Source
    from opero.registry.statistics import ProfileState
    from opero.registry.watch import Watch


class Profiles(Mapping[str, Policy]):
    """Named policies from files, variables and code, and everything that changes them. `Registry` binds functions.

    Args:
        policies: name → policy.
        enabled: whether policies take effect.

    Attributes:
        rejected: why the last reload changed nothing; None if it succeeded, or there was none.
    """

    def __init__(self, policies: Mapping[str, Policy] | None = None, *, enabled: bool = True) -> None:
        self.rejected: ConfigError | None = None
        self._read: Callable[[], Configuration] | None = None
        self._alerts = ConfiguredAlerts()
        self._begin(Configuration.of(policies or {}, enabled=enabled))

    def _begin(self, configuration: Configuration) -> None:
        self._base = configuration
        self._in_force = InForce(configuration, SharedExecutors(configuration.policies))
        self._overrides: list[ConfigLayer] = []
        self._changing = RenewedLock()  # held while the configuration changes; no call takes it

    @classmethod
    def load(
        cls,
        directory: str | Path | None = None,
        environment: str | None = None,
        environ: Mapping[str, str] | None = None,
        *,
        env_file: str | Path | None = None,
        secrets_dir: str | Path | None = None,
    ) -> Self:
        """Load an environment: `base.yaml`, `<environment>.yaml` over it, and environment variables over both.

        Args:
            directory: the directory of the files. Default: `OPERO_CONFIG`, else the nearest of `[tool.opero]` in a
                pyproject.toml and a directory `policies`, from the working directory up to the project's root.
            environment: the name of the environment. Default: `OPERO_ENV`, else `ENVIRONMENT`, else "development".
            environ: the environment variables. Default: those of the process.
            env_file: a file of further variables. Default: `OPERO_ENV_FILE`, else the nearest `.env` up to the root.
            secrets_dir: a directory whose files are variables. Default: `OPERO_SECRETS_DIR`, else /run/secrets.

        Raises:
            ConfigError: files or variables are invalid; it lists all problems, each with its place.
        """
        from opero.config.settings import load

        base = working_directory()

        def read(directory: str | Path | None) -> Configuration:
            return load(directory, environment, environ, env_file=env_file, secrets_dir=secrets_dir, base=base)

        configuration = read(directory)
        for warning in configuration.warnings:
            log("configuration_warning", "%s", warning)
        registry = cls()
        registry._begin(configuration)
        # A reload reads the same place, even if the working directory has changed by then.
        registry._read = partial(read, configuration.directory or directory)
        return registry

    @property
    def configuration(self) -> Configuration:
        """The configuration in force, with the source of every value."""
        return self._in_force.configuration

    @property
    def alerts(self) -> AlertManager | None:
        """What runs the alerts of the configuration; None if it has none, or this is not the default registry."""
        return self._alerts.manager

    def watched_paths(self) -> list[Path]:
        """Return the files and directories on which the configuration depends."""
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
                f"no profile {name!r}: no policy files were found, as there is no directory policies in "
                f"{working_directory()} or above it in its project; set OPERO_CONFIG, or config of [tool.opero] in "
                "pyproject.toml, to their directory"
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
        return f"{type(self).__name__}({', '.join(sorted(self.configuration.policies))})"

    # What happens

    @property
    @abstractmethod
    def is_default(self) -> bool:
        """Whether functions that name no registry ask this one."""

    @abstractmethod
    def _start_of(self, declaration: Declaration) -> tuple[str | None, tuple[str, ...]]:
        """Return the profile that a function starts from, and the entries that match it."""

    def stats(self) -> dict[str, Any]:
        """Return what its functions have done and their limits are doing, as plain data that JSON can represent.

        `profiles` and `functions` have for each name what `Stats.snapshot` returns, and the `state` of its limits and
        cache. Functions of a profile that were garbage collected are not in it. The default registry tells of functions
        that were bound by `Policy.apply` as well. Nothing is called or resolved. See docs/guide.md.
        """
        from opero.registry.statistics import statistics

        return statistics(self)

    def state(self, profile: str) -> ProfileState:
        """Return the limits that the functions of a profile share: `state("api").circuit_breaker.force_open()`.

        Raises:
            PolicyNotFoundError: there is no such profile.
        """
        from opero.registry.statistics import ProfileState

        return ProfileState(self, profile)

    # Changes

    @abstractmethod
    def _bindings(self) -> list[Binding]:
        """Return the bindings of the functions that a change applies to."""

    def reload(self) -> Changes:
        """Read files and variables again. Everything is validated first and then put in force at once.

        Calls under way finish on the policies they began with; later calls use the new ones. The state of breakers,
        rate limits, bulkheads and caches continues if their policy did not change, and migrates by the rules in
        docs/configuration.md if it did. `.stats` continue.

        Returns:
            The profiles and functions whose policies have changed.

        Raises:
            ConfigError: the new configuration is invalid; nothing has changed.
        """
        read = self._read
        if read is None:
            raise ConfigError("this registry was made from policies in code, so there is nothing to reload")
        from opero.registry.checks import news

        with self._changing:
            before = self._base
            try:
                changes = self._change(read(), self._overrides)
            except ConfigError as error:
                self.rejected = error.with_traceback(None)
                raise
            self.rejected = None
            after = self._base
        for each in news(before, after, self._bindings()):
            log("configuration_warning", "%s", each)
        return changes

    @contextmanager
    def override(
        self, profiles: Mapping[str, Any] | None = None, /, *, functions: Mapping[str, Any] | None = None, **named: Any
    ) -> Iterator[Self]:
        """Change profiles within a `with` block, for tests: `with registry.override(api={"retry": {"retries": 0}}):`.

        An override lies over files, variables and enclosing overrides, in every thread. Bound functions follow it.

        Args:
            profiles: name → policies, as in a file or as models; needed for names that are not Python identifiers.
            functions: the same for entries of `functions:`.
            **named: as `profiles`.

        Raises:
            PolicyNotFoundError: there is no such profile.
            ConfigError: the override is invalid, or matches no bound function; nothing has changed.
        """
        end = self._override({**(profiles or {}), **named}, functions or {}, source_at(where(2), "override"))
        try:
            yield self
        finally:
            end()

    def _override(
        self, profiles: Mapping[str, Any], functions: Mapping[str, Any], source: Source
    ) -> Callable[[], object]:
        """Put an override in force; return a function that ends it."""
        from opero.registry.checks import check_entries
        from opero.registry.overrides import layer_of

        layer = layer_of(profiles, functions, self.configuration, source)
        check_entries(layer, self._bindings())
        with self._changing:
            self._change(self._base, [*self._overrides, layer])

        def end() -> None:
            with self._changing:
                self._change(self._base, [each for each in self._overrides if each is not layer], anyhow=True)

        return end

    def _change(self, base: Configuration, overrides: list[ConfigLayer], *, anyhow: bool = False) -> Changes:
        """Put another configuration in force, if it is valid, or `anyhow`. The caller holds `_changing`."""
        configuration = base
        report = base.report()
        for layer in overrides:
            configuration = configuration.with_layer(layer, report)
        report.raise_if_any()

        def commit(draft: InForce) -> None:
            self._base, self._overrides, self._in_force = base, overrides, draft

        found = change(self._bindings, self._in_force, configuration, commit, anyhow=anyhow)
        self._alerts.replace(self.configuration.alerts)
        return found

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
