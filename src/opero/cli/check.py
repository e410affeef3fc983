"""`opero check`: reports all problems of the configuration."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opero.cli.exits import FAILED, OK, UsageError
from opero.cli.findings import FORMATS, Findings
from opero.cli.import_errors import problems_in
from opero.cli.loading import NoDirectoryError, environments, import_by_name, policy_directory, texts_of, use_registry
from opero.cli.options import Config, Environment, Json, Modules, one_of  # typer reads the annotations
from opero.cli.terminal import stdout_reserved
from opero.errors import ConfigError, PolicyNotFoundError, nearest

SCHEMA = "schema.json"

if TYPE_CHECKING:
    from pathlib import Path

    from opero.config.configuration import Configuration


def check_command(
    env: Environment = None,
    all_envs: Annotated[bool, typer.Option("--all-envs", "-a", help="Check every environment.")] = False,
    modules: Modules = None,
    config: Config = None,
    form: Annotated[
        str,
        one_of("--format", (*FORMATS,), "How to report: for people (text), programs (json), or CI systems."),
    ] = "text",
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Names in the files that cannot be imported here are warnings."),
    ] = False,
    as_json: Json = False,
) -> int:
    """Report all problems of the configuration.

    Each problem is shown with its place and a fix. With --import the bindings of functions are checked as well: unknown
    profiles, `functions:` entries that match no function, and policies that do not fit their function. Variables that
    have no effect on a function, as its decorator sets the same option, are warnings.

    \b
    opero check --all-envs
    opero check --env production --import app
    opero check --all-envs --format sarif > opero.sarif
    """
    from opero.cli.general import check_general_variables
    from opero.policies.names import keeping_names
    from opero.registry.checks import check, shadowed, unmappable

    if form not in FORMATS:
        hint = nearest(form, FORMATS).partition("; known")[0]
        raise UsageError(f"--format {form!r} is invalid: use one of {', '.join(FORMATS)}{hint}")
    if all_envs and env is not None:
        raise UsageError("--env and --all-envs cannot be combined")
    names: list[str | None] = [*environments(config)] if all_envs else [env]
    if all_envs and not names:
        names = [None]  # there is only base.yaml
    if allow_missing and modules:
        raise UsageError("--allow-missing and --import cannot be combined: functions need what the files name")
    found = _Checks()
    found.directory = _directory(config, is_needed=not modules)
    accepting: Any = keeping_names() if allow_missing else nullcontext({})
    with accepting as missing:
        for name in names:
            found.load(config, name)
    found.warnings |= dict.fromkeys(texts_of(missing))
    for error in check_general_variables():
        for problem in error.problems:
            found.add(problem, found.environments)
    if not modules:
        for name, configuration in found.loaded.items():
            found.take(name, partial(check, configuration, [], complete=False))
    else:
        for name in found.loaded:
            registry = use_registry(config, name)
            if not found.has_functions:
                with stdout_reserved():
                    for module in modules:
                        found.import_module(module, name)
            found.functions |= {each.name for each in registry.bindings()}
            # If the import of a module failed, its functions are missing.
            complete = not found.has_failed
            found.take(name, partial(check, registry.configuration, registry._bindings(), complete=complete))
            for warnings in (shadowed, unmappable):
                found.warnings |= dict.fromkeys(warnings(registry.configuration, registry._bindings()))
    found.look_at_schema()
    FORMATS["json" if as_json else form](found)
    return FAILED if found.problems else OK


def _directory(config: str | None, *, is_needed: bool) -> Path | None:
    """Return the directory of the policy files; None if there is none and none is needed, or something else is wrong,
    which is reported when it is loaded.

    Raises:
        NoDirectoryError: there is none, and it is named, or there is nothing else to check.
    """
    try:
        return policy_directory(config)
    except NoDirectoryError as error:
        if is_needed or error.problems[0].place:
            raise
        return None
    except ConfigError:
        return None


class _Checks(Findings):
    """Runs checks, and keeps what they find."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: dict[str, Configuration] = {}
        self.has_failed = False

    def load(self, config: str | None, environment: str | None) -> None:
        """Load an environment, and add its problems and warnings."""
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
        self.has_functions = True
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

    def take(self, environment: str, check: Any) -> bool:
        """Run a check, add its problems, and return whether there are none."""
        try:
            check()
        except ConfigError as error:
            for problem in error.problems:
                self.add(problem, [environment or _default_environment()])
            return False
        return True

    def look_at_schema(self) -> None:
        """Warn of a schema beside the policy files that another version has written."""
        from opero.config.location import show_path
        from opero.config.schema import schema_text

        path = self.directory and self.directory / SCHEMA
        if path is None or not path.is_file():
            return
        try:
            is_current = json.loads(path.read_text("utf-8")) == json.loads(schema_text())
        except (OSError, ValueError):
            is_current = False
        if not is_current:
            shown = show_path(path)
            text = "is not the schema of this version, so editors may be wrong"
            self.warnings[f"{shown}: {text}; write it anew: opero schema -o {shown}"] = None


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
