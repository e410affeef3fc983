"""Whatever stands in a file or a variable: it loads, or it is a ConfigError that names its place."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opero.config import load
from opero.errors import ConfigError
from opero.policies.policy import KINDS

if TYPE_CHECKING:
    from conftest import Policies

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
    },
)
PLACE = re.compile(r"(policies/[\w.]+:\d+:\d+|OPERO_\w+): ")
EACH = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def loads_or_tells(policies: Policies, text: bytes, environ: dict[str, str]) -> None:
    policies.directory.mkdir(exist_ok=True)
    (policies.directory / "base.yaml").write_bytes(text)
    try:
        load(policies.directory, environ=environ)
    except ConfigError as error:
        for problem in error.problems:
            assert PLACE.match(f"{problem.place}: "), problem


@EACH
@given(document=DOCUMENTS)
def test_any_structure_loads_or_is_told(policies: Policies, document: Any) -> None:
    loads_or_tells(policies, json.dumps(document, ensure_ascii=False).encode(), {})


@EACH
@given(text=st.binary(max_size=60) | st.text("policies:{}[]&*!<>-?'\"\n\t ~1é\x01", max_size=60).map(str.encode))
def test_any_bytes_load_or_are_told(policies: Policies, text: bytes) -> None:
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
def test_any_variable_loads_or_is_told(policies: Policies, variables: list[tuple[list[str], str]]) -> None:
    environ = {"_".join(["OPERO", *words]): value for words, value in variables}
    for name in ("OPERO_CONFIG", "OPERO_ENV"):
        environ.pop(name, None)
    loads_or_tells(policies, b"policies: {a: {retry: 5}, b: {extends: a}}", environ)
