"""`opero show`: the effective policies of an environment, as YAML that loads again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from opero.cli.options import Config, Environment, Json, profile_names  # typer reads the annotations

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opero.config import Configuration
    from opero.config.sources import Leaf
    from opero.policies.policy import Policy

__all__ = ["policies_of", "show_command", "yaml_of"]


def show_command(
    profile: Annotated[
        str | None, typer.Argument(metavar="[PROFILE]", help="Only this one.", autocompletion=profile_names)
    ] = None,
    env: Environment = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Print the effective policies of an environment as YAML.

    It loads again: what profiles inherit is written out, and what variables say; secrets are masked, and stand in
    comments.

    \b
    opero show --env production
    opero show api
    """
    from opero.cli.loading import check_profile, load_configuration
    from opero.cli.terminal import print_json
    from opero.config.location import show_path

    found = load_configuration(config, env)
    if profile is not None:
        check_profile(found, profile)
    policies = {name: policies_of(found, name) for name in (sorted(found.policies) if profile is None else [profile])}
    functions = {} if profile else {name: _entry_of(found, name) for name in found.functions.sections}
    imports = None if profile or found.import_from is None else list(found.import_from)
    if as_json:
        directory = None if found.directory is None else str(found.directory)
        print_json(
            {
                "environment": found.environment,
                "directory": directory,
                "import_from": imports,
                "policies": policies,
                "functions": functions,
            }
        )
    else:
        where = "" if found.directory is None else f", from {show_path(found.directory)}"
        print(f"# environment {found.environment}{where}, variables included")
        print(yaml_of(policies, functions, imports))
    return 0


def policies_of(found: Configuration, name: str) -> dict[str, dict[str, Any]]:
    """Kind → field → value, of what somebody has said of a profile; secrets are masked."""
    from opero.policies.policy import KINDS

    policy = found.policies[name]
    said = _said(found.sources[name], policy)
    return {kind: said.get(kind, {}) for kind in KINDS if kind in said or getattr(policy, kind) is not None}


def _entry_of(found: Configuration, name: str) -> dict[str, Any]:
    """What all files and variables say in an entry of `functions:`: kind → field → value; None removes a policy."""
    from opero.config.composition import compose, parent_leaf

    sections = found.functions.sections[name]
    composed, parent = compose(sections), parent_leaf(sections)
    leaves = composed.leaves()
    said = _said(leaves, None)
    entry: dict[str, Any] = {} if parent is None else {"policy": parent.value}
    for kind in composed.statements:
        entry[kind] = None if kind in leaves else said.get(kind, {})
    return entry


def _said(leaves: Mapping[str, Leaf], policy: Policy | None) -> dict[str, dict[str, Any]]:
    """Kind → field → value, of what somebody has said and nobody has removed."""
    from opero.cli.values import plain_of
    from opero.config.sources import DEFAULT

    said: dict[str, dict[str, Any]] = {}
    for path, leaf in leaves.items():
        kind, _, field = path.partition(".")
        if field and leaf.source != DEFAULT and not leaf.removed:
            said.setdefault(kind, {})[field] = plain_of(path, _natural(policy, path, leaf.value))
    return said


def _natural(policy: Policy | None, path: str, value: Any) -> Any:
    """A variable's text as the number or truth that it spells, where the policy holds one."""
    import json

    kind, _, field = path.partition(".")
    held = getattr(getattr(policy, kind, None), field, None)
    if isinstance(value, str) and isinstance(held, bool | int | float):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def yaml_of(
    profiles: Mapping[str, Mapping[str, Any]],
    functions: Mapping[str, Mapping[str, Any]] | None = None,
    import_from: Sequence[str] | None = None,
) -> str:
    """The text of a file that says this. What is masked stands in comments."""
    from opero.cli.values import yaml_scalar

    lines = [] if import_from is None else [f"import_from: {yaml_scalar(list(import_from))}"]
    for title, sections in (("policies", profiles), ("functions", functions or {})):
        if sections or title == "policies":
            lines.append(f"{title}:" if sections else f"{title}: {{}}")
        for name, section in sections.items():
            lines.append(f"  {yaml_scalar(name)}:{'' if section else ' {}'}")
            for kind, fields in section.items():
                lines += _block(kind, fields)
    return "\n".join(lines)


def _block(kind: str, fields: Any) -> list[str]:
    """One policy, or the profile that a function starts from."""
    from opero.cli.values import yaml_scalar

    if not isinstance(fields, dict):
        return [f"    {kind}: {yaml_scalar(fields)}"]
    masked = {field for field, value in fields.items() if _is_masked(value)}
    return [
        f"    {kind}:{'' if len(fields) > len(masked) else ' {}'}",
        *(
            f"      # {field}: ***" if field in masked else f"      {field}: {yaml_scalar(value)}"
            for field, value in fields.items()
        ),
    ]


def _is_masked(value: Any) -> bool:
    from opero.config.report import MASK

    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    has_password = isinstance(value, str) and f"://{MASK}@" in value
    return value == MASK or has_password or any(map(_is_masked, inner))
