"""What every cache of a process may take from its environment."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from opero.runtime.environment_files import env_file, secrets_dir

__all__ = ["CacheSettings"]


class CacheSettings(BaseSettings):
    """Environment variables, or lines of a `.env` file or files in a directory of secrets (see `environment_files`).

    Attributes:
        redis_url: `OPERO_CACHE_REDIS_URL`, where `redis` is, for policies that do not say.
        secret: `OPERO_CACHE_SECRET`, the key that signs pickles, for policies that have none.
        dir: `OPERO_CACHE_DIR`, where `disk` keeps its file, for policies that do not say.
    """

    model_config = SettingsConfigDict(env_prefix="OPERO_CACHE_", env_ignore_empty=True, extra="ignore")

    redis_url: SecretStr | None = None
    secret: SecretStr | None = None
    dir: Path | None = None

    @classmethod
    def read(cls) -> CacheSettings:
        """
        Raises:
            ConfigError: the `.env` file or directory that the environment names does not exist.
        """
        return cls(_env_file=env_file(os.environ), _env_file_encoding="utf-8-sig", _secrets_dir=secrets_dir(os.environ))
