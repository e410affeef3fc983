"""Things that policies name: functions, and classes of exceptions."""

from __future__ import annotations

from typing import Any


class QuotaError(Exception):
    """An exception of an application."""

    class HourlyError(Exception):
        """One within another."""


def is_none(result: Any) -> bool:
    return result is None


def an_hour() -> str:
    return "1h"


def cost(*args: Any, **kwargs: Any) -> float:
    return 2.0


def hears(event: Any) -> None:
    """A hook."""


NOT_CALLABLE = 3
PASSWORD = "hunter2"
SETTINGS = {"password": "hunter2"}
