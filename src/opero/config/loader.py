"""The way in: which files and variables there are, laid over each other by pydantic-settings, validated all at once."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from opero.config.environment import overrides_of
from opero.config.profiles import Profile, profiles_of, resolve_all
from opero.config.sources import Leaf, Problems, Source, lay_over, place_of
from opero.config.yaml_file import read_yaml
from opero.errors import nearest
from opero.policies.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

    from opero.config.sources import Kinds

__all__ = ["Configuration", "load"]

DEFAULT_DIRECTORY = "policies"
DEFAULT_ENVIRONMENT = "development"
BASE = "base"
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Configuration:
    """The profiles of one environment, and where each of their values came from.

    Attributes:
        environment: its name.
        directory: where its files are; None where there are none.
        enabled: what OPERO_ENABLED says. Default true.
        policies: profile's name → effective policy.
        values: profile's name → every value that was given, with its source.
    """

    environment: str
    directory: Path | None
    enabled: bool
    policies: Mapping[str, Policy]
    values: Mapping[str, Kinds]

    def source(self, profile: str, path: str) -> Leaf:
        """The value at a path such as "retry.retries", its source and what it shadows; a model's default at the end.

        Raises:
            KeyError: no such profile, or the profile has no such policy or field.
        """
        kind, _, field = path.partition(".")
        policy = getattr(self.policies[profile], kind, None)
        if policy is None or field not in type(policy).model_fields:
            raise KeyError(f"the profile {profile!r} has no {path!r}")
        default = Leaf(type(policy).model_fields[field].get_default(call_default_factory=True), Source("default"))
        given = self.values[profile].get(kind)
        leaf = given.get(field) if isinstance(given, dict) else None
        return default if leaf is None else leaf.over(default)


def load(
    directory: str | Path | None = None,
    environment: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Configuration:
    """Read, merge and validate the profiles of an environment.

    Args:
        directory: where the files are. Default: OPERO_CONFIG, else `config` of `[tool.opero]` in ./pyproject.toml, else
            ./policies, which may be absent.
        environment: its name. Default: OPERO_ENV, else ENVIRONMENT, else "development".
        environ: the environment variables. Default: the process's own.

    Raises:
        ConfigError: something is wrong; all that is, each with its place.
        NotImplementedError: a part of a file that has no reader yet.
    """
    environ = os.environ if environ is None else environ
    variables = {name.upper(): value for name, value in environ.items()}
    problems = Problems()
    named = environment or variables.get("OPERO_ENV") or variables.get("ENVIRONMENT")
    name = named or DEFAULT_ENVIRONMENT
    where = _directory(directory, variables, problems)
    files = _files(where, name, problems, is_named=named is not None) if where is not None else []
    problems.raise_if_any()

    profiles, defaults = _layers(files, environ, problems)
    values = resolve_all(profiles, defaults, problems)
    policies = {profile: _validated(profile, kinds, profiles[profile], problems) for profile, kinds in values.items()}
    enabled = _enabled(variables.get("OPERO_ENABLED"), problems)
    problems.raise_if_any()
    return Configuration(
        environment=name,
        directory=where,
        enabled=enabled,
        policies=MappingProxyType({profile: policy for profile, policy in policies.items() if policy is not None}),
        values=MappingProxyType(values),
    )


# Which files


def _directory(given: str | Path | None, variables: Mapping[str, str], problems: Problems) -> Path | None:
    source = Source("directory")
    if given is None and variables.get("OPERO_CONFIG"):
        given, source = variables["OPERO_CONFIG"], Source("OPERO_CONFIG")
    if given is None:
        given = _from_pyproject(Path("pyproject.toml"), problems)
        source = Source("pyproject.toml")
    if given is None:
        implicit = Path(DEFAULT_DIRECTORY)
        return implicit if implicit.is_dir() else None
    if not Path(given).is_dir():
        problems.add(source, f"there is no directory {str(given)!r} to read policies from")
        return None
    return Path(given)


def _from_pyproject(path: Path, problems: Problems) -> str | None:
    if not path.is_file():
        return None
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("opero", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.add(Source(place_of(path)), f"cannot be read: {error}")
        return None
    for key in table:
        if key != "config":
            problems.add(Source(place_of(path)), f"[tool.opero] has the unknown key {key!r}{nearest(key, ['config'])}")
    found: str | None = table.get("config")
    return found


def _files(directory: Path, environment: str, problems: Problems, *, is_named: bool) -> list[Path]:
    """The base file and the environment's, as far as there are such."""
    files = [path for stem in (BASE, environment) for path in _file(directory, stem, problems)]
    present = sorted({each.stem for suffix in SUFFIXES for each in directory.glob(f"*{suffix}")} - {BASE})
    if environment == BASE:
        problems.add(Source(place_of(directory)), f"{BASE!r} holds for every environment and cannot be one itself")
    elif is_named and environment not in present and (present or not files):
        there = f" ({', '.join(present)})" if present else ""
        problems.add(
            Source(place_of(directory)),
            f"has no file for the environment {environment!r}{there}{nearest(environment, present).partition('; known')[0]}",
        )
    return files


def _file(directory: Path, stem: str, problems: Problems) -> list[Path]:
    found = [directory / f"{stem}{suffix}" for suffix in SUFFIXES if (directory / f"{stem}{suffix}").is_file()]
    if len(found) > 1:
        problems.add(Source(place_of(found[0])), f"stands beside {found[1].name}; keep one of them")
    return found[:1]


# How they are laid over each other

Layer = tuple[dict[str, Profile], "Kinds"]


class _Source(PydanticBaseSettingsSource):
    """What one file, or the environment, says. pydantic-settings asks them and hands on what they say, each by its name."""

    def __init__(self, settings: type[BaseSettings], name: str, say: Callable[[], Layer]) -> None:
        super().__init__(settings)
        self.name = name
        self.say = say

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return {self.name: self.say()}, field_name, False

    def __call__(self) -> dict[str, Any]:
        return {"layers": self.get_field_value(self.settings_cls.model_fields["layers"], "layers")[0]}


class _Settings(BaseSettings):
    """Layers by the name of their source; pydantic-settings leaves the lowest first."""

    model_config = SettingsConfigDict(arbitrary_types_allowed=True)

    layers: dict[str, Any] = {}

    def folded(self) -> Layer:
        """All layers as one. It is folded from below, as a policy that is removed cuts off what lies beneath."""
        profiles: dict[str, Profile] = {}
        defaults: Kinds = {}
        for upper, upper_defaults in self.layers.values():
            merged = {name: profile.over(profiles.get(name, Profile())) for name, profile in upper.items()}
            profiles, defaults = {**profiles, **merged}, lay_over(defaults, upper_defaults)
        return profiles, defaults


def _layers(files: list[Path], environ: Mapping[str, str], problems: Problems) -> Layer:
    """What the files and the environment say together; the environment may override what profiles the files have."""
    said = {place_of(path): profiles_of(read_yaml(path, problems), problems) for path in files}
    names = list(dict.fromkeys(name for profiles, _ in said.values() for name in profiles))

    class Settings(_Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *args: Any, **kwargs: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            from_files = [_Source(settings_cls, name, partial(said.__getitem__, name)) for name in reversed(said)]
            from_environment = _Source(settings_cls, "environment", lambda: overrides_of(environ, names, problems))
            return from_environment, *from_files

    return Settings().folded()


# Whether they are right


def _validated(name: str, kinds: Kinds, profile: Profile, problems: Problems) -> Policy | None:
    plain = {
        kind: None if isinstance(fields, Leaf) else {field: leaf.value for field, leaf in fields.items()}
        for kind, fields in kinds.items()
    }
    try:
        return Policy.model_validate(plain)
    except ValidationError as error:
        for each in error.errors(include_url=False):
            where = each["loc"]
            source = _source_of(kinds, where, each["msg"]) or profile.source or Source(name)
            problems.add(source, f"{'.'.join(map(str, where))}: {_message(each)}", of=name)
        return None


def _message(error: ErrorDetails) -> str:
    """What is wrong, with the value where pydantic leaves it out."""
    message = error["msg"].removeprefix("Value error, ")
    if message.startswith("Input should"):
        message = message.removeprefix("Input ")
        if len(error["loc"]) > 1 and error["loc"][1] != "secret":
            message = f"{error['input']!r:.40} {message}"
    return message


def _source_of(kinds: Kinds, where: tuple[int | str, ...], message: str) -> Source | None:
    """Where the value that is wrong was written; of a policy whose fields do not fit together, one that the message names."""
    fields = kinds.get(str(where[0])) if where else None
    if isinstance(fields, Leaf) or not fields:
        return None
    if len(where) > 1 and str(where[1]) in fields:
        return fields[str(where[1])].source
    named = [leaf for field, leaf in fields.items() if field in message]
    return (named or list(fields.values()))[0].source


def _enabled(text: str | None, problems: Problems) -> bool:
    if text is None or text.strip().lower() in ("true", "1", "yes", "on"):
        return True
    if text.strip().lower() not in ("false", "0", "no", "off"):
        problems.add(Source("OPERO_ENABLED"), f"{text!r} is neither true nor false")
    return False
