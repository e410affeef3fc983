"""The JSON Schema of the policy files, generated from the policy models and their docstrings."""

from __future__ import annotations

import inspect
import json
import re
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from opero.config.document import FUNCTION, IMPORT, LISTS, MODULE
from opero.policies.adaptive_ttl import AdaptiveTTL
from opero.policies.alert import Alert, Condition, Webhook
from opero.policies.limits import Limit
from opero.policies.names import dotted_name
from opero.policies.policy import KINDS
from opero.policies.scope import KeyedScope

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import core_schema

BEYOND_THE_SCHEMA = {
    "what is missing": "required fields may be in another file, so the schema requires nothing",
    "contradictions": "values that are valid alone but contradict each other, such as min_delay above max_delay",
    "secrets": "in fallback.values, secret:NAME must name a secret that exists",
    "alerts": "what makes a condition is one of event, share, state, any and all, and other fields go with one of them",
    "profiles": "`extends`, `policy`, `imports` and canaries name a profile, which may be in another file",
    "environments": "`extends` of a file names an environment that has a file",
    "imports": "names of functions and exceptions must be importable, allowed by import_from, and of the right type",
    "tags": 'braces in a tag must contain the name of a parameter: "user:{user_id}"',
    "parameters": '`ignore` of a cache holds names of parameters: "user id" is not one',
    "json in text": 'a ttl or a scope may be JSON in text, as in variables: "{hot: 1h}" is not JSON',
    "numbers that JSON has not": ".inf, .nan, and numbers that are too large for a float",
    "long times": 'text of more than 100 years, such as "1e9d", or less than a permit within them, such as "1/1e9d"',
    "whole shares": "max_failures: 1.0 could mean one failure or all; JSON does not distinguish it from 1",
}
"""Everything that the loader rejects and the schema accepts."""


OTHERS: tuple[type[BaseModel], ...] = (AdaptiveTTL, KeyedScope, Alert, Condition, Limit, Webhook)
MODELS: dict[str, type[BaseModel]] = {each.__name__: each for group in (KINDS.values(), OTHERS) for each in group}
SHARED = ("title", "type", "pattern", "anyOf", "examples")
"""The keywords that fields of one type share."""
ORDER = (
    *("$schema", "title", "description", "$ref", "type", "const", "enum", "format", "writeOnly", "pattern"),
    *("minLength", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "anyOf", "items", "uniqueItems"),
    *("additionalProperties", "propertyNames", "properties", "default", "examples", "$defs"),
)
"""The order of the keywords of a schema."""


class _Generator(GenerateJsonSchema):
    """Writes classes in defaults by name, and gives fields no titles, which would repeat their names."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012  # as in pydantic

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, tuple) and dft and all(isinstance(each, type) for each in dft):
            return [dotted_name(each) for each in dft]
        return super().encode_default(dft)

    def field_title_should_be_set(self, schema: core_schema.CoreSchema | core_schema.ModelField | Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a policy file, in a stable order.

    It accepts and rejects the same files as the loader, except for `BEYOND_THE_SCHEMA`.
    """
    _, made = models_json_schema([(model, "validation") for model in MODELS.values()], schema_generator=_Generator)
    definitions: dict[str, Any] = {}
    for name, model in MODELS.items():
        definitions[name] = _hoisted(_documented(made["$defs"][name], model), definitions)
    kinds = {kind: {"$ref": f"#/$defs/{kind}"} for kind in KINDS}
    definitions |= {kind: _in_all_forms(model, definitions[model.__name__]) for kind, model in KINDS.items()}
    name_or_null = {"type": ["string", "null"]}
    enabled = {"type": "boolean", "description": "False switches all of these policies off, whatever sets them."}
    definitions["profile"] = _mapping(
        "A profile: the policies of the functions that are bound to its name. Null is an empty profile.",
        extends={**name_or_null, "description": "The profile to start from; null for none."},
        enabled=enabled,
        **kinds,
    )
    definitions["function"] = _mapping(
        "Policies of one function, or of all that a glob matches; they override its profile and decorator options.",
        policy={**name_or_null, "description": "The profile to start from instead; null for none."},
        enabled=enabled,
        **kinds,
    )
    module = {"type": "string", "pattern": _whole(MODULE)}
    definitions["alert"] = {"anyOf": [{"$ref": "#/$defs/Alert"}, {"type": "null"}]}
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Policies of opero",
        "description": "A policy file: base.yaml, or the file of an environment, which is merged over it.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "policies": {
                "description": "Profiles by name.",
                "type": ["object", "null"],
                "propertyNames": {"minLength": 1},
                "additionalProperties": {"$ref": "#/$defs/profile"},
            },
            "defaults": _mapping("Policies that every profile starts from.", enabled=enabled, **kinds),
            "functions": {
                "description": 'Policies of single functions, by "module:qualname" or a glob such as "app.*".',
                "type": ["object", "null"],
                "propertyNames": {"pattern": rf"{_whole(FUNCTION)}|[*?\[]"},
                "additionalProperties": {"$ref": "#/$defs/function"},
            },
            "imports": {
                "description": 'What `opero run` binds, and its profile: "module:function", "module:*", or a library.',
                "type": ["object", "null"],
                "propertyNames": {"pattern": _whole(IMPORT)},
                "additionalProperties": {"type": ["string", "null"]},
                "examples": [{"requests:get": "api", "httpx": "api"}],
            },
            "import_from": {
                "description": "The modules, with their submodules, that names may be imported from. Default: any.",
                "anyOf": [{"type": "array", "items": module}, module],
                "examples": [["app", "requests"]],
            },
            "extends": {
                "description": "The environment whose file this one lies over, besides base.yaml.",
                "type": ["string", "null"],
                "examples": ["production"],
            },
            "alerts": {
                "description": "Alerts by name, which the default registry runs. Null removes one.",
                "type": ["object", "null"],
                "propertyNames": {"minLength": 1},
                "additionalProperties": {"$ref": "#/$defs/alert"},
            },
        },
        "$defs": dict(sorted(definitions.items())),
    }
    ordered: dict[str, Any] = _ordered(whole)
    return ordered


def schema_text() -> str:
    """Return the schema as the text of a file."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _ordered(schema: Any) -> Any:
    """Return a copy with the keywords of each schema in a fixed order."""
    if isinstance(schema, list):
        return [_ordered(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _ordered(each) for name, each in value.items()}
        if key in ("properties", "$defs")
        else value
        if key in ("default", "examples", "enum")
        else _ordered(value)
        for key, value in sorted(schema.items(), key=lambda item: ORDER.index(item[0]))
    }


def _hoisted(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return a copy with the common keywords of titled field types moved to the definitions."""
    if isinstance(schema, list):
        return [_hoisted(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _hoisted(value, definitions) for key, value in schema.items()}
    name = schema.get("title")
    if schema == {"title": name, "type": "object"} and name in MODELS:
        return {"$ref": f"#/$defs/{name}"}
    if not isinstance(name, str) or name in MODELS:
        return schema
    definitions[name] = {key: value for key, value in schema.items() if key in SHARED}
    return {key: value for key, value in schema.items() if key not in definitions[name]} | {"$ref": f"#/$defs/{name}"}


def _whole(pattern: re.Pattern[str]) -> str:
    # In Python's regular expressions, "$" may stand before a last line break.
    return rf"^({pattern.pattern})$(?!\n)"


def _mapping(description: str, **properties: Any) -> dict[str, Any]:
    return {
        "description": description,
        "type": ["object", "null"],
        "additionalProperties": False,
        "properties": properties,
    }


def _documented(schema: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a model with descriptions of the model and its fields from the docstring."""
    summary, descriptions = _docstring(model)
    properties = {name: {"description": descriptions[name], **field} for name, field in schema["properties"].items()}
    return {
        "title": model.__name__,
        "description": summary,
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def _docstring(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """Parse a docstring into a summary and attributes; inherited attributes come from their own class."""
    descriptions: dict[str, str] = {}
    summary = ""
    for cls in reversed(model.__mro__):
        if "__doc__" not in vars(cls) or not hasattr(cls, "model_fields"):
            continue
        summary, _, attributes = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")
        for entry in re.split(r"\n {4}(?=\S)", "\n" + attributes.partition("\n\n")[0])[1:]:
            names, _, text = " ".join(entry.split()).partition(": ")
            descriptions |= dict.fromkeys(names.split(", "), re.sub(r"\bNone\b", "null", text[:1].upper() + text[1:]))
    return " ".join(summary.replace("\n\n", "\0").split()).replace("\0", "\n\n"), descriptions


def _in_all_forms(model: Any, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a policy in all forms: a mapping, the short form, true, false, or null."""
    forms: list[dict[str, Any]] = [{"$ref": f"#/$defs/{model.__name__}"}]
    if model.short is not None:
        short = schema["properties"][model.short]
        choices = short.get("anyOf") or [{key: short[key] for key in ("$ref", "type", "enum") if key in short}]
        # A mapping always contains the fields of this policy, not of AdaptiveTTL.
        forms += [each for each in choices if each not in ({"type": "null"}, {"$ref": "#/$defs/AdaptiveTTL"})]
    if model.kind in LISTS:
        forms += [{"$ref": schema["properties"][LISTS[model.kind]]["$ref"]}]
    forms += [{"type": "boolean"}, {"type": "null"}]
    return {"title": schema["title"], "description": schema["description"], "anyOf": forms}
