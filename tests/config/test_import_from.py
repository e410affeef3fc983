"""`import_from:`: which modules files and variables may name things of. Nothing else is even imported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from opero.policies.hooks import HOOKS
from opero.policies.policy import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from config.conftest import Policies

FORBIDDEN = "opero_forbidden"


@pytest.fixture(autouse=True)
def _modules(policies: Policies, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module that must not be imported, and one that may, and has imported others for itself."""
    Path(f"{FORBIDDEN}.py").write_text("class Error(Exception): pass\ndef function(): return 5\n")
    Path("opero_allowed.py").write_text("import os.path\nfrom json import loads\ndef function(*a, **k): return 5\n")
    monkeypatch.syspath_prepend(Path.cwd())
    yield
    sys.modules.pop("opero_allowed", None)
    assert sys.modules.pop(FORBIDDEN, None) is None, "it was imported"


NAMING = {
    "retry.retry_on": "retry: {retry_on: [ValueError, %s.Error]}",
    "retry.retry_on, perhaps absent": 'retry: {retry_on: "%s.Error?"}',
    "retry.retry_if_result": "retry: {retry_if_result: '%s:function'}",
    "circuit_breaker.trip_on": "circuit_breaker: {trip_on: '%s:function'}",
    "circuit_breaker.ignore": "circuit_breaker: {ignore: %s.Error}",
    "fallback.function": "fallback: {function: %s.function}",
    "fallback.on": "fallback: {default: 1, on: '%s:function'}",
    "cache.key": "cache: {key: '%s:function'}",
    "cache.cache_if": "cache: {cache_if: '%s:function'}",
    "cache.errors": "cache: {errors: [permanent, '%s:function']}",
    "cache.ttl": "cache: {ttl: '%s:function'}",
    "cache": "cache: '%s:function'",
    "rate_limit.cost": "rate_limit: {rate: 5, cost: '%s:function'}",
    "rate_limit.cost_from_result": "rate_limit: {rate: 5, cost_from_result: '%s:function'}",
    "rate_limit.refund_on": "rate_limit: {rate: 5, cost: n, refund_on: [denied, '%s:function']}",
    "rate_limit.limits": "rate_limit: {limits: [{rate: 5, cost: '%s:function'}]}",
    "failures.transient": "failures: {transient: [404, %s.Error]}",
    "failures.throttled": "failures: {throttled: %s.Error}",
    "failures.denied": 'failures: {denied: "%s:Error"}',
    "failures.permanent": "failures: {permanent: %s.Error}",
    "failures.control": "failures: {control: [%s.Error]}",
    "failures.unknown": "failures: {unknown: %s.Error}",
    "failures.classify": "failures: {classify: '%s:function'}",
    "throttle.trip_on": "throttle: {trip_on: [throttled, %s.Error]}",
    "parallel.executor": "parallel: {executor: '%s:function'}",
    "parallel.initializer": "parallel: {initializer: %s.function}",
    **{f"hooks.{hook}": f"hooks: {{{hook}: '%s:function'}}" for hook in HOOKS},
}


def test_every_field_that_names_something_has_an_example_here() -> None:
    named = {name.partition(",")[0] for name in NAMING} - {"cache", "rate_limit.limits"}
    importing = set()
    for kind, model in KINDS.items():
        for field in model.model_fields:
            try:
                model.model_validate({field: f"{FORBIDDEN}_absent:function"})
            except Exception as error:
                if "No module named" in str(error):
                    importing.add(f"{kind}.{field}")
    assert importing == named


@pytest.mark.parametrize("text", NAMING.values(), ids=NAMING)
@pytest.mark.parametrize("section", ["policies: {a: {%s}}", "defaults: {%s}", "functions: {'x:y': {%s}}"])
def test_a_name_outside_is_rejected_at_its_place_in_every_field(policies: Policies, text: str, section: str) -> None:
    written = section % (text % FORBIDDEN)
    policies.write(base=f"import_from: [opero_allowed, json]\n{written}")
    column = written.index(FORBIDDEN) + 1 - (written[written.index(FORBIDDEN) - 1] in "'\"")
    (problem,) = policies.problems()
    assert problem.startswith(f"policies/base.yaml:2:{column}: ")
    assert "cannot be imported: import_from allows only opero_allowed, json; add opero_forbidden to it" in problem


@pytest.mark.parametrize(
    ("variable", "value"),
    {
        "OPERO_A_RETRY_ON": f"{FORBIDDEN}.Error",
        "OPERO_A_CACHE_TTL": f"{FORBIDDEN}:function",
        "OPERO_A_CACHE": f"{FORBIDDEN}:function",
        "OPERO_POLICIES__A__FALLBACK__FUNCTION": f"{FORBIDDEN}.function",
        "OPERO_FUNCTIONS__X_Y__FALLBACK": f'{{"function": "{FORBIDDEN}.function"}}',
    }.items(),
)
def test_variables_are_restricted_too(policies: Policies, variable: str, value: str) -> None:
    policies.write(base="import_from: opero_allowed\npolicies: {a: }\nfunctions: {'x:y': }")
    (problem,) = policies.problems(**{variable: value})
    assert problem.startswith(f"{variable}: ")
    assert "import_from allows only opero_allowed; add opero_forbidden to it" in problem


def test_import_from_allows_a_module_and_its_submodules_only(policies: Policies) -> None:
    policies.write(base="import_from: [json]\npolicies: {a: {retry: {retry_on: json.decoder.JSONDecodeError}}}")
    assert policies.load().policies
    for listed in ("[js]", "[json.decoder.deeper]", "[json_]", "[]"):
        policies.write(base=f"import_from: {listed}\npolicies: {{a: {{retry: {{retry_on: json.JSONDecodeError}}}}}}")
        assert "cannot be imported: import_from" in policies.error()
    policies.write(base="import_from: []\npolicies: {a: {retry: {retry_on: json.JSONDecodeError}}}")
    assert policies.error().endswith("import_from allows nothing; add json to it")


@pytest.mark.parametrize("name", ["opero_allowed:os.system", "opero_allowed.os.path.join", "opero_allowed:os"])
def test_an_allowed_module_is_no_way_to_the_modules_that_it_has_imported(policies: Policies, name: str) -> None:
    policies.write(base=f"import_from: [opero_allowed]\npolicies: {{a: {{fallback: {{function: '{name}'}}}}}}")
    assert "import_from allows only opero_allowed" in policies.error() or "No module named" in policies.error()


def test_an_allowed_module_does_not_allow_what_it_has_imported(policies: Policies) -> None:
    policies.write(base="import_from: [opero_allowed]\npolicies: {a: {fallback: {function: 'opero_allowed:loads'}}}")
    assert policies.load().policies


def test_builtins_need_no_module_but_those_that_would_run_anything(policies: Policies) -> None:
    policies.write(base="import_from: []\npolicies: {a: {retry: {retry_on: ValueError}, fallback: {function: len}}}")
    assert policies.load().policies
    for name in ("eval", "exec", "open", "__import__", "builtins.eval"):
        policies.write(base=f"import_from: [json]\npolicies: {{a: {{fallback: {{function: {name}}}}}}}")
        assert policies.error().endswith("cannot be imported: import_from allows only json; add builtins to it")
    policies.write(base="import_from: [builtins]\npolicies: {a: {fallback: {function: eval}}}")
    assert policies.load().policies


def test_the_environment_s_file_may_say_another_list(policies: Policies) -> None:
    policies.write(
        base="import_from: [opero_allowed]\npolicies: {a: {fallback: {function: 'opero_allowed:function'}}}",
        production="import_from: [json]",
        staging="{}",
    )
    assert policies.load("staging").import_from == ("opero_allowed",)
    assert policies.error("production").startswith("policies/base.yaml:2:37: ")


def test_a_name_that_another_file_replaces_is_not_imported(policies: Policies) -> None:
    policies.write(
        base=f"import_from: [opero_allowed]\npolicies: {{a: {{fallback: {{function: {FORBIDDEN}.function}}}}}}",
        production="policies: {a: {fallback: {function: 'opero_allowed:function'}}}",
    )
    assert policies.load("production").policies


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "[json, 5]": ":1:21: import_from: 5 is not a module name; use a list, such as [app, requests]",
        "a b": ":1:14: import_from: 'a b' is not a module name; use a list, such as [app, requests]",
        "[x:y]": ":1:15: import_from: 'x:y' is not a module name; use a list, such as [app, requests]",
        "{a: b}": ":1:14: import_from: a mapping is not a module name; use a list, such as [app, requests]",
        "": ":1:1: import_from is empty; list modules, use [] to allow none, or remove it",
        "null": ":1:1: import_from is empty; list modules, use [] to allow none, or remove it",
    }.items(),
)
def test_an_invalid_import_from_is_reported(policies: Policies, text: str, said: str) -> None:
    policies.write(base=f"import_from: {text}\npolicies: {{}}")
    assert policies.problems() == [f"policies/base.yaml{said}"]
