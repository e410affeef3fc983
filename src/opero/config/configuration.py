"""What was loaded: policies by name, what `functions:` adds, and where each value came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from opero.config.code_layer import own_section, place_of, section_below, section_of
from opero.config.composition import compose, inherit, parent_leaf, sections_of
from opero.config.function_entries import FunctionEntries
from opero.config.report import Report
from opero.config.sources import CODE, Layer, Leaf, Section
from opero.config.validation import check_fields, validate
from opero.errors import ConfigError, PolicyNotFoundError, nearest
from opero.policies.types import importing_from

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from opero.policies.policy import Policy
    from opero.registry.declarations import Declaration

__all__ = ["Configuration", "Effective", "judged"]


@dataclass(frozen=True)
class Effective:
    """What holds for one function.

    Attributes:
        policy: its policy.
        profile: the profile that it starts from; None for none.
        entries: the entries of `functions:` that hold for it, the least exact first.
        sections: gives what it was made of, the lowest first.
    """

    policy: Policy
    profile: str | None
    entries: tuple[str, ...]
    sections: Callable[[], list[Section]] = field(repr=False)

    def leaves(self) -> dict[str, Leaf]:
        """Path, such as "retry.retries" → the leaf that holds; "policy" → which profile it starts from."""
        sections = self.sections()
        start = parent_leaf(each for each in sections if not each.name.startswith("policies."))
        return ({} if start is None else {"policy": start}) | compose(sections).leaves()


@dataclass(frozen=True)
class Configuration:
    """What was loaded: policies by name, and where each of their values came from. It never changes.

    Attributes:
        environment: the name of the environment, such as "production".
        directory: the directory that was read; None where none was named and `./policies` does not exist.
        enabled: `OPERO_ENABLED`: whether policies hold at all. Default true.
        policies: profile name → its effective policy.
        files: the files that were read, lowest precedence first.
        watched: the files and directories in which a change may mean another configuration.
        warnings: what is not wrong, but should be looked at.
        layers: what each file and each set of variables says, lowest precedence first.
    """

    environment: str = "development"
    directory: Path | None = None
    enabled: bool = True
    policies: Mapping[str, Policy] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    watched: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = field(default=(), repr=False)
    _lineages: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    _loaded: Report | None = field(default=None, repr=False, compare=False)
    """The report of its loading, which knows the files' lines."""

    @classmethod
    def of(cls, policies: Mapping[str, Policy], *, enabled: bool = True) -> Configuration:
        """The configuration that holds just these policies."""
        profiles = {name: section_of(f"policies.{name}", policy.fields(), CODE) for name, policy in policies.items()}
        lineages = {name: [name] for name in policies}
        return cls(
            enabled=enabled, policies=dict(policies), layers=(Layer("code", None, profiles),), _lineages=lineages
        )

    def report(self) -> Report:
        """An empty report that can show lines of the files."""
        return Report(self._loaded)

    def over(self, layer: Layer, report: Report) -> Configuration:
        """This one with one more layer on top, judged anew; what is wrong goes into `report`."""
        return judged(replace(self, layers=(*self.layers, layer)), report)

    @cached_property
    def sources(self) -> Mapping[str, Mapping[str, Leaf]]:
        """Profile name → path, such as "retry.retries" → the leaf that holds. Made when it is asked for."""
        return _Lazily(self.policies, self._leaves)

    @cached_property
    def functions(self) -> FunctionEntries:
        """The entries of `functions:`."""
        return FunctionEntries(self.layers)

    @property
    def import_from(self) -> tuple[str, ...] | None:
        """The modules that names may be imported from; None: from any."""
        said = [layer.import_from for layer in self.layers if layer.import_from is not None]
        return tuple(said[-1].plain()) if said else None

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
        """The profile that a function starts from, and the entries of `functions:` that hold for it.

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
        """What holds for a function; None where something is wrong, which goes into `report`."""
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
        # What files and variables name has been checked against `import_from`; code may name what it likes.
        policy = validate(f"functions.{declaration.name}", compose(sections()), report)
        return None if policy is None else Effective(policy, profile, entries, sections)


def judged(configuration: Configuration, report: Report, *, complete: bool = True) -> Configuration:
    """The same with the policies that its layers make; what is wrong with them goes into `report`.

    Args:
        configuration: its layers count.
        report: takes what is wrong.
        complete: whether the layers are all. If not, some part may be missing, and only what is there is judged.
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
    """A mapping whose values are made when they are first asked for."""

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
