"""Compares the results of the JSON Schema and of the loader for a policy file."""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Any
from unittest import mock

import jsonschema
import yaml
from hypothesis import strategies as st

from opero.config import report
from opero.config.schema import BEYOND_THE_SCHEMA, json_schema
from opero.errors import ConfigError
from opero.policies.policy import KINDS

if TYPE_CHECKING:
    from config.conftest import Policies

SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
WHOLE = r"^(policies\.\w+|functions\.\S+|defaults)\.\w+: "
"""The message of a problem of a policy as a whole."""

BEYOND: dict[str, Any] = {
    "what is missing": lambda text, value: re.search(
        r"\.scope: by is missing|limits\.\d+\.rate: Field required|"
        + WHOLE
        + r".*(missing field|no timeout is set|no fallback is set|without slow_call|never opens)",
        text,
    ),
    "contradictions": lambda text, value: (
        re.search(WHOLE, text)
        or re.search(
            "cold <= warm|is greater than hot_after|no failure counts for the circuit|both answer from one", text
        )
    ),
    "secrets": lambda text, value: re.search(
        r"the secret \S+ (does not exist|is empty)|secret: must be followed", text
    ),
    "alerts": lambda text, value: re.search("a condition has exactly one of|does not go with|more than count", text),
    "profiles": lambda text, value: re.search("which does not exist|circular (`extends`|canaries)", text),
    "environments": lambda text, value: "no file for the environment" in text,
    "imports": lambda text, value: re.search(
        r"cannot be imported|is (not|neither) a builtin|is not callable|is not an exception class|is never retried|"
        r"neither a concurrent\.futures\.Executor|the name of an exception is empty|is a generator function|"
        "cannot be called with (one argument|no arguments)",
        text,
    ),
    "tags": lambda text, value: "is not a tag:" in text,
    "parameters": lambda text, value: "is not the name of a parameter" in text,
    "json in text": lambda text, value: any(
        str(each).strip()[:1] == "{"
        for each in ([value.get("ttl"), value.get("scope")] if isinstance(value, dict) else [value])
    ),
    "numbers that JSON has not": lambda text, value: isinstance(value, int | float) and not abs(value) < 1e308,
    "long times": lambda text, value: re.search("longer than 100 years|within 100 years|permits of 100 years", text),
    "whole shares": lambda text, value: "use a count (10) or a share" in text and isinstance(value, float),
}
"""How each documented exception is recognized: by the message of the loader, or by the value."""
assert BEYOND.keys() == BEYOND_THE_SCHEMA.keys()


def problems(policies: Policies, document: Any) -> list[str]:
    """Return the problems that the loader reports for a document."""
    policies.directory.mkdir(exist_ok=True)
    text = yaml.dump(document, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), allow_unicode=True)
    (policies.directory / "base.yaml").write_text(text, "utf-8")
    with mock.patch.object(report, "MOST_PROBLEMS", 10_000):
        try:
            policies.load()
        except ConfigError as error:
            return [each.text for each in error.problems]
    return []


def disagreements(policies: Policies, said: dict[str, tuple[str, str | None, Any]]) -> list[str]:
    """Return where the two disagree about profiles, each with a policy, a field (None: the policy) and a value."""
    document = {
        "policies": {
            name: {kind: {field: value} if field is not None else value} for name, (kind, field, value) in said.items()
        }
    }
    refused = {error.absolute_path[1] for error in VALIDATOR.iter_errors(document)}
    told: dict[str, list[str]] = {}
    for text in problems(policies, document):
        first, _, by_aliases = text.partition(" (through aliases also ")
        for name in [*re.findall(r"policies\.(p\d+)", first)[:1], *re.findall(r"policies\.(p\d+)", by_aliases)]:
            told.setdefault(name, []).append(text)
    found = []
    for name, (kind, field, value) in said.items():
        beyond = all(any(each(text, value) for each in BEYOND.values()) for text in told.get(name, []))
        if name in refused and name not in told:
            found.append(f"{kind}.{field}: the loader accepts {value!r}, the schema does not")
        elif name not in refused and not beyond:
            found.append(f"{kind}.{field}: the schema accepts {value!r}, the loader does not: {told[name]}")
    return found


# What may be written

WORDS = """
5 0 -1 +3 1.5 .5 5. 0.0 1.0 007 1e3 1e-3 5e0 1.5e2 0e9 1e400 1_000 ٣ ² 0x10 0b1 0o17 1,5 1.2.3 --5 5- NaN inf -Infinity
30s 1h30m 250µs 250μs 0s 0h5m -5s 5x s 1m5 1e2ms .5h 50/s 50/min 50/minute 100/30s 50/0s 0/s 50/ /s 50/s/s 5/1h30m 5/7
512MB 1.5GiB 0.5b 0MB 1e3b 0.001kb MB 1.0005mb 5% 100% 101% 0.5% % 5%% 429 5xx 5XX 6xx 99 600 429.0 012 10:30 2024-01-01
true YES on off n 1 maybe null ~ auto AUTO adaptive process Process proces json raise profile local tokens a.b
json:dumps :x a: ValueError json.JSONDecodeError? len user:{id} {a {} {1} 1e99 1e9d 1/1e9d
"""
TEXTS = [
    *WORDS.split(),
    *(
        "",
        " ",
        " ٣ ",
        "5 ",
        "\t5\n",
        "30 S",
        "1h 30m",
        "5s\n",
        "5s\x0b",
        "5s\u00a0",
        "5/h\n",
        "5 / day",
        "2 kB ",
        "1 mb b",
    ),
    *(" auto", "a b", "json:dump s", '{"hot": "2h"}', "9" * 25, "x" * 70),
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 700),
    st.sampled_from([10**15, 10**400, 0.0, -0.0, 1.0, 2.0, 0.5, 1.5, 429.0, 1e-9, 1e300, float("inf"), float("nan")]),
    st.floats(-2, 700, allow_nan=False),
    st.sampled_from(TEXTS),
    st.just(datetime.date(2024, 1, 1)),
    st.text("0123456789.eE+-_ /:%smhdkKbBuµμ{}\n٣x", max_size=6),
)
NAMES = sorted({name for model in KINDS.values() for name in model.model_fields} | {"hot", "cold", "warm_after"})
VALUES = SCALARS | st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=2),
    max_leaves=3,
)


@st.composite
def mutated(draw: st.DrawFn, text: str) -> str:
    """The same with a character put in, taken out or replaced."""
    place = draw(st.integers(0, max(0, len(text) - 1)))
    put = draw(st.sampled_from(["", *"0159.eE-+_ sm/%:?xX\n٣", text[place : place + 1] * 2]))
    return text[:place] + put + text[place + draw(st.integers(0, 1)) :]


def from_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Whatever a part of the schema accepts, with names that can be imported."""
    if "$ref" in schema:
        return st.deferred(lambda: from_schema(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]))
    if "anyOf" in schema:
        return st.one_of([from_schema(each) for each in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    kinds = schema.get("type", "any")
    return st.one_of([_of_type(kind, schema) for kind in (kinds if isinstance(kinds, list) else [kinds])])


def _of_type(kind: str, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    match kind:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(least, most)
        case "number":
            lowest, highest = (above if least is None else least), (below if most is None else most)
            return st.floats(
                lowest,
                1e300 if highest is None else highest,
                exclude_min=above is not None,
                exclude_max=below is not None,
            )
        case "string" if "pattern" in schema:
            return st.from_regex(schema["pattern"]).filter(_can_be_written)
        case "string":
            return st.sampled_from(["ValueError", "json:dumps", "concurrent.futures:ThreadPoolExecutor"])
        case "array":
            unique = repr if schema.get("uniqueItems") else None
            return st.lists(from_schema(schema["items"]), max_size=2, unique_by=unique)
        case "object" if "properties" in schema:
            return st.fixed_dictionaries(
                {}, optional={name: from_schema(each) for name, each in schema["properties"].items()}
            )
        case _:
            return st.dictionaries(st.sampled_from(["a", "b"]), st.integers() | st.text("ab"), max_size=2)


def _can_be_written(text: str) -> bool:
    """YAML has no such characters at all."""
    return all(each in "\t\n\r" or each.isprintable() for each in text)
