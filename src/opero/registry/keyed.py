"""What is shown of the states that a policy keeps for values of an argument: a summary, and those that stand out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opero.runtime.functions import full_name

if TYPE_CHECKING:
    from opero.executors.by_key import ByKey

MOST_SHOWN = 20
"""The most keys of a policy that are shown."""


def of_keys(by_key: ByKey, look: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Return what is shown of the executors of a policy.

    Args:
        by_key: the executors.
        look: what shows one of them.

    Returns:
        The fields of one, for all together: the worst of them, and of a queue the sum. And `by`; `keys`, how many have
        a state; `standing_out`, how many of them are not as they usually are; `shown`, some of these.
    """
    kind = by_key.policy.kind
    if kind == "circuit_breaker":
        found = by_key.troubled()
        whole: dict[str, Any] = {"state": by_key.state, "retry_in": None, "last_error": ""}
    else:
        looked = [(key, look(executor)) for key, executor in by_key.executors()]
        found = [(key, one) for key, one in looked if STANDS_OUT[kind](one)]
        whole = WHOLE[kind]([one for _, one in looked], by_key.policy)
    shown = [{"key": key, **one} for key, one in found[-MOST_SHOWN:]]
    by = by_key.by if isinstance(by_key.by, str) else full_name(by_key.by)
    return {**whole, "by": by, "keys": by_key.size(), "standing_out": len(found), "shown": shown}


def _rate_limits(found: list[dict[str, Any]], policy: Any) -> dict[str, Any]:
    worst = {name: max((one[name] for one in found), default=0.0) for name in ("saturation", "next_permit")}
    queue = sum(one["queue"] for one in found)
    worst["paused_for"] = max((one["paused_for"] for one in found), default=0.0)
    if policy.limits:
        each = zip(policy.names, policy.limits, strict=True)
        stated: dict[str, Any] = {"limits": {name: {"rate": one.rate, "burst": one.burst} for name, one in each}}
    else:
        rates = [one["rate"] for one in found if one["rate"] is not None]
        rate = policy.rate if isinstance(policy.rate, float) else min(rates, default=None)
        stated = {"rate": rate, "burst": policy.burst}
    return {**stated, **worst, "queue": queue}


def _bulkheads(found: list[dict[str, Any]], policy: Any) -> dict[str, Any]:
    in_use = max((one["in_use"] for one in found), default=0)
    slots = min((one["slots"] for one in found), default=policy.first_limit)
    return {"slots": slots, "in_use": in_use, "queue": sum(one["queue"] for one in found)}


def _memories(found: list[dict[str, Any]], policy: Any) -> dict[str, Any]:
    return {"aside": [each for one in found for each in one["aside"]][:MOST_SHOWN]}


WHOLE: dict[str, Callable[[list[dict[str, Any]], Any], dict[str, Any]]] = {
    "rate_limit": _rate_limits,
    "bulkhead": _bulkheads,
    "fallback": _memories,
}
"""Kind → what is shown of all executors together."""
STANDS_OUT: dict[str, Callable[[dict[str, Any]], bool]] = {
    "rate_limit": lambda one: bool(one["queue"]) or one["next_permit"] > 0,
    "bulkhead": lambda one: bool(one["queue"]) or one["in_use"] >= one["slots"],
    "fallback": lambda one: bool(one["aside"]),
}
"""Kind → whether one of them is not as usual."""
