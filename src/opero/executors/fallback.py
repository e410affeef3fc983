"""Fallbacks: alternative values of an argument, another function, or a default result."""

from __future__ import annotations

import copy
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args, get_origin

from opero.errors import ConfigError, nearest
from opero.observe.logs import logger
from opero.policies.types import UNSET
from opero.runtime.functions import short_name

if TYPE_CHECKING:
    from opero.executors.call import Call, Layer
    from opero.policies.fallback import FallbackPolicy

__all__ = ["Alternatives", "FallbackExecutor"]

LISTS: tuple[Any, ...] = (list, tuple, Sequence, Collection, Iterable)


def takes_list(annotation: Any) -> bool | None:
    """Return whether a parameter with this annotation takes a list; None if the annotation does not say."""
    if annotation in (inspect.Parameter.empty, Any, object):
        return None
    if isinstance(annotation, str):
        head = annotation.replace("typing.", "").replace("collections.abc.", "").replace("t.", "", 1)
        return any(
            part.strip().lower().startswith(("list", "tuple", "sequence", "collection", "iterable"))
            for part in head.split("|")
        )
    origin = get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(takes_list(each) for each in get_args(annotation))
    if origin is typing.Annotated:
        return takes_list(get_args(annotation)[0])
    return (origin or annotation) in LISTS


class Alternatives:
    """Finds the values of the fallback argument in a call, and makes the arguments of the attempt with each.

    Args:
        name: the name of the argument.
        function: the function.

    Raises:
        ConfigError: the function has no such parameter, or it is variadic.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        signature = inspect.signature(function)
        parameter = signature.parameters.get(name)
        takes_any = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())
        if parameter is not None and parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(
                f"fallback.arg {name!r} is a variadic parameter of {short_name(function)}: use a single parameter"
            )
        if parameter is None and not takes_any:
            known = nearest(name, signature.parameters)
            raise ConfigError(f"{short_name(function)} has no parameter {name!r}, which fallback.arg names{known}")
        self.default: Any = UNSET
        self.position: int | None = None
        annotation: Any = inspect.Parameter.empty
        if parameter is not None:
            annotation = _annotation(function, parameter)
            if parameter.default is not parameter.empty:
                self.default = parameter.default
            if parameter.kind is not parameter.KEYWORD_ONLY:
                self.position = list(signature.parameters).index(name)
        self.takes_list = takes_list(annotation)

    def __str__(self) -> str:
        return self.name

    def variants(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> list[tuple[tuple[Any, ...], Mapping[str, Any]]]:
        """Return the arguments of each attempt of a round."""
        if self.position is not None and len(args) > self.position:
            given = args[self.position]
        else:
            given = kwargs.get(self.name, self.default)
        if given is UNSET:
            return [(args, kwargs)]
        if not isinstance(given, list | tuple):
            # A single value has no alternatives, but is wrapped if the parameter takes a list.
            return [self._with([given], args, kwargs)] if self.takes_list else [(args, kwargs)]
        if not given:
            return [(args, kwargs)]
        if self.takes_list is False:
            return [self._with(value, args, kwargs) for value in given]
        # Each attempt gets the list with another value first, and the others after it in their order.
        orders = [[given[i], *given[:i], *given[i + 1 :]] for i in range(len(given))]
        return [self._with(order if isinstance(given, list) else tuple(order), args, kwargs) for order in orders]

    def _with(
        self, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        if self.position is not None and len(args) > self.position:
            return (*args[: self.position], value, *args[self.position + 1 :]), kwargs
        return args, {**kwargs, self.name: value}


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    try:
        hints = typing.get_type_hints(inspect.unwrap(function))
    except Exception:  # noqa: BLE001  # such as a name imported under TYPE_CHECKING: use the annotation's text
        return parameter.annotation
    return hints.get(parameter.name, parameter.annotation)


class FallbackExecutor:
    """Answers a call with a fallback result after everything else has failed or timed out.

    Args:
        policy: the fallback policy.
        name: the function's name, for log messages.
        convert: converts a fallback result to what an attempt of a generator returns; None for other functions.
        counts_errors: whether failed attempts are counted here, as no retry layer does it.
    """

    def __init__(
        self,
        policy: FallbackPolicy,
        name: str,
        convert: Callable[[Any], Any] | None = None,
        *,
        counts_errors: bool = False,
    ) -> None:
        self.policy = policy
        self.name = name
        self.convert = convert
        self.counts_errors = counts_errors

    def answer(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any], error: Exception) -> Any:
        """Return the fallback result, or an awaitable of it if the fallback function is async."""
        call.stats.fallbacks += 1
        call.fell_back = True
        if self.counts_errors and not call.turned_away:
            call.stats.count_error(error)
        logger.info("%s: fallback used after %r", self.name, error)
        if self.policy.function is not None:
            return self.policy.function(*args, **kwargs)
        return copy.deepcopy(self.policy.default)

    def wrap(self, layer: Layer) -> Layer:
        def with_fallback(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            try:
                return layer(call, args, kwargs)
            except Exception as error:  # noqa: BLE001  # the fallback answers after any error
                answer = self.answer(call, args, kwargs, error)
                return answer if self.convert is None else self.convert(answer)

        return with_fallback

    def wrap_async(self, layer: Layer) -> Layer:
        async def with_fallback(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            try:
                return await layer(call, args, kwargs)
            except Exception as error:  # noqa: BLE001  # the fallback answers after any error
                answer = self.answer(call, args, kwargs, error)
                if self.policy.function is not None and inspect.isawaitable(answer):
                    answer = await answer
                return answer if self.convert is None else await self.convert(answer)

        return with_fallback
