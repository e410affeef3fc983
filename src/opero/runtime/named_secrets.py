"""Secrets by name: `secret:API_KEY` stands for a variable of that name, or a file in the directory of secrets."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from opero.errors import describe, message_of
from opero.patterns import pattern
from opero.runtime.dotenv_file import values_of
from opero.runtime.environment_files import HERE, env_file, secrets_dir

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = "secret:"
NAME = pattern(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
"""A name that is also one of a file, not a path."""
LARGEST = 1 << 16


def resolved(text: str, find: Callable[[str], str | None]) -> str:
    """Return the secret that text refers to, or the text itself if it is no reference.

    Args:
        text: `secret:` and a name, or anything else.
        find: returns the secret of a name; None if there is none.

    Raises:
        ValueError: there is no such secret, or it cannot be read.
    """
    if not text.startswith(PREFIX):
        return text
    name = text.removeprefix(PREFIX).strip()
    if not NAME.fullmatch(name):
        raise ValueError(f"{PREFIX} must be followed by a name of letters, digits, '_', '-' and '.'")
    found = find(name)
    if found is None:
        raise ValueError(
            f"the secret {name} does not exist: set a variable of that name, or add a file of that name to the "
            "directory of secrets (OPERO_SECRETS_DIR, else /run/secrets)"
        )
    if not found:
        raise ValueError(f"the secret {name} is empty")
    return found


def find_secret(
    name: str,
    environ: Mapping[str, str] | None = None,
    dotenv: str | Path | None = None,
    secrets: str | Path | None = None,
    base: Path = HERE,
) -> str | None:
    """Return a secret: a variable of the process, else of the `.env` file, else a file in the directory of secrets.

    Args:
        name: its name.
        environ: the environment variables; None: those of the process. If given, the file and the directory are read
            only if they are named explicitly.
        dotenv, secrets: the `.env` file and the directory of secrets, as given in code (see `environment_files`).
        base: the directory that relative paths refer to.

    Returns:
        None if there is no such secret.

    Raises:
        ConfigError: a named file or directory does not exist.
        ValueError: the file of the secret cannot be read.
    """
    return SecretFinder(environ, dotenv, secrets, base)(name)


class SecretFinder:
    """Finds secrets as `find_secret` does, and reads the `.env` file at most once."""

    def __init__(
        self,
        environ: Mapping[str, str] | None = None,
        dotenv: str | Path | None = None,
        secrets: str | Path | None = None,
        base: Path = HERE,
    ) -> None:
        self._process, self._is_implied = (os.environ if environ is None else environ), environ is None
        self._dotenv, self._secrets, self._base = dotenv, secrets, base
        self._of_file: dict[str, str] | None = None

    def __call__(self, name: str) -> str | None:
        if name in self._process:
            return self._process[name]
        if self._of_file is None:
            path = env_file(self._process, self._dotenv, implied=self._is_implied, base=self._base)
            self._of_file = {} if path is None else _values_of(path, self._process)
        if name in self._of_file:
            return self._of_file[name]
        folder = secrets_dir(self._process, self._secrets, implied=self._is_implied, base=self._base)
        return None if folder is None else _read(folder / name)


def _values_of(path: Path, environ: Mapping[str, str]) -> dict[str, str]:
    try:
        return values_of(path, environ)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or describe(error)}") from error
    except ValueError as error:
        raise ValueError(f"{path} {message_of(error)}") from None


def _read(path: Path) -> str | None:
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path} is larger than {LARGEST} bytes, the limit for a secret")
        return path.read_text("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or message_of(error)}") from error
