"""What users hold: a function like their own, or in a class a descriptor like a function, that carries its binding."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from opero.binding.binding import Binding
from opero.binding.disabled import is_on, plain
from opero.binding.fit import check_own
from opero.binding.invocation import Entry
from opero.binding.roster import of_no_registry
from opero.errors import ConfigError
from opero.parallel.engine.mapper import Mapper
from opero.values import CacheInfo

if TYPE_CHECKING:
    from opero.binding.making import ExecutorProvider
    from opero.policies.policy import Policy
    from opero.runtime.clock import Clock

ATTRIBUTES = frozenset({"binding", "stats", "policy", "map", "stream", "starmap", "starstream"})
"""What a bound function carries."""
CACHE_METHODS = frozenset({"cache_get", "cache_entry", "cache_set", "cache_delete", "cache_clear", "cache_info"})
"""What it carries as well, unless the function has a cache of its own, such as that of `functools.lru_cache`."""
ORDERS = {
    property: "put @opero below @property",
    functools.cached_property: "put @opero below @cached_property",
    functools.partialmethod: "put @opero on the function that partialmethod() is given",
    functools.singledispatchmethod: "put @opero below @singledispatchmethod, and on each function that is registered",
}
"""What cannot be bound because it is not callable, with the order of decorators that works."""
_context_manager: Any = contextlib.contextmanager
_async_context_manager: Any = contextlib.asynccontextmanager
MAKES_CONTEXT: dict[Any, str] = {
    _context_manager(iter).__code__: "@contextmanager",
    _async_context_manager(iter).__code__: "@asynccontextmanager",
}
"""The code of functions that only make a context manager, which fails later, when it is entered."""


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
        ConfigError: the policy does not fit the function, `function` is not callable, or has an attribute that the
            bound function would replace.
    """
    if make is None:
        check_own(policy, function)

        def make(function: Any, policy: Policy | None) -> Binding:
            return of_no_registry(Binding(function, policy, clock=clock, provider=provider))

    kind = type(function)
    if kind is Method:
        function = function.__func__
    elif issubclass(kind, classmethod):
        return ClassMethod(_dressed(policy, function.__func__, make, mapped=mapped))
    elif issubclass(kind, staticmethod):
        return staticmethod(_dressed(policy, function.__func__, make, mapped=mapped))
    elif not callable(function):
        # The message shows no repr, which may contain a secret.
        cure = next((cure for each, cure in ORDERS.items() if isinstance(function, each)), None)
        raise ConfigError(
            f"cannot bind a policy to a value of type {kind.__name__}: it is not callable; "
            f"{cure or 'bind a function, method or callable object'}"
        )
    dressed = _dressed(policy, function, make, mapped=mapped)
    return Method(dressed) if dressed.binding.is_method else dressed


def _dressed(policy: Policy | None, function: Any, make: Any, *, mapped: bool) -> Any:
    if policy is not None and not is_on():
        policy = plain(policy)
    above = MAKES_CONTEXT.get(getattr(function, "__code__", None))
    if above is not None:
        raise ConfigError(
            f"{_name(function)} only makes a context manager, which cannot fail before it is entered: put @opero below "
            f"{above}, where it retries what comes before the yield"
        )
    if replaced := (own := _own_attributes(function)) & ATTRIBUTES:
        raise ConfigError(
            f"{_name(function)} has an attribute {min(replaced)!r}, and so has every bound function: rename it, or put "
            "@opero below the decorator that adds it"
        )
    if own and policy is not None and policy.active("cache") is not None:
        raise ConfigError(
            f"{_name(function)} has a cache of its own, with {min(own)}(), and its policy has another: use one of them"
        )
    return _dress(make(function, policy), own, mapped=mapped)


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def _own_attributes(function: Any) -> frozenset[str]:
    """Return the attributes of a function that a bound function has as well."""
    attributes: Any = getattr(function, "__dict__", ())
    if isinstance(attributes, Attributes):
        return frozenset()  # bound already
    if isinstance(function, types.FunctionType):
        return (ATTRIBUTES | CACHE_METHODS).intersection(attributes) if attributes else frozenset()
    missing = object()
    return frozenset(
        name for name in ATTRIBUTES | CACHE_METHODS if inspect.getattr_static(function, name, missing) is not missing
    )


def _dress(binding: Binding, own: frozenset[str], *, mapped: bool) -> Any:
    """Return the function that users call, with the attributes it carries."""
    function, mapper = binding.function, Mapper(binding)
    if mapped:
        bound: Any = mapper.function()
    else:
        binding.entry = Entry(binding.target, binding, is_exact=binding.pipeline.is_exact)
        bound = binding.entry.function
    functools.update_wrapper(bound, function)
    attributes = Attributes(bound.__dict__)
    attributes.update(
        binding=binding,
        stats=binding.stats,
        policy=binding.late_policy() if binding.is_late else binding.pipeline.policy,
        map=mapper.map_async if binding.kind == "async" else mapper.map,
        stream=mapper.stream,
        starmap=mapper.starmap_async if binding.kind == "async" else mapper.starmap,
        starstream=mapper.starstream,
    )
    for name in CACHE_METHODS - own:
        attributes[name] = types.MethodType(_CACHE_METHODS[name], binding)
    for name in own:
        attributes[name] = getattr(function, name)
    bound.__dict__ = attributes
    binding.callable = bound
    if mapped:
        mapper.check()
    return bound


class Attributes(dict[str, Any]):
    """The attributes of a bound function. Copying them to another function (`functools.wraps`) leaves out opero's own.

    So `map`, `cache_clear` and so on never belong to a function that another decorator makes of this one, whose checks
    they would pass by.
    """

    __slots__ = ()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> Any:
        if sys._getframe(1).f_code in _COPYING:
            return self.copy().keys()
        return super().keys()

    def copy(self) -> dict[str, Any]:
        """Return the attributes that are not opero's own."""
        ours = {"__wrapped__", *ATTRIBUTES, *CACHE_METHODS}
        return {name: value for name, value in self.items() if name not in ours}


_COPYING = {functools.update_wrapper.__code__}


def _cache_method(name: str) -> Callable[..., Any]:
    what = name.removeprefix("cache_")

    def method(binding: Binding, /, *args: Any, **kwargs: Any) -> Any:
        cache = binding.cache
        if cache is not None:
            return getattr(cache, what)(*args, **kwargs)
        if binding.policy.fields().get("cache") is None:
            raise ConfigError(f"{binding.name} has no cache; give it one with cache=True or cache_ttl=...")
        # An operator has switched the cache off: code that uses it keeps working.
        stats = binding.stats
        return {"info": CacheInfo(stats.cache_hits, stats.cache_misses, 0, 0, None), "set": False}.get(what)

    method.__name__ = method.__qualname__ = name
    return method


_CACHE_METHODS = {name: _cache_method(name) for name in CACHE_METHODS}


def _of_instance(name: str) -> property:
    return property(lambda self: functools.partial(getattr(self.__func__, name), self.args[0]))


class BoundMethod(functools.partial):  # type: ignore[type-arg]
    """A bound function of a class, together with an instance: what `instance.method` gives.

    It passes for a method. Its `map` and its like, `cache_get`, `cache_entry`, `cache_set` and `cache_delete` are the
    instance's, too. A real method would be faster, but looks its attributes up without the instance.
    """

    __slots__ = ()

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return types.MethodType

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
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.func.__doc__

    @property
    def __module__(self) -> str:  # type: ignore[override]
        return self.func.__module__

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        return self.func.__dict__

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]
        return self.func.__annotations__

    map, stream, starmap, starstream, cache_get, cache_entry, cache_delete = (
        _of_instance(name)
        for name in ("map", "stream", "starmap", "starstream", "cache_get", "cache_entry", "cache_delete")
    )

    @property
    def cache_set(self) -> Callable[..., Any]:
        return lambda value, /, *args, **kwargs: self.__func__.cache_set(value, self.args[0], *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.func, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"'method' object has no attribute {name!r}: set it on the function, {self.__qualname__}")

    def __get__(self, instance: Any, owner: type | None = None) -> BoundMethod:
        return self

    def __eq__(self, other: object) -> bool:
        return type(other) is BoundMethod and self.func is other.func and self.args[0] is other.args[0]

    def __hash__(self) -> int:
        return hash((self.func, id(self.args[0])))

    def __repr__(self) -> str:
        return f"<bound method {self.func.__qualname__} of {self.args[0]!r}>"

    def __reduce__(self) -> Any:
        return getattr, (self.args[0], self.func.__name__)


class Method:
    """A bound function in a class body, which gives instances a `BoundMethod`. It passes for the function itself.

    Attributes:
        __func__: the bound function.
    """

    __slots__ = ("__func__", "__weakref__")

    def __init__(self, function: Any) -> None:
        object.__setattr__(self, "__func__", function)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self.__func__ if instance is None else BoundMethod(self.__func__, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__func__(*args, **kwargs)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return types.FunctionType

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.__func__.__doc__  # type: ignore[no-any-return]

    @property
    def __module__(self) -> str:  # type: ignore[override]
        return self.__func__.__module__  # type: ignore[no-any-return]

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        return self.__func__.__dict__  # type: ignore[no-any-return]

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]
        return self.__func__.__annotations__  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__func__, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__func__, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.__func__, name)

    def __repr__(self) -> str:
        return repr(self.__func__)

    def __reduce__(self) -> Any:
        return Method, (self.__func__,)


class ClassMethod(classmethod):  # type: ignore[type-arg]
    """A bound function that takes its class first."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return BoundMethod(self.__func__, type(instance) if owner is None else owner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__func__, name)

    def __reduce__(self) -> Any:
        return ClassMethod, (self.__func__,)
