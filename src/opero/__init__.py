"""opero: resilience as configuration.

A `Policy` says what should happen around a function; a `Registry` holds policies by name, from YAML files and the
environment; `@opero` and `@opmap` bind them to functions. Every name is loaded when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers know the name; importing typing would take longer than all the rest
if TYPE_CHECKING:
    from typing import Any

    from opero.alerts.manager import AlertManager as AlertManager
    from opero.cache import clear_cache as clear_cache
    from opero.decorators import opero as opero
    from opero.decorators import opmap as opmap
    from opero.errors import AllFailedError as AllFailedError
    from opero.errors import BulkheadFullError as BulkheadFullError
    from opero.errors import CallTimeoutError as CallTimeoutError
    from opero.errors import CircuitOpenError as CircuitOpenError
    from opero.errors import ConfigError as ConfigError
    from opero.errors import FailedResponseError as FailedResponseError
    from opero.errors import Failure as Failure
    from opero.errors import MapError as MapError
    from opero.errors import MemoryLimitError as MemoryLimitError
    from opero.errors import MissingExtraError as MissingExtraError
    from opero.errors import OperoError as OperoError
    from opero.errors import PolicyNotFoundError as PolicyNotFoundError
    from opero.errors import Problem as Problem
    from opero.errors import RateLimitExceededError as RateLimitExceededError
    from opero.errors import RejectedError as RejectedError
    from opero.errors import ResultRejectedError as ResultRejectedError
    from opero.errors import ThrottledError as ThrottledError
    from opero.errors import UnknownOptionError as UnknownOptionError
    from opero.errors import WorkerDiedError as WorkerDiedError
    from opero.events import Event as Event
    from opero.executors.deadlines import deadline as deadline
    from opero.executors.deadlines import remaining as remaining
    from opero.executors.priorities import priority as priority
    from opero.executors.settling import settle as settle
    from opero.health.error_tracker import ErrorTracker as ErrorTracker
    from opero.health.monitor import HealthMonitor as HealthMonitor
    from opero.health.status import HealthStatus as HealthStatus
    from opero.integrations.web.server import LiveServer as LiveServer
    from opero.integrations.web.server import serve as serve
    from opero.observe.logs import configure_logging as configure_logging
    from opero.observe.receipts import CallReceipt as CallReceipt
    from opero.observe.receipts import Receipt as Receipt
    from opero.observe.stats import Stats as Stats
    from opero.observe.subscriptions import on as on
    from opero.observe.tracing import attach_receipts as attach_receipts
    from opero.observe.tracing import trace as trace
    from opero.parallel.tuning import tune as tune
    from opero.policies.adaptive_ttl import AdaptiveTTL as AdaptiveTTL
    from opero.policies.alert import Alert as Alert
    from opero.policies.bound_types import AsyncBound as AsyncBound
    from opero.policies.bound_types import AsyncMapped as AsyncMapped
    from opero.policies.bound_types import Bound as Bound
    from opero.policies.bound_types import Mapped as Mapped
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
    from opero.registry.default import get_default_registry as get_default_registry
    from opero.registry.default import set_default_registry as set_default_registry
    from opero.registry.registry import Registry as Registry
    from opero.registry.reload import Changes as Changes
    from opero.registry.roster import BoundFunction as BoundFunction
    from opero.registry.watch import Watch as Watch
    from opero.runtime.clock import Clock as Clock
    from opero.values import CacheEntry as CacheEntry
    from opero.values import CacheInfo as CacheInfo
    from opero.values import Progress as Progress
    from opero.values import Tuning as Tuning

_MODULES = {
    "cache": ("clear_cache",),
    "runtime.clock": ("Clock",),
    "decorators": ("opero", "opmap"),
    "registry.roster": ("BoundFunction",),
    "registry.default": ("get_default_registry", "set_default_registry"),
    "errors": (
        "AllFailedError",
        "BulkheadFullError",
        "CallTimeoutError",
        "CircuitOpenError",
        "ConfigError",
        "FailedResponseError",
        "Failure",
        "MapError",
        "MemoryLimitError",
        "MissingExtraError",
        "OperoError",
        "PolicyNotFoundError",
        "Problem",
        "RateLimitExceededError",
        "RejectedError",
        "ResultRejectedError",
        "ThrottledError",
        "UnknownOptionError",
        "WorkerDiedError",
    ),
    "alerts.manager": ("AlertManager",),
    "events": ("Event",),
    "executors.deadlines": ("deadline", "remaining"),
    "executors.settling": ("settle",),
    "executors.priorities": ("priority",),
    "health.error_tracker": ("ErrorTracker",),
    "health.monitor": ("HealthMonitor",),
    "health.status": ("HealthStatus",),
    "integrations.web.server": ("LiveServer", "serve"),
    "observe.subscriptions": ("on",),
    "observe.logs": ("configure_logging",),
    "policies.alert": ("Alert",),
    "policies": (
        "AdaptiveTTL",
        "BulkheadPolicy",
        "CachePolicy",
        "CanaryPolicy",
        "CircuitBreakerPolicy",
        "FailurePolicy",
        "FallbackPolicy",
        "HedgePolicy",
        "HooksPolicy",
        "KeyedScope",
        "Limit",
        "ParallelPolicy",
        "Policy",
        "PriorityPolicy",
        "RateLimitPolicy",
        "RetryPolicy",
        "ThrottlePolicy",
        "TimeoutPolicy",
    ),
    "parallel.tuning": ("tune",),
    "registry.registry": ("Registry",),
    "registry.reload": ("Changes",),
    "policies.bound_types": ("AsyncBound", "AsyncMapped", "Bound", "Mapped"),
    "observe.receipts": ("CallReceipt", "Receipt"),
    "observe.tracing": ("attach_receipts", "trace"),
    "observe.stats": ("Stats",),
    "registry.watch": ("Watch",),
    "values": ("CacheEntry", "CacheInfo", "Progress", "Tuning"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__version__ = "0.1.0"
__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562), so that `import opero` is fast."""
    if name not in _HOME:
        raise AttributeError(f"module 'opero' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"opero.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
