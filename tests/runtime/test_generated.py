"""Generated functions take the parameters of another function, and pass on what they are called with."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero.runtime.generated import ANY, Parameters, Shape, code, generate

FORWARD = """
def generated({parameters}):
    return target({call}), {args}, {kwargs}
"""


@st.composite
def functions(draw: st.DrawFn) -> Any:
    """A function with any parameters, which returns them, and arguments for it."""
    kinds = draw(st.tuples(*[st.integers(0, 3)] * 3, st.booleans(), st.booleans()))
    only, either, keyword, args, kwargs = kinds
    names = draw(
        st.lists(
            st.sampled_from(
                ["a", "b", "c", "d", "self", "stats", "holder", "target", "Exception", "type", "é", "_call"]
            ),
            min_size=only + either + keyword,
            max_size=only + either + keyword,
            unique=True,
        )
    )
    defaults = draw(st.integers(0, only + either))
    parts = []
    for position, name in enumerate(names):
        if position == only + either:
            parts.append("*rest" if args else "*")
        has_default = only + either - defaults <= position < only + either or (
            position >= only + either and position % 2
        )
        parts.append(f"{name}={position * 10}" if has_default else name)
        if position + 1 == only:
            parts.append("/")
    if args and not keyword:
        parts.append("*rest")
    if kwargs:
        parts.append("**others")
    space: dict[str, Any] = {}
    given_names = [*names, *(["rest"] if args else []), *(["others"] if kwargs else [])]
    exec(f"def f({', '.join(parts)}):\n    return ({''.join(f'{name}, ' for name in given_names)})", space)
    positional = draw(st.lists(st.integers(), max_size=only + either + 2))
    keywords = draw(st.dictionaries(st.sampled_from([*names, "unknown"]), st.integers(), max_size=4))
    return space["f"], positional, keywords


def outcome(call: Any) -> Any:
    try:
        return call()
    except TypeError as error:
        return str(error)


@given(functions())
def test_a_generated_function_accepts_and_passes_on_what_the_function_does(sample: Any) -> None:
    function, args, kwargs = sample
    made = generate(FORWARD, Parameters.of(function), {"target": function}, {})
    made.__qualname__ = function.__qualname__
    expected = outcome(lambda: function(*args, **kwargs))
    found = outcome(lambda: made(*args, **kwargs))
    if isinstance(expected, str):
        assert found == expected
        return
    direct, passed, named = found
    assert direct == expected
    assert function(*passed, **named) == expected
    assert Parameters.of(made) == Parameters.of(function)
    assert str(inspect.signature(made)) == str(inspect.signature(function))


@given(functions())
def test_parameters_of_a_signature_are_those_of_the_function(sample: Any) -> None:
    function = sample[0]
    by_code, by_signature = Parameters.of(function), Parameters.of_signature(inspect.signature(function).parameters)
    assert by_signature.shape == by_code.shape
    assert by_signature.names == by_code.names
    assert by_signature.defaults == by_code.defaults
    assert (by_signature.keyword_defaults or {}) == (by_code.keyword_defaults or {})


def test_code_is_compiled_once_for_a_shape() -> None:
    def one(a: int, *, b: int) -> None: ...
    def other(x: int, *, y: int) -> None: ...

    first, second = code(FORWARD, Parameters.of(one), ("target",)), code(FORWARD, Parameters.of(other), ("target",))
    assert first.co_code == second.co_code
    assert (first.co_varnames[:2], second.co_varnames[:2]) == (("a", "b"), ("x", "y"))


def test_what_is_a_tuple_or_a_dictionary_already_is_not_copied() -> None:
    def target(*args: Any, **kwargs: Any) -> None: ...

    (_, args, kwargs) = generate(FORWARD, ANY, {"target": target}, {})(1, a=2)
    assert (args, kwargs) == ((1,), {"a": 2})
    assert ANY.shape == Shape(args=True, kwargs=True)


@pytest.mark.parametrize("text", ["{0} + {1}", "{1} - {0}"])
def test_parts_of_a_template_refer_to_parameters_by_position(text: str) -> None:
    def target(first: int, second: int) -> None: ...

    made = generate("def generated({parameters}):\n    return {whole}", Parameters.of(target), {}, {}, whole=text)
    assert made(first=1, second=5) == (6 if "+" in text else 4)
