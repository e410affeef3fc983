"""Events, which handlers can subscribe to: `opero.on("cache_unavailable", handler)`."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from opero.errors import nearest
from opero.observe.logs import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["EVENTS", "Event", "emit", "on"]

EVENTS = {
    "cache_unavailable": "a cache store failed; functions run without it until a probe succeeds",
    "cache_available": "a cache store is available again",
    "cache_not_stored": "a result could not be cached",
    "cache_unreadable": "a cache entry cannot be read under the policy",
    "configuration_reloaded": "a changed configuration was loaded; `details` has the `changes`",
    "configuration_rejected": "a changed configuration is invalid; the previous one stays in effect",
    "map_progress": "the progress of a map, at most ten times a second and at its end; `details` has the `progress`",
    "cache_refresh_failed": "a background refresh failed; the old result is served until its `stale_ttl` ends",
}
"""Name → description of every event."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event.

    Attributes:
        name: the event's name, one of `EVENTS`.
        subject: the name of the function or store that it concerns.
        message: a description.
        error: the exception that caused it, or None.
        details: additional values, by name.
    """

    name: str
    subject: str
    message: str
    error: BaseException | None = None
    details: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


_handlers: dict[str, tuple[Callable[[Event], object], ...]] = {}


def on(event: str, handler: Callable[[Event], object]) -> Callable[[], None]:
    """Call a handler at every event of a name, in the thread in which it occurs.

    Exceptions of the handler are logged.

    Args:
        event: the name of the event, one of `EVENTS`.
        handler: is called with the `Event`.

    Returns:
        A function that removes the handler.

    Raises:
        ValueError: there is no event of that name.
    """
    if event not in EVENTS:
        raise ValueError(f"unknown event {event!r}{nearest(event, EVENTS)}")
    _handlers[event] = (*_handlers.get(event, ()), handler)

    def off() -> None:
        held = list(_handlers.get(event, ()))
        if handler in held:
            held.remove(handler)
        _handlers[event] = tuple(held)

    return off


def emit(
    name: str, subject: str, message: str, *, level: int, error: BaseException | None = None, **details: Any
) -> None:
    """Log an event, and call its handlers."""
    logger.log(level, "%s: %s", subject, message)
    emit_quietly(name, subject, message, error=error, **details)


def has_handlers(name: str) -> bool:
    """Return whether an event has handlers."""
    return bool(_handlers.get(name))


def emit_quietly(name: str, subject: str, message: str, *, error: BaseException | None = None, **details: Any) -> None:
    """Call the handlers of an event, without logging it."""
    handlers = _handlers.get(name)
    if not handlers:
        return
    event = Event(name, subject, message, error, MappingProxyType(details))
    for handler in handlers:
        try:
            handler(event)
        except Exception:  # noqa: BLE001  # a user's handler may raise anything
            logger.exception("handler %r of event %s failed", handler, name)
