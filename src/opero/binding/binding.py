"""One function under one policy, live: it holds the layers of its calls, its state and its counts.

A bound function is a plain function that looks at its binding's `chain` once a call. So a profile can be resolved at
the first call, or swapped for another later, while calls under way finish on the chain they began with.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from opero.binding.pipeline import Chain, build, hand_over, invoking
from opero.executors.call import Call
from opero.observe.stats import Stats
from opero.policies.policy import Policy
from opero.runtime.clock import SYSTEM
from opero.runtime.functions import is_method, kind_of, short_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opero.binding.pipeline import Share
    from opero.executors.cache import CacheExecutor
    from opero.executors.circuit_breaker import CircuitBreakerExecutor
    from opero.parallel.tuning import Tuning
    from opero.registry.declarations import Declaration
    from opero.runtime.clock import Clock

__all__ = ["Binding"]


class Binding:
    """One function under one policy.

    Args:
        function: the function as its user wrote it.
        policy: what should happen around it; None where only `resolve` can tell.
        resolve: finds the policy out and puts it in force, once it is first needed. Default: `policy` holds at once.
        declaration: what code says of the function, for its registry.
        clock: where time and chance come from. Default: the system's.
        share: gives the executors that several functions share: of a kind and policy, made by the function it gets,
            unless there is one already. Default: this function has its own.
        stats: counts to go on with. Default: new ones.

    Attributes:
        function, clock, share, stats: as above. The counts outlive every change of the policy.
        declaration: as above; None where no registry knows of the function.
        kind: "sync", "async", "generator" or "async_generator".
        is_method: it was defined in a class, and takes the instance first.
        name: the function's qualified name, for messages.
        chain: the layers of its calls.
        callable: what its users call.
        said: the policy that code says, where that is no profile; else None.
        tuning: what `tune` has found out of it, if it was asked.

    Raises:
        ConfigError: the policy does not fit the function.
        NotImplementedError: an option that has no executor yet.
    """

    __slots__ = (
        "__weakref__",
        "_ask",
        "_lock",
        "_prepared",
        "_resolve",
        "call",
        "callable",
        "chain",
        "clock",
        "declaration",
        "function",
        "is_method",
        "kind",
        "name",
        "said",
        "share",
        "stats",
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
        share: Share | None = None,
        stats: Stats | None = None,
    ) -> None:
        self.function = function
        self.clock = clock or SYSTEM
        self.share = share
        self.declaration = declaration
        self.stats = stats or Stats()
        self.kind = kind_of(function)
        self.is_method = is_method(function)
        self.name = short_name(function)
        self.call = Call.of(self.stats)
        self.callable: Any = None
        self.tuning: Tuning | None = None
        self.chain: Chain
        self._lock = threading.RLock()
        self._ask = resolve
        self.said = policy
        self._resolve: Callable[[Binding], None] | None = resolve
        # Built now also where the registry will be asked, so that what does not fit is told at once.
        self._prepared = build(self, policy) if policy is not None else None
        if resolve is None and self._prepared is not None:
            self._enforce(self._prepared)
        else:
            self.chain = self._unresolved()

    @property
    def is_async(self) -> bool:
        """Whether its attempts are awaited."""
        return self.kind in ("async", "async_generator")

    @property
    def is_late(self) -> bool:
        """Whether its policy has not been needed yet, and so its registry has not been asked for it."""
        return self._resolve is not None

    @property
    def known(self) -> Chain | None:
        """The layers as far as they are known without asking a registry."""
        return self._prepared if self.is_late else self.chain

    # The policy

    @property
    def policy(self) -> Policy:
        """The effective policy. A profile that has not been needed yet is resolved now."""
        return self.resolved().policy

    def resolved(self) -> Chain:
        """The layers; put together now, where a profile has not been needed yet.

        Raises:
            PolicyNotFoundError: there is no such profile.
            ConfigError: the profile does not fit the function.
        """
        # No lock is held meanwhile: resolving may import modules that call this very function, in other threads, too.
        resolve = self._resolve
        if resolve is not None:
            resolve(self)
        return self.chain

    def swap(self, policy: Policy) -> None:
        """Put another policy in force. Calls under way finish on the old one; counts go on.

        Raises:
            ConfigError: the policy does not fit the function; the old one stays.
        """
        self.enforce(self.prepare(policy))

    def prepare(self, policy: Policy, share: Share | None = None) -> Chain:
        """The layers of another policy, for `enforce`. Nothing changes yet.

        Args:
            policy: what should happen.
            share: gives the executors that several functions share. Default: the binding's own.

        Raises:
            ConfigError: the policy does not fit the function.
        """
        prepared = self._prepared
        if share is None and prepared is not None and prepared.policy == policy:
            return prepared
        return build(self, policy, share)

    def settle(self, prepared: Chain) -> None:
        """Put in force what was found out at the first call, unless another thread was quicker."""
        with self._lock:
            if self._resolve is not None:
                self._enforce(prepared)

    def forget(self) -> None:
        """Ask the registry again at the next call; state goes on from there."""
        from opero.bound import LatePolicy

        with self._lock:
            self._resolve = self._ask
            self.chain = self._unresolved(self.chain)
            self.stats.count_bare(False)
            if self.callable is not None:
                self.callable.policy = LatePolicy(self)

    def enforce(self, prepared: Chain) -> None:
        """Put what `prepare` gave in force. State migrates as `opero.executors.state` says; this cannot fail."""
        with self._lock:
            self._enforce(prepared)

    def _enforce(self, chain: Chain) -> None:
        held: Chain | None = getattr(self, "chain", None)
        self.chain = chain if held is None else hand_over(held, chain)
        self._resolve = self._prepared = None
        self.stats.count_bare(chain.function is not None)
        if self.callable is not None:
            self.callable.policy = chain.policy

    def _unresolved(self, before: Chain | None = None) -> Chain:
        """Layers whose first call resolves the profile, and is made on the real ones from beginning to end.

        Args:
            before: layers whose state goes on.
        """

        def resolve_and_call(*args: Any, **kwargs: Any) -> Any:
            chain = self.resolved()
            self.stats.executed += chain.function is not None  # this call began before those that count as attempts
            try:
                return chain.start(args, kwargs)
            except Exception as error:  # noqa: BLE001  # decided in fail
                return chain.fail(error, args, kwargs)

        async def resolve_and_call_async(*args: Any, **kwargs: Any) -> Any:
            chain = self.resolved()
            self.stats.executed += chain.function is not None  # as above
            try:
                return await chain.start(args, kwargs)
            except Exception as error:  # noqa: BLE001  # decided in fail
                return await chain.fail(error, args, kwargs)

        def fail(error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            raise error

        function = resolve_and_call_async if self.is_async else resolve_and_call
        layer = invoking(self, function)
        return Chain(
            function=function,
            layer=layer,
            hit=None,
            call=self.call,
            fail=fail,
            whole=layer,
            policy=Policy(),
            executors={} if before is None else before.executors,
            own=frozenset() if before is None else before.own,
        )

    # State

    @property
    def circuit_breaker(self) -> CircuitBreakerExecutor | None:
        """The circuit breaker: `.state`, `.force_open()`, `.force_closed()`, `.reset()`; None where there is none."""
        return self.resolved().executors.get("circuit_breaker")

    @property
    def cache(self) -> CacheExecutor | None:
        """The cache, or None where there is none."""
        return self.resolved().cache

    def __reduce__(self) -> Any:
        # Locks, queues and breakers stay where they are: the copy, in another process, begins with its own.
        return _restore, (self.function, self.policy, self.stats)

    def __repr__(self) -> str:
        return f"<binding of {self.name} {'to a profile not needed yet' if self.is_late else self.chain.policy}>"


def _restore(function: Callable[..., Any], policy: Policy, stats: Stats) -> Binding:
    return Binding(function, policy, stats=stats)
