"""The serializer `typed`: results come back exactly as they were, by the return annotation."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime
import enum
import json
import pickle
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Generic, NamedTuple, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy
import numpy.typing
import pandas
import pytest
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel, SecretStr
from typing_extensions import TypedDict

from opero import ConfigError, Event, Policy, on
from opero.cache.content import freeze
from opero.cache.typed import TypedValues, UnfitError

T = TypeVar("T")
MADRID = ZoneInfo("Europe/Madrid")
SEEN = datetime.datetime.fromisoformat("2026-10-25T02:30:00.000001")


class Color(enum.Enum):
    RED = "red"
    BLUE = ("b", 1)


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass(frozen=True)
class Point:
    x: Decimal
    seen: datetime.datetime
    tags: tuple[str, ...] = ()


@dataclasses.dataclass
class Line:
    start: Point
    end: Point | None = None


class Pair(NamedTuple):
    left: int
    right: bytes


class Row(TypedDict):
    id: UUID
    at: datetime.time


class User(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(alias="fullName", validation_alias="full")
    born: datetime.date | None = None
    colors: set[Color] = set()
    home: Path = Path("/")
    limit: Decimal | float = 1.0
    children: list[User] = []


class Page(BaseModel, Generic[T]):
    items: list[T]
    more: dict[int, T] = {}


class Names(RootModel[tuple[str, ...]]):
    pass


class Open(BaseModel):
    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)

    data: numpy.ndarray
    anything: Any = None


class Stateful(BaseModel):
    x: int
    _session: Any = PrivateAttr(default=None)


POINT = Point(Decimal("1.00"), SEEN.replace(tzinfo=MADRID, fold=1), ("a", "b"))
USER = User(full="Ada", born=datetime.date(1815, 12, 10), colors={Color.RED, Color.BLUE}, limit=Decimal("2.50"))
CASES: list[tuple[Any, Any]] = [
    (int, 2**70),
    (float, float("inf")),
    (float, -0.0),
    (str, "\ud800 é"),
    (bytes, b"\x00\xff"),
    (bytearray, bytearray(b"a")),
    (tuple[int, str], (1, "a")),
    (tuple, (1, [2, (3,)])),
    (set[int], {1, 2}),
    (frozenset[str], frozenset("ab")),
    (dict[int, str], {1: "a", 2: "b"}),
    (dict, {"$": "set", "v": [1], ("a", 1): None}),
    (list, [None, True, 1, 1.0, "1", {"a": (1,)}]),
    (Decimal, Decimal("1.00")),
    (Decimal, Decimal("sNaN")),
    (Fraction, Fraction(1, 3)),
    (complex, 1 - 0j),
    (UUID, UUID(int=5)),
    (Path, Path("/a/b")),
    (PurePosixPath, PurePosixPath("a")),
    (collections.deque, collections.deque([1, 2], maxlen=3)),
    (collections.OrderedDict, collections.OrderedDict(b=1, a=2)),
    (collections.Counter, collections.Counter("aab")),
    (datetime.date, datetime.date(2026, 1, 1)),
    (datetime.timedelta, datetime.timedelta(-1, 5, 7)),
    *(
        (datetime.datetime, SEEN.replace(tzinfo=zone, fold=fold))
        for fold in (0, 1)
        for zone in (
            None,
            datetime.UTC,
            MADRID,
            ZoneInfo("UTC"),
            datetime.timezone(datetime.timedelta(hours=5)),
            datetime.timezone(datetime.timedelta(), "named"),
        )
    ),
    (datetime.time, datetime.time(1, 2, fold=1, tzinfo=datetime.UTC)),
    (Color, Color.BLUE),
    (Level, Level.LOW),
    (list[Color], [Color.RED, Color.BLUE]),
    (dict[Color, Level], {Color.BLUE: Level.LOW}),
    (Point, POINT),
    (Line, Line(POINT)),
    (Line, Line(POINT, POINT)),
    (Line | None, None),
    (Pair, Pair(1, b"x")),
    (list[Pair], [Pair(1, b"x")]),
    (Row, {"id": UUID(int=1), "at": datetime.time(2)}),
    (User, USER),
    (User, User(full="Eve", limit=2.5, children=[USER])),
    (list[User], [USER]),
    (dict[str, User | int], {"a": USER, "b": 1}),
    (Annotated[User | None, "a note"], USER),
    (Page[User], Page[User](items=[USER], more={1: USER})),
    (Page[datetime.datetime], Page[datetime.datetime](items=[POINT.seen])),
    (Names, Names(("a", "b"))),
    (Open, Open(data=numpy.array([[1, 2]]), extra=(1, b"2"), anything={1})),
    (numpy.ndarray, numpy.asfortranarray([[1.5, 2], [3, float("nan")]])),
    (numpy.typing.NDArray[numpy.int8], numpy.array([1, 2], dtype=numpy.int8)),
    (numpy.ndarray, numpy.array([[1, "a"], [None, (2,)]], dtype=object)),
    (numpy.ndarray, numpy.array(["2026-01-01"], dtype="datetime64[s]")),
    (numpy.ndarray, numpy.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])),
    (list[numpy.ndarray], [numpy.zeros((0, 3))]),
    (numpy.float32, numpy.float32(1.5)),
    (str, {"not": "what is annotated"}),
]


IDS = [f"{at}-{getattr(annotation, '__name__', annotation)}" for at, (annotation, _) in enumerate(CASES)]


def annotated(annotation: Any, function: Any = None) -> Any:
    """Return a function with this return annotation."""

    def made(x: int) -> Any:
        return function(x) if callable(function) else None

    made.__annotations__["return"] = annotation
    return made


@pytest.mark.parametrize(
    ("annotation", "value"),
    CASES,
    ids=IDS,
)
def test_a_value_comes_back_exactly_as_it_was(annotation: Any, value: Any) -> None:
    typed = TypedValues(annotated(annotation))
    written = typed.dumps(value)
    json.loads(written[1:].decode("utf-8", "surrogatepass"))
    found = typed.loads(written)
    assert type(found) is type(value)
    assert freeze(found) == freeze(value)
    if isinstance(value, datetime.datetime):
        assert (found.isoformat(), found.fold, type(found.tzinfo)) == (
            value.isoformat(),
            value.fold,
            type(value.tzinfo),
        )
    if isinstance(value, numpy.ndarray):
        assert found.flags.writeable
        assert found.flags.f_contiguous == value.flags.f_contiguous


class Tree(BaseModel):
    name: str = "x"
    parts: list[Tree] = []
    at: datetime.datetime = Field(default_factory=lambda: datetime.datetime.now(datetime.UTC))


def test_models_come_back_with_the_same_fields_set() -> None:
    value = {"a": Tree(name="y", parts=[Tree(), Tree(name="z")]), "b": Tree()}
    typed = TypedValues(annotated(dict[str, Tree]))
    found = typed.loads(typed.dumps(value))
    assert found == value
    for name in value:
        assert found[name].model_dump(exclude_unset=True) == value[name].model_dump(exclude_unset=True)


def test_frames_come_back_exactly_as_they_were() -> None:
    times = pandas.date_range("2026-10-24", periods=3, freq="D", tz="Europe/Madrid")
    columns: dict[str, Any] = {
        "i": numpy.array([1, 2, 3], dtype="int32"),
        "f": [1.5, float("nan"), 3],
        "s": ["a", None, "c"],
        "o": numpy.array([1, "a", None], dtype=object),
        "t": times,
        "n": pandas.date_range("2026-01-01", periods=3),
        "c": pandas.Categorical(["x", "y", None], categories=["y", "x"], ordered=True),
        "m": pandas.array([1, None, 3], dtype="Int64"),
        "b": pandas.array([True, None, False], dtype="boolean"),
    }
    frames = [
        pandas.DataFrame(columns),
        pandas.DataFrame(columns, index=times),
        pandas.DataFrame({("a", 1): [1], ("a", 2): [2]}).set_index([("a", 1)]),
        pandas.DataFrame(index=pandas.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["k", None])),
        pandas.DataFrame(),
    ]
    typed = TypedValues(annotated(pandas.DataFrame))
    for frame in frames:
        found = typed.loads(typed.dumps(frame))
        pandas.testing.assert_frame_equal(found, frame, check_freq=True, check_flags=True)
    series = TypedValues(annotated(pandas.Series))
    for each in (frames[0]["c"], frames[1]["t"], frames[0]["o"]):
        pandas.testing.assert_series_equal(series.loads(series.dumps(each)), each)
    with pytest.raises(ValueError, match="does not come back"):
        typed.dumps(pandas.DataFrame({"x": [object()]}))


class Foreign:
    pass


class Holding(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    part: Foreign


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        (Any, "it has no return annotation that says what to expect: add one"),
        (object, "it has no return annotation"),
        (Foreign, "its return annotation names Foreign, which cannot be made of JSON: use a pydantic model"),
        (list[Foreign], "names Foreign"),
        (Holding, "names Foreign"),
        (collections.abc.Iterator[int], "names Iterator, which cannot be made of JSON"),
        (collections.abc.Callable[[], int], "names a callable"),
        ("Missing", "cannot be read .name 'Missing' is not defined.: define what it names above"),
    ],
)
def test_an_annotation_that_cannot_serve_is_refused_at_binding(annotation: Any, told: str, tmp_path: Any) -> None:
    function = annotated(annotation)
    with pytest.raises(UnfitError, match=told):
        TypedValues(function)
    for backend in ("disk", "memory"):
        policy = Policy(cache={"backend": backend, "ttl": 60, "cache_dir": tmp_path, "serializer": "typed"})
        with pytest.raises(
            ConfigError, match=f"cache.serializer 'typed' cannot be used: .*{told}.* another serializer"
        ):
            policy.apply(function)


def test_values_that_would_not_come_back_are_not_stored_and_say_why(tmp_path: Any) -> None:
    secret = type("Keeper", (BaseModel,), {"__annotations__": {"key": SecretStr}, "__module__": __name__})
    state = Stateful(x=1)
    state._session = 3
    cases: list[tuple[Any, Any, str]] = [
        (User, Foreign(), "a Foreign does not come back as it is by the return annotation User"),
        (Stateful, state, "what is read differs from it"),
        (Any if secret is None else secret, secret(key="k"), "a value of type SecretStr"),
        (int, 10**5000, "Exceeds the limit"),
        (BaseModel, USER, "does not come back"),
    ]
    events: list[Event] = []
    remove = on("cache_failed", events.append)
    try:
        for annotation, value, told in cases:
            policy = Policy(cache={"backend": "disk", "ttl": 60, "cache_dir": tmp_path, "serializer": "typed"})
            bound: Any = policy.apply(annotated(annotation, lambda x, value=value: value))
            assert bound(1) is value
            assert bound.cache_entry(1) is None
            assert events[-1].what == "not_stored"  # type: ignore[attr-defined]
            assert told in str(events[-1].message)  # type: ignore[attr-defined]
    finally:
        remove()


@pytest.mark.parametrize("backend", ["memory", "disk", "redis"])
def test_sync_and_async_functions_get_their_results_from_every_store(backend: str, tmp_path: Any, request: Any) -> None:
    cache: dict[str, Any] = {"backend": backend, "ttl": 60, "serializer": "typed"}
    cache |= {"url": request.getfixturevalue("redis_url")} if backend == "redis" else {"cache_dir": tmp_path}

    def load(x: int) -> User:
        return USER

    async def load_async(x: int) -> list[User]:
        return [USER]

    bound, bound_async = Policy(cache=cache).apply(load), Policy(cache=cache).apply(load_async)
    assert bound(1) == bound(1) == USER
    assert bound(1) is not USER
    assert asyncio.run(bound_async(1)) == asyncio.run(bound_async(1)) == [USER]
    assert (bound.stats.attempts, bound_async.stats.attempts) == (1, 1)


def test_network_stores_use_it_where_the_annotation_says_what_to_expect(redis_url: str) -> None:
    cache: dict[str, Any] = {"backend": "redis", "ttl": 60, "url": redis_url}

    def serializer(function: Any, **more: Any) -> str:
        bound: Any = Policy(cache={**cache, **more}).apply(function)
        return str(bound.binding.cache.store.codec.serializer)

    assert serializer(annotated(User)) == "typed"
    assert serializer(annotated(Any)) == serializer(annotated(Foreign)) == serializer(lambda x: x) == "json"
    assert serializer(annotated(User), secret="s") == "signed_pickle"
    assert serializer(annotated(User), serializer="json") == "json"
    assert serializer(annotated(User), backend="disk") == "pickle"


def test_a_map_of_batches_keeps_the_items_by_the_annotation_of_the_list(redis_url: str) -> None:
    def load(ids: list[int]) -> list[User]:
        return [User(full=str(each)) for each in ids]

    policy = Policy(cache={"backend": "redis", "ttl": 60, "url": redis_url}, parallel={"mode": "thread"})
    bound: Any = policy.apply(load)
    first = bound.map([1, 2, 3], progress=False)
    assert bound.map([3, 2, 1], progress=False) == first[::-1]
    assert bound.stats.cache_hits == 3


def test_what_is_read_is_what_the_annotation_says_or_a_miss(tmp_path: Any) -> None:
    typed, other = TypedValues(annotated(Line)), TypedValues(annotated(User))
    written = typed.dumps(Line(POINT))
    for wrong in (b"", b"w", b"x[]", b'p{"$": "os.system", "v": "true"}', pickle.dumps(1), b'p{"$": "path", "v": []}'):
        with pytest.raises(Exception):  # noqa: PT011  # a codec makes a miss of whatever is raised
            typed.loads(wrong)
    with pytest.raises(Exception):  # noqa: PT011
        other.loads(written)
    policy = {"backend": "disk", "ttl": 60, "cache_dir": tmp_path, "serializer": "typed", "app": "a"}
    before: Any = Policy(cache=policy).apply(annotated(Line, lambda x: Line(POINT)))
    before(1)
    after: Any = Policy(cache=policy).apply(annotated(User, lambda x: USER))
    after.binding.cache.store.__dict__["prefix"] = before.binding.cache.store.prefix
    assert after(1) is USER
