"""One live function under one policy: the pipeline of its calls, its state and its counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from opero.binding.canary import build_with, main_of, migrate, put_in_force, rebuild_with
from opero.binding.disabled import is_suspended, plain
from opero.binding.first_call import first, unresolved
from opero.binding.fit import check
from opero.binding.late_policy import LatePolicy
from opero.binding.target import Target
from opero.config.declaration import name_in_config
from opero.errors import ConfigError
from opero.observe import logs as logs  # which reads OPERO_LOG_LEVEL: opero is used
from opero.observe.stats import Stats
from opero.runtime.forking import RenewedLock
from opero.runtime.functions import refuse_awaitable

if TYPE_CHECKING:
    from opero.binding.canary import Trial
    from opero.binding.invocation import Entry, Pipeline
    from opero.binding.making import ExecutorProvider
    from opero.config.declaration import Declaration
    from opero.executors.cache import CacheExecutor
    from opero.executors.circuit_breaker import CircuitBreakerExecutor
    from opero.policies.policy import Policy
    from opero.runtime.clock import Clock
    from opero.runtime.functions import FunctionKind
    from opero.values import Tuning

    class Owner(Protocol):
        """Knows the policies of bindings, and the executors that they share: a registry."""

        def _resolve(self, binding: Binding, /) -> None: ...
        def _provider(self, declaration: Declaration, /) -> ExecutorProvider | None: ...


CHECKED_BY_BUILDING = ("cache", "fallback", "rate_limit")
"""Kinds of policy that may not fit a function in a way that only building its pipeline shows."""

_changing = RenewedLock()
"""Held while a binding changes its pipeline, which is quick and rare, so that one lock serves all."""


class Binding:
    """One function under one policy.

    A bound function reads its binding's `pipeline` once a call and keeps it to the end of the call. So a profile can be
    resolved at the first call, or replaced later, while calls under way finish on the pipeline they began with.

    Args:
        function: the function as its user wrote it.
        policy: what should happen around it; None if only its owner knows.
        owner: finds the effective policy and enforces it, when it is first needed. Default: `policy` holds at once.
        declaration: what code states about the function, for its registry.
        clock: the source of time and randomness. Default: the system's.
        provider: returns the executors that several functions share. Default: the owner's; without an owner, this
            function has its own.
        stats: counts to continue. Default: new ones.

    Attributes:
        target: the function and its properties.
        declaration: as above; None if no registry knows of the function.
        pipeline: the layers of its calls.
        direct_pipeline: see `opero.binding.invocation.PipelineHolder`.
        entry: the function by which callers enter the pipeline; None if the function is only mapped.
        callable: the bound function.
        is_checked: whether a call has shown that the function, if it is a sync one, returns no awaitable.
        own_policy: the policy that code states, if it names no profile; else None.
        tuning: the result of `tune`, if it was called.
        canaries: profile → the counts of the calls that ran on it as a canary; None if there were none.
        is_late: whether its owner has not been asked for its policy yet, as nothing has needed it.

    Raises:
        ConfigError: the policy does not fit the function.
    """

    __slots__ = (
        "__weakref__",
        "_behind",
        "_owner",
        "_prepared",
        "_provider",
        "callable",
        "canaries",
        "declaration",
        "direct_pipeline",
        "entry",
        "is_checked",
        "is_late",
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
        owner: Owner | None = None,
        declaration: Declaration | None = None,
        clock: Clock | None = None,
        provider: ExecutorProvider | None = None,
        stats: Stats | None = None,
    ) -> None:
        name = name_in_config(function) if declaration is None else declaration.name
        profile = "" if declaration is None else declaration.profile or ""
        self.target = Target.of(function, clock, stats or Stats(name, profile))
        profile = self.stats.policy
        self.declaration = declaration
        self.callable: Any = None
        self.tuning: Tuning | None = None
        self.canaries: dict[str, Stats] | None = None
        self.own_policy = policy
        self.entry: Entry | None = None
        self.pipeline: Pipeline
        self.direct_pipeline: Pipeline
        self.is_checked = self.target.kind != "sync"
        self._behind: Pipeline | None = None  # what calls run on once the result of one has been checked
        self._provider = provider
        self._owner = owner
        self.is_late = owner is not None
        self._prepared: Pipeline | None = None
        if policy is not None:
            if owner is None and policy.active("canary") is not None:
                raise ConfigError(f"{self.target.name}: a canary names a profile; bind the function by its registry")
            # A policy that does not fit is reported at once, even if the registry will be asked later.
            if owner is None or any(policy.active(kind) is not None for kind in CHECKED_BY_BUILDING):
                self._prepared = self._build(policy, self._executor_provider, None, profile)
            else:
                check(self.target, policy)
        if owner is None and self._prepared is not None:
            self._enforce(self._prepared)
        else:
            self._publish(unresolved(self, None))

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
    def all_stats(self) -> tuple[Stats, ...]:
        """The counts of its calls, and those of the calls that ran on other profiles as canaries."""
        return (self.stats,) if self.canaries is None else (self.stats, *self.canaries.copy().values())

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
    def known_policy(self) -> Policy | None:
        """The policy as far as it is known without asking a registry; None if it is not."""
        return self.own_policy if self.is_late else self.pipeline.policy

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
        if self.is_late:
            assert self._owner is not None
            self._owner._resolve(self)
        return main_of(self._behind or self.pipeline)

    def swap(self, policy: Policy) -> None:
        """Put another policy in force. Calls under way finish on the old one; counts continue.

        Raises:
            ConfigError: the policy does not fit the function; the old one stays in force.
        """
        self.enforce(self.prepare(policy))
        if self._owner is None:
            self.own_policy = policy

    def prepare(
        self,
        policy: Policy,
        provider: ExecutorProvider | None = None,
        profile: str | None = None,
        trial: Trial | None = None,
    ) -> Pipeline:
        """Build the pipeline of another policy, for `enforce`. Nothing changes yet.

        Args:
            policy: what should happen.
            provider: returns the executors that several functions share. Default: the binding's own.
            profile: the name of the profile that the policy is from; "" if there is none. Default: that of before.
            trial: the canary; None if there is none.

        Raises:
            ConfigError: the policy does not fit the function.
        """
        prepared = self._prepared
        profile = self.stats.policy if profile is None else profile
        is_prepared = prepared is not None and prepared.policy == policy and prepared.profile == profile
        if prepared is not None and is_prepared and provider is None and trial is None:
            return prepared
        return self._build(policy, provider or self._executor_provider, self.pipeline, profile, trial)

    @property
    def _executor_provider(self) -> ExecutorProvider | None:
        if self._owner is None or self._provider is not None:
            return self._provider
        assert self.declaration is not None
        return self._owner._provider(self.declaration)

    def _build(
        self,
        policy: Policy,
        provider: ExecutorProvider | None,
        before: Pipeline | None,
        profile: str,
        trial: Trial | None = None,
    ) -> Pipeline:
        if is_suspended():
            policy, trial = plain(policy), None
        return build_with(self.target, policy, provider, before, profile, trial, self._canary_stats)

    def _canary_stats(self, profile: str) -> Stats:
        with _changing:
            self.canaries = {} if self.canaries is None else self.canaries
            return self.canaries.setdefault(profile, Stats(self.stats.function, profile))

    def settle(self, prepared: Pipeline) -> None:
        """Put in force what the first call resolved, unless another thread did so before."""
        with _changing:
            if self.is_late:
                self._enforce(prepared)

    def forget(self) -> None:
        """Ask the registry again at the next call; state continues from there."""
        with _changing:
            self._ask_again(self.pipeline)

    def _ask_again(self, before: Pipeline | None) -> None:
        self.is_late, self._behind = self._owner is not None, None
        self._publish(unresolved(self, before))
        self.stats.count_bare(False)
        if self.callable is not None:
            self.callable.policy = self.late_policy()

    def renew(self, clock: Clock | None = None) -> None:
        """Begin anew, as if the function had just been bound: with new state, and if need be on another clock.

        Raises:
            ConfigError: what the function shares with others cannot be opened any more; nothing has changed.
        """
        with _changing:
            before, self.target = self.target, replace(self.target, clock=clock or self.target.clock)
            if self._owner is not None:
                self._prepared = None
                self._ask_again(None)
            elif self.own_policy is not None:
                try:
                    renewed = self._build(self.own_policy, self._executor_provider, None, self.stats.policy)
                except BaseException:
                    self.target = before
                    raise
                self._behind = None
                self._enforce(renewed, migrates=False)

    def replace_function(self, function: Callable[..., Any]) -> None:
        """Call another function of the same kind and parameters from now on, under the same policy and state."""
        with _changing:
            self.target, self._prepared = replace(self.target, function=function), None
            if not self.is_late:
                self._enforce(rebuild_with(self.target, self._behind or self.pipeline))

    def late_policy(self) -> LatePolicy:
        """Return a stand-in for the policy, resolved when something of it is used."""
        return LatePolicy(self)

    def enforce(self, prepared: Pipeline) -> None:
        """Put in force what `prepare` returned. State migrates as `opero.executors.state` says; this cannot fail."""
        with _changing:
            self._enforce(prepared)

    def _enforce(self, pipeline: Pipeline, *, migrates: bool = True) -> None:
        held: Pipeline | None = getattr(self, "pipeline", None) if migrates else None
        if held is not None:
            pipeline = migrate(self.target, held, pipeline)
        self._behind = None if self.is_checked else pipeline
        self._publish(pipeline if self.is_checked else first(self, pipeline))
        self.is_late, self._prepared = False, None
        self.stats.policy = pipeline.profile
        put_in_force(held, pipeline)
        if self.callable is not None:
            self.callable.policy = pipeline.policy

    def begin_check(self) -> Pipeline:
        """Have calls run directly while the first one is under way, as it may be recursive; return its pipeline."""
        with _changing:
            if self._behind is not None:
                self._publish(self._behind)
            return self.pipeline

    def check_again(self) -> None:
        """Have the next call checked: this one has shown nothing."""
        with _changing:
            if self._behind is not None:
                self._publish(first(self, self._behind))

    def accept(self, result: Any) -> None:
        """Check the result of a first call; if it is one of a sync function, later calls need no check.

        Raises:
            ConfigError: the function returned an awaitable.
        """
        if self.is_checked:
            return
        refuse_awaitable(result, self.name)
        with _changing:
            self.is_checked = True
            if self._behind is not None:
                self._publish(self._behind)
                self._behind = None

    def _publish(self, pipeline: Pipeline) -> None:
        """Have calls that begin from now on run on a pipeline."""
        if not pipeline.is_exact:
            self.direct_pipeline = pipeline
        if self.entry is not None:
            self.entry.use(is_exact=pipeline.is_exact)
        self.pipeline = pipeline

    # State

    @property
    def circuit_breaker(self) -> CircuitBreakerExecutor | None:
        """The circuit breaker: `.state`, `.force_open()`, `.force_closed()`, `.reset()`; None if there is none."""
        executor = self.resolved().executors.get("circuit_breaker")
        breaker: CircuitBreakerExecutor | None = getattr(executor, "limiter", executor)  # or those of all keys
        return breaker

    @property
    def cache(self) -> CacheExecutor | None:
        """The cache; None if there is none."""
        return self.resolved().cache

    def __reduce__(self) -> Any:
        # Locks, queues and breakers do not travel: a copy in another process starts with its own.
        policy = self.policy.model_copy(update={"canary": None})  # it may be of no registry there
        return _restore, (self.function, policy, self.stats)

    def __repr__(self) -> str:
        return f"<binding of {self.name} {'to an unresolved profile' if self.is_late else self.pipeline.policy}>"


def _restore(function: Callable[..., Any], policy: Policy, stats: Stats) -> Binding:
    return Binding(function, policy, stats=stats)
