"""The state of a program that its worker processes take over: as it is when a map starts, not when they were started.

Workers are kept for later maps. What only a new process can have, such as the thread limits of libraries that are
loaded already, is in `Traits`: a map gets workers whose traits are its own.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal, NamedTuple

from opero.parallel.transport.pickling import dumps
from opero.runtime.machine import cpu_limit

THREAD_LIMITS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
"""The variables from which libraries read how many threads they may start, when they are loaded."""
PARENT_ONLY = {"OPERO_SERVE": "off", "OPERO_WATCH": "off"}
"""Variables of workers: their parent serves and watches, for all."""


class Traits(NamedTuple):
    """What a process keeps from its start to its end.

    Attributes:
        threads: the values of the variables that limit threads of libraries.
        user: the effective user and group, which a program may have changed since.
    """

    threads: tuple[str | None, ...]
    user: tuple[int, int] | None


def worker_environment(inner_threads: int | Literal["auto"] | None, workers: int) -> dict[str, str]:
    """The environment variables of the workers of a map.

    Args:
        inner_threads: how many threads libraries may start in each: "auto": its share of the processors, unless the
            program's variables say otherwise; None: no limit of ours.
        workers: how many there are.
    """
    environment = {**os.environ, **PARENT_ONLY}
    if isinstance(inner_threads, int):
        environment |= dict.fromkeys(THREAD_LIMITS, str(inner_threads))
    elif inner_threads == "auto":
        share = str(max(1, cpu_limit() // workers))
        environment = {**dict.fromkeys(THREAD_LIMITS, share), **environment}
    return environment


def traits(environment: Mapping[str, str]) -> Traits:
    """What a process that is started now with these variables keeps."""
    user = (os.geteuid(), os.getegid()) if hasattr(os, "geteuid") else None
    return Traits(tuple(environment.get(name) for name in THREAD_LIMITS), user)


# In the parent


def pickled_state(environment: Mapping[str, str]) -> bytes:
    """The state of this program, for `enter`.

    Args:
        environment: the variables that workers have.
    """
    state = {
        "directory": _directory(),
        "environment": dict(environment),
        "path": list(sys.path),
        "arguments": list(sys.argv),
        "filters": _filters(),
        "locale": _locale(),
        "mask": _mask(),
        "limits": (sys.getrecursionlimit(), sys.get_int_max_str_digits()),
    }
    return pickle.dumps(state)


def _directory() -> str | None:
    """The working directory, also if it has been deleted: as a link to it, where there are such links."""
    try:
        return os.getcwd()
    except OSError:
        link = f"/proc/{os.getpid()}/cwd"
        return link if os.path.islink(link) else None


def _filters() -> list[bytes]:
    """The warnings filters, each pickled: one whose category cannot be sent is left out."""
    filters = []
    for each in warnings.filters:
        with suppress(Exception):
            filters.append(dumps(each))
    return filters


def _locale() -> str | None:
    import locale

    with suppress(locale.Error):
        return locale.setlocale(locale.LC_ALL)
    return None


def _mask() -> int | None:
    """The umask. It can be read without setting it on Linux only."""
    with suppress(OSError, ValueError, StopIteration), open("/proc/self/status", "rb") as file:
        return next(int(line.split()[1], 8) for line in file if line.startswith(b"Umask:"))
    return None


# In a worker


def enter(pickled: bytes) -> None:
    """Take over the state of the program. A part that is impossible here is left as it is."""
    state = pickle.loads(pickled)
    _enter_environment(state["environment"])
    if state["path"] != sys.path:
        sys.path[:] = state["path"]
        importlib.invalidate_caches()
    sys.argv[:] = state["arguments"]
    if state["directory"] is not None:
        with suppress(OSError):  # such as one that has been deleted meanwhile
            os.chdir(state["directory"])
    if state["mask"] is not None:
        os.umask(state["mask"])
    if state["locale"] is not None and state["locale"] != _locale():
        import locale

        with suppress(locale.Error):
            locale.setlocale(locale.LC_ALL, state["locale"])
    recursion, digits = state["limits"]
    with suppress(RecursionError):  # this thread is deeper than that
        sys.setrecursionlimit(recursion)
    sys.set_int_max_str_digits(digits)
    filters = []
    for each in state["filters"]:
        with suppress(Exception):  # its category is defined where this process cannot import it
            filters.append(pickle.loads(each))
    _set_filters(filters)


def _enter_environment(environment: dict[str, str]) -> None:
    zone = os.environ.get("TZ")
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    if os.environ.get("TZ") != zone:
        import time

        if hasattr(time, "tzset"):
            time.tzset()


def _set_filters(filters: list[Any]) -> None:
    if filters != list(warnings.filters):
        warnings.resetwarnings()  # makes modules forget what they have warned of under the old ones
        warnings.filters[:] = filters  # type: ignore[index]


@contextmanager
def importing() -> Iterator[None]:
    """Do not let warnings end imports in a worker: the program has imported the same modules under other filters."""
    filters = list(warnings.filters)
    _set_filters([each for each in filters if each[0] != "error"])
    try:
        yield
    finally:
        _set_filters(filters)
