"""The hooks of a policy: functions that are called at the events of the functions bound under it."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias, TypeVar

from pydantic import BeforeValidator, PlainSerializer

from opero.events import EVENTS, Event
from opero.policies.base import BasePolicy
from opero.policies.lists import each_of
from opero.policies.names import NAME_SCHEMA, check_call, check_callable, dotted_name, resolve
from opero.policies.quantities import named_schema
from opero.runtime.functions import full_name, kind_of

if TYPE_CHECKING:
    from opero import events

E = TypeVar("E", bound=Event)
Hook: TypeAlias = Callable[[E], object] | str | Collection[Callable[[E], object] | str] | None
"""What code may pass for a hook: a handler of the event, its import path, several of them, or None."""

HOOKS = {
    "on_success": "call_succeeded",
    "on_failure": "call_failed",
    "on_attempt_failed": "attempt_failed",
    "on_retry": "retry_scheduled",
    "on_hedge": "hedge_started",
    "on_fallback": "fallback_used",
    "on_value_set_aside": "value_set_aside",
    "on_value_restored": "value_restored",
    "on_wait": "waited",
    "on_reject": "rejected",
    "on_timeout": "timed_out",
    "on_shadow": "shadowed",
    "on_limit_change": "limit_changed",
    "on_pause": "rate_limit_paused",
    "on_adapt": "rate_limit_adapted",
    "on_open": "circuit_opened",
    "on_half_open": "circuit_half_opened",
    "on_close": "circuit_closed",
    "on_force": "circuit_forced",
    "on_cache_hit": "cache_hit",
    "on_cache_miss": "cache_miss",
    "on_cache_stale": "cache_stale",
    "on_cache_refresh": "cache_refreshed",
    "on_cache_failed": "cache_failed",
    "on_cache_restored": "cache_restored",
    "on_map_start": "map_started",
    "on_map_progress": "map_progressed",
    "on_map_item_failed": "map_item_failed",
    "on_map_worker_lost": "map_worker_lost",
    "on_map_finish": "map_finished",
}
"""Hook → the name of its event. Events of the configuration have none: they concern no function."""


def _handler(given: object) -> Callable[..., Any]:
    value: Any = resolve(given) if isinstance(given, str) else given
    check_callable(value, given)
    name = full_name(value)
    if kind_of(value).endswith("generator"):
        raise ValueError(f"{name} is a generator function, so calling it runs nothing; use a function")
    check_call(value, "the event")
    return value  # type: ignore[no-any-return]  # it is callable


def _handlers(value: object) -> tuple[Callable[..., Any], ...]:
    if value is None:
        return ()
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(each_of(value, _handler))
    return (_handler(value),)


Handlers = Annotated[
    tuple[Callable[..., Any], ...],
    BeforeValidator(_handlers),
    named_schema(
        "Handlers",
        [NAME_SCHEMA, {"type": "array", "items": NAME_SCHEMA}, {"type": "null"}],
        "app.hooks:notify",
        ["app.hooks:notify", "app.hooks:count"],
    ),
    PlainSerializer(lambda handlers: [dotted_name(each) for each in handlers], return_type=list[str], when_used="json"),
]


class HooksPolicy(BasePolicy):
    """Call functions at the events of the functions that are bound under this policy.

    A hook is one handler or several, each a function or async function of the event; in YAML its import path
    ("app.hooks:notify"). Handlers are called as those of `opero.on` are: they never harm a call, a slow one moves to a
    thread, and events of worker processes reach the process that runs the map.

    Attributes:
        on_success: a call returned a result (`CallSucceeded`).
        on_failure: a call failed (`CallFailed`).
        on_attempt_failed: an attempt failed (`AttemptFailed`).
        on_retry: another round of attempts begins after a delay (`RetryScheduled`).
        on_hedge: a second attempt begins beside a slow one (`HedgeStarted`).
        on_fallback: a call falls back on another value or result (`FallbackUsed`).
        on_value_set_aside: a value of a fallback argument is asked last for a while (`ValueSetAside`).
        on_value_restored: a value that was set aside works again (`ValueRestored`).
        on_wait: an attempt waited for a permit, a slot or a value (`Waited`).
        on_reject: a policy rejected an attempt (`Rejected`).
        on_timeout: a timeout ended an attempt or a call (`TimedOut`).
        on_shadow: a policy in shadow would have done something (`Shadowed`).
        on_limit_change: an adaptive limit has become another one (`LimitChanged`).
        on_pause: the service has asked for a pause, so the rate limit lets no call through (`RateLimitPaused`).
        on_adapt: the service has refused a call, so a rate limit that finds the rate is slower (`RateLimitAdapted`).
        on_open: the circuit breaker opened (`CircuitOpened`). Of a breaker that functions share, each handler is called
            once; so it is with the other states, and with the values that functions share.
        on_half_open: the circuit breaker lets probes through (`CircuitHalfOpened`).
        on_close: the circuit breaker closed (`CircuitClosed`).
        on_force: the circuit breaker was opened or closed by hand (`CircuitForced`).
        on_cache_hit: the cache answered with a fresh result (`CacheHit`).
        on_cache_miss: the cache had no result (`CacheMiss`).
        on_cache_stale: the cache answered with a result older than its ttl (`CacheStale`).
        on_cache_refresh: a result was refreshed in the background (`CacheRefreshed`).
        on_cache_failed: the cache or its store could not do its work (`CacheFailed`).
        on_cache_restored: the store of the cache is available again (`CacheRestored`).
        on_map_start: a map began (`MapStarted`).
        on_map_progress: the progress of a map, at most ten times a second (`MapProgressed`).
        on_map_item_failed: an item of a map failed for good (`MapItemFailed`).
        on_map_worker_lost: a worker process of a map died (`MapWorkerLost`).
        on_map_finish: a map ended (`MapFinished`).
    """

    kind: ClassVar[str] = "hooks"
    no_shadow: ClassVar[str] = "hooks only listen"

    on_success: Handlers = ()
    on_failure: Handlers = ()
    on_attempt_failed: Handlers = ()
    on_retry: Handlers = ()
    on_hedge: Handlers = ()
    on_fallback: Handlers = ()
    on_value_set_aside: Handlers = ()
    on_value_restored: Handlers = ()
    on_wait: Handlers = ()
    on_reject: Handlers = ()
    on_timeout: Handlers = ()
    on_shadow: Handlers = ()
    on_limit_change: Handlers = ()
    on_pause: Handlers = ()
    on_adapt: Handlers = ()
    on_open: Handlers = ()
    on_half_open: Handlers = ()
    on_close: Handlers = ()
    on_force: Handlers = ()
    on_cache_hit: Handlers = ()
    on_cache_miss: Handlers = ()
    on_cache_stale: Handlers = ()
    on_cache_refresh: Handlers = ()
    on_cache_failed: Handlers = ()
    on_cache_restored: Handlers = ()
    on_map_start: Handlers = ()
    on_map_progress: Handlers = ()
    on_map_item_failed: Handlers = ()
    on_map_worker_lost: Handlers = ()
    on_map_finish: Handlers = ()

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            on_success: Hook[events.CallSucceeded] = (),
            on_failure: Hook[events.CallFailed] = (),
            on_attempt_failed: Hook[events.AttemptFailed] = (),
            on_retry: Hook[events.RetryScheduled] = (),
            on_hedge: Hook[events.HedgeStarted] = (),
            on_fallback: Hook[events.FallbackUsed] = (),
            on_value_set_aside: Hook[events.ValueSetAside] = (),
            on_value_restored: Hook[events.ValueRestored] = (),
            on_wait: Hook[events.Waited] = (),
            on_reject: Hook[events.Rejected] = (),
            on_timeout: Hook[events.TimedOut] = (),
            on_shadow: Hook[events.Shadowed] = (),
            on_limit_change: Hook[events.LimitChanged] = (),
            on_pause: Hook[events.RateLimitPaused] = (),
            on_adapt: Hook[events.RateLimitAdapted] = (),
            on_open: Hook[events.CircuitOpened] = (),
            on_half_open: Hook[events.CircuitHalfOpened] = (),
            on_close: Hook[events.CircuitClosed] = (),
            on_force: Hook[events.CircuitForced] = (),
            on_cache_hit: Hook[events.CacheHit] = (),
            on_cache_miss: Hook[events.CacheMiss] = (),
            on_cache_stale: Hook[events.CacheStale] = (),
            on_cache_refresh: Hook[events.CacheRefreshed] = (),
            on_cache_failed: Hook[events.CacheFailed] = (),
            on_cache_restored: Hook[events.CacheRestored] = (),
            on_map_start: Hook[events.MapStarted] = (),
            on_map_progress: Hook[events.MapProgressed] = (),
            on_map_item_failed: Hook[events.MapItemFailed] = (),
            on_map_worker_lost: Hook[events.MapWorkerLost] = (),
            on_map_finish: Hook[events.MapFinished] = (),
        ) -> None: ...

    def handlers(self) -> dict[type[Event], tuple[Callable[..., Any], ...]]:
        """Return the class of each event that has handlers, with these."""
        return {EVENTS[event]: found for hook, event in HOOKS.items() if (found := getattr(self, hook))}
