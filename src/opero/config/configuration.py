"""The loaded configuration: profiles, entries of `functions:`, and the source of each value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from opero.config.code_layer import own_section, place_of, section_below, section_of
from opero.config.composition import compose, inherit, parent_leaf, sections_of
from opero.config.function_entries import FunctionEntries
from opero.config.report import Report
from opero.config.sources import CODE, ConfigLayer, Leaf, Section
from opero.config.validation import check_fields, validate
from opero.errors import ConfigError, PolicyNotFoundError, nearest
from opero.policies.types import importing_from

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from opero.config.declaration import Declaration
    from opero.policies.policy import Policy

__all__ = ["Configuration", "Effective", "validated"]


@dataclass(frozen=True)
class Effective:
    """The effective policy of one function.

    Attributes:
        policy: its policy.
        profile: the profile that it starts from; None for none.
        entries: the entries of `functions:` that match it, the least specific first.
        sections: returns the sections that it was composed of, lowest precedence first.
    """

    policy: Policy
    profile: str | None
    entries: tuple[str, ...]
    sections: Callable[[], list[Section]] = field(repr=False)

    def leaves(self) -> dict[str, Leaf]:
        """Return path ("retry.retries") → effective leaf; "policy" → the profile that it starts from."""
        sections = self.sections()
        start = parent_leaf(each for each in sections if not each.name.startswith("policies."))
        return ({} if start is None else {"policy": start}) | compose(sections).leaves()


@dataclass(frozen=True)
class Configuration:
    """An immutable configuration: policies by name, with the source of each value.

    Attributes:
        environment: the name of the environment, such as "production".
        directory: the directory that was read; None if none was named and `./policies` does not exist.
        enabled: `OPERO_ENABLED`: whether policies apply at all. Default true.
        policies: profile name → its effective policy.
        files: the files that were read, lowest precedence first.
        watched: the files and directories where a change may affect the configuration.
        warnings: what is not an error but should be checked.
        layers: the contents of each file and each set of variables, lowest precedence first.
    """

    environment: str = "development"
    directory: Path | None = None
    enabled: bool = True
    policies: Mapping[str, Policy] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    watched: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()
    layers: tuple[ConfigLayer, ...] = field(default=(), repr=False)
    _lineages: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    _loaded: Report | None = field(default=None, repr=False, compare=False)
    """The report of its loading, which has the text of the files."""

    @classmethod
    def of(cls, policies: Mapping[str, Policy], *, enabled: bool = True) -> Configuration:
        """Make a configuration of policies from code."""
        profiles = {name: section_of(f"policies.{name}", policy.fields(), CODE) for name, policy in policies.items()}
        lineages = {name: [name] for name in policies}
        return cls(
            enabled=enabled, policies=dict(policies), layers=(ConfigLayer("code", None, profiles),), _lineages=lineages
        )

    def report(self) -> Report:
        """Return an empty report that can show lines of the files."""
        return Report(self._loaded)

    def with_layer(self, layer: ConfigLayer, report: Report) -> Configuration:
        """Return a copy with one more layer on top, validated again; problems are added to `report`."""
        return validated(replace(self, layers=(*self.layers, layer)), report)

    @cached_property
    def sources(self) -> Mapping[str, Mapping[str, Leaf]]:
        """Profile name → path ("retry.retries") → effective leaf, computed on access."""
        return _Lazily(self.policies, self._leaves)

    @cached_property
    def functions(self) -> FunctionEntries:
        """The entries of `functions:`."""
        return FunctionEntries(self.layers)

    @property
    def import_from(self) -> tuple[str, ...] | None:
        """The modules that names may be imported from; None: from any module."""
        lists = [layer.import_from for layer in self.layers if layer.import_from is not None]
        return tuple(lists[-1].plain()) if lists else None

    def source(self, profile: str, path: str) -> Leaf:
        """Return the value of one field as it was written, its source, and the chain of what it shadows.

        Args:
            profile: its name.
            path: policy and field, such as "retry.retries"; "extends"; or a policy alone, if a `null`
                removed it.

        Raises:
            PolicyNotFoundError: there is no such profile.
            ConfigError: the profile has no such policy, or the policy no such field.
        """
        if profile not in self.policies:
            raise PolicyNotFoundError(f"there is no profile {profile!r}{nearest(profile, self.policies)}", name=profile)
        leaves = self.sources[profile]
        if path not in leaves:
            raise ConfigError(f"the profile {profile!r} has no {path!r}{nearest(path, leaves)}")
        return leaves[path]

    def _leaves(self, profile: str) -> Mapping[str, Leaf]:
        extends = parent_leaf(layer.profiles[profile] for layer in self.layers if profile in layer.profiles)
        leaves = compose(sections_of(self._lineages[profile], self.layers)).leaves()
        return leaves | ({} if extends is None else {"extends": extends})

    def start_of(self, function: str, profile: str | None) -> tuple[str | None, tuple[str, ...]]:
        """Return the profile that a function starts from, and the entries of `functions:` that match it.

        Args:
            function: its name, "module:qualname".
            profile: the profile that code names.
        """
        entries = tuple(self.functions.matching(function)) if self.functions else ()
        for entry in entries:
            for section in self.functions.sections[entry]:
                profile = section.parent.value if section.parent is not None else profile
        return profile, entries

    def effective(self, declaration: Declaration, report: Report) -> Effective | None:
        """Compose the effective policy of a function; None if it is invalid: the problems are added to `report`."""
        profile, entries = self.start_of(declaration.name, declaration.profile)
        over = [section for entry in entries for section in self.functions.sections[entry]]
        if profile is not None and profile not in self.policies:
            hint = nearest(profile, self.policies)
            leaf = parent_leaf([own_section(declaration), *over])
            text = f"{declaration.name} is bound to the profile {profile!r}, which does not exist{hint}"
            report.add(place_of(declaration) if leaf is None else leaf.source, text)
            return None

        def sections() -> list[Section]:
            lowest = (
                [section_below(declaration)] if profile is None else sections_of(self._lineages[profile], self.layers)
            )
            return [*lowest, own_section(declaration), *over]

        if profile is not None and not over and not declaration.fields:
            return Effective(self.policies[profile], profile, entries, sections)
        # Names in files and variables have been checked against `import_from`; names in code are not restricted.
        policy = validate(f"functions.{declaration.name}", compose(sections()), report)
        return None if policy is None else Effective(policy, profile, entries, sections)


def validated(configuration: Configuration, report: Report, *, complete: bool = True) -> Configuration:
    """Return a copy with the policies that its layers define; problems are added to `report`.

    Args:
        configuration: the configuration with its layers.
        report: receives the problems.
        complete: whether all layers could be read. If not, missing parts are not reported.
    """
    layers = configuration.layers
    policies: dict[str, Policy] = {}
    lineages: dict[str, Sequence[str]] = {}
    with importing_from(configuration.import_from):
        if any(layer.defaults is not None for layer in layers):
            check_fields(compose(sections_of(None, layers)), report)
        for name, lineage in inherit(layers, report if complete else Report()).items():
            profile = compose(sections_of(lineage or [name], layers))
            if lineage is None or not complete:
                check_fields(profile, report)
            elif (policy := validate(f"policies.{name}", profile, report)) is not None:
                policies[name] = policy
                lineages[name] = lineage
        for section in (section for layer in layers for section in layer.functions.values()):
            check_fields(compose([section]), report)
            parent = section.parent
            if complete and parent is not None and parent.value is not None and parent.value not in lineages:
                names = {name for layer in layers for name in layer.profiles}
                if parent.value not in names:
                    hint = nearest(parent.value, names)
                    text = f"{section.name} uses the profile {parent.value!r}, which does not exist{hint}"
                    report.add(parent.source, text)
    return replace(configuration, policies=policies, _lineages=lineages)


class _Lazily(Mapping[str, Mapping[str, Leaf]]):
    """A mapping that computes its values on first access."""

    def __init__(self, keys: Mapping[str, Any], make: Callable[[str], Mapping[str, Leaf]]) -> None:
        self._keys = keys
        self._make = make
        self._made: dict[str, Mapping[str, Leaf]] = {}

    def __getitem__(self, key: str) -> Mapping[str, Leaf]:
        if key not in self._made:
            if key not in self._keys:
                raise KeyError(key)
            self._made[key] = self._make(key)
        return self._made[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
