"""Names → policies, and the state that the functions bound to one name share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Unpack

from opero.bound import bind
from opero.errors import PolicyNotFoundError, nearest
from opero.policies.policy import Policy, merge, options_to_fields
from opero.switch import plain

if TYPE_CHECKING:
    from pathlib import Path

    from opero.clock import Clock
    from opero.config import Configuration
    from opero.policies.options import Options

__all__ = ["Registry", "bind_named", "get_default_registry", "set_default_registry"]


class Registry(Mapping[str, Policy]):
    """Named policies, and what their functions share: `registry["api"]` is the effective `Policy`.

    All functions bound to one name share its circuit breaker, rate limit and bulkhead, unless the profile says
    `scope: function`, or a function's own options change that policy for itself.

    Args:
        policies: name → policy. `Registry.load` reads them from files and the environment.
        enabled: False binds every function plainly: only a fallback result still answers.
    """

    def __init__(self, policies: Mapping[str, Policy] | None = None, *, enabled: bool = True) -> None:
        self._policies = dict(policies or {})
        self._enabled = enabled
        self._shared: dict[tuple[str, str, int], tuple[Any, Any]] = {}
        self._lock = threading.Lock()
        self.configuration: Configuration | None = None

    @classmethod
    def load(
        cls,
        directory: str | Path | None = None,
        environment: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Registry:
        """The profiles of an environment: `base.yaml`, `<environment>.yaml` over it, environment variables over both.

        Args:
            directory: where the files are. Default: `OPERO_CONFIG`, else `[tool.opero]` in pyproject.toml, else
                ./policies.
            environment: its name. Default: `OPERO_ENV`, else `ENVIRONMENT`, else "development".
            environ: the environment variables. Default: the process's own.

        Raises:
            ConfigError: something is wrong with a file or variable; all that is, each with its place.
        """
        from opero.config import load

        configuration = load(directory, environment, environ)
        registry = cls(configuration.policies, enabled=configuration.enabled)
        registry.configuration = configuration
        return registry

    def __getitem__(self, name: str) -> Policy:
        try:
            return self._policies[name]
        except KeyError:
            raise PolicyNotFoundError(self._missing(name), name=name) from None

    def _missing(self, name: str) -> str:
        if self.configuration is not None and self.configuration.directory is None:
            return (
                f"no profile {name!r}, as no policy files were found: there is no ./policies here; set OPERO_CONFIG, "
                "or config of [tool.opero] in pyproject.toml, to their directory"
            )
        known = ", ".join(sorted(self._policies)) or "none"
        where = ""
        if self.configuration is not None:
            where = f" of environment {self.configuration.environment!r} in {self.configuration.directory}"
        hint = nearest(name, self._policies).partition("; known")[0]
        return f"no profile {name!r} among the profiles{where} ({known}){hint}"

    def __iter__(self) -> Iterator[str]:
        return iter(self._policies)

    def __len__(self) -> int:
        return len(self._policies)

    def __repr__(self) -> str:
        return f"Registry({', '.join(sorted(self._policies))})"

    def bind(
        self, func: Any, name: str, *, clock: Clock | None = None, mapped: bool = False, **options: Unpack[Options]
    ) -> Any:
        """Bind a function to a profile, now: a callable with the same signature.

        Args:
            func: a function, method, class method or static method.
            name: the profile's name.
            clock: where time and chance come from. Default: the system's.
            mapped: make it a function of many items, as `@opmap` does.
            **options: flat options, laid over the profile.

        Raises:
            PolicyNotFoundError: no profile of that name.
            ConfigError: the policy does not fit the function.
        """
        policy = self.effective(name, options_to_fields(dict(options)))
        return bind(policy, func, clock=clock, share=self._sharing(name), mapped=mapped)

    def effective(self, name: str, fields: Mapping[str, Any]) -> Policy:
        """A profile with a function's own fields laid over it.

        Raises:
            PolicyNotFoundError: no profile of that name.
            pydantic.ValidationError: the fields do not fit the profile.
        """
        policy = self[name]
        if fields:
            policy = Policy.model_validate(merge(policy.fields(), fields))
        return policy if self._enabled else plain(policy)

    def _sharing(self, name: str) -> Callable[[str, Any, Callable[..., Any]], Any]:
        def share(kind: str, policy: Any, make: Callable[..., Any]) -> Any:
            """The profile's executor, where the function has the profile's own policy; else one of its own."""
            if policy.scope != "profile" or getattr(self._policies.get(name), kind, None) != policy:
                return make()
            executor = make(name)
            with self._lock:
                held = self._shared.get((name, kind, id(executor.clock)))
                if held is None or held[0] != policy:
                    held = self._shared[name, kind, id(executor.clock)] = (policy, executor)
                return held[1]

        return share


_default: Registry | None = None
_default_lock = threading.RLock()  # loading may import modules that ask for it


def get_default_registry() -> Registry:
    """The registry that `@opero(policy="name")` uses: loaded at first need, or set by `set_default_registry`."""
    global _default  # noqa: PLW0603  # the one default registry
    with _default_lock:
        if _default is None:
            _default = Registry.load()
        return _default


def set_default_registry(registry: Registry | None) -> None:
    """Use this registry for every function that has not been resolved yet; None: load anew at the next need."""
    global _default  # noqa: PLW0603  # the one default registry
    with _default_lock:
        _default = registry


def bind_named(
    func: Any, name: str, fields: Mapping[str, Any], *, registry: Registry | None, clock: Clock | None, mapped: bool
) -> Any:
    """Bind a function to a profile that is resolved when it is first needed: modules may load before configuration."""

    def registry_now() -> Registry:
        return registry if registry is not None else get_default_registry()

    def share(kind: str, policy: Any, make: Callable[..., Any]) -> Any:
        return registry_now()._sharing(name)(kind, policy, make)

    return bind(lambda: registry_now().effective(name, fields), func, clock=clock, share=share, mapped=mapped)
