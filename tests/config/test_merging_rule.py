"""Statements about a policy mean the same in every place that can make them, with and without a policies folder."""

from __future__ import annotations

import json
from contextlib import chdir
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opero import Policy, Registry, opero, set_default_registry
from opero.policies.policy import KINDS
from policies.statements import COMPLETE, meaning, series, statements

if TYPE_CHECKING:
    from pathlib import Path

    from opero.policies.base import BasePolicy

PLACES = (
    "defaults",
    "defaults, environment's file",
    "defaults, variable",
    "parent",
    "parent, variable",
    "profile",
    "environment's file",
    ".env",
    "flat variable",
    "override",
    "decorator",
    "glob",
    "entry",
    "entry, environment's file",
    "entry, variable",
    "entry, override",
)
"""Everywhere that a statement about a function's policy can be made, lowest precedence first."""
IN_CODE = ("override", "decorator", "entry, override")
EACH = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
every_kind = pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"canary"}))  # which cannot hold for all profiles


def function(item: int = 0) -> int:
    return item


function.__module__, function.__qualname__ = "app", "get"


def text(statement: Any) -> str:
    """A statement as variables spell it."""
    if statement is None or isinstance(statement, bool | dict):
        return json.dumps(statement)
    return str(statement)


def effective(folder: Path, kind: str, said: dict[str, Any]) -> BasePolicy | None:
    """Return the policy of a function for these statements, each in its place."""
    base: dict[str, Any] = {"policies": {"parent": {}, "api": {"extends": "parent"}}, "defaults": {}, "functions": {}}
    base["functions"] = {"app:get": {}, "app:*": {}}
    upper: dict[str, Any] = {"policies": {"api": {}}, "defaults": {}, "functions": {"app:get": {}}}
    environ: dict[str, str] = {}
    dotenv: list[str] = []
    options: dict[str, Any] = {}
    profiles: dict[str, Any] = {}
    functions: dict[str, Any] = {}
    homes: dict[str, dict[str, Any]] = {
        "defaults": base["defaults"],
        "defaults, environment's file": upper["defaults"],
        "parent": base["policies"]["parent"],
        "profile": base["policies"]["api"],
        "environment's file": upper["policies"]["api"],
        "override": profiles,
        "decorator": options,
        "glob": base["functions"]["app:*"],
        "entry": base["functions"]["app:get"],
        "entry, environment's file": upper["functions"]["app:get"],
        "entry, override": functions,
    }
    variables = {
        "defaults, variable": "DEFAULTS_",
        "parent, variable": "PARENT",
        "flat variable": "API",
        "entry, variable": "FUNCTIONS__APP_GET_",
    }
    for place, statement in said.items():
        if place == ".env":
            dotenv.append(f"OPERO_POLICIES__API__{kind.upper()}='{text(statement)}'\n")
        elif place in variables:
            environ[f"OPERO_{variables[place]}_{kind.upper()}"] = text(statement)
        else:
            homes[place][kind] = statement
    (folder / "policies").mkdir(exist_ok=True)
    (folder / "policies/base.yaml").write_text(yaml.safe_dump(base))
    (folder / "policies/production.yaml").write_text(yaml.safe_dump(upper))
    (folder / "env").write_text("".join(dotenv))
    registry = Registry.load(folder / "policies", "production", environ, env_file=folder / "env")
    bound = opero(policy="api", registry=registry, **options)(function)
    with registry.override(api=profiles, functions={"app:get": functions}):
        found: BasePolicy | None = getattr(bound.policy, kind)
        tops = {name: leaf.value for name, leaf in registry.explain(bound).items() if not leaf.removed}
    if found is not None:  # what is explained is what holds
        told = {field: tops[f"{kind}.{field}"] for field in KINDS[kind].model_fields if f"{kind}.{field}" in tops}
        assert KINDS[kind].model_validate(told) == found
    return found


@every_kind
@EACH
@given(data=st.data())
def test_statements_mean_the_same_wherever_they_are_made(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    said = data.draw(series(kind, longest=5))
    expected = meaning(kind, said)
    for _ in range(2):
        places = sorted(data.draw(st.permutations(PLACES))[: len(said)], key=PLACES.index)
        assert effective(tmp_path, kind, dict(zip(places, said, strict=True))) == expected


@every_kind
@EACH
@given(data=st.data())
def test_policy_objects_mean_the_same_wherever_code_can_give_them(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    said = data.draw(series(kind, longest=3, objects=True))
    places = dict(zip(IN_CODE[-len(said) :], said, strict=True))
    expected = meaning(kind, said)
    assert effective(tmp_path, kind, places) == expected
    policy: Any = Policy(**{kind: said[0]})
    for each in said[1:]:
        policy = policy.replace(**{kind: each})
    assert getattr(policy, kind) == expected
    first: Any = Policy(**{kind: said[0]})
    last: Any = {kind: said[-1]} if len(said) > 1 else {}
    if len(said) < 3:
        assert getattr(opero(policy=first, **last)(function).policy, kind) == expected
    registry = Registry({"api": first})
    with registry.override(api={kind: said[1]} if len(said) == 3 else {}):
        bound = registry.bind(function, "api", **last)
        assert getattr(bound.policy, kind) == expected


@every_kind
@EACH
@given(data=st.data())
def test_a_decorators_options_mean_the_same_with_and_without_a_policies_folder(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    statement = data.draw(statements(kind, objects=True))
    for name in ("with", "without"):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "with/policies").mkdir(exist_ok=True)
    (tmp_path / "with/policies/base.yaml").write_text("policies: {}\n")
    found = []
    for name in ("with", "without"):
        with chdir(tmp_path / name):
            set_default_registry(None)
            try:
                bound = opero(**{kind: statement})(function)
                bound()
                found.append((bound.policy, list(bound.binding.pipeline.executors)))
            except ValueError as error:
                found.append((str(error), []))
            finally:
                set_default_registry(None)
    assert found[0] == found[1]
    if isinstance(found[0][0], Policy):
        said = [{"retries": 3}, statement] if kind == "retry" else [statement]
        assert getattr(found[0][0], kind) == meaning(kind, said)


@every_kind
@pytest.mark.parametrize("place", PLACES)
def test_false_switches_off_true_switches_on_and_null_removes(tmp_path: Path, kind: str, place: str) -> None:
    complete, model = COMPLETE[kind], KINDS[kind]
    assert effective(tmp_path, kind, {place: False}) is None  # no values to keep
    if place == "defaults":
        return
    assert effective(tmp_path, kind, {"defaults": complete, place: False}) == model(**complete, enabled=False)
    assert effective(tmp_path, kind, {"defaults": {**complete, "enabled": False}, place: True}) == model(**complete)
    assert effective(tmp_path, kind, {"defaults": complete, place: None}) is None


@every_kind
def test_a_policy_that_overrides_a_profile_speaks_of_the_policies_that_it_was_given(kind: str) -> None:
    complete, model = COMPLETE[kind], KINDS[kind]
    make: Any = Policy
    registry = Registry({"api": make(**{kind: complete}), "other": Policy()})
    said: list[tuple[Policy, BasePolicy | None]] = [
        (Policy(), model(**complete)),
        (make(**{kind: None}), None),
        (make(**{kind: False}), model(**complete, enabled=False)),
        (make(**{kind: {**complete, "enabled": False}}), model(**complete, enabled=False)),
    ]
    for policy, expected in said:
        with registry.override(api=policy):
            assert getattr(registry["api"], kind) == expected


@every_kind
def test_in_code_they_do_the_same(kind: str) -> None:
    complete, model = COMPLETE[kind], KINDS[kind]
    make: Any = Policy
    assert make(**{kind: False}) == make(**{kind: {"enabled": False}}) == Policy()
    assert make.from_options(**{kind: False}) == Policy()
    full = make(**{kind: complete})
    off = full.replace(**{kind: False})
    assert getattr(off, kind) == model(**complete, enabled=False)
    assert off.replace(**{kind: True}) == full
    assert full.replace(**{kind: None}) == Policy()
    assert getattr(full.replace(**{kind: model(**complete, enabled=False)}), kind) == model(**complete, enabled=False)
