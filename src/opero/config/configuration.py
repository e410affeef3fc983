"""The loaded configuration: profiles, entries of `functions:`, and the source of each value."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property, partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from opero.config.alerts import alerts_of
from opero.config.code_layer import own_section, place_of, section_below, section_of
from opero.config.composition import compose, inherit, parent_leaf, sections_of, switch_leaf
from opero.config.function_entries import FunctionEntries
from opero.config.report import Report
from opero.config.sources import CODE, ConfigLayer, Leaf, Marked, Section, Source
from opero.config.validation import Known, check_fields, validate
from opero.dataclass import dataclass
from opero.errors import nearest
from opero.policies.canary import canary_problem
from opero.policies.names import importing_from
from opero.policies.quantities import quoted
from opero.runtime.functions import full_name

if TYPE_CHECKING:
    from pathlib import Path

    from opero.config.declaration import Declaration
    from opero.policies.alert import Alert
    from opero.policies.policy import Policy


@dataclass(frozen=True)
class Effective:
    """The effective policy of one function.

    Attributes:
        policy: its policy.
        profile: the profile that it starts from; None for none.
        entries: the entries of `functions:` that match it, the least specific first.
        sections: returns the sections that it was composed of, lowest precedence first.
        enabled: whether it takes effect, by the key `enabled` of its profile or entries.
    """

    policy: Policy
    profile: str | None
    entries: tuple[str, ...]
    sections: Callable[[], list[Section]] = field(repr=False)
    enabled: bool = True

    def leaves(self) -> dict[str, Leaf]:
        """Return path ("retry.retries") → effective leaf; "policy" → the profile that it starts from."""
        sections = self.sections()
        start = parent_leaf(each for each in sections if not each.name.startswith("policies."))
        return _beside({"policy": start}, sections) | compose(sections).leaves()


def _beside(start: Mapping[str, Leaf | None], sections: Sequence[Section]) -> dict[str, Leaf]:
    """Return the leaves that belong to no policy: the profile to start from, and the switch of all policies."""
    found = {**start, "enabled": switch_leaf(sections)}
    return {name: leaf for name, leaf in found.items() if leaf is not None}


@dataclass(frozen=True)
class Configuration:
    """An immutable configuration: policies by name, with the source of each value.

    Attributes:
        environment: the name of the environment, such as "production".
        directory: the directory that was read; None if none was named, and the project has no directory `policies`.
        chosen_by: what names the directory, such as "OPERO_CONFIG"; "" for none.
        enabled: `OPERO_ENABLED`: whether policies apply at all. Default true.
        policies: profile name → its effective policy.
        files: the files that were read, lowest precedence first.
        alerts: name → the alert, for what the default registry watches.
        watched: the files and directories where a change may affect the configuration.
        warnings: what is not an error but should be checked.
        ignored: the variables that start with OPERO_ and name no option, and why they are ignored. They are among the
            warnings; a check reports them as problems.
        layers: the contents of each file and each set of variables, lowest precedence first.
        loaded: when it was loaded, in seconds since the epoch.
    """

    environment: str = "development"
    directory: Path | None = None
    enabled: bool = True
    policies: Mapping[str, Policy] = field(default_factory=dict)
    alerts: Mapping[str, Alert] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    watched: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()
    ignored: tuple[tuple[Source, str], ...] = ()
    chosen_by: str = ""
    layers: tuple[ConfigLayer, ...] = field(default=(), repr=False)
    loaded: float = field(default_factory=time.time, repr=False, compare=False)
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
    def functions(self) -> FunctionEntries:
        """The entries of `functions:`."""
        return FunctionEntries(self.layers)

    @cached_property
    def version(self) -> str:
        """Eight hexadecimal digits that differ where values differ, and are the same in every process with these."""
        hashed = sha256(f"{self.environment} {self.enabled}".encode())
        for layer in self.layers:
            sections = [*layer.profiles.values(), *layer.functions.values()]
            for section in sections if layer.defaults is None else [layer.defaults, *sections]:
                parent = None if section.parent is None else section.parent.plain()
                said: dict[str, Any] = {kind: each.content for kind, each in section.statements.items()}
                if section.enabled is not None:
                    said["enabled"] = section.enabled
                hashed.update(f"{section.name} {parent} {_written(said)}".encode("utf-8", "surrogatepass"))
        if self.imports:
            hashed.update(_written(self.imports).encode("utf-8", "surrogatepass"))
        return hashed.hexdigest()[:8]

    @property
    def import_from(self) -> tuple[str, ...] | None:
        """The modules that names may be imported from; None: from any module."""
        lists = [layer.import_from for layer in self.layers if layer.import_from is not None]
        return tuple(lists[-1].plain()) if lists else None

    @cached_property
    def imports(self) -> Mapping[str, Marked]:
        """The functions that `opero run` binds, as `imports:` names them, and the profile of each."""
        found: dict[str, Marked] = {}
        for layer in self.layers:
            found |= layer.imports
        return {target: profile for target, profile in found.items() if profile.value is not None}

    def leaves(self, profile: str) -> Mapping[str, Leaf]:
        """Return path ("retry.retries") → effective leaf of a profile; "extends" → the profile that it extends."""
        extends = parent_leaf(layer.profiles[profile] for layer in self.layers if profile in layer.profiles)
        sections = sections_of(self._lineages[profile], self.layers)
        return compose(sections).leaves() | _beside({"extends": extends}, sections)

    def is_enabled(self, profile: str) -> bool:
        """Return whether the policies of a profile take effect, by its key `enabled`."""
        return self._is_on(sections_of(self._lineages[profile], self.layers)) if self._has_switches else True

    def _is_on(self, sections: Iterable[Section]) -> bool:
        leaf = switch_leaf(sections)
        return leaf is None or leaf.value is not False

    @cached_property
    def _has_switches(self) -> bool:
        """Whether any section has the key `enabled`, which few do."""
        return any(
            section.enabled is not None
            for layer in self.layers
            for section in (layer.defaults, *layer.profiles.values(), *layer.functions.values())
            if section is not None
        )

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

    def effective(self, declaration: Declaration, report: Report, instead: str | None = None) -> Effective | None:
        """Compose the effective policy of a function; None if it is invalid: the problems are added to `report`.

        Args:
            declaration: what code states about the function.
            report: receives the problems.
            instead: the profile to start from, for a canary. Default: that which code and entries name.
        """
        profile, entries = self.start_of(declaration.name, declaration.profile)
        profile = profile if instead is None else instead
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

        enabled = self._is_on(sections()) if self._has_switches else True
        if profile is not None and not over and not declaration.fields:
            policy: Policy | None = self.policies[profile]
        else:
            # Names in files and variables have been checked against `import_from`; names in code are not restricted.
            policy = validate(f"functions.{declaration.name}", compose(sections()), report)
        if policy is not None and instead is not None:  # the function's own canary is for the profile itself
            policy = policy.model_copy(update={"canary": self.policies[instead].canary})
        if policy is None or not _has_possible_canary(profile or "", policy, self.policies, sections, report):
            return None
        return Effective(policy, profile, entries, sections, enabled)


def _written(value: Any) -> str:
    """Return a value as text that is the same in every process."""
    if isinstance(value, Marked):
        return _written(value.value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_written(value[name])}" for name in sorted(value, key=str)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_written, value)) + "]"
    if value is None or isinstance(value, str | int | float | BaseModel):
        return repr(value)
    return full_name(value) if callable(value) else type(value).__name__


def _has_possible_canary(
    name: str, policy: Policy, policies: Mapping[str, Policy], sections: Callable[[], list[Section]], report: Report
) -> bool:
    """Return whether the canary of a policy can be, if it has one; if not, add the problem to the report."""
    text = None if policy.canary is None else canary_problem(name, policy, policies)
    if text is not None:
        leaf = compose(sections()).given("canary")["policy"]
        report.add(leaf.source, f"{leaf.section or name}.canary: {text}" if leaf.section or name else f"canary: {text}")
    return text is None


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
    known: Known = {}
    with importing_from(configuration.import_from):
        if any(layer.defaults is not None for layer in layers):
            check_fields(compose(sections_of(None, layers)), report)
        for name, lineage in inherit(layers, report if complete else Report()).items():
            profile = compose(sections_of(lineage or [name], layers))
            if lineage is None or not complete:
                check_fields(profile, report)
            elif (policy := validate(f"policies.{name}", profile, report, known)) is not None:
                policies[name] = policy
                lineages[name] = tuple(lineage)
        names = {name for layer in layers for name in layer.profiles}
        for name, policy in policies.items() if complete else ():
            canary = policy.active("canary")
            if canary is None or canary.policy in policies or canary.policy not in names:
                _has_possible_canary(name, policy, policies, partial(sections_of, lineages[name], layers), report)
        for section in (section for layer in layers for section in layer.functions.values()):
            check_fields(compose([section]), report)
            parent = section.parent
            if complete and parent is not None and parent.value is not None and parent.value not in names:
                hint = "" if report.is_full else nearest(parent.value, names)
                text = f"{section.name} uses the profile {quoted(parent.value)}, which does not exist{hint}"
                report.add(parent.source, text)
        for target, named in configuration.imports.items() if complete else ():
            if named.value not in names:
                hint = "" if report.is_full else nearest(named.value, names)
                text = f"imports: {target} uses the profile {quoted(named.value)}, which does not exist{hint}"
                report.add(named.source, text)
        alerts = alerts_of(layers, report, complete=complete)
    return replace(configuration, policies=policies, alerts=alerts, _lineages=lineages)
