"""`Policy`, its flat options, and merging."""

from __future__ import annotations

import ast
import inspect
import pickle
import textwrap
import typing
from typing import Any

import pytest

import opero
from opero import (
    BulkheadPolicy,
    CachePolicy,
    CanaryPolicy,
    CircuitBreakerPolicy,
    FailurePolicy,
    FallbackPolicy,
    HedgePolicy,
    HooksPolicy,
    ParallelPolicy,
    Policy,
    PriorityPolicy,
    RateLimitPolicy,
    RetryPolicy,
    ThrottlePolicy,
    TimeoutPolicy,
    UnknownOptionError,
)
from opero.config.schema import json_schema
from opero.errors import ConfigError
from opero.failures import Kind
from opero.policies.hooks import HOOKS
from opero.policies.options import Options
from opero.policies.policy import FLAT_OPTIONS, KINDS, merge, options_to_fields
from opero.policies.types import UNSET
from policies import named
from policies.statements import COMPLETE
from policies.test_cache import COMPANIONS

DESIGN = {
    RetryPolicy: "shadow retries backoff_factor min_delay max_delay jitter retry_on retry_on_status retry_if_result "
    "retry_after reraise budget amplification idempotent share share_as url store_timeout",
    FallbackPolicy: "arg values remember order weights scope default function on",
    CachePolicy: "ttl backend key ignore app version follow_code namespace max_size stale_ttl early_refresh ttl_jitter "
    "cache_if errors error_ttl share_errors tags serializer secret allow_unsigned_pickle url cache_dir store_timeout "
    "lock_timeout arguments",
    RateLimitPolicy: "shadow rate limits burst max_wait cost cost_from_result refund_on scope share share_as url "
    "on_store_error store_timeout reserve feedback max_pause",
    TimeoutPolicy: "shadow total attempt idle enforce",
    CircuitBreakerPolicy: "shadow consecutive_failures failure_rate window min_calls slow_call slow_rate open_for "
    "open_for_max half_open_calls half_open_rate trip_on ignore scope share share_as url store_timeout",
    BulkheadPolicy: "shadow max_concurrent min_limit max_limit initial_limit max_wait scope share share_as url "
    "on_store_error store_timeout",
    HedgePolicy: "after max budget",
    ThrottlePolicy: "shadow ratio window trip_on scope",
    PriorityPolicy: "level",
    FailurePolicy: "transient throttled denied permanent control unknown classify responses",
    HooksPolicy: " ".join(HOOKS),
    CanaryPolicy: "share policy by",
    ParallelPolicy: "mode workers ordered progress batch batch_size on_error deadline max_memory max_failures "
    "worker_retries concurrency window executor initializer address inner_threads",
}
"""The table of design.md section 2, and what its sections 3 to 7 add to it."""

FLAT: list[tuple[str, Any, str, str]] = [
    ("retries", 5, "retry", "retries"),
    ("backoff_factor", 3.0, "retry", "backoff_factor"),
    ("min_delay", 0.2, "retry", "min_delay"),
    ("max_delay", 60.0, "retry", "max_delay"),
    ("jitter", "equal", "retry", "jitter"),
    ("retry_on", (OSError,), "retry", "retry_on"),
    ("retry_on_status", (429,), "retry", "retry_on_status"),
    ("retry_if_result", named.is_none, "retry", "retry_if_result"),
    ("retry_after", False, "retry", "retry_after"),
    ("reraise", True, "retry", "reraise"),
    ("budget", 0.1, "retry", "budget"),
    ("amplification", "allow", "retry", "amplification"),
    ("idempotent", False, "retry", "idempotent"),
    ("arg_fallback", "key", "fallback", "arg"),
    ("attempt_timeout", 1.0, "timeout", "attempt"),
    ("cache_ttl", 60.0, "cache", "ttl"),
    ("cache_backend", "dogpile.cache.null", "cache", "backend"),
    ("cache_key", named.cost, "cache", "key"),
    ("cache_ignore", ("session",), "cache", "ignore"),
    ("cache_app", "shop", "cache", "app"),
    ("cache_version", "2", "cache", "version"),
    ("cache_follow_code", True, "cache", "follow_code"),
    ("cache_namespace", "app", "cache", "namespace"),
    ("cache_max_size", 5, "cache", "max_size"),
    ("cache_stale_ttl", 9.0, "cache", "stale_ttl"),
    ("cache_early_refresh", 9.0, "cache", "early_refresh"),
    ("cache_ttl_jitter", 0.5, "cache", "ttl_jitter"),
    ("cache_if", named.is_none, "cache", "cache_if"),
    ("cache_errors", (Kind.PERMANENT,), "cache", "errors"),
    ("cache_error_ttl", 9.0, "cache", "error_ttl"),
    ("cache_share_errors", False, "cache", "share_errors"),
    ("cache_tags", ("users",), "cache", "tags"),
    ("cache_url", "redis://h", "cache", "url"),
    ("cache_dir", "/tmp", "cache", "cache_dir"),
    ("cache_store_timeout", 9.0, "cache", "store_timeout"),
    ("cache_lock_timeout", 9.0, "cache", "lock_timeout"),
    ("cache_serializer", "json", "cache", "serializer"),
    ("cache_secret", "x", "cache", "secret"),
    ("cache_allow_unsigned_pickle", True, "cache", "allow_unsigned_pickle"),
    ("cache_arguments", {"a": 1}, "cache", "arguments"),
    ("mode", "thread", "parallel", "mode"),
    ("workers", 4, "parallel", "workers"),
    ("ordered", False, "parallel", "ordered"),
    ("progress", True, "parallel", "progress"),
    ("batch", True, "parallel", "batch"),
    ("batch_size", 4, "parallel", "batch_size"),
    ("on_error", "skip", "parallel", "on_error"),
    ("deadline", 9.0, "parallel", "deadline"),
    ("max_memory", 1024, "parallel", "max_memory"),
    ("max_failures", 3, "parallel", "max_failures"),
    ("worker_retries", 0, "parallel", "worker_retries"),
    ("concurrency", 10, "parallel", "concurrency"),
    ("window", 10, "parallel", "window"),
    ("executor", named.an_hour, "parallel", "executor"),
    ("initializer", named.an_hour, "parallel", "initializer"),
    ("address", "host:1", "parallel", "address"),
    ("inner_threads", 2, "parallel", "inner_threads"),
    *((hook, (named.hears,), "hooks", hook) for hook in HOOKS),
]


@pytest.mark.parametrize("model", DESIGN, ids=lambda model: model.__name__)
def test_a_policy_has_the_fields_of_the_design(model: type[Any]) -> None:
    assert set(model.model_fields) == {"enabled", *DESIGN[model].split()}


def test_a_policy_has_one_field_for_each_kind() -> None:
    assert set(Policy.model_fields) == {model.kind for model in DESIGN}
    assert {kind: KINDS[kind] for kind in Policy.model_fields} == KINDS


@pytest.mark.parametrize(("option", "value", "kind", "field"), FLAT)
def test_a_flat_option_sets_its_field(option: str, value: Any, kind: str, field: str) -> None:
    companions = COMPANIONS.get(field, {}) if kind == "cache" else {}
    held = getattr(Policy.from_options(**{kind: companions, option: value} if companions else {option: value}), kind)
    got = getattr(held, field)
    assert (got.get_secret_value() if field in ("secret", "url") else got) == value
    assert held == KINDS[kind](**{field: value, **companions})
    assert got != KINDS[kind].model_fields[field].default


def test_every_flat_option_is_tested() -> None:
    assert {option: (kind, field) for option, _, kind, field in FLAT} == FLAT_OPTIONS


def written_constructor(model: type[Any]) -> tuple[dict[str, str], dict[str, ast.expr]]:
    """The annotations and defaults of the constructor that type checkers read; at run time it is pydantic's."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(model)))
    [written] = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    keywords = list(zip(written.args.kwonlyargs, written.args.kw_defaults, strict=True))
    annotations = {each.arg: ast.unparse(each.annotation) for each, _ in keywords if each.annotation is not None}
    return annotations, {each.arg: default for each, default in keywords if default is not None}


def value_of(default: ast.expr) -> Any:
    return eval(ast.unparse(default), {"UNSET": UNSET, "Kind": Kind})


@pytest.mark.parametrize("model", [Policy, *KINDS.values()], ids=lambda model: model.__name__)
def test_the_written_constructor_takes_exactly_the_fields_with_their_defaults(model: type[Any]) -> None:
    annotations, defaults = written_constructor(model)
    assert sorted(annotations) == sorted(model.model_fields)
    for name, field in model.model_fields.items():
        assert field.is_required() == (name not in defaults)
        if name in defaults:
            assert field.default == value_of(defaults[name])


def test_the_typed_options_are_all_there_are_and_of_the_types_of_the_constructors() -> None:
    options = {name: each.__forward_arg__ for name, each in Options.__annotations__.items()}
    written = {kind: written_constructor(model)[0] for kind, model in KINDS.items()}
    flat = {option: written[kind][field] for option, (kind, field) in FLAT_OPTIONS.items()}
    assert options == flat | written_constructor(Policy)[0]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_schema_has_exactly_the_fields_with_their_defaults(kind: str) -> None:
    model, properties = KINDS[kind], json_schema()["$defs"][KINDS[kind].__name__]["properties"]
    assert sorted(properties) == sorted(model.model_fields)
    assert all(each["description"] for each in properties.values())
    defaults = {name: each["default"] for name, each in properties.items() if "default" in each}
    unset = {name for name, field in model.model_fields.items() if field.is_required() or field.default is UNSET}
    assert defaults.keys() == model.model_fields.keys() - unset
    needed = {name: COMPLETE[kind][name] for name in COMPLETE[kind] if name in unset or kind == "timeout"}
    assert model.model_validate({**defaults, **needed}) == model.model_validate(needed)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("retris", "did you mean 'retries'"),
        ("Retries", "did you mean 'retries'"),
        ("timout", "did you mean 'timeout'"),
        ("ttl", "unknown option 'ttl'"),
        ("cach_ttl", "did you mean 'cache_ttl'"),
        ("worker", "did you mean 'workers'"),
        ("enabled", "unknown option 'enabled'"),
    ],
)
def test_an_unknown_option_is_rejected_with_the_nearest(option: str, told: str) -> None:
    for make in (Policy.from_options, Policy(retry=1).replace, opero.opero, opero.opmap):
        with pytest.raises(UnknownOptionError, match=told):
            typing.cast("Any", make)(**{option: 1})


def test_a_whole_policy_and_its_flat_options_go_together() -> None:
    policy = Policy.from_options(cache=True, cache_ttl="5m", cache_max_size=3)
    assert policy == Policy(cache=CachePolicy(ttl=300, max_size=3))
    assert Policy.from_options(cache_ttl=5, cache=CachePolicy(max_size=3)) == Policy(
        cache=CachePolicy(ttl=5, max_size=3)
    )
    assert Policy.from_options(timeout=10, attempt_timeout=2) == Policy(timeout=TimeoutPolicy(total=10, attempt=2))
    assert Policy.from_options(retry=RetryPolicy(jitter=False), retries=2) == Policy(
        retry=RetryPolicy(retries=2, jitter=False)
    )


def test_a_flat_option_beats_a_whole_policy_whichever_comes_first() -> None:
    for options in ({"retry": 5, "retries": 2}, {"retries": 2, "retry": 5}):
        assert Policy.from_options(**typing.cast("Options", options)).retry == RetryPolicy(retries=2)


def test_false_switches_off_and_none_removes() -> None:
    profile = Policy(cache=CachePolicy(ttl=5), retry=RetryPolicy(retries=1))
    off = profile.replace(cache=False)
    assert off.cache == CachePolicy(ttl=5, enabled=False)
    assert off.active("cache") is None
    assert off.replace(cache=True).active("cache") == CachePolicy(ttl=5)
    assert profile.replace(cache=None) == Policy(retry=RetryPolicy(retries=1))
    assert Policy(retry=1).replace(cache=None).cache is None


def test_replace_changes_one_option_and_keeps_the_rest() -> None:
    policy = Policy(retry=RetryPolicy(retries=1, jitter=False), cache="5m")
    assert policy.replace(retries=2) == Policy(retry=RetryPolicy(retries=2, jitter=False), cache="5m")
    assert policy.replace(rate_limit="5/s").rate_limit == RateLimitPolicy(rate=5)
    with pytest.raises(ValueError, match="retries"):
        policy.replace(retries=-1)
    with pytest.raises(ValueError, match=r"min_delay .1m. is greater than max_delay"):
        policy.replace(min_delay="1m")
    assert policy == Policy(retry=RetryPolicy(retries=1, jitter=False), cache="5m")


def test_merging_changes_only_the_named_fields() -> None:
    lower = Policy(retry=RetryPolicy(retries=5, jitter=False)).fields()
    assert merge(lower, {"retry": {"retries": 2}}) == {"retry": {"retries": 2, "jitter": "none"}}
    assert merge(lower, {"retry": 2}) == {"retry": {"retries": 2, "jitter": "none"}}
    assert merge(lower, {"retry": None}) == {"retry": None}
    assert merge({"rate_limit": "5/s"}, {"rate_limit": {"burst": 2}}) == {"rate_limit": {"rate": "5/s", "burst": 2}}
    assert merge(lower, {"retry": False}) == {"retry": {"retries": 5, "jitter": "none", "enabled": False}}


def test_a_policy_object_replaces_and_its_flat_options_lie_over_it() -> None:
    profile = Policy(retry=RetryPolicy(retries=5, jitter=False), timeout="1m")
    assert profile.replace(retry=RetryPolicy(max_delay=9)).retry == RetryPolicy(max_delay=9)
    assert profile.replace(retry=RetryPolicy(max_delay=9), retries=2).retry == RetryPolicy(max_delay=9, retries=2)
    assert profile.replace(retry={"max_delay": 9}).retry == RetryPolicy(retries=5, jitter=False, max_delay=9)
    assert profile.replace(timeout=None, attempt_timeout=2).timeout == TimeoutPolicy(attempt=2)
    assert profile.replace(timeout=None, attempt_timeout=None).timeout is None


def test_a_policy_that_is_off_stays_off_when_values_are_merged_in() -> None:
    off = Policy(cache=False)
    assert off == Policy()
    assert off.replace(cache="5m").cache == CachePolicy(ttl=300, enabled=False)
    assert pickle.loads(pickle.dumps(off)).replace(cache="5m").active("cache") is None
    assert off.replace(cache=True).cache == CachePolicy()


def test_merging_leaves_its_arguments_alone() -> None:
    lower, upper = {"retry": {"retries": 1}}, {"retry": {"jitter": False}, "cache": {"ttl": 3}}
    merge(lower, upper)["cache"]["ttl"] = 9
    assert (lower, upper) == ({"retry": {"retries": 1}}, {"retry": {"jitter": False}, "cache": {"ttl": 3}})


def test_fields_are_checked_on_their_own_before_there_is_a_profile() -> None:
    Policy.check_fields({"rate_limit": {"burst": 3}})  # the rate may come from the profile
    Policy.check_fields({"retry": {"min_delay": "1m"}})  # and so may a greater max_delay
    for fields in ({"retry": {"retries": -1}}, {"rate_limit": {"burst": 0}}, {"cache": {"tl": 3}}):
        with pytest.raises(ConfigError, match=r"^(retry\.retries|rate_limit\.burst|cache\.tl): "):
            Policy.check_fields(fields)


def test_options_that_are_no_policy_are_rejected_with_the_field() -> None:
    with pytest.raises(ValueError, match="timeout"):
        Policy.model_validate({"timeout": [1]})
    with pytest.raises(ValueError, match="unknown field 'retries' of Policy"):
        Policy.model_validate({"retries": 3})
    with pytest.raises(ValueError, match="FallbackPolicy has no short form"):
        options_to_fields({"fallback": "key"})


def test_all_wrong_fields_are_reported_at_once() -> None:
    with pytest.raises(ValueError, match="validation error") as caught:
        Policy.model_validate(
            {"retry": {"retries": -1, "jitter": "x"}, "cache": {"tl": 1, "maxsize": 2}, "bulkhead": 0}
        )
    told = str(caught.value)
    assert "5 validation errors" in told
    for place in ("retry.retries", "retry.jitter", "cache.tl", "cache.maxsize", "bulkhead.max_concurrent"):
        assert place in told


def test_it_is_a_value() -> None:
    one = Policy(retry=5, rate_limit="50/s", fallback=FallbackPolicy(default=[1]))
    other = Policy(fallback={"default": [1]}, rate_limit={"rate": 50}, retry={"retries": 5}, cache=None)
    assert one == other
    assert hash(one) == hash(other)
    assert {one: 1}[other] == 1
    assert pickle.loads(pickle.dumps(one)) == one
    assert one != Policy(retry=5)
    assert one != "Policy"
    with pytest.raises(ValueError, match="frozen"):
        one.retry = None  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        del one.retry


def test_its_repr_is_short() -> None:
    assert repr(Policy()) == "Policy()"
    assert (
        repr(Policy(retry=5, timeout="5s")) == "Policy(retry=RetryPolicy(retries=5), timeout=TimeoutPolicy(total=5.0))"
    )


@pytest.mark.filterwarnings("ignore::pydantic.json_schema.PydanticJsonSchemaWarning")  # a class as a default
def test_the_json_schema_can_be_made() -> None:
    schema = Policy.model_json_schema()
    assert set(schema["properties"]) == set(KINDS)
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["ParallelPolicy"]["properties"]["mode"]["enum"][0] == "auto"
