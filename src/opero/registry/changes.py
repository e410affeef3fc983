"""When files and directories change: told by the system where it can, and else seen by looking again and again."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opero.errors import MissingExtraError
from opero.observe.logs import logger

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator, Iterable, Iterator

__all__ = ["changes", "require_watchfiles"]

STEP, DEBOUNCE, LOOK = 50, 200, 500
"""Milliseconds: how often changes are looked for, how long those of one moment are gathered, and how often whether to
stop, and whether what is watched is still what has that name."""

Stamps = dict[Path, tuple[int, int, int, int] | None]
"""Path → what tells that something else is there now; None where nothing is."""


def require_watchfiles() -> None:
    """
    Raises:
        MissingExtraError: the extra is not installed.
    """
    try:
        import watchfiles  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("watching files needs the extra of that name: pip install 'opero[watch]'") from error


def changes(paths: Callable[[], Iterable[Path]], stopping: threading.Event) -> Iterator[None]:
    """Give something once at the beginning, and then whenever one of these changes, comes or goes.

    The system watches what had a name at the moment, not the name: it says nothing of a directory that has taken
    another's place, or a link that was turned. So all are looked at too, and then watched anew.

    Args:
        paths: the files and directories; asked again and again, as they may become others.
        stopping: ends it.
    """
    known, has_begun = _stamps(paths()), False
    while not stopping.is_set():
        with closing(_wake_ups(known, lambda: _stamps(paths()), stopping)) as wake_ups:
            for changed in wake_ups:
                now = _stamps(paths())
                if changed or now != known or not has_begun:  # also what has changed before the watching began
                    has_begun = True
                    yield
                if now != known:
                    known = now
                    break


def _wake_ups(known: Stamps, look: Callable[[], Stamps], stopping: threading.Event) -> Generator[Any]:
    """Whatever has changed at once; nothing, now and then.

    A file is watched by its directory: editors and orchestrators put another file at its name.
    """
    from watchfiles import watch

    directories = {path for path in known if path.is_dir()}
    files = {each for path in known if path.is_file() for each in (path, path.resolve())}
    watched = sorted(directories | {path.parent for path in files})

    def matters(change: object, path: str) -> bool:
        changed = Path(path)
        is_ours = changed in files or changed.parent in directories or changed.name == "..data"
        return is_ours or look() != known  # else all that goes on beside them could hide it

    try:
        if watched:
            yield from watch(
                *watched,
                watch_filter=matters,
                stop_event=stopping,
                debounce=DEBOUNCE,
                step=STEP,
                rust_timeout=LOOK,
                yield_on_timeout=True,
                recursive=False,
                raise_interrupt=False,
            )
    except FileNotFoundError:  # it has gone just now
        pass
    except (OSError, RuntimeError) as error:  # such as too many that are watched
        logger.warning("%s cannot be watched, only looked at: %s", ", ".join(map(str, watched)), error)
    while not stopping.wait(LOOK / 1000):
        yield ()


def _stamps(paths: Iterable[Path]) -> Stamps:
    return {path: _stamp(path) for path in paths}


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
