"""A progress bar for maps."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["progress_bar"]

SECONDS_BETWEEN_LINES = 10.0
"""How often a bar that was asked for is written where no terminal shows it."""


@contextlib.contextmanager
def progress_bar(wanted: bool | Literal["auto"], name: str, total: int) -> Iterator[Callable[[int], object]]:
    """What to call with the number of items that are done; it shows them as a bar on stderr.

    Args:
        wanted: true, false, or "auto": where stderr is a terminal.
        name: what the bar is of.
        total: how many items there are.
    """
    terminal = sys.stderr is not None and sys.stderr.isatty()
    if not (terminal if wanted == "auto" else wanted) or not total:
        yield lambda done: None
        return
    from tqdm import tqdm

    interval = 0.1 if terminal else SECONDS_BETWEEN_LINES
    with tqdm(total=total, desc=name, mininterval=interval, leave=wanted is True, file=sys.stderr) as bar:
        yield bar.update
