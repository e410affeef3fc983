"""The law of keys: equal exactly if two values have the same type and content, in memory and in every store."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import enum
import itertools
import math
import pickle
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from pickle import PickleBuffer
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, RootModel

from opero import Policy
from opero.cache.content import NoKeyError, freeze
from opero.cache.digest import digest


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Number(enum.IntEnum):
    ONE = 1
    TWO = 2


class Bits(enum.Flag):
    A = 1
    B = 2


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Any
    y: Any = 1


@dataclasses.dataclass
class Open:
    x: Any
    seen: int = dataclasses.field(default=0, compare=False)


@attrs.frozen
class Attrs:
    x: Any


class Pair(NamedTuple):
    left: Any
    right: Any


class Model(BaseModel):
    model_config = ConfigDict(extra="allow")

    x: Any = 1
    y: Any = None


class FrozenModel(BaseModel, frozen=True):
    x: Any


class Root(RootModel[Any]):
    pass


class Text(str):
    __slots__ = ()


class Items(list[Any]):
    pass


MADRID, UTC_ZONE = ZoneInfo("Europe/Madrid"), ZoneInfo("UTC")
ZONES = [None, datetime.UTC, datetime.timezone(datetime.timedelta(hours=-5)), MADRID, UTC_ZONE]
TIMES = [datetime.datetime.fromisoformat(each) for each in ("2026-10-25T02:30", "2026-10-25T12:00", "2026-10-25T07:00")]
ATOMS: list[Any] = [
    *(None, True, False, 0, 1, 2, 0.0, -0.0, 1.0, float("nan"), 1j, 1 + 0j, "", "1", "a", b"", b"a", ..., range(1)),
    *(range(0, 2, 2), slice(1), slice(1.0), bytearray(b"a"), Text("a"), Text("1"), 10**30, "\ud800"),
    *(Decimal(1), Decimal("1.0"), Decimal("1.00"), Decimal("NaN"), Decimal("sNaN"), Fraction(1), Fraction(1, 2)),
    *(Color.RED, Color.BLUE, Number.ONE, Number.TWO, Bits.A, Bits.A | Bits.B, Bits(0), UUID(int=1), UUID(int=2)),
    *(PurePosixPath("a"), Path("a"), Path("b"), datetime.date(2026, 10, 25), datetime.timedelta(1), int, str, len),
    *(each.replace(tzinfo=zone, fold=fold) for each in TIMES for zone in ZONES for fold in (0, 1)),
    *(datetime.time(2, 30, fold=fold, tzinfo=zone) for fold in (0, 1) for zone in (None, datetime.UTC)),
    *(numpy.int64(1), numpy.float64(1), numpy.float32(1), numpy.array([1, 2]), numpy.array([1.0, 2.0])),
    *(numpy.array([[1, 2]]), numpy.array([1, "a"], dtype=object), numpy.datetime64("2026-10-25")),
    *(zone for zone in ZONES if zone is not None),
]
HASHABLE = [each for each in ATOMS if type(each).__hash__ is not None and type(each) is not slice]
HASHABLE = [each for each in HASHABLE if not (isinstance(each, Decimal) and each.is_snan())]


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    few = st.lists(inner, max_size=2)
    return st.one_of(
        few,
        few.map(tuple),
        few.map(Items),
        few.map(deque),
        st.builds(Pair, inner, inner),
        st.builds(Frozen, inner),
        st.builds(Frozen, inner, inner),
        st.builds(Open, inner, st.integers(0, 1)),
        st.builds(Attrs, inner),
        st.builds(Model, x=inner),
        st.builds(Model, x=inner, y=inner),
        st.builds(Model, x=inner, z=inner),
        st.builds(FrozenModel, x=inner),
        st.builds(Root, inner),
        st.lists(st.sampled_from(HASHABLE), max_size=2).map(set),
        st.lists(st.sampled_from(HASHABLE), max_size=2).map(frozenset),
        *(
            st.lists(st.tuples(st.sampled_from(HASHABLE), inner), max_size=2).map(kind)
            for kind in (dict, OrderedDict, lambda pairs: defaultdict(list, pairs), lambda pairs: Counter(dict(pairs)))
        ),
    )


ATOM = st.sampled_from(ATOMS)
VALUES = st.recursive(ATOM, containers, max_leaves=4)


def same(one: Any, other: Any) -> bool:
    """Return whether two values have the same type and content, told without keys."""
    kind = type(one)
    if kind is not type(other):
        return False
    if isinstance(one, float | numpy.generic | type | ZoneInfo | enum.Enum):
        return repr(one) == repr(other)
    if kind is complex:
        return same((one.real, one.imag), (other.real, other.imag))
    if isinstance(one, Decimal):
        return one.as_tuple() == other.as_tuple()
    if isinstance(one, datetime.datetime | datetime.time):
        naive = one.replace(tzinfo=None) == other.replace(tzinfo=None) and one.fold == other.fold
        return naive and same(one.tzinfo, other.tzinfo)
    if isinstance(one, range | slice):
        return same((one.start, one.stop, one.step), (other.start, other.stop, other.step))
    if isinstance(one, numpy.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and same(one.tolist(), other.tolist())
    if isinstance(one, Frozen | Open | Attrs):
        return same(one.x, other.x) and same(getattr(one, "y", 0), getattr(other, "y", 0))
    if isinstance(one, BaseModel):
        return same({**one.__dict__, **(one.model_extra or {})}, {**other.__dict__, **(other.model_extra or {})})
    if isinstance(one, OrderedDict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, dict):
        return same_without_order(list(one.items()), list(other.items()))
    if isinstance(one, set | frozenset):
        return same_without_order(list(one), list(other))
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def same_without_order(one: list[Any], other: list[Any]) -> bool:
    left = list(other)
    for each in one:
        found = next((at for at, candidate in enumerate(left) if same(each, candidate)), None)
        if found is None:
            return False
        del left[found]
    return not left


def test_every_pair_of_single_values_obeys_the_law() -> None:
    frozen = [freeze(each) for each in ATOMS]
    digests = [digest(each) for each in frozen]
    for one, other in itertools.combinations_with_replacement(range(len(ATOMS)), 2):
        expected = same(ATOMS[one], ATOMS[other])
        shown = ATOMS[one], ATOMS[other]
        assert (frozen[one] == frozen[other]) is expected, shown
        assert (digests[one] == digests[other]) is expected, shown


@settings(max_examples=300)
@given(one=VALUES, other=VALUES)
def test_keys_are_equal_exactly_if_type_and_content_are(one: Any, other: Any) -> None:
    expected = same(one, other)
    assert (freeze(one) == freeze(other)) is expected
    assert (digest(freeze(one)) == digest(freeze(other))) is expected


@settings(max_examples=150)
@given(value=VALUES)
def test_a_copy_has_the_same_key(value: Any) -> None:
    for again in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert freeze(again) == freeze(value)
        assert hash(freeze(again)) == hash(freeze(value))
        assert digest(freeze(again)) == digest(freeze(value))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, redis_server: Any) -> list[Any]:
    """The same function with a cache in each kind of store."""
    directory = tmp_path_factory.mktemp("cache")
    policies: list[dict[str, Any]] = [
        {"ttl": 600},
        {"ttl": 600, "backend": "disk", "cache_dir": directory},
        {"ttl": 600, "backend": "redis", "url": redis_server.url},
    ]
    return [Policy(cache=policy).apply(lambda number, value: number) for policy in policies]


numbers = itertools.count()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=VALUES, other=VALUES)
def test_calls_share_a_result_in_every_store_exactly_if_their_arguments_are_the_same(
    stores: list[Any], one: Any, other: Any
) -> None:
    number = next(numbers)
    for bound in stores:
        hits = bound.stats.cache_hits
        bound(number, one)
        bound(number, other)
        assert bound.stats.cache_hits - hits == same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Model(), Model(x=1)),
        (Model(x=1, y=None), Model()),
        (Open(1, seen=1), Open(1, seen=2)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (tuple(range(2000)), tuple(range(2000))),
        (tuple(map(str, range(2000))), tuple(f"{number}" for number in range(2000))),
        (list(range(2000)), list(range(2000))),
    ],
)
def test_values_that_only_look_different_are_one(stores: list[Any], one: Any, other: Any) -> None:
    number = next(numbers)
    for bound in stores:
        attempts = bound.stats.attempts
        bound(number, one)
        bound(number, other)
        assert bound.stats.attempts - attempts == 1


LONG: list[Any] = [
    tuple(range(2000)),
    list(range(2000)),
    (*range(1999), 1999.0),
    (*range(1, 2000), True),
    (*range(1, 2000), 1),
    tuple(map(float, range(2000))),
    tuple(map(str, range(2000))),
    tuple(str(number).encode() for number in range(2000)),
    (*range(1999), (1,)),
    (*range(1999), [1]),
    (*range(1999), None),
    (*range(2000), 2000),
]


def test_long_sequences_obey_the_law(stores: list[Any]) -> None:
    digests = [digest(freeze(each)) for each in LONG]
    assert len(set(digests)) == len({freeze(each) for each in LONG}) == len(LONG)
    again = [freeze(copy.deepcopy(each)) for each in LONG]
    assert again == [freeze(each) for each in LONG]
    assert [digest(each) for each in again] == digests
    inner = [0]
    holding = (*range(1999), inner)
    before = freeze(holding)
    inner.append(1)
    assert freeze(holding) != before


class SomeInt(int):
    """Equal to an integer, of another type."""


class Pretender:
    """Pickles as an integer."""

    def __reduce__(self) -> Any:
        return int, (str(10**20),)


class SomeText(str):
    """Equal to a text, of another type."""


ALIKE: list[tuple[Any, list[Any]]] = [
    (1, [True, 1.0, SomeInt(1), 2, "1", (1,), [1]]),
    (1.0, [True, 1, 2.0, math.inf]),
    (0.0, [-0.0, 0, False, math.nan]),
    (10**20, [1e20, 10**20 + 1, Pretender()]),
    ("a", [SomeText("a"), "b"]),
    (b"a", [bytearray(b"a"), b"b"]),
]


@settings(max_examples=60, deadline=None)
@given(alike=st.sampled_from(ALIKE), length=st.integers(999, 1200), data=st.data())
def test_a_long_tuple_of_one_type_is_known_again_by_its_items_and_their_type(
    alike: tuple[Any, list[Any]], length: int, data: st.DataObject
) -> None:
    item, others = alike

    def made(*, at: int = 0, other: Any = item) -> tuple[Any, ...]:
        return (*[item] * at, other, *[item] * (length - at - 1))

    known = freeze(made())
    assert freeze(made()) == known
    assert hash(freeze(made())) == hash(known)
    assert digest(freeze(made())) == digest(known)
    at, other = data.draw(st.integers(0, length - 1)), data.draw(st.sampled_from(others))
    assert freeze(made(at=at, other=other)) != known
    assert freeze([*made()]) != known
    assert freeze(made()) == known


class SomeBytes(bytes):
    """Equal to bytes, of another type."""


@pytest.mark.parametrize("first", [1, 1.0, 10**12, "a", b"a"])
@pytest.mark.parametrize(
    "other",
    [
        SomeBytes(b"x"),
        bytearray(b"x"),
        memoryview(b"x"),
        array("b", b"x"),
        numpy.frombuffer(b"x", "u1"),
        PickleBuffer(b"x"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_serializers_write_as_bytes_is_not_bytes(first: Any, other: Any) -> None:
    known = freeze((first, *range(2000), b"x"))
    assert freeze((first, *range(2000), b"x")) == known
    try:
        found = freeze((first, *range(2000), other))
    except NoKeyError:
        return
    assert found != known
