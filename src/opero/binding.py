"""One function under one policy, live: it builds the layers of a call, and carries the function's state and counts.

A bound function is a plain function that looks at its binding's `chain` once a call. So a profile can be resolved at the
first call, or swapped for another later, while calls under way finish on the chain they began with.
"""

from __future__ import annotations

import functools
import inspect
import threading
from typing import TYPE_CHECKING, Any, Literal

from opero.clock import SYSTEM
from opero.errors import ConfigError
from opero.executors.call import Call
from opero.policies.policy import KINDS, Policy
from opero.stats import Stats

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from opero.clock import Clock
    from opero.executors.cache import CacheExecutor
    from opero.executors.call import Layer
    from opero.executors.circuit_breaker import CircuitBreakerExecutor

__all__ = ["Binding", "Chain", "full_name", "kind_of"]

FunctionKind = Literal["sync", "async", "generator", "async_generator"]

NOT_YET: dict[str, dict[str, Callable[[Any], bool]]] = {
    "cache": {
        "backend": lambda value: value != "memory",
        "stale_ttl": lambda value: value is not None,
        "cache_errors": bool,
        "serializer": lambda value: value is not None,
        "secret": lambda value: value is not None,
        "allow_unsigned_pickle": bool,
        "arguments": lambda value: bool(value),
    },
    "rate_limit": {"backend": lambda value: value != "local"},
    "parallel": {
        "mode": lambda value: value in ("async_process", "dask", "ray"),
        "progress": lambda value: value is True,
        "deadline": lambda value: value is not None,
        "max_memory": lambda value: value is not None,
    },
}
"""Options that are validated already but do nothing yet, and for which of their values."""


class Chain:
    """The layers of a call, as one configuration built them.

    Attributes:
        function: what to call, where there is no layer around it but an outermost retry; else None.
        layer: the outermost layer, an outermost retry left out.
        call: makes the `Call` that the layers pass on.
        fail: what follows an exception that came out of `function` or `layer`: retry, where that is outermost.
        whole: all layers within the cache, for a map that reads and fills the cache itself.
        policy: what it was built from.
        executors: kind of policy → its executor.
    """

    __slots__ = ("call", "executors", "fail", "function", "layer", "policy", "whole")

    def __init__(
        self,
        *,
        function: Callable[..., Any] | None,
        layer: Layer,
        call: type[Call],
        fail: Callable[..., Any],
        whole: Layer,
        policy: Policy,
        executors: dict[str, Any],
    ) -> None:
        self.function = function
        self.layer = layer
        self.call = call
        self.fail = fail
        self.whole = whole
        self.policy = policy
        self.executors = executors

    def start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Begin a call: its result, or under an async function something to await."""
        return self.layer(self.call(), args, kwargs) if self.function is None else self.function(*args, **kwargs)


class Binding:
    """One function under one policy.

    Args:
        function: the function as its user wrote it.
        policy: what should happen around it, or a function that tells, called at the first call.
        clock: where time and chance come from. Default: the system's.
        share: gives the executors that several functions share, or None where this one has its own.
        stats: counts to go on with. Default: new ones.

    Attributes:
        function: the function itself.
        kind: "sync", "async", "generator" or "async_generator".
        is_method: it was defined in a class, and takes the instance first.
        stats: the counts; they outlive every swap of the policy.
    """

    __slots__ = ("_call", "_lock", "_resolve", "callable", "chain", "clock", "function", "is_method", "kind", "name", "share", "stats")

    def __init__(
        self,
        function: Callable[..., Any],
        policy: Policy | Callable[[], Policy],
        *,
        clock: Clock | None = None,
        share: Callable[[str, Any, Callable[..., Any]], Any] | None = None,
        stats: Stats | None = None,
    ) -> None:
        self.function = function
        self.clock = clock or SYSTEM
        self.share = share
        self.kind = kind_of(function)
        self.name = getattr(function, "__qualname__", None) or repr(function)
        self.is_method = is_method(function)
        self.stats = stats or Stats()
        self._call = Call.of(self.stats)
        self.callable: Any = None
        self._lock = threading.Lock()
        self._resolve: Callable[[], Policy] | None = None
        if isinstance(policy, Policy):
            self._enforce(self.build(policy))
        else:
            self._resolve = policy
            self.chain = self._unresolved()

    # The policy

    @property
    def policy(self) -> Policy:
        """The effective policy. A profile that has not been needed yet is resolved now."""
        return self.resolved().policy

    def resolved(self) -> Chain:
        """The chain of layers; built now, where a profile has not been needed yet."""
        if self._resolve is not None:
            with self._lock:
                if self._resolve is not None:
                    self._enforce(self.build(self._resolve()))
        return self.chain

    def swap(self, policy: Policy) -> None:
        """Put another policy in force. Calls under way finish on the old one; counts go on."""
        chain = self.build(policy)
        with self._lock:
            self._enforce(chain)

    def _enforce(self, chain: Chain) -> None:
        self.chain = chain
        self._resolve = None
        self.stats.count_bare(chain.function is not None)
        if self.callable is not None:
            self.callable.policy = chain.policy

    def _unresolved(self) -> Chain:
        """A chain whose first call resolves the profile, and is made on the real one from beginning to end."""

        def resolve_and_call(*args: Any, **kwargs: Any) -> Any:
            chain = self.resolved()
            try:
                return chain.start(args, kwargs)
            except Exception as error:  # noqa: BLE001  # decided in fail
                return chain.fail(error, args, kwargs)

        async def resolve_and_call_async(*args: Any, **kwargs: Any) -> Any:
            chain = self.resolved()
            try:
                return await chain.start(args, kwargs)
            except Exception as error:  # noqa: BLE001  # decided in fail
                return await chain.fail(error, args, kwargs)

        def fail(error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            raise error

        function = resolve_and_call_async if self.is_async else resolve_and_call
        layer = self._innermost(function)
        return Chain(function=function, layer=layer, call=self._call, fail=fail, whole=layer, policy=Policy(), executors={})

    @property
    def is_late(self) -> bool:
        """Whether its profile has not been needed yet."""
        return self._resolve is not None

    @property
    def is_async(self) -> bool:
        """Whether its attempts are awaited."""
        return self.kind in ("async", "async_generator")

    # State

    @property
    def circuit_breaker(self) -> CircuitBreakerExecutor | None:
        """The circuit breaker: `.state`, `.force_open()`, `.force_closed()`, `.reset()`; None where there is none."""
        return self.resolved().executors.get("circuit_breaker")

    @property
    def cache(self) -> CacheExecutor | None:
        """The cache, or None where there is none."""
        return self.resolved().executors.get("cache")

    # The layers

    def build(self, policy: Policy) -> Chain:
        """The chain of layers for a policy.

        Raises:
            ConfigError: the policy does not fit the function.
            NotImplementedError: an option that has no executor yet.
        """
        self._check(policy)
        executors: dict[str, Any] = {}
        layer = self._innermost(self._start())

        def around(executor: Any, *args: Any) -> Layer:
            wrapped: Layer = (executor.wrap_async if self.is_async else executor.wrap)(layer, *args)
            return wrapped

        bare = True
        if timeouts := policy.active("timeout"):
            from opero.executors.timeout import TimeoutExecutor

            timeout = executors["timeout"] = TimeoutExecutor(timeouts, self.clock, self.name)
            layer, bare = around(timeout), False
        if bulkheads := policy.active("bulkhead"):
            from opero.executors.bulkhead import BulkheadExecutor

            executors["bulkhead"] = self._shared("bulkhead", bulkheads, BulkheadExecutor)
            layer, bare = around(executors["bulkhead"]), False
        if limits := policy.active("rate_limit"):
            from opero.executors.rate_limit import RateLimitExecutor, cost_function

            executors["rate_limit"] = self._shared("rate_limit", limits, RateLimitExecutor)
            layer, bare = around(executors["rate_limit"], cost_function(limits.cost, self.function)), False
        if breakers := policy.active("circuit_breaker"):
            from opero.executors.circuit_breaker import CircuitBreakerExecutor

            executors["circuit_breaker"] = self._shared("circuit_breaker", breakers, CircuitBreakerExecutor)
            layer, bare = around(executors["circuit_breaker"]), False

        fallback = policy.active("fallback")
        retries = policy.active("retry")
        attempt = layer  # what one attempt goes through
        retry = None
        if retries or (fallback and fallback.arg):
            from opero.executors.fallback import Alternatives
            from opero.executors.retry import RetryExecutor
            from opero.policies.retry import RetryPolicy

            alternatives = Alternatives(fallback.arg, self.function) if fallback and fallback.arg else None
            retry = executors["retry"] = RetryExecutor(
                retries or RetryPolicy(retries=0), self.clock, self.name, alternatives
            )
        # Where retry is outermost and the first attempt needs no preparation, the bound function itself is its layer.
        fused = (
            retry is not None
            and not (timeouts and timeouts.total)
            and not (fallback and fallback.has_result)
            and not policy.active("cache")
            and retry.alternatives is None
            and retry.policy.retry_if_result is None
        )
        if retry is not None:
            layer, bare = around(retry), bare and fused
        if timeouts and timeouts.total:
            layer = timeout.wrap_total(layer)
        if fallback and fallback.has_result:
            from opero.executors.fallback import FallbackExecutor

            executors["fallback"] = FallbackExecutor(fallback, self.name, self._conversion(), counts_errors=retry is None)
            layer, bare = around(executors["fallback"]), False
        whole = layer
        if caching := policy.active("cache"):
            from opero.executors.cache import CacheExecutor

            executors["cache"] = CacheExecutor(caching, self.clock, full_name(self.function), self.function, is_method=self.is_method)
            layer, bare = around(executors["cache"]), False
        return Chain(
            function=self._start() if bare else None,
            layer=attempt if fused else layer,
            call=self._call,
            fail=self._failing(retry if fused else None, attempt, counts_errors="retry" not in executors and "fallback" not in executors),
            whole=whole,
            policy=policy,
            executors=executors,
        )

    def __reduce__(self) -> Any:
        # Locks, queues and breakers stay where they are: the copy, in another process, begins with its own.
        return _restore, (self.function, self.policy, self.stats)

    def _check(self, policy: Policy) -> None:
        for kind, options in NOT_YET.items():
            held = policy.active(kind)
            for option, unfinished in options.items() if held is not None else ():
                if unfinished(getattr(held, option)):
                    raise NotImplementedError(
                        f"{self.name}: {kind}.{option}={getattr(held, option)!r} is not implemented yet; leave it out for now"
                    )
        if self.kind in ("generator", "async_generator"):
            refused = {
                "cache": "its items come one by one, so there is no result to keep; cache a function that returns a list",
                "parallel": "its items come one by one; map a function that returns a value",
            }
            for kind, reason in refused.items():
                if policy.active(kind) is not None:
                    raise ConfigError(f"{self.name} is a generator function and cannot have {kind}: {reason}")
            if policy.retry is not None and policy.retry.retry_if_result is not None:
                raise ConfigError(f"{self.name} is a generator function: it has no result that retry_if_result could judge")
        function = policy.fallback.function if policy.fallback is not None else None
        if function is not None and self.kind == "sync" and kind_of(function) != "sync":
            raise ConfigError(
                f"{self.name} is a sync function and its fallback {full_name(function)} is {kind_of(function).replace('_', ' ')}: "
                "nobody would await it; use a sync fallback"
            )

    def _shared(self, kind: str, policy: Any, executor: Callable[[Any, Clock, str], Any]) -> Any:
        """An executor whose state several functions may share: the profile's where there is one, else this function's own."""

        def make(name: str = self.name) -> Any:
            return executor(policy, self.clock, name)

        if self.share is not None and policy.scope == "profile":
            return self.share(kind, policy, make)
        return make()

    def _start(self) -> Callable[..., Any]:
        """The function, or for a generator function what starts it."""
        from opero.executors.generators import start, start_async

        if self.kind == "generator":
            return start(self.function)
        return start_async(self.function) if self.kind == "async_generator" else self.function

    def _innermost(self, function: Callable[..., Any]) -> Layer:
        """The function as a layer. An async function's coroutine is passed on as it is: none is made around it."""
        stats = self.stats

        def invoke(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            stats.executed += 1
            return function(*args, **kwargs)

        return invoke

    def _failing(self, retry: Any, attempt: Layer, *, counts_errors: bool) -> Callable[..., Any]:
        """What is done about an exception that came out of the layers: retry, where that is outermost; else nothing."""
        stats, new_call = self.stats, self._call

        def fail(error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            try:
                if retry is None:
                    if counts_errors:
                        stats.count_error(error)
                    raise error
                return retry.recover(attempt, new_call(), args, kwargs, error)
            except BaseException:
                stats.failures += 1
                raise
            finally:
                del error

        async def fail_async(error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            try:
                if retry is None:
                    if counts_errors:
                        stats.count_error(error)
                    raise error
                return await retry.recover_async(attempt, new_call(), args, kwargs, error)
            except BaseException:
                stats.failures += 1
                raise
            finally:
                del error

        return fail_async if self.is_async else fail

    def _conversion(self) -> Callable[[Any], Any] | None:
        from opero.executors.generators import from_items, from_items_async, start, start_async

        if self.kind == "generator":
            return start(from_items)
        return start_async(from_items_async) if self.kind == "async_generator" else None


def _restore(function: Callable[..., Any], policy: Policy, stats: Stats) -> Binding:
    return Binding(function, policy, stats=stats)


def kind_of(function: Callable[..., Any]) -> FunctionKind:
    """Whether a callable is sync or async, and whether it is a generator function."""
    call = function if inspect.isroutine(function) or isinstance(function, functools.partial) else type(function).__call__
    for each in (function, call):
        if inspect.iscoroutinefunction(each):
            return "async"
        if inspect.isasyncgenfunction(each):
            return "async_generator"
        if inspect.isgeneratorfunction(each):
            return "generator"
    return "sync"


def is_method(function: Callable[..., Any]) -> bool:
    """Whether a function was defined in the body of a class and takes the instance, or the class, first."""
    outer = getattr(function, "__qualname__", "").rpartition(".")[0]
    if not outer or outer.endswith("<locals>") or not inspect.isfunction(function):
        return False
    return next(iter(inspect.signature(function).parameters), None) in ("self", "cls")


def full_name(function: Callable[..., Any]) -> str:
    """`module.qualname`, or what the callable says of itself."""
    name = getattr(function, "__qualname__", None)
    return f"{function.__module__}.{name}" if name else repr(function)
