"""Files that cannot be parsed, and parser errors with advice."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import yaml

from opero.errors import message_of

if TYPE_CHECKING:
    from pathlib import Path

MAX_DEPTH = 50
"""The maximum nesting depth of a file. The format needs six levels."""
ADVICE = {
    "mapping values are not allowed": "; indent it like its neighbours, or quote text that contains ': '",
    "cannot start any token": "; quote the text",
    "found unexpected end of stream": "; close the quote",
    "',' or '}'": "; separate fields with commas, and end with }",
    "',' or ']'": "; separate elements with commas, and end with ]",
}


class UnreadableError(Exception):
    """The rest of the file cannot be parsed."""

    def __init__(self, text: str, line: int = 0, column: int = 0) -> None:
        super().__init__(text)
        self.line = line
        self.column = column


def text_of(path: Path) -> str:
    """Read a file as text.

    Raises:
        UnreadableError: it cannot be read, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror or message_of(error)}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", "replace")
        raise UnreadableError("is not UTF-8; save it as UTF-8", *_end_of(before)) from error


def _end_of(text: str) -> tuple[int, int]:
    """Return the line and column of what follows a text, from 0, in lines as reports show them."""
    lines = f"{text}.".splitlines()
    return len(lines) - 1, len(lines[-1]) - 1


def explain(error: yaml.YAMLError, text: str) -> NoReturn:
    """Explain an error of the parser in terms of what to change.

    Raises:
        UnreadableError: always.
    """
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: text.index(chr(error.character))] if isinstance(error.character, int) else ""
        problem = f"contains a character that YAML does not allow ({error.character:#04x}); remove it"
        raise UnreadableError(problem, *_end_of(before)) from error
    problem = getattr(error, "problem", None) or str(error)
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line, column = (mark.line, mark.column) if mark is not None else (0, 0)
    lines = text.splitlines()
    begun = getattr(error, "context_mark", None)
    if begun is not None and mark is not None and not text[mark.index :].strip():
        line, column = begun.line, begun.column  # an unclosed construct is reported at its start
    written = lines[line] if line < len(lines) else ""
    if "\t" in written[: len(written) - len(written.lstrip())]:
        raise UnreadableError("this line is indented with a tab; YAML allows spaces only", line, column) from error
    if "nesting depth" in problem:  # libyaml has a limit of its own, which may be reached first
        raise UnreadableError(f"is nested deeper than {MAX_DEPTH} levels", line, column) from error
    context = getattr(error, "context", None)
    advice = next((advice for part, advice in ADVICE.items() if part in problem), "")
    what = f"{problem}{f' {context}' if context else ''}"
    if context and begun is not None and begun.line != line:
        what += f" that starts at line {begun.line + 1}"
    raise UnreadableError(f"is not valid YAML: {what}{advice}", line, column) from error
