"""Reads environment variables as a layer of configuration."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from opero.config.document import read_block, read_parent
from opero.config.fields import OPTIONS, admits_none, is_json, is_list, is_secret
from opero.config.sources import BROKEN, Block, Layer, Marked, Section, Source, mark
from opero.errors import nearest
from opero.policies.json_text import TwiceError, parse_json
from opero.policies.merging import lay
from opero.policies.policy import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from opero.config.report import Report

__all__ = ["RESERVED", "Said", "read_enabled", "read_variables", "said_by_process"]

PREFIX = "OPERO_"
RESERVED = (
    "OPERO_ENV",
    "OPERO_CONFIG",
    "OPERO_ENABLED",
    "OPERO_ENV_FILE",
    "OPERO_SECRETS_DIR",
    "OPERO_CACHE_DIR",
    "OPERO_CACHE_REDIS_URL",
    "OPERO_CACHE_SECRET",
)
"""Variables that set no option of a profile. So do all that begin with `OPERO_TEST_`, unless a profile's name begins
so, too."""
RESERVED_PREFIX = "OPERO_TEST_"
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NOTHING = ("null", "none")


class Said(NamedTuple):
    """A variable's text, and where it was set."""

    text: str
    source: Source

    def __repr__(self) -> str:
        return f"Said({self.source!s})"  # the text may be secret


def said_by_process(environ: Mapping[str, str]) -> dict[str, Said]:
    """The variables of a process that begin with OPERO_."""
    return {name: Said(text, Source(name)) for name, text in environ.items() if name.upper().startswith(PREFIX)}


@dataclass(frozen=True, slots=True)
class Target:
    """What a variable's name may mean: a whole policy (no field), one field, or the profile to start from (no kind)."""

    section: str
    kind: str | None
    field: str | None = None

    @property
    def parent_key(self) -> str:
        return "policy" if self.section.startswith("functions.") else "extends"

    @property
    def nested(self) -> str:
        """The variable that means this and nothing else."""
        group, _, name = self.section.partition(".")
        path = [
            group,
            *([_fold(name)] if name else []),
            self.kind or self.parent_key,
            *([self.field] if self.field else []),
        ]
        return PREFIX + "__".join(path).upper()

    def __str__(self) -> str:
        return f"{self.section}.{self.kind or self.parent_key}{f'.{self.field}' if self.field else ''}"


def _fold(name: str) -> str:
    """The name of a profile, or of a variable, in the one spelling by which they are compared: `Geo-API.v2` →
    `geo_api_v2`."""
    return re.sub(r"\W", "_", name.upper().casefold())  # "ß" is "SS" in upper case


def read_enabled(said: Mapping[str, Said], report: Report) -> bool | None:
    """`OPERO_ENABLED`, or None where it is not set."""
    for name, (text, source) in said.items():
        if name.upper() == "OPERO_ENABLED":
            value = {**TRUTH, "1": True, "0": False}.get(text.strip().lower())
            if value is None:
                report.add(source, f"{text!r} is invalid: use true or false")
            return value
    return None


def read_variables(
    said: Mapping[str, Said],
    profiles: Iterable[str],
    functions: Iterable[str],
    report: Report,
    *,
    name: str = "environment variables",
    complete: bool = True,
) -> Layer:
    """What the variables that begin with OPERO_ say, in upper or lower case, in either of two forms.

    - flat, `OPERO_<PROFILE>_<OPTION>`: the flat options of `@opero` and `@opmap` (`OPERO_API_RETRIES`,
      `OPERO_API_CACHE_TTL`), `BACKOFF` for `BACKOFF_FACTOR`, and each policy by its name, which takes its
      short form, true, false, null, or a JSON mapping (`OPERO_API_RATE_LIMIT=50/s`, `OPERO_API_CACHE=false`);
    - nested, `OPERO_POLICIES__API__RETRY__RETRIES`, `OPERO_DEFAULTS__RETRY__RETRIES` and, for an entry of `functions:`,
      `OPERO_FUNCTIONS__APP_USERS_GET_USER__CACHE__TTL`, for every field.

    Lists are written with commas or as JSON. "null" or "none" removes a policy, or means no value where a
    field admits that. An empty value is an error, since it may mean either. Every character of a profile's or
    function's name that is no letter or digit is written "_".

    Args:
        said: the variables.
        profiles, functions: the names that the files define; a variable cannot make a new one.
        report: takes variables that name nothing, can be read two ways, or contradict each other.
        name: how messages call these variables together.
        complete: whether the names are all. If not, a variable that names nothing may well be right.
    """
    names, entries = list(profiles), list(functions)
    sections: dict[str, _Collected] = {}
    spelled: dict[str, Source] = {}
    tests_are_others = not any(f"{PREFIX}{_fold(each)}_".upper().startswith(RESERVED_PREFIX) for each in names)
    ours = [each for each in said if each.upper().startswith(PREFIX)]
    for variable in sorted(ours, key=lambda each: (said[each].source.line or 0, each)):
        text, source = said[variable]
        upper = variable.upper()
        if upper in spelled:
            report.add(source, f"is also set as {spelled[upper]}, and names are case-insensitive; unset one of them")
            continue
        spelled[upper] = source
        targets = find_targets(_fold(upper.removeprefix(PREFIX)), names, entries)
        if len(targets) > 1:
            _report_ambiguous(source, targets, report)
        elif targets:
            target = targets[0]
            try:
                value = mark(_parse(target, text), source)
            except ValueError as error:
                report.add(source, str(error))
                value = None
            sections.setdefault(target.section, _Collected(target.section, source, report)).take(target, source, value)
        elif complete and upper not in RESERVED and not (upper.startswith(RESERVED_PREFIX) and tests_are_others):
            report.add(source, _explain_unknown(upper, names, entries))
    read = {each: collected.section() for each, collected in sections.items()}
    return Layer(name, read.get("defaults"), _named("policies.", read), _named("functions.", read))


def _named(prefix: str, sections: Mapping[str, Section]) -> dict[str, Section]:
    return {name.removeprefix(prefix): each for name, each in sections.items() if name.startswith(prefix)}


def find_targets(name: str, profiles: Iterable[str], functions: Iterable[str]) -> list[Target]:
    """Everything that a variable's name, folded and without its prefix, can mean."""
    found: list[Target] = []
    if name.startswith("defaults__"):
        found += _nested("defaults", name.removeprefix("defaults__"))
    for profile in profiles:
        folded = _fold(profile)
        if name.startswith(f"policies__{folded}__"):
            found += _nested(f"policies.{profile}", name.removeprefix(f"policies__{folded}__"))
        if name.startswith(f"{folded}_") and (option := name.removeprefix(f"{folded}_")) in OPTIONS:
            found.append(Target(f"policies.{profile}", *OPTIONS[option]))
    for function in functions:
        prefix = f"functions__{_fold(function)}__"
        if name.startswith(prefix):
            found += _nested(f"functions.{function}", name.removeprefix(prefix))
    return found


def _nested(section: str, path: str) -> list[Target]:
    kind, separator, field = path.partition("__")
    if section != "defaults" and not separator and kind == Target(section, None).parent_key:
        return [Target(section, None)]
    if kind not in KINDS or (separator and field not in KINDS[kind].model_fields):
        return []
    return [Target(section, kind, field or None)]


def _parse(target: Target, text: str) -> Any:
    """The value that a variable's text spells; numbers and durations are left to the policy's model."""
    if text and target.kind is not None and target.field is not None and is_secret(target.kind, target.field):
        return text  # its spaces may matter
    text = text.strip()
    word = text.lower()
    if not text:
        whole = target.kind is not None and target.field is None
        raise ValueError(f"is empty; unset it{', or use null to remove the policy' if whole else ''}")
    if target.kind is None:
        return None if word in NOTHING else text
    if target.field is None:
        if word in NOTHING or word in TRUTH:
            return TRUTH.get(word)
        return _json(text) if text.startswith("{") else text
    if word in NOTHING and admits_none(target.kind, target.field):
        return None
    if is_list(target.kind, target.field):
        return _json(text) if text.startswith("[") else [each.strip() for each in text.split(",")]
    if is_json(target.kind, target.field):
        try:
            return parse_json(text)
        except TwiceError:
            raise
        except ValueError:
            return text
    return text


def _json(text: str) -> Any:
    try:
        return parse_json(text)
    except TwiceError:
        raise
    except ValueError as error:
        raise ValueError(f"is not valid JSON: {error}") from error


class _Collected:
    """What several variables say of one section. No two may speak of the same thing: neither would come
    first."""

    def __init__(self, name: str, source: Source, report: Report) -> None:
        self._name = name
        self._place = Marked(None, source)
        self._report = report
        self._blocks: dict[str, Block] = {}
        self._parent: Marked | None = None

    def take(self, target: Target, source: Source, value: Marked | None) -> None:
        """Add one variable's value; None where it could not be read."""
        if target.kind is None:
            self._parent = read_parent(value, str(target), self._report) if value is not None else None
            return
        if value is None:
            block = Block(Marked(BROKEN, source), self._name, {}, flawed=True)
        else:
            whole = value if target.field is None else Marked({target.field: value}, source)
            block = read_block(target.kind, whole, self._name, self._report)
            block.is_bare = block.is_bare or target.field is not None
        held = self._blocks.get(target.kind)
        self._blocks[target.kind] = block if held is None else self._join(target.kind, held, block)

    def _join(self, kind: str, held: Block, block: Block) -> Block:
        if held.removed or block.removed:
            text = f"conflicts with {held.source}, which also removes or sets {self._name}.{kind}; unset one of them"
            self._report.add(block.source, text)
        for field in sorted(held.fields.keys() & block.fields.keys()):
            other = held.fields[field].source
            self._report.add(block.source, f"sets {self._name}.{kind}.{field}, and so does {other}; unset one of them")
        flawed, is_bare = held.flawed or block.flawed, held.is_bare and block.is_bare
        return Block(held.whole, self._name, lay(held.said, block.said), flawed=flawed, is_bare=is_bare)

    def section(self) -> Section:
        return Section(self._name, self._place, self._blocks, self._parent)


def _report_ambiguous(source: Source, targets: list[Target], report: Report) -> None:
    ways = list(dict.fromkeys(target.nested for target in targets))
    if len(ways) > 1:
        cure = f"use {' or '.join(ways)}"
    elif targets[0].section.startswith("functions."):
        cure = "set it in a file, as the names of these functions do not differ in letters and digits"
    else:
        cure = "rename one of the profiles, whose names do not differ in letters and digits"
    report.add(source, f"is ambiguous, as it can mean {' or '.join(map(str, targets))}; {cure}")


def _explain_unknown(name: str, profiles: list[str], functions: list[str]) -> str:
    """Why a variable names nothing, and what was probably meant; never its value, which may be secret."""
    rest = _fold(name.removeprefix(PREFIX))
    folded = {_fold(profile): profile for profile in profiles}
    if rest.startswith("functions__"):
        return _explain_nested(rest, {_fold(function): function for function in functions})
    if rest.startswith(("policies__", "defaults__")):
        return _explain_nested(rest, folded)
    reasons: list[str] = []
    for short, profile in folded.items():
        option = rest.removeprefix(f"{short}_")
        if option == rest:
            continue
        reasons.append(f"the profile {profile!r} has no option {option!r}")
        homes = [
            Target(f"policies.{profile}", kind, option) for kind, model in KINDS.items() if option in model.model_fields
        ]
        if homes:
            return f"{reasons[-1]}; use {' or '.join(target.nested for target in homes)}"
    known = [option for option in OPTIONS if rest.endswith(f"_{option}")]
    if known:
        reasons.append(f"there is no profile {rest.removesuffix(f'_{max(known, key=len)}')!r}")
    candidates = [*RESERVED, *(f"{PREFIX}{each}_{option}".upper() for each in folded for option in OPTIONS)]
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.75)
    why = ", and ".join(reasons) or "names no profile"
    if close:
        return f"{why}; did you mean {close[0]}?"
    there_are = f"known profiles: {', '.join(sorted(profiles))}" if profiles else "no file defines a profile"
    return f"{why}; {there_are}"


def _explain_nested(rest: str, folded: Mapping[str, str]) -> str:
    root, _, path = rest.partition("__")
    above, lacks = root, "names no policy"
    if root != "defaults":
        what = "profile" if root == "policies" else "`functions:` entry"
        short = max((each for each in folded if f"{path}__".startswith(f"{each}__")), key=len, default=None)
        if short is None:
            wanted = path.partition("__")[0]
            return f"there is no {what} {wanted!r}{nearest(wanted, folded) or '; no file defines one'}"
        path = path[len(short) :].removeprefix("__")
        above, lacks = f"{root}__{short}", f"names the {what} {folded[short]!r} but none of its policies"
    kind, _, field = path.partition("__")
    if not kind:
        return f"{lacks}; use {PREFIX}{above.upper()}__RETRY, or another policy"
    if kind not in KINDS:
        return f"there is no policy {kind!r}{nearest(kind, KINDS)}"
    return f"{kind} has no field {field!r}{nearest(field, KINDS[kind].model_fields)}"
