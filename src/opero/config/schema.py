"""The JSON Schema of the policy files, for editors: derived from the policy models and their docstrings."""

from __future__ import annotations

import inspect
import json
import re
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from opero.config.document import FUNCTION, MODULE
from opero.policies.adaptive_ttl import AdaptiveTTL
from opero.policies.policy import KINDS
from opero.policies.types import dotted_name

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import core_schema

__all__ = ["BEYOND_THE_SCHEMA", "json_schema", "schema_text"]

BEYOND_THE_SCHEMA = {
    "what is missing": "what a policy needs may stand in another file, so the schema requires nothing",
    "contradictions": "values that are good alone and do not go together, such as min_delay above max_delay",
    "profiles": "`extends` and `policy` name a profile, which may stand in another file, and may extend others",
    "imports": "names of functions and exceptions must import, as import_from allows, and be what the field is for",
    "tags": 'each brace of a tag must hold the name of a parameter: "user:{user_id}"',
    "json in text": 'a ttl may be JSON written as text, as variables hold it: "{hot: 1h}" is none',
    "numbers that JSON has not": ".inf, .nan, and what is too large for a floating-point number",
    "whole shares": "max_failures: 1.0 could be one failure or all; JSON cannot tell it from 1",
}
"""What the loader refuses and the schema cannot: nothing else. Text of these may pass an editor, and not the loader."""


MODELS: dict[str, type[BaseModel]] = {**{each.__name__: each for each in KINDS.values()}, "AdaptiveTTL": AdaptiveTTL}
SHARED = ("title", "type", "pattern", "anyOf", "examples")
"""What a field type's schema says; the rest is the field's own."""
ORDER = (
    *("$schema", "title", "description", "$ref", "type", "const", "enum", "format", "writeOnly", "pattern"),
    *("minLength", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "anyOf", "items"),
    *("additionalProperties", "propertyNames", "properties", "default", "examples", "$defs"),
)
"""How the keywords of a schema follow each other."""


class _Generator(GenerateJsonSchema):
    """Writes classes by their names where they are defaults; gives fields no titles, which would only repeat names."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012  # as in pydantic

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, tuple) and dft and all(isinstance(each, type) for each in dft):
            return [dotted_name(each) for each in dft]
        return super().encode_default(dft)

    def field_title_should_be_set(self, schema: core_schema.CoreSchema | core_schema.ModelField | Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of one policy file, the same at every call, in an order fit to be committed.

    It accepts what the loader accepts of one file and refuses what that refuses, but for `BEYOND_THE_SCHEMA`.
    """
    _, made = models_json_schema([(model, "validation") for model in MODELS.values()], schema_generator=_Generator)
    definitions: dict[str, Any] = {}
    for name, model in MODELS.items():
        definitions[name] = _hoisted(_documented(made["$defs"][name], model), definitions)
    kinds = {kind: {"$ref": f"#/$defs/{kind}"} for kind in KINDS}
    definitions |= {kind: _in_all_forms(model, definitions[model.__name__]) for kind, model in KINDS.items()}
    name_or_null = {"type": ["string", "null"]}
    definitions["profile"] = _mapping(
        "A profile: what should happen around the functions that are bound to its name. Null says nothing of its own.",
        extends={**name_or_null, "description": "The profile that this one starts from; null: from none."},
        **kinds,
    )
    definitions["function"] = _mapping(
        "What holds for one function, or for all that a glob matches, over its profile and its decorator's options.",
        policy={**name_or_null, "description": "The profile that it starts from instead; null: from none."},
        **kinds,
    )
    module = {"type": "string", "pattern": _whole(MODULE)}
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Policies of opero",
        "description": "One policy file: base.yaml, or an environment's, which is laid over it key by key.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "policies": {
                "description": "Profiles by name.",
                "type": ["object", "null"],
                "propertyNames": {"minLength": 1},
                "additionalProperties": {"$ref": "#/$defs/profile"},
            },
            "defaults": _mapping("What is laid under every profile.", **kinds),
            "functions": {
                "description": 'What holds for single functions: by "module:qualname", or by a glob such as "app.*".',
                "type": ["object", "null"],
                "propertyNames": {"pattern": rf"{_whole(FUNCTION)}|[*?\[]"},
                "additionalProperties": {"$ref": "#/$defs/function"},
            },
            "import_from": {
                "description": "The modules that names may be imported from, with all below them. Default: any.",
                "anyOf": [{"type": "array", "items": module}, module],
                "examples": [["app", "requests"]],
            },
        },
        "$defs": dict(sorted(definitions.items())),
    }
    ordered: dict[str, Any] = _ordered(whole)
    return ordered


def schema_text() -> str:
    """The schema as the text of a file."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _ordered(schema: Any) -> Any:
    """The same with each schema's keywords in one order, whatever made it."""
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
    """The same with what field types have in common, which they name by a title, moved to the definitions."""
    if isinstance(schema, list):
        return [_hoisted(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _hoisted(value, definitions) for key, value in schema.items()}
    name = schema.get("title")
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
    """A model's schema with its docstring on it, and on each of its fields what that says of the field."""
    summary, told = _docstring(model)
    properties = {name: {"description": told[name], **field} for name, field in schema["properties"].items()}
    return {
        "title": model.__name__,
        "description": summary,
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def _docstring(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """What a docstring says of the whole, and of each attribute; of inherited ones, what their own class says."""
    told: dict[str, str] = {}
    summary = ""
    for cls in reversed(model.__mro__):
        if "__doc__" not in vars(cls) or not hasattr(cls, "model_fields"):
            continue
        summary, _, attributes = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")
        for entry in re.split(r"\n {4}(?=\S)", "\n" + attributes.partition("\n\n")[0])[1:]:
            names, _, text = " ".join(entry.split()).partition(": ")
            told |= dict.fromkeys(names.split(", "), re.sub(r"\bNone\b", "null", text[:1].upper() + text[1:]))
    return " ".join(summary.replace("\n\n", "\0").split()).replace("\0", "\n\n"), told


def _in_all_forms(model: Any, schema: dict[str, Any]) -> dict[str, Any]:
    """A policy as a mapping of its fields, short, true, false, or null."""
    forms: list[dict[str, Any]] = [{"$ref": f"#/$defs/{model.__name__}"}]
    if model.short is not None:
        short = schema["properties"][model.short]
        choices = short.get("anyOf") or [{key: short[key] for key in ("$ref", "type", "enum") if key in short}]
        # A mapping holds this policy's own fields here, and none of another model's.
        forms += [each for each in choices if each not in ({"type": "null"}, {"$ref": "#/$defs/AdaptiveTTL"})]
    forms += [{"type": "boolean"}, {"type": "null"}]
    return {"title": schema["title"], "description": schema["description"], "anyOf": forms}
