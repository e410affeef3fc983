"""`opero check`: reports all problems of the configuration."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opero.cli.exits import FAILED, OK, UsageError
from opero.cli.general import check_general_variables
from opero.cli.import_errors import problems_in
from opero.cli.loading import environments, import_by_name, use_registry
from opero.cli.options import Config, Environment, Json, Modules  # noqa: TC001  # typer reads the annotations
from opero.cli.terminal import print_json, print_warning, say, stdout_reserved, styled
from opero.errors import ConfigError, PolicyNotFoundError, visible

if TYPE_CHECKING:
    from opero.config.configuration import Configuration
    from opero.errors import Problem


def check_command(
    env: Environment = None,
    all_envs: Annotated[bool, typer.Option("--all-envs", "-a", help="Check every environment.")] = False,
    modules: Modules = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Report all problems of the configuration.

    Each problem is shown with its place and a fix. With --import the bindings of functions are checked as well: unknown
    profiles, `functions:` entries that match no function, and policies that do not fit their function. Variables that
    have no effect on a function, as its decorator sets the same option, are warnings.

    \b
    opero check --all-envs
    opero check --env production --import app
    """
    from opero.registry.checks import check, shadowed, unmappable

    if all_envs and env is not None:
        raise UsageError("--env and --all-envs cannot be combined")
    names: list[str | None] = [*environments(config)] if all_envs else [env]
    if all_envs and not names:
        names = [None]  # there is only base.yaml
    found = _Findings()
    for name in names:
        found.load(config, name)
    for error in check_general_variables():
        for problem in error.problems:
            found.add(problem, found.environments)
    if not modules:
        for name, configuration in found.loaded.items():
            found.take(name, partial(check, configuration, [], complete=False))
    else:
        for name in found.loaded:
            registry = use_registry(config, name)
            if not found.imported:
                with stdout_reserved():
                    for module in modules:
                        found.import_module(module, name)
            found.functions |= {each.name for each in registry.bindings()}
            # If the import of a module failed, its functions are missing.
            complete = not found.has_failed
            found.take(name, partial(check, registry.configuration, registry._bindings(), complete=complete))
            for warnings in (shadowed, unmappable):
                found.warnings |= dict.fromkeys(warnings(registry.configuration, registry._bindings()))
    if as_json:
        print_json(found.data())
    else:
        found.print()
    return FAILED if found.problems else OK


class _Findings:
    """Problems, without duplicates, with the environments that they affect."""

    def __init__(self) -> None:
        self.problems: dict[Problem, list[str]] = {}
        self.warnings: dict[str, None] = {}
        self.environments: list[str] = []
        self.loaded: dict[str, Configuration] = {}
        self.profiles: set[str] = set()
        self.functions: set[str] = set()
        self.imported = False
        self.has_failed = False

    def load(self, config: str | None, environment: str | None) -> None:
        from opero.config.settings import load as load_quietly

        def load() -> None:
            found = load_quietly(config, environment)
            self.environments.append(found.environment)
            self.loaded[found.environment] = found
            self.profiles |= set(found.policies)
            ignored = {f"{source}: {text}" for source, text in found.ignored}  # which `check` reports
            self.warnings |= dict.fromkeys(each for each in found.warnings if each not in ignored)

        if not self.take(environment or "", load):
            self.environments.append(environment or _default_environment())

    def import_module(self, module: str, environment: str) -> None:
        """Import a module under an environment, and add the problems that this raises.

        Raises:
            UsageError: the import fails for another reason.
        """
        self.imported = True
        try:
            import_by_name(module)
        except UsageError as error:
            cause = error.__cause__
            problems = [] if cause is None else problems_in(cause)
            if not problems:
                raise
            self.has_failed = True
            for problem in problems:
                is_of_files = isinstance(cause, PolicyNotFoundError) or problem.snippet
                self.add(problem, [environment] if is_of_files else [*self.loaded])

    def add(self, problem: Problem, environments: Sequence[str]) -> None:
        """Add a problem, or more environments of a known problem."""
        affected = self.problems.setdefault(problem, [])
        affected += [each for each in environments if each not in affected]

    def take(self, environment: str, check: Any) -> bool:
        """Run a check, add its problems, and return whether there are none."""
        try:
            check()
        except ConfigError as error:
            for problem in error.problems:
                self.add(problem, [environment or _default_environment()])
            return False
        return True

    def data(self) -> dict[str, Any]:
        names = ("place", "text", "file", "line", "column", "snippet")
        problems = [
            {**{name: getattr(problem, name) for name in names}, "environments": affected}
            for problem, affected in self.problems.items()
        ]
        return {
            "ok": not self.problems,
            "environments": self.environments,
            "profiles": sorted(self.profiles),
            "functions": sorted(self.functions),
            "problems": problems,
            "warnings": [str(each) for each in self.warnings],
        }

    def print(self) -> None:
        for warning in self.warnings:
            print_warning(warning)
        for problem, affected in self.problems.items():
            message, *snippet = str(problem).split("\n")
            where = "" if len(self.environments) == len(affected) else f"  [{', '.join(affected)}]"
            print("\n".join([styled(message, "bold", sys.stdout) + visible(where), *snippet]))  # of a `Problem`
            print()
        count = len(self.problems)
        checked = f"{_number(len(self.environments), 'environment')} ({', '.join(self.environments)})"
        if count:
            say(f"{_number(count, 'problem')} in {checked}", "red")
        else:
            functions = f", {_number(len(self.functions), 'function')}" if self.imported else ""
            summary = f"{checked}, {_number(len(self.profiles), 'profile')}{functions}: no problems"
            say(summary, "green")


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _default_environment() -> str:
    """Return the environment that is loaded if none is given, even if the configuration is invalid."""
    from opero.config.location import DEFAULT_ENVIRONMENT
    from opero.config.report import Report
    from opero.config.variables import collect_variables, flatten
    from opero.runtime.environment_files import variable

    try:
        variables = flatten(collect_variables(None, None, None, Report())[0])
    except ConfigError:  # it has been reported already
        variables = dict(os.environ)
    named = variable(variables, "OPERO_ENV") or variables.get("ENVIRONMENT") or ""
    return named.strip() or DEFAULT_ENVIRONMENT
