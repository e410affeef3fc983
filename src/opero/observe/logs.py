"""opero's own log records: they go to the logger "opero" and stay silent until somebody listens."""

from __future__ import annotations

import logging
import sys
from typing import Any

from opero.errors import nearest

__all__ = ["configure_logging", "logger"]

logger = logging.getLogger("opero")
logger.addHandler(logging.NullHandler())

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_logging(level: int | str = logging.INFO) -> logging.Logger:
    """Show opero's log records of this level and above: through the application's own handlers, or else on stderr.

    Retries and waits are logged at DEBUG, fallbacks and recoveries at INFO, opened circuits
    and stores that fail at WARNING.

    Args:
        level: a `logging` level or its name. Default INFO.

    Returns:
        The logger "opero".

    Raises:
        ValueError: no such level.
    """
    logger.setLevel(_number(level))
    if not any(isinstance(handler, _OwnHandler) for handler in logger.handlers):
        handler = _OwnHandler()
        handler.setFormatter(logging.Formatter(FORMAT))
        logger.addHandler(handler)
    return logger


def _number(level: int | str) -> int:
    names = logging.getLevelNamesMapping()
    if isinstance(level, str) and level.strip().isdecimal():
        return int(level)
    if isinstance(level, str) and level.strip().upper() in names:
        return names[level.strip().upper()]
    if isinstance(level, int) and not isinstance(level, bool) and level >= 0:
        return level
    raise ValueError(f"{level!r} is no logging level{nearest(str(level), names)}")


class _OwnHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the stderr of the moment, unless handlers of the application's own get the record."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # StreamHandler's own would hold on to the stderr of now

    @property
    def stream(self) -> Any:
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        others = [each for each in logger.handlers if not isinstance(each, _OwnHandler | logging.NullHandler)]
        if logger.propagate:
            others += logging.getLogger().handlers
        if not others:
            super().emit(record)
