"""`opero check`."""

from __future__ import annotations

import gc
import sys

import pytest

from cli.conftest import Command

BROKEN = """\
    policies:
      api:
        retry: {retries: -5}
"""


def test_the_summary_without_problems(command: Command) -> None:
    ran = command("check", "--all-envs")
    assert ran.code == 0
    assert ran.out == "2 environments (development, production), 2 profiles: no problems\n"
    assert command("check").out == "1 environment (development), 2 profiles: no problems\n"


def test_a_problem_is_shown_with_its_line(command: Command) -> None:
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


def test_with_all_environments_each_problem_is_shown_once_with_the_affected_ones(command: Command) -> None:
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


def test_the_json_of_problems(command: Command) -> None:
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


def test_environment_variables_are_checked(command: Command) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPERO_API_RETRIS", "3")
        ran = command("check", "--all-envs")
    assert ran.code == 1
    assert ran.out.startswith("OPERO_API_RETRIS: ")
    assert "[" not in ran.out.splitlines()[0], "all environments are affected"


def test_a_world_writable_directory_is_a_warning_shown_once(command: Command) -> None:
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


def test_with_import_the_bindings_of_functions_are_checked(command: Command) -> None:
    gc.collect()  # unbinds the functions of other tests
    command.write("app.py", MODULE)
    command.policies(development="functions:\n  'app:got': {cache: 5m}\n  'app:get': {fallback: {arg: kee}}\n")
    assert command("check").code == 0
    ran = command("check", "--import", "app")
    assert ran.code == 1
    messages = ran.out.split("\n\n")
    assert any(
        each.startswith("app.py:6 (@opero): app:lost is bound to the profile 'apy', which does not exist; did you mean")
        for each in messages
    )
    assert any("functions.app:got matches no bound function; did you mean 'app:get'?" in each for each in messages)
    assert any("'kee'" in each for each in messages)
    ran = command("check", "--import", "app", "--all-envs", "--json")
    assert {tuple(each["environments"]) for each in ran.json["problems"]} == {
        ("development", "production"),
        ("development",),
    }
    assert ran.json["functions"] == ["app:get", "app:lost", "app:report"]


def test_a_module_that_cannot_be_imported_is_a_usage_error(command: Command) -> None:
    ran = command("check", "--import", "nowhere")
    assert ran.code == 2
    assert "no module 'nowhere' in " in ran.err


def test_a_decorator_whose_options_do_not_fit_its_function_is_a_problem(command: Command) -> None:
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


def test_env_and_all_envs_cannot_be_combined(command: Command) -> None:
    ran = command("check", "--all-envs", "--env", "production")
    assert ran.code == 2
    assert "--env and --all-envs cannot be combined" in ran.err


def test_the_directory_named_in_the_env_file_is_checked(command: Command) -> None:
    command.write("other/base.yaml", "policies: {}\n")
    command.write("other/moon.yaml", "policies: {}\n")
    command.write(".env", "OPERO_CONFIG=other\n")
    assert command("check", "--all-envs", "--json").json["environments"] == ["moon"]


def test_a_missing_directory_is_an_error(command: Command) -> None:
    assert command("check", "--all-envs", "--config", "nowhere").code == 2
    ran = command("check", "--config", "nowhere")
    assert ran.code == 2
    assert "the directory nowhere does not exist" in ran.err
    for path in (command.directory / "policies").iterdir():
        path.unlink()
    (command.directory / "policies").rmdir()
    ran = command("check", "--all-envs")
    assert ran.code == 2
    assert "create it with opero init" in ran.err


def test_the_environment_named_in_the_env_file_is_checked(command: Command) -> None:
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
        ("@opero(policy='api', retries='x', timeout='zz')", ["retries: ", "timeout.total: "]),
        ("@opero(retires=3)", ["unknown option 'retires'; did you mean 'retries'?"]),
        ("@opero(policy='api', cache={'tll': 3})", ["cache.tll: "]),
        ("@RetryPolicy(retries=-1).apply", ["retries: "]),
    ],
)
def test_each_invalid_option_of_a_decorator_is_a_problem_with_its_line(
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
    assert "cannot import module 'wrong':\n\nwrong.py:3: " in ran.err


def test_a_validation_error_of_another_model_is_a_usage_error(command: Command) -> None:
    command.write("own.py", "from pydantic import BaseModel\nclass M(BaseModel):\n    x: int\nM(x='a')\n")
    ran = command("check", "--import", "own")
    assert ran.code == 2
    assert "cannot import module 'own': ValidationError" in ran.err


def test_a_problem_of_a_file_found_during_an_import_is_reported_once(command: Command) -> None:
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


def test_an_unknown_profile_in_a_module_is_a_problem_with_its_line(command: Command) -> None:
    command.write("boot.py", "from opero import get_default_registry\n\nget_default_registry().bind(len, 'apy')\n")
    (problem,) = command("check", "--import", "boot", "--all-envs", "--json").json["problems"]
    assert problem["place"] == "boot.py:3"
    assert "'apy'" in problem["text"]


UNAVAILABLE = [
    ("cache: {backend: memry}", 1, "cache: unknown cache backend 'memry'; did you mean 'memory'"),
    (
        "cache: {backend: dogpile.cache.pylibmc, allow_unsigned_pickle: true}",
        1,
        "'dogpile.cache.pylibmc' cannot",
    ),
    ("cache: {backend: dogpile.cache.dbm}", 1, "needs the name of its file: set arguments: {filename: …}"),
    ("cache: {backend: redis, ttl: 1h, url: 'redis://:s3cret@host:port'}", 1, "invalid redis URL: use redis:"),
    (
        "cache: {backend: disk, ttl: 1, cache_dir: calls.py/below}",
        1,
        "/calls.py/below cannot be used: Not a directory",
    ),
    ("cache: {backend: dogpile.cache.redis}", 1, "outlives the process, so without a ttl its results would be served"),
    ("cache: {backend: dogpile.cache.redis, ttl: null}", 0, "no problems"),
    ("cache: {serializer: signed_pickle}", 1, "requires a signing key: set cache.secret"),
    ("parallel: dask\n        rate_limit: 5", 1, "rate_limit cannot be shared with the machines of a cluster"),
    ("parallel: ray\n        bulkhead: 5", 1, "bulkhead cannot be shared with the machines of a cluster"),
    ("cache: {backend: disk, ttl: 1h, cache_dir: made/later}", 0, "no problems"),
    ("cache: {backend: redis, ttl: 1h, url: 'redis://127.0.0.1:1'}", 0, "no problems"),
    ("cache: {backend: memry, enabled: false}", 0, "no problems"),
    ("parallel: dask", 0, "no problems"),
]


@pytest.mark.parametrize(("policy", "code", "text"), UNAVAILABLE)
def test_what_the_first_call_refuses_is_a_problem_of_the_profile(
    command: Command, policy: str, code: int, text: str
) -> None:
    command.policies(development=f"policies:\n    new:\n        {policy}\n")
    command.write("calls.py", "from opero import opero, opmap\n@opero(policy='new')\ndef f(key): return key\n")
    for arguments in (["check"], ["check", "--import", "calls"]):
        ran = command(*arguments)
        assert ran.code == code
        assert text in ran.out
        assert ran.out.count("policies.new.") == code, "reported once, not again for the function"
        assert "s3cret" not in ran.out
    assert not (command.directory / "made").exists(), "checking makes no files"
    if code and "parallel" not in policy:
        assert command("call", "calls:f", "1").code == 2


def test_a_directory_that_cannot_be_made_now_is_a_problem_and_no_error_of_calls(command: Command) -> None:
    command.policies(
        development="policies:\n    new:\n        cache: {backend: disk, ttl: 1, cache_dir: /proc/nowhere}\n"
    )
    command.write("calls.py", "from opero import opero\n@opero(policy='new')\ndef f(key): return key\n")
    ran = command("check")
    assert (ran.code, "disk at /proc/nowhere cannot be used: No such file" in ran.out) == (1, True)
    assert command("call", "calls:f", "1").code == 0


def test_a_missing_extra_is_a_problem_where_the_file_asks_for_it(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("redis", "distributed", "ray"):
        monkeypatch.setitem(sys.modules, module, None)
    command.policies(
        development="policies:\n  a: {cache: {backend: redis, ttl: 1h}}\n  b: {parallel: dask}\n  c: {parallel: ray}\n"
    )
    problems = command("check", "--json").json["problems"]
    assert [(each["line"], each["column"]) for each in problems] == [(2, 24), (3, 17), (4, 17)]
    for problem, extra in zip(problems, ("redis", "dask", "ray"), strict=True):
        assert f"pip install 'opero[{extra}]'" in problem["text"]


def test_what_does_not_fit_a_function_is_a_problem_of_the_function(command: Command) -> None:
    gc.collect()
    command.policies(development="policies:\n  t: {parallel: thread}\n  c: {cache: {tags: 'user:{uid}'}}\n")
    command.write(
        "fits.py",
        """\
        from opero import opero, opmap

        @opmap(policy="t")
        async def resize(path): ...

        @opero(policy="t")  # only its .map would be refused
        async def load(path): ...

        @opero(policy="c")
        def get(user_id): ...

        @opmap(policy="t", cache_backend="memry")
        def scale(path): ...
        """,
    )
    problems = command("check", "--import", "fits", "--json").json["problems"]
    assert [(each["line"], each["text"].split(";")[0]) for each in problems] == [
        (3, "resize is an async function, which mode 'thread' cannot run"),
        (9, "opero:fits.get: tag 'user:{uid}' refers to 'uid', which is not a parameter of the function"),
        (12, "fits:scale: unknown cache backend 'memry'"),
    ]


def test_a_variable_that_a_decorator_shadows_is_a_warning(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    command.policies(development="policies: {api: {retry: 3}}")
    command.write("shadow.py", "from opero import opero\n@opero(policy='api', retries=2)\ndef f(): ...\n")
    monkeypatch.setenv("OPERO_API_RETRIES", "8")
    ran = command("check", "--import", "shadow", "--json")
    assert ran.code == 0
    (warning,) = ran.json["warnings"]
    assert warning.startswith(
        "OPERO_API_RETRIES has no effect on shadow:f, as code takes precedence over a profile and"
    )
    assert command("check", "--json").json["warnings"] == []


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("OPERO_SERVE", "nonsense", "use an address and a port"),
        ("OPERO_WATCH", "perhaps", "use true or false"),
        ("OPERO_METRICS", "promtheus", "did you mean 'prometheus'?"),
        ("OPERO_LOG_LEVEL", "loud", "use DEBUG, INFO"),
        ("OPERO_LOG_FORMAT", "xml", "use text or json"),
        ("OPERO_RECEIPTS", "maybe", "use true or false"),
        ("OPERO_TOKEN", "secret:NO_SUCH_TOKEN", "NO_SUCH_TOKEN does not exist"),
        ("OPERO_HOSTS", "https://opero.example/", "is not the name of a host"),
        ("OPERO_ENABLED", "foo", "use true or false"),
    ],
)
def test_a_general_variable_that_is_invalid_is_a_problem(
    command: Command, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv(variable, value)
    for arguments in ((), ("--all-envs",)):
        ran = command("check", "--json", *arguments)
        assert ran.code == 1
        (problem,) = ran.json["problems"]
        assert problem["place"] == variable
        assert told in problem["text"]
    monkeypatch.delenv(variable)
    if variable != "OPERO_RECEIPTS":  # which is a variable of the process alone
        command.write(".env", f"{variable}={value}\n")
        assert [each["place"] for each in command("check", "--json").json["problems"]]


def test_general_variables_that_are_valid_are_no_problem(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    command.write(
        ".env",
        "OPERO_SERVE=127.0.0.1:9300\nOPERO_WATCH=yes\nOPERO_METRICS=prometheus, otel\nOPERO_LOG_LEVEL=10\n"
        "OPERO_LOG_FORMAT=JSON\nOPERO_TOKEN=secret:TOKEN_OF_PAGE\nTOKEN_OF_PAGE=x\n"
        "OPERO_HOSTS=a.example, b.example:8000,[::1]\n",
    )
    assert command("check").code == 0
