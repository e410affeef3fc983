"""Context variables, log records and events across processes."""

from __future__ import annotations

import contextvars
import importlib
import io
import itertools
import logging
import pickle
import sys
import traceback
import uuid
from contextlib import nullcontext
from types import CodeType
from typing import TYPE_CHECKING, Any, ClassVar

import cloudpickle

from opero.events import EVENTS, Event
from opero.observe.hooks import deliver_from_worker
from opero.observe.receipts import current
from opero.runtime.forking import at_fork
from opero.runtime.log import keep_from_structlog, level_for_workers, relay

if TYPE_CHECKING:
    from opero.observe.stats import Stats

PROCESS = uuid.uuid4().hex
"""Identifies this process. A forked child gets another."""

NO_FILE = "<dynamic-code>"
"""What cloudpickle says instead of the file of a function."""

Variable = contextvars.ContextVar[Any]


# Context variables


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, extended: context variables go by name if a module holds them, else by a number.

    And functions that go by value keep the names of their files, which cloudpickle drops: tracebacks show them.
    """

    def reducer_override(self, value: Any) -> Any:
        if type(value) is contextvars.ContextVar:
            return _reduced(value)
        if type(value) is CodeType:
            build, parts = self.dispatch_table[CodeType](value)
            return build, tuple([value.co_filename if part == NO_FILE else part for part in parts])
        return super().reducer_override(value)

    @classmethod
    def dumps(cls, value: Any) -> bytes:
        file = io.BytesIO()
        cls(file, protocol=5).dump(value)
        return file.getvalue()


_numbers: dict[Variable, int] = {}
_count = itertools.count()
_homes: dict[Variable, list[tuple[str, str]]] = {}
_made: dict[tuple[str, int], Variable] = {}


def _home(variable: Variable) -> list[tuple[str, str]]:
    """The modules and names from which a variable can be imported."""
    if variable not in _homes:
        _homes[variable] = [
            (module_name, name)
            for module_name, module in list(sys.modules.items())
            if module_name not in ("__main__", "__mp_main__")
            for name, value in list(getattr(module, "__dict__", {}).items())
            if value is variable
        ]
    return _homes[variable]


def _reduced(variable: Variable) -> Any:
    homes = _home(variable)
    if homes:
        return _imported, (homes,)
    number = _numbers.setdefault(variable, next(_count))
    try:
        default = (contextvars.Context().run(variable.get),)
    except LookupError:
        default = ()  # type: ignore[assignment]
    return _remade, (PROCESS, number, variable.name, default)


def _imported(homes: list[tuple[str, str]]) -> Any:
    """The variable of that name; from a module that is already loaded, if possible."""
    for module, name in sorted(homes, key=lambda home: home[0] not in sys.modules):
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            problem = error
    raise problem


def _remade(process: str, number: int, name: str, default: tuple[Any, ...]) -> Variable:
    if (process, number) not in _made:
        _made[process, number] = (
            contextvars.ContextVar(name, default=default[0]) if default else contextvars.ContextVar(name)
        )
    return _made[process, number]


def _pickled_variables() -> bytes:
    """The variables of the current context whose values can be pickled."""
    pairs = []
    for variable, value in contextvars.copy_context().items():
        if variable is current:
            continue  # a receipt is written in this process only
        try:
            pairs.append(Pickler.dumps((variable, value)))
        except Exception:  # noqa: BLE001  # its value stays here
            continue
    return pickle.dumps(pairs)


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
        self.variables = _pickled_variables()
        self.levels = _levels()
        self.disabled = logging.root.manager.disable
        self.events = [name for name, event in EVENTS.items() if event.handlers]
        self.process = PROCESS

    @property
    def is_home(self) -> bool:
        """Whether this is the process in which it was taken: a pool may have its workers in the parent itself."""
        return self.process == PROCESS

    def context(self) -> contextvars.Context:
        """In the worker: a context in which the variables have the values that they had when they were pickled."""
        context = contextvars.Context()
        for pickled in pickle.loads(self.variables):
            try:
                variable, value = pickle.loads(pickled)
            except Exception:  # noqa: BLE001  # like one that cannot be pickled
                continue
            context.run(variable.set, value)
        return context

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
    """In a forked child, which may be a worker: forget the identity of the parent."""
    global PROCESS  # noqa: PLW0603  # one per process
    PROCESS = uuid.uuid4().hex
    CallContext.records = CallContext.entered = None
    CallContext.is_forked = True


at_fork(in_child=_forked)
