"""What is remembered of the values of a fallback argument: which are set aside, which work, how many calls use each.

Values are known by a short keyed hash (`Id`), so a state never contains one. All decisions are functions of the state,
the policy and the time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import field
from itertools import accumulate
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from opero.dataclass import dataclass

if TYPE_CHECKING:
    from opero.executors.state.home import Owner

Id = str
"""A short keyed hash of a value."""
FOREVER = float("inf")
PROBE_TIME = 10.0
"""Seconds for which others pass over a value that a call tries, if nothing is heard of that attempt."""
SLACK = 1e-6
"""Seconds by which a value may come back early: a sleep ends at a rounded time."""
MOST = 256
"""Values of each sort that are remembered; then the oldest are forgotten."""
GOLDEN = 0.6180339887498949
"""The multiples of the golden ratio spread evenly over any interval, however many of them there are."""


class SetAside(NamedTuple):
    """A value that is not to be asked first.

    Attributes:
        since, until: times. After `until` it may be asked again, and stays here until it works.
        is_denied: whether it was denied; else it was throttled, and is not asked at all before `until`.
    """

    since: float
    until: float
    is_denied: bool


@dataclass(slots=True)
class Memory:
    """What is remembered.

    Attributes:
        key: the key of the hashes.
        aside: the values that are set aside.
        worked: the values that have worked.
        probed: value that has not worked yet, or not again → until when calls pass it over, as one is trying it.
        preferred: the value to begin with as it worked when others had failed, and until when; None if there is none.
        running: process → value → calls in flight with it, if the policy asks for the least loaded one.
        version: differs after a change of anything but `running`.
    """

    key: bytes = field(default_factory=lambda: token_bytes(16), repr=False)
    aside: dict[Id, SetAside] = field(default_factory=dict)
    worked: dict[Id, bool] = field(default_factory=dict)
    probed: dict[Id, float] = field(default_factory=dict)
    preferred: tuple[Id, float] | None = None
    running: dict[Owner, dict[Id, int]] = field(default_factory=dict)
    version: int = 0

    def is_proven(self, value: Id) -> bool:
        """Return whether the value has worked, and has not been set aside since."""
        return value in self.worked and value not in self.aside

    def load(self, value: Id) -> int:
        """Return the number of calls in flight with a value."""
        found = 0
        for loads in self.running.values():
            found += loads.get(value, 0)
        return found


class Rules(NamedTuple):
    """What a policy says.

    Attributes:
        order: "in_order", "round_robin", "weighted" or "least_loaded".
        weights: the weights of the values, by position; a missing one is 1.
        remembers: whether values are set aside.
    """

    order: str = "in_order"
    weights: tuple[float, ...] = ()
    remembers: bool = True


class Plan(NamedTuple):
    """The values of a call, by position.

    Attributes:
        first: those of the first round, in order.
        later: those that are throttled, each with the time at which it comes back.
        all_aside: whether all values are set aside: those in `first` are denied.
        steady: the values among which later calls may choose as long as the version is the same; empty: they cannot.
        until: the time until which that holds.
        version: the version of the memory.
    """

    first: tuple[int, ...]
    later: tuple[tuple[int, float], ...] = ()
    all_aside: bool = False
    steady: tuple[int, ...] = ()
    until: float = FOREVER
    version: int = 0


# Decisions


class Chooser(Protocol):
    """A call, in which it is noted with which value it is in flight, in the moment in which that is counted: see
    `SlotHolder`.

    Attributes:
        chosen: the value; None if there is none.
    """

    chosen: Id | None


class _Nobody:
    """A caller that notes nothing."""

    chosen: Id | None = None


def choose(
    memory: Memory,
    values: Sequence[Id],
    rules: Rules,
    turn: int,
    owner: Owner,
    now: float,
    chooser: Chooser | None = None,
) -> Plan:
    """Decide in which order a call asks the values, as `plan`, and begin with the first, unless all are set aside."""
    found = plan(memory, values, rules, turn, now)
    if not found.all_aside:
        begin(memory, values[found.first[0]], rules, owner, now, chooser)
    return found


def plan(memory: Memory, values: Sequence[Id], rules: Rules, turn: int, now: float) -> Plan:
    """Decide in which order a call asks the values.

    Args:
        memory: what is remembered.
        values: the values of the call, in its order.
        rules: what the policy says.
        turn: the number of the call, for orders that go round.
        now: the time.
    """
    ready: list[int] = []
    denied: list[tuple[float, int]] = []
    later: list[tuple[int, float]] = []
    until = FOREVER if memory.preferred is None else memory.preferred[1]
    for position, value in enumerate(values):
        held = memory.aside.get(value) if rules.remembers else None
        if held is None or held.until <= now + SLACK:
            ready.append(position)
            continue
        until = min(until, held.until)
        if held.is_denied:
            denied.append((held.until, position))
        else:
            later.append((position, held.until))
    last = tuple([position for _, position in sorted(denied)])
    if not ready:
        return Plan(last, tuple(later), all_aside=True)
    ordered = _arranged(memory, values, ready, rules, turn, now)
    if not rules.remembers:
        return Plan(tuple(ordered), steady=tuple(ready), version=memory.version)
    # A value that is not known to work is tried by one call at a time, as long as there is another one to begin with:
    # that would be the last, if the order does not spread the calls anyway.
    passed = [each for each in ordered if memory.probed.get(values[each], 0.0) > now]
    free = [each for each in ordered if each not in passed]
    first = (*free, *passed) if free or rules.order != "in_order" else (passed[-1], *passed[:-1])
    asked = first[:1] if rules.order == "in_order" else tuple(ready)
    is_steady = not passed and all(memory.is_proven(values[each]) for each in asked)
    return Plan((*first, *last), tuple(later), False, asked if is_steady else (), until, memory.version)


def _arranged(memory: Memory, values: Sequence[Id], ready: list[int], rules: Rules, turn: int, now: float) -> list[int]:
    """Return the positions of the values that can be asked, in the order of the policy."""
    if rules.order == "in_order":
        preferred = memory.preferred
        if preferred is None or preferred[1] <= now:
            return ready
        return sorted(ready, key=lambda each: values[each] != preferred[0])  # the sort is stable
    if rules.order == "weighted":
        first = pick_weighted(ready, cumulated(ready, rules.weights), turn)
        return [first, *(each for each in ready if each != first)]
    start = turn % len(ready)
    turned = ready[start:] + ready[:start]
    return turned if rules.order == "round_robin" else sorted(turned, key=lambda each: memory.load(values[each]))


def cumulated(positions: Sequence[int], weights: Sequence[float]) -> list[float]:
    """Return the sums of the weights up to each position."""
    return list(accumulate(weights[each] if each < len(weights) else 1.0 for each in positions))


def pick_weighted(positions: Sequence[int], sums: Sequence[float], turn: int) -> int:
    """Return the position for a turn: over many turns, each has its share."""
    return positions[bisect_right(sums, turn * GOLDEN % 1.0 * sums[-1], 0, len(sums) - 1)]


def take_least(
    memory: Memory,
    values: Sequence[Id],
    positions: Sequence[int],
    turn: int,
    owner: Owner,
    chooser: Chooser | None = None,
) -> int:
    """Choose among the values that work the one with the fewest calls in flight, and begin with it."""
    running, chooser = memory.running, chooser or _Nobody()
    try:
        loads = running[owner]
    except KeyError:
        loads = running[owner] = {}
    best = positions[turn % len(positions)]
    value = values[best]
    if value not in loads and len(running) == 1:
        loads[value] = 1
        chooser.chosen = value
        return best
    start = turn % len(positions)
    least = FOREVER
    for each in (*positions[start:], *positions[:start]):
        load = memory.load(values[each])
        if load < least:
            best, least = each, load
            if not load:
                break
    value = values[best]
    load = loads.get(value, 0) + 1
    loads[value] = load
    chooser.chosen = value
    return best


def begin(memory: Memory, value: Id, rules: Rules, owner: Owner, now: float, chooser: Chooser | None = None) -> None:
    """Record that an attempt with a value begins."""
    chooser = chooser or _Nobody()
    if rules.order == "least_loaded":
        loads = memory.running.setdefault(owner, {})
        load = loads.get(value, 0) + 1
        loads[value] = load
    chooser.chosen = value
    if rules.remembers and not memory.is_proven(value):
        _put(memory.probed, value, now + PROBE_TIME)
        memory.version += 1


def doubt(memory: Memory, value: Id, now: float) -> None:
    """Record that a value was denied, and that the call goes on to another, which may show whether the value was at
    fault: until then, other calls pass it over."""
    memory.worked.pop(value, None)
    _put(memory.probed, value, now + PROBE_TIME)
    memory.version += 1


def leave(memory: Memory, value: Id, owner: Owner, chooser: Chooser | None = None, *, probes: bool = True) -> None:
    """Record that an attempt with a value has ended, whatever it came to.

    Args:
        memory: what is remembered.
        value: the value.
        owner: the process.
        chooser: the call.
        probes: whether the attempt was one that others waited for.
    """
    if probes and memory.probed.pop(value, None) is not None:
        memory.version += 1
    end(memory, value, owner, chooser)


def end(memory: Memory, value: Id, owner: Owner, chooser: Chooser | None = None) -> None:
    """Record that a call is not in flight with a value any more. A second time it has no effect."""
    loads = memory.running.get(owner)
    if chooser is not None:
        if chooser.chosen != value:
            return
        chooser.chosen = None
    if loads is not None and value in loads:
        if loads[value] > 1:
            loads[value] -= 1
        else:
            del loads[value]


def work(memory: Memory, value: Id, began: float, prefer_until: float | None = None) -> bool:
    """Record that a value has worked.

    Args:
        memory: what is remembered.
        value: the value.
        began: when the attempt began: one that had begun before the value was set aside does not bring it back.
        prefer_until: until when calls begin with it, as others had failed before; None: it is not preferred.

    Returns:
        Whether it had been set aside, and is not any more.
    """
    held = memory.aside.get(value)
    if held is not None and began < held.since:
        return False
    if held is not None:
        del memory.aside[value]
    if held is not None or value not in memory.worked:
        _put(memory.worked, value, True)
        memory.version += 1
    if prefer_until is not None:
        memory.preferred = value, prefer_until
        memory.version += 1
    return held is not None


def accept(memory: Memory, value: Id) -> None:
    """Record that a request with a value failed for a reason of its own: the value is no longer tried by one call at a
    time. One that is set aside stays there, as the request may not even have been sent."""
    if value not in memory.worked and value not in memory.aside:
        _put(memory.worked, value, True)
        memory.version += 1


def set_aside(memory: Memory, value: Id, until: float, now: float, *, is_denied: bool) -> bool:
    """Set a value aside, and return whether it was not before."""
    held = memory.aside.get(value)
    since = now if held is None else held.since
    if held is not None and held.is_denied == is_denied:
        until = max(until, held.until)
    _put(memory.aside, value, SetAside(since, until, is_denied))
    if memory.preferred is not None and memory.preferred[0] == value:
        memory.preferred = None
    memory.version += 1
    return held is None


def are_denied(memory: Memory, values: Sequence[Id], denied: Sequence[int]) -> bool:
    """Return whether all values are denied.

    Args:
        memory: what is remembered.
        values: the values of a call.
        denied: the positions of those that the call has found to be.
    """
    others = [value for position, value in enumerate(values) if position not in denied]
    return all(value in memory.aside and memory.aside[value].is_denied for value in others)


def forgotten(memory: Memory, gone: Callable[[Owner], bool]) -> None:
    """Forget the calls in flight of processes that have ended."""
    memory.running = {owner: loads for owner, loads in memory.running.items() if not gone(owner)}


def merge(into: Memory, other: Memory) -> None:
    """Add what another memory knows. It knows the same values only if its key is the same."""
    if other.key == into.key:
        into.aside = other.aside | into.aside
        into.worked = {value: True for value in (*other.worked, *into.worked) if value not in into.aside}
        into.preferred = into.preferred or other.preferred
        into.running = other.running | into.running
        into.version += 1


def _put(held: dict[Id, Any], value: Id, entry: Any) -> None:
    held.pop(value, None)  # the newest is the last
    held[value] = entry
    while len(held) > MOST:
        del held[next(iter(held))]
