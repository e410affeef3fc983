"""Environment variables that override a profile: OPERO_API_RETRIES, or OPERO_POLICIES__API__RETRY__RETRIES."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from opero.config.profiles import Profile, expand
from opero.config.sources import Leaf, Source, lay_over
from opero.errors import nearest
from opero.policies.policy import FLAT_OPTIONS, KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from opero.config.sources import Kinds, Problems

__all__ = ["overrides_of"]

PREFIX = "OPERO_"
RESERVED = ("OPERO_ENV", "OPERO_CONFIG", "OPERO_ENABLED", "OPERO_CACHE_REDIS_URL")
RESERVED_PREFIXES = ("OPERO_TEST_",)
LISTS = {"retry_on", "retry_on_status", "ignore"}
STRUCTURED = {"default", "arguments"}

SUFFIXES: dict[str, tuple[str, str | None]] = {
    **{name.upper(): path for name, path in FLAT_OPTIONS.items()},
    "BACKOFF": ("retry", "backoff_factor"),
    **{kind.upper(): (kind, None) for kind in KINDS},
}
"""What follows the profile's name → the policy and field that it sets; no field: the whole policy, or its short form."""


def overrides_of(
    environ: Mapping[str, str], names: Iterable[str], problems: Problems
) -> tuple[dict[str, Profile], Kinds]:
    """What the environment says of these profiles, and of the defaults.

    A list is written with commas or as JSON; `null` or `none` is no value; a whole policy may be a JSON object.
    """
    profiles: dict[str, Profile] = {}
    defaults: Kinds = {}
    by_name = {_spelt(name): name for name in names}
    for variable, text in sorted(environ.items()):
        upper = variable.upper()
        if not upper.startswith(PREFIX) or upper in RESERVED or upper.startswith(RESERVED_PREFIXES):
            continue
        source = Source(variable)
        target = _nested(upper, by_name) if "__" in upper else _flat(upper, by_name)
        if isinstance(target, str):
            problems.add(source, target)
            continue
        profile, kind, field = target
        if not text.strip():
            problems.add(source, "is empty; unset it, or write null for no value")
            continue
        kinds = _kinds(kind, field, text.strip(), source, problems)
        if profile is None:
            defaults = lay_over(defaults, kinds)
        else:
            profiles[profile] = Profile(kinds, source=source).over(profiles.get(profile, Profile()))
    return profiles, defaults


def _spelt(name: str) -> str:
    """A profile's name as variables spell it."""
    return re.sub(r"[^A-Z0-9]+", "_", name.upper())


Target = tuple[str | None, str, str | None]


def _flat(variable: str, by_name: Mapping[str, str]) -> Target | str:
    """The profile, policy and field that OPERO_<PROFILE>_<OPTION> names; or what is wrong."""
    rest = variable.removeprefix(PREFIX)
    readings = [
        (name, *SUFFIXES[rest.removeprefix(f"{spelt}_")])
        for spelt, name in by_name.items()
        if rest.startswith(f"{spelt}_") and rest.removeprefix(f"{spelt}_") in SUFFIXES
    ]
    if len(readings) == 1:
        return readings[0]
    if readings:
        ways = [f"OPERO_POLICIES__{_spelt(name)}__{'__'.join(part.upper() for part in path if part)}" for name, *path in readings]
        return f"can be read in {len(ways)} ways; write {' or '.join(ways)}"
    known = [f"{PREFIX}{spelt}_{suffix}" for spelt in by_name for suffix in SUFFIXES]
    close = nearest(variable, [*known, *RESERVED], likeness=0.8).partition("; known")[0]
    profiles = ", ".join(sorted(by_name.values())) or "none"
    return f"names no option of a profile{close or f'; the profiles are: {profiles}'}"


def _nested(variable: str, by_name: Mapping[str, str]) -> Target | str:
    """The same for OPERO_POLICIES__<PROFILE>__<POLICY>__<FIELD> and OPERO_DEFAULTS__<POLICY>__<FIELD>."""
    head, *path = variable.removeprefix(PREFIX).split("__")
    if head not in ("POLICIES", "DEFAULTS"):
        return f"begins with neither OPERO_POLICIES__ nor OPERO_DEFAULTS__{nearest(head, ['POLICIES', 'DEFAULTS'])}"
    profile: str | None = None
    if head == "POLICIES":
        if not path or path[0] not in by_name:
            return f"names no profile{nearest(path[0] if path else '', by_name)}"
        profile = by_name[path.pop(0)]
    kind = path[0].lower() if path else ""
    if kind not in KINDS:
        return f"names no policy{nearest(kind, KINDS)}"
    if len(path) == 1:
        return profile, kind, None
    field = path[1].lower()
    if field not in KINDS[kind].model_fields or len(path) > 2:
        return f"names no field of {kind}{nearest('__'.join(path[1:]).lower(), KINDS[kind].model_fields)}"
    return profile, kind, field


def _kinds(kind: str, field: str | None, text: str, source: Source, problems: Problems) -> Kinds:
    if field is not None:
        return {kind: {field: Leaf(_value(field, text, source, problems), source)}}
    value: Any = text
    if text.lower() in ("null", "none"):
        value = None
    elif text.lower() in ("true", "yes", "on", "false", "no", "off"):
        value = text.lower() in ("true", "yes", "on")
    elif text.startswith("{"):
        value = _json(text, source, problems)
        unknown = [name for name in value or () if name not in KINDS[kind].model_fields]
        for name in unknown:
            problems.add(source, f"unknown field {name!r} of {kind}{nearest(name, KINDS[kind].model_fields)}")
        value = {name: each for name, each in (value or {}).items() if name not in unknown}
    return {kind: expand(kind, Leaf(value, source), problems)}


def _value(field: str, text: str, source: Source, problems: Problems) -> Any:
    if text.lower() in ("null", "none"):
        return None
    if field in STRUCTURED or (field in LISTS and text.startswith("[")):
        return _json(text, source, problems) if text[0] in '[{"' else text
    return [part.strip() for part in text.split(",")] if field in LISTS else text


def _json(text: str, source: Source, problems: Problems) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        problems.add(source, f"is not JSON: {error}")
        return None
