"""`opero check`."""

from __future__ import annotations

import gc

import pytest

from cli.conftest import Command

BROKEN = """\
    policies:
      api:
        retry: {retries: -5}
"""


def test_a_configuration_without_problems_is_summed_up(command: Command) -> None:
    ran = command("check", "--all-envs")
    assert ran.code == 0
    assert ran.out == "2 environments (development, production), 2 profiles: no problems\n"
    assert command("check").out == "1 environment (development), 2 profiles: no problems\n"


def test_a_problem_is_shown_as_a_compiler_shows_it(command: Command) -> None:
    command.policies(production=BROKEN)
    ran = command("check", "--env", "production")
    assert ran.code == 1
    assert ran.out.splitlines() == [
        "policies/production.yaml:3:22: policies.api.retry.retries: -5 should be greater than or equal to 0",
        "   3 |     retry: {retries: -5}",
        "     |                      ^^",
        "",
        "1 problem in 1 environment (production)",
    ]
    assert command("check").code == 0


def test_all_environments_tell_each_problem_once_and_whom_it_concerns(command: Command) -> None:
    command.policies(base="policies:\n  api: {retries: 3}\n", production=BROKEN)
    ran = command("check", "--all-envs", "--json")
    assert ran.code == 1
    assert ran.json["ok"] is False
    assert [(each["line"], each["environments"]) for each in ran.json["problems"]] == [
        (2, ["development", "production"]),
        (3, ["production"]),
    ]
    lines = command("check", "--all-envs").out.splitlines()
    assert sum("unknown key 'retries' in policies.api" in line for line in lines) == 1
    assert any("-5" in line and line.endswith("[production]") for line in lines)
    assert lines[-1] == "2 problems in 2 environments (development, production)"


def test_problems_have_a_shape_in_json(command: Command) -> None:
    command.policies(production=BROKEN)
    assert command("check", "--env", "production", "--json").json == {
        "ok": False,
        "environments": ["production"],
        "profiles": [],
        "functions": [],
        "problems": [
            {
                "place": "policies/production.yaml:3:22",
                "text": "policies.api.retry.retries: -5 should be greater than or equal to 0",
                "file": "policies/production.yaml",
                "line": 3,
                "column": 22,
                "snippet": "    retry: {retries: -5}",
                "environments": ["production"],
            }
        ],
        "warnings": [],
    }


def test_variables_are_checked_too(command: Command) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPERO_API_RETRIS", "3")
        ran = command("check", "--all-envs")
    assert ran.code == 1
    assert ran.out.startswith("OPERO_API_RETRIS: ")
    assert "[" not in ran.out.splitlines()[0], "it concerns all of them"


def test_a_world_writable_directory_is_warned_of_once_and_is_no_problem(command: Command) -> None:
    (command.directory / "policies").chmod(0o777)
    ran = command("check", "--all-envs")
    assert ran.code == 0
    assert ran.err.count("warning: policies: is writable by all users of this machine") == 1
    assert len(command("check", "--all-envs", "--json").json["warnings"]) == 1
    assert "warning: policies" in command("show").err


MODULE = """\
    from opero import opero

    @opero(policy="api")
    def get(key): ...

    @opero(policy="apy")
    def lost(): ...

    @opero(policy="reports", arg_fallback="key")
    def report(key): ...
"""


def test_what_only_the_functions_tell_is_checked_with_their_modules(command: Command) -> None:
    gc.collect()  # the functions of other tests are bound no more
    command.write("app.py", MODULE)
    command.policies(development="functions:\n  'app:got': {cache: 5m}\n  'app:get': {fallback: {arg: kee}}\n")
    assert command("check").code == 0
    ran = command("check", "--import", "app")
    assert ran.code == 1
    told = ran.out.split("\n\n")
    assert any(
        each.startswith("app.py:6 (@opero): app:lost is bound to the profile 'apy', which does not exist; did you mean")
        for each in told
    )
    assert any("functions.app:got holds for no bound function; did you mean 'app:get'?" in each for each in told)
    assert any("'kee'" in each for each in told)
    ran = command("check", "--import", "app", "--all-envs", "--json")
    assert {tuple(each["environments"]) for each in ran.json["problems"]} == {
        ("development", "production"),
        ("development",),
    }
    assert ran.json["functions"] == ["app:get", "app:lost", "app:report"]


def test_a_module_that_cannot_be_imported_is_no_finding_but_a_usage_error(command: Command) -> None:
    ran = command("check", "--import", "nowhere")
    assert ran.code == 2
    assert "there is no module 'nowhere'" in ran.err


def test_a_decorator_that_asks_for_what_its_function_cannot_do_is_a_finding(command: Command) -> None:
    gc.collect()  # as above
    command.write("bad.py", "from opero import opero\n@opero(arg_fallback='kee')\ndef f(key): ...\n")
    command.write("good.py", "print('loading')\nfrom opero import opero\n@opero\ndef f(key): ...\n")
    ran = command("check", "--import", "bad", "--import", "good", "--json")
    assert ran.code == 1
    (problem,) = ran.json["problems"]
    assert (problem["place"], problem["line"]) == ("bad.py:2", 2)
    assert "'kee'" in problem["text"]
    assert "good:f" in ran.json["functions"]
    assert ran.err == "loading\n"


def test_environments_that_contradict_each_other_are_refused(command: Command) -> None:
    ran = command("check", "--all-envs", "--env", "production")
    assert ran.code == 2
    assert "--env and --all-envs contradict each other" in ran.err


def test_the_directory_that_a_env_file_names_is_the_one_that_is_checked(command: Command) -> None:
    command.write("other/base.yaml", "policies: {}\n")
    command.write("other/moon.yaml", "policies: {}\n")
    command.write(".env", "OPERO_CONFIG=other\n")
    assert command("check", "--all-envs", "--json").json["environments"] == ["moon"]


def test_a_directory_that_is_not_there_is_told_of(command: Command) -> None:
    assert command("check", "--all-envs", "--config", "nowhere").code == 2
    ran = command("check", "--config", "nowhere")
    assert ran.code == 1
    assert "the directory nowhere does not exist" in ran.out
    for path in (command.directory / "policies").iterdir():
        path.unlink()
    (command.directory / "policies").rmdir()
    ran = command("check", "--all-envs")
    assert ran.code == 2
    assert "write one: opero init" in ran.err


def test_the_environment_that_a_env_file_names_is_the_one_that_is_told(command: Command) -> None:
    command.policies(production=BROKEN)
    command.write(".env", "OPERO_ENV=production\n")
    ran = command("check", "--json")
    assert ran.json["environments"] == ["production"]
    assert [each["environments"] for each in ran.json["problems"]] == [["production"]]
    assert command("check").out.endswith("1 problem in 1 environment (production)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPERO_ENV_FILE", "none.env")
        patch.setenv("ENVIRONMENT", "production")
        assert command("check", "--json").json["environments"] == ["production"]


@pytest.mark.parametrize(
    ("decorator", "texts"),
    [
        ("@opero(policy='api', retries='x', timeout='zz')", ["retry.retries: ", "timeout.total: "]),
        ("@opero(retires=3)", ["unknown option 'retires'; did you mean 'retries'?"]),
        ("@opero(policy='api', cache={'tll': 3})", ["cache.tll: "]),
        ("@RetryPolicy(retries=-1).apply", ["retries: "]),
    ],
)
def test_each_mistake_of_a_decorator_is_a_problem_with_its_line(
    command: Command, decorator: str, texts: list[str]
) -> None:
    command.write("wrong.py", f"from opero import opero, RetryPolicy\n\n{decorator}\ndef f(key): ...\n")
    ran = command("check", "--import", "wrong", "--json")
    assert ran.code == 1
    problems = ran.json["problems"]
    assert [(each["place"], each["file"], each["line"]) for each in problems] == [("wrong.py:3", "wrong.py", 3)] * len(
        texts
    )
    for problem, text in zip(problems, texts, strict=True):
        assert problem["text"].startswith(text)
    ran = command("call", "wrong:f", "1")
    assert ran.code == 2
    assert "the module 'wrong' fails when it is imported:\n\nwrong.py:3: " in ran.err


def test_a_module_whose_own_model_is_wrong_is_no_finding(command: Command) -> None:
    command.write("own.py", "from pydantic import BaseModel\nclass M(BaseModel):\n    x: int\nM(x='a')\n")
    ran = command("check", "--import", "own")
    assert ran.code == 2
    assert "the module 'own' fails when it is imported: ValidationError" in ran.err


def test_what_a_module_finds_wrong_in_a_file_is_told_once(command: Command) -> None:
    gc.collect()
    command.policies(
        development="functions:\n  'json:dumps': {fallback: {arg: kee, default: 1}, retry: {max_delay: 0.01}}\n"
    )
    command.policies(base="policies:\n  api:\n    retry: {min_delay: 5}\n")
    command.write(
        "boot.py", "from opero import get_default_registry\nget_default_registry().bind_import('json:dumps', 'api')\n"
    )
    ran = command("check", "--import", "boot", "--json")
    assert ran.code == 1
    (problem,) = ran.json["problems"]
    assert problem["file"].startswith("policies/")
    assert problem["snippet"]
    assert problem["environments"] == ["development"]


def test_a_profile_that_a_module_asks_for_and_is_not_there_has_its_line(command: Command) -> None:
    command.write("boot.py", "from opero import get_default_registry\n\nget_default_registry().bind(len, 'apy')\n")
    (problem,) = command("check", "--import", "boot", "--all-envs", "--json").json["problems"]
    assert problem["place"] == "boot.py:3"
    assert "'apy'" in problem["text"]
