"""The names of environment variables: those that set no option, and what the others may set."""

from __future__ import annotations

import re

from opero.dataclass import dataclass

PREFIX, ALERTS = "OPERO_", "OPERO_ALERTS__"
RESERVED = (
    "OPERO_ENV",
    "OPERO_CONFIG",
    "OPERO_ENABLED",
    "OPERO_ENV_FILE",
    "OPERO_RECEIPTS",
    "OPERO_SECRETS_DIR",
    *("OPERO_CACHE_APP", "OPERO_CACHE_DIR"),
    *("OPERO_CACHE_REDIS_URL", "OPERO_REDIS_URL"),
    "OPERO_CACHE_SECRET",
    *("OPERO_LOG_LEVEL", "OPERO_LOG_FORMAT"),
    "OPERO_METRICS",
    "OPERO_SERVE",
    "OPERO_WATCH",
    "OPERO_TOKEN",
    "OPERO_HOSTS",
)
"""Variables that are not options of a profile; so are all that start with `OPERO_TEST_`, unless the name of a profile
starts with "test"."""
RESERVED_PREFIX = "OPERO_TEST_"


@dataclass(frozen=True, slots=True)
class Target:
    """What a variable may set: a policy (no field), one field, the profile to start from (no kind), or "enabled"."""

    section: str
    kind: str | None
    field: str | None = None

    @property
    def parent_key(self) -> str:
        return "policy" if self.section.startswith("functions.") else "extends"

    @property
    def nested(self) -> str:
        """The unambiguous name of the variable."""
        group, _, name = self.section.partition(".")
        path = [group, fold(name), self.kind or self.parent_key, self.field or ""]
        return PREFIX + "__".join(filter(None, path)).upper()

    def __str__(self) -> str:
        return f"{self.section}.{self.kind or self.parent_key}{f'.{self.field}' if self.field else ''}"


def fold(name: str) -> str:
    """Normalize the name of a profile or variable for comparison: `Geo-API.v2` → `geo_api_v2`."""
    return re.sub(r"\W", "_", name.upper().casefold())  # "ß" is "SS" in upper case
