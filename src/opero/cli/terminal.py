"""Output of commands: messages, tables and JSON."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["print_error", "print_json", "print_table", "print_warning", "stdout_reserved", "styled"]

STYLES = {"red": "1;31", "yellow": "1;33", "green": "32", "bold": "1", "dim": "2"}
GAP = 2
"""Spaces between the columns of a table."""
UNWRAPPED = 10_000
"""The width of a table that is not printed to a terminal, so that nothing in it is wrapped."""


def _has_colours(stream: Any) -> bool:
    try:
        return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and bool(stream.isatty())
    except ValueError:  # the stream is closed
        return False


def styled(text: str, style: str, stream: Any) -> str:
    """Return the text with a style of `STYLES`, if the stream shows colours."""
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if _has_colours(stream) else text


def print_error(text: str) -> None:
    """Print an error on stderr."""
    _print_message("error", "red", text)


def print_warning(text: str) -> None:
    """Print a warning on stderr."""
    _print_message("warning", "yellow", text)


def _print_message(label: str, style: str, text: str) -> None:
    sys.stdout.flush()  # keeps the order if both streams go to the same place
    print(f"{styled(f'{label}:', style, sys.stderr)} {text}", file=sys.stderr)


@contextmanager
def stdout_reserved() -> Iterator[TextIO]:
    """Reserve stdout for the command's own output: a user's code and its worker processes print to stderr instead.

    Yields:
        The stream to print the command's output to.
    """
    out = sys.stdout
    out.flush()
    try:
        number, errors = out.fileno(), sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):  # a stream without a file descriptor
        with redirect_stdout(sys.stderr):
            yield out
        return
    with open(os.dup(number), "w", encoding="utf-8", errors="backslashreplace") as reserved:
        os.dup2(errors, number)
        try:
            with redirect_stdout(sys.stderr):
                yield reserved
        finally:
            out.flush()
            reserved.flush()
            os.dup2(reserved.fileno(), number)


def print_json(data: Any, file: TextIO | None = None) -> None:
    """Print plain data as indented JSON. Default: to stdout."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    print(text.encode("utf-8", "backslashreplace").decode(), file=file)


def print_table(columns: Sequence[str], rows: Iterable[tuple[Sequence[str], str]]) -> None:
    """Print a table; unless stdout is a terminal, each row is one line.

    Args:
        columns: the headings.
        rows: the cells of each row, and its style: one of `STYLES`, or "".
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    is_terminal = sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    console = Console(
        file=sys.stdout,
        highlight=False,
        markup=False,
        color_system="auto" if _has_colours(sys.stdout) else None,  # None: also no bold and dim text
        legacy_windows=False,
    )
    widths = _widths([columns, *(cells for cells, _ in rows)], console.width) if is_terminal else [None] * len(columns)
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column, overflow="fold", no_wrap=not is_terminal, width=width)
    for cells, style in rows:
        table.add_row(*map(Text, cells), style=style)
    if is_terminal:
        console.print(table)
        return
    console.width = UNWRAPPED
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip())


def _widths(rows: Sequence[Sequence[str]], width: int) -> list[int | None]:
    """Return the width of each column so that cells wrap between words if possible; None where it does not matter.

    By default rich narrows the widest column first, which breaks words such as file:line:column.
    """
    from rich.cells import cell_len

    columns = list(zip(*rows, strict=True))
    wanted = [max(map(cell_len, cells)) for cells in columns]
    least = [max(cell_len(word) for cell in cells for word in cell.split() or [""]) for cells in columns]
    spare = width - sum(least) - GAP * len(columns)
    if spare < 0 or sum(wanted) + GAP * len(columns) <= width:
        return [None] * len(columns)
    found: list[int | None] = []
    for needed, narrowest in zip(wanted, least, strict=True):
        given = min(needed - narrowest, spare)
        spare -= given
        found.append(narrowest + given)
    return found
