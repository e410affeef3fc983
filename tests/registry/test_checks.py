"""What `Registry.check` accepts, the first call accepts: for arbitrary policies, functions and maps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from opero import ConfigError, Policy, Registry, opero, opmap
from policies import strategies


def get(user_id: int, tokens: float = 1.0) -> int:
    return user_id


async def get_async(user_id: int, tokens: float = 1.0) -> int:
    return user_id


def generate(user_id: int) -> Iterator[int]:
    yield user_id


async def generate_async(user_id: int) -> AsyncIterator[int]:
    yield user_id


FUNCTIONS = [get, get_async, generate, generate_async]
MAPPED = [get, get_async]
CASES = st.tuples(st.sampled_from(FUNCTIONS), st.just(opero)) | st.tuples(st.sampled_from(MAPPED), st.just(opmap))


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def fitted(policy: Policy, cache_dir: Path, arg: str) -> Policy:
    """The policy with a fallback argument that a function may have, and a store that it may write to."""
    if policy.fallback is not None and policy.fallback.arg is not None:
        policy = policy.replace(fallback=policy.fallback.replace(arg=arg))
    if policy.cache is not None and policy.cache.cache_dir is not None:
        policy = policy.replace(cache=policy.cache.replace(cache_dir=cache_dir))
    return policy


def refusal(action: Any, *args: Any) -> ConfigError | None:
    try:
        action(*args)
    except ConfigError as error:
        return error
    return None


@given(policy=strategies.whole_policies, case=CASES, arg=st.sampled_from(["user_id", "other"]))
@example(policy=Policy(cache={"backend": "memry"}), case=(get, opero), arg="user_id")
@example(policy=Policy(cache={"backend": "disk", "ttl": None, "cache_dir": "/tmp"}), case=(get, opero), arg="user_id")
@example(policy=Policy(fallback={"arg": "other", "enabled": False}), case=(get, opero), arg="other")
@example(policy=Policy(parallel="thread"), case=(get_async, opmap), arg="user_id")
@example(policy=Policy(parallel="dask"), case=(get, opmap), arg="user_id")
@example(policy=Policy(parallel="dask", rate_limit=1), case=(get, opmap), arg="user_id")
def test_the_first_call_accepts_everything_that_check_accepts(
    policy: Policy, case: Any, arg: str, cache_dir: Path
) -> None:
    function, decorator = case
    registry = Registry({"p": fitted(policy, cache_dir, arg)})
    bound = decorator(policy="p", registry=registry)(function)
    found = refusal(registry.check)
    refused = refusal(bound.binding.resolved)
    if decorator is opmap and refused is None:
        refused = refusal(bound.stream, [1])  # which begins nothing before it is read
    if found is None:
        assert refused is None
    elif "of a cluster" not in str(found):  # which a call that is not a map does not meet
        assert refused is not None
