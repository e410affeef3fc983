"""Objects without a value of their own: what stands for them in keys, and who is told when they are gone."""

from __future__ import annotations

import functools
import itertools
import weakref
from typing import Any, Protocol


class Dependent(Protocol):
    """What holds keys that contain a token."""

    def forget(self, token: Token) -> None:
        """Note that the instance is gone. It may be called at any time, in any thread, even during a call of itself."""


class Token(int):
    """Identifies, within this process, an instance that has no value of its own.

    Attributes:
        instance: a weak reference to the instance.
        dependents: what holds keys with this token.
    """

    instance: weakref.ref[Any]
    dependents: dict[int, weakref.ref[Dependent]]


class Identity:
    """Identifies an instance that has no value of its own and does not support weak references."""

    __slots__ = ("instance",)

    def __init__(self, instance: object) -> None:
        self.instance = instance

    def __hash__(self) -> int:
        return id(self.instance)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.instance is other.instance


tokens: dict[int, Token] = {}
"""Address → the token of the instance there. Each operation on it is atomic."""
_numbers = itertools.count()


def _forget(address: int, token: Token, tokens: dict[int, Token], _: object) -> None:
    # Without global names: at the end of the program they are gone before the last instances.
    if tokens.get(address) is token:
        del tokens[address]
    for reference in list(token.dependents.values()):
        dependent = reference()
        if dependent is not None:
            dependent.forget(token)


def token_of(instance: Any) -> Token | Identity:
    """Return what stands for an instance in keys.

    It is never the address, as another instance may later have the same.
    """
    address = id(instance)
    held = tokens.get(address)
    if held is not None and held.instance() is instance:
        return held
    token = Token(next(_numbers))
    token.dependents = {}
    try:
        token.instance = weakref.ref(instance, functools.partial(_forget, address, token, tokens))
    except TypeError:
        return Identity(instance)
    held = tokens.setdefault(address, token)  # another thread may have added one meanwhile
    if held.instance() is not instance:
        held = tokens[address] = token
    return held
