"""What commands print: text and tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["is_coloured", "print_error", "print_json", "print_table", "print_warning", "stdout_kept", "styled"]

STYLES = {"red": "1;31", "yellow": "1;33", "green": "32", "bold": "1", "dim": "2"}
GAP = 2
"""Columns between those of a table."""
WIDEST = 10_000
"""Columns of a table that goes to no terminal: nothing in it is wrapped."""


def is_coloured(stream: Any) -> bool:
    """Whether colours belong there: a terminal, and its user has not said NO_COLOR."""
    try:
        return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and bool(stream.isatty())
    except ValueError:  # it is closed
        return False


def styled(text: str, style: str, stream: Any) -> str:
    """The text in that style, where the stream shows colours."""
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if is_coloured(stream) else text


def print_error(text: str) -> None:
    """Say on stderr what is wrong."""
    _print_said("error", "red", text)


def print_warning(text: str) -> None:
    """Say on stderr what may be wrong."""
    _print_said("warning", "yellow", text)


def _print_said(what: str, style: str, text: str) -> None:
    sys.stdout.flush()  # so that both come in their order, where they go to one place
    print(f"{styled(f'{what}:', style, sys.stderr)} {text}", file=sys.stderr)


@contextmanager
def stdout_kept() -> Iterator[TextIO]:
    """Keep stdout for what the command says: what a user's code, or its worker processes, print goes to stderr."""
    out = sys.stdout
    out.flush()
    try:
        number, errors = out.fileno(), sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):  # no real streams
        with redirect_stdout(sys.stderr):
            yield out
        return
    with open(os.dup(number), "w", encoding="utf-8", errors="backslashreplace") as kept:
        os.dup2(errors, number)
        try:
            with redirect_stdout(sys.stderr):
                yield kept
        finally:
            out.flush()
            kept.flush()
            os.dup2(kept.fileno(), number)


def print_json(data: Any, file: TextIO | None = None) -> None:
    """Print plain data as JSON, for programs and for people. Default: to stdout."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    print(text.encode("utf-8", "backslashreplace").decode(), file=file)


def print_table(columns: Sequence[str], rows: Iterable[tuple[Sequence[str], str]]) -> None:
    """Print rows under headings; where they go to no terminal, each row is one line.

    Args:
        columns: the headings.
        rows: of each row its cells and its style, of `STYLES`; "" for none.
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
        color_system="auto" if is_coloured(sys.stdout) else None,  # None: nothing bold or dim either
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
    console.width = WIDEST
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip())


def _widths(rows: Sequence[Sequence[str]], width: int) -> list[int | None]:
    """How wide each column is to be, so that cells are broken between words, if they must and can; None: all the same.

    Left to itself rich takes from the widest column first, and breaks a place in two.
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
