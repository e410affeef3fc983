"""Lazy imports: importing opero loads no heavy packages, and each name loads only what it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import opero

HEAVY = [
    "tenacity",
    "dogpile",
    "joblib",
    "asyncio",
    "pydantic",
    "pydantic_settings",
    "yaml",
    "aiolimiter",
    "cloudpickle",
]

CALL_BY_PROFILE = """
import os
os.mkdir("policies")
with open("policies/base.yaml", "w") as file:
    file.write("policies: {api: {retry: 3, cache: 1m, rate_limit: 9/s, timeout: 5s, circuit_breaker: 5}}")
from opero import opero

@opero(policy="api")
def function(x):
    return x

function(1)
"""


@pytest.fixture(autouse=True)
def _nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty directory, as the first call would load a configuration."""
    monkeypatch.chdir(tmp_path)


def loaded_by(code: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter has loaded after running the code."""
    # tenacity imports tornado, and so asyncio, if it is installed, as it is here because of dask.
    code = f"import sys; sys.modules['tornado'] = None\n{code}"
    code += "\nimport json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_opero_loads_nothing_heavy() -> None:
    assert loaded_by("import opero").isdisjoint(HEAVY)


def test_listing_the_names_of_opero_loads_nothing_heavy() -> None:
    assert loaded_by("import opero; dir(opero); opero.__version__; opero.__all__").isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("code", "unneeded"),
    [
        ("from opero import Policy", {"tenacity", "dogpile", "joblib", "pydantic_settings", "aiolimiter"}),
        (
            "from opero import Policy; Policy(retry=3, cache=True)",
            {"tenacity", "dogpile", "joblib", "pydantic_settings"},
        ),
        ("from opero import OperoError, AllFailedError", set(HEAVY)),
        ("from opero import configure_logging; configure_logging()", set(HEAVY)),
        ("from opero import opero, opmap", {"tenacity", "dogpile", "joblib", "pydantic_settings", "yaml"}),
        (
            "from opero import opero\n@opero\ndef f():\n    return 1\nf()",
            {"tenacity", "dogpile", "joblib", "pydantic_settings", "yaml", "asyncio", "aiolimiter", "cloudpickle"},
        ),
        (
            CALL_BY_PROFILE,
            {"tenacity", "dogpile", "joblib", "aiolimiter", "cloudpickle", "sqlite3", "stevedore", "difflib"}
            | {"pydantic_settings", "asyncio"},
        ),
        (
            "from opero import opmap\n@opmap(mode='thread', workers=2)\ndef f(x):\n    return x\nf([1, 2])",
            {"dogpile", "joblib", "pydantic_settings", "yaml", "cloudpickle"},
        ),
        ("from opero import Stats, Bound, Clock", {"tenacity", "dogpile", "joblib", "pydantic_settings", "yaml"}),
    ],
)
def test_a_name_loads_only_what_it_needs(code: str, unneeded: set[str]) -> None:
    assert loaded_by(code) & unneeded == set()


@pytest.mark.parametrize("name", opero.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(opero, name) is getattr(opero, name)


def test_all_public_names_are_in_dir_and_star_imports() -> None:
    assert set(opero.__all__) <= set(dir(opero))
    assert len(set(opero.__all__)) == len(opero.__all__)
    namespace: dict[str, object] = {}
    exec("from opero import *", namespace)
    assert set(opero.__all__) <= set(namespace)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'opero' has no attribute 'nothing'"):
        opero.nothing  # noqa: B018
    with pytest.raises(ImportError, match="nothing"):
        exec("from opero import nothing")
    assert not hasattr(opero, "__wrapped__")


def test_type_checkers_see_exactly_the_names_that_load() -> None:
    import ast
    import inspect

    tree = ast.parse(inspect.getsource(opero))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom) and node.module != "typing"]
    seen = {alias.asname for node in imports for alias in node.names}
    assert seen == set(opero.__all__) - {"__version__"}


def test_opero_opero_is_the_decorator_after_submodules_are_imported() -> None:
    """`opero.opero` is the decorator, whichever modules have been imported before."""
    code = "import opero.decorators, opero.registry, opero.policies.policy\nassert callable(opero.opero)"
    loaded_by(code)
