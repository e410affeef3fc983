"""Output of commands: messages, tables and JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from opero.errors import visible

STYLES = {"red": "1;31", "yellow": "1;33", "green": "32", "bold": "1", "dim": "2"}
GAP = 2
"""Spaces between the columns of a table."""
WIDEST = 100
"""The most columns of a paragraph."""
QUANTITY = re.compile(r"([0-9]) (s|min|h|d)\b")
"""A number and its unit, which stay on one line."""
SOURCE = "source"
"""The heading of a column that says where the value before it comes from."""
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


def say(text: str = "", style: str = "", file: Any = None) -> None:
    """Print text, of one or more lines, to stdout or another stream: everything that a command prints except results.

    Control characters in it are shown as escapes: names of files, profiles and variables, and texts of exceptions may
    contain any.
    """
    file = file or sys.stdout
    shown = visible(text, keep="\n\t")
    print(styled(shown, style, file) if style else shown, file=file)


def json_text(text: str) -> str:
    """Return the text of JSON in which everything that is not printed is escaped, as JSON itself does for some."""
    if text.isprintable():
        return text
    return "".join([each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text])


def print_error(text: str) -> None:
    """Print an error on stderr."""
    _print_message("error", "red", text)


def print_warning(text: str) -> None:
    """Print a warning on stderr."""
    _print_message("warning", "yellow", text)


def _print_message(label: str, style: str, text: str) -> None:
    sys.stdout.flush()  # keeps the order if both streams go to the same place
    shown = visible(text, keep="\n\t")
    print(f"{styled(f'{label}:', style, sys.stderr)} {shown}", file=sys.stderr)


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
    print(json_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)), file=file)


def print_paragraphs(parts: Sequence[tuple[str, str]]) -> None:
    """Print texts beside their headings, wrapped to the width of the terminal, but not wider than can be read."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    indent = max(len(heading) for heading, _ in parts) + GAP
    for heading, text in parts:
        joined = QUANTITY.sub("\\1\0\\2", visible(text))
        lines = textwrap.wrap(joined, max(20, width - indent), break_on_hyphens=False, break_long_words=False)
        start = styled(heading.ljust(indent), "bold", sys.stdout)
        for line in lines:
            print(start + line.replace("\0", " "))
            start = " " * indent


def print_table(columns: Sequence[str], rows: Iterable[tuple[Sequence[str], str]], *, titles: int = 1) -> None:
    """Print a table; unless stdout is a terminal, each row is one line.

    On a terminal, cells wrap between words, and no word is ever cut. If the longest words do not fit beside each other,
    each row is printed as a block of lines.

    Args:
        columns: the headings.
        rows: the cells of each row, and its style: one of `STYLES`, or "".
        titles: how many of the first cells are the title of a block.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [([visible(cell) for cell in cells], style) for cells, style in rows]
    is_terminal = sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    console = Console(
        file=sys.stdout,
        highlight=False,
        markup=False,
        color_system="auto" if _has_colours(sys.stdout) else None,  # None: also no bold and dim text
        legacy_windows=False,
    )
    widths: list[int | None] | None = [None] * len(columns)
    if is_terminal:
        widths = _widths([columns, *(cells for cells, _ in rows)], console.width)
    if widths is None:
        _print_blocks(columns, rows, titles, console.width)
        return
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


def _print_blocks(columns: Sequence[str], rows: Sequence[tuple[Sequence[str], str]], titles: int, width: int) -> None:
    """Print each row as a block of lines: its title, and below it its other cells with their headings.

    The cell of a column "source" stands beside the one before it.
    """
    indent = GAP + max(len(name) for name in columns[titles:] if name != SOURCE) + GAP
    for cells, style in rows:
        print(styled("  ".join(cells[:titles]), style or "bold", sys.stdout))
        lines: list[tuple[str, str]] = []
        for name, cell in zip(columns[titles:], cells[titles:], strict=True):
            if name == SOURCE and lines and cell:
                heading, value = lines.pop()
                lines.append((heading, f"{value} ({cell})" if value else cell))
            else:
                lines.append((name, cell))
        for heading, text in lines:
            start = f"{'':{GAP}}{heading}".ljust(indent)
            words = {"break_long_words": False, "break_on_hyphens": False}
            for line in textwrap.wrap(text, max(width - indent, 1), **words):  # type: ignore[arg-type]
                print(styled(start + line, style, sys.stdout) if style else start + line)
                start = " " * indent


def _widths(rows: Sequence[Sequence[str]], width: int) -> list[int | None] | None:
    """Return the width of each column so that cells wrap between words; None in it where it does not matter.

    By default rich narrows the widest column first, which breaks words such as file:line:column.

    Returns:
        None if the longest words of the columns do not fit beside each other.
    """
    from rich.cells import cell_len

    columns = list(zip(*rows, strict=True))
    wanted = [max(map(cell_len, cells)) for cells in columns]
    least = [max(cell_len(word) for cell in cells for word in cell.split() or [""]) for cells in columns]
    spare = width - sum(least) - GAP * (len(columns) - 1)
    if spare < 0:
        return None
    if sum(wanted) + GAP * len(columns) <= width:
        return [None] * len(columns)
    found: list[int | None] = []
    for needed, narrowest in zip(wanted, least, strict=True):
        given = min(needed - narrowest, spare)
        spare -= given
        found.append(narrowest + given)
    return found
