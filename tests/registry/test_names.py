"""What functions are called: never by what they hold, which may be secret, and alike in every process of a program."""

from __future__ import annotations

import functools
import subprocess
import sys
import traceback
import types
from pathlib import Path
from typing import Any

import pytest

from opero import ConfigError, Policy, Registry, opmap
from opero.config.declaration import name_in_config
from opero.runtime.functions import full_name, short_name

SECRET = "hunter2"


class Client:
    """Shows its key, as dataclasses do."""

    def __init__(self, key: str = SECRET) -> None:
        self.key = key

    def __call__(self, item: int = 0) -> int:
        raise ConnectionError

    def __repr__(self) -> str:
        return f"Client({self.key})"


def fetch(key: str, item: int = 0) -> int:
    return item


CALLABLES = [
    (Client(), "Client.__call__"),
    (functools.partial(fetch, SECRET), "fetch"),
    (functools.partial(functools.partial(fetch, SECRET), item=1), "fetch"),
    (functools.partial(Client(), 1), "Client.__call__"),
    (functools.update_wrapper(functools.partial(Client(), 1), fetch), "fetch"),
]


@pytest.mark.parametrize(("function", "name"), CALLABLES)
def test_objects_and_partials_are_named_by_the_function_they_call(function: Any, name: str) -> None:
    assert short_name(function) == name
    assert full_name(function) == f"{__name__}.{name}"
    assert name_in_config(function) == f"{__name__}:{name}"
    assert [each.name for each in _bound(function).bindings()] == [f"{__name__}:{name}"]


@pytest.mark.parametrize(("function", "name"), CALLABLES)
def test_an_entry_matches_objects_and_partials_by_that_name(function: Any, name: str) -> None:
    registry = Registry({"api": Policy(retry=2)})
    bound = registry.bind(function, "api")
    with registry.override(functions={f"{__name__}:{name}": {"retry": 7}}):
        assert bound.policy == Policy(retry=7)


@pytest.mark.parametrize(("function", "name"), CALLABLES)
def test_messages_and_cache_names_do_not_contain_the_state_of_a_callable(function: Any, name: str) -> None:
    bound = Policy(cache=True, circuit_breaker=1).apply(function)
    assert bound.binding.name == name
    assert bound.binding.cache.name == f"opero:{__name__}.{name}"
    assert SECRET not in repr(bound.binding)
    with pytest.raises(ConfigError) as caught:
        Policy(fallback={"arg": "api_key"}).apply(function)
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        Policy(rate_limit={"rate": 1, "cost": "tokens"}).apply(function)
    assert SECRET not in str(caught.value)
    with pytest.raises(TypeError) as refused:
        opmap(function)(7)
    assert SECRET not in str(refused.value)


def test_partials_of_one_function_share_a_name_but_not_a_cache() -> None:
    first, second = (Policy(cache=True).apply(functools.partial(max, each)) for each in (1, 2))
    assert (first(0), second(0)) == (1, 2)


def _bound(function: Any) -> Registry:
    registry = Registry({"api": Policy(retry=2)})
    registry.held = registry.bind(function, "api")  # type: ignore[attr-defined]  # keeps it alive
    return registry


@pytest.mark.parametrize("value", [{"TOKEN": SECRET}, SECRET, property(lambda self: SECRET)])
def test_the_error_for_a_non_callable_names_its_type_only(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("settings")
    module.value = value  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "settings", module)
    registry = Registry({"api": Policy()})
    kind = type(value).__name__
    with pytest.raises(ConfigError, match=f"settings:value is a value of type {kind}, which is not callable") as caught:
        registry.bind_import("settings:value", "api")
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match=f"value of type {kind}: it is not callable; (bind|put)") as caught:
        registry.bind(value, "api")
    assert SECRET not in str(caught.value)


def test_an_object_on_the_path_of_a_target_is_named_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("settings")
    module.values = {"TOKEN": SECRET}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "settings", module)
    with pytest.raises(ConfigError, match="settings:values.gett: dict has no 'gett'; did you mean 'get'") as caught:
        Registry({"api": Policy()}).bind_import("settings:values.gett", "api")
    assert SECRET not in str(caught.value)
    with pytest.raises(ValueError, match="dict has no 'gett'") as refused:
        Policy(fallback={"function": "settings:values.gett"})
    assert SECRET not in str(refused.value)


def test_an_invalid_policy_argument_is_named_by_its_type() -> None:
    with pytest.raises(ConfigError, match="policy= must be a profile's name or a Policy, not of type dict") as caught:
        opmap(policy={"cache": {"secret": SECRET}})  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)


PROGRAM = """
import multiprocessing
import sys

from opero import get_default_registry, opero


@opero(retries=1)
def fetch():
    return 1


class Client:
    @opero(retries=1)
    def get(self):
        return 1


def tell():
    for bound in get_default_registry().bindings():
        print(bound.name, bound.policy.retry.retries, *bound.entries, flush=True)


if __name__ == "__main__":
    tell()
    child = multiprocessing.get_context(sys.argv[1]).Process(target=tell)
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize(("how", "module"), [(["app/work.py"], "__main__"), (["-m", "app.work"], "app.work")])
def test_entries_for_functions_of_main_match_in_child_processes(
    method: str, how: list[str], module: str, tmp_path: Path
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").touch()
    (tmp_path / "app" / "work.py").write_text(PROGRAM)
    (tmp_path / "policies").mkdir()
    entries = f'functions: {{"{module}:fetch": {{retry: 7}}, "{module}:Client.*": {{retry: 8}}}}'
    (tmp_path / "policies" / "base.yaml").write_text(entries)
    done = subprocess.run(
        [sys.executable, *how, method], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = [f"{module}:Client.get 8 {module}:Client.*", f"{module}:fetch 7 {module}:fetch"]
    assert done.stdout.splitlines() == [*told, *told]


def test_a_callable_whose_state_can_be_no_key_is_rejected_without_showing_its_state(tmp_path: Path) -> None:
    policy = Policy(cache={"backend": "disk", "ttl": None, "cache_dir": tmp_path})
    with pytest.raises(ConfigError, match="type Client compares by identity, so it cannot be part of a key") as caught:
        policy.apply(Client())
    assert SECRET not in "".join(traceback.format_exception(caught.value))
