"""Loading an environment's profiles: which files, which variables, what wins, and what is said of mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import ConfigError, Policy, Registry, RetryPolicy
from opero.config import load
from opero.config.sources import Leaf, Source, lay_over, leaves_of

REFERENCE = Path(__file__).parents[2] / "policies"


@pytest.fixture
def policies(tmp_path: Path) -> Any:
    """Writes policy files, and gives their directory."""

    def write(**files: str) -> Path:
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        return tmp_path

    return write


def problems_of(directory: Path, environment: str = "production", environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(directory, environment, environ or {})
    return str(caught.value).replace(f"{directory}/", "")


# What wins


def test_the_environments_file_is_laid_over_the_base_key_by_key(policies: Any) -> None:
    directory = policies(
        base="policies: {api: {retry: {retries: 5, min_delay: 200ms}, rate_limit: {rate: 50/s, burst: 3}}}",
        production="policies: {api: {retry: {retries: 6}, rate_limit: 10/s}}",
    )
    assert load(directory, "production", {}).policies["api"] == Policy(
        retry={"retries": 6, "min_delay": 0.2}, rate_limit={"rate": 10, "burst": 3}
    )


def test_variables_are_laid_over_files_in_either_form_and_any_case(policies: Any) -> None:
    directory = policies(base="policies: {api: {retry: {retries: 5}, rate_limit: {rate: 50, burst: 3}}, My-Api.v2: {retry: 1}}")
    loaded = load(
        directory,
        environ={
            "OPERO_API_RETRIES": "9",
            "opero_api_rate_limit": "10",
            "OPERO_API_BACKOFF": "2.5",
            "OPERO_API_CACHE_TTL": "30m",
            "OPERO_API_TIMEOUT": "5s",
            "OPERO_API_RETRY_ON": "ConnectionError, TimeoutError",
            "OPERO_POLICIES__API__CACHE__MAX_SIZE": "7",
            "OPERO_MY_API_V2_RETRIES": "2",
        },
    )
    assert loaded.policies["api"] == Policy(
        retry={"retries": 9, "backoff_factor": 2.5, "retry_on": (ConnectionError, TimeoutError)},
        rate_limit={"rate": 10, "burst": 3},
        cache={"ttl": 1800, "max_size": 7},
        timeout=5,
    )
    assert loaded.policies["My-Api.v2"] == Policy(retry=2)


def test_the_variables_of_the_specification_all_work() -> None:
    environ = {
        "OPERO_API_RETRIES": "1",
        "OPERO_API_BACKOFF": "1.25",
        "OPERO_API_CACHE_TTL": "11",
        "OPERO_API_RATE_LIMIT": "12.5",
        "OPERO_BATCH_MODE": "thread",
        "OPERO_BATCH_WORKERS": "3",
        "OPERO_BATCH_RETRIES": "2",
        "OPERO_BATCH_ORDERED": "false",
        "OPERO_BATCH_PROGRESS": "true",
        "OPERO_BATCH_TIMEOUT": "13.0",
        "OPERO_DB_RETRIES": "4",
        "OPERO_DB_BACKOFF": "1.75",
        "OPERO_DB_RATE_LIMIT": "14.0",
    }
    profiles = load(REFERENCE, "production", environ).policies
    api, batch, db = profiles["api"], profiles["batch"], profiles["db"]
    assert (api.retry.retries, api.retry.backoff_factor, api.cache.ttl, api.rate_limit.rate) == (1, 1.25, 11, 12.5)
    assert (batch.parallel.mode, batch.parallel.workers, batch.retry.retries) == ("thread", 3, 2)
    assert (batch.parallel.ordered, batch.parallel.progress, batch.timeout.total) == (False, True, 13)
    assert (db.retry.retries, db.retry.backoff_factor, db.rate_limit.rate) == (4, 1.75, 14)


def test_a_profile_begins_with_the_defaults_and_with_what_it_extends(policies: Any) -> None:
    directory = policies(
        base="""
defaults: {retry: {max_delay: 9s}, timeout: 3s}
policies:
  reports: {extends: api, retry: {retries: 8}}
  api: {retry: {retries: 5, max_delay: 8s}, cache: 1m}
"""
    )
    loaded = load(directory, environ={"OPERO_API_CACHE_TTL": "2m", "OPERO_DEFAULTS__TIMEOUT__ATTEMPT": "1s"})
    assert loaded.policies["reports"] == Policy(
        retry={"retries": 8, "max_delay": 8}, cache=120, timeout={"total": 3, "attempt": 1}
    )


def test_null_removes_what_lies_beneath_and_false_switches_it_off_and_keeps_it(policies: Any) -> None:
    directory = policies(
        base="policies: {a: {cache: {ttl: 5, max_size: 3}}, b: {cache: {ttl: 5}}, c: {cache: 5}}",
        production="policies: {a: {cache: null}, b: {cache: false}}",
    )
    loaded = load(directory, "production", {"OPERO_A_CACHE_TTL": "7", "OPERO_C_CACHE": "null"}).policies
    assert loaded["a"] == Policy(cache=7)  # the null cut off max_size
    assert loaded["b"] == Policy(cache={"ttl": 5, "enabled": False})
    assert loaded["c"] == Policy()


@pytest.mark.parametrize("text", ["false", "OFF", "0", "no"])
def test_opero_enabled_switches_everything_off(policies: Any, text: str) -> None:
    directory = policies(base="policies: {api: {retry: 5}}")
    registry = Registry.load(directory, environ={"OPERO_ENABLED": text})
    calls = []
    with pytest.raises(ZeroDivisionError):
        registry.bind(lambda: calls.append(1) or 1 / 0, "api")()
    assert calls == [1]
    assert Registry.load(directory, environ={"OPERO_ENABLED": "true"})["api"] == Policy(retry=5)
    assert "OPERO_ENABLED: 'maybe' is neither true nor false" in problems_of(directory, "", {"OPERO_ENABLED": "maybe"})


# Which environment, which directory


@pytest.mark.parametrize(
    ("argument", "environ", "expected"),
    [
        ("production", {"OPERO_ENV": "staging"}, "production"),
        (None, {"OPERO_ENV": "staging", "ENVIRONMENT": "production"}, "staging"),
        (None, {"ENVIRONMENT": "production"}, "production"),
        (None, {}, "development"),
    ],
)
def test_the_environment_is_the_argument_else_opero_env_else_environment(
    argument: str | None, environ: dict[str, str], expected: str
) -> None:
    assert load(REFERENCE, argument, environ).environment == expected


def test_the_directory_is_the_argument_else_opero_config_else_pyproject_else_policies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(environ={}).directory is None
    assert load(environ={}).policies == {}
    for name in ("policies", "mine", "other", "given"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "base.yaml").write_text(f"policies: {{{name}: {{retry: 1}}}}", encoding="utf-8")
    assert list(load(environ={}).policies) == ["policies"]
    (tmp_path / "pyproject.toml").write_text('[tool.opero]\nconfig = "mine"\n', encoding="utf-8")
    assert list(load(environ={}).policies) == ["mine"]
    assert list(load(environ={"OPERO_CONFIG": "other"}).policies) == ["other"]
    assert list(load("given", environ={"OPERO_CONFIG": "other"}).policies) == ["given"]


def test_a_directory_or_environment_that_does_not_exist_is_an_error_with_the_nearest(policies: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="OPERO_CONFIG: there is no directory 'nowhere'"):
        load(environ={"OPERO_CONFIG": "nowhere"})
    directory = policies(base="policies: {}", production="policies: {}", staging="policies: {}")
    assert "no file for the environment 'prodution' (production, staging); did you mean 'production'?" in problems_of(
        directory, "prodution"
    )
    (directory / "base.yml").write_text("policies: {}")
    assert "stands beside base.yml; keep one of them" in problems_of(directory)


# Where a value came from


def test_every_value_knows_its_source_and_what_it_shadows(policies: Any) -> None:
    directory = policies(
        base="defaults:\n  retry: {retries: 1}\npolicies:\n  api:\n    retry: {retries: 2}\n  child: {extends: api}\n",
        production="policies:\n  api:\n    retry: 3\n",
    )
    loaded = load(directory, "production", {"OPERO_CHILD_RETRIES": "4"})
    chain = [(leaf.value, str(leaf.source).rpartition("/")[2]) for leaf in loaded.source("child", "retry.retries").chain()]
    assert chain == [
        ("4", "OPERO_CHILD_RETRIES"),
        (3, "production.yaml:3:12"),
        (2, "base.yaml:5:22"),
        (1, "base.yaml:2:20"),
        (3, "default"),
    ]
    assert str(loaded.source("child", "retry.jitter").source) == "default"
    with pytest.raises(KeyError):
        loaded.source("child", "cache.ttl")


kinds = st.dictionaries(
    st.sampled_from(["retry", "cache", "timeout"]),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(), min_size=1),
    max_size=3,
)


@given(st.lists(kinds, min_size=1, max_size=4))
def test_every_leaf_has_one_source_and_without_it_the_runner_up_holds(layers: list[dict[str, dict[str, int]]]) -> None:
    def folded(skip: tuple[int, str] | None = None) -> dict[str, Leaf]:
        merged: Any = {}
        for number, layer in enumerate(layers):
            marked: Any = {
                kind: {
                    name: Leaf(value, Source(str(number)))
                    for name, value in fields.items()
                    if (number, f"{kind}.{name}") != skip
                }
                for kind, fields in layer.items()
            }
            merged = lay_over(merged, marked)
        return dict(leaves_of(merged))

    for path, leaf in folded().items():
        without = folded(skip=(int(leaf.source.name), path)).get(path)
        assert without == leaf.shadowed


# The reference profiles


@pytest.mark.parametrize(
    ("environment", "retries", "backoff", "ttl", "rate", "workers"),
    [("production", 5, 2.0, 3600, 20, 20), ("staging", 3, 1.5, 600, 15, 15), ("development", 1, 1.0, 60, 5, 5)],
)
def test_the_default_profile_carries_the_specifications_values(
    environment: str, retries: int, backoff: float, ttl: float, rate: float, workers: int
) -> None:
    policy = load(REFERENCE, environment, {}).policies["default"]
    assert policy == Policy(
        retry={"retries": retries, "backoff_factor": backoff, "min_delay": 0.1, "max_delay": 30},
        cache={"ttl": ttl, "backend": "memory"},
        rate_limit=rate,
        parallel={"mode": "thread", "workers": workers},
    )


def test_api_batch_and_db_carry_the_specifications_values_in_production() -> None:
    import requests

    profiles = load(REFERENCE, "production", {}).policies
    assert profiles["api"] == Policy(
        retry=RetryPolicy(retries=5, backoff_factor=2.0, retry_on=(ConnectionError, TimeoutError, requests.HTTPError)),
        cache=1800,
        rate_limit=50,
    )
    assert profiles["batch"] == Policy(
        retry=3, timeout=300, parallel={"mode": "process", "workers": "auto", "ordered": True, "progress": False}
    )
    assert profiles["db"] == Policy(
        retry={"retries": 3, "backoff_factor": 1.5, "retry_on": (ConnectionError, TimeoutError)}, rate_limit=100
    )


def test_limits_are_smaller_in_staging_and_smaller_still_in_development() -> None:
    for name in ("default", "api", "db"):
        rates = [load(REFERENCE, env, {}).policies[name].rate_limit.rate for env in ("development", "staging", "production")]
        assert rates == sorted(set(rates))
