"""Policies: immutable models of what should happen, independent of threads, clocks and state."""

from opero.policies.adaptive_ttl import AdaptiveTTL as AdaptiveTTL
from opero.policies.bulkhead import BulkheadPolicy as BulkheadPolicy
from opero.policies.cache import CachePolicy as CachePolicy
from opero.policies.canary import CanaryPolicy as CanaryPolicy
from opero.policies.circuit_breaker import CircuitBreakerPolicy as CircuitBreakerPolicy
from opero.policies.failures import FailurePolicy as FailurePolicy
from opero.policies.fallback import FallbackPolicy as FallbackPolicy
from opero.policies.hedge import HedgePolicy as HedgePolicy
from opero.policies.hooks import HooksPolicy as HooksPolicy
from opero.policies.limits import Limit as Limit
from opero.policies.parallel import ParallelPolicy as ParallelPolicy
from opero.policies.policy import Policy as Policy
from opero.policies.priority import PriorityPolicy as PriorityPolicy
from opero.policies.rate_limit import RateLimitPolicy as RateLimitPolicy
from opero.policies.retry import RetryPolicy as RetryPolicy
from opero.policies.scope import KeyedScope as KeyedScope
from opero.policies.throttle import ThrottlePolicy as ThrottlePolicy
from opero.policies.timeout import TimeoutPolicy as TimeoutPolicy
