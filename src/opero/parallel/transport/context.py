"""What calls in another process find of their caller: context variables, log levels, where records and events go."""

from __future__ import annotations

import logging
import pickle
import sys
import traceback
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from opero.events import EVENTS, Event
from opero.observe.hooks import deliver_from_worker
from opero.parallel.transport import variables
from opero.parallel.transport.variables import Pickler
from opero.runtime.forking import at_fork
from opero.runtime.log import keep_from_structlog, level_for_workers, relay

if TYPE_CHECKING:
    import contextvars

    from opero.observe.stats import Stats

# Logging


class TextOf:
    """Replaces an argument of a record that cannot be pickled, with the same text."""

    def __init__(self, value: Any) -> None:
        self.text, self.repr = str(value), repr(value)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.repr


class Records(logging.Handler):
    """Keeps the records of a worker, as they were when they were logged, for the next report."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[bytes, dict[str, Any]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.kept.append(_pickled_record(record))
        except Exception:  # noqa: BLE001  # for example arguments that do not fit the message
            self.handleError(record)

    def keep(self, event: tuple[bytes, dict[str, Any]]) -> None:
        """Keep a pickled event, among the records."""
        with self.lock or nullcontext():
            self.kept.append(event)

    def drain(self) -> list[tuple[bytes, dict[str, Any]]]:
        with self.lock or nullcontext():
            kept, self.kept = self.kept, []
        return kept


_formatter = logging.Formatter()


def _pickled_record(record: logging.LogRecord) -> tuple[bytes, dict[str, Any]]:
    """A record for another process, and plain fields to use if it cannot be unpickled there."""
    message = record.getMessage()
    fields = dict(record.__dict__)
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = _formatter.formatException(record.exc_info)
    fields["exc_info"] = None
    plain = {"msg": message, "args": None, "name": record.name, "levelno": record.levelno}
    plain |= {name: fields[name] for name in ("levelname", "process", "created", "exc_text")}
    try:
        return Pickler.dumps(fields), plain
    except Exception:  # noqa: BLE001  # find out which part
        fields = {name: _sendable(value) for name, value in fields.items() if name != "args"}
    args = record.args
    if isinstance(args, dict):
        fields["args"] = {name: _sendable(value) for name, value in args.items()}
    else:
        fields["args"] = tuple(_sendable(value) for value in args or ())
    try:
        is_same = str(fields["msg"]) % fields["args"] == message if fields["args"] else True
    except Exception:  # noqa: BLE001  # the format needs more than the text of an argument
        is_same = False
    if not is_same:
        fields |= {"msg": message, "args": None}
    return Pickler.dumps(fields), plain


def _sendable(value: Any) -> Any:
    return value if is_picklable(value) else TextOf(value)


def is_picklable(value: Any) -> bool:
    """Whether a value can be sent to another process."""
    try:
        Pickler.dumps(value)
    except Exception:  # noqa: BLE001  # the answer
        return False
    return True


def handle_records(records: list[tuple[bytes, dict[str, Any]]], stats: Stats | None = None) -> None:
    """Hand what a worker has logged to the loggers of this process, and its events to their handlers here.

    Errors of handlers are printed, not raised.

    Args:
        records: what the worker has sent.
        stats: of the function that is mapped.
    """
    for pickled, plain in records:
        try:
            fields = pickle.loads(pickled)
        except Exception:  # noqa: BLE001  # its arguments cannot be unpickled here
            fields = pickle.loads(plain["event"]) if "event" in plain else plain
        if isinstance(fields, Event):
            deliver_from_worker(fields, stats)
            continue
        try:
            relay(logging.makeLogRecord(fields))
        except Exception:  # noqa: BLE001  # printed, as logging does with errors of handlers
            if logging.raiseExceptions and sys.stderr is not None:
                traceback.print_exc()


def _levels() -> dict[str, int]:
    """The level of each logger that has its own."""
    loggers = list(logging.root.manager.loggerDict.items())
    levels = {name: each.level for name, each in loggers if isinstance(each, logging.Logger) and each.level}
    own = level_for_workers()
    return {"": logging.root.level, **levels, **({"opero": own} if own else {})}


class CallContext:
    """The context of the caller, for a worker: context variables and log levels.

    Attributes:
        variables: the context variables, pickled.
        levels: loggers' levels by name.
        disabled: the level up to which logging is disabled.
        events: the names of the events that somebody listens to.
        process: the process in which they were taken.
    """

    records: ClassVar[Records | None] = None
    """The records of this worker, once it has entered a context."""
    entered: ClassVar[CallContext | None] = None
    """The context that this worker has entered last."""
    is_forked: ClassVar[bool] = False

    def __init__(self) -> None:
        self.variables = variables.pickled_variables()
        self.levels = _levels()
        self.disabled = logging.root.manager.disable
        self.events = [name for name, event in EVENTS.items() if event.handlers]
        self.process = variables.PROCESS

    @property
    def is_home(self) -> bool:
        """Whether this is the process in which it was taken: a pool may have its workers in the parent itself."""
        return self.process == variables.PROCESS

    def context(self) -> contextvars.Context:
        """In the worker: a context in which the variables have the values that they had when they were pickled."""
        return variables.context_of(self.variables)

    def enter(self) -> bool:
        """In the worker: send log records to the parent, from the same levels on; false if that is so already."""
        held = CallContext.entered
        if self.is_home or held is self:
            return False
        if CallContext.records is None:
            CallContext.records = Records()
            keep_from_structlog()
            if CallContext.is_forked:  # its handlers are those of its parent, which the records reach anyway
                _remove_handlers()
            logging.root.addHandler(CallContext.records)
        for name in () if held is None else held.levels.keys() - self.levels.keys():
            logging.getLogger(name).setLevel(logging.NOTSET)
        for name, level in self.levels.items():
            logging.getLogger(name).setLevel(level)
        logging.disable(self.disabled)
        CallContext.entered = self
        return True


def _remove_handlers() -> None:
    loggers = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    for logger in (logging.root, *loggers):
        logger.handlers.clear()
        logger.propagate = True


def drain_records() -> list[Any]:
    """The records of this worker since the last call."""
    return [] if CallContext.records is None else CallContext.records.drain()


def _forked() -> None:
    """In a forked child, which may be a worker: it enters contexts of its own."""
    CallContext.records = CallContext.entered = None
    CallContext.is_forked = True


at_fork(in_child=_forked)
