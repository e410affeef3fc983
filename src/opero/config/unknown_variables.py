"""Variables that start with OPERO_ and name no option: misspelt ones, those of others, and those of the platform."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from opero.config.fields import OPTIONS
from opero.config.variable_names import PREFIX, RESERVED, fold
from opero.errors import closest, nearest
from opero.patterns import pattern
from opero.policies.policy import KINDS
from opero.problems import edits, is_abbreviated

if TYPE_CHECKING:
    from opero.config.report import Report
    from opero.config.sources import Source

MOST_JUDGED = 100
"""The most variables that are compared with what they may stand for."""
COMMON = frozenset(
    {"enabled", "retry", "fallback", "cache", "timeout", "failures", "hooks", "parallel", "canary", "mode", "workers"}
    | {"batch", "progress", "deadline", "journal", "budget", "ordered", "url", "key", "secret", "default", "function"}
    | {"values", "order", "priority"}
)
"""Options and fields in words that variables of other programs end with as well, such as DEBUG_MODE and API_KEY."""
ROOTS = ("policies", "defaults", "functions", "alerts")
_OF_A_SERVICE = pattern(r"_SERVICE_HOST$|_SERVICE_PORT$|_PORT_[0-9]{1,5}_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
_ADDRESS = pattern(r"(tcp|udp|sctp)://")


def is_injected(name: str, text: str) -> bool:
    """Return whether Kubernetes sets a variable like this for a service whose name begins with "opero", for example
    `OPERO_PORT=tcp://10.0.0.7:80`, `OPERO_SERVICE_HOST`, `OPERO_API_PORT_80_TCP_ADDR`.
    """
    if name.endswith("_PORT") and _ADDRESS.match(text):
        return True
    return _OF_A_SERVICE.search(name[-40:]) is not None or "_SERVICE_PORT_" in name


class UnknownVariables:
    """Tells misspelt variables from those of others.

    What the platform injects is skipped. A variable that is near an option, or names a part of opero, is misspelt, and
    that is an error. Others are ignored with a warning.

    Args:
        profiles, functions: the names that the files define.
    """

    def __init__(self, profiles: Iterable[str], functions: Iterable[str]) -> None:
        self._profiles = {fold(each): each for each in profiles}
        self._functions = {fold(each): each for each in functions}
        self._judged = 0

    def judge(self, name: str, text: str, source: Source, report: Report) -> None:
        """Report a variable that names no option. Its value may be secret and is not shown.

        Args:
            name: its name in upper case.
            text: its value.
            source: its place.
            report: receives the problem or the warning.
        """
        if is_injected(name, text):
            return
        self._judged += 1
        if report.is_full or self._judged > MOST_JUDGED:
            wrong, other = ("is unknown", "") if report.is_full else ("", "names no option, and is ignored")
        else:
            wrong, other = self._explain(name)
        if wrong:
            report.add(source, wrong)
        else:
            report.ignore(source, other)

    def _explain(self, name: str) -> tuple[str, str]:
        """Return what is wrong with a misspelt variable, or else why one of others is ignored."""
        rest = fold(name.removeprefix(PREFIX))
        if "__" in rest:
            return self._explain_nested(rest)
        reasons: list[str] = []
        at = rest.find("_")
        while at >= 0:
            profile, option = self._profiles.get(rest[:at]), rest[at + 1 :]
            at = rest.find("_", at + 1)
            if profile is None:
                continue
            reasons.append(f"the profile {profile!r} has no option {option!r}")
            homes = [f"{kind}_{option}" for kind, model in KINDS.items() if option in model.model_fields]
            if homes and option in COMMON:
                continue
            near = homes or [each for each in (closest(option, OPTIONS),) if each is not None]
            if near:
                ways = " or ".join(f"{PREFIX}{fold(profile)}_{each}".upper() for each in near)
                return f"{reasons[-1]}; {f'use {ways}' if homes else f'did you mean {ways}?'}", ""
        general = {each.removeprefix(PREFIX).lower(): each for each in RESERVED}
        known = closest(rest, general)
        if known is not None and (_is_near(rest, known) or is_abbreviated(rest, known)):
            return f"names no profile; did you mean {general[known]}?", ""
        named = [option for option in OPTIONS if rest.endswith(f"_{option}")]
        option = max(named, key=len, default="")
        profile_part = rest.removesuffix(f"_{option}")
        if option:
            reasons.append(f"there is no profile {profile_part!r}")
            meant = closest(profile_part, self._profiles)
            if meant is not None:
                return f"{reasons[-1]}; did you mean {f'{PREFIX}{meant}_{option}'.upper()}?", ""
            if option not in COMMON:
                return f"{reasons[-1]}; {self._known()}", ""
        both = (f"{each}_{option}" for each in self._profiles for option in OPTIONS)
        meant = closest(rest, both, cutoff=0.8)
        if meant is not None and _is_near(rest, meant):
            return f"names no profile; did you mean {PREFIX}{meant.upper()}?", ""
        return "", f"{', and '.join(reasons) or 'names no option'}, so it is ignored; {self._known()}"

    def _known(self) -> str:
        if not self._profiles:
            return "no file defines a profile"
        return f"known profiles: {', '.join(sorted(self._profiles.values()))}"

    def _explain_nested(self, rest: str) -> tuple[str, str]:
        root, _, path = rest.partition("__")
        if root not in ROOTS:
            meant = "policies" if root in ("policy", "profile", "profiles") else closest(root, ROOTS)
            if meant is not None:
                return f"{root!r} is unknown; did you mean {PREFIX}{meant.upper()}__…?", ""
            if root in self._profiles or not KINDS.keys().isdisjoint(rest.split("__")):
                return f"{root!r} is unknown; use {PREFIX}POLICIES__{rest.upper()}", ""
            return "", f"names no option, so it is ignored; {self._known()}"
        return _explain_path(root, path, self._functions if root == "functions" else self._profiles), ""


def _is_near(name: str, known: str) -> bool:
    """Return whether a name is a known one but for few letters. This is stricter than for a hint: the names of other
    programs' variables are not to be mistaken for misspelt ones."""
    return edits(name, known) <= max(1, len(known) // 4)


def _explain_path(root: str, path: str, folded: Mapping[str, str]) -> str:
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
