"""Context variables go to workers by the module that has them, and none is kept alive by a map."""

from __future__ import annotations

import contextvars
import gc
import sys
import types
from typing import Any

import pytest

from opero import opmap
from opero.parallel.transport import variables
from opero.parallel.transport.variables import Pickler, context_of, pickled_variables

VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("another name")


def read(_: int) -> Any:
    return VARIABLE.get(None)


async def read_async(_: int) -> Any:
    return VARIABLE.get(None)


def living(prefix: str) -> int:
    gc.collect()
    return sum(type(each) is contextvars.ContextVar and each.name.startswith(prefix) for each in gc.get_objects())


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_variables_do_not_outlive_their_last_user(mode: str) -> None:
    def with_another(number: int) -> None:
        variable: contextvars.ContextVar[int] = contextvars.ContextVar(f"{mode} {number}")
        variable.set(number)
        by_value = opmap(mode=mode, workers=1, progress=False)(lambda item: item + variable.get())  # type: ignore[call-overload]
        assert by_value([1]) == [1 + number]

    for number in range(10):
        contextvars.Context().run(with_another, number)
    assert living(f"{mode} ") == 0


def test_a_variable_gets_the_value_of_each_map_though_another_had_its_place() -> None:
    def with_another(number: int) -> None:
        variable: contextvars.ContextVar[int] = contextvars.ContextVar("same name", default=number)
        if number % 2:
            variable.set(-number)
        by_value = opmap(mode="process", workers=1, progress=False)(lambda _: variable.get())
        assert by_value([1]) == [variable.get()]

    for number in range(10):
        contextvars.Context().run(with_another, number)


def test_an_array_may_be_the_default_of_a_variable() -> None:
    numpy = pytest.importorskip("numpy")
    variable = contextvars.ContextVar("array", default=numpy.arange(3))  # noqa: B039
    for _ in range(2):
        assert list(variables.pickle.loads(Pickler.dumps(variable)).get()) == [0, 1, 2]


class Names(dict[str, Any]):
    """Counts how often it was searched."""

    searched = 0

    def items(self) -> Any:
        self.searched += 1
        return super().items()


class Module:
    def __init__(self, names: Names) -> None:
        self.names = names

    @property
    def __dict__(self) -> Names:  # type: ignore[override]
        return self.names


def test_a_module_is_searched_again_only_when_it_has_new_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(one=1)
    monkeypatch.setitem(sys.modules, "searched_by_test", Module(names))  # type: ignore[arg-type]

    def set_some() -> None:
        kept = [contextvars.ContextVar[int](f"local {number}") for number in range(20)]
        for number, variable in enumerate(kept):
            variable.set(number)
        pickled_variables()

    contextvars.Context().run(set_some)
    contextvars.Context().run(set_some)
    assert names.searched == 1
    names["later"] = contextvars.ContextVar[int]("later")
    assert b"searched_by_test" in Pickler.dumps(names["later"])
    assert names.searched == 2


def test_a_variable_that_its_module_no_longer_has_goes_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("has_a_variable")
    monkeypatch.setitem(sys.modules, "has_a_variable", module)
    module.variable = variable = contextvars.ContextVar[int]("variable")
    assert b"has_a_variable" in Pickler.dumps(variable)
    module.variable = None
    assert b"has_a_variable" not in Pickler.dumps(variable)


def test_one_value_that_cannot_be_read_costs_no_other() -> None:
    class Unreadable:
        def __reduce__(self) -> Any:
            return int, ("x",)

    def pickled() -> bytes:
        contextvars.ContextVar[Any]("unreadable").set(Unreadable())
        VARIABLE.set("value")
        return pickled_variables()

    assert context_of(contextvars.Context().run(pickled)).run(VARIABLE.get) == "value"
