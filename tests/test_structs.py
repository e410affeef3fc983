"""A struct is to everything that asks what a dataclass is."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import pickle
import subprocess
import sys
import threading
from dataclasses import field
from typing import Any, ClassVar

import pytest

from opero import structs
from opero.cache.content import freeze
from opero.structs import struct

OPTIONS: list[dict[str, bool]] = [
    {name: True for name, on in zip(("frozen", "slots", "kw_only"), flags, strict=True) if on}
    for flags in itertools.product((False, True), repeat=3)
]
OPTIONS += [{"slots": True, "eq": False}, {"slots": True, "repr": False}, {"frozen": True, "eq": False}]


def classes(make: Any, options: dict[str, bool]) -> tuple[Any, Any]:
    """Return a class and a subclass that adds to it, made by `make`."""

    @make(**options)
    class Base:
        """Something."""

        shared: ClassVar[list[int]] = []
        number: int
        text: str = "none"
        items: list[int] = field(default_factory=list)
        hidden: int = field(default=3, repr=False, compare=False)

        @property
        def double(self) -> int:
            return 2 * self.number

    @make(**options)
    class Derived(Base):
        """Something more."""

        text: str = "derived"
        more: int = 5

    return Base, Derived


PAIRS = [
    (pair[0], pair[1])
    for options in OPTIONS
    for pair in zip(classes(struct, options), classes(dataclasses.dataclass, options), strict=True)
]
CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {"number": 1}),
    ((), {"number": 1, "text": "a", "items": [2], "hidden": 9}),
    ((1,), {}),
    ((1, "a", [3]), {}),
    ((), {}),
    ((), {"number": 1, "nothing": 2}),
    ((1,), {"number": 2}),
    ((1, 2, 3, 4, 5, 6, 7), {}),
]


def outcome(function: Any, *args: Any, **kwargs: Any) -> tuple[str, Any]:
    try:
        return "returned", function(*args, **kwargs)
    except Exception as error:
        return "raised", (type(error), str(error).replace("classes.<locals>.", ""))


def stated(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_it_is_made_and_refuses_arguments_as_a_dataclass(ours: Any, theirs: Any) -> None:
    for args, kwargs in (*CALLS, *CALLS):  # twice: the first instance compiles the constructor
        one, other = outcome(ours, *args, **kwargs), outcome(theirs, *args, **kwargs)
        assert one[0] == other[0]
        if one[0] == "raised":
            assert one == other
            continue
        assert stated(one[1]) == stated(other[1])
        if ours.__repr__ is not object.__repr__:
            assert repr(one[1]) == repr(other[1])
    assert ours(number=1).items is not ours(number=1).items


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_it_looks_like_a_dataclass(ours: Any, theirs: Any) -> None:
    assert dataclasses.is_dataclass(ours)
    assert str(inspect.signature(ours)) == str(inspect.signature(theirs))
    assert str(inspect.signature(ours.__init__)) == str(inspect.signature(theirs.__init__))
    assert ours.__match_args__ == theirs.__match_args__
    assert [(each.name, each.type, each.kw_only) for each in dataclasses.fields(ours)] == [
        (each.name, each.type, each.kw_only) for each in dataclasses.fields(theirs)
    ]
    assert hasattr(ours, "__slots__") == hasattr(theirs, "__slots__")
    assert (ours.__name__, ours.__qualname__, ours.__doc__) == (theirs.__name__, theirs.__qualname__, theirs.__doc__)
    assert hasattr(ours(number=1), "__dict__") == hasattr(theirs(number=1), "__dict__")


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_it_compares_and_hashes_as_a_dataclass(ours: Any, theirs: Any) -> None:
    def facts(kind: Any) -> list[Any]:
        one, same, other = kind(number=1), kind(number=1, hidden=4), kind(number=2)
        hashes = [outcome(hash, each)[0] for each in (one, kind(number=1, items=()), other)]
        return [one == same, one == other, one != other, one == 1, hashes, kind.__hash__ is None]

    assert facts(ours) == facts(theirs)
    if ours.__hash__ not in (None, object.__hash__):
        assert hash(ours(number=1, items=())) == hash(ours(number=1, items=(), hidden=7))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_it_changes_or_refuses_to_as_a_dataclass(ours: Any, theirs: Any) -> None:
    for name in ("number", "absent"):
        one, other = ours(number=1), theirs(number=1)
        set_one, set_other = outcome(setattr, one, name, 5), outcome(setattr, other, name, 5)
        assert set_one[0] == set_other[0]
        if set_one[0] == "raised" and set_other[1][0] is dataclasses.FrozenInstanceError:
            assert set_one == set_other
    assert outcome(delattr, ours(number=1), "number") == outcome(delattr, theirs(number=1), "number")
    replaced = dataclasses.replace(ours(number=1, text="a"), number=2)
    assert stated(replaced) == stated(dataclasses.replace(theirs(number=1, text="a"), number=2))
    assert stated(copy.deepcopy(replaced)) == stated(copy.copy(replaced)) == stated(replaced)


@struct(frozen=True, slots=True)
class Pickled:
    """A struct that can be found by name."""

    x: int
    y: list[int] = field(default_factory=list)


@struct(slots=True)
class Initialised:
    """A struct with a field that is not a parameter."""

    x: int
    y: int = field(init=False)

    def __post_init__(self) -> None:
        self.y = self.x + 1


def test_it_is_pickled_with_its_values() -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(Pickled(1, [2]), protocol)) == Pickled(1, [2])


def test_what_is_not_a_parameter_is_set_afterwards() -> None:
    assert [Initialised(each).y for each in (1, 2)] == [2, 3]


def test_it_matches_by_position() -> None:
    match Pickled(1, [2]):
        case Pickled(x, [y]):
            assert (x, y) == (1, 2)
        case _:
            pytest.fail("it does not match")


def test_a_struct_is_a_key_by_its_fields() -> None:
    assert freeze(Pickled(1, [2])) == freeze(Pickled(1, [2])) != freeze(Pickled(1, [True]))
    assert freeze(Pickled(1, ())) == freeze(Pickled(1, ()))  # type: ignore[arg-type]
    assert freeze(Pickled(1, ())) != freeze(Pickled(True, ()))  # type: ignore[arg-type]


def test_the_first_instances_of_many_threads() -> None:
    for _ in range(30):
        kind, made, start = classes(struct, {"frozen": True, "slots": True})[0], [], threading.Barrier(4)

        def make(kind: Any = kind, made: list[Any] = made, start: threading.Barrier = start) -> None:
            start.wait()
            made.append(kind(number=1, text="a"))

        threads = [threading.Thread(target=make) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert [each.text for each in made] == ["a"] * 4


def test_importing_compiles_no_methods() -> None:
    """So that the classes of opero cost as little as others, which a first call of a program depends on."""
    code = """
import sys
compiled = []
def hook(event, args):
    if event == "compile":
        name = sys._getframe(1).f_globals.get("__name__")
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_globals.get("__name__", "").startswith("opero") and name == "dataclasses":
                compiled.append(frame.f_globals["__name__"])
                break
            frame = frame.f_back
import dataclasses, pydantic.dataclasses, pydantic.functional_serializers, pydantic_settings
sys.addaudithook(hook)
import opero.events, opero.values, opero.registry.registry, opero.binding.binding
print(sorted(set(compiled) - {"opero.structs"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert structs.struct is struct
