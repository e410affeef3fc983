from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from opero import AdaptiveTTL, CachePolicy, Policy
from opero.failures import Kind
from opero.policies.names import ALL_FAILURES
from policies import named
from policies.checks import Bad, Good, accepts, covers, refuses

GOOD: Good = [
    ("ttl", None, None),
    ("ttl", "30m", 1800.0),
    ("ttl", 5, 5.0),
    ("ttl", named.an_hour, named.an_hour),
    ("ttl", "policies.named:an_hour", named.an_hour),
    ("backend", "dogpile.cache.memory", "dogpile.cache.memory"),
    ("backend", "dogpile.cache.null", "dogpile.cache.null"),
    ("key", named.cost, named.cost),
    ("key", "policies.named:cost", named.cost),
    ("ignore", "session", ("session",)),
    ("ignore", ["session", "log"], ("session", "log")),
    ("namespace", "app", "app"),
    ("app", " billing", "billing"),
    ("version", 2, "2"),
    ("version", "2026-11", "2026-11"),
    ("follow_code", "yes", True),
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
    ("errors", True, ALL_FAILURES),
    ("errors", "yes", ALL_FAILURES),
    ("errors", False, ()),
    ("share_errors", "no", False),
    ("errors", "permanent", (Kind.PERMANENT,)),
    ("errors", [KeyError, "denied"], (KeyError, Kind.DENIED)),
    ("serializer", "json", "json"),
    ("serializer", "typed", "typed"),
    ("serializer", "signed_pickle", "signed_pickle"),
    ("secret", "s", SecretStr("s")),
    ("allow_unsigned_pickle", True, True),
    ("arguments", {"path": "/tmp"}, {"path": "/tmp"}),
]
COMPANIONS: dict[str, dict[str, Any]] = {
    "stale_ttl": {"ttl": 60},
    "early_refresh": {"ttl": 60},
    "ttl_jitter": {"ttl": 60},
    "error_ttl": {"errors": True},
    "arguments": {"backend": "redis", "ttl": None},
}
"""What a field needs beside it."""
BAD: Bad = [
    ("ttl", 0, "a ttl of 0 s is invalid: use a value > 0"),
    ("ttl", -5, "use a value > 0"),
    ("ttl", True, "True is not a duration"),
    ("ttl", "policies.named:an_our", "did you mean 'an_hour'"),
    ("ttl", "policies.named:NOT_CALLABLE", r"'policies.named:NOT_CALLABLE' \(an int\) is not callable"),
    ("backend", 3, "valid string"),
    ("key", 3, "3 is not callable"),
    ("key", "nowhere", "'nowhere' is not a builtin"),
    ("ignore", 3, r"3 is not a list of parameters: use names, such as \[session\]"),
    ("ignore", ["a b"], "'a b' is not the name of a parameter"),
    ("namespace", 3, "valid string"),
    ("app", " ", "' ' is not the name of a program"),
    ("version", True, "True is not a version"),
    ("follow_code", 3, "3 is not a boolean"),
    ("max_size", 0, "greater than or equal to 1"),
    ("ttl", {"hot": 1}, "expected cold <= warm <= hot, not cold=5m, warm=15m, hot=1s"),
    ("ttl", {"warm_after": 200}, "warm_after=200 is greater than hot_after=100"),
    ("ttl", {"hott": 1}, "did you mean 'hot'"),
    ("stale_ttl", 0, "0 is invalid: use a value > 0"),
    ("early_refresh", -1, "-1 is invalid: use a value > 0"),
    ("ttl_jitter", 1.5, "less than or equal to 1"),
    ("ttl_jitter", True, "True is not a number"),
    ("cache_if", 3, "3 is not callable"),
    ("error_ttl", 0, "0 is invalid: use a value > 0"),
    ("tags", 3, "3 is not a list of tags"),
    ("tags", "user:{}", "braces must contain the name of a parameter"),
    ("tags", "user:{id", "is not a tag: .*use {{ for a literal brace"),
    ("tags", [""], "'' is not a tag"),
    ("url", 3, "a secret must be text"),
    ("cache_dir", 3, "3 is not the path of a directory"),
    ("cache_dir", "", "'' is not the path of a directory"),
    ("store_timeout", 0, "0 is invalid: use a value > 0"),
    ("lock_timeout", "soon", "'soon' is not a duration"),
    ("errors", "x", "'x' is neither a builtin exception nor a kind of failure"),
    ("serializer", "yaml", "'yaml' is not one of 'typed', 'json', 'pickle', 'signed_pickle'"),
    ("secret", 3, "a secret must be text, not int"),
    ("share_errors", "x", "is not a boolean: use true or false"),
    ("allow_unsigned_pickle", "x", "is not a boolean: use true or false"),
    ("arguments", [1], "arguments must be a mapping, not list"),
    ("secret", "", "the value is empty; set it, or remove it"),
]


@pytest.mark.parametrize(("field", "written", "held"), GOOD)
def test_a_field_accepts_valid_values(field: str, written: Any, held: Any) -> None:
    accepts(CachePolicy, field, written, held, **COMPANIONS.get(field, {}))


@pytest.mark.parametrize(("field", "wrong", "told"), BAD)
def test_a_field_rejects_invalid_values_with_a_reason(field: str, wrong: Any, told: str) -> None:
    refuses(CachePolicy, field, wrong, told, **COMPANIONS.get(field, {}))


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
    one = CachePolicy(backend="redis", ttl=None, arguments={"hosts": ["a", {"b": {1, 2}}]})
    other = CachePolicy(backend="redis", ttl=None, arguments={"hosts": ["a", {"b": {2, 1}}]})
    assert pickle.loads(pickle.dumps(one)) == one
    assert one == other
    assert hash(one) == hash(other)
    assert len({one, other, CachePolicy()}) == 2


def test_a_secret_is_kept_but_written_nowhere() -> None:
    policy = CachePolicy(
        secret="s3cret",
        url="redis://:s3cret@h",
        backend="redis",
        ttl=60,
        arguments={"password": "s3cret", "more": ["s3cret"]},
    )
    assert "s3cret" not in policy.model_dump_json() + repr(policy) + str(policy) + repr(Policy(cache=policy))
    assert "arguments={'password': '**********', 'more': '**********'}" in repr(policy)
    assert policy != CachePolicy(secret="other")
    assert policy.replace(max_size=1).secret == SecretStr("s3cret")
    assert policy.replace(max_size=1).arguments == {"password": "s3cret", "more": ["s3cret"]}


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"stale_ttl": 5}, "stale_ttl has no effect without a ttl; set ttl, or remove stale_ttl"),
    ({"early_refresh": 5}, "early_refresh has no effect without a ttl"),
    ({"ttl_jitter": 0.1}, "ttl_jitter has no effect without a ttl"),
    (
        {"ttl": 5, "early_refresh": 5},
        r"early_refresh \(5s\) is not less than the ttl \(5s\), so every hit would refresh",
    ),
    (
        {"ttl": {"cold": 5}, "early_refresh": 6},
        r"early_refresh \(6s\) is not less than the lowest ttl \(5s\), so every hit would refresh",
    ),
    ({"error_ttl": 5}, "error_ttl has no effect without errors: set errors: true, or remove error_ttl"),
    (
        {"backend": "redis", "ttl": None, "serializer": "pickle"},
        "serializer 'pickle' lets anyone who can write to the network store of backend 'redis' run code",
    ),
    ({"backend": "dogpile.cache.pymemcache"}, "the client of backend 'dogpile.cache.pymemcache' unpickles whatever"),
    ({"arguments": {"path": "x"}}, "backend 'memory' takes no arguments; remove them, and use max_size"),
    (
        {"backend": "opero.disk", "ttl": None, "arguments": {"path": "x"}},
        "takes no arguments; remove .* use cache_dir",
    ),
    *(
        (
            {"backend": store},
            f"the store of backend '{store}' outlives the process, .* served forever; set ttl .such",
        )
        for store in ("disk", "opero.disk", "redis", "opero.redis")
    ),
]


@pytest.mark.parametrize(("fields", "told"), CONTRADICTIONS)
def test_contradictions_are_rejected_without_showing_secrets(fields: dict[str, Any], told: str) -> None:
    for secret in ({"secret": "s3cret", "url": "redis://:s3cret@h"}, {}):
        with pytest.raises(ValueError, match=told) as caught:
            Policy.model_validate({"cache": {**fields, **secret}})
        assert "s3cret" not in str(caught.value) + repr(caught.value) + str(caught.value.errors())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "fields",
    [
        {"ttl": 5, "early_refresh": 4.9},
        {"ttl": named.an_hour, "early_refresh": 9000, "stale_ttl": 5, "ttl_jitter": 1},
        {"ttl_jitter": 0, "stale_ttl": None},
        {"errors": True, "error_ttl": 5},
        {"backend": "redis", "ttl": None, "serializer": "pickle", "allow_unsigned_pickle": True},
        {"backend": "dogpile.cache.pymemcache", "allow_unsigned_pickle": True},
        {"backend": "disk", "ttl": None, "serializer": "pickle"},
        {"backend": "opero.disk", "ttl": None, "serializer": "pickle"},
        {"backend": "dogpile.cache.dbm", "arguments": {"filename": "x"}},
        {"backend": "disk", "ttl": named.an_hour},
        {"backend": "redis", "ttl": "adaptive"},
        {"backend": "dogpile.cache.memory_pickle"},
        {"backend": "disk", "enabled": False},
        {"backend": "memory", "arguments": {}},
    ],
)
def test_values_that_only_seem_contradictory_are_accepted(fields: dict[str, Any]) -> None:
    assert CachePolicy(**fields) == CachePolicy.model_validate(fields)


def test_an_argument_of_the_wrong_shape_is_not_shown() -> None:
    for wrong in ({"arguments": "redis://:s3cret@h"}, {"url": ["s3cret"]}, {"ttl": "redis://u:s3cret@h"}):
        with pytest.raises(ValueError, match="^(arguments|url|ttl): ") as caught:
            CachePolicy(**wrong)  # type: ignore[arg-type]
        assert "s3cret" not in str(caught.value)


def test_what_a_repr_shows_of_an_explicit_lack_of_ttl_can_be_written() -> None:
    policy = CachePolicy(backend="disk", ttl=None)
    assert repr(policy) == "CachePolicy(ttl=None, backend='disk')"
    assert policy.replace(max_size=5) == CachePolicy(backend="disk", ttl=None, max_size=5)
    assert pickle.loads(pickle.dumps(policy)).replace(max_size=5).backend == "disk"
    assert CachePolicy.model_validate_json(policy.model_dump_json()) == policy


def test_the_ttl_may_come_from_another_statement() -> None:
    assert Policy(cache="1h").replace(cache_backend="disk").cache == CachePolicy(ttl=3600, backend="disk")
    with pytest.raises(ValueError, match="outlives the process"):
        Policy(cache=True).replace(cache_backend="disk")
