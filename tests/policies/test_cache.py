from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from opero import AdaptiveTTL, CachePolicy, Policy
from policies import named
from policies.checks import Bad, Good, accepts, covers, refuses

GOOD: Good = [
    ("ttl", None, None),
    ("ttl", "30m", 1800.0),
    ("ttl", 5, 5.0),
    ("ttl", named.an_hour, named.an_hour),
    ("ttl", "policies.named:an_hour", named.an_hour),
    ("backend", "disk", "disk"),
    ("backend", "dogpile.cache.null", "dogpile.cache.null"),
    ("key", named.cost, named.cost),
    ("key", "policies.named:cost", named.cost),
    ("namespace", "app", "app"),
    ("max_size", 1, 1),
    ("ttl", {"hot": "2h"}, AdaptiveTTL(hot=7200)),
    ("ttl", '{"cold": 1}', AdaptiveTTL(cold=1)),
    ("ttl", "adaptive", AdaptiveTTL()),
    ("ttl", AdaptiveTTL(warm_after=1), AdaptiveTTL(warm_after=1)),
    ("stale_ttl", "1h", 3600.0),
    ("early_refresh", "30s", 30.0),
    ("ttl_jitter", 0.1, 0.1),
    ("cache_if", named.is_none, named.is_none),
    ("cache_if", "policies.named:is_none", named.is_none),
    ("error_ttl", "10s", 10.0),
    ("tags", "users", ("users",)),
    ("tags", ["users", "user:{user.id}"], ("users", "user:{user.id}")),
    ("url", "redis://h", SecretStr("redis://h")),
    ("cache_dir", "~/here", "~/here"),
    ("cache_dir", Path("/tmp"), "/tmp"),
    ("store_timeout", "50ms", 0.05),
    ("lock_timeout", "5m", 300.0),
    ("cache_errors", True, True),
    ("serializer", "json", "json"),
    ("serializer", "signed_pickle", "signed_pickle"),
    ("secret", "s", SecretStr("s")),
    ("allow_unsigned_pickle", True, True),
    ("arguments", {"path": "/tmp"}, {"path": "/tmp"}),
]
BAD: Bad = [
    ("ttl", 0, "a time to live of 0 s is not above 0"),
    ("ttl", -5, "not above 0"),
    ("ttl", True, "True is no duration"),
    ("ttl", "policies.named:an_our", "did you mean 'an_hour'"),
    ("ttl", "policies.named:NOT_CALLABLE", "'policies.named:NOT_CALLABLE' is not callable"),
    ("backend", 3, "valid string"),
    ("key", 3, "3 is not callable"),
    ("key", "nowhere", "'nowhere' is no builtin"),
    ("namespace", 3, "valid string"),
    ("max_size", 0, "greater than or equal to 1"),
    ("ttl", {"hot": 1}, "it must be cold ≤ warm ≤ hot, but cold=5m ≤ warm=15m ≤ hot=1s does not hold"),
    ("ttl", {"warm_after": 200}, "warm_after=200 is above hot_after=100"),
    ("ttl", {"hott": 1}, "did you mean 'hot'"),
    ("stale_ttl", 0, "0 is not above 0"),
    ("early_refresh", -1, "-1 is not above 0"),
    ("ttl_jitter", 1.5, "less than or equal to 1"),
    ("ttl_jitter", True, "True is no number"),
    ("cache_if", 3, "3 is not callable"),
    ("error_ttl", 0, "0 is not above 0"),
    ("tags", 3, "3 are no tags"),
    ("tags", "user:{}", "each brace must hold the name of a parameter"),
    ("tags", "user:{id", "is no tag: .*write {{ for a brace"),
    ("tags", [""], "'' is no tag"),
    ("url", 3, "a secret is text"),
    ("cache_dir", 3, "3 is no directory"),
    ("cache_dir", "", "'' is no directory"),
    ("store_timeout", 0, "0 is not above 0"),
    ("lock_timeout", "soon", "'soon' is no duration"),
    ("cache_errors", "x", "valid boolean"),
    ("serializer", "yaml", "'yaml' is none of 'json', 'pickle', 'signed_pickle'"),
    ("secret", 3, "a secret is text, and this is of type int"),
    ("allow_unsigned_pickle", "x", "valid boolean"),
    ("arguments", [1], "valid dictionary"),
]


@pytest.mark.parametrize(("field", "written", "held"), GOOD)
def test_a_field_accepts_what_it_is_for(field: str, written: Any, held: Any) -> None:
    accepts(CachePolicy, field, written, held)


@pytest.mark.parametrize(("field", "wrong", "told"), BAD)
def test_a_field_refuses_anything_else_and_says_why(field: str, wrong: Any, told: str) -> None:
    refuses(CachePolicy, field, wrong, told)


def test_every_field_is_tested_with_good_and_bad_values() -> None:
    covers(CachePolicy, GOOD, BAD)


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("30m", CachePolicy(ttl=1800)),
        (60, CachePolicy(ttl="1m")),
        (True, CachePolicy()),
        ({}, CachePolicy()),
        ({"ttl": "1h", "max_size": "10"}, CachePolicy(ttl=3600, max_size=10)),
        (False, None),
        (None, None),
    ],
)
def test_it_may_be_written_short(short: Any, full: CachePolicy | None) -> None:
    assert Policy(cache=short).cache == full
    assert Policy.from_options(cache=short) in (Policy(cache=full), Policy(cache={"enabled": False}))


def test_arguments_that_cannot_be_hashed_leave_the_policy_hashable_and_equal() -> None:
    one = CachePolicy(arguments={"hosts": ["a", {"b": {1, 2}}]})
    other = CachePolicy(arguments={"hosts": ["a", {"b": {2, 1}}]})
    assert one == other
    assert hash(one) == hash(other)
    assert len({one, other, CachePolicy()}) == 2


def test_a_secret_is_kept_but_written_nowhere() -> None:
    policy = CachePolicy(secret="s3cret")
    assert "s3cret" not in policy.model_dump_json() + repr(policy) + str(policy.model_dump())
    assert policy != CachePolicy(secret="other")
    assert policy.replace(max_size=1).secret == SecretStr("s3cret")
