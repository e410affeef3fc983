"""The file of an environment lies over that of another: `extends: production` in canary.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from opero import Registry
from opero.config.settings import load

if TYPE_CHECKING:
    from config.conftest import Policies


def write(policies: Policies, **files: str) -> None:
    base = "policies: {api: {retry: {retries: 1, min_delay: 1ms}, cache: 5m}}"
    production = "policies: {api: {retry: {retries: 2}}, db: {timeout: 5s}}"
    policies.write(**{"base": base, "production": production, **files})


def test_the_file_lies_over_the_one_that_it_extends_and_that_over_base(policies: Policies) -> None:
    write(policies, canary="extends: production\npolicies: {api: {cache: null}}")
    found = policies.load("canary")
    api = found.policies["api"]
    assert api.retry is not None
    assert (found.environment, api.retry.retries, api.retry.min_delay, api.cache) == ("canary", 2, 0.001, None)
    assert sorted(found.policies) == ["api", "db"]
    assert [path.name for path in found.files] == ["base.yaml", "production.yaml", "canary.yaml"]
    chain = [str(each.source) for each in found.leaves("api")["retry.retries"].chain()]
    assert chain == ["policies/production.yaml:1:35", "policies/base.yaml:1:35", "default"]
    production = policies.load("production").policies["api"]
    assert production.cache is not None


def test_files_may_extend_each_other_in_a_chain_with_or_without_base(policies: Policies) -> None:
    write(policies, canary="extends: production", berlin="extends: canary\npolicies: {api: {retry: 3}}")
    assert policies.load("berlin").policies["api"].retry.retries == 3  # type: ignore[union-attr]
    (policies.directory / "base.yaml").unlink()
    found = policies.load("berlin")
    assert [path.name for path in found.files] == ["production.yaml", "canary.yaml", "berlin.yaml"]


@pytest.mark.parametrize("value", ["", "null", "~"])
def test_extends_without_a_value_extends_nothing(policies: Policies, value: str) -> None:
    write(policies, canary=f"extends: {value}")
    assert policies.load("canary").policies["api"].retry.retries == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"canary": "extends: prodution"},
            "policies/canary.yaml:1:10: extends the environment 'prodution', which has no file; did you mean 'pr",
        ),
        ({"canary": "extends: canary"}, "circular `extends`: canary → canary; remove one of them"),
        (
            {"canary": "extends: other", "other": "extends: canary"},
            "policies/other.yaml:1:10: circular `extends`: canary → other → canary; remove one of them",
        ),
        ({"canary": "extends: base"}, "every file lies over base.yaml; remove `extends`"),
        ({"base": "extends: production"}, "policies/base.yaml:1:1: base.yaml extends nothing"),
        ({"canary": "extends: [production]"}, "extends must be the name of an environment, not a list"),
        ({"canary": "extends: 5"}, "extends must be the name of an environment, not 5"),
    ],
)
def test_a_wrong_name_is_reported_with_its_place(policies: Policies, files: dict[str, str], said: str) -> None:
    write(policies, **{"canary": "policies: {}", **files})
    assert said in policies.error("canary")


def test_mistakes_of_the_extended_file_are_reported_with_its_name(policies: Policies) -> None:
    write(policies, production="policies: {api: {retri: 1}}", canary="extends: production")
    assert policies.error("canary").startswith("policies/production.yaml:1:18: unknown key 'retri'")


def test_a_reload_reads_the_extended_file_again(policies: Policies) -> None:
    write(policies, canary="extends: production")
    registry = Registry.load(policies.directory, "canary", {})
    write(policies, canary="extends: production", production="policies: {api: {retry: 7}}")
    assert "api" in registry.reload().profiles
    assert registry["api"].retry.retries == 7  # type: ignore[union-attr]
    assert policies.directory in registry.watched_paths()


def test_an_environment_that_is_only_extended_needs_no_variable(policies: Policies) -> None:
    write(policies, canary="extends: production")
    assert load(policies.directory, environ={"OPERO_ENV": "canary"}).policies["api"].retry.retries == 2  # type: ignore[union-attr]
