"""The keys of a keyed scope: what chooses the state of a call, by its arguments."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from hashlib import blake2b
from secrets import token_bytes
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opero.errors import ConfigError, describe, described
from opero.patterns import pattern
from opero.policies.scope import ORIGIN
from opero.problems import readable
from opero.runtime.functions import argument_of, full_name, kind_of, short_name

if TYPE_CHECKING:
    from opero.policies.scope import KeyedScope


class KeyOf:
    """Makes the key of a call.

    Args:
        make: returns it by the arguments of the call.
        position: the position of the argument that is the key itself, where it is passed by position.

    Attributes:
        position: as above; beyond all arguments, if the key is something else.
    """

    __slots__ = ("make", "position")

    def __init__(self, make: Callable[[tuple[Any, ...], Mapping[str, Any]], Any], position: int = sys.maxsize) -> None:
        self.make = make
        self.position = position


PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
MOST_SHOWN = 100
"""The most characters of a key in a message."""
_SECRET = pattern(r"secret|passw|token|credential|api_?key|auth", re.IGNORECASE)
_hashing = token_bytes(16)


def origin(scheme: str, host: str, port: int | None) -> str:
    """Return the origin of a URL as text: scheme, host, and the port unless it is that of the scheme."""
    scheme, host = scheme.lower(), host.lower()
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{scheme}://{host}" if port is None or PORTS.get(scheme) == port else f"{scheme}://{host}:{port}"


@lru_cache(4096)
def origin_of(url: str) -> str:
    """Return the origin of a URL.

    Raises:
        ValueError: it has none.
    """
    parts = urlsplit(url)
    if not parts.scheme or not parts.hostname:
        raise ValueError("it has no scheme and host, as https://api.example has")
    return origin(parts.scheme, parts.hostname, parts.port)


def key_function(
    scope: KeyedScope, function: Callable[..., Any], field: str, known: Mapping[str, Callable[..., Any]]
) -> KeyOf:
    """Return what makes the key of a call.

    Args:
        scope: says by what.
        function: the bound function.
        field: the field that says so, "circuit_breaker.scope.by".
        known: names that stand for something else than a parameter, each with a function of the call's arguments.

    Raises:
        ConfigError: the function has no such parameter, or a function of the user's is async.
    """
    by = scope.by
    if callable(by) or by in known:
        own = known[by] if isinstance(by, str) else by
        if kind_of(own) != "sync":
            raise ConfigError(
                f"{short_name(function)}: {field} is {full_name(own)}, which is async or a generator function: calling "
                "it does not give the key; use a sync function"
            )
        return KeyOf(lambda args, kwargs: own(*args, **kwargs))
    name = by.removesuffix(ORIGIN)
    position, default = argument_of(function, name, f"for {field}")

    def argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return args[position] if position < len(args) else kwargs.get(name, default)

    if name == by:
        return KeyOf(argument, position)

    def host(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        url = argument(args, kwargs)
        try:
            return origin_of(url if type(url) is str else str(url))
        except ValueError as error:
            raise ConfigError(
                f"{short_name(function)}: {field} is {by!r}, and its argument {name!r} is no URL "
                f"({described(url, MOST_SHOWN)}): {describe(error)}"
            ) from None

    return KeyOf(host)


def check_key(key: Any, name: str, by: Any) -> None:
    """Check that a value can be a key.

    Raises:
        ConfigError: it cannot.
    """
    reason = ""
    kind: Any = type(key)
    if key != key:  # NaN
        reason = "is not equal to itself, so no other call would find its state"
    elif (
        key is not None
        and kind.__hash__ is object.__hash__
        and not isinstance(key, type | FunctionType | BuiltinFunctionType)
    ):
        reason = "is equal to no other object, so no other call would find its state"
    if reason:
        raise unsuitable(key, name, by, reason)


def unsuitable(key: Any, name: str, by: Any, reason: str = "is not hashable") -> ConfigError:
    """Return the error for a value that cannot be a key."""
    source = f"the argument {by!r}" if isinstance(by, str) else f"the result of {full_name(by)}"
    return ConfigError(
        f"{name}: {source}, by which its state is chosen (scope), is of type {type(key).__name__} and {reason}: pass "
        "text, a number or a tuple, or set scope.by to a function that makes a key of the arguments"
    )


def shown(key: Hashable, by: object) -> str:
    """Return a key as messages show it: a short hash if it is of an argument whose name says that it is secret."""
    if isinstance(by, str) and _SECRET.search(by):
        return "#" + blake2b(repr(key).encode("utf-8", "surrogatepass"), digest_size=3, key=_hashing).hexdigest()
    return readable(key if isinstance(key, str) else str(key), MOST_SHOWN)
