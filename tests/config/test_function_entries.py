"""`functions:`: which entries match a function, and their precedence."""

from __future__ import annotations

import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import ConfigError, Policy, PolicyNotFoundError, Registry, opero, opmap, set_default_registry
from opero.config.function_entries import FunctionEntries, specificity
from opero.config.sources import CODE, ConfigLayer, Marked, Section

if TYPE_CHECKING:
    from collections.abc import Callable

    from config.conftest import Policies


def named(name: str) -> Callable[[], int]:
    """A function of that name: "module:qualname"."""

    def function() -> int:
        return 1

    function.__module__, _, function.__qualname__ = name.partition(":")
    return function


def loaded(policies: Policies, text: str, **environ: str) -> Registry:
    policies.write(base=text)
    return Registry.load(policies.directory, environ=environ)


def test_precedence_is_profile_then_decorator_options_then_entry(policies: Policies) -> None:
    registry = loaded(
        policies,
        """
        policies: {api: {retry: {retries: 1, min_delay: 1, max_delay: 1, backoff_factor: 2}, cache: 30m}}
        functions:
          "app.users:get_user": {retry: {min_delay: 3, max_delay: 3}, cache: {max_size: 5}}
        """,
    )
    fetch = opero(policy="api", registry=registry, retries=2, min_delay=0.5)(named("app.users:get_user"))
    assert fetch.policy == Policy(
        retry={"retries": 2, "min_delay": 3, "max_delay": 3, "backoff_factor": 2}, cache={"ttl": 1800, "max_size": 5}
    )


def test_an_entrys_variable_has_the_last_word(policies: Policies) -> None:
    registry = loaded(
        policies,
        """
        policies: {api: {retry: 1}}
        functions: {"app.users:Users.get": {retry: 2}, "app.*": {timeout: 5s}}
        """,
        OPERO_FUNCTIONS__APP_USERS_USERS_GET__RETRY__RETRIES="3",
        opero_functions__app____timeout="6s",
        OPERO_API_RETRIES="9",
    )
    fetch = registry.bind(named("app.users:Users.get"), "api")
    assert fetch.policy == Policy(retry=3, timeout="6s")
    assert [str(leaf.source) for leaf in registry.explain(fetch)["retry.retries"].chain()] == [
        "OPERO_FUNCTIONS__APP_USERS_USERS_GET__RETRY__RETRIES",
        "policies/base.yaml:2:44",
        "OPERO_API_RETRIES",
        "policies/base.yaml:1:25",
    ]


def test_null_removes_a_policy_from_code_and_false_switches_it_off(policies: Policies) -> None:
    registry = loaded(
        policies,
        'functions: {"app:one": {cache: null, rate_limit: false}}',
    )
    fetch = opero(cache=True, rate_limit="5/s", retries=1, registry=registry)(named("app:one"))
    assert fetch.policy.cache is None
    assert fetch.policy.active("rate_limit") is None
    assert fetch.policy.retry == Policy(retry=1).retry


def test_the_most_specific_entry_has_precedence_field_by_field(policies: Policies) -> None:
    registry = loaded(
        policies,
        """
        policies: {api: {retry: 1}}
        functions:
          "app.users:get_user": {retry: 4}
          "app.*": {retry: 2, timeout: 2s, bulkhead: 2}
          "*": {retry: 9, timeout: 9s, bulkhead: 9, circuit_breaker: 9}
          "app.users:*": {retry: 3, timeout: 3s}
        """,
    )
    fetch = registry.bind(named("app.users:get_user"), "api")
    assert fetch.policy == Policy(retry=4, timeout="3s", bulkhead=2, circuit_breaker=9)
    [bound] = registry.bindings()
    assert bound.entries == ("*", "app.*", "app.users:*", "app.users:get_user")


def test_the_more_specific_entry_has_precedence_in_any_file(policies: Policies) -> None:
    policies.write(
        base='{policies: {api: }, functions: {"app:one": {retry: 1}}}',
        production='functions: {"app:*": {retry: 2, timeout: 5s}}',
    )
    registry = Registry.load(policies.directory, "production", {})
    assert registry.bind(named("app:one"), "api").policy == Policy(retry=1, timeout="5s")


def test_an_entry_selects_another_profile_and_shares_its_state(policies: Policies) -> None:
    registry = loaded(
        policies,
        """
        policies: {api: {retry: 1}, db: {retry: 5, bulkhead: 3}}
        functions: {"app:moved": {policy: db}, "app:freed": {policy: null}}
        """,
    )
    moved, there = registry.bind(named("app:moved"), "api"), registry.bind(named("app:there"), "db")
    assert moved.policy == registry["db"]
    assert moved.binding.resolved().executors["bulkhead"] is there.binding.resolved().executors["bulkhead"]
    assert registry.bind(named("app:freed"), "api").policy == Policy()


def test_bare_decorators_keep_three_retries_only_while_they_name_no_profile(policies: Policies) -> None:
    registry = loaded(
        policies,
        """
        policies: {db: {timeout: 5s}}
        functions: {"app:moved": {policy: db}, "app:tuned": {timeout: 7s}}
        """,
    )
    assert opero(registry=registry)(named("app:tuned")).policy == Policy(retry=3, timeout="7s")
    assert opero(registry=registry)(named("app:moved")).policy == Policy(timeout="5s")
    assert opero(registry=registry, retries=1)(named("app:moved")).policy == Policy(retry=1, timeout="5s")


def test_a_decorated_function_without_a_profile_is_tuned_by_the_default_registry(policies: Policies) -> None:
    policies.write(base='functions: {"app:one": {retry: 7}, "app:many": {parallel: {workers: 2}}}')
    set_default_registry(None)
    try:
        one, many = opero(named("app:one")), opmap(mode="thread")(named("app:many"))
        assert one() == 1
        assert one.policy == Policy(retry=7)
        assert many.policy.parallel.workers == 2
    finally:
        set_default_registry(None)


def test_a_decorated_function_without_a_profile_needs_no_configuration(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPERO_API_RETRIES", "what a program reads by itself")
    set_default_registry(None)
    assert opero(named("app:one"))() == 1


def test_where_there_is_no_working_directory_any_more_nothing_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    set_default_registry(None)
    try:
        assert opero(named("app:one"))() == 1
    finally:
        monkeypatch.chdir(tmp_path)


def test_an_unreadable_file_that_is_not_named_explicitly_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("OPERO_CONFIG=x")
    (tmp_path / "pyproject.toml").write_text("[tool.opero]\nconfig = 'x'\n")
    read_text = Path.read_text

    def refuse(self: Path, *args: Any, **kwargs: Any) -> str:
        if self.name in (".env", "pyproject.toml"):
            raise PermissionError(13, "Permission denied")
        return read_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)  # root may read everything
    set_default_registry(None)
    assert opero(named("app:one"))() == 1


def test_policy_apply_ignores_entries_of_functions(policies: Policies) -> None:
    registry = loaded(policies, 'functions: {"*": {retry: 7}}')
    fetch = Policy(retry=1).apply(named("app:one"))
    assert fetch() == 1
    assert fetch.policy == Policy(retry=1)
    with pytest.raises(ConfigError, match=r"was bound by Policy\.apply, and so by no registry"):
        registry.explain(fetch)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("app.users.get_user", '"app.users:get_user"'),
        ("get user", "is not a function name"),
        ("", "is not a function name"),
        ("app:", "is not a function name"),
    ],
)
def test_a_name_that_no_function_can_have_is_rejected(policies: Policies, entry: str, said: str) -> None:
    policies.write(base=f'functions: {{"{entry}": {{retry: 1}}}}')
    assert said in policies.error()
    assert policies.error().startswith("policies/base.yaml:1:13: ")


@pytest.mark.parametrize(
    ("body", "place", "said"),
    [
        ("{retyr: 1}", 25, "unknown key 'retyr' in functions.app:one; did you mean 'retry'?"),
        ("{retry: -1}", 32, "functions.app:one.retry.retries"),
        ("{policy: apj}", 33, "profile 'apj', which does not exist; did you mean 'api'?"),
        ("{extends: api}", 25, "unknown key 'extends' in functions.app:one"),
        ("{policy: [api]}", 33, "must be the name of one profile"),
        ("5", 24, "must be a mapping"),
    ],
)
def test_a_mistake_in_an_entry_is_reported_with_its_place(policies: Policies, body: str, place: int, said: str) -> None:
    policies.write(base=f'functions: {{"app:one": {body}}}\npolicies: {{api: }}')
    [problem] = policies.problems()
    assert problem.startswith(f"policies/base.yaml:1:{place}: ")
    assert said in problem


def test_an_entry_merged_with_code_is_validated_at_the_first_call(policies: Policies) -> None:
    registry = loaded(policies, '{policies: {api: }, functions: {"app:one": {retry: {max_delay: 1}}}}')
    fetch = opero(policy="api", registry=registry, min_delay=5)(named("app:one"))
    with pytest.raises(ConfigError, match=r"min_delay \(5s\) is greater than max_delay \(1s\)") as caught:
        fetch()
    assert str(caught.value).startswith("policies/base.yaml:1:64: functions.app:one.retry: ")
    assert "test_function_entries.py" in str(caught.value)
    with pytest.raises(ConfigError):
        registry.check()


def test_import_from_binds_files_and_not_code(policies: Policies) -> None:
    registry = loaded(
        policies, 'import_from: [requests]\npolicies: {api: }\nfunctions: {"app:*": {retry: {retries: 2}}}'
    )
    fetch = opero(policy="api", registry=registry, retry_on="json.JSONDecodeError")(named("app:one"))
    assert fetch() == 1
    policies.write(base='import_from: [requests]\nfunctions: {"app:*": {retry: {retry_on: json.JSONDecodeError}}}')
    assert "import_from allows only requests" in policies.error()


def test_check_finds_entries_that_hold_for_no_function_and_profiles_that_do_not_exist(policies: Policies) -> None:
    registry = loaded(policies, '{policies: {api: }, functions: {"app:onne": {retry: 1}, "lib.*": {retry: 1}}}')
    one = registry.bind(named("app:one"), "api")
    lost = opero(policy="apj", registry=registry)(named("app:lost"))
    unfit = opero(policy="api", registry=registry, retries=1)(named("app:unfit"))
    with pytest.raises(ConfigError) as caught:
        registry.check()
    places = [problem.place for problem in caught.value.problems]
    texts = " ".join(problem.text for problem in caught.value.problems)
    assert places[-2:] == ["policies/base.yaml:1:33", "policies/base.yaml:1:57"]
    assert len(places) == 3
    assert "functions.app:onne matches no bound function; did you mean 'app:one'?" in texts
    assert "app:lost is bound to the profile 'apj', which does not exist; did you mean 'api'?" in texts
    del one, lost, unfit


def test_a_function_of_a_program_goes_by_its_modules_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from opero.config.declaration import name_in_config

    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    function = named("__main__:run")
    main.__spec__ = None
    assert name_in_config(function) == "__main__:run"
    main.__spec__ = types.SimpleNamespace(name="app.__main__")  # type: ignore[assignment]
    assert name_in_config(function) == "app:run"


def test_an_unknown_profile_in_code_is_the_same_error_with_and_without_entries(policies: Policies) -> None:
    registry = loaded(policies, '{policies: {api: }, functions: {"app:one": {retry: 1}}}')
    for name in ("app:one", "app:two"):
        with pytest.raises(PolicyNotFoundError, match="no profile 'apj'"):
            opero(policy="apj", registry=registry)(named(name))()


NAMES = st.lists(st.sampled_from(["app", "users", "get", "x"]), min_size=1, max_size=3).map(".".join)
PATTERNS = NAMES | st.lists(st.sampled_from(["app", "users", ".", ":", "get", "*", "?", "[ag]"]), min_size=1).map(
    "".join
)


@given(patterns=st.lists(PATTERNS, unique=True), module=NAMES, name=NAMES)
def test_matching_entries_come_from_the_least_exact_to_the_most(patterns: list[str], module: str, name: str) -> None:
    from fnmatch import fnmatchcase

    function = f"{module}:{name}"
    every = [*patterns, function]
    entries = FunctionEntries(
        [ConfigLayer("file", None, {}, {each: Section(f"functions.{each}", Marked(None, CODE)) for each in every})]
    )
    found = entries.matching(function)
    assert found[-1] == function
    assert found == sorted(found, key=specificity)
    assert set(found) == {
        each
        for each in every
        if each == function or (("*" in each or "?" in each or "[" in each) and fnmatchcase(function, each))
    }
    assert set(entries.unmatched([function])) == set(every) - set(found)
