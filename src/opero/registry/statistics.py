"""What functions and limits of a registry have done and are doing, as plain data; and the limits of a profile."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from opero.binding.making import bulkhead_executor
from opero.binding.roster import bindings_of_no_registry
from opero.cache.stores import MemoryStore
from opero.errors import ConfigError, describe, nearest
from opero.observe.stats import Stats, no_rates
from opero.policies.quantities import SERVICE
from opero.policies.scope import owner_of, scope_by
from opero.registry.keyed import of_keys
from opero.registry.parts import executors_of, is_by_key, is_in_shadow
from opero.registry.roster import declaration_of
from opero.runtime.clock import default_clock

if TYPE_CHECKING:
    from typing import Protocol

    from opero.binding.binding import Binding
    from opero.config.configuration import Configuration
    from opero.config.declaration import Declaration
    from opero.executors.bulkhead import BulkheadExecutor
    from opero.executors.circuit_breaker import CircuitBreakerExecutor
    from opero.executors.rate_limit import RateLimitExecutor
    from opero.executors.throttle import ThrottleExecutor
    from opero.executors.value_memory import ValueMemory
    from opero.policies.policy import Policy
    from opero.registry.reload import InForce

    class Registry(Protocol):
        """See `opero.registry.registry`."""

        rejected: ConfigError | None
        _in_force: InForce

        @property
        def configuration(self) -> Configuration: ...
        @property
        def is_default(self) -> bool: ...
        def __getitem__(self, name: str) -> Policy: ...
        def _bindings(self) -> list[Binding]: ...
        def _start_of(self, declaration: Declaration) -> tuple[str | None, tuple[str, ...]]: ...


LIMITS = ("circuit_breaker", "throttle", "rate_limit", "bulkhead")


def statistics(registry: Registry) -> dict[str, Any]:
    """Return what `Registry.stats` returns. Nothing is called or resolved, and no server is asked."""
    configuration = registry.configuration
    functions: dict[str, _Sum] = {}
    profiles = {name: _Sum() for name in configuration.policies}
    names: dict[str, set[str]] = {name: set() for name in profiles}
    for binding in all_of(registry):
        name, profile = binding.stats.function, profile_of(registry, binding) or ""
        executors = {} if binding.is_late else executors_of(binding)
        snapshot = binding.stats.snapshot()
        functions.setdefault(name, _Sum(profile)).add(binding.stats, snapshot, executors)
        if profile in profiles:
            profiles[profile].add(binding.stats, snapshot, {"cache": executors.get("cache")})
            names[profile].add(name)
        for stats in binding.all_stats[1:]:
            snapshot = stats.snapshot()
            functions[name].add(stats, snapshot, {})
            if stats.policy in profiles:
                profiles[stats.policy].add(stats, snapshot, {})
                names[stats.policy].add(name)
    looked: dict[int, Any] = {}
    for profile, executor in registry._in_force.shared.held():
        if profile in profiles:
            profiles[profile].executors[executor.policy.kind] = executor
    by_profile = {
        name: {**each.data(looked), "functions": sorted(names[name])} for name, each in sorted(profiles.items())
    }
    return {
        **about(registry),
        "profiles": by_profile,
        "functions": {name: {**each.data(looked), "policy": each.policy} for name, each in sorted(functions.items())},
    }


def about(registry: Registry) -> dict[str, Any]:
    """Return what the statistics are of: the time, the process and the configuration."""
    configuration = registry.configuration
    return {
        "time": time.time(),
        "pid": os.getpid(),
        "host": platform.node(),
        "version": sys.modules["opero"].__version__,
        "environment": configuration.environment,
        "configuration": {
            "version": configuration.version,
            "loaded": configuration.loaded,
            "files": [str(path) for path in configuration.files],
            "rejected": None if registry.rejected is None else describe(registry.rejected),
        },
    }


def all_of(registry: Registry) -> list[Binding]:
    """Return the bindings that a registry looks after; for the default one also those that none does."""
    own = registry._bindings()
    return [*own, *bindings_of_no_registry()] if registry.is_default else own


def profile_of(registry: Registry, binding: Binding) -> str | None:
    """Return the profile of a function; None if it has none."""
    return None if binding.declaration is None else registry._start_of(declaration_of(binding))[0]


class _Sum:
    """The statistics of several functions: those of a profile, or of one name.

    Attributes:
        policy: the name of the profile.
        executors: kind → the executor of one of them; those of a cache count for all.
    """

    def __init__(self, policy: str = "") -> None:
        self.policy = policy
        self.executors: dict[str, Any] = {}
        self._stats: list[Stats] = []
        self._snapshots: list[dict[str, Any]] = []
        self._sizes: list[int] = []

    def add(self, stats: Stats, snapshot: dict[str, Any], executors: Mapping[str, Any]) -> None:
        """Add those of a function."""
        self._snapshots.append(snapshot)
        self._stats.append(stats)
        self.executors |= executors
        cache = executors.get("cache")
        if cache is not None and isinstance(cache.store, MemoryStore):
            self._sizes.append(cache.store.size() or 0)

    def data(self, looked: dict[int, Any]) -> dict[str, Any]:
        """Return all as plain data.

        Args:
            looked: what executors that were looked at have shown, by their identity: functions share them.
        """
        snapshots = self._snapshots
        if not snapshots:
            found = Stats().snapshot() | {"age": 0.0}
        elif len(snapshots) == 1:
            found = dict(snapshots[0])
        else:
            total = Stats()
            for each in self._stats:
                total.include(each)
            found = total.snapshot() | {"rates": no_rates(), "age": max(each["age"] for each in snapshots)}
            found["in_flight"] = sum(each["in_flight"] for each in snapshots)
            for snapshot in snapshots:
                for what, windows in snapshot["rates"].items():
                    for window, rate in windows.items():
                        found["rates"][what][window] += rate
            if found["latency"] is not None:
                found["latency"]["one_in"] = max(each["latency"]["one_in"] for each in snapshots if each["latency"])
        return found | {"state": self._state(found, looked)}

    def _state(self, counts: dict[str, Any], looked: dict[int, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for kind in LOOKS:
            executor = self.executors.get(kind)
            if executor is None:
                continue
            if id(executor) not in looked:
                looked[id(executor)] = state_of(kind, executor)
            found[kind] = looked[id(executor)]
        if self.executors.get("cache") is not None:
            hits, misses = counts["cache_hits"], counts["cache_misses"]
            ratio = hits / (hits + misses) if hits + misses else None
            size = sum(self._sizes) if self._sizes else None
            found["cache"] = {"hits": hits, "misses": misses, "hit_ratio": ratio, "size": size}
        return found


def _of_circuit(breaker: CircuitBreakerExecutor) -> dict[str, Any]:
    details = breaker.details()
    return {"state": details["state"], "since": time.time() - details.pop("for"), **details}


def _of_throttle(throttle: ThrottleExecutor) -> dict[str, Any]:
    rejecting, requests, accepts = throttle.load()
    return {"rejecting": rejecting, "requests": requests, "accepts": accepts}


def _of_rate_limit(limiter: RateLimitExecutor) -> dict[str, Any]:
    saturation, next_permit, queue = limiter.load()
    found = {"saturation": saturation, "next_permit": next_permit, "queue": queue, "paused_for": limiter.paused_for()}
    if not limiter.policy.limits:
        rate = None if limiter.policy.rate == SERVICE else limiter.rate()
        return {"rate": rate, "burst": limiter.policy.burst, **found}
    limits = [
        {"rate": limit.rate, "burst": limit.burst, "saturation": used, "next_permit": soon}
        for limit, (used, soon) in zip(limiter.policy.each, limiter.loads().values(), strict=True)
    ]
    return {"limits": dict(zip(limiter.policy.names, limits, strict=True)), **found}


def _of_bulkhead(bulkhead: BulkheadExecutor) -> dict[str, Any]:
    in_use, slots, queue = bulkhead.load()
    return {"slots": slots, "in_use": in_use, "queue": queue}


def _of_values(memory: ValueMemory) -> dict[str, Any]:
    return {"aside": memory.aside()}


LOOKS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "circuit_breaker": _of_circuit,
    "throttle": _of_throttle,
    "rate_limit": _of_rate_limit,
    "bulkhead": _of_bulkhead,
    "fallback": _of_values,
}
"""Kind → what is shown of its executor."""


def state_of(kind: str, executor: Any) -> dict[str, Any]:
    """Return what is shown of an executor."""
    try:
        found = of_keys(executor, LOOKS[kind]) if is_by_key(executor) else LOOKS[kind](executor)
        return found | ({"shadow": True} if is_in_shadow(executor) else {})
    except Exception as error:  # noqa: BLE001  # such as that of a file that processes share
        return {"error": describe(error)}


class ProfileState:
    """The limits that the functions of a profile share, and their caches: `registry.state("api")`.

        registry.state("api").circuit_breaker.force_open()

    Functions with limits of their own (`scope: function`, or options that change them) are not affected.
    """

    def __init__(self, registry: Registry, name: str) -> None:
        self._registry = registry
        self._name = name
        self._policy: Policy = registry[name]

    @property
    def circuit_breaker(self) -> CircuitBreakerExecutor:
        """The circuit breaker: `state`, `details()`, `force_open()`, `force_closed()`, `reset()`.

        With a state for each value of an argument: those of all of them, `keys()`, and `of(value)`, the breaker of one.

        Raises:
            ConfigError: the profile has none, or each of its functions has one of its own.
        """
        from opero.executors.circuit_breaker import CircuitBreakerExecutor

        found: CircuitBreakerExecutor = self._shared("circuit_breaker", CircuitBreakerExecutor)
        return found

    @property
    def rate_limit(self) -> RateLimitExecutor:
        """The rate limit: `next_permit()`, `load()`, `loads()` of each of its limits, and in a call `settle(actual)`.

        Raises:
            ConfigError: as for `circuit_breaker`.
        """
        from opero.executors.limits import executor_of

        found: RateLimitExecutor = self._shared("rate_limit", lambda *args: executor_of(args[0])(*args))
        return found

    @property
    def throttle(self) -> ThrottleExecutor:
        """The throttle: `load()`.

        Raises:
            ConfigError: as for `circuit_breaker`.
        """
        from opero.executors.throttle import ThrottleExecutor

        found: ThrottleExecutor = self._shared("throttle", ThrottleExecutor)
        return found

    @property
    def bulkhead(self) -> BulkheadExecutor:
        """The bulkhead: `running`, `load()`.

        Raises:
            ConfigError: as for `circuit_breaker`.
        """
        found: BulkheadExecutor = self._shared("bulkhead", bulkhead_executor)
        return found

    @property
    def caches(self) -> dict[str, Any]:
        """Function → its cache (`get`, `set`, `delete`, `clear`), for the functions whose policy has been needed.

        Each takes the arguments of the function, as `cache_get` and the like of a bound function do.
        """
        found = {}
        for binding in self._registry._bindings():
            if not binding.is_late and profile_of(self._registry, binding) == self._name:
                cache = binding.cache
                if cache is not None:
                    found[binding.stats.function] = cache
        return found

    def _shared(self, kind: str, executor: Callable[[Any, Any, str], Any]) -> Any:
        policy = self._policy.active(kind)
        if policy is None:
            given = [each for each in LIMITS if self._policy.active(each) is not None]
            raise ConfigError(f"the profile {self._name!r} has no {kind}{nearest(kind, given)}")
        if owner_of(policy) != "profile":
            raise ConfigError(
                f"each function of the profile {self._name!r} has a {kind} of its own (scope: function); ask the bound "
                f"function: function.{kind}"
            )
        if not self._registry.configuration.enabled:
            raise ConfigError("opero is switched off (OPERO_ENABLED=false): no limit is in force")

        shared, scope, clock = self._registry._in_force.shared, scope_by(policy), default_clock()
        held = [each for profile, each in shared.held() if profile == self._name and each.policy == policy]
        held = [each for each in held if each.policy.kind == kind and each.clock is clock]
        if held and all(map(is_by_key, held)):  # with `scope: auto` those of an HTTP client, and no others
            return held[-1]

        def make(name: str | None = None) -> Any:
            shown = name or self._name
            made = executor(policy, clock, shown) if scope is None else ByKey(policy, scope, clock, shown, executor)
            made.origin = {"policy": self._name}
            return made

        if scope is not None:
            from opero.executors.by_key import ByKey

            make.by = scope.by  # type: ignore[attr-defined]  # see `opero.registry.profile_state`
        return shared.of(self._name)(policy, clock, make)

    def __repr__(self) -> str:
        return f"<state of the profile {self._name!r}>"
