from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from opero import CachePolicy, Policy
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
    ("stale_ttl", "1h", 3600.0),
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
    ("stale_ttl", 0, "0 is not above 0"),
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
