"""Parsing of YAML files, and the report of each problem: file, line, column, what is wrong, and advice."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import yaml

from opero.config import yaml_source
from opero.config.report import Report

if TYPE_CHECKING:
    from pathlib import Path

    from config.conftest import Policies


@pytest.fixture(params=["C", "Python"], autouse=True)
def _each_parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "C" and not yaml.__with_libyaml__:
        pytest.skip("PyYAML has no C parser here")
    monkeypatch.setattr(yaml_source, "SAFE_LOADER", yaml.CSafeLoader if request.param == "C" else yaml.SafeLoader)


BAD_FILES = {
    "an empty file": ("", ":1:1: is empty; write `policies:`"),
    "a list at the top": (
        "- policies\n",
        ":1:1: the file must be a mapping, not a list; start it with `policies:`",
    ),
    "a scalar at the top": ("\n\n  hello\n", ":3:3: the file must be a mapping, not text"),
    "null at the top": ("---\n", ":2:1: the file must be a mapping, not null"),
    "a tab": ("policies:\n\tapi:\n", ":2:1: this line is indented with a tab; YAML allows spaces only"),
    "a tab further down": ("policies:\n  api:\n    retry: 5\n\t\tcache: 3\n", ":4:"),
    "a broken flow list": ("policies: [1\n", " is not valid YAML: "),
    "two colons": ("policies:\n  api: retry: 5\n", ":2:13: is not valid YAML: mapping values are not allowed"),
    "an unknown alias": ("policies:\n  api: *other\n", ":2:8: is not valid YAML: found undefined alias"),
    "a second document": (
        "policies: {}\n---\npolicies: {}\n",
        ":2:1: starts a second document (`---`); use one document per file",
    ),
    "a control character": (
        "policies:\n  \x01: {}\n",
        ":2:3: contains a character that YAML does not allow (0x01)",
    ),
    "a key written twice": (
        "policies:\n  api:\n    retry: 5\n  db:\n  api:\n",
        ":5:3: duplicate key 'api' (first at line 2); keep one of them",
    ),
    "yes as a key": (
        "policies:\n  yes: {retry: 5}\n",
        ':2:3: a key must be text, but YAML 1.1 reads yes as true; quote it: "yes"',
    ),
    "no as a key": ("policies: {no: }\n", ":1:12: a key must be text, but YAML 1.1 reads no as false"),
    "null as a key": ("policies: {~: }\n", ":1:12: a key must be text, but YAML 1.1 reads ~ as null"),
    "a number as a key": ("policies: {1: }\n", ":1:12: a key must be text, but YAML 1.1 reads 1 as a number"),
    "a date as a key": (
        "policies: {2026-01-01: }\n",
        ":1:12: a key must be text, but YAML 1.1 reads 2026-01-01 as a date",
    ),
    "a list as a key": ("policies:\n  ? [a, b]\n  : 1\n", ":2:5: a key must be text, not a list or mapping"),
    "an object": (
        "policies: !!python/object:os.system {}\n",
        ":1:11: the tag !!python/object:os.system is not allowed",
    ),
    "an object for a scalar": (
        "policies: {api: {retry: !!python/name:os.system x}}\n",
        ":1:25: the tag !!python/name:",
    ),
    "an unknown tag": (
        "policies: {api: {retry: !five 5}}\n",
        ":1:25: the tag !five is not allowed; use plain YAML",
    ),
    "a set": ("policies: !!set {api}\n", ":1:11: the tag !!set is not allowed"),
    "a scalar that lies": ("policies: {api: {retry: !!int five}}\n", ":1:25: 'five' is not a valid !!int"),
    "a base-60 number": (
        "policies: {api: {cache: 1:30}}\n",
        ":1:25: YAML 1.1 reads 1:30 as a base-60 number; quote it, or use units",
    ),
    "an octal number": ("policies: {api: {retry: 010}}\n", ":1:25: YAML 1.1 reads 010 as an octal number"),
    "a scalar that calls itself a list": ("policies: {api: {retry: !!seq x}}\n", ":1:25: the tag !!seq is not allowed"),
    "a list that calls itself a mapping": ("policies: !!map [a]\n", ":1:11: the tag !!map is not allowed"),
    "a date that is none": ("policies: {api: {retry: !!timestamp x}}\n", ":1:25: 'x' is not a valid !!timestamp"),
    "a truth that is none": ("policies: {api: {retry: !!bool x}}\n", ":1:25: 'x' is not a valid !!bool"),
    "an anchor set twice": (
        "policies: {a: &x {retry: 1}, b: &x {retry: 2}}\n",
        ":1:33: duplicate anchor &x; rename one of them",
    ),
    "a value that contains itself": ("policies: &all\n  api: *all\n", " contains itself through an alias"),
    "a merge key of a list": (
        "policies: {api: {<<: [1]}}\n",
        ":1:23: `<<` must be a mapping or a list of mappings",
    ),
    "deep nesting": ("policies: " + "[" * 60 + "]" * 60, " is nested deeper than 50 levels"),
}


@pytest.mark.parametrize(("text", "said"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_reported_with_its_place_and_advice(policies: Policies, text: str, said: str) -> None:
    policies.write(base=" ")
    (policies.directory / "base.yaml").write_text(text, "utf-8")
    problems = policies.problems()
    assert problems[0].startswith("policies/base.yaml:")
    assert said in problems[0]


def test_columns_count_characters_and_not_bytes(policies: Policies) -> None:
    policies.write(base="policies: {é: {retry: {retries: ä}}}\n")
    assert policies.error().startswith("policies/base.yaml:1:33: policies.é.retry.retries: 'ä' is invalid")


def test_a_byte_order_mark_is_no_part_of_the_file(policies: Policies) -> None:
    policies.write(base=" ")
    (policies.directory / "base.yaml").write_bytes(b"\xef\xbb\xbfpolicies: {api: {retry: x}}\n")
    assert policies.error().startswith("policies/base.yaml:1:25: ")


def test_a_file_that_is_not_utf8_is_reported_with_the_position(policies: Policies) -> None:
    policies.write(base=" ")
    (policies.directory / "base.yaml").write_bytes("policies:\n  caf\xe9: {}\n".encode("latin-1"))
    assert policies.error() == "policies/base.yaml:2:6: is not UTF-8; save it as UTF-8"


def test_a_carriage_return_ends_a_line_in_the_place_of_an_error(policies: Policies) -> None:
    policies.write(base=" ")
    (policies.directory / "base.yaml").write_bytes(b"a:\r  \x01")
    assert policies.error() == (
        "policies/base.yaml:2:3: contains a character that YAML does not allow (0x01); remove it"
    )


def test_a_file_that_is_a_directory_is_reported(policies: Policies) -> None:
    (policies.directory / "base.yaml").mkdir(parents=True)
    assert policies.error() == "policies/base.yaml:1:1: cannot be read: Is a directory"


def test_a_flow_too_deep_for_the_c_parser_is_rejected_before_it_crashes(tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text("[" * 300_000)
    report = Report()
    assert yaml_source.read_yaml(path, "deep.yaml", report) is None
    [line] = report.lines
    assert re.fullmatch(r"deep\.yaml:1:\d+: is nested deeper than 50 levels", line)


def test_on_is_text_as_a_key_since_a_field_is_named_so(policies: Policies) -> None:
    policies.write(base="policies: {api: {fallback: {default: 1, on: [denied]}}}")
    assert [kind.value for kind in policies.load().policies["api"].fallback.on] == ["denied"]  # type: ignore[union-attr]


def test_only_aliases_are_limited_in_number_and_not_the_values_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text(f"values: [{'1, ' * yaml_source.MAX_ALIASED}1]")
    report = Report()
    marked = yaml_source.read_yaml(path, "large.yaml", report)
    assert report.lines == []
    assert marked is not None
    assert len(marked.value["values"].value) == yaml_source.MAX_ALIASED + 1


def test_aliases_that_multiply_beyond_measure_are_rejected(policies: Policies) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    policies.write(base="\n".join(lines))
    assert any("aliases add more than 100000 values" in line for line in policies.problems())


def test_anchors_aliases_and_merge_keys_work(policies: Policies) -> None:
    policies.write(
        base="""
        policies:
          api: &api
            retry: &retry {retries: 5, min_delay: 1s}
            cache: 30m
          copy: *api
          merged:
            <<: *api
            retry:
              <<: [{retries: 7}, *retry]
              max_delay: 9
        """
    )
    loaded = policies.load()
    assert loaded.policies["copy"] == loaded.policies["api"]
    assert loaded.policies["merged"].cache == loaded.policies["api"].cache
    retry = loaded.policies["merged"].retry
    assert retry is not None
    assert (retry.retries, retry.min_delay, retry.max_delay) == (7, 1.0, 9.0)
    assert str(loaded.leaves("merged")["retry.min_delay"].source) == "policies/base.yaml:3:43"


def test_a_key_beside_a_merge_key_has_precedence_in_any_order(policies: Policies) -> None:
    policies.write(base="policies: {a: &a {retry: 1, cache: 5}, b: {retry: 2, <<: *a}, c: {<<: *a, retry: 3}}")
    found = policies.load().policies
    assert [found[name].retry.retries for name in "abc"] == [1, 2, 3]  # type: ignore[union-attr]
    assert found["b"].cache == found["a"].cache


def test_a_key_may_have_an_anchor(policies: Policies) -> None:
    policies.write(base="policies: {&name api: {retry: 1}, other: {extends: *name}}")
    assert policies.load().policies["other"].retry == policies.load().policies["api"].retry


def test_a_file_reports_each_of_its_mistakes(policies: Policies) -> None:
    policies.write(
        base="""
        polices: {}
        policies:
          off: {}
          api:
            retry: {retires: 5}
            retry: 3
            retries: 4
        """
    )
    assert [line.partition(": ")[0] for line in policies.problems()] == [
        "policies/base.yaml:1:1",
        "policies/base.yaml:3:3",
        "policies/base.yaml:5:13",
        "policies/base.yaml:6:5",
        "policies/base.yaml:7:5",
    ]
