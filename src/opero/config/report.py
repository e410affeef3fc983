"""Collects what is wrong, everywhere, and says all of it at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opero.errors import ConfigError

if TYPE_CHECKING:
    from opero.config.sources import Source

__all__ = ["Report"]


class Report:
    """The problems found so far. Each is one line: its place, what is wrong, and the cure."""

    def __init__(self) -> None:
        self._problems: dict[tuple[str, int, int, str], None] = {}

    def add(self, source: Source, text: str) -> None:
        """Note a problem; the same one twice counts once."""
        line = " ".join(text.split())
        self._problems[(source.name, source.line or 0, source.column or 0, f"{source}: {line}")] = None

    @property
    def lines(self) -> list[str]:
        """Every problem, by place."""
        return [text for *_, text in sorted(self._problems)]

    def raise_if_any(self) -> None:
        """
        Raises:
            ConfigError: there are problems; its message lists them one a line.
        """
        lines = self.lines
        if len(lines) == 1:
            raise ConfigError(lines[0])
        if lines:
            raise ConfigError("\n  ".join([f"the configuration has {len(lines)} problems:", *lines]))
