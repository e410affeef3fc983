"""opero's own log records: they go to the logger "opero" and stay silent until somebody listens."""

from __future__ import annotations

import logging

__all__ = ["configure_logging", "logger"]

logger = logging.getLogger("opero")
logger.addHandler(logging.NullHandler())

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_logging(level: int | str = logging.INFO) -> logging.Logger:
    """Show opero's log records of this level and above, through the root logger's handlers where it has any, else on stderr.

    Retries and waits are logged at DEBUG, fallbacks and recoveries at INFO, opened circuits at WARNING.

    Args:
        level: a `logging` level or its name. Default INFO.

    Returns:
        The logger "opero".

    Raises:
        ValueError: an unknown level name.
    """
    if isinstance(level, str):
        level = level.upper()
    logger.setLevel(level)
    own = [handler for handler in logger.handlers if isinstance(handler, _OwnHandler)]
    if not own:
        handler = _OwnHandler()
        handler.setFormatter(logging.Formatter(FORMAT))
        logger.addHandler(handler)
    return logger


class _OwnHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to stderr, unless the application has handlers of its own, which get the record by propagation."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            super().emit(record)
