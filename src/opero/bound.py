"""What users hold: a function like their own that carries its binding; in a class body, a descriptor like a method."""

from __future__ import annotations

import functools
import inspect
import types
from typing import TYPE_CHECKING, Any

from opero.binding.binding import Binding
from opero.binding.disabled import is_on, plain
from opero.binding.invocation import calling
from opero.errors import ConfigError
from opero.parallel.engine.mapper import Mapper
from opero.values import CacheInfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from opero.binding.pipeline import ExecutorProvider
    from opero.policies.policy import Policy
    from opero.runtime.clock import Clock

__all__ = ["BoundMethod", "bind"]


def bind(
    policy: Policy | None,
    function: Any,
    *,
    clock: Clock | None = None,
    provider: ExecutorProvider | None = None,
    mapped: bool = False,
    make: Callable[[Any, Policy | None], Binding] | None = None,
) -> Any:
    """Bind a policy to a function, method, class method or static method: a callable with the same signature.

    Args:
        policy: the policy; None if only a registry knows it.
        function: what to call.
        clock: the source of time and randomness. Default: the system's.
        provider: returns the executors that several functions share. Default: this function has its own.
        mapped: whether the result takes an iterable of items and calls the function for each (`@opmap`).
        make: makes the binding, if a registry looks after it. Default: a binding of its own.

    Raises:
        ConfigError: the policy does not fit the function, or `function` is not callable.
    """
    if make is None:

        def make(function: Any, policy: Policy | None) -> Binding:
            return Binding(function, policy, clock=clock, provider=provider)

    if isinstance(function, Method):
        function = function.__func__
    if isinstance(function, classmethod):
        return ClassMethod(_dressed(policy, function.__func__, make, mapped=mapped))
    if isinstance(function, staticmethod):
        return staticmethod(_dressed(policy, function.__func__, make, mapped=mapped))
    if not callable(function):
        # The message shows no repr, which may contain a secret.
        raise ConfigError(
            f"cannot bind a policy to a value of type {type(function).__name__}: it is not callable; bind a function, "
            "method or callable object"
        )
    dressed = _dressed(policy, function, make, mapped=mapped)
    if not dressed.binding.is_method:
        return dressed
    if dressed.binding.kind == "async" and hasattr(inspect, "markcoroutinefunction"):
        inspect.markcoroutinefunction(dressed)  # so that inspect recognizes the descriptor itself
    return Method(dressed)


def _dressed(policy: Policy | None, function: Any, make: Any, *, mapped: bool) -> Any:
    if policy is not None and not is_on():
        policy = plain(policy)
    return _dress(make(function, policy), mapped=mapped)


def _dress(binding: Binding, *, mapped: bool) -> Any:
    """Return the function that users call, with the attributes it carries."""
    single = calling(binding.target, binding)
    mapper = Mapper(binding, single)
    bound: Any = functools.wraps(binding.function)(mapper.function() if mapped else single)
    bound.__wrapped__ = binding.function
    bound.binding = binding
    bound.stats = binding.stats
    bound.policy = binding.late_policy() if binding.is_late else binding.pipeline.policy
    bound.map = mapper.function()
    bound.stream = mapper.stream
    for what in CACHE_METHODS:
        setattr(bound, f"cache_{what}", functools.partial(_cache_call, binding, what))
    binding.callable = bound
    if mapped:
        mapper.check()
    return bound


def _cache_call(binding: Binding, what: str, /, *args: Any, **kwargs: Any) -> Any:
    cache, hits, misses = binding.cache, binding.stats.cache_hits, binding.stats.cache_misses
    if cache is not None:
        return CacheInfo(hits, misses, *cache.extent()) if what == "info" else getattr(cache, what)(*args, **kwargs)
    if binding.policy.fields().get("cache") is None:
        raise ConfigError(f"{binding.name} has no cache; give it one with cache=True or cache_ttl=...")
    # An operator has switched the cache off: code that uses it keeps working.
    return {"info": CacheInfo(hits, misses, 0, 0, None), "set": False}.get(what)


CACHE_METHODS = ("get", "set", "delete", "clear", "info")


class BoundMethod(functools.partial):  # type: ignore[type-arg]
    """A bound function of a class, together with an instance: what `instance.method` gives.

    Its `map`, `stream`, `cache_get`, `cache_set` and `cache_delete` are the instance's, too.
    """

    @property
    def __self__(self) -> Any:
        return self.args[0]

    @property
    def __func__(self) -> Any:
        return self.func

    @property
    def __wrapped__(self) -> Any:
        return types.MethodType(self.__func__.__wrapped__, self.args[0])

    @property
    def __signature__(self) -> inspect.Signature:
        signature = inspect.signature(self.func)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.func.__doc__

    @property
    def map(self) -> Callable[..., Any]:
        return functools.partial(self.__func__.map, self.args[0])

    @property
    def stream(self) -> Callable[..., Any]:
        return functools.partial(self.__func__.stream, self.args[0])

    @property
    def cache_get(self) -> Callable[..., Any]:
        return functools.partial(self.__func__.cache_get, self.args[0])

    @property
    def cache_set(self) -> Callable[..., Any]:
        return lambda value, /, *args, **kwargs: self.__func__.cache_set(value, self.args[0], *args, **kwargs)

    @property
    def cache_delete(self) -> Callable[..., Any]:
        return functools.partial(self.__func__.cache_delete, self.args[0])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.func, name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BoundMethod) and self.func is other.func and self.args[0] is other.args[0]

    def __hash__(self) -> int:
        return hash((self.func, id(self.args[0])))

    def __repr__(self) -> str:
        return f"<bound method {self.func.__qualname__} of {self.args[0]!r}>"

    def __reduce__(self) -> Any:
        return getattr, (self.args[0], self.func.__name__)


class Method(staticmethod):  # type: ignore[type-arg]
    """A bound function in a class body. It is a `staticmethod` so that pydantic and others leave it in its class."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self.__func__ if instance is None else BoundMethod(self.__func__, instance)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__func__, name)

    def __reduce__(self) -> Any:
        return type(self), (self.__func__,)


class ClassMethod(Method):
    """A bound function that takes its class first."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return BoundMethod(self.__func__, type(instance) if owner is None else owner)
