"""The environment variables that opero reads, with their current effect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from opero.config.alerts import leaves_of
from opero.config.composition import compose, sections_of, switch_leaf
from opero.config.fields import OPTIONS
from opero.config.variable_names import PREFIX, RESERVED, Target, fold
from opero.dataclass import dataclass
from opero.policies.alert import Alert
from opero.policies.policy import KINDS

if TYPE_CHECKING:
    from opero.config.configuration import Configuration
    from opero.config.environment import RawValue
    from opero.config.sources import Leaf

GENERAL = {
    "OPERO_ENV": "the environment",
    "ENVIRONMENT": "the environment, if OPERO_ENV is not set",
    "OPERO_CONFIG": "the directory of the policy files",
    "OPERO_ENABLED": "whether policies apply at all",
    "OPERO_ENV_FILE": "a file of more variables",
    "OPERO_SECRETS_DIR": "a directory with one file per variable",
    "OPERO_RECEIPTS": "whether exceptions have the receipts of their calls",
    "OPERO_CACHE_APP": "the name of the program whose results are cached",
    "OPERO_CACHE_DIR": "the directory of disk caches",
    "OPERO_CACHE_REDIS_URL": "the server of redis caches, if it is not OPERO_REDIS_URL",
    "OPERO_REDIS_URL": "the redis that limits and caches share",
    "OPERO_CACHE_SECRET": "the key that signs cached pickles",
    "OPERO_LOG_LEVEL": "the level from which on records are logged",
    "OPERO_LOG_FORMAT": "the format of log lines, text or json",
    "OPERO_METRICS": "which metrics are exported: prometheus, otel, or both",
    "OPERO_SERVE": "where to serve the live page, such as 127.0.0.1:9300",
    "OPERO_WATCH": "whether the default registry reloads when a file changes, and on SIGHUP",
    "OPERO_TOKEN": "the token that actions on the live page need",
    "OPERO_HOSTS": "names of this server by which the live page may be asked for",
}
"""The variables that set no option of a profile, and what they set."""
assert {*RESERVED, "ENVIRONMENT"} == set(GENERAL), "a reserved variable has no description"


@dataclass(frozen=True, slots=True)
class EnvironmentVariable:
    """A variable that opero reads.

    Attributes:
        names: its equivalent names, shortest first, of which only one may be set.
        target: what it sets: an option such as "policies.api.retry.retries", or a description.
        section: "policies.api", "defaults" or "functions.app:get"; "" if it sets no option.
        path: the option, such as "retry.retries"; for a whole policy, the option that its short form sets.
        setting: its value and where it is set, with secrets unmasked; None if it is not set.
        leaf: the option's current value, its source, and what it shadows; None if there is no such policy.
    """

    names: tuple[str, ...]
    target: str
    section: str = ""
    path: str = ""
    setting: RawValue | None = None
    leaf: Leaf | None = None

    @property
    def is_set(self) -> bool:
        return self.setting is not None

    @property
    def profile(self) -> str:
        return self.section.removeprefix("policies.") if self.section.startswith("policies.") else ""


def variables(configuration: Configuration, settings: Mapping[str, RawValue]) -> list[EnvironmentVariable]:
    """Return the variables that opero reads: general ones, then of profiles, of `defaults`, of `functions:` and alerts.

    Args:
        configuration: the loaded configuration, whose profiles and functions have variables.
        settings: the variables that are set.
    """
    present = {name.upper(): each for name, each in settings.items()}
    found = [EnvironmentVariable((name,), target, setting=present.get(name)) for name, target in GENERAL.items()]
    flat = _flat(configuration.policies)
    for section, leaves in _sections(configuration):
        for target in _targets(section):
            names = (*flat.get(target, ()), target.nested)
            path, leaf = _leaf(leaves, target)
            text = next((present[name] for name in names if name in present), None)
            found.append(EnvironmentVariable(names, str(target), section, path, text, leaf))
    for alert in configuration.alerts:
        section, leaves = f"alerts.{alert}", leaves_of(configuration.layers, alert)
        for field in Alert.model_fields:
            name = f"{PREFIX}ALERTS__{fold(alert)}__{field}".upper()
            own = EnvironmentVariable(
                (name,), f"{section}.{field}", section, field, present.get(name), leaves.get(field)
            )
            found.append(own)
    return found


def _sections(configuration: Configuration) -> Iterator[tuple[str, Mapping[str, Leaf]]]:
    for profile in sorted(configuration.policies):
        yield f"policies.{profile}", configuration.leaves(profile)
    others = {f"functions.{name}": sections for name, sections in configuration.functions.sections.items()}
    for name, sections in {"defaults": sections_of(None, configuration.layers), **others}.items():
        switch = switch_leaf(sections)
        yield name, compose(sections).leaves() | ({} if switch is None else {"enabled": switch})


def _targets(section: str) -> Iterator[Target]:
    if section != "defaults":
        yield Target(section, None)
    yield Target(section, "enabled")
    for kind, model in KINDS.items():
        yield Target(section, kind)
        yield from (Target(section, kind, field) for field in model.model_fields)


def _flat(profiles: Iterable[str]) -> dict[Target, list[str]]:
    """Return the flat names of each target, without ambiguous ones."""
    targets: dict[str, list[Target]] = {}
    for profile in profiles:
        section = f"policies.{profile}"
        start = Target(section, None).nested.removeprefix(f"{PREFIX}POLICIES__").removesuffix("__EXTENDS")
        for option, (kind, field) in OPTIONS.items():
            targets.setdefault(f"{PREFIX}{start}_{option.upper()}", []).append(Target(section, kind, field))
    found: dict[Target, list[str]] = {}
    for name, meant in targets.items():
        if len(meant) == 1:
            found.setdefault(meant[0], []).append(name)
    return {target: sorted(names, key=len) for target, names in found.items()}


def _leaf(leaves: Mapping[str, Leaf], target: Target) -> tuple[str, Leaf | None]:
    """Return the option that a variable sets, and its leaf; for a whole policy, those of its short form."""
    if target.kind is None:
        return target.parent_key, leaves.get(target.parent_key)
    if target.kind == "enabled":
        return target.kind, leaves.get(target.kind)
    if target.field is not None:
        path = f"{target.kind}.{target.field}"
        return path, leaves.get(path)
    if target.kind in leaves:  # removed by null
        return target.kind, leaves[target.kind]
    path = f"{target.kind}.{KINDS[target.kind].short or 'enabled'}"
    return path, leaves.get(path)
