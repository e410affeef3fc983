"""Digests of keys, which are the same in every process."""

from __future__ import annotations

import datetime
import decimal
import enum
import functools
import os
import pathlib
import subprocess
import sys
import uuid
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
from hypothesis import given

from cache.test_keys import VALUES, same
from opero import ConfigError, Policy
from opero.cache.content import freeze
from opero.cache.digest import digest
from opero.cache.identity import name_in_stores
from opero.cache.keys import KeyMaker


@given(one=VALUES, other=VALUES)
def test_digests_are_equal_exactly_if_the_values_are(one: Any, other: Any) -> None:
    assert (digest(freeze(one)) == digest(freeze(other))) is same(one, other)


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Point:
    x: int
    y: Any


class Keyed:
    def __init__(self, base: str) -> None:
        self.base = base
        self.session = object()

    def __opero_key__(self) -> str:
        return self.base


ARGUMENTS: list[tuple[Any, Any]] = [
    (Color.RED, Color.BLUE),
    (Point(1, "a"), Point(1, "b")),
    (datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)),
    (decimal.Decimal("1.0"), decimal.Decimal("1.1")),
    (uuid.UUID(int=1), uuid.UUID(int=2)),
    (pathlib.PurePosixPath("a"), pathlib.PurePosixPath("b")),
    (numpy.array([1, 2]), numpy.array([1, 3])),
    (numpy.array([1, 2]), numpy.array([1.0, 2.0])),
    (numpy.array([[1, 2]]), numpy.array([1, 2])),
    (Keyed("a"), Keyed("b")),
    (Point, Keyed),
    (len, max),
    ({"a": {1, 2}}, {"a": {1, 3}}),
    ("a", b"a"),
    (float("nan"), 0.0),
    (0.0, -0.0),
]


@pytest.mark.parametrize(("one", "other"), ARGUMENTS, ids=lambda value: repr(value)[:30])
def test_arguments_of_many_types_work_in_memory_and_on_disk(one: Any, other: Any) -> None:
    assert digest(freeze(one)) == digest(freeze(one)) != digest(freeze(other))
    assert freeze(one) == freeze(one) != freeze(other)


def test_another_process_computes_the_same_digests() -> None:
    code = """
import sys
sys.path.insert(0, "tests")
from cache.test_digest import ARGUMENTS, digest, freeze
print([digest(freeze(each)) for pair in ARGUMENTS for each in pair])
"""
    mine = [digest(freeze(each)) for pair in ARGUMENTS for each in pair]
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert eval(done.stdout) == mine


@pytest.mark.parametrize("value", [object(), lambda: 1, [object()]])
def test_values_without_meaning_in_other_processes_are_refused_with_advice(value: Any) -> None:
    with pytest.raises(ConfigError, match="in a store shared between processes: .*set cache_key"):
        digest(freeze(value))


class Client:
    def get(self, path: str) -> str:
        return path


def test_an_instance_without_a_value_is_refused_before_the_function_is_called(tmp_path: Any) -> None:
    bound: Any = Policy(cache={"backend": "disk", "ttl": None, "cache_dir": tmp_path}).apply(Client.get)
    with pytest.raises(ConfigError, match="its instance cannot be part of a cache key: .*`__opero_key__`"):
        bound.__func__(Client(), "x")
    assert bound.stats.attempts == 0
    key = KeyMaker(Client.get, lambda self, path: path, is_method=True)
    assert digest(key((Client(), "x"), {})) == digest(key((Client(), "x"), {}))


def make(base: str, *, factor: int = 1) -> Any:
    return lambda x: base * x * factor


def test_local_functions_with_the_same_name_are_distinguished_by_code_and_closure() -> None:
    assert name_in_stores(make("a")) == name_in_stores(make("a")) != name_in_stores(make("b"))
    assert name_in_stores(make("a")) != name_in_stores(make("a", factor=2))
    assert len({name_in_stores(function) for function in (lambda x: x, lambda x: x + 1, lambda x: x + 2)}) == 3
    assert name_in_stores(make).endswith(".make")

    def recursive(n: int) -> int:
        return recursive(n - 1)

    assert name_in_stores(recursive) == name_in_stores(recursive)


def test_different_lambdas_do_not_share_entries(tmp_path: Any) -> None:
    policy = Policy(cache={"backend": "disk", "ttl": None, "cache_dir": tmp_path})
    double, triple = (policy.apply(function) for function in (lambda x: x * 2, lambda x: x * 3))
    assert [double(2), triple(2), double(2), triple(2)] == [4, 6, 4, 6]
    assert double.stats.cache_hits == triple.stats.cache_hits == 1


class Counter:
    def __init__(self, start: int) -> None:
        self.start = start

    def __opero_key__(self) -> int:
        return self.start

    def __call__(self, x: int) -> int:
        return self.start + x


def test_different_partials_bound_methods_and_callable_objects_do_not_share_entries(tmp_path: Any) -> None:
    def bind(function: Any) -> Any:
        return Policy(cache={"backend": "disk", "ttl": None, "cache_dir": tmp_path}).apply(function)

    pairs: list[tuple[Any, Any]] = [
        (functools.partial(pow, 2), functools.partial(pow, 3)),
        (Keyed("a").__opero_key__, Keyed("b").__opero_key__),
        (Counter(1), Counter(2)),
        (Point(1, "a").__repr__, Point(2, "a").__repr__),
    ]
    for one, other in pairs:
        args = () if "__" in getattr(one, "__name__", "") else (5,)
        first, second, again = bind(one), bind(other), bind(one)
        assert [first(*args), second(*args), again(*args)] == [one(*args), other(*args), one(*args)]
        assert (first.stats.cache_hits, second.stats.cache_hits, again.stats.cache_hits) == (0, 0, 1)
    for unknown in (Client().get, object().__repr__, functools.partial(pow, object())):
        with pytest.raises(ConfigError, match="in a store shared between processes"):
            bind(unknown)
