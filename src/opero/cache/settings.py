"""Settings of all caches of a process, from environment variables."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from opero.runtime.environment_files import env_file, secrets_dir


class CacheSettings(BaseSettings):
    """Defaults for policies that leave an option out, from the environment, a `.env` file or a secrets directory.

    Attributes:
        redis_url: `OPERO_CACHE_REDIS_URL`, the URL of the `redis` backend.
        secret: `OPERO_CACHE_SECRET`, the key that signs pickles.
        dir: `OPERO_CACHE_DIR`, the directory of the `disk` backend.
        app: `OPERO_CACHE_APP`, the name of the program whose results are stored.
    """

    model_config = SettingsConfigDict(env_prefix="OPERO_CACHE_", env_ignore_empty=True, extra="ignore")

    redis_url: SecretStr | None = None
    secret: SecretStr | None = None
    dir: Path | None = None
    app: str | None = None

    @classmethod
    def read(cls) -> CacheSettings:
        """Read the settings.

        Raises:
            ConfigError: the `.env` file or secrets directory that the environment names does not exist.
        """
        return cls(_env_file=env_file(os.environ), _env_file_encoding="utf-8-sig", _secrets_dir=secrets_dir(os.environ))
