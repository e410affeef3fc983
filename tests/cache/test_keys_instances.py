"""Keys of instances, classes and containers, and races at the first use of an instance."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from opero import Policy, opero
from opero.cache import instances
from opero.cache.content import freeze
from opero.cache.keys import KeyMaker


class Keyed:
    def __init__(self, base: str) -> None:
        self.base = base

    def __opero_key__(self) -> str:
        return self.base

    @opero(cache=True)
    def get(self, path: str) -> str:
        return self.base + path

    @classmethod
    @opero(cache=True)
    def of_class(cls, x: int) -> str:
        return f"{cls.__name__} {x}"

    @staticmethod
    @opero(cache=True)
    def alone(x: int) -> int:
        return x + 1


class Heir(Keyed):
    pass


def test_a_class_methods_key_is_its_class_even_if_instances_have_an_opero_key() -> None:
    assert [Keyed.of_class(1), Heir.of_class(1), Keyed.of_class(1)] == ["Keyed 1", "Heir 1", "Keyed 1"]
    assert Keyed("a").of_class(1) == "Keyed 1"
    assert Keyed.of_class.stats.cache_hits == 2


def test_instances_with_equal_keys_share_entries_and_subclasses_do_not() -> None:
    Keyed.get.cache_clear()
    before = Keyed.get.stats.cache_hits
    assert [Keyed("a").get("x"), Keyed("a").get("x"), Keyed("b").get("x"), Heir("a").get("x")] == [
        "ax",
        "ax",
        "bx",
        "ax",
    ]
    assert Keyed.get.stats.cache_hits - before == 1


def test_a_static_methods_key_is_its_arguments() -> None:
    assert (Keyed.alone(1), Keyed("a").alone(1), Keyed.alone.stats.cache_hits) == (2, 2, 1)


@dataclass(frozen=True)
class Holding:
    values: list[int]

    @opero(cache=True)
    def total(self, factor: int) -> int:
        return sum(self.values) * factor


class Pair(NamedTuple):
    left: Any
    right: Any

    @opero(cache=True)
    def both(self) -> str:
        return f"{self.left!r} {self.right!r}"


def test_a_value_with_unhashable_parts_is_identified_by_its_content() -> None:
    assert [Holding([1, 2]).total(2), Holding([1, 2]).total(2), Holding([3]).total(2)] == [6, 6, 6]
    assert Holding.total.stats.cache_hits == 1
    assert [Pair(1, [2]).both(), Pair(1, [2]).both(), Pair(1, [3]).both()] == ["1 [2]", "1 [2]", "1 [3]"]
    assert Pair.both.stats.cache_hits == 1


def test_the_fields_of_a_named_tuple_are_distinguished_by_type_like_arguments() -> None:
    assert [Pair(1, 2).both(), Pair(1.0, 2).both(), Pair(True, 2).both()] == ["1 2", "1.0 2", "True 2"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (OrderedDict(a=1, b=2), OrderedDict(b=2, a=1), False),
        (OrderedDict(a=1, b=2), OrderedDict(a=1, b=2), True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        (OrderedDict(a=1), {"a": 1}, False),
        ({"a", "b"}, {"b", "a"}, True),
        ({"a"}, frozenset("a"), False),
        (deque([1]), deque([1]), True),
        (deque([1]), deque([1.0]), False),
        ({1: "x"}, {True: "x"}, False),
        (b"a", bytearray(b"a"), False),
        ([[], {}], [{}, []], False),
        (Pair(1, 2), (1, 2), False),
    ],
)
def test_containers_share_a_key_exactly_if_they_are_equal_at_every_level(one: Any, other: Any, same: bool) -> None:
    assert (freeze(one) == freeze(other)) is same


def test_a_keyword_only_argument_and_the_same_name_within_kwargs_are_different_calls() -> None:
    def function(*args: Any, flag: Any = None, **more: Any) -> None: ...

    key = KeyMaker(function, None, is_method=False)
    calls: list[tuple[Any, Any]] = [
        ((), {}),
        ((None,), {}),
        ((), {"flag": 1}),
        ((), {"more": 1}),
        ((), {"more": {"flag": 1}}),
        (({"flag": 1},), {}),
        (((),), {}),
    ]
    assert len({key(*call) for call in calls}) == len(calls)
    assert key((), {}) == key((), {"flag": None})


def test_threads_that_use_an_instance_first_at_the_same_time_compute_once() -> None:
    class Client:
        def get(self) -> int:
            runs.append(1)
            gate.wait(0.01)
            return 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    gate = threading.Event()
    try:
        for _ in range(40):
            runs: list[int] = []
            bound: Any = Policy(cache=True).apply(Client.get)
            client, start = Client(), threading.Barrier(6)
            call = getattr(bound, "__func__", bound)

            def use(call: Any = call, client: Client = client, start: threading.Barrier = start) -> None:
                start.wait()
                call(client)

            threads = [threading.Thread(target=use) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(runs) == 1
    finally:
        sys.setswitchinterval(interval)


def test_a_race_at_an_instances_first_use_makes_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    class Meeting(dict[int, Any]):
        """Creates a token between the lookup and the insertion."""

        def get(self, *args: Any) -> Any:
            found = super().get(*args)
            if not others:
                others.append(None)
                others.append(key((client,), {}))
            return found

    others: list[Any] = []
    key = KeyMaker(Keyed.alone.__wrapped__, None, is_method=True)
    monkeypatch.setattr(instances, "tokens", Meeting())
    client = object.__new__(type("Client", (), {}))
    assert key((client,), {}) == others[1] == key((client,), {})
