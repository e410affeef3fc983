"""Every effective value has one source; without it, the value that it shadows is effective.

Real files, variables of both forms, a `.env` file, a secret, `functions:` entries and decorators' options, all at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opero import Policy, Registry, RetryPolicy, opero
from opero.config.sources import Leaf
from opero.policies.policy import FLAT_OPTIONS

EACH = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FIELDS = {
    "retry": {"retries": st.integers(0, 9), "jitter": st.booleans(), "backoff_factor": st.sampled_from([1, 2.5])},
    "cache": {"ttl": st.sampled_from([5, "30m", 0.5]), "max_size": st.integers(1, 99)},
    "circuit_breaker": {
        "consecutive_failures": st.integers(2, 9),
        "failure_rate": st.sampled_from([0.25, "50%"]),
        "open_for": st.sampled_from(["5s", 60]),
        "half_open_calls": st.integers(1, 5),
    },
}
BLOCKS = st.fixed_dictionaries(
    {}, optional={kind: st.none() | st.fixed_dictionaries({}, optional=fields) for kind, fields in FIELDS.items()}
)
FLAT = {name: FIELDS[kind][field] for name, (kind, field) in FLAT_OPTIONS.items() if field in FIELDS.get(kind, {})}
OPTIONS = st.fixed_dictionaries(
    {}, optional={**{kind: st.fixed_dictionaries({}, optional=fields) for kind, fields in FIELDS.items()}, **FLAT}
)
FILES = st.fixed_dictionaries(
    {},
    optional={
        "defaults": BLOCKS,
        "policies": st.fixed_dictionaries({"api": BLOCKS, "parent": BLOCKS}),
        "functions": st.fixed_dictionaries({}, optional={"app:*": BLOCKS, "app:fetch": BLOCKS}),
    },
)
VARIABLES = st.dictionaries(
    st.sampled_from(
        [
            ("OPERO_API_RETRIES", "7"),
            ("OPERO_API_CACHE_TTL", "7m"),
            ("OPERO_PARENT_BACKOFF", "7"),
            ("OPERO_POLICIES__API__RETRY__JITTER", "false"),
            ("OPERO_POLICIES__PARENT__CACHE__MAX_SIZE", "7"),
            ("OPERO_DEFAULTS__CIRCUIT_BREAKER__OPEN_FOR", "7s"),
            ("OPERO_FUNCTIONS__APP_FETCH__RETRY__RETRIES", "8"),
        ]
    ),
    st.none(),
    max_size=4,
).map(lambda chosen: dict(list(chosen)))


def fetch() -> int:
    return 1


fetch.__module__, fetch.__qualname__ = "app", "fetch"


class World:
    """Everything that sets options of the function `app:fetch` and its profile."""

    def __init__(self, directory: Path, said: dict[str, Any]) -> None:
        self.directory = directory
        self.content = said
        for name in ("base", "production"):
            document = {"policies": {"api": {"extends": "parent"}, "parent": {}}} if name == "base" else {}
            for key, value in said[name].items():
                document.setdefault(key, {})
                for each, body in value.items() if key != "defaults" else ():
                    document[key][each] = {**document[key].get(each, {}), **body}
                if key == "defaults":
                    document[key] = value
            if name == "base":
                document.setdefault("functions", {}).setdefault("app:fetch", None)
            (directory / f"{name}.yaml").write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
        (directory / ".env").write_text("".join(f"{key}={value}\n" for key, value in said["dotenv"].items()))
        secrets = directory / "secrets"
        secrets.mkdir(exist_ok=True)
        for old in secrets.iterdir():
            old.unlink()
        for key, value in said["secrets"].items():
            (secrets / key).write_text(value)
        self.load()

    def load(self) -> None:
        self.registry = Registry.load(
            self.directory,
            "production",
            self.content["environ"],
            env_file=self.directory / ".env",
            secrets_dir=self.directory / "secrets",
        )
        self.bound = self.registry.bind(fetch, "api", **self.content["options"])

    def leaves(self, target: str) -> dict[str, Leaf]:
        return dict(self.registry.explain(target))

    def policy(self, target: str) -> Policy:
        return self.bound.policy if ":" in target else self.registry[target]

    def remove(self, path: str, leaf: Leaf) -> bool:
        """Remove the value of a leaf from its source; return False if it cannot be removed alone."""
        source = leaf.source
        if source.by == "Registry.bind":
            kind, _, field = path.partition(".")
            options = self.content["options"]
            if kind in options:
                options[kind] = {name: value for name, value in options[kind].items() if name != field}
            for name in [name for name in options if FLAT_OPTIONS.get(name) == (kind, field)]:
                del options[name]
            return True
        if source.line is None:
            if "/" in source.name:
                Path(source.name).unlink()
            else:
                del self.content["environ"][source.name]
        else:
            path = Path(source.name) if Path(source.name).is_absolute() else Path.cwd() / source.name
            lines = path.read_text("utf-8").splitlines()
            line = lines[source.line - 1]
            if leaf.removed or re.fullmatch(r"\s*[\w:'*]+:( .*)?|\w+=.*", line) is None:
                return False
            lines[source.line - 1] = ""
            if path.suffix == ".yaml" and _is_alone(lines, source.line - 1, line):
                lines[source.line - 2] += " {}"  # else it would be null, which removes the policy
            path.write_text("\n".join(lines) + "\n", "utf-8")
        return True


def _is_alone(lines: list[str], index: int, line: str) -> bool:
    def indent(text: str) -> int:
        return len(text) - len(text.lstrip())

    after = lines[index + 1] if index + 1 < len(lines) else ""
    return indent(lines[index - 1]) < indent(line) and indent(after) < indent(line)


WORLDS = st.fixed_dictionaries(
    {
        "base": FILES,
        "production": FILES,
        "secrets": VARIABLES,
        "dotenv": VARIABLES,
        "environ": VARIABLES,
        "options": OPTIONS,
    }
)
FEW_WORDS = st.fixed_dictionaries(
    {
        "base": st.just({}) | FILES,
        **{name: st.just({}) for name in ("production", "secrets", "dotenv", "environ")},
        "options": OPTIONS.filter(bool),
    }
)
"""Options that are mostly independent of others."""


@EACH
@given(said=WORLDS)
def test_every_field_of_the_effective_policy_has_one_source_and_its_value(tmp_path: Path, said: dict[str, Any]) -> None:
    world = World(tmp_path, said)
    for target in ("api", "parent", "app:fetch"):
        leaves, policy = world.leaves(target), world.policy(target)
        for kind, fields in FIELDS.items():
            held = getattr(policy, kind)
            if held is None:
                assert leaves.get(kind) is None or leaves[kind].removed
                continue
            made = Policy.model_validate({kind: {field: leaves[f"{kind}.{field}"].value for field in fields}})
            for field in fields:
                leaf = leaves[f"{kind}.{field}"]
                assert not leaf.removed
                assert getattr(getattr(made, kind), field) == getattr(held, field)
                sources = [each.source for each in leaf.chain() if str(each.source) != "default"]
                assert len(sources) == len(set(sources))


@EACH
@given(said=WORLDS, data=st.data())
def test_without_a_source_the_value_that_it_shadows_holds(tmp_path: Path, said: dict[str, Any], data: Any) -> None:
    _remove_one(World(tmp_path, said), data.draw(st.sampled_from(["api", "parent", "app:fetch"])), data)


@EACH
@given(said=FEW_WORDS, data=st.data())
def test_without_an_option_the_value_that_it_shadows_holds(tmp_path: Path, said: dict[str, Any], data: Any) -> None:
    _remove_one(World(tmp_path, said), "app:fetch", data, by="Registry.bind")


def _remove_one(world: World, target: str, data: Any, by: str | None = None) -> None:
    written = {
        path: leaf
        for path, leaf in world.leaves(target).items()
        if "." in path and str(leaf.source) != "default" and not leaf.removed and by in (None, leaf.source.by)
    }
    if not written:
        return
    path = data.draw(st.sampled_from(sorted(written)))
    leaf = written[path]
    if not world.remove(path, leaf):
        return
    world.load()
    leaves = world.leaves(target)
    after = leaves.get(path) or leaves.get(path.partition(".")[0])
    if leaf.shadowed is None:
        assert after is None
    else:
        assert after is not None
        assert (after.value, str(after.source)) == (leaf.shadowed.value, str(leaf.shadowed.source))


@pytest.mark.parametrize(
    ("options", "shadowed"),
    [
        ({"retries": 9}, None),
        ({"retry": 9}, None),
        ({"retries": 9, "jitter": False}, 3),
        ({"retry": {"retries": 9}}, 3),
        ({"retry": RetryPolicy(retries=9)}, 3),
        ({"retry": {}, "retries": 9}, 3),
    ],
)
def test_an_option_that_alone_brings_its_policy_shadows_no_default(options: Any, shadowed: int | None) -> None:
    registry = Registry({"api": Policy()})
    for bound in (registry.bind(fetch, "api", **options), opero(policy="api", registry=registry, **options)(fetch)):
        first, *below = registry.explain(bound)["retry.retries"].chain()
        assert first.value == 9
        assert [(each.value, str(each.source)) for each in below] == ([(3, "default")] if shadowed else [])


@pytest.mark.parametrize(
    ("breaker", "rate"), [({}, 0.5), (5, None), ({"consecutive_failures": 5, "failure_rate": 0.2}, 0.2)]
)
def test_the_default_of_a_rate_is_none_beside_a_number_of_failures(tmp_path: Path, breaker: Any, rate: Any) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"policies": {"api": {"circuit_breaker": breaker}}}))
    registry = Registry.load(tmp_path, environ={})
    leaf = registry.explain("api")["circuit_breaker.failure_rate"]
    assert (leaf.value, registry["api"].circuit_breaker.failure_rate) == (rate, rate)  # type: ignore[union-attr]
