"""The hooks of policies: handlers of the events of the functions that are bound under one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from types import MethodType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, WeakValueDictionary, ref

from opero.events import watched
from opero.observe.subscriptions import Subscription, changing, deliver, redirected
from opero.runtime.forking import RenewedLock

if TYPE_CHECKING:
    from typing import Protocol

    from opero.events import Event

    class Stats(Protocol):
        function: str
        policy: str
        hooks: Hooks | None


_changing = RenewedLock()
_subscriptions: WeakValueDictionary[Any, Subscription] = WeakValueDictionary()
"""Handler → its subscription, which all hooks share: it is slow for all of them, and reported once."""
_in_force: WeakSet[Hooks] = WeakSet()


class _OfHooks(Subscription):
    """Stands among the handlers of a class for all hooks of policies, so that its events are built."""

    __slots__ = ()

    def matches(self, event: Event) -> bool:
        return False


OF_HOOKS = _OfHooks(print)
_hooked: dict[type[Event], int] = {}
"""Class of events → the number of functions that have a hook for it."""
_unhooked: deque[Collection[type[Event]]] = deque()
"""Classes for which a hook is gone, which has not been counted yet."""


def _hook_in(classes: Collection[type[Event]]) -> None:
    """Have the events of these classes built, as a hook wants them, until `_unhook`."""
    with changing:
        for each in classes:
            _hooked[each] = _hooked.get(each, 0) + 1
        _update()


def _unhook(classes: Collection[type[Event]]) -> None:
    """A hook for these classes is gone. This waits for no lock: it may be called wherever memory is freed."""
    _unhooked.append(classes)
    if changing.acquire(blocking=False):
        try:
            _update()
        finally:
            changing.release()


def _update() -> None:
    """Have the events built for which there are hooks, and no others. The caller holds the lock."""
    while _unhooked:
        for each in _unhooked.popleft():
            _hooked[each] -= 1
    has_changed = False
    for each, number in () if redirected else list(_hooked.items()):
        if (number > 0) != (OF_HOOKS in each.handlers):
            others = tuple([one for one in each.handlers if one is not OF_HOOKS])
            each.handlers = (*others, OF_HOOKS) if number > 0 else others
            has_changed = True
    if has_changed:
        watched.update()


class Hooks:
    """The hooks of one function. While they exist, their events are built.

    Args:
        handlers: class of events → its handlers.
        function, policy: the names of the function and its profile.

    Attributes:
        of: class of events → the subscriptions of its handlers.
    """

    __slots__ = ("__weakref__", "function", "of", "policy")

    def __init__(
        self, handlers: Mapping[type[Event], tuple[Callable[..., Any], ...]], function: str = "", policy: str = ""
    ) -> None:
        self.of = {event: tuple(map(_subscription, found)) for event, found in handlers.items()}
        self.function = function
        self.policy = policy
        _hook_in(self.of)

    def __del__(self) -> None:
        with suppress(Exception):  # as at the end of the program
            _unhook(self.of)


def _subscription(handler: Callable[..., Any]) -> Subscription:
    # Callables may be equal and yet different; a method is another object each time.
    key: Any = (id(handler.__self__), handler.__func__) if isinstance(handler, MethodType) else id(handler)
    with _changing:
        found = _subscriptions.get(key)
        if found is None:
            found = _subscriptions[key] = Subscription(handler)
        return found


class Emitter:
    """What emits events that concern all functions that use it, such as the circuit breaker of a profile."""

    _hooks: tuple[ref[Hooks], ...] = ()

    @property
    def hooks(self) -> list[Hooks]:
        """The hooks of these functions."""
        return [hooks for each in self._hooks if (hooks := each()) is not None]

    def replace_hooks(self, before: Hooks | None, after: Hooks | None) -> None:
        """Put the hooks of a function in the place of those that it had before."""
        with _changing:
            others = [each for each in self._hooks if each() not in (None, before, after)]
            self._hooks = (*others, *(() if after is None else (ref(after),)))


def put_in_force(stats: Stats, hooks: Hooks | None) -> None:
    """Call the hooks of a function with its events from now on, and no longer those that it had before."""
    before, stats.hooks = stats.hooks, hooks
    with _changing:
        if before is not None:
            _in_force.discard(before)
        if hooks is not None:
            _in_force.add(hooks)


def deliver_from_worker(event: Event, stats: Stats | None) -> None:
    """Deliver an event of a worker process.

    Args:
        event: what happened there.
        stats: of the function that is mapped. Other functions that it calls are known by their names.
    """
    if stats is not None and (event.function, event.policy) == (stats.function, stats.policy):
        deliver(event, () if stats.hooks is None else (stats.hooks,))
        return
    with _changing:
        known = list(_in_force)
    is_named = bool(event.function or event.policy)
    deliver(
        event,
        [each for each in known if is_named and each.policy == event.policy and event.function in ("", each.function)],
    )
