"""`opero show`: prints the effective policies of an environment as YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opero.cli.loading import check_profile, load_configuration
from opero.cli.options import Config, Environment, Json, profile_names  # typer reads the annotations
from opero.cli.terminal import print_json, say

if TYPE_CHECKING:
    from opero.config.configuration import Configuration
    from opero.config.sources import Leaf
    from opero.policies.policy import Policy


def show_command(
    profile: Annotated[
        str | None, typer.Argument(metavar="[PROFILE]", help="Only this profile.", autocompletion=profile_names)
    ] = None,
    env: Environment = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Print the effective policies of an environment as YAML.

    The output is a valid policy file. It includes inherited options and environment variables; secrets are masked, in
    comments.

    \b
    opero show --env production
    opero show api
    """
    from opero.config.location import show_path

    found = load_configuration(config, env)
    if profile is not None:
        check_profile(found, profile)
    policies = {name: policies_of(found, name) for name in (sorted(found.policies) if profile is None else [profile])}
    functions = {} if profile else {name: _entry_of(found, name) for name in found.functions.sections}
    imports = None if profile or found.import_from is None else list(found.import_from)
    bound = {} if profile else {target: each.value for target, each in found.imports.items()}
    alerts = {} if profile else {name: _alert_of(found, name) for name in found.alerts}
    if as_json:
        directory = None if found.directory is None else str(found.directory)
        print_json(
            {
                "environment": found.environment,
                "directory": directory,
                "import_from": imports,
                "policies": policies,
                "functions": functions,
                "imports": bound,
                "alerts": alerts,
            }
        )
    else:
        where = "" if found.directory is None else f" from {show_path(found.directory)}"
        say(f"# environment {found.environment}{where}, including environment variables")
        say(yaml_of(policies, functions, imports))
        if bound:
            say(_yaml_of_imports(bound))
        if alerts:
            say(_yaml_of_alerts(alerts))
    return 0


def policies_of(found: Configuration, name: str) -> dict[str, Any]:
    """Return the options that are set for a profile: kind of policy → field → value, with secrets masked; and "enabled"
    if it is set."""
    from opero.policies.policy import KINDS

    policy = found.policies[name]
    leaves = found.leaves(name)
    fields = _set_fields(leaves, policy)
    switch = {"enabled": leaves["enabled"].value} if "enabled" in leaves else {}
    return switch | {
        kind: fields.get(kind, {}) for kind in KINDS if kind in fields or getattr(policy, kind) is not None
    }


def _entry_of(found: Configuration, name: str) -> dict[str, Any]:
    """Return the merged entry of `functions:` as kind of policy → field → value; None for a removed policy."""
    from opero.config.composition import compose, parent_leaf, switch_leaf

    sections = found.functions.sections[name]
    composed, parent = compose(sections), parent_leaf(sections)
    leaves = composed.leaves()
    fields = _set_fields(leaves, None)
    entry: dict[str, Any] = {} if parent is None else {"policy": parent.value}
    if (switch := switch_leaf(sections)) is not None:
        entry["enabled"] = switch.value
    for kind in composed.statements:
        entry[kind] = None if kind in leaves else fields.get(kind, {})
    return entry


def _alert_of(found: Configuration, name: str) -> dict[str, Any]:
    """Return the fields that are set for an alert, with secrets masked."""
    from opero.config.alerts import leaves_of
    from opero.config.plain_values import plain_of

    return {field: plain_of(field, leaf.value) for field, leaf in leaves_of(found.layers, name).items()}


def _yaml_of_alerts(alerts: Mapping[str, Mapping[str, Any]]) -> str:
    from opero.config.plain_values import yaml_scalar

    lines = ["alerts:"]
    for name, fields in alerts.items():
        lines.append(f"  {yaml_scalar(name)}:")
        lines += [
            f"    {'# ' if _is_masked(value) else ''}{field}: {yaml_scalar(value)}" for field, value in fields.items()
        ]
    return "\n".join(lines)


def _set_fields(leaves: Mapping[str, Leaf], policy: Policy | None) -> dict[str, dict[str, Any]]:
    """Return the values that are set and not removed, as kind of policy → field → value."""
    from opero.config.plain_values import plain_of
    from opero.config.sources import DEFAULT

    found: dict[str, dict[str, Any]] = {}
    for path, leaf in leaves.items():
        kind, _, field = path.partition(".")
        if field and leaf.source != DEFAULT and not leaf.removed:
            found.setdefault(kind, {})[field] = plain_of(path, _typed(policy, path, leaf.value))
    return found


def _typed(policy: Policy | None, path: str, value: Any) -> Any:
    """Convert a variable's text to a number or boolean, if the policy's field has such a value."""
    kind, _, field = path.partition(".")
    effective = getattr(getattr(policy, kind, None), field, None)
    if isinstance(value, str) and isinstance(effective, bool | int | float):
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
    """Return the text of a policy file; fields with masked values become comments."""
    from opero.config.plain_values import yaml_scalar

    lines = [] if import_from is None else [f"import_from: {yaml_scalar(list(import_from))}"]
    for title, sections in (("policies", profiles), ("functions", functions or {})):
        if sections or title == "policies":
            lines.append(f"{title}:" if sections else f"{title}: {{}}")
        for name, section in sections.items():
            lines.append(f"  {yaml_scalar(name)}:{'' if section else ' {}'}")
            for kind, fields in section.items():
                lines += _lines_of(kind, fields)
    return "\n".join(lines)


def _yaml_of_imports(imports: Mapping[str, str]) -> str:
    from opero.config.plain_values import yaml_scalar

    return "\n".join(["imports:", *(f"  {yaml_scalar(name)}: {yaml_scalar(each)}" for name, each in imports.items())])


def _lines_of(kind: str, fields: Any) -> list[str]:
    """Return the lines of one policy, or of the profile that a function uses."""
    from opero.config.plain_values import yaml_scalar

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
    from opero.problems import MASK

    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    has_password = isinstance(value, str) and f"://{MASK}@" in value
    return value == MASK or has_password or any(map(_is_masked, inner))
