"""Changes every key of a corpus of valid files by one character: each change is reported at the right place.

A change may give a file that is valid and means what it says: the name of a profile or of a function is free, and so
are the keys of free data (`arguments`, `default`). Then what it says is looked at: a profile that others start from is
missed by them, and a `functions:` entry that matches no function is found by `registry.check()`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from opero import Registry
from opero.config.configuration import Configuration
from opero.config.fields import suggest_key
from opero.config.settings import load
from opero.errors import ConfigError, Problem
from opero.policies import AdaptiveTTL, KeyedScope, Limit
from opero.policies.policy import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from config.conftest import Policies

HERE = Path(__file__).parent
CORPUS = {path.stem: path for path in sorted((HERE / "corpus").glob("*.yaml"))}
REFERENCE = {path.stem: path for path in sorted((HERE.parents[1] / "policies").glob("*.yaml"))}
TEXTS = {name: path.read_bytes().decode() for name, path in {**CORPUS, **REFERENCE}.items()}
TEXTS["anchors, with line ends of Windows"] = TEXTS["anchors"].replace("\n", "\r\n")

TOP = {"policies", "defaults", "functions", "import_from"}
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm", "_-", ".,", ":;", "*&")
NEAR = {letter: row[i + 1] if i + 1 < len(row) else row[i - 1] for row in ROWS for i, letter in enumerate(row)}
"""A letter → its neighbour on the keyboard."""
FUNCTIONS = ("app.users:get_user", "app.users:Client.fetch", "app.billing:get_bill", "app.orders:make.<locals>.order")
"""What is bound when the entries of `functions:` are checked."""


@dataclass(frozen=True)
class Key:
    """A key of a file: its text, its place, and its context."""

    text: str
    style: str | None
    start: int
    end: int
    line: int
    column: int
    path: tuple[str, ...]
    """The keys above it; "" for a list."""
    siblings: frozenset[str]

    @property
    def known(self) -> set[str] | None:
        """The names that may stand here; None where any may."""
        path = tuple(part for part in self.path if part not in ("", "<<"))
        depth = len(path) - (path[:1] != ("defaults",))
        if not path:
            return TOP
        if self.is_in_limit:
            return {*Limit.model_fields, "<<"}
        if depth == 0 or (depth > 2 and path[-1] not in ("ttl", "scope")):
            return None
        if depth == 1:
            return {*KINDS, "<<", *{"policies": ["extends"], "functions": ["policy"]}.get(path[0], [])}
        own = {"ttl": AdaptiveTTL, "scope": KeyedScope}
        return {*(own.get(path[-1]) or KINDS[path[-1]]).model_fields, "<<"}

    @property
    def is_in_limit(self) -> bool:
        """Whether it is of one of several limits."""
        return "limits" in self.path or self.path[-2:] == ("rate_limit", "")

    @property
    def names_function(self) -> bool:
        return self.path == ("functions",)

    @property
    def names_profile(self) -> bool:
        return self.path == ("policies",)


def keys(text: str) -> list[Key]:
    """The keys of a file, read from the parser's events and by nothing of opero's."""
    found: list[tuple[Any, tuple[str, ...], int]] = []
    siblings: dict[int, set[str]] = {}
    stack: list[list[Any]] = []  # (kind, number, path, whether a key comes next, the key)
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            stack.pop()
            if stack and stack[-1][0] is dict:
                stack[-1][3] = True
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        top = stack[-1] if stack else None
        path = () if top is None else (*top[2], top[4]) if top[0] is dict else (*top[2], "")
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            kind = dict if isinstance(event, yaml.MappingStartEvent) else list
            stack.append([kind, len(siblings), path if top is not None else (), True, ""])
            siblings[len(siblings)] = set()
        elif top is not None and top[0] is dict and top[3]:
            assert isinstance(event, yaml.ScalarEvent)
            found.append((event, top[2], top[1]))
            siblings[top[1]].add(event.value)
            top[3], top[4] = False, event.value
        elif top is not None and top[0] is dict:
            top[3] = True
    made = []
    for event, path, number in found:
        start, end = event.start_mark, event.end_mark
        others = frozenset(siblings[number] - {event.value})
        key = Key(event.value, event.style, start.index, end.index, start.line + 1, start.column + 1, path, others)
        made.append(key)
    return made


def changes(name: str) -> dict[str, list[str]]:
    """The ways to get a name wrong by one character → what comes of each, at every place."""
    places = range(len(name))
    return {
        "drop": [name[:i] + name[i + 1 :] for i in places],
        "double": [name[: i + 1] + name[i:] for i in places],
        "swap": [name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in places[:-1] if name[i] != name[i + 1]],
        "replace": [name[:i] + NEAR.get(name[i], "x") + name[i + 1 :] for i in places],
        "case": [name[:i] + name[i].swapcase() + name[i + 1 :] for i in places if name[i].swapcase() != name[i]],
        "append": [name + "s"],
    }


def mutants(key: Key, seed: int, *, of_many: bool) -> Iterator[str]:
    """One of each kind, at places that differ from key to key; of many keys, each has one of them."""
    for number, each in enumerate(changes(key.text).values()):
        if each and (not of_many or (seed + number) % 6 == 0):
            yield each[(seed + number) % len(each)]


def written(key: Key, name: str) -> str:
    """A key as its style writes it."""
    if key.style == '"':
        return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"'{name}'" if key.style == "'" else name


def is_function(name: str) -> bool:
    """Return whether `functions:` accepts that name, computed without opero's own pattern."""
    if any(character in name for character in "*?["):
        return True
    module, colon, path = name.partition(":")
    parts = [*module.split("."), *("x" if part == "<locals>" else part for part in path.split("."))]
    return bool(colon) and all(part.isidentifier() for part in parts)


def at(key: Key, problems: tuple[Problem, ...]) -> list[Problem]:
    return [each for each in problems if (each.line, each.column) == (key.line, key.column)]


def read(policies: Policies, text: str) -> Configuration | tuple[Problem, ...]:
    """What comes of a base file."""
    (policies.directory / "base.yaml").write_bytes(text.encode())
    try:
        return load(policies.directory, environ={})
    except ConfigError as error:
        return error.problems


def test_the_corpus_is_valid_and_has_every_policy_and_every_field(policies: Policies) -> None:
    policies.directory.mkdir()
    for name, text in TEXTS.items():
        assert isinstance(read(policies, text), Configuration), name
    fields = {(kind, field) for kind, model in KINDS.items() for field in model.model_fields}
    for name in ("every_field_block", "every_field_flow"):
        assert fields <= {(key.path[-1], key.text) for key in keys(TEXTS[name]) if key.path}, name
    assert {key.text for text in TEXTS.values() for key in keys(text) if not key.path} == TOP


@pytest.mark.parametrize("name", TEXTS)
def test_every_change_of_a_key_is_reported_at_its_place(policies: Policies, name: str) -> None:
    policies.directory.mkdir()
    text = TEXTS[name]
    referred = {path_of.text for path_of in references(text)}
    asked, astray = 0, []
    found = keys(text)
    for seed, key in enumerate(found):
        for mutant in mutants(key, seed, of_many=len(found) > 60):
            changed = text[: key.start] + written(key, mutant) + text[key.end :]
            outcome = read(policies, changed)
            about = f"{key.text!r} → {mutant!r} in line {key.line}: {outcome}"
            known = key.known
            if mutant in key.siblings:
                assert not isinstance(outcome, Configuration), about
                assert any("keep one of them" in each.text for each in outcome), about
            elif known is not None and mutant not in known:
                assert not isinstance(outcome, Configuration), about
                here = [
                    each
                    for each in at(key, outcome)
                    if f"unknown {'field' if {'ttl', 'scope'} & {*key.path} or key.is_in_limit else 'key'}" in each.text
                ]
                assert here, about
                assert here[0].snippet[here[0].caret - 1 :].startswith(written(key, mutant)), about
                asked += 1
                if f"did you mean {key.text!r}?" not in here[0].text:
                    astray.append(about)
            elif key.names_function and not is_function(mutant):
                assert not isinstance(outcome, Configuration), about
                assert any('is not a function name: use "module:function"' in each.text for each in at(key, outcome)), (
                    about
                )
            elif key.names_profile and key.text in referred:
                assert not isinstance(outcome, Configuration), about
                for reference in references(changed):
                    if reference.text == key.text:
                        missed = at(reference, outcome)
                        assert any(f"{key.text!r}, which does not exist" in each.text for each in missed), about
            else:
                assert isinstance(outcome, Configuration), about
                if key.names_profile:
                    assert mutant in outcome.policies, about
                    assert key.text not in outcome.policies, about
                elif key.names_function:
                    check_entries(policies, key, mutant)
    assert len(astray) <= 0.05 * asked, astray


def references(text: str) -> list[Key]:
    """The names of profiles behind `extends:` and `policy:`, as if they were keys."""
    found = []
    events = list(yaml.parse(text, yaml.SafeLoader))
    for before, event in pairwise(events):
        if (
            isinstance(before, yaml.ScalarEvent)
            and before.value in ("extends", "policy")
            and isinstance(event, yaml.ScalarEvent)
        ):
            mark = event.start_mark
            found.append(Key(event.value, event.style, mark.index, 0, mark.line + 1, mark.column + 1, (), frozenset()))
    return found


def check_entries(policies: Policies, key: Key, mutant: str) -> None:
    """An entry of another name is found by `registry.check()`, unless it holds for some function."""
    registry = Registry.load(policies.directory, environ={})
    bound = []
    for name in FUNCTIONS:

        def function(user: str) -> str:
            return user

        function.__module__, _, function.__qualname__ = name.partition(":")
        bound.append(registry.bind(function, "api"))
    problems: tuple[Problem, ...] = ()
    try:
        registry.check()
    except ConfigError as error:
        problems = error.problems
    if any(fnmatchcase(name, mutant) for name in FUNCTIONS):
        assert problems == ()
    else:
        (problem,) = at(key, problems)
        assert problem.text.startswith(f"functions.{mutant} matches no bound function")
        assert problem.snippet[problem.caret - 1 :].startswith(written(key, mutant))


def test_the_nearest_name_of_any_key_wrong_by_one_character_is_the_right_one() -> None:
    asked, wrong = 0, []
    for kind, known in [(None, [*KINDS, "extends"]), *((kind, list(KINDS[kind].model_fields)) for kind in KINDS)]:
        for name in known:
            for mutant in {each for every in changes(name).values() for each in every} - set(known):
                asked += 1
                if f"did you mean {name!r}?" not in suggest_key(mutant, kind, parent="extends"):
                    wrong.append((mutant, name, suggest_key(mutant, kind, parent="extends")))
    assert len(wrong) <= 0.01 * asked, wrong
