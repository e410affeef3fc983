"""What every cache of a process may take from its environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["CacheSettings"]


class _Secrets(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="OPERO_", extra="ignore")

    secrets_dir: Path = Path("/run/secrets")


class CacheSettings(BaseSettings):
    """Environment variables, or files of the same names in `OPERO_SECRETS_DIR` (default /run/secrets).

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
        directory = _Secrets().secrets_dir
        return cls(_secrets_dir=directory if directory.is_dir() else None)
