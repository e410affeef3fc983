"""Fallbacks: alternative argument values, another function, a default result."""

from __future__ import annotations

import sys
from collections import UserList, deque
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Optional, Union

import pytest
from pydantic import SecretStr

from opero import AllFailedError, ConfigError, Policy
from opero.executors.fallback import Alternatives

KEYS = ["a", "b", "c"]
NO_WAIT = {"jitter": False, "min_delay": 1, "backoff_factor": 1}


class RefusedError(Exception):
    """Of no kind that is known."""


class Refusing:
    """Records the keys it is called with, and rejects some of them."""

    def __init__(self, *refused: str, error: type[Exception] = RefusedError) -> None:
        self.refused = refused
        self.error = error
        self.asked: list[Any] = []

    def answer(self, key: Any) -> Any:
        self.asked.append(key)
        if (key[0] if isinstance(key, list | tuple) else key) in self.refused:
            raise self.error(key)
        return key


def test_each_value_is_tried_in_turn_without_delay(bind: Any) -> None:
    service = Refusing("a", "b")

    def function(key: str) -> Any:
        return service.answer(key)

    assert bind(Policy(retry=3, fallback={"arg": "key"}), function)(KEYS) == "c"
    assert (service.asked, bind.slept) == (KEYS, [])
    assert (bind.bound.stats.fallbacks, bind.bound.stats.recoveries, bind.bound.stats.retries) == (2, 1, 0)


def test_the_next_round_starts_after_a_delay_when_all_values_have_failed(bind: Any) -> None:
    service = Refusing("a", "b")

    def function(key: str) -> Any:
        return service.answer(key)

    with pytest.raises(AllFailedError, match="all 4 attempts failed in 2 rounds"):
        bind(Policy(retry={"retries": 1, **NO_WAIT}, fallback={"arg": "key"}), function)(["a", "b"])
    assert (service.asked, bind.slept) == (["a", "b", "a", "b"], [1])


def test_the_next_round_omits_values_whose_error_is_not_retried(bind: Any) -> None:
    asked = []

    def function(key: str) -> Any:
        asked.append(key)
        raise (RefusedError if key == "a" else ConnectionError)(key)

    policy = Policy(retry={"retries": 2, "retry_on": ConnectionError, **NO_WAIT}, fallback={"arg": "key"})
    with pytest.raises(AllFailedError) as caught:
        bind(policy, function)(["a", "b"])
    assert asked == ["a", "b", "b", "b"]
    assert len(caught.value.errors) == 4


def test_without_retry_each_value_is_tried_once(bind: Any) -> None:
    service = Refusing("a", "b")

    def function(key: str) -> Any:
        return service.answer(key)

    with pytest.raises(AllFailedError):
        bind(Policy(fallback={"arg": "key"}), function)(["a", "b"])
    assert service.asked == ["a", "b"]


@pytest.mark.parametrize(
    "annotation",
    [
        str,
        int | str,
        Optional[str],
        Union[int, str],
        "str",
        "str | None",
        bytes,
        str | list[str],
        str | tuple[str, ...],
        str | Sequence[str] | None,
        Union[str, list[str]],
        Annotated[str | list[str], "keys"],
        "str | list[Unknown]",
        "typing.Union[Unknown, t.List[Unknown], None]",
        "Optional[str | Sequence[Unknown]]",
        "Annotated[Unknown | list[Unknown], 'keys']",
        SecretStr,
        SecretStr | list[SecretStr],
        dict[str, str],
    ],
)
def test_a_parameter_annotated_as_a_single_value_gets_one_value_per_attempt(annotation: Any) -> None:
    def function(url: str, key: Any) -> None: ...

    function.__annotations__["key"] = annotation
    assert [kwargs["key"] for _, kwargs in Alternatives("key", function).variants(("u",), {"key": KEYS})] == KEYS


@pytest.mark.parametrize(
    "annotation",
    [
        list[str],
        list,
        "list[str]",
        Sequence[str],
        Optional[list[str]],
        list[str] | tuple[str, ...] | None,
        tuple[str, ...],
        "Sequence[str]",
        "Optional[typing.List[Unknown]]",
        "list[Unknown] | None",
        "Annotated[list[Unknown], 'keys']",
        Annotated[list[str], "keys"],
        Any,
        None,
    ],
)
def test_a_list_or_unannotated_parameter_gets_the_list_with_the_value_first(annotation: Any) -> None:
    def function(url, key): ...  # type: ignore[no-untyped-def]

    if annotation is not None:
        function.__annotations__["key"] = annotation
    variants = [args[1] for args, _ in Alternatives("key", function).variants(("u", KEYS), {})]
    assert variants == [["a", "b", "c"], ["b", "a", "c"], ["c", "a", "b"]]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a syntax of Python 3.12")
@pytest.mark.parametrize(("meaning", "is_list"), [("list[str]", True), ("str | list[str]", False)])
def test_an_alias_stands_for_what_it_means(meaning: str, is_list: bool) -> None:
    names: dict[str, Any] = {}
    exec(f"type Keys = {meaning}\ndef function(key: Keys) -> None: ...", names)
    assert Alternatives("key", names["function"]).takes_list is is_list


def test_tuples_stay_tuples_and_the_callers_list_is_not_modified() -> None:
    def function(key: tuple[str, ...]) -> None: ...

    keys = list(KEYS)
    assert Alternatives("key", function).variants((("a", "b"),), {})[1][0] == (("b", "a"),)
    Alternatives("key", function).variants((keys,), {})
    assert keys == KEYS


def test_values_come_from_the_call_or_the_default_of_the_parameter(bind: Any) -> None:
    service = Refusing("a")

    def function(url: str, *, key: list[str] = KEYS) -> Any:
        return service.answer(key)

    call = bind(Policy(fallback={"arg": "key"}), function)
    assert call("u") == ["b", "a", "c"]
    assert call("u", key=["a", "z"]) == ["z", "a"]


@pytest.mark.parametrize(("given", "received"), [("only", ["only"]), ([], []), (None, None)])
def test_a_single_value_or_an_empty_list_has_no_alternatives(bind: Any, given: Any, received: Any) -> None:
    asked = []

    def function(key: list[str]) -> Any:
        asked.append(key)
        raise RefusedError

    with pytest.raises(RefusedError):
        bind(Policy(fallback={"arg": "key"}), function)(given)
    assert asked == [received]


@pytest.mark.parametrize(
    "given", [deque(["a", "b"]), {"a": 1, "b": 2}.keys(), {1: "a", 2: "b"}.values(), UserList(["a", "b"]), ("a", "b")]
)
@pytest.mark.parametrize("annotation", [str, Sequence[str], Any, "Unresolvable"])
def test_any_ordered_collection_has_alternatives(bind: Any, given: Any, annotation: Any) -> None:
    service = Refusing("a")

    def function(key: Any) -> Any:
        return service.answer(key)

    function.__annotations__["key"] = annotation
    answer = bind(Policy(retry=0, fallback={"arg": "key"}), function)(given)
    as_list = ("b", "a") if isinstance(given, tuple) else ["b", "a"]
    assert answer == ("b" if annotation in (str, "Unresolvable") else as_list)


@pytest.mark.parametrize("given", [{"a", "b"}, frozenset("ab"), {"a": 1}.items(), iter(["a"]), (each for each in "ab")])
@pytest.mark.parametrize("remember", [False, True])
def test_sets_and_iterators_are_refused_before_the_first_attempt(bind: Any, given: Any, remember: bool) -> None:
    service = Refusing()

    def function(key: str) -> Any:
        return service.answer(key)

    call = bind(Policy(retry=3, fallback={"arg": "key", "remember": remember, "default": 1}), function)
    with pytest.raises(TypeError, match="the argument 'key' is a .*: use a list"):
        call(given)
    assert service.asked == []


def test_a_default_that_is_a_set_is_refused_when_the_function_is_bound(bind: Any) -> None:
    def function(key: str = {"a", "b"}) -> Any:  # type: ignore[assignment]
        return key

    with pytest.raises(ConfigError, match="the default of 'key', which fallback.arg names, is a set"):
        bind(Policy(fallback={"arg": "key"}), function)()


@pytest.mark.parametrize(
    ("annotation", "given"),
    [
        (set[str], {"a"}),
        (frozenset, frozenset("a")),
        (Optional[deque[str]], deque("a")),
        (Annotated[set[str], "x"], {"a"}),
        (Iterator[str], iter("a")),
        (dict[str, str], {"a": "b"}),
        (bytes, b"ab"),
        (str, {"a": "b"}),
        (list[str] | None, None),
        (str, None),
    ],
)
def test_what_the_annotation_names_and_none_are_passed_untouched(bind: Any, annotation: Any, given: Any) -> None:
    service = Refusing()

    def function(key: Any) -> Any:
        return service.answer(key)

    function.__annotations__["key"] = annotation
    assert bind(Policy(retry=1, fallback={"arg": "key"}), function)(given) is given
    assert bind(Policy(retry=1, fallback={"arg": "key", "remember": False}), function)(given) is given


def test_an_unannotated_single_value_is_passed_unchanged(bind: Any) -> None:
    assert bind(Policy(fallback={"arg": "key"}), lambda key: key)("abc") == "abc"


def test_the_argument_can_be_passed_through_kwargs(bind: Any) -> None:
    def function(**options: Any) -> Any:
        if options["key"][0] == "a":
            raise RefusedError
        return options["key"]

    assert bind(Policy(fallback={"arg": "key"}), function)(key=["a", "b"]) == ["b", "a"]


@pytest.mark.parametrize("name", ["kee", "args"])
def test_an_unknown_parameter_is_refused_at_binding(name: str) -> None:
    def function(key: str, *args: str) -> None: ...

    with pytest.raises(ConfigError, match=name):
        Policy(fallback={"arg": name}).apply(function)


def test_a_default_is_returned_as_a_copy_when_all_attempts_have_failed(bind: Any, script: Any) -> None:
    default: list[Any] = [[]]
    call = bind(Policy(retry=1, fallback={"default": default}), script(ConnectionError()))
    call()[0].append("changed")
    assert call() == [[]]
    assert default == [[]]
    assert (bind.bound.stats.fallbacks, bind.bound.stats.failures, bind.bound.stats.attempts) == (2, 0, 4)


def test_none_is_a_valid_default_and_errors_are_counted_without_retry(bind: Any, script: Any) -> None:
    assert bind(Policy(fallback={"default": None}), script(ConnectionError()))() is None
    assert bind.bound.stats.errors == {"ConnectionError": 1}


def test_a_fallback_function_gets_the_same_arguments(bind: Any, script: Any) -> None:
    def instead(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    assert bind(Policy(fallback={"function": instead}), script(ConnectionError()))(1, 2) == ((1, 2), {})


def test_an_async_fallback_function_of_an_async_function() -> None:
    from opero.testing import VirtualClock

    async def instead(key: str) -> str:
        return key.upper()

    async def function(key: str) -> str:
        raise ConnectionError

    clock = VirtualClock()
    assert clock.run(Policy(fallback={"function": instead}).apply(function, clock=clock)("a")) == "A"


def test_the_error_of_a_fallback_has_the_original_error_as_context(bind: Any, script: Any) -> None:
    def instead() -> None:
        raise KeyError("also broken")

    with pytest.raises(KeyError) as caught:
        bind(Policy(fallback={"function": instead}), script(ConnectionError("first")))()
    assert isinstance(caught.value.__context__, ConnectionError)


@pytest.mark.parametrize("fallback", [{"default": [7, 8]}, {"function": lambda: iter([7, 8])}])
def test_a_fallback_of_a_generator(fallback: Any) -> None:
    def function() -> Any:
        raise ConnectionError
        yield

    assert list(Policy(fallback=fallback).apply(function)()) == [7, 8]
