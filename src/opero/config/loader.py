"""Loads the configuration: from files and environment variables to policies by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opero.config.configuration import Configuration, judged
from opero.config.location import locate
from opero.config.permissions import writable_warnings
from opero.config.report import Report
from opero.config.settings import Settings
from opero.config.variables import collect_variables, flatten, places_of, secret_files
from opero.runtime.environment_files import HERE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Configuration", "load"]


def load(
    directory: str | Path | None = None,
    environment: str | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    env_file: str | Path | None = None,
    secrets_dir: str | Path | None = None,
    base: Path = HERE,
) -> Configuration:
    """Read every profile for an environment.

    `base.yaml` comes first, then `<environment>.yaml` is laid over it key by key, and variables over both: those of
    secrets, then of a `.env` file, then of the process. A profile that `extends` another starts from that one as it
    effectively is, its variables included; what the profile says itself, in whatever file, comes over that. `null`
    removes an inherited policy, `enabled: false` keeps its values. A profile that is null says nothing of its own.

    Args:
        directory: where the files are. Default: `OPERO_CONFIG`, else `config` in `[tool.opero]` of
            `./pyproject.toml`, else `./policies`, which alone may be absent: then there are no profiles.
        environment: which file to lay over `base.yaml`. Default: `OPERO_ENV`, else `ENVIRONMENT`, else
            "development", which alone needs no file.
        environ: the environment variables. Default: those of this process. Where they are given, `./.env` and
            /run/secrets are read only if they or an argument name them.
        env_file: a `.env` file with further variables. Default: `OPERO_ENV_FILE`, else `./.env` where there is one.
        secrets_dir: a directory whose files are variables, the file's name being the variable's. Default:
            `OPERO_SECRETS_DIR`, else /run/secrets where that exists.
        base: what relative paths of these two are relative to.

    Raises:
        ConfigError: anything is wrong. It lists every problem of every file and variable: its place (file:line:column
            or the variable), what is wrong, the cure or the nearest valid choice, and the line with a caret.
    """
    report = Report()
    variables, held_in = collect_variables(environ, env_file, secrets_dir, report, base)
    location = locate(directory, environment, flatten(variables), report, places_of(variables))
    settings = Settings.read(location.files, variables, report)
    layers = tuple(settings.layers.values())
    read = [each for each in (location.chosen_in, location.directory, *location.files, *held_in) if each is not None]
    configuration = Configuration(
        environment=location.environment,
        directory=location.directory,
        enabled=settings.enabled,
        files=location.files,
        layers=layers,
        watched=(*((location.directory,) if location.directory is not None else ()), *held_in),
        warnings=tuple(writable_warnings([*read, *secret_files(held_in)])),
        _loaded=report,
    )
    # Where a file could not be read, what seems to be missing may stand there: only what is there is judged.
    complete = len(layers) == len(location.files) + len(variables)
    configuration = judged(configuration, report, complete=complete)
    report.raise_if_any()
    return configuration
