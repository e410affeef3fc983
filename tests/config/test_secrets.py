"""Secrets never appear in a message, log, repr or warning, wherever they are in the configuration."""

from __future__ import annotations

import logging
import pickle
import re
import traceback
from typing import TYPE_CHECKING

import pytest
import yaml

from opero import Policy, Registry, opero
from opero.config import yaml_source
from opero.config.report import Report
from opero.config.variables import collect_variables
from opero.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from config.conftest import Policies

SECRET = "hunter2"


@pytest.fixture(params=["C", "Python"])
def _each_parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "C" and not yaml.__with_libyaml__:
        pytest.skip("PyYAML has no C parser here")
    monkeypatch.setattr(yaml_source, "SAFE_LOADER", yaml.CSafeLoader if request.param == "C" else yaml.SafeLoader)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def shown_by(error: ConfigError) -> Iterator[str]:
    """Every way to look at an error, the places of its traceback included."""
    yield from (str(error), repr(error), "".join(traceback.format_exception(error)))
    yield from (pickle.dumps(error).decode("latin-1"), str(pickle.loads(pickle.dumps(error))))
    for problem in error.problems:
        yield from (str(problem), repr(problem))


def shown_of(registry: Registry) -> Iterator[str]:
    """Every way to look at what was loaded."""
    configuration = registry.configuration
    yield from (repr(registry), repr(configuration), str(configuration), repr(configuration.layers))
    yield from configuration.warnings
    for name, policy in registry.items():
        yield from (repr(policy), str(policy), repr(registry.explain(name)), repr(dict(registry.explain(name))))
    for layer in configuration.layers:
        for section in (*layer.profiles.values(), *layer.functions.values()):
            yield repr([section, section.place, section.statements])
            yield from (
                repr([statement.whole, *statement.fields.values()]) for statement in section.statements.values()
            )


WRONG_FILES = {
    "of the wrong type": "policies: {a: {cache: {secret: [hunter2]}}}",
    "beside a mistake": "policies: {a: {cache: {secret: hunter2, ttl: x}}}",
    "after a mistake": "policies: {a: {cache: {ttl: x, secret: hunter2}}}",
    "in several lines": "policies:\n  a:\n    cache: {ttll: 3, secret: 'xx\n     hunter2', tttl: 4}\n",
    "in a statement": "policies:\n  a:\n    cache:\n      secret: |\n        hunter2\n      ttll: 3\n",
    "in the line below its key": "policies:\n  a:\n    cache:\n      ttl: x\n      secret:\n        hunter2\n",
    "a password in a url": "policies: {a: {cache: {url: 'redis://u:hunter2@h', ttl: x}}}",
    "a url of the wrong type": "policies: {a: {cache: {url: ['redis://u:hunter2@h']}}}",
    "a url where it does not belong": "policies: {a: {cache: {ttl: 'redis://u:hunter2@h'}}}",
    "a url as a short form": "policies: {a: {cache: 'redis://u:hunter2@h'}}",
    "a user in a url": "policies: {a: {cache: {ttl: 'https://hunter2@h/x'}}}",
    "a url without a user": "policies: {a: {cache: {ttl: 'redis://:hunter2@h'}}}",
    "a url with a slash in its password": "policies: {a: {cache: {ttl: 'redis://u:x/hunter2@h'}}}",
    "an address": "policies: {a: {parallel: {address: 'tcp://u:hunter2@h', mode: x}}}",
    "a profile's name": "policies: {a: {extends: 'redis://u:hunter2@h'}}",
    "a list of names": "policies: {a: {extends: [hunter2]}}",
    "arguments": "policies: {a: {cache: {arguments: {password: hunter2}, ttl: x}}}",
    "arguments of the wrong type": "policies: {a: {cache: {arguments: hunter2}}}",
    "a list of arguments": "policies: {a: {cache: {arguments: [hunter2]}}}",
    "a default": "policies: {a: {fallback: {default: hunter2, arg: [1]}}}",
    "a default that is a url": "policies: {a: {fallback: {default: 'redis://u:hunter2@h', function: 'operator:not_'}}}",
    "a list for a policy": "policies: {a: {cache: [hunter2]}}",
    "text for a profile": "policies: {a: hunter2}",
    "text for all profiles": "policies: hunter2",
    "text for the whole file": "hunter2",
    "an unknown key of a policy": "policies: {a: {cache: {secrt: hunter2}}}",
    "an unknown key of a profile": "policies: {a: {redis_url: hunter2}}",
    "an unknown key of the file": "secret: hunter2\npolicies: {}",
    "all below an unknown key": "policies: {a: {cach: {secret: hunter2, k: [hunter2, {z: hunter2}]}}}",
    "a key twice": "policies: {a: {cache: {secret: hunter2, secret: hunter2}}}",
    "a mapping twice": "policies:\n  a:\n    cache: {arguments: {x: hunter2}}\n    cache: {arguments: {y: hunter2}}\n",
    "a merge of text": "policies: {a: {cache: {<<: hunter2, ttl: x}}}",
    "within a merge": "policies: {a: {cache: {<<: {secret: hunter2}, ttl: x}}}",
    "by an alias": "policies: {a: {cache: {namespace: &s hunter2, secret: *s, ttl: x}}}",
    "in a comment": "policies: {a: {cache: {ttl: x}}} # secret: hunter2",
    "as a base-60 number": "policies: {a: {cache: {secret: 9:59:59}}}",
    "as an octal number": "policies: {a: {cache: {secret: 04711}}}",
    "as what it is not": "policies: {a: {cache: {secret: !!int hunter2}}}",
    "in a tag": "policies:\n  a:\n    cache:\n      secret: !hunter2 x\n",
    "at a wrong indentation": "policies:\n  a:\n    cache:\n      secret: hunter2\n       url: hunter2\n",
    "before what breaks off": "policies: {a: {cache: {secret: hunter2, ttl: [}}}",
    "in a quote without end": "policies: {a: {cache: {secret: 'hunter2}}}",
    "with a colon": "policies: {a: {cache: {secret: hunter2: x}}}",
    "with an at-sign": "policies:\n  a:\n    cache:\n      arguments:\n        pw: @hunter2\n",
    "with an asterisk": "policies:\n  a:\n    cache:\n      arguments: {pw: *hunter2}\n",
    "with an escape": 'policies:\n  a:\n    cache:\n      secret: "hunter2\\q"\n',
    "with a control character": "policies: {a: {cache: {secret: 'hunter2\x01'}}}",
    "in a second document": "policies: {}\n---\nsecret: hunter2\n",
    "what a name leads to": "policies: {a: {fallback: {function: 'policies.named:PASSWORD'}}}",
    "an exception's name that leads to it": "policies: {a: {retry: {retry_on: policies.named.PASSWORD}}}",
    "a ttl that leads to it": "policies: {a: {cache: {ttl: 'policies.named:SETTINGS'}}}",
    "an executor that leads to it": "policies: {a: {parallel: {executor: 'policies.named:SETTINGS'}}}",
    "a name within it": "policies: {a: {cache: {key: 'policies.named:SETTINGS.x'}}}",
    "a mapping for a function": "policies: {a: {cache: {key: {password: hunter2}}}}",
    "in a mapping for a number": "policies: {a: {retry: {retries: {password: hunter2}}}}",
    "in a mapping for a flag": "policies: {a: {retry: {jitter: {arguments: {x: hunter2}}}}}",
    "in a list of mappings": "policies: {a: {cache: {tags: [{password: hunter2}], ttl: [{password: [hunter2]}]}}}",
    "alone for a fallback": "policies: {a: {fallback: hunter2}}",
    "without the space after its colon": "policies: {a: {cache: {ttl: 3, secret:hunter2}}}",
    "without it in a statement": "policies:\n  a:\n    cache:\n      secret:hunter2\n",
    "after an equals sign": "policies: {a: {cache: {ttl: 3, secret=hunter2}}}",
    "without any colon": "policies: {a: {cache: {ttl: 3, secret hunter2}}}",
    "after a comma": "policies: {a: {cache: {secret: x,hunter2}}}",
    "behind a tag": "policies: {a: {cache: {!ecret: hunter2}}}",
    "in a key that is a mapping": "policies: {a: {cache: {{ecret: hunter2}: 1}}}",
    "in lines, one indented less": "policies:\n  a:\n    cache:\n      secret: |\n        MII\n   hunter2==\n",
    "in lines whose key is a comment": "policies:\n  a:\n    cache:\n      #secret: |\n        hunter2\n      ttl: 1\n",
    "in `functions:`": "policies: {}\nfunctions: {'a:b': {cache: {secret: hunter2, ttl: x}, cach: hunter2}}",
    "in `defaults:`": "defaults: {cache: {secret: hunter2, ttl: x}}",
    "in `import_from:`": "import_from: {secret: hunter2}",
}


@pytest.mark.usefixtures("_each_parser")
@pytest.mark.parametrize("text", WRONG_FILES.values(), ids=WRONG_FILES)
def test_no_message_shows_a_secret_of_a_file(policies: Policies, logged: pytest.LogCaptureFixture, text: str) -> None:
    policies.write(base=" ")
    (policies.directory / "base.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        Registry.load(policies.directory, environ={})
    for shown in (*shown_by(caught.value), logged.text):
        # The secrets in this test appear only in the source lines of a traceback.
        assert not any(each in shown for each in (SECRET, "9:59:59", "04711")), shown


EDITED = """\
defaults: {cache: {secret: hunter2}}
policies:
  a:
    cache:
      url: "redis://u:hunter2@h"
      arguments: {password: hunter2, db: 3}
      secret: |
        xhunter2
        hunter2==
      ttl: 10m
    fallback: {default: 'hunter2'}
"""


def edits() -> Iterator[str]:
    """The file with one character removed, replaced, or too many, everywhere but within the secrets."""
    within = [range(found.start() + 1, found.end()) for found in re.finditer(SECRET, EDITED)]
    for at in range(len(EDITED)):
        if not any(at in each for each in within):
            yield EDITED[:at] + EDITED[at + 1 :]
            for character in ":, #'\n":
                yield EDITED[:at] + character + EDITED[at:]
                yield EDITED[:at] + character + EDITED[at + 1 :]


def test_no_edit_of_one_character_shows_a_secret(policies: Policies) -> None:
    policies.write(base=EDITED)
    refused = 0
    for text in edits():
        (policies.directory / "base.yaml").write_bytes(text.encode())
        try:
            policies.load()
        except ConfigError as error:
            refused += 1
            assert not re.search("hunter|unter2", str(error)), f"{text}\n{error}"
    assert refused > 1000


VARIABLES: dict[str, dict[str, str]] = {
    "a secret": {"OPERO_A_CACHE_SECRET": SECRET},
    "beside a mistake": {"OPERO_A_CACHE_SECRET": SECRET, "OPERO_A_CACHE_TTL": "x"},
    "twice": {"OPERO_POLICIES__A__CACHE__SECRET": SECRET, "OPERO_A_CACHE_SECRET": SECRET},
    "misspelt": {"OPERO_A_CACHE_SECRT": SECRET},
    "misspelt, nested": {"OPERO_POLICIES__A__CACHE__SECRT": SECRET},
    "misspelt, ours": {"OPERO_CACHE_SECRE": SECRET},
    "of no profile": {"OPERO_SECRET": SECRET},
    "of a policy": {"OPERO_A_CACHE": '{"secret": "hunter2", "ttl": "x"}'},
    "in JSON without end": {"OPERO_A_CACHE": '{"secret": "hunter2'},
    "in a short form": {"OPERO_A_CACHE": "redis://u:hunter2@h"},
    "an unknown field": {"OPERO_A_CACHE": '{"secrt": "hunter2"}'},
    "arguments": {"OPERO_A_CACHE_ARGUMENTS": '{"password": "hunter2"}', "OPERO_A_RETRIES": "x"},
    "arguments of the wrong type": {"OPERO_A_CACHE_ARGUMENTS": SECRET},
    "a list of arguments": {"OPERO_A_CACHE_ARGUMENTS": '["hunter2"]'},
    "a default": {"OPERO_POLICIES__A__FALLBACK__DEFAULT": '{"k": "hunter2"}', "OPERO_POLICIES__A__FALLBACK__ARG": ""},
    "an entry's": {"OPERO_FUNCTIONS__APP_GET__CACHE__SECRET": SECRET, "OPERO_FUNCTIONS__APP_GET__CACHE__SECRT": SECRET},
    "the cache's own": {"OPERO_CACHE_SECRET": SECRET, "OPERO_CACHE_REDIS_URL": "redis://u:hunter2@h"},
}


@pytest.mark.parametrize("variables", VARIABLES.values(), ids=VARIABLES)
@pytest.mark.parametrize("held_in", ["process", "file", "directory"])
def test_nothing_shows_a_secret_of_a_variable(
    policies: Policies, logged: pytest.LogCaptureFixture, tmp_path: Path, held_in: str, variables: dict[str, str]
) -> None:
    policies.write(base="policies: {a: {retry: 1}}\nfunctions: {'app:get': {retry: 2}}")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "my.env").write_text("")
    if held_in == "file":
        (tmp_path / "my.env").write_text("".join(f"{name}='{value}'\n" for name, value in variables.items()))
    elif held_in == "directory":
        for name, value in variables.items():
            (tmp_path / "secrets" / name).write_text(value)
    environ = variables if held_in == "process" else {}
    shown: list[str] = []
    try:
        shown += shown_of(
            Registry.load(
                policies.directory, environ=environ, env_file=tmp_path / "my.env", secrets_dir=tmp_path / "secrets"
            )
        )
    except ConfigError as error:
        shown += shown_by(error)
    shown += [repr(collect_variables(environ, tmp_path / "my.env", tmp_path / "secrets", Report())), logged.text]
    for each in shown:
        assert SECRET not in each


def test_a_line_of_an_env_file_that_cannot_be_read_is_not_shown(policies: Policies, tmp_path: Path) -> None:
    policies.write(base="policies: {a: }")
    (tmp_path / "my.env").write_text("OPERO_A_CACHE_SECRET='hunter2\nOPERO_A_CACHE_TTL hunter2\nhunter2 OPERO_X\n")
    with pytest.raises(ConfigError) as caught:
        Registry.load(policies.directory, environ={}, env_file=tmp_path / "my.env")
    for shown in shown_by(caught.value):
        assert SECRET not in shown


def test_nothing_that_was_loaded_shows_its_secrets(policies: Policies, logged: pytest.LogCaptureFixture) -> None:
    policies.write(
        base="""
        defaults: {cache: {secret: hunter2-d}}
        policies:
          a:
            cache: {url: "redis://u:hunter2@h", backend: redis, ttl: 1h}
            fallback: {default: [none, "https://hunter2@h"]}
          b: {cache: {backend: dogpile.cache.null, arguments: {password: hunter2, urls: ["redis://u:hunter2@h"]}}}
          c: {fallback: {default: "redis://u:hunter2@h"}, parallel: {mode: dask, address: "tcp://u:hunter2@h"}}
        functions:
          "app:get": {policy: b, cache: {arguments: {password: hunter2}}}
        """,
        production="policies: {a: {cache: {secret: hunter2-e}}, b: {cache: {arguments: null}}}",
    )
    registry = Registry.load(policies.directory, "production", {"OPERO_A_CACHE_SECRET": SECRET})
    assert registry["a"].cache.secret.get_secret_value() == SECRET  # type: ignore[union-attr]

    @opero(policy="a", registry=registry, cache_secret="hunter2-f", cache_arguments={"password": SECRET})
    def get(key: str) -> str:
        return key

    bound = repr((registry.bindings(), get.binding.declaration, registry.explain(get), dict(registry.explain(get))))
    for shown in (*shown_of(registry), bound, logged.text):
        assert SECRET not in shown


def test_a_mapping_among_the_fields_of_a_policy_in_code_is_explained() -> None:
    policy = Policy.from_options(
        cache_backend="dogpile.cache.null", cache_arguments={"db": [1]}, fallback={"default": [{"a": 1}]}
    )
    leaves = Registry({"a": policy}).explain("a")
    assert leaves["cache.arguments"].value == {"db": [1]}
    assert leaves["fallback.default"].value == [{"a": 1}]
