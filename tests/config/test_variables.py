"""Variables from beside the process: `.env` files and directories of secrets. And those of `functions:` entries."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from config.conftest import Policies
from opero import Registry
from opero.cache.settings import CacheSettings
from opero.config.configuration import Configuration
from opero.config.settings import load
from opero.errors import ConfigError

pytestmark = pytest.mark.usefixtures("_files")

FILE, SECRETS = Path("my.env"), Path("secrets")


@pytest.fixture
def _files(policies: Policies) -> None:
    policies.write(base="policies: {a: {retry: 1}, b: {retry: 2}}")
    SECRETS.mkdir()
    FILE.write_text("")


def loaded(text: str | bytes = "", *, secrets: dict[str, str] | None = None, **environ: str) -> Configuration:
    FILE.write_bytes(text if isinstance(text, bytes) else text.encode())
    for name, value in (secrets or {}).items():
        (SECRETS / name).write_text(value)
    return load("policies", environ=environ, env_file=FILE, secrets_dir=SECRETS)


def told(text: str | bytes = "", *, secrets: dict[str, str] | None = None, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(text, secrets=secrets, **environ)
    return [f"{each.place}: {each.text}" for each in caught.value.problems]


def chain(configuration: Configuration, profile: str = "a", path: str = "retry.retries") -> list[tuple[object, str]]:
    return [(leaf.value, str(leaf.source)) for leaf in configuration.leaves(profile)[path].chain()]


# Which of them holds


def test_the_process_comes_over_the_env_file_over_the_secrets_over_the_files() -> None:
    found = loaded("OPERO_A_RETRIES=30\n", secrets={"OPERO_A_RETRIES": "20\n"}, OPERO_A_RETRIES="40")
    assert found.policies["a"].retry.retries == 40  # type: ignore[union-attr]
    assert chain(found) == [
        ("40", "OPERO_A_RETRIES"),
        ("30", "my.env:1:1 (OPERO_A_RETRIES)"),
        ("20", "secrets/OPERO_A_RETRIES"),
        (1, "policies/base.yaml:1:23"),
    ]


def test_precedence_does_not_depend_on_the_form_or_case_of_a_variable() -> None:
    found = loaded("opero_a_retries=30\n", secrets={"OPERO_A_RETRY": "20"}, OPERO_POLICIES__A__RETRY__RETRIES="40")
    assert [source for _, source in chain(found)] == [
        "OPERO_POLICIES__A__RETRY__RETRIES",
        "my.env:1:1 (opero_a_retries)",
        "secrets/OPERO_A_RETRY",
        "policies/base.yaml:1:23",
    ]


def test_the_environment_is_named_by_any_of_them(policies: Policies) -> None:
    policies.write(production="policies: {}", staging="policies: {}")
    assert loaded("OPERO_ENV=staging\n", secrets={"OPERO_ENV": "production"}).environment == "staging"
    assert loaded(secrets={"OPERO_ENV": "production"}).environment == "production"
    assert loaded("ENVIRONMENT=staging", OPERO_ENV="production").environment == "production"
    assert told("\nOPERO_ENV=stagin\n") == [
        (
            "my.env:2:1 (OPERO_ENV): policies has no file for the environment 'stagin' (it has production, staging); "
            "did you mean 'staging'?"
        )
    ]


def test_the_file_and_the_directory_are_named_by_an_argument_or_a_variable_or_are_where_they_always_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("other.env").write_text("OPERO_A_RETRIES=7")
    Path(".env").write_text("OPERO_A_RETRIES=8")
    (SECRETS / "OPERO_B_RETRIES").write_text("9")
    found = load("policies", environ={"OPERO_ENV_FILE": "other.env", "opero_secrets_dir": " secrets "})
    assert [found.policies[name].retry.retries for name in "ab"] == [7, 9]  # type: ignore[union-attr]
    monkeypatch.setenv("OPERO_SECRETS_DIR", "secrets")
    assert [load().policies[name].retry.retries for name in "ab"] == [8, 9]  # type: ignore[union-attr]
    assert load().watched == (Path("policies").absolute(), SECRETS.absolute(), Path(".env").absolute())
    assert load(environ={}).policies["a"].retry.retries == 1  # type: ignore[union-attr]


def test_a_directory_called_env_is_no_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").mkdir()
    assert load().policies["a"].retry.retries == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"OPERO_ENV_FILE": "nope"}, "OPERO_ENV_FILE: file nope does not exist"),
        ({"OPERO_ENV_FILE": "secrets"}, "OPERO_ENV_FILE: secrets is not a file"),
        ({"OPERO_SECRETS_DIR": "nope"}, "OPERO_SECRETS_DIR: directory nope does not exist"),
        ({"OPERO_SECRETS_DIR": "my.env"}, "OPERO_SECRETS_DIR: my.env is not a directory"),
        ({"OPERO_ENVFILE": "my.env"}, "OPERO_ENVFILE: names no profile; did you mean OPERO_ENV_FILE?"),
        ({"OPERO_SECRET_DIR": "s"}, "OPERO_SECRET_DIR: names no profile; did you mean OPERO_SECRETS_DIR?"),
    ],
)
def test_paths_named_by_variables_must_exist(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("policies", environ=environ)
    assert str(caught.value) == said


def test_an_argument_that_names_nothing_is_told_as_the_argument() -> None:
    with pytest.raises(ConfigError, match="^env_file: file nope does not exist$"):
        load("policies", environ={}, env_file="nope")
    with pytest.raises(ConfigError, match="^secrets_dir: my.env is not a directory$"):
        load("policies", environ={}, secrets_dir="my.env")


# What an .env file may hold


@pytest.mark.parametrize(
    ("text", "value"),
    {
        "plain": ("OPERO_A_RETRIES=7", "7"),
        "with export": ("export OPERO_A_RETRIES=7\n", "7"),
        "in quotes": ('OPERO_A_RETRIES="7"\n', "7"),
        "in single quotes, with a comment": ("OPERO_A_RETRIES='7' # as always\n", "7"),
        "with spaces": ("  OPERO_A_RETRIES = 7  \n", "7"),
        "after a mark of byte order": (b"\xef\xbb\xbfOPERO_A_RETRIES=7\n", "7"),
        "with line ends of Windows": (b"# first\r\n\r\nOPERO_A_RETRIES=7\r\n", "7"),
        "from a variable of the file": ("N=7\nOPERO_A_RETRIES=${N}\n", "7"),
        "from a variable of the process": ("OPERO_A_RETRIES=${TIMES}\n", "9"),
        "from the file, though the process has it": ("TIMES=7\nOPERO_A_RETRIES=${TIMES}\n", "7"),
        "by default": ("OPERO_A_RETRIES=${NOPE:-7}\n", "7"),
    }.values(),
)
def test_a_line_may_be_written_in_many_ways(text: str | bytes, value: str) -> None:
    assert chain(loaded(text, TIMES="9"))[0][0] == value


def test_the_environment_of_the_process_is_not_used_if_environ_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMES", "3")
    assert told("OPERO_A_RETRIES=${TIMES}\n") == [
        ("my.env:1:1 (OPERO_A_RETRIES): refers to a variable that is not set; use ${NAME:-} if it may be missing")
    ]


def test_lines_of_others_do_not_matter() -> None:
    found = loaded("# OPERO_A_RETRIES=9\nDATABASE_URL=${NOPE}\nNOT A LINE\nDEBUG\nOPERA_A=1\n")
    assert chain(found) == [(1, "policies/base.yaml:1:23")]


WRONG_LINES = {
    "a wrong value": (
        "\nexport  OPERO_A_RETRIES=x",
        ("my.env:2:9 (OPERO_A_RETRIES): policies.a.retry.retries: 'x' is invalid: use an integer >= 0"),
    ),
    "an unknown name": (
        "A=1\r\nOPERO_A_RETRIS=1\r\n",
        "my.env:2:1 (OPERO_A_RETRIS): the profile 'a' has no option 'retris'; did you mean OPERO_A_RETRIES?",
    ),
    "after a value of several lines": (
        'A="1\n2"\nOPERO_ENVS=1',
        "my.env:3:1 (OPERO_ENVS): names no profile; did you mean OPERO_ENV?",
    ),
    "after characters that end a line elsewhere": (
        "A=1\x0c2\u20283\x85\nOPERO_ENVS=1",
        "my.env:2:1 (OPERO_ENVS): names no profile; did you mean OPERO_ENV?",
    ),
    "twice": (
        "OPERO_A_RETRIES=1\nOPERO_A_RETRIES=2\n",
        "my.env:2:1 (OPERO_A_RETRIES): duplicate variable (first at line 1); keep one of them",
    ),
    "twice, in another case": (
        "opero_a_retries=1\nOPERO_A_RETRIES=2\n",
        (
            "my.env:2:1 (OPERO_A_RETRIES): is also set as my.env:1:1 (opero_a_retries), and names are "
            "case-insensitive; unset one of them"
        ),
    ),
    "twice, in another form": (
        "OPERO_A_RETRIES=1\nOPERO_POLICIES__A__RETRY__RETRIES=2\n",
        (
            "my.env:2:1 (OPERO_POLICIES__A__RETRY__RETRIES): sets policies.a.retry.retries, "
            "and so does my.env:1:1 (OPERO_A_RETRIES); unset one of them"
        ),
    ),
    "no value": ("OPERO_A_RETRIES\n", "my.env:1:1 (OPERO_A_RETRIES): has no value; use NAME=value, or remove it"),
    "an empty value": ("OPERO_A_RETRIES=\n", "my.env:1:1 (OPERO_A_RETRIES): is empty; unset it"),
    "no line at all": (
        "\nOPERO_A_RETRIES: 4\n",
        "my.env:2:1: cannot be parsed; use NAME=value, quoted if the value contains spaces",
    ),
    "a quote without end": (
        "OPERO_A_RETRIES='4\n",
        "my.env:1:1: cannot be parsed; use NAME=value, quoted if the value contains spaces",
    ),
    "another encoding": (b"A=1\nOPERO_A_RETRIES=\xe9\n", "my.env:2:1: is not UTF-8; save it as UTF-8"),
    "where variables are": (
        "OPERO_SECRETS_DIR=secrets\n",
        (
            "my.env:1:1 (OPERO_SECRETS_DIR): has no effect here, since it locates variables; "
            "set it in the environment of the process"
        ),
    ),
    "the switch": ("OPERO_ENABLED=perhaps\n", "my.env:1:1 (OPERO_ENABLED): 'perhaps' is invalid: use true or false"),
}


@pytest.mark.parametrize(("text", "said"), WRONG_LINES.values(), ids=WRONG_LINES)
def test_a_wrong_line_is_reported_with_its_place_and_the_variable(text: str | bytes, said: str) -> None:
    (line,) = told(text)
    assert line == said


def test_a_file_that_may_not_be_read_is_reported() -> None:
    FILE.chmod(0)
    path = FILE if not os.access(FILE, os.R_OK) else Path("/proc/self/mem")  # root may read all but such a one
    if not path.exists():
        pytest.skip("there is nothing here that root may not read")
    with pytest.raises(ConfigError, match=f"{path}: cannot be read: (Permission denied|Input/output error)"):
        load("policies", environ={}, env_file=path)


# What a directory of secrets may hold


def test_secrets_may_be_links_as_kubernetes_makes_them() -> None:
    hidden = SECRETS / "..2026_11_24"
    hidden.mkdir()
    (hidden / "OPERO_A_CACHE_SECRET").write_text("hunter2\n")
    (hidden / "tls.crt").write_bytes(b"\xff\xfe")
    (SECRETS / "..data").symlink_to(hidden.name)
    for name in ("OPERO_A_CACHE_SECRET", "tls.crt"):
        (SECRETS / name).symlink_to(Path("..data") / name)
    found = loaded()
    secret = found.policies["a"].cache.secret  # type: ignore[union-attr]
    assert secret is not None
    assert secret.get_secret_value() == "hunter2"
    assert str(found.leaves("a")["cache.secret"].source) == "secrets/OPERO_A_CACHE_SECRET"


def test_a_secret_that_is_wrong_is_reported_with_its_file() -> None:
    (SECRETS / "OPERO_A_CACHE_TTL").mkdir()
    (SECRETS / "OPERO_A_CACHE_KEY").symlink_to("nowhere")
    (SECRETS / "OPERO_A_CACHE_URL").write_bytes(b"\xff")
    (SECRETS / "OPERO_A_CACHE_SECRET").write_text("x" * 70_000)
    assert told(secrets={"OPERO_A_RETRIES": "x", "OPERO_A_RETRIS": "1", "OPERO_ENV_FILE": "my.env", "other": "1"}) == [
        "secrets/OPERO_A_CACHE_KEY: cannot be read: No such file or directory",
        "secrets/OPERO_A_CACHE_SECRET: is larger than 65536 bytes, the limit for a secret; remove it",
        "secrets/OPERO_A_CACHE_TTL: is not a file, so it cannot hold a variable's value; remove it",
        "secrets/OPERO_A_CACHE_URL: is not UTF-8; save it as UTF-8",
        "secrets/OPERO_A_RETRIES: policies.a.retry.retries: 'x' is invalid: use an integer >= 0",
        "secrets/OPERO_A_RETRIS: the profile 'a' has no option 'retris'; did you mean OPERO_A_RETRIES?",
        (
            "secrets/OPERO_ENV_FILE: has no effect here, since it locates variables; "
            "set it in the environment of the process"
        ),
    ]


def test_spaces_of_a_secret_matter_and_the_line_end_does_not() -> None:
    found = loaded(secrets={"OPERO_A_CACHE_SECRET": " hunter2 \r\n"})
    assert found.policies["a"].cache.secret.get_secret_value() == " hunter2 "  # type: ignore[union-attr]


# Where a cache looks for what it needs


def test_a_cache_finds_its_own_variables_in_the_same_places(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPERO_CACHE_SECRET", "OPERO_CACHE_REDIS_URL", "OPERO_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    FILE.write_bytes(b"\xef\xbb\xbfOPERO_CACHE_REDIS_URL=redis://file\nOPERO_CACHE_DIR=from-file\nOTHER=1\n")
    (SECRETS / "OPERO_CACHE_SECRET").write_text("hunter2")
    (SECRETS / "OPERO_CACHE_DIR").write_text("from-secrets")
    monkeypatch.setenv("OPERO_ENV_FILE", str(FILE))
    monkeypatch.setenv("OPERO_SECRETS_DIR", str(SECRETS))
    found = CacheSettings.read()
    assert found.redis_url is not None
    assert found.secret is not None
    assert found.redis_url.get_secret_value() == "redis://file"
    assert (found.secret.get_secret_value(), found.dir) == ("hunter2", Path("from-file"))
    monkeypatch.setenv("OPERO_CACHE_DIR", "from-process")
    assert CacheSettings.read().dir == Path("from-process")
    monkeypatch.setenv("OPERO_SECRETS_DIR", "nowhere")
    with pytest.raises(ConfigError, match="OPERO_SECRETS_DIR: directory nowhere does not exist"):
        CacheSettings.read()


# Entries of `functions:`


@pytest.fixture
def _entries(policies: Policies, _files: None) -> None:
    policies.write(
        base="""
        policies: {a: {retry: 1}}
        functions: {"app.users:get_user": {policy: a, cache: 5}, "app.*": {retry: 2}, "app.jobs:*": {retry: 3}}
        """
    )


def entry_values(path: str, **environ: str) -> list[tuple[object, str]]:
    def get_user(user: str) -> str:
        return user

    get_user.__module__, get_user.__qualname__ = "app.users", "get_user"
    registry = Registry.load("policies", environ=environ)
    bound = registry.bind(get_user, "a")
    return [(leaf.value, str(leaf.source)) for leaf in registry.explain(bound)[path].chain()]


@pytest.mark.usefixtures("_entries")
def test_an_entry_has_variables_for_every_field() -> None:
    variable = "OPERO_FUNCTIONS__APP_USERS_GET_USER__CACHE__TTL"
    assert entry_values("cache.ttl", **{variable: "9"})[:2] == [("9", variable), (5, "policies/base.yaml:2:54")]
    assert entry_values("policy", OPERO_FUNCTIONS__APP_USERS_GET_USER__POLICY="a")[0] == (
        "a",
        "OPERO_FUNCTIONS__APP_USERS_GET_USER__POLICY",
    )


@pytest.mark.usefixtures("_entries")
def test_a_glob_has_variables_too() -> None:
    variable = "OPERO_FUNCTIONS__APP____RETRY__RETRIES"  # app.* → APP__
    assert entry_values("retry.retries", **{variable: "9"})[:2] == [("9", variable), (2, "policies/base.yaml:2:75")]


@pytest.mark.usefixtures("_entries")
@pytest.mark.parametrize(
    ("variable", "said"),
    {
        "OPERO_FUNCTIONS__APP_USERS_GET_USR__RETRY": "there is no `functions:` entry 'app_users_get_usr'; "
        "did you mean 'app_users_get_user'?",
        "OPERO_FUNCTIONS__APP_USERS_GET_USER__CACHE__TTLL": "cache has no field 'ttll'; did you mean 'ttl'?",
        "OPERO_FUNCTIONS__APP_USERS_GET_USER__CASHE": "there is no policy 'cashe'; did you mean 'cache'?",
        "OPERO_FUNCTIONS__APP_USERS_GET_USER__EXTENDS": "there is no policy 'extends'; known:",
    }.items(),
)
def test_a_variable_of_no_entry_names_the_nearest(variable: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("policies", environ={variable: "1"})
    assert str(caught.value).startswith(f"{variable}: {said}")


def test_entries_that_variables_cannot_tell_apart_are_reported(policies: Policies) -> None:
    policies.write(base="functions: {'a.b:c': {retry: 1}, 'a_b:c': {retry: 2}, 'a.b:*': {retry: 3}}")
    assert policies.error(OPERO_FUNCTIONS__A_B_C__RETRY="5") == (
        "OPERO_FUNCTIONS__A_B_C__RETRY: is ambiguous, as it can mean functions.a.b:c.retry or functions.a_b:c.retry; "
        "set it in a file, as the names of these functions do not differ in letters and digits"
    )
    assert policies.load(OPERO_FUNCTIONS__A_B____RETRY="5").functions


# Who may write


def test_world_writable_paths_cause_one_warning_each(policies: Policies, caplog: pytest.LogCaptureFixture) -> None:
    policies.directory.chmod(0o1777)  # even in a sticky directory, others can add production.yaml
    (policies.directory / "base.yaml").chmod(0o666)
    FILE.chmod(0o606)
    SECRETS.chmod(0o757)
    with caplog.at_level(logging.DEBUG, "opero"):
        registry = Registry.load("policies", environ={}, env_file=FILE, secrets_dir=SECRETS)
    registry.reload()
    said = registry.configuration.warnings
    assert [each.partition(":")[0] for each in said] == ["policies", "policies/base.yaml", "secrets", "my.env"]
    assert said[0] == (
        "policies: is writable by all users of this machine, who can choose what this program imports and calls; "
        "run: chmod o-w policies"
    )
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [("WARNING", each) for each in said]


def test_group_writable_paths_cause_no_warning(policies: Policies) -> None:
    policies.directory.chmod(0o775)
    (policies.directory / "base.yaml").chmod(0o664)
    assert policies.load().warnings == ()


def warned_of(configuration: Configuration) -> list[str]:
    return [each.partition(":")[0] for each in configuration.warnings]


def test_a_world_writable_parent_directory_causes_a_warning(policies: Policies, tmp_path: Path) -> None:
    (tmp_path / "config" / "app").mkdir(parents=True)
    named = policies.directory.rename(tmp_path / "config" / "app" / "policies")
    (tmp_path / "config").chmod(0o777)
    assert warned_of(load(named, environ={})) == ["config"]
    (tmp_path / "config").chmod(0o1777)
    assert warned_of(load(named, environ={})) == []


def test_a_world_writable_secret_file_causes_a_warning() -> None:
    (SECRETS / "OPERO_A_RETRIES").write_text("2")
    (SECRETS / "others").write_text("")
    (SECRETS / "OPERO_A_RETRIES").chmod(0o666)
    (SECRETS / "others").chmod(0o666)
    assert warned_of(load("policies", environ={}, secrets_dir=SECRETS)) == ["secrets/OPERO_A_RETRIES"]


def test_a_world_writable_pyproject_that_names_the_directory_causes_a_warning() -> None:
    project = Path("pyproject.toml")
    project.write_text("")
    project.chmod(0o666)
    assert warned_of(load(environ={})) == []
    project.write_text("[tool.opero]\nconfig = 'policies'")
    assert warned_of(load(environ={})) == ["pyproject.toml"]
    assert warned_of(load(environ={"OPERO_CONFIG": "policies"})) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_files_of_other_users_cause_one_warning_for_each_user(policies: Policies) -> None:
    os.chown("policies/base.yaml", 12345, -1)
    os.chown("policies", 12345, -1)
    (said,) = policies.load().warnings
    assert "belongs to another user of this machine (uid 12345), who can choose what this program imports and" in said


def test_a_world_writable_directory_behind_a_link_causes_a_warning(policies: Policies, tmp_path: Path) -> None:
    for name in ("open", "closed"):
        (tmp_path / name).mkdir()
    (policies.directory / "base.yaml").rename(tmp_path / "closed" / "base.yaml")
    Path("open/link.yaml").symlink_to("../closed/base.yaml")
    (policies.directory / "base.yaml").symlink_to("../open/link.yaml")
    assert warned_of(policies.load()) == []
    Path("open").chmod(0o777)
    assert warned_of(policies.load()) == ["open"]
    Path("closed/base.yaml").chmod(0o666)
    assert warned_of(policies.load()) == ["policies/base.yaml", "open"]
