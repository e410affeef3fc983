"""`opero explain`: every option of a profile or function, its value, its source, and what that shadows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from opero.cli.options import Config, Environment, Json, Modules, target_names  # typer reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opero.config.sources import Leaf
    from opero.registry.registry import Registry

__all__ = ["explain_command"]


def explain_command(
    target: Annotated[
        str, typer.Argument(metavar="PROFILE|MODULE:FUNCTION", help="What to explain.", autocompletion=target_names)
    ],
    modules: Modules = None,
    env: Environment = None,
    config: Config = None,
    all_options: Annotated[bool, typer.Option("--all", help="Also options that nobody said.")] = False,
    as_json: Json = False,
) -> int:
    """Say where each option of a profile or function comes from.

    Under each value stands what it is in place of. The module of a function is imported, as that is where its decorator
    says what it says. Of a function that nothing binds, it is what `opero call` and `opero map` run it under.

    \b
    opero explain api --env production
    opero explain app.users:get_user
    """
    from opero.cli.exits import UsageError
    from opero.cli.loading import check_profile, import_module_named, load_configuration, use_registry
    from opero.cli.terminal import print_json, stdout_kept
    from opero.cli.values import leaf_data

    if ":" in target:
        registry = use_registry(config, env)
        with stdout_kept():
            for module in (*(modules or ()), target.partition(":")[0]):
                import_module_named(module)
            found, is_bound = _of_function(registry, target)
        environment = registry.configuration.environment
    else:
        if modules:
            raise UsageError("--import is for functions, and this explains a profile; leave it out")
        configuration, is_bound = load_configuration(config, env), True
        check_profile(configuration, target)
        environment, found = configuration.environment, configuration.sources[target]
    leaves = _wanted(found, everything=all_options)
    if as_json:
        options = [leaf_data(path, leaf) for path, leaf in leaves.items()]
        print_json({"target": target, "environment": environment, "bound": is_bound, "options": options})
        return 0
    unbound = "" if is_bound else "; nothing binds it: so opero call and opero map run it"
    _print(f"{target}, environment {environment}{unbound}", leaves)
    return 0


def _of_function(registry: Registry, target: str) -> tuple[Mapping[str, Leaf], bool]:
    """What holds for a function, and whether anything binds it."""
    from opero.cli.functions import bound
    from opero.cli.loading import load_function

    if any(each.name == target for each in registry.bindings()):
        return registry.explain(target), True
    function = load_function(target)
    is_bound = hasattr(function, "binding")
    return registry.explain(function if is_bound else bound(function, registry, None, {})), is_bound


def _wanted(leaves: Mapping[str, Leaf], *, everything: bool) -> dict[str, Leaf]:
    """In the order of the layers, those that somebody has said anything of."""
    from opero.config.sources import DEFAULT
    from opero.policies.policy import KINDS

    kinds = list(KINDS)

    def order(path: str) -> int:
        kind = path.partition(".")[0]
        return kinds.index(kind) if kind in kinds else -1

    said = {
        path: leaf
        for path, leaf in leaves.items()
        if everything or any(each.source != DEFAULT for each in leaf.chain())
    }
    return {path: said[path] for path in sorted(said, key=order)}


def _print(title: str, leaves: Mapping[str, Leaf]) -> None:
    import sys

    from opero.cli.terminal import print_table, styled

    print(styled(title, "bold", sys.stdout))
    print()
    if leaves:
        print_table(["option", "value", "source"], _rows(leaves))
    else:
        print("nobody has said anything of it: all is at its default (--all shows it)")


def _rows(leaves: Mapping[str, Leaf]) -> Iterator[tuple[tuple[str, str, str], str]]:
    from opero.cli.values import text_of_value

    for path, leaf in leaves.items():
        first, *rest = [
            ("removed (null)" if each.removed else text_of_value(path, each.value), _place(each))
            for each in leaf.chain()
        ]
        yield (path, *first), ""
        for place, shadowed in enumerate(rest):
            yield ("  in place of" if not place else "", *shadowed), "dim"


def _place(leaf: Leaf) -> str:
    return f"{leaf.source}, {leaf.section}" if leaf.section else str(leaf.source)
