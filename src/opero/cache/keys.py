"""Cache keys: a call's arguments, normalised to the function's signature, so that equal calls have equal keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from inspect import Parameter
from typing import TYPE_CHECKING, Any

from opero.cache.content import NoKeyError, freeze
from opero.cache.digest import digest
from opero.cache.instances import token_of
from opero.errors import ConfigError, nearest
from opero.runtime.functions import full_name, is_async_function, signature_of
from opero.runtime.generated import ANY, Parameters, generate

if TYPE_CHECKING:
    from types import FunctionType


def is_value(kind: Any) -> bool:
    """Return whether instances of a class compare by value and are hashable."""
    return kind.__eq__ is not object.__eq__ and kind.__hash__ is not None


KEY = """
def generated({parameters}):
    try:
        return {key}
    except NO_KEY as _error:
        raise explained(_error, {args}, {kwargs}) from None
"""
NO_KEY = (NoKeyError, RecursionError)
NAMESPACE = {"__name__": __name__, "freeze": freeze, "NO_KEY": NO_KEY}


class Digest(str):
    """A key for stores that outlive the process, as text that is the same in every process."""

    __slots__ = ()


class KeyMaker:
    """Makes the keys of one function's calls.

    Args:
        function: the function whose signature the arguments are normalised to.
        key: the policy's own key function, which is called with the call's arguments; None for the default key.
        is_method: whether the first parameter is an instance. Instances have separate keys unless they define
            `__opero_key__` (a value, or a method that returns it), or `__eq__` and `__hash__`.
        ignore: the names of parameters that are not part of the default key.
        is_shared: whether the keys are for a store that outlives the process.

    Attributes:
        of: makes the key of a call: `of(*args, **kwargs)`; where `key` is async, only `awaited` does.
        is_async: whether `key` is async.
        parameters: the function's parameters by name; empty if its signature cannot be read.

    Raises:
        ConfigError: `ignore` has a name that is not a parameter.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        key: Callable[..., Any] | None,
        *,
        is_method: bool,
        ignore: Collection[str] = (),
        is_shared: bool = False,
    ) -> None:
        self.signature = signature_of(function)
        self.parameters: Mapping[str, Parameter] = self.signature.parameters if self.signature is not None else {}
        self.key = key
        self.is_async = is_async_function(key)
        self.is_method = is_method
        self.ignore = frozenset(ignore)
        self.is_shared = is_shared
        self.name: str = getattr(function, "__qualname__", "function")
        self._check_ignored()
        self.of: Callable[..., Hashable] = self.compiled()

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
        return self.of(*args, **kwargs) if kwargs else self.of(*args)

    def compiled(
        self, template: str = KEY, /, *, values: Mapping[str, Any] | None = None, **parts: str
    ) -> FunctionType:
        """Generate a function with the user's parameters that makes the key.

        Such a function takes a twentieth of the time of `inspect.Signature.bind`.

        Args:
            template: see `opero.runtime.generated.code`; `{key}` stands for the expression that makes the key.
            values: the values of the names in it that differ from function to function.
            parts: further parts of the template.
        """
        parameters, key, used = self._expression()
        if self.is_shared:
            used["digested"], key = _digested, f"digested({key})"
        used["explained"] = self._explained
        made = generate(template, parameters, {**used, **(values or {})}, NAMESPACE, key=key, **parts)
        made.__qualname__ = made.__name__ = self.name  # for the TypeError of a call with wrong arguments
        return made

    def _expression(self) -> tuple[Parameters, str, dict[str, Any]]:
        """Return the parameters, the expression of the key, and the values that it uses."""
        if self.key is not None:
            return ANY, "whole({args}, {kwargs})", {"whole": self._by_function}
        if self.signature is None:
            return ANY, "whole({args}, {kwargs})", {"whole": self._by_position}
        parameters = Parameters.of_signature(self.parameters)
        used: dict[str, Any] = {}
        expressions: list[str] = []
        for index, parameter in enumerate(self.parameters.values()):
            kind, name = parameter.kind, f"{{{parameters.names.index(parameter.name)}}}"
            if parameter.name in self.ignore:
                continue
            if kind is Parameter.VAR_KEYWORD and not self.ignore <= self.parameters.keys():
                used["without"] = self._without_ignored
                expressions.append(f"(freeze(without({name})) if {name} else ())")
            elif kind is Parameter.VAR_POSITIONAL:
                expressions.append(f"(tuple(map(freeze, {name})) if {name} else ())")
            elif kind is Parameter.VAR_KEYWORD:
                expressions.append(f"(freeze({name}) if {name} else ())")
            elif index == 0 and self.is_method:
                used["instance"] = instance_key
                expressions.append(f"instance({name})")
            else:
                first, second = ("str", "int") if parameter.annotation in (str, "str") else ("int", "str")
                expressions.append(
                    f"({name} if type({name}) is {first} or type({name}) is {second} else freeze({name}))"
                )
        return parameters, expressions[0] if len(expressions) == 1 else f"({', '.join(expressions)})", used

    def _by_function(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
        assert self.key is not None
        if self.is_async:
            raise ConfigError(
                f"{self.name}: the keys of its cache come from the async function {full_name(self.key)}, and "
                "only calls of the function await it; for cache_get, cache_set and cache_delete use a sync key function"
            )
        return "key", freeze(self.key(*args, **kwargs))

    async def awaited(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
        """Return the key of a call by the policy's async key function."""
        assert self.key is not None
        key = "key", freeze(await self.key(*args, **kwargs))
        return _digested(key) if self.is_shared else key

    def _by_position(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
        return freeze(args), freeze(kwargs)

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by parameter name, including defaults."""
        if self.signature is None:
            return dict(kwargs)
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def _check_ignored(self) -> None:
        if self.ignore and self.signature is None:
            raise ConfigError(f"{self.name}: cache.ignore has no effect, as its parameters are unknown; set cache_key")
        if any(each.kind is Parameter.VAR_KEYWORD for each in self.parameters.values()):
            return
        for name in self.ignore - self.parameters.keys():
            raise ConfigError(
                f"{self.name}: cache.ignore has {name!r}, which is not a parameter of the function"
                f"{nearest(name, self.parameters)}"
            )

    def _without_ignored(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in kwargs.items() if name not in self.ignore}

    def _explained(self, error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Exception:
        """Return an error that names the argument that cannot be part of a key, and what to do about it."""
        if isinstance(error, RecursionError):
            why = "it refers to itself, or is nested too deeply: set cache_key"
        else:
            why = str(error)
        name = None if self.key is not None else self._culprit(args, kwargs)
        if name is None:
            return ConfigError(f"{self.name} has no cache key: {why}")
        if self.is_method and name == next(iter(self.parameters)):
            return ConfigError(f"{self.name}: its instance cannot be part of a cache key: {why}")
        return ConfigError(
            f"{self.name}: its argument {name!r} cannot be part of a cache key: {why}, or leave it out: "
            f"cache: {{ignore: [{name}]}}"
        )

    def _culprit(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
        first = next(iter(self.parameters), None) if self.is_method else None
        arguments = self.arguments(args, kwargs)
        for parameter in self.parameters.values():
            if parameter.kind is Parameter.VAR_KEYWORD:
                arguments |= arguments.pop(parameter.name, {})
        for name, value in arguments.items():
            if name in self.ignore:
                continue
            try:
                frozen = instance_key(value) if name == first else freeze(value)
                if self.is_shared:
                    _digested(frozen)
            except NO_KEY:
                return name
        return None


def _digested(key: Hashable) -> Digest:
    return Digest(digest(key))


def instance_key(instance: Any) -> Hashable:
    """Return the part of a method's key that identifies the instance."""
    kind = type(instance)
    if isinstance(instance, type):  # a class method's class; its `__opero_key__` is meant for its instances
        return kind, instance
    own = getattr(instance, "__opero_key__", None)
    if own is not None:
        return kind, freeze(own() if callable(own) else own)
    return freeze(instance) if is_value(kind) else (kind, token_of(instance))
