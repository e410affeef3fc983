"""What opero itself knows about the health of a registry: circuits, limits, cache stores and the configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from opero.errors import describe, message_of
from opero.health.status import Finding
from opero.policies.types import approximate_duration, format_duration
from opero.registry.parts import is_by_key, is_in_shadow, parts
from opero.registry.roster import declaration_of

if TYPE_CHECKING:
    from opero.cache.outage import StoreBreaker
    from opero.executors.bulkhead import BulkheadExecutor
    from opero.executors.by_key import ByKey
    from opero.executors.circuit_breaker import CircuitBreakerExecutor
    from opero.executors.rate_limit import RateLimitExecutor
    from opero.executors.throttle import ThrottleExecutor
    from opero.registry.registry import Registry

SEVERITY = ("healthy", "degraded", "unhealthy")
LONGEST_TEXT = 300
MOST_KEYS = 5


class Contribution(NamedTuple):
    """What opero knows about the health of one part of a registry.

    Attributes:
        name: "configuration", "api.circuit_breaker" for a profile, "app.users:get.circuit_breaker" for a function, or
            "cache store " and its name.
        profiles: the profiles that it belongs to.
        finding: its state.
    """

    name: str
    profiles: frozenset[str]
    finding: Finding


def contributions(registry: Registry) -> dict[str, Contribution]:
    """Return the contributions of a registry by name. Nothing is called or resolved, and no server is asked.

    Only parts that have been used contribute: a function that has not been called yet has no state.
    """
    found: dict[str, Contribution] = {}
    for name, profile, look in _parts(registry):
        try:
            finding = look()
        except Exception as error:  # noqa: BLE001  # such as that of a file in which several processes keep a state
            finding = Finding("unhealthy", f"its state cannot be read: {describe(error)}")
        profiles = frozenset(() if profile is None else (profile,))
        before = found.get(name)
        if before is not None:  # several functions with one store, or one profile under several clocks
            profiles |= before.profiles
            finding = max(before.finding, finding, key=lambda each: SEVERITY.index(each.status))
        found[name] = Contribution(name, profiles, finding)
    return found


def _parts(registry: Registry) -> Iterator[tuple[str, str | None, Callable[[], Finding]]]:
    """Yield the name of each part, its profile, and a function that looks at it."""
    yield "configuration", None, lambda: _of_configuration(registry)
    for part in parts(registry._in_force.shared, registry._bindings()):
        profile, function, holder = part.profile or None, "", part.holder
        if part.binding is not None:
            declaration = declaration_of(part.binding)
            function, (profile, _) = declaration.name, registry._start_of(declaration)
        if part.kind == "store":
            yield f"cache store {holder.breaker.name}", profile, _looking_at_store(holder.breaker)
        elif part.kind in LOOKS and not is_in_shadow(holder):
            yield f"{function or profile}.{part.kind}", profile, _looking_at(holder)


def _looking_at(executor: Any) -> Callable[[], Finding]:
    return lambda: (_of_keys if is_by_key(executor) else LOOKS[executor.policy.kind])(executor)


def _looking_at_store(breaker: StoreBreaker) -> Callable[[], Finding]:
    def look() -> Finding:
        if breaker.trouble:
            return Finding("degraded", f"functions run without it: {breaker.trouble}")
        return Finding("degraded", f"results are not stored: {breaker.refusal}") if breaker.refusal else OK

    return look


OK = Finding()


def _of_configuration(registry: Registry) -> Finding:
    rejected = registry.rejected
    if rejected is None:
        return OK
    reason = message_of(rejected, LONGEST_TEXT)
    return Finding("degraded", f"a reload was rejected, and the previous configuration stays in force: {reason}")


def _of_circuit(breaker: CircuitBreakerExecutor) -> Finding:
    state, last_error = breaker.status()
    after = f" after {last_error}" if last_error else ""
    if state in ("closed", "forced_closed"):
        if trouble := breaker.home.successor.trouble:
            return Finding("degraded", f"its shared circuit cannot be used, and each process has its own: {trouble}")
        return OK
    if state == "half_open":
        return Finding("degraded", f"the circuit is half open{after}")
    return Finding(
        "unhealthy", "the circuit was forced open" if state == "forced_open" else f"the circuit is open{after}"
    )


def _of_rate_limit(limiter: RateLimitExecutor) -> Finding:
    if trouble := limiter.home.successor.trouble:
        rule = limiter.policy.on_store_error
        return Finding("degraded", f"its shared budget cannot be used, and on_store_error is {rule}: {trouble}")
    wait = limiter.next_permit()
    if wait <= limiter.patience:
        return OK
    away, limit = approximate_duration(wait), format_duration(limiter.patience)
    if paused := limiter.paused_for():
        asked = f"the service has asked for a pause, which lasts {approximate_duration(paused)} more"
        return Finding("degraded", f"calls are rejected: {asked}, and max_wait is {limit}")
    return Finding("degraded", f"calls are rejected: the next permit is {away} away, and max_wait is {limit}")


def _of_bulkhead(bulkhead: BulkheadExecutor) -> Finding:
    if trouble := bulkhead.home.successor.trouble:
        rule = bulkhead.policy.on_store_error
        return Finding("degraded", f"its shared slots cannot be used, and on_store_error is {rule}: {trouble}")
    running, limit = bulkhead.running, bulkhead.home.successor.limit
    if running < limit or bulkhead.policy.max_wait != 0:
        return OK
    return Finding("degraded", f"calls are rejected: {running} of {limit} slots are in use")


def _of_keys(by_key: ByKey) -> Finding:
    """What is wrong for some values of an argument is no more than degraded."""
    look = LOOKS[by_key.policy.kind]
    if by_key.policy.kind == "circuit_breaker":
        if by_key.state == "forced_open":
            return Finding("unhealthy", "the circuits were forced open")
        found = [(key, f"the circuit is {circuit['state'].replace('_', ' ')}") for key, circuit in by_key.troubled()]
    else:
        looked = [(key, look(executor)) for key, executor in by_key.executors()]
        found = [(key, finding.error) for key, finding in looked if finding.error]
    if not found:
        return OK
    shown = "; ".join(f"{key}: {text}" for key, text in found[:MOST_KEYS])
    more = f"; and {len(found) - MOST_KEYS} more" if len(found) > MOST_KEYS else ""
    return Finding("degraded", f"{len(found)} of {by_key.size()} keys: {shown}{more}")


def _of_throttle(throttle: ThrottleExecutor) -> Finding:
    rejecting, _, _ = throttle.load()
    if not rejecting:
        return OK
    return Finding("degraded", f"{rejecting:.0%} of the attempts are rejected: the service accepts too few")


LOOKS: dict[str, Callable[[Any], Finding]] = {
    "circuit_breaker": _of_circuit,
    "throttle": _of_throttle,
    "rate_limit": _of_rate_limit,
    "bulkhead": _of_bulkhead,
}
"""Kind of policy → what its executor says about the health of what it stands in front of."""
