"""The typed flat options of `@opero` and `@opmap`, so that editors and type checkers find a misspelt option."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from concurrent.futures import Executor
    from os import PathLike

    from pydantic import SecretStr

    from opero.policies.adaptive_ttl import AdaptiveTTL
    from opero.policies.bulkhead import BulkheadPolicy
    from opero.policies.cache import CachePolicy, Serializer
    from opero.policies.circuit_breaker import CircuitBreakerPolicy
    from opero.policies.fallback import FallbackPolicy
    from opero.policies.parallel import Mode, OnError, ParallelPolicy
    from opero.policies.rate_limit import RateLimitPolicy
    from opero.policies.retry import RetryPolicy
    from opero.policies.timeout import TimeoutPolicy
    from opero.policies.types import DurationLike, ExceptionsLike

__all__ = ["Options"]


class Options(TypedDict, total=False):
    """Every option, with the types that code may pass. The field of the policy documents its meaning."""

    # Policies, in any form
    retry: RetryPolicy | Mapping[str, Any] | bool | int | None
    fallback: FallbackPolicy | Mapping[str, Any] | bool | None
    cache: CachePolicy | Mapping[str, Any] | bool | DurationLike | None
    rate_limit: RateLimitPolicy | Mapping[str, Any] | bool | float | str | None
    timeout: TimeoutPolicy | Mapping[str, Any] | bool | DurationLike | None
    circuit_breaker: CircuitBreakerPolicy | Mapping[str, Any] | bool | int | None
    bulkhead: BulkheadPolicy | Mapping[str, Any] | bool | int | None
    parallel: ParallelPolicy | Mapping[str, Any] | bool | Mode | None

    # RetryPolicy
    retries: int
    backoff_factor: float
    min_delay: DurationLike
    max_delay: DurationLike
    jitter: bool
    retry_on: ExceptionsLike | None
    retry_on_status: int | str | Collection[int | str] | None
    retry_if_result: Callable[[Any], Any] | str | None
    retry_after: bool
    reraise: bool

    # FallbackPolicy, TimeoutPolicy
    arg_fallback: str | None
    attempt_timeout: DurationLike | None

    # CachePolicy
    cache_ttl: DurationLike | Callable[[], DurationLike] | AdaptiveTTL | Mapping[str, Any] | None
    cache_backend: str
    cache_key: Callable[..., Any] | str | None
    cache_namespace: str
    cache_max_size: int
    cache_stale_ttl: DurationLike | None
    cache_early_refresh: DurationLike | None
    cache_ttl_jitter: float
    cache_if: Callable[[Any], Any] | str | None
    cache_errors: bool
    cache_error_ttl: DurationLike | None
    cache_tags: str | Collection[str]
    cache_serializer: Serializer | None
    cache_secret: SecretStr | str | None
    cache_allow_unsigned_pickle: bool
    cache_url: SecretStr | str | None
    cache_dir: PathLike[str] | str | None
    cache_store_timeout: DurationLike
    cache_lock_timeout: DurationLike
    cache_arguments: Mapping[str, Any] | None

    # ParallelPolicy
    mode: Mode
    workers: int | Literal["auto"]
    ordered: bool
    progress: bool | Literal["auto"]
    batch: bool | None
    batch_size: int | None
    on_error: OnError
    max_failures: float | str | None
    worker_retries: int
    concurrency: int
    window: int | Literal["auto"]
    deadline: DurationLike | None
    max_memory: int | str | None
    executor: Executor | Callable[[], Executor] | str | None
    initializer: Callable[[], object] | str | None
    address: str | None
