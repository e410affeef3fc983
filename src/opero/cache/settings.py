"""Settings of all caches of a process, from environment variables."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from opero.dataclass import dataclass
from opero.runtime.general_settings import REDIS_URL, GeneralSettings

PREFIX = "OPERO_CACHE_"


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Defaults for policies that leave an option out, from the environment, a `.env` file or a secrets directory.

    Attributes:
        redis_url: `OPERO_CACHE_REDIS_URL`, else `OPERO_REDIS_URL`, the URL of the `redis` backend.
        secret: `OPERO_CACHE_SECRET`, the key that signs pickles.
        dir: `OPERO_CACHE_DIR`, the directory of the `disk` backend.
        app: `OPERO_CACHE_APP`, the name of the program whose results are stored.
    """

    redis_url: SecretStr | None = None
    secret: SecretStr | None = None
    dir: Path | None = None
    app: str | None = None

    @classmethod
    def read(cls) -> CacheSettings:
        """Read the settings. An empty variable counts as not set.

        Raises:
            ConfigError: the `.env` file or secrets directory that the environment names does not exist, or a file
                cannot be read.
        """
        value = GeneralSettings()
        url = value("OPERO_CACHE_REDIS_URL") or value(REDIS_URL)
        secret, folder, app = (value(PREFIX + name) for name in ("SECRET", "DIR", "APP"))
        return cls(
            None if url is None else SecretStr(url),
            None if secret is None else SecretStr(secret),
            None if folder is None else Path(folder),
            None if app is None else app.strip() or None,
        )
