"""Values as they come out of files and variables: YAML's surprises, and what contradicts itself within a profile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from opero import CachePolicy, Policy, RateLimitPolicy, RetryPolicy
from opero.config.settings import load

if TYPE_CHECKING:
    from config.conftest import Policies

READ: dict[str, tuple[str, str, str, Any]] = {
    "yes for a flag": ("retry: {reraise: yes}", "retry", "reraise", True),
    "off for a flag": ("retry: {retry_after: off}", "retry", "retry_after", False),
    "quoted no for a flag": ("retry: {retry_after: 'no'}", "retry", "retry_after", False),
    "n for a flag": ("retry: {retry_after: n}", "retry", "retry_after", False),
    "a jitter": ("retry: {jitter: equal}", "retry", "jitter", "equal"),
    "a flag for a jitter": ("retry: {jitter: yes}", "retry", "jitter", "full"),
    "none for a jitter": ("retry: {jitter: none}", "retry", "jitter", "none"),
    "off for a jitter": ("retry: {jitter: off}", "retry", "jitter", "none"),
    "a power of ten, which YAML 1.1 reads as text": ("cache: {max_size: 1e3}", "cache", "max_size", 1000),
    "a power of ten for a duration": ("cache: {ttl: 1e3}", "cache", "ttl", 1000.0),
    "a negative power of ten": ("cache: {ttl: 1, ttl_jitter: 1e-1}", "cache", "ttl_jitter", 0.1),
    "underscores, which YAML 1.1 allows": ("cache: {max_size: 1_000}", "cache", "max_size", 1000),
    "a hexadecimal number": ("cache: {max_size: 0x10}", "cache", "max_size", 16),
    "a fraction of zero": ("retry: {retries: 3.0}", "retry", "retries", 3),
    "a tilde where there may be no value": ("cache: {ttl: ~}", "cache", "ttl", None),
    "quoted numbers": ("retry: {retries: '5', min_delay: '0.5'}", "retry", "min_delay", 0.5),
    "a statement of text": ("cache:\n      ttl: |\n        30m\n", "cache", "ttl", 1800.0),
}


@pytest.mark.parametrize(("text", "kind", "field", "held"), READ.values(), ids=READ)
def test_it_is_parsed_as_expected(policies: Policies, text: str, kind: str, field: str, held: Any) -> None:
    policies.write(base=f"policies:\n  api:\n    {text}\n")
    value = getattr(getattr(policies.load().policies["api"], kind), field)
    assert value == held
    assert type(value) is type(held)


REFUSED: dict[str, tuple[str, str]] = {
    "on for a choice": (
        "parallel: {mode: on}",
        "'async_process', 'dask', 'ray'; YAML reads yes and on as true, no and off as false",
    ),
    "no for a count": ("retry: {retries: no}", "retry.retries: False is not a number (YAML reads yes and on"),
    "yes for a share": ("circuit_breaker: {failure_rate: yes}", "failure_rate: True is not a number"),
    "a number for a flag": ("retry: {reraise: 0}", "retry.reraise: 0 is not a boolean: use true or false"),
    "a number for a switch": ("retry: {enabled: 0}", "retry.enabled: 0 is not a boolean: use true or false"),
    "a time to the base 60": ("cache: {ttl: 10:30}", "as a base-60 number; quote it, or use units"),
    "a time in quotes": ("cache: {ttl: '10:30'}", "cache.ttl: '10:30' is not a duration: use seconds"),
    "an octal number": (
        "retry: {retries: 012}",
        "reads 012 as an octal number; quote it, or remove the leading 0",
    ),
    "a date for a duration": (
        "cache: {ttl: 2024-01-01}",
        "ttl: the date 2024-01-01 is not a duration: use seconds",
    ),
    "a date for a count": ("retry: {retries: 2024-01-01}", "retries: the date 2024-01-01 is not an integer: use"),
    "a date for text": (
        "cache: {namespace: 2024-01-01}",
        'cache.namespace: the date 2024-01-01 should be a valid string; quote it: "2024-01-01"',
    ),
    "a number for text": ("cache: {namespace: 5}", 'cache.namespace: 5 should be a valid string; quote it: "5"'),
    "a truth for text": (
        "parallel: {address: on}",
        "address: true should be a valid string; quote it (YAML reads yes and on as true, no and off as false)",
    ),
    "infinity": ("cache: {ttl: .inf}", "cache.ttl: inf is not a duration: use seconds (30, 0.25)"),
    "infinity for a count": ("retry: {retries: .inf}", "retry.retries: inf is not an integer: use"),
    "no number": ("retry: {backoff_factor: .nan}", "retry.backoff_factor: nan is invalid: use a number >= 1"),
    "a tilde where there must be a value": ("retry: {retries: ~}", "retry.retries: None is not an integer: use"),
    "a power of ten for a window": (
        "circuit_breaker: {failure_rate: 0.5, window: 1e3}",
        "window: '1e3' is not a window: use a number of calls (100), or a time with a unit (\"30s\")",
    ),
    "other alphabets' digits": (
        "retry: {retries: ٣}",
        "retries: '٣' is invalid: use an integer >= 0",
    ),
    "an empty secret": ("cache: {secret: ''}", "cache.secret: the value is empty; set it, or remove it"),
}


@pytest.mark.parametrize(("text", "told"), REFUSED.values(), ids=REFUSED)
def test_it_is_rejected_with_advice(policies: Policies, text: str, told: str) -> None:
    policies.write(base=f"policies:\n  api:\n    {text}\n")
    (problem,) = policies.problems()
    assert problem.startswith("policies/base.yaml:3:")
    assert told in problem


def test_text_of_variables_spells_values_of_every_type(policies: Policies) -> None:
    policies.write(base="policies: {api: {cache: {ttl: 5}}}")
    found = policies.load(
        OPERO_API_RETRIES="5",
        OPERO_API_JITTER="0",
        OPERO_API_BACKOFF="1.5",
        OPERO_API_CACHE_TTL="null",
        OPERO_API_CACHE_MAX_SIZE="1e3",
        OPERO_API_CACHE_ERRORS="True",
        OPERO_API_RATE_LIMIT="0.5",
    ).policies["api"]
    assert found == Policy(
        retry=RetryPolicy(retries=5, jitter=False, backoff_factor=1.5),
        cache=CachePolicy(ttl=None, max_size=1000, errors=True),
        rate_limit=RateLimitPolicy(rate=0.5),
    )


def test_a_contradiction_is_reported_at_the_value_that_was_set_last(policies: Policies) -> None:
    policies.write(
        base="policies:\n  api:\n    retry: {retries: 10, jitter: false}\n    timeout: 60s\n",
        production="policies: {api: {timeout: 5s}}",
    )
    said = (
        "policies.api: 10 retries wait at least 11.3s, and timeout.total (5s) ends the call before that, so at most 8 "
        "of them are made; lower retry.retries to 8, or retry.min_delay, or raise timeout.total"
    )
    assert policies.load().policies["api"].timeout is not None
    assert policies.problems("production") == [
        f"policies/production.yaml:1:27: {said} (see also policies/base.yaml:3:22 and policies/base.yaml:3:34)"
    ]
    (problem,) = policies.problems(OPERO_API_TIMEOUT="5")
    assert problem.startswith(f"OPERO_API_TIMEOUT: {said} (see also policies/base.yaml:3:22")
    (problem,) = policies.problems("production", OPERO_API_RETRIES="11")
    assert problem.startswith("OPERO_API_RETRIES: policies.api: 11 retries wait at least 17")
    assert policies.load("production", OPERO_API_RETRIES="8").policies["api"].retry == RetryPolicy(
        retries=8, jitter=False
    )


def test_a_profile_overrides_its_parent_in_any_file(policies: Policies) -> None:
    policies.write(
        base="""
        policies:
          child: {extends: parent, timeout: 1s}
          parent: {retry: {retries: 3, min_delay: 1s}}
        defaults: {retry: {max_delay: 1s}}
        """
    )
    (problem,) = policies.problems()
    assert problem.startswith("policies/base.yaml:2:37: policies.child: 3 retries wait 1.5s on average")
    assert problem.endswith(
        "(see also policies/base.yaml:4:31 and policies/base.yaml:3:29 and policies/base.yaml:3:43)"
    )


def test_every_contradiction_of_a_profile_is_reported(policies: Policies) -> None:
    policies.write(
        base="""
        policies:
          api:
            retry: {retries: 9, min_delay: 1s}
            timeout: {total: 5s, attempt: 1s}
            rate_limit: 1/s
            circuit_breaker: {failure_rate: 0.5, window: 10s, min_calls: 20, slow_call: 2s}
        """
    )
    first, second, third = policies.problems()
    assert "retries wait" in first
    assert "rate_limit allows at most 11 calls within circuit_breaker.window (10s)" in second
    assert "slow_call (2s) is longer than timeout.attempt (1s)" in third


def test_a_cache_is_validated_after_merging(policies: Policies) -> None:
    policies.write(
        base="policies: {api: {cache: {stale_ttl: 1h, secret: hunter2}}}", production="policies: {api: {cache: 5m}}"
    )
    assert policies.load("production").policies["api"].cache is not None
    (problem,) = policies.problems()
    assert problem.startswith(
        "policies/base.yaml:1:37: policies.api.cache: stale_ttl has no effect without a ttl; set ttl"
    )


def test_a_store_that_outlives_the_process_needs_a_ttl(policies: Policies) -> None:
    policies.write(
        base="""
        defaults: {cache: {backend: disk}}
        policies:
          api: {cache: 1h}
          idle: {cache: false}
          for_ever: {cache: {ttl: null}}
          users: {cache: true}
          none: {cache: null}
        """
    )
    (problem,) = policies.problems()
    assert problem.startswith("policies/base.yaml:1:29: policies.users.cache: the store of backend 'disk' outlives the")
    loaded = policies.load(OPERO_USERS_CACHE_TTL="none").policies
    assert loaded["users"].cache == loaded["for_ever"].cache == CachePolicy(backend="disk", ttl=None)
    assert loaded["idle"].active("cache") is None
    policies.write(base="policies: {users: {cache: true}}")
    (problem,) = policies.problems(OPERO_USERS_CACHE_BACKEND="redis")
    assert problem.startswith("OPERO_USERS_CACHE_BACKEND: policies.users.cache: the store of backend 'redis' outlives")


def test_values_from_a_decorator_may_contradict_files(policies: Policies) -> None:
    from opero import Registry

    policies.write(base="policies: {api: {retry: 3, timeout: 5s}}")
    registry = Registry.load(policies.directory, environ={})
    assert registry.bind(len, "api", retries=50).policy.retry.retries == 50
    policies.write(base="policies: {api: {retry: 3, timeout: 5s}}\nfunctions: {'builtins:len': {retry: 60}}")
    registry = Registry.load(policies.directory, environ={})
    with pytest.raises(ValueError, match="60 retries wait"):
        _ = registry.bind(len, "api").policy


def test_the_reference_files_contradict_themselves_nowhere() -> None:
    from pathlib import Path

    for environment in ("development", "staging", "production"):
        assert load(Path(__file__).parents[2] / "policies", environment, {}).policies


def test_every_invalid_element_of_a_list_is_reported_at_its_place(policies: Policies) -> None:
    policies.write(
        base="""
        policies:
          a:
            retry:
              retry_on: [Conectionerror, OSError, nomod.X]
              retry_on_status: [1, 503, 2]
            circuit_breaker:
              ignore:
                - nomod.Y
                - Timeouterror
            cache: {tags: ["{", users, "}"]}
        """
    )
    assert [each.partition(": policies.")[0] for each in policies.problems()] == [
        *("policies/base.yaml:4:18", "policies/base.yaml:4:43"),
        *("policies/base.yaml:5:25", "policies/base.yaml:5:33"),
        *("policies/base.yaml:8:11", "policies/base.yaml:9:11"),
        *("policies/base.yaml:10:20", "policies/base.yaml:10:32"),
    ]


def test_every_invalid_element_of_a_list_in_a_variable_is_reported(policies: Policies) -> None:
    policies.write(base="policies: {a: }")
    said = policies.error(OPERO_A_RETRY_ON="Conectionerror, OSError, nomod.X")
    assert "'Conectionerror' is neither a builtin exception nor a kind of failure" in said
    assert "'nomod.X' cannot be imported" in said


def test_names_with_a_comma_between_them_are_to_be_a_list(policies: Policies) -> None:
    policies.write(base="policies: {a: {retry: {retry_on: 'ConnectionError, TimeoutError'}}}")
    assert policies.error().endswith(
        "'ConnectionError, TimeoutError' is not an exception class; use a list: [ConnectionError, TimeoutError]"
    )


BESIDE_A_FLAW = {
    "an unknown key": (
        "retry: {retires: 3, min_delay: 10s, max_delay: 1s}",
        ["unknown key 'retires'", "policies.a.retry: min_delay (10s) is greater than max_delay (1s)"],
    ),
    "a wrong value": (
        "retry: {retries: x, min_delay: 10s, max_delay: 1s}",
        ["'x' is invalid", "policies.a.retry: min_delay (10s) is greater than max_delay (1s)"],
    ),
    "a timeout's": ("timeout: {total: 1s, attempt: 5s, foo: 1}", ["policies.a.timeout: attempt", "unknown key 'foo'"]),
    "a wrong default's": ("fallback: {default: 1, function: 'builtins:len', arg: 3}", ["default and function", "arg"]),
    "of another policy": (
        "cache: {ttl: x}, retry: {retries: 9, min_delay: 10s}, timeout: 20s",
        ["'x' is not a duration", "9 retries wait"],
    ),
    "of another policy, an unknown key": (
        "circuit_breaker: {slow_call: 10s, foo: 1}, timeout: 5s",
        ["unknown key 'foo'", "slow_call (10s) is longer"],
    ),
}


@pytest.mark.parametrize(("text", "said"), BESIDE_A_FLAW.values(), ids=BESIDE_A_FLAW)
def test_contradictions_of_valid_values_are_reported_beside_invalid_ones(
    policies: Policies, text: str, said: list[str]
) -> None:
    policies.write(base=f"policies: {{a: {{{text}}}}}")
    problems = policies.problems()
    assert len(problems) == len(said), problems
    assert all(any(part in each for each in problems) for part in said), problems


@pytest.mark.parametrize(
    "text",
    [
        "retry: {min_delay: 1m, max_dely: 2m}",
        "retry: {min_delay: 1m, max_delay: x}",
        "rate_limit: {rat: 5}",
        "fallback: {fucntion: 'builtins:len'}",
        "fallback: {function: 3}",
        "circuit_breaker: {slow_rate: 0.5, slow_cal: 1}",
        "circuit_breaker: {slow_rate: 0.5, slow_call: x}",
        "cache: {stale_ttl: 5, tttl: 3}",
        "cache: {error_ttl: 5, ttl: 3, errors: x}",
        "retry: {retires: 0, min_delay: 20s}, timeout: 5s",
        "retry: {retries: x, min_delay: 20s}, timeout: 5s",
    ],
)
def test_an_invalid_value_causes_no_second_problem(policies: Policies, text: str) -> None:
    policies.write(base=f"policies: {{a: {{{text}}}}}")
    assert len(policies.problems()) == 1
