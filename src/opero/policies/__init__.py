"""Policies: immutable models of what should happen, independent of threads, clocks and state."""

from opero.policies.adaptive_ttl import AdaptiveTTL
from opero.policies.bulkhead import BulkheadPolicy
from opero.policies.cache import CachePolicy
from opero.policies.circuit_breaker import CircuitBreakerPolicy
from opero.policies.fallback import FallbackPolicy
from opero.policies.parallel import ParallelPolicy
from opero.policies.policy import Policy
from opero.policies.rate_limit import RateLimitPolicy
from opero.policies.retry import RetryPolicy
from opero.policies.timeout import TimeoutPolicy

__all__ = [
    "AdaptiveTTL",
    "BulkheadPolicy",
    "CachePolicy",
    "CircuitBreakerPolicy",
    "FallbackPolicy",
    "ParallelPolicy",
    "Policy",
    "RateLimitPolicy",
    "RetryPolicy",
    "TimeoutPolicy",
]
