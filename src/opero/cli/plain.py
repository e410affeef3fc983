"""Says in words what a policy does: `opero explain --plain`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from opero.cli.words import listed, name_of, number, seconds, times
from opero.errors import visible
from opero.failures.kinds import Kind
from opero.policies.adaptive_ttl import AdaptiveTTL
from opero.policies.bounds import bounds, longest_delay, may_be_throttled
from opero.policies.names import KINDS_OF_FAILURE
from opero.policies.rate_limit import UNLIMITED
from opero.policies.scope import owner_of, scope_by
from opero.policies.types import DEFAULT_BUDGET, UNSET

if TYPE_CHECKING:
    from opero.policies.bounds import Bounds
    from opero.policies.cache import CachePolicy
    from opero.policies.policy import Policy
    from opero.policies.retry import RetryPolicy

MOST_DELAYS = 5
"""The most delays that are listed."""
PLACES = {
    "memory": "in the memory of each process",
    "disk": "on disk, for all processes of this machine",
    "redis": "in redis, for all machines",
}
MODES = {
    "thread": "in threads",
    "process": "in worker processes",
    "async": "in one event loop",
    "async_process": "in event loops of worker processes",
    "dask": "on a dask cluster",
    "ray": "on a ray cluster",
    "auto": "in threads or worker processes, whichever suits the first items (async functions: in one event loop)",
}
REPLIES = {
    "raise": "When an item fails, the map stops and raises an error with all results so far.",
    "return": "The place of an item that fails gets its exception.",
    "skip": "Items that fail are left out.",
}

DRAWN = {"none": "are", "equal": "are between half and all of", "full": "are drawn at random from 0 to"}

Part = tuple[str, str]
"""A topic, and sentences about it."""


def in_words(policy: Policy) -> list[Part]:
    """Return what a policy does to a call, from the outermost layer to the innermost, and what that may come to."""
    parts: list[Part] = []
    for kind, topic, tell in TOPICS:
        own = policy.active(kind)
        text = "" if own is None else " ".join(tell(own))
        if text and getattr(own, "shadow", False):
            text = f"In shadow, so this is only counted and not done: {text}"
        if text:
            parts.append((topic, text))
    if not parts:
        parts.append(("calls", "The function is called as it is."))
    parts.append(("at worst", " ".join(_worst(policy))))
    return [(topic, visible(text)) for topic, text in parts]  # names in it are the user's


def worst_as_data(policy: Policy) -> dict[str, Any]:
    """Return what a call comes to at worst as plain data; null is no limit."""
    found = bounds(policy)
    fallback = policy.active("fallback")
    numbers = {
        "delays": found.delays,
        "waits": found.queueing,
        "attempt": found.attempt,
        "total": found.total,
        "seconds": found.seconds(),
    }
    times = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    return {"attempts": found.attempts, "for_each_value_of": fallback.arg if fallback is not None else None, **times}


def _is_one(conditions: Sequence[Any]) -> str:
    """Return what holds of failures that conditions mean: "is transient or throttled, or is a KeyError"."""
    kinds = [each.value for each in conditions if isinstance(each, Kind)]
    if {*kinds} == {*KINDS_OF_FAILURE} - {"control"}:
        return "is of any kind"
    classes = [name_of(each) for each in conditions if isinstance(each, type)]
    functions = [name_of(each) for each in conditions if not isinstance(each, type | Kind)]
    found = [f"is {listed(kinds, 'or')}"] if kinds else []
    found += [f"is a {listed(classes, 'or')}"] if classes else []
    found += [f"{listed(functions, 'or')} says so"] if functions else []
    return ", or ".join(found) if found else "is of no kind"


def _cache(policy: CachePolicy) -> Iterator[str]:
    where = PLACES.get(policy.backend, f"in the store {policy.backend}")
    ttl = policy.ttl
    if ttl is None:
        until = "until they are evicted" if policy.backend == "memory" else "until they are deleted"
    elif isinstance(ttl, AdaptiveTTL):
        until = f"for {seconds(ttl.cold)} to {seconds(ttl.hot)}, longer the more often they are asked for"
    else:
        until = f"for as long as {name_of(ttl)} says" if callable(ttl) else f"for {seconds(ttl)}"
    yield f"A result is kept {where}, {until}; calls with the same arguments get it, and nothing below concerns them."
    if policy.backend == "memory":
        yield f"At most {policy.max_size:,} results are kept for a function."
    if policy.cache_if is not None:
        yield f"Only results for which {name_of(policy.cache_if)} returns true are kept."
    if policy.early_refresh is not None:
        yield f"A hit in the last {seconds(policy.early_refresh)} of that time computes it anew in the background."
    if policy.stale_ttl is not None:
        yield f"For another {seconds(policy.stale_ttl)} an old result is served"
        yield "while a new one is computed, or if that fails."
    if policy.errors:
        kept = "" if policy.error_ttl is None else f", for {seconds(policy.error_ttl)}"
        yield f"A failure that {_is_one(policy.errors)} is kept as well{kept}."


def _fallback_result(policy: Any) -> Iterator[str]:
    if policy.has_result:
        if policy.default is not UNSET:
            what = "null" if policy.default is None else f"a fixed value of type {type(policy.default).__name__}"
        else:
            what = f"what {name_of(policy.function)} returns for the same arguments"
        yield (
            f"If a call has failed after all, it returns {what}: if the failure {_is_one(policy.on)}, or is a timeout "
            "or a rejection."
        )


def _fallback_values(policy: Any) -> Iterator[str]:
    if policy.arg is None:
        return
    yield f"The argument {policy.arg} may have several values, which are tried in turn, with no delay between them."
    if policy.order != "in_order":
        yield f"Which value is first is decided by {policy.order.replace('_', ' ')}."
    if policy.remember:
        yield f"A value that was denied is asked last for {seconds(policy.remember)}."
    if policy.has_memory and policy.scope != "auto":
        yield _whose(policy)


def _total(policy: Any) -> Iterator[str]:
    if policy.total is None:
        return
    limit = seconds(policy.total)
    if policy.enforce == "interrupt":
        yield f"A call ends after {limit} at the latest, with all its attempts and waits; then it fails."
        return
    yield f"No attempt begins later than {limit} after the call; one that runs then goes on to its end"
    yield "and its result comes too late: the call fails." if policy.enforce == "wait" else "and its result counts."


def _attempt(policy: Any) -> Iterator[str]:
    if policy.attempt is not None:
        if policy.enforce == "interrupt":
            yield f"An attempt is ended after {seconds(policy.attempt)}, and has failed then."
        else:
            yield f"An attempt that takes longer than {seconds(policy.attempt)} has failed, and is not interrupted."
    if policy.idle is not None:
        yield f"A generator that yields no item for {seconds(policy.idle)} has failed."


def _retry(policy: RetryPolicy) -> Iterator[str]:
    if policy.retries == 0:
        yield "A failed attempt is not retried."
        return
    yield f"A failed attempt is retried at most {times(policy.retries)}, if the failure {_is_one(policy.retry_on)}."
    if not policy.idempotent:
        yield "As a call may not be made twice, that holds only for attempts that the service has not received."
    if policy.retry_on_status == ():
        yield "With an HTTP status it is not retried."
    elif policy.retry_on_status is not None:
        yield f"With an HTTP status it is retried if that is {listed(map(str, policy.retry_on_status), 'or')}."
    if policy.retry_if_result is not None:
        yield f"A result for which {name_of(policy.retry_if_result)} returns true is a failure that is retried."
    rule = DRAWN[policy.jitter]
    ordinary = _delays(policy, throttled=False)
    yield f"The delays before that {rule} {ordinary}." if ordinary else "There are no delays before that."
    if may_be_throttled(policy):
        yield f"If the service receives too many requests, they are up to {_delays(policy, throttled=True)}."
    if policy.retry_after:
        yield "If a failure says how long to wait (Retry-After), the delay is exactly that;"
        yield f"if that is longer than {seconds(policy.max_delay)}, the call fails at once."
    if policy.budget or policy.share != "process":
        share, where = policy.budget or DEFAULT_BUDGET, WHERE.get(policy.share, "")
        yield f"In all, retries{where} add at most {share * 100:g}% to the calls, or one a second."
    elif policy.budget is not None:
        yield "However many calls fail, all of them are retried."
    if policy.amplification == "allow":
        yield "That holds as well for what a bound function within it has retried without success."


def _delays(policy: RetryPolicy, *, throttled: bool) -> str:
    """Return the delays before each retry; "" if there are none."""
    shown = min(policy.retries, MOST_DELAYS)
    found = [longest_delay(policy, number, throttled=throttled) for number in range(1, shown + 1)]
    last = longest_delay(policy, policy.retries, throttled=throttled)
    if last == 0:
        return ""
    if found[0] == last:
        return seconds(last)
    if policy.retries > shown:
        return f"{', '.join(map(seconds, found))} and so on, up to {seconds(last)}"
    return listed(map(seconds, found))


def _breaker(policy: Any) -> Iterator[str]:
    window = policy.window
    within = f"the last {window:,} calls" if isinstance(window, int) else f"the last {seconds(window)}"
    reasons = []
    if policy.consecutive_failures is not None:
        reasons.append(f"{number(policy.consecutive_failures, 'call')} in a row have failed")
    if policy.failure_rate is not None:
        share = f"{100 * policy.failure_rate:g}%"
        reasons.append(f"{share} of the calls within {within}, of at least {policy.least_calls:,}, have failed")
    if policy.slow_call is not None:
        rate = 100 * (policy.slow_rate or 1)
        reasons.append(f"{rate:g}% of the calls within {within} took longer than {seconds(policy.slow_call)}")
    yield f"The circuit opens when {listed(reasons, 'or')}. While it is open, attempts are rejected at once."
    ignored = f", unless it {_is_one(policy.ignore)}" if policy.ignore else ""
    yield f"A failure counts if it {_is_one(policy.trip_on)}{ignored}."
    probes = f"{number(policy.half_open_calls, 'probe')} decide{'s' if policy.half_open_calls == 1 else ''}"
    yield f"After about {seconds(policy.open_for)}, and longer each time that this fails, {probes} whether it closes."
    yield _whose(policy)


WHERE = {"machine": " in all processes of this machine", "redis": " on all machines"}


def _whose(policy: Any) -> str:
    where = WHERE.get(getattr(policy, "share", "process"), "")
    keyed = scope_by(policy)
    if keyed is not None:
        by = f"what {name_of(keyed.by)} makes of the arguments" if callable(keyed.by) else keyed.by
        each = f"Each value of {by} has its own{where}, for the {keyed.max_keys:,} used last"
        return f"{each}." if keyed.of == "profile" else f"{each}, in each function."
    if policy.scope == "auto" and policy.kind != "fallback" and policy.share != "machine":
        return f"All functions of the profile{where} share this; under an HTTP client each host has its own."
    if owner_of(policy) == "profile":
        return f"All functions of the profile{where} share this."
    return f"Each function{where} has its own." if where else "Each function has its own."


def _rate_limit(policy: Any) -> Iterator[str]:
    if isinstance(policy.rate, str):
        yield _found_rate(policy)
        yield _waits(policy, "permit")
        if policy.feedback:
            yield _heeds(policy)
        return
    if policy.limits:
        each = zip(policy.names, policy.limits, strict=True)
        yield f"An attempt takes permits of {number(len(policy.limits), 'limit')}, of all of them or none."
        for name, limit in each:
            yield f"{name}: {_room(limit)}"
    else:
        yield _room(policy)
    yield from _settling(policy)
    yield _waits(policy, "permit" if not policy.limits else "permits")
    if policy.feedback:
        yield _heeds(policy)


def _settling(policy: Any) -> Iterator[str]:
    """Yield how it becomes known what an attempt has really cost."""
    for name, limit in zip(policy.names, policy.each, strict=True):
        read = limit.cost_from_result
        if read is not None:
            by = name_of(read) if callable(read) else f"{read} of the result"
            of = f" of {name}" if policy.limits else ""
            yield f"What it has really taken{of}, {by} says, and the difference is given back or taken besides."
    if policy.is_estimated and policy.refund_on:
        yield f"A failure that {_is_one(policy.refund_on)} takes nothing but the request."


def _room(policy: Any) -> str:
    rate = f"{policy.rate:g} attempts a second" if policy.rate >= 1 else f"an attempt every {seconds(1 / policy.rate)}"
    cost = policy.cost
    if cost != 1:
        says = name_of(cost) if callable(cost) else f"the argument {cost}" if isinstance(cost, str) else f"{cost:g}"
        rate = f"{policy.rate:g} permits a second, and an attempt takes as many as {says} says"
        if isinstance(cost, float):
            rate = f"{policy.rate:g} permits a second, of which an attempt takes {says}"
    return f"There is room for {rate}{f', and for {policy.burst:,} at once after a pause' if policy.burst > 1 else ''}."


def _throttle(policy: Any) -> Iterator[str]:
    ratio = f"{policy.ratio:g}"
    yield f"While the service accepts fewer than one of {ratio} attempts, it is sent {ratio} times as many as it"
    yield "accepts, and at least 5% of all; the others are rejected at once."
    yield f"An attempt is not accepted if its failure {_is_one(policy.trip_on)}."


def _priority(policy: Any) -> Iterator[str]:
    yield f"Calls have the priority {policy.level}, unless the code that calls has one already:"
    yield "it says which go first in the queue of a bulkhead, and which a throttle rejects first."


def _found_rate(policy: Any) -> str:
    if not policy.is_adaptive:
        return "There is room for as many attempts as the service says."
    most = f", but at most {policy.fastest:g} attempts a second" if policy.fastest < UNLIMITED else ""
    return f"There is room for as many attempts a second as the service accepts, which is found out{most}."


def _heeds(policy: Any) -> str:
    return f"Where the service asks to wait, all attempts do, for at most {seconds(policy.max_pause)}."


def _bulkhead(policy: Any) -> Iterator[str]:
    if policy.is_adaptive:
        yield f"As many attempts run at once as the service serves best: from {policy.min_limit} to {policy.max_limit}."
    else:
        most = policy.max_concurrent
        yield f"At most {number(most, 'attempt')} run{'s' if most == 1 else ''} at once."
    yield _waits(policy, "slot")


def _waits(policy: Any, what: str) -> str:
    if policy.max_wait is None:
        rule = f"An attempt waits for its {what} as long as it takes."
    elif policy.max_wait == 0:
        rule = f"An attempt for which there is no {what} is rejected at once."
    else:
        longest = seconds(policy.max_wait)
        rule = f"An attempt waits for its {what} for at most {longest}, and is rejected if that is not enough."
    return f"{rule} {_whose(policy)}"


def _hedge(policy: Any) -> Iterator[str]:
    after = policy.after
    long = (
        f"longer than {seconds(after)}" if isinstance(after, float) else f"longer than {after[1:]}% of the latest ones"
    )
    most = "another one begins" if policy.max == 1 else f"up to {policy.max:,} others begin one after the other"
    yield f"While an attempt takes {long}, {most} beside it: the first result counts, and the others are cancelled."
    yield f"That adds at most {100 * policy.budget:g}% to the attempts."


def _parallel(policy: Any) -> Iterator[str]:
    said = {"auto": "", "adaptive": ", as many at once as the service serves best"}
    workers = said[policy.workers] if isinstance(policy.workers, str) else f", {policy.workers:,} at once"
    order = "in the order of the items" if policy.ordered else "in the order in which they finish"
    is_open = policy.mode == "auto" and policy.workers == "adaptive"
    where = "in threads (async functions: in one event loop)" if is_open else MODES[policy.mode]
    yield f"A map runs its items {where}{workers}, with results {order}. {REPLIES[policy.on_error]}"
    if policy.max_failures is not None:
        most = policy.max_failures
        yield f"It stops when more than {f'{most:,}' if isinstance(most, int) else f'{100 * most:g}%'} have failed."
    if policy.deadline is not None:
        yield f"It ends after {seconds(policy.deadline)} at the latest."


def _canary(policy: Any) -> Iterator[str]:
    by = "" if policy.by is None else f", chosen by the argument {policy.by}"
    yield f"{100 * policy.share:g}% of the calls{by} run under the profile {policy.policy} instead."


def _hooks(policy: Any) -> Iterator[str]:
    for name in type(policy).model_fields:
        handlers = getattr(policy, name)
        if name.startswith("on_") and handlers:
            yield f"{name} calls {listed(map(name_of, handlers))}."


def _worst(policy: Policy) -> Iterator[str]:
    found, fallback = bounds(policy), policy.active("fallback")
    by_value = fallback is not None and fallback.arg is not None
    each = f" for each value of {fallback.arg}" if by_value else ""
    yield f"A call makes at most {number(found.attempts, 'attempt')}{each}."
    if math.isfinite(found.seconds()) and not (by_value and math.isinf(found.total)):
        yield f"It takes at most {seconds(found.seconds())}."
    elif math.isfinite(found.total):
        yield f"It takes at most {seconds(found.total)}, and as long as the attempt that runs at that moment."
    else:
        yield f"It takes at most {listed(_addends(found, each))}. Set timeout.total to limit that."
    if fallback is not None and fallback.function is not None:
        yield f"The time of {name_of(fallback.function)} is added to that."
    if policy.active("cache") is not None:
        yield "With the cache, it may also wait for another call that computes the same result."


def _addends(found: Bounds, each: str) -> Iterator[str]:
    """Yield what the time of a call consists of, if nothing limits all of it."""
    if math.isinf(found.attempt):
        yield (
            f"{times(found.attempts)} the time of the function{each}"
            if found.attempts > 1 or each
            else "the time of the function"
        )
    else:
        yield f"{times(found.attempts)} {seconds(found.attempt)}{each}"
    if found.delays:
        yield "the delays" if each else f"{seconds(found.delays)} of delays"
    if found.queueing:
        is_known = math.isfinite(found.queueing) and not each
        yield f"{seconds(found.queueing)} of waits" if is_known else "the waits for permits and slots"


TOPICS: tuple[tuple[str, str, Callable[[Any], Iterator[str]]], ...] = (
    ("canary", "canary", _canary),
    ("priority", "priority", _priority),
    ("cache", "cache", _cache),
    ("fallback", "fallback", _fallback_result),
    ("timeout", "time of a call", _total),
    ("retry", "retries", _retry),
    ("fallback", "values", _fallback_values),
    ("hedge", "hedges", _hedge),
    ("circuit_breaker", "circuit", _breaker),
    ("throttle", "throttle", _throttle),
    ("rate_limit", "rate", _rate_limit),
    ("bulkhead", "at once", _bulkhead),
    ("timeout", "an attempt", _attempt),
    ("parallel", "maps", _parallel),
    ("hooks", "hooks", _hooks),
)
"""The kinds of policies in the order of a call, each with its topic, and what tells of it."""
