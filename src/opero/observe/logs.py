"""The logger "opero", which shows nothing until logging is configured."""

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
    """Show opero's log records on stderr, unless the application has handlers of its own, which then receive them.

    Retries and waits are logged at DEBUG, fallbacks and recoveries at INFO, open circuits and failing stores at
    WARNING.

    Args:
        level: the minimum level to show, as a `logging` level or its name. Default: INFO.

    Returns:
        The logger "opero".

    Raises:
        ValueError: the level is invalid.
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
    raise ValueError(f"invalid logging level {level!r}{nearest(str(level), names)}")


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
