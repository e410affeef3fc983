"""The canary policy: a share of the calls of a profile runs on another profile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BeforeValidator, Field

from opero.errors import nearest
from opero.policies.base import BasePolicy
from opero.policies.quantities import SHARE_PERCENT_TEXT, SHARE_TEXT, SPACE, fits, named_schema, quoted, share_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opero.policies.policy import Policy

NOTHING_TEXT = rf"^{SPACE}(0|0?\.0{{1,10}}|0\.|0(\.0{{1,10}})?{SPACE}%){SPACE}$"


def _share(value: object) -> float:
    if fits(NOTHING_TEXT, value) or (value == 0 and not isinstance(value, bool)):
        return 0.0
    try:
        return share_of(value)
    except ValueError:
        raise ValueError(
            f'{quoted(value)} is invalid: use a number from 0 to 1, such as 0.05, or a percentage ("5%")'
        ) from None


CanaryShare = Annotated[
    float,
    Field(ge=0, le=1),
    BeforeValidator(_share),
    named_schema(
        "CanaryShare",
        [
            {"type": "number", "minimum": 0, "maximum": 1},
            *({"type": "string", "pattern": text} for text in (SHARE_TEXT, SHARE_PERCENT_TEXT, NOTHING_TEXT)),
        ],
        0.05,
        "5%",
    ),
]


class CanaryPolicy(BasePolicy):
    """Run a share of the calls on another profile, to try that on real calls before all of them run on it.

    Such a call has the limits, the state and the counts of the other profile; the options of the function lie over
    that one as well. Both have the same cache, which answers before one is chosen. Maps run on the profile itself.

    Attributes:
        share: the share of the calls, from 0 to 1, or "5%". Required.
        policy: the name of the other profile. Required.
        by: the name of a parameter: calls with equal arguments there run on the same profile, in all processes, and a
            greater share keeps those that a smaller one had. Default None: each call is drawn.
    """

    kind: ClassVar[str] = "canary"
    no_shadow: ClassVar[str] = "a canary is a trial itself; use share 0% to keep it without effect"

    share: CanaryShare
    policy: Annotated[str, Field(min_length=1)]
    by: str | None = None

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(self, *, enabled: bool = True, share: float | str, policy: str, by: str | None = None) -> None: ...


def canary_problem(name: str, policy: Policy, policies: Mapping[str, Policy]) -> str | None:
    """Return why the canary of a policy cannot be; None if it can, or there is none.

    Args:
        name: the name of the profile that has the policy.
        policy: the policy.
        policies: the profiles.
    """
    path = [name]
    while (canary := policy.active("canary")) is not None:
        other = policies.get(canary.policy)
        if other is None:
            return (
                f"the canary is {canary.policy!r}, which does not exist{nearest(canary.policy, set(policies) - {name})}"
            )
        if canary.policy in path:
            circle = " → ".join([*path[path.index(canary.policy) :], canary.policy])
            cure = "use `canary: null` there" if canary.policy == path[-1] else "remove one of them"
            return f"circular canaries: {circle}; {cure}"
        if policy.active("cache") != other.active("cache"):
            return (
                f"the cache of {canary.policy!r} is another than that of {path[-1]!r}: both answer from one cache, "
                "so give them the same"
            )
        path.append(canary.policy)
        policy = other
    return None
