"""What opero logs: every record has a name, which decides its level and how often it may come, and structured fields.

    log("fallback_used", "%s: fallback used after %r", name, error, function=function, policy=policy, error=error)

The records go to the logger "opero", or to structlog if the application has configured it.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from opero.problems import message_of
from opero.runtime.clock import default_clock
from opero.runtime.forking import RenewedLock
from opero.runtime.log_records import ENDED_BY, RECORDS
from opero.runtime.log_texts import LONGEST_OF_ERROR, Shown, plain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    from opero.runtime.clock import Clock

    class About(Protocol):
        function: str
        policy: str


logger = logging.getLogger("opero")
logger.addHandler(logging.NullHandler())

PERIOD = 60.0
"""Seconds within which lines of one kind and function are counted."""
MOST_KEPT = 4096
"""Kinds and functions that are counted at a time; others share one count for each kind."""


_LEVELS = {event: record.level for event, record in RECORDS.items()}


def shows(event: str) -> bool:
    """Return whether records of this name are shown at all: for where their fields take time."""
    return logger.isEnabledFor(_LEVELS[event]) or ("structlog" in sys.modules and _structlog() is not None)


def log(
    event: str,
    message: str,
    *args: Any,
    about: About | None = None,
    function: str = "",
    policy: str = "",
    error: BaseException | None = None,
    traceback: bool = False,
    hides: bool = False,
    clock: Clock | None = None,
    **fields: Any,
) -> None:
    """Log a record, unless there have been too many of its kind and function within the last minute.

    Texts and exceptions among the arguments and fields become one line, and are shown without what looks like a secret.

    Args:
        event: its name, a key of `RECORDS`.
        message: the text, with places for the arguments.
        *args: the arguments of the text.
        about: the statistics of the function that it is about, which have its name and profile.
        function: or the name of the function, "module:qualname"; "" if it concerns no single one.
        policy: and of the profile; "" if there is none.
        error: the exception that it is about; the record has its type as `error`, and its text as `error_message`.
        traceback: whether the traceback of that exception belongs to the record.
        hides: whether texts of exceptions may contain a secret of the caller's: only their types are shown.
        clock: the source of time. Default: the default clock.
        **fields: further fields of the record.
    """
    record, structlog = RECORDS[event], _structlog()
    if structlog is None and not logger.isEnabledFor(record.level):
        return
    if about is not None:
        function, policy = about.function, about.policy
    since = limiter.admit(_key(event, function, policy, fields), record.most, clock)
    if since is None:
        return
    extra: dict[str, Any] = {"event": event, "function": function, "policy": policy}
    extra |= {name: plain(value) for name, value in fields.items()}
    if "error" in record.fields:
        extra["error"] = None if error is None else type(error).__name__
        extra["error_message"] = None if error is None or hides else message_of(error, LONGEST_OF_ERROR)
    if since:
        message, args, extra["left_out"] = f"{message} (and %d more since)", (*args, since), since
    shown = tuple(each if isinstance(each, int | float) else Shown(each, hides) for each in args)
    exc_info = error if traceback else None
    if structlog is None or not _to_structlog(structlog, record.level, message % shown, extra, exc_info):
        logger.log(record.level, message, *shown, extra=extra, exc_info=exc_info, stacklevel=2)


def is_heard() -> bool:
    """Return whether records are received: a handler other than the one that drops them, or structlog."""
    handlers = [*logger.handlers, *(logging.getLogger().handlers if logger.propagate else ())]
    return _structlog() is not None or any(not isinstance(each, logging.NullHandler) for each in handlers)


def relay(record: logging.LogRecord) -> None:
    """Handle a record that another process has logged, such as a worker of a map: it counts as one of this process."""
    fields = vars(record)
    known = RECORDS.get(fields.get("event", "")) if record.name == logger.name else None
    if known is not None:
        since = limiter.admit(_key(fields["event"], fields["function"], fields["policy"], fields), known.most)
        if since is None:
            return
        if since:
            record.msg, record.args = f"{record.getMessage()} (and {since} more since)", None
            record.left_out = fields.get("left_out", 0) + since
        structlog = _structlog()
        names = ("event", "function", "policy", *known.fields, "left_out")
        extra = {name: fields[name] for name in names if name in fields}
        if structlog is not None and _to_structlog(structlog, record.levelno, record.getMessage(), extra, None):
            return
    target = logging.getLogger(record.name)
    if target.isEnabledFor(record.levelno):
        target.handle(record)


def _key(event: str, function: str, policy: str, fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what is counted together: one kind of record of one function, or of what else it is about."""
    about = fields.get("cache") or fields.get("breaker") or function or policy
    what = fields.get("what", fields.get("hash", ""))
    return event, about, what if what != "unavailable" else ""


class Limiter:
    """Counts lines by key within periods, in bounded memory. Thread-safe."""

    def __init__(self) -> None:
        self._lock = RenewedLock()
        self.kept: dict[tuple[str, ...], list[float]] = {}
        """Key → when its period began, how many lines it has had, how many were left out."""
        self._swept = -PERIOD

    def admit(self, key: tuple[str, ...], most: int, clock: Clock | None = None) -> int | None:
        """Return how many lines were left out before this one, or None if it is left out itself."""
        if not most:
            return 0
        now = (clock or default_clock()).monotonic()
        with self._lock:
            count = self.kept.get(key)
            if count is None and len(self.kept) >= MOST_KEPT:
                self._sweep(now)
                key = key if len(self.kept) < MOST_KEPT else key[:1]
                count = self.kept.get(key)
            if count is None:
                self.kept[key] = [now, 1, 0]
                return self._admitted(key, 0)
            if not 0 <= now - count[0] < PERIOD:  # also if that was another clock
                since = int(count[2])
                count[:] = [now, 1, 0]
                return self._admitted(key, since)
            if count[1] < most:
                count[1] += 1
                return self._admitted(key, 0)
            count[2] += 1
            return None

    def _admitted(self, key: tuple[str, ...], since: int) -> int:
        end = ENDED_BY.get(key[0])
        if end is not None:
            self.kept.pop((end, *key[1:]), None)
        return since

    def _sweep(self, now: float) -> None:
        """Forget whose period is over, at most once a second."""
        if 0 <= now - self._swept < 1:
            return
        self._swept = now
        self.kept = {key: count for key, count in self.kept.items() if 0 <= now - count[0] < PERIOD}

    def forget(self) -> None:
        """Forget all counts."""
        with self._lock:
            self.kept.clear()
            self._swept = -PERIOD


limiter = Limiter()


# structlog

_own: list[bool] = []
"""Not empty in a worker process of a map, whose records go to the parent."""


def keep_from_structlog() -> None:
    """Log to the logger "opero" alone from now on: this process is a worker, whose records go to its parent."""
    _own.append(True)


def level_for_workers() -> int:
    """Return the level from which on worker processes log for this one; 0 if that of the other loggers applies."""
    return logger.level or (logging.DEBUG if _structlog() is not None else 0)


def _structlog() -> Any:
    """Return structlog if the application has configured it, else None."""
    module = sys.modules.get("structlog")
    return module if module is not None and not _own and module.is_configured() else None


_METHODS = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}


def _to_structlog(
    structlog: Any, level: int, message: str, extra: Mapping[str, Any], error: BaseException | None
) -> bool:
    """Log to structlog, whose event is the name of the record, and return whether that was possible."""
    if logger.level and level < logger.level:  # set by `configure_logging`; structlog has a level of its own as well
        return True
    fields = {name: value for name, value in extra.items() if name != "event"}
    if error is not None:
        fields["exc_info"] = error
    try:
        bound = structlog.get_logger("opero").bind()
        getattr(getattr(bound, "sync_bl", bound), _METHODS[level])(extra["event"], message=message, **fields)
    except Exception:  # noqa: BLE001  # a processor of the application may raise anything
        return False
    return True
