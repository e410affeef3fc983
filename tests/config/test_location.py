"""Which environment, and which directory and files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from opero.config.settings import load
from opero.config.variable_names import RESERVED
from opero.errors import ConfigError

if TYPE_CHECKING:
    from config.conftest import Policies

EMPTY = "policies: {}"


def retries(policies: Policies, environment: str | None = None, **environ: str) -> int:
    retry = policies.load(environment, **environ).policies["api"].retry
    assert retry is not None
    return retry.retries


def test_the_environment_is_the_argument_then_opero_env_then_environment_then_development(
    policies: Policies,
) -> None:
    policies.write(**dict.fromkeys(("base", "a", "b", "c", "development"), EMPTY))
    assert policies.load("a", OPERO_ENV="b", ENVIRONMENT="c").environment == "a"
    assert policies.load(OPERO_ENV="b", ENVIRONMENT="c").environment == "b"
    assert policies.load(opero_env=" b ", ENVIRONMENT="c").environment == "b"
    assert policies.load(ENVIRONMENT="c").environment == "c"
    assert policies.load(ENVIRONMENT="").environment == "development"
    assert policies.load().environment == "development"


def test_the_environments_file_overrides_base(policies: Policies) -> None:
    policies.write(base="policies: {api: {retry: 1}}", production="policies: {api: {retry: 2}}")
    assert retries(policies) == 1
    assert retries(policies, "production") == 2


def test_either_file_may_be_absent(policies: Policies) -> None:
    policies.write(production="policies: {api: {retry: 2}}")
    assert retries(policies, "production") == 2


def test_yml_is_as_good_as_yaml(policies: Policies) -> None:
    policies.write(base=EMPTY, production=EMPTY)
    (policies.directory / "base.yaml").rename(policies.directory / "base.yml")
    (policies.directory / "production.yaml").write_text("policies: {api: {retry: x}}")
    (policies.directory / "production.yaml").rename(policies.directory / "production.yml")
    assert policies.error("production").startswith("policies/production.yml:1:25: ")


def test_a_file_with_both_suffixes_is_an_error(policies: Policies) -> None:
    policies.write(base=EMPTY)
    (policies.directory / "base.yml").write_text(EMPTY)
    assert policies.error() == ("policies/base.yml: conflicts with base.yaml; remove one of the two files")


def test_the_directory_is_the_argument_then_opero_config_then_pyproject_then_policies(
    policies: Policies,
) -> None:
    here = Path.cwd()
    for name in ("policies", "one", "two", "three"):
        (here / name).mkdir()
        (here / name / "base.yaml").write_text(EMPTY)
    assert load(environ={}).directory == here / "policies"
    (here / "pyproject.toml").write_text('[tool.opero]\nconfig = "three"\n')
    assert load(environ={}).directory == here / "three"
    assert load(environ={"OPERO_CONFIG": "two"}).directory == here / "two"
    assert load("one", environ={"OPERO_CONFIG": "two"}).directory == here / "one"
    assert load(here / "one", environ={}).directory == here / "one"


def test_the_process_environment_is_read_where_none_is_given(
    policies: Policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies.write(base="policies: {api: {retry: 1}}")
    monkeypatch.setenv("OPERO_API_RETRIES", "9")
    assert load().policies["api"].retry.retries == 9  # type: ignore[union-attr]


def test_without_a_named_directory_there_may_be_no_profiles(policies: Policies) -> None:
    loaded = load(environ={})
    assert (loaded.directory, dict(loaded.policies), loaded.environment) == (None, {}, "development")
    policies.directory.mkdir()
    (policies.directory / "unrelated.rego").write_text("")
    assert load(environ={}).policies == {}


@pytest.mark.parametrize(
    ("arguments", "environ", "pyproject", "said"),
    [
        (("nowhere",), {}, "", "directory: the directory nowhere does not exist"),
        ((), {"OPERO_CONFIG": "nowhere"}, "", "OPERO_CONFIG: the directory nowhere does not exist"),
        (
            ("pyproject.toml",),
            {},
            " ",
            "directory: the directory pyproject.toml is a file; use the directory",
        ),
        (
            (),
            {},
            '[tool.opero]\nconfig = "nowhere"',
            "pyproject.toml, config in [tool.opero]: the directory nowhere does not exist",
        ),
        (
            (),
            {},
            "[tool.opero]\nconfig = 5",
            "pyproject.toml:2:1: config in [tool.opero] must be the path of a directory, not 5\n   2 | config = 5",
        ),
        (
            (),
            {},
            '[tool.opero]\nconfigs = "x"',
            "pyproject.toml:2:1: unknown key 'configs' in [tool.opero]; did you mean 'config'?\n   2 | configs = \"x\"",
        ),
        (
            (),
            {},
            '[tool.opero-plugin]\nconfg = 1\n\n[tool . opero]\nconfig = "policies"\n  "confg" = "x"',
            "pyproject.toml:6:3: unknown key 'confg' in [tool.opero]; did you mean 'config'?",
        ),
        ((), {}, 'tool.opero.confg = "x"', "pyproject.toml: unknown key 'confg' in [tool.opero]; did you mean"),
        ((), {}, "[tool]\nopero = 1", "pyproject.toml: [tool.opero] must be a table"),
        ((), {}, "tool.opero = \n", "pyproject.toml:1:14: is not valid TOML"),
        ((None, "a/b"), {}, "", "environment: 'a/b' is not a valid environment name"),
        (
            (),
            {"OPERO_ENV": "base"},
            "",
            "OPERO_ENV: 'base' is not a valid environment name: base.yaml applies to every",
        ),
    ],
)
def test_a_missing_place_is_reported_with_what_names_it(
    policies: Policies, arguments: tuple[Any, ...], environ: dict[str, str], pyproject: str, said: str
) -> None:
    if pyproject:
        Path("pyproject.toml").write_text(pyproject)
    directory, named = [*arguments, None, None][:2]
    with pytest.raises(ConfigError) as caught:
        load(directory, named, environ)
    assert str(caught.value).startswith(said)


def test_a_misspelt_environment_names_those_that_exist(policies: Policies) -> None:
    policies.write(base=EMPTY, production=EMPTY, staging=EMPTY)
    has = "policies has no file for the environment 'prodution' (it has production, staging)"
    assert policies.error("prodution") == f"environment: {has}; did you mean 'production'?"
    assert policies.error(OPERO_ENV="prodution") == f"OPERO_ENV: {has}; did you mean 'production'?"


def test_a_folder_with_only_base_accepts_any_environment(policies: Policies) -> None:
    policies.write(base="policies: {api: {retry: 1}}")
    assert retries(policies, "anything") == 1
    assert policies.load(OPERO_ENV="prod").environment == "prod"
    found = policies.load(ENVIRONMENT="prod")
    assert (found.environment, found.warnings) == ("prod", ())


def test_environment_without_a_file_is_a_warning_as_other_programs_read_it_too(policies: Policies) -> None:
    policies.write(base="policies: {api: {retry: 1}}", production=EMPTY, development="policies: {api: {retry: 2}}")
    found = policies.load(ENVIRONMENT="prod-eu")
    assert (found.environment, found.policies["api"].retry.retries) == ("prod-eu", 1)  # type: ignore[union-attr]
    has = "policies has no file for the environment 'prod-eu' (it has development, production)"
    assert found.warnings == (f"ENVIRONMENT: {has}; only base.yaml applies",)


@pytest.mark.parametrize("value", ["base", "a/b", "Production (EU)", "../x"])
def test_an_environment_that_is_no_name_is_a_warning_where_the_variable_is_not_opero_s(
    policies: Policies, value: str
) -> None:
    policies.write(base=EMPTY, production=EMPTY)
    found = policies.load(ENVIRONMENT=value)
    assert found.environment == "development"
    assert found.warnings[0].startswith(f"ENVIRONMENT: {value!r} is not a valid environment name: ")


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_variable_is_not_set(policies: Policies, value: str) -> None:
    policies.write(base="policies: {api: {retry: 1}}", development=EMPTY, production=EMPTY)
    found = load(environ=dict.fromkeys(RESERVED, value))
    assert (found.environment, found.enabled, found.directory) == ("development", True, policies.directory)
    assert found.warnings == ()
    assert load(environ={"OPERO_ENV": value, "ENVIRONMENT": "production"}).environment == "production"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a working directory two levels below its root."""
    root = tmp_path / "project"
    (root / "src" / "app").mkdir(parents=True)
    (root / "pyproject.toml").write_text("")
    monkeypatch.chdir(root / "src" / "app")
    return root


def write_base(folder: Path, retries: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.yaml").write_text(f"policies: {{api: {{retry: {retries}}}}}")


def test_policies_are_looked_for_upwards_to_the_root_of_the_project(project: Path) -> None:
    write_base(project.parent / "policies", 9)
    assert load(environ={}).directory is None
    write_base(project / "policies", 1)
    found = load(environ={})
    assert (found.directory, found.chosen_by) == (project / "policies", f"{project / 'policies'} was found")
    write_base(project / "src" / "policies", 2)
    assert load(environ={}).policies["api"].retry.retries == 2  # type: ignore[union-attr]
    write_base(Path("policies"), 3)
    assert load(environ={}).policies["api"].retry.retries == 3  # type: ignore[union-attr]


def test_the_repository_is_the_root_of_its_projects(project: Path) -> None:
    write_base(project.parent / "policies", 9)
    (project.parent / ".git").mkdir()
    assert load(environ={}).policies["api"].retry.retries == 9  # type: ignore[union-attr]
    (project / ".git").write_text("gitdir: elsewhere")  # as in a worktree
    assert load(environ={}).directory is None


def test_pyproject_is_looked_for_upwards_and_the_nearest_place_decides(project: Path) -> None:
    (project / "pyproject.toml").write_text('[tool.opero]\nconfig = "conf"\n')
    write_base(project / "conf", 4)
    found = load(environ={})
    assert found.policies["api"].retry.retries == 4  # type: ignore[union-attr]
    assert found.chosen_by == f"{project / 'pyproject.toml'}, config in [tool.opero]"
    write_base(project / "src" / "policies", 2)
    assert load(environ={}).policies["api"].retry.retries == 2  # type: ignore[union-attr]


def test_an_env_file_is_looked_for_upwards(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_base(project / "policies", 1)
    (project / ".env").write_text("OPERO_API_RETRIES=5")
    (project.parent / ".env").write_text("OPERO_API_RETRIES=6")
    assert load().policies["api"].retry.retries == 5  # type: ignore[union-attr]
    assert load(environ={}).policies["api"].retry.retries == 1  # type: ignore[union-attr]
    Path(".env").write_text("OPERO_API_RETRIES=7")
    assert load().policies["api"].retry.retries == 7  # type: ignore[union-attr]


def test_nothing_is_looked_for_above_a_directory_that_others_can_write(project: Path) -> None:
    write_base(project / "policies", 1)
    (project / "src").chmod(0o777)
    assert load(environ={}).directory is None
    (project / "src").chmod(0o755)
    assert load(environ={}).directory == project / "policies"


def test_nor_in_or_above_the_home_directory(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_base(project / "policies", 1)
    for home in (project, project / "src"):
        monkeypatch.setenv("HOME", str(home))
        assert load(environ={}).directory is None


def test_without_a_project_only_the_working_directory_counts(project: Path) -> None:
    (project / "pyproject.toml").unlink()
    write_base(project / "policies", 1)
    assert load(environ={}).directory is None


@pytest.mark.parametrize(
    "text",
    [
        "[tool.opero]\nconfig = 'conf'",
        "[ tool . opero ]\r\nconfig='conf'",
        "['tool'.\"opero\"] # here\nconfig='conf'",
        "[tool]\nopero = {config = 'conf'}",
        "[tool]\n  'opero'.config = 'conf'",
        "[tool]\nother = 1\nopero\t.\tconfig = 'conf'",
        "tool.opero.config = 'conf'",
        "tool = {opero = {config = 'conf'}}",
        "tool = {other=1,opero.config='conf'}",
        "tool.opero = {config = 'conf'}",
        "project.dependencies = ['opero']\n[tool.'opero']\nconfig = 'conf'",
    ],
)
def test_pyproject_names_the_directory_in_any_toml(project: Path, text: str) -> None:
    write_base(project / "conf", 4)
    (project / "pyproject.toml").write_text(text)
    assert load(environ={}).directory == project / "conf"


@pytest.mark.parametrize("text", ["dependencies = ['opero>=1', \"opero[redis]\"", "name = 'opero'\nx ="])
def test_the_toml_of_a_user_of_opero_may_be_invalid(project: Path, text: str) -> None:
    (project / "pyproject.toml").write_text(text)
    assert load(environ={}).directory is None


def test_the_toml_of_others_may_be_invalid(project: Path) -> None:
    (project / "pyproject.toml").write_text("tool = ")
    assert load(environ={}).directory is None


def test_case_counts_in_an_environments_name_on_every_system(policies: Policies) -> None:
    policies.write(base=EMPTY, production=EMPTY)
    assert policies.error("Production").endswith("did you mean 'production'?")


def test_development_needs_no_file_beside_base(policies: Policies) -> None:
    policies.write(base=EMPTY, production=EMPTY)
    assert policies.load("development").environment == "development"


def test_a_named_directory_without_base_needs_the_environments_file(policies: Policies) -> None:
    policies.write(production=EMPTY)
    assert policies.error() == (
        "policies has no file for the environment 'development' (it has production); "
        "create development.yaml (`policies: {}` changes nothing)"
    )


def test_a_place_outside_the_working_directory_is_shown_in_full(policies: Policies, tmp_path: Path) -> None:
    other = tmp_path.parent / f"{tmp_path.name}-other"
    other.mkdir()
    (other / "base.yaml").write_text("policies: 5")
    with pytest.raises(ConfigError, match="must be a mapping") as caught:
        load(other, environ={})
    assert str(caught.value).startswith(f"{other}/base.yaml:1:11: ")


NO_PATHS = {
    "too long": "x" * 300,
    "too deep": "x/" * 5000,
    "a NUL": "a\0b",
    "a surrogate": "\ud800",
    "~unknown": "~nobody-has-this/x",
}


@pytest.mark.parametrize("text", NO_PATHS.values(), ids=NO_PATHS)
@pytest.mark.parametrize("name", ["OPERO_CONFIG", "OPERO_ENV_FILE", "OPERO_SECRETS_DIR"])
def test_a_text_that_is_no_path_is_reported_with_the_variable(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=r"does not exist|cannot be read: File name too long") as caught:
        load(environ={name: text})
    assert [each.place for each in caught.value.problems] == [name]
    argument = name.removeprefix("OPERO_").lower().replace("config", "directory")
    with pytest.raises(ConfigError, match=r"does not exist|cannot be read: File name too long") as caught:
        load(**{argument: text}, environ={})  # type: ignore[arg-type]
    assert [each.place for each in caught.value.problems] == [argument]
