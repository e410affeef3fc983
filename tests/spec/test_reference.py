"""docs/reference.md has every option of every policy. Run as a program, this module writes it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from opero import ConfigError, Policy
from opero.config.schema import json_schema
from opero.policies.policy import FLAT_OPTIONS, KINDS

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference.md"

HEAD = """# Reference

Every option of every policy, generated from the models. The [guide](guide.md) explains how they work together, and
[configuration.md](configuration.md) where they may be set.

Each option may be set

- in YAML, under its policy: `retry: {retries: 5}`,
- by a variable: `OPERO_API_RETRIES=5`, where `API` stands for the name of the profile,
- in code, by `@opero(...)` and `@opmap(...)` if an argument is named here, otherwise by the policy:
  `@opero(circuit_breaker={"open_for": "30s"})`.

A wrong value is a `ConfigError` when the configuration is loaded or the function is bound, with the place of the value.
Each option has an example of one, with what the error says.
"""

WRONG: tuple[Any, ...] = ("nonsense", -1, 0, "", "no such thing", [[]], 3.5)
ANYTHING = {("fallback", "default")}
"""Options that have no wrong value."""


def words(name: str) -> str:
    return f"`{name}`"


def line(text: str) -> str:
    return " ".join(text.split())


def default_of(field: dict[str, Any]) -> str:
    value = field.get("default")
    return "none" if value is None else words(value if isinstance(value, str) else json.dumps(value))


def flat(kind: str, name: str) -> str | None:
    """The argument of `@opero` and `@opmap` for a field."""
    return next((option for option, home in FLAT_OPTIONS.items() if home == (kind, name)), None)


def refused(kind: str, name: str, required: dict[str, Any]) -> str:
    """An example of a wrong value, and the message about it."""
    for value in WRONG:
        try:
            Policy(**{kind: {**required, name: value}})
        except ConfigError as error:
            message = str(error).partition("\n")[0]
            message = message.removeprefix(f"{kind}.{name}: ").partition("; did you mean")[0].partition("; known:")[0]
            return f"{words(json.dumps(value))}: {line(message)}"
    raise AssertionError(f"no wrong value of {kind}.{name} is known: extend WRONG")


REQUIRED = {"rate_limit": {"rate": 1}, "bulkhead": {"max_concurrent": 1}}


def document() -> str:
    definitions = json_schema()["$defs"]
    parts = [HEAD, " · ".join(f"[{kind}](#{kind})" for kind in KINDS) + "\n"]
    for kind, model in KINDS.items():
        schema = definitions[model.__name__]
        parts.append(f"## {kind}\n\n{schema['description']}\n")
        for name, field in schema["properties"].items():
            argument = flat(kind, name)
            facts = [
                "required" if model.model_fields[name].is_required() else f"default {default_of(field)}",
                words(f"OPERO_API_{(argument or f'{kind}_{name}').upper()}"),
                *([f"argument {words(argument)}"] if argument else []),
            ]
            parts.append(f"- **{words(name)}** · {' · '.join(facts)}<br>")
            parts.append(f"  {line(field.get('description', ''))}" + ("" if (kind, name) in ANYTHING else "<br>"))
            if (kind, name) not in ANYTHING:
                parts.append(f"  Wrong: {refused(kind, name, REQUIRED.get(kind, {}))}")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def test_it_has_every_option_as_it_is() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), f"run python {Path(__file__).name} to write it again"


if __name__ == "__main__":
    sys.exit(DOCUMENT.write_text(document(), encoding="utf-8") == 0)
