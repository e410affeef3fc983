"""Every environment variable that would be read, and what each does at present."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from opero.config.composition import compose, sections_of
from opero.config.environment import PREFIX, RESERVED, RawValue, Target
from opero.config.fields import OPTIONS
from opero.policies.policy import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from opero.config import Configuration
    from opero.config.sources import Leaf

__all__ = ["GENERAL", "Variable", "variables"]

GENERAL = {
    "OPERO_ENV": "the environment",
    "ENVIRONMENT": "the environment, where OPERO_ENV is not set",
    "OPERO_CONFIG": "the directory of the policy files",
    "OPERO_ENABLED": "whether policies hold at all",
    "OPERO_ENV_FILE": "a file of further variables",
    "OPERO_SECRETS_DIR": "a directory of files that each hold a variable",
    "OPERO_CACHE_DIR": "the directory of caches on disk",
    "OPERO_CACHE_REDIS_URL": "the server of caches in redis",
    "OPERO_CACHE_SECRET": "what signs the pickles of caches",
}
"""The variables that set no option of a profile, and what they set."""
assert {*RESERVED, "ENVIRONMENT"} == set(GENERAL), "a variable of opero's own is not explained"


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that would be read.

    Attributes:
        names: the names that mean the same, the shortest first; only one of them may be set.
        target: what it sets: "policies.api.retry.retries", or in words where that is no option.
        section: "policies.api", "defaults", "functions.app:get"; "" where it sets no option.
        path: the option, such as "retry.retries", or of a whole policy the field that its short form sets.
        said: what it is set to, and where; None where it is not set. Secrets are not masked.
        leaf: the option's value at present, its source, and what it shadows; None where there is no such policy.
    """

    names: tuple[str, ...]
    target: str
    section: str = ""
    path: str = ""
    said: RawValue | None = None
    leaf: Leaf | None = None

    @property
    def is_set(self) -> bool:
        return self.said is not None

    @property
    def profile(self) -> str:
        return self.section.removeprefix("policies.") if self.section.startswith("policies.") else ""

    @property
    def set_as(self) -> str | None:
        """The name as it was written, and where, if not in the process's own environment."""
        return None if self.said is None else str(self.said.source)


def variables(configuration: Configuration, said: Mapping[str, RawValue]) -> list[Variable]:
    """The variables that would be read: opero's own, then those of each profile, of `defaults` and of `functions:`.

    Args:
        configuration: what was loaded; its profiles and functions have variables.
        said: the variables that are set.
    """
    present = {name.upper(): each for name, each in said.items()}
    found = [Variable((name,), target, said=present.get(name)) for name, target in GENERAL.items()]
    flat = _flat(configuration.policies)
    for section, leaves in _sections(configuration):
        for target in _targets(section):
            names = (*flat.get(target, ()), target.nested)
            path, leaf = _leaf(leaves, target)
            text = next((present[name] for name in names if name in present), None)
            found.append(Variable(names, str(target), section, path, text, leaf))
    return found


def _sections(configuration: Configuration) -> Iterator[tuple[str, Mapping[str, Leaf]]]:
    for profile in sorted(configuration.policies):
        yield f"policies.{profile}", configuration.sources[profile]
    yield "defaults", compose(sections_of(None, configuration.layers)).leaves()
    for name, sections in configuration.functions.sections.items():
        yield f"functions.{name}", compose(sections).leaves()


def _targets(section: str) -> Iterator[Target]:
    if section != "defaults":
        yield Target(section, None)
    for kind, model in KINDS.items():
        yield Target(section, kind)
        yield from (Target(section, kind, field) for field in model.model_fields)


def _flat(profiles: Iterable[str]) -> dict[Target, list[str]]:
    """What each flat variable sets; one that could mean two things is none."""
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
    """The option that a variable sets, and its leaf; of a whole policy the one that its short form sets."""
    if target.kind is None:
        return target.parent_key, leaves.get(target.parent_key)
    if target.field is not None:
        path = f"{target.kind}.{target.field}"
        return path, leaves.get(path)
    if target.kind in leaves:  # a null has removed it
        return target.kind, leaves[target.kind]
    path = f"{target.kind}.{KINDS[target.kind].short or 'enabled'}"
    return path, leaves.get(path)
