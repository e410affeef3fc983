"""Finding the rate that a service accepts where it says nothing but that a call was too much: `rate: adaptive`.

Additive increase, multiplicative decrease: each accepted call raises the rate a little, and a refused one cuts it.
Three things make it find the limit soon, with few calls refused:

- until a call is refused for the first time, the rate grows exponentially;
- between two refusals the service has accepted as many calls as its limit allows in that time, however many it lets
  through at once: so what it has accepted says what the limit is, and the second cut goes there;
- the closer the rate is to where calls were refused, the slower it grows: a probe every `PROBE` calls.

Calls take permits by their number, not by a moment: permit `n` falls due when `n` permits have flowed. So what callers
have reserved stays in order when the rate changes, and falls due earlier or later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from opero.policies.rate_limit import RateLimitPolicy

START = 2.0
"""Calls a second to begin with."""
LEAST = 1 / 60
"""The slowest rate, so that it is noticed when calls are accepted again."""
GROWTH = 0.3
"""What an accepted call adds to the rate until one is refused: it grows by 30% a second."""
CUT = 0.75
"""What is left of the rate after the first refusal, when nothing is known but that it was too much."""
LEAST_CUT = 0.9
"""What is left at least after others."""
BELOW = 0.97
"""How far below the limit that was found the rate continues."""
SEARCH, PROBE = 80, 150
"""Accepted calls until the rate is back where it was cut: the first time, and later."""
ENOUGH = 15
"""Accepted calls from which on their number says what the limit is."""
HOLD, LONGEST_HOLD = 0.1, 30.0
"""Seconds without calls after a refusal; doubled as long as no call is accepted, as where a quota has to be renewed."""
LONG = 5.0
"""Seconds of a pause after which calls come back gradually."""
WINDOW, CALLS = 2.0, 10
"""Seconds and calls by which the rate of accepted calls is measured: beyond twice that, more would not be used."""


class Found(NamedTuple):
    """What is known of the limit.

    Attributes:
        rate: calls a second from now on.
        top: where calls were refused; 0 if none was.
        is_measured: `top` is measured by what was accepted.
        cut: when the rate was cut last; what happens to calls sent before says nothing.
        since: from when calls are counted to measure the limit.
        accepted: calls accepted since.
        hold: seconds without calls after the last refusal; 0 once one was accepted.
        began, before, used: of the current window: when it began, and `accepted` then; and the rate of accepted calls
            in the last one, or 0.
    """

    rate: float
    top: float = 0.0
    is_measured: bool = False
    cut: float = float("-inf")
    since: float = float("-inf")
    accepted: int = 0
    hold: float = 0.0
    began: float = float("-inf")
    before: int = 0
    used: float = 0.0


def first(most: float) -> Found:
    """Return what is known at the beginning."""
    return Found(min(START, most))


def after_accepted(found: Found, sent: float, now: float, most: float) -> Found:
    """Return what is known after a call was accepted.

    Args:
        found: what is known.
        sent: when the call was sent.
        now: when its result came.
        most: the rate that the policy allows at most.
    """
    rate, top, is_measured, cut, since, accepted, hold, began, before, used = found
    accepted += 1
    if began < since or began < 0:
        began, before, used = now, accepted, 0.0
    elif now - began >= WINDOW and accepted - before >= CALLS:
        began, before, used = now, accepted, (accepted - before) / (now - began)
    if sent > cut:
        hold = 0.0
        if not used or rate <= 2 * used:
            rate = min(most, rate + _step(rate, top, is_measured=is_measured))
    return Found(rate, top, is_measured, cut, since, accepted, hold, began, before, used)


def _step(rate: float, top: float, *, is_measured: bool) -> float:
    if not top:
        return GROWTH
    step = top * (1 - BELOW) / PROBE if is_measured else top * (1 - CUT) / SEARCH
    if rate > top:  # the limit is higher than it was
        step *= 1 + (rate / top - 1) / (1 - BELOW)
    return min(GROWTH, step)


def after_refused(found: Found, sent: float, now: float) -> Found:
    """Return what is known after a call was refused; `cut` is `now` if that says something, and `hold` how long no
    call is to be sent.

    Args:
        found: what is known.
        sent: when the call was sent.
        now: when its result came.
    """
    if sent <= found.cut:  # it was under way when the rate was cut
        return found
    if found.hold:  # none has been accepted since: it is the same limit, which is not renewed yet
        hold = min(2 * found.hold, LONGEST_HOLD)
        return found._replace(cut=now, since=now + hold, hold=hold, accepted=0)
    if found.accepted >= ENOUGH and found.since > 0 and now > found.since:
        top = min(found.rate, max(found.accepted / (now - found.since), LEAST_CUT * found.rate))
        rate, is_measured = top * BELOW, True
    else:
        top, rate, is_measured = found.rate, found.rate * CUT, False
    rate = max(LEAST, rate)
    hold = max(HOLD, 1 / rate)
    return Found(rate, top, is_measured, cut=now, since=now + hold, hold=hold)


class Flow(NamedTuple):
    """How many permits have fallen due, and how fast others do.

    Attributes:
        permits: how many had at a moment.
        moment: that moment; none falls due before.
        found: what is known of the limit.
    """

    permits: float
    moment: float
    found: Found

    def at(self, now: float) -> float:
        """Return how many permits have fallen due."""
        return self.permits + (now - self.moment) * self.found.rate if now > self.moment else self.permits

    def until(self, permits: float, now: float) -> float:
        """Return the seconds until as many permits have fallen due; less than 0 if they have."""
        return max(0.0, self.moment - now) + (permits - self.at(now)) / self.found.rate

    def held(self, now: float, seconds: float) -> Flow:
        """Return the flow if no permit falls due for some seconds."""
        return Flow(self.at(now), max(self.moment, now + seconds), self.found)

    def learned(self, now: float, found: Found) -> Flow:
        """Return the flow after something was learned."""
        flow = Flow(self.at(now), max(self.moment, now), found)
        return flow.held(now, found.hold) if found.cut == now and found.cut != self.found.cut else flow

    def book(self, due: float, now: float, patience: float, burst: float) -> tuple[float, float]:
        """Reserve a permit, as `opero.executors.state.budget.book` does; `due` is a number of permits."""
        due = max(due, self.at(now))
        wait = max(0.0, self.moment - now, self.until(due - (burst - 1), now))
        return wait, due + 1 if wait <= patience else due

    def left(self, due: float, now: float, burst: float) -> float:
        """Return the seconds until the permit falls due after whose reservation `due` was this."""
        return max(0.0, self.moment - now, self.until(due - burst, now))


def started(policy: RateLimitPolicy, now: float) -> Flow:
    """Return the flow of a budget that begins now."""
    return Flow(0.0, now, first(policy.fastest))


def capped(flow: Flow, now: float, most: float) -> Flow:
    """Return the flow under a policy that allows another rate at most."""
    return flow if flow.found.rate <= most else flow.learned(now, flow.found._replace(rate=most))


def after_pause(flow: Flow, now: float, seconds: float) -> Flow:
    """Return the flow if the service has asked for a pause. After a long one, the rate grows from half of it."""
    found = flow.found
    if seconds < LONG:
        return flow.held(now, seconds)
    lower = max(LEAST, found.rate / 2)
    found = Found(lower, found.top or found.rate, cut=now, since=now + seconds)
    return Flow(flow.at(now), now + seconds, found)
