"""Functions at module level, as applications have them, whose names refer to their wrappers."""

from __future__ import annotations

import os
import threading
from typing import Any

from opero import opero, opmap

LOCK = threading.Lock()
"""Cannot be pickled: functions that use it must be found by their names."""
SEEN: list[Any] = []


@opmap(mode="process", workers=2)
def square(number: int) -> int:
    with LOCK:
        return number * number


@opmap(mode="process", workers=2)
def squares(numbers: list[int]) -> list[int]:
    with LOCK:
        return [number * number for number in numbers]


@opmap(mode="process", workers=2)
def scale(number: int, by: int, *, plus: int = 0) -> int:
    return number * by + plus


@opero(mode="process", workers=2)
def pid(_: int) -> int:
    return os.getpid()


@opmap(mode="process", workers=2, retries=2, min_delay=0)
def odd_at_last(number: int) -> int:
    """Fails for even numbers the first time that a process sees them."""
    if number % 2 == 0 and number not in SEEN:
        SEEN.append(number)
        raise ValueError(number)
    return number


def undecorated(number: int) -> int:
    with LOCK:
        return number + 1


class Service:
    def __init__(self, base: int) -> None:
        self.base = base

    @opmap(mode="process", workers=2)
    def add(self, number: int, *, times: int = 1) -> int:
        with LOCK:
            return (self.base + number) * times

    @opmap(mode="process", workers=2)
    def add_batch(self, numbers: list[int]) -> list[int]:
        return [self.base + number for number in numbers]

    @opmap(mode="process", workers=2)
    @classmethod
    def named(cls, number: int) -> str:
        return f"{cls.__name__}{number}"

    @opmap(mode="process", workers=2)
    @staticmethod
    def double(number: int) -> int:
        return 2 * number


class Awkward(Exception):  # noqa: N818
    """Its constructor takes other arguments than it keeps, so it cannot be rebuilt from them."""

    def __init__(self, code: int, where: str) -> None:
        super().__init__(f"code {code} at {where}")
        self.code = code


class Locked(Exception):  # noqa: N818
    """Holds something that cannot be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


@opmap(mode="process", workers=2)
def misbehave(what: str) -> Any:
    match what:
        case "awkward":
            raise Awkward(7, "start")
        case "locked":
            raise Locked("holds a lock")
        case "os error":
            raise FileNotFoundError(2, "No such file", "x.txt")
        case "group":
            raise ExceptionGroup("several", [ValueError("one"), Awkward(1, "two")])
        case "unpicklable":
            return threading.Lock()
        case "stop":
            raise StopIteration(3)
    return what
