"""Parts of messages: problems with their place, hints for unknown names, and foreign text made fit to be shown.

Foreign text is whatever opero did not write: of exceptions, files, variables, arguments, results. `readable` prepares
it for a line of a message, a log or a terminal; what `describe` returns is prepared. `visible` is its last step, and
alone for text of several lines. tests/test_foreign_text.py finds the places that show foreign text as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from opero.patterns import pattern

HIDDEN = "**********"
"""Replaces values that must not be shown, as in pydantic's `SecretStr`."""
MASK = "***"
LONGEST_TEXT = 1000
"""The most characters of a foreign text in a line."""
LONGEST_NAME = 100
"""Names are compared by their first characters; longer ones are not misspelt."""
MOST_COMPARED = 2000
"""The most known names that an unknown one is compared with."""
MOST_ALIKE = 0.6
"""The share of common letters from which on two names are compared letter by letter."""


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
        message = visible(f"{self.place}: {self.text}" if self.place else self.text, keep="\n")
        if not self.snippet:
            return message
        number, start, end = str(self.line).rjust(4), self.caret - 1, self.caret - 1 + self.width
        before, marked, after = (
            visible(each) for each in (self.snippet[:start], self.snippet[start:end], self.snippet[end:])
        )
        carets = " " * _width(before) + "^" * max(1, _width(marked))
        return f"{message}\n{number} | {before}{marked}{after}\n{' ' * len(number)} | {carets}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for an error about an unknown name: `"; did you mean 'retries'?"`, or a list of the known names."""
    names = sorted({str(candidate) for candidate in islice(known, MOST_COMPARED)})
    folded = {candidate.lower(): candidate for candidate in names}
    close = closest(name.lower(), folded)
    if close is not None:
        return f"; did you mean {folded[close]!r}?"
    if not names:
        return ""
    if not name.startswith("_"):  # private names are not suggested for a public one
        names = [candidate for candidate in names if not candidate.startswith("_")] or names
    shown = ", ".join(shortened(each, LONGEST_NAME) for each in names[:12]) + (", …" if len(names) > 12 else "")
    return f"; known: {shown}"


def closest(name: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the candidate that an unknown name most likely stands for, or None; of many, the first are compared.

    That is one which it is a misspelling of, else one that has all of its words, or all of whose words it has:
    `max_retries` stands for `retries`. Words in another order stand for something else (`on_retry`, `retry_on`).
    """
    if len(name) > LONGEST_NAME:
        return None
    import difflib  # only what is wrong needs it

    few = [each for each in islice(candidates, MOST_COMPARED) if len(each) <= LONGEST_NAME]
    alike = difflib.get_close_matches(name, few, n=3, cutoff=min(cutoff, MOST_ALIKE))
    found = min(alike, key=lambda each: edits(name, each), default=None)
    if found is not None and is_misspelt(name, found):
        return found
    words = set(_words(name))
    shared = [each for each in alike if words < set(_words(each)) or words > set(_words(each))]
    return next(iter(shared), None) or next((each for each in few if is_abbreviated(name, each)), None)


def _words(name: str) -> list[str]:
    return re.split(r"[_\W]+", name)


def is_misspelt(name: str, known: str) -> bool:
    """Return whether a name differs from a known one by few letters: one in three, but at least one."""
    return edits(name, known) <= max(1, (min(len(name), len(known)) + 1) // 3)


def is_abbreviated(name: str, known: str) -> bool:
    """Return whether one name begins the other, with at least three letters: `prod` for `production`."""
    short, long = sorted((name, known), key=len)
    return len(short) > 2 and long.startswith(short)


def edits(one: str, other: str) -> int:
    """Return how many letters to insert, remove, replace or swap with the next turn one text into another."""
    above: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, above, row = above, row, [i]
        for j, wanted in enumerate(other, 1):
            least = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                least = min(least, before[j - 2] + 1)
            row.append(least)
    return row[-1]


def text_of(error: BaseException) -> str:
    """Return the text of an exception, or a placeholder if its `__str__` fails."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # a user's `__str__` may raise anything
        return f"<unprintable {type(error).__name__}>"


def one_line(text: str) -> str:
    """Return a text with all runs of white space, including line breaks, replaced by single spaces."""
    return " ".join(text.split())


def without_password(text: str) -> str:
    """Mask the user and password of URLs in a text."""
    return without_passwords(text, HIDDEN)


def shortened(text: str, most: int) -> str:
    """Return a text, cut if it is longer than that."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def visible(text: str, keep: str = "") -> str:
    """Return a text in which characters that are not printed show as escapes (ESC as \\x1b), so that none of them
    steers a terminal, forges a line, or turns the direction of the text.

    Args:
        text: the text.
        keep: characters that stay as they are, such as line breaks.
    """
    if text.isprintable():
        return text
    return "".join([each if each.isprintable() or each in keep else _escaped(each) for each in text])


def _escaped(character: str) -> str:
    if character.isspace() and character > "\x7f" and character not in "\x85\u2028\u2029":
        return " "  # a space of typography
    return character.encode("unicode_escape").decode("ascii")


_URL = pattern(r"://(?:[^\s'\"]|['\"](?![\s,:;)}\]]|$))*")
_NAME = r"(?<![\w-])[\w-]{0,40}(?:secret|passw|token|credential|api[_-]?key|signature)[\w-]{0,40}"
_SECRET = pattern(
    rf"(?i)({_NAME}(?:=[\"']?|[\"']\s{{0,9}}[:=]\s{{0,9}}[\"']?)"
    r"|authorization[\"']?\s{0,9}[:=]\s{0,9}[\"']?(?:bearer |basic |token )?)[^\s&\"',;)}]+"
)


def without_passwords(text: str, mask: str = MASK) -> str:
    """Return a text in which the users and passwords of URLs are masked: `redis://***@host`."""
    if "://" not in text or "@" not in text:
        return text
    parts, done = [], 0
    for start, end in passwords_in(text):
        parts += [text[done:start], mask]
        done = end
    return "".join([*parts, text[done:]])


def passwords_in(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the user and password of each URL in a text start and end."""
    for url in _URL.finditer(text):
        end = text.rfind("@", *url.span())  # a password may contain @, / and quotes
        if end > url.start() + 3:
            yield url.start() + 3, end


def without_secrets(text: str) -> str:
    """Return a text without passwords of URLs, and without what follows the names of secrets: `api_key=***`."""
    text = without_passwords(text)
    return _SECRET.sub(rf"\1{MASK}", text) if "=" in text or ":" in text else text


def readable(text: str, most: int = LONGEST_TEXT) -> str:
    """Prepare foreign text for a line of a message, a log or a terminal: one line, without what looks like a secret,
    with control characters visible, and no longer than `most` characters. Takes time linear in the length of its text.
    """
    line = without_secrets(text[: 10 * most])
    return line if line.isprintable() and len(line) <= most else shortened(visible(one_line(line)[: most + 1]), most)


def described(value: object, most: int = LONGEST_TEXT) -> str:
    """Return the repr of a foreign value as `readable` prepares it, or a placeholder if its `__repr__` fails."""
    try:
        return readable(repr(value), most)
    except Exception:  # noqa: BLE001  # a user's `__repr__` may raise anything
        return f"<unprintable {type(value).__name__}>"


def message_of(error: BaseException, most: int = LONGEST_TEXT) -> str:
    """Return the text of an exception, as `readable` prepares it."""
    return readable(text_of(error), most)


def describe(error: BaseException, most: int = LONGEST_TEXT) -> str:
    """Return the type and text of an exception, as `readable` prepares it."""
    text, name = readable(text_of(error), most), visible(type(error).__name__)
    return shortened(f"{name}: {text}" if text else name, most)
