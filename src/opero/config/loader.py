"""Loads the configuration: from files and environment variables to policies by name."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opero.config.location import locate
from opero.config.merging import compose, extends_leaf, inherit
from opero.config.report import Report
from opero.config.settings import Settings
from opero.config.validation import check_fields, validate
from opero.errors import ConfigError, PolicyNotFoundError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from opero.config.sources import Leaf
    from opero.policies.policy import Policy

__all__ = ["Configuration", "load"]


@dataclass(frozen=True)
class Configuration:
    """What was loaded: policies by name, and where each of their values came from.

    Attributes:
        environment: the name of the environment, such as "production".
        directory: the directory that was read; None where none was named and `./policies` does not exist.
        enabled: `OPERO_ENABLED`: whether policies hold at all. Default true.
        policies: profile name → its effective policy.
        sources: profile name → path, such as "retry.retries" → the leaf that holds.
    """

    environment: str = "development"
    directory: Path | None = None
    enabled: bool = True
    policies: Mapping[str, Policy] = field(default_factory=dict)
    sources: Mapping[str, Mapping[str, Leaf]] = field(default_factory=dict, repr=False)

    def source(self, profile: str, path: str) -> Leaf:
        """The value of one field as it was written, the place that gave it, and the chain of what it shadows.

        Args:
            profile: its name.
            path: policy and field, such as "retry.retries"; "extends"; or a policy alone, where a `null`
                removed it.

        Raises:
            PolicyNotFoundError: there is no such profile.
            ConfigError: the profile has no such policy, or that has no such field.
        """
        if profile not in self.sources:
            raise PolicyNotFoundError(f"there is no profile {profile!r}{nearest(profile, self.sources)}", name=profile)
        leaves = self.sources[profile]
        if path not in leaves:
            raise ConfigError(f"the profile {profile!r} has no {path!r}{nearest(path, leaves)}")
        return leaves[path]


def load(
    directory: str | Path | None = None,
    environment: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Configuration:
    """Read every profile for an environment.

    `base.yaml` comes first, then `<environment>.yaml` is laid over it key by key, and variables over both. A
    profile that `extends` another starts from that one as it effectively is, its variables included; what the
    profile says itself, in whatever file, comes over that. `null` removes an inherited policy, `enabled:
    false` keeps its values. A profile that is null says nothing of its own.

    Args:
        directory: where the files are. Default: `OPERO_CONFIG`, else `config` in `[tool.opero]` of
            `./pyproject.toml`, else `./policies`, which alone may be absent: then there are no profiles.
        environment: which file to lay over `base.yaml`. Default: `OPERO_ENV`, else `ENVIRONMENT`, else
            "development", which alone needs no file.
        environ: the environment variables. Default: those of this process.

    Raises:
        ConfigError: anything is wrong. The message lists every problem of every file and variable, one a
            line: its place (file:line:column or the variable), what is wrong, and the cure or the nearest
                valid choice.
        NotImplementedError: a file has `functions:` or `import_from:`.
    """
    variables = os.environ if environ is None else environ
    report = Report()
    location = locate(directory, environment, variables, report)
    settings = Settings.read(location.files, variables, report)
    layers = list(settings.layers.values())
    # Where a file could not be read, what seems to be missing may stand there: only what is there is judged.
    complete = len(layers) == len(location.files) + 1
    policies: dict[str, Policy] = {}
    sources: dict[str, Mapping[str, Leaf]] = {}
    check_fields(compose(None, layers), report)
    for name, lineage in inherit(layers, report if complete else Report()).items():
        profile = compose(lineage or [name], layers)
        if lineage is None or not complete:
            check_fields(profile, report)
        elif (policy := validate(name, profile, report)) is not None:
            extends = extends_leaf(name, layers)
            policies[name] = policy
            sources[name] = profile.leaves() | ({} if extends is None else {"extends": extends})
    report.raise_if_any()
    return Configuration(location.environment, location.directory, settings.enabled, policies, sources)
