"""Regular expressions that are compiled when they are first used, which for most is when something is wrong."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

__all__ = ["pattern"]


class _Pattern:
    def __init__(self, text: Any, flags: int = 0) -> None:
        self._made = text, flags

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the compiled pattern, and keep it, so that the next use does not come here."""
        value = getattr(re.compile(*self._made), name)  # which `re` keeps
        setattr(self, name, value)
        return value


if TYPE_CHECKING:
    from re import compile as pattern
else:
    pattern = _Pattern
