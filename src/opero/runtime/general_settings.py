"""Settings that are no options of a profile: from variables of the process, a `.env` file or a directory of secrets."""

from __future__ import annotations

import os

from opero.errors import error_at, message_of
from opero.runtime.environment_files import variable
from opero.runtime.named_secrets import SecretFinder

REDIS_URL = "OPERO_REDIS_URL"
"""The URL of the redis that limits share, and of caches that have none of their own."""


class GeneralSettings:
    """Finds the values of variables, and reads the `.env` file at most once."""

    def __init__(self) -> None:
        self._find = SecretFinder()

    def __call__(self, name: str) -> str | None:
        """Return the value of a variable. An empty one counts as not set.

        Raises:
            ConfigError: the `.env` file or secrets directory that the environment names does not exist, or a file
                cannot be read.
        """
        try:  # files of secrets often have names in lower case
            return variable(os.environ, name) or self._find(name) or self._find(name.lower()) or None
        except ValueError as error:
            raise error_at(name, message_of(error)) from None
