"""Determines the environment and the files to read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from opero.config.report import Report
from opero.config.sources import Source
from opero.dataclass import dataclass
from opero.errors import ConfigError, error_at, nearest, readable, text_of
from opero.patterns import pattern
from opero.runtime.environment_files import HERE, absence, env_file, variable
from opero.runtime.project import PROJECT, folders

DEFAULT_ENVIRONMENT = "development"
DEFAULT_DIRECTORY = "policies"
BASE = "base"
SUFFIXES = (".yaml", ".yml")
INDICATORS = ("OPERO_CONFIG", "OPERO_METRICS", "OPERO_SERVE", "OPERO_WATCH")
"""The variables by which functions without a profile ask the default registry as well."""
EMPTY: Mapping[str, str] = MappingProxyType({})
CONFIGURES = pattern(
    rb"""(?m)tool['"]?[ \t]*\.[ \t]*['"]?opero|^[ \t]*\[[ \t]*['"]?tool['"]?[ \t]*\]|^[ \t]*['"]?tool['"]?[ \t]*="""
)
"""What a pyproject.toml with [tool.opero] contains beside "opero", however it is written, and hardly any other."""
NAME = pattern(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Location:
    """Where the configuration is.

    Attributes:
        environment: its name.
        directory: absolute; None if none is named and there is no directory `policies` in the project.
        files: what to read, lowest precedence first.
        chosen_in: the pyproject.toml that names the directory, if one does.
        chosen_by: what names the directory, such as "OPERO_CONFIG"; "" if nothing does.
        warnings: what is not an error but should be checked.
        found: environment, or "base" → its file, of all in the directory.
    """

    environment: str
    directory: Path | None
    files: tuple[Path, ...]
    chosen_in: Path | None = None
    chosen_by: str = ""
    warnings: tuple[str, ...] = ()
    found: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Named:
    """A value, what set it ("" for a default), and in which file; whether other programs use what set it as well, and
    what is wrong with it then."""

    value: str
    by: str = ""
    file: Path | None = None
    is_foreign: bool = False
    fault: str = ""


def is_configured() -> bool:
    """Return whether there may be a configuration, without reading it. Unreadable files are ignored."""
    if any(variable(os.environ, name) is not None for name in INDICATORS):
        return True
    with suppress(OSError, ConfigError):
        path = env_file(os.environ)
        if path is not None and (path.is_fifo() or _names_indicators(path)):
            return True
    for folder in folders(HERE):
        if (folder / DEFAULT_DIRECTORY).is_dir():
            return True
        project = folder / PROJECT
        with suppress(OSError, ConfigError):
            # Every function without a profile checks this once, and parsing the file takes a millisecond.
            if project.is_file() and _is_named_in(project, project.stat().st_mtime_ns):
                return True
    return False


def _names_indicators(path: Path) -> bool:
    text = path.read_text("utf-8", "replace").upper()
    return any(name in text for name in INDICATORS)


@lru_cache(maxsize=8)
def _is_named_in(project: Path, changed: int) -> bool:
    return _from_pyproject(project) is not None


def locate(
    directory: str | Path | None,
    environment: str | None,
    environ: Mapping[str, str],
    report: Report,
    places: Mapping[str, str] | None = None,
) -> Location:
    """Determine the environment and the files to read.

    Args:
        directory: as given to `load`; else `OPERO_CONFIG`, else the nearest of `config` in `[tool.opero]` of a
            pyproject.toml (relative to that file) and a directory `policies`, from the working directory up to the
            project's root (see `opero.runtime.project`). There may be none.
        environment: as given to `load`; else `OPERO_ENV`, else `ENVIRONMENT`, else "development".
        environ: the environment variables.
        report: receives files that exist with both suffixes.
        places: variable → where it is set, for variables from files.

    Raises:
        ConfigError: a named directory or environment does not exist; the message lists the existing ones.
    """
    env = _environment(environment, environ, places or {})
    named = named_directory(directory, environ, places or {})
    warnings = (f"{env.by}: {env.fault}",) if env.fault else ()
    folder = Path(os.path.expanduser(named.value))
    if not folder.is_absolute():
        folder = Path.cwd() / folder
    if not os.path.isdir(folder):
        if not named.by:
            return Location(env.value, None, (), warnings=warnings)
        fault = absence(folder) or "is a file; use the directory that contains it"
        raise error_at(named.by, f"the directory {show_path(folder)} {fault}")
    found = _files(folder, report)
    files = tuple(found[name] for name in dict.fromkeys((BASE, env.value)) if name in found)
    # Without files of environments no name can be misspelt. The default environment needs none beside base.yaml.
    if env.value not in found and (found.keys() - {BASE} or not files):
        if env.is_foreign and found:
            warnings = warnings or (f"{env.by}: {_missing(env, folder, found)}; only base.yaml applies",)
        elif (named.by and not files) or (files and env.by and env.value != DEFAULT_ENVIRONMENT):
            _refuse(env, folder, found)
    by = named.by or f"{show_path(folder)} was found"
    return Location(env.value, folder, files, named.file, by, warnings, found)


def _missing(env: _Named, folder: Path, found: Mapping[str, Path]) -> str:
    known = sorted(set(found) - {BASE})
    has = f"it has {', '.join(known)}" if known else "it has none"
    return f"{show_path(folder)} has no file for the environment {env.value!r} ({has})"


def _refuse(env: _Named, folder: Path, found: Mapping[str, Path]) -> None:
    hint = nearest(env.value, sorted(set(found) - {BASE}))
    advice = hint if "did you mean" in hint else f"; create {env.value}.yaml (`policies: {{}}` changes nothing)"
    raise error_at(env.by, f"{_missing(env, folder, found)}{advice}")


def _environment(argument: str | None, environ: Mapping[str, str], places: Mapping[str, str] = EMPTY) -> _Named:
    is_foreign = False
    if argument is not None:
        named = _Named(argument, "environment")
    elif (value := variable(environ, "OPERO_ENV")) is not None:
        named = _Named(value.strip(), places.get("OPERO_ENV", "OPERO_ENV"))
    elif value := environ.get("ENVIRONMENT", "").strip():  # shared with other programs
        is_foreign = True
        named = _Named(value, places.get("ENVIRONMENT", "ENVIRONMENT"), is_foreign=True)
    else:
        return _Named(DEFAULT_ENVIRONMENT)
    if NAME.fullmatch(named.value) and named.value != BASE:
        return named
    why = "base.yaml applies to every environment" if named.value == BASE else "use letters, digits, '-', '_' and '.'"
    fault = f"{named.value!r} is not a valid environment name: {why}"
    if not is_foreign:
        raise error_at(named.by, fault)
    return _Named(DEFAULT_ENVIRONMENT, named.by, is_foreign=True, fault=f"{fault}; {DEFAULT_ENVIRONMENT} applies")


def named_directory(
    argument: str | Path | None, environ: Mapping[str, str], places: Mapping[str, str] = EMPTY
) -> _Named:
    """Return the directory of the files and what names it (see `locate`)."""
    if argument is not None:
        return _Named(str(argument), "directory")
    value = variable(environ, "OPERO_CONFIG")
    if value is not None:
        return _Named(value.strip(), places.get("OPERO_CONFIG", "OPERO_CONFIG"))
    for folder in folders(HERE):
        project = folder / PROJECT
        try:
            named = _from_pyproject(project)
        except OSError as error:
            raise error_at(
                show_path(project), f"cannot be read: {error.strerror or error}; set OPERO_CONFIG"
            ) from error
        if named is not None:
            return named
        if (folder / DEFAULT_DIRECTORY).is_dir():
            return _Named(str(folder / DEFAULT_DIRECTORY))
    return _Named(DEFAULT_DIRECTORY)


def _from_pyproject(path: Path) -> _Named | None:
    if not path.is_file():
        return None
    name = show_path(path)
    data = path.read_bytes()
    # So most files need not be parsed, and their mistakes are those of others.
    if b"opero" not in data or not CONFIGURES.search(data):
        return None
    import tomllib

    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
        tables = tomllib.loads(text).get("tool", {})
    except (ValueError, RecursionError) as error:  # a number of too many digits is a ValueError as well
        found = re.search(r"\(at line (\d+), column (\d+)\)", text_of(error))
        place = f":{found[1]}:{found[2]}" if found else ""
        raise error_at(f"{name}{place}", f"is not valid TOML: {readable(text_of(error))}") from error
    tool = tables.get("opero", {}) if isinstance(tables, dict) else {}
    if not isinstance(tool, dict):
        raise error_at(name, '[tool.opero] must be a table, with an entry such as `config = "policies"`')
    report = Report()
    report.texts[name] = text
    for key in tool.keys() - {"config"}:
        text_of_key = f"unknown key {key!r} in [tool.opero]{nearest(key, ['config'])}"
        report.add(_place_in_toml(name, text, key), text_of_key)
    config = tool.get("config")
    if config is not None and (not isinstance(config, str) or not config):
        problem = f"config in [tool.opero] must be the path of a directory, not {config!r}"
        report.add(_place_in_toml(name, text, "config"), problem)
    report.raise_if_any()
    return None if config is None else _Named(str(path.parent / config), f"{name}, config in [tool.opero]", path)


def _place_in_toml(name: str, text: str, key: str) -> Source:
    """Return the place of a key of [tool.opero]; only the file, if it is written in an unusual way."""
    table = re.search(r"(?m)^[ \t]*\[\s*tool\s*\.\s*opero\s*\]", text)
    found = table and re.compile(rf"(?m)^[ \t]*(?P<key>['\"]?{re.escape(key)}['\"]?)\s*=").search(text, table.end())
    if not found:
        return Source(name)
    start = found.start("key")
    line = text.count("\n", 0, start) + 1
    return Source(name, line, start - text.rfind("\n", 0, start), width=len(found["key"]))


def _files(folder: Path, report: Report) -> dict[str, Path]:
    """Return environment → file. Names come from the directory listing, so they are case-sensitive on every system."""
    found: dict[str, Path] = {}
    for suffix in SUFFIXES:
        for path in sorted(folder.glob(f"*{suffix}")):
            if path.stem in found:
                other = found[path.stem].name
                report.add(
                    Source(show_path(path)),
                    f"conflicts with {other}; remove one of the two files",
                )
            found.setdefault(path.stem, path)
    return found


def show_path(path: Path) -> str:
    """Return the path relative to the working directory if it is below, else the full path."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, FileNotFoundError):
        return str(path)
