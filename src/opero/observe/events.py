"""What opero tells of itself while it runs: `opero.on("cache_unavailable", handler)`."""

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
    "cache_unavailable": "a cache's store has failed: functions go on without it until it is tried again",
    "cache_available": "a store that had failed answers again",
    "cache_not_stored": "a result could not be kept",
    "cache_unreadable": "a store holds something for a key that this policy does not read",
    "configuration_reloaded": "files or variables have changed, and what they say holds; `details` has the `changes`",
    "configuration_rejected": "what files or variables say is wrong; what held before goes on",
    "map_progress": "how far a map has come, ten times a second at most and at its end; `details` has the `progress`",
    "cache_refresh_failed": "a background refresh failed; the old result is served on for its `stale_ttl`",
}
"""Every event, and what it means."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        name: one of `EVENTS`.
        subject: what it happened to: a function's or a store's name.
        message: the same in words.
        error: the exception behind it, or None.
        details: further values, by name.
    """

    name: str
    subject: str
    message: str
    error: BaseException | None = None
    details: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


_handlers: dict[str, tuple[Callable[[Event], object], ...]] = {}


def on(event: str, handler: Callable[[Event], object]) -> Callable[[], None]:
    """Call `handler` with every event of that name, in the thread where it happens.

    An exception in it is logged and goes no further.

    Returns:
        A function that takes the handler off again.

    Raises:
        ValueError: there is no such event; the message names the nearest.
    """
    if event not in EVENTS:
        raise ValueError(f"no event {event!r}{nearest(event, EVENTS)}")
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
    """Log an event and hand it to its handlers."""
    logger.log(level, "%s: %s", subject, message)
    emit_quietly(name, subject, message, error=error, **details)


def has_handlers(name: str) -> bool:
    """Whether anybody is told of an event."""
    return bool(_handlers.get(name))


def emit_quietly(name: str, subject: str, message: str, *, error: BaseException | None = None, **details: Any) -> None:
    """Hand an event to its handlers, if there are any."""
    handlers = _handlers.get(name)
    if not handlers:
        return
    event = Event(name, subject, message, error, MappingProxyType(details))
    for handler in handlers:
        try:
            handler(event)
        except Exception:  # noqa: BLE001  # a user's own
            logger.exception("the handler %r of event %s failed", handler, name)
