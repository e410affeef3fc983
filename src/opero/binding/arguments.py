"""Whether what a policy asks about a call fits the parameters of the function: a cost, and functions of the same
arguments."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from opero.errors import ConfigError, described
from opero.policies.scope import KeyedScope
from opero.runtime.functions import full_name, short_name, signature_of

if TYPE_CHECKING:
    from opero.policies.policy import Policy

OF_THE_CALL = (
    *(("cache", "key"), ("rate_limit", "cost"), ("fallback", "function")),
    *((kind, "scope") for kind in ("circuit_breaker", "rate_limit", "bulkhead", "fallback")),
)
"""Fields whose functions receive the arguments of the call."""
VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def check_functions_of_calls(policy: Policy, function: Callable[..., Any]) -> None:
    """Check that functions that receive the arguments of a call can receive those of some call.

    Raises:
        ConfigError: one of them can receive those of none.
    """
    asked = [(f"{kind}.{field}", getattr(policy.active(kind), field, None)) for kind, field in OF_THE_CALL]
    limits = getattr(policy.active("rate_limit"), "limits", ())
    asked += [(f"rate_limit.limits.{index}.cost", limit.cost) for index, limit in enumerate(limits)]
    for field, found in asked:
        other = found.by if isinstance(found, KeyedScope) else found
        if not callable(other):
            continue
        own, its = signature_of(function), signature_of(other)
        if own is None or its is None or any(_binds(its, *call) for call in _calls(own, its)):
            continue
        name = short_name(function)
        raise ConfigError(
            f"{name}: {field} receives the arguments of each call of {name}{own}, and {full_name(other)}{its} "
            "cannot be called with them; use a function with the same parameters, or with *args and **kwargs"
        )


def _binds(signature: Signature, args: list[None], kwargs: dict[str, None]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _calls(own: Signature, its: Signature) -> Iterator[tuple[list[None], dict[str, None]]]:
    """Yield, for each number of arguments by position, the call of a function that another is most likely to accept.

    That call leaves out the optional arguments that the other does not know by name. What a function takes as `*args`
    and `**kwargs` may be anything, so whatever the other needs may be there.
    """
    parameters = [each for each in own.parameters.values() if each.kind not in VARIADIC]
    variadic = {each.kind for each in own.parameters.values()} & {*VARIADIC}
    needed = [each for each in its.parameters.values() if each.kind not in VARIADIC and each.default is each.empty]
    takes_any = any(each.kind is Parameter.VAR_KEYWORD for each in its.parameters.values())
    by_position = [each for each in parameters if each.kind in BY_POSITION]
    most = len(by_position)
    if Parameter.VAR_POSITIONAL in variadic:
        most = max(most, sum(each.kind in BY_POSITION for each in its.parameters.values()))
    for count in range(most + 1):
        later = [each for each in parameters if each not in by_position[:count]]
        filled = {each.name for each in [*its.parameters.values()][:count] if each.kind in BY_POSITION}
        names = {each.name for each in its.parameters.values() if each.kind in BY_NAME} - filled
        kwargs = dict.fromkeys(
            each.name
            for each in later
            if each.default is each.empty or (each.kind in BY_NAME and (takes_any or each.name in names))
        )
        if any(each.kind is Parameter.POSITIONAL_ONLY and each.default is each.empty for each in later):
            continue
        if Parameter.VAR_KEYWORD in variadic:
            kwargs |= dict.fromkeys(each.name for each in needed if each.name in names)
        yield [None] * count, kwargs


def check_cost_parameter(name: str, function: Callable[..., Any]) -> None:
    """Check that a parameter may hold the cost of a call, as far as its kind and its annotation say.

    Raises:
        ConfigError: it cannot be a number.
    """
    signature = signature_of(function)
    parameter = None if signature is None else signature.parameters.get(name)
    if parameter is None:
        return  # which is refused elsewhere, with the nearest name
    shown = short_name(function)
    try:
        hint = get_type_hints(function).get(name, Any)
    except Exception:  # noqa: BLE001  # names that exist for type checkers only, or anything a module does
        return
    if not _may_be_number(hint):
        raise ConfigError(
            f"{shown}: rate_limit.cost is {name!r}, which is no number, as its annotation says ({parameter}); name a "
            "parameter that holds the cost, or use a function of the arguments"
        )
    default = parameter.default
    is_number = isinstance(default, int | float) and not isinstance(default, bool) and default >= 0
    if default is not parameter.empty and not is_number:
        raise ConfigError(
            f"{shown}: rate_limit.cost is {name!r}, whose default {described(default, 30)} is no number >= 0, so a "
            "call that leaves it out would fail; set a default such as 1, or none"
        )


def _may_be_number(hint: Any) -> bool:
    """Return whether a value of a type may be an int or float, and no bool."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(map(_may_be_number, get_args(hint)))
    if origin is Literal:
        return any(type(each) in (int, float) for each in get_args(hint))
    if origin is not None and origin is not type:
        return not isinstance(origin, type)  # such as Annotated and Final, and not list[int]
    if hint is bool or hint is None:
        return False
    if hint is Any or not isinstance(hint, type) or getattr(hint, "_is_protocol", False):
        return True
    return issubclass(hint, int | float) or issubclass(int, hint) or issubclass(float, hint)
