"""One live function under one policy: the pipeline of its calls, its state and its counts."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from opero.binding.invocation import unresolved
from opero.binding.late_policy import LatePolicy
from opero.binding.pipeline import build, migrate_state
from opero.binding.target import Target
from opero.policies.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from opero.binding.invocation import Pipeline
    from opero.binding.pipeline import ExecutorProvider
    from opero.config.declaration import Declaration
    from opero.executors.cache import CacheExecutor
    from opero.executors.circuit_breaker import CircuitBreakerExecutor
    from opero.observe.stats import Stats
    from opero.runtime.clock import Clock
    from opero.runtime.functions import FunctionKind
    from opero.values import Tuning

__all__ = ["Binding"]


class Binding:
    """One function under one policy.

    A bound function reads its binding's `pipeline` once a call and keeps it to the end of the call. So a profile can be
    resolved at the first call, or replaced later, while calls under way finish on the pipeline they began with.

    Args:
        function: the function as its user wrote it.
        policy: what should happen around it; None if only `resolve` knows.
        resolve: finds the effective policy and enforces it, when it is first needed. Default: `policy` holds at once.
        declaration: what code states about the function, for its registry.
        clock: the source of time and randomness. Default: the system's.
        provider: returns the executors that several functions share. Default: this function has its own.
        stats: counts to continue. Default: new ones.

    Attributes:
        target: the function and its properties.
        declaration: as above; None if no registry knows of the function.
        pipeline: the layers of its calls.
        callable: the bound function.
        own_policy: the policy that code states, if it names no profile; else None.
        tuning: the result of `tune`, if it was called.

    Raises:
        ConfigError: the policy does not fit the function.
    """

    __slots__ = (
        "__weakref__",
        "_ask",
        "_lock",
        "_prepared",
        "_provider",
        "_resolve",
        "callable",
        "declaration",
        "own_policy",
        "pipeline",
        "target",
        "tuning",
    )

    def __init__(
        self,
        function: Callable[..., Any],
        policy: Policy | None,
        *,
        resolve: Callable[[Binding], None] | None = None,
        declaration: Declaration | None = None,
        clock: Clock | None = None,
        provider: ExecutorProvider | None = None,
        stats: Stats | None = None,
    ) -> None:
        self.target = Target.of(function, clock, stats)
        self.declaration = declaration
        self.callable: Any = None
        self.tuning: Tuning | None = None
        self.own_policy = policy
        self.pipeline: Pipeline
        self._provider = provider
        self._lock = threading.RLock()
        self._ask = resolve
        self._resolve: Callable[[Binding], None] | None = resolve
        # Built now even if the registry will be asked later, so that a policy that does not fit is reported at once.
        self._prepared = build(self.target, policy, provider) if policy is not None else None
        if resolve is None and self._prepared is not None:
            self._enforce(self._prepared)
        else:
            self.pipeline = unresolved(self.target, Policy(), self.resolved, None)

    @property
    def function(self) -> Callable[..., Any]:
        """The function as its user wrote it."""
        return self.target.function

    @property
    def kind(self) -> FunctionKind:
        """One of "sync", "async", "generator" or "async_generator"."""
        return self.target.kind

    @property
    def name(self) -> str:
        """The function's qualified name, for messages."""
        return self.target.name

    @property
    def stats(self) -> Stats:
        """The counts of its calls; they outlive every change of the policy."""
        return self.target.stats

    @property
    def clock(self) -> Clock:
        """The source of time and randomness."""
        return self.target.clock

    @property
    def is_method(self) -> bool:
        """Whether the function was defined in a class and takes the instance first."""
        return self.target.is_method

    @property
    def is_async(self) -> bool:
        """Whether its attempts are awaited."""
        return self.target.kind in ("async", "async_generator")

    @property
    def is_late(self) -> bool:
        """Whether its registry has not been asked for its policy yet, as nothing has needed it."""
        return self._resolve is not None

    @property
    def known_pipeline(self) -> Pipeline | None:
        """The pipeline as far as it is known without asking a registry; None if it is not."""
        return self._prepared if self.is_late else self.pipeline

    # The policy

    @property
    def policy(self) -> Policy:
        """The effective policy; resolved now if nothing has needed it yet."""
        return self.resolved().policy

    def resolved(self) -> Pipeline:
        """Return the pipeline; resolve it now if nothing has needed it yet.

        Raises:
            PolicyNotFoundError: there is no such profile.
            ConfigError: the profile does not fit the function.
        """
        # No lock is held: resolving may import modules that call this very function, in other threads as well.
        resolve = self._resolve
        if resolve is not None:
            resolve(self)
        return self.pipeline

    def swap(self, policy: Policy) -> None:
        """Put another policy in force. Calls under way finish on the old one; counts continue.

        Raises:
            ConfigError: the policy does not fit the function; the old one stays in force.
        """
        self.enforce(self.prepare(policy))

    def prepare(self, policy: Policy, provider: ExecutorProvider | None = None) -> Pipeline:
        """Build the pipeline of another policy, for `enforce`. Nothing changes yet.

        Args:
            policy: what should happen.
            provider: returns the executors that several functions share. Default: the binding's own.

        Raises:
            ConfigError: the policy does not fit the function.
        """
        prepared = self._prepared
        if provider is None and prepared is not None and prepared.policy == policy:
            return prepared
        return build(self.target, policy, provider or self._provider, self.pipeline)

    def settle(self, prepared: Pipeline) -> None:
        """Put in force what the first call resolved, unless another thread did so before."""
        with self._lock:
            if self._resolve is not None:
                self._enforce(prepared)

    def forget(self) -> None:
        """Ask the registry again at the next call; state continues from there."""
        with self._lock:
            self._resolve = self._ask
            self.pipeline = unresolved(self.target, Policy(), self.resolved, self.pipeline)
            self.stats.count_bare(False)
            if self.callable is not None:
                self.callable.policy = self.late_policy()

    def late_policy(self) -> LatePolicy:
        """Return a stand-in for the policy, resolved when something of it is used."""
        return LatePolicy(lambda: self.policy)

    def enforce(self, prepared: Pipeline) -> None:
        """Put in force what `prepare` returned. State migrates as `opero.executors.state` says; this cannot fail."""
        with self._lock:
            self._enforce(prepared)

    def _enforce(self, pipeline: Pipeline) -> None:
        held: Pipeline | None = getattr(self, "pipeline", None)
        self.pipeline = pipeline if held is None else migrate_state(held, pipeline)
        self._resolve = self._prepared = None
        self.stats.count_bare(pipeline.function is not None)
        if self.callable is not None:
            self.callable.policy = pipeline.policy

    # State

    @property
    def circuit_breaker(self) -> CircuitBreakerExecutor | None:
        """The circuit breaker: `.state`, `.force_open()`, `.force_closed()`, `.reset()`; None if there is none."""
        return self.resolved().executors.get("circuit_breaker")

    @property
    def cache(self) -> CacheExecutor | None:
        """The cache; None if there is none."""
        return self.resolved().cache

    def __reduce__(self) -> Any:
        # Locks, queues and breakers do not travel: a copy in another process starts with its own.
        return _restore, (self.function, self.policy, self.stats)

    def __repr__(self) -> str:
        return f"<binding of {self.name} {'to an unresolved profile' if self.is_late else self.pipeline.policy}>"


def _restore(function: Callable[..., Any], policy: Policy, stats: Stats) -> Binding:
    return Binding(function, policy, stats=stats)
