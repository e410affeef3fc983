"""Reading what has been pickled together, though a part of it cannot be built here."""

from __future__ import annotations

import io
import pickle
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from opero.parallel.transport.context import Pickler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["broken_in", "read"]


class Broken:
    """Stands for what could not be built."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def read(data: bytes) -> Any:
    """What was pickled, with `Broken` for each part that cannot be built. Slow: for when all at once has failed."""
    return _Reader(io.BytesIO(data)).load()


def broken_in(values: Sequence[Any]) -> dict[int, Exception]:
    """Of the values that hold something `Broken`, however deep: position → what was wrong."""
    found = {}
    for position, value in enumerate(values):
        finder = _Finder()
        with suppress(Exception):  # it need not pickle again
            finder.dump(value)
        if finder.found is not None:
            found[position] = finder.found
    return found


class _Finder(Pickler):
    """Looks at all parts of a value, as pickling does."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.found: Exception | None = None

    def persistent_id(self, value: Any) -> Any:
        if type(value) is Broken:
            self.found = value.error
            return "broken"
        return None


class _Reader(pickle._Unpickler):  # the one in Python, whose steps can be looked at
    """Goes on after a part that cannot be built."""

    memo: dict[int, Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except Exception as error:  # noqa: BLE001  # carried as a value
            return Broken(error)


def _building(step: Callable[[Any], None], operands: int, *, looks_at: int) -> Callable[[Any], None]:
    """A step that makes one thing of so many, the first of which may not be broken."""

    def build(reader: Any) -> None:
        below = len(reader.stack) - operands
        taken = reader.stack[below:]
        try:
            for each in taken[:looks_at]:
                for part in each if type(each) is tuple else (each,):
                    if type(part) is Broken:
                        raise part.error
            step(reader)
        except Exception as error:  # noqa: BLE001  # carried as a value
            broken = Broken(error)
            reader.stack[below:] = [broken]
            if step is pickle._Unpickler.load_build:  # type: ignore[attr-defined]  # others may refer to what it was to be
                for number, value in reader.memo.items():
                    if value is taken[0]:
                        reader.memo[number] = broken

    return build


def _filling(step: Callable[[Any], None]) -> Callable[[Any], None]:
    """A step that puts what follows a mark into what is before it."""

    def fill(reader: Any) -> None:
        try:
            step(reader)
        except Exception as error:  # noqa: BLE001  # carried as a value
            if type(reader.stack[-1]) is not Broken:
                reader.stack[-1] = Broken(error)

    return fill


for _code, _operands, _looks_at in (
    (pickle.REDUCE, 2, 2),
    (pickle.BUILD, 2, 2),
    (pickle.NEWOBJ, 2, 2),
    (pickle.NEWOBJ_EX, 3, 3),
    (pickle.APPEND, 2, 1),
    (pickle.SETITEM, 3, 1),
):
    _Reader.dispatch[_code[0]] = _building(_Reader.dispatch[_code[0]], _operands, looks_at=_looks_at)
for _code in (pickle.APPENDS, pickle.SETITEMS, pickle.ADDITEMS):
    _Reader.dispatch[_code[0]] = _filling(_Reader.dispatch[_code[0]])
