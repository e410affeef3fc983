"""The typed flat options of `@opero` and `@opmap`, so that editors and type checkers find a misspelt option."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from os import PathLike

    from pydantic import SecretStr

    from opero import events
    from opero.policies.adaptive_ttl import AdaptiveTTL
    from opero.policies.bulkhead import BulkheadPolicy
    from opero.policies.cache import CachePolicy, Serializer
    from opero.policies.canary import CanaryPolicy
    from opero.policies.circuit_breaker import CircuitBreakerPolicy
    from opero.policies.failures import FailurePolicy
    from opero.policies.fallback import FallbackPolicy
    from opero.policies.hedge import HedgePolicy
    from opero.policies.hooks import Hook, HooksPolicy
    from opero.policies.limits import LimitsLike
    from opero.policies.names import ConditionsLike
    from opero.policies.parallel import Mode, OnError, ParallelPolicy
    from opero.policies.priority import PriorityPolicy
    from opero.policies.quantities import DurationLike
    from opero.policies.rate_limit import RateLimitPolicy
    from opero.policies.retry import RetryPolicy
    from opero.policies.throttle import ThrottlePolicy
    from opero.policies.timeout import TimeoutPolicy
    from opero.runtime.priorities import Priority


class Options(TypedDict, total=False):
    """Every option, with the types that code may pass. The field of the policy documents its meaning."""

    # Policies, in any form
    retry: RetryPolicy | Mapping[str, Any] | bool | int | None
    fallback: FallbackPolicy | Mapping[str, Any] | bool | None
    failures: FailurePolicy | Mapping[str, Any] | bool | None
    hooks: HooksPolicy | Mapping[str, Any] | bool | None
    cache: CachePolicy | Mapping[str, Any] | bool | DurationLike | None
    rate_limit: RateLimitPolicy | Mapping[str, Any] | LimitsLike | bool | float | str | None
    timeout: TimeoutPolicy | Mapping[str, Any] | bool | DurationLike | None
    circuit_breaker: CircuitBreakerPolicy | Mapping[str, Any] | bool | int | None
    hedge: HedgePolicy | Mapping[str, Any] | bool | DurationLike | None
    throttle: ThrottlePolicy | Mapping[str, Any] | bool | float | None
    bulkhead: BulkheadPolicy | Mapping[str, Any] | bool | int | Literal["adaptive"] | None
    priority: PriorityPolicy | Mapping[str, Any] | bool | Priority | None
    parallel: ParallelPolicy | Mapping[str, Any] | bool | Mode | None
    canary: CanaryPolicy | Mapping[str, Any] | bool | None

    # RetryPolicy
    retries: int
    backoff_factor: float
    min_delay: DurationLike
    max_delay: DurationLike
    jitter: bool | Literal["full", "equal", "none"]
    retry_on: ConditionsLike | None
    retry_on_status: int | str | Collection[int | str] | None
    retry_if_result: Callable[[Any], Any] | str | None
    retry_after: bool
    reraise: bool
    budget: float | str | bool | None
    amplification: Literal["guard", "allow"]
    idempotent: bool

    # FallbackPolicy, TimeoutPolicy
    arg_fallback: str | None
    attempt_timeout: DurationLike | None

    # CachePolicy
    cache_ttl: DurationLike | Callable[[], DurationLike] | AdaptiveTTL | Mapping[str, Any] | None
    cache_backend: str
    cache_key: Callable[..., Any] | str | None
    cache_ignore: str | Collection[str]
    cache_namespace: str
    cache_app: str | None
    cache_version: str | float | None
    cache_follow_code: bool
    cache_max_size: int
    cache_stale_ttl: DurationLike | None
    cache_early_refresh: DurationLike | None
    cache_ttl_jitter: float
    cache_if: Callable[[Any], Any] | str | None
    cache_errors: ConditionsLike | bool | None
    cache_error_ttl: DurationLike | None
    cache_share_errors: bool
    cache_tags: str | Collection[str]
    cache_serializer: Serializer | None
    cache_secret: SecretStr | str | None
    cache_allow_unsigned_pickle: bool
    cache_url: SecretStr | str | None
    cache_dir: PathLike[str] | str | None
    cache_store_timeout: DurationLike
    cache_lock_timeout: DurationLike
    cache_arguments: Mapping[str, Any] | None

    # HooksPolicy
    on_success: Hook[events.CallSucceeded]
    on_failure: Hook[events.CallFailed]
    on_attempt_failed: Hook[events.AttemptFailed]
    on_retry: Hook[events.RetryScheduled]
    on_hedge: Hook[events.HedgeStarted]
    on_fallback: Hook[events.FallbackUsed]
    on_value_set_aside: Hook[events.ValueSetAside]
    on_value_restored: Hook[events.ValueRestored]
    on_wait: Hook[events.Waited]
    on_reject: Hook[events.Rejected]
    on_timeout: Hook[events.TimedOut]
    on_shadow: Hook[events.Shadowed]
    on_limit_change: Hook[events.LimitChanged]
    on_pause: Hook[events.RateLimitPaused]
    on_adapt: Hook[events.RateLimitAdapted]
    on_open: Hook[events.CircuitOpened]
    on_half_open: Hook[events.CircuitHalfOpened]
    on_close: Hook[events.CircuitClosed]
    on_force: Hook[events.CircuitForced]
    on_cache_hit: Hook[events.CacheHit]
    on_cache_miss: Hook[events.CacheMiss]
    on_cache_stale: Hook[events.CacheStale]
    on_cache_refresh: Hook[events.CacheRefreshed]
    on_cache_failed: Hook[events.CacheFailed]
    on_cache_restored: Hook[events.CacheRestored]
    on_map_start: Hook[events.MapStarted]
    on_map_progress: Hook[events.MapProgressed]
    on_map_item_failed: Hook[events.MapItemFailed]
    on_map_worker_lost: Hook[events.MapWorkerLost]
    on_map_finish: Hook[events.MapFinished]

    # ParallelPolicy
    mode: Mode
    workers: int | Literal["auto", "adaptive"]
    ordered: bool
    progress: bool | Literal["auto"]
    batch: bool | None
    batch_size: int | None
    on_error: OnError
    max_failures: float | str | None
    worker_retries: int
    inner_threads: int | Literal["auto"]
    concurrency: int
    window: int | Literal["auto"]
    deadline: DurationLike | None
    max_memory: int | str | None
    executor: Executor | Callable[[], Executor] | str | None
    initializer: Callable[[], object] | str | None
    address: str | None
