"""Subscriptions to events: `opero.on(RetryScheduled, handler, policy="api")`, and what delivers events to them."""

from __future__ import annotations

import atexit
import queue
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from fnmatch import fnmatchcase
from types import CoroutineType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from opero.errors import nearest
from opero.events import EVENTS, Event, watched
from opero.runtime.forking import RenewedLock, at_fork
from opero.runtime.functions import full_name, kind_of
from opero.runtime.log import log

if TYPE_CHECKING:
    import asyncio
    from typing import Protocol

    class Hooks(Protocol):
        """See `opero.observe.hooks`."""

        @property
        def of(self) -> Mapping[type[Event], tuple[Subscription, ...]]: ...


E = TypeVar("E", bound=Event)

SLOW = 0.05
"""Seconds that a handler may take in the thread of a call."""
MOST_WAITING = 10_000
"""Events that wait for slow or async handlers; more are dropped, which is logged once."""
LAST_WAIT = 2.0
"""Seconds that the end of the program waits for slow handlers."""

_calling: ContextVar[tuple[Subscription, ...]] = ContextVar("_calling", default=())
"""The handlers that are being called here."""
changing = RenewedLock()


class Subscription:
    """A handler, and which events it receives.

    Args:
        handler: a function or async function of the event.
        policy, function: patterns of the names of profiles and functions; None for all.
        most_seconds: how long it may take before it counts as slow.

    Attributes:
        is_slow: whether it is called in the thread for slow handlers.
    """

    __slots__ = ("__weakref__", "_reported", "function", "handler", "is_async", "is_slow", "most_seconds", "policy")

    def __init__(
        self,
        handler: Callable[[Any], object],
        policy: str | None = None,
        function: str | None = None,
        most_seconds: float = SLOW,
    ) -> None:
        self.handler = handler
        self.policy = policy
        self.function = function
        self.most_seconds = most_seconds
        self.is_async = "async" in (kind_of(handler), kind_of(type(handler).__call__))
        self.is_slow = False
        self._reported: set[str] = set()

    def matches(self, event: Event) -> bool:
        """Return whether the handler wants an event."""
        if self.policy is not None and not fnmatchcase(event.policy, self.policy):
            return False
        return self.function is None or fnmatchcase(event.function, self.function)

    def deliver(self, event: Event) -> None:
        """Call the handler: in this thread, unless it is slow; an async one in the event loop that runs here.

        An event that the handler itself causes, as by calling a bound function, is not delivered to it: that would
        cause the next one.
        """
        if self in _calling.get():
            return
        if self.is_async:
            loop = _running_loop()
            if loop is None:
                _slow.put(self, event)
            elif len(_tasks) >= MOST_WAITING:
                self.report_dropped(event)
            else:
                task = loop.create_task(self.call_async(event))
                _tasks.add(task)  # the event loop keeps only a weak reference
                task.add_done_callback(_tasks.discard)
        elif self.is_slow:
            _slow.put(self, event)
        else:
            started = time.perf_counter()
            self.call(event)
            if time.perf_counter() - started > self.most_seconds:
                self.is_slow = True
                limit = f"{self.most_seconds * 1000:g} ms"
                self.report(event, f"takes longer than {limit}; from now on it is called in another thread")

    def call(self, event: Event) -> None:
        """Call a sync handler, whatever it raises."""
        token = _calling.set((*_calling.get(), self))
        try:
            result = self.handler(event)
            if type(result) is CoroutineType:  # as of a lambda that calls an async function
                result.close()
                self.report(event, "returned a coroutine, which is not awaited: subscribe the async function itself")
        except Exception as error:  # noqa: BLE001  # a user's handler may raise anything
            self.report(event, "failed", error)
        finally:
            _calling.reset(token)

    async def call_async(self, event: Event) -> None:
        """Await an async handler, whatever it raises."""
        token = _calling.set((*_calling.get(), self))
        try:
            await self.handler(event)  # type: ignore[misc]  # it is async
        except Exception as error:  # noqa: BLE001  # as above
            self.report(event, "failed", error)
        finally:
            _calling.reset(token)

    def report_dropped(self, event: Event) -> None:
        """Log that events are dropped, as too many wait for the handler already."""
        self.report(event, f"is too slow: {MOST_WAITING} events wait, and others are dropped")

    def report(self, event: Event, problem: str, error: BaseException | None = None) -> None:
        """Log a problem of the handler, once."""
        with changing:
            if problem in self._reported:
                return
            self._reported.add(problem)
        name = full_name(self.handler)
        text = "the handler %s of the event %s %s"
        fields: dict[str, Any] = {"handler": name, "of_event": event.name, "error": error, "traceback": True}
        log("handler_failed", text, name, event.name, problem, **fields)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the asyncio event loop that runs in this thread; asyncio is not imported for it."""
    asyncio = sys.modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()


_tasks: set[Any] = set()
"""The tasks of async handlers."""


class _SlowHandlers:
    """A thread that calls handlers which would delay calls. It begins with the first event."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[Subscription, Event]] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None

    def put(self, subscription: Subscription, event: Event) -> None:
        """Have a handler called with an event, after those that wait already."""
        if self._thread is None:
            with changing:
                if self._thread is None:
                    thread = threading.Thread(target=self._work, name="opero-events", daemon=True)
                    thread.start()
                    self._thread = thread
        try:
            self._waiting.put_nowait((subscription, event))
        except queue.Full:
            subscription.report_dropped(event)

    def join(self, seconds: float) -> None:
        """Wait until the handlers have been called with all events so far, but no longer than that."""
        until = time.monotonic() + seconds
        with self._waiting.all_tasks_done:
            while self._waiting.unfinished_tasks and (left := until - time.monotonic()) > 0:
                self._waiting.all_tasks_done.wait(left)

    def _work(self) -> None:
        runner: asyncio.Runner | None = None  # one event loop for all, to which clients of a handler may be bound
        while True:
            subscription, event = self._waiting.get()
            try:
                if not subscription.is_async:
                    subscription.call(event)
                    continue
                if runner is None:
                    import asyncio

                    runner = asyncio.Runner()
                runner.run(subscription.call_async(event))
            except BaseException as error:  # noqa: BLE001  # such as SystemExit, which would end the thread
                subscription.report(event, "failed", error)
            finally:
                del subscription, event  # the thread may wait for long
                self._waiting.task_done()


_slow = _SlowHandlers()


def _forked() -> None:
    _slow.__init__()  # type: ignore[misc]  # the thread, its events and the tasks are the parent's
    _tasks.clear()


at_fork(in_child=_forked)
atexit.register(lambda: _slow.join(LAST_WAIT))


@overload
def on(
    event: type[E], handler: Callable[[E], object], *, policy: str | None = None, function: str | None = None
) -> Callable[[], None]: ...
@overload
def on(
    event: str, handler: Callable[[Any], object], *, policy: str | None = None, function: str | None = None
) -> Callable[[], None]: ...
def on(
    event: type[Event] | str,
    handler: Callable[[Any], object],
    *,
    policy: str | None = None,
    function: str | None = None,
) -> Callable[[], None]:
    """Call a handler at every event of a class.

    A sync handler is called in the thread in which the event occurs. An async one is awaited by the asyncio event loop
    that runs there; where none runs, in a background thread. What a handler raises is logged once, and harms no call. A
    handler that takes longer than 50 ms is called in a background thread from then on, which is logged once. Events
    that a handler causes itself are not delivered to it.

    Events in the worker processes of a map are delivered in the process that runs the map, as its workers report. In a
    worker process, handlers receive nothing.

    Args:
        event: the class of the event, its name such as "retry_scheduled", or "*" for all (see `opero.events`). A base
            class such as `Event` or `CircuitChanged` stands for all its classes.
        handler: is called with the event.
        policy: the name of a profile, or a pattern such as "api-*". Default: all events, those without a profile, too.
        function: the name of a function, "module:qualname", or a pattern such as "app.users:*". Default: all.

    Returns:
        A function that ends the subscription.

    Raises:
        ValueError: there is no event of that name.
        TypeError: the handler cannot be called, or a pattern is not a string.
    """
    classes = _classes(event)
    if not callable(handler):
        raise TypeError(f"on() expects a handler that can be called, not a value of type {type(handler).__name__}")
    for name, pattern in (("policy", policy), ("function", function)):
        if pattern is not None and not isinstance(pattern, str):
            raise TypeError(
                f"on() expects {name} to be a name or pattern, not a value of type {type(pattern).__name__}"
            )
    subscription = Subscription(handler, policy, function)
    if not redirected:
        attach(subscription, classes)
    return lambda: detach(subscription)


def attach(subscription: Any, classes: Iterable[type[Event]]) -> None:
    """Deliver the events of these classes to a subscription from now on."""
    with changing:
        for each in classes:
            each.handlers = (*each.handlers, subscription)
        watched.update()


def detach(subscription: Any) -> None:
    """Deliver no events to a subscription any more."""
    with changing:
        for each in EVENTS.values():
            if subscription in each.handlers:
                each.handlers = tuple(one for one in each.handlers if one is not subscription)
        watched.update()


def _classes(event: type[Event] | str) -> list[type[Event]]:
    if isinstance(event, type) and issubclass(event, Event):
        found = [each for each in EVENTS.values() if issubclass(each, event)]
    else:
        found = list(EVENTS.values()) if event == "*" else [EVENTS[event]] if event in EVENTS else []
    if not found:
        name = event if isinstance(event, str) else getattr(event, "__name__", repr(event))
        raise ValueError(f"unknown event {name!r}{nearest(name, [*EVENTS, '*'])}")
    return found


def redirect(names: Collection[str], receive: Callable[[Event], object]) -> None:
    """Deliver the events of these names to one function from now on, and no others to any: this process is a worker.

    Handlers that its modules register, as those of the parent do, would receive events a second time.
    """
    subscription = Subscription(receive, most_seconds=float("inf"))
    with changing:
        redirected.append(True)
        for name, each in EVENTS.items():
            kept = tuple(one for one in each.handlers if not isinstance(one, Subscription))  # the recorder of receipts
            each.handlers = (subscription, *kept) if name in names else kept
        watched.update()


redirected: list[bool] = []
"""Not empty in a worker process of a map, where handlers receive nothing."""


def is_worker() -> bool:
    """Return whether this is a worker process of a map, whose events and counts its parent has."""
    return bool(redirected)


def emit(event: type[Event], hooks: Iterable[Hooks] = (), **values: Any) -> None:
    """Deliver an event to its handlers and to these hooks, if there are any."""
    if event.handlers:
        deliver(event(**values), hooks)


def deliver(event: Event, hooks: Iterable[Hooks] = ()) -> None:
    """Deliver an event that has been built already, such as in another process, to its handlers and to these hooks."""
    for each in event.handlers:
        if each.matches(event):
            each.deliver(event)
    if hooks and not redirected:
        kind = type(event)
        for each in dict.fromkeys(each for one in hooks for each in one.of.get(kind, ())):
            each.deliver(event)


watched.deliver = deliver


def join_slow_handlers(seconds: float) -> None:
    """Wait until slow handlers have been called with all events so far, but no longer than that."""
    _slow.join(seconds)
