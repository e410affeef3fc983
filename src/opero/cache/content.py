"""The content of values: what makes two arguments the same.

Two values have equal keys exactly if they have the same type and the same content, at every level. `freeze` turns a
value into text, numbers, types, and tuples and frozensets of these, which are equal in memory exactly if their digests
are equal in a store.
"""

from __future__ import annotations

import functools
import marshal
import weakref
from collections.abc import Callable, Hashable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from hashlib import blake2b
from operator import countOf
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from opero.cache.instances import Token, token_of
from opero.errors import ConfigError, message_of

Freezer = Callable[[Any], Hashable]
LARGE = 1000
"""The length from which on a tuple of plain values is a digest in keys, which is remembered with the tuple."""
SAMPLE = 4096
"""Bytes of a long value that make its hash, at each of three places."""
SCALARS = frozenset({str, int, bool, float, bytes, type(None)})
"""The types that `marshal` writes in the same way whenever they are equal."""
UNIFORM = frozenset({str, int, bytes})
"""The types of which all equal values are the same."""


class NoKeyError(ConfigError):
    """A value cannot be part of a key."""


class Hashed:
    """A value whose class computes its hash in Python. It is asked once, however often the key is looked up."""

    __slots__ = ("number", "value")

    def __init__(self, value: Any, number: int) -> None:
        self.value = value
        self.number = number

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hashed) and self.number == other.number and bool(self.value == other.value)

    def __repr__(self) -> str:
        return repr(self.value)


def freeze(value: Any) -> Hashable:
    """Return a hashable equivalent of a value; equal values of different types (1, 1.0, True) get different ones.

    Raises:
        NoKeyError: there is none.
    """
    kind = type(value)
    if kind is str or kind is int or value is None:
        return value  # type: ignore[no-any-return]
    if kind is float:
        # As text, 0.0 and -0.0 differ, and NaN is equal to itself.
        return kind, value if value != 0 and value == value else str(value)
    return (_freezers.get(id(kind)) or _learn(kind))(value)


PLAIN = frozenset({str, int, float, bool, bytes, complex, type(None)})


def is_plain(key: Any, tokens: list[Token] | None = None) -> bool:
    """Return whether comparing a key runs no Python code, so that looking it up in a dictionary is atomic.

    Args:
        key: the key.
        tokens: a list to which the tokens of instances in the key are added.
    """
    kind = type(key)
    if kind in PLAIN:
        return True
    if kind is tuple or kind is frozenset:
        plain = True
        for each in key:
            plain = is_plain(each, tokens) and plain
        return plain
    if kind is Token:
        if tokens is not None:
            tokens.append(key)
        return True
    return kind is Content or (isinstance(key, type) and _hash_of(kind) is type.__hash__)


def _hash_of(kind: Any) -> Any:
    return kind.__hash__


def _learn(kind: Any) -> Freezer:
    """Return what freezes instances of a class, and keep it as long as the class."""
    found = next(found for way in ways if (found := way(kind)) is not None)
    key = id(kind)
    _freezers[key] = found
    freezers, references = _freezers, _references  # global names are gone before the last classes
    references[key] = weakref.ref(kind, lambda _: (freezers.pop(key, None), references.pop(key, None)))
    return found


_freezers: dict[int, Freezer] = {}
"""Address of a class → what freezes its instances, without a reference to the class."""
_references: dict[int, Any] = {}
ways: list[Callable[[Any], Freezer | None]] = []
"""Return what freezes the instances of a class, or None; the last one knows all others. `opero.cache` fills it."""


def items_of(value: Any) -> tuple[Hashable, ...]:
    return tuple([each if type(each) is str or type(each) is int else freeze(each) for each in value])


def pairs_of(value: Any) -> list[tuple[Hashable, Hashable]]:
    return [
        (
            key if type(key) is str else freeze(key),
            each if type(each) is str or type(each) is int else freeze(each),
        )
        for key, each in value.items()
    ]


# Builtin types


def _complex(value: complex) -> Hashable:
    return complex, freeze(value.real), freeze(value.imag)


def exact(value: Any) -> Hashable:
    return type(value), value


def _sequence(value: Any) -> Hashable:
    return (type(value), items_of(value)) if len(value) < LARGE else (type(value), _large(value))


def _tuple(value: Any) -> Hashable:
    if len(value) < LARGE:
        return tuple, items_of(value)
    content: Any = _whole.get(id(value))
    if content is not None and content.value is value:
        return tuple, content
    form = _form(value)
    if form is not None and (content := _equal.get(form)) is not None:
        return tuple, content
    content = _large(value)
    if type(content) is Content:
        content.value = value
        _whole[id(value)] = content
        if form is not None:
            _equal[form] = content
    return tuple, content


class Content(str):
    """The digest of a large tuple. It keeps the tuple, so that its address identifies it for as long."""

    value: tuple[Any, ...]


_whole: weakref.WeakValueDictionary[int, Content] = weakref.WeakValueDictionary()
"""Address of a tuple → its digest."""
_equal: weakref.WeakValueDictionary[Hashable, Content] = weakref.WeakValueDictionary()
"""The form of a tuple → its digest, for equal ones: comparing takes a third of the time."""


def _form(value: tuple[Any, ...]) -> Hashable | None:
    """Return what only tuples of the same items of the same types have in common; None if there is no fast way."""
    kind = type(value[0])
    if kind is float or (kind is int and -1 << 31 <= value[0] < 1 << 31):  # longer integers pickle slowly
        pieces: list[bytes] = []
        try:
            _plain_pickler()(_Pieces(pieces.append), 4).dump(value)
        except Exception:  # noqa: BLE001  # it has other items, of any class; the slow way says what is wrong with them
            return None
        return _Written(pieces)
    return (kind, value) if kind in UNIFORM and countOf(map(type, value), kind) == len(value) else None


@functools.cache
def _plain_pickler() -> Any:
    """Return a class that pickles builtin values.

    Equal pickles mean equal values of equal types, up to protocol 4: protocol 5 writes other buffers as bytes, and so
    does `marshal`. Numbers pickle in one way only, in less time than it takes to look at the type of each.
    """
    from pickle import Pickler

    class PlainPickler(Pickler):
        def reducer_override(self, value: Any) -> Any:
            """Refuse any other value, whose own code would say how it pickles."""
            raise TypeError

    return PlainPickler


class _Pieces:
    """A file that passes on what is written to it."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.write = write


class _Written:
    """A value as bytes, in pieces. Some of them make its hash, as that of all would take as long as comparing does."""

    __slots__ = ("number", "pieces")

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        first, middle, last = pieces[0], pieces[len(pieces) // 2], pieces[-1]
        at = len(middle) // 2
        self.number = hash((len(pieces), len(last), first[:SAMPLE], middle[at : at + SAMPLE], last[-SAMPLE:]))

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return type(other) is _Written and self.pieces == other.pieces


def _large(value: Any) -> Hashable:
    """Return a digest of a long sequence of plain values, which is immutable then if it is a tuple; else its items."""
    if SCALARS.issuperset(set(map(type, value))):
        written = marshal.dumps(value if type(value) is tuple else tuple(value), 2)  # which has no references
        return Content(blake2b(written, digest_size=16).hexdigest())
    return items_of(value)


def _dict(value: Any) -> Hashable:
    return dict, frozenset(pairs_of(value))


def _set(value: Any) -> Hashable:
    return type(value), frozenset([freeze(each) for each in value])


def _buffer(value: Any) -> Hashable:
    return type(value), bytes(value)


def _memoryview(value: memoryview) -> Hashable:
    return memoryview, value.format, value.shape, value.tobytes()


def _range(value: Any) -> Hashable:
    return type(value), freeze(value.start), freeze(value.stop), freeze(value.step)


def _constant(value: Any) -> Hashable:
    return type(value), None  # the only one of its type


# The standard library's values, some of which compare equal though they differ


def _datetime(value: datetime) -> Hashable:
    state = value.__reduce_ex__(4)[1]  # bytes, with the fold, and the zone
    return (datetime, state[0]) if len(state) == 1 else (datetime, state[0], freeze(state[1]))


def _time(value: time) -> Hashable:
    state = value.__reduce_ex__(4)[1]
    return (time, state[0]) if len(state) == 1 else (time, state[0], freeze(state[1]))


def _date(value: date) -> Hashable:
    return date, value.toordinal()


def _timedelta(value: timedelta) -> Hashable:
    return timedelta, value.days, value.seconds, value.microseconds


def _timezone(value: timezone) -> Hashable:
    return timezone, freeze(value.utcoffset(None)), value.tzname(None)


def _zone(value: ZoneInfo) -> Hashable:
    return ZoneInfo, value.key if value.key is not None else token_of(value)


def text(value: Any) -> Hashable:
    return type(value), str(value)


def _fraction(value: Fraction) -> Hashable:
    return Fraction, value.numerator, value.denominator


def _uuid(value: UUID) -> Hashable:
    return UUID, value.int


def _partial(value: Any) -> Hashable:
    return functools.partial, freeze(value.func), freeze(value.args), freeze(value.keywords)


BUILTIN: dict[Any, Freezer] = {
    bool: exact,
    bytes: exact,
    date: _date,
    timedelta: _timedelta,
    complex: _complex,
    list: _sequence,
    tuple: _tuple,
    dict: _dict,
    set: _set,
    frozenset: _set,
    bytearray: _buffer,
    memoryview: _memoryview,
    range: _range,
    slice: _range,
    type(...): _constant,
    type(NotImplemented): _constant,
    datetime: _datetime,
    time: _time,
    timezone: _timezone,
    ZoneInfo: _zone,
    Decimal: text,
    Fraction: _fraction,
    UUID: _uuid,
    functools.partial: _partial,
}
_freezers.update({id(kind): found for kind, found in BUILTIN.items()})


# What values pickle as


def reduced(value: Any) -> Hashable:
    """Freeze what a value is made of again when it is copied or unpickled."""
    return type(value), content_of(value)


def content_of(value: Any) -> Hashable:
    """Return the hashable equivalent of what a value pickles as.

    Raises:
        NoKeyError: it does not pickle.
    """
    try:
        found = value.__reduce_ex__(4)
        if isinstance(found, str):
            return found
        make, args, state, items, pairs = (*found[:5], None, None, None)[:5]
        return (
            freeze(make),
            freeze(args),
            freeze(state),
            None if items is None else items_of(items),
            None if pairs is None else tuple([(freeze(key), freeze(each)) for key, each in pairs]),
        )
    except NoKeyError:
        raise
    except Exception as error:
        raise NoKeyError(
            f"a value of type {type(value).__name__} cannot be part of a key, as it has no hash and does not pickle "
            f"({message_of(error)}): define `__opero_key__` (a value, or a method that returns it) in "
            f"{type(value).__name__}, or set cache_key"
        ) from error
