"""`opero explain`: shows the options of a profile or function, with their sources and what those override."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opero.cli.exits import UsageError
from opero.cli.functions import bind_function
from opero.cli.loading import check_profile, import_by_name, load_configuration, load_function, use_registry
from opero.cli.options import Config, Environment, Json, Modules, target_names  # typer reads the annotations
from opero.cli.terminal import print_json, print_paragraphs, print_table, say, stdout_reserved

if TYPE_CHECKING:
    from opero.config.configuration import Configuration
    from opero.config.sources import Leaf
    from opero.policies.policy import Policy
    from opero.registry.registry import Registry


def explain_command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="PROFILE|MODULE:FUNCTION", help="The profile or function to explain.", autocompletion=target_names
        ),
    ],
    modules: Modules = None,
    env: Environment = None,
    config: Config = None,
    all_options: Annotated[bool, typer.Option("--all", help="Include options that are not set.")] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Say in words what it does, and what a call comes to at worst.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Show where each option of a profile or function is set.

    Below each value are the values that it overrides. The module of a function is imported, as its decorator may set
    options. For a function without a decorator, the options of `opero call` and `opero map` are shown.

    \b
    opero explain api --env production
    opero explain app.users:get_user
    opero explain api --plain
    """
    from opero.config.plain_values import leaf_data

    if ":" in target:
        registry = use_registry(config, env)
        with stdout_reserved():
            for module in (*(modules or ()), target.partition(":")[0]):
                import_by_name(module)
            found, is_bound, policy = _of_function(registry, target)
        configuration = registry.configuration
    else:
        if modules:
            raise UsageError("--import applies to functions only, not to profiles")
        configuration, is_bound = load_configuration(config, env), True
        check_profile(configuration, target)
        found, policy = configuration.leaves(target), configuration.policies[target]
    is_off = not configuration.enabled or ("enabled" in found and found["enabled"].value is False)
    leaves = _selected(found, everything=all_options)
    if plain:
        if all_options:
            raise UsageError("--plain and --all cannot be combined")
        told: dict[str, Any] = {"target": target, "environment": configuration.environment}
        _print_plain(told, policy, is_off=is_off, as_json=as_json)
        return 0
    if as_json:
        options = [leaf_data(path, leaf) for path, leaf in leaves.items()]
        told = {"target": target, "environment": configuration.environment, **places(configuration), "bound": is_bound}
        print_json({**told, "options": options})
        return 0
    unbound = "" if is_bound else "; not bound to a policy: options of opero call and opero map"
    _print(f"{target}, environment {configuration.environment}{unbound}", configuration, leaves)
    return 0


def _print_plain(told: dict[str, Any], policy: Policy, *, is_off: bool, as_json: bool) -> None:
    from opero.cli.plain import in_words, worst_as_data
    from opero.policies.policy import Policy

    policy = Policy() if is_off else policy
    parts = in_words(policy)
    if as_json:
        words = [{"topic": topic, "text": text} for topic, text in parts]
        print_json({**told, "enabled": not is_off, "plain": words, "worst": worst_as_data(policy)})
        return
    say(f"{told['target']}, environment {told['environment']}", "bold")
    if is_off:
        say("its policies are switched off (enabled is false)", "yellow")
    say()
    print_paragraphs(parts)


def _of_function(registry: Registry, target: str) -> tuple[Mapping[str, Leaf], bool, Policy]:
    """Return the options of a function, whether it is bound to a policy, and the policy."""
    from opero.registry.roster import declaration_of

    bound = {declaration_of(each).name: each for each in registry._bindings()}
    if target in bound:
        return registry.explain(target), True, bound[target].policy
    function = load_function(target)
    is_bound = hasattr(function, "binding")
    function = function if is_bound else bind_function(function, registry, None, {})
    return registry.explain(function), is_bound, function.binding.policy


def _selected(leaves: Mapping[str, Leaf], *, everything: bool) -> dict[str, Leaf]:
    """Return the options that are set, or all of them, in the order of the policies."""
    from opero.config.sources import DEFAULT
    from opero.policies.policy import KINDS

    kinds = list(KINDS)

    def order(path: str) -> int:
        kind = path.partition(".")[0]
        return kinds.index(kind) if kind in kinds else -1

    selected = {
        path: leaf
        for path, leaf in leaves.items()
        if everything or any(each.source != DEFAULT for each in leaf.chain())
    }
    return {path: selected[path] for path in sorted(selected, key=order)}


def places(configuration: Configuration) -> dict[str, Any]:
    """Return where a configuration comes from, as plain data."""
    directory = configuration.directory
    return {
        "directory": None if directory is None else str(directory),
        "found_by": configuration.chosen_by or None,
        "files": [str(path) for path in configuration.files],
    }


def _print(title: str, configuration: Configuration, leaves: Mapping[str, Leaf]) -> None:
    from opero.config.location import show_path

    say(title, "bold")
    files = ", ".join(show_path(path) for path in configuration.files) or "none"
    say(f"files: {files}{f' ({configuration.chosen_by})' if configuration.chosen_by else ''}", "dim")
    say()
    if leaves:
        print_table(["option", "value", "source"], _rows(leaves))
    else:
        say("no option is set: all have their defaults (--all shows them)")


def _rows(leaves: Mapping[str, Leaf]) -> Iterator[tuple[tuple[str, str, str], str]]:
    from opero.config.plain_values import leaf_text

    for path, leaf in leaves.items():
        for position, each in enumerate(leaf.chain()):
            title = path if position == 0 else "  overrides" if position == 1 else ""
            source = f"{each.source}, {each.section}" if each.section else str(each.source)
            yield (title, leaf_text(path, each), source), "dim" if position else ""
