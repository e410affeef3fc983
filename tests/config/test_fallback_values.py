"""Values of a fallback argument from configuration: where they come from, and that they are never shown."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
from typing import TYPE_CHECKING, Any

import pytest

from cli.conftest import Command, command  # noqa: F401  # a fixture
from config.test_secrets import shown_by, shown_of
from opero import ConfigError, FallbackPolicy, Policy, Registry, opero
from opero.testing import VirtualClock

if TYPE_CHECKING:
    from pathlib import Path

    from config.conftest import Policies

SECRET = "hunter2"
FILE = 'policies: {api: {fallback: {arg: key, values: ["secret:KEY_1", "secret:key-2"]}}}'


class DeniedError(Exception):
    status_code = 401


def ask(question: str = "?", *, key: str = "") -> str:
    if key == "dead":
        raise DeniedError
    return key


def values_of(policy: Policy) -> list[str]:
    assert policy.fallback is not None
    return [each.get_secret_value() for each in policy.fallback.values]


def write(path: Path, text: str) -> None:
    """Also differs in its size or time, whatever the file system's clock."""
    path.write_text(text)
    os.utime(path, ns=(path.stat().st_mtime_ns + 10_000_000,) * 2)


@pytest.fixture
def places(policies: Policies, tmp_path: Path) -> Any:
    """Puts a secret in a variable, a `.env` file or the directory of secrets; returns `load`."""
    policies.write(base=FILE)
    (tmp_path / "secrets").mkdir()
    environ: dict[str, str] = {}

    def put(place: str, name: str, text: str) -> None:
        if place == "variable":
            environ[name] = text
        elif place == "file":
            (tmp_path / "secrets" / name).write_text(text)
        else:
            (tmp_path / ".env").write_text(f"{name}={text}\n")

    def load() -> Registry:
        dotenv = tmp_path / ".env"
        return Registry.load(
            policies.directory, "development", environ,
            env_file=dotenv if dotenv.exists() else None, secrets_dir=tmp_path / "secrets",
        )  # fmt: skip

    put.load = load  # type: ignore[attr-defined]
    return put


def test_a_reference_stands_for_a_variable_else_env_file_else_file_of_that_name(places: Any) -> None:
    places("file", "key-2", "from directory\n")
    places("file", "KEY_1", "1 from directory")
    assert values_of(places.load()["api"]) == ["1 from directory", "from directory"]
    places("dotenv", "KEY_1", "1 from dotenv")
    assert values_of(places.load()["api"]) == ["1 from dotenv", "from directory"]
    places("variable", "KEY_1", "1 from variable")
    assert values_of(places.load()["api"]) == ["1 from variable", "from directory"]


def test_a_call_that_leaves_the_argument_out_gets_them(places: Any) -> None:
    places("variable", "KEY_1", "dead")
    places("variable", "key-2", "good")
    bound: Any = places.load().bind(ask, "api")
    assert [bound(), bound("?"), bound(question="?")] == ["good"] * 3
    assert bound(key="own") == "own"
    with pytest.raises(DeniedError):
        bound(key="dead")


def test_a_reload_rotates_keys_and_a_missing_one_keeps_the_old(places: Any, tmp_path: Path) -> None:
    places("file", "KEY_1", "old")
    places("file", "key-2", "second")
    registry = places.load()
    bound: Any = registry.bind(ask, "api")
    assert bound() == "old"
    write(tmp_path / "secrets" / "KEY_1", "new")
    assert registry.reload()
    assert bound() == "new"
    (tmp_path / "secrets" / "KEY_1").unlink()
    with pytest.raises(ConfigError, match="the secret KEY_1 does not exist"):
        registry.reload()
    assert bound() == "new"


def test_what_is_remembered_of_a_key_outlives_its_rotation(places: Any, tmp_path: Path) -> None:
    asked: list[str] = []

    def function(key: str = "") -> str:
        asked.append(key)
        return ask(key=key)

    places("file", "KEY_1", "dead")
    places("file", "key-2", "good")
    registry = places.load()
    bound: Any = registry.bind(function, "api")
    assert bound() == "good"
    write(tmp_path / "secrets" / "key-2", "better")
    registry.reload()
    assert bound() == "better"
    assert asked == ["dead", "good", "better"]


def test_a_missing_secret_is_reported_at_its_place(policies: Policies) -> None:
    policies.write(base='policies:\n  api:\n    fallback:\n      arg: key\n      values: ["secret:A", "secret:../x"]\n')
    first, second = policies.problems()
    assert first.startswith("policies/base.yaml:5:16: policies.api.fallback.values: the secret A does not exist: set a")
    assert "/run/secrets" in first
    assert second.startswith("policies/base.yaml:5:28: policies.api.fallback.values: secret: must be followed by a")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ("[a, 3]", "value 2 must be text, not int; quote it"),
        ("secret:A", "values must be a list, such as"),
        ('["secret:A", "secret:A"]', "value 2 is the same as an earlier one; remove it"),
        ('["secret:EMPTY"]', "the secret EMPTY is empty"),
        ('[""]', "value 1 is empty; set it, or remove it"),
    ],
)
def test_values_that_cannot_work_are_refused(policies: Policies, values: str, told: str) -> None:
    policies.write(base=f"policies: {{api: {{fallback: {{arg: key, values: {values}}}}}}}")
    (problem,) = policies.problems(A=SECRET, EMPTY="")
    assert told in problem


def test_a_secret_file_that_is_not_text_is_refused(places: Any, tmp_path: Path) -> None:
    places("file", "key-2", "x")
    (tmp_path / "secrets" / "KEY_1").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        places.load()
    (tmp_path / "secrets" / "KEY_1").write_text("x" * 70_000)
    with pytest.raises(ConfigError, match="the limit for a secret"):
        places.load()


@pytest.mark.parametrize("text", ["secret:A,secret:B", '["secret:A", "plain, with comma"]', "one, two"])
def test_a_variable_has_a_list_of_them(policies: Policies, text: str) -> None:
    policies.write(base="policies: {api: {fallback: {arg: key}}}")
    found = policies.load(OPERO_POLICIES__API__FALLBACK__VALUES=text, A="first", B="second")
    assert len(values_of(found.policies["api"])) == 2


def test_nothing_shows_them(policies: Policies, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    environ = {"A": f"{SECRET}-a"}
    policies.write(base=f'policies: {{api: {{fallback: {{arg: key, values: ["secret:A", "{SECRET}-b"]}}}}}}')
    registry = Registry.load(policies.directory, "development", environ)
    bound: Any = registry.bind(ask, "api")
    assert bound() == f"{SECRET}-a"
    texts = [*shown_of(registry), repr(bound.policy), repr(bound.binding), repr(bound.binding.pipeline), caplog.text]
    assert not [text for text in texts if SECRET in text]
    assert SECRET not in bound.policy.model_dump_json()
    for wrong in (
        "orde: 3",
        "order: weighted",
        "weights: [1]",
        "on: [x]",
        f"default: {{}}, function: {SECRET}",
        "remember: x",
    ):
        policies.write(base=f"policies: {{api: {{fallback: {{arg: key, values: [{SECRET}-b, {SECRET}], {wrong}}}}}}}")
        with pytest.raises(ConfigError) as caught:
            registry.reload()
        assert not [text for text in shown_by(caught.value) if f"{SECRET}-b" in text]


def test_commands_do_not_show_them(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    command.policies(
        base=f"""\
            policies:
              api:
                fallback:
                  arg: key
                  values: ["secret:A", {SECRET}]
            """
    )
    monkeypatch.setenv("A", f"{SECRET}-a")
    for arguments in (
        ["show"],
        ["show", "--json"],
        ["explain", "api"],
        ["explain", "api", "--json"],
        ["check"],
        ["env"],
    ):
        ran = command(*arguments)
        assert ran.code == 0, ran.err
        assert SECRET not in ran.out + ran.err
    assert "# values: ***" in command("show").out
    shown = json.loads(command("show", "--json").out)
    assert shown["policies"]["api"]["fallback"] == {"arg": "key", "values": "***"}


# In code


def test_code_refers_to_secrets_of_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KEY_1", "dead")
    monkeypatch.setenv("OPERO_SECRETS_DIR", str(tmp_path))
    (tmp_path / "KEY_2").write_text("good\n")
    bound: Any = opero(fallback={"arg": "key", "values": ["secret:KEY_1", "secret:KEY_2"]})(ask)
    assert bound() == "good"
    with pytest.raises(ValueError, match="value 1: the secret KEY_3 does not exist") as caught:
        FallbackPolicy(arg="key", values=["secret:KEY_3", SECRET])
    assert SECRET not in str(caught.value)


def test_a_policy_with_values_is_a_value() -> None:
    one = FallbackPolicy(arg="key", values=[SECRET, "b"])
    assert one == FallbackPolicy(arg="key", values=[SECRET, "b"]) == pickle.loads(pickle.dumps(one))
    assert hash(one) == hash(pickle.loads(pickle.dumps(one)))
    assert one != FallbackPolicy(arg="key", values=[SECRET, "c"])
    assert SECRET not in repr(one) + str(one.model_dump())
    assert one.replace(order="round_robin").values == one.values


async def ask_async(question: str = "?", key: str = "") -> str:
    return ask(question, key=key)


class Client:
    def ask(self, question: str, key: str | None = None) -> str | None:
        return key

    @classmethod
    def ask_class(cls, key: str = "") -> str:
        return key


def variadic(**options: Any) -> Any:
    return options["key"][0]


def streaming(key: str = "") -> Any:
    yield key


def test_every_kind_of_function_gets_them() -> None:
    policy = Policy(fallback={"arg": "key", "values": ["dead", "good"]})
    assert VirtualClock().run(policy.apply(ask_async)()) == "good"
    assert list(policy.apply(streaming)()) == ["dead"]
    assert policy.apply(variadic)() == "dead"
    bound: Any = policy.apply(Client.ask)
    assert [bound(Client(), "?"), bound(Client(), "?", None), bound(Client(), "?", "own")] == ["dead", "dead", "own"]
    assert policy.apply(Client.ask_class)() == "dead"


def test_the_parameter_decides_whether_it_gets_one_a_list_or_a_secret() -> None:
    from pydantic import SecretStr

    def as_list(key: list[str] = []) -> list[str]:  # noqa: B006
        return key

    def as_secret(key: SecretStr | None = None) -> SecretStr | None:
        return key

    policy = Policy(fallback={"arg": "key", "values": ["a", "b"]})
    assert policy.apply(as_list)() == ["a", "b"]
    assert policy.apply(as_secret)() == SecretStr("a")


def test_a_parameter_that_callers_cannot_leave_out_is_refused() -> None:
    def required(key: str) -> str:
        return key

    told = re.escape('give the parameter a default, such as key: str = ""')
    with pytest.raises(ConfigError, match=told):
        Policy(fallback={"arg": "key", "values": ["a"]}).apply(required)
    registry = Registry({"api": Policy(fallback={"arg": "key", "values": ["a"]})})
    with pytest.raises(ConfigError, match=told):
        registry.bind(required, "api")("x")


def test_a_single_value_needs_no_memory() -> None:
    bound: Any = Policy(fallback={"arg": "key", "values": ["a"], "remember": False}).apply(ask)
    assert bound() == "a"


def test_rotating_keys_keeps_cached_results() -> None:
    asked: list[str] = []

    def function(item: int, key: str = "") -> int:
        asked.append(key)
        return item

    bound: Any = Policy(cache="1h", fallback={"arg": "key", "values": ["a"]}).apply(function)
    assert bound(1) == 1
    bound.binding.swap(Policy(cache="1h", fallback={"arg": "key", "values": ["b"]}))
    assert [bound(1), bound(2)] == [1, 2]
    assert asked == ["a", "b"]


def fetch(item: int, key: str = "") -> tuple[int, str]:
    return item, ask(key=key)


def test_worker_processes_get_them() -> None:
    policy = Policy(
        fallback={"arg": "key", "values": ["dead", "good"]},
        parallel={"mode": "process", "workers": 2, "progress": False},
    )
    assert policy.apply(fetch).map(range(4)) == [(item, "good") for item in range(4)]  # type: ignore[attr-defined]
