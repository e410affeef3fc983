"""What is added to the policy files, and how all files are written."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from opero import ConfigError, Registry
from opero.migrate.migration import Migration, plan

CLIENT = """\
import stamina


@stamina.retry(on=OSError, attempts=3, wait_jitter=0, timeout=None)
def fetch(): ...
"""
PROFILE = {
    "retry": {
        "retries": 2,
        "min_delay": "100ms",
        "backoff_factor": 2,
        "max_delay": "5s",
        "jitter": "none",
        "reraise": True,
        "retry_on": ["OSError"],
        "retry_after": False,
    }
}


def made(
    directory: Path, base: str | None = None, source: str = CLIENT, name: str | None = None, **files: str
) -> Migration:
    (directory / "client.py").write_text(source)
    folder = directory / "policies"
    folder.mkdir(exist_ok=True)
    for stem, text in {**({} if base is None else {"base": base}), **files}.items():
        (folder / f"{stem}.yaml").write_bytes(dedent(text).encode())
    return plan([directory / "client.py"], folder, name)


def base_of(directory: Path) -> str:
    return (directory / "policies" / "base.yaml").read_bytes().decode()


@pytest.mark.parametrize(
    "base",
    [
        "",
        "# nothing yet\n",
        "policies:\n",
        "policies:  # all of them\n\nfunctions: {}\n",
        "policies:\n  api:\n    retry: 3  # enough\n    # no cache\n\n  # others follow\n\nfunctions: {}\n",
        "policies:\n    api: {retry: 3}\n# the end",
        "policies:\n  api:\n    retry:\n      retries: 3",
        "functions: {}\npolicies:\n  api:\n    retry: 3\n    # last\n",
        "policies:\r\n  api:\r\n    retry: 3\r\nfunctions: {}\r\n",
        "%YAML 1.1\n---\npolicies:\n  api:\n    retry: 3\n",
    ],
)
def test_a_profile_is_added_and_all_other_lines_stay(base: str, tmp_path: Path) -> None:
    made(tmp_path, base).write()
    text = base_of(tmp_path)
    before = yaml.safe_load(base) or {}
    assert yaml.safe_load(text) == {**before, "policies": {**(before.get("policies") or {}), "client": PROFILE}}
    lines = iter(text.splitlines())
    assert all(each in lines for each in base.splitlines()), "the lines are there, in order"
    assert Registry.load(tmp_path / "policies")["client"].retry is not None


def test_the_comments_of_a_profile_stay_with_it(tmp_path: Path) -> None:
    made(tmp_path, "policies:\n  api:\n    retry: 3\n    # no cache\n\n# functions\nfunctions: {}\n").write()
    text = base_of(tmp_path)
    assert text.index("# no cache") < text.index("client:") < text.index("# functions")


@pytest.mark.parametrize("base", ["policies: {api: {retry: 3}}\n", "policies: {}\n"])
def test_profiles_in_flow_style_are_not_changed(base: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="base.yaml.*not a block of lines"):
        made(tmp_path, base)


def test_a_file_that_is_not_valid_is_not_changed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not valid YAML"):
        made(tmp_path, "policies: [\n")


def test_an_equal_profile_is_used_and_another_one_refused(tmp_path: Path) -> None:
    made(tmp_path, "policies:\n  api: {retry: 3}\n").write()
    before = base_of(tmp_path)
    again = made(tmp_path)
    assert (again.profiles, [each.profile for each in again.replaced]) == ({}, ["client"])
    again.write()
    assert base_of(tmp_path) == before
    other = CLIENT.replace("attempts=3", "attempts=4")
    with pytest.raises(ConfigError, match=r"has a profile 'client' with other values; choose another name by --name"):
        made(tmp_path, source=other)
    assert made(tmp_path, source=other, name="fetching").profiles.keys() == {"fetching"}


def test_a_profile_in_the_file_of_an_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"production.yaml has a profile 'client', which would change a new one"):
        made(tmp_path, production="policies:\n  client:\n    timeout: 5s\n")


def test_the_defaults_of_all_profiles_do_not_change_what_a_function_does(tmp_path: Path) -> None:
    base = """\
        defaults:
          retry: {retry_on_status: [503], jitter: full, max_delay: 1s}
          cache: {ttl: 30m}
          timeout: 5s
    """
    made(tmp_path, base, production="defaults:\n  bulkhead: 5\n").write()
    policy = Registry.load(tmp_path / "policies", environment="production")["client"]
    assert policy.retry is not None
    assert (policy.retry.retry_on_status, policy.retry.jitter, policy.retry.max_delay) == (None, "none", 5.0)
    assert (policy.cache, policy.timeout, policy.bulkhead) == (None, None, None)


def test_exceptions_stand_in_the_code_if_files_may_not_import_their_modules(tmp_path: Path) -> None:
    made(tmp_path, "import_from: [app]\n", CLIENT.replace("OSError", "stamina.Error")).write()
    assert '@opero(policy="client", retry_on=stamina.Error)' in (tmp_path / "client.py").read_text()


def test_exceptions_of_the_own_project_stand_in_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "errors.py").touch()
    source = CLIENT.replace("import stamina\n", "import stamina\nfrom errors import Busy\n").replace("OSError", "Busy")
    made(tmp_path, source=source).write()
    text = (tmp_path / "client.py").read_text()
    assert text.startswith("from errors import Busy\nfrom opero import opero\n")
    assert '@opero(policy="client", retry_on=Busy)' in text


@pytest.mark.parametrize("name", ["on", "1", "null", "a.b-c"])
def test_a_name_with_another_meaning_in_yaml_is_quoted(name: str, tmp_path: Path) -> None:
    made(tmp_path, "policies:\n", name=name).write()
    assert name in Registry.load(tmp_path / "policies")


def test_equal_policies_of_a_module_are_one_profile_and_a_name_makes_one_of_all_modules(tmp_path: Path) -> None:
    for path in ("a/users.py", "a/orders.py", "b/users.py", "b/__init__.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(CLIENT + CLIENT.partition("\n\n\n")[2].replace("fetch", "send"))
    (tmp_path / "a/orders.py").write_text(CLIENT.replace("3", "5"))
    paths = [tmp_path / "a", tmp_path / "b"]
    found = plan(paths, tmp_path / "policies")
    assert {(each.file.relative_to(tmp_path).as_posix(), each.profile) for each in found.replaced} == {
        ("a/users.py", "users"),
        ("a/orders.py", "orders"),
        ("b/users.py", "b_users"),
        ("b/__init__.py", "b"),
    }
    found = plan(paths, tmp_path / "policies", "api")
    assert [*found.profiles] == ["api", "api_fetch"]
    assert len(found.replaced) == 7


def test_all_is_written_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    migration = made(tmp_path, "# mine\n")
    replace, calls = os.replace, []

    def failing(source: str, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "no space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="no space"):
        migration.write()
    assert len(calls) == 2
    assert (base_of(tmp_path), (tmp_path / "client.py").read_text()) == ("# mine\n", CLIENT)
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["base.yaml", "client.py", "policies"]


def test_a_file_that_has_changed_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    migration = made(tmp_path)
    (tmp_path / "client.py").write_text(CLIENT + "# mine\n")
    with pytest.raises(OSError, match="has changed meanwhile"):
        migration.write()
    assert not (tmp_path / "policies/base.yaml").exists()


def test_permissions_and_symbolic_links_stay(tmp_path: Path) -> None:
    migration = made(tmp_path)
    target = tmp_path / "elsewhere.py"
    (tmp_path / "client.py").rename(target)
    (tmp_path / "client.py").symlink_to(target)
    target.chmod(0o750)
    migration.write()
    assert (tmp_path / "client.py").is_symlink()
    assert "opero" in target.read_text()
    assert stat.S_IMODE(target.stat().st_mode) == 0o750


def test_files_of_virtual_environments_and_hidden_directories_are_left_out(tmp_path: Path) -> None:
    for folder in ("env", ".git", "node_modules", "app"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "client.py").write_text(CLIENT)
    (tmp_path / "env/pyvenv.cfg").touch()
    assert [each.file.parent.name for each in plan([tmp_path], tmp_path / "policies").replaced] == ["app"]


def test_a_file_that_cannot_be_parsed_does_not_keep_others_from_being_migrated(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import tenacity\ndef (\n")
    (tmp_path / "b.py").write_bytes(b"import tenacity\nname = '\xff'\n")
    (tmp_path / "c.py").write_text(CLIENT)
    found = plan([tmp_path], tmp_path / "policies")
    assert [each.file.name for each in found.replaced] == ["c.py"]
    assert {path.name for path in found.unreadable} == {"a.py", "b.py"}
    assert "line 2" in found.unreadable[tmp_path / "a.py"]
