"""What a registry is asked that it cannot mean or know: refused, with what to write instead."""

from __future__ import annotations

import re
from typing import Any
from unittest import mock

import pytest

from opero import ConfigError, Policy, Registry, opero


def fetch() -> int:
    return 1


class Client:
    @opero(retries=1)
    def get(self) -> int:
        return 1


def test_explain_rejects_functions_of_other_registries() -> None:
    ours, theirs = Registry({"api": Policy(retry=1)}), Registry({"api": Policy(retry=2)})
    now, late = ours.bind(fetch, "api"), opero(policy="api", registry=ours)(fetch)
    for bound in (now, late):
        assert ours.explain(bound)["retry.retries"].value == 1
        with pytest.raises(ConfigError, match="fetch is bound by another registry; call explain"):
            theirs.explain(bound)
    with pytest.raises(ConfigError, match=re.escape("fetch was bound by Policy.apply, and so by no registry")):
        ours.explain(Policy(retry=1).apply(fetch))


@pytest.mark.parametrize(
    ("target", "name"),
    [(print, "print"), (fetch, "fetch"), (mock.Mock(), "Mock.__call__"), (7, "int"), (None, "NoneType")],
)
def test_explain_rejects_unbound_functions_and_says_what_it_expects(target: Any, name: str) -> None:
    said = f'explain() expects the name of a profile, "module:qualname" or a bound function, and {name} is not bound'
    with pytest.raises(ConfigError, match=re.escape(said)):
        Registry({"api": Policy()}).explain(target)


@pytest.mark.parametrize(("name", "kind"), [(None, "NoneType"), (Policy(), "Policy"), (7, "int")])
def test_bind_rejects_everything_but_the_name_of_a_profile(name: Any, kind: str) -> None:
    registry = Registry({"api": Policy()})
    said = f"bind() expects the name of a profile, not a value of type {kind}; to use a policy object, call Policy(...)"
    with pytest.raises(ConfigError, match=re.escape(said)):
        registry.bind(len, name)
    with pytest.raises(ConfigError, match=re.escape(said)):
        registry.bind_import("json:dumps", name)
    assert registry.bindings() == ()


def test_a_bound_method_has_the_name_of_its_function() -> None:
    registry = Registry({"api": Policy(retry=2)})
    bound = registry.bind(Client().get, "api")
    assert [each.name for each in registry.bindings()] == [f"{__name__}:Client.get"]
    with registry.override(functions={f"{__name__}:Client.*": {"retry": 7}}):
        assert bound.policy == Policy(retry=7)


@pytest.mark.parametrize(
    ("said", "place"), [({"api": None}, "policies.api"), ({"functions": {"app:*": None}}, "functions.app:*")]
)
def test_an_override_with_none_is_an_error(said: Any, place: str) -> None:
    registry = Registry({"api": Policy(retry=2)})
    told = f"{place} is None: use {{}} to change nothing, or None for single policies"
    with pytest.raises(ConfigError, match=re.escape(told)), registry.override(**said):
        raise AssertionError
    with registry.override(api={}):
        assert registry["api"] == Policy(retry=2)
