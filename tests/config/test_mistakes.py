"""What is wrong with a file or variable is said with its place, and the nearest valid choice; all of it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opero import ConfigError
from opero.config import load

API = "policies:\n  api:\n"


def problem_of(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> str:
    (tmp_path / "base.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, environ=environ or {})
    return str(caught.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "base.yaml:1:1: the file is empty"),
        ("# nothing\n", "base.yaml:1:1: the file is empty"),
        ("- policies\n", "base.yaml:1:1: the file holds a list, not a mapping"),
        ("hello\n", "base.yaml:1:1: the file holds the value 'hello', not a mapping"),
        ("policies:\n\tapi: {}\n", "base.yaml:2:1: a tab is no indentation in YAML; use spaces"),
        ("policies: {}\n---\npolicies: {}\n", "more than one document"),
        ("policies: {api: [}\n", "base.yaml:1:18: is not YAML"),
        ("policies: 3\n", "base.yaml:1:11: policies must be a mapping, not 3"),
        ("polices: {}\n", "base.yaml:1:1: unknown key 'polices'; did you mean 'policies'?"),
        (API + "    retry: 1\n    retry: 2\n", "base.yaml:4:5: the key 'retry' stands twice, first in line 3; remove one"),
        (API + "    retyr: 1\n", "base.yaml:3:5: unknown policy 'retyr'; did you mean 'retry'?"),
        (API + "    retries: 1\n", "base.yaml:3:5: unknown policy 'retries'; write retry: {retries: ...}"),
        (API + "    retry: {retires: 1}\n", "base.yaml:3:13: unknown field 'retires' of retry; did you mean 'retries'?"),
        (API + "    retry: {retries: -1}\n", "base.yaml:3:22: api.retry.retries: -1 should be greater than or equal to 0"),
        (API + "    retry: {retries: many}\n", "base.yaml:3:22: api.retry.retries: 'many' should be a valid integer"),
        (API + "    retry: {min_delay: 60}\n", "base.yaml:3:24: api.retry: min_delay (1m) is greater than max_delay (30s)"),
        (API + "    retry: {min_delay: 5 parsecs}\n", "base.yaml:3:24: api.retry.min_delay: '5 parsecs' is no duration"),
        (API + "    rate_limit: {burst: 2}\n", "base.yaml:3:25: api.rate_limit.rate: Field required"),
        (API + "    rate_limit: fast\n", "base.yaml:3:17: api.rate_limit.rate: 'fast' is no rate"),
        (API + "    parallel: {mode: thred}\n", "base.yaml:3:22: api.parallel.mode: 'thred' is none of 'auto'"),
        (API + "    parallel: {mode: thred}\n", "did you mean 'thread'?"),
        (API + "    retry: {retry_on: ConectionError}\n", "base.yaml:3:23: api.retry.retry_on: 'ConectionError' is no builtin"),
        (API + "    retry: {retry_on: ConectionError}\n", "did you mean 'ConnectionError'?"),
        (API + "    retry: {retry_on: requests.HTTPEror}\n", "requests has no 'HTTPEror'; did you mean 'HTTPError'?"),
        (API + "    retry: {retry_on: no_such_module.Error}\n", "'no_such_module.Error' cannot be imported"),
        (API + "    retry: {retry_on: json.dumps}\n", "is no exception class"),
        (API + "    retry: {retry_on: [KeyboardInterrupt]}\n", "KeyboardInterrupt is never retried"),
        (API + "    extends: apiary\n  apiry: {}\n", "base.yaml:3:14: extends the unknown profile 'apiary'; did you mean 'apiry'?"),
        (API + "    extends: b\n  b: {extends: api}\n", "the profiles extend each other in a circle"),
        (API + "    extends: api\n", "the profiles extend each other in a circle: api → api"),
        (API + "    extends: [a, b]\n", "base.yaml:3:5: extends takes the name of one profile"),
        (API + "    timeout: 10:30\n", "base.yaml:3:14: 10:30 reads as the number 630 in YAML; put it in quotes"),
        ("policies: {on: {}}\n", "base.yaml:1:12: the key 'on' reads as True in YAML; put it in quotes"),
        (API + "    fallback: 3\n", "base.yaml:3:15: 3 does not say which field of FallbackPolicy it is"),
        (API + "    cache: {ttl: -5}\n", "base.yaml:3:18: api.cache.ttl: a time to live of -5 s is not above 0"),
        (API + "    timeout: {total: 1s, attempt: 2s}\n", "api.timeout: attempt (2s) is longer than total (1s)"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in problem_of(tmp_path, text)


@pytest.mark.parametrize(
    ("variable", "text", "problem"),
    [
        ("OPERO_API_RETIRES", "1", "OPERO_API_RETIRES: names no option of a profile; did you mean 'OPERO_API_RETRIES'?"),
        ("OPERO_BATHC_RETRIES", "1", "OPERO_BATHC_RETRIES: names no option of a profile"),
        ("OPERO_API_RETRIES", "-1", "OPERO_API_RETRIES: api.retry.retries: '-1' should be greater than or equal to 0"),
        ("OPERO_API_RETRIES", "", "OPERO_API_RETRIES: is empty; unset it"),
        ("OPERO_API_MODE", "thred", "OPERO_API_MODE: api.parallel.mode: 'thred' is none of 'auto'"),
        ("OPERO_API_ATTEMPT_TIMEOUT", "1", "can be read in 2 ways; write OPERO_POLICIES__API__TIMEOUT__ATTEMPT or"),
        ("OPERO_POLICIES__APY__RETRY__RETRIES", "1", "names no profile; did you mean 'API'?"),
        ("OPERO_POLICIES__API__RETYR__RETRIES", "1", "names no policy; did you mean 'retry'?"),
        ("OPERO_POLICIES__API__RETRY__RETIRES", "1", "names no field of retry; did you mean 'retries'?"),
        ("OPERO_POLICES__API__RETRY__RETRIES", "1", "did you mean 'POLICIES'?"),
        ("OPERO_API_RETRY", "{3", "OPERO_API_RETRY: is not JSON"),
        ("OPERO_API_RETRY", '{"retires": 3}', "unknown field 'retires' of retry; did you mean 'retries'?"),
    ],
)
def test_a_mistake_in_a_variable_is_named_with_it(tmp_path: Path, variable: str, text: str, problem: str) -> None:
    assert problem in problem_of(tmp_path, "policies: {api: {retry: 1}, api_attempt: {retry: 1}}", {variable: text})


def test_all_mistakes_are_told_at_once_in_the_order_of_their_places(tmp_path: Path) -> None:
    told = problem_of(tmp_path, API + "    retry: {retries: -1}\n    cach: 5\n", {"OPERO_API_RETIRES": "1"})
    assert told.splitlines()[0] == "3 problems in opero's configuration"
    assert [line.split(": ")[0].strip() for line in told.splitlines()[1:]] == [
        "base.yaml:3:22",
        "base.yaml:4:5",
        "OPERO_API_RETIRES",
    ]


def test_a_value_that_several_profiles_inherit_is_told_once(tmp_path: Path) -> None:
    text = "defaults: {retry: -1}\npolicies: {a: {}, b: {}, c: {extends: a}}\n"
    assert problem_of(tmp_path, text).count("-1 should be") == 1


def test_a_secret_is_never_told(tmp_path: Path) -> None:
    told = problem_of(tmp_path, API + "    cache: {secret: [hunter2], ttl: -1}\n")
    assert "api.cache.secret" in told
    assert "hunter2" not in told


@pytest.mark.parametrize("key", ["functions", "import_from"])
def test_what_has_no_reader_yet_says_so(tmp_path: Path, key: str) -> None:
    (tmp_path / "base.yaml").write_text(f"policies: {{}}\n{key}: {{}}\n", encoding="utf-8")
    with pytest.raises(NotImplementedError, match=rf"base.yaml:2:1: '{key}' is not implemented yet"):
        load(tmp_path, environ={})


def test_anchors_and_merge_keys_work_and_a_bomb_of_them_does_not_go_off(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "policies:\n  a: &a {retry: {retries: 7}}\n  b: {<<: *a, timeout: 5s}\n", encoding="utf-8"
    )
    assert load(tmp_path, environ={}).policies["b"].retry.retries == 7
    keys = ", ".join(f"k{number}: *{{}}" for number in range(10))
    levels = ["x0: &x0 {a: 1}"] + [f"x{n}: &x{n} {{{keys.format(*[f'x{n - 1}'] * 10)}}}" for n in range(1, 9)]
    assert "unfolds to too many values" in problem_of(tmp_path, "\n".join(levels))


def test_the_whole_process_environment_is_read_where_none_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base.yaml").write_text("policies: {api: {retry: 1}}", encoding="utf-8")
    monkeypatch.setenv("OPERO_API_RETRIES", "6")
    loaded: Any = load(tmp_path)
    assert loaded.policies["api"].retry.retries == 6
