"""How a whole message looks: place, what is wrong, the line, and a caret under what is meant."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from unicodedata import category, east_asian_width

import pytest
import yaml

from config.conftest import Policies
from opero import Registry
from opero.config.settings import load
from opero.errors import ConfigError, Problem

needs_libyaml = pytest.mark.skipif(not yaml.__with_libyaml__, reason="the Python parser has words of its own")


def message(policies: Policies, text: str | bytes, environment: str | None = None, **environ: str) -> str:
    """The error that a base file raises, as it is printed."""
    policies.write(base=" ")
    (policies.directory / "base.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load(policies.directory, environment, environ)
    return str(caught.value)


GOLDEN = {
    "an unknown key": (
        "policies:\n  api:\n    retry: {retires: 5}\n",
        """
        policies/base.yaml:3:13: unknown key 'retires' in policies.api.retry; did you mean 'retries'?
           3 |     retry: {retires: 5}
             |             ^^^^^^^
        """,
    ),
    "a key of another level": (
        "policies:\n  api:\n    cache_ttl: 30m\n",
        """
        policies/base.yaml:3:5: unknown key 'cache_ttl' in policies.api; use `cache: {ttl: 30m}`
           3 |     cache_ttl: ***
             |     ^^^^^^^^^
        """,
    ),
    "a wrong type": (
        "policies:\n  api:\n    retry: {retries: five}\n",
        """
        policies/base.yaml:3:22: policies.api.retry.retries: 'five' is invalid: use an integer >= 0
           3 |     retry: {retries: five}
             |                      ^^^^
        """,
    ),
    "out of range": (
        "policies:\n  api:\n    cache: {ttl_jitter: 1.5}\n",
        """
        policies/base.yaml:3:25: policies.api.cache.ttl_jitter: 1.5 should be less than or equal to 1
           3 |     cache: {ttl_jitter: 1.5}
             |                         ^^^
        """,
    ),
    "a key twice": (
        "policies:\n  api: {}\n  db: {}\n  api: {}\n",
        """
        policies/base.yaml:4:3: duplicate key 'api' (first at line 2); keep one of them
           4 |   api: {}
             |   ^^^
        """,
    ),
    "off": (
        "policies:\n  off: {retry: 5}\n",
        """
        policies/base.yaml:2:3: a key must be text, but YAML 1.1 reads off as false; quote it: "off"
           2 |   off: {retry: ***}
             |   ^^^
        """,
    ),
    "10:30": (
        "policies:\n  api: {timeout: 10:30}\n",
        """
        policies/base.yaml:2:18: YAML 1.1 reads 10:30 as a base-60 number; quote it, or use units
           2 |   api: {timeout: 10:30}
             |                  ^^^^^
        """,
    ),
    "1e3 where there is no such number": (
        "policies:\n  api: {retry: {reraise: 1e3}}\n",
        """
        policies/base.yaml:2:26: policies.api.retry.reraise: '1e3' is not a boolean: use true or false
           2 |   api: {retry: {reraise: 1e3}}
             |                          ^^^
        """,
    ),
    "extends what is not there": (
        "policies:\n  api: {extends: bse}\n  base: {}\n",
        """
        policies/base.yaml:2:18: policies.api extends 'bse', which does not exist; did you mean 'base'?
           2 |   api: {extends: bse}
             |                  ^^^
        """,
    ),
    "a circle": (
        "policies:\n  b: {extends: a}\n  a: {extends: b}\n",
        """
        policies/base.yaml:3:16: circular `extends`: a → b → a; remove one of them
           3 |   a: {extends: b}
             |                ^
        """,
    ),
    "an exception that does not import": (
        "policies:\n  api:\n    retry:\n      retry_on:\n        - ValueError\n        - json.JSONDecodeErr\n",
        """
        policies/base.yaml:6:11: policies.api.retry.retry_on: 'json.JSONDecodeErr' cannot be imported: json has no \
'JSONDecodeErr'; did you mean 'JSONDecodeError'?
           6 |         - json.JSONDecodeErr
             |           ^^^^^^^^^^^^^^^^^^
        """,
    ),
    "a function that does not import": (
        "policies:\n  api: {cache: {key: 'json:dumpz'}}\n",
        """
        policies/base.yaml:2:22: policies.api.cache.key: 'json:dumpz' cannot be imported: json has no 'dumpz'; did you \
mean 'dump'?
           2 |   api: {cache: {key: 'json:dumpz'}}
             |                      ^^^^^^^^^^^^
        """,
    ),
    "a function's name with a dot": (
        "functions:\n  app.users.get_user: {cache: 5}\n",
        """
        policies/base.yaml:2:3: 'app.users.get_user' is not a function name: use "module:function", or \
a glob such as "app.*"; did you mean "app.users:get_user"?
           2 |   app.users.get_user: {cache: 5}
             |   ^^^^^^^^^^^^^^^^^^
        """,
    ),
    "a function's profile that is not there": (
        "policies: {api: {}}\nfunctions:\n  app:get:\n    policy: apy\n",
        """
        policies/base.yaml:4:13: functions.app:get uses the profile 'apy', which does not exist; did you \
mean 'api'?
           4 |     policy: apy
             |             ^^^
        """,
    ),
    "a contradiction": (
        "policies:\n  api:\n    retry:\n      min_delay: 5s\n      max_delay: 1s\n",
        """
        policies/base.yaml:5:18: policies.api.retry: min_delay (5s) is greater than max_delay (1s); lower \
min_delay or raise max_delay (see also policies/base.yaml:4:18)
           5 |       max_delay: 1s
             |                  ^^
        """,
    ),
    "the wrong part of a ttl": (
        "policies:\n  api:\n    cache:\n      ttl:\n        cold: 5m\n        warn: 15m\n",
        """
        policies/base.yaml:6:9: policies.api.cache.ttl: unknown field 'warn' of AdaptiveTTL; did you mean 'warm'?
           6 |         warn: 15m
             |         ^^^^
        """,
    ),
    "a tab before it": (
        "policies:\n  api: {\tretry:\tx}\n",
        """
        policies/base.yaml:2:17: policies.api.retry.retries: 'x' is invalid: use an integer >= 0
           2 |   api: { retry: x}
             |                 ^
        """,
    ),
    "a block scalar": (
        "policies:\n  api:\n    cache: >-\n      soon\n      er\n",
        """
        policies/base.yaml:3:12: policies.api.cache.ttl: 'soon er' is not a duration: use seconds (30, 0.25) or \
"250ms", "30s", "5m", "1h30m"
           3 |     cache: >-
             |            ^
        """,
    ),
    "line ends of Windows": (
        "policies:\r\n  api:\r\n    retry: x\r\n    cache: 5\r\n",
        """
        policies/base.yaml:3:12: policies.api.retry.retries: 'x' is invalid: use an integer >= 0
           3 |     retry: x
             |            ^
        """,
    ),
    "a last line that does not end": (
        "policies:\n  api:\n    retry: x",
        """
        policies/base.yaml:3:12: policies.api.retry.retries: 'x' is invalid: use an integer >= 0
           3 |     retry: x
             |            ^
        """,
    ),
    "behind an anchor, told once": (
        "policies:\n  a: {retry: &r {retries: x}}\n  b: {retry: *r}\n  c:\n    retry:\n      <<: *r\n",
        """
        policies/base.yaml:2:27: policies.a.retry.retries: 'x' is invalid: use an integer >= 0 \
(through aliases also policies.b.retry.retries at line 3, policies.c.retry.retries at line 5)
           2 |   a: {retry: &r {retries: x}}
             |                           ^
        """,
    ),
    "right at its anchor, and wrong by its alias": (
        "policies:\n  a: {retry: &r {min_delay: 1}}\n  b:\n    timeout: *r\n",
        """
        policies/base.yaml:2:18: unknown key 'min_delay' in policies.b.timeout; use `retry: {min_delay: …}` \
(used through an alias at line 4)
           2 |   a: {retry: &r {min_delay: 1}}
             |                  ^^^^^^^^^
        """,
    ),
}


@pytest.mark.parametrize(("text", "said"), GOLDEN.values(), ids=GOLDEN)
def test_a_mistake_is_printed_as_a_compiler_would(policies: Policies, text: str, said: str) -> None:
    expected = dedent(said).strip("\n")
    assert "\n".join(line.rstrip() for line in message(policies, text).splitlines()) == expected


UNREADABLE = {
    "a comma that is missing": (
        "policies: {\n  a: {retry: 5}\n  b: {retry: 5}\n}\n",
        """
        policies/base.yaml:3:3: is not valid YAML: did not find expected ',' or '}' while parsing a flow mapping that \
starts at line 1; separate fields with commas, and end with }
           3 |   b: {retry: 5}
             |   ^
        """,
    ),
    "a brace that is never closed": (
        "policies:\n  api: {retry: 5\n",
        """
        policies/base.yaml:2:8: is not valid YAML: did not find expected ',' or '}' while parsing a flow mapping; \
separate fields with commas, and end with }
           2 |   api: {retry: 5
             |        ^
        """,
    ),
    "a quote that is never closed": (
        "policies:\n  api: 'x\n\n  db: {}\n",
        """
        policies/base.yaml:2:8: is not valid YAML: found unexpected end of stream while scanning a quoted scalar; \
close the quote
           2 |   api: '***
             |        ^
        """,
    ),
    "an indentation that fits nothing": (
        "policies:\n  api:\n    retry: 5\n   cache: 4\n",
        """
        policies/base.yaml:4:4: is not valid YAML: did not find expected key while parsing a block mapping that starts \
at line 2
           4 |    cache: 4
             |    ^
        """,
    ),
    "two colons": (
        "policies:\n  api: retry: 5\n",
        """
        policies/base.yaml:2:13: is not valid YAML: mapping values are not allowed in this context; indent it like its \
neighbours, or quote text that contains ': '
           2 |   api: retry: 5
             |             ^
        """,
    ),
}


@needs_libyaml
@pytest.mark.parametrize(("text", "said"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_syntax_error_is_shown_at_its_place(policies: Policies, text: str, said: str) -> None:
    assert message(policies, text) == dedent(said).strip("\n")


def test_a_variable_has_its_name_for_a_place_and_a_line_of_an_env_file_both(policies: Policies) -> None:
    policies.write(base="policies: {api: , api_attempt: }")
    assert policies.error(OPERO_API_RETRIS="1") == (
        "OPERO_API_RETRIS: the profile 'api' has no option 'retris'; did you mean OPERO_API_RETRIES?"
    )
    Path("my.env").write_text("A=1\n  export OPERO_API_CACHE_TTL='soon'\n")
    Path("secrets").mkdir()
    Path("secrets/OPERO_API_RETRIES").write_text("five")
    with pytest.raises(ConfigError) as caught:
        load(policies.directory, environ={"OPERO_API_ATTEMPT_TIMEOUT": "5"}, env_file="my.env", secrets_dir="secrets")
    assert str(caught.value) == dedent(
        """\
        the configuration has 3 problems:

        OPERO_API_ATTEMPT_TIMEOUT: is ambiguous, as it can mean policies.api.timeout.attempt or \
policies.api_attempt.timeout; use OPERO_POLICIES__API__TIMEOUT__ATTEMPT or OPERO_POLICIES__API_ATTEMPT__TIMEOUT

        my.env:2:10 (OPERO_API_CACHE_TTL): policies.api.cache.ttl: 'soon' is not a duration: use seconds (30, 0.25) or \
"250ms", "30s", "5m", "1h30m"
           2 |   export OPERO_API_CACHE_TTL=…
             |          ^^^^^^^^^^^^^^^^^^^

        secrets/OPERO_API_RETRIES: policies.api.retry.retries: 'five' is invalid: use an integer >= 0"""
    )


def test_a_contradiction_by_an_environments_file_is_shown_there(policies: Policies) -> None:
    policies.write(production="policies:\n  api:\n    retry: {max_delay: 4}\n")
    assert message(policies, "policies:\n  api:\n    retry: {min_delay: 5}\n", "production") == (
        "policies/production.yaml:3:24: policies.api.retry: min_delay (5s) is greater than max_delay (4s); lower "
        "min_delay or raise max_delay (see also policies/base.yaml:3:24)\n"
        "   3 |     retry: {max_delay: 4}\n"
        "     |                        ^"
    )


def cells(text: str) -> int:
    """Columns of a terminal."""
    return sum(0 if category(c) == "Mn" else 2 if east_asian_width(c) in "WF" else 1 for c in text)


@pytest.mark.parametrize("before", ["漢字", "e\u0301e\u0301", "größe", "🚦"])
def test_the_caret_is_placed_by_the_display_width_of_the_text_before_it(policies: Policies, before: str) -> None:
    said, line, carets = message(policies, f"policies: {{{before}: {{retry: 字x}}}}").splitlines()
    column = line.index("字x") + 1 - len("   1 | ")
    assert said.startswith(f"policies/base.yaml:1:{column}: ")
    assert cells(line[: line.index("字x")]) == carets.index("^")
    assert carets.count("^") == cells("字x")


@pytest.mark.parametrize("padding", [0, 60, 105, 110, 300])
@pytest.mark.parametrize("after", [0, 300])
def test_of_a_long_line_the_part_around_the_mistake_is_shown(policies: Policies, padding: int, after: int) -> None:
    text = f"policies: {{{'a' * padding}b: {{retry: wrong, timeout: 5}}{', c: {}' if after else ''}}} #{'x' * after}"
    policies.write(base=text)
    with pytest.raises(ConfigError) as caught:
        policies.load()
    (problem,) = caught.value.problems
    assert problem.column == text.index("wrong") + 1
    assert len(problem.snippet) <= 110
    assert problem.snippet[problem.caret - 1 :][: problem.width] == "wrong"


def test_a_problem_s_parts_can_be_had_one_by_one(policies: Policies) -> None:
    policies.write(base="policies:\n  api: {retry: x}\n")
    with pytest.raises(ConfigError) as caught:
        policies.load(OPERO_ENVS="1")
    variable, file = caught.value.problems
    assert (variable.place, variable.file, variable.line, variable.snippet) == ("OPERO_ENVS", None, None, "")
    assert file == Problem(
        place="policies/base.yaml:2:16",
        text="policies.api.retry.retries: 'x' is invalid: use an integer >= 0",
        file="policies/base.yaml",
        line=2,
        column=16,
        snippet="  api: {retry: x}",
        caret=16,
        width=1,
    )


def test_problems_of_a_later_check_show_their_line_without_secrets(policies: Policies) -> None:
    policies.write(base='policies: {api: {}}\nfunctions: {"app:gte": {cache: {secret: hunter2}}}\n')
    registry = Registry.load(policies.directory, environ={})

    def get(key: str) -> str:
        return key

    get.__module__, get.__qualname__ = "app", "get"
    bound = registry.bind(get, "api")
    with pytest.raises(ConfigError) as caught:
        registry.check()
    assert str(caught.value) == (
        "policies/base.yaml:2:13: functions.app:gte matches no bound function; did you mean 'app:get'?\n"
        '   2 | functions: {"app:gte": {cache: {secret: ***}}}\n'
        "     |             ^^^^^^^^^"
    )
    del bound


def test_a_circular_alias_is_reported_where_it_closes(policies: Policies) -> None:
    said = message(policies, "policies: &all\n  api: {cache: *all}\n")
    assert "policies/base.yaml:2:16: contains itself through an alias; write the value out\n" in said + "\n"
    assert said.endswith("   2 |   api: {cache: *all}\n     |                ^^^^")


def test_a_number_beside_an_unknown_key_is_shown_unless_it_is_long_enough_for_a_secret(policies: Policies) -> None:
    shown = message(policies, "policies: {a: {retry: {retires: 5, secrt: 123456, jiter: true, wrod: hunter2}}}\n")
    assert "{retires: 5, secrt: ***, jiter: true, wrod: ***}" in shown
