"""Finds the `.env` file and the directory of secrets, which contain more environment variables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from opero.dataclass import dataclass
from opero.errors import error_at, message_of
from opero.runtime.project import folders

HERE = Path()
"""The working directory at the time of use."""


def variable(environ: Mapping[str, str], name: str) -> str | None:
    """Return the value of one of opero's variables, whose names are case-insensitive; None if it is not set, or empty.

    `docker compose` and similar tools cannot unset a variable, only make it empty.
    """
    value = environ.get(name)
    if value is None:
        # `os.environ` decodes each name that it yields, which takes longer than all else at the binding of a function.
        names: Iterable[str | bytes] = getattr(environ, "_data", environ)
        wanted = name, os.fsencode(name)
        value = next((environ.get(os.fsdecode(each)) for each in list(names) if each.upper() in wanted), None)
    return None if value is None or not value.strip() else value


TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def flag(name: str, *, default: bool) -> bool:
    """Return the value of a variable of the process that is true or false, in upper or lower case.

    Raises:
        ConfigError: its value is neither.
    """
    text = variable(os.environ, name) or str(default)
    if text.strip().lower() not in TRUE + FALSE:
        raise error_at(name, f"{text!r} is invalid: use true or false")
    return text.strip().lower() in TRUE


@dataclass(slots=True)
class _Place:
    """A file or directory of further variables.

    Attributes:
        variable: the environment variable that names it.
        parameter: the parameter of `load` that names it.
        default: its path if nothing names it.
        is_file: whether it is a file, not a directory.
    """

    variable: str
    parameter: str
    default: str
    is_file: bool

    def __call__(
        self, environ: Mapping[str, str], argument: str | Path | None = None, *, implied: bool = True, base: Path = HERE
    ) -> Path | None:
        """Return the path that the argument names, else the variable, else the default if it exists.

        Args:
            environ: the environment variables of the process.
            argument: the path given in code, or None.
            implied: whether there is a default. For a file, it is looked for from `base` upwards (see `folders`).
            base: the directory of relative paths.

        Raises:
            ConfigError: the named file or directory does not exist.
        """
        source, value = self.variable, variable(environ, self.variable)
        if argument is not None:
            source, value = self.parameter, str(argument)
        if value is None:
            places = (each / self.default for each in (folders(base) if self.is_file else (base,))) if implied else ()
            return next((path for path in places if self._is_at(path)), None)
        kind = "file" if self.is_file else "directory"
        if not value.strip():
            raise error_at(source, f"empty value: set the path of a {kind}, or unset it")
        given = Path(os.path.expanduser(value.strip()))
        path = base / given
        if not self._is_at(path):
            why = absence(path)
            raise error_at(source, f"{kind} {given} {why}" if why else f"{given} is not a {kind}")
        return path

    def _is_at(self, path: Path) -> bool:
        return os.path.isfile(path) or _is_pipe(path) if self.is_file else os.path.isdir(path)


def _is_pipe(path: Path) -> bool:
    try:
        return path.is_fifo()
    except (OSError, ValueError):
        return False


env_file = _Place("OPERO_ENV_FILE", "env_file", ".env", is_file=True)
secrets_dir = _Place("OPERO_SECRETS_DIR", "secrets_dir", "/run/secrets", is_file=False)


def absence(path: Path) -> str:
    """Return why nothing is found at a path, for messages; "" if there is something.

    A text may be no path at all: too long, or with a NUL. Methods of `Path` such as `is_dir` raise an `OSError` for
    some of these, so functions of `os.path` are used for paths that users write.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return "does not exist"
    except OSError as error:
        return f"cannot be read: {error.strerror or message_of(error)}"
    return ""


def working_directory() -> Path:
    """Return the working directory, or `HERE` if it has been removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return HERE
