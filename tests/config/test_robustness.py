"""Any file or variable either loads, or is a ConfigError with its place."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from opero.config import yaml_source
from opero.config.report import Report
from opero.config.settings import load
from opero.config.yaml_source import read_yaml
from opero.errors import ConfigError
from opero.policies.policy import KINDS

if TYPE_CHECKING:
    from pathlib import Path

    from config.conftest import Policies

WORDS = sorted({*KINDS, *(name for model in KINDS.values() for name in model.model_fields), "extends", "a", "b", "<<"})
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 200),
    st.floats(allow_nan=False),
    st.sampled_from(["5s", "50/s", "process", "auto", "ValueError", "json:dumps", "a", "x y", "", "1:30", "{", "[1"]),
    st.text("ab:#&*!%@`'\"{}[]|>-? \t\n\x01é", max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)
POLICIES = st.dictionaries(st.sampled_from(sorted(KINDS)), VALUES, max_size=4)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "defaults": POLICIES | VALUES,
        "policies": st.dictionaries(st.sampled_from(["a", "b"]), POLICIES) | VALUES,
        "functions": st.dictionaries(
            st.sampled_from(["m:f", "m.n:C.f", "m:*", "*", "[", "[!", "?", ":", "m:", "m.f", "", " "]),
            POLICIES | st.fixed_dictionaries({"policy": st.sampled_from(["a", "b", "c", None]) | VALUES}),
        )
        | VALUES,
        "import_from": st.lists(st.sampled_from(["json", "os", "a b", "", "json."])) | VALUES,
    },
)
PLACE = re.compile(r"(policies/[\w.]+:\d+:\d+|OPERO_\w*|my\.env:\d+:\d+( \(\w+\))?|secrets/\w+( \(\w+\))?): ")
EACH = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def loads_or_tells(policies: Policies, text: bytes, environ: dict[str, str], **held: Any) -> None:
    policies.directory.mkdir(exist_ok=True)
    (policies.directory / "base.yaml").write_bytes(text)
    try:
        load(policies.directory, environ=environ, **held)
    except ConfigError as error:
        for problem in error.problems:
            assert PLACE.match(f"{problem.place}: "), problem
            assert str(problem).count("\n") in (0, 2)
            if problem.snippet and problem.snippet != "…":
                assert 1 <= problem.caret <= len(problem.snippet) + 1
                assert problem.width >= 1


@EACH
@given(document=DOCUMENTS)
def test_any_structure_loads_or_is_reported(policies: Policies, document: Any) -> None:
    loads_or_tells(policies, json.dumps(document, ensure_ascii=False).encode(), {})


@EACH
@given(text=st.binary(max_size=60) | st.text("policies:{}[]&*!<>-?'\"\n\t ~1é\x01", max_size=60).map(str.encode))
def test_any_bytes_load_or_are_reported(policies: Policies, text: bytes) -> None:
    loads_or_tells(policies, text, {})


@EACH
@given(
    variables=st.lists(
        st.tuples(
            st.lists(
                st.sampled_from(
                    ["A", "POLICIES_", "_", "DEFAULTS_", *(word.upper() for word in WORDS if word != "<<")]
                ),
                max_size=5,
            ),
            SCALARS.map(str) | VALUES.map(json.dumps),
        ),
        max_size=3,
    )
)
def test_any_variable_loads_or_is_reported(policies: Policies, variables: list[tuple[list[str], str]]) -> None:
    environ = {"_".join(["OPERO", *words]): value for words, value in variables}
    for name in ("OPERO_CONFIG", "OPERO_ENV"):
        environ.pop(name, None)
    loads_or_tells(policies, b"policies: {a: {retry: 5}, b: {extends: a}}", environ)


BASE = b"policies: {a: {retry: 5}, b: {extends: a}}\nfunctions: {'m:f': {policy: a}}"
NAMES = ["OPERO_A_RETRIES", "opero_a_cache", "OPERO_POLICIES__B__EXTENDS", "OPERO_FUNCTIONS__M_F__RETRY", "OPERO_", "X"]
LINES = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(["", " ", "export ", "\t", "# ", "'"]),
    st.sampled_from(NAMES),
    st.sampled_from(["=", " = ", "", ":", "'="]),
    st.sampled_from(
        ["5", "'5'", '"5', "'", "${X}", "${NOPE}", "${", "null", "{", "[1", "5 # five", "a b", "é", "\\", ""]
    ),
    st.sampled_from(["\n", "\r\n", "\r", "", "\n\n", " \n", "\x0c", "\u2028"]),
)


@EACH
@given(
    text=st.lists(LINES, max_size=6).map("".join).map(str.encode) | st.binary(max_size=40),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff"]),
)
def test_any_env_file_loads_or_is_reported(policies: Policies, text: bytes, mark: bytes) -> None:
    path = policies.directory.parent / "my.env"
    path.write_bytes(mark + text)
    loads_or_tells(policies, BASE, {}, env_file=path)


@EACH
@given(
    secrets=st.dictionaries(
        st.sampled_from(NAMES), st.binary(max_size=12) | SCALARS.map(lambda each: str(each).encode())
    )
)
def test_any_secrets_load_or_are_reported(policies: Policies, secrets: dict[str, bytes]) -> None:
    folder = policies.directory.parent / "secrets"
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)
    for name, value in secrets.items():
        (folder / name).write_bytes(value)
    loads_or_tells(policies, BASE, {}, secrets_dir=folder)


# What is read is what PyYAML reads

PLAIN = """
5 -1 1.5 1e3 1.0e+3 .inf -.INF .nan ~ null yes No on 0x1F 0b1 0o7 010 1_000 1:30 1:30.5 2024-01-01 = << a a-b é 漢 true
2001-12-14t21:59:43.10-05:00 'q' "q" "a\\nb" '' "" 'it''s' "\\u00e9" "<<" '5' !!str{}5 !!int{}"5" !{}x !!float{}5
!!null{}'' !!bool{}yes !!int{}x !!timestamp{}x !!python/name:os.system{}'' !own{}x !!set{}{a} !!omap{}[a:{}1]
%a @a `a a:b a#b -a ?a
""".replace("\n", " ")
SCALAR_TEXTS = st.sampled_from([each.replace("{}", " ") for each in PLAIN.split()])
KEY_TEXTS = st.sampled_from(
    ["a", "b", "c", "d", '"a"', "<<", "'<<'", "é", "&a e", "*a", "on", "1", "[a]", "? f", "!!str g"]
)
ANCHORS = st.sampled_from(["", "", "", "&a ", "&b ", "!!map ", "!!seq ", "! "])
ALIASES = st.sampled_from(["*a", "*b"])


@st.composite
def yaml_texts(draw: st.DrawFn) -> str:
    """A document in block and flow style, with anchors, aliases and merge keys; some of them are not YAML at all."""

    def flow(depth: int) -> str:
        kind = draw(st.sampled_from(["scalar", "scalar", "alias", "list", "map"] if depth else ["scalar", "alias"]))
        if kind == "scalar":
            return draw(SCALAR_TEXTS)
        if kind == "alias":
            return draw(ALIASES)
        inner = [flow(depth - 1) for _ in range(draw(st.integers(0, 3)))]
        if kind == "list":
            return f"{draw(ANCHORS)}[{', '.join(inner)}]"
        return draw(ANCHORS) + "{" + ", ".join(f"{draw(KEY_TEXTS)}: {each}" for each in inner) + "}"

    def block(depth: int, indent: str) -> str:
        """What follows a key or a dash."""
        kind = draw(st.sampled_from(["flow", "flow", "map", "list", "text"] if depth else ["flow"]))
        if kind == "flow":
            return f" {flow(2)}\n"
        anchor = draw(ANCHORS)
        if kind == "text":
            return f" {anchor}{draw(st.sampled_from(['|', '>-', '|+', '>']))}\n{indent}  a\n\n{indent}  b: c\n"
        lines = [f" {anchor}".rstrip() + "\n"]
        for _ in range(draw(st.integers(1, 3))):
            head = f"{draw(KEY_TEXTS)}:" if kind == "map" else "-"
            lines.append(f"{indent}{head}{block(depth - 1, indent + '  ')}")
            if draw(st.integers(0, 9)) == 0:
                lines.append(f"{indent} # a comment\n\n")
        return "".join(lines)

    return draw(st.sampled_from(["", "%YAML 1.1\n---\n", "---\n"])) + "top:" + block(3, "  ") + "more:" + block(2, "  ")


REFUSED = (
    "a key must be text",
    "duplicate key",
    "base-60 number",
    "octal number",
    "is not allowed; use plain YAML",
    "contains itself through an alias",
    "`<<` takes a mapping",
    "cannot be read as",
    "duplicate anchor",
)


@settings(EACH, max_examples=400)
@given(text=yaml_texts())
@example(text="top: [{on: {on: on}}]")
@example(text="on: 1\n'on': 2")
def test_parsed_data_equals_that_of_pyyaml_unless_rejected(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text, "utf-8")
    report = Report()
    found = read_yaml(path, "file.yaml", report)
    told = [problem.text for problem in report.problems]
    try:
        expected = yaml.load(text, yaml_source.SAFE_LOADER)
    except Exception:  # PyYAML's own constructors raise what comes
        assert told, text
        return
    if told:
        assert all(any(each in line for each in REFUSED) for line in told), (told, text)
    else:
        assert found is not None
        assert repr(found.plain()) == repr(with_on_as_text(expected)), text


def with_on_as_text(data: Any) -> Any:
    """The data with the one intended difference: the key `on` is text. Any other key that is true is refused."""
    if isinstance(data, list):
        return [with_on_as_text(each) for each in data]
    if not isinstance(data, dict):
        return data
    return {"on" if key is True else key: with_on_as_text(value) for key, value in data.items()}


@settings(EACH, max_examples=100)
@given(
    data=st.dictionaries(st.text("ab1é :#-", max_size=4), VALUES, min_size=1), flow=st.sampled_from([True, False, None])
)
def test_the_output_of_pyyaml_is_parsed_to_the_same_data(tmp_path: Path, data: Any, flow: bool | None) -> None:
    shared = {"one": data, "other": data}  # written with an anchor and an alias
    path = tmp_path / "file.yaml"
    path.write_text(yaml.safe_dump(shared, default_flow_style=flow, allow_unicode=True), "utf-8")
    report = Report()
    found = read_yaml(path, "file.yaml", report)
    assert report.problems == []
    assert found is not None
    assert found.plain() == shared
