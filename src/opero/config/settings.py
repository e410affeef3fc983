"""Loading: files, secrets, a `.env` file and the environment become a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from opero.config.alert_variables import read_alert_variables
from opero.config.composition import profile_names
from opero.config.configuration import Configuration, validated
from opero.config.document import read_document
from opero.config.environment import read_enabled, read_variables
from opero.config.location import BASE, locate, show_path
from opero.config.permissions import writable_warnings
from opero.config.report import Report
from opero.config.secret_values import resolve_references
from opero.config.variables import collect_variables, flatten, places_of, secret_files
from opero.config.yaml_source import read_yaml
from opero.errors import nearest
from opero.policies.quantities import quoted
from opero.runtime.collector import without_collector
from opero.runtime.environment_files import HERE
from opero.runtime.named_secrets import SecretFinder

if TYPE_CHECKING:
    from pathlib import Path

    from opero.config.environment import RawValue
    from opero.config.location import Location
    from opero.config.sources import ConfigLayer, Marked


def _read_layers(
    files: Mapping[Path, ConfigLayer | None], variables: Mapping[str, Mapping[str, RawValue]], report: Report
) -> list[tuple[ConfigLayer, bool | None]]:
    """Return the layers of files and variables, lowest precedence first, each with what it says of `OPERO_ENABLED`."""
    layers = [layer for layer in files.values() if layer is not None]
    functions = dict.fromkeys(each for layer in layers for each in layer.functions)
    complete = len(layers) == len(files)
    read: list[tuple[ConfigLayer, bool | None]] = [(layer, None) for layer in layers]
    for name, raw in variables.items():
        # Variables are matched with the names that the files define.
        layer = read_variables(raw, profile_names(layers), functions, report, name=name, complete=complete)
        alerts = [each for file in layers for each in file.alerts]
        layer = replace(layer, alerts=read_alert_variables(raw, alerts, report if complete else Report()))
        read.append((layer, read_enabled(raw, report)))
    return read


def _read_files(location: Location, report: Report) -> dict[Path, ConfigLayer | None]:
    """Return the files of an environment with their contents, lowest precedence first; None for what cannot be read.

    These are base.yaml, then the files that the environment's file extends, from the farthest, then that file itself.
    """
    own: dict[Path, ConfigLayer | None] = {}
    environment: str | None = location.environment if location.environment != BASE else None
    names: list[str] = []
    while environment is not None and environment in location.found:
        names.append(environment)
        layer = own[location.found[environment]] = _read_file(location.found[environment], report)
        extends = None if layer is None else layer.extends
        environment = None if extends is None else _extended(extends, names, location, report)
    base = location.found.get(BASE)
    if base is None:
        return dict(reversed(own.items()))
    layer = _read_file(base, report)
    if layer is not None and layer.extends is not None:
        text = "base.yaml extends nothing, as it lies below the files of all environments; remove `extends`"
        report.add(layer.extends.place, text)
    return {base: layer, **dict(reversed(own.items()))}


def _extended(extends: Marked, names: Sequence[str], location: Location, report: Report) -> str | None:
    """Return the environment that a file extends; None if it cannot, which is reported."""
    name = str(extends.value)
    if name in names:
        report.add(extends.source, f"circular `extends`: {' → '.join([*names, name])}; remove one of them")
    elif name == BASE:
        report.add(extends.source, "every file lies over base.yaml; remove `extends`")
    elif name not in location.found:
        known = [each for each in location.found if each != BASE and each not in names]
        text = f"extends the environment {quoted(name)}, which has no file{nearest(name, known)}"
        report.add(extends.source, text)
    else:
        return name
    return None


def _read_file(path: Path, report: Report) -> ConfigLayer | None:
    name = show_path(path)
    document = read_yaml(path, name, report)
    return None if document is None else read_document(document, name, report)


@without_collector  # else it would go through all objects of the program several times, and free nothing
def load(
    directory: str | Path | None = None,
    environment: str | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    env_file: str | Path | None = None,
    secrets_dir: str | Path | None = None,
    base: Path = HERE,
) -> Configuration:
    """Load the configuration of an environment.

    The layers are, lowest precedence first, `base.yaml`, the file of an environment that `<environment>.yaml` extends,
    `<environment>.yaml`, and variables from secrets, a `.env`
    file and the process. `opero.policies.merging` defines how they are merged. A profile that `extends` another starts
    from the effective values of that profile, including its variables; its own statements, in any layer, have
    precedence.

    Args:
        directory: the directory of the files. Default: `OPERO_CONFIG`, else the nearest of `config` in `[tool.opero]`
            of a pyproject.toml and a directory `policies`, from the working directory up to the project's root. There
            may be none: then there are no profiles.
        environment: the name of the environment. Default: `OPERO_ENV`, else `ENVIRONMENT`, else "development". Beside
            files of other environments, it needs a file, except for "development".
        environ: the environment variables. Default: those of this process. If given, a `.env` file and /run/secrets
            are read only if a variable or an argument names them.
        env_file: a `.env` file with more variables. Default: `OPERO_ENV_FILE`, else the nearest `.env` from `base` up
            to the project's root.
        secrets_dir: a directory with one file for each variable, of the same name. Default: `OPERO_SECRETS_DIR`, else
            /run/secrets if it exists.
        base: the directory that relative paths of these two refer to.

    Raises:
        ConfigError: the configuration is invalid. It lists every problem of all files and variables with its place
            (file:line:column or the variable), how to fix it, and the line with a caret.
    """
    report = Report()
    variables, held_in = collect_variables(environ, env_file, secrets_dir, report, base)
    location = locate(directory, environment, flatten(variables), report, places_of(variables))
    files = _read_files(location, report)
    read = _read_layers(files, variables, report)
    if any(variables.values()):
        from opero.config.settings_sources import join

        layers, enabled = join(read)
    else:  # A program that is configured by files alone loads neither pydantic-settings nor asyncio with it.
        layers, enabled = tuple([layer for layer, _ in read]), True
    resolve_references(layers, SecretFinder(environ, env_file, secrets_dir, base), report)
    paths = [each for each in (location.chosen_in, location.directory, *location.files, *held_in) if each is not None]
    configuration = Configuration(
        environment=location.environment,
        directory=location.directory,
        enabled=enabled,
        files=tuple(files),
        layers=layers,
        watched=(*((location.directory,) if location.directory is not None else ()), *held_in),
        warnings=(
            *location.warnings,
            *(f"{source}: {text}" for source, text in report.ignored),
            *writable_warnings([*paths, *secret_files(held_in)]),
        ),
        ignored=tuple(report.ignored),
        chosen_by=location.chosen_by,
        _loaded=report,
    )
    # If a file could not be read, what seems to be missing may be in it, so missing parts are not reported.
    complete = len(layers) == len(files) + len(variables)
    configuration = validated(configuration, report, complete=complete)
    report.raise_if_any(entries=[name for layer in layers for name in layer.functions])
    return configuration
