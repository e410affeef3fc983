"""`@opero` and `@opmap`: bare, called, with a policy, and their errors."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from opero import ConfigError, Policy, Registry, RetryPolicy, UnknownOptionError, opero, opmap
from opero.testing import VirtualClock


def failing(times: int, error: type[Exception] = ConnectionError) -> Any:
    """Return a function that fails the given number of times before it succeeds."""
    left = [times]

    def answer(value: int = 1) -> int:
        if left[0]:
            left[0] -= 1
            raise error(f"{left[0]} left")
        return value

    return answer


def test_bare_and_empty_decorators_have_three_retries_and_nothing_else() -> None:
    assert opero(failing(0)).policy == opero()(failing(0)).policy == Policy(retry=RetryPolicy(retries=3))


def test_three_retries_mean_up_to_four_attempts() -> None:
    clock = VirtualClock()
    bound = opero(clock=clock)(failing(3))
    assert bound(5) == 5
    assert (bound.stats.calls, bound.stats.attempts, bound.stats.retries) == (1, 4, 3)


def test_options_keep_the_default_retries_unless_set() -> None:
    assert opero(cache=True)(failing(0)).policy.retry == RetryPolicy(retries=3)
    assert opero(retries=1)(failing(0)).policy.retry == RetryPolicy(retries=1)
    assert opero(backoff_factor=2)(failing(0)).policy.retry == RetryPolicy(retries=3, backoff_factor=2)
    assert opero(retry=None)(failing(0)).policy.retry is None


def test_options_are_merged_over_a_policy_object_without_default_retries() -> None:
    base = Policy(rate_limit={"rate": 10, "burst": 5}, timeout="5s")
    policy = opero(policy=base, rate_limit="20/s", timeout=None)(failing(0)).policy
    assert policy == Policy(rate_limit={"rate": 20, "burst": 5})


def test_a_profile_is_resolved_at_the_first_call() -> None:
    registry = Registry({"api": Policy()})

    @opero(policy="api", registry=registry)
    def fetch() -> int:
        return 1

    with registry.override(api={"retry": 2}):
        assert fetch() == 1
        assert fetch.policy == Policy(retry=2)


def test_accessing_the_policy_resolves_the_profile() -> None:
    registry = Registry({"api": Policy(retry=2)})
    fetch = opero(policy="api", registry=registry, retries=4)(failing(0))
    assert fetch.policy.retry == RetryPolicy(retries=4)
    assert fetch.policy == Policy(retry=4)
    assert isinstance(fetch.policy, Policy)
    assert repr(fetch.policy) == "Policy(retry=RetryPolicy(retries=4))"


@pytest.mark.parametrize("decorator", [opero, opmap])
def test_an_unknown_option_is_refused_with_the_nearest_name(decorator: Any) -> None:
    with pytest.raises(UnknownOptionError, match="unknown option 'retires'; did you mean 'retries'?"):
        decorator(retires=3)
    with pytest.raises(TypeError, match="rate_limit"):
        decorator(policy="api", ratelimit=3)


@pytest.mark.parametrize("policy", [None, "api", Policy()])
def test_an_invalid_value_is_refused_when_decorating_with_or_without_a_profile(policy: Any) -> None:
    with pytest.raises(ConfigError, match=r"^retries: "):
        opero(policy=policy, retries=-1)
    with pytest.raises(ConfigError, match=r"rate_limit\.rate: "):
        opero(policy=policy, rate_limit="fast")


def test_options_can_complete_a_profile() -> None:
    registry = Registry({"api": Policy(rate_limit="10/s")})
    fetch = opero(policy="api", registry=registry, rate_limit={"burst": 3})(failing(0))
    assert fetch.policy == Policy(rate_limit={"rate": 10, "burst": 3})


def test_an_unknown_fallback_argument_is_refused_when_decorating() -> None:
    with pytest.raises(ConfigError, match="no parameter 'apikey', which fallback.arg names; did you mean 'api_key'?"):

        @opero(arg_fallback="apikey")
        def fetch(url: str, api_key: str) -> None: ...


@pytest.mark.parametrize("options", [{"arg_fallback": "kee"}, {"rate_limit": {"rate": 1, "cost": "kee"}}])
def test_an_argument_named_by_the_decorator_is_checked_when_decorating_even_with_a_profile(
    options: Any,
) -> None:
    with pytest.raises(ConfigError, match="no parameter 'kee'"):
        opero(policy="api", **options)(failing(0))


def test_the_error_for_a_bare_profile_name_shows_the_correct_form() -> None:
    with pytest.raises(ConfigError, match=r"use @opero\(policy='api'\)"):
        opero("api")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match=r"use @opmap\(policy='api'\)"):
        opmap("api")  # type: ignore[call-overload]


def test_a_policy_that_is_neither_a_name_nor_a_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be a profile's name or a Policy, not of type dict"):
        opero(policy={"retry": 3})  # type: ignore[call-overload]


def test_the_bound_function_keeps_name_doc_signature_and_wrapped_function() -> None:
    @opero
    async def get_user(user_id: str, *, fresh: bool = False) -> dict[str, str]:
        """Fetch a user."""
        return {"id": user_id}

    assert (get_user.__name__, get_user.__doc__) == ("get_user", "Fetch a user.")
    assert str(inspect.signature(get_user)) == "(user_id: 'str', *, fresh: 'bool' = False) -> 'dict[str, str]'"
    assert inspect.iscoroutinefunction(get_user)
    assert inspect.iscoroutinefunction(get_user.__wrapped__)
    assert asyncio.run(get_user("a")) == {"id": "a"}


def test_a_decorated_function_can_be_decorated_again_with_separate_statistics() -> None:
    clock = VirtualClock()
    inner = opero(retries=1, clock=clock)(failing(3))
    outer = opero(retries=3, amplification="allow", clock=clock)(inner)
    assert outer() == 1
    assert (outer.stats.calls, inner.stats.calls, inner.stats.attempts) == (1, 2, 4)


def test_opmap_returns_a_function_of_many_items_equivalent_to_map() -> None:
    @opmap(mode="thread", workers=2)
    def double(item: int, plus: int = 0) -> int:
        return item * 2 + plus

    assert double([1, 2, 3]) == double.map([1, 2, 3]) == [2, 4, 6]
    assert double([1, 2], plus=1) == [3, 5]


def test_parallel_options_on_opero_configure_map() -> None:
    @opero(mode="thread", workers=2, on_error="skip", retries=0)
    def odd(item: int) -> int:
        if item % 2 == 0:
            raise ValueError(item)
        return item

    assert odd.map(range(6)) == [1, 3, 5]
    assert odd(1) == 1


def test_a_profile_that_does_not_fit_is_an_error_at_every_use() -> None:
    registry = Registry({"api": Policy(fallback={"arg": "key"})})
    fetch = opero(policy="api", registry=registry)(failing(0))
    for _ in range(2):  # every time, not only once
        with pytest.raises(ConfigError, match="no parameter 'key'"):
            fetch()
