"""The key `enabled` of a profile, of `defaults` or of an entry of `functions:` switches all policies off, as a variable
OPERO_<PROFILE>_ENABLED does; it is merged as any other value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from opero import ConfigError, Registry, on, opero

if TYPE_CHECKING:
    from config.conftest import Policies

BASE = """\
policies:
  api:
    retry: {retries: 2, min_delay: 0}
    cache: {ttl: 30m}
  child:
    extends: api
    retry: {retries: 1}
  other:
    retry: {retries: 2, min_delay: 0}
"""


def load(policies: Policies, base: str = BASE, **environ: str) -> Registry:
    policies.write(base=base)
    return Registry.load(policies.directory, environ=environ)


def attempts(registry: Registry, profile: str, **options: Any) -> int:
    """Count the attempts of a call that fails."""
    made = 0

    def fail() -> None:
        nonlocal made
        made += 1
        raise ConnectionError("down")

    bound: Any = opero(policy=profile, registry=registry, **options)(fail)
    with pytest.raises(Exception, match="down|all"):
        bound()
    return made


def test_a_variable_switches_all_policies_of_a_profile_off(policies: Policies) -> None:
    registry = load(policies, OPERO_API_ENABLED="false")
    assert attempts(registry, "api") == 1
    assert attempts(registry, "api", retries=5) == 1, "those of a decorator as well"
    assert attempts(registry, "other") == 3
    assert registry["api"].retry is not None
    assert registry["api"].retry.retries == 2, "it keeps its values"


@pytest.mark.parametrize("name", ["OPERO_API_ENABLED", "OPERO_POLICIES__API__ENABLED", "opero_api_enabled"])
@pytest.mark.parametrize("text", ["false", "off", "No", "0"])
def test_every_form_of_the_variable(policies: Policies, name: str, text: str) -> None:
    registry = load(policies, **{name: text})
    leaf = registry.explain("api")["enabled"]
    assert (leaf.value, leaf.source.name) == (False, name)
    assert not registry.configuration.is_enabled("api")


def test_a_child_starts_from_its_parents_switch_and_may_have_its_own(policies: Policies) -> None:
    assert not load(policies, OPERO_API_ENABLED="false").configuration.is_enabled("child")
    registry = load(policies, OPERO_API_ENABLED="false", OPERO_CHILD_ENABLED="true")
    assert registry.configuration.is_enabled("child")
    assert attempts(registry, "child") == 2


def test_defaults_may_switch_everything_off_but_one_profile(policies: Policies) -> None:
    registry = load(
        policies, BASE.replace("  other:\n", "  other:\n    enabled: true\n") + "defaults: {enabled: false}\n"
    )
    assert attempts(registry, "api") == 1
    assert attempts(registry, "other") == 3


def test_an_entry_of_functions_switches_one_function(policies: Policies) -> None:
    entry = 'functions: {"config.test_enabled:attempts.*": {enabled: false}}\n'
    assert attempts(load(policies, BASE + entry), "other") == 1
    switched = load(policies, BASE + entry.replace("false", "true"), OPERO_OTHER_ENABLED="false")
    assert attempts(switched, "other") == 3, "over its profile"


def test_a_reload_says_what_it_has_switched(policies: Policies) -> None:
    registry = load(policies)
    told: list[Any] = []
    off = on("configuration_reloaded", told.append)
    assert attempts(registry, "other") == 3
    policies.write(base=BASE.replace("  other:\n", "  other:\n    enabled: false\n"))
    try:
        assert registry.reload().profiles == ("other",)
        assert told[0].changes == ("other.enabled: true → false",)
    finally:
        off()
    assert attempts(registry, "other") == 1


def test_a_bound_function_follows_an_override_and_comes_back(policies: Policies) -> None:
    registry = load(policies)
    made: list[int] = []

    @opero(policy="other", registry=registry)
    def fail() -> None:
        made.append(1)
        raise ConnectionError("down")

    def count() -> int:
        made.clear()
        with pytest.raises(Exception, match="down|all"):
            fail()
        return len(made)

    assert count() == 3
    with registry.override(other={"enabled": False}):
        assert count() == 1
    assert count() == 3


@pytest.mark.parametrize(
    ("base", "environ", "message"),
    [
        (BASE, {"OPERO_API_ENABLED": "perhaps"}, "OPERO_API_ENABLED: 'perhaps' is invalid: use true or false"),
        (BASE, {"OPERO_API_ENABLED": ""}, "OPERO_API_ENABLED: is empty"),
        (
            BASE,
            {"OPERO_API_ENABLED": "true", "OPERO_POLICIES__API__ENABLED": "false"},
            "sets policies.api.enabled, and so does OPERO_API_ENABLED",
        ),
        (BASE, {"OPERO_APY_ENABLED": "false"}, "did you mean OPERO_API_ENABLED?"),
        ("policies: {api: {enabled: perhaps}}", {}, "policies.api.enabled must be true or false, not 'perhaps'"),
        ("policies: {api: {enabled: null}}", {}, "policies.api.enabled must be true or false, not null"),
        ("policies: {api: {enabeld: false}}", {}, "did you mean 'enabled'?"),
    ],
)
def test_what_is_wrong_is_said(policies: Policies, base: str, environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(policies, base, **environ)
    assert message in str(caught.value)
