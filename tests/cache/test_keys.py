"""Cache keys: equal calls, and only those, share a key."""

from __future__ import annotations

import array
import asyncio
import dataclasses
import enum
import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import ConfigError, Policy
from opero.cache.content import freeze
from opero.cache.instances import tokens
from opero.cache.keys import KeyMaker

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(-3, 3)
    | st.text("ab ", max_size=3)
    | st.binary(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    """Equal, with the same types at every level."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return repr(one) == repr(other)


@given(one=VALUES, other=VALUES)
def test_frozen_values_are_equal_exactly_if_the_values_are(one: Any, other: Any) -> None:
    assert (freeze(one) == freeze(other)) is same(one, other)
    if same(one, other):
        assert hash(freeze(one)) == hash(freeze(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1,), (1.0,)),
        ((1,), (True,)),
        ((1,), ("1",)),
        (("a b", "c"), ("a", "b c")),
        (([1],), ((1,),)),
        (({"a": 1},), ({"a": 1.0},)),
        (({1},), ({1.0},)),
        ((array.array("i", [1]),), (array.array("i", [2]),)),
        ((bytearray(b"a"),), (bytearray(b"b"),)),
    ],
)
def test_different_arguments_have_different_keys(one: Any, other: Any) -> None:
    def function(*args: Any) -> None: ...

    key = KeyMaker(function, None, is_method=False)
    assert key(one, {}) != key(other, {})
    assert key(one, {}) == key(one, {})
    hash(key(one, {}))


def test_arguments_are_normalised_to_the_signature() -> None:
    def function(a: int, b: int = 2, *rest: int, c: int = 3, **more: int) -> None: ...

    key = KeyMaker(function, None, is_method=False)
    assert key((1,), {}) == key((), {"a": 1}) == key((1, 2), {}) == key((1,), {"c": 3, "b": 2})
    assert key((1,), {"x": 1, "y": 2}) == key((1,), {"y": 2, "x": 1})
    assert key((1,), {"x": 1}) != key((1,), {})
    assert key((1, 2, 3), {}) != key((1, 2), {})


def test_wrong_arguments_raise_the_functions_own_type_error() -> None:
    def function(a: int) -> None: ...

    with pytest.raises(TypeError, match=r"function\(\) missing 1 required positional argument: 'a'"):
        KeyMaker(function, None, is_method=False)((), {})


class Plain:
    def method(self, x: int) -> None: ...


class Slotted:
    __slots__ = ("x",)


@dataclasses.dataclass(frozen=True)
class Value:
    base: str


class Keyed:
    __opero_key__ = "shared"


class Color(enum.Enum):
    RED = 1


def test_the_key_of_an_instance() -> None:
    key = KeyMaker(Plain.method, None, is_method=True)
    plain, slotted = Plain(), Slotted()
    assert key((plain, 1), {}) == key((plain,), {"x": 1})
    assert key((plain, 1), {}) != key((Plain(), 1), {})
    assert key((slotted, 1), {}) == key((slotted, 1), {})
    assert key((slotted, 1), {}) != key((Slotted(), 1), {})
    assert key((Value("a"), 1), {}) == key((Value("a"), 1), {}) != key((Value("b"), 1), {})
    assert key((Keyed(), 1), {}) == key((Keyed(), 1), {})
    assert key((Color.RED, 1), {}) == key((Color.RED, 1), {})
    assert key((Plain, 1), {}) != key((Slotted, 1), {})


def test_an_instance_at_the_address_of_a_deleted_one_has_another_key() -> None:
    key = KeyMaker(Plain.method, None, is_method=True)
    before, seen = len(tokens), set()
    for _ in range(100):
        seen.add(key((Plain(), 1), {}))
        gc.collect(0)
    assert len(seen) == 100
    assert len(tokens) <= before + 1


KINDS = ["plain", "positional only", "keyword only", "*", "**"]
NAMES = ["a", "type", "key", "map", "int", "self"]


@st.composite
def functions(draw: st.DrawFn) -> Any:
    """A function of an arbitrary signature that returns its arguments, with names that could break generated code.

    (It does not use `Signature.bind`, which in some versions of Python refuses a keyword for `**more` that has the name
    of a positional-only parameter.)
    """
    parts: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name in draw(st.permutations(NAMES))[: draw(st.integers(0, 5))]:
        parts[draw(st.sampled_from(KINDS[:3]))].append(name)
    has_default = False
    written = []
    for kind in ("positional only", "plain"):
        for name in parts[kind]:
            has_default = has_default or draw(st.booleans())
            written.append(f"{name}=1" if has_default else name)
        if kind == "positional only" and written:
            written.append("/")
    if draw(st.booleans()):
        written.append("*rest")
    elif parts["keyword only"]:
        written.append("*")
    written += [f"{name}=2" if draw(st.booleans()) else name for name in parts["keyword only"]]
    if draw(st.booleans()):
        written.append("**more")
    names: dict[str, Any] = {}
    exec(f"def function({', '.join(written)}): return locals()", names)
    return names["function"]


SMALL = st.sampled_from([1, 1.0, True, "1", 2, [1], (1,)])
CALLS = st.tuples(
    st.lists(SMALL, max_size=4).map(tuple), st.dictionaries(st.sampled_from([*NAMES, "other"]), SMALL, max_size=3)
)


@given(function=functions(), one=CALLS, other=CALLS)
def test_two_calls_share_a_key_exactly_if_the_function_receives_the_same_arguments(
    function: Any, one: Any, other: Any
) -> None:
    key = KeyMaker(function, None, is_method=False)
    bound = []
    for args, kwargs in (one, other):
        try:
            bound.append(function(*args, **kwargs))
        except TypeError:
            with pytest.raises(TypeError):
                key(args, kwargs)
            return
    assert (key(*one) == key(*other)) is same(*bound)


# Hashes that are computed in Python


class Counted:
    """Counts how often its hash is asked."""

    asked = 0

    def __init__(self, value: int) -> None:
        self.value = value

    def __hash__(self) -> int:
        Counted.asked += 1
        return hash(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counted) and self.value == other.value


@pytest.mark.parametrize("wrapped", [lambda x: x, lambda x: (x, 1), lambda x: [x], lambda x: {"k": x}])
@pytest.mark.parametrize("policy", [{}, {"tags": "all"}, {"ttl": 60}, {"ttl": "adaptive"}, {"errors": True, "ttl": 9}])
def test_the_hash_of_an_argument_is_asked_once_a_call(bind: Any, wrapped: Any, policy: dict[str, Any]) -> None:
    call = bind(Policy(cache=policy), lambda x: 1)
    bound = bind.bound
    for _ in ("miss", "hit"):
        Counted.asked = 0
        assert call(wrapped(Counted(7))) == 1
        assert Counted.asked == 1
    assert bound.stats.attempts == 1
    call(wrapped(Counted(8)))
    assert bound.stats.attempts == 2


def test_a_key_that_was_not_found_serves_its_own_call_only() -> None:
    bound: Any = Policy(cache=True).apply(lambda x, y=0: (x, y))
    cache = bound.binding.pipeline.cache
    cache.hit([1])  # as if the call had been interrupted before its layer
    assert bound([2]) == ([2], 0)
    assert bound([1]) == ([1], 0)
    assert bound([2]) == ([2], 0)
    assert (bound.stats.attempts, bound.stats.cache_hits) == (2, 1)


def test_a_key_that_an_interrupted_call_has_left_is_gone_with_the_next_one_that_is_missed() -> None:
    bound: Any = Policy(cache=True).apply(lambda x: x[:])
    cache = bound.binding.pipeline.cache
    changing = [1]
    cache.hit(changing)
    changing.append(2)
    assert bound([0]) == [0]
    assert cache._key_of((changing,), {}) == cache.key(([1, 2],), {})


def test_keyword_arguments_in_another_order_are_the_same_key() -> None:
    bound: Any = Policy(cache=True).apply(lambda *args, **kwargs: list(kwargs))
    assert bound(1, a=1, b=2) == bound(1, b=2, a=1) == ["a", "b"]
    assert bound.stats.attempts == 1


# What is left out, and what cannot be a key


def test_ignored_parameters_are_not_part_of_the_key() -> None:
    def function(x: int, session: object = None, *args: int, log: object = None, **more: int) -> int:
        return x

    def key(*ignore: str) -> KeyMaker:
        return KeyMaker(function, None, is_method=False, ignore=ignore)

    one, other = object(), object()
    assert key("session")((1, one), {}) == key("session")((1, other), {}) == key("session")((1,), {})
    assert key("session")((1, one), {}) != key("session")((2, one), {})
    assert key("session")((1, one), {"log": one}) != key("session")((1, one), {"log": other})
    assert key("session", "log")((1, one), {"log": one}) == key("session", "log")((1, one), {"log": other})
    assert key("args")((1, one, 3), {}) == key("args")((1, one, 4), {}) != key()((1, one, 3), {})
    assert key("extra")((1,), {"extra": 1}) == key("extra")((1,), {"extra": 2}) != key("extra")((1,), {"other": 2})
    assert key("x", "session", "args", "log", "more")((1, 2, 3), {"a": 1}) == ()


@pytest.mark.parametrize("store", ["memory", "disk"])
@pytest.mark.parametrize("is_async", [False, True])
def test_calls_that_differ_in_ignored_arguments_share_a_result(store: str, is_async: bool, tmp_path: Any) -> None:
    class Client:
        def get(self, x: int, *, session: object) -> int:
            return x

        async def get_async(self, x: int, *, session: object) -> int:
            return x

    policy = Policy(
        cache={"backend": store, "ttl": 60, "cache_dir": tmp_path, "ignore": ["self", "session"]}  # as in YAML
    )
    bound: Any = policy.apply(Client.get_async if is_async else Client.get)
    call = getattr(bound, "__func__", bound)
    for number in (1, 2, 3):
        found = call(Client(), number % 2, session=object())
        assert (asyncio.run(found) if is_async else found) == number % 2
    assert (call.stats.attempts, call.stats.cache_hits) == (2, 1)
    assert call.cache_get(Client(), 1, session=None) == 1


@pytest.mark.parametrize("backend", ["memory", "disk"])
def test_an_ignored_name_that_is_no_parameter_is_refused_at_binding(backend: str, tmp_path: Any) -> None:
    cache = {"backend": backend, "ttl": 60, "cache_dir": tmp_path}
    with pytest.raises(ConfigError, match=r"cache.ignore has 'sesion', .* did you mean 'session'"):
        Policy(cache={**cache, "ignore": "sesion"}).apply(lambda x, session: x)
    with pytest.raises(ConfigError, match=r"cache.ignore has no effect, as its parameters are unknown"):
        Policy(cache={**cache, "ignore": "x"}).apply(max)
    with pytest.raises(ValueError, match="ignore has no effect with a key"):
        Policy(cache={**cache, "ignore": "x", "key": len})


class Unpicklable:
    """Equal to its equals, but neither hashable nor picklable."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unpicklable)

    __hash__ = None  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("it holds a socket")


def in_a_circle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("backend", "value", "told"),
    [
        ("memory", Unpicklable(), "has no hash and does not pickle .it holds a socket.: define `__opero_key__`"),
        ("disk", Unpicklable(), "has no hash and does not pickle .it holds a socket.: define `__opero_key__`"),
        ("memory", in_a_circle(), "refers to itself, or is nested too deeply: set cache_key"),
        ("disk", in_a_circle(), "refers to itself, or is nested too deeply: set cache_key"),
        ("disk", object(), "a value of type object compares by identity"),
        ("disk", [{"x": object()}], "a value of type object compares by identity"),
        ("disk", lambda: 1, "cannot be imported by name"),
    ],
)
def test_an_argument_that_cannot_be_a_key_is_named_with_the_cure(
    backend: str, value: Any, told: str, tmp_path: Any
) -> None:
    def fetch(url: str, *rest: Any, session: Any = None, **more: Any) -> str:
        return url

    async def fetch_async(url: str, *rest: Any, session: Any = None, **more: Any) -> str:
        return url

    policy = Policy(cache={"backend": backend, "ttl": 60, "cache_dir": tmp_path})
    bound, bound_async = policy.apply(fetch), policy.apply(fetch_async)
    cases: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("session", ("u",), {"session": value}),
        ("rest", ("u", value), {}),
        ("extra", ("u",), {"extra": value}),
    ]
    for name, args, kwargs in cases:
        match = rf"fetch(_async)?: its argument '{name}' cannot be part of a cache key: .*{told}.*ignore: \[{name}\]"
        with pytest.raises(ConfigError, match=match):
            bound(*args, **kwargs)
        with pytest.raises(ConfigError, match=match):
            bound.cache_get(*args, **kwargs)
        with pytest.raises(ConfigError, match=match):
            asyncio.run(bound_async(*args, **kwargs))
    assert bound.stats.attempts == 0
    with pytest.raises(ConfigError, match="has no cache key"):
        Policy(cache={"backend": backend, "ttl": 60, "cache_dir": tmp_path, "key": lambda x: value}).apply(lambda x: x)(
            1
        )
