"""Context variables and log records across processes."""

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
from typing import Any, ClassVar

import cloudpickle

from opero.runtime.forking import at_fork

__all__ = ["CallContext", "Pickler", "drain_records", "handle_records"]

PROCESS = uuid.uuid4().hex
"""Identifies this process. A forked child gets another."""

Variable = contextvars.ContextVar[Any]


# Context variables


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, extended to context variables: by name if a module holds them, else by a number."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is contextvars.ContextVar:
            return _reduced(value)
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


def _with_variables(variables: bytes) -> contextvars.Context:
    """A context in which these variables have the values that they had when they were pickled."""
    context = contextvars.Context()
    for pickled in pickle.loads(variables):
        try:
            variable, value = pickle.loads(pickled)
        except Exception:  # noqa: BLE001  # like one that cannot be pickled
            continue
        context.run(variable.set, value)
    return context


def _pickled_variables() -> bytes:
    """The variables of the current context whose values can be pickled."""
    pairs = []
    for variable, value in contextvars.copy_context().items():
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
        fields = {name: value if _pickles(value) else TextOf(value) for name, value in fields.items() if name != "args"}
    args = record.args
    if isinstance(args, dict):
        fields["args"] = {name: value if _pickles(value) else TextOf(value) for name, value in args.items()}
    else:
        fields["args"] = tuple(value if _pickles(value) else TextOf(value) for value in args or ())
    try:
        is_same = str(fields["msg"]) % fields["args"] == message if fields["args"] else True
    except Exception:  # noqa: BLE001  # the format needs more than the text of an argument
        is_same = False
    if not is_same:
        fields |= {"msg": message, "args": None}
    return Pickler.dumps(fields), plain


def _pickles(value: Any) -> bool:
    try:
        Pickler.dumps(value)
    except Exception:  # noqa: BLE001  # the answer
        return False
    return True


def handle_records(records: list[tuple[bytes, dict[str, Any]]]) -> None:
    """Hand the records of a worker to the loggers of this process. Errors of their handlers are printed, not raised."""
    for pickled, plain in records:
        try:
            fields = pickle.loads(pickled)
        except Exception:  # noqa: BLE001  # its arguments cannot be unpickled here
            fields = plain
        record = logging.makeLogRecord(fields)
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            try:
                logger.handle(record)
            except Exception:  # noqa: BLE001  # printed, as logging does with errors of handlers
                if logging.raiseExceptions and sys.stderr is not None:
                    traceback.print_exc()


def _levels() -> dict[str, int]:
    """The level of each logger that has its own."""
    loggers = list(logging.root.manager.loggerDict.items())
    levels = {name: each.level for name, each in loggers if isinstance(each, logging.Logger) and each.level}
    return {"": logging.root.level, **levels}


class CallContext:
    """The context of the caller, for a worker: context variables and log levels.

    Attributes:
        variables: the context variables, pickled.
        levels: loggers' levels by name.
        disabled: the level up to which logging is disabled.
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
        self.process = PROCESS

    @property
    def is_home(self) -> bool:
        """Whether this is the process in which it was taken: a pool may have its workers in the parent itself."""
        return self.process == PROCESS

    def context(self) -> contextvars.Context:
        """In the worker: the context variables for its calls."""
        return _with_variables(self.variables)

    def enter(self) -> None:
        """In the worker: send log records to the parent, from the same levels on."""
        held = CallContext.entered
        if self.is_home or held is self:
            return
        if CallContext.records is None:
            CallContext.records = Records()
            if CallContext.is_forked:  # its handlers are those of its parent, which the records reach anyway
                _remove_handlers()
            logging.root.addHandler(CallContext.records)
        for name in () if held is None else held.levels.keys() - self.levels.keys():
            logging.getLogger(name).setLevel(logging.NOTSET)
        for name, level in self.levels.items():
            logging.getLogger(name).setLevel(level)
        logging.disable(self.disabled)
        CallContext.entered = self


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
