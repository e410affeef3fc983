"""`opero check`: everything that is wrong with the configuration, at once."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opero.cli.options import Config, Environment, Json, Modules  # noqa: TC001  # typer reads the annotations

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opero.config.configuration import Configuration
    from opero.errors import Problem

__all__ = ["check_command"]


def check_command(
    env: Environment = None,
    all_envs: Annotated[bool, typer.Option("--all-envs", "-a", help="Check every environment.")] = False,
    modules: Modules = None,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Say everything that is wrong with the policies.

    Each problem is shown with its place and its cure. With --import also what only the functions tell: profiles that do
    not exist, `functions:` entries that hold for none of them, policies that do not fit.

    \b
    opero check --all-envs
    opero check --env production --import app
    """
    from opero.cli.exits import NO, OK, UsageError
    from opero.cli.loading import environments, use_registry
    from opero.cli.terminal import print_json, stdout_kept
    from opero.registry.checks import check

    if all_envs and env is not None:
        raise UsageError("--env and --all-envs contradict each other; give one of them")
    names: list[str | None] = [*environments(config)] if all_envs else [env]
    if all_envs and not names:
        names = [None]  # base.yaml alone
    found = _Findings()
    for name in names:
        found.load(config, name)
    if not modules:
        for name, configuration in found.loaded.items():
            found.take(name, partial(check, configuration, [], complete=False))
    else:
        for name in found.loaded:
            registry = use_registry(config, name)
            if not found.imported:
                with stdout_kept():
                    for module in modules:
                        found.bring(module, name)
            found.functions |= {each.name for each in registry.bindings()}
            # Where a module has failed, what it would have bound is not there.
            complete = not found.has_failed
            found.take(name, partial(check, registry.configuration, registry._bindings(), complete=complete))
    if as_json:
        print_json(found.data())
    else:
        found.print()
    return NO if found.problems else OK


class _Findings:
    """What is wrong, each thing once, with the environments that it concerns."""

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
        from opero.config import load as load_quietly

        def load() -> None:
            found = load_quietly(config, environment)
            self.environments.append(found.environment)
            self.loaded[found.environment] = found
            self.profiles |= set(found.policies)
            self.warnings |= dict.fromkeys(found.warnings)

        if not self.take(environment or "", load):
            self.environments.append(environment or _usual())

    def bring(self, module: str, environment: str) -> None:
        """Import a module, under that environment. What it does wrong with opero is a finding.

        Raises:
            UsageError: it cannot be imported for another reason.
        """
        from opero.cli.exits import UsageError
        from opero.cli.loading import import_module_named
        from opero.cli.mistakes import mistakes_in
        from opero.errors import PolicyNotFoundError

        self.imported = True
        try:
            import_module_named(module)
        except UsageError as error:
            cause = error.__cause__
            mistakes = [] if cause is None else mistakes_in(cause)
            if not mistakes:
                raise
            self.has_failed = True
            for problem in mistakes:
                is_of_files = isinstance(cause, PolicyNotFoundError) or problem.snippet
                self.note(problem, [environment] if is_of_files else [*self.loaded])

    def note(self, problem: Problem, environments: Sequence[str]) -> None:
        """Take a problem, or the environments that it concerns, too."""
        concerned = self.problems.setdefault(problem, [])
        concerned += [each for each in environments if each not in concerned]

    def take(self, environment: str, check: Any) -> bool:
        """Whether that check finds nothing."""
        from opero.errors import ConfigError

        try:
            check()
        except ConfigError as error:
            for problem in error.problems:
                self.note(problem, [environment or _usual()])
            return False
        return True

    def data(self) -> dict[str, Any]:
        names = ("place", "text", "file", "line", "column", "snippet")
        problems = [
            {**{name: getattr(problem, name) for name in names}, "environments": concerned}
            for problem, concerned in self.problems.items()
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
        from opero.cli.terminal import print_warning, styled

        for warning in self.warnings:
            print_warning(warning)
        for problem, concerned in self.problems.items():
            told, *snippet = str(problem).split("\n")
            where = "" if len(self.environments) == len(concerned) else f"  [{', '.join(concerned)}]"
            print("\n".join([styled(told, "bold", sys.stdout) + where, *snippet]))
            print()
        count = len(self.problems)
        checked = f"{_number(len(self.environments), 'environment')} ({', '.join(self.environments)})"
        if count:
            print(styled(f"{_number(count, 'problem')} in {checked}", "red", sys.stdout))
        else:
            bound = f", {_number(len(self.functions), 'function')}" if self.imported else ""
            told = f"{checked}, {_number(len(self.profiles), 'profile')}{bound}: no problems"
            print(styled(told, "green", sys.stdout))


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _usual() -> str:
    """The environment that is loaded without being named, as far as it can be told; a `.env` file may say it."""
    import os

    from opero.config.location import DEFAULT_ENVIRONMENT
    from opero.config.report import Report
    from opero.config.variables import collect_variables, flatten
    from opero.errors import ConfigError
    from opero.runtime.environment_files import variable

    try:
        variables = flatten(collect_variables(None, None, None, Report())[0])
    except ConfigError:  # which is among the problems
        variables = dict(os.environ)
    named = variable(variables, "OPERO_ENV") or variables.get("ENVIRONMENT") or ""
    return named.strip() or DEFAULT_ENVIRONMENT
