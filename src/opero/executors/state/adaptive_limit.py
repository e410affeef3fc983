"""The limit of an adaptive bulkhead: how many calls at once a service serves best, found by what calls take.

Below its knee a service answers twice as many calls at once in the same time: its throughput grows with the calls in
flight. Above it they only wait for each other: the throughput stays, or falls. So the limit climbs as long as more
calls at once bring more throughput, and goes down where fewer bring the same.

Levels are compared with their neighbours, again and again, and by throughput only. A latency without load is neither
known nor assumed. Limits that are set by the gradient of latency take the latency of a service that is overloaded all
the time for the usual one, and grow for ever; here there is nothing that could drift in this way.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

STEP = 1.2
"""Each level is that much above the one below it, or one call where that is more."""
LEAST_CALLS = 12
"""Calls whose durations make a measurement, or twice the limit where that is more."""
MEMORY = 4.0
"""Measurements of a level that count; older ones are forgotten."""
FADING = 0.97
"""What each measurement leaves of the weight of those at other levels."""
KNOWN = 0.25
"""The weight below which a level is measured again before it is compared."""
RARELY = 8
"""Measurements at the best level between two at its neighbours, once there has been nothing new for long."""
CLIMBS, DESCENDS = 0.3, 0.1
"""The share of what a service can gain by more calls at once, for which the limit goes up; and the share of what it can
lose by fewer, up to which it goes down."""
STEPS = 2
"""Steps up in a row after which the best limit is searched for in large steps."""
DOUBLES = 0.5
"""The same share, for which the limit is doubled while it is searched for in large steps."""
SATURATED = 0.8
"""The share of the limit that has to be in use, as otherwise the throughput is that of the callers."""
CHANGED, UNLIKELY = 0.15, 4.0
"""How far a measurement has to be from what is known of its level, as a share and in standard errors, so that the
service has changed, and what is known of other levels holds no more."""
OVERLOADED = 0.1
"""The share of calls that are throttled or time out, above which the limit goes down at once."""


class Sample(NamedTuple):
    """What a call has come to.

    Attributes:
        era: that of the limit when it began.
        in_flight: how many calls were under way when it began, with itself.
        seconds: how long it took.
        ok: whether it has succeeded; of several, which share has.
        overloaded: whether it was throttled, or timed out.
        calls: for how many calls it stands, one after another.
    """

    era: int
    in_flight: int
    seconds: float
    ok: float = 1.0
    overloaded: bool = False
    calls: int = 1


class Known(NamedTuple):
    """What is known of a level: calls a second, and by how many measurements."""

    throughput: float
    weight: float


class Measured(NamedTuple):
    """What calls have come to since the limit was set: their number, and sums over them."""

    calls: int = 0
    in_flight: int = 0
    seconds: float = 0.0
    squares: float = 0.0
    ok: float = 0.0
    overloaded: int = 0


NOTHING = Measured()


class AdaptiveLimit(NamedTuple):
    """A limit, and what it has been found by. It is never changed, only replaced.

    Attributes:
        levels: the limits that are compared, ascending.
        level: the one in force, by its place in them.
        best: the best one that is known.
        era: how many limits have been in force before.
        measured: what is measured of the level in force.
        known: what is known of levels.
        search: whether the best level is still searched for in large steps, which double or halve the limit.
        patience: how many measurements at the best level come before the next one at a neighbour.
        stayed: how many there have been.
        upward: whether the next neighbour is the one above.
        climbs: how many times in a row the one above has been better.
    """

    levels: tuple[int, ...]
    level: int
    best: int
    era: int = 0
    measured: Measured = NOTHING
    known: Mapping[int, Known] = MappingProxyType({})
    search: Literal["up", "down", ""] = "up"
    patience: int = 1
    stayed: int = 0
    upward: bool = True
    climbs: int = 0

    @property
    def limit(self) -> int:
        """How many calls may run at once now; for some measurements that is a little more or less than the best."""
        return self.levels[self.level]

    @property
    def found(self) -> int:
        """The best limit that is known."""
        return self.levels[self.best]


# Decisions


def levels_between(least: int, most: int) -> tuple[int, ...]:
    """Return the limits that are compared."""
    levels = [least]
    while levels[-1] < most:
        levels.append(min(most, max(levels[-1] + 1, round(levels[-1] * STEP))))
    return tuple(levels)


def new_limit(least: int, most: int, first: int) -> AdaptiveLimit:
    """Return a limit that nothing is known of.

    Args:
        least, most: its bounds.
        first: where it begins.
    """
    levels = levels_between(least, most)
    level = _nearest(levels, first)
    return AdaptiveLimit(levels, level, level)


def bounded(state: AdaptiveLimit, least: int, most: int) -> AdaptiveLimit:
    """Return a limit that goes on from another one, within other bounds."""
    levels = levels_between(least, most)
    if levels == state.levels:
        return state
    level = _nearest(levels, state.found)
    return AdaptiveLimit(levels, level, level, state.era + 1, search=state.search)


def _nearest(levels: tuple[int, ...], limit: int) -> int:
    return min(range(len(levels)), key=lambda each: abs(levels[each] - limit))


def learn(state: AdaptiveLimit, sample: Sample) -> AdaptiveLimit:
    """Return the limit after a call has ended."""
    if sample.era != state.era:
        return state
    calls, in_flight, seconds, squares, ok, overloaded = state.measured
    times = sample.calls
    measured = Measured(
        calls + times,
        in_flight + times * sample.in_flight,
        seconds + sample.seconds,
        squares + sample.seconds**2 / times,
        ok + times * sample.ok,
        overloaded + times * sample.overloaded,
    )
    if measured.calls < max(LEAST_CALLS, 2 * state.limit):
        return state._replace(measured=measured)
    return _judge(state._replace(measured=NOTHING), measured)


def _judge(state: AdaptiveLimit, measured: Measured) -> AdaptiveLimit:
    """Return the limit after a measurement of the level in force."""
    if measured.overloaded > OVERLOADED * measured.calls:
        lower = max(0, state.level - 2)
        return _at(state._replace(best=lower, known={}, search="", patience=1, stayed=0), lower)
    in_flight = measured.in_flight / measured.calls
    if in_flight < SATURATED * state.limit:  # the callers do not need as many; perhaps they need a few more than before
        search = state.search if state.level == state.best else ""
        return _at(state._replace(search=search, climbs=0), state.best)
    throughput = in_flight * measured.ok / max(measured.seconds, 1e-9)
    known = {level: Known(each.throughput, each.weight * FADING) for level, each in state.known.items()}
    before = known.get(state.level, Known(0.0, 0.0))
    if before.weight and _differs(measured, throughput, before):
        has_grown = throughput > before.throughput
        state = state._replace(best=state.level, search="up" if has_grown else "down", patience=1, upward=has_grown)
        before, known = Known(0.0, 0.0), {}
    weight = min(before.weight, MEMORY - 1)
    known[state.level] = Known((before.throughput * weight + throughput) / (weight + 1), weight + 1)
    state = state._replace(known=known)
    return _search(state) if state.search else _compare(state)


def _differs(measured: Measured, throughput: float, before: Known) -> bool:
    """Return whether a throughput is another one than usual, and not by chance."""
    mean = measured.seconds / measured.calls
    variance = max(0.0, measured.squares / measured.calls - mean**2)
    error = (variance / measured.calls * (1 + 1 / before.weight)) ** 0.5 / mean if mean else 0.0
    usual = before.throughput
    return abs(throughput - usual) > max(CHANGED, UNLIKELY * error) * max(usual, throughput)


def _search(state: AdaptiveLimit) -> AdaptiveLimit:
    """Go up in large steps as long as that pays; or else down, as long as it costs nothing."""
    level, best = state.level, state.best
    if state.search == "up":
        if level == best or _gain(state, best, level) >= DOUBLES:
            state, further = state._replace(best=level), _nearest(state.levels, 2 * state.limit)
            if further > level:
                return _at(state, further)
        if not any(each < state.best for each in state.known):
            return _go_down(state)
    elif level == best or _gain(state, level, best) < DESCENDS:
        return _go_down(state._replace(best=level))
    return _at(state._replace(search=""), state.best)


def _go_down(state: AdaptiveLimit) -> AdaptiveLimit:
    lower = _nearest(state.levels, state.found // 2)
    if lower < state.best:
        return _at(state._replace(search="down"), lower)
    return _at(state._replace(search=""), state.best)


def _compare(state: AdaptiveLimit) -> AdaptiveLimit:
    """Choose the best level among the best so far and its neighbours, and the level to measure next."""
    best, known = state.best, state.known
    above, below = best + 1, best - 1
    better = best
    if _is_known(known, best):
        if _is_known(known, above) and _gain(state, best, above) > CLIMBS:
            better = above
        elif _is_known(known, below) and _gain(state, below, best) < DESCENDS:
            better = below
    if better != best:
        climbs = state.climbs + 1 if better > best else 0
        state = state._replace(search="up", climbs=0) if climbs >= STEPS else state._replace(climbs=climbs)
        return _at(state._replace(best=better, patience=1, stayed=0, upward=better > best), better)
    if state.level != best:  # back from a neighbour that is no better
        state = state._replace(patience=min(RARELY, state.patience * 2), climbs=0 if state.upward else state.climbs)
        return _at(state._replace(stayed=0, upward=not state.upward), best)
    if state.stayed + 1 < state.patience:
        return _at(state._replace(stayed=state.stayed + 1), best)
    neighbour = above if state.upward else below
    if not 0 <= neighbour < len(state.levels):
        return _at(state._replace(stayed=0, upward=not state.upward), best)
    return _at(state._replace(stayed=0), neighbour)


def _is_known(known: Mapping[int, Known], level: int) -> bool:
    return level in known and known[level].weight >= KNOWN


def _gain(state: AdaptiveLimit, lower: int, upper: int) -> float:
    """Return how much of the gain that a service without a knee would have the higher of two levels has."""
    below, above = state.known[lower].throughput, state.known[upper].throughput
    if not below:
        return 1.0 if above else 0.0
    return (above / below - 1) / (state.levels[upper] / state.levels[lower] - 1)


def _at(state: AdaptiveLimit, level: int) -> AdaptiveLimit:
    """Return the limit with another level in force."""
    return state if level == state.level else state._replace(level=level, era=state.era + 1, measured=NOTHING)
