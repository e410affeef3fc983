"""From a file's sections to profiles: which keys there are, what short forms mean, what extends what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opero.config.sources import Leaf, lay_over
from opero.errors import nearest
from opero.policies.policy import FLAT_OPTIONS, KINDS

if TYPE_CHECKING:
    from opero.config.sources import Fields, Kinds, Problems, Source
    from opero.config.yaml_file import Entry, Section

__all__ = ["Profile", "expand", "profiles_of", "resolve_all"]

TOP_LEVEL = ("policies", "defaults", "functions", "import_from")
NOT_YET = ("functions", "import_from")


@dataclass(slots=True)
class Profile:
    """One profile as one layer of sources has it."""

    kinds: Kinds = field(default_factory=dict)
    extends: Leaf | None = None
    source: Source | None = None

    def over(self, lower: Profile) -> Profile:
        """This one laid over another layer's."""
        return Profile(lay_over(lower.kinds, self.kinds), self.extends or lower.extends, self.source or lower.source)


def profiles_of(section: Section, problems: Problems) -> tuple[dict[str, Profile], Kinds]:
    """The profiles and the defaults that a file gives.

    Raises:
        NotImplementedError: a part of the file that has no reader yet; it is named.
    """
    for name, entry in section.items():
        if name in NOT_YET:
            raise NotImplementedError(f"{entry.source}: {name!r} is not implemented yet; leave it out for now")
        if name not in TOP_LEVEL:
            problems.add(entry.source, f"unknown key {name!r}{nearest(name, TOP_LEVEL)}")
    profiles: dict[str, Profile] = {}
    for name, entry in _section(section.get("policies"), "policies", problems).items():
        body = _section(entry, f"the profile {name!r}", problems)
        extends = body.pop("extends", None)
        profile = profiles[name] = Profile(_kinds(body, problems), source=entry.source)
        if extends is not None:
            if isinstance(extends.value, Leaf) and isinstance(extends.value.value, str):
                profile.extends = extends.value
            else:
                problems.add(extends.source, "extends takes the name of one profile")
    return profiles, _kinds(_section(section.get("defaults"), "defaults", problems), problems)


def _section(entry: Entry | None, what: str, problems: Problems) -> Section:
    """The section that stands there; a null is an empty one."""
    if entry is None:
        return {}
    if isinstance(entry.value, dict):
        return dict(entry.value)
    if entry.value.value is not None:
        problems.add(entry.value.source, f"{what} must be a mapping, not {entry.value.value!r:.40}")
    return {}


def _kinds(section: Section, problems: Problems) -> Kinds:
    kinds: Kinds = {}
    for name, entry in section.items():
        if name not in KINDS:
            hint = nearest(name, KINDS)
            if name in FLAT_OPTIONS:
                kind, option = FLAT_OPTIONS[name]
                hint = f"; write {kind}: {{{option}: ...}}"
            problems.add(entry.source, f"unknown policy {name!r}{hint}")
        elif isinstance(entry.value, Leaf):
            kinds[name] = expand(name, entry.value, problems)
        else:
            kinds[name] = _fields(name, entry.value, problems)
    return kinds


def _fields(kind: str, section: Section, problems: Problems) -> Fields:
    fields: Fields = {}
    for name, entry in section.items():
        if name not in KINDS[kind].model_fields:
            problems.add(entry.source, f"unknown field {name!r} of {kind}{nearest(name, KINDS[kind].model_fields)}")
        elif isinstance(entry.value, Leaf):
            fields[name] = entry.value
        else:
            fields[name] = Leaf(_plain(entry.value), entry.source)
    return fields


def _plain(section: Section) -> dict[str, Any]:
    return {
        name: _plain(entry.value) if isinstance(entry.value, dict) else entry.value.value
        for name, entry in section.items()
    }


def expand(kind: str, leaf: Leaf, problems: Problems) -> Fields | Leaf:
    """What a bare value in a policy's place means: `cache: 30m`, `cache: true`, `cache: null`."""
    if leaf.value is None:
        return leaf
    try:
        return {name: Leaf(value, leaf.source) for name, value in KINDS[kind].expand(leaf.value).items()}
    except ValueError as error:
        problems.add(leaf.source, str(error))
        return {}


def resolve_all(profiles: dict[str, Profile], defaults: Kinds, problems: Problems) -> dict[str, Kinds]:
    """The effective values of every profile: the defaults, then what it extends, then its own.

    What a profile extends is that profile's effective values, environment variables included; the profile's own values
    win over them, wherever they come from.
    """
    resolved: dict[str, Kinds] = {}

    def resolve(name: str, path: tuple[str, ...]) -> Kinds:
        if name not in resolved:
            profile = profiles[name]
            lower = defaults
            if profile.extends is not None:
                parent, source = profile.extends.value, profile.extends.source
                if parent in (*path, name):
                    circle = " → ".join((*path[path.index(parent) if parent in path else len(path) :], name, parent))
                    problems.add(source, f"the profiles extend each other in a circle: {circle}")
                elif parent not in profiles:
                    problems.add(source, f"extends the unknown profile {parent!r}{nearest(parent, profiles)}")
                else:
                    lower = resolve(parent, (*path, name))
            resolved[name] = lay_over(lower, profile.kinds)
        return resolved[name]

    for name in profiles:
        resolve(name, ())
    return resolved
