"""Parts of error messages: problems with their place, hints for unknown names, and the texts of exceptions."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Problem", "describe", "nearest", "one_line", "text_of"]


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


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for an error about an unknown name: `"; did you mean 'retries'?"`, or a list of the known names."""
    names = sorted({str(candidate) for candidate in known})
    folded = {candidate.lower(): candidate for candidate in names}
    swapped = [candidate for candidate in folded if sorted(candidate) == sorted(name.lower())]
    close = swapped or difflib.get_close_matches(name.lower(), folded, n=1)
    if close:
        return f"; did you mean {folded[close[0]]!r}?"
    if not names:
        return ""
    if not name.startswith("_"):  # private names are not suggested for a public one
        names = [candidate for candidate in names if not candidate.startswith("_")] or names
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"; known: {shown}"


def text_of(error: BaseException) -> str:
    """Return the text of an exception, or a placeholder if its `__str__` fails."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # a user's `__str__` may raise anything
        return f"<unprintable {type(error).__name__}>"


def one_line(text: str) -> str:
    """Return a text with all runs of white space, including line breaks, replaced by single spaces."""
    return " ".join(text.split())


def describe(error: BaseException) -> str:
    """Return the type and text of an exception on one line."""
    text = one_line(text_of(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
