"""Where variables come from besides the process itself: a `.env` file, and a directory of secrets."""

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
"""The working directory, whichever that is by then."""


def variable(environ: Mapping[str, str], name: str) -> str | None:
    """An opero variable's value, in whatever case its name is written."""
    if name in environ:
        return environ[name]
    return next((value for key, value in environ.items() if key.upper() == name), None)


def env_file(
    environ: Mapping[str, str], argument: str | Path | None = None, *, implied: bool = True, base: Path = HERE
) -> Path | None:
    """The `.env` file to read: the argument, else `OPERO_ENV_FILE`, else `./.env` where there is one.

    Args:
        environ: the process's variables.
        argument: as given in code.
        implied: whether `./.env` is read though nobody has named it.
        base: what relative paths are relative to.

    Raises:
        ConfigError: one that was named does not exist.
    """
    return _named(environ, ENV_FILE, "env_file", argument, DEFAULT_ENV_FILE if implied else None, base, is_file=True)


def secrets_dir(
    environ: Mapping[str, str], argument: str | Path | None = None, *, implied: bool = True, base: Path = HERE
) -> Path | None:
    """The directory whose files are variables: the argument, else `OPERO_SECRETS_DIR`, else `/run/secrets`.

    Args, Raises: as `env_file`.
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
    by, said = (parameter, str(argument)) if argument is not None else (name, variable(environ, name))
    if said is None:
        path = base / default if default is not None else None
        return path if path is not None and (path.is_file() if is_file else path.is_dir()) else None
    what = "file" if is_file else "directory"
    if not said.strip():
        raise error_at(by, f"is empty; unset it, or name a {what}")
    named = Path(said.strip()).expanduser()
    path = base / named
    if not (path.is_file() if is_file else path.is_dir()):
        raise error_at(by, f"{named} is no {what}" if path.exists() else f"the {what} {named} does not exist")
    return path


def working_directory() -> Path:
    """The working directory of now; `HERE` where it has been removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return HERE
