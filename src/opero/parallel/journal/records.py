"""The lines of a journal: readable JSON, with a pickle in it for values that JSON would change."""

from __future__ import annotations

import json
import pickle
import re
from binascii import a2b_base64, b2a_base64
from math import isfinite
from typing import TYPE_CHECKING, Any

from opero.runtime import pickling as pickles

if TYPE_CHECKING:
    from opero.runtime.hosts import Outcome

VERSION = 1
DEEPEST = 64
"""Levels of nesting that are written as JSON: reading recurses, perhaps with a smaller stack than writing had."""
LONGEST_INT = 2000
"""Bits of an int that is written as JSON: within the 640 digits that every Python can parse, however configured."""
LONGEST_TEXT = 2000
"""Characters of the text of an exception; its pickle is complete."""
MOST_ITEMS = 10**9
"""A higher index is damage: the memory for it would be tens of gigabytes."""

# After a power cut, some file systems have NULs in place of data that was not synced; JSON text contains none.
WRITTEN = re.compile(
    rb'\{"i": ([0-9]{1,9}), "item": "([0-9a-f]{16})", "(ok|pickle|error)": [^\0\n]+\}\n', re.ASCII
).fullmatch

# NaN and infinity are no JSON; a cycle is found by its depth.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False).encode
_decode = json.JSONDecoder().decode


def header(name: str) -> bytes:
    """The first line of the journal of a function."""
    return json.dumps({"opero_journal": VERSION, "function": name}, ensure_ascii=False).encode() + b"\n"


def name_in(line: bytes) -> str:
    """The function that a journal's first line names.

    Raises:
        ValueError: it is no such line; the message goes on after the file's name.
    """
    try:
        found = json.loads(line.decode()) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or "opero_journal" not in found:
        raise ValueError("is no journal of opero's")
    if found["opero_journal"] != VERSION:
        raise ValueError(f"has format {found['opero_journal']!r:.20}, and this opero reads format {VERSION}")
    return str(found.get("function"))


def record_of(index: int, item: int, outcome: Outcome) -> bytes | None:
    """The line that records the outcome of an item; None if neither JSON nor pickle can store it.

    Args:
        index: the item's number.
        item: its digest, of 64 bits.
        outcome: its result or exception.
    """
    head = f'{{"i": {index}, "item": "{item:016x}", '
    if outcome.error is not None:
        return f"{head}{_failure(outcome.error)}}}\n".encode()
    value = outcome.value
    try:
        if _survives(value, DEEPEST):
            is_number = type(value) is int or (type(value) is float and isfinite(value))
            # `repr` writes numbers as the encoder does, without the two microseconds that starting the encoder takes.
            return f'{head}"ok": {repr(value) if is_number else _encode(value)}}}\n'.encode()
    except Exception:  # noqa: BLE001  # a NaN, a lone surrogate, or a thread that still changes it
        pass
    try:
        return b"".join((head.encode(), b'"pickle": "', _pickled(value), b'"}\n'))
    except Exception:  # noqa: BLE001  # whatever its own pickling raises
        return None


def _survives(value: Any, depth: int) -> bool:
    """Whether JSON preserves a value and its types; values that the encoder refuses are not checked."""
    kind = type(value)
    if kind is str or kind is float or kind is bool or value is None:
        return True
    if kind is int:
        return value.bit_length() <= LONGEST_INT  # type: ignore[no-any-return]
    if kind is dict:
        for key in value:
            if type(key) is not str:
                return False
        value = value.values()
    elif kind is not list:
        return False
    if depth == 0:
        return False
    for each in value:  # spelt out, as `all` takes twice as long
        kind = type(each)
        if kind is not str and kind is not float and not _survives(each, depth - 1):
            return False
    return True


def _pickled(value: Any) -> bytes:
    """A pickle in base64; by name if possible, as a class of `__main__` is the same class in the next run."""
    try:
        data = pickles.dumps(value)
    except Exception:  # noqa: BLE001  # a lambda, a local class: these go by value
        import cloudpickle

        data = cloudpickle.dumps(value, 5)
    return b2a_base64(data, newline=False)


def _failure(error: Exception) -> str:
    """The fields of a record for an exception: its text, and its pickle if that can be read back."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  # its `__str__` is the user's
        text = type(error).__name__
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]}…"
    text = _encode(text.encode("utf-8", "backslashreplace").decode())
    try:
        pickled = _pickled(error)
        if type(pickle.loads(a2b_base64(pickled))) is type(error):  # many can be pickled, but not unpickled
            return f'"error": {text}, "pickle": "{pickled.decode()}"'
    except Exception:  # noqa: BLE001  # its constructor takes other arguments, or it holds what does not pickle
        pass
    return f'"error": {text}'


def parse(line: bytes, *, strictly: bool = False) -> tuple[int, int, bool]:
    """The index of a record, the digest of its item, and whether it records a failure.

    Args:
        line: the whole line.
        strictly: read all of it. By default a line as `record_of` writes it is taken at its two ends.

    Raises:
        ValueError: it is no record.
    """
    if not strictly and (match := WRITTEN(line)):
        index, item, kind = match.groups()
        return int(index), int(item, 16), kind == b"error"
    record = load(line)
    index, item = record.get("i"), record.get("item")
    if type(index) is not int or not 0 <= index < MOST_ITEMS:
        raise ValueError("it has no index")
    if not isinstance(item, str) or not re.fullmatch("[0-9a-f]{16}", item):
        raise ValueError("it has no digest")
    if not record.keys() & {"ok", "pickle", "error"}:
        raise ValueError("it has no outcome")
    return index, int(item, 16), "error" in record


def load(line: bytes) -> dict[str, Any]:
    """The JSON of a line.

    Raises:
        ValueError: it is no JSON object, or the line has no end.
    """
    if not line.endswith(b"\n"):
        raise ValueError("it was torn off")
    try:
        record = _decode(line.decode())
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(record, dict):
        raise ValueError("it is no object")
    return record


def value_of(record: dict[str, Any]) -> Any:
    """The value in a record. Raises any error of unpickling."""
    return record["ok"] if "ok" in record else pickle.loads(a2b_base64(record["pickle"]))


def error_of(record: dict[str, Any]) -> Exception:
    """The exception in a record, or a RuntimeError with its text."""
    try:
        error = pickle.loads(a2b_base64(record["pickle"]))
        if isinstance(error, Exception):
            return error
    except Exception:  # noqa: BLE001  # it did not pickle then, or is not to be had now
        pass
    return RuntimeError(str(record["error"]))
