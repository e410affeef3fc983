"""Classes of `opero.dataclass` behave as those of the standard `dataclasses`."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import sys
import threading
from dataclasses import FrozenInstanceError, field
from typing import Any, ClassVar

import pytest

import opero.dataclass

OPTIONS: list[dict[str, bool]] = [
    {},
    {"eq": False},
    {"repr": False},
    {"slots": True},
    {"frozen": True},
    {"frozen": True, "slots": True},
    {"frozen": True, "slots": True, "eq": False},
    {"frozen": True, "slots": True, "repr": False},
    {"frozen": True, "slots": True, "kw_only": True},
]


def made(decorate: Any, options: dict[str, bool]) -> tuple[Any, Any]:
    """A class of many kinds of fields, and one that inherits them."""

    @decorate(**options)
    class Base:
        """What it is."""

        shared: ClassVar[int] = 7

        first: int
        second: str = "two"
        third: list[int] = field(default_factory=lambda: [3])
        secret: str = field(default="hidden", repr=False)
        stamp: float = field(default=0.0, compare=False)

        def doubled(self) -> int:
            return self.first * 2

    @decorate(**options)
    class Derived(Base):
        """What it is as well."""

        fourth: int = 4

    return Base, Derived


def outcome(action: Any) -> Any:
    try:
        return action()
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("at", [0, 1], ids=["base", "derived"])
def test_they_are_made_shown_compared_and_changed_alike(options: dict[str, bool], at: int) -> None:
    ours, theirs = made(opero.dataclass.dataclass, options)[at], made(dataclasses.dataclass, options)[at]

    def facts(cls: Any) -> list[Any]:
        one, same, other = cls(first=1), cls(first=1, stamp=5.0), cls(first=2, second="x", third=[], secret="s")

        def change(name: str) -> Any:
            setattr(one, name, 9)
            return getattr(one, name)

        return [
            outcome(lambda: dataclasses.asdict(cls(1, "b", [2]))),
            outcome(lambda: cls(second=1)),
            outcome(lambda: cls(1, wrong=2)),
            dataclasses.asdict(one),
            dataclasses.asdict(dataclasses.replace(other, first=5)),
            [each.name for each in dataclasses.fields(cls)],
            dataclasses.is_dataclass(cls),
            inspect.signature(cls),
            cls.__match_args__,
            cls.__doc__,
            cls.__name__,
            getattr(cls, "__slots__", None),
            (one == same, one == other, one != same, one == 1),
            cls.__hash__ is None,
            outcome(lambda: hash(one) == hash(same)),
            repr(one) if options.get("repr", True) else None,
            (one.third is not same.third, one.doubled(), cls.shared),
            outcome(lambda: change("first")),
            outcome(lambda: delattr(one, "second")),
            dataclasses.asdict(copy.copy(other)),
            dataclasses.asdict(copy.deepcopy(other)),
        ]

    for found, expected in zip(facts(ours), facts(theirs), strict=True):
        assert repr(found) == repr(expected)


@opero.dataclass.dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int = 0
    tags: tuple[str, ...] = ()


@opero.dataclass.dataclass(slots=True)
class Sum:
    parts: list[int]
    total: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = sum(self.parts)


@opero.dataclass.dataclass
class Loop:
    inside: Any = None


@opero.dataclass.dataclass(frozen=True)
class Own:
    x: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and round(self.x) == round(other.x)

    def __hash__(self) -> int:
        return round(self.x)

    def __repr__(self) -> str:
        return "own"


def test_they_pickle() -> None:
    point = Point(1, tags=("a",))
    assert pickle.loads(pickle.dumps(point)) == point
    assert {point: 1}[Point(1, 0, ("a",))] == 1


def test_what_follows_after_construction_sees_the_fields() -> None:
    assert Sum([1, 2]).total == 3
    assert repr(Sum([1, 2])) == "Sum(parts=[1, 2], total=3)"


def test_an_instance_that_contains_itself_can_be_shown() -> None:
    loop = Loop()
    loop.inside = loop
    assert repr(loop) == "Loop(inside=...)"


def test_methods_of_the_class_itself_are_kept() -> None:
    assert (Own(1.1) == Own(0.9), hash(Own(2.2)), repr(Own(1))) == (True, 2, "own")


def test_a_frozen_instance_says_which_field_it_refuses() -> None:
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'x'"):
        Point(1).x = 2  # type: ignore[misc]


def test_a_match_finds_its_fields() -> None:
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)


def test_the_first_instances_may_be_made_in_many_threads() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            base, derived = made(opero.dataclass.dataclass, {"frozen": True, "slots": True})
            found: list[Any] = []

            def make(cls: Any, found: list[Any] = found) -> None:
                found.append(cls(1).doubled())

            threads = [threading.Thread(target=make, args=[cls]) for cls in [base, derived] * 4]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert found == [2] * 8
    finally:
        sys.setswitchinterval(interval)
