"""Environment variables: two forms, what they may hold, and what is wrong with the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from opero.config.fields import OPTIONS
from opero.policies import (
    BulkheadPolicy,
    CachePolicy,
    FallbackPolicy,
    ParallelPolicy,
    Policy,
    RateLimitPolicy,
    RetryPolicy,
    TimeoutPolicy,
)
from opero.policies.policy import FLAT_OPTIONS, KINDS

if TYPE_CHECKING:
    from config.conftest import Policies


def api(policies: Policies, text: str = "", **environ: str) -> Policy:
    """The profile `api` of a base file, under some variables."""
    policies.write(base=f"policies: {{api: {{{text}}}}}")
    return policies.load(**environ).policies["api"]


FLAT = {
    "OPERO_API_RETRIES": ("8", Policy(retry=RetryPolicy(retries=8))),
    "OPERO_API_BACKOFF": ("2.5", Policy(retry=RetryPolicy(backoff_factor=2.5))),
    "OPERO_API_BACKOFF_FACTOR": ("2.5", Policy(retry=RetryPolicy(backoff_factor=2.5))),
    "OPERO_API_JITTER": ("false", Policy(retry=RetryPolicy(jitter="none"))),
    "OPERO_POLICIES__API__RETRY__JITTER": ("equal", Policy(retry=RetryPolicy(jitter="equal"))),
    "OPERO_API_RETRY": ("8", Policy(retry=RetryPolicy(retries=8))),
    "OPERO_API_RETRY_ON": (
        "ConnectionError, TimeoutError",
        Policy(retry=RetryPolicy(retry_on=(ConnectionError, TimeoutError))),
    ),
    "OPERO_API_RETRY_ON_STATUS": ('[429, "5xx"]', Policy(retry=RetryPolicy(retry_on_status=(429, "5xx")))),
    "OPERO_API_CACHE": ("30m", Policy(cache=CachePolicy(ttl=1800))),
    "OPERO_API_CACHE_TTL": ("1800", Policy(cache=CachePolicy(ttl=1800))),
    "OPERO_API_CACHE_BACKEND": ("dogpile.cache.memory", Policy(cache=CachePolicy(backend="dogpile.cache.memory"))),
    "OPERO_API_CACHE_ERRORS": ("true", Policy(cache=CachePolicy(errors=True))),
    "OPERO_POLICIES__API__CACHE": (
        '{"backend": "redis", "ttl": null, "arguments": {"db": 3}}',
        Policy(cache=CachePolicy(backend="redis", ttl=None, arguments={"db": 3})),
    ),
    "OPERO_API_RATE_LIMIT": ("50/s", Policy(rate_limit=RateLimitPolicy(rate=50))),
    "OPERO_API_TIMEOUT": ("300.0", Policy(timeout=TimeoutPolicy(total=300))),
    "OPERO_API_ATTEMPT_TIMEOUT": ("5s", Policy(timeout=TimeoutPolicy(attempt=5))),
    "OPERO_API_BULKHEAD": (
        '{"max_concurrent": 5, "max_wait": null}',
        Policy(bulkhead=BulkheadPolicy(max_concurrent=5, max_wait=None)),
    ),
    "OPERO_API_ARG_FALLBACK": ("key", Policy(fallback=FallbackPolicy(arg="key"))),
    "OPERO_API_MODE": ("process", Policy(parallel=ParallelPolicy(mode="process"))),
    "OPERO_API_WORKERS": ("7", Policy(parallel=ParallelPolicy(workers=7))),
    "OPERO_API_ORDERED": ("False", Policy(parallel=ParallelPolicy(ordered=False))),
    "OPERO_API_PROGRESS": ("false", Policy(parallel=ParallelPolicy(progress=False))),
    "OPERO_API_BATCH": ("true", Policy(parallel=ParallelPolicy(batch=True))),
    "OPERO_POLICIES__API__RETRY__RETRIES": ("8", Policy(retry=RetryPolicy(retries=8))),
    "OPERO_POLICIES__API__RATE_LIMIT": ("8", Policy(rate_limit=RateLimitPolicy(rate=8))),
    "OPERO_POLICIES__API__FALLBACK__DEFAULT": ("[1]", Policy(fallback=FallbackPolicy(default=[1]))),
    "OPERO_DEFAULTS__RETRY__JITTER": ("none", Policy(retry=RetryPolicy(jitter="none"))),
    "OPERO_DEFAULTS__RETRY__RETRIES": ("8", Policy(retry=RetryPolicy(retries=8))),
}


@pytest.mark.parametrize(("name", "value", "policy"), [(name, *rest) for name, rest in FLAT.items()])
def test_a_variable_sets_its_option_in_either_case(policies: Policies, name: str, value: str, policy: Policy) -> None:
    assert api(policies, **{name: value}) == policy
    assert api(policies, **{name.lower(): value}) == policy


@pytest.mark.parametrize("option", sorted({*FLAT_OPTIONS, *KINDS, "backoff"}))
def test_every_flat_option_and_every_policy_has_a_variable(policies: Policies, option: str) -> None:
    assert option in OPTIONS
    policies.write(base="policies: {api: }")
    for line in policies.problems(**{f"OPERO_API_{option.upper()}": ""}):
        assert line.startswith(f"OPERO_API_{option.upper()}: is empty; unset it")


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind, model in KINDS.items() for field in model.model_fields]
)
def test_every_field_has_a_nested_variable(policies: Policies, kind: str, field: str) -> None:
    policies.write(base="policies: {api: }")
    for root in ("POLICIES__API", "DEFAULTS"):
        name = f"OPERO_{root}__{kind}__{field}".upper()
        empty = " " if field not in ("secret", "url") else ""
        assert policies.error(**{name: empty}).startswith(f"{name}: is empty; unset it")


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind, model in KINDS.items() for field in model.model_fields]
)
def test_every_field_has_a_flat_variable(policies: Policies, kind: str, field: str) -> None:
    policies.write(base="policies: {api: }")
    name = f"OPERO_API_{kind}_{field}".upper()
    empty = " " if field not in ("secret", "url") else ""
    assert policies.error(**{name: empty}).startswith(f"{name}: is empty; unset it")


def test_flat_variables_of_fields_take_the_values_that_files_take(policies: Policies) -> None:
    found = api(
        policies,
        "circuit_breaker: {failure_rate: 0.1}, parallel: thread",
        OPERO_API_CIRCUIT_BREAKER_OPEN_FOR="PT10S",
        OPERO_API_CIRCUIT_BREAKER_FAILURE_RATE="50%",
        OPERO_API_CIRCUIT_BREAKER_WINDOW="10 seconds",
        OPERO_API_PARALLEL_MAX_MEMORY="2GiB",
        OPERO_API_RATE_LIMIT_RATE="5/s",
        OPERO_API_RATE_LIMIT_BURST="3",
    )
    assert found.circuit_breaker is not None
    assert found.parallel is not None
    breaker = found.circuit_breaker
    assert (breaker.open_for, breaker.failure_rate, breaker.window) == (10.0, 0.5, 10.0)
    assert (found.parallel.max_memory, found.rate_limit) == (2**31, RateLimitPolicy(rate=5, burst=3))


def test_a_variable_keeps_the_other_fields_of_the_file(policies: Policies) -> None:
    found = api(
        policies,
        "rate_limit: {rate: 5, burst: 3}, cache: {max_size: 2}",
        OPERO_API_RATE_LIMIT="10",
        OPERO_API_CACHE_TTL="5",
    )
    assert found == Policy(rate_limit=RateLimitPolicy(rate=10, burst=3), cache=CachePolicy(ttl=5, max_size=2))


def test_true_false_and_null_switch_a_policy(policies: Policies) -> None:
    assert api(policies, "cache: 5", OPERO_API_CACHE="false").cache == CachePolicy(ttl=5, enabled=False)
    assert api(policies, "cache: {ttl: 5, enabled: false}", OPERO_API_CACHE="on").cache == CachePolicy(ttl=5)
    assert api(policies, OPERO_API_CACHE="true").cache == CachePolicy()
    assert api(policies, OPERO_API_CACHE="no", OPERO_API_TIMEOUT="False") == Policy()
    for word in ("null", "None"):
        assert api(policies, "cache: 5", OPERO_API_CACHE=word) == Policy()
    found = api(policies, "rate_limit: 5", OPERO_POLICIES__API__RATE_LIMIT__ENABLED="off")
    assert found.rate_limit == RateLimitPolicy(rate=5, enabled=False)


def test_null_means_no_value_where_a_field_admits_that(policies: Policies) -> None:
    assert api(policies, "cache: 5", OPERO_API_CACHE_TTL="none").cache == CachePolicy(ttl=None)
    found = api(policies, "timeout: {total: 9, attempt: 5}", OPERO_POLICIES__API__TIMEOUT__TOTAL="null")
    assert found.timeout == TimeoutPolicy(attempt=5)
    policies.write(base="policies: {api: {retry: 5}}")
    assert policies.error(OPERO_API_RETRIES="none").startswith(
        "OPERO_API_RETRIES: policies.api.retry.retries: 'none' is invalid"
    )


def test_several_variables_of_one_policy_join(policies: Policies) -> None:
    found = api(
        policies,
        "cache: false",
        OPERO_API_CACHE="true",
        OPERO_API_CACHE_TTL="5",
        OPERO_POLICIES__API__CACHE__MAX_SIZE="2",
    )
    assert found.cache == CachePolicy(ttl=5, max_size=2)


@pytest.mark.parametrize("name", ["geo-api.v2", "Geo_API_V2", "geo api v2"])
def test_a_profile_of_any_spelling_has_variables(policies: Policies, name: str) -> None:
    policies.write(base=f"policies: {{'{name}': {{retry: 1}}, api: {{extends: '{name}'}}}}")
    for variable in ("OPERO_GEO_API_V2_RETRIES", "OPERO_POLICIES__GEO_API_V2__RETRY__RETRIES"):
        loaded = policies.load(**{variable: "8"})
        assert loaded.policies[name].retry == RetryPolicy(retries=8)
        assert loaded.policies["api"].retry == RetryPolicy(retries=8)
        assert str(loaded.leaves("api")["retry.retries"].source) == variable


def test_the_longest_option_is_meant_where_only_it_fits_a_profile(policies: Policies) -> None:
    assert api(policies, OPERO_API_ATTEMPT_TIMEOUT="5").timeout == TimeoutPolicy(attempt=5)


def test_an_ambiguous_variable_is_reported_with_unambiguous_names(policies: Policies) -> None:
    policies.write(base="policies: {api: , api_attempt: }")
    assert policies.error(OPERO_API_ATTEMPT_TIMEOUT="5") == (
        "OPERO_API_ATTEMPT_TIMEOUT: is ambiguous, as it can mean policies.api.timeout.attempt "
        "or policies.api_attempt.timeout; "
        "use OPERO_POLICIES__API__TIMEOUT__ATTEMPT or OPERO_POLICIES__API_ATTEMPT__TIMEOUT"
    )
    loaded = policies.load(OPERO_POLICIES__API__TIMEOUT__ATTEMPT="5", OPERO_POLICIES__API_ATTEMPT__TIMEOUT="6")
    assert loaded.policies == {
        "api": Policy(timeout=TimeoutPolicy(attempt=5)),
        "api_attempt": Policy(timeout=TimeoutPolicy(total=6)),
    }


def test_profiles_that_variables_cannot_tell_apart_need_other_names(policies: Policies) -> None:
    policies.write(base="policies: {my-api: , my_api: }")
    assert policies.error(OPERO_MY_API_RETRIES="5") == (
        "OPERO_MY_API_RETRIES: is ambiguous, as it can mean policies.my-api.retry.retries "
        "or policies.my_api.retry.retries; "
        "rename one of the profiles, whose names do not differ in letters and digits"
    )


def test_a_variable_may_change_extends(policies: Policies) -> None:
    policies.write(base="policies: {a: {retry: 1}, b: {retry: 2}, c: {extends: a}}")
    assert policies.load(OPERO_POLICIES__C__EXTENDS="b").policies["c"].retry == RetryPolicy(retries=2)
    assert policies.load(OPERO_POLICIES__C__EXTENDS="null").policies["c"] == Policy()
    assert policies.error(OPERO_POLICIES__C__EXTENDS="aa") == (
        "OPERO_POLICIES__C__EXTENDS: policies.c extends 'aa', which does not exist; did you mean 'a'?"
    )


def test_reserved_variables_set_nothing(policies: Policies) -> None:
    found = api(
        policies,
        OPERO_CACHE_REDIS_URL="redis://x",
        OPERO_CACHE_DIR="x",
        OPERO_CACHE_SECRET="x",
        OPERO_TEST_ANYTHING="1",
        OPERO_CONFIG="x",
        OPERO_ENABLED="1",
    )
    assert found == Policy()


def test_a_profile_called_test_has_variables_too(policies: Policies) -> None:
    policies.write(base="policies: {test: }")
    loaded = policies.load(OPERO_TEST_RETRIES="5")
    assert loaded.policies["test"].retry == RetryPolicy(retries=5)


@pytest.mark.parametrize("profile", ["test", "Test-api"])
def test_beside_a_profile_called_test_any_such_variable_must_name_an_option(policies: Policies, profile: str) -> None:
    policies.write(base=f"policies: {{{profile}: }}")
    name = f"OPERO_{profile.upper().replace('-', '_')}_RETRIES"
    assert policies.error(**{f"{name}S": "9"}).endswith(f"did you mean {name}?")
    policies.write(base="policies: {tests: , latest: }")
    policies.load(**{f"{name}S": "9"})


@pytest.mark.parametrize("profile", ["größe", "kapı", "ΑΣ", "σας", "naïve-ﬁt"])
def test_a_profile_s_name_may_hold_any_letter(policies: Policies, profile: str) -> None:
    policies.write(base=f"policies: {{{profile}: }}")
    upper = profile.upper().replace("-", "_")
    for name in (
        f"OPERO_{upper}_RETRIES",
        f"opero_{upper.lower()}_retries",
        f"OPERO_POLICIES__{upper}__RETRY__RETRIES",
    ):
        assert policies.load(**{name: "5"}).policies[profile].retry == RetryPolicy(retries=5)
    assert policies.error(**{f"OPERO_{upper}_RETRIESS": "5"}).endswith("_RETRIES?")


def test_opero_enabled_is_true_unless_it_says_otherwise(policies: Policies) -> None:
    policies.write(base="policies: {}")
    assert policies.load().enabled is True
    for word in ("false", "0", "Off", "no"):
        assert policies.load(OPERO_ENABLED=word).enabled is False
    assert policies.load(opero_enabled="yes").enabled is True
    assert policies.error(OPERO_ENABLED="maybe") == "OPERO_ENABLED: 'maybe' is invalid: use true or false"


def test_variables_of_others_do_not_matter(policies: Policies) -> None:
    assert api(policies, OPERA_API_RETRIES="x", PATH="x", operon_x="y") == Policy()


UNKNOWN = {
    "OPERO_API_RETRIS": "the profile 'api' has no option 'retris'; did you mean OPERO_API_RETRIES?",
    "OPERO_API_BURST": "the profile 'api' has no option 'burst'; use OPERO_API_RATE_LIMIT_BURST",
    "OPERO_API_CIRCUIT_BREAKR_OPEN_FOR": (
        "the profile 'api' has no option 'circuit_breakr_open_for'; did you mean OPERO_API_CIRCUIT_BREAKER_OPEN_FOR?"
    ),
    "OPERO_API_MAX_RETRIES": "the profile 'api' has no option 'max_retries'; did you mean OPERO_API_RETRIES?",
    "OPERO_APY_RETRYS": "names no profile; did you mean OPERO_API_RETRY?",
    "OPERO_BILLING_RETRIES": "there is no profile 'billing'; known profiles: api, db",
    "OPERO_ENVIRONMENT": "names no profile; did you mean OPERO_ENV?",
    "OPERO_POLICY__API__RETRY__RETRIES": "'policy' is unknown; did you mean OPERO_POLICIES__…?",
    "OPERO_API__RETRY__RETRIES": "'api' is unknown; use OPERO_POLICIES__API__RETRY__RETRIES",
    "OPERO_APY_RETRIES": "there is no profile 'apy'; did you mean OPERO_API_RETRIES?",
    "OPERO_ENABLE": "names no profile; did you mean OPERO_ENABLED?",
    "OPERO_POLICIES__APY__RETRY": "there is no profile 'apy'; did you mean 'api'?",
    "OPERO_POLICIES__API": (
        "names the profile 'api' but none of its policies; use OPERO_POLICIES__API__RETRY, or another policy"
    ),
    "OPERO_POLICIES__API__": (
        "names the profile 'api' but none of its policies; use OPERO_POLICIES__API__RETRY, or another policy"
    ),
    "OPERO_DEFAULTS__": "names no policy; use OPERO_DEFAULTS__RETRY, or another policy",
    "OPERO_POLICIES__API__RETYR__RETRIES": "there is no policy 'retyr'; did you mean 'retry'?",
    "OPERO_POLICIES__API__RETRY__RETRIS": "retry has no field 'retris'; did you mean 'retries'?",
    "OPERO_DEFAULTS__RETRI": "there is no policy 'retri'; did you mean 'retry'?",
    "OPERO_DEFAULTS__EXTENDS": "there is no policy 'extends'; known:",
}


@pytest.mark.parametrize(("name", "said"), UNKNOWN.items(), ids=UNKNOWN)
def test_an_unknown_variable_is_an_error_with_the_nearest_name(policies: Policies, name: str, said: str) -> None:
    policies.write(base="policies: {api: , db: }")
    assert policies.error(**{name: "hunter2"}).startswith(f"{name}: {said}")
    assert "hunter2" not in policies.error(**{name: "hunter2"})


def test_a_variable_without_any_profile_is_reported_as_such(policies: Policies) -> None:
    policies.write(base="policies: {}")
    assert policies.error(OPERO_API_RETRIES="5") == (
        "OPERO_API_RETRIES: there is no profile 'api'; no file defines a profile"
    )


BAD_VALUES = {
    "empty whole": (
        {"OPERO_API_CACHE": ""},
        "OPERO_API_CACHE: is empty; unset it, or use null to remove the policy",
    ),
    "empty field": ({"OPERO_API_RETRIES": " "}, "OPERO_API_RETRIES: is empty; unset it"),
    "no number": (
        {"OPERO_API_RETRIES": "x"},
        "OPERO_API_RETRIES: policies.api.retry.retries: 'x' is invalid: use an integer >= 0",
    ),
    "no exception": (
        {"OPERO_API_RETRY_ON": "ValueError,Nope"},
        "OPERO_API_RETRY_ON: policies.api.retry.retry_on: 'Nope' is neither",
    ),
    "no list": ({"OPERO_API_RETRY_ON": "[ValueError"}, "OPERO_API_RETRY_ON: is not valid JSON: Expecting value"),
    "no mapping": ({"OPERO_API_CACHE": "{ttl: 5}"}, "OPERO_API_CACHE: is not valid JSON: Expecting property name"),
    "a key of JSON twice": (
        {"OPERO_API_RETRY": '{"retries": 4, "retries": 5}'},
        "OPERO_API_RETRY: duplicate key 'retries' in a mapping; keep one of them",
    ),
    "a key of free JSON twice": (
        {"OPERO_POLICIES__API__FALLBACK__DEFAULT": '[{"a": 4, "a": 5}]'},
        "OPERO_POLICIES__API__FALLBACK__DEFAULT: duplicate key 'a' in a mapping; keep one of them",
    ),
    "a key of a ttl's JSON twice": (
        {"OPERO_API_CACHE_TTL": '{"hot": "2h", "hot": "3h"}'},
        "OPERO_API_CACHE_TTL: policies.api.cache.ttl: duplicate key 'hot' in a mapping; keep one of them",
    ),
    "unknown field": (
        {"OPERO_API_CACHE": '{"tttl": 5}'},
        "OPERO_API_CACHE: unknown key 'tttl' in policies.api.cache; did you",
    ),
    "set twice": (
        {"OPERO_API_RETRIES": "1", "OPERO_POLICIES__API__RETRY__RETRIES": "2"},
        "OPERO_POLICIES__API__RETRY__RETRIES: sets policies.api.retry.retries, and so does OPERO_API_RETRIES",
    ),
    "removed and set": (
        {"OPERO_API_CACHE": "null", "OPERO_API_CACHE_TTL": "2"},
        "OPERO_API_CACHE_TTL: conflicts with OPERO_API_CACHE, which also removes or sets policies.api.cache",
    ),
    "both cases": (
        {"OPERO_API_RETRIES": "1", "opero_api_retries": "2"},
        "opero_api_retries: is also set as OPERO_API_RETRIES, and names are case-insensitive; unset one of them",
    ),
    "missing field": (
        {"OPERO_POLICIES__API__RATE_LIMIT__BURST": "2"},
        "OPERO_POLICIES__API__RATE_LIMIT__BURST: policies.api.rate_limit: missing field 'rate'",
    ),
    "wrong default": (
        {"OPERO_DEFAULTS__RETRY": "x"},
        "OPERO_DEFAULTS__RETRY: defaults.retry.retries: 'x' is invalid",
    ),
}


@pytest.mark.parametrize(("environ", "said"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_bad_value_is_reported_with_its_variable(policies: Policies, environ: dict[str, str], said: str) -> None:
    policies.write(base="policies: {api: }")
    message = policies.error(**environ)
    assert message.startswith(said)
    assert len(message.splitlines()) == 1
