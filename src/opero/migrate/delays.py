"""Delays of other libraries as options of a retry policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from opero.dataclass import dataclass
from opero.policies.contradictions import least_waits
from opero.policies.quantities import LONGEST, format_duration
from opero.policies.retry import RetryPolicy

DEFAULT_LONGEST = 30.0
MOST_RETRIES = 1000
MANY = 6
"""How many delays are compared, even if there are fewer retries."""
SHOWN = 3
"""How many delays of each kind a message shows."""

Options = dict[str, object]
Range = tuple[float, float]


class NotTranslatableError(Exception):
    """A decorator that no profile replaces; the message says why."""


@dataclass(frozen=True)
class Delays:
    """The delays of a decorator.

    Attributes:
        of: number of the retry, from 1 → the least and the most seconds before it, between which it is drawn uniformly.
        longest: the limit that the decorator states; None if there is none.
        factor: the factor that it states.
    """

    of: Callable[[int], Range]
    longest: float | None = None
    factor: float | None = None

    def count_within(self, seconds: float) -> int:
        """Return after how many retries some time has passed on average."""
        passed, retries = 0.0, 0
        while passed < seconds and retries < MOST_RETRIES:
            retries += 1
            passed += sum(self.of(retries)) / 2
        return retries

    def plus(self, other: Delays) -> Delays:
        """Return the sums of both delays."""

        def total(retry: int) -> Range:
            (least, most), (also_least, also_most) = self.of(retry), other.of(retry)
            return least + also_least, most + also_most

        return Delays(total, factor=self.factor or other.factor)


def constant(seconds: float) -> Delays:
    return Delays(lambda _: (seconds, seconds))


def exponential(
    first: float, base: float, longest: float | None, jitter: float = 0.0, least: float = 0.0, *, full: bool = False
) -> Delays:
    """Return exponentially growing delays.

    Args:
        first: the first one, in seconds.
        base: the factor between two of them.
        longest: no delay is longer.
        jitter: at most as many seconds are added, but not beyond `longest`.
        least: no delay is shorter.
        full: each is drawn between `least` and the delay.
    """

    def of(retry: int) -> Range:
        try:
            exact = first * base ** (retry - 1)
        except OverflowError:
            exact = math.inf
        top = math.inf if longest is None else longest
        low, high = (max(least, min(each, top)) for each in (exact, exact + jitter))
        return (least if full else low), high

    return Delays(of, longest, base)


def fit(delays: Delays, retries: int) -> tuple[Options, str]:
    """Return the options of a retry policy with these delays, and how its delays differ, or "".

    Raises:
        NotTranslatableError: no policy has such delays.
    """
    # More delays than now, so that they stay the same if the number of retries is changed.
    many = [delays.of(retry) for retry in range(1, max(MANY, min(retries, MOST_RETRIES)) + 1)]
    ranges = many[: max(1, retries)]
    if max(high for _, high in ranges) == 0:
        return {"min_delay": 0, "jitter": "none"}, ""
    if not all(0 <= low <= high <= LONGEST for low, high in ranges):
        raise NotTranslatableError(f"its delays ({_shown(ranges)}) are negative, or longer than 100 years")
    if options := _exact(delays, many):
        return options, ""
    if options := _exact(delays, ranges):
        return (
            options,
            f"delays are the same for up to {retries} retries; more would have had others ({_shown(many, MANY)})",
        )
    if all(low == high for low, high in ranges):
        text = f"its delays ({_shown(ranges, MANY)}) do not grow by one factor"
        raise NotTranslatableError(f"{text}; choose min_delay, backoff_factor and max_delay")
    for each in (many, ranges):
        if near := _near(delays, each):
            options, drawn = near
            return options, f"delays are drawn from {_shown(drawn)} instead of {_shown(each)}"
    raise NotTranslatableError(f"no jitter of a profile draws its delays ({_shown(ranges)})")


def _exact(delays: Delays, ranges: Sequence[Range]) -> Options | None:
    """Return options with these very delays."""
    growth = _growth(delays, [high for _, high in ranges])
    for jitter, share in (("none", 1.0), ("full", 0.0), ("equal", 0.5)):
        if growth and all(math.isclose(low, share * high, abs_tol=1e-12) for low, high in ranges):
            return _options(*growth, jitter)
    return None


def _near(delays: Delays, ranges: Sequence[Range]) -> tuple[Options, list[Range]] | None:
    """Return options whose delays grow like the most or the least of these, and what those are drawn from."""
    if min(low for low, _ in ranges) > 0 and (growth := _growth(delays, [high for _, high in ranges])):
        return _options(*growth, "equal"), [(high / 2, high) for _, high in ranges]
    if growth := _growth(delays, [low for low, _ in ranges]):
        first, factor, longest = growth
        drawn = [(0.0, min(low * factor, longest)) for low, _ in ranges]
        return _options(first * factor, factor, longest, "full"), drawn
    return None


def _growth(delays: Delays, series: Sequence[float]) -> tuple[float, float, float] | None:
    """Return the first delay, the factor and the longest delay of a geometric series; None if it is none."""
    first = series[0]
    if first <= 0:
        return None
    for factor in dict.fromkeys((delays.factor or 1.0, series[1] / first if len(series) > 1 else 1.0)):
        longest = max(DEFAULT_LONGEST if delays.longest is None else delays.longest, *series)
        if delays.longest is None and factor > 1 and len(series) > 1 and series[-1] == series[-2]:
            longest = series[-1]  # they have stopped growing
        exact = exponential(first, factor, longest).of
        if factor >= 1 and all(math.isclose(each, exact(retry)[0]) for retry, each in enumerate(series, 1)):
            return first, factor, min(longest, LONGEST)
    return None


def _options(first: float, factor: float, longest: float, jitter: str) -> Options:
    # Full jitter draws between 0 and the next exact delay.
    least = first / factor if jitter == "full" else first
    return {
        "min_delay": format_duration(least),
        "backoff_factor": int(factor) if factor == int(factor) else factor,
        "max_delay": format_duration(longest),
        "jitter": jitter,
    }


def _shown(ranges: Sequence[Range], count: int = SHOWN) -> str:
    texts = [f"{low:.3g}" if low == high else f"{low:.3g}–{high:.3g}" for low, high in ranges[:count]]
    return f"{', '.join(texts)}{', …' if len(ranges) > count else ''} s"


def retries_within(options: Options, most: int | None, seconds: float) -> int:
    """Return how many retries, with their delays, take less than some time, or with full jitter on average.

    Args:
        options: those of the delays.
        most: the number of retries if there is time; None if they are not limited.
        seconds: the time.

    Raises:
        NotTranslatableError: there are none, or unlimited ones without delays.
    """
    policy = RetryPolicy(**options)  # type: ignore[arg-type]  # as `fit` makes them
    retries = 0
    while retries != most and least_waits(policy, retries + 1) < seconds:
        retries += 1
        if retries > MOST_RETRIES and most is None:
            raise NotTranslatableError("its attempts are not limited, and have next to no delays; limit them")
    if not retries and most != 0:
        raise NotTranslatableError("its time limit is shorter than its first delay")
    return retries
