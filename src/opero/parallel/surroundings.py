"""What a worker process shares with its parent besides arguments: context variables, and where log records go."""

from __future__ import annotations

import contextvars
import io
import itertools
import logging
import logging.handlers
import os
import sys
import uuid
from typing import Any, ClassVar

import cloudpickle

__all__ = ["Pickler", "Surroundings", "drain_records", "handle_records"]

PROCESS = uuid.uuid4().hex
"""Tells this process from all others, but for those that were forked from it."""

Variable = contextvars.ContextVar[Any]


# Context variables


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """As cloudpickle's, and for context variables: by name where a module holds them, else by a number of their own."""

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
_homes: dict[Variable, tuple[str, str] | None] = {}
_made: dict[tuple[int, str], Variable] = {}


def _home(variable: Variable) -> tuple[str, str] | None:
    """The module and name under which a variable can be imported."""
    if variable not in _homes:
        _homes[variable] = None
        for module_name, module in list(sys.modules.items()):
            if module_name in ("__main__", "__mp_main__"):
                continue
            for name, value in list(getattr(module, "__dict__", {}).items()):
                if value is variable:
                    _homes[variable] = module_name, name
    return _homes[variable]


def _reduced(variable: Variable) -> Any:
    home = _home(variable)
    if home is not None:
        return _imported, home
    number = _numbers.setdefault(variable, next(_count))
    try:
        default = (contextvars.Context().run(variable.get),)
    except LookupError:
        default = ()  # type: ignore[assignment]
    return _remade, (number, variable.name, default)


def _imported(module: str, name: str) -> Any:
    import importlib

    return getattr(importlib.import_module(module), name)


def _remade(number: int, name: str, default: tuple[Any, ...]) -> Variable:
    if (number, name) not in _made:
        _made[number, name] = (
            contextvars.ContextVar(name, default=default[0]) if default else contextvars.ContextVar(name)
        )
    return _made[number, name]


def _with_variables(variables: bytes) -> contextvars.Context:
    """A context in which these variables have the values that they had where they were pickled."""
    context = contextvars.Context()
    for pickled in cloudpickle.loads(variables):
        variable, value = cloudpickle.loads(pickled)
        context.run(variable.set, value)
    return context


def _pickled_variables() -> bytes:
    """The running context's variables, but for those whose values do not pickle."""
    pairs = []
    for variable, value in contextvars.copy_context().items():
        try:
            pairs.append(Pickler.dumps((variable, value)))
        except Exception:  # noqa: BLE001  # it stays where it is
            continue
    return cloudpickle.dumps(pairs)  # type: ignore[no-any-return]


# Logging


class Records(logging.handlers.QueueHandler):
    """Keeps a worker's records until they are sent with the next report."""

    def __init__(self) -> None:
        super().__init__([])  # type: ignore[arg-type]
        self.kept: list[logging.LogRecord] = []

    def enqueue(self, record: logging.LogRecord) -> None:
        self.kept.append(record)

    def drain(self) -> list[logging.LogRecord]:
        kept, self.kept = self.kept, []
        return kept


def handle_records(records: list[logging.LogRecord]) -> None:
    """Hand a worker's records to this process's own loggers."""
    for record in records:
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)


def _levels() -> dict[str, int]:
    """The level of each logger that has one of its own."""
    loggers = logging.root.manager.loggerDict.items()
    levels = {name: each.level for name, each in loggers if isinstance(each, logging.Logger) and each.level}
    return {"": logging.root.level, **levels}


def _drop_handlers() -> None:
    for each in (logging.root, *logging.root.manager.loggerDict.values()):
        if isinstance(each, logging.Logger):
            each.handlers.clear()


class Surroundings:
    """What surrounds a call here, for a worker process.

    Attributes:
        variables: the context variables, pickled.
        levels: loggers' levels by name.
        disabled: the level up to which logging is disabled.
        process: where they were taken.
    """

    records: ClassVar[Records | None] = None
    """This worker's, once it has some surroundings."""

    def __init__(self) -> None:
        self.variables = _pickled_variables()
        self.levels = _levels()
        self.disabled = logging.root.manager.disable
        self.process = PROCESS, os.getpid()

    @property
    def is_home(self) -> bool:
        """Whether this is the process in which they were taken: a pool may have its workers in the parent itself."""
        return self.process == (PROCESS, os.getpid())

    def enter(self) -> contextvars.Context:
        """In the worker: what is logged goes to the parent, from the same levels on; the context for its calls."""
        if self.is_home:
            return _with_variables(self.variables)
        if Surroundings.records is None:
            if self.process[0] == PROCESS:  # forked: what its parent handles there it would handle twice
                _drop_handlers()
            Surroundings.records = Records()
            logging.root.addHandler(Surroundings.records)
        for name, level in self.levels.items():
            logging.getLogger(name).setLevel(level)
        logging.disable(self.disabled)
        return _with_variables(self.variables)


def drain_records() -> list[Any]:
    """What has been logged in this worker since this was last asked."""
    return [] if Surroundings.records is None else Surroundings.records.drain()
