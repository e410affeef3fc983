"""Finds the `.env` file and the directory of secrets, which contain more environment variables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from opero.errors import error_at

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DEFAULT_ENV_FILE",
    "DEFAULT_SECRETS_DIR",
    "ENV_FILE",
    "HERE",
    "SECRETS_DIR",
    "env_file",
    "secrets_dir",
    "variable",
    "working_directory",
]

ENV_FILE, SECRETS_DIR = "OPERO_ENV_FILE", "OPERO_SECRETS_DIR"
DEFAULT_ENV_FILE = ".env"
DEFAULT_SECRETS_DIR = "/run/secrets"
HERE = Path()
"""The working directory at the time of use."""


def variable(environ: Mapping[str, str], name: str) -> str | None:
    """Return the value of one of opero's variables, whose names are case-insensitive; None if it is not set."""
    if name in environ:
        return environ[name]
    return next((value for key, value in environ.items() if key.upper() == name), None)


def env_file(
    environ: Mapping[str, str], argument: str | Path | None = None, *, implied: bool = True, base: Path = HERE
) -> Path | None:
    """Return the `.env` file to read: the argument, else `OPERO_ENV_FILE`, else `./.env` if it exists.

    Args:
        environ: the environment variables of the process.
        argument: the path given in code, or None.
        implied: whether `./.env` is used by default.
        base: the directory of relative paths.

    Raises:
        ConfigError: the given file does not exist.
    """
    return _named(environ, ENV_FILE, "env_file", argument, DEFAULT_ENV_FILE if implied else None, base, is_file=True)


def secrets_dir(
    environ: Mapping[str, str], argument: str | Path | None = None, *, implied: bool = True, base: Path = HERE
) -> Path | None:
    """Return the directory of secrets: the argument, else `OPERO_SECRETS_DIR`, else `/run/secrets` if it exists.

    Args:
        environ: the environment variables of the process.
        argument: the path given in code, or None.
        implied: whether `/run/secrets` is used by default.
        base: the directory of relative paths.

    Raises:
        ConfigError: the given directory does not exist.
    """
    return _named(
        environ, SECRETS_DIR, "secrets_dir", argument, DEFAULT_SECRETS_DIR if implied else None, base, is_file=False
    )


def _named(
    environ: Mapping[str, str],
    name: str,
    parameter: str,
    argument: str | Path | None,
    default: str | None,
    base: Path,
    *,
    is_file: bool,
) -> Path | None:
    source, value = (parameter, str(argument)) if argument is not None else (name, variable(environ, name))
    if value is None:
        path = base / default if default is not None else None
        return path if path is not None and (path.is_file() if is_file else path.is_dir()) else None
    kind = "file" if is_file else "directory"
    if not value.strip():
        raise error_at(source, f"empty value: set the path of a {kind}, or unset it")
    given = Path(value.strip()).expanduser()
    path = base / given
    if not (path.is_file() if is_file else path.is_dir()):
        raise error_at(source, f"{given} is not a {kind}" if path.exists() else f"{kind} {given} does not exist")
    return path


def working_directory() -> Path:
    """Return the working directory, or `HERE` if it has been removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return HERE
