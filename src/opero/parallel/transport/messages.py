"""The messages between a map and its workers: items on the way there, reports on the way back.

A chunk's results are pickled together if they consist of builtin types only. Others may fail to unpickle where they
arrive, so each of those is a pickle of its own: one that fails costs its own item and no other. So is each exception:
a few failures do not change how the results beside them are sent.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError, OperoError, describe, message_of
from opero.parallel.engine.blocks import Report
from opero.parallel.transport.context import drain_records, handle_records
from opero.parallel.transport.exceptions import portable
from opero.parallel.transport.pickling import dumps, loads, pickled, shown

if TYPE_CHECKING:
    from opero.observe.stats import Stats
    from opero.parallel.engine.blocks import Chunk

REPORT, END, UNREADABLE = range(3)


class Unreadable(Exception):  # noqa: N818  # never shown to users
    """A worker could not unpickle the items of a chunk: send each as a pickle of its own."""


# Values, together or one by one


class _NotBuiltin(Exception):  # noqa: N818
    """A value holds something other than builtin types."""


class _BuiltinPickler(pickle.Pickler):
    """Pickles builtin types only: what it writes can be read anywhere."""

    def reducer_override(self, value: Any) -> Any:
        raise _NotBuiltin(type(value).__name__)


def _dumps_builtin(value: Any) -> bytes:
    file = io.BytesIO()
    _BuiltinPickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


def _pickle_each(values: Sequence[Any]) -> tuple[list[bytes], list[int], dict[int, Exception]]:
    """A pickle for each distinct object, which of them each value is, and what failed: position → error."""
    pickles: list[bytes] = []
    order: list[int] = []
    numbers: dict[int, int] = {}
    failed: dict[int, Exception] = {}
    for position, value in enumerate(values):
        if id(value) not in numbers:
            try:
                pickles.append(dumps(value))
            except Exception as error:  # noqa: BLE001  # reported as the item's failure
                failed[position] = error
                pickles.append(dumps(None))
            else:
                numbers[id(value)] = len(pickles) - 1
            order.append(len(pickles) - 1)
        else:
            order.append(numbers[id(value)])
    return pickles, order, failed


def _unpickle_each(pickles: list[bytes], order: list[int]) -> tuple[list[Any], dict[int, Exception]]:
    """The values, and of those that cannot be unpickled: position → error."""
    values: list[Any] = []
    failed: dict[int, Exception] = {}
    for number, data in enumerate(pickles):
        try:
            values.append(loads(data))
        except Exception as error:  # noqa: BLE001  # reported as the item's failure
            values.append(None)
            failed[number] = error
    broken = {position: failed[number] for position, number in enumerate(order) if number in failed}
    return [values[number] for number in order], broken


# Items


def encode_items(items: list[Any], *, separately: bool = False) -> bytes:
    """Pickle items for a worker; `separately` after a worker could not unpickle them together."""
    if not separately:
        return dumps(items)
    pickles, order, failed = _pickle_each(items)
    for error in failed.values():
        raise error
    return dumps((pickles, order))


def decode_items(payload: bytes) -> tuple[list[Any], dict[int, Exception]]:
    """The items, and of those that cannot be unpickled here: position → error.

    Raises:
        Unreadable: the items were pickled together and cannot be unpickled.
    """
    try:
        items = loads(payload)
    except Exception as error:
        raise Unreadable from error
    return (items, {}) if isinstance(items, list) else _unpickle_each(*items)


def unsendable(chunk: Chunk, name: str) -> tuple[list[int], Report]:
    """The positions of the items that can be pickled, and a report of the others, which have failed."""
    good, bad, errors = [], [], []
    for position, item in enumerate(chunk.items):
        try:
            pickled(item, f"item {chunk.index(position)} of {name}")
            good.append(position)
        except ConfigError as error:
            bad.append(position)
            errors.append(error)
    return good, Report(errors, bad, positions=bad, is_last=not good)


# Reports


def encode_report(report: Report, new_counts: Callable[[], dict[str, Any]], *, strictly: bool = False) -> bytes:
    """Pickle a report, what the function's binding counted, and what was logged.

    Args:
        report: the report.
        new_counts: what the binding has counted since it was last asked.
        strictly: raise the error of a result that cannot be pickled, instead of failing its item.
    """
    values, failures = list(report.values), set(report.failures)
    portables: dict[int, Any] = {}
    positions = range(len(values)) if report.positions is None else report.positions
    alone: dict[int, Any] = {}  # by their places, the values that are pickled each on its own
    if failures:
        for place, position in enumerate(positions):
            if position in failures:
                alone[place], values[place] = portable(values[place], portables), None
    failed_positions = list(report.failures)
    try:
        together = _dumps_builtin(values)
    except Exception:  # noqa: BLE001  # it holds other types, or cannot be pickled
        alone = {place: alone.get(place, value) for place, value in enumerate(values)}
        together = _dumps_builtin([None] * len(values))
    places = list(alone)
    pickles, order, failed = _pickle_each(list(alone.values()))
    for at, error in failed.items():
        if strictly:
            raise error from None
        text = f"the result {shown(alone[places[at]], 200)} cannot be sent back from a worker process: {error}"
        pickles[order[at]] = dumps(TypeError(text))
        failed_positions.append(positions[places[at]])
    rest = (report.positions, report.fell_back, report.seconds, new_counts(), drain_records())
    return _dumps_builtin((REPORT, together, places, pickles, order, failed_positions, *rest))


def encode_end(error: BaseException, failed: str = "") -> bytes:
    """Pickle an exception that ends the whole map.

    Args:
        error: the exception.
        failed: what failed before the first item; empty if an item raised the exception.
    """
    return _dumps_builtin((END, dumps(portable(error)), failed, drain_records()))


def encode_unreadable() -> bytes:
    return _dumps_builtin((UNREADABLE,))


def decode_report(data: bytes | memoryview, name: str, stats: Stats) -> Report:
    """The report that a worker sent. Its counts are added to `stats`, and its log records are handled here.

    Raises:
        Unreadable: the worker could not unpickle the items.
        BaseException: what ended the map.
    """
    kind, *parts = loads(data)
    if kind == UNREADABLE:
        raise Unreadable
    if kind == END:
        raise _end(name, stats, *parts)
    together, places, pickles, order, failures, positions, fell_back, seconds, counts, records = parts
    values = loads(together)
    alone, broken = _unpickle_each(pickles, order)
    for at, place in enumerate(places):
        values[place] = alone[at]
        if at in broken:
            values[place] = TypeError(
                f"the result of {name} came back from its worker process and cannot be read here: "
                f"{describe(broken[at])}"
            )
            position = place if positions is None else positions[place]
            if position not in failures:
                failures.append(position)
    stats.add(counts)
    handle_records(records, stats)
    return Report(values, failures, positions=positions, fell_back=fell_back, seconds=seconds)


def _end(name: str, stats: Stats, pickled_error: bytes, failed: str, records: list[Any]) -> BaseException:
    """The exception that ends a map."""
    handle_records(records, stats)
    error: BaseException
    try:
        error = loads(pickled_error)
    except Exception as reason:  # noqa: BLE001  # its class may not be importable here
        error = OperoError(f"an exception ended {name} and cannot be read here: {message_of(reason)}")
    if not failed:
        return error
    end = OperoError(f"{name}: {failed} in a worker process: {describe(error)}")
    return end.with_traceback(error.__traceback__)
