"""One mistake in a configuration, as it is told."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Problem"]


def _cells(text: str) -> int:
    """How many columns of a terminal a text takes."""
    from unicodedata import category, east_asian_width

    return sum(
        0 if category(letter) in ("Mn", "Me", "Cf") else 2 if east_asian_width(letter) in "WF" else 1 for letter in text
    )


class Problem(NamedTuple):
    """One thing that is wrong with a configuration.

    Attributes:
        place: where: "file:line:column", the variable, or "" where there is no one place.
        text: what is wrong there, and the cure.
        file, line, column: the place in a file, counted from 1; None where it is in none.
        snippet: that line of the file, secrets masked; "" where there is none to show.
        caret, width: where in the snippet, counted from 1, and how many characters of it are meant.
    """

    place: str
    text: str
    file: str | None = None
    line: int | None = None
    column: int | None = None
    snippet: str = ""
    caret: int = 1
    width: int = 1

    def __str__(self) -> str:
        """As a compiler prints it: the place, what is wrong, the line, and a caret under what is meant."""
        said = f"{self.place}: {self.text}" if self.place else self.text
        if not self.snippet:
            return said
        number = str(self.line).rjust(4)
        before, meant = self.snippet[: self.caret - 1], self.snippet[self.caret - 1 : self.caret - 1 + self.width]
        marks = " " * _cells(before) + "^" * max(1, _cells(meant))
        return f"{said}\n{number} | {self.snippet}\n{' ' * len(number)} | {marks}"
