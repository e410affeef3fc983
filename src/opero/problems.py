"""A problem in a configuration, with its place in the source."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Problem"]


def _width(text: str) -> int:
    """Return the number of terminal columns that a text takes."""
    from unicodedata import category, east_asian_width

    return sum(
        0 if category(letter) in ("Mn", "Me", "Cf") else 2 if east_asian_width(letter) in "WF" else 1 for letter in text
    )


class Problem(NamedTuple):
    """A problem in a configuration.

    Attributes:
        place: "file:line:column", or the name of a variable; "" if it has no single place.
        text: what is invalid, and what is valid.
        file: the path of the file; None if the problem is not in a file.
        line: the line in the file, from 1, or None.
        column: the column in the file, from 1, or None.
        snippet: the line's text, with secrets masked; "" if there is none to show.
        caret: the position of the problem in the snippet, from 1.
        width: the length of the problem in the snippet, in characters.
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
        """Format the problem as compilers do: place and text, then the source line with carets below it."""
        message = f"{self.place}: {self.text}" if self.place else self.text
        if not self.snippet:
            return message
        number = str(self.line).rjust(4)
        before, marked = self.snippet[: self.caret - 1], self.snippet[self.caret - 1 : self.caret - 1 + self.width]
        carets = " " * _width(before) + "^" * max(1, _width(marked))
        return f"{message}\n{number} | {self.snippet}\n{' ' * len(number)} | {carets}"
