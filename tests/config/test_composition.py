"""Laws of composition: profiles equal their merged sections, and every value has its true source."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opero.config.composition import Profile, compose, inherit, parent_leaf, profile_names, sections_of
from opero.config.report import Report
from opero.config.sources import DEFAULT, ConfigLayer, Leaf, Marked, Section, Source, Statement
from opero.policies.merging import ObjectFields, Replacing
from opero.policies.policy import KINDS, merge
from opero.policies.types import UNSET

FIELDS = {"retry": ("retries", "max_delay", "enabled"), "rate_limit": ("rate", "burst"), "cache": ("ttl",)}
NAMES = ("a", "b", "c", "d")
# A machine that is busy with other things proves nothing against a law.
EACH = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def sections(draw: st.DrawFn, name: str, parents: tuple[str, ...] = ()) -> Section:
    """A section whose every value has a source of its own: the number that it is."""
    numbers = draw(st.shared(st.builds(count), key="numbers"))
    section = "defaults" if name == "defaults" else f"policies.{name}"
    statements: dict[str, Statement] = {}
    for kind in draw(st.sets(st.sampled_from(sorted(FIELDS)))):
        whole = Marked(None, Source("key", next(numbers), 1))
        if draw(st.integers(0, 4)) == 0:
            statements[kind] = Statement(whole, section, None)
            continue
        fields: dict[str, Marked] = {}
        for field in draw(st.sets(st.sampled_from(FIELDS[kind]))):
            number = next(numbers)
            fields[field] = Marked(number, Source("file", number, 1))
        statements[kind] = Statement(whole, section, draw(st.sampled_from([dict, Replacing, ObjectFields]))(fields))
    extends = (
        Marked(draw(st.sampled_from(parents)), Source("extends", next(numbers), 1))
        if bool(parents) and draw(st.booleans())
        else None
    )
    return Section(section, Marked(None, Source("section", next(numbers), 1)), statements, extends)


@st.composite
def layers(draw: st.DrawFn) -> list[ConfigLayer]:
    """Up to three layers of up to four profiles; each may extend those before it."""
    made: list[ConfigLayer] = []
    for name in ("base", "production", "variables"):
        profiles = {
            each: draw(sections(each, NAMES[:index])) for index, each in enumerate(NAMES) if draw(st.booleans())
        }
        defaults = draw(sections("defaults")) if draw(st.booleans()) else None
        made.append(ConfigLayer(name, defaults, profiles))
    known = set(profile_names(made))
    return [
        replace(layer, profiles={name: _known(section, known) for name, section in layer.profiles.items()})
        for layer in made
    ]


def _known(section: Section, names: set[str]) -> Section:
    known = section.parent is None or section.parent.value in names
    return section if known else Section(section.name, section.place, section.statements)


def profile_of(lineage: list[str] | None, made: list[ConfigLayer]) -> Profile:
    return compose(sections_of(lineage, made))


def plain(section: Section) -> dict[str, Any]:
    """As `merge` of the policies takes it."""
    return {
        kind: None
        if statement.content is None
        else type(statement.content)((field, leaf.value) for field, leaf in statement.content.items())
        for kind, statement in section.statements.items()
    }


def without(made: list[ConfigLayer], leaf: Leaf) -> list[ConfigLayer]:
    """The layers without one value."""

    def cut(section: Section) -> Section:
        statements = {
            kind: Statement(
                statement.whole,
                statement.section,
                None
                if statement.content is None
                else type(statement.content)(
                    (field, each) for field, each in statement.content.items() if each.source != leaf.source
                ),
            )
            for kind, statement in section.statements.items()
        }
        return Section(section.name, section.place, statements, section.parent)

    return [
        ConfigLayer(
            layer.name,
            layer.defaults and cut(layer.defaults),
            {name: cut(section) for name, section in layer.profiles.items()},
        )
        for layer in made
    ]


def lineages(made: list[ConfigLayer]) -> dict[str, list[str]]:
    report = Report()
    found = inherit(made, report)
    assert not report.lines
    return {name: lineage for name, lineage in found.items() if lineage is not None}


@EACH
@given(layers())
def test_a_profile_equals_its_sections_merged_one_by_one(made: list[ConfigLayer]) -> None:
    for lineage in lineages(made).values():
        order = [layer.defaults for layer in made if layer.defaults is not None]
        order += [layer.profiles[name] for name in lineage for layer in made if name in layer.profiles]
        merged: dict[str, Any] = {}
        for section in order:
            merged = merge(merged, plain(section))
        expected = {kind: fields for kind, fields in merged.items() if fields is not None}
        assert profile_of(lineage, made).values() == expected


@EACH
@given(layers())
def test_a_profile_starts_from_the_one_that_it_extends(made: list[ConfigLayer]) -> None:
    for name, lineage in lineages(made).items():
        extends = parent_leaf(layer.profiles[name] for layer in made if name in layer.profiles)
        assert lineage[-1] == name
        assert lineage[:-1] == ([] if extends is None else lineages(made)[extends.value])


@EACH
@given(layers())
def test_every_field_of_a_policy_has_exactly_one_source(made: list[ConfigLayer]) -> None:
    written = {
        leaf.source: leaf.value
        for layer in made
        for section in [*layer.profiles.values(), *([layer.defaults] if layer.defaults else [])]
        for statement in section.statements.values()
        for leaf in statement.fields.values()
    }
    for lineage in lineages(made).values():
        profile = profile_of(lineage, made)
        leaves = profile.leaves()
        for kind, fields in profile.values().items():
            for field, info in KINDS[kind].model_fields.items():
                leaf = leaves.get(f"{kind}.{field}")
                if field in fields:
                    assert leaf is not None
                    assert leaf.value == fields[field] == written[leaf.source]
                elif leaf is not None and leaf.source == DEFAULT:
                    assert leaf.value == info.default
                else:
                    assert info.is_required() or info.default is UNSET


@EACH
@given(layers())
def test_removing_a_value_reveals_the_one_that_it_shadows(made: list[ConfigLayer]) -> None:
    for lineage in lineages(made).values():
        profile = profile_of(lineage, made)
        for kind in profile.kinds():
            for field, leaf in profile.given(kind).items():
                uncovered = profile_of(lineage, without(made, leaf)).leaves().get(f"{kind}.{field}")
                assert uncovered == leaf.shadowed


@EACH
@given(layers())
def test_no_value_shadows_itself(made: list[ConfigLayer]) -> None:
    for lineage in lineages(made).values():
        for leaf in profile_of(lineage, made).leaves().values():
            written = [each.source for each in leaf.chain() if each.source != DEFAULT]
            assert len(written) == len(set(written))
