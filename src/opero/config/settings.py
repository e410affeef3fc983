"""The sources of configuration, as pydantic-settings carries them: files, secrets, a `.env` file, the environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pydantic import InstanceOf  # pydantic reads the annotation
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from opero.config.composition import profile_names
from opero.config.configuration import Configuration, judged
from opero.config.document import read_document
from opero.config.environment import read_enabled, read_variables
from opero.config.location import locate, show_path
from opero.config.permissions import writable_warnings
from opero.config.report import Report
from opero.config.sources import Layer
from opero.config.variables import collect_variables, flatten, places_of, secret_files
from opero.config.yaml_source import read_yaml
from opero.runtime.environment_files import HERE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic.fields import FieldInfo

    from opero.config.environment import Said

__all__ = ["FileSource", "Request", "Settings", "VariablesSource", "load"]


@dataclass(frozen=True, slots=True, repr=False)
class Request:
    """What to read, lowest precedence first, and where to report what is wrong.

    Attributes:
        files: the YAML files.
        variables: what holds variables ("environment variables", the `.env` file's name, ...) → these.
        report: takes what is wrong.
    """

    files: tuple[Path, ...]
    variables: Mapping[str, Mapping[str, Said]]
    report: Report


class LayerSource(PydanticBaseSettingsSource):
    """A source that delivers one whole layer, unmerged, so that each value keeps its place and its shadow."""

    layer: Layer | None = None

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False  # nothing is looked up by field: see __call__

    def __call__(self) -> dict[str, Any]:
        return {"layers": {self.layer.name: self.layer}} if self.layer is not None else {}


class FileSource(LayerSource):
    """One YAML file."""

    def __init__(self, settings_cls: type[BaseSettings], path: Path, report: Report) -> None:
        super().__init__(settings_cls)
        name = show_path(path)
        document = read_yaml(path, name, report)
        self.layer = read_document(document, name, report) if document is not None else None


class VariablesSource(LayerSource):
    """Variables that begin with OPERO_, read against the names that the files define."""

    def __init__(
        self,
        settings_cls: type[BaseSettings],
        name: str,
        said: Mapping[str, Said],
        files: list[Layer],
        report: Report,
        *,
        complete: bool,
    ) -> None:
        super().__init__(settings_cls)
        functions = dict.fromkeys(each for layer in files for each in layer.functions)
        self.layer = read_variables(said, profile_names(files), functions, report, name=name, complete=complete)
        self.enabled = read_enabled(said, report)

    def __call__(self) -> dict[str, Any]:
        return super().__call__() | ({} if self.enabled is None else {"enabled": self.enabled})


class Settings(BaseSettings):
    """Everything that was said, and by whom.

    pydantic-settings asks the sources in order and puts their layers together; merging.py makes profiles of
    them.

    Attributes:
        enabled: `OPERO_ENABLED`. Default true.
        layers: what each file and each set of variables says, lowest precedence first.
    """

    model_config = SettingsConfigDict(frozen=True)

    enabled: bool = True
    layers: dict[str, InstanceOf[Layer]] = {}

    @classmethod
    def read(cls, files: tuple[Path, ...], variables: Mapping[str, Mapping[str, Said]], report: Report) -> Self:
        """Read files, and variables over them, lowest precedence first; tell `report` what is wrong."""
        # Init arguments are all that pydantic-settings hands on to the place where its sources are made.
        init: dict[str, Any] = {"request": Request(files, variables, report)}
        return cls(**init)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, `.env`, secrets, then the files from the last to the first: the highest comes first."""
        assert isinstance(init_settings, InitSettingsSource)
        request: Request = init_settings.init_kwargs["request"]
        files = [FileSource(settings_cls, path, request.report) for path in request.files]
        layers = [source.layer for source in files if source.layer is not None]
        complete = len(layers) == len(files)
        variables = [
            VariablesSource(settings_cls, name, said, layers, request.report, complete=complete)
            for name, said in request.variables.items()
        ]
        return (*reversed(variables), *reversed(files))


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
