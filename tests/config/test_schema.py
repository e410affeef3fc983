"""The JSON Schema of the policy files: it is current, documents all fields, and agrees with the loader."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.agreement import (
    BEYOND,
    NAMES,
    SCHEMA,
    TEXTS,
    VALIDATOR,
    VALUES,
    disagreements,
    from_schema,
    mutated,
    problems,
)
from opero.config.schema import json_schema, schema_text
from opero.policies.policy import KINDS
from opero.policies.types import UNSET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from config.conftest import Policies

DIRECTORY = Path(__file__).parents[2] / "policies"
FIELDS = [(kind, field) for kind, model in KINDS.items() for field in model.model_fields]
PLACES: list[tuple[str, str | None]] = [*FIELDS, *((kind, None) for kind in KINDS)]
QUICKLY = settings(
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.filter_too_much,  # what a pattern allows and what a list may hold once is drawn by trial
    ],
)


def test_the_reference_folder_holds_the_schema_as_it_is_now() -> None:
    assert (DIRECTORY / "schema.json").read_text("utf-8") == schema_text(), (
        "the schema has changed; if that is meant: python -c 'from opero.config.schema import schema_text; "
        'print(schema_text(), end="")\' > policies/schema.json'
    )


def test_it_is_a_schema_and_the_same_each_time() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.dumps(json_schema()) == json.dumps(SCHEMA)
    assert json.loads(schema_text()) == SCHEMA


def test_the_reference_files_name_it_and_fit_it() -> None:
    for path in sorted(DIRECTORY.glob("*.yaml")):
        text = path.read_text("utf-8")
        assert text.startswith("# yaml-language-server: $schema=schema.json\n")
        VALIDATOR.validate(yaml.safe_load(text))


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_every_field_is_described_and_its_default_and_examples_fit(kind: str, field: str) -> None:
    info = KINDS[kind].model_fields[field]
    told = SCHEMA["$defs"][KINDS[kind].__name__]["properties"][field]
    assert len(told["description"]) > 15
    assert told["description"][0] == told["description"][0].upper()
    fits = VALIDATOR.evolve(schema={**told, "$defs": SCHEMA["$defs"]})
    if not info.is_required() and info.default is not UNSET:
        held = list(info.default) if isinstance(info.default, tuple) else info.default
        assert told["default"] == (["Exception"] if held == [Exception] else held)
        fits.validate(told["default"])
    for example in SCHEMA["$defs"].get(told.get("$ref", "").rpartition("/")[2], told).get("examples", []):
        fits.validate(example)


def test_no_description_speaks_of_python_values_or_shows_a_docstring_sections_name() -> None:
    text = schema_text()
    assert [each for each in ("None", "Attributes:", "Raises:", "True.", "False.") if each in text] == []


def test_every_time_of_an_adaptive_ttl_is_described_on_its_own() -> None:
    fields = SCHEMA["$defs"]["AdaptiveTTL"]["properties"]
    told = [fields[name]["description"] for name in fields]
    assert len(set(told)) == len(fields)
    assert [each for each in told if "same" in each] == []


def patterns(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from (each for key, each in schema.items() if key == "pattern" and isinstance(each, str))
    for each in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from patterns(each)


def test_no_pattern_means_something_else_in_an_editor() -> None:
    found = set(patterns(SCHEMA))
    assert len(found) > 10
    assert [each for each in found if re.search(r"\\[wWdDbB]", each)] == [], "ASCII alone in ECMA-262"


def test_names_of_functions_and_modules_may_hold_any_letter(policies: Policies) -> None:
    text = "import_from: [größe, 日本.app]\nfunctions: {'größe.x:fn': {retry: 1}, 'app:größe.<locals>.é': {retry: 1}}\n"
    policies.write(base=text)
    assert policies.load().import_from == ("größe", "日本.app")
    VALIDATOR.validate(yaml.safe_load(text))


def test_it_needs_nothing_that_another_file_may_say() -> None:
    assert '"required"' not in schema_text()


# Agreement with the loader

GENERATED = {
    **{
        (kind, field): from_schema(SCHEMA["$defs"][KINDS[kind].__name__]["properties"][field]) for kind, field in FIELDS
    },
    **{(kind, None): from_schema(SCHEMA["$defs"][kind]) for kind in KINDS},
}


@pytest.mark.parametrize("part", range(4))  # of all fields at once an example would be too large
@settings(QUICKLY, max_examples=12)
@given(data=st.data())
def test_the_loader_accepts_whatever_the_schema_generates(policies: Policies, part: int, data: st.DataObject) -> None:
    said = {f"p{number}": (*place, data.draw(GENERATED[place])) for number, place in enumerate(PLACES[part::4])}
    assert disagreements(policies, said) == []


@settings(QUICKLY, max_examples=30)
@given(data=st.data())
def test_whatever_is_written_in_a_field_both_accept_it_or_neither(policies: Policies, data: st.DataObject) -> None:
    texts = st.sampled_from(TEXTS).flatmap(mutated)
    said = {f"p{number}": (*place, data.draw(VALUES | texts)) for number, place in enumerate(PLACES)}
    assert disagreements(policies, said) == []


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(filter(None, place)))
def test_of_each_of_many_texts_both_say_the_same(policies: Policies, place: tuple[str, str | None]) -> None:
    assert disagreements(policies, {f"p{number}": (*place, text) for number, text in enumerate(TEXTS)}) == []


@settings(QUICKLY, max_examples=30)
@given(
    said=st.lists(
        st.tuples(st.sampled_from(sorted(KINDS)), st.sampled_from(NAMES).flatmap(mutated), VALUES), max_size=9
    )
)
def test_of_unknown_and_misspelt_fields_both_say_the_same(policies: Policies, said: list[tuple[str, str, Any]]) -> None:
    assert disagreements(policies, {f"p{number}": each for number, each in enumerate(said)}) == []


AROUND = """
[]; x; 3; {}; policies: ; policies: []; policies: {}; policies: {a: }; polices: {}; policies: {a: 5}; policies: {"": {}}
policies: {a: {extends: null}}; policies: {a: {extends: 3}}; policies: {a: {extends: [b]}}; policies: {a: {policy: b}}
policies: {a: {retries: 5}}; policies: {a: {retry: []}}; policies: {a: {retry: [5]}}; policies: {a: {retry: {x: 1}}}
policies: {a: {retry: {}}}; policies: {a: {retry: }}; policies: {a: {retry: true}}; policies: {a: {retry: no}}
defaults: ; defaults: []; defaults: {extends: a}; defaults: {retry: 5}; defaults: {retry: x}
functions: ; functions: []; functions: {"a:b": }; functions: {"a:b": {policy: }}; functions: {"a:b": {policy: 3}}
functions: {"a:b": {extends: x}}; functions: {"a:b": {retry: 1}}; functions: {"a:b": {retry: {retries: -1}}}
functions: {a: {}}; functions: {a.b: {}}; functions: {"a.*": {}}; functions: {"a:b.c": {}}; functions: {"1:b": {}}
functions: {"a:f.<locals>.g": {}}; functions: {":b": {}}; functions: {"[ab]:c": {}}; functions: {"": {}}
functions: {"a:b ": {}}; functions: {"a:b\\n": {}}
import_from: ; import_from: []; import_from: app; import_from: [app, a.b]
import_from: ["a:b"]; import_from: [3]; import_from: 3; import_from: {}; import_from: [a.]; import_from: [""]
import_from: [1a]; import_from: ["a\\n"]
alerts: ; alerts: []; alerts: {}; alerts: {a: }; alerts: {"": {}}; alerts: {a: 3}; alerts: {a: {when: {evnt: x}}}
alerts: {a: {when: {share: 20%}}}; alerts: {a: {when: {share: 0}}}; alerts: {a: {when: {share: 20%, over: 1x}}}
alerts: {a: {when: {event: retry_scheduled, count: 3, until: 1}, notify: log}}; alerts: {a: {when: {event: retry}}}
alerts: {a: {when: {state: circuit_open, lasts: 2m}, notify: [log, "https://a.b/c"]}}
alerts: {a: {when: {state: open}}}; alerts: {a: {when: {share: 1}, each: x}}
alerts: {a: {when: {any: [{event: timed_out}, {all: [{share: 0.5}, {state: circuit_open}]}]}}}; alerts: {a: {when: []}}
alerts: {a: {when: {share: 20%}, notify: {url: "http://a", timeout: 3s, retries: 0}}}
alerts: {a: {when: {share: 20%}, notify: 3}}; alerts: {a: {when: {share: 20%}, notify: {uri: "http://a"}}}
alerts: {a: {when: {share: 20%}, notify: []}}; alerts: {a: {when: {share: 20%}, repeat: 0}}; alerts: {a: {when: 3}}
"""


@pytest.mark.parametrize("text", [each.strip() for each in AROUND.strip().replace("\n", ";").split(";")])
def test_of_the_places_around_policies_both_say_the_same(policies: Policies, text: str) -> None:
    document = yaml.safe_load(text)
    assert VALIDATOR.is_valid(document) == (problems(policies, document) == [])


BEYOND_EXAMPLES: dict[str, dict[str, Any]] = {
    "what is missing": {"policies": {"a": {"rate_limit": {"burst": 5}}}},
    "contradictions": {"policies": {"a": {"retry": {"min_delay": 5, "max_delay": 1}}}},
    "secrets": {"policies": {"a": {"fallback": {"arg": "key", "values": ["secret:MISSING"]}}}},
    "alerts": {"alerts": {"a": {"when": {"share": "20%", "count": 3}}}},
    "profiles": {"policies": {"a": {"extends": "b"}}},
    "environments": {"extends": "production", "policies": {}},
    "imports": {"policies": {"a": {"retry": {"retry_on": ["ConectionError"]}}}},
    "tags": {"policies": {"a": {"cache": {"tags": ["user:{"]}}}},
    "parameters": {"policies": {"a": {"cache": {"ignore": ["user id"]}}}},
    "json in text": {"policies": {"a": {"cache": {"ttl": "{hot: 1h}"}}}},
    "numbers that JSON has not": {"policies": {"a": {"retry": {"backoff_factor": float("inf")}}}},
    "long times": {"policies": {"a": {"cache": {"ttl": "1e9d"}}}},
    "whole shares": {"policies": {"a": {"parallel": {"max_failures": 1.0}}}},
}


@pytest.mark.parametrize("exception", BEYOND)
def test_each_published_exception_is_one(policies: Policies, exception: str) -> None:
    document = BEYOND_EXAMPLES[exception]
    assert VALIDATOR.is_valid(document)
    assert len(problems(policies, document)) == 1


def test_no_value_of_a_mistaken_number_breaks_the_loader(policies: Policies) -> None:
    """A regression: float() raises OverflowError, which was reported as a failed import."""
    (told,) = problems(policies, {"policies": {"a": {"retry": {"min_delay": 10**400}}}})
    assert told.startswith("policies.a.retry.min_delay: 1000")
    assert "is not a duration" in told
