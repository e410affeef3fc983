"""Loading files: precedence, and problems of the merged configuration."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from opero.policies import CachePolicy, Policy, RateLimitPolicy, RetryPolicy, TimeoutPolicy

if TYPE_CHECKING:
    from pathlib import Path

    from config.conftest import Policies


def test_a_profile_is_a_policy_by_name(policies: Policies) -> None:
    policies.write(
        base="""
        policies:
          api:
            retry: {retries: 5, retry_on: [ConnectionError, "no_such_package.Error?"]}
            cache: {ttl: 30m}
            rate_limit: 50/s
          nothing:
        """
    )
    assert policies.load().policies == {
        "api": Policy(
            retry=RetryPolicy(retries=5, retry_on=(ConnectionError,)),
            cache=CachePolicy(ttl=1800),
            rate_limit=RateLimitPolicy(rate=50),
        ),
        "nothing": Policy(),
    }


def test_short_forms_merge_like_the_long_ones(policies: Policies) -> None:
    policies.write(
        base="""
        policies:
          api: {rate_limit: {rate: 5, burst: 3}, cache: {max_size: 7}, retry: 2, timeout: {attempt: 1}}
        """,
        production="policies: {api: {rate_limit: 50/s, cache: 30m, retry: {max_delay: 9}, timeout: 5s}}",
    )
    assert policies.load("production").policies["api"] == Policy(
        rate_limit=RateLimitPolicy(rate=50, burst=3),
        cache=CachePolicy(ttl=1800, max_size=7),
        retry=RetryPolicy(retries=2, max_delay=9),
        timeout=TimeoutPolicy(total=5, attempt=1),
    )


def test_cache_true_takes_the_defaults_and_false_keeps_inherited_values(policies: Policies) -> None:
    policies.write(
        base="""
        policies: {a: {cache: true}, b: {cache: 5}, c: {cache: false}, d: {rate_limit: false, timeout: false}}
        """,
        production="policies: {b: {cache: false}}",
    )
    found = policies.load("production").policies
    assert found["a"].cache == CachePolicy()
    assert found["b"].cache == CachePolicy(ttl=5, enabled=False)
    assert found["c"] == found["d"] == Policy()


def test_enabled_false_keeps_the_values_and_null_removes_the_policy(policies: Policies) -> None:
    policies.write(
        base="policies: {a: {rate_limit: 5, cache: 5}}",
        production="policies: {a: {rate_limit: {enabled: false}, cache: null}}",
    )
    found = policies.load("production").policies["a"]
    assert found == Policy(rate_limit=RateLimitPolicy(rate=5, enabled=False))


def test_a_policy_removed_and_set_again_keeps_nothing_of_the_old(policies: Policies) -> None:
    policies.write(
        base="policies: {a: {cache: {ttl: 5, max_size: 7}}, b: {extends: a, cache: null}}",
        production="policies: {b: {cache: {ttl: 6}}}",
    )
    loaded = policies.load("production")
    assert loaded.policies["b"].cache == CachePolicy(ttl=6)
    assert [(leaf.value, str(leaf.source)) for leaf in loaded.leaves("b")["cache.ttl"].chain()] == [
        (6, "policies/production.yaml:1:29"),
        (None, "default"),
        (None, "policies/base.yaml:1:70"),
        (5, "policies/base.yaml:1:29"),
        (None, "default"),
    ]


def test_defaults_lie_under_every_profile_and_are_a_policy_of_none(policies: Policies) -> None:
    policies.write(
        base="{defaults: {retry: {retries: 7, max_delay: 9}}, policies: {a: {retry: 1}, b: }}",
        production="defaults: {retry: {max_delay: 11}}",
    )
    loaded = policies.load("production")
    assert loaded.policies == {
        "a": Policy(retry=RetryPolicy(retries=1, max_delay=11)),
        "b": Policy(retry=RetryPolicy(retries=7, max_delay=11)),
    }
    assert loaded.leaves("b")["retry.max_delay"].section == "defaults"


def test_each_level_overrides_the_one_below(policies: Policies) -> None:
    """Model defaults, `defaults:`, the base file, the environment's file, a variable."""
    policies.write(base="{defaults: {retry: 10}, policies: {a: {retry: 20}}}", production="policies: {a: {retry: 30}}")
    loaded = policies.load("production", OPERO_A_RETRIES="40")
    assert [(leaf.value, str(leaf.source), leaf.section) for leaf in loaded.leaves("a")["retry.retries"].chain()] == [
        ("40", "OPERO_A_RETRIES", "policies.a"),
        (30, "policies/production.yaml:1:23", "policies.a"),
        (20, "policies/base.yaml:1:47", "policies.a"),
        (10, "policies/base.yaml:1:20", "defaults"),
    ]
    assert loaded.policies["a"].retry == RetryPolicy(retries=40)


def test_a_profile_starts_from_what_it_extends_variables_included(policies: Policies) -> None:
    policies.write(
        base="""
        policies:
          reports: {extends: api, retry: {max_delay: 9}}
          api: {retry: {retries: 5, max_delay: 8, min_delay: 1}, cache: 5}
        """,
        production="policies: {api: {cache: 6}, monthly: {extends: reports, cache: {max_size: 2}}}",
    )
    loaded = policies.load("production", OPERO_API_RETRIES="6", OPERO_API_MAX_DELAY="7")
    assert loaded.policies["reports"] == Policy(
        retry=RetryPolicy(retries=6, max_delay=9, min_delay=1), cache=CachePolicy(ttl=6)
    )
    assert loaded.policies["monthly"].cache == CachePolicy(ttl=6, max_size=2)
    assert [str(leaf.source) for leaf in loaded.leaves("monthly")["retry.max_delay"].chain()] == [
        "policies/base.yaml:2:46",
        "OPERO_API_MAX_DELAY",
        "policies/base.yaml:3:40",
        "default",
    ]
    assert str(loaded.leaves("monthly")["extends"].source) == "policies/production.yaml:1:48"


def test_the_environments_file_may_change_or_remove_extends(policies: Policies) -> None:
    policies.write(
        base="policies: {a: {retry: 1}, b: {retry: 2}, c: {extends: a}, d: {extends: a}}",
        production="policies: {c: {extends: b}, d: {extends: null}}",
    )
    loaded = policies.load("production")
    assert loaded.policies["c"] == loaded.policies["b"]
    assert loaded.policies["d"] == Policy()
    assert [leaf.value for leaf in loaded.leaves("c")["extends"].chain()] == ["b", "a"]


def test_every_field_of_a_policy_has_a_source(policies: Policies) -> None:
    policies.write(base="policies: {a: {retry: 1, cache: {}}}")
    loaded = policies.load()
    assert {path for path in loaded.leaves("a") if path.startswith("retry.")} == {
        f"retry.{name}" for name in RetryPolicy.model_fields
    }
    leaf = loaded.leaves("a")["cache.max_size"]
    assert (leaf.value, str(leaf.source), leaf.shadowed) == (1000, "default", None)


def test_a_removed_policy_still_tells_what_removed_it(policies: Policies) -> None:
    policies.write(base="policies: {a: {cache: 5}}", production="policies: {a: {cache: null}}")
    loaded = policies.load("production")
    for path in ("cache", "cache.ttl"):
        leaf = loaded.leaves("a")[path]
        assert (leaf.value, leaf.removed, str(leaf.source)) == (None, True, "policies/production.yaml:1:23")
    shadowed = loaded.leaves("a")["cache.ttl"].shadowed
    assert shadowed is not None
    assert shadowed.value == 5


BAD_TEXTS = {
    "an unknown top key": (
        "polices: {}\n",
        ":1:1: unknown key 'polices'; did you mean 'policies'? (profiles belong under `policies:`)",
    ),
    "policies is a list": (
        "policies: [api]\n",
        ":1:11: `policies:` must be a mapping, not a list; write the name of each profile",
    ),
    "a profile is a scalar": (
        "policies:\n  api: 5\n",
        ":2:8: policies.api must be a mapping, not 5; write policies below it, such as `retry: {",
    ),
    "defaults is true": ("defaults: true\n", ":1:11: defaults must be a mapping, not true;"),
    "an unknown policy": (
        "policies:\n  api:\n    retyr: 5\n",
        ":3:5: unknown key 'retyr' in policies.api; did you mean 'retry'?",
    ),
    "a flat option": (
        "policies:\n  api:\n    retries: 5\n",
        ":3:5: unknown key 'retries' in policies.api; use `retry: {retries: 5}`",
    ),
    "a flat cache option": ("policies: {api: {cache_ttl: 30m}}\n", "; use `cache: {ttl: 30m}`"),
    "a second name": ("policies: {api: {backoff: 2}}\n", "; use `retry: {backoff_factor: 2}`"),
    "a field without its policy": ("policies: {api: {rate: 5}}\n", "; use `rate_limit: {rate: 5}`"),
    "a field of two policies": (
        "policies: {api: {half_open_calls: 2, max_wait: 5}}\n",
        "; use `rate_limit: {max_wait: 5}` or `bulkhead: {max_wait: 5}`",
    ),
    "an unknown field": (
        "policies:\n  api:\n    retry: {retires: 5}\n",
        ":3:13: unknown key 'retires' in policies.api.retry; did you mean 'retries'?",
    ),
    "a flat name inside": (
        "policies: {api: {cache: {cache_ttl: 5}}}\n",
        ":1:26: unknown key 'cache_ttl' in policies.api.cache; did you mean 'ttl'?",
    ),
    "a list for a policy": (
        "policies: {api: {retry: [5]}}\n",
        ":1:25: policies.api.retry must be a mapping of its fields, not a list",
    ),
    "no short form": (
        "policies: {api: {fallback: x}}\n",
        ":1:28: policies.api.fallback: FallbackPolicy has no short form; use a mapping",
    ),
    "a wrong type": (
        "policies:\n  api:\n    retry: {retries: five}\n",
        ":3:22: policies.api.retry.retries: 'five' is invalid: use an integer >= 0",
    ),
    "a wrong short form": (
        "policies: {api: {retry: five}}\n",
        ":1:25: policies.api.retry.retries: 'five' is invalid",
    ),
    "too small": (
        "policies: {api: {retry: -1}}\n",
        ":1:25: policies.api.retry.retries: -1 should be greater than or equal to 0",
    ),
    "a truth for a number": (
        "policies: {api: {retry: {retries: yes}}}\n",
        ":1:35: policies.api.retry.retries: True is not a number",
    ),
    "no duration": (
        "policies: {api: {cache: soon}}\n",
        ":1:25: policies.api.cache.ttl: 'soon' is not a duration: use seconds",
    ),
    "no such choice": (
        "policies: {api: {parallel: proces}}\n",
        "'async_process', 'dask', 'ray'; did you mean 'process'?",
    ),
    "one of several types": (
        "policies: {api: {parallel: {progress: [1]}}}\n",
        ":1:39: policies.api.parallel.progress: [1] is invalid: use true, false or 'auto'",
    ),
    "neither a number nor auto": (
        "policies: {api: {parallel: {workers: 0}}}\n",
        ':1:38: policies.api.parallel.workers: 0 is invalid: use an integer >= 1, "auto" or "adaptive"',
    ),
    "no such exception": (
        "policies: {api: {retry: {retry_on: [ValueError, ConectionError]}}}\n",
        ":1:49: policies.api.retry.retry_on: 'ConectionError' is neither a builtin exception nor",
    ),
    "a missing field": (
        "policies:\n  api:\n    rate_limit: {burst: 5}\n",
        ":3:5: policies.api.rate_limit: missing field 'rate'; use `rate_limit: {rate: …}`",
    ),
    "fields that do not fit": (
        "policies:\n  api:\n    retry: {min_delay: 5, retries: 2, max_delay: 1}\n",
        "max_delay (1s); lower min_delay or raise max_delay (see also policies/base.yaml:3:24)",
    ),
    "a policy that says nothing": (
        "policies: {api: {timeout: {}}}\n",
        ":1:18: policies.api.timeout: no timeout is set; set total, attempt or idle",
    ),
    "extends an unknown": (
        "policies: {api: {extends: bse}, base: }\n",
        ":1:27: policies.api extends 'bse', which does not exist; did you mean 'base'?",
    ),
    "extends a list": (
        "policies: {api: {extends: [a]}}\n",
        ":1:27: policies.api.extends must be the name of one profile, not a list",
    ),
    "extends itself": (
        "policies: {api: {extends: api}}\n",
        ":1:27: circular `extends`: api → api; remove one of them",
    ),
    "defaults that extend": (
        "defaults: {extends: api}\n",
        ":1:12: `defaults:` cannot extend a profile",
    ),
    "wrong defaults and no profile": (
        "defaults: {retry: x}\n",
        ":1:19: defaults.retry.retries: 'x' is invalid",
    ),
}


@pytest.mark.parametrize(("text", "said"), BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_a_mistake_is_reported_with_its_place_and_advice(policies: Policies, text: str, said: str) -> None:
    policies.write(base=text)
    problems = policies.problems()
    assert all(line.startswith("policies/base.yaml:") for line in problems)
    assert any(said in line for line in problems)


def test_all_problems_of_all_files_and_variables_are_reported_at_once(policies: Policies) -> None:
    policies.write(
        base="policies:\n  api: {retyr: 5}\n  db: {retry: {retries: five, max_delay: never}}\n",
        production="policies: {api: {cache: {tttl: 5}}}\n",
    )
    assert [
        line.partition(": ")[0]
        for line in policies.problems("production", OPERO_API_CACHE_MAX_SIZE="x", OPERO_ENVS="1")
    ] == [
        "OPERO_API_CACHE_MAX_SIZE",
        "OPERO_ENVS",
        "policies/base.yaml:2:9",
        "policies/base.yaml:3:25",
        "policies/base.yaml:3:42",
        "policies/production.yaml:1:26",
    ]
    assert policies.error("production", OPERO_ENVS="1").startswith("OPERO_ENVS: ")


def test_circular_extends_are_reported_once(policies: Policies) -> None:
    policies.write(base="policies: {c: {extends: b}, b: {extends: a}, a: {extends: c}, outside: {extends: a}}")
    assert policies.error() == ("policies/base.yaml:1:59: circular `extends`: a → c → b → a; remove one of them")


def test_a_mistake_in_defaults_or_a_parent_is_reported_once(policies: Policies) -> None:
    policies.write(base="{defaults: {retry: x}, policies: {a: {cache: y}, b: {extends: a}, c: }}")
    assert [line.partition(": ")[0] for line in policies.problems()] == [
        "policies/base.yaml:1:20",
        "policies/base.yaml:1:46",
    ]


def test_a_problem_is_reported_at_the_effective_value(policies: Policies) -> None:
    policies.write(base="policies: {a: {retry: {min_delay: 5}}}", production="policies: {a: {retry: {max_delay: 4}}}")
    assert policies.error("production") == (
        "policies/production.yaml:1:35: policies.a.retry: min_delay (5s) is greater than max_delay (4s); "
        "lower min_delay or raise max_delay (see also policies/base.yaml:1:35)"
    )
    assert policies.error("production", OPERO_A_MIN_DELAY="6", OPERO_A_MAX_DELAY="x").startswith("OPERO_A_MAX_DELAY: ")


def test_one_mistake_does_not_bring_forth_another(policies: Policies) -> None:
    policies.write(
        base="policies: {a: {rate_limit: {rte: 5}}, b: {extends: a}, c: {rate_limit: !x 5}, d: {extends: []}}"
    )
    assert len(policies.problems()) == 3


def test_missing_parts_are_not_reported_if_a_file_is_unreadable(policies: Policies) -> None:
    policies.write(base="policies: [", production="policies: {a: {extends: b, rate_limit: {burst: 5}}, c: {retry: x}}")
    problems = policies.problems("production", OPERO_B_RETRIES="1", OPERO_A_RETRIES="y")
    assert [line.partition(": ")[0].partition(":")[0] for line in problems] == [
        "OPERO_A_RETRIES",
        "policies/base.yaml",
        "policies/production.yaml",
    ]


def test_a_wrong_value_that_another_file_corrects_does_no_harm(policies: Policies) -> None:
    """For example, an exception of a package that is not installed."""
    policies.write(
        base="policies: {a: {retry: {retry_on: no_such_package.Error}}}",
        production="policies: {a: {retry: {retry_on: ValueError}}}",
    )
    assert policies.load("production").policies["a"].retry == RetryPolicy(retry_on=(ValueError,))


def test_secrets_appear_in_no_message_and_no_source(policies: Policies) -> None:
    policies.write(
        base="""
        policies:
          a: {cache: {secret: [hunter2], arguments: "redis://:hunter2@host"}}
          b: {cache_secret: hunter2, secret: hunter2, arguments: hunter2}
        """
    )
    message = policies.error(OPERO_A_CACHE_SECRT="hunter2", OPERO_A_CACHE='{"secret": hunter2}')
    assert len(message.splitlines()) == 7
    assert "hunter2" not in message
    policies.write(base="policies: {a: {cache: {secret: hunter2}}}")
    loaded = policies.load()
    assert "hunter2" not in repr((loaded, loaded.leaves("a")))
    secret = loaded.policies["a"].cache.secret  # type: ignore[union-attr]
    assert secret is not None
    assert secret.get_secret_value() == "hunter2"


def test_a_failing_import_is_reported_where_the_module_is_named(
    policies: Policies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "opero_broken_module.py").write_text("raise RuntimeError('no database')\n")
    monkeypatch.syspath_prepend(tmp_path)
    policies.write(base="policies: {a: {retry: {retries: 5, retry_on: [opero_broken_module.Error]}, rate_limit: 5}}")
    assert policies.error() == (
        "policies/base.yaml:1:47: policies.a.retry.retry_on: "
        "'opero_broken_module.Error' cannot be imported: RuntimeError: no database"
    )


def test_only_variables_of_opero_are_read(policies: Policies, monkeypatch: pytest.MonkeyPatch) -> None:
    """pydantic-settings by itself would read the fields of its model, and a `.env` file."""
    for name in ("ENABLED", "LAYERS", "REQUEST"):
        monkeypatch.setenv(name, "0")
    (policies.directory.parent / ".env").write_text("OPERO_ENABLED=false\nENABLED=false\n")
    policies.write(base="policies: {api: {retry: 1}}")
    loaded = policies.load()
    assert loaded.enabled
    assert list(loaded.policies) == ["api"]


def test_files_alone_are_joined_as_pydantic_settings_joins_them(policies: Policies) -> None:
    policies.write(
        base="defaults: {timeout: 9}\npolicies: {api: {retry: 1}, db: {retry: 2}}\nfunctions: {'a:b': {retry: 3}}",
        development="extends: staging\npolicies: {api: {retry: {retries: 5}}}",
        staging="policies: {api: {cache: 30s}, more: {}}",
    )
    alone, joined = policies.load(), policies.load(OPERO_ENV="development")
    assert [each.name for each in alone.layers] == [each.name for each in joined.layers]
    assert len(alone.layers) == 4
    assert (alone.policies, alone.enabled) == (joined.policies, joined.enabled)
    assert not policies.load(OPERO_ENABLED="no").enabled


def test_importing_opero_imports_neither_pydantic_settings_nor_yaml() -> None:
    code = "import sys, opero; sys.exit(bool({'pydantic_settings', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
