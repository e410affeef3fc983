"""What makes the first call fail, and is visible before it, is found when a function is bound or by `check`."""

from __future__ import annotations

import abc
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional, Protocol

import pytest
from pydantic import BaseModel

from opero import CachePolicy, ConfigError, Policy, RateLimitPolicy, Registry, opero
from opero.policies.policy import KINDS

# Instances and arguments without a key, in a shared store


class Plain:
    def load(self, name: str) -> str:
        return name

    @classmethod
    def of_class(cls, name: str) -> str:
        return name


class Slotted:
    __slots__ = ("_it",)

    def load(self, name: str) -> str:
        return name


class WithKey:
    def __opero_key__(self) -> str:
        return "one"

    def load(self, name: str) -> str:
        return name


class WithKeyOfItsOwn:
    def __init__(self) -> None:
        self.__opero_key__ = "one"

    def load(self, name: str) -> str:
        return name


@dataclass(frozen=True)
class Frozen:
    number: int = 1

    def load(self, name: str) -> str:
        return name


@dataclass(eq=False)
class Uncompared:
    number: int = 1

    def load(self, name: str) -> str:
        return name


class Model(BaseModel):
    number: int = 1

    def load(self, name: str) -> str:
        return name


class FrozenModel(BaseModel, frozen=True):
    number: int = 1

    def load(self, name: str) -> str:
        return name


class Parent:
    def load(self, name: str) -> str:
        return name


class Child(Parent):
    def __opero_key__(self) -> str:
        return "child"


class Abstract(abc.ABC):
    @abc.abstractmethod
    def other(self) -> str: ...

    def load(self, name: str) -> str:
        return name


class Reads(Protocol):
    def read(self) -> str: ...


def by_plain(plain: Plain, number: int) -> int:
    return number


def by_optional(plain: Plain | None, number: int) -> int:
    return number


def by_default(number: int, plain: Plain = None) -> int:  # type: ignore[assignment]
    return number


def by_protocol(reader: Reads, number: int) -> int:
    return number


def by_model(model: Model, number: int) -> int:
    return number


def by_object(thing: object, number: int) -> int:
    return number


def by_class(kind: type, number: int) -> int:
    return number


def disk(directory: Path, **options: Any) -> Policy:
    return Policy(cache=CachePolicy(backend="disk", ttl=60, cache_dir=str(directory), **options))


def refusal(function: Any, policy: Policy) -> str:
    """Return why a registry refuses a function under a profile; "" if it does not."""
    registry = Registry({"p": policy})
    try:
        bound = opero(policy="p", registry=registry)(function)
        registry.check()
    except ConfigError as error:
        return str(error)
    assert bound is not None
    return ""


@pytest.mark.parametrize(
    ("function", "arguments", "told"),
    [
        (Plain.load, lambda: (Plain(), "a"), "Plain.load: its instance, a Plain, compares by identity"),
        (Slotted.load, lambda: (Slotted(), "a"), "its instance, a Slotted, compares by identity"),
        (Uncompared.load, lambda: (Uncompared(), "a"), "its instance, a Uncompared, compares by identity"),
        (by_plain, lambda: (Plain(), 1), "its argument 'plain', a Plain, compares by identity"),
        (WithKey.load, lambda: (WithKey(), "a"), ""),
        (WithKeyOfItsOwn.load, lambda: (WithKeyOfItsOwn(), "a"), ""),
        (Frozen.load, lambda: (Frozen(), "a"), ""),
        (Model.load, lambda: (Model(), "a"), "its instance, a Model, compares by identity"),
        (FrozenModel.load, lambda: (FrozenModel(), "a"), ""),
        (by_model, lambda: (Model(), 1), ""),
        (Parent.load, lambda: (Child(), "a"), ""),
        (by_optional, lambda: (None, 1), ""),
        (by_default, lambda: (1,), ""),
        (by_object, lambda: ("text", 1), ""),
        (by_class, lambda: (int, 1), ""),
    ],
    ids=lambda each: getattr(each, "__qualname__", ""),
)
def test_check_finds_arguments_without_a_key_and_the_first_call_agrees(
    function: Any, arguments: Any, told: str, tmp_path: Path
) -> None:
    policy = disk(tmp_path)
    found = refusal(function, policy)
    assert told in found if told else found == ""
    call = opero(policy="p", registry=Registry({"p": policy}))(function)
    if told:
        with pytest.raises(ConfigError, match="cannot be part of a cache key|compares by identity"):
            call(*arguments())
    else:
        call(*arguments())


def test_what_may_be_a_subclass_with_a_key_is_not_refused(tmp_path: Path) -> None:
    for function in (Abstract.load, by_protocol):
        assert refusal(function, disk(tmp_path)) == ""


def test_a_key_function_an_ignored_argument_and_the_memory_need_no_key_of_an_instance(tmp_path: Path) -> None:
    assert refusal(Plain.load, disk(tmp_path, key=lambda self, name: name)) == ""
    assert refusal(by_plain, disk(tmp_path, ignore=["plain"])) == ""
    assert refusal(Plain.load, disk(tmp_path, ignore=["self"])) == ""
    assert refusal(Plain.load, Policy(cache=CachePolicy(ttl=60))) == ""


# Costs


def text(prompt: str, tokens: str) -> str:
    return prompt


def of_text(prompt: str, tokens: str | None) -> str:
    return prompt


def of_flag(prompt: str, tokens: bool) -> str:
    return prompt


def of_list(prompt: str, tokens: list[int]) -> str:
    return prompt


def of_words(prompt: str, tokens: Literal["few", "many"]) -> str:
    return prompt


def of_several(prompt: str, *tokens: int) -> str:
    return prompt


def of_named(prompt: str, **tokens: int) -> str:
    return prompt


def of_default(prompt: str, tokens: Optional[int] = None) -> str:
    return prompt


def number(prompt: str, tokens: int) -> str:
    return prompt


def half(prompt: str, tokens: float = 0.5) -> str:
    return prompt


def either(prompt: str, tokens: int | str) -> str:
    return prompt


def unknown(prompt, tokens):  # type: ignore[no-untyped-def]
    return prompt


def unresolved(prompt: str, tokens: NoSuchName) -> str:  # type: ignore[name-defined]  # noqa: F821
    return prompt


BY_TOKENS = Policy(rate_limit=RateLimitPolicy(rate=1e6, cost="tokens"))


@pytest.mark.parametrize("function", [text, of_text, of_flag, of_list, of_words, of_default])
def test_a_cost_that_is_no_number_is_refused(function: Any) -> None:
    assert "rate_limit.cost is 'tokens'" in refusal(function, BY_TOKENS)
    with pytest.raises(ConfigError, match="'tokens'"):
        opero(rate_limit={"rate": 1e6, "cost": "tokens"})(function)


@pytest.mark.parametrize("function", [of_several, of_named])
def test_a_cost_in_a_parameter_that_collects_arguments_is_refused(function: Any) -> None:
    told = r"collects several arguments in \*+tokens.*, which is not one to take the cost from: name another parameter"
    assert re.search(told, refusal(function, BY_TOKENS))
    with pytest.raises(ConfigError, match=told):
        opero(rate_limit={"rate": 1e6, "cost": "tokens"})(function)


@pytest.mark.parametrize("function", [number, half, either, unknown, unresolved])
def test_a_cost_that_may_be_a_number_is_accepted(function: Any) -> None:
    assert refusal(function, BY_TOKENS) == ""
    assert opero(policy="p", registry=Registry({"p": BY_TOKENS}))(function)("a", 1) == "a"


# Functions of the user's, and what they are called with


def nothing() -> float:
    return 1.0


def two(one: Any, other: Any) -> bool:
    return True


ONE_ARGUMENT = {
    "retry.retry_on": "the exception",
    "retry.retry_if_result": "the result",
    "cache.cache_if": "the result",
    "cache.errors": "the exception",
    "circuit_breaker.trip_on": "the exception",
    "circuit_breaker.ignore": "the exception",
    "fallback.on": "the exception",
    "rate_limit.cost_from_result": "the result",
    "rate_limit.refund_on": "the exception",
    "failures.classify": "the exception",
}
REQUIRED: dict[str, dict[str, Any]] = {"rate_limit": {"rate": 10, "cost": "tokens"}, "fallback": {"default": 1}}


@pytest.mark.parametrize("path", ONE_ARGUMENT)
@pytest.mark.parametrize("function", [nothing, two, functools.partial(two, other=1), lambda: 1], ids=range(4))
def test_a_function_that_cannot_be_called_as_it_will_be_is_refused(path: str, function: Any) -> None:
    kind, field = path.split(".")
    fields = {**REQUIRED.get(kind, {}), field: function}
    if getattr(function, "keywords", None):
        KINDS[kind](**fields)
        return
    with pytest.raises(ConfigError, match=f"cannot be called with one argument, {ONE_ARGUMENT[path]}"):
        KINDS[kind](**fields)


@pytest.mark.parametrize("path", ["cache.ttl", "parallel.initializer", "parallel.executor"])
def test_a_function_that_is_called_with_no_arguments_must_need_none(path: str) -> None:
    kind, field = path.split(".")
    with pytest.raises(ConfigError, match="cannot be called with no arguments"):
        KINDS[kind](**{field: two})


def called(user_id: int, *, limit: int = 1) -> int:
    return user_id


def flexible(*args: Any, **kwargs: Any) -> int:
    return 1


def keyword_only(*, user_id: int) -> int:
    return user_id


def default_left_out(a: int, b: int = 1, c: int = 2) -> int:
    return a


@pytest.mark.parametrize("path", ["cache.key", "rate_limit.cost", "fallback.function"])
@pytest.mark.parametrize(
    ("function", "other", "fits"),
    [
        (called, nothing, False),
        (called, two, False),
        (called, lambda user_id: 1, True),
        (called, lambda x: 1, True),
        (called, lambda user_id, limit: 1, True),
        (called, lambda user_id, **kwargs: 1, True),
        (called, lambda *args: 1, True),
        (called, lambda user_id, missing: 1, False),
        (flexible, two, True),
        (flexible, nothing, True),
        (flexible, lambda *, name: 1, True),
        (keyword_only, lambda user_id: 1, True),
        (keyword_only, lambda x: 1, False),
        (default_left_out, lambda a, c: 1, True),
        (default_left_out, lambda a, d: 1, True),  # f(1, 2)
        (Plain.load, lambda self, name: 1, True),
        (Plain.load, lambda name: 1, False),
    ],
    ids=range(17),
)
def test_a_function_of_the_calls_arguments_must_be_able_to_receive_those_of_some_call(
    path: str, function: Any, other: Any, fits: bool
) -> None:
    kind, field = path.split(".")
    policy = Policy.model_validate({kind: {**({"rate": 10} if kind == "rate_limit" else {}), field: other}})
    if fits:
        policy.apply(function)
        assert refusal(function, policy) == ""
        return
    with pytest.raises(ConfigError, match=f"{kind}.{field} receives the arguments of each call"):
        policy.apply(function)
    assert "receives the arguments of each call" in refusal(function, policy)


# Modes


async def asynchronous(number: int) -> int:
    return number


def sync(number: int) -> int:
    return number


@pytest.mark.parametrize(
    ("function", "mode"),
    [(sync, "async"), (sync, "async_process"), (asynchronous, "thread"), (asynchronous, "process")],
)
def test_a_mode_that_cannot_run_the_function_is_refused_in_its_own_options(function: Any, mode: str) -> None:
    with pytest.raises(ConfigError, match=f"which mode '{mode}' cannot run"):
        opero(mode=mode)(function)


def test_of_a_profile_it_is_a_warning_for_functions_that_are_called() -> None:
    from opero.registry.checks import unmappable

    registry = Registry({"p": Policy(parallel={"mode": "thread"}), "q": Policy(parallel={"mode": "auto"})})
    kept = [opero(policy=name, registry=registry)(each) for name in "pq" for each in (sync, asynchronous)]
    registry.check()
    (warning,) = unmappable(registry.configuration, registry._bindings())
    assert "asynchronous is an async function, which mode 'thread' cannot run" in warning
    assert "can be called, and not mapped" in warning
    assert len(kept) == 4
