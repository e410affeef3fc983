"""The logger "opero", which shows nothing until logging is configured: by `configure_logging` or by variables."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

from opero.errors import nearest
from opero.runtime.environment_files import variable
from opero.runtime.log import log, logger
from opero.runtime.log_texts import plain, readable
from opero.runtime.named_secrets import find_secret

__all__ = ["configure_logging", "logger"]

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LEVEL_VARIABLE, FORMAT_VARIABLE = "OPERO_LOG_LEVEL", "OPERO_LOG_FORMAT"
FRAMES = 3
"""Places of a traceback that a line of text shows."""
STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""The attributes that every record has, whatever its fields."""


def configure_logging(
    level: int | str | None = None,
    format: Literal["text", "json"] | None = None,  # noqa: A002  # the name that logging has for it
) -> logging.Logger:
    """Show opero's log records on stderr, unless the application has handlers of its own, which then receive them.

    What is normal is logged at DEBUG, what recovers by itself at INFO, what an operator should know at WARNING, and
    what needs a person at ERROR; docs/logging.md lists all records. Each is one line.

    Args:
        level: the minimum level to show, as a `logging` level or its name. Default: `OPERO_LOG_LEVEL`, else INFO.
        format: "text", or "json" for one JSON object a line with all fields of a record. Default: `OPERO_LOG_FORMAT`,
            else "text".

    Returns:
        The logger "opero".

    Raises:
        ValueError: the level or the format is invalid.
    """
    number = _number(_setting(LEVEL_VARIABLE)[0] if level is None else level)
    formatter = _formatter(_setting(FORMAT_VARIABLE)[0] if format is None else format)
    logger.setLevel(number)
    own = next((each for each in logger.handlers if isinstance(each, _OwnHandler)), None)
    if own is None:
        own = _OwnHandler()
        logger.addHandler(own)
    own.setFormatter(formatter)
    return logger


def _number(level: Any) -> int:
    names = logging.getLevelNamesMapping()
    if isinstance(level, str) and level.strip().isdecimal():
        return int(level)
    if isinstance(level, str) and level.strip().upper() in names:
        return names[level.strip().upper()]
    if isinstance(level, int) and not isinstance(level, bool) and level >= 0:
        return level
    raise ValueError(f"invalid logging level {level!r}{nearest(str(level), names)}")


def _formatter(name: Any) -> logging.Formatter:
    made = FORMATTERS.get(name.strip().lower()) if isinstance(name, str) else None
    if made is None:
        raise ValueError(f"invalid logging format {name!r}{nearest(str(name), FORMATTERS)}")
    return made()


class _Text(logging.Formatter):
    """One line of text. Of an exception it has the type, the text and the innermost places."""

    def __init__(self) -> None:
        super().__init__(FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        record.message = " ".join(record.getMessage().split())
        record.asctime = self.formatTime(record)
        return self.formatMessage(record) + _folded(record)


def _folded(record: logging.LogRecord) -> str:
    """Return the exception of a record as the end of its line."""
    if not record.exc_info or record.exc_info[1] is None:
        last = (record.exc_text or "").strip().splitlines()[-1:]  # of a record from another process
        return "".join(f": {readable(each)}" for each in last)
    _, error, tb = record.exc_info
    places = [f"{each.filename}:{each.lineno} in {each.name}" for each in traceback.extract_tb(tb)[-FRAMES:]]
    text = f": {readable(''.join(traceback.format_exception_only(error)))}"
    return text + (f" (at {', from '.join(places[::-1])})" if places else "")


class _Json(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the fields of the record, and its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = {name: value for name, value in record.__dict__.items() if name not in STANDARD}
        line |= {name: plain(value) for name, value in fields.items() if name not in line}
        line["process"] = record.process
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = self.formatException(record.exc_info)
        elif record.exc_text:
            line["traceback"] = record.exc_text
        import json  # few log JSON

        return json.dumps(line, ensure_ascii=False)


FORMATTERS: dict[str, Callable[[], logging.Formatter]] = {"text": _Text, "json": _Json}


class _OwnHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the current `sys.stderr`, unless handlers of the application receive the record."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # StreamHandler.__init__ would store the stderr of this moment

    @property
    def stream(self) -> Any:
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        others = [each for each in logger.handlers if not isinstance(each, _OwnHandler | logging.NullHandler)]
        if logger.propagate:
            others += logging.getLogger().handlers
        if not others:
            super().emit(record)


# Variables


def _value(name: str) -> str | None:
    """Return a variable of the process, of the `.env` file, or of the directory of secrets."""
    value = variable(os.environ, name)
    if value is None:
        with suppress(Exception):  # what is wrong with these is reported when the configuration is loaded
            value = find_secret(name) or None
    return value


def _setting(name: str) -> tuple[Any, str]:
    """Return the value of a variable, or the default if it is not set or invalid; and what is wrong with it."""
    parse, default, valid = SETTINGS[name]
    value = _value(name)
    try:
        parse(default if value is None else value)
    except ValueError:
        return default, f"{value!r} is invalid: use {valid}; {default} is used"
    return (default if value is None else value), ""


SETTINGS: dict[str, tuple[Callable[[Any], object], str, str]] = {
    LEVEL_VARIABLE: (_number, "INFO", "DEBUG, INFO, WARNING, ERROR, CRITICAL or a number"),
    FORMAT_VARIABLE: (_formatter, "text", "text or json"),
}
"""Variable → what parses it, its default, and its valid values."""


def complaints() -> list[tuple[str, str]]:
    """Return the variables that are invalid, each with what is wrong with it."""
    return [(name, complaint) for name in SETTINGS if (complaint := _setting(name)[1])]


def _configure_by_variables() -> None:
    """Switch logging on if a variable asks for it: when opero is first used."""
    if any(_value(name) is not None for name in SETTINGS):
        configure_logging()
        for name, complaint in complaints():
            log("configuration_warning", "%s: %s", name, complaint)


_configure_by_variables()
